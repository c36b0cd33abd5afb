//! What the edge is told to do: the parsed form of `[edge]` and `[[site]]`.

use std::borrow::Borrow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use hyper::http::uri::PathAndQuery;
use wiretight_keys::{Id, Name};

pub use super::hsts::Hsts;
use crate::network::{AddressError, Backend};
pub use crate::network::{Network, NetworkError};

/// A DNS name that a site answers to, in small letters: `example.org`, `*.example.org` for every name with
/// one label more, or `*` for any ([`SiteName::any`]; no text parses to it).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SiteName(Arc<str>);

/// Why a text is not the name of a site.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a DNS name; write for example \"example.org\" or \"*.example.org\"")]
pub struct SiteNameError(String);

impl SiteName {
    /// Any host that no other site has.
    pub fn any() -> SiteName {
        SiteName("*".into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it stands for more than one.
    pub fn is_wildcard(&self) -> bool {
        self.0.starts_with('*')
    }

    /// Whether a host's name is this one, or below it if this is a wildcard.
    pub fn covers(&self, host: &str) -> bool {
        match self.0.strip_prefix("*.") {
            Some(suffix) => {
                let rest = host.strip_suffix(suffix).and_then(|rest| rest.strip_suffix('.'));
                rest.is_some_and(|rest| !rest.is_empty())
            }
            None => self.as_str() == host,
        }
    }
}

impl Borrow<str> for SiteName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl FromStr for SiteName {
    type Err = SiteNameError;
    fn from_str(s: &str) -> Result<Self, SiteNameError> {
        let name = s.to_ascii_lowercase();
        let rest = name.strip_prefix("*.").unwrap_or(&name);
        let label = |l: &str| {
            (1..=63).contains(&l.len())
                && !l.starts_with('-')
                && !l.ends_with('-')
                && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        let last = rest.rsplit('.').next().unwrap_or_default();
        let is_name = name.len() <= 253
            && rest.split('.').all(label)
            && !last.bytes().all(|b| b.is_ascii_digit());
        match is_name {
            true => Ok(SiteName(name.into())),
            false => Err(SiteNameError(s.chars().take(80).collect())),
        }
    }
}

impl fmt::Display for SiteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a site's requests go.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Upstream {
    /// What it speaks.
    pub speaks: Speaks,
    /// Where it is.
    pub at: At,
}

/// The HTTP that a backend speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Speaks {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 without TLS, known beforehand (gRPC).
    H2c,
}

/// Where a backend is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum At {
    /// A program on this machine.
    Here(Backend),
    /// A service of the mesh, over its mutual TLS.
    Mesh(Name),
}

impl FromStr for Upstream {
    type Err = AddressError;
    fn from_str(s: &str) -> Result<Self, AddressError> {
        let (speaks, rest) = match s.strip_prefix("h2c://") {
            Some(rest) => (Speaks::H2c, rest),
            None => (Speaks::Http1, s),
        };
        let at = match rest.strip_prefix("service/").map(str::parse) {
            Some(Ok(name)) => At::Mesh(name),
            _ => At::Here(rest.parse()?),
        };
        Ok(Upstream { speaks, at })
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.speaks == Speaks::H2c {
            f.write_str("h2c://")?;
        }
        match &self.at {
            At::Here(backend) => backend.fmt(f),
            At::Mesh(name) => write!(f, "service/{name}"),
        }
    }
}

/// How long a peer may take, and how much it may send, before it is given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// TCP connect to TLS established.
    pub handshake: Duration,
    /// The first to the last byte of a request's head.
    pub head: Duration,
    /// Between two pieces of a request's body, and between two pieces of an answer that the client takes.
    pub body: Duration,
    /// A connection without a request.
    pub idle: Duration,
    /// HTTP/2 and HTTP/3 requests at a time on one connection.
    pub streams: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(10),
            body: Duration::from_secs(60),
            idle: Duration::from_secs(120),
            streams: 128,
        }
    }
}

/// `[[site]]`: HTTPS in, a program or a service of the mesh behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteSettings {
    /// What it answers to; the first is what logs and metrics call it.
    pub names: Vec<SiteName>,
    /// Where requests go, one or more instances.
    pub to: Vec<Upstream>,
    /// Whether each host that its wildcards stand for has a certificate of its own, which is got when the
    /// first client asks for it.
    pub on_demand: bool,
    /// Whether it is for clients that name no host in their handshake.
    pub default: bool,
    /// The identity that is shown to a service of the mesh.
    pub identity: Id,
    /// What is promised to browsers.
    pub hsts: Hsts,
    /// The members of the mesh that may come in; `None`: everybody, without a certificate.
    pub clients: Option<Vec<Id>>,
    /// What backends are asked for, to see whether they are up; `None`: they are not.
    pub health: Option<PathAndQuery>,
    /// The roots (PEM) of those that may come in, if they are not members of the mesh.
    pub client_ca: Option<PathBuf>,
    /// The largest request body, in bytes.
    pub max_body: u64,
    /// How long a backend may take to begin its answer.
    pub timeout: Duration,
}

impl SiteSettings {
    /// What logs and metrics call it.
    pub fn title(&self) -> &str {
        self.names.first().map_or("", SiteName::as_str)
    }
}

/// All that the edge is told by the configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EdgeSettings {
    /// Where HTTPS is listened for; HTTP/3 on the same ports of UDP.
    pub https: Vec<SocketAddr>,
    /// Where plain HTTP is listened for, to be sent to HTTPS.
    pub http: Vec<SocketAddr>,
    /// Whether HTTP/3 is spoken.
    pub http3: bool,
    /// Whose `X-Forwarded-*` and `Forwarded` are believed.
    pub trusted_proxies: Vec<Network>,
    /// Whether connections from those begin with a PROXY protocol header.
    pub proxy_protocol: bool,
    /// Deadlines and bounds.
    pub limits: Limits,
    /// The sites.
    pub sites: Vec<SiteSettings>,
}

impl EdgeSettings {
    /// The host that a handshake without a name is for, if there is one.
    pub fn default_host(&self) -> Option<&str> {
        let site = self.sites.iter().find(|site| site.default)?;
        site.names.first().map(SiteName::as_str)
    }

    /// Whether forwarding headers and PROXY headers from this address are believed.
    pub fn trusts(&self, address: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|n| n.contains(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_upstreams_parse_or_say_what_to_write() {
        for good in ["example.org", "*.example.org", "a", "xn--bcher-kva.example", "a_b.c"] {
            assert_eq!(good.parse::<SiteName>().unwrap().as_str(), good);
        }
        assert_eq!("Example.ORG".parse::<SiteName>().unwrap().as_str(), "example.org");
        for bad in
            ["", "*", "*.", "a..b", "-a.b", "a b", "10.0.0.1", "a.*.b", "example.org:443", "é.org"]
        {
            assert!(bad.parse::<SiteName>().is_err(), "{bad:?} was accepted");
        }
        for good in
            ["127.0.0.1:80", "unix:/run/a", "h2c://[::1]:80", "service/web", "h2c://service/web"]
        {
            assert_eq!(good.parse::<Upstream>().unwrap().to_string(), good);
        }
        for bad in ["", "h2c:127.0.0.1:80", "http://127.0.0.1:80", "service/", "service/A"] {
            assert!(bad.parse::<Upstream>().is_err(), "{bad:?} was accepted");
        }
    }
}
