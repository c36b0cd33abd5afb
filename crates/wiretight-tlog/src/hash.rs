//! SHA-256 as in RFC 6962, section 2.1: leaves and inner nodes are hashed with different prefixes, so that one cannot
//! be mistaken for the other.

use std::fmt;

use aws_lc_rs::digest::{Context, SHA256};

use crate::text;

/// The hash of a node of a Merkle tree.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hash([u8; Hash::LEN]);

impl Hash {
    pub const LEN: usize = 32;

    /// The root of the empty tree: SHA-256 of zero bytes.
    pub fn empty() -> Hash {
        sha256(&[])
    }

    /// Plain SHA-256, not a node of a tree.
    pub fn of(bytes: &[u8]) -> Hash {
        sha256(&[bytes])
    }

    /// The hash of an entry: SHA-256(0x00 || entry).
    pub fn leaf(entry: &[u8]) -> Hash {
        sha256(&[&[0x00], entry])
    }

    /// The hash of an inner node: SHA-256(0x01 || left || right).
    pub fn node(left: Hash, right: Hash) -> Hash {
        sha256(&[&[0x01], &left.0, &right.0])
    }

    /// `None` unless there are exactly 32 bytes.
    pub fn from_slice(bytes: &[u8]) -> Option<Hash> {
        Some(Hash(bytes.try_into().ok()?))
    }

    /// Parses base64, as used in checkpoints and proofs.
    pub fn from_base64(text: &str) -> Option<Hash> {
        Hash::from_slice(&text::base64(text)?)
    }

    pub fn as_bytes(&self) -> &[u8; Hash::LEN] {
        &self.0
    }
}

impl From<[u8; Hash::LEN]> for Hash {
    fn from(bytes: [u8; Hash::LEN]) -> Hash {
        Hash(bytes)
    }
}

/// Base64, as used in checkpoints and proofs.
impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text::to_base64(&self.0))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// SHA-256 of the concatenated parts.
pub(crate) fn sha256(parts: &[&[u8]]) -> Hash {
    let mut context = Context::new(&SHA256);
    parts.iter().for_each(|part| context.update(part));
    Hash(context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes"))
}
