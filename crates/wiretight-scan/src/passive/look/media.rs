//! Real-time media: STUN and TURN (RFC 8489, 8656), RTP and RTCP (RFC 3550), RTMP.

use super::text::begins;
use super::{Half, Opening, Verdict, plaintext, undetermined};
use crate::parse::Reader;
use crate::passive::{Grade, Transport};

const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];

/// A STUN message with the cookie, or of RFC 3489, whose attributes end where it ends. Its method, if it is one, and
/// whether it has a name of ICE.
fn stun_message(data: &[u8]) -> Option<(u16, bool)> {
    let [t1, t2, h, l, rest @ ..] = *data.first_chunk::<20>()?;
    let kind = u16::from_be_bytes([t1, t2]);
    let len = usize::from(u16::from_be_bytes([h, l]));
    let body = data.get(20..20 + len)?;
    let current = rest.starts_with(&COOKIE);
    // The bits of the class are at 0x0110; the two highest bits are 0.
    let method = kind & 0x000f | (kind & 0x00e0) >> 1 | (kind & 0x3e00) >> 2;
    if kind & 0xc000 != 0 || len % 4 != 0 || !matches!(method, 1..=12 | 0x080) {
        return None;
    }
    let (mut reader, mut ice, mut known) = (Reader::new(body), false, 0);
    while !reader.is_empty() {
        let kind = reader.u16().ok()?;
        let value = reader.vec16().ok()?;
        // Without the padding at the end, as some write it.
        let _ = reader.take((4 - value.len() % 4) % 4);
        ice |= matches!(kind, 6 | 0x24 | 0x25 | 0x8029 | 0x802a);
        known += usize::from(kind <= 0x30 || kind >= 0x8000);
    }
    (current || (known > 0 && matches!(method, 1 | 2) && rest.iter().any(|b| *b != 0)))
        .then_some((method, ice))
}

pub(super) fn stun(opening: &Opening<'_>) -> Verdict {
    let mut seen = None;
    let mut others = 0;
    if opening.transport == Transport::Tcp {
        let data = opening.halves()[0].bytes;
        // ICE over TCP has frames (RFC 4571).
        let inner = match data {
            [_, _, 0 | 1, _, _, _, a, b, c, d, ..] if [*a, *b, *c, *d] == COOKIE => {
                data.get(2..).unwrap_or_default()
            }
            _ => data,
        };
        return match (stun_message(inner), inner.get(4..8)) {
            (Some(_), Some(cookie)) if cookie == COOKIE => {
                undetermined("stun", Grade::Seen, "STUN over TCP")
            }
            (None, Some(cookie)) if cookie == COOKIE && !opening.last => Verdict::Maybe,
            _ => Verdict::No,
        };
    }
    for datagram in opening.client.datagrams().chain(opening.server.datagrams()) {
        match stun_message(datagram) {
            Some((method, ice)) => {
                let (old_method, old_ice) = seen.unwrap_or((0, false));
                seen = Some((old_method.max(method), old_ice | ice));
            }
            None => others += 1,
        }
    }
    let first = opening.halves()[0].datagrams().next().and_then(stun_message);
    match (seen, first) {
        (Some(_), None) | (None, _) => Verdict::No,
        // The control is in the clear; the media in the same flow may be encrypted by keys that were agreed elsewhere.
        (Some(_), _) if others > 0 => {
            undetermined("stun", Grade::Seen, "STUN, and media of which it is not known")
        }
        (Some(_), _) if !opening.last => Verdict::Maybe,
        (Some((1, false)), _) => plaintext("stun", Grade::Seen, "STUN binding requests"),
        (Some((3..=12, _)), _) => {
            undetermined("stun", Grade::Seen, "TURN: what it relays is not known")
        }
        (Some(_), _) => undetermined("stun", Grade::Seen, "STUN of ICE: the media are not known"),
    }
}

/// RTP, with or without SRTP's encryption, which does not show in its header. Three packets of one source, in order.
pub(super) fn rtp(opening: &Opening<'_>) -> Verdict {
    const PACKETS: usize = 3;
    let [first, second] = opening.halves();
    let (said, answered) = (rtp_packets(first), rtp_packets(second));
    let (Some(said), Some(answered)) = (said, answered) else { return Verdict::No };
    match said.max(answered) {
        PACKETS.. => {
            undetermined("rtp", Grade::Guessed, "RTP, or SRTP: the header does not show which")
        }
        1.. if !opening.last => Verdict::Maybe,
        _ => Verdict::No,
    }
}

/// How many packets of one source follow each other; `None` if something else is among them.
fn rtp_packets(half: Half<'_>) -> Option<usize> {
    let mut last: Option<(u16, u32, u8)> = None;
    let mut count = 0;
    for datagram in half.datagrams() {
        if rtcp_length(datagram).is_some() {
            continue;
        }
        let [first, kind, s1, s2, _, _, _, _, r1, r2, r3, r4, ..] = *datagram else { return None };
        let payload = kind & 0x7f;
        // 72 to 76 would be RTCP; 35 to 71 are rarely used.
        if first & 0xc0 != 0x80
            || matches!(payload, 20..=24 | 29..=30 | 35..=71 | 72..=95)
            || datagram.len() < 13
        {
            return None;
        }
        let (sequence, source) =
            (u16::from_be_bytes([s1, s2]), u32::from_be_bytes([r1, r2, r3, r4]));
        match last {
            Some((before, same, _)) if same == source => {
                let step = sequence.wrapping_sub(before);
                match step {
                    0 => {}
                    1..=50 => count += 1,
                    _ => return None,
                }
            }
            // A second source, as of another medium.
            Some(_) => continue,
            None => count = 1,
        }
        last = Some((sequence, source, payload));
    }
    Some(count)
}

/// The length of the compound RTCP packet at the beginning.
fn rtcp_length(data: &[u8]) -> Option<usize> {
    let mut used = 0;
    while let Some([first, 192 | 193 | 200..=211, h, l]) = data.get(used..used + 4) {
        if first & 0xc0 != 0x80 {
            break;
        }
        let len = 4 * (usize::from(u16::from_be_bytes([*h, *l])) + 1);
        if used + len > data.len() {
            break;
        }
        used += len;
    }
    (used > 0).then_some(used)
}

pub(super) fn rtcp(opening: &Opening<'_>) -> Verdict {
    let mut guessed = false;
    for datagram in opening.client.datagrams().chain(opening.server.datagrams()) {
        let Some(len) = rtcp_length(datagram) else { return Verdict::No };
        // A description of the source with a readable name: SRTCP would have encrypted it.
        if len == datagram.len() && has_cname(datagram) {
            return plaintext("rtcp", Grade::Seen, "RTCP with a readable source description");
        }
        guessed |= matches!(datagram.get(1), Some(200 | 201)) && datagram.len() >= 8;
    }
    match guessed {
        true if opening.last => undetermined("rtcp", Grade::Guessed, "RTCP, or SRTCP"),
        true => Verdict::Maybe,
        false => Verdict::No,
    }
}

fn has_cname(data: &[u8]) -> bool {
    let mut rest = data;
    while let [_, kind, h, l, body @ ..] = rest {
        let len = 4 * usize::from(u16::from_be_bytes([*h, *l]));
        if let (202, [_, _, _, _, 1, size @ 2..=255, name @ ..]) = (kind, body) {
            let name = name.get(..usize::from(*size));
            return name.is_some_and(|name| name.iter().all(|b| (b' '..=b'~').contains(b)));
        }
        rest = body.get(len..).unwrap_or_default();
    }
    false
}

/// RTMP: a version, 1536 bytes, and commands; the handshake hides nothing.
pub(super) fn rtmp(opening: &Opening<'_>) -> Verdict {
    const HANDSHAKE: usize = 1536;
    let (client, server) = (opening.client.bytes, opening.server.bytes);
    if client.first() != Some(&3) || !matches!(server.first(), None | Some(3)) {
        return Verdict::No;
    }
    // An X.224 packet begins so too, with its length.
    if let [3, 0, high, low, ..] = client
        && (7..=4096).contains(&u16::from_be_bytes([*high, *low]))
    {
        return Verdict::No;
    }
    if client.len() < 1 + HANDSHAKE {
        return match !opening.last && (opening.has_port(1935) || client.len() > 1000) {
            true => Verdict::Maybe,
            false => Verdict::No,
        };
    }
    let commands = client.get(1 + 2 * HANDSHAKE..).unwrap_or_default();
    let connects = commands.windows(10).take(64).any(|part| part == b"\x02\0\x07connect");
    // The server repeats the client's bytes.
    let echoes = server
        .get(1 + HANDSHAKE..1 + HANDSHAKE + 4)
        .is_some_and(|echo| client.get(1..5) == Some(echo))
        && server.get(1 + HANDSHAKE + 8..1 + HANDSHAKE + 64) == client.get(9..65);
    match connects || echoes {
        true => plaintext("rtmp", Grade::Seen, "the handshake of RTMP"),
        false if opening.last && opening.has_port(1935) => {
            plaintext("rtmp", Grade::Guessed, "the handshake of RTMP")
        }
        false if opening.last => Verdict::No,
        false => Verdict::Maybe,
    }
}

// ---- BitTorrent.

pub(super) fn bittorrent(opening: &Opening<'_>) -> Verdict {
    const HELLO: &[u8] = b"\x13BitTorrent protocol";
    let [first, _] = opening.halves();
    if opening.transport == Transport::Udp {
        let datagram = first.datagrams().next().unwrap_or_default();
        let heads = [&b"d1:ad2:id20:"[..], b"d1:rd2:id20:", b"d1:eli20", b"d2:ip6:", b"d2:ip4:"];
        return match heads.iter().any(|head| datagram.starts_with(head)) && datagram.ends_with(b"e")
        {
            true => plaintext("bittorrent", Grade::Seen, "a message of BitTorrent's DHT"),
            false => Verdict::No,
        };
    }
    if first.bytes.is_empty() || !begins(first.bytes, HELLO) {
        return Verdict::No;
    }
    match first.bytes.len() >= HELLO.len() {
        true => plaintext("bittorrent", Grade::Seen, "the handshake of BitTorrent"),
        false if opening.last => Verdict::No,
        false => Verdict::Maybe,
    }
}
