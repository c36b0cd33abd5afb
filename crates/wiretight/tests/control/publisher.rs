//! A publisher with a log of its own, without witnesses or rebuilders, and proofs of its releases. The unit tests of the
//! authority use this file too.

use jiff::Timestamp;
use semver::Version;
use wiretight_keys::token::hex;
use wiretight_tlog::note::KeyName;
use wiretight_tlog::{Checkpoint, Frontier, Hash, LogSigner, Proof};

use super::release::entry::File;
use super::release::proof::Proven;
use super::release::{Entry, Release, ReleasePolicy, ReleaseProof, SignedEntry, Source};

pub struct Publisher {
    log: LogSigner,
    key: LogSigner,
}

fn key(name: &str) -> LogSigner {
    LogSigner::generate(KeyName::new(name).unwrap()).unwrap()
}

/// What a node says of its program.
pub fn sha256(program: &[u8]) -> String {
    hex(Hash::of(program).as_bytes())
}

impl Publisher {
    pub fn new() -> Publisher {
        Publisher { log: key("example.org/releases"), key: key("example.org/wiretight") }
    }

    pub fn policy(&self) -> ReleasePolicy {
        let text = format!(
            "log {}\nquorum none\npublisher {}\nrebuilds 0\nmax-age any\n",
            self.log.public(),
            self.key.public()
        );
        ReleasePolicy::parse(text.as_bytes()).unwrap()
    }

    /// The text of the proof of version 1.4.0 with this program, valid for a day.
    pub fn proof(&self, program: &[u8], change: impl FnOnce(&mut Release)) -> String {
        let empty = Hash::of(b"");
        let mut release = Release {
            name: "wiretight".into(),
            version: Version::new(1, 4, 0),
            source: empty,
            minimum: Version::new(1, 2, 0),
            expires: Timestamp::from_second(Timestamp::now().as_second() + 86_400).unwrap(),
            files: vec![
                File {
                    name: "wiretight".into(),
                    size: program.len() as u64,
                    sha256: Hash::of(program),
                },
                File { name: "wiretight.deb".into(), size: 7, sha256: Hash::of(b"package") },
            ],
        };
        change(&mut release);
        let source = Source {
            name: release.name.clone(),
            version: release.version.clone(),
            tree: "5".repeat(40),
            lock: empty,
            vendor: empty,
            toolchain: empty,
            recipe: empty,
        };
        let source = SignedEntry::sign(Entry::Source(source), &self.key).unwrap();
        release.source = source.id();
        let release = SignedEntry::sign(Entry::Release(release), &self.key).unwrap();

        let mut tree = Frontier::default();
        for entry in [&source, &release] {
            tree.append(entry.leaf(), |_, _| {});
        }
        let checkpoint = Checkpoint {
            origin: self.log.public().name().to_string(),
            size: 2,
            root: tree.root(),
            extensions: Vec::new(),
        };
        let checkpoint = checkpoint.sign(&self.log).unwrap();
        // In a tree of two leaves, each is the proof of the other.
        let proven = |entry: &SignedEntry, other: &SignedEntry, index| Proven {
            entry: entry.clone(),
            proof: Proof {
                extra: None,
                index,
                hashes: vec![other.leaf()],
                checkpoint: checkpoint.clone(),
            },
        };
        let (source, release) = (proven(&source, &release, 0), proven(&release, &source, 1));
        ReleaseProof { source, release, rebuilds: Vec::new() }.to_string()
    }
}
