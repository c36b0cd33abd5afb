//! Interoperability: other implementations verify our notes, checkpoints, cosignatures, trees, tiles and policies,
//! and we verify theirs. The examples printed in the specifications parse.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use signed_note::{StandardSigner, StandardVerifier, VerifierList};
use tlog_tiles::{HashReader, TileHashReader, TileReader};
use wiretight_tlog::cosignature::Algorithm;
use wiretight_tlog::note::KeyName;
use wiretight_tlog::tile::{self, Kind, Tile};
use wiretight_tlog::tree::{self, Node};
use wiretight_tlog::{
    Checkpoint, Cosigner, Frontier, Hash, LogKey, LogSigner, Note, Policy, Proof, Signature,
    SignedCheckpoint, TreeError, WitnessKey,
};

const SIZE: u64 = 600;

fn leaves() -> Vec<Hash> {
    (0..SIZE).map(|n| Hash::leaf(&n.to_be_bytes())).collect()
}

fn node(node: Node) -> Result<Hash, TreeError> {
    let (width, index) = (1usize << node.level, node.index as usize);
    tile::subtree(&leaves()[index * width..(index + 1) * width]).ok_or(TreeError::OutOfRange)
}

fn root(size: u64) -> Hash {
    Frontier::read(size, node).unwrap().root()
}

fn theirs(hash: Hash) -> tlog_tiles::Hash {
    tlog_tiles::Hash(*hash.as_bytes())
}

fn ours(hash: tlog_tiles::Hash) -> Hash {
    hash.0.into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn name(text: &str) -> KeyName {
    KeyName::new(text).unwrap()
}

#[test]
fn notes_and_keys_interoperate_both_ways() {
    let signer = LogSigner::generate(name("log.example/a")).unwrap();
    let checkpoint = Checkpoint {
        origin: "log.example/a".into(),
        size: SIZE,
        root: root(SIZE),
        extensions: vec!["more".into()],
    };
    let signed = checkpoint.sign(&signer).unwrap().to_string();
    let known = |vkey: &LogKey| {
        VerifierList::new(vec![Box::new(StandardVerifier::new(&vkey.to_string()).unwrap())])
    };
    let note = signed_note::Note::from_bytes(signed.as_bytes()).unwrap();
    let (verified, others) = note.verify(&known(signer.public())).unwrap();
    assert_eq!((verified.len(), others.len()), (1, 0));
    let read = tlog_tiles::Checkpoint::from_bytes(note.text()).unwrap();
    assert_eq!((read.origin(), read.size(), read.extension()), ("log.example/a", SIZE, "more\n"));
    assert_eq!(*read.hash(), theirs(checkpoint.root));
    // A different key under the same name must not verify.
    let other = LogSigner::generate(name("log.example/a")).unwrap();
    assert!(note.verify(&known(other.public())).is_err());

    // The other direction: their signer with our private key, and their checkpoint.
    let signer_of_theirs = StandardSigner::new(&signer.to_private().unwrap()).unwrap();
    let text =
        tlog_tiles::Checkpoint::new("log.example/a", 7, theirs(root(7)), "").unwrap().to_bytes();
    let mut note = signed_note::Note::new(&text, &[]).unwrap();
    note.add_sigs(&[&signer_of_theirs]).unwrap();
    let note = String::from_utf8(note.to_bytes()).unwrap();
    let read = SignedCheckpoint::parse(&note).unwrap();
    assert_eq!(read.verified_by(signer.public()).map(|c| (c.size, c.root)), Some((7, root(7))));
    assert_eq!(read.verified_by(other.public()), None);
    assert_eq!(read.to_string(), note);
}

/// Our tiles, through the interface of their reader.
struct Tiles;

impl TileReader for Tiles {
    fn height(&self) -> u8 {
        8
    }

    fn read_tiles(&self, tiles: &[tlog_tiles::Tile]) -> Result<Vec<Vec<u8>>, tlog_tiles::Error> {
        let read = |wanted: &tlog_tiles::Tile| {
            // Their path contains the height: tile/8/...
            let tile = Tile::parse(&wanted.path().replacen("tile/8/", "tile/", 1))
                .expect("a path of ours");
            let Kind::Hashes { level } = tile.kind else { panic!("a tile of hashes") };
            let first = tile.index * tile::WIDTH;
            let hashes = (first..first + u64::from(tile.width))
                .map(|index| node(Node { level: level * 8, index }).unwrap());
            hashes.flat_map(|hash| *hash.as_bytes()).collect()
        };
        Ok(tiles.iter().map(read).collect())
    }

    fn save_tiles(&self, _: &[tlog_tiles::Tile], _: &[Vec<u8>]) {}
}

#[test]
fn their_proofs_from_our_tiles_equal_ours() {
    let reader = TileHashReader::new(SIZE, theirs(root(SIZE)), &Tiles);
    assert_eq!(ours(tlog_tiles::tree_hash(SIZE, &reader).unwrap()), root(SIZE));
    for index in [0, 1, 255, 256, 511, 512, SIZE - 1] {
        let leaf = leaves()[index as usize];
        let made = tlog_tiles::prove_record(SIZE, index, &reader).unwrap();
        let proof: Vec<Hash> = made.into_iter().map(ours).collect();
        assert_eq!(proof, tree::inclusion_proof(index, SIZE, node).unwrap());
        tree::verify_inclusion(leaf, index, SIZE, &proof, root(SIZE)).unwrap();
        let mut proof: Vec<_> = proof.into_iter().map(theirs).collect();
        tlog_tiles::check_record(&proof, SIZE, theirs(root(SIZE)), index, theirs(leaf)).unwrap();
        proof[0] = theirs(leaf);
        assert!(
            tlog_tiles::check_record(&proof, SIZE, theirs(root(SIZE)), index, theirs(leaf))
                .is_err()
        );
    }
    for old in [1, 2, 3, 255, 256, 257, 512, SIZE] {
        let made = tlog_tiles::prove_tree(SIZE, old, &reader).unwrap();
        let proof: Vec<Hash> = made.into_iter().map(ours).collect();
        assert_eq!(proof, tree::consistency_proof(old, SIZE, node).unwrap(), "{old}");
        tree::verify_consistency((old, root(old)), (SIZE, root(SIZE)), &proof).unwrap();
        let proof: Vec<_> = proof.into_iter().map(theirs).collect();
        tlog_tiles::check_tree(&proof, SIZE, theirs(root(SIZE)), old, theirs(root(old))).unwrap();
    }
    // A root that does not match the tiles.
    let reader = TileHashReader::new(SIZE, theirs(root(SIZE - 1)), &Tiles);
    assert!(reader.read_hashes(&[0]).is_err());
}

#[test]
fn the_tiles_of_a_grown_tree_match_theirs() {
    for (old, new) in
        [(0, 1), (0, 256), (255, 257), (256, 70_000), (65_535, 65_536), (70_000, 70_000)]
    {
        let mut made: Vec<String> =
            Tile::of_growth(old, new).filter(|t| t.kind != Kind::Entries).map(Tile::path).collect();
        let mut tiles: Vec<String> = tlog_tiles::Tile::new_tiles(8, old, new)
            .iter()
            .map(|tile| tile.path().replacen("tile/8/", "tile/", 1))
            .collect();
        made.sort();
        tiles.sort();
        assert_eq!(made, tiles, "{old} to {new}");
    }
}

/// Sigsum's verifier checks the same log signature, cosignatures and inclusion proof as C2SP, in another encoding.
#[test]
fn sigsum_accepts_our_log_and_witness() {
    let log_seed = [1u8; 32];
    let public =
        Ed25519KeyPair::from_seed_unchecked(&log_seed).unwrap().public_key().as_ref().to_vec();
    let key_hash = |key: &[u8]| hex(Hash::of(key).as_bytes());
    let origin = format!("sigsum.org/v1/tree/{}", key_hash(&public));
    let private = STANDARD.encode([&[1], &log_seed[..]].concat());
    let log = LogSigner::parse(&format!("PRIVATE+KEY+{origin}+00000000+{private}")).unwrap();
    let witness =
        Cosigner::from_seed(name("witness.example/w"), Algorithm::Ed25519, &[2; 32]).unwrap();

    let submitter = Ed25519KeyPair::from_seed_unchecked(&[3; 32]).unwrap();
    let message = Hash::of(b"what was signed");
    let checksum = Hash::of(message.as_bytes());
    let to_sign = [&b"sigsum.org/v1/tree-leaf\0"[..], checksum.as_bytes()].concat();
    let signature = submitter.sign(&to_sign);
    let submitter_key = submitter.public_key().as_ref();
    let entry =
        [&checksum.as_bytes()[..], signature.as_ref(), Hash::of(submitter_key).as_bytes()].concat();

    let mut leaves = leaves();
    leaves[300] = Hash::leaf(&entry);
    let node = |node: Node| {
        let (width, index) = (1usize << node.level, node.index as usize);
        tile::subtree(&leaves[index * width..(index + 1) * width]).ok_or(TreeError::OutOfRange)
    };
    let root = Frontier::read(SIZE, node).unwrap().root();
    let checkpoint = Checkpoint { origin, size: SIZE, root, extensions: Vec::new() };
    let signed = checkpoint.sign(&log).unwrap();
    let cosignature = witness.cosign(&checkpoint, 1_800_000_000).unwrap();
    let (time, cosigned) = cosignature.bytes.split_at(8);
    let time = u64::from_be_bytes(time.try_into().unwrap());
    let nodes = tree::inclusion_proof(300, SIZE, node).unwrap();
    let nodes: String =
        nodes.iter().map(|h| format!("node_hash={}\n", hex(h.as_bytes()))).collect();
    let text = format!(
        "version=2\nlog={}\nleaf={} {}\n\nsize={SIZE}\nroot_hash={}\nsignature={}\ncosignature={} {time} {}\n\nleaf_index=300\n{nodes}",
        key_hash(&public),
        key_hash(submitter_key),
        hex(signature.as_ref()),
        hex(root.as_bytes()),
        hex(&signed.note().signatures()[0].bytes),
        key_hash(witness.public().as_bytes()),
        hex(cosigned),
    );
    let policy =
        format!("log {}\nwitness w {}\nquorum w\n", hex(&public), hex(witness.public().as_bytes()));
    let policy = sigsum::Policy::parse(&policy).unwrap();
    let submitters = [sigsum::PublicKey::from(<[u8; 32]>::try_from(submitter_key).unwrap())];
    let verify = |text: &str| {
        let proof = sigsum::SigsumSignature::from_ascii(text).unwrap();
        sigsum::verify(&sigsum::Hash::from(*message.as_bytes()), &proof, &submitters, &policy)
    };
    verify(&text).unwrap();
    assert!(verify(&text.replace("1800000000", "1800000001")).is_err(), "the time is signed");
    assert!(verify(&text.replace("leaf_index=300", "leaf_index=301")).is_err());
}

/// These are also run by the JavaScript that checks the proof page; see crates/wiretight/web/vectors.mjs for their form.
/// Among them are Go's checksum database, the example of Go's package note, and those of the specifications.
#[test]
fn the_shared_vectors_have_their_results() {
    let all: Value = serde_json::from_str(include_str!("vectors.json")).unwrap();
    let text = |v: &Value, member: &str| v[member].as_str().unwrap().to_owned();
    let each = |kind: &str, judge: &dyn Fn(&Value) -> Value| {
        let vectors = all[kind].as_array().unwrap();
        for v in vectors {
            let expected = if kind == "policies" { &v["line"] } else { &v["ok"] };
            assert_eq!(judge(v), *expected, "{kind}: {v}");
        }
        assert!(vectors.len() > 8, "{kind}");
    };
    // What is accepted is written as it was.
    let again = |text: &str, read: Option<String>| match read {
        Some(written) => {
            assert_eq!(written, text);
            true.into()
        }
        None => false.into(),
    };
    each("notes", &|v| {
        again(&text(v, "note"), Note::parse(&text(v, "note")).ok().map(|n| n.to_string()))
    });
    each("checkpoints", &|v| {
        let read = SignedCheckpoint::parse(&text(v, "note")).ok();
        again(&text(v, "note"), read.map(|signed| signed.to_string()))
    });
    each("keys", &|v| {
        let vkey = text(v, "vkey");
        let read = match v["kind"].as_str() {
            Some("log") => LogKey::parse(&vkey).ok().map(|key| key.to_string()),
            _ => WitnessKey::parse(&vkey).ok().map(|key| key.to_string()),
        };
        again(&vkey, read)
    });
    each("signed", &|v| {
        let key = LogKey::parse(&text(v, "vkey")).unwrap();
        key.signed(&Note::parse(&text(v, "note")).unwrap()).into()
    });
    each("policies", &|v| match Policy::parse(text(v, "policy")) {
        Ok(_) => 0.into(),
        Err(refused) => {
            let problem = v["problem"].as_str().unwrap_or_default();
            assert!(refused.problem.contains(problem), "{refused}: {v}");
            refused.line.into()
        }
    });
}

#[test]
fn a_private_key_of_go_signs_the_same() {
    let private = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz";
    let signer = LogSigner::parse(private).unwrap();
    let all: Value = serde_json::from_str(include_str!("vectors.json")).unwrap();
    let signed = all["signed"][0]["note"].as_str().unwrap();
    let mut again = Note::new(Note::parse(signed).unwrap().text().to_owned()).unwrap();
    signer.sign(&mut again);
    assert_eq!(again.to_string(), signed, "Ed25519 has one signature for a text");
}

#[test]
fn the_examples_in_the_specifications_parse() {
    // C2SP tlog-cosignature: the only checkpoint among the vectors with two signatures.
    let all: Value = serde_json::from_str(include_str!("vectors.json")).unwrap();
    let mut notes =
        all["checkpoints"].as_array().unwrap().iter().filter_map(|v| v["note"].as_str());
    let cosigned = notes.find(|note| note.contains("witness.example.com/w1")).unwrap();
    let read = SignedCheckpoint::parse(cosigned).unwrap();
    assert_eq!(read.unverified().size, 20_852_163);
    let cosignature: &Signature = &read.note().signatures()[1];
    let time = u64::from_be_bytes(*cosignature.bytes.first_chunk().unwrap());
    assert_eq!(
        (time, cosignature.bytes.len()),
        (1_679_315_147, 72),
        "the time that the text prints"
    );
    // The example of C2SP tlog-proof, with complete signatures: those in the specification are truncated.
    let proof = format!(
        "c2sp.org/tlog-proof@v1\nindex 73894\ngSKyXoYZUgZ6jduWYrkDOARinOMGJveXjgMkBTcdPlQ=\nB95lDa8R83lS8n0eG+o0buTxRKQTYFi//1U8anccXmA=\n\n{cosigned}"
    );
    let read = Proof::parse(&proof).unwrap();
    assert_eq!((read.index, read.hashes.len(), read.to_string()), (73_894, 2, proof));
}

#[test]
fn a_cosignature_signs_the_structure_in_the_specification() {
    let checkpoint = Checkpoint {
        origin: "log.example/a".into(),
        size: SIZE,
        root: root(SIZE),
        extensions: Vec::new(),
    };
    let (time, who) = (1_800_000_000u64, "witness.example/w");
    // Ed25519: the message built by hand, verified with Sigsum's library.
    let ed25519 = Cosigner::from_seed(name(who), Algorithm::Ed25519, &[7; 32]).unwrap();
    let made = ed25519.cosign(&checkpoint, time).unwrap();
    let message = format!("cosignature/v1\ntime {time}\nlog.example/a\n{SIZE}\n{}\n", root(SIZE));
    let key = sigsum::PublicKey::from(<[u8; 32]>::try_from(ed25519.public().as_bytes()).unwrap());
    let signature = sigsum::Signature::from(<[u8; 64]>::try_from(&made.bytes[8..]).unwrap());
    assert!(key.verify_signature(&message, &signature));
    // ML-DSA-44: the message built by hand.
    let ml_dsa = Cosigner::from_seed(name(who), Algorithm::MlDsa44, &[7; 32]).unwrap();
    let made = ml_dsa.cosign(&checkpoint, time).unwrap();
    assert_eq!((made.bytes.len(), ml_dsa.public().as_bytes().len()), (8 + 2420, 1312));
    let mut message = b"subtree/v1\n\0".to_vec();
    message.extend([&[17], who.as_bytes(), &time.to_be_bytes(), &[13], b"log.example/a"].concat());
    message.extend([&0u64.to_be_bytes()[..], &SIZE.to_be_bytes(), root(SIZE).as_bytes()].concat());
    let key = aws_lc_rs::signature::UnparsedPublicKey::new(
        &aws_lc_rs::signature::ML_DSA_44,
        ml_dsa.public().as_bytes(),
    );
    key.verify(&message, &made.bytes[8..]).unwrap();
    let vkey = ml_dsa.public().to_string();
    assert_eq!(&WitnessKey::parse(&vkey).unwrap(), ml_dsa.public());
}
