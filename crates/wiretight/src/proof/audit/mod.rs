//! The auditor's archive: for each control of a standard the evidence that there is, and its proof.
//!
//! An archive is a function of four inputs: what is asked ([`Head`]), the part of the log ([`LogPart`]), the operator's
//! word ([`Facts`]), and reports of scans. All other files are computed from them, so a verifier computes them again and
//! compares ([`check`]). The same inputs give the same bytes.
//!
//! - [`archive`]: the archive as bytes
//! - `derived`: the files that are computed
//! - `page`: the page to read
//! - [`check`]: verifies an archive

pub mod archive;
pub mod check;
mod derived;
mod page;

pub use derived::is_scan;

use std::sync::Arc;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use wiretight_keys::TrustDomain;
use wiretight_keys::claims::{DAY, MeshPeriod};

use super::controls::Profile;
use super::facts::{Facts, LoggedPeriod};
pub use super::log_part::{LogPart, ProvedPeriod};
use super::scans;
use crate::authority::{AuthorityError, AuthorityHandle};
use crate::control::Records;
use archive::File;

/// The version of the format.
const VERSION: u8 = 1;
/// The release that computes the files.
const PROGRAM: &str = env!("CARGO_PKG_VERSION");
const KIND: &str = "wiretight-audit";
/// The longest window, in days.
pub const MAX_DAYS: i32 = 366;
/// The most reports of scans, and the size of each in bytes.
pub const MAX_SCANS: usize = scans::MAX_FILES;
pub const MAX_SCAN: usize = scans::MAX_FILE;

const PAGE: &str = "index.html";
const HEAD: &str = "audit.json";
const FACTS: &str = "facts.json";
const LOG: &str = "log.json";

/// Whole days, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    pub from: Date,
    /// The last day.
    pub to: Date,
}

/// Why there is no such window.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidWindow(String);

impl Window {
    pub fn new(from: Date, to: Date) -> Result<Self, InvalidWindow> {
        let days = from.until(to).map_or(i32::MAX, |span| span.get_days());
        let old = from.year() < 2000 || to.year() > 9000;
        match days {
            _ if old => Err(InvalidWindow(format!("{from} to {to} is not a period of this log"))),
            ..0 => Err(InvalidWindow(format!("the period ends ({to}) before it starts ({from})"))),
            MAX_DAYS.. => Err(InvalidWindow(format!("a period has at most {MAX_DAYS} days"))),
            _ => Ok(Self { from, to }),
        }
    }

    fn second(date: Date) -> u64 {
        let at = date.to_zoned_datetime(TimeZone::UTC).map_or(0, |at| at.timestamp().as_second());
        u64::try_from(at).unwrap_or_default()
    }

    /// The first second, since 1970.
    pub fn start(self) -> u64 {
        Self::second(self.from)
    }

    /// The second after the last.
    pub fn end(self) -> u64 {
        Self::second(self.to) + DAY
    }

    fn contains(self, period: &MeshPeriod) -> bool {
        period.start >= self.start() && period.start.saturating_add(period.length) <= self.end()
    }
}

/// What an archive is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    version: u8,
    kind: String,
    pub profile: Profile,
    #[serde(flatten)]
    pub window: Window,
    /// When it was exported, in seconds since 1970.
    pub made: u64,
    pub trust_domain: TrustDomain,
    /// The release that wrote it.
    pub program: String,
}

/// What the authority has for an archive.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Evidence {
    /// Without periods.
    pub facts: Facts,
    pub log: LogPart,
}

/// Asks a running authority.
pub async fn collect(
    authority: &AuthorityHandle,
    window: Window,
) -> Result<Evidence, AuthorityError> {
    let mut facts = super::collect(authority, window.start(), window.end() - 1).await?;
    let log = &facts.ca.log;
    let covered = match (log.witnessed, log.self_attested) {
        (Some((size, _)), _) => size,
        (None, true) => log.size,
        (None, false) => 0,
    };
    let periods = std::mem::take(&mut facts.periods);
    let inside = |p: &LoggedPeriod| p.index < covered && window.contains(&p.period);
    let mut periods: Vec<_> = periods.into_iter().filter(inside).collect();
    periods.sort_by_key(|p| (p.period.start, p.period.length));
    let indexes: Vec<u64> = periods.iter().map(|p| p.index).collect();
    let proven = authority.prove(&indexes, &[]).await?;
    let log = LogPart::new(&periods, &proven, &authority.log().policy());
    // Who talks to whom is not part of an archive.
    for report in facts.nodes.iter_mut().filter_map(|node| node.report.as_mut()) {
        let report = Arc::make_mut(report);
        (report.rows, report.rows_since, report.more_rows) = (Records::default(), None, 0);
    }
    Ok(Evidence { facts, log })
}

/// All inputs.
#[derive(Debug, Clone)]
pub struct Inputs {
    pub head: Head,
    pub facts: Facts,
    pub log: LogPart,
    /// JSON reports of `wiretight scan`, as they are.
    pub scans: Vec<Vec<u8>>,
}

impl Inputs {
    pub fn new(evidence: Evidence, profile: Profile, window: Window, scans: Vec<Vec<u8>>) -> Self {
        let Evidence { facts, log } = evidence;
        let head = Head {
            version: VERSION,
            kind: KIND.into(),
            profile,
            window,
            made: facts.at,
            trust_domain: facts.trust_domain.clone(),
            program: PROGRAM.into(),
        };
        Self { head, facts, log, scans }
    }

    /// The archive.
    ///
    /// # Errors
    /// It would be too large, or an entry of the log part is not a period.
    pub fn archive(&self) -> Result<Vec<u8>, String> {
        archive::write(self.files(&self.log.parsed()?), self.head.made)
    }

    /// The files, in their order: the page, then by name.
    fn files(&self, periods: &[LoggedPeriod]) -> Vec<File> {
        let mut files = vec![
            json(HEAD, &self.head),
            json(FACTS, &self.facts),
            json(LOG, &self.log),
            File { name: "policy".into(), bytes: self.log.policy.clone().into_bytes() },
        ];
        for (n, bytes) in self.scans.iter().enumerate() {
            files.push(File { name: format!("scans/{:03}.json", n + 1), bytes: bytes.clone() });
        }
        let derived = derived::Derived::new(self, periods);
        files.extend(derived.files());
        let controls = derived.controls(&files);
        files.push(json(archive::CONTROLS, &controls));
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let page = page::page(&self.head, &derived, &controls, &files);
        files.insert(0, File { name: PAGE.into(), bytes: page.into_bytes() });
        files
    }
}

fn json(name: &str, value: &impl Serialize) -> File {
    let bytes = serde_json::to_vec(value).expect("numbers and texts are JSON");
    File { name: name.into(), bytes }
}

/// `hour 2026-11-03T04:00:00Z`, `day 2026-11-03`.
fn named(start: u64, length: u64) -> String {
    let at = i64::try_from(start).ok().and_then(|at| jiff::Timestamp::from_second(at).ok());
    match at {
        Some(at) if length == DAY => format!("day {}", at.strftime("%Y-%m-%d")),
        Some(at) => format!("hour {at}"),
        None => format!("the period at {start} s"),
    }
}
