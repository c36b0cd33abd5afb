//! Who was issued what: a line of JSON for each entry of the log, in its order.
//!
//! It is appended to, and begins where it ended: a line that was cut by a crash, and what follows a damaged one, is
//! dropped and read from the log again. All of it can be made again from the log.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use wiretight_keys::X509Error;
use wiretight_keys::logged::Entry;
use wiretight_keys::token::hex;

use crate::daemon::chain;

/// Its file, in a monitor's state directory.
pub const FILE: &str = "entries.jsonl";
/// The longest line: an entry has 64 KiB, and JSON escapes what is in it.
const MAX_LINE: u64 = 1 << 20;

/// What could not be done with the table.
#[derive(Debug, thiserror::Error)]
#[error("could not {doing} {}: check that this user owns it and that the disk has room", .path.display())]
pub struct TableError {
    doing: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// An entry of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Its place in the log.
    pub index: u64,
    /// What it is.
    #[serde(flatten)]
    pub what: What,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum What {
    /// A certificate.
    Certificate {
        /// Whom it speaks for.
        names: Vec<String>,
        /// Whether it may sign certificates.
        is_ca: bool,
        /// From when it holds (seconds since 1970).
        not_before: u64,
        /// Until when.
        not_after: u64,
        /// SHA-256 of its SubjectPublicKeyInfo, in hex.
        key: String,
        /// The key identifier of its issuer, in hex.
        issuer_key: Option<String>,
        /// The series of its serial number.
        series: Option<String>,
    },
    /// What is revoked.
    Revocation {
        /// When it was decided (seconds since 1970).
        at: u64,
        /// How many ranges of indexes.
        ranges: usize,
        /// How many series.
        series: usize,
    },
    /// Of a type that this release does not know.
    Other {
        /// The type.
        number: u16,
    },
    /// Not what it says it is.
    Malformed {
        /// Why.
        error: String,
    },
}

impl What {
    pub(super) fn of(entry: Result<Entry, X509Error>) -> What {
        match entry {
            Ok(Entry::Certificate(c)) => What::Certificate {
                names: c.names,
                is_ca: c.is_ca,
                not_before: c.period.not_before,
                not_after: c.period.not_after,
                key: hex(&c.key),
                issuer_key: c.issuer_key.map(|id| hex(&id)),
                series: c.series.map(|s| s.to_string()),
            },
            Ok(Entry::Revocation(r)) => {
                What::Revocation { at: r.at, ranges: r.indexes.len(), series: r.series.len() }
            }
            Ok(Entry::Other(number)) => What::Other { number },
            Err(error) => What::Malformed { error: chain(&error) },
        }
    }
}

/// The table, at its end.
pub(super) struct Table {
    path: PathBuf,
    file: File,
    len: u64,
}

impl Table {
    /// Opens the table of a log of which `size` entries are believed.
    pub(super) fn open(dir: &Path, size: u64) -> Result<Table, TableError> {
        let path = dir.join(FILE);
        let err = |doing| {
            let path = path.clone();
            move |source| TableError { doing, path, source }
        };
        let mut options = OpenOptions::new();
        let opened = options.create(true).read(true).append(true).mode(0o600).open(&path);
        let file = opened.map_err(err("open"))?;
        let (mut len, mut good) = (0, 0);
        for read in Rows::new(&file) {
            let (row, end) = read.map_err(err("read"))?;
            if row.index != len || len >= size {
                break;
            }
            (len, good) = (len + 1, end);
        }
        let there = file.metadata().map_err(err("look at"))?.len();
        if there > good {
            tracing::warn!(
                entries = len,
                "the end of the table was cut or damaged: it is read from the log again"
            );
            file.set_len(good).and_then(|()| file.sync_all()).map_err(err("cut"))?;
        }
        Ok(Table { path, file, len })
    }

    /// How many entries are in it.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Appends rows; they are on the disk when this returns.
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

/// Reads a monitor's table, as far as it is whole.
pub fn read(dir: &Path, mut row: impl FnMut(Row)) -> Result<(), TableError> {
    let path = dir.join(FILE);
    let err = |source| TableError { doing: "read", path: path.clone(), source };
    let file = File::open(&path).map_err(err)?;
    for read in Rows::new(&file) {
        row(read.map_err(err)?.0);
    }
    Ok(())
}

/// Rows up to the first that is not whole, each with where it ends.
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
