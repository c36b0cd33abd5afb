//! What scans found: the reports in the folder of `[console] scans`. They are the word of whoever put them there.

use std::net::SocketAddr;
use std::path::Path;

use maud::{Markup, html};
use wiretight_scan::facts::Reached;
use wiretight_scan::judge::{Level, Reason};
use wiretight_scan::report::clean;

use super::model::Model;
use super::parts::{
    Head, Part, badge, command, count, link, page, pager, relative, small_command, state, table,
    text, time, word,
};
use super::query::Query;
use super::traffic::{answer_state, changes};
use crate::proof::chart::grouped;
use crate::proof::scans::{Endpoint, Found, Scan, Scans};

const PER_PAGE: usize = 100;
/// Older scans of an endpoint that are shown.
const OLDER: usize = 50;

/// The page about an endpoint.
fn endpoint_link(scan: &Scan) -> String {
    let (target, address) = (scan.target.to_string(), scan.address.map(|a| a.to_string()));
    let query = [("target", target.as_str()), ("address", address.as_deref().unwrap_or_default())];
    link("/scan", &query)
}

/// The command that repeats a scan. A shell takes brackets for a pattern.
fn scan_command(scan: &Scan) -> String {
    let target = scan.target.to_string();
    let quote = if target.contains('[') { "'" } else { "" };
    match scan.address.filter(|_| matches!(scan.target.host, wiretight_scan::Host::Name(_))) {
        Some(address) => format!("wiretight scan {quote}{target}{quote} --ip {address}"),
        None => format!("wiretight scan {quote}{target}{quote}"),
    }
}

fn started(scan: &Scan) -> u64 {
    u64::try_from(scan.started.as_second()).unwrap_or_default()
}

/// How far the scan got, if it found no TLS.
fn not_reached(scan: &Scan) -> Option<(&'static str, &str)> {
    match scan.reached.as_ref()? {
        Reached::Tls => None,
        Reached::Plaintext { evidence } => Some(("not encrypted", evidence)),
        Reached::Unknown { evidence } => Some(("another protocol", evidence)),
        Reached::Unreachable { evidence } => Some(("unreachable", evidence)),
    }
}

/// What the scan found, in one line.
fn summary(scan: &Scan) -> Markup {
    html! {
        @match (not_reached(scan), scan.judgement.reasons.first()) {
            (Some((what, evidence)), _) => { (what) ": " (text(evidence)) }
            (None, Some(worst)) => {
                (text(&worst.what))
                @if scan.judgement.reasons.len() > 1 {
                    " " span.dim { "and " (count(scan.judgement.reasons.len() as u64 - 1, "other reason")) }
                }
            }
            (None, None) => "nothing to improve",
        }
    }
}

/// The endpoint's name, its address if that is another, and the mesh's service there.
fn named(model: &Model, scan: &Scan) -> Markup {
    let server = scan.server();
    let is_named = matches!(scan.target.host, wiretight_scan::Host::Name(_));
    html! {
        (scan.target)
        @if let Some(server) = server.filter(|_| is_named) { " " span.dim { (server.ip()) } }
        @if let Some(service) = server.and_then(|at| model.service_at(at)) { " " span.dim { "service/" (service) } }
    }
}

/// Rows of endpoints, for tables with [`HEADS`].
fn rows<'a>(model: &Model, endpoints: impl Iterator<Item = &'a Endpoint>) -> Markup {
    html! {
        @for Endpoint { newest: Found { scan, .. }, older } in endpoints {
            tr {
                td { (badge(scan.judgement.level)) }
                td { a href=(endpoint_link(scan)) { (named(model, scan)) } }
                td { (summary(scan)) }
                td { (relative(started(scan), model.facts.at))
                    @if !older.is_empty() { br; span.dim { (count(older.len() as u64, "older scan")) } } }
                td { (small_command(&scan_command(scan))) }
            }
        }
    }
}

const HEADS: [(&str, bool); 5] = [
    ("Level", false),
    ("Endpoint", false),
    ("What it offers", false),
    ("Scanned", false),
    ("Command", false),
];

/// What scans say about a server, for its page.
pub fn of_server(model: &Model, server: SocketAddr) -> Markup {
    let mut found = model.scans.at(server).peekable();
    html! {
        @if found.peek().is_some() {
            section {
                h2 { "What a scan says that it offers" }
                (table("Scans", &HEADS, rows(model, found.take(PER_PAGE))))
            }
        }
    }
}

/// How many endpoints accept worse than they should, for the page with what to change.
pub fn below(model: &Model) -> Markup {
    let n = model.scans.endpoints.iter().filter(|e| is_below(e)).count() as u64;
    html! {
        @if n > 0 {
            p { "Scans found " a href="/scans" { (count(n, "endpoint")) " below the level acceptable" } ", with what to change at each." }
        }
    }
}

fn is_below(endpoint: &Endpoint) -> bool {
    endpoint.newest.scan.judgement.level < Level::Acceptable
}

pub fn scans(model: &Model, query: &Query) -> Markup {
    let scans = &model.scans;
    let wanted = query.text.to_lowercase();
    let matches = |e: &&Endpoint| {
        let scan = &e.newest.scan;
        query.level.is_none_or(|level| level == scan.judgement.level)
            && (wanted.is_empty()
                || scan.target.to_string().to_lowercase().contains(&wanted)
                || scan.address.is_some_and(|at| at.to_string() == wanted))
    };
    let found: Vec<&Endpoint> = scans.endpoints.iter().filter(matches).collect();
    let part = Part::of(query.page, PER_PAGE, found.len());
    let level = query.level.map(word).unwrap_or_default();
    let body = html! {
        @if scans.endpoints.is_empty() { (without(scans)) } @else {
            (lead(model, scans))
            (problems(scans))
            (switch(scans, query))
            form.filter method="get" action="/scans" role="search" {
                label { "Name or address " input type="search" name="q" value=(text(&query.text)) maxlength="100"; }
                button type="submit" { "Show" }
            }
            @let list = [("q", query.text.as_str()), ("level", level)];
            (pager(part, "/scans", &list))
            (table("Scans", &HEADS, rows(model, found[part.range()].iter().copied())))
        }
    };
    let commands =
        ["wiretight scan --mesh --json --output mesh.json", "wiretight watch --once --scan"];
    page(model, &Head { title: "Scans", tab: "/scans", commands: &commands }, body)
}

fn lead(model: &Model, scans: &Scans) -> Markup {
    let below = scans.endpoints.iter().filter(|e| is_below(e)).count() as u64;
    let newest = scans.endpoints.iter().map(|e| started(&e.newest.scan)).max();
    html! {
        h1 { (count(scans.endpoints.len() as u64, "endpoint")) " scanned" }
        p.lead {
            "A scan asks a server for everything that it would accept, also for what no client has used yet. "
            @if below == 0 { "None of these is below the level acceptable. " } @else {
                b { (grouped(below)) } @if below == 1 { " is" } @else { " are" }
                " below the level acceptable, or could not be determined. "
            }
            @if let Some(at) = newest { "The newest scan is from " (time(at)) ", " (relative(at, model.facts.at)) ". " }
            "These are reports of " code { "wiretight scan --json" } " in "
            @if let Some(folder) = &scans.folder { code { (path(folder)) } } ", " (count(scans.files as u64, "file"))
            ". An endpoint that is not in them may offer anything."
        }
    }
}

/// The page without any scan: how to get one.
fn without(scans: &Scans) -> Markup {
    html! {
        h1 { "No scans" }
        p.lead {
            "A scan asks a server for everything that it would accept, also for what no client has used yet. "
            "This page shows reports of " code { "wiretight scan --json" } "."
        }
        (problems(scans))
        section {
            h2 { "Show the scans of this mesh here" }
            @match &scans.folder {
                None => {
                    p { "Create a folder that the node's user can read, name it in the configuration of this node, and restart the node:" }
                    (command("install -d -m 0755 /srv/wiretight/scans"))
                    pre { code { "[console]\nscans = \"/srv/wiretight/scans\"" } }
                    p { "Then scan all services of the mesh, and again from time to time:" }
                    (command("wiretight scan --mesh --json --output /srv/wiretight/scans/mesh.json"))
                }
                Some(folder) => {
                    p { "There is no report in " code { (path(folder)) } " yet. To scan all services of the mesh:" }
                    (command(&format!("wiretight scan --mesh --json --output {}/mesh.json", path(folder))))
                }
            }
        }
    }
}

fn problems(scans: &Scans) -> Markup {
    html! {
        @if !scans.problems.is_empty() {
            ul.problems.card {
                @for problem in scans.problems.iter().take(PER_PAGE) { li { (state(false, problem)) } }
            }
        }
    }
}

fn switch(scans: &Scans, query: &Query) -> Markup {
    let levels = Level::ALL.map(|level| {
        let of = |e: &&Endpoint| e.newest.scan.judgement.level == level;
        (level, scans.endpoints.iter().filter(of).count() as u64)
    });
    html! {
        p.switch {
            "Show: "
            a href="/scans" aria-current=[query.level.is_none().then_some("true")] { "all " (grouped(scans.endpoints.len() as u64)) }
            @for (level, n) in levels.into_iter().filter(|(_, n)| *n > 0) {
                " "
                a href={ "/scans?level=" (word(level)) } aria-current=[(query.level == Some(level)).then_some("true")] {
                    (word(level)) " " (grouped(n))
                }
            }
        }
    }
}

fn path(of: &Path) -> String {
    clean(&of.to_string_lossy()).into_owned()
}

/// An endpoint with the reasons for its level.
pub fn scan(model: &Model, query: &Query) -> Option<Markup> {
    let endpoint = model.scans.endpoint(query.target.as_ref()?, query.address)?;
    let Endpoint { newest: Found { scan, file }, older } = endpoint;
    let (at, now) = (started(scan), model.facts.at);
    let judgement = &scan.judgement;
    let reasons: Vec<&Reason> = judgement.reasons.iter().collect();
    let seen = scan.server().and_then(|at| model.services.iter().find(|s| s.key.server == at));
    let title = scan.target.to_string();
    let body = html! {
        p.crumb { a href="/scans" { "Scans" } }
        h1 { (named(model, scan)) }
        p.lead {
            (badge(judgement.level)) " by a scan of " (time(at)) ", " (relative(at, now)) ". "
            @if let Some((what, evidence)) = not_reached(scan) { b { (what) } ": " (text(evidence)) ". " }
            "A scan says what a server would accept; what its clients use is on the page of the "
            @match seen {
                Some(service) => { a href=(link("/service", &[("server", service.key.server.to_string().as_str())])) { "traffic to it" } "." }
                None => { a href="/services" { "services" } ". No node has reported traffic to it." }
            }
        }
        dl.facts {
            div { dt { "Target" } dd { (scan.target) } }
            div { dt { "Address" } dd { @match scan.address { Some(at) => (at), None => "none" } } }
            div { dt { "File" } dd { (text(file)) } }
        }
        (changes(&reasons))
        @if reasons.is_empty() && not_reached(scan).is_none() {
            p { (state(true, "The scan found nothing to improve.")) }
        }
        @if !judgement.profiles.is_empty() {
            section {
                h2 { "Profiles" }
                ul.profiles {
                    @for verdict in &judgement.profiles { li { (answer_state(verdict.answer)) " " (text(&verdict.profile)) } }
                }
            }
        }
        @if !older.is_empty() {
            section {
                h2 { "Older scans" }
                @let rows = html! {
                    @for Found { scan, file } in older.iter().take(OLDER) {
                        tr {
                            td { (badge(scan.judgement.level)) }
                            td { (time(started(scan))) br; span.dim { (relative(started(scan), now)) } }
                            td { (summary(scan)) }
                            td { (text(file)) }
                        }
                    }
                };
                (table("Older scans", &[("Level", false), ("Scanned", false), ("What it offers", false), ("File", false)], rows))
                @if older.len() > OLDER { p.dim { "And " (grouped((older.len() - OLDER) as u64)) " more." } }
            }
        }
    };
    let command = scan_command(scan);
    Some(page(model, &Head { title: &title, tab: "/scans", commands: &[&command] }, body))
}
