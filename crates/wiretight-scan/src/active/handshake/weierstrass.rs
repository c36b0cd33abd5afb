//! The curves that aws-lc-rs lacks: Brainpool (RFC 5639, RFC 8734) and secp256k1 (SEC 2). A server whose certificate
//! has a key on one of them requires clients to list it.
//!
//! The computation is not constant-time and reveals the private key, which is acceptable because the secret protects
//! only a scanner's request.

use num_bigint::BigUint;

use super::{Failure, malformed, random};

/// `y^2 = x^3 + ax + b` modulo `p`, with a generator. Each has the cofactor 1.
struct Curve {
    p: BigUint,
    a: BigUint,
    b: BigUint,
    generator: (BigUint, BigUint),
}

/// `None` is the point at infinity.
type Point = Option<(BigUint, BigUint)>;

/// The client's half of a key exchange.
pub(super) struct WeierstrassKey {
    curve: Curve,
    private: BigUint,
}

impl WeierstrassKey {
    /// A new key; `None` for other groups.
    pub(super) fn generate(group: u16) -> Option<Self> {
        let private = BigUint::from_bytes_be(&random::<32>());
        Some(Self { curve: Curve::of(group)?, private })
    }

    /// Uncompressed, like all points in TLS.
    pub(super) fn public(&self) -> Result<Vec<u8>, Failure> {
        let (x, y) = self.multiplied(self.curve.generator.clone())?;
        Ok([&[4], &self.curve.bytes(&x)[..], &self.curve.bytes(&y)].concat())
    }

    /// The first coordinate of the shared point (RFC 8422 section 5.10).
    pub(super) fn secret(&self, share: &[u8]) -> Result<Vec<u8>, Failure> {
        let theirs = self.curve.point(share);
        let theirs =
            theirs.ok_or_else(|| malformed("a key share that is not a point on its curve"))?;
        let (x, _) = self.multiplied(theirs)?;
        Ok(self.curve.bytes(&x))
    }

    fn multiplied(&self, point: (BigUint, BigUint)) -> Result<(BigUint, BigUint), Failure> {
        let point = Some(point);
        let mut product = None;
        for n in (0..self.private.bits()).rev() {
            product = self.curve.sum(&product, &product);
            if self.private.bit(n) {
                product = self.curve.sum(&product, &point);
            }
        }
        product.ok_or_else(|| malformed("an invalid key share"))
    }
}

impl Curve {
    fn of(group: u16) -> Option<Self> {
        // p, a, b, and the generator.
        let parameters = match group {
            0x0016 => [
                "fffffffffffffffffffffffffffffffffffffffffffffffffffffffefffffc2f",
                "0",
                "7",
                "79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798",
                "483ada7726a3c4655da4fbfc0e1108a8fd17b448a68554199c47d08ffb10d4b8",
            ],
            0x001a | 0x001f => [
                "a9fb57dba1eea9bc3e660a909d838d726e3bf623d52620282013481d1f6e5377",
                "7d5a0975fc2c3057eef67530417affe7fb8055c126dc5c6ce94a4b44f330b5d9",
                "26dc5c6ce94a4b44f330b5d9bbd77cbf958416295cf7e1ce6bccdc18ff8c07b6",
                "8bd2aeb9cb7e57cb2c4b482ffc81b7afb9de27e1e3bd23c23a4453bd9ace3262",
                "547ef835c3dac4fd97f8461a14611dc9c27745132ded8e545c1d54c72f046997",
            ],
            0x001b | 0x0020 => [
                "8cb91e82a3386d280f5d6f7e50e641df152f7109ed5456b412b1da197fb71123acd3a729901d1a71874700133107ec53",
                "7bc382c63d8c150c3c72080ace05afa0c2bea28e4fb22787139165efba91f90f8aa5814a503ad4eb04a8c7dd22ce2826",
                "04a8c7dd22ce28268b39b55416f0447c2fb77de107dcd2a62e880ea53eeb62d57cb4390295dbc9943ab78696fa504c11",
                "1d1c64f068cf45ffa2a63a81b7c13f6b8847a3e77ef14fe3db7fcafe0cbd10e8e826e03436d646aaef87b2e247d4af1e",
                "8abe1d7520f9c2a45cb1eb8e95cfd55262b70b29feec5864e19c054ff99129280e4646217791811142820341263c5315",
            ],
            0x001c | 0x0021 => [
                "aadd9db8dbe9c48b3fd4e6ae33c9fc07cb308db3b3c9d20ed6639cca703308717d4d9b009bc66842aecda12ae6a380e62881ff2f2d82c68528aa6056583a48f3",
                "7830a3318b603b89e2327145ac234cc594cbdd8d3df91610a83441caea9863bc2ded5d5aa8253aa10a2ef1c98b9ac8b57f1117a72bf2c7b9e7c1ac4d77fc94ca",
                "3df91610a83441caea9863bc2ded5d5aa8253aa10a2ef1c98b9ac8b57f1117a72bf2c7b9e7c1ac4d77fc94cadc083e67984050b75ebae5dd2809bd638016f723",
                "81aee4bdd82ed9645a21322e9c4c6a9385ed9f70b5d916c1b43b62eef4d0098eff3b1f78e2d0d48d50d1687b93b97d5f7c6d5047406a5e688b352209bcb9f822",
                "7dde385d566332ecc0eabfa9cf7822fdf209f70024a57b1aa000c55b881f8111b2dcde494a5f485e5bca4bd88a2763aed1ca2b2fa8f0540678cd1e0f3ad80892",
            ],
            _ => return None,
        };
        let [p, a, b, x, y] =
            parameters.map(|hex| BigUint::parse_bytes(hex.as_bytes(), 16).unwrap_or_default());
        Some(Self { p, a, b, generator: (x, y) })
    }

    /// A number with the length of this field.
    fn bytes(&self, n: &BigUint) -> Vec<u8> {
        let bytes = n.to_bytes_be();
        let zeros = self.length() - bytes.len().min(self.length());
        [vec![0; zeros], bytes].concat()
    }

    fn length(&self) -> usize {
        self.p.bits().div_ceil(8) as usize
    }

    /// An uncompressed point; an error if it is not on this curve.
    fn point(&self, bytes: &[u8]) -> Option<(BigUint, BigUint)> {
        let (4, coordinates) = bytes.split_first().map(|(form, rest)| (*form, rest))? else {
            return None;
        };
        if coordinates.len() != 2 * self.length() {
            return None;
        }
        let (x, y) = coordinates.split_at(self.length());
        let (x, y) = (BigUint::from_bytes_be(x), BigUint::from_bytes_be(y));
        let on_curve = (&y * &y) % &self.p == (&x * &x * &x + &self.a * &x + &self.b) % &self.p;
        (x < self.p && y < self.p && on_curve).then_some((x, y))
    }

    fn sum(&self, first: &Point, second: &Point) -> Point {
        let (Some((x1, y1)), Some((x2, y2))) = (first, second) else {
            return first.clone().or(second.clone());
        };
        let p = &self.p;
        let minus = |a: &BigUint, b: &BigUint| (a + p - b) % p;
        let (rise, run) = match x1 == x2 {
            false => (minus(y2, y1), minus(x2, x1)),
            true if y1 == y2 => ((x1 * x1 * 3u8 + &self.a) % p, (y1 * 2u8) % p),
            true => return None,
        };
        let slope = rise * run.modinv(p)? % p;
        let x = minus(&minus(&(&slope * &slope % p), x1), x2);
        let y = minus(&(slope * minus(x1, &x) % p), y1);
        Some((x, y))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUPS: [u16; 7] = [0x16, 0x1a, 0x1b, 0x1c, 0x1f, 0x20, 0x21];

    #[test]
    fn both_sides_share_a_secret_on_each_curve() {
        for group in GROUPS {
            let (ours, theirs) = (
                WeierstrassKey::generate(group).unwrap(),
                WeierstrassKey::generate(group).unwrap(),
            );
            let (public, other) = (ours.public().unwrap(), theirs.public().unwrap());
            let secret = ours.secret(&other).unwrap();
            assert_eq!(theirs.secret(&public).unwrap(), secret);
            assert_eq!(public.len(), 2 * secret.len() + 1);
        }
        assert!(WeierstrassKey::generate(0x17).is_none());
    }

    #[test]
    fn what_is_no_point_of_the_curve_gives_no_secret() {
        for group in GROUPS {
            let key = WeierstrassKey::generate(group).unwrap();
            let good = key.public().unwrap();
            let changed = |at: usize| {
                let mut bytes = good.clone();
                bytes[at] ^= 1;
                bytes
            };
            let n = good.len();
            for bad in [changed(0), changed(1), changed(n - 1), good[..n - 1].to_vec(), Vec::new()]
            {
                assert!(key.secret(&bad).is_err(), "{group:#x}");
            }
            // A value above the prime that is valid modulo the prime.
            let (x, y) = key.curve.generator.clone();
            let beyond = (&x + &key.curve.p).to_bytes_be();
            if beyond.len() == key.curve.length() {
                let bytes = [&[4], &beyond[..], &key.curve.bytes(&y)].concat();
                assert!(key.secret(&bytes).is_err(), "{group:#x}");
            }
            assert!(key.secret(&vec![0; n]).is_err());
        }
    }
}
