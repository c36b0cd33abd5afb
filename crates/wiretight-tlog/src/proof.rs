//! Proofs that can be verified offline (C2SP tlog-proof): an index, an inclusion proof, a cosigned checkpoint.

use std::fmt;

use crate::checkpoint::SignedCheckpoint;
use crate::hash::Hash;
use crate::note::{MAX_NOTE, NoteError};
use crate::policy::{Policy, Refused, Witnessed};
use crate::text::{base64, decimal, line, to_base64};
use crate::tree::{self, MAX_PROOF, TreeError};

pub(crate) const HEADER: &str = "c2sp.org/tlog-proof@v1";
/// The most extra data in a proof, in bytes.
const MAX_EXTRA: usize = 64 * 1024;

/// Why a proof is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// Not a proof, and why.
    #[error("not a tlog-proof: {0}")]
    Malformed(&'static str),
    /// Its checkpoint is malformed.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// The policy rejects its checkpoint.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The entry is not where the proof says.
    #[error("the entry is not at index {index} of the log: {reason}")]
    NotIncluded {
        /// The index in the proof.
        index: u64,
        /// Why the inclusion proof fails.
        reason: TreeError,
    },
}

/// A proof, unverified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// Data added by an application; not authenticated.
    pub extra: Option<Vec<u8>>,
    /// The entry's index in the log, from 0.
    pub index: u64,
    /// Ordered from the leaf's sibling up to a child of the root.
    pub hashes: Vec<Hash>,
    /// The tree that contains the entry.
    pub checkpoint: SignedCheckpoint,
}

impl Proof {
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
            extra = Some(data.ok_or(bad("its extra data is not base64 or is too long"))?);
            rest = after;
            (next, after) = line(rest).ok_or(cut.clone())?;
        }
        let index = next.strip_prefix("index ").and_then(decimal);
        let index = index.ok_or(bad("its index is missing or invalid"))?;
        let mut hashes = Vec::new();
        loop {
            rest = after;
            (next, after) = line(rest).ok_or(cut.clone())?;
            if next.is_empty() {
                break;
            }
            if hashes.len() == MAX_PROOF {
                return Err(bad("it has more hashes than any tree needs"));
            }
            hashes.push(Hash::from_base64(next).ok_or(bad("one of its lines is not a hash"))?);
        }
        Ok(Proof { extra, index, hashes, checkpoint: SignedCheckpoint::parse(after)? })
    }

    /// Checks everything but the age: a log in the policy signed the checkpoint, a quorum cosigned it, and the entry
    /// with this hash is at the index.
    pub fn verify(&self, policy: &Policy, leaf: Hash) -> Result<Witnessed, ProofError> {
        let witnessed = policy.witnessed(&self.checkpoint)?;
        self.verify_in(&witnessed, leaf)?;
        Ok(witnessed)
    }

    /// Checks that the entry is in a tree that was already verified. `witnessed` must be this proof's checkpoint.
    pub fn verify_in(&self, witnessed: &Witnessed, leaf: Hash) -> Result<(), ProofError> {
        let tree = witnessed.checkpoint();
        if tree != self.checkpoint.unverified() {
            return Err(ProofError::Malformed("it belongs to another checkpoint"));
        }
        tree::verify_inclusion(leaf, self.index, tree.size, &self.hashes, tree.root)
            .map_err(|reason| ProofError::NotIncluded { index: self.index, reason })
    }
}

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
