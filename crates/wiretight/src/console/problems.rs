//! What fails now, what expires, and which nodes are behind: lists for the overview, each entry with a page and a command.

use wiretight_keys::claims::{DAY, HOUR};

use super::model::Model;
use super::parts::{count, link, relative, span, text};
use crate::control::report::Exception;
use crate::proof::chart::date;
use crate::proof::facts::NodeFacts;
use crate::release::Verdict;

/// Nodes that are named in one problem.
const NAMED: usize = 5;
/// A connected node that watches sends the totals of an hour this long after its end, at the latest.
const LATE: u64 = 2 * HOUR + 900;
/// The age of a checkpoint that shows that the log stands still; it is cosigned every 5 minutes.
const STALE: u64 = 900;

/// Something that needs an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub what: String,
    /// The page with its rows.
    pub page: String,
    /// The command that shows or mends it.
    pub command: String,
}

impl Problem {
    fn new(what: String, page: &str, command: &str) -> Problem {
        Problem { what, page: page.into(), command: command.into() }
    }
}

/// `web1, web2 and 7 more`
fn names<'a>(nodes: impl Iterator<Item = &'a NodeFacts>) -> (u64, String) {
    let all: Vec<&str> = nodes.map(|node| node.name.as_str()).collect();
    let named = all.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    let more = all.len().saturating_sub(NAMED);
    (all.len() as u64, if more > 0 { format!("{named} and {more} more") } else { named })
}

/// What fails now, the gravest first.
pub fn failing(model: &Model) -> Vec<Problem> {
    let (facts, status, now) = (&model.facts, &model.status, model.facts.at);
    let log = &facts.ca.log;
    let mut found = Vec::new();
    let mut add = |what: String, page: &str, command: &str| {
        found.push(Problem::new(what, page, command));
    };
    if let Some(problem) = &log.problem {
        add(
            format!("The log accepts no entries: {}", text(problem)),
            "/log",
            "wiretight authority status",
        );
    }
    if let Some(since) = log.waiting_since {
        let what = format!(
            "The log has waited for its witnesses for {}: nothing new is issued",
            span(now.saturating_sub(since))
        );
        add(what, "/witnesses", "wiretight authority status");
    }
    for damaged in &log.damaged {
        add(
            format!("{} of the log is damaged and not served", text(damaged)),
            "/log",
            "wiretight authority status",
        );
    }
    if let Some((_, at)) = log.witnessed.filter(|(_, at)| now.saturating_sub(*at) > STALE) {
        add(
            format!("The newest checkpoint is {} old", span(now.saturating_sub(at))),
            "/log",
            "wiretight authority status",
        );
    }
    for witness in &log.witnesses {
        if let Some(problem) = &witness.problem {
            let what = format!("Witness {}: {}", text(&witness.name), text(problem));
            add(what, "/witnesses", "wiretight authority status");
        }
    }
    if let Some(why) = &status.not_ready {
        add(format!("This node is not ready: {}", text(why)), "/nodes", "wiretight status");
    }
    if let Some(Verdict::Unproved(why)) = status.release.as_ref().map(|release| &release.verdict) {
        let what = format!("The program of this node is not proved: {}", text(why));
        add(what, "/nodes", "wiretight status");
    }
    let away = facts.nodes.iter().filter(|node| !node.connected);
    if let (n @ 1.., names) = names(away) {
        let what = format!("{} not connected: {names}", count(n, "node"));
        add(what, "/nodes?show=away", "wiretight node list");
    }
    let silent = facts.nodes.iter().filter(|node| is_late(node, now));
    if let (n @ 1.., names) = names(silent) {
        let what = format!(
            "{} without totals for more than two hours: {names}",
            count(n, "watching node")
        );
        add(what, "/nodes?show=late", "wiretight watch --once");
    }
    if let Some(day) = model.last_day().filter(|day| day.missing > 0) {
        let what = format!(
            "{} of the last day not in the log: nothing is known of them",
            count(day.missing, "hour")
        );
        add(what, "/history", "wiretight authority status");
    }
    let expired: usize =
        facts.nodes.iter().map(|node| exceptions(node).filter(|e| has_ended(e, now)).count()).sum();
    if expired > 0 {
        let what = format!("{} expired, and still in force", count(expired as u64, "exception"));
        add(what, "/exceptions", "wiretight check");
    }
    for (site, error) in &status.site_errors {
        add(format!("Site {}: {}", text(site), text(error)), "/nodes", "wiretight status");
    }
    found
}

fn is_late(node: &NodeFacts, now: u64) -> bool {
    let watching = node.report.as_ref().is_some_and(|report| report.watching);
    let since = node.last_hour.map_or(node.joined_at, |hour| hour.saturating_add(HOUR));
    watching && node.connected && now.saturating_sub(since) > LATE
}

/// Whether a node belongs to a selection of the list of nodes.
pub fn is_shown(node: &NodeFacts, show: &str, now: u64) -> bool {
    match show {
        "away" => !node.connected,
        "behind" => node.current == Some(false),
        "late" => is_late(node, now),
        "unwatched" => !node.report.as_ref().is_some_and(|report| report.watching),
        _ => true,
    }
}

pub fn exceptions(node: &NodeFacts) -> impl Iterator<Item = &Exception> {
    node.report.iter().flat_map(|report| &report.exceptions.good)
}

pub fn has_ended(exception: &Exception, now: u64) -> bool {
    exception.explanation.as_ref().is_some_and(|why| why.until < now)
}

/// A thing that expires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expiry {
    pub at: u64,
    pub what: String,
    /// What happens then, or who renews it.
    pub then: &'static str,
    pub page: String,
    pub command: &'static str,
}

/// What expires, the first one first.
pub fn expiring(model: &Model) -> Vec<Expiry> {
    let (facts, status) = (&model.facts, &model.status);
    let mut found = Vec::new();
    let mut add = |at, what: String, then, page: &str, command| {
        found.push(Expiry { at, what, then, page: page.into(), command });
    };
    for root in &facts.ca.roots {
        let short = root.fingerprint.get(..12).unwrap_or_default();
        add(
            root.not_after,
            format!("root {} {}", text(short), root.standing.word()),
            "replace it before: wiretight authority rotate prepare-root",
            "/keys",
            "wiretight authority status",
        );
    }
    add(
        facts.ca.intermediate.not_after,
        "intermediate".into(),
        "renewed by the authority",
        "/keys",
        "wiretight authority status",
    );
    for identity in &status.identities {
        add(
            identity.not_after,
            identity.id.to_string(),
            "renewed by this node",
            "/keys",
            "wiretight status",
        );
    }
    for site in &status.edge.sites {
        if let (Some(at), Some(name)) = (site.not_after, site.names.first()) {
            let then = "renewed by this node, unless its source is a file";
            add(
                at,
                format!("certificate of the site {}", text(name)),
                then,
                "/keys",
                "wiretight status",
            );
        }
    }
    for node in &facts.nodes {
        for exception in exceptions(node) {
            let Some(why) = &exception.explanation else { continue };
            let what = format!("exception on {}: {}", node.name, text(&exception.what));
            let then = "remove it, or have its owner extend it";
            add(why.until, what, then, "/exceptions", "wiretight check");
        }
        let rows = node.report.iter().flat_map(|report| &report.rows.good);
        for row in rows {
            // The rows of many clients show the same certificate.
            let sealed = row.seen.iter().filter_map(|seen| seen.sealed.as_ref());
            if let Some(of) = sealed.filter_map(|sealed| sealed.certificate.as_ref()).next_back() {
                let at = u64::try_from(of.not_after.as_second()).unwrap_or(0);
                let what = format!("certificate of {}: {}", row.key.server, text(&of.subject));
                let page = super::parts::service_link(&row.key);
                add(at, what, "renew it on that server", &page, "wiretight scan");
            }
        }
    }
    found.sort_by(|a, b| (a.at, &a.what).cmp(&(b.at, &b.what)));
    found.dedup_by(|a, b| (a.at, &a.what) == (b.at, &b.what));
    found
}

/// Connected nodes that do not use the newest state of the registry, and why that matters.
pub fn behind(model: &Model) -> Option<Problem> {
    let nodes = model.facts.nodes.iter().filter(|node| node.current == Some(false));
    let (n @ 1.., names) = names(nodes) else { return None };
    let what = format!("{} not using the newest state: {names}", count(n, "connected node"));
    Some(Problem::new(what, &link("/nodes", &[("show", "behind")]), "wiretight authority status"))
}

/// Nodes that do not watch, so that what they exchange outside of the mesh is not seen.
pub fn unwatched(model: &Model) -> Option<Problem> {
    let now = model.facts.at;
    let nodes = model.facts.nodes.iter().filter(|node| is_shown(node, "unwatched", now));
    let (n @ 1.., names) = names(nodes) else { return None };
    let what = format!(
        "{} without [watch], of which only what the relay carries is known: {names}",
        count(n, "node")
    );
    Some(Problem::new(what, "/nodes?show=unwatched", "wiretight status"))
}

/// When an exception or certificate expires: with the date, and how soon.
pub fn when(at: u64, now: u64) -> String {
    format!("{} ({})", date(at, DAY), relative(at, now))
}
