//! What the data plane knows of the mesh: its own identities, the trust bundle, the registry.
//!
//! The control side replaces each whole; a handshake or session reads whatever is newest. The data
//! plane never asks: it has no way to reach an authority or a store.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
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

/// An identity of this node: certificate chain and private key. Has no `Debug`.
pub struct Identity {
    leaf: Leaf,
    certified: Arc<CertifiedKey>,
}

/// Why a chain and a key do not make an identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The leaf is not an SVID.
    #[error(transparent)]
    X509(#[from] X509Error),
    /// No leaf at all.
    #[error("the chain is empty")]
    Empty,
    /// The TLS library does not take the key, or it is not the leaf's.
    #[error("the private key does not fit the certificate: {0}")]
    Key(rustls::Error),
}

impl Identity {
    /// Joins a chain (leaf first) with its key.
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

    /// Whose identity it is.
    pub fn id(&self) -> &SpiffeId {
        &self.leaf.id
    }

    /// The leaf's parsed parts.
    pub fn leaf(&self) -> &Leaf {
        &self.leaf
    }

    /// The chain, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// Says with its key that `next` comes after it.
    pub fn link(&self, next: &SigningKey) -> Option<KeyLink> {
        let scheme = [SignatureScheme::ECDSA_NISTP256_SHA256];
        let signer = self.certified.key.choose_scheme(&scheme)?;
        let sign = |message: &[u8]| signer.sign(message).map_err(|_| KeyError::Crypto);
        KeyLink::new(&self.leaf.id, self.leaf.key.clone(), &next.public_key(), sign).ok()
    }

    /// Half of its life: when it is renewed, and when idle connections made with it are given up.
    pub fn half_life(&self) -> u64 {
        let period = self.leaf.period;
        period.not_before + (period.not_after - period.not_before.min(period.not_after)) / 2
    }

    /// Whether it holds now.
    pub fn is_valid(&self) -> bool {
        (self.leaf.period.not_before..=self.leaf.period.not_after).contains(&now())
    }

    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        self.certified.clone()
    }
}

/// What a program means by an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meant {
    /// The service.
    pub service: Name,
    /// Where its relay listens, on the same host.
    pub at: HostPort,
}

/// What programs mean, by the addresses that they connect to. An instance stands for ports of its own host
/// only, so a connection goes to the machine that it was meant for, whatever a node announces. An address
/// that instances of two services claim is nobody's (`None`): it goes nowhere, rather than in the clear.
fn meant(registry: &Registry) -> HashMap<SocketAddr, Option<Meant>> {
    let mut all: HashMap<SocketAddr, Option<Meant>> = HashMap::new();
    for (service, instances) in &registry.services {
        for instance in instances {
            let Some(at) = instance.addr.as_ip() else { continue };
            let ip = at.ip().to_canonical();
            for port in instance.ports.iter().filter(|port| **port != at.port()) {
                let meant = Meant { service: service.clone(), at: instance.addr.clone() };
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

/// Verified chains that are remembered, so that a peer which shakes hands often costs a hash rather
/// than two signature checks. Emptied when the bundle changes.
const REMEMBERED: usize = 4096;

type ChainHash = [u8; 32];

/// The mesh as this node knows it. Shared by all workers.
pub struct Mesh {
    trust_domain: TrustDomain,
    provider: Arc<CryptoProvider>,
    identities: ArcSwap<BTreeMap<Id, Arc<Identity>>>,
    bundle: ArcSwap<TrustBundle>,
    transparency: ArcSwap<Transparency>,
    without_news: AtomicBool,
    registry: ArcSwap<Registry>,
    /// What of the registry is not used, and why.
    unused: ArcSwap<Vec<String>>,
    meant: ArcSwap<HashMap<SocketAddr, Option<Meant>>>,
    verified: Mutex<HashMap<(ChainHash, Role), VerifiedPeer>>,
    changed: watch::Sender<u64>,
}

impl Mesh {
    /// A mesh of which nothing is known yet: no identity, no root, so every handshake fails.
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

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The one crypto provider.
    pub fn provider(&self) -> &Arc<CryptoProvider> {
        &self.provider
    }

    /// Replaces this node's identities.
    pub fn set_identities(&self, identities: BTreeMap<Id, Arc<Identity>>) {
        self.identities.store(Arc::new(identities));
        self.changed.send_modify(|n| *n += 1);
    }

    /// Replaces the trust bundle, revocations included. Whoever wakes by [`Mesh::changes`] then cuts the
    /// connections of peers that it no longer stands by.
    pub fn set_bundle(&self, bundle: TrustBundle) {
        let asks = Transparency::clone(&self.transparency.load());
        self.bundle.store(Arc::new(bundle.with(asks)));
        self.remembered().clear();
        self.changed.send_modify(|n| *n += 1);
    }

    /// Whether certificates have to prove that they are logged: in handshakes from now on, whatever bundle comes.
    pub fn set_transparency(&self, transparency: Transparency) {
        self.transparency.store(Arc::new(transparency));
        self.set_bundle(TrustBundle::clone(&self.bundle.load()));
    }

    /// Whether they have to.
    pub fn transparency(&self) -> Arc<Transparency> {
        self.transparency.load_full()
    }

    /// Whether what is known here is too old to act on: then nobody but the authority is believed.
    /// Returns whether that is a change.
    pub fn set_without_news(&self, too_old: bool) -> bool {
        let changed = self.without_news.swap(too_old, Ordering::AcqRel) != too_old;
        if changed {
            self.changed.send_modify(|n| *n += 1);
        }
        changed
    }

    /// Whether it is.
    pub fn is_without_news(&self) -> bool {
        self.without_news.load(Ordering::Acquire)
    }

    fn has_news(&self, peer: &VerifiedPeer) -> bool {
        peer.id().id == Id::Authority || !self.is_without_news()
    }

    /// Whether a peer that was verified once may still be dealt with. Its time is not looked at.
    pub fn stands_by(&self, peer: &VerifiedPeer) -> bool {
        self.standing(peer).is_ok()
    }

    /// The same, and why not.
    pub fn standing(&self, peer: &VerifiedPeer) -> Result<(), Refusal> {
        match self.has_news(peer) {
            true => self.bundle.load().standing(peer),
            false => Err(Refusal::NoNews),
        }
    }

    /// Replaces the registry. What is not to be used of it is left out, record by record.
    pub fn set_registry(&self, mut registry: Registry) {
        let unused = registry.tidy();
        if unused != **self.unused.load() {
            unused.iter().for_each(|why| tracing::warn!("a record of the registry: {why}"));
            self.unused.store(Arc::new(unused));
        }
        self.meant.store(Arc::new(meant(&registry)));
        self.registry.store(Arc::new(registry));
        self.changed.send_modify(|n| *n += 1);
    }

    /// Counts changes; wakes those who wait for one.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// This node's identities.
    pub fn identities(&self) -> Arc<BTreeMap<Id, Arc<Identity>>> {
        self.identities.load_full()
    }

    /// One of this node's identities, if it holds now.
    pub fn identity(&self, id: &Id) -> Option<Arc<Identity>> {
        self.identities.load().get(id).filter(|i| i.is_valid()).cloned()
    }

    /// The trust bundle.
    pub fn bundle(&self) -> Arc<TrustBundle> {
        self.bundle.load_full()
    }

    /// The registry.
    pub fn registry(&self) -> Arc<Registry> {
        self.registry.load_full()
    }

    /// What of the registry is not used, and why.
    pub fn unused(&self) -> Arc<Vec<String>> {
        self.unused.load_full()
    }

    /// The addresses that instances stand for; those that more than one service claims, too.
    pub fn stood_for(&self) -> Vec<SocketAddr> {
        self.meant.load().keys().copied().collect()
    }

    /// What a program means that connects to this address.
    pub fn meant(&self, to: SocketAddr) -> Option<Meant> {
        let to = SocketAddr::new(to.ip().to_canonical(), to.port());
        self.meant.load().get(&to).cloned().flatten()
    }

    /// Verifies the chain that a peer showed, now. Time, the freshness of proofs and standing are checked each time;
    /// the signatures of a chain that was seen before are not checked again.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<VerifiedPeer, Refusal> {
        let peer = self.believed(chain, role, now)?;
        match self.has_news(&peer) {
            true => Ok(peer),
            false => Err(Refusal::NoNews),
        }
    }

    fn believed(
        &self,
        chain: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<VerifiedPeer, Refusal> {
        let bundle = self.bundle.load();
        let key = (hash(chain), role);
        let known = self.remembered().get(&key).cloned();
        if let Some(peer) = known
            && peer.holds_at(now.as_secs())
            && bundle.stands_by(&peer)
        {
            return Ok(peer);
        }
        let peer = bundle.verify(chain, role, now)?;
        let mut remembered = self.remembered();
        if remembered.len() >= REMEMBERED {
            remembered.clear();
        }
        // A bundle that changed meanwhile has emptied the memory: what the old one said stays out.
        if Arc::ptr_eq(&bundle, &self.bundle.load()) {
            remembered.insert(key, peer.clone());
        }
        Ok(peer)
    }

    fn remembered(&self) -> std::sync::MutexGuard<'_, HashMap<(ChainHash, Role), VerifiedPeer>> {
        self.verified.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
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
    fn an_instance_stands_for_ports_of_its_own_host_and_what_two_services_claim_is_nobodys() {
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
        // Claimed twice; another host's; where the relay itself listens.
        for nobody in ["10.0.0.6:81", "10.0.0.6:5432", "10.0.0.5:7432", "10.0.0.7:80"] {
            assert_eq!(meant(nobody), None, "{nobody}");
        }
        // What is claimed twice is kept from going in the clear all the same.
        let taken = mesh.stood_for();
        assert!(taken.len() == 5 && taken.contains(&"10.0.0.6:81".parse().unwrap()), "{taken:?}");
    }
}
