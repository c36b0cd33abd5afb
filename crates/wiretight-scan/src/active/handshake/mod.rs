//! Complete handshakes, to read what a server sends only encrypted: certificates in TLS 1.3,
//! tickets, renegotiation, the reaction to an invalid record.
//!
//! This is a scanner's client and provides no security: it does not verify the server, it discards
//! its keys, its arithmetic is not constant-time, and it sends nothing confidential. Only a scan
//! may use it.

mod aead;
mod channel;
mod ffdhe;
mod keys;
mod protection;
mod shares;
pub mod tls12;
pub mod tls13;
mod weierstrass;
mod x448;

use std::fmt;

pub use channel::{Channel, Incoming};
pub use protection::BadPadding;
pub use shares::{GROUPS, share_of};

use rustls::sign::Signer;

use super::link::{Trouble, alert_name};
use crate::parse::{HandshakeType, Malformed, Message};

/// Why a handshake was not completed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The server sent an alert: level and description.
    Alert(u8, u8),
    /// No answer, or an invalid one.
    Trouble(Trouble),
    /// The server chose something that this client does not support.
    Unsupported(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alert(level, description) => f.write_str(&alert_name(*level, *description)),
            Self::Trouble(trouble) => trouble.fmt(f),
            Self::Unsupported(what) => write!(f, "this scanner does not support {what}"),
        }
    }
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

impl From<Malformed> for Failure {
    fn from(e: Malformed) -> Self {
        Self::Trouble(Trouble::Malformed(e.0))
    }
}

impl From<aws_lc_rs::error::Unspecified> for Failure {
    fn from(_: aws_lc_rs::error::Unspecified) -> Self {
        Self::Trouble(Trouble::Malformed("a key or a share that is none"))
    }
}

fn malformed(why: &'static str) -> Failure {
    Failure::Trouble(Trouble::Malformed(why))
}

/// A CertificateVerify over this content, for TLS 1.2 and 1.3.
fn certificate_verify(signer: &dyn Signer, content: &[u8]) -> Result<Vec<u8>, Failure> {
    let signature = signer.sign(content);
    let signature = signature.map_err(|e| Failure::Unsupported(format!("our signature: {e}")))?;
    let mut body = u16::from(signer.scheme()).to_be_bytes().to_vec();
    body.extend((signature.len() as u16).to_be_bytes());
    body.extend(signature);
    Ok(Message::new(HandshakeType::CERTIFICATE_VERIFY, &body).bytes)
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // Without the system's random numbers a scan still works: these keys protect nothing.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    bytes
}
