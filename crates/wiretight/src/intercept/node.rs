//! The rules of a running node: computed from its configuration and the mesh, and reloaded whenever either changes.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use wiretight_proxy::intercept::listing::{Counts, Flow};
use wiretight_proxy::intercept::rules::{Mode, Rules};
use wiretight_proxy::mesh::Mesh;
use wiretight_proxy::net;
use wiretight_proxy::relay::Refusal;

use super::refused::{self, WouldFail};
use super::{FILE, InterceptError, Keeper, OperatorError, Report, TrialStatus, routes};
use crate::config::Config;

/// The packet mark of our sockets: "WT".
pub(super) const MARK: u32 = 0x5754;
/// How often the kernel's counters are read, and a failure is retried.
const ROUND: Duration = Duration::from_secs(5);
/// How long rules of a changed file may take to be loaded.
const SETTLING: Duration = Duration::from_secs(40);
/// How long a stopping node waits for the end of a trial.
const STOPPING: Duration = Duration::from_secs(5);
/// Why addresses next to those of the mesh's machines are protected too.
const GROUPED: &str = "the mesh has more addresses than the rules can hold, so addresses were merged into networks. All mesh addresses are protected, and so are some neighbouring ones. Remove nodes that no longer exist (`wiretight node list`), or group addresses in `protect`";
/// How long a status request waits for current data on the rules.
const LOOKING: Duration = Duration::from_secs(2);
const RESOLV_CONF: &str = "/etc/resolv.conf";

pub(crate) struct Interception {
    keeper: Keeper,
    changed: Notify,
    /// The configuration whose rules were last loaded, or failed to load.
    settled: watch::Sender<Option<Arc<Config>>>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    report: Option<Report>,
    /// The rules that the configuration requires.
    rules: Option<Rules>,
    /// Addresses to which the relay could not connect.
    would_fail: Vec<WouldFail>,
    /// Why the required rules are not in force.
    error: Option<String>,
    /// Why the state of the rules is unknown.
    unseen: Option<String>,
    keeper_gone: bool,
}

/// Interception as `wiretight status` shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InterceptStatus {
    /// The mode in force for all peers; `None` if no rules are in force.
    pub mode: Option<Mode>,
    /// Present if the mode is on trial.
    pub trial: Option<TrialStatus>,
    /// Whether the process that maintains the rules is running.
    pub keeper_alive: bool,
    /// How often another program changed or removed the rules, and they were restored.
    pub mended: u64,
    /// Whether a guard table drops plaintext while the main table is missing.
    pub guarded: bool,
    /// What is wrong with the rules.
    pub error: Option<String>,
    pub counts: Counts,
    /// Counting is complete since this time (seconds since 1970).
    pub counted_since: u64,
    /// What strict mode would break.
    pub strict: Strict,
}

/// Whether strict mode would break anything.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Strict {
    /// Rules are in force, and nothing was seen that strict mode would stop or a peer refuse.
    pub ready: bool,
    /// Plaintext that passed in the last day and that strict mode would stop.
    pub would_stop: Vec<Flow>,
    /// Connections that every mode except observe would redirect to the relay, where they would fail.
    #[serde(default)]
    pub would_fail: Vec<WouldFail>,
}

impl Interception {
    /// Starts the keeper, and marks all later sockets of this process. Call it before entering the sandbox and before
    /// opening sockets. `None` without `[intercept]`.
    pub(crate) fn begin(config: &Config, state: &Path) -> anyhow::Result<Option<Interception>> {
        if config.intercept.is_none() {
            if state.join(FILE).exists() {
                bail!(
                    "the configuration has no [intercept], but rules of an earlier configuration are saved in {} and \
                     would stop this node's connections. Remove the rules with `wiretight down`, or add [intercept] again.",
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

    /// Loads rules before the node opens a port. A node that cannot start, for example because an address is missing, has
    /// then protected the machine all the same. [`Interception::run`] reports errors.
    pub(crate) async fn load_first(&self, config: &Config, mesh: &Mesh) {
        let Some((rules, _)) = rules(config, mesh) else { return };
        if let Err(error) = self.keeper.apply_no_looser(&rules, true).await {
            tracing::debug!(%error, "cannot load rules before the node has started");
        }
    }

    /// To be called when the configuration has changed.
    pub(crate) fn wake(&self) {
        self.changed.notify_one();
    }

    /// Maintains the rules until `stop`; they stay in force afterwards.
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
            // Sessions of services that were transparent before continue until the process ends.
            if let (Some(rules), Some((old, _))) = (&mut rules, &applied) {
                rules.transparent.extend(&old.transparent);
            }
            {
                let mut known = self.known.lock();
                known.rules.clone_from(&rules);
                known.would_fail = refused::all(&config, &mesh);
            }
            let same = applied.as_ref().is_some_and(|(old, _)| Some(old) == rules.as_ref());
            if let Some(rules) = rules.filter(|_| !same || no_looser == known) {
                // A start and a changed file are requests of the operator, so they override `wiretight down`.
                let anew = applied.as_ref().is_none_or(|(_, by)| !Arc::ptr_eq(by, &config));
                // Earlier rules protect the peers that were known then, so an empty registry must not replace them.
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

    /// The state of a few seconds ago. `refusals` are the relay's.
    pub(crate) fn status(&self, refusals: &[Refusal]) -> InterceptStatus {
        let known = self.known.lock();
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
                true => Some(OperatorError::TakenDown.to_string()),
                false => {
                    known.error.clone().or(known.unseen.clone()).or(health.error).or(health.routes)
                }
            },
            counts,
            counted_since: health.counted_since,
            strict: Strict { ready, would_stop, would_fail },
        }
    }

    /// The mode in force for all peers, a few seconds ago; `None` if no rules are in force.
    pub(crate) fn mode(&self) -> Option<Mode> {
        self.known.lock().report.as_ref()?.health.mode
    }

    /// Why the required rules are not in force, if they are not.
    pub(crate) fn not_ready(&self) -> Option<String> {
        let known = self.known.lock();
        let health = known.report.as_ref().map(|r| &r.health);
        let error = match health {
            Some(health) if health.taken_down => Some(OperatorError::TakenDown.to_string()),
            health => {
                let error = health.and_then(|h| h.error.clone().or_else(|| h.routes.clone()));
                known.error.clone().or(known.unseen.clone()).or(error)
            }
        };
        match (error, health.and_then(|h| h.mode)) {
            (Some(error), _) => Some(format!("problem with the kernel's rules: {error}")),
            (None, None) => Some("the kernel's rules are not in force yet".into()),
            (None, Some(_)) => None,
        }
    }

    /// Why this node is not ready, if the operator has removed the rules.
    pub(crate) fn taken_down(&self) -> Option<String> {
        let known = self.known.lock();
        let taken_down = known.report.as_ref().is_some_and(|report| report.health.taken_down);
        taken_down.then(|| OperatorError::TakenDown.to_string())
    }

    /// Updates the state of the rules, but waits no longer than [`LOOKING`].
    pub(crate) async fn look_now(&self) {
        let _ = tokio::time::timeout(LOOKING, self.look()).await;
    }

    pub(crate) async fn status_now(&self) -> InterceptStatus {
        self.look().await;
        self.status(&[])
    }

    pub(crate) fn keeper(&self) -> &Keeper {
        &self.keeper
    }

    /// Waits until the rules of a configuration are loaded, or have failed to load.
    pub(crate) async fn settle(&self, config: &Arc<Config>) {
        let mut settled = self.settled.subscribe();
        let of =
            |now: &Option<Arc<Config>>| now.as_ref().is_some_and(|now| Arc::ptr_eq(now, config));
        let _ = tokio::time::timeout(SETTLING, settled.wait_for(of)).await;
    }

    /// Call this before the node stops, because a service manager may kill the keeper before it can end the trial; and
    /// before another process takes over.
    pub(crate) async fn end_trial(&self) {
        match tokio::time::timeout(STOPPING, self.keeper.undo_trial()).await {
            // There is no trial, or the keeper has ended it.
            Ok(Ok(()) | Err(InterceptError::Operator(_) | InterceptError::Gone(_))) => {}
            Ok(Err(error)) => {
                tracing::error!(%error, "the trial could not be ended: its mode is still in force")
            }
            // The keeper ends the trial when this process is gone.
            Err(_) => {}
        }
    }

    /// Updates the state of the rules. Returns whether rules and routes are in force.
    async fn look(&self) -> bool {
        let report = self.keeper.report().await;
        let mut known = self.known.lock();
        known.keeper_gone = matches!(report, Err(InterceptError::Gone(_)));
        match report {
            Ok(report) => {
                let good = report.health.mode.is_some() && report.health.routes.is_none();
                let was = known.report.as_ref().is_some_and(|before| before.health.taken_down);
                if report.health.taken_down && !was {
                    tracing::error!(
                        "THE KERNEL'S RULES WERE REMOVED: {}",
                        OperatorError::TakenDown
                    );
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

    /// Records why the required rules are not in force. It is retried each [`ROUND`] and logged once.
    fn note(&self, error: Option<String>) {
        let mut known = self.known.lock();
        if known.error != error {
            match &error {
                Some(error) => {
                    tracing::error!(error, "problem with the kernel's rules")
                }
                None => tracing::info!("the problem with the kernel's rules is solved"),
            }
            known.error = error;
        }
    }
}

/// The rules for a configuration and the current mesh; and whether addresses had to be merged into networks.
fn rules(config: &Config, mesh: &Mesh) -> Option<(Rules, bool)> {
    let mut rules = config.rules(MARK)?;
    if config.intercept.as_ref().is_some_and(|i| i.resolvers.is_none()) {
        rules.resolvers = resolvers();
    }
    Some(rules.for_mesh(&config.node.name, &config.node.authority, mesh))
}

/// This machine's DNS servers.
fn resolvers() -> Vec<IpAddr> {
    let text = fs::read_to_string(RESOLV_CONF).unwrap_or_default();
    let server = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let address = words.next().filter(|w| *w == "nameserver").and(words.next())?;
        // Without the scope, which names the interface.
        address.split('%').next()?.parse::<IpAddr>().ok()
    };
    let servers = text.lines().filter_map(server).filter(|ip| !ip.is_loopback());
    servers.take(8).collect()
}
