//! An answer's body on its way to the client: it carries what is to be told when it has gone.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};

use super::log::Story;

/// An answer's body. Whatever becomes of it, its story is told when it is dropped.
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

    /// No body, and nothing to tell.
    pub(crate) fn empty() -> ReplyBody {
        ReplyBody { source: Reply::Text(None), story: None }
    }

    /// A few words, of which nothing is told.
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
