//! Sockets: how they are bound, connected and kept alive.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::time::{sleep, timeout};

use super::app::App;
use crate::network::{Backend, HostPort};

/// How long a TCP connection may take to come about.
const CONNECT: Duration = Duration::from_secs(3);
/// How soon a Unix socket with a full backlog is tried again.
const BUSY: Duration = Duration::from_millis(5);
/// How long to wait for workers to close sockets that are no longer wanted.
pub(crate) const CLOSE: Duration = Duration::from_secs(1);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 4096;

static MARK: OnceLock<u32> = OnceLock::new();

/// From now on each of this process' sockets carries this mark, by which the rules of `[intercept]` know what
/// is encrypted already. It belongs to the process as its user does: nothing of it may go without.
pub fn set_mark(mark: u32) {
    let _ = MARK.set(mark); // one rule table, one mark, for the life of the process
}

/// Marks a socket, if there are rules. What cannot be marked is not used: it would be taken for plaintext.
pub fn mark(socket: &SockRef<'_>) -> io::Result<()> {
    let Some(mark) = MARK.get() else { return Ok(()) };
    socket.set_mark(*mark).map_err(|e| {
        io::Error::new(
            e.kind(),
            format!("its packets cannot be marked ({e}): CAP_NET_RAW is missing"),
        )
    })
}

static ANSWERED: RwLock<BTreeSet<SocketAddr>> = RwLock::new(BTreeSet::new());

/// From now on what these backends send to any address comes back to this machine: only they are connected from
/// their callers' addresses. The kernel's routes belong to the machine, so this belongs to the process.
pub fn set_answered(backends: BTreeSet<SocketAddr>) {
    *ANSWERED.write().unwrap_or_else(PoisonError::into_inner) = backends;
}

/// `caller`: whose address the socket is to have.
async fn connect_to(addr: SocketAddr, caller: Option<SocketAddr>) -> io::Result<TcpStream> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    mark(&SockRef::from(&socket))?;
    if let Some(caller) = caller {
        // Whatever was routed elsewhere would leave in the clear.
        if !ANSWERED.read().unwrap_or_else(PoisonError::into_inner).contains(&addr) {
            return Err(io::Error::other(
                "the routes by which it would answer its callers (transparent) are not in force; \
                 `wiretight status` says why",
            ));
        }
        bind_as(&socket, caller)?;
    }
    socket.connect(addr).await
}

/// Gives a socket the caller's address; the port, too, unless it is taken here.
fn bind_as(socket: &TcpSocket, caller: SocketAddr) -> io::Result<()> {
    use io::ErrorKind::{AddrInUse, PermissionDenied};
    let options = SockRef::from(socket);
    let transparent = match caller {
        SocketAddr::V4(_) => options.set_ip_transparent_v4(true),
        SocketAddr::V6(_) => options.set_ip_transparent_v6(true),
    };
    transparent.map_err(|e| {
        let why = format!("it cannot have the caller's address ({e}): CAP_NET_RAW is missing");
        io::Error::new(e.kind(), why)
    })?;
    match socket.bind(caller) {
        // By the session before, by the caller itself if it runs here; or below 1024 without that capability.
        Err(e) if matches!(e.kind(), AddrInUse | PermissionDenied) => {
            socket.bind(SocketAddr::new(caller.ip(), 0))
        }
        bound => bound,
    }
}

/// What a process listens on for TCP, by address.
pub type Listening = Vec<(SocketAddr, Vec<TcpListener>)>;

/// Where listening sockets come from: those that the process before this one has passed on (with whoever waits
/// to be accepted on them), and new ones.
#[derive(Default)]
pub struct Sockets {
    takes_over: bool,
    passed_on: Mutex<HashMap<SocketAddr, Vec<TcpListener>>>,
}

impl Sockets {
    /// With those that were passed on.
    pub fn passed_on(all: Listening) -> Sockets {
        Sockets { takes_over: true, passed_on: Mutex::new(all.into_iter().collect()) }
    }

    /// Whether there is a process before this one, which may still hold addresses.
    pub fn takes_over(&self) -> bool {
        self.takes_over
    }

    /// Closes what was passed on and is not wanted any longer.
    pub fn close_rest(&self) {
        self.rest().clear();
    }

    /// Listening sockets on one address, for so many workers. The kernel spreads connections over them. What they
    /// carry is encrypted.
    pub fn bind(&self, addr: SocketAddr, workers: usize) -> io::Result<Vec<TcpListener>> {
        let sockets = self.listen(addr, workers)?;
        sockets.iter().try_for_each(|socket| mark(&SockRef::from(socket)))?;
        Ok(sockets)
    }

    /// The same for what is not: without the mark.
    pub fn bind_plain(&self, addr: SocketAddr, workers: usize) -> io::Result<Vec<TcpListener>> {
        let sockets = self.listen(addr, workers)?;
        // One that was passed on may have had another purpose.
        if MARK.get().is_some() {
            sockets.iter().try_for_each(|socket| SockRef::from(socket).set_mark(0))?;
        }
        Ok(sockets)
    }

    /// What is accepted on them is tuned already: Linux lets it inherit that.
    fn listen(&self, addr: SocketAddr, workers: usize) -> io::Result<Vec<TcpListener>> {
        let passed_on = self.rest().remove(&addr);
        let sockets = match passed_on {
            Some(sockets) => sockets,
            None => {
                let sockets = sockets(addr, workers, Type::STREAM, Protocol::TCP)?;
                sockets.iter().try_for_each(|socket| socket.listen(BACKLOG))?;
                sockets.into_iter().map(Into::into).collect()
            }
        };
        sockets.iter().for_each(|socket| tune(&SockRef::from(socket)));
        Ok(sockets)
    }

    fn rest(&self) -> MutexGuard<'_, HashMap<SocketAddr, Vec<TcpListener>>> {
        self.passed_on.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A second handle of each, so that every worker has one and each socket has a worker: a process before this one
/// may have had more or fewer.
pub(crate) fn spread(sockets: &[TcpListener], workers: usize) -> io::Result<Vec<TcpListener>> {
    let handles = workers.max(sockets.len());
    sockets.iter().cycle().take(handles).map(TcpListener::try_clone).collect()
}

/// Descriptors that are not given to traffic, so that the node can still be asked how it is (`status`, `/healthz`),
/// renew certificates and write files when clients hold all others. Of a small limit it is an eighth.
const RESERVED: u64 = 64;

/// Whether a descriptor is one of those. The kernel gives the lowest number that is free, so a high one says that
/// all below are taken.
fn is_reserved(descriptor: &impl AsRawFd) -> bool {
    static FIRST: OnceLock<RawFd> = OnceLock::new();
    let first = FIRST.get_or_init(|| {
        use rustix::process::{Resource, getrlimit};
        let limit = getrlimit(Resource::Nofile).current;
        let first = limit.map(|limit| limit - RESERVED.min(limit / 8));
        first.and_then(|first| RawFd::try_from(first).ok()).unwrap_or(RawFd::MAX)
    });
    let is_reserved = descriptor.as_raw_fd() >= *first;
    if is_reserved {
        SCARCE.store(true, Relaxed);
    }
    is_reserved
}

/// A reserved descriptor came up, and nobody has looked since whether there are others again.
static SCARCE: AtomicBool = AtomicBool::new(false);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How often a connection that got a reserved descriptor is made anew.
const AGAIN: usize = 8;

/// Connects, and waits for a while if traffic has no descriptor left.
pub(crate) async fn with_descriptor<S: AsRawFd>(
    mut connect: impl AsyncFnMut() -> io::Result<S>,
) -> io::Result<S> {
    for _ in 0..AGAIN {
        if SCARCE.load(Relaxed) {
            timeout(CONNECT, spare_descriptor()).await.map_err(|_| none_left())?;
        }
        let socket = connect().await?;
        if !is_reserved(&socket) {
            return Ok(socket);
        }
    }
    Err(none_left())
}

/// Waits until there is a descriptor for traffic.
async fn spare_descriptor() {
    loop {
        let probe = Socket::new(Domain::UNIX, Type::DGRAM, None);
        if probe.is_ok_and(|probe| !is_reserved(&probe)) {
            return SCARCE.store(false, Relaxed);
        }
        sleep(LOOK).await;
    }
}

/// What is said of a connection for which there is no other descriptor.
fn none_left() -> io::Error {
    io::Error::from_raw_os_error(libc::EMFILE)
}

/// Accepts a connection. One that got a reserved descriptor is `held` until there is another for it, and none is
/// accepted meanwhile: that is an error, as if accepting it had failed. May be dropped at any time.
pub(crate) async fn accept(
    listener: &tokio::net::TcpListener,
    held: &mut Option<(TcpStream, SocketAddr)>,
) -> io::Result<(TcpStream, SocketAddr)> {
    let (socket, from) = match held.take() {
        None => listener.accept().await?,
        Some((socket, from)) => {
            let moved = SockRef::from(&socket).try_clone().map(std::net::TcpStream::from);
            match moved.ok().filter(|moved| !is_reserved(moved)) {
                Some(moved) => (TcpStream::from_std(moved)?, from),
                None => (socket, from),
            }
        }
    };
    if is_reserved(&socket) {
        *held = Some((socket, from));
        return Err(none_left());
    }
    Ok((socket, from))
}

/// Waits until workers have closed the sockets that these are held with, and looked after whom they accepted last.
pub(crate) async fn closed(open: &[Arc<()>]) {
    let end = tokio::time::Instant::now() + CLOSE;
    // Ours is one.
    while open.iter().any(|open| Arc::strong_count(open) > 2) && tokio::time::Instant::now() < end {
        sleep(Duration::from_millis(1)).await;
    }
    sleep(Duration::from_millis(10)).await;
}

/// One socket for each worker, for UDP. The kernel spreads packets by the addresses of both ends.
pub(crate) fn bind_udp(addr: SocketAddr, workers: usize) -> io::Result<Vec<UdpSocket>> {
    let sockets = sockets(addr, workers, Type::DGRAM, Protocol::UDP)?;
    sockets.iter().try_for_each(|socket| mark(&SockRef::from(socket)))?;
    Ok(sockets.into_iter().map(Into::into).collect())
}

fn sockets(
    addr: SocketAddr,
    workers: usize,
    kind: Type,
    protocol: Protocol,
) -> io::Result<Vec<Socket>> {
    let socket = |shared: bool| -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(addr), kind, Some(protocol))?;
        if kind == Type::STREAM {
            socket.set_reuse_address(true)?;
        }
        if shared {
            socket.set_reuse_port(true)?;
        }
        if addr.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        Ok(socket)
    };
    // SO_REUSEPORT would let us share a port with another process of our user unnoticed: a first socket
    // without it finds out.
    drop(socket(false)?);
    (0..workers).map(|_| socket(workers > 1)).collect()
}

/// No Nagle delays; and a dead peer is found within two minutes if nothing is in flight. (While data are
/// unacknowledged Linux sends no probes: then it takes net.ipv4.tcp_retries2, some 15 minutes.
/// TCP_USER_TIMEOUT would be sooner, but ends peers that are only slow to read.)
fn tune(socket: &SockRef<'_>) {
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(10))
        .with_retries(6);
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_keepalive(&keepalive);
}

/// Connects to where TLS is spoken: another relay, the authority, a CA.
pub async fn connect(to: &HostPort) -> io::Result<TcpStream> {
    connect_where(to, None, |_| true).await
}

/// Connects to the program behind a service: plaintext, so never off this machine. `caller`: whose address it
/// is to see, of the same family as the program's.
pub(crate) async fn connect_backend(to: &Backend, caller: Option<SocketAddr>) -> io::Result<App> {
    match to {
        Backend::Tcp(addr) => {
            let connect = async || connect_where(addr, caller, |ip| ip.is_loopback()).await;
            Ok(App::Tcp(with_descriptor(connect).await?))
        }
        Backend::Unix(path) => {
            let late = |_| io::Error::from(io::ErrorKind::TimedOut);
            let connect = async || timeout(CONNECT, connect_unix(path)).await.map_err(late)?;
            Ok(App::Unix(with_descriptor(connect).await?))
        }
    }
}

/// Where TCP would wait, a Unix socket whose backlog is full says so at once (EAGAIN).
async fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(path).await {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => sleep(BUSY).await,
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                let why = "this process' user may not write to the socket, and no process of ours overrules that";
                return Err(io::Error::new(e.kind(), format!("{e}: {why}")));
            }
            result => return result,
        }
    }
}

async fn connect_where(
    to: &HostPort,
    caller: Option<SocketAddr>,
    may: impl Fn(IpAddr) -> bool,
) -> io::Result<TcpStream> {
    let addrs: Vec<SocketAddr> = match to.as_ip() {
        Some(addr) => vec![addr],
        None => {
            let found = timeout(CONNECT, tokio::net::lookup_host((to.host(), to.port()))).await;
            found
                .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "DNS did not answer"))??
                .collect()
        }
    };
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for addr in addrs {
        if !may(addr.ip().to_canonical()) {
            last = io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("{addr} is not a loopback address: plaintext does not leave this machine"),
            );
            continue;
        }
        match timeout(CONNECT, connect_to(addr, caller)).await {
            Ok(Ok(socket)) => {
                tune(&SockRef::from(&socket));
                return Ok(socket);
            }
            Ok(Err(e)) => last = e,
            Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, "no answer to TCP connect"),
        }
    }
    Err(last)
}
