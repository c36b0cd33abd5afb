//! A monitor: follows logs and raises alerts.
//!
//! Witnesses verify that a log only appends, but do not read its entries. A monitor reads every entry, so that the owner
//! of a name learns of every certificate for it. It also checks the log itself: each tree extends the last one and does
//! not shrink, the witnesses keep cosigning, and everything that the log signs is readable.
//!
//! - `follow`: follows one log; each log of the policy has a follower
//! - `watch`: the monitor process: checks repeatedly, reports that it is blind, writes its status
//! - `expect`, `name`: expected keys and watched names
//! - `chain`: successors of expected keys
//! - `table`: the certificates in the log
//! - `alarm`: delivers alerts
//! - `metrics`: for Prometheus

pub mod alarm;
pub mod chain;
pub mod expect;
pub mod follow;
pub mod metrics;
pub mod name;
pub mod status;
pub mod table;
pub mod watch;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use wiretight_tlog::Policy;

use self::expect::Watch;
use self::table::TableError;
use super::reader::Reader;
use crate::private_dir::FileError;

const CHECKPOINT: &str = "checkpoint";

#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    #[error("another monitor is running with {}", .0.display())]
    InUse(PathBuf),
    #[error(
        "{} is damaged ({detail}). Restore it, or remove it to follow the log from its start; an earlier fork would then not be detected.",
        .path.display()
    )]
    Damaged { path: PathBuf, detail: String },
    #[error(
        "the policy has no URL for this log. Add the URL to its `log` line, or give --url ORIGIN=URL. If no node's policy has this log, remove the line."
    )]
    NoUrl,
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error("the monitor was stopped during a check")]
    Interrupted,
    #[error(transparent)]
    Expect(#[from] expect::ExpectError),
}

/// A log to follow.
pub struct Source {
    pub origin: String,
    /// A policy with this log's key only, and its witnesses.
    pub policy: Policy,
    /// `None` if the log's location is unknown.
    pub reader: Option<Reader>,
    /// Another log of the policy may be at this location instead.
    pub shares_place: bool,
}

/// What to check in every log.
pub struct Watched {
    /// How long the quorum may have cosigned nothing new.
    pub max_silence: Duration,
    /// The file of expected keys, read at each check.
    pub expect: Option<PathBuf>,
    /// The watched names; if empty, all names are watched if there is a list of expected keys.
    pub watch: Vec<Watch>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AlertKind {
    /// A certificate for a watched name with an unexpected key.
    UnexpectedCertificate,
    /// A certificate entry that cannot be parsed.
    MalformedEntry,
    /// A second, different claim about the traffic of a period.
    ContradictoryClaim,
    /// Two trees that are not consistent.
    Fork,
    /// A smaller tree than before.
    Rollback,
    /// The witnesses have cosigned nothing new for too long.
    Stalled,
    /// A checkpoint that the policy does not accept.
    NotWitnessed,
    /// Files that do not match the checkpoint.
    Damaged,
    /// The log could not be read to its signed size.
    Blind,
    /// The list of expected keys is invalid.
    BadExpectedKeys,
    /// There were more alerts than the webhook accepted.
    MoreAlerts,
}

impl AlertKind {
    pub(crate) const ALL: [AlertKind; 11] = [
        AlertKind::UnexpectedCertificate,
        AlertKind::MalformedEntry,
        AlertKind::ContradictoryClaim,
        AlertKind::Fork,
        AlertKind::Rollback,
        AlertKind::Stalled,
        AlertKind::NotWitnessed,
        AlertKind::Damaged,
        AlertKind::Blind,
        AlertKind::BadExpectedKeys,
        AlertKind::MoreAlerts,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            AlertKind::UnexpectedCertificate => "unexpected-certificate",
            AlertKind::MalformedEntry => "malformed-entry",
            AlertKind::ContradictoryClaim => "contradictory-claim",
            AlertKind::Fork => "fork",
            AlertKind::Rollback => "rollback",
            AlertKind::Stalled => "stalled",
            AlertKind::NotWitnessed => "not-witnessed",
            AlertKind::Damaged => "damaged",
            AlertKind::Blind => "blind",
            AlertKind::BadExpectedKeys => "bad-expected-keys",
            AlertKind::MoreAlerts => "more-alerts",
        }
    }

    /// Whether it is about one entry. There may be as many of these as the log has entries.
    fn is_of_entry(self) -> bool {
        use AlertKind::{ContradictoryClaim, MalformedEntry, UnexpectedCertificate};
        matches!(self, UnexpectedCertificate | MalformedEntry | ContradictoryClaim)
    }
}

/// An alert, as the webhook gets it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    pub kind: AlertKind,
    /// The origin of the log.
    pub log: String,
    /// A text for people.
    pub detail: String,
    /// When it was detected (seconds since 1970).
    pub time: u64,
    /// The index of the entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
    /// The first unexpected name in the certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The unexpected names in the certificate, up to a limit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// SHA-256 of its SubjectPublicKeyInfo, in hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The file with both checkpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<PathBuf>,
}

impl Alert {
    fn new(kind: AlertKind, log: &str, detail: String, time: u64) -> Alert {
        let (names, evidence) = (Vec::new(), None);
        let log = log.to_owned();
        Alert { kind, log, detail, time, index: None, name: None, names, key: None, evidence }
    }
}
