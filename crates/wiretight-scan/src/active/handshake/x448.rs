//! X448 (RFC 7748), which aws-lc-rs lacks.
//!
//! The computation is not constant-time and reveals the private key, which is acceptable because the secret protects
//! only a scanner's request.

use num_bigint::BigUint;

use super::{Failure, malformed};

/// The length of a private key, a public key and a secret.
pub(super) const LENGTH: usize = 56;

/// The public key for a private key.
pub(super) fn public(private: &[u8; LENGTH]) -> [u8; LENGTH] {
    let mut base = [0; LENGTH];
    base[0] = 5;
    multiply(private, &base)
}

/// The shared secret. Fails if it is all zeros, as from a point of small order (RFC 8446 section 7.4.2).
pub(super) fn secret(private: &[u8; LENGTH], public: &[u8]) -> Result<Vec<u8>, Failure> {
    let public = public.try_into().map_err(|_| malformed("a key share of a wrong length"))?;
    let secret = multiply(private, public);
    match secret == [0; LENGTH] {
        true => Err(malformed("an invalid key share")),
        false => Ok(secret.to_vec()),
    }
}

/// The Montgomery ladder of RFC 7748 section 5, with the names of the RFC.
fn multiply(scalar: &[u8; LENGTH], u: &[u8; LENGTH]) -> [u8; LENGTH] {
    let one = BigUint::from(1u8);
    let p: BigUint = (&one << 448) - (&one << 224) - &one;
    let a24 = BigUint::from(39081u32);
    let add = |a: &BigUint, b: &BigUint| (a + b) % &p;
    let sub = |a: &BigUint, b: &BigUint| (a + &p - b) % &p;
    let mul = |a: &BigUint, b: &BigUint| (a * b) % &p;

    let mut scalar = *scalar;
    scalar[0] &= 252;
    scalar[LENGTH - 1] |= 128;
    let k = BigUint::from_bytes_le(&scalar);
    let x1 = BigUint::from_bytes_le(u) % &p;
    let (mut x2, mut z2) = (one.clone(), BigUint::ZERO);
    let (mut x3, mut z3) = (x1.clone(), one);
    for t in (0..448).rev() {
        let swapped = k.bit(t);
        if swapped {
            (x2, z2, x3, z3) = (x3, z3, x2, z2);
        }
        let (a, b) = (add(&x2, &z2), sub(&x2, &z2));
        let (aa, bb) = (mul(&a, &a), mul(&b, &b));
        let e = sub(&aa, &bb);
        let (da, cb) = (mul(&sub(&x3, &z3), &a), mul(&add(&x3, &z3), &b));
        let (sum, difference) = (add(&da, &cb), sub(&da, &cb));
        x3 = mul(&sum, &sum);
        z3 = mul(&x1, &mul(&difference, &difference));
        x2 = mul(&aa, &bb);
        z2 = mul(&e, &add(&aa, &mul(&a24, &e)));
        if swapped {
            (x2, z2, x3, z3) = (x3, z3, x2, z2);
        }
    }
    let inverse = z2.modpow(&(&p - 2u8), &p);
    let mut out = [0; LENGTH];
    let bytes = mul(&x2, &inverse).to_bytes_le();
    out[..bytes.len()].copy_from_slice(&bytes);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> [u8; LENGTH] {
        std::array::from_fn(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap())
    }

    #[test]
    fn it_is_that_of_rfc_7748() {
        // Section 5.2.
        for (scalar, u, product) in [
            (
                "3d262fddf9ec8e88495266fea19a34d28882acef045104d0d1aae121700a779c984c24f8cdd78fbff44943eba368f54b29259a4f1c600ad3",
                "06fce640fa3487bfda5f6cf2d5263f8aad88334cbd07437f020f08f9814dc031ddbdc38c19c6da2583fa5429db94ada18aa7a7fb4ef8a086",
                "ce3e4ff95a60dc6697da1db1d85e6afbdf79b50a2412d7546d5f239fe14fbaadeb445fc66a01b0779d98223961111e21766282f73dd96b6f",
            ),
            (
                "203d494428b8399352665ddca42f9de8fef600908e0d461cb021f8c538345dd77c3e4806e25f46d3315c44e0a5b4371282dd2c8d5be3095f",
                "0fbcc2f993cd56d3305b0b7d9e55d4c1a8fb5dbb52f8e9a1e9b6201b165d015894e56c4d3570bee52fe205e28a78b91cdfbde71ce8d157db",
                "884a02576239ff7a2f2f63b2db6a9ff37047ac13568e1e30fe63c4a7ad1b3ee3a5700df34321d62077e63633c575c1c954514e99da7c179d",
            ),
        ] {
            assert_eq!(multiply(&hex(scalar), &hex(u)), hex(product));
        }
        // The same section, after one iteration.
        let mut k = [0; LENGTH];
        k[0] = 5;
        assert_eq!(
            public(&k),
            hex(
                "3f482c8a9f19b01e6c46ee9711d9dc14fd4bf67af30765c2ae2b846a4d23a8cd0db897086239492caf350b51f833868b9bc2b3bca9cf4113"
            )
        );
    }

    #[test]
    fn both_sides_share_a_secret_and_points_of_small_order_give_none() {
        let (ours, theirs) = ([0x11; LENGTH], [0x22; LENGTH]);
        let secret_of_both = secret(&ours, &public(&theirs)).unwrap();
        assert_eq!(secret(&theirs, &public(&ours)).unwrap(), secret_of_both);
        // 0, 1, p - 1, p, p + 1.
        let mut p = [0xff; LENGTH];
        p[28] = 0xfe;
        let (mut less, mut one, mut more) = (p, [0; LENGTH], [0; LENGTH]);
        less[0] = 0xfe;
        one[0] = 1;
        more[28..].copy_from_slice(&p[28..]);
        more[28] = 0xff;
        for point in [[0; LENGTH], one, less, p, more] {
            assert!(secret(&ours, &point).is_err(), "{point:?}");
        }
        for n in [0, 55, 57] {
            assert!(secret(&ours, &vec![5; n]).is_err());
        }
    }
}
