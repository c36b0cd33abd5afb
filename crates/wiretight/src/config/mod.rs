//! The configuration file: one TOML text in; out comes a [`Config`], which exists only when valid,
//! or every error in the text with its line, its key and what to do.
//!
//! It refuses what it does not know (a misspelt `allow` must not pass in silence) and what would
//! put plaintext on a network: a backend or a dial's listener that is not on this machine. No
//! setting allows that (DESIGN.md, invariant 1). It reads the configuration file and no other: not
//! the token, not the state folder, not a DNS answer. So `wiretight check` may run anywhere.
//!
//! How it works: `toml` gives a tree in which each key and value has its place in the text. Each
//! section takes its keys out of that tree by a typed reader; a key that is left over is unknown.
//! Complaints go to one `Report`, and reading goes on. Then the checks across sections are made.

mod across;
mod certificates;
mod document;
mod edge;
mod edit;
mod intercept;
mod limits;
mod report;
mod section;
#[cfg(test)]
mod tests;
mod value;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use wiretight_keys::{Id, Name, TrustDomain};
use wiretight_proxy::edge::settings::{At, EdgeSettings, SiteName, SiteSettings};
use wiretight_proxy::relay::settings::{HostPort, RelaySettings};

pub use certificates::{
    AcmeSite, AskUrl, AskUrlError, CaSettings, Challenge, InternalSite, LETS_ENCRYPT, MAX_WEB_TTL,
    OnDemandSite,
};
pub(crate) use certificates::{acme_socket, reserved};
use document::read_document;
pub(crate) use edit::ModeEdit;
pub use intercept::Intercept;
use report::{Complaint, Report};
pub(crate) use value::parse_duration;

/// A larger file is refused, in bytes.
const MAX_FILE: usize = 1 << 20;

/// A valid configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The file that it came from, as it was given.
    pub path: PathBuf,
    /// `[node]`
    pub node: Node,
    /// `[authority]`: this node issues the identities.
    pub authority: Option<Authority>,
    /// `[witnesses]`: who has to have seen what this node believes.
    pub witnesses: Option<Witnesses>,
    /// `[log]`: how the authority's log is kept and served.
    pub log: Log,
    /// `[acme_server]`: certificates for programs with an ACME client. Its site is the last of
    /// [`EdgeSettings::sites`].
    pub acme_server: Option<AcmeServer>,
    /// All `[[service]]` and `[[dial]]`, in the order of the file.
    pub relay: RelaySettings,
    /// `[intercept]`: what the kernel is to do.
    pub intercept: Option<Intercept>,
    /// `[edge]` and all `[[site]]`.
    pub edge: EdgeSettings,
    /// Where the certificates of sites come from, in the order of [`EdgeSettings::sites`].
    pub site_certificates: Vec<SiteSource>,
    /// The CAs that certificates are ordered from, in the order in which they are asked: all `[[acme]]`, or
    /// the default if a site needs one.
    pub acme: Vec<CaSettings>,
    /// The service whose nodes share the certificates of their sites: the authority keeps them.
    pub share: Option<Name>,
    /// For each `[[service]]`, the address that other nodes are given; `None`: the agent derives
    /// it from the listener.
    pub advertise: BTreeMap<Name, Option<HostPort>>,
    /// What is allowed and probably not meant: whole lines for the log, in the form of an error.
    pub warnings: Vec<String>,
}

/// `[node]`: this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The node's name; its identity is `node/NAME`.
    pub name: Name,
    /// The trust domain of every identity here.
    pub trust_domain: TrustDomain,
    /// Keys, certificates and the last known registry; absolute.
    pub state_dir: PathBuf,
    /// Where `/healthz`, `/readyz` and `/metrics` are, on loopback; `None` when `"off"`.
    pub admin: Option<SocketAddr>,
    /// Where the authority is; empty: the join token or the stored state says, or this node is it.
    pub authority: Vec<HostPort>,
    /// The file that holds the join token; absolute; read on the first start only.
    pub join_token_file: Option<PathBuf>,
    /// Confine the process with Landlock, where the kernel has it.
    pub landlock: bool,
    /// How long live connections may go on after SIGTERM.
    pub drain: Duration,
    /// Data-plane threads; `None`: one a core.
    pub workers: Option<NonZeroUsize>,
    /// After so long without news from the authority, the node takes and makes no connections, and those that live
    /// are cut; `None`: it goes on until its identities have expired.
    pub max_staleness: Option<Duration>,
}

/// `[witnesses]`: who has to have seen what this node believes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witnesses {
    /// A C2SP tlog-policy: the log, the witnesses, the quorum; absolute.
    pub policy: PathBuf,
    /// Whether a peer whose certificates do not prove that they are logged is refused.
    pub required: bool,
    /// PEM of authorities that the authority trusts for the witnesses' HTTPS besides the system's; absolute.
    pub ca: Option<PathBuf>,
}

/// `[log]`: how the authority's log is kept and served.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Log {
    /// Where it is served by HTTPS.
    pub listen: Option<SocketAddr>,
    /// Whether everybody may read entries, rather than members of the mesh and auditors.
    pub public: bool,
    /// SHA-256 of the public keys of outsiders who may read entries.
    pub auditors: Vec<[u8; 32]>,
    /// The bucket that tiles are kept in, `s3://BUCKET/PREFIX`; `None`: in the state folder.
    pub storage: Option<String>,
}

/// `[authority]`: the issuer of identities, embedded in this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// Where nodes connect.
    pub listen: SocketAddr,
    /// The address that join tokens carry, if it is not `listen`; always given when `listen` is a
    /// wildcard address. See [`Authority::join_address`].
    pub advertise: Option<HostPort>,
    /// Lifetime of an SVID: 10s to 24h.
    pub svid_ttl: Duration,
    /// Lifetime of the intermediate that signs SVIDs; at least four times `svid_ttl`.
    pub intermediate_ttl: Duration,
}

impl Config {
    /// The services whose identity this node shows to others: those that it offers, and those that it acts as.
    pub(crate) fn shown_services(&self) -> BTreeSet<Name> {
        let to_mesh = |s: &&SiteSettings| s.to.iter().any(|to| matches!(to.at, At::Mesh(_)));
        let sites = self.edge.sites.iter().filter(to_mesh).map(|s| &s.identity);
        let dials = self.relay.dials.iter().map(|d| &d.identity);
        let intercepted = self.relay.intercept.iter().map(|i| &i.identity);
        let acted = dials.chain(intercepted).chain(sites).filter_map(|id| match id {
            Id::Service(name) => Some(name.clone()),
            Id::Node(_) | Id::Authority => None,
        });
        self.relay.services.iter().map(|s| s.name.clone()).chain(acted).collect()
    }

    /// The services that this configuration names for its own node: offered, acted as, or shared certificates with.
    pub(crate) fn claimed(&self) -> Vec<Name> {
        let mut all = self.shown_services();
        all.extend(self.share.clone());
        all.into_iter().collect()
    }

    /// Whether anything here takes an identity of a mesh, or knowledge of it.
    pub(crate) fn needs_mesh(&self) -> bool {
        let members = |s: &SiteSettings| {
            s.clients.is_some() || s.to.iter().any(|to| matches!(to.at, At::Mesh(_)))
        };
        self.authority.is_some()
            || !self.node.authority.is_empty()
            || self.node.join_token_file.is_some()
            || self.witnesses.is_some()
            || !self.relay.services.is_empty()
            || !self.relay.dials.is_empty()
            || self.intercept.is_some()
            || self.share.is_some()
            || self.edge.sites.is_empty()
            || self.edge.sites.iter().any(members)
    }

    /// The sites whose certificates are files.
    pub(crate) fn file_sites(&self) -> impl Iterator<Item = (&[SiteName], &SiteFiles)> {
        self.edge.sites.iter().zip(&self.site_certificates).filter_map(
            |(site, source)| match source {
                SiteSource::Files(files) => Some((&*site.names, files)),
                _ => None,
            },
        )
    }

    /// The sites whose certificates are ordered.
    pub(crate) fn acme_sites(&self) -> Vec<AcmeSite> {
        let all = self.edge.sites.iter().zip(&self.site_certificates);
        let ordered = all.filter_map(|(site, source)| match source {
            SiteSource::Acme => Some(AcmeSite { names: site.names.clone(), ask: None }),
            _ => None,
        });
        ordered.collect()
    }

    /// The sites whose hosts get certificates on demand.
    pub(crate) fn on_demand_sites(&self) -> Vec<OnDemandSite> {
        let all = self.edge.sites.iter().zip(&self.site_certificates);
        let on_demand = all.filter_map(|(site, source)| match source {
            SiteSource::OnDemand(ask) => {
                Some(OnDemandSite { names: site.names.clone(), ask: ask.clone() })
            }
            _ => None,
        });
        on_demand.collect()
    }

    /// The sites whose certificates the authority on this machine issues.
    pub(crate) fn internal_sites(&self) -> Vec<InternalSite> {
        let all = self.edge.sites.iter().zip(&self.site_certificates);
        let internal = all.filter(|(_, source)| **source == SiteSource::Internal);
        let internal =
            internal.map(|(site, _)| InternalSite { names: site.names.clone(), ttl: INTERNAL_TTL });
        let own = self.acme_server.iter();
        let own = own.map(|s| InternalSite { names: vec![s.name.clone()], ttl: s.ttl });
        internal.chain(own).collect()
    }

    /// The commands for dns-01, which are known to a process from its start.
    pub(crate) fn dns_commands(&self) -> Vec<PathBuf> {
        self.acme.iter().filter_map(|ca| ca.dns_command.clone()).collect()
    }
}

/// Lifetime of a site's certificate from the authority.
const INTERNAL_TTL: Duration = Duration::from_secs(86_400);

/// `[acme_server]`: the authority as an ACME server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcmeServer {
    /// The site's name under which it answers.
    pub name: SiteName,
    /// The names that it certifies: `*.example.org` for every name below `example.org`.
    pub names: Vec<SiteName>,
    /// Lifetime of its certificates: 1m to 7d.
    pub ttl: Duration,
}

impl Authority {
    /// The address that join tokens carry.
    pub fn join_address(&self) -> HostPort {
        self.advertise.clone().unwrap_or_else(|| self.listen.into())
    }
}

/// Where a site's certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SiteSource {
    /// Files of the operator.
    Files(SiteFiles),
    /// An ACME server.
    Acme,
    /// The mesh's authority, on this machine.
    Internal,
    /// An ACME server, for each host when its first client comes, if this program says yes.
    OnDemand(AskUrl),
}

/// The files that hold a site's certificate; absolute paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteFiles {
    /// The chain, PEM, leaf first.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

/// One thing that is wrong with the file, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file, as it was given.
    pub file: PathBuf,
    /// The line, from 1; `None` when the file could not be read.
    pub line: Option<usize>,
    /// `node.drain`, `[[service]] "db": listen`, `service[2].listen` (from 1) for a service without
    /// a name, or empty when the whole file is meant.
    pub key: String,
    /// What was found.
    pub problem: String,
    /// What to do.
    pub advice: String,
}

/// `FILE:LINE: KEY: PROBLEM; ADVICE`
impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}; {}", self.problem, self.advice)
    }
}

/// Every error found, at least one, in the order of their lines. Displays one a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(Vec<ConfigError>);

impl ConfigErrors {
    /// `None` if there is no error.
    pub(crate) fn of(errors: Vec<ConfigError>) -> Option<ConfigErrors> {
        (!errors.is_empty()).then_some(ConfigErrors(errors))
    }

    /// The errors, in the order of their lines.
    pub fn as_slice(&self) -> &[ConfigError] {
        &self.0
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            let newline = if i == 0 { "" } else { "\n" };
            write!(f, "{newline}{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Config, ConfigErrors> {
        let text = read(path).map_err(|complaint| {
            let mut report = Report::new(path, "");
            report.error(None, "", complaint);
            ConfigErrors(report.errors)
        })?;
        Config::parse(path, &text)
    }

    /// Checks a text; `path` is what errors call it.
    pub fn parse(path: &Path, text: &str) -> Result<Config, ConfigErrors> {
        let mut report = Report::new(path, text);
        let config = read_document(&mut report, text);
        report.errors.sort_by_key(|e| e.line);
        match config {
            Some(mut config) if report.errors.is_empty() => {
                report.warnings.sort_by_key(|w| w.line);
                config.warnings = report.warnings.iter().map(ToString::to_string).collect();
                Ok(config)
            }
            _ => Err(ConfigErrors(report.errors)),
        }
    }
}

fn read(path: &Path) -> Result<String, Complaint> {
    let mut bytes = Vec::new();
    // One byte over the limit tells "too large"; the announced size would not, of a pipe.
    let read = File::open(path).and_then(|f| f.take(MAX_FILE as u64 + 1).read_to_end(&mut bytes));
    if let Err(e) = read {
        return Err(match e.kind() {
            io::ErrorKind::NotFound => Complaint::new(
                "no such file",
                "check the path; a commented example comes from `wiretight check --example`",
            ),
            io::ErrorKind::PermissionDenied => Complaint::new(
                "this user may not read it",
                "run as a user who may, or change the file's owner or mode",
            ),
            io::ErrorKind::IsADirectory => {
                Complaint::new("this is a directory", "give the path of the file in it")
            }
            _ => Complaint::new(format!("cannot be read: {e}"), "check the path and the disk"),
        });
    }
    if bytes.len() > MAX_FILE {
        return Err(too_large());
    }
    String::from_utf8(bytes).map_err(|e| {
        let good = e.utf8_error().valid_up_to();
        let line = 1 + e.as_bytes()[..good].iter().filter(|b| **b == b'\n').count();
        Complaint::new(format!("line {line} is not UTF-8 text"), "save the file as UTF-8")
    })
}

fn too_large() -> Complaint {
    Complaint::new("larger than 1 MiB", "check that this is the configuration file")
}
