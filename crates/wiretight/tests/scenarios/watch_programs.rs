//! `[watch]` with real programs of about thirty kinds, all at once on one machine: the protocol, the level, the program and
//! the bytes of each.
//!
//! The test takes about 15 s. The programs start together and their clients run together; what takes time are the clients
//! that wait (a call by SIP, NTP), and the round in which the node says what its relay carries.

mod table;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use wiretight::watch::host::Row;
use wiretight_scan::judge::Level::*;
use wiretight_scan::passive::totals::Way;
use wiretight_scan::passive::{Grade, Transport};

use super::intercept::{Capture, Group, Wire, run};
use super::rig::*;
use super::watch_host::{CLIENT, SERVER, can, listing, start};
use super::watch_losses::losses;
use table::{Expected, PROGRAMS, Port, Program};

/// The programs that the scripts call.
const NEEDED: &str = "nginx curl redis-server redis-cli initdb postgres psql mariadbd mariadb postfix dovecot vsftpd slapd \
    ldapsearch prosody inspircd sshd ssh ssh-keygen dnsmasq dig caddy curl-cffi rsyslogd logger rpcbind \
    rpcinfo memcached socat openssl wireguard-go wg openvpn krb5kdc kdb5_util kinit snmpd snmpget \
    chronyd mosquitto mosquitto_pub telnetd telnet sipp git ganesha.nfsd nfs-ls unshare ss";

/// Of the node itself: the edge, and a service of the mesh.
const EDGE: u16 = 8444;
const SERVICE: u16 = 7080;
const AUTHORITY: u16 = 7400;
const OWN: [(Port, &str); 3] = [
    ((Transport::Tcp, EDGE), "tls"),
    ((Transport::Udp, EDGE), "quic"),
    ((Transport::Tcp, SERVICE), "wiretight"),
];

/// The folder, and what the scripts know.
struct Scripts {
    folder: String,
    path: String,
    python: String,
}

impl Scripts {
    fn new(world: &World) -> Scripts {
        let folder = world.path("programs");
        fs::create_dir(&folder).unwrap();
        // Servers that drop root read their certificates here.
        for dir in [&world.path(""), &folder] {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let mut openssl = Command::new("openssl");
        openssl.current_dir(&folder).args(["req", "-x509", "-newkey", "rsa:2048", "-nodes"]);
        openssl.args(["-days", "2", "-subj", "/CN=www.test", "-addext"]);
        openssl.arg(format!("subjectAltName=DNS:www.test,IP:{SERVER}"));
        Ran::of(openssl.args(["-keyout", "key.pem", "-out", "cert.pem"]), "").good();
        fs::set_permissions(folder.join("key.pem"), fs::Permissions::from_mode(0o644)).unwrap();
        let postgres = find("postgres").unwrap();
        let path = std::env::var("PATH").unwrap_or_default();
        Scripts {
            path: format!(
                "{path}:/usr/sbin:/usr/lib/postfix/sbin:{}",
                postgres.parent().unwrap().display()
            ),
            python: find("curl-cffi").unwrap().with_file_name("python").display().to_string(),
            folder: folder.display().to_string(),
        }
    }

    /// A script in a process namespace, so that its children end with it, and with an empty `/run`. The shell stays the
    /// first process there: one that changes its user is no longer ended together with `unshare`.
    fn command(&self, ns: &str, name: &str, script: &str, group: Option<&Group>) -> Command {
        let folder = format!("{}/{name}", self.folder);
        fs::create_dir(&folder).unwrap();
        let join = group.map_or(String::new(), |group| {
            format!("echo 0 > {}/cgroup.procs\n", group.0.display())
        });
        let script =
            format!("{join}mount -t tmpfs none /run\ncd {folder}\n{}\nexit", unindented(script));
        let mut command = Command::new("unshare");
        command.args(["-mpf", "--kill-child", "--mount-proc", "sh", "-ec", &script]);
        command.envs([
            ("T", &*self.folder),
            ("S", SERVER),
            ("C", CLIENT),
            ("PYPI", &self.python),
            ("PATH", &self.path),
        ]);
        within(Some(ns), command)
    }
}

/// Without the indentation of the first line.
fn unindented(script: &str) -> String {
    let lines = script.trim_start_matches('\n');
    let indent = lines.len() - lines.trim_start_matches(' ').len();
    let cut = |line: &str| line.get(indent..).unwrap_or(line.trim_start()).to_owned();
    lines.lines().map(cut).collect::<Vec<_>>().join("\n")
}

/// An independent count: the packets at each port of the server's network card, by rules of nftables.
fn count(ns: &str, ports: &[Port]) {
    let mut rules = "add table inet count
        add chain inet count in { type filter hook input priority 0; }
        add chain inet count out { type filter hook output priority 0; }"
        .to_owned();
    for (transport, port) in ports {
        let name = format!("{transport}_{port}");
        rules += &format!(
            "\nadd counter inet count {name}
            add rule inet count in iifname eth0 {transport} dport {port} counter name {name}
            add rule inet count out oifname eth0 {transport} sport {port} counter name {name}"
        );
    }
    let mut nft = Command::new("nft");
    Ran::of(
        &mut within(Some(ns), {
            nft.args(["-f", "-"]);
            nft
        }),
        &rules,
    )
    .good();
}

fn counted(ns: &str) -> BTreeMap<String, u64> {
    let listed =
        run(ns, "nft", &["-j", "list", "counters", "table", "inet", "count"]).good().json();
    let counters = listed["nftables"].as_array().unwrap().iter().map(|entry| &entry["counter"]);
    let named =
        counters.filter_map(|counter| counter["name"].as_str().zip(counter["bytes"].as_u64()));
    named.map(|(name, bytes)| (name.to_owned(), bytes)).collect()
}

/// Whether all sockets of a server are there.
fn listens(sockets: &str, program: &Program) -> bool {
    program.listens.split(' ').all(|wanted| {
        let (transport, port) = wanted.split_once('/').unwrap();
        sockets.lines().any(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some(transport)
                && words.nth(3).is_some_and(|at| at.ends_with(&format!(":{port}")))
        })
    })
}

/// What is known of the connections from the client to a port.
fn at(rows: &[Row], at: Port) -> Vec<&Row> {
    let is_here = |row: &&Row| row.way == Way::In && (row.transport, row.server.port()) == at;
    rows.iter().filter(is_here).collect()
}

fn same(expected: &Expected, row: &Row) -> bool {
    let starttls = row.seen.starttls.map(|(_, state)| state);
    (expected.protocol, expected.level) == (&*row.seen.protocol, row.seen.level)
        && (expected.starttls.is_none() || expected.starttls == starttls)
}

/// Why a program's rows are not those that are expected.
fn wrong(program: &Program, rows: &[Row]) -> Option<String> {
    for expected in program.flows {
        let rows = at(rows, expected.at);
        let of_port: Vec<_> = program.flows.iter().filter(|e| e.at == expected.at).collect();
        let fits = |row: &&Row| of_port.iter().any(|expected| same(expected, row));
        if !rows.iter().any(|row| same(expected, row)) || !rows.iter().all(fits) {
            return Some(format!("{}: not {of_port:#?}, but {rows:#?}", program.name));
        }
    }
    None
}

/// Why the rows of what the node carries are not right.
fn not_own((port, protocol): &(Port, &str), rows: &[Row]) -> Option<String> {
    let rows = at(rows, *port);
    let strong = |row: &&Row| (&*row.seen.protocol, row.seen.level) == (*protocol, Strong);
    // An idle connection of the relay is not known to be its own.
    let carried = rows.iter().any(|row| row.seen.grade == Grade::Carried);
    let right = carried && rows.iter().all(strong);
    (!right).then(|| format!("{protocol} of the node: {rows:#?}"))
}

#[test]
fn programs_of_thirty_kinds_are_told_apart_with_their_levels_and_bytes() {
    if !can(&NEEDED.split(' ').collect::<Vec<_>>()) {
        return;
    }
    let (world, wire) = (World::new(), Wire::new());
    let (client, server) = (wire.client.clone(), wire.server.clone());
    let scripts = Scripts::new(&world);
    let log = |name: &str| world.path(&format!("{name}.log"));
    let groups: Vec<_> = PROGRAMS.iter().map(|program| Group::new(program.name)).collect();
    let started = Instant::now();
    let serve = |(program, group): (&Program, &Option<Group>)| {
        let mut command = scripts.command(&server, program.name, program.serve, group.as_ref());
        Kid::start(&mut command, &log(program.name))
    };
    let mut servers: Vec<Kid> = PROGRAMS.iter().zip(&groups).map(serve).collect();
    let flows = PROGRAMS.iter().flat_map(|program| program.flows);
    let mut ports: Vec<Port> = flows.map(|flow| flow.at).collect();
    ports.dedup();
    count(&server, &ports);

    // The node that watches is also an authority, has a site, and carries a service.
    let key = world.path("site.key");
    let mut install = Command::new("install");
    install.args(["-m", "600"]).arg(world.path("programs/key.pem")).arg(&key);
    Ran::of(&mut install, "").good();
    let cert = world.path("programs/cert.pem");
    let sections = format!(
        "[authority]\nlisten = \"{SERVER}:{AUTHORITY}\"\n[edge]\nhttps = \"{SERVER}:{EDGE}\"\nhttp = []\n\
         [[site]]\nnames = [\"www.test\"]\nto = \"127.0.0.1:80\"\ncert = \"{}\"\nkey = \"{}\"\n\
         [[service]]\nname = \"cache\"\nlisten = \"{SERVER}:{SERVICE}\"\nforward = \"127.0.0.1:6379\"\n\
         allow = [\"node/client\"]\n[watch]\n",
        cert.display(),
        key.display()
    );
    let mut node = world.node("auth", &sections);
    node.netns = Some(server.clone());
    start(&mut node);
    let dial = "[[dial]]\nlisten = \"127.0.0.1:6379\"\nservice = \"cache\"\n";
    let mut near = world.node("client", dial);
    fs::write(near.token_file(), node.token("client", &[])).unwrap();
    near.netns = Some(client.clone());
    near.start();
    near.ready();
    near.knows("cache");
    wait_for("all servers listen", || {
        let sockets = run(&server, "ss", &["-Hlntu"]).good().out;
        let late = |(program, kid): (&Program, &mut Kid)| {
            assert_eq!(kid.ended(Duration::ZERO), None, "{} ended: {}", program.name, kid.log());
            !listens(&sockets, program)
        };
        !PROGRAMS.iter().zip(&mut servers).any(late)
    });
    say(format!("{} servers listen after {:?}", servers.len(), started.elapsed()));

    let mirror = Capture::at("v2", &wire, &world, "mirror");
    const BROWSE: &str = r#"
        $PYPI - www.test:8444:$S <<END
        import sys
        from curl_cffi import CurlHttpVersion, CurlOpt, requests
        for version in CurlHttpVersion.V2_0, CurlHttpVersion.V3ONLY:
            answer = requests.get("https://www.test:8444/file", impersonate="chrome", http_version=version,
                                  verify=False, timeout=30, curl_options={CurlOpt.RESOLVE: [sys.argv[1]]})
            assert len(answer.content) == 1000000, (answer.status_code, len(answer.content))
        END
        redis-cli -h 127.0.0.1 set k v"#;
    let calls = PROGRAMS.iter().map(|program| (program.name, program.call));
    let (scripts, client) = (&scripts, &client);
    std::thread::scope(|scope| {
        let call = |(name, script): (&'static str, &'static str)| {
            scope.spawn(move || {
                let begun = Instant::now();
                let mut command = scripts.command(client, &format!("{name}.client"), script, None);
                let ran = Ran::of(&mut command, "");
                (name, ran, begun.elapsed())
            })
        };
        let running: Vec<_> = calls.chain([("node", BROWSE)]).map(call).collect();
        for ended in running {
            let (name, ran, took) = ended.join().unwrap();
            assert_eq!(ran.code, Some(0), "{name}, after {took:?}: {}", ran.all());
        }
    });
    say(format!("all clients have ended after {:?}", started.elapsed()));

    // Protocols and levels. What the node carries is known after its next round.
    let end = Instant::now() + Duration::from_secs(20);
    let all = loop {
        let all = listing(&node);
        let wrong = PROGRAMS.iter().filter_map(|program| wrong(program, &all.rows));
        let wrong: Vec<_> =
            wrong.chain(OWN.iter().filter_map(|own| not_own(own, &all.rows))).collect();
        if wrong.is_empty() {
            break all;
        }
        assert!(Instant::now() < end, "{}", wrong.join("\n"));
        std::thread::sleep(ms(200));
    };
    say(format!("all rows are right after {:?}", started.elapsed()));
    // Nothing else is encrypted, but for the stream between the nodes.
    let known = |row: &&Row| {
        ports.contains(&(row.transport, row.server.port()))
            || [EDGE, SERVICE, AUTHORITY].contains(&row.server.port())
    };
    let others: Vec<_> = all.rows.iter().filter(|row| !known(row)).collect();
    assert!(others.iter().all(|row| row.seen.level <= Plaintext), "{others:#?}");

    // Bytes: of each port, and all together.
    let counted = counted(&server);
    for port @ (transport, number) in &ports {
        let rows = at(&all.rows, *port);
        let bytes: u64 = rows.iter().flat_map(|row| row.bytes).sum();
        let counted = counted[&format!("{transport}_{number}")];
        assert!(
            counted > 0 && bytes.abs_diff(counted) <= (counted / 100).max(60),
            "{bytes} of {counted}: {rows:#?}"
        );
    }
    let gaps = all.totals.gaps;
    say(format!("{gaps:?}, {:?}", all.totals.by_level()));
    assert_eq!((gaps.resyncs, gaps.lost_packets), (0, 0));
    let missed = gaps.missed_bytes;
    assert!(missed * 100 <= gaps.interface_bytes, "{gaps:?}");
    let levels = all.totals.by_level();
    let counted: u64 = levels.values().map(|count| count.bytes).sum();
    assert!(
        counted.abs_diff(gaps.interface_bytes) * 100 <= gaps.interface_bytes,
        "{counted} {gaps:?}"
    );

    // Programs: a server in a control group of its own has its name. The socket of a single transfer by FTP may be closed
    // before its program is looked up.
    for (program, group) in PROGRAMS.iter().zip(&groups) {
        let Some(group) = group else { continue };
        for row in program.flows.iter().flat_map(|flow| at(&all.rows, flow.at)) {
            let found = row.program.as_ref().and_then(|p| p.control_group.as_deref());
            let short = found.is_none() && row.server.port() == 2121;
            let right = found.is_some_and(|found| found.ends_with(&group.name()));
            assert!(right || short, "{}: {row:#?}", program.name);
        }
    }
    say(format!("done after {:?}", started.elapsed()));
    losses(&world, &mirror.bytes(), [10, 77, 0, 1]);
    say(format!("losses after {:?}", started.elapsed()));
    drop((node, near, servers));
    say(format!("stopped after {:?}", started.elapsed()));
}
