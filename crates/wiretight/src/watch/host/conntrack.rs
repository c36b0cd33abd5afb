//! Connections as the kernel tracks them (linux/netfilter/nfnetlink_conntrack.h), parsed from its messages. Pure.

use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};

use wiretight_scan::passive::Transport;

use crate::netlink::{self, Request, attributes};

/// NFNLGRP_CONNTRACK_NEW (1) and NFNLGRP_CONNTRACK_DESTROY (3), as a mask.
pub(super) const NEW_AND_DESTROY: u32 = 0b101;
/// NFNL_SUBSYS_CTNETLINK, and its messages.
const SUBSYSTEM: u16 = 1 << 8;
const NEW: u16 = SUBSYSTEM;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
/// The size of struct nfgenmsg.
const FIXED: usize = 4;

/// Identifies a connection: addresses as the client sees them, and the zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    pub protocol: u8,
    pub zone: u16,
    /// For ICMP, the port of the client is the identifier.
    pub client: SocketAddr,
    pub server: SocketAddr,
}

impl Hash for Key {
    /// In few whole words: every event is looked up several times.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let number = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => ip.to_bits().into(),
            IpAddr::V6(ip) => ip.to_bits(),
        };
        let (client, server) = (number(self.client.ip()), number(self.server.ip()));
        for half in [client, client >> 64, server, server >> 64] {
            state.write_u64(half as u64);
        }
        let ports = u64::from(self.client.port()) << 16 | u64::from(self.server.port());
        state.write_u64(u64::from(self.zone) << 40 | u64::from(self.protocol) << 32 | ports);
    }
}

/// What the kernel says of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tracked {
    pub key: Key,
    /// The server as its own machine sees it: it differs from `key.server` if the address is translated.
    pub answers: SocketAddr,
    /// From the client, and from the server; `None` if the kernel does not count this connection.
    pub packets: Option<[u64; 2]>,
    pub bytes: Option<[u64; 2]>,
    /// In nanoseconds since 1970.
    pub started: Option<u64>,
    pub stopped: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// It is new, or part of a list.
    Is(Tracked),
    /// It has ended.
    Ended(Tracked),
}

/// A request for a list of all connections.
pub(super) fn dump() -> Request {
    Request::new(GET, netlink::DUMP, &[0; FIXED])
}

/// An event from a message's kind and body; `None` for other messages and malformed ones.
pub fn event(kind: u16, body: &[u8]) -> Option<Event> {
    match kind {
        NEW => tracked(body).map(Event::Is),
        DELETE => tracked(body).map(Event::Ended),
        _ => None,
    }
}

/// IANA, Protocol Numbers.
pub(super) fn transport(protocol: u8) -> Transport {
    match protocol {
        6 => Transport::Tcp,
        17 => Transport::Udp,
        132 => Transport::Sctp,
        1 | 58 => Transport::Icmp,
        other => Transport::Ip(other),
    }
}

/// One direction.
#[derive(Default)]
struct Tuple {
    from: Option<IpAddr>,
    to: Option<IpAddr>,
    protocol: Option<u8>,
    ports: [u16; 2],
    id: u16,
}

fn tracked(body: &[u8]) -> Option<Tracked> {
    let (mut original, mut reply) = (None, None);
    let mut counts = [None; 2];
    let (mut zone, mut started, mut stopped) = (0, None, None);
    for (kind, value) in attributes(body.get(FIXED..)?) {
        match kind {
            1 => original = Some(tuple(value)),
            2 => reply = Some(tuple(value)),
            9 => counts[0] = counters(value),
            10 => counts[1] = counters(value),
            18 => zone = be16(value)?,
            20 => {
                for (kind, value) in attributes(value) {
                    match kind {
                        1 => started = be64(value),
                        2 => stopped = be64(value),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let (original, reply) = (original?, reply?);
    let protocol = original.protocol?;
    let ports = match transport(protocol) {
        Transport::Icmp => [original.id, 0],
        _ => original.ports,
    };
    let key = Key {
        protocol,
        zone,
        client: SocketAddr::new(original.from?, ports[0]),
        server: SocketAddr::new(original.to?, ports[1]),
    };
    let answers = SocketAddr::new(reply.from?, reply.ports[0]);
    if key.client.is_ipv4() != key.server.is_ipv4() {
        return None;
    }
    let both = match counts {
        [Some(from_client), Some(from_server)] => Some((from_client, from_server)),
        _ => None,
    };
    let packets = both.map(|(c, s)| [c.0, s.0]);
    let bytes = both.map(|(c, s)| [c.1, s.1]);
    Some(Tracked { key, answers, packets, bytes, started, stopped })
}

fn tuple(value: &[u8]) -> Tuple {
    let mut tuple = Tuple::default();
    for (kind, value) in attributes(value) {
        match kind {
            1 => {
                for (kind, value) in attributes(value) {
                    match kind {
                        1 | 3 => tuple.from = address(value),
                        2 | 4 => tuple.to = address(value),
                        _ => {}
                    }
                }
            }
            2 => {
                for (kind, value) in attributes(value) {
                    match kind {
                        1 => tuple.protocol = value.first().copied(),
                        2 => tuple.ports[0] = be16(value).unwrap_or_default(),
                        3 => tuple.ports[1] = be16(value).unwrap_or_default(),
                        4 | 7 => tuple.id = be16(value).unwrap_or_default(),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    tuple
}

/// Packets and bytes.
fn counters(value: &[u8]) -> Option<(u64, u64)> {
    let (mut packets, mut bytes) = (None, None);
    for (kind, value) in attributes(value) {
        match kind {
            1 => packets = be64(value),
            2 => bytes = be64(value),
            _ => {}
        }
    }
    packets.zip(bytes)
}

fn address(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => Some(<[u8; 4]>::try_from(value).ok()?.into()),
        16 => Some(<[u8; 16]>::try_from(value).ok()?.into()),
        _ => None,
    }
}

fn be16(value: &[u8]) -> Option<u16> {
    value.try_into().ok().map(u16::from_be_bytes)
}

fn be64(value: &[u8]) -> Option<u64> {
    value.try_into().ok().map(u64::from_be_bytes)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = (4 + value.len()) as u16;
        let mut out = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
        out.resize(out.len().next_multiple_of(4), 0);
        out
    }

    const NESTED: u16 = 0x8000;

    /// The body of a message, as the kernel writes it.
    pub(crate) fn body(
        protocol: u8,
        [from, to, back]: [SocketAddr; 3],
        counts: Option<[(u64, u64); 2]>,
    ) -> Vec<u8> {
        let ip = |from: IpAddr, to: IpAddr| match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                [attribute(1, &from.octets()), attribute(2, &to.octets())].concat()
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                [attribute(3, &from.octets()), attribute(4, &to.octets())].concat()
            }
            _ => panic!("one family"),
        };
        let tuple = |from: SocketAddr, to: SocketAddr| {
            let ports = [
                attribute(1, &[protocol]),
                attribute(2, &from.port().to_be_bytes()),
                attribute(3, &to.port().to_be_bytes()),
            ];
            let ip = attribute(1 | NESTED, &ip(from.ip(), to.ip()));
            [ip, attribute(2 | NESTED, &ports.concat())].concat()
        };
        let mut out = vec![2, 0, 0, 0];
        out.extend(attribute(1 | NESTED, &tuple(from, to)));
        out.extend(attribute(2 | NESTED, &tuple(back, from)));
        for (n, (packets, bytes)) in counts.into_iter().flatten().enumerate() {
            let both = [attribute(1, &packets.to_be_bytes()), attribute(2, &bytes.to_be_bytes())];
            out.extend(attribute((9 + n as u16) | NESTED, &both.concat()));
        }
        out.extend(attribute(18, &7u16.to_be_bytes()));
        out.extend(attribute(20 | NESTED, &attribute(1, &1_000_000_007u64.to_be_bytes())));
        out
    }

    #[test]
    fn a_translated_connection_is_read_with_its_counts() {
        let ends =
            ["10.0.0.1:40000", "10.0.0.2:5432", "127.0.0.1:7491"].map(|a| a.parse().unwrap());
        let whole = body(6, ends, Some([(3, 180), (2, 120)]));
        let key = Key { protocol: 6, zone: 7, client: ends[0], server: ends[1] };
        let tracked = Tracked {
            key,
            answers: ends[2],
            packets: Some([3, 2]),
            bytes: Some([180, 120]),
            started: Some(1_000_000_007),
            stopped: None,
        };
        assert_eq!(event(DELETE, &whole), Some(Event::Ended(tracked)));
        assert_eq!(event(NEW, &whole), Some(Event::Is(tracked)));
        assert_eq!(event(0x200, &whole), None);
        // Cut anywhere: nothing wrong is read, at most less.
        for cut in 0..whole.len() {
            if let Some(Event::Is(t)) = event(NEW, &whole[..cut]) {
                assert_eq!((t.key.client, t.key.server, t.answers), (ends[0], ends[1], ends[2]));
                assert!(t.bytes.is_none_or(|b| b == [180, 120]), "{cut}");
            }
        }
        let six = ["[fd00::1]:1", "[fd00::2]:53", "[fd00::2]:53"].map(|a| a.parse().unwrap());
        let Some(Event::Is(t)) = event(NEW, &body(17, six, None)) else { panic!() };
        assert_eq!((t.key.server, t.bytes), (six[1], None));
    }

    #[test]
    fn every_change_of_one_byte_is_survived() {
        let ends = ["10.0.0.1:40000", "10.0.0.2:5432", "10.0.0.2:5432"].map(|a| a.parse().unwrap());
        let whole = body(6, ends, Some([(3, 180), (2, 120)]));
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                let _ = event(NEW, &bytes);
            }
        }
    }
}
