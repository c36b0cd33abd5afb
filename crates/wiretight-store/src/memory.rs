//! A store in memory, for tests and trials. It accepts everything that [`crate::SqliteStore`] accepts, and its
//! content is lost when it is dropped.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::types::check_value;
use crate::watch::{Batch, HISTORY, History, Limits, check_cursor};
use crate::{Change, Entry, Error, Key, Result, Revision, Store, Watch};

/// A [`Store`] that lasts as long as its process.
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
}

struct State {
    entries: BTreeMap<Key, Entry>,
    /// The latest changes, oldest first, without gaps; the last one has the head revision.
    history: VecDeque<Change>,
    history_bytes: usize,
    limits: Limits,
    head: watch::Sender<Revision>,
}

impl MemoryStore {
    pub fn new() -> Self {
        Self::with_history(HISTORY)
    }

    pub(crate) fn with_history(limits: Limits) -> Self {
        let state = State {
            entries: BTreeMap::new(),
            history: VecDeque::new(),
            history_bytes: 0,
            limits,
            head: watch::Sender::new(Revision::ZERO),
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn get(&self, key: &Key) -> Result<Option<Entry>> {
        Ok(self.state.lock().entries.get(key).cloned())
    }

    async fn create(&self, key: &Key, value: Vec<u8>) -> Result<Revision> {
        check_value(&value)?;
        self.state.lock().write(key, None, Some(value))
    }

    async fn swap(
        &self,
        key: &Key,
        expected: Revision,
        value: Option<Vec<u8>>,
    ) -> Result<Revision> {
        check_value(value.as_deref().unwrap_or_default())?;
        self.state.lock().write(key, Some(expected), value)
    }

    async fn list(&self, prefix: &str) -> Result<(Vec<Entry>, Revision)> {
        let state = self.state.lock();
        let matching = |e: &&Entry| e.key.as_str().starts_with(prefix);
        let entries = state.entries.values().filter(matching).cloned().collect();
        Ok((entries, state.head()))
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch> {
        let state = self.state.lock();
        check_cursor(after, state.oldest(), state.head())?;
        let history = MemoryHistory(Arc::downgrade(&self.state));
        Ok(Watch::new(history, state.head.subscribe(), prefix, after))
    }
}

impl State {
    fn head(&self) -> Revision {
        *self.head.borrow()
    }

    /// The earliest revision after which the history has every change.
    fn oldest(&self) -> Revision {
        Revision(self.head().0 - self.history.len() as u64)
    }

    /// Puts or deletes, if the key's revision is `expected` (`None`: the key does not exist).
    fn write(
        &mut self,
        key: &Key,
        expected: Option<Revision>,
        value: Option<Vec<u8>>,
    ) -> Result<Revision> {
        let found = self.entries.get(key).map(|e| e.revision);
        if found != expected {
            return Err(Error::Conflict { key: key.clone(), found });
        }
        let revision = self.head().next();
        let change = Change::new(key.clone(), value, revision);
        match &change {
            Change::Put(entry) => self.entries.insert(key.clone(), entry.clone()),
            Change::Deleted { .. } => self.entries.remove(key),
        };
        self.history_bytes += change.weight();
        self.history.push_back(change);
        while self.history.len() > 1
            && (self.history.len() > self.limits.changes || self.history_bytes > self.limits.bytes)
        {
            self.history_bytes -= self.history.pop_front().map_or(0, |c| c.weight());
        }
        self.head.send_replace(revision);
        Ok(revision)
    }
}

struct MemoryHistory(Weak<Mutex<State>>);

#[async_trait]
impl History for MemoryHistory {
    async fn read(&self, prefix: &str, after: Revision) -> Result<Batch> {
        let state = self.0.upgrade().ok_or(Error::Closed)?;
        let state = state.lock();
        check_cursor(after, state.oldest(), state.head())?;
        let mut batch = Batch::from(after);
        let seen = (after.0 - state.oldest().0) as usize;
        for change in state.history.iter().skip(seen) {
            if change.key().as_str().starts_with(prefix) && !batch.push(change.clone()) {
                return Ok(batch);
            }
        }
        Ok(batch.ends_at(state.head()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn history_is_kept_up_to_its_bytes_and_read_together() {
        let key = Key::new("a").unwrap();
        let weight = Change::new(key.clone(), Some(b"x".to_vec()), Revision(1)).weight();
        for (bytes, kept) in [(3 * weight, 3), (3 * weight - 1, 2)] {
            let store = MemoryStore::with_history(Limits { changes: 9, bytes });
            let mut at = store.create(&key, b"x".to_vec()).await.unwrap();
            for _ in 0..2 {
                at = store.swap(&key, at, Some(b"x".to_vec())).await.unwrap();
            }
            let mut watch = store.watch("", Revision(3 - kept)).await.unwrap();
            assert_eq!(watch.next().await.unwrap().len() as u64, kept);
            let earlier = (3 - kept).checked_sub(1).map(Revision);
            if let Some(earlier) = earlier {
                let late = store.watch("", earlier).await.err();
                assert!(matches!(late, Some(Error::Compacted { .. })), "{late:?}");
            }
        }
    }
}
