//! TLS to browsers: the parameters, and the choice of the certificate.
//!
//! TLS 1.3, and TLS 1.2 with ephemeral keys and AEAD for older clients; nothing else is compiled in. X25519MLKEM768
//! is preferred. A client that requests an unknown name gets an alert and no certificate. So does a client without a
//! name, unless there is a default site.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::crypto::aws_lc_rs;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, version};

use super::certificates::ALPN_ACME;
use super::sites::Sites;
use crate::mesh::Mesh;
use crate::provider;

/// HTTP/2 and HTTP/1.1 (RFC 9113, RFC 7301).
pub(crate) const ALPN_H2: &[u8] = b"h2";
pub(crate) const ALPN_HTTP1: &[u8] = b"http/1.1";
/// HTTP/3 (RFC 9114).
pub(crate) const ALPN_H3: &[u8] = b"h3";

/// The records with the alert (RFC 8446, section 6) for an unknown name (RFC 6066, section 3), and for a name without
/// a certificate.
pub(crate) const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];
pub(crate) const INTERNAL_ERROR: [u8; 7] = [21, 3, 3, 0, 2, 2, 80];

/// The configurations shared by all sites.
pub(crate) struct Configs {
    /// For sites without client certificates.
    pub(crate) open: Arc<ServerConfig>,
    /// For members of the mesh: only TLS 1.3, and no tickets, so that each connection must authenticate again.
    pub(crate) members: Arc<ServerConfig>,
    /// For sites without client certificates, over QUIC.
    pub(crate) quic: Arc<ServerConfig>,
    /// For members of the mesh, over QUIC.
    pub(crate) quic_members: Arc<ServerConfig>,
    /// For an ACME server that validates a name.
    pub(crate) challenges: Arc<ServerConfig>,
}

impl Configs {
    pub(crate) fn new(
        sites: &Arc<ArcSwap<Sites>>,
        mesh: &Arc<Mesh>,
    ) -> Result<Configs, rustls::Error> {
        let resolver = |members| Arc::new(Resolver { sites: sites.clone(), members });
        let mut open = ServerConfig::builder_with_provider(provider::edge())
            .with_protocol_versions(&[&version::TLS13, &version::TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(resolver(false));
        open.alpn_protocols = vec![ALPN_H2.to_vec(), ALPN_HTTP1.to_vec()];
        open.session_storage = Arc::new(NoServerSessionStorage {});
        open.ticketer = aws_lc_rs::Ticketer::new()?;
        // Require extended master secret, which binds TLS 1.2 tickets to their handshake (RFC 7627).
        open.require_ems = true;

        let mut members = ServerConfig::builder_with_provider(provider::edge())
            .with_protocol_versions(&[&version::TLS13])?
            .with_client_cert_verifier(crate::tls::client_verifier(mesh))
            .with_cert_resolver(resolver(true));
        members.alpn_protocols = open.alpn_protocols.clone();
        members.session_storage = Arc::new(NoServerSessionStorage {});
        members.send_tls13_tickets = 0;

        let mut quic = ServerConfig::builder_with_provider(provider::edge())
            .with_protocol_versions(&[&version::TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(resolver(false));
        quic.alpn_protocols = vec![ALPN_H3.to_vec()];
        quic.session_storage = Arc::new(NoServerSessionStorage {});
        quic.ticketer = open.ticketer.clone();

        let mut quic_members = members.clone();
        quic_members.alpn_protocols = quic.alpn_protocols.clone();

        let mut challenges = ServerConfig::builder_with_provider(provider::edge())
            .with_protocol_versions(&[&version::TLS13, &version::TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(ChallengeResolver(sites.clone())));
        challenges.alpn_protocols = vec![ALPN_ACME.to_vec()];
        challenges.session_storage = Arc::new(NoServerSessionStorage {});
        challenges.send_tls13_tickets = 0;
        Ok(Configs {
            open: Arc::new(open),
            members: Arc::new(members),
            quic: Arc::new(quic),
            quic_members: Arc::new(quic_members),
            challenges: Arc::new(challenges),
        })
    }
}

/// Selects the newest certificate of the requested site.
struct Resolver {
    sites: Arc<ArcSwap<Sites>>,
    /// Whether the configuration verifies members: a site for members is available only through that one.
    members: bool,
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").field("members", &self.members).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let sites = self.sites.load();
        let host = sites.host(hello.server_name())?;
        let (name, site) = sites.find(&host)?;
        // A site with its own client CA has a separate configuration.
        if site.settings.clients.is_some() != self.members || site.client_ca.is_some() {
            return None;
        }
        Some(sites.certificate(&host, (name, site))?.certified())
    }
}

/// Selects the certificate that responds to tls-alpn-01.
struct ChallengeResolver(Arc<ArcSwap<Sites>>);

impl fmt::Debug for ChallengeResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChallengeResolver")
    }
}

impl ResolvesServerCert for ChallengeResolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load().certificates.challenge(&hello.server_name()?.to_ascii_lowercase())
    }
}
