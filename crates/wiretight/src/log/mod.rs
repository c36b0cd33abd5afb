//! The mesh's log: who appends to it, who vouches for it, who reads it.
//!
//! - `storage`: where tiles are kept: in a directory, or (`bucket`) in S3
//! - `edge`: the right edge of its tree, to which entries are appended
//! - `guard`: reads its tiles, and passes on none that is not what was signed
//! - `sequencer`: appends entries, signs checkpoints, hands out proofs
//! - `cosigning`: has checkpoints cosigned by the witnesses of a policy
//! - `serve`: how it is read over HTTP
//! - `witness`: cosigns the checkpoints of logs
//! - `reader`: reads a log, and believes what its checkpoint says
//! - `mirror`: keeps a copy of a log in a directory
//! - `compare`: compares a log with what its witnesses saw
//! - `monitor`: watches a log, and what is issued
//! - `evidence`: what is kept when a log forks

pub mod bucket;
pub mod compare;
pub mod cosigning;
pub mod edge;
pub mod evidence;
pub mod guard;
pub mod mirror;
pub mod monitor;
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
    /// It cannot be read.
    #[error("the policy {path} cannot be read: is the path right, and may this user read it?")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// It is no policy.
    #[error("{path}, {error}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Line and problem.
        error: PolicyError,
    },
    /// A quorum of it has more signatures than a certificate has room for.
    #[error(
        "{path}: a proof by this policy can have {bytes} bytes, and a certificate has room for {MAX_PROOF}: want fewer witnesses with ML-DSA-44 keys, whose cosignatures have 3.3 kB each"
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The most bytes that a proof can have.
        bytes: usize,
    },
    /// It does not say whose proofs count.
    #[error(
        "{path} names no log: add the line `log VKEY` (on the authority, `wiretight authority log-key` prints VKEY)"
    )]
    NoLog {
        /// The file.
        path: PathBuf,
    },
}

/// Reads a file of at most `max` bytes.
pub fn read_bounded(path: &Path, max: usize) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(max as u64 + 1).read_to_end(&mut bytes)?;
    match bytes.len() > max {
        true => Err(io::Error::other(format!("it is larger than {max} bytes"))),
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

/// What is allowed in a policy, but gives less than witnesses are there for.
pub fn weaknesses(policy: &Policy) -> Vec<String> {
    let quorum = policy.quorum_text();
    let smallest = policy.smallest_quorum();
    let mut found = Vec::new();
    if !policy.wants_witnesses() {
        found.push(
            "the quorum is `none`, so no witness has to see the log: whoever has the log's key can show each node another history, and hide what was issued. Name witnesses and a quorum".into(),
        );
    } else if policy.splits() {
        found.push(format!(
            "the quorum ({quorum}) can be reached twice without a witness in common: whoever has the log's key can show two histories, and every witness is honest. Want more than half of the witnesses"
        ));
    }
    if policy.wants_witnesses() && smallest == 1 {
        found.push(format!(
            "one witness is enough for the quorum ({quorum}): that witness alone, if it is dishonest or its key is stolen, lets whoever has the log's key hide what was issued. Want at least two"
        ));
    }
    found
}

/// What the configuration demands of certificates.
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
