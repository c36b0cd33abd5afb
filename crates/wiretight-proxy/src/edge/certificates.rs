//! The certificates of sites, by name: whoever gets them (files, ACME, the mesh) puts them here whole, and
//! the next handshake shows the newest. The edge itself never asks for one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use tokio::sync::{mpsc, oneshot};
use wiretight_keys::web::MIN_RSA_BITS;
use wiretight_keys::{Period, WebLeaf, X509Error};

use super::settings::SiteName;
use crate::clock::now;
use crate::provider;

/// A certificate chain and its key, fit to be served. Has no `Debug`.
pub struct SiteCertificate {
    leaf: WebLeaf,
    certified: Arc<CertifiedKey>,
}

/// Why a chain and a key are not served.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// No certificate in the text.
    #[error("no certificate (expected PEM that begins with -----BEGIN CERTIFICATE-----)")]
    NoCertificate,
    /// No private key in the text.
    #[error("no private key (expected PEM: PKCS#8, PKCS#1 or SEC1, without a passphrase)")]
    NoKey,
    /// The leaf does not parse.
    #[error(transparent)]
    X509(#[from] X509Error),
    /// The TLS library does not take the key, or it is not the leaf's.
    #[error("the private key does not fit the certificate: {0}")]
    Key(rustls::Error),
    /// A key that is too short to protect anybody.
    #[error("the certificate's RSA key has {0} bits; make one with 2048 or more, or with P-256")]
    WeakKey(usize),
    /// It is for somebody else.
    #[error("the certificate is not for {0}; get one that has it in its subjectAltName")]
    WrongName(SiteName),
}

impl SiteCertificate {
    /// Reads a chain (leaf first) and its key, for a site with these names.
    pub fn from_pem(
        chain: &[u8],
        key: &[u8],
        names: &[SiteName],
    ) -> Result<SiteCertificate, CertificateError> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
        let chain = chain.map_err(|_| CertificateError::NoCertificate)?;
        let leaf = WebLeaf::parse(chain.first().ok_or(CertificateError::NoCertificate)?)?;
        if let Some(bits) = leaf.rsa_bits.filter(|bits| *bits < MIN_RSA_BITS) {
            return Err(CertificateError::WeakKey(bits));
        }
        if let Some(name) = names.iter().find(|n| !leaf.is_for(n.as_str())) {
            return Err(CertificateError::WrongName(name.clone()));
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| CertificateError::NoKey)?;
        let certified = CertifiedKey::from_der(chain, key, &provider::edge());
        let certified = Arc::new(certified.map_err(CertificateError::Key)?);
        Ok(SiteCertificate { leaf, certified })
    }

    /// When it holds.
    pub fn period(&self) -> Period {
        self.leaf.period
    }

    /// Whether it holds now.
    pub fn is_valid(&self) -> bool {
        (self.leaf.period.not_before..=self.leaf.period.not_after).contains(&now())
    }

    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        self.certified.clone()
    }
}

/// Where certificates come from. Of two for one name, that of the earlier source is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// Files of the operator.
    Files,
    /// An ACME server.
    Acme,
    /// The mesh's own authority.
    Authority,
}

type ByName = BTreeMap<SiteName, Arc<SiteCertificate>>;

/// What proves to an ACME server that names are served here.
#[derive(Default)]
pub struct Challenges {
    /// Key authorizations by token (RFC 8555, section 8.3).
    pub http: BTreeMap<String, String>,
    /// Certificates by name, for connections that ask for nothing but [`ALPN_ACME`].
    pub tls_alpn: BTreeMap<String, Arc<CertifiedKey>>,
}

/// A host without a certificate, for which a client waits. Once it is dropped, the client looks again.
pub struct Demand {
    /// The host, never a wildcard.
    pub host: SiteName,
    _waits: oneshot::Sender<()>,
}

/// Clients that may wait until somebody looks whom for.
const DEMANDS: usize = 64;

/// The application protocol of tls-alpn-01 (RFC 8737, section 6.2).
pub const ALPN_ACME: &[u8] = b"acme-tls/1";

/// The certificates that are in force, by the name of a site as the configuration has it.
#[derive(Default)]
pub struct Certificates {
    by_source: Mutex<BTreeMap<Source, ByName>>,
    by_name: ArcSwap<ByName>,
    challenges: ArcSwap<Challenges>,
    demands: ArcSwapOption<mpsc::Sender<Demand>>,
}

impl Certificates {
    /// From now on, who waits for a certificate that a site gets on demand. Whoever has asked before is told no
    /// longer.
    pub fn demands(&self) -> mpsc::Receiver<Demand> {
        let (demands, inbox) = mpsc::channel(DEMANDS);
        self.demands.store(Some(Arc::new(demands)));
        inbox
    }

    /// Asks for a host's certificate, and waits until that has come to an end, good or bad.
    pub(crate) async fn demand(&self, host: &str) {
        let (Some(demands), Ok(host)) = (self.demands.load_full(), host.parse::<SiteName>()) else {
            return;
        };
        let (waits, done) = oneshot::channel();
        // With more, whoever comes is turned away at once: it may come again.
        if demands.try_send(Demand { host, _waits: waits }).is_ok() {
            let _ = done.await;
        }
    }

    /// Replaces all of one source.
    pub fn set(&self, source: Source, by_name: ByName) {
        let mut by_source = self.by_source.lock().unwrap_or_else(PoisonError::into_inner);
        by_source.insert(source, by_name);
        // The later ones first: the earlier ones are put over them.
        let merged = by_source.values().rev().flatten().map(|(n, c)| (n.clone(), c.clone()));
        self.by_name.store(Arc::new(merged.collect()));
    }

    /// Replaces the answers to challenges.
    pub fn set_challenges(&self, challenges: Challenges) {
        self.challenges.store(Arc::new(challenges));
    }

    /// The one for a site's name, or for a host of a site that gets its certificates on demand.
    pub fn get(&self, name: &str) -> Option<Arc<SiteCertificate>> {
        self.by_name.load().get(name).cloned()
    }

    /// All of them, by name.
    pub(crate) fn all(&self) -> Arc<ByName> {
        self.by_name.load_full()
    }

    /// The key authorization for a token.
    pub(crate) fn key_authorization(&self, token: &str) -> Option<String> {
        self.challenges.load().http.get(token).cloned()
    }

    /// What answers tls-alpn-01 for a name.
    pub(crate) fn challenge(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        self.challenges.load().tls_alpn.get(name).cloned()
    }
}

/// A certificate that answers tls-alpn-01 for a name (RFC 8737, section 3).
pub fn challenge_certificate(
    name: &str,
    digest: [u8; 32],
) -> Result<Arc<CertifiedKey>, CertificateError> {
    use wiretight_keys::{Profile, Signer, SigningKey, Tbs};
    let key = SigningKey::generate().map_err(X509Error::from)?;
    let now = now();
    let period = Period { not_before: now.saturating_sub(86_400), not_after: now + 7 * 86_400 };
    let profile = Profile::AcmeChallenge { name: name.into(), digest };
    // The number of a certificate that nobody keeps.
    let serial = *b"acme-tls-alpn-01";
    let tbs = Tbs::new(&profile, &key.public_key(), period, serial, None, key.algorithm())?;
    let cert = tbs.sign(&key)?;
    let key = PrivateKeyDer::Pkcs8(key.to_pkcs8());
    // Not `from_der`: that refuses a certificate with a critical extension which it does not know.
    let key = provider::edge().key_provider.load_private_key(key).map_err(CertificateError::Key)?;
    Ok(Arc::new(CertifiedKey::new(vec![cert], key)))
}
