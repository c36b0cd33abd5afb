//! A directory for this user alone, of files that are there whole or not at all.
//!
//! A write goes to a temporary file (0600), to the disk, under its name by rename, and the rename to
//! the disk: after a crash a file holds what it held before or what was written, never a mixture.
//! It holds small files only, and follows no names out of itself.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use zeroize::Zeroizing;

/// A temporary file of this age is a crash's.
const LEFTOVER: Duration = Duration::from_secs(600);

/// What could not be done with a file, and why.
#[derive(Debug, thiserror::Error)]
#[error("could not {doing} {}: {}", .path.display(), advice(.source))]
pub struct FileError {
    /// A verb.
    pub doing: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// The system's reason.
    pub source: io::Error,
}

/// Marks the one error that is not the system's.
const OPEN: &str = "it holds secrets, and others may enter it";

fn advice(source: &io::Error) -> &'static str {
    match source.get_ref() {
        Some(e) if e.to_string() == OPEN => {
            "give it a directory of its own, or `chmod 700` this one"
        }
        _ => "check that this user owns the directory and that the disk has room",
    }
}

/// The directory.
#[derive(Debug, Clone)]
pub struct PrivateDir {
    path: PathBuf,
}

/// A lock on a directory, let go of when it is dropped.
#[derive(Debug)]
pub struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough: a child on its way from fork to exec has the file open too, for a moment.
        let _ = self.0.unlock();
    }
}

impl PrivateDir {
    /// Opens the directory, and makes it (0700) if it is not there. One that others may enter is refused:
    /// it may be somebody else's, and is not ours to close.
    pub fn open(path: impl Into<PathBuf>) -> Result<PrivateDir, FileError> {
        let dir = PrivateDir::open_shared(path)?;
        let err = |doing, source| FileError { doing, path: dir.path.clone(), source };
        let mode = fs::metadata(&dir.path).map_err(|e| err("look at", e))?.permissions().mode();
        match mode & 0o077 {
            0 => Ok(dir),
            _ => Err(err("use", io::Error::other(OPEN))),
        }
    }

    /// The same for a directory that others may enter: its files are private all the same.
    pub fn open_shared(path: impl Into<PathBuf>) -> Result<PrivateDir, FileError> {
        let path = path.into();
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.map_err(|source| FileError { doing: "create", path: path.clone(), source })?;
        let dir = PrivateDir { path };
        dir.clear_leftovers()?;
        Ok(dir)
    }

    /// Removes temporary files that a crash left behind: those that nobody writes any more.
    fn clear_leftovers(&self) -> Result<(), FileError> {
        for name in self.names()?.iter().filter(|n| n.starts_with('.') && n.ends_with(".tmp")) {
            let path = self.path.join(name);
            let modified = fs::metadata(&path).and_then(|m| m.modified());
            let old = modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > LEFTOVER));
            if old {
                self.remove(name)?;
            }
        }
        Ok(())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is in a file; `None` if there is none. One larger than `max` bytes is an error.
    pub fn read(&self, name: &str, max: usize) -> Result<Option<Zeroizing<Vec<u8>>>, FileError> {
        let path = self.path.join(name);
        let err = |source| FileError { doing: "read", path: path.clone(), source };
        let file = match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(err)?,
        };
        let mut bytes = Zeroizing::new(Vec::new());
        file.take(max as u64 + 1).read_to_end(&mut bytes).map_err(err)?;
        if bytes.len() > max {
            return Err(err(io::Error::other(format!("larger than {max} bytes"))));
        }
        Ok(Some(bytes))
    }

    /// Puts `bytes` into a file, on the disk when this returns.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), FileError> {
        let path = self.path.join(name);
        let err = |source| FileError { doing: "write", path: path.clone(), source };
        // A name of its own, so that two writers cannot mix.
        static WRITES: AtomicU64 = AtomicU64::new(0);
        let (pid, n) = (std::process::id(), WRITES.fetch_add(1, Ordering::Relaxed));
        let temporary = self.path.join(format!(".{name}.{pid}-{n}.tmp"));
        let mut options = OpenOptions::new();
        let written = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&temporary, &path))
            .and_then(|()| self.sync());
        written.map_err(|source| {
            let _ = fs::remove_file(&temporary); // a full disk wants the room
            err(source)
        })
    }

    /// Gives a file another name, over what has that name.
    pub fn rename(&self, from: &str, to: &str) -> Result<(), FileError> {
        let path = self.path.join(from);
        let renamed = fs::rename(&path, self.path.join(to)).and_then(|()| self.sync());
        renamed.map_err(|source| FileError { doing: "rename", path, source })
    }

    /// Removes a file; it is no error if there is none.
    pub fn remove(&self, name: &str) -> Result<(), FileError> {
        let path = self.path.join(name);
        match fs::remove_file(&path).and_then(|()| self.sync()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(|source| FileError { doing: "remove", path, source }),
        }
    }

    /// Takes the lock `name` until it is dropped; `None` if another process has it.
    pub fn lock(&self, name: &str) -> Result<Option<Lock>, FileError> {
        let path = self.path.join(name);
        let err = |source| FileError { doing: "lock", path: path.clone(), source };
        let mut options = OpenOptions::new();
        let opened = options.create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = opened.map_err(err)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock(file))),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(e)) => Err(err(e)),
        }
    }

    /// The names of the files, sorted.
    pub fn names(&self) -> Result<Vec<String>, FileError> {
        let err = |source| FileError { doing: "list", path: self.path.clone(), source };
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(err)? {
            names.extend(entry.map_err(err)?.file_name().into_string().ok());
        }
        names.sort();
        Ok(names)
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_private_whole_and_bounded() {
        let temp = tempfile::tempdir().unwrap();
        let dir = PrivateDir::open(temp.path().join("a/b")).unwrap();
        assert!(dir.read("x", 10).unwrap().is_none());
        dir.write("x", b"one").unwrap();
        dir.write("x", b"two").unwrap();
        assert_eq!(&**dir.read("x", 3).unwrap().unwrap(), b"two");
        assert!(dir.read("x", 2).is_err());
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(dir.path()), mode(&dir.path().join("x"))), (0o700, 0o600));
        dir.rename("x", "y").unwrap();
        assert_eq!(dir.names().unwrap(), ["y"]);
        dir.remove("y").unwrap();
        dir.remove("y").unwrap();
        let (left, now) = (dir.path().join(".x.1-1.tmp"), dir.path().join(".x.1-2.tmp"));
        fs::write(&now, "a writer's").unwrap();
        fs::write(&left, "a crash's").unwrap();
        let long_ago = std::time::SystemTime::now() - 2 * LEFTOVER;
        File::options().write(true).open(&left).unwrap().set_modified(long_ago).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let refused = PrivateDir::open(dir.path()).unwrap_err();
        assert!(refused.to_string().contains("chmod 700"), "{refused}");
        PrivateDir::open_shared(dir.path()).unwrap();
        assert_eq!(mode(dir.path()), 0o755, "it is not ours to close");
        assert_eq!((left.exists(), now.exists()), (false, true));
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        PrivateDir::open(dir.path()).unwrap();
    }
}
