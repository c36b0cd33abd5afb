//! Peers other than our relay: rustls used directly, so that a test controls every byte and certificate.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{SupportedKxGroup, aws_lc_rs::kx_group};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    AlertDescription, ClientConfig, ClientConnection, DigitallySignedStruct, DistinguishedName,
    ServerConfig, ServerConnection, SignatureScheme, StreamOwned, SupportedCipherSuite,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use wiretight_keys::SigningKey;
use wiretight_proxy::tls::ALPN_RELAY;

pub type Cert = (Vec<CertificateDer<'static>>, SigningKey);
pub type TlsClient = StreamOwned<ClientConnection, TcpStream>;
pub type TlsServer = StreamOwned<ServerConnection, TcpStream>;

/// Accepts every peer: the tests check whether *we* are accepted.
#[derive(Debug)]
struct Gullible;

impl Gullible {
    fn schemes() -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

type Verified = Result<HandshakeSignatureValid, rustls::Error>;

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Verified {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Verified {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Gullible::schemes()
    }
}

impl ClientCertVerifier for Gullible {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }
    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Verified {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Verified {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Gullible::schemes()
    }
}

/// A TLS client with a given certificate and parameters.
pub struct Stranger {
    pub cert: Option<Cert>,
    pub alpn: bool,
    pub groups: Vec<&'static dyn SupportedKxGroup>,
    pub suites: Vec<SupportedCipherSuite>,
}

impl Stranger {
    /// A client with `wiretight/1` and this certificate.
    pub fn new(cert: Cert) -> Stranger {
        let groups = vec![kx_group::X25519MLKEM768, kx_group::X25519];
        let suites = wiretight_proxy::provider::mesh().cipher_suites.clone();
        Stranger { cert: Some(cert), alpn: true, groups, suites }
    }

    /// Connects and completes the handshake on the client's side: in TLS 1.3 the server's rejection of the client's
    /// certificate arrives later, at the first read.
    pub fn connect(self, to: SocketAddr) -> io::Result<TlsClient> {
        let mut stream = self.greet(to)?;
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        stream.flush()?;
        Ok(stream)
    }

    /// Connects, sends the ClientHello and waits for a response; the next read or write continues.
    pub fn greet(self, to: SocketAddr) -> io::Result<TlsClient> {
        let mut provider = (*wiretight_proxy::provider::mesh()).clone();
        provider.kx_groups = self.groups;
        provider.cipher_suites = self.suites;
        let builder = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Gullible));
        let mut config = match self.cert {
            Some((chain, key)) => {
                let key = PrivateKeyDer::Pkcs8(key.to_pkcs8());
                builder.with_client_auth_cert(chain, key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        if self.alpn {
            config.alpn_protocols = vec![ALPN_RELAY.to_vec()];
        }
        let server_name = ServerName::try_from("db.service.test.example").unwrap();
        let tls = ClientConnection::new(Arc::new(config), server_name).unwrap();
        let socket = TcpStream::connect(to)?;
        socket.set_read_timeout(Some(super::PATIENCE))?;
        socket.set_nodelay(true)?;
        let mut stream = StreamOwned::new(tls, socket);
        while stream.conn.wants_write() {
            stream.conn.write_tls(&mut stream.sock)?;
        }
        stream.sock.peek(&mut [0])?;
        Ok(stream)
    }

    /// Connects, and returns the alert with which it is rejected; `None` if there is no alert.
    pub fn alert(self, to: SocketAddr) -> Option<AlertDescription> {
        let error = match self.connect(to) {
            Ok(mut stream) => stream.read(&mut [0]).err()?,
            Err(error) => error,
        };
        alert(&error)
    }
}

/// The alert inside an error.
pub fn alert(error: &io::Error) -> Option<AlertDescription> {
    match error.get_ref()?.downcast_ref()? {
        rustls::Error::AlertReceived(alert) => Some(*alert),
        _ => None,
    }
}

/// A TLS server on its own port that presents `cert` and passes each connection to `serve`, before the handshake.
pub fn server(
    cert: Cert,
    alpn: bool,
    serve: impl Fn(TlsServer) + Send + Sync + Clone + 'static,
) -> SocketAddr {
    let provider = Arc::new((*wiretight_proxy::provider::mesh()).clone());
    let (chain, key) = cert;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(Arc::new(Gullible))
        .with_single_cert(chain, PrivateKeyDer::Pkcs8(key.to_pkcs8()))
        .unwrap();
    config.send_tls13_tickets = 0;
    if alpn {
        config.alpn_protocols = vec![ALPN_RELAY.to_vec()];
    }
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            socket.set_nodelay(true).unwrap();
            let tls = ServerConnection::new(config.clone()).unwrap();
            let serve = serve.clone();
            std::thread::spawn(move || serve(StreamOwned::new(tls, socket)));
        }
    });
    addr
}
