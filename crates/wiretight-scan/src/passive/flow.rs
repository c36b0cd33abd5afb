//! The table of flows: counts every packet, keeps the first bytes of each direction in order, and asks
//! [`look`](super::look) what they are. Bounded whatever arrives.

use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::packets::LinkType;
use super::{Seen, Transport};

/// A flow. Two directions with the same addresses and ports are one flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub transport: Transport,
    /// The port is 0 if the transport has none.
    pub client: SocketAddr,
    pub server: SocketAddr,
    /// When the first and the last packet were captured.
    pub first: jiff::Timestamp,
    pub last: jiff::Timestamp,
    /// From the client, and from the server.
    pub packets: [u64; 2],
    /// Bytes of IP packets, with their headers, as the header says them (a capture may be cut).
    pub bytes: [u64; 2],
    /// Whether its beginning was captured.
    pub whole: bool,
    #[serde(flatten)]
    pub seen: Arc<Seen>,
}

/// The bounds of a [`Table`].
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Flows at a time. When it is full, the flow that was idle longest ends.
    pub flows: usize,
    /// Flows that are not decided yet, whose first bytes are kept.
    pub undecided: usize,
    /// Of every so many new flows, one is looked at (1: all); chosen by a hash of addresses and ports, and counted as
    /// `unknown` otherwise.
    pub sample: u32,
}

/// What was not attributed to a flow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missed {
    /// Frames that are not IP (ARP, LLDP).
    pub not_ip: u64,
    /// Malformed or truncated frames.
    pub malformed: u64,
    /// Exact copies of the packet before (a mirror of both ports of a path).
    pub duplicates: u64,
    /// Bytes of IP packets among `malformed`, as far as their header could be read.
    pub bytes: u64,
}

#[derive(Debug)]
pub struct Table {
    limits: Limits,
}

impl Table {
    pub fn new(limits: Limits) -> Self {
        Self { limits }
    }

    /// Adds a captured frame. `length` is its length on the wire, which is more than `captured` if it was cut.
    pub fn frame(&mut self, link: LinkType, at: jiff::Timestamp, captured: &[u8], length: usize) {
        let _ = (link, at, captured, length, self.limits);
    }

    /// Ends flows that are closed or were idle too long at this time.
    pub fn expire(&mut self, now: jiff::Timestamp) {
        let _ = now;
    }

    /// The flows that have ended since the last call.
    pub fn ended(&mut self) -> Vec<Record> {
        Vec::new()
    }

    /// All current flows, as they are now.
    pub fn current(&self) -> impl Iterator<Item = Record> {
        std::iter::empty()
    }

    /// Ends all flows: the capture is over.
    pub fn finish(&mut self) -> Vec<Record> {
        Vec::new()
    }

    pub fn missed(&self) -> Missed {
        Missed::default()
    }
}
