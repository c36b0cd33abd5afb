//! Bodies in transit: a request's body is limited in size and must keep arriving; a response's body carries the
//! access log record to write at its end.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use tokio::time::{Sleep, sleep};

use super::claims;
use super::guard::Unread;
use super::http2::StreamBody;
use super::log::Story;
use super::quic::QuicBody;

/// Why a request's body is incomplete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BodyError {
    /// Larger than the site's limit.
    #[error("the body is larger than this site accepts")]
    TooLarge,
    /// No data arrived for too long.
    #[error("timed out waiting for the body")]
    Stalled,
    /// The client disconnected, or sent an invalid body.
    #[error("the body is incomplete or invalid")]
    Broken,
}

/// The source of a request's body.
pub(crate) enum Source {
    /// HTTP/1.
    Incoming(Incoming, #[expect(dead_code, reason = "needed only for its Drop")] Unread),
    /// HTTP/2.
    Http2(StreamBody),
    /// HTTP/3.
    Quic(Box<QuicBody>),
    /// No body.
    Empty,
}

/// A request's body on its way to a backend.
pub(crate) struct RequestBody {
    source: Source,
    left: u64,
    patience: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    story: BodyStory,
}

/// The progress of a request's body, shared with the handler.
#[derive(Clone, Default)]
pub(crate) struct BodyStory(Rc<(Cell<u64>, Cell<Option<BodyError>>)>);

impl BodyStory {
    /// Bytes received so far.
    pub(crate) fn received(&self) -> u64 {
        self.0.0.get()
    }

    /// Adds received bytes.
    pub(crate) fn add(&self, n: usize) {
        self.0.0.set(self.0.0.get() + n as u64);
    }

    /// Why the body is incomplete, if it is.
    pub(crate) fn error(&self) -> Option<BodyError> {
        self.0.1.get()
    }
}

impl RequestBody {
    pub(crate) fn new(
        source: Source,
        max: u64,
        patience: Duration,
        story: BodyStory,
    ) -> RequestBody {
        RequestBody { source, left: max, patience, timer: None, story }
    }

    pub(crate) fn empty() -> RequestBody {
        RequestBody::new(Source::Empty, 0, Duration::ZERO, BodyStory::default())
    }

    fn fail(&self, error: BodyError) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.story.0.1.set(Some(error));
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
                    let received = &this.story.0.0;
                    received.set(received.get() + n);
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

/// A response's body. Its access log record is written when it is dropped.
pub(crate) struct ReplyBody {
    source: Reply,
    story: Option<Story>,
}

enum Reply {
    Backend(Incoming),
    Text(Option<Bytes>),
}

impl ReplyBody {
    pub(crate) fn backend(body: Incoming, story: Story) -> ReplyBody {
        ReplyBody { source: Reply::Backend(body), story: Some(story) }
    }

    pub(crate) fn text(text: Bytes, story: Story) -> ReplyBody {
        let text = Some(text).filter(|t| !t.is_empty());
        ReplyBody { source: Reply::Text(text), story: Some(story) }
    }

    /// No body and no access log record.
    pub(crate) fn empty() -> ReplyBody {
        ReplyBody { source: Reply::Text(None), story: None }
    }

    /// A short text without an access log record.
    pub(crate) fn words(text: Bytes) -> ReplyBody {
        ReplyBody { source: Reply::Text(Some(text)), story: None }
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = &mut *self;
        let polled = match &mut this.source {
            Reply::Backend(body) => ready!(Pin::new(body).poll_frame(cx)),
            Reply::Text(text) => text.take().map(|text| Ok(Frame::data(text))),
        };
        let ended = this.is_end_stream();
        if let Some(story) = &mut this.story {
            match &polled {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        story.sent(data.len());
                    }
                    if ended {
                        story.complete();
                    }
                }
                Some(Err(_)) => story.broke_off("backend"),
                None => story.complete(),
            }
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Reply::Backend(body) => body.is_end_stream(),
            Reply::Text(text) => text.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Reply::Backend(body) => body.size_hint(),
            Reply::Text(text) => SizeHint::with_exact(text.as_ref().map_or(0, |t| t.len() as u64)),
        }
    }
}
