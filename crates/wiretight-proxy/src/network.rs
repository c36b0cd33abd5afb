//! A network: addresses with a common beginning.

use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Addresses with a common beginning: `10.0.0.0/8`, or one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

/// Why a text is not a network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not ADDRESS or ADDRESS/BITS; write for example \"10.0.0.0/8\"")]
pub struct NetworkError(String);

impl Network {
    /// Whether an address is in it.
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

    /// The first address: what was written, with zeros behind the common beginning.
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

    /// The network of this length that it is part of; itself, if it is no longer.
    pub fn wider(&self, bits: u8) -> Network {
        Network { address: self.address, bits: bits.min(self.bits) }
    }

    /// Of networks that hold one another, the widest; each once, by its first address.
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

    /// The length of the common beginning.
    pub fn bits(&self) -> u8 {
        self.bits
    }
}

impl From<IpAddr> for Network {
    /// One address. An IPv4 address in IPv6's clothes is an IPv4 address, as in packets.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_networks_that_hold_one_another_the_widest_stay() {
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
    fn networks_parse_or_say_what_to_write() {
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
}
