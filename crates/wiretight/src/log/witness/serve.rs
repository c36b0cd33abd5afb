//! The HTTP server of a witness: `POST /add-checkpoint` for logs, `GET /ORIGIN-HASH/checkpoint` for monitors, `GET /` for
//! people, `GET /metrics` for Prometheus. It is open to everyone.

use std::fmt::Write;
use std::sync::Arc;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use rustls::pki_types::CertificateDer;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use wiretight_proxy::clock::now;

use super::request::MAX_BODY;
use super::{WitnessCore, origin_hash};
use crate::web::server::{self, PATIENCE, Site, plain};

/// Serves until `end` becomes true, then finishes open requests. `tls` is read at each connection. Without it, the caller
/// must make sure that the address is a loopback address.
pub async fn serve(
    core: Arc<WitnessCore>,
    listener: TcpListener,
    tls: Option<watch::Receiver<TlsAcceptor>>,
    end: watch::Receiver<bool>,
) {
    server::serve(core, listener, tls, end).await;
}

impl Site for WitnessCore {
    async fn answer(
        &self,
        _caller: &[CertificateDer<'static>],
        request: Request<Incoming>,
    ) -> Response<Full<Bytes>> {
        answer(self, request).await
    }
}

async fn answer(core: &WitnessCore, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    match (&head.method, head.uri.path()) {
        (&Method::POST, "/add-checkpoint") => {}
        (&Method::GET, "/") => return plain(StatusCode::OK, status(core)),
        (&Method::GET, "/metrics") => return plain(StatusCode::OK, metrics(core)),
        (&Method::GET, path) if path.ends_with("/checkpoint") => {
            let hash = path.strip_prefix('/').and_then(|p| p.strip_suffix("/checkpoint"));
            return match hash.and_then(|hash| core.checkpoint(hash)) {
                Some(checkpoint) => {
                    let mut answer = plain(StatusCode::OK, checkpoint);
                    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("max-age=5"));
                    answer
                }
                None => plain(
                    StatusCode::NOT_FOUND,
                    "no cosigned checkpoint for this log. The path is /HASH/checkpoint, where HASH is the SHA-256 of the log's origin in hex.\n".into(),
                ),
            };
        }
        (_, "/add-checkpoint" | "/" | "/metrics") => {
            return plain(
                StatusCode::METHOD_NOT_ALLOWED,
                "POST /add-checkpoint, GET /ORIGIN-HASH/checkpoint, GET /, GET /metrics\n".into(),
            );
        }
        _ => {
            return plain(
                StatusCode::NOT_FOUND,
                "not found. This is a witness; GET / shows its logs.\n".into(),
            );
        }
    }
    let body = match timeout(PATIENCE, Limited::new(body, MAX_BODY).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => {
            return plain(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("a request may have at most {MAX_BODY} bytes\n"),
            );
        }
        Err(_) => {
            return plain(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time\n".into());
        }
    };
    let answer = core.add_checkpoint(&body, now()).await;
    let status = StatusCode::from_u16(answer.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = plain(status, answer.body());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type()));
    response
}

/// The page for people: keys and cosigned checkpoints.
fn status(core: &WitnessCore) -> String {
    let mut text = String::from("A witness of transparency logs (C2SP tlog-witness).\n\n");
    for key in core.keys() {
        let _ = writeln!(text, "key {key}");
    }
    for log in core.logs() {
        let _ = writeln!(text, "\nlog {}", log.origin);
        match (log.tree, log.time) {
            (Some((size, root)), Some(time)) => {
                let at = jiff::Timestamp::from_second(i64::try_from(time).unwrap_or(i64::MAX));
                let at = at.map_or_else(|_| time.to_string(), |at| at.to_string());
                let _ = writeln!(text, "size {size}\nroot {root}\ntime {at}");
                let _ = writeln!(text, "/{}/checkpoint", origin_hash(&log.origin));
            }
            _ => text.push_str("nothing cosigned yet\n"),
        }
    }
    let _ = match core.evidence() {
        0 => writeln!(text, "\nno evidence of a fork"),
        n => writeln!(
            text,
            "\n{n} checkpoints that may show a fork: see evidence/ in the state directory"
        ),
    };
    text
}

fn metrics(core: &WitnessCore) -> String {
    let mut text = String::from(
        "# HELP wiretight_witness_requests_total Responses to add-checkpoint.\n# TYPE wiretight_witness_requests_total counter\n",
    );
    for (status, count) in core.answers().read() {
        let _ = writeln!(text, "wiretight_witness_requests_total{{status=\"{status}\"}} {count}");
    }
    text.push_str("# HELP wiretight_witness_evidence Files of evidence of a fork.\n# TYPE wiretight_witness_evidence gauge\n");
    let _ = writeln!(text, "wiretight_witness_evidence {}", core.evidence());
    text.push_str("# HELP wiretight_witness_log_size Size of the last cosigned tree.\n# TYPE wiretight_witness_log_size gauge\n");
    let logs = core.logs();
    let label = |origin: &str| origin.replace('\\', "\\\\").replace('"', "\\\"");
    for log in &logs {
        let size = log.tree.map_or(0, |(size, _)| size);
        let _ =
            writeln!(text, "wiretight_witness_log_size{{log=\"{}\"}} {size}", label(&log.origin));
    }
    text.push_str("# HELP wiretight_witness_log_time_seconds When the tree was last cosigned.\n# TYPE wiretight_witness_log_time_seconds gauge\n");
    for log in &logs {
        let time = log.time.unwrap_or(0);
        let _ = writeln!(
            text,
            "wiretight_witness_log_time_seconds{{log=\"{}\"}} {time}",
            label(&log.origin)
        );
    }
    text
}
