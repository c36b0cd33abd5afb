//! Everything that can go wrong in a store, in three groups by who must act: the programmer who called
//! it wrongly, the caller who must read again, the operator whose file or disk needs a hand. No message
//! holds a value, and each names the likely cause and the next step.

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;

use crate::{Key, MAX_VALUE, Revision};

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // For the caller to correct.
    /// The text is no [`Key`].
    #[error("not a key: {reason}")]
    BadKey {
        /// What is wrong with it.
        reason: String,
    },
    /// The value exceeds [`MAX_VALUE`]. Nothing was written.
    #[error(
        "a value of {len} bytes is too large: the store holds small state, {MAX_VALUE} bytes a key at most"
    )]
    ValueTooLarge {
        /// Its length in bytes.
        len: usize,
    },

    // For the caller to read again and go on.
    /// The entry is not as the caller last saw it. Nothing was written; read it again.
    #[error("{key} was changed by another writer ({}): read it again", state(*.found))]
    Conflict {
        /// The contested key.
        key: Key,
        /// The revision that it has; `None` if it does not exist.
        found: Option<Revision>,
    },
    /// Changes after the asked revision are no longer in history. List again, and watch from there.
    #[error(
        "changes after revision {after} are gone from history, which now starts after {oldest}: list again and watch from the listing's revision"
    )]
    Compacted {
        /// Where the watcher stands.
        after: Revision,
        /// The earliest revision from which a watch is still possible.
        oldest: Revision,
    },
    /// The asked revision lies in the future. List again, and watch from there.
    #[error(
        "revision {after} is ahead of the store, which is at {head}: the store was probably restored from an older copy; list again and watch from the listing's revision"
    )]
    Ahead {
        /// Where the watcher stands.
        after: Revision,
        /// Where the store stands.
        head: Revision,
    },
    /// The store was dropped, or its runtime is shutting down.
    #[error("the store is closed: the process is probably shutting down")]
    Closed,

    /// The store is on another machine and out of reach, or refuses this one. Whether a write that was under
    /// way has happened only reading tells.
    #[error("{why}")]
    Unavailable {
        /// What stands between, and what to do.
        why: String,
    },

    // For the operator.
    /// Another process owns the store.
    #[error("another process holds {}.lock: this store is probably in use by a running authority; stop that one first, or give this one a path of its own (`fuser -v {}.lock` names the process)", .path.display(), .path.display())]
    InUse {
        /// The store's file.
        path: PathBuf,
    },
    /// Others than the owner may read or write the file.
    #[error("{} has mode {mode:04o}, so others on this machine can reach its secrets: check who could read it, then `chmod 600` it", .path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is something else.
    #[error("{} is not a Wiretight store ({found}): the path is probably wrong, or the start of the file was overwritten; correct the path, or restore the file from a backup", .path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it looks like.
        found: &'static str,
    },
    /// The file was written by a later release.
    #[error("{} has schema {found}, and this release knows {known} at most: a newer wiretight wrote it; run that release, or restore a backup from before the upgrade", .path.display())]
    NewerSchema {
        /// The store's file.
        path: PathBuf,
        /// The schema it has.
        found: i64,
        /// The latest schema that this release reads.
        known: i64,
    },
    /// The file is damaged.
    #[error("{} is damaged ({detail}): probably a failing disk, a partial copy, or a file restored without its -wal; keep it aside with its -wal and restore the last backup", .path.display())]
    Corrupt {
        /// The store's file.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// There is no room for the write. Nothing was written; the store goes on once there is room.
    #[error("no room to write {}: its disk or quota is full; free some space and retry, nothing was lost", .path.display())]
    Full {
        /// The store's file.
        path: PathBuf,
    },
    /// Another program kept the database locked.
    #[error("{} stayed locked by another program, probably an sqlite3 shell or a backup: let it finish and retry", .path.display())]
    Busy {
        /// The store's file.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("could not {doing} {}: {}", .path.display(), advice(.source))]
    Io {
        /// What was tried, as a verb: "create", "read".
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// SQLite failed in another way.
    #[error("SQLite could not work on {}: the disk may be failing or read-only, or its directory not writable by this user; see the cause and the kernel log", .path.display())]
    Sqlite {
        /// The store's file.
        path: PathBuf,
        /// SQLite's reason.
        source: Box<dyn StdError + Send + Sync>,
    },
}

fn state(found: Option<Revision>) -> String {
    match found {
        Some(revision) => format!("it is at revision {revision}"),
        None => "it does not exist".to_owned(),
    }
}

fn advice(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::NotFound => "its directory does not exist; create it, mode 0700",
        io::ErrorKind::PermissionDenied => {
            "this user may not; give the user that runs wiretight the directory and the files in it"
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "its disk or quota is full; free some space and retry"
        }
        io::ErrorKind::ReadOnlyFilesystem => "the file system is read-only; mount it read-write",
        _ => "check the disk and the path; the system's reason follows",
    }
}
