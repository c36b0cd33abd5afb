//! Machines as network namespaces: client | wire | server, on a bridge or behind a router, and a container behind the
//! client. They are removed when their value is dropped, also if a test panics.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use wiretight_proxy::intercept::listing::Listing;
use wiretight_proxy::intercept::rules::{Mode, Rules};

pub(crate) use super::common::*;

pub(crate) const MARK: u32 = 0x7717;
pub(crate) const PORT: u16 = 7417;
/// What programs send and what must not be visible on the wire, by direction.
pub(crate) const CANARY: &str = "CANARY-outwards-7c1b";
pub(crate) const CANARY_IN: &str = "CANARY-inwards-93fe";

/// Whether namespaces can be created here, and these programs are installed.
pub(crate) fn can() -> bool {
    if !has(&["nft", "ip", "tcpdump", "python3", "setpriv"]) || !is_root() {
        return false;
    }
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Relaxed);
    let name = format!("wt{}probe{n}", std::process::id());
    let made = Command::new("ip").args(["netns", "add", &name]).output().unwrap();
    let _ = Command::new("ip").args(["netns", "del", &name]).output();
    if !made.status.success() {
        skip("permission to create network namespaces");
    }
    made.status.success()
}

#[track_caller]
pub(crate) fn good(command: &mut Command) -> String {
    let shown = format!("{command:?}");
    let out = command.output().unwrap_or_else(|e| panic!("{shown}: {e}"));
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let error = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{shown}: {text}{error}");
    text
}

#[track_caller]
fn sh(script: &str) {
    good(Command::new("sh").args(["-ec", script]));
}

/// A program that runs until this is dropped.
pub(crate) struct Running {
    child: KilledOnDrop,
    lines: BufReader<std::process::ChildStdout>,
}

impl Running {
    fn start(command: &mut Command) -> Running {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = KilledOnDrop(command.spawn().unwrap());
        let lines = BufReader::new(child.stdout.take().unwrap());
        Running { child, lines }
    }

    #[track_caller]
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Sends a line to a program that waits for one.
    #[track_caller]
    pub(crate) fn go(&mut self) -> String {
        self.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        self.line()
    }

    /// Ends the program and returns its output.
    pub(crate) fn end(mut self) -> String {
        let _ = self.child.kill();
        let mut text = String::new();
        let _ = self.lines.read_to_string(&mut text);
        text
    }
}

/// The namespaces.
pub(crate) struct Net {
    id: String,
    dir: TempDir,
}

impl Drop for Net {
    fn drop(&mut self) {
        for name in ["c", "w", "s", "p"] {
            let name = format!("{}{name}", self.id);
            if Path::new("/run/netns").join(&name).exists() {
                let _ = Command::new("ip").args(["netns", "del", &name]).output();
            }
        }
    }
}

impl Net {
    /// 10.77.0.1 and fd77::1 are the client, .2 (and .53) the server, on one wire.
    pub(crate) fn bridged() -> Net {
        let net = Net::new();
        net.script(
            "ip -n $w link add br0 type bridge
            ip -n $w link set br0 up
            ip -n $w link set cw master br0
            ip -n $w link set sw master br0
            ip -n $c addr add 10.77.0.1/24 dev eth0
            ip -n $c addr add fd77::1/64 dev eth0 nodad
            ip -n $s addr add 10.77.0.2/24 dev eth0
            ip -n $s addr add 10.77.0.53/24 dev eth0
            ip -n $s addr add fd77::2/64 dev eth0 nodad
            ip -n $s addr add fd77::53/64 dev eth0 nodad preferred_lft 0",
        );
        net
    }

    /// The wire is a router, with a narrower link to the server: 10.77.1.1 | 10.77.2.2.
    pub(crate) fn routed() -> Net {
        let net = Net::new();
        net.script(
            "ip netns exec $w sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
            ip -n $w link set sw mtu 1300
            ip -n $s link set eth0 mtu 1300
            ip -n $w addr add 10.77.1.254/24 dev cw
            ip -n $w addr add 10.77.2.254/24 dev sw
            ip -n $w addr add fd77:1::254/64 dev cw nodad
            ip -n $w addr add fd77:2::254/64 dev sw nodad
            ip -n $c addr add 10.77.1.1/24 dev eth0
            ip -n $c addr add fd77:1::1/64 dev eth0 nodad
            ip -n $s addr add 10.77.2.2/24 dev eth0
            ip -n $s addr add fd77:2::2/64 dev eth0 nodad
            ip -n $c route add default via 10.77.1.254
            ip -n $c route add default via fd77:1::254
            ip -n $s route add default via 10.77.2.254
            ip -n $s route add default via fd77:2::254",
        );
        net
    }

    fn new() -> Net {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = format!("wt{}x{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let dir = tempfile::Builder::new().prefix("wiretight-net-").tempdir().unwrap();
        let net = Net { id, dir };
        net.script(
            "for n in $c $w $s; do
                ip netns add $n
                ip -n $n link set lo up
            done
            ip -n $w link add cw type veth peer name eth0 netns $c
            ip -n $w link add sw type veth peer name eth0 netns $s
            ip -n $c link set eth0 up
            ip -n $s link set eth0 up
            ip -n $w link set cw up
            ip -n $w link set sw up",
        );
        fs::create_dir(net.state()).unwrap();
        fs::set_permissions(net.state(), fs::Permissions::from_mode(0o700)).unwrap();
        let config = format!(
            "[node]\nname = \"n\"\ntrust_domain = \"example.org\"\nstate_dir = \"{}\"\nauthority = [\"10.77.0.2:7400\"]\n",
            net.state().display()
        );
        fs::write(net.config(), config).unwrap();
        net
    }

    /// A container behind the client, 10.88.0.2, which the client forwards for.
    pub(crate) fn add_container(&self) {
        self.script(
            "ip netns add $p
            ip -n $p link set lo up
            ip -n $c link add veth0 type veth peer name eth0 netns $p
            ip -n $c link set veth0 up
            ip -n $p link set eth0 up
            ip -n $c addr add 10.88.0.1/24 dev veth0
            ip -n $p addr add 10.88.0.2/24 dev eth0
            ip -n $p route add default via 10.88.0.1
            ip netns exec $c sysctl -qw net.ipv4.ip_forward=1
            ip -n $s route add 10.88.0.0/24 via 10.77.0.1",
        );
    }

    #[track_caller]
    pub(crate) fn script(&self, script: &str) {
        let id = &self.id;
        sh(&format!("c={id}c; w={id}w; s={id}s; p={id}p\n{script}"));
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.dir.path().join("wiretight.toml")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A program on the machine `c`, `w`, `s` or `p`.
    pub(crate) fn on(&self, machine: &str, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &format!("{}{machine}", self.id), program]);
        command.env_remove("WIRETIGHT_CONFIG").env_remove("WIRETIGHT_LOG");
        command
    }

    fn peer(&self, machine: &str, verb: &str, specs: &Value) -> Command {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/intercept/peer.py");
        let mut command = self.on(machine, "python3");
        command.arg(script).arg(verb).arg(specs.to_string());
        command
    }

    /// Programs that answer.
    #[track_caller]
    pub(crate) fn serve(&self, machine: &str, specs: Value) -> Running {
        self.started(machine, "serve", &specs)
    }

    /// An open, idle connection.
    #[track_caller]
    pub(crate) fn hold(&self, machine: &str, spec: Value) -> Running {
        self.started(machine, "hold", &spec)
    }

    /// An endless stream of datagrams.
    #[track_caller]
    pub(crate) fn flood(&self, machine: &str, spec: Value) -> Running {
        self.started(machine, "flood", &spec)
    }

    #[track_caller]
    fn started(&self, machine: &str, verb: &str, specs: &Value) -> Running {
        let mut running = Running::start(&mut self.peer(machine, verb, specs));
        assert_eq!(running.line(), "ready", "{verb} {specs}");
        running
    }

    /// The result of each probe: "ok ...", "late", "refused", "error ...".
    #[track_caller]
    pub(crate) fn probe(&self, machine: &str, specs: &[Value]) -> Vec<String> {
        let said = good(&mut self.peer(machine, "probe", &json!(specs)));
        serde_json::from_str(&said).unwrap()
    }

    #[track_caller]
    pub(crate) fn probe_one(&self, machine: &str, spec: Value) -> String {
        self.probe(machine, &[spec]).remove(0)
    }

    /// `wiretight VERB... --config FILE` on the client.
    pub(crate) fn cli(&self, args: &[&str]) -> (i32, String) {
        let mut command = self.on("c", env!("CARGO_BIN_EXE_wiretight"));
        finish(command.args(args).arg("--config").arg(self.config()))
    }

    pub(crate) fn write(&self, rules: &Rules) {
        fs::write(self.state().join("rules.json"), serde_json::to_vec(rules).unwrap()).unwrap();
    }

    /// Applies rules with `rules load`.
    #[track_caller]
    pub(crate) fn load(&self, rules: &Rules) {
        self.write(rules);
        let (code, said) = self.cli(&["rules", "load"]);
        assert_eq!(code, 0, "{said}");
    }

    pub(crate) fn nft(&self, args: &[&str]) -> (i32, String) {
        finish(self.on("c", "nft").args(args))
    }

    /// Our table in the kernel.
    pub(crate) fn listing(&self) -> Option<Listing> {
        let (code, said) = self.nft(&["-j", "list", "table", "inet", "wiretight"]);
        (code == 0).then(|| Listing::parse(said.as_bytes()).unwrap())
    }

    #[track_caller]
    pub(crate) fn dropped(&self) -> (u64, u64) {
        let counts = self.listing().unwrap().counts(0);
        (counts.dropped_in.packets, counts.dropped_out.packets)
    }

    /// Records the traffic on the client's side of the wire.
    pub(crate) fn record(&self) -> Recording {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let file = self.path(&format!("wire{}.pcap", NEXT.fetch_add(1, Relaxed)));
        let mut command = self.on("w", "tcpdump");
        command.args([
            "-i",
            "cw",
            "-U",
            "--immediate-mode",
            "-Z",
            "root",
            "-s",
            "0",
            "-B",
            "16384",
        ]);
        let child =
            command.arg("-w").arg(&file).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut child = KilledOnDrop(child.unwrap());
        // It reports when it is listening.
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("listening on") {
            line.clear();
            assert_ne!(said.read_line(&mut line).unwrap(), 0, "tcpdump does not start");
        }
        Recording { child, said, file }
    }

    /// The child process that maintains the rules, without its parent.
    #[track_caller]
    pub(crate) fn keeper(&self) -> Keeper {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut command = self.on("c", env!("CARGO_BIN_EXE_wiretight"));
        let log = fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        command.arg("rules-keeper").arg(self.state());
        command.stdin(OwnedFd::from(theirs.try_clone().unwrap()));
        command.stdout(OwnedFd::from(theirs)).stderr(log);
        let child = KilledOnDrop(command.spawn().unwrap());
        let lines = BufReader::new(ours.try_clone().unwrap());
        let mut keeper = Keeper { child, lines, ours, asked: 0 };
        assert_eq!(keeper.answer()["answer"], "begun", "{}", self.log());
        keeper
    }

    pub(crate) fn log(&self) -> String {
        thread::sleep(LOG_LAG);
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }
}

/// Exit status and output.
pub(crate) fn finish(command: &mut Command) -> (i32, String) {
    let out = command.stdin(Stdio::null()).output().unwrap();
    let text = [out.stdout, out.stderr].concat();
    (out.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned())
}

/// The only child of a process.
#[track_caller]
pub(crate) fn worker_of(pid: u32) -> rustix::process::Pid {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    rustix::process::Pid::from_raw(children.trim().parse().unwrap()).unwrap()
}

pub(crate) struct Keeper {
    pub(crate) child: KilledOnDrop,
    lines: BufReader<UnixStream>,
    ours: UnixStream,
    asked: u64,
}

impl Keeper {
    /// The process that does the work.
    #[track_caller]
    pub(crate) fn worker(&self) -> rustix::process::Pid {
        worker_of(self.child.id())
    }

    #[track_caller]
    fn answer(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line:?}"))
    }

    /// The first message of a new worker.
    #[track_caller]
    pub(crate) fn begun(&mut self) -> Value {
        let mut line = String::from("\n");
        while line == "\n" {
            line.clear();
            self.lines.read_line(&mut line).unwrap();
        }
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line:?}"))
    }

    #[track_caller]
    pub(crate) fn ask(&mut self, ask: &Value) -> Value {
        self.asked += 1;
        let question = json!({"number": self.asked, "ask": ask});
        self.ours.write_all(format!("{question}\n").as_bytes()).unwrap();
        self.answer()["answer"].take()
    }

    #[track_caller]
    pub(crate) fn apply(&mut self, rules: &Rules) {
        let done = self.ask(&json!({"apply": {"rules": rules, "anew": false}}));
        assert_eq!(done, json!("done"));
    }

    #[track_caller]
    pub(crate) fn health(&mut self) -> Value {
        self.ask(&json!("report"))["report"]["health"].clone()
    }

    /// As if the parent had died.
    pub(crate) fn hang_up(&self) {
        self.ours.shutdown(std::net::Shutdown::Both).unwrap();
    }
}

pub(crate) struct Recording {
    child: KilledOnDrop,
    said: BufReader<std::process::ChildStderr>,
    file: PathBuf,
}

impl Recording {
    /// How often this was on the wire, and the total number of bytes.
    #[track_caller]
    pub(crate) fn found(mut self, canary: &str) -> (usize, usize) {
        thread::sleep(Duration::from_millis(100));
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        self.child.wait().unwrap();
        let mut said = String::new();
        let _ = self.said.read_to_string(&mut said);
        assert!(said.contains("0 packets dropped by kernel"), "the recording has holes: {said}");
        let bytes = fs::read(&self.file).unwrap();
        let times = bytes.windows(canary.len()).filter(|w| *w == canary.as_bytes()).count();
        (times, bytes.len())
    }
}

/// Rules that protect everything on the wire, without exceptions.
pub(crate) fn rules(mode: Mode) -> Rules {
    Rules {
        mode,
        peers: [].into(),
        mark: MARK,
        port: PORT,
        listens: [7432].into(),
        taken: [].into(),
        protected: ["10.77.0.0/16", "fd77::/16"].map(|n| n.parse().unwrap()).into(),
        passes: Vec::new(),
        resolvers: ["10.77.0.53", "fd77::53"].map(|ip| ip.parse().unwrap()).into(),
        management: vec![22],
        cgroups: Vec::new(),
        transparent: [].into(),
    }
}
