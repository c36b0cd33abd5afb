//! The best level that a version, a cipher suite, a group or a signature scheme allows, by its name alone.

use std::borrow::Cow;
use std::sync::LazyLock;

use super::Level;
use crate::names::{Bulk, Group, KeyExchange, SignatureScheme, Suite, Version, suites};

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

/// The same, for a known suite. A monitor asks for each flow, so the names are read once.
pub fn of_suite(suite: Suite) -> Level {
    static ALL: LazyLock<Vec<Level>> =
        LazyLock::new(|| suites().iter().map(|suite| by_name(*suite)).collect());
    let at = suites().binary_search_by_key(&suite.code, |suite| suite.code);
    at.ok().and_then(|at| ALL.get(at).copied()).unwrap_or_else(|| by_name(suite))
}

fn by_name(suite: Suite) -> Level {
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

// ---- SSH (IANA, Secure Shell Protocol Parameters; RFC 9142). `Unknown` if the name is unknown.

/// The best level with this key exchange.
pub fn ssh_key_exchange(name: &str) -> Level {
    match name {
        "mlkem768x25519-sha256"
        | "mlkem768nistp256-sha256"
        | "mlkem1024nistp384-sha384"
        | "sntrup761x25519-sha512"
        | "sntrup761x25519-sha512@openssh.com" => Level::Strong,
        // The first version of the hybrid, whose post-quantum part has known weaknesses.
        "sntrup4591761x25519-sha512@tinyssh.org" => Level::Acceptable,
        "curve25519-sha256"
        | "curve25519-sha256@libssh.org"
        | "curve448-sha512"
        | "ecdh-sha2-nistp256"
        | "ecdh-sha2-nistp384"
        | "ecdh-sha2-nistp521"
        | "diffie-hellman-group14-sha256"
        | "diffie-hellman-group15-sha512"
        | "diffie-hellman-group16-sha512"
        | "diffie-hellman-group17-sha512"
        | "diffie-hellman-group18-sha512"
        // The size of its prime is judged by itself.
        | "diffie-hellman-group-exchange-sha256" => Level::Acceptable,
        _ if name.ends_with("-sha1") => Level::Weak,
        _ if name.starts_with("gss-") && name.contains("-sha1-") => Level::Weak,
        _ if name.starts_with("gss-") => Level::Acceptable,
        _ => Level::Unknown,
    }
}

/// The best level with this host key algorithm.
pub fn ssh_host_key(name: &str) -> Level {
    let name = name.strip_suffix("-cert-v01@openssh.com").unwrap_or(name);
    match name {
        // SHA-1 (RFC 8332 section 1; RFC 9142 section 4 for DSA).
        "ssh-rsa" | "ssh-dss" | "x509v3-ssh-rsa" | "x509v3-ssh-dss" | "x509v3-sign-rsa"
        | "x509v3-sign-dss" | "spki-sign-rsa" | "spki-sign-dss" | "null" => Level::Weak,
        "ssh-ed25519"
        | "ssh-ed448"
        | "rsa-sha2-256"
        | "rsa-sha2-512"
        | "sk-ssh-ed25519@openssh.com" => Level::Strong,
        _ if name.starts_with("ecdsa-sha2-nistp")
            || name.starts_with("sk-ecdsa-sha2-nistp256@")
            || name.starts_with("x509v3-ecdsa-sha2-nistp")
            || name.starts_with("x509v3-rsa2048-sha256") =>
        {
            Level::Strong
        }
        _ => Level::Unknown,
    }
}

/// The best level with this cipher, and this MAC if the cipher has none of its own.
pub fn ssh_cipher(cipher: &str, mac: &str) -> Level {
    match cipher {
        "none" => Level::Plaintext,
        "aes128-gcm@openssh.com"
        | "aes256-gcm@openssh.com"
        | "AEAD_AES_128_GCM"
        | "AEAD_AES_256_GCM"
        | "chacha20-poly1305"
        | "chacha20-poly1305@openssh.com" => Level::Strong,
        "aes128-ctr" | "aes192-ctr" | "aes256-ctr" => match mac {
            // RFC 6151: MD5. Without a MAC, an attacker on the path can change what is sent.
            "none" => Level::Weak,
            _ if mac.starts_with("hmac-md5") => Level::Weak,
            _ if mac.contains("-etm@") => Level::Strong,
            _ if mac.starts_with("hmac-") || mac.starts_with("umac-") => Level::Acceptable,
            _ => Level::Unknown,
        },
        // RFC 8758 for RC4; CBC leaks plaintext (CVE-2008-5161); 64-bit blocks (CVE-2016-2183).
        _ if cipher.ends_with("-cbc")
            || cipher.starts_with("arcfour")
            || cipher.starts_with("3des-")
            || cipher.starts_with("blowfish-")
            || cipher.starts_with("cast128-")
            || cipher.starts_with("idea-")
            || cipher.starts_with("rijndael-cbc@") =>
        {
            Level::Weak
        }
        _ => Level::Unknown,
    }
}

// ---- IKE (IANA, IKEv2 Transform Type Values; RFC 8247, RFC 9395).

/// The name and the best level of a transform, by its type (1 cipher, 2 PRF, 3 integrity, 4 and 6 to 12 key exchange) and
/// its number. `Unknown` if it is unknown.
pub fn ike(kind: u8, id: u16) -> (Cow<'static, str>, Level) {
    use Level::*;
    let known = match (kind, id) {
        (1, 1..=2) => ("DES", Weak),
        (1, 3) => ("3DES", Weak),
        (1, 4..=8) => ("a 64-bit block cipher", Weak),
        (1, 11) => ("NULL", Plaintext),
        (1, 12) => ("AES-CBC", Acceptable),
        (1, 13) => ("AES-CTR", Acceptable),
        (1, 14..=16) => ("AES-CCM", Strong),
        (1, 18..=20) => ("AES-GCM", Strong),
        (1, 23) => ("Camellia-CBC", Acceptable),
        (1, 28) => ("ChaCha20-Poly1305", Strong),
        (2, 1) => ("PRF-HMAC-MD5", Weak),
        (2, 2) => ("PRF-HMAC-SHA1", Acceptable),
        (2, 4 | 8) => ("PRF-AES", Strong),
        (2, 5) => ("PRF-HMAC-SHA2-256", Strong),
        (2, 6) => ("PRF-HMAC-SHA2-384", Strong),
        (2, 7) => ("PRF-HMAC-SHA2-512", Strong),
        (3, 0) => ("no separate integrity", Strong),
        (3, 1 | 6) => ("HMAC-MD5", Weak),
        (3, 2 | 7) => ("HMAC-SHA1", Acceptable),
        (3, 3 | 4) => ("DES-MAC", Weak),
        (3, 5 | 8) => ("AES-MAC", Acceptable),
        (3, 9..=11) => ("AES-GMAC", Strong),
        (3, 12) => ("HMAC-SHA2-256", Strong),
        (3, 13) => ("HMAC-SHA2-384", Strong),
        (3, 14) => ("HMAC-SHA2-512", Strong),
        (4, 1) => ("modp768", Weak),
        (4, 2) => ("modp1024", Weak),
        (4, 5) => ("modp1536", Weak),
        (4, 14) => ("modp2048", Acceptable),
        (4, 15) => ("modp3072", Acceptable),
        (4, 16) => ("modp4096", Acceptable),
        (4, 17) => ("modp6144", Acceptable),
        (4, 18) => ("modp8192", Acceptable),
        (4, 19) => ("secp256r1", Acceptable),
        (4, 20) => ("secp384r1", Acceptable),
        (4, 21) => ("secp521r1", Acceptable),
        // RFC 8247 section 2.4: not to be used.
        (4, 22..=24) => ("modp with a subgroup", Weak),
        (4, 25) => ("secp192r1", Weak),
        (4, 26) => ("secp224r1", Acceptable),
        (4, 27..=30) => ("brainpool", Acceptable),
        (4, 31) => ("x25519", Acceptable),
        (4, 32) => ("x448", Acceptable),
        (4 | 6..=12, 35) => ("ML-KEM-512", Strong),
        (4 | 6..=12, 36) => ("ML-KEM-768", Strong),
        (4 | 6..=12, 37) => ("ML-KEM-1024", Strong),
        (6..=12, 0) => ("none", Acceptable),
        (5, _) => ("ESN", Strong),
        _ => return (format!("{kind}/{id}").into(), Unknown),
    };
    (known.0.into(), known.1)
}
