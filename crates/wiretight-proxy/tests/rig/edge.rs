//! An edge with one site, real backends, and all kinds of clients.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use wiretight_keys::{SigningKey, x509};
use wiretight_proxy::edge::settings::{EdgeSettings, Hsts, Limits, SiteName, SiteSettings};
use wiretight_proxy::edge::{Certificates, SiteCertificate, Source};
use wiretight_proxy::reason::Place;
use wiretight_proxy::{Edge, Mesh, Reason, Relay};

use super::{Ca, TRUST_DOMAIN, free};

/// The name of the site; the certificate of `service/www` is valid for it.
pub const SITE: &str = "www.service.test.example";

pub struct EdgeRig {
    pub ca: Ca,
    pub mesh: Arc<Mesh>,
    pub certificates: Arc<Certificates>,
    pub settings: EdgeSettings,
    pub edge: Edge,
    // After the edge, which uses it.
    pub relay: Relay,
}

pub fn site(name: &str, to: &[String]) -> SiteSettings {
    SiteSettings {
        names: vec![name.parse().unwrap()],
        to: to.iter().map(|t| t.parse().unwrap()).collect(),
        on_demand: false,
        default: false,
        identity: "service/edge".parse().unwrap(),
        hsts: Hsts::On,
        clients: None,
        client_ca: None,
        health: None,
        max_body: 1 << 30,
        timeout: Duration::from_secs(10),
    }
}

impl EdgeRig {
    pub fn new(to: &[String]) -> EdgeRig {
        EdgeRig::with(to, |_| {})
    }

    pub fn with(to: &[String], change: impl FnOnce(&mut EdgeSettings)) -> EdgeRig {
        EdgeRig::by(2, to, change)
    }

    /// With this number of workers.
    pub fn by(workers: usize, to: &[String], change: impl FnOnce(&mut EdgeSettings)) -> EdgeRig {
        let ca = Ca::new(TRUST_DOMAIN);
        let mesh = ca.mesh(&["service/edge"]);
        let relay = Relay::start(mesh.clone(), 1).unwrap();
        let certificates = Arc::new(Certificates::default());
        let mut settings = EdgeSettings {
            https: vec![free()],
            http: vec![free()],
            http3: true,
            trusted_proxies: vec![],
            proxy_protocol: false,
            limits: Limits::default(),
            sites: vec![site(SITE, to)],
        };
        change(&mut settings);
        let edge = Edge::start(&relay, certificates.clone(), BTreeMap::new(), workers).unwrap();
        let rig = EdgeRig { ca, mesh, certificates, settings, edge, relay };
        rig.certify(3600);
        rig.edge.apply(&rig.settings).unwrap();
        rig
    }

    /// Gives each site a new certificate.
    pub fn certify(&self, secs: i64) {
        let mut all = BTreeMap::new();
        for site in &self.settings.sites {
            for name in &site.names {
                all.insert(name.clone(), Arc::new(self.certificate(name, secs)));
            }
        }
        self.certificates.set(Source::Files, all);
    }

    pub fn certificate(&self, name: &SiteName, secs: i64) -> SiteCertificate {
        let service = name.as_str().split('.').next().unwrap();
        let (chain, key) = self.ca.issue(&format!("service/{service}"), secs);
        let (chain, key) = (x509::to_pem(&chain), key.to_pem());
        let names = std::slice::from_ref(name);
        SiteCertificate::from_pem(chain.as_bytes(), key.as_bytes(), names).unwrap()
    }

    pub fn https(&self) -> SocketAddr {
        self.settings.https[0]
    }

    pub fn client(&self, alpn: &[&str]) -> ClientConfig {
        self.client_as(alpn, None)
    }

    pub fn client_as(&self, alpn: &[&str], identity: Option<&str>) -> ClientConfig {
        self.client_showing(alpn, identity.map(|id| self.ca.issue(id, 3600)))
    }

    pub fn client_showing(
        &self,
        alpn: &[&str],
        shows: Option<(Vec<CertificateDer<'static>>, SigningKey)>,
    ) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.root.clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(wiretight_proxy::provider::edge())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match shows {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                builder.with_client_auth_cert(chain, PrivateKeyDer::Pkcs8(key.to_pkcs8())).unwrap()
            }
        };
        config.alpn_protocols = alpn.iter().map(|a| a.as_bytes().to_vec()).collect();
        config
    }

    /// A TLS connection for raw HTTP/1.
    pub fn raw(&self) -> Raw {
        Raw::over(super::connect(self.https()), self.client(&["http/1.1"]), SITE)
    }

    /// Sends one HTTP/1.1 request on its own connection; returns the whole response as text.
    pub fn get(&self, head: &str) -> String {
        let mut raw = self.raw();
        raw.send(&format!("{head}Host: {SITE}\r\nConnection: close\r\n\r\n"));
        raw.rest()
    }

    /// The number of refusals for this reason.
    pub fn refused(&self, reason: Reason) -> u64 {
        assert!(reason.sides().contains(&Place::Edge), "{reason} does not occur at the edge");
        let all = self.edge.status().refused;
        all.iter().filter(|r| r.reason == reason).map(|r| r.count).sum()
    }

    /// An HTTP/2 client, on the test's tokio runtime.
    pub async fn http2(
        &self,
    ) -> hyper::client::conn::http2::SendRequest<BoxBody<Bytes, Infallible>> {
        self.http2_by(self.https()).await
    }

    /// The same over an existing connection to the edge.
    pub async fn http2_by(
        &self,
        addr: SocketAddr,
    ) -> hyper::client::conn::http2::SendRequest<BoxBody<Bytes, Infallible>> {
        let connector = tokio_rustls::TlsConnector::from(Arc::new(self.client(&["h2"])));
        let socket = tokio::net::TcpStream::connect(addr).await.unwrap();
        let tls = connector.connect(ServerName::try_from(SITE).unwrap(), socket).await.unwrap();
        assert_eq!(tls.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls))
                .await
                .unwrap();
        tokio::spawn(async move {
            let _ = connection.await;
        });
        sender
    }

    /// The QUIC connection of an HTTP/3 client, with this receive window.
    pub async fn quic(&self, window: u32) -> (quinn::Endpoint, quinn::Connection) {
        let mut tls = self.client(&["h3"]);
        tls.enable_early_data = false;
        let tls = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
        let mut transport = quinn::TransportConfig::default();
        transport.stream_receive_window(quinn::VarInt::from_u32(window));
        let mut config = quinn::ClientConfig::new(Arc::new(tls));
        config.transport_config(Arc::new(transport));
        let mut endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        endpoint.set_default_client_config(config);
        let connection = endpoint.connect(self.https(), SITE).unwrap().await.unwrap();
        (endpoint, connection)
    }
}

/// A body of these bytes.
pub fn full(bytes: impl Into<Bytes>) -> BoxBody<Bytes, Infallible> {
    Full::new(bytes.into()).boxed()
}

/// Raw HTTP/1 over TLS.
pub struct Raw(pub StreamOwned<ClientConnection, TcpStream>);

impl Raw {
    pub fn over(socket: TcpStream, config: ClientConfig, name: &str) -> Raw {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        Raw(StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), socket))
    }

    pub fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).unwrap();
        self.0.flush().unwrap();
    }

    /// Reads to the end of the connection, however it is closed.
    pub fn rest(&mut self) -> String {
        let mut all = Vec::new();
        let mut buffer = [0; 16384];
        loop {
            match self.0.read(&mut buffer) {
                Ok(n @ 1..) => all.extend_from_slice(&buffer[..n]),
                Ok(0) => break,
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                    panic!("still open after {:?}", String::from_utf8_lossy(&all))
                }
                Err(_) => break,
            }
        }
        String::from_utf8_lossy(&all).into_owned()
    }

    /// Reads up to and including this text.
    pub fn until(&mut self, end: &str) -> String {
        let mut all = String::new();
        let mut byte = [0];
        while !all.ends_with(end) {
            match self.0.read(&mut byte) {
                Ok(1) => all.push(byte[0] as char),
                other => panic!("{other:?} after {all:?}, before {end:?}"),
            }
        }
        all
    }
}

type Answer = Response<BoxBody<Bytes, hyper::Error>>;

/// The test program: `/echo` returns the body, `/headers` the head, `/tail` the trailers, `/big/N` N bytes;
/// `/trailers` ends with a trailer, and `/events` sends two events and keeps the stream open.
async fn program(name: &'static str, request: Request<Incoming>) -> Result<Answer, Infallible> {
    let infallible = |never: Infallible| match never {};
    let text =
        |text: String| Response::new(Full::new(Bytes::from(text)).map_err(infallible).boxed());
    let path = request.uri().path().to_owned();
    Ok(match path.as_str() {
        "/echo" => Response::new(request.into_body().boxed()),
        "/trailers" => {
            let te = request.headers().get("te").cloned();
            let mut trailers = hyper::HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            let frames = [Frame::data(Bytes::from("body")), Frame::trailers(trailers)];
            let mut answer = Response::new(channel(frames).boxed());
            answer.headers_mut().insert("trailer", "grpc-status".parse().unwrap());
            if let Some(te) = te {
                answer.headers_mut().insert("x-te", te);
            }
            answer
        }
        "/events" => {
            let (tx, rx) = tokio::sync::mpsc::channel(1);
            tokio::spawn(async move {
                for n in 0..2 {
                    let _ = tx.send(Frame::data(Bytes::from(format!("data: {n}\n\n")))).await;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                tx.closed().await;
            });
            let mut answer = Response::new(Channel(rx).boxed());
            answer.headers_mut().insert("content-type", "text/event-stream".parse().unwrap());
            answer
        }
        "/headers" => {
            let mut lines: Vec<_> = request
                .headers()
                .iter()
                .map(|(n, v)| format!("{n}: {}", v.to_str().unwrap_or("?")))
                .collect();
            lines.sort();
            let line = format!("{} {} {:?}", request.method(), request.uri(), request.version());
            text(format!("{line}\n{}\n", lines.join("\n")))
        }
        "/tail" => {
            let head: Vec<_> = request.headers().keys().map(ToString::to_string).collect();
            let trailers = request.into_body().collect().await.map(|b| b.trailers().cloned());
            text(format!("{head:?}\n{:?}\n", trailers.ok().flatten().unwrap_or_default()))
        }
        "/name" => text(name.into()),
        "/health" if name != "sick" => text("well".into()),
        "/hop" => {
            let mut answer = text("hop".into());
            answer.headers_mut().insert("connection", "x-hop".parse().unwrap());
            answer.headers_mut().insert("x-hop", "1".parse().unwrap());
            answer.headers_mut().insert("x-kept", "1".parse().unwrap());
            answer
        }
        path => match path.strip_prefix("/big/").and_then(|n| n.parse::<usize>().ok()) {
            Some(n) => {
                let piece = Bytes::from(vec![b'x'; 65536]);
                let frames = std::iter::repeat_n(piece, n / 65536).map(Frame::data);
                Response::new(channel(frames).boxed())
            }
            None => {
                let mut answer = text(format!("no {path}"));
                *answer.status_mut() = StatusCode::NOT_FOUND;
                answer
            }
        },
    })
}

/// A body of frames from a channel.
struct Channel(tokio::sync::mpsc::Receiver<Frame<Bytes>>);

impl hyper::body::Body for Channel {
    type Data = Bytes;
    type Error = hyper::Error;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.0.poll_recv(cx).map(|frame| frame.map(Ok))
    }
}

fn channel(frames: impl IntoIterator<Item = Frame<Bytes>, IntoIter: Send> + 'static) -> Channel {
    let frames = frames.into_iter();
    let (tx, rx) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        for frame in frames {
            if tx.send(frame).await.is_err() {
                return;
            }
        }
    });
    Channel(rx)
}

/// Starts a program with HTTP/1.1, or HTTP/2 without TLS; returns its address.
pub fn http_backend(name: &'static str, h2c: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let io = TokioIo::new(socket);
                    let service = service_fn(move |request| program(name, request));
                    let _ = match h2c {
                        true => {
                            hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                                .serve_connection(io, service)
                                .await
                        }
                        false => {
                            hyper::server::conn::http1::Builder::new()
                                .serve_connection(io, service)
                                .await
                        }
                    };
                });
            }
        });
    });
    addr
}

/// Runs a future, for at most two minutes.
pub fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(120), future).await.expect("in time")
    })
}
