//! Releases that prove themselves: what a program file was built from, that others built the same from it, and that all
//! of this stands in a public log with witnesses.
//!
//! The entries of a release log, in this order:
//!
//! 1. *source* ([`Source`]): the tree, the dependencies, the toolchain and the recipe, signed by the publisher;
//! 2. *release* ([`Release`]): the hash of each file made from that source, the oldest version that may still run, and
//!    when the release expires, signed by the publisher;
//! 3. *rebuilds* ([`Rebuild`]): what others made from the same source, each signed by who made it.
//!
//! A [`ReleaseProof`] is the entries of one release with their proofs, in one file. [`check::check`] decides by a
//! [`ReleasePolicy`], without the network.
//!
//! - `entry`: the entries
//! - `policy`: who is believed
//! - `proof`: the file with the proofs
//! - `check`: the decision
//! - `ledger`: a release log in a directory
//! - `own`: the program that runs
//! - `kept`: what a node remembers about releases
//! - `place`: a program's file, replaced by another that was verified

pub mod check;
pub mod entry;
pub mod kept;
pub mod ledger;
pub mod own;
pub mod place;
pub mod policy;
pub mod proof;
#[cfg(test)]
mod tests;

pub use check::{Artifact, NotProved, Proved, check};
pub use entry::{Entry, EntryError, Rebuild, Release, SignedEntry, Source};
pub use own::{Standing, Verdict};
pub use policy::ReleasePolicy;
pub use proof::ReleaseProof;
