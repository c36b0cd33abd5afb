//! The facts, indexed for the pages: flows and services in the order in which they are shown, and names for addresses.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use wiretight_keys::Name;
use wiretight_keys::claims::{Amount, DAY, HOUR, Levels};
use wiretight_proxy::mesh::Registry;
use wiretight_scan::judge::{Level, worst_first};
use wiretight_scan::passive::Transport;
use wiretight_scan::passive::blockers::blocks;
use wiretight_scan::passive::summary::{Key, Row};

use crate::admin::api::Status;
use crate::proof::chart::of;
use crate::proof::facts::{Facts, LoggedPeriod, NodeFacts};
use crate::proof::scans::Scans;

/// The most clients of a service that are kept by address.
const CLIENTS: usize = 64;

/// What all pages are made of.
pub struct Model {
    pub facts: Facts,
    /// The node of this process.
    pub status: Status,
    pub scans: Arc<Scans>,
    /// Every row of every node, the worst and largest first.
    pub flows: Vec<Flow>,
    /// The same, added up by server, in the same order.
    pub services: Vec<Service>,
    nodes: HashMap<Name, usize>,
    instances: HashMap<SocketAddr, Name>,
    /// The node at an address, if there is only one.
    hosts: HashMap<IpAddr, Option<Name>>,
}

/// The place of a row: of which node, and its number in the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    pub node: usize,
    row: usize,
}

/// The rows of all nodes about one server, with the same protocol and level.
#[derive(Debug, Clone)]
pub struct Service {
    pub key: Key,
    /// Places in [`Model::flows`].
    pub flows: Vec<usize>,
    /// The connections and bytes of the report with the most bytes. Both ends of a connection report it, so reports are
    /// not added up.
    pub most: Amount,
    pub clients: BTreeSet<IpAddr>,
    pub more_clients: bool,
}

impl Service {
    fn new(key: Key) -> Service {
        Service {
            key,
            flows: Vec::new(),
            most: Amount::default(),
            clients: BTreeSet::new(),
            more_clients: false,
        }
    }
}

impl Model {
    pub fn new(facts: Facts, status: Status, registry: &Registry, scans: Arc<Scans>) -> Model {
        let nodes = facts.nodes.iter().enumerate().map(|(n, node)| (node.name.clone(), n));
        let (instances, hosts) = places(registry);
        let mut model = Model {
            nodes: nodes.collect(),
            instances,
            hosts,
            flows: Vec::new(),
            services: Vec::new(),
            facts,
            status,
            scans,
        };
        model.flows = flows(&model.facts);
        model.services = services(&model);
        model
    }

    pub fn row(&self, flow: Flow) -> &Row {
        let report = self.facts.nodes[flow.node].report.as_ref();
        &report.expect("a flow is a row of a report").rows.good[flow.row]
    }

    pub fn node_of(&self, flow: Flow) -> &NodeFacts {
        &self.facts.nodes[flow.node]
    }

    pub fn node(&self, name: &str) -> Option<(usize, &NodeFacts)> {
        let place = *self.nodes.get(&name.parse::<Name>().ok()?)?;
        Some((place, &self.facts.nodes[place]))
    }

    /// The service of the mesh whose instance listens at this address.
    pub fn service_at(&self, at: SocketAddr) -> Option<&Name> {
        self.instances.get(&at)
    }

    /// The only node of the mesh with this address.
    pub fn node_at(&self, at: IpAddr) -> Option<&Name> {
        self.hosts.get(&at.to_canonical())?.as_ref()
    }

    /// Services that strict mode would have to do without.
    pub fn blockers(&self) -> impl Iterator<Item = &Service> {
        self.services.iter().filter(|service| blocks(&service.key))
    }

    /// What the newest reports add up to. Rows that did not fit into a report are not in it.
    pub fn reported(&self) -> Levels {
        let mut levels = Levels::default();
        for service in &self.services {
            let of = match service.key.level {
                Level::Unknown => &mut levels.unknown,
                Level::Plaintext => &mut levels.plaintext,
                Level::Weak => &mut levels.weak,
                Level::Acceptable => &mut levels.acceptable,
                Level::Strong => &mut levels.strong,
            };
            of.add(service.most);
        }
        levels
    }

    /// The logged periods of this length that began in this time.
    pub fn periods(
        &self,
        length: u64,
        from: u64,
        to: u64,
    ) -> impl DoubleEndedIterator<Item = &LoggedPeriod> {
        let all = self.facts.periods.iter();
        all.filter(move |p| p.period.length == length && (from..to).contains(&p.period.start))
    }

    /// The end of the newest hour.
    pub fn newest(&self) -> Option<u64> {
        let hours = self.facts.periods.iter().filter(|p| p.period.length == HOUR);
        hours.map(|p| p.period.start.saturating_add(HOUR)).max()
    }

    /// The sum of the newest 24 hours; `None` if none was logged.
    pub fn last_day(&self) -> Option<Window> {
        let to = self.newest()?;
        let first = self.facts.since.unwrap_or(to);
        let from = to.saturating_sub(DAY).max(first - first % HOUR);
        Some(Window::sum(from, to, HOUR, self.periods(HOUR, from, to)))
    }

    /// The sum of the newest 31 days.
    pub fn last_month(&self) -> Option<Window> {
        let days = self.facts.periods.iter().filter(|p| p.period.length == DAY);
        let to = days.map(|p| p.period.start.saturating_add(DAY)).max()?;
        let first = self.facts.since.unwrap_or(to);
        let from = to.saturating_sub(31 * DAY).max(first - first % DAY);
        Some(Window::sum(from, to, DAY, self.periods(DAY, from, to)))
    }
}

/// The sum of periods.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Window {
    pub from: u64,
    pub to: u64,
    pub length: u64,
    pub levels: Levels,
    pub post_quantum: Amount,
    pub carried: Amount,
    pub logged: u64,
    /// Periods that are not in the log.
    pub missing: u64,
    pub watched_seconds: u64,
    pub watchable_seconds: u64,
}

impl Window {
    fn sum<'a>(
        from: u64,
        to: u64,
        length: u64,
        periods: impl Iterator<Item = &'a LoggedPeriod>,
    ) -> Window {
        let mut sum = Window { from, to, length, ..Window::default() };
        for LoggedPeriod { period, .. } in periods {
            sum.logged += 1;
            let (levels, more) = (&mut sum.levels, &period.levels);
            levels.unknown.add(more.unknown);
            levels.plaintext.add(more.plaintext);
            levels.weak.add(more.weak);
            levels.acceptable.add(more.acceptable);
            levels.strong.add(more.strong);
            sum.post_quantum.add(period.post_quantum);
            sum.carried.add(period.carried);
            sum.watched_seconds = sum.watched_seconds.saturating_add(period.watched_seconds);
            let members = u64::from(period.nodes.members);
            sum.watchable_seconds =
                sum.watchable_seconds.saturating_add(members.saturating_mul(length));
        }
        sum.missing = (to.saturating_sub(from) / length.max(1)).saturating_sub(sum.logged);
        sum
    }
}

/// All traffic.
pub fn all(levels: &Levels) -> Amount {
    let mut sum = Amount::default();
    Level::ALL.into_iter().for_each(|level| sum.add(of(levels, level)));
    sum
}

/// What is encrypted to current standards.
pub fn encrypted(levels: &Levels) -> Amount {
    let mut sum = levels.acceptable;
    sum.add(levels.strong);
    sum
}

fn flows(facts: &Facts) -> Vec<Flow> {
    let mut flows = Vec::new();
    for (node, facts) in facts.nodes.iter().enumerate() {
        let rows = facts.report.iter().flat_map(|report| &report.rows.good);
        flows.extend(rows.enumerate().map(|(row, of)| {
            let order = (worst_first(of.key.level), u64::MAX - of.total());
            (order, Flow { node, row })
        }));
    }
    flows.sort_by_key(|(order, flow)| (*order, flow.node, flow.row));
    flows.into_iter().map(|(_, flow)| flow).collect()
}

fn services(model: &Model) -> Vec<Service> {
    type Server<'a> = (SocketAddr, Transport, &'a str, Level);
    let mut places: HashMap<Server<'_>, usize> = HashMap::with_capacity(model.flows.len());
    let mut services: Vec<Service> = Vec::new();
    // What each node reports about a service: its clients may be several rows.
    let mut sums: HashMap<(usize, usize), Amount> = HashMap::with_capacity(model.flows.len());
    for (n, flow) in model.flows.iter().enumerate() {
        let row = model.row(*flow);
        let key = &row.key;
        let server: Server<'_> = (key.server, key.transport, &key.protocol, key.level);
        let place = *places.entry(server).or_insert_with(|| {
            let mut key = key.clone();
            key.client = None;
            services.push(Service::new(key));
            services.len() - 1
        });
        let service = &mut services[place];
        service.flows.push(n);
        service.more_clients |= row.more_clients;
        let client = row.key.client.map(|client| client.ip());
        for client in row.clients.iter().copied().chain(client) {
            match service.clients.len() < CLIENTS || service.clients.contains(&client) {
                true => _ = service.clients.insert(client),
                false => service.more_clients = true,
            }
        }
        let amount = Amount { connections: row.flows, bytes: row.total() };
        sums.entry((place, flow.node)).or_default().add(amount);
    }
    for ((place, _), sum) in sums {
        let most = &mut services[place].most;
        if (sum.bytes, sum.connections) > (most.bytes, most.connections) {
            *most = sum;
        }
    }
    services.sort_by_key(|service| {
        (worst_first(service.key.level), u64::MAX - service.most.bytes, service.key.server)
    });
    services
}

type Places = (HashMap<SocketAddr, Name>, HashMap<IpAddr, Option<Name>>);

/// Which service and which node is at an address, by the registry.
fn places(registry: &Registry) -> Places {
    let (mut instances, mut hosts) = (HashMap::new(), HashMap::<IpAddr, Option<Name>>::new());
    for (name, of) in &registry.services {
        for instance in of {
            let Some(at) = instance.addr.as_ip() else { continue };
            let ip = at.ip().to_canonical();
            instances.insert(SocketAddr::new(ip, at.port()), name.clone());
            if ip.is_loopback() {
                continue;
            }
            let host = hosts.entry(ip).or_insert_with(|| Some(instance.node.clone()));
            if host.as_ref() != Some(&instance.node) {
                *host = None;
            }
        }
    }
    (instances, hosts)
}

/// A period by its place in time.
pub fn period(model: &Model, start: u64, length: u64) -> Option<&LoggedPeriod> {
    let same = |p: &&LoggedPeriod| (p.period.start, p.period.length) == (start, length);
    model.facts.periods.iter().find(same)
}
