//! `[intercept]`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use wiretight_keys::Id;
use wiretight_proxy::Network;
use wiretight_proxy::intercept::rules::{Mode, Pass};
use wiretight_proxy::relay::settings::InterceptSettings;

use super::across::Across;
use super::report::{Complaint, Report};
use super::section::{Section, Setting};
use super::value::*;

const DEFAULT_PORT: u16 = 7491;
const DEFAULT_MANAGEMENT: u16 = 22;

/// `[intercept]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intercept {
    /// The mode for plaintext between this machine and the mesh.
    pub mode: Mode,
    /// Other modes for these peers.
    pub peers: BTreeMap<IpAddr, Mode>,
    /// Addresses of the mesh in addition to those in the registry.
    pub protect: Vec<Network>,
    /// Allowed plaintext.
    pub passes: Vec<Pass>,
    /// DNS servers; `None`: those in /etc/resolv.conf.
    pub resolvers: Option<Vec<IpAddr>>,
    /// TCP ports of this machine for operators (SSH).
    pub management: Vec<u16>,
    /// Only programs in these control groups are intercepted; if empty, all programs.
    pub cgroups: Vec<String>,
}

pub(super) fn read_intercept(
    report: &mut Report<'_>,
    mut s: Section<'_>,
    this_node: Option<&Id>,
    across: &mut Across,
) -> Option<(Intercept, InterceptSettings)> {
    let mode = s.required(report, "mode", mode);
    let own = s.optional(report, "as", own_service);
    let port = s.optional(report, "port", port);
    let protect = s.list(report, "protect", network);
    let mut peers = BTreeMap::new();
    for (key, mode) in
        [("observe", Mode::Observe), ("permissive", Mode::Permissive), ("strict", Mode::Strict)]
    {
        let Setting::Given(list) = s.list(report, key, address) else { continue };
        for (i, peer) in list.value.into_iter().enumerate() {
            if peers.insert(peer.value, mode).is_some() {
                let problem = format!("{} already has a mode", peer.value);
                let complaint = Complaint::new(
                    problem,
                    "list it in only one of observe, permissive and strict",
                );
                report.error(Some(peer.line), s.element(key, i), complaint);
            }
        }
    }
    let passes = s.list(report, "pass", pass);
    let resolvers = s.list(report, "resolvers", address);
    let management = s.list(report, "management", super::value::port);
    let cgroups = s.list(report, "cgroups", cgroup);
    let (line, number) = match &port {
        Setting::Given(port) => (Some(port.line), port.value),
        _ => (None, DEFAULT_PORT),
    };
    for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        across.listener(line, s.key("port"), SocketAddr::new(ip, number));
    }
    s.finish(report);
    let identity = match own.given() {
        Some(name) => Id::Service(name),
        None => this_node?.clone(),
    };
    let settings = InterceptSettings { port: port.or(DEFAULT_PORT), identity };
    let intercept = Intercept {
        mode: mode?.value,
        peers,
        protect: protect.values(),
        passes: passes.values(),
        resolvers: match resolvers {
            Setting::Absent => None,
            given => Some(given.values()),
        },
        management: match management {
            Setting::Absent => vec![DEFAULT_MANAGEMENT],
            given => given.values(),
        },
        cgroups: cgroups.values(),
    };
    Some((intercept, settings))
}
