//! What people and monitoring systems see: commands, exit codes, status, metrics, logs, the demo.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::life::refused;
use super::rig::*;

#[test]
fn every_verb_explains_itself() {
    let help = |args: &[&str]| Ran::of(wiretight().args(args).arg("--help"), "").good().out;
    let verbs = |text: &str| -> Vec<String> {
        let list = text.split("Commands:\n").nth(1).unwrap_or_default();
        let lines = list.lines().take_while(|l| l.starts_with("  "));
        // A line that is indented further continues the one before it.
        let lines = lines.filter_map(|l| l.strip_prefix("  ").filter(|l| !l.starts_with(' ')));
        lines.filter_map(|l| l.split_whitespace().next()).map(str::to_owned).collect()
    };
    let all = verbs(&help(&[]));
    for verb in [
        "init",
        "run",
        "check",
        "status",
        "reload",
        "join",
        "token",
        "node",
        "svid",
        "authority",
        "demo",
        "completions",
        "man",
    ] {
        assert!(all.iter().any(|v| v == verb), "{verb} is not in {all:?}");
    }
    for verb in all.iter().filter(|v| *v != "help") {
        let text = help(&[verb]);
        assert!(text.contains("Usage: wiretight"), "{text}");
        for under in verbs(&text).iter().filter(|v| *v != "help") {
            let text = help(&[verb, under]);
            assert!(text.contains(&format!("Usage: wiretight {verb} {under}")), "{text}");
        }
    }
    let none = Ran::of(&mut wiretight(), "");
    assert!(none.code == Some(2) && none.err.contains("Usage: wiretight"), "{none:?}");
    let wrong = Ran::of(wiretight().arg("encrypt"), "");
    assert_eq!(wrong.code, Some(2), "{wrong:?}");
    let version = Ran::of(wiretight().arg("--version"), "").good();
    assert_eq!(version.out, format!("wiretight {}\n", env!("CARGO_PKG_VERSION")));
}

/// A command ends silently when its output is closed.
#[test]
fn a_closed_pipe_is_no_error() {
    let world = World::new();
    let node = world.node("n1", "");
    let file = node.file();
    let shell = |line: &str| {
        let mut command = std::process::Command::new("sh");
        let wiretight = env!("CARGO_BIN_EXE_wiretight");
        command.args(["-c", &format!("{{ {wiretight} {line}; echo \"status $?\" >&2; }} | true")]);
        Ran::of(&mut command, "")
    };
    for line in [
        "completions bash".to_owned(),
        "completions zsh".to_owned(),
        "check --example".to_owned(),
        format!("check {}", file.display()),
        "--help".to_owned(),
    ] {
        let ran = shell(&line);
        assert_eq!(ran.err, "status 0\n", "{line}");
    }
}

#[test]
fn errors_are_json_if_requested_and_printed_once() {
    let world = World::new();
    let mut node = world.node("n1", "");
    let ran = node.cli(&["status", "--json"]);
    let error: Value = serde_json::from_str(&ran.err).unwrap();
    assert!(error["error"].as_str().unwrap().contains("no node is running"), "{ran:?}");
    fs::write(node.file(), "[node]\n[tunel]\n").unwrap();
    let ran = node.cli(&["status", "--json"]);
    let error: Value = serde_json::from_str(&ran.err).unwrap();
    let problems: Vec<_> =
        error["errors"].as_array().unwrap().iter().map(|e| &e["problem"]).collect();
    assert!(ran.code == Some(2) && problems.contains(&&json!("no such section")), "{ran:?}");
    for section in ["[witnesses]", "[log]", "[[acme]]"] {
        assert!(ran.err.contains(section), "{ran:?}");
    }
    let none = Ran::of(wiretight().args(["check", "/nonexistent/w.toml"]), "");
    assert!(none.err.contains("wiretight check --example"), "{none:?}");
    let example = Ran::of(wiretight().args(["check", "--example"]), "").good();
    fs::write(node.file(), &example.out).unwrap();

    node.write("");
    node.start();
    wait_for("it reports what is missing", || {
        node.http("GET", "/v1/status", "").is_ok_and(|(_, status)| status.contains("join token"))
    });
    let status = node.cli(&["status"]);
    assert_eq!(
        status.out.replace("\n    ", " ").matches("cannot read the join token").count(),
        1,
        "{}",
        status.out
    );
    assert!(status.out.lines().all(|line| line.chars().count() <= 100), "{}", status.out);
}

#[test]
fn check_distinguishes_valid_and_invalid_files() {
    let world = World::new();
    let node = world.node("n1", &service("db", free(), "127.0.0.1:5432", "\"service/web\""));
    let check = |args: &[&str]| Ran::of(wiretight().arg("check").args(args).arg(node.file()), "");
    let good = check(&[]).good();
    assert!(good.out.contains("is valid: node n1 of example.org, 1 service, 0 dials"), "{good:?}");
    let good = check(&["--json"]).good().json();
    assert_eq!((&good["ok"], &good["services"]), (&json!(true), &json!(["db"])));

    let line = fs::read_to_string(node.file()).unwrap().lines().count() + 1;
    let mut text = fs::read_to_string(node.file()).unwrap();
    text += "foward = \"127.0.0.1:1\"\n";
    fs::write(node.file(), text).unwrap();
    let bad = check(&[]);
    assert_eq!(bad.code, Some(2), "{bad:?}");
    let file = node.file().display().to_string();
    // File, line, key and what to do.
    for part in [&format!("{file}:{line}"), "foward", "forward"] {
        assert!(bad.err.contains(part), "no {part:?} in {}", bad.err);
    }
    let bad = check(&["--json"]);
    assert_eq!(bad.code, Some(2));
    let error = &bad.json()["errors"][0];
    assert_eq!((&error["file"], &error["line"]), (&json!(file), &json!(line)), "{error:#}");
    assert!(error["key"].as_str().unwrap().contains("foward"), "{error:#}");
    assert!(!error["problem"].as_str().unwrap().is_empty(), "{error:#}");
    assert!(!error["advice"].as_str().unwrap().is_empty(), "{error:#}");

    let none = Ran::of(wiretight().args(["check", "/nonexistent/wiretight.toml"]), "");
    assert!(none.code == Some(2) && none.err.contains("/nonexistent/wiretight.toml"), "{none:?}");
    // `run` refuses what `check` refuses.
    let ran = Ran::of(wiretight().args(["run", "--config"]).arg(node.file()), "");
    assert!(ran.code == Some(2) && ran.err.contains("foward"), "{ran:?}");
}

#[test]
fn check_reads_the_witness_policy_and_reports_weaknesses() {
    use wiretight_tlog::cosignature::Algorithm::{Ed25519, MlDsa44};
    let world = World::new();
    let policy = world.path("policy");
    let section = format!("[witnesses]\npolicy = \"{}\"\n", policy.display());
    let node = world.node("n1", &section);
    let check = |args: &[&str]| Ran::of(wiretight().arg("check").args(args).arg(node.file()), "");
    let name = |text: String| wiretight_tlog::note::KeyName::new(&text).unwrap();
    let log = wiretight_tlog::LogSigner::generate(name("log.example".into())).unwrap();
    let write = |algorithm, quorum: &str| {
        let mut text = format!("log {}\n", log.public());
        for n in 0..8u8 {
            let name = name(format!("witness.example/{n}"));
            let key = wiretight_tlog::Cosigner::from_seed(name, algorithm, &[n; 32]).unwrap();
            text.push_str(&format!("witness w{n} {}\n", key.public()));
        }
        fs::write(&policy, format!("{text}{quorum}\n")).unwrap();
    };
    let missing = check(&[]);
    assert!(missing.code == Some(2) && missing.err.contains("policy"), "{missing:?}");
    for (quorum, parts) in [
        ("group g 2 w0 w1 w2\nquorum g", &[][..]),
        ("quorum none", &["no witness has to see the log"]),
        ("group g 1 w0 w1 w2\nquorum g", &["can show two histories", "one witness is enough"]),
        ("group g any w0 w1\nquorum g", &["can show two histories", "one witness is enough"]),
        ("group g 2 w0 w1 w2 w3\nquorum g", &["can show two histories"]),
        ("quorum w3", &["one witness is enough"]),
    ] {
        write(Ed25519, quorum);
        let good = check(&["--json"]).good().json();
        let warnings = good["warnings"].as_array().unwrap();
        let texts: Vec<_> = warnings.iter().filter_map(|w| w.as_str()).collect();
        assert_eq!(texts.len(), parts.len(), "{quorum}: {texts:?}");
        let all = check(&[]).good().out;
        assert!(parts.iter().all(|part| all.contains(part)), "{quorum}: {all}");
    }
    write(MlDsa44, "group g all w0 w1 w2 w3 w4\nquorum g");
    check(&[]).good();
    write(MlDsa44, "group g all w0 w1 w2 w3 w4 w5 w6\nquorum g");
    for bad in [check(&[]), check(&["--json"])] {
        assert_eq!(bad.code, Some(2), "{bad:?}");
        assert!(bad.all().contains("has room for 24576"), "{bad:?}");
    }
    // An authority does not start on it either.
    let authority = format!("[authority]\nlisten = \"{}\"\n{section}", free());
    node.write(&authority);
    let ran = Ran::of(wiretight().args(["run", "--config"]).arg(node.file()), "");
    assert!(ran.code != Some(0) && ran.err.contains("has room for"), "{ran:?}");
    write(MlDsa44, "group g 5 w0 w1 w2 w3 w4 w5 w6\nquorum g");
    check(&[]).good();
}

#[test]
fn without_a_node_every_command_exits_with_3() {
    let world = World::new();
    let node = world.node("n1", "");
    for args in [
        &["status"][..],
        &["status", "--json"],
        &["status", "--plaintext"],
        &["mode"],
        &["mode", "strict"],
        &["mode", "strict", "--dry-run"],
        &["mode", "confirm"],
        &["reload"],
        &["svid", "renew"],
        &["token", "create", "--node", "n2"],
        &["node", "list"],
        &["node", "remove", "n2"],
        &["authority", "status"],
    ] {
        let ran = node.cli(args);
        assert_eq!(ran.code, Some(3), "{args:?}: {ran:?}");
        assert!(ran.err.contains("no node is running"), "{args:?}: {ran:?}");
        assert!(ran.err.contains("wiretight run"), "{args:?}: {ran:?}");
        assert!(ran.out.is_empty(), "{args:?}: {ran:?}");
    }
}

#[test]
fn a_node_that_has_not_joined_reports_what_is_missing() {
    let world = World::new();
    let mut node = world.node("n1", "");
    node.start();
    wait_for("it answers", || node.probe("/healthz").is_ok_and(|(code, _)| code == 200));
    wait_for("the reason and the next step", || {
        let (code, why) = node.probe("/readyz").unwrap();
        assert_eq!(code, 503, "{why}");
        why.contains("token")
    });
    let ran = node.cli(&["status"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.out.contains("not ready: ") && ran.out.contains("token"), "{}", ran.out);
    assert_eq!(node.status()["ready"], false);
    let (_, metrics) = node.probe("/metrics").unwrap();
    assert_eq!(openmetrics(&metrics)["wiretight_ready"], 0.0);
    // Commands for the authority are refused with that reason.
    let ran = node.cli(&["token", "create", "--node", "n2"]);
    assert!(ran.code == Some(1) && ran.err.contains("not the authority"), "{ran:?}");
    assert_eq!(node.probe("/v1/status").unwrap().0, 404);

    // The control: it joins, and the health check confirms it.
    let auth = world.authority("");
    fs::write(node.token_file(), auth.token("n1", &[])).unwrap();
    node.ready();
    assert_eq!(node.probe("/readyz").unwrap(), (200, "ready\n".into()));
    assert_eq!(node.cli(&["status"]).code, Some(0));
}

#[test]
fn status_shows_peers_protocols_and_ciphers() {
    let (pair, entry) = Pair::echo("");
    let mut talk = Talk::open(entry).unwrap();
    talk.exchange().unwrap();

    let text = pair.app.cli(&["status"]).good().out;
    let web = format!("spiffe://{TD}/service/web");
    let echo = format!("spiffe://{TD}/service/echo");
    for part in [
        "node app1 of example.org",
        "ready",
        "pid ",
        "sandbox ",
        "connected to 127.0.0.1:",
        &web,
        "EXPIRES IN",
        "min",
        &entry.to_string(),
        "mesh at 127.0.0.1:",
        "as service/web",
        "dial",
        &echo,
        "TLSv1.3",
        GROUP,
        CIPHER,
        "LIVE",
        "IDLE",
        "SESSIONS",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    assert!(!text.contains('\x1b'), "colour in a pipe");
    assert!(
        text.lines().all(|line| line.chars().count() <= 100),
        "wider than 100 columns:\n{text}"
    );
    let text = pair.db.cli(&["status"]).good().out;
    for part in ["program at 127.0.0.1:", "for service/web", &web, GROUP, CIPHER] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    let text = pair.auth.cli(&["node", "list"]).good().out;
    for part in ["NODE", "CONNECTED", "app1", "db1", "yes", "echo at 127.0.0.1:"] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }

    let status = pair.app.status();
    for key in [
        "version",
        "node",
        "trust_domain",
        "pid",
        "taking_over",
        "uptime_seconds",
        "ready",
        "not_ready",
        "identities",
        "authority_link",
        "is_authority",
        "services",
        "dials",
        "relay",
        "sandbox",
    ] {
        assert!(status.get(key).is_some(), "no {key}: {status:#}");
    }
    assert_eq!(status["pid"], pair.app.pid());
    let own = status["identities"].as_array().unwrap();
    assert!(own.iter().any(|i| i["id"] == *web), "{own:?}");
    assert!(own.iter().all(|i| (3000..=3700).contains(&i["expires_in_seconds"].as_i64().unwrap())));
    let all = status["relay"]["connections"].as_array().unwrap();
    let busy: Vec<_> = all.iter().filter(|c| c["busy"] == true).collect();
    assert_eq!(busy.len(), 1, "{all:?}");
    for key in [
        "side",
        "service",
        "peer",
        "address",
        "group",
        "cipher",
        "sessions",
        "bytes_out",
        "bytes_in",
        "age_seconds",
    ] {
        assert!(busy[0].get(key).is_some(), "no {key}: {:#}", busy[0]);
    }
    let moved = talk_bytes(busy[0]);
    talk.exchange().unwrap();
    wait_for("bytes are counted while a session runs", || {
        let status = pair.app.status();
        let all = status["relay"]["connections"].as_array().unwrap();
        all.iter().any(|c| c["busy"] == true && talk_bytes(c) > moved)
    });
    talk.close().unwrap();
    wait_for("the connection is idle again", || {
        let sums = &pair.app.status()["relay"]["sums"][0];
        sums["live"] == 0 && sums["idle"].as_u64().unwrap() > 0
    });
    pair.assert_protected("echo");
}

fn talk_bytes(connection: &Value) -> u64 {
    connection["bytes_out"].as_u64().unwrap() + connection["bytes_in"].as_u64().unwrap()
}

/// The samples of a text, which must be valid OpenMetrics.
pub(crate) fn openmetrics(text: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    let mut kinds: BTreeMap<&str, &str> = BTreeMap::new();
    let lines: Vec<&str> = text.lines().collect();
    assert!(text.ends_with("# EOF\n"), "{text}");
    for line in &lines[..lines.len() - 1] {
        if let Some(rest) = line.strip_prefix("# ") {
            let parts: Vec<&str> = rest.splitn(3, ' ').collect();
            assert!(["HELP", "TYPE", "UNIT"].contains(&parts[0]) && parts.len() == 3, "{line}");
            if parts[0] == "TYPE" {
                assert!(kinds.insert(parts[1], parts[2]).is_none(), "twice: {line}");
            }
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
        let family = name.split('{').next().unwrap();
        let is = |suffix: &str, kind: &str| {
            family.strip_suffix(suffix).is_some_and(|base| kinds.get(base) == Some(&kind))
        };
        let known = is("_total", "counter")
            || is("", "gauge")
            || ["_bucket", "_sum", "_count"].iter().any(|suffix| is(suffix, "histogram"));
        assert!(known, "no TYPE for {line}");
        if let Some(labels) = name.strip_prefix(family).filter(|l| !l.is_empty()) {
            let labels = labels.strip_prefix('{').and_then(|l| l.strip_suffix('}'));
            let labels = labels.unwrap_or_else(|| panic!("{line}"));
            for label in labels.split("\",").filter(|l| !l.is_empty()) {
                assert!(label.contains("=\""), "{line}");
            }
        }
        let value = value.parse().unwrap_or_else(|e| panic!("{line}: {e}"));
        let name = name.trim_end_matches("{}").to_owned();
        assert!(samples.insert(name, value).is_none(), "twice: {line}");
    }
    samples
}

#[test]
fn metrics_are_valid_openmetrics_and_count() {
    let (pair, entry) = Pair::echo("");
    let read = |node: &Node| openmetrics(&node.probe("/metrics").unwrap().1);
    let of = |m: &BTreeMap<String, f64>, name: &str, side: &str| -> f64 {
        let key = format!("wiretight_{name}{{side=\"{side}\",service=\"echo\"}}");
        *m.get(&key).unwrap_or_else(|| panic!("no {key} in {m:#?}"))
    };
    for _ in 0..7 {
        once(entry).unwrap();
    }
    let mut talk = Talk::open(entry).unwrap();
    talk.exchange().unwrap();
    for (node, side) in [(&pair.app, "dial"), (&pair.db, "service")] {
        wait_for("all are counted", || {
            let m = read(node);
            // Each exchange of Talk's first is 16 + 37 bytes.
            of(&m, "sessions_total", side) == 8.0
                && of(&m, "sessions_live", side) == 1.0
                && of(&m, "sent_bytes_total", side) == 8.0 * 53.0
                && of(&m, "received_bytes_total", side) == 8.0 * 53.0
        });
        let m = read(node);
        let handshakes = of(&m, "handshakes_total", side);
        assert!((1.0..8.0).contains(&handshakes), "connections are not used again: {handshakes}");
        assert_eq!(of(&m, "sessions_failed_total", side), 0.0);
        assert_eq!(of(&m, "session_open_duration_seconds_count", side), 8.0);
        let shaken = of(&m, "handshake_duration_seconds_count", side);
        assert!(shaken >= handshakes && shaken < 8.0, "{shaken} {handshakes}");
        // A service connects to its backend for each session, a dial to its peer for each handshake.
        let connects = of(&m, "connect_duration_seconds_count", side);
        assert!(if side == "dial" { connects >= handshakes } else { connects == 8.0 });
        assert!((1e-6..8.0).contains(&of(&m, "session_open_duration_seconds_sum", side)));
        assert_eq!(m["wiretight_ready"], 1.0);
        assert_eq!(m["wiretight_authority_connected"], 1.0);
        assert!(
            m.keys().any(|k| k.starts_with("wiretight_svid_not_after_timestamp_seconds{id=")),
            "{m:#?}"
        );
    }
}

#[test]
fn the_access_log_has_one_line_per_connection() {
    let (pair, entry) = Pair::echo("");
    for _ in 0..5 {
        once(entry).unwrap();
    }
    let id = |name: &str| format!("spiffe://{TD}/service/{name}");
    for (node, side, peer) in [(&pair.app, "dial", id("echo")), (&pair.db, "service", id("web"))] {
        wait_for("five lines", || node.access().len() >= 5);
        let lines = node.access();
        assert_eq!(lines.len(), 5, "{lines:?}");
        for line in lines {
            let fields = ["side", "service", "peer", "group", "cipher", "end"];
            let seen: Vec<_> = fields.iter().map(|f| line[*f].as_str().unwrap_or("?")).collect();
            assert_eq!(seen, [side, "echo", &peer, GROUP, CIPHER, "done"], "{line:#}");
            assert_eq!((&line["bytes_in"], &line["bytes_out"]), (&json!(53), &json!(53)));
            assert!(line["ms"].is_u64() && line["timestamp"].is_string(), "{line:#}");
            for field in ["address", "plain"] {
                let address = line[field].as_str().unwrap();
                assert!(address.parse::<std::net::SocketAddr>().is_ok(), "{field}: {line:#}");
            }
        }
    }
}

#[test]
fn refused_attempts_are_shown_with_the_reason_on_both_sides() {
    let world = World::new();
    let auth = world.authority("");
    let (entry, dead, at) = (free(), free(), free());
    let offers = service("echo", free(), echo(), "\"service/web\"")
        + &service("down", free(), dead, "\"service/web\"");
    let db = world.joined(&auth, "db1", &["echo", "down"], &offers);
    let (down, nowhere) = (free(), free());
    // `as` is not set: the caller is node/app1, which the service does not allow; no node offers `nowhere`.
    let dials = format!("[[dial]]\nlisten = \"{entry}\"\nservice = \"echo\"\n")
        + &dial(at, "echo", "web")
        + &dial(down, "down", "web")
        + &dial(nowhere, "nowhere", "web");
    let app = world.joined(&auth, "app1", &["web"], &dials);
    ["echo", "down"].iter().for_each(|name| app.knows(name));
    assert!(once(entry).is_err() && once(down).is_err() && once(nowhere).is_err());
    once(at).unwrap();
    for (node, side, service, reason) in [
        (&app, "dial", "echo", "not_allowed"),
        (&db, "service", "echo", "not_allowed"),
        (&app, "dial", "down", "backend_unavailable"),
        (&db, "service", "down", "backend_unavailable"),
        (&app, "dial", "nowhere", "no_instance"),
    ] {
        let of = |list: &Value| -> Option<Value> {
            let all = list.as_array().unwrap();
            let ours =
                |r: &&Value| r["side"] == side && r["service"] == service && r["reason"] == reason;
            all.iter().find(ours).cloned()
        };
        wait_for(reason, || of(&node.status()["relay"]["refusals"]).is_some());
        let status = node.status();
        let shown = of(&status["relay"]["refusals"]).unwrap();
        assert!(!shown["detail"].as_str().unwrap().is_empty(), "{shown:#}");
        assert!(of(&status["relay"]["refused"]).unwrap()["count"].as_u64().unwrap() > 0);
        let text = node.cli(&["status"]).out;
        assert!(text.contains("REFUSED") && text.contains(reason), "{text}");
        let log = node.log();
        let logged = log.lines().any(|l| l.contains("\"refused\"") && l.contains(reason));
        assert!(logged, "{reason} is not in the log of {}", node.name);
        let metrics = openmetrics(&node.probe("/metrics").unwrap().1);
        let key = format!(
            "wiretight_refused_total{{side=\"{side}\",service=\"{service}\",reason=\"{reason}\"}}"
        );
        assert!(metrics[&key] > 0.0, "{metrics:#?}");
    }
    let status = db.status();
    let refusals = status["relay"]["refusals"].as_array().unwrap();
    let denied = refusals.iter().find(|r| r["reason"] == "not_allowed").unwrap();
    assert_eq!(denied["peer"], format!("spiffe://{TD}/node/app1"));
    assert!(
        denied["detail"].as_str().unwrap().contains("is not in `allow` of service/echo"),
        "{denied:#}"
    );
    assert!(refused(&app, "dial", "not_allowed"));
}

#[test]
fn the_demo_leaks_nothing_and_shows_it() {
    let ran = Ran::of(wiretight().args(["demo", "--once", "--json"]), "").good();
    let report = ran.json();
    let (direct, relayed) = (&report["direct"], &report["relayed"]);
    assert_eq!(direct["canary_seen"], true, "{report:#}");
    assert_eq!(relayed["canary_seen"], false, "{report:#}");
    assert_eq!(relayed["protocol"], "TLSv1.3");
    assert_eq!(relayed["group"], GROUP);
    assert_eq!(relayed["cipher"], CIPHER);
    assert_eq!(relayed["client_id"], "spiffe://demo.wiretight/service/web");
    assert_eq!(relayed["server_id"], "spiffe://demo.wiretight/service/hello");
    assert!(relayed["bytes"].as_u64().unwrap() > 1_000_000, "{report:#}");

    // Output for people: side by side.
    let ran = Ran::of(wiretight().args(["demo", "--once"]), "").good();
    for part in
        ["direct", "through Wiretight", "FOUND", "not found", "TLSv1.3", GROUP, "service/web"]
    {
        assert!(ran.out.contains(part), "no {part:?} in\n{}", ran.out);
    }
}

#[test]
fn the_demo_runs_with_the_users_own_service_until_it_is_stopped() {
    let world = World::new();
    let own = echo();
    let log = world.path("demo.log");
    let mut command = wiretight();
    command.args(["demo", "--forward", &own.to_string()]);
    let mut demo = Kid::start(&mut command, &log);
    wait_for("it prints commands to try", || {
        assert!(demo.ended(ms(0)).is_none(), "{}", demo.log());
        demo.log().contains("Stop with Ctrl-C")
    });
    let text = demo.log();
    let entry = text.lines().find_map(|l| l.strip_prefix("Your own server, through the relays: "));
    once(entry.unwrap().parse().unwrap()).unwrap();
    let folder = text.lines().find_map(|l| l.strip_prefix("Logs: ")?.split("/*.log").next());
    let folder = std::path::PathBuf::from(folder.unwrap());
    // Try the commands that it prints.
    let status = text.lines().find(|l| l.contains(" status --config ")).unwrap().trim();
    let words: Vec<_> = status.split_whitespace().skip(1).collect();
    let shown = Ran::of(wiretight().args(words), "").good();
    assert!(shown.out.contains(GROUP), "{shown:?}");
    demo.signal(Signal::INT);
    let status = demo.ended(Duration::from_secs(30));
    assert_eq!(status.and_then(|s| s.code()), Some(0), "{}", demo.log());
    assert!(!folder.exists(), "it left {} behind", folder.display());
}

#[test]
fn landlock_confines_the_node_and_traffic_flows() {
    let (mut pair, entry) = Pair::echo("");
    once(entry).unwrap();
    for node in [&pair.auth, &pair.db, &pair.app] {
        match node.status()["sandbox"].as_str().unwrap() {
            "unsupported" => {
                assert!(std::env::var_os("CI").is_none(), "CI must have Landlock");
                say("skipped: landlock_confines_the_node: this kernel has none");
            }
            on => {
                assert!(["enforced", "partly"].contains(&on), "{on}");
            }
        }
        assert_eq!(node.proc_status("NoNewPrivs"), Some(1), "with Landlock or without");
    }
    // If disabled, it is off and reported as off.
    let text = fs::read_to_string(pair.app.file()).unwrap();
    fs::write(pair.app.file(), text.replacen("[node]\n", "[node]\nlandlock = false\n", 1)).unwrap();
    pair.app.kill();
    pair.app.start();
    pair.app.ready();
    assert_eq!(pair.app.status()["sandbox"], "off");
    wait_for("traffic flows", || once(entry).is_ok());
}

#[test]
fn the_systemd_unit_lets_landlock_through_its_system_call_filter() {
    let unit = concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging/systemd/wiretight.service");
    let text = fs::read_to_string(unit).unwrap();
    let filters: Vec<_> =
        text.lines().filter_map(|l| l.strip_prefix("SystemCallFilter=")).collect();
    for call in ["landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"] {
        assert!(filters.iter().any(|f| f.split(' ').any(|c| c == call)), "{call}: {filters:?}");
    }
}

#[test]
fn colour_is_used_only_in_terminals_that_want_it() {
    if !has(&["script"]) {
        return;
    }
    let (pair, entry) = Pair::echo("");
    once(entry).unwrap();
    // script(1) gives it a terminal.
    let run = |variable: &str, value: &str| {
        let line = format!(
            "{} status --config {}",
            env!("CARGO_BIN_EXE_wiretight"),
            pair.app.file().display()
        );
        let mut command = std::process::Command::new(find("script").unwrap());
        command.args(["-qec", &line, "/dev/null"]).env(variable, value);
        Ran::of(&mut command, "").good().out
    };
    let on_a_terminal = |no_color: &str| run("NO_COLOR", no_color);
    let dumb = || run("TERM", "dumb");
    assert!(on_a_terminal("").contains("\x1b["));
    assert!(!dumb().contains("\x1b["));
    assert!(!on_a_terminal("1").contains("\x1b["));
    assert!(!pair.app.cli(&["status"]).good().out.contains("\x1b["));
}

#[test]
fn systemd_is_notified_of_start_reload_and_stop() {
    let world = World::new();
    let path = world.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let told = || {
        let mut buffer = [0; 4096];
        let n = socket.recv(&mut buffer).expect("a notification");
        String::from_utf8_lossy(&buffer[..n]).into_owned()
    };
    let auth = free();
    let mut node = world.node("auth", &format!("[authority]\nlisten = \"{auth}\"\n"));
    node.env.push(("NOTIFY_SOCKET", path));
    node.start();
    let first = told();
    assert!(first.lines().any(|l| l == "READY=1"), "{first}");
    node.ready();
    // The watchdog is notified.
    node.kill();
    node.env.push(("WATCHDOG_USEC", "400000".into()));
    node.start();
    wait_for("the watchdog is fed", || told().lines().any(|l| l == "WATCHDOG=1"));
    node.kill();
    // What the killed process sent is not read as the next one's.
    socket.set_nonblocking(true).unwrap();
    while socket.recv(&mut [0; 4096]).is_ok() {}
    socket.set_nonblocking(false).unwrap();
    node.env.pop();
    node.start();
    // A reload at this moment does not end it.
    wait_for("it reports it", || told().lines().any(|l| l == "READY=1"));
    for good in [true, false] {
        if !good {
            fs::write(node.file(), "no TOML").unwrap();
        }
        node.kid().signal(Signal::HUP);
        let reloading = told();
        assert!(reloading.lines().any(|l| l == "RELOADING=1"), "{reloading}");
        assert!(reloading.lines().any(|l| l.starts_with("MONOTONIC_USEC=")), "{reloading}");
        let ready = told();
        assert!(ready.lines().any(|l| l == "READY=1"), "{ready}");
    }
    node.kid().signal(Signal::TERM);
    let stopping = told();
    assert!(stopping.lines().any(|l| l == "STOPPING=1"), "{stopping}");
    assert_eq!(node.kid().ended(PATIENCE).and_then(|s| s.code()), Some(0));
}
