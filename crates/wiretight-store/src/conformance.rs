//! Tests that every backend must pass. Each behaviour is a function that gets a fresh store; `suite!` turns it into a
//! test for each backend. A new backend needs only one more line in `suites!`.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::timeout;

use crate::watch::{BATCH, HISTORY, Limits};
use crate::{
    Change, Entry, Error, Key, MAX_VALUE, MemoryStore, Result, Revision, SqliteStore, Store, Watch,
    update,
};

type Shared = Arc<dyn Store>;
/// A store, and its directory.
type Fresh = (Shared, Option<TempDir>);

/// Makes a fresh store of a backend.
trait Open: AsyncFn(Limits) -> Fresh {}
impl<F: AsyncFn(Limits) -> Fresh> Open for F {}

macro_rules! suite {
    ($backend:ident, $open:path; $($behaviour:ident)*) => {
        mod $backend {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $behaviour() {
                super::$behaviour($open).await;
            })*
        }
    };
}

macro_rules! suites {
    ($($behaviour:ident)*) => {
        suite!(memory, super::memory; $($behaviour)*);
        suite!(sqlite, super::sqlite; $($behaviour)*);
    };
}

async fn memory(limits: Limits) -> Fresh {
    (Arc::new(MemoryStore::with_history(limits)), None)
}

async fn sqlite(limits: Limits) -> Fresh {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::with_history(dir.path().join("store.db"), limits).await.unwrap();
    (Arc::new(store), Some(dir))
}

suites! {
    an_entry_is_created_once_and_read_back
    a_swap_requires_the_current_revision
    a_deleted_key_can_be_created_again
    a_recreated_key_does_not_match_its_old_revision
    every_change_gets_a_higher_revision
    values_over_the_limit_are_rejected
    list_is_by_prefix_in_byte_order
    a_watch_from_a_list_misses_nothing
    update_creates_replaces_and_deletes
    an_error_in_update_writes_nothing
    concurrent_increments_are_all_counted
    one_of_concurrent_creates_succeeds
    watch_sees_puts_and_deletes_of_its_prefix_only
    watch_replays_earlier_changes
    watch_waits_for_a_change
    watch_sees_every_change_in_order_under_concurrency
    a_dropped_next_loses_nothing
    a_long_backlog_is_read_in_bounded_batches
    a_watcher_that_fell_behind_gets_an_error
    history_is_bounded_in_bytes_too
    a_watch_ahead_of_the_store_is_rejected
    a_watch_ends_when_its_store_is_dropped
}

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn put(k: &str, value: &[u8], revision: Revision) -> Change {
    Change::Put(Entry { key: key(k), value: value.to_vec(), revision })
}

fn keys(entries: &[Entry]) -> Vec<&str> {
    entries.iter().map(|e| e.key.as_str()).collect()
}

async fn soon<T>(work: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(20), work).await.expect("timed out")
}

/// Reads until `count` changes arrived.
async fn take(watch: &mut Watch, count: usize) -> Vec<Change> {
    let mut seen = Vec::new();
    while seen.len() < count {
        seen.extend(soon(watch.next()).await.unwrap());
    }
    seen
}

async fn nothing_comes(watch: &mut Watch) {
    let next = timeout(Duration::from_millis(50), watch.next()).await;
    assert!(next.is_err(), "unexpected: {next:?}");
}

fn conflict(result: Result<Revision>) -> Option<Revision> {
    match result {
        Err(Error::Conflict { found, .. }) => found,
        other => panic!("expected a conflict, not {other:?}"),
    }
}

async fn an_entry_is_created_once_and_read_back(open: impl Open) {
    let (store, _dir) = open(HISTORY).await;
    let k = key("node/db1");
    assert_eq!(store.get(&k).await.unwrap(), None);
    let revision = store.create(&k, b"one".to_vec()).await.unwrap();
    let entry = store.get(&k).await.unwrap().unwrap();
    assert_eq!(entry, Entry { key: k.clone(), value: b"one".to_vec(), revision });
    assert_eq!(conflict(store.create(&k, b"two".to_vec()).await), Some(revision));
    assert_eq!(store.get(&k).await.unwrap().unwrap().value, b"one");
}

async fn a_swap_requires_the_current_revision(open: impl Open) {
    let (store, _dir) = open(HISTORY).await;
    let k = key("policy");
    assert_eq!(conflict(store.swap(&k, Revision(7), Some(vec![1])).await), None);
    assert_eq!(conflict(store.swap(&k, Revision::ZERO, Some(vec![1])).await), None);
    let first = store.create(&k, vec![1]).await.unwrap();
    let second = store.swap(&k, first, Some(vec![2])).await.unwrap();
    assert!(second > first);
    assert_eq!(conflict(store.swap(&k, first, Some(vec![3])).await), Some(second));
    assert_eq!(conflict(store.swap(&k, first, None).await), Some(second));
    assert_eq!(conflict(store.swap(&k, Revision(u64::MAX), None).await), Some(second));
    let entry = store.get(&k).await.unwrap().unwrap();
    assert_eq!((entry.value, entry.revision), (vec![2], second));
}

async fn a_deleted_key_can_be_created_again(open: impl Open) {
    let (store, _dir) = open(HISTORY).await;
    let k = key("token/1");
    let first = store.create(&k, vec![1]).await.unwrap();
    let deleted = store.swap(&k, first, None).await.unwrap();
    assert!(deleted > first);
    assert_eq!(store.get(&k).await.unwrap(), None);
    assert_eq!(store.list("").await.unwrap(), (vec![], deleted));
    assert_eq!(conflict(store.swap(&k, deleted, Some(vec![2])).await), None);
    assert!(store.create(&k, vec![2]).await.unwrap() > deleted);
}

async fn a_recreated_key_does_not_match_its_old_revision(open: impl Open) {
    let (store, _dir) = open(HISTORY).await;
    let k = key("token/1");
    let old = store.create(&k, vec![1]).await.unwrap();
    store.swap(&k, old, None).await.unwrap();
    let new = store.create(&k, vec![1]).await.unwrap();
    assert!(new > old);
    assert_eq!(conflict(store.swap(&k, old, Some(vec![2])).await), Some(new));
    assert_eq!(conflict(store.swap(&k, old, None).await), Some(new));
    assert_eq!(store.get(&k).await.unwrap().unwrap().value, vec![1]);
}

async fn every_change_gets_a_higher_revision(open: impl Open) {
    let (store, _dir) = open(HISTORY).await;
    assert_eq!(store.list("").await.unwrap(), (vec![], Revision::ZERO));
    let a = store.create(&key("a"), vec![]).await.unwrap();
    let b = store.create(&key("b"), vec![]).await.unwrap();
    conflict(store.create(&key("b"), vec![]).await);
    let a2 = store.swap(&key("a"), a, Some(vec![])).await.unwrap();
    let b2 = store.swap(&key("b"), b, None).await.unwrap();
    assert!(Revision::ZERO < a && a < b && b < a2 && a2 < b2);
    assert_eq!(store.list("").await.unwrap().1, b2);
}

async fn values_over_the_limit_are_rejected(open: impl Open) {
    let (store, _dir) = open(HISTORY).await;
    let k = key(&"k".repeat(Key::MAX_LEN));
    let too_large = |r| matches!(r, Err(Error::ValueTooLarge { len }) if len == MAX_VALUE + 1);
    assert!(too_large(store.create(&k, vec![0; MAX_VALUE + 1]).await));
    let at = store.create(&k, vec![7; MAX_VALUE]).await.unwrap();
    assert!(too_large(store.swap(&k, at, Some(vec![0; MAX_VALUE + 1])).await));
    assert_eq!(store.get(&k).await.unwrap().unwrap().value, vec![7; MAX_VALUE]);
    let at = store.swap(&k, at, Some(vec![])).await.unwrap();
    assert_eq!(store.get(&k).await.unwrap().unwrap().value, vec![]);
    // An empty value is a value, not a deletion; also in the history.
    let mut watch = store.watch("", Revision(at.0 - 1)).await.unwrap();
    assert!(matches!(&take(&mut watch, 1).await[..], [Change::Put(e)] if e.value.is_empty()));
}

async fn list_is_by_prefix_in_byte_order(open: impl Open) {
    let (store, _dir) = open(HISTORY).await;
    let all =
        ["node/db10", "node/db1", "node", "node/é", "node/Z", "nodf", "a", "node0", "node/%_"];
    let mut last = Revision::ZERO;
    for k in all {
        last = store.create(&key(k), k.into()).await.unwrap();
    }
    let list = async |prefix: &str| {
        let (entries, at) = store.list(prefix).await.unwrap();
        assert_eq!(at, last);
        assert!(entries.iter().all(|e| e.value == e.key.as_str().as_bytes()));
        keys(&entries).join(" ")
    };
    assert_eq!(list("node/").await, "node/%_ node/Z node/db1 node/db10 node/é");
    assert_eq!(list("node/db1").await, "node/db1 node/db10");
    assert_eq!(list("node/%").await, "node/%_");
    assert_eq!(list("nod").await, "node node/%_ node/Z node/db1 node/db10 node/é node0 nodf");
    assert_eq!(list("").await.split(' ').count(), all.len());
    assert_eq!(list("nothing/").await, "");
    assert_eq!(list("\0").await, "");
    assert_eq!(list(&"n".repeat(Key::MAX_LEN + 1)).await, "");
}

/// A list and a watch from its revision, while another task writes: together they must give the final state.
async fn a_watch_from_a_list_misses_nothing(open: impl Open) {
    let (store, _dir) = open(HISTORY).await;
    let writer = tokio::spawn({
        let store = Arc::clone(&store);
        async move {
            for i in 0..200_u32 {
                let k = key(&format!("k/{}", i % 7));
                let change = |_: Option<&[u8]>| {
                    Ok::<_, Error>((i % 5 != 4).then(|| i.to_be_bytes().to_vec()))
                };
                update(&*store, &k, change).await.unwrap();
            }
        }
    });
    let mut views = Vec::new();
    while !writer.is_finished() {
        let (entries, at) = store.list("k/").await.unwrap();
        assert!(entries.iter().all(|e| e.revision <= at));
        views.push((entries, store.watch("k/", at).await.unwrap(), at));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    writer.await.unwrap();
    let (truth, end) = store.list("k/").await.unwrap();
    for (entries, mut watch, mut at) in views {
        let mut view: BTreeMap<_, _> = entries.into_iter().map(|e| (e.key.clone(), e)).collect();
        while at < end {
            for change in soon(watch.next()).await.unwrap() {
                at = change.revision();
                match change {
                    Change::Put(e) => drop(view.insert(e.key.clone(), e)),
                    Change::Deleted { key, .. } => assert!(view.remove(&key).is_some()),
                }
            }
        }
        assert_eq!(view.into_values().collect::<Vec<_>>(), truth);
    }
}

async fn update_creates_replaces_and_deletes(open: impl Open) {
    let (store, _dir) = open(HISTORY).await;
    let k = key("a");
    let to = async |from: Option<&[u8]>, value: Option<&[u8]>| {
        let change = |found: Option<&[u8]>| {
            assert_eq!(found, from);
            Ok::<_, Error>(value.map(<[u8]>::to_vec))
        };
        update(&*store, &k, change).await.unwrap()
    };
    assert_eq!(to(None, None).await, None);
    let created = to(None, Some(b"1")).await;
    let replaced = to(Some(b"1"), Some(b"2")).await;
    assert!(created.is_some() && replaced > created);
    assert!(to(Some(b"2"), None).await > replaced);
    assert_eq!(to(None, None).await, None);
}

async fn an_error_in_update_writes_nothing(open: impl Open) {
    #[derive(Debug)]
    enum Mine {
        No,
        Store(Error),
    }
    impl From<Error> for Mine {
        fn from(e: Error) -> Self {
            Self::Store(e)
        }
    }
    let (store, _dir) = open(HISTORY).await;
    let k = key("a");
    let refused = update(&*store, &k, |_| Err::<Option<Vec<u8>>, _>(Mine::No)).await;
    assert!(matches!(refused, Err(Mine::No)));
    let large = update(&*store, &k, |_| Ok::<_, Mine>(Some(vec![0; MAX_VALUE + 1]))).await;
    assert!(matches!(large, Err(Mine::Store(Error::ValueTooLarge { .. }))));
    assert_eq!(store.list("").await.unwrap(), (vec![], Revision::ZERO));
}

async fn concurrent_increments_are_all_counted(open: impl Open) {
    let (store, _dir) = open(HISTORY).await;
    let k = key("counter");
    let workers: Vec<_> = (0..8)
        .map(|_| {
            let (store, k) = (Arc::clone(&store), k.clone());
            tokio::spawn(async move {
                for _ in 0..25 {
                    let add = |v: Option<&[u8]>| {
                        let v = v.map_or(0, |v| u64::from_be_bytes(v.try_into().unwrap()));
                        Ok::<_, Error>(Some((v + 1).to_be_bytes().to_vec()))
                    };
                    update(&*store, &k, add).await.unwrap();
                }
            })
        })
        .collect();
    for worker in workers {
        soon(worker).await.unwrap();
    }
    let entry = store.get(&k).await.unwrap().unwrap();
    assert_eq!(entry.value, 200_u64.to_be_bytes());
    // Each increment is in the history once, in order.
    let mut watch = store.watch("", Revision::ZERO).await.unwrap();
    let seen = take(&mut watch, 200).await;
    for (change, n) in seen.iter().zip(1_u64..) {
        assert!(matches!(change, Change::Put(e) if e.value == n.to_be_bytes()));
    }
}

async fn one_of_concurrent_creates_succeeds(open: impl Open) {
    let (store, _dir) = open(HISTORY).await;
    for round in 0..10 {
        let k = key(&format!("token/{round}"));
        let racers: Vec<_> = (0..8_u8)
            .map(|i| {
                let (store, k) = (Arc::clone(&store), k.clone());
                tokio::spawn(async move { (i, store.create(&k, vec![i]).await) })
            })
            .collect();
        let mut winners = Vec::new();
        for racer in racers {
            match soon(racer).await.unwrap() {
                (i, Ok(revision)) => winners.push((vec![i], revision)),
                (_, lost) => assert!(conflict(lost).is_some()),
            }
        }
        let entry = store.get(&k).await.unwrap().unwrap();
        assert_eq!(winners, [(entry.value, entry.revision)]);
    }
}

async fn watch_sees_puts_and_deletes_of_its_prefix_only(open: impl Open) {
    let (store, _dir) = open(HISTORY).await;
    let mut watch = store.watch("node/", Revision::ZERO).await.unwrap();
    let a = store.create(&key("node/a"), vec![1]).await.unwrap();
    store.create(&key("nodes"), vec![9]).await.unwrap();
    let a2 = store.swap(&key("node/a"), a, Some(vec![2])).await.unwrap();
    let gone = store.swap(&key("node/a"), a2, None).await.unwrap();
    store.create(&key("policy"), vec![9]).await.unwrap();
    assert_eq!(
        take(&mut watch, 3).await,
        [
            put("node/a", &[1], a),
            put("node/a", &[2], a2),
            Change::Deleted { key: key("node/a"), revision: gone },
        ]
    );
    nothing_comes(&mut watch).await;
    let b = store.create(&key("node/b"), vec![3]).await.unwrap();
    assert_eq!(take(&mut watch, 1).await, [put("node/b", &[3], b)]);
}

async fn watch_replays_earlier_changes(open: impl Open) {
    let (store, _dir) = open(HISTORY).await;
    let a = store.create(&key("a"), vec![1]).await.unwrap();
    let b = store.create(&key("b"), vec![2]).await.unwrap();
    let mut from_start = store.watch("", Revision::ZERO).await.unwrap();
    assert_eq!(take(&mut from_start, 2).await, [put("a", &[1], a), put("b", &[2], b)]);
    let mut from_a = store.watch("", a).await.unwrap();
    assert_eq!(take(&mut from_a, 1).await, [put("b", &[2], b)]);
    nothing_comes(&mut store.watch("", b).await.unwrap()).await;
}

async fn watch_waits_for_a_change(open: impl Open) {
    let (store, _dir) = open(HISTORY).await;
    let mut watch = store.watch("a", Revision::ZERO).await.unwrap();
    let waiting = tokio::spawn(async move { watch.next().await });
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!waiting.is_finished());
    store.create(&key("b"), vec![]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!waiting.is_finished());
    let a = store.create(&key("a"), vec![]).await.unwrap();
    assert_eq!(soon(waiting).await.unwrap().unwrap(), [put("a", &[], a)]);
}

async fn watch_sees_every_change_in_order_under_concurrency(open: impl Open) {
    const WRITERS: usize = 6;
    const EACH: usize = 40;
    let (store, _dir) = open(HISTORY).await;
    let watchers: Vec<_> = (0..4)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let mut watch = store.watch("", Revision::ZERO).await.unwrap();
                take(&mut watch, WRITERS * EACH).await
            })
        })
        .collect();
    let writers: Vec<_> = (0..WRITERS)
        .map(|w| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let mut mine = Vec::new();
                for i in 0..EACH {
                    let name = format!("w{w}/{i}");
                    let at = store.create(&key(&name), vec![w as u8, i as u8]).await.unwrap();
                    mine.push(put(&name, &[w as u8, i as u8], at));
                }
                mine
            })
        })
        .collect();
    let mut written = Vec::new();
    for writer in writers {
        written.extend(soon(writer).await.unwrap());
    }
    written.sort_by_key(Change::revision);
    for watcher in watchers {
        assert_eq!(soon(watcher).await.unwrap(), written);
    }
}

async fn a_dropped_next_loses_nothing(open: impl Open) {
    let (store, _dir) = open(HISTORY).await;
    let mut watch = store.watch("", Revision::ZERO).await.unwrap();
    let writer = tokio::spawn({
        let store = Arc::clone(&store);
        async move {
            for i in 0..100 {
                store.create(&key(&format!("{i:03}")), vec![]).await.unwrap();
            }
        }
    });
    let mut seen = Vec::new();
    let mut patience = (0..).map(|i| Duration::from_micros(i * 37 % 500));
    while seen.len() < 100 {
        if let Ok(changes) = timeout(patience.next().unwrap(), watch.next()).await {
            seen.extend(changes.unwrap());
        }
        if writer.is_finished() && seen.len() < 100 {
            seen.extend(soon(watch.next()).await.unwrap());
        }
    }
    writer.await.unwrap();
    let expected: Vec<_> = (0..100).map(|i| format!("{i:03}")).collect();
    assert_eq!(seen.iter().map(|c| c.key().as_str()).collect::<Vec<_>>(), expected);
}

async fn a_long_backlog_is_read_in_bounded_batches(open: impl Open) {
    let (store, _dir) = open(HISTORY).await;
    let large = 10;
    for i in 0..large {
        store.create(&key(&format!("large/{i}")), vec![i; MAX_VALUE]).await.unwrap();
    }
    for i in 0..BATCH.changes + 10 {
        store.create(&key(&format!("small/{i}")), vec![]).await.unwrap();
    }
    let count = usize::from(large) + BATCH.changes + 10;
    let mut watch = store.watch("", Revision::ZERO).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < count {
        let batch = soon(watch.next()).await.unwrap();
        assert!(!batch.is_empty() && batch.len() <= BATCH.changes);
        assert!(batch.iter().map(Change::weight).sum::<usize>() <= BATCH.bytes);
        seen.extend(batch);
    }
    assert_eq!(seen.len(), count);
    assert!(seen.is_sorted_by(|a, b| a.revision() < b.revision()));
    nothing_comes(&mut watch).await;
}

async fn a_watcher_that_fell_behind_gets_an_error(open: impl Open) {
    let (store, _dir) = open(Limits { changes: 10, bytes: HISTORY.bytes }).await;
    let first = store.create(&key("0"), vec![]).await.unwrap();
    let mut slow = store.watch("", first).await.unwrap();
    for i in 1..11 {
        store.create(&key(&i.to_string()), vec![]).await.unwrap();
    }
    // Ten changes since then, which is all that the history keeps. A watch one change further back is too late.
    let late = store.watch("", Revision::ZERO).await;
    assert!(
        matches!(late, Err(Error::Compacted { after: Revision::ZERO, oldest }) if oldest == first)
    );
    store.watch("", first).await.unwrap();
    let last = store.create(&key("11"), vec![]).await.unwrap();
    for _ in 0..2 {
        let next = soon(slow.next()).await;
        assert!(
            matches!(next, Err(Error::Compacted { after, oldest }) if after == first && oldest > first)
        );
    }
    // The same if nothing changed under the prefix, because the store no longer knows that.
    assert!(matches!(store.watch("none/", first).await, Err(Error::Compacted { .. })));
    // To recover, list again.
    let (entries, at) = store.list("").await.unwrap();
    assert_eq!((entries.len(), at), (12, last));
    let mut again = store.watch("", at).await.unwrap();
    let next = store.create(&key("12"), vec![]).await.unwrap();
    assert_eq!(take(&mut again, 1).await, [put("12", &[], next)]);
}

async fn history_is_bounded_in_bytes_too(open: impl Open) {
    let (store, _dir) = open(Limits { changes: HISTORY.changes, bytes: 1000 }).await;
    let mut at = store.create(&key("k"), vec![1; 400]).await.unwrap();
    let first = at;
    at = store.swap(&key("k"), at, Some(vec![2; 400])).await.unwrap();
    let second = at;
    store.watch("", Revision::ZERO).await.unwrap();
    at = store.swap(&key("k"), at, Some(vec![3; 400])).await.unwrap();
    assert!(matches!(store.watch("", Revision::ZERO).await, Err(Error::Compacted { .. })));
    assert_eq!(take(&mut store.watch("", first).await.unwrap(), 2).await.len(), 2);
    // A single change larger than the whole limit stays, alone.
    at = store.swap(&key("k"), at, Some(vec![4; 5000])).await.unwrap();
    assert!(matches!(store.watch("", second).await, Err(Error::Compacted { .. })));
    let mut watch = store.watch("", Revision(at.0 - 1)).await.unwrap();
    assert_eq!(take(&mut watch, 1).await, [put("k", &[4; 5000], at)]);
}

async fn a_watch_ahead_of_the_store_is_rejected(open: impl Open) {
    let (store, _dir) = open(HISTORY).await;
    let at = store.create(&key("k"), vec![]).await.unwrap();
    store.watch("", at).await.unwrap();
    for ahead in [at.next(), Revision(u64::MAX)] {
        let refused = store.watch("", ahead).await;
        assert!(
            matches!(refused, Err(Error::Ahead { after, head }) if after == ahead && head == at)
        );
    }
}

async fn a_watch_ends_when_its_store_is_dropped(open: impl Open) {
    let (store, _dir) = open(HISTORY).await;
    let mut watch = store.watch("", Revision::ZERO).await.unwrap();
    let waiting = tokio::spawn(async move { watch.next().await });
    tokio::time::sleep(Duration::from_millis(20)).await;
    drop(store);
    assert!(matches!(soon(waiting).await.unwrap(), Err(Error::Closed)));
}

#[test]
fn a_key_is_1_to_512_bytes_without_nul() {
    for good in ["a", "node/db1", "é", " ", &"k".repeat(512)] {
        assert_eq!(Key::new(good).unwrap().to_string(), good);
    }
    for bad in ["", "a\0b", &"k".repeat(513), &"é".repeat(257)] {
        let error = bad.parse::<Key>().unwrap_err();
        assert!(matches!(error, Error::BadKey { .. }), "{error}");
    }
}

#[test]
fn debug_output_contains_no_values() {
    let change = put("token/1", b"secret", Revision(3));
    assert_eq!(format!("{change:?}"), r#"Put("token/1"@3 (6 bytes))"#);
}
