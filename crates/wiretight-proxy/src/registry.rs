//! The registry: the addresses of the mesh's services, as nodes announce them and the authority distributes them.
//!
//! A node may announce anything. So each record is checked individually, by the authority and again by each node: an
//! invalid record affects only itself, and no node's records use up the capacity of another's.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use wiretight_keys::{Id, Name};

use crate::network::{AddressError, HostPort};

pub const MAX_INSTANCES: usize = 4096;
/// The most ports in the `ports` of one instance.
pub const MAX_PORTS: usize = 1024;
/// The most ports in the `ports` of all instances of one node.
pub const MAX_PORTS_OF_NODE: usize = 4096;
/// The most identities in the `allow` of one instance.
pub const MAX_ALLOWED: usize = 1024;
/// The most ports in the `ports` of all instances of the mesh; they become the kernel set of [`Rules::taken`].
///
/// [`Rules::taken`]: crate::intercept::rules::Rules::taken
pub const MAX_REDIRECTED: usize = 65_536;
/// The largest announcement of a node, as counted by [`weight`].
pub const MAX_ANNOUNCEMENT: usize = (1 << 20) - 4096;
/// The most problems that are listed individually.
const MAX_TOLD: usize = 16;

/// One instance of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// The node that announces it.
    pub node: Name,
    /// The address of its relay.
    pub addr: HostPort,
    /// The allowed clients. The instance enforces this; it is here for operators to see.
    pub allow: Vec<Id>,
    /// The application ports of this host that stand for this instance: on nodes with interception, connections to
    /// them are redirected to the instance.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u16>,
}

/// The services and nodes of the mesh, as last received from the authority.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registry {
    pub services: BTreeMap<Name, Vec<Instance>>,
    pub nodes: BTreeSet<Name>,
}

/// A host, by IP address or DNS name, in canonical form for comparison.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Host(String);

impl From<&HostPort> for Host {
    fn from(addr: &HostPort) -> Host {
        match addr.as_ip() {
            Some(at) => Host(at.ip().to_canonical().to_string()),
            None => Host(addr.host().to_ascii_lowercase()),
        }
    }
}

impl FromStr for Host {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Host, AddressError> {
        let addr: HostPort = match text.parse::<IpAddr>() {
            Ok(ip) => SocketAddr::new(ip, 1).into(),
            Err(_) => format!("{text}:1")
                .parse()
                .map_err(|_| AddressError::Host(text.chars().take(80).collect()))?,
        };
        check_address(&addr).map_err(|_| AddressError::Host(text.chars().take(80).collect()))?;
        Ok(Host::from(&addr))
    }
}

impl TryFrom<String> for Host {
    type Error = AddressError;
    fn try_from(text: String) -> Result<Host, AddressError> {
        text.parse()
    }
}

impl From<Host> for String {
    fn from(host: Host) -> String {
        host.0
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a record is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRecord {
    /// Not an address of a single machine.
    #[error("{0} is not the address of one machine")]
    Address(HostPort),
    /// Its `ports` contain 0.
    #[error("its ports contain 0")]
    PortZero,
    #[error("it has {0} ports; the limit is {MAX_PORTS}")]
    Ports(usize),
    /// Too many ports over all instances of its node.
    #[error("with it, its node has more than {MAX_PORTS_OF_NODE} ports")]
    PortsOfNode,
    /// Too many allowed clients.
    #[error("it allows {0} identities; the limit is {MAX_ALLOWED}")]
    Allowed(usize),
}

/// Whether the address can belong to a single machine.
pub fn check_address(addr: &HostPort) -> Result<(), BadRecord> {
    let nobody = |ip: IpAddr| {
        let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast() || ip.octets()[0] == 0);
        ip.is_unspecified() || ip.is_multicast() || broadcast
    };
    match addr.as_ip() {
        Some(at) if nobody(at.ip().to_canonical()) => Err(BadRecord::Address(addr.clone())),
        _ => Ok(()),
    }
}

/// Checks the lists of a record. An invalid list is emptied but the address is kept, so that plaintext to it is still
/// blocked. `of_node` is the number of ports in the node's earlier records.
pub fn check_lists(
    allow: &mut Vec<Id>,
    ports: &mut Vec<u16>,
    of_node: &mut usize,
) -> Result<(), BadRecord> {
    let mut result = Ok(());
    if allow.len() > MAX_ALLOWED {
        result = Err(BadRecord::Allowed(allow.len()));
        allow.clear();
    }
    let distinct: BTreeSet<u16> = ports.iter().copied().collect();
    let bad = match distinct.len() {
        _ if distinct.contains(&0) => Some(BadRecord::PortZero),
        n if n > MAX_PORTS => Some(BadRecord::Ports(n)),
        n if *of_node + n > MAX_PORTS_OF_NODE => Some(BadRecord::PortsOfNode),
        _ => None,
    };
    if let Some(bad) = bad {
        result = Err(bad);
        ports.clear();
    } else if distinct.len() < ports.len() {
        *ports = distinct.into_iter().collect();
    }
    *of_node += ports.len();
    result
}

/// The size of a record in an announcement, in bytes, rounded up. `addr` is the length of its address.
pub fn weight(service: &Name, addr: usize, allow: &[Id], ports: &[u16]) -> usize {
    let allow: usize = allow.iter().map(|id| id.to_string().len() + 3).sum();
    64 + service.as_str().len() + addr + allow + 6 * ports.len()
}

/// The largest share for each node so that all fit into `room`; a node that needs less gets all that it needs. `None`
/// if there is enough for all.
pub fn fair_share(wanted: impl IntoIterator<Item = usize>, room: usize) -> Option<usize> {
    let mut wanted: Vec<usize> = wanted.into_iter().collect();
    wanted.sort_unstable();
    let (mut left, mut who) = (room, wanted.len());
    for wants in wanted {
        let share = left / who;
        if wants > share {
            return Some(share);
        }
        left -= wants;
        who -= 1;
    }
    None
}

/// A list of problems; only the first ones are kept individually. The texts contain data from nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problems {
    told: Vec<String>,
    more: usize,
}

impl Problems {
    pub fn add(&mut self, problem: impl FnOnce() -> String) {
        match self.told.len() < MAX_TOLD {
            true => self.told.push(problem()),
            false => self.more += 1,
        }
    }

    pub fn into_lines(mut self) -> Vec<String> {
        if self.more > 0 {
            self.told.push(format!("and {} more", self.more));
        }
        self.told
    }
}

impl Registry {
    /// Removes invalid records and lists. Returns what was removed and why.
    pub fn tidy(&mut self) -> Vec<String> {
        let mut problems = Problems::default();
        let mut per_node: BTreeMap<Name, usize> = BTreeMap::new();
        let mut ports: BTreeMap<Name, usize> = BTreeMap::new();
        for (service, instances) in &mut self.services {
            let mut seen = BTreeSet::new();
            instances.retain_mut(|i| {
                let what = || format!("service {service} at {} of node {}", i.addr, i.node);
                let n = per_node.entry(i.node.clone()).or_default();
                *n += 1;
                if *n > MAX_INSTANCES {
                    problems.add(|| format!("{}: the node has more than {MAX_INSTANCES} records; this one is not used", what()));
                    return false;
                }
                if let Err(bad) = check_address(&i.addr) {
                    problems.add(|| format!("{}: {bad}; the record is not used", what()));
                    return false;
                }
                if !seen.insert((i.node.clone(), i.addr.clone())) {
                    return false;
                }
                let ports = ports.entry(i.node.clone()).or_default();
                if let Err(bad) = check_lists(&mut i.allow, &mut i.ports, ports) {
                    let what = format!("service {service} at {} of node {}", i.addr, i.node);
                    problems.add(|| format!("{what}: {bad}; that list is not used"));
                }
                true
            });
        }
        self.services.retain(|_, instances| !instances.is_empty());
        if let Some(share) = fair_share(ports.into_values(), MAX_REDIRECTED) {
            let mut left: BTreeMap<Name, usize> = BTreeMap::new();
            for (service, instances) in &mut self.services {
                for i in instances {
                    let left = left.entry(i.node.clone()).or_insert(share);
                    if i.ports.len() > *left {
                        problems.add(|| {
                            format!(
                                "service {service} of node {}: all nodes together have more than {MAX_REDIRECTED} ports, and this node has more than its share of {share}; the rest is not redirected",
                                i.node
                            )
                        });
                        i.ports.truncate(*left);
                    }
                    *left -= i.ports.len();
                }
            }
        }
        problems.into_lines()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(node: &str, addr: &str, ports: impl IntoIterator<Item = u16>) -> Instance {
        Instance {
            node: node.parse().unwrap(),
            addr: addr.parse().unwrap(),
            allow: vec![],
            ports: ports.into_iter().collect(),
        }
    }

    fn registry(all: Vec<(&str, Instance)>) -> Registry {
        let mut registry = Registry::default();
        for (service, instance) in all {
            registry.services.entry(service.parse().unwrap()).or_default().push(instance);
        }
        registry
    }

    #[test]
    fn a_host_has_one_canonical_form() {
        let host = |text: &str| text.parse::<Host>().map(|h| h.to_string()).ok();
        let is = |text: &str| Some(text.to_owned());
        assert_eq!(host("::ffff:10.0.0.5"), is("10.0.0.5"));
        assert_eq!(host("FD00:0::5"), is("fd00::5"));
        assert_eq!(host("DB1.Example.ORG"), is("db1.example.org"));
        for bad in ["", "10.0.0.5:1", "10.0.0.256", "0.0.0.0", "a b", "224.0.0.1", "10.0.0.0/8"] {
            assert_eq!(host(bad), None, "{bad:?}");
        }
        let of = |addr: &str| Host::from(&addr.parse::<HostPort>().unwrap()).to_string();
        assert_eq!([of("[::ffff:10.0.0.5]:1"), of("DB1:2")], ["10.0.0.5", "db1"]);
    }

    #[test]
    fn an_invalid_record_affects_only_itself_and_its_address_stays_protected() {
        let good = instance("db1", "10.0.0.5:7432", [5432]);
        let mut all = registry(vec![
            ("db", good.clone()),
            ("db", good.clone()),
            ("a", instance("bad", "0.0.0.0:7432", [1])),
            ("b", instance("bad", "255.255.255.255:1", [1])),
            ("c", instance("bad", "[ff02::1]:1", [1])),
            ("d", instance("bad", "[::ffff:0.0.0.0]:1", [1])),
            ("e", instance("bad", "10.0.0.6:1", [0, 80])),
            ("f", instance("bad", "10.0.0.6:2", 1..=16_500)),
            ("g", instance("bad", "10.0.0.6:3", [80, 80, 80])),
        ]);
        let problems = all.tidy();
        assert_eq!(problems.len(), 6, "{problems:#?}");
        assert_eq!(all.services[&"db".parse().unwrap()], [good]);
        let ports = |s: &str| all.services.get(&s.parse().unwrap()).map(|i| i[0].ports.clone());
        for gone in ["a", "b", "c", "d"] {
            assert_eq!(ports(gone), None, "{gone}");
        }
        assert_eq!(
            (ports("e"), ports("f"), ports("g")),
            (Some(vec![]), Some(vec![]), Some(vec![80]))
        );
        assert_eq!(all.tidy(), Vec::<String>::new(), "the rest is valid");
    }

    #[test]
    fn fair_share_gives_small_requests_in_full() {
        assert_eq!(fair_share([1, 2, 3], 6), None);
        assert_eq!(fair_share([], 0), None);
        assert_eq!(fair_share([1, 100, 100], 101), Some(50));
        assert_eq!(fair_share([usize::MAX, usize::MAX], 10), Some(5));
        assert_eq!(fair_share([1, 1], 1), Some(0));
    }

    #[test]
    fn nodes_with_very_many_ports_leave_room_for_others() {
        let mut all = registry(vec![("db", instance("db1", "10.0.0.5:7432", [5432]))]);
        for n in 0..20 {
            for k in 0..5 {
                let i = instance(
                    &format!("bad{n}"),
                    &format!("10.1.{n}.{k}:1"),
                    100..100 + MAX_PORTS as u16,
                );
                all.services.entry(format!("s{n}").parse().unwrap()).or_default().push(i);
            }
        }
        let problems = all.tidy();
        assert_eq!(problems.len(), MAX_TOLD + 1);
        assert!(problems[0].contains("has more than 4096 ports"), "{problems:#?}");
        let redirected: usize = all.services.values().flatten().map(|i| i.ports.len()).sum();
        assert!((MAX_REDIRECTED - 20..=MAX_REDIRECTED).contains(&redirected), "{redirected}");
        assert!(all.tidy().is_empty(), "the rest is valid");
        assert_eq!(all.services[&"db".parse().unwrap()][0].ports, [5432]);
        assert_eq!(all.services.values().flatten().count(), 101, "their addresses stay");
    }
}
