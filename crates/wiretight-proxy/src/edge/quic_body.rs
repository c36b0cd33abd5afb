//! The body of a request over HTTP/3.

use std::future::poll_fn;
use std::task::{Context, Poll};

use h3::server::RequestStream;
use hyper::Request;
use hyper::body::{Buf, Bytes, Frame, SizeHint};

use super::gate::{self, FrameTooLarge, Gate};
use super::headers;
use super::received::BodyError;

type Receiving = RequestStream<gate::Receiving, Bytes>;

pub(crate) struct QuicBody {
    stream: Receiving,
    gate: Gate,
    length: Option<u64>,
    received: u64,
    state: State,
    /// The first frame, if it was read in advance.
    first: Option<Result<Frame<Bytes>, BodyError>>,
}

#[derive(PartialEq, Eq)]
enum State {
    Data,
    Trailers,
    End,
}

impl QuicBody {
    pub(crate) fn new(stream: Receiving, gate: Gate, request: &Request<()>) -> QuicBody {
        let length = headers::length(request.headers());
        QuicBody { stream, gate, length, received: 0, state: State::Data, first: None }
    }

    /// Finds out whether there is a body. In HTTP/3 only the end of the stream tells, and a program may not expect a
    /// GET with an empty body. If `wait` is set (for methods that rarely have a body), waits for the first frame.
    pub(crate) async fn begin(&mut self, wait: bool) {
        poll_fn(|cx| match self.poll_frame(cx) {
            Poll::Ready(first) => {
                self.first = first;
                Poll::Ready(())
            }
            Poll::Pending if wait => Poll::Pending,
            Poll::Pending => Poll::Ready(()),
        })
        .await;
    }

    pub(crate) fn is_end(&self) -> bool {
        self.first.is_none() && (self.state == State::End || self.length == Some(0))
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        match self.length {
            Some(length) => {
                let waiting = match &self.first {
                    Some(Ok(frame)) => frame.data_ref().map_or(0, |d| d.len() as u64),
                    _ => 0,
                };
                SizeHint::with_exact(length.saturating_sub(self.received) + waiting)
            }
            None => SizeHint::default(),
        }
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(first));
        }
        let broken = || Poll::Ready(Some(Err(BodyError::Broken)));
        loop {
            match self.state {
                State::Data => match self.stream.poll_recv_data(cx) {
                    Poll::Ready(Ok(Some(mut data))) => {
                        self.gate.used();
                        let data = data.copy_to_bytes(data.remaining());
                        self.received += data.len() as u64;
                        // The body must have the announced length (RFC 9114, section 4.1.2).
                        if self.length.is_some_and(|length| self.received > length) {
                            return broken();
                        }
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                    Poll::Ready(Ok(None)) => self.state = State::Trailers,
                    Poll::Ready(Err(_)) => return broken(),
                    Poll::Pending => match self.gate.drained() {
                        Ok(true) => {}
                        Ok(false) => return Poll::Pending,
                        Err(FrameTooLarge) => return broken(),
                    },
                },
                State::Trailers => {
                    let trailers = match self.stream.poll_recv_trailers(cx) {
                        Poll::Ready(Ok(trailers)) => trailers,
                        Poll::Ready(Err(_)) => return broken(),
                        Poll::Pending => match self.gate.drained() {
                            Ok(true) => continue,
                            Ok(false) => return Poll::Pending,
                            Err(FrameTooLarge) => return broken(),
                        },
                    };
                    self.state = State::End;
                    if self.length.is_some_and(|length| self.received < length) {
                        return broken();
                    }
                    if let Some(trailers) = trailers {
                        return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                    }
                }
                State::End => return Poll::Ready(None),
            }
        }
    }
}
