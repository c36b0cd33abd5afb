//! HTTP/3.
//!
//! Each worker has its own QUIC endpoint on the shared port, and the kernel distributes packets by address, so that a
//! connection stays with one worker. If a client's address changes (a phone that leaves the Wi-Fi), its packets reach
//! another worker, which does not know the connection. That worker responds with a stateless reset, using a key that
//! all workers share, and the client reconnects at once. So connections do not migrate, but no packet has to be
//! passed between threads.

use std::cell::{Cell, OnceCell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use h3::error::Code;
use h3::quic::SendStream as _;
use h3::server::RequestStream;
use hyper::body::{Body, Buf, Bytes};
use hyper::{Method, Request, Response};
use quinn::{Endpoint, EndpointConfig, IdleTimeout, ServerConfig, TransportConfig, VarInt};
use tokio::sync::watch;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, timeout};

use super::FAREWELL;
use super::body::Source;
use super::clients::Peer;
use super::context::{Shared, WorkerContext};
use super::gate::{self, Gate, Gated, Gates, Stream};
use super::guard::Activity;
use super::hints::{self, Hints};
use super::live::{Counted, Http};
use super::pseudo;
use super::quic_body::QuicBody;
use super::quic_tls::{BySite, HandshakeInfo};
use super::reply::ReplyBody;
use super::serve::{Client, Exchange};
use super::settings::Limits;
use super::strict::MAX_HEAD;
use crate::admission::Pending;
use crate::reason::Reason;

/// Flow-control windows for the client, for one stream and for the whole connection.
const STREAM_WINDOW: u32 = 256 * 1024;
const WINDOW: u32 = 1024 * 1024;
/// The most unacknowledged data for a client, over all streams of a connection; it limits the cost of a slow reader.
const SEND_WINDOW: u64 = 1024 * 1024;
/// The largest piece of a response passed to the library at a time.
const PIECE: usize = 64 * 1024;

/// Concurrent handshakes on one worker with clients whose address may be spoofed. Above this, a client must first
/// prove that it receives packets at its address.
const UNPROVED: usize = 128;

/// A worker's endpoint on the port.
pub(crate) fn endpoint(socket: std::net::UdpSocket, shared: &Shared) -> io::Result<Endpoint> {
    let limits = &shared.sites.load().settings.limits;
    let tls = BySite::new(&shared.sites, &shared.configs).map_err(io::Error::other)?;
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(limits.streams))
        .max_concurrent_uni_streams(VarInt::from_u32(8))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(WINDOW))
        .send_window(SEND_WINDOW)
        .max_idle_timeout(IdleTimeout::try_from(limits.idle).ok())
        .datagram_receive_buffer_size(None);
    let mut config = ServerConfig::new(Arc::new(tls), shared.quic.token.clone());
    config.transport_config(Arc::new(transport)).migration(false);
    let endpoint = EndpointConfig::new(shared.quic.reset.clone());
    Endpoint::new(endpoint, Some(config), socket, Arc::new(quinn::TokioRuntime))
}

/// State shared by the QUIC connections of a worker.
pub(crate) struct Port {
    shared: Shared,
    context: Rc<WorkerContext>,
    /// Handshakes in progress. Counted separately from TCP handshakes, because the source address of a first packet may be
    /// spoofed.
    handshakes: Rc<Pending>,
    /// One reference for each handshake of a client that has not yet proved that it receives packets at its address.
    unproved: Rc<()>,
}

impl Port {
    pub(crate) fn new(shared: Shared, context: Rc<WorkerContext>) -> Rc<Port> {
        let (handshakes, unproved) = Default::default();
        Rc::new(Port { shared, context, handshakes, unproved })
    }
}

/// Accepts connections until told to stop; established connections continue.
pub(crate) async fn accept(
    at: Rc<Port>,
    endpoint: Endpoint,
    mut stop: watch::Receiver<bool>,
    open: Arc<()>,
) {
    let mut draining = at.shared.draining.clone();
    loop {
        let incoming = tokio::select! {
            biased;
            _ = stop.wait_for(|s| *s) => break,
            _ = draining.wait_for(|d| *d) => break,
            incoming = endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else { break };
        let proved = incoming.remote_address_validated();
        if !proved && Rc::strong_count(&at.unproved) > UNPROVED {
            // Costs only this packet: a real client returns with the token (RFC 9000, section 8.1.2), and one with a
            // spoofed address cannot.
            if let Err(error) = incoming.retry() {
                error.into_incoming().ignore();
            }
            continue;
        }
        let unproved = (!proved).then(|| at.unproved.clone());
        let Some(slot) = at.handshakes.enter(Some(incoming.remote_address().ip())) else {
            incoming.ignore();
            continue;
        };
        let at = at.clone();
        let port = endpoint.local_addr().map_or(0, |a| a.port());
        spawn_local(async move {
            let from = incoming.remote_address();
            let limits = at.context.sites.load().settings.limits.clone();
            let begun = Instant::now();
            let handshake = async { incoming.accept()?.await };
            let handshake = timeout(limits.handshake, handshake).await;
            drop((slot, unproved));
            let table = &at.shared.table;
            match handshake {
                Ok(Ok(connection)) => serve(&at, connection, port, &limits, begun.elapsed()).await,
                Ok(Err(error)) => table.refuse(from, Reason::HandshakeFailed, error),
                Err(_) => table.refuse(from, Reason::Stalled, "the handshake timed out"),
            }
        });
    }
    endpoint.set_server_config(None);
    // The socket is shared with the remaining connections.
    endpoint.wait_idle().await;
    drop(endpoint);
    drop(open);
}

async fn serve(
    at: &Port,
    connection: quinn::Connection,
    port: u16,
    limits: &Limits,
    handshake: Duration,
) {
    let table = &at.shared.table;
    let from = connection.remote_address();
    let data = connection.handshake_data().and_then(|d| d.downcast::<HandshakeInfo>().ok());
    let Some(HandshakeInfo { name: Some(name), by_default, group }) = data.map(|d| *d) else {
        return table.refuse(from, Reason::UnrecognizedName, "QUIC without a server name");
    };
    let group: Arc<str> = group.map_or("unknown".into(), |g| format!("{g:?}").into());
    let sites = at.context.sites.load_full();
    let mut peer = None;
    if let Some((site_name, site)) = sites.find(&name) {
        let certificate = sites.certificate(&name, (site_name, site));
        site.shown(certificate.is_some_and(|c| c.is_valid()));
        let chain = connection.peer_identity().and_then(|c| c.downcast::<Vec<_>>().ok());
        peer = match Peer::of(site, &at.shared.mesh, chain.as_deref().map(Vec::as_slice)) {
            Ok(peer) => peer,
            Err((reason, detail)) => {
                connection.close(VarInt::from_u32(0x10c), b""); // H3_REQUEST_CANCELLED
                return table.refuse(from, reason, detail);
            }
        };
    }
    table.count_handshake("QUIC".into(), group.to_string(), handshake);
    let _counted = Counted::new(table);
    let activity = Activity::new();
    let client = Rc::new(Client {
        context: at.context.clone(),
        http: Http::H3,
        name: name.into(),
        by_default,
        from,
        trusted: sites.settings.trusts(from.ip()),
        tls: "QUIC".into(),
        group,
        peer: peer.map(Rc::new),
        port,
        forwarding: RefCell::default(),
        alt_svc: OnceCell::new(),
        arrival: Cell::default(),
        activity: activity.clone(),
        handover: Cell::default(),
    });
    drop(sites);
    let gates = Gates::default();
    let mut builder = h3::server::builder();
    builder.max_field_section_size(MAX_HEAD as u64);
    let gated = Gated::new(connection.clone(), gates.clone());
    let built = timeout(limits.head, builder.build::<_, Bytes>(gated)).await;
    let Ok(Ok(mut http3)) = built else {
        return connection.close(VarInt::from_u32(0), b"");
    };
    let (mut draining, mut cut) = (at.shared.draining.clone(), at.shared.cut.clone());
    let mut drains = false;
    let sent = Rc::new(RefCell::new(Vec::new()));
    let mut progress = Progress::new(&connection);
    let mut tick = tokio::time::interval(limits.body / 4);
    loop {
        let accepted = tokio::select! {
            accepted = http3.accept() => accepted,
            _ = draining.wait_for(|d| *d), if !drains => {
                drains = true;
                let _ = http3.shutdown(0).await;
                continue;
            }
            _ = cut.wait_for(|c| *c) => break,
            _ = tick.tick() => {
                progress.note(&connection);
                for _ in 0..give_up(&mut sent.borrow_mut(), &progress, limits.body) {
                    table.refuse(from, Reason::Stalled, UNTAKEN);
                }
                continue;
            }
            () = activity.taken_back() => {
                table.refuse(from, Reason::TakenBack, "the client cancels too many requests");
                break;
            }
            () = client.lost() => {
                table.refuse(from, Reason::Revoked, "the client's identity was revoked; the connection was closed");
                break;
            }
        };
        match accepted {
            Ok(Some(resolver)) => {
                let (client, gates, sent) = (client.clone(), gates.clone(), sent.clone());
                let (in_flight, pending) = (activity.request(), activity.pending_request());
                let limits = limits.clone();
                spawn_local(async move {
                    let resolved = timeout(limits.head, resolve(resolver)).await;
                    let Ok(Some((request, stream))) = resolved else {
                        return; // dropping the stream resets it
                    };
                    let gate = gates.borrow_mut().remove(&stream.id()).unwrap_or_default();
                    gate.used();
                    let (mut send, recv) = stream.split();
                    let mut body = QuicBody::new(recv, gate.clone(), &request);
                    let safe = request.method().is_safe();
                    let _ = timeout(limits.head, body.begin(safe)).await;
                    let source = Source::Quic(Box::new(body));
                    let mut gone = pin!(gone(&gate));
                    let hints = Hints::of(&request);
                    let exchange =
                        Exchange { source, in_flight, tunnel: None, hints: hints.clone() };
                    let mut answer = pin!(client.clone().answer(request, exchange));
                    let answer = loop {
                        let hint = poll_fn(|cx| match &hints {
                            Some(hints) => hints.poll_next(cx),
                            None => Poll::Pending,
                        });
                        tokio::select! {
                            biased;
                            head = hint => {
                                let early = send.send_response(hints::response(head));
                                if write(limits.body, early).await.is_err() {
                                    return send.stop_stream(Code::H3_REQUEST_CANCELLED);
                                }
                            }
                            answer = &mut answer => break answer,
                            () = &mut gone => return send.stop_stream(Code::H3_REQUEST_CANCELLED),
                        }
                    };
                    pending.answered();
                    match deliver(send, answer, limits.body, gone).await {
                        Ok(()) => sent.borrow_mut().push((gate.clone(), Instant::now())),
                        Err(Undelivered::Gone) => {}
                        Err(Undelivered::Stalled) => {
                            client.context.table.refuse(client.from, Reason::Stalled, UNTAKEN);
                        }
                    }
                });
            }
            Ok(None) => {
                // The last response may still be unsent; the client closes when it has received it.
                tokio::select! {
                    _ = timeout(FAREWELL, connection.closed()) => {}
                    _ = cut.wait_for(|c| *c) => {}
                }
                break;
            }
            Err(error) => {
                tracing::debug!(%error, "HTTP/3 connection failed");
                break;
            }
        }
    }
    drop(http3);
    connection.close(VarInt::from_u32(0x100), b""); // H3_NO_ERROR
}

const UNTAKEN: &str = "the client does not read the response";

/// How long to wait for a response before checking whether the client still wants it. Most are sent by then.
const ASK_AFTER: Duration = Duration::from_secs(1);

/// Resolves when the client no longer wants the response.
async fn gone(gate: &Gate) {
    sleep(ASK_AFTER).await;
    gate.closed().await;
}

type Resolver = h3::server::RequestResolver<Gated, Bytes>;
type Resolved = (Request<()>, RequestStream<Stream<Bytes>, Bytes>);

/// Waits for a request's head. The library itself does not check the order and uniqueness of pseudo-headers.
async fn resolve(mut resolver: Resolver) -> Option<Resolved> {
    let frame = poll_fn(|cx| resolver.frame_stream.poll_next(cx)).await;
    if let Ok(Some(h3::proto::frame::Frame::Headers(head))) = &frame
        && !pseudo::is_well_formed(head)
    {
        resolver.frame_stream.reset(Code::H3_MESSAGE_ERROR.value());
        return None;
    }
    let resolved = resolver.accept_with_frame(frame).ok()?;
    let (request, mut stream) = resolved.resolve().await.ok()?;
    // Only CONNECT can have a protocol (RFC 9220, section 3).
    if request.extensions().get::<h3::ext::Protocol>().is_some()
        && request.method() != Method::CONNECT
    {
        stream.stop_stream(Code::H3_MESSAGE_ERROR);
        return None;
    }
    Some((request, stream))
}

/// Tracks whether any response data reaches the client.
struct Progress {
    frames: u64,
    at: Instant,
}

impl Progress {
    fn new(connection: &quinn::Connection) -> Progress {
        Progress { frames: connection.stats().frame_tx.stream, at: Instant::now() }
    }

    fn note(&mut self, connection: &quinn::Connection) {
        let frames = connection.stats().frame_tx.stream;
        if frames != self.frames {
            *self = Progress { frames, at: Instant::now() };
        }
    }
}

/// The longest that a response waits for a client that reads other responses meanwhile, in multiples of the time
/// limit.
const TURNS: u32 = 16;

/// Resets responses that were written completely but wait in the library because the client does not read them.
/// Returns how many.
fn give_up(sent: &mut Vec<(Gate, Instant)>, progress: &Progress, patience: Duration) -> usize {
    let mut given_up = 0;
    sent.retain(|(gate, since)| {
        let waits = since.elapsed();
        if waits < patience / 4 {
            return true;
        }
        if gate.is_closed() {
            return false;
        }
        let is_stalled = waits > patience && progress.at.elapsed() > patience;
        if is_stalled || waits > patience * TURNS {
            gate.reset(Code::H3_REQUEST_CANCELLED);
            given_up += 1;
            return false;
        }
        true
    });
    given_up
}

/// Why a response was not sent completely.
enum Undelivered {
    Gone,
    Stalled,
}

type Sending = RequestStream<gate::Sending<Bytes>, Bytes>;

/// Sends a response piece by piece: each piece is written to the stream before the next is read from the backend.
async fn deliver(
    mut to: Sending,
    answer: Response<ReplyBody>,
    patience: Duration,
    mut gone: Pin<&mut impl Future<Output = ()>>,
) -> Result<(), Undelivered> {
    let (parts, body) = answer.into_parts();
    let sent = async {
        write(patience, to.send_response(Response::from_parts(parts, ()))).await?;
        let mut body = pin!(body);
        loop {
            let frame = tokio::select! {
                biased;
                frame = poll_fn(|cx| body.as_mut().poll_frame(cx)) => frame,
                () = &mut gone => return Err(Undelivered::Gone),
            };
            let Some(frame) = frame else { break };
            match frame.map_err(|_| Undelivered::Gone)?.into_data() {
                Ok(mut data) => {
                    while data.has_remaining() {
                        let piece = data.split_to(data.len().min(PIECE));
                        write(patience, to.send_data(piece)).await?;
                    }
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        write(patience, to.send_trailers(trailers)).await?;
                    }
                }
            }
        }
        write(patience, to.finish()).await
    };
    let sent = sent.await;
    if sent.is_err() {
        to.stop_stream(Code::H3_INTERNAL_ERROR);
    }
    sent
}

async fn write<E>(
    patience: Duration,
    written: impl Future<Output = Result<(), E>>,
) -> Result<(), Undelivered> {
    match timeout(patience, written).await {
        Ok(written) => written.map_err(|_| Undelivered::Gone),
        Err(_) => Err(Undelivered::Stalled),
    }
}
