//! A mesh of six nodes on one wire: the hour that is logged, and what the authority knows of each node, equal what a
//! capture of the wire says, within the `unknown` that is shown. One node is silent, one lies, and one has a wrong clock:
//! what is claimed then is as SECURITY.md says. What is published of it names nothing of the mesh.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use wiretight_keys::claims::{Algorithm, MeshPeriod};
use wiretight_proxy::clock::now;
use wiretight_scan::judge::Level;
use wiretight_scan::passive::totals::{Count, Period, Totals};
use wiretight_store::{Key, SqliteStore, Store};

use super::machines::*;
use super::rig::*;

const HOUR: u64 = 3600;
/// The length of a file that is fetched. Each is much longer than everything else on the wire.
const FILE: usize = 2 << 20;
/// What the liar claims.
const LIE: u64 = 1 << 40;
/// What nodes exchange between the start of a capture and that of their watch, and at its end, in bytes: about 1 % of the
/// traffic.
const EDGES: u64 = 64 << 10;

type Levels = BTreeMap<Level, Count>;

/// By how much the wrong clock is ahead of the others, in seconds: more than what is left of the hour.
const WRONG: i64 = 670;
/// The name of the file, the host that clients ask for, and what is in the file.
const PATH: &str = "platypus-file";
const HOST: &str = "echidna.internal";
const CONTENT: &str = "numbat's secret\n";

/// A web server on a machine.
fn web(world: &World, ns: &str, at: &str, port: u16, group: Option<&Group>) -> Kid {
    let join =
        group.map_or(String::new(), |g| format!("echo $$ > {}/cgroup.procs;", g.0.display()));
    let www = world.path("www");
    let serve = format!(
        "{join} exec python3 -m http.server --bind {at} {port} --directory {}",
        www.display()
    );
    let mut sh = Command::new("sh");
    sh.args(["-ec", &serve]);
    Kid::start(&mut within(Some(ns), sh), &world.path(&format!("http-{ns}.log")))
}

/// All texts below a value with one of these names.
fn texts(value: &Value, names: &[&str], found: &mut BTreeSet<String>) {
    match value {
        Value::Array(all) => all.iter().for_each(|value| texts(value, names, found)),
        Value::Object(all) => {
            for (name, value) in all {
                match value {
                    Value::String(text) if names.contains(&name.as_str()) => {
                        found.insert(text.clone());
                    }
                    value => texts(value, names, found),
                }
            }
        }
        _ => {}
    }
}

/// Everything in a folder.
fn published(dir: &Path) -> String {
    let files = fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    files
        .map(|file| format!("{}\n{}\n", file.display(), fs::read_to_string(&file).unwrap()))
        .collect()
}

/// A TLS server that serves files.
fn tls(world: &World, ns: &str, port: u16, options: &[&str]) -> Kid {
    let www = world.path("www");
    let mut openssl = Command::new("sh");
    let serve = format!(
        "cd {} && exec openssl s_server -accept {port} -WWW -cert ../cert -key ../key {}",
        www.display(),
        options.join(" ")
    );
    openssl.args(["-ec", &serve]);
    Kid::start(&mut within(Some(ns), openssl), &world.path(&format!("tls-{port}.log")))
}

/// Totals of an earlier process, for a node that was not started yet.
fn plant(node: &Node, hours: &[Value]) {
    fs::create_dir(node.state()).unwrap();
    Ran::of(Command::new("chmod").arg("700").arg(node.state()), "").good();
    let file = json!({ "hours": hours, "sent": [] });
    fs::write(node.state().join("watch.json"), file.to_string()).unwrap();
}

fn hours(node: &Node, mesh: bool, start: u64) -> BTreeMap<String, Vec<Period>> {
    let asked = json!({ "from": start, "to": start + HOUR - 1, "mesh": mesh }).to_string();
    let (code, body) = node.http("POST", "/v1/watch/hours", &asked).unwrap();
    assert_eq!(code, 200, "{body}");
    serde_json::from_value(serde_json::from_str::<Value>(&body).unwrap()["nodes"].take()).unwrap()
}

/// What a node has counted in an hour.
fn counted(node: &Node, start: u64) -> Totals {
    let mut all = hours(node, false, start);
    let own = all.remove(&node.name).unwrap_or_default();
    own.into_iter().find(|hour| hour.start == start).map(|hour| hour.totals).unwrap_or_default()
}

/// What a capture says: by level, and the number of TCP connections by level.
fn captured(file: &Path) -> (Levels, BTreeMap<String, u64>) {
    let said = Ran::of(wiretight().args(["watch", "--json"]).arg(file), "").json();
    let levels = said["coverage"]["levels"].as_object().unwrap();
    let mut levels: Levels = levels
        .iter()
        .map(|(level, share)| {
            let number = |key: &str| share[key].as_u64().unwrap();
            let level = serde_json::from_value(json!(level)).unwrap();
            (level, Count { connections: number("flows"), bytes: number("bytes") })
        })
        .collect();
    for gap in said["coverage"]["missed"].as_array().unwrap() {
        levels.entry(Level::Unknown).or_default().bytes += gap["bytes"].as_u64().unwrap();
    }
    let mut connections = BTreeMap::new();
    for flow in said["flows"].as_array().unwrap().iter().filter(|f| f["transport"] == "tcp") {
        *connections.entry(flow["level"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    (levels, connections)
}

/// About 70 s, nearly all of it waiting: nodes add up what they have counted every 10 s, the end of the hour passes without
/// a step of the clock, and nodes send the hour and the authority logs it within 15 s.
#[test]
fn the_totals_of_a_mesh_are_what_is_on_the_wire_within_the_unknown_that_is_shown() {
    if !has(&["ip", "nft", "nsenter", "tcpdump", "python3", "openssl", "curl", "faketime"])
        || !is_root()
    {
        return;
    }
    let world = World::new();
    let mut wire = Wire::new();
    let spaces = [
        wire.client.clone(),
        wire.server.clone(),
        wire.add(3),
        wire.add(4),
        wire.add(5),
        wire.add(6),
        wire.add(9),
    ];
    let [app, auth_at, db, silent_at, liar_at, wrong_at, foreign] = &spaces;
    fs::create_dir(world.path("www")).unwrap();
    fs::write(world.path("www").join(PATH), CONTENT.repeat(FILE / CONTENT.len())).unwrap();
    let group = Group::new("bettong");
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]);
    openssl.args(["-subj", "/CN=x.test", "-keyout"]).arg(world.path("key"));
    Ran::of(openssl.arg("-out").arg(world.path("cert")), "").good();
    let _servers = [
        web(&world, auth_at, "127.0.0.1", 8080, None),
        web(&world, db, "10.77.0.3", 80, group.as_ref()),
        web(&world, foreign, "10.77.0.9", 80, None),
        tls(&world, foreign, 443, &["-tls1_2", "-cipher", "AES128-SHA"]),
        tls(&world, foreign, 8443, &["-tls1_3", "-groups", "X25519"]),
    ];
    // Names are not resolved.
    let foreign_host = format!("{HOST}:443:10.77.0.9:443");
    let curl = |ns: &str, more: &[&str], url: &str| {
        let url = format!("{url}/{PATH}");
        let args = ["-sSk", "-m", "20", "-o", "/dev/null", "--connect-to", &foreign_host];
        run(ns, "curl", &[&args[..], more, &[url.as_str()]].concat())
    };
    let secret = format!("https://{HOST}");
    let secret = secret.as_str();
    let weak = ["--tls-max", "1.2", "--ciphers", "AES128-SHA"];
    wait_for("the servers listen", || {
        let on_foreign = |more: &[&str], url: &str| curl(app, more, url).code == Some(0);
        on_foreign(&[], "http://10.77.0.9")
            && on_foreign(&[], "http://10.77.0.3")
            && on_foreign(&weak, secret)
            && on_foreign(&[], "https://10.77.0.9:8443")
    });

    // Every clock of the mesh says that ten minutes of this hour are left.
    let hour = now() / HOUR * HOUR + HOUR;
    let ahead = (hour + HOUR - 600 - now()) as i64;
    let clocked = |node: &mut Node, ns: &str, ahead: i64| {
        let clock = Clock::in_folder(node.file().parent().unwrap());
        clock.set(ahead);
        node.env = clock.env();
        node.netns = Some(ns.to_owned());
        clock
    };
    let service = "[[service]]\nname = \"wombat\"\nlisten = \"10.77.0.2:7080\"\nforward = \"127.0.0.1:8080\"\nallow = [\"node/bilby\"]\n";
    let folder = world.path("srv").join("proof");
    fs::create_dir(world.path("srv")).unwrap();
    let sections = |more: &str| {
        format!(
            "[authority]\nlisten = \"10.77.0.2:7400\"\n{service}[watch]\n[publish]\ndir = {folder:?}\n{more}"
        )
    };
    let mut auth = world.node("quoll", &sections(""));
    let mut clocks = vec![clocked(&mut auth, auth_at, ahead)];
    let captures: Vec<Capture> =
        ["v1", "v2", "v3", "v6"].map(|port| Capture::at(port, &wire, &world, port)).into();
    auth.start();
    auth.ready();
    let dial = "[[dial]]\nlisten = \"127.0.0.1:8080\"\nservice = \"wombat\"\n[watch]\n";
    let mut join = |name: &str, ns: &str, ahead: i64, sections: &str, planted: &[Value]| {
        let mut node = world.node(name, sections);
        fs::write(node.token_file(), auth.token(name, &[])).unwrap();
        clocks.push(clocked(&mut node, ns, ahead));
        if !planted.is_empty() {
            plant(&node, planted);
        }
        node.start();
        node.ready();
        node
    };
    let lie = json!({
        "start": hour, "watched_seconds": 3600,
        "shares": [{"way": "out", "level": "strong", "grade": "seen", "protocol": "tls", "connections": 9, "bytes": LIE}],
        "algorithms": [{"version": "TLS 1.3", "key_exchange": "X25519MLKEM768", "cipher": "TLS_AES_128_GCM_SHA256", "post_quantum": true, "connections": 9, "bytes": LIE}],
    });
    let app_node = join("bilby", app, ahead, dial, &[]);
    let db_node = join("dingo", db, ahead, "[watch]\n", &[]);
    let silent = join("koala", silent_at, ahead, "", &[]);
    let liar = join("galah", liar_at, ahead, "[watch]\n", &[lie]);
    // By its clock the hour is over. It had nothing to do until then.
    let quiet = json!({ "start": hour, "watched_seconds": 2900, "shares": [] });
    let wrong = join("cassowary", wrong_at, ahead + WRONG, "[watch]\n", &[quiet]);
    app_node.knows("wombat");
    let nodes = [&app_node, &auth, &db_node, &liar, &wrong];
    for node in nodes {
        wait_for(&format!("{} watches", node.name), || node.status()["watch"]["since"].is_u64());
    }

    // Relay, plaintext within the mesh and to a foreign machine, weak TLS, and TLS without a post-quantum key exchange.
    for (ns, more, url) in [
        (app, &[][..], "http://127.0.0.1:8080"),
        (app, &[][..], "http://10.77.0.3"),
        (app, &[][..], "http://10.77.0.9"),
        (db, &weak[..], secret),
        (db, &[][..], "https://10.77.0.9:8443"),
        (wrong_at, &[][..], "http://10.77.0.9"),
    ] {
        curl(ns, more, url).good();
    }
    // Nobody hears of this.
    curl(silent_at, &[], "http://10.77.0.9").good();
    let bytes = |totals: &Totals, level: Level| totals.by_level()[&level].bytes;
    let file = (FILE / CONTENT.len() * CONTENT.len()) as u64;
    let expected: [(&Node, &[(Level, u64)]); 3] = [
        (&app_node, &[(Level::Strong, file), (Level::Plaintext, 2 * file)]),
        (&auth, &[(Level::Strong, file)]),
        (&db_node, &[(Level::Plaintext, file), (Level::Weak, file), (Level::Acceptable, file)]),
    ];
    for (node, levels) in expected {
        wait_for(&format!("{} has counted it", node.name), || {
            let totals = counted(node, hour);
            levels.iter().all(|(level, least)| bytes(&totals, *level) >= *least)
        });
    }
    // The node with the wrong clock counts it in the next hour.
    wait_for("it is counted in the next hour", || {
        bytes(&counted(&wrong, hour + HOUR), Level::Plaintext) >= file
    });
    assert_eq!(bytes(&counted(&wrong, hour), Level::Plaintext), 0);
    // What nodes know that must not be published. (`None`: this machine has no control groups of version 2.)
    let known: Vec<Value> = nodes
        .iter()
        .map(|node| node.http("POST", "/v1/watch", r#"{"rows":1000}"#).unwrap())
        .map(|(_, body)| serde_json::from_str(&body).unwrap())
        .collect();
    let program = group.as_ref().map(Group::name);

    let captured: Vec<_> = captures
        .into_iter()
        .map(|capture| {
            let file = capture.file.clone();
            capture.bytes();
            captured(&file)
        })
        .collect();

    // The end of the hour passes. (An hour across whose end the authority's clock was set is not logged.)
    let end = hour + HOUR;
    let before = |seconds: u64| (end - now()) as i64 - seconds as i64;
    let ahead = before(15);
    let (wrong_clock, clocks) = clocks.split_last().unwrap();
    clocks.iter().for_each(|clock| clock.set(ahead));
    wrong_clock.set(ahead + WRONG);
    std::thread::sleep(Duration::from_secs(18));
    // A node sends an hour a minute after its end. The authority's clock may be set by less than a minute.
    let (of_authority, others) = clocks.split_first().unwrap();
    others.iter().for_each(|clock| clock.set(ahead + 70));
    of_authority.set(ahead + 58);
    let sent = || hours(&auth, true, hour);
    wait_for("the hour of five nodes is at the authority", || sent().len() == 5);
    let sent = sent();
    assert!(!sent.contains_key("koala"), "{sent:?}");
    for (node, (wire, connections)) in ["bilby", "quoll", "dingo"].into_iter().zip(&captured) {
        let [of] = &sent[node][..] else { panic!("{node}: {:?}", sent[node]) };
        let claimed = of.totals.by_level();
        say(format!("{node}: claimed {claimed:?}\n{node}: captured {wire:?}"));
        let unknown = claimed[&Level::Unknown].bytes + wire[&Level::Unknown].bytes;
        for level in Level::ALL.into_iter().filter(|level| *level != Level::Unknown) {
            let (claim, truth) = (claimed[&level], wire[&level]);
            assert!(
                claim.bytes.abs_diff(truth.bytes) <= unknown + EDGES,
                "{node}, {level}: {claim:?} is claimed, {truth:?} was on the wire, {unknown} bytes are unknown"
            );
            // Those of nodes to each other may be older than the watch.
            if level <= Level::Weak {
                let truth = connections.get(&level.to_string()).copied().unwrap_or_default();
                assert_eq!(claim.connections, truth, "{node}, {level}");
            }
        }
        let sum = |levels: &Levels| levels.values().map(|count| count.bytes).sum::<u64>();
        assert!(sum(&claimed).abs_diff(sum(wire)) <= EDGES, "{node}: {claimed:?} {wire:?}");
        // The control: the unknown is not so large that everything would be within it.
        assert!(unknown * 20 < sum(&claimed), "{node}: {unknown} of {claimed:?}");
        // Not an hour, but since the node started.
        assert!(of.watched_seconds < 300, "{node}: {} s", of.watched_seconds);
    }
    // What was negotiated, by bytes.
    let negotiated = |node: &str, version: &str, post_quantum: bool| -> u64 {
        let all = sent[node].iter().flat_map(|hour| &hour.totals.algorithms);
        let same = all.filter(|share| {
            share.algorithm.version == version && share.algorithm.post_quantum == post_quantum
        });
        same.map(|share| share.count.bytes).sum()
    };
    assert!(negotiated("bilby", "TLS 1.3", true) > file);
    let weak_and_not =
        [negotiated("dingo", "TLS 1.2", false), negotiated("dingo", "TLS 1.3", false)];
    assert!(weak_and_not.iter().all(|bytes| *bytes > file), "{weak_and_not:?}");

    // The lie is believed, but is only the liar's.
    let claimed = |node: &str| sent[node][0].totals.by_level()[&Level::Strong].bytes;
    let honest = ["bilby", "quoll", "dingo"];
    assert!(claimed("galah") >= LIE && honest.iter().all(|n| claimed(n) < 2 * file));
    // A clock that is ahead: the plaintext was on the wire in this hour, and no page of it shows that.
    let plaintext = |node: &str| sent[node][0].totals.by_level()[&Level::Plaintext].bytes;
    assert!(captured[3].0[&Level::Plaintext].bytes >= file && plaintext("cassowary") == 0);

    // What is logged is the sum of that.
    wait_for("the hour is logged", || auth.status()["claims"]["logged"] == 1);
    assert!(silent.status()["ready"].as_bool().unwrap());

    // The folder is written again, with that hour.
    let facts = || fs::read_to_string(folder.join("facts.json")).unwrap_or_default();
    let facts = || serde_json::from_str::<Value>(&facts()).unwrap_or_default();
    wait_for("the hour is published", || facts()["windows"]["day"]["periods"] == 1);
    let facts = facts();
    let by_default = published(&folder);
    auth.write(&sections("public_services = true\n"));
    auth.cli(&["reload"]).good();
    wait_for("services are published", || published(&folder).contains("wombat"));
    let with_services = published(&folder);
    let members = auth.http("GET", "/v1/nodes", "").unwrap().1;
    auth.kill();
    let period = logged(&auth, hour);
    assert_eq!(facts["windows"]["day"]["levels"], serde_json::to_value(period.levels).unwrap());
    assert_eq!(facts["gaps"]["rows"][0]["silent"], 1);
    assert!(by_default.contains("1 machine did not report"), "the page says it, too");

    // Nothing of the mesh is named. The control: the nodes know all of it.
    let mut private: BTreeSet<String> = ["bilby", "quoll", "dingo", "koala", "galah", "cassowary"]
        .into_iter()
        .chain(["wombat", "10.77.0.", HOST, PATH])
        .map(str::to_owned)
        .collect();
    let known = format!("{members}{}", json!(known));
    private.extend(program);
    let mut names = BTreeSet::new();
    texts(&serde_json::from_str(&known[members.len()..]).unwrap(), &["server_name"], &mut names);
    assert!(names.contains(HOST), "{names:?}");
    private.extend(names);
    for name in &private {
        assert!(known.contains(name.as_str()), "{name} is not known: {known}");
    }
    let on_the_wire = fs::read(world.path("v1.pcap")).unwrap();
    let content = CONTENT.trim().as_bytes();
    assert!(on_the_wire.windows(content.len()).any(|bytes| bytes == content));
    private.insert(CONTENT.trim().to_owned());
    let found = |text: &str| -> Vec<&str> {
        private.iter().map(String::as_str).filter(|name| text.contains(name)).collect()
    };
    assert_eq!(found(&by_default), [""; 0]);
    assert_eq!(found(&with_services), ["wombat"]);

    let summed =
        |level: Level| -> u64 { captured[..3].iter().map(|(wire, _)| wire[&level].bytes).sum() };
    let levels = period.levels;
    for (level, claim, lie) in [
        (Level::Plaintext, levels.plaintext, 0),
        (Level::Weak, levels.weak, 0),
        (Level::Acceptable, levels.acceptable, 0),
        (Level::Strong, levels.strong, LIE),
    ] {
        let truth = summed(level);
        let unknown = levels.unknown.bytes + summed(Level::Unknown);
        assert!(
            (claim.bytes - lie).abs_diff(truth) <= unknown + 3 * EDGES,
            "{level}: {claim:?} is claimed, {truth} bytes were on the wire, {unknown} are unknown"
        );
    }
    // The watch asks the relay every 10 s; what is counted before that is only `seen`.
    assert!(period.carried.bytes < 3 * file, "{period:?}");
    assert!(period.post_quantum.bytes >= LIE + 2 * file, "{period:?}");
    let carried = |a: &&Algorithm| a.cipher == CIPHER && a.key_exchange == GROUP;
    assert!(period.algorithms.iter().find(carried).unwrap().amount.bytes >= 2 * file);
}

/// The hour as it is in the log, from the store of an authority that does not run.
fn logged(authority: &Node, hour: u64) -> MeshPeriod {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let record = runtime.block_on(async {
        let store = SqliteStore::open(authority.state().join("authority/store.db")).await.unwrap();
        let key = Key::new(format!("claims/{HOUR}-{hour}")).unwrap();
        store.get(&key).await.unwrap().expect("the hour is in the store").value
    });
    let record: Value = serde_json::from_slice(&record).unwrap();
    assert!(record["index"].is_u64(), "{record}");
    MeshPeriod::parse(record["entry"].as_str().unwrap().as_bytes()).unwrap()
}
