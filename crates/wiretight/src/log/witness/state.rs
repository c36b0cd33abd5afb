//! The saved state of a witness: the last cosigned checkpoint of each log.
//!
//! It is one small file with a checksum, written atomically. So a wrong checksum means damage, and the witness does not
//! start: starting without the state would mean forgetting what it has cosigned. For the same reason the file must exist
//! (a disk may not be mounted, or a directory may have been deleted). It is created only if the operator says that the
//! witness is new ([`Start::New`]).
//!
//! A log takes one step at a time: the next step waits until the last one is on disk and cosigned, or has failed. A thread
//! writes the state of all logs as long as there are steps that the file lacks. Steps of other logs that arrive during one
//! write share the next one.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use wiretight_tlog::{Hash, SignedCheckpoint};

use super::{MAX_LOGS, MAX_TEXT};
use crate::private_dir::{FileError, Lock, PrivateDir};

const FILE: &str = "state";
const HEADER: &str = "wiretight witness state 1";
/// The largest file: every log with the longest checkpoint, its newlines escaped.
const MAX_FILE: usize = 512 << 20;
const _: () = assert!(MAX_FILE > MAX_LOGS * (MAX_TEXT + 1024));

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("another witness is running with {}. Only one process may use a state directory; otherwise each would sign checkpoints that the other has not seen.", .0.display())]
    InUse(PathBuf),
    #[error(
        "{} has no witness state. Its disk is probably not mounted, or the state was deleted. A witness that forgot what it cosigned must not run under its key again: it could cosign a fork. Mount or recover the directory. If this key has never cosigned anything, start once with --new.",
        .0.display()
    )]
    Missing(PathBuf),
    #[error(
        "{} has the state of a witness that has run before. --new is only for the very first start: run without it. Do not put it into the service file, or a lost disk would go unnoticed.",
        .0.display()
    )]
    NotNew(PathBuf),
    #[error(
        "{} is damaged ({detail}). Nothing is cosigned from it, because it could be a different history than before. Do not use an older copy either. If the file cannot be recovered, start with a new directory and a new key, and tell everyone whose policy has the old key.",
        .path.display()
    )]
    Damaged { path: PathBuf, detail: String },
    #[error(transparent)]
    File(#[from] FileError),
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

/// Whether the state must exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// The very first start of this witness: there must be no state.
    New,
    /// Any other start: the state must exist.
    Known,
}

/// The last cosigned tree of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cosigned {
    pub size: u64,
    pub root: Hash,
    /// In seconds since 1970.
    pub time: u64,
    /// The checkpoint as the log signed it.
    pub note: String,
}

/// A line of the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    time: u64,
    note: std::borrow::Cow<'a, str>,
}

/// The state of all logs.
pub(super) struct Memory {
    dir: PrivateDir,
    logs: HashMap<String, Log>,
    /// Lines of logs that are not witnessed now, but may be again.
    others: Vec<String>,
    _lock: Lock,
}

#[derive(Default)]
pub(super) struct Log {
    /// Held during a step.
    turn: tokio::sync::Mutex<()>,
    latest: Mutex<Latest>,
}

#[derive(Default)]
struct Latest {
    /// The last cosigned tree, which is on disk.
    cosigned: Option<Cosigned>,
    /// Its line in the file.
    line: Arc<str>,
    /// The next line, while a step is being written.
    next: Option<Arc<str>>,
    /// The checkpoint with its cosignatures.
    shown: Option<Arc<str>>,
}

/// Why a log takes no step.
pub(super) enum Refused<E> {
    /// The step is not allowed; with the last cosigned tree.
    Not(E, Option<Cosigned>),
    /// The state could not be written.
    Disk,
}

impl Memory {
    /// Reads the state in `path`, for these origins.
    pub(super) fn open(
        path: &Path,
        start: Start,
        origins: impl Iterator<Item = String>,
    ) -> Result<Memory, StateError> {
        // Create nothing if the disk may not be mounted.
        let there = path.join(FILE).try_exists().map_err(|source| FileError {
            doing: "check for",
            path: path.join(FILE),
            source,
        })?;
        if start == Start::Known && !there {
            return Err(StateError::Missing(path.to_owned()));
        }
        let dir = PrivateDir::open(path)?;
        let lock = dir.lock("lock")?.ok_or_else(|| StateError::InUse(path.to_owned()))?;
        let bytes = dir.read(FILE, MAX_FILE)?;
        // Evidence of a fork shows that a witness has run before.
        let has_run = bytes.is_some() || path.join("evidence").exists();
        let mut known = match (bytes, start) {
            (_, Start::New) if has_run => return Err(StateError::NotNew(path.to_owned())),
            (Some(bytes), _) => read(&bytes)
                .map_err(|detail| StateError::Damaged { path: path.join(FILE), detail })?,
            (None, Start::Known) => return Err(StateError::Missing(path.to_owned())),
            (None, Start::New) => {
                tracing::warn!(state = %path.display(), "new witness state created: nothing was cosigned yet. From now on, start without --new.");
                HashMap::new()
            }
        };
        let log = |origin: String| {
            let latest = known.remove(&origin).map(|(cosigned, line)| Latest {
                cosigned: Some(cosigned),
                line: line.into(),
                ..Latest::default()
            });
            (origin, Log { latest: Mutex::new(latest.unwrap_or_default()), ..Log::default() })
        };
        let logs = origins.map(log).collect();
        let others = known.into_values().map(|(_, line)| line).collect();
        let memory = Memory { dir, logs, others, _lock: lock };
        memory.write()?;
        Ok(memory)
    }

    fn write(&self) -> Result<(), FileError> {
        let mut text = format!("{HEADER}\n");
        let line = |log: &Log| {
            let latest = log.latest.lock();
            latest.next.as_ref().unwrap_or(&latest.line).clone()
        };
        let lines = self.logs.values().map(line);
        lines.filter(|line| !line.is_empty()).for_each(|line| text.push_str(&line));
        self.others.iter().for_each(|line| text.push_str(line));
        let sum = Hash::of(text.as_bytes());
        text.push_str(&format!("sha256 {sum}\n"));
        self.dir.write(FILE, text.as_bytes())
    }
}

/// Parses a file; returns the trees by origin, each with its line.
fn read(bytes: &[u8]) -> Result<HashMap<String, (Cosigned, String)>, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not text")?;
    let end = text.strip_suffix('\n').and_then(|t| t.rfind('\n')).ok_or("it is truncated")?;
    let (body, last) = text.split_at(end + 1);
    let sum = last.trim_end().strip_prefix("sha256 ").and_then(Hash::from_base64);
    if sum != Some(Hash::of(body.as_bytes())) {
        return Err("its checksum does not match: it was truncated or altered".into());
    }
    let lines = body.strip_prefix(HEADER).and_then(|b| b.strip_prefix('\n'));
    let mut known = HashMap::new();
    for line in lines.ok_or("it has an unknown version")?.split_inclusive('\n') {
        let Line { time, note } = serde_json::from_str(line).map_err(|e| e.to_string())?;
        let signed = SignedCheckpoint::parse(&note).map_err(|e| e.to_string())?;
        let checkpoint = signed.unverified();
        let (size, root) = (checkpoint.size, checkpoint.root);
        let cosigned = Cosigned { size, root, time, note: note.into_owned() };
        if known.insert(checkpoint.origin.clone(), (cosigned, line.to_owned())).is_some() {
            return Err("it lists a log twice".into());
        }
    }
    Ok(known)
}

impl Log {
    pub(super) fn last(&self) -> Option<Cosigned> {
        self.latest.lock().cosigned.clone()
    }

    /// The last cosigned checkpoint with its cosignatures. After a start, `make` creates these again.
    pub(super) fn shown(&self, make: impl FnOnce(&Cosigned) -> Option<String>) -> Option<Arc<str>> {
        let mut latest = self.latest.lock();
        if latest.shown.is_none() {
            latest.shown = make(latest.cosigned.as_ref()?).map(Arc::from);
        }
        latest.shown.clone()
    }

    /// Stores the checkpoint with its cosignatures, if it is the last cosigned one.
    pub(super) fn show(&self, of: (u64, Hash), checkpoint: String) {
        let mut latest = self.latest.lock();
        if latest.cosigned.as_ref().is_some_and(|c| (c.size, c.root) == of) {
            latest.shown = Some(checkpoint.into());
        }
    }
}

/// Writes the state.
pub(super) struct Committer {
    shared: Arc<Shared>,
    written: watch::Receiver<Written>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    memory: Memory,
    /// The number of steps so far.
    steps: AtomicU64,
    wanted: Mutex<Wanted>,
    wake: Condvar,
}

#[derive(Default)]
struct Wanted {
    /// The number of requested writes.
    writes: u64,
    ended: bool,
}

/// The progress of the writing thread.
#[derive(Clone, Copy, Default)]
struct Written {
    /// All steps up to this one are on disk.
    durable: u64,
    /// All requested writes up to this one were tried.
    tried: u64,
}

impl Committer {
    pub(super) fn start(memory: Memory) -> io::Result<Committer> {
        let (wanted, wake) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { memory, steps: AtomicU64::new(0), wanted, wake });
        let (done, written) = watch::channel(Written::default());
        let run = shared.clone();
        let thread =
            std::thread::Builder::new().name("state".into()).spawn(move || run.run(&done))?;
        Ok(Committer { shared, written, thread: Some(thread) })
    }

    pub(super) fn log(&self, origin: &str) -> Option<&Log> {
        self.shared.memory.logs.get(origin)
    }

    /// Changes a log's state to the result of `next` and writes it to disk. When this returns `Ok`, the tree may be signed.
    /// If it is dropped before, the step has not happened; a state that is already on disk was never signed.
    pub(super) async fn step<E>(
        &self,
        log: &Log,
        next: impl FnOnce(Option<&Cosigned>) -> Result<Cosigned, E>,
    ) -> Result<(), Refused<E>> {
        let _turn = log.turn.lock().await;
        let last = log.last();
        let cosigned = match next(last.as_ref()) {
            Ok(cosigned) => cosigned,
            Err(why) => return Err(Refused::Not(why, last)),
        };
        let same = |c: &Cosigned| (c.size, c.root) == (cosigned.size, cosigned.root);
        if last.as_ref().is_some_and(same) {
            log.latest.lock().cosigned = Some(cosigned);
            return Ok(());
        }
        let line = Line { time: cosigned.time, note: cosigned.note.as_str().into() };
        let line = serde_json::to_string(&line).expect("a number and a text are JSON");
        let line: Arc<str> = format!("{line}\n").into();
        let step = {
            let mut latest = log.latest.lock();
            latest.next = Some(line.clone());
            self.shared.steps.fetch_add(1, Ordering::SeqCst) + 1
        };
        let durable = self.durable(step).await;
        let mut latest = log.latest.lock();
        latest.next = None;
        if !durable {
            return Err(Refused::Disk);
        }
        *latest = Latest { cosigned: Some(cosigned), line, ..Latest::default() };
        Ok(())
    }

    /// Waits until a step is on disk; `false` if the write failed.
    async fn durable(&self, step: u64) -> bool {
        let mut written = self.written.clone();
        if written.borrow().durable >= step {
            return true;
        }
        let ticket = {
            let mut wanted = self.shared.wanted.lock();
            wanted.writes += 1;
            self.shared.wake.notify_one();
            wanted.writes
        };
        let done = written.wait_for(|w| w.durable >= step || w.tried >= ticket).await;
        done.is_ok_and(|w| w.durable >= step)
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        self.shared.wanted.lock().ended = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self, done: &watch::Sender<Written>) {
        let mut now = Written::default();
        loop {
            let (writes, ended) = {
                let mut wanted = self.wanted.lock();
                self.wake.wait_while(&mut wanted, |w| w.writes == now.tried && !w.ended);
                (wanted.writes, wanted.ended)
            };
            if ended && writes == now.tried {
                return;
            }
            // A step sets its line before it is counted, so the write below includes all steps counted here.
            let steps = self.steps.load(Ordering::SeqCst);
            match self.memory.write() {
                Ok(()) => now.durable = steps,
                Err(error) => tracing::error!(
                    error = crate::logging::chain(&error),
                    "cannot write the state, so nothing new is cosigned"
                ),
            }
            now.tried = writes;
            done.send_replace(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncated_and_altered_files_are_rejected() {
        let note = format!("a\n1\n{}\n\n— a AAAAAAA=\n", Hash::leaf(b""));
        let line = serde_json::to_string(&Line { time: 7, note: note.as_str().into() }).unwrap();
        let body = format!("{HEADER}\n{line}\n");
        let file = format!("{body}sha256 {}\n", Hash::of(body.as_bytes()));
        let known = read(file.as_bytes()).unwrap();
        assert_eq!((known["a"].0.size, known["a"].0.time), (1, 7));
        for at in 0..file.len() {
            assert!(read(&file.as_bytes()[..at]).is_err(), "cut at {at}");
            let mut altered = file.clone().into_bytes();
            altered[at] ^= 1;
            assert!(read(&altered).is_err(), "altered at {at}");
        }
    }
}
