//! Which checkpoints and proofs a policy accepts. Each rejection is tested together with an accepted counterpart.

#![expect(clippy::unwrap_used, reason = "a test's set-up works or the test has failed")]

use wiretight_tlog::cosignature::Algorithm;
use wiretight_tlog::note::{KeyName, MAX_NOTE, MAX_SIGNATURES};
use wiretight_tlog::policy::MAX_POLICY;
use wiretight_tlog::tree::{self, MAX_PROOF, Node};
use wiretight_tlog::{
    Checkpoint, Cosigner, Frontier, Hash, LogKey, LogSigner, Policy, Proof, ProofError, Refused,
    Signature, SignedCheckpoint, TreeError,
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
        Policy::parse(format!("{text}{quorum}\n")).unwrap()
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
fn a_policy_is_written_as_it_is_read() {
    let w = world();
    for quorum in [
        "quorum none",
        "quorum w1",
        "group all 2 w0 w1 w2\nquorum all",
        "group both all w0 w2\ngroup either any both w1\nquorum either",
    ] {
        let policy = w.policy(quorum);
        let text = policy.to_string();
        assert_eq!(Policy::parse(&text).unwrap(), policy, "{text}");
        assert!(text.contains("https://log.example"));
        let published = policy.clone().without_urls();
        assert!(!published.to_string().contains("https"));
        assert_eq!(published.quorum_text(), policy.quorum_text());
        assert_eq!(published.logs()[0].key, policy.logs()[0].key);
    }
}

#[test]
fn the_policy_defines_the_quorum() {
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
    // One witness that signed twice counts once.
    let twice = w.signed(9, &[(0, NOW), (0, NOW + 1)]);
    assert!(matches!(policy.witnessed(&twice), Err(Refused::ShortQuorum { have: 1, .. })));
    // A witness that is not in the policy.
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
    // No witnesses: self-attested.
    assert_eq!(w.policy("quorum none").witnessed(&w.signed(9, &[])).unwrap().time(), None);
}

#[test]
fn a_log_that_is_not_in_the_policy_is_rejected() {
    let (w, other) = (world(), world());
    let refused = w.two_of_three().witnessed(&other.signed(9, &[(0, NOW), (1, NOW)]));
    assert!(matches!(refused, Err(Refused::UnknownLog { .. })));
    // The right key with another origin.
    let mut checkpoint = w.checkpoint(9);
    checkpoint.origin = "log.example/b".into();
    let mut signed = checkpoint.sign(&w.log).unwrap();
    for n in [0, 1] {
        signed.add(w.witnesses[n].cosign(&checkpoint, NOW).unwrap());
    }
    assert!(matches!(w.two_of_three().witnessed(&signed), Err(Refused::UnknownLog { .. })));
}

#[test]
fn the_time_is_when_the_quorum_was_complete() {
    let w = world();
    let time = |cosigned: &[(usize, u64)]| {
        w.two_of_three().witnessed(&w.signed(9, cosigned)).unwrap().time()
    };
    assert_eq!(time(&[(0, NOW - 50), (1, NOW)]), Some(NOW - 50));
    assert_eq!(time(&[(0, NOW - 50), (1, NOW), (2, NOW - 9)]), Some(NOW - 9));
    // A dishonest witness, or one with a wrong clock, cannot move the time past that of an honest witness.
    assert_eq!(time(&[(0, NOW - 50), (1, i64::MAX as u64)]), Some(NOW - 50));
    let fresh =
        |at| w.two_of_three().witnessed(&w.signed(9, &[(0, at), (1, at)])).unwrap().fresh(NOW, 60);
    assert_eq!(fresh(NOW - 60), Ok(()));
    assert_eq!(fresh(NOW - 61), Err(Refused::Stale { age: 61, allowed: 60 }));
    assert_eq!(fresh(NOW + 300), Ok(()));
    assert_eq!(fresh(NOW + 301), Err(Refused::FromTheFuture { ahead: 301 }));
}

#[test]
fn a_proof_covers_one_entry_at_one_index() {
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
    // A witnessed checkpoint does not validate a proof that belongs to another checkpoint.
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
fn is_in_every_quorum_checks_all_quorums() {
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
fn written_witness_keys_parse_to_the_same_key() {
    for (n, witness) in world().witnesses.iter().enumerate() {
        let again = Cosigner::parse(&witness.to_private().unwrap()).unwrap();
        assert_eq!(again.public(), witness.public());
        let vkey = witness.public().to_string();
        let read = wiretight_tlog::WitnessKey::parse(&vkey).unwrap();
        assert_eq!(read.to_string(), vkey, "witness {n}");
    }
}

/// A signature with the name and key ID of the given one, and invalid bytes.
fn junk(signature: &Signature, n: u8) -> Signature {
    Signature {
        bytes: [&signature.bytes[..8], &vec![n; signature.bytes.len() - 8]].concat(),
        ..signature.clone()
    }
}

#[test]
fn one_valid_signature_of_a_witness_is_enough() {
    let w = world();
    let good = w.witnesses[1].cosign(&w.checkpoint(9), NOW).unwrap();
    for at in [0, 30] {
        let mut lines: Vec<_> = (0..30).map(|n| junk(&good, n)).collect();
        lines.insert(at, good.clone());
        let mut signed = w.signed(9, &[(0, NOW)]);
        lines.into_iter().for_each(|line| signed.add(line));
        assert_eq!(w.two_of_three().witnessed(&signed).unwrap().time(), Some(NOW), "{at}");
        assert_eq!(w.witnesses[1].public().cosigned(&signed), Some(NOW));
    }
}

#[test]
fn one_invalid_signature_of_the_log_makes_the_note_invalid() {
    let w = world();
    let signed = w.signed(9, &[(0, NOW), (1, NOW)]);
    assert!(w.two_of_three().witnessed(&signed).is_ok());
    let line = signed.note().signatures()[0].clone();
    for bad in [junk(&line, 1), Signature { bytes: Vec::new(), ..line.clone() }] {
        let mut spoilt = signed.clone();
        spoilt.add(bad);
        assert!(matches!(w.two_of_three().witnessed(&spoilt), Err(Refused::UnknownLog { .. })));
    }
    // A signature of a key that is unknown, by name or by ID, is ignored.
    for stranger in [
        Signature { name: name("log.example/b"), ..junk(&line, 1) },
        Signature { id: [1; 4], ..junk(&line, 1) },
    ] {
        let mut signed = signed.clone();
        signed.add(stranger);
        assert!(w.two_of_three().witnessed(&signed).is_ok());
    }
}

#[test]
fn times_outside_the_specification_do_not_count() {
    let w = world();
    for n in 0..3 {
        let (witness, checkpoint) = (&w.witnesses[n], w.checkpoint(9));
        assert!(witness.cosign(&checkpoint, i64::MAX as u64).is_ok());
        assert!(witness.cosign(&checkpoint, i64::MAX as u64 + 1).is_err());
    }
    // A witness that signs such a time anyway: the Ed25519 message, built by hand.
    let time = i64::MAX as u64 + 1;
    let message = format!("cosignature/v1\ntime {time}\n{}", w.checkpoint(9));
    let pair = aws_lc_rs::signature::Ed25519KeyPair::from_seed_unchecked(&[0; 32]).unwrap();
    let bytes = [&time.to_be_bytes()[..], pair.sign(message.as_bytes()).as_ref()].concat();
    let key = w.witnesses[0].public();
    let mut signed = w.signed(9, &[]);
    signed.add(Signature { name: key.name().clone(), id: key.id(), bytes });
    assert_eq!(key.cosigned(&signed), None);
    // With time 0 the cosignature does not state that the tree is the largest seen.
    assert_eq!(w.witnesses[2].public().cosigned(&w.signed(9, &[(2, 0)])), None);
}

#[test]
fn a_log_can_sign_with_ml_dsa_44() {
    let w = world();
    // The log acts as its own cosigner.
    let signer = Cosigner::from_seed(name("log.example/q"), Algorithm::MlDsa44, &[5; 32]).unwrap();
    let vkey = signer.public().to_string();
    let key = LogKey::parse(&vkey).unwrap();
    assert_eq!((key.to_string(), key.name().as_str()), (vkey.clone(), "log.example/q"));
    let text = format!("log {vkey}\nwitness w {}\nquorum w\n", w.witnesses[0].public());
    let policy = Policy::parse(&text).unwrap();
    let signed = |extensions: &[&str], by: &str| {
        let extensions = extensions.iter().map(|e| (*e).to_owned()).collect();
        let checkpoint = Checkpoint { origin: by.into(), extensions, ..w.checkpoint(9) };
        let note = wiretight_tlog::Note::new(checkpoint.to_string()).unwrap();
        let mut signed = SignedCheckpoint::new(note).unwrap();
        signed.add(signer.cosign(&checkpoint, NOW).unwrap());
        signed.add(w.witnesses[0].cosign(&checkpoint, NOW).unwrap());
        SignedCheckpoint::parse(&signed.to_string()).unwrap()
    };
    let good = signed(&[], "log.example/q");
    assert_eq!(policy.witnessed(&good).unwrap().checkpoint(), good.unverified());
    // Its signature does not cover extension lines.
    assert!(policy.witnessed(&signed(&["more"], "log.example/q")).is_err());
    assert!(policy.witnessed(&signed(&[], "log.example/a")).is_err(), "another's origin");
    // An Ed25519 witness key is not a log key.
    assert!(LogKey::parse(&w.witnesses[0].public().to_string()).is_err());
}

#[test]
fn shortest_keeps_only_the_cosignatures_that_the_quorum_needs() {
    let w = world();
    let policy = w.two_of_three();
    let all = w.signed(9, &[(0, NOW - 9), (0, NOW), (1, NOW - 1), (2, NOW)]);
    let mut all = all.clone();
    let stranger =
        Cosigner::from_seed(name("witness.example/9"), Algorithm::Ed25519, &[9; 32]).unwrap();
    all.add(stranger.cosign(all.unverified(), NOW).unwrap());
    all.add(junk(&w.witnesses[1].cosign(all.unverified(), NOW).unwrap(), 7));
    let short = policy.shortest(&all).unwrap();
    // Of the three witnesses, the two that sign with Ed25519, each by its newest signature; and the log.
    assert_eq!(short, w.signed(9, &[(0, NOW), (1, NOW - 1)]));
    assert_eq!(policy.witnessed(&short).unwrap().time(), Some(NOW - 1));
    // With ML-DSA if the quorum needs it.
    let without = w.signed(9, &[(1, NOW), (2, NOW)]);
    assert_eq!(policy.shortest(&without), Some(without));
    assert_eq!(policy.shortest(&w.signed(9, &[(1, NOW)])), None);
    // Nested groups: the lightest quorum.
    let nested = w.policy("group both all w0 w2\ngroup either any both w1\nquorum either");
    let short = nested.shortest(&w.signed(9, &[(0, NOW), (1, NOW), (2, NOW)])).unwrap();
    assert_eq!(short, w.signed(9, &[(1, NOW)]));
    assert_eq!(w.policy("quorum none").shortest(&w.signed(9, &[(0, NOW)])), Some(w.signed(9, &[])));
}

#[test]
fn largest_proof_is_exact() {
    let w = world();
    for (quorum, dearest) in [
        ("quorum none", &[][..]),
        ("quorum w1", &[1]),
        ("quorum w2", &[2]),
        ("group all 2 w0 w1 w2\nquorum all", &[1, 2]),
        ("group all all w0 w1 w2\nquorum all", &[0, 1, 2]),
        ("group both all w0 w2\ngroup either any both w1\nquorum either", &[0, 2]),
    ] {
        let policy = w.policy(quorum);
        let cosigned: Vec<_> = dearest.iter().map(|n| (*n, NOW)).collect();
        let mut proof = w.proof(0, 1, &cosigned);
        let small = proof.to_string().len();
        // The height that the bound assumes, and numbers of any length.
        proof.hashes = vec![Hash::empty(); 40];
        let numbers = 2 * (u64::MAX.to_string().len() - 1);
        assert_eq!(policy.largest_proof(), proof.to_string().len() + numbers, "{quorum}");
        assert!(policy.largest_proof() > small);
    }
}

#[test]
fn splits_detects_disjoint_quorums() {
    let w = world();
    for (quorum, splits, smallest) in [
        ("quorum none", true, 0),
        ("quorum w0", false, 1),
        ("group g any w0 w1 w2\nquorum g", true, 1),
        ("group g 1 w0\nquorum g", false, 1),
        ("group g 2 w0 w1 w2\nquorum g", false, 2),
        ("group g all w0 w1 w2\nquorum g", false, 3),
        ("group g any w0 w1\nquorum g", true, 1),
        ("group a any w0 w1\ngroup g all a w2\nquorum g", false, 2),
        ("group a any w0 w1\ngroup g any a w2\nquorum g", true, 1),
    ] {
        let policy = w.policy(quorum);
        assert_eq!((policy.splits(), policy.smallest_quorum()), (splits, smallest), "{quorum}");
        // Cross-check by brute force: is there a set such that both it and its complement are quorums?
        let tried = (0..8usize).any(|set| {
            policy.is_quorum(|n| set >> n & 1 == 1) && policy.is_quorum(|n| set >> n & 1 == 0)
        });
        assert_eq!(policy.splits(), tried, "{quorum}");
    }
}

#[test]
fn policy_names_are_compared_as_bytes() {
    let w = world();
    let (log, a, b) = (w.log.public(), w.witnesses[0].public(), w.witnesses[1].public());
    let with = |first: &[u8], second: &[u8], group: &[u8]| {
        let mut text = format!("log {log}\nwitness ").into_bytes();
        text.extend([first, format!(" {a}\nwitness ").as_bytes(), second].concat());
        text.extend([format!(" {b}\ngroup g all ").as_bytes(), group, b"\nquorum g\n"].concat());
        text
    };
    assert!(Policy::parse(with(b"K", b"L", b"K L")).is_ok());
    // The Kelvin sign is not K, two invalid UTF-8 bytes differ from each other, and a no-break space is not a space.
    assert!(Policy::parse(with(b"K", "\u{212a}".as_bytes(), "K \u{212a}".as_bytes())).is_ok());
    assert!(Policy::parse(with(b"K", "\u{212a}".as_bytes(), b"K K")).is_err());
    assert!(Policy::parse(with(b"\xff", b"\xfe", b"\xff \xfe")).is_ok());
    assert!(Policy::parse(with(b"\xff", b"\xfe", b"\xff \xfd")).is_err());
    let other = "a\u{a0}b \u{85}".as_bytes();
    assert!(Policy::parse(with("a\u{a0}b".as_bytes(), b"\x85", other)).is_err());
    let named = ["a\u{a0}b ".as_bytes(), b"\x85"].concat();
    assert!(Policy::parse(with("a\u{a0}b".as_bytes(), b"\x85", &named)).is_ok());
    let good = with(b"K", b"L", b"K L");
    for (before, ok) in [
        (&b"# \xff\xfe \xe2\x84\xaa\n"[..], true),
        (b" \t# tab and space\n\n \t\n", true),
        (b"# carriage return\r\n", false),
        (b"\r\n", false),
        (b"# \x7f\n", false),
        (b"#\x0b\n", false),
        (b"\x0c\n", false),
        (b"# \0\n", false),
    ] {
        let parsed = Policy::parse([before, &good].concat());
        assert_eq!(parsed.is_ok(), ok, "{before:?}");
        assert!(ok || parsed.unwrap_err().line == 1);
    }
    let windows = String::from_utf8(good.clone()).unwrap().replace('\n', "\r\n");
    assert!(Policy::parse(windows).unwrap_err().problem.contains("carriage return"));
    // The last newline may be missing.
    assert!(Policy::parse(&good[..good.len() - 1]).is_ok());
    assert_eq!(Policy::parse("").unwrap_err().problem, "there is no `quorum` line");
}

/// As many ML-DSA-44 witnesses as wanted.
fn quantum(n: usize) -> Vec<Cosigner> {
    let key = |n: usize| {
        let mut seed = [0x51; 32];
        seed[..8].copy_from_slice(&n.to_be_bytes());
        Cosigner::from_seed(name(&format!("q{n}.example")), Algorithm::MlDsa44, &seed).unwrap()
    };
    (0..n).map(key).collect()
}

#[test]
fn a_policy_has_at_most_64_logs_witnesses_and_groups_and_room_for_all() {
    let keys = quantum(130);
    let text = |logs: usize, witnesses: usize, groups: usize| {
        let mut text = String::new();
        keys[..logs].iter().for_each(|key| text += &format!("log {}\n", key.public()));
        for (n, key) in keys[65..65 + witnesses].iter().enumerate() {
            text += &format!("witness w{n} {}\n", key.public());
        }
        for n in 0..groups {
            let member = if n == 0 { "w0".to_owned() } else { format!("g{}", n - 1) };
            text += &format!("group g{n} all {member}\n");
        }
        text + "quorum w0\n"
    };
    let policy = Policy::parse(text(64, 64, 64)).unwrap();
    assert_eq!((policy.logs().len(), policy.witnesses().len()), (64, 64));
    for (bad, line, what) in [
        (text(65, 1, 0), 65, "logs"),
        (text(1, 65, 0), 66, "witnesses"),
        (text(1, 64, 65), 130, "groups"),
    ] {
        let refused = Policy::parse(bad).unwrap_err();
        assert_eq!((refused.line, refused.problem), (line, format!("more than 64 {what}")));
    }
    // The size of the file.
    let good = text(1, 1, 0);
    let padded = |len: usize| format!("#{}\n{good}", "x".repeat(len - good.len() - 2));
    assert!(Policy::parse(padded(MAX_POLICY)).is_ok());
    let refused = Policy::parse(padded(MAX_POLICY + 1)).unwrap_err();
    assert_eq!(refused.to_string(), "line 1: the policy is too large");
}

#[test]
fn a_proof_has_room_for_64_post_quantum_cosignatures_and_is_bounded() {
    let w = world();
    let mut signed = w.signed(9, &[]);
    quantum(MAX_SIGNATURES - 1)
        .iter()
        .for_each(|witness| signed.add(witness.cosign(signed.unverified(), NOW).unwrap()));
    assert_eq!(signed.note().signatures().len(), MAX_SIGNATURES);
    let with = |extra: usize, hashes: usize| {
        let (extra, hashes) = (Some(vec![7; extra]), vec![Hash::empty(); hashes]);
        Proof { extra, index: 0, hashes, checkpoint: signed.clone() }.to_string()
    };
    let problem = |text: &str| Proof::parse(text).err().map(|e| e.to_string()).unwrap_or_default();
    assert_eq!(problem(&with(64 * 1024, MAX_PROOF)), "");
    assert!(problem(&with(64 * 1024 + 1, 0)).contains("extra data"));
    assert!(problem(&with(0, MAX_PROOF + 1)).contains("more hashes"));
    assert!(problem(&"x".repeat(2 * MAX_NOTE)).contains("too early"));
    assert!(problem(&"x".repeat(2 * MAX_NOTE + 1)).contains("too large"));
}

#[test]
fn an_unreached_quorum_is_none() {
    let w = world();
    for quorum in ["quorum w0", "group g all w0 w1\nquorum g", "group g 2 w0 w1 w2\nquorum g"] {
        let policy = w.policy(quorum);
        assert!(policy.wants_witnesses() && !policy.is_quorum(|_| false), "{quorum}");
        assert!(policy.is_quorum(|_| true) && !policy.is_quorum(|n| n == 1), "{quorum}");
    }
    let none = w.policy("quorum none");
    assert!(!none.wants_witnesses() && none.is_quorum(|_| false));
}

#[test]
fn a_policy_for_another_log_keeps_the_witnesses() {
    let (w, other) = (world(), world());
    let policy = w.two_of_three().for_log(other.log.public().clone());
    assert!(policy.witnessed(&w.signed(9, &[(0, NOW), (1, NOW)])).is_err());
    assert!(policy.witnessed(&other.signed(9, &[(0, NOW)])).is_err());
    assert!(policy.witnessed(&other.signed(9, &[(0, NOW), (1, NOW)])).is_ok());
    let alone = Policy::self_attested(other.log.public().clone());
    assert_eq!(alone.witnessed(&other.signed(9, &[])).unwrap().time(), None);
    assert!(alone.witnessed(&w.signed(9, &[])).is_err());
}

#[test]
fn a_rejection_says_what_the_quorum_is() {
    let w = world();
    for (quorum, text) in [("quorum w1", "w1"), ("group all 2 w0 w1 w2\nquorum all", "all: 2 of 3")]
    {
        let refused = w.policy(quorum).witnessed(&w.signed(9, &[(0, NOW)])).unwrap_err();
        assert!(refused.to_string().ends_with(&format!("not a quorum ({text})")), "{refused}");
    }
    assert_eq!(w.policy("quorum none").quorum_text(), "none");
}
