//! Every page is made and every link of it followed, with ordinary and with hostile facts.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde_json::json;
use wiretight_keys::claims::{HOUR, MeshPeriod, Publication};
use wiretight_proxy::mesh::Registry;
use wiretight_scan::judge::Level;
use wiretight_scan::passive::flow::Record;
use wiretight_scan::passive::summary::{By, Flow, Programs, Row, Rows};
use wiretight_scan::passive::{Grade, Sealed, Seen, Transport};

use super::entries::Found;
use super::*;
use crate::control::report::{Exception, ExceptionKind, Explanation, NodeReport};
use crate::proof::facts::{Facts, LoggedPeriod};
use crate::proof::scans::Scans;

/// Markup, quotes, a direction mark and an escape sequence.
const HOSTILE: &str = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&\u{202e}\u{1b}[2J";

fn status() -> Status {
    serde_json::from_str(include_str!("../admin/status.json")).unwrap()
}

fn row(client: [u8; 4], server: &str, level: Level, text: &str) -> Row {
    let sealed = (level >= Level::Weak).then(|| {
        Box::new(Sealed {
            version: "TLS 1.3".into(),
            group: Some(text.to_owned().into()),
            server_name: Some(text.into()),
            ..Sealed::default()
        })
    });
    let record = Record {
        transport: Transport::Tcp,
        client: (client, 0).into(),
        server: server.parse().unwrap(),
        first: "2026-11-30T10:00:00Z".parse().unwrap(),
        last: "2026-11-30T11:00:00Z".parse().unwrap(),
        packets: [1, 1],
        bytes: [1000, 2000],
        whole: true,
        seen: Arc::new(Seen {
            protocol: if level >= Level::Weak { "tls".into() } else { "redis".into() },
            level,
            grade: Grade::Seen,
            evidence: text.to_owned().into(),
            starttls: None,
            sealed,
        }),
    };
    let mut rows = Rows::new(By::Pair, 1);
    let program: Option<Arc<str>> = Some(text.into());
    rows.add_many(&Flow { record, programs: Programs { client: program, server: None } }, 7);
    rows.list().remove(0)
}

fn report(text: &str, rows: Vec<Row>, now: u64) -> NodeReport {
    let explained = |until| Explanation { reason: text.into(), owner: text.into(), until };
    let exception = |until: Option<u64>| Exception {
        kind: ExceptionKind::Pass,
        what: text.into(),
        explanation: until.map(explained),
    };
    NodeReport {
        version: text.into(),
        mode: None,
        mode_since: None,
        watching: true,
        exceptions: vec![exception(None), exception(Some(now - 5)), exception(Some(now + 500))]
            .into(),
        more_exceptions: 1,
        rows: rows.into(),
        rows_since: Some(now - 100),
        more_rows: 3,
        release: None,
    }
}

/// The example, with rows at every level whose texts are this one.
fn facts(text: &str) -> Facts {
    let mut facts = Facts::example();
    let now = facts.at;
    for (n, node) in facts.nodes.iter_mut().enumerate() {
        let host = n as u8;
        let rows = Level::ALL.map(|level| {
            row([10, 0, 0, host], &format!("10.0.1.{}:6379", level as u8), level, text)
        });
        node.report = Some(report(text, rows.to_vec(), now).into());
    }
    for key in &mut facts.keys {
        (key.holder, key.power) = (text.into(), text.into());
    }
    let log = &mut facts.ca.log;
    log.damaged = vec![text.into()];
    log.problem = Some(text.into());
    for witness in &mut log.witnesses {
        witness.problem = Some(text.into());
        witness.name = text.into();
    }
    facts
}

/// Two scans of an endpoint in a file, with reasons that say this.
fn scans(text: &str) -> Scans {
    let scan = |started: &str| {
        json!({
            "target": "[2001:db8::1]:993", "address": "2001:db8::1", "started": started, "reached": { "state": "tls" },
            "judgement": {
                "level": "weak",
                "reasons": [{ "rule": text, "fact": text, "answer": "yes", "level": "weak", "what": text, "standard": text, "change": text }],
                "profiles": [{ "profile": text, "answer": "no" }],
            },
        })
    };
    let plain = json!({
        "target": "db.example:6379", "address": "10.0.1.4", "started": "2026-11-01T10:00:00Z",
        "reached": { "state": "plaintext", "evidence": text }, "judgement": { "level": "plaintext", "profiles": [] },
    });
    let reports = [scan("2026-11-01T10:00:00Z"), scan("2026-10-01T10:00:00Z"), plain];
    let dir = tempfile::tempdir().unwrap();
    let document = json!({ "schema": wiretight_scan::report::SCHEMA, "reports": reports });
    std::fs::write(dir.path().join("mesh.json"), document.to_string()).unwrap();
    std::fs::write(dir.path().join("<b>.json"), "").unwrap();
    Arc::unwrap_or_clone(Folder::default().read(dir.path()))
}

fn model(facts: Facts) -> Model {
    model_with(facts, Scans::default())
}

fn model_with(facts: Facts, scans: Scans) -> Model {
    Model::new(facts, status(), &Registry::default(), Arc::new(scans))
}

/// Follows every link from the overview, and returns all pages. Pages of the log are made from entries, not from the
/// model.
fn crawl(model: &Model) -> BTreeMap<String, String> {
    let mut pages = BTreeMap::new();
    let mut waiting: VecDeque<String> = ["/".to_owned(), "/expiring".to_owned()].into();
    while let Some(link) = waiting.pop_front() {
        if pages.contains_key(&link) || link == "/log" || link.starts_with("/log") {
            continue;
        }
        let (path, query) = link.split_once('?').unwrap_or((&link, ""));
        let markup = made(model, path, &Query::parse(query));
        let page = markup.unwrap_or_else(|| panic!("{link} leads nowhere")).into_string();
        for part in page.split("href=\"").skip(1) {
            let href = part.split('"').next().unwrap().replace("&amp;", "&");
            assert!(href.starts_with('/') || href.starts_with('#'), "{href} in {link}");
            let href = href.split('#').next().unwrap().to_owned();
            if !["", "/style.css", "/icon.svg"].contains(&href.as_str()) {
                waiting.push_back(href);
            }
        }
        pages.insert(link, page);
        assert!(pages.len() < 500, "{:?}", pages.keys());
    }
    pages
}

#[test]
fn every_link_leads_to_a_page_and_nothing_asks_elsewhere() {
    let text = "postgres (postgresql.service)";
    let pages = crawl(&model_with(facts(text), scans(text)));
    for (_, path) in parts::TABS.iter().filter(|(_, path)| *path != "/log") {
        assert!(pages.contains_key(*path), "{path}");
    }
    for start in
        ["/node/", "/service?", "/flow?", "/period?", "/nodes?show=", "/change?level=", "/scan?"]
    {
        assert!(pages.keys().any(|link| link.starts_with(start)), "no link to {start}");
    }
    for (link, page) in &pages {
        assert!(page.starts_with("<!DOCTYPE html><html lang=\"en\">"), "{link}");
        assert!(page.contains("<h1>"), "{link}");
        assert!(page.contains("<code>wiretight "), "{link} names no command");
        for forbidden in ["style=", "<script", "http://", "https://", " src=", "onclick"] {
            assert!(!page.contains(forbidden), "{forbidden} in {link}");
        }
        let ids: Vec<&str> =
            page.split(" id=\"").skip(1).map(|p| p.split('"').next().unwrap()).collect();
        let unique: std::collections::BTreeSet<_> = ids.iter().collect();
        assert_eq!(ids.len(), unique.len(), "{link}: {ids:?}");
    }
    // The evidence of a flow is on its page.
    let flow =
        pages.iter().find(|(link, _)| link.starts_with("/flow?") && link.contains("plaintext"));
    let (_, flow) = flow.unwrap();
    assert!(flow.contains("postgres (postgresql.service)") && flow.contains("[[dial]]"), "{flow}");
}

#[test]
fn texts_of_other_machines_are_escaped() {
    let model = model_with(facts(HOSTILE), scans(HOSTILE));
    let mut pages = crawl(&model);
    let found = Found {
        entries: vec![
            (3, b"\x00\x01<script>".to_vec()),
            (2, vec![]),
            (1, Publication::new(5, b"").entry()),
        ],
        from: 1,
        size: 4,
    };
    let query = Query { text: HOSTILE.into(), ..Query::parse("") };
    let log = entries::log(&model, &query, &found, Some(HOSTILE));
    pages.insert("/log".into(), log.into_string());
    pages.insert("/services?q".into(), made(&model, "/services", &query).unwrap().into_string());
    pages.insert(
        "outside".into(),
        parts::outside("x", html! { (parts::text(HOSTILE)) }).into_string(),
    );
    for (link, page) in &pages {
        for harmful in ["<script", "<img", "\u{202e}", "\u{1b}", "onerror=alert(2)>\""] {
            assert!(!page.contains(harmful), "{harmful:?} in {link}");
        }
    }
    // The control: they are shown.
    let shown = |page: &str| page.contains("&lt;script&gt;alert(1)") && page.contains("\\u{202e}");
    for start in ["/flow?", "/exceptions", "/keys", "/witnesses", "/node/", "/scan?", "/scans"] {
        let page = pages.iter().find(|(link, _)| link.starts_with(start)).unwrap().1;
        assert!(shown(page), "{start}: {page}");
    }
}

#[test]
fn a_mesh_of_which_nothing_is_known_has_all_pages() {
    let mut facts = Facts::example();
    (facts.periods, facts.since) = (Vec::new(), None);
    facts.nodes.clear();
    facts.keys.clear();
    facts.ca.log = Default::default();
    let pages = crawl(&model(facts));
    assert!(pages["/"].contains("No hour of traffic has been logged yet"), "{}", pages["/"]);
    assert!(!pages["/"].contains("100.0 %"));
}

#[test]
fn reports_of_both_ends_of_a_connection_are_not_added_up() {
    let mut facts = Facts::example();
    let now = facts.at;
    let server = "10.0.1.1:5432";
    let here = || row([10, 0, 0, 1], server, Level::Strong, "x");
    let other = || row([10, 0, 0, 2], server, Level::Strong, "x");
    facts.nodes[0].report = Some(report("x", vec![here()], now).into());
    facts.nodes[1].report = Some(report("x", vec![here(), other()], now).into());
    facts.nodes.iter_mut().skip(2).for_each(|node| node.report = None);
    let model = model(facts);
    let [service] = model.services.as_slice() else { panic!("{:?}", model.services) };
    assert_eq!((service.most.connections, service.most.bytes), (14, 6000));
    assert_eq!((service.flows.len(), service.clients.len()), (3, 2));
}

#[test]
fn a_window_counts_what_is_missing() {
    let mut facts = Facts::example();
    let start = 1_000 * 86_400;
    let hour = |n: u64| {
        let mut period = MeshPeriod::new(start + n * HOUR, HOUR);
        period.nodes.members = 2;
        period.levels.strong.bytes = 10;
        LoggedPeriod { index: n, period }
    };
    facts.periods = [0, 1, 3].map(hour).into();
    facts.since = Some(start);
    let day = model(facts.clone()).last_day().unwrap();
    assert_eq!((day.logged, day.missing, day.from, day.to), (3, 1, start, start + 4 * HOUR));
    assert_eq!((day.levels.strong.bytes, day.watchable_seconds), (30, 3 * 2 * HOUR));
    facts.periods.extend((4..40).map(hour));
    let day = model(facts).last_day().unwrap();
    assert_eq!((day.logged, day.missing, day.to), (24, 0, start + 40 * HOUR));
}

#[test]
fn a_scan_is_on_the_page_of_its_server_with_the_command_that_repeats_it() {
    let pages = crawl(&model_with(facts("x"), scans("TLS 1.0 is accepted")));
    let page = |start: &str, part: &str| {
        let found = pages.iter().find(|(link, _)| link.starts_with(start) && link.contains(part));
        found.unwrap_or_else(|| panic!("{start} {part}: {:?}", pages.keys())).1
    };
    let service = page("/service?", "10.0.1.4");
    assert!(service.contains("What a scan says that it offers"), "{service}");
    assert!(!page("/service?", "10.0.1.3").contains("What a scan says"));
    let scan = page("/scan?", "db.example");
    assert!(scan.contains("href=\"/service?server=10.0.1.4%3A6379\""), "{scan}");
    assert!(scan.contains("wiretight scan db.example:6379 --ip 10.0.1.4"), "{scan}");
    let scan = page("/scan?", "2001");
    assert!(
        scan.contains("wiretight scan &#39;[2001:db8::1]:993&#39;")
            || scan.contains("wiretight scan '[2001:db8::1]:993'")
    );
    assert!(scan.contains("TLS 1.0 is accepted") && scan.contains("Older scans"), "{scan}");
    let all = page("/scans", "");
    assert!(
        all.contains("2 endpoints scanned") && all.contains("&lt;b&gt;.json: not a complete"),
        "{all}"
    );
    assert!(page("/change", "").contains("href=\"/scans\""));
}

#[test]
fn lists_are_cut_into_pages() {
    use parts::Part;
    assert_eq!(Part::of(0, 10, 25).range(), 0..10);
    assert_eq!(Part::of(3, 10, 25).range(), 20..25);
    assert_eq!(Part::of(usize::MAX, 10, 25).range(), 20..25);
    assert_eq!(Part::of(7, 10, 0).range(), 0..0);
    let (first, last) = (Part::of(1, 10, 25), Part::of(3, 10, 25));
    let links = |part| parts::pager(part, "/x", &[("q", "a&b")]).into_string();
    assert!(links(first).contains("/x?q=a%26b&amp;page=3") && !links(first).contains("previous"));
    assert!(links(last).contains("page=2") && !links(last).contains("next"));
}

/// 1,000 nodes, 10,000 services and a year: the CPU time of each page. Run it in release mode, alone:
/// `cargo test --release -p wiretight --lib console -- --ignored --nocapture`
#[test]
#[ignore = "a benchmark"]
fn cpu_time_of_every_page() {
    const NODES: usize = 1000;
    let mut facts = Facts::example();
    let (now, node) = (facts.at, facts.nodes[0].clone());
    facts.nodes = (0..NODES)
        .map(|n| {
            let mut node = node.clone();
            node.name = format!("node{n}").parse().unwrap();
            let rows = (0..128).map(|r| {
                let service = (n * 10 + r * 77) % 10_000;
                let server =
                    format!("10.{}.{}.1:{}", 1 + service / 250, service % 250, 1000 + service % 7);
                let level =
                    if service % 50 == 0 { Level::Plaintext } else { Level::ALL[service % 5] };
                row(
                    [10, 200, (n / 250) as u8, (n % 250) as u8],
                    &server,
                    level,
                    "postgres (postgresql.service)",
                )
            });
            node.report = Some(report("0.1.0", rows.collect(), now).into());
            node
        })
        .collect();
    let first = facts.periods[0].period.clone();
    let end = now / 86_400 * 86_400;
    let hours = (0..31 * 24).map(|n| (end - (n + 1) * HOUR, HOUR));
    let days = (0..366).map(|n| (end - (n + 1) * 86_400, 86_400));
    let periods = hours.chain(days).enumerate().map(|(n, (start, length))| LoggedPeriod {
        index: n as u64,
        period: MeshPeriod { start, length, ..first.clone() },
    });
    facts.periods = periods.collect();
    facts.since = Some(end - 366 * 86_400);

    let cpu = || {
        let at = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        at.tv_sec as f64 * 1e3 + at.tv_nsec as f64 / 1e6
    };
    let before = cpu();
    let model = model(facts);
    let took = cpu() - before;
    let (rows, services) = (model.flows.len(), model.services.len());
    let (nodes, periods) = (model.facts.nodes.len(), model.facts.periods.len());
    println!(
        "{took:8.1} ms  the model, once in 5 s: {nodes} nodes, {rows} rows, {services} services, {periods} periods"
    );
    let key = &model.services[0].key;
    let flow =
        parts::flow_link(model.node_of(model.flows[9]).name.as_str(), model.row(model.flows[9]));
    let hours = format!("/history?length={HOUR}");
    let period = format!("/period?start={}&length={HOUR}", end - HOUR);
    let service = parts::service_link(key);
    for link in [
        "/",
        "/change",
        "/change?page=99",
        "/services",
        "/services?q=postgres&page=50",
        "/services?q=nothing-has-this",
        "/services?q=192.0.2.1",
        "/nodes",
        "/nodes?show=away",
        "/node/node500",
        "/exceptions",
        "/keys",
        "/witnesses",
        "/history",
        "/expiring",
        &hours,
        "/scans",
        &period,
        &service,
        &flow,
    ] {
        let (path, query) = link.split_once('?').unwrap_or((link, ""));
        let before = cpu();
        let page = made(&model, path, &Query::parse(query))
            .unwrap_or_else(|| panic!("{link}"))
            .into_string();
        println!("{:8.1} ms  {:8} bytes  {link}", cpu() - before, page.len());
    }
}
