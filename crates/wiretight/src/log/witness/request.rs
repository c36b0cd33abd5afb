//! The body of `add-checkpoint` (C2SP tlog-witness): an old size, a consistency proof, a blank line, a checkpoint.

use std::fmt;

use wiretight_tlog::tree::MAX_PROOF;
use wiretight_tlog::{Hash, Note, SignedCheckpoint};

/// The longest body: 63 hashes, and a checkpoint with dozens of post-quantum cosignatures.
pub const MAX_BODY: usize = 128 * 1024;

/// What is wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// More than [`MAX_BODY`], or no text.
    #[error("the request is too large, or not UTF-8")]
    Body,
    /// Its first line.
    #[error("the first line is not `old SIZE`")]
    Old,
    /// A line of the proof.
    #[error("the consistency proof is not up to 63 lines of base64 hashes and a blank line")]
    Proof,
    /// Its checkpoint.
    #[error(
        "the checkpoint is not a signed note of a log's size and root, or is longer than this witness takes"
    )]
    Checkpoint,
    /// Its checkpoint says that the empty tree has another root than it has.
    #[error(
        "a tree of size 0 has the hash of nothing as its root, and this checkpoint another one"
    )]
    EmptyTree(Box<Note>),
    /// The log would shrink.
    #[error("the old size is larger than the checkpoint's")]
    Backwards,
}

/// A request, nothing of it verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The size of the tree that the proof begins with.
    pub old: u64,
    /// The consistency proof (RFC 6962, section 2.1.2).
    pub proof: Vec<Hash>,
    /// What is to be cosigned.
    pub checkpoint: SignedCheckpoint,
}

impl Request {
    /// Parses a body.
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

/// Whether a checkpoint gives the empty tree another root than it has.
fn claims_empty_tree(text: &str) -> bool {
    let mut lines = text.split('\n').skip(1);
    let (size, root) = (lines.next(), lines.next().and_then(Hash::from_base64));
    size == Some("0") && root.is_some_and(|root| root != Hash::empty())
}

/// The body.
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
