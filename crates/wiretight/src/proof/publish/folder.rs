//! Writes the public folder: all files or none. The new folder is written beside the old one and exchanged with it in one
//! step, so a crash leaves the old or the new one, and a program that has the folder open sees one of them. What a crash
//! leaves beside it is removed the next time.
//!
//! A folder is replaced only if it is empty or was written by this code: nothing of others is ever removed.

use std::ffi::{OsStr, OsString};
use std::fs::{File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, Mode, OFlags, RenameFlags, fchmod, mkdirat, openat, renameat_with, unlinkat,
};

/// A file of the folder, and its text.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PublicFile {
    pub name: String,
    pub text: String,
}

/// The names of the files in a folder. It has no others.
pub const NAMES: [&str; 8] = [
    "consistency.json",
    "facts.json",
    "facts.schema.json",
    "index.html",
    "log.json",
    MANIFEST,
    "publication.json",
    "verify.html",
];
pub const MANIFEST: &str = "manifest";
/// A manifest is smaller.
const MAX_MANIFEST: u64 = 4096;
/// The end of the names of folders that are being written.
const SUFFIX: &str = ".wiretight";

#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error("{} is not a path of a folder", .0.display())]
    Path(PathBuf),
    #[error("cannot {doing} {}", .path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    /// Nothing was changed.
    #[error(
        "{} has {what}, which wiretight did not write. Nothing was changed. Use a new or an empty folder.", .path.display()
    )]
    Foreign { path: PathBuf, what: String },
    #[error("another process is writing {}. Try again.", .0.display())]
    Busy(PathBuf),
    #[error(
        "the file system of {} cannot exchange two folders. Use a local file system (ext4, xfs, btrfs, tmpfs), and copy the folder from there.", .0.display()
    )]
    NoExchange(PathBuf),
}

/// Whether [`write()`] may write this folder, and its file system can exchange two. Call it before a publication is
/// logged: otherwise the log has one that nobody can see.
pub fn check(dir: &Path) -> Result<(), FolderError> {
    let Place { parent, parent_dir, name, .. } = Place::open(dir)?;
    clear_leftovers(&parent_dir, parent, name)?;
    let [one, other] = [random(dir)?, random(dir)?].map(|random| temporary(name, random));
    let failed = |e: rustix::io::Errno| at("write in", parent)(e.into());
    mkdirat(&parent_dir, &one, Mode::RWXU).map_err(failed)?;
    let made = mkdirat(&parent_dir, &other, Mode::RWXU).map_err(failed);
    let exchanged = made.and_then(|()| put_in_place(&parent_dir, &one, &other, true, dir));
    for folder in [one, other] {
        remove(&parent_dir, &folder).map_err(at("remove", &parent.join(&folder)))?;
    }
    exchanged
}

/// Replaces or creates the folder. It is on disk when this returns.
pub fn write(dir: &Path, files: &[PublicFile]) -> Result<(), FolderError> {
    let Place { parent, parent_dir, name, replaces } = Place::open(dir)?;
    clear_leftovers(&parent_dir, parent, name)?;
    let temporary = temporary(name, random(dir)?);
    let path = parent.join(&temporary);
    let written = write_new(&parent_dir, &temporary, files)
        .map_err(at("write", &path))
        .and_then(|()| put_in_place(&parent_dir, &temporary, name, replaces, dir));
    if written.is_err() || replaces {
        // What is under the temporary name now is the old folder, or one that was not completed.
        let removed = remove(&parent_dir, &temporary).map_err(at("remove", &path));
        written?;
        removed?;
    }
    parent_dir.sync_all().map_err(at("write", parent))
}

fn at(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FolderError {
    let path = path.to_owned();
    move |source| FolderError::Io { doing, path, source }
}

/// Where a folder is, or will be. Locked until it is dropped.
struct Place<'a> {
    parent: &'a Path,
    parent_dir: File,
    name: &'a OsStr,
    /// Whether there is a folder, which is empty or ours.
    replaces: bool,
}

impl<'a> Place<'a> {
    fn open(dir: &'a Path) -> Result<Place<'a>, FolderError> {
        let name = dir.file_name().ok_or_else(|| FolderError::Path(dir.into()))?;
        let parent = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let parent_dir = File::open(parent).map_err(at("open", parent))?;
        match parent_dir.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(FolderError::Busy(dir.into())),
            Err(TryLockError::Error(e)) if e.kind() != io::ErrorKind::Unsupported => {
                return Err(at("lock", parent)(e));
            }
            _ => {}
        }
        let old = open_folder(&parent_dir, name).map_err(at("open", dir))?;
        if let Some(old) = &old {
            check_ours(old, dir)?;
        }
        Ok(Place { parent, parent_dir, name, replaces: old.is_some() })
    }
}

fn random(dir: &Path) -> Result<u64, FolderError> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|e| at("write", dir)(io::Error::other(e)))?;
    Ok(u64::from_le_bytes(random))
}

/// `.NAME.0123456789abcdef.wiretight`
fn temporary(name: &OsStr, random: u64) -> OsString {
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{random:016x}{SUFFIX}"));
    temporary
}

fn open_folder(parent: &File, name: &OsStr) -> io::Result<Option<File>> {
    let how = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(parent, name, how, Mode::empty()) {
        Ok(folder) => Ok(Some(File::from(folder))),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// The names of everything in a folder.
fn names(folder: &File) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Whether the folder is empty, or has a manifest of ours and no other files.
fn check_ours(folder: &File, path: &Path) -> Result<(), FolderError> {
    let failed = |source| FolderError::Io { doing: "read", path: path.into(), source };
    let foreign = |what: String| Err(FolderError::Foreign { path: path.into(), what });
    let names = names(folder).map_err(failed)?;
    if let Some(other) = names.iter().find(|name| !NAMES.iter().any(|ours| *name == ours)) {
        return foreign(format!("{:?}", other.to_string_lossy()));
    }
    if names.is_empty() {
        return Ok(());
    }
    let how = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut text = String::new();
    match openat(folder, MANIFEST, how, Mode::empty()) {
        Err(_) => return foreign("no manifest, but files".into()),
        Ok(file) => {
            let read = File::from(file).take(MAX_MANIFEST).read_to_string(&mut text);
            read.map_err(failed)?;
        }
    }
    let ours = |line: &str| {
        let (hash, name) = line.split_once("  ")?;
        let hash = hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit());
        (hash && NAMES.contains(&name)).then_some(())
    };
    match !text.is_empty() && text.lines().all(|line| ours(line).is_some()) {
        true => Ok(()),
        false => foreign("a manifest".into()),
    }
}

/// Writes the new folder, and syncs it.
fn write_new(parent: &File, temporary: &OsStr, files: &[PublicFile]) -> io::Result<()> {
    let everybody = Mode::from_raw_mode(0o755);
    mkdirat(parent, temporary, everybody)?;
    let folder = open_folder(parent, temporary)?.ok_or(io::ErrorKind::NotFound)?;
    fchmod(&folder, everybody)?; // whatever the umask is
    let new = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    for PublicFile { name, text } in files {
        debug_assert!(NAMES.contains(&name.as_str()));
        let readable = Mode::from_raw_mode(0o644);
        let mut file = File::from(openat(&folder, name.as_str(), new, readable)?);
        file.write_all(text.as_bytes())?;
        fchmod(&file, readable)?;
        file.sync_all()?;
    }
    folder.sync_all()
}

fn put_in_place(
    parent: &File,
    temporary: &OsStr,
    name: &OsStr,
    exchange: bool,
    dir: &Path,
) -> Result<(), FolderError> {
    let how = if exchange { RenameFlags::EXCHANGE } else { RenameFlags::NOREPLACE };
    let renamed = renameat_with(parent, temporary, parent, name, how);
    renamed.and_then(|()| rustix::fs::fsync(parent)).map_err(|e| match e {
        rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS => FolderError::NoExchange(dir.into()),
        e => FolderError::Io { doing: "replace", path: dir.into(), source: e.into() },
    })
}

/// Removes a folder with files of ours. With any other file in it, it stays, and that is an error.
fn remove(parent: &File, folder: &OsStr) -> io::Result<()> {
    let Some(open) = open_folder(parent, folder)? else { return Ok(()) };
    for name in NAMES {
        match unlinkat(&open, name, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(unlinkat(parent, folder, AtFlags::REMOVEDIR)?)
}

/// Removes what a crash has left.
fn clear_leftovers(parent: &File, path: &Path, name: &OsStr) -> Result<(), FolderError> {
    let failed = |source| FolderError::Io { doing: "list", path: path.into(), source };
    let ours = |left: &OsStr| {
        let (left, name) = (left.as_bytes(), name.as_bytes());
        let random = left.strip_prefix(b".").and_then(|rest| rest.strip_prefix(name));
        let random = random.and_then(|rest| rest.strip_prefix(b"."));
        let random = random.and_then(|rest| rest.strip_suffix(SUFFIX.as_bytes()));
        random.is_some_and(|r| r.len() == 16 && r.iter().all(u8::is_ascii_hexdigit))
    };
    for left in names(parent).map_err(failed)?.iter().filter(|left| ours(left)) {
        let failed = |source| FolderError::Io { doing: "remove", path: path.join(left), source };
        remove(parent, left).map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn files(text: &str) -> Vec<PublicFile> {
        let file = |name: &str, text: &str| PublicFile { name: name.into(), text: text.into() };
        let manifest = format!("{}  index.html\n", "0".repeat(64));
        vec![file("index.html", text), file(MANIFEST, &manifest)]
    }

    fn read(dir: &Path) -> String {
        fs::read_to_string(dir.join("index.html")).unwrap()
    }

    #[test]
    fn a_folder_is_created_replaced_and_readable_for_everybody() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("proof");
        write(&dir, &files("one")).unwrap();
        assert_eq!(read(&dir), "one");
        write(&dir, &files("two")).unwrap();
        assert_eq!(read(&dir), "two");
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&dir), mode(&dir.join("index.html"))), (0o755, 0o644));
        // Nothing is left beside it.
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 1);
        // An empty folder may be used.
        let empty = temp.path().join("empty");
        fs::create_dir(&empty).unwrap();
        write(&empty, &files("three")).unwrap();
        assert_eq!(read(&empty), "three");
    }

    #[test]
    fn what_a_crash_left_is_removed_and_what_others_left_is_not() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("proof");
        let left = temp.path().join(temporary(OsStr::new("proof"), 7));
        fs::create_dir(&left).unwrap();
        fs::write(left.join("index.html"), "half").unwrap();
        let of_another = temp.path().join(temporary(OsStr::new("other"), 7));
        fs::create_dir(&of_another).unwrap();
        write(&dir, &files("one")).unwrap();
        assert!(!left.exists() && of_another.exists());
        // A file of somebody else in it is not removed.
        fs::create_dir(&left).unwrap();
        fs::write(left.join("diary"), "mine").unwrap();
        write(&dir, &files("two")).unwrap_err();
        assert_eq!(fs::read_to_string(left.join("diary")).unwrap(), "mine");
        assert_eq!(read(&dir), "one");
    }

    #[test]
    fn a_folder_of_somebody_else_is_not_touched() {
        let temp = tempfile::tempdir().unwrap();
        let refused = |dir: &Path| {
            assert!(check(dir).is_err());
            write(dir, &files("ours")).unwrap_err().to_string()
        };
        // A web site.
        let site = temp.path().join("site");
        fs::create_dir(&site).unwrap();
        fs::write(site.join("index.html"), "theirs").unwrap();
        assert!(refused(&site).contains("no manifest"));
        // A manifest of something else.
        fs::write(site.join(MANIFEST), "CACHE MANIFEST\n").unwrap();
        assert!(refused(&site).contains("has a manifest"));
        // Ours, and one more file.
        let ours = temp.path().join("ours");
        write(&ours, &files("one")).unwrap();
        fs::write(ours.join("robots.txt"), "theirs").unwrap();
        assert!(refused(&ours).contains("robots.txt"));
        assert_eq!((read(&site).as_str(), read(&ours).as_str()), ("theirs", "one"));
        fs::remove_file(ours.join("robots.txt")).unwrap();
        write(&ours, &files("two")).unwrap(); // the control
        // A symbolic link, a file, and no path.
        symlink(&ours, temp.path().join("link")).unwrap();
        refused(&temp.path().join("link"));
        fs::write(temp.path().join("file"), "theirs").unwrap();
        refused(&temp.path().join("file"));
        refused(Path::new("/"));
        assert_eq!(read(&ours), "two");
    }

    #[test]
    fn two_writers_at_once_are_refused() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("proof");
        let held = File::open(temp.path()).unwrap();
        held.lock().unwrap();
        assert!(matches!(write(&dir, &files("one")), Err(FolderError::Busy(_))));
        held.unlock().unwrap();
        write(&dir, &files("one")).unwrap();
    }
}
