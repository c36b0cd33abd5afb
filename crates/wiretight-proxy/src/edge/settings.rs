//! The edge's settings: the parsed form of `[edge]` and `[[site]]`.

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

/// A DNS name of a site, in lower case: `example.org`, `*.example.org` for every name with one more label, or `*` for
/// any ([`SiteName::any`]; cannot be parsed from text).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SiteName(Arc<str>);

/// The text is not a valid site name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a DNS name; write for example \"example.org\" or \"*.example.org\"")]
pub struct SiteNameError(String);

impl SiteName {
    /// Any host that belongs to no other site.
    pub fn any() -> SiteName {
        SiteName("*".into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it matches more than one host.
    pub fn is_wildcard(&self) -> bool {
        self.0.starts_with('*')
    }

    /// Whether the host name is this name, or is below it if this is a wildcard.
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

/// A backend of a site.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Upstream {
    pub speaks: Speaks,
    pub at: At,
}

/// The HTTP version that a backend supports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Speaks {
    Http1,
    /// HTTP/2 without TLS, with prior knowledge (gRPC).
    H2c,
}

/// The location of a backend.
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

/// Limits for a peer's delays and data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// From the TCP connect to the end of the TLS handshake.
    pub handshake: Duration,
    /// From the first to the last byte of a request's head.
    pub head: Duration,
    /// Between two pieces of a request's body, and between two pieces of a response that the client reads.
    pub body: Duration,
    /// A connection without a request.
    pub idle: Duration,
    /// Concurrent HTTP/2 or HTTP/3 requests on one connection.
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

/// `[[site]]`: HTTPS in front of a program or a service of the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteSettings {
    /// Its names; logs and metrics use the first.
    pub names: Vec<SiteName>,
    /// Its backends, one or more.
    pub to: Vec<Upstream>,
    /// Whether each host that its wildcards match has its own certificate, requested when the first client connects.
    pub on_demand: bool,
    /// Whether it is used for clients that send no name in their handshake.
    pub default: bool,
    /// The identity to present to a service of the mesh.
    pub identity: Id,
    /// Strict-Transport-Security.
    pub hsts: Hsts,
    /// The members of the mesh that are allowed; `None` for everybody, without client certificates.
    pub clients: Option<Vec<Id>>,
    /// The path for active health checks of backends; `None` for no checks.
    pub health: Option<PathAndQuery>,
    /// The CA file (PEM) for client certificates that are not from the mesh.
    pub client_ca: Option<PathBuf>,
    /// The largest request body, in bytes.
    pub max_body: u64,
    /// The time limit for the start of a backend's response.
    pub timeout: Duration,
}

impl SiteSettings {
    /// The name in logs and metrics.
    pub fn title(&self) -> &str {
        self.names.first().map_or("", SiteName::as_str)
    }
}

/// All settings of the edge from the configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EdgeSettings {
    /// Addresses for HTTPS, and for HTTP/3 on the same ports over UDP.
    pub https: Vec<SocketAddr>,
    /// Addresses for plaintext HTTP, which is redirected to HTTPS.
    pub http: Vec<SocketAddr>,
    /// Whether HTTP/3 is enabled.
    pub http3: bool,
    /// Addresses whose `X-Forwarded-*` and `Forwarded` headers are trusted.
    pub trusted_proxies: Vec<Network>,
    /// Whether connections from these start with a PROXY protocol header.
    pub proxy_protocol: bool,
    pub limits: Limits,
    pub sites: Vec<SiteSettings>,
}

impl EdgeSettings {
    /// The host for handshakes without a name, if any.
    pub fn default_host(&self) -> Option<&str> {
        let site = self.sites.iter().find(|site| site.default)?;
        site.names.first().map(SiteName::as_str)
    }

    /// Whether forwarding headers and PROXY headers from this address are trusted.
    pub fn trusts(&self, address: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|n| n.contains(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_upstreams_are_validated() {
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
