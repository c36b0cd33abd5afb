//! docs/mixin: the dashboards, alerts and rules are what their source gives, follow the rules of Grafana's
//! dashboard-linter and of promtool, name only metrics that the programs export, and show something for a real mesh.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::cli::openmetrics;
use super::intercept::{Wire, run};
use super::rig::*;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

fn generated(name: &str) -> String {
    read(&format!("docs/mixin/generated/{name}"))
}

const DASHBOARDS: [&str; 5] = ["coverage", "strict", "expiry", "log", "cost"];

fn dashboard(name: &str) -> Value {
    serde_json::from_str(&generated(&format!("wiretight-{name}.json"))).unwrap()
}

/// The expressions of a dashboard, with the titles of their panels.
fn targets(dashboard: &Value) -> Vec<(String, String)> {
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let expressions = panels.flat_map(|panel| {
        let title = panel["title"].as_str().unwrap().to_owned();
        let targets = panel["targets"].as_array().unwrap().iter();
        targets.map(move |target| (title.clone(), target["expr"].as_str().unwrap().to_owned()))
    });
    expressions.collect()
}

/// The metrics that a text names, each with what precedes and what follows it.
fn named(text: &str) -> Vec<(&str, &str, &str)> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut all = Vec::new();
    let mut at = 0;
    while let Some(start) = text[at..].find(is_part).map(|n| at + n) {
        let end = text[start..].find(|c| !is_part(c)).map_or(text.len(), |n| start + n);
        let word = &text[start..end];
        let ours = ["wiretight_", "process_"].iter().any(|prefix| word.starts_with(prefix));
        if ours || word == "up" || word.contains(":wiretight_") {
            all.push((&text[..start], word, &text[end..]));
        }
        at = end;
    }
    all
}

/// The expressions of a rules file, with the names of their rules. `key`: of the name.
fn rules(file: &str, key: &str) -> Vec<(String, String)> {
    let (mut all, mut open) = (Vec::<(String, String)>::new(), None);
    for line in generated(file).lines() {
        let item = line.trim_start_matches([' ', '-']);
        let indent = line.len() - item.len();
        if open.is_some_and(|outer| indent > outer) {
            all.last_mut().unwrap().1 += &format!("{item}\n");
            continue;
        }
        open = None;
        let Some((name, value)) = item.split_once(": ") else { continue };
        if line.trim_start().starts_with("- ") && (name == key || name == "expr") {
            all.push(Default::default());
        }
        match (name, value) {
            (_, value) if name == key => all.last_mut().unwrap().0 = value.trim_matches('"').into(),
            ("expr", "|") => open = Some(indent),
            ("expr", value) => all.last_mut().unwrap().1 = serde_json::from_str(value).unwrap(),
            _ => {}
        }
    }
    let complete = |(name, expr): &(String, String)| !name.is_empty() && !expr.is_empty();
    assert!(all.len() > 3 && all.iter().all(complete), "{all:?}");
    all
}

#[test]
fn the_mixins_files_are_what_its_source_gives() {
    // The one that scripts/test installs, or the system's.
    let python = root().join("target/tools/pypi/bin/python");
    let python = Some(python).filter(|p| p.exists()).or(find("python3"));
    let has_jsonnet = |python: &PathBuf| {
        Ran::of(Command::new(python).args(["-c", "import _jsonnet"]), "").code == Some(0)
    };
    let Some(python) = python.filter(has_jsonnet) else {
        return skip("Python with jsonnet (scripts/test installs it)");
    };
    let check = |at: &Path| {
        let mut command = Command::new(&python);
        Ran::of(command.arg(at.join("scripts/mixin")).arg("--check"), "")
    };
    check(&root()).good();
    // The control: a changed source.
    let copy = World::new();
    let copied = Ran::of(
        Command::new("cp")
            .args(["-r", "--parents", "docs/mixin", "scripts/mixin"])
            .arg(copy.path(""))
            .current_dir(root()),
        "",
    );
    copied.good();
    let config = copy.path("docs/mixin/config.libsonnet");
    let changed = fs::read_to_string(&config)
        .unwrap()
        .replace("checkpointSeconds: 900", "checkpointSeconds: 901");
    fs::write(&config, changed).unwrap();
    let ran = check(&copy.path(""));
    assert!(
        ran.code == Some(1) && ran.err.contains("not as generated: alerts.yaml. Run"),
        "{ran:?}"
    );
}

/// What Grafana's dashboard-linter demands, and what an import needs. Returns the faults.
fn faults(dashboard: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    let mut check = |good: bool, fault: String| {
        if !good {
            faults.push(fault);
        }
    };
    check(dashboard["editable"] == false, "editable".into());
    check(dashboard["uid"].as_str().is_some_and(|uid| uid.starts_with("wiretight-")), "uid".into());
    check(dashboard.get("__inputs").is_none() && dashboard.get("id").is_none(), "export".into());
    let empty = Vec::new();
    let list = |value: &Value| value.as_array().unwrap_or(&empty).clone();
    let variables = list(&dashboard["templating"]["list"]);
    let variable =
        |name: &str| variables.iter().find(|v| v["name"] == name).cloned().unwrap_or(Value::Null);
    let source = variable("datasource");
    check(
        source["type"] == "datasource" && source["query"] == "prometheus",
        "template-datasource".into(),
    );
    check(source["label"] == "Data source", "template-datasource: label".into());
    for (name, label) in [("job", "Job"), ("instance", "Instance")] {
        let of = variable(name);
        let right = of["type"] == "query" && of["label"] == label && of["multi"] == true;
        let all = of["includeAll"] == true && of["allValue"] == ".+";
        check(
            right && all && of["datasource"]["uid"] == "${datasource}",
            format!("template-{name}"),
        );
        check(of["refresh"] == 2, format!("template-on-time-change-reload: {name}"));
        let query = of["query"]["query"].as_str().unwrap_or_default();
        check(
            query.starts_with("label_values(") && query.ends_with(&format!(", {name})")),
            format!("template-label-promql: {name}"),
        );
    }
    let panels = list(&dashboard["panels"]);
    let ids: BTreeSet<_> = panels.iter().filter_map(|p| p["id"].as_u64()).collect();
    check(!panels.is_empty() && ids.len() == panels.len(), "panel ids".into());
    for panel in &panels {
        let title = panel["title"].as_str().unwrap_or_default();
        let mut check = |good: bool, rule: &str| check(good, format!("{rule}: {title}"));
        check(
            !title.is_empty() && panel["description"].as_str().is_some_and(|d| d.ends_with('.')),
            "panel-title-description",
        );
        check(panel["datasource"]["uid"] == "${datasource}", "panel-datasource");
        let unit = panel["fieldConfig"]["defaults"]["unit"].as_str().unwrap_or_default();
        check(
            ["percentunit", "short", "Bps", "bytes", "cps", "pps", "reqps", "s"].contains(&unit),
            "panel-units",
        );
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap_or(99);
        check(at("x") + at("w") <= 24, "outside of the grid");
        let targets = list(&panel["targets"]);
        check(!targets.is_empty(), "panel-no-targets");
        for target in &targets {
            check(target["datasource"]["uid"] == "${datasource}", "target-datasource");
            let expr = target["expr"].as_str().unwrap_or_default();
            let metrics = named(expr);
            check(!metrics.is_empty(), "target-promql");
            for (before, name, after) in &metrics {
                let selector = after
                    .strip_prefix('{')
                    .and_then(|s| Some(s.split_once('}')?.0))
                    .unwrap_or_default();
                check(selector.contains("job=~\"$job\""), "target-job");
                check(selector.contains("instance=~\"$instance\""), "target-instance");
                let counts = ["_total", "_bucket", "_sum", "_count"]
                    .iter()
                    .any(|suffix| name.ends_with(suffix));
                let rated = ["rate(", "increase("].iter().any(|f| before.ends_with(f));
                check(!counts || rated, "target-counter-agg");
                check(counts || !rated, "rate of a gauge");
            }
            for (_, after) in expr.match_indices("rate(").map(|(at, _)| expr.split_at(at)) {
                let range = after.split_once('[').and_then(|(_, r)| Some(r.split_once(']')?.0));
                check(range == Some("$__rate_interval"), "target-rate-interval");
            }
        }
    }
    faults
}

#[test]
fn the_dashboards_follow_the_rules_of_grafanas_linter() {
    let mut uids = BTreeSet::new();
    for name in DASHBOARDS {
        let dashboard = dashboard(name);
        assert_eq!(faults(&dashboard), Vec::<String>::new(), "{name}");
        assert!(uids.insert(dashboard["uid"].to_string()));
    }
    let files = fs::read_dir(root().join("docs/mixin/generated")).unwrap();
    let json = files
        .filter(|file| file.as_ref().unwrap().file_name().to_string_lossy().ends_with(".json"));
    assert_eq!(json.count(), DASHBOARDS.len());
    // The controls: each rule finds its fault.
    let broken = |change: &dyn Fn(&mut Value)| {
        let mut dashboard = dashboard("coverage");
        change(&mut dashboard);
        faults(&dashboard)
    };
    let expression = |expr: &str| broken(&|d| d["panels"][0]["targets"][0]["expr"] = expr.into());
    let selected = r#"{job=~"$job", instance=~"$instance"}"#;
    for (found, fault) in [
        (broken(&|d| d["editable"] = true.into()), "editable"),
        (broken(&|d| d["__inputs"] = Value::Array(Vec::new())), "export"),
        (broken(&|d| d["templating"]["list"][0]["name"] = "ds".into()), "template-datasource"),
        (broken(&|d| d["templating"]["list"][1]["allValue"] = ".*".into()), "template-job"),
        (
            broken(&|d| d["templating"]["list"][2]["refresh"] = 1.into()),
            "template-on-time-change-reload: instance",
        ),
        (broken(&|d| d["panels"][0]["id"] = 2.into()), "panel ids"),
        (
            broken(&|d| d["panels"][0]["description"] = "".into()),
            "panel-title-description: Encrypted",
        ),
        (
            broken(&|d| d["panels"][0]["datasource"]["uid"] = "prom1".into()),
            "panel-datasource: Encrypted",
        ),
        (
            broken(&|d| d["panels"][0]["fieldConfig"]["defaults"]["unit"] = "".into()),
            "panel-units: Encrypted",
        ),
        (
            broken(&|d| d["panels"][0]["targets"] = Value::Array(Vec::new())),
            "panel-no-targets: Encrypted",
        ),
        (expression("1"), "target-promql: Encrypted"),
        (expression(r#"wiretight_ready{instance=~"$instance"}"#), "target-job: Encrypted"),
        (expression(r#"wiretight_ready{job=~"$job"}"#), "target-instance: Encrypted"),
        (expression("wiretight_ready"), "target-job: Encrypted"),
        (
            expression(&format!("wiretight_sessions_total{selected}")),
            "target-counter-agg: Encrypted",
        ),
        (
            expression(&format!("rate(wiretight_ready{selected}[$__rate_interval])")),
            "rate of a gauge: Encrypted",
        ),
        (
            expression(&format!("rate(wiretight_sessions_total{selected}[5m])")),
            "target-rate-interval: Encrypted",
        ),
    ] {
        assert!(found.iter().any(|f| f == fault), "{fault}: {found:?}");
    }
}

#[test]
fn each_alert_has_a_section_in_the_runbook_whose_commands_exist() {
    let runbook = read("docs/runbook.md");
    let alerts: BTreeSet<String> =
        rules("alerts.yaml", "alert").into_iter().map(|(name, _)| name).collect();
    let sections: BTreeMap<&str, &str> =
        runbook.split("\n## ").skip(1).map(|s| s.split_once('\n').unwrap()).collect();
    assert_eq!(alerts.iter().collect::<Vec<_>>(), sections.keys().collect::<Vec<_>>());
    for (name, section) in &sections {
        for part in
            ["What it means.", "How to see it.", "What to do.", "What happens if it is ignored."]
        {
            assert!(section.contains(&format!("**{part}**")), "{name}: {part}");
        }
    }
    let yaml = generated("alerts.yaml");
    for alert in &alerts {
        let url = format!("runbook_url: \"docs/runbook.md#{}\"", alert.to_lowercase());
        assert!(yaml.contains(&url), "{url}");
    }
    let commands: BTreeSet<Vec<&str>> = runbook
        .split('`')
        .skip(1)
        .step_by(2)
        .filter_map(|code| code.strip_prefix("wiretight "))
        .map(|code| {
            code.split_whitespace()
                .take_while(|word| {
                    word.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')
                        && !word.starts_with("--")
                })
                .collect()
        })
        .collect();
    assert!(commands.len() > 8, "{commands:?}");
    for mut words in commands {
        // The last word may be an argument, such as a mode.
        let exists = |words: &[&str]| {
            Ran::of(wiretight().args(words).arg("--help"), "")
                .out
                .contains(&format!("Usage: wiretight {}", words.join(" ")))
        };
        if !exists(&words) {
            words.pop();
        }
        assert!(!words.is_empty() && exists(&words), "{words:?}");
    }
    // What the mixin's alerts link to exists, and so do the runbook's own links.
    for (_, after) in runbook.match_indices("](#").map(|(at, _)| runbook.split_at(at + 3)) {
        let target = after.split_once(')').unwrap().0;
        assert!(alerts.iter().any(|alert| alert.to_lowercase() == target), "{target}");
    }
}

#[test]
fn each_alert_fires_when_it_should_and_only_then() {
    if !has(&["promtool"]) {
        return;
    }
    let promtool = find("promtool").unwrap();
    let dir = root().join("docs/mixin/generated");
    let promtool =
        |args: &[&str], at: &Path| Ran::of(Command::new(&promtool).args(args).current_dir(at), "");
    promtool(&["check", "rules", "alerts.yaml", "rules.yaml"], &dir).good();
    promtool(&["test", "rules", "tests.yaml"], &dir).good();
    // Each is tested both ways.
    let tests = generated("tests.yaml");
    for (alert, _) in rules("alerts.yaml", "alert") {
        let name = format!("\"{alert}\"\n");
        let cases: Vec<_> = tests.split("alertname: ").filter(|c| c.starts_with(&name)).collect();
        let quiet = cases.iter().filter(|case| case.contains("exp_alerts: []")).count();
        let loud = cases.len() - quiet;
        assert!(quiet >= 2 && loud >= 2, "{alert}: {quiet} quiet cases, {loud} others");
    }
    // The control: one that fires all the time.
    let copy = World::new();
    let (head, blocks) = tests.split_once("  - alert_rule_test:").unwrap();
    let of_one = |block: &&str| block.contains("\"WiretightWitnessMissing\"");
    let block = blocks.split("  - alert_rule_test:").find(of_one).unwrap();
    let always = generated("alerts.yaml")
        .replace("wiretight_log_witness_up == 0", "wiretight_log_witness_up >= 0");
    for (name, text) in [
        ("alerts.yaml", always),
        ("rules.yaml", generated("rules.yaml")),
        ("tests.yaml", format!("{head}  - alert_rule_test:{block}")),
    ] {
        fs::write(copy.path(name), text).unwrap();
    }
    let ran = promtool(&["test", "rules", "tests.yaml"], &copy.path(""));
    assert!(ran.code == Some(1) && ran.all().contains("WiretightWitnessMissing"), "{ran:?}");
}

// ---- With a real mesh.

/// Prometheus, which scrapes every second.
struct Prometheus {
    at: SocketAddr,
    _kid: Kid,
}

impl Prometheus {
    /// `targets`: jobs and addresses.
    fn start(world: &Path, targets: &[(&str, SocketAddr)]) -> Prometheus {
        let at = free();
        let dir = world.join("prometheus");
        fs::create_dir(&dir).unwrap();
        let mut config = String::from("global: { scrape_interval: 1s, evaluation_interval: 1s }\n");
        let files = root().canonicalize().unwrap().join("docs/mixin/generated");
        config += &format!(
            "rule_files: [\"{0}/rules.yaml\", \"{0}/alerts.yaml\"]\nscrape_configs:\n",
            files.display()
        );
        for (n, (job, target)) in targets.iter().enumerate() {
            config += &format!(
                "  - {{ job_name: t{n}, static_configs: [ {{ targets: [\"{target}\"], labels: {{ job: \"{job}\" }} }} ] }}\n"
            );
        }
        fs::write(dir.join("prometheus.yml"), config).unwrap();
        let mut command = Command::new(find("prometheus").unwrap());
        command.arg(format!("--config.file={}", dir.join("prometheus.yml").display()));
        command.arg(format!("--storage.tsdb.path={}", dir.join("data").display()));
        command.arg(format!("--web.listen-address={at}"));
        let kid = Kid::start(&mut command, &world.join("prometheus.log"));
        wait_port(at);
        Prometheus { at, _kid: kid }
    }

    /// The result of an instant query, or the error.
    fn query(&self, expr: &str) -> Result<Vec<Value>, String> {
        let expr: String = expr.bytes().map(|b| format!("%{b:02X}")).collect();
        let body = self.get(&format!("query?query={expr}"));
        match body["status"].as_str() {
            Some("success") => Ok(body["data"]["result"].as_array().unwrap().clone()),
            _ => Err(body["error"].to_string()),
        }
    }

    fn get(&self, path: &str) -> Value {
        let mut socket = TcpStream::connect(self.at).unwrap();
        write!(socket, "GET /api/v1/{path} HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
    }
}

/// Serves a node's metrics on this machine's loopback, for it is in another namespace. The watch is asked first, which
/// otherwise reports every 10 s.
fn exported(node: Arc<Node>) -> SocketAddr {
    serve(move |mut socket| {
        let mut request: Vec<u8> = Vec::new();
        let mut buffer = [0; 4096];
        while !request.windows(4).any(|w| w == b"\r\n\r\n") {
            match socket.read(&mut buffer) {
                Ok(n @ 1..) => request.extend(&buffer[..n]),
                _ => return,
            }
        }
        let _ = node.http("POST", "/v1/watch", r#"{"rows":1}"#);
        let Ok((200, body)) = node.http("GET", "/metrics", "") else { return };
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        let length = body.len();
        let _ = write!(
            socket,
            "HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
        );
    })
}

fn fetch(at: SocketAddr, accept: &str) -> String {
    let mut socket = TcpStream::connect(at).unwrap();
    write!(socket, "GET /metrics HTTP/1.0\r\naccept: {accept}\r\n\r\n").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// The names of the samples in a text in the OpenMetrics format, and of those that there could be.
fn exports(text: &str) -> BTreeSet<String> {
    let _ = openmetrics(text);
    let mut names = BTreeSet::new();
    for line in text.lines() {
        let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|of| of.split_once(' '))
        else {
            continue;
        };
        let suffixes: &[&str] = match kind {
            "counter" => &["_total"],
            "histogram" => &["_bucket", "_sum", "_count"],
            _ => &[""],
        };
        names.extend(suffixes.iter().map(|suffix| format!("{name}{suffix}")));
    }
    names
}

/// Panels that show nothing before the mesh has run for an hour.
const LATER: [&str; 1] = ["Hours of traffic in the log"];

#[test]
fn each_panel_and_alert_is_about_what_a_real_mesh_exports() {
    if !has(&["ip", "nft", "nsenter", "python3", "curl", "openssl", "prometheus", "promtool"])
        || !is_root()
    {
        return;
    }
    let (world, wire) = (World::new(), Wire::new());
    let (client, server) = (wire.client.clone(), wire.server.clone());
    // Programs on the server: behind a service, reached in plaintext, and behind a service that allows nobody.
    fs::create_dir(world.path("www")).unwrap();
    let _programs = [8080, 8081].map(|port: u16| {
        let mut python = Command::new("python3");
        python
            .args(["-m", "http.server", "--bind", "0.0.0.0", &port.to_string(), "--directory"])
            .arg(world.path("www"));
        Kid::start(&mut within(Some(&server), python), &world.path(&format!("http-{port}.log")))
    });
    let (cert, key, policy) =
        (world.path("site.pem"), world.path("site.key"), world.path("policy"));
    let mut openssl = Command::new("openssl");
    openssl.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "30",
    ]);
    openssl.args(["-subj", "/CN=x", "-addext", "subjectAltName=DNS:www.example.test"]);
    Ran::of(openssl.arg("-out").arg(&cert).arg("-keyout").arg(&key), "").good();

    // Authority, edge, watch, interception in one node; a witness; a second node; a monitor.
    let ports = [free(), free(), free(), free(), free()].map(|at| at.port());
    let both = format!(
        "[witnesses]\npolicy = \"{}\"\n[watch]\n[intercept]\nmode = \"permissive\"\nprotect = [\"10.77.0.0/24\"]\n\
         pass = [\"udp out 10.77.0.9 514\"]\n[[exception]]\nwhat = \"udp out 10.77.0.9 514\"\nkind = \"pass\"\n\
         reason = \"syslog\"\nowner = \"me\"\nuntil = \"2100-01-01\"\n",
        policy.display()
    );
    let offer = |name: &str, port: u16, to: u16, allow: &str| {
        service(
            name,
            SocketAddr::new("10.77.0.2".parse().unwrap(), port),
            format!("127.0.0.1:{to}"),
            allow,
        )
    };
    let mut far = world.node(
        "auth",
        &format!(
            "[authority]\nlisten = \"10.77.0.2:7400\"\n[edge]\nhttps = \"10.77.0.2:8443\"\nhttp = []\n[[site]]\n\
             names = [\"www.example.test\"]\nto = \"127.0.0.1:8080\"\ncert = \"{}\"\nkey = \"{}\"\n{both}{}{}",
            cert.display(),
            key.display(),
            offer("web", 7080, 8080, "\"node/client\""),
            offer("closed", 7081, 8082, ""),
        ),
    );
    far.netns = Some(server.clone());
    let log = far.cli(&["authority", "log-key"]).good().out;
    let mut keygen = wiretight();
    keygen.args(["witness", "keygen", "example.org/north", "--out"]).arg(world.path("north.key"));
    let vkey = Ran::of(&mut keygen, "").good().out;
    let (north, watcher) = (format!("127.0.0.1:{}", ports[0]), format!("127.0.0.1:{}", ports[1]));
    fs::write(
        &policy,
        format!("log {log}witness north {} http://{north}\nquorum north\n", vkey.trim()),
    )
    .unwrap();
    let mut witness = wiretight();
    witness
        .args(["witness", "run", "--new", "--listen", &north, "--key"])
        .arg(world.path("north.key"));
    witness.arg("--state").arg(world.path("north")).arg("--policy").arg(&policy);
    let _witness = Kid::start(&mut within(Some(&server), witness), &world.path("north.log"));
    far.start();
    far.ready();
    let mut near = world.node("client", &both);
    fs::write(near.token_file(), far.token("client", &[])).unwrap();
    near.netns = Some(client.clone());
    near.start();
    near.ready();
    let mut monitor = wiretight();
    monitor.args(["monitor", "--interval", "1s", "--metrics", &watcher, "--policy"]).arg(&policy);
    monitor
        .arg("--url")
        .arg(far.state().join("authority/log"))
        .arg("--state")
        .arg(world.path("monitor"));
    let _monitor = Kid::start(&mut within(Some(&server), monitor), &world.path("monitor.log"));

    // Prometheus on the server. The client's metrics come by its Unix socket.
    let (far, near) = (Arc::new(far), Arc::new(near));
    let (admin, at) = (far.admin, |port: u16| SocketAddr::from(([127, 0, 0, 1], port)));
    let (nodes, dir) = ([far.clone(), near.clone()], world.path(""));
    let prometheus = {
        let (world, north, watcher) = (dir, at(ports[0]), at(ports[1]));
        on(&server, move || {
            let nodes = nodes.map(|node| ("wiretight", exported(node)));
            let others = [("wiretight-witness", north), ("wiretight-monitor", watcher)];
            Prometheus::start(&world, &[nodes, others].concat())
        })
        .join()
        .unwrap()
    };
    let ended = Arc::new(AtomicBool::new(false));
    let traffic = std::thread::spawn({
        let (client, ended) = (client.clone(), ended.clone());
        move || {
            while !ended.load(Relaxed) {
                for port in [8080, 8081, 8082] {
                    run(&client, "curl", &["-s", "-m", "2", &format!("http://10.77.0.2:{port}/")]);
                }
                let name = "www.example.test:8443:10.77.0.2";
                run(
                    &client,
                    "curl",
                    &["-sk", "-m", "2", "--resolve", name, "https://www.example.test:8443/"],
                );
            }
        }
    });

    // Every panel shows something, as soon as there is something.
    let start = Instant::now();
    let prometheus = on(&server, move || {
        let mut empty: Vec<(String, String)> =
            DASHBOARDS.iter().flat_map(|name| targets(&dashboard(name))).collect();
        assert!(empty.len() > 60, "{}", empty.len());
        while !empty.is_empty() && start.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_secs(1));
            empty.retain(|(title, expr)| {
                let expr = expr.replace("$__rate_interval", "5s").replace("$__range", "30s");
                let expr = expr.replace("$job", ".+").replace("$instance", ".+");
                let found =
                    prometheus.query(&expr).unwrap_or_else(|e| panic!("{title}: {expr}: {e}"));
                found.is_empty() && !LATER.contains(&title.as_str())
            });
        }
        assert!(empty.is_empty(), "nothing to show: {empty:#?}");
        // The rules are evaluated without errors, and nothing is wrong with this mesh.
        let groups = prometheus.get("rules")["data"]["groups"].clone();
        let groups = groups.as_array().unwrap().iter();
        let all: Vec<Value> = groups.flat_map(|g| g["rules"].as_array().unwrap().clone()).collect();
        assert!(all.len() > 20 && all.iter().all(|rule| rule["health"] == "ok"), "{all:#?}");
        let firing = prometheus.query("ALERTS{alertstate=\"firing\"}").unwrap();
        assert!(firing.is_empty(), "{firing:#?}");
        prometheus
    })
    .join()
    .unwrap();
    say(format!("every panel has data after {:.1} s", start.elapsed().as_secs_f32()));

    // Both formats, of each program.
    let pages = [admin, at(ports[0]), at(ports[1])].map(|at| {
        on(&server, move || {
            (fetch(at, "application/openmetrics-text; version=1.0.0"), fetch(at, "*/*"))
        })
        .join()
        .unwrap()
    });
    let mut known = BTreeSet::from(["up".to_owned()]);
    for (open, classic) in &pages {
        known.extend(exports(open));
        let mut promtool = Command::new("promtool");
        let checked = Ran::of(promtool.args(["check", "metrics"]), classic).good();
        assert!(checked.all().trim().is_empty(), "{}", checked.all());
        assert_eq!(open.matches("\nprocess_").count(), 7, "{open}");
    }
    // The control: promtool finds a fault.
    let fault = pages[0].1.replace("wiretight_sessions_total", "wiretight_sessions");
    assert_eq!(Ran::of(Command::new("promtool").args(["check", "metrics"]), &fault).code, Some(3));

    // No name is misspelt, and the guide has all of them.
    let recorded = rules("rules.yaml", "record");
    known.extend(recorded.iter().map(|(name, _)| name.clone()));
    let panels = DASHBOARDS.iter().flat_map(|name| targets(&dashboard(name)));
    let misspelt = |text: &str| -> Vec<String> {
        named(text).iter().filter(|n| !known.contains(n.1)).map(|n| n.1.to_owned()).collect()
    };
    for (name, expr) in panels.chain(recorded.clone()).chain(rules("alerts.yaml", "alert")) {
        assert!(
            !named(&expr).is_empty() && misspelt(&expr).is_empty(),
            "{name}: {:?}",
            misspelt(&expr)
        );
    }
    assert_eq!(misspelt("sum(wiretight_sesions_total{job=\"x\"})"), ["wiretight_sesions_total"]);
    let guide = read("docs/operator.md");
    let section =
        guide.split("\n## Status, metrics, logs\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let listed: BTreeSet<&str> =
        section.split('`').skip(1).step_by(2).filter(|w| w.starts_with("wiretight_")).collect();
    let base = |name: &str| {
        ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|s| name.strip_suffix(s))
            .unwrap_or(name)
            .to_owned()
    };
    let ours: BTreeSet<String> =
        known.iter().filter(|n| n.starts_with("wiretight_")).map(|n| base(n)).collect();
    let missing: Vec<_> = ours.iter().filter(|name| !listed.contains(name.as_str())).collect();
    // Only with [publish] dir.
    let extra: Vec<_> = listed
        .iter()
        .filter(|n| !ours.contains(**n) && !n.starts_with("wiretight_publish_"))
        .collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "not in the guide: {missing:?}\nonly in the guide: {extra:?}"
    );
    ended.store(true, Relaxed);
    traffic.join().unwrap();
    drop(prometheus);
}
