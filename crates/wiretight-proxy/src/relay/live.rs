//! The relay's live connections, counters and refusals. Written by the workers, read by `status` and the metrics.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use slab::Slab;
use tokio::sync::Notify;
use wiretight_keys::{Name, Role, Series, SpiffeId, VerifiedPeer};

use super::turns::Turns;
use crate::clock::now;
use crate::latency::{Histogram, Latency};
use crate::quota::LogQuota;
use crate::reason::Reason;
use crate::stream::Negotiated;

/// The number of refusals that `status` shows.
const REFUSALS: usize = 100;

/// This node's side of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// It offers the service: mesh connections in, plaintext out.
    Service,
    /// Its programs use the service: plaintext in, mesh connections out.
    Dial,
}

impl Side {
    /// The TLS role of the peer.
    pub(crate) fn peer_role(self) -> Role {
        match self {
            Side::Service => Role::Client,
            Side::Dial => Role::Server,
        }
    }

    /// `service` or `dial`.
    pub fn word(self) -> &'static str {
        match self {
            Side::Service => "service",
            Side::Dial => "dial",
        }
    }
}

/// A mutually authenticated connection, busy or idle.
pub(crate) struct Live {
    side: Side,
    service: Name,
    peer: VerifiedPeer,
    addr: SocketAddr,
    local: Option<SocketAddr>,
    negotiated: Negotiated,
    opened: Instant,
    busy: AtomicBool,
    sessions: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
    progress: AtomicU64,
    cut: AtomicU8,
    wake: Notify,
    totals: Arc<Totals>,
}

impl Live {
    pub(crate) fn peer(&self) -> &VerifiedPeer {
        &self.peer
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn negotiated(&self) -> Negotiated {
        self.negotiated
    }

    /// Whether it has carried no session yet.
    pub(crate) fn is_unused(&self) -> bool {
        self.sessions.load(Relaxed) == 0
    }

    pub(crate) fn age(&self) -> Duration {
        self.opened.elapsed()
    }

    /// Starts a session; returns the counters before it.
    pub(crate) fn begin(&self) -> SessionStart {
        self.busy.store(true, Relaxed);
        self.sessions.fetch_add(1, Relaxed);
        self.totals.sessions.fetch_add(1, Relaxed);
        self.totals.live.fetch_add(1, Relaxed);
        SessionStart {
            sent: self.sent.load(Relaxed),
            received: self.received.load(Relaxed),
            at: Instant::now(),
        }
    }

    /// Ends a session.
    pub(crate) fn finish(&self, begun: &SessionStart) -> Transferred {
        self.busy.store(false, Relaxed);
        self.totals.live.fetch_sub(1, Relaxed);
        Transferred {
            sent: self.sent.load(Relaxed) - begun.sent,
            received: self.received.load(Relaxed) - begun.received,
            ms: begun.at.elapsed().as_millis() as u64,
        }
    }

    /// Counts plaintext encrypted for the peer. This is not progress, because it may wait for the peer to read.
    pub(crate) fn sent(&self, n: usize) {
        self.sent.fetch_add(n as u64, Relaxed);
        self.totals.sent.fetch_add(n as u64, Relaxed);
    }

    /// Counts plaintext from the peer that the program accepted.
    pub(crate) fn received(&self, n: usize) {
        self.progressed();
        self.received.fetch_add(n as u64, Relaxed);
        self.totals.received.fetch_add(n as u64, Relaxed);
    }

    /// Counts a write that a socket accepted, on either side.
    pub(crate) fn progressed(&self) {
        self.progress.fetch_add(1, Relaxed);
    }

    /// The number of such writes; the basis of idle timeouts.
    pub(crate) fn progress(&self) -> u64 {
        self.progress.load(Relaxed)
    }

    /// Resolves when this connection must be closed, with the reason.
    pub(crate) async fn cut(&self) -> &'static str {
        loop {
            let woken = self.wake.notified();
            match self.cut.load(Relaxed) {
                0 => woken.await,
                1 => return "revoked",
                _ => return "stopped",
            }
        }
    }

    fn cut_now(&self, why: u8) {
        self.cut.store(why, Relaxed);
        // Wakes the waiter, or is stored for a later one. There is at most one.
        self.wake.notify_one();
    }
}

pub(crate) struct SessionStart {
    sent: u64,
    received: u64,
    at: Instant,
}

/// The bytes transferred in one session.
pub(crate) struct Transferred {
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) ms: u64,
}

/// Totals for one side of one service since the start.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub(crate) sessions: AtomicU64,
    pub(crate) live: AtomicU64,
    pub(crate) idle: AtomicU64,
    pub(crate) handshakes: AtomicU64,
    pub(crate) failed: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
    pub(crate) times: Times,
}

/// How long the parts of opening a session take.
#[derive(Debug, Default)]
pub(crate) struct Times {
    /// From the TCP connection to the verified keys.
    pub(crate) handshake: Histogram,
    /// Of a TCP connection: to the peer's relay, or to the backend.
    pub(crate) connect: Histogram,
    /// Everything that precedes the first byte: from the program's connection, or the peer's request, until the session
    /// is open.
    pub(crate) open: Histogram,
}

/// The times of one side of one service, for the metrics.
#[derive(Debug, Clone)]
pub struct RelayLatency {
    pub side: Side,
    pub service: Name,
    /// TLS handshakes that succeeded.
    pub handshake: Latency,
    /// TCP connections that succeeded: to the peer's relay, or to the backend.
    pub connect: Latency,
    /// What this side adds before the first byte of a session: from the program's connection, or the peer's request,
    /// until the session is open.
    pub open: Latency,
}

/// A connection in the output of `status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Connection {
    pub side: Side,
    pub service: Name,
    pub peer: SpiffeId,
    pub address: SocketAddr,
    /// Its address and port here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<SocketAddr>,
    pub protocol: String,
    pub group: String,
    pub cipher: String,
    /// Whether a session is running on it.
    pub busy: bool,
    /// Sessions so far.
    pub sessions: u64,
    /// Plaintext bytes sent to the peer.
    pub bytes_out: u64,
    /// Plaintext bytes received from the peer.
    pub bytes_in: u64,
    pub age_seconds: u64,
}

/// The connections with one peer, for one side of one service, with the same TLS parameters.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PeerSum {
    pub side: Side,
    pub service: Name,
    pub peer: SpiffeId,
    /// The TLS version.
    pub protocol: String,
    pub group: String,
    pub cipher: String,
    /// Connections with a running session.
    pub live: u64,
    /// Connections without a session.
    pub idle: u64,
    /// Sessions so far.
    pub sessions: u64,
    /// Plaintext bytes sent to the peer.
    pub bytes_out: u64,
    /// Plaintext bytes received from the peer.
    pub bytes_in: u64,
}

/// Totals in the output of `status` and in the metrics.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sums {
    pub side: Side,
    pub service: Name,
    /// Sessions started since the start of the process.
    pub sessions: u64,
    /// Running sessions.
    pub live: u64,
    pub idle: u64,
    /// Handshakes completed since the start of the process.
    pub handshakes: u64,
    /// Sessions that failed to open.
    pub failed: u64,
    /// Plaintext bytes sent to peers.
    pub bytes_out: u64,
    /// Plaintext bytes received from peers.
    pub bytes_in: u64,
}

/// A refused attempt, by this node or by the peer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Refusal {
    /// Seconds since 1970.
    pub at: u64,
    pub side: Side,
    pub service: Name,
    pub address: String,
    /// The peer, if known.
    pub peer: Option<SpiffeId>,
    pub reason: Reason,
    /// An explanation for people.
    pub detail: String,
}

/// All connections, counters and refusals.
#[derive(Default)]
pub(crate) struct Table {
    live: Mutex<Slab<Arc<Live>>>,
    totals: Mutex<BTreeMap<(Side, Name), Arc<Totals>>>,
    /// The number of connections of each client to each service.
    by_peer: Mutex<HashMap<(Name, Client), u32>>,
    refusals: Mutex<Refusals>,
    opening: AtomicUsize,
    pub(crate) turns: Turns,
    pub(crate) accept_errors: AtomicU64,
}

/// An identity on one node; all of its certificates have the same series. Limits are counted by this, so that one
/// node does not use up the limit of others with the same identity.
type Client = (SpiffeId, Series);

fn client(peer: &VerifiedPeer) -> Client {
    (peer.id().clone(), peer.serial().series())
}

/// A session being opened, from the program's connection (or the OPEN) until it starts or fails.
pub(crate) struct Opening(Arc<Table>);

impl Drop for Opening {
    fn drop(&mut self) {
        self.0.opening.fetch_sub(1, Relaxed);
    }
}

#[derive(Default)]
struct Refusals {
    last: VecDeque<Refusal>,
    counts: BTreeMap<(Side, Name, Reason), u64>,
    quota: LogQuota,
}

/// A registered connection, removed from the table on drop.
pub(crate) struct Listed {
    table: Arc<Table>,
    key: usize,
    live: Arc<Live>,
}

impl std::ops::Deref for Listed {
    type Target = Live;
    fn deref(&self) -> &Live {
        &self.live
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.table.live.lock().remove(self.key);
        if self.live.side == Side::Service {
            let key = (self.live.service.clone(), client(&self.live.peer));
            let mut by_peer = self.table.by_peer.lock();
            if let Some(n) = by_peer.get_mut(&key) {
                *n -= 1;
                if *n == 0 {
                    by_peer.remove(&key);
                }
            }
        }
    }
}

impl Table {
    pub(crate) fn totals(&self, side: Side, service: &Name) -> Arc<Totals> {
        self.totals.lock().entry((side, service.clone())).or_default().clone()
    }

    /// Registers a connection with these addresses, the peer's and ours. `None` if the client would have more than `max` connections to this service.
    pub(crate) fn list(
        self: &Arc<Table>,
        side: Side,
        service: &Name,
        peer: VerifiedPeer,
        (addr, local): (SocketAddr, Option<SocketAddr>),
        negotiated: Negotiated,
        max: u32,
    ) -> Option<Listed> {
        if side == Side::Service {
            let mut by_peer = self.by_peer.lock();
            let n = by_peer.entry((service.clone(), client(&peer))).or_default();
            if *n >= max {
                return None;
            }
            *n += 1;
        }
        let totals = self.totals(side, service);
        totals.handshakes.fetch_add(1, Relaxed);
        let live = Arc::new(Live {
            side,
            service: service.clone(),
            peer,
            addr,
            local,
            negotiated,
            opened: Instant::now(),
            busy: AtomicBool::new(false),
            sessions: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            progress: AtomicU64::new(0),
            cut: AtomicU8::new(0),
            wake: Notify::new(),
            totals,
        });
        let key = self.live.lock().insert(live.clone());
        Some(Listed { table: self.clone(), key, live })
    }

    /// Closes the connections of peers that are no longer trusted; returns how many.
    pub(crate) fn cut_unless(&self, is_trusted: impl Fn(&VerifiedPeer) -> bool) -> usize {
        let live = self.live.lock();
        let doomed = live.iter().filter(|(_, l)| !is_trusted(&l.peer));
        doomed.map(|(_, l)| l.cut_now(1)).count()
    }

    /// Closes all connections when the drain is over.
    pub(crate) fn cut_all(&self) {
        self.live.lock().iter().for_each(|(_, l)| l.cut_now(2));
    }

    /// Counts a session as being opened, until the result is dropped.
    pub(crate) fn opening(self: &Arc<Table>) -> Opening {
        self.opening.fetch_add(1, Relaxed);
        Opening(self.clone())
    }

    /// The number of sessions running or being opened. A session that moves from the second state to the first during
    /// the count is counted twice, which is better than not at all.
    pub(crate) fn busy(&self) -> usize {
        let opening = self.opening.load(Relaxed);
        opening + self.live.lock().iter().filter(|(_, l)| l.busy.load(Relaxed)).count()
    }

    /// Up to `max` connections, busy ones first.
    pub(crate) fn connections(&self, max: usize) -> Vec<Connection> {
        let mut all: Vec<Arc<Live>> = self.live.lock().iter().map(|(_, l)| l.clone()).collect();
        all.sort_by_cached_key(|l| !l.busy.load(Relaxed));
        let connection = |l: &Arc<Live>| Connection {
            side: l.side,
            service: l.service.clone(),
            peer: l.peer.id().clone(),
            address: l.addr,
            local: l.local,
            protocol: protocol_name(l.negotiated),
            group: group_name(l.negotiated),
            cipher: cipher_name(l.negotiated),
            busy: l.busy.load(Relaxed),
            sessions: l.sessions.load(Relaxed),
            bytes_out: l.sent.load(Relaxed),
            bytes_in: l.received.load(Relaxed),
            age_seconds: l.opened.elapsed().as_secs(),
        };
        all.iter().take(max).map(connection).collect()
    }

    /// All connections, summed up by peer and TLS parameters.
    pub(crate) fn peers(&self) -> Vec<PeerSum> {
        let mut sums: BTreeMap<_, PeerSum> = BTreeMap::new();
        for (_, l) in self.live.lock().iter() {
            let n = l.negotiated;
            let (version, group, suite) =
                (u16::from(n.version), u16::from(n.group), u16::from(n.suite));
            let key = (l.side, l.service.clone(), l.peer.id().clone(), version, group, suite);
            let sum = sums.entry(key).or_insert_with(|| PeerSum {
                side: l.side,
                service: l.service.clone(),
                peer: l.peer.id().clone(),
                protocol: protocol_name(n),
                group: group_name(n),
                cipher: cipher_name(n),
                live: 0,
                idle: 0,
                sessions: 0,
                bytes_out: 0,
                bytes_in: 0,
            });
            match l.busy.load(Relaxed) {
                true => sum.live += 1,
                false => sum.idle += 1,
            }
            sum.sessions += l.sessions.load(Relaxed);
            sum.bytes_out += l.sent.load(Relaxed);
            sum.bytes_in += l.received.load(Relaxed);
        }
        sums.into_values().collect()
    }

    /// The number of connections.
    pub(crate) fn connected(&self) -> usize {
        self.live.lock().len()
    }

    pub(crate) fn sums(&self) -> Vec<Sums> {
        let sums = |((side, service), t): (&(Side, Name), &Arc<Totals>)| Sums {
            side: *side,
            service: service.clone(),
            sessions: t.sessions.load(Relaxed),
            live: t.live.load(Relaxed),
            idle: t.idle.load(Relaxed),
            handshakes: t.handshakes.load(Relaxed),
            failed: t.failed.load(Relaxed),
            bytes_out: t.sent.load(Relaxed),
            bytes_in: t.received.load(Relaxed),
        };
        self.totals.lock().iter().map(sums).collect()
    }

    pub(crate) fn latencies(&self) -> Vec<RelayLatency> {
        let latency = |((side, service), t): (&(Side, Name), &Arc<Totals>)| RelayLatency {
            side: *side,
            service: service.clone(),
            handshake: t.times.handshake.read(),
            connect: t.times.connect.read(),
            open: t.times.open.read(),
        };
        self.totals.lock().iter().map(latency).collect()
    }

    /// Counts a refusal and keeps it for `status`; logs it unless there are too many at the moment.
    pub(crate) fn refuse(
        &self,
        side: Side,
        service: &Name,
        address: impl ToString,
        peer: Option<&SpiffeId>,
        reason: Reason,
        detail: String,
    ) {
        let address = address.to_string();
        let mut refusals = self.refusals.lock();
        *refusals.counts.entry((side, service.clone(), reason)).or_default() += 1;
        let at = now();
        if refusals.quota.allows(at) {
            let peer = peer.map(ToString::to_string);
            tracing::warn!(side = side.word(), %service, %address, peer, reason = reason.word(), detail, "refused");
        }
        if refusals.last.len() == REFUSALS {
            refusals.last.pop_front();
        }
        let (service, peer) = (service.clone(), peer.cloned());
        refusals.last.push_back(Refusal { at, side, service, address, peer, reason, detail });
    }

    /// The last refusals, newest last.
    pub(crate) fn refusals(&self) -> Vec<Refusal> {
        self.refusals.lock().last.iter().cloned().collect()
    }

    /// Refusals since the start by side, service and reason.
    pub(crate) fn refusal_counts(&self) -> Vec<(Side, Name, Reason, u64)> {
        let refusals = self.refusals.lock();
        refusals.counts.iter().map(|((s, n, r), c)| (*s, n.clone(), *r, *c)).collect()
    }
}

/// The TLS version as OpenSSL and most logs write it.
pub(crate) fn protocol_name(n: Negotiated) -> String {
    match n.version {
        rustls::ProtocolVersion::TLSv1_3 => "TLSv1.3".into(),
        other => format!("{other:?}"),
    }
}

/// The registered name of the key exchange group.
pub(crate) fn group_name(n: Negotiated) -> String {
    match n.group {
        rustls::NamedGroup::X25519MLKEM768 => "X25519MLKEM768".into(),
        other => format!("{other:?}"),
    }
}

/// The registered name of the cipher suite (RFC 8446, appendix B.4).
pub(crate) fn cipher_name(n: Negotiated) -> String {
    format!("{:?}", n.suite).replacen("TLS13_", "TLS_", 1)
}
