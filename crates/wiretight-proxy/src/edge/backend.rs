//! Connections to backends, pooled for each worker.
//!
//! Plaintext HTTP is sent only to this machine ([`crate::net::connect_backend`] rejects anything else). Connections to a
//! service of the mesh go through the relay, with mutual TLS.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::UnixStream;
use tokio::task::spawn_local;
use wiretight_keys::{Id, Name};

use super::body::RequestBody;
use super::kept::{Kept, Socket, SocketProbe};
use super::settings::{At, Speaks, Upstream};
use super::sites::Site;
use crate::app::App;
use crate::net;
use crate::relay::dial;

/// The most idle connections to one backend in one worker, and how long they are kept.
const MAX_IDLE: usize = 256;
const KEEP: Duration = Duration::from_secs(30);
/// The maximum age of a reused connection: a service of the mesh checks whether the client is allowed when a
/// connection starts.
const LIFE: Duration = Duration::from_secs(60);
/// Limits of a backend's response head, in bytes and lines.
const MAX_HEAD: usize = 256 * 1024;
const MAX_HEADERS: usize = 200;

/// Runs the HTTP library's background tasks on this thread.
#[derive(Clone, Copy)]
pub(crate) struct Here;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Here {
    fn execute(&self, future: F) {
        spawn_local(future);
    }
}

/// A connection that can carry a request.
pub(crate) enum Sender {
    Http1(http1::SendRequest<RequestBody>, Instant, SocketProbe),
    H2c(http2::SendRequest<RequestBody>),
}

/// A request that could not be sent, or the error.
pub(crate) type Unsent = TrySendError<Request<RequestBody>>;

impl Sender {
    pub(crate) async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, Unsent> {
        match self {
            Sender::Http1(sender, ..) => sender.try_send_request(request).await,
            Sender::H2c(sender) => sender.try_send_request(request).await,
        }
    }
}

/// A connection with a response that is being read. If dropped after the end of the response, it is returned to its
/// pool; otherwise it is closed.
pub(crate) struct BorrowedConnection {
    pools: Rc<Pools>,
    back: Option<(Key, http1::SendRequest<RequestBody>, Instant, SocketProbe)>,
}

impl Drop for BorrowedConnection {
    fn drop(&mut self) {
        let Some((key, sender, born, probe)) = self.back.take() else { return };
        if !sender.is_ready() {
            return;
        }
        let mut by_key = self.pools.by_key.borrow_mut();
        let pool = by_key.entry(key).or_default();
        if pool.idle.len() < MAX_IDLE {
            pool.idle.push(Idle { sender, born, probe, since: Instant::now() });
        }
    }
}

/// A worker's connections. The key separates what must not be shared: the same service under another identity needs
/// another connection.
#[derive(Default)]
pub(crate) struct Pools {
    by_key: RefCell<HashMap<Key, Pool>>,
    mesh: RefCell<HashMap<(Name, Id), Rc<dial::Pool>>>,
}

type Key = (Upstream, Option<Id>);

#[derive(Default)]
struct Pool {
    /// The most recently used is last.
    idle: Vec<Idle>,
    shared: Option<(http2::SendRequest<RequestBody>, Instant)>,
}

struct Idle {
    sender: http1::SendRequest<RequestBody>,
    born: Instant,
    probe: SocketProbe,
    since: Instant,
}

impl Idle {
    fn is_good(&self) -> bool {
        self.sender.is_ready() && self.since.elapsed() < KEEP && self.born.elapsed() < LIFE
    }
}

fn key(site: &Site, upstream: &Upstream) -> Key {
    let identity = match upstream.at {
        At::Here(_) => None,
        At::Mesh(_) => Some(site.settings.identity.clone()),
    };
    (upstream.clone(), identity)
}

impl Pools {
    /// A connection to a backend, and whether it was used before. `from` is the client. `once` means that the request
    /// cannot be repeated; then a reused connection is first checked for having been closed by the backend.
    pub(crate) async fn get(
        &self,
        site: &Arc<Site>,
        upstream: &Upstream,
        from: SocketAddr,
        once: bool,
    ) -> io::Result<(Sender, bool)> {
        let key = key(site, upstream);
        if let Some(sender) = self.take(&key, once) {
            return Ok((sender, true));
        }
        let sender = self.connect(site, upstream, from).await?;
        if let Sender::H2c(sender) = &sender {
            let shared = Some((sender.clone(), Instant::now()));
            self.by_key.borrow_mut().entry(key).or_default().shared = shared;
        }
        Ok((sender, false))
    }

    /// A new connection outside the pool.
    pub(crate) async fn connect(
        &self,
        site: &Site,
        upstream: &Upstream,
        from: SocketAddr,
    ) -> io::Result<Sender> {
        match &upstream.at {
            At::Here(backend) => match net::connect_backend(backend, None).await? {
                App::Tcp(socket) => handshake(Kept::tcp(socket), upstream.speaks).await,
                App::Unix(socket) => handshake(Kept::unix(socket), upstream.speaks).await,
            },
            At::Mesh(service) => {
                let (ours, theirs) = UnixStream::pair()?;
                let pool = self.mesh_pool(site, service)?;
                spawn_local(pool.serve(App::Unix(theirs), from));
                handshake(Kept::unix(ours), upstream.speaks).await
            }
        }
    }

    /// Prepares the return of a connection to its pool, for when the response has been read.
    pub(crate) fn lend(
        self: &Rc<Pools>,
        site: &Site,
        upstream: &Upstream,
        sender: Sender,
    ) -> Option<BorrowedConnection> {
        let Sender::Http1(sender, born, probe) = sender else { return None };
        let key = key(site, upstream);
        Some(BorrowedConnection { pools: self.clone(), back: Some((key, sender, born, probe)) })
    }

    fn take(&self, key: &Key, once: bool) -> Option<Sender> {
        let mut by_key = self.by_key.borrow_mut();
        let pool = by_key.get_mut(key)?;
        if let Some((shared, born)) = &pool.shared {
            if !shared.is_closed() && born.elapsed() < LIFE {
                return Some(Sender::H2c(shared.clone()));
            }
            pool.shared = None; // its streams are still completed
        }
        while let Some(idle) = pool.idle.pop() {
            if idle.is_good() && (!once || idle.probe.is_quiet()) {
                return Some(Sender::Http1(idle.sender, idle.born, idle.probe));
            }
        }
        None
    }

    fn mesh_pool(&self, site: &Site, service: &Name) -> io::Result<Rc<dial::Pool>> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, "no dial for this service");
        let dial = site.dials.get(service).ok_or_else(missing)?;
        let key = (service.clone(), site.settings.identity.clone());
        let mut pools = self.mesh.borrow_mut();
        if let Some(pool) = pools.get(&key).filter(|p| Arc::ptr_eq(p.dial(), dial)) {
            return Ok(pool.clone());
        }
        let pool = dial::Pool::new(dial.clone());
        if let Some(old) = pools.insert(key, pool.clone()) {
            old.close();
        }
        Ok(pool)
    }

    /// Called every second: closes connections that were idle for long or are no longer needed.
    pub(crate) fn sweep(&self, wanted: impl Fn(&Arc<dial::Dial>) -> bool) {
        self.by_key.borrow_mut().retain(|_, pool| {
            pool.idle.retain(Idle::is_good);
            if pool.shared.as_ref().is_some_and(|(s, born)| s.is_closed() || born.elapsed() >= LIFE)
            {
                pool.shared = None;
            }
            !pool.idle.is_empty() || pool.shared.is_some()
        });
        self.mesh.borrow_mut().retain(|_, pool| {
            let keep = wanted(pool.dial());
            match keep {
                true => pool.sweep(),
                false => pool.close(),
            }
            keep
        });
    }

    /// Closes all idle connections.
    pub(crate) fn clear(&self) {
        self.by_key.borrow_mut().clear();
        self.mesh.borrow_mut().drain().for_each(|(_, pool)| pool.close());
    }
}

async fn handshake<S>((io, probe): (Kept<S>, SocketProbe), speaks: Speaks) -> io::Result<Sender>
where
    S: Socket,
{
    let io = TokioIo::new(io);
    match speaks {
        Speaks::Http1 => {
            let mut builder = http1::Builder::new();
            builder.max_headers(MAX_HEADERS).max_buf_size(MAX_HEAD);
            let (sender, connection) = builder.handshake(io).await.map_err(io::Error::other)?;
            spawn_local(async move {
                if let Err(error) = connection.with_upgrades().await {
                    tracing::debug!(%error, "backend connection failed");
                }
            });
            Ok(Sender::Http1(sender, Instant::now(), probe))
        }
        Speaks::H2c => {
            let mut builder = http2::Builder::new(Here);
            builder
                .timer(TokioTimer::new())
                .initial_stream_window_size(512 * 1024)
                .initial_connection_window_size(4 * 1024 * 1024)
                .max_header_list_size(MAX_HEAD as u32);
            let (sender, connection) = builder.handshake(io).await.map_err(io::Error::other)?;
            spawn_local(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "backend connection failed");
                }
            });
            Ok(Sender::H2c(sender))
        }
    }
}
