//! Scans which encryption an endpoint offers, and judges it.
//!
//! A scan sends its own ClientHellos, from SSL 2.0 to TLS 1.3 and QUIC, because no TLS library
//! supports everything that a server may accept. Each result is a [fact](facts) with its evidence;
//! "inconclusive" is one of the answers. The facts are [judged](judge) by tables that cite standards,
//! and [reported](report) to people, programs and auditors.
//!
//! - [`names`]: the TLS registries;
//! - [`parse`]: encoding and decoding without I/O, safe against hostile input;
//! - [`active`]: the probes;
//! - [`passive`]: flows, from captured packets;
//! - [`certificate`]: checks of certificate chains;
//! - [`judge`]: levels and profiles;
//! - [`report`]: table, JSON, SARIF, CBOM, HTML.

pub mod active;
pub mod certificate;
pub mod facts;
pub mod invariant;
pub mod judge;
pub mod names;
pub mod parse;
pub mod passive;
pub mod report;
mod target;

pub use facts::Reached;
pub use target::{Host, Start, Target, TargetError};

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The result of scanning one address.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The target as given: `smtp://mail.example:25`.
    pub target: Target,
    /// The scanned address; a name with several addresses has a report for each.
    pub address: Option<IpAddr>,
    /// When the scan started, in UTC.
    pub started: jiff::Timestamp,
    /// The duration of the scan.
    pub seconds: f64,
    /// The number of TCP connections.
    pub connections: u64,
    /// How far the scan got.
    pub reached: Reached,
    /// What was found.
    pub facts: facts::Facts,
    /// Everything that the server chose in its ServerHellos. No fact contradicts it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub observed: Vec<Chosen>,
    /// The certificate chains that the server sent, each once.
    pub chains: Vec<certificate::Chain>,
    /// The level and the profiles.
    pub judgement: Arc<judge::Judgement>,
}

/// A version and cipher suite that the server chose.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Chosen {
    pub version: names::Version,
    pub suite: String,
    /// In how many ServerHellos.
    pub times: u64,
}
