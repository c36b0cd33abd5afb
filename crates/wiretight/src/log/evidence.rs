//! What is kept when a log seems to have forked: what the log had signed before, and what it was said to have signed
//! now. Anybody can judge it with the log's public key.
//!
//! Files are few and of bounded size, for anybody can send a bad proof with a good checkpoint; those that prove a fork
//! by themselves have a share of their own, which cannot be filled with the others.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use wiretight_tlog::{Checkpoint, Hash};

use crate::private_dir::{FileError, PrivateDir};

/// The most files of each kind.
pub const MAX_FILES: usize = 64;

/// How much it proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Two signed trees of one size: a fork, proved.
    Fork,
    /// A signed tree with a proof that does not hold.
    NotProved,
    /// A signed tree that is smaller than one before.
    Rollback,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Kind::Fork => "fork",
            Kind::NotProved => "not-proved",
            Kind::Rollback => "rollback",
        }
    }
}

/// A directory of evidence.
pub struct Evidence {
    dir: PrivateDir,
    /// Names without their time.
    known: Mutex<HashSet<String>>,
}

impl Evidence {
    /// Opens the directory, and makes it if it is not there.
    pub fn open(dir: &Path) -> Result<Evidence, FileError> {
        let dir = PrivateDir::open(dir)?;
        let names = dir.names()?;
        let known = names.iter().filter_map(|n| Some(n.split_once('-')?.1.to_owned())).collect();
        Ok(Evidence { dir, known: Mutex::new(known) })
    }

    /// Keeps what the log had signed `before`, and what came `after`, at `now` (seconds since 1970); `None` if this
    /// checkpoint is kept already, or there is no room.
    pub fn keep(
        &self,
        kind: Kind,
        checkpoint: &Checkpoint,
        before: &str,
        after: &[u8],
        now: u64,
    ) -> Result<Option<PathBuf>, FileError> {
        let which = Hash::of(checkpoint.to_string().as_bytes());
        let prefix = format!("{}-", kind.word());
        let name = format!("{prefix}{}.txt", wiretight_keys::token::hex(&which.as_bytes()[..8]));
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let of_kind = known.iter().filter(|n| n.starts_with(&prefix)).count();
        if known.contains(&name) || of_kind >= MAX_FILES {
            return Ok(None);
        }
        let file = format!("{now}-{name}");
        let bytes = [b"== before\n", before.as_bytes(), b"\n== now\n", after].concat();
        self.dir.write(&file, &bytes)?;
        known.insert(name);
        Ok(Some(self.dir.path().join(file)))
    }

    /// How many files there are.
    pub fn count(&self) -> usize {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}
