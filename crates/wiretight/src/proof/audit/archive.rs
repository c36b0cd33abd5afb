//! The archive as bytes: a tar file (POSIX ustar) of regular files only, with exactly one encoding. The reader accepts
//! nothing else, so it needs no rule for links, sparse files, extensions or paths: the header of each member must be the
//! one that the writer makes for this name and size.

use std::fmt;

use serde::Serialize;
use tar::Header;
use wiretight_keys::token::hex;
use wiretight_tlog::Hash;

/// The largest archive, in bytes.
pub const MAX_ARCHIVE: usize = 128 << 20;
/// The most files.
pub const MAX_FILES: usize = 128;
/// The longest name of a file.
const MAX_NAME: usize = 64;
const BLOCK: usize = 512;
/// The end of an archive: two blocks of zeros.
const END: usize = 2 * BLOCK;
/// The last file: SHA-256 of the others, in the format of `sha256sum`.
pub const MANIFEST: &str = "manifest";
/// The file that names the evidence of each control, with its hash.
pub const CONTROLS: &str = "controls.json";
/// The longest of these that is searched for a hash.
const MAX_CONTROLS: usize = 1 << 20;

/// A file of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File<B = Vec<u8>> {
    pub name: String,
    pub bytes: B,
}

/// What is wrong, and in which file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// The name of the file in the archive; `archive` for what is between files.
    pub file: String,
    /// Which hour or day it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub period: Option<String>,
    pub what: String,
}

impl Damage {
    pub(super) fn new(file: &str, what: impl Into<String>) -> Self {
        Self { file: file.to_owned(), period: None, what: what.into() }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.period {
            Some(period) => write!(f, "{}, {period}: {}", self.file, self.what),
            None => write!(f, "{}: {}", self.file, self.what),
        }
    }
}

/// SHA-256 in hex.
pub(super) fn sha256(bytes: &[u8]) -> String {
    hex(Hash::of(bytes).as_bytes())
}

/// `None` if the name or size does not fit.
fn header(name: &str, size: u64, time: u64) -> Option<Header> {
    let mut header = Header::new_ustar();
    let safe = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'/');
    let fits = !name.is_empty() && name.len() <= MAX_NAME && name.bytes().all(safe);
    let inside = name.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    // Eleven octal digits.
    if !fits || !inside || size > MAX_ARCHIVE as u64 || time >= 1 << 33 {
        return None;
    }
    header.set_path(name).ok()?;
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(time);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    Some(header)
}

/// Writes the files in this order, all with this time, and the manifest of them.
///
/// # Errors
/// There are too many files, or they are too large.
pub fn write(mut files: Vec<File>, time: u64) -> Result<Vec<u8>, String> {
    files.push(File { name: MANIFEST.into(), bytes: manifest(&files).into_bytes() });
    let size: usize = files.iter().map(|f| f.bytes.len() + 2 * BLOCK).sum::<usize>() + END;
    if files.len() > MAX_FILES || size > MAX_ARCHIVE {
        return Err(format!(
            "an archive has at most {MAX_FILES} files and {} MiB; choose a shorter period, or fewer scans",
            MAX_ARCHIVE >> 20
        ));
    }
    let mut bytes = Vec::with_capacity(size);
    for file in files {
        let header = header(&file.name, file.bytes.len() as u64, time)
            .ok_or_else(|| format!("{} cannot be the name of a file here", file.name))?;
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(&file.bytes);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    }
    bytes.resize(bytes.len() + END, 0);
    Ok(bytes)
}

/// A line for each file: SHA-256 in hex, two spaces, the name; sorted by name.
fn manifest<B: AsRef<[u8]>>(files: &[File<B>]) -> String {
    let mut lines: Vec<_> = files.iter().map(|f| (&f.name, sha256(f.bytes.as_ref()))).collect();
    lines.sort();
    lines.into_iter().map(|(name, hash)| format!("{hash}  {name}\n")).collect()
}

/// Whether a file is meant to be an archive. It looks at several places, so that one damaged byte does not hide it.
pub fn is_archive(name: &str, start: &[u8]) -> bool {
    name.ends_with(".tar")
        || start.get(257..262).is_some_and(|magic| magic == b"ustar")
        || start.starts_with(b"index.html\0")
}

/// The files of an archive, whose manifest was not looked at.
#[derive(Debug, PartialEq, Eq)]
pub struct Read<'a> {
    pub files: Vec<File<&'a [u8]>>,
    /// The time of all files, in seconds since 1970.
    pub time: u64,
}

/// Takes an archive apart.
///
/// # Errors
/// The first place where it is not what [`write()`] would have written.
pub fn read(bytes: &[u8]) -> Result<Read<'_>, Damage> {
    let bad = |file: &str, what: &str| Err(Damage::new(file, what));
    if bytes.len() > MAX_ARCHIVE {
        return bad("archive", "it is larger than an archive may be");
    }
    let (mut rest, mut read) = (bytes, Read { files: Vec::new(), time: 0 });
    let mut names = std::collections::BTreeSet::new();
    loop {
        let before = read.files.last().map_or("the start", |file| file.name.as_str()).to_owned();
        let Some((block, after)) = rest.split_at_checked(BLOCK) else {
            return bad("archive", &format!("it ends too early, after {before}"));
        };
        if read.files.last().is_some_and(|file| file.name == MANIFEST) {
            return match rest.len() == END && rest.iter().all(|b| *b == 0) {
                true => Ok(read),
                false => bad("archive", "what follows the manifest is not the end of an archive"),
            };
        }
        let found = Header::from_byte_slice(block);
        let name = String::from_utf8_lossy(&found.path_bytes()).into_owned();
        let shown: String = name
            .chars()
            .take(MAX_NAME)
            .map(|c| match c.is_control() {
                true => '?',
                false => c,
            })
            .collect();
        let time = found.mtime().unwrap_or_default();
        let expected = found.entry_size().ok().and_then(|size| header(&name, size, time));
        let size = found.entry_size().unwrap_or_default();
        let as_written = expected.is_some_and(|expected| expected.as_bytes() == found.as_bytes());
        let same_time = read.files.is_empty() || time == read.time;
        if !as_written || !same_time {
            return bad(
                &shown,
                &format!(
                    "the header of this file, which follows {before}, is not as an archive has it"
                ),
            );
        }
        if read.files.len() == MAX_FILES {
            return bad(&shown, "there are more files than an archive may have");
        }
        if !names.insert(name.clone()) {
            return bad(&shown, "there are two files of this name");
        }
        let size = size as usize;
        let Some((padded, after)) = after.split_at_checked(size.next_multiple_of(BLOCK)) else {
            return bad(&shown, "the archive ends within this file");
        };
        let (content, padding) = padded.split_at(size);
        if padding.iter().any(|b| *b != 0) {
            return bad(&shown, "the bytes after its end are not zero");
        }
        read.time = time;
        read.files.push(File { name, bytes: content });
        rest = after;
    }
}

impl<'a> Read<'a> {
    pub fn get(&self, name: &str) -> Option<&'a [u8]> {
        self.files.iter().find(|file| file.name == name).map(|file| file.bytes)
    }

    /// Compares the files with the manifest.
    pub fn against_manifest(&self) -> Vec<Damage> {
        let (last, files) = match self.files.split_last() {
            Some((last, files)) if last.name == MANIFEST => (last, files),
            _ => return vec![Damage::new(MANIFEST, "it is missing")],
        };
        match manifest(files).as_bytes() == last.bytes {
            true => Vec::new(),
            false => damaged(files, last.bytes, self.get(CONTROLS).unwrap_or_default()),
        }
    }
}

/// The files whose line is not in the manifest as it should be. The controls name hashes of their evidence too, so they
/// tell whether a file was changed or the manifest.
fn damaged(files: &[File<&[u8]>], manifest: &[u8], controls: &[u8]) -> Vec<Damage> {
    let lines: std::collections::BTreeSet<&[u8]> = manifest.split(|b| *b == b'\n').collect();
    let mut damage = Vec::new();
    for File { name, bytes } in files {
        let hash = sha256(bytes);
        if lines.contains(format!("{hash}  {name}").as_bytes()) {
            continue;
        }
        damage.push(match controls.len() <= MAX_CONTROLS && mentions(controls, &hash) {
            true => Damage::new(
                MANIFEST,
                format!("it has another hash of {name} than {CONTROLS}, and than the file itself"),
            ),
            false => Damage::new(name, "it does not match its hash in the manifest"),
        });
    }
    if damage.is_empty() {
        damage
            .push(Damage::new(MANIFEST, "it has a line for something that is not in the archive"));
    }
    damage
}

fn mentions(text: &[u8], hash: &str) -> bool {
    text.windows(hash.len()).any(|window| window == hash.as_bytes())
}
