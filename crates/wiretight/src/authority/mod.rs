//! The authority: issues identities, keeps the registry, and pushes the registry to nodes. It runs in the node whose
//! configuration has `[authority]`. No traffic of services passes through it.
//!
//! - `ca`: root, intermediate, leaves
//! - `own_log`: opens the log, with its key and witnesses
//! - `offers`: checks each record that a node announces
//! - `claims`: logs how the traffic of the mesh was encrypted, each hour and each day
//! - `registry`: nodes, tokens, issued and revoked certificates, in the store
//! - `affected`: what a revocation would affect
//! - `state`: the state that is pushed to all nodes, by version
//! - `backup`: backup to one file, and restore
//! - `server`: the listener and its connections (docs/wire.md, section 5)
//!
//! A change is in the store before it is acknowledged to a node or the operator.

mod affected;
pub mod backup;
mod ca;
mod claims;
pub mod offers;
mod own_log;
mod registry;
mod server;
mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use spki::SubjectPublicKeyInfoOwned;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use wiretight_keys::{Id, JoinToken, Name, Transparency, TrustDomain, x509};
use wiretight_proxy::clock::now;
use wiretight_proxy::net;
use wiretight_proxy::network::HostPort;
use wiretight_proxy::registry::Host;
use wiretight_proxy::{Mesh, tls};
use wiretight_scan::passive::totals::Period;
use wiretight_store::Store;

use crate::clock::Steps;
use crate::config::{self, Config, MAX_WEB_TTL};
use crate::control::{Code, Denial, Offer};
use crate::log::PolicyFileError;
use crate::log::bucket::BucketError;
use crate::log::sequencer::{Log, LogStatus};
use crate::log::serve::LogSite;
use crate::logging::chain;
use crate::private_dir::{FileError, PrivateDir};
use crate::release::policy::ReleasePolicyError;
use ca::{Ca, until};
use claims::Claims;
use own_log::{log_listener, open_log};
use registry::Registry;
use server::Server;
use state::Publisher;

pub use affected::Affected;
pub use ca::{CaError, IntermediateStatus, RootStanding, RootStatus};
pub use claims::{ClaimsStatus, LoggedPeriod, Published};
pub use own_log::{LogParams, log_signer};
pub use registry::{
    Earlier, NodeRelease, PendingToken, ReleaseParams, ReleaseVerdict, ReleasesStatus, Reported,
};

/// How long shutting down may take.
const SHUTDOWN: Duration = Duration::from_secs(5);
/// How often to check whether the clock was set.
const TICK: Duration = Duration::from_secs(5);
/// How long the start waits for the authority's own certificate.
const FIRST_IDENTITY: Duration = Duration::from_secs(5);
/// Pause after a failed renewal of the authority's own certificates.
const RETRY: Duration = Duration::from_secs(10);
/// Why a certificate that was just issued is not valid now.
const WRONG_CLOCK: &str = "by this machine's clock its proof is too old or from the future. This clock or that of a witness is probably wrong (`timedatectl`). Retrying every 10 s.";

#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error(
        "the authority cannot listen on {addr}. Another program may use that address, or it is not an address of this machine. Correct `listen` in [authority] or [log]."
    )]
    Bind { addr: SocketAddr, source: io::Error },
    #[error(transparent)]
    File(#[from] FileError),
    #[error("the authority's store failed")]
    Store(#[from] wiretight_store::Error),
    #[error(transparent)]
    Bucket(#[from] BucketError),
    #[error(transparent)]
    Policy(#[from] PolicyFileError),
    #[error(transparent)]
    ReleasePolicy(#[from] ReleasePolicyError),
    #[error(transparent)]
    Ca(CaError),
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
    /// An unreadable record is not overwritten.
    #[error(
        "a record in the authority's store is unreadable, and was not changed. It was probably written by a newer release. Run that release, or restore the store from a backup."
    )]
    DamagedRecord,
    /// A request of the operator that is impossible, or not possible now.
    #[error("{0}")]
    Refused(String),
}

/// Lifetimes of certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ttls {
    pub svid: Duration,
    /// The intermediate that signs SVIDs.
    pub intermediate: Duration,
}

/// Deadlines and intervals. Production uses [`Times::default`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// From connecting to the first message.
    pub first_message: Duration,
    /// A stream that is silent for this long is closed.
    pub silence: Duration,
    /// Between pings.
    pub ping: Duration,
    /// Changes are collected for this long before they are pushed.
    pub debounce: Duration,
    /// Between removals of expired records.
    pub prune: Duration,
    /// Old revocations are removed only if the clock was not set for this long, as far as this process knows.
    pub steady: Duration,
    /// How long after its end an hour is logged at the latest. What nodes have sent by then is in it.
    pub late: Duration,
}

impl Default for Times {
    fn default() -> Times {
        Times {
            first_message: Duration::from_secs(10),
            silence: Duration::from_secs(60),
            ping: Duration::from_secs(20),
            debounce: Duration::from_millis(50),
            prune: Duration::from_secs(600),
            steady: Duration::from_secs(86_400),
            late: Duration::from_secs(900),
        }
    }
}

#[derive(Clone)]
pub struct AuthorityParams {
    pub trust_domain: TrustDomain,
    /// The address for nodes.
    pub listen: SocketAddr,
    /// The address in join tokens, instead of `listen`.
    pub advertise: Option<HostPort>,
    /// The directory of its keys: STATE_DIR/authority.
    pub dir: PathBuf,
    pub ttls: Ttls,
    pub times: Times,
    pub log: LogParams,
    pub releases: ReleaseParams,
}

impl AuthorityParams {
    /// `authority` is the section of `config`.
    ///
    /// # Errors
    /// The policy of `[witnesses]` or `[release]` is unusable.
    pub fn from_config(
        config: &Config,
        authority: &config::Authority,
    ) -> Result<AuthorityParams, AuthorityError> {
        let node = &config.node;
        Ok(AuthorityParams {
            trust_domain: node.trust_domain.clone(),
            listen: authority.listen,
            advertise: authority.advertise.clone(),
            dir: node.state_dir.join("authority"),
            ttls: Ttls { svid: authority.svid_ttl, intermediate: authority.intermediate_ttl },
            times: Times::default(),
            log: LogParams::from_config(config)?,
            releases: ReleaseParams::from_config(config, authority)?,
        })
    }
}

/// What [`AuthorityHandle::grant`] does with the services that a node could claim before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grant {
    /// Keeps them.
    Add,
    /// Removes all others, and revokes their certificates.
    Replace,
}

/// A node, for `wiretight node list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    pub name: Name,
    /// In seconds since 1970.
    pub joined_at: u64,
    /// The services that it may claim.
    pub services: BTreeSet<Name>,
    /// Addresses that it may announce in addition to the one it connects from.
    #[serde(default)]
    pub addresses: BTreeSet<Host>,
    pub connected: bool,
    /// When its last message arrived; after a restart of the authority, only to the minute.
    pub last_seen: Option<u64>,
    /// The version of the state that it uses, while it is connected.
    pub acked_version: Option<u64>,
    /// The service instances that it offers.
    pub instances: Vec<Offer>,
    /// Which of its announced instances were rejected, and why.
    pub refused: Option<String>,
    /// Which release it runs, by its own word.
    #[serde(default)]
    pub release: NodeRelease,
}

/// The CA and the state, for `wiretight authority status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaStatus {
    pub trust_domain: TrustDomain,
    /// The roots of the bundle.
    pub roots: Vec<RootStatus>,
    pub intermediate: IntermediateStatus,
    /// The newest version of the state.
    pub version: u64,
    /// Connected nodes that do not use this version yet.
    pub behind: Vec<Name>,
    #[serde(default)]
    pub log: LogStatus,
}

pub struct Authority;

/// A running authority. Clones refer to the same one; it runs until [`AuthorityHandle::shutdown`].
#[derive(Clone)]
pub struct AuthorityHandle {
    inner: Arc<Inner>,
}

struct Inner {
    trust_domain: TrustDomain,
    addr: SocketAddr,
    advertise: RwLock<Option<HostPort>>,
    mesh: Arc<Mesh>,
    store: Arc<dyn Store>,
    log: Log,
    claims: Arc<Mutex<ClaimsStatus>>,
    ca: Arc<Ca>,
    registry: Arc<Registry>,
    publisher: Arc<Publisher>,
    server: Arc<Server>,
    stop: watch::Sender<bool>,
    tasks: Mutex<JoinSet<()>>,
}

impl Authority {
    pub async fn start(
        params: AuthorityParams,
        store: Arc<dyn Store>,
    ) -> Result<AuthorityHandle, AuthorityError> {
        let bind = |source| AuthorityError::Bind { addr: params.listen, source };
        let listener = net::Sockets::default().bind(params.listen, 1).map_err(bind)?.remove(0);
        Authority::start_on(listener, params, store).await
    }

    /// Loads or creates the CA, finishes changes that a crash interrupted, and serves.
    pub async fn start_on(
        listener: std::net::TcpListener,
        params: AuthorityParams,
        store: Arc<dyn Store>,
    ) -> Result<AuthorityHandle, AuthorityError> {
        let AuthorityParams { trust_domain, listen, advertise, dir, ttls, times, log, releases } =
            params;
        let dir = PrivateDir::open(dir)?;
        let required = log.required;
        let served = log.served.clone();
        let log = open_log(&trust_domain, &dir, store.clone(), log).await?;
        let mesh = Mesh::new(trust_domain.clone());
        let (td, ours) = (trust_domain.clone(), mesh.clone());
        let ca = Ca::open(td, dir, store.clone(), ttls, log.clone(), ours).await;
        let ca = Arc::new(ca.map_err(AuthorityError::Ca)?);
        let registry = Registry::new(trust_domain.clone(), store.clone(), ca.clone());
        let registry = Arc::new(registry);
        registry.recover().await?;
        registry.prune(times.steady.is_zero()).await?;
        registry.load_reports().await?;
        registry.load_releases().await?;
        registry.set_releases(releases);
        let claims = Arc::default();
        let logging = Claims::open(store.clone(), log.clone(), times, Arc::clone(&claims)).await?;

        if required {
            mesh.set_transparency(Transparency::required(log.policy()));
        }
        let publisher = Arc::new(Publisher::new(store.clone(), mesh.clone(), times.debounce));
        let view = publisher.load().await?;
        let reading = log_listener(&served).await?;
        let site = LogSite {
            log: log.clone(),
            mesh: mesh.clone(),
            public: served.public,
            auditors: served.auditors,
        };
        let server = Server::new(mesh.clone(), registry.clone(), publisher.clone(), times)?;
        let server = Arc::new(server);
        let bind = |source| AuthorityError::Bind { addr: listen, source };
        let listener = TcpListener::from_std(listener).map_err(bind)?;
        let addr = listener.local_addr().map_err(bind)?;

        let (stop, stopped) = watch::channel(false);
        let (advertise, tasks) = (RwLock::new(advertise), Mutex::default());
        let inner = Inner {
            trust_domain,
            addr,
            advertise,
            mesh,
            store,
            log,
            claims,
            ca,
            registry,
            publisher: publisher.clone(),
            server: server.clone(),
            stop,
            tasks,
        };
        let inner = Arc::new(inner);
        // Without the witnesses the authority has no certificate, and nodes retry later. `maintain` tries again.
        let certificates = async {
            if inner.ca.renews_at() <= now() {
                inner.ca.rotate_intermediate().await?;
            }
            inner.renew_own_identity().await
        };
        match timeout(FIRST_IDENTITY, certificates).await {
            Ok(Ok(())) => {}
            Ok(Err(AuthorityError::Ca(CaError::Log(e)))) if e.is_final() => {
                return Err(AuthorityError::Ca(CaError::Log(e)));
            }
            Ok(Err(e)) => tracing::error!("the authority has no identity yet: {}", chain(&e)),
            Err(_) => {
                tracing::error!(
                    "the authority has no identity yet: it is waiting for its witnesses"
                )
            }
        }
        {
            let mut tasks = inner.tasks.lock();
            if let Some(listener) = reading {
                tracing::info!(listen = %listener.local_addr().map_err(bind)?, "the log is served");
                let open = tls::Strangers::MayShowAnything;
                let config = tls::server_config(&inner.mesh, Id::Authority, b"http/1.1", open)?;
                let acceptor = watch::channel(TlsAcceptor::from(config)).1;
                let site = crate::web::server::serve(
                    Arc::new(site),
                    listener,
                    Some(acceptor),
                    stopped.clone(),
                );
                tasks.spawn(site);
            }
            tasks.spawn(server.run(listener, stopped));
            tasks.spawn(async move { publisher.run(view).await });
            tasks.spawn(maintain(inner.clone(), times));
            tasks.spawn(logging.run(inner.clone()));
        }
        tracing::info!(listen = %addr, trust_domain = %inner.trust_domain, "the authority is ready");
        Ok(AuthorityHandle { inner })
    }
}

impl AuthorityHandle {
    pub fn local_addr(&self) -> SocketAddr {
        self.inner.addr
    }

    /// The address for connections from this machine.
    pub fn loopback_address(&self) -> HostPort {
        let mut addr = self.inner.addr;
        if addr.ip().is_unspecified() {
            addr.set_ip(match addr {
                SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
                SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
            });
        }
        addr.into()
    }

    /// The address for connections from other machines, which is in join tokens.
    pub fn join_address(&self) -> HostPort {
        let advertise = self.inner.advertise.read();
        advertise.clone().unwrap_or_else(|| self.inner.addr.into())
    }

    /// Applies a reload: lifetimes, advertised address, and releases. The listening address changes only with a restart.
    pub fn update(&self, ttls: Ttls, advertise: Option<HostPort>, releases: ReleaseParams) {
        self.inner.ca.set_ttls(ttls);
        self.inner.registry.set_releases(releases);
        *self.inner.advertise.write() = advertise;
    }

    /// Creates a single-use token for one node name and the services that it may claim.
    pub async fn create_token(
        &self,
        node: Name,
        services: Vec<Name>,
        ttl: Duration,
    ) -> Result<JoinToken, AuthorityError> {
        self.create_token_at(node, services, Vec::new(), ttl).await
    }

    /// The same, for a node that may also announce other addresses than the one it connects from.
    pub async fn create_token_at(
        &self,
        node: Name,
        services: Vec<Name>,
        addresses: Vec<Host>,
        ttl: Duration,
    ) -> Result<JoinToken, AuthorityError> {
        let root = self.inner.ca.active_root()?;
        let (services, addresses) =
            (services.into_iter().collect(), addresses.into_iter().collect());
        let made = self.inner.registry.create_token(&node, services, addresses, ttl).await?;
        let (id, secret, expires) = made;
        tracing::info!(%node, token = %id, "created a join token");
        Ok(JoinToken {
            trust_domain: self.inner.trust_domain.clone(),
            node,
            authority: vec![self.join_address().to_string()],
            root,
            id,
            secret,
            expires,
        })
    }

    /// The tokens that can still be used, by node.
    pub async fn tokens(&self) -> Result<Vec<PendingToken>, AuthorityError> {
        Ok(self.inner.registry.tokens().await?)
    }

    /// Revokes an unused token. Returns the node that it was for.
    pub async fn revoke_token(&self, id: &str) -> Result<Name, AuthorityError> {
        let node = self.inner.registry.revoke_token(id).await?;
        tracing::info!(%node, token = id, "revoked a join token");
        Ok(node)
    }

    /// For the node in this process: grants the services in its configuration, and creates a token that it can join with
    /// if it has not joined yet.
    pub async fn own_token(
        &self,
        node: Name,
        services: Vec<Name>,
    ) -> Result<JoinToken, AuthorityError> {
        self.inner.registry.set_own(node.clone());
        let granted = self.grant(node.clone(), services.clone(), Grant::Add).await;
        match granted {
            // Not joined yet.
            Ok(()) | Err(AuthorityError::Refused(_)) => {}
            Err(e) => return Err(e),
        }
        let mut token = self.create_token(node, services, Duration::from_secs(600)).await?;
        token.authority = vec![self.loopback_address().to_string()];
        Ok(token)
    }

    /// Issues a web server's certificate (leaf and intermediate). The caller has verified control of the names and
    /// possession of the key. It is valid for `ttl`, at most [`MAX_WEB_TTL`], and never longer than the intermediate.
    pub async fn issue_web(
        &self,
        names: Vec<String>,
        spki: &SubjectPublicKeyInfoOwned,
        ttl: Duration,
    ) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
        self.inner.registry.issue_web(names, spki, ttl.min(MAX_WEB_TTL)).await
    }

    /// What the nodes have counted of their traffic, by the hour, between two times in seconds since 1970.
    pub async fn totals(
        &self,
        from: u64,
        to: u64,
    ) -> Result<BTreeMap<Name, Vec<Period>>, AuthorityError> {
        Ok(self.inner.registry.totals(from, to).await?)
    }

    /// The releases that nodes run; `None` if there is no policy for them.
    pub fn releases_status(&self) -> Option<ReleasesStatus> {
        self.inner.registry.releases_status()
    }

    /// The checkpoints that the proof page has shown, oldest first.
    pub async fn earlier(&self) -> Result<Vec<Earlier>, AuthorityError> {
        self.inner.registry.earlier().await
    }

    /// Keeps a checkpoint that the proof page is about to show.
    pub async fn remember(&self, shown: Earlier) -> Result<(), AuthorityError> {
        self.inner.registry.remember(shown).await
    }

    pub async fn list_nodes(&self) -> Result<Vec<NodeInfo>, AuthorityError> {
        let listed = self.inner.registry.list().await?;
        let mut releases = self.inner.registry.releases();
        let info = |(name, listed): (Name, registry::Listed)| {
            let line = self.inner.server.line(&name);
            let seen = line.as_ref().map(|l| l.at.load(Ordering::Relaxed));
            NodeInfo {
                joined_at: listed.record.joined_at,
                services: listed.record.services,
                addresses: listed.record.addresses,
                refused: line.as_ref().and_then(|l| l.refused()),
                connected: line.is_some(),
                last_seen: seen.or(listed.last_seen),
                acked_version: line.map(|l| l.acked.load(Ordering::Relaxed)),
                instances: listed.instances,
                release: releases.remove(&name).unwrap_or_default(),
                name,
            }
        };
        Ok(listed.into_iter().map(info).collect())
    }

    /// Removes a node: revokes its certificates and closes its stream. It needs a new token to join again.
    pub async fn remove_node(&self, name: Name) -> Result<(), AuthorityError> {
        let goodbye = || {
            let message = format!("node {name} was removed from the mesh");
            self.inner.server.cut(&name, Denial::new(Code::Removed, message));
        };
        self.inner.registry.remove(&name, goodbye).await?;
        tracing::info!(node = %name, "removed");
        Ok(())
    }

    /// What a revocation of the log entries `from` to `to` (inclusive) would affect.
    pub async fn affected(&self, from: u64, to: u64) -> Result<Affected, AuthorityError> {
        let inner = &self.inner;
        let size = inner.log.status().size;
        if from > to || to >= size {
            return Err(AuthorityError::Refused(format!(
                "there are no entries {from} to {to}: the log has {size} entries, starting at 0"
            )));
        }
        let intermediate = inner.ca.intermediate_index();
        let authority =
            inner.mesh.identities().get(&Id::Authority).map(|i| i.leaf().serial.index());
        Affected::read(&inner.log, from, to, intermediate, authority).await
    }

    /// Revokes the certificates in the log entries `from` to `to` (inclusive). If the intermediate is among them, replaces
    /// it first, if possible, so that nodes continue to accept the authority.
    pub async fn revoke(&self, from: u64, to: u64) -> Result<Affected, AuthorityError> {
        let affected = self.affected(from, to).await?;
        let replaced = match affected {
            Affected { intermediate_in_use: true, .. } => {
                self.inner.ca.rotate_intermediate().await.map_err(AuthorityError::Ca)
            }
            _ => Ok(()),
        };
        let renewed = match (&replaced, affected.intermediate_in_use || affected.authority) {
            (Ok(()), true) => self.inner.renew_own_identity().await,
            _ => Ok(()),
        };
        self.inner.registry.revoke(from, to).await?;
        tracing::info!(from, to, "revoked");
        for failed in [replaced, renewed].into_iter().filter_map(Result::err) {
            tracing::error!(
                "the authority's own certificates were revoked but not replaced yet; retrying: {}",
                chain(&failed)
            );
        }
        Ok(affected)
    }

    /// Changes the services that a node may claim.
    pub async fn grant(
        &self,
        node: Name,
        services: Vec<Name>,
        how: Grant,
    ) -> Result<(), AuthorityError> {
        self.inner.registry.grant(&node, services.into_iter().collect(), how).await
    }

    /// Changes the addresses that a node may announce in addition to the one it connects from.
    pub async fn grant_addresses(
        &self,
        node: Name,
        addresses: Vec<Host>,
        how: Grant,
    ) -> Result<(), AuthorityError> {
        let addresses = addresses.into_iter().collect();
        self.inner.registry.grant_addresses(&node, addresses, how).await?;
        // The node announces its instances again when it reconnects.
        let message = "the addresses that this node may announce have changed: connect again";
        self.inner.server.cut(&node, Denial::new(Code::Expired, message));
        Ok(())
    }

    /// Why the state that is pushed to nodes is incomplete, if it is.
    pub fn not_pushed(&self) -> Option<String> {
        let why = self.inner.publisher.trouble()?;
        Some(format!("the state pushed to the nodes is incomplete: {why}"))
    }

    /// Replaces the intermediate now. SVIDs of the old one remain valid until they expire.
    pub async fn rotate_intermediate(&self) -> Result<CaStatus, AuthorityError> {
        self.inner.ca.rotate_intermediate().await?;
        self.inner.renew_own_identity().await?;
        Ok(self.ca_status())
    }

    /// Step 1 of a root rotation: adds a second root to the bundle, which is pushed to every node.
    pub async fn rotate_root(&self) -> Result<CaStatus, AuthorityError> {
        let root = self.inner.ca.rotate_root().await?;
        tracing::info!(%root, "added a new root to the trust bundle");
        Ok(self.ca_status())
    }

    /// Step 2: issues the intermediate and SVIDs from the new root. Fails while a connected node has not acknowledged a
    /// bundle with that root, unless `force`. A node that is disconnected from before step 1 until after step 2 does not
    /// know the new root, and needs a new join token.
    pub async fn activate_root(&self, force: bool) -> Result<CaStatus, AuthorityError> {
        let inner = &self.inner;
        if let Some(root) = inner.ca.root_at(RootStanding::Incoming)
            && !force
        {
            let Some(version) = inner.publisher.first_with(&root) else {
                let why =
                    "the new root has not been pushed to the nodes yet. Try again in a moment.";
                return Err(AuthorityError::Refused(why.into()));
            };
            let behind = inner.server.behind(version);
            if !behind.is_empty() {
                let names = behind.iter().map(Name::as_str).collect::<Vec<_>>().join(", ");
                return Err(AuthorityError::Refused(format!(
                    "these connected nodes have not confirmed the new root yet: {names}. Try again, or use --force, which cuts them off."
                )));
            }
        }
        inner.ca.activate_root().await?;
        inner.renew_own_identity().await?;
        tracing::info!("activated the new root");
        Ok(self.ca_status())
    }

    /// Step 3: removes the old root from the bundle and deletes its key. Fails until the last certificate under it has
    /// expired, unless `force`; also if that cannot be determined.
    pub async fn retire_root(&self, force: bool) -> Result<CaStatus, AuthorityError> {
        let inner = &self.inner;
        let root = inner.ca.root_at(RootStanding::Outgoing).ok_or_else(CaError::no_old_root)?;
        let issued = inner.registry.issued_under(&root).await?;
        let left = issued.until.saturating_add(1).saturating_sub(now());
        let in_use = if let Some(record) = &issued.unreadable {
            Some(format!(
                "the record `{record}` in the authority's store is unreadable, so certificates under the old root may still be valid. Restore the store from a backup, or run the newer release that wrote the record. Or use --force, which cuts off the nodes that use such certificates."
            ))
        } else {
            (left > 0).then(|| format!(
                "certificates under the old root are valid for another {left} s. Wait, or use --force, which cuts off the nodes that use them."
            ))
        };
        let by_force = in_use.is_some();
        if let Some(why) = in_use.filter(|_| !force) {
            return Err(AuthorityError::Refused(why));
        }
        inner.ca.retire_root(&root, by_force).await?;
        tracing::info!("removed the old root from the trust bundle");
        Ok(self.ca_status())
    }

    pub fn log(&self) -> &Log {
        &self.inner.log
    }

    /// The roots of the trust bundle, the active one first.
    pub fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.inner.ca.roots()
    }

    pub fn intermediate(&self) -> CertificateDer<'static> {
        self.inner.ca.intermediate()
    }

    pub fn ca_status(&self) -> CaStatus {
        let (roots, intermediate) = self.inner.ca.status();
        let version = self.inner.publisher.version();
        let behind = self.inner.server.behind(version);
        let trust_domain = self.inner.trust_domain.clone();
        let log = self.inner.log.status();
        CaStatus { trust_domain, roots, intermediate, version, behind, log }
    }

    /// Stops listening, closes all streams with a message, and stops all tasks.
    pub async fn shutdown(&self) {
        self.inner.stop.send_replace(true);
        let mut tasks = {
            let mut tasks = self.inner.tasks.lock();
            std::mem::take(&mut *tasks)
        };
        let served = self.inner.clone();
        let _ = timeout(SHUTDOWN, async move {
            // All tasks except the publisher end on the signal.
            for _ in 1..tasks.len() {
                tasks.join_next().await;
            }
            tasks.shutdown().await;
            served.log.close().await;
            drop(served);
        })
        .await;
    }
}

impl Inner {
    async fn renew_own_identity(&self) -> Result<(), AuthorityError> {
        let identity = Arc::new(self.ca.own_identity().await?);
        self.mesh.set_identities(BTreeMap::from([(Id::Authority, identity)]));
        Ok(())
    }

    /// When to renew the authority's own TLS identity: at half of its lifetime. At once (0) if nodes would not accept it,
    /// because of its validity or proofs, or because a certificate of its chain was revoked.
    fn own_renews_at(&self) -> u64 {
        let bundle = self.mesh.bundle();
        let revoked = |cert: &CertificateDer<'_>| {
            x509::serial(cert).is_some_and(|serial| bundle.is_revoked(&serial))
        };
        let identities = self.mesh.identities();
        let own = identities
            .get(&Id::Authority)
            .filter(|own| self.ca.vouches_for(own) && !own.chain().iter().any(revoked));
        own.map_or(0, |own| own.half_life())
    }
}

/// Renews the authority's own certificates and removes expired records.
async fn maintain(inner: Arc<Inner>, times: Times) {
    let mut stop = inner.stop.subscribe();
    let mut prune_at = tokio::time::Instant::now() + times.prune;
    let mut pause = Duration::ZERO;
    let mut steps = Steps::new();
    loop {
        let renew_at = inner.ca.renews_at().min(inner.own_renews_at());
        let wait = until(renew_at).min(TICK).max(pause);
        tokio::select! {
            () = sleep(wait.max(Duration::from_millis(100))) => {}
            () = stopped(&mut stop) => {
                let _ = inner.registry.save_releases(true).await;
                return;
            }
        }
        pause = Duration::ZERO;
        if let Some(seconds) = steps.look() {
            tracing::warn!(
                seconds,
                "this machine's clock was set; certificates that are no longer valid are issued again"
            );
        }
        if inner.ca.renews_at() <= now() {
            match inner.ca.rotate_intermediate().await {
                Ok(()) if inner.ca.renews_at() == 0 => {
                    tracing::error!("nodes would not accept the new intermediate: {WRONG_CLOCK}");
                    pause = RETRY;
                }
                Ok(()) => tracing::info!("the intermediate was renewed"),
                Err(e) => {
                    tracing::error!("cannot renew the intermediate: {}", chain(&e));
                    pause = RETRY;
                }
            }
        }
        if inner.own_renews_at() <= now() {
            match inner.renew_own_identity().await {
                Ok(()) if inner.own_renews_at() == 0 => {
                    tracing::error!(
                        "nodes would not accept the authority's new certificate: {WRONG_CLOCK}"
                    );
                    pause = RETRY;
                }
                Ok(()) => {}
                Err(e) => {
                    tracing::error!("cannot renew the authority's own identity: {}", chain(&e));
                    pause = RETRY;
                }
            }
        }
        // Revocations are in force already; they are logged as soon as the log accepts entries.
        let logged = timeout(RETRY, inner.registry.log_revocations(&inner.log)).await;
        if let Ok(Err(e)) = logged {
            tracing::warn!("revocations are not in the log yet: {}", chain(&e));
        }
        if let Err(e) = inner.registry.save_releases(false).await {
            tracing::error!("cannot store which nodes run no proved release: {e}");
        }
        if prune_at <= tokio::time::Instant::now() {
            if let Err(e) = inner.registry.prune(steps.steady_for() >= times.steady).await {
                tracing::error!("cannot remove expired records from the store: {e}");
            }
            prune_at = tokio::time::Instant::now() + times.prune;
        }
    }
}

/// Waits for the signal, or until its sender is dropped.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}
