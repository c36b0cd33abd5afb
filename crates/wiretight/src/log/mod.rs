//! The transparency log of the mesh: writing, cosigning, serving, reading and monitoring it.
//!
//! - `storage`: stores the files of a log, in a directory or (`bucket`) in S3
//! - `edge`: the right edge of the tree, where entries are appended
//! - `guard`: reads the log's files and checks that they are what was signed
//! - `sequencer`: appends entries, signs checkpoints, creates proofs
//! - `prove`: proves what is in the log, from its tiles
//! - `cosigning`: has checkpoints cosigned by the witnesses of a policy
//! - `serve`: serves the log over HTTP
//! - `witness`: cosigns the checkpoints of logs
//! - `reader`: reads a log and verifies it against its checkpoint
//! - `mirror`: keeps a copy of a log in a directory
//! - `compare`: compares a log with what its witnesses saw
//! - `monitor`: watches a log and what is issued
//! - `evidence`: stores the evidence when a log forks

pub mod bucket;
pub mod compare;
pub mod cosigning;
pub mod edge;
pub mod evidence;
pub mod guard;
pub mod mirror;
pub mod monitor;
pub mod prove;
pub mod reader;
pub mod sequencer;
pub mod serve;
pub mod storage;
pub mod witness;

use std::io;
use std::path::{Path, PathBuf};

use wiretight_keys::Transparency;
use wiretight_keys::logged::MAX_PROOF;
use wiretight_tlog::policy::{MAX_POLICY, Policy, PolicyError};

use crate::config::Config;

/// Why a policy file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyFileError {
    /// The file cannot be read.
    #[error("cannot read the policy {path}: check the path and its permissions")]
    Unreadable {
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The file is not a valid policy.
    #[error("{path}, {error}")]
    Malformed {
        path: PathBuf,
        /// Line and problem.
        error: PolicyError,
    },
    /// The signatures of a quorum can be too large for a certificate.
    #[error(
        "{path}: a proof by this policy can be {bytes} bytes long, but a certificate has room for {MAX_PROOF}: require fewer witnesses with ML-DSA-44 keys, whose cosignatures are 3.3 kB each"
    )]
    TooLarge {
        path: PathBuf,
        /// The largest possible size of a proof.
        bytes: usize,
    },
    /// It names no log.
    #[error(
        "{path} names no log: add the line `log VKEY` (on the authority, `wiretight authority log-key` prints VKEY)"
    )]
    NoLog { path: PathBuf },
}

/// Reads a file of at most `max` bytes.
pub fn read_bounded(path: &Path, max: usize) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(max as u64 + 1).read_to_end(&mut bytes)?;
    match bytes.len() > max {
        true => Err(io::Error::other(format!("the file is larger than {max} bytes"))),
        false => Ok(bytes),
    }
}

/// Reads a policy file (C2SP tlog-policy).
pub fn read_policy(path: &Path) -> Result<Policy, PolicyFileError> {
    use std::io::Read;
    let unreadable = |source| PolicyFileError::Unreadable { path: path.into(), source };
    let mut text = Vec::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(MAX_POLICY as u64 + 1).read_to_end(&mut text).map_err(unreadable)?;
    let policy = Policy::parse(&text);
    let policy = policy.map_err(|error| PolicyFileError::Malformed { path: path.into(), error })?;
    match policy.largest_proof() {
        bytes if bytes > MAX_PROOF => Err(PolicyFileError::TooLarge { path: path.into(), bytes }),
        _ => Ok(policy),
    }
}

/// The weaknesses of a valid policy.
pub fn weaknesses(policy: &Policy) -> Vec<String> {
    let quorum = policy.quorum_text();
    let smallest = policy.smallest_quorum();
    let mut found = Vec::new();
    if !policy.wants_witnesses() {
        found.push(
            "the quorum is `none`, so no witness has to see the log: anyone with the log's key can show each node a different history and hide what was issued. Name witnesses and a quorum".into(),
        );
    } else if policy.splits() {
        found.push(format!(
            "the quorum ({quorum}) can be reached by two groups without a common witness: anyone with the log's key can show two histories even if every witness is honest. Require more than half of the witnesses"
        ));
    }
    if policy.wants_witnesses() && smallest == 1 {
        found.push(format!(
            "one witness is enough for the quorum ({quorum}): if that witness is dishonest or its key is stolen, anyone with the log's key can hide what was issued. Require at least two"
        ));
    }
    found
}

/// The proof of logging that the configuration requires of certificates.
pub fn transparency(config: &Config) -> Result<Transparency, PolicyFileError> {
    let Some(witnesses) = config.witnesses.as_ref().filter(|w| w.required) else {
        return Ok(Transparency::NotRequired);
    };
    let policy = read_policy(&witnesses.policy)?;
    if policy.logs().is_empty() {
        return Err(PolicyFileError::NoLog { path: witnesses.policy.clone() });
    }
    Ok(Transparency::required(policy))
}
