//! How the sites of a configuration get their certificates: values alone, for the parts that order and issue them.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use hyper::Uri;
use hyper::http::uri::{Authority, PathAndQuery};
use wiretight_keys::TrustDomain;
use wiretight_proxy::edge::settings::SiteName;

/// The longest that a certificate of a site from the authority holds.
pub const MAX_WEB_TTL: Duration = Duration::from_secs(7 * 86_400);

/// The public CA that is asked where no other is named.
pub const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";

/// Which proof a CA is given that a name is served here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Challenge {
    /// A file on port 80 (RFC 8555, section 8.3).
    Http01,
    /// A certificate on port 443 (RFC 8737).
    TlsAlpn01,
    /// A record in the DNS (RFC 8555, section 8.4).
    Dns01,
}

/// A CA, as the configuration names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaSettings {
    /// Its directory, https://.
    pub directory: String,
    /// What its own HTTPS is verified with; `None`: what the system trusts.
    pub roots: Option<PathBuf>,
    /// Whom the CA writes to, mailto:.
    pub contact: Vec<String>,
    /// The profile of certificates that is asked for.
    pub profile: Option<String>,
    /// The proof to give; `None`: one after the other.
    pub challenge: Option<Challenge>,
    /// What puts records into the DNS.
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

/// A site whose certificate is ordered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcmeSite {
    /// Its names, the first of which it is called by.
    pub names: Vec<SiteName>,
    /// Who is asked before each certificate; `None`: nobody, the names are the operator's own.
    pub ask: Option<AskUrl>,
}

/// Who says whether a host is to have a certificate: a program on this machine, by HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskUrl {
    authority: Authority,
    path: PathAndQuery,
}

/// Why a text is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskUrlError {
    /// It is no such address.
    #[error("it is not http://ADDRESS:PORT/PATH")]
    Malformed,
    /// It is elsewhere.
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
    /// Host and port.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Path, and query if there is one.
    pub fn path(&self) -> &PathAndQuery {
        &self.path
    }
}

/// A site whose hosts are not known beforehand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnDemandSite {
    /// What the hosts have in common: `*.example.org`, or `*`.
    pub names: Vec<SiteName>,
    /// Who is asked about each.
    pub ask: AskUrl,
}

/// A site whose certificate the authority issues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InternalSite {
    /// Its names.
    pub names: Vec<SiteName>,
    /// Lifetime of its certificates.
    pub ttl: Duration,
}

/// Where the ACME server answers the edge.
pub(crate) fn acme_socket(state_dir: &Path) -> PathBuf {
    state_dir.join("acme.sock")
}

/// The names by which foreign software knows members of the mesh: a certificate for one would be taken for
/// theirs.
pub(crate) fn reserved(trust_domain: &TrustDomain) -> Vec<SiteName> {
    let td = trust_domain.as_str().replace('_', "-");
    let names = [format!("authority.{td}"), format!("*.service.{td}"), format!("*.node.{td}")];
    names.iter().filter_map(|n| n.parse().ok()).collect()
}
