//! What was seen of a flow.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::Start;
use crate::judge::Level;

/// A direction, by its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The one that opened the flow.
    Client,
    Server,
}

impl Side {
    pub fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// The protocol above IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    Tcp,
    Udp,
    Sctp,
    Icmp,
    /// Another one, by its number (IANA, Protocol Numbers): 50 is ESP.
    Ip(u8),
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp => f.write_str("tcp"),
            Self::Udp => f.write_str("udp"),
            Self::Sctp => f.write_str("sctp"),
            Self::Icmp => f.write_str("icmp"),
            Self::Ip(number) => write!(f, "ip-{number}"),
        }
    }
}

/// How it is known what a flow is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// Not known.
    Unknown,
    /// From its first bytes alone, which another protocol might send too.
    Guessed,
    /// A handshake, or a plaintext dialogue, was parsed.
    Seen,
    /// Our relay, edge or tunnel carried it.
    Carried,
}

impl fmt::Display for Grade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::Guessed => "guessed",
            Self::Seen => "seen",
            Self::Carried => "carried",
        })
    }
}

/// What the first bytes of a flow have shown.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Seen {
    /// The name of the protocol, in lower case: `http`, `postgres`, `tls`, `quic`; `unknown`. With TLS after a
    /// plaintext beginning, the protocol that began: `smtp`. A `+tls` is not part of it; see [`Seen::sealed`].
    pub protocol: Cow<'static, str>,
    pub level: Level,
    pub grade: Grade,
    /// What was seen, in one line: "GET / HTTP/1.1", "ServerHello: TLS 1.3, TLS_AES_128_GCM_SHA256, X25519MLKEM768".
    /// Never a secret (no passwords, cookies or tokens), and only printable characters.
    pub evidence: Cow<'static, str>,
    /// For a protocol in which TLS can be started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub starttls: Option<(Start, StartTls)>,
    /// The negotiated encryption, if a handshake was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<Box<Sealed>>,
}

/// How far STARTTLS got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartTls {
    /// The server listed its features without it.
    NotOffered,
    /// The server offered it, and the client went on without.
    Unused,
    /// The client requested it, and the server refused.
    Refused,
    /// A device on the path made the offer unreadable (`XXXXXXXA`).
    Stripped,
    /// TLS followed.
    Used,
}

/// What a handshake negotiated. Names are those of [`names`](crate::names) for TLS, and of the registry of the protocol
/// otherwise. `None` is "not visible".
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Sealed {
    /// `TLS 1.3`, `QUIC 1`, `DTLS 1.2`, `SSH 2.0`, `IKEv2`, `WireGuard`.
    pub version: Cow<'static, str>,
    /// `TLS_AES_128_GCM_SHA256`; for SSH the cipher and MAC of the weaker direction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suite: Option<Cow<'static, str>>,
    /// Key-exchange group or method.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<Cow<'static, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub post_quantum: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forward_secrecy: Option<bool>,
    /// The signature scheme of the key exchange, or SSH's host key algorithm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signature: Option<Cow<'static, str>>,
    /// The name that the client asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// The selected application protocol. In TLS 1.3 that is encrypted: then the client's offers, separated by commas.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpn: Option<String>,
    /// Whether a session was resumed. In TLS 1.3 it may be another pre-shared key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resumed: Option<bool>,
    /// Whether the client sent an Encrypted ClientHello, so that `server_name` is the outer one.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ech: bool,
    /// Whether the client sent 0-RTT data.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub early_data: bool,
    /// Whether the server requested a client certificate, where the version shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<bool>,
    /// The server's leaf certificate, where the version shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<Arc<CertificateSeen>>,
    /// What the client offered, when no answer of the server was seen: then the level is `unknown`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub offered_groups: Vec<Cow<'static, str>>,
}

/// A leaf certificate that was sent in the clear.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CertificateSeen {
    /// SHA-256, in hex.
    pub sha256: String,
    /// `rsa-2048`, `ecdsa-p256`.
    pub key: String,
    /// The hash and algorithm that it is signed with.
    pub signature: String,
    pub not_after: jiff::Timestamp,
    pub subject: String,
    /// Whether issuer and subject are the same name. The signature is not checked.
    pub self_signed: bool,
}
