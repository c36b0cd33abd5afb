//! Every page that people read, as they see it in Chromium: the console, the proof page and the page of an archive. With
//! scripts and without, in light, dark and print colours, on a phone and at 400 % zoom, judged by axe-core.

use std::fs;

use serde_json::{Value, json};
use wiretight::config::Publish;

use super::browser::{self, Seen, browse};
use super::busy::{self, Busy, HOSTILE};
use super::console::Browser;
use super::rig::*;
use super::sample::Sample;

/// A link of the page that has all these parts.
#[track_caller]
fn link(page: &str, parts: &[&str]) -> String {
    let mut links = page.split("href=\"").skip(1).map(|rest| rest.split('"').next().unwrap());
    let found = links.find(|link| parts.iter().all(|part| link.contains(part)));
    found.unwrap_or_else(|| panic!("no link with {parts:?} in {page}")).replace("&amp;", "&")
}

/// Pages of which there are screenshots in target/proof.
const SHOTS: [&str; 4] = ["overview", "services", "flow", "proof"];

/// A page that is looked at: name, address or folder, and how.
fn visit(name: &str, at: Value) -> Value {
    let mut visit = json!({ "name": name, "axe": true, "shots": SHOTS.contains(&name), "read": { "heads": "h1" } });
    visit.as_object_mut().unwrap().extend(at.as_object().unwrap().clone());
    visit
}

/// A page of a console, in a tab of its own session.
fn with_session(browser: &Browser, path: &str) -> Value {
    let (cookie, value) = browser.cookie.split_once('=').unwrap();
    json!({ "url": format!("http://{}{path}", browser.at), "cookie": [cookie, value], "tab": browser.at.to_string() })
}

/// The pages that are files.
fn folders(world: &World) -> Vec<Value> {
    let folder = |name: &str, mut sample: Sample| {
        let dir = world.path(name);
        fs::create_dir(&dir).unwrap();
        for file in sample.folder(&Publish::default()).files {
            fs::write(dir.join(&file.name), file.text).unwrap();
        }
        json!({ "dir": dir })
    };
    let archive = world.path("archive");
    fs::create_dir(&archive).unwrap();
    fs::write(archive.join("index.html"), super::audit::page()).unwrap();
    vec![
        visit("proof", folder("proof", Sample::new(40, 10))),
        visit("proof-empty", folder("proof-empty", Sample::new(0, 10))),
        visit("archive", json!({ "dir": archive })),
    ]
}

/// About 25 s of CPU: a mesh, and 41 visits in Chromium, in which a page is laid out five times.
#[test]
fn every_page_is_readable_by_everyone_and_asks_nobody_else() {
    if !browser::is_installed() {
        return;
    }
    let (world, listen) = (World::new(), free());
    let scans = world.path("scans");
    busy::scans(&scans);
    let section = format!("[console]\nlisten = \"{listen}\"\nscans = \"{}\"\n", scans.display());
    let mesh = Busy::new(&world, &section);
    let mut busy = Browser::at(listen);
    busy.enter(&Browser::link(&mesh.auth));
    // A mesh of one node, of which nothing is known yet.
    let listen = free();
    let sections =
        format!("[authority]\nlisten = \"{}\"\n[console]\nlisten = \"{listen}\"\n", free());
    let mut alone = world.node("alone", &sections);
    alone.start();
    alone.ready();
    let mut empty = Browser::at(listen);
    empty.enter(&Browser::link(&alone));
    wait_for("the authority has logged the past and knows all reports", || {
        let claims = mesh.auth.status()["claims"].take();
        // A page may be made of facts that are 5 s old.
        let (services, history) = (busy.get("/services").body, busy.get("/history").body);
        claims["waiting"] == 0
            && claims["logged"].as_u64() >= Some(80)
            && history.matches("/period?").count() >= 35
            && [":7432", ":6379", ":993"].iter().all(|port| services.contains(port))
    });

    let services = busy.get("/services").body;
    let service = link(&services, &["/service?", "6379"]);
    let flow = link(&busy.get(&service).body, &["/flow?", "web1"]);
    let hostile = link(&busy.get("/node/web1").body, &["/flow?", "9999"]);
    let period = link(&busy.get("/history").body, &["/period?"]);
    let entry = link(&busy.get("/log?q=db1").body, &["/log/entry/"]);
    let totals = link(&busy.get(&period).body, &["/log/entry/"]);
    let scan = link(&busy.get("/scans").body, &["/scan?", "mail.example"]);
    let pages: [(&str, &str); 25] = [
        ("overview", "/"),
        ("change", "/change"),
        ("change-weak", "/change?level=weak"),
        ("services", "/services"),
        ("services-none", "/services?q=nothing-has-this"),
        ("service", &service),
        ("flow", &flow),
        ("flow-hostile", &hostile),
        ("nodes", "/nodes"),
        ("node", "/node/web1"),
        ("node-away", "/node/old1"),
        ("scans", "/scans"),
        ("scan", &scan),
        ("history", "/history"),
        ("hours", "/history?length=3600"),
        ("period", &period),
        ("log", "/log"),
        ("log-search", "/log?q=db1"),
        ("entry", &entry),
        ("entry-totals", &totals),
        ("witnesses", "/witnesses"),
        ("keys", "/keys"),
        ("exceptions", "/exceptions"),
        ("expiring", "/expiring"),
        ("no-such-page", "/nowhere"),
    ];
    let mut visits: Vec<Value> =
        pages.iter().map(|(name, path)| visit(name, with_session(&busy, path))).collect();
    for path in
        ["/", "/change", "/services", "/scans", "/history", "/log", "/witnesses", "/exceptions"]
    {
        let name = if path == "/" { "overview" } else { &path[1..] };
        visits.push(visit(&format!("empty-{name}"), with_session(&empty, path)));
    }
    visits.extend(folders(&world));
    let ordinary = visits.len();
    visits.push(visit("outside", json!({ "url": format!("http://{}/nodes", busy.at) })));
    // The link opens the console, and nothing but a click is needed.
    visits.push(json!({
        "name": "enter", "url": Browser::link(&mesh.auth),
        "steps": [["wait", "nav[aria-label=Pages]"]], "read": { "heads": "h1" },
    }));
    // Without scripts, a person reads the same. (Chromium reports the page that is not there as an error.)
    let there = &pages[..pages.len() - 1];
    let steps =
        there.iter().flat_map(|(name, path)| [json!(["open", path]), json!(["read", name, "h1"])]);
    let mut without = with_session(&busy, "/");
    without["steps"] = steps.collect();
    without["tab"] = Value::Null;
    let without = visit("without-scripts", without);
    let proof = visit("proof-without-scripts", json!({ "dir": world.path("proof") }));
    for mut visit in [without, proof] {
        (visit["axe"], visit["scripts"]) = (false.into(), false.into());
        visits.push(visit);
    }
    // The control: what is made wrong in a page of the console is found there.
    let mut planted = with_session(&busy, "/services");
    planted["steps"] = json!([["evaluate", PLANTED]]);
    visits.push(visit("planted", planted));

    let seen = browse(&json!(visits)).unwrap();
    let [of_pages @ .., outside, enter, without, proof, planted] = &seen[..] else { panic!() };
    assert_eq!(of_pages.len(), ordinary);
    // All at once, for whoever has changed the style.
    let named = of_pages.iter().chain([outside]).map(|one| (&one.name, &one.axe));
    let found: Vec<String> =
        named.flat_map(|(name, axe)| axe.iter().map(move |f| format!("{name}: {f}"))).collect();
    assert_eq!(found, [""; 0], "axe-core");
    for one in of_pages.iter().chain([outside]) {
        let expected = match one.name.as_str() {
            "no-such-page" => 404,
            "outside" => 403,
            _ => 200,
        };
        assert_eq!(one.status, expected, "{}", one.name);
        // Chromium reports these two statuses as errors.
        let of_status = |problem: &String| problem.contains(&format!("status of {expected}"));
        let mut one = one.clone();
        one.problems.retain(|problem| expected == 200 || !of_status(problem));
        one.good();
        one.text("heads");
        let is_console = !one.name.starts_with("proof") && one.name != "archive";
        let cookies = usize::from(is_console && one.name != "outside");
        assert_eq!(one.cookies.len(), cookies, "{}", one.name);
    }
    let heads = enter.good().text("heads");
    assert!(heads.contains("of the bytes on the network were encrypted"), "{enter:#?}");
    assert_eq!(enter.cookies.len(), 1);
    without.good();
    for (one, (name, _)) in of_pages.iter().zip(there) {
        assert_eq!(without.text(name), one.text("heads"), "{name}");
    }
    let named = |name: &str| of_pages.iter().find(|one| one.name == name).unwrap();
    assert_eq!(proof.good().text("heads"), named("proof").text("heads"));
    is_seen(planted);

    // What nodes and scans say is text.
    for (name, path) in [("flow-hostile", &hostile), ("scan", &scan)] {
        let shown = HOSTILE.replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;");
        assert!(busy.get(path).body.contains(&shown), "the control: it is on the page {name}");
        let one = named(name);
        assert!(one.title.ends_with("· example.org"), "{}", one.title);
    }
}

/// Makes a page hard to read and too wide, and asks another host.
const PLANTED: &str = "(() => {
    const of = (selector) => document.querySelector(selector);
    of('h1').style.color = '#ccc';
    of('main').style.minWidth = '900px';
    of('.filter label').replaceWith(of('.filter input'));
    new Image().src = 'http://elsewhere.example/pixel.png';
})()";

#[track_caller]
fn is_seen(planted: &Seen) {
    for finding in ["light: color-contrast", "light: label", "print: color-contrast"] {
        assert!(
            planted.axe.iter().any(|found| found.starts_with(finding)),
            "{finding}: {planted:#?}"
        );
    }
    assert!(planted.wide > 500, "{planted:#?}");
    let blocked = |problem: &String| {
        problem.contains("elsewhere.example") && problem.contains("Content Security Policy")
    };
    assert!(planted.problems.iter().any(blocked), "{planted:#?}");
    assert_eq!(planted.foreign, [""; 0], "the page's policy blocks it first");
}
