//! A running node as the admin interface sees it: its status, and the operations it can be asked for.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rustls::pki_types::CertificateDer;
use wiretight_keys::token::hex;
use wiretight_keys::{Csr, Name, x509};
use wiretight_proxy::clock::now;
use wiretight_proxy::registry::Host;
use wiretight_proxy::relay::ApplyError;
use wiretight_proxy::{Edge, Mesh, Relay};

use super::publishing::Publishing;
use crate::acme::{self, Acme};
use crate::admin::api::{
    AddressesAnswer, BundleAnswer, ConsoleAnswer, DialStatus, GrantAnswer, HoursAnswer,
    HoursRequest, IdentityStatus, NodesAnswer, ProcessStatus, PublishAnswer, PublishRequest,
    ReloadAnswer, RemoveAnswer, RenewAnswer, RevokeTokenAnswer, RotateStep, ServiceStatus, Status,
    SvidAnswer, TokenAnswer, TokensAnswer, TransparencyStatus, WatchRequest,
};
use crate::admin::metrics::{Disk, Measured};
use crate::agent::{AgentHandle, AgentParams};
use crate::authority::{
    Affected, AuthorityError, AuthorityHandle, CaStatus, Grant, ReleaseParams, Ttls,
};
use crate::config::Config;
use crate::console::session::{self, Sessions};
use crate::control::Code;
use crate::intercept::Interception;
use crate::logging::chain;
use crate::proof::audit::{self, Evidence, Window};
use crate::proof::publish;
use crate::release::Standing;
use crate::sandbox::Sandbox;
use crate::sites::files::FileCertificates;
use crate::sites::internal::InternalCertificates;
use crate::watch::host::{Listing, Watching};

/// The most connections listed in a status.
const CONNECTIONS: usize = 1000;
/// The longest validity of a join token.
const MAX_TOKEN_TTL: Duration = Duration::from_secs(30 * 86_400);

/// A running node.
pub struct Daemon {
    pub(crate) config: Arc<ArcSwap<Config>>,
    pub(crate) mesh: Arc<Mesh>,
    pub(crate) relay: Arc<Relay>,
    pub(crate) edge: Arc<Edge>,
    pub(crate) site_files: Arc<FileCertificates>,
    pub(crate) acme: Arc<Acme>,
    pub(crate) internal: Option<Arc<InternalCertificates>>,
    pub(crate) agent: AgentHandle,
    pub(crate) authority: Option<AuthorityHandle>,
    pub(crate) interception: Option<Arc<Interception>>,
    pub(crate) watching: Option<Arc<Watching>>,
    pub(crate) publishing: Arc<Publishing>,
    /// The console's address and sessions.
    pub(crate) console: Option<(SocketAddr, Arc<Sessions>)>,
    pub(crate) sandbox: Sandbox,
    /// This process's program.
    pub(crate) release: Arc<Standing>,
    pub(crate) started: Instant,
    /// Set until the previous process has handed the node over.
    pub(crate) taking_over: AtomicBool,
    /// One reload at a time.
    pub(crate) reloading: tokio::sync::Mutex<()>,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// This node does not offer it.
    #[error("{0}")]
    NotHere(&'static str),
    /// It was refused.
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Failed(String),
}

impl From<AuthorityError> for RequestError {
    fn from(e: AuthorityError) -> RequestError {
        match e {
            AuthorityError::Refused(why) => RequestError::Refused(why),
            other => RequestError::Failed(chain(&other)),
        }
    }
}

const NOT_WATCHING: RequestError = RequestError::NotHere(
    "this node does not watch its traffic: add [watch] to its configuration and restart it",
);

const NO_CONSOLE: RequestError = RequestError::NotHere(
    "this node has no console: add [console] to the configuration of the authority's node and restart it",
);

const NO_AUTHORITY: RequestError = RequestError::NotHere(
    "this node is not the authority: run this on the node whose configuration has [authority]",
);

impl Daemon {
    /// What is missing before traffic can flow; `None` when nothing is.
    pub fn not_ready(&self) -> Option<String> {
        if self.relay.status(0).draining {
            return Some("stopping".into());
        }
        if let Some(why) = self.interception.as_ref().and_then(|i| i.taken_down()) {
            return Some(why);
        }
        let agent = self.agent.status();
        if agent.ready {
            let interception = self.interception.as_ref().and_then(|i| i.not_ready());
            let authority = || self.authority.as_ref().and_then(|a| a.not_pushed());
            let refused = || {
                let why = agent.refused.as_ref().filter(|d| d.code != Code::BadRequest)?;
                Some(format!("the authority refuses some of this node's services: {why}"))
            };
            return interception.or_else(authority).or_else(refused);
        }
        if agent.removed {
            return Some(
                "this node was removed from the mesh: join again with a new join token".into(),
            );
        }
        let now = now();
        let lacks = |i: &&crate::agent::IdentityStatus| i.not_after.is_none_or(|t| t < now);
        let missing: Vec<String> =
            agent.identities.iter().filter(lacks).map(|i| i.id.to_string()).collect();
        let begins = agent.identities.iter().filter_map(|i| Some((i.not_before?, &i.id))).max();
        let early = begins.and_then(|(at, id)| Some((at.checked_sub(now).filter(|s| *s > 0)?, id)));
        let mut why = match (missing.is_empty(), early) {
            (false, _) => format!("no valid identity for {}", missing.join(", ")),
            (true, Some((ahead, id))) => format!(
                "the certificate of {id} is not valid for another {ahead} s by this machine's clock: this clock, or the authority's when it issued the certificate, was wrong (`timedatectl`). A new one is being requested"
            ),
            (true, None) => "no trust bundle yet".to_owned(),
        };
        let errors = agent.identities.iter().filter_map(|i| i.error.as_ref());
        let mut errors: Vec<&String> = agent.last_error.iter().chain(errors).collect();
        errors.dedup();
        for error in errors.into_iter().take(2) {
            why += &format!("; {error}");
        }
        Some(why)
    }

    /// The data of `wiretight status`.
    pub fn status(&self) -> Status {
        let config = self.config.load();
        let not_ready = self.not_ready();
        let identities = self.mesh.identities();
        let identity = |i: &Arc<wiretight_proxy::Identity>| {
            let not_after = i.leaf().period.not_after;
            IdentityStatus {
                id: i.id().clone(),
                not_after,
                expires_in_seconds: not_after as i64 - now() as i64,
                serial: i.leaf().serial.to_string(),
            }
        };
        let registry = self.mesh.registry();
        let services = config.relay.services.iter().map(|s| ServiceStatus {
            name: s.name.clone(),
            listen: s.listen.to_string(),
            forward: s.forward.iter().map(ToString::to_string).collect(),
            allow: s.allow.clone(),
        });
        let dials = config.relay.dials.iter().map(|d| {
            let registered = registry.services.get(&d.service).into_iter().flatten();
            let registered = registered.map(|i| i.addr.to_string()).collect();
            let given = d.to.iter().map(ToString::to_string).collect();
            DialStatus {
                service: d.service.clone(),
                listen: d.listen.to_string(),
                identity: d.identity.clone(),
                instances: if d.to.is_empty() { registered } else { given },
            }
        });
        let relay = self.relay.status(CONNECTIONS);
        let intercept = self.interception.as_ref().map(|i| i.status(&relay.refusals));
        Status {
            process: ProcessStatus {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                node: config.node.name.clone(),
                trust_domain: config.node.trust_domain.clone(),
                pid: std::process::id(),
                uptime_seconds: self.started.elapsed().as_secs(),
                taking_over: self.taking_over.load(Relaxed),
            },
            ready: not_ready.is_none(),
            not_ready,
            identities: identities.values().map(identity).collect(),
            authority_link: self.agent.status(),
            is_authority: self.authority.is_some(),
            transparency: self.transparency(),
            log: self.authority.as_ref().map(|authority| authority.log().status()),
            claims: self.authority.as_ref().map(|authority| authority.claims_status()),
            releases: self.authority.as_ref().and_then(|authority| authority.releases_status()),
            services: services.collect(),
            dials: dials.collect(),
            relay,
            edge: self.edge.status(),
            site_errors: self
                .acme
                .errors()
                .into_iter()
                .chain(self.site_files.errors())
                .chain(self.internal.iter().flat_map(|i| i.errors()))
                .collect(),
            intercept,
            exceptions: super::reporting::exceptions(&config),
            watch: self.watching.as_ref().map(|host| host.status()),
            publish: self.publishing.status(),
            sandbox: self.sandbox,
            release: Some(self.release.short()),
        }
    }

    /// What only the metrics show.
    pub(crate) async fn measured(&self) -> Measured {
        let config = self.config.load_full();
        let (sites, handshakes) = self.edge.latencies();
        let identity =
            |i: &Arc<wiretight_proxy::Identity>| (i.id().clone(), i.leaf().period.not_before);
        let bundle = self.mesh.bundle();
        let root = |root: &CertificateDer<'static>| {
            Some((hex(&x509::fingerprint(root)), x509::not_after(root)?))
        };
        let disk = rustix::fs::statvfs(&config.node.state_dir).ok();
        let nodes = match &self.authority {
            Some(authority) => authority.list_nodes().await.unwrap_or_default(),
            None => Vec::new(),
        };
        Measured {
            relay: self.relay.latencies(),
            sites,
            handshakes,
            not_before: self.mesh.identities().values().map(identity).collect(),
            roots: bundle.roots().iter().filter_map(root).collect(),
            configured: config.intercept.as_ref().map(|i| i.mode),
            disk: disk.map(|of| Disk {
                available: of.f_bavail.saturating_mul(of.f_frsize),
                size: of.f_blocks.saturating_mul(of.f_frsize),
            }),
            watcher: self.watching.as_ref().and_then(|host| host.cost()),
            ca: self.authority.as_ref().map(|authority| authority.ca_status()),
            nodes,
        }
    }

    /// Reads the state of the interception rules now, so that [`Daemon::status`] is not a few seconds behind.
    pub(crate) async fn look_at_the_rules(&self) {
        if let Some(interception) = &self.interception {
            interception.look_now().await;
        }
    }

    fn transparency(&self) -> TransparencyStatus {
        let asks = self.mesh.transparency();
        let link = self.agent.status();
        let silent = link.last_contact.map(|at| now().saturating_sub(at));
        TransparencyStatus {
            required: asks.policy().is_some(),
            quorum: asks.policy().map(|policy| policy.quorum_text()),
            // While connected, the node hears of every change at once.
            news_age_seconds: if link.connected { Some(0) } else { silent },
            without_news: self.mesh.is_without_news(),
        }
    }

    /// Applies the configuration file as it is now: completely or not at all.
    pub async fn reload(&self) -> Result<ReloadAnswer, RequestError> {
        let _one = self.reloading.lock().await;
        let result = self.apply_file().await;
        match &result {
            Ok(_) => tracing::info!("configuration reloaded"),
            Err(error) => {
                tracing::error!(%error, "configuration not reloaded: the previous one stays in force")
            }
        }
        result
    }

    async fn apply_file(&self) -> Result<ReloadAnswer, RequestError> {
        let old = self.config.load_full();
        let new = Config::load(&old.path).map_err(|e| RequestError::Refused(e.to_string()))?;
        if let Some(key) = needs_restart(&old, &new) {
            return Err(RequestError::Refused(format!(
                "{}: a change of {key} needs a restart; nothing was applied",
                new.path.display()
            )));
        }
        let mut warnings = new.warnings.clone();
        warnings.extend(new.exception_warnings(now()));
        warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        let certificates = self.site_files.stage(&new);
        if let Some(error) = certificates.errors().first() {
            return Err(RequestError::Refused(format!("invalid site certificate: {error}")));
        }
        let cas = acme::cas(&new.acme).map_err(|e| RequestError::Refused(chain(&e)))?;
        let params = AgentParams::from_config(&new);
        let params = params.map_err(|e| RequestError::Refused(chain(&e)))?;
        let releases = new.authority.as_ref().map(|of| ReleaseParams::from_config(&new, of));
        let releases = releases.transpose().map_err(|e| RequestError::Refused(chain(&e)))?;
        let refused = |e: &ApplyError| RequestError::Refused(chain(e));
        self.relay.apply(&new.relay).map_err(|e| refused(&e))?;
        if let Err(error) = self.edge.apply(&new.edge) {
            // All or nothing: the relay returns to its previous configuration.
            if let Err(error) = self.relay.apply(&old.relay) {
                tracing::error!(error = chain(&error), "cannot restore the previous services");
            }
            return Err(refused(&error));
        }
        certificates.commit();
        self.acme.update(new.acme_sites(), cas);
        self.acme.update_on_demand(new.on_demand_sites());
        if let Some(internal) = &self.internal {
            internal.update(new.internal_sites()).await;
        }
        // The reload may have fixed what made an order fail: do not wait any longer.
        if let Err(error) = self.acme.retry().await {
            tracing::error!(error = chain(&error), "the certificate store failed");
        }
        if let (Some(handle), Some(section)) = (&self.authority, &new.authority) {
            let ttls = Ttls { svid: section.svid_ttl, intermediate: section.intermediate_ttl };
            handle.update(ttls, section.advertise.clone(), releases.unwrap_or_default());
            // Grants of services that the file no longer names are kept: removing them would close live
            // connections. `node grant` removes them.
            let granted = handle.grant(new.node.name.clone(), new.claimed(), Grant::Add).await;
            if let Err(error) = granted {
                tracing::warn!(error = chain(&error), "cannot grant this node its own services");
            }
        }
        let mut params = params;
        if let Some(handle) = &self.authority {
            params.own_authority(handle.loopback_address(), handle.join_address());
        }
        self.agent.update(params).await;
        let summary = ReloadAnswer {
            reloaded: true,
            services: new.relay.services.len(),
            dials: new.relay.dials.len(),
            sites: new.edge.sites.len(),
            warnings,
        };
        self.config.store(Arc::new(new));
        if let Some(interception) = &self.interception {
            interception.wake();
        }
        Ok(summary)
    }

    /// Listens on the ports that the previous process has released.
    pub(crate) async fn complete_edge(&self) {
        let _one = self.reloading.lock().await;
        if let Err(error) = self.edge.apply(&self.config.load().edge) {
            tracing::warn!(error = chain(&error), "cannot listen on all ports of the edge");
        }
    }

    /// The configuration in force.
    pub(crate) fn config(&self) -> Arc<Config> {
        self.config.load_full()
    }

    /// Transparent interception, if `[intercept]` is configured.
    pub(crate) fn interception(&self) -> Option<&Interception> {
        self.interception.as_deref()
    }

    /// What flows through this machine.
    pub(crate) async fn watched(&self, request: WatchRequest) -> Result<Listing, RequestError> {
        let host = self.watching.as_ref().ok_or(NOT_WATCHING)?;
        host.listing(request.level, request.rows).await.map_err(RequestError::Failed)
    }

    /// What flowed through this machine, or all of the mesh, by the hour.
    pub(crate) async fn hours(&self, request: HoursRequest) -> Result<HoursAnswer, RequestError> {
        let HoursRequest { from, to, mesh } = request;
        if mesh {
            let nodes = self.authority()?.totals(from, to).await?;
            return Ok(HoursAnswer { nodes });
        }
        let host = self.watching.as_ref().ok_or(NOT_WATCHING)?;
        let name = self.config.load().node.name.clone();
        Ok(HoursAnswer { nodes: [(name, host.hours(from, to))].into() })
    }

    /// The evidence for an auditor's archive.
    pub(crate) async fn audit(&self, window: Window) -> Result<Evidence, RequestError> {
        let Window { from, to } = window;
        let window = Window::new(from, to).map_err(|e| RequestError::Refused(e.to_string()))?;
        Ok(audit::collect(self.authority()?, window).await?)
    }

    /// Makes the public folder. The caller writes it.
    pub(crate) async fn publish(
        &self,
        request: PublishRequest,
    ) -> Result<PublishAnswer, RequestError> {
        let authority = self.authority()?;
        let chosen = self.config.load().publish.clone().unwrap_or_default();
        let folder = match request.preview {
            true => publish::preview(authority, &chosen).await?,
            false => publish::publish(authority, &chosen).await?,
        };
        Ok(PublishAnswer { at: folder.at, index: folder.index, files: folder.files })
    }

    /// Renews all identities at once.
    pub async fn renew(&self) -> Result<RenewAnswer, RequestError> {
        self.agent.renew_now().await.map_err(|e| RequestError::Failed(chain(&e)))?;
        Ok(RenewAnswer { renewed: true })
    }

    /// Has a certificate request signed by the authority.
    pub async fn svid(&self, csr: &str) -> Result<SvidAnswer, RequestError> {
        let refused = |e: &dyn std::error::Error| RequestError::Refused(e.to_string());
        let der = wiretight_keys::x509::csr_from_pem(csr).map_err(|e| refused(&e))?;
        Csr::parse(&der).map_err(|e| refused(&e))?;
        let chain_der = self.agent.sign(der).await.map_err(|e| RequestError::Failed(chain(&e)))?;
        Ok(SvidAnswer {
            chain: x509::to_pem(&chain_der),
            bundle: x509::to_pem(self.mesh.bundle().roots()),
        })
    }

    /// The services and nodes of the mesh.
    pub fn registry(&self) -> Arc<wiretight_proxy::mesh::Registry> {
        self.mesh.registry()
    }

    pub fn bundle(&self) -> BundleAnswer {
        BundleAnswer { bundle: x509::to_pem(self.mesh.bundle().roots()) }
    }

    fn authority(&self) -> Result<&AuthorityHandle, RequestError> {
        self.authority.as_ref().ok_or(NO_AUTHORITY)
    }

    /// Creates a join token.
    pub async fn create_token(
        &self,
        node: Name,
        services: Vec<Name>,
        addresses: Vec<Host>,
        ttl: Duration,
    ) -> Result<TokenAnswer, RequestError> {
        if ttl.is_zero() || ttl > MAX_TOKEN_TTL {
            let why = "a join token must be valid for at least 1 second and at most 30 days";
            return Err(RequestError::Refused(why.into()));
        }
        let authority = self.authority()?;
        if node == self.config.load().node.name {
            let why = format!("node {node} is the authority itself and needs no join token");
            return Err(RequestError::Refused(why));
        }
        let (of, what, at) = (node.clone(), services.clone(), addresses.clone());
        let token = authority.create_token_at(of, what, at, ttl).await?;
        let (id, expires) = (token.id.clone(), token.expires);
        let token = token.encode().to_string();
        Ok(TokenAnswer { token, id, node, services, addresses, expires })
    }

    /// The join tokens that can still be used, without the one of the authority's own node.
    pub async fn tokens(&self) -> Result<TokensAnswer, RequestError> {
        let mut tokens = self.authority()?.tokens().await?;
        let own = self.config.load().node.name.clone();
        tokens.retain(|token| token.node != own);
        Ok(TokensAnswer { tokens })
    }

    /// Revokes a join token that has not been used.
    pub async fn revoke_token(&self, id: &str) -> Result<RevokeTokenAnswer, RequestError> {
        let node = self.authority()?.revoke_token(id).await?;
        Ok(RevokeTokenAnswer { revoked: id.to_owned(), node })
    }

    /// The nodes of the mesh.
    pub async fn nodes(&self) -> Result<NodesAnswer, RequestError> {
        Ok(NodesAnswer { nodes: self.authority()?.list_nodes().await? })
    }

    /// Removes a node: its identities are revoked everywhere.
    pub async fn remove_node(&self, node: Name) -> Result<RemoveAnswer, RequestError> {
        let authority = self.authority()?;
        if node == self.config.load().node.name {
            return Err(RequestError::Refused("the authority's own node cannot be removed".into()));
        }
        authority.remove_node(node.clone()).await?;
        Ok(RemoveAnswer { removed: node })
    }

    /// Sets the services that a node may claim, or adds to them.
    pub async fn grant(
        &self,
        node: Name,
        services: Vec<Name>,
        how: Grant,
    ) -> Result<GrantAnswer, RequestError> {
        self.authority()?.grant(node.clone(), services.clone(), how).await?;
        Ok(GrantAnswer { node, services })
    }

    /// Sets the addresses that a node may announce besides the one that it connects from.
    pub async fn grant_addresses(
        &self,
        node: Name,
        addresses: Vec<Host>,
        how: Grant,
    ) -> Result<AddressesAnswer, RequestError> {
        self.authority()?.grant_addresses(node.clone(), addresses.clone(), how).await?;
        Ok(AddressesAnswer { node, addresses })
    }

    /// Revokes certificates by the indexes of their log entries.
    pub async fn revoke(
        &self,
        from: u64,
        to: u64,
        dry_run: bool,
    ) -> Result<Affected, RequestError> {
        let authority = self.authority()?;
        Ok(match dry_run {
            true => authority.affected(from, to).await?,
            false => authority.revoke(from, to).await?,
        })
    }

    /// A link to the console that works once.
    pub(crate) fn console_link(&self) -> Result<ConsoleAnswer, RequestError> {
        let (address, sessions) = self.console.as_ref().ok_or(NO_CONSOLE)?;
        let secret = sessions.link(Instant::now()).map_err(|e| {
            RequestError::Failed(format!("cannot get random bytes from the system: {e}"))
        })?;
        let config = self.config.load();
        let sites = config.console_sites();
        let sites = sites.iter().map(|authority| format!("https://{authority}/enter/{secret}"));
        Ok(ConsoleAnswer {
            link: format!("http://{address}/enter/{secret}"),
            sites: sites.collect(),
            seconds: session::LINK.as_secs(),
        })
    }

    /// The keys and state of the authority.
    pub fn authority_status(&self) -> Result<CaStatus, RequestError> {
        Ok(self.authority()?.ca_status())
    }

    /// Takes one step of a key rotation.
    pub async fn rotate(&self, step: RotateStep, force: bool) -> Result<CaStatus, RequestError> {
        let authority = self.authority()?;
        Ok(match step {
            RotateStep::Intermediate => authority.rotate_intermediate().await?,
            RotateStep::PrepareRoot => authority.rotate_root().await?,
            RotateStep::ActivateRoot => authority.activate_root(force).await?,
            RotateStep::RetireRoot => authority.retire_root(force).await?,
        })
    }
}

/// The first changed setting that needs a restart.
fn needs_restart(old: &Config, new: &Config) -> Option<&'static str> {
    changed_for_good(old, new).into_iter().find_map(|(changed, key)| changed.then_some(key))
}

/// All settings that need a restart, and whether each has changed.
fn changed_for_good(old: &Config, new: &Config) -> Vec<(bool, &'static str)> {
    let (a, b) = (&old.node, &new.node);
    let listens = |c: &Config| c.authority.as_ref().map(|s| s.listen);
    let public = |c: &Config| c.public_folder().cloned();
    let policy = |c: &Config| c.release.as_ref().map(|r| r.policy.clone());
    vec![
        (a.name != b.name, "[node] name"),
        (a.trust_domain != b.trust_domain, "[node] trust_domain"),
        (a.state_dir != b.state_dir, "[node] state_dir"),
        (a.admin != b.admin, "[node] admin"),
        (a.landlock && a.join_token_file != b.join_token_file, "[node] join_token_file"),
        (a.landlock != b.landlock, "[node] landlock"),
        (a.workers != b.workers, "[node] workers"),
        (listens(old) != listens(new), "[authority] listen"),
        (old.log != new.log, "[log]"),
        (
            old.authority.is_some() && old.witnesses != new.witnesses,
            "[witnesses] (with [authority])",
        ),
        (old.acme_server != new.acme_server, "[acme_server]"),
        (old.console != new.console, "[console]"),
        (old.intercept.is_some() != new.intercept.is_some(), "[intercept], added or removed,"),
        (old.watch != new.watch, "[watch]"),
        (a.landlock && public(old) != public(new), "[publish] dir"),
        (a.landlock && policy(old) != policy(new), "[release] policy"),
        (old.share != new.share, "[edge] share"),
        (old.dns_commands() != new.dns_commands(), "[[acme]] dns_command"),
        (
            old.acme_server.is_some() && old.edge.https != new.edge.https,
            "[edge] https (with [acme_server])",
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guide_lists_every_setting_that_needs_a_restart() {
        let text = "[node]\nname = \"a\"\ntrust_domain = \"b.example\"\n";
        let config = Config::parse("f".as_ref(), text).unwrap();
        let guide = include_str!("../../../../docs/operator.md");
        let list =
            guide.split("These need a restart").nth(1).unwrap().split("\n\n").next().unwrap();
        for (changed, key) in changed_for_good(&config, &config) {
            assert!(!changed, "{key}");
            let words = key.split([' ', ',']).filter(|w| !w.is_empty());
            let named = words.clone().take(if key.contains("] ") { 2 } else { 1 });
            for word in named.filter(|w| !["added", "(with"].contains(w)) {
                assert!(
                    list.contains(word.trim_matches(['(', ')'])),
                    "{word} of {key:?} is not in {list}"
                );
            }
        }
    }
}
