//! Operation: rotations, crashes, removals, draining, reloads, truncated files.

use std::fs;
use std::io::Read;
use std::net::TcpStream;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::rig::*;

/// Whether a program that connects now gets no data.
fn is_refused(addr: std::net::SocketAddr) -> bool {
    once(addr).is_err()
}

fn rotate(auth: &Node, step: &str) -> Result<Value, String> {
    match auth.http("POST", "/v1/authority", &json!({ "step": step }).to_string()) {
        Ok((200, body)) => Ok(serde_json::from_str(&body).unwrap()),
        other => Err(format!("{step}: {other:?}")),
    }
}

/// About half a minute: a thousand rotations are work, and the old root is retired only when its last certificate has
/// expired.
#[test]
fn a_thousand_rotations_drop_none_of_two_hundred_connections() {
    // Short enough for the old root's last certificate to expire during the test.
    let (pair, entry) = Pair::echo("svid_ttl = \"15s\"\nintermediate_ttl = \"3m\"\n");
    let load = Load::start(entry, 200, 2);
    let begun = Instant::now();
    let (done, rooted) = (AtomicU64::new(0), AtomicBool::new(false));
    let (done, rooted, auth) = (&done, &rooted, &pair.auth);
    thread::scope(|scope| {
        for node in [auth, &pair.db, &pair.app] {
            scope.spawn(move || {
                while done.load(Relaxed) < 1000 || !rooted.load(Relaxed) {
                    renew(node).unwrap();
                    // Identities of the authority's own node carry no traffic, so they do not count.
                    if std::ptr::eq(node, auth) {
                        thread::sleep(ms(200));
                        continue;
                    }
                    let n = done.fetch_add(1, Relaxed) + 1;
                    if n.is_multiple_of(50) {
                        rotate(auth, "intermediate").unwrap();
                    }
                    if n > 1000 {
                        // Only the wait for the old root to expire remains.
                        thread::sleep(ms(500));
                    }
                }
            });
        }
        // A root rotation in the middle, without force.
        wait_for("300 rotations", || done.load(Relaxed) > 300);
        rotate(&pair.auth, "prepare-root").unwrap();
        wait_for("the new root is with every node", || rotate(&pair.auth, "activate-root").is_ok());
        let early = rotate(&pair.auth, "retire-root").unwrap_err();
        assert!(early.contains("are valid for another"), "{early}");
        wait_for("no certificate of the old root is left", || {
            thread::sleep(ms(500));
            rotate(&pair.auth, "retire-root").is_ok()
        });
        rooted.store(true, Relaxed);
    });
    let status = pair.auth.cli(&["authority", "status", "--json"]).good().json();
    assert_eq!(status["roots"].as_array().unwrap().len(), 1, "{status:#}");
    load.moves();
    let rotations = done.load(Relaxed);
    let seconds = begun.elapsed().as_secs_f64();
    let exchanges = load.stop();
    say(format!(
        "{rotations} rotations and a new root in {seconds:.0} s under {exchanges} exchanges on 200 connections, none dropped"
    ));
    for node in [&pair.app, &pair.db] {
        let status = node.status();
        assert!(status["relay"]["refusals"].as_array().unwrap().is_empty(), "{status:#}");
        assert_eq!(status["relay"]["sums"][0]["failed"], 0, "{status:#}");
    }
    assert!(rotations >= 1000);
    once(entry).unwrap();
    pair.assert_protected("echo");
}

#[test]
fn an_authority_killed_under_load_loses_nothing() {
    let (mut pair, entry) = Pair::echo("");
    let load = Load::start(entry, 50, 4);
    let listed = |auth: &Node| -> Vec<Value> {
        let nodes = auth.cli(&["node", "list", "--json"]).good().json();
        let keys = ["name", "joined_at", "services", "instances"];
        let all = nodes["nodes"].as_array().unwrap().iter();
        all.map(|n| keys.iter().map(|k| n[*k].clone()).collect()).collect()
    };
    let before = listed(&pair.auth);
    assert_eq!(before.len(), 3);
    let unused = pair.auth.token("late", &["web"]);
    for _ in 0..3 {
        pair.auth.kill();
        load.moves();
        // Both nodes have noticed that it is down, and keep working.
        wait_for("the cut is shown", || {
            [&pair.db, &pair.app].iter().all(|n| n.status()["authority_link"]["connected"] == false)
        });
        assert!([&pair.db, &pair.app].iter().all(|n| n.status()["ready"] == true));
        load.moves();
        pair.auth.start();
        pair.auth.ready();
        wait_for("they are connected again", || {
            [&pair.db, &pair.app].iter().all(|n| n.status()["authority_link"]["connected"] == true)
        });
        assert_eq!(listed(&pair.auth), before);
        load.moves();
    }
    // Its log is complete for an outsider: every tile, every entry and the checkpoint.
    let vkey = pair.auth.cli(&["authority", "log-key", "--json"]).good().json();
    let (policy, log) = (pair.world.path("policy"), pair.auth.state().join("authority/log"));
    fs::write(&policy, format!("log {}\nquorum none\n", vkey["vkey"].as_str().unwrap())).unwrap();
    let mut verify = wiretight();
    verify.arg("verify").arg(log).arg("--policy").arg(policy);
    Ran::of(&mut verify, "").good();
    // A token from before the crashes, and a new one; certificates from the same root.
    let late = pair.world.node("late", "");
    late.cli_with(&["join"], &unused).good();
    let _new = pair.world.joined(&pair.auth, "new", &["web"], "");
    assert_eq!(listed(&pair.auth).len(), 5);
    [&pair.db, &pair.app].into_iter().for_each(|n| renew(n).unwrap());
    load.moves();
    load.stop();
}

#[test]
fn killed_nodes_come_back_while_the_authority_is_down() {
    let (mut pair, entry) = Pair::echo("");
    once(entry).unwrap();
    for _ in 0..3 {
        for node in [&mut pair.auth, &mut pair.db, &mut pair.app] {
            if node.http("GET", "/healthz", "").is_ok() {
                node.kill();
            }
        }
        pair.db.start();
        pair.app.start();
        pair.db.ready();
        pair.app.ready();
        wait_for("traffic flows again", || once(entry).is_ok());
        let load = Load::start(entry, 10, 2);
        load.moves();
        load.stop();
        pair.assert_protected("echo");
    }
    // It recovers when the authority is up again.
    pair.auth.start();
    pair.auth.ready();
    for node in [&pair.db, &pair.app] {
        wait_for("connected", || node.status()["authority_link"]["connected"] == true);
        renew(node).unwrap();
    }
}

#[test]
fn a_removed_node_is_disconnected_within_five_seconds_and_stays_out() {
    let (mut pair, entry) = Pair::echo("svid_ttl = \"10s\"\nintermediate_ttl = \"1h\"\n");
    // One session is older than the node's certificate: the removal must close it as well.
    let mut old = Talk::open(entry).unwrap();
    old.exchange().unwrap();
    let born = Instant::now();
    // A second client, which must not be affected.
    let at = free();
    let mut other = pair.world.joined(&pair.auth, "app2", &["web"], &dial(at, "echo", "web"));
    other.knows("echo");
    let bystander = Load::start(at, 20, 1);

    let mut talks: Vec<Talk> = (0..20).map(|_| Talk::open(entry).unwrap()).collect();
    talks.iter_mut().for_each(|t| t.exchange().unwrap());
    // A thief with a copy of its disk.
    let mut stolen = pair.world.node_in("stolen", "app1", "");
    copy(&pair.app.state(), &stolen.state());

    thread::sleep(Duration::from_secs(11).saturating_sub(born.elapsed()));
    old.exchange().expect("a session outlives its certificate");
    talks.push(old);
    let begun = Instant::now();
    pair.auth.cli(&["node", "remove", "app1", "--yes"]).good();
    for mut talk in talks {
        let end = begun + Duration::from_secs(5);
        while talk.exchange().is_ok() {
            assert!(Instant::now() < end, "a connection of the removed node lives");
            thread::sleep(ms(10));
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    say(format!("a removed node's 21 connections were cut within {seconds:.2} s"));
    assert!(seconds < 5.0, "{seconds}");
    // On the other side no connection of it is left, and the log has the reason.
    wait_for("the service's side has cut them", || {
        let lines = pair.db.access();
        lines.iter().filter(|l| l["detail"].as_str().is_some_and(|d| d.contains("revoked"))).count()
            >= 20
            || lines.iter().filter(|l| l["end"] == "revoked").count() >= 20
    });
    assert!(is_refused(entry));

    // Restarted with its old state it is still refused, and reports it.
    pair.app.kill();
    pair.app.start();
    wait_for(
        "it says that it was removed",
        || matches!(pair.app.probe("/readyz"), Ok((503, why)) if why.contains("removed")),
    );
    assert!(is_refused(entry));
    // The same with the copy of its state.
    stolen.write(&dial(entry, "echo", "web"));
    pair.app.kill();
    stolen.start();
    wait_for(
        "the copy is refused too",
        || matches!(stolen.probe("/readyz"), Ok((503, why)) if why.contains("removed")),
    );
    assert!(is_refused(entry));
    stolen.kill();

    bystander.moves();
    bystander.stop();
    let nodes = pair.auth.cli(&["node", "list", "--json"]).good().json();
    assert!(!nodes["nodes"].as_array().unwrap().iter().any(|n| n["name"] == "app1"));
    // A new token lets the machine in again.
    fs::write(pair.app.token_file(), pair.auth.token("app1", &["web"])).unwrap();
    pair.app.start();
    pair.app.ready();
    pair.app.knows("echo");
    once(entry).unwrap();
    other.kill();
    // Removing an unknown node is an error.
    let nobody = pair.auth.cli(&["node", "remove", "nobody"]);
    assert!(nobody.code == Some(1) && nobody.err.contains("nobody"), "{nobody:?}");
    let own = pair.auth.cli(&["node", "remove", "auth", "--yes"]);
    assert!(own.code == Some(1) && own.err.contains("cannot be removed"), "{own:?}");
}

#[test]
fn a_removal_completes_even_if_the_client_disconnects() {
    let (pair, entry) = Pair::echo("");
    once(entry).unwrap();
    let body = r#"{"node":"app1"}"#;
    let mut socket =
        std::os::unix::net::UnixStream::connect(pair.auth.state().join("admin.sock")).unwrap();
    let length = body.len();
    use std::io::Write;
    write!(
        socket,
        "POST /v1/remove HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    drop(socket);
    wait_for("the node is out", || {
        let nodes = pair.auth.cli(&["node", "list", "--json"]).good().json();
        !nodes["nodes"].as_array().unwrap().iter().any(|n| n["name"] == "app1")
    });
    wait_for("and its traffic ends", || is_refused(entry));
}

#[test]
fn without_the_authority_traffic_ends_when_identities_expire_and_resumes_with_it() {
    let (mut pair, entry) = Pair::echo("svid_ttl = \"10s\"\nintermediate_ttl = \"1h\"\n");
    once(entry).unwrap();
    pair.auth.kill();
    // Traffic continues for a while, then stops; it is never sent in plaintext or unauthenticated.
    once(entry).unwrap();
    wait_for("identities run out", || is_refused(entry));
    // The two nodes' identities end within moments of each other, in either order.
    wait_for("both say why", || {
        let (code, why) = pair.app.probe("/readyz").unwrap();
        let says = code == 503 && why.contains("no valid identity for");
        says && is_refused(entry) && refused(&pair.app, "dial", "no_identity")
    });
    pair.auth.start();
    pair.auth.ready();
    pair.db.ready();
    pair.app.ready();
    wait_for("traffic flows again", || once(entry).is_ok());
}

fn copy(from: &Path, to: &Path) {
    std::os::unix::fs::DirBuilderExt::mode(&mut fs::DirBuilder::new(), 0o700).create(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let kind = entry.file_type().unwrap();
        let target = to.join(entry.file_name());
        if kind.is_dir() {
            copy(&entry.path(), &target);
        } else if kind.is_file() {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn sigterm_lets_sessions_finish_and_accepts_no_new_ones() {
    for side in ["service", "dial"] {
        let (mut pair, entry) = Pair::echo("");
        let mut talk = Talk::open(entry).unwrap();
        talk.exchange().unwrap();
        let node = if side == "service" { &mut pair.db } else { &mut pair.app };
        node.kid().signal(Signal::TERM);
        wait_for(
            "it says that it stops",
            || matches!(node.probe("/readyz"), Ok((503, why)) if why.contains("stopping")),
        );
        wait_for("no new connections", || is_refused(entry));
        for _ in 0..20 {
            talk.exchange().unwrap();
            thread::sleep(ms(10));
        }
        assert_eq!(node.kid().ended(ms(0)), None, "{side}: it did not wait");
        talk.close().unwrap();
        let status = node.kid().ended(Duration::from_secs(10));
        assert_eq!(status.and_then(|s| s.code()), Some(0), "{side}: {status:?}");
        assert!(node.log().contains("stopped"), "{side}");
        assert_eq!(node.access().last().unwrap()["end"], "done", "{side}");
    }
}

#[test]
fn a_second_sigterm_stops_at_once_and_drain_has_a_limit() {
    let (mut pair, entry) = Pair::echo("");
    let mut talk = Talk::open(entry).unwrap();
    talk.exchange().unwrap();
    pair.db.kid().signal(Signal::TERM);
    wait_for("the first is noticed", || pair.db.log().contains("a second signal closes them"));
    assert_eq!(pair.db.kid().ended(ms(300)), None);
    talk.exchange().unwrap();
    pair.db.kid().signal(Signal::TERM);
    let begun = Instant::now();
    let status = pair.db.kid().ended(PATIENCE);
    assert_eq!(status.and_then(|s| s.code()), Some(0));
    // Much less than the 30 s of `drain`.
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(talk.exchange().is_err());

    // The limit, without a second signal.
    let mut text = fs::read_to_string(pair.app.file()).unwrap();
    text = text.replacen("[node]\n", "[node]\ndrain = \"1s\"\n", 1);
    fs::write(pair.app.file(), text).unwrap();
    pair.app.cli(&["reload"]).good();
    pair.db.start();
    pair.db.ready();
    wait_for("traffic flows again", || once(entry).is_ok());
    let mut talk = Talk::open(entry).unwrap();
    talk.exchange().unwrap();
    pair.app.kid().signal(Signal::TERM);
    let begun = Instant::now();
    let status = pair.app.kid().ended(PATIENCE);
    assert_eq!(status.and_then(|s| s.code()), Some(0));
    let took = begun.elapsed();
    assert!(took > ms(900) && took < Duration::from_secs(20), "{took:?}");
    assert!(talk.exchange().is_err());
}

#[test]
fn a_reload_applies_a_valid_file_and_rejects_an_invalid_one_completely() {
    let (mut pair, entry) = Pair::echo("");
    let load = Load::start(entry, 30, 2);
    let old = fs::read_to_string(pair.app.file()).unwrap();

    // A valid file: another dial is added, the old one stays.
    let second = free();
    fs::write(pair.app.file(), old.clone() + &dial(second, "echo", "web")).unwrap();
    let ran = pair.app.cli(&["reload"]).good();
    assert_eq!(ran.out, "Configuration applied: 0 services, 2 dials, 0 sites\n");
    once(second).unwrap();
    load.moves();

    // Invalid files, each rejected completely: the dial that is missing from the file stays, none is added.
    let third = free();
    let taken = std::net::TcpListener::bind(free()).unwrap();
    let new = dial(third, "echo", "web");
    // The command reads the file as well, to find the node: exit status 2 is an invalid file, 1 a file that the node
    // refuses.
    let taken = dial(taken.local_addr().unwrap(), "echo", "web");
    let bad = [
        (2, format!("{old}{new}colour = \"red\"\n"), "colour"),
        (2, format!("{old}{new}[[dial]]\n"), "listen"),
        (2, "this is no TOML".into(), "TOML"),
        (2, String::new(), "node"),
        (1, old.replace("\"example.org\"", "\"example.net\""), "restart"),
        (1, format!("{old}{new}{taken}"), "cannot listen"),
    ];
    for (code, text, why) in bad {
        fs::write(pair.app.file(), &text).unwrap();
        let ran = pair.app.cli(&["reload"]);
        assert_eq!(ran.code, Some(code), "{why}: {ran:?}");
        assert!(ran.out.is_empty() && ran.err.contains(why), "{why}: {ran:?}");
        let before = pair.app.log().matches("the previous one stays in force").count();
        pair.app.kid().signal(Signal::HUP);
        wait_for("the log has the refusal", || {
            pair.app.log().matches("the previous one stays in force").count() > before
        });
        assert!(TcpStream::connect(third).is_err(), "{why}: a part of it was applied");
        once(second).unwrap();
        load.moves();
    }
    // A valid file with SIGHUP.
    fs::write(pair.app.file(), &old).unwrap();
    pair.app.kid().signal(Signal::HUP);
    wait_for("the second dial is gone", || is_refused(second));
    load.moves();

    load.stop();

    // On the service's side: an identity that is no longer allowed gets no new session, and open ones continue.
    let load = Load::start(entry, 30, 0);
    let allowed = fs::read_to_string(pair.db.file()).unwrap();
    fs::write(pair.db.file(), allowed.replace("service/web", "service/nobody")).unwrap();
    pair.db.cli(&["reload"]).good();
    assert!(is_refused(entry));
    wait_for("the reason is shown here", || refused(&pair.db, "service", "not_allowed"));
    wait_for("and there", || refused(&pair.app, "dial", "not_allowed"));
    load.moves();
    fs::write(pair.db.file(), allowed).unwrap();
    pair.db.cli(&["reload"]).good();
    once(entry).unwrap();
    load.stop();
}

/// Whether `status` shows such a refusal.
pub(crate) fn refused(node: &Node, side: &str, reason: &str) -> bool {
    let status = node.status();
    let all = status["relay"]["refusals"].as_array().unwrap().clone();
    all.iter().any(|r| r["side"] == side && r["reason"] == reason)
}

#[test]
fn state_is_accessible_only_to_its_owner() {
    let (pair, entry) = Pair::echo("");
    once(entry).unwrap();
    renew(&pair.app).unwrap();
    let mut files = 0;
    for node in [&pair.auth, &pair.db, &pair.app] {
        let mut dirs = vec![node.state()];
        while let Some(dir) = dirs.pop() {
            let mode = |p: &Path| fs::symlink_metadata(p).unwrap().permissions().mode() & 0o7777;
            assert_eq!(mode(&dir), 0o700, "{}", dir.display());
            for entry in fs::read_dir(&dir).unwrap().flatten() {
                let (path, kind) = (entry.path(), entry.file_type().unwrap());
                if kind.is_dir() {
                    dirs.push(path);
                    continue;
                }
                assert!(kind.is_file() || kind.is_socket(), "{}", path.display());
                assert_eq!(mode(&path), 0o600, "{}", path.display());
                files += 1;
            }
        }
    }
    assert!(files > 15, "{files}");
}

#[test]
fn two_processes_cannot_share_a_state_directory() {
    let (mut pair, entry) = Pair::echo("");
    let second = Ran::of(wiretight().args(["run", "--config"]).arg(pair.app.file()), "");
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(
        second.err.contains("another wiretight process uses the state directory"),
        "{second:?}"
    );
    let join = pair.app.cli_with(&["join"], &pair.auth.token("app1", &[]));
    assert!(
        join.code == Some(1) && join.err.contains("another wiretight process uses"),
        "{join:?}"
    );
    once(entry).unwrap();
    // A crash leaves no lock behind.
    pair.app.kill();
    pair.app.start();
    pair.app.ready();
    wait_for("traffic flows again", || once(entry).is_ok());
}

#[test]
fn truncated_files_are_renamed_and_replaced() {
    let (mut pair, entry) = Pair::echo("");
    let dir = pair.app.state().join("identity");
    let names = ["node.pem", "service-web.pem", "bundle.pem", "state.json", "joined.json"];
    for (n, name) in names.iter().enumerate() {
        for keep in [0, 50] {
            pair.app.kill();
            let file = dir.join(name);
            let whole = fs::read(&file).unwrap_or_default();
            fs::write(&file, &whole[..whole.len() * keep / 100]).unwrap();
            pair.app.start();
            pair.app.ready();
            wait_for(&format!("traffic after {name} was torn ({n}, {keep} %)"), || {
                once(entry).is_ok()
            });
            // A new file may differ: another certificate, another address.
            wait_for(&format!("{name} is whole again"), || {
                fs::read(&file).is_ok_and(|now| match name.ends_with(".json") {
                    true => serde_json::from_slice::<serde_json::Value>(&now).is_ok(),
                    false => now.len() * 10 > whole.len() * 9,
                })
            });
        }
        assert!(dir.join(format!("{name}.bad")).exists(), "{name} was not set aside");
    }
    // Leftovers of a crash during a write do no harm either.
    fs::write(dir.join(".node.pem.tmp"), "half a key").unwrap();
    pair.app.kill();
    pair.app.start();
    pair.app.ready();
    renew(&pair.app).unwrap();
    once(entry).unwrap();
}

#[test]
fn a_node_recovers_from_kill_9_at_any_moment_of_a_join_or_renewal() {
    let world = World::new();
    let mut auth = world.authority("");
    let mut dice = Dice::new("kill -9 at any moment");
    let (mut killed, mut nodes) = (0, Vec::new());
    for n in 0..12 {
        // During its join, twice; every third time the authority too.
        let name = format!("n{n}");
        let mut node = world.node(&name, "");
        fs::write(node.token_file(), auth.token(&name, &["web"])).unwrap();
        for _ in 0..2 {
            node.start();
            thread::sleep(ms(dice.below(120)));
            if dice.below(3) == 0 {
                auth.kill();
                auth.start();
                killed += 1;
            }
            thread::sleep(ms(dice.below(30)));
            node.kill();
            killed += 1;
        }
        node.start();
        auth.ready();
        node.ready();
        nodes.push(node);
        if nodes.len() > 3 {
            nodes.remove(0);
        }
    }
    let (pair, entry) = Pair::echo("");
    let Pair { auth: mut auth2, db: _db, mut app, world: _world } = pair;
    for n in 0..18 {
        // During renewals and rotations.
        let stop = AtomicBool::new(false);
        let socket = (app.state().join("admin.sock"), auth2.state().join("admin.sock"));
        thread::scope(|scope| {
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(Relaxed) {
                    post(&socket.0, "/v1/renew", "null");
                }
            });
            scope.spawn(move || {
                while !stop.load(Relaxed) {
                    post(&socket.1, "/v1/authority", r#"{"step":"intermediate"}"#);
                }
            });
            thread::sleep(ms(50 + dice.below(150)));
            app.kill();
            if n % 3 == 0 {
                auth2.kill();
            }
            stop.store(true, Relaxed);
        });
        killed += 1;
        if n % 3 == 0 {
            auth2.start();
            auth2.ready();
        }
        app.start();
        app.ready();
        wait_for("traffic flows again", || once(entry).is_ok());
    }
    wait_for("the last renewal works", || renew(&app).is_ok());
    let left = |log: String| log.lines().filter(|l| l.contains("panicked")).count();
    assert_eq!(left(app.log()) + left(auth.log()) + left(auth2.log()), 0);
    say(format!("{killed} processes killed at random moments, all came back"));
}

/// A request that may be interrupted.
fn post(socket: &Path, path: &str, body: &str) {
    use std::io::Write;
    let Ok(mut socket) = std::os::unix::net::UnixStream::connect(socket) else {
        return thread::sleep(ms(5));
    };
    let length = body.len();
    let _ = socket.set_read_timeout(Some(PATIENCE));
    let _ = write!(
        socket,
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    let _ = socket.read_to_end(&mut Vec::new());
}

/// Clients may use up all descriptors for traffic: the rest is reserved for operators.
#[test]
fn a_node_whose_descriptors_are_used_up_still_answers_the_operator() {
    if !has(&["prlimit"]) {
        return;
    }
    let (mut pair, entry) = Pair::echo("");
    pair.app.kill();
    pair.app.start_with_descriptors(240);
    pair.app.ready();
    let held: Vec<TcpStream> = (0..400).filter_map(|_| TcpStream::connect(entry).ok()).collect();
    let errors = |status: &Value| status["relay"]["accept_errors"].as_u64().is_some_and(|n| n > 0);
    wait_for("clients wait for descriptors", || errors(&pair.app.status()));
    for _ in 0..20 {
        assert_eq!(pair.app.probe("/healthz").unwrap().0, 200);
        assert_eq!(pair.app.cli(&["status"]).code, Some(0));
        renew(&pair.app).unwrap();
        thread::sleep(ms(50));
    }
    assert!(errors(&pair.app.status()));
    drop(held);
    wait_for("connections are accepted again", || once(entry).is_ok());
}
