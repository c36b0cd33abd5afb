//! Key links: at renewal, the previous key of a node signs the new one.
//!
//! At renewal a node generates a new key. With its old key it signs the statement that the new key is the successor.
//! The authority copies that signature into the certificate, as an extension ([`ID_KEY_LINK`]), so that it is logged.
//! So anyone who knows one key of an identity can follow its renewals from the log alone. A stolen CA cannot make such
//! a link, because it has no node's key.
//!
//! Verifiers in the mesh ignore the link: a certificate without one is equally valid.

use const_oid::ObjectIdentifier;
use der::asn1::OctetString;
use der::{Decode, Encode, Sequence};
use spki::SubjectPublicKeyInfoOwned;
use x509_cert::ext::Extension;

use crate::error::{X509Error, malformed};
use crate::key::{KeyError, PublicKey};
use crate::spiffe::SpiffeId;

/// The extension with a [`KeyLink`], in requests and certificates. It is in IANA's experimental arc, like
/// [`ID_LOG_PROOF`](crate::logged::ID_LOG_PROOF).
pub const ID_KEY_LINK: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.3.7400.2");

/// Prefix of the signed bytes. It separates them from anything signed for TLS, requests or certificates.
const CONTEXT: &[u8] = b"wiretight key link v1\0";

/// The previous key, and its signature over the new one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyLink {
    previous: PublicKey,
    signature: Vec<u8>,
}

/// The DER encoding.
#[derive(Sequence)]
struct Encoded {
    previous: SubjectPublicKeyInfoOwned,
    signature: OctetString,
}

impl KeyLink {
    /// Signs with the `previous` key (through `sign`) that `next` is its successor as the key of `id`.
    pub fn new(
        id: &SpiffeId,
        previous: PublicKey,
        next: &SubjectPublicKeyInfoOwned,
        sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, KeyError>,
    ) -> Result<KeyLink, X509Error> {
        let signature = sign(&signed(id, next)?)?;
        Ok(KeyLink { previous, signature })
    }

    pub fn previous(&self) -> &PublicKey {
        &self.previous
    }

    /// Checks the signature of the previous key.
    pub fn verify(&self, id: &SpiffeId, next: &SubjectPublicKeyInfoOwned) -> Result<(), X509Error> {
        Ok(self.previous.verify(&signed(id, next)?, &self.signature)?)
    }

    /// The link in the extensions, if any. It must be non-critical and unique.
    pub(crate) fn find(extensions: &[Extension]) -> Result<Option<KeyLink>, X509Error> {
        let mut links = extensions.iter().filter(|e| e.extn_id == ID_KEY_LINK);
        let Some(link) = links.next() else { return Ok(None) };
        if link.critical || links.next().is_some() {
            let detail = "it is critical or occurs twice".into();
            return Err(X509Error::Malformed { what: "key link", detail });
        }
        let encoded = Encoded::from_der(link.extn_value.as_bytes());
        let Encoded { previous, signature } = encoded.map_err(malformed("key link"))?;
        let previous = PublicKey::new(previous)?;
        Ok(Some(KeyLink { previous, signature: signature.as_bytes().to_vec() }))
    }

    pub(crate) fn extension(&self) -> Result<Extension, X509Error> {
        let err = malformed("key link");
        let encoded = Encoded {
            previous: self.previous.spki().clone(),
            signature: OctetString::new(self.signature.as_slice()).map_err(&err)?,
        };
        let value = OctetString::new(encoded.to_der().map_err(&err)?).map_err(&err)?;
        Ok(Extension { extn_id: ID_KEY_LINK, critical: false, extn_value: value })
    }
}

/// The bytes that the previous key signs: the identity and the new key.
fn signed(id: &SpiffeId, next: &SubjectPublicKeyInfoOwned) -> Result<Vec<u8>, X509Error> {
    let next = next.to_der().map_err(malformed("public key"))?;
    Ok([CONTEXT, id.to_string().as_bytes(), &[0], &next].concat())
}
