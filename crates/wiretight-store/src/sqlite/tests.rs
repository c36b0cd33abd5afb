//! Problems of files: crashes, damage, a full disk, a second owner, permissions.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use rusqlite::Connection;
use tempfile::TempDir;

use super::open::{APPLICATION_ID, SCHEMA, beside};
use super::*;
use crate::MAX_VALUE;

struct Place {
    _dir: TempDir,
    path: PathBuf,
}

fn place() -> Place {
    let dir = tempfile::tempdir().unwrap();
    Place { path: dir.path().join("store.db"), _dir: dir }
}

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// The text that an operator would read: the error and its causes.
async fn refusal(path: &Path) -> (Error, String) {
    let Err(error) = SqliteStore::open(path).await else { panic!("it was opened") };
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(e) = cause {
        text += &format!(": {e}");
        cause = e.source();
    }
    assert!(text.contains(&*path.to_string_lossy()), "names the file: {text}");
    (error, text)
}

/// A closed store with some entries, all in its main file.
async fn filled(path: &Path) {
    let store = SqliteStore::open(path).await.unwrap();
    for i in 0..200 {
        store.create(&key(&format!("k/{i:03}")), vec![i as u8; 1000]).await.unwrap();
    }
    drop(store);
    assert!(!beside(path, "-wal").exists());
}

#[tokio::test]
async fn entries_and_revisions_survive_reopening() {
    let place = place();
    let store = SqliteStore::open(&place.path).await.unwrap();
    let a = store.create(&key("a"), vec![1]).await.unwrap();
    let b = store.create(&key("b"), vec![2]).await.unwrap();
    let gone = store.swap(&key("b"), b, None).await.unwrap();
    drop(store);

    let store = SqliteStore::open(&place.path).await.unwrap();
    let (entries, at) = store.list("").await.unwrap();
    assert_eq!(entries, [Entry { key: key("a"), value: vec![1], revision: a }]);
    assert_eq!(at, gone, "a deletion's revision is not reused");
    assert!(store.create(&key("b"), vec![3]).await.unwrap() > gone);
}

#[tokio::test]
async fn a_watch_resumes_after_reopening() {
    let place = place();
    let store = SqliteStore::open(&place.path).await.unwrap();
    let a = store.create(&key("a"), vec![1]).await.unwrap();
    let b = store.create(&key("b"), vec![2]).await.unwrap();
    let gone = store.swap(&key("a"), a, None).await.unwrap();
    drop(store);

    let store = SqliteStore::open(&place.path).await.unwrap();
    let mut watch = store.watch("", a).await.unwrap();
    let missed = watch.next().await.unwrap();
    let created = Change::new(key("b"), Some(vec![2]), b);
    assert_eq!(missed, [created, Change::new(key("a"), None, gone)]);
    let c = store.create(&key("c"), vec![]).await.unwrap();
    assert_eq!(watch.next().await.unwrap()[0].revision(), c);
}

#[tokio::test]
async fn the_bounds_of_history_hold_across_reopening() {
    let place = place();
    let limits = Limits { changes: 100, bytes: 1000 };
    let mut expected = 0;
    for round in 0..4 {
        let store = SqliteStore::with_history(place.path.clone(), limits).await.unwrap();
        let mut db = store.db.lock().await;
        assert_eq!(db.history_bytes, expected);
        for i in 0..4 {
            let written = db.write(key(&format!("{round}{i}")), None, Some(vec![0; 198]));
            assert!(written.is_ok());
        }
        let (oldest, head) = history(&db.conn).unwrap();
        assert_eq!((head.0, head.0 - oldest.0), ((round + 1) * 4, 5.min((round + 1) * 4)));
        expected = db.history_bytes;
        assert!(expected <= 1000);
    }
}

#[tokio::test]
async fn all_files_are_private_to_the_owner() {
    let place = place();
    let store = SqliteStore::open(&place.path).await.unwrap();
    store.create(&key("a"), vec![1]).await.unwrap();
    for suffix in ["", ".lock", "-wal", "-shm"] {
        assert_eq!(mode(&beside(&place.path, suffix)), 0o600, "{suffix}");
    }
    assert!(!beside(&place.path, ".new").exists());
}

#[tokio::test]
async fn a_file_that_others_can_read_is_rejected() {
    let place = place();
    filled(&place.path).await;
    fs::set_permissions(&place.path, PermissionsExt::from_mode(0o640)).unwrap();
    let (error, text) = refusal(&place.path).await;
    assert!(matches!(error, Error::Exposed { mode: 0o640, .. }));
    assert!(text.contains("0640") && text.contains("chmod 600"), "{text}");
}

/// A program that another thread is starting holds a copy of the lock for a moment.
#[tokio::test]
async fn a_lock_that_is_about_to_be_released_is_waited_for() {
    let place = place();
    drop(SqliteStore::open(&place.path).await.unwrap());
    let held = fs::File::open(beside(&place.path, ".lock")).unwrap();
    held.lock().unwrap();
    let release = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        drop(held);
    });
    SqliteStore::open(&place.path).await.unwrap();
    release.join().unwrap();
}

#[tokio::test]
async fn a_second_owner_is_rejected_also_through_a_symlink() {
    let place = place();
    let store = SqliteStore::open(&place.path).await.unwrap();
    let (error, text) = refusal(&place.path).await;
    assert!(matches!(error, Error::InUse { .. }));
    assert!(text.contains("another process") && text.contains("store.db.lock"), "{text}");

    let alias = place.path.with_file_name("alias.db");
    std::os::unix::fs::symlink(&place.path, &alias).unwrap();
    assert!(matches!(SqliteStore::open(&alias).await, Err(Error::InUse { .. })));

    store.create(&key("a"), vec![1]).await.unwrap();
    drop(store);
    SqliteStore::open(&alias).await.unwrap();
}

#[tokio::test]
async fn a_missing_directory_is_reported() {
    let place = place();
    let path = place.path.with_file_name("nowhere").join("store.db");
    let (error, text) = refusal(&path).await;
    assert!(matches!(error, Error::Io { .. }));
    assert!(text.contains("directory does not exist"), "{text}");
}

#[tokio::test]
async fn an_incomplete_new_store_is_created_again() {
    let place = place();
    fs::write(beside(&place.path, ".new"), "half").unwrap();
    fs::write(beside(&place.path, ".new-journal"), "half").unwrap();
    let store = SqliteStore::open(&place.path).await.unwrap();
    store.create(&key("a"), vec![1]).await.unwrap();
}

#[tokio::test]
async fn a_leftover_that_cannot_be_removed_is_reported() {
    let place = place();
    fs::create_dir(beside(&place.path, ".new")).unwrap();
    let (error, text) = refusal(&place.path).await;
    assert!(matches!(error, Error::Io { doing: "remove", .. }), "{text}");
}

#[tokio::test]
async fn a_mode_that_cannot_be_read_is_reported() {
    let place = place();
    filled(&place.path).await;
    let wal = beside(&place.path, "-wal");
    std::os::unix::fs::symlink(&wal, &wal).unwrap();
    let (error, text) = refusal(&place.path).await;
    assert!(matches!(error, Error::Io { doing: "read the mode of", .. }), "{text}");
}

#[tokio::test]
async fn a_foreign_file_is_rejected_and_unchanged() {
    let place = place();
    for text in ["hello", &"a long text\n".repeat(1000)] {
        fs::write(&place.path, text).unwrap();
        fs::set_permissions(&place.path, PermissionsExt::from_mode(0o600)).unwrap();
        let (error, said) = refusal(&place.path).await;
        assert!(matches!(error, Error::Foreign { .. }), "{said}");
        assert!(said.contains("correct the path"), "{said}");
        assert_eq!(fs::read_to_string(&place.path).unwrap(), text);
    }
    fs::remove_file(&place.path).unwrap();
    let other = Connection::open(&place.path).unwrap();
    other.execute_batch("CREATE TABLE customers (name TEXT)").unwrap();
    drop(other);
    fs::set_permissions(&place.path, PermissionsExt::from_mode(0o600)).unwrap();
    let before = fs::read(&place.path).unwrap();
    let (error, text) = refusal(&place.path).await;
    assert!(matches!(error, Error::Foreign { .. }));
    assert!(text.contains("SQLite database of another program"), "{text}");
    assert_eq!(fs::read(&place.path).unwrap(), before);
}

#[tokio::test]
async fn a_newer_schema_is_rejected() {
    let place = place();
    filled(&place.path).await;
    let conn = Connection::open(&place.path).unwrap();
    conn.pragma_update(None, "user_version", SCHEMA + 1).unwrap();
    drop(conn);
    let (error, text) = refusal(&place.path).await;
    assert!(matches!(error, Error::NewerSchema { found, known, .. } if found == known + 1));
    assert!(text.contains("newer wiretight wrote it"), "{text}");
}

#[tokio::test]
async fn a_truncated_or_overwritten_file_is_rejected() {
    let place = place();
    filled(&place.path).await;
    let whole = fs::read(&place.path).unwrap();
    assert_eq!(whole[68..72], APPLICATION_ID.to_be_bytes());
    let torn = [0, 50, 99, 100, 4096, whole.len() / 2, whole.len() - 4096, whole.len() - 1];
    for len in torn {
        fs::write(&place.path, &whole[..len]).unwrap();
        let (error, text) = refusal(&place.path).await;
        assert!(matches!(error, Error::Corrupt { .. }), "cut to {len}: {text}");
        assert!(text.contains("restore the last backup"), "{text}");
    }
    // Overwrite pages that are not free; SQLite's pages are 4096 bytes.
    for page in [1, 2, 3, 10, whole.len() / 4096 - 1] {
        let mut damaged = whole.clone();
        damaged[page * 4096..][..4096].fill(0xA5);
        fs::write(&place.path, damaged).unwrap();
        let (error, text) = refusal(&place.path).await;
        assert!(matches!(error, Error::Corrupt { .. }), "page {page}: {text}");
    }
    fs::write(&place.path, whole).unwrap();
    let store = SqliteStore::open(&place.path).await.unwrap();
    assert_eq!(store.list("").await.unwrap().0.len(), 200);
}

#[tokio::test]
async fn a_gap_in_the_history_is_rejected() {
    let place = place();
    filled(&place.path).await;
    let conn = Connection::open(&place.path).unwrap();
    conn.execute("DELETE FROM change WHERE revision = 77", []).unwrap();
    drop(conn);
    let (error, text) = refusal(&place.path).await;
    assert!(matches!(error, Error::Corrupt { .. }));
    assert!(text.contains("199 changes for 200 revisions"), "{text}");
}

#[tokio::test]
async fn a_log_without_its_file_is_not_replayed_into_a_new_one() {
    let place = place();
    fs::write(beside(&place.path, "-wal"), "frames").unwrap();
    let (error, text) = refusal(&place.path).await;
    assert!(matches!(error, Error::Corrupt { .. }));
    assert!(text.contains("missing, but its -wal exists"), "{text}");
    assert!(!place.path.exists());
}

#[tokio::test]
async fn a_store_works_again_after_a_full_disk() {
    let place = place();
    let store = SqliteStore::open(&place.path).await.unwrap();
    let mut watch = store.watch("", Revision::ZERO).await.unwrap();
    let set_max_pages = async |pages: i64| {
        let db = store.db.lock().await;
        let set = |row: &Row<'_>| row.get::<_, i64>(0);
        db.conn.pragma_update_and_check(None, "max_page_count", pages, set).unwrap();
    };
    set_max_pages(2000).await;
    let mut acknowledged = Vec::new();
    let full = loop {
        let k = key(&format!("{:03}", acknowledged.len()));
        match store.create(&k, vec![acknowledged.len() as u8; MAX_VALUE / 2]).await {
            Ok(revision) => acknowledged.push((k, revision)),
            Err(e) => break e,
        }
    };
    assert!(matches!(full, Error::Full { .. }), "{full:?}");
    assert!(full.to_string().contains("free some space"), "{full}");
    assert!(acknowledged.len() > 3);
    // It is still full, still readable, and failed writes use no revision.
    let k = key("one more");
    assert!(matches!(store.create(&k, vec![0; MAX_VALUE]).await, Err(Error::Full { .. })));
    assert_eq!(store.get(&k).await.unwrap(), None);
    let (entries, at) = store.list("").await.unwrap();
    assert_eq!(entries.into_iter().map(|e| (e.key, e.revision)).collect::<Vec<_>>(), acknowledged);
    assert_eq!(at, acknowledged.last().unwrap().1);
    let mut seen = Vec::new();
    while seen.len() < acknowledged.len() {
        seen.extend(watch.next().await.unwrap());
    }

    set_max_pages(1_000_000).await;
    acknowledged.push((k.clone(), store.create(&k, vec![0; MAX_VALUE]).await.unwrap()));
    assert_eq!(watch.next().await.unwrap()[0].key(), &k);
    drop(store);
    let store = SqliteStore::open(&place.path).await.unwrap();
    let (entries, _) = store.list("").await.unwrap();
    assert_eq!(entries.into_iter().map(|e| (e.key, e.revision)).collect::<Vec<_>>(), acknowledged);
}

#[tokio::test]
async fn a_write_with_a_dropped_future_is_atomic() {
    let place = place();
    let store = SqliteStore::open(&place.path).await.unwrap();
    for i in 0..50 {
        let k = key(&format!("{i}"));
        let write = store.create(&k, vec![1; 1000]);
        let _ = tokio::time::timeout(std::time::Duration::from_micros(i * 40), write).await;
    }
    let (entries, at) = store.list("").await.unwrap();
    assert_eq!(entries.len() as u64, at.0);
    assert!(entries.iter().all(|e| e.value == [1; 1000]));
}

const CHILD: &str = "sqlite::tests::the_child_that_writes_until_it_is_killed";
const CHILD_PATH: &str = "WIRETIGHT_STORE_TEST_CHILD";

/// Prints each revision only after the write returned, which is when a caller would rely on it.
#[tokio::test]
#[ignore = "not a test: kill_9_loses_nothing_acknowledged starts it and kills it"]
async fn the_child_that_writes_until_it_is_killed() {
    let Some(path) = std::env::var_os(CHILD_PATH) else { return };
    let store = SqliteStore::open(path).await.unwrap();
    let (mut at, start) = (None, store.list("").await.unwrap().1.0);
    for i in start.. {
        // One entry replaced and one created; both must be consistent afterwards.
        let latest = key("latest");
        if at.is_none() {
            at = store.get(&latest).await.unwrap().map(|e| e.revision);
        }
        let value = i.to_be_bytes().repeat(300);
        at = Some(match at {
            Some(at) => store.swap(&latest, at, Some(value)).await.unwrap(),
            None => store.create(&latest, value).await.unwrap(),
        });
        let created = store.create(&key(&format!("each/{i}")), vec![7; 200]).await.unwrap();
        println!("\nacknowledged {i} {created}");
    }
}

#[tokio::test]
async fn kill_9_loses_nothing_acknowledged() {
    let place = place();
    let mut acknowledged = Vec::new();
    for round in 0..5 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", CHILD, "--ignored", "--nocapture"])
            .env(CHILD_PATH, &place.path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let before = acknowledged.len();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut read = |acknowledged: &mut Vec<(String, Revision)>| {
            let Some(line) = lines.next() else { return false };
            if let Some(rest) = line.unwrap().strip_prefix("acknowledged ") {
                // The kill may truncate the last line.
                if let Some((i, revision)) = rest.split_once(' ') {
                    acknowledged.push((i.to_owned(), Revision(revision.parse().unwrap())));
                }
            }
            true
        };
        while acknowledged.len() < before + 20 + round * 37 {
            assert!(read(&mut acknowledged), "the child ended by itself");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        while read(&mut acknowledged) {}

        // Opening runs SQLite's integrity check and ours.
        let store = SqliteStore::open(&place.path).await.unwrap();
        let (entries, head) = store.list("").await.unwrap();
        assert!(head >= acknowledged.last().unwrap().1);
        for (i, revision) in &acknowledged {
            let entry = store.get(&key(&format!("each/{i}"))).await.unwrap().unwrap();
            assert_eq!((entry.revision, entry.value), (*revision, vec![7; 200]));
        }
        let latest = entries.iter().find(|e| e.key.as_str() == "latest").unwrap();
        assert_eq!(latest.value.len(), 2400);
        // Entries and history must agree: replaying all changes gives the listing.
        let mut watch = store.watch("", Revision::ZERO).await.unwrap();
        let mut replayed = std::collections::BTreeMap::new();
        let mut at = Revision::ZERO;
        while at < head {
            for change in watch.next().await.unwrap() {
                assert_eq!(change.revision(), at.next());
                at = change.revision();
                if let Change::Put(entry) = change {
                    replayed.insert(entry.key.clone(), entry);
                }
            }
        }
        assert_eq!(replayed.into_values().collect::<Vec<_>>(), entries);
    }
}

/// A snapshot while the owner writes; the copy is an independent store.
#[tokio::test]
async fn a_snapshot_is_consistent() {
    let place = place();
    let store = SqliteStore::open(&place.path).await.unwrap();
    let key = key("k/counter");
    store.create(&key, vec![0]).await.unwrap();
    let copies = place.path.with_file_name("copies");
    fs::create_dir(&copies).unwrap();
    for n in 0..20u8 {
        let writes = async {
            for i in 0..10u8 {
                let at = store.get(&key).await.unwrap().unwrap().revision;
                store.swap(&key, at, Some(vec![n, i])).await.unwrap();
            }
        };
        let copy = copies.join(n.to_string());
        let (taken, ()) = tokio::join!(SqliteStore::snapshot(&place.path, &copy), writes);
        taken.unwrap();
        assert_eq!(mode(&copy), 0o600);
        let head = store.list("").await.unwrap().1;
        let copy = SqliteStore::open(&copy).await.unwrap();
        let (entries, at) = copy.list("").await.unwrap();
        assert!(at <= head);
        let counter = &entries[0];
        assert_eq!(counter.revision, at, "entry and history are consistent");
        copy.swap(&key, at, Some(vec![255])).await.unwrap();
    }
    let twice = SqliteStore::snapshot(&place.path, copies.join("0")).await;
    assert!(
        matches!(twice, Err(Error::Io { .. })),
        "an existing copy is not overwritten: {twice:?}"
    );
    let none = SqliteStore::snapshot(place.path.with_file_name("none"), copies.join("x")).await;
    assert!(none.is_err());
}
