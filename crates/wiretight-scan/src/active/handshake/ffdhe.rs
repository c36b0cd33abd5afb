//! The finite-field groups of TLS 1.3 (RFC 7919 appendix A).

use num_bigint::BigUint;

use super::shares::power;
use super::{Failure, malformed, random};

/// The client's half of a key exchange. The timing of the big integers depends on the exponent, which is acceptable
/// because the secret protects only a scanner's request.
pub(super) struct FfdheKey {
    p: BigUint,
    exponent: [u8; 32],
}

impl FfdheKey {
    /// A new key; `None` for other groups.
    pub(super) fn generate(group: u16) -> Option<Self> {
        Some(Self { p: prime(group)?, exponent: random() })
    }

    /// As long as the prime (RFC 8446 section 4.2.8.1).
    pub(super) fn public(&self) -> Result<Vec<u8>, Failure> {
        power(&[2], &self.exponent, &self.p.to_bytes_be())
    }

    /// The secret, as long as the prime (RFC 8446 section 7.4.1).
    pub(super) fn secret(&self, share: &[u8]) -> Result<Vec<u8>, Failure> {
        let p = self.p.to_bytes_be();
        if share.len() != p.len() {
            return Err(malformed("a key share of a wrong length"));
        }
        let y = BigUint::from_bytes_be(share);
        if y <= BigUint::from(1u8) || y >= &self.p - 1u8 {
            return Err(malformed("an invalid Diffie-Hellman share"));
        }
        power(share, &self.exponent, &p)
    }
}

/// `2^b - 2^(b-64) + {[2^(b-130) e] + X} * 2^64 - 1`, where `X` is the smallest number that gives a safe prime.
fn prime(group: u16) -> Option<BigUint> {
    let (bits, x) = match group {
        0x0100 => (2048_u32, 560_316_u32),
        0x0101 => (3072, 2_625_351),
        0x0102 => (4096, 5_736_041),
        0x0103 => (6144, 15_705_020),
        0x0104 => (8192, 10_965_728),
        _ => return None,
    };
    // e is the sum of 1/n!. Compute 64 more bits than needed, to allow for rounding.
    let mut term = BigUint::from(1u8) << (bits - 130 + 64);
    let (mut e, mut n) = (BigUint::ZERO, 0_u32);
    while term != BigUint::ZERO {
        e += &term;
        n += 1;
        term /= n;
    }
    let one = BigUint::from(1u8);
    Some((&one << bits) - (&one << (bits - 64)) + (((e >> 64_u32) + x) << 64_u32) - one)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_primes_are_those_of_rfc_7919() {
        for (group, bytes, end) in [
            (0x0100, 256, "886b423861285c97ffffffffffffffff"),
            (0x0101, 384, "25e41d2b66c62e37ffffffffffffffff"),
            (0x0102, 512, "c68a007e5e655f6affffffffffffffff"),
            (0x0103, 768, "a40e329cd0e40e65ffffffffffffffff"),
            (0x0104, 1024, "d68c8bb7c5c6424cffffffffffffffff"),
        ] {
            let p = prime(group).unwrap();
            let hex = format!("{p:x}");
            assert_eq!(hex.len(), 2 * bytes);
            assert!(hex.starts_with("ffffffffffffffffadf85458a2bb4a9aafdc5620273d3cf1"), "{hex}");
            assert!(hex.ends_with(end), "{hex}");
        }
        assert_eq!(prime(0x001d), None);
    }

    #[test]
    fn shares_that_give_no_secret_or_are_of_a_wrong_length_are_refused() {
        let (ours, theirs) =
            (FfdheKey::generate(0x0100).unwrap(), FfdheKey::generate(0x0100).unwrap());
        let (public, other) = (ours.public().unwrap(), theirs.public().unwrap());
        assert_eq!(public.len(), 256);
        let secret = ours.secret(&other).unwrap();
        assert_eq!(secret.len(), 256);
        assert_eq!(theirs.secret(&public).unwrap(), secret);

        let padded = |n: &BigUint| {
            let bytes = n.to_bytes_be();
            [vec![0; 256 - bytes.len()], bytes].concat()
        };
        let p = &ours.p;
        for refused in [BigUint::ZERO, 1u8.into(), p - 1u8, p.clone(), p + 1u8] {
            assert!(ours.secret(&padded(&refused)).is_err());
        }
        for taken in [BigUint::from(2u8), p - 2u8] {
            assert!(ours.secret(&padded(&taken)).is_ok());
        }
        assert!(ours.secret(&other[1..]).is_err());
        assert!(ours.secret(&[&[0], &other[..]].concat()).is_err());
        assert!(ours.secret(&[]).is_err());
    }
}
