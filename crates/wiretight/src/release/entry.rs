//! The entries of a release log: signed notes (C2SP signed-note) whose text has one field on each line.
//!
//! ```text
//! wiretight-release/v1
//! name wiretight
//! version 1.4.0
//! source 5f3c…            SHA-256 of the source entry, with its signatures
//! minimum 1.2.0
//! expires 2027-06-01T00:00:00Z
//! file 9d41… 14113448 wiretight
//! file c0de… 13051234 wiretight_1.4.0-1_amd64.deb
//!
//! — example.org/wiretight Az3g…
//! ```
//!
//! Each value has one encoding, so that the entry that is read is the entry that was signed.

use std::fmt;

use jiff::Timestamp;
use semver::Version;
use wiretight_keys::token::hex;
use wiretight_tlog::note::Note;
use wiretight_tlog::tile::MAX_ENTRY;
use wiretight_tlog::{Hash, LogKey, LogSigner, NoteError};

/// The most files in an entry.
pub const MAX_FILES: usize = 64;
const MAX_NAME: usize = 128;

const SOURCE: &str = "wiretight-release-source/v1";
const RELEASE: &str = "wiretight-release/v1";
const REBUILD: &str = "wiretight-release-rebuild/v1";

/// Why something is not an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    #[error(transparent)]
    Note(#[from] NoteError),
    /// The first line is of no kind that this release knows.
    #[error("its first line is {0:?}, which is no kind of entry that this program knows")]
    Kind(String),
    /// A line is missing or invalid.
    #[error("line {line}: expected `{expected}`, found {found:?}")]
    Line { line: usize, expected: &'static str, found: String },
    /// It is too large for a log.
    #[error("it has more than {MAX_ENTRY} bytes")]
    TooLarge,
    /// It has no files, too many, or they are not sorted by name.
    #[error("an entry names 1 to {MAX_FILES} files, each once, sorted by name")]
    Files,
}

/// What a release is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The program's name.
    pub name: String,
    pub version: Version,
    /// The object ID of the git tree, in hex.
    pub tree: String,
    /// SHA-256 of Cargo.lock.
    pub lock: Hash,
    /// SHA-256 over all dependencies (docs/release.md).
    pub vendor: Hash,
    /// SHA-256 of the file that names the toolchain.
    pub toolchain: Hash,
    /// SHA-256 over the scripts and settings that build (docs/release.md).
    pub recipe: Hash,
}

/// A file, and what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    pub name: String,
    /// In bytes.
    pub size: u64,
    pub sha256: Hash,
}

/// What the publisher has made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    pub name: String,
    pub version: Version,
    /// SHA-256 of the source entry.
    pub source: Hash,
    /// From now on, no older version may be installed.
    pub minimum: Version,
    /// From then on, it may not be installed.
    pub expires: Timestamp,
    /// Sorted by name.
    pub files: Vec<File>,
}

/// What a rebuilder has made from a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rebuild {
    /// SHA-256 of the source entry.
    pub source: Hash,
    /// SHA-256 of the file that names the toolchain that was used.
    pub toolchain: Hash,
    /// Sorted by name.
    pub files: Vec<File>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    Source(Source),
    Release(Release),
    Rebuild(Rebuild),
}

/// An entry with its signatures, which are unverified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedEntry {
    note: Note,
    entry: Entry,
}

impl Release {
    pub fn file(&self, sha256: Hash) -> Option<&File> {
        self.files.iter().find(|file| file.sha256 == sha256)
    }
}

impl SignedEntry {
    pub fn parse(text: &str) -> Result<SignedEntry, EntryError> {
        if text.len() > MAX_ENTRY {
            return Err(EntryError::TooLarge);
        }
        let note = Note::parse(text)?;
        let entry = Entry::parse(note.text())?;
        Ok(SignedEntry { note, entry })
    }

    pub fn sign(entry: Entry, key: &LogSigner) -> Result<SignedEntry, EntryError> {
        let mut note = Note::new(entry.to_string())?;
        key.sign(&mut note);
        // Reads it as others will, so that nothing is signed that they would refuse.
        SignedEntry::parse(&note.to_string())
    }

    pub fn signed_by(&self, key: &LogKey) -> bool {
        key.signed(&self.note)
    }

    /// What it says. Check [`Self::signed_by`] before believing it.
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// SHA-256 of the whole entry, by which other entries name it.
    pub fn id(&self) -> Hash {
        Hash::of(self.to_string().as_bytes())
    }

    /// The hash of the leaf in the log.
    pub fn leaf(&self) -> Hash {
        Hash::leaf(self.to_string().as_bytes())
    }
}

/// The bytes in the log.
impl fmt::Display for SignedEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.note.fmt(f)
    }
}

impl Entry {
    /// Reads the text of an entry, without its signatures.
    pub fn parse(text: &str) -> Result<Entry, EntryError> {
        let mut lines = Lines { lines: text.lines().collect(), at: 1 };
        let entry = match lines.lines.first().copied().unwrap_or_default() {
            SOURCE => Entry::Source(Source::read(&mut lines)?),
            RELEASE => Entry::Release(Release {
                name: lines.field("name NAME", name)?,
                version: lines.field("version VERSION", version)?,
                source: lines.field("source SHA-256", hash)?,
                minimum: lines.field("minimum VERSION", version)?,
                expires: lines.field("expires TIME (2027-01-31T00:00:00Z)", time)?,
                files: lines.files()?,
            }),
            REBUILD => Entry::Rebuild(Rebuild {
                source: lines.field("source SHA-256", hash)?,
                toolchain: lines.field("toolchain SHA-256", hash)?,
                files: lines.files()?,
            }),
            other => return Err(EntryError::Kind(short(other))),
        };
        lines.end()?;
        Ok(entry)
    }
}

impl Source {
    /// Reads `source.txt`, as `scripts/release` writes it.
    pub fn parse(text: &str) -> Result<Source, EntryError> {
        let mut lines = Lines { lines: text.lines().collect(), at: 0 };
        let source = Source::read(&mut lines)?;
        lines.end()?;
        Ok(source)
    }

    fn read(lines: &mut Lines<'_>) -> Result<Source, EntryError> {
        Ok(Source {
            name: lines.field("name NAME", name)?,
            version: lines.field("version VERSION", version)?,
            tree: lines.field("tree GIT-TREE", object_id)?,
            lock: lines.field("lock SHA-256", hash)?,
            vendor: lines.field("vendor SHA-256", hash)?,
            toolchain: lines.field("toolchain SHA-256", hash)?,
            recipe: lines.field("recipe SHA-256", hash)?,
        })
    }
}

/// Reads `files.txt`, as `scripts/release` writes it.
pub fn parse_files(text: &str) -> Result<Vec<File>, EntryError> {
    let mut lines = Lines { lines: text.lines().collect(), at: 0 };
    let files = lines.files()?;
    lines.end()?;
    Ok(files)
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "name {}", self.name)?;
        writeln!(f, "version {}", self.version)?;
        writeln!(f, "tree {}", self.tree)?;
        writeln!(f, "lock {}", hex(self.lock.as_bytes()))?;
        writeln!(f, "vendor {}", hex(self.vendor.as_bytes()))?;
        writeln!(f, "toolchain {}", hex(self.toolchain.as_bytes()))?;
        writeln!(f, "recipe {}", hex(self.recipe.as_bytes()))
    }
}

impl fmt::Display for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "file {} {} {}", hex(self.sha256.as_bytes()), self.size, self.name)
    }
}

/// The text of an entry, without signatures.
impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files = match self {
            Entry::Source(source) => return write!(f, "{SOURCE}\n{source}"),
            Entry::Release(release) => {
                writeln!(f, "{RELEASE}")?;
                writeln!(f, "name {}", release.name)?;
                writeln!(f, "version {}", release.version)?;
                writeln!(f, "source {}", hex(release.source.as_bytes()))?;
                writeln!(f, "minimum {}", release.minimum)?;
                writeln!(f, "expires {}", release.expires)?;
                &release.files
            }
            Entry::Rebuild(rebuild) => {
                writeln!(f, "{REBUILD}")?;
                writeln!(f, "source {}", hex(rebuild.source.as_bytes()))?;
                writeln!(f, "toolchain {}", hex(rebuild.toolchain.as_bytes()))?;
                &rebuild.files
            }
        };
        files.iter().try_for_each(|file| writeln!(f, "{file}"))
    }
}

struct Lines<'a> {
    lines: Vec<&'a str>,
    /// The next line, from 0.
    at: usize,
}

impl Lines<'_> {
    /// Reads the field of the next line, whose key is the first word of `expected`.
    fn field<T>(
        &mut self,
        expected: &'static str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Result<T, EntryError> {
        let line = self.lines.get(self.at).copied().unwrap_or_default();
        let (key, value) = line.split_once(' ').unwrap_or((line, ""));
        let is_key = expected.split(' ').next() == Some(key);
        let value = is_key.then(|| read(value)).flatten();
        let value = value.ok_or_else(|| self.wrong(expected))?;
        self.at += 1;
        Ok(value)
    }

    fn files(&mut self) -> Result<Vec<File>, EntryError> {
        let mut files: Vec<File> = Vec::new();
        while self.lines.get(self.at).is_some() {
            let file = self.field("file SHA-256 SIZE NAME", file)?;
            if files.len() == MAX_FILES || files.last().is_some_and(|last| last.name >= file.name) {
                return Err(EntryError::Files);
            }
            files.push(file);
        }
        if files.is_empty() { Err(EntryError::Files) } else { Ok(files) }
    }

    fn end(&self) -> Result<(), EntryError> {
        if self.at == self.lines.len() { Ok(()) } else { Err(self.wrong("the end")) }
    }

    fn wrong(&self, expected: &'static str) -> EntryError {
        let found = short(self.lines.get(self.at).copied().unwrap_or_default());
        EntryError::Line { line: self.at + 1, expected, found }
    }
}

/// For messages.
fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

/// A name that is safe as the name of a file, and in messages.
pub fn name(text: &str) -> Option<String> {
    let safe = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'+' | b'~');
    let starts = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    (starts && text.len() <= MAX_NAME && text.bytes().all(safe)).then(|| text.to_owned())
}

fn version(text: &str) -> Option<Version> {
    let fits = text.len() <= MAX_NAME;
    // Versions that differ only in their build metadata would have no order.
    let version = Version::parse(text).ok().filter(|v| fits && v.build.is_empty())?;
    (version.to_string() == text).then_some(version)
}

fn object_id(text: &str) -> Option<String> {
    let lengths = [40, 64]; // SHA-1 and SHA-256
    (lengths.contains(&text.len()) && is_hex(text)).then(|| text.to_owned())
}

/// SHA-256 in lower-case hex.
pub fn hash(text: &str) -> Option<Hash> {
    if text.len() != 2 * Hash::LEN || !is_hex(text) {
        return None;
    }
    let byte = |n: usize| u8::from_str_radix(text.get(2 * n..2 * n + 2)?, 16).ok();
    Hash::from_slice(&(0..Hash::LEN).map(byte).collect::<Option<Vec<_>>>()?)
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whole seconds, in UTC.
fn time(text: &str) -> Option<Timestamp> {
    let time: Timestamp = text.parse().ok()?;
    (time.to_string() == text && time.subsec_nanosecond() == 0).then_some(time)
}

fn file(text: &str) -> Option<File> {
    let mut words = text.splitn(3, ' ');
    let (sha256, size, rest) = (hash(words.next()?)?, words.next()?, words.next()?);
    let number: u64 = size.parse().ok()?;
    (number.to_string() == size).then_some(())?;
    Some(File { name: name(rest)?, size: number, sha256 })
}
