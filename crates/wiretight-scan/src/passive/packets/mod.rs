//! From a captured frame to the payload of a flow: link layers, VLAN, IPv4 and IPv6, one level of tunnels, fragments.
//!
//! It keeps nothing between frames and allocates nothing. Later fragments and overlapping segments are the business of
//! the [table](super::flow).

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Transport;
use crate::parse::{Malformed, Reader};

/// The link layer of a capture (the numbers of pcap, LINKTYPE_*).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LinkType(pub u16);

impl LinkType {
    pub const NULL: Self = Self(0);
    pub const ETHERNET: Self = Self(1);
    pub const PPP: Self = Self(9);
    pub const PPP_HDLC: Self = Self(50);
    pub const PPPOE: Self = Self(51);
    pub const RAW: Self = Self(101);
    pub const C_HDLC: Self = Self(104);
    pub const LOOP: Self = Self(108);
    pub const LINUX_SLL: Self = Self(113);
    pub const IPV4: Self = Self(228);
    pub const IPV6: Self = Self(229);
    pub const NFLOG: Self = Self(239);
    pub const LINUX_SLL2: Self = Self(276);
}

/// Addresses, ports and protocol of a flow, equal for both directions: the smaller end is first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// IPv4 addresses are mapped (`::ffff:a.b.c.d`).
    addresses: [[u8; 16]; 2],
    ports: [u16; 2],
    /// The network that the addresses belong to: 0, or the tunnel's. A packet in a tunnel never belongs to a flow
    /// outside of it, so nobody can forge that by a tunnel of his own.
    network: u32,
    pub protocol: u8,
    v6: bool,
}

impl Key {
    /// The key, and which of its ends is `from`.
    fn new(ends: &Ends, ports: [u16; 2], protocol: u8) -> (Self, Sender) {
        let Ends { from, to, network, v6 } = *ends;
        let [source, destination] = ports;
        let (a, b) = (u128::from_be_bytes(from), u128::from_be_bytes(to));
        let (addresses, ports, sender) = match (a, source) <= (b, destination) {
            true => ([from, to], [source, destination], Sender::First),
            false => ([to, from], [destination, source], Sender::Second),
        };
        (Self { addresses, ports, network, protocol, v6 }, sender)
    }

    /// All of it, for a hash.
    pub fn words(&self) -> [u64; 6] {
        let half = |n: usize, at: usize| {
            let (halves, _) = self.addresses[n].as_chunks();
            u64::from_ne_bytes(halves[at])
        };
        let [p, q] = self.ports.map(u64::from);
        let last = u64::from(self.protocol) << 8 | u64::from(self.v6);
        let ports = p << 48 | q << 32 | u64::from(self.network);
        [half(0, 0), half(0, 1), half(1, 0), half(1, 1), ports, last]
    }

    pub fn port(&self, end: Sender) -> u16 {
        self.ports[end as usize]
    }

    pub fn end(&self, end: Sender) -> SocketAddr {
        let address = Ipv6Addr::from(self.addresses[end as usize]);
        let address = match (self.v6, address.to_ipv4_mapped()) {
            (false, Some(v4)) => IpAddr::V4(v4),
            _ => IpAddr::V6(address),
        };
        SocketAddr::new(address, self.port(end))
    }

    pub fn transport(&self) -> Transport {
        match self.protocol {
            TCP => Transport::Tcp,
            UDP => Transport::Udp,
            SCTP => Transport::Sctp,
            ICMP | ICMPV6 => Transport::Icmp,
            other => Transport::Ip(other),
        }
    }
}

/// An end of a [`Key`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Sender {
    First = 0,
    Second = 1,
}

impl Sender {
    pub fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }
}

/// A packet of a flow.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packet<'a> {
    pub key: Key,
    pub sender: Sender,
    /// The length of the IP packet with its header; of the outer one in a tunnel.
    pub bytes: u32,
    /// The transport's header with its payload, as far as it was captured. In a later fragment, what that carries.
    pub transport: &'a [u8],
    pub segment: Segment<'a>,
    pub fragment: Option<Fragment>,
    /// IPv4's identification; 0 in IPv6.
    pub id: u16,
    pub in_tunnel: bool,
}

/// What a packet carries.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment<'a> {
    /// `None` if it is not TCP.
    pub tcp: Option<Tcp>,
    /// As far as it was captured.
    pub payload: &'a [u8],
    /// The length of the payload on the wire.
    pub length: u32,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Tcp {
    pub sequence: u32,
    pub acknowledged: u32,
    pub flags: u8,
}

impl Tcp {
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const ACK: u8 = 16;

    pub fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }
}

/// A part of an IP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fragment {
    /// The packet's addresses and its protocol, without ports, and who sent it.
    pub of: (Key, Sender),
    pub id: u32,
    pub offset: u16,
    /// Whether other fragments follow.
    pub more: bool,
}

/// Why a frame has no packet of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Other {
    NotIp,
    /// Malformed or cut off; with the length of the IP packet if that is known.
    Malformed {
        bytes: u32,
    },
}

impl From<Malformed> for Other {
    fn from(_: Malformed) -> Self {
        Self::Malformed { bytes: 0 }
    }
}

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const SCTP: u8 = 132;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const IPV4: u8 = 4;
const IPV6: u8 = 41;
const GRE: u8 = 47;
const FRAGMENT: u8 = 44;
const AH: u8 = 51;

/// Parses a frame. `length` is its length on the wire.
pub(super) fn parse(link: LinkType, captured: &[u8], length: usize) -> Result<Packet<'_>, Other> {
    let ip = match link {
        LinkType::ETHERNET => ethernet(captured)?,
        LinkType::RAW | LinkType::IPV4 | LinkType::IPV6 | LinkType(12 | 14) => captured,
        LinkType::NULL | LinkType::LOOP => {
            let mut reader = Reader::new(captured);
            // The numbers of IPv6 differ between systems, and so does the order of the bytes.
            match reader.array()? {
                [2 | 24 | 28 | 30, 0, 0, 0] | [0, 0, 0, 2 | 24 | 28 | 30] => reader.rest(),
                _ => return Err(Other::NotIp),
            }
        }
        LinkType::LINUX_SLL => {
            let mut reader = Reader::new(captured);
            reader.take(14)?;
            ether_type(reader.u16()?, reader.rest())?
        }
        LinkType::LINUX_SLL2 => {
            let mut reader = Reader::new(captured);
            let kind = reader.u16()?;
            reader.take(18)?;
            ether_type(kind, reader.rest())?
        }
        LinkType::PPP | LinkType::PPP_HDLC => ppp(captured)?,
        LinkType::PPPOE => ether_type(PPPOE_SESSION, captured)?,
        LinkType::C_HDLC => {
            let mut reader = Reader::new(captured);
            reader.u16()?;
            ether_type(reader.u16()?, reader.rest())?
        }
        LinkType::NFLOG => nflog(captured)?,
        _ => return Err(Other::NotIp),
    };
    // The length without the link layer. The length of a packet that NFLOG has cut is only in its own header.
    let wire = match link {
        LinkType::NFLOG => None,
        _ => Some(length.saturating_sub(captured.len() - ip.len())),
    };
    network(ip, wire, Network::NATIVE)
}

const PPPOE_SESSION: u16 = 0x8864;
const MPLS: u16 = 0x8847;
/// VLAN tags and MPLS labels that are skipped, each.
const MAX_TAGS: usize = 8;

fn ethernet(frame: &[u8]) -> Result<&[u8], Other> {
    let mut reader = Reader::new(frame);
    reader.take(12)?;
    ether_type(reader.u16()?, reader.rest())
}

/// The IP packet after a type of Ethernet.
fn ether_type(mut kind: u16, rest: &[u8]) -> Result<&[u8], Other> {
    let mut reader = Reader::new(rest);
    for _ in 0..MAX_TAGS {
        match kind {
            0x0800 | 0x86dd => return Ok(reader.rest()),
            // VLAN (IEEE 802.1Q), also as an outer tag
            0x8100 | 0x88a8 | 0x9100 => {
                reader.u16()?;
                kind = reader.u16()?;
            }
            MPLS | 0x8848 => return mpls(reader.rest()),
            PPPOE_SESSION => {
                reader.take(6)?;
                return ppp(reader.rest());
            }
            // A length, then LLC. With a SNAP header, a type follows.
            0..0x0600 => match reader.array()? {
                [0xaa, 0xaa, 3, _, _, _] => kind = reader.u16()?,
                _ => return Err(Other::NotIp),
            },
            _ => return Err(Other::NotIp),
        }
    }
    Err(Other::NotIp)
}

/// RFC 3032. Labels do not say what follows.
fn mpls(labels: &[u8]) -> Result<&[u8], Other> {
    let mut reader = Reader::new(labels);
    for _ in 0..MAX_TAGS {
        let [_, _, bottom, _] = reader.array()?;
        if bottom & 1 == 1 {
            return match reader.rest().first().map(|b| b >> 4) {
                Some(4 | 6) => Ok(reader.rest()),
                // The control word of a pseudowire (RFC 4448)
                Some(0) => {
                    reader.take(4)?;
                    ethernet(reader.rest())
                }
                _ => Err(Other::NotIp),
            };
        }
    }
    Err(Other::NotIp)
}

/// RFC 1661, with and without the header of HDLC and compression of the protocol.
fn ppp(frame: &[u8]) -> Result<&[u8], Other> {
    let frame = frame.strip_prefix(&[0xff, 3]).unwrap_or(frame);
    match frame {
        [0, 0x21 | 0x57, ip @ ..] | [0x21 | 0x57, ip @ ..] => Ok(ip),
        [2, 0x81, labels @ ..] => mpls(labels),
        [] => Err(Other::Malformed { bytes: 0 }),
        _ => Err(Other::NotIp),
    }
}

/// Attributes of Linux' NFLOG, in the byte order of the machine that captured.
fn nflog(message: &[u8]) -> Result<&[u8], Other> {
    const PAYLOAD: u16 = 9;
    let attributes = |number: fn([u8; 2]) -> u16| {
        let mut reader = Reader::new(message);
        reader.take(4)?;
        loop {
            let length = usize::from(number(reader.array()?));
            let kind = number(reader.array()?);
            let value = reader.take(length.checked_sub(4).ok_or(Malformed("a length"))?)?;
            if kind == PAYLOAD {
                return Ok(value);
            }
            // Padding, which may be missing at the end
            let padding = length.next_multiple_of(4) - length;
            reader.take(padding.min(reader.rest().len()))?;
        }
    };
    let found: Result<&[u8], Malformed> =
        attributes(u16::from_le_bytes).or_else(|_| attributes(u16::from_be_bytes));
    Ok(found?)
}

/// Which network the addresses of a tunnel's packets belong to; see [`Key`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Network(u32);

impl Network {
    const NATIVE: Self = Self(0);
    const GRE: Self = Self(3 << 24);
    const ERSPAN: Self = Self(4 << 24);
    const IP: Self = Self(5 << 24);
    const TEREDO: Self = Self(6 << 24);
    const GTP: Self = Self(7 << 24);

    fn vxlan(id: u32) -> Self {
        Self(1 << 24 | id & 0xff_ffff)
    }

    fn geneve(id: u32) -> Self {
        Self(2 << 24 | id & 0xff_ffff)
    }

    fn nvgre(key: u32) -> Self {
        Self(8 << 24 | key >> 8)
    }
}

/// The addresses of a packet.
struct Ends {
    from: [u8; 16],
    to: [u8; 16],
    network: u32,
    v6: bool,
}

/// What the IP header says.
struct Ip<'a> {
    ends: Ends,
    protocol: u8,
    /// After the header, as far as it was captured.
    body: &'a [u8],
    /// The length of the body on the wire.
    length: usize,
    /// The length of the packet.
    bytes: u32,
    fragment: Option<Fragment>,
    id: u16,
}

/// Parses an IP packet. `wire` is its length on the wire, with padding, if that is known.
fn network(ip: &[u8], wire: Option<usize>, network: Network) -> Result<Packet<'_>, Other> {
    let ip = match ip.first() {
        Some(0x40..=0x4f) => v4(ip, wire, network)?,
        Some(0x60..=0x6f) => v6(ip, wire, network)?,
        _ => return Err(Other::Malformed { bytes: 0 }),
    };
    if network == Network::NATIVE
        && let Some(inner) = tunnel(&ip)
    {
        return Ok(inner);
    }
    transport(&ip)
}

fn v4(packet: &[u8], wire: Option<usize>, network: Network) -> Result<Ip<'_>, Other> {
    let (header, _) = packet.split_first_chunk::<20>().ok_or(Malformed("truncated"))?;
    let [first, _, t0, t1, i0, i1, f0, f1, _, protocol, _, _, addresses @ ..] = *header;
    let [a, b, c, d, e, f, g, h] = addresses;
    let header = usize::from(first & 0xf) * 4;
    let total = total(u16::from_be_bytes([t0, t1]).into(), packet, wire)?;
    let malformed = Other::Malformed { bytes: total as u32 };
    if header < 20 || total < header {
        return Err(malformed);
    }
    let body = packet.get(header..total.min(packet.len())).ok_or(malformed)?;
    let mapped = |[a, b, c, d]: [u8; 4]| Ipv4Addr::new(a, b, c, d).to_ipv6_mapped().octets();
    let (from, to) = (mapped([a, b, c, d]), mapped([e, f, g, h]));
    let ends = Ends { from, to, network: network.0, v6: false };
    let (id, flags) = (u16::from_be_bytes([i0, i1]), u16::from_be_bytes([f0, f1]));
    let (more, offset) = (flags & 0x2000 != 0, (flags & 0x1fff) * 8);
    let mut ip = Ip {
        ends,
        protocol,
        body,
        length: total - header,
        bytes: total as u32,
        fragment: None,
        id,
    };
    if more || offset > 0 {
        ip.fragment = Some(Fragment::new(&ip, id.into(), offset, more));
    }
    if protocol == AH {
        ip.skip_extensions().map_err(|_| malformed)?;
    }
    Ok(ip)
}

fn v6(packet: &[u8], wire: Option<usize>, network: Network) -> Result<Ip<'_>, Other> {
    let (header, _) = packet.split_first_chunk::<40>().ok_or(Malformed("truncated"))?;
    let [_, _, _, _, l0, l1, protocol, _, addresses @ ..] = *header;
    let ([from, to], []) = addresses.as_chunks::<16>() else {
        return Err(Other::Malformed { bytes: 0 });
    };
    let total = match u16::from_be_bytes([l0, l1]) {
        0 => 0,
        length => 40 + usize::from(length),
    };
    let total = self::total(total, packet, wire)?;
    let malformed = Other::Malformed { bytes: total as u32 };
    let body = packet.get(40..total.min(packet.len())).ok_or(malformed)?;
    let ends = Ends { from: *from, to: *to, network: network.0, v6: true };
    let (length, bytes) = (total - 40, total as u32);
    let mut ip = Ip { ends, protocol, body, length, bytes, fragment: None, id: 0 };
    ip.skip_extensions().map_err(|_| malformed)?;
    Ok(ip)
}

/// The length of a packet, from its header. 0 means that Linux has joined several ones into one that is longer than
/// the header can say.
fn total(header: usize, packet: &[u8], wire: Option<usize>) -> Result<usize, Other> {
    let wire = wire.unwrap_or(header.max(packet.len())).max(packet.len());
    match header {
        0 => Ok(wire),
        header if header <= wire => Ok(header),
        _ => Err(Other::Malformed { bytes: wire as u32 }),
    }
}

impl Fragment {
    fn new(ip: &Ip, id: u32, offset: u16, more: bool) -> Self {
        Self { of: Key::new(&ip.ends, [0; 2], ip.protocol), id, offset, more }
    }

    fn is_later(&self) -> bool {
        self.offset > 0
    }
}

impl Ip<'_> {
    /// Skips the extension headers of IPv6, and the authentication header, which encrypts nothing.
    fn skip_extensions(&mut self) -> Result<(), Malformed> {
        const MOST: usize = 16;
        for _ in 0..MOST {
            if self.fragment.is_some_and(|f| f.is_later()) {
                return Ok(());
            }
            let [next, size, f0, f1, i0, i1, i2, i3] = match self.protocol {
                // Hop-by-hop options, routing, fragment, destination options, mobility, HIP, Shim6
                0 | 43 | FRAGMENT | 60 | 135 | 139 | 140 if self.ends.v6 => {
                    Reader::new(self.body).array()?
                }
                AH => Reader::new(self.body).array()?,
                _ => return Ok(()),
            };
            let skipped = match self.protocol {
                FRAGMENT => {
                    let (id, flags) =
                        (u32::from_be_bytes([i0, i1, i2, i3]), u16::from_be_bytes([f0, f1]));
                    let (offset, more) = (flags & !7, flags & 1 == 1);
                    if offset > 0 || more {
                        self.fragment = Some(Fragment::new(self, id, offset, more));
                    }
                    8
                }
                AH => (usize::from(size) + 2) * 4,
                _ => (usize::from(size) + 1) * 8,
            };
            self.protocol = next;
            self.length = self.length.checked_sub(skipped).ok_or(Malformed("truncated"))?;
            self.body = self.body.get(skipped..).ok_or(Malformed("truncated"))?;
        }
        Err(Malformed("too many extension headers"))
    }
}

/// The packet inside of a packet, if there is one. A tunnel in a tunnel is a flow of its own, not looked into.
fn tunnel<'a>(outer: &Ip<'a>) -> Option<Packet<'a>> {
    if outer.fragment.is_some_and(|f| f.is_later()) {
        return None;
    }
    let (network, ip) = match outer.protocol {
        IPV4 | IPV6 => Some((Network::IP, outer.body)),
        GRE => gre(outer.body),
        UDP => in_udp(outer.body),
        _ => None,
    }?;
    let wire = match outer.fragment {
        None => Some(outer.length - (outer.body.len() - ip.len())),
        Some(_) => None,
    };
    let inner = self::network(ip, wire, network).ok()?;
    let fragment = inner.fragment.or(outer.fragment);
    Some(Packet { bytes: outer.bytes, in_tunnel: true, fragment, ..inner })
}

/// RFC 2784, 2890 and 7637; version 1 in RFC 2637.
fn gre(packet: &[u8]) -> Option<(Network, &[u8])> {
    let mut reader = Reader::new(packet);
    let (flags, kind) = (reader.u16().ok()?, reader.u16().ok()?);
    let (sequence, mut key) = (flags & 0x1000 != 0, None);
    match flags & 7 {
        0 if flags & 0x4000 == 0 => {
            if flags & 0x8000 != 0 {
                reader.u32().ok()?;
            }
            if flags & 0x2000 != 0 {
                key = reader.u32().ok();
            }
        }
        1 if flags & 0x2000 != 0 => _ = reader.u32().ok()?,
        _ => return None,
    }
    if sequence {
        reader.u32().ok()?;
    }
    if flags & 7 == 1 && flags & 0x80 != 0 {
        reader.u32().ok()?;
    }
    match kind {
        0x0800 | 0x86dd | MPLS => Some((Network::GRE, ether_type(kind, reader.rest()).ok()?)),
        0x880b => Some((Network::GRE, ppp(reader.rest()).ok()?)),
        0x6558 => {
            let network = key.map_or(Network::GRE, Network::nvgre);
            Some((network, ethernet(reader.rest()).ok()?))
        }
        // ERSPAN: type I has neither a sequence number nor a header.
        0x88be => {
            reader.take(if sequence { 8 } else { 0 }).ok()?;
            Some((Network::ERSPAN, ethernet(reader.rest()).ok()?))
        }
        0x22eb => {
            let [.., last] = reader.array::<12>().ok()?;
            reader.take(if last & 1 == 1 { 8 } else { 0 }).ok()?;
            Some((Network::ERSPAN, ethernet(reader.rest()).ok()?))
        }
        _ => None,
    }
}

/// Tunnels in UDP, by the port that is registered for them.
fn in_udp(datagram: &[u8]) -> Option<(Network, &[u8])> {
    let mut reader = Reader::new(datagram);
    let (source, destination) = (reader.u16().ok()?, reader.u16().ok()?);
    // For most packets, this is all.
    if !matches!(destination, 4789 | 8472 | 6081 | 2152 | 3544) && source != 3544 {
        return None;
    }
    reader.u32().ok()?;
    match destination {
        // VXLAN (RFC 7348); Linux' first port for it
        4789 | 8472 => {
            let [0x08, _, _, _, a, b, c, _] = reader.array().ok()? else { return None };
            let network = Network::vxlan(u32::from_be_bytes([0, a, b, c]));
            Some((network, ethernet(reader.rest()).ok()?))
        }
        // GENEVE (RFC 8926)
        6081 => {
            let [options, _, k0, k1, a, b, c, _] = reader.array().ok()?;
            // The version is 0.
            if options & 0xc0 != 0 {
                return None;
            }
            reader.take(usize::from(options & 0x3f) * 4).ok()?;
            let network = Network::geneve(u32::from_be_bytes([0, a, b, c]));
            match u16::from_be_bytes([k0, k1]) {
                0x6558 => Some((network, ethernet(reader.rest()).ok()?)),
                0x0800 | 0x86dd => Some((network, reader.rest())),
                _ => None,
            }
        }
        // GTP-U, a user's packet (3GPP TS 29.281)
        2152 => {
            let [flags, 0xff, _, _, _, _, _, _] = reader.array().ok()? else { return None };
            if flags & 0xf0 != 0x30 {
                return None;
            }
            if flags & 7 != 0 {
                let [.., mut next] = reader.array::<4>().ok()?;
                for _ in 0..MAX_TAGS {
                    if next == 0 {
                        break;
                    }
                    let words = reader.u8().ok()?;
                    let rest = (usize::from(words) * 4).checked_sub(1)?;
                    next = *reader.take(rest).ok()?.last()?;
                }
            }
            Some((Network::GTP, reader.rest()))
        }
        // Teredo (RFC 4380): two headers may be in front.
        _ => {
            for _ in 0..2 {
                match reader.rest() {
                    [0, 0, ..] => _ = reader.take(8).ok()?,
                    [0, 1, id, mac, ..] => {
                        reader.take(13 + usize::from(*id) + usize::from(*mac)).ok()?;
                    }
                    _ => break,
                }
            }
            match reader.rest().first() {
                Some(0x60..=0x6f) => Some((Network::TEREDO, reader.rest())),
                _ => None,
            }
        }
    }
}

fn transport<'a>(ip: &Ip<'a>) -> Result<Packet<'a>, Other> {
    let later = ip.fragment.is_some_and(|f| f.is_later());
    let (ports, segment) = match later {
        true => ([0; 2], Segment { tcp: None, payload: ip.body, length: ip.length as u32 }),
        false => segment(ip.protocol, ip.body, ip.length, ip.fragment.is_some())
            .map_err(|_| Other::Malformed { bytes: ip.bytes })?,
    };
    let (key, sender) = Key::new(&ip.ends, ports, ip.protocol);
    let Ip { bytes, body, fragment, id, .. } = *ip;
    Ok(Packet { key, sender, bytes, transport: body, segment, fragment, id, in_tunnel: false })
}

/// The ports and the payload of a packet of a transport. `length` is the packet's length on the wire.
pub(super) fn segment(
    protocol: u8,
    body: &[u8],
    length: usize,
    fragment: bool,
) -> Result<([u16; 2], Segment<'_>), Malformed> {
    let none = Segment { tcp: None, payload: body, length: length as u32 };
    match protocol {
        TCP => {
            let header = body.first_chunk::<14>().ok_or(Malformed("truncated"))?;
            let [s0, s1, d0, d1, q0, q1, q2, q3, a0, a1, a2, a3, offset, flags] = *header;
            let offset = usize::from(offset >> 4) * 4;
            let left = length.checked_sub(offset).filter(|_| offset >= 20);
            let length = left.ok_or(Malformed("the length of a TCP header"))? as u32;
            let tcp = Tcp {
                sequence: u32::from_be_bytes([q0, q1, q2, q3]),
                acknowledged: u32::from_be_bytes([a0, a1, a2, a3]),
                flags,
            };
            let payload = body.get(offset..).unwrap_or_default();
            let ports = [u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1])];
            Ok((ports, Segment { tcp: Some(tcp), payload, length }))
        }
        UDP => {
            let mut reader = Reader::new(body);
            let (ports, says) = ([reader.u16()?, reader.u16()?], usize::from(reader.u16()?));
            reader.u16()?;
            let length = match says {
                0 => length,
                _ if fragment => says.min(length),
                says if says <= length => says,
                _ => return Err(Malformed("the length of a UDP datagram")),
            };
            let length = length.checked_sub(8).ok_or(Malformed("the length of a UDP datagram"))?;
            let payload = reader.rest();
            let payload = payload.get(..length).unwrap_or(payload);
            Ok((ports, Segment { tcp: None, payload, length: length as u32 }))
        }
        SCTP => {
            let mut reader = Reader::new(body);
            let ports = [reader.u16()?, reader.u16()?];
            reader.take(8)?;
            let payload = sctp_data(reader).unwrap_or_default();
            Ok((ports, Segment { tcp: None, payload, length: payload.len() as u32 }))
        }
        _ => Ok(([0; 2], none)),
    }
}

/// The user data of the first DATA chunk (RFC 9260, section 3.3.1).
fn sctp_data<'a>(mut chunks: Reader<'a>) -> Option<&'a [u8]> {
    const MOST: usize = 16;
    for _ in 0..MOST {
        let (kind, _, length) = (chunks.u8().ok()?, chunks.u8().ok()?, chunks.u16().ok()?);
        let body = usize::from(length).checked_sub(4)?;
        if kind == 0 {
            let chunk = chunks.rest();
            return chunk.get(..body).unwrap_or(chunk).get(12..);
        }
        chunks.take(body.next_multiple_of(4)).ok()?;
    }
    None
}
