//! One HTTP/1 connection as the HTTP library gets to see it: checked bytes only ([`super::strict`]), and the
//! clock by which a peer that stands still is given up.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

use super::settings::Limits;
use super::strict::{Framing, Phase, Violation};

/// Requests that a client of HTTP/2 may take back before they are answered, beyond those that it waited for.
/// Each has cost a program its work, however few there were at a time (CVE-2023-44487).
const MAX_TAKEN_BACK: usize = 1000;

/// What is taken of that which a client sends ahead of an answer.
const MAX_AHEAD: usize = 64 * 1024;

/// The least and the most that is read at a time. The room for it is zeroed each time, so there is little of
/// it for a peer that sends little.
const ROOM_MIN: usize = 1024;
const ROOM_MAX: usize = 16 * 1024;

/// What goes on at a connection. Shared by its two directions, its requests and its clock.
#[derive(Debug)]
pub(crate) struct Activity {
    born: Instant,
    requests: AtomicUsize,
    /// Requests that began, and heads of HTTP/1 that were let through.
    begun: AtomicUsize,
    heads: AtomicUsize,
    /// Bodies of requests that are not read to their end.
    unread: AtomicUsize,
    taken_back: AtomicUsize,
    enough: Notify,
    /// The answer was 101: the bytes are no longer HTTP.
    upgraded: AtomicBool,
    /// Milliseconds since `born`, plus one; 0 for none.
    rest_since: AtomicU64,
    head_since: AtomicU64,
    blocked_since: AtomicU64,
    /// Since when so much has been sent ahead of an answer that no more is read, and so nobody knows whether the client
    /// is still there.
    ahead_since: AtomicU64,
    /// Nothing has come that was not let through whole, and all that was written has gone.
    still: AtomicBool,
    flushed: AtomicBool,
    waiting: Mutex<Option<Waker>>,
    /// What goes to the client before the answer under way, and whether there is any.
    early: Mutex<Vec<u8>>,
    has_early: AtomicBool,
}

/// Why a connection is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Overdue {
    /// Nothing asked for a while: in order.
    Idle,
    /// A head that does not become whole.
    Head,
    /// An answer that is not taken.
    Reading,
    /// Too much sent ahead of an answer that does not come.
    Ahead,
    /// Not slow, but hasty: too many requests were taken back.
    TakenBack,
}

impl Activity {
    pub(crate) fn new() -> Arc<Activity> {
        Arc::new(Activity {
            born: Instant::now(),
            requests: AtomicUsize::new(0),
            begun: AtomicUsize::new(0),
            heads: AtomicUsize::new(0),
            unread: AtomicUsize::new(0),
            taken_back: AtomicUsize::new(0),
            enough: Notify::new(),
            upgraded: AtomicBool::new(false),
            rest_since: AtomicU64::new(1),
            head_since: AtomicU64::new(0),
            blocked_since: AtomicU64::new(0),
            ahead_since: AtomicU64::new(0),
            still: AtomicBool::new(false),
            flushed: AtomicBool::new(true),
            waiting: Mutex::new(None),
            early: Mutex::default(),
            has_early: AtomicBool::new(false),
        })
    }

    /// A request is under way, until that is dropped.
    pub(crate) fn request(self: &Arc<Activity>) -> InFlight {
        self.begun.fetch_add(1, Relaxed);
        self.requests.fetch_add(1, Relaxed);
        InFlight(self.clone())
    }

    /// A request's body may still be read, until that is dropped.
    pub(crate) fn body(self: &Arc<Activity>) -> Unread {
        self.unread.fetch_add(1, Relaxed);
        Unread(self.clone())
    }

    /// Ends when there was a request. Looked at only while the process ends, so a clock will do.
    pub(crate) async fn first(&self) {
        while self.begun.load(Relaxed) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Whether the HTTP/1 library has nothing to do and nothing to remember: each request that it was given
    /// has begun, was read to its end and is answered, the answer has gone, and no other is on its way. To be
    /// asked when the library has just done all that it can.
    pub(crate) fn is_quiet(&self) -> bool {
        self.still.load(Relaxed)
            && self.flushed.load(Relaxed)
            && self.requests.load(Relaxed) == 0
            && self.unread.load(Relaxed) == 0
            && self.begun.load(Relaxed) == self.heads.load(Relaxed)
            && !self.is_upgraded()
    }

    /// How long ago the last request ended.
    pub(crate) fn rested(&self) -> Duration {
        Duration::from_millis(self.clock().saturating_sub(self.rest_since.load(Relaxed)))
    }

    /// An answer is awaited, until that says otherwise or is dropped.
    pub(crate) fn asked(self: &Arc<Activity>) -> Asked {
        Asked(Some(self.clone()))
    }

    /// From here on the bytes belong to another protocol.
    pub(crate) fn upgraded(&self) {
        self.upgraded.store(true, Relaxed);
        self.wake();
    }

    /// Sends this before the answer to the one request that HTTP/1 has under way. All before that has gone.
    pub(crate) fn send_early(&self, bytes: &[u8]) {
        self.early.lock().unwrap_or_else(|p| p.into_inner()).extend_from_slice(bytes);
        self.has_early.store(true, Relaxed);
    }

    fn is_upgraded(&self) -> bool {
        self.upgraded.load(Relaxed)
    }

    fn wake(&self) {
        let waiting = self.waiting.lock().unwrap_or_else(|p| p.into_inner()).take();
        if let Some(waker) = waiting {
            waker.wake();
        }
    }

    fn wake_later(&self, waker: &Waker) {
        *self.waiting.lock().unwrap_or_else(|p| p.into_inner()) = Some(waker.clone());
    }

    fn clock(&self) -> u64 {
        self.born.elapsed().as_millis() as u64 + 1
    }

    fn older(&self, since: &AtomicU64, limit: Duration) -> bool {
        let since = since.load(Relaxed);
        since > 0 && self.clock().saturating_sub(since) > limit.as_millis() as u64
    }

    /// Ends when the client has taken back too much.
    pub(crate) async fn taken_back(&self) {
        self.enough.notified().await;
    }

    /// Ends when the peer has stood still for too long, or taken back too much.
    pub(crate) async fn overdue(&self, limits: &Limits) -> Overdue {
        let shortest = limits.head.min(limits.body).min(limits.idle);
        let mut tick = tokio::time::interval((shortest / 2).max(Duration::from_millis(10)));
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                _ = self.enough.notified() => return Overdue::TakenBack,
            }
            if self.is_upgraded() {
                continue;
            }
            if self.older(&self.head_since, limits.head) {
                return Overdue::Head;
            }
            if self.older(&self.blocked_since, limits.body) {
                return Overdue::Reading;
            }
            if self.older(&self.ahead_since, limits.body) {
                return Overdue::Ahead;
            }
            if self.requests.load(Relaxed) == 0 && self.older(&self.rest_since, limits.idle) {
                return Overdue::Idle;
            }
        }
    }
}

/// A request under way.
pub(crate) struct InFlight(Arc<Activity>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.rest_since.store(self.0.clock(), Relaxed);
        self.0.requests.fetch_sub(1, Relaxed);
        self.0.wake();
    }
}

/// A request's body that somebody may still read.
pub(crate) struct Unread(Arc<Activity>);

impl Drop for Unread {
    fn drop(&mut self) {
        self.0.unread.fetch_sub(1, Relaxed);
    }
}

/// A request that is not answered.
pub(crate) struct Asked(Option<Arc<Activity>>);

impl Asked {
    /// It is now, which makes up for one that was not.
    pub(crate) fn answered(mut self) {
        if let Some(activity) = self.0.take() {
            let _ = activity.taken_back.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1));
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if let Some(activity) = &self.0
            && activity.taken_back.fetch_add(1, Relaxed) >= MAX_TAKEN_BACK
        {
            activity.enough.notify_one();
        }
    }
}

/// Watches what is written: a peer that takes nothing is noticed, whatever the protocol.
pub(crate) struct Watched<T> {
    io: T,
    activity: Arc<Activity>,
}

impl<T> Watched<T> {
    pub(crate) fn new(io: T, activity: Arc<Activity>) -> Watched<T> {
        Watched { io, activity }
    }

    /// What lies beneath.
    pub(crate) fn inner(&self) -> &T {
        &self.io
    }

    fn note<V>(&self, written: Poll<V>) -> Poll<V> {
        let blocked = &self.activity.blocked_since;
        match written {
            Poll::Pending if blocked.load(Relaxed) == 0 => {
                blocked.store(self.activity.clock(), Relaxed);
            }
            Poll::Pending => {}
            Poll::Ready(_) => blocked.store(0, Relaxed),
        }
        written
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.activity.flushed.store(false, Relaxed);
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.note(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.activity.flushed.store(false, Relaxed);
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        let whole = matches!(flushed, Poll::Ready(Ok(())));
        if !self.activity.flushed.swap(whole, Relaxed) && whole {
            self.activity.wake();
        }
        self.note(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.io).poll_shutdown(cx);
        self.note(shut)
    }
}

/// Lets checked bytes through, one request at a time, and answers what is refused itself.
///
/// What a client sends ahead of an answer waits here, and is read as it comes. If the library had it, it would read no
/// more before the answer, and not notice that the client is gone.
pub(crate) struct Strict<T> {
    io: T,
    activity: Arc<Activity>,
    framing: Framing,
    /// What is read next, at most.
    room: usize,
    /// Read and not yet let through.
    held: Vec<u8>,
    /// So much of `held` was looked at, and so much of that may go on.
    looked: usize,
    free: usize,
    /// And whether that was in a body, whose request is under way.
    refused: Option<(Violation, bool)>,
    on_refusal: Option<Box<dyn FnOnce(Violation) + Send>>,
    farewell: Option<(Vec<u8>, usize)>,
    is_shut: bool,
}

impl<T> Strict<T> {
    /// `on_refusal` is told the first violation; there is no second.
    pub(crate) fn new(
        io: T,
        activity: Arc<Activity>,
        on_refusal: impl FnOnce(Violation) + Send + 'static,
    ) -> Strict<T> {
        Strict {
            io,
            activity,
            framing: Framing::default(),
            room: ROOM_MIN,
            held: Vec::new(),
            looked: 0,
            free: 0,
            refused: None,
            on_refusal: Some(Box::new(on_refusal)),
            farewell: None,
            is_shut: false,
        }
    }

    /// What lies beneath.
    pub(crate) fn inner(&self) -> &T {
        &self.io
    }

    /// Whether the writing side was ended, or was to be.
    pub(crate) fn is_shut(&self) -> bool {
        self.is_shut
    }

    /// Takes back what was let through and belongs to another protocol.
    pub(crate) fn put_back(&mut self, bytes: &[u8]) {
        self.held.splice(0..0, bytes.iter().copied());
    }

    /// Looks at what was read last; says how much of it was looked at, and how much of all that is not
    /// yet let through may go on.
    fn look(&mut self, new: &[u8]) -> (usize, usize) {
        let fed = self.framing.feed(new);
        self.note_phase();
        self.activity.heads.store(self.framing.heads(), Relaxed);
        if let Some(violation) = fed.refused {
            self.refused = Some((violation, self.framing.phase() == Phase::Body));
            self.activity.head_since.store(0, Relaxed);
            if let Some(tell) = self.on_refusal.take() {
                tell(violation);
            }
        }
        (fed.used, fed.release)
    }

    fn note_phase(&self) {
        let since = &self.activity.head_since;
        match self.framing.phase() {
            Phase::Head if since.load(Relaxed) == 0 => since.store(self.activity.clock(), Relaxed),
            Phase::Head => {}
            _ => since.store(0, Relaxed),
        }
    }

    /// Hands on what may go on; true if that was something.
    fn hand_on(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let n = self.free.min(buf.remaining());
        if n == 0 {
            return false;
        }
        buf.put_slice(&self.held[..n]);
        self.held.drain(..n);
        self.free -= n;
        self.looked -= n;
        if self.held.is_empty() {
            self.held = Vec::new(); // an idle connection holds nothing
        }
        true
    }
}

impl<T: AsyncRead + Unpin> Strict<T> {
    /// Holds what comes until the request under way is answered. Ready: the client is gone. `scratch` is not filled.
    fn read_ahead(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if self.held.len() >= MAX_AHEAD {
                let since = &self.activity.ahead_since;
                let _ = since.compare_exchange(0, self.activity.clock(), Relaxed, Relaxed);
                self.activity.wake_later(cx.waker());
                return Poll::Pending;
            }
            let room = scratch.initialize_unfilled_to(self.room.min(scratch.remaining()));
            let mut fresh = ReadBuf::new(room);
            if Pin::new(&mut self.io).poll_read(cx, &mut fresh)?.is_pending() {
                self.activity.still.store(self.held.is_empty(), Relaxed);
                if !self.held.is_empty() {
                    self.activity.wake_later(cx.waker());
                }
                return Poll::Pending;
            }
            let fresh = fresh.filled();
            if fresh.is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.held.extend_from_slice(fresh);
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Strict<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.activity.still.store(false, Relaxed);
        loop {
            if buf.remaining() == 0 || this.hand_on(buf) {
                return Poll::Ready(Ok(()));
            }
            if this.activity.is_upgraded() {
                if this.held.is_empty() {
                    return Pin::new(&mut this.io).poll_read(cx, buf);
                }
                (this.looked, this.free) = (this.held.len(), this.held.len());
                continue;
            }
            if let Some((violation, true)) = this.refused {
                // The request that it is the body of fails, and says why.
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, violation)));
            }
            if this.refused.is_some() {
                return Poll::Ready(Ok(())); // as if the client had closed
            }
            if this.framing.phase() == Phase::Behind {
                // Until an answer has gone whole, an end would cut it off.
                let flushed = this.activity.flushed.load(Relaxed);
                if this.activity.requests.load(Relaxed) > 0 || !flushed {
                    return this.read_ahead(cx, buf);
                }
                this.activity.ahead_since.store(0, Relaxed);
                this.framing.resume();
            }
            if this.looked < this.held.len() {
                let rest = this.held.split_off(this.looked);
                let (used, release) = this.look(&rest);
                this.held.extend_from_slice(&rest);
                this.looked += used;
                this.free += release;
                continue;
            }
            let room = buf.initialize_unfilled_to(this.room.min(buf.remaining()));
            let mut fresh = ReadBuf::new(room);
            if Pin::new(&mut this.io).poll_read(cx, &mut fresh)?.is_pending() {
                let still = this.held.is_empty() && this.framing.phase() == Phase::Idle;
                this.activity.still.store(still, Relaxed);
                return Poll::Pending;
            }
            let n = fresh.filled().len();
            this.room = (n + 1).next_power_of_two().clamp(ROOM_MIN, ROOM_MAX);
            if n == 0 {
                return Poll::Ready(Ok(()));
            }
            let (used, release) = this.look(&room[..n]);
            if this.held.is_empty() {
                // The common case: nothing is copied.
                this.held.extend_from_slice(&room[release..n]);
                this.looked = used.saturating_sub(release);
                buf.advance(release);
                if release > 0 {
                    return Poll::Ready(Ok(()));
                }
            } else {
                this.held.extend_from_slice(&room[..n]);
                this.looked += used;
                this.free += release;
            }
        }
    }
}

impl<T: AsyncWrite + Unpin> Strict<T> {
    fn poll_early(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.activity.has_early.load(Relaxed) {
            let mut early = self.activity.early.lock().unwrap_or_else(|p| p.into_inner());
            if early.is_empty() {
                self.activity.has_early.store(false, Relaxed);
                break;
            }
            let n = ready!(Pin::new(&mut self.io).poll_write(cx, &early))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            early.drain(..n);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Strict<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_early(cx))?;
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_early(cx))?;
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_early(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// The library is done; whoever was refused is told so before the connection closes.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.is_shut = true;
        if let Some((violation, false)) = this.refused {
            let (text, at) = this.farewell.get_or_insert_with(|| (refusal(violation), 0));
            while *at < text.len() {
                let n = ready!(Pin::new(&mut this.io).poll_write(cx, &text[*at..]))?;
                if n == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                *at += n;
            }
            ready!(Pin::new(&mut this.io).poll_flush(cx))?;
        }
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

fn refusal(violation: Violation) -> Vec<u8> {
    let status = match violation.status() {
        431 => "431 Request Header Fields Too Large",
        505 => "505 HTTP Version Not Supported",
        _ => "400 Bad Request",
    };
    let body = format!("{violation}\n");
    format!(
        "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    type Io = Strict<Watched<DuplexStream>>;

    /// What the library does when it is woken: reads until nothing comes.
    fn read(io: &mut Io) -> usize {
        let (mut cx, mut bytes, mut sum) = (Context::from_waker(Waker::noop()), [0; 256], 0);
        loop {
            let mut buf = ReadBuf::new(&mut bytes);
            match Pin::new(&mut *io).poll_read(&mut cx, &mut buf) {
                Poll::Pending => return sum,
                Poll::Ready(read) => read.expect("nothing is wrong"),
            }
            sum += buf.filled().len();
        }
    }

    #[tokio::test]
    async fn a_connection_is_quiet_when_the_library_has_nothing_to_remember() {
        let activity = Activity::new();
        let (mut client, socket) = duplex(1024);
        let watched = Watched::new(socket, activity.clone());
        let mut io = Strict::new(watched, activity.clone(), |_| ());
        let mut sends = async |text: &str| client.write_all(text.as_bytes()).await.expect("room");
        assert!(!activity.is_quiet(), "nobody has looked yet");
        assert_eq!(read(&mut io), 0);
        assert!(activity.is_quiet());
        sends("GET / HTTP/1.1\r\nHost: a\r\n").await;
        assert_eq!(read(&mut io), 0);
        assert!(!activity.is_quiet(), "a part of a head is held");
        sends("\r\n").await;
        assert_eq!(read(&mut io), 27);
        assert!(!activity.is_quiet(), "the library has a head that it has not begun with");
        let (in_flight, unread) = (activity.request(), activity.body());
        assert!(!activity.is_quiet(), "it is not answered");
        drop(in_flight);
        assert!(!activity.is_quiet(), "its body may still be read");
        drop(unread);
        assert!(activity.is_quiet());
        io.write_all(b"HTTP/1.1 200 OK").await.expect("room");
        assert!(!activity.is_quiet(), "what was written may not have gone");
        io.flush().await.expect("room");
        assert!(activity.is_quiet());
        sends("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nx").await;
        read(&mut io);
        drop(activity.request());
        assert!(!activity.is_quiet(), "answered early: its body has not come whole");
        sends("y").await;
        read(&mut io);
        assert!(activity.is_quiet());
        activity.upgraded();
        assert!(!activity.is_quiet(), "it is HTTP no longer");
    }
}
