//! Reads a log's tiles and bundles, and passes on none that is not what was signed.
//!
//! The right edge of the tree is in memory ([`Edge`]), and every full tile is one hash of the tile above it, up to that
//! edge. So each file can be checked on its own: whatever is lost or altered is never served, and no proof is made from
//! it. A start reads the edge alone; the rest is read in the background, at a bounded pace, and again each day.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::{Instant, sleep};
use wiretight_proxy::clock::now;
use wiretight_tlog::Hash;
use wiretight_tlog::tile::{self, Kind, Tile, WIDTH};

use super::edge::{Edge, bytes_of};
use super::sequencer::max_len;
use super::storage::{Object, Storage};

/// Full tiles of hashes that are kept in memory: 8 MB.
const KEPT: usize = 1024;
/// The most damaged files that are named; more are found again when these are restored.
const NAMED: usize = 64;
/// Bytes a second that the background check reads.
const PACE: f64 = (32 << 20) as f64;
/// Between the end of one background check and the start of the next.
const AGAIN: Duration = Duration::from_secs(86_400);
/// What is damaged is looked at again this often.
const LOOK: Duration = Duration::from_secs(60);
/// While something is damaged, the alarm is repeated this often.
const REPEAT: Duration = Duration::from_secs(3600);

/// A storage whose files are checked as they are read. What it writes is not.
pub struct Guard {
    storage: Arc<dyn Storage>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    tree: Arc<Tree>,
    /// Full tiles of hashes that were verified, by level and index: they never change.
    kept: HashMap<(u8, u64), Arc<[Hash]>>,
    damaged: BTreeMap<Tile, &'static str>,
    verified: Option<(u64, u64)>,
}

/// What is known of the tree without a file.
#[derive(Default)]
struct Tree {
    size: u64,
    levels: Vec<Vec<Hash>>,
}

/// Why a file is not passed on.
enum Unread {
    /// It could not be read.
    Failed(io::Error),
    /// It is not what was signed.
    Damaged(Tile, &'static str),
}

impl Guard {
    /// Nothing passes until [`Guard::grow`] has told the tree.
    pub fn new(storage: Arc<dyn Storage>) -> Guard {
        Guard { storage, state: Mutex::default() }
    }

    /// The tree is this one now.
    pub fn grow(&self, edge: &Edge) {
        let levels = edge.levels().to_vec();
        self.state().tree = Arc::new(Tree { size: edge.size(), levels });
    }

    /// How many entries the last background check has read, and when it was finished.
    pub fn verified(&self) -> Option<(u64, u64)> {
        self.state().verified
    }

    /// The files that are damaged or missing.
    pub fn damaged(&self) -> Vec<String> {
        self.state().damaged.iter().map(|(tile, why)| format!("{tile} {why}")).collect()
    }

    /// Checks all that is full, in the background, for as long as it is polled.
    pub async fn watch(self: Arc<Self>) {
        loop {
            let (size, mut read, begun) = (self.state().tree.size, 0.0, Instant::now());
            let full = Tile::of_growth(0, size).filter(|tile| tile.is_full());
            for tile in full {
                read += self.look(tile).await as f64;
                let ahead = Duration::from_secs_f64(read / PACE).saturating_sub(begun.elapsed());
                if ahead > Duration::from_millis(50) {
                    sleep(ahead).await;
                }
            }
            self.state().verified = Some((size, now()));
            self.wait().await;
        }
    }

    /// Until the next background check: looks again at what is damaged, and repeats the alarm.
    async fn wait(&self) {
        let (end, mut told) = (Instant::now() + AGAIN, Instant::now());
        while Instant::now() < end {
            sleep(LOOK).await;
            let damaged: Vec<Tile> = self.state().damaged.keys().copied().collect();
            for tile in damaged {
                match tile.is_full() {
                    true => drop(self.look(tile).await),
                    false => drop(self.verified_file(&tile.path()).await),
                }
            }
            let left = self.damaged();
            if !left.is_empty() && told.elapsed() >= REPEAT {
                told = Instant::now();
                tracing::error!(
                    "ALARM: {} files of the log in {} are still damaged: {}",
                    left.len(),
                    self.storage.place(),
                    left.join(", ")
                );
            }
        }
    }

    /// Reads and checks a full tile, again and again while it cannot be read; returns its length.
    async fn look(&self, tile: Tile) -> usize {
        loop {
            match self.full(&self.tree(), tile).await {
                Ok(bytes) => return bytes.len(),
                Err(Unread::Damaged(..)) => return 0,
                Err(Unread::Failed(error)) => {
                    tracing::warn!("the log's files cannot be checked: {tile}: {error}");
                    sleep(LOOK).await;
                }
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tree(&self) -> Arc<Tree> {
        self.state().tree.clone()
    }

    /// A full tile or bundle, verified.
    async fn full(&self, tree: &Tree, tile: Tile) -> Result<Vec<u8>, Unread> {
        let expected = self.expected(tree, tile).await?;
        self.read(tile, expected).await
    }

    /// The hash that the tile above says of a full tile or bundle.
    async fn expected(&self, tree: &Tree, tile: Tile) -> Result<Hash, Unread> {
        let (mut level, mut index) = match tile.kind {
            Kind::Entries => (1, tile.index),
            Kind::Hashes { level } => (level + 1, tile.index),
        };
        // Up to a tile that is known, and down again.
        let mut path = Vec::new();
        let mut hashes = loop {
            let place = place(index);
            index /= WIDTH;
            path.push((level, index, place));
            if let Some(known) = self.known(tree, level, index) {
                break known;
            }
            if usize::from(level) >= tree.levels.len() {
                return Err(Unread::Failed(io::Error::other("it is not in the tree")));
            }
            level += 1;
        };
        loop {
            let (level, index, place) = path.pop().expect("it began with one");
            let Some(hash) = hashes.get(place).copied() else {
                return Err(Unread::Failed(io::Error::other("it is not in the tree")));
            };
            let Some((below, next, _)) = path.last().copied() else { return Ok(hash) };
            debug_assert!(below + 1 == level && next / WIDTH == index);
            let tile = Tile { kind: Kind::Hashes { level: below }, index: next, width: FULL };
            let bytes = self.read(tile, hash).await?;
            hashes = tile.hashes(&bytes).unwrap_or_default().into();
        }
    }

    /// A tile of hashes that is in memory.
    fn known(&self, tree: &Tree, level: u8, index: u64) -> Option<Arc<[Hash]>> {
        let edge = tree.levels.get(usize::from(level)).filter(|hashes| !hashes.is_empty());
        if let Some(hashes) = edge
            && Tile::of_tree(Kind::Hashes { level }, index, tree.size).is_some_and(|t| !t.is_full())
        {
            return Some(hashes.as_slice().into());
        }
        self.state().kept.get(&(level, index)).cloned()
    }

    /// Reads a full tile or bundle, which has to have this hash.
    async fn read(&self, tile: Tile, expected: Hash) -> Result<Vec<u8>, Unread> {
        let read = self.storage.get(&tile.path(), max_len(tile)).await.map_err(Unread::Failed)?;
        let checked = match read {
            None => Err("is missing"),
            Some(bytes) => match hash_of(tile, &bytes) {
                Some(hash) if hash == expected => Ok(bytes),
                _ => Err("is not what was signed"),
            },
        };
        match checked {
            Ok(bytes) => {
                let mut state = self.state();
                if state.damaged.remove(&tile).is_some() {
                    tracing::info!("{tile} of the log is restored");
                }
                if let Kind::Hashes { level } = tile.kind {
                    if state.kept.len() >= KEPT {
                        state.kept.clear();
                    }
                    let hashes = tile.hashes(&bytes).unwrap_or_default();
                    state.kept.insert((level, tile.index), hashes.into());
                }
                Ok(bytes)
            }
            Err(why) => {
                self.found(tile, why);
                Err(Unread::Damaged(tile, why))
            }
        }
    }

    fn found(&self, tile: Tile, why: &'static str) {
        let mut state = self.state();
        let room = state.damaged.len() < NAMED;
        if room && state.damaged.insert(tile, why).is_none() {
            tracing::error!(
                "ALARM: {tile} of the log in {} {why}. It is not served, so monitors cannot read it, and proofs that need it cannot be made. Restore it from a copy of the log (`wiretight verify URL --mirror DIR` keeps one)",
                self.storage.place()
            );
        }
    }

    /// A file of the tree, verified; `None` if the tree has none there, or if it is a partial one that need not be there
    /// any more.
    async fn verified_file(&self, path: &str) -> Result<Option<Vec<u8>>, Unread> {
        let tree = self.tree();
        let covered = |tile: &Tile| {
            let whole = Tile::of_tree(tile.kind, tile.index, tree.size)?;
            (tile.width <= whole.width).then_some(whole)
        };
        let Some((tile, whole)) = Tile::parse(path).and_then(|t| Some((t, covered(&t)?))) else {
            return Ok(None);
        };
        if tile.is_full() {
            return self.full(&tree, tile).await.map(Some);
        }
        let read = self.storage.get(path, max_len(tile)).await.map_err(Unread::Failed)?;
        let Some(bytes) = read else {
            if tile == whole {
                self.found(tile, "is missing");
                return Err(Unread::Damaged(tile, "is missing"));
            }
            self.state().damaged.remove(&tile); // a full one has taken its place
            return Ok(None);
        };
        let level = match tile.kind {
            Kind::Entries => 0,
            Kind::Hashes { level } => level,
        };
        let hashes = match self.known(&tree, level, tile.index) {
            Some(hashes) => hashes,
            None => {
                let full = Tile { kind: Kind::Hashes { level }, index: tile.index, width: FULL };
                let bytes = self.full(&tree, full).await?;
                full.hashes(&bytes).unwrap_or_default().into()
            }
        };
        let expected = hashes.get(..usize::from(tile.width)).unwrap_or_default();
        let good = match tile.kind {
            Kind::Hashes { .. } => bytes == bytes_of(expected),
            Kind::Entries => tile.entries(&bytes).is_ok_and(|entries| {
                entries.iter().map(|e| Hash::leaf(e)).eq(expected.iter().copied())
            }),
        };
        if !good {
            self.found(tile, "is not what was signed");
            return Err(Unread::Damaged(tile, "is not what was signed"));
        }
        self.state().damaged.remove(&tile);
        Ok(Some(bytes))
    }
}

const FULL: u16 = WIDTH as u16;

fn place(index: u64) -> usize {
    usize::try_from(index % WIDTH).expect("less than 256")
}

/// The hash of a full tile or bundle; `None` if it is none.
fn hash_of(tile: Tile, bytes: &[u8]) -> Option<Hash> {
    let hashes: Vec<Hash> = match tile.kind {
        Kind::Hashes { .. } => tile.hashes(bytes).ok()?,
        Kind::Entries => tile.entries(bytes).ok()?.iter().map(|e| Hash::leaf(e)).collect(),
    };
    tile::subtree(&hashes)
}

#[async_trait]
impl Storage for Guard {
    async fn put(&self, objects: Vec<Object>) -> io::Result<()> {
        self.storage.put(objects).await
    }

    async fn get(&self, path: &str, max: usize) -> io::Result<Option<Vec<u8>>> {
        match self.verified_file(path).await {
            Ok(bytes) if bytes.as_ref().is_some_and(|bytes| bytes.len() > max) => {
                Err(io::Error::other(format!("larger than {max} bytes")))
            }
            Ok(bytes) => Ok(bytes),
            Err(Unread::Failed(error)) => Err(error),
            Err(Unread::Damaged(tile, why)) => {
                Err(io::Error::new(io::ErrorKind::InvalidData, format!("{tile} {why}")))
            }
        }
    }

    async fn delete_all(&self, folder: &str) -> io::Result<()> {
        self.storage.delete_all(folder).await
    }

    fn place(&self) -> String {
        self.storage.place()
    }
}
