//! HTTPS to a CA: one connection per request, with the edge's crypto provider and with limits. (The client library's own
//! transport uses the process's default provider, and this program sets none.)

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{HOST, HeaderValue};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use wiretight_proxy::net;
use wiretight_proxy::network::HostPort;

use crate::web;

/// For a whole request.
const PATIENCE: Duration = Duration::from_secs(30);
/// Chains and lists are much smaller.
const MAX_BODY: usize = 1 << 20;

#[derive(Clone)]
pub(super) struct Https {
    tls: TlsConnector,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Unreached {
    #[error("{0} is not an https:// URL")]
    Address(String),
    #[error("cannot reach {host}: {detail}")]
    Connect { host: String, detail: String },
    #[error("no valid response from {host}: {detail}")]
    Answer { host: String, detail: String },
}

impl Https {
    /// Trusts only these CA certificates.
    pub(super) fn new(roots: &[CertificateDer<'static>]) -> Result<Https, rustls::Error> {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(roots.iter().cloned());
        let config = ClientConfig::builder_with_provider(wiretight_proxy::provider::edge())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(store)
            .with_no_client_auth();
        Ok(Https { tls: TlsConnector::from(Arc::new(config)) })
    }

    async fn send(
        self,
        request: hyper::Request<BodyWrapper<Bytes>>,
    ) -> Result<BytesResponse, Unreached> {
        let uri = request.uri().clone();
        let (Some("https"), Some(authority)) = (uri.scheme_str(), uri.authority().cloned()) else {
            return Err(Unreached::Address(uri.to_string()));
        };
        let host = authority.to_string();
        let connect = |e: &dyn std::fmt::Display| Unreached::Connect {
            host: host.clone(),
            detail: e.to_string(),
        };
        let name = authority.host().trim_matches(['[', ']']).to_owned();
        let address = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(443));
        let address: HostPort = address.parse().map_err(|e| connect(&e))?;
        let tcp = net::connect(&address).await.map_err(|e| connect(&e))?;
        let server = ServerName::try_from(name).map_err(|e| connect(&e))?;
        let tls = self.tls.connect(server, tcp).await.map_err(|e| connect(&e))?;
        let answer = |e: &dyn std::fmt::Display| Unreached::Answer {
            host: host.clone(),
            detail: e.to_string(),
        };
        let (mut head, body) = request.into_parts();
        let path = uri.path_and_query().map_or("/", |p| p.as_str());
        head.uri = path.parse().map_err(|e| answer(&e))?;
        head.headers.insert(HOST, HeaderValue::from_str(&host).map_err(|e| answer(&e))?);
        let sent = web::send(tls, hyper::Request::from_parts(head, body)).await;
        let (response, _open) = sent.map_err(|e| answer(&e))?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_BODY).collect().await.map_err(|e| answer(&e))?;
        Ok(hyper::Response::from_parts(head, Full::new(body.to_bytes())).into())
    }
}

impl HttpClient for Https {
    fn request(
        &self,
        request: hyper::Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let (this, host) = (self.clone(), request.uri().to_string());
        Box::pin(async move {
            let late = |_| {
                let detail = format!("timed out after {PATIENCE:?}");
                Err(Unreached::Answer { host, detail })
            };
            let sent = timeout(PATIENCE, this.send(request)).await.unwrap_or_else(late);
            sent.map_err(|e| Error::Other(Box::new(e)))
        })
    }
}
