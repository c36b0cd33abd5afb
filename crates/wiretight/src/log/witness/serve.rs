//! The HTTP server of a witness: `POST /add-checkpoint` for logs, `GET /ORIGIN-HASH/checkpoint` for monitors, `GET /` for
//! people, `GET /metrics` for Prometheus. It is open to everyone.

use std::fmt::{self, Write};
use std::sync::Arc;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use rustls::pki_types::CertificateDer;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use wiretight_proxy::clock::now;

use super::request::MAX_BODY;
use super::{WitnessCore, origin_hash};
use crate::exposition::{self, Labels, counter, gauge, one};
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
        (&Method::GET, "/metrics") => {
            return exposition::answer(&head.headers, Box::new(Snapshot::of(core)));
        }
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

/// What the metrics show.
#[derive(Debug)]
struct Snapshot {
    answers: Vec<(u16, u64)>,
    evidence: usize,
    /// Origin, size and time of the last cosignature.
    logs: Vec<(String, u64, Option<u64>)>,
}

impl Snapshot {
    fn of(core: &WitnessCore) -> Snapshot {
        let log =
            |log: super::LogStatus| (log.origin, log.tree.map_or(0, |(size, _)| size), log.time);
        Snapshot {
            answers: core.answers().read().collect(),
            evidence: core.evidence(),
            logs: core.logs().into_iter().map(log).collect(),
        }
    }
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let e = &mut encoder;
        let answers = self.answers.iter();
        let answers = answers.map(|(status, n)| (vec![("status", status.to_string())], *n));
        counter(e, "witness_requests", "Responses to add-checkpoint, by HTTP status", answers)?;
        gauge(e, "witness_evidence", "Files of evidence of a fork", one(self.evidence))?;
        let log = |origin: &str| vec![("log", origin.to_owned())];
        let sizes = self.logs.iter().map(|(origin, size, _)| (log(origin), *size));
        gauge(e, "witness_log_size", "Size of the last cosigned tree", sizes)?;
        let times = self.logs.iter().filter_map(|(origin, _, at)| Some((log(origin), (*at)?)));
        let help = "When the tree was last cosigned, in Unix time";
        gauge(e, "witness_log_cosigned_timestamp_seconds", help, times)?;
        let version: Labels = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
        gauge(e, "build_info", "The version of the running process", [(version, 1u64)])
    }
}
