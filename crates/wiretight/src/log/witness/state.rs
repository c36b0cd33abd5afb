//! What a witness remembers: of each log, the checkpoint that it cosigned last.
//!
//! It is one small file, which is written whole, with a checksum, and takes its name by rename: it holds what it held
//! or what was written, never a mixture. So a file that does not fit its checksum was damaged, and the witness does not
//! start: to begin anew would be to forget what it has vouched for. For the same reason a directory that exists must
//! hold the file (the disk may not be mounted); only where there is no directory one is made.
//!
//! A step of a log is taken in memory, under the log's lock. A thread writes the state of all logs, again and again
//! while there are steps that the file lacks; so the steps that come during one write share the next.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use wiretight_tlog::{Hash, SignedCheckpoint};

use super::{MAX_LOGS, MAX_TEXT};
use crate::private_dir::{FileError, Lock, PrivateDir};

const FILE: &str = "state";
const HEADER: &str = "wiretight witness state 1";
/// The largest file that is read: every log with the longest checkpoint, its newlines escaped.
const MAX_FILE: usize = 512 << 20;
const _: () = assert!(MAX_FILE > MAX_LOGS * (MAX_TEXT + 1024));

/// Why there is no state to begin with.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another process.
    #[error("another witness runs with {}: one process a state directory, or both would sign what the other has not seen", .0.display())]
    InUse(PathBuf),
    /// A directory without state.
    #[error(
        "{} exists, but holds no state of a witness. Is a disk not mounted, or was it cleared? A witness that forgot what it cosigned must not go on under its key. If it has never run, remove the empty directory: it is made at the first start",
        .0.display()
    )]
    Missing(PathBuf),
    /// Not what was written.
    #[error(
        "{} is damaged ({detail}). Nothing is cosigned from it, for it could be another history than before. An older copy is no help, either: if the file cannot be recovered, begin with a new directory and a new key, and tell those whose policies name the old one",
        .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// The disk.
    #[error(transparent)]
    File(#[from] FileError),
    /// No thread to write it.
    #[error("no thread can be started")]
    Thread(#[source] io::Error),
}

/// What was cosigned of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cosigned {
    /// The tree's size.
    pub size: u64,
    /// Its root.
    pub root: Hash,
    /// When (seconds since 1970).
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
    /// Of logs that are not witnessed now: they may be again.
    others: Vec<String>,
    _lock: Lock,
}

/// One log.
#[derive(Default)]
pub(super) struct Log(Mutex<Latest>);

#[derive(Default)]
struct Latest {
    cosigned: Option<Cosigned>,
    line: Arc<str>,
    step: u64,
}

impl Memory {
    /// Reads what is in `dir`, for these origins.
    pub(super) fn open(
        path: &Path,
        origins: impl Iterator<Item = String>,
    ) -> Result<Memory, StateError> {
        let exists = path.exists();
        let dir = PrivateDir::open(path)?;
        let lock = dir.lock("lock")?.ok_or_else(|| StateError::InUse(path.to_owned()))?;
        let bytes = dir.read(FILE, MAX_FILE)?;
        let mut known = match bytes {
            Some(bytes) => read(&bytes)
                .map_err(|detail| StateError::Damaged { path: path.join(FILE), detail })?,
            None if exists => return Err(StateError::Missing(path.to_owned())),
            None => {
                tracing::warn!(state = %path.display(), "a new state directory: this witness has cosigned nothing yet");
                HashMap::new()
            }
        };
        let log = |origin: String| {
            let latest = known.remove(&origin).map(|(cosigned, line)| Latest {
                cosigned: Some(cosigned),
                line: line.into(),
                step: 0,
            });
            (origin, Log(Mutex::new(latest.unwrap_or_default())))
        };
        let logs = origins.map(log).collect();
        let others = known.into_values().map(|(_, line)| line).collect();
        let memory = Memory { dir, logs, others, _lock: lock };
        memory.write()?;
        Ok(memory)
    }

    fn write(&self) -> Result<(), FileError> {
        let mut text = format!("{HEADER}\n");
        let lines = self.logs.values().map(|log| log.latest().line.clone());
        lines.filter(|line| !line.is_empty()).for_each(|line| text.push_str(&line));
        self.others.iter().for_each(|line| text.push_str(line));
        let sum = Hash::of(text.as_bytes());
        text.push_str(&format!("sha256 {sum}\n"));
        self.dir.write(FILE, text.as_bytes())
    }
}

/// What a file says, by origin; each with its line.
fn read(bytes: &[u8]) -> Result<HashMap<String, (Cosigned, String)>, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not text")?;
    let end = text.strip_suffix('\n').and_then(|t| t.rfind('\n')).ok_or("it was cut")?;
    let (body, last) = text.split_at(end + 1);
    let sum = last.trim_end().strip_prefix("sha256 ").and_then(Hash::from_base64);
    if sum != Some(Hash::of(body.as_bytes())) {
        return Err("its checksum does not fit: it was cut or altered".into());
    }
    let lines = body.strip_prefix(HEADER).and_then(|b| b.strip_prefix('\n'));
    let mut known = HashMap::new();
    for line in lines.ok_or("it is of another version")?.split_inclusive('\n') {
        let Line { time, note } = serde_json::from_str(line).map_err(|e| e.to_string())?;
        let signed = SignedCheckpoint::parse(&note).map_err(|e| e.to_string())?;
        let checkpoint = signed.unverified();
        let (size, root) = (checkpoint.size, checkpoint.root);
        let cosigned = Cosigned { size, root, time, note: note.into_owned() };
        if known.insert(checkpoint.origin.clone(), (cosigned, line.to_owned())).is_some() {
            return Err("a log stands there twice".into());
        }
    }
    Ok(known)
}

impl Log {
    fn latest(&self) -> MutexGuard<'_, Latest> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was cosigned last, or is about to be.
    pub(super) fn last(&self) -> Option<Cosigned> {
        self.latest().cosigned.clone()
    }

    /// Moves to what `next` makes of the last state; returns what has to be [`Committer::durable`] before it is signed.
    pub(super) fn step<E>(
        &self,
        committer: &Committer,
        next: impl FnOnce(Option<&Cosigned>) -> Result<Cosigned, E>,
    ) -> Result<u64, (E, Option<Cosigned>)> {
        let mut latest = self.latest();
        let cosigned = match next(latest.cosigned.as_ref()) {
            Ok(cosigned) => cosigned,
            Err(refused) => return Err((refused, latest.cosigned.clone())),
        };
        let same = latest
            .cosigned
            .as_ref()
            .is_some_and(|c| (c.size, c.root) == (cosigned.size, cosigned.root));
        if !same {
            let line = Line { time: cosigned.time, note: cosigned.note.as_str().into() };
            let line = serde_json::to_string(&line).expect("a number and a text are JSON");
            latest.line = format!("{line}\n").into();
            latest.step = committer.shared.steps.fetch_add(1, Ordering::SeqCst) + 1;
        }
        latest.cosigned = Some(cosigned);
        Ok(latest.step)
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
    /// The number of steps that were taken.
    steps: AtomicU64,
    wanted: Mutex<Wanted>,
    wake: Condvar,
}

#[derive(Default)]
struct Wanted {
    /// The number of writes that were asked for.
    writes: u64,
    ended: bool,
}

/// What the thread has done.
#[derive(Clone, Copy, Default)]
struct Written {
    /// All steps up to this one are on the disk.
    durable: u64,
    /// Every write that was asked for up to this one has been tried.
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

    /// Waits until a step is on the disk; `false` if it was tried in vain. Whoever asks again has it tried again.
    pub(super) async fn durable(&self, step: u64) -> bool {
        let mut written = self.written.clone();
        if written.borrow().durable >= step {
            return true;
        }
        let ticket = {
            let mut wanted = self.shared.wanted();
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
        self.shared.wanted().ended = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn wanted(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, done: &watch::Sender<Written>) {
        let mut now = Written::default();
        loop {
            let idle = |w: &mut Wanted| w.writes == now.tried && !w.ended;
            let wanted = self.wake.wait_while(self.wanted(), idle);
            let (writes, ended) = {
                let wanted = wanted.unwrap_or_else(PoisonError::into_inner);
                (wanted.writes, wanted.ended)
            };
            if ended && writes == now.tried {
                return;
            }
            // Each step up to here was taken under its log's lock, which the write takes, too.
            let steps = self.steps.load(Ordering::SeqCst);
            match self.memory.write() {
                Ok(()) => now.durable = steps,
                Err(error) => tracing::error!(
                    error = crate::daemon::chain(&error),
                    "what was to be cosigned cannot be kept: nothing new is cosigned until it can"
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
    fn what_was_not_written_so_is_not_read() {
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
