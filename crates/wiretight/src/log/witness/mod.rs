//! A witness (C2SP tlog-witness): it cosigns a log's checkpoint if and only if that tree is consistent with the last one
//! that it cosigned.
//!
//! A witness must never sign two histories of a log. So it has one state for each log, which changes in one step from a
//! tree to a tree with a valid consistency proof. A cosignature is sent only after the new state is on disk. The steps of
//! many logs are written together ([`state`]), which makes thousands per second possible. A witness that has lost its
//! state does not start ([`state::Start`]).
//!
//! - [`request`]: the body of `add-checkpoint`
//! - [`state`]: the saved state
//! - [`serve`]: the HTTP server
//! - [`client`]: the client that a log uses

pub mod client;
pub mod request;
pub mod serve;
pub mod state;

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use wiretight_tlog::note::KeyName;
use wiretight_tlog::tree::{TreeError, verify_consistency};
use wiretight_tlog::{
    Checkpoint, Cosigner, Hash, LogKey, Note, Signature, SignedCheckpoint, WitnessKey,
};

use crate::log::evidence::{Evidence, Kind};
use crate::private_dir::FileError;
use request::{Request, RequestError};
use state::{Committer, Cosigned, Memory, Refused, Start, StateError};

/// The longest text of a checkpoint that is cosigned, in bytes. The text is saved.
pub const MAX_TEXT: usize = 4096;
/// The most logs of a witness.
pub const MAX_LOGS: usize = 100_000;
/// How long a write to disk may take.
const DISK: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("a witness needs at least one key")]
    NoKey,
    #[error("a witness needs at least one log, and at most {MAX_LOGS}")]
    Logs,
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    File(#[from] FileError),
}

/// The response of a witness to `add-checkpoint`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Its cosignatures, as lines of a note.
    Cosigned(String),
    /// An invalid request, or an old size that is larger than the new one.
    Malformed(RequestError),
    /// A log that it does not witness.
    UnknownLog,
    /// Not signed by the log.
    NotSigned,
    /// The last cosigned tree has this size, which is not the request's old size.
    Behind(u64),
    /// It has cosigned another tree of this size: the log has forked.
    Forked,
    /// A wrong root for the empty tree.
    EmptyTree,
    /// The consistency proof is invalid.
    NotProved(TreeError),
    /// The state could not be written, or the checkpoint could not be signed.
    Unavailable(&'static str),
}

impl Answer {
    pub fn status(&self) -> u16 {
        match self {
            Answer::Cosigned(_) => 200,
            Answer::Malformed(_) => 400,
            Answer::NotSigned => 403,
            Answer::UnknownLog => 404,
            Answer::Behind(_) => 409,
            Answer::Forked | Answer::EmptyTree | Answer::NotProved(_) => 422,
            Answer::Unavailable(_) => 503,
        }
    }

    pub fn content_type(&self) -> &'static str {
        match self {
            Answer::Behind(_) => "text/x.tlog.size",
            _ => "text/plain; charset=utf-8",
        }
    }

    pub fn body(&self) -> String {
        match self {
            Answer::Cosigned(lines) => lines.clone(),
            Answer::Behind(size) => format!("{size}\n"),
            Answer::Forked => {
                "this witness has cosigned another tree of this size: the log shows two histories\n"
                    .into()
            }
            Answer::EmptyTree => "the root is not the root of the empty tree\n".into(),
            Answer::Malformed(why) => format!("{why}\n"),
            Answer::UnknownLog => "this witness does not know a log with this origin\n".into(),
            Answer::NotSigned => {
                "the checkpoint is not signed by a key that this witness knows for the log, or a signature is invalid\n"
                    .into()
            }
            Answer::NotProved(why) => format!("{why}\n"),
            Answer::Unavailable(why) => format!("{why}\n"),
        }
    }
}

/// A log's state at the witness.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogStatus {
    pub origin: String,
    /// The last cosigned tree.
    pub tree: Option<(u64, Hash)>,
    /// When it was last cosigned, by this process or an earlier one (seconds since 1970).
    pub time: Option<u64>,
}

/// A witness without its HTTP.
pub struct WitnessCore {
    cosigners: Vec<Cosigner>,
    logs: HashMap<String, Vec<LogKey>>,
    /// Origins by their SHA-256 in hex, which is used in URLs.
    hashes: HashMap<String, String>,
    memory: Committer,
    evidence: Evidence,
    answers: Answers,
}

/// Counts responses by status.
#[derive(Debug, Default)]
pub struct Answers([AtomicU64; Answers::STATUS.len()]);

impl Answers {
    /// The statuses that are counted.
    pub const STATUS: [u16; 7] = [200, 400, 403, 404, 409, 422, 503];

    fn count(&self, status: u16) {
        if let Some(place) = Answers::STATUS.iter().position(|s| *s == status) {
            self.0[place].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Each status with its count.
    pub fn read(&self) -> impl Iterator<Item = (u16, u64)> {
        Answers::STATUS.iter().zip(&self.0).map(|(s, n)| (*s, n.load(Ordering::Relaxed)))
    }
}

impl WitnessCore {
    /// Loads the state in `dir`, or creates it for a new witness. The directory is locked until this is dropped.
    pub fn open(
        dir: &Path,
        start: Start,
        logs: Vec<LogKey>,
        cosigners: Vec<Cosigner>,
    ) -> Result<WitnessCore, OpenError> {
        if cosigners.is_empty() {
            return Err(OpenError::NoKey);
        }
        if logs.is_empty() || logs.len() > MAX_LOGS {
            return Err(OpenError::Logs);
        }
        let mut keys: HashMap<String, Vec<LogKey>> = HashMap::new();
        for key in logs {
            keys.entry(key.name().to_string()).or_default().push(key);
        }
        let memory = Memory::open(dir, start, keys.keys().cloned())?;
        let evidence = Evidence::open(&dir.join("evidence"))?;
        let memory = Committer::start(memory).map_err(StateError::Thread)?;
        let hashes = keys.keys().map(|origin| (origin_hash(origin), origin.clone())).collect();
        let answers = Answers::default();
        Ok(WitnessCore { cosigners, logs: keys, hashes, memory, evidence, answers })
    }

    /// `add-checkpoint`: checks a request, saves its tree, and cosigns it at `now` (seconds since 1970). May be dropped at
    /// any time.
    pub async fn add_checkpoint(&self, body: &[u8], now: u64) -> Answer {
        let answer = self.decide(body, now).await;
        self.answers.count(answer.status());
        answer
    }

    async fn decide(&self, body: &[u8], now: u64) -> Answer {
        let request = Request::parse(body);
        let note = match &request {
            Ok(request) => request.checkpoint.note(),
            Err(RequestError::EmptyTree(note)) => note,
            Err(why) => return Answer::Malformed(why.clone()),
        };
        let origin = note.text().split('\n').next().unwrap_or_default();
        let (Some(keys), Some(log)) = (self.logs.get(origin), self.memory.log(origin)) else {
            return Answer::UnknownLog;
        };
        let Some(own) = signatures(note, keys) else { return Answer::NotSigned };
        let Ok(request) = &request else { return Answer::EmptyTree };
        let checkpoint = request.checkpoint.unverified();
        if request.old > checkpoint.size {
            return Answer::Malformed(RequestError::Backwards);
        }
        if note.text().len() > MAX_TEXT {
            return Answer::Malformed(RequestError::Checkpoint);
        }
        // Save the text and the log's own signatures, which are evidence of what the log signed.
        let Ok(mut kept) = Note::new(note.text().to_owned()) else {
            return Answer::Malformed(RequestError::Checkpoint);
        };
        own.into_iter().for_each(|signature| kept.add(signature));
        // Check and step are atomic. A tree is signed only after it is on disk, so that after a crash the state includes
        // everything that was signed.
        let stepped = self.memory.step(log, |last| {
            consistent(last, request, checkpoint)?;
            let Checkpoint { size, root, .. } = *checkpoint;
            Ok(Cosigned { size, root, time: now, note: kept.to_string() })
        });
        match tokio::time::timeout(DISK, stepped).await {
            Ok(Ok(())) => {}
            Ok(Err(Refused::Not(refusal, last))) => {
                self.keep_evidence(&refusal, last.as_ref(), checkpoint, body, now);
                return match refusal {
                    Refusal::Behind(size) | Refusal::BehindAndForked(size) => Answer::Behind(size),
                    Refusal::Forked => Answer::Forked,
                    Refusal::NotProved(why) => Answer::NotProved(why),
                };
            }
            Ok(Err(Refused::Disk)) => {
                return Answer::Unavailable("the witness cannot write its state to disk");
            }
            Err(_) => return Answer::Unavailable("the disk of the witness is too slow"),
        }
        let Some(lines) = self.cosign(checkpoint, now) else {
            return Answer::Unavailable("the witness could not sign");
        };
        log.show((checkpoint.size, checkpoint.root), format!("{kept}{lines}"));
        Answer::Cosigned(lines)
    }

    /// The cosignatures of all keys, as lines of a note.
    fn cosign(&self, checkpoint: &Checkpoint, time: u64) -> Option<String> {
        let mut lines = String::new();
        for cosigner in &self.cosigners {
            lines.push_str(&format!("{}\n", cosigner.cosign(checkpoint, time).ok()?));
        }
        Some(lines)
    }

    /// The last cosigned checkpoint of a log, with the log's signatures and the cosignatures. `origin_hash` is the SHA-256
    /// (hex) of its origin. `None` if there is no such log or no cosigned checkpoint.
    pub fn checkpoint(&self, origin_hash: &str) -> Option<String> {
        let log = self.memory.log(self.hashes.get(origin_hash)?)?;
        let again = |last: &Cosigned| {
            let signed = SignedCheckpoint::parse(&last.note).ok()?;
            Some(format!("{signed}{}", self.cosign(signed.unverified(), last.time)?))
        };
        Some(log.shown(again)?.to_string())
    }

    fn keep_evidence(
        &self,
        refusal: &Refusal,
        last: Option<&Cosigned>,
        checkpoint: &Checkpoint,
        body: &[u8],
        now: u64,
    ) {
        let kind = match refusal {
            Refusal::Behind(_) => return,
            Refusal::Forked | Refusal::BehindAndForked(_) => Kind::Fork,
            Refusal::NotProved(_) => Kind::NotProved,
        };
        let last = last.map_or("", |last| &last.note);
        match self.evidence.keep(kind, checkpoint, last, body, now) {
            Ok(None) => {}
            Ok(Some(path)) => {
                let (origin, size) = (&checkpoint.origin, checkpoint.size);
                let evidence = path.display().to_string();
                match kind {
                    Kind::Fork | Kind::Rollback => tracing::error!(
                        origin,
                        size,
                        evidence,
                        "the log has forked: it signed two different trees of the same size"
                    ),
                    Kind::NotProved => tracing::error!(
                        origin,
                        size,
                        evidence,
                        "a submitted tree has an invalid consistency proof: the log may have forked, or the submitter sent a wrong proof"
                    ),
                }
            }
            Err(error) => tracing::error!(%error, "cannot save evidence of a fork"),
        }
    }

    pub fn keys(&self) -> impl Iterator<Item = &WitnessKey> {
        self.cosigners.iter().map(Cosigner::public)
    }

    /// The name of its first key.
    pub fn name(&self) -> Option<&KeyName> {
        self.keys().next().map(WitnessKey::name)
    }

    /// Its logs, sorted by origin.
    pub fn logs(&self) -> Vec<LogStatus> {
        let mut logs: Vec<LogStatus> = self
            .logs
            .keys()
            .map(|origin| {
                let last = self.memory.log(origin).and_then(|log| log.last());
                LogStatus {
                    origin: origin.clone(),
                    tree: last.as_ref().map(|last| (last.size, last.root)),
                    time: last.map(|last| last.time),
                }
            })
            .collect();
        logs.sort_by(|a, b| a.origin.cmp(&b.origin));
        logs
    }

    /// The number of evidence files.
    pub fn evidence(&self) -> usize {
        self.evidence.count()
    }

    pub fn answers(&self) -> &Answers {
        &self.answers
    }
}

/// Why a log's state does not change.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    Behind(u64),
    /// The old size is wrong, and the new tree differs from the cosigned one of the same size.
    BehindAndForked(u64),
    Forked,
    NotProved(TreeError),
}

/// Checks that the tree is the last cosigned one or provably extends it.
fn consistent(last: Option<&Cosigned>, request: &Request, new: &Checkpoint) -> Result<(), Refusal> {
    let (size, root) = last.map_or((0, Hash::empty()), |last| (last.size, last.root));
    let forked = new.size == size && new.root != root;
    match (request.old == size, forked) {
        (false, true) => return Err(Refusal::BehindAndForked(size)),
        (false, false) => return Err(Refusal::Behind(size)),
        (true, true) => return Err(Refusal::Forked),
        (true, false) => {}
    }
    verify_consistency((size, root), (new.size, new.root), &request.proof)
        .map_err(Refusal::NotProved)
}

/// The signatures of the log's keys on a note. `None` if there is none or one of them is invalid: an invalid signature of
/// a known key makes the note malformed (C2SP signed-note).
fn signatures(note: &Note, keys: &[LogKey]) -> Option<Vec<Signature>> {
    let mut own: Vec<Signature> = Vec::new();
    for key in keys {
        let of_key = note.signatures().iter().filter(|s| s.name == *key.name() && s.id == key.id());
        for signature in of_key {
            if own.contains(signature) {
                continue;
            }
            let mut alone = Note::new(note.text().to_owned()).ok()?;
            alone.add(signature.clone());
            if !key.signed(&alone) {
                return None;
            }
            own.push(signature.clone());
        }
    }
    (!own.is_empty()).then_some(own)
}

/// SHA-256 of an origin in hex, as in the witness's URLs (C2SP tlog-witness).
pub fn origin_hash(origin: &str) -> String {
    wiretight_keys::token::hex(Hash::of(origin.as_bytes()).as_bytes())
}
