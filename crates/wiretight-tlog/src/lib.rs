//! Transparency logs: everything a verifier needs to check one. No I/O, no clock, no tokio; the caller passes the time.
//!
//! A log is an append-only list of entries. A verifier checks it in three steps:
//!
//! 1. **Tree** ([`tree`], [`hash`]; RFC 6962, section 2.1). The entries are the leaves of a Merkle tree, and its root
//!    hash commits to all of them. An *inclusion proof* of log2(n) hashes shows that an entry is at an index. A
//!    *consistency proof* shows that a larger tree is a smaller one with entries appended.
//! 2. **Checkpoint** ([`checkpoint`], [`note`]; C2SP tlog-checkpoint, signed-note). The log signs its size and root.
//!    This alone does not exclude a split view: a log can sign different trees for different readers.
//! 3. **Cosignatures** ([`cosignature`], [`policy`]; C2SP tlog-cosignature, tlog-policy). Independent witnesses sign a
//!    checkpoint only if it is consistent with the last one they saw. All verifiers that require k of the same n
//!    witnesses share one view, unless 2k-n or more of the witnesses conspire with the log: any two quorums have at
//!    least 2k-n witnesses in common. So k must be more than n/2, and well above it to tolerate dishonest witnesses.
//!
//! A [`proof`] (C2SP tlog-proof) combines the three in one text that can be verified offline: the index, the inclusion
//! proof, the cosigned checkpoint. [`tile`] (C2SP tlog-tiles) is the format in which a log is published: files that
//! never change, from which anyone can compute every proof.
//!
//! Only [`Policy::witnessed`] and [`Proof::verify`] return a [`Witnessed`] checkpoint. All input parsed here is
//! untrusted. Sizes are checked before anything is allocated. Each value has exactly one encoding (no leading zeros, no
//! spare bits in base64), so that the parsed value is the signed value.

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
