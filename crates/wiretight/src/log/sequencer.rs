//! The sequencer: the only part that appends to the log and signs its checkpoints.
//!
//! A batch consists of all entries requested while the previous batch was in progress. The steps of a batch are:
//!
//! 1. its bundles and tiles are written durably;
//! 2. the checkpoint is signed and written durably to the store by compare-and-swap: from here on the batch is part of
//!    the log, and no other history will be signed;
//! 3. the witnesses cosign it, as many as the policy requires, however long they take;
//! 4. it is published with their cosignatures;
//! 5. the requesters get their proofs.
//!
//! A crash between two steps leaves tiles that no checkpoint covers (they are overwritten), or a checkpoint that is
//! cosigned and published at the next start. No proof is handed out before step 5. After any failure the state in memory
//! is discarded and the log is opened again, as at a start.
//!
//! It refuses to start if a second history could result: if the store is older than what was published, if tiles do not
//! hash to the checkpoint, if another key signed it, or if a witness holds a larger tree.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, timeout};
use wiretight_proxy::clock::now;
use wiretight_store::{Key, Revision, Store};
use wiretight_tlog::note::{KeyName, LogKey};
use wiretight_tlog::policy::Policy;
use wiretight_tlog::tile::{self, Kind, MAX_BUNDLE, MAX_ENTRY, Tile};
use wiretight_tlog::tree::{self, Node};
use wiretight_tlog::{Checkpoint, Hash, LogSigner, Proof, Refused, SignedCheckpoint, TreeError};

use super::cosigning::{Ahead, Cosigning, Witness, WitnessStatus};
use super::edge::Edge;
use super::guard::Guard;
use super::storage::Storage;

/// The checkpoint's path, below the log's prefix.
pub const CHECKPOINT: &str = "checkpoint";
/// The largest accepted checkpoint, in bytes.
pub const MAX_CHECKPOINT: usize = wiretight_tlog::note::MAX_NOTE;

/// The key of the last checkpoint in the store.
const RECORD: &str = "log/checkpoint";
/// The most entries in a batch.
const MAX_BATCH: usize = 16_384;
/// The largest total size of waiting entries, in KiB.
const MAX_WAITING_KIB: usize = 64 << 10;
/// The most waiting requests.
const MAX_REQUESTS: usize = 65_536;
/// How often the last checkpoint is cosigned again, so that its age shows whether the log is alive.
const HEARTBEAT: Duration = Duration::from_secs(300);
/// How often it is checked that the cosignatures are not from the future, which happens when a clock is set.
const CLOCKS: Duration = Duration::from_secs(10);
/// The pause after a failure before the log is opened again.
const RETRY: Duration = Duration::from_secs(2);
/// A write that takes longer causes a warning.
const SLOW: Duration = Duration::from_secs(2);
/// A longer wait for witnesses causes an alarm.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the alarm is repeated while the wait continues.
const REPEAT: Duration = Duration::from_secs(60);

/// Why the log cannot be opened or does not accept an entry.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LogError {
    #[error("the authority's store failed: {0}")]
    Store(Arc<wiretight_store::Error>),
    /// Reading or writing the log's files failed.
    #[error("cannot read or write the log's files in {place}: {source}")]
    Storage {
        /// The directory or bucket.
        place: String,
        source: Arc<io::Error>,
    },
    /// Opening the log could lead to a second history.
    #[error("the log is not opened, because it could fork: {0}")]
    Refused(String),
    /// Another process appends to the log.
    #[error(
        "another process has signed a checkpoint of this log: only one authority may use a store at a time"
    )]
    Superseded,
    /// A witness has seen more of this log than there is here.
    #[error(
        "the log is not opened, because it would fork: {} has cosigned {holds} entries, but this log has {size}. The authority's files or store were probably restored from an old backup: restore the newest ones. Entries that no copy of the log has cannot be replaced; in that case set up a new authority", .ahead.witness, holds = .ahead.holds
    )]
    Behind {
        /// The witness that has seen more.
        ahead: Ahead,
        /// The size of the log here.
        size: u64,
    },
    /// Too many entries are waiting.
    #[error("too many log entries are waiting. {0}")]
    Busy(String),
    /// No published checkpoint covers what is to be proved.
    #[error(
        "the newest entries of the log are not published yet, because the witnesses have not cosigned them. Try again in a minute"
    )]
    NotPublished,
    /// The entry is too large.
    #[error("a log entry may have at most {MAX_ENTRY} bytes")]
    TooLarge,
    /// The sequencer has ended.
    #[error("the log is closed")]
    Closed,
}

impl LogError {
    /// Whether retrying is useless until an operator fixes the problem.
    pub fn is_final(&self) -> bool {
        matches!(self, LogError::Refused(_) | LogError::Superseded | LogError::Behind { .. })
    }

    /// The message for a node that requested a certificate. It tells nothing about the log's storage or its witnesses.
    pub fn for_members(&self) -> String {
        match self {
            LogError::Busy(_) | LogError::TooLarge | LogError::Closed => self.to_string(),
            _ => "the authority's log accepts no entries at the moment: see the authority's log messages"
                .into(),
        }
    }
}

impl From<wiretight_store::Error> for LogError {
    fn from(e: wiretight_store::Error) -> LogError {
        match e {
            wiretight_store::Error::Conflict { .. } => LogError::Superseded,
            wiretight_store::Error::Closed => LogError::Closed,
            e => LogError::Store(Arc::new(e)),
        }
    }
}

/// The status of the log, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogStatus {
    /// The log's public key; its name is the origin.
    pub vkey: String,
    /// The number of entries.
    pub size: u64,
    /// Whether only this authority vouches for the log.
    pub self_attested: bool,
    /// The quorum that the policy requires.
    pub quorum: String,
    /// The size of the newest checkpoint cosigned by the quorum, and when that was.
    pub witnessed: Option<(u64, u64)>,
    /// Since when entries have been waiting for the quorum.
    pub waiting_since: Option<u64>,
    /// The status of each witness.
    pub witnesses: Vec<WitnessStatus>,
    /// Why the log accepts no entries, if it does not.
    pub problem: Option<String>,
    /// The number of entries that the last background check covered, and when it finished; `None` if none has finished
    /// since the start.
    pub verified: Option<(u64, u64)>,
    /// Files of the log that are missing or not what was signed. They are not served.
    #[serde(default)]
    pub damaged: Vec<String>,
}

/// The parameters of [`Log::start`].
pub struct Params {
    /// The log's key.
    pub signer: LogSigner,
    /// The witnesses that must cosign. The policy need not name the log itself.
    pub policy: Policy,
    /// A connection to each witness of the policy, in its order.
    pub ways: Vec<Arc<dyn Witness>>,
    /// The storage of the log's files.
    pub storage: Arc<dyn Storage>,
    /// The store of the last checkpoint.
    pub store: Arc<dyn Store>,
}

/// A running log. Clones refer to the same log, which ends with the last of them.
#[derive(Clone)]
pub struct Log {
    requests: mpsc::Sender<Request>,
    room: Arc<Semaphore>,
    shared: Arc<Shared>,
    pub(super) guard: Arc<Guard>,
    task: Arc<tokio::sync::Mutex<JoinSet<()>>>,
}

struct Shared {
    key: LogKey,
    policy: Policy,
    cosigning: Cosigning,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    size: u64,
    published: Option<SignedCheckpoint>,
    witnessed: Option<(u64, u64)>,
    waiting_since: Option<u64>,
    problem: Option<LogError>,
}

struct Request {
    entries: Vec<Vec<u8>>,
    answer: oneshot::Sender<Result<Vec<Proof>, LogError>>,
    _room: OwnedSemaphorePermit,
}

impl Log {
    /// Opens the log, or creates it if there is none, and starts the sequencer. Returns when the log's files are checked.
    /// Problems with witnesses show up later in [`Log::status`].
    pub async fn start(params: Params) -> Result<Log, LogError> {
        let Params { signer, policy, ways, storage, store } = params;
        let open = Open::load(&signer, &*storage, &*store).await?;
        let guard = Arc::new(Guard::new(storage.clone()));
        guard.grow(&open.edge);
        let cosigning = Cosigning::start(policy.clone(), ways, guard.clone());
        let (key, state) = (signer.public().clone(), Mutex::default());
        let shared = Arc::new(Shared { key, policy, cosigning, state });
        shared.state.lock().size = open.size();
        let (requests, queue) = mpsc::channel(MAX_REQUESTS);
        let sequencer = Sequencer {
            signer,
            storage,
            guard: guard.clone(),
            store,
            shared: shared.clone(),
            queue,
            vouched: false,
        };
        let mut task = JoinSet::new();
        task.spawn(sequencer.run(open));
        task.spawn(guard.clone().watch());
        let task = Arc::new(tokio::sync::Mutex::new(task));
        let room = Arc::new(Semaphore::new(MAX_WAITING_KIB));
        Ok(Log { requests, room, shared, guard, task })
    }

    /// Stops the sequencer at any point, like a crash, from which it recovers. Returns when it has stopped.
    pub async fn close(&self) {
        self.task.lock().await.shutdown().await;
    }

    /// The log's public key; its name is the origin.
    pub fn key(&self) -> &LogKey {
        &self.shared.key
    }

    /// The policy by which proofs of this log are verified: the log and its witnesses.
    pub fn policy(&self) -> Policy {
        self.shared.policy.clone()
    }

    /// The witnesses that have not cosigned the whole log, and why, for people.
    pub fn waiting_for(&self) -> String {
        self.shared.cosigning.waiting_for(self.shared.state.lock().size)
    }

    /// Whether witnesses must cosign.
    pub fn has_witnesses(&self) -> bool {
        self.shared.policy.wants_witnesses()
    }

    /// Appends an entry and waits for its proof, that is, until the witnesses have cosigned.
    pub async fn append(&self, entry: Vec<u8>) -> Result<Proof, LogError> {
        let mut proofs = self.append_all(vec![entry]).await?;
        proofs.pop().ok_or(LogError::Closed)
    }

    /// Appends entries in order in one batch, and waits for their proofs.
    pub async fn append_all(&self, entries: Vec<Vec<u8>>) -> Result<Vec<Proof>, LogError> {
        if entries.iter().any(|e| e.len() > MAX_ENTRY) {
            return Err(LogError::TooLarge);
        }
        if let Some(problem) = self.shared.state.lock().problem.clone() {
            return Err(problem);
        }
        let kib = entries.iter().map(|e| e.len() / 1024 + 1).sum::<usize>();
        let kib = u32::try_from(kib).unwrap_or(u32::MAX);
        let room = self.room.clone().try_acquire_many_owned(kib).map_err(|_| self.busy())?;
        let (answer, answered) = oneshot::channel();
        let request = Request { entries, answer, _room: room };
        self.requests.try_send(request).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => self.busy(),
            mpsc::error::TrySendError::Closed(_) => LogError::Closed,
        })?;
        answered.await.map_err(|_| LogError::Closed)?
    }

    /// The newest published checkpoint with its cosignatures.
    pub fn checkpoint(&self) -> Option<SignedCheckpoint> {
        self.shared.state.lock().published.clone()
    }

    /// A tile, if a published checkpoint covers it. It is an error if the tile does not match the checkpoint.
    pub async fn tile(&self, tile: Tile) -> Result<Option<Vec<u8>>, LogError> {
        let size = self.checkpoint().map_or(0, |c| c.unverified().size);
        let covered = Tile::of_tree(tile.kind, tile.index, size);
        if covered.is_none_or(|covered| tile.width > covered.width) {
            return Ok(None);
        }
        let read = self.guard.get(&tile.path(), max_len(tile)).await;
        read.map_err(|e| failed(&*self.guard, e))
    }

    /// The status of the log.
    pub fn status(&self) -> LogStatus {
        let witnesses = self.shared.cosigning.status();
        let state = self.shared.state.lock();
        LogStatus {
            vkey: self.shared.key.to_string(),
            size: state.size,
            self_attested: !self.shared.policy.wants_witnesses(),
            quorum: self.shared.policy.quorum_text(),
            witnessed: state.witnessed,
            waiting_since: state.waiting_since,
            witnesses,
            problem: state.problem.as_ref().map(LogError::to_string),
            verified: self.guard.verified(),
            damaged: self.guard.damaged(),
        }
    }

    fn busy(&self) -> LogError {
        LogError::Busy(match self.shared.state.lock().waiting_since {
            Some(since) => {
                format!("The log has waited {} s for its witnesses", now().saturating_sub(since))
            }
            None => "Try again later".into(),
        })
    }
}

/// The record of the log in the store.
#[derive(Serialize, Deserialize)]
struct Record {
    /// The signed checkpoint, without cosignatures.
    checkpoint: String,
}

/// The end of the log in memory: what is needed to append.
struct Open {
    signed: SignedCheckpoint,
    revision: Revision,
    edge: Edge,
}

impl Open {
    fn size(&self) -> u64 {
        self.edge.size()
    }

    /// Reads the end of the log and checks it against what was signed; creates the log if there is none.
    async fn load(
        signer: &LogSigner,
        storage: &dyn Storage,
        store: &dyn Store,
    ) -> Result<Open, LogError> {
        let refused = |why: String| LogError::Refused(why);
        let place = storage.place();
        let published = storage.get(CHECKPOINT, MAX_CHECKPOINT).await;
        let published = published.map_err(|e| failed(storage, e))?;
        let published = published.map(|bytes| read_checkpoint(signer.public(), &bytes)).transpose();
        let published = published.map_err(|why| {
            refused(format!("{place}/{CHECKPOINT} {why}. Restore it. If nothing else is damaged, it is safe to remove it: it is created again from the store"))
        })?;
        let key = Key::new(RECORD)?;
        let Some(entry) = store.get(&key).await? else {
            if published.is_some() {
                return Err(refused(format!(
                    "{place} contains a published log, but the store has no record of it: the store was lost or restored from an old backup. Restore the newest one"
                )));
            }
            return Open::create(signer, store, &key).await;
        };
        let signed = recorded(&entry.value, signer.public()).map_err(|why| {
            refused(format!(
                "the last checkpoint in the store {why}: log.key may belong to another log. Restore key and store together"
            ))
        })?;
        let last = signed.unverified();
        if let Some(published) = published.as_ref().map(SignedCheckpoint::unverified)
            && (published.size > last.size
                || published.size == last.size && published.root != last.root)
        {
            return Err(refused(format!(
                "{} entries were published in {place}, but the store has a record of {}: the store was restored from an old backup. Restore the newest one",
                published.size, last.size
            )));
        }
        let edge = Edge::read(signed.unverified(), storage).await?;
        Ok(Open { signed, revision: entry.revision, edge })
    }

    async fn create(signer: &LogSigner, store: &dyn Store, key: &Key) -> Result<Open, LogError> {
        let edge = Edge::default();
        let signed = sign(signer, &edge)?;
        let revision = store.create(key, record(&signed)).await?;
        tracing::info!(origin = %signer.public().name(), "created a new log");
        Ok(Open { signed, revision, edge })
    }
}

struct Sequencer {
    signer: LogSigner,
    storage: Arc<dyn Storage>,
    guard: Arc<Guard>,
    store: Arc<dyn Store>,
    shared: Arc<Shared>,
    queue: mpsc::Receiver<Request>,
    /// Whether the witnesses have confirmed since the start that this log is complete.
    vouched: bool,
}

impl Sequencer {
    async fn run(mut self, open: Open) {
        let mut next = Some(open);
        loop {
            let done = match next.take() {
                Some(open) => self.sequence(open).await,
                None => match Open::load(&self.signer, &*self.storage, &*self.store).await {
                    Ok(open) => {
                        self.guard.grow(&open.edge);
                        self.shared.state.lock().problem = None;
                        next = Some(open);
                        continue;
                    }
                    Err(e) => Err(e),
                },
            };
            let Err(problem) = done else { return };
            if matches!(problem, LogError::Closed) {
                return;
            }
            tracing::error!("ALARM: the log accepts no entries: {problem}");
            self.shared.state.lock().problem = Some(problem.clone());
            while let Ok(request) = self.queue.try_recv() {
                let _ = request.answer.send(Err(problem.clone()));
            }
            if problem.is_final() {
                return self.refuse(&problem).await;
            }
            sleep(RETRY).await;
        }
    }

    /// Answers every request with the problem.
    async fn refuse(&mut self, problem: &LogError) {
        while let Some(request) = self.queue.recv().await {
            let _ = request.answer.send(Err(problem.clone()));
        }
    }

    /// Processes batches; returns when all clones of [`Log`] are gone.
    async fn sequence(&mut self, mut open: Open) -> Result<(), LogError> {
        self.witness(&open, (open.size(), Vec::new())).await?;
        let mut heartbeat = interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        heartbeat.reset();
        let mut clocks = interval(CLOCKS);
        clocks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let first = tokio::select! {
                biased;
                first = self.queue.recv() => first,
                _ = heartbeat.tick() => {
                    self.witness(&open, (open.size(), Vec::new())).await?;
                    continue;
                }
                _ = clocks.tick() => {
                    if self.is_from_the_future() {
                        self.witness(&open, (open.size(), Vec::new())).await?;
                    }
                    continue;
                }
            };
            let Some(first) = first else { return Ok(()) };
            let (mut batch, mut entries) = (Vec::new(), 0);
            let mut next = Some(first);
            while let Some(request) = next {
                // Skip requests whose sender has given up, for example because the witnesses were unreachable.
                if !request.answer.is_closed() {
                    entries += request.entries.len();
                    batch.push(request);
                }
                next = (entries < MAX_BATCH).then(|| self.queue.try_recv().ok()).flatten();
            }
            if batch.is_empty() {
                continue;
            }
            let counts: Vec<_> = batch.iter().map(|r| r.entries.len()).collect();
            let entries: Vec<_> =
                batch.iter_mut().flat_map(|r| std::mem::take(&mut r.entries)).collect();
            let proofs = self.batch(&mut open, &entries).await;
            let (mut proofs, failed) = match proofs {
                Ok(proofs) => (proofs.into_iter(), None),
                Err(e) => (Vec::new().into_iter(), Some(e)),
            };
            for (request, count) in batch.into_iter().zip(counts) {
                let _ = request.answer.send(match &failed {
                    None => Ok(proofs.by_ref().take(count).collect()),
                    Some(e) => Err(e.clone()),
                });
            }
            if let Some(e) = failed {
                return Err(e);
            }
            heartbeat.reset();
        }
    }

    /// Appends entries and returns their proofs.
    async fn batch(
        &mut self,
        open: &mut Open,
        entries: &[Vec<u8>],
    ) -> Result<Vec<Proof>, LogError> {
        let (old, began) = (open.size(), Instant::now());
        let (objects, nodes) = open.edge.append(entries);
        self.storage.put(objects).await.map_err(|e| failed(&*self.storage, e))?;

        open.signed = sign(&self.signer, &open.edge)?;
        let (key, value) = (Key::new(RECORD)?, Some(record(&open.signed)));
        open.revision = self.store.swap(&key, open.revision, value).await?;
        self.guard.grow(&open.edge);
        let size = open.size();
        self.shared.state.lock().size = size;
        if began.elapsed() > SLOW {
            tracing::warn!(
                "writing {} log entries took {} s: the disk may be busy or failing",
                size - old,
                began.elapsed().as_secs()
            );
        }

        let read = |node: Node| nodes.get(&node).copied().ok_or(TreeError::OutOfRange);
        let from = tree::consistency_proof(old, size, read).map_err(broken)?;
        let checkpoint = self.witness(open, (old, from)).await?;
        self.remove_partial(old, size).await;
        // Only the cosignatures that a verifier needs, as a proof is part of every handshake.
        let checkpoint = self.shared.policy.shortest(&checkpoint).ok_or_else(|| {
            LogError::Busy("The log's own policy does not accept the checkpoint".into())
        })?;
        let prove = |index| {
            let hashes = tree::inclusion_proof(index, size, read)?;
            Ok(Proof { extra: None, index, hashes, checkpoint: checkpoint.clone() })
        };
        (old..size).map(prove).collect::<Result<_, _>>().map_err(broken)
    }

    /// Removes partial tiles that were replaced by full ones. One that remains does no harm.
    async fn remove_partial(&self, old: u64, size: u64) {
        let full = Tile::of_growth(old, size).filter(|tile| tile.is_full());
        for tile in full.filter(|tile| Tile::of_tree(tile.kind, tile.index, old).is_some()) {
            let folder = format!("{}.p/", tile.path());
            if let Err(e) = self.storage.delete_all(&folder).await {
                tracing::warn!(
                    "cannot remove partial tiles in {}/{folder}, which are no longer needed: {e}",
                    self.storage.place()
                );
            }
        }
    }

    /// Whether the published checkpoint was cosigned by clocks that were ahead of this one. Verifiers refuse it until it
    /// is cosigned again.
    fn is_from_the_future(&self) -> bool {
        let published = self.shared.state.lock().published.clone();
        let witnessed = published.and_then(|signed| self.shared.policy.witnessed(&signed).ok());
        witnessed
            .is_some_and(|w| matches!(w.fresh(now(), u64::MAX), Err(Refused::FromTheFuture { .. })))
    }

    /// Has the checkpoint cosigned and publishes it.
    async fn witness(
        &mut self,
        open: &Open,
        from: (u64, Vec<Hash>),
    ) -> Result<SignedCheckpoint, LogError> {
        let size = open.size();
        let everyone = !self.vouched;
        let cosigned = self.shared.cosigning.cosign(open.signed.clone(), from, everyone);
        tokio::pin!(cosigned);
        let signed = match timeout(PATIENCE, &mut cosigned).await {
            Ok(signed) => signed,
            Err(_) => {
                let since = Instant::now();
                self.shared.state.lock().waiting_since =
                    Some(now().saturating_sub(PATIENCE.as_secs()));
                let signed = loop {
                    tracing::error!(
                        quorum = self.shared.policy.quorum_text(),
                        waiting_for = self.shared.cosigning.waiting_for(size),
                        "ALARM: the witnesses do not cosign: no certificates are issued until they do; existing ones work until they expire"
                    );
                    if let Ok(signed) = timeout(REPEAT, &mut cosigned).await {
                        break signed;
                    }
                };
                let waited = since.elapsed() + PATIENCE;
                tracing::info!("the witnesses cosign again, after {} s", waited.as_secs());
                signed
            }
        };
        let signed = signed.map_err(|ahead| LogError::Behind { ahead, size })?;
        self.vouched = true;
        let object = (CHECKPOINT.to_owned(), signed.to_string().into_bytes());
        self.storage.put(vec![object]).await.map_err(|e| failed(&*self.storage, e))?;
        let mut state = self.shared.state.lock();
        state.waiting_since = None;
        state.witnessed = self.shared.policy.wants_witnesses().then(|| (size, now()));
        state.published = Some(signed.clone());
        Ok(signed)
    }
}

/// The last checkpoint in a store, which must be signed by this key.
pub async fn last_signed(store: &dyn Store, key: &LogKey) -> Result<SignedCheckpoint, LogError> {
    let none = || LogError::Refused("the store has no record of a log".into());
    let entry = store.get(&Key::new(RECORD)?).await?.ok_or_else(none)?;
    recorded(&entry.value, key).map_err(|why| {
        LogError::Refused(format!(
            "the last checkpoint in the store {why}: log.key may belong to another log"
        ))
    })
}

/// Sets the last checkpoint in a store to a newer one, which the log of this store has signed and whose tiles exist.
pub async fn go_on_from(store: &dyn Store, signed: &SignedCheckpoint) -> Result<(), LogError> {
    let key = Key::new(RECORD)?;
    let entry = store.get(&key).await?.ok_or(LogError::Closed)?;
    store.swap(&key, entry.revision, Some(record(signed))).await?;
    Ok(())
}

/// Runs a computation that requests nodes of a tree of `size`, which are read from its tiles.
pub(super) async fn read_nodes<T>(
    storage: &dyn Storage,
    size: u64,
    ask: impl Fn(&mut dyn FnMut(Node) -> Result<Hash, TreeError>) -> Result<T, TreeError>,
) -> Result<T, LogError> {
    // Run it once to learn which nodes it requests, and once with these nodes.
    let mut wanted = Vec::new();
    let mut note = |node| {
        wanted.push(node);
        Ok(Hash::empty())
    };
    ask(&mut note).map_err(broken)?;
    let mut tiles: HashMap<Tile, Vec<Hash>> = HashMap::new();
    let mut nodes = HashMap::new();
    for node in wanted {
        let (tile, range) =
            Tile::of_node(node, size).ok_or_else(|| broken(TreeError::OutOfRange))?;
        let hashes = match tiles.entry(tile) {
            Entry::Occupied(read) => read.into_mut(),
            Entry::Vacant(unread) => {
                unread.insert(read_tile(storage, tile).await.map_err(|e| failed(storage, e))?)
            }
        };
        if let Some(hash) = hashes.get(range).and_then(tile::subtree) {
            nodes.insert(node, hash);
        }
    }
    ask(&mut |node| nodes.get(&node).copied().ok_or(TreeError::OutOfRange)).map_err(broken)
}

/// The hashes of a tile. A full tile may have replaced a partial one, and starts with the same hashes.
async fn read_tile(storage: &dyn Storage, tile: Tile) -> io::Result<Vec<Hash>> {
    for tile in [tile, tile.full()] {
        if let Some(bytes) = storage.get(&tile.path(), max_len(tile)).await? {
            return tile.hashes(&bytes).map_err(io::Error::other);
        }
    }
    Err(io::Error::other(format!("{} is missing", tile.path())))
}

/// The name of a new log of this trust domain; `random` distinguishes it from later ones.
pub fn new_origin(trust_domain: &str, random: [u8; 4]) -> Option<KeyName> {
    KeyName::new(&format!("{trust_domain}/log/{:08x}", u32::from_be_bytes(random)))
}

/// The largest size of a tile, in bytes.
pub fn max_len(tile: Tile) -> usize {
    match tile.kind {
        Kind::Entries => MAX_BUNDLE,
        Kind::Hashes { .. } => usize::from(tile.width) * Hash::LEN,
    }
}

fn sign(signer: &LogSigner, edge: &Edge) -> Result<SignedCheckpoint, LogError> {
    let checkpoint = Checkpoint {
        origin: signer.public().name().to_string(),
        size: edge.size(),
        root: edge.root(),
        extensions: Vec::new(),
    };
    checkpoint.sign(signer).map_err(|e| LogError::Refused(e.to_string()))
}

fn record(signed: &SignedCheckpoint) -> Vec<u8> {
    let record = Record { checkpoint: signed.to_string() };
    serde_json::to_vec(&record).expect("a string serializes")
}

/// The checkpoint of a record in the store, or what is wrong with it.
fn recorded(value: &[u8], key: &LogKey) -> Result<SignedCheckpoint, String> {
    let record: Record = serde_json::from_slice(value).map_err(|e| e.to_string())?;
    read_checkpoint(key, record.checkpoint.as_bytes())
}

/// A checkpoint signed by this log, or what is wrong with it.
fn read_checkpoint(key: &LogKey, bytes: &[u8]) -> Result<SignedCheckpoint, String> {
    let text = str::from_utf8(bytes).map_err(|_| "is not UTF-8".to_owned())?;
    let signed = SignedCheckpoint::parse(text).map_err(|e| format!("is malformed ({e})"))?;
    match signed.verified_by(key) {
        Some(_) => Ok(signed),
        None => Err(format!("was not signed by {}", key.name())),
    }
}

pub(super) fn failed(storage: &dyn Storage, source: io::Error) -> LogError {
    LogError::Storage { place: storage.place(), source: Arc::new(source) }
}

/// An inconsistency of the tree in memory, which is discarded and read again.
pub(super) fn broken(e: TreeError) -> LogError {
    LogError::Busy(format!("The log's tree has to be read again ({e})"))
}
