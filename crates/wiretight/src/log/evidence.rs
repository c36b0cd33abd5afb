//! What is kept when a log seems to have forked: what the log had signed before, and what it was said to have signed
//! now. Anybody can judge it with the log's public key.
//!
//! Files are few and of bounded size, for anybody can send a bad proof with a good checkpoint. Room is shared out by log
//! and by how much a file proves, and what is full makes room: the first half of a share stays for good, of the rest the
//! oldest goes. So whatever was sent before, what comes now is kept; and however much is sent afterwards, what came first
//! stays.

use std::collections::{HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use wiretight_tlog::{Checkpoint, Hash};

use crate::private_dir::{FileError, PrivateDir};

/// The most files of each kind and log.
pub const MAX_FILES: usize = 64;
/// The most files in all.
pub const MAX_ALL: usize = 4096;
/// Checkpoints that are remembered when their file has gone, so that the same ones are not written again and again.
const REMEMBERED: usize = 65_536;

/// How much it proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Two signed trees of one size: a fork, proved.
    Fork,
    /// A signed tree with a proof that does not hold.
    NotProved,
    /// A signed tree that is smaller than one before.
    Rollback,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Kind::Fork => "fork",
            Kind::NotProved => "not-proved",
            Kind::Rollback => "rollback",
        }
    }
}

/// A directory of evidence.
pub struct Evidence {
    dir: PrivateDir,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// Oldest first.
    files: Vec<Kept>,
    /// Kinds and checkpoints that were kept, the latest last.
    seen: HashSet<String>,
    order: VecDeque<String>,
}

/// A file: `TIME-KIND-LOG-CHECKPOINT.txt`.
struct Kept {
    name: String,
    /// `KIND-LOG`.
    share: String,
    /// `KIND-CHECKPOINT`.
    what: String,
}

impl Kept {
    fn new(now: u64, kind: Kind, checkpoint: &Checkpoint) -> Kept {
        let short =
            |text: &str| wiretight_keys::token::hex(&Hash::of(text.as_bytes()).as_bytes()[..8]);
        let (word, log) = (kind.word(), short(&checkpoint.origin));
        let which = short(&checkpoint.to_string());
        Kept {
            name: format!("{now}-{word}-{log}-{which}.txt"),
            share: format!("{word}-{log}"),
            what: format!("{word}-{which}"),
        }
    }

    fn read(name: String) -> Option<(u64, Kept)> {
        let (time, rest) = name.strip_suffix(".txt")?.split_once('-')?;
        let (share, which) = rest.rsplit_once('-')?;
        let share = share.to_owned();
        // Version 0.1.0 wrote no log.
        let word = [Kind::Fork, Kind::NotProved, Kind::Rollback].map(Kind::word);
        let word = word.into_iter().find(|word| share.starts_with(word))?;
        let what = format!("{word}-{which}");
        Some((time.parse().ok()?, Kept { name, share, what }))
    }
}

impl Known {
    fn remember(&mut self, what: String) {
        if self.order.len() >= REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        self.seen.insert(what.clone());
        self.order.push_back(what);
    }

    /// Which file makes room for another one of this share, if one has to.
    fn surplus(&self, share: &str) -> Option<usize> {
        let of = |share: &str| -> Vec<usize> {
            let files = self.files.iter().enumerate();
            files.filter(|(_, f)| f.share == share).map(|(place, _)| place).collect()
        };
        let own = of(share);
        if own.len() >= MAX_FILES {
            return Some(own[MAX_FILES / 2]);
        }
        if self.files.len() < MAX_ALL {
            return None;
        }
        // The share that has the most gives.
        let mut counts = std::collections::HashMap::<&str, usize>::new();
        self.files.iter().for_each(|f| *counts.entry(&f.share).or_default() += 1);
        let (largest, _) = counts.into_iter().max_by_key(|(_, count)| *count)?;
        let largest = of(largest);
        largest.get(largest.len() / 2).copied()
    }
}

impl Evidence {
    /// Opens the directory, and makes it if it is not there.
    pub fn open(dir: &Path) -> Result<Evidence, FileError> {
        let dir = PrivateDir::open(dir)?;
        let mut files: Vec<(u64, Kept)> = dir.names()?.into_iter().filter_map(Kept::read).collect();
        files.sort_by_key(|(time, _)| *time);
        let mut known = Known::default();
        for (_, file) in files {
            known.remember(file.what.clone());
            known.files.push(file);
        }
        Ok(Evidence { dir, known: Mutex::new(known) })
    }

    /// Keeps what the log had signed `before`, and what came `after`, at `now` (seconds since 1970); `None` if this
    /// checkpoint was kept already.
    pub fn keep(
        &self,
        kind: Kind,
        checkpoint: &Checkpoint,
        before: &str,
        after: &[u8],
        now: u64,
    ) -> Result<Option<PathBuf>, FileError> {
        let file = Kept::new(now, kind, checkpoint);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.seen.contains(&file.what) {
            return Ok(None);
        }
        let bytes = [b"== before\n", before.as_bytes(), b"\n== now\n", after].concat();
        if let Some(place) = known.surplus(&file.share) {
            self.dir.remove(&known.files[place].name)?;
            known.files.remove(place);
        }
        self.dir.write(&file.name, &bytes)?;
        let path = self.dir.path().join(&file.name);
        known.remember(file.what.clone());
        known.files.push(file);
        Ok(Some(path))
    }

    /// How many files there are.
    pub fn count(&self) -> usize {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).files.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(origin: &str, size: u64) -> Checkpoint {
        let root = Hash::leaf(&size.to_be_bytes());
        Checkpoint { origin: origin.into(), size, root, extensions: Vec::new() }
    }

    #[test]
    fn what_comes_late_is_kept_and_what_came_first_stays() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("evidence");
        let evidence = Evidence::open(&dir).unwrap();
        let keep = |evidence: &Evidence, kind, origin: &str, size: u64| {
            evidence.keep(kind, &checkpoint(origin, size), "before", b"after", 1000 + size).unwrap()
        };
        let first = keep(&evidence, Kind::NotProved, "a", 0).unwrap();
        for size in 1..200 {
            let file = keep(&evidence, Kind::NotProved, "a", size).expect("it is kept");
            assert!(file.exists());
        }
        assert!(first.exists(), "what came first stays");
        assert_eq!(evidence.count(), MAX_FILES);
        assert!(keep(&evidence, Kind::NotProved, "a", 0).is_none());
        assert!(keep(&evidence, Kind::NotProved, "a", 40).is_none(), "nor what has made room");
        // Neither another log nor a graver kind is short of room for it.
        assert!(keep(&evidence, Kind::NotProved, "b", 7).unwrap().exists());
        assert!(keep(&evidence, Kind::Fork, "a", 7).unwrap().exists());
        assert_eq!(evidence.count(), MAX_FILES + 2);
        // A start finds them again, those of version 0.1.0 too.
        std::fs::write(dir.join("5-not-proved-0011223344556677.txt"), "old").unwrap();
        drop(evidence);
        let evidence = Evidence::open(&dir).unwrap();
        assert_eq!(evidence.count(), MAX_FILES + 3);
        assert!(keep(&evidence, Kind::NotProved, "a", 0).is_none());
        assert!(keep(&evidence, Kind::NotProved, "a", 1000).unwrap().exists());
        assert_eq!(evidence.count(), MAX_FILES + 3);
    }

    #[test]
    fn one_log_does_not_use_up_the_room_of_all() {
        let known = |share: &str, n: usize| Kept {
            name: format!("{n}"),
            share: share.into(),
            what: format!("{share}-{n}"),
        };
        let mut all = Known::default();
        for log in 0..MAX_ALL / 32 {
            all.files.extend((0..32).map(|n| known(&format!("fork-{log}"), n)));
        }
        all.files.truncate(MAX_ALL - 1);
        all.files.push(known("fork-lonely", 0));
        let gives = all.surplus("fork-new").expect("it is full");
        assert_ne!(all.files[gives].share, "fork-lonely");
        assert_eq!(all.files[gives].name, "16", "from the middle");
    }
}
