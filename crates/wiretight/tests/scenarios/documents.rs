//! What README and guide tell a reader to do, done as it stands there: files from their ```toml and ```text blocks,
//! commands from their `host# command` lines, on machines that are namespaces with the documents' addresses.
//!
//! A file block begins with `# HOST, HOST: PATH` or `# HOST: add to PATH`. Behind a command, `# prints NAME` is what the
//! reader has to note, and `# paste NAME` what he has to enter; NAME in a file or command stands for it. `# HOST is off`
//! says that this machine is gone by then, and that the one with its address takes its place. A command that stays runs
//! until the same host is told to run it again, or `systemctl stop wiretight`. A backslash at its end continues a line.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Instant;

use rustix::process::Signal;

use super::intercept::ip;
use super::rig::*;
use super::traffic::Postgres;

const HOSTS: [(&str, &str); 11] = [
    ("auth1", "10.0.0.1"),
    ("auth2", "10.0.0.1"),
    ("auth3", "10.0.0.2"),
    ("db1", "10.0.0.5"),
    ("db2", "10.0.0.7"),
    ("web1", "10.0.0.6"),
    ("w1", "10.0.0.9"),
    ("audit", "10.0.0.10"),
    ("north", "10.0.0.11"),
    ("south", "10.0.0.12"),
    ("east", "10.0.0.13"),
];
/// What a reader enters at the prompt of `psql`.
const SQL: &str = "SELECT 'it ' || 'answers';\n";

/// A machine: its namespaces and processes.
pub(super) struct Host {
    name: &'static str,
    netns: String,
    /// Keeps the mount namespace alive.
    holder: Kid,
    pub(super) running: BTreeMap<&'static str, Kid>,
}

/// All machines on one wire, and the values that the reader has noted.
pub(super) struct Site {
    hosts: Vec<Host>,
    noted: BTreeMap<String, String>,
    wire: String,
    world: World,
}

impl Drop for Site {
    fn drop(&mut self) {
        for host in &mut self.hosts {
            host.running.clear();
            host.holder.kill();
            let _ = Command::new("ip").args(["netns", "del", &host.netns]).status();
        }
        let _ = Command::new("ip").args(["netns", "del", &self.wire]).status();
    }
}

/// Names of witnesses, with certificates from a CA that all machines trust.
const MOUNTS: &str = "
mount -t tmpfs none \"$1\"; cd \"$1\"
mkdir etc etc-work lib lib-work home
mount -t overlay none -o lowerdir=/etc,upperdir=etc,workdir=etc-work /etc
mount -t overlay none -o lowerdir=/var/lib,upperdir=lib,workdir=lib-work /var/lib
hostname \"$2\"
mkdir -p /etc/wiretight
echo '10.0.0.9 witness.example.net' >> /etc/hosts
echo '10.0.0.11 witness.north.example' >> /etc/hosts
echo '10.0.0.12 witness.south.example' >> /etc/hosts
echo '10.0.0.13 witness.east.example' >> /etc/hosts
cat \"$3/ca.pem\" >> /etc/ssl/certs/ca-certificates.crt
cp \"$3/ca.pem\" /etc/wiretight/witness-ca.pem
cp \"$3/tls.pem\" \"$3/tls.key\" /etc/wiretight/
mount -t tmpfs none /mnt
mkdir /mnt/safe
mount --bind \"$3/safe\" /mnt/safe
echo mounted; exec sleep infinity";

impl Site {
    /// A set of these machines.
    pub(super) fn new(names: &[&str]) -> Site {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let world = World::new();
        let id = format!("wt{}d{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let wire = format!("{id}wire");
        ip(&format!("netns add {wire}"));
        let mut site = Site { hosts: Vec::new(), noted: BTreeMap::new(), wire, world };
        let wire = site.wire.clone();
        ip(&format!("-n {wire} link add br0 type bridge"));
        ip(&format!("-n {wire} link set br0 up"));
        site.certificates();
        fs::create_dir(site.world.path("safe")).unwrap();
        for (name, address) in HOSTS.into_iter().filter(|(name, _)| names.contains(name)) {
            let netns = format!("{id}{name}");
            ip(&format!("netns add {netns}"));
            ip(&format!("-n {netns} link set lo up"));
            ip(&format!("-n {wire} link add {name} type veth peer name eth0 netns {netns}"));
            ip(&format!("-n {wire} link set {name} master br0 up"));
            // A node that takes over another's place has the same address, also on Ethernet, and is off until then.
            let place = HOSTS.iter().position(|(_, other)| *other == address).unwrap();
            ip(&format!("-n {netns} link set eth0 address 02:00:00:00:00:{place:02x}"));
            if HOSTS[place].0 == name {
                ip(&format!("-n {netns} link set eth0 up"));
            }
            ip(&format!("-n {netns} addr add {address}/24 dev eth0"));
            let dir = site.world.path(name);
            fs::create_dir(&dir).unwrap();
            let mut unshare = Command::new("unshare");
            unshare.args([
                "--mount",
                "--uts",
                "--propagation",
                "private",
                "sh",
                "-ec",
                MOUNTS,
                "sh",
            ]);
            unshare.arg(&dir).arg(name).arg(site.world.path(""));
            let log = site.world.path(&format!("{name}.mounts"));
            let holder = Kid::start(&mut within(Some(&netns), unshare), &log);
            wait_for("the machine has its folders", || holder.log().contains("mounted"));
            site.hosts.push(Host { name, netns, holder, running: BTreeMap::new() });
        }
        site
    }

    /// A CA that the system trusts, and its certificate for the witness.
    fn certificates(&self) {
        let openssl = |args: &str| {
            let mut command = Command::new(find("openssl").unwrap());
            command.args(args.split(' ')).current_dir(self.world.path(""));
            Ran::of(&mut command, "").good();
        };
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2";
        openssl(&format!("req -x509 {key} -subj /CN=ca -keyout ca.key -out ca.pem"));
        openssl(&format!(
            "req -x509 {key} -CA ca.pem -CAkey ca.key -subj /CN=w1 -addext basicConstraints=critical,CA:FALSE -addext \
             subjectAltName=DNS:witness.example.net,DNS:witness.north.example,DNS:witness.south.example,\
             DNS:witness.east.example -keyout tls.key -out tls.pem"
        ));
    }

    pub(super) fn host(&mut self, name: &str) -> &mut Host {
        let host = self.hosts.iter_mut().find(|host| host.name == name);
        host.unwrap_or_else(|| panic!("no machine is called {name:?}"))
    }

    /// A shell command on a machine, in its folder `home`.
    pub(super) fn shell(&mut self, host: &str, line: &str) -> Command {
        let home = self.world.path(host).join("home");
        let netns = self.host(host).netns.clone();
        let pid = self.host(host).holder.pid().to_string();
        let bin = Path::new(env!("CARGO_BIN_EXE_wiretight")).parent().unwrap();
        let mut path = vec![bin.to_owned()];
        path.extend(find("psql").and_then(|psql| Some(psql.parent()?.to_owned())));
        path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap()));
        let mut command = Command::new("nsenter");
        command.args(["-t", &pid, "--mount", "--uts"]).arg(format!("--net=/run/netns/{netns}"));
        command.args(["sh", "-c", &format!("cd {} && {line}", home.display())]);
        command.env("PATH", std::env::join_paths(path).unwrap());
        command.env("PGUSER", "postgres").env("PGCONNECT_TIMEOUT", "5");
        command.env_remove("WIRETIGHT_CONFIG").env_remove("WIRETIGHT_LOG");
        command
    }

    pub(super) fn run(&mut self, host: &str, line: &str, stdin: &str) -> Ran {
        Ran::of(&mut self.shell(host, line), stdin)
    }

    fn filled_in(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (name, value) in &self.noted {
            text = text.replace(name, value);
        }
        text
    }

    /// Writes a file that a document shows.
    fn file(&mut self, block: &str) {
        let head = block.lines().next().unwrap_or_default();
        let (hosts, path) = head
            .strip_prefix("# ")
            .and_then(|head| head.split_once(": "))
            .unwrap_or_else(|| panic!("a file does not say whose it is: {head:?}"));
        let text = self.filled_in(block);
        let (path, into) = match path.strip_prefix("add to ") {
            Some(path) => (path, ">>"),
            None => (path, ">"),
        };
        let mut last = "";
        for host in hosts.split(", ") {
            if host.starts_with(|c: char| c.is_ascii_digit()) {
                let own = HOSTS.iter().find(|(name, _)| *name == last).unwrap().1;
                assert_eq!(host, own, "the address of {last}");
                continue;
            }
            last = host;
            self.run(host, &format!("cat {into} {path}"), &format!("\n{text}")).good();
        }
    }

    /// Runs a line of a document: `HOST# COMMAND   # note`.
    fn line(&mut self, line: &str) {
        let (host, line) =
            line.split_once("# ").unwrap_or_else(|| panic!("not `host# command`: {line:?}"));
        let note = line.rsplit_once(" # ").map_or("", |(_, note)| note.trim());
        let line = self.filled_in(line.split(" # ").next().unwrap().trim());
        if let Some(gone) = note.strip_suffix(" is off") {
            self.switch(gone, host);
        }
        let stays = ["wiretight run", "wiretight witness run", "wiretight monitor --"];
        if let Some(stays) = stays.into_iter().find(|stays| line.starts_with(stays)) {
            return self.start(host, stays, &line);
        }
        if line == "systemctl stop wiretight" {
            return self.stop(host, "wiretight run");
        }
        let pasted = note.strip_prefix("paste ").map(|name| self.noted[name].clone() + "\n");
        let typed = if line.starts_with("psql") { SQL.to_owned() } else { String::new() };
        // A reader is slower than this test, and tries again.
        let end = Instant::now() + PATIENCE;
        let ran = loop {
            let ran = self.run(host, &line, pasted.as_ref().unwrap_or(&typed));
            let again = ["psql", "wiretight status", "wiretight svid", "wiretight monitor", "curl"];
            let again = again.iter().any(|verb| line.starts_with(verb));
            if ran.code == Some(0) || !again || Instant::now() > end {
                break ran;
            }
            std::thread::sleep(ms(200));
        };
        assert_eq!(ran.code, Some(0), "{host}# {line}: {}\n{}", ran.all(), self.logs());
        if line.starts_with("psql") {
            assert!(ran.out.contains("it answers"), "{}", ran.all());
        }
        if let Some(name) = note.strip_prefix("prints ") {
            self.noted.insert(name.to_owned(), ran.out.trim().to_owned());
        }
    }

    /// A program that keeps running. A running one is ended first, as the documents say.
    pub(super) fn start(&mut self, host: &str, which: &'static str, line: &str) {
        let log = self.log_of(host, which);
        let mut command = self.shell(host, &format!("exec {line}"));
        self.stop(host, which);
        self.host(host).running.insert(which, Kid::start(&mut command, &log));
        if which == "wiretight witness run" {
            wait_for("the witness is ready", || {
                self.host(host).running[which]
                    .log()
                    .lines()
                    .last()
                    .is_some_and(|line| line.contains("the witness is ready"))
            });
        }
        if which == "wiretight run" {
            let host = host.to_owned();
            // A node that has not joined yet reports that; status 3 means that no node is running.
            wait_for("the node answers", || {
                self.run(&host, "wiretight status", "").code != Some(3)
            });
        }
    }

    fn stop(&mut self, host: &str, which: &str) {
        if let Some(mut old) = self.host(host).running.remove(which) {
            old.signal(Signal::INT);
            assert!(old.ended(PATIENCE).is_some_and(|status| status.success()), "{}", old.log());
        }
    }

    /// Switches a machine off; another one has its address.
    fn switch(&mut self, gone: &str, instead: &str) {
        self.host(gone).running.clear();
        ip(&format!("-n {} link set eth0 down", self.host(gone).netns));
        ip(&format!("-n {} link set eth0 up", self.host(instead).netns));
    }

    pub(super) fn log_of(&self, host: &str, which: &str) -> PathBuf {
        self.world.path(&format!("{host}-{}.log", which.replace(' ', "-")))
    }

    pub(super) fn logs(&self) -> String {
        let of = |host: &Host| {
            let logs = host.running.values().map(Kid::log);
            format!("---- {}\n{}", host.name, logs.collect::<Vec<_>>().join("\n"))
        };
        self.hosts.iter().map(of).collect()
    }

    /// Follows all instructions of a part of a document.
    fn follow(&mut self, part: &str) {
        let mut done = 0;
        for (kind, text) in blocks(part) {
            match kind {
                "toml" | "text" => self.file(&text),
                "" => text.replace("\\\n", "").lines().for_each(|line| self.line(line)),
                _ => continue,
            }
            done += 1;
        }
        assert!(done >= 1, "there is nothing to do in:\n{part}");
    }
}

/// The parts of a document between its headings.
fn part<'a>(document: &'a str, heading: &str) -> &'a str {
    let begin = document.find(heading).unwrap_or_else(|| panic!("no {heading:?}"));
    let rest = &document[begin + heading.len()..];
    let level = heading.split(' ').next().unwrap();
    let end = rest.find(&format!("\n{level} ")).unwrap_or(rest.len());
    &rest[..end]
}

/// The kind and content of fenced blocks, also within lists.
fn blocks(part: &str) -> Vec<(&str, String)> {
    let mut all = Vec::new();
    let mut lines = part.lines();
    while let Some(line) = lines.next() {
        let Some((indent, kind)) = line.split_once("```") else { continue };
        if !indent.trim().is_empty() {
            continue;
        }
        let inside = lines.by_ref().map(|line| line.strip_prefix(indent).unwrap_or(line));
        let inside: Vec<&str> = inside.take_while(|line| *line != "```").collect();
        all.push((kind, inside.join("\n") + "\n"));
    }
    all
}

fn can() -> bool {
    has(&["ip", "nft", "nsenter", "unshare", "openssl", "psql", "initdb", "postgres", "setpriv"])
        && is_root()
}

/// A newcomer needs nothing else.
#[test]
fn the_readmes_first_connection_works_literally() {
    if !can() {
        return;
    }
    let readme = include_str!("../../../../README.md");
    let mut site = Site::new(&["db1", "web1"]);
    let _postgres =
        Postgres::start_in(Some(&site.host("db1").netns), ([127, 0, 0, 1], 5432).into(), "*");
    site.follow(part(readme, "## The first encrypted connection"));
    let status = site.run("web1", "wiretight status --json", "").good().json();
    let sums = status["relay"]["peers"].to_string();
    assert!(sums.contains("spiffe://example.org/service/db") && sums.contains(GROUP), "{sums}");
}

#[test]
fn the_readmes_mesh_interception_and_witness_work_literally() {
    if !can() || !has(&["curl"]) {
        return;
    }
    let readme = include_str!("../../../../README.md");
    let mut site = Site::new(&["auth1", "db1", "web1", "w1", "audit"]);
    let _postgres =
        Postgres::start_in(Some(&site.host("db1").netns), ([127, 0, 0, 1], 5432).into(), "*");
    site.follow(part(readme, "## Use it: PostgreSQL from web1 to db1"));

    // The application's data went over the mesh, redirected by the kernel.
    let status = site.run("web1", "wiretight status --json", "").good().json();
    let sums = status["relay"]["peers"].to_string();
    assert!(sums.contains("spiffe://example.org/service/db") && sums.contains(GROUP), "{sums}");
    assert_eq!(status["intercept"]["mode"], "strict", "{status:#}");
    assert!(status["intercept"]["counts"]["redirected"]["packets"].as_u64() > Some(0));

    // The control: without `as`, which the recipe once lacked, the verdict shows no success.
    let without = "sed -i '/^as = \"web\"  /d' /etc/wiretight/wiretight.toml && wiretight reload";
    site.run("web1", without, "").good();
    let refused = "db1 would refuse node/web1 (service/db at 10.0.0.5:5432): set as = \"web\"";
    for line in ["wiretight mode strict --dry-run", "wiretight status --plaintext"] {
        let mut ran = site.run("web1", line, "");
        let end = Instant::now() + PATIENCE;
        while ran.code == Some(0) && Instant::now() < end {
            std::thread::sleep(ms(200));
            ran = site.run("web1", line, "");
        }
        assert!(ran.code == Some(1) && ran.out.contains(refused), "{line}: {ran:?}");
    }
    let psql = site.run("web1", "psql -h 10.0.0.5", SQL);
    assert!(psql.code != Some(0), "it is refused indeed: {psql:?}");
    let with = "echo 'as = \"web\"' >> /etc/wiretight/wiretight.toml && wiretight reload";
    site.run("web1", with, "").good();

    site.follow(part(readme, "## No certificate in secret"));
    let status = site.run("db1", "wiretight status --json", "").good().json();
    assert_eq!(status["transparency"]["required"], true, "{status:#}");
    let log = site.log_of("audit", "wiretight monitor --");
    wait_for("the monitor reports unexpected certificates", || {
        fs::read_to_string(&log).is_ok_and(|log| log.contains("unexpected-certificate"))
    });
}

#[test]
fn the_guides_first_mesh_and_interception_work_literally() {
    if !can() {
        return;
    }
    let guide = include_str!("../../../../docs/operator.md");
    let mut site = Site::new(&["auth1", "db1", "web1"]);
    let _postgres =
        Postgres::start_in(Some(&site.host("db1").netns), ([127, 0, 0, 1], 5432).into(), "*");
    site.follow(part(guide, "## A first mesh"));
    let recipe = part(guide, "## Interception: without changing programs");
    // The parts under their own headings are about other machines.
    site.follow(recipe.split("\n### ").next().unwrap());
    let status = site.run("web1", "wiretight status --json", "").good().json();
    assert_eq!(status["intercept"]["mode"], "strict", "{status:#}");
    assert!(status["intercept"]["counts"]["redirected"]["packets"].as_u64() > Some(0));

    site.follow(part(guide, "## Uninstall"));
    let tables = site.run("web1", "nft list tables", "").good().out;
    assert!(!tables.contains("wiretight"), "{tables}");
    // The control: the rules of db1 are there.
    let tables = site.run("db1", "nft list tables", "").good().out;
    assert!(tables.contains("table inet wiretight\n"), "{tables}");
    let nodes = site.run("auth1", "wiretight node list", "").good().out;
    assert!(nodes.contains("db1") && !nodes.contains("web1"), "{nodes}");
}

#[test]
fn the_guides_renames_and_moves_work_literally() {
    if !can() {
        return;
    }
    let guide = include_str!("../../../../docs/operator.md");
    let mut site = Site::new(&["auth1", "auth3", "db1", "db2", "web1"]);
    let local = ([127, 0, 0, 1], 5432).into();
    let postgres = Postgres::start_in(Some(&site.host("db1").netns), local, "*");
    site.follow(part(guide, "## A first mesh"));
    let all = part(guide, "## Rename and move");
    site.follow(part(all, "### Rename a service"));
    let peers = |site: &mut Site| {
        let status = site.run("web1", "wiretight status --json", "").good().json();
        status["relay"]["peers"].to_string()
    };
    assert!(
        peers(&mut site).contains("spiffe://example.org/service/orders"),
        "{}",
        peers(&mut site)
    );
    site.follow(part(all, "### Rename a node"));
    let nodes = site.run("auth1", "wiretight node list", "").good().out;
    assert!(nodes.contains("shop1") && !nodes.contains("web1"), "{nodes}");
    drop(postgres);
    let _postgres = Postgres::start_in(Some(&site.host("db2").netns), local, "*");
    site.follow(part(all, "### Move a node to another machine"));
    site.follow(part(all, "### Move the authority"));
    for host in ["web1", "db2"] {
        let status = site.run(host, "wiretight status --json", "").good().json();
        let authority = &status["authority_link"]["authority"];
        assert_eq!(authority, "10.0.0.2:7400", "{status:#}");
    }
    site.line("web1# psql -h 127.0.0.1");
}

#[test]
fn the_guides_witnesses_monitor_and_backup_work_literally() {
    if !can() || !has(&["curl"]) {
        return;
    }
    let guide = include_str!("../../../../docs/operator.md");
    let mut site = Site::new(&["auth1", "auth2", "db1", "w1", "audit", "north", "south", "east"]);
    site.follow(part(guide, "### A new mesh"));
    let status = site.run("db1", "wiretight status --json", "").good().json();
    assert_eq!(status["transparency"]["quorum"], "two-of-three: 2 of 3", "{status:#}");
    let witnessed = |site: &mut Site, host: &str| {
        let status = site.run(host, "wiretight authority status", "").good().out;
        for witness in ["north", "south", "east"] {
            assert!(status.contains(&format!("witness {witness}: cosigned")), "{status}");
        }
    };
    witnessed(&mut site, "auth1");

    site.follow(part(guide, "### Who may read the log"));
    site.follow(part(guide, "## Run a witness"));
    let started = site.host("w1").running["wiretight witness run"].log();
    assert_eq!(started.matches("the witness is ready").count(), 2, "{started}");
    site.follow(part(guide, "## Run a monitor"));
    let list = "wiretight monitor list --state /var/lib/wiretight-monitor --watch service/db";
    let mut listed = String::new();
    wait_for("the monitor has read the log", || {
        listed = site.run("audit", list, "").good().out;
        listed.contains("spiffe://example.org/service/db")
    });

    site.follow(part(guide, "## State and backup"));
    witnessed(&mut site, "auth2");
    wait_for("a node that knew the authority gets a certificate", || {
        site.run("db1", "wiretight svid renew", "").code == Some(0)
    });
    // The monitor sees the renewal by the restored authority and raises no alert. (It checks at its start and every 20 s.)
    let monitor = part(guide, "## Run a monitor").replace("\\\n", "");
    let monitor =
        monitor.lines().find(|line| line.starts_with("audit# wiretight monitor --policy"));
    site.line(monitor.unwrap());
    let before = listed.lines().count();
    wait_for("the monitor sees it", || {
        site.run("audit", list, "").good().out.lines().count() > before
    });
    let status =
        site.run("audit", "wiretight monitor status --state /var/lib/wiretight-monitor", "");
    assert_eq!(status.code, Some(0), "{}{}", status.all(), site.logs());
}
