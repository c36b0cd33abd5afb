//! Tiles (C2SP tlog-tiles): the files in which a log is published. A full tile never changes.
//!
//! A tile of level l holds up to 256 hashes of perfect subtrees of 256^l leaves; a full one reduces to a single hash
//! of the level above. An entry bundle holds the entries under a tile of level 0. The last tile of each level is
//! partial and has its width in its name; a partial tile is a prefix of every later version.

use std::fmt;

use crate::hash::Hash;
use crate::text::decimal;
use crate::tree::{MAX_SIZE, Node};

/// The height of the subtree in a tile.
const HEIGHT: u8 = 8;
/// The number of hashes in a full tile.
pub const WIDTH: u64 = 1 << HEIGHT;
/// The largest entry, in bytes: its length is written in two bytes.
pub const MAX_ENTRY: usize = u16::MAX as usize;
/// The largest entry bundle, in bytes.
pub const MAX_BUNDLE: usize = WIDTH as usize * (2 + MAX_ENTRY);
/// The highest level at which a tree of [`MAX_SIZE`] leaves has a tile.
const MAX_LEVEL: u8 = (MAX_SIZE.trailing_zeros() as u8) / HEIGHT;

/// Why a tile is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TileError {
    /// Truncated, or followed by extra bytes.
    #[error("the tile has the wrong length")]
    WrongLength,
    /// An entry of more than [`MAX_ENTRY`] bytes.
    #[error("an entry is longer than {MAX_ENTRY} bytes")]
    EntryTooLong,
}

/// What a tile contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Hashes of perfect subtrees of 256^level leaves.
    Hashes {
        /// The level, from 0.
        level: u8,
    },
    Entries,
}

/// The name of a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tile {
    pub kind: Kind,
    /// Its index within its level, from 0.
    pub index: u64,
    /// The number of hashes or entries: 1 to 256.
    pub width: u16,
}

impl Tile {
    /// The tile at `index` in a tree of `size`, full or partial; `None` if the tree does not extend that far.
    pub fn of_tree(kind: Kind, index: u64, size: u64) -> Option<Tile> {
        let beyond = count(kind, size).checked_sub(index.checked_mul(WIDTH)?)?;
        let width = u16::try_from(beyond.min(WIDTH)).expect("at most 256");
        (width > 0).then_some(Tile { kind, index, width })
    }

    /// The tiles that are in a tree of size `new` but not in one of size `old`: bundles first, then hashes by level.
    pub fn of_growth(old: u64, new: u64) -> impl Iterator<Item = Tile> {
        let levels = (0..=MAX_LEVEL).map(|level| Kind::Hashes { level });
        std::iter::once(Kind::Entries).chain(levels).flat_map(move |kind| {
            let (from, to) = (count(kind, old), count(kind, new));
            let indexes = if to > from { from / WIDTH..to.div_ceil(WIDTH) } else { 0..0 };
            indexes.filter_map(move |index| Tile::of_tree(kind, index, new))
        })
    }

    /// The tile from which the hash of a perfect subtree can be computed, in a tree of `size`, and the range of its
    /// hashes to use.
    pub fn of_node(node: Node, size: u64) -> Option<(Tile, std::ops::Range<usize>)> {
        let (level, height) = (node.level / HEIGHT, node.level % HEIGHT);
        let first = node.index.checked_mul(1 << height)?;
        let tile = Tile::of_tree(Kind::Hashes { level }, first / WIDTH, size)?;
        let start = usize::try_from(first % WIDTH).expect("less than 256");
        let range = start..start + (1 << height);
        (range.end <= usize::from(tile.width)).then_some((tile, range))
    }

    pub fn is_full(self) -> bool {
        u64::from(self.width) == WIDTH
    }

    /// The full tile at the same index.
    pub fn full(self) -> Tile {
        Tile { width: WIDTH as u16, ..self }
    }

    /// The path below the log's URL prefix: `tile/<level>/<index>[.p/<width>]`. The level of a bundle is `entries`.
    pub fn path(self) -> String {
        self.to_string()
    }

    /// Parses a path. Each tile has exactly one.
    pub fn parse(path: &str) -> Option<Tile> {
        let (kind, rest) = path.strip_prefix("tile/")?.split_once('/')?;
        let kind = match kind {
            "entries" => Kind::Entries,
            level => {
                let level = u8::try_from(decimal(level)?).ok()?;
                Kind::Hashes { level: Some(level).filter(|l| *l <= MAX_LEVEL)? }
            }
        };
        let (index, width) = match rest.split_once(".p/") {
            Some((index, width)) => {
                let width = decimal(width).filter(|w| (1..WIDTH).contains(w))?;
                (index, u16::try_from(width).ok()?)
            }
            None => (rest, WIDTH as u16),
        };
        let mut number = 0u64;
        let mut elements = index.split('/').peekable();
        while let Some(element) = elements.next() {
            let digits = match elements.peek() {
                Some(_) => element.strip_prefix('x')?,
                None => element,
            };
            number = number.checked_mul(1000)?.checked_add(digits.parse().ok()?)?;
        }
        // Any other spelling of the number has another path.
        let tile = Tile { kind, index: number, width };
        (number <= MAX_SIZE / WIDTH && tile.path() == path).then_some(tile)
    }

    /// Splits the bytes of a tile of hashes.
    pub fn hashes(self, bytes: &[u8]) -> Result<Vec<Hash>, TileError> {
        if bytes.len() != usize::from(self.width) * Hash::LEN {
            return Err(TileError::WrongLength);
        }
        Ok(bytes.chunks_exact(Hash::LEN).filter_map(Hash::from_slice).collect())
    }

    /// Splits the bytes of a bundle.
    pub fn entries(self, mut bytes: &[u8]) -> Result<Vec<&[u8]>, TileError> {
        let mut entries = Vec::with_capacity(usize::from(self.width));
        for _ in 0..self.width {
            let (length, rest) = bytes.split_first_chunk().ok_or(TileError::WrongLength)?;
            let length = usize::from(u16::from_be_bytes(*length));
            let (entry, rest) = rest.split_at_checked(length).ok_or(TileError::WrongLength)?;
            entries.push(entry);
            bytes = rest;
        }
        match bytes.is_empty() {
            true => Ok(entries),
            false => Err(TileError::WrongLength),
        }
    }
}

impl fmt::Display for Tile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Hashes { level } => write!(f, "tile/{level}/")?,
            Kind::Entries => f.write_str("tile/entries/")?,
        }
        let mut divisor = 1u64;
        while self.index / divisor >= 1000 {
            divisor *= 1000;
        }
        while divisor > 1 {
            write!(f, "x{:03}/", self.index / divisor % 1000)?;
            divisor /= 1000;
        }
        write!(f, "{:03}", self.index % 1000)?;
        match self.is_full() {
            true => Ok(()),
            false => write!(f, ".p/{}", self.width),
        }
    }
}

/// Appends an entry to the bytes of a bundle.
pub fn push_entry(bundle: &mut Vec<u8>, entry: &[u8]) -> Result<(), TileError> {
    let length = u16::try_from(entry.len()).map_err(|_| TileError::EntryTooLong)?;
    bundle.extend_from_slice(&length.to_be_bytes());
    bundle.extend_from_slice(entry);
    Ok(())
}

/// The hash of a perfect subtree, from adjacent hashes of a tile; their number must be a power of two.
pub fn subtree(hashes: &[Hash]) -> Option<Hash> {
    match hashes {
        [hash] => Some(*hash),
        _ if hashes.len().is_power_of_two() => {
            let (left, right) = hashes.split_at(hashes.len() / 2);
            Some(Hash::node(subtree(left)?, subtree(right)?))
        }
        _ => None,
    }
}

/// The number of hashes or entries of this kind in a tree of `size`.
fn count(kind: Kind, size: u64) -> u64 {
    match kind {
        Kind::Entries => size,
        Kind::Hashes { level } => {
            size.checked_shr(u32::from(level) * u32::from(HEIGHT)).unwrap_or(0)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::tree::Frontier;

    fn paths(tiles: impl Iterator<Item = Tile>) -> Vec<String> {
        tiles.filter(|t| t.kind != Kind::Entries).map(Tile::path).collect()
    }

    #[test]
    fn a_tree_has_the_tiles_of_the_specification() {
        // The example in the specification: 70,000 entries.
        let all = paths(Tile::of_growth(0, 70_000));
        assert_eq!(all.len(), 273 + 1 + 1 + 1 + 1);
        assert_eq!(
            all[272..],
            ["tile/0/272", "tile/0/273.p/112", "tile/1/000", "tile/1/001.p/17", "tile/2/000.p/1"]
        );
        assert_eq!(paths(Tile::of_growth(0, 256)), ["tile/0/000", "tile/1/000.p/1"]);
        assert_eq!(paths(Tile::of_growth(70_000, 70_001)), ["tile/0/273.p/113"]);
        assert_eq!(paths(Tile::of_growth(7, 7)), Vec::<String>::new());
        let last = paths(Tile::of_growth(MAX_SIZE - 1, MAX_SIZE)).pop().unwrap();
        assert_eq!(last, "tile/7/000.p/64");
        assert_eq!(Tile::parse(&last).map(Tile::path), Some(last));
        // A tile without hashes or entries does not exist.
        let width = |index, size| Tile::of_tree(Kind::Entries, index, size).map(|t| t.width);
        assert_eq!((width(0, 0), width(0, 1), width(1, 256)), (None, Some(1), None));
        assert_eq!((width(0, 256), width(0, 257), width(1, 257)), (Some(256), Some(256), Some(1)));
    }

    #[test]
    fn every_node_of_a_tree_is_computed_from_one_tile() {
        let (size, mut frontier, mut nodes) = (600_u64, Frontier::default(), BTreeMap::new());
        for n in 0..size {
            frontier.append(Hash::leaf(&n.to_be_bytes()), |node, hash| {
                nodes.insert((node.level, node.index), hash);
            });
        }
        for (&(level, index), hash) in &nodes {
            let (tile, range) = Tile::of_node(Node { level, index }, size).unwrap();
            let Kind::Hashes { level: of } = tile.kind else { panic!("{tile}") };
            let places = (0..u64::from(tile.width)).map(|n| tile.index * WIDTH + n);
            let hashes: Vec<_> = places.map(|index| nodes[&(of * HEIGHT, index)]).collect();
            assert_eq!(subtree(&hashes[range]), Some(*hash), "{level} {index} {tile}");
        }
        for imperfect in [0, 3, 6] {
            assert_eq!(subtree(&vec![Hash::empty(); imperfect]), None);
        }
        for level in 0..=10 {
            let beyond = Node { level, index: size >> level };
            assert_eq!(Tile::of_node(beyond, size), None, "{level}");
        }
    }

    #[test]
    fn a_tile_of_hashes_has_as_many_as_its_name_says() {
        let tile = Tile { kind: Kind::Hashes { level: 0 }, index: 0, width: 2 };
        let hashes = [Hash::leaf(b"a"), Hash::leaf(b"b")];
        let bytes = hashes.map(|hash| *hash.as_bytes()).concat();
        assert_eq!(tile.hashes(&bytes), Ok(hashes.to_vec()));
        for bad in [&[][..], &bytes[1..], &[&bytes[..], &[0]].concat()] {
            assert_eq!(tile.hashes(bad), Err(TileError::WrongLength));
        }
        assert_eq!(tile.full(), Tile { width: 256, ..tile });
        assert!(tile.full().is_full() && !tile.is_full());
    }

    #[test]
    fn the_largest_bundle_has_full_width_and_entries_of_the_largest_size() {
        let (entry, mut bundle) = (vec![7; MAX_ENTRY], Vec::new());
        (0..WIDTH).for_each(|_| push_entry(&mut bundle, &entry).unwrap());
        assert_eq!(bundle.len(), MAX_BUNDLE);
        let tile = Tile { kind: Kind::Entries, index: 0, width: 256 };
        assert_eq!(tile.entries(&bundle).unwrap(), vec![&entry[..]; 256]);
        let long = push_entry(&mut bundle, &[7; MAX_ENTRY + 1]);
        assert_eq!((long, bundle.len()), (Err(TileError::EntryTooLong), MAX_BUNDLE));
        for bad in [&bundle[1..], &bundle[..MAX_BUNDLE - 1], &[&bundle[..], &[0]].concat()] {
            assert_eq!(tile.entries(bad), Err(TileError::WrongLength));
        }
    }

    #[test]
    fn paths_have_one_form() {
        for (index, text) in
            [(0, "000"), (999, "999"), (1000, "x001/000"), (1_234_067, "x001/x234/067")]
        {
            let tile = Tile { kind: Kind::Entries, index, width: 256 };
            assert_eq!(tile.path(), format!("tile/entries/{text}"));
            assert_eq!(Tile::parse(&tile.path()), Some(tile));
            let tile = Tile { kind: Kind::Hashes { level: 3 }, index, width: 7 };
            assert_eq!(Tile::parse(&tile.path()), Some(tile));
        }
        for bad in [
            "tile/0/0",
            "tile/0/0000",
            "tile/0/x000/001",
            "tile/0/x01/001",
            "tile/0/001/001",
            "tile/00/001",
            "tile/8/000",
            "tile/0/000.p/0",
            "tile/0/000.p/256",
            "tile/0/000.p/07",
            "tile/0/../000",
            "tile/0/",
            "tile/entries/x000/000",
            "/tile/0/000",
            "tile/0/x999/x999/x999/x999/x999/x999/x999/999",
        ] {
            assert_eq!(Tile::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn truncated_bundles_are_rejected() {
        let mut bundle = Vec::new();
        for entry in [&b"one"[..], b"", b"three"] {
            push_entry(&mut bundle, entry).unwrap();
        }
        let tile = |width| Tile { kind: Kind::Entries, index: 0, width };
        assert_eq!(tile(3).entries(&bundle).unwrap(), [&b"one"[..], b"", b"three"]);
        assert_eq!(tile(2).entries(&bundle), Err(TileError::WrongLength));
        assert_eq!(tile(4).entries(&bundle), Err(TileError::WrongLength));
        assert_eq!(tile(3).entries(&bundle[..bundle.len() - 1]), Err(TileError::WrongLength));
        assert_eq!(push_entry(&mut bundle, &vec![0; MAX_ENTRY + 1]), Err(TileError::EntryTooLong));
    }
}
