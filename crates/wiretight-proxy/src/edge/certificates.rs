//! The certificates of sites, by name. Other parts (files, ACME, the mesh) provide them here, and the next handshake
//! uses the newest. The edge itself never requests one, except on demand.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use tokio::sync::{mpsc, oneshot};
use wiretight_keys::web::MIN_RSA_BITS;
use wiretight_keys::{Period, WebLeaf, X509Error};

use super::settings::SiteName;
use crate::clock::now;
use crate::provider;

/// A certificate chain with its key, checked for use. No `Debug`, so that the key is not logged.
pub struct SiteCertificate {
    leaf: WebLeaf,
    certified: Arc<CertifiedKey>,
}

/// Why a chain and a key are rejected.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The text contains no certificate.
    #[error("no certificate (expected PEM that starts with -----BEGIN CERTIFICATE-----)")]
    NoCertificate,
    /// The text contains no private key.
    #[error("no private key (expected PEM: PKCS#8, PKCS#1 or SEC1, without a passphrase)")]
    NoKey,
    /// The leaf does not parse.
    #[error(transparent)]
    X509(#[from] X509Error),
    /// The TLS library rejects the key, or it does not belong to the leaf.
    #[error("the private key does not match the certificate: {0}")]
    Key(rustls::Error),
    /// The key is too short.
    #[error("the certificate's RSA key has {0} bits; make one with 2048 or more, or with P-256")]
    WeakKey(usize),
    /// The certificate does not cover a name of the site.
    #[error("the certificate is not for {0}; get one with this name in its subjectAltName")]
    WrongName(SiteName),
}

impl SiteCertificate {
    /// Parses a chain (leaf first) and its key, for a site with these names.
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

    pub fn period(&self) -> Period {
        self.leaf.period
    }

    pub fn is_valid(&self) -> bool {
        (self.leaf.period.not_before..=self.leaf.period.not_after).contains(&now())
    }

    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        self.certified.clone()
    }
}

/// Sources of certificates. If two sources have one for the same name, the earlier source in this list wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The operator's files.
    Files,
    Acme,
    /// The mesh's own authority.
    Authority,
}

type ByName = BTreeMap<SiteName, Arc<SiteCertificate>>;

/// Responses that prove to an ACME server that names are served here.
#[derive(Default)]
pub struct Challenges {
    /// Key authorizations by token (RFC 8555, section 8.3).
    pub http: BTreeMap<String, String>,
    /// Certificates by name, for connections that offer only [`ALPN_ACME`].
    pub tls_alpn: BTreeMap<String, Arc<CertifiedKey>>,
}

/// A host without a certificate that a client is waiting for. When this is dropped, the client checks again.
pub struct Demand {
    /// The host, never a wildcard.
    pub host: SiteName,
    _waits: oneshot::Sender<()>,
}

/// The most demands in the queue.
const DEMANDS: usize = 64;

/// The ALPN protocol of tls-alpn-01 (RFC 8737, section 6.2).
pub const ALPN_ACME: &[u8] = b"acme-tls/1";

/// The current certificates, by site name as in the configuration.
#[derive(Default)]
pub struct Certificates {
    by_source: Mutex<BTreeMap<Source, ByName>>,
    by_name: ArcSwap<ByName>,
    challenges: ArcSwap<Challenges>,
    demands: ArcSwapOption<mpsc::Sender<Demand>>,
}

impl Certificates {
    /// Returns the queue of demands for certificates of sites that get them on demand. Replaces the receiver of an
    /// earlier call.
    pub fn demands(&self) -> mpsc::Receiver<Demand> {
        let (demands, inbox) = mpsc::channel(DEMANDS);
        self.demands.store(Some(Arc::new(demands)));
        inbox
    }

    /// Requests a host's certificate, and waits until the request is completed or fails.
    pub(crate) async fn demand(&self, host: &str) {
        let (Some(demands), Ok(host)) = (self.demands.load_full(), host.parse::<SiteName>()) else {
            return;
        };
        let (waits, done) = oneshot::channel();
        // If the queue is full, the client is rejected at once; it may retry.
        if demands.try_send(Demand { host, _waits: waits }).is_ok() {
            let _ = done.await;
        }
    }

    /// Replaces all certificates of one source.
    pub fn set(&self, source: Source, by_name: ByName) {
        let mut by_source = self.by_source.lock();
        by_source.insert(source, by_name);
        // Later sources first, so that earlier ones overwrite them.
        let merged = by_source.values().rev().flatten().map(|(n, c)| (n.clone(), c.clone()));
        self.by_name.store(Arc::new(merged.collect()));
    }

    /// Replaces the challenge responses.
    pub fn set_challenges(&self, challenges: Challenges) {
        self.challenges.store(Arc::new(challenges));
    }

    /// The certificate for a site's name, or for a host of a site with certificates on demand.
    pub fn get(&self, name: &str) -> Option<Arc<SiteCertificate>> {
        self.by_name.load().get(name).cloned()
    }

    pub(crate) fn all(&self) -> Arc<ByName> {
        self.by_name.load_full()
    }

    /// The key authorization for a token.
    pub(crate) fn key_authorization(&self, token: &str) -> Option<String> {
        self.challenges.load().http.get(token).cloned()
    }

    /// The certificate that responds to tls-alpn-01 for a name.
    pub(crate) fn challenge(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        self.challenges.load().tls_alpn.get(name).cloned()
    }
}

/// Makes a certificate that responds to tls-alpn-01 for a name (RFC 8737, section 3).
pub fn challenge_certificate(
    name: &str,
    digest: [u8; 32],
) -> Result<Arc<CertifiedKey>, CertificateError> {
    use wiretight_keys::{Profile, Signer, SigningKey, Tbs};
    let key = SigningKey::generate().map_err(X509Error::from)?;
    let now = now();
    let period = Period { not_before: now.saturating_sub(86_400), not_after: now + 7 * 86_400 };
    let profile = Profile::AcmeChallenge { name: name.into(), digest };
    // The serial number does not matter, because nobody keeps this certificate.
    let serial = *b"acme-tls-alpn-01";
    let tbs = Tbs::new(&profile, &key.public_key(), period, serial, None, key.algorithm())?;
    let cert = tbs.sign(&key)?;
    let key = PrivateKeyDer::Pkcs8(key.to_pkcs8());
    // Not `from_der`, which rejects certificates with an unknown critical extension.
    let key = provider::edge().key_provider.load_private_key(key).map_err(CertificateError::Key)?;
    Ok(Arc::new(CertifiedKey::new(vec![cert], key)))
}
