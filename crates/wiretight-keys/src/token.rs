//! Join tokens: an operator creates one on the authority and passes it once to a new node.
//!
//! A token names the authority: its addresses, and the SHA-256 of its root certificate, so that the node can
//! authenticate the authority before sending anything. It contains a secret that the authority accepts once, until it
//! expires, for one node name. The text is `wtj1_` and base64url of JSON followed by 4 bytes of its SHA-256. These
//! detect typing errors; they are not a security measure.

use aws_lc_rs::{constant_time, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::spiffe::{Name, TrustDomain};

const PREFIX: &str = "wtj1_";
const CHECK: usize = 4;
/// The longest token accepted, in characters.
pub const MAX_LEN: usize = 4096;

/// Why a text is not a join token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It does not start with `wtj1_`.
    #[error(
        "not a join token: it does not start with \"wtj1_\". Create one with `wiretight token create`"
    )]
    NotAToken,
    /// Truncated, mistyped or altered.
    #[error("the join token is truncated or altered; copy it again in full")]
    Damaged,
}

/// A join token. No `Debug`, because it is a secret.
#[derive(Serialize, Deserialize)]
pub struct JoinToken {
    /// The trust domain to join.
    #[serde(rename = "td")]
    pub trust_domain: TrustDomain,
    /// The name of the joining node.
    #[serde(rename = "n")]
    pub node: Name,
    /// Addresses of the authority, each `HOST:PORT`.
    #[serde(rename = "a")]
    pub authority: Vec<String>,
    /// SHA-256 of the authority's root certificate.
    #[serde(rename = "r", with = "hex32")]
    pub root: [u8; 32],
    /// Identifies the token to the authority; not secret.
    #[serde(rename = "i")]
    pub id: String,
    /// The secret that the authority accepts once.
    #[serde(rename = "s")]
    pub secret: Zeroizing<String>,
    /// Seconds since 1970. The authority's own record decides; with this value the node can report expiry early.
    #[serde(rename = "e")]
    pub expires: u64,
}

impl JoinToken {
    /// The text to pass to the node.
    pub fn encode(&self) -> Zeroizing<String> {
        // Allocate everything at once: a vector that grows leaves a copy of its content in freed memory.
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_LEN));
        serde_json::to_writer(&mut *bytes, self).expect("plain strings and numbers encode");
        let sum = digest::digest(&digest::SHA256, &bytes);
        bytes.extend_from_slice(&sum.as_ref()[..CHECK]);
        let mut text = Zeroizing::new(String::with_capacity(2 * MAX_LEN));
        text.push_str(PREFIX);
        URL_SAFE_NO_PAD.encode_string(&*bytes, &mut text);
        text
    }

    /// Parses a token; surrounding white space is ignored.
    pub fn decode(text: &str) -> Result<JoinToken, TokenError> {
        let text = text.trim();
        let body = text.strip_prefix(PREFIX).ok_or(TokenError::NotAToken)?;
        if text.len() > MAX_LEN {
            return Err(TokenError::Damaged);
        }
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| TokenError::Damaged)?;
        let bytes = Zeroizing::new(bytes);
        let split = bytes.len().checked_sub(CHECK).ok_or(TokenError::Damaged)?;
        let (json, sum) = bytes.split_at(split);
        if digest::digest(&digest::SHA256, json).as_ref()[..CHECK] != *sum {
            return Err(TokenError::Damaged);
        }
        serde_json::from_slice(json).map_err(|_| TokenError::Damaged)
    }
}

/// The hash of a token's secret, which the authority stores.
pub fn secret_hash(secret: &str) -> String {
    hex(digest::digest(&digest::SHA256, secret.as_bytes()).as_ref())
}

/// Compares a presented secret with the stored hash, in constant time.
pub fn secret_matches(secret: &str, hash: &str) -> bool {
    constant_time::verify_slices_are_equal(secret_hash(secret).as_bytes(), hash.as_bytes()).is_ok()
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

mod hex32 {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8; 32], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&super::hex(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<[u8; 32], D::Error> {
        let bad = || serde::de::Error::custom("not 64 hex digits");
        let text = String::deserialize(d)?;
        if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(bad());
        }
        let mut out = [0; 32];
        for (i, byte) in out.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| bad())?;
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        JoinToken {
            trust_domain: "example.org".parse().unwrap(),
            node: "db1".parse().unwrap(),
            authority: vec!["10.0.0.1:7400".into()],
            root: [7; 32],
            id: "abc".into(),
            secret: Zeroizing::new("s3cret".into()),
            expires: 1_800_000_000,
        }
    }

    #[test]
    fn tokens_round_trip_and_altered_ones_are_rejected() {
        let text = token().encode();
        let back = JoinToken::decode(&format!("  {}\n", &*text)).unwrap();
        assert_eq!(back.encode(), text);
        for i in PREFIX.len()..text.len() {
            let mut altered = text.as_bytes().to_vec();
            altered[i] = if altered[i] == b'A' { b'B' } else { b'A' };
            let altered = String::from_utf8(altered).unwrap();
            assert!(JoinToken::decode(&altered).is_err(), "character {i}");
            assert!(JoinToken::decode(&text[..i]).is_err(), "cut at {i}");
        }
        assert_eq!(JoinToken::decode("hello").err(), Some(TokenError::NotAToken));
    }

    #[test]
    fn tokens_over_the_limit_are_rejected() {
        let of = |len: usize| {
            let mut token = token();
            for _ in token.encode().len()..len {
                if token.encode().len() < len {
                    token.id.push('x');
                }
            }
            let text = token.encode();
            assert_eq!(text.len(), len);
            JoinToken::decode(&text).map(|_| ())
        };
        assert_eq!(of(MAX_LEN), Ok(()));
        assert_eq!(of(MAX_LEN + 1), Err(TokenError::Damaged));
    }

    #[test]
    fn the_root_is_64_hex_digits() {
        let json = |root: &str| {
            let json = serde_json::to_string(&token()).unwrap().replace(&"07".repeat(32), root);
            serde_json::from_str::<JoinToken>(&json).map(|token| token.root)
        };
        let digits = "00112233445566778899aabbccddeeff".repeat(2);
        let read = json(&digits).unwrap();
        assert_eq!((hex(&read), read[1], read[31]), (digits.clone(), 0x11, 0xff));
        for bad in [&digits[1..], &format!("{digits}0"), &format!("g{}", &digits[1..]), ""] {
            assert!(json(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_secret_matches_only_its_own_hash() {
        assert!(secret_matches("x", &secret_hash("x")));
        assert!(!secret_matches("y", &secret_hash("x")));
        assert!(!secret_matches("", ""));
    }
}
