//! The traffic of this machine: which connections there are, what of them is encrypted, how well, and whose they are.
//! Started by `[watch]`. Nothing here drops, delays or changes a packet.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use wiretight_proxy::intercept::listing::Program;
use wiretight_scan::judge::Level;
use wiretight_scan::passive::totals::{Count, Gaps, Totals, Way};
use wiretight_scan::passive::{Seen, Transport};

/// All connections between a client and a server that are the same in direction, protocol, level and program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    pub way: Way,
    pub transport: Transport,
    pub client: IpAddr,
    /// As the client addressed it. The port is 0 if the transport has none.
    pub server: SocketAddr,
    /// The program on this machine; `None` if it is not known, or elsewhere. For a connection within this machine it is
    /// the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<Program>,
    /// Connections since the node started to watch, and how many of them are open.
    pub connections: u64,
    pub open: u64,
    /// Packets and bytes of IP, from the client and from the server.
    pub packets: [u64; 2],
    pub bytes: [u64; 2],
    pub first: jiff::Timestamp,
    pub last: jiff::Timestamp,
    /// What was seen of the newest connection.
    #[serde(flatten)]
    pub seen: Seen,
}

/// The state of watching, and what it has found, in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchStatus {
    /// Since when, in seconds since 1970; `None` if it has not started.
    pub since: Option<u64>,
    /// Open connections.
    pub open: u64,
    /// What crossed a network since then, by level. `unknown` includes what was missed.
    pub levels: BTreeMap<Level, Count>,
    pub gaps: Gaps,
    /// Totals of hours that the authority does not have yet.
    pub unsent_hours: usize,
    /// Why nothing, or not everything, is seen.
    pub problems: Vec<String>,
}

/// What the node knows now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    pub status: WatchStatus,
    /// Since `status.since`.
    pub totals: Totals,
    /// Those with the most bytes first.
    pub rows: Vec<Row>,
    /// Rows that fit the request and are not in `rows`.
    pub left_out: u64,
    /// Rows that were forgotten because there were too many; they are in `totals`.
    pub forgotten: u64,
}
