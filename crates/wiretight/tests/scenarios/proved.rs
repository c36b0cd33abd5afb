//! Upgrades to a file: what is not proved does not run, and what does not come to serve leads back to the old program. No
//! connection is lost.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use rustix::process::{Pid, Signal, kill_process};
use semver::Version;
use serde_json::Value;
use wiretight::release::own::proof_of;
use wiretight::release::proof::{Proven, ReleaseProof};
use wiretight::release::{Artifact, Entry, Rebuild, Release, SignedEntry, Source, entry};
use wiretight_tlog::cosignature::Algorithm;
use wiretight_tlog::note::KeyName;
use wiretight_tlog::tree::{self, Node as TreeNode};
use wiretight_tlog::{
    Checkpoint, Cosigner, Frontier, Hash, LogSigner, Proof, SignedCheckpoint, TreeError,
};

use super::rig::*;

/// A publisher with its log, a witness and a rebuilder.
struct Releases {
    log: LogSigner,
    publisher: LogSigner,
    rebuilder: LogSigner,
    witness: Cosigner,
}

impl Releases {
    fn new() -> Releases {
        let name = |name: &str| KeyName::new(name).unwrap();
        let key = |of: &str| LogSigner::generate(name(of)).unwrap();
        Releases {
            log: key("example.org/releases"),
            publisher: key("example.org/wiretight"),
            rebuilder: key("r.example"),
            witness: Cosigner::from_seed(name("w.example"), Algorithm::Ed25519, &[7; 32]).unwrap(),
        }
    }

    fn policy(&self) -> String {
        format!(
            "log {}\nwitness w {}\nquorum w\npublisher {}\nrebuilder r {}\nrebuilds 1\nmax-age 30d\n",
            self.log.public(),
            self.witness.public(),
            self.publisher.public(),
            self.rebuilder.public(),
        )
    }

    /// Writes FILE.proof. `named`: the file's name in the release. `days`: until it expires.
    fn prove(&self, file: &Path, named: &str, [version, minimum]: [&str; 2], days: i64) {
        let (hash, version) = (Hash::of(b""), Version::parse(version).unwrap());
        let artifact = Artifact::of(File::open(file).unwrap()).unwrap();
        let files =
            vec![entry::File { name: named.into(), size: artifact.size, sha256: artifact.sha256 }];
        let sign = |entry, key: &LogSigner| SignedEntry::sign(entry, key).unwrap();
        let source = Source {
            name: "wiretight".into(),
            version: version.clone(),
            tree: "5".repeat(40),
            lock: hash,
            vendor: hash,
            toolchain: hash,
            recipe: hash,
        };
        let source = sign(Entry::Source(source), &self.publisher);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let release = Release {
            name: "wiretight".into(),
            version,
            source: source.id(),
            minimum: Version::parse(minimum).unwrap(),
            expires: Timestamp::from_second(now as i64 + days * 86_400).unwrap(),
            files: files.clone(),
        };
        let rebuild = Rebuild { source: source.id(), toolchain: hash, files };
        let entries = [
            source,
            sign(Entry::Release(release), &self.publisher),
            sign(Entry::Rebuild(rebuild), &self.rebuilder),
        ];
        let leaves: Vec<Hash> = entries.iter().map(SignedEntry::leaf).collect();
        let mut frontier = Frontier::default();
        leaves.iter().for_each(|leaf| frontier.append(*leaf, |_, _| {}));
        let checkpoint = Checkpoint {
            origin: self.log.public().name().to_string(),
            size: leaves.len() as u64,
            root: frontier.root(),
            extensions: Vec::new(),
        };
        let mut signed = checkpoint.sign(&self.log).unwrap();
        signed.add(self.witness.cosign(signed.unverified(), now).unwrap());
        let checkpoint = SignedCheckpoint::parse(&signed.to_string()).unwrap();
        let mut proven = (0..).zip(entries).map(|(index, entry)| {
            let read = |node: TreeNode| {
                let start = (node.index as usize) << node.level;
                wiretight_tlog::tile::subtree(&leaves[start..start + (1 << node.level)])
                    .ok_or(TreeError::OutOfRange)
            };
            let hashes = tree::inclusion_proof(index, leaves.len() as u64, read).unwrap();
            let checkpoint = checkpoint.clone();
            Proven { entry, proof: Proof { extra: None, index, hashes, checkpoint } }
        });
        let (source, release) = (proven.next().unwrap(), proven.next().unwrap());
        let proof = ReleaseProof { source, release, rebuilds: proven.collect() };
        fs::write(proof_of(file), proof.to_string()).unwrap();
    }
}

/// Processes that the command line has started; killed by their process ids when dropped.
struct Strays(Vec<u32>);

impl Drop for Strays {
    fn drop(&mut self) {
        for pid in &self.0 {
            let _ = kill_process(Pid::from_raw(*pid as i32).unwrap(), Signal::KILL);
        }
    }
}

/// A node that runs its own copy of the program, with a release policy.
struct Rig {
    pair: Pair,
    entry: std::net::SocketAddr,
    /// The installed program.
    program: PathBuf,
    /// It exists if a candidate was run.
    mark: PathBuf,
    releases: Releases,
    strays: Strays,
}

impl Rig {
    fn new() -> Rig {
        let (mut pair, entry) = super::upgrade::pair();
        let releases = Releases::new();
        let [bin, policy, mark] = ["bin", "release.policy", "mark"].map(|at| pair.world.path(at));
        fs::create_dir(&bin).unwrap();
        fs::write(&policy, releases.policy()).unwrap();
        let program = bin.join("wiretight");
        fs::copy(wiretight().get_program(), &program).unwrap();
        releases.prove(&program, "wiretight", ["1.0.0", "1.0.0"], 9);
        let file = pair.db.file();
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, format!("{text}[release]\npolicy = \"{}\"\n", policy.display())).unwrap();
        pair.db.kid().kill();
        let mut command = Command::new(&program);
        command.args(["run", "--config"]).arg(&file);
        let kid = Kid::start(&mut command, &file.with_file_name("log"));
        pair.db.replace(kid);
        pair.db.ready();
        wait_for("it is reachable", || once(entry).is_ok());
        Rig { pair, entry, program, mark, releases, strays: Strays(Vec::new()) }
    }

    /// A candidate that leaves a mark when it runs.
    fn script(&self, name: &str, then: &str) -> PathBuf {
        let text = format!("#!/bin/sh\n# {name}\ntouch {}\n{then}\n", self.mark.display());
        self.candidate(name, text.as_bytes())
    }

    fn candidate(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.pair.world.path(name);
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        path
    }

    /// This version of the program with something appended: another file that runs.
    fn another(&self, name: &str) -> PathBuf {
        let mut bytes = fs::read(wiretight().get_program()).unwrap();
        bytes.extend_from_slice(name.as_bytes());
        self.candidate(name, &bytes)
    }

    /// `wiretight upgrade FILE`, run with the installed program.
    fn upgrade(&self, file: &Path, options: &[&str]) -> Ran {
        let mut command = Command::new(&self.program);
        command.arg("upgrade").arg(file).args(options).arg("--config").arg(self.pair.db.file());
        Ran::of(&mut command, "")
    }

    fn pid(&self) -> u32 {
        self.pair.db.status()["pid"].as_u64().unwrap() as u32
    }

    /// The file is refused for this reason, before it runs, and nothing has changed.
    #[track_caller]
    fn refuses(&self, file: &Path, why: &str) {
        let pid = self.pid();
        let ran = self.upgrade(file, &[]);
        assert!(ran.code == Some(1) && ran.err.contains(why), "expected {why:?}: {ran:?}");
        assert!(ran.err.contains("was not run"), "{ran:?}");
        assert!(!self.mark.exists(), "it was run: {ran:?}");
        assert_eq!(self.pid(), pid);
        self.assert_nothing_left();
    }

    /// There is no candidate beside the program.
    #[track_caller]
    fn assert_nothing_left(&self) {
        let files = fs::read_dir(self.program.parent().unwrap()).unwrap();
        let names: Vec<_> = files.map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
        let known = ["wiretight", "wiretight.proof", "wiretight.previous"];
        assert!(names.iter().all(|name| known.contains(&&**name)), "{names:?}");
    }

    /// The file becomes the program.
    #[track_caller]
    fn becomes(&mut self, file: &Path, options: &[&str]) -> Value {
        let before = fs::read(&self.program).unwrap();
        let ran = self.upgrade(file, &[options, &["--json"]].concat()).good().json();
        let pid = ran["pid"].as_u64().unwrap() as u32;
        self.strays.0.push(pid);
        assert_eq!((ran["upgraded"].as_bool(), self.pid()), (Some(true), pid));
        let same = |a: &[u8], b: &Path| a == fs::read(b).unwrap();
        assert!(same(&fs::read(file).unwrap(), &self.program), "it is installed");
        assert!(same(&before, &self.program.with_extension("previous")), "the old one is kept");
        assert_eq!(fs::read_link(format!("/proc/{pid}/exe")).unwrap(), self.program);
        self.assert_nothing_left();
        ran
    }

    /// `wiretight status`, without its line breaks.
    fn text(&self) -> String {
        let text = self.pair.db.cli(&["status"]).good().out;
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    fn verdict(&self) -> Value {
        self.pair.db.status()["release"]["verdict"].clone()
    }
}

#[test]
fn only_a_proved_program_takes_over_and_no_connection_is_lost() {
    let mut rig = Rig::new();
    assert_eq!(rig.verdict()["proved"]["version"], "1.0.0", "beside the program is its proof");
    assert_eq!(rig.pair.app.status()["release"]["verdict"], "no_policy");
    let load = Load::start(rig.entry, 4, 2);

    // Refused, and not run.
    let script = rig.script("unproved", "");
    rig.refuses(&script, "cannot read the proof");
    let new = rig.another("new");
    rig.releases.prove(&new, "wiretight", ["2.0.0", "1.5.0"], 9);
    let mut bytes = fs::read(&new).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let altered = rig.candidate("altered", &bytes);
    fs::copy(proof_of(&new), proof_of(&altered)).unwrap();
    rig.refuses(&altered, "the proof is for other files");
    let other = rig.script("other", "");
    rig.releases.prove(&other, "wiretight.deb", ["2.0.0", "1.0.0"], 9);
    rig.refuses(&other, "not for the program wiretight");
    let expired = rig.script("expired", "");
    rig.releases.prove(&expired, "wiretight", ["2.0.0", "1.0.0"], -1);
    rig.refuses(&expired, "expired");
    let strangers = rig.script("strangers", "");
    Releases::new().prove(&strangers, "wiretight", ["2.0.0", "1.0.0"], 9);
    rig.refuses(&strangers, "not run");
    load.assert_clean();

    // Proved, and run, but they do not come to serve.
    let pid = rig.pid();
    let crashes = rig.script("crashes", "exit 3");
    rig.releases.prove(&crashes, "wiretight", ["2.0.0", "1.0.0"], 9);
    let ran = rig.upgrade(&crashes, &[]);
    assert!(ran.code == Some(1) && ran.err.contains("the old one continues"), "{ran:?}");
    assert!(rig.mark.exists(), "the control of the mark: it was run");
    fs::remove_file(&rig.mark).unwrap();
    let hangs = rig.script("hangs", "sleep 600");
    rig.releases.prove(&hangs, "wiretight", ["2.0.0", "1.0.0"], 9);
    let ran = rig.upgrade(&hangs, &["--wait", "1s"]);
    assert!(ran.code == Some(1) && ran.err.contains("was killed"), "{ran:?}");
    fs::remove_file(&rig.mark).unwrap();
    rig.assert_nothing_left();
    assert_eq!(rig.pid(), pid);
    load.moves();

    // A proved one.
    let done = rig.becomes(&new, &[]);
    assert_eq!(done["proved"]["version"], "2.0.0");
    assert_eq!(rig.verdict()["proved"]["rebuilt"][0], "r");
    let text = rig.text();
    assert!(text.contains("proved by entry 1 of example.org/releases, also built by r"), "{text}");
    load.moves();
    let same = rig.upgrade(&new, &[]).good();
    assert!(same.out.contains("Nothing to do"), "{same:?}");

    // From now on nothing older than its minimum, whatever the older release says of itself.
    let older = rig.script("older", "");
    rig.releases.prove(&older, "wiretight", ["1.4.0", "1.0.0"], 9);
    rig.refuses(&older, "older than 1.5.0");

    // The running process asks its next one, too.
    let pid = rig.pid();
    let ran = rig.pair.db.cli(&["upgrade"]);
    assert!(ran.code == Some(1) && ran.err.contains("refuses this program"), "{ran:?}");
    assert_eq!(rig.pid(), pid);

    // The operator may overrule that, and it is named.
    let other = rig.another("unlogged");
    rig.refuses(&other, "cannot read the proof");
    let done = rig.becomes(&other, &["--unproved"]);
    assert_eq!(done["proved"], Value::Null);
    let why = rig.verdict()["unproved"].as_str().unwrap().to_owned();
    assert!(why.contains("--unproved"), "{why}");
    let text = rig.text();
    assert!(text.contains("NOT PROVED") && text.contains("--unproved"), "{text}");
    let log = rig.pair.db.log();
    assert!(log.contains("a program that is not proved may take over"), "{log}");
    assert!(log.contains("this program is not proved to be a release"), "{log}");
    let all = load.stop();
    say(format!("{all} exchanges meanwhile"));
}

#[test]
fn a_program_that_hangs_in_its_trial_leads_back_to_the_old_one() {
    let mut rig = Rig::new();
    let mut live = Talk::open(rig.entry).unwrap();
    live.exchange().unwrap();
    let (pid, before) = (rig.pid(), fs::read(&rig.program).unwrap());
    let new = rig.another("new");
    rig.releases.prove(&new, "wiretight", ["2.0.0", "1.0.0"], 9);
    let file = rig.pair.db.file();
    let program = rig.program.clone();
    let command = std::thread::spawn(move || {
        let mut command = Command::new(program);
        command.arg("upgrade").arg(new).arg("--config").arg(file);
        Ran::of(&mut command, "")
    });
    // It is ready, but does not own the node yet.
    wait_for("it is on trial", || rig.pair.db.log().contains("it gets the node after a trial"));
    let (_, status) = rig.pair.db.http("GET", "/v1/status", "").unwrap();
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["taking_over"], true);
    let new = status["pid"].as_u64().unwrap() as u32;
    rig.strays.0.push(new);
    assert_ne!(new, pid);
    kill_process(Pid::from_raw(new as i32).unwrap(), Signal::STOP).unwrap();
    let ran = command.join().unwrap();
    assert!(ran.code == Some(1) && ran.err.contains("the old one continues"), "{ran:?}");
    assert!(rig.pair.db.log().contains("it no longer answers"), "{}", rig.pair.db.log());
    wait_for("the old one is the node", || {
        rig.pair.db.http("GET", "/v1/status", "").is_ok_and(|(_, body)| {
            serde_json::from_str::<Value>(&body).is_ok_and(|status| status["pid"] == pid)
        })
    });
    assert!(before == fs::read(&rig.program).unwrap(), "the program is the old one");
    rig.assert_nothing_left();
    live.exchange().unwrap();
    once(rig.entry).unwrap();
}
