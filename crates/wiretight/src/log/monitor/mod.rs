//! A monitor: follows logs, and says when something is not as it should be.
//!
//! Witnesses see that a log only appends; they do not look at what. A monitor reads every entry, so that whoever owns a
//! name learns of each certificate for it. And it looks at the log's own conduct: that each tree begins with the last one
//! seen, that it does not shrink, that it is cosigned and goes on being so, and that what it signs can be read.
//!
//! - `follow`: one log; every log of the policy is followed, each by itself
//! - `watch`: the monitor as a process: looks again and again, says that it is blind, shows how it is
//! - `expect`, `name`: which keys are expected, for which names
//! - `chain`: keys that come after expected ones
//! - `table`: who was issued what
//! - `alarm`: where alerts go

pub mod alarm;
pub mod chain;
pub mod expect;
pub mod follow;
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

/// Why a monitor does not start, or cannot look.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// Another process.
    #[error("another monitor runs with {}", .0.display())]
    InUse(PathBuf),
    /// The checkpoint of the last look is not one.
    #[error(
        "{} is damaged ({detail}): restore it, or remove it to follow the log from its beginning (a fork before now would then not be seen)",
        .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// Nobody said where.
    #[error(
        "the policy believes this log, and gives no URL for it: add the URL to its `log` line, give --url ORIGIN=URL, or take the line out if no node's policy has it"
    )]
    NoUrl,
    /// The disk.
    #[error(transparent)]
    File(#[from] FileError),
    /// The table.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The process ends.
    #[error("the monitor was stopped in the middle")]
    Interrupted,
    /// The list of what is expected.
    #[error(transparent)]
    Expect(#[from] expect::ExpectError),
}

/// A log to follow.
pub struct Source {
    /// Its name.
    pub origin: String,
    /// Its key alone, and which witnesses.
    pub policy: Policy,
    /// Where it is, if that is known.
    pub reader: Option<Reader>,
    /// Another log of the policy may be there instead.
    pub shares_place: bool,
}

/// What is looked for, in every log.
pub struct Watched {
    /// How long the quorum may have seen nothing new.
    pub max_silence: Duration,
    /// The keys that are expected: a file, read anew at each look.
    pub expect: Option<PathBuf>,
    /// The names that are watched; all if there are none, and a list of what is expected.
    pub watch: Vec<Watch>,
}

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AlertKind {
    /// A certificate for a watched name with a key that is not expected.
    UnexpectedCertificate,
    /// An entry that says that it is a certificate, and is none.
    MalformedEntry,
    /// Two trees that do not begin alike.
    Fork,
    /// A smaller tree than before.
    Rollback,
    /// Nothing new for too long.
    Stalled,
    /// A checkpoint that the policy does not believe.
    NotWitnessed,
    /// Files that are not what the checkpoint says.
    Damaged,
    /// What is signed cannot be read.
    Blind,
    /// The list of expected keys cannot be read.
    BadExpectedKeys,
    /// There were more alerts than the webhook took.
    MoreAlerts,
}

impl AlertKind {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            AlertKind::UnexpectedCertificate => "unexpected-certificate",
            AlertKind::MalformedEntry => "malformed-entry",
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

    /// Whether it is about one entry: there may be as many as a log has entries.
    fn is_of_entry(self) -> bool {
        matches!(self, AlertKind::UnexpectedCertificate | AlertKind::MalformedEntry)
    }
}

/// An alert, as the webhook gets it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    /// What is wrong.
    pub kind: AlertKind,
    /// With which log.
    pub log: String,
    /// For people.
    pub detail: String,
    /// When it was seen (seconds since 1970).
    pub time: u64,
    /// The entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
    /// The name that the certificate is for: the first that is not expected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// All of those, or the first some.
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
