//! Nodes, one node, exceptions, keys, witnesses, and the hours and days in the log.

use maud::{Markup, html};
use wiretight_keys::claims::{Amount, DAY, HOUR, Levels};
use wiretight_scan::judge::Level;

use super::model::{Model, all, encrypted, period as find_period};
use super::parts::{
    Head, Part, bad_share, badge, bytes, count, good_share, link, page, pager, relative,
    small_command, state, table, text, time,
};
use super::problems;
use super::query::Query;
use super::traffic::{FLOW_HEADS, flow_row};
use crate::authority::ReleaseVerdict;
use crate::control::report::{Exception, ExceptionKind};
use crate::proof::chart::{self, Column, Columns, Unit, date, grouped, of};
use crate::proof::facts::{LoggedPeriod, NodeFacts};

const PER_PAGE: usize = 100;

pub fn nodes(model: &Model, query: &Query) -> Markup {
    let now = model.facts.at;
    let found: Vec<&NodeFacts> = model
        .facts
        .nodes
        .iter()
        .filter(|node| {
            problems::is_shown(node, &query.show, now) && node.name.as_str().contains(&query.text)
        })
        .collect();
    let part = Part::of(query.page, PER_PAGE, found.len());
    let rows = html! {
        @for node in &found[part.range()] {
            @let href = format!("/node/{}", node.name);
            @let report = node.report.as_ref();
            tr {
                td { a href=(href) { b { (node.name) } } }
                td {
                    @if node.connected { (state(true, "connected")) } @else {
                        (state(false, "away")) @if let Some(at) = node.last_seen { br; span.dim { (relative(at, now)) } }
                    }
                }
                td {
                    @match node.current {
                        Some(true) => (state(true, "newest")),
                        Some(false) => (state(false, "behind")),
                        None => "–",
                    }
                }
                td { (mode(node)) }
                td {
                    @match report {
                        Some(report) if report.watching => { (state(true, "watching"))
                            @if let Some(hour) = node.last_hour { br; span.dim { "totals to " (date(hour.saturating_add(HOUR), HOUR)) } } },
                        Some(_) => (state(false, "not watching")),
                        None => "no report",
                    }
                }
                td {
                    @match report { Some(report) => (text(&report.version)), None => "–" }
                    @match node.release.verdict {
                        ReleaseVerdict::Proved(_) => { br; (state(true, "proved")) },
                        ReleaseVerdict::Unproved(_) => { br; (state(false, "not proved")) },
                        ReleaseVerdict::Unchecked | ReleaseVerdict::Unknown => {},
                    }
                }
                td { @for (n, name) in node.services.iter().take(5).enumerate() { @if n > 0 { ", " } (name) }
                    @if node.services.len() > 5 { ", …" } }
                td.n { a href={ (href) "#rows" } { @match report { Some(r) => (grouped(r.rows.good.len() as u64 + r.more_rows)), None => "–" } } }
                td { (small_command("wiretight status")) }
            }
        }
    };
    let heads = [
        ("Node", false),
        ("State", false),
        ("Registry", false),
        ("Mode", false),
        ("Watch", false),
        ("Version", false),
        ("Services", false),
        ("Rows", true),
        ("Command, on that node", false),
    ];
    let choices = [
        ("", "all"),
        ("away", "away"),
        ("behind", "behind"),
        ("late", "without totals"),
        ("unwatched", "not watching"),
    ];
    let body = html! {
        h1 { (count(model.facts.nodes.len() as u64, "node")) }
        p.lead { "What a node says about itself is its own word; whether it is connected, and which state it uses, the authority knows." }
        p.switch {
            "Show: "
            @for (show, name) in choices {
                a href=(link("/nodes", &[("show", show)])) aria-current=[(query.show == show).then_some("true")] {
                    (name) " " (grouped(model.facts.nodes.iter().filter(|n| problems::is_shown(n, show, now)).count() as u64))
                } " "
            }
        }
        form.filter method="get" action="/nodes" role="search" {
            label { "Name " input type="search" name="q" value=(text(&query.text)) maxlength="100"; }
            button type="submit" { "Show" }
        }
        (pager(part, "/nodes", &[("show", query.show.as_str()), ("q", query.text.as_str())]))
        (table("Nodes", &heads, rows))
    };
    page(model, &Head { title: "Nodes", tab: "/nodes", commands: &["wiretight node list"] }, body)
}

fn mode(node: &NodeFacts) -> Markup {
    html! {
        @match node.report.as_ref().map(|report| (report.mode, report.mode_since)) {
            Some((Some(mode), since)) => {
                (mode.word())
                @if let Some(at) = since { br; span.dim { "since " (date(at, HOUR)) } }
            },
            Some((None, _)) => "no interception",
            None => "–",
        }
    }
}

fn release(node: &NodeFacts) -> Markup {
    html! {
        @match &node.release.verdict {
            ReleaseVerdict::Proved(of) => {
                "proved: " (text(&of.version.to_string())) ", entry " (of.index) " of " (text(&of.origin))
                @if !of.rebuilt.is_empty() { ", also built by " (text(&of.rebuilt.join(", "))) }
            },
            ReleaseVerdict::Unproved(why) => { (state(false, "not proved")) ": " (text(why)) },
            ReleaseVerdict::Unchecked => "not checked: this authority has no release policy",
            ReleaseVerdict::Unknown => "it says nothing of it",
        }
        @match node.release.refused_in {
            Some(0) => { br; (state(false, "it gets no identity")) },
            Some(left) => { br; "it gets no identity in " (left) " s" },
            None => {},
        }
    }
}

pub fn node(model: &Model, name: &str, query: &Query) -> Option<Markup> {
    let (place, node) = model.node(name)?;
    let now = model.facts.at;
    let flows: Vec<usize> =
        (0..model.flows.len()).filter(|flow| model.flows[*flow].node == place).collect();
    let part = Part::of(query.page, PER_PAGE, flows.len());
    let rows = html! { @for flow in &flows[part.range()] { (flow_row(model, *flow, false)) } };
    let report = node.report.as_ref();
    let path = format!("/node/{name}");
    let body = html! {
        p.crumb { a href="/nodes" { "Nodes" } }
        h1 { "node/" (node.name) }
        p.lead {
            @if node.connected { (state(true, "connected")) } @else { (state(false, "away")) }
            @match node.current {
                Some(true) => { ", " (state(true, "uses the newest state")) },
                Some(false) => { ", " (state(false, "does not use the newest state yet")) },
                None => {},
            }
        }
        dl.facts {
            div { dt { "Joined" } dd { (time(node.joined_at)) } }
            div { dt { "Last message" } dd { @match node.last_seen { Some(at) => (relative(at, now)), None => "never" } } }
            div { dt { "Mode" } dd { (mode(node)) } }
            div { dt { "Version" } dd { @match report { Some(r) => (text(&r.version)), None => "no report" } } }
            div { dt { "Release" } dd { (release(node)) } }
            div { dt { "Report" } dd { @match node.reported_at { Some(at) => (relative(at, now)), None => "none" } } }
            div { dt { "Watches its traffic" } dd { @match report { Some(r) => (if r.watching { "yes" } else { "no: only what its relay carries is known" }), None => "not known" } } }
            div { dt { "Totals to" } dd { @match node.last_hour { Some(hour) => (date(hour.saturating_add(HOUR), HOUR)), None => "none" } } }
            div { dt { "Services" } dd {
                @if node.services.is_empty() { "none" }
                @for (n, service) in node.services.iter().take(50).enumerate() { @if n > 0 { ", " } (service) }
                @if node.services.len() > 50 { ", …" }
            } }
        }
        @if problems::exceptions(node).next().is_some() {
            section { h2 { "Exceptions" } (exception_table(model, &[node], 0..usize::MAX)) }
        }
        section #rows {
            h2 { "Rows of its newest report" }
            @if let Some(since) = report.and_then(|r| r.rows_since) { p.dim { "Counted since " (time(since)) } }
            (pager(part, &path, &[]))
            (table("Rows", &FLOW_HEADS, rows))
            @if let Some(report) = report {
                @if report.more_rows > 0 { p.dim { (count(report.more_rows, "more row")) " did not fit into the report." } }
                @if report.rows.unreadable > 0 { p.dim { (count(report.rows.unreadable as u64, "row")) " could not be read: the node runs another release." } }
            }
        }
    };
    let commands = ["wiretight status", "wiretight watch --once --verbose"];
    Some(page(model, &Head { title: name, tab: "/nodes", commands: &commands }, body))
}

fn kind(kind: ExceptionKind) -> &'static str {
    match kind {
        ExceptionKind::Pass => "pass: plaintext that strict mode lets through",
        ExceptionKind::Observe => "observe: nothing is enforced",
        ExceptionKind::Permissive => "permissive: plaintext is allowed",
        ExceptionKind::ForeignPeer => "a peer of another trust domain",
        ExceptionKind::Other => "a kind that this release does not know",
    }
}

fn exception_table(model: &Model, nodes: &[&NodeFacts], range: std::ops::Range<usize>) -> Markup {
    let now = model.facts.at;
    let all = nodes.iter().flat_map(|node| problems::exceptions(node).map(move |e| (node, e)));
    let rows = html! {
        @for (node, exception) in sorted(all, now).into_iter().skip(range.start).take(range.len()) {
            tr {
                td { a href={ "/node/" (node.name) } { (node.name) } }
                td { (text(&exception.what)) br; span.dim { (kind(exception.kind)) } }
                @match &exception.explanation {
                    Some(why) => {
                        td { (text(&why.reason)) }
                        td { (text(&why.owner)) }
                        td {
                            @if problems::has_ended(exception, now) { (state(false, "expired")) " " }
                            (problems::when(why.until, now))
                        }
                    },
                    None => { td colspan="3" { (state(false, "unexplained")) ": add an " code { "[[exception]]" } " to its configuration" } },
                }
                td { (small_command("wiretight check")) }
            }
        }
    };
    let heads = [
        ("Node", false),
        ("Exception", false),
        ("Reason", false),
        ("Owner", false),
        ("Until", false),
        ("Command, on that node", false),
    ];
    table("Exceptions", &heads, rows)
}

/// Expired ones first, then those without an explanation, then by their end.
fn sorted<'a>(
    all: impl Iterator<Item = (&'a &'a NodeFacts, &'a Exception)>,
    now: u64,
) -> Vec<(&'a NodeFacts, &'a Exception)> {
    let mut found: Vec<_> = all.map(|(node, exception)| (*node, exception)).collect();
    found.sort_by_key(|(node, exception)| {
        let until = exception.explanation.as_ref().map_or(now, |why| why.until);
        (until, node.name.clone())
    });
    found
}

pub fn exceptions(model: &Model, query: &Query) -> Markup {
    let nodes: Vec<&NodeFacts> = model.facts.nodes.iter().collect();
    let all: Vec<&Exception> = nodes.iter().flat_map(|node| problems::exceptions(node)).collect();
    let now = model.facts.at;
    let expired = all.iter().filter(|e| problems::has_ended(e, now)).count() as u64;
    let unexplained = all.iter().filter(|e| e.explanation.is_none()).count() as u64;
    let more: u64 =
        nodes.iter().filter_map(|n| n.report.as_ref()).map(|r| u64::from(r.more_exceptions)).sum();
    let part = Part::of(query.page, PER_PAGE, all.len());
    let body = html! {
        h1 { (count(all.len() as u64, "exception")) }
        p.lead {
            "What nodes let through although the mesh does not encrypt it. " (grouped(expired)) " expired, "
            (grouped(unexplained)) " without a reason, an owner and an end. A node reports its own exceptions."
        }
        @if all.is_empty() { p { (state(true, "No node has reported one.")) } } @else {
            (pager(part, "/exceptions", &[]))
            (exception_table(model, &nodes, part.range()))
        }
        @if more > 0 { p.dim { (count(more, "more exception")) " did not fit into the reports." } }
    };
    page(
        model,
        &Head {
            title: "Exceptions",
            tab: "/exceptions",
            commands: &["wiretight check", "wiretight status --plaintext"],
        },
        body,
    )
}

pub fn keys(model: &Model) -> Markup {
    let now = model.facts.at;
    let rows = html! {
        @for key in &model.facts.keys {
            tr {
                td { b { (text(&key.name)) } br; span.dim { (text(&key.algorithm)) } }
                td { (text(&key.holder)) }
                td { (text(&key.power)) }
                td { code.long { (text(&key.fingerprint)) } }
                td { @match key.expires { Some(at) => (problems::when(at, now)), None => "no end" } }
                td { (small_command("wiretight authority status")) }
            }
        }
    };
    let heads = [
        ("Key", false),
        ("Who holds it", false),
        ("What it can do", false),
        ("Fingerprint", false),
        ("Expires", false),
        ("Command", false),
    ];
    let body = html! {
        h1 { "Keys" }
        p.lead { "Who could do what to this mesh. The private keys of nodes and services never leave their machines; their certificates are in the " a href="/log" { "log" } "." }
        (table("Keys", &heads, rows))
        p { a href="/expiring" { "What expires" } }
    };
    page(
        model,
        &Head {
            title: "Keys",
            tab: "/keys",
            commands: &["wiretight authority status", "wiretight authority log-key"],
        },
        body,
    )
}

pub fn witnesses(model: &Model) -> Markup {
    let (log, now) = (&model.facts.ca.log, model.facts.at);
    let rows = html! {
        @for witness in &log.witnesses {
            tr {
                td { b { (text(&witness.name)) } }
                td {
                    @match (&witness.problem, witness.cosigned_at) {
                        (Some(problem), _) => (state(false, problem)),
                        (None, Some(_)) => (state(true, "cosigns")),
                        (None, None) => "no response yet",
                    }
                }
                td.n { @match witness.size { Some(size) => (grouped(size)), None => "–" } }
                td.n { @match witness.size { Some(size) => (grouped(log.size.saturating_sub(size))), None => "–" } }
                td { @match witness.cosigned_at { Some(at) => { (time(at)) br; span.dim { (relative(at, now)) } }, None => "–" } }
                td { (small_command("wiretight authority status")) }
            }
        }
    };
    let heads = [
        ("Witness", false),
        ("State", false),
        ("Cosigned entries", true),
        ("Not yet", true),
        ("When", false),
        ("Command", false),
    ];
    let body = html! {
        h1 { "Witnesses" }
        p.lead {
            @if log.self_attested {
                (state(false, "No witness confirms this log")) ": the authority alone could show different people different logs. "
                "Set " code { "[witnesses]" } " to change that."
            } @else {
                "Others who confirm that this log never shows two histories. Required: " b { (text(&log.quorum)) } ". "
                @match log.witnessed {
                    Some((size, at)) => { (grouped(size)) " of " (grouped(log.size)) " entries were cosigned by them " (relative(at, now)) "." },
                    None => "They have not cosigned yet.",
                }
            }
        }
        @if !log.witnesses.is_empty() { (table("Witnesses", &heads, rows)) }
        @if let Some(at) = log.waiting_since { p { (state(false, "The log has been waiting for them")) " since " (time(at)) } }
    };
    page(
        model,
        &Head { title: "Witnesses", tab: "/witnesses", commands: &["wiretight authority status"] },
        body,
    )
}

fn period_row(of: &LoggedPeriod) -> Markup {
    let (period, levels) = (&of.period, &of.period.levels);
    let (sum, good) = (all(levels), encrypted(levels));
    let href = period_link(period.start, period.length);
    html! {
        tr {
            th scope="row" { a href=(href) { (date(period.start, period.length)) } }
            td.n { (grouped(sum.connections)) }
            td.n { (bytes(sum.bytes)) }
            td.n { (good_share(good.bytes, sum.bytes)) }
            td.n { (bad_share(levels.weak.bytes, sum.bytes)) }
            td.n { (bad_share(levels.plaintext.bytes, sum.bytes)) }
            td.n { (bad_share(levels.unknown.bytes, sum.bytes)) }
            td.n { (good_share(period.post_quantum.bytes, sum.bytes)) }
            td.n { (period.nodes.reported) " of " (period.nodes.members) }
            td.n { a href={ "/log/entry/" (of.index) } { (grouped(of.index)) } }
        }
    }
}

fn period_link(start: u64, length: u64) -> String {
    let (start, length) = (start.to_string(), length.to_string());
    link("/period", &[("start", start.as_str()), ("length", length.as_str())])
}

const PERIOD_HEADS: [(&str, bool); 10] = [
    ("UTC", false),
    ("Connections", true),
    ("Bytes", true),
    ("Encrypted", true),
    ("Weak", true),
    ("Plaintext", true),
    ("Unknown", true),
    ("Post-quantum", true),
    ("Nodes", true),
    ("Log entry", true),
];

pub fn history(model: &Model, query: &Query) -> Markup {
    let length = if query.length == Some(HOUR) { HOUR } else { DAY };
    let mut found: Vec<&LoggedPeriod> = model.periods(length, 0, u64::MAX).collect();
    found.sort_by_key(|p| u64::MAX - p.period.start);
    let part = Part::of(query.page, PER_PAGE, found.len());
    let (name, step) = if length == HOUR { ("hour", "Hours") } else { ("day", "Days") };
    let columns = columns(model, length, if length == HOUR { 7 * DAY } else { 366 * DAY });
    let rows = html! { @for period in &found[part.range()] { (period_row(period)) } };
    let text = length.to_string();
    let body = html! {
        h1 { "History" }
        p.lead {
            "Each hour and day was counted by the nodes and written into the log: what was claimed then cannot be changed now. "
            @if let Some(month) = model.last_month() {
                @let sum = all(&month.levels);
                "In the last " (count(month.logged + month.missing, "day")) ", "
                b { (good_share(encrypted(&month.levels).bytes, sum.bytes)) } " of the bytes were encrypted, "
                (bad_share(month.levels.unknown.bytes, sum.bytes)) " are unknown, and "
                (count(month.missing, "day")) " are not in the log."
            }
        }
        p.switch {
            "Show: "
            a href="/history" aria-current=[(length == DAY).then_some("true")] { "days" } " "
            a href=(link("/history", &[("length", HOUR.to_string().as_str())])) aria-current=[(length == HOUR).then_some("true")] { "hours" }
        }
        section {
            h2 { "How well traffic was encrypted" }
            (chart::columns(&Columns { id: "history", title: &format!("Bytes by the {name}"), unit: Unit::Bytes, length, columns: &columns }))
            (chart::legend())
        }
        (pager(part, "/history", &[("length", text.as_str())]))
        (table(step, &PERIOD_HEADS, rows))
    };
    let commands = ["wiretight watch --once"];
    page(model, &Head { title: "History", tab: "/history", commands: &commands }, body)
}

/// One column for each period up to the newest, at most `most` seconds.
fn columns(model: &Model, length: u64, most: u64) -> Vec<Column> {
    let known: std::collections::BTreeMap<u64, Levels> =
        model.periods(length, 0, u64::MAX).map(|p| (p.period.start, p.period.levels)).collect();
    let (Some(first), Some(last)) = (known.keys().next(), known.keys().next_back()) else {
        return Vec::new();
    };
    let from = (*first).max(last.saturating_sub(most.saturating_sub(length)));
    let starts = (from - from % length..=*last).step_by(usize::try_from(length).unwrap_or(3600));
    starts.map(|start| Column { start, levels: known.get(&start).copied() }).collect()
}

/// Everything that is claimed about an hour or day.
pub fn period(model: &Model, query: &Query) -> Option<Markup> {
    let LoggedPeriod { index, period } = find_period(model, query.start?, query.length?)?;
    let sum = all(&period.levels);
    let name = if period.length == HOUR { "hour" } else { "day" };
    let title = format!("The {name} {}", date(period.start, period.length));
    let amount =
        |of: Amount| html! { td.n { (grouped(of.connections)) } td.n { (bytes(of.bytes)) } };
    let levels = html! {
        @for level in Level::ALL.into_iter().rev() {
            @let part = of(&period.levels, level);
            tr {
                td { (badge(level)) }
                (amount(part))
                td.n { (share(level, part.connections, sum.connections)) }
                td.n { (share(level, part.bytes, sum.bytes)) }
            }
        }
        tr { td { "all" } (amount(sum)) td {} td {} }
    };
    let algorithms = html! {
        @for row in &period.algorithms {
            tr { td { (text(&row.version)) } td { (text(&row.key_exchange)) } td { (text(&row.cipher)) }
                td { (if row.post_quantum { "yes" } else { "no" }) } (amount(row.amount)) }
        }
    };
    let protocols = html! {
        @for row in &period.protocols { tr { td { (text(&row.protocol)) } td { (text(&row.level)) } (amount(row.amount)) } }
    };
    let (modes, nodes, exceptions) = (period.modes, period.nodes, period.exceptions);
    let watchable = u64::from(nodes.members).saturating_mul(period.length);
    let body = html! {
        p.crumb { a href="/history" { "History" } }
        h1 { (title) }
        p.lead {
            b { (good_share(encrypted(&period.levels).bytes, sum.bytes)) } " of the bytes were encrypted, "
            (bad_share(period.levels.unknown.bytes, sum.bytes)) " are unknown. This is entry "
            a href={ "/log/entry/" (index) } { (grouped(*index)) } " of the log."
        }
        (table("Levels", &[("Level", false), ("Connections", true), ("Bytes", true), ("of connections", true), ("of bytes", true)], levels))
        dl.facts {
            div { dt { "Nodes with totals" } dd { (nodes.reported) " of " (nodes.members) } }
            div { dt { "Time watched" } dd { (good_share(period.watched_seconds, watchable)) } }
            div { dt { "Carried by relay and edge" } dd { (grouped(period.carried.connections)) " connections, " (bytes(period.carried.bytes)) } }
            div { dt { "Post-quantum" } dd { (grouped(period.post_quantum.connections)) " connections, " (bytes(period.post_quantum.bytes)) } }
            div { dt { "Modes" } dd { (modes.strict) " strict, " (modes.permissive) " permissive, " (modes.observe) " observe, " (modes.none) " without" } }
            div { dt { "Exceptions" } dd { (exceptions.explained) " explained, " (exceptions.expired) " expired, " (exceptions.unexplained) " unexplained" } }
            div { dt { "Missed, in unknown" } dd { (bytes(period.missed.bytes)) } }
            div { dt { "Lost notifications" } dd { (grouped(period.missed.resyncs)) ", and " (count(period.missed.lost_packets, "first packet")) } }
            div { dt { "Releases" } dd { @for (n, release) in period.releases.iter().enumerate() { @if n > 0 { ", " } (text(&release.version)) ": " (count(release.nodes.into(), "node")) } } }
        }
        section { h2 { "Protocols" } (table("Protocols", &[("Protocol", false), ("Level", false), ("Connections", true), ("Bytes", true)], protocols)) }
        section { h2 { "Algorithms" } (table("Algorithms", &[("Version", false), ("Key exchange", false), ("Cipher", false), ("Post-quantum", false), ("Connections", true), ("Bytes", true)], algorithms)) }
    };
    let commands = ["wiretight watch --once"];
    Some(page(model, &Head { title: &title, tab: "/history", commands: &commands }, body))
}

fn share(level: Level, part: u64, whole: u64) -> String {
    if level >= Level::Acceptable { good_share(part, whole) } else { bad_share(part, whole) }
}
