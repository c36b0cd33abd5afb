//! Damage to a log: lost or altered full tiles, abandoned writes that are executed late, and a witness that claims that
//! the log was reset.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::{sleep, timeout};
use wiretight::log::bucket::Bucket;
use wiretight::log::cosigning::{Answer, Witness};
use wiretight::log::sequencer::{Log, LogError, Params};
use wiretight::log::storage::Storage;
use wiretight_tlog::tile::Tile;
use wiretight_tlog::{Checkpoint, Hash, LogSigner, SignedCheckpoint};

use super::sequencer::{World, audit_in, holds};

fn entries(count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|n| format!("entry {n}").into_bytes()).collect()
}

async fn eventually(what: &str, log: &Log, is_so: impl Fn(&Log) -> bool) {
    let patience = async {
        while !is_so(log) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    let status = || log.status();
    timeout(Duration::from_secs(20), patience)
        .await
        .unwrap_or_else(|_| panic!("never: {what}: {:?}", status()));
}

async fn read_and_published(log: &Log) {
    let is_so = |log: &Log| log.status().verified.is_some() && log.checkpoint().is_some();
    eventually("all is read, and the checkpoint published", log, is_so).await;
}

/// For files and for a bucket. A start reads only the edge; the rest is checked in the background.
#[tokio::test]
async fn lost_or_altered_full_tiles_are_found_reported_and_not_served() {
    let memory = Arc::new(object_store::memory::InMemory::new());
    let bucket = Bucket::new(memory, "a/prefix".into(), "memory".into());
    for in_bucket in [false, true] {
        let world = World::new();
        let storage: Arc<dyn Storage> = match in_bucket {
            true => Arc::new(bucket.clone()),
            false => world.storage(),
        };
        let start = || async { world.start_on(storage.clone(), world.store().await).await };
        let log = start().await.unwrap();
        // One of them is large enough for a full tile of the second level.
        let size = if in_bucket { 3000 } else { 66_000 };
        for part in entries(size).chunks(33_000) {
            log.append_all(part.to_vec()).await.unwrap();
        }
        log.close().await;
        let read = async |path: &str| storage.get(path, 1 << 24).await.unwrap().unwrap();
        let write = async |path: &str, bytes: Vec<u8>| {
            storage.put(vec![(path.to_owned(), bytes)]).await.unwrap();
        };
        let flipped = |mut bytes: Vec<u8>, at: usize| {
            bytes[at] ^= 4;
            bytes
        };
        let mut good = Vec::new();
        let high = (!in_bucket).then_some("tile/1/000");
        let paths = ["tile/0/000", "tile/0/010", "tile/entries/007", "tile/entries/008"];
        for path in paths.into_iter().chain(high) {
            good.push((path, read(path).await));
        }
        let good_of = |path: &str| good.iter().find(|(p, _)| *p == path).unwrap().1.clone();

        // The control: everything is as it was signed.
        let log = start().await.unwrap();
        read_and_published(&log).await;
        assert_eq!(log.status().verified.unwrap().0, size as u64);
        assert_eq!(log.status().damaged, Vec::<String>::new());
        let serve = async |log: &Log, path: &str| log.tile(Tile::parse(path).unwrap()).await;
        for (path, bytes) in &good {
            assert_eq!(serve(&log, path).await.unwrap().as_ref(), Some(bytes), "{path}");
        }
        log.close().await;

        // Altered, truncated and lost tiles of hashes and entries.
        write("tile/0/010", flipped(good_of("tile/0/010"), 99)).await;
        write("tile/entries/007", flipped(good_of("tile/entries/007"), 7)).await;
        write("tile/entries/008", good_of("tile/entries/008")[..99].to_vec()).await;
        storage.delete_all("tile/entries/009.p").await.unwrap();
        let log = start().await.unwrap();
        read_and_published(&log).await;
        let damaged = log.status().damaged;
        let bad = ["tile/0/010", "tile/entries/007", "tile/entries/008"];
        assert_eq!(damaged.len(), bad.len(), "{damaged:?}");
        for path in bad {
            assert!(damaged.iter().any(|d| d.starts_with(path)), "{damaged:?}");
            let refused = serve(&log, path).await.expect_err("it is not what was signed");
            assert!(matches!(&refused, LogError::Storage { .. }), "{refused}");
        }
        // The other tiles are served, and the log accepts entries.
        let paths = ["tile/0/000", "tile/0/007", "tile/entries/006", "tile/entries/010"];
        for path in paths.into_iter().chain(high) {
            assert!(serve(&log, path).await.unwrap().is_some(), "{path}");
        }
        holds(&world, &log.append(b"more".into()).await.unwrap(), b"more");
        log.close().await;

        let Some(high) = high else { continue };
        // A tile of a higher level: nothing below it can be checked, so none of that is served.
        for path in bad {
            write(path, good_of(path)).await;
        }
        write(high, flipped(good_of(high), 9)).await;
        let log = start().await.unwrap();
        read_and_published(&log).await;
        assert_eq!(log.status().damaged, ["tile/1/000 is not what was signed"]);
        assert!(serve(&log, "tile/0/000").await.is_err());
        assert!(serve(&log, "tile/entries/000").await.is_err());
        // After it is restored, the next check notices that.
        write(high, good_of(high)).await;
        assert!(serve(&log, high).await.unwrap().is_some());
        assert!(serve(&log, "tile/0/000").await.unwrap().is_some());
        assert_eq!(log.status().damaged, Vec::<String>::new());
        log.close().await;
        audit_in(&world, &storage).await;
    }
}

/// A lost tile, for files only (an object store has no rename).
#[tokio::test]
async fn a_lost_full_tile_differs_from_one_that_never_existed() {
    let world = World::new();
    let log = world.start().await.unwrap();
    log.append_all(entries(600)).await.unwrap();
    log.close().await;
    let (file, aside) = (world.path().join("log/tile/0/001"), world.path().join("aside"));
    std::fs::rename(&file, &aside).unwrap();
    let log = world.start().await.unwrap();
    read_and_published(&log).await;
    assert_eq!(log.status().damaged, ["tile/0/001 is missing"]);
    let tile = |path: &str| log.tile(Tile::parse(path).unwrap());
    assert!(tile("tile/0/001").await.is_err());
    assert!(tile("tile/entries/001").await.unwrap().is_some(), "it is checked by the tile above");
    assert_eq!(tile("tile/0/001.p/7").await.unwrap(), None, "a partial one need not be there");
    assert_eq!(tile("tile/0/002.p/200").await.unwrap(), None, "beyond the tree");
    std::fs::rename(&aside, &file).unwrap();
    assert!(tile("tile/0/001").await.unwrap().is_some());
    assert_eq!(log.status().damaged, Vec::<String>::new());
}

/// A proxy between a log and an S3 server that can hold PUTs back and execute them later.
struct Late {
    addr: SocketAddr,
    server: SocketAddr,
    holds: AtomicBool,
    /// Whether conditions are passed on to the server.
    conditions: bool,
    held: Mutex<Vec<Vec<u8>>>,
}

impl Late {
    fn start(server: SocketAddr, conditions: bool) -> Arc<Late> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (addr, holds) = (listener.local_addr().unwrap(), AtomicBool::new(false));
        let late = Arc::new(Late { addr, server, holds, conditions, held: Mutex::default() });
        let this = late.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let this = this.clone();
                std::thread::spawn(move || this.connection(stream));
            }
        });
        late
    }

    /// Handles one request per connection.
    fn connection(&self, stream: TcpStream) -> Option<()> {
        let mut stream = BufReader::new(stream);
        let (mut head, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).ok()?;
            let lower = line.to_lowercase();
            if let Some(value) = lower.strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
            let condition = lower.starts_with("if-none-match:") || lower.starts_with("if-match:");
            match line.trim().is_empty() {
                true => break,
                false if condition && !self.conditions => {}
                false => head.push_str(&line),
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).ok()?;
        let request = [format!("{head}Connection: close\r\n\r\n").as_bytes(), &body].concat();
        if head.starts_with("PUT") && self.holds.load(Ordering::SeqCst) {
            self.held.lock().unwrap().push(request);
            return None; // no answer
        }
        stream.get_mut().write_all(&self.send(&request)).ok()
    }

    fn send(&self, request: &[u8]) -> Vec<u8> {
        let mut server = TcpStream::connect(self.server).unwrap();
        server.write_all(request).unwrap();
        let mut answer = Vec::new();
        server.read_to_end(&mut answer).unwrap();
        answer
    }

    /// Executes the held requests now; returns how many there were, and how many the server accepted.
    fn deliver(&self) -> (usize, usize) {
        let held = std::mem::take(&mut *self.held.lock().unwrap());
        let took = held.iter().filter(|r| self.send(r).starts_with(b"HTTP/1.1 200")).count();
        (held.len(), took)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_write_that_arrives_late_damages_nothing() {
    let Some(server) = super::rig::s3_server() else {
        eprintln!("skipped: no S3 server (moto from PyPI)");
        return;
    };
    for conditions in [true, false] {
        let world = World::new();
        let late = Late::start(server.addr(), conditions);
        let bucket = server.bucket_through(late.addr, &format!("conditions-{conditions}"));
        assert_eq!(bucket.heeds_conditions().await.unwrap(), conditions);
        let storage: Arc<dyn Storage> = Arc::new(bucket);
        let log = world.start_on(storage.clone(), world.store().await).await.unwrap();
        let mut all = entries(250);
        log.append_all(all.clone()).await.unwrap();
        // Tiles that become full, and partial ones. None of them gets signed.
        late.holds.store(true, Ordering::SeqCst);
        let lost = (0..10).map(|n| format!("lost {n}").into_bytes()).collect();
        assert!(log.append_all(lost).await.is_err(), "it was given up");
        late.holds.store(false, Ordering::SeqCst);
        // The same tiles with other entries.
        let more: Vec<Vec<u8>> = (0..10).map(|n| format!("more {n}").into_bytes()).collect();
        let appended = async {
            while log.append_all(more.clone()).await.is_err() {
                sleep(Duration::from_millis(100)).await; // it reads itself again
            }
        };
        timeout(Duration::from_secs(20), appended).await.unwrap();
        all.extend(more);
        let (came, took) = late.deliver();
        log.close().await;
        assert!(came >= 4, "{came} came late");
        let again = world.start_on(storage.clone(), world.store().await).await;
        if !conditions {
            // The control: if the server accepts them, they damage the log.
            assert!(took > 0 && again.is_err_and(|e| e.is_final()));
            continue;
        }
        assert_eq!(took, 0, "the server took what came late");
        let log = again.unwrap();
        holds(&world, &log.append(b"last".into()).await.unwrap(), b"last");
        all.push(b"last".into());
        log.close().await;
        assert_eq!(audit_in(&world, &storage).await, all);
    }
}

/// The other order: an abandoned write was executed before the next batch; and a late checkpoint.
#[tokio::test(flavor = "multi_thread")]
async fn leftovers_of_a_failed_batch_are_replaced() {
    let memory = Arc::new(object_store::memory::InMemory::new());
    let bucket = Bucket::new(memory.clone(), "x".into(), "memory".into());
    let world = World::new();
    let storage: Arc<dyn Storage> = Arc::new(bucket.clone());
    let log = world.start_on(storage.clone(), world.store().await).await.unwrap();
    log.append(b"a".into()).await.unwrap();
    log.close().await;
    // Written by another process, unknown to the log.
    let other = Bucket::new(memory, "x".into(), "memory".into());
    let stale = ["tile/0/000.p/2", "tile/entries/000.p/2"].map(|p| (p.to_owned(), vec![7; 64]));
    other.put(stale.into()).await.unwrap();
    let log = world.start_on(storage.clone(), world.store().await).await.unwrap();
    log.append(b"b".into()).await.unwrap();
    // The writer remembers the checkpoint's version; if it has changed, it reads it again.
    let published = other.get("checkpoint", 1 << 20).await.unwrap().unwrap();
    other.put(vec![("checkpoint".into(), [&published[..], b"x"].concat())]).await.unwrap();
    log.append(b"c".into()).await.unwrap();
    log.close().await;
    assert_eq!(audit_in(&world, &storage).await, [b"a", b"b", b"c"]);
    // Writing the same bytes again is no conflict.
    let published = other.get("checkpoint", 1 << 20).await.unwrap().unwrap();
    bucket.put(vec![("checkpoint".into(), published)]).await.unwrap();
}

/// A witness that holds more than the log, or claims to.
struct Ahead(Option<SignedCheckpoint>);

#[async_trait]
impl Witness for Ahead {
    async fn add_checkpoint(&self, _: String) -> Result<Answer, String> {
        Ok(Answer::Holds(1000))
    }

    async fn latest(&self, _: &str) -> Option<SignedCheckpoint> {
        self.0.clone()
    }
}

#[tokio::test]
async fn a_witness_that_claims_more_stops_the_log_only_with_proof() {
    let world = World::new();
    let log = world.start().await.unwrap();
    log.append(b"a".into()).await.unwrap();
    log.close().await;
    let signer = LogSigner::parse(&world.private).unwrap();
    let more = |by: &LogSigner, size| {
        let (origin, root) = (signer.public().name().to_string(), Hash::leaf(b"more"));
        Checkpoint { origin, size, root, extensions: Vec::new() }.sign(by).unwrap()
    };
    let stranger = LogSigner::generate(signer.public().name().clone()).unwrap();
    let (mut size, start) = (1, async |ahead: &[Option<SignedCheckpoint>]| {
        let honest = world.witnesses.iter().map(|w| w.clone() as Arc<dyn Witness>);
        let mut ways: Vec<_> = honest.collect();
        for (n, shown) in ahead.iter().enumerate() {
            ways[n] = Arc::new(Ahead(shown.clone()));
        }
        let (signer, policy) = (LogSigner::parse(&world.private).unwrap(), world.policy.clone());
        let (storage, store) = (world.storage(), world.store().await);
        let log = Log::start(Params { signer, policy, ways, storage, store }).await.unwrap();
        let appended = timeout(Duration::from_secs(20), log.append(b"x".into())).await;
        log.close().await;
        appended.expect("it answers")
    });
    // No proof, or a checkpoint signed by another log.
    for shown in [None, Some(more(&stranger, 1000))] {
        holds(&world, &start(&[shown]).await.unwrap(), b"x");
        size += 1;
    }
    // A checkpoint signed by this log.
    let refused = start(&[Some(more(&signer, 1000))]).await.unwrap_err();
    assert!(matches!(refused, LogError::Behind { .. }), "{refused}");
    let refused = start(&[Some(more(&signer, size))]).await.unwrap_err();
    assert!(refused.is_final(), "another tree of its own size: {refused}");
    // No quorum is possible without the witnesses that claim to hold more.
    let refused = start(&[None, None]).await.unwrap_err();
    assert!(matches!(refused, LogError::Behind { .. }), "{refused}");
}
