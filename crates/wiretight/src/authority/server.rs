//! The authority's listener. Each connection has a task.
//!
//! A connection is either from a stranger (a client without a certificate: a join or rejoin, one request and one
//! response), or a node's stream. Everything is bounded: connections, strangers, strangers per address, messages,
//! waiting times, and the queue for a node, which holds a few responses and the newest state.

mod strangers;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use wiretight_keys::{Csr, Id, Name, Role, VerifiedPeer};
use wiretight_proxy::clock::now;
use wiretight_proxy::provider;
use wiretight_proxy::registry::weight;
use wiretight_proxy::{LogQuota, Mesh, tls};

use strangers::Strangers;

use super::ca::until;
use super::registry::{Announced, Joined, Registry, Written};
use super::state::{Publisher, Snapshot};
use super::{TICK, Times};
use crate::control::{
    Blob, Code, ControlError, Denial, EXPORTER_LABEL, FromAuthority, FromNode, FromStranger,
    MAX_SIGN, Offer, Reader, Records, SharedRecord, encode,
};

const MAX_CONNECTIONS: usize = 4096;
/// Responses that are queued for a node.
const MAX_REPLIES: usize = 32;
/// Bytes of records in one message; several messages can be queued for a node.
const PAGE: usize = 128 << 10;
/// After an announcement, reading pauses for this long per byte, which limits the work that one node can cause.
const PER_BYTE: Duration = Duration::from_nanos(100);
/// How long a closed connection is still read, so that a TCP reset does not destroy the last message.
const LINGER: Duration = Duration::from_secs(1);
/// How long a stream whose certificate was revoked stays open, to receive the state with the revocation.
const MAX_FAREWELL: Duration = Duration::from_secs(2);

type Stream = TlsStream<TcpStream>;

pub(super) struct Server {
    mesh: Arc<Mesh>,
    registry: Arc<Registry>,
    publisher: Arc<Publisher>,
    times: Times,
    acceptor: TlsAcceptor,
    slots: Arc<Semaphore>,
    strangers: Mutex<Strangers>,
    quota: Mutex<LogQuota>,
    lines: Mutex<HashMap<Name, Line>>,
    next_line: AtomicU64,
}

/// The handle to a node's live stream.
struct Line {
    number: u64,
    farewell: watch::Sender<Option<Denial>>,
    seen: Arc<Seen>,
}

/// The state of a stream.
#[derive(Default)]
pub(super) struct Seen {
    /// The version that the node uses.
    pub(super) acked: AtomicU64,
    /// When its last message arrived.
    pub(super) at: AtomicU64,
    /// Which announced records were rejected, and why.
    refused: Mutex<Option<String>>,
}

impl Seen {
    pub(super) fn refused(&self) -> Option<String> {
        self.refused.lock().clone()
    }
}

/// A client, with its first message.
enum Arrival {
    Stranger { stream: Box<Stream>, message: FromStranger, exporter: [u8; 32] },
    Node { reader: Reader<ReadHalf<Stream>>, writer: WriteHalf<Stream>, guest: Guest },
}

struct Guest {
    name: Name,
    peer: VerifiedPeer,
    have: u64,
    digest: String,
    offers: Records<Offer>,
}

/// Why a connection was rejected.
#[derive(Debug, thiserror::Error)]
enum Rejected {
    #[error("the TLS handshake failed: {0}")]
    Handshake(io::Error),
    #[error("refused: {0}")]
    Certificate(#[from] wiretight_keys::Refusal),
    #[error("{0}")]
    Tls(&'static str),
    #[error(transparent)]
    Message(#[from] ControlError),
    #[error("refused ({}): {}", .0.code, .0.message)]
    Denied(Denial),
}

impl Server {
    pub(super) fn new(
        mesh: Arc<Mesh>,
        registry: Arc<Registry>,
        publisher: Arc<Publisher>,
        times: Times,
    ) -> Result<Server, rustls::Error> {
        let strangers = tls::Strangers::MayShakeHands;
        let config = tls::server_config(&mesh, Id::Authority, tls::ALPN_CONTROL, strangers)?;
        Ok(Server {
            mesh,
            registry,
            publisher,
            times,
            acceptor: config.into(),
            slots: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            strangers: Mutex::default(),
            quota: Mutex::default(),
            lines: Mutex::default(),
            next_line: AtomicU64::new(1),
        })
    }

    pub(super) async fn run(
        self: Arc<Self>,
        listener: TcpListener,
        mut stop: watch::Receiver<bool>,
    ) {
        let (mut connections, signal) = (JoinSet::new(), stop.clone());
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((tcp, addr)) => {
                        connections.spawn(self.clone().serve(tcp, addr, signal.clone()));
                    }
                    Err(e) => {
                        // Probably out of file descriptors, which other connections will free.
                        tracing::error!("the authority cannot accept connections: {e}");
                        sleep(Duration::from_millis(200)).await;
                    }
                },
                Some(_) = connections.join_next() => {}
                () = super::stopped(&mut stop) => break,
            }
        }
        drop(listener);
        // Each sends its last message; the rest is aborted.
        let _ =
            timeout(2 * LINGER, async { while connections.join_next().await.is_some() {} }).await;
        connections.shutdown().await;
    }

    /// The state of the node's stream, if it has one.
    pub(super) fn line(&self, node: &Name) -> Option<Arc<Seen>> {
        self.lines.lock().get(node).map(|l| l.seen.clone())
    }

    /// Ends a node's stream.
    pub(super) fn cut(&self, node: &Name, denial: Denial) {
        if let Some(line) = self.lines.lock().get(node) {
            line.farewell.send_replace(Some(denial));
        }
    }

    /// Connected nodes that do not use `version` yet.
    pub(super) fn behind(&self, version: u64) -> Vec<Name> {
        let acked = |l: &Line| l.seen.acked.load(Ordering::Relaxed);
        let mut names: Vec<_> = self
            .lines
            .lock()
            .iter()
            .filter(|(_, line)| acked(line) < version)
            .map(|(name, _)| name.clone())
            .collect();
        names.sort();
        names
    }

    async fn serve(self: Arc<Self>, tcp: TcpStream, addr: SocketAddr, stop: watch::Receiver<bool>) {
        let Ok(_slot) = self.slots.clone().try_acquire_owned() else {
            return self.turned_away(addr, "too many connections; closed the newest one");
        };
        let door = self.door(addr.ip());
        let _ = tcp.set_nodelay(true);
        let deadline = Instant::now() + self.times.first_message;
        let arrived = tokio::select! {
            arrived = timeout_at(deadline, self.arrive(tcp)) => arrived,
            () = door.evicted.notified() => {
                let why = "too many unauthenticated connections; closed the oldest one";
                return self.turned_away(addr, why);
            }
        };
        let arrival = match arrived {
            Ok(Ok(arrival)) => arrival,
            Ok(Err(e)) => return self.turned_away(addr, &e.to_string()),
            Err(_) => {
                let limit = self.times.first_message;
                let why = format!("closed: no message within {limit:?} of connecting");
                return self.turned_away(addr, &why);
            }
        };
        match arrival {
            Arrival::Stranger { stream, message, exporter } => {
                self.stranger(*stream, addr, message, &exporter).await;
                drop(door);
            }
            Arrival::Node { reader, writer, guest } => {
                drop(door);
                self.node(reader, writer, addr, guest, stop).await;
            }
        }
    }

    /// Logs a rejected connection, with a rate limit.
    fn turned_away(&self, addr: SocketAddr, why: &str) {
        let mut quota = self.quota.lock();
        if quota.allows(now()) {
            tracing::warn!(peer = %addr, "{why}");
        }
    }

    /// Handshake and first message.
    async fn arrive(&self, tcp: TcpStream) -> Result<Arrival, Rejected> {
        let stream = match self.acceptor.accept(tcp).into_fallible().await {
            Ok(stream) => stream,
            Err((e, tcp)) => {
                linger(tcp).await;
                let inner = e.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
                return Err(match inner.and_then(tls::refusal) {
                    Some(refusal) => Rejected::Certificate(refusal.clone()),
                    None => Rejected::Handshake(e),
                });
            }
        };
        let connection = stream.get_ref().1;
        if connection.alpn_protocol() != Some(tls::ALPN_CONTROL) {
            return Err(Rejected::Tls(
                "the client did not offer wiretight-control/1, so it is not a Wiretight node",
            ));
        }
        let group = connection.negotiated_key_exchange_group().map(|g| g.name());
        if !group.is_some_and(provider::is_post_quantum) {
            return Err(Rejected::Tls(
                "the client's key exchange is not X25519MLKEM768, so it is not a Wiretight node",
            ));
        }
        let Some(chain) = connection.peer_certificates() else {
            let exporter = connection.export_keying_material([0; 32], EXPORTER_LABEL, None);
            let exporter = exporter.map_err(|_| Rejected::Tls("no exporter"))?;
            let mut reader = Reader::new(stream);
            let message = reader.next().await;
            let stream = reader.into_stream();
            return match message {
                Ok(message) => {
                    Ok(Arrival::Stranger { stream: Box::new(stream), message, exporter })
                }
                Err(e) => Err(refuse(stream, e).await),
            };
        };
        let peer = tls::peer(&self.mesh, chain, Role::Client)?;
        let Id::Node(name) = peer.id().id.clone() else {
            let message =
                format!("{} is not a node, and only nodes may open a stream", peer.id().id);
            let denial = Denial::new(Code::NotAllowed, message);
            say_last(stream, &denial).await;
            return Err(Rejected::Denied(denial));
        };
        let (reader, writer) = tokio::io::split(stream);
        let mut reader = Reader::new(reader);
        match reader.next().await {
            Ok(FromNode::Hello { have, digest, instances }) => {
                let guest = Guest { name, peer, have, digest, offers: instances };
                Ok(Arrival::Node { reader, writer, guest })
            }
            Ok(_) => {
                let denial = Denial::new(
                    Code::BadMessage,
                    "the first message of a stream must be \"hello\"",
                );
                say_last(reader.into_stream().unsplit(writer), &denial).await;
                Err(Rejected::Denied(denial))
            }
            Err(e) => Err(refuse(reader.into_stream().unsplit(writer), e).await),
        }
    }

    /// Serves one request of a stranger.
    async fn stranger(
        &self,
        mut stream: Stream,
        addr: SocketAddr,
        message: FromStranger,
        exporter: &[u8; 32],
    ) {
        let (what, joined) = match &message {
            FromStranger::Join(join) => {
                (format!("join of node {}", join.node), self.registry.join(join, exporter).await)
            }
            FromStranger::Rejoin(rejoin) => {
                let joined = self.registry.rejoin(rejoin, exporter).await;
                (format!("rejoin of node {}", rejoin.node), joined)
            }
            FromStranger::Unknown => {
                let message = "without a certificate only \"join\" and \"rejoin\" are possible";
                ("message".into(), Err(Denial::new(Code::UnknownType, message)))
            }
        };
        match joined {
            Ok(Joined { chain, bundle }) => {
                tracing::info!(peer = %addr, "{what}: accepted");
                let (chain, bundle) = (blobs(&chain), blobs(&bundle));
                let answer = FromAuthority::Joined { chain, bundle };
                if let Err(e) = send(&mut stream, &answer, self.times.first_message).await {
                    tracing::warn!(peer = %addr, "{what}: cannot send the response: {e}");
                }
                linger(stream).await;
            }
            Err(denial) => {
                self.turned_away(addr, &format!("{what} refused ({}): {denial}", denial.code));
                say_last(stream, &denial).await;
            }
        }
    }

    /// Serves a node's stream until it ends.
    async fn node(
        &self,
        mut reader: Reader<ReadHalf<Stream>>,
        mut writer: WriteHalf<Stream>,
        addr: SocketAddr,
        guest: Guest,
        mut stop: watch::Receiver<bool>,
    ) {
        let Guest { name: node, peer, have, digest, offers } = guest;
        let enrolment = match self.registry.welcome(&node, peer.serial()).await {
            Ok(enrolment) => enrolment,
            Err(denial) => {
                tracing::warn!(%node, peer = %addr, code = %denial.code, "stream refused: {denial}");
                say_last(reader.into_stream().unsplit(writer), &denial).await;
                return;
            }
        };
        let (number, farewell, seen) = self.open_line(&node);
        tracing::info!(%node, peer = %addr, "connected");
        let (replies, outbox) = mpsc::channel(MAX_REPLIES);
        let states = self.publisher.subscribe();
        let has = |newest: &Snapshot| newest.version == have && newest.digest == digest;
        seen.acked.store(if has(&states.borrow()) { have } else { 0 }, Ordering::Relaxed);
        let (wanted, follows) = watch::channel(None);
        let follow = self.follow(&node, &enrolment, follows, replies.clone());
        let (offered, offers) = watch::channel(offers);
        let (asked, requests) = mpsc::channel(MAX_SIGN);
        let (node, enrolment, seen) = (&node, &*enrolment, &*seen);
        let member = Member { node, enrolment, peer: &peer };
        let announce = self.announce(member, addr.ip(), seen, offers, replies.clone());
        let sign = self.sign(member, requests, replies.clone());
        let stream_reader =
            StreamReader { server: self, member, seen, replies, wanted, offered, asked };
        let why = tokio::select! {
            why = stream_reader.read(&mut reader) => why,
            why = announce => why,
            why = follow => why,
            why = sign => why,
            why = self.write(&mut writer, has, states, outbox, farewell, &peer) => why,
            () = super::stopped(&mut stop) => "the authority is stopping".into(),
        };
        self.close_line(node, number);
        tracing::info!(%node, peer = %addr, "disconnected: {why}");
        self.registry.seen(node).await;
        linger(reader.into_stream().unsplit(writer)).await;
    }

    /// Sends all messages to the node. Returns why it stopped.
    async fn write(
        &self,
        writer: &mut WriteHalf<Stream>,
        has: impl Fn(&Snapshot) -> bool,
        mut states: watch::Receiver<Arc<Snapshot>>,
        mut outbox: mpsc::Receiver<Out>,
        mut farewell: watch::Receiver<Option<Denial>>,
        peer: &VerifiedPeer,
    ) -> String {
        let limit = self.times.silence;
        let limits = FromAuthority::Limits { sign: MAX_SIGN as u32 };
        if let Err(e) = send(writer, &limits, limit).await {
            return e.to_string();
        }
        let first = states.borrow_and_update().clone();
        if !has(&first)
            && let Err(e) = send_bytes(writer, &first.frame, limit).await
        {
            return e.to_string();
        }
        let mut ping = tokio::time::interval_at(Instant::now() + self.times.ping, self.times.ping);
        ping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // The node's certificate must be valid as long as the stream is open.
        let look_at = || Instant::now() + until(peer.not_after() + 1).min(TICK);
        let expiry = sleep_until(look_at());
        tokio::pin!(expiry);
        let mut known = self.mesh.changes();
        // A node whose certificate was revoked first receives the state with the revocations.
        let (mut doomed, mut cut_at) = (None, Instant::now());
        loop {
            let out = tokio::select! {
                biased;
                Ok(()) = farewell.changed() => match farewell.borrow_and_update().clone() {
                    Some(denial) => Out::Last(denial),
                    None => continue,
                },
                () = &mut expiry => {
                    if now() <= peer.not_after() {
                        expiry.as_mut().reset(look_at());
                        continue;
                    }
                    let message = "the certificate of this connection has expired: connect again";
                    Out::Last(Denial::new(Code::Expired, message))
                }
                Ok(()) = known.changed(), if doomed.is_none() => {
                    (doomed, cut_at) = (self.revoked(peer), Instant::now() + MAX_FAREWELL);
                    continue;
                }
                () = sleep_until(cut_at), if doomed.is_some() => match doomed.take() {
                    Some(denial) => Out::Last(denial),
                    None => continue,
                },
                Some(out) = outbox.recv() => out,
                Ok(()) = states.changed() => {
                    let state = states.borrow_and_update().clone();
                    if let Err(e) = send_bytes(writer, &state.frame, limit).await {
                        return e.to_string();
                    }
                    match doomed.take() {
                        Some(denial) => Out::Last(denial),
                        None => continue,
                    }
                }
                _ = ping.tick() => Out::Reply(FromAuthority::Ping),
            };
            let (message, last) = match out {
                Out::Reply(message) => (message, None),
                Out::Last(denial) => (FromAuthority::Error(denial.clone()), Some(denial)),
            };
            match (send(writer, &message, limit).await, last) {
                (_, Some(denial)) => return denial.message,
                (Err(e), None) => return e.to_string(),
                (Ok(()), None) => {}
            }
        }
    }

    /// Handles the node's announcements. Too frequent ones are combined and only the newest is stored, so that one node
    /// cannot keep all others busy. Returns why the stream ends, if it does.
    async fn announce(
        &self,
        member: Member<'_>,
        from: IpAddr,
        seen: &Seen,
        mut offered: watch::Receiver<Records<Offer>>,
        replies: mpsc::Sender<Out>,
    ) -> String {
        let Member { node, enrolment, peer } = member;
        loop {
            let offers = offered.borrow_and_update().clone();
            let announced = match self.revoked(peer) {
                None => self.registry.announce(node, enrolment, from, offers).await,
                Some(denial) => Err(denial),
            };
            let denial = match announced {
                Ok(Announced::NotBefore(wait)) => {
                    sleep(wait).await;
                    continue;
                }
                Ok(Announced::Done) => None,
                Err(denial) => Some(denial),
            };
            *seen.refused.lock() = denial.as_ref().map(ToString::to_string);
            if let Some(denial) = denial {
                let out = match self.refused(node, 0, denial) {
                    Ok(reply) => Out::Reply(reply),
                    Err(denial) => Out::Last(denial),
                };
                let _ = replies.send(out).await;
            }
            if offered.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Signs the node's requests, all waiting ones together. Returns why the stream ends, if it does.
    async fn sign(
        &self,
        member: Member<'_>,
        mut asked: mpsc::Receiver<(u64, Blob)>,
        replies: mpsc::Sender<Out>,
    ) -> String {
        let Member { node, enrolment, peer } = member;
        let mut waiting = Vec::new();
        while asked.recv_many(&mut waiting, MAX_SIGN).await > 0 {
            let (requests, csrs): (Vec<u64>, Vec<Blob>) = waiting.drain(..).unzip();
            let mut signed = match self.revoked(peer) {
                None => self.registry.sign(node, enrolment, &csrs).await,
                Some(denial) => vec![Err(denial); csrs.len()],
            };
            if let Some(denial) = self.revoked(peer) {
                signed.fill(Err(denial));
            }
            for (request, signed) in requests.into_iter().zip(signed) {
                let out = match signed {
                    Ok(chain) => {
                        Out::Reply(FromAuthority::Signed { request, chain: blobs(&chain) })
                    }
                    Err(denial) => match self.refused(node, request, denial) {
                        Ok(reply) => Out::Reply(reply),
                        Err(denial) => Out::Last(denial),
                    },
                };
                let _ = replies.send(out).await;
            }
        }
        std::future::pending().await
    }

    /// The error for a node whose certificate was revoked. If it is still enrolled, it rejoins with its enrolment key and
    /// gets a new certificate.
    fn revoked(&self, peer: &VerifiedPeer) -> Option<Denial> {
        let refusal = self.mesh.standing(peer).err()?;
        Some(Denial::new(Code::Expired, format!("{refusal}: connect again")))
    }

    /// Sends the records that edges share, for the newest request only. Returns why the stream ends, if it does.
    async fn follow(
        &self,
        node: &Name,
        enrolment: &str,
        mut wanted: watch::Receiver<Option<(u64, Name)>>,
        replies: mpsc::Sender<Out>,
    ) -> String {
        loop {
            let newest = wanted.borrow_and_update().clone();
            if let Some((request, service)) = newest {
                let denial = tokio::select! {
                    denial = self.feed(node, enrolment, request, &service, &replies) => denial,
                    Ok(()) = wanted.changed() => continue,
                };
                let out = match self.refused(node, request, denial) {
                    Ok(reply) => Out::Reply(reply),
                    Err(denial) => Out::Last(denial),
                };
                let _ = replies.send(out).await;
            }
            if wanted.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Sends all records, then each change. Returns why it stopped.
    async fn feed(
        &self,
        node: &Name,
        enrolment: &str,
        request: u64,
        service: &Name,
        replies: &mpsc::Sender<Out>,
    ) -> Denial {
        let failed = |e: wiretight_store::Error| {
            tracing::error!("cannot read the records that edges share: {e}");
            Denial::new(Code::Internal, "internal error of the authority; see its log")
        };
        let may = || self.registry.may_share(node, enrolment, service);
        loop {
            if let Err(denial) = self.registry.may_follow(node) {
                return denial;
            }
            // Checked before reading the store, so that unauthorised requests are cheap.
            if let Err(denial) = may().await {
                return denial;
            }
            let read = async {
                let (records, at) = self.registry.shared(service).await?;
                Ok((records, at, self.registry.watch_shared(service, at).await?))
            };
            let (records, at, mut watch) = match read.await {
                Ok(read) => read,
                Err(e) => return failed(e),
            };
            let mut pages = pages(records);
            let last = pages.pop().unwrap_or_default();
            let page = |records, done| FromAuthority::Records { request, at: at.0, records, done };
            let all = pages.into_iter().map(|r| page(r, false)).chain([page(last, true)]);
            for message in all.collect::<Vec<_>>() {
                if let Err(denial) = may().await {
                    return denial;
                }
                let _ = replies.send(Out::Reply(message)).await;
            }
            loop {
                let changes = match watch.next().await {
                    Ok(changes) => changes,
                    // The watch was too slow: start again.
                    Err(wiretight_store::Error::Compacted { .. }) => break,
                    Err(e) => return failed(e),
                };
                // Checked after reading: a node that has lost access meanwhile must not get the changes.
                if let Err(denial) = may().await {
                    return denial;
                }
                for changes in self::pages(changes) {
                    let message = FromAuthority::Changes { request, changes };
                    let _ = replies.send(Out::Reply(message)).await;
                }
            }
        }
    }

    /// The response to a refused request; an error if the stream must end.
    fn refused(&self, node: &Name, request: u64, denial: Denial) -> Result<FromAuthority, Denial> {
        let mut quota = self.quota.lock();
        if quota.allows(now()) {
            tracing::warn!(%node, request, code = %denial.code, "refused: {denial}");
        }
        drop(quota);
        match denial.code {
            Code::Removed | Code::Superseded => Err(denial),
            _ => Ok(FromAuthority::Refused { request, denial }),
        }
    }

    fn open_line(&self, node: &Name) -> (u64, watch::Receiver<Option<Denial>>, Arc<Seen>) {
        let number = self.next_line.fetch_add(1, Ordering::Relaxed);
        let (farewell, receiver) = watch::channel(None);
        let seen = Arc::new(Seen::default());
        seen.at.store(now(), Ordering::Relaxed);
        let line = Line { number, farewell, seen: seen.clone() };
        if let Some(old) = self.lines.lock().insert(node.clone(), line) {
            let message = "a newer connection of this node has replaced this one";
            old.farewell.send_replace(Some(Denial::new(Code::Superseded, message)));
        }
        (number, receiver, seen)
    }

    fn close_line(&self, node: &Name, number: u64) {
        let mut lines = self.lines.lock();
        if lines.get(node).is_some_and(|l| l.number == number) {
            lines.remove(node);
        }
    }
}

enum Out {
    Reply(FromAuthority),
    /// An error, after which the stream is closed.
    Last(Denial),
}

/// The node of a stream.
#[derive(Clone, Copy)]
struct Member<'a> {
    node: &'a Name,
    enrolment: &'a str,
    peer: &'a VerifiedPeer,
}

/// The reading half of a node's stream.
struct StreamReader<'a> {
    server: &'a Server,
    member: Member<'a>,
    seen: &'a Seen,
    replies: mpsc::Sender<Out>,
    /// The service whose records the node follows.
    wanted: watch::Sender<Option<(u64, Name)>>,
    /// The node's announcement.
    offered: watch::Sender<Records<Offer>>,
    /// Certificate requests. While this is full, nothing more is read.
    asked: mpsc::Sender<(u64, Blob)>,
}

impl StreamReader<'_> {
    /// Reads until the stream ends or must end, and returns why. If the node must be told, the writing half does that and
    /// closes the stream.
    async fn read(self, reader: &mut Reader<ReadHalf<Stream>>) -> String {
        loop {
            let message = match timeout(self.server.times.silence, reader.next()).await {
                Ok(message) => message,
                Err(_) => return format!("no message for {:?}", self.server.times.silence),
            };
            self.seen.at.store(now(), Ordering::Relaxed);
            let read = match message {
                Ok(message) => self.answer(message).await,
                Err(ControlError::Closed) => return "the node closed the connection".into(),
                Err(ControlError::Io(e)) => return format!("the connection failed: {e}"),
                Err(e) => Err(Denial::new(Code::BadMessage, e.to_string())),
            };
            if let Err(denial) = read {
                if self.replies.send(Out::Last(denial)).await.is_err() {
                    return "the node does not read".into();
                }
                return std::future::pending().await;
            }
        }
    }

    /// Acts on a message. An error ends the stream.
    async fn answer(&self, message: FromNode) -> Result<(), Denial> {
        let Member { node, enrolment, peer } = self.member;
        let refused = |request, denial| self.server.refused(node, request, denial);
        let reply = match message {
            FromNode::Hello { .. } => {
                return Err(Denial::new(
                    Code::BadMessage,
                    "\"hello\" is allowed only once, as the first message",
                ));
            }
            FromNode::Announce { instances } => {
                let weigh = |o: &Offer| weight(&o.service, o.addr.host().len(), &o.allow, &o.ports);
                let bytes: usize = instances.good.iter().map(weigh).sum();
                self.offered.send_replace(instances);
                sleep(PER_BYTE * bytes.try_into().unwrap_or(u32::MAX)).await;
                return Ok(());
            }
            FromNode::Sign { request, csr } => {
                if csr.0.len() > Csr::MAX_LEN {
                    let message = format!(
                        "the certificate request has {} bytes, but the limit is {}",
                        csr.0.len(),
                        Csr::MAX_LEN
                    );
                    refused(request, Denial::new(Code::BadRequest, message))?
                } else {
                    let _ = self.asked.send((request, csr)).await;
                    return Ok(());
                }
            }
            FromNode::Follow { request, service } => {
                self.wanted.send_replace(Some((request, service)));
                return Ok(());
            }
            FromNode::Write { request, service, key, expected, value } => {
                let registry = &self.server.registry;
                let written = match self.server.revoked(peer) {
                    None => {
                        registry
                            .write_shared(node, enrolment, &service, &key, expected, value)
                            .await
                    }
                    Some(denial) => Err(denial),
                };
                match written {
                    Ok(Written::At(revision)) => {
                        FromAuthority::Written { request, revision: revision.0 }
                    }
                    Ok(Written::Conflict(found)) => {
                        FromAuthority::Conflict { request, found: found.unwrap_or_default().0 }
                    }
                    Err(denial) => refused(request, denial)?,
                }
            }
            FromNode::Totals { request, hours } => {
                let kept = match self.server.revoked(peer) {
                    None => self.server.registry.keep_totals(node, enrolment, hours).await,
                    Some(denial) => Err(denial),
                };
                match kept {
                    Ok(()) => FromAuthority::Kept { request },
                    Err(denial) => refused(request, denial)?,
                }
            }
            FromNode::Report { request, report } => {
                let kept = match self.server.revoked(peer) {
                    None => self.server.registry.keep_report(node, enrolment, *report).await,
                    Some(denial) => Err(denial),
                };
                match kept {
                    Ok(()) => FromAuthority::Kept { request },
                    Err(denial) => refused(request, denial)?,
                }
            }
            FromNode::Ack { version } => {
                self.seen.acked.store(version, Ordering::Relaxed);
                return Ok(());
            }
            FromNode::Ping => FromAuthority::Pong,
            FromNode::Pong => return Ok(()),
            FromNode::Unknown => {
                let message = "this authority does not know this type of message";
                FromAuthority::Error(Denial::new(Code::UnknownType, message))
            }
        };
        // The queue is full only if the node does not read, and then the writing half times out.
        let _ = self.replies.send(Out::Reply(reply)).await;
        Ok(())
    }
}

/// Splits records into parts of [`PAGE`] bytes. A single record may exceed it.
fn pages(records: Vec<SharedRecord>) -> Vec<Vec<SharedRecord>> {
    let (mut pages, mut bytes) = (Vec::<Vec<_>>::new(), 0);
    for record in records {
        let weight = record.key.len() + record.value.as_ref().map_or(0, |v| v.0.len());
        bytes += weight;
        match pages.last_mut() {
            Some(page) if bytes <= PAGE => page.push(record),
            _ => {
                bytes = weight;
                pages.push(vec![record]);
            }
        }
    }
    pages
}

fn blobs(chain: &[CertificateDer<'static>]) -> Vec<Blob> {
    chain.iter().map(Blob::from).collect()
}

async fn send<W: AsyncWrite + Unpin>(
    writer: &mut W,
    message: &FromAuthority,
    limit: Duration,
) -> Result<(), ControlError> {
    send_bytes(writer, &encode(message)?, limit).await
}

async fn send_bytes<W: AsyncWrite + Unpin>(
    writer: &mut W,
    bytes: &[u8],
    limit: Duration,
) -> Result<(), ControlError> {
    let write = async {
        writer.write_all(bytes).await?;
        writer.flush().await
    };
    let timed_out = || io::Error::new(io::ErrorKind::TimedOut, "the client does not read");
    Ok(timeout(limit, write).await.map_err(|_| timed_out())??)
}

/// Tells the client why, if possible.
async fn refuse(stream: Stream, e: ControlError) -> Rejected {
    if let ControlError::TooLarge { .. } | ControlError::Malformed(_) = e {
        say_last(stream, &Denial::new(Code::BadMessage, e.to_string())).await;
    }
    e.into()
}

/// Sends an error and closes the stream.
async fn say_last(mut stream: Stream, denial: &Denial) {
    let _ = send(&mut stream, &FromAuthority::Error(denial.clone()), LINGER).await;
    linger(stream).await;
}

/// Closes a stream and then reads the remaining bytes for a limited time. Dropping it with unread bytes would cause a TCP
/// reset, which could destroy the last message.
async fn linger<S: tokio::io::AsyncRead + AsyncWrite + Unpin>(mut stream: S) {
    let _ = timeout(LINGER, async {
        stream.shutdown().await?;
        let mut rest = [0; 4096];
        for _ in 0..64 {
            if stream.read(&mut rest).await? == 0 {
                break;
            }
        }
        io::Result::Ok(())
    })
    .await;
}
