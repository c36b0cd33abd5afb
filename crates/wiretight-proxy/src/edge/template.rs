//! A request as it is sent to backends.

use hyper::body::Body;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::http::uri::PathAndQuery;
use hyper::{Method, Request, Uri, Version};

use super::body::RequestBody;
use super::hints::Hints;
use super::settings::{Speaks, Upstream};

/// A request that can be sent several times.
pub(crate) struct Template {
    pub(crate) method: Method,
    pub(crate) path: PathAndQuery,
    pub(crate) authority: String,
    pub(crate) headers: HeaderMap,
    pub(crate) trailers: bool,
    pub(crate) switches: bool,
    pub(crate) hints: Option<Hints>,
}

impl Template {
    /// A request made by the edge itself.
    pub(crate) fn question(path: PathAndQuery, authority: &str) -> Template {
        let (method, authority, headers) = (Method::GET, authority.to_owned(), HeaderMap::new());
        let (trailers, switches, hints) = (false, false, None);
        Template { method, path, authority, headers, trailers, switches, hints }
    }

    /// Makes a request without a body.
    pub(crate) fn empty(&self, upstream: &Upstream) -> Request<RequestBody> {
        self.request(upstream, RequestBody::empty())
    }

    pub(crate) fn request(&self, upstream: &Upstream, body: RequestBody) -> Request<RequestBody> {
        let ends = body.is_end_stream();
        let has_end = ends || body.size_hint().exact().is_some();
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.headers_mut() = self.headers.clone();
        if let (Some(hints), Speaks::Http1) = (&self.hints, upstream.speaks) {
            hints.attach(&mut request);
        }
        let headers = request.headers_mut();
        match upstream.speaks {
            Speaks::Http1 => {
                if let Ok(host) = HeaderValue::from_str(&self.authority) {
                    headers.insert(header::HOST, host);
                }
                // Trailers are possible only with chunked coding (RFC 9112, section 7.1.2).
                let trailers = !ends && headers.contains_key(header::TRAILER);
                if trailers {
                    headers.remove(header::CONTENT_LENGTH);
                }
                // Otherwise the library assumes that a GET has no body, and drops it.
                let lacks_length = !has_end && !headers.contains_key(header::CONTENT_LENGTH);
                if trailers || lacks_length {
                    headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
                }
                *request.uri_mut() = self.path.clone().into();
            }
            Speaks::H2c => {
                headers.remove(header::HOST);
                if self.switches {
                    headers.remove(header::CONNECTION);
                    headers.remove(header::UPGRADE);
                }
                if self.trailers {
                    headers.insert(header::TE, HeaderValue::from_static("trailers"));
                }
                let uri = Uri::builder().scheme("http").authority(self.authority.as_str());
                let uri = uri.path_and_query(self.path.clone()).build();
                *request.uri_mut() = uri.unwrap_or_else(|_| self.path.clone().into());
                *request.version_mut() = Version::HTTP_2;
            }
        }
        request
    }
}
