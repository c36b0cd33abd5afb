//! Errors from making or reading certificates and certificate requests.

use crate::key::KeyError;

/// The largest number of names in a request for a web server's certificate.
pub(crate) const MAX_WEB_NAMES: usize = 100;

/// Why a certificate or request could not be made or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum X509Error {
    /// The input is not valid DER or PEM of this type.
    #[error("malformed {what}: {detail}")]
    Malformed {
        /// What was parsed.
        what: &'static str,
        /// The parser's message.
        detail: String,
    },
    #[error("a certificate request must name exactly one SPIFFE ID in its subjectAltName")]
    NoSpiffeId,
    /// A web server's request with something other than DNS names.
    #[error("a web server's certificate request must contain 1 to {max} DNS names and nothing else: {detail}", max = MAX_WEB_NAMES)]
    NotDnsNames {
        /// What it contains.
        detail: String,
    },
    /// A web server's request with an unsupported key.
    #[error(
        "a web server's key must be P-256, P-384, or RSA with 2048 to 8192 bits, and must sign the request with SHA-256 or stronger"
    )]
    WebKey,
    /// An invalid key or signature.
    #[error(transparent)]
    Key(#[from] KeyError),
}

pub(crate) fn malformed(what: &'static str) -> impl Fn(der::Error) -> X509Error {
    move |e| X509Error::Malformed { what, detail: e.to_string() }
}
