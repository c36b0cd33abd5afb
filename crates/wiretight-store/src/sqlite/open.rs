//! Opening or creating the file; everything is checked before SQLite opens it.
//!
//! A store file is created atomically: it is built under another name and renamed once it is on disk. So an empty or
//! incomplete file at the path is damage, and is never taken for an empty store, which would have lost its
//! revocations.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};
use tokio::sync::watch;

use super::{Db, Fallible, Fault, history};
use crate::watch::Limits;
use crate::{Error, Result};

/// Identifies our files, at byte 68 of the header: "WTST".
pub(super) const APPLICATION_ID: u32 = 0x5754_5354;
/// The schema that this release writes, in the file's `user_version`.
pub(super) const SCHEMA: i64 = 1;

/// `change` has one row for each revision, without gaps, from the start of the history; a NULL value is a deletion.
/// Keys compare by bytes (BINARY), like `Key`.
const TABLES: &str = "
    CREATE TABLE entry (
        key TEXT NOT NULL PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE change (
        revision INTEGER PRIMARY KEY, key TEXT NOT NULL, value BLOB
    ) STRICT;";

/// How long to wait while an sqlite3 shell or a backup holds a lock.
const BUSY: Duration = Duration::from_secs(5);

pub(super) fn open(path: PathBuf, limits: Limits) -> Result<Db> {
    // Resolve symlinks, so that one store has one lock.
    let path = match fs::canonicalize(&path) {
        Ok(path) => path,
        Err(_) => std::path::absolute(&path).map_err(io_error("find", &path))?,
    };
    let lock = lock(&path)?;
    if !exists(&path)? {
        create(&path)?;
    }
    check_modes(&path)?;
    check_header(&path)?;
    let (conn, history_bytes) = connect(&path).map_err(|fault| fault.at(&path))?;
    let (_, head) = history(&conn).map_err(|e| Fault::from(e).at(&path))?;
    Ok(Db { conn, _lock: lock, path, limits, history_bytes, head: watch::Sender::new(head) })
}

/// How long a lock that was released may still appear to be held: a program that another thread is starting has copies of
/// all descriptors until its exec.
const FORKED: Duration = Duration::from_millis(500);

/// Locks `PATH.lock` for as long as the returned file is open. The file is never deleted: otherwise two processes
/// could each lock a different file of that name.
fn lock(path: &Path) -> Result<File> {
    let lock_path = beside(path, ".lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&lock_path)
        .map_err(io_error("open", &lock_path))?;
    let tried_since = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if tried_since.elapsed() < FORKED => {
                thread::sleep(Duration::from_millis(10));
            }
            Err(TryLockError::WouldBlock) => return Err(Error::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(e)) => return Err(io_error("lock", &lock_path)(e)),
        }
    }
}

/// Creates an empty store at `path`, which is absolute, atomically with respect to crashes.
fn create(path: &Path) -> Result<()> {
    // The log of a deleted database must not be replayed into a new one.
    if exists(&beside(path, "-wal"))? {
        return Err(Error::Corrupt {
            path: path.to_owned(),
            detail: "it is missing, but its -wal exists".to_owned(),
        });
    }
    let draft = beside(path, ".new");
    for leftover in [draft.clone(), beside(&draft, "-journal")] {
        match fs::remove_file(&leftover) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("remove", &leftover)(e));
            }
            _ => {}
        }
    }
    // SQLite gives -wal and -shm the mode of the main file.
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)
        .map_err(io_error("create", &draft))?;
    write_tables(&draft).map_err(|fault| fault.at(&draft))?;
    fs::rename(&draft, path).map_err(io_error("create", path))?;
    let directory = path.parent().unwrap_or(path);
    File::open(directory).and_then(|d| d.sync_all()).map_err(io_error("sync", directory))
}

/// Copies a consistent snapshot of the store at `path` into the new file `to` (0600). Another process may own the
/// store and write to it meanwhile. Takes no lock and changes nothing at `path`.
pub(super) fn snapshot(path: &Path, to: &Path) -> Result<()> {
    check_header(path)?;
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)
        .map_err(io_error("create", to))?;
    let to_text = to.to_str().ok_or_else(|| {
        io_error("create", to)(io::Error::new(io::ErrorKind::InvalidInput, "its name is not UTF-8"))
    })?;
    let copy = || -> Fallible<()> {
        let conn = Connection::open_with_flags(path, flags())?;
        conn.busy_timeout(BUSY)?;
        conn.pragma_update(None, "temp_store", "MEMORY")?; // values stay out of /tmp
        conn.execute("VACUUM INTO ?1", [to_text])?;
        Ok(())
    };
    copy().map_err(|fault| fault.at(path))?;
    File::open(to).and_then(|file| file.sync_all()).map_err(io_error("sync", to))
}

fn write_tables(draft: &Path) -> Fallible<()> {
    let mut conn = Connection::open_with_flags(draft, flags())?;
    conn.pragma_update(None, "synchronous", "FULL")?;
    let tx = conn.transaction()?;
    tx.pragma_update(None, "application_id", APPLICATION_ID)?;
    tx.pragma_update(None, "user_version", SCHEMA)?;
    tx.execute_batch(TABLES)?;
    tx.commit()?;
    conn.close().map_err(|(_, e)| e)?;
    Ok(())
}

fn check_modes(path: &Path) -> Result<()> {
    for path in [path.to_owned(), beside(path, "-wal"), beside(path, "-shm")] {
        let mode = match fs::metadata(&path) {
            Ok(metadata) => metadata.permissions().mode() & 0o7777,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(io_error("read the mode of", &path)(e)),
        };
        if mode & 0o077 != 0 {
            return Err(Error::Exposed { path, mode });
        }
    }
    Ok(())
}

/// Reads the header without SQLite, which might run recovery on another program's database
/// (<https://sqlite.org/fileformat2.html#the_database_header>).
fn check_header(path: &Path) -> Result<()> {
    let mut header = Vec::new();
    let mut file = File::open(path).map_err(io_error("read", path))?;
    file.by_ref().take(100).read_to_end(&mut header).map_err(io_error("read", path))?;
    let foreign = |found| Err(Error::Foreign { path: path.to_owned(), found });
    let corrupt =
        |detail: &str| Err(Error::Corrupt { path: path.to_owned(), detail: detail.to_owned() });
    if header.is_empty() {
        return corrupt("it is empty");
    }
    if !header.starts_with(b"SQLite format 3\0") {
        return foreign("it is not an SQLite database");
    }
    if header.len() < 100 {
        return corrupt("it is truncated within its header");
    }
    if header[68..72] != APPLICATION_ID.to_be_bytes() {
        return foreign("it is an SQLite database of another program");
    }
    // SQLite reads a truncated last page as if it ended with zeros. With a -wal file the page may still be complete
    // there; without one it is lost.
    let page_size = match u16::from_be_bytes([header[16], header[17]]) {
        1 => 65536,
        size => u64::from(size),
    };
    let len = file.metadata().map_err(io_error("read", path))?.len();
    if !len.is_multiple_of(page_size) && !exists(&beside(path, "-wal"))? {
        return corrupt("it is truncated within a page");
    }
    Ok(())
}

/// Opens a store file, checks its content, and returns the weight of its history.
fn connect(path: &Path) -> Fallible<(Connection, usize)> {
    let conn = Connection::open_with_flags(path, flags())?;
    conn.busy_timeout(BUSY)?;
    conn.pragma_update(None, "trusted_schema", false)?;
    conn.pragma_update(None, "cell_size_check", true)?;
    conn.pragma_update(None, "temp_store", "MEMORY")?; // values stay out of /tmp

    let found: i64 = conn.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if found > SCHEMA {
        return Err(Error::NewerSchema { path: path.to_owned(), found, known: SCHEMA }.into());
    }
    if found != SCHEMA {
        let detail = format!("it has schema {found}, which does not exist");
        return Err(Error::Corrupt { path: path.to_owned(), detail }.into());
    }
    let verdict: String = conn.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    if verdict != "ok" {
        return Err(Error::Corrupt { path: path.to_owned(), detail: verdict }.into());
    }

    let mode: String =
        conn.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    if mode != "wal" {
        let source =
            io::Error::new(io::ErrorKind::Unsupported, "no shared memory for SQLite's log");
        return Err(io_error("create a write-ahead log next to", path)(source).into());
    }
    conn.pragma_update(None, "synchronous", "FULL")?;
    let sql = "SELECT count(*), ifnull(max(revision) - min(revision) + 1, 0),
                      ifnull(sum(octet_length(key) + ifnull(octet_length(value), 0)), 0)
               FROM change";
    let (rows, span, bytes): (u64, u64, usize) =
        conn.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    if rows != span {
        let detail = format!("its history has {rows} changes for {span} revisions");
        return Err(Error::Corrupt { path: path.to_owned(), detail }.into());
    }
    Ok((conn, bytes))
}

/// Never CREATE: the file, with its mode, exists before SQLite opens it.
fn flags() -> OpenFlags {
    OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX
}

fn exists(path: &Path) -> Result<bool> {
    path.try_exists().map_err(io_error("look for", path))
}

/// `path` with `suffix` after its whole name.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { doing, path, source }
}
