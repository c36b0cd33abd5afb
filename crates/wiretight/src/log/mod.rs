//! The mesh's log: who appends to it, who vouches for it, who reads it.
//!
//! - `storage`: where tiles are kept: in a directory, or (`bucket`) in S3
//! - `edge`: the right edge of its tree, to which entries are appended
//! - `guard`: reads its tiles, and passes on none that is not what was signed
//! - `sequencer`: appends entries, signs checkpoints, hands out proofs
//! - `cosigning`: has checkpoints cosigned by the witnesses of a policy
//! - `serve`: how it is read over HTTP
//! - `http`: how others' logs and witnesses are reached
//! - `witness`: cosigns the checkpoints of logs
//! - `reader`: reads a log, and believes what its checkpoint says
//! - `mirror`: keeps a copy of a log in a directory
//! - `compare`: compares a log with what its witnesses saw
//! - `monitor`: watches a log, and what is issued
//! - `server`: what a log and a witness have in common towards a network
//! - `evidence`: what is kept when a log forks

pub mod bucket;
pub mod compare;
pub mod cosigning;
pub mod edge;
pub mod evidence;
pub mod guard;
pub mod http;
pub mod mirror;
pub mod monitor;
pub mod reader;
pub mod sequencer;
pub mod serve;
pub mod server;
pub mod storage;
pub mod witness;

use std::io;
use std::path::{Path, PathBuf};

use wiretight_keys::Transparency;
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
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(MAX_POLICY as u64 + 1).read_to_string(&mut text).map_err(unreadable)?;
    Policy::parse(&text).map_err(|error| PolicyFileError::Malformed { path: path.into(), error })
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
