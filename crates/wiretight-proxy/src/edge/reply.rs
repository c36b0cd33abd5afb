//! A response's body on its way to the client. It carries the access log record.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};

use super::log::AccessRecord;

/// A response's body. Its access log record is written when it is dropped.
pub(crate) struct ReplyBody {
    source: Reply,
    record: Option<AccessRecord>,
}

enum Reply {
    Backend(Incoming),
    Text(Option<Bytes>),
}

impl ReplyBody {
    pub(crate) fn backend(body: Incoming, record: AccessRecord) -> ReplyBody {
        ReplyBody { source: Reply::Backend(body), record: Some(record) }
    }

    pub(crate) fn text(text: Bytes, record: AccessRecord) -> ReplyBody {
        let text = Some(text).filter(|t| !t.is_empty());
        ReplyBody { source: Reply::Text(text), record: Some(record) }
    }

    /// No body and no access log record.
    pub(crate) fn empty() -> ReplyBody {
        ReplyBody { source: Reply::Text(None), record: None }
    }

    /// A short text without an access log record.
    pub(crate) fn words(text: Bytes) -> ReplyBody {
        ReplyBody { source: Reply::Text(Some(text)), record: None }
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
        if let Some(record) = &mut this.record {
            match &polled {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        record.sent(data.len());
                    }
                    if ended {
                        record.complete();
                    }
                }
                Some(Err(_)) => record.broke_off("backend"),
                None => record.complete(),
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
