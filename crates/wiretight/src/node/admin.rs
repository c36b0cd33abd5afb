//! The server of the admin interface ([`crate::admin`]).

use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

use super::daemon::{Daemon, RequestError};
use super::mode;
use crate::admin::api::{
    AddressesRequest, ErrorAnswer, GrantRequest, HoursRequest, ModeRequest, PublishRequest,
    RemoveRequest, RevokeRequest, RevokeTokenRequest, RotateRequest, SvidRequest, TokenRequest,
    WatchRequest,
};
use crate::admin::{metrics, socket_path};
use crate::authority::Grant;
use crate::proof::audit::Window;

/// The longest request body.
const MAX_BODY: usize = 64 * 1024;
/// How long a request may take to arrive.
const HEADER: Duration = Duration::from_secs(10);
/// How long a response may take: reloads and renewals take longest.
const ANSWER: Duration = Duration::from_secs(60);
/// The most connections at a time to each socket.
const CONNECTIONS: usize = 64;

/// Serves the Unix socket and, if given, the TCP socket `tcp`.
pub(super) async fn start(
    daemon: Arc<Daemon>,
    tcp: Option<std::net::TcpListener>,
    state_dir: &Path,
) -> anyhow::Result<()> {
    use anyhow::Context;
    let path = socket_path(state_dir);
    // This process holds the lock of the state directory: an existing socket belongs to a dead process.
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(e).context(format!("cannot remove the old {}", path.display()));
        }
        _ => {}
    }
    // The directory has mode 0700, so no other user can connect before the mode is set.
    let unix = UnixListener::bind(&path)
        .with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    let on = daemon.clone();
    tokio::spawn(async move {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let place = places.clone().acquire_owned().await;
            match unix.accept().await {
                Ok((socket, _)) => {
                    tokio::spawn(serve(on.clone(), socket, Door::Operator, place));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    });
    let Some(tcp) = tcp else { return Ok(()) };
    let tcp = TcpListener::from_std(tcp)?;
    tokio::spawn(async move {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let place = places.clone().acquire_owned().await;
            match tcp.accept().await {
                Ok((socket, _)) => {
                    tokio::spawn(serve(daemon.clone(), socket, Door::Probe, place));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    });
    Ok(())
}

/// Which socket a request came in by: TCP (health checks and metrics) or Unix (everything).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Door {
    Probe,
    Operator,
}

async fn serve<S, P>(daemon: Arc<Daemon>, socket: S, door: Door, _place: P)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| answer(daemon.clone(), request, door));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER)
        .max_buf_size(16 * 1024)
        // A client may send a request and disconnect: without this, a request that arrives together
        // with the end of the stream may be dropped.
        .half_close(true)
        .serve_connection(TokioIo::new(socket), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "admin connection");
    }
}

type Answer = Response<Full<Bytes>>;

async fn answer(
    daemon: Arc<Daemon>,
    request: Request<Incoming>,
    door: Door,
) -> Result<Answer, Infallible> {
    // A separate task: a request is completed even if the client disconnects.
    let task = tokio::spawn(route(daemon, request, door));
    let routed = match tokio::time::timeout(ANSWER, task).await {
        Ok(Ok(routed)) => routed,
        Ok(Err(_)) => {
            let crashed = "internal error: see the node's log".into();
            Err(Failure(StatusCode::INTERNAL_SERVER_ERROR, crashed))
        }
        Err(_) => {
            let late = format!(
                "the request is still in progress after {} s: see the node's log for its result",
                ANSWER.as_secs()
            );
            Err(Failure(StatusCode::GATEWAY_TIMEOUT, late))
        }
    };
    Ok(routed.unwrap_or_else(|Failure(status, error)| json(status, &ErrorAnswer { error })))
}

/// An error and its HTTP status.
struct Failure(StatusCode, String);

impl From<RequestError> for Failure {
    fn from(e: RequestError) -> Failure {
        let status = match e {
            RequestError::NotHere(_) => StatusCode::NOT_FOUND,
            RequestError::Refused(_) => StatusCode::CONFLICT,
            RequestError::Failed(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Failure(status, e.to_string())
    }
}

async fn route(
    daemon: Arc<Daemon>,
    request: Request<Incoming>,
    door: Door,
) -> Result<Answer, Failure> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    match (&parts.method, path) {
        (&Method::GET, "/healthz") => return Ok(text(StatusCode::OK, "ok\n")),
        (&Method::GET, "/readyz") => {
            return Ok(match daemon.not_ready() {
                None => text(StatusCode::OK, "ready\n"),
                Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, &format!("{why}\n")),
            });
        }
        (&Method::GET, "/metrics") => {
            let measured = daemon.measured().await;
            return Ok(metrics::answer(&parts.headers, daemon.status(), measured));
        }
        _ if door == Door::Probe => {
            return Err(Failure(
                StatusCode::NOT_FOUND,
                "only /healthz, /readyz and /metrics are served here; use the Unix socket for the rest"
                    .into(),
            ));
        }
        _ => {}
    }
    let body = Limited::new(body, MAX_BODY).collect().await;
    let body = body.map_err(|e| Failure(StatusCode::BAD_REQUEST, e.to_string()))?.to_bytes();
    match (&parts.method, path) {
        (&Method::GET, "/v1/status") => {
            daemon.look_at_the_rules().await;
            ok(daemon.status())
        }
        (&Method::GET, "/v1/mode") => ok(mode::status(&daemon).await?),
        (&Method::POST, "/v1/mode") => {
            let request: ModeRequest = parse(&body)?;
            ok(mode::step(&daemon, request).await?)
        }
        (&Method::POST, "/v1/watch") => {
            let request: WatchRequest = parse(&body)?;
            ok(daemon.watched(request).await?)
        }
        (&Method::POST, "/v1/watch/hours") => {
            let request: HoursRequest = parse(&body)?;
            ok(daemon.hours(request).await?)
        }
        (&Method::POST, "/v1/console") => ok(daemon.console_link()?),
        (&Method::POST, "/v1/audit") => {
            let window: Window = parse(&body)?;
            ok(daemon.audit(window).await?)
        }
        (&Method::POST, "/v1/publish") => {
            let request: PublishRequest = parse(&body)?;
            ok(daemon.publish(request).await?)
        }
        (&Method::POST, "/v1/reload") => ok(daemon.reload().await?),
        (&Method::POST, "/v1/renew") => ok(daemon.renew().await?),
        (&Method::POST, "/v1/svid") => {
            let request: SvidRequest = parse(&body)?;
            ok(daemon.svid(&request.csr).await?)
        }
        (&Method::POST, "/v1/tokens") => {
            let TokenRequest { node, services, addresses, ttl_seconds } = parse(&body)?;
            let ttl = Duration::from_secs(ttl_seconds);
            ok(daemon.create_token(node, services, addresses, ttl).await?)
        }
        (&Method::GET, "/v1/tokens") => ok(daemon.tokens().await?),
        (&Method::POST, "/v1/tokens/revoke") => {
            let request: RevokeTokenRequest = parse(&body)?;
            ok(daemon.revoke_token(&request.id).await?)
        }
        (&Method::GET, "/v1/registry") => ok(daemon.registry().as_ref()),
        (&Method::GET, "/v1/bundle") => ok(daemon.bundle()),
        (&Method::GET, "/v1/nodes") => ok(daemon.nodes().await?),
        (&Method::POST, "/v1/remove") => {
            let request: RemoveRequest = parse(&body)?;
            ok(daemon.remove_node(request.node).await?)
        }
        (&Method::POST, "/v1/revoke") => {
            let RevokeRequest { from, to, dry_run } = parse(&body)?;
            ok(daemon.revoke(from, to, dry_run).await?)
        }
        (&Method::POST, "/v1/grant") => {
            let GrantRequest { node, services, add } = parse(&body)?;
            let how = if add { Grant::Add } else { Grant::Replace };
            ok(daemon.grant(node, services, how).await?)
        }
        (&Method::POST, "/v1/addresses") => {
            let AddressesRequest { node, addresses, add } = parse(&body)?;
            let how = if add { Grant::Add } else { Grant::Replace };
            ok(daemon.grant_addresses(node, addresses, how).await?)
        }
        (&Method::GET, "/v1/authority") => ok(daemon.authority_status()?),
        (&Method::POST, "/v1/authority") => {
            let RotateRequest { step, force } = parse(&body)?;
            ok(daemon.rotate(step, force).await?)
        }
        _ => {
            let unknown = format!("the node does not know the request {} {path}", parts.method);
            Err(Failure(StatusCode::NOT_FOUND, unknown))
        }
    }
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|e| Failure(StatusCode::BAD_REQUEST, e.to_string()))
}

fn ok(value: impl Serialize) -> Result<Answer, Failure> {
    Ok(json(StatusCode::OK, &value))
}

fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    let (status, body) = match serde_json::to_vec(value) {
        Ok(body) => (status, body),
        Err(e) => {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("{{\"error\":\"{e}\"}}").into_bytes())
        }
    };
    let mut answer = Response::new(Full::from(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

fn text(status: StatusCode, body: &str) -> Answer {
    let mut answer = Response::new(Full::from(body.to_owned()));
    *answer.status_mut() = status;
    answer
}
