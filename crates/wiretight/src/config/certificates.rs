//! Settings for the certificates of sites.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use hyper::Uri;
use hyper::http::uri::{Authority, PathAndQuery};
use wiretight_keys::TrustDomain;
use wiretight_proxy::edge::settings::SiteName;

/// The longest lifetime of a site's certificate from the authority.
pub const MAX_WEB_TTL: Duration = Duration::from_secs(7 * 86_400);

/// The default CA.
pub const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Challenge {
    /// A file on port 80 (RFC 8555, section 8.3).
    Http01,
    /// A certificate on port 443 (RFC 8737).
    TlsAlpn01,
    /// A DNS record (RFC 8555, section 8.4).
    Dns01,
}

/// `[[acme]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaSettings {
    /// The URL of its directory.
    pub directory: String,
    /// CA certificates for the ACME server's HTTPS; `None`: the system's.
    pub roots: Option<PathBuf>,
    /// mailto: URLs.
    pub contact: Vec<String>,
    /// The certificate profile to request.
    pub profile: Option<String>,
    /// `None`: http-01 and tls-alpn-01 in turn.
    pub challenge: Option<Challenge>,
    /// The command that sets DNS records.
    pub dns_command: Option<PathBuf>,
}

impl Default for CaSettings {
    fn default() -> CaSettings {
        CaSettings {
            directory: LETS_ENCRYPT.into(),
            roots: None,
            contact: Vec::new(),
            profile: None,
            challenge: None,
            dns_command: None,
        }
    }
}

/// A site whose certificate is ordered by ACME.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcmeSite {
    /// Its names; the first one identifies the site.
    pub names: Vec<SiteName>,
    /// For on-demand hosts: the program that is asked before each order.
    pub ask: Option<AskUrl>,
}

/// The URL of a program on this machine that decides whether a host may have a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskUrl {
    authority: Authority,
    path: PathAndQuery,
}

/// Why this is not an ask URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskUrlError {
    #[error("it is not http://ADDRESS:PORT/PATH")]
    Malformed,
    #[error("it is not on this machine")]
    NotHere,
}

impl FromStr for AskUrl {
    type Err = AskUrlError;
    fn from_str(s: &str) -> Result<AskUrl, AskUrlError> {
        let bad = AskUrlError::Malformed;
        let uri: Uri = s.parse().map_err(|_| bad.clone())?;
        let parts = uri.into_parts();
        let (Some(scheme), Some(authority), Some(path)) =
            (parts.scheme, parts.authority, parts.path_and_query)
        else {
            return Err(bad);
        };
        let plain = scheme.as_str() == "http" && authority.port_u16().is_some_and(|p| p > 0);
        if !plain || authority.as_str().contains('@') || s.contains('#') || s.len() > 1024 {
            return Err(bad);
        }
        let host = authority.host().trim_matches(['[', ']']);
        let here = match host.parse::<std::net::IpAddr>() {
            Ok(address) => address.to_canonical().is_loopback(),
            Err(_) => host.eq_ignore_ascii_case("localhost"),
        };
        if here { Ok(AskUrl { authority, path }) } else { Err(AskUrlError::NotHere) }
    }
}

impl AskUrl {
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    pub fn path(&self) -> &PathAndQuery {
        &self.path
    }
}

/// A site whose hosts are not known beforehand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnDemandSite {
    /// Patterns of hosts: `*.example.org` or `*`.
    pub names: Vec<SiteName>,
    /// The program that is asked about each host.
    pub ask: AskUrl,
}

/// A site whose certificate the authority issues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InternalSite {
    pub names: Vec<SiteName>,
    /// Lifetime of its certificates.
    pub ttl: Duration,
}

/// The socket on which the ACME server listens for the edge.
pub(crate) fn acme_socket(state_dir: &Path) -> PathBuf {
    state_dir.join("acme.sock")
}

/// The DNS names of members of the mesh. Other software would accept a certificate for such a name as a member's.
pub(crate) fn reserved(trust_domain: &TrustDomain) -> Vec<SiteName> {
    let td = trust_domain.as_str().replace('_', "-");
    let names = [format!("authority.{td}"), format!("*.service.{td}"), format!("*.node.{td}")];
    names.iter().filter_map(|n| n.parse().ok()).collect()
}
