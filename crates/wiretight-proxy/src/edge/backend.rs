//! Connections to backends: kept and used again, one pool for each worker.
//!
//! Plain HTTP goes to this machine only ([`crate::net::connect_backend`] refuses anything else); to
//! a service of the mesh it goes through the relay, which carries it by mutual TLS.

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
use super::kept::{Kept, Look, Socket};
use super::settings::{At, Speaks, Upstream};
use super::sites::Site;
use crate::app::App;
use crate::net;
use crate::relay::dial;

/// Idle connections kept to one backend by one worker, and for how long.
const MAX_IDLE: usize = 256;
const KEEP: Duration = Duration::from_secs(30);
/// The longest that one is used again and again: who may call a service of the mesh is asked when a
/// connection begins.
const LIFE: Duration = Duration::from_secs(60);
/// A backend's head, in bytes and lines.
const MAX_HEAD: usize = 256 * 1024;
const MAX_HEADERS: usize = 200;

/// Runs what the HTTP library wants to run beside a connection, on this thread.
#[derive(Clone, Copy)]
pub(crate) struct Here;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Here {
    fn execute(&self, future: F) {
        spawn_local(future);
    }
}

/// A connection that a request may be sent on.
pub(crate) enum Sender {
    Http1(http1::SendRequest<RequestBody>, Instant, Look),
    H2c(http2::SendRequest<RequestBody>),
}

/// A request that came back unsent, or why there is no answer.
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

/// A connection whose answer is being read. Dropped when that has ended, it goes back to its pool; dropped
/// before, it is closed.
pub(crate) struct Loan {
    pools: Rc<Pools>,
    back: Option<(Key, http1::SendRequest<RequestBody>, Instant, Look)>,
}

impl Drop for Loan {
    fn drop(&mut self) {
        let Some((key, sender, born, look)) = self.back.take() else { return };
        if !sender.is_ready() {
            return;
        }
        let mut shelves = self.pools.shelves.borrow_mut();
        let shelf = shelves.entry(key).or_default();
        if shelf.idle.len() < MAX_IDLE {
            shelf.idle.push(Idle { sender, born, look, since: Instant::now() });
        }
    }
}

/// A worker's connections. The key tells apart what must not be shared: the same service under another
/// identity is another way.
#[derive(Default)]
pub(crate) struct Pools {
    shelves: RefCell<HashMap<Key, Shelf>>,
    mesh: RefCell<HashMap<(Name, Id), Rc<dial::Pool>>>,
}

type Key = (Upstream, Option<Id>);

#[derive(Default)]
struct Shelf {
    /// Most recently used last.
    idle: Vec<Idle>,
    shared: Option<(http2::SendRequest<RequestBody>, Instant)>,
}

struct Idle {
    sender: http1::SendRequest<RequestBody>,
    born: Instant,
    look: Look,
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
    /// A connection to a backend, and whether it has been used before. `from` is who it is for. `once`: what is sent on
    /// it cannot be sent again, so a connection that the backend may have closed just now is looked at first.
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
            self.shelves.borrow_mut().entry(key).or_default().shared = shared;
        }
        Ok((sender, false))
    }

    /// A connection that nobody else gets.
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

    /// Keeps what a connection is given back with, until its answer has been read.
    pub(crate) fn lend(
        self: &Rc<Pools>,
        site: &Site,
        upstream: &Upstream,
        sender: Sender,
    ) -> Option<Loan> {
        let Sender::Http1(sender, born, look) = sender else { return None };
        let key = key(site, upstream);
        Some(Loan { pools: self.clone(), back: Some((key, sender, born, look)) })
    }

    fn take(&self, key: &Key, once: bool) -> Option<Sender> {
        let mut shelves = self.shelves.borrow_mut();
        let shelf = shelves.get_mut(key)?;
        if let Some((shared, born)) = &shelf.shared {
            if !shared.is_closed() && born.elapsed() < LIFE {
                return Some(Sender::H2c(shared.clone()));
            }
            shelf.shared = None; // its streams go on to their ends
        }
        while let Some(idle) = shelf.idle.pop() {
            if idle.is_good() && (!once || idle.look.is_quiet()) {
                return Some(Sender::Http1(idle.sender, idle.born, idle.look));
            }
        }
        None
    }

    fn mesh_pool(&self, site: &Site, service: &Name) -> io::Result<Rc<dial::Pool>> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, "no way to this service");
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

    /// Every second: gives up what has been idle for long, or leads to where nothing goes any more.
    pub(crate) fn sweep(&self, wanted: impl Fn(&Arc<dial::Dial>) -> bool) {
        self.shelves.borrow_mut().retain(|_, shelf| {
            shelf.idle.retain(Idle::is_good);
            if shelf
                .shared
                .as_ref()
                .is_some_and(|(s, born)| s.is_closed() || born.elapsed() >= LIFE)
            {
                shelf.shared = None;
            }
            !shelf.idle.is_empty() || shelf.shared.is_some()
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
        self.shelves.borrow_mut().clear();
        self.mesh.borrow_mut().drain().for_each(|(_, pool)| pool.close());
    }
}

async fn handshake<S>((io, look): (Kept<S>, Look), speaks: Speaks) -> io::Result<Sender>
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
                    tracing::debug!(%error, "a backend's connection");
                }
            });
            Ok(Sender::Http1(sender, Instant::now(), look))
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
                    tracing::debug!(%error, "a backend's connection");
                }
            });
            Ok(Sender::H2c(sender))
        }
    }
}
