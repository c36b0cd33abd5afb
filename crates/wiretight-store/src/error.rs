//! The errors of a store, grouped by who must act: the programmer who made an invalid call, the caller who must read
//! again, the operator who must repair a file or a disk. No message contains a value; each gives the likely cause and
//! the next step.

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;

use crate::{Key, MAX_VALUE, Revision};

pub type Result<T> = std::result::Result<T, Error>;

/// Why a store operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // Invalid calls.
    /// The text is not a valid [`Key`].
    #[error("not a key: {reason}")]
    BadKey { reason: String },
    /// The value exceeds [`MAX_VALUE`]. Nothing was written.
    #[error("the value is {len} bytes long; the limit is {MAX_VALUE}")]
    ValueTooLarge {
        /// The value's length in bytes.
        len: usize,
    },

    // The caller should read again and retry.
    /// The entry changed since the caller read it. Nothing was written; read it again.
    #[error("another writer changed {key} ({}); read it again", state(*.found))]
    Conflict {
        key: Key,
        /// Its current revision; `None` if it does not exist.
        found: Option<Revision>,
    },
    /// Changes after the requested revision are no longer in the history. List again, and watch from there.
    #[error(
        "the changes after revision {after} are no longer in the history, which starts after {oldest}; list again and watch from the listing's revision"
    )]
    Compacted {
        /// The requested revision.
        after: Revision,
        /// The earliest revision from which a watch is still possible.
        oldest: Revision,
    },
    /// The requested revision is in the future. List again, and watch from there.
    #[error(
        "revision {after} is ahead of the store, which is at {head}; the store was probably restored from an older copy. List again and watch from the listing's revision"
    )]
    Ahead {
        /// The requested revision.
        after: Revision,
        /// The store's revision.
        head: Revision,
    },
    /// The store was dropped, or its runtime is shutting down.
    #[error("the store is closed: the process is probably shutting down")]
    Closed,

    /// The store is on another machine that is unreachable or refused the request. A pending write may or may not
    /// have happened; the caller must read to find out.
    #[error("{why}")]
    Unavailable {
        /// The reason, and what to do.
        why: String,
    },

    // The operator must act.
    /// Another process owns the store.
    #[error("another process holds {}.lock, probably a running authority (`fuser -v {}.lock` names it); stop it, or use a different path here", .path.display(), .path.display())]
    InUse { path: PathBuf },
    /// Other users than the owner may read or write the file.
    #[error("{} has mode {mode:04o}, so other users on this machine can reach its secrets. Check who may have read it, then run `chmod 600` on it", .path.display())]
    Exposed {
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is not a Wiretight store.
    #[error("{} is not a Wiretight store ({found}): the path is probably wrong, or the start of the file was overwritten; correct the path, or restore the file from a backup", .path.display())]
    Foreign {
        path: PathBuf,
        /// What it appears to be.
        found: &'static str,
    },
    /// A later release wrote the file.
    #[error("{} has schema {found}, but this release supports at most {known}: a newer wiretight wrote it; run that release, or restore a backup from before the upgrade", .path.display())]
    NewerSchema {
        path: PathBuf,
        found: i64,
        /// The latest schema that this release supports.
        known: i64,
    },
    /// The file is damaged.
    #[error("{} is damaged ({detail}): probably a failing disk, a partial copy, or a file restored without its -wal; move it aside together with its -wal and restore the last backup", .path.display())]
    Corrupt { path: PathBuf, detail: String },
    /// Disk or quota is full. Nothing was written; the store works again once there is space.
    #[error("could not write {}: its disk or quota is full. Nothing was lost; free some space and retry", .path.display())]
    Full { path: PathBuf },
    #[error("{} stayed locked by another program, probably an sqlite3 shell or a backup: let it finish and retry", .path.display())]
    Busy { path: PathBuf },
    /// A file operation failed.
    #[error("could not {doing} {}: {}", .path.display(), advice(.source))]
    Io {
        /// The operation, as a verb: "create", "read".
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        source: io::Error,
    },
    /// SQLite failed for another reason.
    #[error("SQLite failed on {}: the disk may be failing or read-only, or the directory is not writable for this user; see the cause and the kernel log", .path.display())]
    Sqlite { path: PathBuf, source: Box<dyn StdError + Send + Sync> },
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
            "permission denied; make the user that runs wiretight the owner of the directory and its files"
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "its disk or quota is full; free some space and retry"
        }
        io::ErrorKind::ReadOnlyFilesystem => "the file system is read-only; mount it read-write",
        _ => "check the disk and the path; the system's reason follows",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_io_error_says_what_to_do() {
        for (kind, text) in [
            (io::ErrorKind::NotFound, "create it, mode 0700"),
            (io::ErrorKind::PermissionDenied, "the owner of the directory"),
            (io::ErrorKind::StorageFull, "free some space"),
            (io::ErrorKind::QuotaExceeded, "free some space"),
            (io::ErrorKind::ReadOnlyFilesystem, "mount it read-write"),
            (io::ErrorKind::TimedOut, "check the disk"),
        ] {
            let error = Error::Io { doing: "create", path: "/x".into(), source: kind.into() };
            assert!(error.to_string().contains(text), "{error}");
        }
        let key = Key::new("k").unwrap();
        for (found, text) in [(None, "does not exist"), (Some(Revision(7)), "at revision 7")] {
            let error = Error::Conflict { key: key.clone(), found };
            assert!(error.to_string().contains(text), "{error}");
        }
    }
}
