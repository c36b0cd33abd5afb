//! The best level that a version, a cipher suite, a group or a signature scheme allows, by its name alone.

use super::Level;
use crate::names::{Bulk, Group, KeyExchange, SignatureScheme, Suite, Version};

/// The best level that an endpoint with this version can have (RFC 8996; RFC 9325 section 3.1.1).
pub fn version(version: Version) -> Level {
    match version {
        Version::Tls1_3 => Level::Strong,
        Version::Tls1_2 => Level::Acceptable,
        _ => Level::Weak,
    }
}

/// The best level that an endpoint with this suite can have (RFC 9325 section 4, RFC 10015);
/// `Unknown` if the name is unknown.
pub fn suite(name: &str) -> Level {
    let Some(suite) = Suite::from_name(name) else {
        // SSL 2.0 has its own suites, and all of them are weak.
        return if name.starts_with("SSL_CK_") { Level::Weak } else { Level::Unknown };
    };
    let broken = matches!(suite.bulk(), Bulk::Null | Bulk::Rc4) || suite.has_small_blocks();
    let static_key = matches!(
        suite.key_exchange(),
        KeyExchange::Rsa | KeyExchange::RsaPsk | KeyExchange::Dh | KeyExchange::Ecdh
    );
    if broken || static_key || suite.is_anonymous() || suite.is_export() || is_dhe(suite) {
        return Level::Weak;
    }
    match is_modern(suite) {
        true => Level::Strong,
        false => Level::Acceptable,
    }
}

/// Whether a suite is as good as those of TLS 1.3: ephemeral key exchange on curves, and AEAD.
pub(super) fn is_modern(suite: Suite) -> bool {
    let ephemeral = matches!(
        suite.key_exchange(),
        KeyExchange::Any | KeyExchange::Ecdhe | KeyExchange::EcdhePsk
    );
    ephemeral && suite.is_aead() && !suite.is_anonymous()
}

/// Whether a suite uses DHE (finite field) before TLS 1.3 (RFC 10015 section 3). Anonymous suites have
/// a rule of their own.
pub(super) fn is_dhe(suite: Suite) -> bool {
    matches!(suite.key_exchange(), KeyExchange::Dhe | KeyExchange::DhePsk) && !suite.is_anonymous()
}

/// The best level of an endpoint that accepts only this group; `Unknown` if the name is unknown.
pub fn group(name: &str) -> Level {
    match Group::from_name(name) {
        // Draft versions of Kyber are not the standard, and are being retired.
        Some(group) if group.is_post_quantum() && name.contains("MLKEM") => Level::Strong,
        // RFC 9325 section 4.5: curves shorter than 224 bits.
        Some(group) if group.bits < 112 => Level::Weak,
        Some(_) => Level::Acceptable,
        None => Level::Unknown,
    }
}

/// The best level of an endpoint that signs with this scheme (RFC 9155); `Unknown` if the name is
/// unknown.
pub fn signature(name: &str) -> Level {
    match crate::names::SCHEMES.iter().copied().find(|scheme| scheme.name == name) {
        Some(scheme) if SignatureScheme::is_weak(scheme) => Level::Weak,
        Some(_) => Level::Strong,
        None => Level::Unknown,
    }
}
