//! A copy of a log in a directory, as it is served: for an auditor who keeps his own, and to restore a log from.
//!
//! Nothing is written that does not hash to the checkpoint, the checkpoint itself comes last, and what is here already is
//! checked and not fetched again. A log that has forked since, or shows less than before, changes nothing here.

use std::io;
use std::path::{Path, PathBuf};

use wiretight_tlog::note::MAX_NOTE;
use wiretight_tlog::tile::{Kind, MAX_BUNDLE, Tile, WIDTH};
use wiretight_tlog::{SignedCheckpoint, TreeError};

use super::edge::Edge;
use super::reader::{ReadError, Tree};
use super::sequencer::CHECKPOINT;
use super::storage::{Directory, Object, Storage};

/// Entries that are held in memory at a time: whole bundles.
const CHUNK: u64 = 16 * WIDTH;

/// Why there is no copy, or none that is newer.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// The log.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The directory.
    #[error("the copy in {place} failed: does this user own it, and has the disk room?")]
    Io {
        /// Where.
        place: String,
        /// Why.
        source: io::Error,
    },
    /// Of another log.
    #[error(
        "{} is a copy of another log ({origin}), or its checkpoint is damaged: give another directory",
        .dir.display()
    )]
    Other {
        /// The directory.
        dir: PathBuf,
        /// Whose.
        origin: String,
    },
    /// Two histories.
    #[error(
        "FORK: the log shows another history than before. It has signed {} and {}: keep both files, and publish them",
        .before.display(), .now.display()
    )]
    Fork {
        /// The checkpoint of the copy.
        before: PathBuf,
        /// The one that is shown now.
        now: PathBuf,
    },
    /// Less than before.
    #[error(
        "the log shows {shows} entries, and {} has {has}: it was set back, or shows an old state, or the beginning of a fork",
        .dir.display()
    )]
    Less {
        /// The directory.
        dir: PathBuf,
        /// Entries of the copy.
        has: u64,
        /// Entries of the log.
        shows: u64,
    },
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mirrored {
    /// Entries that were here, and are what the checkpoint says.
    pub kept: u64,
    /// Entries that were fetched.
    pub fetched: u64,
}

/// Makes `dir` a copy of the tree whose checkpoint this is.
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
        tracing::warn!("the copy in {} is damaged: all of it is fetched again", dir.display());
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
    // Partial tiles in whose place there is a full one now.
    let full = Tile::of_growth(before, size).filter(|tile| tile.is_full());
    for tile in full.filter(|tile| Tile::of_tree(tile.kind, tile.index, before).is_some()) {
        storage.delete_all(&format!("{}.p", tile.path())).await.map_err(failed)?;
    }
    Ok(Mirrored { kept, fetched: size - kept })
}

/// The size of the copy as it was left; the tree has to begin with it.
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
    let before = before.ok_or_else(|| other("not readable"))?;
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

/// The full bundles that are here, up to the first that is missing; their tiles are repaired where they need it.
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
