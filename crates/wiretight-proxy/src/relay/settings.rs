//! What the relay is told to do: the parsed form of `[[service]]` and `[[dial]]`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use wiretight_keys::{Id, Name};

/// Why a text is not an address of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Neither `HOST:PORT` nor `[V6]:PORT`.
    #[error(
        "{0:?} is not HOST:PORT; write for example \"10.0.0.5:5432\", \"[fd00::5]:5432\" or \"db.internal:5432\""
    )]
    HostPort(String),
    /// Neither an IP address nor a DNS name of one machine.
    #[error(
        "{0:?} is not the address of one machine; write for example \"10.0.0.5\" or \"db.internal\""
    )]
    Host(String),
    /// `unix:` with a path that is not absolute, or is too long for the kernel (107 bytes).
    #[error(
        "{0:?} is not a socket path; write for example \"unix:/run/app.sock\" (absolute, at most 107 bytes)"
    )]
    Unix(String),
}

/// `HOST:PORT`; the host is an IP address or a DNS name that is resolved at each connect.
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
    /// The port; never 0.
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
        // An all-numeric last label would be a mistyped IPv4 address (RFC 3696, section 2).
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

/// Where a service's plain traffic goes: `HOST:PORT` or `unix:/PATH`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Backend {
    /// A TCP server.
    Tcp(HostPort),
    /// A Unix stream socket.
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

/// `[[service]]`: mesh connections in, plain connections out to the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSettings {
    /// The service's name; its identity is `service/NAME`.
    pub name: Name,
    /// Where mesh and mutual TLS connections arrive.
    pub listen: SocketAddr,
    /// The program, one or more instances of it.
    pub forward: Vec<Backend>,
    /// Who may connect; nobody else may.
    pub allow: Vec<Id>,
    /// Send a PROXY protocol v2 header, with the peer's SPIFFE ID, ahead of the stream.
    pub proxy_protocol: bool,
    /// Connect the program from the caller's address. All of `forward` are addresses then, and what the program
    /// answers has to be routed back here: [`net::set_answered`](crate::net::set_answered).
    pub transparent: bool,
    /// Close a session in which nothing has moved for this long; never, if `None`.
    pub idle_timeout: Option<Duration>,
    /// Connections (idle and busy) that one peer identity may hold open.
    pub max_per_peer: u32,
    /// The ports of this host that programs elsewhere connect to when they mean it: where connections are
    /// intercepted, these are taken to it.
    pub ports: Vec<u16>,
}

/// `[[dial]]`: plain connections in from a local program, mesh connections out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DialSettings {
    /// Where the local program connects.
    pub listen: SocketAddr,
    /// The service to reach.
    pub service: Name,
    /// The identity to show: a service that this node may claim, or the node itself.
    pub identity: Id,
    /// Given addresses; empty means those in the registry.
    pub to: Vec<HostPort>,
    /// Close a session in which nothing has moved for this long; never, if `None`.
    pub idle_timeout: Option<Duration>,
}

/// `[intercept]`: connections that the kernel has taken from local programs, mesh connections out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterceptSettings {
    /// The port of 127.0.0.1 and of ::1 to which the kernel sends them.
    pub port: u16,
    /// The identity to show: a service that this node may claim, or the node itself.
    pub identity: Id,
}

/// All that the relay is told by the configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RelaySettings {
    /// What is done with connections that the kernel takes from programs.
    pub intercept: Option<InterceptSettings>,
    /// The services that this node offers.
    pub services: Vec<ServiceSettings>,
    /// The services that this node's programs reach.
    pub dials: Vec<DialSettings>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_parse_or_say_what_to_write() {
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
