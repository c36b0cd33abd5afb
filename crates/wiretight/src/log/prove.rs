//! Proofs of earlier entries and trees, from the log's own tiles.

use wiretight_tlog::tile::{Kind, Tile, WIDTH};
use wiretight_tlog::tree::{consistency_proof, inclusion_proof};
use wiretight_tlog::{Hash, SignedCheckpoint};

use super::sequencer::{Log, LogError, read_nodes};

/// Proofs from one published checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proven {
    /// With all cosignatures.
    pub checkpoint: SignedCheckpoint,
    /// For each requested entry, from the leaf's sibling up to a child of the root.
    pub inclusion: Vec<Vec<Hash>>,
    /// For each requested earlier size.
    pub consistency: Vec<Vec<Hash>>,
}

impl Log {
    /// Proves that these entries, and the trees of these sizes, are in the newest published checkpoint. Fails if one is
    /// not, or if nothing was published yet.
    pub async fn prove(&self, indexes: &[u64], old_sizes: &[u64]) -> Result<Proven, LogError> {
        let checkpoint = self.checkpoint().ok_or(LogError::NotPublished)?;
        let size = checkpoint.unverified().size;
        let largest = indexes.iter().map(|i| i.saturating_add(1)).chain(old_sizes.iter().copied());
        if largest.max().is_some_and(|needed| needed > size) {
            return Err(LogError::NotPublished);
        }
        let (inclusion, consistency) = read_nodes(&*self.guard, size, |read| {
            let inclusion = indexes.iter().map(|index| inclusion_proof(*index, size, &mut *read));
            let inclusion = inclusion.collect::<Result<Vec<_>, _>>()?;
            let old = old_sizes.iter().map(|old| consistency_proof(*old, size, &mut *read));
            Ok((inclusion, old.collect::<Result<Vec<_>, _>>()?))
        })
        .await?;
        Ok(Proven { checkpoint, inclusion, consistency })
    }

    /// Proves that the tree of size `old` is a prefix of the tree of size `new`, which this log has signed.
    pub async fn consistency(&self, old: u64, new: u64) -> Result<Vec<Hash>, LogError> {
        read_nodes(&*self.guard, new, |read| consistency_proof(old, new, read)).await
    }

    /// The entries of a bundle, as far as they are published.
    pub async fn bundle(&self, index: u64) -> Result<Vec<Vec<u8>>, LogError> {
        let size = self.checkpoint().map_or(0, |c| c.unverified().size);
        let Some(tile) = Tile::of_tree(Kind::Entries, index, size) else { return Ok(Vec::new()) };
        let bytes = self.tile(tile).await?.unwrap_or_default();
        let entries = tile.entries(&bytes).unwrap_or_default();
        Ok(entries.into_iter().map(<[u8]>::to_vec).collect())
    }

    /// The index of an entry, if it is among those that were published after the first `from`.
    pub async fn find(&self, entry: &[u8], from: u64) -> Result<Option<u64>, LogError> {
        let size = self.checkpoint().map_or(0, |c| c.unverified().size);
        for bundle in from / WIDTH..size.div_ceil(WIDTH) {
            let indexed = (bundle * WIDTH..).zip(self.bundle(bundle).await?);
            let mut new = indexed.filter(|(index, _)| *index >= from);
            if let Some((index, _)) = new.find(|(_, found)| found == entry) {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }
}
