//! Exact copies of a packet: a mirror of two ports that a packet passes shows it twice.
//!
//! A copy follows its original closely, and is equal also in what a retransmission changes: IPv4's identification. Where
//! that is 0, or missing as in IPv6, a packet with payload of TCP is a copy; other packets only if the capture has many
//! certain copies, for some programs send equal datagrams.

use super::SECOND;
use crate::passive::packets::Packet;

/// A copy is not later than this.
const WINDOW: u64 = (SECOND / 200) as u64;
/// Packets that are remembered.
const REMEMBERED: usize = 1 << 12;
/// Of so many packets that would be certain copies...
const OF: u32 = 256;
/// ...so many are, if a path is mirrored twice.
const MIRRORED: u32 = 16;

#[derive(Debug)]
pub struct Copies {
    /// Hashes of packets, and their times.
    recent: Box<[(u64, i64)]>,
    packets: u32,
    copies: u32,
    mirrored: bool,
}

impl Default for Copies {
    fn default() -> Self {
        let recent = vec![(0, i64::MIN); REMEMBERED].into();
        Self { recent, packets: 0, copies: 0, mirrored: false }
    }
}

impl Copies {
    /// `flow` is the hash of the packet's flow, which is secret: nobody can make packets that only look like copies, and
    /// are not counted.
    pub fn is_copy(&mut self, packet: &Packet<'_>, flow: u64, now: i64) -> bool {
        let certain = packet.id != 0 || packet.segment.tcp.is_some() && packet.segment.length > 0;
        let hash = hash(packet, flow);
        let Some(place) = self.recent.get_mut(hash as usize % REMEMBERED) else { return false };
        let (before, at) = std::mem::replace(place, (hash, now));
        let equal = before == hash && at.abs_diff(now) <= WINDOW;
        if !certain {
            return equal && self.mirrored;
        }
        self.packets += 1;
        self.copies += u32::from(equal);
        if self.packets == OF {
            self.mirrored = self.copies >= MIRRORED;
            (self.packets, self.copies) = (0, 0);
        }
        equal
    }
}

/// A hash of what differs between packets: of the headers, which have the sequence number of TCP; otherwise also of the
/// beginning and the end of the payload.
fn hash(packet: &Packet<'_>, flow: u64) -> u64 {
    let body = packet.transport;
    let mut hash = fold(flow ^ (u64::from(packet.id) << 32 | u64::from(packet.bytes)));
    if let Some(fragment) = packet.fragment {
        hash = fold(hash ^ u64::from(fragment.offset) << 32 ^ u64::from(fragment.id));
    }
    hash ^= packet.sender as u64;
    let (start, end) = match body.len() {
        _ if packet.segment.tcp.is_some() => (body.get(..32).unwrap_or(body), &[][..]),
        0..=96 => (body, &[][..]),
        len => (body.get(..64).unwrap_or_default(), body.get(len - 32..).unwrap_or_default()),
    };
    for part in [start, end] {
        let (words, rest) = part.as_chunks::<8>();
        for word in words {
            hash = fold(hash ^ u64::from_le_bytes(*word));
        }
        for byte in rest {
            hash = fold(hash ^ u64::from(*byte) << 56);
        }
    }
    hash
}

fn fold(word: u64) -> u64 {
    let wide = u128::from(word ^ 0x9e37_79b9_7f4a_7c15) * 0xd6e8_feb8_6659_fd93;
    (wide >> 64) as u64 ^ wide as u64
}

/// A hash of a few bytes.
pub fn mix(bytes: &[u8; 16], secret: u64) -> u64 {
    let (words, _) = bytes.as_chunks::<8>();
    words.iter().fold(secret, |hash, word| fold(hash ^ u64::from_le_bytes(*word)))
}
