//! The data plane's view of the mesh: its own identities, the trust bundle, the registry.
//!
//! The control side replaces each of them as a whole; handshakes and sessions read the newest. The data plane cannot
//! reach an authority or a store itself.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::SignatureScheme;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;
use wiretight_keys::{
    Id, KeyError, KeyLink, Leaf, Name, Refusal, Revocations, Role, Signer, SigningKey, SpiffeId,
    Transparency, TrustBundle, TrustDomain, VerifiedPeer, X509Error,
};

use crate::clock::now;
use crate::network::HostPort;
use crate::provider;
pub use crate::registry::{Instance, Registry};

/// An identity of this node: certificate chain and private key. No `Debug`, so that the key is not logged.
pub struct Identity {
    leaf: Leaf,
    certified: Arc<CertifiedKey>,
}

/// Why a chain and a key do not form an identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The leaf is not an SVID.
    #[error(transparent)]
    X509(#[from] X509Error),
    #[error("the chain is empty")]
    Empty,
    /// The TLS library rejects the key, or it does not belong to the leaf.
    #[error("the private key does not match the certificate: {0}")]
    Key(rustls::Error),
}

impl Identity {
    /// A chain (leaf first) and its key.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: &SigningKey,
    ) -> Result<Identity, IdentityError> {
        let leaf = Leaf::parse(chain.first().ok_or(IdentityError::Empty)?)?;
        let key = PrivateKeyDer::Pkcs8(key.to_pkcs8());
        let certified =
            CertifiedKey::from_der(chain, key, &provider::mesh()).map_err(IdentityError::Key)?;
        Ok(Identity { leaf, certified: Arc::new(certified) })
    }

    pub fn id(&self) -> &SpiffeId {
        &self.leaf.id
    }

    pub fn leaf(&self) -> &Leaf {
        &self.leaf
    }

    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// Signs with this key that `next` is its successor.
    pub fn link(&self, next: &SigningKey) -> Option<KeyLink> {
        let scheme = [SignatureScheme::ECDSA_NISTP256_SHA256];
        let signer = self.certified.key.choose_scheme(&scheme)?;
        let sign = |message: &[u8]| signer.sign(message).map_err(|_| KeyError::Crypto);
        KeyLink::new(&self.leaf.id, self.leaf.key.clone(), &next.public_key(), sign).ok()
    }

    /// The middle of its validity period. Then it is renewed, and idle connections that use it are closed.
    pub fn half_life(&self) -> u64 {
        let period = self.leaf.period;
        period.not_before + (period.not_after - period.not_before.min(period.not_after)) / 2
    }

    pub fn is_valid(&self) -> bool {
        (self.leaf.period.not_before..=self.leaf.period.not_after).contains(&now())
    }

    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        self.certified.clone()
    }
}

/// The instance that an intercepted address leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    pub service: Name,
    /// The address of its relay, on the same host.
    pub at: HostPort,
}

/// The instance for each application address that programs connect to. An instance can only claim ports of its own
/// host, so a connection always goes to the machine that the program intended, whatever a node announces. An address
/// claimed by two services maps to `None`: connections to it fail, rather than being sent in plaintext.
fn meant(registry: &Registry) -> HashMap<SocketAddr, Option<Resolved>> {
    let mut all: HashMap<SocketAddr, Option<Resolved>> = HashMap::new();
    for (service, instances) in &registry.services {
        for instance in instances {
            let Some(at) = instance.addr.as_ip() else { continue };
            let ip = at.ip().to_canonical();
            for port in instance.ports.iter().filter(|port| **port != at.port()) {
                let meant = Resolved { service: service.clone(), at: instance.addr.clone() };
                let place = all.entry(SocketAddr::new(ip, *port));
                place
                    .and_modify(|other| {
                        if other.as_ref().is_some_and(|o| o.service != meant.service) {
                            *other = None;
                        }
                    })
                    .or_insert(Some(meant));
            }
        }
    }
    all
}

/// The number of verified chains to cache, so that a peer that connects often costs a hash instead of two signature
/// checks. The cache is emptied when the bundle changes.
const REMEMBERED: usize = 4096;

type ChainHash = [u8; 32];

/// This node's view of the mesh, shared by all workers.
pub struct Mesh {
    trust_domain: TrustDomain,
    provider: Arc<CryptoProvider>,
    identities: ArcSwap<BTreeMap<Id, Arc<Identity>>>,
    bundle: ArcSwap<TrustBundle>,
    transparency: ArcSwap<Transparency>,
    without_news: AtomicBool,
    registry: ArcSwap<Registry>,
    /// Ignored parts of the registry, with reasons.
    unused: ArcSwap<Vec<String>>,
    meant: ArcSwap<HashMap<SocketAddr, Option<Resolved>>>,
    verified: Mutex<HashMap<(ChainHash, Role), VerifiedPeer>>,
    changed: watch::Sender<u64>,
}

impl Mesh {
    /// An empty view: without identities or roots, every handshake fails.
    pub fn new(trust_domain: TrustDomain) -> Arc<Mesh> {
        let empty = TrustBundle::new(trust_domain.clone(), Vec::new(), Revocations::default());
        let empty = empty.expect("a bundle without roots has nothing to parse");
        Arc::new(Mesh {
            trust_domain,
            provider: provider::mesh(),
            identities: ArcSwap::default(),
            bundle: ArcSwap::from_pointee(empty),
            transparency: ArcSwap::default(),
            without_news: AtomicBool::new(false),
            registry: ArcSwap::default(),
            unused: ArcSwap::default(),
            meant: ArcSwap::default(),
            verified: Mutex::default(),
            changed: watch::channel(0).0,
        })
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    pub fn provider(&self) -> &Arc<CryptoProvider> {
        &self.provider
    }

    pub fn set_identities(&self, identities: BTreeMap<Id, Arc<Identity>>) {
        self.identities.store(Arc::new(identities));
        self.changed.send_modify(|n| *n += 1);
    }

    /// Replaces the trust bundle, including revocations. Tasks woken by [`Mesh::changes`] then close connections to
    /// peers that are no longer trusted.
    pub fn set_bundle(&self, bundle: TrustBundle) {
        let asks = Transparency::clone(&self.transparency.load());
        self.bundle.store(Arc::new(bundle.with(asks)));
        self.verified.lock().clear();
        self.changed.send_modify(|n| *n += 1);
    }

    /// Sets whether certificates must prove that they are logged. Applies to handshakes from now on, with any bundle.
    pub fn set_transparency(&self, transparency: Transparency) {
        self.transparency.store(Arc::new(transparency));
        self.set_bundle(TrustBundle::clone(&self.bundle.load()));
    }

    pub fn transparency(&self) -> Arc<Transparency> {
        self.transparency.load_full()
    }

    /// Sets whether this node has been out of contact with the authority for too long. If so, only the authority is
    /// trusted. Returns whether the value changed.
    pub fn set_without_news(&self, too_old: bool) -> bool {
        let changed = self.without_news.swap(too_old, Ordering::AcqRel) != too_old;
        if changed {
            self.changed.send_modify(|n| *n += 1);
        }
        changed
    }

    /// Whether this node has been out of contact with the authority for too long.
    pub fn is_without_news(&self) -> bool {
        self.without_news.load(Ordering::Acquire)
    }

    fn has_news(&self, peer: &VerifiedPeer) -> bool {
        peer.id().id == Id::Authority || !self.is_without_news()
    }

    /// Whether a peer that was verified earlier is still trusted. Its expiry is not checked.
    pub fn stands_by(&self, peer: &VerifiedPeer) -> bool {
        self.standing(peer).is_ok()
    }

    /// The same; the error gives the reason.
    pub fn standing(&self, peer: &VerifiedPeer) -> Result<(), Refusal> {
        match self.has_news(peer) {
            true => self.bundle.load().standing(peer),
            false => Err(Refusal::NoNews),
        }
    }

    /// Replaces the registry. Invalid records are left out.
    pub fn set_registry(&self, mut registry: Registry) {
        let unused = registry.tidy();
        if unused != **self.unused.load() {
            unused.iter().for_each(|why| tracing::warn!("ignored in the registry: {why}"));
            self.unused.store(Arc::new(unused));
        }
        self.meant.store(Arc::new(meant(&registry)));
        self.registry.store(Arc::new(registry));
        self.changed.send_modify(|n| *n += 1);
    }

    /// A counter of changes, to wait for the next one.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub fn identities(&self) -> Arc<BTreeMap<Id, Arc<Identity>>> {
        self.identities.load_full()
    }

    /// One of this node's identities, if it is valid now.
    pub fn identity(&self, id: &Id) -> Option<Arc<Identity>> {
        self.identities.load().get(id).filter(|i| i.is_valid()).cloned()
    }

    pub fn bundle(&self) -> Arc<TrustBundle> {
        self.bundle.load_full()
    }

    pub fn registry(&self) -> Arc<Registry> {
        self.registry.load_full()
    }

    /// Ignored parts of the registry, with reasons.
    pub fn unused(&self) -> Arc<Vec<String>> {
        self.unused.load_full()
    }

    /// All application addresses claimed by instances, including those claimed by several services.
    pub fn redirected(&self) -> Vec<SocketAddr> {
        self.meant.load().keys().copied().collect()
    }

    /// The instance for a connection to this address.
    pub fn meant(&self, to: SocketAddr) -> Option<Resolved> {
        let to = SocketAddr::new(to.ip().to_canonical(), to.port());
        self.meant.load().get(&to).cloned().flatten()
    }

    /// Verifies the chain that a peer presented. Expiry, the age of log proofs and revocation are checked each time;
    /// the signatures of a chain are checked only the first time.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<VerifiedPeer, Refusal> {
        let peer = self.verify_chain(chain, role, now)?;
        match self.has_news(&peer) {
            true => Ok(peer),
            false => Err(Refusal::NoNews),
        }
    }

    fn verify_chain(
        &self,
        chain: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<VerifiedPeer, Refusal> {
        let bundle = self.bundle.load();
        let key = (hash(chain), role);
        let known = self.verified.lock().get(&key).cloned();
        if let Some(peer) = known
            && peer.holds_at(now.as_secs())
            && bundle.stands_by(&peer)
        {
            return Ok(peer);
        }
        let peer = bundle.verify(chain, role, now)?;
        let mut remembered = self.verified.lock();
        if remembered.len() >= REMEMBERED {
            remembered.clear();
        }
        // If the bundle was replaced meanwhile, the cache was emptied, and a result of the old bundle must not enter
        // it.
        if Arc::ptr_eq(&bundle, &self.bundle.load()) {
            remembered.insert(key, peer.clone());
        }
        Ok(peer)
    }
}

fn hash(chain: &[CertificateDer<'_>]) -> ChainHash {
    let mut all = Vec::with_capacity(chain.iter().map(|c| c.len() + 4).sum());
    for cert in chain {
        all.extend_from_slice(&(cert.len() as u32).to_be_bytes());
        all.extend_from_slice(cert);
    }
    wiretight_keys::x509::fingerprint(&CertificateDer::from(all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_claim_ports_of_their_own_host_only_and_conflicts_lead_nowhere() {
        let instance = |addr: &str, ports: &[u16]| Instance {
            node: "n".parse().unwrap(),
            addr: addr.parse().unwrap(),
            allow: vec![],
            ports: ports.to_vec(),
        };
        let mut registry = Registry::default();
        let db = vec![
            instance("10.0.0.5:7432", &[5432, 7432]),
            instance("[fd00::5]:7432", &[5432]),
            instance("db.internal:7432", &[5432]),
        ];
        let web = vec![instance("10.0.0.5:7080", &[80]), instance("10.0.0.6:7080", &[80, 81])];
        let thief = vec![instance("10.0.0.6:7666", &[81])];
        for (name, instances) in [("db", db), ("web", web), ("thief", thief)] {
            registry.services.insert(name.parse().unwrap(), instances);
        }
        let mesh = Mesh::new("example.org".parse().unwrap());
        mesh.set_registry(registry);
        let meant = |to: &str| {
            let meant = mesh.meant(to.parse().unwrap())?;
            Some(format!("{} at {}", meant.service, meant.at))
        };
        let is = |text: &str| Some(text.to_owned());
        assert_eq!(meant("10.0.0.5:5432"), is("db at 10.0.0.5:7432"));
        assert_eq!(meant("[::ffff:10.0.0.5]:5432"), is("db at 10.0.0.5:7432"));
        assert_eq!(meant("[fd00::5]:5432"), is("db at [fd00::5]:7432"));
        assert_eq!(meant("10.0.0.5:80"), is("web at 10.0.0.5:7080"));
        assert_eq!(meant("10.0.0.6:80"), is("web at 10.0.0.6:7080"));
        // Claimed by two services; on another host; the relay's own address.
        for nobody in ["10.0.0.6:81", "10.0.0.6:5432", "10.0.0.5:7432", "10.0.0.7:80"] {
            assert_eq!(meant(nobody), None, "{nobody}");
        }
        // Addresses claimed by two services are still intercepted.
        let taken = mesh.redirected();
        assert!(taken.len() == 5 && taken.contains(&"10.0.0.6:81".parse().unwrap()), "{taken:?}");
    }
}
