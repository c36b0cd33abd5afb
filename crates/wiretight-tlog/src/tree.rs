//! The Merkle tree of RFC 6962, section 2.1: roots, proofs, and their verification.
//!
//! A tree of n leaves consists of one perfect subtree for each 1 bit of n, the largest at the left. The [`Frontier`]
//! holds the hashes of these, which is all that is needed to append. Proofs are computed from the hashes of perfect
//! subtrees ([`Node`]), which the caller supplies.
use crate::hash::Hash;

/// The most hashes in a proof: trees have fewer than 2^63 leaves.
pub const MAX_PROOF: usize = 63;
/// The most leaves in a tree. The limit keeps sums of sizes from overflowing.
pub const MAX_SIZE: u64 = 1 << 62;

/// Why a proof is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// The index is not in the tree, or the old size is larger than the new one.
    #[error("index or size is out of range")]
    OutOfRange,
    /// The proof does not have the number of hashes that the sizes require.
    #[error("the proof has the wrong number of hashes")]
    WrongLength,
    /// The computed root differs from the expected one.
    #[error("the proof does not lead to the root hash")]
    WrongRoot,
}

/// A perfect subtree: the 2^level leaves that start at `index * 2^level`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Node {
    /// The height; 0 is a leaf.
    pub level: u8,
    /// The index among the nodes of this height, from the left.
    pub index: u64,
}

/// The leaves `start..end` under one node of a tree: `start` is a multiple of a power of two that is at least `end -
/// start`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    start: u64,
    end: u64,
}

/// The part of a tree that is needed to append to it: one hash for each 1 bit of its size.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frontier {
    size: u64,
    /// Hashes of the perfect subtrees, from the left, the largest first.
    peaks: Vec<Hash>,
}

impl Frontier {
    /// The frontier of an existing tree. Calls `read` for the hash of each of its perfect subtrees.
    pub fn read<E>(size: u64, read: impl FnMut(Node) -> Result<Hash, E>) -> Result<Frontier, E> {
        let peaks = perfect(Range { start: 0, end: size }).map(read).collect::<Result<_, E>>()?;
        Ok(Frontier { size, peaks })
    }

    /// The number of leaves.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Its perfect subtrees, from the left, with their hashes.
    pub fn peaks(&self) -> impl Iterator<Item = (Node, Hash)> {
        perfect(Range { start: 0, end: self.size }).zip(self.peaks.iter().copied())
    }

    /// Appends a leaf. Calls `made` for every perfect subtree that this completes, starting with the leaf.
    pub fn append(&mut self, leaf: Hash, mut made: impl FnMut(Node, Hash)) {
        let (mut hash, mut node) = (leaf, Node { level: 0, index: self.size });
        made(node, hash);
        for _ in 0..self.size.trailing_ones() {
            let left = self.peaks.pop().expect("one peak for each bit of the size");
            (hash, node) =
                (Hash::node(left, hash), Node { level: node.level + 1, index: node.index / 2 });
            made(node, hash);
        }
        self.peaks.push(hash);
        self.size += 1;
    }

    pub fn root(&self) -> Hash {
        fold(self.peaks.iter().copied()).unwrap_or_else(Hash::empty)
    }
}

/// The proof that leaf `index` is in the tree of `size` (RFC 6962, section 2.1.1), starting with the leaf's sibling.
/// Calls `read` for hashes of perfect subtrees of that tree.
pub fn inclusion_proof<E: From<TreeError>>(
    index: u64,
    size: u64,
    read: impl FnMut(Node) -> Result<Hash, E>,
) -> Result<Vec<Hash>, E> {
    if index >= size || size > MAX_SIZE {
        return Err(TreeError::OutOfRange.into());
    }
    let (mut whole, mut siblings) = (Range { start: 0, end: size }, Vec::new());
    while whole.end - whole.start > 1 {
        let (left, right) = children(whole);
        let (inside, sibling) = if index < right.start { (left, right) } else { (right, left) };
        siblings.push(sibling);
        whole = inside;
    }
    siblings.reverse();
    hashes(siblings, read)
}

/// The proof that the tree of size `old` is a prefix of the tree of size `new` (RFC 6962, section 2.1.2). Empty if
/// `old` is 0 or equal to `new`.
pub fn consistency_proof<E: From<TreeError>>(
    old: u64,
    new: u64,
    read: impl FnMut(Node) -> Result<Hash, E>,
) -> Result<Vec<Hash>, E> {
    if old > new || new > MAX_SIZE {
        return Err(TreeError::OutOfRange.into());
    }
    if old == 0 || old == new {
        return Ok(Vec::new());
    }
    let (mut whole, mut proof) = (Range { start: 0, end: new }, Vec::new());
    while whole.end != old {
        let (left, right) = children(whole);
        let (inside, sibling) = if old <= right.start { (left, right) } else { (right, left) };
        proof.push(sibling);
        whole = inside;
    }
    // The rest ends where the old tree ends. If it is the whole old tree, the verifier knows its hash.
    if whole.start != 0 {
        proof.push(whole);
    }
    proof.reverse();
    hashes(proof, read)
}

/// Checks that `leaf` is leaf `index` of the tree of `size` with this root (RFC 9162, section 2.1.3.2).
pub fn verify_inclusion(
    leaf: Hash,
    index: u64,
    size: u64,
    proof: &[Hash],
    root: Hash,
) -> Result<(), TreeError> {
    if index >= size || size > MAX_SIZE {
        return Err(TreeError::OutOfRange);
    }
    let (mut place, mut last, mut hash) = (index, size - 1, leaf);
    for sibling in proof {
        if last == 0 {
            return Err(TreeError::WrongLength);
        }
        if place & 1 == 1 || place == last {
            hash = Hash::node(*sibling, hash);
            // Skip levels at which the rightmost node has no sibling.
            while place & 1 == 0 && place != 0 {
                (place, last) = (place >> 1, last >> 1);
            }
        } else {
            hash = Hash::node(hash, *sibling);
        }
        (place, last) = (place >> 1, last >> 1);
    }
    match last {
        0 if hash == root => Ok(()),
        0 => Err(TreeError::WrongRoot),
        _ => Err(TreeError::WrongLength),
    }
}

/// Checks that the tree of size `old` is a prefix of the tree of size `new` (RFC 9162, section 2.1.4.2). The empty
/// tree is a prefix of every tree.
pub fn verify_consistency(
    (old, old_root): (u64, Hash),
    (new, new_root): (u64, Hash),
    proof: &[Hash],
) -> Result<(), TreeError> {
    if old > new || new > MAX_SIZE {
        return Err(TreeError::OutOfRange);
    }
    if old == 0 || old == new {
        let same = if old == 0 { old_root == Hash::empty() } else { old_root == new_root };
        return match (proof.is_empty(), same) {
            (true, true) => Ok(()),
            (false, _) => Err(TreeError::WrongLength),
            (true, false) => Err(TreeError::WrongRoot),
        };
    }
    // If the old tree is perfect, its root is the first node of the path.
    let (first, path) = match (old.is_power_of_two(), proof.split_first()) {
        (true, _) => (old_root, proof),
        (false, Some((first, path))) => (*first, path),
        (false, None) => return Err(TreeError::WrongLength),
    };
    let complete = (old - 1).trailing_ones();
    let (mut place, mut last) = ((old - 1) >> complete, (new - 1) >> complete);
    let (mut old_hash, mut new_hash) = (first, first);
    for sibling in path {
        if last == 0 {
            return Err(TreeError::WrongLength);
        }
        if place & 1 == 1 || place == last {
            old_hash = Hash::node(*sibling, old_hash);
            new_hash = Hash::node(*sibling, new_hash);
            while place & 1 == 0 && place != 0 {
                (place, last) = (place >> 1, last >> 1);
            }
        } else {
            new_hash = Hash::node(new_hash, *sibling);
        }
        (place, last) = (place >> 1, last >> 1);
    }
    match last {
        0 if old_hash == old_root && new_hash == new_root => Ok(()),
        0 => Err(TreeError::WrongRoot),
        _ => Err(TreeError::WrongLength),
    }
}

/// The children of an inner node. The left one has the largest power of two of leaves that is less than the total.
fn children(Range { start, end }: Range) -> (Range, Range) {
    let leaves = end - start;
    let middle = start + (1 << (u64::BITS - 1 - (leaves - 1).leading_zeros()));
    (Range { start, end: middle }, Range { start: middle, end })
}

/// The perfect subtrees that a range consists of, from the left.
fn perfect(Range { start, end }: Range) -> impl Iterator<Item = Node> {
    let leaves = end - start;
    (0..u64::BITS as u8).rev().filter(move |level| leaves >> level & 1 == 1).map(move |level| {
        let before = leaves & !((2 << level) - 1);
        Node { level, index: (start + before) >> level }
    })
}

/// The hash of each range.
fn hashes<E>(
    ranges: Vec<Range>,
    mut read: impl FnMut(Node) -> Result<Hash, E>,
) -> Result<Vec<Hash>, E> {
    let hash = |range| {
        let peaks = perfect(range).map(&mut read).collect::<Result<Vec<_>, E>>()?;
        Ok(fold(peaks.into_iter()).expect("no range of a proof is empty"))
    };
    ranges.into_iter().map(hash).collect()
}

/// The root over adjacent perfect subtrees, the largest first; `None` if there are none.
fn fold(peaks: impl DoubleEndedIterator<Item = Hash>) -> Option<Hash> {
    peaks.rev().reduce(|right, left| Hash::node(left, right))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// The recursive definition of the tree hash in RFC 6962.
    fn mth(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => Hash::empty(),
            [leaf] => *leaf,
            _ => {
                let k = leaves.len().next_power_of_two() / 2;
                Hash::node(mth(&leaves[..k]), mth(&leaves[k..]))
            }
        }
    }

    type Nodes = HashMap<(u8, u64), Hash>;

    /// Leaves, the root at each size, and every perfect subtree.
    fn grow(n: u64) -> (Vec<Hash>, Vec<Hash>, Nodes) {
        let (mut frontier, mut nodes) = (Frontier::default(), HashMap::new());
        let (mut leaves, mut roots) = (Vec::new(), vec![frontier.root()]);
        for i in 0..n {
            let leaf = Hash::leaf(&i.to_be_bytes());
            frontier.append(leaf, |node, hash| {
                assert!(nodes.insert((node.level, node.index), hash).is_none());
            });
            leaves.push(leaf);
            roots.push(frontier.root());
        }
        (leaves, roots, nodes)
    }

    #[test]
    fn roots_match_the_recursive_definition() {
        let (leaves, roots, nodes) = grow(140);
        for (size, root) in roots.iter().enumerate() {
            assert_eq!(*root, mth(&leaves[..size]), "size {size}");
            let read = |n: Node| nodes.get(&(n.level, n.index)).copied().ok_or(());
            let frontier = Frontier::read(size as u64, read).expect("every peak was made");
            assert_eq!((frontier.root(), frontier.size()), (*root, size as u64));
            let peaks: Vec<_> = frontier.peaks().collect();
            assert_eq!(peaks.len(), size.count_ones() as usize);
            assert!(peaks.iter().all(|(n, hash)| read(*n) == Ok(*hash)));
        }
    }

    #[test]
    fn inclusion_proofs_verify_and_altered_ones_do_not() {
        let (leaves, roots, nodes) = grow(70);
        let read = |n: Node| Ok::<_, TreeError>(nodes[&(n.level, n.index)]);
        for size in 1..=70u64 {
            for index in 0..size {
                let proof = inclusion_proof(index, size, read).expect("in range");
                let (leaf, root) = (leaves[index as usize], roots[size as usize]);
                assert_eq!(verify_inclusion(leaf, index, size, &proof, root), Ok(()));
                // Another leaf, index, size or root; one hash too many, too few, or altered.
                let refused = verify_inclusion(Hash::leaf(b"x"), index, size, &proof, root);
                assert_eq!(refused, Err(TreeError::WrongRoot));
                for other in (0..size).filter(|o| *o != index) {
                    assert!(verify_inclusion(leaf, other, size, &proof, root).is_err());
                }
                assert!(
                    verify_inclusion(leaf, index, size, &proof, roots[size as usize - 1]).is_err()
                );
                let longer = [&proof[..], &[root]].concat();
                assert!(verify_inclusion(leaf, index, size, &longer, root).is_err());
                for n in 0..proof.len() {
                    let mut altered = proof.clone();
                    altered[n] = Hash::leaf(b"y");
                    assert!(verify_inclusion(leaf, index, size, &altered, root).is_err());
                    altered.remove(n);
                    assert!(verify_inclusion(leaf, index, size, &altered, root).is_err());
                }
            }
            assert_eq!(inclusion_proof(size, size, read), Err(TreeError::OutOfRange));
        }
    }

    #[test]
    fn consistency_proofs_verify_and_altered_ones_do_not() {
        let (_, roots, nodes) = grow(70);
        let read = |n: Node| Ok::<_, TreeError>(nodes[&(n.level, n.index)]);
        for new in 0..=70u64 {
            for old in 0..=new {
                let proof = consistency_proof(old, new, read).expect("in range");
                let (a, b) = ((old, roots[old as usize]), (new, roots[new as usize]));
                assert_eq!(verify_consistency(a, b, &proof), Ok(()), "{old} {new}");
                let other = Hash::leaf(b"another history");
                let refused = verify_consistency((old, other), b, &proof);
                assert_eq!(refused, Err(TreeError::WrongRoot));
                assert!(old == 0 || verify_consistency(a, (new, other), &proof).is_err());
                let longer = [&proof[..], &[other]].concat();
                assert!(verify_consistency(a, b, &longer).is_err());
                for n in 0..proof.len() {
                    let mut altered = proof.clone();
                    altered[n] = other;
                    assert!(verify_consistency(a, b, &altered).is_err());
                    altered.remove(n);
                    assert!(verify_consistency(a, b, &altered).is_err());
                }
            }
        }
        assert_eq!(consistency_proof(2, 1, read), Err(TreeError::OutOfRange));
    }

    #[test]
    fn oversized_trees_are_rejected_without_a_panic() {
        let h = Hash::empty();
        let read = |_| Ok::<_, TreeError>(h);
        for size in [MAX_SIZE + 1, u64::MAX] {
            let beyond = Err(TreeError::OutOfRange);
            assert_eq!(verify_inclusion(h, 0, size, &[h; 63], h), beyond);
            assert_eq!(verify_consistency((1, h), (size, h), &[h; 63]), beyond);
            assert_eq!(inclusion_proof(0, size, read), Err(TreeError::OutOfRange));
            assert_eq!(consistency_proof(1, size, read), Err(TreeError::OutOfRange));
        }
        assert!(verify_inclusion(h, MAX_SIZE - 1, MAX_SIZE, &[h; 62], h).is_err());
    }

    #[test]
    fn the_largest_tree_has_proofs() {
        // All leaves are equal, and with them all nodes of a level.
        let mut levels = vec![Hash::leaf(b"")];
        for level in 0..62 {
            levels.push(Hash::node(levels[level], levels[level]));
        }
        let read = |n: Node| Ok::<_, TreeError>(levels[usize::from(n.level)]);
        let root = |size| Frontier::read(size, read).unwrap().root();
        let new = (MAX_SIZE, root(MAX_SIZE));
        for index in [0, 1, MAX_SIZE / 3, MAX_SIZE - 1] {
            let proof = inclusion_proof(index, MAX_SIZE, read).unwrap();
            assert_eq!(verify_inclusion(levels[0], index, MAX_SIZE, &proof, new.1), Ok(()));
        }
        for old in [0, 1, MAX_SIZE / 3, MAX_SIZE / 2, MAX_SIZE - 1, MAX_SIZE] {
            let proof = consistency_proof(old, MAX_SIZE, read).unwrap();
            assert!(proof.len() <= MAX_PROOF);
            assert_eq!(verify_consistency((old, root(old)), new, &proof), Ok(()), "{old}");
        }
    }
}
