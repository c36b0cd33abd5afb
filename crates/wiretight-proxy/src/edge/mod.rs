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
mod claims;
mod client_ca;
mod clients;
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
mod workshop;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};

pub use certificates::{
    ALPN_ACME, CertificateError, Certificates, Challenges, Demand, SiteCertificate, Source,
    challenge_certificate,
};
use live::EdgeTable;
pub use live::{EdgeRefused, HandshakeCount, Http, RequestCount};
use settings::{EdgeSettings, SiteName};
use sites::{Material, Sites};
use worker::{Listen, Socket};
use workshop::Shared;

use crate::clock::now;
use crate::mesh::Mesh;
use crate::net::{self, Listening, Sockets};
use crate::relay::live::Table;
use crate::relay::{ApplyError, Relay};

/// So long may clients whose connections are idle take their leave at the end of a drain.
const FAREWELL: Duration = Duration::from_secs(1);

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

struct Listener {
    /// To be passed on; the workers have handles of their own.
    sockets: Vec<TcpListener>,
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
    /// How many hosts have certificates, of a site that gets them on demand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hosts: Option<usize>,
    /// When its certificate expires, the first of them, seconds since 1970; `None`: there is none.
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
        let (mesh, relay, sockets) = relay.shared();
        let sites = Arc::new(ArcSwap::from_pointee(Sites::default()));
        let configs = tls::Configs::new(&sites, mesh).map_err(io::Error::other)?;
        let quic = Arc::new(quic_tls::Secrets::new().map_err(io::Error::other)?);
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
            sockets: sockets.clone(),
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
            match self.bind(*port, *addr) {
                Ok(sockets) => staged.push(((*port, *addr), sockets)),
                // The process before this one has connections on it still: until they have ended, clients come
                // over TCP.
                Err(e) if *port == Port::Quic && self.sockets.takes_over() && in_use(&e) => {}
                Err(source) => return Err(ApplyError::Bind { addr: *addr, source }),
            }
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
        for (key, (sockets, handles)) in staged {
            let listener =
                Listener { sockets, stop: watch::channel(false).0, open: Arc::default() };
            for (socket, worker) in handles.into_iter().zip(self.workers.iter().cycle()) {
                let (stop, open) = (listener.stop.subscribe(), listener.open.clone());
                let _ = worker.send(Listen { socket, stop, open }); // one that is gone was reported
            }
            listeners.insert(key, listener);
        }
        Ok(())
    }

    /// Sockets, and a handle of them for each worker.
    fn bind(&self, port: Port, addr: SocketAddr) -> io::Result<(Vec<TcpListener>, Vec<Socket>)> {
        let n = self.workers.len();
        let sockets = match port {
            Port::Https => self.sockets.bind(addr, n)?,
            // It redirects, in the clear.
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

    /// Whether there is something to listen on that was not free when the settings were applied: the UDP ports of
    /// the process before this one. To be applied again.
    pub fn is_incomplete(&self) -> bool {
        let listeners = self.listeners();
        wanted(&self.sites.load().settings).iter().any(|key| !listeners.contains_key(key))
    }

    /// What is listened on for TCP, to be passed on to the next process.
    pub fn listening(&self) -> io::Result<Listening> {
        let listeners = self.listeners();
        let tcp = listeners.iter().filter(|((port, _), _)| *port != Port::Quic);
        let cloned = |((_, addr), listener): (&(Port, SocketAddr), &Listener)| {
            let sockets = listener.sockets.iter().map(TcpListener::try_clone);
            Ok((*addr, sockets.collect::<io::Result<_>>()?))
        };
        tcp.map(cloned).collect()
    }

    /// What is going on.
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
            let not_after = certificates.iter().map(|c| c.period().not_after).min();
            SiteStatus {
                names: names.iter().map(ToString::to_string).collect(),
                to: site.settings.to.iter().map(ToString::to_string).collect(),
                hosts: on_demand.then_some(certificates.len()),
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

    /// Takes no more connections, and waits up to `limit` for the requests that run; then cuts those. Clients whose
    /// connections are idle have a second to take their leave.
    /// Returns how many were cut.
    pub async fn drain(&self, limit: Duration) -> usize {
        self.draining.send_replace(true);
        let end = Instant::now() + limit;
        let workers = {
            let mut listeners = self.listeners();
            listeners.values_mut().for_each(|listener| listener.sockets.clear());
            let tcp = listeners.iter().filter(|((port, _), _)| *port != Port::Quic);
            tcp.map(|(_, listener)| listener.open.clone()).collect::<Vec<_>>()
        };
        // Whoever was accepted last counts, too.
        net::closed(&workers).await;
        // Where nothing runs, a request or the end of an answer may still be on its way: the client is to have said
        // that it knows of the end.
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

fn in_use(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrInUse
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
