//! The transport of `object_store`: HTTPS by TLS 1.2 or 1.3, with the system's certificate authorities.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{HOST, HeaderValue};
use hyper::{Request, Uri};
use object_store::ClientOptions;
use object_store::client::{
    ClientConfigKey, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest,
    HttpResponse, HttpResponseBody, HttpService,
};
use rustls::{ClientConfig, RootCertStore};
use tokio::time::timeout;

use super::connections::{Connection, Connections, Server};

/// For a whole request.
const PATIENCE: Duration = Duration::from_secs(30);
/// Larger than any file of a log: 256 entries of 64 KiB.
const MAX_BODY: usize = 32 << 20;

/// Makes clients. Plaintext is used only where the options allow it: `object_store` does so for the metadata service of
/// a cloud machine, from which credentials come.
#[derive(Debug, Clone, Copy, Default)]
pub struct Transport;

impl HttpConnector for Transport {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let plaintext = options.get_config_value(&ClientConfigKey::AllowHttp);
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let config = ClientConfig::builder_with_provider(wiretight_proxy::provider::edge())
            .with_safe_default_protocol_versions()
            .map_err(|e| object_store::Error::Generic { store: "HTTPS", source: e.into() })?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(HttpClient::new(Service {
            connections: Arc::new(Connections::new(config, None)),
            plaintext: plaintext.as_deref() == Some("true"),
        }))
    }
}

struct Service {
    connections: Arc<Connections>,
    plaintext: bool,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("plaintext", &self.plaintext).finish_non_exhaustive()
    }
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0} is not an https:// URL")]
    Address(String),
    #[error("cannot connect to {0}: {1}")]
    Connect(String, String),
    #[error("no valid response from {0}: {1}")]
    Answer(String, String),
    #[error("{0} did not respond within {s} s", s = PATIENCE.as_secs())]
    Late(String),
}

impl Failure {
    /// Determines whether `object_store` tries again.
    fn kind(&self) -> HttpErrorKind {
        match self {
            Failure::Address(_) => HttpErrorKind::Unknown,
            Failure::Connect(..) => HttpErrorKind::Connect,
            Failure::Answer(..) => HttpErrorKind::Interrupted,
            Failure::Late(_) => HttpErrorKind::Timeout,
        }
    }
}

impl Service {
    fn server(&self, uri: &Uri) -> Result<Server, Failure> {
        let bad = || Failure::Address(uri.to_string());
        let (scheme, authority) = uri.scheme_str().zip(uri.authority()).ok_or_else(bad)?;
        let (tls, port) = match scheme {
            "https" => (true, 443),
            "http" if self.plaintext => (false, 80),
            _ => return Err(bad()),
        };
        let port = authority.port_u16().unwrap_or(port);
        let address = format!("{}:{port}", authority.host()).parse().map_err(|_| bad())?;
        Ok(Server { tls, address, authority: authority.to_string() })
    }

    async fn send(&self, request: HttpRequest) -> Result<HttpResponse, Failure> {
        let server = self.server(request.uri())?;
        let host = server.authority.clone();
        let answer = |e: &dyn fmt::Display| Failure::Answer(host.clone(), e.to_string());
        let (mut head, body) = request.into_parts();
        let path = head.uri.path_and_query().map_or("/", |p| p.as_str());
        head.uri = path.parse().map_err(|e| answer(&e))?;
        if !head.headers.contains_key(HOST) {
            head.headers.insert(HOST, HeaderValue::from_str(&host).map_err(|e| answer(&e))?);
        }
        let body = body.collect().await.map_err(|e| answer(&e))?.to_bytes();
        let request = Request::from_parts(head, Full::new(body));
        // A server may close an idle connection at any time. All requests to a bucket may be repeated.
        if let Some(kept) = self.connections.take(&server)
            && let Ok(response) = self.ask(kept, &server, request.clone()).await
        {
            return Ok(response);
        }
        let connected = self.connections.connect(&server).await;
        let new = connected.map_err(|e| Failure::Connect(host.clone(), e))?;
        self.ask(new, &server, request).await.map_err(|e| answer(&e))
    }

    async fn ask(
        &self,
        mut connection: Connection,
        server: &Server,
        request: Request<Full<Bytes>>,
    ) -> Result<HttpResponse, Box<dyn std::error::Error + Send + Sync>> {
        connection.ready().await?;
        let (head, body) = connection.send_request(request).await?.into_parts();
        let body = Limited::new(body, MAX_BODY).collect().await?.to_bytes();
        self.connections.keep(server, connection);
        let body = Full::new(body).map_err(|never| match never {});
        Ok(HttpResponse::from_parts(head, HttpResponseBody::new(body)))
    }
}

#[async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let host = request.uri().authority().map(ToString::to_string).unwrap_or_default();
        let sent = timeout(PATIENCE, self.send(request)).await;
        sent.unwrap_or(Err(Failure::Late(host))).map_err(|e| HttpError::new(e.kind(), e))
    }
}
