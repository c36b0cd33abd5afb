//! Fragments of IP packets: which flow later ones belong to, and short datagrams put together.

use std::collections::{HashMap, VecDeque};

use super::SECOND;
use super::opening::{Half, MOST_BYTES};
use crate::passive::packets::{Fragment, Key, Packet, Sender};

/// Datagrams of which not all fragments have arrived.
const MOST: usize = 1024;
/// Those that are put together.
const MOST_BUFFERS: usize = 64;
/// RFC 8200, section 4.5, has 60 s.
const TIMEOUT: i64 = 30 * SECOND;

/// A datagram, named by its addresses and its identification.
type Name = (Key, Sender, u32);

#[derive(Debug, Default)]
pub struct Fragments {
    datagrams: HashMap<Name, Datagram>,
    /// In the order of their arrival. Those that were put together are no longer in `datagrams`.
    order: VecDeque<(Name, i64)>,
    buffers: usize,
}

#[derive(Debug, Default)]
struct Datagram {
    /// Once the first fragment has arrived.
    flow: Option<(Key, Sender)>,
    /// Packets and bytes before the first fragment.
    waiting: (u64, u64),
    buffer: Option<Box<Half>>,
    /// The length of the whole, once its last fragment has arrived.
    length: Option<usize>,
}

/// What a fragment has led to.
#[derive(Debug, Default)]
pub struct Handed {
    /// The flow that it belongs to.
    pub flow: Option<(Key, Sender)>,
    /// The datagram as far as it is whole, and whether that is all of it.
    pub datagram: Option<(Vec<u8>, bool)>,
}

impl Fragments {
    /// Adds a first fragment. `keep` asks to put the datagram together. Also returns the packets and bytes of later
    /// fragments that came before it.
    pub fn first(
        &mut self,
        packet: &Packet<'_>,
        fragment: &Fragment,
        keep: bool,
        now: i64,
    ) -> ((u64, u64), Option<Handed>) {
        let room = keep && self.buffers < MOST_BUFFERS;
        let datagram = self.datagram(fragment, now);
        datagram.flow = Some((packet.key, packet.sender));
        let waited = std::mem::take(&mut datagram.waiting);
        if !keep || datagram.buffer.is_none() && !room {
            return (waited, None);
        }
        if datagram.buffer.is_none() {
            datagram.buffer = Some(Box::default());
            self.buffers += 1;
        }
        (waited, Some(self.put(packet, fragment)))
    }

    /// Adds a later fragment.
    pub fn later(&mut self, packet: &Packet<'_>, fragment: &Fragment, now: i64) -> Handed {
        let room = self.buffers < MOST_BUFFERS;
        let datagram = self.datagram(fragment, now);
        if datagram.flow.is_none() {
            datagram.waiting.0 += 1;
            datagram.waiting.1 += u64::from(packet.bytes);
            if datagram.buffer.is_none() && room {
                datagram.buffer = Some(Box::default());
                self.buffers += 1;
            }
        }
        self.put(packet, fragment)
    }

    /// Takes out a datagram that is too old at this time, or one too many; without a time, any. Returns packets and bytes
    /// that belong to no flow.
    pub fn lost(&mut self, now: Option<i64>) -> Option<(u64, u64, Handed)> {
        let (_, at) = self.order.front()?;
        let young = now.is_some_and(|now| at.abs_diff(now) < TIMEOUT as u64);
        if young && self.datagrams.len() <= MOST {
            return None;
        }
        let (name, _) = self.order.pop_front()?;
        let datagram = self.datagrams.remove(&name).unwrap_or_default();
        let (packets, bytes) = datagram.waiting;
        self.buffers -= usize::from(datagram.buffer.is_some());
        let datagram_so_far = datagram.buffer.and_then(|buffer| so_far(&buffer, false));
        Some((packets, bytes, Handed { flow: datagram.flow, datagram: datagram_so_far }))
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.datagrams.len()
    }

    #[cfg(test)]
    pub fn buffers(&self) -> usize {
        self.buffers
    }

    fn datagram(&mut self, fragment: &Fragment, now: i64) -> &mut Datagram {
        let name = (fragment.of.0, fragment.of.1, fragment.id);
        self.datagrams.entry(name).or_insert_with(|| {
            self.order.push_back((name, now));
            Datagram::default()
        })
    }

    /// Puts a fragment in its place. When all have arrived, or the datagram is too long, hands it over.
    fn put(&mut self, packet: &Packet<'_>, fragment: &Fragment) -> Handed {
        let name = (fragment.of.0, fragment.of.1, fragment.id);
        let Some(datagram) = self.datagrams.get_mut(&name) else { return Handed::default() };
        let mut handed = Handed { flow: datagram.flow, datagram: None };
        let Some(buffer) = &mut datagram.buffer else { return handed };
        let (offset, body) = (usize::from(fragment.offset), packet.transport);
        buffer.put(offset, body);
        let end = offset + body.len();
        if !fragment.more {
            datagram.length = Some(end);
        }
        let (complete, too_long) = (datagram.length == Some(buffer.whole()), end > MOST_BYTES);
        if handed.flow.is_some() && (complete || too_long) {
            handed.datagram = so_far(buffer, complete);
            datagram.buffer = None;
            self.buffers -= 1;
        }
        handed
    }
}

/// What is whole of a datagram. Nothing of one whose fragments overlap with different content.
fn so_far(buffer: &Half, complete: bool) -> Option<(Vec<u8>, bool)> {
    let shown = buffer.shown();
    (!buffer.altered && !shown.is_empty()).then(|| (shown.to_vec(), complete))
}
