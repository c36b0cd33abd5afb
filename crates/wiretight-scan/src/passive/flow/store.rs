//! The flows themselves: an index by addresses and ports, and queues by age.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::mem::size_of;
use std::sync::Arc;

use hashbrown::HashTable;

use super::SECOND;
use crate::passive::Seen;
use crate::passive::packets::{self, Key, Sender, Tcp};

/// No flow; no opening.
pub const NONE: u32 = u32::MAX;

/// A flow. An established one costs this and about 20 bytes in the index. Two lines of the cache, which are loaded
/// together.
#[derive(Debug)]
#[repr(align(128))]
pub struct Flow {
    pub key: Key,
    pub packets: [u64; 2],
    pub bytes: [u64; 2],
    pub first: i64,
    pub last: i64,
    /// What it is, once that is decided.
    seen: Option<Arc<Seen>>,
    /// Its [opening](super::opening) while it is not decided. Afterwards, for TCP, hashes of the first bytes of each
    /// direction; 0 is none.
    opening_or_starts: u32,
    previous: u32,
    next: u32,
    /// TCP: the sequence number of the first byte of each direction, once it is known.
    pub base: [u32; 2],
    /// When the flow was put at the end of its queue, in seconds, modulo their number.
    touched: u32,
    flags: u8,
    pub client: Sender,
    queue: Queue,
}

const _: () = assert!(size_of::<Flow>() == 128);

/// Flags of a flow. Those of the second end are one to the left.
const SYN: u8 = 1;
const FIN: u8 = 4;
const BOTH_FIN: u8 = 3 * FIN;
const RESET: u8 = 16;
/// Both ends have sent more than a SYN.
const ESTABLISHED: u8 = 32;
const WHOLE: u8 = 64;
/// It was [handed over](super::Table::hand_over) as it is now. Also unused places have this flag.
const HANDED_OVER: u8 = 128;

/// Flows that end after the same time, the one that was idle longest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// Only one end has sent, or only SYNs; and not much.
    OneWay,
    Tcp,
    /// UDP, ESP and all others.
    Datagrams,
    /// TCP that was closed or reset.
    Closed,
}

impl Queue {
    pub const ALL: [Self; 4] = [Self::OneWay, Self::Tcp, Self::Datagrams, Self::Closed];

    /// In seconds.
    pub fn timeout(self) -> u32 {
        match self {
            Self::OneWay => 60,
            // RFC 5382, REQ-5: longer than the interval of keep-alives
            Self::Tcp => (2 * 60 + 4) * 60,
            // RFC 4787, REQ-5
            Self::Datagrams => 5 * 60,
            // Retransmissions, and what was on the way
            Self::Closed => 10,
        }
    }
}

impl Flow {
    /// So many packets from one end alone are a flow, and not an attempt.
    const ATTEMPTS: u64 = 8;

    pub fn new(key: Key, client: Sender, whole: bool, seen: Option<Arc<Seen>>, now: i64) -> Self {
        Self {
            key,
            packets: [0; 2],
            bytes: [0; 2],
            first: now,
            last: now,
            opening_or_starts: if seen.is_some() { 0 } else { NONE },
            seen,
            previous: NONE,
            next: NONE,
            base: [0; 2],
            touched: seconds(now),
            flags: if whole { WHOLE } else { 0 },
            client,
            queue: Queue::OneWay,
        }
    }

    pub fn seen(&self) -> Option<&Arc<Seen>> {
        self.seen.as_ref()
    }

    /// Its opening, if it is not decided and has one.
    pub fn opening(&self) -> Option<u32> {
        (self.seen.is_none() && self.opening_or_starts != NONE).then_some(self.opening_or_starts)
    }

    pub fn set_opening(&mut self, opening: u32) {
        self.opening_or_starts = opening;
    }

    /// Decides it. `starts` are [hashes of the first bytes](Self::is_altered) of each direction.
    pub fn decide(&mut self, seen: Arc<Seen>, starts: [u16; 2]) {
        let [a, b] = starts.map(u32::from);
        (self.seen, self.opening_or_starts) = (Some(seen), a << 16 | b);
    }

    /// Replaces what was decided.
    pub fn change(&mut self, seen: Arc<Seen>) {
        self.seen = Some(seen);
        self.flags &= !HANDED_OVER;
    }

    pub fn is_handed_over(&self) -> bool {
        self.flags & HANDED_OVER != 0
    }

    /// What is decided is known elsewhere too, until it changes.
    pub fn set_handed_over(&mut self) {
        if self.seen.is_some() {
            self.flags |= HANDED_OVER;
        }
    }

    pub fn is_whole(&self) -> bool {
        self.flags & WHOLE != 0
    }

    /// TCP: whether the base of a direction is from its SYN.
    pub fn has_syn(&self, sender: Sender) -> bool {
        self.flags & SYN << sender as u8 != 0
    }

    /// SYN, FIN and RST.
    pub fn open_or_close(&mut self, sender: Sender, tcp: Tcp) {
        let (own, other) = (sender as usize, sender.other() as usize);
        if tcp.has(Tcp::SYN) && self.packets[own] == 1 {
            self.base[own] = tcp.sequence.wrapping_add(1);
            self.flags |= SYN << own;
            if tcp.has(Tcp::ACK) && !self.has_syn(sender.other()) && self.packets[other] == 0 {
                // The other SYN was not captured, but this acknowledges it.
                self.base[other] = tcp.acknowledged;
                self.flags |= SYN << other;
            }
        }
        if tcp.has(Tcp::FIN) {
            self.flags |= FIN << own;
        }
        if tcp.has(Tcp::RST) {
            self.flags |= RESET;
        }
    }

    /// Both ends have sent, and the handshake of TCP is over. Returns whether that is new.
    pub fn establish(&mut self) -> bool {
        let [a, b] = self.packets;
        let new = self.flags & ESTABLISHED == 0 && a > 0 && b > 0;
        if new {
            self.flags |= ESTABLISHED;
        }
        new
    }

    fn right_queue(&self) -> Queue {
        let [a, b] = self.packets;
        let closed = self.flags & RESET != 0 || self.flags & BOTH_FIN == BOTH_FIN;
        match self.key.protocol {
            packets::TCP if closed => Queue::Closed,
            _ if self.flags & ESTABLISHED == 0 && a + b < Self::ATTEMPTS => Queue::OneWay,
            packets::TCP => Queue::Tcp,
            _ => Queue::Datagrams,
        }
    }

    /// Whether this sends the first bytes of a decided direction once more, but others.
    pub fn is_altered(&self, sender: Sender, tcp: Tcp, payload: &[u8], secret: u64) -> bool {
        if tcp.sequence != self.base[sender as usize] || self.seen.is_none() {
            return false;
        }
        let start = match sender {
            Sender::First => (self.opening_or_starts >> 16) as u16,
            Sender::Second => self.opening_or_starts as u16,
        };
        start != 0 && start_of(payload, secret).is_some_and(|own| own != start)
    }

    /// Seconds since it was put at the end of its queue; since a time in the future, if the clock was set back.
    pub fn idle(&self, now: i64) -> u32 {
        seconds(now).wrapping_sub(self.touched).cast_signed().unsigned_abs()
    }
}

fn seconds(nanoseconds: i64) -> u32 {
    nanoseconds.div_euclid(SECOND) as u32
}

/// A hash of the first bytes of a stream; never 0.
pub fn start_of(bytes: &[u8], secret: u64) -> Option<u16> {
    let bytes = bytes.first_chunk::<16>()?;
    Some((super::copies::mix(bytes, secret) as u16).max(1))
}

#[derive(Debug)]
pub struct Flows {
    flows: Vec<Flow>,
    /// The hash and the position of each flow.
    index: HashTable<(u32, u32)>,
    hasher: RandomState,
    /// Unused positions, linked by `next`.
    free: u32,
    queues: [Ends; 4],
}

#[derive(Debug, Clone, Copy)]
struct Ends {
    oldest: u32,
    newest: u32,
    len: usize,
}

impl Default for Flows {
    fn default() -> Self {
        let empty = Ends { oldest: NONE, newest: NONE, len: 0 };
        Self {
            flows: Vec::new(),
            index: HashTable::new(),
            // Peers choose ports, so the hash is secret.
            hasher: RandomState::new(),
            free: NONE,
            queues: [empty; 4],
        }
    }
}

/// The hash in the table, from the part of it that is kept.
fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Flows {
    pub fn hash(&self, key: &Key) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        for word in key.words() {
            hasher.write_u64(word);
        }
        hasher.finish()
    }

    pub fn find(&self, hash: u64, key: &Key) -> Option<u32> {
        let short = hash as u32;
        let found = self.index.find(spread(short), |(hash, id)| {
            *hash == short && self.flows.get(*id as usize).is_some_and(|flow| flow.key == *key)
        });
        found.map(|(_, id)| *id)
    }

    /// The position of what is probably the flow with this hash, after at most a look into the index.
    pub fn guess(&self, hash: u64) -> Option<u32> {
        let short = hash as u32;
        self.index.find(spread(short), |(hash, _)| *hash == short).map(|(_, id)| *id)
    }

    pub fn get(&self, id: u32) -> Option<&Flow> {
        self.flows.get(id as usize)
    }

    pub fn get_mut(&mut self, id: u32) -> Option<&mut Flow> {
        self.flows.get_mut(id as usize)
    }

    pub fn len(&self) -> usize {
        self.index.len()
    }

    #[cfg(test)]
    pub fn capacity(&self) -> usize {
        self.flows.capacity()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Flow> {
        self.index.iter().filter_map(|(_, id)| self.get(*id))
    }

    /// Those that were not handed over as they are now.
    pub fn not_handed_over(&self) -> Vec<u32> {
        let flows = self.flows.iter().zip(0..);
        flows.filter(|(flow, _)| !flow.is_handed_over()).map(|(_, id)| id).collect()
    }

    pub fn insert(&mut self, hash: u64, flow: Flow) -> u32 {
        let hash = hash as u32;
        let id = self.free;
        let id = match self.flows.get_mut(id as usize) {
            Some(place) => {
                self.free = place.next;
                *place = flow;
                id
            }
            None => {
                self.flows.push(flow);
                (self.flows.len() - 1) as u32
            }
        };
        self.index.insert_unique(spread(hash), (hash, id), |(hash, _)| spread(*hash));
        self.append(id);
        id
    }

    /// Takes a flow out; its place is used again.
    pub fn remove(&mut self, id: u32) -> Option<Flow> {
        let hash = self.hash(&self.get(id)?.key) as u32;
        let entry = self.index.find_entry(spread(hash), |(_, other)| *other == id).ok()?;
        entry.remove();
        self.unlink(id);
        let place = self.flows.get_mut(id as usize)?;
        let mut empty = Flow::new(place.key, place.client, false, None, 0);
        empty.flags = HANDED_OVER;
        let flow = std::mem::replace(place, empty);
        place.next = self.free;
        self.free = id;
        Some(flow)
    }

    /// Counts packets.
    pub fn count(&mut self, id: u32, sender: Sender, packets: u64, bytes: u64, now: i64) {
        let Some(flow) = self.flows.get_mut(id as usize) else { return };
        flow.packets[sender as usize] += packets;
        flow.bytes[sender as usize] += bytes;
        flow.last = flow.last.max(now);
        if flow.key.protocol != packets::TCP {
            flow.establish();
        }
        // Not at every packet: that would touch the neighbours in the queue.
        if flow.touched != seconds(now) || flow.queue == Queue::OneWay {
            self.requeue(id, now);
        }
    }

    /// Puts a flow at the end of the queue that it belongs to.
    pub fn requeue(&mut self, id: u32, now: i64) {
        let Some(flow) = self.flows.get_mut(id as usize) else { return };
        let (queue, now) = (flow.right_queue(), seconds(now));
        if (queue, now) == (flow.queue, flow.touched) {
            return;
        }
        self.unlink(id);
        if let Some(flow) = self.flows.get_mut(id as usize) {
            (flow.queue, flow.touched) = (queue, now);
        }
        self.append(id);
    }

    pub fn oldest(&self, queue: Queue) -> Option<u32> {
        let id = self.queues[queue as usize].oldest;
        (id != NONE).then_some(id)
    }

    /// The flow to end when the table is full. Flows of one end alone, which a single sender can make up, do not
    /// displace others as long as they are half of the table.
    pub fn idle_longest(&self, now: i64) -> Option<u32> {
        if self.queues[Queue::OneWay as usize].len * 2 >= self.len() {
            return self.oldest(Queue::OneWay);
        }
        let oldest = Queue::ALL.into_iter().filter_map(|queue| self.oldest(queue));
        oldest.max_by_key(|id| self.get(*id).map_or(0, |flow| flow.idle(now)))
    }

    fn append(&mut self, id: u32) {
        let Some(flow) = self.flows.get_mut(id as usize) else { return };
        let ends = &mut self.queues[flow.queue as usize];
        (flow.previous, flow.next) = (ends.newest, NONE);
        let before = std::mem::replace(&mut ends.newest, id);
        ends.len += 1;
        match before {
            NONE => ends.oldest = id,
            before => {
                if let Some(before) = self.flows.get_mut(before as usize) {
                    before.next = id;
                }
            }
        }
    }

    fn unlink(&mut self, id: u32) {
        let Some(flow) = self.flows.get(id as usize) else { return };
        let (previous, next) = (flow.previous, flow.next);
        let ends = &mut self.queues[flow.queue as usize];
        ends.len -= 1;
        match self.flows.get_mut(previous as usize) {
            Some(flow) => flow.next = next,
            None => ends.oldest = next,
        }
        match self.flows.get_mut(next as usize) {
            Some(flow) => flow.previous = previous,
            None => ends.newest = previous,
        }
    }
}
