//! The file of a program, replaced by another one that was verified.
//!
//! A candidate is copied into a private file beside the program, and hashed while it is copied. So what was verified is what
//! runs, whatever happens to the original. The program keeps existing under its name at every moment: the old one gets a
//! second name, `FILE.previous`, before the new one replaces it.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;

use super::check::Artifact;
use super::own;

/// A candidate older than this was left by a crash.
const LEFTOVER: Duration = Duration::from_secs(3600);
const CANDIDATE: &str = ".wiretight-candidate.";

#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    #[error("cannot read {}: {source}", .path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("cannot write beside the running program, in {}: {source}. Run this as the owner of that directory; or verify the file (`wiretight verify release`), install it the usual way, and run `wiretight upgrade` without FILE", .dir.display())]
    NotWritable { dir: PathBuf, source: io::Error },
}

/// A copy of a file that may become the program. Removed when dropped, unless it became it.
pub struct Candidate {
    path: PathBuf,
    program: PathBuf,
    artifact: Artifact,
}

/// The path of a process's program, even if the file there was replaced.
pub fn program_of(process: &Path) -> io::Result<PathBuf> {
    let path = fs::read_link(process.join("exe"))?;
    if path.exists() {
        return Ok(path);
    }
    let text = path.to_string_lossy();
    Ok(text.strip_suffix(" (deleted)").map_or_else(|| path.clone(), PathBuf::from))
}

/// The name of the previous program.
pub fn previous_of(program: &Path) -> PathBuf {
    let mut name = program.as_os_str().to_owned();
    name.push(".previous");
    name.into()
}

impl Candidate {
    /// Copies `file` beside `program`. Nothing of it is run.
    pub fn copy(file: &Path, program: &Path) -> Result<Candidate, PlaceError> {
        let unreadable = |source| PlaceError::Unreadable { path: file.into(), source };
        let nonblocking = OFlags::NONBLOCK.bits().cast_signed(); // a pipe would wait for its writer
        let from = File::options().read(true).custom_flags(nonblocking).open(file);
        let from = from.map_err(unreadable)?;
        if !from.metadata().is_ok_and(|is| is.is_file()) {
            return Err(unreadable(io::Error::other("it is not a regular file")));
        }
        let dir = directory(program);
        let not_writable = |source| PlaceError::NotWritable { dir: dir.clone(), source };
        clear_leftovers(&dir);
        let (path, to) = create(&dir).map_err(not_writable)?;
        let mut copying = Copying { from, to, written: Ok(()) };
        // From here on the copy is removed if something fails.
        let empty = Artifact { sha256: wiretight_tlog::Hash::of(b""), size: 0 };
        let mut candidate = Candidate { path, program: program.to_owned(), artifact: empty };
        let copied = own::program(&mut copying);
        copying.written.map_err(not_writable)?;
        candidate.artifact = copied.map_err(unreadable)?;
        if let Ok(old) = fs::metadata(program) {
            if rustix::process::geteuid().is_root() {
                fchown(&copying.to, Some(old.uid()), Some(old.gid())).map_err(not_writable)?;
            }
            let mode = Permissions::from_mode(0o700 | old.mode() & 0o755);
            copying.to.set_permissions(mode).map_err(not_writable)?;
        }
        copying.to.sync_all().map_err(not_writable)?;
        Ok(candidate)
    }

    pub fn artifact(&self) -> Artifact {
        self.artifact
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it the program. The old one becomes the previous one.
    pub fn place(&self) -> io::Result<()> {
        let (dir, previous) = (directory(&self.program), previous_of(&self.program));
        let second = self.path.with_extension("previous");
        match fs::hard_link(&self.program, &second) {
            Ok(()) => fs::rename(&second, &previous).inspect_err(|_| {
                let _ = fs::remove_file(&second);
            })?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        fs::rename(&self.path, &self.program)?;
        File::open(dir)?.sync_all()
    }
}

impl Drop for Candidate {
    fn drop(&mut self) {
        // Not there any longer if it became the program.
        let _ = fs::remove_file(&self.path);
    }
}

/// Makes the previous program the program again.
pub fn put_back(program: &Path) -> io::Result<()> {
    fs::rename(previous_of(program), program)?;
    File::open(directory(program))?.sync_all()
}

fn directory(program: &Path) -> PathBuf {
    program.parent().unwrap_or(Path::new("/")).to_owned()
}

/// A file that nobody else may access, with a name that nobody could have guessed.
fn create(dir: &Path) -> io::Result<(PathBuf, File)> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let path = dir.join(format!("{CANDIDATE}{:016x}", u64::from_le_bytes(random)));
    let file = File::options().write(true).create_new(true).mode(0o700).open(&path)?;
    Ok((path, file))
}

fn clear_leftovers(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let old = || {
            let modified = entry.metadata().and_then(|is| is.modified()).ok()?;
            Some(modified.elapsed().ok()? > LEFTOVER)
        };
        let name: OsString = entry.file_name();
        if name.to_str().is_some_and(|name| name.starts_with(CANDIDATE)) && old() == Some(true) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Writes what is read.
struct Copying {
    from: File,
    to: File,
    written: io::Result<()>,
}

impl Read for Copying {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buffer)?;
        self.written = self.to.write_all(&buffer[..n]);
        match self.written {
            Ok(()) => Ok(n),
            Err(_) => Err(io::ErrorKind::Other.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path) -> String {
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn a_candidate_is_a_copy_and_the_program_exists_at_every_moment() {
        let temp = tempfile::tempdir().unwrap();
        let [program, file] = ["wiretight", "new"].map(|name| temp.path().join(name));
        fs::write(&program, "old").unwrap();
        fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        fs::write(&file, "new").unwrap();
        let candidate = Candidate::copy(&file, &program).unwrap();
        assert_eq!(candidate.artifact(), Artifact::of(&b"new"[..]).unwrap());
        // What happens to the original from now on changes nothing.
        fs::write(&file, "evil").unwrap();
        candidate.place().unwrap();
        drop(candidate);
        assert_eq!((read(&program), read(&previous_of(&program))), ("new".into(), "old".into()));
        assert_eq!(fs::metadata(&program).unwrap().mode() & 0o7777, 0o755);

        // A second one replaces the previous one; going back is possible.
        let again = Candidate::copy(&file, &program).unwrap();
        again.place().unwrap();
        assert_eq!((read(&program), read(&previous_of(&program))), ("evil".into(), "new".into()));
        put_back(&program).unwrap();
        assert_eq!(read(&program), "new");

        // One that does not become the program leaves nothing behind, nor does a crash for long.
        drop(Candidate::copy(&file, &program).unwrap());
        let left = temp.path().join(format!("{CANDIDATE}1"));
        fs::write(&left, "").unwrap();
        let long_ago = std::time::SystemTime::now() - 2 * LEFTOVER;
        File::options().write(true).open(&left).unwrap().set_modified(long_ago).unwrap();
        drop(Candidate::copy(&file, &program).unwrap());
        let mut names: Vec<_> =
            fs::read_dir(temp.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["new", "wiretight"]);
    }

    #[test]
    fn only_regular_files_are_candidates() {
        let temp = tempfile::tempdir().unwrap();
        let program = temp.path().join("wiretight");
        fs::write(&program, "old").unwrap();
        let refused = |file: &Path| Candidate::copy(file, &program).err().unwrap().to_string();
        assert!(refused(temp.path()).contains("not a regular file"));
        assert!(refused(Path::new("/dev/null")).contains("not a regular file"));
        assert!(refused(&temp.path().join("missing")).contains("cannot read"));
        let elsewhere = temp.path().join("missing/wiretight");
        let refused = Candidate::copy(&program, &elsewhere).err().unwrap().to_string();
        assert!(refused.contains("verify release"), "{refused}");
    }
}
