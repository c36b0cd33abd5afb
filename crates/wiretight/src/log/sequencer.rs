//! The sequencer: it alone appends to the log and signs its checkpoints.
//!
//! A batch is everything that was asked for while the last one was under way. For each, in this order:
//!
//! 1. its bundles and tiles are written, and durable;
//! 2. the checkpoint is signed and put into the store by compare-and-swap, and durable: from here on the batch is part
//!    of the log, and no other history will be signed;
//! 3. the witnesses cosign it, as many as the policy wants, however long they take;
//! 4. it is published with their cosignatures;
//! 5. whoever asked gets the proofs.
//!
//! A crash between any two leaves tiles that no checkpoint covers (they are written over), or a checkpoint that is
//! cosigned and published at the next start. Nobody has got a proof before step 5. When anything fails, what is in
//! memory is thrown away and the log is opened anew, as at a start.
//!
//! It refuses to start on anything that could lead to a second history: a store that is older than what was published,
//! tiles that do not hash to the checkpoint, a key that did not sign it, a witness that holds a larger tree.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

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
/// The largest checkpoint that is read, in bytes.
pub const MAX_CHECKPOINT: usize = wiretight_tlog::note::MAX_NOTE;

/// Where the last checkpoint is in the store.
const RECORD: &str = "log/checkpoint";
/// The most entries of a batch.
const MAX_BATCH: usize = 16_384;
/// The most bytes of entries that wait, in KiB.
const MAX_WAITING_KIB: usize = 64 << 10;
/// The most requests that wait.
const MAX_REQUESTS: usize = 65_536;
/// The last checkpoint is cosigned again this often, so that its age says whether the log lives.
const HEARTBEAT: Duration = Duration::from_secs(300);
/// How often it is checked that the cosignatures are not from the future: a clock was set, here or at a witness.
const CLOCKS: Duration = Duration::from_secs(10);
/// After a failure, until the log is opened anew.
const RETRY: Duration = Duration::from_secs(2);
/// A write that takes longer is worth a warning.
const SLOW: Duration = Duration::from_secs(2);
/// A wait for witnesses that is longer than this is an alarm.
const PATIENCE: Duration = Duration::from_secs(10);
/// While the wait goes on, the alarm is repeated this often.
const REPEAT: Duration = Duration::from_secs(60);

/// Why the log cannot be opened, or does not take an entry.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LogError {
    /// The store.
    #[error("the authority's store failed: {0}")]
    Store(Arc<wiretight_store::Error>),
    /// The tiles.
    #[error("the log's files in {place} failed: {source}")]
    Storage {
        /// Where.
        place: String,
        /// The reason.
        source: Arc<io::Error>,
    },
    /// Opening would risk a second history.
    #[error("the log is not opened, because it could fork: {0}")]
    Refused(String),
    /// Another process appends to it.
    #[error(
        "another process has signed a checkpoint of this log meanwhile: only one authority may run on a store"
    )]
    Superseded,
    /// A witness knows more of this log than is here.
    #[error(
        "the log is not opened, because it would fork: {} has cosigned {holds} entries and this log has {size}. Were the authority's files or store restored from an old backup? Bring back the newest ones; entries that nobody has any more cannot be replaced, and a new authority has to take the place of this one", .ahead.witness, holds = .ahead.holds
    )]
    Behind {
        /// Who knows more.
        ahead: Ahead,
        /// What is here.
        size: u64,
    },
    /// Too much waits.
    #[error("the log does not keep up: too many entries wait. {0}")]
    Busy(String),
    /// The entry is too large.
    #[error("an entry of the log has at most {MAX_ENTRY} bytes")]
    TooLarge,
    /// The sequencer has ended.
    #[error("the log is closed")]
    Closed,
}

impl LogError {
    /// Whether trying again later is of no use without somebody who puts it right.
    pub fn is_final(&self) -> bool {
        matches!(self, LogError::Refused(_) | LogError::Superseded | LogError::Behind { .. })
    }

    /// What a node is told that asked for a certificate: nothing of where the log is kept, or by whom it is witnessed.
    pub fn for_members(&self) -> String {
        match self {
            LogError::Busy(_) | LogError::TooLarge | LogError::Closed => self.to_string(),
            _ => "the authority's log takes no entries now: the authority's own messages say why"
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

/// What is known of the log, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LogStatus {
    /// The log's public key; its name is the origin.
    pub vkey: String,
    /// The number of entries.
    pub size: u64,
    /// Whether nobody but this authority vouches for the log.
    pub self_attested: bool,
    /// The quorum that the policy wants.
    pub quorum: String,
    /// The size of the newest checkpoint that the quorum has cosigned, and when it was.
    pub witnessed: Option<(u64, u64)>,
    /// Since when entries have waited for the quorum.
    pub waiting_since: Option<u64>,
    /// Each witness.
    pub witnesses: Vec<WitnessStatus>,
    /// Why it takes nothing, if it does not.
    pub problem: Option<String>,
    /// How many entries were read again and found as signed, and when that was finished; `None`: not yet since the
    /// start.
    pub verified: Option<(u64, u64)>,
    /// Files of the log that are missing, or are not what was signed: they are not served.
    pub damaged: Vec<String>,
}

/// What the sequencer is given.
pub struct Params {
    /// The log's key.
    pub signer: LogSigner,
    /// Who has to cosign; the log itself need not be in it.
    pub policy: Policy,
    /// A way to each witness of the policy, in its order.
    pub ways: Vec<Arc<dyn Witness>>,
    /// Where the tiles are.
    pub storage: Arc<dyn Storage>,
    /// Where the last checkpoint is.
    pub store: Arc<dyn Store>,
}

/// A running log. Clones are the same one; it ends with the last of them.
#[derive(Clone)]
pub struct Log {
    requests: mpsc::Sender<Request>,
    room: Arc<Semaphore>,
    shared: Arc<Shared>,
    guard: Arc<Guard>,
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
    /// Opens the log, or makes it where there is none, and appends to it from then on. Returns when its files are in
    /// order; whether the witnesses are is found out afterwards ([`Log::status`]).
    pub async fn start(params: Params) -> Result<Log, LogError> {
        let Params { signer, policy, ways, storage, store } = params;
        let open = Open::load(&signer, &*storage, &*store).await?;
        let guard = Arc::new(Guard::new(storage.clone()));
        guard.grow(&open.edge);
        let cosigning = Cosigning::start(policy.clone(), ways, guard.clone());
        let (key, state) = (signer.public().clone(), Mutex::default());
        let shared = Arc::new(Shared { key, policy, cosigning, state });
        shared.state().size = open.size();
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

    /// Stops, wherever it is (as by a crash, from which it recovers); returns when it is at rest.
    pub async fn close(&self) {
        self.task.lock().await.shutdown().await;
    }

    /// The log's public key; its name is the origin.
    pub fn key(&self) -> &LogKey {
        &self.shared.key
    }

    /// Who has to be believed for a proof of this log to hold: the log, and its witnesses.
    pub fn policy(&self) -> Policy {
        self.shared.policy.clone()
    }

    /// The witnesses that have not cosigned all that is in the log, and why, for people.
    pub fn waiting_for(&self) -> String {
        self.shared.cosigning.waiting_for(self.shared.state().size)
    }

    /// Whether anybody else has to cosign.
    pub fn has_witnesses(&self) -> bool {
        self.shared.policy.wants_witnesses()
    }

    /// Appends an entry and waits for its proof: until the witnesses have cosigned.
    pub async fn append(&self, entry: Vec<u8>) -> Result<Proof, LogError> {
        let mut proofs = self.append_all(vec![entry]).await?;
        proofs.pop().ok_or(LogError::Closed)
    }

    /// Appends entries, one after the other and in one batch, and waits for their proofs.
    pub async fn append_all(&self, entries: Vec<Vec<u8>>) -> Result<Vec<Proof>, LogError> {
        if entries.iter().any(|e| e.len() > MAX_ENTRY) {
            return Err(LogError::TooLarge);
        }
        if let Some(problem) = self.shared.state().problem.clone() {
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

    /// The newest checkpoint that was published, with its cosignatures.
    pub fn checkpoint(&self) -> Option<SignedCheckpoint> {
        self.shared.state().published.clone()
    }

    /// A tile, if a published checkpoint covers it. One that does not hash to the checkpoint is an error.
    pub async fn tile(&self, tile: Tile) -> Result<Option<Vec<u8>>, LogError> {
        let size = self.checkpoint().map_or(0, |c| c.unverified().size);
        let covered = Tile::of_tree(tile.kind, tile.index, size);
        if covered.is_none_or(|covered| tile.width > covered.width) {
            return Ok(None);
        }
        let read = self.guard.get(&tile.path(), max_len(tile)).await;
        read.map_err(|e| failed(&*self.guard, e))
    }

    /// What is known of it.
    pub fn status(&self) -> LogStatus {
        let witnesses = self.shared.cosigning.status();
        let state = self.shared.state();
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
        LogError::Busy(match self.shared.state().waiting_since {
            Some(since) => {
                format!("It has waited {} s for its witnesses", now().saturating_sub(since))
            }
            None => "Try again in a moment".into(),
        })
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the store holds of the log.
#[derive(Serialize, Deserialize)]
struct Record {
    /// The signed checkpoint, without cosignatures.
    checkpoint: String,
}

/// The log's end, in memory: all that is needed to append.
struct Open {
    signed: SignedCheckpoint,
    revision: Revision,
    edge: Edge,
}

impl Open {
    fn size(&self) -> u64 {
        self.edge.size()
    }

    /// Reads the log's end and checks it against what was signed; makes the log if there is none.
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
            refused(format!("{place}/{CHECKPOINT} {why}. Restore it; if nothing else is damaged, removing it is safe: it is made anew from the store"))
        })?;
        let key = Key::new(RECORD)?;
        let Some(entry) = store.get(&key).await? else {
            if published.is_some() {
                return Err(refused(format!(
                    "{place} holds a published log and the store knows of none: was the store lost, or set back? Restore the newest one"
                )));
            }
            return Open::create(signer, store, &key).await;
        };
        let signed = recorded(&entry.value, signer.public()).map_err(|why| {
            refused(format!(
                "the last checkpoint in the store {why}: is log.key another log's? Restore key and store together"
            ))
        })?;
        let last = signed.unverified();
        if let Some(published) = published.as_ref().map(SignedCheckpoint::unverified)
            && (published.size > last.size
                || published.size == last.size && published.root != last.root)
        {
            return Err(refused(format!(
                "{} entries were published in {place} and the store knows of {}: the store was set back. Restore the newest one",
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
        tracing::info!(origin = %signer.public().name(), "made a new log");
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
    /// Whether the witnesses have confirmed, since the start, that nothing is forgotten here.
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
                        self.shared.state().problem = None;
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
            tracing::error!("ALARM: the log takes no entries: {problem}");
            self.shared.state().problem = Some(problem.clone());
            while let Ok(request) = self.queue.try_recv() {
                let _ = request.answer.send(Err(problem.clone()));
            }
            if problem.is_final() {
                return self.refuse(&problem).await;
            }
            sleep(RETRY).await;
        }
    }

    /// Answers everybody with what is wrong.
    async fn refuse(&mut self, problem: &LogError) {
        while let Some(request) = self.queue.recv().await {
            let _ = request.answer.send(Err(problem.clone()));
        }
    }

    /// Batch after batch; returns when nobody can ask any more.
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
                // Who has given up (the witnesses were away) does not want it logged any more.
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

    /// Appends entries, and returns their proofs.
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
        self.shared.state().size = size;
        if began.elapsed() > SLOW {
            tracing::warn!(
                "{} s passed until {} entries of the log were on the disk: is it busy, or failing?",
                began.elapsed().as_secs(),
                size - old
            );
        }

        let read = |node: Node| nodes.get(&node).copied().ok_or(TreeError::OutOfRange);
        let from = tree::consistency_proof(old, size, read).map_err(broken)?;
        let checkpoint = self.witness(open, (old, from)).await?;
        self.remove_partial(old, size).await;
        // No more than a verifier needs: a proof is in every handshake.
        let checkpoint = self.shared.policy.shortest(&checkpoint).ok_or_else(|| {
            LogError::Busy("Its own policy does not believe the checkpoint".into())
        })?;
        let prove = |index| {
            let hashes = tree::inclusion_proof(index, size, read)?;
            Ok(Proof { extra: None, index, hashes, checkpoint: checkpoint.clone() })
        };
        (old..size).map(prove).collect::<Result<_, _>>().map_err(broken)
    }

    /// Removes the partial tiles in whose place there is a full one now. One that stays does no harm.
    async fn remove_partial(&self, old: u64, size: u64) {
        let full = Tile::of_growth(old, size).filter(|tile| tile.is_full());
        for tile in full.filter(|tile| Tile::of_tree(tile.kind, tile.index, old).is_some()) {
            let folder = format!("{}.p/", tile.path());
            if let Err(e) = self.storage.delete_all(&folder).await {
                tracing::warn!("partial tiles stay in {}/{folder}: {e}", self.storage.place());
            }
        }
    }

    /// Whether the published checkpoint was cosigned by clocks that were ahead of this one: nobody accepts it until
    /// it is cosigned anew.
    fn is_from_the_future(&self) -> bool {
        let published = self.shared.state().published.clone();
        let witnessed = published.and_then(|signed| self.shared.policy.witnessed(&signed).ok());
        witnessed
            .is_some_and(|w| matches!(w.fresh(now(), u64::MAX), Err(Refused::FromTheFuture { .. })))
    }

    /// Has the checkpoint cosigned, and publishes it.
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
                self.shared.state().waiting_since = Some(now().saturating_sub(PATIENCE.as_secs()));
                let signed = loop {
                    tracing::error!(
                        quorum = self.shared.policy.quorum_text(),
                        waiting_for = self.shared.cosigning.waiting_for(size),
                        "ALARM: the witnesses do not cosign: nothing new is issued until they do, and what was issued works until it expires"
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
        let mut state = self.shared.state();
        state.waiting_since = None;
        state.witnessed = self.shared.policy.wants_witnesses().then(|| (size, now()));
        state.published = Some(signed.clone());
        Ok(signed)
    }
}

/// The checkpoint that a store holds as the last one that its log, of this key, has signed.
pub async fn last_signed(store: &dyn Store, key: &LogKey) -> Result<SignedCheckpoint, LogError> {
    let none = || LogError::Refused("the store knows of no log".into());
    let entry = store.get(&Key::new(RECORD)?).await?.ok_or_else(none)?;
    recorded(&entry.value, key).map_err(|why| {
        LogError::Refused(format!(
            "the last checkpoint in the store {why}: is log.key another log's?"
        ))
    })
}

/// Makes a newer checkpoint, which a log of this store has signed and whose tiles are there, the last one.
pub async fn go_on_from(store: &dyn Store, signed: &SignedCheckpoint) -> Result<(), LogError> {
    let key = Key::new(RECORD)?;
    let entry = store.get(&key).await?.ok_or(LogError::Closed)?;
    store.swap(&key, entry.revision, Some(record(signed))).await?;
    Ok(())
}

/// Runs something that asks for nodes of a tree of `size`, which are read from its tiles.
pub(super) async fn read_nodes<T>(
    storage: &dyn Storage,
    size: u64,
    ask: impl Fn(&mut dyn FnMut(Node) -> Result<Hash, TreeError>) -> Result<T, TreeError>,
) -> Result<T, LogError> {
    // Once to learn what it asks for, once with the answers.
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
                let path = tile.path();
                let missing = || io::Error::other(format!("{path} is missing"));
                let bytes = storage.get(&path, max_len(tile)).await;
                let hashes = bytes
                    .and_then(|bytes| bytes.ok_or_else(missing))
                    .and_then(|bytes| tile.hashes(&bytes).map_err(io::Error::other));
                unread.insert(hashes.map_err(|e| failed(storage, e))?)
            }
        };
        if let Some(hash) = hashes.get(range).and_then(tile::subtree) {
            nodes.insert(node, hash);
        }
    }
    ask(&mut |node| nodes.get(&node).copied().ok_or(TreeError::OutOfRange)).map_err(broken)
}

/// A new log's name: of this trust domain, and not to be confused with a later log of it.
pub fn new_origin(trust_domain: &str, random: [u8; 4]) -> Option<KeyName> {
    KeyName::new(&format!("{trust_domain}/log/{:08x}", u32::from_be_bytes(random)))
}

/// The largest object that a tile can be, in bytes.
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
    serde_json::to_vec(&record).expect("a text is JSON")
}

/// The checkpoint of a record in the store; or what is wrong with it.
fn recorded(value: &[u8], key: &LogKey) -> Result<SignedCheckpoint, String> {
    let record: Record = serde_json::from_slice(value).map_err(|e| e.to_string())?;
    read_checkpoint(key, record.checkpoint.as_bytes())
}

/// A checkpoint that this log has signed; or what is wrong with it.
fn read_checkpoint(key: &LogKey, bytes: &[u8]) -> Result<SignedCheckpoint, String> {
    let text = str::from_utf8(bytes).map_err(|_| "is not a text".to_owned())?;
    let signed = SignedCheckpoint::parse(text).map_err(|e| format!("cannot be read ({e})"))?;
    match signed.verified_by(key) {
        Some(_) => Ok(signed),
        None => Err(format!("was not signed by {}", key.name())),
    }
}

pub(super) fn failed(storage: &dyn Storage, source: io::Error) -> LogError {
    LogError::Storage { place: storage.place(), source: Arc::new(source) }
}

/// The tree in memory is not what it should be: it is thrown away, and read again.
fn broken(e: TreeError) -> LogError {
    LogError::Busy(format!("Its tree could not be read ({e})"))
}
