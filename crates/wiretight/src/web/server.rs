//! A small HTTP server for public services: a witness, a log. The number of connections is limited, in total and per
//! address, and every wait has a deadline.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use wiretight_proxy::network::origin;

/// The most connections at a time.
const CONNECTIONS: usize = 4096;
/// The most connections from one IPv4 address or IPv6 /64.
const FROM_ONE: usize = 64;
/// How long a TLS handshake or a request body may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// How long a connection may be idle, and how long a request header may take.
const IDLE: Duration = Duration::from_secs(90);
/// How long current requests may take to finish when the service ends.
const DRAIN: Duration = Duration::from_secs(5);

/// The service behind the server.
pub trait Site: Send + Sync + 'static {
    /// Answers a request. `caller` is the certificate chain that the client presented, and whose key it has; whether to
    /// trust it is up to the service. It is empty without TLS or if the client presented none.
    fn answer(
        &self,
        caller: &[CertificateDer<'static>],
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Full<Bytes>>> + Send;
}

/// Serves until `end` turns true, then finishes current requests. `tls` is read at each connection; without it the
/// caller must make sure that the address is a loopback one.
pub async fn serve(
    site: Arc<impl Site>,
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
        connections.spawn(connection(site.clone(), socket, tls, end.clone(), place));
    }
    drop(listener);
    let _ = timeout(DRAIN, async { while connections.join_next().await.is_some() {} }).await;
}

/// Releases both when the connection ends.
struct Place {
    _all: OwnedSemaphorePermit,
    _one: OnePlace,
}

async fn connection(
    site: Arc<impl Site>,
    socket: TcpStream,
    tls: Option<TlsAcceptor>,
    end: watch::Receiver<bool>,
    _place: Place,
) {
    let _ = socket.set_nodelay(true);
    match tls {
        None => http(site, Vec::new(), socket, end).await,
        Some(tls) => match timeout(PATIENCE, tls.accept(socket)).await {
            Ok(Ok(stream)) => {
                let caller = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
                http(site, caller, stream, end).await;
            }
            Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
            Err(_) => {}
        },
    }
}

async fn http<S>(
    site: Arc<impl Site>,
    caller: Vec<CertificateDer<'static>>,
    stream: S,
    mut end: watch::Receiver<bool>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let caller: Arc<[_]> = caller.into();
    let service = service_fn(move |request| {
        let (site, caller) = (site.clone(), caller.clone());
        async move { Ok::<_, Infallible>(site.answer(&caller, request).await) }
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
        tracing::debug!(%error, "connection failed");
    }
}

/// A plain text response.
pub(crate) fn plain(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// Counts connections by [`origin`].
#[derive(Default)]
struct Addresses(Mutex<HashMap<IpAddr, usize>>);

struct OnePlace(Arc<Addresses>, IpAddr);

impl Addresses {
    fn enter(self: &Arc<Self>, from: SocketAddr) -> Option<OnePlace> {
        let from = from.ip().to_canonical();
        let origin = origin(from);
        let mut open = self.0.lock();
        let count = open.entry(origin).or_default();
        // A proxy on this machine connects for many clients.
        if *count >= FROM_ONE && !from.is_loopback() {
            return None;
        }
        *count += 1;
        Some(OnePlace(self.clone(), origin))
    }
}

impl Drop for OnePlace {
    fn drop(&mut self) {
        let mut open = self.0.0.lock();
        if let Some(count) = open.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_limited_by_origin_except_on_this_machine() {
        let addresses = Arc::<Addresses>::default();
        let enter = |from: &str| addresses.enter(SocketAddr::new(from.parse().unwrap(), 1));
        let many = |from| (0..FROM_ONE).map(|_| enter(from).unwrap()).collect::<Vec<_>>();
        let mut held = many("2001:db8:0:1::7");
        assert!(enter("2001:db8:0:1:ffff::7").is_none());
        held.push(enter("2001:db8:0:2::7").unwrap());
        held.extend(many("10.0.0.1"));
        assert!(enter("::ffff:10.0.0.1").is_none());
        for here in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
            held.extend(many(here));
            held.push(enter(here).unwrap());
        }
        held.remove(0);
        held.push(enter("2001:db8:0:1:ffff::7").unwrap());
        held.clear();
        assert!(addresses.0.lock().is_empty());
    }
}
