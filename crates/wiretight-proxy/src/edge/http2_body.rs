//! The body of a request over HTTP/2.

use std::task::{Context, Poll, ready};

use h2::RecvStream;
use hyper::Request;
use hyper::body::{Bytes, Frame, SizeHint};

use super::headers;
use super::received::BodyError;

pub(crate) struct StreamBody {
    stream: RecvStream,
    length: Option<u64>,
    received: u64,
    at: At,
}

#[derive(PartialEq, Eq)]
enum At {
    Data,
    Trailers,
    End,
}

impl StreamBody {
    pub(crate) fn new(stream: RecvStream, request: &Request<()>) -> StreamBody {
        let length = headers::length(request.headers());
        StreamBody { stream, length, received: 0, at: At::Data }
    }

    pub(crate) fn is_end(&self) -> bool {
        self.at == At::End || self.stream.is_end_stream()
    }

    /// The library checks that the length is correct.
    pub(crate) fn size_hint(&self) -> SizeHint {
        match self.length {
            Some(length) => SizeHint::with_exact(length.saturating_sub(self.received)),
            None => SizeHint::default(),
        }
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.at == At::Data {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    self.received += data.len() as u64;
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(_)) => {
                    self.at = At::End;
                    return Poll::Ready(Some(Err(BodyError::Broken)));
                }
                None => self.at = At::Trailers,
            }
        }
        if self.at == At::Trailers {
            let trailers = ready!(self.stream.poll_trailers(cx));
            self.at = At::End;
            match trailers {
                Ok(Some(trailers)) => return Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                Ok(None) => {}
                Err(_) => return Poll::Ready(Some(Err(BodyError::Broken))),
            }
        }
        Poll::Ready(None)
    }
}
