//! Counts of plaintext, which do not affect the traffic.

use serde_json::json;
use wiretight_proxy::intercept::listing::Flow;
use wiretight_proxy::intercept::rules::{Direction, Mode};

use super::rig::{CANARY, MARK, Net, can, rules};

#[test]
fn plaintext_is_counted_by_peer_protocol_port_and_direction() {
    if !can() {
        return;
    }
    let net = Net::bridged();
    let on = |addr: &str, proto: &str| json!({"proto": proto, "addr": addr, "port": 5000});
    let (four, six) = ("10.77.0.2", "fd77::2");
    let _server =
        net.serve("s", json!([on(four, "tcp"), on(four, "udp"), on(six, "tcp"), on(six, "udp")]));
    let _client = net.serve("c", json!([on("10.77.0.1", "tcp"), on("fd77::1", "udp")]));
    let call = |addr: &str, proto: &str| json!({"proto": proto, "addr": addr, "port": 5000, "payload": CANARY});
    let outward = [
        call(four, "tcp"),
        call(four, "udp"),
        call(six, "tcp"),
        call(six, "udp"),
        json!({"proto": "ping", "addr": four, "payload": CANARY}),
        json!({"proto": "253", "addr": six, "payload": CANARY}),
        // The relay's own traffic is not plaintext.
        json!({"proto": "tcp", "addr": four, "port": 5000, "payload": CANARY, "mark": MARK}),
    ];
    let inward = [call("10.77.0.1", "tcp"), call("fd77::1", "udp")];
    for mode in [Mode::Observe, Mode::Permissive] {
        net.load(&rules(mode));
        // Starting without rules.
        net.nft(&["reset counters table inet wiretight"]);
        for set in ["seen_in4", "seen_in6", "seen_out4", "seen_out6"] {
            assert_eq!(net.nft(&[&format!("flush set inet wiretight {set}")]).0, 0);
        }
        let said = [net.probe("c", &outward), net.probe("s", &inward)].concat();
        assert!(said.iter().all(|s| s.starts_with("ok") || s == "sent"), "{mode:?}: {said:?}");
        let counts = net.listing().unwrap().counts(1_000_000);
        let mut kinds: Vec<_> = counts
            .flows
            .iter()
            .map(|f| (f.peer.to_string(), f.protocol.clone(), f.port, f.direction, f.dropped))
            .collect();
        kinds.sort();
        let flow = |peer: &str, protocol: &str, port, direction| {
            (peer.to_owned(), protocol.to_owned(), port, direction, false)
        };
        let mut expected = vec![
            flow(four, "tcp", 5000, Direction::Out),
            flow(four, "udp", 5000, Direction::Out),
            flow(four, "icmp", 0, Direction::Out),
            // The reply.
            flow(four, "icmp", 0, Direction::In),
            flow(six, "tcp", 5000, Direction::Out),
            flow(six, "udp", 5000, Direction::Out),
            flow(six, "253", 0, Direction::Out),
            flow(four, "tcp", 5000, Direction::In),
            flow(six, "udp", 5000, Direction::In),
        ];
        expected.sort();
        assert_eq!(kinds, expected, "{mode:?}");
        let udp = |f: &&Flow| f.protocol == "udp" && f.peer.is_ipv4();
        let udp = counts.flows.iter().find(udp).unwrap();
        assert_eq!((udp.packets, udp.bytes), (2, 2 * (28 + CANARY.len() as u64)));
        assert!(udp.last_seen > 1_000_000 - 20 && udp.last_seen <= 1_000_000, "{udp:?}");
        assert_eq!((counts.dropped_in.packets, counts.unlisted.packets), (0, 0));
    }
}

#[test]
fn the_mode_of_a_peer_overrides_the_general_mode() {
    if !can() {
        return;
    }
    let net = Net::bridged();
    let on = |addr: &str| json!({"proto": "udp", "addr": addr, "port": 5000});
    let addrs = ["10.77.0.2", "10.77.0.53", "fd77::2", "fd77::53"];
    let _server = net.serve("s", json!(addrs.map(on)));
    let calls =
        addrs.map(|addr| json!({"proto": "udp", "addr": addr, "port": 5000, "payload": "x"}));
    let peers = |mode| ["10.77.0.2", "fd77::2"].map(|a| (a.parse().unwrap(), mode)).into();
    for (mode, other, expected) in [
        (Mode::Strict, Mode::Permissive, ["ok x", "late", "ok x", "late"]),
        (Mode::Observe, Mode::Strict, ["late", "ok x", "late", "ok x"]),
        (Mode::Permissive, Mode::Strict, ["late", "ok x", "late", "ok x"]),
    ] {
        let mut rules = rules(mode);
        rules.peers = peers(other);
        // A peer that is named is protected.
        if mode != Mode::Strict {
            rules.protected = vec!["10.77.0.53".parse().unwrap(), "fd77::53".parse().unwrap()];
        }
        net.load(&rules);
        assert_eq!(net.probe("c", &calls), expected, "{mode:?} {other:?}");
        let counts = net.listing().unwrap().counts(1_000_000);
        assert!(counts.seen_out.packets >= 2 && counts.dropped_out.packets >= 2, "{counts:?}");
        assert!(counts.flows.iter().any(|f| f.dropped) && counts.flows.iter().any(|f| !f.dropped));
    }
}
