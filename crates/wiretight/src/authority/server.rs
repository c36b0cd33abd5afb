//! The authority's listener: who may connect, for how long, and one task for each connection.
//!
//! A connection is a stranger's (a join or rejoin: one question, one answer) or a node's stream. All
//! is bounded: connections, those of strangers, those of one address, every message, every wait, and
//! what is queued for a node, which is a few answers and the newest state.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use wiretight_keys::{Csr, Id, Name, Role, VerifiedPeer};
use wiretight_proxy::clock::now;
use wiretight_proxy::provider;
use wiretight_proxy::registry::weight;
use wiretight_proxy::{LogQuota, Mesh, tls};

use super::ca::until;
use super::registry::{Announced, Joined, Registry, Written};
use super::state::{Publisher, Snapshot};
use super::{TICK, Times};
use crate::control::{
    Blob, Code, ControlError, Denial, EXPORTER_LABEL, FromAuthority, FromNode, FromStranger,
    MAX_SIGN, Offer, Reader, Records, SharedRecord, encode,
};

const MAX_CONNECTIONS: usize = 4096;
/// Connections that have not authenticated themselves yet.
const MAX_STRANGERS: usize = 256;
/// Of those, from one address (IPv6: one /64), so that one machine gone wrong does not keep the others
/// out.
const MAX_STRANGERS_BY_ADDRESS: usize = 64;
/// Answers that wait for a node to read.
const MAX_REPLIES: usize = 32;
/// Records in one message, in bytes: several messages wait for a node.
const PAGE: usize = 128 << 10;
/// How long nothing is read after an announcement, for each of its bytes: so much work may one node make.
const PER_BYTE: Duration = Duration::from_nanos(100);
/// How long an ended connection is read on, so that its last message is not lost to a TCP reset.
const LINGER: Duration = Duration::from_secs(1);
/// How long a stream whose certificate was revoked waits for the state that says so.
const MAX_FAREWELL: Duration = Duration::from_secs(2);

type Stream = TlsStream<TcpStream>;

/// The listener and its connections.
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

/// A node's live stream, as others see it.
struct Line {
    number: u64,
    farewell: watch::Sender<Option<Denial>>,
    seen: Arc<Seen>,
}

/// What a stream reports.
#[derive(Default)]
pub(super) struct Seen {
    /// The version in force at the node.
    pub(super) acked: AtomicU64,
    /// When it last said anything.
    pub(super) at: AtomicU64,
    /// What of its announcement does not count, and why.
    refused: Mutex<Option<String>>,
}

impl Seen {
    pub(super) fn refused(&self) -> Option<String> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Who has come, with the first message.
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

/// Why a connection came to nothing.
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

    /// Serves until told to stop.
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
                        // Out of file descriptors, most likely: those in use come free in time.
                        tracing::error!("the authority cannot accept connections: {e}");
                        sleep(Duration::from_millis(200)).await;
                    }
                },
                Some(_) = connections.join_next() => {}
                () = super::stopped(&mut stop) => break,
            }
        }
        drop(listener);
        // Each says goodbye; those that cannot are cut.
        let _ =
            timeout(2 * LINGER, async { while connections.join_next().await.is_some() {} }).await;
        connections.shutdown().await;
    }

    /// The node's stream, if it has one.
    pub(super) fn line(&self, node: &Name) -> Option<Arc<Seen>> {
        self.lines().get(node).map(|l| l.seen.clone())
    }

    /// Ends a node's stream.
    pub(super) fn cut(&self, node: &Name, denial: Denial) {
        if let Some(line) = self.lines().get(node) {
            line.farewell.send_replace(Some(denial));
        }
    }

    /// Connected nodes that have not put `version` into force.
    pub(super) fn behind(&self, version: u64) -> Vec<Name> {
        let acked = |l: &Line| l.seen.acked.load(Ordering::Relaxed);
        let mut names: Vec<_> = self
            .lines()
            .iter()
            .filter(|(_, line)| acked(line) < version)
            .map(|(name, _)| name.clone())
            .collect();
        names.sort();
        names
    }

    fn lines(&self) -> MutexGuard<'_, HashMap<Name, Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn serve(self: Arc<Self>, tcp: TcpStream, addr: SocketAddr, stop: watch::Receiver<bool>) {
        let Ok(_slot) = self.slots.clone().try_acquire_owned() else {
            return self.turned_away(addr, "too many connections: this one is closed");
        };
        let door = self.door(addr.ip());
        let _ = tcp.set_nodelay(true);
        let deadline = Instant::now() + self.times.first_message;
        let arrived = tokio::select! {
            arrived = timeout_at(deadline, self.arrive(tcp)) => arrived,
            () = door.evicted.notified() => {
                let why = "too many connections that have not said who they are: the oldest is closed";
                return self.turned_away(addr, why);
            }
        };
        let arrival = match arrived {
            Ok(Ok(arrival)) => arrival,
            Ok(Err(e)) => return self.turned_away(addr, &e.to_string()),
            Err(_) => {
                let limit = self.times.first_message;
                let why = format!("said nothing within {limit:?} of connecting: closed");
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

    /// Logs a stranger's failure, unless there are too many of them at the moment.
    fn turned_away(&self, addr: SocketAddr, why: &str) {
        let mut quota = self.quota.lock().unwrap_or_else(PoisonError::into_inner);
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
            return Err(Rejected::Tls("it did not ask for wiretight-control/1: not one of ours"));
        }
        let group = connection.negotiated_key_exchange_group().map(|g| g.name());
        if !group.is_some_and(provider::is_post_quantum) {
            return Err(Rejected::Tls("its key exchange is not X25519MLKEM768: not one of ours"));
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
            let message = format!("{} is not a node: nodes alone have streams", peer.id().id);
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
                let denial = Denial::new(Code::BadMessage, "a stream begins with \"hello\"");
                say_last(reader.into_stream().unsplit(writer), &denial).await;
                Err(Rejected::Denied(denial))
            }
            Err(e) => Err(refuse(reader.into_stream().unsplit(writer), e).await),
        }
    }

    /// One question, one answer.
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
                let message = "without a certificate there is \"join\" and \"rejoin\" only";
                ("message".into(), Err(Denial::new(Code::UnknownType, message)))
            }
        };
        match joined {
            Ok(Joined { chain, bundle }) => {
                tracing::info!(peer = %addr, "{what}: welcome");
                let (chain, bundle) = (blobs(&chain), blobs(&bundle));
                let answer = FromAuthority::Joined { chain, bundle };
                if let Err(e) = send(&mut stream, &answer, self.times.first_message).await {
                    tracing::warn!(peer = %addr, "{what}: the answer did not reach it: {e}");
                }
                linger(stream).await;
            }
            Err(denial) => {
                self.turned_away(addr, &format!("{what} refused ({}): {denial}", denial.code));
                say_last(stream, &denial).await;
            }
        }
    }

    /// A node's stream, to its end.
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
        let talk = Talk { server: self, member, seen, replies, wanted, offered, asked };
        let why = tokio::select! {
            why = talk.read(&mut reader) => why,
            why = announce => why,
            why = follow => why,
            why = sign => why,
            why = self.write(&mut writer, has, states, outbox, farewell, &peer) => why,
            () = super::stopped(&mut stop) => "the authority is stopping".into(),
        };
        self.close_line(node, number);
        tracing::info!(%node, peer = %addr, "stream ended: {why}");
        self.registry.seen(node).await;
        linger(reader.into_stream().unsplit(writer)).await;
    }

    /// Sends whatever there is to send. Returns why it stopped.
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
        // What it was let in by must hold as long as it stays.
        let look_at = || Instant::now() + until(peer.not_after() + 1).min(TICK);
        let expiry = sleep_until(look_at());
        tokio::pin!(expiry);
        let mut known = self.mesh.changes();
        // Whose certificate was revoked is told what else is, and then cut.
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

    /// Takes what the node announces. The newest counts: what is changed too often is gathered, so that no node makes all
    /// others busy. Returns why the stream ends, if it does.
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
            *seen.refused.lock().unwrap_or_else(PoisonError::into_inner) =
                denial.as_ref().map(ToString::to_string);
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

    /// Signs what the node asks for: all that waits, together. Returns why the stream ends, if it does.
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

    /// What a node is told whose certificate was revoked. One that is still enrolled proves itself by its enrolment key,
    /// and gets another certificate.
    fn revoked(&self, peer: &VerifiedPeer) -> Option<Denial> {
        let refusal = self.mesh.standing(peer).err()?;
        Some(Denial::new(Code::Expired, format!("{refusal}: connect again")))
    }

    /// Sends what edges share, for the newest request alone. Returns why the stream ends, if it does.
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

    /// All that there is, then each change. Returns why no more comes.
    async fn feed(
        &self,
        node: &Name,
        enrolment: &str,
        request: u64,
        service: &Name,
        replies: &mpsc::Sender<Out>,
    ) -> Denial {
        let failed = |e: wiretight_store::Error| {
            tracing::error!("what edges share cannot be read: {e}");
            Denial::new(Code::Internal, "the authority cannot do its work now: its log says why")
        };
        let may = || self.registry.may_share(node, enrolment, service);
        loop {
            if let Err(denial) = self.registry.may_follow(node) {
                return denial;
            }
            // Before the store is read, for a stranger to the service is not to cost that.
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
                    // It was too slow: from the beginning.
                    Err(wiretight_store::Error::Compacted { .. }) => break,
                    Err(e) => return failed(e),
                };
                // After they were read: who may see them now could see them then.
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

    /// The answer to a request that is refused; an error if the stream itself is over.
    fn refused(&self, node: &Name, request: u64, denial: Denial) -> Result<FromAuthority, Denial> {
        let mut quota = self.quota.lock().unwrap_or_else(PoisonError::into_inner);
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
        if let Some(old) = self.lines().insert(node.clone(), line) {
            let message = "a newer connection of this node has taken over";
            old.farewell.send_replace(Some(Denial::new(Code::Superseded, message)));
        }
        (number, receiver, seen)
    }

    fn close_line(&self, node: &Name, number: u64) {
        let mut lines = self.lines();
        if lines.get(node).is_some_and(|l| l.number == number) {
            lines.remove(node);
        }
    }

    /// A place among those who have not said who they are. It is always given: where there are too many,
    /// the one who has had the time longest goes, so that no crowd of silent ones keeps a node out.
    fn door(self: &Arc<Self>, ip: IpAddr) -> Door {
        let (number, evicted) = self.strangers().enter(neighbourhood(ip));
        Door { server: self.clone(), number, evicted }
    }

    fn strangers(&self) -> MutexGuard<'_, Strangers> {
        self.strangers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who counts as one: an IPv4 address, or a /64 of IPv6, which one machine can have whole.
fn neighbourhood(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into(),
    }
}

/// Connections that have not said who they are, oldest first.
#[derive(Default)]
struct Strangers {
    next: u64,
    waiting: BTreeMap<u64, (IpAddr, Arc<Notify>)>,
}

impl Strangers {
    fn enter(&mut self, from: IpAddr) -> (u64, Arc<Notify>) {
        let near = || self.waiting.iter().filter(|(_, (ip, _))| *ip == from).map(|(n, _)| *n);
        let oldest = match near().count() >= MAX_STRANGERS_BY_ADDRESS {
            true => near().next(),
            false if self.waiting.len() >= MAX_STRANGERS => self.waiting.keys().next().copied(),
            false => None,
        };
        if let Some((_, evicted)) = oldest.and_then(|n| self.waiting.remove(&n)) {
            evicted.notify_one();
        }
        let (number, evicted) = (self.next, Arc::new(Notify::new()));
        self.next += 1;
        self.waiting.insert(number, (from, evicted.clone()));
        (number, evicted)
    }
}

/// Given back when dropped.
struct Door {
    server: Arc<Server>,
    number: u64,
    evicted: Arc<Notify>,
}

impl Drop for Door {
    fn drop(&mut self) {
        self.server.strangers().waiting.remove(&self.number);
    }
}

/// What is sent to a node.
enum Out {
    Reply(FromAuthority),
    /// An error, and the end.
    Last(Denial),
}

/// Whose stream it is.
#[derive(Clone, Copy)]
struct Member<'a> {
    node: &'a Name,
    enrolment: &'a str,
    peer: &'a VerifiedPeer,
}

/// The reading half of a node's stream.
struct Talk<'a> {
    server: &'a Server,
    member: Member<'a>,
    seen: &'a Seen,
    replies: mpsc::Sender<Out>,
    /// What the node wants to follow.
    wanted: watch::Sender<Option<(u64, Name)>>,
    /// What it offers.
    offered: watch::Sender<Records<Offer>>,
    /// What it asks to be signed. While it is full, nothing more is read.
    asked: mpsc::Sender<(u64, Blob)>,
}

impl Talk<'_> {
    /// Reads until the stream ends or must end. Returns why; if the node is to be told, the writing
    /// half does that and ends the stream.
    async fn read(self, reader: &mut Reader<ReadHalf<Stream>>) -> String {
        loop {
            let message = match timeout(self.server.times.silence, reader.next()).await {
                Ok(message) => message,
                Err(_) => return format!("silent for {:?}", self.server.times.silence),
            };
            self.seen.at.store(now(), Ordering::Relaxed);
            let read = match message {
                Ok(message) => self.answer(message).await,
                Err(ControlError::Closed) => return "the node closed it".into(),
                Err(ControlError::Io(e)) => return format!("it broke: {e}"),
                Err(e) => Err(Denial::new(Code::BadMessage, e.to_string())),
            };
            if let Err(denial) = read {
                if self.replies.send(Out::Last(denial)).await.is_err() {
                    return "the node reads nothing".into();
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
                return Err(Denial::new(Code::BadMessage, "\"hello\" comes once, at the start"));
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
                        "the certificate request has {} bytes, and {} is the limit",
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
            FromNode::Ack { version } => {
                self.seen.acked.store(version, Ordering::Relaxed);
                return Ok(());
            }
            FromNode::Ping => FromAuthority::Pong,
            FromNode::Pong => return Ok(()),
            FromNode::Unknown => {
                let message = "this authority does not know that type of message";
                FromAuthority::Error(Denial::new(Code::UnknownType, message))
            }
        };
        // Full only if the node does not read, and then the writing half gives up in time.
        let _ = self.replies.send(Out::Reply(reply)).await;
        Ok(())
    }
}

/// In parts of [`PAGE`]. One record may exceed it.
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
    let timed_out = || io::Error::new(io::ErrorKind::TimedOut, "it reads nothing");
    Ok(timeout(limit, write).await.map_err(|_| timed_out())??)
}

/// Tells why, if the other side can be told.
async fn refuse(stream: Stream, e: ControlError) -> Rejected {
    if let ControlError::TooLarge { .. } | ControlError::Malformed(_) = e {
        say_last(stream, &Denial::new(Code::BadMessage, e.to_string())).await;
    }
    e.into()
}

/// An error, and the end.
async fn say_last(mut stream: Stream, denial: &Denial) {
    let _ = send(&mut stream, &FromAuthority::Error(denial.clone()), LINGER).await;
    linger(stream).await;
}

/// Ends a stream in order: close, then read what is still under way, for a bounded while. To drop it
/// with bytes unread would make TCP reset it, and the last message might be lost.
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
