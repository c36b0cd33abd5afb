//! Following changes. A watcher pulls: it holds a cursor into the store's bounded history and nothing
//! else, so a slow one costs no memory, and one that is too slow finds history gone and is told so. It
//! never skips a change silently.

use async_trait::async_trait;
use tokio::sync::watch::Receiver;

use crate::{Change, Error, Result, Revision};

/// How many changes history keeps for watchers to resume from.
pub(crate) const HISTORY: Limits = Limits { changes: 10_000, bytes: 64 << 20 };
/// How many changes one [`Watch::next`] returns. One change may exceed the bytes.
pub(crate) const BATCH: Limits = Limits { changes: 512, bytes: 4 << 20 };

/// A bound in both measures.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) changes: usize,
    pub(crate) bytes: usize,
}

/// The changes after some revision, from [`crate::Store::watch`].
///
/// It does not keep the store open: when the store is dropped, `next` fails with [`Error::Closed`].
pub struct Watch {
    history: Box<dyn History>,
    head: Receiver<Revision>,
    prefix: String,
    cursor: Revision,
}

impl Watch {
    pub(crate) fn new(
        history: impl History + 'static,
        head: Receiver<Revision>,
        prefix: &str,
        after: Revision,
    ) -> Self {
        Self { history: Box::new(history), head, prefix: prefix.to_owned(), cursor: after }
    }

    /// Waits until something changed, and returns it: one or more changes in revision order, each
    /// exactly once. A long backlog comes in several calls. Dropping the future loses nothing.
    ///
    /// # Errors
    /// [`Error::Compacted`] if this watcher fell behind what history holds: list again, and watch from
    /// there. [`Error::Closed`] if the store is gone. A backend's other errors may pass: a later call
    /// goes on where this one stood.
    pub async fn next(&mut self) -> Result<Vec<Change>> {
        loop {
            let cursor = self.cursor;
            // The head says that there is something to read, nothing more: what is read, and up to
            // where, comes from history itself.
            self.head.wait_for(|head| *head > cursor).await.map_err(|_| Error::Closed)?;
            let batch = self.history.read(&self.prefix, cursor).await?;
            self.cursor = batch.through;
            if !batch.changes.is_empty() {
                return Ok(batch.changes);
            }
        }
    }
}

/// A backend's bounded record of changes.
#[async_trait]
pub(crate) trait History: Send + Sync {
    /// The changes to keys under `prefix` after `after`, as many as [`BATCH`] allows.
    async fn read(&self, prefix: &str, after: Revision) -> Result<Batch>;
}

/// A stretch of history.
pub(crate) struct Batch {
    changes: Vec<Change>,
    bytes: usize,
    /// How far the stretch goes: nothing that matches is missing up to here.
    through: Revision,
}

impl Batch {
    pub(crate) fn from(after: Revision) -> Self {
        Self { changes: Vec::new(), bytes: 0, through: after }
    }

    /// Takes the next change that matches. `false`: the batch is full without it.
    pub(crate) fn push(&mut self, change: Change) -> bool {
        let bytes = self.bytes + change.weight();
        let full = self.changes.len() == BATCH.changes || bytes > BATCH.bytes;
        if full && !self.changes.is_empty() {
            return false;
        }
        self.bytes = bytes;
        self.through = change.revision();
        self.changes.push(change);
        true
    }

    /// Says that nothing else matches up to `head`.
    pub(crate) fn ends_at(mut self, head: Revision) -> Self {
        self.through = head;
        self
    }
}

/// Whether a watcher that has seen everything up to `after` can go on, in a store at `head` whose
/// history holds all changes after `oldest`.
pub(crate) fn check_cursor(after: Revision, oldest: Revision, head: Revision) -> Result<()> {
    if after > head {
        return Err(Error::Ahead { after, head });
    }
    if after < oldest {
        return Err(Error::Compacted { after, oldest });
    }
    Ok(())
}
