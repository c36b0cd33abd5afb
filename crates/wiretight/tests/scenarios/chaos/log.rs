//! The log during the faults: three witnesses with a quorum of two, one of which can misbehave; and a monitor that reads
//! the log through a server that can withhold it.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;

use wiretight_tlog::cosignature::Algorithm;
use wiretight_tlog::note::KeyName;
use wiretight_tlog::{Cosigner, Signature, SignedCheckpoint};

use super::super::rig::*;
use super::Rig;

/// On the authority's machine.
const GOOD: [u16; 2] = [7481, 7482];
const BAD: u16 = 7483;
const SHOWN: u16 = 7484;
/// Normal.
const HONEST: u64 = 0;

/// The witnesses and the monitor.
pub(super) struct LogSide {
    _witnesses: Vec<Kid>,
    monitor: Kid,
    /// The behaviour of the third witness.
    witness: Arc<AtomicU64>,
    /// Which part of the log the monitor can read.
    log: Arc<AtomicU64>,
    policy: PathBuf,
}

impl LogSide {
    /// Starts everything on the authority's machine, before the authority is started.
    pub(super) fn start(world: &World, authority: &Node, machine: &str) -> LogSide {
        let key = authority.cli(&["authority", "log-key"]).good().out;
        let mut text = format!("log {key}");
        let file = |name: String| world.path(&name);
        for port in GOOD {
            let mut keygen = wiretight();
            keygen.args(["witness", "keygen", &format!("example.org/{port}"), "--out"]);
            let key = Ran::of(keygen.arg(file(format!("{port}.key"))), "").good().out;
            text += &format!("witness w{port} {} http://127.0.0.1:{port}\n", key.trim());
        }
        let name = KeyName::new("example.org/bad").unwrap();
        let bad = Cosigner::from_seed(name, Algorithm::Ed25519, &[7; 32]).unwrap();
        text += &format!("witness bad {} http://127.0.0.1:{BAD}\n", bad.public());
        text += &format!("group two 2 w{} w{} bad\nquorum two\n", GOOD[0], GOOD[1]);
        let policy = file("policy".into());
        fs::write(&policy, text).unwrap();
        let started = GOOD.map(|port| {
            let mut run = wiretight();
            run.args(["witness", "run", "--new", "--listen", &format!("127.0.0.1:{port}")]);
            run.arg("--key").arg(file(format!("{port}.key"))).arg("--policy").arg(&policy);
            run.arg("--state").arg(file(format!("{port}.state")));
            Kid::start(&mut within(Some(machine), run), &file(format!("{port}.log")))
        });
        let (witness, log) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let mode = witness.clone();
        serve(machine, BAD, move |_, body| cosign(&bad, mode.load(SeqCst), body));
        let (mode, dir) = (log.clone(), authority.state().join("authority/log"));
        serve(machine, SHOWN, move |path, _| show(&dir, mode.load(SeqCst), path));
        let mut follow = wiretight();
        follow.arg("monitor").arg("--policy").arg(&policy).arg("--state").arg(file("mon".into()));
        follow.args(["--url", &format!("http://127.0.0.1:{SHOWN}")]);
        follow.args(["--interval", "1s", "--max-blind", "2s"]);
        let monitor = Kid::start(&mut within(Some(machine), follow), &file("monitor.log".into()));
        LogSide { _witnesses: started.into(), monitor, witness, log, policy }
    }

    /// The section for a node's configuration file, with the policy next to it.
    pub(super) fn section(&self, node: &Node) -> String {
        let beside = node.file().with_file_name("policy");
        fs::copy(&self.policy, &beside).unwrap();
        format!("[witnesses]\npolicy = \"{}\"\n", beside.display())
    }

    fn alerts(&self, kind: &str) -> usize {
        self.monitor.log().matches(&format!("\"alert\":\"{kind}\"")).count()
    }

    /// The highest number of entries that the monitor has read.
    fn read(&self) -> u64 {
        let log = self.monitor.log();
        let looks = log.lines().filter(|line| line.contains("checked the log"));
        let size = |line: &str| {
            let size = line.split("\"size\":").nth(1)?;
            size.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
        };
        looks.filter_map(size).max().unwrap_or(0)
    }

    /// At the end: the monitor has raised alerts for withheld entries and oversized files, and for nothing else.
    pub(super) fn assert_told_the_truth(&self) {
        for kind in ["fork", "rollback", "stalled", "not-witnessed", "malformed-entry"] {
            assert_eq!(self.alerts(kind), 0, "{kind}");
        }
        let log = self.monitor.log();
        for alert in log.lines().filter(|line| line.contains("\"alert\":\"damaged\"")) {
            assert!(alert.contains("larger than such a file can be"), "{alert}");
        }
    }
}

// ---- Faults.

/// One of three witnesses misbehaves: issuance continues with the other two, and it is named.
pub(super) fn witness_gone_bad(rig: &mut Rig, _: usize) {
    let mode = 1 + rig.dice.below(COSIGN.len() as u64);
    rig.log.witness.store(mode, SeqCst);
    for node in &rig.nodes {
        wait_for(&format!("issuance beside a witness with {}", COSIGN[mode as usize - 1]), || {
            node.cli(&["svid", "renew"]).code == Some(0)
        });
    }
    wait_for("the witness is named", || {
        rig.authority.status()["log"]["witnesses"][2]["problem"].is_string()
    });
    rig.log.witness.store(HONEST, SeqCst);
}

/// The log shows its checkpoint but not the entries: the monitor reports that it is blind, and recovers afterwards.
pub(super) fn log_withholds(rig: &mut Rig, side: usize) {
    let before = rig.log.alerts("blind");
    rig.log.log.store(1 + rig.dice.below(SHOW.len() as u64), SeqCst);
    wait_for("something is issued", || rig.nodes[side].cli(&["svid", "renew"]).code == Some(0));
    wait_for("the monitor reports that it is blind", || rig.log.alerts("blind") > before);
    rig.log.log.store(HONEST, SeqCst);
    let size = rig.authority.status()["log"]["size"].as_u64().unwrap();
    wait_for("it reads again", || rig.log.read() >= size);
}

/// The responses of a bad witness.
const COSIGN: [&str; 7] = [
    "junk lines under its key",
    "a time of long ago",
    "a time to come",
    "a larger tree",
    "another tree",
    "something that is no cosignature",
    "an answer without end",
];

fn cosign(key: &Cosigner, mode: u64, body: &[u8]) -> (u16, Vec<u8>) {
    let text = String::from_utf8_lossy(body);
    let note = text.split_once("\n\n").and_then(|(_, note)| SignedCheckpoint::parse(note).ok());
    let Some(signed) = note else { return (400, Vec::new()) };
    let line = |time| key.cosign(signed.unverified(), time).unwrap();
    let now = wiretight_proxy::clock::now();
    let good = line(now);
    match mode {
        HONEST => (200, format!("{good}\n").into()),
        1 => {
            let junk = |n: u8| format!("{}\n", Signature { bytes: vec![n; 72], ..good.clone() });
            let junk: String = (0..60).map(junk).collect();
            (200, format!("{good}\n{junk}").into())
        }
        2 => (200, format!("{}\n", line(1)).into()),
        3 => (200, format!("{}\n", line(now + 400_000_000)).into()),
        4 => (409, format!("{}\n", signed.unverified().size + 1000).into()),
        5 => (422, b"another tree\n".into()),
        6 => (200, b"no cosignature\n".into()),
        _ => (200, vec![b'x'; 1 << 20]),
    }
}

/// How a log withholds entries.
const SHOW: [&str; 4] = ["not found", "forbidden", "unavailable", "too long"];

fn show(dir: &Path, mode: u64, path: &str) -> (u16, Vec<u8>) {
    let Ok(mut bytes) = fs::read(dir.join(path)) else { return (404, Vec::new()) };
    if path.starts_with("tile/") {
        match mode {
            HONEST => {}
            1 => return (404, Vec::new()),
            2 => return (403, Vec::new()),
            3 => return (503, Vec::new()),
            _ => bytes.resize(20 << 20, 0),
        }
    }
    (200, bytes)
}

/// Serves HTTP on a machine's loopback address, one request per connection, for as long as the tests run.
fn serve(
    machine: &str,
    port: u16,
    answer: impl Fn(&str, &[u8]) -> (u16, Vec<u8>) + Send + Sync + 'static,
) {
    let answer = Arc::new(answer);
    let serving = on(machine, move || {
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let answer = answer.clone();
                thread::spawn(move || exchange(stream, &*answer));
            }
        });
    });
    serving.join().unwrap();
}

/// A server's response to a path and a body: status and body.
type Answer = dyn Fn(&str, &[u8]) -> (u16, Vec<u8>);

fn exchange(stream: TcpStream, answer: &Answer) -> Option<()> {
    let mut stream = BufReader::new(stream);
    let (mut first, mut line, mut length) = (String::new(), String::new(), 0);
    stream.read_line(&mut first).ok()?;
    while stream.read_line(&mut line).ok()? > 2 {
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        line.clear();
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    let path = first.split(' ').nth(1)?.trim_start_matches('/');
    let (status, body) = answer(path, &body);
    let kind = if status == 409 { "text/x.tlog.size" } else { "text/plain" };
    let head = format!(
        "HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.get_mut().write_all(&[head.as_bytes(), &body].concat()).ok()
}
