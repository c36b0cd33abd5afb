//! `transparent`: the program behind a service sees its caller's address.

use std::fs;
use std::process::Command;

use rustix::process::Signal;

use super::intercept::{CANARY, Capture, SERVER, Wire, run};
use super::rig::*;

/// The number of packets from loopback addresses, which no wire may carry.
fn loopbacks(capture: Capture) -> usize {
    let bytes = capture.bytes();
    // IPv6 header: version 6, ..., hop limit, source. TCP is protocol 6, and the hop limit is 64 here.
    let v6 = [&[6, 64][..], &std::net::Ipv6Addr::LOCALHOST.octets()].concat();
    let v4 = |w: &[u8]| w[..2] == [64, 6] && w[4..8] == [127, 0, 0, 1];
    let v6 = bytes.windows(v6.len()).filter(|w| **w == v6).count();
    v6 + bytes.windows(8).filter(|w| v4(w)).count()
}

/// The program behind a `transparent` service sees its caller's address. The control is the same program behind a service
/// without it.
#[test]
fn a_backend_sees_its_callers_address_and_sends_no_plaintext() {
    if !has(&["ip", "nft", "tcpdump", "curl", "python3", "redis-server", "redis-cli"]) || !is_root()
    {
        return;
    }
    let world = World::new();
    let wire = Wire::new();
    let (client, server) = (wire.client.clone(), wire.server.clone());
    // Programs on loopback only, one per address family.
    fs::create_dir(world.path("www")).unwrap();
    fs::write(world.path("www/canary"), CANARY).unwrap();
    let serve = |host: &str| {
        let mut python = Command::new("python3");
        python.args(["-u", "-m", "http.server", "--bind", host, "8080", "--directory"]);
        python.arg(world.path("www"));
        let log = world.path(&format!("http-{}.log", host.len()));
        Kid::start(&mut within(Some(&server), python), &log)
    };
    let web = [serve("127.0.0.1"), serve("::1")];
    let mut redis = Command::new(find("redis-server").unwrap());
    redis.args([
        "--port",
        "6379",
        "--save",
        "",
        "--protected-mode",
        "no",
        "--bind",
        "127.0.0.1",
        "::1",
    ]);
    redis.arg("--dir").arg(world.path("www"));
    let _redis = Kid::start(&mut within(Some(&server), redis), &world.path("redis.log"));

    let service = |name: &str, host: &str, port: u16, to: &str, more: &str| {
        format!(
            "[[service]]\nname = \"{name}\"\nlisten = \"{host}:{port}\"\nforward = {to}\n\
             allow = [\"node/client\", \"node/auth\"]\n{more}"
        )
    };
    let both = |port: u16| format!("[\"127.0.0.1:{port}\", \"[::1]:{port}\"]");
    let shown = "transparent = true\n";
    // The client's address is in no protected network: only the rule for responses keeps these packets in.
    let sections = |web: &str| {
        format!(
            "[authority]\nlisten = \"10.77.0.2:7400\"\n{}{}{}{}{}{}[intercept]\nmode = \"observe\"\n",
            service("web", SERVER[0], 7080, &both(8080), web),
            service("web-6", SERVER[1], 7080, &both(8080), web),
            service("cache", SERVER[0], 7379, &both(6379), shown),
            service("cache-6", SERVER[1], 7379, &both(6379), shown),
            service("plain", SERVER[0], 7380, "\"127.0.0.1:6379\"", ""),
            service("no-6", SERVER[1], 7381, "\"127.0.0.1:6379\"", shown),
        )
    };
    let mut far = world.node("auth", &sections(shown));
    far.netns = Some(server.clone());
    far.start();
    far.ready();
    let dial = |n: u16, service: &str| {
        format!("[[dial]]\nlisten = \"127.0.0.1:{n}\"\nservice = \"{service}\"\n")
    };
    let names = ["web", "web-6", "cache", "cache-6", "plain", "no-6"];
    let dials: String = (0..).zip(names).map(|(n, name)| dial(9000 + n, name)).collect();
    let mut near = world.node("client", &dials);
    fs::write(near.token_file(), far.token("client", &[])).unwrap();
    near.netns = Some(client.clone());
    near.start();
    near.ready();
    names.iter().for_each(|name| near.knows(name));

    let list = |port: u16| {
        let port = port.to_string();
        run(&client, "redis-cli", &["-p", &port, "client", "list"]).out
    };
    let sees = |port: u16, caller: &str| list(port).contains(&format!(" addr={caller}:"));
    wait_for("the routes are in force", || sees(9002, "10.77.0.1"));
    assert!(sees(9003, "[fd77::1]"), "{}", list(9003));
    assert!(sees(9004, "127.0.0.1"), "the twin, without the setting: {}", list(9004));
    // Many sessions over one connection of the mesh: each has a port, either the same or another one.
    assert!((0..20).all(|_| sees(9002, "10.77.0.1") && sees(9003, "[fd77::1]")));
    let curl = |port: u16| {
        let ran =
            run(&client, "curl", &["-sS", "-m", "3", &format!("http://127.0.0.1:{port}/canary")]);
        (ran.code == Some(0)).then_some(ran.out)
    };
    for (port, log, caller) in [(9000, &web[0], "10.77.0.1"), (9001, &web[1], "fd77::1")] {
        assert_eq!(curl(port).as_deref(), Some(CANARY));
        assert!(log.log().contains(&format!("{caller} - - [")), "{}", log.log());
    }
    // No program for the caller's address family.
    assert_eq!(list(9005).trim(), "", "{}", list(9005));
    let refusals = far.status()["relay"]["refusals"].to_string();
    assert!(refusals.contains("fd77::1") && refusals.contains("has no IPv6 backend"), "{refusals}");
    // A caller on the same machine has one of the machine's addresses.
    far.write(&(sections(shown) + &dial(9002, "cache") + &dial(9003, "cache-6")));
    far.cli(&["reload"]).good();
    let own = |port: &str| run(&server, "redis-cli", &["-p", port, "client", "list"]).out;
    wait_for("a caller here", || own("9002").contains(" addr=10.77.0.2:"));
    assert!(own("9003").contains(" addr=[fd77::2]:"), "{}", own("9003"));

    // A service that is no longer transparent: open sessions continue, new ones come from loopback.
    let slow = "import socket,time\ns=socket.create_connection((\"127.0.0.1\",9003))\nf=s.makefile(\"rw\")\nprint(\"go\",flush=True)\n\
        while 1:\n f.write(\"PING\\r\\n\")\n f.flush()\n print(f.readline().strip(),flush=True)\n time.sleep(.05)\n";
    let mut holder = Command::new("python3");
    holder.args(["-c", slow]);
    let holder = Kid::start(&mut within(Some(&client), holder), &world.path("holder.log"));
    let pongs = || holder.log().matches("PONG").count();
    wait_for("it is running", || pongs() > 3);
    far.write(&sections(shown).replace("[::1]:6379", "[::1]:6380"));
    far.cli(&["reload"]).good();
    std::thread::sleep(ms(1000));
    let before = pongs();
    wait_for("it keeps running", || pongs() > before + 3);
    drop(holder);
    far.write(&sections(shown));
    far.cli(&["reload"]).good();

    // Another program removes rules: they are restored, and until then nothing leaves.
    let capture = Capture::at("v2", &wire, &world, "rules-gone");
    let mended = || far.status()["intercept"]["mended"].as_u64().unwrap();
    for line in [
        "rule del priority 87",
        "-6 rule del priority 87",
        "route flush table 87",
        "-6 route flush table 87",
    ] {
        let before = mended();
        let harm = || run(&server, "ip", &line.split(' ').collect::<Vec<_>>());
        harm().good();
        let mut tries = 0;
        wait_for(line, || {
            // If rules are being applied at that moment, they are restored by that and not counted.
            tries += 1;
            if tries % 50 == 0 {
                harm();
            }
            mended() > before
        });
        wait_for("callers are seen again", || sees(9002, "10.77.0.1") && sees(9003, "[fd77::1]"));
    }
    // If nothing restores them, the responses to a SYN are dropped, and the caller is not served.
    let keeper = only_child(only_child(far.pid()));
    let keeper = rustix::process::Pid::from_raw(keeper as i32).unwrap();
    let stop = |signal| rustix::process::kill_process(keeper, signal).unwrap();
    stop(Signal::STOP);
    for family in ["-4", "-6"] {
        while run(&server, "ip", &[family, "rule", "del", "priority", "87"]).code == Some(0) {}
        // If the kernel were configured to let IPv4 out, this would not stop it.
        run(&server, "sysctl", &["-qw", "net.ipv4.conf.eth0.route_localnet=1"]).good();
    }
    assert_eq!((list(9002), list(9003)), (String::new(), String::new()));
    assert_eq!(loopbacks(capture), 0);
    // The control: without our table the reply leaves the machine.
    let capture = Capture::at("v2", &wire, &world, "control");
    run(&server, "nft", &["delete", "table", "inet", "wiretight"]).good();
    let _ = list(9003);
    assert!(loopbacks(capture) > 0);
    stop(Signal::CONT);
    wait_for("callers are seen again", || sees(9002, "10.77.0.1") && sees(9003, "[fd77::1]"));

    // A rule of another program in our place: it stays, and these services are refused.
    for line in ["-4 rule del priority 87", "-4 rule add priority 87 from 192.0.2.1 lookup main"] {
        let _ = run(&server, "ip", &line.split(' ').collect::<Vec<_>>());
    }
    wait_for("it is reported", || {
        far.status()["intercept"]["error"].to_string().contains("in use by another program")
    });
    let rules = || run(&server, "ip", &["rule"]).out + &run(&server, "ip", &["-6", "rule"]).out;
    assert!(rules().contains("from 192.0.2.1"));
    wait_for("it is refused", || list(9002).is_empty());
    run(&server, "ip", &["rule", "del", "priority", "87", "from", "192.0.2.1"]).good();
    wait_for("callers are seen again", || sees(9002, "10.77.0.1"));

    // They are removed with the rules, and restored with them at boot.
    let kept = fs::read(far.state().join("rules.json")).unwrap();
    let file = far.file();
    let verb = |args: &[&str]| {
        let mut command = wiretight();
        command.args(args).arg("--config").arg(&file);
        Ran::of(&mut within(Some(&server), command), "").good()
    };
    let table = || {
        let of = |f| run(&server, "ip", &[f, "route", "show", "table", "87"]).out;
        of("-4") + &of("-6")
    };
    assert!(rules().contains("lookup 87") && table().contains("local default"), "{}", table());
    verb(&["down", "--yes"]);
    assert!(!rules().contains("lookup 87") && table().is_empty(), "{}{}", rules(), table());
    far.kill();
    fs::write(far.state().join("rules.json"), kept).unwrap();
    verb(&["rules", "load"]);
    assert!(rules().contains("from ::1 iif lo") && table().contains("local default"));
    assert!(verb(&["rules", "show"]).out.contains("[::1]:6379"));
}

/// A node's child maintains its rules; the child of that process does the work.
fn only_child(pid: u32) -> u32 {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children.trim().parse().unwrap()
}
