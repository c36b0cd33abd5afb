//! Early hints (103, RFC 8297): forwards headers that a program sends before its response.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use hyper::header::{self, HeaderMap};
use hyper::{Method, Request, Response, StatusCode};
use parking_lot::Mutex;

use super::headers;

/// The most hints forwarded for one response.
const MOST: usize = 8;

/// The hints for one request.
#[derive(Clone, Default)]
pub(crate) struct Hints(Arc<Mutex<Queue>>);

#[derive(Default)]
struct Queue {
    waiting: Vec<HeaderMap>,
    taken: usize,
    waker: Option<Waker>,
}

impl Hints {
    /// Only for GET, because hints are about the resources of a page.
    pub(crate) fn of<B>(request: &Request<B>) -> Option<Hints> {
        (request.method() == Method::GET).then(Hints::default)
    }

    /// Makes the library report hints from a backend.
    pub(crate) fn attach<B>(&self, request: &mut Request<B>) {
        let hints = self.clone();
        hyper::ext::on_informational(request, move |informs| {
            if informs.status() == StatusCode::EARLY_HINTS {
                hints.push(informs.headers().clone());
            }
        });
    }

    fn push(&self, mut head: HeaderMap) {
        headers::strip_hop_by_hop(&mut head);
        head.remove(header::CONTENT_LENGTH);
        let mut queue = self.0.lock();
        if queue.taken < MOST {
            queue.taken += 1;
            queue.waiting.push(head);
            if let Some(waker) = queue.waker.take() {
                waker.wake();
            }
        }
    }

    pub(crate) fn poll_next(&self, cx: &mut Context<'_>) -> Poll<HeaderMap> {
        let mut queue = self.0.lock();
        if queue.waiting.is_empty() {
            if !queue.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                queue.waker = Some(cx.waker().clone());
            }
            return Poll::Pending;
        }
        Poll::Ready(queue.waiting.remove(0))
    }
}

/// Encodes a hint for HTTP/2 and HTTP/3.
pub(crate) fn response(head: HeaderMap) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::EARLY_HINTS;
    *response.headers_mut() = head;
    response
}

/// Encodes a hint for HTTP/1.1.
pub(crate) fn http1(head: &HeaderMap) -> Vec<u8> {
    let mut bytes = b"HTTP/1.1 103 Early Hints\r\n".to_vec();
    for (name, value) in head {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    bytes
}
