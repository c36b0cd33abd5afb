//! Keys and signatures: their names, their strength, and verification.

use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};

use super::encoding::{self as asn1, Malformed, Reader, Tlv, dotted};

/// A public key from a SubjectPublicKeyInfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key<'a> {
    pub(super) kind: Kind,
    /// The name in reports: `rsa-2048`.
    pub(super) name: String,
    pub(super) bits: u32,
    /// The contents of the BIT STRING.
    pub(super) raw: &'a [u8],
    /// The modulus of an RSA key.
    pub(super) modulus: Option<&'a [u8]>,
}

/// The type of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Rsa,
    P256,
    P384,
    P521,
    OtherCurve,
    Ed25519,
    Ed448,
    Dsa,
    MlDsa44,
    MlDsa65,
    MlDsa87,
    Unknown,
}

impl<'a> Key<'a> {
    pub(super) fn read(spki: Tlv<'a>) -> Result<Self, Malformed> {
        let mut spki = spki.inside();
        let mut algorithm = spki.expect(asn1::SEQUENCE, "the key has no algorithm")?.inside();
        let raw = spki.expect(asn1::BIT_STRING, "the key is not a BIT STRING")?.bits()?;
        let oid = dotted(algorithm.expect(asn1::OID, "the key's algorithm has no OID")?.value);
        let parameters = algorithm.next().ok();
        let len = u32::try_from(raw.len()).unwrap_or(u32::MAX);
        let (kind, name, bits, modulus) = match oid.as_str() {
            "1.2.840.113549.1.1.1" | "1.2.840.113549.1.1.10" => {
                let mut rsa =
                    Reader(raw).expect(asn1::SEQUENCE, "an RSA key is not a pair")?.inside();
                let modulus = rsa.expect(asn1::INTEGER, "an RSA key has no modulus")?.value;
                let bits = bits_of(modulus);
                let pss = if oid.ends_with(".10") { "pss-" } else { "" };
                (Kind::Rsa, format!("rsa-{pss}{bits}"), bits, Some(modulus))
            }
            "1.2.840.10045.2.1" => {
                let curve = parameters.filter(|p| p.tag == asn1::OID).map(|p| dotted(p.value));
                let (kind, name, bits) = match curve.as_deref() {
                    Some("1.2.840.10045.3.1.7") => (Kind::P256, "p256", 256),
                    Some("1.3.132.0.34") => (Kind::P384, "p384", 384),
                    Some("1.3.132.0.35") => (Kind::P521, "p521", 521),
                    Some("1.3.132.0.33") => (Kind::OtherCurve, "p224", 224),
                    Some("1.2.840.10045.3.1.1") => (Kind::OtherCurve, "p192", 192),
                    Some("1.3.132.0.8") => (Kind::OtherCurve, "secp160r1", 160),
                    Some("1.3.132.0.9") => (Kind::OtherCurve, "secp160k1", 160),
                    Some("1.3.132.0.30") => (Kind::OtherCurve, "secp160r2", 160),
                    Some("1.3.132.0.31") => (Kind::OtherCurve, "secp192k1", 192),
                    Some("1.3.132.0.32") => (Kind::OtherCurve, "secp224k1", 224),
                    Some("1.3.36.3.3.2.8.1.1.1") => (Kind::OtherCurve, "brainpoolp160r1", 160),
                    Some("1.3.36.3.3.2.8.1.1.3") => (Kind::OtherCurve, "brainpoolp192r1", 192),
                    Some("1.3.36.3.3.2.8.1.1.5") => (Kind::OtherCurve, "brainpoolp224r1", 224),
                    Some("1.3.36.3.3.2.8.1.1.9") => (Kind::OtherCurve, "brainpoolp320r1", 320),
                    Some("1.3.132.0.10") => (Kind::OtherCurve, "secp256k1", 256),
                    Some("1.3.36.3.3.2.8.1.1.7") => (Kind::OtherCurve, "brainpoolp256r1", 256),
                    Some("1.3.36.3.3.2.8.1.1.11") => (Kind::OtherCurve, "brainpoolp384r1", 384),
                    Some("1.3.36.3.3.2.8.1.1.13") => (Kind::OtherCurve, "brainpoolp512r1", 512),
                    Some("1.2.156.10197.1.301") => (Kind::OtherCurve, "sm2", 256),
                    // A point is 04 and two coordinates, or 02 or 03 and one.
                    other => {
                        let coordinates = if raw.first() == Some(&4) { 2 } else { 1 };
                        let bits = len.saturating_sub(1).saturating_mul(8) / coordinates;
                        (Kind::OtherCurve, other.unwrap_or("explicit"), bits)
                    }
                };
                (kind, format!("ecdsa-{name}"), bits, None)
            }
            "1.3.101.112" => (Kind::Ed25519, "ed25519".to_owned(), 256, None),
            "1.3.101.113" => (Kind::Ed448, "ed448".to_owned(), 448, None),
            "1.2.840.10040.4.1" => {
                // If the parameters are inherited from the issuer, use the size of the public value.
                let prime = parameters.and_then(|p| p.inside().expect(asn1::INTEGER, "").ok());
                let number = match prime {
                    Some(prime) => prime,
                    None => Reader(raw).expect(asn1::INTEGER, "a DSA key is not a number")?,
                };
                let bits = bits_of(number.value);
                (Kind::Dsa, format!("dsa-{bits}"), bits, None)
            }
            "2.16.840.1.101.3.4.3.17" => (Kind::MlDsa44, "mldsa-44".to_owned(), len * 8, None),
            "2.16.840.1.101.3.4.3.18" => (Kind::MlDsa65, "mldsa-65".to_owned(), len * 8, None),
            "2.16.840.1.101.3.4.3.19" => (Kind::MlDsa87, "mldsa-87".to_owned(), len * 8, None),
            other => {
                let name = slh_dsa(other).map_or_else(|| other.to_owned(), str::to_owned);
                (Kind::Unknown, name, len.saturating_mul(8), None)
            }
        };
        Ok(Self { kind, name, bits, raw, modulus })
    }

    /// The approximate security strength in bits (NIST SP 800-57 part 1, table 2; FIPS 204, table 1), to
    /// compare keys of different types. `None` if unknown.
    pub(super) fn strength(&self) -> Option<u32> {
        Some(match self.kind {
            Kind::Rsa | Kind::Dsa => match self.bits {
                0..1024 => self.bits / 16,
                1024..2048 => 80,
                2048..3072 => 112,
                3072..7680 => 128,
                7680..15360 => 192,
                15360.. => 256,
            },
            Kind::P256 | Kind::P384 | Kind::P521 | Kind::OtherCurve => self.bits / 2,
            Kind::Ed25519 | Kind::MlDsa44 => 128,
            Kind::Ed448 => 224,
            Kind::MlDsa65 => 192,
            Kind::MlDsa87 => 256,
            Kind::Unknown => return None,
        })
    }
}

/// The number of bits of an INTEGER, assumed to be positive.
fn bits_of(integer: &[u8]) -> u32 {
    let zeros = integer.iter().take_while(|byte| **byte == 0).count();
    let bits = integer[zeros..].len() * 8;
    let top = integer.get(zeros).map_or(0, |byte| byte.leading_zeros());
    u32::try_from(bits).unwrap_or(u32::MAX).saturating_sub(top)
}

/// The parameter sets of FIPS 205, by their NIST OIDs.
fn slh_dsa(oid: &str) -> Option<&'static str> {
    const NAMES: [&str; 12] = [
        "slhdsa-sha2-128s",
        "slhdsa-sha2-128f",
        "slhdsa-sha2-192s",
        "slhdsa-sha2-192f",
        "slhdsa-sha2-256s",
        "slhdsa-sha2-256f",
        "slhdsa-shake-128s",
        "slhdsa-shake-128f",
        "slhdsa-shake-192s",
        "slhdsa-shake-192f",
        "slhdsa-shake-256s",
        "slhdsa-shake-256f",
    ];
    let number: usize = oid.strip_prefix("2.16.840.1.101.3.4.3.")?.parse().ok()?;
    NAMES.get(number.checked_sub(20)?).copied()
}

/// The name of a signature algorithm: `rsa-pkcs1-sha256`.
///
/// For RSA and (EC)DSA, the part after the last `-` is the hash.
pub(super) fn signature_name(algorithm: Tlv<'_>) -> String {
    let mut inside = algorithm.inside();
    let Ok(oid) = inside.expect(asn1::OID, "") else { return "unreadable".to_owned() };
    let oid = dotted(oid.value);
    let name = match oid.as_str() {
        "1.2.840.113549.1.1.2" => "rsa-pkcs1-md2",
        "1.2.840.113549.1.1.3" => "rsa-pkcs1-md4",
        "1.2.840.113549.1.1.4" | "1.3.14.3.2.3" => "rsa-pkcs1-md5",
        "1.2.840.113549.1.1.5" | "1.3.14.3.2.29" => "rsa-pkcs1-sha1",
        "1.2.840.113549.1.1.14" => "rsa-pkcs1-sha224",
        "1.2.840.113549.1.1.11" => "rsa-pkcs1-sha256",
        "1.2.840.113549.1.1.12" => "rsa-pkcs1-sha384",
        "1.2.840.113549.1.1.13" => "rsa-pkcs1-sha512",
        "2.16.840.1.101.3.4.3.14" => "rsa-pkcs1-sha3_256",
        "2.16.840.1.101.3.4.3.15" => "rsa-pkcs1-sha3_384",
        "2.16.840.1.101.3.4.3.16" => "rsa-pkcs1-sha3_512",
        "1.2.840.113549.1.1.10" => return format!("rsa-pss-{}", pss_parameters(inside)),
        "1.2.840.10045.4.1" => "ecdsa-sha1",
        "1.2.840.10045.4.3.1" => "ecdsa-sha224",
        "1.2.840.10045.4.3.2" => "ecdsa-sha256",
        "1.2.840.10045.4.3.3" => "ecdsa-sha384",
        "1.2.840.10045.4.3.4" => "ecdsa-sha512",
        "2.16.840.1.101.3.4.3.10" => "ecdsa-sha3_256",
        "2.16.840.1.101.3.4.3.11" => "ecdsa-sha3_384",
        "2.16.840.1.101.3.4.3.12" => "ecdsa-sha3_512",
        "1.2.840.10040.4.3" | "1.3.14.3.2.27" => "dsa-sha1",
        "2.16.840.1.101.3.4.3.1" => "dsa-sha224",
        "2.16.840.1.101.3.4.3.2" => "dsa-sha256",
        "2.16.840.1.101.3.4.3.3" => "dsa-sha384",
        "2.16.840.1.101.3.4.3.4" => "dsa-sha512",
        "1.3.101.112" => "ed25519",
        "1.3.101.113" => "ed448",
        "2.16.840.1.101.3.4.3.17" => "mldsa-44",
        "2.16.840.1.101.3.4.3.18" => "mldsa-65",
        "2.16.840.1.101.3.4.3.19" => "mldsa-87",
        "1.2.156.10197.1.501" => "sm2-sm3",
        other => return slh_dsa(other).map_or_else(|| other.to_owned(), str::to_owned),
    };
    name.to_owned()
}

/// The hash in RSASSA-PSS-params (RFC 4055, 3.1), by default SHA-1. Unusual parameters, with which
/// signatures cannot be checked here, are put before it.
fn pss_parameters(algorithm: Reader<'_>) -> String {
    let read = |mut algorithm: Reader<'_>| {
        let mut params = algorithm.expect(asn1::SEQUENCE, "")?.inside();
        let hash_in = |mut inside: Reader<'_>| -> Result<String, Malformed> {
            let oid = inside.expect(asn1::SEQUENCE, "")?.inside().expect(asn1::OID, "")?.value;
            Ok(hash_name(oid).map_or_else(|| dotted(oid), str::to_owned))
        };
        let (mut hash, mut mask, mut salt) = ("sha1".to_owned(), "sha1".to_owned(), 20);
        if let Some(given) = params.optional(asn1::explicit(0))? {
            hash = hash_in(given.inside())?;
        }
        if let Some(given) = params.optional(asn1::explicit(1))? {
            let mut function = given.inside().expect(asn1::SEQUENCE, "")?.inside();
            function.expect(asn1::OID, "")?;
            mask = hash_in(function)?;
        }
        if let Some(given) = params.optional(asn1::explicit(2))? {
            let number = given.inside().expect(asn1::INTEGER, "")?.value;
            salt = number.iter().take(4).fold(0, |n, byte| n << 8 | u32::from(*byte));
        }
        Ok::<_, Malformed>((hash, mask, salt))
    };
    let Ok((hash, mask, salt)) = read(algorithm) else { return "unreadable".to_owned() };
    let usual = match hash.as_str() {
        "sha256" => 32,
        "sha384" => 48,
        "sha512" => 64,
        _ => 20,
    };
    let mask = if mask == hash { String::new() } else { format!("mgf1_{mask}-") };
    let salt = if salt == usual { String::new() } else { format!("salt{salt}-") };
    format!("{mask}{salt}{hash}")
}

/// A hash function by its OID.
pub(super) fn hash_name(oid: &[u8]) -> Option<&'static str> {
    Some(match dotted(oid).as_str() {
        "1.2.840.113549.2.5" => "md5",
        "1.3.14.3.2.26" => "sha1",
        "2.16.840.1.101.3.4.2.4" => "sha224",
        "2.16.840.1.101.3.4.2.1" => "sha256",
        "2.16.840.1.101.3.4.2.2" => "sha384",
        "2.16.840.1.101.3.4.2.3" => "sha512",
        _ => return None,
    })
}

/// The hash of a signature, if it is broken (RFC 6151, RFC 9155).
pub(crate) fn weak_hash(signature: &str) -> Option<&'static str> {
    let hash = signature.rsplit('-').next()?;
    ["md2", "md4", "md5", "sha1"].into_iter().find(|weak| *weak == hash)
}

/// The result of checking a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    Yes,
    No,
    /// The combination of signature and key is not supported.
    Unknown,
}

/// Checks a signature of the algorithm with this [name](signature_name).
pub(super) fn verify(key: &Key<'_>, algorithm: &str, message: &[u8], signature: &[u8]) -> Holds {
    // aws-lc-rs rejects RSA keys of other sizes, which does not mean that the signature is invalid.
    let large = key.kind == Kind::Rsa && (2048..=8192).contains(&key.bits);
    let small = key.kind == Kind::Rsa && (1024..=8192).contains(&key.bits);
    let by: &'static dyn VerificationAlgorithm = match (key.kind, algorithm) {
        (Kind::Rsa, "rsa-pkcs1-sha1") if small => {
            &signature::RSA_PKCS1_1024_8192_SHA1_FOR_LEGACY_USE_ONLY
        }
        (Kind::Rsa, "rsa-pkcs1-sha256") if small => {
            &signature::RSA_PKCS1_1024_8192_SHA256_FOR_LEGACY_USE_ONLY
        }
        (Kind::Rsa, "rsa-pkcs1-sha512") if small => {
            &signature::RSA_PKCS1_1024_8192_SHA512_FOR_LEGACY_USE_ONLY
        }
        (Kind::Rsa, "rsa-pkcs1-sha384") if large => &signature::RSA_PKCS1_2048_8192_SHA384,
        (Kind::Rsa, "rsa-pss-sha256") if large => &signature::RSA_PSS_2048_8192_SHA256,
        (Kind::Rsa, "rsa-pss-sha384") if large => &signature::RSA_PSS_2048_8192_SHA384,
        (Kind::Rsa, "rsa-pss-sha512") if large => &signature::RSA_PSS_2048_8192_SHA512,
        (Kind::P256, "ecdsa-sha1") => &signature::ECDSA_P256_SHA1_ASN1,
        (Kind::P256, "ecdsa-sha256") => &signature::ECDSA_P256_SHA256_ASN1,
        (Kind::P256, "ecdsa-sha384") => &signature::ECDSA_P256_SHA384_ASN1,
        (Kind::P256, "ecdsa-sha512") => &signature::ECDSA_P256_SHA512_ASN1,
        (Kind::P384, "ecdsa-sha256") => &signature::ECDSA_P384_SHA256_ASN1,
        (Kind::P384, "ecdsa-sha384") => &signature::ECDSA_P384_SHA384_ASN1,
        (Kind::P384, "ecdsa-sha512") => &signature::ECDSA_P384_SHA512_ASN1,
        (Kind::P521, "ecdsa-sha1") => &signature::ECDSA_P521_SHA1_ASN1,
        (Kind::P521, "ecdsa-sha224") => &signature::ECDSA_P521_SHA224_ASN1,
        (Kind::P521, "ecdsa-sha256") => &signature::ECDSA_P521_SHA256_ASN1,
        (Kind::P521, "ecdsa-sha384") => &signature::ECDSA_P521_SHA384_ASN1,
        (Kind::P521, "ecdsa-sha512") => &signature::ECDSA_P521_SHA512_ASN1,
        (Kind::Ed25519, "ed25519") => &signature::ED25519,
        (Kind::MlDsa44, "mldsa-44") => &signature::ML_DSA_44,
        (Kind::MlDsa65, "mldsa-65") => &signature::ML_DSA_65,
        (Kind::MlDsa87, "mldsa-87") => &signature::ML_DSA_87,
        _ if !fits(key.kind, algorithm) => return Holds::No,
        _ => return Holds::Unknown,
    };
    match UnparsedPublicKey::new(by, key.raw).verify(message, signature) {
        Ok(()) => Holds::Yes,
        Err(_) => Holds::No,
    }
}

/// Whether a key of this type can create such signatures.
fn fits(kind: Kind, algorithm: &str) -> bool {
    match kind {
        Kind::Rsa => algorithm.starts_with("rsa-"),
        Kind::P256 | Kind::P384 | Kind::P521 => algorithm.starts_with("ecdsa-"),
        Kind::OtherCurve => algorithm.starts_with("ecdsa-") || algorithm == "sm2-sm3",
        Kind::Ed25519 => algorithm == "ed25519",
        Kind::Ed448 => algorithm == "ed448",
        Kind::Dsa => algorithm.starts_with("dsa-"),
        Kind::MlDsa44 => algorithm == "mldsa-44",
        Kind::MlDsa65 => algorithm == "mldsa-65",
        Kind::MlDsa87 => algorithm == "mldsa-87",
        Kind::Unknown => true,
    }
}

/// Whether an RSA modulus has the pattern of keys from Infineon's library: it is a power of 65537 modulo
/// every small prime (CVE-2017-15361). One in 2^27 of other keys has it too.
pub(super) fn roca(modulus: &[u8]) -> bool {
    const PRIMES: [u32; 38] = [
        3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89,
        97, 101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167,
    ];
    !modulus.is_empty()
        && PRIMES.into_iter().all(|prime| {
            let rest = modulus.iter().fold(0, |n, byte| (n << 8 | u32::from(*byte)) % prime);
            let mut power = 1;
            for _ in 0..prime {
                if power == rest {
                    return true;
                }
                power = power * (65537 % prime) % prime;
            }
            false
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_infineons_library_are_told_from_others() {
        // A power of 65537 modulo the product of the primes is also one modulo each prime.
        let mut product = num_bigint::BigUint::from(1_u8);
        for prime in 2_u32..=167 {
            if (2..prime).all(|d| !prime.is_multiple_of(d)) {
                product *= prime;
            }
        }
        let power = num_bigint::BigUint::from(65537_u32).modpow(&123_456_789_u32.into(), &product);
        let marked: num_bigint::BigUint = power + (&product << 1500_u32);
        assert!(roca(&marked.to_bytes_be()));
        assert!(!roca(&(marked + 2_u8).to_bytes_be()));
        assert!(!roca(&[]) && !roca(&[0]));
    }

    #[test]
    fn bits_are_counted_from_the_first_that_is_set() {
        for (number, bits) in
            [(&[][..], 0), (&[0], 0), (&[1], 1), (&[0, 0x80, 0], 16), (&[5, 0], 11)]
        {
            assert_eq!(bits_of(number), bits, "{number:?}");
        }
    }
}
