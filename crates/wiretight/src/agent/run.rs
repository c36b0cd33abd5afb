//! The agent's loop: get a node identity (join, rejoin), keep a stream to the authority, renew certificates, apply pushed
//! state. One task does all of this. Any failure ends the stream, and the loop starts again after a pause.

mod enter;
mod errands;
mod renew;
mod report;
mod stream;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};
use wiretight_keys::x509::fingerprint;
use wiretight_keys::{Id, JoinToken, Refusal, Revocations, Role, SigningKey};
use wiretight_proxy::clock::now;
use wiretight_proxy::network::HostPort;
use wiretight_proxy::{Identity, Mesh};
use wiretight_scan::passive::totals::Hour;

use super::link::LinkError;
use super::shared::{Errand, Errands};
use super::state::{Disk, Membership, Saved, contact_interval};
use super::{AgentParams, AgentStatus, AgentTimes, IdentityStatus, is_ready, membership};
use crate::clock::{Steps, uptime};
use crate::control::report::NodeReport;
use crate::control::{Blob, ControlError, Offer, State};
use crate::private_dir::FileError;
use stream::Link;

/// Queued certificate requests of other programs (`svid fetch`).
const MAX_WAITING: usize = 64;
/// If a stream lasted this long, the next failure restarts the backoff.
const GOOD_STREAM: Duration = Duration::from_secs(5);
/// How often to check whether the clock was set.
const TICK: Duration = Duration::from_secs(5);
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);

const ALONE: &str = "this node has not joined a mesh. Join with a token first (`wiretight join`).";

type Reply<T> = oneshot::Sender<Result<T, String>>;
type Chain = Vec<CertificateDer<'static>>;

/// A request of the handle to the loop.
pub(super) enum Command {
    Update(Box<AgentParams>),
    Renew(Reply<()>),
    Sign(Vec<u8>, Reply<Chain>),
    /// Totals for the authority. The reply is whether it has them; if not, it will never take them.
    Totals(Box<Hour>, Reply<bool>),
    /// The node's report, from now on.
    Report(Box<NodeReport>),
}

/// Why there is no stream, or it has ended.
enum Trouble {
    /// Try again after a pause.
    Retry(String),
    /// The same, because the authority is unreachable.
    Away(String),
    /// No error: connect again at once.
    Again,
    /// The authority has removed this node.
    Removed(String),
}

impl From<ControlError> for Trouble {
    fn from(e: ControlError) -> Trouble {
        Trouble::Retry(format!("the stream to the authority ended: {e}"))
    }
}

impl From<LinkError> for Trouble {
    fn from(e: LinkError) -> Trouble {
        match e {
            LinkError::Unreachable { .. } => Trouble::Away(e.to_string()),
            e => Trouble::Retry(e.to_string()),
        }
    }
}

/// The next renewal of an identity.
#[derive(Default)]
struct Renewal {
    /// Milliseconds since 1970: certificates expire by the wall clock.
    due: u64,
    /// After a failure this replaces `due`, because pauses must not depend on a clock that may be wrong.
    retry: Option<Instant>,
    failures: u32,
    error: Option<String>,
    in_flight: bool,
}

impl Renewal {
    /// Makes it due now.
    fn now(&mut self) {
        (self.due, self.retry) = (0, None);
    }

    /// How long until it is due.
    fn wait(&self, now_ms: u64) -> Duration {
        match self.retry {
            Some(at) => at.saturating_duration_since(Instant::now()),
            None => Duration::from_millis(self.due.saturating_sub(now_ms)),
        }
    }
}

/// A caller that waits until every identity was renewed.
struct Waiter {
    /// For each identity, the number of the first request that counts.
    left: BTreeMap<Id, u64>,
    reply: Reply<()>,
}

/// An open certificate request.
enum Pending {
    Renew { id: Id, key: SigningKey },
    Fetch(Reply<Chain>),
    Totals(Reply<bool>),
    Report,
}

/// The loop's state.
pub(super) struct Run {
    params: AgentParams,
    mesh: Arc<Mesh>,
    /// Locked during writes, because a write continues when the loop is stopped.
    disk: Arc<tokio::sync::Mutex<Disk>>,
    inbox: mpsc::Receiver<Command>,
    /// Requests of the [`SharedStore`](super::SharedStore).
    errands: Option<mpsc::Receiver<Errand>>,
    status: watch::Sender<AgentStatus>,
    enrolment: Option<Arc<SigningKey>>,
    membership: Option<Membership>,
    /// The state in use; its bundle is that of the last join, if that is newer.
    state: State,
    identities: BTreeMap<Id, Arc<Identity>>,
    /// Expired identities from disk, whose keys sign the link to the next ones.
    expired: BTreeMap<Id, Arc<Identity>>,
    renewals: BTreeMap<Id, Renewal>,
    waiters: Vec<Waiter>,
    fetches: VecDeque<(Vec<u8>, Reply<Chain>)>,
    next_request: u64,
    removed: bool,
    /// The authority did not accept the node's certificate: get a new one by rejoining.
    distrusted: bool,
    announced: Vec<Offer>,
    /// The report about this node, and its number.
    own_report: Option<(u64, Box<NodeReport>)>,
    /// There are identities that are not in the mesh yet.
    has_new: bool,
    /// The roots and revocations that were last put into the mesh.
    bundle: Option<(Vec<Blob>, Revocations)>,
    /// When the last message of the authority arrived, or the process started, by [`uptime`].
    heard: Duration,
    /// The time of contact that is saved on disk.
    contact_noted: u64,
    steps: Steps,
    /// When the clock was last checked.
    looked: Instant,
}

impl Run {
    /// Puts the saved state into the mesh.
    pub(super) fn new(
        params: AgentParams,
        mesh: Arc<Mesh>,
        disk: Disk,
        saved: Saved,
        inbox: mpsc::Receiver<Command>,
        errands: Option<Errands>,
    ) -> (Run, watch::Receiver<AgentStatus>) {
        let Saved { enrolment, membership, identities, bundle, state } = saved;
        if enrolment.is_none() && membership.is_some() {
            tracing::error!(
                "this node's enrolment key is lost: after its certificate expires it needs a new join token"
            );
        }
        let mut state = state.unwrap_or_default();
        state.bundle = bundle.iter().map(Blob::from).collect();
        let status = AgentStatus {
            node: params.node.clone(),
            trust_domain: params.trust_domain.clone(),
            connected: false,
            authority: None,
            last_contact: None,
            version: state.version,
            removed: false,
            alone: false,
            ready: false,
            identities: Vec::new(),
            instances: Vec::new(),
            refused: None,
            unused: Vec::new(),
            last_error: None,
        };
        let (status, receiver) = watch::channel(status);
        let mut run = Run {
            params,
            mesh,
            disk: Arc::new(tokio::sync::Mutex::new(disk)),
            inbox,
            errands: errands.map(|e| e.0),
            status,
            enrolment: enrolment.map(Arc::new),
            membership,
            state,
            identities: BTreeMap::new(),
            expired: BTreeMap::new(),
            renewals: BTreeMap::new(),
            waiters: Vec::new(),
            fetches: VecDeque::new(),
            next_request: 1,
            removed: false,
            distrusted: false,
            announced: Vec::new(),
            own_report: None,
            has_new: false,
            bundle: None,
            heard: uptime(),
            contact_noted: 0,
            steps: Steps::new(),
            looked: Instant::now(),
        };
        if let Err(e) = run.put_bundle() {
            tracing::error!("the saved trust bundle is invalid: {e}");
            run.state.version = 0;
        }
        run.mesh.set_registry(run.state.registry.clone());
        let wanted = run.wanted();
        for identity in identities {
            let id = identity.id().id.clone();
            let ours = identity.id().trust_domain == run.params.trust_domain;
            if ours && wanted.contains(&id) && identity.is_valid() {
                run.schedule(&id, &identity);
                run.identities.insert(id, Arc::new(identity));
            } else if ours && wanted.contains(&id) {
                run.expired.insert(id, Arc::new(identity));
            }
        }
        run.drop_revoked();
        run.renew_what_peers_refuse();
        run.put_identities();
        run.report(|_| {});
        (run, receiver)
    }

    pub(super) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        tokio::select! {
            () = self.forever() => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
        self.report(|s| s.connected = false);
        // Wait for a running write, so that the directory can be opened again.
        drop(self.disk.lock().await);
    }

    async fn forever(&mut self) {
        let mut failures = 0;
        loop {
            if self.is_alone() {
                self.report(|s| s.last_error = None);
                match self.inbox.recv().await {
                    Some(command) => self.command(command).await,
                    None => std::future::pending().await,
                }
                continue;
            }
            let began = Instant::now();
            let Err(trouble) = self.attempt().await;
            for renewal in self.renewals.values_mut() {
                renewal.in_flight = false;
            }
            let connected = self.status.borrow().connected;
            if connected && began.elapsed() >= GOOD_STREAM {
                failures = 0;
            }
            let times = self.params.times;
            let away = matches!(trouble, Trouble::Away(_));
            let (wait, error) = match trouble {
                Trouble::Again => (Duration::ZERO, None),
                Trouble::Retry(why) | Trouble::Away(why) => {
                    let longest = longest_wait(&times, away, self.has_no_identity());
                    let wait = backoff(times.backoff_min, longest, failures);
                    failures = failures.saturating_add(1);
                    tracing::warn!("{why}; trying again in {wait:.1?}");
                    (wait, Some(why))
                }
                Trouble::Removed(why) => {
                    self.leave(&why).await;
                    (times.removed_retry, Some(why))
                }
            };
            self.report(|s| {
                s.connected = false;
                s.last_error = error.or(s.last_error.take());
            });
            self.wait(wait, away).await;
        }
    }

    /// Whether the node needs no mesh and is not in one.
    fn is_alone(&self) -> bool {
        !self.params.needs_mesh && self.membership.is_none() && !self.removed
    }

    /// Whether the node's own certificate is missing or has expired, so that nothing works.
    fn has_no_identity(&self) -> bool {
        self.mesh.identity(&Id::Node(self.params.node.clone())).is_none()
    }

    /// Saves the time of contact for an older process of this node that is draining and has no stream.
    async fn note_contact(&mut self) {
        let Some(limit) = self.params.max_staleness else { return };
        let at = now();
        if at.abs_diff(self.contact_noted) >= contact_interval(limit).as_secs() {
            self.contact_noted = at;
            self.save(move |disk| disk.save_contact(at)).await;
        }
    }

    /// Waits; returns early for a command. `away`: the authority is unreachable.
    async fn wait(&mut self, wait: Duration, away: bool) {
        let mut until = Instant::now() + wait;
        let had_identity = !self.has_no_identity();
        while Instant::now() < until {
            if away && had_identity && self.has_no_identity() {
                // The identity has expired meanwhile: shorten a long wait.
                let longest = self.params.times.backoff_max_without_identity;
                until = until.min(Instant::now() + longest.mul_f64(chance()));
            }
            // Ticks, to notice identities that expire meanwhile.
            let tick = until.min(Instant::now() + TICK);
            tokio::select! {
                () = sleep_until(tick) => {
                    let stepped = self.look_at_the_clock();
                    self.report(|_| {});
                    if stepped {
                        return;
                    }
                }
                Some(command) = self.inbox.recv() => {
                    self.command(command).await;
                    // Frequent commands must not cause a tight loop.
                    sleep(self.params.times.backoff_min).await;
                    return;
                }
            }
        }
    }

    // ---- State.

    /// Applies a pushed state, then saves it.
    async fn apply(&mut self, state: State) -> Result<(), String> {
        if state.bundle.is_empty() {
            return Err("its trust bundle is empty".into());
        }
        let old = std::mem::replace(&mut self.state, state);
        if let Err(e) = self.put_bundle() {
            self.state = old;
            return Err(e);
        }
        self.mesh.set_registry(self.state.registry.clone());
        if self.drop_revoked() {
            self.put_identities();
        }
        self.renew_what_peers_refuse();
        let saved = self.state.clone();
        self.save(move |disk| disk.save_state(&saved)).await;
        tracing::debug!(version = self.state.version, "applied the pushed state");
        Ok(())
    }

    /// Renews identities at once that peers with the same state would refuse: those under a root that was retired by
    /// force or a revoked intermediate, and those from before `[witnesses]` was set up.
    fn renew_what_peers_refuse(&mut self) {
        let unbelieved = self.identities.iter().filter(|(_, i)| self.disbelieved(i).is_some());
        let unbelieved: Vec<Id> = unbelieved.map(|(id, _)| id.clone()).collect();
        for id in unbelieved {
            if let Some(renewal) = self.renewals.get_mut(&id) {
                renewal.now();
            }
        }
    }

    // ---- Commands.

    async fn command(&mut self, command: Command) {
        match command {
            Command::Update(params) => self.update(*params).await,
            Command::Report(report) => self.take_report(report),
            Command::Totals(_, reply) => {
                let _ = reply.send(Err("there is no connection to the authority".into()));
            }
            Command::Renew(reply) => {
                if self.removed {
                    let _ = reply.send(Err("this node was removed from the mesh".into()));
                    return;
                }
                if self.is_alone() {
                    let _ = reply.send(Err(ALONE.into()));
                    return;
                }
                let first = self.next_request;
                let left = self.wanted().into_iter().map(|id| (id, first)).collect();
                self.waiters.push(Waiter { left, reply });
                self.renewals.values_mut().for_each(Renewal::now);
            }
            Command::Sign(csr, reply) => {
                if self.is_alone() {
                    let _ = reply.send(Err(ALONE.into()));
                } else if self.fetches.len() < MAX_WAITING {
                    self.fetches.push_back((csr, reply));
                } else {
                    let _ = reply.send(Err("too many requests are waiting already".into()));
                }
            }
        }
        // Forget callers that no longer wait.
        self.waiters.retain(|w| !w.reply.is_closed());
        self.fetches.retain(|(_, reply)| !reply.is_closed());
    }

    async fn update(&mut self, mut params: AgentParams) {
        let own = &self.params;
        if (&params.node, &params.trust_domain) != (&own.node, &own.trust_domain)
            || params.dir != own.dir
        {
            tracing::error!("changes of name, trust_domain and state_dir in [node] need a restart");
            params.node = own.node.clone();
            params.trust_domain = own.trust_domain.clone();
            params.dir = own.dir.clone();
        }
        if params.transparency != self.params.transparency {
            self.mesh.set_transparency(params.transparency.clone());
            self.renew_what_peers_refuse();
        }
        self.params = params;
        let wanted = self.wanted();
        let unwanted: Vec<Id> =
            self.identities.keys().filter(|id| !wanted.contains(id)).cloned().collect();
        self.renewals.retain(|id, _| wanted.contains(id));
        for waiter in &mut self.waiters {
            waiter.left.retain(|id, _| wanted.contains(id));
        }
        for waiter in self.waiters.extract_if(.., |w| w.left.is_empty()) {
            let _ = waiter.reply.send(Ok(()));
        }
        if !unwanted.is_empty() {
            self.identities.retain(|id, _| wanted.contains(id));
            self.put_identities();
            self.save(move |disk| unwanted.iter().try_for_each(|id| disk.remove_identity(id)))
                .await;
        }
        self.report(|_| {});
    }

    // ---- Internal.

    fn wanted(&self) -> BTreeSet<Id> {
        if self.is_alone() {
            return BTreeSet::new();
        }
        let services = self.params.services.iter().cloned().map(Id::Service);
        services.chain([Id::Node(self.params.node.clone())]).collect()
    }

    fn wants(&self, id: &Id) -> bool {
        let is_ours = match id {
            Id::Service(service) => self.params.services.contains(service),
            Id::Node(node) => *node == self.params.node,
            Id::Authority => false,
        };
        is_ours && !self.is_alone()
    }

    /// The addresses to try: first those in the configuration, then those in the token or on disk.
    fn addresses(&self, token: Option<&JoinToken>) -> Vec<HostPort> {
        let known = match (token, &self.membership) {
            (Some(token), _) => membership(token).authority,
            (None, Some(membership)) => membership.authority.clone(),
            (None, None) => match self.params.token.load() {
                Ok(Some(token)) => membership(&token).authority,
                Ok(None) | Err(_) => Vec::new(),
            },
        };
        let mut all = Vec::new();
        for addr in self.params.authority.iter().chain(&known) {
            if !all.contains(addr) {
                all.push(addr.clone());
            }
        }
        all
    }

    fn put_bundle(&mut self) -> Result<(), String> {
        let content = (self.state.bundle.clone(), self.state.revocations());
        // Setting the bundle has everything verified again, so skip it if nothing has changed.
        if self.bundle.as_ref() == Some(&content) {
            return Ok(());
        }
        let bundle = self.state.trust_bundle(&self.params.trust_domain)?;
        let known = self.mesh.bundle();
        for root in bundle.roots().iter().filter(|r| !known.roots().contains(r)) {
            let print = wiretight_keys::token::hex(&fingerprint(root));
            tracing::info!(root = %print, "new trusted root");
        }
        self.mesh.set_bundle(bundle);
        self.bundle = Some(content);
        Ok(())
    }

    /// Renews every certificate that is not valid now (expired or not yet valid). Returns whether the clock was set. In
    /// that case all certificates are verified completely, and failed renewals are retried at once.
    fn look_at_the_clock(&mut self) -> bool {
        if self.looked.elapsed() < TICK {
            return false;
        }
        self.looked = Instant::now();
        let stepped = self.steps.look();
        if let Some(seconds) = stepped {
            tracing::warn!(
                seconds,
                "this machine's clock was set; certificates are verified again, and invalid ones are renewed"
            );
        }
        let holds =
            |i: &Identity| i.is_valid() && (stepped.is_none() || self.disbelieved(i).is_none());
        let lost: Vec<Id> =
            self.identities.values().filter(|i| !holds(i)).map(|i| i.id().id.clone()).collect();
        for (id, renewal) in &mut self.renewals {
            if stepped.is_some() {
                (renewal.failures, renewal.retry) = (0, renewal.retry.map(|_| Instant::now()));
            }
            if renewal.retry.is_none() && lost.contains(id) {
                renewal.now();
            }
        }
        stepped.is_some()
    }

    /// Checks `max_staleness`: when out of contact for too long, this node's list of revocations is too old. Without any
    /// contact, the time counts from the start of the process. It does not depend on the wall clock.
    fn look_at_the_time(&self) {
        let Some(limit) = self.params.max_staleness else {
            self.mesh.set_without_news(false);
            return;
        };
        let silent = uptime().saturating_sub(self.heard).as_secs();
        let too_old = silent > limit.as_secs();
        if self.mesh.set_without_news(too_old) {
            match too_old {
                true => tracing::error!(
                    "OUT OF CONTACT WITH THE AUTHORITY for {silent} s, longer than max_staleness ({} s): connections are closed, and new ones fail until contact is restored",
                    limit.as_secs()
                ),
                false => tracing::info!("contact with the authority is restored"),
            }
        }
    }

    /// Why other nodes with the same state refuse an identity of this node that has not expired.
    fn disbelieved(&self, identity: &Identity) -> Option<Refusal> {
        match self.mesh.verify(identity.chain(), Role::Client, UnixTime::now()) {
            Err(refusal) if identity.is_valid() && refusal != Refusal::NoNews => Some(refusal),
            _ => None,
        }
    }

    fn put_identities(&self) {
        self.mesh.set_identities(self.identities.clone());
    }

    /// Drops revoked identities of this node. Returns whether there were any.
    fn drop_revoked(&mut self) -> bool {
        let bundle = self.mesh.bundle();
        let before = self.identities.len();
        let renewals = &mut self.renewals;
        self.identities.retain(|id, identity| {
            let keep = !bundle.is_revoked(&identity.leaf().serial);
            if !keep {
                tracing::warn!(%id, "this identity was revoked and is dropped; requesting a new one");
                renewals.remove(id);
            }
            keep
        });
        self.identities.len() != before
    }

    /// A failed write is only logged: the node continues, but could not restart without the authority.
    async fn save(&self, write: impl FnOnce(&Disk) -> Result<(), FileError> + Send + 'static) {
        if let Err(e) = self.on_disk(write).await {
            tracing::error!(
                "cannot save state, so a restart will need the authority: {e}: {}",
                e.source
            );
        }
    }

    async fn on_disk(
        &self,
        write: impl FnOnce(&Disk) -> Result<(), FileError> + Send + 'static,
    ) -> Result<(), FileError> {
        let disk = self.disk.clone().lock_owned().await;
        let path = disk.path().to_owned();
        tokio::task::spawn_blocking(move || write(&disk)).await.unwrap_or_else(|e| {
            Err(FileError { doing: "write in", path, source: std::io::Error::other(e) })
        })
    }

    /// Updates the status, and wakes watchers if it changed.
    fn report(&mut self, change: impl FnOnce(&mut AgentStatus)) {
        if self.is_alone() {
            self.renewals.clear();
        }
        // Each needed identity has an entry; a new one is due at once.
        for id in self.wanted() {
            self.renewals.entry(id).or_default();
        }
        let mut new = self.status.borrow().clone();
        change(&mut new);
        self.look_at_the_time();
        let identity = |(id, renewal): (&Id, &Renewal)| {
            let held = self.identities.get(id);
            let refusal = held.and_then(|i| self.disbelieved(i));
            let held = held.map(|i| i.leaf());
            // A certificate that other nodes refuse does not count as valid.
            let period = held.map(|l| l.period).filter(|_| refusal.is_none());
            IdentityStatus {
                id: id.clone(),
                serial: held.map(|l| l.serial),
                not_before: period.map(|p| p.not_before),
                not_after: period.map(|p| p.not_after),
                next_renewal: (renewal.due > 0).then_some(renewal.due / 1000),
                error: refusal.map(|r| r.to_string()).or_else(|| renewal.error.clone()),
            }
        };
        new.identities = self.renewals.iter().map(identity).collect();
        new.instances.clone_from(&self.announced);
        new.unused = self.mesh.unused().to_vec();
        if self.state.unreadable > 0 {
            let n = self.state.unreadable;
            new.unused.push(format!("this release cannot read {n} records: update this node"));
        }
        new.version = self.state.version;
        new.removed = self.removed;
        new.alone = self.is_alone();
        new.ready = new.alone || !self.removed && !self.mesh.bundle().roots().is_empty();
        new.ready = is_ready(&new);
        self.status.send_if_modified(|status| {
            let changed = *status != new;
            *status = new;
            changed
        });
    }
}

async fn next(errands: &mut Option<mpsc::Receiver<Errand>>) -> Option<Errand> {
    errands.as_mut()?.recv().await
}

fn retry(e: &dyn std::error::Error) -> Trouble {
    Trouble::Retry(e.to_string())
}

/// The longest wait before the next attempt. It is short only while the authority is unreachable (`away`), which causes
/// no load there. If it responds but is slow or refuses, the wait is long, so that many nodes do not overload it.
fn longest_wait(times: &AgentTimes, away: bool, without_identity: bool) -> Duration {
    match away && without_identity {
        true => times.backoff_max_without_identity.min(times.backoff_max),
        false => times.backoff_max,
    }
}

/// Exponential, with full jitter.
fn backoff(min: Duration, max: Duration, failures: u32) -> Duration {
    let most = min.saturating_mul(1 << failures.min(20)).clamp(min, max.max(min));
    most.mul_f64(chance()).max(min / 4)
}

/// A random number between 0 and 1; 0.5 if the system has no random bytes.
fn chance() -> f64 {
    getrandom::u32().map_or(0.5, |n| f64::from(n) / f64::from(u32::MAX))
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_an_identity_retries_are_frequent_only_while_the_authority_is_unreachable() {
        let times = AgentTimes::default();
        let short = longest_wait(&times, true, true);
        assert!(short <= Duration::from_secs(5) && short >= Duration::from_secs(2), "{short:?}");
        for (away, without_identity) in [(true, false), (false, true), (false, false)] {
            assert_eq!(longest_wait(&times, away, without_identity), times.backoff_max);
        }
        // Waits are spread, so that nodes do not reconnect at the same time.
        let waits: Vec<_> = (0..100).map(|_| backoff(times.backoff_min, short, 20)).collect();
        assert!(waits.iter().any(|w| *w < short / 2) && waits.iter().any(|w| *w > short / 2));
    }

    #[test]
    fn backoff_grows_to_a_limit() {
        let (min, max) = (Duration::from_millis(100), Duration::from_secs(30));
        for failures in [0, 1, 8, 9, 20, 1000] {
            for _ in 0..100 {
                let wait = backoff(min, max, failures);
                assert!(wait >= min / 4 && wait <= max);
                assert!(wait <= min * (1 << failures.min(9)));
            }
        }
        assert!((0..100).any(|_| backoff(min, max, 20) > max / 2));
    }
}
