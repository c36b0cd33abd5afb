//! Algorithms in the terms of CycloneDX: primitive, family, parameter set.

use serde_json::{Value, json};

use crate::names::{Bulk, Group, GroupKind, KeyExchange, Suite};

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Algorithm {
    /// `AES-128-GCM`; unique.
    pub name: String,
    primitive: &'static str,
    family: Option<&'static str>,
    parameter: Option<String>,
    curve: Option<String>,
    mode: Option<&'static str>,
    functions: &'static [&'static str],
    /// Bits of security against classical computers.
    bits: Option<u32>,
    /// NIST's security category; 0 if a quantum computer breaks the algorithm.
    quantum: Option<u8>,
}

impl Algorithm {
    fn new(name: impl Into<String>, primitive: &'static str) -> Self {
        Self {
            name: name.into(),
            primitive,
            family: None,
            parameter: None,
            curve: None,
            mode: None,
            functions: &[],
            bits: None,
            quantum: None,
        }
    }

    /// An algorithm of which only the name is known.
    pub(super) fn named(name: &str, primitive: &'static str) -> Self {
        Self::new(super::text::clean(name), primitive)
    }

    /// The reference for other components.
    pub(super) fn bom_ref(&self) -> String {
        format!("algorithm:{}", self.name)
    }

    /// The `algorithmProperties` object.
    pub(super) fn properties(&self) -> Value {
        let mut properties = json!({ "primitive": self.primitive });
        let mut put = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                properties[key] = value;
            }
        };
        put("algorithmFamily", self.family.map(Value::from));
        put("parameterSetIdentifier", self.parameter.clone().map(Value::from));
        put("ellipticCurve", self.curve.clone().map(Value::from));
        put("mode", self.mode.map(Value::from));
        put("cryptoFunctions", (!self.functions.is_empty()).then(|| self.functions.into()));
        put("classicalSecurityLevel", self.bits.map(Value::from));
        put("nistQuantumSecurityLevel", self.quantum.map(Value::from));
        properties
    }
}

/// The algorithms of a cipher suite.
pub(super) fn of_suite(suite: Suite) -> Vec<Algorithm> {
    let mut parts = Vec::new();
    parts.extend(key_exchange(suite));
    if suite.is_forward_secret() && !suite.is_anonymous() {
        parts.extend(match suite.authentication() {
            Some("rsa") => Some(signature("RSA", "RSASSA-PKCS1", 0)),
            Some("ecdsa") => Some(signature("ECDSA", "ECDSA", 0)),
            Some("dsa") => Some(signature("DSA", "DSA", 0)),
            _ => None,
        });
    }
    parts.extend(cipher(suite));
    parts.push(hash(suite));
    parts
}

fn key_exchange(suite: Suite) -> Option<Algorithm> {
    let agree = |name: &str, family| Algorithm {
        family: Some(family),
        functions: &["keygen", "keyderive"],
        quantum: Some(0),
        ..Algorithm::new(name, "key-agree")
    };
    Some(match suite.key_exchange() {
        KeyExchange::Ecdhe | KeyExchange::EcdhePsk => agree("ECDHE", "ECDH"),
        KeyExchange::Dhe | KeyExchange::DhePsk => agree("DHE", "FFDH"),
        KeyExchange::Ecdh => agree("ECDH", "ECDH"),
        KeyExchange::Dh => agree("DH", "FFDH"),
        KeyExchange::Rsa | KeyExchange::RsaPsk => Algorithm {
            family: Some("RSAES-PKCS1"),
            functions: &["encrypt", "decrypt"],
            quantum: Some(0),
            ..Algorithm::new("RSA-transport", "pke")
        },
        KeyExchange::Srp => agree("SRP", "SRP"),
        KeyExchange::Gost => agree("GOST-key-exchange", "GOST"),
        KeyExchange::Any | KeyExchange::Psk | KeyExchange::Krb5 | KeyExchange::Other => {
            return None;
        }
    })
}

fn cipher(suite: Suite) -> Option<Algorithm> {
    let (name, family) = match suite.bulk() {
        Bulk::Null => return None,
        Bulk::Rc4 => ("RC4", Some("RC4")),
        Bulk::Rc2 => ("RC2", Some("RC2")),
        Bulk::Des40 | Bulk::Des => ("DES", Some("DES")),
        Bulk::TripleDes => ("3DES", Some("3DES")),
        Bulk::Idea => ("IDEA", Some("IDEA")),
        Bulk::Seed => ("SEED", Some("SEED")),
        Bulk::Aes => ("AES", Some("AES")),
        Bulk::Camellia => ("CAMELLIA", Some("CAMELLIA")),
        Bulk::Aria => ("ARIA", Some("ARIA")),
        Bulk::ChaCha20 => ("ChaCha20-Poly1305", Some("ChaCha20")),
        Bulk::Sm4 => ("SM4", Some("SM4")),
        Bulk::Aegis => ("AEGIS", None),
        Bulk::Gost => ("GOST", Some("GOST")),
    };
    let bits = suite.bits();
    let mode = match suite.name {
        name if name.contains("_GCM") => Some("gcm"),
        name if name.contains("_CCM") => Some("ccm"),
        _ if suite.is_cbc() => Some("cbc"),
        _ => None,
    };
    let primitive = match suite.bulk() {
        _ if suite.is_aead() => "ae",
        Bulk::Rc4 => "stream-cipher",
        _ => "block-cipher",
    };
    let mut full = name.to_owned();
    if suite.bulk() != Bulk::ChaCha20 {
        full.push_str(&format!("-{bits}"));
    }
    if let Some(mode) = mode {
        full.push_str(&format!("-{}", mode.to_uppercase()));
        // CCM with an 8-byte tag is a different algorithm.
        full.push_str(if suite.name.contains("CCM_8") { "-8" } else { "" });
    }
    let quantum = match (suite.bulk(), bits) {
        (Bulk::Rc4, _) => 0,
        (_, ..128) => 0,
        (_, 128) => 1,
        (_, 192) => 3,
        _ => 5,
    };
    Some(Algorithm {
        family,
        parameter: Some(bits.to_string()),
        mode,
        functions: &["encrypt", "decrypt"],
        bits: Some(bits.into()),
        quantum: Some(quantum),
        ..Algorithm::new(full, primitive)
    })
}

/// The hash in a suite's name: for the MAC before TLS 1.2, for the key schedule since then.
fn hash(suite: Suite) -> Algorithm {
    let last = suite.name.rsplit('_').next().unwrap_or_default();
    let (name, family, bits, quantum) = match last {
        "MD5" => ("MD5", "MD5", 0, 0),
        "SHA" => ("SHA-1", "SHA-1", 0, 0),
        "SHA384" => ("SHA-384", "SHA-2", 192, 4),
        "SHA512" => ("SHA-512", "SHA-2", 256, 5),
        "SM3" => ("SM3", "SM3", 128, 2),
        // The names of CCM suites contain no hash; they use SHA-256.
        _ => ("SHA-256", "SHA-2", 128, 2),
    };
    let size = name.strip_prefix("SHA-").filter(|size| size.len() == 3);
    Algorithm {
        family: Some(family),
        parameter: size.map(str::to_owned),
        functions: &["digest"],
        bits: Some(bits),
        quantum: Some(quantum),
        ..Algorithm::new(name, "hash")
    }
}

/// The algorithm of a key-exchange group.
pub(super) fn of_group(group: Group) -> Algorithm {
    let bits = Some(u32::from(group.bits));
    let digits = |name: &str| name.trim_start_matches(|c: char| !c.is_ascii_digit()).to_owned();
    let strength = |name: &str| match name.rsplit("MLKEM").next() {
        Some("512") => 1,
        Some("1024") => 5,
        _ => 3,
    };
    match group.kind {
        GroupKind::Elliptic => Algorithm {
            family: Some(if group.name.starts_with("GC") { "GOST" } else { "ECDH" }),
            curve: curve(group.name),
            functions: &["keygen", "keyderive"],
            bits,
            quantum: Some(0),
            ..Algorithm::new(group.name, "key-agree")
        },
        GroupKind::FiniteField => Algorithm {
            family: Some("FFDH"),
            parameter: Some(digits(group.name)),
            functions: &["keygen", "keyderive"],
            bits,
            quantum: Some(0),
            ..Algorithm::new(group.name, "key-agree")
        },
        GroupKind::PostQuantum => Algorithm {
            family: Some("ML-KEM"),
            parameter: Some(digits(group.name)),
            functions: &["keygen", "encapsulate", "decapsulate"],
            bits,
            quantum: Some(strength(group.name)),
            ..Algorithm::new(group.name, "kem")
        },
        GroupKind::Hybrid => Algorithm {
            functions: &["keygen", "encapsulate", "decapsulate"],
            bits,
            quantum: Some(strength(group.name)),
            ..Algorithm::new(group.name, "combiner")
        },
    }
}

/// The curve's name in the CycloneDX registry, if it is registered.
fn curve(name: &str) -> Option<String> {
    match name {
        "x25519" => Some("other/Curve25519".to_owned()),
        "x448" => Some("other/Curve448".to_owned()),
        "curveSM2" => Some("oscaa/SM2".to_owned()),
        "sect283r1" => None,
        _ if name.starts_with("sec") => Some(format!("secg/{name}")),
        _ if name.starts_with("brainpool") => {
            Some(format!("brainpool/{}", name.trim_end_matches("tls13")))
        }
        _ => None,
    }
}

/// The algorithm of a certificate's signature (`ecdsa-sha384`) or key (`rsa-2048`).
pub(super) fn of_certificate(name: &str) -> Algorithm {
    let (family, quantum) = match name {
        _ if name.starts_with("rsa-pss") || name.starts_with("rsa_pss") => ("RSASSA-PSS", 0),
        _ if name.starts_with("rsa") => ("RSASSA-PKCS1", 0),
        _ if name.starts_with("ecdsa") => ("ECDSA", 0),
        _ if name.starts_with("ed") => ("EdDSA", 0),
        _ if name.starts_with("dsa") => ("DSA", 0),
        _ if name.starts_with("sm2") => ("SM2", 0),
        _ if name.starts_with("slh") => ("SLH-DSA", 1),
        "mldsa-44" => ("ML-DSA", 2),
        "mldsa-65" => ("ML-DSA", 3),
        "mldsa-87" => ("ML-DSA", 5),
        _ => return Algorithm::new(name, "signature"),
    };
    signature(name, family, quantum)
}

fn signature(name: &str, family: &'static str, quantum: u8) -> Algorithm {
    Algorithm {
        family: Some(family),
        functions: &["sign", "verify"],
        quantum: Some(quantum),
        ..Algorithm::new(name, "signature")
    }
}
