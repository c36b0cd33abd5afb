//! The first bytes of flows that are not decided: in order, each byte once, up to a limit.

use super::store::{Flow, NONE, start_of};
use crate::passive::packets::{Segment, Sender, TCP};
use crate::passive::{self, Opening as Shown, Side};

/// Bytes of a direction that are kept.
pub const MOST_BYTES: usize = 8 << 10;
/// Packets of a direction whose payload is kept.
const MOST_PACKETS: usize = 12;
/// Gaps in a direction, before the segments that fill them arrive.
const MOST_PARTS: usize = 8;
/// Buffers that are kept for the next flows.
const SPARE: usize = 256;

/// All of them, the oldest first.
#[derive(Debug)]
pub struct Openings {
    openings: Vec<Opening>,
    free: Vec<u32>,
    spare: Vec<Vec<u8>>,
    oldest: u32,
    newest: u32,
    len: usize,
}

/// The first bytes of a flow.
#[derive(Debug)]
pub struct Opening {
    flow: u32,
    previous: u32,
    next: u32,
    first: Option<Sender>,
    halves: [Half; 2],
}

impl Default for Openings {
    fn default() -> Self {
        let (openings, free, spare) = (Vec::new(), Vec::new(), Vec::new());
        Self { openings, free, spare, oldest: NONE, newest: NONE, len: 0 }
    }
}

impl Openings {
    pub fn len(&self) -> usize {
        self.len
    }

    /// The flow whose opening is the oldest.
    pub fn oldest(&self) -> Option<u32> {
        self.get(self.oldest).map(|opening| opening.flow)
    }

    pub fn get(&self, id: u32) -> Option<&Opening> {
        self.openings.get(id as usize)
    }

    pub fn get_mut(&mut self, id: u32) -> Option<&mut Opening> {
        self.openings.get_mut(id as usize)
    }

    pub fn add(&mut self, flow: u32) -> u32 {
        let mut half = || Half { bytes: self.spare.pop().unwrap_or_default(), ..Half::default() };
        let halves = [half(), half()];
        let opening = Opening { flow, previous: self.newest, next: NONE, first: None, halves };
        let id = match self.free.pop() {
            Some(id) => id,
            None => self.openings.len() as u32,
        };
        match self.openings.get_mut(id as usize) {
            Some(place) => *place = opening,
            None => self.openings.push(opening),
        }
        match self.openings.get_mut(self.newest as usize) {
            Some(before) => before.next = id,
            None => self.oldest = id,
        }
        self.newest = id;
        self.len += 1;
        id
    }

    pub fn remove(&mut self, id: u32) {
        let Some(opening) = self.openings.get_mut(id as usize) else { return };
        let (previous, next) = (opening.previous, opening.next);
        (opening.flow, opening.previous, opening.next) = (NONE, NONE, NONE);
        for half in &mut opening.halves {
            let mut bytes = std::mem::take(half).bytes;
            if self.spare.len() < SPARE && bytes.capacity() > 0 {
                bytes.clear();
                self.spare.push(bytes);
            }
        }
        match self.openings.get_mut(previous as usize) {
            Some(opening) => opening.next = next,
            None => self.oldest = next,
        }
        match self.openings.get_mut(next as usize) {
            Some(opening) => opening.previous = previous,
            None => self.newest = previous,
        }
        self.free.push(id);
        self.len -= 1;
    }
}

impl Opening {
    /// Adds the payload of a packet. Returns whether a look may tell more than before.
    pub fn add(&mut self, flow: &mut Flow, sender: Sender, segment: &Segment<'_>) -> bool {
        let half = &mut self.halves[sender as usize];
        let before = (half.whole(), half.ended);
        match segment.tcp {
            None => half.datagram(segment.payload),
            Some(tcp) => {
                let syn = tcp.has(super::Tcp::SYN).into();
                let sequence = tcp.sequence.wrapping_add(syn);
                if !half.started && !flow.has_syn(sender) {
                    flow.base[sender as usize] = sequence;
                }
                half.started = true;
                let offset =
                    i64::from(sequence.wrapping_sub(flow.base[sender as usize]).cast_signed());
                half.segment(offset, segment.payload, segment.length as usize);
                if tcp.has(super::Tcp::FIN) {
                    half.fin = Some(offset + i64::from(segment.length));
                }
                half.ended |= half.fin.is_some_and(|fin| fin <= half.whole() as i64);
            }
        }
        if segment.length > 0 && self.first.is_none() {
            self.first = Some(sender);
        }
        (half.whole(), half.ended) != before
    }

    /// Whether neither direction can grow.
    pub fn is_over(&self) -> bool {
        self.halves.iter().all(|half| half.ended)
    }

    /// Whether a part was sent twice with different content.
    pub fn is_altered(&self) -> bool {
        self.halves.iter().any(|half| half.altered)
    }

    /// Hashes of the beginning of each direction of TCP, to compare it with what is sent again.
    pub fn starts(&self, flow: &Flow, secret: u64) -> [u16; 2] {
        if flow.key.protocol != TCP {
            return [0; 2];
        }
        [0, 1].map(|half| start_of(self.halves[half].shown(), secret).unwrap_or(0))
    }

    pub fn as_seen_from(&self, flow: &Flow, last: bool) -> Shown<'_> {
        let (client, server) = (flow.client, flow.client.other());
        let transport = flow.key.transport();
        let half = |end: Sender| {
            let half = &self.halves[end as usize];
            let no_start = transport == passive::Transport::Tcp && !flow.has_syn(end);
            passive::Half {
                bytes: half.shown(),
                ends: half.shown_ends(),
                from_start: !no_start,
                ended: half.ended,
            }
        };
        let side = |end: Sender| if end == client { Side::Client } else { Side::Server };
        Shown {
            transport,
            ports: (flow.key.port(client), flow.key.port(server)),
            first: self.first.map(side),
            client: half(client),
            server: half(server),
            last,
        }
    }
}

/// One direction. Also a datagram that is put together from fragments.
#[derive(Debug, Default)]
pub struct Half {
    /// Parts that have not arrived are 0.
    bytes: Vec<u8>,
    /// What has arrived of `bytes`: from, to; in order, with gaps between.
    parts: [(u16, u16); MOST_PARTS],
    len: u8,
    /// Where segments end, in order.
    ends: [u16; MOST_PACKETS],
    packets: u8,
    started: bool,
    /// No more is added.
    pub ended: bool,
    /// A part was sent twice with different content.
    pub altered: bool,
    /// Where the stream ends.
    fin: Option<i64>,
}

impl Half {
    /// How many bytes have arrived without a gap.
    pub fn whole(&self) -> usize {
        match self.parts() {
            [(0, end), ..] => usize::from(*end),
            _ => 0,
        }
    }

    pub fn shown(&self) -> &[u8] {
        self.bytes.get(..self.whole()).unwrap_or_default()
    }

    fn parts(&self) -> &[(u16, u16)] {
        self.parts.get(..usize::from(self.len)).unwrap_or_default()
    }

    fn shown_ends(&self) -> &[u16] {
        let (ends, whole) =
            (self.ends.get(..self.packets.into()).unwrap_or_default(), self.whole());
        let shown = ends.partition_point(|end| usize::from(*end) <= whole);
        ends.get(..shown).unwrap_or_default()
    }

    fn datagram(&mut self, payload: &[u8]) {
        if self.ended || payload.is_empty() {
            return;
        }
        let at = self.bytes.len();
        self.put(at, payload);
        self.ended |= self.bytes.len() >= MOST_BYTES;
    }

    /// Adds a segment, `offset` bytes after the beginning. `length` is its length on the wire.
    pub fn segment(&mut self, offset: i64, payload: &[u8], length: usize) {
        if self.ended || length == 0 {
            return;
        }
        let cut = payload.len() < length;
        let skipped = usize::try_from(-offset).unwrap_or(0);
        let Some(payload) = payload.get(skipped..).filter(|payload| !payload.is_empty()) else {
            return;
        };
        let offset = usize::try_from(offset).unwrap_or(0);
        // A keep-alive sends a byte once more, whose content does not matter (RFC 9293, section 3.8.4).
        if payload.len() == 1 && offset < self.whole() {
            return;
        }
        self.put(offset, payload);
        let whole = self.whole();
        self.ended |= whole >= MOST_BYTES || cut && whole == offset + payload.len();
    }

    /// Puts bytes in their place. Those that arrived first win.
    pub fn put(&mut self, offset: usize, payload: &[u8]) {
        let end = (offset + payload.len()).min(MOST_BYTES);
        if offset >= end {
            // Beyond the limit, behind a gap
            self.count(None);
            return;
        }
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        let (mut at, mut new) = (offset, false);
        let parts = self.parts;
        let parts = parts.get(..usize::from(self.len)).unwrap_or_default();
        if self.len as usize == MOST_PARTS && !joins(parts, offset, end) {
            self.count(None);
            return;
        }
        for (from, to) in parts.iter().map(|(from, to)| (usize::from(*from), usize::from(*to))) {
            if to <= at {
                continue;
            }
            if from >= end {
                break;
            }
            if at < from {
                self.copy(at, from, offset, payload);
                new = true;
            }
            let (from, to) = (from.max(at), to.min(end));
            let again = payload.get(from - offset..to - offset);
            self.altered |= self.bytes.get(from..to) != again;
            at = to;
        }
        if at < end {
            self.copy(at, end, offset, payload);
            new = true;
        }
        if new {
            self.join(offset as u16, end as u16);
            self.count(Some(end as u16));
        }
    }

    fn copy(&mut self, from: usize, to: usize, offset: usize, payload: &[u8]) {
        let source = payload.get(from - offset..to - offset);
        if let (Some(place), Some(source)) = (self.bytes.get_mut(from..to), source) {
            place.copy_from_slice(source);
        }
    }

    /// Adds a part, joined with those that it touches.
    fn join(&mut self, from: u16, to: u16) {
        let (mut joined, mut parts, mut len) = ((from, to), [(0, 0); MOST_PARTS], 0);
        let mut push = |part| {
            if let Some(place) = parts.get_mut(len) {
                *place = part;
                len += 1;
            }
        };
        let mut pushed = false;
        for part in self.parts() {
            if part.1 < joined.0 {
                push(*part);
            } else if part.0 > joined.1 {
                if !pushed {
                    push(joined);
                    pushed = true;
                }
                push(*part);
            } else {
                joined = (joined.0.min(part.0), joined.1.max(part.1));
            }
        }
        if !pushed {
            push(joined);
        }
        (self.parts, self.len) = (parts, len as u8);
    }

    /// Counts a packet, with the place where it ends.
    fn count(&mut self, end: Option<u16>) {
        let packets = usize::from(self.packets);
        if let Some(place) = self.ends.get_mut(packets) {
            *place = end.unwrap_or(u16::MAX);
            self.packets += 1;
            if let Some(ends) = self.ends.get_mut(..=packets) {
                ends.sort_unstable();
            }
        }
        self.ended |= usize::from(self.packets) == MOST_PACKETS;
    }
}

/// Whether a part touches another one, so that there is no new gap.
fn joins(parts: &[(u16, u16)], from: usize, to: usize) -> bool {
    parts.iter().any(|part| usize::from(part.0) <= to && from <= usize::from(part.1))
}
