//! The right edge of a log's tree: what is needed to append to the tree and to check each of its tiles.

use std::collections::HashMap;

use wiretight_tlog::tile::{self, Kind, MAX_BUNDLE, Tile, WIDTH};
use wiretight_tlog::tree::Node;
use wiretight_tlog::{Checkpoint, Frontier, Hash, TreeError};

use super::sequencer::{LogError, failed, max_len};
use super::storage::{Object, Storage};

/// The right edge, in memory.
#[derive(Debug, Clone, Default)]
pub struct Edge {
    frontier: Frontier,
    /// The last tile of each level if it is partial, by level.
    levels: Vec<Vec<Hash>>,
    /// The last bundle if it is partial.
    bundle: Vec<u8>,
}

impl Edge {
    /// The number of the tree's entries.
    pub fn size(&self) -> u64 {
        self.frontier.size()
    }

    pub fn root(&self) -> Hash {
        self.frontier.root()
    }

    /// The hashes of each level's last tile if it is partial; empty where the level ends with a full tile.
    pub fn levels(&self) -> &[Vec<Hash>] {
        &self.levels
    }

    /// Reads the edge of a checkpoint's tree and checks it against the checkpoint.
    pub async fn read(checkpoint: &Checkpoint, storage: &dyn Storage) -> Result<Edge, LogError> {
        let Checkpoint { size, root, .. } = *checkpoint;
        let place = storage.place();
        let bad = |path: &str, what: &str| {
            LogError::Refused(format!(
                "{place}/{path} {what}. It was damaged, lost, or replaced by an older version: restore the newest version, for example from a mirror of the log"
            ))
        };
        let (mut levels, mut bundle) = (Vec::new(), Vec::new());
        for level in 0.. {
            let kind = Kind::Hashes { level };
            // The position after the last full tile; it is empty if the level ends with a full tile.
            let width = size.checked_shr(u32::from(level) * 8).unwrap_or(0);
            if width == 0 {
                break;
            }
            let Some(tile) = Tile::of_tree(kind, width / WIDTH, size) else {
                levels.push(Vec::new());
                continue;
            };
            let path = tile.path();
            let bytes = storage.get(&path, max_len(tile)).await.map_err(|e| failed(storage, e))?;
            let bytes = bytes.ok_or_else(|| bad(&path, "is missing"))?;
            levels.push(tile.hashes(&bytes).map_err(|e| bad(&path, &e.to_string()))?);
        }
        let last = |n: Node| {
            let (tile, range) = Tile::of_node(n, size).ok_or(TreeError::OutOfRange)?;
            let Kind::Hashes { level } = tile.kind else { return Err(TreeError::OutOfRange) };
            let hashes =
                levels.get(usize::from(level)).and_then(|hashes: &Vec<_>| hashes.get(range));
            hashes.and_then(tile::subtree).ok_or(TreeError::OutOfRange)
        };
        let frontier = Frontier::read(size, last);
        if !frontier.as_ref().is_ok_and(|f| f.root() == root) {
            let edges = (0..).map_while(|level: u8| {
                let hashes = size.checked_shr(u32::from(level) * 8).filter(|hashes| *hashes > 0)?;
                Some(Tile::of_tree(Kind::Hashes { level }, hashes / WIDTH, size))
            });
            let edges: Vec<_> = edges.flatten().map(Tile::path).collect();
            let what = format!(
                "(at least one of them) has the wrong content: the {size} entries of the log that ends with these files do not hash to the signed root"
            );
            return Err(bad(&edges.join(", "), &what));
        }
        if let Some(tile) = Tile::of_tree(Kind::Entries, size / WIDTH, size) {
            let path = tile.path();
            let bytes = storage.get(&path, MAX_BUNDLE).await.map_err(|e| failed(storage, e))?;
            bundle = bytes.ok_or_else(|| bad(&path, "is missing"))?;
            let entries = tile.entries(&bundle).map_err(|e| bad(&path, &e.to_string()))?;
            if !entries.iter().map(|e| Hash::leaf(e)).eq(levels[0].iter().copied()) {
                return Err(bad(&path, "contains other entries than were signed"));
            }
        }
        Ok(Edge { frontier: frontier.unwrap_or_default(), levels, bundle })
    }

    /// Appends entries in memory. Returns the objects to write, and the nodes that proofs are computed from.
    pub fn append(&mut self, entries: &[Vec<u8>]) -> (Vec<Object>, HashMap<Node, Hash>) {
        let mut nodes: HashMap<_, _> = self.frontier.peaks().collect();
        let mut objects = Vec::new();
        let old = self.size();
        for entry in entries {
            let index = self.size();
            let pushed = tile::push_entry(&mut self.bundle, entry);
            debug_assert!(pushed.is_ok(), "longer entries were refused before");
            if (index + 1).is_multiple_of(WIDTH) {
                let full = Tile { kind: Kind::Entries, index: index / WIDTH, width: WIDTH as u16 };
                objects.push((full.path(), std::mem::take(&mut self.bundle)));
            }
            let levels = &mut self.levels;
            self.frontier.append(Hash::leaf(entry), |node, hash| {
                nodes.insert(node, hash);
                if node.level % 8 != 0 {
                    return;
                }
                let level = node.level / 8;
                if levels.len() <= usize::from(level) {
                    levels.push(Vec::new());
                }
                let edge = &mut levels[usize::from(level)];
                edge.push(hash);
                if edge.len() as u64 == WIDTH {
                    let kind = Kind::Hashes { level };
                    let full = Tile { kind, index: node.index / WIDTH, width: WIDTH as u16 };
                    objects.push((full.path(), bytes_of(edge)));
                    edge.clear();
                }
            });
        }
        let partial = Tile::of_growth(old, self.size()).filter(|tile| !tile.is_full());
        objects.extend(partial.map(|tile| match tile.kind {
            Kind::Entries => (tile.path(), self.bundle.clone()),
            Kind::Hashes { level } => (tile.path(), bytes_of(&self.levels[usize::from(level)])),
        }));
        (objects, nodes)
    }
}

/// The bytes of a tile of hashes.
pub fn bytes_of(hashes: &[Hash]) -> Vec<u8> {
    hashes.iter().flat_map(|hash| *hash.as_bytes()).collect()
}
