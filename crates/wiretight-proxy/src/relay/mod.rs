//! The relay: mutual TLS 1.3 for unmodified TCP programs.
//!
//! [`Relay`] is the interface for the control side: it listens, applies changed settings, reports and drains. The
//! work is done by workers, one thread each; their only view of the mesh is [`Mesh`].
//!
//! No session data is sent unencrypted: a session starts only after the peer was verified and allowed.

pub(crate) mod balance;
pub(crate) mod dial;
mod intercept;
pub(crate) mod live;
mod log;
pub(crate) mod proxy_protocol;
mod purpose;
mod service;
mod session;
pub mod settings;
mod turns;
pub(crate) mod worker;

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use wiretight_keys::{Name, VerifiedPeer};

use dial::Dial;
use intercept::Intercept;
use live::Table;
pub use live::{Connection, PeerSum, Refusal, RelayLatency, Side, Sums};

use purpose::{Purpose, Service};
use settings::{DialSettings, InterceptSettings, RelaySettings, ServiceSettings};
use worker::Socket;

use crate::listeners::{self, Listener, Workers};
use crate::mesh::Mesh;
use crate::net::{self, Listening, Sockets};
use crate::reason::Reason;

/// The relay of this node.
pub struct Relay {
    mesh: Arc<Mesh>,
    table: Arc<Table>,
    workers: Workers<Socket>,
    listeners: Mutex<HashMap<SocketAddr, Bound>>,
    sockets: Arc<Sockets>,
    draining: watch::Sender<bool>,
}

/// An address that the workers listen on.
struct Bound {
    listener: Listener,
    purpose: Arc<ArcSwap<Purpose>>,
}

/// The purpose of a listener, from the settings.
#[derive(Clone, Copy)]
enum Wanted<'a> {
    Service(&'a ServiceSettings),
    Dial(&'a DialSettings),
    Intercept(&'a InterceptSettings),
}

/// All addresses to listen on.
fn wanted(settings: &RelaySettings) -> impl Iterator<Item = (SocketAddr, Wanted<'_>)> {
    let services = settings.services.iter().map(|s| (s.listen, Wanted::Service(s)));
    let dials = settings.dials.iter().map(|d| (d.listen, Wanted::Dial(d)));
    let taken = settings.intercept.iter().flat_map(|i| {
        let here = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        here.map(|ip| (SocketAddr::new(ip, i.port), Wanted::Intercept(i)))
    });
    services.chain(dials).chain(taken)
}

/// Whether a peer that was verified earlier is still trusted. If not, no session may start or continue. (Expiry is
/// checked separately: a session may outlive the certificate from its handshake.)
fn is_trusted(mesh: &Mesh, peer: &VerifiedPeer) -> bool {
    mesh.stands_by(peer)
}

/// Why settings could not be applied. In that case nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Listening on an address failed.
    #[error("cannot listen on {addr}: {source}{}", advice(.source))]
    Bind { addr: SocketAddr, source: io::Error },
    /// The client CA file of a site is invalid.
    #[error("{}: {detail}; `client_ca` must be a PEM file of certificates", path.display())]
    ClientCa { path: std::path::PathBuf, detail: String },
    /// A dial would accept plaintext from other machines.
    #[error(
        "the dial of service/{service} cannot listen on {addr}: it is not a loopback address, and plaintext must \
         not leave this machine; listen on 127.0.0.1 or [::1]"
    )]
    NotLoopback {
        addr: SocketAddr,
        /// The service of the dial.
        service: Name,
    },
    /// A port would be bound to all addresses and also to one of them, or would change from one to the other.
    #[error(
        "cannot listen on {addr}: this node already listens on {ours}, and a port is bound either to all addresses \
         or to single ones, not both (to change from one to the other, reload once with neither, or restart)"
    )]
    Overlap {
        addr: SocketAddr,
        /// The address that it conflicts with.
        ours: SocketAddr,
    },
    /// The TLS library rejects the configuration.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "  (another process listens there; `ss -ltnp` shows which)",
        io::ErrorKind::AddrNotAvailable => " (no interface of this machine has that address)",
        io::ErrorKind::PermissionDenied => {
            " (ports under 1024 need CAP_NET_BIND_SERVICE: see wiretight.service)"
        }
        _ => "",
    }
}

/// Whether one of the two is the wildcard address for the other.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let wild = a.ip().is_unspecified() != b.ip().is_unspecified();
    wild && a.port() == b.port() && a.is_ipv4() == b.is_ipv4()
}

/// The relay in the output of `wiretight status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RelayStatus {
    /// Totals by side and service.
    pub sums: Vec<Sums>,
    /// All connections, summed up by peer and TLS parameters.
    pub peers: Vec<PeerSum>,
    pub connections_total: usize,
    /// Connections, busy ones first, up to the requested number.
    pub connections: Vec<Connection>,
    /// The last refusals, newest last.
    pub refusals: Vec<Refusal>,
    /// Refusals since the start.
    pub refused: Vec<RefusedCount>,
    /// Failed accepts, mostly for lack of file descriptors.
    pub accept_errors: u64,
    /// Whether the process is stopping and accepts no new connections.
    pub draining: bool,
}

/// The number of refusals of one service for one reason, in either direction.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RefusedCount {
    pub side: Side,
    pub service: Name,
    pub reason: Reason,
    pub count: u64,
}

impl Relay {
    /// Starts the workers. They listen on nothing until settings are applied.
    pub fn start(mesh: Arc<Mesh>, workers: usize) -> io::Result<Relay> {
        Relay::start_on(Arc::default(), mesh, workers)
    }

    /// The same with listening sockets that may come from another process.
    pub fn start_on(sockets: Arc<Sockets>, mesh: Arc<Mesh>, workers: usize) -> io::Result<Relay> {
        let table = Arc::new(Table::default());
        let draining = watch::channel(false).0;
        let workers = Workers::start("relay", workers, |_| {
            let (table, draining) = (table.clone(), draining.subscribe());
            move |orders| {
                if let Err(error) = worker::run(orders, table, draining) {
                    tracing::error!(%error, "a worker could not start");
                }
            }
        })?;
        Ok(Relay { mesh, table, workers, listeners: Mutex::default(), sockets, draining })
    }

    /// Applies settings: starts and stops listeners as needed (waits up to a second for the latter), and leaves live
    /// sessions alone. If any part fails, nothing is changed.
    pub fn apply(&self, settings: &RelaySettings) -> Result<(), ApplyError> {
        let exposed = |d: &&DialSettings| !d.listen.ip().to_canonical().is_loopback();
        if let Some(dial) = settings.dials.iter().find(exposed) {
            let (addr, service) = (dial.listen, dial.service.clone());
            return Err(ApplyError::NotLoopback { addr, service });
        }
        let mut listeners = self.listeners.lock();
        let mut wanted = HashSet::new();
        let mut staged = Vec::new();
        for (addr, what) in self::wanted(settings) {
            wanted.insert(addr);
            let bound = listeners.get(&addr);
            let before = bound.map(|b| b.purpose.load_full());
            let purpose = match (what, before.as_deref()) {
                (Wanted::Service(s), Some(Purpose::Service(old))) if old.settings == *s => continue,
                (Wanted::Dial(d), Some(Purpose::Dial(old))) if old.settings == *d => continue,
                (Wanted::Intercept(i), Some(Purpose::Intercept(old))) if old.settings == *i => {
                    continue;
                }
                (Wanted::Service(s), before) => {
                    let before = match before {
                        Some(Purpose::Service(old)) => Some(&**old),
                        _ => None,
                    };
                    let new = Service::new(s.clone(), &self.mesh, &self.table, before)?;
                    Purpose::Service(Arc::new(new))
                }
                (Wanted::Dial(d), before) => {
                    let before = match before {
                        Some(Purpose::Dial(old)) => Some(&**old),
                        _ => None,
                    };
                    Purpose::Dial(Arc::new(Dial::new(d.clone(), &self.mesh, &self.table, before)?))
                }
                (Wanted::Intercept(i), _) => {
                    let new = Intercept::new(i.clone(), &self.mesh, &self.table);
                    Purpose::Intercept(Arc::new(new))
                }
            };
            let sockets = match bound {
                Some(_) => Default::default(),
                None => self.listen(addr).map_err(|source| {
                    let ours = listeners.keys().chain(&wanted).find(|ours| overlap(**ours, addr));
                    match ours {
                        Some(ours) => ApplyError::Overlap { addr, ours: *ours },
                        None => ApplyError::Bind { addr, source },
                    }
                })?,
            };
            staged.push((addr, purpose, sockets));
        }
        // Nothing can fail from here on.
        let unwanted = listeners.extract_if(|addr, _| !wanted.contains(addr));
        listeners::close(unwanted.map(|(_, bound)| bound.listener));
        for (addr, purpose, (sockets, handles)) in staged {
            if let Some(bound) = listeners.get(&addr) {
                bound.purpose.store(Arc::new(purpose));
                continue;
            }
            let (listener, purpose) =
                (Listener::new(sockets), Arc::new(ArcSwap::from_pointee(purpose)));
            let socket = |socket| Socket { socket, purpose: purpose.clone() };
            self.workers.listen(&listener, handles.into_iter().map(socket));
            listeners.insert(addr, Bound { listener, purpose });
        }
        Ok(())
    }

    /// Opens sockets, with a handle for each worker.
    fn listen(&self, addr: SocketAddr) -> io::Result<(Vec<TcpListener>, Vec<TcpListener>)> {
        let sockets = self.sockets.bind(addr, self.workers.count())?;
        let handles = net::spread(&sockets, self.workers.count())?;
        Ok((sockets, handles))
    }

    /// The listening sockets, for the next process at a takeover.
    pub fn listening(&self) -> io::Result<Listening> {
        let listeners = self.listeners.lock();
        listeners.iter().map(|(addr, bound)| Ok((*addr, bound.listener.sockets()?))).collect()
    }

    /// The parts that the edge needs to listen and to reach services.
    pub(crate) fn shared(&self) -> (&Arc<Mesh>, &Arc<Table>, &Arc<Sockets>) {
        (&self.mesh, &self.table, &self.sockets)
    }

    /// Closes the connections of peers that are no longer trusted; returns how many.
    pub fn cut_revoked(&self) -> usize {
        self.table.cut_unless(|peer| self.mesh.stands_by(peer))
    }

    /// The current state, with up to `max` connections.
    pub fn status(&self, max: usize) -> RelayStatus {
        let count = |(side, service, reason, count)| RefusedCount { side, service, reason, count };
        RelayStatus {
            sums: self.table.sums(),
            peers: self.table.peers(),
            connections_total: self.table.connected(),
            connections: self.table.connections(max),
            refusals: self.table.refusals(),
            refused: self.table.refusal_counts().into_iter().map(count).collect(),
            accept_errors: self.table.accept_errors.load(Relaxed),
            draining: *self.draining.borrow(),
        }
    }

    /// How long opening sessions took, by side and service.
    pub fn latencies(&self) -> Vec<RelayLatency> {
        self.table.latencies()
    }

    /// Stops accepting connections, closes idle ones, and waits up to `limit` for running sessions; then closes
    /// those. Returns how many were closed.
    pub async fn drain(&self, limit: Duration) -> usize {
        self.draining.send_replace(true);
        let end = Instant::now() + limit;
        let open: Vec<_> =
            self.listeners.lock().values_mut().map(|bound| bound.listener.release()).collect();
        // Connections accepted last must be counted too.
        listeners::closed(&open).await;
        while self.table.busy() > 0 && Instant::now() < end {
            sleep(Duration::from_millis(20)).await;
        }
        let cut = self.table.busy();
        self.table.cut_all();
        // Leave a moment for the RSTs to the programs.
        listeners::settled(|| self.table.busy()).await;
        cut
    }
}
