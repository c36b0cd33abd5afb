//! The certificate authority: root, intermediate, and issuing of leaves.
//!
//! The root key only signs intermediates. It is read from its file when needed, and not kept in memory. One record in
//! the store lists the roots, their state and the intermediate, so that every step of a rotation is one
//! compare-and-swap. A key is synced to disk before the record names it. An intermediate key that no record names is
//! deleted at the next start; a root key is deleted only when its root is retired.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use spki::SubjectPublicKeyInfoOwned;
use tokio::time::timeout;
use wiretight_keys::token::hex;
use wiretight_keys::transparency::Place;
use wiretight_keys::verify::MAX_INTERMEDIATE_LIFE;
use wiretight_keys::x509::{self, fingerprint};
use wiretight_keys::{
    Id, KeyLink, Leaf, Period, Profile, PublicKey, Serial, Series, Signer, SigningKey, SpiffeId,
    Tbs, Transparency, TrustDomain, X509Error,
};
use wiretight_proxy::clock::now;
use wiretight_proxy::{Identity, IdentityError, Mesh};
use wiretight_store::{Key, Store};

use super::{AuthorityError, Ttls};
use crate::control::Blob;
use crate::log::sequencer::{Log, LogError};
use crate::private_dir::{FileError, PrivateDir};

/// The CA's record in the store.
const CA: &str = "mesh/ca";
const ROOT_TTL: u64 = 10 * 365 * 86_400;
/// Certificates start this many seconds in the past, for nodes whose clock is behind. Short-lived ones start at most a
/// tenth of their lifetime in the past, so that half of it is not over when they are issued.
const CLOCK_SKEW: u64 = 60;
/// How long a request for a certificate waits for the witnesses; less than a node waits for the response.
const PATIENCE: Duration = Duration::from_secs(8);
/// A key file has a few hundred bytes.
const MAX_KEY_FILE: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("the authority's store failed")]
    Store(#[from] wiretight_store::Error),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("a certificate of the authority is invalid")]
    X509(#[from] X509Error),
    #[error("the authority's own identity is invalid")]
    Identity(#[from] IdentityError),
    #[error(
        "{path} is missing or damaged, and the authority needs it to sign. Restore it from a backup."
    )]
    KeyMissing { path: String },
    /// Root keys exist, but no record of them.
    #[error(
        "{path} has a root key, but the store has no root. The store's file was probably lost or moved: restore it. To start a new mesh instead, which no node trusts yet, move the .key files away."
    )]
    RecordMissing { path: String },
    #[error(
        "the authority's record of its certificates is damaged. Restore the store from a backup."
    )]
    Record,
    /// There is no other intermediate yet.
    #[error(
        "the intermediate was revoked (`wiretight revoke`) and could not be replaced yet. The authority retries every few seconds; see earlier errors in the log."
    )]
    IntermediateRevoked,
    /// Rotation should have prevented this.
    #[error(
        "the intermediate has expired and could not be replaced; see earlier errors in the log"
    )]
    IntermediateExpired,
    /// A step of a root rotation in the wrong order.
    #[error("{0}")]
    Refused(String),
    #[error("cannot get random bytes from the system: {0}")]
    Random(getrandom::Error),
    #[error("the certificate cannot be issued, because it cannot be added to the log: {0}")]
    Log(#[from] LogError),
    #[error(
        "the certificate cannot be issued, because the witnesses did not cosign within {} s. Waiting for {waiting_for}. Check that the witnesses are running, and that their URLs in the policy are right.", PATIENCE.as_secs()
    )]
    Unwitnessed {
        /// Which witnesses, and why.
        waiting_for: String,
    },
}

impl CaError {
    pub(super) fn no_old_root() -> CaError {
        let refused = "there is no old root to retire. Run `authority rotate prepare-root` and `activate-root` first.";
        CaError::Refused(refused.into())
    }
}

/// The state of a root in a rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RootStanding {
    /// Signs intermediates.
    Active,
    /// In the bundle, so that nodes already trust it; signs nothing yet.
    Incoming,
    /// In the bundle because of the certificates that it signed; signs nothing more.
    Outgoing,
}

impl RootStanding {
    pub fn word(self) -> &'static str {
        match self {
            RootStanding::Active => "active",
            RootStanding::Incoming => "incoming",
            RootStanding::Outgoing => "outgoing",
        }
    }
}

#[derive(Clone, Serialize, Deserialize)]
struct RootRecord {
    cert: Blob,
    standing: RootStanding,
    since: u64,
}

#[derive(Clone, Serialize, Deserialize)]
struct Record {
    roots: Vec<RootRecord>,
    intermediate: Blob,
    /// Fingerprint of the root that signed it.
    signed_by: String,
    issued_at: u64,
    #[serde(default)]
    retired: Vec<RetiredRoot>,
}

/// A root that was retired permanently.
#[derive(Clone, Serialize, Deserialize)]
struct RetiredRoot {
    /// SHA-256 of the certificate.
    fingerprint: Blob,
    /// It was retired before its certificates expired, so nodes must no longer accept it.
    by_force: bool,
}

impl Record {
    fn root(&self, standing: RootStanding) -> Option<&RootRecord> {
        self.roots.iter().find(|r| r.standing == standing)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootStatus {
    /// SHA-256 of the certificate, in hex.
    pub fingerprint: String,
    pub standing: RootStanding,
    /// When `standing` last changed.
    pub since: u64,
    pub not_after: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntermediateStatus {
    /// SHA-256 of the certificate, in hex.
    pub fingerprint: String,
    /// Fingerprint of the root that signed it.
    pub root: String,
    pub issued_at: u64,
    pub not_after: u64,
    pub renews_at: u64,
}

/// The data for issuing leaves; replaced as a whole.
struct Issuer {
    record: Record,
    intermediate: CertificateDer<'static>,
    key: SigningKey,
}

/// An issued certificate. `serial` and `not_after` are the leaf's.
pub(super) struct Issued {
    /// Leaf and intermediate.
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) serial: Serial,
    pub(super) not_after: u64,
    /// Fingerprint of its root.
    pub(super) root: String,
}

pub(super) struct Ca {
    trust_domain: TrustDomain,
    dir: PrivateDir,
    store: Arc<dyn Store>,
    /// Every certificate is added here before it is signed.
    log: Log,
    /// The policy by which nodes verify that.
    transparency: Transparency,
    /// The authority's own view of the mesh, with the revocations.
    mesh: Arc<Mesh>,
    ttls: RwLock<Ttls>,
    issuer: RwLock<Arc<Issuer>>,
    /// The key of the authority's own TLS identity; it signs the link to the next key.
    own: RwLock<Option<Arc<SigningKey>>>,
    /// Held during a change, so that changes are serialised.
    changing: tokio::sync::Mutex<()>,
}

impl Ca {
    /// Loads the CA, or creates it if store and directory are empty.
    pub(super) async fn open(
        trust_domain: TrustDomain,
        dir: PrivateDir,
        store: Arc<dyn Store>,
        ttls: Ttls,
        log: Log,
        mesh: Arc<Mesh>,
    ) -> Result<Ca, CaError> {
        let record = match store.get(&key(CA)).await? {
            Some(entry) => serde_json::from_slice(&entry.value).map_err(|_| CaError::Record)?,
            None => create(&trust_domain, &dir, &*store, ttls, &log).await?,
        };
        take_up_root_keys(&dir, &record)?;
        let issuer = issuer(&dir, record)?;
        remove_stray_keys(&dir, &issuer.record)?;
        let (issuer, ttls) = (RwLock::new(Arc::new(issuer)), RwLock::new(ttls));
        let (transparency, changing) = (Transparency::required(log.policy()), Default::default());
        let own = RwLock::default();
        let ca =
            Ca { trust_domain, dir, store, log, transparency, mesh, ttls, issuer, own, changing };
        for root in ca.status().0.iter().filter(|r| r.not_after < now() + 365 * 86_400) {
            tracing::warn!(root = %root.fingerprint, days = until(root.not_after).as_secs() / 86_400,
                "the root expires within a year: rotate it (`wiretight authority rotate`)");
        }
        Ok(ca)
    }

    pub(super) fn set_ttls(&self, ttls: Ttls) {
        *self.ttls.write() = ttls;
    }

    pub(super) fn ttls(&self) -> Ttls {
        *self.ttls.read()
    }

    fn issuer(&self) -> Arc<Issuer> {
        self.issuer.read().clone()
    }

    /// Issues an SVID. The caller has verified possession of the key, and that the node may have this identity.
    pub(super) async fn issue(
        &self,
        id: SpiffeId,
        key: &PublicKey,
        link: Option<&KeyLink>,
        series: &Series,
    ) -> Result<Issued, CaError> {
        let (issuer, now, ttl) = (self.issuer(), now(), self.ttls().svid.as_secs());
        self.may_sign(&issuer)?;
        let ends = x509::not_after(&issuer.intermediate).unwrap_or_default();
        let not_after = (now + ttl).min(ends);
        if not_after <= now {
            return Err(CaError::IntermediateExpired);
        }
        let period = Period { not_before: now.saturating_sub(CLOCK_SKEW.min(ttl / 10)), not_after };
        let parent = Some(&issuer.intermediate);
        let tbs = Tbs::new(
            &Profile::Leaf(id),
            key.spki(),
            period,
            series.serial(0),
            parent,
            issuer.key.algorithm(),
        )?;
        // The link is logged with the certificate, so that a monitor that knows the old key also expects this one.
        let tbs = match link {
            Some(link) => tbs.linked(link)?,
            None => tbs,
        };
        let leaf = patiently(&self.log, logged(&self.log, tbs)).await?.sign(&issuer.key)?;
        let serial = Leaf::parse(&leaf)?.serial;
        let chain = vec![leaf, issuer.intermediate.clone()];
        Ok(Issued { chain, serial, not_after, root: issuer.record.signed_by.clone() })
    }

    /// Issues a web server's certificate. The caller has verified possession of the key and control of the names.
    pub(super) async fn issue_web(
        &self,
        names: Vec<String>,
        key: &SubjectPublicKeyInfoOwned,
        ttl: Duration,
    ) -> Result<Issued, CaError> {
        let (issuer, now, ttl) = (self.issuer(), now(), ttl.as_secs());
        self.may_sign(&issuer)?;
        let ends = x509::not_after(&issuer.intermediate).unwrap_or_default();
        let not_after = (now + ttl).min(ends);
        if not_after <= now {
            return Err(CaError::IntermediateExpired);
        }
        let period = Period { not_before: now.saturating_sub(CLOCK_SKEW.min(ttl / 10)), not_after };
        // Its own series, so that revoking a node's series does not affect it.
        let number = Series::new(random()?).serial(0);
        let (parent, profile) = (Some(&issuer.intermediate), Profile::Web(names));
        let tbs = Tbs::new(&profile, key, period, number, parent, issuer.key.algorithm())?;
        let leaf = patiently(&self.log, logged(&self.log, tbs)).await?.sign(&issuer.key)?;
        let serial = x509::serial(&leaf).ok_or(CaError::Record)?;
        let chain = vec![leaf, issuer.intermediate.clone()];
        let root = issuer.record.signed_by.clone();
        Ok(Issued { chain, serial, not_after, root })
    }

    /// Issues the authority's own TLS identity. Its chain includes the root, because a joining node only knows the root's
    /// fingerprint. The key is new each time and never stored.
    pub(super) async fn own_identity(&self) -> Result<Identity, CaError> {
        let key = SigningKey::generate().map_err(X509Error::from)?;
        let id = SpiffeId::new(self.trust_domain.clone(), Id::Authority);
        let public = PublicKey::new(key.public_key()).map_err(X509Error::from)?;
        let series = Series::new(random()?);
        let before = self.own.read().clone();
        let link = before.and_then(|before| {
            let previous = PublicKey::new(before.public_key()).ok()?;
            KeyLink::new(&id, previous, &key.public_key(), |message| before.sign(message)).ok()
        });
        let issued = self.issue(id, &public, link.as_ref(), &series).await?;
        let Issued { mut chain, root, .. } = issued;
        chain.extend(self.roots().into_iter().find(|c| hex(&fingerprint(c)) == root));
        let identity = Identity::new(chain, &key)?;
        *self.own.write() = Some(Arc::new(key));
        Ok(identity)
    }

    /// The roots of the trust bundle, the active one first.
    pub(super) fn roots(&self) -> Vec<CertificateDer<'static>> {
        roots_of(&self.issuer().record)
    }

    /// The fingerprint that join tokens carry.
    pub(super) fn active_root(&self) -> Result<[u8; 32], CaError> {
        let issuer = self.issuer();
        let root = issuer.record.root(RootStanding::Active).ok_or(CaError::Record)?;
        Ok(fingerprint(&root.cert.certificate()))
    }

    pub(super) fn intermediate(&self) -> CertificateDer<'static> {
        self.issuer().intermediate.clone()
    }

    /// The index of the intermediate's entry in the log.
    pub(super) fn intermediate_index(&self) -> Option<u64> {
        x509::serial(&self.issuer().intermediate).map(|serial| serial.index())
    }

    /// Nodes would refuse everything that a revoked intermediate signs.
    fn may_sign(&self, issuer: &Issuer) -> Result<(), CaError> {
        match self.is_revoked(&issuer.intermediate) {
            true => Err(CaError::IntermediateRevoked),
            false => Ok(()),
        }
    }

    fn is_revoked(&self, certificate: &CertificateDer<'_>) -> bool {
        let serial = x509::serial(certificate);
        serial.is_none_or(|serial| self.mesh.bundle().is_revoked(&serial))
    }

    /// When to replace the intermediate: at half of its lifetime. At once (0) if nodes would not accept it, because the
    /// clock was ahead when it was issued, it is revoked, it is valid for too long, or its proof does not satisfy the
    /// current policy.
    pub(super) fn renews_at(&self) -> u64 {
        let (issuer, now) = (self.issuer(), now());
        let certificate = &issuer.intermediate;
        let life = x509::period(certificate).map(|p| p.not_after.saturating_sub(p.not_before));
        if issuer.record.issued_at > now.saturating_add(CLOCK_SKEW)
            || self.is_revoked(certificate)
            || life.is_none_or(|life| life > MAX_INTERMEDIATE_LIFE)
            || !self.transparency.believes(certificate, Place::Intermediate, now)
        {
            return 0;
        }
        let issued_at = issuer.record.issued_at;
        let ends = x509::not_after(&issuer.intermediate).unwrap_or_default();
        let life = ends.saturating_sub(issued_at).min(self.ttls().intermediate.as_secs());
        issued_at + life / 2
    }

    /// Whether nodes would accept the authority's own identity now, by its validity and its proofs.
    pub(super) fn vouches_for(&self, own: &Identity) -> bool {
        let now = now();
        let [leaf, intermediate, ..] = own.chain() else { return false };
        own.is_valid()
            && self.transparency.believes(leaf, Place::Leaf, now)
            && self.transparency.believes(intermediate, Place::Intermediate, now)
    }

    pub(super) fn status(&self) -> (Vec<RootStatus>, IntermediateStatus) {
        let issuer = self.issuer();
        let root = |r: &RootRecord| RootStatus {
            fingerprint: hex(&fingerprint(&r.cert.certificate())),
            standing: r.standing,
            since: r.since,
            not_after: x509::not_after(&r.cert.0).unwrap_or_default(),
        };
        let intermediate = IntermediateStatus {
            fingerprint: hex(&fingerprint(&issuer.intermediate)),
            root: issuer.record.signed_by.clone(),
            issued_at: issuer.record.issued_at,
            not_after: x509::not_after(&issuer.intermediate).unwrap_or_default(),
            renews_at: self.renews_at(),
        };
        (issuer.record.roots.iter().map(root).collect(), intermediate)
    }

    /// Issues a new intermediate from the active root. Leaves of the old one remain valid until they expire.
    pub(super) async fn rotate_intermediate(&self) -> Result<(), CaError> {
        let _guard = self.changing.lock().await;
        let record = self.issuer().record.clone();
        let root = record.root(RootStanding::Active).ok_or(CaError::Record)?.clone();
        let signer = root_signer(&self.dir, &root)?;
        let record = self.with_intermediate(record, &root, &*signer);
        self.put(record.await?).await
    }

    async fn with_intermediate(
        &self,
        record: Record,
        root: &RootRecord,
        signer: &dyn Signer,
    ) -> Result<Record, CaError> {
        let made = with_intermediate(
            &self.trust_domain,
            &self.dir,
            record,
            root,
            signer,
            self.ttls(),
            &self.log,
        );
        patiently(&self.log, made).await
    }

    /// Step 1 of a root rotation: adds a second root to the bundle. Returns its fingerprint.
    pub(super) async fn rotate_root(&self) -> Result<String, CaError> {
        let _guard = self.changing.lock().await;
        let mut record = self.issuer().record.clone();
        if record.roots.len() > 1 {
            let refused = "a root rotation is in progress. Finish it first (`authority rotate activate-root`, then `retire-root`).";
            return Err(CaError::Refused(refused.into()));
        }
        let (cert, name) = create_root(&self.trust_domain, &self.dir)?;
        let print = hex(&fingerprint(&cert));
        let (cert, standing) = (Blob::from(&cert), RootStanding::Incoming);
        record.roots.push(RootRecord { cert, standing, since: now() });
        self.put(record).await?;
        self.dir.rename(&format!("{name}.new"), &name)?;
        Ok(print)
    }

    /// The fingerprint of the root in this state.
    pub(super) fn root_at(&self, standing: RootStanding) -> Option<String> {
        let issuer = self.issuer();
        issuer.record.root(standing).map(|r| hex(&fingerprint(&r.cert.certificate())))
    }

    /// Step 2: the incoming root signs a new intermediate, which issues leaves from now on.
    pub(super) async fn activate_root(&self) -> Result<(), CaError> {
        let _guard = self.changing.lock().await;
        let mut record = self.issuer().record.clone();
        let Some(incoming) = record.root(RootStanding::Incoming).cloned() else {
            let refused =
                "there is no new root to activate. Start with `authority rotate prepare-root`.";
            return Err(CaError::Refused(refused.into()));
        };
        for root in &mut record.roots {
            root.standing = match root.standing {
                RootStanding::Incoming => RootStanding::Active,
                RootStanding::Active | RootStanding::Outgoing => RootStanding::Outgoing,
            };
            root.since = now();
        }
        let signer = root_signer(&self.dir, &incoming)?;
        let record = self.with_intermediate(record, &incoming, &*signer);
        self.put(record.await?).await
    }

    /// Step 3: removes the outgoing root from the bundle and deletes its key. `by_force`: certificates under it may still
    /// be valid, so nodes must no longer accept them. The caller has verified that none is, or that this is wanted.
    pub(super) async fn retire_root(&self, root: &str, by_force: bool) -> Result<(), CaError> {
        let _guard = self.changing.lock().await;
        let mut record = self.issuer().record.clone();
        let print = |r: &RootRecord| fingerprint(&r.cert.certificate());
        let is_it = |r: &RootRecord| r.standing == RootStanding::Outgoing && hex(&print(r)) == root;
        let Some(outgoing) = record.roots.iter().find(|r| is_it(r)) else {
            return Err(CaError::no_old_root());
        };
        let fingerprint = Blob(print(outgoing).to_vec());
        record.roots.retain(|r| !is_it(r));
        record.retired.push(RetiredRoot { fingerprint, by_force });
        self.put(record).await?;
        Ok(self.dir.remove(&root_file(root))?)
    }

    /// Stores and uses `record`. The keys that it names must be on disk.
    async fn put(&self, record: Record) -> Result<(), CaError> {
        let new = issuer(&self.dir, record)?;
        let old = self.issuer();
        let value = serde_json::to_vec(&new.record).map_err(|_| CaError::Record)?;
        let entry = self.store.get(&key(CA)).await?.ok_or(CaError::Record)?;
        self.store.swap(&key(CA), entry.revision, Some(value)).await?;
        let replaced = old.intermediate != new.intermediate;
        *self.issuer.write() = Arc::new(new);
        if replaced && let Err(e) = self.dir.remove(&intermediate_file(&old.intermediate)) {
            tracing::warn!("cannot remove a replaced key until the next start: {e}: {}", e.source);
        }
        Ok(())
    }
}

/// The roots in a stored record.
pub(super) fn roots_in(value: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    serde_json::from_slice(value).ok().as_ref().map(roots_of)
}

/// The roots in a stored record that were retired by force.
pub(super) fn revoked_roots_in(value: &[u8]) -> Option<Vec<Blob>> {
    let record: Record = serde_json::from_slice(value).ok()?;
    let by_force = record.retired.into_iter().filter(|r| r.by_force);
    Some(by_force.map(|r| r.fingerprint).collect())
}

pub(super) fn is_record(key: &Key) -> bool {
    key.as_str() == CA
}

fn roots_of(record: &Record) -> Vec<CertificateDer<'static>> {
    let (active, others): (Vec<_>, Vec<_>) =
        record.roots.iter().partition(|r| r.standing == RootStanding::Active);
    active.into_iter().chain(others).map(|r| r.cert.certificate()).collect()
}

/// Creates the CA. Until the record is in the store, the root key's file is named `.new`, and the next start deletes it:
/// nobody has anything that was signed with it.
async fn create(
    trust_domain: &TrustDomain,
    dir: &PrivateDir,
    store: &dyn Store,
    ttls: Ttls,
    log: &Log,
) -> Result<Record, CaError> {
    for name in dir.names()? {
        if name.starts_with("root-") && name.ends_with(".key") {
            let path = dir.path().display().to_string();
            return Err(CaError::RecordMissing { path });
        }
    }
    let (cert, name) = create_root(trust_domain, dir)?;
    let signer = signer_from(dir, &format!("{name}.new"))?;
    let root = RootRecord { cert: Blob::from(&cert), standing: RootStanding::Active, since: now() };
    let record = Record {
        roots: vec![root.clone()],
        intermediate: Blob::default(),
        signed_by: String::new(),
        issued_at: 0,
        retired: Vec::new(),
    };
    // No node depends on this CA yet, so wait for the witnesses without a deadline.
    let made = with_intermediate(trust_domain, dir, record, &root, &*signer, ttls, log);
    let record = made.await?;
    let value = serde_json::to_vec(&record).map_err(|_| CaError::Record)?;
    store.create(&key(CA), value).await?;
    tracing::info!(%trust_domain, root = %hex(&fingerprint(&cert)), "created a new authority");
    Ok(record)
}

/// Creates a root with its key in the file `NAME.new`. Returns the certificate and NAME.
fn create_root(
    trust_domain: &TrustDomain,
    dir: &PrivateDir,
) -> Result<(CertificateDer<'static>, String), CaError> {
    let key = SigningKey::generate().map_err(X509Error::from)?;
    let now = now();
    let period = Period { not_before: now.saturating_sub(CLOCK_SKEW), not_after: now + ROOT_TTL };
    let profile = Profile::Root(trust_domain.clone());
    let tbs = Tbs::new(&profile, &key.public_key(), period, random()?, None, key.algorithm())?;
    let cert = tbs.sign(&key)?;
    let name = root_file(&hex(&fingerprint(&cert)));
    dir.write(&format!("{name}.new"), key.to_pem().as_bytes())?;
    Ok((cert, name))
}

/// `record` with a new intermediate signed by `root`. The intermediate's key is on disk when this returns.
async fn with_intermediate(
    trust_domain: &TrustDomain,
    dir: &PrivateDir,
    record: Record,
    root: &RootRecord,
    signer: &dyn Signer,
    ttls: Ttls,
    log: &Log,
) -> Result<Record, CaError> {
    let key = SigningKey::generate().map_err(X509Error::from)?;
    let root = root.cert.certificate();
    let now = now();
    let root_ends = x509::not_after(&root).unwrap_or_default();
    let not_after = (now + ttls.intermediate.as_secs()).min(root_ends);
    let period = Period { not_before: now.saturating_sub(CLOCK_SKEW), not_after };
    let profile = Profile::Intermediate(trust_domain.clone());
    let parent = Some(&root);
    let algorithm = signer.algorithm();
    let tbs = Tbs::new(&profile, &key.public_key(), period, random()?, parent, algorithm)?;
    let cert = logged(log, tbs).await?.sign(signer)?;
    dir.write(&intermediate_file(&cert), key.to_pem().as_bytes())?;
    let signed_by = hex(&fingerprint(&root));
    Ok(Record { intermediate: Blob::from(&cert), signed_by, issued_at: now, ..record })
}

/// Adds the certificate to the log. Returns it with the proof, not yet signed.
async fn logged(log: &Log, tbs: Tbs) -> Result<Tbs, CaError> {
    let proof = log.append(tbs.entry()?).await?;
    Ok(tbs.proved(&proof)?)
}

/// With witnesses, times out after [`PATIENCE`].
pub(super) async fn patiently<T>(
    log: &Log,
    made: impl Future<Output = Result<T, CaError>>,
) -> Result<T, CaError> {
    if !log.has_witnesses() {
        return made.await;
    }
    let late = |_| CaError::Unwitnessed { waiting_for: log.waiting_for() };
    timeout(PATIENCE, made).await.map_err(late)?
}

/// The signer of a root; currently a key in a file.
fn root_signer(dir: &PrivateDir, root: &RootRecord) -> Result<Box<dyn Signer>, CaError> {
    signer_from(dir, &root_file(&hex(&fingerprint(&root.cert.certificate()))))
}

fn signer_from(dir: &PrivateDir, name: &str) -> Result<Box<dyn Signer>, CaError> {
    Ok(Box::new(read_key(dir, name)?))
}

fn read_key(dir: &PrivateDir, name: &str) -> Result<SigningKey, CaError> {
    let pem = dir.read(name, MAX_KEY_FILE)?;
    let key = pem.and_then(|pem| SigningKey::from_pem(&pem).ok());
    key.ok_or_else(|| CaError::KeyMissing { path: dir.path().join(name).display().to_string() })
}

fn issuer(dir: &PrivateDir, record: Record) -> Result<Issuer, CaError> {
    let intermediate = record.intermediate.certificate();
    let key = read_key(dir, &intermediate_file(&intermediate))?;
    Ok(Issuer { intermediate, key, record })
}

/// Completes the renaming of root keys after a crash: if the record names a root, its `.new` key file is valid.
fn take_up_root_keys(dir: &PrivateDir, record: &Record) -> Result<(), CaError> {
    let names = dir.names()?;
    for root in &record.roots {
        let name = root_file(&hex(&fingerprint(&root.cert.certificate())));
        let waiting = format!("{name}.new");
        if names.contains(&waiting) {
            dir.rename(&waiting, &name)?;
        } else if !names.contains(&name) && root.standing != RootStanding::Outgoing {
            return Err(CaError::KeyMissing { path: dir.path().join(name).display().to_string() });
        }
    }
    Ok(())
}

/// Removes keys of replaced intermediates, of retired roots, and of roots that were never recorded (`.new`). Any other
/// root key that the record does not name is kept: it may belong to a newer store than a restored one.
fn remove_stray_keys(dir: &PrivateDir, record: &Record) -> Result<(), CaError> {
    let current = intermediate_file(&record.intermediate.certificate());
    let retired: Vec<_> =
        record.retired.iter().map(|r| root_file(&hex(&r.fingerprint.0))).collect();
    for name in dir.names()? {
        let replaced = name.starts_with("intermediate-") && name != current;
        let unborn = name.starts_with("root-") && name.ends_with(".key.new");
        if replaced || unborn || retired.contains(&name) {
            dir.remove(&name)?;
        }
    }
    Ok(())
}

fn root_file(fingerprint: &str) -> String {
    format!("root-{fingerprint}.key")
}

fn intermediate_file(cert: &CertificateDer<'_>) -> String {
    format!("intermediate-{}.key", hex(&fingerprint(cert)))
}

fn key(text: &str) -> Key {
    Key::new(text).expect("a short constant is a key")
}

pub(super) fn random<const N: usize>() -> Result<[u8; N], CaError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(CaError::Random)?;
    Ok(bytes)
}

/// How long until a time in seconds since 1970.
pub(super) fn until(unix: u64) -> Duration {
    Duration::from_secs(unix.saturating_sub(now()))
}

impl From<CaError> for AuthorityError {
    fn from(e: CaError) -> AuthorityError {
        match e {
            CaError::Refused(why) => AuthorityError::Refused(why),
            e => AuthorityError::Ca(e),
        }
    }
}
