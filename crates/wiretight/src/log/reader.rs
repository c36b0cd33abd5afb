//! Reads a log (C2SP tlog-tiles) over HTTP or from a directory, and verifies everything against the root hash of a
//! checkpoint.
//!
//! A [`Tree`] begins with the tiles of the tree's right edge: their hashes give the root, so they are verified at once.
//! Every other tile is full, and its hash is in the tile above it, up to the edge. The hash of an entry is in a tile of
//! level 0. Data that does not match its hash is never returned.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::Instant;
use wiretight_tlog::note::MAX_NOTE;
use wiretight_tlog::tile::{self, Kind, MAX_BUNDLE, Tile, WIDTH};
use wiretight_tlog::tree::{self, Node};
use wiretight_tlog::{
    Checkpoint, Frontier, Hash, NoteError, Policy, Refused, SignedCheckpoint, TreeError, Witnessed,
};

use crate::web::client::{Client, HttpError, Limit, Url};

/// How long the largest file of a log may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a file is requested again while the server reports too many requests.
const BUSY: Duration = Duration::from_secs(120);
/// The first pause between requests to a server that reports too many requests without `Retry-After`.
const FIRST_GAP: Duration = Duration::from_millis(100);
/// The longest pause between two requests.
const LONGEST_GAP: Duration = Duration::from_secs(20);
/// Bundles that are fetched at a time.
const AHEAD: u64 = 8;
/// Verified tiles that are kept in memory besides the edge: 8 MB.
const KEPT: usize = 1024;

/// Why reading from a log failed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is no such file.
    #[error(
        "{0} does not exist: check the log's URL or directory; the latest checkpoint may also be published incompletely"
    )]
    NotFound(String),
    /// The server responded with an error status.
    #[error("{what}: HTTP status {status}")]
    Status {
        /// The requested URL.
        what: String,
        status: u16,
    },
    #[error(transparent)]
    Http(#[from] HttpError),
    /// Reading the file failed.
    #[error("cannot read {what}")]
    Io {
        /// The file.
        what: String,
        source: io::Error,
    },
    /// The file exceeds the limit of its kind.
    #[error("{0} is larger than such a file can be")]
    TooLarge(String),
    /// The checkpoint is malformed.
    #[error("malformed checkpoint of the log")]
    Note(#[from] NoteError),
    /// The policy does not accept the checkpoint.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The data does not match the checkpoint.
    #[error("{0} does not match the log's checkpoint: it was altered, or the log is damaged")]
    Mismatch(String),
    /// The index or size is outside of the tree.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

impl ReadError {
    /// Whether the log itself is damaged, rather than unreachable.
    pub fn is_damage(&self) -> bool {
        matches!(self, ReadError::Mismatch(_) | ReadError::TooLarge(_) | ReadError::Note(_))
    }
}

/// A log that can be read. Clones are cheap.
#[derive(Clone)]
pub struct Reader {
    source: Arc<Source>,
}

enum Source {
    Http(Client, Url, Mutex<Pace>),
    Directory(PathBuf),
}

/// The pace of requests to a server. There is no limit at first. Each "too many requests" doubles the pause between two
/// requests; each success shortens it a little.
struct Pace {
    gap: Duration,
    next: Instant,
}

impl Pace {
    /// When the next request may be sent.
    fn turn(&mut self) -> Instant {
        let turn = self.next.max(Instant::now());
        self.next = turn + self.gap;
        turn
    }

    fn too_often(&mut self, retry_after: Option<Duration>) {
        self.gap = (self.gap * 2).clamp(FIRST_GAP, LONGEST_GAP);
        self.next = self.next.max(Instant::now() + retry_after.unwrap_or(self.gap));
    }

    fn good(&mut self) {
        self.gap = self.gap * 9 / 10;
        if self.gap < FIRST_GAP / 4 {
            self.gap = Duration::ZERO;
        }
    }
}

impl Reader {
    /// A log that is served under a URL prefix.
    pub fn http(client: Client, prefix: Url) -> Reader {
        let pace = Pace { gap: Duration::ZERO, next: Instant::now() };
        Reader { source: Arc::new(Source::Http(client, prefix, Mutex::new(pace))) }
    }

    /// A log in a directory: `checkpoint`, `tile/…`.
    pub fn directory(path: impl Into<PathBuf>) -> Reader {
        Reader { source: Arc::new(Source::Directory(path.into())) }
    }

    /// The latest checkpoint, unverified.
    pub async fn latest(&self) -> Result<SignedCheckpoint, ReadError> {
        let bytes = self.file("checkpoint", MAX_NOTE).await?;
        let text =
            std::str::from_utf8(&bytes).map_err(|_| NoteError::Malformed("it is not UTF-8"))?;
        Ok(SignedCheckpoint::parse(text)?)
    }

    /// The latest checkpoint, if the policy accepts it, with its signed note.
    pub async fn checkpoint(
        &self,
        policy: &Policy,
    ) -> Result<(Witnessed, SignedCheckpoint), ReadError> {
        let signed = self.latest().await?;
        Ok((policy.witnessed(&signed)?, signed))
    }

    /// The tree of a checkpoint. Reads its right edge, which must hash to the checkpoint's root.
    pub async fn tree(&self, checkpoint: &Checkpoint) -> Result<Tree, ReadError> {
        let (size, root) = (checkpoint.size, checkpoint.root);
        if size > tree::MAX_SIZE {
            return Err(TreeError::OutOfRange.into());
        }
        let mut edge = Tiles::new();
        for tile in edge_of(size) {
            edge.insert((tile.kind, tile.index), Arc::from(self.hashes(tile).await?));
        }
        let tree = Tree { reader: self.clone(), size, root, edge, kept: Mutex::default() };
        let frontier = Frontier::read(size, |node| tree.known(node).ok_or(()));
        match frontier {
            Ok(frontier) if frontier.root() == root => Ok(tree),
            _ => Err(ReadError::Mismatch(format!("the right edge of the tree of size {size}"))),
        }
    }

    /// A tile of hashes, unverified.
    async fn hashes(&self, tile: Tile) -> Result<Vec<Hash>, ReadError> {
        let wrong = |_| ReadError::Mismatch(tile.path());
        let full = tile.full();
        let bytes = match self.file(&tile.path(), usize::from(tile.width) * Hash::LEN).await {
            // A partial tile may have been removed once the full one exists.
            Err(ReadError::NotFound(_)) if !tile.is_full() => {
                let bytes = self.file(&full.path(), usize::from(full.width) * Hash::LEN).await?;
                let mut hashes = full.hashes(&bytes).map_err(wrong)?;
                hashes.truncate(tile.width.into());
                return Ok(hashes);
            }
            read => read?,
        };
        tile.hashes(&bytes).map_err(wrong)
    }

    /// A bundle of entries, unverified, and its tile.
    async fn bundle(&self, tile: Tile) -> Result<(Tile, Bytes), ReadError> {
        match self.file(&tile.path(), MAX_BUNDLE).await {
            Err(ReadError::NotFound(_)) if !tile.is_full() => {
                let full = tile.full();
                Ok((full, self.file(&full.path(), MAX_BUNDLE).await?))
            }
            read => Ok((tile, read?)),
        }
    }

    async fn file(&self, path: &str, limit: usize) -> Result<Bytes, ReadError> {
        match &*self.source {
            Source::Http(client, prefix, pace) => {
                let url = prefix.join(path);
                let limit = Limit { time: PATIENCE, body: limit };
                let pace = || pace.lock();
                let until = Instant::now() + BUSY;
                loop {
                    let turn = pace().turn();
                    tokio::time::sleep_until(turn).await;
                    let answer = client.file(&url, limit).await.map_err(|e| match e {
                        HttpError::TooLarge { url, .. } => ReadError::TooLarge(url),
                        e => e.into(),
                    })?;
                    match (answer.status, answer.retry_after) {
                        (200, _) => {
                            pace().good();
                            return Ok(answer.body);
                        }
                        (404 | 410, _) => return Err(ReadError::NotFound(url.to_string())),
                        (429, wait) | (503, wait @ Some(_)) => {
                            pace().too_often(wait.map(|wait| wait.min(BUSY)));
                            if pace().next <= until {
                                continue;
                            }
                        }
                        _ => {}
                    }
                    let (what, status) = (url.to_string(), answer.status);
                    return Err(ReadError::Status { what, status });
                }
            }
            Source::Directory(dir) => {
                let path = dir.join(path);
                let what = path.display().to_string();
                let read = tokio::task::spawn_blocking(move || {
                    use std::io::Read;
                    let (mut bytes, limit) = (Vec::new(), limit as u64 + 1);
                    std::fs::File::open(&path)?.take(limit).read_to_end(&mut bytes)?;
                    Ok(bytes)
                });
                let read = read.await.unwrap_or_else(|e| Err(io::Error::other(e)));
                match read {
                    Ok(bytes) if bytes.len() > limit => Err(ReadError::TooLarge(what)),
                    Ok(bytes) => Ok(bytes.into()),
                    Err(e) if e.kind() == io::ErrorKind::NotFound => Err(ReadError::NotFound(what)),
                    Err(source) => Err(ReadError::Io { what, source }),
                }
            }
        }
    }
}

/// The partial tiles of a tree, from which its root is computed.
fn edge_of(size: u64) -> impl Iterator<Item = Tile> {
    (0..8u8).filter_map(move |level| {
        let kind = Kind::Hashes { level };
        let index = size >> (8 * u32::from(level)) >> 8;
        Tile::of_tree(kind, index, size)
    })
}

/// Tiles of hashes, by kind and index.
type Tiles = HashMap<(Kind, u64), Arc<[Hash]>>;

/// A tree whose data is read on demand and verified against its root.
pub struct Tree {
    reader: Reader,
    size: u64,
    root: Hash,
    edge: Tiles,
    kept: Mutex<Tiles>,
}

impl Tree {
    /// The number of its entries.
    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn root(&self) -> Hash {
        self.root
    }

    /// The root of the tree of its first `size` entries.
    pub async fn root_at(&self, size: u64) -> Result<Hash, ReadError> {
        if size > self.size {
            return Err(TreeError::OutOfRange.into());
        }
        // Tiles of the larger tree contain every node of the smaller one.
        let nodes = self.collect(|read| Frontier::read(size, read).map(|_| ())).await?;
        let read = |node| nodes.get(&node).copied().ok_or(TreeError::OutOfRange);
        Ok(Frontier::read(size, read)?.root())
    }

    /// The proof that this tree extends the tree of its first `old` entries.
    pub async fn consistency(&self, old: u64) -> Result<Vec<Hash>, ReadError> {
        let new = self.size;
        let nodes =
            self.collect(|read| tree::consistency_proof(old, new, read).map(|_| ())).await?;
        let read = |node| nodes.get(&node).copied().ok_or(TreeError::OutOfRange);
        Ok(tree::consistency_proof(old, new, read)?)
    }

    /// The proof that entry `index` is in it.
    pub async fn inclusion(&self, index: u64) -> Result<Vec<Hash>, ReadError> {
        let size = self.size;
        let nodes =
            self.collect(|read| tree::inclusion_proof(index, size, read).map(|_| ())).await?;
        let read = |node| nodes.get(&node).copied().ok_or(TreeError::OutOfRange);
        Ok(tree::inclusion_proof(index, size, read)?)
    }

    /// The entries of a range, verified. The result is held in memory: request a few thousand at a time.
    pub async fn entries(&self, range: Range<u64>) -> Result<Vec<Vec<u8>>, ReadError> {
        if range.start > range.end || range.end > self.size {
            return Err(TreeError::OutOfRange.into());
        }
        let mut entries = Vec::new();
        if range.is_empty() {
            return Ok(entries);
        }
        let bundles = range.start / WIDTH..range.end.div_ceil(WIDTH);
        let (mut coming, mut here) = (JoinSet::new(), HashMap::new());
        let mut next = bundles.start;
        for index in bundles.clone() {
            while next < bundles.end && next < index + AHEAD {
                let tile =
                    Tile::of_tree(Kind::Entries, next, self.size).ok_or(TreeError::OutOfRange)?;
                let reader = self.reader.clone();
                coming.spawn(async move { (tile.index, reader.bundle(tile).await) });
                next += 1;
            }
            let (tile, bytes) = loop {
                if let Some(read) = here.remove(&index) {
                    break read;
                }
                match coming.join_next().await {
                    Some(Ok((index, read))) => drop(here.insert(index, read?)),
                    _ => return Err(ReadError::NotFound(format!("entry bundle {index}"))),
                }
            };
            let leaves = self.verified(self.leaf_tile(index)?).await?;
            let mismatch = || ReadError::Mismatch(tile.path());
            let read = tile.entries(&bytes).map_err(|_| mismatch())?;
            // A full bundle in place of a partial one holds more entries than this tree.
            for (n, (entry, leaf)) in read.iter().zip(leaves.iter()).enumerate() {
                if Hash::leaf(entry) != *leaf {
                    return Err(mismatch());
                }
                if range.contains(&(index * WIDTH + n as u64)) {
                    entries.push(entry.to_vec());
                }
            }
        }
        Ok(entries)
    }

    fn leaf_tile(&self, index: u64) -> Result<Tile, ReadError> {
        let tile = Tile::of_tree(Kind::Hashes { level: 0 }, index, self.size);
        Ok(tile.ok_or(TreeError::OutOfRange)?)
    }

    /// Every hash that `walk` requests, verified.
    async fn collect<E>(
        &self,
        walk: impl Fn(&mut dyn FnMut(Node) -> Result<Hash, TreeError>) -> Result<(), E>,
    ) -> Result<HashMap<Node, Hash>, ReadError>
    where
        ReadError: From<E>,
    {
        let mut wanted = Vec::new();
        walk(&mut |node| {
            wanted.push(node);
            Ok(Hash::empty()) // which nodes are requested does not depend on their hashes
        })?;
        let mut nodes = HashMap::new();
        for node in wanted {
            let (tile, range) = Tile::of_node(node, self.size).ok_or(TreeError::OutOfRange)?;
            let hashes = self.verified(tile).await?;
            let hash = hashes.get(range).and_then(tile::subtree).ok_or(TreeError::OutOfRange)?;
            nodes.insert(node, hash);
        }
        Ok(nodes)
    }

    /// A node from tiles in memory.
    fn known(&self, node: Node) -> Option<Hash> {
        let (tile, range) = Tile::of_node(node, self.size)?;
        self.here(tile)?.get(range).and_then(tile::subtree)
    }

    fn here(&self, tile: Tile) -> Option<Arc<[Hash]>> {
        let key = (tile.kind, tile.index);
        let kept = self.kept.lock();
        self.edge.get(&key).or_else(|| kept.get(&key)).cloned()
    }

    /// A tile of hashes of this tree, verified.
    async fn verified(&self, tile: Tile) -> Result<Arc<[Hash]>, ReadError> {
        // Go up to a tile that is in memory, then down again.
        let mut path = Vec::new();
        let mut tile = tile;
        let mut hashes = loop {
            if let Some(hashes) = self.here(tile) {
                break hashes;
            }
            let Kind::Hashes { level } = tile.kind else {
                return Err(TreeError::OutOfRange.into());
            };
            path.push(tile);
            let above = Kind::Hashes { level: level + 1 };
            tile =
                Tile::of_tree(above, tile.index / WIDTH, self.size).ok_or(TreeError::OutOfRange)?;
        };
        while let Some(tile) = path.pop() {
            let read: Arc<[Hash]> = self.reader.hashes(tile).await?.into();
            let place = usize::try_from(tile.index % WIDTH).expect("less than 256");
            let expected = hashes.get(place).copied();
            if expected.is_none() || tile::subtree(&read) != expected {
                return Err(ReadError::Mismatch(tile.path()));
            }
            let mut kept = self.kept.lock();
            if kept.len() >= KEPT {
                kept.clear();
            }
            kept.insert((tile.kind, tile.index), read.clone());
            hashes = read;
        }
        Ok(hashes)
    }
}
