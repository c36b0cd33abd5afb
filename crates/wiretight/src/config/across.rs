//! Checks that need more than one section.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use wiretight_keys::Name;
use wiretight_proxy::edge::settings::SiteName;
use wiretight_proxy::network::Backend;

use super::report::{Complaint, Report};
use super::section::Located;

/// Data that the sections collect for the checks across them, even if the rest of a section is invalid.
#[derive(Default)]
pub(super) struct Across {
    listeners: Vec<Listener>,
    services: HashMap<Name, usize>,
    sites: HashMap<SiteName, usize>,
    default_line: Option<usize>,
    pub(super) backends: Vec<(usize, String, Backend)>,
    pub(super) node_authority: Option<(usize, String)>,
    pub(super) join_token_file: Option<(usize, String)>,
    pub(super) authority_line: Option<usize>,
    /// `require_release = true`
    pub(super) require_release: Option<(usize, String)>,
    pub(super) has_release: bool,
    pub(super) transparent: Vec<(usize, String)>,
    pub(super) intercepts: bool,
}

struct Listener {
    /// `None` for a default that is not in the file.
    line: Option<usize>,
    key: String,
    addr: SocketAddr,
    is_service: bool,
}

impl Across {
    pub(super) fn listener(&mut self, line: Option<usize>, key: String, addr: SocketAddr) {
        self.listeners.push(Listener { line, key, addr: canonical(addr), is_service: false });
    }

    pub(super) fn service_listener(&mut self, line: usize, key: String, addr: SocketAddr) {
        let addr = canonical(addr);
        self.listeners.push(Listener { line: Some(line), key, addr, is_service: true });
    }

    pub(super) fn service_name(
        &mut self,
        report: &mut Report<'_>,
        name: &Located<Name>,
        key: String,
    ) {
        let line = name.line;
        match self.services.entry(name.value.clone()) {
            Entry::Vacant(free) => {
                free.insert(name.line);
            }
            Entry::Occupied(first) => {
                let (name, at) = (first.key(), first.get());
                let problem = format!("{name:?} is already the name of the service on line {at}");
                let advice =
                    "give each service its own name (list the instances of one in forward)";
                report.error(Some(line), key, Complaint::new(problem, advice));
            }
        }
    }

    pub(super) fn site_name(
        &mut self,
        report: &mut Report<'_>,
        name: &Located<SiteName>,
        key: String,
    ) {
        if let Some(at) = self.sites.insert(name.value.clone(), name.line) {
            let problem = format!("{} is already the name of a site on line {at}", name.value);
            let advice = "give each name to one site";
            report.error(Some(name.line), key, Complaint::new(problem, advice));
        }
    }

    /// There is one default at most.
    pub(super) fn default_site(&mut self, report: &mut Report<'_>, line: usize, key: String) {
        if let Some(at) = self.default_line.replace(line) {
            let problem = format!("another site, on line {at}, is already the default");
            let advice = "make only one site the default";
            report.error(Some(line), key, Complaint::new(problem, advice));
        }
    }

    pub(super) fn check(mut self, report: &mut Report<'_>) {
        self.listeners.sort_by_key(|l| l.line);
        self.check_listeners(report);
        self.check_backends(report);
        for (line, key) in self.transparent.drain(..).filter(|_| !self.intercepts) {
            let problem =
                "there is no [intercept], whose rules are needed to return the program's replies";
            let advice =
                "add [intercept]; with mode = \"observe\" it drops and redirects nothing else";
            report.error(Some(line), key, Complaint::new(problem, advice));
        }
        if let Some((line, key)) = self.require_release.take().filter(|_| !self.has_release) {
            let problem = "there is no [release], whose policy says which releases are accepted";
            let advice = "add [release] with policy = \"/etc/wiretight/release.policy\"";
            report.error(Some(line), key, Complaint::new(problem, advice));
        }
        let Some(authority) = self.authority_line else { return };
        if let Some((line, key)) = self.node_authority {
            let problem = format!(
                "this node is the authority itself: it has [authority] on line {authority}"
            );
            report.error(Some(line), key, Complaint::new(problem, "remove one of the two"));
        }
        if let Some((line, key)) = self.join_token_file {
            let problem =
                format!("not used: this node is the authority ([authority] on line {authority})");
            report.warn(line, key, Complaint::new(problem, "remove the key"));
        }
    }

    /// Two listeners must not have the same address and port. A wildcard address covers its family.
    fn check_listeners(&self, report: &mut Report<'_>) {
        let mut taken: HashMap<SocketAddr, &Listener> = HashMap::new();
        let mut first: HashMap<(bool, u16), &Listener> = HashMap::new();
        for l in &self.listeners {
            let family = (l.addr.is_ipv4(), l.addr.port());
            let other = taken
                .get(&l.addr)
                .or_else(|| taken.get(&wildcard(l.addr)))
                .or_else(|| first.get(&family).filter(|_| l.addr.ip().is_unspecified()));
            if let Some(other) = other {
                let Listener { key, addr, .. } = other;
                let (place, advice) = match other.line {
                    Some(line) => (format!("on line {line}"), "give one of them another port"),
                    None => ("by default".into(), "give this one another port, or set that key"),
                };
                let problem = format!("{} is already used by {key} ({addr}) {place}", l.addr);
                report.error(l.line, l.key.clone(), Complaint::new(problem, advice));
            }
            taken.entry(l.addr).or_insert(l);
            first.entry(family).or_insert(l);
        }
    }

    /// A service must not forward to a service of this file: a loop, or plaintext to a TLS port.
    fn check_backends(&self, report: &mut Report<'_>) {
        let services: HashMap<SocketAddr, &Listener> =
            self.listeners.iter().filter(|l| l.is_service).map(|l| (l.addr, l)).collect();
        for (line, key, backend) in &self.backends {
            let Backend::Tcp(target) = backend else { continue };
            let addresses = match target.as_ip() {
                Some(addr) => vec![canonical(addr)],
                None => [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]
                    .map(|ip| SocketAddr::new(ip, target.port()))
                    .to_vec(),
            };
            let hit = addresses
                .into_iter()
                .find_map(|a| services.get(&a).or_else(|| services.get(&wildcard(a))));
            if let Some(Listener { key: other, addr, line: Some(at), .. }) = hit {
                let problem =
                    format!("{target} is a port for the mesh: {other} ({addr}) on line {at}");
                let advice = "give the address of the program itself, on its own port";
                report.error(Some(*line), key.clone(), Complaint::new(problem, advice));
            }
        }
    }
}

/// The kernel treats an IPv4-mapped IPv6 address (`::ffff:127.0.0.1`) as the IPv4 address.
fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::new(ip.into(), addr.port()),
        IpAddr::V6(_) => addr,
    }
}

/// The wildcard address of the same family and port.
fn wildcard(addr: SocketAddr) -> SocketAddr {
    let ip: IpAddr = match addr {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(ip, addr.port())
}
