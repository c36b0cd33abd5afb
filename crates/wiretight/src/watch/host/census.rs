//! The census of connections: their bytes come from the kernel's connection tracking, what they are from their first
//! packets. Both are joined by addresses and ports. Pure: time and messages are passed in.
//!
//! The kernel says of each connection when it begins and when it ends, with its final counts. A list of all of them, from
//! time to time, has the counts of those that last. What the kernel did not say is not guessed: it is the difference to
//! what the interfaces counted, and `unknown`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, LazyLock};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use wiretight_proxy::intercept::listing::Program;
use wiretight_scan::judge::Level;
use wiretight_scan::passive::flow::Record;
use wiretight_scan::passive::totals::{Algorithm, Count, Gaps, Hour, Kind, Sum, Totals, Way};
use wiretight_scan::passive::{Grade, Seen, Transport};

use super::Row;
use super::conntrack::{Event, Key, Tracked, transport};

/// Connections at a time. The bytes of more are counted as missed.
const MAX_FLOWS: usize = 1 << 20;
/// Rows of connections that have ended.
const MAX_ROWS: usize = 16_384;
/// Descriptions of flows that the kernel's connection tracking has not announced yet.
const MAX_ORPHANS: usize = 65_536;
/// After this time a connection counts as `unknown` until its first packets say otherwise, in nanoseconds.
const PATIENCE: u64 = 30_000_000_000;
/// By how much the first packet of a connection may be read before its announcement, in nanoseconds. Less than the time
/// after which a client uses a port again (a second on loopback).
const AHEAD: u64 = 500_000_000;
/// A longer time between two ticks was not watched, in seconds: the machine slept, or its clock was set.
const ASLEEP: u64 = 60;
/// The announcement was read late, so it is not known which packets came after it.
const LATE: u64 = u64::MAX;
/// Hours that are kept here. The node collects them more often.
const MAX_HOURS: usize = 3;
const TCP: u8 = 6;
const HOUR: u64 = Hour::LENGTH * 1_000_000_000;

/// Both ends of a flow, in a fixed order and without a zone.
type Pair = Key;

static NOTHING: LazyLock<Arc<Seen>> = LazyLock::new(|| {
    Arc::new(Seen {
        protocol: "unknown".into(),
        level: Level::Unknown,
        grade: Grade::Unknown,
        evidence: "its first packets were not seen: it is older than the watch, or they were lost"
            .into(),
        starttls: None,
        sealed: None,
    })
});

/// What the node itself carries, and where.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Own {
    /// Listeners for programs here: dials, and the port that intercepted connections are redirected to.
    pub(super) dials: Vec<SocketAddr>,
    /// Listeners of the edge for HTTPS.
    pub(super) edge: Vec<SocketAddr>,
    /// The relay's connections to other nodes.
    pub(super) sessions: Vec<Session>,
}

/// A connection of the relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Session {
    pub(super) local: SocketAddr,
    pub(super) peer: SocketAddr,
    pub(super) seen: Seen,
}

#[derive(Debug)]
struct Flow {
    answers: SocketAddr,
    way: Way,
    /// When its announcement was read; [`LATE`] if that was late.
    noticed: u64,
    first: u64,
    last: u64,
    packets: [u64; 2],
    bytes: [u64; 2],
    /// Of `bytes`, what is in the totals, or was transferred before the watch.
    counted: u64,
    /// Not yet counted as a connection.
    uncounted: bool,
    /// The list that it was last in, or the one after which it began.
    generation: u32,
    seen: Option<Arc<Seen>>,
    program: Option<Arc<Program>>,
}

impl Flow {
    fn seen(&self) -> &Arc<Seen> {
        self.seen.as_ref().unwrap_or(&NOTHING)
    }

    fn is_known(&self) -> bool {
        self.seen().grade != Grade::Unknown
    }

    fn total(&self) -> u64 {
        self.bytes[0].saturating_add(self.bytes[1])
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct RowKey {
    way: Way,
    transport: Transport,
    client: IpAddr,
    server: SocketAddr,
    level: Level,
    protocol: std::borrow::Cow<'static, str>,
    program: Option<Arc<Program>>,
}

#[derive(Debug, Clone)]
struct RowSum {
    connections: u64,
    open: u64,
    packets: [u64; 2],
    bytes: [u64; 2],
    first: u64,
    last: u64,
    newest: u64,
    seen: Arc<Seen>,
}

/// The sums of an hour.
#[derive(Debug, Default)]
struct HourSum {
    sum: Sum,
    seconds: u32,
    /// What was counted of connections that cross a network; forwarded bytes twice.
    counted: u64,
}

/// The ends of a connection that has just begun, for finding its program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Begun {
    pub(super) key: Key,
    pub(super) answers: SocketAddr,
    pub(super) way: Way,
}

pub(super) struct Census {
    flows: HashMap<Key, Flow>,
    /// Keys of connections whose addresses are translated.
    translated: HashMap<Pair, Key>,
    /// Ended; their first packets may still be on the way.
    ended: Vec<(Key, Flow)>,
    /// Those of `ended` with these ends, oldest first.
    ended_by: HashMap<Pair, Vec<usize>>,
    /// What flows without ports are.
    portless: HashMap<Pair, Arc<Seen>>,
    /// What flows are that were not announced yet, since when, and whether they have waited before.
    orphans: HashMap<Pair, (Arc<Seen>, u64, bool)>,
    local: HashSet<IpAddr>,
    edge: Vec<SocketAddr>,
    dials: HashSet<SocketAddr>,
    sessions: HashMap<Pair, Arc<Seen>>,
    rows: HashMap<RowKey, RowSum>,
    forgotten: u64,
    sum: Sum,
    counted: u64,
    hours: BTreeMap<u64, HourSum>,
    generation: u32,
    /// The first list is being read.
    baseline: bool,
    /// What is read now was written a while ago: this process was stopped, or had no processor.
    pub(super) behind: bool,
    since: u64,
    ticked: u64,
}

impl Census {
    /// `now`, here and elsewhere: in nanoseconds since 1970.
    pub(super) fn new(now: u64) -> Census {
        Census {
            flows: HashMap::new(),
            translated: HashMap::new(),
            ended: Vec::new(),
            ended_by: HashMap::new(),
            portless: HashMap::new(),
            orphans: HashMap::new(),
            local: HashSet::new(),
            edge: Vec::new(),
            dials: HashSet::new(),
            sessions: HashMap::new(),
            rows: HashMap::new(),
            forgotten: 0,
            sum: Sum::default(),
            counted: 0,
            hours: BTreeMap::new(),
            generation: 0,
            baseline: true,
            behind: false,
            since: now,
            ticked: now,
        }
    }

    pub(super) fn set_local(&mut self, addresses: HashSet<IpAddr>) {
        self.local = addresses;
    }

    /// What the node carries now.
    pub(super) fn set_own(&mut self, own: Own) {
        self.sessions.clear();
        for Session { local, peer, seen } in own.sessions {
            let [local, peer] = [local, peer].map(canonical);
            let seen = Arc::new(seen);
            if let Some((key, _)) = self.find(TCP, local, peer)
                && let Some(flow) = self.flows.get_mut(&key)
            {
                better(flow, &seen);
            }
            self.sessions.insert(pair(TCP, local, peer), seen);
        }
        self.dials = own.dials.into_iter().collect();
        self.edge = own.edge;
    }

    pub(super) fn set_program(&mut self, key: &Key, program: Arc<Program>) {
        if let Some(flow) = self.flows.get_mut(key) {
            flow.program = Some(program);
        }
    }

    pub(super) fn open(&self) -> usize {
        self.flows.len()
    }

    /// A list of all connections begins.
    pub(super) fn list_begins(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    /// A list is complete: connections that are not in it have ended.
    pub(super) fn list_ends(&mut self, now: u64) {
        self.baseline = false;
        let generation = self.generation;
        let gone: Vec<Key> = self
            .flows
            .iter()
            .filter(|(_, f)| f.generation != generation)
            .map(|(k, _)| *k)
            .collect();
        for key in gone {
            self.end(&key, now);
        }
    }

    /// An event, or with `listed` an entry of a list. Returns the connection if it has just begun.
    pub(super) fn event(&mut self, event: Event, listed: bool, now: u64) -> Option<Begun> {
        match event {
            Event::Ended(tracked) => {
                // One that began before the watch, and ended before it was listed, is not ours to count.
                if !self.flows.contains_key(&tracked.key) && !self.is_since(&tracked) {
                    return None;
                }
                self.update(&tracked, false, now);
                self.end(&tracked.key, tracked.stopped.unwrap_or(now));
                None
            }
            Event::Is(tracked) => self.update(&tracked, listed, now),
        }
    }

    fn is_since(&self, tracked: &Tracked) -> bool {
        tracked.started.is_some_and(|at| at >= self.since)
    }

    fn update(&mut self, tracked: &Tracked, listed: bool, now: u64) -> Option<Begun> {
        let Tracked { key, answers, .. } = *tracked;
        if let Some(flow) = self.flows.get(&key)
            && is_another(flow, tracked, now)
        {
            // The end of the earlier one was lost.
            self.end(&key, now);
        }
        let (generation, baseline) = (self.generation, self.baseline);
        if let Some(flow) = self.flows.get_mut(&key) {
            flow.generation = generation;
            flow.grow(tracked, now);
            return None;
        }
        if self.flows.len() >= MAX_FLOWS {
            return None;
        }
        let way = self.way(key.client.ip(), answers);
        let whole = !(listed && baseline) || self.is_since(tracked);
        let mut flow = Flow {
            answers,
            way,
            noticed: if self.behind { LATE } else { now },
            first: tracked.started.unwrap_or(now),
            last: now,
            packets: [0; 2],
            bytes: [0; 2],
            counted: 0,
            uncounted: whole,
            generation,
            seen: None,
            program: None,
        };
        flow.grow(tracked, now);
        if !whole {
            flow.counted = flow.total();
        }
        let pair = pair_of(&key, answers);
        if key.server != answers && has_ports(key.protocol) {
            self.translated.insert(pair, key);
        }
        let orphan = self.orphans.remove(&pair);
        flow.seen =
            orphan.filter(|o| flow.noticed <= o.1.saturating_add(AHEAD)).map(|(seen, ..)| seen);
        if let Some(carried) = self.sessions.get(&pair) {
            flow.seen = Some(carried.clone());
        }
        self.flows.insert(key, flow);
        Some(Begun { key, answers, way })
    }

    fn way(&self, client: IpAddr, answers: SocketAddr) -> Way {
        let here = |ip: IpAddr| ip.is_loopback() || self.local.contains(&ip);
        let server = answers.ip();
        let everyone =
            server.is_multicast() || matches!(server, IpAddr::V4(ip) if ip.is_broadcast());
        match (here(client), here(server)) {
            (true, true) if self.dials.contains(&answers) => Way::Relay,
            (true, true) => Way::Loopback,
            (true, false) => Way::Out,
            (false, true) => Way::In,
            (false, false) if everyone => Way::In,
            (false, false) => Way::Forwarded,
        }
    }

    /// Moves a connection to those that have ended.
    fn end(&mut self, key: &Key, now: u64) {
        let Some(mut flow) = self.flows.remove(key) else { return };
        if key.server != flow.answers {
            self.translated.remove(&pair_of(key, flow.answers));
        }
        flow.last = flow.last.max(now.min(flow.last.saturating_add(1)));
        let same = self.ended_by.entry(pair_of(key, flow.answers)).or_default();
        same.push(self.ended.len());
        self.ended.push((*key, flow));
    }

    /// The connection with these ends, if it is open. `a` is probably the client.
    fn find(&self, protocol: u8, a: SocketAddr, b: SocketAddr) -> Option<(Key, &Flow)> {
        let of = |client, server| {
            let key = Key { protocol, zone: 0, client, server };
            self.flows.get(&key).map(|flow| (key, flow))
        };
        let translated = || {
            let key = self.translated.get(&pair(protocol, a, b))?;
            self.flows.get(key).map(|flow| (*key, flow))
        };
        of(a, b).or_else(|| of(b, a)).or_else(translated)
    }

    /// What the first packets of a flow have shown. `done`: no more will be said of it. Returns whether its connection is
    /// known, so that it need not be said again.
    pub(super) fn seen(&mut self, record: &Record, done: bool) -> bool {
        let Some(protocol) = number(record.transport, record.client) else { return false };
        if !has_ports(protocol) {
            if self.portless.len() >= MAX_ORPHANS {
                self.portless.clear();
            }
            self.portless.insert(pair(protocol, record.client, record.server), record.seen.clone());
            return false;
        }
        let [client, server] = [record.client, record.server].map(canonical);
        let pair = pair(protocol, client, server);
        // A pair of ports may have been used before: these are the packets of the newest connection that was not announced
        // after them.
        let first = u64::try_from(record.first.as_nanosecond()).unwrap_or_default();
        let began = |flow: &Flow| flow.noticed <= first.saturating_add(AHEAD);
        let same = self.ended_by.get(&pair).map_or(&[][..], Vec::as_slice).iter().rev().copied();
        let is_late = |n: usize| self.ended.get(n).is_some_and(|(_, flow)| flow.noticed == LATE);
        if same.clone().any(is_late) {
            return false;
        }
        let open = match self.find(protocol, client, server) {
            Some((_, flow)) if flow.noticed == LATE => return false,
            Some((key, flow)) if began(flow) => Some(key),
            _ => None,
        };
        let mut same = same;
        let flow = match open {
            Some(key) => self.flows.get_mut(&key),
            None => {
                let ended = same.find(|n| self.ended.get(*n).is_some_and(|(_, flow)| began(flow)));
                ended.and_then(|n| self.ended.get_mut(n)).map(|(_, flow)| flow)
            }
        };
        if let Some(flow) = flow {
            better(flow, &record.seen);
            return true;
        }
        if done && self.orphans.len() < MAX_ORPHANS {
            self.orphans.insert(pair, (record.seen.clone(), first, false));
        }
        false
    }

    /// Adds to the totals. `interfaces`: bytes that interfaces have counted since the last call.
    pub(super) fn tick(&mut self, now: u64, interfaces: u64, gaps: Gaps) {
        // An entry that is still there at the next call was announced by nothing.
        self.orphans.retain(|_, (_, _, is_old)| !std::mem::replace(is_old, true));
        self.ended_by.clear();
        for (key, mut flow) in std::mem::take(&mut self.ended) {
            self.complete(&key, &mut flow);
            self.settle(&mut flow, now);
            self.keep_row(&key, &flow);
        }
        let mut flows = std::mem::take(&mut self.flows);
        for (key, flow) in &mut flows {
            self.complete(key, flow);
            if flow.is_known() || now.saturating_sub(flow.first) > PATIENCE {
                self.settle(flow, now);
            }
        }
        self.flows = flows;
        let seconds = now.saturating_sub(self.ticked) / 1_000_000_000;
        self.ticked = now - (now.saturating_sub(self.ticked) % 1_000_000_000).min(now);
        let hour = self.hour(now);
        if seconds <= ASLEEP {
            hour.seconds = (hour.seconds + seconds as u32).min(Hour::LENGTH as u32);
        }
        let gaps = Gaps { interface_bytes: interfaces, missed_bytes: 0, ..gaps };
        hour.sum.gaps.add(gaps);
        self.sum.gaps.add(gaps);
    }

    fn hour(&mut self, now: u64) -> &mut HourSum {
        let start = now / HOUR * Hour::LENGTH;
        while self.hours.len() >= MAX_HOURS && !self.hours.contains_key(&start) {
            self.hours.pop_first();
        }
        self.hours.entry(start).or_default()
    }

    /// Fills in what flows without ports are, and which connections the edge carries.
    fn complete(&self, key: &Key, flow: &mut Flow) {
        if !flow.is_known() && !has_ports(key.protocol) {
            flow.seen = self.portless.get(&pair_of(key, flow.answers)).cloned();
        }
        let seen = flow.seen();
        if flow.way == Way::In
            && seen.grade == Grade::Seen
            && seen.level >= Level::Acceptable
            && self.edge.iter().any(|at| listens(*at, flow.answers))
        {
            let carried = Seen { grade: Grade::Carried, ..Seen::clone(seen) };
            flow.seen = Some(Arc::new(carried));
        }
    }

    /// Adds what is not in the totals yet.
    fn settle(&mut self, flow: &mut Flow, now: u64) {
        let count = count(flow);
        if count == Count::default() {
            return;
        }
        flow.counted = flow.total();
        flow.uncounted = false;
        let crossed = match flow.way {
            Way::Forwarded => count.bytes.saturating_mul(2),
            way if way.crosses_network() => count.bytes,
            _ => 0,
        };
        self.counted = self.counted.saturating_add(crossed);
        add(&mut self.sum, flow, count);
        let hour = self.hour(now);
        hour.counted = hour.counted.saturating_add(crossed);
        add(&mut hour.sum, flow, count);
    }

    fn keep_row(&mut self, key: &Key, flow: &Flow) {
        add_row(&mut self.rows, key, flow, false);
        if self.rows.len() > MAX_ROWS {
            let mut ages: Vec<u64> = self.rows.values().map(|row| row.last).collect();
            let (_, middle, _) = ages.select_nth_unstable(MAX_ROWS / 4);
            let oldest = *middle;
            let before = self.rows.len();
            self.rows.retain(|_, row| row.last > oldest);
            self.forgotten += (before - self.rows.len()) as u64;
        }
    }

    /// Since the start: what is settled, which only grows; and what is known of everything now.
    pub(super) fn totals(&self) -> (Totals, Totals) {
        let mut sum = self.sum.clone();
        sum.gaps.missed_bytes = sum.gaps.interface_bytes.saturating_sub(self.counted);
        let settled = sum.totals();
        let mut counted = self.counted;
        for flow in self.flows.values().chain(self.ended.iter().map(|(_, flow)| flow)) {
            let count = count(flow);
            if count == Count::default() {
                continue;
            }
            add(&mut sum, flow, count);
            match flow.way {
                Way::Forwarded => counted += 2 * count.bytes,
                way if way.crosses_network() => counted += count.bytes,
                _ => {}
            }
        }
        sum.gaps.missed_bytes = sum.gaps.interface_bytes.saturating_sub(counted);
        (settled, sum.totals())
    }

    pub(super) fn hours(&self) -> Vec<Hour> {
        let hour = |(start, hour): (&u64, &HourSum)| {
            let mut totals = hour.sum.totals();
            let gaps = &mut totals.gaps;
            gaps.missed_bytes = gaps.interface_bytes.saturating_sub(hour.counted);
            Hour { start: *start, watched_seconds: hour.seconds, totals }
        };
        self.hours.iter().map(hour).collect()
    }

    /// The rows with the most bytes, how many more fit the level, and how many were forgotten.
    pub(super) fn rows(&self, level: Option<Level>, most: usize) -> (Vec<Row>, u64, u64) {
        let mut all = self.rows.clone();
        for (key, flow) in &self.ended {
            add_row(&mut all, key, flow, false);
        }
        for (key, flow) in &self.flows {
            add_row(&mut all, key, flow, true);
        }
        let mut rows: Vec<(RowKey, RowSum)> = all
            .into_iter()
            .filter(|(key, _)| level.is_none_or(|level| key.level == level))
            .collect();
        let bytes = |row: &RowSum| row.bytes[0].saturating_add(row.bytes[1]);
        rows.sort_unstable_by_key(|(_, row)| std::cmp::Reverse((bytes(row), row.last)));
        let left_out = rows.len().saturating_sub(most) as u64;
        rows.truncate(most);
        (rows.into_iter().map(row).collect(), left_out, self.forgotten)
    }
}

impl Flow {
    fn grow(&mut self, tracked: &Tracked, now: u64) {
        if let (Some(packets), Some(bytes)) = (tracked.packets, tracked.bytes) {
            if packets != self.packets {
                self.last = tracked.stopped.unwrap_or(now).max(self.first);
            }
            for n in 0..2 {
                self.packets[n] = self.packets[n].max(packets[n]);
                self.bytes[n] = self.bytes[n].max(bytes[n]);
            }
        }
    }
}

/// Whether a message is about a later connection with the same addresses and ports.
fn is_another(flow: &Flow, tracked: &Tracked, now: u64) -> bool {
    match (tracked.started, tracked.bytes) {
        // A difference of clocks: `first` is our own time if the kernel did not say it.
        (Some(started), _) => started > flow.first.saturating_add(1_000_000_000),
        (None, Some(bytes)) => bytes[0] < flow.bytes[0] || bytes[1] < flow.bytes[1],
        // The announcement of a new one.
        (None, None) => now.saturating_sub(flow.first) > 5_000_000_000,
    }
}

fn better(flow: &mut Flow, seen: &Arc<Seen>) {
    if seen.grade >= flow.seen().grade && flow.seen().grade != Grade::Carried {
        flow.seen = Some(seen.clone());
    }
}

/// What is not in the totals yet.
fn count(flow: &Flow) -> Count {
    Count { connections: flow.uncounted.into(), bytes: flow.total().saturating_sub(flow.counted) }
}

fn add(sum: &mut Sum, flow: &Flow, count: Count) {
    let (seen, way) = (flow.seen(), flow.way);
    let Seen { level, grade, .. } = **seen;
    sum.add(Kind { way, level, grade, protocol: seen.protocol.clone() }, count);
    if let Some(algorithm) = Algorithm::of(seen).filter(|_| way.crosses_network()) {
        sum.add_algorithm(algorithm, count);
    }
}

fn add_row(rows: &mut HashMap<RowKey, RowSum>, key: &Key, flow: &Flow, open: bool) {
    let seen = flow.seen();
    let id = RowKey {
        way: flow.way,
        transport: transport(key.protocol),
        client: key.client.ip(),
        server: SocketAddr::new(
            key.server.ip(),
            if has_ports(key.protocol) { key.server.port() } else { 0 },
        ),
        level: seen.level,
        protocol: seen.protocol.clone(),
        program: flow.program.clone(),
    };
    let row = rows.entry(id).or_insert_with(|| RowSum {
        connections: 0,
        open: 0,
        packets: [0; 2],
        bytes: [0; 2],
        first: flow.first,
        last: flow.last,
        newest: flow.first,
        seen: seen.clone(),
    });
    row.connections += 1;
    row.open += u64::from(open);
    for n in 0..2 {
        row.packets[n] = row.packets[n].saturating_add(flow.packets[n]);
        row.bytes[n] = row.bytes[n].saturating_add(flow.bytes[n]);
    }
    row.first = row.first.min(flow.first);
    row.last = row.last.max(flow.last);
    if flow.first >= row.newest {
        row.newest = flow.first;
        row.seen = seen.clone();
    }
}

fn row((key, sum): (RowKey, RowSum)) -> Row {
    let at = |ns: u64| Timestamp::from_nanosecond(ns.into()).unwrap_or_default();
    Row {
        way: key.way,
        transport: key.transport,
        client: key.client,
        server: key.server,
        program: key.program.map(|program| Program::clone(&program)),
        connections: sum.connections,
        open: sum.open,
        packets: sum.packets,
        bytes: sum.bytes,
        first: at(sum.first),
        last: at(sum.last),
        seen: Seen::clone(&sum.seen),
    }
}

fn has_ports(protocol: u8) -> bool {
    matches!(transport(protocol), Transport::Tcp | Transport::Udp | Transport::Sctp)
}

fn number(transport: Transport, of: SocketAddr) -> Option<u8> {
    Some(match transport {
        Transport::Tcp => 6,
        Transport::Udp => 17,
        Transport::Sctp => 132,
        Transport::Icmp if of.is_ipv4() => 1,
        Transport::Icmp => 58,
        Transport::Ip(number) => number,
    })
}

fn pair(protocol: u8, a: SocketAddr, b: SocketAddr) -> Pair {
    let [a, b] = [a, b].map(canonical);
    let (client, server) = if a <= b { (a, b) } else { (b, a) };
    Key { protocol, zone: 0, client, server }
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// Both ends as packets have them at this machine's programs.
fn pair_of(key: &Key, answers: SocketAddr) -> Pair {
    let without = |addr: SocketAddr| SocketAddr::new(addr.ip(), 0);
    match has_ports(key.protocol) {
        true => pair(key.protocol, key.client, answers),
        false => pair(key.protocol, without(key.client), without(answers)),
    }
}

fn listens(listener: SocketAddr, addr: SocketAddr) -> bool {
    listener.port() == addr.port() && (listener.ip() == addr.ip() || listener.ip().is_unspecified())
}

#[cfg(test)]
mod tests;
