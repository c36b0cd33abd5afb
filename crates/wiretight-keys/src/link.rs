//! A renewal that is proved by the key before it.
//!
//! A node that has a certificate renewed makes a new key. With the old one it signs that the new one is its successor,
//! and the authority copies that signature into the certificate, as an extension ([`ID_KEY_LINK`]), so that it is in the
//! log. Whoever knows one key of an identity can follow it from there, and needs not be told of each renewal. A stolen CA
//! cannot make such a link: it has no node's key.
//!
//! Verifiers of the mesh do not look at it: a certificate without a link is as good as one with it.

use const_oid::ObjectIdentifier;
use der::asn1::OctetString;
use der::{Decode, Encode, Sequence};
use spki::SubjectPublicKeyInfoOwned;
use x509_cert::ext::Extension;

use crate::error::{X509Error, malformed};
use crate::key::{KeyError, PublicKey};
use crate::spiffe::SpiffeId;

/// The extension that holds a [`KeyLink`], in requests and certificates. Of IANA's experimental arc, as
/// [`ID_LOG_PROOF`](crate::logged::ID_LOG_PROOF).
pub const ID_KEY_LINK: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.3.7400.2");

/// What the signed bytes begin with. TLS, requests and certificates begin otherwise.
const CONTEXT: &[u8] = b"wiretight key link v1\0";

/// The key before a key, and its signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyLink {
    previous: PublicKey,
    signature: Vec<u8>,
}

/// As it is encoded.
#[derive(Sequence)]
struct Encoded {
    previous: SubjectPublicKeyInfoOwned,
    signature: OctetString,
}

impl KeyLink {
    /// Has `previous`, which signs with `sign`, say that `next` comes after it as the key of `id`.
    pub fn new(
        id: &SpiffeId,
        previous: PublicKey,
        next: &SubjectPublicKeyInfoOwned,
        sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, KeyError>,
    ) -> Result<KeyLink, X509Error> {
        let signature = sign(&signed(id, next)?)?;
        Ok(KeyLink { previous, signature })
    }

    /// The key before.
    pub fn previous(&self) -> &PublicKey {
        &self.previous
    }

    /// Checks that the key before has said so.
    pub fn verify(&self, id: &SpiffeId, next: &SubjectPublicKeyInfoOwned) -> Result<(), X509Error> {
        Ok(self.previous.verify(&signed(id, next)?, &self.signature)?)
    }

    /// The link among extensions, if there is one: not critical, and alone.
    pub(crate) fn find(extensions: &[Extension]) -> Result<Option<KeyLink>, X509Error> {
        let mut links = extensions.iter().filter(|e| e.extn_id == ID_KEY_LINK);
        let Some(link) = links.next() else { return Ok(None) };
        if link.critical || links.next().is_some() {
            let detail = "it is critical, or there are two".into();
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

/// What the key before signs: for whom, and the new key.
fn signed(id: &SpiffeId, next: &SubjectPublicKeyInfoOwned) -> Result<Vec<u8>, X509Error> {
    let next = next.to_der().map_err(malformed("public key"))?;
    Ok([CONTEXT, id.to_string().as_bytes(), &[0], &next].concat())
}
