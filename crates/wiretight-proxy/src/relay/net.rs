//! Sockets: how they are bound, connected and kept alive.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{sleep, timeout};

use super::app::App;
use super::settings::{Backend, HostPort};

/// How long a TCP connection may take to come about.
const CONNECT: Duration = Duration::from_secs(3);
/// How soon a Unix socket with a full backlog is tried again.
const BUSY: Duration = Duration::from_millis(5);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 4096;

/// One listening socket for each worker, on one address. The kernel spreads connections over them.
pub(crate) fn bind(addr: SocketAddr, workers: usize) -> io::Result<Vec<TcpListener>> {
    let listener = |socket: Socket| {
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    sockets(addr, workers, Type::STREAM, Protocol::TCP)?.into_iter().map(listener).collect()
}

/// The same for UDP. The kernel spreads packets by the addresses of both ends.
pub(crate) fn bind_udp(addr: SocketAddr, workers: usize) -> io::Result<Vec<UdpSocket>> {
    let sockets = sockets(addr, workers, Type::DGRAM, Protocol::UDP)?;
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
pub(crate) fn tune(socket: &TcpStream) {
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(10))
        .with_retries(6);
    let _ = socket.set_nodelay(true);
    let _ = SockRef::from(socket).set_tcp_keepalive(&keepalive);
}

/// Connects to another relay.
pub(crate) async fn connect(to: &HostPort) -> io::Result<TcpStream> {
    connect_where(to, |_| true).await
}

/// Connects to the program behind a service: plaintext, so never off this machine.
pub(crate) async fn connect_backend(to: &Backend) -> io::Result<App> {
    match to {
        Backend::Tcp(addr) => Ok(App::Tcp(connect_where(addr, |ip| ip.is_loopback()).await?)),
        Backend::Unix(path) => {
            let late = |_| io::Error::from(io::ErrorKind::TimedOut);
            Ok(App::Unix(timeout(CONNECT, connect_unix(path)).await.map_err(late)??))
        }
    }
}

/// Where TCP would wait, a Unix socket whose backlog is full says so at once (EAGAIN).
async fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(path).await {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => sleep(BUSY).await,
            result => return result,
        }
    }
}

async fn connect_where(to: &HostPort, may: impl Fn(IpAddr) -> bool) -> io::Result<TcpStream> {
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
        match timeout(CONNECT, TcpStream::connect(addr)).await {
            Ok(Ok(socket)) => {
                tune(&socket);
                return Ok(socket);
            }
            Ok(Err(e)) => last = e,
            Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, "no answer to TCP connect"),
        }
    }
    Err(last)
}
