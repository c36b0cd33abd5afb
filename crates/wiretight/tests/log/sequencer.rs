//! The sequencer: what it publishes is consistent, whatever happens to its machine.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::time::{sleep, timeout};
use wiretight::log::bucket::Bucket;
use wiretight::log::cosigning::{Answer, Witness};
use wiretight::log::sequencer::{CHECKPOINT, Log, LogError, Params};
use wiretight::log::storage::{Directory, Object, Storage};
use wiretight_store::{MemoryStore, SqliteStore, Store};
use wiretight_tlog::cosignature::Algorithm;
use wiretight_tlog::note::KeyName;
use wiretight_tlog::tile::{Kind, Tile};
use wiretight_tlog::tree::{self, Node};
use wiretight_tlog::{
    Cosigner, Frontier, Hash, LogSigner, Policy, Proof, Signature, SignedCheckpoint, TreeError,
};

fn name(text: &str) -> KeyName {
    KeyName::new(text).unwrap()
}

/// How a witness responds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Manner {
    Honest,
    /// With its cosignature and with invalid lines under the same name and key ID.
    Junk,
    /// With a cosignature that states this time.
    Time(u64),
}

/// A witness that follows the specification, in memory. It can be unreachable, and it can misbehave.
pub struct MemoryWitness {
    cosigner: Cosigner,
    log: wiretight_tlog::LogKey,
    seen: Mutex<(u64, Hash)>,
    pub away: AtomicBool,
    manner: Mutex<Manner>,
    /// Every checkpoint signed by the log that it was shown, by size: two roots for one size are a fork.
    shown: Mutex<BTreeMap<u64, Hash>>,
}

impl MemoryWitness {
    fn new(n: u8, algorithm: Algorithm, log: &LogSigner) -> Arc<MemoryWitness> {
        let witness = name(&format!("witness.example/{n}"));
        let cosigner = Cosigner::from_seed(witness, algorithm, &[n; 32]).unwrap();
        let (seen, log) = (Mutex::new((0, Hash::empty())), log.public().clone());
        let (away, shown, manner) = (false.into(), Mutex::default(), Mutex::new(Manner::Honest));
        Arc::new(MemoryWitness { cosigner, log, seen, away, manner, shown })
    }
}

#[async_trait]
impl Witness for MemoryWitness {
    async fn add_checkpoint(&self, body: String) -> Result<Answer, String> {
        if self.away.load(Ordering::SeqCst) {
            return Err("it is away".into());
        }
        let (head, note) = body.split_once("\n\n").unwrap();
        let mut lines = head.lines();
        let old: u64 = lines.next().unwrap().strip_prefix("old ").unwrap().parse().unwrap();
        let proof: Vec<_> = lines.map(|line| Hash::from_base64(line).unwrap()).collect();
        let signed = SignedCheckpoint::parse(note).unwrap();
        let checkpoint = signed.verified_by(&self.log).expect("the log's own").clone();
        let known = self.shown.lock().unwrap().insert(checkpoint.size, checkpoint.root);
        assert!(known.is_none_or(|root| root == checkpoint.root), "a fork was signed");
        let mut seen = self.seen.lock().unwrap();
        if old != seen.0 {
            return Ok(Answer::Holds(seen.0));
        }
        let new = (checkpoint.size, checkpoint.root);
        if tree::verify_consistency(*seen, new, &proof).is_err() {
            return Ok(Answer::Refused("the proof does not hold".into()));
        }
        *seen = new;
        let manner = *self.manner.lock().unwrap();
        let time = if let Manner::Time(time) = manner { time } else { super::rig::now() };
        let line = self.cosigner.cosign(&checkpoint, time).unwrap();
        let mut lines = format!("{line}\n");
        if manner == Manner::Junk {
            let junk = |n| Signature { bytes: vec![n; 500], ..line.clone() };
            (0..40).for_each(|n| lines.push_str(&format!("{}\n", junk(n))));
        }
        Ok(Answer::Cosigned(lines))
    }
}

/// A log and its three witnesses, with a quorum of two.
pub struct World {
    dir: tempfile::TempDir,
    pub private: String,
    pub witnesses: Vec<Arc<MemoryWitness>>,
    pub policy: Policy,
}

impl World {
    pub fn new() -> World {
        World::of(&[Algorithm::Ed25519; 3], 2)
    }

    /// A log with these witnesses and a quorum of this many.
    fn of(algorithms: &[Algorithm], needed: usize) -> World {
        let signer = LogSigner::generate(name("log.example/a")).unwrap();
        let witness = |(n, algorithm): (u8, &Algorithm)| MemoryWitness::new(n, *algorithm, &signer);
        let witnesses: Vec<_> = (1..).zip(algorithms).map(witness).collect();
        let (mut text, mut names) = (format!("log {}\n", signer.public()), String::new());
        for (n, witness) in witnesses.iter().enumerate() {
            text.push_str(&format!("witness w{n} {}\n", witness.cosigner.public()));
            names.push_str(&format!(" w{n}"));
        }
        text.push_str(&format!("group enough {needed}{names}\nquorum enough\n"));
        World {
            dir: tempfile::tempdir().unwrap(),
            private: signer.to_private().unwrap().to_string(),
            witnesses,
            policy: Policy::parse(&text).unwrap(),
        }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn storage(&self) -> Arc<dyn Storage> {
        Arc::new(Directory::open(self.path().join("log")).unwrap())
    }

    pub async fn store(&self) -> Arc<dyn Store> {
        // The previous store closes on its own thread, and holds the file until then.
        let patience = Instant::now() + Duration::from_secs(10);
        loop {
            match SqliteStore::open(self.path().join("store.db")).await {
                Ok(store) => return Arc::new(store),
                Err(error) => assert!(Instant::now() < patience, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn start_on(
        &self,
        storage: Arc<dyn Storage>,
        store: Arc<dyn Store>,
    ) -> Result<Log, LogError> {
        let ways = self.witnesses.iter().map(|w| w.clone() as Arc<dyn Witness>).collect();
        let signer = LogSigner::parse(&self.private).unwrap();
        let policy = self.policy.clone();
        Log::start(Params { signer, policy, ways, storage, store }).await
    }

    pub async fn start(&self) -> Result<Log, LogError> {
        self.start_on(self.storage(), self.store().await).await
    }

    /// Why the log refuses an entry.
    pub async fn refused(&self) -> String {
        let refused = match self.start().await {
            Err(e) => e,
            Ok(log) => {
                let appended = timeout(Duration::from_secs(5), log.append(b"x".into())).await;
                log.close().await;
                appended.expect("it answers").expect_err("it takes nothing")
            }
        };
        assert!(refused.is_final(), "{refused}");
        refused.to_string()
    }
}

/// Reads the whole log from its files and checks it as an outsider would.
pub async fn audit(world: &World) -> Vec<Vec<u8>> {
    audit_in(world, &world.storage()).await
}

pub async fn audit_in(world: &World, storage: &Arc<dyn Storage>) -> Vec<Vec<u8>> {
    let note = storage.get(CHECKPOINT, 1 << 20).await.unwrap().expect("it was published");
    let signed = SignedCheckpoint::parse(str::from_utf8(&note).unwrap()).unwrap();
    let tree = world.policy.witnessed(&signed).unwrap().checkpoint().clone();
    let (mut entries, mut frontier) = (Vec::new(), Frontier::default());
    let mut nodes: BTreeMap<(u8, u64), Hash> = BTreeMap::new();
    for tile in Tile::of_growth(0, tree.size) {
        let bytes = storage.get(&tile.path(), usize::MAX >> 1).await.unwrap();
        let bytes = bytes.unwrap_or_else(|| panic!("{} is missing", tile.path()));
        match tile.kind {
            Kind::Entries => {
                for entry in tile.entries(&bytes).unwrap() {
                    let made = |node: Node, hash| {
                        nodes.insert((node.level, node.index), hash);
                    };
                    frontier.append(Hash::leaf(entry), made);
                    entries.push(entry.to_vec());
                }
            }
            Kind::Hashes { level } => {
                for (i, hash) in tile.hashes(&bytes).unwrap().into_iter().enumerate() {
                    assert_eq!(nodes[&(level * 8, tile.index * 256 + i as u64)], hash);
                }
            }
        }
    }
    assert_eq!((frontier.size(), frontier.root()), (tree.size, tree.root));
    entries
}

pub fn holds(world: &World, proof: &Proof, entry: &[u8]) {
    let text = proof.to_string();
    let proof = Proof::parse(&text).unwrap();
    proof.verify(&world.policy, Hash::leaf(entry)).unwrap();
}

#[tokio::test]
async fn appended_entries_are_proved_and_published() {
    let world = World::new();
    let log = world.start().await.unwrap();
    let mut all: Vec<Vec<u8>> = Vec::new();
    // Sizes around the edges of tiles, of one level and of two.
    for count in [1usize, 1, 3, 250, 1, 1, 256, 300, 1000, 64_000, 700] {
        let entries: Vec<_> =
            (0..count).map(|n| format!("entry {}", all.len() + n).into_bytes()).collect();
        let proofs = log.append_all(entries.clone()).await.unwrap();
        assert_eq!(proofs.len(), count);
        for n in [0, count / 2, count - 1] {
            assert_eq!(proofs[n].index, (all.len() + n) as u64);
            holds(&world, &proofs[n], &entries[n]);
        }
        all.extend(entries);
    }
    assert_eq!(audit(&world).await, all);
    assert!(log.append(vec![0; 70_000]).await.is_err());
    // No partial tile is left where a full one exists.
    let left = std::fs::read_dir(world.path().join("log/tile/0")).unwrap();
    let partial = |e: io::Result<std::fs::DirEntry>| {
        e.unwrap().file_name().to_str().is_some_and(|n| n.ends_with(".p"))
    };
    assert_eq!(
        left.filter(|e| e.as_ref().is_ok()).filter_map(|e| partial(e).then_some(())).count(),
        1
    );
}

/// The same on an object store: in memory, and over HTTP if `scripts/test` has started an S3 server.
#[tokio::test]
async fn tiles_can_be_stored_in_a_bucket() {
    let mut buckets: Vec<Bucket> = Vec::new();
    let place = || object_store::path::Path::from("some/prefix");
    let memory = Arc::new(object_store::memory::InMemory::new());
    buckets.push(Bucket::new(memory, place(), "memory".into()));
    let server = super::rig::s3_server();
    match &server {
        Some(server) => buckets.push(server.bucket()),
        None => eprintln!("skipped: no S3 server (moto from PyPI)"),
    }
    for bucket in buckets {
        let world = World::new();
        let storage: Arc<dyn Storage> = Arc::new(bucket);
        let log = world.start_on(storage.clone(), world.store().await).await.unwrap();
        let mut all: Vec<Vec<u8>> = Vec::new();
        for count in [1usize, 3, 300, 1] {
            let entries: Vec<_> =
                (0..count).map(|n| format!("entry {}", all.len() + n).into_bytes()).collect();
            let proofs = log.append_all(entries.clone()).await.unwrap();
            holds(&world, &proofs[count - 1], &entries[count - 1]);
            all.extend(entries);
        }
        log.close().await;
        assert_eq!(audit_in(&world, &storage).await, all);
        let partial = "tile/entries/000.p/4";
        assert_eq!(storage.get(partial, 1 << 20).await.unwrap(), None, "there is a full one");
        // It continues from the existing files, and refuses altered ones.
        let log = world.start_on(storage.clone(), world.store().await).await.unwrap();
        log.append(b"more".into()).await.unwrap();
        log.close().await;
        storage.put(vec![("tile/0/001.p/50".into(), vec![0; 50 * 32])]).await.unwrap();
        let refused = world.start_on(storage.clone(), world.store().await).await;
        assert!(refused.err().is_some_and(|e| e.is_final()));
    }
}

#[tokio::test]
async fn concurrent_entries_share_a_checkpoint() {
    let world = World::new();
    let log = world.start().await.unwrap();
    let appends = (0..2000u32).map(|n| {
        let log = log.clone();
        tokio::spawn(async move { (n, log.append(n.to_be_bytes().into()).await.unwrap()) })
    });
    let mut checkpoints = std::collections::BTreeSet::new();
    for append in appends.collect::<Vec<_>>() {
        let (n, proof) = append.await.unwrap();
        holds(&world, &proof, &n.to_be_bytes());
        checkpoints.insert(proof.checkpoint.unverified().size);
    }
    assert!(checkpoints.len() < 200, "{} checkpoints", checkpoints.len());
    assert_eq!(audit(&world).await.len(), 2000);
}

#[tokio::test]
async fn without_a_quorum_the_log_waits_and_recovers() {
    let world = World::new();
    let log = world.start().await.unwrap();
    let away = |n: usize, is| world.witnesses[n].away.store(is, Ordering::SeqCst);
    log.append(b"three".into()).await.unwrap();
    away(0, true);
    holds(&world, &log.append(b"two".into()).await.unwrap(), b"two");
    away(1, true);
    let waiting = tokio::spawn({
        let log = log.clone();
        async move { log.append(b"one".into()).await }
    });
    sleep(Duration::from_millis(500)).await;
    assert!(!waiting.is_finished());
    assert_eq!(log.checkpoint().unwrap().unverified().size, 2, "nothing unwitnessed is published");
    // A request that is abandoned while it waits is not logged.
    let gave_up = timeout(Duration::from_millis(100), log.append(b"gave up".into())).await;
    assert!(gave_up.is_err());
    away(1, false);
    let proof = timeout(Duration::from_secs(20), waiting).await.unwrap().unwrap().unwrap();
    holds(&world, &proof, b"one");
    away(0, false);
    holds(&world, &log.append(b"again".into()).await.unwrap(), b"again");
    assert_eq!(audit(&world).await, [&b"three"[..], b"two", b"one", b"again"]);
    // The witness that was away has caught up, with a proof from its old size.
    for _ in 0..100 {
        if world.witnesses[0].seen.lock().unwrap().0 == 4 {
            return;
        }
        sleep(Duration::from_millis(100)).await;
    }
    panic!("the witness was left behind: {:?}", log.status());
}

#[tokio::test]
async fn one_bad_witness_of_three_stops_nothing_and_is_reported() {
    for manner in [Manner::Junk, Manner::Time(1), Manner::Time(super::rig::now() + 3600)] {
        let world = World::new();
        *world.witnesses[0].manner.lock().unwrap() = manner;
        let log = world.start().await.unwrap();
        // Regardless of which witnesses are reachable, the proof is accepted and small.
        for away in [None, Some(1), Some(2)] {
            world.witnesses.iter().for_each(|w| w.away.store(false, Ordering::SeqCst));
            if let (Some(n), Manner::Junk) = (away, manner) {
                world.witnesses[n].away.store(true, Ordering::SeqCst);
            }
            let appended = timeout(Duration::from_secs(20), log.append(b"entry".into())).await;
            let proof = appended.expect("no entry waits for it").unwrap();
            let witnessed = proof.verify(&world.policy, Hash::leaf(b"entry")).unwrap();
            witnessed.fresh(super::rig::now(), 60).unwrap();
            assert_eq!(proof.checkpoint.note().signatures().len(), 3, "the log's and two");
            assert!(proof.to_string().len() <= world.policy.largest_proof());
        }
        let named = async {
            while log.status().witnesses[0].problem.is_none() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(Duration::from_secs(10), named).await.expect("it is reported");
        let status = log.status();
        let problem = status.witnesses[0].problem.as_ref().unwrap();
        let word = if manner == Manner::Junk { "40 lines" } else { "clock" };
        assert!(problem.contains(word), "{manner:?}: {problem}");
        // It counts for the quorum only with valid cosignatures.
        world.witnesses[2].away.store(false, Ordering::SeqCst);
        world.witnesses[1].away.store(true, Ordering::SeqCst);
        let alone = timeout(Duration::from_secs(2), log.append(b"alone".into())).await;
        assert_eq!(alone.is_ok(), manner == Manner::Junk, "{manner:?}");
        log.close().await;
    }
}

#[tokio::test]
async fn five_of_five_post_quantum_witnesses_fit_into_a_certificate() {
    let world = World::of(&[Algorithm::MlDsa44; 5], 5);
    let most = wiretight_keys::logged::MAX_PROOF;
    assert!(world.policy.largest_proof() <= most);
    let log = world.start().await.unwrap();
    let proof = log.append(b"entry".into()).await.unwrap();
    assert!(proof.to_string().len() > 16 * 1024);
    holds(&world, &proof, b"entry");
    // One more than fits is detected in advance.
    let seven = World::of(&[Algorithm::MlDsa44; 7], 7);
    assert!(seven.policy.largest_proof() > most);
    // With a quorum of two of seven, only two cosignatures are included.
    let world = World::of(&[Algorithm::MlDsa44; 7], 2);
    let log = world.start().await.unwrap();
    log.append(b"first".into()).await.unwrap();
    let proof = log.append(b"entry".into()).await.unwrap();
    assert_eq!(proof.checkpoint.note().signatures().len(), 3);
    holds(&world, &proof, b"entry");
}

#[tokio::test]
async fn a_log_continues_after_a_restart() {
    let world = World::new();
    let mut all = Vec::new();
    for round in 0..20u32 {
        let log = world.start().await.unwrap();
        for n in 0..30u32 {
            let entry = format!("{round} {n}").into_bytes();
            holds(&world, &log.append(entry.clone()).await.unwrap(), &entry);
            all.push(entry);
        }
        log.close().await;
    }
    assert_eq!(audit(&world).await, all);
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            false => drop(std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

/// Restores the files of a log.
fn restore(world: &World, snapshot: &Path, what: &[&str]) {
    for part in what {
        for name in std::fs::read_dir(world.path()).unwrap() {
            let name = name.unwrap();
            if name.file_name().to_str().unwrap().starts_with(part) {
                match name.file_type().unwrap().is_dir() {
                    true => std::fs::remove_dir_all(name.path()).unwrap(),
                    false => std::fs::remove_file(name.path()).unwrap(),
                }
            }
        }
        for name in std::fs::read_dir(snapshot).unwrap() {
            let name = name.unwrap();
            if name.file_name().to_str().unwrap().starts_with(part) {
                let to = world.path().join(name.file_name());
                match name.file_type().unwrap().is_dir() {
                    true => copy(&name.path(), &to),
                    false => drop(std::fs::copy(name.path(), to).unwrap()),
                }
            }
        }
    }
}

#[tokio::test]
async fn a_log_restored_from_an_old_copy_does_not_start() {
    let world = World::new();
    let snapshot = tempfile::tempdir().unwrap();
    {
        let log = world.start().await.unwrap();
        log.append(b"before".into()).await.unwrap();
        log.close().await;
    }
    copy(world.path(), snapshot.path());
    {
        let log = world.start().await.unwrap();
        log.append(b"after".into()).await.unwrap();
        log.close().await;
    }
    let newest = tempfile::tempdir().unwrap();
    copy(world.path(), newest.path());

    // Only the store.
    restore(&world, snapshot.path(), &["store"]);
    let why = world.refused().await;
    assert!(why.contains("2 entries were published") && why.contains("an old backup"), "{why}");
    // Only the files.
    restore(&world, newest.path(), &["store", "log"]);
    restore(&world, snapshot.path(), &["log"]);
    let why = world.refused().await;
    assert!(why.contains("is missing") || why.contains("do not hash"), "{why}");
    // Both: only the witnesses can know.
    restore(&world, snapshot.path(), &["store", "log"]);
    let why = world.refused().await;
    assert!(why.contains("has cosigned 2 entries, but this log has 1"), "{why}");
    // One witness that has seen it is enough, and the log waits for unreachable ones.
    for n in [0, 1] {
        *world.witnesses[n].seen.lock().unwrap() = (0, Hash::empty());
        world.witnesses[n].shown.lock().unwrap().clear();
    }
    world.witnesses[2].away.store(true, Ordering::SeqCst);
    let log = world.start().await.unwrap();
    // Two of three are a quorum, and every other quorum includes one of them.
    timeout(Duration::from_secs(10), log.append(b"x".into())).await.unwrap().unwrap();
    log.close().await;
    // With the newest files it continues.
    restore(&world, newest.path(), &["store", "log"]);
    for witness in &world.witnesses {
        *witness.seen.lock().unwrap() = (0, Hash::empty());
        witness.shown.lock().unwrap().clear();
        witness.away.store(false, Ordering::SeqCst);
    }
    let log = world.start().await.unwrap();
    log.append(b"more".into()).await.unwrap();
    assert_eq!(audit(&world).await, [&b"before"[..], b"after", b"more"]);
}

#[tokio::test]
async fn a_damaged_log_does_not_start() {
    let world = World::new();
    {
        let log = world.start().await.unwrap();
        log.append_all((0..300u32).map(|n| n.to_be_bytes().into()).collect()).await.unwrap();
        log.close().await;
    }
    let whole = tempfile::tempdir().unwrap();
    copy(world.path(), whole.path());
    let log = world.path().join("log");
    for (file, what) in [
        ("tile/0/001.p/44", "hash"),
        ("tile/1/000.p/1", "hash"),
        ("tile/entries/001.p/44", "entries"),
        ("checkpoint", "checkpoint"),
    ] {
        let path = log.join(file);
        let good = std::fs::read(&path).unwrap();
        // A bit flip at the beginning, in the middle and at the end. (In the checkpoint, only in the part signed by the
        // log: the witnesses sign it again.)
        let end = if file == "checkpoint" { 40 } else { good.len() };
        for at in [0, end / 2, end - 2] {
            let mut bad = good.clone();
            bad[at] ^= 4;
            std::fs::write(&path, bad).unwrap();
            let why = world.refused().await;
            assert!(why.contains(file), "{what}: {why}");
        }
        // Truncated.
        std::fs::write(&path, &good[..good.len() / 2]).unwrap();
        assert!(world.refused().await.contains(file));
        std::fs::write(&path, &good).unwrap();
        if file != "checkpoint" {
            std::fs::remove_file(&path).unwrap();
            assert!(world.refused().await.contains(file));
            std::fs::write(&path, &good).unwrap();
        }
    }
    // The control: undamaged, it starts.
    let log = world.start().await.unwrap();
    log.append(b"x".into()).await.unwrap();
    assert_eq!(audit(&world).await.len(), 301);
}

#[tokio::test]
async fn another_key_or_a_second_sequencer_is_detected() {
    let mut world = World::new();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let one = world.start_on(world.storage(), store.clone()).await.unwrap();
    one.append(b"a".into()).await.unwrap();
    let two = world.start_on(world.storage(), store.clone()).await.unwrap();
    two.append(b"b".into()).await.unwrap();
    let refused = one.append(b"c".into()).await.expect_err("its checkpoint is not the last");
    assert!(matches!(refused, LogError::Superseded), "{refused}");
    two.append(b"d".into()).await.unwrap();
    drop((one, two));
    let other = LogSigner::generate(name("log.example/a")).unwrap();
    world.private = other.to_private().unwrap().to_string();
    let refused = world.start_on(world.storage(), store).await.err().expect("another's key");
    assert!(refused.to_string().contains("was not signed by"), "{refused}");
}

/// Storage that fails or stops at a chosen step.
struct Failing {
    inner: Directory,
    left: AtomicUsize,
    torn: bool,
}

#[async_trait]
impl Storage for Failing {
    async fn put(&self, objects: Vec<Object>) -> io::Result<()> {
        for (path, bytes) in objects {
            let left =
                self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
            if left.is_err() {
                // The checkpoint is renamed into place, so it is never truncated.
                if self.torn && path != CHECKPOINT {
                    let half = bytes.len() / 2;
                    self.inner.put(vec![(path, bytes[..half].to_vec())]).await?;
                }
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.inner.put(vec![(path, bytes)]).await?;
        }
        Ok(())
    }

    async fn get(&self, path: &str, max: usize) -> io::Result<Option<Vec<u8>>> {
        self.inner.get(path, max).await
    }

    async fn delete_all(&self, folder: &str) -> io::Result<()> {
        self.inner.delete_all(folder).await
    }

    fn place(&self) -> String {
        self.inner.place()
    }
}

/// At every step of a batch: the disk is full or a write is truncated, then the process dies and starts again. Nothing
/// acknowledged is lost, no witness sees two histories (it would panic), and the log continues.
#[tokio::test]
async fn a_failure_at_any_step_loses_nothing_and_forks_nothing() {
    for torn in [false, true] {
        let world = World::new();
        let mut acknowledged: Vec<Vec<u8>> = Vec::new();
        let fill: Vec<Vec<u8>> = (0..250u32).map(|n| n.to_be_bytes().into()).collect();
        let log = world.start().await.unwrap();
        log.append_all(fill.clone()).await.unwrap();
        acknowledged.extend(fill);
        log.close().await;
        for steps in 0..40 {
            let inner = Directory::open(world.path().join("log")).unwrap();
            let failing = Arc::new(Failing { inner, left: steps.into(), torn });
            let log = match world.start_on(failing.clone(), world.store().await).await {
                Ok(log) => log,
                Err(e) => panic!("step {steps}, torn {torn}: it does not start: {e}"),
            };
            for n in 0..4 {
                let entry = format!("{torn} {steps} {n}").into_bytes();
                let appended = timeout(Duration::from_secs(5), log.append(entry.clone())).await;
                match appended.expect("it answers") {
                    Ok(proof) => {
                        holds(&world, &proof, &entry);
                        acknowledged.push(entry);
                    }
                    Err(e) => {
                        assert!(!e.is_final(), "step {steps}, torn {torn}: {e}");
                        break;
                    }
                }
            }
            log.close().await;
        }
        // There is space again.
        let log = world.start().await.unwrap();
        log.append(b"last".into()).await.unwrap();
        let entries = audit(&world).await;
        let mut rest = entries.iter();
        for entry in &acknowledged {
            assert!(rest.any(|e| e == entry), "an acknowledged entry is lost, or out of order");
        }
    }
}

#[tokio::test]
async fn a_full_disk_needs_no_restart() {
    let world = World::new();
    let inner = Directory::open(world.path().join("log")).unwrap();
    let failing = Arc::new(Failing { inner, left: 100.into(), torn: false });
    let log = world.start_on(failing.clone(), world.store().await).await.unwrap();
    log.append(b"a".into()).await.unwrap();
    failing.left.store(1, Ordering::SeqCst);
    let refused = log.append(b"b".into()).await.expect_err("the disk is full");
    assert!(refused.to_string().contains(&failing.place()), "{refused}");
    failing.left.store(1000, Ordering::SeqCst);
    for _ in 0..100 {
        if log.append(b"c".into()).await.is_ok() {
            assert_eq!(audit(&world).await, [b"a", b"c"]);
            return;
        }
        sleep(Duration::from_millis(100)).await;
    }
    panic!("it does not recover: {:?}", log.status());
}

#[tokio::test]
async fn proofs_can_be_computed_from_the_tiles_alone() {
    let world = World::new();
    let log = world.start().await.unwrap();
    let entries: Vec<Vec<u8>> = (0..1000u32).map(|n| n.to_be_bytes().into()).collect();
    log.append_all(entries.clone()).await.unwrap();
    let signed = log.checkpoint().unwrap();
    let tree = world.policy.witnessed(&signed).unwrap().checkpoint().clone();
    let mut tiles: BTreeMap<Tile, Vec<Hash>> = BTreeMap::new();
    for tile in Tile::of_growth(0, tree.size).filter(|t| t.kind != Kind::Entries) {
        let bytes = log.tile(tile).await.unwrap().expect("it is published");
        tiles.insert(tile, tile.hashes(&bytes).unwrap());
    }
    let read = |node| {
        let (tile, range) = Tile::of_node(node, tree.size).ok_or(TreeError::OutOfRange)?;
        wiretight_tlog::tile::subtree(&tiles[&tile][range]).ok_or(TreeError::OutOfRange)
    };
    for index in [0, 1, 255, 256, 767, 999] {
        let hashes = tree::inclusion_proof(index, tree.size, read).unwrap();
        let leaf = Hash::leaf(&entries[index as usize]);
        tree::verify_inclusion(leaf, index, tree.size, &hashes, tree.root).unwrap();
    }
    // Files that no published checkpoint covers are not served.
    let beyond = Tile { kind: Kind::Entries, index: 3, width: 233 };
    assert!(log.tile(beyond).await.unwrap().is_none());
}
