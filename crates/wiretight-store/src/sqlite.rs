//! The embedded store: one SQLite file, owned by one process at a time.
//!
//! A write that returned survives `kill -9` and a power cut (write-ahead log, `synchronous=FULL`), if
//! the disk honours flushes. A file is rejected if other users may read it, another process owns it, a
//! newer release wrote it, it is damaged, or it is not a Wiretight store; `open.rs` has these checks. A
//! flipped bit inside a value is not detected, because SQLite's pages have no checksums.
//!
//! SQLite blocks, so each operation runs on tokio's blocking pool, one at a time in order of arrival.
//! Every change is a row in `change`: its last revision is the head, and its rows are the history.
//! Neither is stored anywhere else, so they cannot disagree.

mod open;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::panic;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, Transaction, TransactionBehavior};
use tokio::sync::{Mutex, watch};

use crate::types::{check_value, weight};
use crate::watch::{Batch, HISTORY, History, Limits, check_cursor};
use crate::{Change, Entry, Error, Key, Result, Revision, Store, Watch};

/// A [`Store`] in one SQLite file. Needs a tokio runtime.
///
/// Dropping it closes the file once pending calls are done; then another process may open it. Next to `PATH` there
/// are `PATH.lock`, `PATH-wal` and `PATH-shm`. The lock file marks the owner of the store and is never deleted; it is
/// empty. The others belong to the data while they exist, so copy a store with [`SqliteStore::snapshot`], not with
/// `cp`.
pub struct SqliteStore {
    db: Arc<Mutex<Db>>,
    head: watch::Receiver<Revision>,
}

struct Db {
    // Fields drop in this order: the file is closed before another process can own it.
    conn: Connection,
    _lock: File,
    path: PathBuf,
    limits: Limits,
    /// The total weight of the rows of `change`, which is kept under `limits`.
    history_bytes: usize,
    /// The last committed revision, for watchers. Sent only after the commit.
    head: watch::Sender<Revision>,
}

impl SqliteStore {
    /// Opens the store at `path`, or creates it. The directory must exist.
    ///
    /// # Errors
    /// [`Error::InUse`], [`Error::Exposed`], [`Error::Foreign`], [`Error::NewerSchema`],
    /// [`Error::Corrupt`], [`Error::Io`]; all leave the file unchanged.
    pub async fn open(path: impl Into<PathBuf>) -> Result<Self> {
        Self::with_history(path.into(), HISTORY).await
    }

    /// Copies a consistent snapshot of the store at `path` into the new file `to` (0600), which [`SqliteStore::open`]
    /// can open. Another process may own the store and write to it meanwhile.
    ///
    /// # Errors
    /// [`Error::Foreign`], [`Error::Corrupt`], [`Error::Io`] (also if `to` exists).
    pub async fn snapshot(path: impl Into<PathBuf>, to: impl Into<PathBuf>) -> Result<()> {
        let (path, to) = (path.into(), to.into());
        blocking(move || open::snapshot(&path, &to)).await
    }

    pub(crate) async fn with_history(path: PathBuf, limits: Limits) -> Result<Self> {
        let db = blocking(move || open::open(path, limits)).await?;
        let head = db.head.subscribe();
        Ok(Self { db: Arc::new(Mutex::new(db)), head })
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn get(&self, key: &Key) -> Result<Option<Entry>> {
        let key = key.clone();
        run(&self.db, move |db| {
            let sql = "SELECT key, value, revision FROM entry WHERE key = ?1";
            Ok(db.conn.prepare_cached(sql)?.query_row([key.as_str()], entry).optional()?)
        })
        .await
    }

    async fn create(&self, key: &Key, value: Vec<u8>) -> Result<Revision> {
        check_value(&value)?;
        let key = key.clone();
        run(&self.db, move |db| db.write(key, None, Some(value))).await
    }

    async fn swap(
        &self,
        key: &Key,
        expected: Revision,
        value: Option<Vec<u8>>,
    ) -> Result<Revision> {
        check_value(value.as_deref().unwrap_or_default())?;
        let key = key.clone();
        run(&self.db, move |db| db.write(key, Some(expected), value)).await
    }

    async fn list(&self, prefix: &str) -> Result<(Vec<Entry>, Revision)> {
        let prefix = prefix.to_owned();
        run(&self.db, move |db| {
            let tx = db.conn.transaction()?;
            let (_, head) = history(&tx)?;
            let sql = "SELECT key, value, revision FROM entry WHERE key >= ?1 ORDER BY key";
            let mut statement = tx.prepare_cached(sql)?;
            let mut rows = statement.query([&prefix])?;
            let mut entries = Vec::new();
            // In byte order, all keys with a prefix directly follow it.
            while let Some(row) = rows.next()? {
                if !row.get_ref(0)?.as_str()?.starts_with(&prefix) {
                    break;
                }
                entries.push(entry(row)?);
            }
            Ok((entries, head))
        })
        .await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch> {
        run(&self.db, move |db| {
            let (oldest, head) = history(&db.conn)?;
            Ok(check_cursor(after, oldest, head)?)
        })
        .await?;
        let history = SqliteHistory(Arc::downgrade(&self.db));
        Ok(Watch::new(history, self.head.clone(), prefix, after))
    }
}

impl Db {
    /// Puts or deletes, if the key's revision is `expected` (`None`: the key does not exist).
    fn write(
        &mut self,
        key: Key,
        expected: Option<Revision>,
        value: Option<Vec<u8>>,
    ) -> Fallible<Revision> {
        let tx = self.conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let sql = "SELECT revision FROM entry WHERE key = ?1";
        let found = tx
            .prepare_cached(sql)?
            .query_row([key.as_str()], |row| row.get(0).map(Revision))
            .optional()?;
        if found != expected {
            return Err(Error::Conflict { key, found }.into());
        }

        let (oldest, head) = history(&tx)?;
        let revision = head.next();
        match &value {
            Some(value) => tx
                .prepare_cached(
                    "INSERT INTO entry (key, value, revision) VALUES (?1, ?2, ?3)
                     ON CONFLICT (key) DO UPDATE SET value = ?2, revision = ?3",
                )?
                .execute((key.as_str(), value, revision.0))?,
            None => {
                tx.prepare_cached("DELETE FROM entry WHERE key = ?1")?.execute([key.as_str()])?
            }
        };
        tx.prepare_cached("INSERT INTO change (revision, key, value) VALUES (?1, ?2, ?3)")?
            .execute((revision.0, key.as_str(), &value))?;
        let bytes = self.history_bytes + weight(&key, value.as_deref());
        let bytes = compact(&tx, self.limits, oldest, revision, bytes)?;
        tx.commit()?;

        self.history_bytes = bytes;
        self.head.send_replace(revision);
        Ok(revision)
    }

    fn read_history(&mut self, prefix: &str, after: Revision) -> Fallible<Batch> {
        let tx = self.conn.transaction()?;
        let (oldest, head) = history(&tx)?;
        check_cursor(after, oldest, head)?;
        let sql = "SELECT key, value, revision FROM change WHERE revision > ?1 ORDER BY revision";
        let mut statement = tx.prepare_cached(sql)?;
        let mut rows = statement.query([after.0])?;
        let mut batch = Batch::from(after);
        while let Some(row) = rows.next()? {
            if !row.get_ref(0)?.as_str()?.starts_with(prefix) {
                continue;
            }
            if !batch.push(Change::new(key(row)?, row.get(1)?, Revision(row.get(2)?))) {
                return Ok(batch);
            }
        }
        Ok(batch.ends_at(head))
    }
}

/// The earliest revision after which every change is known, and the latest revision.
fn history(conn: &Connection) -> rusqlite::Result<(Revision, Revision)> {
    let sql = "SELECT (SELECT min(revision) - 1 FROM change), (SELECT max(revision) FROM change)";
    let (oldest, head): (Option<u64>, Option<u64>) =
        conn.prepare_cached(sql)?.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok((Revision(oldest.unwrap_or(0)), Revision(head.unwrap_or(0))))
}

/// Deletes the oldest changes until the rest is within `limits`, and returns the weight of the rest. The last change
/// always stays, because it has the head revision.
fn compact(
    tx: &Transaction<'_>,
    limits: Limits,
    mut oldest: Revision,
    head: Revision,
    mut bytes: usize,
) -> rusqlite::Result<usize> {
    let sql = "DELETE FROM change WHERE revision = ?1
               RETURNING octet_length(key) + ifnull(octet_length(value), 0)";
    while head.0 - oldest.0 > 1
        && (head.0 - oldest.0 > limits.changes as u64 || bytes > limits.bytes)
    {
        oldest = oldest.next();
        let freed: Option<usize> =
            tx.prepare_cached(sql)?.query_row([oldest.0], |row| row.get(0)).optional()?;
        bytes = bytes.saturating_sub(freed.unwrap_or(0));
    }
    Ok(bytes)
}

/// Reads a row of (key, value, revision).
fn entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry { key: key(row)?, value: row.get(1)?, revision: Revision(row.get(2)?) })
}

fn key(row: &Row<'_>) -> rusqlite::Result<Key> {
    let text: String = row.get(0)?;
    Key::new(text).map_err(|e| {
        rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(e))
    })
}

struct SqliteHistory(Weak<Mutex<Db>>);

#[async_trait]
impl History for SqliteHistory {
    async fn read(&self, prefix: &str, after: Revision) -> Result<Batch> {
        let db = self.0.upgrade().ok_or(Error::Closed)?;
        let prefix = prefix.to_owned();
        run(&db, move |db| db.read_history(&prefix, after)).await
    }
}

/// Runs `work` on the database, off the async threads. Once started it runs to completion, even if the caller's
/// future is dropped.
async fn run<T: Send + 'static>(
    db: &Arc<Mutex<Db>>,
    work: impl FnOnce(&mut Db) -> Fallible<T> + Send + 'static,
) -> Result<T> {
    let mut db = Arc::clone(db).lock_owned().await;
    blocking(move || work(&mut db).map_err(|fault| fault.at(&db.path))).await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(failed) => match failed.try_into_panic() {
            Ok(panicked) => panic::resume_unwind(panicked),
            // The runtime is ending.
            Err(_) => Err(Error::Closed),
        },
    }
}

type Fallible<T> = std::result::Result<T, Fault>;

/// An error before the path is added.
enum Fault {
    Sqlite(rusqlite::Error),
    Store(Error),
}

impl From<rusqlite::Error> for Fault {
    fn from(e: rusqlite::Error) -> Self {
        Self::Sqlite(e)
    }
}

impl From<rusqlite::types::FromSqlError> for Fault {
    fn from(e: rusqlite::types::FromSqlError) -> Self {
        Self::Sqlite(e.into())
    }
}

impl From<Error> for Fault {
    fn from(e: Error) -> Self {
        Self::Store(e)
    }
}

impl Fault {
    /// The error for the caller, classified by who can fix it.
    fn at(self, path: &Path) -> Error {
        let source = match self {
            Self::Sqlite(e) => e,
            Self::Store(e) => return e,
        };
        let path = path.to_owned();
        match source.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Error::Full { path },
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Error::Busy { path },
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Error::Corrupt { path, detail: source.to_string() }
            }
            Some(_) => Error::Sqlite { path, source: Box::new(source) },
            // The error is not from SQLite but from reading a row: the row contains data that we never write.
            None => Error::Corrupt { path, detail: source.to_string() },
        }
    }
}
