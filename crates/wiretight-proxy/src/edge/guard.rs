//! An HTTP/1 connection as passed to the HTTP library: only checked data ([`super::strict`]), and deadlines for a
//! peer that makes no progress.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

use super::settings::Limits;
use super::strict::{Framing, Phase, Violation};

/// Requests that an HTTP/2 client may cancel before the response, in excess of those that it waited for. Each
/// cancelled request costs a program work, even if few are open at a time (CVE-2023-44487).
const MAX_TAKEN_BACK: usize = 1000;

/// The most data read ahead of a response.
const MAX_AHEAD: usize = 64 * 1024;

/// The smallest and the largest read. The buffer is zeroed for each read, so it is small for a peer that sends
/// little.
const ROOM_MIN: usize = 1024;
const ROOM_MAX: usize = 16 * 1024;

/// The state of a connection. Shared by its two directions, its requests and its deadlines.
#[derive(Debug)]
pub(crate) struct Activity {
    born: Instant,
    requests: AtomicUsize,
    /// The number of requests started, and of HTTP/1 heads passed to the library.
    begun: AtomicUsize,
    heads: AtomicUsize,
    /// Request bodies that were not read to their end.
    unread: AtomicUsize,
    taken_back: AtomicUsize,
    enough: Notify,
    /// The response was 101: the connection no longer carries HTTP.
    upgraded: AtomicBool,
    /// Milliseconds since `born`, plus one; 0 for none.
    rest_since: AtomicU64,
    head_since: AtomicU64,
    blocked_since: AtomicU64,
    /// Since when reading is paused because too much was sent ahead of a response; meanwhile a disconnect of the
    /// client goes unnoticed.
    ahead_since: AtomicU64,
    /// `still`: everything received was passed on completely. `flushed`: everything written was sent.
    still: AtomicBool,
    flushed: AtomicBool,
    waiting: Mutex<Option<Waker>>,
    /// Data to send before the response to the current request, and whether there is any.
    early: Mutex<Vec<u8>>,
    has_early: AtomicBool,
}

/// Why a connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Overdue {
    /// No request for some time; a normal close.
    Idle,
    /// An incomplete request head.
    Head,
    /// The client does not read the response.
    Reading,
    /// Too much data was sent ahead of a response that does not arrive.
    Ahead,
    /// Too many requests were cancelled.
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

    /// Counts a request until the result is dropped.
    pub(crate) fn request(self: &Arc<Activity>) -> InFlight {
        self.begun.fetch_add(1, Relaxed);
        self.requests.fetch_add(1, Relaxed);
        InFlight(self.clone())
    }

    /// Counts a request body that may still be read, until the result is dropped.
    pub(crate) fn body(self: &Arc<Activity>) -> Unread {
        self.unread.fetch_add(1, Relaxed);
        Unread(self.clone())
    }

    /// Resolves after the first request. Only used while the process stops, so polling is good enough.
    pub(crate) async fn first(&self) {
        while self.begun.load(Relaxed) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Whether the HTTP/1 library is idle: each request passed to it has started, was read completely and has its
    /// response, the response was sent, and no further request has arrived. Call it right after the library has done
    /// everything it can.
    pub(crate) fn is_quiet(&self) -> bool {
        self.still.load(Relaxed)
            && self.flushed.load(Relaxed)
            && self.requests.load(Relaxed) == 0
            && self.unread.load(Relaxed) == 0
            && self.begun.load(Relaxed) == self.heads.load(Relaxed)
            && !self.is_upgraded()
    }

    /// The time since the last request ended.
    pub(crate) fn rested(&self) -> Duration {
        Duration::from_millis(self.clock().saturating_sub(self.rest_since.load(Relaxed)))
    }

    /// Counts a request as cancelled if the result is dropped without [`PendingRequest::answered`].
    pub(crate) fn pending_request(self: &Arc<Activity>) -> PendingRequest {
        PendingRequest(Some(self.clone()))
    }

    /// From now on the connection carries another protocol.
    pub(crate) fn upgraded(&self) {
        self.upgraded.store(true, Relaxed);
        self.wake();
    }

    /// Sends data before the response to the current HTTP/1 request. Everything before it has already been sent.
    pub(crate) fn send_early(&self, bytes: &[u8]) {
        self.early.lock().extend_from_slice(bytes);
        self.has_early.store(true, Relaxed);
    }

    fn is_upgraded(&self) -> bool {
        self.upgraded.load(Relaxed)
    }

    fn wake(&self) {
        let waiting = self.waiting.lock().take();
        if let Some(waker) = waiting {
            waker.wake();
        }
    }

    fn wake_later(&self, waker: &Waker) {
        *self.waiting.lock() = Some(waker.clone());
    }

    fn clock(&self) -> u64 {
        self.born.elapsed().as_millis() as u64 + 1
    }

    fn older(&self, since: &AtomicU64, limit: Duration) -> bool {
        let since = since.load(Relaxed);
        since > 0 && self.clock().saturating_sub(since) > limit.as_millis() as u64
    }

    /// Resolves when the client has cancelled too many requests.
    pub(crate) async fn taken_back(&self) {
        self.enough.notified().await;
    }

    /// Resolves when a deadline was missed or the client has cancelled too many requests.
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

/// A request in progress.
pub(crate) struct InFlight(Arc<Activity>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.rest_since.store(self.0.clock(), Relaxed);
        self.0.requests.fetch_sub(1, Relaxed);
        self.0.wake();
    }
}

/// A request body that may still be read.
pub(crate) struct Unread(Arc<Activity>);

impl Drop for Unread {
    fn drop(&mut self) {
        self.0.unread.fetch_sub(1, Relaxed);
    }
}

/// A request without a response so far.
pub(crate) struct PendingRequest(Option<Arc<Activity>>);

impl PendingRequest {
    /// The response is there; this also compensates for one cancelled request.
    pub(crate) fn answered(mut self) {
        if let Some(activity) = self.0.take() {
            let _ = activity.taken_back.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1));
        }
    }
}

impl Drop for PendingRequest {
    fn drop(&mut self) {
        if let Some(activity) = &self.0
            && activity.taken_back.fetch_add(1, Relaxed) >= MAX_TAKEN_BACK
        {
            activity.enough.notify_one();
        }
    }
}

/// Watches writes to notice a peer that does not read, for any protocol.
pub(crate) struct Watched<T> {
    io: T,
    activity: Arc<Activity>,
}

impl<T> Watched<T> {
    pub(crate) fn new(io: T, activity: Arc<Activity>) -> Watched<T> {
        Watched { io, activity }
    }

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

/// Passes checked data to the library, one request at a time, and itself responds to rejected requests.
///
/// Data that a client sends ahead of a response is read but held back. If the library had it, it would stop reading
/// until the response, and not notice when the client disconnects.
pub(crate) struct Strict<T> {
    io: T,
    activity: Arc<Activity>,
    framing: Framing,
    /// The size of the next read.
    room: usize,
    /// Data read but not yet passed on.
    held: Vec<u8>,
    /// How much of `held` was checked, and how much of that may be passed on.
    looked: usize,
    free: usize,
    /// The violation, and whether it was in a body, whose request is then in progress.
    refused: Option<(Violation, bool)>,
    on_refusal: Option<Box<dyn FnOnce(Violation) + Send>>,
    farewell: Option<(Vec<u8>, usize)>,
    is_shut: bool,
}

impl<T> Strict<T> {
    /// `on_refusal` gets the first violation; there is no second one.
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

    pub(crate) fn inner(&self) -> &T {
        &self.io
    }

    /// Whether the writing side was closed, or should have been.
    pub(crate) fn is_shut(&self) -> bool {
        self.is_shut
    }

    /// Returns data that was passed to the library but belongs to another protocol.
    pub(crate) fn put_back(&mut self, bytes: &[u8]) {
        self.held.splice(0..0, bytes.iter().copied());
    }

    /// Checks newly read data. Returns how much of it was checked, and how much of all held data may be passed on.
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

    /// Passes on what is allowed; returns whether there was any.
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
            self.held = Vec::new(); // an idle connection has no buffer
        }
        true
    }
}

impl<T: AsyncRead + Unpin> Strict<T> {
    /// Holds back what arrives until the current request has its response. Ready if the client disconnected.
    /// `scratch` is not filled.
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
                // The request with this body fails and reports the reason.
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, violation)));
            }
            if this.refused.is_some() {
                return Poll::Ready(Ok(())); // as if the client had closed
            }
            if this.framing.phase() == Phase::Behind {
                // Until the response is sent completely, an end of file would truncate it.
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
                // The common case, without a copy.
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
            let mut early = self.activity.early.lock();
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

    /// The library has finished. If the request was rejected, sends the error response before closing.
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

    /// Acts like the library when woken: reads until nothing is left.
    fn read(io: &mut Io) -> usize {
        let (mut cx, mut bytes, mut sum) = (Context::from_waker(Waker::noop()), [0; 256], 0);
        loop {
            let mut buf = ReadBuf::new(&mut bytes);
            match Pin::new(&mut *io).poll_read(&mut cx, &mut buf) {
                Poll::Pending => return sum,
                Poll::Ready(read) => read.expect("no error"),
            }
            sum += buf.filled().len();
        }
    }

    #[tokio::test]
    async fn a_connection_is_quiet_when_the_library_is_idle() {
        let activity = Activity::new();
        let (mut client, socket) = duplex(1024);
        let watched = Watched::new(socket, activity.clone());
        let mut io = Strict::new(watched, activity.clone(), |_| ());
        let mut sends = async |text: &str| client.write_all(text.as_bytes()).await.expect("room");
        assert!(!activity.is_quiet(), "nothing was polled yet");
        assert_eq!(read(&mut io), 0);
        assert!(activity.is_quiet());
        sends("GET / HTTP/1.1\r\nHost: a\r\n").await;
        assert_eq!(read(&mut io), 0);
        assert!(!activity.is_quiet(), "part of a head is held back");
        sends("\r\n").await;
        assert_eq!(read(&mut io), 27);
        assert!(!activity.is_quiet(), "the library has a head but has not started the request");
        let (in_flight, unread) = (activity.request(), activity.body());
        assert!(!activity.is_quiet(), "there is no response yet");
        drop(in_flight);
        assert!(!activity.is_quiet(), "its body may still be read");
        drop(unread);
        assert!(activity.is_quiet());
        io.write_all(b"HTTP/1.1 200 OK").await.expect("room");
        assert!(!activity.is_quiet(), "the response may not have been sent");
        io.flush().await.expect("room");
        assert!(activity.is_quiet());
        sends("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nx").await;
        read(&mut io);
        drop(activity.request());
        assert!(!activity.is_quiet(), "early response: the body is incomplete");
        sends("y").await;
        read(&mut io);
        assert!(activity.is_quiet());
        activity.upgraded();
        assert!(!activity.is_quiet(), "it is no longer HTTP");
    }
}
