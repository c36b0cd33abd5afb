//! The ACME server as a site of the edge: it listens on a Unix socket in the state directory, behind the edge's TLS and
//! strict HTTP.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::CertificateDer;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use wiretight_keys::WebCsr;
use wiretight_proxy::clock::now;
use wiretight_store::Store;

use super::validate::Network;
use super::{AcmeServer, Issuer, jws};
use crate::authority::AuthorityHandle;
use crate::config::{self, Config};
use crate::logging::chain;

/// Concurrent connections, all from our own edge.
const CONNECTIONS: usize = 256;
/// For the request, and for the response: a validation can take 10 s.
const HEADER: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(45);

/// Starts the server. Its own certificate is issued by the authority, like that of a site.
pub(crate) fn start(
    config: &Config,
    section: &config::AcmeServer,
    authority: &AuthorityHandle,
    store: Arc<dyn Store>,
) -> anyhow::Result<()> {
    let ports = config.edge.https.iter().map(|addr| addr.port());
    let base = match ports.clone().find(|p| *p == 443).or_else(|| ports.clone().next()) {
        Some(443) => format!("https://{}", section.name),
        Some(port) => format!("https://{}:{port}", section.name),
        None => anyhow::bail!("[acme_server] needs an address in `https` in [edge]"),
    };
    let issuer = Issues { authority: authority.clone(), ttl: section.ttl };
    let server = AcmeServer::new(
        store,
        Arc::new(issuer),
        Arc::new(Network { http_port: 80, tls_port: 443 }),
        Arc::new(now),
        base.clone(),
        section.names.clone(),
        config::reserved(&config.node.trust_domain),
    );
    let path = config::acme_socket(&config.node.state_dir);
    // We hold the lock on the state directory, so an existing socket is from a dead process.
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(e).context(format!("cannot remove the old {}", path.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(&path)
        .with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    tokio::spawn(accept(listener, server));
    tracing::info!(directory = format!("{base}/directory"), "the ACME server is ready");
    Ok(())
}

/// Issues certificates by the authority.
struct Issues {
    authority: AuthorityHandle,
    ttl: Duration,
}

#[async_trait]
impl Issuer for Issues {
    async fn issue(
        &self,
        request: &WebCsr,
        not_after: Option<u64>,
    ) -> Result<Vec<CertificateDer<'static>>, String> {
        let wish = not_after.map(|end| Duration::from_secs(end.saturating_sub(now())));
        let ttl = wish.map_or(self.ttl, |wish| wish.min(self.ttl));
        let issued = self.authority.issue_web(request.names().to_vec(), request.spki(), ttl).await;
        issued.map_err(|e| chain(&e))
    }
}

async fn accept(listener: UnixListener, server: AcmeServer) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let place = places.clone().acquire_owned().await;
        match listener.accept().await {
            Ok((socket, _)) => {
                let server = server.clone();
                tokio::spawn(async move {
                    serve(socket, server).await;
                    drop(place);
                });
            }
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn serve(socket: UnixStream, server: AcmeServer) {
    let service = service_fn(move |request| {
        let server = server.clone();
        async move { Ok::<_, std::convert::Infallible>(answer(request, server).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER);
    // Errors on a connection are in our own edge's log.
    let _ = http.serve_connection(TokioIo::new(socket), service).await;
}

async fn answer(request: Request<Incoming>, server: AcmeServer) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let plain = |status: StatusCode| {
        let mut response = Response::new(Full::default());
        *response.status_mut() = status;
        response
    };
    let body = match timeout(HEADER, Limited::new(body, jws::MAX_LEN).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => return plain(StatusCode::PAYLOAD_TOO_LARGE),
        Err(_) => return plain(StatusCode::REQUEST_TIMEOUT),
    };
    match timeout(ANSWER, server.handle(Request::from_parts(head, body))).await {
        Ok(response) => response.map(Full::new),
        Err(_) => plain(StatusCode::SERVICE_UNAVAILABLE),
    }
}
