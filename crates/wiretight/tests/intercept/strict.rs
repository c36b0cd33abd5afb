//! What strict mode lets through, and what it blocks.

use serde_json::{Value, json};
use wiretight_proxy::intercept::rules::{Direction, Mode, Pass, Protocol};

use super::rig::{CANARY, CANARY_IN, MARK, Net, can, good, rules};

/// The addresses on which programs of the server answer.
fn server() -> Value {
    let mut all = Vec::new();
    for addr in ["10.77.0.2", "fd77::2"] {
        for port in [5000, 5432] {
            all.push(json!({"proto": "tcp", "addr": addr, "port": port}));
            all.push(json!({"proto": "udp", "addr": addr, "port": port}));
        }
        all.push(json!({"proto": "udp", "addr": addr, "port": 9999}));
    }
    for addr in ["10.77.0.53", "fd77::53"] {
        all.push(json!({"proto": "udp", "addr": addr, "port": 53}));
        all.push(json!({"proto": "tcp", "addr": addr, "port": 53}));
    }
    json!(all)
}

/// The addresses on which programs of the client answer: 7432 is ours, 7433 is another program's on a port of the mesh.
fn client() -> Value {
    let mut all = Vec::new();
    for addr in ["0.0.0.0", "::"] {
        for port in [22, 5000, 7433, 9100] {
            all.push(json!({"proto": "tcp", "addr": addr, "port": port}));
        }
        all.push(json!({"proto": "tcp", "addr": addr, "port": 7432, "mark": MARK}));
        all.push(json!({"proto": "udp", "addr": addr, "port": 5000}));
        all.push(json!({"proto": "udp", "addr": addr, "port": 7432, "mark": MARK}));
    }
    json!(all)
}

/// Plaintext in every form that a program can send.
fn plaintext(four: &str, six: &str, canary: &str) -> Vec<Value> {
    let mut all = Vec::new();
    for addr in [four, six] {
        all.push(json!({"proto": "tcp", "addr": addr, "port": 5000, "payload": canary}));
        all.push(json!({"proto": "udp", "addr": addr, "port": 5000, "payload": canary}));
        // Fragmented.
        all.push(
            json!({"proto": "udp", "addr": addr, "port": 5000, "payload": canary, "times": 200}),
        );
        all.push(json!({"proto": "ping", "addr": addr, "payload": canary}));
        all.push(json!({"proto": "253", "addr": addr, "payload": canary}));
    }
    // Behind an extension header.
    all.push(
        json!({"proto": "udp", "addr": six, "port": 5000, "payload": canary, "options": true}),
    );
    all
}

fn ok(said: &[String]) -> usize {
    said.iter().filter(|s| s.starts_with("ok") || *s == "sent").count()
}

#[test]
fn plaintext_crosses_without_the_rules_and_not_with_them() {
    if !can() {
        return;
    }
    let net = Net::bridged();
    let (_server, client) = (net.serve("s", server()), net.serve("c", client()));
    let outward = plaintext("10.77.0.2", "fd77::2", CANARY);
    let inward = plaintext("10.77.0.1", "fd77::1", CANARY_IN);

    // The control: without rules everything crosses.
    let wire = net.record();
    let (out, into) = (net.probe("c", &outward), net.probe("s", &inward));
    assert_eq!((ok(&out), ok(&into)), (outward.len(), inward.len()), "{out:?} {into:?}");
    let (times, _) = wire.found(CANARY);
    assert!(times > outward.len(), "the recording does not see what is there: {times}");
    let mut held = Vec::new();
    for (machine, four, six) in [("c", "10.77.0.2", "fd77::2"), ("s", "10.77.0.1", "fd77::1")] {
        for addr in [four, six] {
            let canary = if machine == "c" { CANARY } else { CANARY_IN };
            let spec = json!({"addr": addr, "port": 5000, "payload": canary});
            assert_eq!(net.hold(machine, spec.clone()).go(), format!("ok {canary}"), "the control");
            held.push(net.hold(machine, spec));
        }
    }
    let before = client.end();
    assert!(before.contains(CANARY_IN), "{before}");
    let client = net.serve("c", self::client());
    // A connection whose both ends stay open.
    held.push(net.hold("s", json!({"addr": "10.77.0.1", "port": 5000, "payload": CANARY_IN})));

    let mut rules = rules(Mode::Strict);
    rules.management.push(2222);
    rules.listens.insert(7433);
    net.load(&rules);
    let wire = net.record();
    let out = net.probe("c", &outward);
    assert!(out.iter().all(|s| s == "late" || s == "sent" || s.starts_with("error")), "{out:?}");
    // The source port of an exception allows nothing.
    for (from, proto) in [(2222, "tcp"), (53, "udp"), (67, "udp")] {
        let spec = json!({"proto": proto, "addr": "10.77.0.2", "port": 5000, "from": from, "payload": CANARY});
        assert_eq!(net.probe_one("c", spec), "late");
    }
    let into = net.probe("s", &inward);
    assert_eq!(into.iter().filter(|s| s.starts_with("ok")).count(), 0, "{into:?}");
    // A program on a port of the mesh, without the mark.
    for addr in ["10.77.0.1", "fd77::1"] {
        let spec = json!({"proto": "tcp", "addr": addr, "port": 7433, "payload": CANARY_IN});
        assert_eq!(net.probe_one("s", spec), "late");
    }
    for held in &mut held {
        let said = held.go();
        assert!(!said.starts_with("ok"), "a connection from before goes on: {said}");
    }
    let (times, bytes) = wire.found(CANARY);
    assert_eq!(times, 0, "plaintext on the wire");
    assert!(bytes > 1000, "the recording saw what came from the server: {bytes}");
    let heard = client.end();
    assert!(!heard.contains(CANARY_IN), "a program got plaintext: {heard}");
    let (dropped_in, dropped_out) = net.dropped();
    assert!(dropped_in > 10 && dropped_out > 10, "{dropped_in} {dropped_out}");
}

#[test]
fn strict_mode_passes_what_it_must() {
    if !can() {
        return;
    }
    let net = Net::bridged();
    let (_server, _client) = (net.serve("s", server()), net.serve("c", client()));
    let mut rules = rules(Mode::Strict);
    let pass = |protocol, network: &str, port, direction| Pass {
        protocol,
        network: network.parse().unwrap(),
        port,
        direction,
    };
    rules.passes = vec![
        pass(Protocol::Tcp, "10.77.0.0/24", Some(9100), Direction::In),
        pass(Protocol::Tcp, "fd77::/64", Some(9100), Direction::In),
        pass(Protocol::Udp, "10.77.0.2", Some(9999), Direction::Out),
        pass(Protocol::Udp, "fd77::2", Some(9999), Direction::Out),
        pass(Protocol::Icmp, "10.77.0.2", None, Direction::Out),
        pass(Protocol::Icmp, "fd77::2", None, Direction::Out),
        pass(Protocol::Tcp, "10.77.0.2", Some(5432), Direction::Out),
    ];
    // Loaded by the child, so that both tables apply.
    let mut keeper = net.keeper();
    keeper.apply(&rules);
    assert_eq!(keeper.health()["guarded"], json!(true));
    // ARP and neighbour discovery must work from scratch.
    net.script("for n in $c $s; do ip -n $n neigh flush all; done");
    let mut out = Vec::new();
    let mut into = Vec::new();
    for (peer, resolver, own, lo) in [
        ("10.77.0.2", "10.77.0.53", "10.77.0.1", "127.0.0.1"),
        ("fd77::2", "fd77::53", "fd77::1", "::1"),
    ] {
        for proto in ["udp", "tcp"] {
            out.push(json!({"proto": proto, "addr": resolver, "port": 53, "payload": "dns"}));
            out.push(json!({"proto": proto, "addr": peer, "port": 5000, "payload": "ours", "mark": MARK}));
            out.push(json!({"proto": proto, "addr": own, "port": 5000, "payload": "here"}));
            out.push(json!({"proto": proto, "addr": lo, "port": 5000, "payload": "here"}));
            into.push(json!({"proto": proto, "addr": own, "port": 7432, "payload": "to us"}));
        }
        out.push(json!({"proto": "udp", "addr": peer, "port": 9999, "payload": "pass"}));
        out.push(json!({"proto": "ping", "addr": peer, "payload": "pass"}));
        into.push(json!({"proto": "tcp", "addr": own, "port": 22, "payload": "ssh"}));
        into.push(json!({"proto": "tcp", "addr": own, "port": 9100, "payload": "pass"}));
    }
    out.push(json!({"proto": "tcp", "addr": "10.77.0.2", "port": 5432, "payload": "pass"}));
    for (machine, specs) in [("c", out), ("s", into)] {
        let said = net.probe(machine, &specs);
        for (spec, said) in specs.iter().zip(&said) {
            assert!(said.starts_with("ok"), "{machine} {spec}: {said}");
        }
    }
    assert_eq!(net.dropped(), (0, 0), "{}", good(net.on("c", "nft").args(["list", "ruleset"])));
    // The controls: traffic just outside of each exception.
    let beside = [
        ("c", json!({"proto": "udp", "addr": "10.77.0.2", "port": 53, "payload": "x"})),
        ("c", json!({"proto": "udp", "addr": "10.77.0.53", "port": 54, "payload": "x"})),
        (
            "c",
            json!({"proto": "tcp", "addr": "10.77.0.2", "port": 5000, "payload": "x", "mark": MARK + 1}),
        ),
        ("c", json!({"proto": "tcp", "addr": "fd77::2", "port": 5432, "payload": "x"})),
        ("c", json!({"proto": "ping", "addr": "10.77.0.53", "payload": "x"})),
        ("s", json!({"proto": "tcp", "addr": "10.77.0.1", "port": 7433, "payload": "x"})),
        ("s", json!({"proto": "udp", "addr": "10.77.0.1", "port": 5000, "payload": "x"})),
        ("s", json!({"proto": "ping", "addr": "10.77.0.1", "payload": "x"})),
    ];
    for (machine, spec) in beside {
        assert_eq!(net.probe_one(machine, spec.clone()), "late", "{machine} {spec}");
    }
    // No program listens on a port of the mesh: the peer learns it at once from a RST.
    rules.listens = [7432, 7434].into();
    keeper.apply(&rules);
    for addr in ["10.77.0.1", "fd77::1"] {
        let spec = json!({"proto": "tcp", "addr": addr, "port": 7434, "payload": "x"});
        assert_eq!(net.probe_one("s", spec), "refused");
    }
}

#[test]
fn path_mtu_discovery_works() {
    if !can() {
        return;
    }
    let net = Net::routed();
    let specs = [("10.77.2.2", 5000), ("fd77:2::2", 5000)]
        .map(|(addr, port)| json!({"proto": "tcp", "addr": addr, "port": port}));
    let _server = net.serve("s", json!(specs));
    net.load(&rules(Mode::Strict));
    let payload = "x".repeat(30_000);
    for (addr, family) in [("10.77.2.2", "-4"), ("fd77:2::2", "-6")] {
        // The server would announce an MSS that fits its own link, which would be enough: make it announce more.
        let through = if family == "-4" { "10.77.2.254" } else { "fd77:2::254" };
        net.script(&format!("ip -n $s {family} route replace default via {through} advmss 1400"));
        let spec = json!({
            "proto": "tcp", "addr": addr, "port": 5000, "payload": payload, "mark": MARK, "patience": 10,
        });
        let said = net.probe_one("c", spec);
        assert!(said.starts_with("ok"), "{said}");
        let route = good(net.on("c", "ip").args([family, "route", "get", addr]));
        assert!(route.contains("mtu 1300"), "the router's word was not heard: {route}");
    }
    // The control: without the exception the router's message is dropped, and the transfer hangs.
    for rule in ["icmp type destination-unreachable drop", "icmpv6 type packet-too-big drop"] {
        assert_eq!(net.nft(&[&format!("insert rule inet wiretight input {rule}")]).0, 0);
    }
    for (addr, family) in [("10.77.2.2", "-4"), ("fd77:2::2", "-6")] {
        net.script(&format!("ip -n $c {family} route flush cache"));
        let spec =
            json!({"proto": "tcp", "addr": addr, "port": 5000, "payload": payload, "mark": MARK});
        assert_eq!(net.probe_one("c", spec), "late");
    }
}

#[test]
fn containers_send_no_plaintext_either() {
    if !can() {
        return;
    }
    let net = Net::bridged();
    net.add_container();
    let _server = net.serve("s", server());
    let specs = ["tcp", "udp"].map(|p| json!({"proto": p, "addr": "10.88.0.2", "port": 22}));
    let _container = net.serve("p", json!(specs));
    let out = [
        json!({"proto": "tcp", "addr": "10.77.0.2", "port": 5000, "payload": CANARY}),
        json!({"proto": "udp", "addr": "10.77.0.2", "port": 5000, "payload": CANARY}),
        // A container may set the mark as well, and has its own port 22.
        json!({"proto": "udp", "addr": "10.77.0.2", "port": 5000, "payload": CANARY, "mark": MARK}),
        json!({"proto": "udp", "addr": "10.77.0.2", "port": 5000, "payload": CANARY, "times": 200}),
    ];
    let into = ["tcp", "udp"]
        .map(|p| json!({"proto": p, "addr": "10.88.0.2", "port": 22, "payload": CANARY_IN}));
    let (said_out, said_in) = (net.probe("p", &out), net.probe("s", &into));
    assert_eq!((ok(&said_out), ok(&said_in)), (4, 2), "the control: {said_out:?} {said_in:?}");
    net.load(&rules(Mode::Strict));
    let wire = net.record();
    let (said_out, said_in) = (net.probe("p", &out), net.probe("s", &into));
    assert_eq!((ok(&said_out), ok(&said_in)), (0, 0), "{said_out:?} {said_in:?}");
    assert_eq!(wire.found(CANARY).0, 0);
    let dns = json!({"proto": "udp", "addr": "10.77.0.53", "port": 53, "payload": "dns"});
    assert_eq!(net.probe_one("p", dns), "ok dns");
    // Counted once and not dropped.
    net.load(&rules(Mode::Observe));
    assert_eq!(net.probe_one("p", out[1].clone()), format!("ok {CANARY}"));
    let counts = net.listing().unwrap().counts(0);
    assert_eq!((counts.seen_in.packets, counts.seen_out.packets), (1, 1));
}
