//! The kernel rules (nftables), as a value and as a transaction for `nft -j -f -` (libnftables-json(5)).
//!
//! The table is `inet wiretight`. Outbound TCP to addresses that the relay serves is redirected to the relay. Packets
//! to or from a protected address over a real interface that are not the relay's own are counted, and dropped in strict
//! mode.
//!
//! Our own packets are recognised by a mark: the relay sets it on its sockets (SO_MARK, which needs a capability), and
//! the kernel puts it on all their packets, SYN-ACKs included. Plaintext of other programs is blocked as follows:
//!
//! - **Out** (`postrouting`, where addresses are final): a packet without the mark is dropped, unless an exception
//!   applies. Nothing else is consulted; in particular not conntrack, which may have been started late, be full, or
//!   be bypassed. So another program cannot open a connection, because its SYN or SYN-ACK is dropped, and a
//!   connection from before the rules cannot continue.
//! - **In** (`input`): the kernel looks up the socket for the packet. If it has our mark, the packet passes; if not, it
//!   is dropped. There may be no socket, or one in a state without a mark (half open or closing, such as for the last
//!   ACK of a handshake). Then the packet passes if it is for one of our TCP ports (`listens`): it belongs to a
//!   handshake in which our SYN-ACK had the mark, or it is answered with a RST. If another program had taken that port,
//!   its listening socket would have no mark, so it would not get a SYN.
//! - **Forwarded** packets are never ours: only the exceptions apply.
//!
//! With `transparent` services, a backend sees its client's address, and policy routes bring its packets back to the
//! relay. Without these routes the packets would leave for the client, so they are dropped here in every mode.
//!
//! An exception depends only on the packet itself, and must match it positively. Packets that are not recognised (later
//! fragments, unknown extension headers) are dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::listing::canonical;
use crate::network::Network;
use crate::registry::MAX_REDIRECTED;

/// Our table, in the family `inet`.
pub const TABLE: &str = "wiretight";
/// The table that blocks plaintext while ours is missing, in the family `inet`.
pub const GUARD: &str = "wiretight_guard";
/// A chain that exists once the guard table is filled.
pub const GUARD_CHAIN: &str = "postrouting";
/// An empty chain that marks the table as ours.
pub const MARKER: &str = "made_by_wiretight";
/// How long a flow is listed after its last packet, in seconds.
pub const REMEMBERED: u64 = 86_400;

/// The most protected networks.
pub const MAX_PROTECTED: usize = 32_768;
/// The most TCP ports of the mesh on this machine: one for each service, and those of the authority and the edge.
const MAX_LISTENS: usize = 8192;
/// The size of a set of flows; packets that do not fit are counted as `unlisted`.
const FLOWS: u64 = 4096;
/// The first ephemeral port in Linux; of the two ports, the one below this is the service's.
const EPHEMERAL: u16 = 32_768;
/// After other tables' destination NAT (-100) and before source NAT (100), so addresses and ports are as programs see
/// them.
const POSTROUTING: i32 = 90;
/// Before other tables' destination NAT, which would prevent ours.
const REDIRECT: i32 = -110;

/// How plaintext between this machine and a peer is handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Only counted.
    Observe,
    /// Redirected to the relay if possible; the rest is counted.
    Permissive,
    /// Redirected to the relay if possible; the rest is dropped and counted.
    Strict,
}

impl Mode {
    /// The word in the configuration file.
    pub fn word(self) -> &'static str {
        match self {
            Mode::Observe => "observe",
            Mode::Permissive => "permissive",
            Mode::Strict => "strict",
        }
    }
}

/// The direction of a packet, or the side that started a connection: `Out` is from this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// From a peer.
    In,
    /// To a peer.
    Out,
}

/// The protocol of an exception.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    Tcp,
    Udp,
    /// ICMP and ICMPv6 echo ("ping"), which can carry data of a program.
    Icmp,
    /// Any other protocol, by its IANA number (50 is ESP, 47 GRE). Without ports and replies: one exception for each
    /// direction.
    Number(u8),
}

/// An exception: plaintext that the operator allows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pass {
    pub protocol: Protocol,
    /// The peers.
    pub network: Network,
    /// The service's port (TCP, UDP); `None` for all.
    pub port: Option<u16>,
    /// Who starts: with `Out` this machine may reach that port of the peers, with `In` they may reach ours. Replies
    /// are allowed.
    pub direction: Direction,
}

/// The complete input for the kernel rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    /// The default mode, for all peers.
    pub mode: Mode,
    /// Peers with another mode. They are protected too.
    pub peers: BTreeMap<IpAddr, Mode>,
    /// The mark of our own sockets' packets (SO_MARK). Not 0, which unmarked packets have.
    pub mark: u32,
    /// The port for redirected TCP, on 127.0.0.1 and `::1`.
    pub port: u16,
    /// TCP ports on which marked sockets listen for the mesh.
    pub listens: BTreeSet<u16>,
    /// Destinations to redirect, as programs use them.
    pub taken: BTreeSet<SocketAddr>,
    /// Addresses of mesh nodes, with which no plaintext is allowed.
    pub protected: Vec<Network>,
    pub passes: Vec<Pass>,
    /// DNS resolvers (port 53).
    pub resolvers: Vec<IpAddr>,
    /// TCP ports of this machine for operators' access.
    pub management: Vec<u16>,
    /// Only programs in these control groups (v2; `system.slice/app.service`) are redirected; empty for all.
    pub cgroups: Vec<String>,
    /// Backends on loopback that see their clients' addresses: their packets must stay on this machine.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub transparent: BTreeSet<SocketAddr>,
}

/// Why rules are rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RulesError {
    /// Unmarked packets have mark 0, so all plaintext would be taken for ours.
    #[error("the mark is 0, which every unmarked packet has; choose another")]
    NoMark,
    /// A port is 0.
    #[error("{0} has port 0; specify a port")]
    NoPort(&'static str),
    /// A management port accepts plaintext, so it cannot be a port of the mesh.
    #[error(
        "TCP port {0} is both a management port, which accepts plaintext, and a port of the mesh; choose another"
    )]
    PortForBoth(u16),
    /// Not an address that packets on a network can have.
    #[error("{0} is not an address of a machine on the network; remove it, or write it as IPv4")]
    Address(String),
    /// Plaintext to a backend on another machine.
    #[error("the backend {0} is not on loopback, so the service cannot be transparent")]
    NotLoopback(SocketAddr),
    /// Not the path of a control group.
    #[error(
        "{0:?} is not a control group; write its path below /sys/fs/cgroup, for example \"system.slice/app.service\""
    )]
    Cgroup(String),
    /// A port for a protocol without ports, or a number instead of a name.
    #[error(
        "invalid exception for protocol {0:?}: write TCP, UDP and ICMP by name, and specify ports only for TCP and UDP"
    )]
    Pass(Protocol),
    /// A limit was exceeded.
    #[error("{0} {1}; the limit is {2}. Group addresses into networks")]
    TooMany(usize, &'static str, usize),
}

impl Rules {
    /// Whether they can be applied.
    pub fn check(&self) -> Result<(), RulesError> {
        let bounds = [
            (self.peers.len(), "peers with a mode of their own", 16_384),
            (self.taken.len(), "redirected destinations", MAX_REDIRECTED),
            (self.protected.len(), "protected networks", MAX_PROTECTED),
            (self.listens.len(), "ports of the mesh", MAX_LISTENS),
            (self.passes.len(), "exceptions", 256),
            (self.resolvers.len(), "resolvers", 64),
            (self.management.len(), "management ports", 64),
            (self.cgroups.len(), "control groups", 64),
            (self.transparent.len(), "backends of transparent services", 256),
        ];
        if let Some((n, what, most)) = bounds.into_iter().find(|(n, _, most)| n > most) {
            return Err(RulesError::TooMany(n, what, most));
        }
        if self.mark == 0 {
            return Err(RulesError::NoMark);
        }
        let ports = [
            ("the port for redirected connections", self.port == 0),
            ("a port of the mesh", self.listens.contains(&0)),
            ("a management port", self.management.contains(&0)),
            ("a redirected destination", self.taken.iter().any(|to| to.port() == 0)),
            ("an exception", self.passes.iter().any(|p| p.port == Some(0))),
            ("a transparent backend", self.transparent.iter().any(|to| to.port() == 0)),
        ];
        if let Some((what, _)) = ports.into_iter().find(|(_, zero)| *zero) {
            return Err(RulesError::NoPort(what));
        }
        let ours = |port: &&u16| self.listens.contains(port) || **port == self.port;
        if let Some(port) = self.management.iter().find(ours) {
            return Err(RulesError::PortForBoth(*port));
        }
        let nowhere = |ip: &IpAddr| ip.is_unspecified() || ip.is_loopback();
        let single = self.taken.iter().map(SocketAddr::ip).chain(self.peers.keys().copied());
        if let Some(ip) = single.map(|ip| ip.to_canonical()).find(nowhere) {
            return Err(RulesError::Address(ip.to_string()));
        }
        if let Some(to) = self.transparent.iter().find(|to| !to.ip().is_loopback()) {
            return Err(RulesError::NotLoopback(*to));
        }
        // Packets never have such an address, so it would protect nothing.
        let mapped =
            |n: &&Network| matches!(n.first(), IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some());
        let networks = self.protected.iter().chain(self.passes.iter().map(|p| &p.network));
        if let Some(network) = networks.into_iter().find(mapped) {
            return Err(RulesError::Address(network.to_string()));
        }
        if let Some(path) = self.cgroups.iter().find(|path| !is_cgroup(path)) {
            return Err(RulesError::Cgroup(path.chars().take(80).collect()));
        }
        let bad = |p: &&Pass| match p.protocol {
            Protocol::Tcp | Protocol::Udp => false,
            Protocol::Icmp => p.port.is_some(),
            Protocol::Number(n) => p.port.is_some() || matches!(n, 1 | 6 | 17 | 58),
        };
        match self.passes.iter().find(bad) {
            Some(pass) => Err(RulesError::Pass(pass.protocol)),
            None => Ok(()),
        }
    }

    /// The transaction that replaces our table, or creates it. Counters are lost. A packet that is processed at this
    /// moment may be dropped or missed, because it can meet neither the old rules nor the new ones. [`Rules::refill`]
    /// avoids this.
    pub fn replace(&self) -> Result<Value, RulesError> {
        self.check()?;
        let table = json!({"table": table()});
        // A missing table cannot be deleted, but an existing one can be added.
        let mut all = vec![json!({"add": table}), json!({"delete": table}), json!({"add": table})];
        all.extend(self.objects().into_iter().map(|object| json!({"add": object})));
        Ok(json!({"nftables": all}))
    }

    /// The transaction that replaces all rules and addresses in our existing table. Fails if there is no table, or if
    /// it is not ours or was made by an incompatible version. Counters are kept.
    pub fn refill(&self) -> Result<Value, RulesError> {
        self.check()?;
        // Deleting a missing chain fails, and the whole transaction with it.
        let mut all = vec![json!({"delete": {"chain": Chain::new(MARKER).key()}})];
        let (chains, unwanted) = (self.chains(), self.output());
        let unwanted = (!has(&chains, unwanted.name)).then_some(unwanted);
        for chain in chains.iter().chain(&unwanted) {
            all.push(json!({"add": {"chain": chain.head()}}));
            all.push(json!({"flush": {"chain": chain.key()}}));
        }
        for set in self.sets() {
            all.push(json!({"flush": {"set": set.key()}}));
            all.extend(set.filled());
        }
        all.extend(chains.iter().flat_map(Chain::rules).map(|rule| json!({"add": rule})));
        all.extend(unwanted.map(|chain| json!({"delete": {"chain": chain.key()}})));
        Ok(json!({"nftables": all}))
    }

    /// The transaction that creates the table; fails if one of that name exists.
    pub fn create(&self) -> Result<Value, RulesError> {
        self.check()?;
        let mut all = vec![json!({"create": {"table": table()}})];
        all.extend(self.objects().into_iter().map(|object| json!({"add": object})));
        Ok(json!({"nftables": all}))
    }

    /// The transaction that changes the table from the rules `from` to these. Counters are kept. `None` if nothing
    /// differs.
    pub fn change(&self, from: &Rules) -> Result<Option<Value>, RulesError> {
        self.check()?;
        let (old_sets, old_chains) = (from.sets(), from.chains());
        let (sets, chains) = (self.sets(), self.chains());
        let mut all = Vec::new();
        for (old, new) in old_sets.iter().zip(&sets).filter(|(old, new)| old != new) {
            if !old.elements.is_empty() {
                all.push(json!({"flush": {"set": new.key()}}));
            }
            all.extend(new.filled());
        }
        if old_chains != chains {
            all.extend(chains.iter().map(|chain| json!({"add": {"chain": chain.head()}})));
            // With control groups, `pick` is filled separately.
            let by_cgroup = !self.cgroups.is_empty() && !from.cgroups.is_empty();
            let flushed = chains.iter().chain(old_chains.iter().filter(|c| !has(&chains, c.name)));
            for chain in flushed.filter(|c| !(by_cgroup && c.name == PICK)) {
                all.push(json!({"flush": {"chain": chain.key()}}));
            }
            let rules = chains.iter().flat_map(Chain::rules);
            all.extend(rules.map(|rule| json!({"add": rule})));
            let gone = old_chains.iter().filter(|c| !has(&chains, c.name));
            all.extend(gone.map(|chain| json!({"delete": {"chain": chain.key()}})));
        }
        Ok((!all.is_empty()).then(|| json!({"nftables": all})))
    }

    /// The commands (text, for `nft -f -`) that redirect these control groups. `nft`'s JSON does not support control
    /// groups, so this is a second transaction after the main one; between the two, nothing is redirected.
    pub fn pick<'a>(&self, cgroups: impl IntoIterator<Item = &'a str>) -> String {
        let mut text = format!("flush chain inet {TABLE} {PICK}\n");
        for path in cgroups.into_iter().filter(|path| is_cgroup(path)) {
            let level = path.split('/').count();
            text += &format!(
                "add rule inet {TABLE} {PICK} socket cgroupv2 level {level} \"{path}\" goto {TAKE}\n"
            );
        }
        text
    }

    /// Whether anything is redirected in any mode in use. If not, the kernel need not track connections for us, which
    /// would cost time for each packet.
    pub fn redirects(&self) -> bool {
        let takes = self.mode != Mode::Observe || self.peers.values().any(|m| *m != Mode::Observe);
        takes && !self.taken.is_empty()
    }

    /// Whether anything is dropped in any mode in use.
    pub fn drops(&self) -> bool {
        self.mode == Mode::Strict || self.peers.values().any(|m| *m == Mode::Strict)
    }

    /// The transaction that fills a guard table (see [`GUARD`]), which exists and is empty. The guard table runs
    /// right after ours and drops what ours would drop. It redirects nothing and lists no flows.
    pub fn guard(&self, table: &str) -> Result<Value, RulesError> {
        self.check()?;
        let mut all = self.guard_objects(table);
        all.iter_mut().for_each(|object| *object = json!({"add": object}));
        Ok(json!({"nftables": all}))
    }

    fn guard_objects(&self, table: &str) -> Vec<Value> {
        let ours_alone = [MARKER, "output", PICK, TAKE];
        let mut chains = self.chains();
        chains.retain(|chain| !ours_alone.contains(&chain.name));
        for chain in &mut chains {
            let verdict = match chain.name {
                "seen_by_in" | "seen_by_out" => vec![accept()],
                "dropped_by_in" | "dropped_by_out" => vec![json!({"counter": null}), drop()],
                _ => {
                    chain.base = chain.base.map(|(kind, hook, order)| (kind, hook, order + 1));
                    continue;
                }
            };
            chain.rules = vec![("", verdict)];
        }
        let mut all: Vec<Value> = self.sets().into_iter().map(Set::definition).collect();
        all.extend(chains.iter().map(|chain| json!({"chain": chain.head()})));
        all.extend(chains.iter().flat_map(Chain::rules));
        for body in all.iter_mut().filter_map(Value::as_object_mut).flat_map(|o| o.values_mut()) {
            body["table"] = table.into();
        }
        all
    }

    /// The expected listing of the table, in the form of [`Listing::canonical`](super::listing::Listing::canonical).
    pub fn expected(&self) -> Value {
        let table = json!({"table": table()});
        canonical(&[vec![table], self.objects()].concat())
    }

    fn objects(&self) -> Vec<Value> {
        let mut all = Vec::new();
        let named = |name| json!({"family": "inet", "table": TABLE, "name": name});
        all.extend(COUNTERS.map(|name| json!({"counter": named(name)})));
        all.extend(self.sets().into_iter().map(|set| set.definition()));
        for name in FLOW_SETS {
            let mut set = named(name);
            let address = if name.ends_with('4') { "ipv4_addr" } else { "ipv6_addr" };
            set["type"] = json!([address, "inet_proto", "inet_service"]);
            set["size"] = FLOWS.into();
            set["flags"] = json!(["timeout"]);
            set["timeout"] = REMEMBERED.into();
            all.push(json!({"set": set}));
        }
        let chains = self.chains();
        all.extend(chains.iter().map(|chain| json!({"chain": chain.head()})));
        all.extend(chains.iter().flat_map(Chain::rules));
        all
    }

    /// Always the same sets; only their elements vary.
    fn sets(&self) -> Vec<Set> {
        let peers = |mode| {
            let of = self.peers.iter().filter(move |(_, m)| **m == mode);
            of.map(|(ip, _)| Network::from(*ip)).collect::<Vec<_>>()
        };
        let mut protected: Vec<Network> = self.protected.clone();
        protected.extend(self.peers.keys().map(|ip| Network::from(*ip)));
        let widest = Network::widest(protected);
        let resolvers: Vec<Network> = self.resolvers.iter().map(|ip| Network::from(*ip)).collect();
        let mut sets = Vec::new();
        for v in FAMILIES {
            sets.push(Set::of_addresses(v.set("protected"), v, &widest, true));
            sets.push(Set::of_addresses(v.set("strict"), v, &peers(Mode::Strict), false));
            sets.push(Set::of_addresses(v.set("permissive"), v, &peers(Mode::Permissive), false));
            sets.push(Set::of_addresses(v.set("observe"), v, &peers(Mode::Observe), false));
            sets.push(Set::of_addresses(v.set("resolvers"), v, &resolvers, false));
            sets.push(Set::of_ends(v.set("taken"), v, &self.taken));
            sets.push(Set::of_ends(v.set("transparent"), v, &self.transparent));
        }
        sets.push(Set::of_ports("listens", self.listens.clone()));
        sets.push(Set::of_ports("management", self.management.iter().copied().collect()));
        sets
    }

    fn chains(&self) -> Vec<Chain> {
        let mut all = vec![Chain::new(MARKER)];
        for direction in [Direction::In, Direction::Out] {
            all.push(seen(direction));
            all.push(dropped(direction));
            all.push(self.by_mode(direction, Place::Here));
        }
        all.push(self.by_mode(Direction::Out, Place::Through));
        all.push(self.take());
        all.push(self.pick_all());
        for direction in [Direction::In, Direction::Out] {
            all.push(self.judge(direction, Place::Here));
            all.push(self.judge(direction, Place::Through));
        }
        if self.redirects() {
            all.push(self.output());
        }
        all.extend([self.input(), forward(), forward_out(), self.postrouting()]);
        all
    }

    /// Redirects programs' connections to the relay.
    fn output(&self) -> Chain {
        let mut chain = Chain::base("output", "nat", "output", REDIRECT);
        chain.rule("stays on this machine", [is(meta("oiftype"), "loopback"), accept()]);
        let local = json!({"fib": {"result": "type", "flags": ["daddr"]}});
        chain.rule("stays on this machine", [is(local, "local"), accept()]);
        chain.rule("ours", [is(meta("mark"), self.mark), accept()]);
        for v in FAMILIES {
            chain.rule("not this peer's", [v.daddr_in("observe"), accept()]);
        }
        match self.mode {
            Mode::Observe => {
                for v in FAMILIES {
                    chain.rule("this peer's", [v.daddr_in("permissive"), goto(PICK)]);
                    chain.rule("this peer's", [v.daddr_in("strict"), goto(PICK)]);
                }
            }
            Mode::Permissive | Mode::Strict => chain.rule("", [goto(PICK)]),
        }
        chain
    }

    fn pick_all(&self) -> Chain {
        let mut chain = Chain::new(PICK);
        if self.cgroups.is_empty() {
            chain.rule("all programs", [goto(TAKE)]);
        }
        chain
    }

    fn take(&self) -> Chain {
        let mut chain = Chain::new(TAKE);
        for v in FAMILIES {
            let redirect = json!({"redirect": {"port": self.port}});
            chain.rule("to the relay", [v.taken(), count("redirected"), redirect]);
        }
        chain
    }

    /// After everything that can change a destination.
    fn postrouting(&self) -> Chain {
        let mut chain = Chain::base("postrouting", "filter", "postrouting", POSTROUTING);
        chain.rule("stays on this machine", [is(meta("oiftype"), "loopback"), accept()]);
        // Two lookups that would slow down each of our packets.
        for v in FAMILIES.iter().filter(|_| !self.transparent.is_empty()) {
            let from = [payload(v.protocol(), "saddr"), payload("tcp", "sport")];
            let from = is(json!({"concat": from}), format!("@{}", v.set("transparent")));
            chain.rule("to a caller, and not back to the relay", [from, goto("dropped_by_out")]);
        }
        // ::1 is never valid on a network (RFC 4291, section 2.5.3), but the kernel sends it. A backend may still
        // send such packets after its service stopped being transparent. For IPv4 (RFC 1122, section 3.2.1.3) the
        // kernel does not send them.
        let from = is(payload("ip6", "saddr"), "::1");
        chain.rule("loopback", [from, goto("dropped_by_out")]);
        chain.rule("ours", [is(meta("mark"), self.mark), accept()]);
        for v in FAMILIES {
            chain.rule("", [v.daddr_in("protected"), goto("judge_out")]);
            chain.rule("not redirected", [v.taken(), goto("judge_out")]);
        }
        chain
    }

    fn input(&self) -> Chain {
        let mut chain = Chain::base("input", "filter", "input", 0);
        chain.rule("stays on this machine", [is(meta("iiftype"), "loopback"), accept()]);
        // Most packets match here, and this is cheaper than looking up their address.
        chain.rule("ours", [is(socket_mark(), self.mark), accept()]);
        for v in FAMILIES {
            let from = is(payload(v.protocol(), "saddr"), format!("@{}", v.set("protected")));
            chain.rule("", [from, goto("judge_in")]);
        }
        chain
    }

    /// Exceptions first, then the peer's mode.
    fn judge(&self, direction: Direction, place: Place) -> Chain {
        let mut chain = Chain::new(match (direction, place) {
            (Direction::In, Place::Here) => "judge_in",
            (Direction::Out, Place::Here) => "judge_out",
            (Direction::In, Place::Through) => "judge_through_in",
            (Direction::Out, Place::Through) => "judge_through_out",
        });
        icmp_errors(&mut chain);
        if place == Place::Here {
            neighbours(&mut chain);
            dhcp(&mut chain, direction);
        }
        dns(&mut chain, direction);
        if place == Place::Here {
            match direction {
                Direction::In => {
                    chain.rule("management", [is(payload("tcp", "dport"), "@management"), accept()])
                }
                // Replies: a connection cannot be opened from that port.
                Direction::Out => chain.rule(
                    "management",
                    [is(payload("tcp", "sport"), "@management"), opens_nothing(), accept()],
                ),
            }
        }
        self.passes.iter().for_each(|p| pass(&mut chain, p, direction));
        empty_segments(&mut chain, "rst", "RST without payload");
        if (direction, place) == (Direction::In, Place::Here) {
            chain.rule("another program's", [differs(socket_mark(), self.mark), goto("mode_in")]);
            // From here on, there is no socket that can be looked up.
            chain.rule("ours", [is(payload("tcp", "dport"), "@listens"), accept()]);
            // Packets for our side of a connection that we closed first; the kernel only acknowledges them.
            empty_segments(&mut chain, "fin", "FIN without payload");
        }
        chain.rule(
            "",
            [goto(match (direction, place) {
                (Direction::In, _) => "mode_in",
                (Direction::Out, Place::Here) => "mode_out",
                (Direction::Out, Place::Through) => "mode_through_out",
            })],
        );
        chain
    }

    fn by_mode(&self, direction: Direction, place: Place) -> Chain {
        let (name, peer) = match (direction, place) {
            (Direction::In, _) => ("mode_in", "saddr"),
            (Direction::Out, Place::Here) => ("mode_out", "daddr"),
            (Direction::Out, Place::Through) => ("mode_through_out", "daddr"),
        };
        let verdict = |mode| match (mode, direction, place) {
            (Mode::Strict, Direction::In, _) => goto("dropped_by_in"),
            (Mode::Strict, Direction::Out, _) => goto("dropped_by_out"),
            (_, Direction::In, _) => goto("seen_by_in"),
            (_, Direction::Out, Place::Here) => goto("seen_by_out"),
            // Counted later, after routing.
            (_, Direction::Out, Place::Through) => accept(),
        };
        let mut chain = Chain::new(name);
        for v in FAMILIES {
            for (set, mode) in [
                ("strict", Mode::Strict),
                ("permissive", Mode::Permissive),
                ("observe", Mode::Observe),
            ] {
                let of = is(payload(v.protocol(), peer), format!("@{}", v.set(set)));
                chain.rule("", [of, verdict(mode)]);
            }
        }
        chain.rule("all others", [verdict(self.mode)]);
        chain
    }
}

/// A path relative to the root of the control groups, without characters that are special to `nft`.
fn is_cgroup(path: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-@:".contains(&b);
    let part = |p: &str| !p.is_empty() && p != "." && p != ".." && p.bytes().all(plain);
    path.len() <= 255 && path.split('/').all(part)
}

fn table() -> Value {
    json!({"family": "inet", "name": TABLE})
}

const PICK: &str = "pick";
const TAKE: &str = "take";
const COUNTERS: [&str; 6] =
    ["redirected", "seen_in", "seen_out", "dropped_in", "dropped_out", "unlisted"];
/// By verdict, by the side that started, by address family.
pub(super) const FLOW_SETS: [&str; 8] = [
    "seen_in4",
    "seen_in6",
    "seen_out4",
    "seen_out6",
    "dropped_in4",
    "dropped_in6",
    "dropped_out4",
    "dropped_out6",
];

/// Whether a packet starts or ends on this machine, or is forwarded to another machine or a container.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Here,
    Through,
}

#[derive(Clone, Copy)]
enum Family {
    V4,
    V6,
}

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

impl Family {
    fn has(self, ip: IpAddr) -> bool {
        ip.is_ipv4() == matches!(self, Family::V4)
    }

    fn protocol(self) -> &'static str {
        match self {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Family::V4 => "ipv4_addr",
            Family::V6 => "ipv6_addr",
        }
    }

    fn set(self, name: &str) -> String {
        match self {
            Family::V4 => format!("{name}4"),
            Family::V6 => format!("{name}6"),
        }
    }

    fn daddr_in(self, set: &str) -> Value {
        is(payload(self.protocol(), "daddr"), format!("@{}", self.set(set)))
    }

    fn taken(self) -> Value {
        let to = [payload(self.protocol(), "daddr"), payload("tcp", "dport")];
        is(json!({"concat": to}), format!("@{}", self.set("taken")))
    }
}

#[derive(PartialEq)]
struct Set {
    name: String,
    kind: Value,
    interval: bool,
    elements: Vec<Value>,
}

impl Set {
    fn of_addresses(name: String, v: Family, networks: &[Network], interval: bool) -> Set {
        let element = |n: &Network| match n.bits() {
            32 if n.first().is_ipv4() => json!(n.first()),
            128 => json!(n.first()),
            len => json!({"prefix": {"addr": n.first(), "len": len}}),
        };
        let mut own: Vec<_> = networks.iter().filter(|n| v.has(n.first())).collect();
        own.sort_by_key(|n| n.first());
        own.dedup();
        let elements = own.into_iter().map(element).collect();
        Set { name, kind: v.kind().into(), interval, elements }
    }

    fn of_ends(name: String, v: Family, ends: &BTreeSet<SocketAddr>) -> Set {
        let ends = ends.iter().map(|end| (end.ip().to_canonical(), end.port()));
        let ends = ends.filter(|(ip, _)| v.has(*ip));
        let elements = ends.map(|(ip, port)| json!({"concat": [ip, port]})).collect();
        Set { name, kind: json!([v.kind(), "inet_service"]), interval: false, elements }
    }

    fn of_ports(name: &str, ports: BTreeSet<u16>) -> Set {
        let elements = ports.into_iter().map(Value::from).collect();
        Set { name: name.into(), kind: "inet_service".into(), interval: false, elements }
    }

    fn key(&self) -> Value {
        json!({"family": "inet", "table": TABLE, "name": self.name})
    }

    /// The command that adds the elements, if any.
    fn filled(&self) -> Option<Value> {
        let mut element = self.key();
        element["elem"] = self.elements.clone().into();
        (!self.elements.is_empty()).then(|| json!({"add": {"element": element}}))
    }

    fn definition(self) -> Value {
        let mut set = self.key();
        set["type"] = self.kind;
        if self.interval {
            set["flags"] = json!(["interval"]);
        }
        if !self.elements.is_empty() {
            set["elem"] = Value::Array(self.elements);
        }
        json!({"set": set})
    }
}

#[derive(PartialEq)]
struct Chain {
    name: &'static str,
    /// Type, hook and priority of a base chain, which the kernel itself calls.
    base: Option<(&'static str, &'static str, i32)>,
    rules: Vec<(&'static str, Vec<Value>)>,
}

fn has(chains: &[Chain], name: &str) -> bool {
    chains.iter().any(|c| c.name == name)
}

impl Chain {
    fn new(name: &'static str) -> Chain {
        Chain { name, base: None, rules: Vec::new() }
    }

    fn base(name: &'static str, kind: &'static str, hook: &'static str, priority: i32) -> Chain {
        Chain { name, base: Some((kind, hook, priority)), rules: Vec::new() }
    }

    /// Adds a rule; `nft list` shows its comment.
    fn rule<const N: usize>(&mut self, comment: &'static str, expressions: [Value; N]) {
        self.rules.push((comment, expressions.into()));
    }

    fn key(&self) -> Value {
        json!({"family": "inet", "table": TABLE, "name": self.name})
    }

    fn head(&self) -> Value {
        let mut head = self.key();
        if let Some((kind, hook, priority)) = self.base {
            head["type"] = kind.into();
            head["hook"] = hook.into();
            head["prio"] = priority.into();
            head["policy"] = "accept".into();
        }
        head
    }

    fn rules(&self) -> impl Iterator<Item = Value> {
        self.rules.iter().map(|(comment, expressions)| {
            let mut rule =
                json!({"family": "inet", "table": TABLE, "chain": self.name, "expr": expressions});
            if !comment.is_empty() {
                rule["comment"] = (*comment).into();
            }
            json!({"rule": rule})
        })
    }
}

// ---- Forwarded packets.

fn forward() -> Chain {
    let mut chain = Chain::base("forward", "filter", "forward", 0);
    for v in FAMILIES {
        let from = is(payload(v.protocol(), "saddr"), format!("@{}", v.set("protected")));
        chain.rule("", [from, goto("judge_through_in")]);
    }
    chain
}

/// A separate chain, so that packets accepted by the first one are still checked by destination.
fn forward_out() -> Chain {
    let mut chain = Chain::base("forward_out", "filter", "forward", 1);
    for v in FAMILIES {
        chain.rule("", [v.daddr_in("protected"), goto("judge_through_out")]);
        chain.rule("", [v.taken(), goto("judge_through_out")]);
    }
    chain
}

// ---- Exceptions.

/// Includes path MTU discovery (RFC 1191, RFC 8201).
fn icmp_errors(chain: &mut Chain) {
    let v4 = ["destination-unreachable", "time-exceeded", "parameter-problem"];
    let v6 = ["destination-unreachable", "packet-too-big", "time-exceeded", "parameter-problem"];
    chain.rule("errors", [is(payload("icmp", "type"), json!({"set": v4})), accept()]);
    chain.rule("errors", [is(payload("icmpv6", "type"), json!({"set": v6})), accept()]);
}

/// Neighbour discovery (RFC 4861; the hop limit shows that such a packet has not passed a router), and the multicast
/// groups that it needs (RFC 3810).
fn neighbours(chain: &mut Chain) {
    let nd = ["nd-router-solicit", "nd-router-advert", "nd-neighbor-solicit", "nd-neighbor-advert"];
    let mld =
        ["mld-listener-query", "mld-listener-report", "mld-listener-done", "mld2-listener-report"];
    for (kinds, hops) in [(nd, 255), (mld, 1)] {
        let kinds = is(payload("icmpv6", "type"), json!({"set": kinds}));
        chain.rule("neighbours", [kinds, is(payload("ip6", "hoplimit"), hops), accept()]);
    }
}

/// DHCP leases. Ordinary programs cannot use these ports.
fn dhcp(chain: &mut Chain, direction: Direction) {
    for (family, client, server) in [("ipv4", 68, 67), ("ipv6", 546, 547)] {
        let (from, to) = match direction {
            Direction::In => (server, client),
            Direction::Out => (client, server),
        };
        chain.rule(
            "DHCP",
            [
                is(meta("nfproto"), family),
                is(payload("udp", "sport"), from),
                is(payload("udp", "dport"), to),
                accept(),
            ],
        );
    }
}

fn dns(chain: &mut Chain, direction: Direction) {
    let (peer, theirs) = match direction {
        Direction::In => ("saddr", "sport"),
        Direction::Out => ("daddr", "dport"),
    };
    for v in FAMILIES {
        let resolver = is(payload(v.protocol(), peer), format!("@{}", v.set("resolvers")));
        let udp = is(payload("udp", theirs), 53);
        let tcp = is(payload("tcp", theirs), 53);
        match direction {
            Direction::Out => {
                chain.rule("DNS", [resolver.clone(), udp, accept()]);
                chain.rule("DNS", [resolver, tcp, accept()]);
            }
            Direction::In => {
                let ordinary =
                    json!({"match": {"op": ">=", "left": payload("udp", "dport"), "right": 1024}});
                chain.rule("DNS", [resolver.clone(), udp, ordinary, accept()]);
                chain.rule("DNS", [resolver, tcp, opens_nothing(), accept()]);
            }
        }
    }
}

fn pass(chain: &mut Chain, pass: &Pass, direction: Direction) {
    let v = if pass.network.first().is_ipv4() { Family::V4 } else { Family::V6 };
    let reply = pass.direction != direction;
    let (peer, port) = match (direction, reply) {
        (Direction::Out, false) => ("daddr", "dport"),
        (Direction::Out, true) => ("daddr", "sport"),
        (Direction::In, false) => ("saddr", "dport"),
        (Direction::In, true) => ("saddr", "sport"),
    };
    let network = match (pass.network.first(), pass.network.bits()) {
        // No address to compare.
        (_, 0) => is(meta("nfproto"), if matches!(v, Family::V4) { "ipv4" } else { "ipv6" }),
        (IpAddr::V4(ip), 32) => is(payload("ip", peer), json!(ip)),
        (IpAddr::V6(ip), 128) => is(payload("ip6", peer), json!(ip)),
        (ip, len) => is(payload(v.protocol(), peer), json!({"prefix": {"addr": ip, "len": len}})),
    };
    let mut expressions = vec![network];
    if pass.protocol == Protocol::Icmp && pass.network.bits() == 0 {
        expressions.clear(); // the ICMP match implies the family
    }
    match pass.protocol {
        Protocol::Tcp | Protocol::Udp => {
            let name = if pass.protocol == Protocol::Tcp { "tcp" } else { "udp" };
            expressions.push(match pass.port {
                Some(number) => is(payload(name, port), number),
                None => is(meta("l4proto"), name),
            });
            if reply && pass.protocol == Protocol::Tcp {
                expressions.push(opens_nothing());
            }
        }
        Protocol::Icmp => {
            let kind = if reply { "echo-reply" } else { "echo-request" };
            let icmp = if matches!(v, Family::V4) { "icmp" } else { "icmpv6" };
            expressions.push(is(payload(icmp, "type"), kind));
        }
        Protocol::Number(_) if reply => return,
        Protocol::Number(number) => expressions.push(is(meta("l4proto"), number)),
    }
    expressions.push(accept());
    chain.rules.push(("a pass", expressions));
}

/// TCP segments with this flag and without payload: the packet and header lengths leave no space for any. Headers
/// must be as the kernel writes them, with or without timestamps; others do not match.
fn empty_segments(chain: &mut Chain, flag: &str, comment: &'static str) {
    let with_syn = if flag == "fin" { ["fin", "syn"] } else { ["syn", flag] };
    let flags = json!({"&": [payload("tcp", "flags"), with_syn]});
    for (words, bytes) in [(5, 20), (8, 32)] {
        let common = [is(payload("tcp", "doff"), words), is(flags.clone(), flag), accept()];
        let [doff, flags, accept] = common.clone();
        chain.rule(
            comment,
            [
                is(payload("ip", "hdrlength"), 5),
                is(payload("ip", "length"), 20 + bytes),
                doff,
                flags,
                accept,
            ],
        );
        let [doff, flags, accept] = common;
        chain.rule(
            comment,
            [
                is(payload("ip6", "length"), bytes),
                is(payload("ip6", "nexthdr"), "tcp"),
                doff,
                flags,
                accept,
            ],
        );
    }
}

/// A segment that cannot open a connection: anything except SYN without ACK.
fn opens_nothing() -> Value {
    differs(json!({"&": [payload("tcp", "flags"), ["syn", "ack"]]}), "syn")
}

// ---- Counting.

fn seen(direction: Direction) -> Chain {
    match direction {
        Direction::In => counting("seen_by_in", "seen", direction, "seen_in", accept()),
        Direction::Out => counting("seen_by_out", "seen", direction, "seen_out", accept()),
    }
}

fn dropped(direction: Direction) -> Chain {
    match direction {
        Direction::In => counting("dropped_by_in", "dropped", direction, "dropped_in", drop()),
        Direction::Out => counting("dropped_by_out", "dropped", direction, "dropped_out", drop()),
    }
}

/// Records the flow of a packet, by peer, protocol, the service's port and the side that started it; then applies the
/// verdict. If a set is full, the rest of that rule is not executed, so the verdict is repeated at the end.
fn counting(
    name: &'static str,
    sets: &str,
    direction: Direction,
    counter: &str,
    verdict: Value,
) -> Chain {
    let mut chain = Chain::new(name);
    let (peer, theirs, ours) = match direction {
        Direction::In => ("saddr", "sport", "dport"),
        Direction::Out => ("daddr", "dport", "sport"),
    };
    let ported = || is(meta("l4proto"), json!({"set": ["tcp", "udp", "sctp"]}));
    let below =
        |port| json!({"match": {"op": "<", "left": payload("th", port), "right": EPHEMERAL}});
    for v in FAMILIES {
        let flow = |began: &str, port: Value| {
            let key = [payload(v.protocol(), peer), meta("l4proto"), port];
            let set = format!("@{sets}_{}", v.set(began));
            // Packets of the other address family never reach this rule, because it matches an address of this
            // family.
            json!({"set": {"op": "update", "elem": {"concat": key}, "set": set, "stmt": [{"counter": null}]}})
        };
        let end = || [count(counter), verdict.clone()];
        // The destination port decides first: if it is a service's port, the sender started the connection.
        let (towards, back) = match direction {
            Direction::In => ((ours, "in"), (theirs, "out")),
            Direction::Out => ((theirs, "out"), (ours, "in")),
        };
        for (port, began) in [towards, back] {
            let [count, verdict] = end();
            let noted = flow(began, payload("th", port));
            chain.rule("", [ported(), below(port), noted, count, verdict]);
        }
        let [count, verdict] = end();
        let noted = flow(towards.1, payload("th", towards.0));
        chain.rule("", [ported(), noted, count, verdict]);
        let [count, verdict] = end();
        chain.rule("no ports", [flow(towards.1, json!(0)), count, verdict]);
    }
    chain.rule("no room", [count("unlisted"), count(counter), verdict]);
    chain
}

// ---- Expressions.

fn is(left: Value, right: impl Into<Value>) -> Value {
    json!({"match": {"op": "==", "left": left, "right": right.into()}})
}

fn differs(left: Value, right: impl Into<Value>) -> Value {
    json!({"match": {"op": "!=", "left": left, "right": right.into()}})
}

fn payload(protocol: &str, field: &str) -> Value {
    json!({"payload": {"protocol": protocol, "field": field}})
}

fn socket_mark() -> Value {
    json!({"socket": {"key": "mark"}})
}

fn meta(key: &str) -> Value {
    json!({"meta": {"key": key}})
}

fn count(name: &str) -> Value {
    json!({"counter": name})
}

fn accept() -> Value {
    json!({"accept": null})
}

fn drop() -> Value {
    json!({"drop": null})
}

fn goto(chain: &str) -> Value {
    json!({"goto": {"target": chain}})
}

#[cfg(test)]
mod tests;
