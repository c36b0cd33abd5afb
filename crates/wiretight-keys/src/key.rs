//! Private keys: P-256, generated and used on one machine. No type here has `Debug`, so that keys are not logged. A
//! key is exported only as PKCS#8 for a 0600 file, in a buffer that is zeroed on drop.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use aws_lc_rs::signature::{KeyPair, UnparsedPublicKey};
use const_oid::db::rfc5912::{ECDSA_WITH_SHA_256, ID_EC_PUBLIC_KEY, SECP_256_R_1};
use der::asn1::BitString;
use der::pem::LineEnding;
use der::{Any, Encode};
use rustls_pki_types::PrivatePkcs8KeyDer;
use spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};
use wiretight_tlog::Hash;
use zeroize::Zeroizing;

/// Why a key could not be made, read or used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The crypto library failed to make a key or a signature.
    #[error("the cryptographic library failed to make a key or a signature")]
    Crypto,
    /// Not a P-256 key in PKCS#8.
    #[error("not a P-256 private key in PKCS#8 (a PEM block \"PRIVATE KEY\")")]
    NotPkcs8P256,
    /// Not a P-256 public key.
    #[error("not a P-256 public key")]
    NotP256,
    #[error("the signature does not match the key")]
    BadSignature,
}

/// Signs certificates. The interface is narrow so that a threshold signature can later replace the root key that is
/// kept in a file today.
pub trait Signer: Send + Sync {
    fn public_key(&self) -> SubjectPublicKeyInfoOwned;
    /// The signature algorithm, as encoded in a certificate.
    fn algorithm(&self) -> AlgorithmIdentifierOwned;
    /// Signs the DER of a to-be-signed structure.
    fn sign(&self, tbs: &[u8]) -> Result<Vec<u8>, KeyError>;
}

/// A P-256 key pair (ECDSA with SHA-256, FIPS 186-5).
pub struct SigningKey {
    pair: EcdsaKeyPair,
    pkcs8: Zeroizing<Vec<u8>>,
}

impl SigningKey {
    pub fn generate() -> Result<SigningKey, KeyError> {
        let doc =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new())
                .map_err(|_| KeyError::Crypto)?;
        SigningKey::from_pkcs8(doc.as_ref())
    }

    pub fn from_pkcs8(der: &[u8]) -> Result<SigningKey, KeyError> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der)
            .map_err(|_| KeyError::NotPkcs8P256)?;
        Ok(SigningKey { pair, pkcs8: Zeroizing::new(der.to_vec()) })
    }

    /// Parses the output of [`SigningKey::to_pem`].
    pub fn from_pem(pem: &[u8]) -> Result<SigningKey, KeyError> {
        let (label, der) = der::pem::decode_vec(pem).map_err(|_| KeyError::NotPkcs8P256)?;
        let der = Zeroizing::new(der);
        if label != "PRIVATE KEY" {
            return Err(KeyError::NotPkcs8P256);
        }
        SigningKey::from_pkcs8(&der)
    }

    /// PKCS#8 in PEM, for a 0600 file.
    pub fn to_pem(&self) -> Zeroizing<String> {
        let pem = der::pem::encode_string("PRIVATE KEY", LineEnding::LF, &self.pkcs8);
        Zeroizing::new(pem.expect("a short DER document always fits PEM"))
    }

    /// PKCS#8, for the TLS library.
    pub fn to_pkcs8(&self) -> PrivatePkcs8KeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.pkcs8.to_vec())
    }
}

impl Signer for SigningKey {
    fn public_key(&self) -> SubjectPublicKeyInfoOwned {
        let algorithm = AlgorithmIdentifierOwned {
            oid: ID_EC_PUBLIC_KEY,
            parameters: Some(Any::from(&SECP_256_R_1)),
        };
        let point = BitString::from_bytes(self.pair.public_key().as_ref());
        SubjectPublicKeyInfoOwned {
            algorithm,
            subject_public_key: point.expect("a 65-byte point fits a bit string"),
        }
    }

    fn algorithm(&self) -> AlgorithmIdentifierOwned {
        ecdsa_with_sha256()
    }

    fn sign(&self, tbs: &[u8]) -> Result<Vec<u8>, KeyError> {
        let signature = self.pair.sign(&SystemRandom::new(), tbs).map_err(|_| KeyError::Crypto)?;
        Ok(signature.as_ref().to_vec())
    }
}

/// A P-256 public key that verifies signatures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    spki: SubjectPublicKeyInfoOwned,
}

impl PublicKey {
    /// Accepts only P-256.
    pub fn new(spki: SubjectPublicKeyInfoOwned) -> Result<PublicKey, KeyError> {
        let curve = spki.algorithm.parameters.as_ref().and_then(|p| p.decode_as().ok());
        let point = spki.subject_public_key.as_bytes().unwrap_or_default();
        let uncompressed = point.len() == 65 && point[0] == 4;
        if spki.algorithm.oid != ID_EC_PUBLIC_KEY || curve != Some(SECP_256_R_1) || !uncompressed {
            return Err(KeyError::NotP256);
        }
        Ok(PublicKey { spki })
    }

    pub fn from_der(der: &[u8]) -> Result<PublicKey, KeyError> {
        use der::Decode;
        PublicKey::new(SubjectPublicKeyInfoOwned::from_der(der).map_err(|_| KeyError::NotP256)?)
    }

    pub fn to_der(&self) -> Vec<u8> {
        self.spki.to_der().expect("a parsed public key encodes")
    }

    /// SHA-256 of the DER `SubjectPublicKeyInfo`; it identifies the key in lists and logs.
    pub fn hash(&self) -> [u8; 32] {
        *Hash::of(&self.to_der()).as_bytes()
    }

    pub fn spki(&self) -> &SubjectPublicKeyInfoOwned {
        &self.spki
    }

    /// Checks an ECDSA-SHA-256 signature in ASN.1 form.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), KeyError> {
        let point = self.spki.subject_public_key.as_bytes().ok_or(KeyError::NotP256)?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point)
            .verify(message, signature)
            .map_err(|_| KeyError::BadSignature)
    }
}

/// `ecdsa-with-SHA256` (RFC 5758, section 3.2).
pub(crate) fn ecdsa_with_sha256() -> AlgorithmIdentifierOwned {
    AlgorithmIdentifierOwned { oid: ECDSA_WITH_SHA_256, parameters: None }
}
