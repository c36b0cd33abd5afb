//! The agent's loop: get a node identity (join, rejoin), keep a stream to the authority, renew certificates, apply pushed
//! state. One task does all of this. Any failure ends the stream, and the loop starts again after a pause.

mod enter;
mod errands;
mod renew;
mod report;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::io::{ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use wiretight_keys::x509::fingerprint;
use wiretight_keys::{Id, JoinToken, Refusal, Revocations, Role, Serial, SigningKey};
use wiretight_proxy::clock::now;
use wiretight_proxy::network::HostPort;
use wiretight_proxy::{Identity, Mesh};
use wiretight_scan::passive::totals::Hour;

use super::link::{self, LinkError, Stream};
use super::shared::{Errand, Errands};
use super::state::{Disk, Membership, Saved, contact_interval};
use super::{AgentParams, AgentStatus, AgentTimes, IdentityStatus, Instance, is_ready, membership};
use crate::clock::{Steps, uptime};
use crate::control::report::NodeReport;
use crate::control::{
    Blob, Code, ControlError, Denial, FromAuthority, FromNode, MAX_SIGN, Offer, Reader, State,
};
use crate::private_dir::FileError;
use errands::Sharing;
use report::Reported;

/// Open certificate requests at a time, if the authority does not say how many it accepts.
const IN_FLIGHT: usize = 4;
/// Queued certificate requests of other programs (`svid fetch`).
const MAX_WAITING: usize = 64;
/// If a stream lasted this long, the next failure restarts the backoff.
const GOOD_STREAM: Duration = Duration::from_secs(5);
/// How often to check whether the clock was set.
const TICK: Duration = Duration::from_secs(5);
/// Pause between announcements while certificates are being requested.
const GATHER: Duration = Duration::from_secs(1);
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

/// A live stream.
struct Link {
    reader: Reader<ReadHalf<Stream>>,
    writer: WriteHalf<Stream>,
    limit: Duration,
    pending: BTreeMap<u64, (Pending, Instant)>,
    /// How many open requests the authority accepts.
    most: usize,
    sharing: Sharing,
    reported: Reported,
    announced: Option<Vec<Offer>>,
    announced_at: Instant,
    local: Option<IpAddr>,
    /// The authority has sent a message, so it accepted the certificate.
    confirmed: bool,
    /// Of that certificate.
    serial: Option<Serial>,
    /// From then on, reconnect with a newer certificate if there is one.
    stale_at: u64,
}

impl Link {
    /// How many more certificates may be requested now.
    fn room(&self) -> usize {
        self.most.saturating_sub(self.pending.len())
    }

    /// The authority does not know a type of message. If totals were sent, it is older than they are.
    fn refuse_totals(&mut self) {
        refuse_totals(&mut self.pending);
    }

    async fn send(&mut self, message: &FromNode) -> Result<(), Trouble> {
        match timeout(self.limit, link::send(&mut self.writer, message)).await {
            Ok(sent) => Ok(sent?),
            Err(_) => Err(Trouble::Retry("the authority does not read".into())),
        }
    }
}

fn refuse_totals(pending: &mut BTreeMap<u64, (Pending, Instant)>) {
    let totals = pending.extract_if(.., |_, (pending, _)| matches!(pending, Pending::Totals(_)));
    for (_, (pending, _)) in totals {
        if let Pending::Totals(reply) = pending {
            let why = "the authority is an older version, which does not store totals: update it";
            let _ = reply.send(Err(why.into()));
        }
    }
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

    /// Connects to the authority and serves the stream until it fails.
    async fn attempt(&mut self) -> Result<std::convert::Infallible, Trouble> {
        let own = Id::Node(self.params.node.clone());
        if self.distrusted || self.mesh.identity(&own).is_none() {
            self.enter().await?;
        }
        let addresses = self.addresses(None);
        let limit = self.params.times.answer;
        let opened = link::open(&addresses, &self.mesh, &self.params.node, limit).await;
        match opened {
            Ok((stream, addr)) => {
                let mut link = self.link(stream);
                let trouble = match self.stream(&mut link, addr).await {
                    Ok(never) => match never {},
                    Err(trouble) => trouble,
                };
                for (pending, _) in std::mem::take(&mut link.pending).into_values() {
                    let why = "the connection to the authority failed. Try again in a moment.";
                    match pending {
                        Pending::Fetch(reply) => drop(reply.send(Err(why.into()))),
                        Pending::Totals(reply) => drop(reply.send(Err(why.into()))),
                        Pending::Renew { .. } | Pending::Report => {}
                    }
                }
                // In TLS 1.3 the client learns only after the handshake that its certificate was refused.
                self.distrusted = !link.confirmed;
                Err(trouble)
            }
            Err(e) => {
                // The authority has another root: try a new token, if there is one.
                self.distrusted = matches!(e, LinkError::NotTheAuthority { .. });
                Err(e.into())
            }
        }
    }

    // ---- The stream.

    fn own(&self) -> Option<&Arc<Identity>> {
        self.identities.get(&Id::Node(self.params.node.clone()))
    }

    fn link(&self, stream: Stream) -> Link {
        let local = stream.get_ref().0.local_addr().ok().map(|a| a.ip());
        let leaf = self.own().map(|i| i.leaf());
        let stale = leaf.map(|l| l.period).map(|p| p.not_after - (p.not_after - p.not_before) / 5);
        let (reader, writer) = tokio::io::split(stream);
        Link {
            reader: Reader::new(reader),
            writer,
            limit: self.params.times.answer,
            pending: BTreeMap::new(),
            most: IN_FLIGHT,
            sharing: Sharing::default(),
            reported: Reported::default(),
            announced: None,
            announced_at: Instant::now(),
            local,
            confirmed: false,
            serial: leaf.map(|l| l.serial),
            stale_at: stale.unwrap_or(u64::MAX),
        }
    }

    async fn stream(
        &mut self,
        link: &mut Link,
        addr: HostPort,
    ) -> Result<std::convert::Infallible, Trouble> {
        let instances = self.offers(link.local);
        self.announced.clone_from(&instances);
        link.announced = Some(instances.clone());
        link.announced_at = Instant::now();
        self.report(|s| s.refused = None);
        let (have, digest) = (self.state.version, self.state.digest.clone());
        link.send(&FromNode::Hello { have, digest, instances: instances.into() }).await?;
        // A response means that the certificate was accepted.
        link.send(&FromNode::Ping).await?;
        let times = self.params.times;
        let (mut heard, mut ping_at) = (Instant::now(), Instant::now() + times.ping);
        loop {
            if self.look_at_the_clock() {
                link.stale_at = 0;
            }
            self.begin_requests(link).await?;
            self.announce(link).await?;
            self.send_report(link).await?;
            let due = Instant::now() + self.next_due(link);
            let may_share = link.confirmed && link.sharing.has_room();
            tokio::select! {
                message = link.reader.next::<FromAuthority>() => {
                    heard = Instant::now();
                    if !link.confirmed {
                        link.confirmed = message.is_ok();
                    }
                    let message = message?;
                    let first = !self.status.borrow().connected;
                    if first {
                        tracing::info!(authority = %addr, "connected to the authority");
                    }
                    if link.confirmed && self.membership.is_none() {
                        let joined = self.remember(vec![addr.clone()]);
                        self.membership = Some(joined.clone());
                        self.save(move |disk| disk.save_membership(&joined)).await;
                    }
                    let read = self.messages(link, message).await;
                    self.put_new();
                    read?;
                    self.heard = uptime();
                    self.note_contact().await;
                    self.report(|s| {
                        (s.connected, s.last_contact) = (true, Some(now()));
                        s.authority = Some(addr.clone());
                        if first {
                            s.last_error = None;
                        }
                    });
                }
                Some(command) = self.inbox.recv() => {
                    let given = self.params.authority.clone();
                    match command {
                        Command::Totals(hour, reply) => self.totals(link, *hour, reply).await?,
                        command => self.command(command).await,
                    }
                    let new = &self.params.authority;
                    if *new != given && !new.is_empty() && !new.contains(&addr) {
                        return Err(Trouble::Again);
                    }
                }
                Some(errand) = next(&mut self.errands), if may_share => {
                    self.errand(link, errand).await?;
                }
                () = sleep_until(ping_at) => {
                    ping_at = Instant::now() + times.ping;
                    link.send(&FromNode::Ping).await?;
                }
                () = sleep_until(due) => self.report(|_| {}),
            }
            if heard.elapsed() >= times.silence {
                let why =
                    format!("no message from the authority at {addr} for {:?}", times.silence);
                return Err(Trouble::Retry(why));
            }
            if link.pending.values().any(|(_, asked)| asked.elapsed() >= times.silence) {
                return Err(Trouble::Retry("the authority does not respond to a request".into()));
            }
            // Reconnect with a newer certificate before the old one expires.
            let newer = self.own().is_some_and(|i| {
                i.is_valid() && link.serial.as_ref().is_some_and(|s| *s != i.leaf().serial)
            });
            if now() >= link.stale_at && newer && link.pending.is_empty() {
                return Err(Trouble::Again);
            }
        }
    }

    /// How long the loop may sleep without events.
    fn next_due(&self, link: &Link) -> Duration {
        let room = link.room() > 0;
        let idle = self.renewals.values().filter(|r| room && !r.in_flight);
        let now_ms = now_ms();
        idle.map(|r| r.wait(now_ms)).min().unwrap_or(TICK).min(TICK)
    }

    /// Handles a message and those that arrived with it, so that the mesh is updated only once.
    async fn messages(&mut self, link: &mut Link, first: FromAuthority) -> Result<(), Trouble> {
        self.message(link, first).await?;
        for _ in 0..MAX_SIGN {
            let Some(message) = link.reader.arrived().await else { break };
            self.message(link, message?).await?;
        }
        Ok(())
    }

    async fn message(&mut self, link: &mut Link, message: FromAuthority) -> Result<(), Trouble> {
        let Some(message) = link.sharing.answer(message) else { return Ok(()) };
        match message {
            FromAuthority::Limits { sign } => {
                link.most = usize::try_from(sign).unwrap_or(MAX_SIGN).clamp(1, MAX_SIGN);
            }
            FromAuthority::State(state) => {
                let version = state.version;
                match self.apply(state).await {
                    Ok(()) => link.send(&FromNode::Ack { version }).await?,
                    Err(e) => {
                        tracing::error!(version, "the pushed state is invalid: {e}");
                        self.report(|s| s.last_error = Some(e));
                    }
                }
            }
            FromAuthority::Signed { request, chain } => {
                let chain = chain.iter().map(Blob::certificate).collect();
                match link.pending.remove(&request) {
                    Some((Pending::Fetch(reply), _)) => drop(reply.send(Ok(chain))),
                    Some((Pending::Renew { id, key }, _)) => {
                        self.renewed(request, id, key, chain).await;
                    }
                    Some((Pending::Totals(_) | Pending::Report, _)) | None => {}
                }
            }
            FromAuthority::Refused { request: 0, denial } => {
                tracing::error!(code = %denial.code, "the authority rejected what this node offers, or a part of it: {denial}");
                self.report(|s| s.refused = Some(denial));
            }
            FromAuthority::Kept { request } => {
                link.reported.answered(request);
                if let Some((Pending::Totals(reply), _)) = link.pending.remove(&request) {
                    let _ = reply.send(Ok(true));
                }
            }
            FromAuthority::Refused { request, denial } => match link.pending.remove(&request) {
                Some((Pending::Totals(reply), _)) => {
                    let _ = reply.send(match denial.code {
                        Code::BadRequest => {
                            tracing::warn!("the authority refuses the totals of an hour: {denial}");
                            Ok(false)
                        }
                        _ => Err(denial.message),
                    });
                }
                Some((Pending::Report, _)) => {
                    link.reported.answered(request);
                    tracing::warn!(code = %denial.code, "the authority refuses the report about this node: {denial}");
                }
                Some((Pending::Fetch(reply), _)) => drop(reply.send(Err(denial.message))),
                Some((Pending::Renew { id, .. }, _)) => self.not_renewed(&id, denial.message),
                None => link.sharing.refused(request, &denial.message),
            },
            FromAuthority::Error(denial) => {
                if denial.code == Code::UnknownType {
                    if link.reported.unknown_type() {
                        link.pending.retain(|_, (p, _)| !matches!(p, Pending::Report));
                        tracing::debug!("the authority is older and takes no reports");
                        return Ok(());
                    }
                    link.sharing.unknown_type();
                    link.refuse_totals();
                }
                return self.error(denial);
            }
            FromAuthority::Ping => link.send(&FromNode::Pong).await?,
            FromAuthority::Pong | FromAuthority::Unknown => {}
            // `sharing` has handled the last four above, if they were expected.
            FromAuthority::Joined { .. }
            | FromAuthority::Records { .. }
            | FromAuthority::Changes { .. }
            | FromAuthority::Written { .. }
            | FromAuthority::Conflict { .. } => {
                return Err(Trouble::Retry("the authority sent an unexpected message".into()));
            }
        }
        Ok(())
    }

    fn error(&mut self, denial: Denial) -> Result<(), Trouble> {
        match denial.code {
            Code::Removed | Code::NotEnrolled => Err(Trouble::Removed(denial.message)),
            Code::Expired => Err(Trouble::Again),
            Code::UnknownType | Code::Other => {
                tracing::warn!(code = %denial.code, "error from the authority: {denial}");
                Ok(())
            }
            _ => Err(Trouble::Retry(format!("error from the authority: {denial}"))),
        }
    }

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

    async fn totals(
        &mut self,
        link: &mut Link,
        hour: Hour,
        reply: Reply<bool>,
    ) -> Result<(), Trouble> {
        let request = self.next_request;
        self.next_request += 1;
        link.pending.insert(request, (Pending::Totals(reply), Instant::now()));
        link.send(&FromNode::Totals { request, hours: vec![hour].into() }).await
    }

    async fn announce(&mut self, link: &mut Link) -> Result<(), Trouble> {
        let instances = self.offers(link.local);
        if link.announced.as_ref() == Some(&instances) {
            return Ok(());
        }
        // Announce identities together that arrive shortly after one another.
        if !link.pending.is_empty() && link.announced_at.elapsed() < GATHER {
            return Ok(());
        }
        self.announced.clone_from(&instances);
        link.announced = Some(instances.clone());
        link.announced_at = Instant::now();
        self.report(|s| s.refused = None);
        link.send(&FromNode::Announce { instances: instances.into() }).await
    }

    /// The instances to announce: services whose identity this node has.
    fn offers(&self, local: Option<IpAddr>) -> Vec<Offer> {
        let holds = |i: &&Instance| self.identities.contains_key(&Id::Service(i.service.clone()));
        let offer = |i: &Instance| {
            let addr = address(i, local, self.params.own_host.as_ref());
            if addr.is_none() {
                tracing::warn!(service = %i.service, "cannot determine an address to announce: set `advertise`");
            }
            let (service, allow, ports) = (i.service.clone(), i.allow.clone(), i.ports.clone());
            Some(Offer { service, addr: addr?, allow, ports })
        };
        self.params.instances.iter().filter(holds).filter_map(offer).collect()
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

/// The address at which others can connect to an instance.
fn address(
    instance: &Instance,
    local: Option<IpAddr>,
    own_host: Option<&HostPort>,
) -> Option<HostPort> {
    if let Some(given) = &instance.advertise {
        return Some(given.clone());
    }
    let port = instance.listen.port();
    if !instance.listen.ip().is_unspecified() {
        return Some(instance.listen.into());
    }
    let local = local.map(|ip| ip.to_canonical());
    if let Some(host) = own_host
        && local.is_none_or(|ip| ip.is_loopback())
    {
        return match host.as_ip() {
            Some(addr) => Some(std::net::SocketAddr::new(addr.ip(), port).into()),
            None => format!("{}:{port}", host.host()).parse().ok(),
        };
    }
    local.map(|ip| std::net::SocketAddr::new(ip, port).into())
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
    fn totals_that_an_older_authority_does_not_know_are_not_stored() {
        let (totals, mut answer) = tokio::sync::oneshot::channel();
        let (fetch, mut other) = tokio::sync::oneshot::channel();
        let mut pending = BTreeMap::from([
            (1, (Pending::Totals(totals), Instant::now())),
            (2, (Pending::Fetch(fetch), Instant::now())),
        ]);
        refuse_totals(&mut pending);
        let why = answer.try_recv().unwrap().unwrap_err();
        assert!(why.contains("older") && why.contains("update"), "{why}");
        // The control: another request is still open.
        assert_eq!((pending.len(), other.try_recv().is_err()), (1, true));
    }

    #[test]
    fn a_wildcard_listener_is_announced_with_a_reachable_address() {
        let instance = |listen: &str, advertise: Option<&str>| Instance {
            service: "db".parse().unwrap(),
            listen: listen.parse().unwrap(),
            advertise: advertise.map(|a| a.parse().unwrap()),
            allow: vec![],
            ports: vec![],
        };
        let ip = |s: &str| Some(s.parse().unwrap());
        let own: HostPort = "auth.example.org:7400".parse().unwrap();
        for (listen, advertise, local, own_host, expected) in [
            ("10.0.0.5:1", None, ip("10.9.9.9"), None, Some("10.0.0.5:1")),
            ("10.0.0.5:1", Some("db:2"), ip("10.9.9.9"), None, Some("db:2")),
            ("0.0.0.0:1", None, ip("10.9.9.9"), Some(&own), Some("10.9.9.9:1")),
            ("[::]:1", None, ip("::ffff:10.9.9.9"), None, Some("10.9.9.9:1")),
            ("0.0.0.0:1", None, ip("127.0.0.1"), Some(&own), Some("auth.example.org:1")),
            ("0.0.0.0:1", None, ip("127.0.0.1"), None, Some("127.0.0.1:1")),
            ("0.0.0.0:1", None, None, None, None),
        ] {
            let found = address(&instance(listen, advertise), local, own_host);
            assert_eq!(found.map(|a| a.to_string()).as_deref(), expected);
        }
    }

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
