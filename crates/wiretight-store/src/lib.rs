//! Small control state of Wiretight: the registry, policy, join tokens, revocations, the last
//! checkpoint. Five operations on paths such as `node/db1`: get, create, compare-and-swap, list, watch.
//!
//! The model is etcd's, so that etcd can stand behind the same trait: every change, to any key, gets
//! the next [`Revision`] of one counter; an entry carries the revision that last changed it; a write
//! names the revision that it read, and fails with [`Error::Conflict`] if the entry moved on since.
//!
//! What it refuses to be: a database. A value has at most 1 MiB, a listing comes whole into memory,
//! there are no transactions over two keys, no queries, no leases. Issuance history belongs in log
//! tiles and traffic history in Prometheus, not here. It does not encrypt: a value is as secret as
//! its file, which is why [`SqliteStore`] keeps that file to its owner alone.
//!
//! ```
//! use wiretight_store::{Change, Key, MemoryStore, Store, update};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), wiretight_store::Error> {
//! let store = MemoryStore::new(); // in production: SqliteStore::open(path).await?
//! let key = Key::new("node/db1")?;
//! store.create(&key, b"joined".to_vec()).await?;
//!
//! // What there is, then every change after it: nothing falls between the two.
//! let (nodes, at) = store.list("node/").await?;
//! let mut watch = store.watch("node/", at).await?;
//! assert_eq!(nodes[0].value, b"joined");
//!
//! // Read, decide, write; again if another writer came between.
//! update(&store, &key, |_| Ok::<_, wiretight_store::Error>(Some(b"revoked".to_vec()))).await?;
//! assert!(matches!(&watch.next().await?[..], [Change::Put(e)] if e.value == b"revoked"));
//! # Ok(())
//! # }
//! ```

mod error;
mod memory;
mod replica;
mod sqlite;
mod types;
mod watch;

#[cfg(test)]
mod conformance;

use async_trait::async_trait;

pub use error::{Error, Result};
pub use memory::MemoryStore;
pub use replica::Replica;
pub use sqlite::SqliteStore;
pub use types::{Change, Entry, Key, Revision};
pub use watch::Watch;

/// The largest value that an entry can hold, in bytes.
pub const MAX_VALUE: usize = 1 << 20;

/// Control state behind five operations. Use it as `Arc<dyn Store>`.
///
/// Each operation is atomic and every reader sees writes in revision order: after a write returns,
/// any `get` or `list` sees it. A write that returned is as durable as the backend is.
///
/// Dropping a future of `create` or `swap` before it is ready leaves its outcome open: the write
/// happens whole or not at all, and only reading tells which. The same goes for a write that fails
/// with an error other than [`Error::Conflict`], [`Error::ValueTooLarge`] or [`Error::Full`], after
/// which nothing was written.
#[async_trait]
pub trait Store: Send + Sync {
    /// The entry under `key`, or `None`.
    async fn get(&self, key: &Key) -> Result<Option<Entry>>;

    /// Puts `value` under a key that does not exist, and returns the revision of that change.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the key exists; [`Error::ValueTooLarge`] over [`MAX_VALUE`].
    async fn create(&self, key: &Key, value: Vec<u8>) -> Result<Revision>;

    /// Replaces (`Some`) or deletes (`None`) the entry that was last changed at `expected`, and returns
    /// the revision of this change. A deletion has a revision of its own.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the entry has another revision, or is gone: a key that was deleted and
    /// created again never matches a revision from before; [`Error::ValueTooLarge`] over [`MAX_VALUE`].
    async fn swap(&self, key: &Key, expected: Revision, value: Option<Vec<u8>>)
    -> Result<Revision>;

    /// All entries whose key starts with `prefix`, in the byte order of their keys, and the store's
    /// revision at that moment: start [`Store::watch`] there to miss nothing. `""` lists all.
    ///
    /// A prefix is text, not a path: `node/db1` also matches `node/db10`. End it in `/` to mean a folder.
    async fn list(&self, prefix: &str) -> Result<(Vec<Entry>, Revision)>;

    /// Follows the changes after revision `after` to keys that start with `prefix`. The revision may be
    /// one that a former process noted, as long as history still reaches back to it.
    ///
    /// # Errors
    /// [`Error::Compacted`] if changes after `after` are gone from history; [`Error::Ahead`] if the
    /// store has not reached `after`. Either way: list again, and watch from there.
    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch>;
}

/// Changes the entry under `key` by what `change` makes of its present value (`None`: no entry), and
/// returns the revision of that change, or `None` if there was no entry and `change` wants none.
///
/// `change` returns the new value, or `None` to delete. It runs again whenever another writer came
/// between, so it must have no effect besides its answer. There is no limit on rounds: each lost round
/// is another writer's success. Its error ends the update, with nothing written.
///
/// # Errors
/// What `change` returns, or the store's error other than [`Error::Conflict`].
pub async fn update<S, F, E>(
    store: &S,
    key: &Key,
    mut change: F,
) -> std::result::Result<Option<Revision>, E>
where
    S: Store + ?Sized,
    F: FnMut(Option<&[u8]>) -> std::result::Result<Option<Vec<u8>>, E>,
    E: From<Error>,
{
    loop {
        let entry = store.get(key).await?;
        let value = change(entry.as_ref().map(|e| e.value.as_slice()))?;
        let written = match (&entry, value) {
            (None, None) => return Ok(None),
            (None, Some(value)) => store.create(key, value).await,
            (Some(entry), value) => store.swap(key, entry.revision, value).await,
        };
        match written {
            Err(Error::Conflict { .. }) => continue,
            other => return Ok(Some(other?)),
        }
    }
}
