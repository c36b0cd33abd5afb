//! The facts: what is claimed, of which time, and how it is known.

use serde::{Deserialize, Serialize};
use wiretight_keys::claims::MeshPeriod;
use wiretight_keys::{Name, TrustDomain};

use crate::authority::CaStatus;
use crate::control::report::NodeReport;

/// What is known of the mesh at a time. [`collect`](crate::proof) makes it.
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

/// A period, and where it is in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoggedPeriod {
    /// The index of its entry.
    pub index: u64,
    pub period: MeshPeriod,
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
    pub report: Option<NodeReport>,
    pub reported_at: Option<u64>,
    /// The last hour whose totals it sent.
    pub last_hour: Option<u64>,
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
