//! A site's own CA for its clients, which are not members of the mesh.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{
    ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig, version};

use crate::provider;

/// The largest CA file accepted, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// A site's own CA for its clients.
pub(crate) struct ClientCa {
    pem: Vec<u8>,
    verifier: Arc<dyn ClientCertVerifier>,
    /// A template, without a server certificate and ALPN protocols.
    config: ServerConfig,
}

impl ClientCa {
    /// Reads the root certificates (PEM).
    pub(crate) fn read(path: &Path) -> Result<ClientCa, String> {
        // Reject a pipe, which may never end.
        if !std::fs::metadata(path).map_err(|e| e.to_string())?.is_file() {
            return Err("it is not a regular file".into());
        }
        let mut pem = Vec::new();
        let file = File::open(path).map_err(|e| e.to_string())?;
        file.take(MAX_FILE + 1).read_to_end(&mut pem).map_err(|e| e.to_string())?;
        if pem.len() as u64 > MAX_FILE {
            return Err(format!("it is larger than {MAX_FILE} bytes"));
        }
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(&pem) {
            let root = root.map_err(|e| e.to_string())?;
            roots.add(root).map_err(|e| e.to_string())?;
        }
        if roots.is_empty() {
            return Err("it contains no certificate".into());
        }
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider::edge())
                .build()
                .map_err(|e| e.to_string())?;
        // No session tickets: each connection must authenticate again. Only TLS 1.3, in which the client's
        // certificate is encrypted.
        let mut config = ServerConfig::builder_with_provider(provider::edge())
            .with_protocol_versions(&[&version::TLS13])
            .map_err(|e| e.to_string())?
            .with_client_cert_verifier(verifier.clone())
            .with_cert_resolver(Arc::new(FixedCertificate(None)));
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(ClientCa { pem, verifier, config })
    }

    /// Whether it was read from the same bytes.
    pub(crate) fn is_same(&self, other: &ClientCa) -> bool {
        self.pem == other.pem
    }

    /// The configuration for one handshake.
    pub(crate) fn config(&self, shows: Arc<CertifiedKey>, alpn: &[&[u8]]) -> Arc<ServerConfig> {
        let mut config = self.config.clone();
        config.cert_resolver = Arc::new(FixedCertificate(Some(shows)));
        config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        Arc::new(config)
    }

    pub(crate) fn vouches_for(&self, chain: &[CertificateDer<'_>]) -> bool {
        let Some((leaf, rest)) = chain.split_first() else { return false };
        self.verifier.verify_client_cert(leaf, rest, UnixTime::now()).is_ok()
    }
}

struct FixedCertificate(Option<Arc<CertifiedKey>>);

impl fmt::Debug for FixedCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FixedCertificate")
    }
}

impl ResolvesServerCert for FixedCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.clone()
    }
}
