//! HTTP/2, with a library for its frames and windows.
//!
//! The library is given no more of an answer than the client has opened a window for. So nothing waits in it for a
//! client that opens none, and the deadline for such a client is kept here, for each stream by itself: a paused
//! download must not cost the other streams their connection.

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

/// What a client may send ahead on one stream, and on all of a connection.
const STREAM_WINDOW: u32 = 256 * 1024;
const WINDOW: u32 = 1024 * 1024;
/// What may wait for a slow client, on each stream.
const SEND_BUFFER: usize = 256 * 1024;
/// What is claimed of the client's windows at a time.
const CLAIM: usize = 64 * 1024;
/// Streams that a client may reset before they were looked at, and that we may reset for its errors
/// (CVE-2023-44487 and its successors): more, and the connection is given up.
const RESETS: usize = 50;

type Io = Watched<TlsStream<TcpStream>>;

/// A client's connection: ends when that has.
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

    /// Takes no more requests, and ends when those under way have.
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

/// Asks the client now and then whether it is still there.
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

    /// Whether it has not answered in time. True once.
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
            // The answer wakes this task from now on.
            let _ = self.awaits && pings.poll_pong(cx).is_ready();
        }
        false
    }
}

/// Answers one request. It is counted before anything else can happen.
fn serve(
    client: Rc<Client>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    patience: Duration,
) -> impl Future<Output = ()> {
    let in_flight = client.activity.request();
    let asked = client.activity.asked();
    async move {
        let (parts, stream) = request.into_parts();
        let request = Request::from_parts(parts, ());
        let (source, tunnel, hands) = if request.method() == Method::CONNECT {
            let protocol = request.extensions().get::<h2::ext::Protocol>();
            let is_websocket = protocol.is_some_and(|p| p.as_str() == "websocket");
            let (hands, tunnel) = oneshot::channel();
            (Source::Empty, is_websocket.then_some(tunnel), Some((hands, stream)))
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
                    // The client takes its request back.
                    Poll::Pending => respond.poll_reset(cx).map(|_| None),
                }
            })
            .await
        };
        let Some(answer) = answer else { return };
        asked.answered();
        if let Err(Stalled) = deliver(respond, answer, hands, patience).await {
            let detail = "the client does not take its answer";
            client.workshop.table.refuse(client.from, "stalled", detail);
        }
    }
}

/// The client has opened no window for too long.
struct Stalled;

type Hands = (oneshot::Sender<Box<dyn BothWays>>, RecvStream);

async fn deliver(
    mut respond: SendResponse<Bytes>,
    answer: Response<ReplyBody>,
    hands: Option<Hands>,
    patience: Duration,
) -> Result<(), Stalled> {
    let (mut parts, body) = answer.into_parts();
    let ends = body.is_end_stream();
    let hands = hands.filter(|(hands, _)| parts.status == StatusCode::OK && !hands.is_closed());
    if !ends
        && let Some(length) = body.size_hint().exact()
        && !parts.headers.contains_key(header::CONTENT_LENGTH)
    {
        parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    let head = Response::from_parts(parts, ());
    let ends = ends && hands.is_none();
    let Ok(mut to) = respond.send_response(head, ends) else {
        respond.send_reset(Reason::INTERNAL_ERROR);
        return Ok(());
    };
    if let Some((hands, stream)) = hands {
        let _ = hands.send(Box::new(StreamTunnel { to, from: stream, unread: Bytes::new() }));
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

/// The client wants no more of an answer.
struct Gone;

enum SendError {
    Gone,
    Stalled,
}

/// Sends a piece of an answer, as the client opens its windows.
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

/// How much may be sent now; 0: the client wants no more.
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
