//! The table of flows: counts every packet, keeps the first bytes of each direction in order, and asks
//! [`look`] what they are. Bounded whatever arrives.
//!
//! A packet of a flow that is decided costs one lookup and a few counters: no allocation, and no list of all flows is
//! walked. Buffers exist only for flows that are not decided.

mod copies;
mod fragments;
mod opening;
mod store;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};
use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use self::copies::Copies;
use self::fragments::{Fragments, Handed};
use self::opening::Openings;
use self::store::{Flow, Flows, NONE, Queue};
use super::file::Frame;
use super::packets::{self, Key, LinkType, Other, Packet, Segment, Sender, Tcp};
use super::{Grade, Look, Seen, Transport, look};
use crate::judge::Level;

/// A flow. Two directions with the same addresses and ports are one flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub transport: Transport,
    /// The port is 0 if the transport has none.
    pub client: SocketAddr,
    pub server: SocketAddr,
    /// When the first and the last packet were captured.
    pub first: jiff::Timestamp,
    pub last: jiff::Timestamp,
    /// From the client, and from the server.
    pub packets: [u64; 2],
    /// Bytes of IP packets, with their headers, as the header says them (a capture may be cut). In a tunnel, those of
    /// the outer packet.
    pub bytes: [u64; 2],
    /// Whether its beginning was captured. Without TCP this can't be known, and is true.
    pub whole: bool,
    #[serde(flatten)]
    pub seen: Arc<Seen>,
}

/// The bounds of a [`Table`].
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Flows at a time, about 150 bytes each. When it is full, the flow that was idle longest ends; if half of the
    /// table are flows that only one end has sent in, one of them.
    pub flows: usize,
    /// Flows that are not decided yet, whose first bytes are kept: up to 16 KiB each. When it is full, the oldest one
    /// is decided by what there is.
    pub undecided: usize,
    /// Of every so many new flows, one is looked at (1: all); chosen by a hash of addresses and ports, and counted as
    /// `unknown` otherwise.
    pub sample: u32,
}

/// What was not attributed to a flow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missed {
    /// Frames that are not IP (ARP, LLDP).
    pub not_ip: u64,
    /// Malformed or truncated frames.
    pub malformed: u64,
    /// Exact copies of a packet just before (a mirror of both ports of a path).
    pub duplicates: u64,
    /// Fragments whose first fragment, which has the ports, was not captured.
    #[serde(default)]
    pub fragments: u64,
    /// Bytes of IP packets among `malformed` and `fragments`, as far as their header could be read.
    pub bytes: u64,
}

/// Flows, by their addresses and ports.
#[derive(Debug)]
pub struct Table {
    limits: Limits,
    flows: Flows,
    openings: Openings,
    fragments: Fragments,
    copies: Copies,
    known: Known,
    ended: Vec<Record>,
    missed: Missed,
    /// For hashes of payload.
    secret: u64,
    /// The time of the last packet, in nanoseconds.
    now: i64,
    /// When flows were last ended for their age.
    expired: i64,
}

/// Flows are ended for their age this often, and so much later at most.
const TICK: i64 = SECOND;
const SECOND: i64 = 1_000_000_000;
/// A flow that has so many packets is decided by what there is, if one direction shows nothing.
const ENOUGH_PACKETS: u64 = 200;

impl Table {
    pub fn new(limits: Limits) -> Self {
        let limits = Limits {
            flows: limits.flows.clamp(1, NONE as usize),
            undecided: limits.undecided.clamp(1, NONE as usize),
            sample: limits.sample.max(1),
        };
        Self {
            limits,
            flows: Flows::default(),
            openings: Openings::default(),
            fragments: Fragments::default(),
            copies: Copies::default(),
            known: Known::default(),
            ended: Vec::new(),
            missed: Missed::default(),
            secret: RandomState::new().hash_one(0),
            now: 0,
            expired: 0,
        }
    }

    /// Adds a captured frame. `length` is its length on the wire, which is more than `captured` if it was cut. Flows
    /// that are idle at this time end.
    pub fn frame(&mut self, link: LinkType, at: jiff::Timestamp, captured: &[u8], length: usize) {
        let parsed = packets::parse(link, captured, length);
        let hash = parsed.as_ref().map_or(0, |packet| self.flows.hash(&packet.key));
        self.parsed(nanoseconds(at), parsed, hash);
    }

    /// Adds several frames, with the same result as one after the other. This is faster in a large table, because the
    /// processor waits for the memory of several flows at a time.
    pub fn frames(&mut self, frames: &[Frame<'_>]) {
        const TOGETHER: usize = 16;
        for frames in frames.chunks(TOGETHER) {
            // Each of these loops is so short that the processor is ahead by several rounds.
            black_box(frames.iter().fold(0, |sum, frame| sum ^ frame.bytes.get(40).unwrap_or(&0)));
            let mut parsed = [const { None }; TOGETHER];
            for (place, frame) in parsed.iter_mut().zip(frames) {
                let packet = packets::parse(frame.link, frame.bytes, frame.length);
                let hash = packet.as_ref().map_or(0, |packet| self.flows.hash(&packet.key));
                *place = Some((packet, hash));
            }
            let mut ids = [NONE; TOGETHER];
            for (id, parsed) in ids.iter_mut().zip(&parsed) {
                *id = parsed.as_ref().and_then(|(_, hash)| self.flows.guess(*hash)).unwrap_or(NONE);
            }
            black_box(ids.iter().fold(0, |sum, id| {
                sum ^ self.flows.get(*id).map_or(0, |flow| flow.first ^ flow.base[0] as i64)
            }));
            for (parsed, frame) in parsed.iter_mut().zip(frames) {
                if let Some((packet, hash)) = parsed.take() {
                    self.parsed(nanoseconds(frame.at), packet, hash);
                }
            }
        }
    }

    /// Ends flows that are closed or were idle too long at this time.
    pub fn expire(&mut self, now: jiff::Timestamp) {
        self.now = nanoseconds(now);
        self.end_idle();
    }

    /// The flows that have ended since the last call, except those that were [handed over](Table::hand_over) as they are.
    /// They are kept until then.
    pub fn ended(&mut self) -> Vec<Record> {
        std::mem::take(&mut self.ended)
    }

    /// All current flows, as they are now.
    pub fn current(&self) -> impl Iterator<Item = Record> {
        self.flows.iter().map(|flow| self.record(flow))
    }

    /// Calls `take` for current flows. One that is decided, and for which `take` returns true, is passed on only once:
    /// not again, unless something else is decided, and not when it ends.
    pub fn hand_over(&mut self, mut take: impl FnMut(&Record) -> bool) {
        for id in self.flows.not_handed_over() {
            let Some(flow) = self.flows.get(id) else { continue };
            if take(&self.record(flow))
                && let Some(flow) = self.flows.get_mut(id)
            {
                flow.set_handed_over();
            }
        }
    }

    /// The number of current flows.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.flows.len() == 0
    }

    /// Ends all flows: the capture is over.
    pub fn finish(&mut self) -> Vec<Record> {
        self.lose_fragments(None);
        for queue in Queue::ALL {
            while let Some(id) = self.flows.oldest(queue) {
                self.end(id);
            }
        }
        self.ended()
    }

    pub fn missed(&self) -> Missed {
        self.missed
    }

    /// `hash` is that of the packet's flow.
    fn parsed(&mut self, at: i64, packet: Result<Packet<'_>, Other>, hash: u64) {
        self.tick(at);
        match packet {
            Ok(packet) if self.copies.is_copy(&packet, hash, at) => self.copy(&packet, hash),
            Ok(packet) if packet.fragment.is_some() => self.fragment(&packet, hash),
            Ok(packet) => {
                let id = self.count(&packet, hash);
                self.segment(id, packet.sender, &packet.segment);
            }
            Err(Other::NotIp) => self.missed.not_ip += 1,
            Err(Other::Malformed { bytes }) => {
                self.missed.malformed += 1;
                self.missed.bytes += u64::from(bytes);
            }
        }
    }

    fn tick(&mut self, at: i64) {
        self.now = at;
        // A clock that was set back also counts.
        if self.expired.abs_diff(at) >= TICK as u64 {
            self.end_idle();
        }
    }

    fn end_idle(&mut self) {
        self.expired = self.now;
        self.lose_fragments(Some(self.now));
        for queue in Queue::ALL {
            while let Some(id) = self.flows.oldest(queue) {
                let idle = self.flows.get(id).map_or(0, |flow| flow.idle(self.now));
                if idle <= queue.timeout() {
                    break;
                }
                self.end(id);
            }
        }
    }

    /// Does not count a packet that is a copy by its beginning and end. The rest of it is compared.
    fn copy(&mut self, packet: &Packet<'_>, hash: u64) {
        self.missed.duplicates += 1;
        if packet.segment.tcp.is_some()
            && packet.fragment.is_none()
            && let Some(id) = self.flows.find(hash, &packet.key)
        {
            self.segment(id, packet.sender, &packet.segment);
        }
    }

    /// Counts a packet. Returns its flow, which starts if there is none.
    fn count(&mut self, packet: &Packet<'_>, hash: u64) -> u32 {
        let id = match self.flows.find(hash, &packet.key) {
            Some(id) if self.is_reused(id, packet) => {
                self.end(id);
                self.start(hash, packet)
            }
            Some(id) => id,
            None => self.start(hash, packet),
        };
        self.flows.count(id, packet.sender, 1, packet.bytes.into(), self.now);
        id
    }

    /// Whether a SYN opens another connection with the same ports.
    fn is_reused(&self, id: u32, packet: &Packet<'_>) -> bool {
        let Some(tcp) = packet.segment.tcp else { return false };
        if !tcp.has(Tcp::SYN) {
            return false;
        }
        let Some(flow) = self.flows.get(id) else { return false };
        match flow.has_syn(packet.sender) {
            // Also a retransmission has this number.
            true => flow.base[packet.sender as usize] != tcp.sequence.wrapping_add(1),
            // The other end's SYN was first; or the capture started in the middle.
            false => !tcp.has(Tcp::ACK) && !flow.has_syn(packet.sender.other()),
        }
    }

    fn start(&mut self, hash: u64, packet: &Packet<'_>) -> u32 {
        while self.flows.len() >= self.limits.flows {
            match self.flows.idle_longest(self.now) {
                Some(id) => self.end(id),
                None => break,
            }
        }
        let tcp = packet.segment.tcp;
        let client = match tcp {
            Some(tcp) if tcp.has(Tcp::SYN | Tcp::ACK) => packet.sender.other(),
            Some(tcp) if tcp.has(Tcp::SYN) => packet.sender,
            _ => client(&packet.key, packet.sender),
        };
        let seen = (!self.is_chosen(&packet.key)).then(|| self.known.share(not_sampled()));
        let whole = tcp.is_none_or(|tcp| tcp.has(Tcp::SYN));
        self.flows.insert(hash, Flow::new(packet.key, client, whole, seen, self.now))
    }

    /// Whether a flow is in the sample. Every table chooses the same flows.
    fn is_chosen(&self, key: &Key) -> bool {
        if self.limits.sample == 1 {
            return true;
        }
        let mut hasher = DefaultHasher::new();
        key.words().hash(&mut hasher);
        hasher.finish().is_multiple_of(u64::from(self.limits.sample))
    }

    /// The state of a connection, and the payload of a packet that was counted.
    fn segment(&mut self, id: u32, sender: Sender, segment: &Segment<'_>) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        let mut ends = false;
        if let Some(tcp) = segment.tcp {
            ends = tcp.flags & (Tcp::FIN | Tcp::RST) != 0;
            if ends || tcp.has(Tcp::SYN) {
                flow.open_or_close(sender, tcp);
                self.flows.requeue(id, self.now);
            } else if flow.is_altered(sender, tcp, segment.payload, self.secret) {
                self.distrust(id);
                return;
            } else if flow.establish() {
                self.flows.requeue(id, self.now);
            }
        }
        let Some(flow) = self.flows.get_mut(id) else { return };
        if flow.seen().is_some() {
            return;
        }
        let opening = match flow.opening() {
            Some(opening) if segment.length > 0 || ends => opening,
            None if segment.length > 0 => self.open(id),
            _ => return,
        };
        let Some(flow) = self.flows.get_mut(id) else { return };
        let Some(opening) = self.openings.get_mut(opening) else { return };
        let grown = opening.add(flow, sender, segment);
        let many = flow.packets[0] + flow.packets[1] >= ENOUGH_PACKETS;
        if grown || many {
            self.look(id, many);
        }
    }

    /// Starts to keep the first bytes of a flow.
    fn open(&mut self, id: u32) -> u32 {
        if self.openings.len() >= self.limits.undecided
            && let Some(oldest) = self.openings.oldest()
        {
            self.look(oldest, true);
        }
        let opening = self.openings.add(id);
        if let Some(flow) = self.flows.get_mut(id) {
            flow.set_opening(opening);
        }
        opening
    }

    /// Looks at a flow that is not decided.
    fn look(&mut self, id: u32, last: bool) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        let Some(at) = flow.opening() else { return };
        let Some(opening) = self.openings.get(at) else { return };
        let last = last || opening.is_over();
        let seen = match look(&opening.as_seen_from(flow, last)) {
            Look::More if !last => return,
            Look::More => unknown("no known protocol"),
            Look::Done(seen) if opening.is_altered() => trusted(seen),
            Look::Done(seen) => seen,
        };
        flow.decide(self.known.share(seen), opening.starts(flow, self.secret));
        self.openings.remove(at);
    }

    /// A segment was sent twice with different content, so what was seen may not be what the other end received.
    fn distrust(&mut self, id: u32) {
        if let Some(flow) = self.flows.get_mut(id)
            && let Some(seen) = flow.seen()
        {
            let seen = trusted(Seen::clone(seen));
            flow.change(self.known.share(seen));
        }
    }

    fn end(&mut self, id: u32) {
        self.look(id, true);
        if let Some(flow) = self.flows.remove(id)
            && !flow.is_handed_over()
        {
            self.ended.push(self.record(&flow));
        }
    }

    fn record(&self, flow: &Flow) -> Record {
        let (client, server) = (flow.client, flow.client.other());
        let of = |counts: [u64; 2]| [counts[client as usize], counts[server as usize]];
        let undecided = || match flow.opening() {
            None => &self.known.no_payload,
            Some(_) => &self.known.undecided,
        };
        Record {
            transport: flow.key.transport(),
            client: flow.key.end(client),
            server: flow.key.end(server),
            first: timestamp(flow.first),
            last: timestamp(flow.last),
            packets: of(flow.packets),
            bytes: of(flow.bytes),
            whole: flow.is_whole(),
            seen: flow.seen().unwrap_or_else(undecided).clone(),
        }
    }

    /// Counts a fragment, whose flow may not be known yet.
    fn fragment(&mut self, packet: &Packet<'_>, hash: u64) {
        let Some(fragment) = packet.fragment else { return };
        if fragment.offset > 0 {
            let handed = self.fragments.later(packet, &fragment, self.now);
            if let Some((key, sender)) = handed.flow {
                self.add_fragment(&key, sender, (1, packet.bytes.into()));
            }
            self.hand(handed);
            self.lose_fragments(Some(self.now));
            return;
        }
        let id = self.count(packet, hash);
        let decided = self.flows.get(id).is_none_or(|flow| flow.seen().is_some());
        let keep = !decided && !packet.in_tunnel;
        let (waited, handed) = self.fragments.first(packet, &fragment, keep, self.now);
        self.add_fragment(&packet.key, packet.sender, waited);
        match handed {
            Some(handed) => self.hand(handed),
            None => self.segment(id, packet.sender, &packet.segment),
        }
        self.lose_fragments(Some(self.now));
    }

    fn add_fragment(&mut self, key: &Key, sender: Sender, (packets, bytes): (u64, u64)) {
        let hash = self.flows.hash(key);
        // The flow may have ended since its first fragment.
        match self.flows.find(hash, key) {
            Some(id) if packets > 0 => self.flows.count(id, sender, packets, bytes, self.now),
            Some(_) => {}
            None => {
                self.missed.fragments += packets;
                self.missed.bytes += bytes;
            }
        }
    }

    /// Adds a datagram that was put together, or as much of it as there is.
    fn hand(&mut self, handed: Handed) {
        let (Some((key, sender)), Some((body, complete))) = (handed.flow, handed.datagram) else {
            return;
        };
        let hash = self.flows.hash(&key);
        let Some(id) = self.flows.find(hash, &key) else { return };
        if let Ok((_, segment)) = packets::segment(key.protocol, &body, body.len(), !complete) {
            self.segment(id, sender, &segment);
        }
    }

    /// Gives up datagrams whose fragments did not all arrive in time; without a time, all.
    fn lose_fragments(&mut self, now: Option<i64>) {
        while let Some((packets, bytes, handed)) = self.fragments.lost(now) {
            self.missed.fragments += packets;
            self.missed.bytes += bytes;
            self.hand(handed);
        }
    }
}

/// Who the client is, if no SYN says so: not the end whose port is one of a well-known service, else who sent first.
fn client(key: &Key, first: Sender) -> Sender {
    let known = |end: Sender| {
        let port = key.port(end);
        port != 0 && (port < 1024 || SERVICES.binary_search(&port).is_ok())
    };
    match (known(first), known(first.other())) {
        (true, false) => first.other(),
        _ => first,
    }
}

/// Registered ports of services above 1023, in order.
const SERVICES: [u16; 36] = [
    1194, 1433, 1521, 1723, 1812, 1813, 1883, 2049, 2181, 2379, 3128, 3268, 3306, 3389, 3478, 4500,
    5060, 5061, 5222, 5269, 5432, 5671, 5672, 5900, 6379, 6443, 6667, 8080, 8443, 8883, 9042, 9092,
    9200, 11211, 27017, 51820,
];

/// What is still believed after a segment was sent twice with different content: plaintext, but not encryption.
fn trusted(seen: Seen) -> Seen {
    match seen.level {
        Level::Plaintext | Level::Unknown => seen,
        _ => unknown("segments overlap with different content"),
    }
}

fn unknown(evidence: &'static str) -> Seen {
    Seen {
        protocol: Cow::Borrowed("unknown"),
        level: Level::Unknown,
        grade: Grade::Unknown,
        evidence: Cow::Borrowed(evidence),
        starttls: None,
        sealed: None,
    }
}

fn not_sampled() -> Seen {
    unknown("not sampled")
}

/// Equal values of [`Seen`], shared. Bounded: flows keep theirs when they are forgotten here.
#[derive(Debug)]
struct Known {
    values: hashbrown::HashTable<Arc<Seen>>,
    hasher: RandomState,
    no_payload: Arc<Seen>,
    undecided: Arc<Seen>,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            values: hashbrown::HashTable::new(),
            hasher: RandomState::new(),
            no_payload: Arc::new(unknown("no payload")),
            undecided: Arc::new(unknown("not decided yet")),
        }
    }
}

impl Known {
    const MOST: usize = 8192;

    fn share(&mut self, seen: Seen) -> Arc<Seen> {
        let hash = self.hasher.hash_one(&seen);
        if let Some(known) = self.values.find(hash, |known| **known == seen) {
            return known.clone();
        }
        if self.values.len() >= Self::MOST {
            self.values.retain(|known| Arc::strong_count(known) > 1);
            if self.values.len() > Self::MOST / 2 {
                self.values.clear();
            }
        }
        let seen = Arc::new(seen);
        self.values.insert_unique(hash, seen.clone(), |seen| self.hasher.hash_one(seen));
        seen
    }
}

fn nanoseconds(at: jiff::Timestamp) -> i64 {
    let seconds = at.as_second().saturating_mul(SECOND);
    seconds.saturating_add(at.subsec_nanosecond().into())
}

fn timestamp(nanoseconds: i64) -> jiff::Timestamp {
    jiff::Timestamp::from_nanosecond(nanoseconds.into()).unwrap_or_default()
}
