//! The overview: how much is encrypted, what prevents more, what fails, and what expires.

use maud::{Markup, html};
use wiretight_keys::claims::{DAY, HOUR};
use wiretight_scan::judge::Level;

use super::drawing;
use super::model::{Model, Service, Window, all, encrypted};
use super::parts::{
    Head, bad_share, badge, bytes, count, good_share, named_server, page, relative, service_link,
    small_command, state, table, text, time, word,
};
use super::problems::{self, Problem};
use super::traffic::from_whom;
use crate::proof::chart::{self, Bar, Column, Columns, Unit, date, grouped};

/// Rows in each list; the pages have all.
const ROWS: usize = 6;

pub fn overview(model: &Model) -> Markup {
    let day = model.last_day();
    let failing = problems::failing(model);
    let body = html! {
        (headline(model, day.as_ref()))
        (tiles(model, day.as_ref(), failing.len()))
        (blockers(model))
        (fails(&failing))
        @if let Some(day) = &day { (traffic(model, day)) }
        (talking(model, day.is_some()))
        div.two {
            (expiring(model))
            (nodes(model))
        }
    };
    let commands = ["wiretight status", "wiretight authority status", "wiretight node list"];
    page(model, &Head { title: "Overview", tab: "/", commands: &commands }, body)
}

fn headline(model: &Model, day: Option<&Window>) -> Markup {
    let Some(day) = day else {
        let levels = model.reported();
        let (sum, good) = (all(&levels), encrypted(&levels));
        return html! {
            h1 {
                @if sum.bytes == 0 { "No hour of traffic has been logged yet" } @else {
                    strong { (good_share(good.bytes, sum.bytes)) } " of the bytes that the nodes report now are encrypted"
                }
            }
            (next(model))
            p.lead {
                "No hour is in the log yet: the authority logs each hour a few minutes after it ends. "
                @if !model.facts.nodes.iter().any(|n| n.report.as_ref().is_some_and(|r| r.watching)) {
                    "No node watches its traffic yet: add " code { "[watch]" } " to the configuration of each node. "
                }
                @if sum.bytes > 0 {
                    "What the relays carry is known without that: " a href="/services" { (bytes(sum.bytes)) " in "
                    (count(sum.connections, "connection")) } "."
                }
            }
        };
    };
    let (sum, good) = (all(&day.levels), encrypted(&day.levels));
    let since = model.facts.since.map(|at| date(at, DAY));
    html! {
        h1 {
            @if sum.bytes == 0 { "Nothing crossed the network in the last logged hours" } @else {
                strong { (good_share(good.bytes, sum.bytes)) }
                " of the bytes on the network were encrypted"
            }
        }
        (next(model))
        p.lead {
            "From " (date(day.from, HOUR)) " to " (date(day.to, HOUR)) " UTC: "
            a href="/services" { (grouped(sum.connections)) " connections" } ", of which "
            b { (good_share(good.connections, sum.connections)) } " were encrypted to current standards, and "
            a href="/services" { (bytes(sum.bytes)) } ". "
            a href="/services?level=unknown" { (bad_share(day.levels.unknown.bytes, sum.bytes)) " of the bytes" }
            " are unknown, "
            b { (good_share(day.post_quantum.bytes, sum.bytes)) } " had a post-quantum key exchange. "
            @let watched = good_share(day.watched_seconds, day.watchable_seconds);
            "The nodes were watched for " a href="/nodes" { (watched) } " of that time; "
            a href="/history" { (day.logged) " of " (day.logged + day.missing) " hours" } " are in the log"
            @if let Some(since) = since { ", which has counted since " (since) }
            "."
        }
    }
}

/// What is not encrypted well enough now, by level, and where to read what to do.
fn next(model: &Model) -> Markup {
    let mut levels =
        [Level::Plaintext, Level::Weak, Level::Unknown, Level::Acceptable].map(|l| (l, 0u64));
    for service in model.blockers() {
        let of = levels.iter_mut().find(|(level, _)| *level == service.key.level);
        of.into_iter().for_each(|(_, n)| *n += 1);
    }
    html! {
        @if levels.iter().any(|(_, n)| *n > 0) {
            p.next {
                "Now: "
                @for (level, n) in levels.into_iter().filter(|(_, n)| *n > 0) {
                    a href={ "/change?level=" (word(level)) } { (badge(level)) " " (count(n, "service")) }
                }
                a.button href="/change" { "What to change" }
            }
        }
    }
}

fn tiles(model: &Model, day: Option<&Window>, failing: usize) -> Markup {
    let facts = &model.facts;
    let (log, now) = (&facts.ca.log, facts.at);
    let connected = facts.nodes.iter().filter(|node| node.connected).count() as u64;
    let watching =
        |n: &&crate::proof::facts::NodeFacts| n.report.as_ref().is_some_and(|r| r.watching);
    let watching = facts.nodes.iter().filter(watching).count() as u64;
    let tile = |href: &str, label: &str, value: String, more: String| {
        html! { a.tile href=(href) { span.label { (label) } b { (value) } span.more { (more) } } }
    };
    let blockers = model.blockers().count() as u64;
    let plaintext = model.blockers().filter(|s| s.key.level == Level::Plaintext).count() as u64;
    let day = day.map(|day| (all(&day.levels), day));
    html! {
        div.tiles {
            @if let Some((sum, day)) = day {
                (tile("/services?level=plaintext", "Plaintext", bad_share(day.levels.plaintext.bytes, sum.bytes),
                    format!("{} of {}", bytes(day.levels.plaintext.bytes), bytes(sum.bytes))))
                (tile("/services?level=unknown", "Unknown", bad_share(day.levels.unknown.bytes, sum.bytes),
                    bytes(day.levels.unknown.bytes)))
                (tile("/history", "Post-quantum", good_share(day.post_quantum.bytes, sum.bytes),
                    bytes(day.post_quantum.bytes)))
            }
            (tile("/change", "Blocks strict mode", grouped(blockers), format!("{} in plaintext, as reported", grouped(plaintext))))
            (tile("/nodes", "Nodes connected", format!("{connected} of {}", facts.nodes.len()),
                format!("{watching} watch their traffic")))
            (tile("/log", "Log entries", grouped(log.size), match log.witnessed {
                _ if log.self_attested => "no witness confirms it".into(),
                Some((_, at)) => format!("witnessed {}", relative(at, now)),
                None => "not witnessed yet".into(),
            }))
            (tile("#fails", "Fails now", failing.to_string(), if failing == 0 { "nothing".into() } else { "see below".into() }))
        }
    }
}

fn fails(failing: &[Problem]) -> Markup {
    html! {
        section #fails {
            h2 { "What fails now" }
            @if failing.is_empty() {
                p { (state(true, "Nothing that the authority knows of.")) }
            } @else {
                ul.problems {
                    @for problem in failing {
                        li {
                            a href=(problem.page) { (state(false, &problem.what)) }
                            (small_command(&problem.command))
                        }
                    }
                }
            }
        }
    }
}

fn traffic(model: &Model, day: &Window) -> Markup {
    let from = day.to.saturating_sub(2 * DAY).max(model.facts.since.unwrap_or(0));
    let from = from - from % HOUR;
    let logged = |start| super::model::period(model, start, HOUR).map(|p| p.period.levels);
    let hours = (from..day.to).step_by(HOUR as usize);
    let columns: Vec<Column> = hours.map(|start| Column { start, levels: logged(start) }).collect();
    html! {
        section {
            h2 { "How well traffic was encrypted" }
            (chart::bar(&Bar { id: "day-bytes", title: "Bytes in the last day", unit: Unit::Bytes, levels: &day.levels }))
            (chart::bar(&Bar { id: "day-connections", title: "Connections in the last day", unit: Unit::Connections,
                levels: &day.levels }))
            (chart::columns(&Columns { id: "hours", title: "Bytes by the hour", unit: Unit::Bytes, length: HOUR,
                columns: &columns }))
            (chart::legend())
            p { a href="/history" { "All hours and days, with their place in the log" } }
        }
    }
}

/// Who talks to whom, by the newest reports; without hours in the log also how well.
fn talking(model: &Model, has_hours: bool) -> Markup {
    let services: Vec<&Service> = model.services.iter().collect();
    let levels = model.reported();
    html! {
        @if !services.is_empty() {
            section {
                h2 { "Who talks to whom, by the newest reports" }
                @if !has_hours {
                    (chart::bar(&Bar { id: "now-bytes", title: "Bytes in the newest reports", unit: Unit::Bytes, levels: &levels }))
                    (chart::legend())
                    p.dim { "Nodes that watch count since they started; of the others it is what their relay carries now. What no node has seen is not in it." }
                }
                (drawing::drawing(model, &services))
                p { a href="/services" { "All " (count(services.len() as u64, "service")) } " "
                    (small_command("wiretight watch --once --by pair")) }
            }
        }
    }
}

/// The worst and largest services that strict mode would have to do without, each with the first change.
fn blockers(model: &Model) -> Markup {
    let all = model.blockers().count() as u64;
    let rows = html! {
        @for service in model.blockers().take(ROWS) {
            @let row = model.row(model.flows[service.flows[0]]);
            tr {
                td { (badge(service.key.level)) }
                td {
                    a href=(service_link(&service.key)) { (named_server(model, &service.key)) } br;
                    span.dim { (from_whom(service, row)) }
                }
                td { @match row.reasons.first() { Some(reason) => (text(&reason.change)), None => "The report has no reason." } }
                td.n { (bytes(service.most.bytes)) }
            }
        }
    };
    let heads = [("Level", false), ("Traffic", false), ("What to change", false), ("Bytes", true)];
    html! {
        section {
            h2 { "What blocks strict mode, and what to do" }
            @if all == 0 {
                p { (state(true, "Nothing in the newest reports.")) }
                @if problems::unwatched(model).is_some() {
                    p { "Nodes that do not watch their traffic report only what their relay carries: what else they send is not known." }
                }
            } @else {
                (table("What blocks strict mode", &heads, rows))
            }
            p {
                @if all > 0 { a href="/change" { "All " (count(all, "service")) ", with the reasons" } " " }
                (small_command("wiretight watch --once --blockers"))
            }
        }
    }
}

fn expiring(model: &Model) -> Markup {
    let (all, now) = (problems::expiring(model), model.facts.at);
    let rows = html! {
        @for expiry in all.iter().take(ROWS) {
            tr {
                td { @if expiry.at < now { (state(false, "expired")) " " } (problems::when(expiry.at, now)) }
                td { a href=(expiry.page) { (expiry.what) } br; span.dim { (expiry.then) } }
            }
        }
    };
    html! {
        section {
            h2 { "What expires next" }
            (table("What expires next", &[("When", false), ("What", false)], rows))
            p { a href="/expiring" { "All " (grouped(all.len() as u64)) } " " (small_command("wiretight authority status")) }
        }
    }
}

fn nodes(model: &Model) -> Markup {
    let behind = problems::behind(model);
    let unwatched = problems::unwatched(model);
    html! {
        section {
            h2 { "Nodes" }
            ul.problems {
                @match &behind {
                    Some(problem) => li { a href=(problem.page) { (state(false, &problem.what)) } (small_command(&problem.command)) },
                    None => li { (state(true, "All connected nodes use the newest state.")) },
                }
                @if let Some(problem) = &unwatched {
                    li { a href=(problem.page) { (state(false, &problem.what)) } (small_command(&problem.command)) }
                }
            }
            p { a href="/nodes" { "All " (count(model.facts.nodes.len() as u64, "node")) } ", as of " (time(model.facts.at)) }
        }
    }
}

/// Everything that expires.
pub fn expiry(model: &Model, asked: usize) -> Markup {
    let (all, now) = (problems::expiring(model), model.facts.at);
    let part = super::parts::Part::of(asked, 100, all.len());
    let rows = html! {
        @for expiry in &all[part.range()] {
            tr {
                td { @if expiry.at < now { (state(false, "expired")) " " } (time(expiry.at)) }
                td { (relative(expiry.at, now)) }
                td { a href=(expiry.page) { (expiry.what) } }
                td { (expiry.then) }
                td { (small_command(expiry.command)) }
            }
        }
    };
    let heads =
        [("When", false), ("In", false), ("What", false), ("Then", false), ("Command", false)];
    let body = html! {
        h1 { "What expires" }
        p.lead { "Keys, certificates and exceptions that the authority knows of, the first one first." }
        (super::parts::pager(part, "/expiring", &[]))
        (table("What expires", &heads, rows))
    };
    page(
        model,
        &Head {
            title: "What expires",
            tab: "/",
            commands: &["wiretight authority status", "wiretight status"],
        },
        body,
    )
}
