//! The edge: HTTPS for sites, with HTTP/1.1, HTTP/2 and HTTP/3, in front of plaintext programs and services of the
//! mesh.
//!
//! [`Edge`] is the interface for the control side: it listens, applies changed settings, reports and drains. The work
//! is done by workers, one thread each. Other parts provide certificates through [`Certificates`].
//!
//! It serves no content in plaintext: the plaintext port only redirects. Plaintext connections to backends stay on
//! this machine.

mod backend;
mod body;
mod certificates;
mod claims;
mod client_ca;
mod clients;
mod context;
mod gate;
mod guard;
mod headers;
mod health;
mod hints;
mod hsts;
mod http2;
mod http2_body;
mod kept;
mod live;
mod log;
pub mod proxy_protocol;
pub mod pseudo;
mod quic;
mod quic_body;
pub mod quic_tls;
mod received;
mod redirect;
mod reply;
mod serve;
pub mod settings;
mod sites;
pub mod strict;
mod template;
mod tls;
mod worker;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

pub use certificates::{
    ALPN_ACME, CertificateError, Certificates, Challenges, Demand, SiteCertificate, Source,
    challenge_certificate,
};
use context::Shared;
use live::EdgeTable;
pub use live::{EdgeRefused, HandshakeCount, HandshakeLatency, Http, RequestCount, SiteLatency};
use settings::{EdgeSettings, SiteName};
use sites::{Material, Sites};
use worker::Socket;

use crate::clock::now;
use crate::listeners::{self, Listener, Workers};
use crate::mesh::Mesh;
use crate::net::{self, Listening, Sockets};
use crate::relay::live::Table;
use crate::relay::{ApplyError, Relay};

/// How long clients with idle connections may take to close them at the end of a drain.
const FAREWELL: Duration = Duration::from_secs(1);

/// The edge of this node.
pub struct Edge {
    mesh: Arc<Mesh>,
    relay: Arc<Table>,
    table: Arc<EdgeTable>,
    certificates: Arc<Certificates>,
    sites: Arc<ArcSwap<Sites>>,
    healthy_since: BTreeMap<SiteName, u64>,
    workers: Workers<Socket>,
    listeners: Mutex<HashMap<(Port, SocketAddr), Listener>>,
    sockets: Arc<Sockets>,
    draining: watch::Sender<bool>,
    cut: watch::Sender<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Port {
    Https,
    Quic,
    Http,
}

/// The edge in the output of `wiretight status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EdgeStatus {
    pub sites: Vec<SiteStatus>,
    /// Handshakes since the start, by protocol and group.
    pub handshakes: Vec<HandshakeCount>,
    /// Refusals since the start, by reason.
    pub refused: Vec<EdgeRefused>,
    pub connections: u64,
    /// Failed accepts, mostly for lack of file descriptors.
    pub accept_errors: u64,
}

/// A site in the output of `wiretight status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SiteStatus {
    /// Its names; the first is its title.
    pub names: Vec<String>,
    /// Its backends.
    pub to: Vec<String>,
    /// The number of hosts with certificates, for a site that gets them on demand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hosts: Option<usize>,
    /// Since when the certificate is valid that expires first, in seconds since 1970; `None` if it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<u64>,
    /// When it expires.
    pub not_after: Option<u64>,
    /// Seconds until then; negative if it has expired.
    pub expires_in_seconds: Option<i64>,
    /// Since when it has been serving with a valid certificate, in seconds since 1970.
    pub healthy_since: Option<u64>,
    /// The backends that fail active health checks.
    pub down: Vec<String>,
    /// Requests since the start.
    pub requests: Vec<RequestCount>,
    /// Bytes of bodies sent to clients.
    pub bytes_out: u64,
    /// Bytes of bodies received from clients.
    pub bytes_in: u64,
}

impl Edge {
    /// Starts the workers. They listen on nothing until settings are applied. `healthy_since` is from an earlier run
    /// ([`SiteStatus::healthy_since`]).
    pub fn start(
        relay: &Relay,
        certificates: Arc<Certificates>,
        healthy_since: BTreeMap<SiteName, u64>,
        workers: usize,
    ) -> io::Result<Edge> {
        let (mesh, relay, sockets) = relay.shared();
        let sites = Arc::new(ArcSwap::from_pointee(Sites::default()));
        let configs = tls::Configs::new(&sites, mesh).map_err(io::Error::other)?;
        let quic = Arc::new(quic_tls::Secrets::new().map_err(io::Error::other)?);
        let (draining, cut) = (watch::channel(false).0, watch::channel(false).0);
        let shared = Shared {
            sites: sites.clone(),
            table: Arc::default(),
            mesh: mesh.clone(),
            configs: Arc::new(configs),
            quic,
            draining: draining.subscribe(),
            cut: cut.subscribe(),
        };
        let workers = Workers::start("edge", workers, |n| {
            let shared = shared.clone();
            move |orders| {
                // One worker runs the health checks of backends.
                if let Err(error) = worker::run(orders, shared, n == 0) {
                    tracing::error!(%error, "an edge worker could not start");
                }
            }
        })?;
        Ok(Edge {
            mesh: mesh.clone(),
            relay: relay.clone(),
            table: shared.table,
            certificates,
            sites,
            healthy_since,
            workers,
            listeners: Mutex::default(),
            sockets: sockets.clone(),
            draining,
            cut,
        })
    }

    /// Applies settings: starts and stops listeners as needed, and leaves live connections alone; their next request
    /// uses the new settings. If any part fails, nothing is changed.
    pub fn apply(&self, settings: &EdgeSettings) -> Result<(), ApplyError> {
        let mut listeners = self.listeners.lock();
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
            match self.bind(*port, *addr) {
                Ok(sockets) => staged.push(((*port, *addr), sockets)),
                // The previous process still has QUIC connections on this port. Until they have ended, clients use
                // TCP.
                Err(e) if *port == Port::Quic && self.sockets.takes_over() && in_use(&e) => {}
                Err(source) => return Err(ApplyError::Bind { addr: *addr, source }),
            }
        }
        // Nothing can fail from here on.
        self.sites.store(Arc::new(sites));
        let unwanted: HashMap<_, _> =
            listeners.extract_if(|key, _| !wanted.contains(key)).collect();
        unwanted.values().for_each(Listener::stop);
        // A QUIC socket stays open as long as it has connections.
        let tcp = unwanted.into_iter().filter(|((port, _), _)| *port != Port::Quic);
        listeners::close(tcp.map(|(_, listener)| listener));
        for (key, (sockets, handles)) in staged {
            let listener = Listener::new(sockets);
            self.workers.listen(&listener, handles);
            listeners.insert(key, listener);
        }
        Ok(())
    }

    /// Opens sockets, with a handle for each worker.
    fn bind(&self, port: Port, addr: SocketAddr) -> io::Result<(Vec<TcpListener>, Vec<Socket>)> {
        let n = self.workers.count();
        let sockets = match port {
            Port::Https => self.sockets.bind(addr, n)?,
            // This port only redirects, in plaintext.
            Port::Http => self.sockets.bind_plain(addr, n)?,
            Port::Quic => {
                let sockets = net::bind_udp(addr, n)?.into_iter().map(Socket::Quic);
                return Ok((Vec::new(), sockets.collect()));
            }
        };
        let socket = if port == Port::Https { Socket::Https } else { Socket::Http };
        let handles = net::spread(&sockets, n)?.into_iter().map(socket).collect();
        Ok((sockets, handles))
    }

    /// Whether an address could not be listened on when the settings were applied: a UDP port that the previous
    /// process still uses. If so, apply the settings again later.
    pub fn is_incomplete(&self) -> bool {
        let listeners = self.listeners.lock();
        wanted(&self.sites.load().settings).iter().any(|key| !listeners.contains_key(key))
    }

    /// The listening TCP sockets, for the next process at a takeover.
    pub fn listening(&self) -> io::Result<Listening> {
        let listeners = self.listeners.lock();
        let tcp = listeners.iter().filter(|((port, _), _)| *port != Port::Quic);
        tcp.map(|((_, addr), listener)| Ok((*addr, listener.sockets()?))).collect()
    }

    pub fn status(&self) -> EdgeStatus {
        let sites = self.sites.load();
        let site = |site: &Arc<sites::Site>| {
            let names = &site.settings.names;
            let on_demand = site.settings.on_demand;
            let certificates: Vec<_> = match on_demand {
                true => {
                    let all = self.certificates.all();
                    let own = |host: &SiteName| {
                        sites.find(host.as_str()).is_some_and(|(_, s)| Arc::ptr_eq(s, site))
                    };
                    all.iter().filter(|(host, _)| own(host)).map(|(_, c)| c.clone()).collect()
                }
                false => names.iter().filter_map(|n| self.certificates.get(n.as_str())).collect(),
            };
            let first = certificates.iter().map(|c| c.period()).min_by_key(|p| p.not_after);
            let not_after = first.map(|period| period.not_after);
            SiteStatus {
                names: names.iter().map(ToString::to_string).collect(),
                to: site.settings.to.iter().map(ToString::to_string).collect(),
                hosts: on_demand.then_some(certificates.len()),
                not_before: first.map(|period| period.not_before),
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

    /// How long requests and handshakes took.
    pub fn latencies(&self) -> (Vec<SiteLatency>, Vec<HandshakeLatency>) {
        let sites = self.sites.load();
        let site = |site: &Arc<sites::Site>| SiteLatency {
            site: site.settings.names.first().map(ToString::to_string).unwrap_or_default(),
            latency: site.counts.duration.read(),
        };
        (sites.all().map(site).collect(), self.table.handshake_times())
    }

    /// Stops accepting connections, and waits up to `limit` for running requests; then closes those. Clients with
    /// idle connections have a second to close them. Returns how many requests were cut.
    pub async fn drain(&self, limit: Duration) -> usize {
        self.draining.send_replace(true);
        let end = Instant::now() + limit;
        let open: Vec<_> = {
            let mut listeners = self.listeners.lock();
            let tcp = listeners.iter_mut().filter(|((port, _), _)| *port != Port::Quic);
            tcp.map(|(_, listener)| listener.release()).collect()
        };
        // Connections accepted last must be counted too.
        listeners::closed(&open).await;
        // Even if nothing is running, a request or the end of a response may be in transit, so wait until the client
        // has acknowledged the end of the connection.
        let mut rests = None;
        while Instant::now() < end {
            let table = &self.table;
            match (table.busy(), table.connections.load(Relaxed)) {
                (0, 0) => break,
                (0, _) if rests.get_or_insert_with(Instant::now).elapsed() > FAREWELL => break,
                (0, _) => {}
                _ => rests = None,
            }
            sleep(Duration::from_millis(20)).await;
        }
        let cut = self.table.busy();
        self.cut.send_replace(true);
        listeners::settled(|| self.table.busy()).await;
        cut
    }
}

fn in_use(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrInUse
}

/// The addresses to listen on; none without sites.
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
        // The field `workers` waits for the threads.
    }
}
