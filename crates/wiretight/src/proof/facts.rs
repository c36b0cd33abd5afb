//! The facts: what is claimed, of which time, and how it is known.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use wiretight_keys::{Name, TrustDomain};

pub use crate::authority::LoggedPeriod;
use crate::authority::{CaStatus, NodeRelease};
use crate::control::report::NodeReport;

/// What is known of the mesh at a time. [`collect`](super::collect::collect) makes it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Facts {
    /// When it was collected, in seconds since 1970.
    pub at: u64,
    pub trust_domain: TrustDomain,
    /// The version of the authority's program.
    pub version: String,
    /// The hours and days asked for that are in the log, oldest first. An hour or day that is not here was not logged:
    /// nothing is known of it.
    pub periods: Vec<LoggedPeriod>,
    /// The first hour that was ever logged.
    pub since: Option<u64>,
    pub nodes: Vec<NodeFacts>,
    /// CA and log: keys, checkpoint, witnesses.
    pub ca: CaStatus,
    /// How the root key is kept.
    pub keys: Vec<KeyFacts>,
}

/// A member of the mesh.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeFacts {
    pub name: Name,
    pub joined_at: u64,
    pub connected: bool,
    pub last_seen: Option<u64>,
    /// Whether it uses the newest state of the registry; `None` while it is not connected.
    pub current: Option<bool>,
    /// The services that it offers.
    pub services: Vec<Name>,
    /// Its last report; `None` if it sent none that can be read.
    pub report: Option<Arc<NodeReport>>,
    pub reported_at: Option<u64>,
    /// The last hour whose totals it sent.
    pub last_hour: Option<u64>,
    /// Which release it runs, by its own word.
    #[serde(default, skip_serializing_if = "NodeRelease::is_unknown")]
    pub release: NodeRelease,
}

/// A key, who holds it and what it can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyFacts {
    /// `root`, `intermediate`, `log`, `witness NAME`.
    pub name: String,
    /// `P-256`, `Ed25519`, `ML-DSA-44`.
    pub algorithm: String,
    /// Who holds it, in one sentence.
    pub holder: String,
    /// What somebody who has it could do, in one sentence.
    pub power: String,
    /// SHA-256 of the public key, in hex, or the public key of a log or witness in its usual form.
    pub fingerprint: String,
    /// In seconds since 1970.
    pub expires: Option<u64>,
}

#[cfg(test)]
impl Facts {
    /// A mesh of three nodes, one of them silent. One of the 26 hours was not logged; one day is complete.
    pub fn example() -> Facts {
        use wiretight_keys::claims::{
            Algorithm, Amount, DAY, ExceptionCount, HOUR, Levels, MeshPeriod, Missed, Modes,
            NodeCount, Protocol, Release,
        };
        use wiretight_proxy::intercept::rules::Mode;

        use crate::authority::{IntermediateStatus, RootStanding, RootStatus};
        use crate::control::report::{Exception, ExceptionKind, Explanation};
        use crate::log::cosigning::WitnessStatus;
        use crate::log::sequencer::LogStatus;

        // Midnight in UTC, and an hour later.
        let midnight = 1_800_057_600;
        let at = midnight + 2 * HOUR + 300;
        let amount = |connections, bytes| Amount { connections, bytes };
        let row = |protocol: &str, level: &str, amount| Protocol {
            protocol: protocol.into(),
            level: level.into(),
            amount,
        };
        let hour = |start: u64| MeshPeriod {
            nodes: NodeCount { members: 3, reported: 2 },
            watched_seconds: 2 * HOUR,
            levels: Levels {
                unknown: amount(1, 1_500),
                plaintext: amount(4, 20_000),
                weak: amount(2, 8_000),
                acceptable: amount(30, 470_500),
                strong: amount(63, 1_500_000),
            },
            carried: amount(60, 1_400_000),
            post_quantum: amount(63, 1_500_000),
            missed: Missed { bytes: 500, resyncs: 0, lost_packets: 1 },
            modes: Modes { strict: 1, permissive: 1, observe: 0, none: 1 },
            exceptions: ExceptionCount { explained: 1, expired: 0, unexplained: 1 },
            algorithms: vec![
                Algorithm {
                    version: "TLS 1.3".into(),
                    key_exchange: "X25519MLKEM768".into(),
                    cipher: "TLS_AES_128_GCM_SHA256".into(),
                    post_quantum: true,
                    amount: amount(63, 1_500_000),
                },
                Algorithm {
                    version: "TLS 1.2".into(),
                    key_exchange: "secp256r1".into(),
                    cipher: "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256".into(),
                    post_quantum: false,
                    amount: amount(32, 478_500),
                },
            ],
            protocols: vec![
                row("wiretight", "strong", amount(60, 1_400_000)),
                row("tls", "acceptable", amount(30, 470_500)),
                row("tls", "strong", amount(3, 100_000)),
                row("syslog", "plaintext", amount(4, 20_000)),
                row("smtp", "weak", amount(2, 8_000)),
                row("unknown", "unknown", amount(1, 1_000)),
            ],
            releases: vec![Release { version: "0.1.0".into(), nodes: 2 }],
            ..MeshPeriod::new(start, HOUR)
        };
        let hours: Vec<MeshPeriod> =
            (0..26).filter(|n| *n != 10).map(|n| hour(midnight - DAY + n * HOUR)).collect();
        let day = MeshPeriod::day(midnight - DAY, &hours[..23]);
        let mut periods: Vec<LoggedPeriod> = (100..)
            .zip(hours.into_iter().chain([day]))
            .map(|(index, period)| LoggedPeriod { index, period })
            .collect();
        periods.sort_by_key(|l| (l.period.start, l.period.length));

        let name = |text: &str| text.parse::<Name>().expect("a name");
        let exception =
            |kind, what: &str, explanation| Exception { kind, what: what.to_owned(), explanation };
        let explanation = Explanation {
            reason: "the firewall speaks only syslog".into(),
            owner: "network team".into(),
            until: at + 90 * DAY,
        };
        let report = |mode, exceptions: Vec<Exception>| {
            let report = NodeReport {
                version: "0.1.0".into(),
                mode: Some(mode),
                mode_since: Some(midnight - 3 * DAY),
                watching: true,
                exceptions: exceptions.into(),
                ..NodeReport::default()
            };
            Some(Arc::new(report))
        };
        let node = |name: Name, service: &str, report: Option<Arc<NodeReport>>| NodeFacts {
            name,
            joined_at: midnight - 5 * DAY,
            connected: report.is_some(),
            last_seen: Some(if report.is_some() { at } else { midnight - 2 * DAY }),
            current: report.is_some().then_some(true),
            services: vec![service.parse().expect("a name")],
            reported_at: report.is_some().then_some(at - 60),
            last_hour: report.is_some().then_some(midnight + HOUR),
            release: NodeRelease::default(),
            report,
        };
        let pass = exception(ExceptionKind::Pass, "udp 10.0.0.9:514", Some(explanation));
        let permissive = exception(ExceptionKind::Permissive, "10.0.0.8", None);
        let witness = |name: &str, size, problem| WitnessStatus {
            name: name.to_owned(),
            size: Some(size),
            cosigned_at: Some(at - 40),
            problem,
        };
        let key = |name: &str, algorithm: &str, holder: &str, power: &str| KeyFacts {
            name: name.to_owned(),
            algorithm: algorithm.to_owned(),
            holder: holder.to_owned(),
            power: power.to_owned(),
            fingerprint: "7f".repeat(32),
            expires: None,
        };
        Facts {
            at,
            trust_domain: "example.org".parse().expect("a trust domain"),
            version: "0.1.0".into(),
            periods,
            since: Some(midnight - 5 * DAY),
            nodes: vec![
                node(name("db1"), "db", report(Mode::Strict, vec![pass])),
                node(name("old1"), "old", None),
                node(name("web1"), "web", report(Mode::Permissive, vec![permissive])),
            ],
            ca: CaStatus {
                trust_domain: "example.org".parse().expect("a trust domain"),
                roots: vec![RootStatus {
                    fingerprint: "2b".repeat(32),
                    standing: RootStanding::Active,
                    since: midnight - 5 * DAY,
                    not_after: midnight + 3650 * DAY,
                }],
                intermediate: IntermediateStatus {
                    fingerprint: "3c".repeat(32),
                    root: "2b".repeat(32),
                    issued_at: midnight - DAY,
                    not_after: midnight + 6 * DAY,
                    renews_at: midnight + 2 * DAY,
                },
                version: 36,
                behind: Vec::new(),
                log: LogStatus {
                    vkey: "example.org/log/62b22520+d4edfe57+AXYVMx/iijrqKQsjkgYza20HRwwIfYsL27H9B0jfNdtj".into(),
                    size: 140,
                    quorum: "independent: 1 of 2".into(),
                    witnessed: Some((140, at - 40)),
                    witnesses: vec![
                        witness("ngo", 140, None),
                        witness("uni", 90, Some("connection refused".into())),
                    ],
                    verified: Some((120, at - 3600)),
                    ..LogStatus::default()
                },
            },
            keys: vec![
                key("root", "P-256", "A file on the authority's machine.", "Issues intermediates."),
                key("log", "Ed25519", "A file on the authority's machine.", "Signs checkpoints."),
                key("witness ngo", "Ed25519", "The witness's operator.", "Cosigns checkpoints."),
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wiretight_keys::claims::{DAY, HOUR, MeshPeriod};

    #[test]
    fn the_example_is_what_an_authority_could_log() {
        let Facts { periods, nodes, .. } = Facts::example();
        assert_eq!(periods.len(), 26);
        for LoggedPeriod { period, .. } in &periods {
            assert_eq!(MeshPeriod::parse(&period.entry()[2..]).unwrap(), *period);
            let mut tidied = period.clone();
            tidied.tidy();
            assert_eq!(tidied, *period);
        }
        let day = periods.iter().find(|l| l.period.length == DAY).unwrap();
        let hours = periods.iter().filter(|l| l.period.length == HOUR).map(|l| l.period.clone());
        let of_day = hours.filter(|h| h.start / DAY * DAY == day.period.start);
        let of_day: Vec<_> = of_day.collect();
        assert_eq!(
            (of_day.len(), MeshPeriod::day(day.period.start, &of_day)),
            (23, day.period.clone())
        );
        for report in nodes.iter().filter_map(|n| n.report.as_ref()) {
            report.check().unwrap();
        }
    }
}
