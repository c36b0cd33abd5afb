//! A mesh with a past, for the pages that show it: an authority whose log has the hours of two days and five weeks of days,
//! three witnesses, one of which is down, and nodes that report traffic of every level through the control protocol.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use wiretight::agent::{Agent, AgentHandle, AgentParams, AgentTimes, Instance, TokenSource};
use wiretight::control::report::{Exception, ExceptionKind, Explanation, NodeReport};
use wiretight_keys::claims::{DAY, HOUR, MeshPeriod, NodeCount};
use wiretight_keys::{JoinToken, Transparency};
use wiretight_proxy::Mesh;
use wiretight_proxy::clock::now;
use wiretight_proxy::intercept::rules::Mode;
use wiretight_scan::judge::Level;
use wiretight_scan::passive::flow::Record;
use wiretight_scan::passive::summary::{By, Flow, Programs, Row, Rows};
use wiretight_scan::passive::{Grade, Sealed, Seen, Transport};
use wiretight_store::{Key, SqliteStore, Store};

use super::rig::*;
use super::sample;

/// What a hostile node or server calls itself.
pub(crate) const HOSTILE: &str = "<img src=x onerror=\"document.title='pwned'\">";

pub(crate) struct Busy {
    pub(crate) auth: Node,
    _witnesses: Vec<Kid>,
    _agents: Vec<AgentHandle>,
    _runtime: Runtime,
}

impl Busy {
    /// `sections` are added to the authority's configuration.
    pub(crate) fn new(world: &World, sections: &str) -> Busy {
        let (policy, listen) = (world.path("policy"), free());
        let sections = format!(
            "[authority]\nlisten = \"{listen}\"\n[witnesses]\npolicy = \"{}\"\n{sections}",
            policy.display()
        );
        let mut auth = world.node("auth", &sections);
        auth.listen = Some(listen);
        let log = auth.cli(&["authority", "log-key"]).good().out;
        let witnesses = witnesses(world, &policy, &log);
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(plant(&auth.state().join("authority")));
        auth.start();
        auth.ready();
        let agents = runtime.block_on(async {
            let mut agents = Vec::new();
            for (name, services, host, report) in reports() {
                let token = auth.token_at(name, services, &[host]);
                let agent = agent(world, name, services, host, token.trim()).await;
                agent.report(report).await;
                agents.push(agent);
            }
            // This one has left.
            let token = auth.token("old1", &[]);
            agent(world, "old1", &[], "10.0.0.99", token.trim()).await.shutdown().await;
            agents
        });
        Busy { auth, _witnesses: witnesses, _agents: agents, _runtime: runtime }
    }
}

/// Runs two witnesses and writes a policy with three, of which two must cosign.
fn witnesses(world: &World, policy: &Path, log: &str) -> Vec<Kid> {
    let mut lines = format!("log {log}");
    let mut runs = Vec::new();
    for name in ["north", "south", "east"] {
        let (file, listen) = (world.path(&format!("{name}.key")), free());
        let mut keygen = wiretight();
        keygen.args(["witness", "keygen", &format!("example.net/{name}"), "--out"]).arg(&file);
        let key = Ran::of(&mut keygen, "").good().out.trim().to_owned();
        lines += &format!("witness {name} {key} http://{listen}\n");
        runs.push((name, file, listen));
    }
    fs::write(policy, lines + "group any 2 north south east\nquorum any\n").unwrap();
    let up = runs.into_iter().filter(|(name, ..)| *name != "south");
    let run = |(name, file, listen): (&str, PathBuf, SocketAddr)| {
        let mut run = wiretight();
        run.args(["witness", "run", "--new", "--listen", &listen.to_string(), "--key"]).arg(file);
        run.arg("--state").arg(world.path(&format!("{name}.state"))).arg("--policy").arg(policy);
        let kid = Kid::start(&mut run, &world.path(&format!("{name}.log")));
        wait_port(listen);
        kid
    };
    up.map(run).collect()
}

/// Hours and days that the authority has decided and not logged yet; it logs them when it starts.
async fn plant(dir: &Path) {
    let mut create = fs::DirBuilder::new();
    create.recursive(true).mode(0o700).create(dir).unwrap();
    let store = SqliteStore::open(dir.join("store.db")).await.unwrap();
    let today = now() / DAY * DAY;
    for n in (0..36).rev() {
        let start = today - n * DAY;
        // Three hours of yesterday are missing.
        let logged =
            |hour: &u64| start + (hour + 1) * HOUR <= now() && !(n == 1 && (3..6).contains(hour));
        let hours: Vec<MeshPeriod> = (0..24)
            .filter(logged)
            .map(|hour| MeshPeriod {
                nodes: NodeCount { members: 5, reported: 4 },
                watched_seconds: 4 * HOUR - hour % 3 * 40,
                ..sample::hour(start + hour * HOUR, 40 + n * 5, 6)
            })
            .collect();
        let day = (n > 0).then(|| MeshPeriod::day(start, &hours));
        for period in hours.into_iter().filter(|_| n < 3).chain(day) {
            let entry = String::from_utf8(period.entry()[2..].to_vec()).unwrap();
            let record = json!({ "entry": entry, "index": null, "from": 0 });
            let key = format!("claims/{}-{:010}", period.length, period.start);
            store.create(&Key::new(key).unwrap(), record.to_string().into()).await.unwrap();
        }
    }
}

async fn agent(
    world: &World,
    node: &str,
    services: &[&str],
    host: &str,
    token: &str,
) -> AgentHandle {
    let name = |text: &str| text.parse().unwrap();
    let instance = |service: &&str| Instance {
        service: name(service),
        listen: format!("{host}:7432").parse().unwrap(),
        advertise: Some(format!("{host}:7432").parse().unwrap()),
        allow: vec!["service/web".parse().unwrap()],
        ports: vec![],
    };
    let mesh = Mesh::new(TD.parse().unwrap());
    let params = AgentParams {
        trust_domain: TD.parse().unwrap(),
        node: name(node),
        dir: world.path(&format!("agent-{node}")),
        authority: vec![],
        token: TokenSource::Given(Arc::new(JoinToken::decode(token).unwrap())),
        services: services.iter().map(|service| name(service)).collect(),
        instances: services.iter().map(instance).collect(),
        own_host: None,
        transparency: Transparency::NotRequired,
        max_staleness: None,
        needs_mesh: true,
        times: AgentTimes::default(),
    };
    let agent = Agent::start(params, mesh).await.unwrap();
    tokio::time::timeout(PATIENCE, agent.wait_ready()).await.unwrap();
    agent
}

/// Traffic of a node: who calls whom, by which program, how, and how many connections and bytes.
type Traffic = (&'static str, &'static str, &'static str, How, u64, u64);

#[derive(Clone, Copy)]
enum How {
    Plain(&'static str, &'static str),
    Tls(Level, &'static str, &'static str, &'static str, bool),
    Relay,
    NotKnown,
}

fn seen(how: How) -> Seen {
    let sealed = |version: &'static str, suite: &'static str, group: &'static str, pq| Sealed {
        version: version.into(),
        suite: Some(suite.into()),
        group: Some(group.into()),
        post_quantum: Some(pq),
        forward_secrecy: Some(true),
        ..Sealed::default()
    };
    let (protocol, level, grade, evidence, sealed) = match how {
        How::Plain(protocol, evidence) => (protocol, Level::Plaintext, Grade::Seen, evidence, None),
        How::Tls(level, version, suite, group, pq) => {
            let evidence = "ServerHello in reply to a ClientHello";
            ("tls", level, Grade::Seen, evidence, Some(sealed(version, suite, group, pq)))
        }
        How::Relay => {
            let tls = sealed("TLS 1.3", CIPHER, GROUP, true);
            ("wiretight", Level::Strong, Grade::Carried, "carried by the relay", Some(tls))
        }
        How::NotKnown => {
            ("unknown", Level::Unknown, Grade::Unknown, "no packet with data was seen", None)
        }
    };
    let (protocol, evidence, sealed) = (protocol.into(), evidence.into(), sealed.map(Box::new));
    Seen { protocol, level, grade, evidence, starttls: None, sealed }
}

fn rows(traffic: &[Traffic]) -> Vec<Row> {
    let at = |seconds: u64| Timestamp::from_second((now() - seconds) as i64).unwrap();
    let mut rows = Rows::new(By::Pair, 100);
    for (client, server, program, how, connections, bytes) in traffic {
        let client: SocketAddr = format!("{client}:0").parse().unwrap();
        let udp = server.ends_with(":514") || server.ends_with(":53");
        let record = Record {
            transport: if udp { Transport::Udp } else { Transport::Tcp },
            client,
            server: server.parse().unwrap(),
            first: at(86_000),
            last: at(40),
            packets: [connections * 12, connections * 14],
            bytes: [bytes / 9, bytes - bytes / 9],
            whole: true,
            seen: Arc::new(seen(*how)),
        };
        let programs = Programs { client: Some((*program).into()), server: None };
        rows.add_many(&Flow { record, programs }, *connections);
    }
    rows.list()
}

fn exceptions() -> Vec<Exception> {
    let exception = |kind, what: &str, why: Option<(&str, &str, u64)>| Exception {
        kind,
        what: what.into(),
        explanation: why.map(|(reason, owner, until)| Explanation {
            reason: reason.into(),
            owner: owner.into(),
            until,
        }),
    };
    let (pass, permissive) = (ExceptionKind::Pass, ExceptionKind::Permissive);
    let until = now() + 120 * DAY;
    vec![
        exception(
            pass,
            "udp out 10.0.0.9 514",
            Some(("the firewall speaks only syslog", "network team", until)),
        ),
        exception(
            pass,
            "udp out 10.0.0.1 123",
            Some(("NTP has no encryption here yet", "network team", now() - 3 * DAY)),
        ),
        exception(permissive, "10.0.0.8", None),
    ]
}

/// The nodes with their services, addresses and reports.
fn reports() -> Vec<(&'static str, &'static [&'static str], &'static str, NodeReport)> {
    use Level::{Acceptable, Strong, Weak};
    const GCM: &str = "TLS_AES_256_GCM_SHA384";
    let postgres = How::Plain("postgres", "StartupMessage without SSLRequest");
    let weak = How::Tls(Weak, "TLS 1.0", "TLS_RSA_WITH_AES_128_CBC_SHA", "rsa", false);
    let good = How::Tls(Acceptable, "TLS 1.3", GCM, "x25519", false);
    let best = How::Tls(Strong, "TLS 1.3", GCM, GROUP, true);
    let web: &[Traffic] = &[
        ("10.0.0.7", "10.0.0.5:7432", "gunicorn (web.service)", How::Relay, 18_402, 9_650_000_000),
        (
            "10.0.0.7",
            "10.0.0.6:6379",
            "gunicorn (web.service)",
            How::Plain("redis", "RESP command GET"),
            4_100,
            310_000_000,
        ),
        ("10.0.0.7", "10.0.0.5:5432", "report.py (cron.service)", postgres, 24, 88_000_000),
        ("10.0.0.7", "198.51.100.20:443", "gunicorn (web.service)", good, 2_210, 640_000_000),
        ("10.0.0.7", "198.51.100.44:443", "node (push.service)", best, 940, 205_000_000),
        (
            "10.0.0.7",
            "10.0.0.9:514",
            "rsyslogd (rsyslog.service)",
            How::Plain("syslog", "<34>1 2026"),
            86_400,
            41_000_000,
        ),
        ("10.0.0.7", "203.0.113.9:9999", HOSTILE, How::NotKnown, 3, 12_000),
    ];
    let db: &[Traffic] = &[
        (
            "10.0.0.7",
            "10.0.0.5:7432",
            "postgres (postgresql.service)",
            How::Relay,
            18_400,
            9_649_000_000,
        ),
        ("10.0.0.7", "10.0.0.5:5432", "postgres (postgresql.service)", postgres, 24, 88_000_000),
        ("10.0.0.5", "10.0.0.12:22", "pgbackrest (backup.service)", best, 30, 5_200_000_000),
        (
            "10.0.0.5",
            "10.0.0.1:53",
            "systemd-resolve",
            How::Plain("dns", "query for db.example."),
            6_200,
            1_900_000,
        ),
    ];
    let mail: &[Traffic] = &[
        ("10.0.0.8", "192.0.2.25:25", "smtp (postfix.service)", weak, 310, 64_000_000),
        ("192.0.2.77", "10.0.0.8:993", "dovecot (dovecot.service)", good, 5_230, 720_000_000),
        (
            "10.0.0.8",
            "10.0.0.9:514",
            "rsyslogd (rsyslog.service)",
            How::Plain("syslog", "<22>1 2026"),
            9_000,
            4_000_000,
        ),
    ];
    let report = |mode: Mode, rows: Vec<Row>, exceptions: Vec<Exception>| NodeReport {
        version: env!("CARGO_PKG_VERSION").into(),
        mode: Some(mode),
        mode_since: Some(now() - 12 * DAY),
        watching: true,
        exceptions: exceptions.into(),
        rows: rows.into(),
        rows_since: Some(now() - DAY),
        ..NodeReport::default()
    };
    vec![
        ("web1", &["web"], "10.0.0.7", report(Mode::Permissive, rows(web), exceptions())),
        ("db1", &["db"], "10.0.0.5", report(Mode::Strict, rows(db), Vec::new())),
        ("mail1", &[], "10.0.0.8", report(Mode::Observe, rows(mail), Vec::new())),
    ]
}

/// A folder with reports of scans, one of them not readable.
pub(crate) fn scans(folder: &Path) {
    let reason = |rule: &str, level: &str, what: &str, change: &str| json!({ "rule": rule, "fact": rule, "answer": "yes", "level": level, "what": what, "standard": "RFC 9325 section 3.1.1", "change": change });
    let scan = |target: &str, address: &str, days: u64, level: &str, reasons: Vec<Value>| {
        let started = Timestamp::from_second((now() - days * DAY) as i64).unwrap();
        let met = if reasons.is_empty() { "yes" } else { "no" };
        json!({
            "target": target, "address": address, "started": started.to_string(), "seconds": 2.5, "connections": 95,
            "reached": { "state": "tls" }, "facts": {}, "chains": [],
            "judgement": { "level": level, "reasons": reasons, "profiles": [{ "profile": "bcp195", "answer": met, "reasons": [] }] },
        })
    };
    let old = reason(
        "old-version",
        "weak",
        "TLS 1.0 and TLS 1.1 are accepted",
        "Allow TLS 1.2 and 1.3 only",
    );
    let hostile = reason("name", "weak", HOSTILE, HOSTILE);
    let quantum = reason(
        "post-quantum",
        "acceptable",
        "No post-quantum key exchange is accepted",
        "Enable X25519MLKEM768",
    );
    let mut plain = scan("10.0.0.6:6379", "10.0.0.6", 2, "plaintext", vec![]);
    plain["reached"] = json!({ "state": "plaintext", "evidence": "-ERR unknown command" });
    let reports = [
        scan(
            "mail.example:993",
            "10.0.0.8",
            2,
            "weak",
            vec![old.clone(), hostile, quantum.clone()],
        ),
        scan("10.0.0.5:7432", "10.0.0.5", 2, "strong", vec![]),
        scan("wiki.example:443", "10.0.0.30", 2, "acceptable", vec![quantum]),
        plain,
    ];
    let document =
        |reports: &[Value]| json!({ "schema": "urn:wiretight:scan-report:1", "reports": reports });
    fs::create_dir(folder).unwrap();
    fs::write(folder.join("mesh.json"), document(&reports).to_string()).unwrap();
    let before = scan("mail.example:993", "10.0.0.8", 34, "weak", vec![old]);
    fs::write(folder.join("october.json"), document(&[before]).to_string()).unwrap();
    fs::write(folder.join("broken.json"), "{").unwrap();
}
