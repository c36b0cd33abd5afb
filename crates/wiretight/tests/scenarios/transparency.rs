//! The log with real processes: a day of a mesh with witnesses, witnesses that fail and recover under load, access to the
//! log, and nodes out of contact.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use super::rig::*;

const WITNESSES: [&str; 3] = ["north", "south", "east"];

// ---- A day of a mesh.

/// About 20 s, of which the script waits 10 s for the alarm about missing witnesses, and 8 s for a join that is refused
/// meanwhile.
#[test]
fn a_day_in_the_life() {
    if !has(&["openssl", "perl"]) {
        return;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/transparency/day");
    let started = Instant::now();
    let ran = Ran::of(Command::new("/bin/sh").arg(script).arg(env!("CARGO_BIN_EXE_wiretight")), "");
    let ran = ran.good();
    for line in [
        "good: ",
        r#""reason":"not_logged""#,
        r#"wiretight_refused_total{side="service",service="db",reason="not_logged"} 1"#,
        "control: the same program with a certificate from 'wiretight svid fetch' connects",
        r#"control: with transparency = "off" db accepts the insider's certificate"#,
        r#""alert":"unexpected-certificate""#,
        "ghost: its live connection is cut ",
        "one witness down: issuance continues",
        "ALARM: the witnesses do not cosign",
        "no certificate was issued: ",
        "late2: joins, with the same token",
        "because it would fork",
        "one connection stayed open through all of it",
        "all results as expected",
    ] {
        assert!(ran.out.contains(line), "the output lacks {line:?}:\n{}", ran.all());
    }
    let cut = ran.out.lines().find(|l| l.contains("its live connection is cut")).unwrap();
    say(format!("a day of {:.1} s; {cut}", started.elapsed().as_secs_f32()));
}

// ---- Witnesses.

#[test]
fn losing_one_of_three_witnesses_changes_nothing_and_losing_two_stops_only_issuance() {
    let world = World::new();
    let mut mesh = Witnessed::new(&world);
    let entry = mesh.entry;
    let load = Load::start(entry, 4, 2);

    mesh.witnesses[0].kill();
    mesh.app.cli(&["svid", "renew"]).good();
    assert_eq!(mesh.blocked(), 0);
    let problem = |status: &Value| status["log"]["witnesses"][0]["problem"].is_string();
    wait_for("the status names the witness that is away", || problem(&mesh.auth.status()));
    load.moves();

    mesh.witnesses[1].kill();
    let (killed, before) = (Instant::now(), serials(&mesh.app));
    let refused = mesh.app.cli(&["svid", "renew"]);
    assert_ne!(refused.code, Some(0), "{refused:?}");
    assert!(refused.err.contains("witnesses"), "{refused:?}");
    wait_for("the alarm is a metric", || mesh.blocked() == 1);
    let alarm = killed.elapsed();
    let status = mesh.auth.status();
    assert!(status["log"]["waiting_since"].is_u64(), "{status:#}");
    let shown = mesh.auth.cli(&["authority", "status"]).good().out;
    assert!(shown.contains("waiting for the witnesses for"), "{shown}");
    let log = mesh.auth.log();
    assert!(log.contains("ALARM: the witnesses do not cosign"), "{log}");
    load.moves();
    assert_eq!(serials(&mesh.app), before, "something was issued without the quorum");

    let back = Instant::now();
    mesh.witnesses[0].start();
    mesh.witnesses[1].start();
    wait_for("the log continues", || mesh.blocked() == 0);
    let recovered = back.elapsed();
    // The refused node retries without an operator.
    wait_for("the delayed certificates are issued", || {
        serials(&mesh.app).iter().zip(&before).all(|(now, then)| now != then)
    });
    assert!(mesh.auth.log().contains("the witnesses cosign again"));
    mesh.db.cli(&["svid", "renew"]).good();
    let exchanges = load.stop();
    say(format!(
        "two of three witnesses killed: alarm after {:.1} s, the log goes on {:.1} s after they are back; {exchanges} exchanges, none lost",
        alarm.as_secs_f32(),
        recovered.as_secs_f32()
    ));
}

/// The steps of the operator guide in their order, without losing a connection.
#[test]
fn an_existing_mesh_gets_witnesses_under_load() {
    let world = World::new();
    let listen = free();
    let authority = format!("[authority]\nlisten = \"{listen}\"\n");
    let mut auth = world.node("auth", &authority);
    auth.listen = Some(listen);
    auth.start();
    auth.ready();
    let (entry, offers) = (free(), service("echo", free(), echo(), "\"service/web\""));
    let dials = dial(entry, "echo", "web");
    let db = world.joined(&auth, "db1", &["echo"], &offers);
    let app = world.joined(&auth, "app1", &["web"], &dials);
    app.knows("echo");
    let load = Load::start(entry, 4, 2);

    let policy = world.path("policy");
    // Next to the node's own file, as the sandbox of a running node allows it to read that directory.
    let section = |node: &Node, word: &str| {
        let beside = node.file().with_file_name("policy");
        fs::copy(&policy, &beside).unwrap();
        format!("[witnesses]\npolicy = \"{}\"\ntransparency = \"{word}\"\n", beside.display())
    };
    let _witnesses = witnesses(&world, &auth, &policy);
    auth.kid().signal(Signal::TERM);
    assert!(auth.kid().ended(ms(20_000)).is_some(), "it does not stop");
    auth.write(&format!("{authority}{}", section(&auth, "off")));
    auth.start();
    auth.ready();
    for node in [&db, &app] {
        // The authority accepts the node's certificate without proof until all nodes have new ones.
        wait_for("it has reconnected", || {
            node.log().matches("\"connected to the authority\"").count() == 2
        });
        node.cli(&["svid", "renew"]).good();
    }
    load.moves();
    for (node, sections) in [(&db, &offers), (&app, &dials)] {
        node.write(&format!("{}{sections}", section(node, "required")));
        node.cli(&["reload"]).good();
        assert_eq!(node.status()["transparency"]["required"], true);
    }
    load.moves();
    for node in [&db, &app] {
        node.cli(&["svid", "renew"]).good();
    }
    load.moves();
    say(format!("a mesh got witnesses: {} exchanges, none lost", load.stop()));
}

// ---- Revocations by index.

#[test]
fn revoking_the_intermediate_needs_confirmation_and_the_mesh_recovers() {
    let world = World::new();
    // With witnesses, which must see the replacements as well.
    let Witnessed { auth, db, app, entry, witnesses: _witnesses } = Witnessed::new(&world);
    let mut live = Talk::open(entry).unwrap();
    live.exchange().unwrap();
    let asked = auth.cli(&["revoke", "0"]);
    assert_eq!(asked.code, Some(1), "{asked:?}");
    for part in ["nothing was changed", "every connection of the mesh", "--yes"] {
        assert!(asked.err.contains(part), "{asked:?}");
    }
    live.exchange().unwrap();

    auth.cli(&["revoke", "0", "--yes"]).good();
    let revoked = Instant::now();
    wait_for("the live connection is cut", || live.exchange().is_err());
    wait_for("connections are made again", || once(entry).is_ok());
    let back = revoked.elapsed();
    for node in [&db, &app] {
        wait_for("the node is ready", || node.status()["ready"] == true);
    }
    once(entry).unwrap();
    let asked = auth.cli(&["revoke", "0", "--json"]);
    assert!(asked.err.contains("1 other CA certificates (entries 0)"), "{asked:?}");
    say(format!("the intermediate revoked: connections again after {:.1} s", back.as_secs_f32()));
}

/// An authority, three witnesses with a quorum of two, a service and its caller.
pub(super) struct Witnessed {
    pub(super) auth: Node,
    pub(super) db: Node,
    pub(super) app: Node,
    witnesses: Vec<WitnessProcess>,
    /// Where programs reach the service.
    pub(super) entry: std::net::SocketAddr,
}

impl Witnessed {
    fn new(world: &World) -> Witnessed {
        Witnessed::with(world, |_| Vec::new())
    }

    /// `env` maps a directory to the environment of each process.
    pub(super) fn with(
        world: &World,
        env: impl Fn(&Path) -> Vec<(&'static str, PathBuf)>,
    ) -> Witnessed {
        let policy = world.path("policy");
        let section = format!("[witnesses]\npolicy = \"{}\"\n", policy.display());
        let listen = free();
        let mut auth =
            world.node("auth", &format!("[authority]\nlisten = \"{listen}\"\n{section}"));
        auth.listen = Some(listen);
        auth.env = env(&world.path("auth"));
        let witnesses = witnesses_with(world, &auth, &policy, &env);
        auth.start();
        auth.ready();
        let joined = |name: &str, service: &str, sections: &str| {
            let mut node = world.node(name, &format!("{section}{sections}"));
            node.env = env(&world.path(name));
            fs::write(node.token_file(), auth.token(name, &[service])).unwrap();
            node.start();
            node.ready();
            node
        };
        let (entry, offers) = (free(), service("echo", free(), echo(), "\"service/web\""));
        let db = joined("db1", "echo", &offers);
        let app = joined("app1", "web", &dial(entry, "echo", "web"));
        app.knows("echo");
        Witnessed { auth, db, app, witnesses, entry }
    }

    fn blocked(&self) -> u64 {
        metric(&self.auth, "wiretight_log_blocked")
    }
}

/// Three running witnesses, and the policy with them and this authority's log.
pub(crate) fn witnesses(world: &World, auth: &Node, policy: &Path) -> Vec<WitnessProcess> {
    witnesses_with(world, auth, policy, &|_| Vec::new())
}

fn witnesses_with(
    world: &World,
    auth: &Node,
    policy: &Path,
    env: &impl Fn(&Path) -> Vec<(&'static str, PathBuf)>,
) -> Vec<WitnessProcess> {
    let log = auth.cli(&["authority", "log-key"]).good().out;
    let mut witnesses: Vec<_> =
        WITNESSES.iter().map(|name| WitnessProcess::new(world, name, policy)).collect();
    let lines: String = witnesses.iter().map(WitnessProcess::line).collect();
    let quorum = "group two-of-three 2 north south east\nquorum two-of-three\n";
    fs::write(policy, format!("log {log}{lines}{quorum}")).unwrap();
    for witness in &mut witnesses {
        let folder = world.path(&witness.name);
        fs::create_dir(&folder).unwrap();
        witness.env = env(&folder);
        witness.start();
    }
    witnesses
}

/// `wiretight witness run`
pub(crate) struct WitnessProcess {
    name: String,
    listen: std::net::SocketAddr,
    key: String,
    files: [PathBuf; 4],
    env: Vec<(&'static str, PathBuf)>,
    /// Certificate and key, if it serves HTTPS.
    tls: Option<[PathBuf; 2]>,
    kid: Option<Kid>,
}

impl WitnessProcess {
    fn new(world: &World, name: &str, policy: &Path) -> WitnessProcess {
        let path = |end: &str| world.path(&format!("{name}.{end}"));
        let files = [path("key"), path("state"), path("log"), policy.to_owned()];
        let mut keygen = wiretight();
        keygen.args(["witness", "keygen", &format!("example.org/{name}"), "--out"]).arg(&files[0]);
        let key = Ran::of(&mut keygen, "").good().out.trim().to_owned();
        let (name, listen, env) = (name.into(), free(), Vec::new());
        WitnessProcess { name, listen, key, files, env, tls: None, kid: None }
    }

    /// Its line in the policy.
    fn line(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("witness {} {} {scheme}://{}\n", self.name, self.key, self.listen)
    }

    fn start(&mut self) {
        let [key, state, log, policy] = &self.files;
        let mut command = wiretight();
        command.args(["witness", "run", "--listen", &self.listen.to_string(), "--key"]).arg(key);
        command.arg("--state").arg(state).arg("--policy").arg(policy);
        command.envs(self.env.iter().cloned());
        if !state.exists() {
            command.arg("--new");
        }
        if let Some([cert, key]) = &self.tls {
            command.arg("--tls-cert").arg(cert).arg("--tls-key").arg(key);
        }
        self.kid = Some(Kid::start(&mut command, log));
        wait_port(self.listen);
    }

    fn kill(&mut self) {
        self.kid = None;
    }
}

/// A witness with a certificate of a private CA; a start without a quorum reports which witness is missing, and why.
#[test]
fn a_witness_with_a_private_ca_is_trusted_by_its_file() {
    if !has(&["openssl"]) {
        return;
    }
    let world = World::new();
    let [ca, cert, key] = ["ca.pem", "cert.pem", "key.pem"].map(|name| world.path(name));
    let shell = format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=ca -keyout {ca}.key -out {ca} && \
         openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=witness -keyout {key} -out {ca}.csr && \
         echo subjectAltName=IP:127.0.0.1 >{ca}.ext && \
         openssl x509 -req -in {ca}.csr -CA {ca} -CAkey {ca}.key -days 1 -extfile {ca}.ext -out {cert}",
        ca = ca.display(),
        cert = cert.display(),
        key = key.display()
    );
    Ran::of(Command::new("/bin/sh").args(["-c", &shell]), "").good();
    let policy = world.path("policy");
    let listen = free();
    let sections = |more: &str| {
        format!(
            "[authority]\nlisten = \"{listen}\"\n[witnesses]\npolicy = \"{}\"\n{more}",
            policy.display()
        )
    };
    let mut auth = world.node("auth", &sections(""));
    auth.listen = Some(listen);
    let log = auth.cli(&["authority", "log-key"]).good().out;
    let mut witness = WitnessProcess::new(&world, "north", &policy);
    witness.tls = Some([cert, key]);
    let line = witness.line();
    fs::write(&policy, format!("log {log}{line}quorum north\n")).unwrap();
    witness.start();

    auth.start();
    wait_for("the log names the witness and the reason", || {
        let said = auth.log();
        let alarm = said.lines().find(|line| line.contains("ALARM: the witnesses do not cosign"));
        alarm.is_some_and(|l| {
            l.contains("\"waiting_for\":\"north (") && l.contains("private authority")
        })
    });
    auth.kill();
    auth.write(&sections(&format!("ca = \"{}\"\n", world.path("none.pem").display())));
    auth.start();
    assert!(auth.kid().ended(ms(30_000)).is_some_and(|status| !status.success()));
    assert!(auth.log().contains("(`ca` in [witnesses])"), "{}", auth.log());
    auth.write(&sections(&format!("ca = \"{}\"\n", ca.display())));
    auth.start();
    auth.ready();
    assert_eq!(auth.status()["log"]["witnesses"][0]["problem"], Value::Null);
}

/// For each identity of a node.
fn serials(node: &Node) -> Vec<String> {
    let status = node.status();
    let identities = status["identities"].as_array().into_iter().flatten();
    identities.map(|i| i["serial"].as_str().unwrap().to_owned()).collect()
}

fn metric(node: &Node, name: &str) -> u64 {
    let (_, text) = node.probe("/metrics").unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix("{} "));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

// ---- Who may read the log.

#[test]
fn the_log_is_readable_by_members_and_auditors_or_by_everyone() {
    if !has(&["openssl", "curl"]) {
        return;
    }
    let world = World::new();
    let (auditor, hash) = key_pair(&world, "auditor");
    let (stranger, _) = key_pair(&world, "stranger");
    let (listen, log) = (free(), free());
    let sections = |public: bool| {
        format!(
            "[authority]\nlisten = \"{listen}\"\n[log]\nlisten = \"{log}\"\npublic = {public}\nauditors = [\"sha256:{hash}\"]\n"
        )
    };
    let mut auth = world.node("auth", &sections(false));
    auth.start();
    auth.ready();
    let db = world.joined(&auth, "db1", &["db"], "");
    let svid = world.path("svid");
    db.cli(&["svid", "fetch", "--service", "db", "--out", svid.to_str().unwrap()]).good();
    let member = [svid.join("svid.pem"), svid.join("key.pem")];
    let bundle = svid.join("bundle.pem");
    let get = |path: &str, who: Option<&[PathBuf; 2]>| {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--http1.1", "--write-out", "\n%{http_code}"]);
        curl.arg("--cacert").arg(&bundle);
        curl.args(["--connect-to", &format!("::{log}")]);
        if let Some([cert, key]) = who {
            curl.arg("--cert").arg(cert).arg("--key").arg(key);
        }
        let ran = Ran::of(curl.arg(format!("https://authority.{TD}{path}")), "").good();
        let (body, code) = ran.out.rsplit_once('\n').unwrap();
        (code.parse::<u16>().unwrap(), body.to_owned())
    };

    let (code, checkpoint) = get("/checkpoint", None);
    assert_eq!(code, 200, "{checkpoint}");
    let size = checkpoint.lines().nth(1).unwrap();
    let tile = format!("/tile/0/000.p/{size}");
    let code = |who: Option<&[PathBuf; 2]>| get(&tile, who).0;
    assert_eq!(code(None), 403, "nobody");
    assert_eq!(code(Some(&stranger)), 403, "a stranger with a key");
    assert_eq!(code(Some(&member)), 200, "a member of the mesh");
    assert_eq!(code(Some(&auditor)), 200, "an auditor");
    assert_eq!(get("/tile/0/000.p/255", Some(&member)).0, 404, "a tile that is not there");
    auth.cli(&["node", "remove", "db1", "--yes"]).good();
    wait_for("who is removed reads no more", || code(Some(&member)) == 403);

    auth.kid().signal(Signal::TERM);
    assert!(auth.kid().ended(ms(20_000)).is_some(), "it does not stop");
    auth.write(&sections(true));
    auth.start();
    auth.ready();
    for who in [None, Some(&stranger), Some(&auditor), Some(&member)] {
        assert_eq!(code(who), 200, "public: {who:?}");
    }
}

/// Starting from the keys that a node prints once, a monitor follows all its renewals.
#[test]
fn renewals_raise_no_alert_in_a_monitor() {
    let world = World::new();
    let (listen, log) = (free(), free());
    let sections =
        format!("[authority]\nlisten = \"{listen}\"\n[log]\nlisten = \"{log}\"\npublic = true\n");
    let mut auth = world.node("auth", &sections);
    auth.listen = Some(listen);
    auth.start();
    auth.ready();
    let offers = service("echo", free(), echo(), "\"service/web\"");
    let mut db = world.joined(&auth, "db1", &["echo"], &offers);
    let fetch = |node: &Node, folder: &str| {
        let out = world.path(folder);
        let out = out.to_str().unwrap();
        node.cli(&["svid", "fetch", "--service", "echo", "--out", out]).good();
    };
    fetch(&db, "first");
    let chain = fs::read(world.path("first").join("svid.pem")).unwrap();
    let chain = wiretight_keys::x509::from_pem(&chain).unwrap();
    let intermediate = wiretight_keys::x509::key_hash(&chain[1]).unwrap();
    let intermediate = wiretight_keys::token::hex(&intermediate);
    let expect = |node: &Node| {
        let keys = node.cli(&["svid", "keys"]).good().out;
        fs::write(world.path("expect"), format!("{keys}spiffe://{TD} sha256:{intermediate}\n"))
            .unwrap();
        keys
    };
    let keys = expect(&db);
    assert!(keys.contains("service/echo sha256:") && keys.contains("node/db1 sha256:"), "{keys}");
    let key = auth.cli(&["authority", "log-key"]).good().out;
    fs::write(world.path("one-log"), format!("log {key}quorum none\n")).unwrap();
    let url = format!("https://{log}");
    let looks = || {
        let mut monitor = wiretight();
        monitor.args(["monitor", "--once", "--url", &url, "--watch", "service/echo"]);
        monitor.args(["--watch", "node/db1", "--server-name", &format!("authority.{TD}")]);
        monitor.arg("--ca").arg(world.path("first").join("bundle.pem"));
        monitor.arg("--policy").arg(world.path("one-log"));
        monitor.arg("--state").arg(world.path("monitor-state"));
        let ran = Ran::of(monitor.arg("--expect").arg(world.path("expect")), "");
        (ran.code, ran.all())
    };
    let silent = |what: &str| {
        let (code, said) = looks();
        assert_eq!(code, Some(0), "{what}: {said}");
    };
    silent("what the list has");
    for _ in 0..2 {
        db.cli(&["svid", "renew"]).good();
        fetch(&db, "first");
        silent("renewals");
    }
    db.kid().signal(Signal::TERM);
    assert!(db.kid().ended(ms(20_000)).is_some(), "it does not stop");
    db.start();
    db.ready();
    db.cli(&["svid", "renew"]).good();
    silent("renewals after a restart");
    // The control: a certificate with a key that is not linked to a known one.
    fetch(&db, "second");
    let (code, said) = looks();
    assert!(code == Some(1) && said.contains("unexpected-certificate"), "{said}");
    // The node knows that it requested it.
    expect(&db);
    silent("told once");
}

/// A key with a self-signed certificate, and the hash of its public key.
fn key_pair(world: &World, name: &str) -> ([PathBuf; 2], String) {
    let [cert, key] = ["pem", "key"].map(|end| world.path(&format!("{name}.{end}")));
    let shell = format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN={name} -keyout {1} -out {0} 2>/dev/null && openssl x509 -in {0} -noout -pubkey | openssl pkey -pubin -outform DER | openssl dgst -sha256 -r",
        cert.display(),
        key.display()
    );
    let ran = Ran::of(Command::new("/bin/sh").args(["-c", &shell]), "").good();
    ([cert, key], ran.out.split_whitespace().next().unwrap().to_owned())
}

// ---- Nodes out of contact.

/// It takes more than a minute of waiting: that is the shortest limit that a file may set, it is measured by the time
/// since the machine was started, which cannot be set, and it starts over with the process.
#[test]
fn a_node_out_of_contact_for_too_long_closes_its_connections_and_recovers() {
    let world = World::new();
    let mut auth = world.authority("");
    let limit = "max_staleness = \"60s\"\n";
    let (entry, offers) = (free(), service("echo", free(), echo(), "\"service/web\""));
    let db = world.joined(&auth, "db1", &["echo"], &format!("{limit}{offers}"));
    let dials = dial(entry, "echo", "web");
    let app = world.joined(&auth, "app1", &["web"], &format!("{limit}{dials}"));
    app.knows("echo");
    let mut live = Talk::open(entry).unwrap();
    live.exchange().unwrap();
    assert_eq!(app.status()["transparency"]["news_age_seconds"], 0);

    let stopped = Instant::now();
    auth.kill();
    wait_for("the status has the age of the revocation list", || {
        let age = app.status()["transparency"]["news_age_seconds"].as_u64();
        age.is_some_and(|age| age > 2)
    });
    let shown = app.cli(&["status"]).good().out;
    assert!(shown.contains("list of revocations is "), "{shown}");
    let end = stopped + Duration::from_secs(100);
    while live.exchange().is_ok() {
        assert!(Instant::now() < end, "the live connection goes on without news");
        std::thread::sleep(ms(100));
    }
    let cut = stopped.elapsed();
    // The last message of the authority may have been its last ping, 20 s before.
    assert!(cut > Duration::from_secs(35), "cut after {cut:?}");
    for node in [&db, &app] {
        wait_for("both ends have no news", || metric(node, "wiretight_out_of_contact") == 1);
        let status = node.status();
        assert_eq!(status["transparency"]["without_news"], true, "{status:#}");
        assert!(
            node.cli(&["status"])
                .out
                .contains("out of contact with the authority for longer than max_staleness")
        );
        assert!(node.log().contains("OUT OF CONTACT WITH THE AUTHORITY"));
    }
    assert!(once(entry).is_err(), "a new connection is made without news");

    let back = Instant::now();
    auth.start();
    auth.ready();
    wait_for("connections are made again", || once(entry).is_ok());
    for node in [&db, &app] {
        wait_for("there is news", || metric(node, "wiretight_out_of_contact") == 0);
    }
    say(format!(
        "authority gone, max_staleness 60 s: cut after {:.1} s; back {:.1} s after its start",
        cut.as_secs_f32(),
        back.elapsed().as_secs_f32()
    ));
}
