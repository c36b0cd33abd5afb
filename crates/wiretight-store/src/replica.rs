//! A copy in memory of a part of a remote store, updated by that store's changes. It uses the revisions of the
//! original, so it cannot be written to: a write goes to the original, and comes back as a change.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::watch::{BATCH, Batch, History, check_cursor};
use crate::{Change, Entry, Error, Key, Result, Revision, Watch};

/// The entries of another store as of one of its revisions, and the latest changes.
#[derive(Default)]
pub struct Replica {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    entries: BTreeMap<Key, Entry>,
    /// The latest changes, oldest first: everything after `oldest`. At most one batch, because deletions found by one
    /// `reset` have the same revision and must be delivered in one batch.
    history: VecDeque<Change>,
    history_bytes: usize,
    oldest: Revision,
    head: watch::Sender<Revision>,
}

impl Replica {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn get(&self, key: &Key) -> Option<Entry> {
        self.state.lock().entries.get(key).cloned()
    }

    /// Like [`crate::Store::list`].
    pub fn list(&self, prefix: &str) -> (Vec<Entry>, Revision) {
        let state = self.state.lock();
        let matching = |e: &&Entry| e.key.as_str().starts_with(prefix);
        (state.entries.values().filter(matching).cloned().collect(), state.head())
    }

    /// Like [`crate::Store::watch`]. Fails with [`Error::Closed`] when the replica is dropped, or when `reset` found
    /// that the original was restored from an older copy.
    ///
    /// # Errors
    /// [`Error::Compacted`] and [`Error::Ahead`].
    pub fn watch(&self, prefix: &str, after: Revision) -> Result<Watch> {
        let state = self.state.lock();
        check_cursor(after, state.oldest, state.head())?;
        let history = ReplicaHistory(Arc::downgrade(&self.state));
        Ok(Watch::new(history, state.head.subscribe(), prefix, after))
    }

    /// The current revision; updated with each change.
    pub fn head(&self) -> watch::Receiver<Revision> {
        self.state.lock().head.subscribe()
    }

    /// Applies changes in the order of their revisions. Skips those that were applied already.
    pub fn apply(&self, changes: impl IntoIterator<Item = Change>) {
        self.state.lock().apply(changes);
    }

    /// Replaces the whole content with `entries` as of `at`, and returns the differences; watchers receive them as
    /// changes. If the original was restored from an older copy, watches are closed, so that watchers list again.
    pub fn reset(&self, entries: Vec<Entry>, at: Revision) -> Vec<Change> {
        let mut state = self.state.lock();
        let new: BTreeMap<Key, Entry> = entries.into_iter().map(|e| (e.key.clone(), e)).collect();
        let gone = state.entries.keys().filter(|key| !new.contains_key(*key));
        let mut changes: Vec<_> =
            gone.map(|key| Change::Deleted { key: key.clone(), revision: at }).collect();
        let other = new.values().filter(|e| state.entries.get(&e.key) != Some(*e));
        changes.extend(other.cloned().map(Change::Put));
        changes.sort_by_key(Change::revision);
        let head = state.head();
        if at < head || changes.first().is_some_and(|c| c.revision() <= head) {
            state.entries = new;
            state.history.clear();
            state.history_bytes = 0;
            state.oldest = at;
            state.head = watch::Sender::new(at);
        } else {
            state.apply(changes.clone());
            state.head.send_replace(at);
        }
        changes
    }
}

impl State {
    fn head(&self) -> Revision {
        *self.head.borrow()
    }

    fn apply(&mut self, changes: impl IntoIterator<Item = Change>) {
        let before = self.head();
        let mut head = before;
        for change in changes {
            // Deletions found by one `reset` have the same revision.
            if change.revision() <= before || change.revision() < head {
                continue;
            }
            head = change.revision();
            match &change {
                Change::Put(entry) => self.entries.insert(entry.key.clone(), entry.clone()),
                Change::Deleted { key, .. } => self.entries.remove(key),
            };
            self.history_bytes += change.weight();
            self.history.push_back(change);
        }
        while self.history.len() > BATCH.changes || self.history_bytes > BATCH.bytes {
            let Some(old) = self.history.pop_front() else { break };
            self.history_bytes -= old.weight();
            self.oldest = old.revision();
        }
        if head > before {
            self.head.send_replace(head);
        }
    }
}

struct ReplicaHistory(Weak<Mutex<State>>);

#[async_trait]
impl History for ReplicaHistory {
    async fn read(&self, prefix: &str, after: Revision) -> Result<Batch> {
        let state = self.0.upgrade().ok_or(Error::Closed)?;
        let state = state.lock();
        check_cursor(after, state.oldest, state.head())?;
        let mut batch = Batch::from(after);
        for change in state.history.iter().filter(|c| c.revision() > after) {
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

    fn entry(key: &str, value: &str, revision: u64) -> Entry {
        let key = Key::new(key).unwrap();
        Entry { key, value: value.into(), revision: Revision(revision) }
    }

    fn put(key: &str, value: &str, revision: u64) -> Change {
        Change::Put(entry(key, value, revision))
    }

    fn gone(key: &str, revision: u64) -> Change {
        Change::Deleted { key: Key::new(key).unwrap(), revision: Revision(revision) }
    }

    #[tokio::test]
    async fn missed_changes_are_delivered_once() {
        let replica = Replica::new();
        let first = vec![entry("a/1", "x", 3), entry("a/2", "x", 5), entry("a/3", "x", 6)];
        assert_eq!(replica.reset(first.clone(), Revision(9)).len(), 3);
        let (listed, at) = replica.list("a/");
        assert_eq!((listed, at), (first, Revision(9)));
        let mut watch = replica.watch("a/", at).unwrap();
        replica.apply([put("a/1", "y", 12), put("b", "y", 14)]);
        // Repeated and older changes are skipped.
        replica.apply([put("a/1", "z", 12), put("a/1", "z", 11)]);
        let head = replica.head();
        replica.apply([put("b", "z", 14)]);
        assert!(!head.has_changed().unwrap());
        assert_eq!(watch.next().await.unwrap(), [put("a/1", "y", 12)]);
        // Two entries were deleted and one changed while disconnected.
        let now = vec![entry("a/1", "w", 15), entry("b", "y", 14)];
        let changes = [put("a/1", "w", 15), gone("a/2", 20), gone("a/3", 20)];
        assert_eq!(replica.reset(now.clone(), Revision(20)), changes);
        assert_eq!(watch.next().await.unwrap(), changes);
        assert!(replica.reset(now.clone(), Revision(25)).is_empty());
        assert!(replica.reset(now, Revision(25)).is_empty());
        replica.apply([put("a/9", "y", 26)]);
        assert_eq!(watch.next().await.unwrap(), [put("a/9", "y", 26)]);
        assert_eq!((replica.list("").1, *replica.head().borrow()), (Revision(26), Revision(26)));
        assert!(matches!(replica.watch("", Revision(27)), Err(Error::Ahead { .. })));
    }

    #[tokio::test]
    async fn restoring_the_original_from_a_backup_closes_watches() {
        let replica = Replica::new();
        replica.reset(vec![entry("a", "x", 8)], Revision(9));
        let mut watch = replica.watch("", Revision(9)).unwrap();
        replica.reset(vec![entry("a", "old", 2)], Revision(4));
        assert!(matches!(watch.next().await, Err(Error::Closed)));
        assert_eq!(replica.get(&Key::new("a").unwrap()), Some(entry("a", "old", 2)));
        assert!(replica.watch("", Revision(4)).is_ok());
        // The original was restored from a backup, and has passed the old revision: an old number stands for other
        // content.
        let mut watch = replica.watch("", Revision(4)).unwrap();
        replica.reset(vec![entry("a", "other", 3)], Revision(12));
        assert!(matches!(watch.next().await, Err(Error::Closed)));
        // The same content, but the numbers after it will be given again.
        let mut watch = replica.watch("", Revision(12)).unwrap();
        assert!(replica.reset(vec![entry("a", "other", 3)], Revision(11)).is_empty());
        assert!(matches!(watch.next().await, Err(Error::Closed)));
        assert_eq!(*replica.head().borrow(), Revision(11));
    }

    #[tokio::test]
    async fn history_is_kept_up_to_both_limits() {
        let half = "x".repeat(BATCH.bytes / 2 - "a".len());
        for (more, kept) in [("", true), ("x", false)] {
            let replica = Replica::new();
            replica.apply([put("a", &half, 1), put("a", &format!("{half}{more}"), 2)]);
            match replica.watch("", Revision::ZERO) {
                Ok(mut watch) => assert_eq!((watch.next().await.unwrap().len(), kept), (2, true)),
                Err(Error::Compacted { oldest, .. }) => assert_eq!((oldest.0, kept), (1, false)),
                Err(other) => panic!("{other}"),
            }
            let mut watch = replica.watch("", Revision(1)).unwrap();
            assert_eq!(watch.next().await.unwrap().len(), 1);
        }
        let replica = Replica::new();
        replica.apply((1..=5).map(|n| put("a", &half, n)));
        let late = replica.watch("", Revision(2)).err();
        assert!(matches!(late, Some(Error::Compacted { oldest: Revision(3), .. })), "{late:?}");
        let replica = Replica::new();
        let count = BATCH.changes as u64;
        replica.apply((1..=count).map(|n| put("a", "x", n)));
        let mut watch = replica.watch("", Revision::ZERO).unwrap();
        assert_eq!(watch.next().await.unwrap().len(), BATCH.changes);
        replica.apply([put("a", "x", count + 1)]);
        let late = replica.watch("", Revision::ZERO).err();
        assert!(matches!(late, Some(Error::Compacted { oldest: Revision(1), .. })), "{late:?}");
    }

    #[tokio::test]
    async fn history_is_bounded_and_slow_watches_fail() {
        let replica = Replica::new();
        let mut watch = replica.watch("", Revision::ZERO).unwrap();
        replica.apply((1..=2 * BATCH.changes as u64).map(|n| put("a", "x", n)));
        assert!(matches!(watch.next().await, Err(Error::Compacted { .. })));
        assert!(replica.state.lock().history.len() <= BATCH.changes);
    }
}
