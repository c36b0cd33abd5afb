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
    match Suite::from_name(name) {
        Some(suite) => of_suite(suite),
        // SSL 2.0 has its own suites, and all of them are weak.
        None if name.starts_with("SSL_CK_") => Level::Weak,
        None => Level::Unknown,
    }
}

/// The same, for a known suite.
pub fn of_suite(suite: Suite) -> Level {
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
    Group::from_name(name).map_or(Level::Unknown, of_group)
}

/// The same, for a known group.
pub fn of_group(group: Group) -> Level {
    match group.bits {
        // Draft versions of Kyber are not the standard, and are being retired.
        _ if group.is_post_quantum() && group.name.contains("MLKEM") => Level::Strong,
        // RFC 9325 section 4.5: curves shorter than 224 bits.
        0..112 => Level::Weak,
        _ => Level::Acceptable,
    }
}

/// The best level of an endpoint that signs with this scheme (RFC 9155); `Unknown` if the name is
/// unknown.
pub fn signature(name: &str) -> Level {
    let known = crate::names::SCHEMES.iter().copied().find(|scheme| scheme.name == name);
    known.map_or(Level::Unknown, of_signature)
}

/// The same, for a known scheme.
pub fn of_signature(scheme: SignatureScheme) -> Level {
    match scheme.is_weak() {
        true => Level::Weak,
        false => Level::Strong,
    }
}

/// The best level with a leaf key of this type, such as `rsa-1024` (RFC 9325 section 4.5; NIST SP 800-57 part 1
/// section 5.6). A name without a size does not count as short.
pub fn certificate_key(key: &str) -> Level {
    match is_short(key) {
        true => Level::Weak,
        false => Level::Strong,
    }
}

/// The best level with a leaf that is signed like this, such as `rsa-pkcs1-sha1` (RFC 9325 section 4.5).
pub fn certificate_signature(signature: &str) -> Level {
    match crate::certificate::weak_hash(signature) {
        Some(_) => Level::Weak,
        None => Level::Strong,
    }
}

/// Whether a key such as `rsa-1024` has less than 112 bits of strength.
pub(super) fn is_short(key: &str) -> bool {
    let Some((kind, rest)) = key.split_once('-') else { return false };
    // `2048`, `pss-2048`; `p256`, `secp256k1`, `brainpoolp256r1`. An unknown curve is an OID, with many numbers.
    let digits = rest.trim_start_matches(|c: char| !c.is_ascii_digit());
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    let Ok(bits) = digits[..end].parse::<u32>() else { return false };
    match kind {
        "rsa" | "dsa" => bits < 2048,
        "ecdsa" => !rest.contains('.') && bits < 224,
        _ => false,
    }
}
