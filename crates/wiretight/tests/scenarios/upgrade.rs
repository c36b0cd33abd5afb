//! Upgrades under load: one process of a node takes over from another.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use rustix::process::Signal;

use super::edge::Edge;
use super::rig::*;

const DRAIN: &str = "drain = \"10m\"\n";

/// A mesh with one echo service, whose old processes may drain for a long time.
pub(super) fn pair() -> (Pair, std::net::SocketAddr) {
    let (mut pair, entry) = Pair::echo("");
    for node in [&mut pair.auth, &mut pair.app, &mut pair.db] {
        let file = fs::read_to_string(node.file()).unwrap();
        let with = file.replacen("state_dir", &format!("{DRAIN}state_dir"), 1);
        fs::write(node.file(), with).unwrap();
        node.cli(&["reload"]).good();
    }
    (pair, entry)
}

fn begun(entry: std::net::SocketAddr) -> Talk {
    let mut talk = Talk::open(entry).unwrap();
    talk.exchange().unwrap();
    talk
}

#[track_caller]
fn exchange(talks: &mut [Talk]) {
    for (n, talk) in talks.iter_mut().enumerate() {
        talk.exchange().unwrap_or_else(|e| panic!("live connection {n}: {e}"));
    }
}

#[test]
fn a_hundred_upgrades_with_a_thousand_connections_refuse_and_reset_none() {
    let (mut pair, entry) = pair();
    // One after another, as simultaneous handshakes from one machine are limited.
    let mut live: Vec<Talk> = (0..1000).map(|_| begun(entry)).collect();
    let load = Load::start(entry, 0, 4);
    let start = Instant::now();
    for n in 0..100 {
        match n % 10 {
            9 => pair.auth.upgrade(),
            n if n % 2 == 0 => pair.app.upgrade(),
            _ => pair.db.upgrade(),
        }
        // Some connections stay in processes between the first and the last.
        live.push(begun(entry));
        if n % 10 == 4 {
            exchange(&mut live);
            load.assert_clean();
        }
    }
    let took = start.elapsed();
    exchange(&mut live);
    live.into_iter().for_each(|talk| talk.close().unwrap());
    let new = load.stop();
    say(format!("100 upgrades in {took:.1?}, {new} new connections meanwhile"));
    assert!(new > 1000, "hardly anybody came: {new}");
    for node in [&mut pair.app, &mut pair.db] {
        for old in node.before() {
            let ended = old.ended(PATIENCE).expect("it ends with its last connection");
            assert!(ended.success(), "{ended}");
        }
    }
    // The control: the same checks detect what a restart does to a connection.
    let mut talk = Talk::open(entry).unwrap();
    talk.exchange().unwrap();
    pair.app.kill();
    assert!(talk.exchange().is_err() && once(entry).is_err());
}

#[test]
fn simultaneous_upgrades_wait_for_each_other() {
    let (mut pair, entry) = pair();
    let load = Load::start(entry, 0, 2);
    let mut all: Vec<_> = (0..4).map(|_| pair.db.successor()).collect();
    wait_for("all have taken over", || takeovers(&pair.db) == all.len());
    load.stop();
    // The last process is the node's.
    let pid = pair.db.status()["pid"].as_u64();
    let last = all.iter().position(|new| Some(u64::from(new.pid())) == pid).unwrap();
    let last = all.swap_remove(last);
    for mut old in all.into_iter().chain([pair.db.replace(last)]) {
        assert!(old.ended(PATIENCE).expect("it ends with its last connection").success());
    }
    once(entry).unwrap();
}

/// How often a new process has taken over.
fn takeovers(node: &Node) -> usize {
    node.log().matches("another process has taken over").count()
}

#[test]
fn an_upgrade_that_fails_leaves_the_node_as_it_was() {
    let (mut pair, entry) = pair();
    let mut live: Vec<Talk> = (0..20).map(|_| Talk::open(entry).unwrap()).collect();
    let load = Load::start(entry, 0, 2);
    // An invalid configuration file.
    let good = fs::read_to_string(pair.auth.file()).unwrap();
    fs::write(pair.auth.file(), good.clone() + "nonsense = 1\n").unwrap();
    let mut new = pair.auth.successor();
    assert_eq!(new.ended(PATIENCE).unwrap().code(), Some(2));
    // A port in use, which is detected when the old process has already shut down its control part.
    let other = std::net::TcpListener::bind(free()).unwrap();
    let taken = other.local_addr().unwrap();
    fs::write(pair.auth.file(), good.replacen("[authority]", &format!("[[service]]\nname = \"x\"\nlisten = \"{taken}\"\nforward = \"127.0.0.1:9\"\nallow = []\n[authority]"), 1)).unwrap();
    let mut new = pair.auth.successor();
    assert_eq!(new.ended(PATIENCE).unwrap().code(), Some(1), "{}", pair.auth.log());
    fs::write(pair.auth.file(), good).unwrap();
    wait_for("the authority is there again", || {
        pair.auth.probe("/readyz").is_ok_and(|a| a.0 == 200)
    });
    assert!(pair.auth.log().contains("this one keeps running"), "{}", pair.auth.log());
    load.stop();
    // A new process that is killed at any moment, also after it has taken over.
    let mut dice = Dice::new("killed upgrades");
    let mut meant = 0;
    for n in 0..24 {
        let node = match n % 3 {
            0 => &mut pair.auth,
            1 => &mut pair.app,
            _ => &mut pair.db,
        };
        let before = takeovers(node);
        let mut new = node.successor();
        std::thread::sleep(ms(dice.below(200)));
        new.kill();
        let pid = node.pid();
        let is = |node: &Node| {
            let said = node.http("GET", "/v1/status", "");
            said.ok().and_then(|(_, body)| serde_json::from_str::<serde_json::Value>(&body).ok())
        };
        // Either the old process keeps running, or the new one had taken over before. The old one answers also while it
        // does not know yet that the new one was killed: what is so for half a second stays so.
        let passed = |node: &Node| takeovers(node) > before;
        let mut since = std::time::Instant::now();
        wait_for("one process is the node", || {
            if !is(node).is_some_and(|status| status["pid"] == pid) {
                since = std::time::Instant::now();
            }
            passed(node) || since.elapsed() > ms(500)
        });
        if passed(node) {
            node.start_beside();
            node.ready();
            wait_for("it is reachable again", || once(entry).is_ok());
        } else {
            once(entry).unwrap();
            meant += 1;
        }
    }
    say(format!("{meant} of 24 were killed before they had taken over"));
    assert!(meant > 0);
    exchange(&mut live);
    // The control part works again.
    pair.auth.token("more", &["x"]);
    for node in [&mut pair.auth, &mut pair.app, &mut pair.db] {
        node.cli(&["reload"]).good();
        wait_for("it is renewed", || renew(node).is_ok());
        node.upgrade();
    }
    exchange(&mut live);
}

#[test]
fn the_command_line_upgrades_and_reports_it() {
    let (mut pair, entry) = pair();
    let mut talk = Talk::open(entry).unwrap();
    talk.exchange().unwrap();
    let same = pair.db.cli(&["upgrade"]).good();
    assert!(same.out.contains("Nothing to do"), "{same:?}");
    assert_eq!(pair.db.status()["pid"], pair.db.pid());
    let done = pair.db.cli(&["upgrade", "--force", "--json"]).good().json();
    assert_eq!((&done["upgraded"], &done["before"]["pid"]), (&true.into(), &pair.db.pid().into()));
    let pid = done["pid"].as_u64().unwrap();
    assert_eq!(pair.db.status()["pid"], pid);
    assert!(pair.db.log().contains("taken over"), "the new one writes where the old one wrote");
    talk.exchange().unwrap();
    once(entry).unwrap();
    // No other process may start.
    let beside = pair.db.cli(&["run"]);
    assert!(beside.code == Some(1) && beside.err.contains("wiretight upgrade"), "{beside:?}");
    talk.close().unwrap();
    assert!(pair.db.kid().ended(PATIENCE).expect("it ends when it has drained").success());
    let new = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(new, Signal::TERM).unwrap();
    wait_for("no node runs", || pair.db.cli(&["upgrade"]).code == Some(3));
}

#[test]
fn a_removed_node_is_also_disconnected_in_a_previous_process() {
    let (mut pair, entry) = pair();
    let mut talk = Talk::open(entry).unwrap();
    talk.exchange().unwrap();
    pair.db.upgrade();
    talk.exchange().unwrap();
    // Its own process does not matter.
    pair.app.kid().signal(Signal::STOP);
    assert!(pair.db.before()[0].ended(ms(500)).is_none(), "the control: it lives on");
    pair.auth.cli(&["node", "remove", "app1", "--yes"]).good();
    let ended = pair.db.before()[0].ended(ms(5000));
    assert!(ended.expect("nothing lives there any longer").success());
    pair.app.kid().signal(Signal::CONT);
    assert!(talk.exchange().is_err());
}

#[test]
fn https_requests_continue_during_upgrades() {
    if !has(&["nginx", "curl", "openssl"]) {
        return;
    }
    let mut edge = Edge::new();
    let stop = std::sync::Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = ["--http1.1", "--http2"]
        .into_iter()
        .map(|version| {
            let (curl, stop) = (edge.client(), stop.clone());
            std::thread::spawn(move || {
                let mut count = 0;
                while !stop.load(Relaxed) {
                    let ran = curl(&[version, "-f"], &["/", "/"]);
                    assert_eq!(ran.code, Some(0), "{ran:?}");
                    count += 1;
                }
                count
            })
        })
        .collect();
    for _ in 0..20 {
        edge.node.upgrade();
    }
    stop.store(true, Relaxed);
    let requests: u32 = clients.into_iter().map(|client| client.join().unwrap()).sum();
    say(format!("{requests} curls through 20 upgrades"));
    assert!(requests > 20);
    // HTTP/3 is available again when the old process has released its port.
    wait_for("it has QUIC again", || {
        let udp = fs::read_to_string("/proc/net/udp").unwrap();
        udp.contains(&format!(":{:04X} ", edge.https.port()))
    });
}
