//! Checks of the whole configuration: the authority must accept the node's announcement, and the kernel must accept the
//! rules that follow from the file.

use wiretight_proxy::intercept::rules::Rules;
use wiretight_proxy::network::Backend;
use wiretight_proxy::registry::{MAX_ANNOUNCEMENT, MAX_INSTANCES, weight};

use super::Config;
use super::report::{Complaint, Report};

/// The longest `ADDRESS:PORT`, for a listener whose address is determined later.
const ADDRESS: usize = 47;

impl Config {
    /// The part of the kernel's rules that depends only on the file. `None` without `[intercept]`.
    pub(crate) fn rules(&self, mark: u32) -> Option<Rules> {
        let (intercept, relay) = (self.intercept.as_ref()?, self.relay.intercept.as_ref()?);
        let services = self.relay.services.iter().map(|s| s.listen.port());
        let authority = self.authority.iter().map(|a| a.listen.port());
        let sites = self.edge.https.iter().filter(|_| !self.edge.sites.is_empty());
        let transparent = self.relay.services.iter().filter(|s| s.transparent);
        let transparent =
            transparent.flat_map(|s| &s.forward).filter_map(|backend| match backend {
                Backend::Tcp(to) => to.as_ip(),
                Backend::Unix(_) => None,
            });
        Some(Rules {
            mode: intercept.mode,
            peers: intercept.peers.clone(),
            mark,
            port: relay.port,
            listens: services.chain(authority).chain(sites.map(|a| a.port())).collect(),
            taken: Default::default(),
            protected: intercept.protect.clone(),
            passes: intercept.passes.clone(),
            resolvers: intercept.resolvers.clone().unwrap_or_default(),
            management: intercept.management.clone(),
            cgroups: intercept.cgroups.clone(),
            transparent: transparent.collect(),
        })
    }
}

/// `services` and `intercept` are the lines of the section headers.
pub(super) fn check(
    report: &mut Report<'_>,
    config: &Config,
    services: &[usize],
    intercept: Option<usize>,
) {
    if let Some(line) = services.get(MAX_INSTANCES) {
        let problem = format!(
            "this is service {} of {}, but a node may offer only {MAX_INSTANCES}",
            MAX_INSTANCES + 1,
            services.len()
        );
        let advice =
            "offer the others from another node, with its own configuration file and state_dir";
        report.error(Some(*line), "service", Complaint::new(problem, advice));
    }
    let bytes = config.relay.services.iter().map(|s| {
        let advertise = config.advertise.get(&s.name).into_iter().flatten();
        let addr = advertise.map(|a| a.to_string().len()).max().unwrap_or(ADDRESS);
        weight(&s.name, addr, &s.allow, &s.ports)
    });
    let bytes: usize = bytes.sum();
    if bytes > MAX_ANNOUNCEMENT {
        let problem = format!(
            "the announcement of the {} services has {bytes} bytes, but the limit is {MAX_ANNOUNCEMENT}",
            services.len()
        );
        let advice = "shorten the lists allow and ports, or offer some services from another node";
        report.error(services.first().copied(), "service", Complaint::new(problem, advice));
    }
    // Any mark except 0.
    if let Some(Err(error)) = config.rules(1).map(|rules| rules.check()) {
        let problem = format!("the kernel's rules would be invalid: {error}");
        let advice = "correct or shorten this section";
        report.error(intercept, "intercept", Complaint::new(problem, advice));
    }
}
