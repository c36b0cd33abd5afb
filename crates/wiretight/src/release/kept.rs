//! What a node remembers about releases, in `STATE_DIR/release.json`: whoever replaces the program may not make it forget.
//!
//! Beside it, `release.proof` is the proof of the program that `wiretight upgrade FILE` installed, and `release-next.proof`
//! that of the one that it is installing.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use semver::Version;
use serde::{Deserialize, Serialize};

use crate::private_dir::{self, FileError, Owner, PrivateDir};

const FILE: &str = "release.json";
const MAX_FILE: usize = 4096;
/// The proof of the program that was installed with `wiretight upgrade FILE`.
pub const PROOF: &str = "release.proof";
/// The same for the program that is being installed.
pub const NEXT_PROOF: &str = "release-next.proof";

#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(
        "STATE_DIR/{FILE} is damaged ({0}). It has the oldest version that may be installed here: restore it from a backup, or remove it to accept any version that the policy accepts"
    )]
    Damaged(#[from] serde_json::Error),
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The highest minimum version of all releases that were ever proved here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum: Option<Version>,
    /// SHA-256, in hex, of the program that the operator accepted with `--unproved`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unproved: Option<String>,
}

impl Kept {
    pub fn read(dir: &PrivateDir) -> Result<Kept, KeptError> {
        match dir.read(FILE, MAX_FILE)? {
            Some(bytes) => Ok(serde_json::from_slice(&bytes)?),
            None => Ok(Kept::default()),
        }
    }

    /// Remembers that a release with this minimum was proved. The minimum never falls.
    pub fn raise(dir: &PrivateDir, minimum: &Version) -> Result<(), KeptError> {
        let kept = Kept::read(dir)?;
        if kept.minimum.as_ref().is_some_and(|known| known >= minimum) {
            return Ok(());
        }
        Kept { minimum: Some(minimum.clone()), ..kept }.write(dir)
    }

    /// Remembers that the operator accepted this program without a proof. (SHA-256, in hex.)
    pub fn accept(dir: &PrivateDir, sha256: &str) -> Result<(), KeptError> {
        Kept { unproved: Some(sha256.to_owned()), ..Kept::read(dir)? }.write(dir)
    }

    /// Whether the operator accepted this program without a proof. (SHA-256, in hex.)
    pub fn accepts(&self, sha256: &str) -> bool {
        self.unproved.as_deref() == Some(sha256)
    }

    fn write(&self, dir: &PrivateDir) -> Result<(), KeptError> {
        Ok(write(dir, FILE, &serde_json::to_vec(self)?)?)
    }
}

/// Writes a file for the node, which may run as another user than this process.
pub fn write(dir: &PrivateDir, name: &str, bytes: &[u8]) -> Result<(), FileError> {
    let path = dir.path().join(name);
    let written = owner(dir.path()).and_then(|owner| private_dir::replace(&path, bytes, owner));
    written.map_err(|source| FileError { doing: "write", path, source })
}

/// The owner of the files in a directory of another user; `None` if it is this user.
fn owner(dir: &Path) -> std::io::Result<Option<Owner>> {
    let is = fs::metadata(dir)?;
    let other = is.uid() != rustix::process::geteuid().as_raw();
    Ok(other.then_some(Owner { uid: is.uid(), gid: is.gid(), mode: 0o600 }))
}
