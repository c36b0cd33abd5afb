//! What makes a checkpoint believed, and a proof: with each refusal its positive twin.

#![expect(clippy::unwrap_used, reason = "a test's set-up works or the test has failed")]

use wiretight_tlog::cosignature::Algorithm;
use wiretight_tlog::note::KeyName;
use wiretight_tlog::tree::{self, Node};
use wiretight_tlog::{
    Checkpoint, Cosigner, Frontier, Hash, LogSigner, Policy, Proof, ProofError, Refused,
    SignedCheckpoint, TreeError,
};

const NOW: u64 = 1_800_000_000;

struct World {
    log: LogSigner,
    witnesses: Vec<Cosigner>,
    leaves: Vec<Hash>,
}

fn name(text: &str) -> KeyName {
    KeyName::new(text).expect("a proper name")
}

fn world() -> World {
    let witness = |n: u8| {
        let algorithm = if n == 2 { Algorithm::MlDsa44 } else { Algorithm::Ed25519 };
        Cosigner::from_seed(name(&format!("witness.example/{n}")), algorithm, &[n; 32]).unwrap()
    };
    World {
        log: LogSigner::generate(name("log.example/a")).unwrap(),
        witnesses: (0..3).map(witness).collect(),
        leaves: (0..100u8).map(|n| Hash::leaf(&[n])).collect(),
    }
}

impl World {
    fn policy(&self, quorum: &str) -> Policy {
        let mut text = format!("# ours\nlog {} https://log.example\n\n", self.log.public());
        for (n, witness) in self.witnesses.iter().enumerate() {
            text.push_str(&format!("witness w{n} {}\n", witness.public()));
        }
        Policy::parse(&format!("{text}{quorum}\n")).unwrap()
    }

    fn two_of_three(&self) -> Policy {
        self.policy("group all 2 w0 w1 w2\nquorum all")
    }

    fn checkpoint(&self, size: usize) -> Checkpoint {
        let mut frontier = Frontier::default();
        self.leaves[..size].iter().for_each(|leaf| frontier.append(*leaf, |_, _| {}));
        let (origin, root) = (self.log.public().name().to_string(), frontier.root());
        Checkpoint { origin, size: size as u64, root, extensions: Vec::new() }
    }

    fn signed(&self, size: usize, cosigned: &[(usize, u64)]) -> SignedCheckpoint {
        let mut signed = self.checkpoint(size).sign(&self.log).unwrap();
        for (witness, time) in cosigned {
            signed.add(self.witnesses[*witness].cosign(signed.unverified(), *time).unwrap());
        }
        SignedCheckpoint::parse(&signed.to_string()).unwrap()
    }

    fn proof(&self, index: u64, size: usize, cosigned: &[(usize, u64)]) -> Proof {
        let read = |node: Node| {
            let width = 1 << node.level;
            let start = node.index as usize * width;
            wiretight_tlog::tile::subtree(&self.leaves[start..start + width])
                .ok_or(TreeError::OutOfRange)
        };
        let hashes = tree::inclusion_proof(index, size as u64, read).unwrap();
        let proof = Proof { extra: None, index, hashes, checkpoint: self.signed(size, cosigned) };
        Proof::parse(&proof.to_string()).unwrap()
    }
}

#[test]
fn a_quorum_is_what_the_policy_says() {
    let w = world();
    let policy = w.two_of_three();
    for pair in [[0, 1], [0, 2], [1, 2]] {
        let signed = w.signed(9, &pair.map(|n| (n, NOW)));
        assert_eq!(policy.witnessed(&signed).unwrap().time(), Some(NOW));
        for alone in pair {
            let refused = policy.witnessed(&w.signed(9, &[(alone, NOW)]));
            assert!(matches!(refused, Err(Refused::ShortQuorum { have: 1, .. })));
        }
    }
    assert!(matches!(
        policy.witnessed(&w.signed(9, &[])),
        Err(Refused::ShortQuorum { have: 0, .. })
    ));
    // One witness twice is one witness.
    let twice = w.signed(9, &[(0, NOW), (0, NOW + 1)]);
    assert!(matches!(policy.witnessed(&twice), Err(Refused::ShortQuorum { have: 1, .. })));
    // A witness that the policy does not name.
    let stranger =
        Cosigner::from_seed(name("witness.example/1"), Algorithm::Ed25519, &[9; 32]).unwrap();
    let mut signed = w.signed(9, &[(0, NOW)]);
    signed.add(stranger.cosign(signed.unverified(), NOW).unwrap());
    assert!(matches!(policy.witnessed(&signed), Err(Refused::ShortQuorum { have: 1, .. })));
    // A cosignature of another checkpoint.
    let mut signed = w.signed(9, &[(0, NOW)]);
    signed.add(w.witnesses[1].cosign(&w.checkpoint(8), NOW).unwrap());
    assert!(matches!(policy.witnessed(&signed), Err(Refused::ShortQuorum { have: 1, .. })));
    // Nested groups.
    let nested = w.policy("group outside any w1 w2\ngroup both all w0 outside\nquorum both");
    assert!(nested.witnessed(&w.signed(9, &[(0, NOW), (2, NOW)])).is_ok());
    assert!(nested.witnessed(&w.signed(9, &[(1, NOW), (2, NOW)])).is_err());
    // Nobody: self-attested.
    assert_eq!(w.policy("quorum none").witnessed(&w.signed(9, &[])).unwrap().time(), None);
}

#[test]
fn another_log_is_not_believed() {
    let (w, other) = (world(), world());
    let refused = w.two_of_three().witnessed(&other.signed(9, &[(0, NOW), (1, NOW)]));
    assert!(matches!(refused, Err(Refused::UnknownLog { .. })));
    // The right key under another origin.
    let mut checkpoint = w.checkpoint(9);
    checkpoint.origin = "log.example/b".into();
    let mut signed = checkpoint.sign(&w.log).unwrap();
    for n in [0, 1] {
        signed.add(w.witnesses[n].cosign(&checkpoint, NOW).unwrap());
    }
    assert!(matches!(w.two_of_three().witnessed(&signed), Err(Refused::UnknownLog { .. })));
}

#[test]
fn the_time_is_when_the_whole_quorum_had_seen_it() {
    let w = world();
    let time = |cosigned: &[(usize, u64)]| {
        w.two_of_three().witnessed(&w.signed(9, cosigned)).unwrap().time()
    };
    assert_eq!(time(&[(0, NOW - 50), (1, NOW)]), Some(NOW - 50));
    assert_eq!(time(&[(0, NOW - 50), (1, NOW), (2, NOW - 9)]), Some(NOW - 9));
    // A witness whose clock is wrong, or that lies, moves it no further than an honest one.
    assert_eq!(time(&[(0, NOW - 50), (1, u64::MAX)]), Some(NOW - 50));
    let fresh =
        |at| w.two_of_three().witnessed(&w.signed(9, &[(0, at), (1, at)])).unwrap().fresh(NOW, 60);
    assert_eq!(fresh(NOW - 60), Ok(()));
    assert_eq!(fresh(NOW - 61), Err(Refused::Stale { age: 61, allowed: 60 }));
    assert_eq!(fresh(NOW + 300), Ok(()));
    assert_eq!(fresh(NOW + 301), Err(Refused::FromTheFuture { ahead: 301 }));
}

#[test]
fn a_proof_is_of_one_entry_at_one_index() {
    let w = world();
    let (policy, both) = (w.two_of_three(), [(0, NOW), (2, NOW)]);
    for (index, size) in [(0, 1), (0, 2), (63, 64), (64, 65), (42, 100), (99, 100)] {
        let proof = w.proof(index, size, &both);
        let leaf = w.leaves[index as usize];
        assert!(proof.verify(&policy, leaf).is_ok());
        let refused = proof.verify(&policy, Hash::leaf(b"another entry"));
        assert!(matches!(refused, Err(ProofError::NotIncluded { .. })));
        let moved = Proof { index: index ^ 1, ..proof.clone() };
        assert!(matches!(moved.verify(&policy, leaf), Err(ProofError::NotIncluded { .. })));
    }
    // A believed checkpoint does not vouch for a proof of another one.
    let seen = policy.witnessed(&w.signed(64, &both)).unwrap();
    assert!(w.proof(42, 64, &[]).verify_in(&seen, w.leaves[42]).is_ok());
    assert!(w.proof(42, 100, &[]).verify_in(&seen, w.leaves[42]).is_err());
}

#[test]
fn every_byte_of_a_proof_counts() {
    let w = world();
    let (policy, leaf) = (w.policy("group all 2 w0 w1\nquorum all"), w.leaves[42]);
    let text = w.proof(42, 100, &[(0, NOW), (1, NOW)]).to_string();
    let holds = |text: &[u8]| {
        let proof = std::str::from_utf8(text).ok().and_then(|t| Proof::parse(t).ok());
        proof.is_some_and(|p| p.verify(&policy, leaf).is_ok())
    };
    assert!(holds(text.as_bytes()));
    for at in 0..text.len() {
        for flip in [0x01, 0x20] {
            let mut altered = text.clone().into_bytes();
            altered[at] ^= flip;
            assert!(
                !holds(&altered),
                "bit {flip:#x} of byte {at}: {:?}",
                String::from_utf8_lossy(&altered)
            );
        }
        assert!(!holds(&text.as_bytes()[..at]), "cut at {at}");
    }
}

#[test]
fn who_is_asked_has_to_be_in_every_quorum() {
    let w = world();
    let policy = w.two_of_three();
    assert!(!policy.is_in_every_quorum(|n| n == 0));
    assert!(policy.is_in_every_quorum(|n| n != 1));
    assert!(policy.is_quorum(|n| n != 1));
    assert!(w.policy("quorum none").is_in_every_quorum(|_| false));
    assert!(w.policy("quorum w1").is_in_every_quorum(|n| n == 1));
    assert!(!w.policy("quorum w1").is_in_every_quorum(|n| n == 0));
}

#[test]
fn policies_that_would_deceive_are_refused() {
    let w = world();
    let (log, a, b) = (w.log.public(), w.witnesses[0].public(), w.witnesses[1].public());
    let good = format!("log {log}\nwitness a {a}\nwitness b {b}\ngroup g all a b\nquorum g\n");
    assert!(Policy::parse(&good).is_ok());
    for (bad, line, problem) in [
        (good.replace("quorum g\n", ""), 5, "no `quorum`"),
        (format!("{good}quorum a\n"), 6, "already"),
        (good.replace("all a b", "3 a b"), 4, "from 1"),
        (good.replace("all a b", "0 a b"), 4, "from 1"),
        (good.replace("all a b", "all a a"), 4, "twice"),
        (good.replace("all a b", "all a c"), 4, "not defined"),
        (good.replace("quorum g", "group h any a\nquorum h"), 5, "twice"),
        (good.replace("witness b ", "witness a "), 3, "twice"),
        (good.replace(&b.to_string(), &a.to_string()), 3, "twice"),
        (good.replace("witness a ", "witness none "), 2, "none"),
        (good.replace(&format!("log {log}"), &format!("log {a}")), 1, "witness' key"),
        (good.replace(&a.to_string(), &log.to_string()), 2, "log's key"),
        (format!("logs {log}\n{good}"), 1, "none of"),
        (good.replace("quorum g", "quorum g h"), 5, "none of"),
    ] {
        let refused = Policy::parse(&bad).expect_err(&bad);
        assert!(refused.line == line && refused.problem.contains(problem), "{refused}: {bad}");
    }
}

#[test]
fn witness_keys_survive_being_written() {
    for (n, witness) in world().witnesses.iter().enumerate() {
        let again = Cosigner::parse(&witness.to_private().unwrap()).unwrap();
        assert_eq!(again.public(), witness.public());
        let vkey = witness.public().to_string();
        let read = wiretight_tlog::WitnessKey::parse(&vkey).unwrap();
        assert_eq!(read.to_string(), vkey, "witness {n}");
    }
}
