//! A session: it connects a plaintext connection with a TLS connection. Both directions run in one task. How each
//! direction ends is defined in docs/wire.md, sections 2 and 3.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Poll, ready};
use std::time::Duration;

use tokio::io::ReadBuf;
use tokio::time::timeout;

use super::live::Live;
use crate::app::{App, AppReader, AppWriter};
use crate::buffer::{Buffer, CHUNK};
use crate::stream::{Received, TlsReader, TlsStream, TlsWriter};
use crate::wire::{Cutter, Event, Frame, HEADER, Open, Refused, WireError};

/// The time for an aborted session to end cleanly before its connection is closed.
const SETTLE: Duration = Duration::from_secs(5);
/// The time for a program to read the last data after the peer's connection ended without close_notify.
const LAST_BYTES: Duration = Duration::from_secs(60);
/// The time limit for the rest of an OPEN, and for the response to it.
pub(crate) const CONTROL: Duration = Duration::from_secs(10);
/// The most slices written to the program at once.
const SLICES: usize = 16;

/// A mutually authenticated connection that carries sessions.
pub(crate) struct Conn {
    pub(crate) tls: TlsStream,
    /// `wiretight/1` frames; otherwise one raw stream.
    pub(crate) framed: bool,
    inbox: Inbox,
}

/// Data that was read but not yet used.
#[derive(Default)]
struct Inbox {
    cutter: Cutter,
    buffer: Option<(Buffer, usize)>,
}

#[derive(Debug)]
pub(crate) enum End {
    /// Both directions ended in order.
    Done,
    /// The local program aborted, or closed while there was more data for it.
    AppReset(io::Error),
    /// The other end aborted.
    PeerReset,
    /// The connection between the relays broke.
    Broken(io::Error),
    /// The peer violated the protocol.
    Protocol(WireError),
    /// No data was transferred for the configured time.
    Idle,
    /// Closed by us: the peer was revoked, or the process is stopping.
    Cut(&'static str),
}

impl End {
    /// A fixed word for the access log and metrics.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            End::Done => "done",
            End::AppReset(_) => "app_reset",
            End::PeerReset => "peer_reset",
            End::Broken(_) => "broken",
            End::Protocol(_) => "protocol_error",
            End::Idle => "idle_timeout",
            End::Cut(why) => why,
        }
    }

    /// More detail, if any.
    pub(crate) fn detail(&self) -> Option<String> {
        match self {
            End::AppReset(e) | End::Broken(e) => Some(e.to_string()),
            End::Protocol(e) => Some(e.to_string()),
            _ => None,
        }
    }
}

/// The response to an OPEN.
pub(crate) enum Answer {
    Opened,
    Refused(Refused),
    /// close_notify instead of a response: the server has not acted on the OPEN.
    Retired,
}

impl Conn {
    pub(crate) fn new(tls: TlsStream, framed: bool) -> Conn {
        Conn { tls, framed, inbox: Inbox::default() }
    }

    /// Whether nothing is left over from the last session.
    pub(crate) fn is_at_rest(&self) -> bool {
        let used_up = self.inbox.buffer.as_ref().is_none_or(|(buffer, at)| *at == buffer.len());
        used_up && self.inbox.cutter.between_frames()
    }

    /// Server: waits for the next OPEN without a time limit. `None` if the client closed in order.
    pub(crate) async fn read_open(&mut self) -> Result<Option<Open>, End> {
        let (mut reader, _) = self.tls.split();
        let Some(frame) = self.inbox.frame(&mut reader).await? else { return Ok(None) };
        let Frame::Open(len) = frame else {
            return Err(End::Protocol(WireError::OutOfTurn(frame.name())));
        };
        let body = async {
            let mut body = Vec::with_capacity(len);
            while body.len() < len {
                self.inbox.body(&mut reader, &mut body).await?;
            }
            Open::parse(&body).map_err(End::Protocol)
        };
        // Boxed, because most of the time only the wait above is needed.
        let body = Box::pin(timeout(CONTROL, body)).await;
        body.unwrap_or_else(|_| Err(stalled("an OPEN"))).map(Some)
    }

    /// Client: waits for the response to an OPEN.
    pub(crate) async fn read_answer(&mut self) -> Result<Answer, End> {
        let (mut reader, _) = self.tls.split();
        let answer = async {
            match self.inbox.frame(&mut reader).await? {
                None => Ok(Answer::Retired),
                Some(Frame::Opened) => Ok(Answer::Opened),
                Some(Frame::Refused) => {
                    let mut code = Vec::with_capacity(1);
                    self.inbox.body(&mut reader, &mut code).await?;
                    Ok(Answer::Refused(Refused::from_code(code.first().copied().unwrap_or(0))))
                }
                Some(other) => Err(End::Protocol(WireError::OutOfTurn(other.name()))),
            }
        };
        timeout(CONTROL, answer).await.unwrap_or_else(|_| Err(stalled("the answer to OPEN")))
    }

    /// Sends control frames, with a time limit.
    pub(crate) async fn send(&mut self, frames: &[u8]) -> io::Result<()> {
        let (_, mut writer) = self.tls.split();
        writer.queue(frames)?;
        let late = || Err(io::Error::new(io::ErrorKind::TimedOut, "the peer does not read"));
        timeout(CONTROL, writer.flush()).await.unwrap_or_else(|_| late())
    }

    /// Runs one session until it ends. Returns true if the connection can be used again.
    pub(crate) fn run(
        &mut self,
        mut app: App,
        live: &Live,
        idle_timeout: Option<Duration>,
    ) -> impl Future<Output = (End, bool)> {
        let mut quiet = idle_timeout.map(|limit| Box::pin(quiet(live, limit)));
        // A block instead of an async fn, which would reserve space for its arguments twice: here, and in `up` and
        // `down`.
        async move {
            let framed = self.framed;
            let (mut reader, mut writer) = self.tls.split();
            let (app_reader, app_writer) = app.split();
            let marks = Marks::default();
            let end = {
                let mut up = pin!(up(app_reader, &mut writer, framed, live, &marks));
                let inbox = &mut self.inbox;
                let mut down = pin!(down(&mut reader, inbox, app_writer, framed, live, &marks));
                let mut cut = pin!(live.cut());
                let mut up_end = None;
                poll_fn(|cx| {
                    // Polled first, so that no more data is sent in either direction.
                    if let Poll::Ready(why) = cut.as_mut().poll(cx) {
                        return Poll::Ready(End::Cut(why));
                    }
                    if let Poll::Ready(Err(end)) = down.as_mut().poll(cx) {
                        return Poll::Ready(end);
                    }
                    if up_end.is_none()
                        && let Poll::Ready(Err(end)) = up.as_mut().poll(cx)
                    {
                        up_end = Some(end);
                    }
                    // If the peer has stopped reading, what it sent is delivered first.
                    let waits = marks.cut_short.get() && matches!(up_end, Some(End::Broken(_)));
                    if !waits && let Some(end) = up_end.take() {
                        return Poll::Ready(end);
                    }
                    if marks.sent.get() && marks.got.get() {
                        return Poll::Ready(End::Done);
                    }
                    match &mut quiet {
                        Some(quiet) => quiet.as_mut().poll(cx).map(|()| End::Idle),
                        None => Poll::Pending,
                    }
                })
                .await
            };
            let (queued_end, read_end) = (marks.queued.get(), marks.read.get());
            let whole = match end {
                End::Done => return (end, framed),
                End::PeerReset => framed,
                // RESET reports it, unless our FIN is already queued or the peer is not reading; then only closing
                // the connection does.
                End::AppReset(_) | End::Idle => framed && !queued_end && !writer.is_behind(),
                End::Broken(_) | End::Protocol(_) | End::Cut(_) => false,
            };
            app.abort();
            if !whole {
                return (end, false);
            }
            // Boxed: not needed by a session that ends in order.
            let settle = settle(&mut reader, &mut writer, &mut self.inbox, queued_end, read_end);
            let settled = async move {
                let settled = timeout(SETTLE, settle).await;
                (end, matches!(settled, Ok(Ok(()))))
            };
            Box::pin(settled).await
        }
    }

    /// Server, after REFUSED: discards what the client sent with the OPEN, up to its end mark.
    pub(crate) async fn discard(&mut self) -> Result<(), End> {
        let (mut reader, _) = self.tls.split();
        let late = |_| stalled("the end of a refused session");
        timeout(CONTROL, self.inbox.discard(&mut reader)).await.map_err(late)?
    }

    /// Client, after REFUSED: ends our direction, so that the connection is idle again.
    pub(crate) async fn end_refused(&mut self) -> bool {
        self.send(&Frame::Reset.header()).await.is_ok()
    }
}

fn stalled(what: &str) -> End {
    End::Broken(io::Error::new(io::ErrorKind::TimedOut, format!("timed out waiting for {what}")))
}

impl Inbox {
    /// The next frame header. `None` on close_notify between two frames.
    async fn frame(&mut self, reader: &mut TlsReader<'_>) -> Result<Option<Frame>, End> {
        loop {
            if let Some((buffer, at)) = &mut self.buffer {
                let mut input = &buffer[*at..];
                let event = self.cutter.next(&mut input).map_err(End::Protocol)?;
                *at = buffer.len() - input.len();
                // Body events are discarded here.
                let frame = match event {
                    Some(Event::Frame(frame)) => Some(frame),
                    Some(Event::Body(_)) | None => None,
                };
                self.give_back();
                match frame {
                    Some(frame) => return Ok(Some(frame)),
                    None => continue,
                }
            }
            match reader.read().await.map_err(End::Broken)? {
                Received::Bytes(buffer) => self.buffer = Some((buffer, 0)),
                Received::Closed if self.cutter.between_frames() => return Ok(None),
                Received::Closed => return Err(End::Broken(io::ErrorKind::UnexpectedEof.into())),
            }
        }
    }

    /// Returns a fully used buffer to the pool, so that an idle connection has none.
    fn give_back(&mut self) {
        if self.buffer.as_ref().is_some_and(|(buffer, at)| *at == buffer.len()) {
            self.buffer = None;
        }
    }

    /// Discards everything up to and including the peer's end mark.
    async fn discard(&mut self, reader: &mut TlsReader<'_>) -> Result<(), End> {
        loop {
            match self.frame(reader).await? {
                Some(Frame::Data(_)) => {}
                Some(Frame::Fin | Frame::Reset) => return Ok(()),
                Some(other) => return Err(End::Protocol(WireError::OutOfTurn(other.name()))),
                None => return Err(End::Broken(io::ErrorKind::UnexpectedEof.into())),
            }
        }
    }

    /// Delivers as many DATA pieces to the program as there are, and parses at most one other frame after them.
    fn deliver<'a>(
        &'a mut self,
        mark: &mut Option<Frame>,
        app: &'a mut AppWriter<'_>,
        tls: &'a TlsReader<'_>,
        live: &'a Live,
        marks: &Marks,
    ) -> Result<Option<Rest<'a>>, End> {
        let Inbox { cutter, buffer: Some((buffer, at)) } = self else { return Ok(None) };
        let mut slices = [IoSlice::new(&[]); SLICES];
        let mut used = 0;
        while used < SLICES && mark.is_none() {
            let mut input = &buffer[*at..];
            let event = cutter.next(&mut input);
            *at = buffer.len() - input.len();
            match event.map_err(End::Protocol)? {
                None => break,
                Some(Event::Frame(Frame::Data(_))) => {}
                Some(Event::Frame(other)) => *mark = Some(other),
                Some(Event::Body(piece)) => {
                    slices[used] = IoSlice::new(piece);
                    used += 1;
                }
            }
        }
        if let Some(Frame::Fin | Frame::Reset) = mark {
            marks.read.set(true);
        }
        deliver(app, &mut slices[..used], tls, live)
    }

    /// Appends what is available of the current frame's body; at least one byte.
    async fn body(&mut self, reader: &mut TlsReader<'_>, out: &mut Vec<u8>) -> Result<(), End> {
        loop {
            if let Some((buffer, at)) = &mut self.buffer {
                let mut input = &buffer[*at..];
                let event = self.cutter.next(&mut input).map_err(End::Protocol)?;
                let used = buffer.len() - input.len();
                match event {
                    Some(Event::Body(bytes)) => {
                        out.extend_from_slice(bytes);
                        *at = used;
                        self.give_back();
                        return Ok(());
                    }
                    Some(Event::Frame(f)) => {
                        return Err(End::Protocol(WireError::OutOfTurn(f.name())));
                    }
                    None => self.buffer = None,
                }
                continue;
            }
            match reader.read().await.map_err(End::Broken)? {
                Received::Bytes(buffer) => self.buffer = Some((buffer, 0)),
                Received::Closed => return Err(End::Broken(io::ErrorKind::UnexpectedEof.into())),
            }
        }
    }
}

/// The state of the end marks (FIN, RESET or close_notify) of both directions.
#[derive(Default)]
struct Marks {
    /// Our end mark is queued: no other may follow it.
    queued: Cell<bool>,
    /// Our end mark was sent.
    sent: Cell<bool>,
    /// The peer's end mark was parsed: no other will follow, even if the program does not accept the data before it.
    read: Cell<bool>,
    /// The peer's direction has ended, and the program was told.
    got: Cell<bool>,
    /// The peer's connection ended without an end mark: the program still gets the data before it.
    cut_short: Cell<bool>,
}

/// From the program to the peer, until the program's end of stream. After that, and whenever the peer does not read,
/// this watches for an abort of the program, which would otherwise go unnoticed.
fn up(
    mut app: AppReader<'_>,
    tls: &mut TlsWriter<'_>,
    framed: bool,
    live: &Live,
    marks: &Marks,
) -> impl Future<Output = Result<Infallible, End>> {
    let header = if framed { HEADER } else { 0 };
    async move {
        loop {
            // No buffer is held while this waits, for the program or the peer: plaintext is freed as soon as it is
            // encrypted.
            let read = poll_fn(|cx| {
                ready!(app.poll_ready(cx)).map_err(End::AppReset)?;
                let mut buffer = Buffer::take();
                let mut room = ReadBuf::new(&mut buffer.room()[header..CHUNK]);
                ready!(app.poll_read(cx, &mut room)).map_err(End::AppReset)?;
                let n = room.filled().len();
                buffer.set_len(header + n);
                if framed && n > 0 {
                    buffer.room()[..HEADER].copy_from_slice(&Frame::Data(n).header());
                }
                if n > 0 {
                    tls.queue(&buffer).map_err(End::Broken)?;
                }
                Poll::Ready(Ok(n))
            });
            let n = read.await?;
            if n == 0 {
                if framed {
                    tls.queue(&Frame::Fin.header()).map_err(End::Broken)?;
                } else {
                    tls.close();
                }
                marks.queued.set(true);
                flush(tls, &app, live).await?;
                marks.sent.set(true);
                if marks.got.get() {
                    return std::future::pending().await; // done: the program may close in any way
                }
                return Err(End::AppReset(Box::pin(app.aborted()).await));
            }
            live.sent(n);
            flush(tls, &app, live).await?;
        }
    }
}

/// Sends what is queued, unless the program aborts while the peer does not read.
async fn flush(tls: &mut TlsWriter<'_>, app: &AppReader<'_>, live: &Live) -> Result<(), End> {
    tls.flush_at_once(|| live.progressed()).map_err(End::Broken)?;
    if !tls.is_behind() {
        return Ok(());
    }
    // Boxed: not needed by a session that does not have to wait.
    let rest = async {
        tokio::select! {
            biased;
            flushed = tls.flush_telling(|| live.progressed()) => flushed.map_err(End::Broken),
            error = app.aborted() => Err(End::AppReset(error)),
        }
    };
    Box::pin(rest).await
}

/// The delivery of the data that the program has not accepted yet. Fails if the connection to the peer breaks while
/// the program does not read.
type Rest<'a> = Pin<Box<dyn Future<Output = Result<(), End>> + 'a>>;

/// Delivers what the program accepts without waiting. The rest, if any, is boxed as in [`flush`].
fn deliver<'a>(
    app: &'a mut AppWriter<'_>,
    mut slices: &mut [IoSlice<'a>],
    tls: &'a TlsReader<'_>,
    live: &'a Live,
) -> Result<Option<Rest<'a>>, End> {
    let taken = app.write_at_once(&mut slices, |n| live.received(n));
    taken.map_err(End::AppReset)?;
    if slices.is_empty() {
        return Ok(None);
    }
    let mut rest = slices.to_vec();
    Ok(Some(Box::pin(async move {
        tokio::select! {
            biased;
            written = app.write_all(&mut rest, |n| live.received(n)) => written.map_err(End::AppReset),
            error = tls.aborted() => Err(End::Broken(error)),
        }
    })))
}

/// From the peer to the program, until the peer's end mark. After that, and whenever the program does not read, this
/// watches the connection, so that a vanished peer is noticed.
#[expect(clippy::manual_async_fn, reason = "an async fn reserves space for its arguments twice")]
fn down(
    tls: &mut TlsReader<'_>,
    inbox: &mut Inbox,
    mut app: AppWriter<'_>,
    framed: bool,
    live: &Live,
    marks: &Marks,
) -> impl Future<Output = Result<Infallible, End>> {
    // While the program is slow, data stays in the inbox together with the position in it. So a session that is
    // aborted at an await leaves the frame parser in a consistent state.
    async move {
        loop {
            let Some((buffer, _)) = &inbox.buffer else {
                // A bool, so that the result of the read does not take up space in the code below.
                let is_over = match tls.read().await {
                    Ok(Received::Bytes(buffer)) => {
                        inbox.buffer = Some((buffer, 0));
                        false
                    }
                    Ok(Received::Closed) => true,
                    Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                        return Err(Box::pin(last_bytes(&app, marks, e)).await);
                    }
                    Err(e) => return Err(End::Broken(e)),
                };
                if !is_over {
                    continue;
                }
                if framed {
                    return Err(Box::pin(last_bytes(&app, marks, cut_short())).await);
                }
                app.shutdown().await.map_err(End::AppReset)?;
                marks.got.set(true);
                if marks.sent.get() {
                    return std::future::pending().await; // done: the peer may close in any way
                }
                return Err(End::Broken(Box::pin(tls.aborted()).await));
            };
            if !framed {
                {
                    let rest = deliver(&mut app, &mut [IoSlice::new(buffer)], tls, live)?;
                    if let Some(rest) = rest {
                        rest.await?;
                    }
                }
                inbox.buffer = None;
                continue;
            }
            let mut mark = None;
            {
                let rest = inbox.deliver(&mut mark, &mut app, tls, live, marks)?;
                if let Some(rest) = rest {
                    rest.await?;
                }
            }
            inbox.give_back();
            match mark {
                None => {}
                Some(Frame::Fin) => {
                    app.shutdown().await.map_err(End::AppReset)?;
                    marks.got.set(true);
                    if marks.sent.get() {
                        return std::future::pending().await; // done: what follows belongs to the next session
                    }
                    return Err(match Box::pin(inbox.frame(tls)).await {
                        Ok(Some(frame)) => End::Protocol(WireError::OutOfTurn(frame.name())),
                        Ok(None) => End::Broken(cut_short()),
                        Err(end) => end,
                    });
                }
                Some(Frame::Reset) => {
                    marks.got.set(true);
                    return Err(End::PeerReset);
                }
                Some(other) => return Err(End::Protocol(WireError::OutOfTurn(other.name()))),
            }
        }
    }
}

/// The peer's connection ended without an end mark. The data before that was authenticated and belongs to the
/// program; an abort would discard what is still buffered for it.
async fn last_bytes(app: &AppWriter<'_>, marks: &Marks, error: io::Error) -> End {
    marks.cut_short.set(true);
    let _ = timeout(LAST_BYTES, app.drained()).await;
    End::Broken(error)
}

fn cut_short() -> io::Error {
    let what = "the peer closed the connection in the middle of a session";
    io::Error::new(io::ErrorKind::UnexpectedEof, what)
}

/// Ends an aborted session cleanly: sends our end mark, and discards input up to the peer's.
async fn settle(
    reader: &mut TlsReader<'_>,
    writer: &mut TlsWriter<'_>,
    inbox: &mut Inbox,
    queued_end: bool,
    read_end: bool,
) -> Result<(), End> {
    if !queued_end {
        writer.queue(&Frame::Reset.header()).map_err(End::Broken)?;
    }
    let send = writer.flush();
    let drain = async { if read_end { Ok(()) } else { inbox.discard(reader).await } };
    let (sent, drained) = tokio::join!(send, drain);
    sent.map_err(End::Broken)?;
    drained
}

/// Resolves when no data was transferred for `limit`.
async fn quiet(live: &Live, limit: Duration) {
    let mut before = live.progress();
    loop {
        tokio::time::sleep(limit).await;
        let now = live.progress();
        if now == before {
            return;
        }
        before = now;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener as StdListener, TcpStream as StdStream};
    use std::sync::Arc;

    use socket2::{Domain, SockRef, Socket, Type};
    use tokio::io::Interest;
    use tokio::net::{TcpListener, TcpStream};
    use wiretight_keys::Role;

    use super::super::live::{Listed, Side, Table};
    use super::*;
    use crate::rig::tls::{Stranger, TlsClient};
    use crate::rig::{Ca, TRUST_DOMAIN, name, reset};
    use crate::stream::HandshakeInfo;
    use crate::tls::{self, ALPN_RELAY, Strangers};

    /// Runs a test on a runtime like that of a worker.
    pub(crate) fn run<T>(test: impl Future<Output = T>) -> T {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build_local(Default::default()).unwrap().block_on(test)
    }

    /// Our end of a connection, registered, and the peer's TLS client.
    pub(crate) async fn connected() -> (Conn, Listed, Arc<Table>, TlsClient) {
        let ca = Ca::new(TRUST_DOMAIN);
        let mesh = ca.mesh(&["service/db"]);
        let config = tls::server_config(
            &mesh,
            "service/db".parse().unwrap(),
            ALPN_RELAY,
            Strangers::Refused,
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let stranger = Stranger::new(ca.issue("service/web", 3600));
        let peer = std::thread::spawn(move || stranger.connect(to).unwrap());
        let (socket, from) = listener.accept().await.unwrap();
        let config = config.unwrap();
        let tls = TlsStream::accept(socket, |_| config, CONTROL).await;
        let (tls, HandshakeInfo { negotiated, chain }) = tls.unwrap_or_else(|e| panic!("{e}"));
        let verified = tls::peer(&mesh, &chain, Role::Client).unwrap();
        let table = Arc::<Table>::default();
        let listed =
            table.list(Side::Service, &name("db"), verified, (from, None), negotiated, 9).unwrap();
        (Conn::new(tls, true), listed, table, peer.join().unwrap())
    }

    /// A program's connection: our end and the program's.
    fn program() -> (TcpStream, StdStream) {
        program_by(&Socket::new(Domain::IPV4, Type::STREAM, None).unwrap())
    }

    /// The same with an existing socket.
    fn program_by(socket: &Socket) -> (TcpStream, StdStream) {
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        socket.connect(&listener.local_addr().unwrap().into()).unwrap();
        let theirs = StdStream::from(socket.try_clone().unwrap());
        theirs.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        let ours = listener.accept().unwrap().0;
        ours.set_nonblocking(true).unwrap();
        (TcpStream::from_std(ours).unwrap(), theirs)
    }

    /// A DATA frame.
    fn data(bytes: &[u8]) -> Vec<u8> {
        [&Frame::Data(bytes.len()).header(), bytes].concat()
    }

    #[test]
    fn a_received_end_mark_is_not_awaited_after_the_program_aborted() {
        run(async {
            let (mut conn, listed, _table, mut peer) = connected().await;
            let (app, program) = program();
            peer.write_all(&[data(b"last words"), Frame::Fin.header().into()].concat()).unwrap();
            reset(program);
            // Both are known when the session starts: the peer's data and end mark are read, but cannot be delivered.
            app.ready(Interest::ERROR).await.unwrap();
            conn.tls.socket().readable().await.unwrap();
            let (end, reusable) = conn.run(App::Tcp(app), &listed, None).await;
            assert!(matches!(end, End::AppReset(_)), "{end:?}");
            assert!(reusable, "it waited for an end mark that had arrived");
            let mut mark = [0; HEADER];
            peer.read_exact(&mut mark).unwrap();
            assert_eq!(Frame::parse(mark), Ok(Frame::Reset));
            let open = Open { service: name("db"), destination: None };
            peer.write_all(&open.encode()).unwrap();
            assert_eq!(conn.read_open().await.unwrap(), Some(open));
        });
    }

    #[test]
    fn a_raw_peer_that_resets_after_close_notify_ended_in_order() {
        run(async {
            // Which of the two events is noticed first is random; repeat to see both.
            for round in 0..20 {
                let in_order = round % 4 > 0;
                let (mut conn, listed, _table, mut peer) = connected().await;
                conn.framed = false;
                let (app, program) = program();
                program.shutdown(Shutdown::Write).unwrap();
                let peers = tokio::task::spawn_blocking(move || {
                    assert_eq!(peer.read(&mut [0]).unwrap(), 0, "our close_notify");
                    if in_order {
                        peer.conn.send_close_notify();
                        peer.flush().unwrap();
                    }
                    reset(peer.sock);
                });
                let session = conn.run(App::Tcp(app), &listed, None);
                let ((end, _), peers) = tokio::join!(session, peers);
                peers.unwrap();
                assert_eq!(matches!(end, End::Done), in_order, "{end:?}");
            }
        });
    }

    #[test]
    fn a_missing_end_mark_is_awaited() {
        run(async {
            let (mut conn, listed, _table, mut peer) = connected().await;
            let (app, program) = program();
            peer.write_all(&data(b"more to come")).unwrap();
            reset(program);
            app.ready(Interest::ERROR).await.unwrap();
            let session = async {
                let ended = conn.run(App::Tcp(app), &listed, None).await;
                (ended, conn.is_at_rest())
            };
            let peers = tokio::task::spawn_blocking(move || {
                peer.read_exact(&mut [0; HEADER]).unwrap(); // RESET
                peer.write_all(&[data(b"too late"), Frame::Reset.header().into()].concat())
                    .unwrap();
                peer
            });
            let (((end, reusable), at_rest), _peer) = tokio::join!(session, peers);
            assert!(matches!(end, End::AppReset(_)), "{end:?}");
            assert!(reusable && at_rest);
        });
    }

    /// The frames in a stream except DATA.
    fn marks(mut stream: &[u8]) -> Vec<Frame> {
        let (mut cutter, mut marks) = (Cutter::default(), Vec::new());
        while let Some(event) = cutter.next(&mut stream).unwrap() {
            match event {
                Event::Frame(Frame::Data(_)) | Event::Body(_) => {}
                Event::Frame(mark) => marks.push(mark),
            }
        }
        marks
    }

    #[test]
    fn no_reset_follows_a_queued_fin() {
        run(async {
            for fin in [true, false] {
                let (mut conn, listed, _table, mut peer) = connected().await;
                let (app, program) = program();
                // The peer reads nothing, and all buffers to it are full.
                let (_, mut writer) = conn.tls.split();
                while timeout(Duration::from_secs(1), writer.flush()).await.is_ok() {
                    (0..64).for_each(|_| writer.queue(&data(&[7; 16_000])).unwrap());
                }
                if fin {
                    program.shutdown(Shutdown::Write).unwrap();
                    app.readable().await.unwrap();
                }
                // The session runs first, so the FIN is queued when the peer's RESET arrives.
                let session = async {
                    let ended = conn.run(App::Tcp(app), &listed, None).await;
                    conn.tls.close();
                    ended
                };
                let abort = async {
                    peer.write_all(&Frame::Reset.header()).unwrap();
                    let all = move || {
                        let mut all = Vec::new();
                        peer.read_to_end(&mut all).map(|_| all)
                    };
                    tokio::task::spawn_blocking(all).await.unwrap().unwrap()
                };
                let ((end, reusable), all) = tokio::join!(session, abort);
                assert!(matches!(end, End::PeerReset) && reusable, "{end:?}");
                assert_eq!(marks(&all), [if fin { Frame::Fin } else { Frame::Reset }]);
            }
        });
    }

    #[test]
    fn each_accepted_write_is_progress() {
        run(async {
            // To the program: one read's data, more than the socket buffers can hold.
            const LEN: usize = 40_000;
            let (mut conn, listed, table, mut peer) = connected().await;
            let small = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            small.set_recv_buffer_size(4096).unwrap();
            let (app, mut program) = program_by(&small);
            SockRef::from(&app).set_send_buffer_size(4096).unwrap();
            program.shutdown(Shutdown::Write).unwrap();
            peer.write_all(&[data(&[7; LEN]), Frame::Fin.header().into()].concat()).unwrap();
            while conn.tls.socket().peek(&mut [0; 2 * LEN]).await.unwrap() < LEN + 2 * HEADER {}
            let moved = || table.connections(1).remove(0).bytes_in as usize;
            let (end, reader) = {
                let mut session = pin!(conn.run(App::Tcp(app), &listed, None));
                while moved() == 0 {
                    let _ = timeout(Duration::from_millis(10), session.as_mut()).await;
                }
                assert!(moved() < LEN, "data was counted before it was accepted");
                let all = move || program.read_to_end(&mut Vec::new()).unwrap();
                let reader = std::thread::spawn(all);
                (session.await.0, reader)
            };
            assert!(matches!(end, End::Done), "{end:?}");
            assert_eq!((moved(), reader.join().unwrap()), (LEN, LEN));

            // To the peer: likewise.
            let (mut conn, listed, _table, mut peer) = connected().await;
            let (app, mut program) = self::program();
            SockRef::from(conn.tls.socket()).set_send_buffer_size(4096).unwrap();
            peer.write_all(&Frame::Fin.header()).unwrap();
            program.write_all(&[7; CHUNK - HEADER]).unwrap();
            program.shutdown(Shutdown::Write).unwrap();
            let reader = std::thread::spawn(move || {
                let _ = peer.read_exact(&mut [0; CHUNK]);
                peer
            });
            let (end, _) = conn.run(App::Tcp(app), &listed, None).await;
            assert!(matches!(end, End::Done), "{end:?}");
            let parts = listed.progress();
            assert!(parts > 4, "a chunk passed through a buffer of 8 KiB in {parts} parts");
            drop(reader.join().unwrap());
        });
    }

    #[test]
    fn a_cut_takes_precedence_over_other_events() {
        run(async {
            for cut in [true, false] {
                let (mut conn, listed, table, mut peer) = connected().await;
                let (app, mut program) = program();
                peer.write_all(&[data(b"secret"), Frame::Fin.header().into()].concat()).unwrap();
                program.write_all(b"another").unwrap();
                program.shutdown(Shutdown::Write).unwrap();
                app.readable().await.unwrap();
                conn.tls.socket().readable().await.unwrap();
                if cut {
                    table.cut_all();
                }
                let (end, _) = conn.run(App::Tcp(app), &listed, None).await;
                conn.tls.close();
                let mut got = Vec::new();
                let read = program.read_to_end(&mut got);
                let mut told = Vec::new();
                peer.read_to_end(&mut told).unwrap();
                if cut {
                    assert!(matches!(end, End::Cut("stopped")), "{end:?}");
                    assert!(read.is_err() && got.is_empty() && told.is_empty());
                } else {
                    assert!(matches!(end, End::Done), "{end:?}");
                    assert!(read.is_ok() && got == b"secret" && !told.is_empty());
                }
            }
        });
    }
}
