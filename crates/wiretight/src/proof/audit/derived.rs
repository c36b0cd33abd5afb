//! The files of an archive that are computed from the others.

use serde::Serialize;
use wiretight_keys::Name;
use wiretight_keys::claims::{
    Algorithm, Amount, DAY, ExceptionCount, HOUR, Levels, MeshPeriod, Missed, Modes, Protocol,
};
use wiretight_proxy::intercept::rules::Mode;
use wiretight_scan::facts::Answer;
use wiretight_scan::judge::Level;

use super::archive::{File, sha256};
use super::{Inputs, LOG, json};
use crate::control::report::ExceptionKind;
use crate::proof::chart::{Round, Unit, amount, percent, permille};
use crate::proof::controls::{Control, Evidence, Strength};
use crate::proof::facts::{KeyFacts, LoggedPeriod, NodeFacts};
use crate::proof::scans;

const TOTALS: &str = "totals.json";
const MODES: &str = "modes.json";
const EXCEPTIONS: &str = "exceptions.json";
const NODES: &str = "nodes.json";
/// Texts of a list that a sentence names; the rest is counted.
const NAMED: usize = 8;

/// The traffic of the window: the sum of its days, and of the hours of days that have no entry of their own.
#[derive(Debug, Serialize)]
pub(super) struct Totals {
    /// Entries of the log that are added up here.
    pub(super) entries: usize,
    pub(super) watched_seconds: u64,
    /// Seconds that all members together could have watched.
    pub(super) watchable_seconds: u64,
    pub(super) all: Amount,
    pub(super) levels: Levels,
    pub(super) carried: Amount,
    pub(super) post_quantum: Amount,
    missed: Missed,
    pub(super) algorithms: Vec<Algorithm>,
    pub(super) protocols: Vec<Protocol>,
}

/// A value that the log has from this period on, until the next one.
#[derive(Debug, Serialize)]
pub(super) struct Logged<T> {
    pub(super) index: u64,
    pub(super) start: u64,
    pub(super) length: u64,
    #[serde(flatten)]
    pub(super) value: T,
}

#[derive(Debug, Serialize)]
struct ModesFile {
    /// The first counts, and each change. By the log.
    logged: Vec<Logged<Modes>>,
    /// The mode of each node at the export, by its own word.
    nodes: Vec<NodeMode>,
    not_known: [&'static str; 3],
}

#[derive(Debug, Serialize)]
struct NodeMode {
    node: Name,
    mode: Option<Mode>,
    since: Option<u64>,
    reported_at: Option<u64>,
}

#[derive(Debug, Serialize)]
struct ExceptionsFile {
    /// The first counts, and each change. By the log.
    logged: Vec<Logged<ExceptionCount>>,
    /// The exceptions at the export, by the nodes' word.
    exceptions: Vec<ExceptionRow>,
    /// Exceptions that nodes did not list, because they had too many.
    more: u64,
    not_known: [&'static str; 2],
}

#[derive(Debug, Serialize)]
pub(super) struct ExceptionRow {
    pub(super) node: Name,
    pub(super) kind: ExceptionKind,
    pub(super) what: String,
    pub(super) state: ExceptionState,
    pub(super) reason: Option<String>,
    pub(super) owner: Option<String>,
    pub(super) until: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ExceptionState {
    Explained,
    Expired,
    Unexplained,
}

impl ExceptionState {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Explained => "explained",
            Self::Expired => "expired",
            Self::Unexplained => "unexplained",
        }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct NodeRow {
    pub(super) node: Name,
    pub(super) version: Option<String>,
    pub(super) mode: Option<Mode>,
    pub(super) watching: Option<bool>,
    pub(super) joined_at: u64,
    pub(super) last_seen: Option<u64>,
    /// The last hour whose totals it sent.
    pub(super) last_hour: Option<u64>,
    pub(super) services: Vec<Name>,
}

/// The result of all given scans.
#[derive(Debug, Default)]
pub(super) struct Scanned {
    pub(super) files: usize,
    /// Files that are no report of `wiretight scan --json`.
    pub(super) unreadable: usize,
    pub(super) endpoints: usize,
    outside: usize,
    /// Endpoints that meet the profile, do not, or that leave it open.
    met: usize,
    not_met: Vec<String>,
    open: usize,
    below: usize,
}

/// Whether these bytes are a report that an archive can have.
pub fn is_scan(bytes: &[u8]) -> bool {
    scans::parse(bytes).is_some()
}

/// The file controls.json.
#[derive(Debug, Serialize)]
pub(super) struct ControlsFile {
    version: u8,
    pub(super) standard: &'static str,
    /// The scanner's profile that judged the endpoints.
    scanner: Option<ScannerProfile>,
    pub(super) controls: Vec<ControlRow>,
    /// The hash of each file that is evidence.
    files: Vec<FileHash>,
}

#[derive(Debug, Serialize)]
struct ScannerProfile {
    profile: &'static str,
    why: &'static str,
}

#[derive(Debug, Serialize)]
struct FileHash {
    file: String,
    sha256: String,
}

#[derive(Debug, Serialize)]
pub(super) struct ControlRow {
    pub(super) id: &'static str,
    pub(super) about: &'static str,
    pub(super) strength: Strength,
    pub(super) evidence: Vec<EvidenceRow>,
    pub(super) limit: &'static str,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct EvidenceRow {
    pub(super) kind: Evidence,
    /// The files that it is in.
    pub(super) files: Vec<String>,
    /// Who says so.
    pub(super) basis: &'static str,
    /// The entries of the log that it comes from: how many, the first and the last index. Their proofs are in log.json.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) entries: Option<(usize, u64, u64)>,
    pub(super) says: Vec<String>,
}

/// All of it, as values.
pub(super) struct Derived<'a> {
    inputs: &'a Inputs,
    pub(super) periods: &'a [LoggedPeriod],
    pub(super) totals: Totals,
    modes: ModesFile,
    exceptions: ExceptionsFile,
    nodes: Vec<NodeRow>,
    pub(super) scanned: Scanned,
}

/// The days, and the hours of days without an entry of their own: each second once.
pub(super) fn once(periods: &[LoggedPeriod]) -> impl Iterator<Item = &LoggedPeriod> {
    let days = periods.iter().filter(|p| p.period.length == DAY);
    let days: std::collections::BTreeSet<u64> = days.map(|p| p.period.start).collect();
    periods
        .iter()
        .filter(move |p| p.period.length == DAY || !days.contains(&(p.period.start / DAY * DAY)))
}

/// The hours, and the days whose hours are not there.
fn finest(periods: &[LoggedPeriod]) -> impl Iterator<Item = &LoggedPeriod> {
    let hours = periods.iter().filter(|p| p.period.length == HOUR);
    let with_hours: std::collections::BTreeSet<u64> =
        hours.map(|p| p.period.start / DAY * DAY).collect();
    periods.iter().filter(move |p| p.period.length == HOUR || !with_hours.contains(&p.period.start))
}

/// The first value, and each that differs from the one before.
fn changes<T: PartialEq + Copy>(
    periods: &[LoggedPeriod],
    value: impl Fn(&MeshPeriod) -> T,
) -> Vec<Logged<T>> {
    let mut changes: Vec<Logged<T>> = Vec::new();
    for LoggedPeriod { index, period } in finest(periods) {
        let value = value(period);
        if changes.last().is_none_or(|last| last.value != value) {
            let MeshPeriod { start, length, .. } = *period;
            changes.push(Logged { index: *index, start, length, value });
        }
    }
    changes
}

pub(super) fn all(levels: &Levels) -> Amount {
    let mut all = Amount::default();
    let Levels { unknown, plaintext, weak, acceptable, strong } = *levels;
    [unknown, plaintext, weak, acceptable, strong].into_iter().for_each(|amount| all.add(amount));
    all
}

impl Totals {
    fn new(periods: &[LoggedPeriod]) -> Self {
        let counted: Vec<MeshPeriod> = once(periods).map(|p| p.period.clone()).collect();
        let watchable = counted.iter().fold(0, |sum: u64, p| {
            sum.saturating_add(u64::from(p.nodes.members).saturating_mul(p.length))
        });
        let sum = MeshPeriod::day(0, &counted);
        Self {
            entries: counted.len(),
            watched_seconds: sum.watched_seconds,
            watchable_seconds: watchable,
            all: all(&sum.levels),
            levels: sum.levels,
            carried: sum.carried,
            post_quantum: sum.post_quantum,
            missed: sum.missed,
            algorithms: sum.algorithms,
            protocols: sum.protocols,
        }
    }
}

impl Scanned {
    fn new(inputs: &Inputs) -> Self {
        let profile = inputs.head.profile.scanner().map(|(profile, _)| profile.name());
        let mut sum = Self { files: inputs.scans.len(), ..Self::default() };
        for bytes in &inputs.scans {
            let Some(reports) = scans::parse(bytes) else {
                sum.unreadable += 1;
                continue;
            };
            for report in reports {
                sum.endpoints += 1;
                let at = u64::try_from(report.started.as_second()).unwrap_or_default();
                let window = inputs.head.window;
                sum.outside += usize::from(!(window.start()..window.end()).contains(&at));
                sum.below += usize::from(report.judgement.level < Level::Acceptable);
                let mut verdicts = report.judgement.profiles.iter();
                let verdict = verdicts.find(|v| Some(v.profile.as_str()) == profile);
                match verdict.map(|v| v.answer) {
                    Some(Answer::Yes) => sum.met += 1,
                    Some(Answer::No) => sum.not_met.push(report.target.to_string()),
                    _ => sum.open += 1,
                }
            }
        }
        sum
    }

    fn says(&self, inputs: &Inputs) -> Vec<String> {
        if self.files == 0 {
            return vec!["No scan was given (`--scan`).".into()];
        }
        let Self { files, unreadable, endpoints, outside, met, not_met, open, below } = self;
        let mut says = vec![format!(
            "{endpoints} endpoints in {files} reports; {below} of them are below the level acceptable, or unknown."
        )];
        if let Some((profile, why)) = inputs.head.profile.scanner() {
            says.push(format!(
                "By the scanner's profile {profile} ({why}): {met} meet it as far as a scan can check, {} do not, {open} are open.",
                not_met.len()
            ));
            if !not_met.is_empty() {
                says.push(format!("Not met by {}.", listed(not_met)));
            }
        }
        if *outside > 0 {
            says.push(format!("{outside} were scanned before or after the period."));
        }
        if *unreadable > 0 {
            says.push(format!("{unreadable} files are no reports of a scan."));
        }
        says
    }
}

/// The first few, and how many more.
fn listed(texts: &[String]) -> String {
    let more = texts.len().saturating_sub(NAMED);
    let first = texts[..texts.len() - more].join(", ");
    if more > 0 { format!("{first} and {more} more") } else { first }
}

fn share(part: u64, whole: u64, round: Round) -> String {
    percent(permille(part, whole, round))
}

impl<'a> Derived<'a> {
    pub(super) fn new(inputs: &'a Inputs, periods: &'a [LoggedPeriod]) -> Self {
        let facts = &inputs.facts;
        let modes = ModesFile {
            logged: changes(periods, |p| p.modes),
            nodes: facts.nodes.iter().map(NodeMode::new).collect(),
            not_known: [
                "Which nodes a logged change was about, and who made it.",
                "Changes that were undone within an hour.",
                "The mode of a node that sent no report; it counts as none.",
            ],
        };
        let exceptions = ExceptionsFile {
            logged: changes(periods, |p| p.exceptions),
            exceptions: facts.nodes.iter().flat_map(|n| exceptions(n, inputs.head.made)).collect(),
            more: facts
                .nodes
                .iter()
                .filter_map(|n| n.report.as_ref())
                .map(|report| u64::from(report.more_exceptions))
                .sum(),
            not_known: [
                "Exceptions that ended before the export: the log has only their number.",
                "Whether somebody approved an exception, besides the owner that the configuration names.",
            ],
        };
        Self {
            inputs,
            periods,
            totals: Totals::new(periods),
            modes,
            exceptions,
            nodes: facts.nodes.iter().map(NodeRow::new).collect(),
            scanned: Scanned::new(inputs),
        }
    }

    pub(super) fn files(&self) -> Vec<File> {
        vec![
            json(TOTALS, &self.totals),
            json(MODES, &self.modes),
            json(EXCEPTIONS, &self.exceptions),
            json(NODES, &self.nodes),
        ]
    }

    pub(super) fn exceptions(&self) -> &[ExceptionRow] {
        &self.exceptions.exceptions
    }

    pub(super) fn mode_changes(&self) -> &[Logged<Modes>] {
        &self.modes.logged
    }

    pub(super) fn not_known(&self) -> impl Iterator<Item = &'static str> {
        self.modes.not_known.into_iter().chain(self.exceptions.not_known)
    }

    pub(super) fn nodes(&self) -> &[NodeRow] {
        &self.nodes
    }

    pub(super) fn keys(&self) -> &'a [KeyFacts] {
        &self.inputs.facts.keys
    }

    /// `files` are those that controls can refer to.
    pub(super) fn controls(&self, files: &[File]) -> ControlsFile {
        let profile = self.inputs.head.profile;
        let kinds: Vec<EvidenceRow> =
            Evidence::ALL.iter().map(|kind| self.evidence(*kind, files)).collect();
        let row = |control: &Control| {
            let evidence = kinds.iter().filter(|row| control.evidence.contains(&row.kind));
            let Control { id, about, strength, limit, .. } = *control;
            ControlRow { id, about, strength, evidence: evidence.cloned().collect(), limit }
        };
        ControlsFile {
            version: super::VERSION,
            standard: profile.title(),
            scanner: profile
                .scanner()
                .map(|(profile, why)| ScannerProfile { profile: profile.name(), why }),
            controls: profile.controls().iter().map(row).collect(),
            files: files
                .iter()
                .map(|f| FileHash { file: f.name.clone(), sha256: sha256(&f.bytes) })
                .collect(),
        }
    }

    fn evidence(&self, kind: Evidence, files: &[File]) -> EvidenceRow {
        let scans = || {
            let names = files.iter().map(|f| &f.name);
            names.filter(|name| name.starts_with("scans/")).cloned().collect()
        };
        let named = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let (files, basis): (Vec<String>, _) = match kind {
            Evidence::Traffic | Evidence::Algorithms => (named(&[TOTALS, LOG]), "the log"),
            Evidence::Log => (named(&[LOG, "policy"]), "the log"),
            Evidence::Modes => {
                (named(&[MODES, LOG]), "the log for numbers, the nodes' word for names")
            }
            Evidence::Exceptions => (
                named(&[EXCEPTIONS, LOG]),
                "the log for numbers, the nodes' word for names and reasons",
            ),
            Evidence::Keys => (named(&[super::FACTS]), "the authority's word"),
            Evidence::Nodes => {
                (named(&[NODES]), "the authority's word; versions by the nodes' word")
            }
            Evidence::Scans => (scans(), "the word of whoever scanned"),
        };
        let indexes = || self.periods.iter().map(|p| p.index);
        let entries = match (files.iter().any(|f| f == LOG), indexes().min(), indexes().max()) {
            (true, Some(first), Some(last)) => Some((self.periods.len(), first, last)),
            _ => None,
        };
        EvidenceRow { kind, files, basis, entries, says: self.says(kind) }
    }

    fn says(&self, kind: Evidence) -> Vec<String> {
        let Totals { levels, all, watched_seconds, watchable_seconds, .. } = &self.totals;
        let of = |part: Amount, round: Round| {
            format!(
                "{} of connections and {} of bytes",
                share(part.connections, all.connections, round),
                share(part.bytes, all.bytes, round)
            )
        };
        match kind {
            Evidence::Traffic if self.periods.is_empty() => {
                vec!["Nothing is logged for this period.".into()]
            }
            Evidence::Traffic => {
                let mut encrypted = levels.acceptable;
                encrypted.add(levels.strong);
                vec![
                    format!("Encrypted (acceptable or strong): {}.", of(encrypted, Round::Down)),
                    format!(
                        "{} connections and {} crossed a network; {} of the time of all members was watched.",
                        amount(all.connections, Unit::Connections),
                        amount(all.bytes, Unit::Bytes),
                        share(*watched_seconds, *watchable_seconds, Round::Down)
                    ),
                    format!("Weak: {}.", of(levels.weak, Round::Up)),
                    format!("Plaintext: {}.", of(levels.plaintext, Round::Up)),
                    format!("Unknown: {}.", of(levels.unknown, Round::Up)),
                ]
            }
            Evidence::Algorithms => self.algorithms(of(self.totals.post_quantum, Round::Down)),
            Evidence::Exceptions => {
                let count =
                    |state| self.exceptions.exceptions.iter().filter(|e| e.state == state).count();
                let mut says = vec![format!(
                    "{} exceptions at the export: {} explained, {} expired, {} unexplained.",
                    self.exceptions.exceptions.len() as u64 + self.exceptions.more,
                    count(ExceptionState::Explained),
                    count(ExceptionState::Expired),
                    count(ExceptionState::Unexplained)
                )];
                let of = |c: &ExceptionCount| c.expired.saturating_add(c.unexplained);
                let worst = self.exceptions.logged.iter().rev().max_by_key(|c| of(&c.value));
                if let Some(worst) = worst {
                    says.push(format!(
                        "At most {} were expired or unexplained at a time, first in the {}.",
                        of(&worst.value),
                        super::named(worst.start, worst.length)
                    ));
                }
                says
            }
            Evidence::Modes => match (self.modes.logged.first(), self.modes.logged.last()) {
                (Some(first), Some(last)) => vec![
                    format!("At the start: {}.", modes(&first.value)),
                    format!("At the end: {}.", modes(&last.value)),
                    format!("Logged changes in between: {}.", self.modes.logged.len() - 1),
                ],
                _ => vec!["Nothing is logged for this period.".into()],
            },
            Evidence::Keys => {
                let keys = self.inputs.facts.keys.iter();
                keys.map(|k| format!("{}: {}. {}", k.name, k.algorithm, k.holder)).collect()
            }
            Evidence::Log => {
                let log = &self.inputs.facts.ca.log;
                let witnesses: Vec<String> = log.witnesses.iter().map(|w| w.name.clone()).collect();
                let who = match log.self_attested {
                    true => "Only the authority vouches for it: no witness cosigns it.".into(),
                    false => {
                        format!("Cosigned by witnesses ({}): {}.", log.quorum, listed(&witnesses))
                    }
                };
                vec![format!("A log of {} entries.", log.size), who]
            }
            Evidence::Nodes => {
                let silent = self.nodes.iter().filter(|n| n.version.is_none()).count();
                let mut versions: Vec<String> =
                    self.nodes.iter().filter_map(|n| n.version.clone()).collect();
                versions.sort();
                versions.dedup();
                vec![
                    format!(
                        "{} members at the export; {silent} without a report.",
                        self.nodes.len()
                    ),
                    format!("Versions: {}.", listed(&versions)),
                ]
            }
            Evidence::Scans => self.scanned.says(self.inputs),
        }
    }

    fn algorithms(&self, post_quantum: String) -> Vec<String> {
        let rows = &self.totals.algorithms;
        let name = |a: &Algorithm| match a.version == "other" {
            true => "others".to_owned(),
            false => format!("{} with {} and {}", a.version, a.key_exchange, a.cipher),
        };
        let names: Vec<String> = rows.iter().map(name).collect();
        let mut says = vec![match rows.is_empty() {
            true => "No algorithms are logged for this period.".to_owned(),
            false => format!("Negotiated, by bytes: {}.", listed(&names)),
        }];
        says.push(format!("Protected by a post-quantum key exchange: {post_quantum}."));
        let protocols: Vec<String> = self
            .totals
            .protocols
            .iter()
            .filter(|p| p.level != "strong" && p.level != "acceptable")
            .map(|p| format!("{} ({})", p.protocol, p.level))
            .collect();
        if !protocols.is_empty() {
            says.push(format!("Not encrypted, weak or unknown, by bytes: {}.", listed(&protocols)));
        }
        says
    }
}

pub(super) fn modes(modes: &Modes) -> String {
    let Modes { strict, permissive, observe, none } = modes;
    format!(
        "{strict} nodes strict, {permissive} permissive, {observe} observing, {none} without interception or not known"
    )
}

impl NodeMode {
    fn new(node: &NodeFacts) -> Self {
        let report = node.report.as_ref();
        Self {
            node: node.name.clone(),
            mode: report.and_then(|r| r.mode),
            since: report.and_then(|r| r.mode_since),
            reported_at: node.reported_at,
        }
    }
}

impl NodeRow {
    fn new(node: &NodeFacts) -> Self {
        let report = node.report.as_ref();
        Self {
            node: node.name.clone(),
            version: report.map(|r| r.version.clone()),
            mode: report.and_then(|r| r.mode),
            watching: report.map(|r| r.watching),
            joined_at: node.joined_at,
            last_seen: node.last_seen,
            last_hour: node.last_hour,
            services: node.services.clone(),
        }
    }
}

/// The exceptions of a node, with their state at a time.
fn exceptions(node: &NodeFacts, at: u64) -> impl Iterator<Item = ExceptionRow> {
    let given = node.report.iter().flat_map(|report| &report.exceptions.good);
    given.map(move |exception| {
        let explanation = exception.explanation.as_ref();
        ExceptionRow {
            node: node.name.clone(),
            kind: exception.kind,
            what: exception.what.clone(),
            state: match explanation {
                None => ExceptionState::Unexplained,
                Some(e) if e.until < at => ExceptionState::Expired,
                Some(_) => ExceptionState::Explained,
            },
            reason: explanation.map(|e| e.reason.clone()),
            owner: explanation.map(|e| e.owner.clone()),
            until: explanation.map(|e| e.until),
        }
    })
}
