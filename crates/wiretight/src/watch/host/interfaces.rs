//! What the network interfaces have counted, and this machine's addresses (rtnetlink(7)).

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use rustix::io::Errno;
use rustix::net::SocketFlags;

use crate::netlink::{self, DUMP, Request, attributes};

/// From linux/rtnetlink.h.
const NEWLINK: u16 = 16;
const GETLINK: u16 = 18;
const NEWADDR: u16 = 20;
const GETADDR: u16 = 22;
/// Sizes of struct ifinfomsg, struct ifaddrmsg, and of an Ethernet header.
const LINK: usize = 16;
const ADDRESS: usize = 8;
const ETHERNET: u64 = 14;
/// ARPHRD_ETHER and IFF_LOOPBACK.
const IS_ETHERNET: u16 = 1;
const IS_LOOPBACK: u32 = 8;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub loopback: bool,
    /// Bytes of IP packets, both directions.
    pub bytes: u64,
}

/// A link, from the body of a message about it.
pub fn link(body: &[u8]) -> Option<Link> {
    let number = |at: usize| Some(u32::from_ne_bytes(body.get(at..at + 4)?.try_into().ok()?));
    let kind = u16::from_ne_bytes(body.get(2..4)?.try_into().ok()?);
    let (index, flags) = (number(4)?, number(8)?);
    let (mut name, mut bytes) = (None, None);
    for (attribute, value) in attributes(body.get(LINK..)?) {
        match attribute {
            3 => name = str::from_utf8(value).ok().map(|n| n.trim_end_matches('\0').to_owned()),
            23 => bytes = counted(value, kind),
            _ => {}
        }
    }
    Some(Link { index, name: name?, loopback: flags & IS_LOOPBACK != 0, bytes: bytes? })
}

/// struct rtnl_link_stats64, without the headers of the link layer.
fn counted(value: &[u8], kind: u16) -> Option<u64> {
    let at = |n: usize| Some(u64::from_ne_bytes(value.get(8 * n..8 * n + 8)?.try_into().ok()?));
    let (packets, bytes) = (at(0)?.wrapping_add(at(1)?), at(2)?.wrapping_add(at(3)?));
    let header = if kind == IS_ETHERNET { ETHERNET } else { 0 };
    Some(bytes.saturating_sub(packets.saturating_mul(header)))
}

/// An address of this machine and the index of its interface, from the body of a message about it.
pub fn address(body: &[u8]) -> Option<(u32, IpAddr)> {
    let index = u32::from_ne_bytes(body.get(4..8)?.try_into().ok()?);
    let (mut local, mut other) = (None, None);
    for (attribute, value) in attributes(body.get(ADDRESS..)?) {
        let ip = match value.len() {
            4 => <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
            16 => <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
            _ => None,
        };
        match attribute {
            1 => other = ip,
            2 => local = ip,
            _ => {}
        }
    }
    // IFA_ADDRESS is the peer's on a point-to-point link, which has IFA_LOCAL then.
    Some((index, local.or(other)?))
}

/// The counts of the last call.
#[derive(Default)]
pub(super) struct Interfaces {
    before: HashMap<u32, Link>,
}

/// What was read.
pub(super) struct Counted {
    /// Bytes since the last call.
    pub(super) bytes: u64,
    /// This machine's addresses.
    pub(super) addresses: HashSet<IpAddr>,
    /// Configured interfaces that do not exist.
    pub(super) missing: Vec<String>,
}

impl Interfaces {
    /// Counts these interfaces; if empty, those with an IP address, except loopback.
    pub(super) fn read(&mut self, named: &[String]) -> Result<Counted, Errno> {
        let socket = netlink::open(None, 0, SocketFlags::empty())?;
        let all = |ask: u16, fixed: usize| Request::new(ask, DUMP, &vec![0; fixed]);
        let mut with_address = HashSet::new();
        let mut addresses = HashSet::new();
        netlink::list(&socket, all(GETADDR, ADDRESS), NEWADDR, |body| {
            if let Some((index, ip)) = address(body) {
                with_address.insert(index);
                addresses.insert(ip);
            }
        })?;
        let mut links = Vec::new();
        netlink::list(&socket, all(GETLINK, LINK), NEWLINK, |body| links.extend(link(body)))?;
        let missing = named.iter().filter(|name| !links.iter().any(|l| l.name == **name));
        let missing = missing.cloned().collect();
        links.retain(|l| match named.is_empty() {
            true => !l.loopback && with_address.contains(&l.index),
            false => named.contains(&l.name),
        });
        let mut bytes = 0u64;
        for link in &links {
            // A new interface, or one whose counters were reset, counts from now on.
            let before = self.before.get(&link.index).filter(|b| b.name == link.name);
            bytes += before.and_then(|b| link.bytes.checked_sub(b.bytes)).unwrap_or_default();
        }
        self.before = links.into_iter().map(|l| (l.index, l)).collect();
        Ok(Counted { bytes, addresses, missing })
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::super::conntrack::tests::attribute;
    use super::*;

    #[test]
    fn a_link_is_read_without_its_ethernet_headers() {
        let stats: Vec<u8> =
            [10u64, 20, 1400, 2800, 0].iter().flat_map(|n| n.to_ne_bytes()).collect();
        let mut body = vec![0, 0, 1, 0, 7, 0, 0, 0, 0x43, 0, 0, 0, 0, 0, 0, 0];
        body.extend(attribute(3, b"eth0\0"));
        body.extend(attribute(23, &stats));
        let expected = Link { index: 7, name: "eth0".into(), loopback: false, bytes: 4200 - 420 };
        assert_eq!(link(&body), Some(expected.clone()));
        for cut in 0..body.len() {
            assert!(link(&body[..cut]).is_none_or(|l| l == expected));
        }
    }

    #[test]
    fn the_bytes_of_an_interface_are_those_since_the_last_call() {
        let mut interfaces = Interfaces::default();
        let lo = ["lo".to_owned(), "none0".to_owned()];
        let first = interfaces.read(&lo).unwrap();
        assert_eq!((first.bytes, first.missing), (0, vec!["none0".to_owned()]));
        assert!(first.addresses.contains(&IpAddr::from([127, 0, 0, 1])));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        drop(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        assert!(interfaces.read(&lo).unwrap().bytes >= 2 * 3 * 40);
    }
}
