//! A QUIC connection as the HTTP/3 library gets to see it: it takes in no more of a stream than is being
//! used. The library (h3 0.0.8) keeps whatever it is given until somebody asks for it: tiny DATA frames,
//! or one frame that never ends, would fill the memory (h3 issue 308).

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::task::{Context, Poll};

use h3::quic::{self, ConnectionErrorIncoming, StreamErrorIncoming, StreamId, WriteBuf};
use hyper::body::{Buf, Bytes};

/// What may be given of a stream before some of it was used.
const AHEAD: usize = 256 * 1024;
/// What a client may send on its control streams in a connection's life: settings and priorities.
const CONTROL: usize = 1024 * 1024;

/// How many gates are looked through before another is added.
const MANY: usize = 128;

/// How much of a stream waits in the library.
#[derive(Clone, Default)]
pub(crate) struct Gate(Rc<Level>);

#[derive(Default)]
struct Level {
    waiting: Cell<usize>,
    /// Whether anything was used since the gate last opened.
    used: Cell<bool>,
}

impl Gate {
    /// Some of it was used.
    pub(crate) fn used(&self) {
        self.0.used.set(true);
    }

    /// The library has nothing to give: all that waits in it is a frame's beginning. True if the gate is
    /// open now and was not; an error if nothing was used although so much was given.
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

    fn is_shut(&self) -> bool {
        self.0.waiting.get() >= AHEAD
    }

    fn given(&self, n: usize) {
        self.0.waiting.set(self.0.waiting.get().saturating_add(n));
    }
}

/// A frame that is not DATA, and larger than any that we take.
#[derive(Debug)]
pub(crate) struct FrameTooLarge;

/// The gates of requests that have begun, until they are taken.
pub(crate) type Gates = Rc<RefCell<HashMap<StreamId, Gate>>>;

/// The connection.
pub(crate) struct Gated {
    inner: h3_quinn::Connection,
    gates: Gates,
    control: Rc<Cell<usize>>,
}

impl Gated {
    pub(crate) fn new(connection: quinn::Connection, gates: Gates) -> Gated {
        Gated { inner: h3_quinn::Connection::new(connection), gates, control: Rc::default() }
    }
}

type Inner<B> = h3_quinn::BidiStream<B>;

impl<B: Buf> quic::OpenStreams<B> for Gated {
    type BidiStream = Stream<Inner<B>>;
    type SendStream = h3_quinn::SendStream<B>;

    fn poll_open_bidi(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::BidiStream, StreamErrorIncoming>> {
        let opened = quic::OpenStreams::<B>::poll_open_bidi(&mut self.inner, cx);
        opened.map_ok(|inner| Stream { inner, gate: Gate::default() })
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
        let accepted = quic::Connection::<B>::poll_accept_bidi(&mut self.inner, cx);
        accepted.map_ok(|inner| {
            let gate = Gate::default();
            let mut gates = self.gates.borrow_mut();
            if gates.len() >= MANY {
                // Those whose streams came to nothing before they were a request.
                gates.retain(|_, gate| Rc::strong_count(&gate.0) > 1);
            }
            gates.insert(quic::RecvStream::recv_id(&inner), gate.clone());
            drop(gates);
            Stream { inner, gate }
        })
    }

    fn opener(&self) -> Opener {
        Opener(quic::Connection::<B>::opener(&self.inner))
    }
}

/// Opens streams of our own, of which a server has none to gate.
pub(crate) struct Opener(h3_quinn::OpenStreams);

impl<B: Buf> quic::OpenStreams<B> for Opener {
    type BidiStream = Stream<Inner<B>>;
    type SendStream = h3_quinn::SendStream<B>;

    fn poll_open_bidi(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::BidiStream, StreamErrorIncoming>> {
        let opened = quic::OpenStreams::<B>::poll_open_bidi(&mut self.0, cx);
        opened.map_ok(|inner| Stream { inner, gate: Gate::default() })
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

/// A request's stream, or its receiving half.
pub(crate) struct Stream<S> {
    inner: S,
    gate: Gate,
}

impl<S: quic::RecvStream<Buf = Bytes>> quic::RecvStream for Stream<S> {
    type Buf = Bytes;

    fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        if self.gate.is_shut() {
            // Whoever uses the stream asks again when what waits is used up, or gives it up.
            return Poll::Pending;
        }
        let polled = self.inner.poll_data(cx);
        if let Poll::Ready(Ok(Some(bytes))) = &polled {
            self.gate.given(bytes.len());
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

impl<B: Buf, S: quic::SendStream<B>> quic::SendStream<B> for Stream<S> {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.inner.poll_ready(cx)
    }

    fn send_data<T: Into<WriteBuf<B>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        self.inner.send_data(data)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.inner.poll_finish(cx)
    }

    fn reset(&mut self, code: u64) {
        self.inner.reset(code);
    }

    fn send_id(&self) -> StreamId {
        self.inner.send_id()
    }
}

impl<B: Buf> quic::BidiStream<B> for Stream<Inner<B>> {
    type SendStream = h3_quinn::SendStream<B>;
    type RecvStream = Stream<h3_quinn::RecvStream>;

    fn split(self) -> (Self::SendStream, Self::RecvStream) {
        let (send, inner) = quic::BidiStream::split(self.inner);
        (send, Stream { inner, gate: self.gate })
    }
}

/// A stream on which the client tells the library what concerns the connection.
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
                    "more was sent on control streams than a connection needs".into(),
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
