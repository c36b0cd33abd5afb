//! Sockets: binding, connecting, accepting, and keepalive.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::time::{sleep, timeout};

use super::app::App;
use crate::network::{Backend, HostPort};

/// The timeout for resolving a name, and for connecting to each of its addresses.
const CONNECT: Duration = Duration::from_secs(3);
/// Delay before connecting again to a Unix socket whose backlog is full.
const BUSY: Duration = Duration::from_millis(5);
/// The length of the listen backlog.
const BACKLOG: i32 = 4096;

static MARK: OnceLock<u32> = OnceLock::new();

/// Sets the mark for all sockets of this process. The rules of `[intercept]` recognize encrypted traffic by it. There
/// is one mark for the whole process, because every encrypted socket must have it.
pub fn set_mark(mark: u32) {
    let _ = MARK.set(mark); // set once: the mark never changes while the process runs
}

/// Marks a socket, if there are intercept rules. On an error the socket must not be used, because the rules would
/// treat its packets as plaintext.
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

/// Sets the backends whose answers, to any address, are routed back to this machine. Only these are connected to from
/// the callers' addresses. This is set for the whole process, because the kernel's routes apply to the whole machine.
pub fn set_answered(backends: BTreeSet<SocketAddr>) {
    *ANSWERED.write() = backends;
}

/// `caller`: the source address for the socket.
async fn connect_to(addr: SocketAddr, caller: Option<SocketAddr>) -> io::Result<TcpStream> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    mark(&SockRef::from(&socket))?;
    if let Some(caller) = caller {
        // Otherwise the answers could be routed off this machine in plaintext.
        if !ANSWERED.read().contains(&addr) {
            return Err(io::Error::other(
                "the routes for the program's answers to its callers (transparent) are not active; \
                 `wiretight status` shows why",
            ));
        }
        bind_as(&socket, caller)?;
    }
    socket.connect(addr).await
}

/// Binds a socket to the caller's address, and to the caller's port unless it is in use here.
fn bind_as(socket: &TcpSocket, caller: SocketAddr) -> io::Result<()> {
    use io::ErrorKind::{AddrInUse, PermissionDenied};
    let options = SockRef::from(socket);
    let transparent = match caller {
        SocketAddr::V4(_) => options.set_ip_transparent_v4(true),
        SocketAddr::V6(_) => options.set_ip_transparent_v6(true),
    };
    transparent.map_err(|e| {
        let why = format!("cannot use the caller's address ({e}): CAP_NET_RAW is missing");
        io::Error::new(e.kind(), why)
    })?;
    match socket.bind(caller) {
        // The port is in use by the previous session, or by the caller itself if it runs here; or it is below 1024
        // and this process lacks the capability for that.
        Err(e) if matches!(e.kind(), AddrInUse | PermissionDenied) => {
            socket.bind(SocketAddr::new(caller.ip(), 0))
        }
        bound => bound,
    }
}

/// The TCP listening sockets of a process, by address.
pub type Listening = Vec<(SocketAddr, Vec<TcpListener>)>;

/// Provides listening sockets: those that the previous process passed on, with the connections in their backlog, and
/// new ones.
#[derive(Default)]
pub struct Sockets {
    takes_over: bool,
    passed_on: Mutex<HashMap<SocketAddr, Vec<TcpListener>>>,
}

impl Sockets {
    /// With sockets that were passed on.
    pub fn passed_on(all: Listening) -> Sockets {
        Sockets { takes_over: true, passed_on: Mutex::new(all.into_iter().collect()) }
    }

    /// Whether sockets were passed on. The previous process may then still use some addresses.
    pub fn takes_over(&self) -> bool {
        self.takes_over
    }

    /// Closes the sockets that were passed on and are not needed.
    pub fn close_rest(&self) {
        self.passed_on.lock().clear();
    }

    /// Listening sockets on one address for `workers` workers, for encrypted traffic. The kernel distributes
    /// connections among them.
    pub fn bind(&self, addr: SocketAddr, workers: usize) -> io::Result<Vec<TcpListener>> {
        let sockets = self.listen(addr, workers)?;
        sockets.iter().try_for_each(|socket| mark(&SockRef::from(socket)))?;
        Ok(sockets)
    }

    /// Like [`bind`](Self::bind), for plaintext: without the mark.
    pub fn bind_plain(&self, addr: SocketAddr, workers: usize) -> io::Result<Vec<TcpListener>> {
        let sockets = self.listen(addr, workers)?;
        // A socket that was passed on may carry the mark from its previous use.
        if MARK.get().is_some() {
            sockets.iter().try_for_each(|socket| SockRef::from(socket).set_mark(0))?;
        }
        Ok(sockets)
    }

    /// Sets the socket options here, because on Linux accepted sockets inherit them.
    fn listen(&self, addr: SocketAddr, workers: usize) -> io::Result<Vec<TcpListener>> {
        let passed_on = self.passed_on.lock().remove(&addr);
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
}

/// Duplicates sockets so that every worker has one and every socket has a worker; the previous process may have had a
/// different number of workers.
pub(crate) fn spread(sockets: &[TcpListener], workers: usize) -> io::Result<Vec<TcpListener>> {
    let handles = workers.max(sockets.len());
    sockets.iter().cycle().take(handles).map(TcpListener::try_clone).collect()
}

/// File descriptors that are not used for traffic, so that the node can still answer `status` and `/healthz`, renew
/// certificates and write files when clients use all others. If the limit is small, an eighth of it.
const RESERVED: u64 = 64;

/// Whether a descriptor is reserved. The kernel assigns the lowest free number, so a high number means that all lower
/// ones are in use.
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

/// Set when a reserved descriptor was assigned; cleared when a check finds others free again.
static SCARCE: AtomicBool = AtomicBool::new(false);
/// The interval of that check.
const LOOK: Duration = Duration::from_millis(50);
/// How many times to open a connection that gets a reserved descriptor.
const AGAIN: usize = 8;

/// Connects. If no descriptor is left for traffic, waits for one up to a timeout.
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

/// Waits until a descriptor is available for traffic.
async fn spare_descriptor() {
    loop {
        let probe = Socket::new(Domain::UNIX, Type::DGRAM, None);
        if probe.is_ok_and(|probe| !is_reserved(&probe)) {
            return SCARCE.store(false, Relaxed);
        }
        sleep(LOOK).await;
    }
}

/// The error when no descriptor is left for traffic.
fn none_left() -> io::Error {
    io::Error::from_raw_os_error(libc::EMFILE)
}

/// Accepts a connection. If it gets a reserved descriptor, this returns an error as if accepting had failed, and
/// keeps the connection in `held`. No other connection is accepted until a descriptor is free for it. Cancel-safe.
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

/// A UDP socket for each worker. The kernel distributes packets by both addresses and ports.
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
    // With SO_REUSEPORT we would silently share a port with another process of our user. A first socket without the
    // option detects that.
    drop(socket(false)?);
    (0..workers).map(|_| socket(workers > 1)).collect()
}

/// Disables Nagle's algorithm. Enables keepalive, so that a dead peer is detected within two minutes if no data is in
/// flight. While data is unacknowledged, Linux sends no keepalive probes, and detection takes about 15 minutes
/// (net.ipv4.tcp_retries2). TCP_USER_TIMEOUT would be faster, but would also end connections to peers that only read
/// slowly.
fn tune(socket: &SockRef<'_>) {
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(10))
        .with_retries(6);
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_keepalive(&keepalive);
}

/// Connects to a TLS server: another relay, the authority, a CA.
pub async fn connect(to: &HostPort) -> io::Result<TcpStream> {
    connect_where(to, None, |_| true).await
}

/// Connects to the program behind a service. The connection is plaintext, so only loopback addresses are allowed.
/// `caller`: the source address to use; of the same family as the program's.
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

/// Connecting to a Unix socket with a full backlog fails immediately (EAGAIN), where TCP waits; so this waits and
/// tries again.
async fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(path).await {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => sleep(BUSY).await,
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                let why = "this process's user has no write permission on the socket";
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
                .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "DNS lookup timed out"))??
                .collect()
        }
    };
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for addr in addrs {
        if !may(addr.ip().to_canonical()) {
            last = io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!(
                    "{addr} is not a loopback address, and plaintext must not leave this machine"
                ),
            );
            continue;
        }
        match timeout(CONNECT, connect_to(addr, caller)).await {
            Ok(Ok(socket)) => {
                tune(&SockRef::from(&socket));
                return Ok(socket);
            }
            Ok(Err(e)) => last = e,
            Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, "timed out connecting"),
        }
    }
    Err(last)
}
