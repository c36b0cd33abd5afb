//! The configuration file. Parses a TOML text into a valid [`Config`], or returns all errors, each with its line, its key
//! and advice.
//!
//! Unknown keys are errors, so that a misspelt `allow` cannot pass unnoticed. So is everything that would send plaintext
//! over a network: a backend or a dial's listener that is not on this machine. No setting allows that (DESIGN.md,
//! invariant 1). Only the configuration file is read: no token, no state directory, no DNS. So `wiretight check` can
//! run anywhere.
//!
//! `toml` returns a tree with the position of each key and value. Each section removes its keys from that tree with typed
//! readers; remaining keys are unknown. Errors go to one `Report`, and parsing continues. Checks across sections come
//! last.

mod across;
mod certificates;
mod console;
mod document;
mod edge;
mod edit;
mod exception;
mod intercept;
mod limits;
mod publish;
mod release;
mod report;
mod section;
#[cfg(test)]
mod tests;
mod value;
mod watch;

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
use wiretight_proxy::network::{Backend, HostPort};
use wiretight_proxy::relay::settings::RelaySettings;

pub use certificates::{
    AcmeSite, AskUrl, AskUrlError, CaSettings, Challenge, InternalSite, LETS_ENCRYPT, MAX_WEB_TTL,
    OnDemandSite,
};
pub(crate) use certificates::{acme_socket, reserved};
pub use console::Console;
use document::{read_document, read_state_dir};
pub(crate) use edit::ModeEdit;
pub use exception::{Exception, Subject};
pub use intercept::Intercept;
pub use publish::Publish;
pub use release::Release;
use report::{Complaint, Report};
pub(crate) use value::parse_duration;
pub use watch::Watch;

/// The largest file, in bytes.
const MAX_FILE: usize = 1 << 20;

/// A valid configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The path of the file, as given.
    pub path: PathBuf,
    /// `[node]`
    pub node: Node,
    /// `[authority]`
    pub authority: Option<Authority>,
    /// `[witnesses]`
    pub witnesses: Option<Witnesses>,
    /// `[log]`
    pub log: Log,
    /// `[console]`
    pub console: Option<Console>,
    /// `[acme_server]`. Its site is the last of [`EdgeSettings::sites`].
    pub acme_server: Option<AcmeServer>,
    /// All `[[service]]` and `[[dial]]`, in file order.
    pub relay: RelaySettings,
    /// `[intercept]`
    pub intercept: Option<Intercept>,
    /// All `[[exception]]`, in file order.
    pub exceptions: Vec<Exception>,
    /// `[watch]`
    pub watch: Option<Watch>,
    /// `[publish]`
    pub publish: Option<Publish>,
    /// `[release]`
    pub release: Option<Release>,
    /// `[edge]` and all `[[site]]`.
    pub edge: EdgeSettings,
    /// The sources of the sites' certificates, in the order of [`EdgeSettings::sites`].
    pub site_certificates: Vec<SiteSource>,
    /// The CAs to order certificates from, in order of preference: all `[[acme]]`, or the default if a site needs one.
    pub acme: Vec<CaSettings>,
    /// The service whose nodes share the certificates of their sites through the authority.
    pub share: Option<Name>,
    /// For each `[[service]]`, the address for other nodes; `None`: derived from the listener.
    pub advertise: BTreeMap<Name, Option<HostPort>>,
    /// Settings that are valid but probably mistakes; each is a line for the log, formatted like an error.
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
    /// The loopback address for `/healthz`, `/readyz` and `/metrics`; `None` for `"off"`.
    pub admin: Option<SocketAddr>,
    /// The authority's addresses; if empty, those in the join token or the stored state, or this node is the authority.
    pub authority: Vec<HostPort>,
    /// The file with the join token; absolute; read only until the node has joined.
    pub join_token_file: Option<PathBuf>,
    /// Whether to confine the process with Landlock, if the kernel supports it.
    pub landlock: bool,
    /// How long live connections may continue after SIGTERM.
    pub drain: Duration,
    /// Data-plane threads; `None`: one per core.
    pub workers: Option<NonZeroUsize>,
    /// How long the node may be out of contact with the authority. After that it closes its connections and opens no new
    /// ones until contact is restored. `None`: it continues until its identities expire.
    pub max_staleness: Option<Duration>,
}

/// `[witnesses]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witnesses {
    /// A C2SP tlog-policy: the log, the witnesses, the quorum; absolute.
    pub policy: PathBuf,
    /// Whether to refuse peers whose certificates have no proof that they are logged.
    pub required: bool,
    /// CA certificates (PEM) for the witnesses' HTTPS, in addition to the system's; absolute.
    pub ca: Option<PathBuf>,
}

/// `[log]`: storage and serving of the authority's log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Log {
    /// The HTTPS address.
    pub listen: Option<SocketAddr>,
    /// Whether everyone may read entries, or only members of the mesh and auditors.
    pub public: bool,
    /// SHA-256 of the public keys of outsiders who may read entries.
    pub auditors: Vec<[u8; 32]>,
    /// The bucket for tiles, `s3://BUCKET/PREFIX`; `None`: the state directory.
    pub storage: Option<String>,
}

/// `[authority]`: this node issues the identities.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// The address for nodes.
    pub listen: SocketAddr,
    /// The address in join tokens, if it is not `listen`; required if `listen` is a wildcard address. See
    /// [`Authority::join_address`].
    pub advertise: Option<HostPort>,
    /// Lifetime of an SVID: 10s to 24h.
    pub svid_ttl: Duration,
    /// Lifetime of the intermediate that signs SVIDs; at least four times `svid_ttl`.
    pub intermediate_ttl: Duration,
    /// Whether nodes get identities only if they have shown that they run a release that `[release]` accepts.
    pub require_release: bool,
    /// How long a node may be without one.
    pub release_grace: Duration,
}

impl Config {
    /// The services whose identity this node uses: those that it offers, and those that it acts as.
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

    /// The services that the node must be allowed to claim: offered, acted as, or sharing certificates.
    pub(crate) fn claimed(&self) -> Vec<Name> {
        let mut all = self.shown_services();
        all.extend(self.share.clone());
        all.into_iter().collect()
    }

    /// Whether anything in the configuration needs a mesh.
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
            || (self.edge.sites.is_empty() && self.watch.is_none())
            || self.edge.sites.iter().any(members)
    }

    /// Whether a host is the name of a site that leads to the console, and requires a client certificate.
    pub(crate) fn is_console_site(&self, host: &str) -> bool {
        let Some(Console { listen, .. }) = &self.console else { return false };
        let console = Backend::Tcp((*listen).into());
        // A site for everybody is not accepted.
        let leads = |s: &SiteSettings| {
            (s.clients.is_some() || s.client_ca.is_some())
                && s.to.iter().any(|to| matches!(&to.at, At::Here(backend) if *backend == console))
        };
        let mut sites = self.edge.sites.iter().filter(|site| leads(site));
        sites.any(|site| site.names.iter().any(|name| name.covers(host)))
    }

    /// The names of the sites that lead to the console, without wildcards, with the port if it is not 443.
    pub(crate) fn console_sites(&self) -> Vec<String> {
        let mut ports = self.edge.https.iter().map(SocketAddr::port);
        let port = match ports.clone().any(|port| port == 443) {
            true => String::new(),
            false => ports.next().map(|port| format!(":{port}")).unwrap_or_default(),
        };
        let names = self.edge.sites.iter().flat_map(|site| &site.names);
        let names = names.filter(|n| !n.is_wildcard() && self.is_console_site(n.as_str()));
        names.map(|name| format!("{name}{port}")).collect()
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

    /// The sites whose certificates are ordered by ACME.
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

    /// The folder that is published.
    pub(crate) fn public_folder(&self) -> Option<&PathBuf> {
        self.publish.as_ref()?.dir.as_ref()
    }

    /// The commands for dns-01. A process can only run those that it had at its start.
    pub(crate) fn dns_commands(&self) -> Vec<PathBuf> {
        self.acme.iter().filter_map(|ca| ca.dns_command.clone()).collect()
    }
}

/// Lifetime of a site's certificate from the authority.
const INTERNAL_TTL: Duration = Duration::from_secs(86_400);

/// `[acme_server]`: the authority as an ACME server, for programs with an ACME client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcmeServer {
    /// The name of its site.
    pub name: SiteName,
    /// The names that it certifies; `*.example.org` stands for every name below `example.org`.
    pub names: Vec<SiteName>,
    /// Lifetime of its certificates: 1m to 7d.
    pub ttl: Duration,
}

impl Authority {
    /// The address in join tokens.
    pub fn join_address(&self) -> HostPort {
        self.advertise.clone().unwrap_or_else(|| self.listen.into())
    }
}

/// The source of a site's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SiteSource {
    /// Files of the operator.
    Files(SiteFiles),
    Acme,
    /// The mesh's authority, on this machine.
    Internal,
    /// An ACME server, for each host when its first client connects, if this program allows it.
    OnDemand(AskUrl),
}

/// The files with a site's certificate; absolute paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteFiles {
    /// The chain, PEM, leaf first.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

/// An error in the file, with advice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file, as given.
    pub file: PathBuf,
    /// The line, from 1; `None` if the file could not be read.
    pub line: Option<usize>,
    /// `node.drain`, `[[service]] "db": listen`, `service[2].listen` (from 1) for a service without a name, or empty for
    /// the whole file.
    pub key: String,
    pub problem: String,
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

/// All errors, at least one, sorted by line. Displays one per line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(Vec<ConfigError>);

impl ConfigErrors {
    /// `None` if there is no error.
    pub(crate) fn of(errors: Vec<ConfigError>) -> Option<ConfigErrors> {
        (!errors.is_empty()).then_some(ConfigErrors(errors))
    }

    /// The errors, sorted by line.
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

    /// The state directory of a file that is invalid: what [`Config::load`] would return, as far as it can be read. The
    /// file may be missing.
    pub fn state_dir_despite_errors(path: &Path) -> PathBuf {
        read_state_dir(path, &read(path).unwrap_or_default())
    }

    /// Parses and checks a text; `path` is used in errors.
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
    // Read one byte more than the limit to detect a file that is too large. The size of a pipe is unknown.
    let read = File::open(path).and_then(|f| f.take(MAX_FILE as u64 + 1).read_to_end(&mut bytes));
    if let Err(e) = read {
        return Err(match e.kind() {
            io::ErrorKind::NotFound => Complaint::new(
                "no such file",
                "check the path; `wiretight check --example` prints a commented example",
            ),
            io::ErrorKind::PermissionDenied => Complaint::new(
                "this user may not read it",
                "run this as a user who may, or change the file's owner or mode",
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
