//! Small control state of Wiretight: the registry, policy, join tokens, revocations, the last
//! checkpoint. Five operations on paths such as `node/db1`: get, create, compare-and-swap, list, watch.
//!
//! The model is etcd's, so that etcd can be a backend: every change to any key gets the next
//! [`Revision`] of one counter. An entry carries the revision of its last change. A write names the
//! revision that the writer read, and fails with [`Error::Conflict`] if the entry changed since.
//!
//! This is not a general database: a value has at most 1 MiB, a listing is read into memory as a
//! whole, and there are no transactions over several keys, no queries, no leases. Issuance history is
//! kept in log tiles and traffic history in Prometheus. Nothing is encrypted: values are as secret as
//! the file, so [`SqliteStore`] requires a file that only its owner can read.
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
//! // The current entries, then every change after them: none is missed in between.
//! let (nodes, at) = store.list("node/").await?;
//! let mut watch = store.watch("node/", at).await?;
//! assert_eq!(nodes[0].value, b"joined");
//!
//! // Read, decide, write; repeated if another writer came first.
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

/// The largest value of an entry, in bytes.
pub const MAX_VALUE: usize = 1 << 20;

/// A store with five operations. Use it as `Arc<dyn Store>`.
///
/// Each operation is atomic, and every reader sees writes in revision order: after a write returned,
/// every `get` and `list` sees it. How durable it then is depends on the backend.
///
/// If a future of `create` or `swap` is dropped before it is ready, the outcome is unknown: the write
/// happens completely or not at all, and the caller must read to find out. The same applies if a write
/// fails with an error other than [`Error::Conflict`], [`Error::ValueTooLarge`] or [`Error::Full`],
/// after which nothing was written.
#[async_trait]
pub trait Store: Send + Sync {
    /// The entry under `key`, or `None`.
    async fn get(&self, key: &Key) -> Result<Option<Entry>>;

    /// Creates the entry `key`, which must not exist, and returns the revision of the change.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the key exists; [`Error::ValueTooLarge`] over [`MAX_VALUE`].
    async fn create(&self, key: &Key, value: Vec<u8>) -> Result<Revision>;

    /// Replaces (`Some`) or deletes (`None`) the entry if its revision is `expected`, and returns the revision of
    /// this change. A deletion has a revision too.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the entry has another revision or does not exist; a key that was deleted and created
    /// again never matches an earlier revision. [`Error::ValueTooLarge`] over [`MAX_VALUE`].
    async fn swap(&self, key: &Key, expected: Revision, value: Option<Vec<u8>>)
    -> Result<Revision>;

    /// All entries with a key that starts with `prefix`, in the byte order of their keys, and the store's revision at
    /// that moment. A [`Store::watch`] from that revision misses nothing. `""` lists all.
    ///
    /// The prefix is text, not a path: `node/db1` also matches `node/db10`. End it with `/` for a folder.
    async fn list(&self, prefix: &str) -> Result<(Vec<Entry>, Revision)>;

    /// Follows the changes after revision `after` to keys that start with `prefix`. The revision may come from an
    /// earlier process, as long as the history still reaches back to it.
    ///
    /// # Errors
    /// [`Error::Compacted`] if changes after `after` are no longer in the history; [`Error::Ahead`] if the store has
    /// not reached `after`. In both cases, list again and watch from there.
    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch>;
}

/// Changes the entry under `key` to the result of `change`, which gets the current value (`None`: no
/// entry) and returns the new one (`None`: delete). Returns the revision of the change, or `None` if
/// there was no entry and `change` returned none.
///
/// `change` runs again whenever another writer came first, so it must have no side effects. The number
/// of rounds is not limited: each lost round is another writer's success. If `change` returns an error,
/// nothing is written.
///
/// # Errors
/// The error that `change` returned, or the store's error other than [`Error::Conflict`].
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
