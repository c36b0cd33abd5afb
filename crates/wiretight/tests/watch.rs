//! `wiretight watch` with real programs in network namespaces: protocols, levels and bytes, from a file and from an
//! interface; losses; formats; exit statuses.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use common::{KilledOnDrop, find, has, is_root, say, skip, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

fn wiretight() -> Command {
    Command::new(env!("CARGO_BIN_EXE_wiretight"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The output of a command with this exit status.
#[track_caller]
fn run(command: &mut Command, code: i32) -> Output {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let said = format!("{command:?}: {}{}", text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{said}");
    output
}

#[track_caller]
fn good(command: &mut Command) -> String {
    text(&run(command, 0).stdout)
}

#[track_caller]
fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
}

/// The last part of a path.
fn path_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Two machines on one wire: 10.78.0.1 is the client, 10.78.0.2 the server. Removed when this is dropped.
struct Net {
    id: String,
    dir: TempDir,
}

impl Drop for Net {
    fn drop(&mut self) {
        for end in ["c", "s"] {
            let _ =
                Command::new("ip").args(["netns", "del", &format!("{}{end}", self.id)]).output();
        }
    }
}

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 2);

impl Net {
    fn new() -> Option<Net> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if !has(&["ip", "tcpdump", "openssl", "curl"]) || !is_root() {
            return None;
        }
        let id = format!("wtw{}n{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let net = Net { id, dir: tempfile::tempdir().unwrap() };
        fs::set_permissions(net.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let script = "
            ip netns add $1c && ip netns add $1s
            ip -n $1c link add eth0 type veth peer name eth0 netns $1s
            for end in c s; do ip -n $1$end link set lo up; ip -n $1$end link set eth0 up; done
            ip -n $1c addr add 10.78.0.1/24 dev eth0
            ip -n $1s addr add 10.78.0.2/24 dev eth0";
        let made = Command::new("sh").args(["-ec", script, "sh", &net.id]).output().unwrap();
        if !made.status.success() {
            skip(format!("permission to create network namespaces ({})", text(&made.stderr)));
            return None;
        }
        Some(net)
    }

    /// A command at one end: `c` or `s`.
    fn at(&self, end: &str, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &format!("{}{end}", self.id)]).arg(program.as_ref());
        command.current_dir(self.dir.path());
        command
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    /// A server, as an unprivileged user if it refuses to run as root.
    fn start(&self, program: &str, args: &[&str], as_root: bool) -> KilledOnDrop {
        let path = match program.starts_with('/') {
            true => PathBuf::from(program),
            false => find(program).unwrap(),
        };
        let mut command = match as_root {
            true => self.at("s", path),
            false => {
                let mut command = self.at("s", "setpriv");
                command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(path);
                command
            }
        };
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null());
        let name = path_name(program);
        let log = fs::File::create(self.path(&format!("{name}.log"))).unwrap();
        KilledOnDrop(command.stderr(log).spawn().unwrap())
    }

    /// Waits until ports are open at the server.
    fn wait(&self, ports: &[u16]) {
        for port in ports {
            wait_for(&format!("port {port} listens"), || {
                let listening = good(self.at("s", "ss").args(["-Hltn"]));
                listening.lines().any(|line| line.contains(&format!(":{port} ")))
            });
        }
    }

    /// Packet sockets at the server that receive (the column R).
    fn packet_sockets(&self) -> usize {
        let sockets = good(self.at("s", "cat").arg("/proc/net/packet"));
        sockets.lines().filter(|line| line.split_whitespace().nth(5) == Some("1")).count()
    }

    /// Bytes received and sent by the server's interface.
    fn counted(&self) -> u64 {
        let devices = good(self.at("s", "cat").arg("/proc/net/dev"));
        let line = devices.lines().find(|line| line.contains("eth0:")).unwrap();
        let of = |n: usize| line.split_whitespace().nth(n).unwrap().parse::<u64>().unwrap();
        of(1) + of(9)
    }

    /// `wiretight watch` at the server, which listens already. Ends with [`Watching::end`].
    fn watch(&self, args: &[&str]) -> Watching {
        let before = self.packet_sockets();
        let mut command = self.at("s", env!("CARGO_BIN_EXE_wiretight"));
        command.arg("watch").args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        wait_for("watch listens", || self.packet_sockets() > before);
        Watching { child: Some(child) }
    }

    /// A certificate and key for 10.78.0.2.
    fn certificate(&self) {
        let mut openssl = Command::new("openssl");
        openssl.args([
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "30",
            "-subj",
            "/CN=watch.test",
        ]);
        openssl.args(["-keyout", "key.pem", "-out", "cert.pem"]).current_dir(self.dir.path());
        run(&mut openssl, 0);
        fs::set_permissions(self.path("key.pem"), fs::Permissions::from_mode(0o600)).unwrap();
        let owned =
            |name: &str| std::os::unix::fs::chown(self.path(name), Some(65534), Some(65534));
        owned("key.pem").and_then(|()| owned("cert.pem")).unwrap();
    }
}

struct Watching {
    child: Option<std::process::Child>,
}

impl Watching {
    fn interrupt(&mut self) -> Output {
        let child = self.child.take().unwrap();
        // `ip netns exec` has become the program.
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        child.wait_with_output().unwrap()
    }

    #[track_caller]
    fn end(mut self) -> Value {
        let output = self.interrupt();
        assert!(output.status.success(), "{}", text(&output.stderr));
        json(&output)
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A running tcpdump at the server.
struct Dump(Option<KilledOnDrop>, PathBuf);

impl Dump {
    fn start(net: &Net) -> Dump {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let file = net.path(&format!("dump{}.pcap", NEXT.fetch_add(1, Relaxed)));
        let before = net.packet_sockets();
        let mut tcpdump = net.at("s", find("tcpdump").unwrap());
        tcpdump
            .args([
                "-i",
                "eth0",
                "-U",
                "--immediate-mode",
                "-s",
                "0",
                "-B",
                "20000",
                "-Z",
                "root",
                "-w",
            ])
            .arg(&file);
        let child =
            KilledOnDrop(tcpdump.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        wait_for("tcpdump listens", || net.packet_sockets() > before);
        Dump(Some(child), file)
    }

    fn end(mut self) -> PathBuf {
        let mut child = self.0.take().unwrap();
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        child.wait().unwrap();
        self.1.clone()
    }
}

/// For each server port: the protocol, the level, and the bytes of both directions.
type Found = BTreeMap<u16, (String, String, u64)>;

fn found(report: &Value) -> Found {
    let services = report["services"].as_array().unwrap();
    let of_server = |s: &&Value| s["server"].as_str().unwrap().starts_with(&format!("{SERVER}:"));
    let mut found = Found::new();
    for service in services.iter().filter(of_server) {
        let port: u16 =
            service["server"].as_str().unwrap().rsplit(':').next().unwrap().parse().unwrap();
        let word = |key: &str| service[key].as_str().unwrap().to_owned();
        let bytes = service["bytes"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum();
        let before = found.insert(port, (word("protocol"), word("level"), bytes));
        assert_eq!(before, None, "two kinds of traffic at port {port}: {services:#?}");
    }
    found
}

/// What the frames of all flows were on an Ethernet.
fn frame_bytes(report: &Value) -> u64 {
    let sum = |flow: &Value, key: &str| {
        flow[key].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum::<u64>()
    };
    let flows = report["flows"].as_array().unwrap();
    flows.iter().map(|flow| sum(flow, "bytes") + 14 * sum(flow, "packets")).sum()
}

#[test]
fn real_programs_are_recognised_from_a_file_and_from_the_interface_with_the_same_bytes() {
    let programs = [
        "nginx",
        "redis-server",
        "redis-cli",
        "sshd",
        "ssh",
        "ssh-keygen",
        "dnsmasq",
        "dig",
        "setpriv",
    ];
    if !has(&programs) || !has(&["initdb", "postgres", "psql"]) {
        return;
    }
    let Some(net) = Net::new() else { return };
    let started = Instant::now();
    net.certificate();
    let dir = net.dir.path().display().to_string();
    fs::write(net.path("blob"), vec![b'x'; 3 << 20]).unwrap();
    let nginx = net.file(
        "nginx.conf",
        &format!(
            "daemon off; pid {dir}/nginx.pid; error_log {dir}/nginx-error.log; events {{}}
             http {{ access_log off; root {dir};
               server {{ listen {SERVER}:80; }}
               server {{ listen {SERVER}:443 ssl; ssl_certificate cert.pem; ssl_certificate_key key.pem; }}
               server {{ listen {SERVER}:444 ssl; ssl_certificate cert.pem; ssl_certificate_key key.pem;
                         ssl_protocols TLSv1.2; ssl_ciphers AES128-SHA; }} }}"
        ),
    );
    run(
        Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(net.path("host")),
        0,
    );
    let data = net.path("pg");
    fs::create_dir(&data).unwrap();
    std::os::unix::fs::chown(&data, Some(65534), Some(65534)).unwrap();
    let initdb = find("initdb").unwrap();
    let mut make = net.at("s", "setpriv");
    make.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(initdb);
    run(
        make.args(["--username=postgres", "--auth=trust", "--no-sync", "--locale=C", "-D"])
            .arg(&data),
        0,
    );
    net.file("pg/pg_hba.conf", "host all all all trust\n");

    let data = data.display().to_string();
    let (cert, key) = (format!("{dir}/cert.pem"), format!("{dir}/key.pem"));
    let (ssl_cert, ssl_key) = (format!("ssl_cert_file={cert}"), format!("ssl_key_file={key}"));
    let address = SERVER.to_string();
    let _servers = [
        net.start("nginx", &["-c", nginx.to_str().unwrap()], true),
        net.start(
            "redis-server",
            &[
                "--bind",
                &address,
                "--save",
                "",
                "--protected-mode",
                "no",
                "--tls-port",
                "6380",
                "--tls-cert-file",
                &cert,
                "--tls-key-file",
                &key,
                "--tls-auth-clients",
                "no",
            ],
            false,
        ),
        net.start(
            "postgres",
            &[
                "-D",
                &data,
                "-h",
                &address,
                "-k",
                "",
                "-c",
                "ssl=on",
                "-c",
                &ssl_cert,
                "-c",
                &ssl_key,
                "-c",
                "fsync=off",
            ],
            false,
        ),
        net.start(
            "sshd",
            &[
                "-D",
                "-h",
                &format!("{dir}/host"),
                "-p",
                "22",
                "-o",
                &format!("ListenAddress={address}"),
                "-o",
                "PidFile=none",
            ],
            true,
        ),
        net.start(
            "dnsmasq",
            &[
                "-k",
                "-C",
                "/dev/null",
                "-u",
                "root",
                "-R",
                "-h",
                "--pid-file=",
                "-a",
                &address,
                "--address=/a.test/192.0.2.1",
            ],
            true,
        ),
    ];
    net.wait(&[22, 53, 80, 443, 444, 5432, 6379, 6380]);
    say(format!("servers started in {:?}", started.elapsed()));

    let counted = net.counted();
    let dump = Dump::start(&net);
    let watching = net.watch(&["--interface", "eth0", "--json", "--threads", "2"]);
    let url = |scheme: &str, port: u16| format!("{scheme}://{SERVER}:{port}/blob");
    for url in [url("http", 80), url("https", 443), url("https", 444)] {
        good(net.at("c", "curl").args([
            "-sk",
            "-o",
            "/dev/null",
            "--ciphers",
            "DEFAULT:@SECLEVEL=0",
            &url,
        ]));
    }
    good(net.at("c", "redis-cli").args(["-h", &address, "set", "k", "v"]));
    good(net.at("c", "redis-cli").args([
        "-h",
        &address,
        "-p",
        "6380",
        "--tls",
        "--insecure",
        "get",
        "k",
    ]));
    let psql = |mode: &str| {
        let to = format!("host={address} user=postgres sslmode={mode}");
        good(net.at("c", find("psql").unwrap()).args([&to, "-c", "select repeat('x', 10000)"]));
    };
    psql("disable");
    // A login that fails, after the key exchange.
    let ssh = [
        "-F",
        "none",
        "-o",
        "BatchMode=yes",
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "UserKnownHostsFile=/dev/null",
    ];
    let _ =
        net.at("c", "ssh").args(ssh).args([&format!("nobody@{address}"), "true"]).output().unwrap();
    good(net.at("c", "dig").args([&format!("@{address}"), "+tries=1", "a.test"]));
    thread::sleep(Duration::from_millis(500));
    let of_interface = watching.end();
    let file = dump.end();
    let counted = net.counted() - counted;

    let output = run(wiretight().args(["watch", "--json"]).arg(&file), 0);
    let of_file = json(&output);
    let (live, read) = (found(&of_interface), found(&of_file));
    let expected = [
        (22, "ssh", "strong"),
        (53, "dns", "plaintext"),
        (80, "http", "plaintext"),
        (443, "tls", "acceptable"),
        (444, "tls", "weak"),
        (5432, "postgres", "plaintext"),
        (6379, "redis", "plaintext"),
        (6380, "tls", "acceptable"),
    ];
    for (port, protocol, level) in expected {
        for (source, found) in [("file", &read), ("interface", &live)] {
            let (p, l, bytes) =
                found.get(&port).unwrap_or_else(|| panic!("no port {port} from the {source}"));
            assert_eq!(
                (p.as_str(), l.as_str()),
                (protocol, level),
                "port {port} from the {source}"
            );
            assert!(
                *bytes > if matches!(port, 80 | 443 | 444) { 3 << 20 } else { 100 },
                "{port}: {bytes}"
            );
        }
        assert_eq!(live[&port].2, read[&port].2, "bytes at port {port}");
    }
    assert_eq!(live, read);

    // Bytes agree with the interface's counters; the rest counts as unknown.
    for (source, report) in [("interface", &of_interface), ("file", &of_file)] {
        let frames = frame_bytes(report);
        let off = counted.abs_diff(frames) as f64 / counted as f64;
        assert!(off < 0.01, "{source}: {frames} of {counted} bytes");
        say(format!("{source}: {frames} bytes in flows, {counted} by the interface's counters"));
    }
    let coverage = &of_interface["coverage"];
    let missed = coverage["missed_bytes"].as_u64().unwrap();
    assert!(missed < counted / 100, "{coverage:#}");
    assert!(coverage["seconds"].as_f64().unwrap() > 0.4, "{coverage:#}");

    // The same file: PostgreSQL with TLS is another level, and STARTTLS is seen.
    let dump = Dump::start(&net);
    psql("require");
    thread::sleep(Duration::from_millis(200));
    let second = dump.end();
    let again = json(&run(wiretight().args(["watch", "--json", "--port", "5432"]).arg(&second), 0));
    let flow = &again["flows"][0];
    assert_eq!(
        (&flow["protocol"], &flow["level"]),
        (&"postgres".into(), &"acceptable".into()),
        "{flow:#}"
    );
    assert_eq!(flow["starttls"][1], "used", "{flow:#}");

    reports_of(&file, &of_file);
}

/// Filters, formats and exit statuses, of a file with known flows.
fn reports_of(file: &Path, all: &Value) {
    // Each number lists its rows.
    for level in ["unknown", "plaintext", "weak", "acceptable", "strong"] {
        let part = json(&run(
            wiretight().args(["watch", "--json", "--by", "flow", "--level", level]).arg(file),
            0,
        ));
        let of_level = &all["coverage"]["levels"][level];
        assert_eq!(&part["coverage"], &all["coverage"], "the coverage is about everything");
        let rows = part["services"].as_array().unwrap();
        assert_eq!(rows.len() as u64, of_level["flows"].as_u64().unwrap(), "{level}");
        assert_eq!(&part["shown"]["total"], of_level, "{level}");
        assert!(rows.iter().all(|row| row["level"] == level));
    }
    let watch = |args: &[&str]| {
        let mut command = wiretight();
        command.arg("watch").args(args).arg(file);
        command
    };
    let table = good(&mut watch(&["--once", "--verbose"]));
    for said in ["FLOWS", "10.78.0.2:6379", "redis", "10.78.0.2:444", "TLS 1.2", "seen:"] {
        assert!(table.contains(said), "{said} is not in\n{table}");
    }
    assert!(!table.contains('\u{1b}'), "{table}");
    assert!(good(&mut watch(&["--color", "always"])).contains("\u{1b}[31m"));
    assert!(!good(&mut watch(&["--port", "80"])).contains("10.78.0.2:443"));
    let blockers = good(&mut watch(&["--blockers"]));
    for said in
        ["plaintext  10.78.0.2:6379 redis", "[[dial]]", "Remove suites that begin with TLS_RSA_"]
    {
        assert!(blockers.contains(said), "{said} is not in\n{blockers}");
    }
    let lines = good(&mut watch(&["--jsonl"]));
    let flows = all["flows"].as_array().unwrap().len();
    assert_eq!(lines.lines().count(), flows + 1);
    for format in ["html", "sarif", "cbom"] {
        assert!(good(&mut watch(&["--format", format])).contains("10.78.0.2"), "{format}");
    }
    // Exit statuses.
    run(&mut watch(&["--fail-below", "acceptable"]), 1);
    run(&mut watch(&["--fail-below", "acceptable", "--port", "443"]), 0);
    run(&mut watch(&["--fail-below", "strong", "--port", "443"]), 1);
    run(&mut watch(&["--level", "perfect"]), 2);
    run(wiretight().args(["watch", "no-such-file.pcap"]), 2);
    run(wiretight().args(["watch", env!("CARGO_BIN_EXE_wiretight")]), 2);
    run(wiretight().args(["watch", "--config", "/no/such/file.toml"]), 3);

    // Cut off: what was whole is reported, with a warning.
    let bytes = fs::read(file).unwrap();
    let cut = file.with_file_name("cut.pcap");
    fs::write(&cut, &bytes[..bytes.len() - 7]).unwrap();
    let output = run(wiretight().args(["watch", "--json"]).arg(&cut), 3);
    assert!(text(&output.stderr).contains("cut off"), "{}", text(&output.stderr));
    assert_eq!(found(&json(&output)).len(), found(all).len());
    // From standard input, compressed.
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&bytes).unwrap();
    let gzip = gzip.finish().unwrap();
    let mut child = wiretight()
        .args(["watch", "--json", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let writer = thread::spawn(move || input.write_all(&gzip));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert_eq!(found(&json(&output)), found(all));
}

#[test]
fn a_mirror_that_drops_counts_what_it_drops_as_unknown() {
    if !has(&["python3"]) {
        return;
    }
    let Some(net) = Net::new() else { return };
    // More packets than a small ring holds, faster than they are read: the process is stopped meanwhile.
    let mut watching = net.watch(&[
        "--interface",
        "eth0",
        "--json",
        "--buffer",
        "1",
        "--fail-below",
        "weak",
        "--port",
        "9999",
    ]);
    let pid = Pid::from_child(watching.child.as_ref().unwrap());
    kill_process(pid, Signal::STOP).unwrap();
    let send = "import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for n in range(4000): s.sendto(b'x' * 1400, ('10.78.0.2', 9999))";
    let before = net.counted();
    good(net.at("c", "python3").args(["-c", send]));
    let sent = net.counted() - before;
    kill_process(pid, Signal::CONT).unwrap();
    thread::sleep(Duration::from_millis(500));
    let output = watching.interrupt();
    assert_eq!(
        output.status.code(),
        Some(3),
        "lost packets with --fail-below: {}",
        text(&output.stderr)
    );
    let report = json(&output);
    let coverage = &report["coverage"];
    let missed = coverage["missed"].as_array().unwrap();
    let gap = |reason: &str| missed.iter().find(|gap| gap["reason"] == reason);
    let dropped =
        gap("dropped").unwrap_or_else(|| panic!("{coverage:#}"))["packets"].as_u64().unwrap();
    let lost = gap("not_captured").unwrap()["bytes"].as_u64().unwrap();
    assert!(dropped > 1000 && lost > sent / 4, "{coverage:#}");
    // What was read and what was lost add up.
    let all = frame_bytes(&report) + lost;
    let off = sent.abs_diff(all) as f64 / sent as f64;
    assert!(off < 0.01, "{all} of {sent} bytes");
    assert_eq!(coverage["levels"]["strong"]["flows"], 0);
    say(format!("{dropped} packets were dropped, {lost} of {sent} bytes are unknown"));
}

#[test]
fn loopback_is_counted_once_and_capturing_needs_a_capability() {
    if !has(&["setpriv"]) {
        return;
    }
    let Some(net) = Net::new() else { return };
    let send = "import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for n in range(100): s.sendto(b'x' * 1000, ('127.0.0.1', 9999))";
    let watching = net.watch(&["--interface", "lo", "--json"]);
    good(net.at("s", "python3").args(["-c", send]));
    thread::sleep(Duration::from_millis(500));
    let report = watching.end();
    let flow = report["flows"]
        .as_array()
        .unwrap()
        .iter()
        .find(|f| f["server"] == "127.0.0.1:9999")
        .unwrap();
    assert_eq!(
        (&flow["packets"][0], &flow["bytes"][0]),
        (&100.into(), &102_800.into()),
        "{flow:#}"
    );
    assert_eq!(report["blockers"], serde_json::json!([]), "loopback does not leave the machine");

    // All interfaces are without loopback, and need no setup.
    let watching = net.watch(&["--interface", "any", "--json"]);
    good(net.at("s", "python3").args(["-c", send]));
    good(net.at("s", "python3").args(["-c", &send.replace("127.0.0.1", "10.78.0.1")]));
    thread::sleep(Duration::from_millis(500));
    let report = watching.end();
    let servers: Vec<_> =
        report["flows"].as_array().unwrap().iter().map(|f| &f["server"]).collect();
    assert!(servers.contains(&&"10.78.0.1:9999".into()), "{report:#}");
    assert!(!servers.contains(&&"127.0.0.1:9999".into()), "{report:#}");

    // A program here is named by its control group or its user; one elsewhere is not.
    let listen = "import socket, sys, time
s = socket.create_server(('10.78.0.1', 7777)); c, _ = s.accept(); time.sleep(60)";
    let mut server = net.at("c", "python3");
    let _server = KilledOnDrop(server.args(["-c", listen]).spawn().unwrap());
    let watching = net.watch(&["--interface", "any", "--json", "--port", "7777"]);
    let connect = "import socket, time
for n in range(50):
    try: s = socket.create_connection(('10.78.0.1', 7777)); break
    except OSError: time.sleep(0.1)
time.sleep(1.5)";
    good(net.at("s", "python3").args(["-c", connect]));
    let report = watching.end();
    let flows = report["flows"].as_array().unwrap();
    let with = |end: &str| flows.iter().any(|flow| flow["programs"].get(end).is_some());
    assert!(with("client") && !with("server"), "{flows:#?}");

    let mut unprivileged = net.at("s", "setpriv");
    unprivileged.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    unprivileged.arg(env!("CARGO_BIN_EXE_wiretight")).args(["watch", "--interface", "lo"]);
    let output = run(&mut unprivileged, 1);
    assert!(text(&output.stderr).contains("CAP_NET_RAW"), "{}", text(&output.stderr));
    let mut missing = net.at("s", env!("CARGO_BIN_EXE_wiretight"));
    let output = run(missing.args(["watch", "--interface", "nowhere"]), 1);
    assert!(text(&output.stderr).contains("nowhere"), "{}", text(&output.stderr));
}

#[test]
fn a_live_table_reacts_to_keys_and_restores_the_terminal() {
    if !has(&["script"]) {
        return;
    }
    let Some(net) = Net::new() else { return };
    let program = env!("CARGO_BIN_EXE_wiretight");
    let mut command = net.at("s", "script");
    command.args(["-qec", &format!("stty rows 20 cols 90; {program} watch -i lo"), "/dev/null"]);
    command.env("TERM", "xterm").env_remove("NO_COLOR");
    let mut child =
        KilledOnDrop(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
    wait_for("watch listens", || net.packet_sockets() > 0);
    good(net.at("s", "python3").args([
        "-c",
        "import socket
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9999))",
    ]));
    thread::sleep(Duration::from_millis(1600));
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"/zzz\r").unwrap();
    thread::sleep(Duration::from_millis(300));
    input.write_all(b"\x1bq").unwrap();
    let mut out = String::new();
    std::io::Read::read_to_string(&mut child.stdout.take().unwrap(), &mut out).unwrap();
    assert!(child.wait().unwrap().success(), "{out}");
    let at = |what: &str| out.find(what).unwrap_or_else(|| panic!("no {what} in {out:?}"));
    assert!(at("\u{1b}[?1049h") < at("127.0.0.1:9999") && at("127.0.0.1:9999") < at("/zzz"));
    assert!(at("/zzz") < at("\u{1b}[?1049l"), "the screen is restored");
}

#[test]
fn a_scan_fills_in_the_certificate_that_tls_1_3_hides() {
    let Some(net) = Net::new() else { return };
    net.certificate();
    let args =
        ["s_server", "-accept", "443", "-key", "key.pem", "-cert", "cert.pem", "-www", "-quiet"];
    let server = net.start("openssl", &args, true);
    net.wait(&[443]);
    let file = {
        let dump = Dump::start(&net);
        let url = format!("https://{SERVER}/");
        good(net.at("c", "curl").args(["-sk", "-o", "/dev/null", &url]));
        thread::sleep(Duration::from_millis(300));
        dump.end()
    };
    let watch = |end: &str, args: &[&str]| {
        let mut command = net.at(end, env!("CARGO_BIN_EXE_wiretight"));
        command.arg("watch").args(args).arg(&file);
        command
    };
    let report = json(&run(&mut watch("c", &["--scan", "--json"]), 0));
    let row = &report["services"][0];
    assert_eq!(row["seen"][0]["sealed"].get("certificate"), None, "{row:#}");
    let scanned = &row["scanned"][0];
    let rules = scanned["reasons"].as_array().unwrap();
    assert!(
        rules.iter().any(|r| r["rule"] == "certificate-untrusted" && r["answer"] == "yes"),
        "{row:#}"
    );
    // The level of the flow is what was negotiated; that of the scan stands beside it.
    assert_eq!((&row["level"], &scanned["level"]), (&"acceptable".into(), &"weak".into()));
    let schema = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/watch-flow.schema.json");
    let schema: Value = serde_json::from_str(&fs::read_to_string(schema).unwrap()).unwrap();
    assert_eq!(report["schema"], schema["$id"]);
    // The control: without --scan nothing is asked, and the server is gone for another scan.
    drop(server);
    let report = json(&run(&mut watch("c", &["--json"]), 0));
    assert_eq!(report["services"][0].get("scanned"), None);
    let report = json(&run(&mut watch("c", &["--scan", "--json"]), 0));
    assert_eq!(report["services"][0].get("scanned"), None);
}

#[test]
fn without_a_file_or_interface_the_running_node_is_asked() {
    if !has(&["redis-server", "redis-cli", "nft"]) {
        return;
    }
    let Some(net) = Net::new() else { return };
    let (state, config) = (net.path("state"), net.path("wiretight.toml"));
    let node = format!(
        "[node]\nname = \"auth1\"\ntrust_domain = \"example.org\"\nstate_dir = {state:?}\n\
         [authority]\nlisten = \"127.0.0.1:7400\"\n[watch]\n"
    );
    fs::write(&config, node).unwrap();
    let args = ["--bind", &SERVER.to_string(), "--save", "", "--protected-mode", "no"];
    let _redis = net.start("redis-server", &args, false);
    let config = config.to_str().unwrap();
    let _node = net.start(env!("CARGO_BIN_EXE_wiretight"), &["run", "--config", config], true);
    net.wait(&[6379]);
    let watch = |args: &[&str]| {
        let mut command = net.at("s", env!("CARGO_BIN_EXE_wiretight"));
        command.args(["watch", "--config", config]).args(args);
        command
    };
    // A connection that began before the node watched is unknown, and another row.
    let seen = || {
        let output = watch(&["--json"]).output().unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let services = report["services"].as_array().cloned().unwrap_or_default();
        services.iter().any(|s| s["protocol"] == "redis" && s["level"] == "plaintext")
    };
    wait_for("the node watches and has seen Redis", || {
        let set = ["-h", &SERVER.to_string(), "set", "k", "v"];
        good(net.at("c", "redis-cli").args(set));
        seen()
    });
    let table = good(&mut watch(&["--once", "--verbose"]));
    assert!(table.contains("by its node") && table.contains("10.78.0.2:6379"), "{table}");
    assert!(good(&mut watch(&["--blockers"])).contains("[[dial]]"));
    run(&mut watch(&["--fail-below", "weak"]), 1);
    run(&mut watch(&["--jsonl"]), 2);
}
