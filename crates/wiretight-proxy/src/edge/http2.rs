//! HTTP/2; a library handles frames and flow control.
//!
//! The library gets no more of a response than the client's flow-control window allows, so it buffers nothing for a
//! client that does not open its window. The deadline for such a client is enforced here, for each stream: a paused
//! download must not close the other streams' connection.

use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::server::{self, SendResponse};
use h2::{Ping, PingPong, Reason, RecvStream, SendStream};
use hyper::body::{Body, Bytes, Frame};
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::spawn_local;
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_rustls::server::TlsStream;

use super::body::Source;
use super::guard::Watched;
use super::hints::{self, Hints};
use super::http2_body::StreamBody;
use super::reply::ReplyBody;
use super::serve::{BothWays, Client, Exchange};
use super::settings::Limits;
use super::strict::MAX_HEAD;
use crate::reason;

/// Flow-control windows for the client, for one stream and for the whole connection.
const STREAM_WINDOW: u32 = 256 * 1024;
const WINDOW: u32 = 1024 * 1024;
/// The most buffered data for a slow client, for each stream.
const SEND_BUFFER: usize = 256 * 1024;
/// The amount requested of the client's window at a time.
const CLAIM: usize = 64 * 1024;
/// Streams that a client may reset before they were handled, and that we may reset because of its errors
/// (CVE-2023-44487 and successors). Above this, the connection is closed.
const RESETS: usize = 50;

type Io = Watched<TlsStream<TcpStream>>;

/// A client's connection; resolves when it is closed.
pub(crate) struct Connection {
    state: State,
    client: Rc<Client>,
    limits: Limits,
    finishes: bool,
}

enum State {
    Handshake(server::Handshake<Io, Bytes>),
    Open(server::Connection<Io, Bytes>, KeepAlive),
}

impl Connection {
    pub(crate) fn new(tls: TlsStream<TcpStream>, client: Rc<Client>, limits: &Limits) -> Self {
        let io = Watched::new(tls, client.activity.clone());
        let mut builder = server::Builder::new();
        builder
            .max_concurrent_streams(limits.streams)
            .max_header_list_size(MAX_HEAD as u32)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_send_buffer_size(SEND_BUFFER)
            .max_pending_accept_reset_streams(RESETS)
            .max_local_error_reset_streams(Some(RESETS))
            .enable_connect_protocol();
        let state = State::Handshake(builder.handshake(io));
        Connection { state, client, limits: limits.clone(), finishes: false }
    }

    /// Accepts no more requests; resolves when those in progress are done.
    pub(crate) fn finish(mut self: Pin<&mut Self>) {
        self.finishes = true;
        if let State::Open(connection, _) = &mut self.state {
            connection.graceful_shutdown();
        }
    }
}

impl Future for Connection {
    type Output = Result<(), h2::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        let this = self.get_mut();
        loop {
            match &mut this.state {
                State::Handshake(handshake) => {
                    let mut connection = ready!(Pin::new(handshake).poll(cx))?;
                    if this.finishes {
                        connection.graceful_shutdown();
                    }
                    let keep_alive = KeepAlive::new(connection.ping_pong(), &this.limits);
                    this.state = State::Open(connection, keep_alive);
                }
                State::Open(connection, keep_alive) => {
                    if keep_alive.is_over(cx) {
                        connection.abrupt_shutdown(Reason::NO_ERROR);
                    }
                    match ready!(connection.poll_accept(cx)) {
                        Some(accepted) => {
                            let (request, respond) = accepted?;
                            let patience = this.limits.body;
                            spawn_local(serve(this.client.clone(), request, respond, patience));
                        }
                        None => return Poll::Ready(Ok(())),
                    }
                }
            }
        }
    }
}

/// Sends pings to check whether the client is still there.
struct KeepAlive {
    pings: Option<PingPong>,
    every: Duration,
    patience: Duration,
    awaits: bool,
    timer: Pin<Box<Sleep>>,
}

impl KeepAlive {
    fn new(pings: Option<PingPong>, limits: &Limits) -> KeepAlive {
        let (every, patience) = (limits.idle / 4, limits.head);
        KeepAlive { pings, every, patience, awaits: false, timer: Box::pin(sleep(every)) }
    }

    /// Whether the client missed the deadline of a ping. Returns true once.
    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(pings) = &mut self.pings else { return false };
        if self.awaits && pings.poll_pong(cx).is_ready() {
            self.awaits = false;
            self.timer.as_mut().reset(Instant::now() + self.every);
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            if self.awaits {
                self.pings = None;
                return true;
            }
            self.awaits = pings.send_ping(Ping::opaque()).is_ok();
            let next = if self.awaits { self.patience } else { self.every };
            self.timer.as_mut().reset(Instant::now() + next);
            // From now on, the pong wakes this task.
            let _ = self.awaits && pings.poll_pong(cx).is_ready();
        }
        false
    }
}

/// Handles one request. It is counted at the call, before anything else can happen.
fn serve(
    client: Rc<Client>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    patience: Duration,
) -> impl Future<Output = ()> {
    let in_flight = client.activity.request();
    let pending = client.activity.pending_request();
    async move {
        let (parts, stream) = request.into_parts();
        let request = Request::from_parts(parts, ());
        let (source, tunnel, handover) = if request.method() == Method::CONNECT {
            let protocol = request.extensions().get::<h2::ext::Protocol>();
            let is_websocket = protocol.is_some_and(|p| p.as_str() == "websocket");
            let (handover, tunnel) = oneshot::channel();
            (Source::Empty, is_websocket.then_some(tunnel), Some((handover, stream)))
        } else {
            (Source::Http2(StreamBody::new(stream, &request)), None, None)
        };
        let hints = Hints::of(&request);
        let exchange = Exchange { source, in_flight, tunnel, hints: hints.clone() };
        let answer = {
            let mut answer = pin!(client.clone().answer(request, exchange));
            std::future::poll_fn(|cx| {
                let polled = answer.as_mut().poll(cx);
                while let Some(Poll::Ready(head)) = hints.as_ref().map(|h| h.poll_next(cx)) {
                    let _ = respond.send_informational(hints::response(head));
                }
                match polled {
                    Poll::Ready(answer) => Poll::Ready(Some(answer)),
                    // The client cancelled its request.
                    Poll::Pending => respond.poll_reset(cx).map(|_| None),
                }
            })
            .await
        };
        let Some(answer) = answer else { return };
        pending.answered();
        if let Err(Stalled) = deliver(respond, answer, handover, patience).await {
            let detail = "the client does not read the response";
            client.context.table.refuse(client.from, reason::Reason::Stalled, detail);
        }
    }
}

/// The client did not open its window in time.
struct Stalled;

type TunnelHandover = (oneshot::Sender<Box<dyn BothWays>>, RecvStream);

async fn deliver(
    mut respond: SendResponse<Bytes>,
    answer: Response<ReplyBody>,
    handover: Option<TunnelHandover>,
    patience: Duration,
) -> Result<(), Stalled> {
    let (mut parts, body) = answer.into_parts();
    let ends = body.is_end_stream();
    let handover =
        handover.filter(|(handover, _)| parts.status == StatusCode::OK && !handover.is_closed());
    if !ends
        && let Some(length) = body.size_hint().exact()
        && !parts.headers.contains_key(header::CONTENT_LENGTH)
    {
        parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    let head = Response::from_parts(parts, ());
    let ends = ends && handover.is_none();
    let Ok(mut to) = respond.send_response(head, ends) else {
        respond.send_reset(Reason::INTERNAL_ERROR);
        return Ok(());
    };
    if let Some((handover, stream)) = handover {
        let _ = handover.send(Box::new(StreamTunnel { to, from: stream, unread: Bytes::new() }));
        return Ok(());
    }
    if ends {
        return Ok(());
    }
    let mut body = pin!(body);
    loop {
        let frame = std::future::poll_fn(|cx| match to.poll_reset(cx) {
            Poll::Ready(_) => Poll::Ready(Err(Gone)),
            Poll::Pending => body.as_mut().poll_frame(cx).map(Ok),
        });
        let Ok(frame) = frame.await else { return Ok(()) };
        match frame.map(|frame| frame.map(Frame::into_data)) {
            Some(Ok(Ok(data))) => {
                let last = body.is_end_stream();
                match send(&mut to, data, last, patience).await {
                    Ok(()) if last => return Ok(()),
                    Ok(()) => {}
                    Err(SendError::Gone) => return Ok(()),
                    Err(SendError::Stalled) => {
                        to.send_reset(Reason::CANCEL);
                        return Err(Stalled);
                    }
                }
            }
            Some(Ok(Err(frame))) => {
                if let Ok(trailers) = frame.into_trailers() {
                    let _ = to.send_trailers(trailers);
                    return Ok(());
                }
            }
            Some(Err(_)) => {
                to.send_reset(Reason::INTERNAL_ERROR);
                return Ok(());
            }
            None => {
                let _ = to.send_data(Bytes::new(), true);
                return Ok(());
            }
        }
    }
}

/// The client does not want the rest of the response.
struct Gone;

enum SendError {
    Gone,
    Stalled,
}

/// Sends a piece of a response, as the client's windows allow.
async fn send(
    to: &mut SendStream<Bytes>,
    mut data: Bytes,
    last: bool,
    patience: Duration,
) -> Result<(), SendError> {
    loop {
        let mut room = data.len();
        if room > 0 {
            to.reserve_capacity(room.min(CLAIM));
            let polled = std::future::poll_fn(|cx| poll_room(to, cx));
            room = timeout(patience, polled).await.map_err(|_| SendError::Stalled)?;
            if room == 0 {
                return Err(SendError::Gone);
            }
        }
        let piece = data.split_to(room.min(data.len()));
        let ends = last && data.is_empty();
        to.send_data(piece, ends).map_err(|_| SendError::Gone)?;
        if data.is_empty() {
            return Ok(());
        }
    }
}

/// How much may be sent now; 0 if the client does not want more.
fn poll_room(to: &mut SendStream<Bytes>, cx: &mut Context<'_>) -> Poll<usize> {
    if to.poll_reset(cx).is_ready() {
        return Poll::Ready(0);
    }
    loop {
        let room = to.capacity();
        if room > 0 {
            return Poll::Ready(room);
        }
        match ready!(to.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return Poll::Ready(0),
        }
    }
}

/// A stream that carries another protocol (RFC 8441).
struct StreamTunnel {
    to: SendStream<Bytes>,
    from: RecvStream,
    unread: Bytes,
}

fn broken(error: h2::Error) -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, error)
}

impl AsyncRead for StreamTunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(self.from.poll_data(cx)) {
                Some(data) => self.unread = data.map_err(broken)?,
                None => return Poll::Ready(Ok(())),
            }
        }
        let n = self.unread.len().min(into.remaining());
        into.put_slice(&self.unread.split_to(n));
        self.from.flow_control().release_capacity(n).map_err(broken)?;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for StreamTunnel {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.to.reserve_capacity(bytes.len());
        let room = ready!(poll_room(&mut self.to, cx));
        if room == 0 {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let n = room.min(bytes.len());
        self.to.send_data(Bytes::copy_from_slice(&bytes[..n]), false).map_err(broken)?;
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.to.send_data(Bytes::new(), true).map_err(broken))
    }
}
