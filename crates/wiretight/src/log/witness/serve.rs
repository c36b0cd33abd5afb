//! A witness' HTTP: `POST /add-checkpoint` for logs, `GET /` for people, `GET /metrics` for Prometheus.
//!
//! Anybody may ask. Connections are bounded, in all and for each address, and so is what a request may take.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt::Write;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use wiretight_proxy::mesh::now;

use super::WitnessCore;
use super::request::MAX_BODY;

/// Connections at a time.
const CONNECTIONS: usize = 4096;
/// Of them from one IPv4 address or IPv6 /64.
const FROM_ONE: usize = 64;
/// For a TLS handshake, and for a request's body.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between requests, and for a request's head.
const IDLE: Duration = Duration::from_secs(90);
/// For what is being answered when the witness is to end.
const DRAIN: Duration = Duration::from_secs(5);

/// Serves until `end` turns true, then finishes what was begun. `tls` is asked at each connection; without it the
/// address has to be a loopback one, which is for the caller to see to.
pub async fn serve(
    core: Arc<WitnessCore>,
    listener: TcpListener,
    tls: Option<watch::Receiver<TlsAcceptor>>,
    mut end: watch::Receiver<bool>,
) {
    let (places, addresses) = (Arc::new(Semaphore::new(CONNECTIONS)), Arc::<Addresses>::default());
    let mut connections = JoinSet::new();
    loop {
        let accept = async {
            let place = places.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            accepted = accept => accepted,
            _ = connections.join_next(), if !connections.is_empty() => continue,
            _ = end.wait_for(|end| *end) => break,
        };
        let (Ok((socket, from)), Ok(place)) = (accepted, place) else {
            sleep(Duration::from_millis(50)).await; // out of descriptors
            continue;
        };
        let Some(one) = addresses.enter(from) else { continue };
        let tls = tls.as_ref().map(|tls| tls.borrow().clone());
        let place = Place { _all: place, _one: one };
        connections.spawn(connection(core.clone(), socket, tls, end.clone(), place));
    }
    drop(listener);
    let _ = timeout(DRAIN, async { while connections.join_next().await.is_some() {} }).await;
}

/// Gives both back when the connection ends.
struct Place {
    _all: OwnedSemaphorePermit,
    _one: OnePlace,
}

async fn connection(
    core: Arc<WitnessCore>,
    socket: TcpStream,
    tls: Option<TlsAcceptor>,
    end: watch::Receiver<bool>,
    _place: Place,
) {
    let _ = socket.set_nodelay(true);
    match tls {
        None => http(core, socket, end).await,
        Some(tls) => match timeout(PATIENCE, tls.accept(socket)).await {
            Ok(Ok(stream)) => http(core, stream, end).await,
            Ok(Err(error)) => tracing::debug!(%error, "a handshake failed"),
            Err(_) => {}
        },
    }
}

async fn http<S>(core: Arc<WitnessCore>, stream: S, mut end: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let core = core.clone();
        async move { Ok::<_, Infallible>(answer(&core, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = async { drop(end.wait_for(|end| *end).await) } => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}

async fn answer(core: &WitnessCore, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    match (&head.method, head.uri.path()) {
        (&Method::POST, "/add-checkpoint") => {}
        (&Method::GET, "/") => return plain(StatusCode::OK, status(core)),
        (&Method::GET, "/metrics") => return plain(StatusCode::OK, metrics(core)),
        (_, "/add-checkpoint" | "/" | "/metrics") => {
            return plain(
                StatusCode::METHOD_NOT_ALLOWED,
                "POST /add-checkpoint, GET /, GET /metrics\n".into(),
            );
        }
        _ => {
            return plain(
                StatusCode::NOT_FOUND,
                "here is a witness: GET / says of which logs\n".into(),
            );
        }
    }
    let body = match timeout(PATIENCE, Limited::new(body, MAX_BODY).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => {
            return plain(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("a request has at most {MAX_BODY} bytes\n"),
            );
        }
        Err(_) => return plain(StatusCode::REQUEST_TIMEOUT, "the body did not come\n".into()),
    };
    let answer = core.add_checkpoint(&body, now()).await;
    let status = StatusCode::from_u16(answer.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = plain(status, answer.body());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type()));
    response
}

fn plain(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// For people: who this is, and what it has cosigned.
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
            }
            _ => text.push_str("nothing cosigned yet\n"),
        }
    }
    let _ = match core.evidence() {
        0 => writeln!(text, "\nno sign of a fork"),
        n => writeln!(
            text,
            "\n{n} checkpoints that may show a fork: see the state directory's evidence/"
        ),
    };
    text
}

fn metrics(core: &WitnessCore) -> String {
    let mut text = String::from(
        "# HELP wiretight_witness_requests_total Answers to add-checkpoint.\n# TYPE wiretight_witness_requests_total counter\n",
    );
    for (status, count) in core.answers().read() {
        let _ = writeln!(text, "wiretight_witness_requests_total{{status=\"{status}\"}} {count}");
    }
    text.push_str("# HELP wiretight_witness_evidence Files of evidence of a fork.\n# TYPE wiretight_witness_evidence gauge\n");
    let _ = writeln!(text, "wiretight_witness_evidence {}", core.evidence());
    text.push_str("# HELP wiretight_witness_log_size Entries of the tree cosigned last.\n# TYPE wiretight_witness_log_size gauge\n");
    let logs = core.logs();
    let label = |origin: &str| origin.replace('\\', "\\\\").replace('"', "\\\"");
    for log in &logs {
        let size = log.tree.map_or(0, |(size, _)| size);
        let _ =
            writeln!(text, "wiretight_witness_log_size{{log=\"{}\"}} {size}", label(&log.origin));
    }
    text.push_str("# HELP wiretight_witness_log_time_seconds When it was cosigned.\n# TYPE wiretight_witness_log_time_seconds gauge\n");
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

/// How many connections there are from where.
#[derive(Default)]
struct Addresses(Mutex<HashMap<IpAddr, usize>>);

struct OnePlace(Arc<Addresses>, IpAddr);

impl Addresses {
    fn enter(self: &Arc<Self>, from: SocketAddr) -> Option<OnePlace> {
        let network = match from.ip().to_canonical() {
            IpAddr::V6(ip) if !ip.is_loopback() => {
                IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64))
            }
            ip => ip,
        };
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(network).or_default();
        // A proxy on this machine speaks for many.
        if *count >= FROM_ONE && !network.is_loopback() {
            return None;
        }
        *count += 1;
        Some(OnePlace(self.clone(), network))
    }
}

impl Drop for OnePlace {
    fn drop(&mut self) {
        let mut open = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.1);
            }
        }
    }
}
