//! A bad log, webhook, file or entry neither stops nor silences the monitor.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::forged::{DNS, Forged, IP, hash, key, named};
use super::monitor::World;
use super::rig::{
    BINARY, Fault, Hook, KilledOnDrop, now, serve_with, stderr, stdout, wait_for, wiretight, write,
};

/// A monitor as a process, which ends with this value.
struct Monitor {
    child: KilledOnDrop,
    log: std::path::PathBuf,
}

impl Monitor {
    fn start(state: &Path, policy: &str, more: &[&str]) -> Monitor {
        let log = state.with_extension("stderr");
        let state = state.display().to_string();
        let args = ["monitor", "--policy", policy, "--state", &state, "--interval", "1s"];
        let child = Command::new(BINARY)
            .args(args)
            .args(more)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Monitor { child: KilledOnDrop(child), log }
    }

    fn said(&self, text: &str) -> bool {
        std::fs::read_to_string(&self.log).unwrap().contains(text)
    }

    fn alerts(&self, kind: &str) -> usize {
        let text = std::fs::read_to_string(&self.log).unwrap();
        text.matches(&format!("\"alert\":\"{kind}\"")).count()
    }
}

fn status(state: &str) -> (Option<i32>, String) {
    let shown = wiretight(&["monitor", "status", "--state", state, "--json"]);
    let value: serde_json::Value = serde_json::from_str(&stdout(&shown)).unwrap();
    (shown.status.code(), value["state"].as_str().unwrap().to_owned())
}

#[test]
fn a_log_that_withholds_signed_entries_is_reported() {
    let mut world = World::new(300);
    let (policy, files) = (world.path("policy"), world.dir.path().join("log"));
    let on = Arc::new(AtomicBool::new(false));
    let entries = |fault| (fault, "tile/entries");
    let faults = [
        entries(Fault::Status(404)),
        entries(Fault::Status(403)),
        entries(Fault::Status(503)),
        entries(Fault::Hang),
        entries(Fault::TooLong),
        entries(Fault::Gzip),
        entries(Fault::GzipBomb),
        entries(Fault::GzipCut),
        (Fault::Status(403), "tile"),
        (Fault::Hang, "checkpoint"),
    ];
    let mut monitors = Vec::new();
    for (n, (fault, part)) in faults.into_iter().enumerate() {
        let on = on.clone();
        let bad = move |path: &str| {
            (on.load(Ordering::Relaxed) && path.starts_with(part)).then_some(fault)
        };
        let url = format!("http://{}", serve_with(files.clone(), bad));
        let hook = Hook::start();
        let webhook = format!("http://{}/hook", hook.addr);
        let state = world.dir.path().join(format!("state{n}"));
        let more = ["--url", &url, "--webhook", &webhook, "--max-blind", "2s", "--repeat", "2s"];
        monitors.push((Monitor::start(&state, &policy, &more), state, hook, fault, part));
    }
    for (monitor, ..) in &monitors {
        wait_for("the first look", || monitor.said("\"new\":300"));
    }
    // The control: as long as everything is served, there is no alert.
    assert!(monitors.iter().all(|(monitor, ..)| monitor.alerts("blind") == 0));
    on.store(true, Ordering::Relaxed);
    world.log = world.log.forked(300, 310);
    world.publish(&world.log, 310, now());
    for (monitor, state, hook, fault, part) in &monitors {
        let what = format!("an alert twice, with {fault:?} of {part}");
        wait_for(&what, || monitor.alerts("blind") >= 2);
        wait_for("the webhook is told", || hook.bodies().iter().any(|b| b["kind"] == "blind"));
        let state = state.display().to_string();
        let what = format!("it is shown, with {fault:?} of {part}");
        wait_for(&what, || status(&state) == (Some(3), "blind".into()));
    }
    // The withheld files are served again: the monitor continues, unless a request still hangs.
    on.store(false, Ordering::Relaxed);
    for (monitor, .., fault, _) in &monitors {
        if !matches!(fault, Fault::Hang) {
            wait_for("it reads on", || monitor.said("\"new\":10"));
        }
    }
}

#[test]
fn a_log_that_never_existed_is_reported() {
    let world = World::new(3);
    let state = world.dir.path().join("state-never");
    let url = format!("{}/wrong/prefix", world.url);
    let more = ["--url", &url, "--max-blind", "1s"];
    let monitor = Monitor::start(&state, &world.path("policy"), &more);
    wait_for("an alert", || monitor.alerts("blind") > 0);
    let state = state.display().to_string();
    wait_for("it is shown", || status(&state) == (Some(3), "blind".into()));
    drop(monitor);
    // No monitor is running and the status file is old: people can see that as well.
    let file = Path::new(&state).join("status.json");
    let text = std::fs::read_to_string(&file).unwrap();
    let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
    value["time"] = (now() - 100).into();
    std::fs::write(&file, value.to_string()).unwrap();
    assert_eq!(status(&state), (Some(3), "not-running".into()));
    // A single run reports it at once.
    let output = wiretight(&[
        "monitor",
        "--once",
        "--policy",
        &world.path("policy"),
        "--url",
        &url,
        "--state",
        &state,
    ]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(stderr(&output).contains("\"alert\":\"blind\""), "{}", stderr(&output));
}

#[test]
fn the_heartbeat_stops_when_a_log_cannot_be_read() {
    let world = World::new(3);
    let on = Arc::new(AtomicBool::new(false));
    let withheld = on.clone();
    let bad = move |_: &str| withheld.load(Ordering::Relaxed).then_some(Fault::Status(500));
    let url = format!("http://{}", serve_with(world.dir.path().join("log"), bad));
    let heart = format!("http://{}/beat", world.hook.addr);
    let state = world.dir.path().join("state-heart");
    let more = ["--url", &url, "--heartbeat", &heart, "--max-blind", "1s"];
    let monitor = Monitor::start(&state, &world.path("policy"), &more);
    let beats = || world.hook.bodies().len();
    wait_for("a beat", || beats() > 0);
    let state = state.display().to_string();
    wait_for("it is shown", || status(&state) == (Some(0), "watching".into()));
    on.store(true, Ordering::Relaxed);
    wait_for("an alert", || monitor.alerts("blind") > 0);
    beats();
    std::thread::sleep(Duration::from_millis(1200));
    assert_eq!(beats(), 0);
}

#[test]
fn a_rate_limited_log_is_read_to_its_end() {
    let world = World::new(3000);
    // Ten requests per second.
    let window = Mutex::new((Instant::now(), 0));
    let refused = Arc::new(AtomicUsize::new(0));
    let count = refused.clone();
    let limit = move |_: &str| {
        let mut window = window.lock().unwrap();
        if window.0.elapsed() > Duration::from_secs(1) {
            *window = (Instant::now(), 0);
        }
        window.1 += 1;
        (window.1 > 10).then(|| {
            count.fetch_add(1, Ordering::Relaxed);
            Fault::TooOften(1)
        })
    };
    let url = format!("http://{}", serve_with(world.dir.path().join("log"), limit));
    let (policy, state) = (world.path("policy"), world.path("state"));
    let output =
        wiretight(&["monitor", "--once", "--policy", &policy, "--url", &url, "--state", &state]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stderr(&output).contains("\"new\":3000") || world.rows().len() == 3000);
    assert!(refused.load(Ordering::Relaxed) > 0, "the control: nothing was limited");
}

#[test]
fn no_entry_is_too_large_for_the_table() {
    let mut world = World::new(1);
    let nameless = vec![(IP, Vec::new()); 32_000];
    let forged = Forged { key: &key(), common_name: None, names: nameless, is_ca: false };
    world.log.entries.push(forged.entry());
    let long = "\u{1}".repeat(60_000);
    world.log.entries.push(named(&key(), &[(DNS, &long)]));
    world.log.entries.push(named(&key(), &[(DNS, "db.service.example.org")]));
    world.publish(&world.log, 4, now());
    world.quiet(&[]);
    assert_eq!(world.rows().len(), 4);
    let shown = wiretight(&["monitor", "list", "--state", &world.path("state")]);
    assert_eq!((shown.status.code(), stdout(&shown).lines().count()), (Some(0), 5));
    // A damaged row is reported and does not affect the others.
    let table = world.dir.path().join("state/entries.jsonl");
    let text = std::fs::read_to_string(&table).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    lines[1] = "{";
    std::fs::write(&table, lines.join("\n") + "\n").unwrap();
    let shown = wiretight(&["monitor", "list", "--state", &world.path("state")]);
    assert_eq!((shown.status.code(), stdout(&shown).lines().count()), (Some(1), 4));
    assert!(stderr(&shown).contains("1 rows"), "{}", stderr(&shown));
}

#[test]
fn a_webhook_that_is_down_delays_nothing_and_gets_every_alert_later() {
    let mut world = World::new(1);
    let names: Vec<_> = (0..4000).map(|n| (DNS, format!("n{n}.a.b").into_bytes())).collect();
    let many = Forged { key: &key(), common_name: None, names, is_ca: false };
    world.log.entries.push(many.entry());
    let stolen = key();
    world.log.entries.push(named(&stolen, &[(DNS, "db.service.example.org")]));
    world.publish(&world.log, 3, now());
    let expect = write(world.dir.path(), "expect", "").display().to_string();
    let state = world.dir.path().join("state");
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let webhook = format!("http://{nobody}/hook");
    let more = ["--url", &world.url, "--expect", &expect, "--webhook", &webhook];
    let begun = Instant::now();
    let monitor = Monitor::start(&state, &world.path("policy"), &more);
    wait_for("both are told", || monitor.alerts("unexpected-certificate") == 2);
    assert!(begun.elapsed() < Duration::from_secs(10));
    wait_for("all is read", || monitor.said("\"new\":3"));
    drop(monitor);
    // The next run delivers what was not delivered, and repeats nothing.
    let output = world.look(&["--expect", &expect]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let bodies = world.hook.bodies();
    assert_eq!(bodies.len(), 2, "{bodies:?}");
    assert_eq!(bodies[1]["key"], hash(&stolen));
    assert!(bodies[0]["names"].as_array().unwrap().len() <= 16);
    world.quiet(&["--expect", &expect]);
}

#[test]
fn an_incomplete_list_is_reported_and_the_previous_one_stays_in_use() {
    let mut world = World::new(1);
    let mine = key();
    let line = format!("service/db sha256:{}\n", hash(&mine));
    let expect = write(world.dir.path(), "expect", &line).display().to_string();
    let state = world.dir.path().join("state");
    let more = ["--url", &world.url, "--expect", &expect, "--watch", "service/db"];
    let mut monitor = Monitor::start(&state, &world.path("policy"), &more);
    wait_for("the first look", || monitor.said("\"new\":1"));
    write(world.dir.path(), "expect", &line[..40]);
    wait_for("it is told", || monitor.alerts("bad-expected-keys") > 0);
    world.log.entries.push(named(&mine, &[(DNS, "db.service.example.org")]));
    world.log.entries.push(named(&key(), &[(DNS, "db.service.example.org")]));
    world.publish(&world.log, 3, now());
    wait_for("the stolen one is told", || monitor.alerts("unexpected-certificate") == 1);
    assert!(monitor.said("(entry 2)") && !monitor.said("(entry 1)"));
    assert!(monitor.child.try_wait().unwrap().is_none(), "it ended");
}
