//! `[[dial]]`: plaintext connections from local programs in, mesh connections out; with a pool of idle authenticated
//! connections, so that a new session needs no handshake.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use wiretight_keys::{Id, SpiffeId};

use super::balance::{Balancer, Lease};
use super::is_trusted;
use super::live::{Listed, SessionStart, Side, Table, Totals};
use super::log::access;
use super::session::{Answer, Conn, End};
use super::settings::DialSettings;
use crate::app::App;
use crate::buffer::{Buffer, CHUNK};
use crate::clock::now;
use crate::handshake::explain;
use crate::mesh::Mesh;
use crate::net;
use crate::network::HostPort;
use crate::provider;
use crate::reason::Reason;
use crate::record::RecordError;
use crate::stream::{HandshakeError, HandshakeInfo, TlsStream};
use crate::tls::{self, ALPN_RELAY};
use crate::wire::{Frame, HEADER, Open, Refused};

/// The time limit of a handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long to look for a response on a broken connection. Such a response would be in the receive buffer already.
const LAST_ANSWER: Duration = Duration::from_millis(100);
/// Idle connections that each worker keeps ready for each instance, even if unused.
const WARM: usize = 2;
/// The most idle connections kept after use.
const MAX_IDLE: usize = 512;
/// How long a session waits for its turn to connect, and how many sessions of a pool may wait for one instance.
const TURN: Duration = Duration::from_secs(30);
const MAX_WAITING: usize = 8192;
/// Rounds over all instances if one of them was so busy that it reset the handshake; and the pause before the second
/// round, which doubles.
const ROUNDS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(100);
/// Reconnects to the same instance after it closed a new connection unused.
const RETIRED: u32 = 1;
/// How often unneeded connections are closed.
const WINDOW: Duration = Duration::from_secs(30);
/// The age at which an idle connection can be assumed to be accepted by its peer.
const SETTLED: Duration = Duration::from_secs(1);
/// The longest pause between attempts to preconnect to an instance that does not respond.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// A dial with its current configuration, shared by all workers.
pub(crate) struct Dial {
    pub(crate) settings: DialSettings,
    mesh: Arc<Mesh>,
    table: Arc<Table>,
    totals: Arc<Totals>,
    tls: Arc<ClientConfig>,
    server_name: ServerName<'static>,
    open: Vec<u8>,
    balancer: Arc<Balancer<HostPort>>,
}

impl Dial {
    pub(crate) fn new(
        settings: DialSettings,
        mesh: &Arc<Mesh>,
        table: &Arc<Table>,
        before: Option<&Dial>,
    ) -> Result<Dial, rustls::Error> {
        Dial::to(settings, None, mesh, table, before)
    }

    /// For intercepted connections to `destination`.
    pub(crate) fn to(
        settings: DialSettings,
        destination: Option<SocketAddr>,
        mesh: &Arc<Mesh>,
        table: &Arc<Table>,
        before: Option<&Dial>,
    ) -> Result<Dial, rustls::Error> {
        let service = Id::Service(settings.service.clone());
        let expected = SpiffeId::new(mesh.trust_domain().clone(), service);
        let server_name = ServerName::try_from(expected.dns_name()).map_err(|e| {
            rustls::Error::General(format!("{expected} does not give a valid server name: {e}"))
        })?;
        let open = Open { service: settings.service.clone(), destination }.encode();
        Ok(Dial {
            tls: tls::client_config(mesh, settings.identity.clone(), expected, ALPN_RELAY)?,
            server_name,
            open,
            totals: table.totals(Side::Dial, &settings.service),
            mesh: mesh.clone(),
            table: table.clone(),
            balancer: before.map(|b| b.balancer.clone()).unwrap_or_default(),
            settings,
        })
    }

    /// The addresses of the service: from the configuration, or from the current registry.
    fn addresses(&self) -> Vec<HostPort> {
        if !self.settings.to.is_empty() {
            return self.settings.to.clone();
        }
        let registry = self.mesh.registry();
        let instances = registry.services.get(&self.settings.service);
        instances.into_iter().flatten().map(|i| i.addr.clone()).collect()
    }

    fn refuse(&self, at: &str, reason: Reason, detail: String) {
        let peer = match reason {
            Reason::NotAllowed => Some(SpiffeId::new(
                self.mesh.trust_domain().clone(),
                Id::Service(self.settings.service.clone()),
            )),
            _ => None,
        };
        let service = &self.settings.service;
        self.table.refuse(Side::Dial, service, at, peer.as_ref(), reason, detail);
    }
}

/// An idle authenticated connection; counted in the totals until dropped.
struct Idle {
    ready: Ready,
    _counted: Counted,
}

impl Idle {
    fn new(ready: Ready, totals: &Arc<Totals>) -> Idle {
        totals.idle.fetch_add(1, Relaxed);
        Idle { ready, _counted: Counted(totals.clone()) }
    }

    /// Whether a session may still start on it.
    fn is_good(&mut self, mesh: &Mesh) -> bool {
        let Ready { conn, listed, give_up, .. } = &mut self.ready;
        now() < *give_up && is_trusted(mesh, listed.peer()) && conn.tls.is_quiet()
    }
}

struct Counted(Arc<Totals>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.idle.fetch_sub(1, Relaxed);
    }
}

/// A connection that is ready for a session.
struct Ready {
    conn: Box<Conn>,
    listed: Listed,
    give_up: u64,
    /// The maximum age, in case the clock is set back meanwhile.
    lasts: Duration,
}

/// The idle connections to one instance.
#[derive(Default)]
struct Entry {
    /// The most recently used is last.
    idle: Vec<Idle>,
    /// The lowest number in this window: that many were not needed.
    low: usize,
    warming: bool,
    /// The peer does not support `wiretight/1`, so preconnecting is of no use.
    raw: bool,
    failures: u32,
    retry_at: Option<Instant>,
    /// The number of sessions waiting for their turn to connect, and their wake-up: a connection has become idle, or
    /// the instance failed.
    waiting: usize,
    wakeup: Rc<Notify>,
}

impl Entry {
    /// An attempt to preconnect failed: the next one waits, longer each time.
    fn failed(&mut self) {
        self.failures = (self.failures + 1).min(10);
        let wait = Duration::from_millis(100 << self.failures).min(MAX_BACKOFF);
        self.retry_at = Some(Instant::now() + wait);
    }

    /// Whether an idle connection is still usable. In TLS 1.3 a server verifies our certificate after our handshake
    /// is complete. So a connection that was closed before it was used counts as a failed attempt.
    fn check(&mut self, idle: &mut Idle, mesh: &Mesh) -> bool {
        let good = idle.is_good(mesh);
        let listed = &idle.ready.listed;
        match good {
            true if listed.age() >= SETTLED => (self.failures, self.retry_at) = (0, None),
            false if listed.is_unused() => self.failed(),
            _ => {}
        }
        good
    }
}

/// A worker's connection pool for one dial.
pub(crate) struct Pool {
    dial: Arc<Dial>,
    entries: RefCell<HashMap<HostPort, Entry>>,
    window: RefCell<Instant>,
    /// Replaced by another pool: it serves its remaining sessions and keeps no idle connections.
    closed: Cell<bool>,
}

/// The result of an attempt at one instance.
enum Attempt {
    Opened(Ready),
    /// Try another instance: nothing has reached a backend.
    Next(ConnectFailure),
    /// Trying another instance would be wrong or unsafe.
    Stop(Reason, String),
}

/// Why a connection to an instance failed.
struct ConnectFailure {
    reason: Reason,
    detail: String,
    /// The instance is up but reset the handshake, probably because of too many connections at once.
    is_busy: bool,
}

impl ConnectFailure {
    fn new(reason: Reason, detail: impl Into<String>) -> ConnectFailure {
        ConnectFailure { reason, detail: detail.into(), is_busy: false }
    }
}

/// Data that the program sent before its session was opened, to follow the OPEN. It is read once there is a
/// connection.
type Early = Option<Option<(Buffer, usize)>>;

/// How waiting for a turn ended.
enum Turn {
    Connect(OwnedSemaphorePermit),
    Take(Ready),
}

/// A session that waits for its turn.
struct Waiting<'a>(&'a Pool, &'a HostPort);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        // Saturating, because a closed pool has lost its counts.
        self.0.entry(self.1, |entry| entry.waiting = entry.waiting.saturating_sub(1));
    }
}

impl Pool {
    pub(crate) fn new(dial: Arc<Dial>) -> Rc<Pool> {
        let window = RefCell::new(Instant::now());
        Rc::new(Pool { dial, entries: RefCell::default(), window, closed: Cell::new(false) })
    }

    pub(crate) fn dial(&self) -> &Arc<Dial> {
        &self.dial
    }

    /// Serves one connection of a local program. It counts as a session from the call on.
    pub(crate) fn serve(self: Rc<Pool>, app: App, from: SocketAddr) -> impl Future<Output = ()> {
        let opening = self.dial.table.opening();
        // Boxed, so that its memory is not part of the session's task.
        let opened = Box::pin(self.clone().open(app));
        async move {
            let Some((app, mut ready, lease, sent)) = opened.await else { return };
            let begun = ready.listed.begin();
            drop(opening);
            ready.listed.sent(sent);
            let idle_timeout = self.dial.settings.idle_timeout;
            let (end, reusable) = ready.conn.run(app, &ready.listed, idle_timeout).await;
            self.ended(ready, &lease, from, &begun, &end, reusable);
        }
    }

    /// Opens a session at some instance. If none can be reached, logs why and aborts the program's connection. The
    /// last value is how much of the program's data was already sent.
    async fn open(self: Rc<Pool>, app: App) -> Option<(App, Ready, Lease<HostPort>, usize)> {
        let start = Instant::now();
        let opened = self.open_for(&app).await;
        let Some((ready, lease, sent)) = opened else {
            self.dial.totals.failed.fetch_add(1, Relaxed);
            app.abort();
            return None;
        };
        self.dial.totals.times.open.observe(start.elapsed());
        Some((app, ready, lease, sent))
    }

    async fn open_for(self: &Rc<Pool>, app: &App) -> Option<(Ready, Lease<HostPort>, usize)> {
        let dial = &self.dial;
        let (mut early, mut tried, mut rounds, mut is_busy) = (None, Vec::new(), 1, false);
        loop {
            let Some(lease) = dial.balancer.pick(&dial.addresses(), &tried) else {
                if !is_busy || rounds == ROUNDS {
                    break;
                }
                let pause = PAUSE * (1 << rounds);
                tokio::time::sleep(pause.mul_f64(0.5 + 0.5 * jitter())).await;
                (tried, rounds, is_busy) = (Vec::new(), rounds + 1, false);
                continue;
            };
            match self.attempt(&lease, app, &mut early).await {
                Attempt::Opened(ready) => {
                    dial.balancer.succeeded(&lease);
                    let sent = early.flatten().map_or(0, |(_, sent)| sent);
                    return Some((ready, lease, sent));
                }
                Attempt::Next(ConnectFailure { reason, detail, is_busy: busy }) => {
                    dial.balancer.failed(&lease);
                    if dial.balancer.is_held(&lease) {
                        self.entry(&lease, |entry| entry.wakeup.notify_waiters());
                    }
                    dial.refuse(&lease.to_string(), reason, detail);
                    is_busy |= busy;
                    tried.push(lease.clone());
                }
                Attempt::Stop(reason, detail) => {
                    dial.refuse(&lease.to_string(), reason, detail);
                    return None;
                }
            }
        }
        if tried.is_empty() {
            let detail = format!("no node offers service/{}", dial.settings.service);
            dial.refuse("-", Reason::NoInstance, detail);
        } else {
            tracing::debug!(service = %dial.settings.service, "no instance left to try");
        }
        None
    }

    /// Logs a session that has ended, and keeps its connection if it can be reused.
    fn ended(
        &self,
        ready: Ready,
        to: &Lease<HostPort>,
        from: SocketAddr,
        begun: &SessionStart,
        end: &End,
        reusable: bool,
    ) {
        let dial = &self.dial;
        let moved = ready.listed.finish(begun);
        access(Side::Dial, &dial.settings.service, &ready.listed, &from.to_string(), &moved, end);
        match end {
            End::Protocol(e) => dial.refuse(&to.to_string(), Reason::ProtocolError, e.to_string()),
            // A non-Wiretight server's rejection of our certificate arrives after the session has started.
            End::Broken(e) => {
                if let Some(alert) = alert(e) {
                    dial.refuse(&to.to_string(), Reason::RefusedByPeer, alert);
                }
            }
            _ => {}
        }
        if reusable {
            self.put(to, ready);
        } else if !matches!(end, End::Done) {
            ready.conn.tls.abort();
        }
    }

    /// Opens a session at one instance, on an idle connection or a new one.
    async fn attempt(
        self: &Rc<Pool>,
        to: &Lease<HostPort>,
        app: &App,
        early: &mut Early,
    ) -> Attempt {
        let mut retired = 0;
        loop {
            let (mut ready, pooled) = match self.take(to) {
                Some(ready) => (ready, true),
                // Boxed: not needed by a session that finds an idle connection.
                None => match Box::pin(self.connect_in_turn(to)).await {
                    Ok(found) => found,
                    Err(failure) => return Attempt::Next(failure),
                },
            };
            // Data that the program has sent already goes out together with the OPEN. Do not wait for data: in a
            // protocol where the server speaks first, the OPEN is sent alone.
            let early = early.get_or_insert_with(|| open_with_data(&self.dial.open, app));
            let (first, sent) = match early {
                Some((buffer, sent)) => (&**buffer, *sent),
                None => (&*self.dial.open, 0),
            };
            if !ready.conn.framed {
                self.entry(to, |entry| entry.raw = true);
                let data = &first[first.len().min(self.dial.open.len() + HEADER)..];
                return match sent == 0 || ready.conn.send(data).await.is_ok() {
                    true => Attempt::Opened(ready),
                    false => Attempt::Stop(Reason::Broken, "the peer closed the connection".into()),
                };
            }
            let answer = match ready.conn.send(first).await {
                Ok(()) => ready.conn.read_answer().await,
                Err(e) => read_last_answer(&mut ready.conn, e).await,
            };
            match answer {
                Ok(Answer::Opened) => return Attempt::Opened(ready),
                Ok(Answer::Refused(refused)) => {
                    if ready.conn.end_refused().await {
                        self.put(to, ready);
                    }
                    let DialSettings { service, identity, .. } = &self.dial.settings;
                    return match refused {
                        Refused::NotAllowed => Attempt::Stop(
                            refused.reason(),
                            format!(
                                "service/{service} does not allow {identity}; add it to `allow` there, or set `as` here to an identity that is allowed"
                            ),
                        ),
                        _ => Attempt::Next(ConnectFailure::new(
                            refused.reason(),
                            format!(
                                "an instance of service/{service} refused the session; see its log"
                            ),
                        )),
                    };
                }
                // A server that retires the connection has not acted on the OPEN.
                Ok(Answer::Retired) if pooled => continue,
                // If another process has taken over meanwhile, it accepts the new connection.
                Ok(Answer::Retired) if retired < RETIRED => retired += 1,
                Ok(Answer::Retired) => {
                    let what = "the instance closed the connection unused: it is stopping, or this node has too many connections; see its log";
                    return Attempt::Next(ConnectFailure::new(Reason::HungUp, what));
                }
                Err(End::Broken(e)) => {
                    if ready.listed.is_unused()
                        && let Some(alert) = alert(&e)
                    {
                        // The peer rejected the connection, so it did not act on anything. (On a connection that was
                        // used before, an alert does not imply that.)
                        return Attempt::Next(ConnectFailure::new(Reason::RefusedByPeer, alert));
                    }
                    if e.kind() == io::ErrorKind::TimedOut {
                        // Probably the whole path is down, so the other idle connections are broken too.
                        self.entry(to, |entry| entry.idle.clear());
                    }
                    match (sent, pooled) {
                        (0, true) => continue,
                        (0, false) => {
                            return Attempt::Next(ConnectFailure::new(
                                Reason::Broken,
                                e.to_string(),
                            ));
                        }
                        // Data sent with the OPEN may have reached a backend.
                        _ => return Attempt::Stop(Reason::Broken, e.to_string()),
                    }
                }
                // Otherwise the response violates the protocol.
                Err(other) => {
                    let detail = other.detail().unwrap_or_default();
                    return Attempt::Stop(Reason::ProtocolError, detail);
                }
            }
        }
    }

    /// Waits for its turn and connects; returns an idle connection and `true` if one becomes available first.
    async fn connect_in_turn(
        self: &Rc<Pool>,
        to: &Lease<HostPort>,
    ) -> Result<(Ready, bool), ConnectFailure> {
        let turns = self.dial.table.turns.to(to);
        let _turn = match turns.clone().try_acquire_owned() {
            Ok(turn) => turn,
            Err(_) => match self.turn(to, turns).await? {
                Turn::Connect(turn) => turn,
                Turn::Take(ready) => return Ok((ready, true)),
            },
        };
        connect(&self.dial, to).await.map(|ready| (ready, false))
    }

    async fn turn(
        self: &Rc<Pool>,
        to: &Lease<HostPort>,
        turns: Arc<Semaphore>,
    ) -> Result<Turn, ConnectFailure> {
        let wakeup = self.entry(to, |entry| {
            (entry.waiting < MAX_WAITING).then(|| {
                entry.waiting += 1;
                entry.wakeup.clone()
            })
        });
        let wakeup = wakeup.ok_or_else(|| {
            let what = format!(
                "{MAX_WAITING} sessions are already waiting for a connection to this instance"
            );
            ConnectFailure::new(Reason::TooManyWaiting, what)
        })?;
        let _waiting = Waiting(self, to);
        let late = || {
            let what = format!(
                "no connection within {} s: the instance accepts connections too slowly for this many sessions",
                TURN.as_secs()
            );
            ConnectFailure::new(Reason::NoTurn, what)
        };
        let waited = timeout(TURN, async {
            let mut turn = pin!(turns.acquire_owned());
            loop {
                tokio::select! {
                    biased;
                    turn = &mut turn => {
                        let closed = |_| ConnectFailure::new(Reason::NoTurn, "this process is stopping");
                        return turn.map(Turn::Connect).map_err(closed);
                    }
                    () = wakeup.notified() => {}
                }
                if let Some(ready) = self.take(to) {
                    return Ok(Turn::Take(ready));
                }
                if self.dial.balancer.is_held(to) {
                    let what = "earlier connections to this instance failed";
                    return Err(ConnectFailure::new(Reason::Unreachable, what));
                }
            }
        });
        waited.await.unwrap_or_else(|_| Err(late()))
    }

    /// Takes an idle connection from the pool, and starts another if few are left.
    fn take(self: &Rc<Pool>, to: &HostPort) -> Option<Ready> {
        let (ready, short) = self.entry(to, |entry| {
            let mut ready = None;
            while ready.is_none()
                && let Some(mut idle) = entry.idle.pop()
            {
                ready = entry.check(&mut idle, &self.dial.mesh).then_some(idle.ready);
            }
            entry.low = entry.low.min(entry.idle.len());
            (ready, entry.idle.len() < WARM)
        });
        if short {
            self.warm(to);
        }
        ready
    }

    /// Returns a connection to the pool.
    fn put(&self, to: &HostPort, ready: Ready) {
        // A peer that sent more after its end mark must not get another session.
        if self.closed.get() || now() >= ready.give_up || !ready.conn.is_at_rest() {
            return ready.conn.tls.close();
        }
        self.entry(to, |entry| match entry.idle.len() < MAX_IDLE {
            true => {
                entry.idle.push(Idle::new(ready, &self.dial.totals));
                if entry.waiting > 0 {
                    entry.wakeup.notify_one();
                }
            }
            false => ready.conn.tls.close(),
        });
    }

    /// Preconnects, one connection at a time for each instance.
    fn warm(self: &Rc<Pool>, to: &HostPort) {
        if self.closed.get() {
            return;
        }
        let due = self.entry(to, |entry| {
            let due = !entry.warming
                && !entry.raw
                && entry.idle.len() < WARM
                && entry.retry_at.is_none_or(|at| at <= Instant::now());
            entry.warming |= due;
            due
        });
        if !due {
            return;
        }
        let (pool, to) = (self.clone(), to.clone());
        tokio::task::spawn_local(async move {
            // Sessions that need a connection now go first.
            let turn = pool.dial.table.turns.to(&to).try_acquire_owned();
            let connected = match &turn {
                Ok(_) => connect(&pool.dial, &to).await,
                Err(_) => Err(ConnectFailure::new(Reason::NoTurn, "sessions are connecting")),
            };
            drop(turn);
            if pool.closed.get() {
                if let Ok(ready) = connected {
                    ready.conn.tls.close();
                }
                return;
            }
            let again = pool.entry(&to, |entry| {
                entry.warming = false;
                match connected {
                    Ok(ready) if ready.conn.framed => {
                        entry.idle.push(Idle::new(ready, &pool.dial.totals));
                        entry.idle.len() < WARM && entry.failures == 0
                    }
                    Ok(_) => {
                        entry.raw = true;
                        false
                    }
                    Err(ConnectFailure { reason: Reason::NoTurn, .. }) => false,
                    Err(ConnectFailure { reason, detail, .. }) => {
                        // If a session needs the connection, its failure is logged; here it is only noted.
                        tracing::debug!(%to, reason = reason.word(), detail, "preconnecting failed");
                        entry.failed();
                        false
                    }
                }
            });
            if again {
                pool.warm(&to);
            }
        });
    }

    /// Called every second: closes idle connections that are unusable or were not needed for a while, and keeps a few
    /// ready for each instance.
    pub(crate) fn sweep(self: &Rc<Pool>) {
        let window_over = self.window.borrow().elapsed() >= WINDOW;
        if window_over {
            *self.window.borrow_mut() = Instant::now();
        }
        let addresses = self.dial.addresses();
        let has_identity = self.dial.mesh.identity(&self.dial.settings.identity).is_some();
        let mut entries = self.entries.borrow_mut();
        entries.retain(|to, entry| addresses.contains(to) || entry.warming || entry.waiting > 0);
        for entry in entries.values_mut() {
            let mut idle = std::mem::take(&mut entry.idle);
            idle.retain_mut(|idle| {
                has_identity
                    && idle.ready.listed.age() < idle.ready.lasts
                    && entry.check(idle, &self.dial.mesh)
            });
            entry.idle = idle;
            if window_over {
                let spare = entry.low.min(entry.idle.len()).saturating_sub(WARM);
                entry.idle.drain(..spare).for_each(|idle| idle.ready.conn.tls.close());
                entry.low = entry.idle.len();
                entry.raw = false; // the peer may have been replaced by a Wiretight node
            }
        }
        drop(entries);
        if has_identity {
            addresses.iter().for_each(|to| self.warm(to));
        }
    }

    /// Closes all idle connections, now and when they become idle.
    pub(crate) fn close(&self) {
        self.closed.set(true);
        for (_, entry) in self.entries.borrow_mut().drain() {
            entry.idle.into_iter().for_each(|idle| idle.ready.conn.tls.close());
        }
    }

    fn entry<T>(&self, to: &HostPort, f: impl FnOnce(&mut Entry) -> T) -> T {
        let mut entries = self.entries.borrow_mut();
        match entries.get_mut(to) {
            Some(entry) => f(entry),
            None => f(entries.entry(to.clone()).or_default()),
        }
    }
}

/// A random number between 0 and 1, or 0.5 if there is no randomness; it need not be secret.
fn jitter() -> f64 {
    let mut byte = [0];
    aws_lc_rs::rand::fill(&mut byte).map_or(0.5, |()| f64::from(byte[0]) / 255.0)
}

/// An OPEN followed by the data that the program has sent already, and the length of that data. `None`, without
/// occupying a buffer, if there is none.
fn open_with_data(open: &[u8], app: &App) -> Option<(Buffer, usize)> {
    let mut buffer = Buffer::take();
    let at = open.len() + HEADER;
    let sent = app.try_read(&mut buffer.room()[at..CHUNK])?;
    buffer.room()[..open.len()].copy_from_slice(open);
    buffer.room()[open.len()..at].copy_from_slice(&Frame::Data(sent).header());
    buffer.set_len(at + sent);
    Some((buffer, sent))
}

/// Connects, does the handshake and registers the connection.
async fn connect(dial: &Dial, to: &HostPort) -> Result<Ready, ConnectFailure> {
    let identity = dial.mesh.identity(&dial.settings.identity).ok_or_else(|| {
        let id = &dial.settings.identity;
        let what = format!(
            "this node has no valid certificate for {id}; the authority may be unreachable"
        );
        ConnectFailure::new(Reason::NoIdentity, what)
    })?;
    let unreachable = |e: io::Error| ConnectFailure::new(Reason::Unreachable, e.to_string());
    let start = Instant::now();
    let socket =
        net::with_descriptor(async || net::connect(to).await).await.map_err(unreachable)?;
    let connected = Instant::now();
    dial.totals.times.connect.observe(connected - start);
    let ends = (socket.peer_addr().map_err(unreachable)?, socket.local_addr().ok());
    let (config, name) = (dial.tls.clone(), dial.server_name.clone());
    let shaken = TlsStream::connect(socket, config, name, HANDSHAKE).await;
    let (tls, HandshakeInfo { negotiated, chain }) = shaken.map_err(|e| {
        let (reason, detail) = explain(&e);
        let reset = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
        let is_busy = matches!(&e, HandshakeError::Io(e) if reset.contains(&e.kind()));
        ConnectFailure { reason, detail, is_busy }
    })?;
    dial.totals.times.handshake.observe(connected.elapsed());
    let peer = tls::peer(&dial.mesh, &chain, Side::Dial.peer_role())
        .map_err(|refusal| ConnectFailure::new(Reason::from(&refusal), refusal.to_string()))?;
    if negotiated.alpn && !provider::is_post_quantum(negotiated.group) {
        let what = format!("{} does not support X25519MLKEM768", peer.id());
        return Err(ConnectFailure::new(Reason::NoPostQuantum, what));
    }
    // Half of the remaining validity of our certificate, but never beyond the peer's.
    let left = identity.leaf().period.not_after.saturating_sub(now());
    let give_up = (now() + left / 2).min(peer.not_after());
    let lasts = Duration::from_secs(give_up.saturating_sub(now()));
    let service = &dial.settings.service;
    let listed = dial.table.list(Side::Dial, service, peer, ends, negotiated, u32::MAX);
    let listed = listed.ok_or_else(|| ConnectFailure::new(Reason::TooManyConnections, ""))?;
    // If the peer was revoked before it was registered, its connection was not closed with the others.
    if let Err(refusal) = dial.mesh.standing(listed.peer()) {
        return Err(ConnectFailure::new(Reason::from(&refusal), refusal.to_string()));
    }
    let conn = Box::new(Conn::new(tls, negotiated.alpn));
    Ok(Ready { conn, listed, give_up, lasts })
}

/// After a failed write: reads the server's response from before the connection broke, if it shows that nothing has
/// reached a backend. A server that has just retired an idle connection resets it when an OPEN arrives, but its
/// close_notify can still be read.
async fn read_last_answer(conn: &mut Conn, error: io::Error) -> Result<Answer, End> {
    match timeout(LAST_ANSWER, conn.read_answer()).await {
        Ok(Ok(answer @ (Answer::Retired | Answer::Refused(_)))) => Ok(answer),
        Ok(Err(End::Broken(read))) if alert(&read).is_some() => Err(End::Broken(read)),
        _ => Err(End::Broken(error)),
    }
}

/// The peer's alert, if that is why the connection broke.
fn alert(error: &io::Error) -> Option<String> {
    match error.get_ref()?.downcast_ref()? {
        RecordError::Alert(alert) => Some(format!(
            "the peer rejected our certificate or parameters ({alert:?}); see its log"
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::sync::mpsc;

    use super::super::session::tests::{connected, run};
    use super::*;
    use crate::rig::{self, Ca, TRUST_DOMAIN, is_reset, reset};

    /// An instance that reads once, reports what it read and breaks the connection.
    fn breaking(ca: &Ca, tell: &mpsc::Sender<Vec<u8>>) -> SocketAddr {
        let tell = tell.clone();
        rig::tls::server(ca.issue("service/db", 3600), true, move |mut tls| {
            let mut got = vec![0; 1024];
            if let Ok(n @ 1..) = tls.read(&mut got) {
                got.truncate(n);
                tell.send(got).unwrap();
            }
        })
    }

    /// What two such instances receive from a program that sent `word` before its dial connected.
    fn seen_of_two_that_break(word: &[u8]) -> Vec<Vec<u8>> {
        let ca = Ca::new(TRUST_DOMAIN);
        let (tell, told) = mpsc::channel();
        let to = [breaking(&ca, &tell), breaking(&ca, &tell)];
        let settings = rig::dial(rig::free(), &to);
        let dial = Dial::new(settings, &ca.mesh(&["service/web"]), &Arc::default(), None);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut program = rig::connect(listener.local_addr().unwrap());
        program.write_all(word).unwrap();
        let (socket, from) = listener.accept().unwrap();
        socket.set_nonblocking(true).unwrap();
        run(async {
            let socket = tokio::net::TcpStream::from_std(socket).unwrap();
            if !word.is_empty() {
                socket.readable().await.unwrap();
            }
            Pool::new(Arc::new(dial.unwrap())).serve(App::Tcp(socket), from).await;
        });
        assert!(is_reset(&mut program));
        told.try_iter().collect()
    }

    #[test]
    fn early_data_is_sent_with_the_open_and_only_once() {
        // The data may have reached a backend, so the other instance is not tried.
        let seen = seen_of_two_that_break(b"first");
        let open = Open { service: rig::name("db"), destination: None }.encode();
        assert_eq!(seen, [[&open, &Frame::Data(5).header()[..], b"first"].concat()]);
        // An OPEN alone has no effect yet, so the other instance is tried.
        assert_eq!(seen_of_two_that_break(b""), [open.clone(), open]);
    }

    #[test]
    fn a_close_notify_before_a_broken_connection_is_read() {
        run(async {
            for retired in [true, false] {
                let (mut conn, _listed, _table, mut peer) = connected().await;
                if retired {
                    peer.conn.send_close_notify();
                    peer.flush().unwrap();
                }
                reset(peer.sock);
                let error = loop {
                    match conn.send(&[0; 1000]).await {
                        Ok(()) => tokio::task::yield_now().await,
                        Err(error) => break error,
                    }
                };
                let kind = error.kind();
                match read_last_answer(&mut conn, error).await {
                    Ok(Answer::Retired) => assert!(retired),
                    Err(End::Broken(e)) => assert!(!retired && e.kind() == kind, "{e}"),
                    _ => panic!("unexpected answer"),
                }
            }
        });
    }
}
