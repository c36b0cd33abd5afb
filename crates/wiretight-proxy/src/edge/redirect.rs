//! Port 80: redirects browsers to HTTPS permanently (308, which keeps the method and body), and serves only responses
//! to ACME's http-01 challenges (RFC 8555, section 8.3).

use std::rc::Rc;

use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::{Request, Response, StatusCode};

use super::context::WorkerContext;
use super::headers;
use super::reply::ReplyBody;

/// The response to a plaintext request.
pub(crate) fn answer(
    context: &Rc<WorkerContext>,
    request: &Request<Incoming>,
) -> Response<ReplyBody> {
    let host = request.headers().get(header::HOST).and_then(|h| h.to_str().ok());
    let host = request.uri().authority().map(|a| a.as_str()).or(host).and_then(headers::host);
    let sites = context.sites.load();
    let known = host.filter(|host| sites.find(host).is_some());
    if let Some(token) = request.uri().path().strip_prefix("/.well-known/acme-challenge/")
        && let Some(answer) = sites.certificates.key_authorization(token)
    {
        let mut answer = Response::new(ReplyBody::words(Bytes::from(answer)));
        let plain = HeaderValue::from_static("application/octet-stream");
        answer.headers_mut().insert(header::CONTENT_TYPE, plain);
        return answer;
    }
    let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
    // If HTTPS is not on its usual port, as in tests, the redirect includes the port.
    let port = sites.settings.https.first().map(|a| a.port()).filter(|port| *port != 443);
    let port = port.map_or(String::new(), |port| format!(":{port}"));
    let to =
        known.and_then(|host| HeaderValue::from_str(&format!("https://{host}{port}{path}")).ok());
    let Some(to) = to else {
        let mut answer = Response::new(ReplyBody::words(Bytes::from_static(b"no such site\n")));
        *answer.status_mut() = StatusCode::MISDIRECTED_REQUEST;
        return answer;
    };
    let mut answer = Response::new(ReplyBody::empty());
    *answer.status_mut() = StatusCode::PERMANENT_REDIRECT;
    answer.headers_mut().insert(header::LOCATION, to);
    answer
}
