//! The facts as they are published, `facts.json`: counts, keys and witnesses, and of names only those that the operator
//! chose. Every number about traffic is computed from the periods of `log.json`, so that a reader can compute it again.
//!
//! Shares are rounded against the publisher: what is good down, what is not up. Weak encryption does not count as
//! encrypted, and what was not seen is unknown.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use wiretight_keys::claims::{
    Algorithm, Amount, DAY, ExceptionCount, HOUR, Levels, MeshPeriod, Missed, Modes, NodeCount,
    Protocol, Release,
};
use wiretight_keys::{Name, TrustDomain};
use wiretight_scan::judge::Level;
use wiretight_tlog::{Policy, SignedCheckpoint};

use super::chart::{Round, date, of, percent, permille};
use super::facts::{Facts, KeyFacts, LoggedPeriod};
use super::reported::{Reported, Running};
use crate::config::Publish;

/// The JSON schema of `facts.json`.
pub const SCHEMA: &str = include_str!("../../../../docs/proof-facts.schema.json");
/// The name of the schema's file, beside `facts.json`.
pub const SCHEMA_FILE: &str = "facts.schema.json";
/// The most gaps that are listed.
const MAX_GAPS: usize = 100;

/// Where a claim comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Basis {
    /// Proved by the log to be what was claimed at that time.
    Log,
    /// The operator's word.
    Operator,
}

/// The time that numbers are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Span {
    Day,
    Month,
    Year,
}

impl Span {
    /// The length of its periods.
    pub fn length(self) -> u64 {
        if self == Span::Day { HOUR } else { DAY }
    }

    fn seconds(self) -> u64 {
        match self {
            Span::Day => DAY,
            Span::Month => 31 * DAY,
            Span::Year => 366 * DAY,
        }
    }
}

/// A part of the traffic of a window. Shares are in thousandths; `None`: there was no traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Share {
    #[serde(flatten)]
    pub amount: Amount,
    pub of_connections: Option<u64>,
    pub of_bytes: Option<u64>,
}

impl Share {
    fn new(amount: Amount, all: Amount, round: Round) -> Self {
        let of_connections = permille(amount.connections, all.connections, round);
        Self { amount, of_connections, of_bytes: permille(amount.bytes, all.bytes, round) }
    }
}

/// The sum of the logged periods of a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Window {
    pub basis: Basis,
    /// In seconds since 1970; `to` is the first second after it.
    pub from: u64,
    pub to: u64,
    /// The length of a period.
    pub length: u64,
    /// How many periods of this time are in the log, and how many are not.
    pub periods: u64,
    pub missing: u64,
    /// Seconds that were watched, added up over the nodes, and how many there were to watch.
    pub watched_seconds: u64,
    pub watchable_seconds: u64,
    pub levels: Levels,
    pub all: Amount,
    /// Acceptable and strong.
    pub encrypted: Share,
    pub weak: Share,
    pub plaintext: Share,
    pub unknown: Share,
    pub post_quantum: Share,
    pub carried: Amount,
    pub missed: Missed,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Windows {
    pub day: Option<Window>,
    pub month: Option<Window>,
    pub year: Option<Window>,
}

/// Rows of a window, the most bytes first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rows<T> {
    pub basis: Basis,
    pub window: Option<Span>,
    pub rows: Vec<T>,
}

/// The newest hour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Latest {
    pub basis: Basis,
    pub index: u64,
    pub start: u64,
    pub nodes: NodeCount,
    pub modes: Modes,
    pub exceptions: ExceptionCount,
    pub releases: Vec<Release>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum GapKind {
    /// The authority logged nothing.
    NotLogged,
    /// Nodes did not report.
    NodesSilent,
}

/// Hours of which not everything is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gap {
    pub from: u64,
    pub to: u64,
    pub kind: GapKind,
    /// How many nodes did not report.
    pub silent: u32,
}

/// The newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gaps {
    pub basis: Basis,
    /// The hours that were looked at.
    pub from: Option<u64>,
    pub to: Option<u64>,
    pub rows: Vec<Gap>,
    /// Gaps that are not listed.
    pub more: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Keys {
    pub basis: Basis,
    pub rows: Vec<KeyFacts>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WitnessFacts {
    /// Its name in the policy.
    pub name: String,
    /// When it cosigned the checkpoint of `log.json`, if it did.
    pub cosigned_at: Option<u64>,
}

/// The log at the checkpoint of `log.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LogFacts {
    pub basis: Basis,
    pub origin: String,
    pub vkey: String,
    pub size: u64,
    pub quorum: String,
    /// When the quorum had cosigned; `None`: the policy requires no witnesses.
    pub cosigned_at: Option<u64>,
    pub witnesses: Vec<WitnessFacts>,
}

/// `facts.json`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PublicFacts {
    pub version: u8,
    pub schema: &'static str,
    pub at: u64,
    pub trust_domain: TrustDomain,
    pub title: Option<String>,
    pub contact: Option<String>,
    /// The first hour that was ever logged.
    pub since: Option<u64>,
    /// The summary.
    pub sentence: Vec<String>,
    /// The window of the summary.
    pub headline: Option<Span>,
    pub windows: Windows,
    pub algorithms: Rows<Algorithm>,
    /// What is not strong.
    pub obstacles: Rows<Protocol>,
    pub latest: Option<Latest>,
    pub gaps: Gaps,
    pub keys: Keys,
    pub log: LogFacts,
    /// As long as the log has no traffic in the newest window.
    pub reported: Option<Reported>,
    /// If the authority has a policy for releases.
    pub running: Option<Running>,
    /// Only if the operator chose to publish them.
    pub services: Option<BTreeSet<Name>>,
}

impl PublicFacts {
    /// From the facts, of which only the periods in `logged` are used, and what `log.json` proves them with.
    pub fn new(
        facts: &Facts,
        logged: &[LoggedPeriod],
        (signed, policy): (&SignedCheckpoint, &Policy),
        chosen: &Publish,
    ) -> Self {
        let windows = Windows {
            day: window(logged, Span::Day),
            month: window(logged, Span::Month),
            year: window(logged, Span::Year),
        };
        let headline = match &windows {
            Windows { month: Some(_), .. } => Some(Span::Month),
            Windows { day: Some(_), .. } => Some(Span::Day),
            _ => None,
        };
        let counted: Vec<&MeshPeriod> = headline
            .and_then(|span| time(logged, span).map(|(from, to)| inside(logged, span, from, to)))
            .unwrap_or_default();
        let services = || facts.nodes.iter().flat_map(|n| n.services.iter().cloned()).collect();
        let mut public = Self {
            version: 1,
            schema: SCHEMA_FILE,
            at: facts.at,
            trust_domain: facts.trust_domain.clone(),
            title: chosen.title.clone(),
            contact: chosen.contact.clone(),
            since: facts.since,
            sentence: Vec::new(),
            headline,
            windows,
            algorithms: Rows { basis: Basis::Log, window: headline, rows: algorithms(&counted) },
            obstacles: Rows { basis: Basis::Log, window: headline, rows: obstacles(&counted) },
            latest: latest(logged),
            gaps: gaps(logged),
            keys: Keys { basis: Basis::Operator, rows: facts.keys.clone() },
            log: log(signed, policy, &facts.ca.log.vkey),
            reported: None,
            running: Running::new(&facts.nodes),
            services: chosen.public_services.then(services),
        };
        if public.main().is_none_or(|window| window.all == Amount::default()) {
            public.reported = Some(Reported::new(&facts.nodes));
        }
        public.sentence = sentence(&public);
        public
    }

    /// What the page is about: the operator's title, or the trust domain.
    pub fn name(&self) -> &str {
        self.title.as_deref().unwrap_or(self.trust_domain.as_str())
    }

    /// The window of the summary.
    pub fn main(&self) -> Option<&Window> {
        match self.headline? {
            Span::Day => self.windows.day.as_ref(),
            Span::Month => self.windows.month.as_ref(),
            Span::Year => self.windows.year.as_ref(),
        }
    }
}

/// The time of a span: it ends with the newest period of its length, and does not start before the oldest.
fn time(logged: &[LoggedPeriod], span: Span) -> Option<(u64, u64)> {
    let starts = || logged.iter().map(|l| &l.period).filter(|p| p.length == span.length());
    let (oldest, newest) = (starts().map(|p| p.start).min()?, starts().map(|p| p.start).max()?);
    let to = newest.saturating_add(span.length());
    Some((to.saturating_sub(span.seconds()).max(oldest), to))
}

fn inside(logged: &[LoggedPeriod], span: Span, from: u64, to: u64) -> Vec<&MeshPeriod> {
    let periods = logged.iter().map(|l| &l.period).filter(|p| p.length == span.length());
    periods.filter(|p| (from..to).contains(&p.start)).collect()
}

fn window(logged: &[LoggedPeriod], span: Span) -> Option<Window> {
    let (from, to) = time(logged, span)?;
    let counted = inside(logged, span, from, to);
    let periods = counted.len() as u64;
    let (mut levels, mut missed) = (Levels::default(), Missed::default());
    let (mut carried, mut post_quantum) = (Amount::default(), Amount::default());
    let (mut watched_seconds, mut watchable_seconds) = (0u64, 0u64);
    for period in counted {
        let one = &period.levels;
        for (sum, more) in [
            (&mut levels.unknown, one.unknown),
            (&mut levels.plaintext, one.plaintext),
            (&mut levels.weak, one.weak),
            (&mut levels.acceptable, one.acceptable),
            (&mut levels.strong, one.strong),
            (&mut carried, period.carried),
            (&mut post_quantum, period.post_quantum),
        ] {
            sum.add(more);
        }
        missed.bytes = missed.bytes.saturating_add(period.missed.bytes);
        missed.resyncs = missed.resyncs.saturating_add(period.missed.resyncs);
        missed.lost_packets = missed.lost_packets.saturating_add(period.missed.lost_packets);
        watched_seconds = watched_seconds.saturating_add(period.watched_seconds);
        let watchable = u64::from(period.nodes.members).saturating_mul(period.length);
        watchable_seconds = watchable_seconds.saturating_add(watchable);
    }
    let mut all = Amount::default();
    Level::ALL.into_iter().for_each(|level| all.add(of(&levels, level)));
    let mut encrypted = levels.acceptable;
    encrypted.add(levels.strong);
    Some(Window {
        basis: Basis::Log,
        from,
        to,
        length: span.length(),
        periods,
        missing: ((to - from) / span.length()).saturating_sub(periods),
        watched_seconds,
        watchable_seconds,
        levels,
        all,
        encrypted: Share::new(encrypted, all, Round::Down),
        weak: Share::new(levels.weak, all, Round::Up),
        plaintext: Share::new(levels.plaintext, all, Round::Up),
        unknown: Share::new(levels.unknown, all, Round::Up),
        post_quantum: Share::new(post_quantum, all, Round::Down),
        carried,
        missed,
    })
}

/// Rows by their amounts, the most bytes first.
fn sorted<K: Ord>(sums: BTreeMap<K, Amount>) -> Vec<(K, Amount)> {
    let mut rows: Vec<_> = sums.into_iter().collect();
    rows.sort_by_key(|(_, amount)| Reverse((amount.bytes, amount.connections)));
    rows
}

fn algorithms(periods: &[&MeshPeriod]) -> Vec<Algorithm> {
    let mut sums: BTreeMap<(&str, &str, &str, bool), Amount> = BTreeMap::new();
    for a in periods.iter().flat_map(|p| &p.algorithms) {
        let key = (&*a.version, &*a.key_exchange, &*a.cipher, a.post_quantum);
        sums.entry(key).or_default().add(a.amount);
    }
    let row = |(key, amount): ((&str, &str, &str, bool), Amount)| Algorithm {
        version: key.0.into(),
        key_exchange: key.1.into(),
        cipher: key.2.into(),
        post_quantum: key.3,
        amount,
    };
    sorted(sums).into_iter().map(row).collect()
}

fn obstacles(periods: &[&MeshPeriod]) -> Vec<Protocol> {
    let mut sums: BTreeMap<(&str, &str), Amount> = BTreeMap::new();
    let strong = Level::Strong.to_string();
    for p in periods.iter().flat_map(|p| &p.protocols).filter(|p| p.level != strong) {
        sums.entry((&*p.protocol, &*p.level)).or_default().add(p.amount);
    }
    let row = |((protocol, level), amount): ((&str, &str), Amount)| Protocol {
        protocol: protocol.into(),
        level: level.into(),
        amount,
    };
    sorted(sums).into_iter().map(row).collect()
}

fn latest(logged: &[LoggedPeriod]) -> Option<Latest> {
    let hours = logged.iter().filter(|l| l.period.length == HOUR);
    let LoggedPeriod { index, period } = hours.max_by_key(|l| l.period.start)?;
    Some(Latest {
        basis: Basis::Log,
        index: *index,
        start: period.start,
        nodes: period.nodes,
        modes: period.modes,
        exceptions: period.exceptions,
        releases: period.releases.clone(),
    })
}

fn gaps(logged: &[LoggedPeriod]) -> Gaps {
    let hours = logged.iter().map(|l| &l.period).filter(|p| p.length == HOUR);
    let hours: BTreeMap<u64, NodeCount> = hours.map(|p| (p.start, p.nodes)).collect();
    let from = hours.keys().next().copied();
    let to = hours.keys().next_back().map(|start| start + HOUR);
    let mut rows: Vec<Gap> = Vec::new();
    let mut add = |from: u64, to: u64, kind: GapKind, silent: u32| match rows.last_mut() {
        Some(last) if last.to == from && last.kind == kind && last.silent == silent => last.to = to,
        _ => rows.push(Gap { from, to, kind, silent }),
    };
    let mut expected = from.unwrap_or(0);
    for (start, nodes) in hours {
        if start > expected {
            add(expected, start, GapKind::NotLogged, 0);
        }
        let silent = nodes.members.saturating_sub(nodes.reported);
        if silent > 0 {
            add(start, start + HOUR, GapKind::NodesSilent, silent);
        }
        expected = start + HOUR;
    }
    rows.reverse();
    let more = rows.len().saturating_sub(MAX_GAPS);
    rows.truncate(MAX_GAPS);
    Gaps { basis: Basis::Log, from, to, rows, more }
}

fn log(signed: &SignedCheckpoint, policy: &Policy, vkey: &str) -> LogFacts {
    let checkpoint = signed.unverified();
    let witness = |w: &wiretight_tlog::policy::Witness| WitnessFacts {
        name: w.name.clone(),
        cosigned_at: w.key.newest(signed).map(|(at, _)| at),
    };
    LogFacts {
        basis: Basis::Log,
        origin: checkpoint.origin.clone(),
        vkey: vkey.to_owned(),
        size: checkpoint.size,
        quorum: policy.quorum_text(),
        cosigned_at: policy.witnessed(signed).ok().and_then(|witnessed| witnessed.time()),
        witnesses: policy.witnesses().iter().map(witness).collect(),
    }
}

/// `31 days from 2026-10-31 to 2026-11-30`
pub fn when(window: &Window) -> String {
    let Window { from, to, length, .. } = *window;
    let n = (to - from) / length.max(1);
    let of = match (length, n) {
        (HOUR, 1) => "hour",
        (HOUR, _) => "hours",
        (_, 1) => "day",
        _ => "days",
    };
    // A day is named by its date, so the last one is that of its last second.
    let last = if length == HOUR { to } else { to - 1 };
    let utc = if length == HOUR { " UTC" } else { "" };
    format!("{n} {of} from {} to {}{utc}", date(from, length), date(last, length))
}

/// The summary, in plain words. No number without its window and what is unknown.
fn sentence(facts: &PublicFacts) -> Vec<String> {
    let name = facts.name();
    let Some(window) = facts.main() else {
        return vec![format!(
            "The log has no hour of the traffic of {name} yet, so nothing about it is proved."
        )];
    };
    let since = date(facts.since.unwrap_or(window.from), DAY);
    let mut all = vec![format!(
        "Since {since}, the network traffic of the machines of {name} is measured, and each hour is written to a log that cannot be changed unnoticed."
    )];
    let both = |share: &Share| {
        let (connections, bytes) = (percent(share.of_connections), percent(share.of_bytes));
        format!("{connections} of connections and {bytes} of bytes")
    };
    let when = when(window);
    if window.all == Amount::default() {
        all.push(format!("In the {when}, no traffic was counted."));
    } else {
        all.push(format!(
            "In the {when}, {} were encrypted; {} are unknown.",
            both(&window.encrypted),
            both(&window.unknown)
        ));
        all.push(format!(
            "A key exchange that resists quantum computers protected {}.",
            both(&window.post_quantum)
        ));
    }
    let periods = window.periods.saturating_add(window.missing);
    all.push(format!(
        "Of the machines' time, {} was watched; {} of {periods} {} are missing in the log.",
        percent(permille(window.watched_seconds, window.watchable_seconds, Round::Down)),
        window.missing,
        if window.length == HOUR { "hours" } else { "days" },
    ));
    if let Some(root) = facts.keys.rows.iter().find(|key| key.name == "root") {
        all.push(format!("Who holds the root key: {}", root.holder));
    }
    all.push(witnesses(&facts.log));
    all
}

fn witnesses(log: &LogFacts) -> String {
    let names: Vec<&str> =
        log.witnesses.iter().filter(|w| w.cosigned_at.is_some()).map(|w| w.name.as_str()).collect();
    match (names.len(), log.witnesses.len()) {
        (_, 0) => "No independent witness cosigns the log: that everybody is shown the same log is only the operator's word.".into(),
        (0, all) => format!("None of the {all} witnesses has cosigned the log as it is shown here."),
        (n, all) => format!(
            "{n} of {all} independent witnesses cosigned the log as it is shown here: {}.",
            names.join(", ")
        ),
    }
}
