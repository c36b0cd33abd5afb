//! What a node tells the authority about itself. It is the node's own word: shown with its name. By its release, the
//! authority may refuse it identities; nothing else is allowed or refused by it. Each part is bounded, and readable without
//! the others.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use wiretight_proxy::intercept::rules::Mode;
use wiretight_scan::passive::summary::Row;

use super::Records;

/// The most exceptions and rows in a report; the node sends the ones that matter most.
pub const MAX_EXCEPTIONS: usize = 64;
pub const MAX_ROWS: usize = 128;
/// The longest text of an exception, in bytes.
pub const MAX_TEXT: usize = 256;
/// The longest other text, such as the evidence of a row.
const MAX_LINE: usize = 4096;
/// The largest report, in bytes of JSON.
pub const MAX_REPORT: usize = 64 << 10;
/// The largest proof of a release that is sent, in bytes.
pub const MAX_RELEASE_PROOF: usize = 64 << 10;
/// By how many bytes the two numbers of what is missing may become longer while a report is cut.
const ROOM: usize = 64;
/// The longest version, in bytes.
const MAX_VERSION: usize = 32;

/// A node's report. It replaces the one before.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeReport {
    /// The version of the program, such as `0.1.0`.
    pub version: String,
    /// The mode of interception in force; `None` without rules, or if this release does not know it.
    #[serde(default, deserialize_with = "lenient")]
    pub mode: Option<Mode>,
    /// Since when that mode is in force, in seconds since 1970.
    #[serde(default)]
    pub mode_since: Option<u64>,
    /// Whether it watches its traffic.
    #[serde(default)]
    pub watching: bool,
    /// What this node lets through unencrypted, and why.
    #[serde(default)]
    pub exceptions: Records<Exception>,
    /// More exceptions than [`MAX_EXCEPTIONS`].
    #[serde(default)]
    pub more_exceptions: u32,
    /// Who talks to whom, since `rows_since`: the worst and largest first.
    #[serde(default)]
    pub rows: Records<Row>,
    #[serde(default)]
    pub rows_since: Option<u64>,
    /// More rows than [`MAX_ROWS`].
    #[serde(default)]
    pub more_rows: u64,
    /// Which release it runs. It does not count towards [`MAX_REPORT`].
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "lenient")]
    pub release: Option<Box<ReportedRelease>>,
}

/// Which release a node runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportedRelease {
    /// SHA-256 of the program's file, in hex.
    pub sha256: String,
    /// The text of its proof (docs/release.md). `None`: there is none, or it was sent before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<String>,
}

/// Why a node's report is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidReport {
    #[error("it has {0} bytes, but the limit is {MAX_REPORT}")]
    Large(usize),
    #[error("it has more than {MAX_EXCEPTIONS} exceptions or {MAX_ROWS} rows")]
    Many,
    #[error(
        "the version must have 1 to {MAX_VERSION} letters, digits, dots, plus signs and hyphens"
    )]
    Version,
    #[error("a text is empty, too long, or not printable")]
    Text,
}

impl NodeReport {
    /// Cuts it to what may be sent: exceptions that are not explained or end first come first, and rows as they are.
    pub fn bounded(mut self) -> NodeReport {
        let release = self.release.take();
        let exceptions = &mut self.exceptions.good;
        exceptions.sort_by_key(|e| e.explanation.as_ref().map_or(0, |explained| explained.until));
        exceptions.iter_mut().for_each(shorten);
        let rows = std::mem::take(&mut self.rows.good);
        let length = |value: &NodeReport| serde_json::to_vec(value).map_or(0, |json| json.len());
        while self.exceptions.good.len() > MAX_EXCEPTIONS || length(&self) + ROOM > MAX_REPORT {
            if self.exceptions.good.pop().is_none() {
                break;
            }
            self.more_exceptions = self.more_exceptions.saturating_add(1);
        }
        let mut left = MAX_REPORT.saturating_sub(length(&self) + ROOM);
        let all = rows.len();
        for mut row in rows.into_iter().take(MAX_ROWS) {
            row.more_seen |= row.seen.len() > 1;
            row.seen.truncate(1);
            shorten(&mut row);
            let needed = 1 + serde_json::to_vec(&row).map_or(MAX_REPORT, |json| json.len());
            let Some(rest) = left.checked_sub(needed) else { break };
            left = rest;
            self.rows.good.push(row);
        }
        self.more_rows = self.more_rows.saturating_add((all - self.rows.good.len()) as u64);
        self.release = release;
        self
    }

    /// Checks what another machine has sent, without its release.
    pub fn check(&self) -> Result<(), InvalidReport> {
        let mut json = serde_json::to_value(self).unwrap_or_default();
        if let Value::Object(members) = &mut json {
            members.remove("release");
        }
        let size = json.to_string().len();
        if size > MAX_REPORT {
            return Err(InvalidReport::Large(size));
        }
        let count = |good: usize, unreadable: usize| good.saturating_add(unreadable);
        if count(self.exceptions.good.len(), self.exceptions.unreadable) > MAX_EXCEPTIONS
            || count(self.rows.good.len(), self.rows.unreadable) > MAX_ROWS
        {
            return Err(InvalidReport::Many);
        }
        let in_version = |b: u8| b.is_ascii_alphanumeric() || b"-+.".contains(&b);
        let version = self.version.as_bytes();
        if !(1..=MAX_VERSION).contains(&version.len()) || !version.iter().all(|b| in_version(*b)) {
            return Err(InvalidReport::Version);
        }
        let texts = self.exceptions.good.iter().flat_map(|e| {
            let why = e.explanation.iter().flat_map(|why| [&why.reason, &why.owner]);
            why.chain([&e.what])
        });
        let short = |text: &String| (1..=MAX_TEXT).contains(&text.trim().len());
        match texts.into_iter().all(short) && all_printable(&json) {
            true => Ok(()),
            false => Err(InvalidReport::Text),
        }
    }

    /// Counts what could not be read among what was left out, because it is lost when the report is written.
    pub fn count_unreadable(&mut self) {
        let unread = |n: &mut usize| u32::try_from(std::mem::take(n)).unwrap_or(u32::MAX);
        let exceptions = unread(&mut self.exceptions.unreadable);
        self.more_exceptions = self.more_exceptions.saturating_add(exceptions);
        self.more_rows = self.more_rows.saturating_add(unread(&mut self.rows.unreadable).into());
    }

    /// The report without rows and release.
    pub fn without_rows(&self) -> NodeReport {
        let NodeReport { version, mode, mode_since, watching, exceptions, more_exceptions, .. } =
            self.clone();
        let (rows, rows_since, more_rows) = Default::default();
        NodeReport {
            version,
            mode,
            mode_since,
            watching,
            exceptions,
            more_exceptions,
            rows,
            rows_since,
            more_rows,
            release: None,
        }
    }
}

/// Cuts each text to [`MAX_TEXT`], and replaces what could mislead a reader.
fn shorten<T: Serialize + for<'a> Deserialize<'a>>(value: &mut T) {
    fn cut(value: &mut Value) -> bool {
        match value {
            Value::String(text) if text.len() > MAX_TEXT || text.contains(is_misleading) => {
                *text = text.replace(is_misleading, "?");
                text.truncate(text.floor_char_boundary(MAX_TEXT));
                true
            }
            Value::Array(all) => all.iter_mut().fold(false, |done, value| cut(value) | done),
            Value::Object(all) => all.values_mut().fold(false, |done, value| cut(value) | done),
            _ => false,
        }
    }
    let Ok(mut json) = serde_json::to_value(&*value) else { return };
    if cut(&mut json)
        && let Ok(short) = serde_json::from_value(json)
    {
        *value = short;
    }
}

/// Whether no text in it can mislead a terminal or a reader.
fn all_printable(json: &Value) -> bool {
    let printable = |text: &str| text.len() <= MAX_LINE && !text.contains(is_misleading);
    match json {
        Value::String(text) => printable(text),
        Value::Array(list) => list.iter().all(all_printable),
        Value::Object(map) => {
            map.iter().all(|(name, value)| printable(name) && all_printable(value))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => true,
    }
}

/// Control characters, line separators, and characters that change the direction of text.
fn is_misleading(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{feff}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A value that only a later release can read does not make the report unreadable.
pub(super) fn lenient<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    d: D,
) -> Result<Option<T>, D::Error> {
    let value = Option::<Value>::deserialize(d)?;
    Ok(value.and_then(|value| serde_json::from_value(value).ok()))
}

/// A setting by which a node lets traffic through that the mesh does not encrypt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exception {
    pub kind: ExceptionKind,
    /// What it is about, as in the configuration: `udp 10.0.0.9:514`, `10.0.0.8`, `db`.
    pub what: String,
    /// From `[[exception]]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explanation: Option<Explanation>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExceptionKind {
    /// `pass` in `[intercept]`: plaintext that strict mode lets through.
    Pass,
    /// An address with the mode `observe`, or the whole node.
    Observe,
    /// An address with the mode `permissive`, or the whole node.
    Permissive,
    /// Machines outside of the mesh, which the configuration names only here: nothing encrypts the traffic with them but the
    /// programs themselves.
    ForeignPeer,
    /// A kind that this release does not know.
    #[serde(other)]
    Other,
}

impl ExceptionKind {
    /// `kind` of its `[[exception]]`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Observe => "observe",
            Self::Permissive => "permissive",
            Self::ForeignPeer => "foreign-peer",
            Self::Other => "other",
        }
    }
}

/// `[[exception]]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    pub reason: String,
    pub owner: String,
    /// The last second for which it counts, in seconds since 1970.
    pub until: u64,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use wiretight_scan::judge::Level;
    use wiretight_scan::passive::flow::Record;
    use wiretight_scan::passive::summary::{By, Flow, Programs, Rows};
    use wiretight_scan::passive::{Grade, Seen, Transport};

    use super::*;

    fn report() -> NodeReport {
        let exception = Exception {
            kind: ExceptionKind::Pass,
            what: "udp 10.0.0.9:514".into(),
            explanation: Some(Explanation {
                reason: "der alte Drucker in Zürich".into(),
                owner: "ops".into(),
                until: 1_800_000_000,
            }),
        };
        NodeReport {
            version: "0.1.0-rc.1+7".into(),
            mode: Some(Mode::Strict),
            watching: true,
            exceptions: vec![exception].into(),
            ..NodeReport::default()
        }
    }

    #[test]
    fn hostile_reports_are_refused() {
        report().check().unwrap();
        let refused = |change: &dyn Fn(&mut NodeReport)| {
            let mut changed = report();
            change(&mut changed);
            changed.check().unwrap_err()
        };
        for version in ["", "0.1 beta", "0.1\n", "<b>", &"1".repeat(33)] {
            let named = |r: &mut NodeReport| r.version = version.to_owned();
            assert_eq!(refused(&named), InvalidReport::Version, "{version:?}");
        }
        for text in ["", " ", "a\u{1b}[2J", "a\nb", "a\u{202e}b", "a\u{2028}b", &"x".repeat(257)] {
            let what = |r: &mut NodeReport| r.exceptions.good[0].what = text.to_owned();
            assert_eq!(refused(&what), InvalidReport::Text, "{text:?}");
            let reason = |r: &mut NodeReport| {
                r.exceptions.good[0].explanation.as_mut().unwrap().reason = text.to_owned();
            };
            assert_eq!(refused(&reason), InvalidReport::Text, "{text:?}");
        }
        let many = |r: &mut NodeReport| {
            let one = r.exceptions.good[0].clone();
            r.exceptions = vec![one; MAX_EXCEPTIONS + 1].into();
        };
        assert_eq!(refused(&many), InvalidReport::Many);
        assert_eq!(refused(&|r| r.rows.unreadable = MAX_ROWS + 1), InvalidReport::Many);
        let large = |r: &mut NodeReport| {
            r.exceptions.good[0].what = "x".repeat(MAX_REPORT);
        };
        assert!(matches!(refused(&large), InvalidReport::Large(_)));
    }

    #[test]
    fn a_report_of_a_later_release_is_readable() {
        let text = r#"{"version":"9.0.0","mode":"lockdown","watching":true,"mood":"good","exceptions":[
            {"kind":"handshake","what":"x"},{"kind":"pass","what":5}],"rows":[{}]}"#;
        let report: NodeReport = serde_json::from_str(text).unwrap();
        report.check().unwrap();
        assert_eq!((report.mode, report.watching), (None, true));
        assert_eq!(report.exceptions.good[0].kind, ExceptionKind::Other);
        // An exception that cannot be read is counted, not forgotten.
        assert_eq!((report.exceptions.unreadable, report.rows.unreadable), (1, 1));
        let mut report = report;
        report.count_unreadable();
        assert_eq!((report.more_exceptions, report.more_rows), (1, 1));
        assert_eq!((report.exceptions.unreadable, report.rows.unreadable), (0, 0));
        let again = serde_json::to_string(&report.without_rows()).unwrap();
        assert_eq!(serde_json::from_str::<NodeReport>(&again).unwrap().exceptions.good.len(), 1);
    }

    fn row(number: u8, evidence: &str) -> Row {
        let mut rows = Rows::new(By::Pair, 1);
        for evidence in [evidence, "another"] {
            let record = Record {
                transport: Transport::Tcp,
                client: ([10, 0, 0, number], 0).into(),
                server: "10.1.0.1:80".parse().unwrap(),
                first: jiff::Timestamp::UNIX_EPOCH,
                last: jiff::Timestamp::UNIX_EPOCH,
                packets: [1, 1],
                bytes: [u64::MAX / 4, 1],
                whole: true,
                seen: Arc::new(Seen {
                    protocol: "http".into(),
                    level: Level::Plaintext,
                    grade: Grade::Seen,
                    evidence: evidence.to_owned().into(),
                    starttls: None,
                    sealed: None,
                }),
            };
            let client: Option<Arc<str>> = Some("x".repeat(600).into());
            rows.add(&Flow { record, programs: Programs { client, server: None } });
        }
        rows.list().remove(0)
    }

    fn exception(text: &str, until: Option<u64>) -> Exception {
        let explain = |until| Explanation { reason: text.into(), owner: text.into(), until };
        Exception { kind: ExceptionKind::Pass, what: text.into(), explanation: until.map(explain) }
    }

    #[track_caller]
    fn sent(report: NodeReport) -> (NodeReport, usize) {
        let report = report.bounded();
        let json = serde_json::to_vec(&report).unwrap();
        assert!(json.len() <= MAX_REPORT, "{} bytes", json.len());
        let read: NodeReport = serde_json::from_slice(&json).unwrap();
        assert_eq!((&read, read.rows.unreadable), (&report, 0));
        read.check().unwrap();
        (report, json.len())
    }

    #[test]
    fn a_report_is_cut_until_it_fits_and_says_how_much_is_missing() {
        let small = NodeReport {
            version: "0.1.0".into(),
            rows: vec![row(1, "GET /\u{202e} HTTP/1.1")].into(),
            exceptions: vec![exception("a", None)].into(),
            ..NodeReport::default()
        };
        let (read, _) = sent(small.clone());
        assert_eq!((read.more_rows, read.more_exceptions), (0, 0));
        assert_eq!((read.rows.good.len(), read.exceptions), (1, small.exceptions));
        let row_of = &read.rows.good[0];
        assert!(row_of.seen.len() == 1 && row_of.more_seen);
        assert_eq!(row_of.seen[0].evidence, "GET /? HTTP/1.1");
        assert_eq!(row_of.programs.iter().map(|p| p.len()).max(), Some(MAX_TEXT));

        let long = "\u{e9}\"".repeat(300);
        let rows = (0..250).map(|n| row(n, &long)).collect::<Vec<_>>();
        let many = |n: u64| (0..n).map(|n| exception(&long, (n > 5).then_some(1000 - n)));
        let large = NodeReport {
            version: "0.1.0".into(),
            rows: rows.into(),
            exceptions: many(100).collect::<Vec<_>>().into(),
            more_rows: 7,
            ..NodeReport::default()
        };
        let (read, length) = sent(large.clone());
        assert!(length > MAX_REPORT - 4096, "{length}");
        let kept = read.exceptions.good.len();
        assert!(
            (10..MAX_EXCEPTIONS).contains(&kept) && read.exceptions.good[5].explanation.is_none()
        );
        assert_eq!(read.exceptions.good[6].explanation.as_ref().unwrap().until, 901);
        assert!(read.exceptions.good.iter().all(|e| e.what.len() <= MAX_TEXT));
        assert_eq!(read.more_exceptions as usize, 100 - kept);
        assert_eq!(read.more_rows as usize, 7 + 250 - read.rows.good.len());
        // Without them there is room for rows.
        let (read, length) = sent(NodeReport { exceptions: Records::default(), ..large });
        assert!(length > MAX_REPORT - 4096 && read.rows.good.len() > 20, "{length}");
        assert_eq!(read.rows.good[0].key.client.unwrap().to_string(), "10.0.0.0:0");
    }
}
