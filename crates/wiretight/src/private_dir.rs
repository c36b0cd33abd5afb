//! A directory that only this user may access, with atomically written files; and [`replace`], which this program uses
//! for every file that it writes.
//!
//! A write creates a temporary file (0600), syncs it, renames it to its final name, and syncs the directory. After a
//! crash a file has either the old or the new content.
//!
//! The directory may belong to another user (`wiretight rules load` runs as root in the node's directory). So files are
//! opened relative to the directory's descriptor, temporary files have random names and must not exist yet, and symbolic
//! links are not followed. The directory's owner can neither redirect a key into their own file nor have another file
//! overwritten. For small files only.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, RenameFlags, Uid, fchmod, fchown, openat, renameat, renameat_with,
    unlinkat,
};
use rustix::io::Errno;
use rustix::process::geteuid;
use zeroize::Zeroizing;

/// A temporary file older than this was left by a crash.
const LEFTOVER: Duration = Duration::from_secs(600);

#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {}: {}", .path.display(), advice(.source))]
pub struct FileError {
    /// A verb.
    pub doing: &'static str,
    pub path: PathBuf,
    pub source: io::Error,
}

/// A problem that the system does not report as an error.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("it is open to other users (mode {0:04o}) but holds secrets")]
    Open(u32),
    #[error("it belongs to user {owner}, but this process runs as user {user}")]
    Foreign { owner: u32, user: u32 },
    #[error("it is not a regular file")]
    NotAFile,
}

fn advice(source: &io::Error) -> &'static str {
    match source.get_ref().and_then(|e| e.downcast_ref()) {
        Some(Problem::Open(_)) => "run `chmod 700` on it, or use another directory",
        Some(Problem::Foreign { .. }) => {
            "run this as its owner (`sudo -u USER ...`), or change the owner of the directory and everything in it"
        }
        Some(Problem::NotAFile) => "remove it",
        None if source.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
            "it is a symbolic link, and links are not followed here. Replace it by the file itself"
        }
        None => "check that this user owns the directory and that the disk is not full",
    }
}

#[derive(Debug, Clone)]
pub struct PrivateDir {
    path: PathBuf,
}

/// A lock on a directory, released when dropped.
#[derive(Debug)]
pub struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough: a child between fork and exec also has the file open for a moment.
        let _ = self.0.unlock();
    }
}

impl PrivateDir {
    /// Opens the directory, and creates it (0700) if it does not exist. Fails if it is open to other users or belongs to
    /// another user.
    pub fn open(path: impl Into<PathBuf>) -> Result<PrivateDir, FileError> {
        let dir = PrivateDir::create(path.into())?;
        dir.check(true)?;
        dir.clear_leftovers()?;
        Ok(dir)
    }

    /// The same, but the directory may belong to another user: for what root does in a node's directory.
    pub fn open_of_any_user(path: impl Into<PathBuf>) -> Result<PrivateDir, FileError> {
        let dir = PrivateDir::create(path.into())?;
        dir.check(false)?;
        Ok(dir)
    }

    /// The same for a directory that is open to other users; its files are still private.
    pub fn open_shared(path: impl Into<PathBuf>) -> Result<PrivateDir, FileError> {
        let dir = PrivateDir::create(path.into())?;
        dir.clear_leftovers()?;
        Ok(dir)
    }

    fn create(path: PathBuf) -> Result<PrivateDir, FileError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.map_err(|source| FileError { doing: "create", path: path.clone(), source })?;
        Ok(PrivateDir { path })
    }

    fn check(&self, own: bool) -> Result<(), FileError> {
        let err = |doing, source| FileError { doing, path: self.path.clone(), source };
        let is = fs::metadata(&self.path).map_err(|e| err("inspect", e))?;
        let user = geteuid().as_raw();
        if own && is.uid() != user {
            return Err(err("use", io::Error::other(Problem::Foreign { owner: is.uid(), user })));
        }
        match is.permissions().mode() & 0o7777 {
            mode if mode & 0o077 != 0 => Err(err("use", io::Error::other(Problem::Open(mode)))),
            _ => Ok(()),
        }
    }

    /// Removes temporary files that a crash left behind.
    fn clear_leftovers(&self) -> Result<(), FileError> {
        for name in self.names()?.iter().filter(|n| n.starts_with('.') && n.ends_with(".tmp")) {
            let path = self.path.join(name);
            let modified = fs::symlink_metadata(&path).and_then(|m| m.modified());
            let old = modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > LEFTOVER));
            if old {
                self.remove(name)?;
            }
        }
        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The content of a file; `None` if it does not exist. A file larger than `max` bytes is an error.
    pub fn read(&self, name: &str, max: usize) -> Result<Option<Zeroizing<Vec<u8>>>, FileError> {
        let path = self.path.join(name);
        let err = |source| FileError { doing: "read", path: path.clone(), source };
        let file = match open_at(&self.dir().map_err(err)?, name, OFlags::RDONLY) {
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

    /// Replaces or creates a file; it is synced to disk when this returns.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), FileError> {
        let path = self.path.join(name);
        replace(&path, bytes, None).map_err(|source| FileError { doing: "write", path, source })
    }

    /// Renames a file, replacing an existing one.
    pub fn rename(&self, from: &str, to: &str) -> Result<(), FileError> {
        let path = self.path.join(from);
        let renamed = fs::rename(&path, self.path.join(to)).and_then(|()| self.sync());
        renamed.map_err(|source| FileError { doing: "rename", path, source })
    }

    /// Removes a file; it is not an error if it does not exist.
    pub fn remove(&self, name: &str) -> Result<(), FileError> {
        let path = self.path.join(name);
        match fs::remove_file(&path).and_then(|()| self.sync()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(|source| FileError { doing: "remove", path, source }),
        }
    }

    /// Acquires the lock `name`; `None` if another process holds it. On a read-only file system the lock's file must exist.
    pub fn lock(&self, name: &str) -> Result<Option<Lock>, FileError> {
        let path = self.path.join(name);
        let err = |source| FileError { doing: "lock", path: path.clone(), source };
        let dir = self.dir().map_err(err)?;
        let file = match open_at(&dir, name, OFlags::WRONLY | OFlags::CREATE) {
            Err(e) if e.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                open_at(&dir, name, OFlags::RDONLY)
            }
            opened => opened,
        };
        let file = file.map_err(err)?;
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

    fn dir(&self) -> io::Result<File> {
        File::open(&self.path)
    }

    fn sync(&self) -> io::Result<()> {
        self.dir()?.sync_all()
    }
}

/// Owner and mode of a file.
#[derive(Debug, Clone, Copy)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
    /// Permissions, `0o7777` at most.
    pub mode: u32,
}

/// Replaces or creates a file as described in the module documentation. It is synced to disk when this returns. Without
/// `owner` it belongs to this user and is private (0600).
pub fn replace(path: &Path, bytes: &[u8], owner: Option<Owner>) -> io::Result<()> {
    let (dir, name) = parts(path)?;
    replace_at(&dir, name, bytes, owner)?;
    dir.sync_all()
}

/// The same for a new file. An existing one stays as it is, and is an error.
pub fn create(path: &Path, bytes: &[u8], owner: Option<Owner>) -> io::Result<()> {
    let (dir, name) = parts(path)?;
    put_at(&dir, name, bytes, owner, RenameFlags::NOREPLACE)?;
    dir.sync_all()
}

/// The directory of a file, and its name in it.
fn parts(path: &Path) -> io::Result<(File, &OsStr)> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let dir = File::open(if dir.as_os_str().is_empty() { Path::new(".") } else { dir })?;
    Ok((dir, name))
}

/// [`replace`] in an open directory, which the caller must sync.
pub fn replace_at(dir: &File, name: &OsStr, bytes: &[u8], owner: Option<Owner>) -> io::Result<()> {
    put_at(dir, name, bytes, owner, RenameFlags::empty())
}

fn put_at(
    dir: &File,
    name: &OsStr,
    bytes: &[u8],
    owner: Option<Owner>,
    how: RenameFlags,
) -> io::Result<()> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let random = u64::from_le_bytes(random);
    let temporary = format!(".{}.{random:016x}.tmp", name.to_string_lossy());
    let new = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(openat(dir, &temporary, new, Mode::RUSR | Mode::WUSR)?);
    let mut write = || {
        file.write_all(bytes)?;
        if let Some(Owner { uid, gid, mode }) = owner {
            fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
            fchmod(&file, Mode::from_raw_mode(mode & 0o7777))?;
        }
        file.sync_all()?;
        // Some network file systems know no flags.
        match how.is_empty() {
            true => renameat(dir, &temporary, dir, name)?,
            false => renameat_with(dir, &temporary, dir, name, how)?,
        }
        Ok(())
    };
    write().inspect_err(|_: &io::Error| {
        let _ = unlinkat(dir, &temporary, AtFlags::empty()); // the disk may be full
    })
}

/// Opens a regular file, without following symbolic links or waiting for a pipe.
fn open_at(dir: &File, name: &str, how: OFlags) -> io::Result<File> {
    let how = how | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(openat(dir, name, how, Mode::RUSR | Mode::WUSR)?);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other(Problem::NotAFile)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The owner of the directory could attack root, who writes into it.
    #[test]
    fn links_and_files_planted_by_another_user_are_not_followed() {
        use std::os::unix::fs::symlink;
        let temp = tempfile::tempdir().unwrap();
        let dir = PrivateDir::open(temp.path().join("state")).unwrap();
        let victim = temp.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        for name in ["key", "lock"] {
            symlink(&victim, dir.path().join(name)).unwrap();
        }
        let read = dir.read("key", 100).unwrap_err().to_string();
        assert!(read.contains("symbolic link"), "{read}");
        let locked = dir.lock("lock").unwrap_err().to_string();
        assert!(locked.contains("symbolic link"), "{locked}");
        dir.write("key", b"secret").unwrap(); // replaces the link
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
        assert_eq!(&**dir.read("key", 100).unwrap().unwrap(), b"secret");

        // A new lock is not created at the target of a link.
        symlink(temp.path().join("new"), dir.path().join("other.lock")).unwrap();
        assert!(dir.lock("other.lock").is_err());
        assert!(!temp.path().join("new").exists());

        // A directory where a file should be, and a pipe that nobody writes to.
        fs::create_dir(dir.path().join("folder")).unwrap();
        let not_a_file = |name| dir.read(name, 10).unwrap_err().to_string();
        assert!(not_a_file("folder").contains("remove it"));
        rustix::fs::mknodat(
            dir.dir().unwrap(),
            "pipe",
            rustix::fs::FileType::Fifo,
            Mode::RUSR | Mode::WUSR,
            0,
        )
        .unwrap();
        assert!(not_a_file("pipe").contains("remove it"));
        // No temporary files remain.
        let before = dir.names().unwrap();
        dir.write("key", b"again").unwrap();
        assert_eq!(dir.names().unwrap(), before);
    }

    #[test]
    fn a_directory_of_another_user_is_accepted_only_on_request() {
        if !geteuid().is_root() {
            println!("skipped: this needs root");
            return;
        }
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("state");
        PrivateDir::open(&path).unwrap();
        std::os::unix::fs::chown(&path, Some(65534), Some(65534)).unwrap();
        let refused = PrivateDir::open(&path).unwrap_err();
        assert!(refused.to_string().contains("its owner"), "{refused}");
        let dir = PrivateDir::open_of_any_user(&path).unwrap();
        dir.write("rules.json", b"{}").unwrap();
        let is = fs::metadata(path.join("rules.json")).unwrap();
        assert_eq!((is.uid(), is.mode() & 0o777), (0, 0o600));
    }

    #[test]
    fn files_are_private_atomic_and_bounded() {
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
        assert_eq!(mode(dir.path()), 0o755, "a shared directory keeps its mode");
        assert_eq!((left.exists(), now.exists()), (false, true));
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        PrivateDir::open(dir.path()).unwrap();
    }
}
