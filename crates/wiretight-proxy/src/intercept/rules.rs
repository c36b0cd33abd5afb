//! The rules of the kernel (nftables), as a value and as one transaction for `nft -j -f -`
//! (libnftables-json(5)).
//!
//! The table is `inet wiretight`. Outbound TCP to what the relay carries is redirected to it; what goes to
//! or comes from a protected address over a real interface and is not the relay's own is counted, and in
//! strict mode dropped.
//!
//! How our own packets are known: the relay's sockets have a mark (SO_MARK, which takes a capability), and the
//! kernel puts it on all that they send, SYN-ACKs included. Why no plaintext of another program passes:
//!
//! - **Out** (`postrouting`, where addresses are final): a packet without the mark is dropped, unless it is one
//!   of the exceptions. Nothing else is asked; not conntrack either, which may have been started late, be
//!   full, or be told to look away. So a connection of another program cannot even be opened, for its SYN or
//!   SYN-ACK does not leave; one from before the rules cannot go on.
//! - **In** (`input`): the kernel looks up the socket that would get the packet. It has our mark: passes. It has
//!   not: dropped. There is none, or one that is half open or half forgotten and cannot be asked for its mark
//!   (the last ACK of a handshake): passes if it is for a TCP port of ours (`listens`), since then it belongs to
//!   a handshake whose SYN-ACK had our mark, or is answered with a RST. Another program that got hold
//!   of that port would have a listening socket without the mark, and see no SYN.
//! - **Forwarded** packets are never ours: for them there are the exceptions only.
//!
//! What a backend sends to a caller whose address it was shown (`transparent`) comes back to the relay by routes
//! that are not nftables'. Without them it would leave for the caller, so here it is dropped in each mode.
//!
//! An exception looks only at the packet itself and matches it positively; what is not recognised (a later
//! fragment, an unknown extension header) is dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::listing::canonical;
use crate::network::Network;
use crate::registry::MAX_STOOD_FOR;

/// Our table, in the family `inet`.
pub const TABLE: &str = "wiretight";
/// The table that stands in while ours is gone, in the family `inet`.
pub const GUARD: &str = "wiretight_guard";
/// A chain that it has when it is filled.
pub const GUARD_CHAIN: &str = "postrouting";
/// An empty chain, by which we know that the table is ours.
pub const MARKER: &str = "made_by_wiretight";
/// How long a flow is remembered after its last packet, in seconds.
pub const REMEMBERED: u64 = 86_400;

/// The most networks that are protected.
pub const MAX_PROTECTED: usize = 32_768;
/// The most TCP ports of the mesh on this machine: one for each service, and the authority's and the edge's.
const MAX_LISTENS: usize = 8192;
/// Flows that one set remembers; what does not fit is counted as `unlisted`.
const FLOWS: u64 = 4096;
/// Linux gives ports from here to programs that ask for any: the other one of the two is the service's.
const EPHEMERAL: u16 = 32_768;
/// Behind the destination NAT of others (-100), before source NAT (100): addresses and ports as programs
/// see them.
const POSTROUTING: i32 = 90;
/// Before the destination NAT of others, which would keep ours from the connection.
const REDIRECT: i32 = -110;

/// What happens to plaintext between this machine and a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Nothing but counting.
    Observe,
    /// What can be encrypted is; the rest is counted.
    Permissive,
    /// What can be encrypted is; the rest is dropped, and counted.
    Strict,
}

impl Mode {
    /// As the configuration file says it.
    pub fn word(self) -> &'static str {
        match self {
            Mode::Observe => "observe",
            Mode::Permissive => "permissive",
            Mode::Strict => "strict",
        }
    }
}

/// Which way something goes, or who began it: `Out` is this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// From a peer.
    In,
    /// To a peer.
    Out,
}

/// What an exception is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP and ICMPv6 echo ("ping"), which carries bytes that a program chooses.
    Icmp,
    /// Any other, by its number (IANA's; 50 is ESP, 47 GRE). It has no ports and no replies: one pass a way.
    Number(u8),
}

/// An exception: plaintext that the operator lets through.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pass {
    /// What.
    pub protocol: Protocol,
    /// With whom.
    pub network: Network,
    /// The service's port (TCP, UDP); `None`: all.
    pub port: Option<u16>,
    /// Who begins: `Out` lets this machine reach that port of theirs, `In` lets them reach ours. Replies pass.
    pub direction: Direction,
}

/// All that the kernel is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    /// For all peers.
    pub mode: Mode,
    /// Those with another. They are protected, too.
    pub peers: BTreeMap<IpAddr, Mode>,
    /// The mark of our own packets: their sockets have it (SO_MARK). Not 0, which is on every packet.
    pub mark: u32,
    /// Where redirected TCP arrives: this port of 127.0.0.1 and of `::1`.
    pub port: u16,
    /// TCP ports on which sockets with the mark listen for the mesh.
    pub listens: BTreeSet<u16>,
    /// Destinations that are redirected, as programs call them.
    pub taken: BTreeSet<SocketAddr>,
    /// Addresses of mesh nodes: no plaintext to or from them.
    pub protected: Vec<Network>,
    /// Exceptions.
    pub passes: Vec<Pass>,
    /// Where DNS is asked (port 53).
    pub resolvers: Vec<IpAddr>,
    /// TCP ports of this machine by which operators get in.
    pub management: Vec<u16>,
    /// Only programs in these control groups (v2; `system.slice/app.service`) are redirected; empty: all.
    pub cgroups: Vec<String>,
    /// Backends on loopback that are connected from their callers' addresses: what they send there stays here.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub transparent: BTreeSet<SocketAddr>,
}

/// Why rules are not applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RulesError {
    /// Every packet has mark 0 until somebody sets another: all plaintext would pass for ours.
    #[error("the mark is 0, which every packet has: choose another")]
    NoMark,
    /// Port 0 of something.
    #[error("{0} has port 0: give its port")]
    NoPort(&'static str),
    /// A management port lets everything in, so it cannot be one of ours.
    #[error(
        "TCP port {0} is both a management port, where plaintext may come in, and one of the mesh's: name another"
    )]
    PortForBoth(u16),
    /// An address that no packet on a wire has.
    #[error("{0} is no address of a machine on the network: leave it out, or write it as IPv4")]
    Address(String),
    /// A backend elsewhere would be sent plaintext.
    #[error("the backend {0} is not on loopback, and cannot be transparent")]
    NotLoopback(SocketAddr),
    /// Not a path below the root of the control groups.
    #[error(
        "{0:?} is not a control group; write its path below /sys/fs/cgroup, for example \"system.slice/app.service\""
    )]
    Cgroup(String),
    /// A port for a protocol without ports, or a number that has a name.
    #[error(
        "a pass for protocol {0:?} cannot be: TCP, UDP and ICMP go by their names, and only TCP and UDP have ports"
    )]
    Pass(Protocol),
    /// More than the kernel shall be asked to hold.
    #[error("{0} {1}: at most {2}; group addresses into networks")]
    TooMany(usize, &'static str, usize),
}

impl Rules {
    /// Whether they can be applied.
    pub fn check(&self) -> Result<(), RulesError> {
        let bounds = [
            (self.peers.len(), "peers with a mode of their own", 16_384),
            (self.taken.len(), "redirected destinations", MAX_STOOD_FOR),
            (self.protected.len(), "protected networks", MAX_PROTECTED),
            (self.listens.len(), "ports of the mesh", MAX_LISTENS),
            (self.passes.len(), "passes", 256),
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
            ("a pass", self.passes.iter().any(|p| p.port == Some(0))),
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
        // No packet has such an address, so it would protect nothing.
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

    /// The transaction that puts a new table in the place of ours, or of none. What was counted is lost, and so is
    /// a packet that is being looked at in this moment: it may meet the old rules, which are gone, and the new,
    /// which are not there yet. [`Rules::refill`] has no such moment.
    pub fn replace(&self) -> Result<Value, RulesError> {
        self.check()?;
        let table = json!({"table": table()});
        // A table that is not there cannot be deleted, and one that is can be added.
        let mut all = vec![json!({"add": table}), json!({"delete": table}), json!({"add": table})];
        all.extend(self.objects().into_iter().map(|object| json!({"add": object})));
        Ok(json!({"nftables": all}))
    }

    /// The transaction that puts these rules and addresses into a table of ours, whatever rules and addresses are in
    /// it. It fails if there is none, or one that is not ours or of another make. What was counted stays.
    pub fn refill(&self) -> Result<Value, RulesError> {
        self.check()?;
        // What is not there cannot be deleted, and all falls with it.
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

    /// The transaction that makes the table, and fails if there is any of that name.
    pub fn create(&self) -> Result<Value, RulesError> {
        self.check()?;
        let mut all = vec![json!({"create": {"table": table()}})];
        all.extend(self.objects().into_iter().map(|object| json!({"add": object})));
        Ok(json!({"nftables": all}))
    }

    /// The transaction that makes the table of `from` ours. What was counted stays. `None`: nothing differs.
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
            // `pick` is filled by other means where there are control groups.
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

    /// The commands (text, for `nft -f -`) that have these control groups redirected. `nft`'s JSON does not
    /// know control groups, so this is a transaction of its own, after the other: between the two nothing
    /// is redirected.
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

    /// Whether anything is redirected in any mode that is in use. Where nothing is, the kernel need not track
    /// connections for us, which costs each packet.
    pub fn redirects(&self) -> bool {
        let takes = self.mode != Mode::Observe || self.peers.values().any(|m| *m != Mode::Observe);
        takes && !self.taken.is_empty()
    }

    /// Whether anything is dropped in any mode that is in use.
    pub fn drops(&self) -> bool {
        self.mode == Mode::Strict || self.peers.values().any(|m| *m == Mode::Strict)
    }

    /// The transaction that fills a table [`GUARD`]..., which is there and empty. It is asked right behind ours, and
    /// drops what ours would drop; it redirects nothing, and names no flows.
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

    /// What a listing of the table has to say, in the form of
    /// [`Listing::canonical`](super::listing::Listing::canonical).
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

    /// Always the same sets, with other elements.
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

    /// Where programs' connections turn towards the relay.
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

    /// Behind everything that changes a destination.
    fn postrouting(&self) -> Chain {
        let mut chain = Chain::base("postrouting", "filter", "postrouting", POSTROUTING);
        chain.rule("stays on this machine", [is(meta("oiftype"), "loopback"), accept()]);
        // Two lookups that each packet of ours would pay for.
        for v in FAMILIES.iter().filter(|_| !self.transparent.is_empty()) {
            let from = [payload(v.protocol(), "saddr"), payload("tcp", "sport")];
            let from = is(json!({"concat": from}), format!("@{}", v.set("transparent")));
            chain.rule("to a caller, and not back to the relay", [from, goto("dropped_by_out")]);
        }
        // Never right (RFC 4291, section 2.5.3), and the kernel lets it out. What a backend still sends when it is
        // transparent no longer is such a packet; IPv4's (RFC 1122, section 3.2.1.3) it does not let out.
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
        // Nearly all of what comes, and cheaper to see than whose address it has.
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
                // Replies: a connection cannot be opened from there.
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
            // From here on no socket can be asked.
            chain.rule("ours", [is(payload("tcp", "dport"), "@listens"), accept()]);
            // To our side of a connection that we have closed first; the kernel only acknowledges it.
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
            // It is counted behind the routing.
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

/// A path below the root of the control groups that is nothing else to `nft`.
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
/// By verdict, by who began, by family.
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

/// Whether a packet begins or ends on this machine, or passes through to another machine or a container.
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

    /// The command that adds the elements, if there are any.
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
    /// Type, hook, priority of one that the kernel itself calls.
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

    /// Adds one; a comment is what `nft list` shows to a person.
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

// ---- Where packets pass through.

fn forward() -> Chain {
    let mut chain = Chain::base("forward", "filter", "forward", 0);
    for v in FAMILIES {
        let from = is(payload(v.protocol(), "saddr"), format!("@{}", v.set("protected")));
        chain.rule("", [from, goto("judge_through_in")]);
    }
    chain
}

/// A chain of its own: what the first one accepts is still asked where it goes.
fn forward_out() -> Chain {
    let mut chain = Chain::base("forward_out", "filter", "forward", 1);
    for v in FAMILIES {
        chain.rule("", [v.daddr_in("protected"), goto("judge_through_out")]);
        chain.rule("", [v.taken(), goto("judge_through_out")]);
    }
    chain
}

// ---- Exceptions.

/// Path MTU discovery (RFC 1191, RFC 8201) among them.
fn icmp_errors(chain: &mut Chain) {
    let v4 = ["destination-unreachable", "time-exceeded", "parameter-problem"];
    let v6 = ["destination-unreachable", "packet-too-big", "time-exceeded", "parameter-problem"];
    chain.rule("errors", [is(payload("icmp", "type"), json!({"set": v4})), accept()]);
    chain.rule("errors", [is(payload("icmpv6", "type"), json!({"set": v6})), accept()]);
}

/// Neighbour discovery (RFC 4861: such a packet has passed no router) and the multicast groups that it needs
/// (RFC 3810).
fn neighbours(chain: &mut Chain) {
    let nd = ["nd-router-solicit", "nd-router-advert", "nd-neighbor-solicit", "nd-neighbor-advert"];
    let mld =
        ["mld-listener-query", "mld-listener-report", "mld-listener-done", "mld2-listener-report"];
    for (kinds, hops) in [(nd, 255), (mld, 1)] {
        let kinds = is(payload("icmpv6", "type"), json!({"set": kinds}));
        chain.rule("neighbours", [kinds, is(payload("ip6", "hoplimit"), hops), accept()]);
    }
}

/// Leases. The ports are the system's: no ordinary program gets them.
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
        // Nothing to compare.
        (_, 0) => is(meta("nfproto"), if matches!(v, Family::V4) { "ipv4" } else { "ipv6" }),
        (IpAddr::V4(ip), 32) => is(payload("ip", peer), json!(ip)),
        (IpAddr::V6(ip), 128) => is(payload("ip6", peer), json!(ip)),
        (ip, len) => is(payload(v.protocol(), peer), json!({"prefix": {"addr": ip, "len": len}})),
    };
    let mut expressions = vec![network];
    if pass.protocol == Protocol::Icmp && pass.network.bits() == 0 {
        expressions.clear(); // ICMP of the family says it
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

/// TCP segments with this flag, and no byte of a program: the lengths of packet and headers leave no room.
/// Headers are as the kernel writes them, with and without timestamps; others do not match.
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

/// A segment that cannot open a connection: not SYN without ACK.
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

/// Notes the flow that a packet belongs to, by peer, protocol and the service's port, with who began it; then
/// the verdict. A set that is full ends a rule, so the verdict stands once more at the end.
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
            // Of the other family no packet comes to here: the address is of this one.
            json!({"set": {"op": "update", "elem": {"concat": key}, "set": set, "stmt": [{"counter": null}]}})
        };
        let end = || [count(counter), verdict.clone()];
        // The port that the packet goes to decides first: then it was opened by who sends it.
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
mod tests {
    use super::*;

    fn rules(mode: Mode) -> Rules {
        let ip = |s: &str| s.parse::<IpAddr>().unwrap();
        Rules {
            mode,
            peers: [(ip("10.0.0.9"), Mode::Observe), (ip("fd00::9"), Mode::Strict)].into(),
            mark: 0x7717,
            port: 7417,
            listens: [7432, 7433].into(),
            taken: ["10.0.0.2:5432".parse().unwrap(), "[fd00::2]:5432".parse().unwrap()].into(),
            protected: ["10.0.0.0/24", "fd00::/64", "10.0.0.7"].map(|n| n.parse().unwrap()).into(),
            passes: vec![
                pass_of(Protocol::Tcp, "10.0.0.0/24", Some(9100), Direction::In),
                pass_of(Protocol::Udp, "fd00::/64", None, Direction::Out),
                pass_of(Protocol::Icmp, "10.0.0.3", None, Direction::Out),
                pass_of(Protocol::Icmp, "::/0", None, Direction::In),
                pass_of(Protocol::Number(50), "0.0.0.0/0", None, Direction::In),
            ],
            resolvers: vec![ip("10.0.0.53"), ip("fd00::53")],
            management: vec![22],
            cgroups: Vec::new(),
            transparent: ["127.0.0.1:5432".parse().unwrap(), "[::1]:5432".parse().unwrap()].into(),
        }
    }

    fn pass_of(protocol: Protocol, network: &str, port: Option<u16>, direction: Direction) -> Pass {
        Pass { protocol, network: network.parse().unwrap(), port, direction }
    }

    #[test]
    fn what_would_let_plaintext_pass_is_refused() {
        let with = |change: fn(&mut Rules)| {
            let mut rules = rules(Mode::Strict);
            change(&mut rules);
            rules.replace().err()
        };
        assert_eq!(with(|_| {}), None, "the control");
        assert_eq!(with(|r| r.mark = 0), Some(RulesError::NoMark));
        assert_eq!(with(|r| r.management.push(7432)), Some(RulesError::PortForBoth(7432)));
        assert_eq!(with(|r| r.management.push(7417)), Some(RulesError::PortForBoth(7417)));
        for change in [
            (|r: &mut Rules| r.port = 0) as fn(&mut Rules),
            |r| r.listens = [0].into(),
            |r| r.taken = ["127.0.0.1:80".parse().unwrap()].into(),
            |r| r.taken = ["10.0.0.1:0".parse().unwrap()].into(),
            |r| r.protected = vec!["::ffff:10.0.0.0/104".parse().unwrap()],
            |r| r.passes = vec![pass_of(Protocol::Number(6), "10.0.0.1", None, Direction::In)],
            |r| r.passes = vec![pass_of(Protocol::Icmp, "10.0.0.1", Some(1), Direction::In)],
            |r| r.cgroups = vec!["a\" accept; x".into()],
            |r| r.cgroups = vec!["../a".into()],
            |r| r.cgroups = vec!["/a".into()],
            |r| r.listens = (1..10_000).collect(),
            |r| r.transparent = ["10.0.0.1:80".parse().unwrap()].into(),
            |r| r.transparent = ["[::ffff:127.0.0.1]:80".parse().unwrap()].into(),
            |r| r.transparent = ["127.0.0.1:0".parse().unwrap()].into(),
        ] {
            assert!(with(change).is_some());
        }
    }

    #[test]
    fn a_changed_set_leaves_chains_and_counts_alone() {
        let old = rules(Mode::Strict);
        assert_eq!(old.change(&old), Ok(None));
        let mut new = old.clone();
        new.protected.push("10.1.0.0/16".parse().unwrap());
        new.taken.pop_first();
        let change = new.change(&old).unwrap().unwrap();
        let told: Vec<String> = change["nftables"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| {
                let (verb, what) = c.as_object().unwrap().iter().next().unwrap();
                let (kind, body) = what.as_object().unwrap().iter().next().unwrap();
                format!("{verb} {kind} {}", body["name"].as_str().unwrap())
            })
            .collect();
        assert_eq!(told, ["flush set protected4", "add element protected4", "flush set taken4"]);
        // The last one takes the chain along, and with it the tracking of connections.
        new.taken.clear();
        assert!(old.redirects() && !new.redirects());
        new.mode = Mode::Observe;
        let change = new.change(&old).unwrap().unwrap().to_string();
        assert!(!change.contains("seen_in4\",\"type"), "sets of flows are not made anew");
        assert!(!change.contains("{\"delete\":{\"table"), "{change}");
    }

    #[test]
    fn the_second_table_drops_and_redirects_nothing_and_names_itself_alone() {
        let has = |rules: Rules, text: &str| rules.guard(GUARD).unwrap().to_string().contains(text);
        let chain = format!(r#""name":"{GUARD_CHAIN}""#);
        assert!(has(rules(Mode::Strict), &chain) && has(rules(Mode::Observe), &chain));
        assert!(has(rules(Mode::Strict), r#"{"drop":null}"#));
        assert!(!has(rules(Mode::Strict), "redirect\":"));
        assert!(!has(rules(Mode::Strict), r#""table":"wiretight""#));
        assert!(rules(Mode::Strict).create().unwrap().to_string().contains("redirect\":"));
    }

    #[test]
    fn what_is_protected_has_no_overlap_and_holds_peers() {
        let mut rules = rules(Mode::Strict);
        rules.peers.insert("192.0.2.1".parse().unwrap(), Mode::Strict);
        rules.peers.insert("::ffff:192.0.2.2".parse().unwrap(), Mode::Strict);
        let expected = rules.expected();
        let four = json!(["192.0.2.1", "192.0.2.2", {"prefix": {"addr": "10.0.0.0", "len": 24}}]);
        assert_eq!(expected["set"]["protected4"]["elem"], four);
    }

    #[test]
    fn rules_are_kept_as_text_and_nothing_unknown_is_taken() {
        let mut rules = rules(Mode::Permissive);
        let mut json = serde_json::to_value(&rules).unwrap();
        assert_eq!(serde_json::from_value::<Rules>(json.clone()).unwrap(), rules);
        // Older files do not name it.
        json.as_object_mut().unwrap().remove("transparent");
        rules.transparent.clear();
        assert_eq!(serde_json::from_value::<Rules>(json.clone()).unwrap(), rules);
        assert_eq!(serde_json::to_value(&rules).unwrap(), json);
        json["protekted"] = json!([]);
        assert!(serde_json::from_value::<Rules>(json).is_err());
    }
}
