//! The sockets of this machine (sock_diag(7), linux/inet_diag.h), with their users and control groups. Any user may list
//! them; marks are visible with CAP_NET_ADMIN only.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, SocketFlags, netlink as families, recv};

use crate::netlink::{self, DUMP, NLMSG_ERROR, PATIENCE, Request};

/// From linux/sock_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// Sockets in TIME_WAIT, SYN_RECV and NEW_SYN_RECV belong to no program.
const STATES: u32 = !(1 << 6 | 1 << 3 | 1 << 12);
const INET: u8 = 2;
const INET6: u8 = 10;
/// Attributes.
const MARK: u16 = 15;
const CGROUP_ID: u16 = 21;
/// The size of struct inet_diag_msg.
const MESSAGE: usize = 72;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Socket {
    pub(crate) local: SocketAddr,
    /// `None` if it is listening or not connected.
    pub(crate) remote: Option<SocketAddr>,
    pub(crate) user: u32,
    /// The kernel's number of its control group (v2).
    pub(crate) group: Option<u64>,
    pub(crate) mark: u32,
}

/// Calls `see` for each socket of a protocol, "tcp" or "udp".
pub(super) fn each(protocol: &str, mut see: impl FnMut(Socket)) -> Result<(), Errno> {
    let number = if protocol == "tcp" { 6 } else { 17 };
    for family in [INET, INET6] {
        let socket = netlink::open(Some(families::SOCK_DIAG), 0, SocketFlags::empty())?;
        let all = request(family, number, DUMP, None);
        netlink::list(&socket, all, SOCK_DIAG_BY_FAMILY, |body| {
            _ = parse(body).map(&mut see);
        })?;
    }
    Ok(())
}

/// Finds single sockets.
pub(crate) struct Finder(OwnedFd);

impl Finder {
    pub(crate) fn open() -> Result<Finder, Errno> {
        let socket = netlink::open(Some(families::SOCK_DIAG), 0, SocketFlags::empty())?;
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        Ok(Finder(socket))
    }

    /// The socket with these ends; without `remote`, the one that accepts connections or datagrams there. `None` if there
    /// is none. `tcp`: else UDP.
    pub(crate) fn find(
        &self,
        tcp: bool,
        local: SocketAddr,
        remote: Option<SocketAddr>,
    ) -> Result<Option<Socket>, Errno> {
        let nowhere = match local {
            SocketAddr::V4(_) => SocketAddr::from(([0; 4], 0)),
            SocketAddr::V6(_) => SocketAddr::from(([0; 16], 0)),
        };
        let (family, remote) =
            (if local.is_ipv4() { INET } else { INET6 }, remote.unwrap_or(nowhere));
        // For a single UDP socket the kernel expects the ends in reverse, "for historical reasons" (net/ipv4/udp_diag.c).
        let ends = if tcp { (local, remote) } else { (remote, local) };
        request(family, if tcp { 6 } else { 17 }, 0, Some(ends)).send(&self.0)?;
        let mut buffer = [0; 8192];
        let length = recv(&self.0, &mut buffer[..], RecvFlags::empty())?.0;
        let mut found = None;
        for message in netlink::messages(buffer.get(..length).unwrap_or_default()) {
            match message.kind {
                SOCK_DIAG_BY_FAMILY => found = parse(message.body),
                NLMSG_ERROR => match netlink::error(message.body) {
                    None | Some(Errno::NOENT) => {}
                    Some(error) => return Err(error),
                },
                _ => {}
            }
        }
        Ok(found)
    }
}

/// struct inet_diag_req_v2: for all addresses, or for a socket with these ends.
fn request(
    family: u8,
    protocol: u8,
    flags: u16,
    ends: Option<(SocketAddr, SocketAddr)>,
) -> Request {
    let mut fixed = [0; 56];
    fixed[..2].copy_from_slice(&[family, protocol]);
    fixed[4..8].copy_from_slice(&STATES.to_ne_bytes());
    if let Some((source, destination)) = ends {
        fixed[8..10].copy_from_slice(&source.port().to_be_bytes());
        fixed[10..12].copy_from_slice(&destination.port().to_be_bytes());
        for (at, end) in [(12, source), (28, destination)] {
            match end.ip() {
                IpAddr::V4(ip) => fixed[at..at + 4].copy_from_slice(&ip.octets()),
                IpAddr::V6(ip) => fixed[at..at + 16].copy_from_slice(&ip.octets()),
            }
        }
        // INET_DIAG_NOCOOKIE
        fixed[48..].fill(0xff);
    }
    Request::new(SOCK_DIAG_BY_FAMILY, flags, &fixed)
}

/// struct inet_diag_msg, and the attributes after it.
fn parse(body: &[u8]) -> Option<Socket> {
    let (fixed, attributes) = body.split_at_checked(MESSAGE)?;
    let number = |at: usize| Some(u32::from_ne_bytes(fixed.get(at..at + 4)?.try_into().ok()?));
    let port = |at: usize| Some(u16::from_be_bytes(fixed.get(at..at + 2)?.try_into().ok()?));
    let address = |at: usize| -> Option<IpAddr> {
        let bytes: [u8; 16] = fixed.get(at..at + 16)?.try_into().ok()?;
        match fixed[0] {
            INET => Some(<[u8; 4]>::try_from(&bytes[..4]).ok()?.into()),
            // An IPv6 socket can be connected by IPv4.
            INET6 => Some(IpAddr::from(bytes).to_canonical()),
            _ => None,
        }
    };
    let remote = SocketAddr::new(address(24)?, port(6)?);
    let mut socket = Socket {
        local: SocketAddr::new(address(8)?, port(4)?),
        remote: (remote.port() != 0).then_some(remote),
        user: number(64)?,
        group: None,
        mark: 0,
    };
    for (kind, value) in netlink::attributes(attributes) {
        match kind {
            MARK => socket.mark = value.try_into().map_or(0, u32::from_ne_bytes),
            CGROUP_ID => socket.group = value.try_into().ok().map(u64::from_ne_bytes),
            _ => {}
        }
    }
    Some(socket)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn sockets_of_both_families_are_seen_with_their_user() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let stream = TcpStream::connect(at).unwrap();
        let from = stream.local_addr().unwrap();
        let udp = UdpSocket::bind("[::1]:0").unwrap();
        let of = |protocol: &str| {
            let mut all = Vec::new();
            each(protocol, |socket| all.push(socket)).unwrap();
            all
        };
        let me = rustix::process::geteuid().as_raw();
        let tcp = of("tcp");
        let seen =
            |local, remote| tcp.iter().any(|s| (s.local, s.remote, s.user) == (local, remote, me));
        assert!(seen(at, None) && seen(from, Some(at)) && seen(at, Some(from)), "{tcp:?}");
        assert!(!seen(from, None), "the control");
        let at = udp.local_addr().unwrap();
        assert!(of("udp").iter().any(|s| s.local == at && s.remote.is_none() && s.user == me));
    }

    #[test]
    fn a_single_socket_is_found_by_its_ends() {
        let finder = Finder::open().unwrap();
        let me = rustix::process::geteuid().as_raw();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let at = listener.local_addr().unwrap();
            let stream = TcpStream::connect(at).unwrap();
            let from = stream.local_addr().unwrap();
            let client = finder.find(true, from, Some(at)).unwrap().unwrap();
            assert_eq!((client.local, client.remote, client.user), (from, Some(at), me));
            let server = finder.find(true, at, None).unwrap().unwrap();
            assert_eq!((server.local, server.remote), (at, None));
            let udp = UdpSocket::bind(address).unwrap();
            let bound = udp.local_addr().unwrap();
            assert_eq!(finder.find(false, bound, None).unwrap().unwrap().local, bound);
            let peer = UdpSocket::bind(address).unwrap();
            peer.connect(bound).unwrap();
            let ends = (peer.local_addr().unwrap(), Some(bound));
            let found = finder.find(false, ends.0, ends.1).unwrap().unwrap();
            assert_eq!((found.local, found.remote), ends);
            drop((listener, stream, udp, peer));
            assert_eq!(finder.find(true, at, None).unwrap(), None);
            assert_eq!(finder.find(false, bound, None).unwrap(), None);
        }
    }

    #[test]
    fn truncated_messages_are_ignored() {
        let mut whole = vec![0; MESSAGE];
        whole[0] = INET;
        whole[4..8].copy_from_slice(&[0, 80, 1, 0]);
        whole.extend([12, 0, 21, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(
            parse(&whole).unwrap().group,
            Some(u64::from_ne_bytes([7, 0, 0, 0, 0, 0, 0, 0]))
        );
        for cut in MESSAGE..whole.len() {
            assert_eq!(parse(&whole[..cut]).unwrap().group, None);
        }
        assert!((0..MESSAGE).all(|cut| parse(&whole[..cut]).is_none()));
    }
}
