//! Signed requests: flattened JSON (RFC 7515, section 7.2.2) as restricted by RFC 8555, section 6.2. Parsing returns
//! unverified claims; only [`Signed::verify`] returns the payload.

use aws_lc_rs::digest;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents,
    UnparsedPublicKey,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

/// The longest request, in bytes.
pub const MAX_LEN: usize = 64 * 1024;
/// A modulus of 8192 bits.
const MAX_MODULUS: usize = 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JwsError {
    #[error(
        "the request is not a JWS in flattened JSON with alg, nonce, url, and either jwk or kid"
    )]
    Malformed,
    #[error("the signature algorithm must be ES256, RS256 or EdDSA, and match the key")]
    Algorithm,
    #[error("the account's key must be P-256, Ed25519, or RSA with 2048 to 8192 bits")]
    Key,
    #[error("the signature does not match the key")]
    Signature,
}

/// A public key (RFC 7517), in the canonical form for its thumbprint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawKey", into = "RawKey")]
pub enum Jwk {
    /// P-256: x and y.
    P256([u8; 32], [u8; 32]),
    /// Ed25519.
    Ed25519([u8; 32]),
    /// RSA: modulus and exponent, without leading zeros.
    Rsa(Vec<u8>, Vec<u8>),
}

/// The members in the order of their names (RFC 7638, section 3).
#[derive(Default, Serialize, Deserialize)]
struct RawKey {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    crv: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    e: Option<String>,
    kty: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    n: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    x: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    y: Option<String>,
}

impl TryFrom<RawKey> for Jwk {
    type Error = JwsError;
    fn try_from(raw: RawKey) -> Result<Jwk, JwsError> {
        let bytes = |text: &Option<String>| {
            let text = text.as_deref().unwrap_or_default();
            URL_SAFE_NO_PAD.decode(text).map_err(|_| JwsError::Key)
        };
        let fixed = |text| <[u8; 32]>::try_from(bytes(text)?).map_err(|_| JwsError::Key);
        match (raw.kty.as_str(), raw.crv.as_deref()) {
            ("EC", Some("P-256")) => Ok(Jwk::P256(fixed(&raw.x)?, fixed(&raw.y)?)),
            ("OKP", Some("Ed25519")) => Ok(Jwk::Ed25519(fixed(&raw.x)?)),
            ("RSA", None) => {
                let (n, e) = (bytes(&raw.n)?, bytes(&raw.e)?);
                let plain = |number: &[u8]| number.first().is_some_and(|b| *b != 0);
                let good = plain(&n) && plain(&e) && e.len() <= 8;
                match good && (256..=MAX_MODULUS).contains(&n.len()) {
                    true => Ok(Jwk::Rsa(n, e)),
                    false => Err(JwsError::Key),
                }
            }
            _ => Err(JwsError::Key),
        }
    }
}

impl From<Jwk> for RawKey {
    fn from(key: Jwk) -> RawKey {
        let text = |bytes: &[u8]| Some(URL_SAFE_NO_PAD.encode(bytes));
        let kty = |kty: &str| RawKey { kty: kty.into(), ..RawKey::default() };
        match key {
            Jwk::P256(x, y) => {
                RawKey { crv: Some("P-256".into()), x: text(&x), y: text(&y), ..kty("EC") }
            }
            Jwk::Ed25519(x) => RawKey { crv: Some("Ed25519".into()), x: text(&x), ..kty("OKP") },
            Jwk::Rsa(n, e) => RawKey { n: text(&n), e: text(&e), ..kty("RSA") },
        }
    }
}

impl Jwk {
    /// RFC 7638, with SHA-256, in base64url.
    pub fn thumbprint(&self) -> String {
        let json = serde_json::to_vec(&RawKey::from(self.clone())).unwrap_or_default();
        URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, &json))
    }

    /// The bytes that identify the key in any encoding.
    pub fn material(&self) -> Vec<u8> {
        match self {
            Jwk::P256(x, y) => [&x[..], y].concat(),
            Jwk::Ed25519(x) => x.to_vec(),
            Jwk::Rsa(n, _) => n.clone(),
        }
    }

    fn verify(&self, alg: &str, message: &[u8], signature: &[u8]) -> Result<(), JwsError> {
        let verified = match (self, alg) {
            (Jwk::P256(x, y), "ES256") => {
                let point = [&[4][..], x, y].concat();
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, signature)
            }
            (Jwk::Ed25519(x), "EdDSA") => {
                UnparsedPublicKey::new(&ED25519, x).verify(message, signature)
            }
            (Jwk::Rsa(n, e), "RS256") => RsaPublicKeyComponents { n, e }.verify(
                &RSA_PKCS1_2048_8192_SHA256,
                message,
                signature,
            ),
            _ => return Err(JwsError::Algorithm),
        };
        verified.map_err(|_| JwsError::Signature)
    }
}

/// The claimed sender of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sender {
    /// An account, by its URL.
    Account(String),
    /// The holder of this key.
    Key(Jwk),
}

/// A parsed, unverified request.
#[derive(Debug, Clone)]
pub struct Signed {
    pub from: Sender,
    /// The nonce in its header.
    pub nonce: String,
    /// The URL in its header.
    pub url: String,
    alg: String,
    message: Vec<u8>,
    payload: Vec<u8>,
    signature: Vec<u8>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Flattened {
    protected: String,
    payload: String,
    signature: String,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    nonce: String,
    url: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default)]
    jwk: Option<serde_json::Value>,
    #[serde(default)]
    crit: Option<serde_json::Value>,
    #[serde(default)]
    b64: Option<serde_json::Value>,
}

impl Signed {
    pub fn parse(body: &[u8]) -> Result<Signed, JwsError> {
        if body.len() > MAX_LEN {
            return Err(JwsError::Malformed);
        }
        let outer: Flattened = serde_json::from_slice(body).map_err(|_| JwsError::Malformed)?;
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| JwsError::Malformed);
        let header: Header =
            serde_json::from_slice(&decode(&outer.protected)?).map_err(|_| JwsError::Malformed)?;
        if !matches!(header.alg.as_str(), "ES256" | "RS256" | "EdDSA") {
            return Err(JwsError::Algorithm);
        }
        // Critical extensions are not supported (RFC 7515, section 4.1.11).
        if header.crit.is_some() || header.b64.is_some() {
            return Err(JwsError::Malformed);
        }
        let from = match (header.jwk, header.kid) {
            (Some(jwk), None) => {
                Sender::Key(serde_json::from_value(jwk).map_err(|_| JwsError::Key)?)
            }
            (None, Some(kid)) => Sender::Account(kid),
            _ => return Err(JwsError::Malformed),
        };
        Ok(Signed {
            from,
            nonce: header.nonce,
            url: header.url,
            alg: header.alg,
            message: format!("{}.{}", outer.protected, outer.payload).into_bytes(),
            payload: decode(&outer.payload)?,
            signature: decode(&outer.signature)?,
        })
    }

    /// Returns the payload if it was signed by this key.
    pub fn verify(&self, key: &Jwk) -> Result<&[u8], JwsError> {
        key.verify(&self.alg, &self.message, &self.signature)?;
        Ok(&self.payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thumbprint_matches_the_example_in_the_rfc() {
        // RFC 7638, section 3.1.
        let n = "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw";
        let json = serde_json::json!({ "kty": "RSA", "n": n, "e": "AQAB", "alg": "RS256" });
        let key: Jwk = serde_json::from_value(json).unwrap();
        assert_eq!(key.thumbprint(), "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs");
    }

    #[test]
    fn algorithm_none_and_a_mismatched_key_are_rejected() {
        let part = |v: serde_json::Value| URL_SAFE_NO_PAD.encode(v.to_string());
        let body = |header: serde_json::Value| {
            let body = serde_json::json!({
                "protected": part(header), "payload": "", "signature": "",
            });
            Signed::parse(body.to_string().as_bytes())
        };
        let header =
            |alg: &str| serde_json::json!({ "alg": alg, "nonce": "n", "url": "u", "kid": "k" });
        for bad in ["none", "HS256", "es256", ""] {
            assert_eq!(body(header(bad)).err(), Some(JwsError::Algorithm), "{bad:?}");
        }
        let signed = body(header("ES256")).unwrap();
        assert_eq!(signed.verify(&Jwk::Ed25519([1; 32])), Err(JwsError::Algorithm));
        assert_eq!(signed.verify(&Jwk::P256([1; 32], [1; 32])), Err(JwsError::Signature));
        let mut both = header("ES256");
        both["jwk"] = serde_json::json!({ "kty": "OKP", "crv": "Ed25519", "x": "" });
        assert_eq!(body(both).err(), Some(JwsError::Malformed));
        let mut critical = header("ES256");
        critical["crit"] = serde_json::json!(["b64"]);
        assert_eq!(body(critical).err(), Some(JwsError::Malformed));
    }
}
