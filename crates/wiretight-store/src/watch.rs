//! Following changes. A watcher pulls: it has only a cursor into the store's bounded history. So a slow watcher costs
//! no memory, and one that is too slow gets an error because the history no longer reaches back. It never skips a
//! change silently.

use async_trait::async_trait;
use tokio::sync::watch::Receiver;

use crate::{Change, Error, Result, Revision};

/// The limit of the history from which watchers can resume.
pub(crate) const HISTORY: Limits = Limits { changes: 10_000, bytes: 64 << 20 };
/// The limit of one [`Watch::next`]. A single change may exceed the bytes.
pub(crate) const BATCH: Limits = Limits { changes: 512, bytes: 4 << 20 };

/// Limits in number and size; both apply.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) changes: usize,
    pub(crate) bytes: usize,
}

/// The changes after a revision, from [`crate::Store::watch`].
///
/// It does not keep the store open: after the store is dropped, `next` fails with [`Error::Closed`].
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

    /// Waits for changes and returns them: one or more in revision order, each exactly once. A long backlog takes
    /// several calls. Dropping the future loses nothing.
    ///
    /// # Errors
    /// [`Error::Compacted`] if this watcher fell behind the history: list again, and watch from there.
    /// [`Error::Closed`] if the store was dropped. Other errors of a backend may be temporary: a later call resumes
    /// at the same point.
    pub async fn next(&mut self) -> Result<Vec<Change>> {
        loop {
            let cursor = self.cursor;
            // The head only signals that there is something to read. What is read, and how far, comes from the
            // history itself.
            self.head.wait_for(|head| *head > cursor).await.map_err(|_| Error::Closed)?;
            let batch = self.history.read(&self.prefix, cursor).await?;
            self.cursor = batch.through;
            if !batch.changes.is_empty() {
                return Ok(batch.changes);
            }
        }
    }
}

/// The bounded history of a backend.
#[async_trait]
pub(crate) trait History: Send + Sync {
    /// The changes to keys under `prefix` after `after`, up to [`BATCH`].
    async fn read(&self, prefix: &str, after: Revision) -> Result<Batch>;
}

/// A section of the history.
pub(crate) struct Batch {
    changes: Vec<Change>,
    bytes: usize,
    /// All matching changes up to this revision are included.
    through: Revision,
}

impl Batch {
    pub(crate) fn from(after: Revision) -> Self {
        Self { changes: Vec::new(), bytes: 0, through: after }
    }

    /// Adds the next matching change. Returns `false` if the batch is full without it.
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

    /// Sets that there are no other matching changes up to `head`.
    pub(crate) fn ends_at(mut self, head: Revision) -> Self {
        self.through = head;
        self
    }
}

/// Whether a watcher that has seen everything up to `after` can continue, in a store at `head` with a history of all
/// changes after `oldest`.
pub(crate) fn check_cursor(after: Revision, oldest: Revision, head: Revision) -> Result<()> {
    if after > head {
        return Err(Error::Ahead { after, head });
    }
    if after < oldest {
        return Err(Error::Compacted { after, oldest });
    }
    Ok(())
}
