//! Why certificates and requests cannot be made or read.

use crate::key::KeyError;

/// The most names in a request for a web server's certificate.
pub(crate) const MAX_WEB_NAMES: usize = 100;

/// Why a certificate or request could not be made or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum X509Error {
    /// Not the DER or PEM of what it should be.
    #[error("malformed {what}: {detail}")]
    Malformed {
        /// What was being read.
        what: &'static str,
        /// What the parser said.
        detail: String,
    },
    /// A request without exactly one SPIFFE ID.
    #[error("a certificate request must name exactly one SPIFFE ID in its subjectAltName")]
    NoSpiffeId,
    /// A web server's request that is not for DNS names.
    #[error("a web server's certificate request must name 1 to {max} DNS names and nothing else: {detail}", max = MAX_WEB_NAMES)]
    NotDnsNames {
        /// What it names.
        detail: String,
    },
    /// A web server's request for a key that is not certified.
    #[error(
        "a web server's key must be P-256, P-384, or RSA with 2048 to 8192 bits, and its request signed by it with SHA-256 or more"
    )]
    WebKey,
    /// The key or its signature.
    #[error(transparent)]
    Key(#[from] KeyError),
}

pub(crate) fn malformed(what: &'static str) -> impl Fn(der::Error) -> X509Error {
    move |e| X509Error::Malformed { what, detail: e.to_string() }
}
