//! The table of log entries: one line of JSON for each entry, in log order.
//!
//! The file is only appended to. At a start, a line that was truncated by a crash and everything after a damaged line are
//! removed and read from the log again.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use wiretight_keys::X509Error;
use wiretight_keys::logged::Entry;
use wiretight_keys::token::hex;
use wiretight_tlog::Hash;

use crate::logging::chain;

/// The file in a monitor's state directory.
pub const FILE: &str = "entries.jsonl";
/// The directory for all logs of a policy except the first.
pub(super) const OTHERS: &str = "logs";
/// The longest line: names are limited below, and JSON encodes a character with at most six.
const MAX_LINE: u64 = 1 << 20;
/// The most names of a row, and their most bytes in total.
const MAX_NAMES: (usize, usize) = (512, 64 << 10);
/// The most periods that are compared with later entries: more than ten years of hours.
const MAX_PERIODS: usize = 100_000;
/// The longest error of a row, in characters.
const MAX_ERROR: usize = 512;

#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {}: check that this user owns it and that the disk is not full", .path.display())]
pub struct TableError {
    doing: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// An entry of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    pub index: u64,
    #[serde(flatten)]
    pub what: What,
}

/// The content of an entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum What {
    Certificate {
        names: Vec<String>,
        /// How many more names it has.
        #[serde(default, skip_serializing_if = "is_zero")]
        more_names: usize,
        is_ca: bool,
        /// In seconds since 1970.
        not_before: u64,
        not_after: u64,
        /// SHA-256 of its SubjectPublicKeyInfo, in hex.
        key: String,
        /// The key identifier of its issuer, in hex.
        issuer_key: Option<String>,
        /// The series of its serial number.
        series: Option<String>,
        /// SHA-256 of the previous key, in hex, if that key has signed this one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        follows: Option<String>,
    },
    Revocation {
        /// In seconds since 1970.
        at: u64,
        /// Number of ranges of indexes.
        ranges: usize,
        /// Number of series.
        series: usize,
    },
    /// A claim about the mesh's traffic in an hour or a day.
    Period {
        /// In seconds since 1970, and in seconds.
        start: u64,
        length: u64,
        /// The hash of the entry, in hex.
        hash: String,
    },
    /// A folder that was published.
    Publication {
        /// In seconds since 1970.
        at: u64,
        /// SHA-256 of its manifest, in hex.
        manifest: String,
    },
    /// A type that this release does not know.
    Other {
        /// The type.
        number: u16,
    },
    Malformed {
        error: String,
    },
}

impl What {
    pub(super) fn of(entry: Result<Entry, X509Error>) -> What {
        match entry {
            Ok(Entry::Certificate(mut c)) => What::Certificate {
                more_names: cut(&mut c.names),
                names: c.names,
                is_ca: c.is_ca,
                not_before: c.period.not_before,
                not_after: c.period.not_after,
                key: hex(&c.key),
                issuer_key: c.issuer_key.map(|id| hex(&id)),
                series: c.series.map(|s| s.to_string()),
                follows: c.follows.map(|key| hex(&key)),
            },
            Ok(Entry::Revocation(r)) => {
                What::Revocation { at: r.at, ranges: r.indexes.len(), series: r.series.len() }
            }
            Ok(Entry::Period(p)) => What::Period {
                start: p.start,
                length: p.length,
                hash: hex(Hash::leaf(&p.entry()).as_bytes()),
            },
            Ok(Entry::Publication(p)) => What::Publication { at: p.at, manifest: p.manifest },
            Ok(Entry::Other(number)) => What::Other { number },
            Err(error) => {
                What::Malformed { error: chain(&error).chars().take(MAX_ERROR).collect() }
            }
        }
    }
}

/// Cuts a list of names to the limits of a row. Returns how many were left out.
fn cut(names: &mut Vec<String>) -> usize {
    let mut bytes = 0;
    let fits = names.iter().take(MAX_NAMES.0).take_while(|name| {
        bytes += name.len();
        bytes <= MAX_NAMES.1
    });
    let (fits, all) = (fits.count(), names.len());
    names.truncate(fits);
    all - fits
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// The table, opened for appending.
pub(super) struct Table {
    path: PathBuf,
    file: File,
    len: u64,
    /// The first entry of each period, by start and length: its hash.
    periods: HashMap<(u64, u64), String>,
}

impl Table {
    /// Opens the table of a log whose accepted checkpoint has `size` entries.
    pub(super) fn open(dir: &Path, size: u64) -> Result<Table, TableError> {
        let path = dir.join(FILE);
        let err = |doing| {
            let path = path.clone();
            move |source| TableError { doing, path, source }
        };
        let mut options = OpenOptions::new();
        let opened = options.create(true).read(true).append(true).mode(0o600).open(&path);
        let file = opened.map_err(err("open"))?;
        let (mut len, mut good, mut periods) = (0, 0, HashMap::new());
        for read in Rows::new(&file) {
            let (row, end) = read.map_err(err("read"))?;
            if row.index != len || len >= size {
                break;
            }
            (len, good) = (len + 1, end);
            contradicts(&mut periods, &row.what);
        }
        let there = file.metadata().map_err(err("inspect"))?.len();
        if there > good {
            tracing::warn!(
                entries = len,
                "the end of the table was truncated or damaged; reading it from the log again"
            );
            file.set_len(good).and_then(|()| file.sync_all()).map_err(err("truncate"))?;
        }
        Ok(Table { path, file, len, periods })
    }

    /// The number of entries.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Whether an earlier entry claims something else for the same period.
    pub(super) fn contradicts(&mut self, what: &What) -> bool {
        contradicts(&mut self.periods, what)
    }

    /// Appends rows; they are synced to disk when this returns.
    pub(super) fn append(&mut self, rows: &[Row]) -> Result<(), TableError> {
        let mut lines = Vec::new();
        for row in rows {
            serde_json::to_writer(&mut lines, row).expect("numbers and texts are JSON");
            lines.push(b'\n');
        }
        let written = self.file.write_all(&lines).and_then(|()| self.file.sync_data());
        written.map_err(|source| TableError { doing: "write", path: self.path.clone(), source })?;
        self.len += rows.len() as u64;
        Ok(())
    }
}

fn contradicts(periods: &mut HashMap<(u64, u64), String>, what: &What) -> bool {
    let What::Period { start, length, hash } = what else { return false };
    match periods.get(&(*start, *length)) {
        Some(first) => first != hash,
        None => {
            if periods.len() < MAX_PERIODS {
                periods.insert((*start, *length), hash.clone());
            }
            false
        }
    }
}

/// The directories with tables below a monitor's state directory, each with the name of its log.
pub fn all(state: &Path) -> Result<Vec<(PathBuf, String)>, TableError> {
    let mut dirs = vec![state.to_owned()];
    let others = state.join(OTHERS);
    match std::fs::read_dir(&others) {
        Ok(entries) => dirs.extend(entries.flatten().map(|entry| entry.path())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(TableError { doing: "list", path: others, source }),
    }
    dirs[1..].sort();
    let origin = |dir: &PathBuf| {
        let text = std::fs::read_to_string(dir.join(super::CHECKPOINT)).unwrap_or_default();
        text.lines().next().unwrap_or_default().to_owned()
    };
    let tables = dirs.into_iter().map(|dir| (origin(&dir), dir)).map(|(log, dir)| (dir, log));
    Ok(tables.collect())
}

/// Reads a monitor's table. Returns how many lines were unreadable and left out. A last line that is being written does
/// not count.
pub fn read(dir: &Path, mut row: impl FnMut(Row)) -> Result<u64, TableError> {
    let path = dir.join(FILE);
    let err = |source| TableError { doing: "read", path: path.clone(), source };
    let mut lines = BufReader::new(File::open(&path).map_err(err)?);
    let mut bad = 0;
    loop {
        let mut line = Vec::new();
        (&mut lines).take(MAX_LINE).read_until(b'\n', &mut line).map_err(err)?;
        if line.is_empty() {
            return Ok(bad);
        }
        let whole = line.ends_with(b"\n");
        if !whole && line.len() as u64 == MAX_LINE {
            lines.skip_until(b'\n').map_err(err)?;
            bad += 1;
        } else if whole {
            match serde_json::from_slice(&line) {
                Ok(read) => row(read),
                Err(_) => bad += 1,
            }
        }
    }
}

/// Rows up to the first invalid one, each with its end position in the file.
struct Rows<'a> {
    lines: BufReader<&'a File>,
    end: u64,
}

impl Rows<'_> {
    fn new(file: &File) -> Rows<'_> {
        Rows { lines: BufReader::new(file), end: 0 }
    }
}

impl Iterator for Rows<'_> {
    type Item = io::Result<(Row, u64)>;
    fn next(&mut self) -> Option<io::Result<(Row, u64)>> {
        let mut line = Vec::new();
        if let Err(e) = (&mut self.lines).take(MAX_LINE).read_until(b'\n', &mut line) {
            return Some(Err(e));
        }
        let row = line.strip_suffix(b"\n").and_then(|l| serde_json::from_slice(l).ok())?;
        self.end += line.len() as u64;
        Some(Ok((row, self.end)))
    }
}
