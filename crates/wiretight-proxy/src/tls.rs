//! TLS between nodes: the client and server configurations, and the verifier of the peer's chain (docs/wire.md, section
//! 1).

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError,
    ServerConfig, SignatureScheme,
};
use wiretight_keys::{Id, Refusal, Role, SpiffeId, VerifiedPeer};

use crate::mesh::Mesh;

/// The ALPN protocol between relays.
pub const ALPN_RELAY: &[u8] = b"wiretight/1";
/// The ALPN protocol between node and authority.
pub const ALPN_CONTROL: &[u8] = b"wiretight-control/1";

/// A server for members of the mesh that presents `identity`. A client without a certificate is rejected, unless
/// `strangers` allows it (on the authority's listener, for a first join).
pub fn server_config(
    mesh: &Arc<Mesh>,
    identity: Id,
    alpn: &[u8],
    strangers: Strangers,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let verifier = Arc::new(Verifier { mesh: mesh.clone(), expected: None, strangers });
    let resolver = Arc::new(Resolver { mesh: mesh.clone(), identity });
    let mut config = ServerConfig::builder_with_provider(mesh.provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![alpn.to_vec()];
    config.enable_secret_extraction = alpn == ALPN_RELAY; // for `record`
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.ignore_client_order = true;
    // Our chains are three small certificates: compression gains nothing, and this is one parser less to trust.
    config.cert_compressors = Vec::new();
    config.cert_decompressors = Vec::new();
    Ok(Arc::new(config))
}

/// A verifier that accepts only clients that are members of the mesh.
pub(crate) fn client_verifier(mesh: &Arc<Mesh>) -> Arc<dyn ClientCertVerifier> {
    Arc::new(Verifier { mesh: mesh.clone(), expected: None, strangers: Strangers::Refused })
}

/// A client that presents `identity` and accepts only the server `expected`.
pub fn client_config(
    mesh: &Arc<Mesh>,
    identity: Id,
    expected: SpiffeId,
    alpn: &[u8],
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let verifier =
        Verifier { mesh: mesh.clone(), expected: Some(expected), strangers: Strangers::Refused };
    let resolver = Arc::new(Resolver { mesh: mesh.clone(), identity });
    let mut config = ClientConfig::builder_with_provider(mesh.provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(resolver);
    config.alpn_protocols = vec![alpn.to_vec()];
    config.enable_secret_extraction = alpn == ALPN_RELAY; // for `record`
    config.resumption = Resumption::disabled();
    config.cert_compressors = Vec::new();
    config.cert_decompressors = Vec::new();
    Ok(Arc::new(config))
}

/// Whether a client that is not a member of the mesh may complete the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strangers {
    /// No: the handshake fails.
    Refused,
    /// A client without a certificate may.
    MayShakeHands,
    /// A client without a certificate may, and so may one with any other certificate. The handshake then proves only
    /// possession of the key; the caller decides what to allow.
    MayShowAnything,
}

/// The peer of a completed handshake. The verifier accepted the chain during the handshake; validity and revocation
/// are checked again.
pub fn peer(
    mesh: &Mesh,
    chain: &[CertificateDer<'_>],
    role: Role,
) -> Result<VerifiedPeer, Refusal> {
    mesh.verify(chain, role, UnixTime::now())
}

/// The refusal inside a TLS error, if any.
pub fn refusal(error: &rustls::Error) -> Option<&Refusal> {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(e))) => {
            e.downcast_ref()
        }
        _ => None,
    }
}

/// Wraps a refusal. `Other` always becomes the alert `certificate_unknown`: the peer learns that it was rejected, but
/// not why.
fn refuse(refusal: Refusal) -> rustls::Error {
    CertificateError::Other(OtherError(Arc::new(refusal))).into()
}

/// Verifies peers against the mesh's current bundle.
struct Verifier {
    mesh: Arc<Mesh>,
    expected: Option<SpiffeId>,
    strangers: Strangers,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("expected", &self.expected).finish_non_exhaustive()
    }
}

impl Verifier {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let chain: Vec<_> = std::iter::once(leaf).chain(rest).cloned().collect();
        let peer = self.mesh.verify(&chain, role, now).map_err(refuse)?;
        match &self.expected {
            Some(expected) if expected != peer.id() => Err(refuse(Refusal::WrongPeer {
                expected: expected.clone(),
                found: peer.id().clone(),
            })),
            _ => Ok(()),
        }
    }

    fn signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.mesh.provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }
}

/// TLS 1.2 is not enabled, so this is never called for a valid handshake.
fn tls12() -> Result<HandshakeSignatureValid, rustls::Error> {
    Err(rustls::Error::General("TLS 1.2 is not supported".into()))
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, Role::Server, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        self.strangers == Strangers::Refused
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        if self.strangers == Strangers::MayShowAnything {
            return Ok(ClientCertVerified::assertion());
        }
        self.verify(end_entity, intermediates, Role::Client, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

/// Presents the newest certificate of one identity; none if it has expired, in which case the handshake fails.
struct Resolver {
    mesh: Arc<Mesh>,
    identity: Id,
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.mesh.identity(&self.identity).map(|i| i.certified())
    }
}

impl ResolvesClientCert for Resolver {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.mesh.identity(&self.identity).map(|i| i.certified())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
