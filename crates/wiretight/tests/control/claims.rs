//! Reports of nodes, and what the authority logs and proves.

use serde_json::{Value, json};
use wiretight::authority::LoggedPeriod;
use wiretight::control::report::NodeReport;
use wiretight::proof;
use wiretight::proof::audit::{self, Inputs, Window, check};
use wiretight::proof::controls::Profile as Standard;
use wiretight_keys::claims::{HOUR as LENGTH, MeshPeriod, Modes, NodeCount};
use wiretight_keys::logged::Entry;
use wiretight_proxy::clock::now;
use wiretight_proxy::intercept::rules::Mode;
use wiretight_scan::judge::Level;
use wiretight_scan::passive::Grade;
use wiretight_scan::passive::summary::Row;
use wiretight_scan::passive::totals::{Count, Hour, Kind, Sum, Way};
use wiretight_store::update;
use wiretight_tlog::Hash;
use wiretight_tlog::tree::{verify_consistency, verify_inclusion};

use super::*;

fn hour(start: u64, bytes: u64) -> Hour {
    let kind =
        Kind { way: Way::Out, level: Level::Strong, grade: Grade::Seen, protocol: "tls".into() };
    let mut sum = Sum::default();
    sum.add(kind, Count { connections: 1, bytes });
    Hour { start, watched_seconds: 3600, totals: sum.totals() }
}

fn report(report: Value) -> Value {
    json!({ "type": "report", "request": 3, "report": report })
}

#[tokio::test]
async fn an_agent_sends_its_newest_report_on_every_stream() {
    let world = World::new();
    let authority = world.authority().await;
    let node = world.joined(&authority, "a", &[]).await;
    let row = json!({
        "server": "10.0.0.5:5432", "transport": "tcp", "protocol": "postgres", "level": "plaintext",
        "flows": 3, "bytes": [10, 20], "first": "2026-11-30T10:00:00Z", "last": "2026-11-30T11:00:00Z",
        "grade": "seen", "clients": ["10.0.0.7"], "more_clients": false, "programs": [], "seen": [],
        "more_seen": false, "reasons": [], "profiles": {},
    });
    let row: Row = serde_json::from_value(row).unwrap();
    let report = |mode| NodeReport {
        version: "0.1.0".into(),
        mode: Some(mode),
        rows: vec![row.clone()].into(),
        ..NodeReport::default()
    };
    let kept = |authority: &AuthorityHandle| {
        let report = authority.reports().get(&name("a")).and_then(|known| known.report.clone());
        report.map(|report| (report.mode.unwrap(), report.rows.good.len()))
    };
    for mode in [Mode::Observe, Mode::Strict] {
        node.agent.report(report(mode)).await;
        until("the report is kept", || kept(&authority) == Some((mode, 1))).await;
    }
    // A refused report does not end the stream, nor does it replace the one before.
    node.agent.report(NodeReport { version: "\n".into(), ..report(Mode::Observe) }).await;
    until("it is refused", || authority.claims_status().reports_rejected == 1).await;
    assert_eq!(kept(&authority), Some((Mode::Strict, 1)));
    node.agent.report(report(Mode::Strict)).await;
    assert!(node.agent.totals(hour(now() / LENGTH * LENGTH, 5)).await.unwrap());
    // The store has no rows, so they come from the node, on its new stream.
    let authority = world.restart(authority).await;
    until("it is sent again", || kept(&authority) == Some((Mode::Strict, 1))).await;
}

/// A node without its agent: the tests speak for it.
async fn puppet(
    world: &World,
    authority: &AuthorityHandle,
    node: &str,
) -> Arc<rustls::ClientConfig> {
    let joined = world.joined(authority, node, &[]).await;
    joined.agent.shutdown().await;
    let own = id(&format!("node/{node}"));
    client_config(&joined.mesh, own, authority_id(), ALPN_CONTROL).unwrap()
}

#[tokio::test]
async fn a_report_is_kept_for_its_node_and_a_bad_one_changes_nothing() {
    let world = World::new();
    let authority = world.authority().await;
    let (a, b) = (puppet(&world, &authority, "a").await, puppet(&world, &authority, "b").await);
    let row = json!({
        "server": "10.0.0.5:5432", "transport": "tcp", "protocol": "postgres", "level": "plaintext",
        "flows": 3, "bytes": [10, 20], "first": "2026-11-30T10:00:00Z", "last": "2026-11-30T11:00:00Z",
        "grade": "seen", "clients": ["10.0.0.7"], "more_clients": false, "programs": [], "seen": [],
        "more_seen": false, "reasons": [], "profiles": {},
    });
    let good = json!({
        "version": "0.1.0", "mode": "strict", "mode_since": 5, "watching": true,
        "exceptions": [{ "kind": "pass", "what": "udp 10.0.0.9:514" }, { "kind": 7 }],
        "rows": [row],
    });
    assert!(
        exchange(&authority, &a, &report(good.clone())).await.contains(r#""kept","request":3"#)
    );
    let known = authority.reports()[&name("a")].clone();
    let kept = known.report.unwrap();
    assert_eq!((&*kept.version, kept.watching, kept.rows.good.len()), ("0.1.0", true, 1));
    // One exception could not be read. It is not forgotten.
    assert_eq!((kept.exceptions.good.len(), kept.more_exceptions), (1, 1));
    assert!(known.at.unwrap().abs_diff(now()) < 60);

    let with = |name: &str, value: Value| {
        let mut changed = good.clone();
        changed[name] = value;
        report(changed)
    };
    let many: Vec<Value> = (0..65).map(|_| good["exceptions"][0].clone()).collect();
    for bad in [
        with("version", "\u{1b}[2J".into()),
        with("version", "".into()),
        with("exceptions", many.into()),
        with("exceptions", json!([{ "kind": "pass", "what": "a\nb" }])),
        with("rows", vec![row.clone(); 129].into()),
        with("rows", json!([with_programs(&row, &"x".repeat(70_000))])),
    ] {
        let said = exchange(&authority, &a, &bad).await;
        assert!(said.contains(r#""bad_request""#), "{said}");
    }
    assert_eq!(authority.claims_status().reports_rejected, 6);
    // Nobody else is affected, and no node speaks for another.
    assert!(
        exchange(&authority, &b, &report(json!({ "version": "0.0.9" }))).await.contains("kept")
    );
    assert_eq!(authority.reports()[&name("a")].report.as_ref(), Some(&kept));
    // It may not report all the time.
    let mut said = String::new();
    for _ in 0..20 {
        said = exchange(&authority, &a, &with("mode_since", 6.into())).await;
    }
    assert!(said.contains(r#""busy""#), "{said}");

    // After a restart the rows are missing until the node sends them again.
    let authority = world.restart(authority).await;
    let reports = authority.reports();
    let kept = reports[&name("a")].report.as_ref().unwrap();
    assert_eq!((kept.exceptions.good.len(), kept.more_exceptions), (1, 1));
    assert_eq!((kept.rows.good.len(), reports[&name("a")].last_hour), (0, None));
    assert_eq!(&*reports[&name("b")].report.as_ref().unwrap().version, "0.0.9");
    authority.remove_node(name("a")).await.unwrap();
    assert!(!authority.reports().contains_key(&name("a")));
    let stored = world.store.list("report/").await.unwrap().0;
    assert_eq!(stored.iter().map(|e| e.key.as_str()).collect::<Vec<_>>(), ["report/b"]);
}

fn with_programs(row: &Value, program: &str) -> Value {
    let mut row = row.clone();
    row["programs"] = json!([program]);
    row
}

/// The claims in the log, with their indexes.
async fn in_log(authority: &AuthorityHandle) -> Vec<LoggedPeriod> {
    let entries = authority.log().bundle(0).await.unwrap();
    let period = |(index, entry): (u64, Vec<u8>)| match Entry::parse(&entry) {
        Ok(Entry::Period(period)) => Some(LoggedPeriod { index, period: *period }),
        _ => None,
    };
    (0..).zip(entries).filter_map(period).collect()
}

async fn until_logged(authority: &AuthorityHandle) {
    until_async("the hour is logged", || async {
        authority.claims_status().logged_until.is_some()
    })
    .await;
}

#[tokio::test]
async fn the_last_hour_is_logged_once_the_nodes_that_watch_have_sent_it_and_is_proved() {
    // The test is about one hour.
    let left = 3600 - now() % 3600;
    if left < 60 {
        sleep(Duration::from_secs(left + 1)).await;
    }
    let mut world = World::new();
    world.times.late = HOUR;
    let authority = world.authority().await;
    let last = now() / LENGTH * LENGTH - LENGTH;
    let a = puppet(&world, &authority, "a").await;
    let _silent = puppet(&world, &authority, "silent").await;
    // An older node sends totals and no reports.
    let old = world.joined(&authority, "old", &[]).await;
    assert!(old.agent.totals(hour(last - LENGTH, 1)).await.unwrap());
    let strict = json!({ "version": "0.1.0", "mode": "strict", "watching": true });
    assert!(exchange(&authority, &a, &report(strict)).await.contains("kept"));
    // The authority ran in the last hour, and starts again.
    let addr = authority.local_addr();
    authority.shutdown().await;
    let running = Key::new("claims/running").unwrap();
    let value = last.to_string().into_bytes();
    update(&*world.store, &running, |_| Ok::<_, wiretight_store::Error>(Some(value.clone())))
        .await
        .unwrap();
    let authority = world.authority_at(addr).await.unwrap();
    // Its stream was closed; it makes a new one.
    until_async("the older node sends the hour", || async {
        old.agent.totals(hour(last, 100)).await.is_ok_and(|kept| kept)
    })
    .await;
    assert_eq!(authority.claims_status().logged, 0, "node a has not sent it");
    let totals = |bytes| {
        let hours = [serde_json::to_value(hour(last, bytes)).unwrap()];
        json!({ "type": "totals", "request": 4, "hours": hours })
    };
    assert!(exchange(&authority, &a, &totals(1000)).await.contains("kept"));
    until_logged(&authority).await;

    let facts = proof::collect(&authority, last, last + LENGTH).await.unwrap();
    let [LoggedPeriod { index, period }] = &facts.periods[..] else { panic!("{facts:?}") };
    assert_eq!((period.start, period.length, facts.since), (last, LENGTH, Some(last)));
    assert_eq!(period.nodes, NodeCount { members: 3, reported: 2 });
    assert_eq!((period.watched_seconds, period.levels.strong.bytes), (7200, 1100));
    assert_eq!(period.modes, Modes { strict: 1, none: 2, ..Modes::default() });
    assert_eq!(in_log(&authority).await, facts.periods);
    let of = |node: &str| facts.nodes.iter().find(|n| n.name == name(node)).unwrap();
    assert_eq!((of("a").last_hour, of("a").connected), (Some(last), false));
    assert_eq!((of("old").connected, of("old").report.is_none()), (true, true));
    assert_eq!((of("silent").last_hour, of("silent").reported_at), (None, None));
    assert_eq!(facts.keys[0].name, "root");
    assert_eq!(facts.keys.last().unwrap().fingerprint, authority.log().key().to_string());

    // The proofs.
    let policy = authority.log().policy();
    let proven = authority.prove(&[*index], &[1, *index]).await.unwrap();
    let checkpoint = policy.witnessed(&proven.checkpoint).unwrap().checkpoint().clone();
    let (leaf, size) = (Hash::leaf(&period.entry()), checkpoint.size);
    verify_inclusion(leaf, *index, size, &proven.inclusion[0], checkpoint.root).unwrap();
    assert!(verify_inclusion(leaf, 0, size, &proven.inclusion[0], checkpoint.root).is_err());
    assert_eq!(proven.consistency.len(), 2);
    let why = authority.prove(&[size], &[]).await.unwrap_err();
    assert!(format!("{why:?}").contains("NotPublished"), "{why:?}");
    let published = authority.publish(b"manifest", size).await.unwrap();
    let leaf = Hash::leaf(&published.publication.entry());
    let newer = published.proof.verify(&policy, leaf).unwrap().checkpoint().clone();
    assert_eq!(published.publication.manifest, hex(Hash::of(b"manifest").as_bytes()));
    let roots = ((size, checkpoint.root), (newer.size, newer.root));
    verify_consistency(roots.0, roots.1, &published.consistency).unwrap();

    // An auditor's archive of that day.
    let day = jiff::Timestamp::from_second(last as i64).unwrap();
    let day = day.to_zoned_datetime(jiff::tz::TimeZone::UTC).date();
    let window = Window::new(day, day).unwrap();
    let evidence = audit::collect(&authority, window).await.unwrap();
    let archive = Inputs::new(evidence, Standard::Bcp195, window, Vec::new()).archive().unwrap();
    let opened = check::open(&archive);
    let believed = policy.witnessed(opened.checkpoint().unwrap()).unwrap();
    let checked = opened.check(Some(believed.checkpoint()));
    assert!(checked.damage.is_empty(), "{:?}", checked.damage);
    assert!(checked.verified[0].contains("1 hours and 0 days"), "{:?}", checked.verified);

    // What arrives later is not claimed, also after a restart.
    assert!(exchange(&authority, &a, &totals(5)).await.contains("kept"));
    let authority = world.restart(authority).await;
    assert_eq!(authority.claims(0, u64::MAX).await.unwrap(), facts.periods);
    assert_eq!(in_log(&authority).await, facts.periods);
    assert_eq!(authority.claims_status().logged_until, Some(last + LENGTH));
    assert!(MeshPeriod::parse(&facts.periods[0].period.entry()[2..]).is_ok());
}

/// 1,000 nodes, 10,000 services, and the hours and days of a year: the CPU time of collecting the facts for a page, in all
/// threads. docs/benchmarks.md says how to run it.
#[tokio::test]
#[ignore = "a benchmark"]
async fn cpu_time_of_collecting_the_facts_of_a_large_mesh() {
    let mut world = World::new();
    let file = world.dir.path().join("store.db");
    world.store = Arc::new(SqliteStore::open(file).await.unwrap());
    let authority = world.authority().await;
    let services: Vec<String> = (0..10).map(|n| format!("s{n}")).collect();
    let services: Vec<&str> = services.iter().map(String::as_str).collect();
    let node = world.joined(&authority, "a", &services).await;
    node.connected().await;
    settle(&authority).await;
    for folder in ["mesh/node/", "mesh/instances/"] {
        let key = |n: &str| Key::new(format!("{folder}{n}")).unwrap();
        let record = world.store.get(&key("a")).await.unwrap().expect("the node has joined").value;
        for n in 1..1000 {
            world.store.create(&key(&format!("node{n}")), record.clone()).await.unwrap();
        }
    }
    let today = now() / 86_400 * 86_400;
    let hours = (1..=31 * 24).map(|n| (today - n * LENGTH, LENGTH));
    let days = (1..=366).map(|n| (today - n * 86_400, 86_400));
    for (index, (start, length)) in hours.chain(days).enumerate() {
        let entry = full_period(start, length).entry();
        let entry = String::from_utf8(entry[2..].to_vec()).unwrap();
        let record = json!({ "entry": entry, "index": index, "from": 0 }).to_string();
        let key = Key::new(format!("claims/{length}-{start:010}")).unwrap();
        world.store.create(&key, record.into()).await.unwrap();
    }
    let cpu = || {
        let at = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        at.tv_sec as f64 * 1e3 + at.tv_nsec as f64 / 1e6
    };
    for _ in 0..3 {
        let before = cpu();
        let facts = proof::collect(&authority, today - 366 * 86_400, now()).await.unwrap();
        let took = cpu() - before;
        assert_eq!((facts.nodes.len(), facts.periods.len()), (1000, 31 * 24 + 366));
        let services: usize = facts.nodes.iter().map(|node| node.services.len()).sum();
        let (nodes, periods) = (facts.nodes.len(), facts.periods.len());
        println!(
            "{took:8.1} ms  the facts: {nodes} nodes with {services} services, {periods} periods"
        );
    }
}

/// A period with as many rows as one can have.
fn full_period(start: u64, length: u64) -> MeshPeriod {
    use wiretight_keys::claims::{Algorithm, Amount, Protocol};
    let amount =
        |n: usize| Amount { connections: 1000 - n as u64, bytes: 1_000_000_000 - n as u64 };
    let mut period = MeshPeriod::new(start, length);
    period.nodes = NodeCount { members: 1000, reported: 999 };
    period.levels.strong = Amount { connections: 1 << 40, bytes: 1 << 50 };
    let algorithm = |n: usize| Algorithm {
        version: "TLS 1.3".into(),
        key_exchange: format!("X25519MLKEM768-{n}"),
        cipher: "TLS_AES_128_GCM_SHA256".into(),
        post_quantum: true,
        amount: amount(n),
    };
    period.algorithms = (0..24).map(algorithm).collect();
    let protocol = |n: usize| Protocol {
        protocol: format!("protocol-{n}"),
        level: "strong".into(),
        amount: amount(n),
    };
    period.protocols = (0..24).map(protocol).collect();
    period
}
