//! What an endpoint offers, by asking it, and what that is worth.
//!
//! A scan makes its own ClientHellos, from SSL 2.0 to TLS 1.3 and QUIC, and reads what comes back:
//! no TLS library speaks all that a server may, and none says what it would have refused. Every
//! answer is a [fact](facts) with its evidence; "I could not tell" is one of the answers. The facts
//! are then [judged](judge) by tables that cite their standard, and [written](report) for people,
//! programs and auditors.
//!
//! - [`names`]: the registries of TLS;
//! - [`parse`]: bytes to types and back, without I/O: all that a hostile server can send;
//! - [`active`]: the probes;
//! - [`certificate`]: what chains say, and whether they lead where they should;
//! - [`judge`]: levels and profiles;
//! - [`report`]: table, JSON, SARIF, CBOM, HTML.

pub mod active;
pub mod certificate;
pub mod facts;
pub mod invariant;
pub mod judge;
pub mod names;
pub mod parse;
pub mod report;
mod target;

pub use facts::Reached;
pub use target::{Host, Start, Target, TargetError};

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// All that a scan of one address tells.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// As it was given: `smtp://mail.example:25`.
    pub target: Target,
    /// The address that was scanned; a name with several has a report for each.
    pub address: Option<IpAddr>,
    /// When the scan began, in UTC.
    pub started: jiff::Timestamp,
    /// How long it took.
    pub seconds: f64,
    /// TCP connections that it made.
    pub connections: u64,
    /// Whether there was anything to ask.
    pub reached: Reached,
    /// What was found.
    pub facts: facts::Facts,
    /// What the server chose in all hellos, whatever they were for: no fact says otherwise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub observed: Vec<Chosen>,
    /// The certificate chains that were shown, each once.
    pub chains: Vec<certificate::Chain>,
    /// What that is worth.
    pub judgement: Arc<judge::Judgement>,
}

/// What a server chose.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Chosen {
    /// The version.
    pub version: names::Version,
    /// The cipher suite.
    pub suite: String,
    /// In how many answers.
    pub times: u64,
}
