//! What the machines have reported of their traffic, for a page of a mesh whose log has none yet. It is the operator's word:
//! nothing proves it, and `verify.html` says that it was not checked.

use std::collections::BTreeMap;

use semver::Version;
use serde::Serialize;
use wiretight_keys::claims::{Algorithm, Amount, Levels, Release};
use wiretight_scan::judge::Level;
use wiretight_scan::passive::summary::Row;
use wiretight_scan::passive::totals::{Algorithm as Negotiated, OTHER};
use wiretight_scan::passive::vocabulary;

use super::facts::NodeFacts;
use super::public::Basis;
use crate::authority::ReleaseVerdict;

/// The sum of the newest reports. A connection between two machines is in both reports, as in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reported {
    pub basis: Basis,
    pub members: usize,
    /// How many of them have reported, and how many of these watch their traffic. Those that watch report what they have
    /// seen since they began; the others, the open connections of their relays.
    pub reporting: usize,
    pub watching: usize,
    pub levels: Levels,
    pub post_quantum: Amount,
    /// The most bytes first.
    pub algorithms: Vec<Algorithm>,
    /// Pairs of machines that did not fit into the reports.
    pub more: u64,
}

impl Reported {
    pub fn new(nodes: &[NodeFacts]) -> Self {
        let reports = || nodes.iter().filter_map(|node| node.report.as_deref());
        let mut sum = Self {
            basis: Basis::Operator,
            members: nodes.len(),
            reporting: reports().count(),
            watching: reports().filter(|report| report.watching).count(),
            levels: Levels::default(),
            post_quantum: Amount::default(),
            algorithms: Vec::new(),
            more: reports().fold(0, |sum, report| sum.saturating_add(report.more_rows)),
        };
        let mut algorithms: BTreeMap<Negotiated, Amount> = BTreeMap::new();
        for row in reports().flat_map(|report| &report.rows.good) {
            let amount = Amount { connections: row.flows, bytes: row.total() };
            let of_level = match row.key.level {
                Level::Unknown => &mut sum.levels.unknown,
                Level::Plaintext => &mut sum.levels.plaintext,
                Level::Weak => &mut sum.levels.weak,
                Level::Acceptable => &mut sum.levels.acceptable,
                Level::Strong => &mut sum.levels.strong,
            };
            of_level.add(amount);
            if let Some(negotiated) = negotiated(row) {
                if negotiated.post_quantum {
                    sum.post_quantum.add(amount);
                }
                algorithms.entry(negotiated).or_default().add(amount);
            }
        }
        let named = |(of, amount): (Negotiated, Amount)| {
            // A machine chooses these names.
            let [version, key_exchange, cipher] = vocabulary::algorithm(&of).map(str::to_owned);
            Algorithm { version, key_exchange, cipher, post_quantum: of.post_quantum, amount }
        };
        sum.algorithms = algorithms.into_iter().map(named).collect();
        sum.algorithms.sort_by_key(|of| u64::MAX - of.amount.bytes);
        sum
    }

    /// Whether any connection was reported.
    pub fn is_empty(&self) -> bool {
        self.levels == Levels::default()
    }
}

/// What the connections of a row have negotiated; [`OTHER`] if not all of them the same.
fn negotiated(row: &Row) -> Option<Negotiated> {
    match &row.seen[..] {
        [one] if !row.more_seen && one.level == row.key.level => Negotiated::of(one),
        _ if row.key.level <= Level::Plaintext => None,
        _ => Some(Negotiated {
            version: OTHER.into(),
            key_exchange: OTHER.into(),
            cipher: OTHER.into(),
            post_quantum: false,
        }),
    }
}

/// Machines by the release that they say they run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Running {
    pub basis: Basis,
    /// Releases that the authority's policy accepts, the newest first.
    pub proved: Vec<Release>,
    /// Machines whose program is no such release.
    pub unproved: usize,
    /// Machines that say nothing of their release.
    pub unknown: usize,
}

impl Running {
    /// `None`: the authority has no policy for releases.
    pub fn new(nodes: &[NodeFacts]) -> Option<Self> {
        let mut counts: BTreeMap<Version, u32> = BTreeMap::new();
        let (mut unproved, mut unknown) = (0, 0);
        for node in nodes {
            match &node.release.verdict {
                ReleaseVerdict::Proved(proved) => {
                    *counts.entry(proved.version.clone()).or_default() += 1;
                }
                ReleaseVerdict::Unproved(_) => unproved += 1,
                ReleaseVerdict::Unknown => unknown += 1,
                ReleaseVerdict::Unchecked => return None,
            }
        }
        if counts.is_empty() && unproved == 0 {
            return None;
        }
        let release =
            |(version, nodes): (Version, u32)| Release { version: version.to_string(), nodes };
        let proved = counts.into_iter().rev().map(release).collect();
        Some(Self { basis: Basis::Operator, proved, unproved, unknown })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use wiretight_scan::passive::flow::Record;
    use wiretight_scan::passive::summary::{By, Flow, Rows};
    use wiretight_scan::passive::{Grade, Sealed, Seen, Transport};

    use super::*;
    use crate::proof::facts::Facts;

    fn row(level: Level, bytes: u64, sealed: Option<Sealed>) -> Row {
        let now = jiff::Timestamp::UNIX_EPOCH;
        let mut rows = Rows::new(By::Pair, 1);
        rows.add(&Flow::from(Record {
            transport: Transport::Tcp,
            client: "10.0.0.1:1".parse().unwrap(),
            server: "10.0.0.2:2".parse().unwrap(),
            first: now,
            last: now,
            packets: [1, 1],
            bytes: [bytes, 0],
            whole: true,
            seen: Arc::new(Seen {
                protocol: "tls".into(),
                level,
                grade: Grade::Seen,
                evidence: "a test".into(),
                starttls: None,
                sealed: sealed.map(Box::new),
            }),
        }));
        rows.list().remove(0)
    }

    #[test]
    fn releases_are_counted_and_name_no_machine() {
        let mut facts = Facts::example();
        assert_eq!(Running::new(&facts.nodes), None);
        facts.nodes[0].release.verdict = ReleaseVerdict::Unproved("the machine db1".into());
        let running = Running::new(&facts.nodes).unwrap();
        assert_eq!((running.proved.len(), running.unproved, running.unknown), (0, 1, 2));
        facts.nodes[1].release.verdict = ReleaseVerdict::proved_example("1.9.0");
        facts.nodes[2].release.verdict = ReleaseVerdict::proved_example("1.10.0");
        let running = Running::new(&facts.nodes).unwrap();
        let versions: Vec<_> = running.proved.iter().map(|r| (&*r.version, r.nodes)).collect();
        assert_eq!((versions, running.unknown), (vec![("1.10.0", 1), ("1.9.0", 1)], 0));
        assert!(!serde_json::to_string(&running).unwrap().contains("db1"));
        facts.nodes[2].release.verdict = ReleaseVerdict::Unchecked;
        assert_eq!(Running::new(&facts.nodes), None);
    }

    #[test]
    fn reports_are_added_up_and_name_nothing() {
        let sealed = |version: &'static str, post_quantum| Sealed {
            version: version.into(),
            group: Some("X25519MLKEM768".into()),
            suite: Some("TLS_AES_256_GCM_SHA384".into()),
            post_quantum: Some(post_quantum),
            server_name: Some("db.internal".into()),
            ..Sealed::default()
        };
        let mut facts = Facts::example();
        let members = facts.nodes.len();
        let report = facts.nodes.iter_mut().find_map(|node| node.report.as_mut()).unwrap();
        let mut several = row(Level::Weak, 5, Some(sealed("TLS 1.0", false)));
        several.more_seen = true;
        Arc::make_mut(report).rows = vec![
            row(Level::Strong, 70, Some(sealed("TLS 1.3", true))),
            row(Level::Acceptable, 20, Some(sealed("hunter2 is the password", false))),
            row(Level::Plaintext, 3, None),
            several,
        ]
        .into();
        Arc::make_mut(report).more_rows = 9;
        let sum = Reported::new(&facts.nodes);
        assert_eq!((sum.members, sum.reporting, sum.watching, sum.more), (members, 2, 2, 9));
        let amount = |bytes| Amount { connections: 1, bytes };
        let expected = Levels {
            unknown: Amount::default(),
            plaintext: amount(3),
            weak: amount(5),
            acceptable: amount(20),
            strong: amount(70),
        };
        assert_eq!((sum.levels, sum.post_quantum), (expected, amount(70)));
        let names: Vec<_> = sum.algorithms.iter().map(|a| (&*a.version, a.amount.bytes)).collect();
        assert_eq!(names, [("TLS 1.3", 70), ("other", 20), ("other", 5)]);
        let text = serde_json::to_string(&sum).unwrap();
        for private in ["internal", "hunter2", "10.0.0"] {
            assert!(!text.contains(private), "{text}");
        }
        assert!(!sum.is_empty() && Reported::new(&[]).is_empty());
    }
}
