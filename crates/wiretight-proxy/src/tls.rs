//! TLS between nodes: the client and server configurations, and the verifier of the peer's chain (docs/wire.md, section
//! 1).

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, WantsClientCert};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct, DistinguishedName,
    OtherError, ServerConfig, SignatureScheme,
};
use wiretight_keys::{Id, Refusal, Role, SpiffeId, VerifiedPeer};

use crate::mesh::Mesh;
use crate::provider;

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
    let verifier = Arc::new(Verifier::of_mesh(mesh, None, strangers));
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
    Arc::new(Verifier::of_mesh(mesh, None, Strangers::Refused))
}

/// A client that presents `identity` and accepts only the server `expected`.
pub fn client_config(
    mesh: &Arc<Mesh>,
    identity: Id,
    expected: SpiffeId,
    alpn: &[u8],
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let verifier = Verifier::of_mesh(mesh, Some(expected), Strangers::Refused);
    let resolver = Arc::new(Resolver { mesh: mesh.clone(), identity });
    Ok(client(client_builder(verifier)?.with_client_cert_resolver(resolver), alpn))
}

/// A client without a certificate that accepts only the server `expected`, whose chain `verify` accepts: for a node that
/// is not a member yet.
pub fn stranger_config(
    expected: SpiffeId,
    alpn: &[u8],
    verify: impl Fn(&[CertificateDer<'_>], Role, UnixTime) -> Result<VerifiedPeer, rustls::Error>
    + Send
    + Sync
    + 'static,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let verifier = Verifier {
        verify: Box::new(verify),
        algorithms: provider::mesh().signature_verification_algorithms,
        expected: Some(expected),
        strangers: Strangers::Refused,
    };
    Ok(client(client_builder(verifier)?.with_no_client_auth(), alpn))
}

fn client_builder(
    verifier: Verifier,
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(provider::mesh())
        .with_protocol_versions(&[&rustls::version::TLS13])?;
    Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)))
}

fn client(mut config: ClientConfig, alpn: &[u8]) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![alpn.to_vec()];
    config.enable_secret_extraction = alpn == ALPN_RELAY; // for `record`
    config.resumption = Resumption::disabled();
    config.cert_compressors = Vec::new();
    config.cert_decompressors = Vec::new();
    Arc::new(config)
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

/// Wraps the reason why a certificate is rejected, for example a [`Refusal`]. `Other` always becomes the alert
/// `certificate_unknown`: the peer learns that it was rejected, but not why.
pub fn reject(why: impl std::error::Error + Send + Sync + 'static) -> rustls::Error {
    CertificateError::Other(OtherError(Arc::new(why))).into()
}

type Verify = dyn Fn(&[CertificateDer<'_>], Role, UnixTime) -> Result<VerifiedPeer, rustls::Error>
    + Send
    + Sync;

/// Verifies peers.
struct Verifier {
    /// Decides whether a chain is trusted.
    verify: Box<Verify>,
    algorithms: WebPkiSupportedAlgorithms,
    expected: Option<SpiffeId>,
    strangers: Strangers,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("expected", &self.expected).finish_non_exhaustive()
    }
}

impl Verifier {
    /// Trusts the mesh's current bundle.
    fn of_mesh(mesh: &Arc<Mesh>, expected: Option<SpiffeId>, strangers: Strangers) -> Verifier {
        let algorithms = mesh.provider().signature_verification_algorithms;
        let mesh = mesh.clone();
        let verify = Box::new(move |chain: &[CertificateDer<'_>], role: Role, now: UnixTime| {
            mesh.verify(chain, role, now).map_err(reject)
        });
        Verifier { verify, algorithms, expected, strangers }
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let chain: Vec<_> = std::iter::once(leaf).chain(rest).cloned().collect();
        let peer = (self.verify)(&chain, role, now)?;
        match &self.expected {
            Some(expected) if expected != peer.id() => Err(reject(Refusal::WrongPeer {
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
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
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
