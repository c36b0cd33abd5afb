//! The TLS registries: versions, cipher suites, groups, signature schemes and alerts with their
//! numbers, and properties that follow from a name.

mod groups;
mod primes;
mod signatures;
mod suites;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use groups::{GROUPS, Group, GroupKind};
pub use primes::common_prime;
pub use signatures::{SCHEMES, SignatureScheme};
pub use suites::{Bulk, KeyExchange, SSL2_SUITES, Suite, suites};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Version {
    Ssl2,
    Ssl3,
    #[serde(rename = "tls1_0")]
    Tls1_0,
    #[serde(rename = "tls1_1")]
    Tls1_1,
    #[serde(rename = "tls1_2")]
    Tls1_2,
    #[serde(rename = "tls1_3")]
    Tls1_3,
}

impl Version {
    /// From the oldest to the newest.
    pub const ALL: [Self; 6] =
        [Self::Ssl2, Self::Ssl3, Self::Tls1_0, Self::Tls1_1, Self::Tls1_2, Self::Tls1_3];

    /// The form in ids of facts: `tls1_2`.
    pub fn key(self) -> &'static str {
        match self {
            Self::Ssl2 => "ssl2",
            Self::Ssl3 => "ssl3",
            Self::Tls1_0 => "tls1_0",
            Self::Tls1_1 => "tls1_1",
            Self::Tls1_2 => "tls1_2",
            Self::Tls1_3 => "tls1_3",
        }
    }

    /// `TLS 1.2`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ssl2 => "SSL 2.0",
            Self::Ssl3 => "SSL 3.0",
            Self::Tls1_0 => "TLS 1.0",
            Self::Tls1_1 => "TLS 1.1",
            Self::Tls1_2 => "TLS 1.2",
            Self::Tls1_3 => "TLS 1.3",
        }
    }

    pub fn code(self) -> u16 {
        match self {
            Self::Ssl2 => 0x0002,
            Self::Ssl3 => 0x0300,
            Self::Tls1_0 => 0x0301,
            Self::Tls1_1 => 0x0302,
            Self::Tls1_2 => 0x0303,
            Self::Tls1_3 => 0x0304,
        }
    }

    pub fn from_code(code: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.code() == code)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The description of an alert (RFC 8446 section 6 and its predecessors).
pub fn alert(code: u8) -> &'static str {
    match code {
        0 => "close_notify",
        10 => "unexpected_message",
        20 => "bad_record_mac",
        21 => "decryption_failed",
        22 => "record_overflow",
        30 => "decompression_failure",
        40 => "handshake_failure",
        41 => "no_certificate",
        42 => "bad_certificate",
        43 => "unsupported_certificate",
        44 => "certificate_revoked",
        45 => "certificate_expired",
        46 => "certificate_unknown",
        47 => "illegal_parameter",
        48 => "unknown_ca",
        49 => "access_denied",
        50 => "decode_error",
        51 => "decrypt_error",
        60 => "export_restriction",
        70 => "protocol_version",
        71 => "insufficient_security",
        80 => "internal_error",
        86 => "inappropriate_fallback",
        90 => "user_canceled",
        100 => "no_renegotiation",
        109 => "missing_extension",
        110 => "unsupported_extension",
        111 => "certificate_unobtainable",
        112 => "unrecognized_name",
        113 => "bad_certificate_status_response",
        114 => "bad_certificate_hash_value",
        115 => "unknown_psk_identity",
        116 => "certificate_required",
        120 => "no_application_protocol",
        121 => "ech_required",
        _ => "unknown alert",
    }
}
