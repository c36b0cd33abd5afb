//! The part of the log that proves claims: the file log.json of the public folder and of the auditor's archive.

use serde::{Deserialize, Serialize};
use wiretight_keys::claims::MeshPeriod;
use wiretight_tlog::Policy;

use super::facts::LoggedPeriod;
use crate::log::prove::Proven;

/// The version of the format.
const VERSION: u8 = 1;

/// Periods of the log, and their proofs to one checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogPart {
    pub version: u8,
    /// The signed checkpoint, with cosignatures.
    pub checkpoint: String,
    /// The authority's policy (C2SP tlog-policy).
    pub policy: String,
    /// By start, then length.
    pub periods: Vec<ProvedPeriod>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProvedPeriod {
    pub index: u64,
    /// The body of the entry, without its type.
    pub entry: String,
    /// The inclusion proof, in base64.
    pub proof: Vec<String>,
}

impl LogPart {
    /// `proven` has the proofs of `periods`, in their order.
    pub fn new(periods: &[LoggedPeriod], proven: &Proven, policy: &Policy) -> Self {
        let proved = periods.iter().zip(&proven.inclusion).map(|(logged, proof)| ProvedPeriod {
            index: logged.index,
            entry: body(&logged.period.entry()),
            proof: proof.iter().map(ToString::to_string).collect(),
        });
        Self {
            version: VERSION,
            checkpoint: proven.checkpoint.to_string(),
            policy: policy.to_string(),
            periods: proved.collect(),
        }
    }

    /// The periods, without any verification.
    pub(super) fn parsed(&self) -> Result<Vec<LoggedPeriod>, String> {
        let parsed = self.periods.iter().map(|p| {
            let period = MeshPeriod::parse(p.entry.as_bytes());
            let period = period.map_err(|e| format!("entry {} of the log: {e}", p.index))?;
            Ok(LoggedPeriod { index: p.index, period })
        });
        parsed.collect()
    }
}

/// The body of a log entry, which is JSON, without its type.
pub(super) fn body(entry: &[u8]) -> String {
    String::from_utf8_lossy(entry.get(2..).unwrap_or_default()).into_owned()
}
