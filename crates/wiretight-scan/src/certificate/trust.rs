//! Root stores, and whether a chain leads to a root in a store.

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

/// The trusted roots. Without a store, its facts are untested.
#[derive(Debug, Default)]
pub struct Stores {
    /// The roots of the system, or of an organization.
    pub roots: Option<Roots>,
    /// The trust bundle of the mesh.
    pub mesh: Option<Roots>,
}

impl Stores {
    pub(super) fn all(&self) -> impl Iterator<Item = &Roots> + Clone {
        self.roots.iter().chain(&self.mesh)
    }
}

/// A store of trusted roots.
#[derive(Debug)]
pub struct Roots {
    anchors: Vec<TrustAnchor<'static>>,
    certificates: Vec<CertificateDer<'static>>,
    /// The indices into `certificates` by subject.
    by_subject: HashMap<Vec<u8>, Vec<usize>>,
}

#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// The file cannot be read, or is not PEM.
    #[error("{path} cannot be read as PEM certificates: {1}", path = .0.display())]
    File(PathBuf, rustls_pki_types::pem::Error),
    /// The system's store is missing or empty.
    #[error("this system has no root store ({0}); install ca-certificates, or pass a PEM file")]
    System(String),
    /// There is no certificate, or none that can be a root.
    #[error("the file contains no certificate that can be a root")]
    Empty,
}

impl Roots {
    /// The system's roots, or those in SSL_CERT_FILE or SSL_CERT_DIR.
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

    /// The certificates in a PEM file; other contents are ignored.
    pub fn from_pem_file(path: &FilePath) -> Result<Self, RootsError> {
        let file = |error| RootsError::File(path.to_owned(), error);
        let certificates = CertificateDer::pem_file_iter(path).map_err(file)?;
        Self::from_der(certificates.collect::<Result<Vec<_>, _>>().map_err(file)?)
    }

    /// These certificates; those that cannot be roots are ignored.
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

    pub fn len(&self) -> usize {
        self.anchors.len()
    }

    /// Always false, because an empty store is an error.
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

    /// Whether it is in the store, or has the name and the key of a root in the store.
    fn has(&self, certificate: &X509<'_>) -> bool {
        !certificate.spki.is_empty()
            && self.named(certificate.subject).any(|root| root.spki == certificate.spki)
    }
}

/// A path from the leaf through the certificates that were sent.
#[derive(Debug, Clone)]
pub(super) struct Path {
    /// Indices into the chain, starting with the leaf.
    pub(super) steps: Vec<usize>,
    pub(super) end: End,
    /// Whether every signature was checked. If not, the path relies on names.
    pub(super) checked: bool,
}

/// Where a path ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// At a root in a store, or a certificate issued by one.
    Root,
    /// At a self-signed certificate that is in no store.
    SelfSigned,
    /// At a certificate whose issuer was not sent, and is in no store.
    Missing,
}

impl Path {
    /// The path that a client takes: to a root through currently valid certificates if possible, otherwise the best path.
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

    /// The best path: to a root, otherwise to a self-signed certificate, otherwise the first one. `None` if the
    /// leaf is unreadable.
    pub(super) fn find<'r>(
        chain: &[Option<X509<'_>>],
        stores: impl Iterator<Item = &'r Roots> + Clone,
    ) -> Option<Self> {
        chain.first()?.as_ref()?;
        // A breadth-first search that visits each certificate once, so that the work is bounded.
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

/// Whether a chain currently leads to one of these roots, for a TLS server (RFC 5280, 6.1).
///
/// `sent` and `chain` are the same certificates, as bytes and parsed.
pub(super) fn leads(
    sent: &[&[u8]],
    chain: &[Option<X509<'_>>],
    roots: &Roots,
    now: Timestamp,
) -> Finding {
    let (Some(&first), Some(Some(leaf))) = (sent.first(), chain.first()) else {
        return Finding::no("the server's certificate cannot be read");
    };
    // webpki does not support a leaf that is itself in the store.
    if roots.certificates.iter().any(|root| root.as_ref() == first) {
        return match leaf.holds_at(now) {
            true => Finding::yes("the certificate itself is in the store"),
            false => {
                Finding::no("the certificate itself is in the store, but is not currently valid")
            }
        };
    }
    // Certificates that are too large were not parsed, and are left out here too.
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
            return Finding::no("the certificate is self-signed, and not in the store");
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
    // The chain leads to a root, but is invalid.
    let below: Vec<_> = steps.iter().filter(|x509| !roots.has(x509)).collect();
    let weak = below.iter().find_map(|x| Some((x, weak_hash(&x.signature_algorithm)?)));
    match error {
        Error::CertExpired { .. } | Error::CertNotValidYet { .. } => {
            let bad = steps.iter().find(|x509| !x509.holds_at(now));
            Finding::no(match bad {
                Some(x509) => format!(
                    "leads to a root, but {} is valid from {} to {}",
                    x509.shown_subject(),
                    x509.not_before.map_or_else(|| "?".to_owned(), day),
                    x509.not_after.map_or_else(|| "?".to_owned(), day),
                ),
                None => {
                    "leads to a root through a certificate that is not currently valid".to_owned()
                }
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
                    Finding::no("a signature on the path to the root is invalid")
                }
                _ => Finding::inconclusive(format!(
                    "the names lead to a root, but the signatures cannot be checked here: {}",
                    how.join(", ")
                )),
            }
        }
        Error::CaUsedAsEndEntity => {
            Finding::no("leads to a root, but the server's certificate is a CA certificate")
        }
        Error::EndEntityUsedAsCa => {
            Finding::no("leads to a root through a certificate that may not sign others")
        }
        Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension => {
            let whose = steps.iter().find(|x509| !x509.usable_for(SERVER_AUTH)).unwrap_or(&leaf);
            Finding::no(format!(
                "leads to a root, but {} may not be used for TLS servers",
                whose.shown_subject()
            ))
        }
        Error::NameConstraintViolation => Finding::no(
            "leads to a root, but an authority on the path may not issue for such names",
        ),
        Error::PathLenConstraintViolated => {
            Finding::no("leads to a root, but through more authorities than one of them allows")
        }
        Error::UnsupportedCriticalExtension => {
            Finding::no("leads to a root, but has an unknown critical extension (RFC 5280, 4.2)")
        }
        Error::UnsupportedCertVersion => {
            Finding::no("leads to a root, but through a certificate of another version than 3")
        }
        // Errors that only strict parsers reject.
        Error::BadDer
        | Error::BadDerTime
        | Error::InvalidSerialNumber
        | Error::InvalidCertValidity
        | Error::MalformedExtensions
        | Error::ExtensionValueInvalid
        | Error::TrailingData(_) => Finding::inconclusive(format!(
            "leads to a root, but strict parsers reject a certificate on the path ({error}); others may accept it"
        )),
        Error::MaximumPathBuildCallsExceeded
        | Error::MaximumSignatureChecksExceeded
        | Error::MaximumNameConstraintComparisonsExceeded => {
            Finding::inconclusive(format!("there are too many possible paths to a root ({error})"))
        }
        error => Finding::no(format!("leads to a root, but is rejected ({error})")),
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
