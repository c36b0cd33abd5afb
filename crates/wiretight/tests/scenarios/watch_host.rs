//! `[watch]` on real machines (network namespaces), with real programs: what they say is named with its level, its bytes
//! and its program, and what was not seen is `unknown`.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use wiretight::watch::host::{Listing, Row};
use wiretight_proxy::clock::now;
use wiretight_scan::judge::Level;
use wiretight_scan::passive::Grade;
use wiretight_scan::passive::totals::Way;

use super::intercept::{Group, Wire, run};
use super::programs::{SSH, sshd};
use super::rig::*;
use super::traffic::Postgres;

pub(super) const CLIENT: &str = "10.77.0.1";
pub(super) const SERVER: &str = "10.77.0.2";

pub(super) fn can(programs: &[&str]) -> bool {
    has(&["ip", "nft", "nsenter", "python3"]) && has(programs) && is_root()
}

/// A node that needs no mesh, and has started to watch.
fn watching(world: &World, ns: &str, name: &str) -> Node {
    let mut node = world.node(name, "");
    let text = fs::read_to_string(node.file()).unwrap();
    let text: String =
        text.lines().filter(|l| !l.starts_with("join_")).map(|l| format!("{l}\n")).collect();
    fs::write(node.file(), text + "[watch]\n").unwrap();
    node.netns = Some(ns.to_owned());
    start(&mut node);
    node
}

pub(super) fn start(node: &mut Node) {
    node.start();
    node.ready();
    wait_for("it watches", || watch_status(node)["since"].is_u64());
    let problems = watch_status(node)["problems"].clone();
    assert_eq!(problems, json!([]), "{}", node.log());
}

fn watch_status(node: &Node) -> Value {
    node.status()["watch"].clone()
}

#[track_caller]
pub(super) fn listing(node: &Node) -> Listing {
    let (code, body) = node.http("POST", "/v1/watch", r#"{"rows":1000}"#).unwrap();
    assert_eq!(code, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

/// Waits for a row that fits.
#[track_caller]
fn row(node: &Node, what: &str, fits: impl Fn(&Row) -> bool) -> Row {
    let end = Instant::now() + Duration::from_secs(15);
    loop {
        let all = listing(node).rows;
        match all.iter().find(|row| fits(row)) {
            Some(row) => return row.clone(),
            None => assert!(Instant::now() < end, "no row: {what}\n{all:#?}"),
        }
        std::thread::sleep(ms(100));
    }
}

/// The processes of a node, from the node to the one that watches: node, supervisor, worker, nft.
fn family(node: &Node) -> Vec<u32> {
    let children = |pid: u32| {
        let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let parse = |text: String| text.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        text.map(parse).unwrap_or_else(|_| Vec::<u32>::new())
    };
    // The node's first thread starts its children.
    let mut line = vec![node.pid()];
    while let Some(child) = children(*line.last().unwrap()).first() {
        line.push(*child);
    }
    line
}

fn signal(pid: u32, signal: Signal) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

fn tables(ns: &str) -> Vec<String> {
    let listed = run(ns, "nft", &["list", "tables"]).good().out;
    listed.lines().map(str::to_owned).collect()
}

fn is_watched(ns: &str) -> bool {
    tables(ns).iter().any(|table| table.contains("wiretight_watch"))
}

/// A web server with and without TLS, and a file of 8 MB.
fn nginx(world: &World, ns: &str) -> Kid {
    let dir = world.path("nginx");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("file"), vec![b'x'; 8 << 20]).unwrap();
    let (cert, key) = (dir.join("cert"), dir.join("key"));
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]);
    openssl
        .args(["-nodes", "-days", "2", "-subj", "/CN=www.test", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&cert);
    Ran::of(&mut openssl, "").good();
    let shown = dir.display();
    let config = format!(
        "daemon off;\nuser root;\nworker_processes 1;\npid {shown}/pid;\nerror_log stderr;\nevents {{}}\n\
         http {{\naccess_log off;\nclient_body_temp_path {shown}/b;\nproxy_temp_path {shown}/p;\n\
         fastcgi_temp_path {shown}/f;\nuwsgi_temp_path {shown}/u;\nscgi_temp_path {shown}/s;\n\
         server {{\nlisten {SERVER}:80;\nlisten {SERVER}:443 ssl;\nssl_certificate {shown}/cert;\n\
         ssl_certificate_key {shown}/key;\nroot {shown};\n}}\n}}\n"
    );
    fs::write(dir.join("conf"), config).unwrap();
    let mut nginx = Command::new(find("nginx").unwrap());
    nginx.arg("-c").arg(dir.join("conf"));
    Kid::start(&mut within(Some(ns), nginx), &world.path("nginx.log"))
}

fn redis(world: &World, ns: &str, at: &str, group: Option<&Group>) -> Kid {
    let join =
        group.map_or(String::new(), |g| format!("echo $$ > {}/cgroup.procs;", g.0.display()));
    let redis = find("redis-server").unwrap();
    let serve = format!(
        "{join} exec {} --port 6379 --save '' --protected-mode no --bind {at} --dir {}",
        redis.display(),
        world.path("").display()
    );
    let mut sh = Command::new("sh");
    sh.args(["-ec", &serve]);
    Kid::start(&mut within(Some(ns), sh), &world.path(&format!("redis-{at}.log")))
}

#[test]
fn real_programs_are_named_with_level_bytes_and_program() {
    if !can(&["nginx", "openssl", "curl", "redis-server", "redis-cli", "dnsmasq", "dig"]) {
        return;
    }
    if !has(&["sshd", "ssh", "ssh-keygen", "initdb", "postgres", "psql", "setpriv"]) {
        return;
    }
    let (world, wire) = (World::new(), Wire::new());
    let (client, server) = (wire.client.clone(), wire.server.clone());
    let group = Group::new("redis");
    let _nginx = nginx(&world, &server);
    let _redis = redis(&world, &server, SERVER, None);
    let _ours = redis(&world, &client, CLIENT, group.as_ref());
    let _sshd = sshd(&server, &world.path("ssh"));
    let _postgres = Postgres::start_in(Some(&server), ([10, 77, 0, 2], 5432).into(), "*");
    let mut dnsmasq = Command::new(find("dnsmasq").unwrap());
    dnsmasq.args([
        "--no-daemon",
        "--conf-file=/dev/null",
        "--user=root",
        "--pid-file=",
        "--no-resolv",
    ]);
    dnsmasq.args(["--no-hosts", "--bind-interfaces", "--address=/x.test/10.1.2.3"]);
    dnsmasq.arg(format!("--listen-address={SERVER}"));
    let _dnsmasq = Kid::start(&mut within(Some(&server), dnsmasq), &world.path("dnsmasq.log"));
    let on_client = |program: &str, args: &[&str]| run(&client, program, args);
    let psql = || on_client("psql", &["-h", SERVER, "-U", "postgres", "-Atc", "SELECT 40 + 2"]);
    wait_for("they listen", || {
        on_client("curl", &["-sko", "/dev/null", "https://10.77.0.2/file"]).code == Some(0)
            && run(&server, "redis-cli", &["-h", CLIENT, "ping"]).out.trim() == "PONG"
            && on_client("redis-cli", &["-h", SERVER, "ping"]).out.trim() == "PONG"
            && psql().code == Some(0)
    });
    // Other programs' rules stay as they are.
    run(
        &client,
        "nft",
        &["add table inet other { chain c { type filter hook input priority 0; }; }"],
    )
    .good();
    let rules = || run(&client, "nft", &["list", "table", "inet", "other"]).good().out;
    let before = rules();

    let mut node = watching(&world, &client, "n");
    let in_ssh = |name: &str| world.path("ssh").join(name).display().to_string();
    let known = format!("UserKnownHostsFile={}", in_ssh("known_hosts"));
    for _ in 0..2 {
        for url in ["http://10.77.0.2/file", "https://10.77.0.2/file"] {
            on_client("curl", &["-sSko", "/dev/null", url]).good();
        }
        on_client("redis-cli", &["-h", SERVER, "set", "k", "v"]).good();
        run(&server, "redis-cli", &["-h", CLIENT, "get", "k"]).good();
        assert_eq!(psql().out.trim(), "42");
        let dig = on_client("dig", &["+short", "@10.77.0.2", "x.test"]).good().out;
        assert_eq!(dig.trim(), "10.1.2.3");
    }
    let port = SSH.to_string();
    let key = in_ssh("id");
    let ssh = ["-F", "none", "-o", &known, "-o", "BatchMode=yes", "-i", &key, "-p", &port];
    let said = on_client("ssh", &[&ssh[..], &["root@10.77.0.2", "echo", "from afar"]].concat());
    assert_eq!(said.out.trim(), "from afar", "{said:?}");

    let encrypted = [Level::Acceptable, Level::Strong];
    let expected: [(u16, &str, &[Level], u64); 6] = [
        (80, "http", &[Level::Plaintext], 2 * (8 << 20)),
        (443, "tls", &encrypted, 2 * (8 << 20)),
        (6379, "redis", &[Level::Plaintext], 500),
        (5432, "postgres", &[Level::Plaintext], 500),
        (53, "dns", &[Level::Plaintext], 200),
        (SSH, "ssh", &[Level::Weak, Level::Acceptable, Level::Strong], 3000),
    ];
    for (port, protocol, levels, bytes) in expected {
        let at = SocketAddr::new(SERVER.parse().unwrap(), port);
        let known = |row: &Row| row.server == at && row.seen.grade != Grade::Unknown;
        let row = row(&node, protocol, known);
        assert_eq!((row.way, &*row.seen.protocol), (Way::Out, protocol), "{row:#?}");
        assert!(levels.contains(&row.seen.level), "{row:#?}");
        // A client that had ended before its socket was found has another row.
        let same = listing(&node).rows.into_iter().filter(known);
        let sum: u64 = same.map(|row| row.bytes[0] + row.bytes[1]).sum();
        assert!(sum >= bytes && sum < bytes * 5 / 4 + 50_000, "{sum}: {row:#?}");
    }
    let inward = row(&node, "redis here", |row| row.way == Way::In && row.server.port() == 6379);
    assert_eq!((&*inward.seen.protocol, inward.seen.level), ("redis", Level::Plaintext));
    let program = inward.program.expect("a program that listens is found");
    assert_eq!(program.user, 0);
    if let Some(group) = &group {
        assert_eq!(program.name.as_deref(), Some("redis-server"), "{program:?}");
        assert!(program.control_group.unwrap().ends_with(&group.name()));
    }
    // The bytes of all connections are those of the interface.
    let all = listing(&node);
    let gaps = all.totals.gaps;
    say(format!("interface {} bytes, missed {}", gaps.interface_bytes, gaps.missed_bytes));
    assert!(gaps.interface_bytes > 4 * (8 << 20), "{gaps:?}");
    assert!(gaps.missed_bytes * 100 <= gaps.interface_bytes, "{gaps:?}");
    assert_eq!((gaps.resyncs, gaps.lost_packets), (0, 0));
    let counted: u64 = all.totals.by_level().values().map(|count| count.bytes).sum();
    assert!(
        counted.abs_diff(gaps.interface_bytes) * 100 <= gaps.interface_bytes,
        "{counted} {gaps:?}"
    );

    let metrics = node.http("GET", "/metrics", "").unwrap().1;
    for name in ["flow_connections_total", "flow_bytes_total", "flow_watching 1"] {
        assert!(metrics.contains(&format!("wiretight_{name}")), "{name}: {metrics}");
    }
    // A stop removes the table, and nothing else.
    assert!(is_watched(&client));
    run(&client, "nft", &["add", "table", "inet", "later"]).good();
    node.kid().signal(Signal::TERM);
    assert!(node.kid().ended(PATIENCE).is_some());
    wait_for("its table is gone", || !is_watched(&client));
    assert_eq!(tables(&client), ["table inet other", "table inet later"]);
    assert_eq!(rules(), before);
    // The totals of this hour are on disk.
    let saved = fs::read_to_string(node.state().join("watch.json")).unwrap();
    assert!(saved.contains(r#""protocol":"redis""#), "{saved}");
}

/// A connection between the machines: the client's end, and the server's.
fn connected(wire: &Wire, port: u16) -> (TcpStream, TcpStream) {
    let at: SocketAddr = SocketAddr::new(SERVER.parse().unwrap(), port);
    let listener = on(&wire.server, move || TcpListener::bind(at).unwrap()).join().unwrap();
    let stream = on(&wire.client, move || TcpStream::connect(at).unwrap()).join().unwrap();
    (stream, listener.accept().unwrap().0)
}

fn exchange((a, b): &mut (TcpStream, TcpStream), request: &[u8]) {
    a.write_all(request).unwrap();
    let mut buffer = vec![0; request.len()];
    b.read_exact(&mut buffer).unwrap();
    b.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
    a.read_exact(&mut [0; 38]).unwrap();
}

/// Another program's rule, for which the kernel tracks connections whether we watch or not.
fn track(ns: &str) {
    let rule = "add table inet keep { chain c { type filter hook input priority 0; ct state invalid counter; }; }";
    run(ns, "nft", &[rule]).good();
}

const GET: &[u8] = b"GET /page HTTP/1.1\r\nhost: example.org\r\n\r\n";

#[test]
fn a_start_in_the_middle_a_kill_and_a_restart_leave_traffic_alone_and_guess_nothing() {
    if !can(&[]) {
        return;
    }
    let (world, wire) = (World::new(), Wire::new());
    let client = wire.client.clone();
    track(&client);
    let mut old = connected(&wire, 1001);
    exchange(&mut old, GET);
    // Sealed records; their handshake was long ago.
    const RECORD: &[u8] =
        b"\x17\x03\x03\x00\x10\x8f\xe1\x03\x77\xa0\x51\x9c\x2d\xb4\x68\xd9\x0e\x45\xfa\x31\xc6";
    let mut node = watching(&world, &client, "n");
    let mut new = connected(&wire, 1002);
    for _ in 0..3 {
        exchange(&mut old, RECORD);
        exchange(&mut new, GET);
    }
    let at = |port: u16| move |row: &Row| row.server.port() == port;
    let known =
        row(&node, "http", |row| row.server.port() == 1002 && row.seen.level == Level::Plaintext);
    assert_eq!((&*known.seen.protocol, known.open), ("http", 1));
    let unknown = row(&node, "the old one", at(1001));
    assert_eq!(unknown.seen.level, Level::Unknown, "{unknown:?}");
    // Its bytes from before do not count.
    let totals = listing(&node).totals;
    let unknown = totals.by_level()[&Level::Unknown];
    assert_eq!(unknown.connections, 0, "{totals:?}");

    // Killed: the kernel removes the table, and connections continue.
    assert!(is_watched(&client));
    node.kill();
    wait_for("its table is gone", || !is_watched(&client));
    exchange(&mut new, GET);
    start(&mut node);
    exchange(&mut new, RECORD);
    // It was seen by the process before; this one does not guess.
    assert_eq!(row(&node, "still open", at(1002)).seen.level, Level::Unknown);
    let mut third = connected(&wire, 1003);
    exchange(&mut third, GET);
    row(&node, "http", |row| row.server.port() == 1003 && row.seen.level == Level::Plaintext);

    // Another process takes over the node: it has its own table, and starts anew.
    let tables_of = || {
        tables(&client).into_iter().filter(|t| t.contains("wiretight_watch")).collect::<Vec<_>>()
    };
    let before = tables_of();
    node.upgrade();
    wait_for("the new process watches alone", || {
        let now = tables_of();
        now.len() == 1 && now != before && watch_status(&node)["since"].is_u64()
    });
    exchange(&mut third, GET);
    let mut sixth = connected(&wire, 1006);
    exchange(&mut sixth, GET);
    row(&node, "http", |row| row.server.port() == 1006 && row.seen.level == Level::Plaintext);

    // The process that watches dies, and is restarted.
    let line = family(&node);
    assert!(line.len() >= 4, "{line:?}");
    signal(line[2], Signal::KILL);
    wait_for("another one watches", || {
        family(&node).get(2).is_some_and(|pid| *pid != line[2]) && is_watched(&client)
    });
    let mut fourth = connected(&wire, 1004);
    wait_for("it watches again", || {
        exchange(&mut third, GET);
        watch_status(&node)["problems"] == json!([]) && is_watched(&client)
    });
    exchange(&mut fourth, GET);
    let mut fifth = connected(&wire, 1005);
    exchange(&mut fifth, GET);
    row(&node, "http", |row| row.server.port() == 1005 && row.seen.level == Level::Plaintext);
}

#[test]
fn flushed_rules_stay_and_without_them_nothing_is_known() {
    if !can(&[]) {
        return;
    }
    let (world, wire) = (World::new(), Wire::new());
    let client = wire.client.clone();
    let node = watching(&world, &client, "n");
    run(&client, "nft", &["flush", "ruleset"]).good();
    assert!(is_watched(&client), "a table with an owner is not flushed");
    track(&client);
    exchange(&mut connected(&wire, 1001), GET);
    row(&node, "http", |row| row.server.port() == 1001 && row.seen.level == Level::Plaintext);
    // Without traffic it sleeps.
    let switches = || {
        let status = fs::read_to_string(format!("/proc/{}/status", family(&node)[2])).unwrap();
        let count = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"));
        count.unwrap().trim().parse::<u64>().unwrap()
    };
    let before = switches();
    std::thread::sleep(ms(1500));
    let woken = switches() - before;
    assert!(woken < 50, "woken {woken} times in 1.5 s");
    // The control: the process that owns the table is killed while the one that would restore it is stopped.
    let line = family(&node);
    signal(line[2], Signal::STOP);
    signal(line[3], Signal::KILL);
    wait_for("the table is gone", || !is_watched(&client));
    exchange(&mut connected(&wire, 1002), GET);
    signal(line[2], Signal::CONT);
    wait_for("the table is back", || is_watched(&client));
    let unseen = row(&node, "without rules", |row| row.server.port() == 1002);
    assert_eq!(unseen.seen.grade, Grade::Unknown, "{unseen:?}");
    assert!(unseen.bytes[0] > GET.len() as u64, "{unseen:?}");
    exchange(&mut connected(&wire, 1003), GET);
    row(&node, "http", |row| row.server.port() == 1003 && row.seen.level == Level::Plaintext);
    let problems = listing(&node).status.problems;
    assert!(problems.iter().any(|p| p.contains("the table was made again")), "{problems:?}");
}

#[test]
fn what_the_kernel_could_not_report_is_unknown() {
    if !can(&["openssl", "curl", "nginx"]) {
        return;
    }
    let (world, wire) = (World::new(), Wire::new());
    let client = wire.client.clone();
    let _nginx = nginx(&world, &wire.server);
    wait_for("nginx listens", || {
        run(&client, "curl", &["-sko", "/dev/null", "https://10.77.0.2/"]).code == Some(0)
    });
    let node = watching(&world, &client, "n");
    run(&client, "curl", &["-sko", "/dev/null", "https://10.77.0.2/"]).good();
    let tls = |row: &Row| row.server.port() == 443 && row.seen.protocol == "tls";
    assert_eq!(row(&node, "tls", tls).connections, 1);

    // More than the kernel queues, while nobody reads.
    let worker = family(&node)[2];
    signal(worker, Signal::STOP);
    const FLOWS: u16 = 40_000;
    let to: SocketAddr = SocketAddr::new(SERVER.parse().unwrap(), 9);
    on(&client, move || {
        for port in 20_000..20_000 + FLOWS {
            let socket = UdpSocket::bind((CLIENT, port)).unwrap();
            socket.send_to(&[7; 1000], to).unwrap();
        }
    })
    .join()
    .unwrap();
    run(&client, "curl", &["-sko", "/dev/null", "https://10.77.0.2/file"]).good();
    signal(worker, Signal::CONT);
    // The numbers of packets have a gap, which the next packet shows.
    run(&client, "curl", &["-so", "/dev/null", "http://10.77.0.2/"]).good();
    let end = Instant::now() + Duration::from_secs(15);
    let all = loop {
        let all = listing(&node);
        if all.totals.gaps.resyncs > 0 && all.totals.gaps.lost_packets > 0 {
            break all;
        }
        assert!(Instant::now() < end, "nothing was lost: {:?}", all.totals.gaps);
    };
    say(format!("{:?} {:?}", all.totals.gaps, all.totals.by_level()));
    // The second connection is not called encrypted, because its handshake was lost; its bytes are there.
    let encrypted: u64 = all
        .rows
        .iter()
        .filter(|row| row.seen.level > Level::Plaintext)
        .map(|row| row.connections)
        .sum();
    assert_eq!(encrypted, 1, "{:#?}", all.rows);
    let levels = all.totals.by_level();
    assert!(levels[&Level::Unknown].bytes >= 8 << 20, "{levels:?}");
    let counted: u64 = levels.values().map(|count| count.bytes).sum();
    let gaps = all.totals.gaps;
    assert!(
        counted.abs_diff(gaps.interface_bytes) * 50 <= gaps.interface_bytes,
        "{counted} {gaps:?}"
    );
    // The control: it works again.
    run(&client, "curl", &["-sko", "/dev/null", "https://10.77.0.2/"]).good();
    wait_for("tls is seen", || row(&node, "tls", tls).connections == 2);
}

#[test]
fn what_the_relay_carries_is_carried_and_totals_reach_the_authority() {
    if !can(&["curl"]) {
        return;
    }
    let (world, wire) = (World::new(), Wire::new());
    let (client, server) = (wire.client.clone(), wire.server.clone());
    let mut web = Command::new("python3");
    web.args(["-m", "http.server", "--bind", "127.0.0.1", "8080", "--directory"])
        .arg(world.path(""));
    let _web = Kid::start(&mut within(Some(&server), web), &world.path("web.log"));
    let service = "[[service]]\nname = \"web\"\nlisten = \"10.77.0.2:7080\"\nforward = \"127.0.0.1:8080\"\nallow = [\"node/client\"]\n";
    let mut far = world
        .node("auth", &format!("[authority]\nlisten = \"10.77.0.2:7400\"\n{service}[watch]\n"));
    far.netns = Some(server);
    start(&mut far);
    let dial = "[[dial]]\nlisten = \"127.0.0.1:8080\"\nservice = \"web\"\n[watch]\n";
    let mut near = world.node("client", dial);
    fs::write(near.token_file(), far.token("client", &[])).unwrap();
    near.netns = Some(client.clone());
    // An hour that an earlier process has counted, and one of each kind that must not be sent.
    let last = now() / 3600 * 3600 - 7200;
    let hour = |start: u64| {
        json!({
            "start": start, "watched_seconds": 3600,
            "shares": [{"way": "out", "level": "strong", "grade": "seen", "protocol": "tls", "connections": 3, "bytes": 4321}],
        })
    };
    fs::create_dir(near.state()).unwrap();
    Ran::of(Command::new("chmod").arg("700").arg(near.state()), "").good();
    let file = json!({ "hours": [hour(last), hour(last - 3600)], "sent": [last - 3600] });
    fs::write(near.state().join("watch.json"), file.to_string()).unwrap();
    start(&mut near);
    near.knows("web");
    for _ in 0..3 {
        let url = "http://127.0.0.1:8080/";
        assert_eq!(run(&client, "curl", &["-sSo", "/dev/null", url]).code, Some(0));
    }
    let carried = |row: &Row| row.server.port() == 7080 && row.seen.grade == Grade::Carried;
    for (node, way) in [(&near, Way::Out), (&far, Way::In)] {
        let row = row(node, "carried", carried);
        assert_eq!(
            (row.way, row.seen.level, &*row.seen.protocol),
            (way, Level::Strong, "wiretight")
        );
        assert!(row.seen.evidence.contains("X25519MLKEM768"), "{row:?}");
    }
    // The program's own connection is plaintext, but does not leave the machine.
    let leg =
        row(&near, "the leg", |row| row.way == Way::Relay && row.seen.level == Level::Plaintext);
    assert_eq!((leg.server, leg.connections), (([127, 0, 0, 1], 8080).into(), 3));
    let levels = listing(&near).totals.by_level();
    assert_eq!(levels[&Level::Plaintext].bytes, 0, "{levels:?}");

    let mesh = |node: &Node, mesh: bool| -> Value {
        let asked = json!({ "from": 0, "to": u64::MAX, "mesh": mesh }).to_string();
        let (code, body) = node.http("POST", "/v1/watch/hours", &asked).unwrap();
        assert_eq!(code, if mesh && node.name == "client" { 404 } else { 200 }, "{body}");
        serde_json::from_str(&body).unwrap()
    };
    let arrived = || mesh(&far, true)["nodes"]["client"].as_array().cloned().unwrap_or_default();
    wait_for("the totals are at the authority", || !arrived().is_empty());
    let arrived = arrived();
    assert_eq!(arrived.len(), 1, "{arrived:?}");
    let first = &arrived[0];
    assert_eq!((&first["start"], &first["shares"][0]["bytes"]), (&json!(last), &json!(4321)));
    assert_eq!(mesh(&near, false)["nodes"]["client"].as_array().unwrap().len(), 3);
    mesh(&near, true);
    wait_for("nothing is left to send", || watch_status(&near)["unsent_hours"] == 0);
}

#[test]
fn a_dry_run_of_strict_mode_lists_what_is_not_strong() {
    if !can(&[]) {
        return;
    }
    let (world, wire) = (World::new(), Wire::new());
    let client = wire.client.clone();
    let sections =
        "[authority]\nlisten = \"127.0.0.1:7400\"\n[intercept]\nmode = \"observe\"\n[watch]\n";
    let mut node = world.node("n", sections);
    node.netns = Some(client.clone());
    start(&mut node);
    let dry_run = |more: &[&str]| node.cli(&[&["mode", "strict", "--dry-run"], more].concat());
    let blockers = || dry_run(&["--json"]).json()["not_strong"].as_array().unwrap().clone();
    // The control: nothing has crossed the network yet.
    let of_port = |all: &[Value]| all.iter().any(|b| b["server"] == "10.77.0.2:1001");
    assert!(!of_port(&blockers()));
    exchange(&mut connected(&wire, 1001), GET);
    row(&node, "http", |row| row.server.port() == 1001 && row.seen.level == Level::Plaintext);
    let all = blockers();
    assert!(of_port(&all), "{all:#?}");
    let text = dry_run(&[]).out;
    for said in ["that is not strong", "10.77.0.2:1001", "http", "[[dial]]"] {
        assert!(text.contains(said), "{said} is not in\n{text}");
    }
}

#[test]
fn a_stop_during_the_start_leaves_nothing_behind() {
    if !can(&[]) {
        return;
    }
    let (world, wire) = (World::new(), Wire::new());
    let client = wire.client.clone();
    let mut node = watching(&world, &client, "n");
    let whole = Instant::now();
    node.kid().signal(Signal::TERM);
    assert!(node.kid().ended(PATIENCE).is_some_and(|status| status.success()));
    say(format!("a stop takes {:?}", whole.elapsed()));
    for delay in [0, 20, 50, 100, 200, 300, 500, 800] {
        node.start();
        std::thread::sleep(ms(delay));
        node.kid().signal(Signal::TERM);
        let status = node.kid().ended(PATIENCE).unwrap_or_else(|| panic!("it runs: {delay} ms"));
        // Before the node handles signals, the kernel ends it.
        let by_signal = status.signal() == Some(Signal::TERM.as_raw());
        assert!(status.success() || by_signal, "{delay} ms: {status}\n{}", node.log());
        say(format!("SIGTERM after {delay} ms: {status}"));
        wait_for("no process and no rule is left", || {
            let mut pids = Command::new("ip");
            pids.args(["netns", "pids", &client]);
            Ran::of(&mut pids, "").good().out.is_empty() && tables(&client).is_empty()
        });
    }
    // The control: it starts, and watches.
    start(&mut node);
    assert!(is_watched(&client));
}
