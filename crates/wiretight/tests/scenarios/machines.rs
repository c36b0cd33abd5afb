//! Machines as network namespaces on one wire, captures of that wire, and clocks that are wrong.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Instant;

use rustix::process::Signal;

use super::rig::*;

/// What programs send, and what must not be on the wire.
pub(super) const CANARY: &str = "canary-3f1c9a-plaintext";

/// The namespaces; removed when dropped.
pub(super) struct Wire {
    pub(super) client: String,
    pub(super) wire: String,
    pub(super) server: String,
    others: Vec<String>,
}

#[track_caller]
pub(super) fn ip(line: &str) {
    let ran = Ran::of(Command::new("ip").args(line.split(' ')), "");
    assert_eq!(ran.code, Some(0), "ip {line}: {}", ran.all());
}

impl Wire {
    /// The client is 10.77.0.1 and fd77::1, the server .2 and ::2.
    pub(super) fn new() -> Wire {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = format!("wt{}n{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let name = |what: &str| format!("{id}{what}");
        let (client, wire, server) = (name("c"), name("w"), name("s"));
        let wire = Wire { client, wire, server, others: Vec::new() };
        ip(&format!("netns add {}", wire.wire));
        ip(&format!("-n {} link add br0 type bridge", wire.wire));
        ip(&format!("-n {} link set br0 up", wire.wire));
        wire.plug(&wire.client, 1);
        wire.plug(&wire.server, 2);
        wire
    }

    /// One more machine on the wire. Returns its namespace.
    pub(super) fn add(&mut self, host: u8) -> String {
        let name = format!("{}{host}", self.wire);
        self.plug(&name, host);
        self.others.push(name.clone());
        name
    }

    fn plug(&self, end: &str, host: u8) {
        let w = &self.wire;
        ip(&format!("netns add {end}"));
        ip(&format!("-n {end} link set lo up"));
        ip(&format!("-n {w} link add v{host} type veth peer name eth0 netns {end}"));
        ip(&format!("-n {w} link set v{host} master br0 up"));
        address(end, host);
    }
}

/// The machine's link is up, with its addresses.
pub(super) fn address(end: &str, host: u8) {
    ip(&format!("-n {end} link set eth0 up"));
    let [four, six] = hosts(host);
    ip(&format!("-n {end} addr replace {four}/24 dev eth0"));
    ip(&format!("-n {end} addr replace {six}/64 dev eth0 nodad"));
}

/// The addresses of a machine on the wire.
pub(super) fn hosts(host: u8) -> [IpAddr; 2] {
    [([10, 77, 0, host]).into(), ([0xfd77, 0, 0, 0, 0, 0, 0, u16::from(host)]).into()]
}

impl Drop for Wire {
    fn drop(&mut self) {
        for ns in [&self.client, &self.wire, &self.server].into_iter().chain(&self.others) {
            let _ = Command::new("ip").args(["netns", "del", ns]).status();
        }
    }
}

/// Captures the wire from now until it is read.
pub(super) struct Capture {
    kid: Kid,
    pub(super) file: PathBuf,
}

impl Capture {
    pub(super) fn start(wire: &Wire, world: &World, name: &str) -> Capture {
        Capture::at("v1", wire, world, name)
    }

    /// At one of the bridge's ports: v1 is the client's, v2 the server's.
    pub(super) fn at(port: &str, wire: &Wire, world: &World, name: &str) -> Capture {
        let (file, log) = (world.path(&format!("{name}.pcap")), world.path(&format!("{name}.log")));
        let mut tcpdump = Command::new("tcpdump");
        tcpdump
            .args([
                "-i",
                port,
                "--immediate-mode",
                "-U",
                "-s",
                "0",
                "-B",
                "16384",
                "-Z",
                "root",
                "-w",
            ])
            .arg(&file);
        let kid = Kid::start(&mut within(Some(&wire.wire), tcpdump), &log);
        wait_for("tcpdump listens", || kid.log().contains("listening on v"));
        Capture { kid, file }
    }

    pub(super) fn bytes(mut self) -> Vec<u8> {
        std::thread::sleep(ms(500)); // until the last packets are written
        self.kid.signal(Signal::INT);
        self.kid.ended(ms(5000));
        fs::read(&self.file).unwrap()
    }

    /// How often the canary was on the wire in plaintext, and the number of bytes.
    pub(super) fn canaries(self) -> (usize, usize) {
        self.found(CANARY)
    }

    /// How often an address sent the canary in plaintext. (Another machine may send data again that it sent before and
    /// that is no longer acknowledged.)
    pub(super) fn sent_by(self, address: IpAddr, canary: &str) -> usize {
        let file = self.file.clone();
        self.bytes();
        let mut tcpdump = Command::new("tcpdump");
        tcpdump.arg("-r").arg(&file).args(["-w", "-", "src", "host", &address.to_string()]);
        let sent = tcpdump.output().unwrap();
        assert!(sent.status.success() && sent.stdout.len() > 24, "{sent:?}");
        sent.stdout.windows(canary.len()).filter(|w| *w == canary.as_bytes()).count()
    }

    pub(super) fn found(self, canary: &str) -> (usize, usize) {
        let bytes = self.bytes();
        let found = bytes.windows(canary.len()).filter(|w| *w == canary.as_bytes()).count();
        (found, bytes.len())
    }
}

pub(super) fn run(ns: &str, program: &str, args: &[&str]) -> Ran {
    let mut command = Command::new(find(program).unwrap());
    command.args(args);
    Ran::of(&mut within(Some(ns), command), "")
}

/// A control group (v2) for a program of this test; removed when dropped.
pub(super) struct Group(pub(super) PathBuf);

impl Group {
    pub(super) fn new(program: &str) -> Option<Group> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let root = mounts.lines().find(|l| l.contains(" - cgroup2 "))?.split(' ').nth(4)?;
        let name = format!("wiretight-test-{}-{program}.service", std::process::id());
        let path = Path::new(root).join(name);
        fs::create_dir(&path).ok()?;
        Some(Group(path))
    }

    pub(super) fn name(&self) -> String {
        self.0.file_name().unwrap().to_string_lossy().into()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let end = Instant::now() + ms(5000);
        while fs::remove_dir(&self.0).is_err() && Instant::now() < end {
            std::thread::sleep(ms(20));
        }
    }
}

/// A separate clock for a process, which can be set while the process is running.
pub(crate) struct Clock {
    file: PathBuf,
}

impl Clock {
    /// A right one. Its file is in a directory that the process may read.
    pub(crate) fn in_folder(folder: &Path) -> Clock {
        let clock = Clock::of(folder);
        clock.set(0);
        clock
    }

    /// The one that was made in this folder.
    pub(crate) fn of(folder: &Path) -> Clock {
        Clock { file: folder.join("clock") }
    }

    /// Sets it this many seconds ahead of the right time, or behind if negative.
    pub(crate) fn set(&self, ahead: i64) {
        let new = self.file.with_extension("new");
        fs::write(&new, format!("{ahead:+}")).unwrap();
        fs::rename(new, &self.file).unwrap();
    }

    /// The environment that gives a process this clock.
    pub(crate) fn env(&self) -> Vec<(&'static str, PathBuf)> {
        let library = fs::read_dir("/usr/lib")
            .unwrap()
            .flatten()
            .map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"));
        let library = library.chain(["/usr/lib/faketime/libfaketimeMT.so.1".into()]);
        vec![
            ("LD_PRELOAD", library.into_iter().find(|path| path.exists()).expect("libfaketime")),
            ("FAKETIME_TIMESTAMP_FILE", self.file.clone()),
            ("FAKETIME_NO_CACHE", "1".into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
            ("NO_FAKE_STAT", "1".into()),
        ]
    }
}
