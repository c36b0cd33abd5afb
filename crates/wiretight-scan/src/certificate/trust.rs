//! Stores of roots, and whether a chain leads to one of theirs.

use std::collections::HashMap;
use std::path::{Path as FilePath, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, Error, KeyUsage, anchor_from_trusted_cert};

use super::algorithm::{Kind, weak_hash};
use super::x509::{SERVER_AUTH, X509};
use super::{Finding, day};

/// Whom a scan trusts. Without a store, what it would decide is untested.
#[derive(Debug, Default)]
pub struct Stores {
    /// The roots of the web, or of an organisation.
    pub roots: Option<Roots>,
    /// The trust bundle of the mesh.
    pub mesh: Option<Roots>,
}

impl Stores {
    pub(super) fn all(&self) -> impl Iterator<Item = &Roots> + Clone {
        self.roots.iter().chain(&self.mesh)
    }
}

/// Roots that are trusted.
#[derive(Debug)]
pub struct Roots {
    anchors: Vec<TrustAnchor<'static>>,
    certificates: Vec<CertificateDer<'static>>,
    /// Where in `certificates` those with this subject are.
    by_subject: HashMap<Vec<u8>, Vec<usize>>,
}

/// Why there are no roots.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// A file that cannot be read, or is no PEM.
    #[error("{path} cannot be read as PEM certificates: {1}", path = .0.display())]
    File(PathBuf, rustls_pki_types::pem::Error),
    /// The system's store has none.
    #[error("this system has no store of roots ({0}); install ca-certificates, or give a PEM file")]
    System(String),
    /// There were certificates, perhaps, and none that can be a root.
    #[error("there is no certificate among them that can be a root")]
    Empty,
}

impl Roots {
    /// Those of the system, or of the file or folder that SSL_CERT_FILE or SSL_CERT_DIR name.
    pub fn system() -> Result<Self, RootsError> {
        let found = rustls_native_certs::load_native_certs();
        Self::from_der(found.certs).map_err(|_| {
            let why: Vec<_> = found.errors.iter().take(3).map(ToString::to_string).collect();
            RootsError::System(if why.is_empty() {
                "it is empty".to_owned()
            } else {
                why.join("; ")
            })
        })
    }

    /// The certificates of a PEM file; what else is in it is passed over.
    pub fn from_pem_file(path: &FilePath) -> Result<Self, RootsError> {
        let file = |error| RootsError::File(path.to_owned(), error);
        let certificates = CertificateDer::pem_file_iter(path).map_err(file)?;
        Self::from_der(certificates.collect::<Result<Vec<_>, _>>().map_err(file)?)
    }

    /// Certificates that are roots; those which cannot be one are passed over.
    pub fn from_der(
        certificates: impl IntoIterator<Item = CertificateDer<'static>>,
    ) -> Result<Self, RootsError> {
        let mut roots =
            Self { anchors: Vec::new(), certificates: Vec::new(), by_subject: HashMap::new() };
        for certificate in certificates {
            let Ok(anchor) = anchor_from_trusted_cert(&certificate) else { continue };
            let anchor = anchor.to_owned();
            let Ok(x509) = X509::read(&certificate) else { continue };
            roots.by_subject.entry(x509.subject.to_vec()).or_default().push(roots.anchors.len());
            roots.anchors.push(anchor);
            roots.certificates.push(certificate);
        }
        if roots.anchors.is_empty() { Err(RootsError::Empty) } else { Ok(roots) }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.anchors.len()
    }

    /// Whether there are none: never, for then there would be no `Roots`.
    pub fn is_empty(&self) -> bool {
        self.anchors.is_empty()
    }

    fn named(&self, subject: &[u8]) -> impl Iterator<Item = X509<'_>> {
        let found = self.by_subject.get(subject).into_iter().flatten();
        found.filter_map(|&i| X509::read(&self.certificates[i]).ok())
    }

    /// The root that issued this certificate.
    pub(super) fn issuer_of(&self, certificate: &X509<'_>) -> Option<X509<'_>> {
        self.named(certificate.issuer).find(|root| certificate.issued_by(root).0)
    }

    /// Whether it is one of them, or another certificate for the same name and key.
    fn has(&self, certificate: &X509<'_>) -> bool {
        !certificate.spki.is_empty()
            && self.named(certificate.subject).any(|root| root.spki == certificate.spki)
    }
}

/// The way from a leaf, over what was sent, as far as it goes.
#[derive(Debug, Clone)]
pub(super) struct Path {
    /// Places in the chain; the first is the leaf's.
    pub(super) steps: Vec<usize>,
    pub(super) end: End,
    /// Whether every signature on it was checked; where not, the names decided.
    pub(super) checked: bool,
}

/// Where a path ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// At a root of a store, or what one of these issued.
    Root,
    /// At a certificate that signed itself, and is in no store.
    SelfSigned,
    /// Its issuer was not sent, and is in no store.
    Missing,
}

impl Path {
    /// The way that a client takes: one to a root over certificates that are valid now, where there is one; else the best
    /// of all ways.
    pub(super) fn taken<'r>(
        chain: &[Option<X509<'_>>],
        stores: impl Iterator<Item = &'r Roots> + Clone,
        now: Timestamp,
    ) -> Option<Self> {
        let valid_now: Vec<Option<X509<'_>>> = chain
            .iter()
            .enumerate()
            .map(|(i, read)| read.clone().filter(|x509| i == 0 || x509.holds_at(now)))
            .collect();
        Self::find(&valid_now, stores.clone())
            .filter(|path| path.end == End::Root)
            .or_else(|| Self::find(chain, stores))
    }

    /// The best of the ways that there are: to a root, else to a certificate that signed itself,
    /// else the first that ends. `None` where the leaf cannot be read.
    pub(super) fn find<'r>(
        chain: &[Option<X509<'_>>],
        stores: impl Iterator<Item = &'r Roots> + Clone,
    ) -> Option<Self> {
        chain.first()?.as_ref()?;
        // Each certificate is entered once, so that the work is bounded: breadth first.
        let mut ways = vec![Self { steps: vec![0], end: End::Missing, checked: true }];
        let mut entered = vec![false; chain.len()];
        let (mut at, mut self_signed, mut missing) = (0, None, None);
        while let Some(way) = ways.get(at).cloned() {
            at += 1;
            let Some(last) = way.steps.last().and_then(|&i| chain[i].as_ref()) else { continue };
            if stores.clone().any(|roots| roots.has(last) || roots.issuer_of(last).is_some()) {
                return Some(Self { end: End::Root, ..way });
            }
            if last.self_signed() {
                self_signed = self_signed.or(Some(Self { end: End::SelfSigned, ..way }));
                continue;
            }
            let known = ways.len();
            for (i, issuer) in chain.iter().enumerate().skip(1) {
                let Some(issuer) = issuer.as_ref().filter(|_| !entered[i]) else { continue };
                if let (true, checked) = last.issued_by(issuer) {
                    entered[i] = true;
                    let steps = way.steps.iter().copied().chain([i]).collect();
                    ways.push(Self { steps, end: End::Missing, checked: way.checked && checked });
                }
            }
            if ways.len() == known {
                missing = missing.or(Some(way));
            }
        }
        self_signed.or(missing)
    }
}

/// Whether a chain, as it was sent, leads to one of these roots, now, for a TLS server
/// (RFC 5280, 6.1).
///
/// `sent` and `chain` are the same certificates, as bytes and as far as they could be read.
pub(super) fn leads(
    sent: &[&[u8]],
    chain: &[Option<X509<'_>>],
    roots: &Roots,
    now: Timestamp,
) -> Finding {
    let (Some(&first), Some(Some(leaf))) = (sent.first(), chain.first()) else {
        return Finding::no("the server's certificate cannot be read");
    };
    // What webpki cannot: a certificate that is trusted by itself.
    if roots.certificates.iter().any(|root| root.as_ref() == first) {
        return match leaf.holds_at(now) {
            true => Finding::yes("the certificate itself is in the store"),
            false => Finding::no("the certificate itself is in the store, but is not valid now"),
        };
    }
    // What is too large was not read, and is not handed on either.
    let readable = sent.iter().zip(chain).filter(|(_, read)| read.is_some());
    let readable: Vec<&[u8]> = readable.map(|(der, _)| *der).collect();
    let error = match verify(&readable, roots, now) {
        Ok(root) => return Finding::yes(format!("leads to {root}")),
        Err(error) => error,
    };
    let Some(path) = Path::find(chain, std::iter::once(roots)) else {
        return Finding::no("the server's certificate cannot be read");
    };
    let steps: Vec<&X509<'_>> = path.steps.iter().filter_map(|&i| chain[i].as_ref()).collect();
    let last = steps.last().copied().unwrap_or(leaf);
    match path.end {
        End::SelfSigned if steps.len() == 1 => {
            return Finding::no("the certificate signed itself, and is not in the store");
        }
        End::SelfSigned => {
            return Finding::no(format!(
                "leads to {}, which is not in the store",
                last.shown_subject()
            ));
        }
        End::Missing => {
            return Finding::no(format!(
                "ends at {}, issued by {}, which was not sent and is not in the store",
                last.shown_subject(),
                last.shown_issuer()
            ));
        }
        End::Root => {}
    }
    // It leads to a root, and something is wrong with it.
    let below: Vec<_> = steps.iter().filter(|x509| !roots.has(x509)).collect();
    let weak = below.iter().find_map(|x| Some((x, weak_hash(&x.signature_algorithm)?)));
    match error {
        Error::CertExpired { .. } | Error::CertNotValidYet { .. } => {
            let bad = steps.iter().find(|x509| !x509.holds_at(now));
            Finding::no(match bad {
                Some(x509) => format!(
                    "leads to a root, but {} holds from {} to {}",
                    x509.shown_subject(),
                    x509.not_before.map_or_else(|| "?".to_owned(), day),
                    x509.not_after.map_or_else(|| "?".to_owned(), day),
                ),
                None => "leads to a root over a certificate that is not valid now".to_owned(),
            })
        }
        Error::UnsupportedSignatureAlgorithmContext(_)
        | Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_)
        | Error::InvalidSignatureForPublicKey => {
            if let Some((x509, hash)) = weak {
                return Finding::no(format!("{} is signed with {hash}", x509.shown_subject()));
            }
            let issuers = steps.iter().skip(1).copied().cloned().chain(roots.issuer_of(last));
            for issuer in issuers {
                let Some(key) = &issuer.key else { continue };
                if key.kind == Kind::Rsa && key.bits < 2048 {
                    return Finding::no(format!(
                        "{} signs with {}",
                        issuer.shown_subject(),
                        key.name
                    ));
                }
            }
            let how: Vec<_> = below.iter().map(|x| x.signature_algorithm.as_str()).collect();
            match error {
                Error::InvalidSignatureForPublicKey if path.checked => {
                    Finding::no("a signature on the way to the root does not hold")
                }
                _ => Finding::inconclusive(format!(
                    "names lead to a root, but the signatures cannot be checked here: {}",
                    how.join(", ")
                )),
            }
        }
        Error::CaUsedAsEndEntity => {
            Finding::no("leads to a root, but the server's certificate is one of an authority")
        }
        Error::EndEntityUsedAsCa => {
            Finding::no("leads to a root over a certificate that may not sign others")
        }
        Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension => {
            let whose = steps.iter().find(|x509| !x509.usable_for(SERVER_AUTH)).unwrap_or(&leaf);
            Finding::no(format!(
                "leads to a root, but {} may not be used for TLS servers",
                whose.shown_subject()
            ))
        }
        Error::NameConstraintViolation => {
            Finding::no("leads to a root, but an authority on the way may not issue for such names")
        }
        Error::PathLenConstraintViolated => {
            Finding::no("leads to a root, but over more authorities than one of them allows")
        }
        Error::UnsupportedCriticalExtension => Finding::no(
            "leads to a root, but has a critical extension that clients do not know (RFC 5280, 4.2)",
        ),
        Error::UnsupportedCertVersion => {
            Finding::no("leads to a root, but over a certificate of another version than 3")
        }
        // What strict readers refuse, and others take.
        Error::BadDer
        | Error::BadDerTime
        | Error::InvalidSerialNumber
        | Error::InvalidCertValidity
        | Error::MalformedExtensions
        | Error::ExtensionValueInvalid
        | Error::TrailingData(_) => Finding::inconclusive(format!(
            "leads to a root, but strict readers refuse a certificate on the way ({error}); others may take it"
        )),
        Error::MaximumPathBuildCallsExceeded
        | Error::MaximumSignatureChecksExceeded
        | Error::MaximumNameConstraintComparisonsExceeded => {
            Finding::inconclusive(format!("there are too many ways to a root ({error})"))
        }
        error => Finding::no(format!("leads to a root, but is refused ({error})")),
    }
}

/// The subject of the root that webpki finds.
fn verify(sent: &[&[u8]], roots: &Roots, now: Timestamp) -> Result<String, Error> {
    let sent: Vec<_> = sent.iter().map(|der| CertificateDer::from(*der)).collect();
    let (leaf, intermediates) = sent.split_first().ok_or(Error::BadDer)?;
    let leaf = EndEntityCert::try_from(leaf)?;
    let seconds = u64::try_from(now.as_second()).unwrap_or_default();
    let path = leaf.verify_for_usage(
        ALL_VERIFICATION_ALGS,
        &roots.anchors,
        intermediates,
        UnixTime::since_unix_epoch(Duration::from_secs(seconds)),
        KeyUsage::server_auth(),
        None,
        None,
    )?;
    let anchor = path.anchor();
    let root = roots.anchors.iter().position(|root| root == anchor);
    let root = root.and_then(|i| X509::read(&roots.certificates[i]).ok());
    Ok(root.map_or_else(|| "a root".to_owned(), |root| root.shown_subject()))
}
