//! Connections of programs are redirected to the relay's port, which learns the original destination.

use serde_json::{Value, json};
use wiretight_proxy::intercept::rules::Mode;

use super::rig::{CANARY, MARK, Net, PORT, Running, can, finish, rules};

const CALLED: [&str; 2] = ["10.77.0.2", "fd77::2"];

fn server(net: &Net) -> Running {
    let specs = CALLED.map(|addr| json!({"proto": "tcp", "addr": addr, "port": 5432}));
    net.serve("s", json!(specs))
}

/// A server in place of the relay.
fn relay(net: &Net) -> Running {
    let on = |addr| json!({"proto": "tcp", "addr": addr, "port": PORT, "mark": MARK, "redirected": true});
    net.serve("c", json!(["127.0.0.1", "::1"].map(on)))
}

fn call(addr: &str) -> Value {
    json!({"proto": "tcp", "addr": addr, "port": 5432, "payload": CANARY})
}

#[test]
fn a_redirected_connection_reaches_the_relay_with_its_destination() {
    if !can() {
        return;
    }
    let net = Net::bridged();
    let (_server, _relay) = (server(&net), relay(&net));
    let mut rules = rules(Mode::Permissive);
    rules.taken = ["10.77.0.2:5432", "[fd77::2]:5432"].map(|a| a.parse().unwrap()).into();
    for (mode, times) in [(Mode::Permissive, 2), (Mode::Strict, 4)] {
        rules.mode = mode;
        net.load(&rules);
        let wire = net.record();
        for addr in CALLED {
            let said = net.probe_one("c", call(addr));
            assert_eq!(said, format!("ok to {addr} 5432 {CANARY}"), "{mode:?}");
        }
        assert_eq!(wire.found(CANARY).0, 0);
        assert_eq!(net.listing().unwrap().counts(0).redirected.packets, times);
        // The relay's own connections are not redirected.
        let mut own = call(CALLED[0]);
        own["mark"] = MARK.into();
        assert_eq!(net.probe_one("c", own), format!("ok {CANARY}"));
    }
    // A peer with its own mode is treated by that mode.
    rules.peers = [(CALLED[0].parse().unwrap(), Mode::Observe)].into();
    net.load(&rules);
    assert_eq!(net.probe_one("c", call(CALLED[0])), format!("ok {CANARY}"));
    assert_eq!(net.probe_one("c", call(CALLED[1])), format!("ok to fd77::2 5432 {CANARY}"));
    rules.mode = Mode::Observe;
    rules.peers = [(CALLED[1].parse().unwrap(), Mode::Permissive)].into();
    net.load(&rules);
    assert_eq!(net.probe_one("c", call(CALLED[0])), format!("ok {CANARY}"));
    assert_eq!(net.probe_one("c", call(CALLED[1])), format!("ok to fd77::2 5432 {CANARY}"));
}

#[test]
fn a_dead_relay_lets_no_plaintext_out() {
    if !can() {
        return;
    }
    let net = Net::bridged();
    let _server = server(&net);
    let mut rules = rules(Mode::Strict);
    // A service behind an address that belongs to no node.
    rules.protected.clear();
    rules.taken = ["10.77.0.2:5432", "[fd77::2]:5432"].map(|a| a.parse().unwrap()).into();
    let wire = net.record();
    for addr in CALLED {
        assert_eq!(net.probe_one("c", call(addr)), format!("ok {CANARY}"), "the control");
    }
    assert!(wire.found(CANARY).0 >= 2);
    net.load(&rules);
    let wire = net.record();
    for addr in CALLED {
        assert_eq!(net.probe_one("c", call(addr)), "refused");
    }
    // Connections that are not redirected, as their control group is not named, do not leave in plaintext either.
    rules.cgroups = vec!["wiretight-no-such-group".into()];
    net.load(&rules);
    for addr in CALLED {
        assert_eq!(net.probe_one("c", call(addr)), "late");
    }
    assert_eq!(wire.found(CANARY).0, 0);
}

#[test]
fn only_programs_of_the_named_control_groups_are_redirected() {
    if !can() {
        return;
    }
    let net = Net::bridged();
    let (_server, _relay) = (server(&net), relay(&net));
    let mut rules = rules(Mode::Permissive);
    rules.taken = ["10.77.0.2:5432"].map(|a| a.parse().unwrap()).into();
    let group = format!("wiretight-test-{}", std::process::id());
    rules.cgroups = vec![group.clone()];
    net.write(&rules);
    // In a separate mount namespace, where control groups v2 are in their usual place.
    let probe = json!([call(CALLED[0])]);
    let script = format!(
        "mount -t cgroup2 none /sys/fs/cgroup 2>/dev/null || {{ echo no control groups; exit 0; }}
        mkdir /sys/fs/cgroup/{group}
        trap 'echo $$ > /sys/fs/cgroup/cgroup.procs; rmdir /sys/fs/cgroup/{group}' EXIT
        {bin} rules load --config {config} || exit 1
        python3 {peer} probe '{probe}'
        echo $$ > /sys/fs/cgroup/{group}/cgroup.procs
        python3 {peer} probe '{probe}'",
        bin = env!("CARGO_BIN_EXE_wiretight"),
        config = net.config().display(),
        peer = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/intercept/peer.py"),
    );
    let (code, said) = finish(net.on("c", "sh").args(["-c", &script]));
    assert_eq!(code, 0, "{said}");
    if said.contains("no control groups") {
        assert!(std::env::var_os("CI").is_none(), "control groups v2 cannot be mounted");
        return super::rig::say("skipped: control groups v2 cannot be mounted");
    }
    let lines: Vec<&str> = said.lines().filter(|l| l.starts_with('[')).collect();
    assert_eq!(
        lines,
        [format!("[\"ok {CANARY}\"]"), format!("[\"ok to 10.77.0.2 5432 {CANARY}\"]")],
        "{said}"
    );
}
