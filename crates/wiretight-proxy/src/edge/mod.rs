//! The edge: HTTPS for sites, in HTTP/1.1, HTTP/2 and HTTP/3, in front of plain programs and services of
//! the mesh.
//!
//! [`Edge`] is the control side's handle: it binds, applies changed settings, reports and drains. The work
//! is done by workers, a thread each. Certificates arrive through [`Certificates`], from whoever gets them.
//!
//! It serves nothing in the clear: the plain port answers with a redirect. What goes to a backend in the
//! clear goes to this machine only.

mod backend;
mod body;
mod certificates;
mod clients;
mod gate;
mod guard;
mod headers;
mod health;
mod hsts;
mod live;
mod log;
pub mod proxy_protocol;
mod quic;
pub mod quic_tls;
mod redirect;
mod serve;
pub mod settings;
mod sites;
pub mod strict;
mod tls;
mod worker;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};

pub use certificates::{
    ALPN_ACME, CertificateError, Certificates, Challenges, SiteCertificate, Source,
    challenge_certificate,
};
use live::EdgeTable;
pub use live::{EdgeRefused, HandshakeCount, Http, RequestCount};
use settings::{EdgeSettings, SiteName};
use sites::{Material, Sites};
pub use tls::provider;
use worker::{Listen, Shared, Socket};

use crate::mesh::{Mesh, now};
use crate::relay::live::Table;
use crate::relay::{ApplyError, Relay, net};

/// The edge of this node.
pub struct Edge {
    mesh: Arc<Mesh>,
    relay: Arc<Table>,
    table: Arc<EdgeTable>,
    certificates: Arc<Certificates>,
    sites: Arc<ArcSwap<Sites>>,
    healthy_since: BTreeMap<SiteName, u64>,
    workers: Vec<mpsc::UnboundedSender<Listen>>,
    threads: Vec<JoinHandle<()>>,
    listeners: Mutex<HashMap<(Port, SocketAddr), Listener>>,
    draining: watch::Sender<bool>,
    cut: watch::Sender<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Port {
    Https,
    Quic,
    Http,
}

struct Listener {
    stop: watch::Sender<bool>,
    /// Held by the workers, too, as long as their sockets listen.
    open: Arc<()>,
}

/// How long to wait for workers to close sockets that are no longer wanted.
const CLOSE: Duration = Duration::from_secs(1);

/// The edge as `wiretight status` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct EdgeStatus {
    /// The sites.
    pub sites: Vec<SiteStatus>,
    /// Handshakes since the start, by protocol and group.
    pub handshakes: Vec<HandshakeCount>,
    /// Refusals since the start, by reason.
    pub refused: Vec<EdgeRefused>,
    /// Connections open now.
    pub connections: u64,
    /// Accepts that failed for want of file descriptors and the like.
    pub accept_errors: u64,
}

/// A site as `wiretight status` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct SiteStatus {
    /// Its names, the first of which it is called by.
    pub names: Vec<String>,
    /// Where its requests go.
    pub to: Vec<String>,
    /// When its certificate expires, seconds since 1970; `None`: there is none.
    pub not_after: Option<u64>,
    /// How long that is from now; negative if it has.
    pub expires_in_seconds: Option<i64>,
    /// Since when it has been serving with a certificate that holds, seconds since 1970.
    pub healthy_since: Option<u64>,
    /// The backends that answer no questions about their health.
    pub down: Vec<String>,
    /// Requests since the start.
    pub requests: Vec<RequestCount>,
    /// Bytes of bodies to clients.
    pub bytes_out: u64,
    /// Bytes of bodies from clients.
    pub bytes_in: u64,
}

impl Edge {
    /// Starts the workers. Nothing is listened on until settings are applied. `healthy_since` is what an
    /// earlier run knew of its sites ([`SiteStatus::healthy_since`]).
    pub fn start(
        relay: &Relay,
        certificates: Arc<Certificates>,
        healthy_since: BTreeMap<SiteName, u64>,
        workers: usize,
    ) -> io::Result<Edge> {
        let (mesh, relay) = relay.shared();
        let sites = Arc::new(ArcSwap::from_pointee(Sites::default()));
        let configs = tls::Configs::new(&sites, mesh).map_err(io::Error::other)?;
        let quic = Arc::new(quic::Secrets::new().map_err(io::Error::other)?);
        let mut edge = Edge {
            mesh: mesh.clone(),
            relay: relay.clone(),
            table: Arc::default(),
            certificates,
            sites,
            healthy_since,
            workers: Vec::new(),
            threads: Vec::new(),
            listeners: Mutex::default(),
            draining: watch::channel(false).0,
            cut: watch::channel(false).0,
        };
        let shared = Shared {
            sites: edge.sites.clone(),
            table: edge.table.clone(),
            mesh: edge.mesh.clone(),
            configs: Arc::new(configs),
            quic,
            draining: edge.draining.subscribe(),
            cut: edge.cut.subscribe(),
        };
        for n in 0..workers.max(1) {
            let (orders, inbox) = mpsc::unbounded_channel();
            let shared = shared.clone();
            let body = move || {
                // One of them asks the backends about their health.
                if let Err(error) = worker::run(inbox, shared, n == 0) {
                    tracing::error!(%error, "a worker of the edge could not start");
                }
            };
            edge.threads.push(std::thread::Builder::new().name(format!("edge-{n}")).spawn(body)?);
            edge.workers.push(orders);
        }
        Ok(edge)
    }

    /// Puts settings into force: listens where it did not, stops where it did, and lets live connections
    /// be: their next request finds the new state. If anything cannot be done, nothing is.
    pub fn apply(&self, settings: &EdgeSettings) -> Result<(), ApplyError> {
        let mut listeners = self.listeners();
        let material = Material {
            mesh: &self.mesh,
            relay: &self.relay,
            table: &self.table,
            certificates: &self.certificates,
            healthy_since: &self.healthy_since,
        };
        let sites = Sites::new(settings, &self.sites.load(), &material)?;
        let wanted = wanted(settings);
        let mut staged = Vec::new();
        for (port, addr) in wanted.iter().filter(|key| !listeners.contains_key(key)) {
            let sockets = self.bind(*port, *addr);
            let sockets = sockets.map_err(|source| ApplyError::Bind { addr: *addr, source })?;
            staged.push(((*port, *addr), sockets));
        }
        // From here on nothing can fail.
        let mut closing = Vec::new();
        listeners.retain(|key, listener| {
            let keep = wanted.contains(key);
            if !keep {
                listener.stop.send_replace(true);
                // A QUIC socket stays as long as connections live on it.
                if key.0 != Port::Quic {
                    closing.push(listener.open.clone());
                }
            }
            keep
        });
        self.sites.store(Arc::new(sites));
        let patience = std::time::Instant::now() + CLOSE;
        while closing.iter().any(|open| Arc::strong_count(open) > 1)
            && std::time::Instant::now() < patience
        {
            std::thread::sleep(Duration::from_millis(1));
        }
        for (key, sockets) in staged {
            let listener = Listener { stop: watch::channel(false).0, open: Arc::default() };
            for (socket, worker) in sockets.into_iter().zip(&self.workers) {
                let (stop, open) = (listener.stop.subscribe(), listener.open.clone());
                let _ = worker.send(Listen { socket, stop, open }); // one that is gone was reported
            }
            listeners.insert(key, listener);
        }
        Ok(())
    }

    fn bind(&self, port: Port, addr: SocketAddr) -> io::Result<Vec<Socket>> {
        let n = self.workers.len();
        Ok(match port {
            Port::Https => net::bind(addr, n)?.into_iter().map(Socket::Https).collect(),
            Port::Http => net::bind(addr, n)?.into_iter().map(Socket::Http).collect(),
            Port::Quic => net::bind_udp(addr, n)?.into_iter().map(Socket::Quic).collect(),
        })
    }

    /// What is going on.
    pub fn status(&self) -> EdgeStatus {
        let sites = self.sites.load();
        let site = |site: &Arc<sites::Site>| {
            let names = &site.settings.names;
            let certificates = names.iter().filter_map(|n| self.certificates.get(n));
            let not_after = certificates.map(|c| c.period().not_after).min();
            SiteStatus {
                names: names.iter().map(ToString::to_string).collect(),
                to: site.settings.to.iter().map(ToString::to_string).collect(),
                not_after,
                expires_in_seconds: not_after.map(|t| t as i64 - now() as i64),
                healthy_since: site.healthy_since(),
                down: site.down().map(ToString::to_string).collect(),
                requests: site.counts.requests(),
                bytes_out: site.counts.sent.load(Relaxed),
                bytes_in: site.counts.received.load(Relaxed),
            }
        };
        EdgeStatus {
            sites: sites.all().map(site).collect(),
            handshakes: self.table.handshakes(),
            refused: self.table.refused(),
            connections: self.table.connections.load(Relaxed) as u64,
            accept_errors: self.table.accept_errors.load(Relaxed),
        }
    }

    /// Takes no more connections, and waits up to `limit` for the requests that run; then cuts those.
    /// Returns how many were cut.
    pub async fn drain(&self, limit: Duration) -> usize {
        self.draining.send_replace(true);
        let end = Instant::now() + limit;
        while self.table.busy() > 0 && Instant::now() < end {
            sleep(Duration::from_millis(20)).await;
        }
        let cut = self.table.busy();
        self.cut.send_replace(true);
        for _ in 0..50 {
            if self.table.busy() == 0 {
                break;
            }
            sleep(Duration::from_millis(10)).await;
        }
        cut
    }

    fn listeners(&self) -> MutexGuard<'_, HashMap<(Port, SocketAddr), Listener>> {
        self.listeners.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Where settings want something to be listened for. Without a site, nowhere.
fn wanted(settings: &EdgeSettings) -> HashSet<(Port, SocketAddr)> {
    if settings.sites.is_empty() {
        return HashSet::new();
    }
    let https = settings.https.iter().map(|a| (Port::Https, *a));
    let quic = settings.https.iter().filter(|_| settings.http3).map(|a| (Port::Quic, *a));
    let http = settings.http.iter().map(|a| (Port::Http, *a));
    https.chain(quic).chain(http).collect()
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.draining.send_replace(true);
        self.cut.send_replace(true);
        self.workers.clear();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
