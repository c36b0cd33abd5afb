//! A request's body on its way to a backend. It is limited in size and must keep arriving.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use tokio::time::{Sleep, sleep};

use super::claims;
use super::guard::Unread;
use super::http2_body::StreamBody;
use super::quic_body::QuicBody;
use super::received::{BodyError, BodyProgress};

/// The source of a request's body.
pub(crate) enum Source {
    /// HTTP/1.
    Incoming(Incoming, #[expect(dead_code, reason = "needed only for its Drop")] Unread),
    Http2(StreamBody),
    /// HTTP/3.
    Quic(Box<QuicBody>),
    Empty,
}

/// A request's body on its way to a backend.
pub(crate) struct RequestBody {
    source: Source,
    left: u64,
    patience: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    progress: BodyProgress,
}

impl RequestBody {
    pub(crate) fn new(
        source: Source,
        max: u64,
        patience: Duration,
        progress: BodyProgress,
    ) -> RequestBody {
        RequestBody { source, left: max, patience, timer: None, progress }
    }

    pub(crate) fn empty() -> RequestBody {
        RequestBody::new(Source::Empty, 0, Duration::ZERO, BodyProgress::default())
    }

    fn fail(&self, error: BodyError) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.progress.fail(error);
        Poll::Ready(Some(Err(error)))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let polled = match &mut this.source {
            Source::Incoming(body, _) => {
                Pin::new(body).poll_frame(cx).map_err(|_| BodyError::Broken)
            }
            Source::Http2(body) => body.poll_frame(cx),
            Source::Quic(body) => body.poll_frame(cx),
            Source::Empty => Poll::Ready(None),
        };
        match polled {
            Poll::Ready(Some(Ok(mut frame))) => {
                this.timer = None;
                if let Some(trailers) = frame.trailers_mut() {
                    claims::remove_from_trailers(trailers);
                }
                if let Some(data) = frame.data_ref() {
                    let n = data.len() as u64;
                    if n > this.left {
                        return this.fail(BodyError::TooLarge);
                    }
                    this.left -= n;
                    this.progress.add(data.len());
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => this.fail(error),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => {
                let patience = this.patience;
                let timer = this.timer.get_or_insert_with(|| Box::pin(sleep(patience)));
                ready!(timer.as_mut().poll(cx));
                this.fail(BodyError::Stalled)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Incoming(body, _) => body.is_end_stream(),
            Source::Http2(body) => body.is_end(),
            Source::Quic(body) => body.is_end(),
            Source::Empty => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Incoming(body, _) => body.size_hint(),
            Source::Http2(body) => body.size_hint(),
            Source::Quic(body) => body.size_hint(),
            Source::Empty => SizeHint::with_exact(0),
        }
    }
}
