//! Reads a log's tiles and bundles and checks that they are what was signed.
//!
//! The right edge of the tree is in memory ([`Edge`]), and the hash of every full tile is in the tile above it, up to that
//! edge. So each file can be checked on its own: altered files are never served or used for proofs. Only the edge is read
//! at a start. The rest is checked in the background at a limited rate, and again each day.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};
use wiretight_proxy::clock::now;
use wiretight_tlog::Hash;
use wiretight_tlog::tile::{self, Kind, Tile, WIDTH};

use super::edge::{Edge, bytes_of};
use super::sequencer::max_len;
use super::storage::{Object, Storage};

/// Full tiles of hashes that are kept in memory: 8 MB.
const KEPT: usize = 1024;
/// The most damaged files that are reported; further ones are reported when these are restored.
const NAMED: usize = 64;
/// The most bytes per second that the background check reads.
const PACE: f64 = (32 << 20) as f64;
/// The time between two background checks.
const AGAIN: Duration = Duration::from_secs(86_400);
/// How often damaged files are checked again.
const LOOK: Duration = Duration::from_secs(60);
/// How often the alarm is repeated while files are damaged.
const REPEAT: Duration = Duration::from_secs(3600);

/// A storage whose files are checked when they are read, not when they are written.
pub struct Guard {
    storage: Arc<dyn Storage>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    tree: Arc<Tree>,
    /// Verified full tiles of hashes, by level and index. They never change.
    kept: HashMap<(u8, u64), Arc<[Hash]>>,
    damaged: BTreeMap<Tile, &'static str>,
    verified: Option<(u64, u64)>,
}

/// The size and edge of the tree.
#[derive(Default)]
struct Tree {
    size: u64,
    levels: Vec<Vec<Hash>>,
}

/// Why a file is not returned.
enum Unread {
    /// Reading it failed.
    Failed(io::Error),
    /// It is missing or not what was signed.
    Damaged(Tile, &'static str),
}

impl Guard {
    /// A guard for an empty tree; [`Guard::grow`] sets the tree.
    pub fn new(storage: Arc<dyn Storage>) -> Guard {
        Guard { storage, state: Mutex::default() }
    }

    /// Sets the current tree.
    pub fn grow(&self, edge: &Edge) {
        let levels = edge.levels().to_vec();
        self.state.lock().tree = Arc::new(Tree { size: edge.size(), levels });
    }

    /// The number of entries that the last background check covered, and when it finished.
    pub fn verified(&self) -> Option<(u64, u64)> {
        self.state.lock().verified
    }

    /// The files that are damaged or missing.
    pub fn damaged(&self) -> Vec<String> {
        self.state.lock().damaged.iter().map(|(tile, why)| format!("{tile} {why}")).collect()
    }

    /// Checks all full tiles, again and again.
    pub async fn watch(self: Arc<Self>) {
        loop {
            let (size, mut read, begun) = (self.state.lock().tree.size, 0.0, Instant::now());
            let full = Tile::of_growth(0, size).filter(|tile| tile.is_full());
            for tile in full {
                read += self.look(tile).await as f64;
                let ahead = Duration::from_secs_f64(read / PACE).saturating_sub(begun.elapsed());
                if ahead > Duration::from_millis(50) {
                    sleep(ahead).await;
                }
            }
            self.state.lock().verified = Some((size, now()));
            self.wait().await;
        }
    }

    /// Waits for the next background check. Meanwhile checks damaged files again, and repeats the alarm.
    async fn wait(&self) {
        let (end, mut told) = (Instant::now() + AGAIN, Instant::now());
        while Instant::now() < end {
            sleep(LOOK).await;
            let damaged: Vec<Tile> = self.state.lock().damaged.keys().copied().collect();
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

    /// Reads and checks a full tile, and retries while reading fails; returns its length.
    async fn look(&self, tile: Tile) -> usize {
        loop {
            match self.full(&self.tree(), tile).await {
                Ok(bytes) => return bytes.len(),
                Err(Unread::Damaged(..)) => return 0,
                Err(Unread::Failed(error)) => {
                    tracing::warn!("cannot check a file of the log: {tile}: {error}");
                    sleep(LOOK).await;
                }
            }
        }
    }

    fn tree(&self) -> Arc<Tree> {
        self.state.lock().tree.clone()
    }

    /// A full tile or bundle, verified.
    async fn full(&self, tree: &Tree, tile: Tile) -> Result<Vec<u8>, Unread> {
        let expected = self.expected(tree, tile).await?;
        self.read(tile, expected).await
    }

    /// The hash of a full tile or bundle according to the tile above it.
    async fn expected(&self, tree: &Tree, tile: Tile) -> Result<Hash, Unread> {
        let (mut level, mut index) = match tile.kind {
            Kind::Entries => (1, tile.index),
            Kind::Hashes { level } => (level + 1, tile.index),
        };
        // Go up to a tile that is in memory, then down again.
        let mut path = Vec::new();
        let mut hashes = loop {
            let place = place(index);
            index /= WIDTH;
            path.push((level, index, place));
            if let Some(known) = self.known(tree, level, index) {
                break known;
            }
            if usize::from(level) >= tree.levels.len() {
                return Err(Unread::Failed(io::Error::other("the tree has no such tile")));
            }
            level += 1;
        };
        loop {
            let (level, index, place) = path.pop().expect("the path is not empty");
            let Some(hash) = hashes.get(place).copied() else {
                return Err(Unread::Failed(io::Error::other("the tree has no such tile")));
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
        self.state.lock().kept.get(&(level, index)).cloned()
    }

    /// Reads a full tile or bundle, which must have this hash.
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
                let mut state = self.state.lock();
                if state.damaged.remove(&tile).is_some() {
                    tracing::info!("{tile} of the log was restored");
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
        let mut state = self.state.lock();
        let room = state.damaged.len() < NAMED;
        if room && state.damaged.insert(tile, why).is_none() {
            tracing::error!(
                "ALARM: {tile} of the log in {} {why}. It is not served, so monitors cannot read it, and proofs that need it cannot be created. Restore it from a copy of the log (`wiretight verify URL --mirror DIR` makes one)",
                self.storage.place()
            );
        }
    }

    /// A file of the tree, verified; `None` if the tree has no such file, or if it is a partial one that is no longer
    /// needed.
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
            self.state.lock().damaged.remove(&tile); // a full tile has replaced it
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
        self.state.lock().damaged.remove(&tile);
        Ok(Some(bytes))
    }
}

const FULL: u16 = WIDTH as u16;

fn place(index: u64) -> usize {
    usize::try_from(index % WIDTH).expect("less than 256")
}

/// The hash of a full tile or bundle; `None` if it is malformed.
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
