//! Proofs of earlier entries and trees.

use std::sync::atomic::Ordering;

use wiretight::log::sequencer::LogError;
use wiretight_tlog::Hash;
use wiretight_tlog::tree::{verify_consistency, verify_inclusion};

use super::sequencer::World;

#[tokio::test]
async fn earlier_entries_and_trees_are_proved_from_the_tiles() {
    let world = World::new();
    let log = world.start().await.unwrap();
    let (mut all, mut trees) = (Vec::new(), vec![(0, Hash::empty())]);
    for count in [1usize, 1, 98, 150, 6, 1, 300, 700] {
        let entries: Vec<_> =
            (0..count).map(|n| format!("entry {}", all.len() + n).into_bytes()).collect();
        let proofs = log.append_all(entries.clone()).await.unwrap();
        let tree = proofs[0].checkpoint.unverified();
        trees.push((tree.size, tree.root));
        all.extend(entries);
    }
    let indexes: Vec<u64> = (0..all.len() as u64).step_by(7).chain([1256, 0]).collect();
    let sizes: Vec<u64> = trees.iter().map(|(size, _)| *size).collect();
    let proven = log.prove(&indexes, &sizes).await.unwrap();
    let tree = world.policy.witnessed(&proven.checkpoint).unwrap().checkpoint().clone();
    assert_eq!(tree.size, 1257);
    assert_eq!((proven.inclusion.len(), proven.consistency.len()), (indexes.len(), sizes.len()));
    for (index, proof) in indexes.iter().zip(&proven.inclusion) {
        let leaf = Hash::leaf(&all[*index as usize]);
        verify_inclusion(leaf, *index, tree.size, proof, tree.root).unwrap();
        let other = Hash::leaf(&all[(*index as usize + 1) % all.len()]);
        assert!(verify_inclusion(other, *index, tree.size, proof, tree.root).is_err());
    }
    for (old, proof) in trees.iter().zip(&proven.consistency) {
        verify_consistency(*old, (tree.size, tree.root), proof).unwrap();
    }
    // Between two earlier trees, whose partial tiles are no longer there.
    for (n, new) in trees.iter().enumerate() {
        for old in &trees[..n] {
            let proof = log.consistency(old.0, new.0).await.unwrap();
            verify_consistency(*old, *new, &proof).unwrap();
        }
    }
    assert_eq!(log.find(&all[300], 0).await.unwrap(), Some(300));
    assert_eq!(log.find(&all[300], 300).await.unwrap(), Some(300));
    assert_eq!(log.find(&all[300], 301).await.unwrap(), None);
    assert_eq!(log.find(b"something else", 0).await.unwrap(), None);

    // Nothing is proved that is not published.
    let beyond = [(vec![1257], vec![]), (vec![], vec![1258]), (vec![u64::MAX], vec![0])];
    for (indexes, sizes) in beyond {
        assert!(matches!(log.prove(&indexes, &sizes).await, Err(LogError::NotPublished)));
    }
    world.witnesses.iter().for_each(|w| w.away.store(true, Ordering::SeqCst));
    let waiting = tokio::spawn({
        let log = log.clone();
        async move { log.append(b"late".into()).await }
    });
    while log.status().size == 1257 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert!(matches!(log.prove(&[1257], &[]).await, Err(LogError::NotPublished)));
    assert_eq!(log.prove(&indexes, &sizes).await.unwrap(), proven);
    world.witnesses.iter().for_each(|w| w.away.store(false, Ordering::SeqCst));
    waiting.await.unwrap().unwrap();
    log.prove(&[1257], &[]).await.unwrap();
}
