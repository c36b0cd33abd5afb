//! The facts of a mesh that does not exist, in a log that does: with keys, witnesses, a tree and real proofs.

use std::collections::HashMap;

use wiretight::authority::{
    CaStatus, Earlier, IntermediateStatus, LoggedPeriod, Published, RootStanding, RootStatus,
};
use wiretight::config::Publish;
use wiretight::control::report::{Exception, ExceptionKind, Explanation, NodeReport};
use wiretight::log::cosigning::WitnessStatus;
use wiretight::log::prove::Proven;
use wiretight::log::sequencer::LogStatus;
use wiretight::proof::facts::{Facts, KeyFacts, NodeFacts};
use wiretight::proof::publish::{Folder, files, selected};
use wiretight_keys::claims::*;
use wiretight_proxy::intercept::rules::Mode;
use wiretight_tlog::cosignature::Algorithm as Kind;
use wiretight_tlog::note::KeyName;
use wiretight_tlog::tree::{self, Node};
use wiretight_tlog::{
    Checkpoint, Cosigner, Hash, LogSigner, Policy, Proof, SignedCheckpoint, TreeError,
};

/// 2026-11-30 14:05 UTC.
pub const AT: u64 = 1_796_047_500;
/// Names that must not be published by default.
pub const PRIVATE: [&str; 8] = [
    "quokka-node",
    "wombat-service",
    "10.77.66.55",
    "echidna.internal",
    "dingo-program",
    "the numbat speaks only syslog",
    "team platypus",
    "10.77.66.54",
];

pub struct Sample {
    pub facts: Facts,
    pub signer: LogSigner,
    pub witnesses: Vec<Cosigner>,
    pub policy: Policy,
    pub tree: Tree,
    /// The log at the last visit.
    pub earlier: Vec<Earlier>,
}

/// A tree in memory.
#[derive(Default)]
pub struct Tree {
    leaves: Vec<Hash>,
}

impl Tree {
    pub fn push(&mut self, entry: &[u8]) -> u64 {
        self.leaves.push(Hash::leaf(entry));
        self.size() - 1
    }

    pub fn size(&self) -> u64 {
        self.leaves.len() as u64
    }

    fn reader(&self) -> impl FnMut(Node) -> Result<Hash, TreeError> {
        fn of(leaves: &[Hash], kept: &mut HashMap<Node, Hash>, node: Node) -> Hash {
            if node.level == 0 {
                return leaves[node.index as usize];
            }
            if let Some(hash) = kept.get(&node) {
                return *hash;
            }
            let below = |n| Node { level: node.level - 1, index: node.index * 2 + n };
            let hash = Hash::node(of(leaves, kept, below(0)), of(leaves, kept, below(1)));
            kept.insert(node, hash);
            hash
        }
        let mut kept = HashMap::new();
        move |node| Ok(of(&self.leaves, &mut kept, node))
    }

    pub fn root(&self, size: u64) -> Hash {
        tree::Frontier::read(size, self.reader()).unwrap().root()
    }

    pub fn inclusion(&self, indexes: &[u64]) -> Vec<Vec<Hash>> {
        let mut read = self.reader();
        let proof = |index: &u64| tree::inclusion_proof(*index, self.size(), &mut read).unwrap();
        indexes.iter().map(proof).collect()
    }

    pub fn consistency(&self, old: u64) -> Vec<Hash> {
        tree::consistency_proof(old, self.size(), self.reader()).unwrap()
    }
}

fn amount(connections: u64, bytes: u64) -> Amount {
    Amount { connections, bytes }
}

/// An hour in which much is encrypted, and each day a little more.
pub fn hour(start: u64, age: u64, rows: usize) -> MeshPeriod {
    let busy = 600 + (start / HOUR % 24).abs_diff(14) * 25 + (start / HOUR * 7919) % 97;
    let plain = busy * age.min(400) / 900 + busy / 90;
    let pq = busy * (500 - age.min(400)) / 9;
    let levels = Levels {
        unknown: amount(busy / 60, busy * 9_000),
        plaintext: amount(plain, plain * 210_000),
        weak: amount(busy / 200, busy * 4_100),
        acceptable: amount(busy * 3, busy * 1_900_000),
        strong: amount(pq, pq * 1_450_000),
    };
    let algorithm = |n: usize| {
        let names = [
            ("TLS 1.3", "X25519MLKEM768", "TLS_AES_128_GCM_SHA256", true),
            ("TLS 1.3", "x25519", "TLS_AES_256_GCM_SHA384", false),
            ("SSH 2", "mlkem768x25519-sha256", "chacha20-poly1305@openssh.com", true),
            ("TLS 1.2", "secp256r1", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", false),
            ("QUIC 1", "X25519MLKEM768", "TLS_AES_128_GCM_SHA256", true),
        ];
        let (version, key_exchange, cipher, post_quantum) = names[n % names.len()];
        let kex = if n < names.len() { key_exchange.into() } else { format!("{key_exchange}-{n}") };
        let amount = amount(busy / (n as u64 + 1), busy * 1_000_000 / (n as u64 + 1));
        Algorithm {
            version: version.into(),
            key_exchange: kex,
            cipher: cipher.into(),
            post_quantum,
            amount,
        }
    };
    let protocol = |n: usize| {
        let names = [
            ("wiretight", "strong"),
            ("tls", "acceptable"),
            ("dns", "plaintext"),
            ("syslog", "plaintext"),
            ("unknown", "unknown"),
            ("smtp", "weak"),
        ];
        let (name, level) = names[n % names.len()];
        let protocol = if n < names.len() { name.into() } else { format!("{name}-{n}") };
        let amount = amount(busy / (n as u64 + 1), busy * 900_000 / (n as u64 + 1));
        Protocol { protocol, level: level.into(), amount }
    };
    let silent = start / HOUR % 500 == 9;
    MeshPeriod {
        nodes: NodeCount { members: 42, reported: if silent { 40 } else { 42 } },
        watched_seconds: 42 * HOUR - start / HOUR % 13 * 40,
        levels,
        carried: amount(pq, pq * 1_400_000),
        post_quantum: levels.strong,
        missed: Missed { bytes: busy * 100, resyncs: 0, lost_packets: 1 },
        modes: Modes { strict: 30, permissive: 9, observe: 2, none: 1 },
        exceptions: ExceptionCount { explained: 5, expired: 1, unexplained: 2 },
        algorithms: (0..rows).map(algorithm).collect(),
        protocols: (0..rows).map(protocol).collect(),
        releases: vec![Release { version: "0.1.0".into(), nodes: 42 }],
        ..MeshPeriod::new(start, HOUR)
    }
}

impl Sample {
    /// A mesh that has been logged for so many days, each period with so many rows. `days` 0: nothing is logged.
    pub fn new(days: u64, rows: usize) -> Sample {
        let key = |name: &str| KeyName::new(name).unwrap();
        let signer = LogSigner::generate(key("example.org/log-1")).unwrap();
        let witness = |n: u8| {
            let name = key(&format!("witness{n}.example"));
            Cosigner::from_seed(name, Kind::Ed25519, &[n; 32]).unwrap()
        };
        let witnesses: Vec<Cosigner> = (1..=3).map(witness).collect();
        let mut policy = format!("log {}\n", signer.public());
        for (name, witness) in ["north", "south", "east"].iter().zip(&witnesses) {
            policy += &format!("witness {name} {} https://10.77.66.54/{name}\n", witness.public());
        }
        policy += "group all 2 north south east\nquorum all\n";
        let policy = Policy::parse(&policy).unwrap();
        let mut sample = Sample {
            facts: facts(&signer, &policy),
            signer,
            witnesses,
            policy,
            tree: Tree::default(),
            earlier: Vec::new(),
        };
        let today = AT / DAY * DAY;
        for n in (0..=days).filter(|_| days > 0).rev() {
            let start = today - n * DAY;
            // Five hours of a day two weeks ago are missing, and this day's have just begun.
            let missing =
                |h: &u64| n == 14 && (3..8).contains(h) || n == 0 && start + (h + 1) * HOUR > AT;
            let hours = (0..24).filter(|h| !missing(h)).map(|h| hour(start + h * HOUR, n, rows));
            let hours: Vec<MeshPeriod> = hours.collect();
            let day = (n > 0).then(|| MeshPeriod::day(start, &hours));
            for period in hours.into_iter().chain(day) {
                sample.tree.push(format!("a certificate {}", sample.tree.size()).as_bytes());
                let index = sample.tree.push(&period.entry());
                let kept = period.length == DAY || period.start + 31 * DAY > AT;
                if kept {
                    sample.facts.periods.push(LoggedPeriod { index, period });
                }
            }
            if n == 3 {
                let size = sample.tree.size();
                let (at, root) = (start + DAY, sample.tree.root(size));
                sample.earlier.push(Earlier { at, size, root });
            }
        }
        if days == 0 {
            sample.tree.push(b"a certificate");
        }
        sample.facts.periods.sort_by_key(|l| (l.period.start, l.period.length));
        sample.facts.since = (days > 0).then_some(today - days * DAY);
        sample.facts.ca.log.size = sample.tree.size();
        sample
    }

    /// The newest checkpoint, cosigned by the first `n` witnesses at `at`.
    pub fn checkpoint(&self, n: usize, at: u64) -> SignedCheckpoint {
        let origin = self.signer.public().name().as_str().to_owned();
        let (size, extensions) = (self.tree.size(), Vec::new());
        let checkpoint = Checkpoint { origin, size, root: self.tree.root(size), extensions };
        let mut signed = checkpoint.sign(&self.signer).unwrap();
        for witness in self.witnesses.iter().take(n) {
            signed.add(witness.cosign(&checkpoint, at).unwrap());
        }
        signed
    }

    /// The complete folder, and with it the log with the publication.
    pub fn folder(&mut self, chosen: &Publish) -> Folder {
        let folder = self.preview(chosen);
        let (from, manifest) = (self.tree.size(), folder.file("manifest").unwrap());
        let publication = Publication::new(AT, manifest.as_bytes());
        let index = self.tree.push(&publication.entry());
        let proof = Proof {
            extra: None,
            index,
            hashes: self.tree.inclusion(&[index]).remove(0),
            checkpoint: self.checkpoint(2, AT - 20),
        };
        let consistency = self.tree.consistency(from);
        folder.with(&Published { publication, proof, consistency })
    }

    /// The folder without the publication.
    pub fn preview(&self, chosen: &Publish) -> Folder {
        let periods = selected(&self.facts.periods, self.tree.size());
        let indexes: Vec<u64> = periods.iter().map(|l| l.index).collect();
        let proven = Proven {
            checkpoint: self.checkpoint(2, AT - 40),
            inclusion: self.tree.inclusion(&indexes),
            consistency: self.earlier.iter().map(|e| self.tree.consistency(e.size)).collect(),
        };
        files(&self.facts, &periods, &proven, (&self.policy, &self.earlier), chosen)
    }
}

fn facts(signer: &LogSigner, policy: &Policy) -> Facts {
    let name = |text: &str| text.parse().unwrap();
    let [node, service, address, host, program, reason, owner, witness] = PRIVATE;
    let exception = Exception {
        kind: ExceptionKind::Pass,
        what: format!("udp {address}:514"),
        explanation: Some(Explanation {
            reason: reason.into(),
            owner: owner.into(),
            until: AT + DAY,
        }),
    };
    let other = Exception {
        kind: ExceptionKind::Observe,
        what: format!("{host} ({program})"),
        explanation: None,
    };
    let report = NodeReport {
        version: "0.1.0".into(),
        mode: Some(Mode::Strict),
        watching: true,
        exceptions: vec![exception, other].into(),
        ..NodeReport::default()
    };
    let node = NodeFacts {
        name: name(node),
        joined_at: AT - 400 * DAY,
        connected: true,
        last_seen: Some(AT),
        current: Some(true),
        services: vec![name(service)],
        report: Some(report.into()),
        reported_at: Some(AT - 60),
        last_hour: Some(AT / HOUR * HOUR - HOUR),
        release: Default::default(),
    };
    let hex = |n: u8| format!("{n:02x}").repeat(32);
    let roots = vec![RootStatus {
        fingerprint: hex(0x1a),
        standing: RootStanding::Active,
        since: AT - 400 * DAY,
        not_after: AT + 3000 * DAY,
    }];
    let intermediate = IntermediateStatus {
        fingerprint: hex(0x2b),
        root: hex(0x1a),
        issued_at: AT - DAY,
        not_after: AT + 6 * DAY,
        renews_at: AT + 2 * DAY,
    };
    let cosigned = |w: &wiretight_tlog::policy::Witness| WitnessStatus {
        name: w.name.clone(),
        size: Some(1),
        cosigned_at: Some(AT - 40),
        problem: Some(format!("cannot reach https://{witness}/")),
    };
    let log = LogStatus {
        vkey: signer.public().to_string(),
        self_attested: false,
        quorum: policy.quorum_text(),
        witnesses: policy.witnesses().iter().map(cosigned).collect(),
        ..LogStatus::default()
    };
    let key = |name: &str, algorithm: &str, holder: &str, power: &str, print: String| KeyFacts {
        name: name.into(),
        algorithm: algorithm.into(),
        holder: holder.into(),
        power: power.into(),
        fingerprint: print,
        expires: None,
    };
    let operator = "The operator of the authority, in a file on the authority's machine.";
    let issue = "Can issue any identity of the mesh. A node that requires transparency accepts only identities that are in the log.";
    let sign = "Signs the log. To show two readers different logs, it would also need a quorum of the witnesses.";
    Facts {
        at: AT,
        trust_domain: "example.org".parse().unwrap(),
        version: "0.1.0".into(),
        periods: Vec::new(),
        since: None,
        nodes: vec![node],
        ca: CaStatus {
            trust_domain: "example.org".parse().unwrap(),
            roots,
            intermediate,
            version: 7,
            behind: Vec::new(),
            log,
        },
        keys: vec![
            key("root", "P-256", operator, issue, hex(0x1a)),
            key("intermediate", "P-256", operator, issue, hex(0x2b)),
            key("log", "Ed25519", operator, sign, signer.public().to_string()),
        ],
    }
}
