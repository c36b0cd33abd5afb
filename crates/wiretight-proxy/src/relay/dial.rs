//! `[[dial]]`: plain connections in from a local program, mesh connections out; and the pool of idle
//! authenticated connections that makes a new one cost no handshake.

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
use super::live::{Begun, Listed, Side, Table, Totals};
use super::log::access;
use super::session::{Answer, Conn, End};
use super::settings::DialSettings;
use super::stands;
use crate::app::App;
use crate::buffer::{Buffer, CHUNK};
use crate::clock::now;
use crate::handshake::explain;
use crate::mesh::Mesh;
use crate::net;
use crate::network::HostPort;
use crate::provider;
use crate::record::RecordError;
use crate::stream::{Agreed, HandshakeError, TlsStream};
use crate::tls::{self, ALPN_RELAY};
use crate::wire::{Frame, HEADER, Open, Refused};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long an answer is looked for on a connection that broke. What there is of one is there already.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// Idle connections kept ready for each instance by each worker, used or not.
const WARM: usize = 2;
/// The most that are kept of those that were used.
const MAX_IDLE: usize = 512;
/// How long a session waits for its turn to connect, and how many of a pool do for one instance.
const TURN: Duration = Duration::from_secs(30);
const MAX_WAITING: usize = 8192;
/// Rounds through the instances when one of them was so busy that it reset the handshake; and the pause before the
/// second, which doubles.
const ROUNDS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(100);
/// So often a new connection that is retired unused is followed by another to the same instance.
const RETIRED: u32 = 1;
/// How often those that nobody needed are given up.
const WINDOW: Duration = Duration::from_secs(30);
/// An idle connection of this age was accepted by its peer.
const SETTLED: Duration = Duration::from_secs(1);
/// The longest wait between tries to warm up an instance that does not answer.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// A dial as it is configured now, shared by all workers.
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

    /// For programs that wanted to go to `destination`.
    pub(crate) fn to(
        settings: DialSettings,
        destination: Option<SocketAddr>,
        mesh: &Arc<Mesh>,
        table: &Arc<Table>,
        before: Option<&Dial>,
    ) -> Result<Dial, rustls::Error> {
        let service = Id::Service(settings.service.clone());
        let expected = SpiffeId::new(mesh.trust_domain().clone(), service);
        let server_name = ServerName::try_from(expected.dns_name())
            .map_err(|e| rustls::Error::General(format!("{expected} makes no SNI: {e}")))?;
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

    /// Where the service can be reached: as given, or as the registry says now.
    fn addresses(&self) -> Vec<HostPort> {
        if !self.settings.to.is_empty() {
            return self.settings.to.clone();
        }
        let registry = self.mesh.registry();
        let instances = registry.services.get(&self.settings.service);
        instances.into_iter().flatten().map(|i| i.addr.clone()).collect()
    }

    fn refuse(&self, at: &str, reason: &'static str, detail: String) {
        let peer = match reason {
            "not_allowed" => Some(SpiffeId::new(
                self.mesh.trust_domain().clone(),
                Id::Service(self.settings.service.clone()),
            )),
            _ => None,
        };
        let service = &self.settings.service;
        self.table.refuse(Side::Dial, service, at, peer.as_ref(), reason, detail);
    }
}

/// An idle authenticated connection, counted as one while it is.
struct Idle {
    ready: Ready,
    _counted: Counted,
}

impl Idle {
    fn new(ready: Ready, totals: &Arc<Totals>) -> Idle {
        totals.idle.fetch_add(1, Relaxed);
        Idle { ready, _counted: Counted(totals.clone()) }
    }

    /// Whether a session may still begin on it.
    fn is_good(&mut self, mesh: &Mesh) -> bool {
        let Ready { conn, listed, give_up, .. } = &mut self.ready;
        now() < *give_up && stands(mesh, listed.peer()) && conn.tls.is_quiet()
    }
}

struct Counted(Arc<Totals>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.idle.fetch_sub(1, Relaxed);
    }
}

/// A connection that a session may run on.
struct Ready {
    conn: Box<Conn>,
    listed: Listed,
    give_up: u64,
    /// The age at which it is given up, if the clock is set back meanwhile.
    lasts: Duration,
}

/// The idle connections to one instance.
#[derive(Default)]
struct Shelf {
    /// Most recently used last.
    idle: Vec<Idle>,
    /// The fewest there were in this window: so many nobody needed.
    low: usize,
    warming: bool,
    /// The peer speaks no `wiretight/1`: nothing to keep warm.
    raw: bool,
    failures: u32,
    retry_at: Option<Instant>,
    /// Sessions that wait for their turn to connect, and what wakes them: a connection has become idle, or the
    /// instance fails.
    waiting: usize,
    news: Rc<Notify>,
}

impl Shelf {
    /// A try to warm up came to nothing: the next one waits, longer each time.
    fn failed(&mut self) {
        self.failures = (self.failures + 1).min(10);
        let wait = Duration::from_millis(100 << self.failures).min(MAX_BACKOFF);
        self.retry_at = Some(Instant::now() + wait);
    }

    /// Whether an idle connection is still of use. In TLS 1.3 a server's opinion of our certificate comes
    /// after the handshake: one that is hung up on before it was used has failed like one that never
    /// came about.
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

/// One worker's pool for one dial.
pub(crate) struct Pool {
    dial: Arc<Dial>,
    shelves: RefCell<HashMap<HostPort, Shelf>>,
    window: RefCell<Instant>,
    /// Another has taken its place: it lives on for the sessions that it has, and keeps nothing.
    closed: Cell<bool>,
}

/// What an attempt at one instance came to.
enum Attempt {
    Opened(Ready),
    /// Try another instance: nothing has reached a backend.
    Next(Missed),
    /// Trying elsewhere would be wrong, or unsafe.
    Stop(&'static str, String),
}

/// Why an instance could not be connected.
struct Missed {
    reason: &'static str,
    detail: String,
    /// It is there, and has reset the handshake: most likely there were too many at once.
    is_busy: bool,
}

impl Missed {
    fn new(reason: &'static str, detail: impl Into<String>) -> Missed {
        Missed { reason, detail: detail.into(), is_busy: false }
    }
}

/// What the program has sent before its session was opened, behind the OPEN. It is read when there is a connection.
type Early = Option<Option<(Buffer, usize)>>;

/// What has ended the wait for a turn.
enum Turn {
    Connect(OwnedSemaphorePermit),
    Take(Ready),
}

/// A session that waits for its turn.
struct Waiting<'a>(&'a Pool, &'a HostPort);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        // Saturating: a pool that is closed has forgotten its shelves.
        self.0.shelf(self.1, |shelf| shelf.waiting = shelf.waiting.saturating_sub(1));
    }
}

impl Pool {
    pub(crate) fn new(dial: Arc<Dial>) -> Rc<Pool> {
        let window = RefCell::new(Instant::now());
        Rc::new(Pool { dial, shelves: RefCell::default(), window, closed: Cell::new(false) })
    }

    pub(crate) fn dial(&self) -> &Arc<Dial> {
        &self.dial
    }

    /// Carries one connection of the local program, which counts from now on.
    pub(crate) fn serve(self: Rc<Pool>, app: App, from: SocketAddr) -> impl Future<Output = ()> {
        let opening = self.dial.table.opening();
        // Boxed: its room is needed for a moment only, and the session's for as long as it lasts.
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

    /// Opens a session at some instance; if that cannot be, says why, and aborts the program's connection. Returns
    /// with it how much of what the program has sent is on its way.
    async fn open(self: Rc<Pool>, app: App) -> Option<(App, Ready, Lease<HostPort>, usize)> {
        let opened = self.open_for(&app).await;
        let Some((ready, lease, sent)) = opened else {
            self.dial.totals.failed.fetch_add(1, Relaxed);
            app.abort();
            return None;
        };
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
                Attempt::Next(Missed { reason, detail, is_busy: busy }) => {
                    dial.balancer.failed(&lease);
                    if dial.balancer.is_held(&lease) {
                        self.shelf(&lease, |shelf| shelf.news.notify_waiters());
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
            dial.refuse("-", "no_instance", detail);
        } else {
            tracing::debug!(service = %dial.settings.service, "no instance left to try");
        }
        None
    }

    /// A session has ended: logs it, and keeps its connection if that is of use.
    fn ended(
        &self,
        ready: Ready,
        to: &Lease<HostPort>,
        from: SocketAddr,
        begun: &Begun,
        end: &End,
        reusable: bool,
    ) {
        let dial = &self.dial;
        let moved = ready.listed.finish(begun);
        access(Side::Dial, &dial.settings.service, &ready.listed, &from.to_string(), &moved, end);
        match end {
            End::Protocol(e) => dial.refuse(&to.to_string(), "protocol_error", e.to_string()),
            // A foreign server's opinion of our certificate comes when the session has begun.
            End::Broken(e) => {
                if let Some(alert) = alert(e) {
                    dial.refuse(&to.to_string(), "refused_by_peer", alert);
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
                // Boxed: of no use to a session that finds an idle one.
                None => match Box::pin(self.connect_in_turn(to)).await {
                    Ok(found) => found,
                    Err(missed) => return Attempt::Next(missed),
                },
            };
            // What the program has sent already goes out together with the OPEN. Nothing is waited for: a
            // protocol in which the server speaks first sends an OPEN alone.
            let early = early.get_or_insert_with(|| open_with_data(&self.dial.open, app));
            let (first, sent) = match early {
                Some((buffer, sent)) => (&**buffer, *sent),
                None => (&*self.dial.open, 0),
            };
            if !ready.conn.framed {
                self.shelf(to, |shelf| shelf.raw = true);
                let data = &first[first.len().min(self.dial.open.len() + HEADER)..];
                return match sent == 0 || ready.conn.send(data).await.is_ok() {
                    true => Attempt::Opened(ready),
                    false => Attempt::Stop("broken", "the peer hung up".into()),
                };
            }
            let answer = match ready.conn.send(first).await {
                Ok(()) => ready.conn.read_answer().await,
                Err(e) => last_words(&mut ready.conn, e).await,
            };
            match answer {
                Ok(Answer::Opened) => return Attempt::Opened(ready),
                Ok(Answer::Refused(refused)) => {
                    if ready.conn.end_refused().await {
                        self.put(to, ready);
                    }
                    let detail = format!("service/{} said so", self.dial.settings.service);
                    return match refused {
                        Refused::NotAllowed => Attempt::Stop(refused.reason(), detail),
                        _ => Attempt::Next(Missed::new(refused.reason(), detail)),
                    };
                }
                // A server that retires the connection has not acted on the OPEN.
                Ok(Answer::Retired) if pooled => continue,
                // Where another process has taken over meanwhile, that one answers.
                Ok(Answer::Retired) if retired < RETIRED => retired += 1,
                Ok(Answer::Retired) => {
                    let what = "it is about to stop, or we hold too many connections: its log says";
                    return Attempt::Next(Missed::new("hung_up", what));
                }
                Err(End::Broken(e)) => {
                    if ready.listed.is_unused()
                        && let Some(alert) = alert(&e)
                    {
                        // It did not let us in, so it did not act on anything either. (On a connection
                        // that was used, an alert says no such thing.)
                        return Attempt::Next(Missed::new("refused_by_peer", alert));
                    }
                    if e.kind() == io::ErrorKind::TimedOut {
                        // The whole path is dead, most likely: what else is kept for it is no better.
                        self.shelf(to, |shelf| shelf.idle.clear());
                    }
                    match (sent, pooled) {
                        (0, true) => continue,
                        (0, false) => return Attempt::Next(Missed::new("broken", e.to_string())),
                        // What went along with the OPEN may have reached a backend.
                        _ => return Attempt::Stop("broken", e.to_string()),
                    }
                }
                Err(other) => {
                    return Attempt::Stop(other.word(), other.detail().unwrap_or_default());
                }
            }
        }
    }

    /// A new connection when it is its turn; or one that has become idle before, and then true.
    async fn connect_in_turn(
        self: &Rc<Pool>,
        to: &Lease<HostPort>,
    ) -> Result<(Ready, bool), Missed> {
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
    ) -> Result<Turn, Missed> {
        let news = self.shelf(to, |shelf| {
            (shelf.waiting < MAX_WAITING).then(|| {
                shelf.waiting += 1;
                shelf.news.clone()
            })
        });
        let news = news.ok_or_else(|| {
            let what = format!("{MAX_WAITING} sessions wait for a connection to it already");
            Missed::new("too_many_waiting", what)
        })?;
        let _waiting = Waiting(self, to);
        let late = || {
            let what = format!(
                "{} s have passed, and others still connect: the instance accepts too few connections for this burst",
                TURN.as_secs()
            );
            Missed::new("no_turn", what)
        };
        let waited = timeout(TURN, async {
            let mut turn = pin!(turns.acquire_owned());
            loop {
                tokio::select! {
                    biased;
                    turn = &mut turn => {
                        let closed = |_| Missed::new("no_turn", "this process stops");
                        return turn.map(Turn::Connect).map_err(closed);
                    }
                    () = news.notified() => {}
                }
                if let Some(ready) = self.take(to) {
                    return Ok(Turn::Take(ready));
                }
                if self.dial.balancer.is_held(to) {
                    let what = "it has failed for those before this one";
                    return Err(Missed::new("unreachable", what));
                }
            }
        });
        waited.await.unwrap_or_else(|_| Err(late()))
    }

    /// Takes an idle connection off the shelf, and sees to it that there will be another.
    fn take(self: &Rc<Pool>, to: &HostPort) -> Option<Ready> {
        let (ready, short) = self.shelf(to, |shelf| {
            let mut ready = None;
            while ready.is_none()
                && let Some(mut idle) = shelf.idle.pop()
            {
                ready = shelf.check(&mut idle, &self.dial.mesh).then_some(idle.ready);
            }
            shelf.low = shelf.low.min(shelf.idle.len());
            (ready, shelf.idle.len() < WARM)
        });
        if short {
            self.warm(to);
        }
        ready
    }

    /// Puts a connection back.
    fn put(&self, to: &HostPort, ready: Ready) {
        // A peer that sent more after its end mark is not to be trusted with another session.
        if self.closed.get() || now() >= ready.give_up || !ready.conn.is_at_rest() {
            return ready.conn.tls.close();
        }
        self.shelf(to, |shelf| match shelf.idle.len() < MAX_IDLE {
            true => {
                shelf.idle.push(Idle::new(ready, &self.dial.totals));
                if shelf.waiting > 0 {
                    shelf.news.notify_one();
                }
            }
            false => ready.conn.tls.close(),
        });
    }

    /// Connects ahead of need, one at a time for each instance.
    fn warm(self: &Rc<Pool>, to: &HostPort) {
        if self.closed.get() {
            return;
        }
        let due = self.shelf(to, |shelf| {
            let due = !shelf.warming
                && !shelf.raw
                && shelf.idle.len() < WARM
                && shelf.retry_at.is_none_or(|at| at <= Instant::now());
            shelf.warming |= due;
            due
        });
        if !due {
            return;
        }
        let (pool, to) = (self.clone(), to.clone());
        tokio::task::spawn_local(async move {
            // Ahead of need: sessions that need one go first.
            let turn = pool.dial.table.turns.to(&to).try_acquire_owned();
            let connected = match &turn {
                Ok(_) => connect(&pool.dial, &to).await,
                Err(_) => Err(Missed::new("no_turn", "sessions are connecting")),
            };
            drop(turn);
            if pool.closed.get() {
                if let Ok(ready) = connected {
                    ready.conn.tls.close();
                }
                return;
            }
            let again = pool.shelf(&to, |shelf| {
                shelf.warming = false;
                match connected {
                    Ok(ready) if ready.conn.framed => {
                        shelf.idle.push(Idle::new(ready, &pool.dial.totals));
                        shelf.idle.len() < WARM && shelf.failures == 0
                    }
                    Ok(_) => {
                        shelf.raw = true;
                        false
                    }
                    Err(Missed { reason: "no_turn", .. }) => false,
                    Err(Missed { reason, detail, .. }) => {
                        // Somebody who really wants to connect reports it; here it is only noted.
                        tracing::debug!(%to, reason, detail, "not warmed up");
                        shelf.failed();
                        false
                    }
                }
            });
            if again {
                pool.warm(&to);
            }
        });
    }

    /// Every second: drops idle connections that are of no more use, gives up what nobody needed for a
    /// while, and keeps a few ready for each instance.
    pub(crate) fn sweep(self: &Rc<Pool>) {
        let window_over = self.window.borrow().elapsed() >= WINDOW;
        if window_over {
            *self.window.borrow_mut() = Instant::now();
        }
        let addresses = self.dial.addresses();
        let has_identity = self.dial.mesh.identity(&self.dial.settings.identity).is_some();
        let mut shelves = self.shelves.borrow_mut();
        shelves.retain(|to, shelf| addresses.contains(to) || shelf.warming || shelf.waiting > 0);
        for shelf in shelves.values_mut() {
            let mut idle = std::mem::take(&mut shelf.idle);
            idle.retain_mut(|idle| {
                has_identity
                    && idle.ready.listed.age() < idle.ready.lasts
                    && shelf.check(idle, &self.dial.mesh)
            });
            shelf.idle = idle;
            if window_over {
                let spare = shelf.low.min(shelf.idle.len()).saturating_sub(WARM);
                shelf.idle.drain(..spare).for_each(|idle| idle.ready.conn.tls.close());
                shelf.low = shelf.idle.len();
                shelf.raw = false; // a peer that was replaced by one of ours is found out
            }
        }
        drop(shelves);
        if has_identity {
            addresses.iter().for_each(|to| self.warm(to));
        }
    }

    /// Closes all idle connections, and from now on those that become idle.
    pub(crate) fn close(&self) {
        self.closed.set(true);
        for (_, shelf) in self.shelves.borrow_mut().drain() {
            shelf.idle.into_iter().for_each(|idle| idle.ready.conn.tls.close());
        }
    }

    fn shelf<T>(&self, to: &HostPort, f: impl FnOnce(&mut Shelf) -> T) -> T {
        let mut shelves = self.shelves.borrow_mut();
        match shelves.get_mut(to) {
            Some(shelf) => f(shelf),
            None => f(shelves.entry(to.clone()).or_default()),
        }
    }
}

/// Between 0 and 1. If the system gives no randomness, a half: jitter is no secret.
fn jitter() -> f64 {
    let mut byte = [0];
    aws_lc_rs::rand::fill(&mut byte).map_or(0.5, |()| f64::from(byte[0]) / 255.0)
}

/// An OPEN together with what the program has sent already, and how much that is; `None`, and no buffer
/// held while an instance is looked for, if it has sent nothing.
fn open_with_data(open: &[u8], app: &App) -> Option<(Buffer, usize)> {
    let mut buffer = Buffer::take();
    let at = open.len() + HEADER;
    let sent = app.try_read(&mut buffer.room()[at..CHUNK])?;
    buffer.room()[..open.len()].copy_from_slice(open);
    buffer.room()[open.len()..at].copy_from_slice(&Frame::Data(sent).header());
    buffer.set_len(at + sent);
    Some((buffer, sent))
}

/// Connects, shakes hands and lists the connection.
async fn connect(dial: &Dial, to: &HostPort) -> Result<Ready, Missed> {
    let identity = dial.mesh.identity(&dial.settings.identity).ok_or_else(|| {
        let id = &dial.settings.identity;
        let what = format!("we have no valid certificate for {id} (is the authority reachable?)");
        Missed::new("no_identity", what)
    })?;
    let unreachable = |e: io::Error| Missed::new("unreachable", e.to_string());
    let socket =
        net::with_descriptor(async || net::connect(to).await).await.map_err(unreachable)?;
    let addr = socket.peer_addr().map_err(unreachable)?;
    let (config, name) = (dial.tls.clone(), dial.server_name.clone());
    let shaken = TlsStream::connect(socket, config, name, HANDSHAKE).await;
    let (tls, Agreed { negotiated, chain }) = shaken.map_err(|e| {
        let (reason, detail) = explain(&e);
        let reset = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
        let is_busy = matches!(&e, HandshakeError::Io(e) if reset.contains(&e.kind()));
        Missed { reason, detail, is_busy }
    })?;
    let peer = tls::peer(&dial.mesh, &chain, Side::Dial.peer_role())
        .map_err(|refusal| Missed::new(refusal.reason(), refusal.to_string()))?;
    if negotiated.alpn && !provider::is_post_quantum(negotiated.group) {
        let what = format!("{} did not take X25519MLKEM768", peer.id());
        return Err(Missed::new("no_post_quantum", what));
    }
    // Half of what is left of our own certificate, and never past the peer's.
    let left = identity.leaf().period.not_after.saturating_sub(now());
    let give_up = (now() + left / 2).min(peer.not_after());
    let lasts = Duration::from_secs(give_up.saturating_sub(now()));
    let service = &dial.settings.service;
    let listed = dial.table.list(Side::Dial, service, peer, addr, negotiated, u32::MAX);
    let listed = listed.ok_or_else(|| Missed::new("too_many_connections", ""))?;
    // Whoever was revoked before it was listed has not been cut with the others.
    if let Err(refusal) = dial.mesh.standing(listed.peer()) {
        return Err(Missed::new(refusal.reason(), refusal.to_string()));
    }
    let conn = Box::new(Conn::new(tls, negotiated.alpn));
    Ok(Ready { conn, listed, give_up, lasts })
}

/// After a failed write: what the server said before the connection broke, if that was an answer by which
/// nothing has reached a backend. A server that has just retired an idle connection resets it when an OPEN
/// comes, and its close_notify is still there to be read.
async fn last_words(conn: &mut Conn, error: io::Error) -> Result<Answer, End> {
    match timeout(LAST_WORDS, conn.read_answer()).await {
        Ok(Ok(answer @ (Answer::Retired | Answer::Refused(_)))) => Ok(answer),
        Ok(Err(End::Broken(read))) if alert(&read).is_some() => Err(End::Broken(read)),
        _ => Err(End::Broken(error)),
    }
}

/// The peer's alert, if that is what broke the connection.
fn alert(error: &io::Error) -> Option<String> {
    match error.get_ref()?.downcast_ref()? {
        RecordError::Alert(alert) => Some(format!(
            "the peer did not accept our certificate or offer ({alert:?}); its log says why"
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

    /// An instance that takes what comes with one read, tells of it and breaks the connection.
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

    /// What two instances get to see of one program that has said `word` before its dial looks.
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
    fn what_a_program_has_said_travels_with_the_open_and_is_said_once() {
        // It may have reached a backend: the other instance is not asked.
        let seen = seen_of_two_that_break(b"first");
        let open = Open { service: rig::name("db"), destination: None }.encode();
        assert_eq!(seen, [[&open, &Frame::Data(5).header()[..], b"first"].concat()]);
        // An OPEN alone has done nothing yet: it is.
        assert_eq!(seen_of_two_that_break(b""), [open.clone(), open]);
    }

    #[test]
    fn a_connection_that_was_retired_and_then_broke_says_so() {
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
                match last_words(&mut conn, error).await {
                    Ok(Answer::Retired) => assert!(retired),
                    Err(End::Broken(e)) => assert!(!retired && e.kind() == kind, "{e}"),
                    _ => panic!("it said something else"),
                }
            }
        });
    }
}
