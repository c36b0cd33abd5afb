//! What a running node has put in force: rules made of its configuration and of what it knows of the mesh, made
//! anew whenever either changes.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::bail;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use wiretight_proxy::intercept::listing::{Counts, Flow};
use wiretight_proxy::intercept::rules::{Mode, Rules};
use wiretight_proxy::mesh::Mesh;
use wiretight_proxy::relay::{Refusal, net};

use super::refused::{self, WouldFail};
use super::{FILE, InterceptError, Keeper, Report, TrialStatus, routes};
use crate::config::Config;

/// The mark of our sockets' packets: "WT".
pub(super) const MARK: u32 = 0x5754;
/// How often the kernel's counts are read, and a failure is tried again.
const ROUND: Duration = Duration::from_secs(5);
/// How long rules of a changed file may take to be in force.
const SETTLING: Duration = Duration::from_secs(40);
/// How long the end of the node waits for the end of a trial.
const STOPPING: Duration = Duration::from_secs(5);
/// Why neighbours of the mesh's machines are protected with them.
const GROUPED: &str = "the mesh has more addresses than the kernel is asked to hold; all are protected, and neighbouring addresses with them. Remove nodes that are gone (`wiretight node list`), or group addresses in `protect`";
/// How long an answer waits for a new look at the rules.
const LOOKING: Duration = Duration::from_secs(2);
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The rules of this node.
pub(crate) struct Interception {
    keeper: Keeper,
    changed: Notify,
    /// The configuration whose rules were last put in force, or could not be.
    settled: watch::Sender<Option<Arc<Config>>>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    report: Option<Report>,
    /// What the configuration asks for.
    rules: Option<Rules>,
    /// Addresses whose connections the relay could not carry.
    would_fail: Vec<WouldFail>,
    /// Why the rules that it asks for are not in force.
    error: Option<String>,
    /// Why it is not known what is in force.
    unseen: Option<String>,
    keeper_gone: bool,
}

/// Interception as `wiretight status` shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InterceptStatus {
    /// The mode that is in force for all peers; `None`: no rules are.
    pub mode: Option<Mode>,
    /// A trial of it, if that is what it is.
    pub trial: Option<TrialStatus>,
    /// Whether the process that keeps the rules is there.
    pub keeper_alive: bool,
    /// How often somebody else changed or removed the rules, and they were mended.
    pub mended: u64,
    /// Whether a second table drops what ours would drop while ours is gone.
    pub guarded: bool,
    /// Why they are not what they should be.
    pub error: Option<String>,
    /// What the kernel has counted.
    pub counts: Counts,
    /// Since when, at least, in seconds since 1970.
    pub counted_since: u64,
    /// What strict mode would make of it.
    pub strict: Strict,
}

/// Whether strict mode would break anything.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Strict {
    /// Rules are in force, and nothing was seen that strict mode would stop or a peer refuse.
    pub ready: bool,
    /// Plaintext that has passed within a day and would not.
    pub would_stop: Vec<Flow>,
    /// What the relay would take, in any mode but observe, and could not carry.
    #[serde(default)]
    pub would_fail: Vec<WouldFail>,
}

impl Interception {
    /// Before the sandbox, and before any socket: starts whoever keeps the rules, and has each socket of this
    /// process marked. `None` where the configuration has no `[intercept]`.
    pub(crate) fn begin(config: &Config, state: &Path) -> anyhow::Result<Option<Interception>> {
        if config.intercept.is_none() {
            if state.join(FILE).exists() {
                bail!(
                    "the kernel's rules of an earlier [intercept] are kept in {}: this node would be one of those \
                     that they stop. Take them away (`wiretight down`), or have [intercept] again",
                    state.join(FILE).display()
                );
            }
            return Ok(None);
        }
        if config.relay.services.iter().any(|s| s.transparent) {
            routes::can()?;
        }
        let keeper = Keeper::start(state, config.node.landlock)?;
        net::set_mark(MARK);
        let (settled, _) = watch::channel(None);
        Ok(Some(Interception { keeper, changed: Notify::new(), settled, known: Mutex::default() }))
    }

    /// The configuration is another.
    pub(crate) fn wake(&self) {
        self.changed.notify_one();
    }

    /// Keeps the rules in force, until told to stop. They stay.
    pub(crate) async fn run(
        self: Arc<Self>,
        config: impl Fn() -> Arc<Config>,
        mesh: Arc<Mesh>,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut changes = mesh.changes();
        let (mut applied, mut known): (Option<(Rules, Arc<Config>)>, _) = (None, false);
        let mut no_looser = false;
        loop {
            let config = config();
            known |= !mesh.registry().nodes.is_empty();
            let (mut rules, grouped) = rules(&config, &mesh).unzip();
            // Sessions of services that were transparent go on until the process ends.
            if let (Some(rules), Some((old, _))) = (&mut rules, &applied) {
                rules.transparent.extend(&old.transparent);
            }
            {
                let mut known = self.known();
                known.rules.clone_from(&rules);
                known.would_fail = refused::all(&config, &mesh);
            }
            let same = applied.as_ref().is_some_and(|(old, _)| Some(old) == rules.as_ref());
            if let Some(rules) = rules.filter(|_| !same || no_looser == known) {
                // The operator has asked for them: at the start, and by a changed file.
                let anew = applied.as_ref().is_none_or(|(_, by)| !Arc::ptr_eq(by, &config));
                // Rules of before protect the peers that were known then: they are not put aside for an empty
                // registry.
                let done = match (known, anew) {
                    (false, anew) => self.keeper.apply_no_looser(&rules, anew).await,
                    (true, true) => self.keeper.apply_anew(&rules).await,
                    (true, false) => self.keeper.apply(&rules).await,
                };
                match done {
                    Ok(()) => {
                        if applied.as_ref().is_none_or(|(old, _)| old.mode != rules.mode) {
                            tracing::info!(mode = ?rules.mode, "the kernel's rules are in force");
                        }
                        applied = Some((rules, config.clone()));
                        no_looser = !known;
                        let grouped = grouped.unwrap_or_default();
                        self.note(grouped.then(|| GROUPED.to_owned()));
                    }
                    Err(error) => {
                        self.note(Some(crate::logging::chain(&error)));
                    }
                }
            }
            let good = self.look().await;
            let answered = applied.as_ref().filter(|_| good).map(|(r, _)| r.transparent.clone());
            net::set_answered(answered.unwrap_or_default());
            self.settled.send_replace(Some(config));
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                _ = changes.changed() => {}
                () = self.changed.notified() => {}
                () = tokio::time::sleep(ROUND) => {}
            }
        }
    }

    /// What is in force, as of a few seconds ago. `refusals`: the relay's.
    pub(crate) fn status(&self, refusals: &[Refusal]) -> InterceptStatus {
        let known = self.known();
        let report = known.report.clone();
        let health = report.as_ref().map(|r| r.health.clone()).unwrap_or_default();
        let counts = report.map(|r| r.counts).unwrap_or_default();
        let stops = |flow: &&Flow| known.rules.as_ref().is_some_and(|r| r.strict_would_stop(flow));
        let would_stop: Vec<Flow> = counts.flows.iter().filter(stops).cloned().collect();
        let would_fail = known.rules.as_ref().map_or_else(Vec::new, |rules| {
            refused::in_use(&known.would_fail, rules, &counts.flows, refusals)
        });
        let ready = health.mode.is_some() && would_stop.is_empty() && would_fail.is_empty();
        InterceptStatus {
            mode: health.mode,
            trial: health.trial,
            keeper_alive: !known.keeper_gone,
            mended: health.mended,
            guarded: health.guarded,
            error: match health.taken_down {
                true => Some(InterceptError::TakenDown.to_string()),
                false => {
                    known.error.clone().or(known.unseen.clone()).or(health.error).or(health.routes)
                }
            },
            counts,
            counted_since: health.counted_since,
            strict: Strict { ready, would_stop, would_fail },
        }
    }

    /// Why this machine is not as well protected as it should be.
    pub(crate) fn not_ready(&self) -> Option<String> {
        let known = self.known();
        let health = known.report.as_ref().map(|r| &r.health);
        let error = match health {
            Some(health) if health.taken_down => Some(InterceptError::TakenDown.to_string()),
            health => {
                let error = health.and_then(|h| h.error.clone().or_else(|| h.routes.clone()));
                known.error.clone().or(known.unseen.clone()).or(error)
            }
        };
        match (error, health.and_then(|h| h.mode)) {
            (Some(error), _) => {
                Some(format!("the kernel's rules are not as they should be: {error}"))
            }
            (None, None) => Some("the kernel's rules are not in force yet".into()),
            (None, Some(_)) => None,
        }
    }

    /// Why this node is not ready, if the operator has taken the rules down.
    pub(crate) fn taken_down(&self) -> Option<String> {
        let known = self.known();
        let taken_down = known.report.as_ref().is_some_and(|report| report.health.taken_down);
        taken_down.then(|| InterceptError::TakenDown.to_string())
    }

    /// Looks at the rules now, for as long as an operator who asks may wait.
    pub(crate) async fn look_now(&self) {
        let _ = tokio::time::timeout(LOOKING, self.look()).await;
    }

    /// What is in force now.
    pub(crate) async fn status_now(&self) -> InterceptStatus {
        self.look().await;
        self.status(&[])
    }

    pub(crate) fn keeper(&self) -> &Keeper {
        &self.keeper
    }

    /// Waits until the rules of a configuration are in force, or could not be put so.
    pub(crate) async fn settle(&self, config: &Arc<Config>) {
        let mut settled = self.settled.subscribe();
        let of =
            |now: &Option<Arc<Config>>| now.as_ref().is_some_and(|now| Arc::ptr_eq(now, config));
        let _ = tokio::time::timeout(SETTLING, settled.wait_for(of)).await;
    }

    /// The node is about to stop, and a service manager may kill the keeper before it sees that; or another process
    /// takes over.
    pub(crate) async fn end_trial(&self) {
        match tokio::time::timeout(STOPPING, self.keeper.undo_trial()).await {
            Ok(Ok(()) | Err(InterceptError::NoTrial | InterceptError::Gone(_))) => {}
            Ok(Err(error)) => tracing::error!(%error, "the trial's mode is still in force"),
            // It takes it back when we are gone.
            Err(_) => {}
        }
    }

    /// Whether rules and routes are in force.
    async fn look(&self) -> bool {
        let report = self.keeper.report().await;
        let mut known = self.known();
        known.keeper_gone = matches!(report, Err(InterceptError::Gone(_)));
        match report {
            Ok(report) => {
                let good = report.health.mode.is_some() && report.health.routes.is_none();
                let was = known.report.as_ref().is_some_and(|before| before.health.taken_down);
                if report.health.taken_down && !was {
                    tracing::error!("THE KERNEL'S RULES ARE GONE: {}", InterceptError::TakenDown);
                }
                known.report = Some(report);
                known.unseen = None;
                good
            }
            Err(error) => {
                known.unseen = Some(crate::logging::chain(&error));
                false
            }
        }
    }

    /// Why the rules that are in force are not those that should be. It is tried again each [`ROUND`], and told once.
    fn note(&self, error: Option<String>) {
        let mut known = self.known();
        if known.error != error {
            match &error {
                Some(error) => {
                    tracing::error!(error, "the kernel's rules are not as they should be")
                }
                None => tracing::info!("the kernel's rules are as they should be again"),
            }
            known.error = error;
        }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The rules of a configuration, for the mesh as it is known now; and whether addresses had to be grouped into networks.
fn rules(config: &Config, mesh: &Mesh) -> Option<(Rules, bool)> {
    let mut rules = config.rules(MARK)?;
    if config.intercept.as_ref().is_some_and(|i| i.resolvers.is_none()) {
        rules.resolvers = resolvers();
    }
    Some(rules.for_mesh(&config.node.name, &config.node.authority, mesh))
}

/// Where this machine asks for names.
fn resolvers() -> Vec<IpAddr> {
    let text = fs::read_to_string(RESOLV_CONF).unwrap_or_default();
    let server = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let address = words.next().filter(|w| *w == "nameserver").and(words.next())?;
        // A scope says by which interface.
        address.split('%').next()?.parse::<IpAddr>().ok()
    };
    let servers = text.lines().filter_map(server).filter(|ip| !ip.is_loopback());
    servers.take(8).collect()
}
