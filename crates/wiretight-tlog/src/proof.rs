//! Proofs that can be verified offline (C2SP tlog-proof): an index, an inclusion proof, a cosigned checkpoint.

use std::fmt;

use crate::checkpoint::SignedCheckpoint;
use crate::hash::Hash;
use crate::note::{MAX_NOTE, NoteError};
use crate::policy::{Policy, Refused, Witnessed};
use crate::text::{base64, decimal, line, to_base64};
use crate::tree::{self, MAX_PROOF, TreeError};

pub(crate) const HEADER: &str = "c2sp.org/tlog-proof@v1";
/// The most extra data of a proof, in bytes.
const MAX_EXTRA: usize = 64 * 1024;

/// Why a proof does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// Not a proof at all.
    #[error("not a tlog-proof: {0}")]
    Malformed(&'static str),
    /// Its checkpoint cannot be read.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// Its checkpoint is not believed.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The entry is not where the proof says.
    #[error("the entry is not at index {index} of the log: {reason}")]
    NotIncluded {
        /// Where it should be.
        index: u64,
        /// What does not fit.
        reason: TreeError,
    },
}

/// A proof, unverified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// What an application put there; nothing authenticates it.
    pub extra: Option<Vec<u8>>,
    /// The place of the entry in the log, from 0.
    pub index: u64,
    /// From the leaf's sibling to the root's child.
    pub hashes: Vec<Hash>,
    /// The tree that it is in.
    pub checkpoint: SignedCheckpoint,
}

impl Proof {
    /// Parses a proof.
    pub fn parse(text: &str) -> Result<Proof, ProofError> {
        let bad = ProofError::Malformed;
        if text.len() > 2 * MAX_NOTE {
            return Err(bad("it is too large"));
        }
        let cut = bad("it ends too early");
        let (header, mut rest) = line(text).ok_or(cut.clone())?;
        if header != HEADER {
            return Err(bad("its first line is not c2sp.org/tlog-proof@v1"));
        }
        let (mut next, mut after) = line(rest).ok_or(cut.clone())?;
        let mut extra = None;
        if let Some(data) = next.strip_prefix("extra ") {
            let data = base64(data).filter(|d| d.len() <= MAX_EXTRA);
            extra = Some(data.ok_or(bad("its extra data is not base64, or too long"))?);
            rest = after;
            (next, after) = line(rest).ok_or(cut.clone())?;
        }
        let index = next.strip_prefix("index ").and_then(decimal);
        let index = index.ok_or(bad("it has no proper index"))?;
        let mut hashes = Vec::new();
        loop {
            rest = after;
            (next, after) = line(rest).ok_or(cut.clone())?;
            if next.is_empty() {
                break;
            }
            if hashes.len() == MAX_PROOF {
                return Err(bad("it has more hashes than any tree is high"));
            }
            hashes.push(Hash::from_base64(next).ok_or(bad("one of its lines is not a hash"))?);
        }
        Ok(Proof { extra, index, hashes, checkpoint: SignedCheckpoint::parse(after)? })
    }

    /// Checks everything but the age: that a log of the policy signed the checkpoint, that the quorum cosigned it, and
    /// that the entry with this hash is at the index.
    pub fn verify(&self, policy: &Policy, leaf: Hash) -> Result<Witnessed, ProofError> {
        let witnessed = policy.witnessed(&self.checkpoint)?;
        self.verify_in(&witnessed, leaf)?;
        Ok(witnessed)
    }

    /// Checks that the entry is in a tree that is believed already; `witnessed` must be of this proof's checkpoint.
    pub fn verify_in(&self, witnessed: &Witnessed, leaf: Hash) -> Result<(), ProofError> {
        let tree = witnessed.checkpoint();
        if tree != self.checkpoint.unverified() {
            return Err(ProofError::Malformed("it is of another checkpoint"));
        }
        tree::verify_inclusion(leaf, self.index, tree.size, &self.hashes, tree.root)
            .map_err(|reason| ProofError::NotIncluded { index: self.index, reason })
    }
}

/// The text.
impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEADER}")?;
        if let Some(extra) = &self.extra {
            writeln!(f, "extra {}", to_base64(extra))?;
        }
        writeln!(f, "index {}", self.index)?;
        self.hashes.iter().try_for_each(|hash| writeln!(f, "{hash}"))?;
        write!(f, "\n{}", self.checkpoint)
    }
}
