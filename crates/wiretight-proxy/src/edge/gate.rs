//! A QUIC connection as passed to the HTTP/3 library, which gets data from a stream only as it is used. The library
//! (h3 0.0.8) buffers all data until it is requested, so that tiny DATA frames, or one endless frame, would exhaust
//! the memory (h3 issue 308).

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use futures_util::stream;
use h3::quic::{self, ConnectionErrorIncoming, StreamErrorIncoming, StreamId, WriteBuf};
use hyper::body::{Buf, Bytes};
use quinn::{ConnectionError, ReadError, RecvStream, SendStream, VarInt, WriteError};

/// The most data of a stream passed to the library before some of it is used.
const AHEAD: usize = 256 * 1024;
/// The most data that a client may send on its control streams over the life of a connection: settings and
/// priorities.
const CONTROL: usize = 1024 * 1024;

/// No error, but no more data is needed (RFC 9114, section 8.1).
const NO_ERROR: VarInt = VarInt::from_u32(0x100);

/// The number of gates above which unused ones are removed before another is added.
const MANY: usize = 128;

/// How much data of a stream is buffered in the library, and whether the response is still wanted.
#[derive(Clone, Default)]
pub(crate) struct Gate(Rc<Level>);

#[derive(Default)]
struct Level {
    waiting: Cell<usize>,
    /// Whether any data was used since the gate last opened.
    used: Cell<bool>,
    send: RefCell<Option<SendStream>>,
}

impl Gate {
    /// Marks that some data was used.
    pub(crate) fn used(&self) {
        self.0.used.set(true);
    }

    /// Called when the library has nothing to return, because all it has buffered is an incomplete frame. True if the
    /// gate was closed and is now open; an error if the limit was reached although nothing was used.
    pub(crate) fn drained(&self) -> Result<bool, FrameTooLarge> {
        let was_shut = self.0.waiting.get() >= AHEAD;
        if was_shut && !self.0.used.get() {
            return Err(FrameTooLarge);
        }
        if self.0.used.replace(false) {
            self.0.waiting.set(0);
        }
        Ok(was_shut)
    }

    /// Resolves when the client has the whole response or does not want the rest.
    pub(crate) async fn closed(&self) {
        let closed = self.0.send.borrow().as_ref().map(SendStream::stopped);
        if let Some(closed) = closed {
            let _ = closed.await;
        }
    }

    /// Whether the client has the whole response or does not want the rest.
    pub(crate) fn is_closed(&self) -> bool {
        pin!(self.closed()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    /// Resets the stream; data that the client has not accepted is discarded.
    pub(crate) fn reset(&self, code: h3::error::Code) {
        if let Some(send) = &mut *self.0.send.borrow_mut() {
            let _ = send.reset(var_int(code.value()));
        }
    }

    fn is_shut(&self) -> bool {
        self.0.waiting.get() >= AHEAD
    }

    fn given(&self, n: usize) {
        self.0.waiting.set(self.0.waiting.get().saturating_add(n));
    }
}

/// A frame other than DATA that is larger than allowed.
#[derive(Debug)]
pub(crate) struct FrameTooLarge;

/// The gates of streams, until their request is handled.
pub(crate) type Gates = Rc<RefCell<HashMap<StreamId, Gate>>>;

fn var_int(code: u64) -> VarInt {
    VarInt::from_u64(code).unwrap_or(VarInt::MAX)
}

fn stream_id(id: quinn::StreamId) -> StreamId {
    // Both libraries limit stream numbers to less than 2^62.
    StreamId::try_from(u64::from(id)).unwrap_or_else(|_| h3::proto::varint::VarInt::MAX.into())
}

fn lost(error: ConnectionError) -> ConnectionErrorIncoming {
    match error {
        ConnectionError::ApplicationClosed(closed) => {
            ConnectionErrorIncoming::ApplicationClose { error_code: closed.error_code.into() }
        }
        ConnectionError::TimedOut => ConnectionErrorIncoming::Timeout,
        other => ConnectionErrorIncoming::Undefined(Arc::new(other)),
    }
}

fn on_read(error: ReadError) -> StreamErrorIncoming {
    match error {
        ReadError::Reset(code) => {
            StreamErrorIncoming::StreamTerminated { error_code: code.into_inner() }
        }
        ReadError::ConnectionLost(error) => {
            StreamErrorIncoming::ConnectionErrorIncoming { connection_error: lost(error) }
        }
        other => StreamErrorIncoming::Unknown(Box::new(other)),
    }
}

fn on_write(error: WriteError) -> StreamErrorIncoming {
    match error {
        WriteError::Stopped(code) => {
            StreamErrorIncoming::StreamTerminated { error_code: code.into_inner() }
        }
        WriteError::ConnectionLost(error) => {
            StreamErrorIncoming::ConnectionErrorIncoming { connection_error: lost(error) }
        }
        other => StreamErrorIncoming::Unknown(Box::new(other)),
    }
}

type Accepted = Result<(SendStream, RecvStream), ConnectionError>;

pub(crate) struct Gated {
    inner: h3_quinn::Connection,
    accepts: Pin<Box<dyn futures_util::Stream<Item = Accepted>>>,
    gates: Gates,
    control: Rc<Cell<usize>>,
}

impl Gated {
    pub(crate) fn new(connection: quinn::Connection, gates: Gates) -> Gated {
        let accepts = stream::unfold(connection.clone(), async |connection| {
            Some((connection.accept_bi().await, connection))
        });
        let inner = h3_quinn::Connection::new(connection);
        Gated { inner, accepts: Box::pin(accepts), gates, control: Rc::default() }
    }
}

impl<B: Buf> quic::OpenStreams<B> for Gated {
    type BidiStream = Stream<B>;
    type SendStream = h3_quinn::SendStream<B>;

    fn poll_open_bidi(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<Result<Self::BidiStream, StreamErrorIncoming>> {
        Poll::Ready(Err(no_opener()))
    }

    fn poll_open_send(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::SendStream, StreamErrorIncoming>> {
        quic::OpenStreams::<B>::poll_open_send(&mut self.inner, cx)
    }

    fn close(&mut self, code: h3::error::Code, reason: &[u8]) {
        quic::OpenStreams::<B>::close(&mut self.inner, code, reason);
    }
}

/// In HTTP/3 only clients open bidirectional streams (RFC 9114, section 6.1).
fn no_opener() -> StreamErrorIncoming {
    StreamErrorIncoming::Unknown("a server does not open bidirectional streams".into())
}

impl<B: Buf> quic::Connection<B> for Gated {
    type RecvStream = Control;
    type OpenStreams = Opener;

    fn poll_accept_recv(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::RecvStream, ConnectionErrorIncoming>> {
        let accepted = quic::Connection::<B>::poll_accept_recv(&mut self.inner, cx);
        accepted.map_ok(|inner| Control { inner, given: self.control.clone() })
    }

    fn poll_accept_bidi(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::BidiStream, ConnectionErrorIncoming>> {
        let Some(accepted) = ready!(self.accepts.as_mut().poll_next(cx)) else {
            return Poll::Pending; // the stream of connections never ends
        };
        let (send, recv) = accepted.map_err(lost)?;
        let id = stream_id(recv.id());
        let gate = Gate::default();
        *gate.0.send.borrow_mut() = Some(send);
        let mut gates = self.gates.borrow_mut();
        if gates.len() >= MANY {
            // Remove gates of streams that ended before they became a request.
            gates.retain(|_, gate| Rc::strong_count(&gate.0) > 1);
        }
        gates.insert(id, gate.clone());
        let send = Sending { id, gate: gate.clone(), writing: None };
        Poll::Ready(Ok(Stream { send, recv: Receiving { recv, gate } }))
    }

    fn opener(&self) -> Opener {
        Opener(quic::Connection::<B>::opener(&self.inner))
    }
}

/// Opens our own streams.
pub(crate) struct Opener(h3_quinn::OpenStreams);

impl<B: Buf> quic::OpenStreams<B> for Opener {
    type BidiStream = Stream<B>;
    type SendStream = h3_quinn::SendStream<B>;

    fn poll_open_bidi(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<Result<Self::BidiStream, StreamErrorIncoming>> {
        Poll::Ready(Err(no_opener()))
    }

    fn poll_open_send(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::SendStream, StreamErrorIncoming>> {
        quic::OpenStreams::<B>::poll_open_send(&mut self.0, cx)
    }

    fn close(&mut self, code: h3::error::Code, reason: &[u8]) {
        quic::OpenStreams::<B>::close(&mut self.0, code, reason);
    }
}

/// A stream that carries a request.
pub(crate) struct Stream<B: Buf> {
    send: Sending<B>,
    recv: Receiving,
}

/// The sending half. The QUIC stream itself is in the gate, so that others can wait for the client's reaction.
pub(crate) struct Sending<B: Buf> {
    id: StreamId,
    gate: Gate,
    writing: Option<WriteBuf<B>>,
}

/// The receiving half.
pub(crate) struct Receiving {
    recv: RecvStream,
    gate: Gate,
}

impl Drop for Receiving {
    fn drop(&mut self) {
        // No effect if everything was received. Otherwise the client may stop sending, because it got a response or a
        // reset.
        let _ = self.recv.stop(NO_ERROR);
    }
}

impl quic::RecvStream for Receiving {
    type Buf = Bytes;

    fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        if self.gate.is_shut() {
            // The user of the stream polls again when the buffered data is used up, or drops the stream.
            return Poll::Pending;
        }
        let polled = pin!(self.recv.read_chunk(usize::MAX, true)).poll(cx);
        let chunk = ready!(polled).map_err(on_read)?;
        Poll::Ready(Ok(chunk.map(|chunk| {
            self.gate.given(chunk.bytes.len());
            chunk.bytes
        })))
    }

    fn stop_sending(&mut self, code: u64) {
        let _ = self.recv.stop(var_int(code));
    }

    fn recv_id(&self) -> StreamId {
        stream_id(self.recv.id())
    }
}

impl<B: Buf> quic::SendStream<B> for Sending<B> {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        let mut send = self.gate.0.send.borrow_mut();
        if let (Some(data), Some(send)) = (&mut self.writing, &mut *send) {
            while data.has_remaining() {
                let written = ready!(Pin::new(&mut *send).poll_write(cx, data.chunk()));
                data.advance(written.map_err(on_write)?);
            }
        }
        self.writing = None;
        Poll::Ready(Ok(()))
    }

    fn send_data<T: Into<WriteBuf<B>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        if self.writing.is_some() {
            return Err(StreamErrorIncoming::Unknown("a write is pending".into()));
        }
        self.writing = Some(data.into());
        Ok(())
    }

    fn poll_finish(&mut self, _: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        let mut send = self.gate.0.send.borrow_mut();
        let finished = send.as_mut().map_or(Ok(()), SendStream::finish);
        Poll::Ready(finished.map_err(|e| StreamErrorIncoming::Unknown(Box::new(e))))
    }

    fn reset(&mut self, code: u64) {
        if let Some(send) = &mut *self.gate.0.send.borrow_mut() {
            let _ = send.reset(var_int(code));
        }
    }

    fn send_id(&self) -> StreamId {
        self.id
    }
}

impl<B: Buf> quic::RecvStream for Stream<B> {
    type Buf = Bytes;

    fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        self.recv.poll_data(cx)
    }

    fn stop_sending(&mut self, code: u64) {
        self.recv.stop_sending(code);
    }

    fn recv_id(&self) -> StreamId {
        self.recv.recv_id()
    }
}

impl<B: Buf> quic::SendStream<B> for Stream<B> {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.send.poll_ready(cx)
    }

    fn send_data<T: Into<WriteBuf<B>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        self.send.send_data(data)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.send.poll_finish(cx)
    }

    fn reset(&mut self, code: u64) {
        self.send.reset(code);
    }

    fn send_id(&self) -> StreamId {
        self.send.send_id()
    }
}

impl<B: Buf> quic::BidiStream<B> for Stream<B> {
    type SendStream = Sending<B>;
    type RecvStream = Receiving;

    fn split(self) -> (Self::SendStream, Self::RecvStream) {
        (self.send, self.recv)
    }
}

/// A unidirectional stream from the client, with data about the connection.
pub(crate) struct Control {
    inner: h3_quinn::RecvStream,
    given: Rc<Cell<usize>>,
}

impl quic::RecvStream for Control {
    type Buf = Bytes;

    fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        let polled = self.inner.poll_data(cx);
        if let Poll::Ready(Ok(Some(bytes))) = &polled {
            self.given.set(self.given.get().saturating_add(bytes.len()));
            if self.given.get() > CONTROL {
                let connection_error = ConnectionErrorIncoming::InternalError(
                    "too much data on control streams".into(),
                );
                return Poll::Ready(Err(StreamErrorIncoming::ConnectionErrorIncoming {
                    connection_error,
                }));
            }
        }
        polled
    }

    fn stop_sending(&mut self, code: u64) {
        self.inner.stop_sending(code);
    }

    fn recv_id(&self) -> StreamId {
        self.inner.recv_id()
    }
}
