//! What a policy accepts. Each refusal has an accepted counterpart, from which it differs in one thing.

use std::io::Cursor;

use jiff::Timestamp;
use semver::Version;
use wiretight_tlog::cosignature::Algorithm;
use wiretight_tlog::note::KeyName;
use wiretight_tlog::tree::{self, Node};
use wiretight_tlog::{
    Checkpoint, Cosigner, Frontier, Hash, LogSigner, Proof, SignedCheckpoint, TreeError,
};

use super::check::{Artifact, NotProved, Proved, check};
use super::entry::{Entry, EntryError, File, Rebuild, Release, SignedEntry, Source, parse_files};
use super::policy::ReleasePolicy;
use super::proof::{Proven, ReleaseProof};

const NOW: u64 = 1_800_000_000;
const DAY: u64 = 86_400;
const PROGRAM: &[u8] = b"the program";

/// A publisher, its log, three witnesses of which two must cosign, and three rebuilders of which two must confirm.
struct World {
    log: LogSigner,
    publisher: LogSigner,
    rebuilders: Vec<LogSigner>,
    witnesses: Vec<Cosigner>,
}

fn key(name: &str) -> LogSigner {
    LogSigner::generate(KeyName::new(name).unwrap()).unwrap()
}

fn world() -> World {
    let witness = |n: u8| {
        let name = KeyName::new(&format!("w{n}.example")).unwrap();
        Cosigner::from_seed(name, Algorithm::Ed25519, &[n; 32]).unwrap()
    };
    World {
        log: key("example.org/releases"),
        publisher: key("example.org/wiretight"),
        rebuilders: (0..3).map(|n| key(&format!("r{n}.example"))).collect(),
        witnesses: (0..3).map(witness).collect(),
    }
}

fn files(program: &[u8]) -> Vec<File> {
    let file = |name: &str, bytes: &[u8]| File {
        name: name.into(),
        size: bytes.len() as u64,
        sha256: Hash::of(bytes),
    };
    vec![file("wiretight", program), file("wiretight.deb", b"the package")]
}

fn source() -> Source {
    let hash = Hash::of(b"");
    Source {
        name: "wiretight".into(),
        version: Version::new(1, 4, 0),
        tree: "5".repeat(40),
        lock: hash,
        vendor: hash,
        toolchain: hash,
        recipe: hash,
    }
}

impl World {
    fn policy_text(&self) -> String {
        let mut text = format!("log {}\n", self.log.public());
        for (n, witness) in self.witnesses.iter().enumerate() {
            text += &format!("witness w{n} {}\n", witness.public());
        }
        text += "group g 2 w0 w1 w2\nquorum g\n";
        text += &format!("publisher {}\n", self.publisher.public());
        for (n, rebuilder) in self.rebuilders.iter().enumerate() {
            text += &format!("rebuilder r{n} {}\n", rebuilder.public());
        }
        text + "rebuilds 2\nmax-age 30d\n"
    }

    fn policy(&self) -> ReleasePolicy {
        ReleasePolicy::parse(self.policy_text().as_bytes()).unwrap()
    }

    fn source(&self) -> SignedEntry {
        SignedEntry::sign(Entry::Source(source()), &self.publisher).unwrap()
    }

    fn release(&self, change: impl FnOnce(&mut Release)) -> SignedEntry {
        let mut release = Release {
            name: "wiretight".into(),
            version: Version::new(1, 4, 0),
            source: self.source().id(),
            minimum: Version::new(1, 2, 0),
            expires: Timestamp::from_second((NOW + 90 * DAY) as i64).unwrap(),
            files: files(PROGRAM),
        };
        change(&mut release);
        SignedEntry::sign(Entry::Release(release), &self.publisher).unwrap()
    }

    fn rebuild(&self, by: usize, program: &[u8]) -> SignedEntry {
        let rebuild =
            Rebuild { source: self.source().id(), toolchain: Hash::of(b""), files: files(program) };
        SignedEntry::sign(Entry::Rebuild(rebuild), &self.rebuilders[by]).unwrap()
    }

    /// The proof of a log with these entries, the first two of which are source and release.
    fn proof(&self, entries: &[SignedEntry], cosigned: &[usize], time: u64) -> ReleaseProof {
        let proof = self.proof_in(&self.log, entries, cosigned, time);
        // As it is written and read.
        ReleaseProof::parse(proof.to_string().as_bytes()).unwrap()
    }

    fn proof_in(
        &self,
        log: &LogSigner,
        entries: &[SignedEntry],
        cosigned: &[usize],
        time: u64,
    ) -> ReleaseProof {
        let leaves: Vec<Hash> = entries.iter().map(SignedEntry::leaf).collect();
        let mut frontier = Frontier::default();
        leaves.iter().for_each(|leaf| frontier.append(*leaf, |_, _| {}));
        let checkpoint = Checkpoint {
            origin: log.public().name().to_string(),
            size: leaves.len() as u64,
            root: frontier.root(),
            extensions: Vec::new(),
        };
        let mut signed = checkpoint.sign(log).unwrap();
        for witness in cosigned {
            signed.add(self.witnesses[*witness].cosign(signed.unverified(), time).unwrap());
        }
        let signed = SignedCheckpoint::parse(&signed.to_string()).unwrap();
        let proven = |(index, entry): (usize, &SignedEntry)| {
            let read = |node: Node| {
                let start = (node.index as usize) << node.level;
                wiretight_tlog::tile::subtree(&leaves[start..start + (1 << node.level)])
                    .ok_or(TreeError::OutOfRange)
            };
            let hashes = tree::inclusion_proof(index as u64, leaves.len() as u64, read).unwrap();
            let checkpoint = signed.clone();
            let proof = Proof { extra: None, index: index as u64, hashes, checkpoint };
            Proven { entry: entry.clone(), proof }
        };
        let mut all = entries.iter().enumerate().map(proven);
        let (source, release) = (all.next().unwrap(), all.next().unwrap());
        ReleaseProof { source, release, rebuilds: all.collect() }
    }

    fn honest(&self) -> [SignedEntry; 4] {
        [self.source(), self.release(|_| {}), self.rebuild(0, PROGRAM), self.rebuild(1, PROGRAM)]
    }
}

fn artifact(bytes: &[u8]) -> Artifact {
    Artifact::of(Cursor::new(bytes)).unwrap()
}

fn try_check(world: &World, proof: &ReleaseProof) -> Result<Proved, NotProved> {
    check(&world.policy(), proof, artifact(PROGRAM), NOW, None)
}

#[test]
fn an_honest_release_is_proved_and_says_by_whom() {
    let world = world();
    let proof = world.proof(&world.honest(), &[0, 2], NOW - DAY);
    let proved = try_check(&world, &proof).unwrap();
    assert_eq!((proved.file.as_str(), proved.index), ("wiretight", 1));
    assert_eq!(proved.rebuilt, ["r0", "r1"]);
    assert_eq!((proved.differ.len(), proved.witnessed), (0, Some(NOW - DAY)));
    assert_eq!(proved.tree, "5".repeat(40));
    // Another file of the same release; and a file that is in no release.
    let check = |bytes| check(&world.policy(), &proof, artifact(bytes), NOW, None);
    assert_eq!(check(b"the package").unwrap().file, "wiretight.deb");
    assert!(matches!(check(b"the program."), Err(NotProved::OtherFile { .. })));
}

#[test]
fn the_key_of_the_publisher_alone_is_not_enough() {
    let world = world();
    let [source, release, first, _] = world.honest();
    let refused = |entries: &[SignedEntry]| {
        let proof = world.proof(entries, &[0, 1, 2], NOW);
        try_check(&world, &proof).unwrap_err().to_string()
    };
    // A program with a back door, signed and logged by the publisher, from a source without it.
    let evil = world.release(|r| r.files = files(b"a back door"));
    let entries = [source.clone(), evil, first.clone(), world.rebuild(1, PROGRAM)];
    let proof = world.proof(&entries, &[0, 1], NOW);
    let why = check(&world.policy(), &proof, artifact(b"a back door"), NOW, None).unwrap_err();
    assert!(why.to_string().contains("0 of the 2 rebuilders"), "{why}");
    assert!(why.to_string().contains("ANOTHER FILE from the same source: r0, r1"), "{why}");
    // Too few; one that differs; the same one twice; somebody whom the policy does not know; the publisher itself.
    let few = refused(&[source.clone(), release.clone(), first.clone()]);
    assert!(few.contains("1 of the 2") && few.contains("nothing from: r1, r2"), "{few}");
    let differs = [source.clone(), release.clone(), first.clone(), world.rebuild(1, b"x")];
    assert!(refused(&differs).contains("ANOTHER FILE from the same source: r1"));
    let twice = [source.clone(), release.clone(), first.clone(), first.clone()];
    assert!(refused(&twice).contains("1 of the 2"));
    let Entry::Rebuild(rebuild) = first.entry().clone() else { unreachable!() };
    let stranger = SignedEntry::sign(Entry::Rebuild(rebuild.clone()), &key("x.example")).unwrap();
    let itself = SignedEntry::sign(Entry::Rebuild(rebuild), &world.publisher).unwrap();
    assert!(refused(&[source, release, first, stranger, itself]).contains("1 of the 2"));
}

/// A rebuilder whose machine was wrong once corrects itself, and one that lied stays named.
#[test]
fn the_newest_word_of_a_rebuilder_counts() {
    let world = world();
    let [source, release, first, second] = world.honest();
    let wrong = world.rebuild(1, b"x");
    let corrected = [source.clone(), release.clone(), first.clone(), wrong.clone(), second.clone()];
    let proof = world.proof(&corrected, &[0, 1], NOW);
    assert_eq!(try_check(&world, &proof).unwrap().rebuilt, ["r0", "r1"]);
    let proof = world.proof(&[source, release, first, second, wrong], &[0, 1], NOW);
    assert!(matches!(try_check(&world, &proof), Err(NotProved::NotRebuilt { .. })));
}

#[test]
fn a_rebuild_that_is_not_in_the_log_costs_only_itself() {
    let world = world();
    let mut entries = world.honest().to_vec();
    entries.push(world.rebuild(2, PROGRAM));
    let mut proof = world.proof(&entries, &[0, 1], NOW);
    proof.rebuilds[0].proof.hashes[0] = Hash::of(b"");
    assert_eq!(try_check(&world, &proof).unwrap().rebuilt, ["r1", "r2"]);
    proof.rebuilds[1].proof.hashes[0] = Hash::of(b"");
    assert!(matches!(try_check(&world, &proof), Err(NotProved::NotRebuilt { .. })));
}

#[test]
fn the_log_and_its_witnesses_must_have_seen_it() {
    let world = world();
    let honest = world.honest();
    // A thief of one witness's key and of the log's key reaches no quorum.
    let one = world.proof(&honest, &[1], NOW);
    let why = try_check(&world, &one).unwrap_err().to_string();
    assert!(why.contains("1 of the policy's witnesses cosigned"), "{why}");
    // Another log, with the same name.
    let other = world.proof_in(&key("example.org/releases"), &honest, &[0, 1], NOW);
    assert!(matches!(try_check(&world, &other), Err(NotProved::NotLogged { .. })));
    // An entry that is not at that place.
    let mut moved = world.proof(&honest, &[0, 1], NOW);
    moved.release.entry = world.release(|r| r.minimum = Version::new(0, 1, 0));
    assert!(matches!(try_check(&world, &moved), Err(NotProved::NotLogged { .. })));
}

#[test]
fn a_stale_mirror_an_expired_release_and_a_downgrade_are_refused() {
    let world = world();
    let honest = world.honest();
    let at = |proof: &ReleaseProof, now, floor: Option<&str>| {
        let floor = floor.map(|v| v.parse().unwrap());
        check(&world.policy(), proof, artifact(PROGRAM), now, floor.as_ref())
    };
    let proof = world.proof(&honest, &[0, 1], NOW);
    assert!(at(&proof, NOW + 30 * DAY, None).is_ok());
    let stale = at(&proof, NOW + 30 * DAY + 1, None).unwrap_err().to_string();
    assert!(stale.contains("at most 2592000 s are allowed"), "{stale}");
    // With new cosignatures, but expired; also if this machine's clock is behind.
    let late = world.proof(&honest, &[0, 1], NOW + 90 * DAY);
    assert!(
        at(&world.proof(&honest, &[0, 1], NOW + 90 * DAY - 1), NOW + 90 * DAY - 1, None).is_ok()
    );
    assert!(matches!(at(&late, NOW + 90 * DAY, None), Err(NotProved::Expired { .. })));
    assert!(matches!(at(&late, NOW + 90 * DAY - 200, None), Err(NotProved::Expired { .. })));
    let ahead = at(&proof, NOW - DAY, None).unwrap_err().to_string();
    assert!(ahead.contains("in the future"), "{ahead}");
    // Older than a minimum that was seen; the minimum itself is accepted.
    assert!(at(&proof, NOW, Some("1.4.0")).is_ok());
    assert!(matches!(at(&proof, NOW, Some("1.4.1")), Err(NotProved::TooOld { .. })));
    assert!(matches!(at(&proof, NOW, Some("1.5.0-rc.1")), Err(NotProved::TooOld { .. })));
}

#[test]
fn source_and_release_belong_together_and_are_the_publishers() {
    let world = world();
    let [source, release, first, second] = world.honest();
    let refused = |entries: &[SignedEntry]| {
        try_check(&world, &world.proof(entries, &[0, 1], NOW)).unwrap_err()
    };
    let of_other = world.release(|r| r.source = Hash::of(b"another"));
    let entries = [source.clone(), of_other, first.clone(), second.clone()];
    assert!(matches!(refused(&entries), NotProved::OtherSource));
    let other_version = world.release(|r| r.version = Version::new(1, 5, 0));
    let entries = [source.clone(), other_version, first.clone(), second.clone()];
    assert!(matches!(refused(&entries), NotProved::OtherSource));
    let thief = SignedEntry::sign(release.entry().clone(), &world.rebuilders[0]).unwrap();
    let entries = [source.clone(), thief, first.clone(), second.clone()];
    assert!(matches!(refused(&entries), NotProved::NotByPublisher { what: "release", .. }));
    // The source must have been public before.
    let log = [release, source, first, second];
    let mut late = world.proof_in(&world.log, &log, &[0, 1], NOW);
    std::mem::swap(&mut late.source, &mut late.release);
    assert!(matches!(try_check(&world, &late), Err(NotProved::SourceAfterRelease)));
}

#[test]
fn an_entry_has_one_encoding() {
    let world = world();
    for entry in world.honest() {
        let text = entry.to_string();
        assert_eq!(SignedEntry::parse(&text).unwrap(), entry);
        let body = entry.entry().to_string();
        assert_eq!(Entry::parse(&body).as_ref(), Ok(entry.entry()));
        for (from, to) in [
            ("version 1.4.0", "version 01.4.0"),
            ("version 1.4.0", "version 1.4.0+x"),
            ("version 1.4.0", "version  1.4.0"),
            ("expires 20", "expires +20"),
            ("Z\nfile", ".5Z\nfile"),
            (" 11 wiretight", " 011 wiretight"),
            (" 11 wiretight\n", " 11 ../wiretight\n"),
            ("wiretight.deb\n", "wiretight.deb\n\n"),
            ("wiretight.deb\n", "wiretight\n"),
            ("file ", "file  "),
            ("source ", "source A"),
            ("recipe", "Recipe"),
        ] {
            let changed = body.replace(from, to);
            assert!(changed == body || Entry::parse(&changed).is_err(), "{from:?} -> {to:?}");
        }
    }
    let many: String = (10..10 + 65).map(|n| format!("file {} 1 f{n}\n", "a".repeat(64))).collect();
    assert_eq!(parse_files(&many), Err(EntryError::Files));
    let fewer: String = many.split_inclusive('\n').take(64).collect();
    assert_eq!(parse_files(&fewer).map(|files| files.len()), Ok(64));
}

#[test]
fn a_policy_says_what_it_does_without() {
    let world = world();
    let text = world.policy_text();
    let wrong = |text: &str| ReleasePolicy::parse(text.as_bytes()).unwrap_err().to_string();
    for line in ["log ", "publisher ", "rebuilds ", "max-age ", "quorum "] {
        let without: String =
            text.lines().filter(|l| !l.starts_with(line)).map(|l| format!("{l}\n")).collect();
        let what = line.trim();
        assert!(wrong(&without).contains(&format!("there is no `{what}` line")), "{line}");
    }
    // The number of the line is that of the whole file.
    assert!(
        wrong(&format!("# mine\n{text}nonsense x\n")).starts_with("line 14: "),
        "{}",
        wrong(&format!("# mine\n{text}nonsense x\n"))
    );
    let publisher = format!("rebuilder me {}\n", world.publisher.public());
    assert!(wrong(&(text.clone() + &publisher)).contains("would confirm itself"));
    let again = format!("rebuilder r9 {}\n", world.rebuilders[0].public());
    assert!(wrong(&(text.clone() + &again)).contains("would count twice"));
    assert!(wrong(&text.replace("rebuilds 2", "rebuilds 4")).contains("there are 3"));
    assert!(wrong(&text.replace("max-age 30d", "max-age 0s")).contains("a time as in"));
    assert!(wrong(&text.replace("quorum g", "quorum none")).contains("needs witnesses"));
    assert!(world.policy().weaknesses().is_empty());
    let weak = text.replace("rebuilds 2", "rebuilds 0").replace("max-age 30d", "max-age any");
    assert_eq!(ReleasePolicy::parse(weak.as_bytes()).unwrap().weaknesses().len(), 2);
}

#[test]
fn a_file_with_proofs_is_bounded_and_strict() {
    let world = world();
    let text = world.proof(&world.honest(), &[0, 1], NOW).to_string();
    let wrong =
        |text: &str| crate::logging::chain(&ReleaseProof::parse(text.as_bytes()).unwrap_err());
    assert!(wrong(&text.replace("-proof/v1", "-proof/v2")).contains("its format"));
    assert!(wrong(&text.replacen("\"entry\"", "\"x\": 1, \"entry\"", 1)).contains("unknown field"));
    assert!(wrong(&"x".repeat((1 << 20) + 1)).contains("larger than"));
    let twice = world.honest();
    let mut reversed = world.proof_in(&world.log, &twice, &[0, 1], NOW);
    std::mem::swap(&mut reversed.source, &mut reversed.release);
    assert!(wrong(&reversed.to_string()).contains("in this order"));
}
