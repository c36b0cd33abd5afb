//! Addresses in text form: of a server (`HOST:PORT`), of a program on this machine, and of a network. And [`origin`],
//! the unit of limits on clients.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A network: `10.0.0.0/8`, or a single address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

/// A text that is not a network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not ADDRESS or ADDRESS/BITS; write for example \"10.0.0.0/8\"")]
pub struct NetworkError(String);

impl Network {
    pub fn contains(&self, address: IpAddr) -> bool {
        let shift = |width: u8| u32::from(width - self.bits);
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                (a.to_bits() ^ b.to_bits()).checked_shr(shift(32)).unwrap_or(0) == 0
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                (a.to_bits() ^ b.to_bits()).checked_shr(shift(128)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }

    /// The first address of the network: its host bits are zero.
    pub fn first(&self) -> IpAddr {
        match self.address {
            IpAddr::V4(a) => {
                let mask = u32::MAX.checked_shl(u32::from(32 - self.bits)).unwrap_or(0);
                IpAddr::V4((a.to_bits() & mask).into())
            }
            IpAddr::V6(a) => {
                let mask = u128::MAX.checked_shl(u32::from(128 - self.bits)).unwrap_or(0);
                IpAddr::V6((a.to_bits() & mask).into())
            }
        }
    }

    /// The network with a prefix of `bits`, if that is wider than this one; otherwise this one.
    pub fn wider(&self, bits: u8) -> Network {
        Network { address: self.address, bits: bits.min(self.bits) }
    }

    /// Removes networks that are part of another one. The others are returned by their first address, without
    /// duplicates.
    pub fn widest(networks: impl IntoIterator<Item = Network>) -> Vec<Network> {
        let first = |n: Network| Network { address: n.first(), bits: n.bits };
        let mut all: Vec<Network> = networks.into_iter().map(first).collect();
        all.sort_by_key(|n| (n.bits, n.address));
        let (mut widest, mut held) = (Vec::new(), HashSet::new());
        let mut lengths: Vec<u8> = Vec::new();
        for network in all {
            if lengths.iter().any(|bits| held.contains(&first(network.wider(*bits)))) {
                continue;
            }
            if lengths.last() != Some(&network.bits) {
                lengths.push(network.bits);
            }
            held.insert(network);
            widest.push(network);
        }
        widest
    }

    /// The length of the prefix.
    pub fn bits(&self) -> u8 {
        self.bits
    }
}

impl From<IpAddr> for Network {
    /// A single address. An IPv4-mapped IPv6 address becomes an IPv4 address, as in packets.
    fn from(address: IpAddr) -> Network {
        let address = address.to_canonical();
        Network { address, bits: if address.is_ipv4() { 32 } else { 128 } }
    }
}

impl FromStr for Network {
    type Err = NetworkError;
    fn from_str(s: &str) -> Result<Self, NetworkError> {
        let bad = || NetworkError(s.chars().take(80).collect());
        let (address, bits) = s.split_once('/').map_or((s, None), |(a, b)| (a, Some(b)));
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => width,
            Some(bits) => bits.parse().ok().filter(|b| *b <= width).ok_or_else(bad)?,
        };
        Ok(Network { address, bits })
    }
}

impl TryFrom<String> for Network {
    type Error = NetworkError;
    fn try_from(s: String) -> Result<Self, NetworkError> {
        s.parse()
    }
}

impl From<Network> for String {
    fn from(network: Network) -> String {
        network.to_string()
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

/// The part of an address that identifies one client: an IPv4 address, or the first 64 bits of an IPv6 address. A
/// client can choose the other 64 bits itself (RFC 4291, section 2.5.1).
pub fn origin(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
        v4 => v4,
    }
}

/// A text that is not a valid address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Neither `HOST:PORT` nor `[V6]:PORT`.
    #[error(
        "{0:?} is not HOST:PORT; write for example \"10.0.0.5:5432\", \"[fd00::5]:5432\" or \"db.internal:5432\""
    )]
    HostPort(String),
    /// Neither an IP address nor the DNS name of one machine.
    #[error(
        "{0:?} is not the address of one machine; write for example \"10.0.0.5\" or \"db.internal\""
    )]
    Host(String),
    /// `unix:` with a path that is not absolute, or longer than the kernel allows (107 bytes).
    #[error(
        "{0:?} is not a socket path; write for example \"unix:/run/app.sock\" (absolute, at most 107 bytes)"
    )]
    Unix(String),
}

/// `HOST:PORT`; the host is an IP address, or a DNS name that is resolved for each connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    host: Host,
    port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Host {
    Ip(IpAddr),
    Dns(Box<str>),
}

impl HostPort {
    /// Never 0.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The socket address, if the host is an IP address.
    pub fn as_ip(&self) -> Option<SocketAddr> {
        match self.host {
            Host::Ip(ip) => Some(SocketAddr::new(ip, self.port)),
            Host::Dns(_) => None,
        }
    }

    /// The host as text, without brackets.
    pub fn host(&self) -> String {
        match &self.host {
            Host::Ip(ip) => ip.to_string(),
            Host::Dns(name) => name.to_string(),
        }
    }
}

impl From<SocketAddr> for HostPort {
    fn from(a: SocketAddr) -> HostPort {
        HostPort { host: Host::Ip(a.ip()), port: a.port() }
    }
}

impl FromStr for HostPort {
    type Err = AddressError;
    fn from_str(s: &str) -> Result<Self, AddressError> {
        let bad = || AddressError::HostPort(s.chars().take(80).collect());
        if let Ok(a) = s.parse::<SocketAddr>() {
            return if a.port() == 0 { Err(bad()) } else { Ok(a.into()) };
        }
        let (host, port) = s.rsplit_once(':').ok_or_else(bad)?;
        let port = port.parse::<u16>().ok().filter(|p| *p != 0).ok_or_else(bad)?;
        let label = |l: &str| {
            (1..=63).contains(&l.len())
                && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        // A name with a numeric last label is most likely a mistyped IPv4 address (RFC 3696, section 2).
        let last = host.rsplit('.').next().unwrap_or_default();
        if host.len() > 253
            || !host.split('.').all(label)
            || last.bytes().all(|b| b.is_ascii_digit())
        {
            return Err(bad());
        }
        Ok(HostPort { host: Host::Dns(host.into()), port })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(ip) => SocketAddr::new(*ip, self.port).fmt(f),
            Host::Dns(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

/// The address of the program behind a service: `HOST:PORT` or `unix:/PATH`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Backend {
    Tcp(HostPort),
    Unix(PathBuf),
}

impl FromStr for Backend {
    type Err = AddressError;
    fn from_str(s: &str) -> Result<Self, AddressError> {
        match s.strip_prefix("unix:") {
            Some(p) if p.starts_with('/') && p.len() <= 107 && !p.contains('\0') => {
                Ok(Backend::Unix(p.into()))
            }
            Some(p) => Err(AddressError::Unix(p.chars().take(120).collect())),
            None => s.parse().map(Backend::Tcp),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Backend::Tcp(a) => a.fmt(f),
            Backend::Unix(p) => write!(f, "unix:{}", p.display()),
        }
    }
}

macro_rules! serde_as_text {
    ($t:ty) => {
        impl Serialize for $t {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $t {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
serde_as_text!(HostPort);
serde_as_text!(Backend);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_an_ipv4_address_or_an_ipv6_network() {
        for (address, of) in [
            ("10.0.0.1", "10.0.0.1"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("2001:db8:0:1:ffff::7", "2001:db8:0:1::"),
            ("2001:db8:0:2::7", "2001:db8:0:2::"),
        ] {
            assert_eq!(origin(address.parse().unwrap()).to_string(), of);
        }
    }

    #[test]
    fn networks_within_a_wider_one_are_removed() {
        let all =
            |texts: &[&str]| -> Vec<Network> { texts.iter().map(|t| t.parse().unwrap()).collect() };
        let widest = |texts: &[&str]| -> Vec<String> {
            Network::widest(all(texts)).iter().map(ToString::to_string).collect()
        };
        assert_eq!(
            widest(&[
                "10.0.0.7",
                "10.0.0.9/24",
                "10.0.1.1",
                "10.0.1.1",
                "fd00::1",
                "fd00::/8",
                "fe00::1"
            ]),
            ["fd00::/8", "10.0.0.0/24", "10.0.1.1/32", "fe00::1/128"]
        );
        assert_eq!(widest(&["0.0.0.0/0", "1.2.3.4", "::1"]), ["0.0.0.0/0", "::1/128"]);
    }

    #[test]
    fn valid_networks_are_parsed_and_others_rejected() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("10.1.2.3", "10.1.2.3", "10.1.2.4"),
            ("0.0.0.0/0", "1.2.3.4", "::1"),
            ("fd00::/8", "fdff::1", "fe00::1"),
            ("10.0.0.0/8", "::ffff:10.0.0.1", "::a00:1"),
        ] {
            let network: Network = network.parse().unwrap();
            assert!(network.contains(inside.parse().unwrap()), "{network:?} {inside}");
            assert!(!network.contains(outside.parse().unwrap()), "{network:?} {outside}");
            assert_eq!(network.to_string().parse(), Ok(network));
        }
        for (network, first) in
            [("10.1.2.3/8", "10.0.0.0"), ("1.2.3.4/0", "0.0.0.0"), ("fd00::1/128", "fd00::1")]
        {
            assert_eq!(network.parse::<Network>().unwrap().first().to_string(), first);
        }
        for bad in ["", "10.0.0.0/33", "10.0.0/8", "a/8", "10.0.0.0/", "::/129", "10.0.0.0/-1"] {
            assert!(bad.parse::<Network>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn valid_addresses_are_parsed_and_others_rejected() {
        for good in ["10.0.0.5:5432", "[fd00::5]:1", "db.internal:65535", "unix:/run/x.sock"] {
            assert_eq!(good.parse::<Backend>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "db",
            ":1",
            "db:0",
            "db:65536",
            "10.0.0.256:1",
            "fd00::5:1",
            "a b:1",
            "unix:x",
            "unix:",
        ] {
            assert!(bad.parse::<Backend>().is_err(), "{bad:?} was accepted");
        }
    }
}
