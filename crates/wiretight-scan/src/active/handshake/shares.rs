//! Key exchange: from our share and the server's share to the secret.

use aws_lc_rs::agreement::{self, PrivateKey, UnparsedPublicKey, agree};
use aws_lc_rs::kem::{self, Ciphertext, DecapsulationKey};
use num_bigint::BigUint;

use super::ffdhe::FfdheKey;
use super::weierstrass::WeierstrassKey;
use super::{Failure, malformed, random, x448};

/// The groups with which this client can complete a TLS 1.3 handshake, the best known first.
pub const GROUPS: &[u16] = &[
    0x001d, 0x0017, 0x0018, 0x0019, 0x11ec, 0x11eb, 0x11ed, 0x0201, 0x0202, 0x0200, 0x001e, 0x0100,
    0x0101, 0x0102, 0x0103, 0x0104, 0x001f, 0x0020, 0x0021,
];

/// The same for earlier versions.
pub(super) const CURVES: &[u16] =
    &[0x001d, 0x0017, 0x0018, 0x0019, 0x001e, 0x001a, 0x001b, 0x001c, 0x0016];

/// The client's half of a key exchange.
pub(super) struct KeyShare {
    private: Private,
    public: Vec<u8>,
}

enum Private {
    AwsLc(Hybrid),
    X448([u8; x448::LENGTH]),
    FiniteField(FfdheKey),
    Weierstrass(WeierstrassKey),
}

/// A curve, ML-KEM, or both.
struct Hybrid {
    elliptic: Option<PrivateKey>,
    kem: Option<DecapsulationKey>,
    /// The length of the ciphertext with the server's secret (FIPS 203 table 3).
    ciphertext: usize,
    /// ML-KEM comes first in X25519MLKEM768, and last in the others
    /// (draft-ietf-tls-ecdhe-mlkem section 3).
    kem_first: bool,
}

impl KeyShare {
    /// A new key; `None` if the group is not supported.
    pub(super) fn generate(group: u16) -> Result<Option<Self>, Failure> {
        if let Some((key, public)) = Hybrid::generate(group)? {
            return Ok(Some(Self { private: Private::AwsLc(key), public }));
        }
        if let Some(key) = FfdheKey::generate(group) {
            let public = key.public()?;
            return Ok(Some(Self { private: Private::FiniteField(key), public }));
        }
        if let Some(key) = WeierstrassKey::generate(group) {
            let public = key.public()?;
            return Ok(Some(Self { private: Private::Weierstrass(key), public }));
        }
        Ok((group == 0x001e).then(|| {
            let key = random();
            Self { public: x448::public(&key).to_vec(), private: Private::X448(key) }
        }))
    }

    /// The share that the client sends.
    pub(super) fn public(&self) -> &[u8] {
        &self.public
    }

    /// The secret from the server's share.
    pub(super) fn secret(&self, share: &[u8]) -> Result<Vec<u8>, Failure> {
        match &self.private {
            Private::AwsLc(key) => key.secret(share),
            Private::X448(key) => x448::secret(key, share),
            Private::FiniteField(key) => key.secret(share),
            Private::Weierstrass(key) => key.secret(share),
        }
    }
}

impl Hybrid {
    /// Also returns the public key.
    fn generate(group: u16) -> Result<Option<(Self, Vec<u8>)>, Failure> {
        use agreement::{ECDH_P256, ECDH_P384, ECDH_P521, X25519};
        use kem::{ML_KEM_512, ML_KEM_768, ML_KEM_1024};
        let (curve, kem, ciphertext) = match group {
            0x001d => (Some(&X25519), None, 0),
            0x0017 => (Some(&ECDH_P256), None, 0),
            0x0018 => (Some(&ECDH_P384), None, 0),
            0x0019 => (Some(&ECDH_P521), None, 0),
            0x0200 => (None, Some(&ML_KEM_512), 768),
            0x0201 => (None, Some(&ML_KEM_768), 1088),
            0x0202 => (None, Some(&ML_KEM_1024), 1568),
            0x11eb => (Some(&ECDH_P256), Some(&ML_KEM_768), 1088),
            0x11ec => (Some(&X25519), Some(&ML_KEM_768), 1088),
            0x11ed => (Some(&ECDH_P384), Some(&ML_KEM_1024), 1568),
            _ => return Ok(None),
        };
        let elliptic = curve.map(PrivateKey::generate).transpose()?;
        let kem = kem.map(DecapsulationKey::generate).transpose()?;
        let point = match &elliptic {
            Some(key) => key.compute_public_key()?.as_ref().to_vec(),
            None => Vec::new(),
        };
        let encapsulation = match &kem {
            Some(key) => key.encapsulation_key()?.key_bytes()?.as_ref().to_vec(),
            None => Vec::new(),
        };
        let kem_first = group == 0x11ec;
        let public = match kem_first {
            true => [encapsulation, point].concat(),
            false => [point, encapsulation].concat(),
        };
        Ok(Some((Self { elliptic, kem, ciphertext, kem_first }, public)))
    }

    fn secret(&self, share: &[u8]) -> Result<Vec<u8>, Failure> {
        let short = || malformed("a key share of a wrong length");
        let at = match self.kem_first {
            true => self.ciphertext,
            false => share.len().checked_sub(self.ciphertext).ok_or_else(short)?,
        };
        let (first, second) = share.split_at_checked(at).ok_or_else(short)?;
        let (ciphertext, point) = if self.kem_first { (first, second) } else { (second, first) };
        let by_curve = match &self.elliptic {
            None if point.is_empty() => Vec::new(),
            None => return Err(short()),
            Some(key) => agree(
                key,
                UnparsedPublicKey::new(key.algorithm(), point),
                malformed("a key share that is not a point on its curve"),
                |secret| Ok(secret.to_vec()),
            )?,
        };
        let by_kem = match &self.kem {
            None => Vec::new(),
            Some(key) => key.decapsulate(Ciphertext::from(ciphertext))?.as_ref().to_vec(),
        };
        Ok(match self.kem_first {
            true => [by_kem, by_curve].concat(),
            false => [by_curve, by_kem].concat(),
        })
    }
}

/// A public key of this group; the private key is discarded.
pub fn share_of(group: u16) -> Option<Vec<u8>> {
    Some(KeyShare::generate(group).ok()??.public)
}

/// Finite-field Diffie-Hellman: our share and the secret, without leading zeros (RFC 5246 section
/// 8.1.2).
///
/// The timing of the big integers depends on the exponent, which is acceptable because the secret
/// protects only a scanner's request.
pub(super) fn dhe(p: &[u8], g: &[u8], y: &[u8]) -> Result<(Vec<u8>, Vec<u8>), Failure> {
    let exponent = random::<32>();
    let share = power(g, &exponent, p)?;
    let secret = power(y, &exponent, p)?;
    if secret.iter().all(|b| *b == 0) {
        return Err(malformed("an invalid Diffie-Hellman share"));
    }
    let zeros = secret.iter().take_while(|b| **b == 0).count();
    Ok((share, secret[zeros..].to_vec()))
}

/// `base ^ exponent mod modulus`, as long as the modulus. A peer can choose a modulus of at most
/// 8192 bits and an exponent of at most 256.
pub(crate) fn power(base: &[u8], exponent: &[u8], modulus: &[u8]) -> Result<Vec<u8>, Failure> {
    let zeros = modulus.iter().take_while(|b| **b == 0).count();
    let modulus = &modulus[zeros..];
    if modulus.len() > 1024 || exponent.len() > 32 || base.len() > 1025 {
        return Err(Failure::Unsupported("numbers of more than 8192 bits".into()));
    }
    let m = BigUint::from_bytes_be(modulus);
    if m <= BigUint::from(2u8) {
        return Err(malformed("a modulus that is none"));
    }
    let power = BigUint::from_bytes_be(base).modpow(&BigUint::from_bytes_be(exponent), &m);
    let bytes = power.to_bytes_be();
    let mut out = vec![0; modulus.len() - bytes.len().min(modulus.len())];
    out.extend(bytes);
    Ok(out)
}
