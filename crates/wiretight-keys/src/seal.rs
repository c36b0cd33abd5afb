//! Encrypts small secrets to one machine: HPKE (RFC 9180) in base mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256,
//! AES-256-GCM, with the TLS library's provider.
//!
//! With this a private key shared by several edges can pass through the authority's store without the authority
//! reading it. The caller decides which recipients are allowed.

use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256 as SUITE;
use rustls::crypto::hpke::{EncapsulatedSecret, Hpke, HpkePrivateKey, HpkePublicKey};
use zeroize::Zeroizing;

/// The length of a public key and of an encapsulated secret, in bytes.
const KEM_LEN: usize = 32;

/// Why sealing or opening failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The recipient's key is invalid, or the crypto library failed.
    #[error("cannot encrypt: the recipient's key is not an X25519 key")]
    Seal,
    /// Sealed to another key, for another purpose, or damaged.
    #[error("cannot decrypt: encrypted to another key or for another purpose, or damaged")]
    Open,
}

/// A machine's decryption key. No `Debug`, so that it is not logged.
pub struct SealKey {
    private: HpkePrivateKey,
    public: Vec<u8>,
}

impl SealKey {
    pub fn generate() -> Result<SealKey, SealError> {
        let (public, private) = SUITE.generate_key_pair().map_err(|_| SealError::Seal)?;
        Ok(SealKey { private, public: public.0 })
    }

    /// Parses the output of [`SealKey::to_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Option<SealKey> {
        let (private, public) = bytes.split_at_checked(KEM_LEN)?;
        let private = HpkePrivateKey::from(private.to_vec());
        let key = SealKey { private, public: public.to_vec() };
        // Check that the two halves belong together; otherwise nothing could be opened later.
        let sealed = seal(&key.public, b"self-test", b"self-test").ok()?;
        key.open(b"self-test", &sealed).ok().map(|_| key)
    }

    /// Both halves, for a 0600 file.
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new([self.private.secret_bytes(), &self.public].concat())
    }

    /// The public key, to which others seal.
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// Opens a secret sealed to this key with the same `purpose`.
    pub fn open(&self, purpose: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let (secret, text) = sealed.split_at_checked(KEM_LEN).ok_or(SealError::Open)?;
        let secret = EncapsulatedSecret(secret.to_vec());
        let opened = SUITE.open(&secret, purpose, b"", text, &self.private);
        opened.map(Zeroizing::new).map_err(|_| SealError::Open)
    }
}

/// Seals a secret to a public key. `purpose` binds it to its context: opening requires the same value.
pub fn seal(public: &[u8], purpose: &[u8], secret: &[u8]) -> Result<Vec<u8>, SealError> {
    let public = HpkePublicKey(public.to_vec());
    let sealed = SUITE.seal(purpose, b"", secret, &public);
    let (encapsulated, text) = sealed.map_err(|_| SealError::Seal)?;
    Ok([encapsulated.0, text].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opening_requires_the_right_key_and_purpose() {
        let (a, b) = (SealKey::generate().unwrap(), SealKey::generate().unwrap());
        let sealed = seal(a.public(), b"site/x", b"secret").unwrap();
        assert_eq!(*a.open(b"site/x", &sealed).unwrap(), b"secret");
        assert_eq!(b.open(b"site/x", &sealed).unwrap_err(), SealError::Open);
        assert_eq!(a.open(b"site/y", &sealed).unwrap_err(), SealError::Open);
        for i in 0..sealed.len() {
            let mut broken = sealed.clone();
            broken[i] ^= 1;
            assert!(a.open(b"site/x", &broken).is_err(), "byte {i}");
            assert!(a.open(b"site/x", &sealed[..i]).is_err(), "{i} bytes");
        }
        assert!(seal(b"short", b"", b"").is_err());
        let again = SealKey::from_bytes(&a.to_bytes()).unwrap();
        assert_eq!(*again.open(b"site/x", &sealed).unwrap(), b"secret");
        assert!(SealKey::from_bytes(&[0; 64]).is_none());
        assert!(SealKey::from_bytes(b"").is_none());
    }
}
