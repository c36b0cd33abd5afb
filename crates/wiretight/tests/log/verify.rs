//! Offline verification, and the reader against altered logs.

use wiretight::log::reader::{ReadError, Reader};
use wiretight_keys::{Period, Profile, Signer, SigningKey, Tbs, x509};
use wiretight_tlog::tree::{verify_consistency, verify_inclusion};
use wiretight_tlog::{Cosigner, Hash, SignedCheckpoint};

use super::rig::{Log, cosigner, now, policy, stderr, stdout, wiretight, write};

struct World {
    dir: tempfile::TempDir,
    log: Log,
    witnesses: [Cosigner; 2],
}

impl World {
    fn new(size: usize) -> World {
        let (dir, log) = (tempfile::tempdir().unwrap(), Log::of("log.example/a", size));
        let witnesses = [cosigner(0), cosigner(1)];
        write(dir.path(), "policy", policy(&log, &[&witnesses[0], &witnesses[1]]));
        World { dir, log, witnesses }
    }

    fn cosigned(&self, size: usize) -> SignedCheckpoint {
        self.log.cosigned(size, &[&self.witnesses[0], &self.witnesses[1]], now() - 60)
    }

    fn verify(&self, args: &[&str]) -> (i32, String) {
        let policy = self.dir.path().join("policy").display().to_string();
        let output = wiretight(&[&["verify", "--policy", &policy], args].concat());
        (output.status.code().unwrap(), stdout(&output) + &stderr(&output))
    }

    #[track_caller]
    fn good(&self, args: &[&str], words: &[&str]) {
        let (code, text) = self.verify(args);
        assert_eq!(code, 0, "{text}");
        words.iter().for_each(|w| assert!(text.contains(w), "{w}: {text}"));
    }

    #[track_caller]
    fn refused(&self, args: &[&str], words: &[&str]) {
        let (code, text) = self.verify(args);
        assert_eq!(code, 1, "{text}");
        words.iter().for_each(|w| assert!(text.contains(w), "{w}: {text}"));
    }

    fn file(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        write(self.dir.path(), name, text).display().to_string()
    }
}

#[test]
fn a_proof_and_its_entry() {
    let world = World::new(300);
    let proof = world.log.proof(42, world.cosigned(300)).to_string();
    let (file, entry) = (world.file("proof", &proof), world.file("entry", &world.log.entries[42]));
    world.good(
        &[&file, "--entry", &entry],
        &[
            "is entry 42 of the log",
            "tree of 300 entries",
            "cosigned by w0 (witness.example/0)",
            "cosigned by w1",
            "all-of-them: 2 of 2",
        ],
    );
    world.good(&[&file], &["not verified: the content of entry 42"]);
    let other = world.file("other", &world.log.entries[43]);
    world.refused(&[&file, "--entry", &other], &["refused", "not at index 42"]);
    let moved = world.file("moved", proof.replace("index 42", "index 43"));
    world.refused(&[&moved, "--entry", &entry], &["not at index 43"]);
    let short =
        world.log.proof(42, world.log.cosigned(300, &[&world.witnesses[0]], now())).to_string();
    world.refused(
        &[&world.file("short", short), "--entry", &entry],
        &["1 of the policy's witnesses"],
    );
    world.refused(&[&file, "--max-age", "30s"], &["cosigned the checkpoint"]);
    world.good(&[&file, "--max-age", "10m"], &[]);
    // A refused proof among good ones.
    world.refused(&[&file, &moved, "--entry", &entry], &["good", "refused"]);
    let (_, json) = world.verify(&[&file, "--entry", &entry, "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json[0]["good"], &json[0]["index"]), (&true.into(), &42.into()));
    assert_eq!(json[0]["log"]["witnesses"].as_array().unwrap().len(), 2);
}

#[test]
fn a_checkpoint_alone() {
    let world = World::new(300);
    let text = world.cosigned(300).to_string();
    world.good(
        &[&world.file("checkpoint", &text)],
        &["not verified: entries, because a checkpoint contains none"],
    );
    world.refused(
        &[&world.file("altered", text.replace("\n300\n", "\n301\n"))],
        &["no log in the policy signed"],
    );
    world.refused(&[&world.file("nothing", "nothing")], &["not a signed note"]);
    // Without witnesses, the output says so.
    world.file("policy", policy(&world.log, &[]));
    world.good(&[&world.file("checkpoint", &text)], &["the policy requires no witnesses"]);
    world.refused(&[&world.file("checkpoint", &text), "--max-age", "1d"], &["its age is unknown"]);
}

#[test]
fn bad_usage_is_not_a_refusal() {
    let world = World::new(3);
    let checkpoint = world.file("checkpoint", world.cosigned(3).to_string());
    assert_eq!(world.verify(&["/nowhere/at/all"]).0, 2);
    world.file("policy", "log nonsense\nquorum none\n");
    let (code, text) = world.verify(&[&checkpoint]);
    assert!(code == 2 && text.contains("line 1"), "{text}");
    assert_eq!(wiretight(&["verify", &checkpoint]).status.code(), Some(2));
}

#[test]
fn every_bit_of_a_log_is_verified_against_its_checkpoint() {
    let world = World::new(70_000);
    let dir = world.dir.path().join("log");
    world.log.publish(&dir, &world.cosigned(70_000));
    let path = dir.display().to_string();
    world.good(&[&path], &["all 70000 entries and all tiles"]);
    for file in [
        "tile/entries/000",
        "tile/entries/273.p/112",
        "tile/0/000",
        "tile/0/100",
        "tile/0/273.p/112",
        "tile/1/000",
        "tile/1/001.p/17",
        "tile/2/000.p/1",
    ] {
        let file = dir.join(file);
        let good = std::fs::read(&file).unwrap();
        for at in [20, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            std::fs::write(&file, bad).unwrap();
            world.refused(&[&path], &["does not match the log's checkpoint"]);
        }
        for bad in [&good[..good.len() - 1], &[&good[..], b"x"].concat()] {
            std::fs::write(&file, bad).unwrap();
            world.refused(&[&path], &["refused"]);
        }
        std::fs::remove_file(&file).unwrap();
        world.refused(&[&path], &["does not exist"]);
        std::fs::write(&file, good).unwrap();
    }
    world.good(&[&path], &[]);
}

#[test]
fn a_certificate_carries_its_proof() {
    let mut world = World::new(20);
    let key = SigningKey::generate().unwrap();
    let period = Period { not_before: now(), not_after: now() + 3600 };
    let tbs = |service: &str| {
        let id = format!("spiffe://example.org/service/{service}").parse().unwrap();
        Tbs::new(&Profile::Leaf(id), &key.public_key(), period, [7; 16], None, key.algorithm())
            .unwrap()
    };
    world.log.entries.push(tbs("db").entry().unwrap());
    world.log.entries.push(b"more".to_vec());
    let proof = world.log.proof(20, world.cosigned(22));
    let certificate = tbs("db").proved(&proof).unwrap().sign(&key).unwrap();
    let unlogged = tbs("db").sign(&key).unwrap();
    let pem = world.file("db.pem", x509::to_pem([&certificate]));
    world.good(
        &[&pem],
        &["is entry 20 of the log", "not verified: the certificate's signature, revocation"],
    );
    let chain = x509::to_pem([&certificate, &unlogged]);
    world.refused(
        &[&world.file("chain.pem", chain)],
        &["is entry 20", "certificate 2 of 2", "carries no proof"],
    );
    world.refused(&[&world.file("unlogged.pem", x509::to_pem([&unlogged]))], &["carries no proof"]);
    let other = tbs("web").proved(&proof).unwrap().sign(&key).unwrap();
    world.refused(&[&world.file("other.pem", x509::to_pem([&other]))], &["not at index 20"]);
    let short = world.log.proof(20, world.log.cosigned(22, &[&world.witnesses[0]], now()));
    let short = tbs("db").proved(&short).unwrap().sign(&key).unwrap();
    world.refused(
        &[&world.file("short.pem", x509::to_pem([&short]))],
        &["1 of the policy's witnesses"],
    );
    // A new proof for an old entry: nodes refuse it, and so does `verify`.
    let old = Period { not_before: now() - 3600, not_after: now() + 3600 };
    let id = "spiffe://example.org/service/db".parse().unwrap();
    let (spki, algorithm) = (key.public_key(), key.algorithm());
    let tbs = Tbs::new(&Profile::Leaf(id), &spki, old, [7; 16], None, algorithm).unwrap();
    world.log.entries.push(tbs.entry().unwrap());
    let proof = world.log.proof(22, world.cosigned(23));
    let late = tbs.proved(&proof).unwrap().sign(&key).unwrap();
    let late = world.file("late.pem", x509::to_pem([&late]));
    world.refused(&[&late], &["was not issued when it was logged"]);
}

#[tokio::test]
async fn proofs_are_computed_from_tiles_at_every_size() {
    for size in [0, 1, 2, 255, 256, 257, 511, 512, 70_000] {
        let log = Log::of("log.example/a", size);
        let dir = tempfile::tempdir().unwrap();
        log.publish(dir.path(), &log.signed(size));
        let (reader, checkpoint) = (Reader::directory(dir.path()), log.checkpoint(size));
        let tree = reader.tree(&checkpoint).await.unwrap();
        for old in
            [0, 1, 2, 3, 200, 255, 256, 257, 511, 69_888].into_iter().filter(|old| *old <= size)
        {
            let old_root = log.checkpoint(old).root;
            assert_eq!(tree.root_at(old as u64).await.unwrap(), old_root);
            let proof = tree.consistency(old as u64).await.unwrap();
            let (old, new) = ((old as u64, old_root), (size as u64, checkpoint.root));
            verify_consistency(old, new, &proof).unwrap();
        }
        for index in [0, 1, 254, 255, 256, 65_536, 69_999].into_iter().filter(|i| *i < size) {
            let proof = tree.inclusion(index as u64).await.unwrap();
            let leaf = Hash::leaf(&log.entries[index]);
            verify_inclusion(leaf, index as u64, size as u64, &proof, checkpoint.root).unwrap();
        }
        for range in [0..0, 0..1, 100..600, 250..260, 65_530..69_999] {
            let (start, end) = (range.start.min(size), range.end.min(size));
            let entries = tree.entries(start as u64..end as u64).await.unwrap();
            assert_eq!(entries, log.entries[start..end]);
        }
        assert!(matches!(tree.entries(0..size as u64 + 1).await, Err(ReadError::Tree(_))));
        assert!(matches!(tree.root_at(size as u64 + 1).await, Err(ReadError::Tree(_))));
        assert!(matches!(tree.inclusion(size as u64).await, Err(ReadError::Tree(_))));
    }
}

#[tokio::test]
async fn a_removed_partial_tile_is_read_from_the_full_one() {
    let log = Log::of("log.example/a", 600);
    let dir = tempfile::tempdir().unwrap();
    // Of the tree of size 300, only the files that the tree of size 600 has.
    log.publish(dir.path(), &log.signed(600));
    assert!(!dir.path().join("tile/0/001.p/44").exists());
    let reader = Reader::directory(dir.path());
    // tile/1 is partial in both and must exist.
    let leaves: Vec<Hash> = log.entries[..256].iter().map(|e| Hash::leaf(e)).collect();
    let root = wiretight_tlog::tile::subtree(&leaves).unwrap();
    write(&dir.path().join("tile/1/000.p"), "1", root.as_bytes());
    let tree = reader.tree(&log.checkpoint(300)).await.unwrap();
    assert_eq!(tree.entries(200..300).await.unwrap(), log.entries[200..300]);
    // The checkpoint of another tree does not match these tiles.
    let fork = log.forked(290, 300);
    assert!(matches!(reader.tree(&fork.checkpoint(300)).await, Err(ReadError::Mismatch(_))));
}
