//! One session: the bytes of a plain connection on one side, of a TLS connection on the other, both
//! directions in one task, and the ends of each (docs/wire.md, sections 2 and 3).

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
use crate::stream::{Got, TlsReader, TlsStream, TlsWriter};
use crate::wire::{Cutter, Event, Frame, HEADER, Open, Refused, WireError};

/// How long an aborted session may take to come to rest before its connection is given up.
const SETTLE: Duration = Duration::from_secs(5);
/// How long a program may take to read what came before the peer's connection ended without close_notify.
const LAST_BYTES: Duration = Duration::from_secs(60);
/// How long the rest of an OPEN, or its answer once due, may take.
pub(crate) const CONTROL: Duration = Duration::from_secs(10);
/// Pieces written to the program at once.
const SLICES: usize = 16;

/// A mutually authenticated connection that sessions run over.
pub(crate) struct Conn {
    pub(crate) tls: TlsStream,
    /// `wiretight/1` frames, or one raw stream.
    pub(crate) framed: bool,
    inbox: Inbox,
}

/// What was read and not yet used.
#[derive(Default)]
struct Inbox {
    cutter: Cutter,
    buffer: Option<(Buffer, usize)>,
}

/// How a session ended.
#[derive(Debug)]
pub(crate) enum End {
    /// Both directions in order.
    Done,
    /// The local program aborted, or went away while there was more for it.
    AppReset(io::Error),
    /// The far end aborted.
    PeerReset,
    /// The connection between the relays broke.
    Broken(io::Error),
    /// The peer does not speak our protocol.
    Protocol(WireError),
    /// Nothing moved for the configured time.
    Idle,
    /// Cut by us: the peer was revoked, or the process stops.
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

    /// More, where there is more to say.
    pub(crate) fn detail(&self) -> Option<String> {
        match self {
            End::AppReset(e) | End::Broken(e) => Some(e.to_string()),
            End::Protocol(e) => Some(e.to_string()),
            _ => None,
        }
    }
}

/// The answer to an OPEN.
pub(crate) enum Answer {
    Opened,
    Refused(Refused),
    /// close_notify instead of an answer: the server has not acted on the OPEN.
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

    /// Server: waits for the next OPEN, as long as it takes. `None`: the client closed in order.
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
        // Boxed: most of the time, the wait above is all that there is.
        let body = Box::pin(timeout(CONTROL, body)).await;
        body.unwrap_or_else(|_| Err(stalled("an OPEN"))).map(Some)
    }

    /// Client: waits for the answer to an OPEN.
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

    /// Sends control frames, within the deadline.
    pub(crate) async fn send(&mut self, frames: &[u8]) -> io::Result<()> {
        let (_, mut writer) = self.tls.split();
        writer.queue(frames)?;
        let late = || Err(io::Error::new(io::ErrorKind::TimedOut, "the peer does not read"));
        timeout(CONTROL, writer.flush()).await.unwrap_or_else(|_| late())
    }

    /// Carries one session to its end. True if the connection is idle again and of use.
    pub(crate) fn run(
        &mut self,
        mut app: App,
        live: &Live,
        idle_timeout: Option<Duration>,
    ) -> impl Future<Output = (End, bool)> {
        let mut quiet = idle_timeout.map(|limit| Box::pin(quiet(live, limit)));
        // A block, and not an async fn, which has room for its arguments twice: here, and in `up` and `down`.
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
                    // First, so that not a byte more goes either way.
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
                    // What the peer has sent is handed over first, if it does not read any more.
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
                // RESET says it, unless our FIN is on its way already or the peer is not reading: then only the
                // end of the connection does.
                End::AppReset(_) | End::Idle => framed && !queued_end && !writer.is_behind(),
                End::Broken(_) | End::Protocol(_) | End::Cut(_) => false,
            };
            app.abort();
            if !whole {
                return (end, false);
            }
            // Boxed: a session that ends in order has no room for it.
            let settle = settle(&mut reader, &mut writer, &mut self.inbox, queued_end, read_end);
            let settled = async move {
                let settled = timeout(SETTLE, settle).await;
                (end, matches!(settled, Ok(Ok(()))))
            };
            Box::pin(settled).await
        }
    }

    /// Server, after REFUSED: throws away what the client sent along, until its end mark.
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
    End::Broken(io::Error::new(io::ErrorKind::TimedOut, format!("{what} did not come in time")))
}

impl Inbox {
    /// The next frame's header. `None`: close_notify between two frames.
    async fn frame(&mut self, reader: &mut TlsReader<'_>) -> Result<Option<Frame>, End> {
        loop {
            if let Some((buffer, at)) = &mut self.buffer {
                let mut input = &buffer[*at..];
                let event = self.cutter.next(&mut input).map_err(End::Protocol)?;
                *at = buffer.len() - input.len();
                // What is thrown away comes as bodies.
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
                Got::Bytes(buffer) => self.buffer = Some((buffer, 0)),
                Got::Closed if self.cutter.between_frames() => return Ok(None),
                Got::Closed => return Err(End::Broken(io::ErrorKind::UnexpectedEof.into())),
            }
        }
    }

    /// Gives a buffer back that is used up: an idle connection holds none.
    fn give_back(&mut self) {
        if self.buffer.as_ref().is_some_and(|(buffer, at)| *at == buffer.len()) {
            self.buffer = None;
        }
    }

    /// Throws everything away up to and with the peer's end mark.
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

    /// Hands the program as many pieces of DATA as there are, and cuts at most one other frame behind them.
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

    /// Appends what there is of the current frame's body, at least one byte.
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
                Got::Bytes(buffer) => self.buffer = Some((buffer, 0)),
                Got::Closed => return Err(End::Broken(io::ErrorKind::UnexpectedEof.into())),
            }
        }
    }
}

/// How far the ends of the two directions have come.
#[derive(Default)]
struct Marks {
    /// Our end mark stands behind what waits to be sent: no other may follow it.
    queued: Cell<bool>,
    /// It is sent.
    sent: Cell<bool>,
    /// The peer's end mark is cut out of the stream: no other will come, whether or not the program takes
    /// what came before it.
    read: Cell<bool>,
    /// The peer's direction has ended, and the program knows.
    got: Cell<bool>,
    /// The peer's connection has ended without its end mark: the program still gets what came before.
    cut_short: Cell<bool>,
}

/// From the program to the peer, until the program's end of stream; then, and whenever the peer does not
/// read, it watches for the program's abort, which no read would find.
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
            // No buffer is held while this waits, here or for the peer: the plaintext goes as soon as it is sealed.
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
                    return std::future::pending().await; // done: it may hang up as it likes
                }
                return Err(End::AppReset(Box::pin(app.aborted()).await));
            }
            live.sent(n);
            flush(tls, &app, live).await?;
        }
    }
}

/// Sends what waits, unless the program aborts while the peer does not read.
async fn flush(tls: &mut TlsWriter<'_>, app: &AppReader<'_>, live: &Live) -> Result<(), End> {
    tls.flush_at_once(|| live.progressed()).map_err(End::Broken)?;
    if !tls.is_behind() {
        return Ok(());
    }
    // Boxed: a session that waits for neither end has no room for it.
    let rest = async {
        tokio::select! {
            biased;
            flushed = tls.flush_telling(|| live.progressed()) => flushed.map_err(End::Broken),
            error = app.aborted() => Err(End::AppReset(error)),
        }
    };
    Box::pin(rest).await
}

/// What a program has not taken yet, as it is handed over: an error if the connection to the peer breaks while
/// the program does not read.
type Rest<'a> = Pin<Box<dyn Future<Output = Result<(), End>> + 'a>>;

/// Hands the program what it takes at once; the rest, if there is any, is boxed as in [`flush`].
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

/// From the peer to the program, until the peer's end mark; then, and whenever the program does not read,
/// it watches for the connection's end, so that a peer which is gone is noticed.
#[expect(clippy::manual_async_fn, reason = "an async fn has room for its arguments twice")]
fn down(
    tls: &mut TlsReader<'_>,
    inbox: &mut Inbox,
    mut app: AppWriter<'_>,
    framed: bool,
    live: &Live,
    marks: &Marks,
) -> impl Future<Output = Result<Infallible, End>> {
    // What is read stays in the inbox, with how far it is used, while the program is slow: a session that
    // is aborted at an await leaves the stream of frames where it stands.
    async move {
        loop {
            let Some((buffer, _)) = &inbox.buffer else {
                // A bool, so that what was read is not kept room for in what follows.
                let is_over = match tls.read().await {
                    Ok(Got::Bytes(buffer)) => {
                        inbox.buffer = Some((buffer, 0));
                        false
                    }
                    Ok(Got::Closed) => true,
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
                    return std::future::pending().await; // done: it may hang up as it likes
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
                        return std::future::pending().await; // done: what comes next is another session's
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

/// The peer's connection has ended where it may not. What it had sent, authenticated, is the program's: an abort
/// would take back what waits in this machine for the program to read.
async fn last_bytes(app: &AppWriter<'_>, marks: &Marks, error: io::Error) -> End {
    marks.cut_short.set(true);
    let _ = timeout(LAST_BYTES, app.drained()).await;
    End::Broken(error)
}

fn cut_short() -> io::Error {
    let what = "the peer closed the connection in the middle of a session";
    io::Error::new(io::ErrorKind::UnexpectedEof, what)
}

/// Brings an aborted session to rest: our end mark goes out, and what still comes is thrown away until
/// the peer's.
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

/// Ends when nothing has moved for `limit`.
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
    use crate::stream::Agreed;
    use crate::tls::{self, ALPN_RELAY, Strangers};

    /// Runs a test on a runtime like a worker's.
    pub(crate) fn run<T>(test: impl Future<Output = T>) -> T {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build_local(Default::default()).unwrap().block_on(test)
    }

    /// Our end of a connection, listed, and the peer's by hand.
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
        let (tls, Agreed { negotiated, chain }) = tls.unwrap_or_else(|e| panic!("{e}"));
        let verified = tls::peer(&mesh, &chain, Role::Client).unwrap();
        let table = Arc::<Table>::default();
        let listed = table.list(Side::Service, &name("db"), verified, from, negotiated, 9).unwrap();
        (Conn::new(tls, true), listed, table, peer.join().unwrap())
    }

    /// A program's connection: our end and its own.
    fn program() -> (TcpStream, StdStream) {
        program_by(&Socket::new(Domain::IPV4, Type::STREAM, None).unwrap())
    }

    /// The same, by a socket that is made already.
    fn program_by(socket: &Socket) -> (TcpStream, StdStream) {
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        socket.connect(&listener.local_addr().unwrap().into()).unwrap();
        let theirs = StdStream::from(socket.try_clone().unwrap());
        theirs.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        let ours = listener.accept().unwrap().0;
        ours.set_nonblocking(true).unwrap();
        (TcpStream::from_std(ours).unwrap(), theirs)
    }

    /// DATA with these bytes.
    fn data(bytes: &[u8]) -> Vec<u8> {
        [&Frame::Data(bytes.len()).header(), bytes].concat()
    }

    #[test]
    fn an_end_mark_that_came_is_not_waited_for_when_the_program_is_gone() {
        run(async {
            let (mut conn, listed, _table, mut peer) = connected().await;
            let (app, program) = program();
            peer.write_all(&[data(b"last words"), Frame::Fin.header().into()].concat()).unwrap();
            reset(program);
            // Both are known when the session looks first: the peer's bytes and its mark are read, and
            // cannot be delivered.
            app.ready(Interest::ERROR).await.unwrap();
            conn.tls.socket().readable().await.unwrap();
            let (end, reusable) = conn.run(App::Tcp(app), &listed, None).await;
            assert!(matches!(end, End::AppReset(_)), "{end:?}");
            assert!(reusable, "it waited for a mark that had come");
            let mut mark = [0; HEADER];
            peer.read_exact(&mut mark).unwrap();
            assert_eq!(Frame::parse(mark), Ok(Frame::Reset));
            let open = Open { service: name("db"), destination: None };
            peer.write_all(&open.encode()).unwrap();
            assert_eq!(conn.read_open().await.unwrap(), Some(open));
        });
    }

    #[test]
    fn a_foreign_peer_that_hangs_up_behind_its_close_notify_has_ended_in_order() {
        run(async {
            // Which of its two signs is seen first is a matter of luck: often enough to see both.
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
    fn an_end_mark_that_did_not_come_is_waited_for() {
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
                peer.read_exact(&mut [0; HEADER]).unwrap(); // RESET: it is settling
                peer.write_all(&[data(b"too late"), Frame::Reset.header().into()].concat())
                    .unwrap();
                peer
            });
            let (((end, reusable), at_rest), _peer) = tokio::join!(session, peers);
            assert!(matches!(end, End::AppReset(_)), "{end:?}");
            assert!(reusable && at_rest);
        });
    }

    /// The frames of a stream, DATA left out.
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
    fn no_reset_follows_a_fin_that_waits_to_be_sent() {
        run(async {
            for fin in [true, false] {
                let (mut conn, listed, _table, mut peer) = connected().await;
                let (app, program) = program();
                // The peer reads nothing, and the way to it is full.
                let (_, mut writer) = conn.tls.split();
                while timeout(Duration::from_secs(1), writer.flush()).await.is_ok() {
                    (0..64).for_each(|_| writer.queue(&data(&[7; 16_000])).unwrap());
                }
                if fin {
                    program.shutdown(Shutdown::Write).unwrap();
                    app.readable().await.unwrap();
                }
                // The session looks first, so the FIN waits already when the peer's RESET comes.
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
    fn each_part_that_a_socket_takes_is_progress() {
        run(async {
            // To the program: what comes with one read, and is more than its sockets hold.
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
                assert!(moved() < LEN, "all was counted before it was taken");
                let all = move || program.read_to_end(&mut Vec::new()).unwrap();
                let reader = std::thread::spawn(all);
                (session.await.0, reader)
            };
            assert!(matches!(end, End::Done), "{end:?}");
            assert_eq!((moved(), reader.join().unwrap()), (LEN, LEN));

            // To the peer: the same.
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
            assert!(parts > 4, "a chunk went through a buffer of 8 KiB in {parts} parts");
            drop(reader.join().unwrap());
        });
    }

    #[test]
    fn a_cut_comes_before_whatever_else_is_ready() {
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
