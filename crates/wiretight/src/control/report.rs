//! What a node tells the authority about itself. It is the node's own word: shown with its name, and nothing is allowed or
//! refused by it. Each part is bounded, and readable without the others.

use serde::{Deserialize, Serialize};
use wiretight_proxy::intercept::rules::Mode;
use wiretight_scan::passive::summary::Row;

use super::Records;

/// The most exceptions and rows in a report; the node sends the ones that matter most.
pub const MAX_EXCEPTIONS: usize = 64;
pub const MAX_ROWS: usize = 128;
/// The longest text in a report, in bytes.
pub const MAX_TEXT: usize = 256;
/// The largest report, in bytes of JSON.
pub const MAX_REPORT: usize = 64 << 10;

/// A node's report. It replaces the one before.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeReport {
    /// The version of the program, such as `0.1.0`.
    pub version: String,
    /// The mode of interception in force; `None` without rules.
    #[serde(default)]
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

/// `[[exception]]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    pub reason: String,
    pub owner: String,
    /// The last second for which it counts, in seconds since 1970.
    pub until: u64,
}
