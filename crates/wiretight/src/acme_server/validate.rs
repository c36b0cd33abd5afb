//! Validates that the client controls the address of a name: http-01 (RFC 8555, section 8.3) and tls-alpn-01 (RFC 8737).
//! Redirects are not followed: the proof must come from the name itself.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aws_lc_rs::digest::{SHA256, digest};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode, header};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use wiretight_keys::web;
use wiretight_proxy::edge::ALPN_ACME;

use super::Method;
use crate::web::send;

/// From the DNS lookup to the last byte.
const DEADLINE: Duration = Duration::from_secs(10);
/// A key authorization has less than 100 bytes; some servers append a newline.
const MAX_BODY: usize = 1024;

/// Why the validation of a name failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// The last part of the problem's type (RFC 8555, section 6.7).
    pub kind: &'static str,
    /// For the client.
    pub detail: String,
}

impl Invalid {
    fn new(kind: &'static str, detail: impl Into<String>) -> Invalid {
        Invalid { kind, detail: detail.into() }
    }
}

#[async_trait]
pub trait Validator: Send + Sync {
    /// Checks that `name` responds to `token` with the key authorization.
    async fn validate(
        &self,
        method: Method,
        name: &str,
        token: &str,
        key_authorization: &str,
    ) -> Result<(), Invalid>;
}

/// Validates over the network.
pub struct Network {
    /// The port for http-01: 80 (RFC 8555, section 8.3).
    pub http_port: u16,
    /// The port for tls-alpn-01: 443 (RFC 8737, section 3).
    pub tls_port: u16,
}

#[async_trait]
impl Validator for Network {
    async fn validate(
        &self,
        method: Method,
        name: &str,
        token: &str,
        key_authorization: &str,
    ) -> Result<(), Invalid> {
        let tried = async {
            match method {
                Method::Http01 => http(name, self.http_port, token, key_authorization).await,
                Method::TlsAlpn01 => tls_alpn(name, self.tls_port, key_authorization).await,
            }
        };
        let late = |_| {
            let seconds = DEADLINE.as_secs();
            Err(Invalid::new("connection", format!("{name} did not respond within {seconds} s")))
        };
        timeout(DEADLINE, tried).await.unwrap_or_else(late)
    }
}

async fn connect(name: &str, port: u16) -> Result<TcpStream, Invalid> {
    let addresses = lookup_host((name, port)).await;
    let addresses = addresses.map_err(|e| Invalid::new("dns", format!("{name}: {e}")))?;
    let mut socket = Err(Invalid::new("dns", format!("{name} has no address")));
    for address in addresses {
        socket = TcpStream::connect(address).await.map_err(|e| {
            let detail = format!("cannot reach {name}, port {port}: {e}");
            Invalid::new("connection", detail)
        });
        if socket.is_ok() {
            break;
        }
    }
    socket
}

/// Handshakes with the server, which must use the certificate for the challenge (RFC 8737, section 3).
async fn tls_alpn(name: &str, port: u16, key_authorization: &str) -> Result<(), Invalid> {
    let tls = |detail: String| Invalid::new("tls", format!("{name}: {detail}"));
    let mut expected = [0; 32];
    expected.copy_from_slice(digest(&SHA256, key_authorization.as_bytes()).as_ref());
    let provider = wiretight_proxy::provider::edge();
    let verifier = Asked { name: name.to_owned(), expected, provider: provider.clone() };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| tls(e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_ACME.to_vec()];
    config.resumption = Resumption::disabled();
    let server = ServerName::try_from(name.to_owned()).map_err(|e| tls(e.to_string()))?;
    let socket = connect(name, port).await?;
    let shaken = TlsConnector::from(Arc::new(config)).connect(server, socket).await;
    let shaken = shaken.map_err(|e| {
        let ours = e.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
        match ours == Some(&not_asked_for()) {
            true => Invalid::new(
                "unauthorized",
                format!("the certificate of {name} is not the one for this challenge"),
            ),
            false => tls(e.to_string()),
        }
    })?;
    match shaken.get_ref().1.alpn_protocol() == Some(ALPN_ACME) {
        true => Ok(()),
        false => Err(tls("it does not support acme-tls/1".into())),
    }
}

/// Accepts the certificate for the challenge, regardless of who signed it.
#[derive(Debug)]
struct Asked {
    name: String,
    expected: [u8; 32],
    provider: Arc<CryptoProvider>,
}

fn not_asked_for() -> rustls::Error {
    CertificateError::ApplicationVerificationFailure.into()
}

impl ServerCertVerifier for Asked {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match web::answers_challenge(certificate, &self.name, &self.expected) {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(not_asked_for()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 was not offered".into()))
    }

    /// With the raw key, because the library rejects certificates with unknown critical extensions.
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let key = web::spki(certificate).ok_or_else(not_asked_for)?;
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &key.into(), signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

async fn http(name: &str, port: u16, token: &str, key_authorization: &str) -> Result<(), Invalid> {
    let unreachable = |e: &dyn std::fmt::Display| {
        Invalid::new("connection", format!("cannot reach {name}, port {port}: {e}"))
    };
    let socket = connect(name, port).await?;
    let host = if port == 80 { name.to_owned() } else { format!("{name}:{port}") };
    let request = Request::get(format!("/.well-known/acme-challenge/{token}"))
        .header(header::HOST, host)
        .header(header::USER_AGENT, "wiretight-acme")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|e| unreachable(&e))?;
    let (response, _open) = send(socket, request).await.map_err(|e| unreachable(&e))?;
    if response.status() != StatusCode::OK {
        let detail = format!("{name} responded with status {} instead of 200", response.status());
        return Err(Invalid::new("unauthorized", detail));
    }
    let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
    let body = body.map_err(|e| unreachable(&e))?.to_bytes();
    match body.trim_ascii_end() == key_authorization.as_bytes() {
        true => Ok(()),
        false => {
            let detail = format!("the key authorization from {name} is wrong");
            Err(Invalid::new("unauthorized", detail))
        }
    }
}

#[cfg(test)]
mod tests {
    use rustls::ServerConfig;
    use rustls::server::{ClientHello, ResolvesServerCert};
    use rustls::sign::CertifiedKey;
    use wiretight_proxy::edge::challenge_certificate;

    use super::*;

    #[derive(Debug)]
    struct Shows(Arc<CertifiedKey>);

    impl ResolvesServerCert for Shows {
        fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            Some(self.0.clone())
        }
    }

    /// A server on loopback with the certificate for this key authorization and name.
    async fn server(name: &str, says: &str, alpn: &[u8]) -> u16 {
        let mut expected = [0; 32];
        expected.copy_from_slice(digest(&SHA256, says.as_bytes()).as_ref());
        let shows = Shows(challenge_certificate(name, expected).unwrap());
        let mut config = ServerConfig::builder_with_provider(wiretight_proxy::provider::edge())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(shows));
        config.alpn_protocols = vec![alpn.to_vec()];
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let _ = acceptor.accept(socket).await;
            }
        });
        port
    }

    #[tokio::test]
    async fn tls_alpn_01_accepts_only_the_certificate_for_the_challenge() {
        let tried = async |shown: &str, says: &str, alpn: &[u8]| {
            let network = Network { http_port: 1, tls_port: server(shown, says, alpn).await };
            network.validate(Method::TlsAlpn01, "localhost", "t", "t.thumbprint").await
        };
        let kind = |tried: Result<(), Invalid>| tried.unwrap_err().kind;
        assert_eq!(tried("localhost", "t.thumbprint", ALPN_ACME).await, Ok(()));
        assert_eq!(kind(tried("localhost", "t.another", ALPN_ACME).await), "unauthorized");
        assert_eq!(kind(tried("other.host", "t.thumbprint", ALPN_ACME).await), "unauthorized");
        assert_eq!(kind(tried("localhost", "t.thumbprint", b"h2").await), "tls");
        let network = Network { http_port: 1, tls_port: 1 };
        let nobody = network.validate(Method::TlsAlpn01, "localhost", "t", "t.x").await;
        assert_eq!(kind(nobody), "connection");
    }
}
