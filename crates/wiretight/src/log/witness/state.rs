//! What a witness remembers: of each log, the checkpoint that it cosigned last.
//!
//! It is one small file, which is written whole, with a checksum, and takes its name by rename: it holds what it held
//! or what was written, never a mixture. So a file that does not fit its checksum was damaged, and the witness does not
//! start: to begin anew would be to forget what it has vouched for. For the same reason the file must be there (a disk
//! may not be mounted, a directory may have been deleted); it is made only when the operator says that the witness is
//! new ([`Start::New`]).
//!
//! A log takes one step at a time: the next one waits until the last is on the disk and cosigned, or has failed. A
//! thread writes the state of all logs, again and again while there are steps that the file lacks; so the steps of other
//! logs that come during one write share the next.

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
    /// No state.
    #[error(
        "{} holds no state of a witness. Probable cause: its disk is not mounted, or it was deleted. A witness that forgot what it cosigned must not run under its key again: it could cosign a fork. Mount or recover the directory. If this key has never cosigned anything, start once with --new",
        .0.display()
    )]
    Missing(PathBuf),
    /// State where there should be none.
    #[error(
        "{} holds the state of a witness that has run before. --new is for the very first start: run without it (and keep it out of the service file, or a lost disk would go unnoticed)",
        .0.display()
    )]
    NotNew(PathBuf),
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

/// Whether there has to be a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// The very first start of this witness: there must be none.
    New,
    /// Any other: it must be there.
    Known,
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
pub(super) struct Log {
    /// Held during a step.
    turn: tokio::sync::Mutex<()>,
    latest: Mutex<Latest>,
}

#[derive(Default)]
struct Latest {
    /// What was cosigned last. It is on the disk.
    cosigned: Option<Cosigned>,
    /// What the file says of it.
    line: Arc<str>,
    /// What the file says next, while a step is on its way there.
    next: Option<Arc<str>>,
    /// The checkpoint with the cosignatures that were given for it.
    shown: Option<Arc<str>>,
}

/// Why a log takes no step.
pub(super) enum Refused<E> {
    /// It may not; and what was cosigned last.
    Not(E, Option<Cosigned>),
    /// The disk does not keep it.
    Disk,
}

impl Memory {
    /// Reads what is in `dir`, for these origins.
    pub(super) fn open(
        path: &Path,
        start: Start,
        origins: impl Iterator<Item = String>,
    ) -> Result<Memory, StateError> {
        // Nothing is made where a disk may be missing.
        let there = path.join(FILE).try_exists().map_err(|source| FileError {
            doing: "look for",
            path: path.join(FILE),
            source,
        })?;
        if start == Start::Known && !there {
            return Err(StateError::Missing(path.to_owned()));
        }
        let dir = PrivateDir::open(path)?;
        let lock = dir.lock("lock")?.ok_or_else(|| StateError::InUse(path.to_owned()))?;
        let bytes = dir.read(FILE, MAX_FILE)?;
        // Evidence of a fork is written by a witness that has run.
        let has_run = bytes.is_some() || path.join("evidence").exists();
        let mut known = match (bytes, start) {
            (_, Start::New) if has_run => return Err(StateError::NotNew(path.to_owned())),
            (Some(bytes), _) => read(&bytes)
                .map_err(|detail| StateError::Damaged { path: path.join(FILE), detail })?,
            (None, Start::Known) => return Err(StateError::Missing(path.to_owned())),
            (None, Start::New) => {
                tracing::warn!(state = %path.display(), "a new witness: it has cosigned nothing yet. Start it without --new from now on");
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
            let latest = log.latest();
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
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was cosigned last.
    pub(super) fn last(&self) -> Option<Cosigned> {
        self.latest().cosigned.clone()
    }

    /// The checkpoint that was cosigned last, with the cosignatures that were given; `make` adds them after a start.
    pub(super) fn shown(&self, make: impl FnOnce(&Cosigned) -> Option<String>) -> Option<Arc<str>> {
        let mut latest = self.latest();
        if latest.shown.is_none() {
            latest.shown = make(latest.cosigned.as_ref()?).map(Arc::from);
        }
        latest.shown.clone()
    }

    /// Remembers the checkpoint with its cosignatures, if it is the one that was cosigned last.
    pub(super) fn show(&self, of: (u64, Hash), checkpoint: String) {
        let mut latest = self.latest();
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

    /// Moves a log to what `next` makes of what was cosigned last, and to the disk. When this returns `Ok` it may be
    /// signed. Dropped before, it has not happened: what is on the disk by then was never signed.
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
            log.latest().cosigned = Some(cosigned);
            return Ok(());
        }
        let line = Line { time: cosigned.time, note: cosigned.note.as_str().into() };
        let line = serde_json::to_string(&line).expect("a number and a text are JSON");
        let line: Arc<str> = format!("{line}\n").into();
        let step = {
            let mut latest = log.latest();
            latest.next = Some(line.clone());
            self.shared.steps.fetch_add(1, Ordering::SeqCst) + 1
        };
        let durable = self.durable(step).await;
        let mut latest = log.latest();
        latest.next = None;
        if !durable {
            return Err(Refused::Disk);
        }
        *latest = Latest { cosigned: Some(cosigned), line, ..Latest::default() };
        Ok(())
    }

    /// Waits until a step is on the disk; `false` if it was tried in vain.
    async fn durable(&self, step: u64) -> bool {
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
            // The line of each step up to here was set before the step was counted, and the write reads it afterwards.
            let steps = self.steps.load(Ordering::SeqCst);
            match self.memory.write() {
                Ok(()) => now.durable = steps,
                Err(error) => tracing::error!(
                    error = crate::logging::chain(&error),
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
