//! `wiretight run`: one node. Starts what the configuration has a section for, keeps it going, applies
//! changed files, and drains at the end.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use arc_swap::ArcSwap;
use sd_notify::NotifyState;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use wiretight_keys::{Csr, Id, Name, SpiffeId, TrustDomain, x509};
use wiretight_proxy::edge::settings::At;
use wiretight_proxy::mesh::now;
use wiretight_proxy::relay::ApplyError;
use wiretight_proxy::{Certificates, Edge, EdgeStatus, Mesh, Relay, RelayStatus};
use wiretight_store::{SqliteStore, Store};

use crate::acme::{self, Acme, AcmeError, Ca, DnsHook, RealClock};
use crate::acme_server;
use crate::admin::{self, BundleAnswer, RotateStep, SvidAnswer};
use crate::agent::{Agent, AgentHandle, AgentParams, AgentStatus, TokenSource};
use crate::authority::{Authority, AuthorityError, AuthorityHandle, AuthorityParams, Grant, Ttls};
use crate::config::Config;
use crate::internal_certificates::InternalCertificates;
use crate::private_dir::PrivateDir;
use crate::sandbox::{self, Sandbox};
use crate::site_certificates::{self, FileCertificates};
use crate::site_health;

/// The longest list of connections in a status.
const CONNECTIONS: usize = 1000;
/// The longest that a join token may hold.
const MAX_TOKEN_TTL: Duration = Duration::from_secs(30 * 86_400);

/// A running node.
pub struct Daemon {
    config: ArcSwap<Config>,
    mesh: Arc<Mesh>,
    relay: Relay,
    edge: Edge,
    site_files: Arc<FileCertificates>,
    acme: Arc<Acme>,
    internal: Option<Arc<InternalCertificates>>,
    agent: AgentHandle,
    authority: Option<AuthorityHandle>,
    sandbox: Sandbox,
    started: Instant,
    /// One reload at a time.
    reloading: tokio::sync::Mutex<()>,
}

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// This node cannot do it.
    #[error("{0}")]
    NotHere(&'static str),
    /// It was understood, and refused.
    #[error("{0}")]
    Refused(String),
    /// It went wrong.
    #[error("{0}")]
    Failed(String),
}

impl From<AuthorityError> for RequestError {
    fn from(e: AuthorityError) -> RequestError {
        match e {
            AuthorityError::Refused(why) => RequestError::Refused(why),
            other => RequestError::Failed(chain(&other)),
        }
    }
}

/// An error and its sources in a line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut out = error.to_string();
    let mut source = error.source();
    while let Some(e) = source {
        let more = e.to_string();
        if !out.contains(&more) {
            out.push_str(": ");
            out.push_str(&more);
        }
        source = e.source();
    }
    out
}

/// What `wiretight status --json` prints.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// The version that runs.
    pub version: &'static str,
    /// The node's name.
    pub node: Name,
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// Process id.
    pub pid: u32,
    /// Seconds since the start.
    pub uptime_seconds: u64,
    /// Whether identities and trust bundle are in force.
    pub ready: bool,
    /// What is missing, if not.
    pub not_ready: Option<String>,
    /// This node's identities.
    pub identities: Vec<IdentityStatus>,
    /// The stream to the authority.
    pub authority_link: AgentStatus,
    /// Whether this node is the authority.
    pub is_authority: bool,
    /// The services that this node offers.
    pub services: Vec<ServiceStatus>,
    /// The services that its programs reach.
    pub dials: Vec<DialStatus>,
    /// Connections, sums and refusals.
    pub relay: RelayStatus,
    /// Sites and what they serve.
    pub edge: EdgeStatus,
    /// Why a site's certificate is not renewed, or its files are not in force, by site.
    pub site_errors: BTreeMap<String, String>,
    /// How far Landlock holds.
    pub sandbox: Sandbox,
}

/// An identity of this node.
#[derive(Debug, Clone, Serialize)]
pub struct IdentityStatus {
    /// The SPIFFE ID.
    pub id: SpiffeId,
    /// When it expires, seconds since 1970.
    pub not_after: u64,
    /// How long that is from now; negative if it has.
    pub expires_in_seconds: i64,
    /// Its serial number.
    pub serial: String,
}

/// A service that this node offers.
#[derive(Debug, Clone, Serialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: Name,
    /// Where it listens.
    pub listen: String,
    /// Where its traffic goes.
    pub forward: Vec<String>,
    /// Who may call.
    pub allow: Vec<Id>,
}

/// A service that this node's programs reach.
#[derive(Debug, Clone, Serialize)]
pub struct DialStatus {
    /// The service.
    pub service: Name,
    /// Where programs connect.
    pub listen: String,
    /// The identity that is shown.
    pub identity: Id,
    /// Where its instances are, as given or as registered.
    pub instances: Vec<String>,
}

/// Runs a node until it is told to stop. `config` was loaded from its path.
pub fn run(config: Config) -> anyhow::Result<()> {
    // Before there is a second thread.
    raise_file_limit();
    let state = PrivateDir::open(&config.node.state_dir)?;
    let _lock = lock(state.path())?;
    // The sandbox hides a container's CPU quota from whoever counts cores.
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let workers = config.node.workers.map_or_else(cores, usize::from);
    let token = config.node.join_token_file.iter();
    // Before the sandbox, which lets nothing be started.
    let dns_hook = DnsHook::start(&config.dns_commands())
        .context("the process that runs dns_command cannot be started")?;
    let roots = config.acme.iter().filter_map(|ca| ca.roots.as_ref());
    let reads = token.chain(site_certificates::files(&config)).chain(roots);
    let reads: Vec<PathBuf> = reads.cloned().collect();
    let sandbox = match config.node.landlock {
        true => sandbox::enter(&config.path, state.path(), &reads).context(
            "Landlock refused the sandbox: set `landlock = false` in [node] to run without",
        )?,
        false => Sandbox::Off,
    };
    let _logs = crate::logging::start();
    config.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    match sandbox {
        Sandbox::Enforced => tracing::debug!("sandbox: enforced"),
        Sandbox::Partly => tracing::info!("sandbox: this kernel's Landlock enforces a part of it"),
        Sandbox::Unsupported => tracing::warn!(
            "sandbox: this kernel has no Landlock, or a system call filter hides it (examples/wiretight.service allows it)"
        ),
        Sandbox::Off => tracing::info!("sandbox: off by configuration"),
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("control")
        .enable_all()
        .build()?;
    runtime.block_on(serve(config, sandbox, dns_hook, workers))
}

async fn serve(
    config: Config,
    sandbox: Sandbox,
    dns_hook: Option<DnsHook>,
    workers: usize,
) -> anyhow::Result<()> {
    let mesh = Mesh::new(config.node.trust_domain.clone());
    let relay = Relay::start(mesh.clone(), workers)?;
    relay.apply(&config.relay)?;
    let certificates = Arc::new(Certificates::default());
    let site_files = Arc::new(FileCertificates::new(certificates.clone()));
    let staged = site_files.stage(&config);
    for error in staged.errors() {
        tracing::error!(
            error,
            "a site has no certificate: it is not served until the files are good"
        );
    }
    staged.commit();
    let state = PrivateDir::open(&config.node.state_dir)?;
    let (authority, store): (_, Arc<dyn Store>) = match &config.authority {
        None => (None, Arc::new(SqliteStore::open(state.path().join("edge.db")).await?)),
        Some(section) => {
            let params = AuthorityParams::from_config(&config.node, section);
            let dir = PrivateDir::open(params.dir.clone())?;
            let store = Arc::new(SqliteStore::open(dir.path().join("store.db")).await?);
            (Some(Authority::start(params, store.clone()).await?), store)
        }
    };
    let own = Id::Node(config.node.name.clone()).to_string();
    let (me, key) = (config.node.name.as_str(), acme::seal_key(&state)?);
    let (clock, serve) = (Arc::new(RealClock), certificates.clone());
    let acme = Acme::new(store.clone(), &own, me, key, clock, serve, dns_hook);
    // What the store has is served even when no CA can be asked.
    let cas = cas(&config).unwrap_or_else(|error| {
        tracing::error!(error = chain(&error), "no certificate is ordered or renewed");
        Vec::new()
    });
    acme.update(config.acme_sites(), cas);
    // Before the first client comes: what the store has is served without any CA.
    acme.publish().await?;
    let internal = authority
        .as_ref()
        .map(|authority| InternalCertificates::new(authority.clone(), certificates.clone()));
    if let Some(internal) = &internal {
        internal.update(config.internal_sites()).await;
        tokio::spawn(internal.clone().run());
    }
    let edge = Edge::start(&relay, certificates, site_health::load(&state), workers)?;
    edge.apply(&config.edge)?;
    if let (Some(section), Some(authority)) = (&config.acme_server, &authority) {
        acme_server::serve::start(&config, section, authority, store)?;
    }
    let agent = start_agent(&config, mesh.clone(), authority.as_ref()).await?;
    let (admin, state_dir) = (config.node.admin, config.node.state_dir.clone());
    let (node, trust_domain) = (config.node.name.clone(), config.node.trust_domain.clone());
    let daemon = Arc::new(Daemon {
        config: ArcSwap::from_pointee(config),
        mesh,
        relay,
        edge,
        site_files,
        acme,
        internal,
        agent,
        authority,
        sandbox,
        started: Instant::now(),
        reloading: tokio::sync::Mutex::default(),
    });
    admin::start(daemon.clone(), admin, &state_dir).await?;
    tokio::spawn(enforce(daemon.clone()));
    tokio::spawn(daemon.site_files.clone().watch());
    tokio::spawn(daemon.acme.clone().run());
    tokio::spawn(site_health::keep(daemon.clone(), PrivateDir::open(&state_dir)?));
    tokio::spawn(watchdog());
    let version = env!("CARGO_PKG_VERSION");
    tracing::info!(%node, %trust_domain, version, workers, "the node runs");
    notify(&[NotifyState::Ready, NotifyState::Status("running")]);

    let mut hangup = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    loop {
        tokio::select! {
            _ = hangup.recv() => {
                let begun = NotifyState::monotonic_usec_now();
                notify(&[Some(NotifyState::Reloading), begun.ok()].into_iter().flatten().collect::<Vec<_>>());
                // The outcome is in the log, whichever it is.
                let _ = daemon.reload().await;
                notify(&[NotifyState::Ready]);
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    notify(&[NotifyState::Stopping]);
    let limit = daemon.config.load().node.drain;
    tracing::info!(
        limit_seconds = limit.as_secs(),
        "stopping: sessions may finish (a second signal cuts them)"
    );
    tokio::select! {
        cut = daemon.drain(limit) => tracing::info!(cut, "drained"),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    daemon.drain(Duration::ZERO).await;
    if let Err(error) = site_health::save(&state, &daemon.edge_status()) {
        tracing::warn!(%error, "what is known of the sites could not be kept");
    }
    daemon.agent.shutdown().await;
    if let Some(authority) = &daemon.authority {
        authority.shutdown().await;
    }
    let _ = std::fs::remove_file(admin::socket_path(&state_dir));
    tracing::info!("stopped");
    Ok(())
}

async fn start_agent(
    config: &Config,
    mesh: Arc<Mesh>,
    authority: Option<&AuthorityHandle>,
) -> anyhow::Result<AgentHandle> {
    let mut params = AgentParams::from_config(config);
    if let Some(authority) = authority {
        let services = claimed(config);
        let token = authority.own_token(config.node.name.clone(), services).await?;
        params.token = TokenSource::Given(Arc::new(token));
        own_authority(&mut params, authority);
    }
    Ok(Agent::start(params, mesh).await?)
}

/// The CAs that certificates are ordered from.
fn cas(config: &Config) -> Result<Vec<Ca>, AcmeError> {
    config.acme.iter().map(Ca::open).collect()
}

/// On the authority's own machine the agent reaches it over loopback.
fn own_authority(params: &mut AgentParams, authority: &AuthorityHandle) {
    params.authority = vec![authority.loopback_address()];
    params.own_host = Some(authority.join_address());
}

/// The services that a configuration names for its own node: offered, or acted as.
fn claimed(config: &Config) -> Vec<Name> {
    let offered = config.relay.services.iter().map(|s| s.name.clone());
    let acted = config.relay.dials.iter().filter_map(|d| match &d.identity {
        Id::Service(name) => Some(name.clone()),
        _ => None,
    });
    let to_mesh = config
        .edge
        .sites
        .iter()
        .filter(|s| s.to.iter().any(|upstream| matches!(upstream.at, At::Mesh(_))));
    let fronts = to_mesh.filter_map(|s| match &s.identity {
        Id::Service(name) => Some(name.clone()),
        _ => None,
    });
    let mut all: Vec<Name> = offered.chain(acted).chain(fronts).collect();
    all.sort();
    all.dedup();
    all
}

/// Whenever the bundle changes, connections of revoked identities are cut.
async fn enforce(daemon: Arc<Daemon>) {
    let mut changes = daemon.mesh.changes();
    loop {
        match daemon.relay.cut_revoked() {
            0 => {}
            cut => tracing::warn!(cut, "cut connections of revoked identities"),
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Tells systemd's watchdog that the control side is alive, if it asks.
async fn watchdog() {
    let Some(every) = sd_notify::watchdog_enabled() else { return };
    let mut tick = tokio::time::interval(every / 2);
    loop {
        tick.tick().await;
        notify(&[NotifyState::Watchdog]);
    }
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd was not told");
    }
}

/// One process a state directory.
pub(crate) fn lock(state_dir: &Path) -> anyhow::Result<File> {
    let path = state_dir.join("lock");
    let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => bail!(
            "another wiretight runs with this state directory ({}): `wiretight status` shows it",
            state_dir.display()
        ),
        Err(std::fs::TryLockError::Error(e)) => {
            Err(e).context(format!("cannot lock {}", path.display()))
        }
    }
}

/// A relay needs two descriptors a connection: takes all that the hard limit gives.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

const NO_AUTHORITY: RequestError = RequestError::NotHere(
    "this node is not the authority: run this on the node whose configuration has [authority]",
);

impl Daemon {
    /// Lets what runs finish, then cuts it; returns how much was cut.
    async fn drain(&self, limit: Duration) -> usize {
        let (relay, edge) = tokio::join!(self.relay.drain(limit), self.edge.drain(limit));
        relay + edge
    }

    /// What is missing before traffic can flow; `None` when nothing is.
    pub fn not_ready(&self) -> Option<String> {
        if self.relay.status(0).draining {
            return Some("stopping".into());
        }
        let agent = self.agent.status();
        if agent.ready {
            return None;
        }
        if agent.removed {
            return Some("this node was removed from the mesh: join again with a new token".into());
        }
        let lacks = |i: &&crate::agent::IdentityStatus| i.not_after.is_none_or(|t| t < now());
        let missing: Vec<String> =
            agent.identities.iter().filter(lacks).map(|i| i.id.to_string()).collect();
        let mut why = match missing.is_empty() {
            true => "no trust bundle yet".to_owned(),
            false => format!("no valid identity for {}", missing.join(", ")),
        };
        let errors = agent.identities.iter().filter_map(|i| i.error.as_ref());
        for error in agent.last_error.iter().chain(errors).take(2) {
            why += &format!("; {error}");
        }
        Some(why)
    }

    /// All that `wiretight status` shows.
    pub fn status(&self) -> Status {
        let config = self.config.load();
        let not_ready = self.not_ready();
        let identities = self.mesh.identities();
        let identity = |i: &Arc<wiretight_proxy::Identity>| {
            let not_after = i.leaf().period.not_after;
            IdentityStatus {
                id: i.id().clone(),
                not_after,
                expires_in_seconds: not_after as i64 - now() as i64,
                serial: i.leaf().serial.to_string(),
            }
        };
        let registry = self.mesh.registry();
        let services = config.relay.services.iter().map(|s| ServiceStatus {
            name: s.name.clone(),
            listen: s.listen.to_string(),
            forward: s.forward.iter().map(ToString::to_string).collect(),
            allow: s.allow.clone(),
        });
        let dials = config.relay.dials.iter().map(|d| {
            let registered = registry.services.get(&d.service).into_iter().flatten();
            let registered = registered.map(|i| i.addr.to_string()).collect();
            let given = d.to.iter().map(ToString::to_string).collect();
            DialStatus {
                service: d.service.clone(),
                listen: d.listen.to_string(),
                identity: d.identity.clone(),
                instances: if d.to.is_empty() { registered } else { given },
            }
        });
        Status {
            version: env!("CARGO_PKG_VERSION"),
            node: config.node.name.clone(),
            trust_domain: config.node.trust_domain.clone(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            ready: not_ready.is_none(),
            not_ready,
            identities: identities.values().map(identity).collect(),
            authority_link: self.agent.status(),
            is_authority: self.authority.is_some(),
            services: services.collect(),
            dials: dials.collect(),
            relay: self.relay.status(CONNECTIONS),
            edge: self.edge.status(),
            site_errors: self
                .acme
                .errors()
                .into_iter()
                .chain(self.site_files.errors())
                .chain(self.internal.iter().flat_map(|i| i.errors()))
                .collect(),
            sandbox: self.sandbox,
        }
    }

    /// Applies the configuration file as it is now: all of it, or nothing.
    pub async fn reload(&self) -> Result<Value, RequestError> {
        let _one = self.reloading.lock().await;
        let result = self.apply_file().await;
        match &result {
            Ok(_) => tracing::info!("the changed configuration is in force"),
            Err(error) => {
                tracing::error!(%error, "the changed configuration is refused; the old one goes on")
            }
        }
        result
    }

    async fn apply_file(&self) -> Result<Value, RequestError> {
        let old = self.config.load_full();
        let new = Config::load(&old.path).map_err(|e| RequestError::Refused(e.to_string()))?;
        if let Some(key) = needs_restart(&old, &new) {
            return Err(RequestError::Refused(format!(
                "{}: {key} changes with a restart only; nothing was applied",
                new.path.display()
            )));
        }
        new.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        let certificates = self.site_files.stage(&new);
        if let Some(error) = certificates.errors().first() {
            return Err(RequestError::Refused(format!("a site's certificate is no good: {error}")));
        }
        let cas = cas(&new).map_err(|e| RequestError::Refused(chain(&e)))?;
        let refused = |e: &ApplyError| RequestError::Refused(chain(e));
        self.relay.apply(&new.relay).map_err(|e| refused(&e))?;
        if let Err(error) = self.edge.apply(&new.edge) {
            // All or nothing: the relay goes back to what it was.
            if let Err(error) = self.relay.apply(&old.relay) {
                tracing::error!(error = chain(&error), "the old services could not be restored");
            }
            return Err(refused(&error));
        }
        certificates.commit();
        self.acme.update(new.acme_sites(), cas);
        if let Some(internal) = &self.internal {
            internal.update(new.internal_sites()).await;
        }
        // Whoever reloads has mended something.
        if let Err(error) = self.acme.retry().await {
            tracing::error!(error = chain(&error), "the store of certificates failed");
        }
        if let (Some(handle), Some(section)) = (&self.authority, &new.authority) {
            let ttls = Ttls { svid: section.svid_ttl, intermediate: section.intermediate_ttl };
            handle.update(ttls, section.advertise.clone());
            // What the file names no longer is not taken away: that would cut live connections. `node
            // grant` does.
            let granted = handle.grant(new.node.name.clone(), claimed(&new), Grant::Add).await;
            if let Err(error) = granted {
                tracing::warn!(
                    error = chain(&error),
                    "this node's own services could not be granted"
                );
            }
        }
        let mut params = AgentParams::from_config(&new);
        if let Some(handle) = &self.authority {
            own_authority(&mut params, handle);
        }
        self.agent.update(params).await;
        let summary = json!({
            "reloaded": true,
            "services": new.relay.services.len(),
            "dials": new.relay.dials.len(),
            "sites": new.edge.sites.len(),
            "warnings": new.warnings,
        });
        self.config.store(Arc::new(new));
        Ok(summary)
    }

    /// The edge alone.
    pub(crate) fn edge_status(&self) -> EdgeStatus {
        self.edge.status()
    }

    /// Renews all identities now.
    pub async fn renew(&self) -> Result<Value, RequestError> {
        self.agent.renew_now().await.map_err(|e| RequestError::Failed(chain(&e)))?;
        Ok(json!({ "renewed": true }))
    }

    /// Has a certificate request signed by the authority.
    pub async fn svid(&self, csr: &str) -> Result<SvidAnswer, RequestError> {
        let refused = |e: &dyn std::error::Error| RequestError::Refused(e.to_string());
        let der = wiretight_keys::x509::csr_from_pem(csr).map_err(|e| refused(&e))?;
        Csr::parse(&der).map_err(|e| refused(&e))?;
        let chain_der = self.agent.sign(der).await.map_err(|e| RequestError::Failed(chain(&e)))?;
        Ok(SvidAnswer {
            chain: x509::to_pem(&chain_der),
            bundle: x509::to_pem(self.mesh.bundle().roots()),
        })
    }

    /// The trust bundle.
    pub fn bundle(&self) -> BundleAnswer {
        BundleAnswer { bundle: x509::to_pem(self.mesh.bundle().roots()) }
    }

    fn authority(&self) -> Result<&AuthorityHandle, RequestError> {
        self.authority.as_ref().ok_or(NO_AUTHORITY)
    }

    /// Makes a join token.
    pub async fn create_token(
        &self,
        node: Name,
        services: Vec<Name>,
        ttl: Duration,
    ) -> Result<Value, RequestError> {
        if ttl.is_zero() || ttl > MAX_TOKEN_TTL {
            return Err(RequestError::Refused("a join token holds for 1 second to 30 days".into()));
        }
        let token = self.authority()?.create_token(node.clone(), services.clone(), ttl).await?;
        Ok(json!({
            "token": *token.encode(),
            "node": node,
            "services": services,
            "expires": token.expires,
        }))
    }

    /// The nodes of the mesh.
    pub async fn nodes(&self) -> Result<Value, RequestError> {
        Ok(json!({ "nodes": self.authority()?.list_nodes().await? }))
    }

    /// Removes a node: its identities are revoked everywhere.
    pub async fn remove_node(&self, node: &Name) -> Result<Value, RequestError> {
        let authority = self.authority()?;
        if *node == self.config.load().node.name {
            return Err(RequestError::Refused("the authority's own node cannot be removed".into()));
        }
        authority.remove_node(node.clone()).await?;
        Ok(json!({ "removed": node }))
    }

    /// Sets the services that a node may claim.
    pub async fn grant(&self, node: &Name, services: Vec<Name>) -> Result<Value, RequestError> {
        self.authority()?.grant(node.clone(), services.clone(), Grant::Replace).await?;
        Ok(json!({ "node": node, "services": services }))
    }

    /// Roots and intermediate.
    pub async fn authority_status(&self) -> Result<Value, RequestError> {
        Ok(json!(self.authority()?.ca_status()))
    }

    /// One step of a rotation.
    pub async fn rotate(&self, step: RotateStep, force: bool) -> Result<Value, RequestError> {
        let authority = self.authority()?;
        let status = match step {
            RotateStep::Intermediate => authority.rotate_intermediate().await?,
            RotateStep::PrepareRoot => authority.rotate_root().await?,
            RotateStep::ActivateRoot => authority.activate_root(force).await?,
            RotateStep::RetireRoot => authority.retire_root(force).await?,
        };
        Ok(json!(status))
    }
}

/// The first thing that a running process cannot change.
fn needs_restart(old: &Config, new: &Config) -> Option<&'static str> {
    let (a, b) = (&old.node, &new.node);
    let listens = |c: &Config| c.authority.as_ref().map(|s| s.listen);
    let changed = [
        (a.name != b.name, "[node] name"),
        (a.trust_domain != b.trust_domain, "[node] trust_domain"),
        (a.state_dir != b.state_dir, "[node] state_dir"),
        (a.admin != b.admin, "[node] admin"),
        (a.landlock && a.join_token_file != b.join_token_file, "[node] join_token_file"),
        (a.landlock != b.landlock, "[node] landlock"),
        (a.workers != b.workers, "[node] workers"),
        (listens(old) != listens(new), "[authority] listen"),
        (old.acme_server != new.acme_server, "[acme_server]"),
        (old.dns_commands() != new.dns_commands(), "[[acme]] dns_command"),
        (
            old.acme_server.is_some() && old.edge.https != new.edge.https,
            "[edge] https (with [acme_server])",
        ),
    ];
    changed.into_iter().find_map(|(changed, key)| changed.then_some(key))
}
