//! Transparency logs, as an auditor has to check them. Pure: no I/O, no clock, no tokio; time is passed in.
//!
//! A log is an append-only list of entries. What makes it believable is arithmetic, in three steps:
//!
//! 1. **Tree** ([`tree`], [`hash`]; RFC 6962, section 2.1). The entries are the leaves of a Merkle tree. Its root
//!    hash fixes them all: an *inclusion proof* of log2(n) hashes shows that an entry stands at an index, a
//!    *consistency proof* that a larger tree is a smaller one with entries appended.
//! 2. **Checkpoint** ([`checkpoint`], [`note`]; C2SP tlog-checkpoint, signed-note). The log signs its size and root.
//!    By itself that is a promise: a log can sign one tree for you and another one for me.
//! 3. **Cosignatures** ([`cosignature`], [`policy`]; C2SP tlog-cosignature, tlog-policy). Witnesses, run by others,
//!    sign a checkpoint only when it is consistent with the last one that they saw. A verifier that wants k of n of
//!    them shares its view with everybody else who does, unless 2k-n or more of them conspire with the log (two quorums have
//!    that many witnesses in common; so k is to be more than half of n, and well more to tolerate a dishonest one).
//!
//! A [`proof`] (C2SP tlog-proof) is all three in one text that can be verified offline: the index, the inclusion
//! proof, the cosigned checkpoint. [`tile`] (C2SP tlog-tiles) is how a log is published: as files that never change,
//! from which anyone computes every proof.
//!
//! The only ways to a [`Witnessed`] checkpoint are [`Policy::witnessed`] and [`Proof::verify`]. Everything that is
//! parsed here may come from an enemy: sizes are bounded before anything is allocated, and there is one encoding for
//! each value (no leading zeros, no spare bits in base64), so that what was signed is what was read.

pub mod checkpoint;
pub mod cosignature;
pub mod hash;
pub mod note;
pub mod policy;
pub mod proof;
pub mod tile;
pub mod tree;

mod text;

pub use checkpoint::{Checkpoint, SignedCheckpoint};
pub use cosignature::{Cosigner, WitnessKey};
pub use hash::Hash;
pub use note::{LogKey, LogSigner, Note, NoteError, Signature};
pub use policy::{Policy, PolicyError, Refused, Witnessed};
pub use proof::{Proof, ProofError};
pub use tree::{Frontier, TreeError};
