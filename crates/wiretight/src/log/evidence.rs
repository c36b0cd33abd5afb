//! Stores evidence when a log seems to have forked: what the log had signed before, and what it is claimed to have signed
//! now. Anyone with the log's public key can check it.
//!
//! The number and size of files are limited, as anyone can send a bad proof with a valid checkpoint. Each log and each
//! kind of evidence has its own share. When a share is full, its first half stays forever, and the oldest file of the rest
//! is removed. So new evidence is always kept, and no amount of it can displace the first files.

use std::collections::{HashSet, VecDeque};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use wiretight_tlog::{Checkpoint, Hash};

use crate::private_dir::{FileError, PrivateDir};

/// The most files of each kind and log.
pub const MAX_FILES: usize = 64;
/// The most files in total.
pub const MAX_ALL: usize = 4096;
/// Checkpoints that are remembered after their file was removed, so that they are not written again.
const REMEMBERED: usize = 65_536;

/// What the evidence shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Two different signed trees of the same size: a proven fork.
    Fork,
    /// A signed tree with an invalid consistency proof.
    NotProved,
    /// A signed tree that is smaller than an earlier one.
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
    /// Files, oldest first.
    files: Vec<Kept>,
    /// Kinds and checkpoints that were stored; `order` has the latest last.
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
        // Version 0.1.0 wrote no log into the name.
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

    /// The file to remove before another one of this share is added, if any.
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
        // Remove a file of the largest share.
        let mut counts = std::collections::HashMap::<&str, usize>::new();
        self.files.iter().for_each(|f| *counts.entry(&f.share).or_default() += 1);
        let (largest, _) = counts.into_iter().max_by_key(|(_, count)| *count)?;
        let largest = of(largest);
        largest.get(largest.len() / 2).copied()
    }
}

impl Evidence {
    /// Opens the directory, and creates it if it does not exist.
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

    /// Stores what the log had signed `before` and what came `after`, at `now` (seconds since 1970); `None` if this
    /// checkpoint was stored already.
    pub fn keep(
        &self,
        kind: Kind,
        checkpoint: &Checkpoint,
        before: &str,
        after: &[u8],
        now: u64,
    ) -> Result<Option<PathBuf>, FileError> {
        let file = Kept::new(now, kind, checkpoint);
        let mut known = self.known.lock();
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

    /// The number of files.
    pub fn count(&self) -> usize {
        self.known.lock().files.len()
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
    fn new_evidence_is_always_kept_and_the_first_files_stay() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("evidence");
        let evidence = Evidence::open(&dir).unwrap();
        let keep = |evidence: &Evidence, kind, origin: &str, size: u64| {
            evidence.keep(kind, &checkpoint(origin, size), "before", b"after", 1000 + size).unwrap()
        };
        let first = keep(&evidence, Kind::NotProved, "a", 0).unwrap();
        for size in 1..200 {
            let file = keep(&evidence, Kind::NotProved, "a", size).expect("new evidence is kept");
            assert!(file.exists());
        }
        assert!(first.exists(), "the first file stays");
        assert_eq!(evidence.count(), MAX_FILES);
        assert!(keep(&evidence, Kind::NotProved, "a", 0).is_none());
        assert!(
            keep(&evidence, Kind::NotProved, "a", 40).is_none(),
            "a removed file is not written again"
        );
        // Other logs and more serious kinds have their own shares.
        assert!(keep(&evidence, Kind::NotProved, "b", 7).unwrap().exists());
        assert!(keep(&evidence, Kind::Fork, "a", 7).unwrap().exists());
        assert_eq!(evidence.count(), MAX_FILES + 2);
        // A restart finds the files again, including those of version 0.1.0.
        std::fs::write(dir.join("5-not-proved-0011223344556677.txt"), "old").unwrap();
        drop(evidence);
        let evidence = Evidence::open(&dir).unwrap();
        assert_eq!(evidence.count(), MAX_FILES + 3);
        assert!(keep(&evidence, Kind::NotProved, "a", 0).is_none());
        assert!(keep(&evidence, Kind::NotProved, "a", 1000).unwrap().exists());
        assert_eq!(evidence.count(), MAX_FILES + 3);
    }

    #[test]
    fn one_log_cannot_use_up_the_space_of_others() {
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
        let gives = all.surplus("fork-new").expect("the directory is full");
        assert_ne!(all.files[gives].share, "fork-lonely");
        assert_eq!(all.files[gives].name, "16", "from the middle");
    }
}
