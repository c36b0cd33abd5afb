//! A release with its proofs, in one file beside what it proves (`FILE.proof`).
//!
//! JSON: `format`, and `entries` in the order source, release, rebuilds. Each has the `entry` as it is in the log, and its
//! `proof` (C2SP tlog-proof).

use std::fmt;

use serde::{Deserialize, Serialize};
use wiretight_tlog::{Proof, ProofError};

use super::entry::{Entry, EntryError, SignedEntry};

const FORMAT: &str = "wiretight-release-proof/v1";
/// The largest file with proofs, in bytes.
pub const MAX_PROOF: usize = 1 << 20;
/// The most rebuilds in a file.
pub const MAX_REBUILDS: usize = 64;

/// Why something is not a release with its proofs.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseProofError {
    #[error("it is larger than {MAX_PROOF} bytes")]
    TooLarge,
    #[error("it is not a file that `wiretight release prove` writes")]
    Json(#[from] serde_json::Error),
    #[error("its format is {0:?}; this program knows {FORMAT}")]
    Format(String),
    #[error(
        "its entries are not one source, one release, and at most {MAX_REBUILDS} rebuilds, in this order"
    )]
    Entries,
    #[error("its entry {number}: {error}")]
    Entry { number: usize, error: EntryError },
    #[error("the proof of its entry {number}: {error}")]
    Proof { number: usize, error: ProofError },
}

/// An entry and its proof, both unverified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proven {
    pub entry: SignedEntry,
    pub proof: Proof,
}

/// The entries of a release with their proofs, unverified. [`super::check()`] verifies them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleaseProof {
    pub source: Proven,
    pub release: Proven,
    pub rebuilds: Vec<Proven>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    format: String,
    entries: Vec<RawEntry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    entry: String,
    proof: String,
}

impl ReleaseProof {
    pub fn parse(bytes: &[u8]) -> Result<ReleaseProof, ReleaseProofError> {
        if bytes.len() > MAX_PROOF {
            return Err(ReleaseProofError::TooLarge);
        }
        let raw: Raw = serde_json::from_slice(bytes)?;
        if raw.format != FORMAT {
            return Err(ReleaseProofError::Format(raw.format.chars().take(80).collect()));
        }
        if raw.entries.len() > 2 + MAX_REBUILDS {
            return Err(ReleaseProofError::Entries);
        }
        let proven = |(n, raw): (usize, &RawEntry)| {
            let number = n + 1;
            let entry = SignedEntry::parse(&raw.entry)
                .map_err(|error| ReleaseProofError::Entry { number, error })?;
            let proof = Proof::parse(&raw.proof)
                .map_err(|error| ReleaseProofError::Proof { number, error })?;
            Ok(Proven { entry, proof })
        };
        let all = raw.entries.iter().enumerate().map(proven);
        let mut all = all.collect::<Result<Vec<_>, ReleaseProofError>>()?.into_iter();
        let (Some(source), Some(release)) = (all.next(), all.next()) else {
            return Err(ReleaseProofError::Entries);
        };
        let rebuilds: Vec<_> = all.collect();
        let right = matches!(source.entry.entry(), Entry::Source(_))
            && matches!(release.entry.entry(), Entry::Release(_))
            && rebuilds.iter().all(|r| matches!(r.entry.entry(), Entry::Rebuild(_)));
        if right {
            Ok(ReleaseProof { source, release, rebuilds })
        } else {
            Err(ReleaseProofError::Entries)
        }
    }

    fn all(&self) -> impl Iterator<Item = &Proven> {
        [&self.source, &self.release].into_iter().chain(&self.rebuilds)
    }
}

/// The file.
impl fmt::Display for ReleaseProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let raw = |p: &Proven| RawEntry { entry: p.entry.to_string(), proof: p.proof.to_string() };
        let raw = Raw { format: FORMAT.into(), entries: self.all().map(raw).collect() };
        let text = serde_json::to_string_pretty(&raw).map_err(|_| fmt::Error)?;
        writeln!(f, "{text}")
    }
}
