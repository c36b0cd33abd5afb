//! `wiretight run`: starts a node, runs it, and stops it.
//!
//! The process has two parts. What carries connections ([`Plane`]) lives as long as the process. Everything that only
//! one process of a node may own at a time is in [`control`]: identities, stores, the authority, the interception
//! rules, the admin socket. The control part is shut down when another process takes over, and started again if that
//! process fails.

use std::collections::HashMap;
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use wiretight_keys::Id;
use wiretight_proxy::clock::now;
use wiretight_proxy::net::{Listening, Sockets};
use wiretight_proxy::{Certificates, Edge, Mesh, Relay};
use wiretight_store::{SqliteStore, Store};

use super::admin;
use super::daemon::Daemon;
use super::publishing::Publishing;
use super::reporting::Reporting;
use super::takeover::{Door, Guard, Passed, Predecessor, Successor};
use crate::acme::{self, Acme, DnsHook, RealClock};
use crate::acme_server;
use crate::admin::socket_path;
use crate::agent::{
    self, Agent, AgentHandle, AgentParams, Errands, SharedStore, SharedTimes, TokenSource,
};
use crate::authority::{Authority, AuthorityError, AuthorityHandle, AuthorityParams};
use crate::config::Config;
use crate::console::session::Sessions;
use crate::console::{Console, Sources};
use crate::intercept::Interception;
use crate::logging::chain;
use crate::private_dir::PrivateDir;
use crate::privilege;
use crate::release::kept::Kept;
use crate::release::{Standing, Verdict, own};
use crate::sandbox::{self, Sandbox};
use crate::sites::files::{self, FileCertificates};
use crate::sites::health;
use crate::sites::internal::InternalCertificates;
use crate::watch::host::Watching;

/// How long a process that takes over may take until its identities, which are on disk, are in force.
const READY: Duration = Duration::from_secs(20);
/// How long tasks of the control part may take to end.
const LET_GO: Duration = Duration::from_secs(10);

/// Runs a node until it is told to stop, or until another process has taken over and the remaining connections have
/// drained. `take_over`: take over from the running process.
pub fn run(config: Config, take_over: bool) -> anyhow::Result<()> {
    // Must happen before a second thread starts.
    raise_file_limit();
    let state = PrivateDir::open(&config.node.state_dir)?;
    // The sandbox hides the program and its proof.
    let release = own::standing(config.release.as_ref(), &state, now());
    let predecessor = match take_over {
        true => Some(Predecessor::meet(state.path(), &release, || lock(state.path()).is_err())?),
        false => None,
    };
    let locked = match &predecessor {
        Some(_) => None,
        None => Some(lock(state.path())?),
    };
    // Count the cores before the sandbox, which hides a container's CPU quota.
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let workers = config.node.workers.map_or_else(cores, usize::from);
    let token = config.node.join_token_file.iter();
    // Must happen before the sandbox, which forbids starting processes.
    let dns_hook = DnsHook::start(&config.dns_commands())
        .context("cannot start the process that runs dns_command")?;
    let interception = Interception::begin(&config, state.path())?;
    let watching = Watching::begin(&config);
    let roots = config.acme.iter().filter_map(|ca| ca.roots.as_ref());
    let policy = config.witnesses.iter().map(|w| &w.policy);
    let releases = config.release.iter().map(|r| &r.policy);
    let reads = token.chain(files::files(&config)).chain(roots).chain(policy).chain(releases);
    // The sandbox makes the directory of each file readable.
    let scans = config.console.iter().filter_map(|c| c.scans.as_ref()).map(|dir| dir.join("*"));
    let reads = reads.cloned().chain(named_in_the_environment()).chain(scans);
    let reads: Vec<PathBuf> = reads.collect();
    let sandbox = match config.node.landlock {
        true => sandbox::enter(
            &config.path,
            state.path(),
            &reads,
            config.public_folder().map(PathBuf::as_path),
        )
        .context(
            "cannot enter the Landlock sandbox: set `landlock = false` in [node] to run without it",
        )?,
        false => Sandbox::Off,
    };
    privilege::keep_what_a_node_needs(config.intercept.is_some())?;
    let (lock, sockets, expected) = match (&predecessor, locked) {
        (None, Some(lock)) => (lock, Sockets::default(), None),
        (Some(predecessor), _) => {
            let Passed { listening, lock, output, ready } = predecessor.take()?;
            rustix::stdio::dup2_stdout(&output[0])?;
            rustix::stdio::dup2_stderr(&output[1])?;
            (File::from(lock), Sockets::passed_on(listening), Some(ready))
        }
        (None, None) => unreachable!("without a predecessor the lock was taken above"),
    };
    let _logs = crate::logging::start();
    let exceptions = config.exception_warnings(now());
    config.warnings.iter().chain(&exceptions).for_each(|warning| tracing::warn!("{warning}"));
    say_release(&state, &release);
    match sandbox {
        Sandbox::Enforced => tracing::debug!("sandbox: enforced"),
        Sandbox::Partly => {
            tracing::info!("sandbox: partly enforced (this kernel's Landlock lacks some features)")
        }
        Sandbox::Unsupported => tracing::warn!(
            "sandbox: not enforced, as this kernel has no Landlock or a system call filter blocks it (wiretight.service allows it)"
        ),
        Sandbox::Off => tracing::info!("sandbox: disabled in the configuration"),
    }
    let mut plane = Plane::start(
        config,
        &state,
        sockets,
        (dns_hook, interception, watching),
        (sandbox, workers),
        release,
    )?;
    let mut predecessor = predecessor.zip(expected);
    let mut lock = Some(lock);
    loop {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("control")
            .enable_all()
            .build()?;
        let turn = runtime.block_on(control(&plane, predecessor.take()));
        // All its tasks end before another process starts.
        runtime.shutdown_timeout(LET_GO);
        let Turn::Passes { successor, ready } = turn? else { return Ok(()) };
        let (pid, version) = (successor.pid.as_raw_nonzero(), successor.version.clone());
        match plane.pass(&successor, ready, &mut lock) {
            Ok(()) => {
                notify(&[NotifyState::MainPid(pid.get().cast_unsigned())]);
                successor.yours();
                tracing::info!(
                    pid,
                    version,
                    "another process has taken over: this one finishes its open connections"
                );
                return plane.outlive();
            }
            Err(error) => {
                successor.end();
                tracing::error!(
                    pid, version, %error,
                    "the upgrade failed: the new process did not become ready and has ended; this one keeps running"
                );
            }
        }
    }
}

/// Logs what is known of this process's program, and remembers the oldest version that may still be installed.
fn say_release(state: &PrivateDir, release: &Standing) {
    let Standing { version, sha256, .. } = release;
    match &release.verdict {
        Verdict::NoPolicy => {}
        Verdict::Unproved(why) => {
            tracing::warn!(version, sha256, why, "this program is not proved to be a release");
        }
        Verdict::Proved(proved) => {
            tracing::info!(
                version,
                sha256,
                log = proved.origin,
                index = proved.index,
                "this program is proved to be a release"
            );
            if let Err(error) = Kept::raise(state, &proved.minimum) {
                let error = chain(&error);
                tracing::warn!(error, "cannot remember the oldest version that may be installed");
            }
        }
    }
}

/// What carries connections, and what must be started before the sandbox. It lives as long as the process.
struct Plane {
    config: Arc<ArcSwap<Config>>,
    mesh: Arc<Mesh>,
    relay: Arc<Relay>,
    edge: Arc<Edge>,
    certificates: Arc<Certificates>,
    site_files: Arc<FileCertificates>,
    dns_hook: Option<Arc<DnsHook>>,
    interception: Option<Arc<Interception>>,
    watching: Option<Arc<Watching>>,
    sockets: Arc<Sockets>,
    /// The listening sockets of the control part.
    held: Mutex<HashMap<SocketAddr, TcpListener>>,
    sandbox: Sandbox,
    workers: usize,
    /// This process's program.
    release: Arc<Standing>,
    started: Instant,
}

/// How [`control`] ends.
enum Turn {
    /// The node was told to stop and has stopped.
    Stopped,
    /// Another process is taking over. `ready`: this node was ready.
    Passes { successor: Successor, ready: bool },
}

impl Plane {
    fn start(
        config: Config,
        state: &PrivateDir,
        sockets: Sockets,
        (dns_hook, interception, watching): (
            Option<DnsHook>,
            Option<Interception>,
            Option<Watching>,
        ),
        (sandbox, workers): (Sandbox, usize),
        release: Standing,
    ) -> anyhow::Result<Plane> {
        let mesh = Mesh::new(config.node.trust_domain.clone());
        mesh.set_transparency(crate::log::transparency(&config)?);
        let sockets = Arc::new(sockets);
        let relay = Relay::start_on(sockets.clone(), mesh.clone(), workers)?;
        let certificates = Arc::new(Certificates::default());
        let site_files = Arc::new(FileCertificates::new(certificates.clone()));
        let staged = site_files.stage(&config);
        for error in staged.errors() {
            tracing::error!(
                error,
                "a site is not served because its certificate files are invalid"
            );
        }
        staged.commit();
        let edge = Edge::start(&relay, certificates.clone(), health::load(state), workers)?;
        Ok(Plane {
            config: Arc::new(ArcSwap::from_pointee(config)),
            mesh,
            relay: Arc::new(relay),
            edge: Arc::new(edge),
            certificates,
            site_files,
            dns_hook: dns_hook.map(Arc::new),
            interception: interception.map(Arc::new),
            watching: watching.map(Arc::new),
            sockets,
            held: Mutex::default(),
            sandbox,
            workers,
            release: Arc::new(release),
            started: Instant::now(),
        })
    }

    /// A listening socket of the control part. It stays open while that part restarts, so that clients wait instead of
    /// being refused.
    fn listen(&self, addr: SocketAddr) -> std::io::Result<TcpListener> {
        let mut held = self.held.lock();
        if let Some(socket) = held.get(&addr) {
            return socket.try_clone();
        }
        let socket = self.sockets.bind(addr, 1)?.swap_remove(0);
        held.insert(addr, socket.try_clone()?);
        Ok(socket)
    }

    fn listening(&self) -> std::io::Result<Listening> {
        let mut all = self.relay.listening()?;
        all.extend(self.edge.listening()?);
        for (addr, socket) in self.held.lock().iter() {
            all.push((*addr, vec![socket.try_clone()?]));
        }
        Ok(all)
    }

    /// Hands over everything that the next process needs, and waits until it is ready. From then on it owns the node:
    /// the state directory and the interception rules.
    fn pass(
        &mut self,
        to: &Successor,
        ready: bool,
        lock: &mut Option<File>,
    ) -> std::io::Result<()> {
        let held = lock
            .as_ref()
            .ok_or_else(|| std::io::Error::other("the lock was already handed over"))?;
        let passed = Passed {
            listening: self.listening()?,
            lock: held.try_clone()?.into(),
            output: [
                std::io::stdout().as_fd().try_clone_to_owned()?,
                std::io::stderr().as_fd().try_clone_to_owned()?,
            ],
            ready,
        };
        to.pass(&passed)?;
        to.survives(&socket_path(&self.config.load().node.state_dir))?;
        *lock = None;
        (self.interception, self.dns_hook, self.watching) = (None, None, None);
        self.held.lock().clear();
        Ok(())
    }

    /// Finishes the open connections after another process has taken over.
    fn outlive(&self) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let node = self.config.load().node.clone();
        let identity = node.state_dir.join("identity");
        runtime.block_on(async {
            let (mut terminate, mut interrupt) = stop_signals()?;
            tokio::select! {
                cut = self.drain(node.drain) => tracing::info!(cut, "drained"),
                // The first signal means that the node is being stopped. The other process drains for the same time, so
                // this one keeps draining as well.
                _ = async { terminate.recv().await; terminate.recv().await } => {}
                _ = interrupt.recv() => {}
                () = agent::follow(&identity, &self.mesh, node.max_staleness) => {}
                () = enforce(self.mesh.clone(), self.relay.clone()) => {}
            }
            self.drain(Duration::ZERO).await;
            tracing::info!("stopped");
            Ok(())
        })
    }

    /// Waits until connections have finished, then closes the rest; returns how many were closed.
    async fn drain(&self, limit: Duration) -> usize {
        let (relay, edge) = tokio::join!(self.relay.drain(limit), self.edge.drain(limit));
        relay + edge
    }
}

fn stop_signals() -> std::io::Result<(Signal, Signal)> {
    Ok((signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?))
}

/// Runs the control part: everything that only one process of a node may own at a time.
async fn control(plane: &Plane, predecessor: Option<(Predecessor, bool)>) -> anyhow::Result<Turn> {
    // Before the node says that it is ready: a SIGHUP that nothing handles would end the process.
    let (hangup, mut stops) = (signal(SignalKind::hangup())?, stop_signals()?);
    let mut control = tokio::select! {
        begun = Control::begin(plane, predecessor) => begun?,
        _ = stops.0.recv() => return Ok(Turn::Stopped),
        _ = stops.1.recv() => return Ok(Turn::Stopped),
    };
    let successor = control.serve(hangup, &mut stops).await?;
    Ok(control.end(successor, &mut stops).await)
}

/// The control part of a node.
struct Control<'a> {
    plane: &'a Plane,
    state: PrivateDir,
    daemon: Arc<Daemon>,
    /// Ends when another process wants to take over.
    next: JoinHandle<Successor>,
    /// Maintain the interception rules, and watch the traffic, until `stop` is set.
    rules: Option<JoinHandle<()>>,
    watching: Option<JoinHandle<()>>,
    stop: watch::Sender<bool>,
}

impl Control<'_> {
    async fn begin(
        plane: &Plane,
        predecessor: Option<(Predecessor, bool)>,
    ) -> anyhow::Result<Control<'_>> {
        let config = plane.config.load_full();
        let state = PrivateDir::open(&config.node.state_dir)?;
        let (authority, store) = start_authority(plane, &config, &state).await?;
        let (kept, whose, errands) =
            certificate_store(&config, authority.is_some(), &store).await?;
        // Identities on disk are in force before any client can connect.
        let agent = start_agent(&config, plane.mesh.clone(), authority.as_ref(), errands).await?;
        if let (Some(interception), None) = (&plane.interception, &predecessor) {
            interception.load_first(&config, &plane.mesh).await;
        }
        plane.relay.apply(&config.relay)?;
        let acme = start_acme(plane, &config, &state, (kept, whose)).await?;
        let internal = authority.as_ref().map(|authority| {
            InternalCertificates::new(authority.clone(), plane.certificates.clone())
        });
        if let Some(internal) = &internal {
            internal.update(config.internal_sites()).await;
            tokio::spawn(internal.clone().run());
        }
        tokio::spawn(acme.clone().run_on_demand(plane.certificates.demands()));
        plane.edge.apply(&config.edge)?;
        if let (Some(section), Some(authority)) = (&config.acme_server, &authority) {
            acme_server::serve::start(&config, section, authority, store)?;
        }
        let publishing = Arc::new(Publishing::default());
        let console = config.console.as_ref().zip(authority.as_ref());
        let console = console.map(|(section, authority)| {
            let listener = plane.listen(section.listen).with_context(|| {
                format!(
                    "cannot listen on {} ([console] listen): choose another port",
                    section.listen
                )
            })?;
            anyhow::Ok((listener, Arc::<Sessions>::default(), authority.clone()))
        });
        let console = console.transpose()?;
        let door = console
            .as_ref()
            .map(|(listener, sessions, _)| anyhow::Ok((listener.local_addr()?, sessions.clone())));
        let daemon = Arc::new(Daemon {
            config: plane.config.clone(),
            mesh: plane.mesh.clone(),
            relay: plane.relay.clone(),
            edge: plane.edge.clone(),
            site_files: plane.site_files.clone(),
            acme,
            internal,
            agent,
            authority,
            interception: plane.interception.clone(),
            watching: plane.watching.clone(),
            publishing: publishing.clone(),
            console: door.transpose()?,
            sandbox: plane.sandbox,
            release: plane.release.clone(),
            started: plane.started,
            taking_over: AtomicBool::new(predecessor.is_some()),
            reloading: tokio::sync::Mutex::default(),
        });
        let probes = config.node.admin.map(|addr| {
            let listener = plane.listen(addr);
            listener.with_context(|| {
                format!(
                    "cannot listen on {addr} ([node] admin): choose another port, or set admin = \"off\""
                )
            })
        });
        // From here on a successor can connect; it waits until this process is ready to hand over.
        let door = Door::open(state.path())?;
        admin::start(daemon.clone(), probes.transpose()?, state.path()).await?;
        tokio::spawn(enforce(plane.mesh.clone(), plane.relay.clone()));
        if let Some((predecessor, expected)) = predecessor {
            take_over(&daemon, predecessor, expected).await?;
            daemon.taking_over.store(false, Relaxed);
            plane.sockets.close_rest();
            tokio::spawn(complete(daemon.clone()));
        }
        // From here on this process owns the node.
        let guard = Guard { config: plane.config.clone(), state: PrivateDir::open(state.path())? };
        let next = tokio::spawn(async move { door.successor(guard).await });
        let (stop, stopped) = watch::channel(false);
        let rules = plane.interception.clone().map(|interception| {
            let (of, mesh) = (plane.config.clone(), daemon.mesh.clone());
            tokio::spawn(interception.run(move || of.load_full(), mesh, stopped))
        });
        let watching = plane.watching.clone().map(|host| {
            let (of, relay, agent) = (plane.config.clone(), plane.relay.clone(), &daemon.agent);
            let dir = PrivateDir::open(state.path())?;
            let run = host.run(move || of.load_full(), relay, agent.clone(), dir, stop.subscribe());
            anyhow::Ok(tokio::spawn(run))
        });
        let watching = watching.transpose()?;
        if let Some((listener, sessions, authority)) = console {
            start_console(&daemon, listener, sessions, authority, stop.subscribe())?;
        }
        tokio::spawn(daemon.site_files.clone().watch());
        tokio::spawn(daemon.acme.clone().run());
        tokio::spawn(health::keep(plane.edge.clone(), PrivateDir::open(state.path())?));
        if let Some(authority) = daemon.authority.clone() {
            tokio::spawn(publishing.run(authority, plane.config.clone()));
        }
        let reporting = Reporting::begin(PrivateDir::open(state.path())?);
        tokio::spawn(reporting.run(daemon.clone()));
        tokio::spawn(watchdog());
        let (node, trust_domain) = (&config.node.name, &config.node.trust_domain);
        let (version, workers) = (env!("CARGO_PKG_VERSION"), plane.workers);
        tracing::info!(%node, %trust_domain, version, workers, "node started");
        let started = daemon.clone();
        tokio::spawn(async move {
            started.agent.wait_ready().await;
            if started.not_ready().is_none() {
                tracing::info!("this node is ready");
            }
        });
        notify(&[NotifyState::Ready, NotifyState::Status("running")]);
        Ok(Control { plane, state, daemon, next, rules, watching, stop })
    }

    /// Runs until the node is told to stop or another process wants to take over.
    async fn serve(
        &mut self,
        mut hangup: Signal,
        (terminate, interrupt): &mut (Signal, Signal),
    ) -> anyhow::Result<Option<Successor>> {
        loop {
            tokio::select! {
                _ = hangup.recv() => {
                    let begun = NotifyState::monotonic_usec_now();
                    notify(&[Some(NotifyState::Reloading), begun.ok()].into_iter().flatten().collect::<Vec<_>>());
                    // `reload` logs the outcome.
                    let _ = self.daemon.reload().await;
                    notify(&[NotifyState::Ready]);
                }
                successor = &mut self.next => return Ok(Some(successor?)),
                _ = terminate.recv() => return Ok(None),
                _ = interrupt.recv() => return Ok(None),
            }
        }
    }

    async fn end(
        self,
        successor: Option<Successor>,
        (terminate, interrupt): &mut (Signal, Signal),
    ) -> Turn {
        let Control { plane, state, daemon, rules, watching, stop, .. } = self;
        if let Some(interception) = &plane.interception {
            interception.end_trial().await;
        }
        if successor.is_none() {
            notify(&[NotifyState::Stopping]);
            let limit = daemon.config.load().node.drain;
            tracing::info!(
                limit_seconds = limit.as_secs(),
                "stopping: waiting for connections to finish (a second signal closes them)"
            );
            tokio::select! {
                cut = plane.drain(limit) => tracing::info!(cut, "drained"),
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            plane.drain(Duration::ZERO).await;
        }
        if let Err(error) = health::save(&state, &plane.edge.status()) {
            tracing::warn!(%error, "cannot save the HSTS state of the sites");
        }
        stop.send_replace(true);
        for task in [rules, watching].into_iter().flatten() {
            let _ = task.await;
        }
        let ready = daemon.agent.ready();
        daemon.agent.shutdown().await;
        if let Some(authority) = &daemon.authority {
            authority.shutdown().await;
        }
        let _ = std::fs::remove_file(socket_path(state.path()));
        match successor {
            Some(successor) => Turn::Passes { successor, ready },
            None => {
                tracing::info!("stopped");
                Turn::Stopped
            }
        }
    }
}

/// Serves the console until `end`.
fn start_console(
    daemon: &Arc<Daemon>,
    listener: TcpListener,
    sessions: Arc<Sessions>,
    authority: AuthorityHandle,
    end: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let address = listener.local_addr()?;
    let (status, registry, sites) = (daemon.clone(), daemon.clone(), daemon.clone());
    let sources = Sources {
        authority,
        status: Box::new(move || status.status()),
        registry: Box::new(move || registry.registry()),
        is_site: Box::new(move |host| sites.config().is_console_site(host)),
        scans: daemon.config().console.as_ref().and_then(|console| console.scans.clone()),
    };
    let console = Arc::new(Console::new(sources, address, sessions));
    let listener = tokio::net::TcpListener::from_std(listener)?;
    tokio::spawn(crate::web::server::serve(console, listener, None, end));
    tracing::info!(listen = %address, "the console is served");
    Ok(())
}

/// The authority, if this node runs it, and the node's store.
async fn start_authority(
    plane: &Plane,
    config: &Config,
    state: &PrivateDir,
) -> anyhow::Result<(Option<AuthorityHandle>, Arc<dyn Store>)> {
    let Some(section) = &config.authority else {
        return Ok((None, Arc::new(SqliteStore::open(state.path().join("edge.db")).await?)));
    };
    let params = AuthorityParams::from_config(config, section)?;
    let dir = PrivateDir::open(params.dir.clone())?;
    let addr = params.listen;
    let socket = plane.listen(addr);
    let socket = socket.map_err(|source| AuthorityError::Bind { addr, source })?;
    let store = Arc::new(SqliteStore::open(dir.path().join("store.db")).await?);
    Ok((Some(Authority::start_on(socket, params, store.clone()).await?), store))
}

/// Where the certificates of sites are stored, their owner, and the work that the agent does for it.
async fn certificate_store(
    config: &Config,
    is_authority: bool,
    store: &Arc<dyn Store>,
) -> anyhow::Result<(Arc<dyn Store>, Id, Option<Errands>)> {
    let Some(service) = &config.share else {
        return Ok((store.clone(), Id::Node(config.node.name.clone()), None));
    };
    let whose = Id::Service(service.clone());
    if is_authority {
        return Ok((store.clone(), whose, None));
    }
    let times = SharedTimes::default();
    let (shared, errands) = SharedStore::open(store.clone(), service.clone(), times).await?;
    Ok((Arc::new(shared), whose, Some(errands)))
}

/// Starts the management of ACME certificates. Stored certificates are served when this returns.
async fn start_acme(
    plane: &Plane,
    config: &Config,
    state: &PrivateDir,
    (kept, whose): (Arc<dyn Store>, Id),
) -> anyhow::Result<Arc<Acme>> {
    let (me, key) = (config.node.name.as_str(), acme::seal_key(state)?);
    let (clock, serve) = (Arc::new(RealClock), plane.certificates.clone());
    let hook = plane.dns_hook.clone();
    let acme = Acme::new(kept, &whose.to_string(), me, key, clock, serve, hook);
    // Stored certificates are served even if no CA can be used.
    let cas = acme::cas(&config.acme).unwrap_or_else(|error| {
        tracing::error!(error = chain(&error), "site certificates are neither ordered nor renewed");
        Vec::new()
    });
    acme.update(config.acme_sites(), cas);
    acme.update_on_demand(config.on_demand_sites());
    // Stored certificates are in place before the first client connects.
    acme.publish().await?;
    Ok(acme)
}

/// Tells the previous process that this one is ready, as soon as it is. `expected`: the previous process was ready.
async fn take_over(
    daemon: &Arc<Daemon>,
    predecessor: Predecessor,
    expected: bool,
) -> anyhow::Result<()> {
    if expected && tokio::time::timeout(READY, daemon.agent.wait_ready()).await.is_err() {
        let why = daemon.not_ready().unwrap_or_default();
        bail!("this process did not become ready, so the previous one keeps running: {why}");
    }
    let version = predecessor.version.clone();
    tokio::task::spawn_blocking(|| predecessor.ready()).await??;
    tracing::info!(previous = version, "upgrade done: this process has taken over");
    Ok(())
}

/// Binds the UDP ports of the previous process as soon as they are free.
async fn complete(daemon: Arc<Daemon>) {
    while daemon.edge.is_incomplete() {
        tokio::time::sleep(Duration::from_millis(250)).await;
        daemon.complete_edge().await;
    }
}

async fn start_agent(
    config: &Config,
    mesh: Arc<Mesh>,
    authority: Option<&AuthorityHandle>,
    errands: Option<Errands>,
) -> anyhow::Result<AgentHandle> {
    let mut params = AgentParams::from_config(config)?;
    if let Some(authority) = authority {
        let services = config.claimed();
        let token = authority.own_token(config.node.name.clone(), services).await?;
        params.token = TokenSource::Given(Arc::new(token));
        params.own_authority(authority.loopback_address(), authority.join_address());
    }
    Ok(Agent::start_sharing(params, mesh, errands).await?)
}

/// Whenever the trust bundle changes, closes the connections of revoked identities.
async fn enforce(mesh: Arc<Mesh>, relay: Arc<Relay>) {
    let mut changes = mesh.changes();
    loop {
        match relay.cut_revoked() {
            0 => {}
            closed => tracing::warn!(closed, "closed connections of revoked identities"),
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Tells systemd's watchdog, if it is enabled, that the control part is alive.
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
        tracing::debug!(%error, "cannot notify systemd");
    }
}

/// Takes the lock of the state directory, which only one process may hold.
pub(crate) fn lock(state_dir: &Path) -> anyhow::Result<File> {
    let path = state_dir.join("lock");
    let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => bail!(
            "another wiretight process uses the state directory {}: `wiretight status` shows its state, `wiretight upgrade` takes over from it",
            state_dir.display()
        ),
        Err(std::fs::TryLockError::Error(e)) => {
            Err(e).context(format!("cannot lock {}", path.display()))
        }
    }
}

/// Raises the limit of open files to the hard limit: a relay needs two descriptors per connection.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// Files named in the environment that the clients of S3 and of CAs read while running.
fn named_in_the_environment() -> impl Iterator<Item = PathBuf> {
    let files =
        ["SSL_CERT_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"];
    let files = files.into_iter().filter_map(std::env::var_os).map(PathBuf::from);
    // The sandbox allows the directory that a file is in.
    let folder = std::env::var_os("SSL_CERT_DIR").map(|dir| PathBuf::from(dir).join("any"));
    files.chain(folder)
}
