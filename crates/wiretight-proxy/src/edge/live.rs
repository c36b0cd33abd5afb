//! The edge's counters and refusals. Written by the workers, read by `status` and the metrics.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use hyper::StatusCode;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::settings::SiteName;
use crate::clock::now;
use crate::latency::{Histogram, Latency};
use crate::quota::LogQuota;
use crate::reason::Reason;

/// The client's HTTP version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Http {
    /// HTTP/1.1 or 1.0.
    #[serde(rename = "http/1.1")]
    H1,
    #[serde(rename = "h2")]
    H2,
    #[serde(rename = "h3")]
    H3,
}

impl Http {
    const ALL: [Http; 3] = [Http::H1, Http::H2, Http::H3];

    /// The ALPN name.
    pub fn word(self) -> &'static str {
        match self {
            Http::H1 => "http/1.1",
            Http::H2 => "h2",
            Http::H3 => "h3",
        }
    }
}

/// The totals of a site since the start.
#[derive(Default)]
pub(crate) struct SiteCounts {
    /// By protocol, then by the first digit of the status; 0 for requests without a status.
    requests: [[AtomicU64; 6]; 3],
    pub(crate) sent: AtomicU64,
    pub(crate) received: AtomicU64,
    /// From the request head to the end of the response. Upgraded connections are not counted.
    pub(crate) duration: Histogram,
}

impl SiteCounts {
    pub(crate) fn answered(&self, http: Http, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100).min(5);
        self.requests[http as usize][class].fetch_add(1, Relaxed);
    }

    pub(crate) fn requests(&self) -> Vec<RequestCount> {
        let mut all = Vec::new();
        for http in Http::ALL {
            for (class, count) in self.requests[http as usize].iter().enumerate() {
                let count = count.load(Relaxed);
                if count > 0 {
                    all.push(RequestCount { http, class: class as u16, count });
                }
            }
        }
        all
    }
}

/// The number of requests to a site with the same protocol and status class.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RequestCount {
    /// The client's HTTP version.
    pub http: Http,
    /// The first digit of the status.
    pub class: u16,
    pub count: u64,
}

/// The number of handshakes with the same parameters.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HandshakeCount {
    /// The TLS version, or QUIC.
    pub protocol: String,
    pub group: String,
    pub count: u64,
}

/// How long the handshakes with the same parameters took, for the metrics.
#[derive(Debug, Clone)]
pub struct HandshakeLatency {
    /// The TLS version, or QUIC.
    pub protocol: String,
    pub group: String,
    pub latency: Latency,
}

/// How long the requests to a site took, from the request head to the end of the response, for the metrics. Upgraded
/// connections (WebSocket) are not counted.
#[derive(Debug, Clone)]
pub struct SiteLatency {
    /// The site's first name.
    pub site: String,
    pub latency: Latency,
}

/// The number of connections and requests refused for one reason.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EdgeRefused {
    pub reason: Reason,
    pub count: u64,
}

/// All counters and refusals.
#[derive(Default)]
pub(crate) struct EdgeTable {
    sites: Mutex<BTreeMap<SiteName, Arc<SiteCounts>>>,
    handshakes: Mutex<BTreeMap<(String, String), Histogram>>,
    refused: Mutex<Refused>,
    pub(crate) connections: AtomicUsize,
    busy: AtomicUsize,
    pub(crate) accept_errors: AtomicU64,
}

#[derive(Default)]
struct Refused {
    counts: BTreeMap<Reason, u64>,
    quota: LogQuota,
}

/// A request or an upgraded connection in progress, until dropped.
pub(crate) struct Busy(Arc<EdgeTable>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Relaxed);
    }
}

impl EdgeTable {
    pub(crate) fn counts(&self, title: &SiteName) -> Arc<SiteCounts> {
        self.sites.lock().entry(title.clone()).or_default().clone()
    }

    pub(crate) fn begin(self: &Arc<EdgeTable>) -> Busy {
        self.busy.fetch_add(1, Relaxed);
        Busy(self.clone())
    }

    pub(crate) fn busy(&self) -> usize {
        self.busy.load(Relaxed)
    }

    pub(crate) fn count_handshake(&self, protocol: String, group: String, took: Duration) {
        self.handshakes.lock().entry((protocol, group)).or_default().observe(took);
    }

    pub(crate) fn handshakes(&self) -> Vec<HandshakeCount> {
        let all = self.handshakes.lock();
        let count = |((protocol, group), times): (&(String, String), &Histogram)| HandshakeCount {
            protocol: protocol.clone(),
            group: group.clone(),
            count: times.read().count(),
        };
        all.iter().map(count).collect()
    }

    pub(crate) fn handshake_times(&self) -> Vec<HandshakeLatency> {
        let all = self.handshakes.lock();
        let latency = |((protocol, group), times): (&(String, String), &Histogram)| {
            let (protocol, group, latency) = (protocol.clone(), group.clone(), times.read());
            HandshakeLatency { protocol, group, latency }
        };
        all.iter().map(latency).collect()
    }

    /// Counts a refusal, and logs it unless there are too many at the moment.
    pub(crate) fn refuse(&self, address: impl ToString, reason: Reason, detail: impl ToString) {
        let mut refused = self.refused.lock();
        *refused.counts.entry(reason).or_default() += 1;
        if refused.quota.allows(now()) {
            let (address, detail) = (address.to_string(), detail.to_string());
            tracing::warn!(side = "edge", %address, reason = reason.word(), detail, "refused");
        }
    }

    pub(crate) fn refused(&self) -> Vec<EdgeRefused> {
        let refused = self.refused.lock();
        refused
            .counts
            .iter()
            .map(|(reason, count)| EdgeRefused { reason: *reason, count: *count })
            .collect()
    }
}

/// A connection, counted until dropped.
pub(crate) struct Counted(Arc<EdgeTable>);

impl Counted {
    pub(crate) fn new(table: &Arc<EdgeTable>) -> Counted {
        table.connections.fetch_add(1, Relaxed);
        Counted(table.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Relaxed);
    }
}
