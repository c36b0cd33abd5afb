//! A copy of a log in a directory, in the form in which it is served: for auditors, and to restore a log from.
//!
//! Only data that matches the checkpoint is written, and the checkpoint itself comes last. Existing files are checked and
//! not fetched again. If the log has forked or shows fewer entries than before, the copy stays unchanged.

use std::io;
use std::path::{Path, PathBuf};

use wiretight_tlog::note::MAX_NOTE;
use wiretight_tlog::tile::{Kind, MAX_BUNDLE, Tile, WIDTH};
use wiretight_tlog::{SignedCheckpoint, TreeError};

use super::edge::Edge;
use super::reader::{ReadError, Tree};
use super::sequencer::CHECKPOINT;
use super::storage::{Directory, Object, Storage};

/// Entries that are held in memory at a time, in complete bundles.
const CHUNK: u64 = 16 * WIDTH;

/// Why the copy was not updated.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// Reading the log failed.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Reading or writing the directory failed.
    #[error("cannot update the copy in {place}: check its permissions and the free disk space")]
    Io {
        /// The directory.
        place: String,
        source: io::Error,
    },
    /// The directory holds a copy of another log.
    #[error(
        "{} is a copy of another log ({origin}), or its checkpoint is damaged: use another directory",
        .dir.display()
    )]
    Other {
        dir: PathBuf,
        /// The origin of the log in it.
        origin: String,
    },
    /// The log shows another history.
    #[error(
        "FORK: the log shows another history than before. It has signed both {} and {}: keep both files and publish them",
        .before.display(), .now.display()
    )]
    Fork {
        /// The checkpoint of the copy.
        before: PathBuf,
        /// The checkpoint that is shown now.
        now: PathBuf,
    },
    /// The log shows fewer entries.
    #[error(
        "the log shows {shows} entries, but {} has {has}: the log was reset, shows an old state, or is about to fork",
        .dir.display()
    )]
    Less {
        dir: PathBuf,
        /// Entries of the copy.
        has: u64,
        /// Entries of the log.
        shows: u64,
    },
}

/// The result of an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mirrored {
    /// The number of existing entries that match the checkpoint.
    pub kept: u64,
    /// The number of fetched entries.
    pub fetched: u64,
}

/// Makes `dir` a copy of the checkpoint's tree.
pub async fn mirror(
    tree: &Tree,
    signed: &SignedCheckpoint,
    dir: &Path,
) -> Result<Mirrored, MirrorError> {
    let failed = |source| MirrorError::Io { place: dir.display().to_string(), source };
    let storage = Directory::open(dir).map_err(failed)?;
    let before = before(tree, signed, dir, &storage).await?;
    let mut edge = kept(&storage, before).await.map_err(failed)?;
    if tree.root_at(edge.size()).await? != edge.root() {
        tracing::warn!("the copy in {} is damaged: fetching all of it again", dir.display());
        edge = Edge::default();
    }
    let (kept, size) = (edge.size(), tree.size());
    while edge.size() < size {
        let next = size.min(edge.size() + CHUNK);
        let entries = tree.entries(edge.size()..next).await?;
        let (mut objects, _) = edge.append(&entries);
        if next < size {
            objects.retain(|(path, _)| Tile::parse(path).is_some_and(Tile::is_full));
        }
        storage.put(objects).await.map_err(failed)?;
    }
    if edge.root() != tree.root() {
        return Err(ReadError::from(TreeError::WrongRoot).into());
    }
    let checkpoint = (CHECKPOINT.to_owned(), signed.to_string().into_bytes());
    storage.put(vec![checkpoint]).await.map_err(failed)?;
    // Remove partial tiles that were replaced by full ones.
    let full = Tile::of_growth(before, size).filter(|tile| tile.is_full());
    for tile in full.filter(|tile| Tile::of_tree(tile.kind, tile.index, before).is_some()) {
        storage.delete_all(&format!("{}.p", tile.path())).await.map_err(failed)?;
    }
    Ok(Mirrored { kept, fetched: size - kept })
}

/// The size of the existing copy, which the tree must extend.
async fn before(
    tree: &Tree,
    signed: &SignedCheckpoint,
    dir: &Path,
    storage: &Directory,
) -> Result<u64, MirrorError> {
    let failed = |source| MirrorError::Io { place: dir.display().to_string(), source };
    let Some(bytes) = storage.get(CHECKPOINT, MAX_NOTE).await.map_err(failed)? else {
        return Ok(0);
    };
    let before = String::from_utf8(bytes).ok().and_then(|t| SignedCheckpoint::parse(&t).ok());
    let other = |origin: &str| MirrorError::Other { dir: dir.into(), origin: origin.into() };
    let before = before.ok_or_else(|| other("unreadable"))?;
    let before = before.unverified();
    if before.origin != signed.unverified().origin {
        return Err(other(&before.origin));
    }
    if before.size > tree.size() {
        return Err(MirrorError::Less { dir: dir.into(), has: before.size, shows: tree.size() });
    }
    if tree.root_at(before.size).await? != before.root {
        let name = format!("forked-checkpoint-{}", tree.size());
        let object = (name.clone(), signed.to_string().into_bytes());
        storage.put(vec![object]).await.map_err(failed)?;
        return Err(MirrorError::Fork { before: dir.join(CHECKPOINT), now: dir.join(name) });
    }
    Ok(before.size)
}

/// The existing full bundles, up to the first missing one. Missing or damaged tiles of theirs are repaired.
async fn kept(storage: &Directory, size: u64) -> io::Result<Edge> {
    let mut edge = Edge::default();
    for index in 0..size / WIDTH {
        let bundle = Tile { kind: Kind::Entries, index, width: WIDTH as u16 };
        let Some(bytes) = storage.get(&bundle.path(), MAX_BUNDLE).await? else { break };
        let Ok(entries) = bundle.entries(&bytes) else { break };
        let entries: Vec<Vec<u8>> = entries.into_iter().map(<[u8]>::to_vec).collect();
        let (objects, _) = edge.append(&entries);
        let mut lost: Vec<Object> = Vec::new();
        for (path, bytes) in objects {
            if Tile::parse(&path).is_some_and(|t| t.is_full() && t.kind != Kind::Entries)
                && storage.get(&path, bytes.len()).await.ok().flatten().as_ref() != Some(&bytes)
            {
                lost.push((path, bytes));
            }
        }
        if !lost.is_empty() {
            storage.put(lost).await?;
        }
    }
    Ok(edge)
}
