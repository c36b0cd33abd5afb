//! Captured traffic: files, frames, and the beginnings of flows.

use std::io::{self, Read};

use wiretight::watch::host::{conntrack, interfaces, nflog};
use wiretight_scan::judge::Level;
use wiretight_scan::passive::file::Capture;
use wiretight_scan::passive::flow::{Limits, Missed, Record, Table};
use wiretight_scan::passive::packets::LinkType;
use wiretight_scan::passive::{self, Half, Look, Opening, Side, Transport};

/// Link types of frames in the input of [`flows`], by number.
const LINKS: [LinkType; 13] = [
    LinkType::RAW,
    LinkType::ETHERNET,
    LinkType::NULL,
    LinkType::LOOP,
    LinkType::PPP,
    LinkType::PPP_HDLC,
    LinkType::PPPOE,
    LinkType::C_HDLC,
    LinkType::LINUX_SLL,
    LinkType::LINUX_SLL2,
    LinkType::NFLOG,
    LinkType::IPV4,
    LinkType::IPV6,
];

/// Frames. The first byte decides how small the table is. Each frame has its link type (a number of [`LINKS`]), the time
/// since the one before (in 10 ms; from 200 on in minutes), its length in two bytes, and its bytes.
///
/// Properties checked: each frame is counted once, by a flow or as missed; the table keeps its limits.
pub fn flows(data: &[u8]) {
    let Some((&small, script)) = data.split_first() else { return };
    let limits = Limits {
        flows: 1 + usize::from(small & 15),
        undecided: 1 + usize::from(small >> 4 & 3),
        sample: 1 + u32::from(small >> 6),
    };
    let (records, missed, frames) = run(limits, script);
    let counted: u64 = records.iter().flat_map(|record| record.packets).sum();
    let lost = missed.not_ip + missed.malformed + missed.duplicates + missed.fragments;
    assert_eq!(counted + lost, frames);
}

fn run(limits: Limits, mut script: &[u8]) -> (Vec<Record>, Missed, u64) {
    let mut table = Table::new(limits);
    let (mut records, mut frames, mut now) = (Vec::new(), 0, 1_700_000_000_000_i64);
    while let [link, wait, high, low, rest @ ..] = script {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let (frame, rest) = rest.split_at(length.min(rest.len()));
        script = rest;
        frames += 1;
        now += match i64::from(*wait) {
            minutes @ 200.. => (minutes - 200) * 60_000,
            centiseconds => centiseconds * 10,
        };
        let at = jiff::Timestamp::from_millisecond(now).expect("a time");
        table.frame(LINKS[usize::from(*link) % LINKS.len()], at, frame, length);
        assert!(table.len() <= limits.flows);
        records.extend(table.ended());
    }
    records.extend(table.finish());
    assert!(table.is_empty());
    (records, table.missed(), frames)
}

/// The beginning of a flow. The first byte is its transport, and whether its start was captured; then the server's port,
/// and pieces: a byte with the sender (the highest bit) and the length, in 8 bytes, and the bytes.
///
/// Properties checked: the last look decides; the same opening has the same result; nothing is called encrypted without
/// what its handshake negotiated; the evidence is short, printable ASCII.
pub fn look(data: &[u8]) {
    let Some((&[how, high, low], mut script)) = data.split_first_chunk() else { return };
    let transport = match how & 7 {
        0..=2 => Transport::Tcp,
        3 | 4 => Transport::Udp,
        5 => Transport::Sctp,
        6 => Transport::Icmp,
        _ => Transport::Ip(low),
    };
    let mut sent: [(Vec<u8>, Vec<u16>); 2] = Default::default();
    let mut first = None;
    while let Some((&head, rest)) = script.split_first() {
        let (piece, rest) = rest.split_at((8 * usize::from(head & 0x7f) + 1).min(rest.len()));
        script = rest;
        let side = if head & 0x80 == 0 { Side::Client } else { Side::Server };
        let (bytes, ends) = &mut sent[usize::from(head >> 7)];
        if bytes.len() + piece.len() > 8 << 10 || ends.len() == 12 {
            break;
        }
        bytes.extend_from_slice(piece);
        ends.push(bytes.len() as u16);
        first = first.or(Some(side));
        for last in [false, true] {
            let (from_start, ended) = (how & 8 == 0, last || how & 16 != 0);
            let [client, server] = &sent;
            let opening = Opening {
                transport,
                ports: (40_000, u16::from_be_bytes([high, low])),
                first,
                client: Half { bytes: &client.0, ends: &client.1, from_start, ended },
                server: Half { bytes: &server.0, ends: &server.1, from_start, ended },
                last,
            };
            judged(&opening);
        }
    }
}

fn judged(opening: &Opening<'_>) {
    let found = passive::look(opening);
    assert_eq!(passive::look(opening), found);
    let seen = match found {
        Look::More => return assert!(!opening.last),
        Look::Done(seen) => seen,
    };
    if matches!(seen.level, Level::Weak | Level::Acceptable | Level::Strong) {
        assert!(seen.sealed.is_some(), "{seen:?}");
    }
    assert!(seen.evidence.len() <= 1000, "{seen:?}");
    assert!(seen.evidence.bytes().all(|b| (b' '..=b'~').contains(&b)), "{seen:?}");
}

/// A capture file.
///
/// Properties checked: the frames do not depend on how much each read returns; nothing follows an error; the table
/// counts each frame once.
pub fn capture(file: &[u8]) {
    let Some(whole) = frames(file) else {
        assert!(frames(Slow(file)).is_none());
        return;
    };
    assert_eq!(frames(Slow(file)), Some(whole));
}

/// Frames of a capture: link type, time, bytes, and the length on the wire.
type Frames = Vec<(u16, jiff::Timestamp, Vec<u8>, usize)>;

/// The frames of a file, and why it could not be read to its end. `None` if it is no capture.
fn frames(file: impl Read) -> Option<(Frames, String)> {
    const MOST: usize = 2000;
    let mut capture = Capture::new(file).ok()?;
    let mut table = Table::new(Limits { flows: 100, undecided: 10, sample: 1 });
    let (mut frames, mut error) = (Vec::new(), String::new());
    while frames.len() < MOST {
        match capture.next_frame() {
            None => break,
            Some(Err(e)) => {
                error = e.to_string();
                assert!(capture.next_frame().is_none());
                break;
            }
            Some(Ok(frame)) => {
                assert!(frame.bytes.len() <= frame.length);
                table.frame(frame.link, frame.at, frame.bytes, frame.length);
                frames.push((frame.link.0, frame.at, frame.bytes.to_vec(), frame.length));
            }
        }
    }
    let records = [table.ended(), table.finish()].concat();
    let counted: u64 = records.iter().flat_map(|record| record.packets).sum();
    let missed = table.missed();
    let lost = missed.not_ip + missed.malformed + missed.duplicates + missed.fragments;
    assert_eq!(counted + lost, frames.len() as u64);
    Some((frames, error))
}

/// Returns a few bytes at a time.
struct Slow<'a>(&'a [u8]);

impl Read for Slow<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let few = buffer.len().min(1 + self.0.len() % 7);
        self.0.read(&mut buffer[..few])
    }
}

/// What the kernel says of connections, their first packets and the interfaces, as bodies of netlink messages. The first
/// two bytes are the kind of the message.
///
/// Properties checked: both ends of a connection are of one family; a packet is no longer than its length on the wire.
pub fn netlink(data: &[u8]) {
    let Some((kind, body)) = data.split_first_chunk() else { return };
    match conntrack::event(u16::from_ne_bytes(*kind), body) {
        Some(conntrack::Event::Is(of) | conntrack::Event::Ended(of)) => {
            assert_eq!(of.key.client.is_ipv4(), of.key.server.is_ipv4());
        }
        None => {}
    }
    if let Some(packet) = nflog::packet(u16::from_ne_bytes(*kind), body) {
        assert!(packet.bytes.len() <= packet.length);
    }
    let _ = (interfaces::link(body), interfaces::address(body));
}
