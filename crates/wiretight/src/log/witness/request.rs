//! The body of `add-checkpoint` (C2SP tlog-witness): an old size, a consistency proof, a blank line, a checkpoint.

use std::fmt;

use wiretight_tlog::tree::MAX_PROOF;
use wiretight_tlog::{Hash, Note, SignedCheckpoint};

/// The longest body: 63 hashes, and a checkpoint with dozens of post-quantum cosignatures.
pub const MAX_BODY: usize = 128 * 1024;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("the request is too large, or not UTF-8")]
    Body,
    #[error("the first line is not `old SIZE`")]
    Old,
    #[error(
        "the consistency proof must be at most 63 lines of base64 hashes, followed by a blank line"
    )]
    Proof,
    #[error(
        "the checkpoint is not a signed note with a log's size and root, or is longer than this witness accepts"
    )]
    Checkpoint,
    /// A wrong root for the empty tree.
    #[error(
        "the root of a tree of size 0 must be the hash of the empty string, but this checkpoint has another root"
    )]
    EmptyTree(Box<Note>),
    /// The log would shrink.
    #[error("the old size is larger than the checkpoint's")]
    Backwards,
}

/// An unverified request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The size of the old tree.
    pub old: u64,
    /// The consistency proof (RFC 6962, section 2.1.2).
    pub proof: Vec<Hash>,
    /// The checkpoint to cosign.
    pub checkpoint: SignedCheckpoint,
}

impl Request {
    pub fn parse(body: &[u8]) -> Result<Request, RequestError> {
        let text = std::str::from_utf8(body).ok().filter(|t| t.len() <= MAX_BODY);
        let (first, mut rest) =
            text.ok_or(RequestError::Body)?.split_once('\n').ok_or(RequestError::Old)?;
        let old = first.strip_prefix("old ").and_then(size).ok_or(RequestError::Old)?;
        let mut proof = Vec::new();
        loop {
            let (line, after) = rest.split_once('\n').ok_or(RequestError::Proof)?;
            rest = after;
            if line.is_empty() {
                break;
            }
            let hash = Hash::from_base64(line).filter(|_| proof.len() < MAX_PROOF);
            proof.push(hash.ok_or(RequestError::Proof)?);
        }
        let note = Note::parse(rest).map_err(|_| RequestError::Checkpoint)?;
        if claims_empty_tree(note.text()) {
            return Err(RequestError::EmptyTree(note.into()));
        }
        let checkpoint = SignedCheckpoint::new(note).map_err(|_| RequestError::Checkpoint)?;
        Ok(Request { old, proof, checkpoint })
    }
}

/// Whether a checkpoint has a wrong root for the empty tree.
fn claims_empty_tree(text: &str) -> bool {
    let mut lines = text.split('\n').skip(1);
    let (size, root) = (lines.next(), lines.next().and_then(Hash::from_base64));
    size == Some("0") && root.is_some_and(|root| root != Hash::empty())
}

/// Writes the body.
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "old {}", self.old)?;
        self.proof.iter().try_for_each(|hash| writeln!(f, "{hash}"))?;
        write!(f, "\n{}", self.checkpoint)
    }
}

/// A decimal number without leading zeros or sign.
fn size(text: &str) -> Option<u64> {
    let number: u64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}
