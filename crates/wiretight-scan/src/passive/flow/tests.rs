//! Packets as they are on the wire, also hostile ones, and what the table makes of them.

use std::net::IpAddr;

use super::opening::MOST_BYTES;
use super::*;
use crate::passive;

mod handing_over;

const LIMITS: Limits = Limits { flows: 1000, undecided: 100, sample: 1 };
const CLIENT: [u8; 4] = [10, 0, 0, 1];
const SERVER: [u8; 4] = [10, 0, 0, 2];
const FIN: u8 = Tcp::FIN;
const SYN: u8 = Tcp::SYN;
const RST: u8 = Tcp::RST;
const ACK: u8 = Tcp::ACK;

/// A table, a clock, and a stream of identifications.
struct Net {
    table: Table,
    now: i64,
    id: u16,
}

impl Net {
    fn new() -> Self {
        Self::with(LIMITS)
    }

    fn with(limits: Limits) -> Self {
        Self { table: Table::new(limits), now: 1_700_000_000 * SECOND, id: 0 }
    }

    /// A frame with an IP packet, a millisecond after the one before.
    fn raw(&mut self, packet: &[u8]) -> &mut Self {
        self.now += SECOND / 1000;
        self.table.frame(LinkType::RAW, timestamp(self.now), packet, packet.len());
        self
    }

    fn wait(&mut self, seconds: i64) -> &mut Self {
        self.now += seconds * SECOND;
        self.table.expire(timestamp(self.now));
        self
    }

    fn tcp(&mut self, from: End, to: End, seq: u32, flags: u8, payload: &[u8]) -> &mut Self {
        self.id += 1;
        let packet = ip(from.0, to.0, 6, self.id, &tcp(from.1, to.1, (seq, 0), flags, payload));
        self.raw(&packet)
    }

    fn udp(&mut self, from: End, to: End, payload: &[u8]) -> &mut Self {
        self.id += 1;
        let packet = ip(from.0, to.0, 17, self.id, &udp(from.1, to.1, payload));
        self.raw(&packet)
    }

    /// SYN and SYN-ACK. The next bytes have the numbers 101 and 501.
    fn open(&mut self, client: End, server: End) -> &mut Self {
        self.tcp(client, server, 100, SYN, b"").tcp(server, client, 500, SYN | ACK, b"")
    }

    fn finish(&mut self) -> Vec<Record> {
        self.table.finish()
    }

    fn only(&mut self) -> Record {
        let records = self.finish();
        assert_eq!(records.len(), 1, "{records:#?}");
        records.into_iter().next().unwrap()
    }
}

type End = ([u8; 4], u16);
const C: End = (CLIENT, 40_000);
const S: End = (SERVER, 80);

fn ip(from: [u8; 4], to: [u8; 4], protocol: u8, id: u16, body: &[u8]) -> Vec<u8> {
    fragment(from, to, protocol, (id, 0, false), body)
}

fn fragment(
    from: [u8; 4],
    to: [u8; 4],
    protocol: u8,
    (id, offset, more): (u16, u16, bool),
    body: &[u8],
) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend((20 + body.len() as u16).to_be_bytes());
    packet.extend(id.to_be_bytes());
    packet.extend(((u16::from(more) << 13) | (offset / 8)).to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(from.iter().chain(&to).chain(body));
    packet
}

fn tcp(from: u16, to: u16, (seq, ack): (u32, u32), flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut segment = [from.to_be_bytes(), to.to_be_bytes()].concat();
    segment.extend(seq.to_be_bytes());
    segment.extend(ack.to_be_bytes());
    segment.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(payload);
    segment
}

fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len() as u16).to_be_bytes();
    let mut datagram = [from.to_be_bytes(), to.to_be_bytes(), length, [0, 0]].concat();
    datagram.extend(payload);
    datagram
}

const GET: &[u8] = b"GET /index.html HTTP/1.1\r\nHost: a.example\r\n\r\n";

#[test]
fn a_connection_is_one_record() {
    let mut net = Net::new();
    net.open(C, S).tcp(C, S, 101, ACK, b"").tcp(C, S, 101, ACK, GET);
    net.tcp(S, C, 501, ACK, b"HTTP/1.1 200 OK\r\n\r\n");
    let current: Vec<_> = net.table.current().collect();
    assert_eq!(current.len(), 1);
    let record = net.only();
    assert_eq!(record, current[0]);
    assert_eq!(record.client, "10.0.0.1:40000".parse().unwrap());
    assert_eq!(record.server, "10.0.0.2:80".parse().unwrap());
    assert_eq!(record.transport, Transport::Tcp);
    assert!(record.whole);
    assert_eq!(record.packets, [3, 2]);
    assert_eq!(record.bytes, [3 * 40 + GET.len() as u64, 2 * 40 + 19]);
    assert_eq!(record.seen.protocol, "http");
    assert_eq!(record.last.duration_since(record.first).as_millis(), 4);
}

#[test]
fn who_the_client_is() {
    // The SYN, though its port is a service's
    let odd = (CLIENT, 443);
    let mut net = Net::new();
    net.tcp(odd, (SERVER, 9), 1, SYN, b"");
    assert_eq!(net.only().client.port(), 443);
    // The SYN-ACK, if the SYN was lost
    let mut net = Net::new();
    net.tcp(S, (CLIENT, 25), 1, SYN | ACK, b"");
    assert_eq!(net.only().client.port(), 25);
    // The well-known port
    let mut net = Net::new();
    net.tcp((SERVER, 5432), C, 1, ACK, b"x");
    assert_eq!(net.only().server.port(), 5432);
    // Who was first
    let mut net = Net::new();
    net.udp((SERVER, 50_000), C, b"x").udp(C, (SERVER, 50_000), b"y");
    assert_eq!(net.only().client.port(), 50_000);
}

#[test]
fn services_are_in_order() {
    assert!(SERVICES.is_sorted());
}

#[test]
fn segments_in_any_order_and_twice() {
    let (a, b, c) = (&GET[..10], &GET[10..25], &GET[25..]);
    let parts = [(101, a), (111, b), (126, c)];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mut net = Net::new();
        net.open(C, S);
        for i in order {
            // Each also as a retransmission with the bytes around it
            net.tcp(C, S, parts[i].0, ACK, parts[i].1).tcp(C, S, parts[i].0, ACK, parts[i].1);
        }
        let record = net.only();
        assert_eq!(record.seen.protocol, "http", "{order:?}");
        assert_eq!(record.packets, [7, 1]);
    }
}

#[test]
fn a_gap_is_never_closed_by_what_follows() {
    let mut net = Net::new();
    net.open(C, S).tcp(C, S, 101, ACK, &GET[..10]).tcp(C, S, 126, ACK, &GET[25..]);
    assert_eq!(net.only().seen.protocol, "unknown");
    // With what is missing: this is what the test above would show if it could not fail.
    let mut net = Net::new();
    net.open(C, S).tcp(C, S, 101, ACK, &GET[..10]).tcp(C, S, 126, ACK, &GET[25..]);
    net.tcp(C, S, 108, ACK, &GET[7..30]);
    assert_eq!(net.only().seen.protocol, "http");
}

#[test]
fn sequence_numbers_wrap() {
    let mut net = Net::new();
    net.tcp(C, S, u32::MAX - 5, SYN, b"").tcp(S, C, u32::MAX, SYN | ACK, b"");
    net.tcp(C, S, 5, ACK, &GET[10..]).tcp(C, S, u32::MAX - 4, ACK, &GET[..10]);
    assert_eq!(net.only().seen.protocol, "http");
}

/// The opening of a table's only flow.
fn shown(net: &Net, then: impl FnOnce(&passive::Opening<'_>)) {
    let flow = net.table.flows.iter().next().unwrap();
    let opening = flow.opening().and_then(|id| net.table.openings.get(id)).expect("not decided");
    then(&opening.as_seen_from(flow, false));
}

#[test]
fn what_is_shown_of_a_direction() {
    let mut net = Net::new();
    net.open(C, S).tcp(S, C, 501, ACK, b"\x01ab").tcp(C, S, 105, ACK, b"\x02zz");
    shown(&net, |opening| {
        assert_eq!(opening.first, Some(crate::passive::Side::Server));
        assert_eq!((opening.server.bytes, opening.server.ends), (&b"\x01ab"[..], &[3][..]));
        assert_eq!((opening.client.bytes, opening.client.ends), (&b""[..], &[][..]));
        assert!(opening.server.from_start && opening.client.from_start);
        assert_eq!(opening.ports, (40_000, 80));
    });
    net.tcp(C, S, 101, ACK, b"\x02yyy").tcp(S, C, 504, ACK | FIN, b"\x01");
    shown(&net, |opening| {
        assert_eq!(
            (opening.client.bytes, opening.client.ends),
            (&b"\x02yyy\x02zz"[..], &[4, 7][..])
        );
        assert!(!opening.client.ended && opening.server.ended);
    });
}

#[test]
fn a_direction_ends_at_its_limits() {
    // Bytes
    let mut net = Net::new();
    net.open(C, S);
    for i in 0..7 {
        net.tcp(C, S, 101 + i * 1400, ACK, &[0xa5; 1400]);
    }
    let flow = net.table.flows.iter().next().unwrap();
    assert!(
        flow.seen().is_some() || {
            let opening = net.table.openings.get(flow.opening().unwrap()).unwrap();
            let half = opening.as_seen_from(flow, false).client;
            half.ended && half.bytes.len() == MOST_BYTES
        }
    );
    // Packets, also those behind a gap
    for start in [101, 201] {
        let mut net = Net::new();
        net.open(C, S);
        for i in 0..12 {
            shown_or_none(&net, |opening| assert!(!opening.client.ended, "after {i}"));
            net.tcp(C, S, start + i, ACK, b"\x03");
        }
        shown_or_none(&net, |opening| assert!(opening.client.ended));
    }
}

fn shown_or_none(net: &Net, then: impl FnOnce(&passive::Opening<'_>)) {
    let flow = net.table.flows.iter().next().unwrap();
    if let Some(opening) = flow.opening().and_then(|id| net.table.openings.get(id)) {
        then(&opening.as_seen_from(flow, false));
    }
}

#[test]
fn a_start_in_the_middle_is_not_a_start() {
    let mut net = Net::new();
    net.tcp(C, S, 9000, ACK, b"\x03ab").tcp(S, C, 7000, ACK, b"\x03cd");
    shown(&net, |opening| {
        assert_eq!((opening.client.bytes, opening.server.bytes), (&b"\x03ab"[..], &b"\x03cd"[..]));
        assert!(!opening.client.from_start && !opening.server.from_start);
    });
    assert!(!net.only().whole);
    // The SYN-ACK shows where the other direction starts.
    let mut net = Net::new();
    let syn_ack = ip(SERVER, CLIENT, 6, 9, &tcp(80, 40_000, (500, 101), SYN | ACK, b""));
    net.raw(&syn_ack).tcp(C, S, 101, ACK, b"\x03ab");
    shown(&net, |opening| {
        assert!(opening.client.from_start && opening.server.from_start);
        assert_eq!(opening.client.bytes, b"\x03ab");
    });
}

#[test]
fn one_direction_alone() {
    let mut net = Net::new();
    net.tcp(C, S, 100, SYN, b"").tcp(C, S, 101, ACK, GET);
    let record = net.only();
    assert_eq!(record.packets, [2, 0]);
    assert_eq!(record.seen.level, Level::Plaintext);
}

#[test]
fn the_first_bytes_win_and_a_difference_is_noted() {
    let altered = |second: &[u8]| {
        let mut net = Net::new();
        net.open(C, S).tcp(C, S, 105, ACK, b"\x03bbbb").tcp(C, S, 103, ACK, second);
        let flow = net.table.flows.iter().next().unwrap();
        net.table.openings.get(flow.opening().unwrap()).unwrap().is_altered()
    };
    assert!(altered(b"zz\x03bxbb"));
    assert!(altered(b"zz\x04"));
    assert!(!altered(b"zz\x03bbbb"));
    assert!(!altered(b"zz"));

    let mut net = Net::new();
    net.open(C, S).tcp(C, S, 101, ACK, b"\x03aaa").tcp(C, S, 101, ACK, b"\x03xxxyy");
    shown(&net, |opening| assert_eq!(opening.client.bytes, b"\x03aaayy"));
    // A keep-alive is one byte without a meaning.
    let mut net = Net::new();
    net.open(C, S).tcp(C, S, 101, ACK, b"\x03aaa").tcp(C, S, 104, ACK, b"\0");
    let flow = net.table.flows.iter().next().unwrap();
    assert!(!net.table.openings.get(flow.opening().unwrap()).unwrap().is_altered());
}

#[test]
fn encryption_is_not_believed_if_bytes_differ() {
    let sealed = Seen { level: Level::Strong, protocol: "tls".into(), ..unknown("ServerHello") };
    assert_eq!(trusted(sealed.clone()).level, Level::Unknown);
    let plain = Seen { level: Level::Plaintext, ..sealed.clone() };
    assert_eq!(trusted(plain.clone()), plain);

    // The first segment comes once more after the decision: the same, and another one.
    for (again, level) in [(GET, Level::Strong), (&b"PUT /index.html HTTP/1.1"[..], Level::Unknown)]
    {
        let mut net = Net::new();
        net.open(C, S).tcp(C, S, 101, ACK, GET);
        let flow = net.table.flows.iter().next().unwrap();
        assert_eq!(flow.seen().unwrap().protocol, "http");
        // As if it were encrypted
        let id = net.table.flows.oldest(Queue::Tcp).unwrap_or(0);
        net.table.flows.get_mut(id).unwrap().change(Arc::new(sealed.clone()));
        net.tcp(C, S, 101, ACK, again);
        assert_eq!(net.only().seen.level, level);
    }
}

#[test]
fn ports_that_are_used_again_are_another_flow() {
    let mut net = Net::new();
    net.open(C, S).tcp(C, S, 101, ACK, GET);
    // A retransmission of the SYN
    net.tcp(C, S, 100, SYN, b"");
    assert_eq!(net.table.len(), 1);
    assert!(net.table.ended().is_empty());
    net.tcp(C, S, 70_000, SYN, b"").tcp(S, C, 80_000, SYN | ACK, b"");
    let ended = net.table.ended();
    assert_eq!(ended.len(), 1);
    assert_eq!(ended[0].packets, [3, 1]);
    net.tcp(C, S, 70_001, ACK, GET);
    let record = net.only();
    assert_eq!((record.packets, &*record.seen.protocol), ([2, 1], "http"));
    // After a start in the middle, a SYN is another connection too.
    let mut net = Net::new();
    net.tcp(C, S, 1, ACK, b"\x03").tcp(C, S, 100, SYN, b"");
    assert_eq!(net.finish().len(), 2);
}

#[test]
fn both_open_at_the_same_time() {
    let mut net = Net::new();
    net.tcp(C, S, 100, SYN, b"").tcp(S, C, 500, SYN, b"").tcp(C, S, 101, ACK, GET);
    assert_eq!(net.only().packets, [2, 1]);
}

#[test]
fn flows_end() {
    // Both FINs, or a RST: soon
    for close in [&[(C, S, 101), (S, C, 501)][..], &[(S, C, 501)]] {
        let mut net = Net::new();
        net.open(C, S).tcp(C, S, 101, ACK, b"");
        for (from, to, seq) in close {
            let flag = if close.len() == 1 { RST } else { FIN | ACK };
            net.tcp(*from, *to, *seq, flag, b"");
        }
        net.wait(5);
        assert!(net.table.ended().is_empty());
        net.wait(7);
        assert_eq!(net.table.ended().len(), 1);
        assert!(net.table.is_empty());
    }
    // One FIN is not the end.
    let mut net = Net::new();
    net.open(C, S).tcp(C, S, 101, ACK, b"").tcp(C, S, 101, FIN | ACK, b"").wait(3600);
    assert!(net.table.ended().is_empty());
    // Idle times by transport
    for (seconds, left) in [(50, 4), (70, 3), (310, 2), (7600, 1)] {
        let mut net = Net::new();
        net.tcp(C, S, 1, SYN, b"");
        net.open((CLIENT, 2), S).tcp((CLIENT, 2), S, 101, ACK, b"");
        net.udp(C, (SERVER, 53), b"q").udp((SERVER, 53), C, b"a");
        net.wait(seconds - 40).udp((CLIENT, 3), (SERVER, 53), b"q").wait(40);
        assert_eq!(net.table.len(), left, "after {seconds}");
    }
}

#[test]
fn the_flow_idle_longest_ends_when_the_table_is_full() {
    let mut net = Net::with(Limits { flows: 3, ..LIMITS });
    for port in 1..=3 {
        net.udp((CLIENT, port), S, b"q").udp(S, (CLIENT, port), b"a");
    }
    net.wait(2).udp((CLIENT, 1), S, b"q").wait(2);
    net.udp((CLIENT, 4), S, b"q");
    assert_eq!(net.table.len(), 3);
    let ended = net.table.ended();
    assert_eq!(ended.len(), 1);
    assert_eq!(ended[0].client.port(), 2);
}

#[test]
fn half_open_flows_are_bounded_and_leave_established_ones_alone() {
    let mut net = Net::with(Limits { flows: 10_000, ..LIMITS });
    for port in 1..=1000 {
        let client = (CLIENT, port);
        net.open(client, S).tcp(client, S, 101, ACK, b"\x03");
    }
    let mut ended = 0;
    for i in 0..300_000u32 {
        let [_, a, b, c] = i.to_be_bytes();
        net.now += 1000;
        let syn = ip([11, a, b, c], SERVER, 6, 1, &tcp(7, 80, (i, 0), SYN, b""));
        net.table.frame(LinkType::RAW, timestamp(net.now), &syn, syn.len());
        assert!(net.table.len() <= 10_000);
        ended += net.table.ended().len();
    }
    assert_eq!(ended, 300_000 - 9_000);
    let established = net.table.current().filter(|r| r.client.ip() == IpAddr::from(CLIENT));
    assert_eq!(established.count(), 1000);
    assert!(net.table.flows.capacity() <= 16_384);
    // Its answers do not make them connections.
    let mut net = Net::with(Limits { flows: 10, ..LIMITS });
    net.open((CLIENT, 1), S).tcp((CLIENT, 1), S, 101, ACK, b"\x03").wait(10);
    for port in 2..100 {
        net.open((CLIENT, port), S);
    }
    assert!(net.table.current().any(|r| r.client.port() == 1));
}

#[test]
fn the_oldest_undecided_flow_is_decided_when_there_are_too_many() {
    let mut net = Net::with(Limits { undecided: 10, ..LIMITS });
    for port in 20_001..=20_025 {
        net.udp((CLIENT, port), (SERVER, 50_000), b"\x03");
        assert!(net.table.openings.len() <= 10);
    }
    let decided = net.table.flows.iter().filter(|flow| flow.seen().is_some());
    assert_eq!(
        decided.map(|flow| flow.key.port(flow.client)).filter(|port| *port > 20_015).count(),
        0
    );
    assert_eq!(net.finish().len(), 25);
    assert_eq!(net.table.openings.len(), 0);
}

#[test]
fn a_decided_flow_has_no_buffers() {
    let mut net = Net::new();
    net.open(C, S).tcp(C, S, 101, ACK, GET);
    assert_eq!(net.table.openings.len(), 0);
    for i in 0..50 {
        net.tcp(C, S, 101 + GET.len() as u32 + i, ACK, b"x");
    }
    assert_eq!(net.table.openings.len(), 0);
    // Nor has one that shows nothing, after many packets.
    let mut net = Net::new();
    for i in 0..ENOUGH_PACKETS as u32 {
        net.tcp(C, S, 9000 + 2 * i, ACK, b"\x03");
    }
    assert_eq!(net.table.openings.len(), 0);
}

#[test]
fn a_sample_is_the_same_in_both_directions_and_in_each_table() {
    let chosen = |reversed: bool| {
        let mut net = Net::with(Limits { sample: 4, ..LIMITS });
        for port in 20_001..=20_400 {
            let (a, b) = ((CLIENT, port), S);
            let (a, b) = if reversed { (b, a) } else { (a, b) };
            net.tcp(a, b, 1, ACK, GET);
        }
        let mut ports: Vec<u16> = net
            .finish()
            .iter()
            .filter(|record| record.seen.evidence != "not sampled")
            .map(|record| record.client.port())
            .collect();
        ports.sort_unstable();
        ports
    };
    let ports = chosen(false);
    assert!((50..150).contains(&ports.len()), "{}", ports.len());
    assert_eq!(ports, chosen(true));
}

#[test]
fn equal_values_are_shared() {
    let mut net = Net::new();
    for port in 1..=10 {
        let client = (CLIENT, port);
        net.open(client, S).tcp(client, S, 101, ACK, GET);
    }
    let records = net.finish();
    assert!(records.iter().all(|record| Arc::ptr_eq(&record.seen, &records[0].seen)));
    let mut known = Known::default();
    for i in 0..3 * Known::MOST {
        known.share(Seen { evidence: i.to_string().into(), ..unknown("") });
    }
    assert!(known.values.len() <= Known::MOST);
}

#[test]
fn exact_copies_count_once() {
    let mut net = Net::new();
    for (seq, payload) in [(101, GET), (101 + GET.len() as u32, b"\x03more")] {
        let packet = ip(CLIENT, SERVER, 6, 7, &tcp(40_000, 80, (seq, 0), ACK, payload));
        net.raw(&packet).raw(&packet);
    }
    assert_eq!(net.table.missed().duplicates, 2);
    assert_eq!(net.only().packets, [2, 0]);
    // Another identification, or later: a retransmission
    let mut net = Net::new();
    let packet = |id| ip(CLIENT, SERVER, 6, id, &tcp(40_000, 80, (101, 0), ACK, GET));
    net.raw(&packet(7)).raw(&packet(8)).wait(1).raw(&packet(8));
    assert_eq!(net.table.missed().duplicates, 0);
    assert_eq!(net.only().packets, [3, 0]);
}

#[test]
fn equal_datagrams_of_a_program_are_not_copies() {
    let statsd = ip(CLIENT, SERVER, 17, 0, &udp(40_000, 8125, b"hits:1|c"));
    let mut net = Net::new();
    for _ in 0..1000 {
        net.raw(&statsd);
    }
    assert_eq!(net.only().packets, [1000, 0]);
    // They are, in a capture with many certain copies.
    let mut net = Net::new();
    for i in 0..400 {
        let packet = ip(CLIENT, SERVER, 17, 1 + i, &udp(40_000, 8125, b"hits:1|c"));
        net.raw(&packet).raw(&packet);
    }
    net.raw(&statsd).raw(&statsd);
    assert_eq!(net.only().packets, [401, 0]);
}

#[test]
fn datagrams_that_differ_at_their_end_are_not_copies() {
    let mut net = Net::new();
    for last in [1, 2] {
        let payload = [&[3; 500][..], &[last]].concat();
        net.raw(&ip(CLIENT, SERVER, 17, 7, &udp(40_000, 9999, &payload)));
    }
    assert_eq!(net.table.missed().duplicates, 0);
}

#[test]
fn a_copy_that_differs_in_the_middle_is_noticed() {
    let mut payload = [b'a'; 400];
    payload[0] = 3;
    let packet =
        |payload: &[u8]| ip(CLIENT, SERVER, 6, 7, &tcp(40_000, 80, (101, 0), ACK, payload));
    let mut net = Net::new();
    net.open(C, S).raw(&packet(&payload));
    payload[200] = b'b';
    net.raw(&packet(&payload));
    assert_eq!(net.table.missed().duplicates, 1);
    let flow = net.table.flows.iter().next().unwrap();
    assert!(net.table.openings.get(flow.opening().unwrap()).unwrap().is_altered());
}

#[test]
fn fragments_belong_to_the_flow_of_the_first_one() {
    let mut payload = GET.to_vec();
    payload.resize(3000, b'x');
    let segment = tcp(40_000, 80, (101, 0), ACK, &payload);
    let part = |range: std::ops::Range<usize>| {
        let more = range.end < segment.len();
        fragment(CLIENT, SERVER, 6, (5, range.start as u16, more), &segment[range])
    };
    let ranges = [0..1480, 1480..2960, 2960..3020];
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
        let mut net = Net::new();
        net.open(C, S);
        for i in order {
            net.raw(&part(ranges[i].clone()));
        }
        assert_eq!(net.table.missed(), Missed::default());
        let record = net.only();
        assert_eq!(record.seen.protocol, "http", "{order:?}");
        assert_eq!(record.packets, [4, 1]);
        assert_eq!(record.bytes[0], 40 + 3020 + 60);
        assert_eq!(net.table.fragments.buffers(), 0);
    }
    // Without the second one, the first is looked at in the end.
    let mut net = Net::new();
    net.open(C, S).raw(&part(0..1480)).raw(&part(2960..3020));
    assert_eq!(net.only().seen.protocol, "http");
    // Without the first one, they belong to nothing.
    let mut net = Net::new();
    net.raw(&part(1480..2960)).raw(&part(2960..3020)).wait(60);
    let missed = net.table.missed();
    assert_eq!((missed.fragments, missed.bytes), (2, 1500 + 80));
    assert!(net.finish().is_empty());
}

#[test]
fn a_datagram_whose_fragments_differ_is_not_looked_at() {
    let segment = tcp(40_000, 80, (101, 0), ACK, &[GET, GET].concat());
    let mut other = segment.clone();
    other[40] ^= 1;
    let mut net = Net::new();
    net.open(C, S).raw(&fragment(CLIENT, SERVER, 6, (5, 0, true), &segment[..64])).raw(&fragment(
        CLIENT,
        SERVER,
        6,
        (5, 32, false),
        &other[32..],
    ));
    assert_eq!(net.only().seen.protocol, "unknown");
}

#[test]
fn a_bomb_of_fragments_is_bounded() {
    let mut net = Net::new();
    for i in 0..20_000u32 {
        let [_, a, b, c] = i.to_be_bytes();
        let body = [0x45; 1400];
        net.now += 1000;
        for offset in [8, 16_000, 65_528] {
            let packet = fragment([9, a, b, c], SERVER, 17, (i as u16, offset, true), &body);
            net.table.frame(LinkType::RAW, timestamp(net.now), &packet, packet.len());
        }
    }
    assert!(net.table.fragments.len() <= 1025);
    assert!(net.table.fragments.buffers() <= 64);
    assert!(net.table.is_empty());
    net.finish();
    assert_eq!(net.table.missed().fragments, 60_000);
    assert_eq!(net.table.fragments.len(), 0);
}

#[test]
fn thirty_percent_loss_makes_less_known_and_counts_what_is_left() {
    let run = |lost: &dyn Fn(u32) -> bool| {
        let mut net = Net::with(Limits { flows: 5000, undecided: 5000, sample: 1 });
        let mut n = 0;
        for port in 1..=1000u16 {
            let client = (CLIENT, port);
            let packets = [
                (client, S, 100, SYN, &b""[..]),
                (S, client, 500, SYN | ACK, b""),
                (client, S, 101, ACK, &GET[..20]),
                (client, S, 121, ACK, &GET[20..]),
                (S, client, 501, ACK, b"HTTP/1.1 20"),
                (S, client, 512, ACK, b"0 OK\r\n\r\n"),
            ];
            for (from, to, seq, flags, payload) in packets {
                n += 1;
                if !lost(n) {
                    net.tcp(from, to, seq, flags, payload);
                }
            }
        }
        let records = net.finish();
        let unknown = records.iter().filter(|r| r.seen.level == Level::Unknown).count();
        let packets: u64 = records.iter().flat_map(|r| r.packets).sum();
        (unknown, packets, records.iter().filter(|r| r.seen.level > Level::Plaintext).count())
    };
    assert_eq!(run(&|_| false), (0, 6000, 0));
    // Chosen by a hash, about 30 %
    let lost = |n: u32| n.wrapping_mul(2_654_435_761) >> 16 & 0xffff < 19_660;
    let (unknown, packets, encrypted) = run(&lost);
    assert_eq!(packets, (1..=6000).filter(|n| !lost(*n)).count() as u64);
    assert!((50..600).contains(&unknown), "{unknown}");
    assert_eq!(encrypted, 0);
}

/// The segments of a TLS 1.3 connection of rustls with itself: whether the server sends, and the bytes.
fn tls() -> Vec<(bool, Vec<u8>)> {
    use rustls::pki_types::{PrivateKeyDer, ServerName};
    use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = ServerConfig::builder_with_provider(provider.clone());
    let server = server.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let server = server.with_single_cert(vec![cert.der().clone()], key).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    let client = ClientConfig::builder_with_provider(provider);
    let client = client.with_safe_default_protocol_versions().unwrap();
    let client = client.with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from("a.example").unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    let mut segments = Vec::new();
    while client.is_handshaking() || client.wants_write() || server.wants_write() {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        server.read_tls(&mut &bytes[..]).unwrap();
        server.process_new_packets().unwrap();
        segments.extend(bytes.chunks(1400).map(|part| (false, part.to_vec())));
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        client.read_tls(&mut &bytes[..]).unwrap();
        client.process_new_packets().unwrap();
        segments.extend(bytes.chunks(1400).map(|part| (true, part.to_vec())));
    }
    segments
}

#[test]
fn nothing_is_called_encrypted_whose_handshake_was_not_captured() {
    let segments = tls();
    let hello = segments.iter().position(|(by_server, _)| *by_server).unwrap();
    // With what of each connection is lost: the number of those that are called encrypted.
    let run = |lost: &dyn Fn(u16, usize) -> bool| {
        let mut net = Net::with(Limits { flows: 5000, undecided: 5000, sample: 1 });
        let mut possible = 0;
        for port in 0..500 {
            let client = (CLIENT, 20_000 + port);
            let (mut next, server) = ([101, 501], (SERVER, 443));
            net.open(client, server);
            possible += usize::from(!lost(port, hello));
            for (n, (by_server, bytes)) in segments.iter().enumerate() {
                let (from, to) = if *by_server { (server, client) } else { (client, server) };
                let next = &mut next[usize::from(*by_server)];
                if !lost(port, n) {
                    net.tcp(from, to, *next, ACK, bytes);
                }
                *next += bytes.len() as u32;
            }
        }
        let records = net.finish();
        assert_eq!(records.len(), 500);
        let encrypted = records.iter().filter(|record| record.seen.level > Level::Plaintext);
        let ports: Vec<u16> = encrypted.map(|record| record.client.port() - 20_000).collect();
        assert!(ports.iter().all(|port| !lost(*port, hello)));
        (ports.len(), possible)
    };
    assert_eq!(run(&|_, _| false), (500, 500));
    // The ServerHello, or everything up to it
    assert_eq!(run(&|_, n| n == hello).0, 0);
    assert_eq!(run(&|_, n| n <= hello).0, 0);
    // One direction, or 30 % of all segments
    assert_eq!(run(&|_, n| segments[n].0).0, 0);
    let random = |port: u16, n: usize| {
        let hash = (u32::from(port) * 16 + n as u32).wrapping_mul(2_654_435_761);
        hash >> 16 < 19_660
    };
    let (encrypted, possible) = run(&random);
    assert!((100..400).contains(&encrypted), "{encrypted} of {possible}");
}

#[test]
fn a_cut_frame_counts_with_its_length_on_the_wire() {
    let packet = ip(CLIENT, SERVER, 6, 1, &tcp(40_000, 80, (101, 0), ACK, &[3; 1000]));
    let mut net = Net::new();
    net.open(C, S);
    net.table.frame(LinkType::RAW, timestamp(net.now), &packet[..96], packet.len());
    shown(&net, |opening| {
        assert_eq!(opening.client.bytes, [3; 56]);
        assert!(opening.client.ended, "what follows is a gap");
    });
    assert_eq!(net.only().bytes[0], 40 + 1040);
}

#[test]
fn fragments_at_the_end_of_time_are_counted() {
    let mut net = Net::new();
    let packet = fragment(CLIENT, SERVER, 17, (5, 8, false), b"x");
    net.table.frame(LinkType::RAW, jiff::Timestamp::MAX, &packet, packet.len());
    net.finish();
    assert_eq!(net.table.missed().fragments, 1);
}

#[test]
fn clocks_that_jump() {
    let mut net = Net::new();
    net.open(C, S);
    net.now = i64::MAX - 10 * SECOND;
    net.udp(C, S, b"\x03");
    net.now = i64::MIN;
    net.udp(C, (SERVER, 1), b"\x03");
    net.now = 1_700_000_000 * SECOND;
    net.udp(C, (SERVER, 2), b"\x03").wait(61);
    assert_eq!(net.table.len(), 0);
    assert_eq!(net.table.ended().len(), 4);
}

#[test]
fn several_frames_at_a_time_are_the_same_as_one_by_one() {
    let mut packets = Vec::new();
    for port in 20_000..20_050 {
        for (from_client, seq, flags, payload) in [
            (true, 100, SYN, &b""[..]),
            (false, 500, SYN | ACK, b""),
            (true, 101, ACK, GET),
            (true, 100, SYN, b""),
            (false, 501, FIN | ACK, b"HTTP/1.1 200 OK\r\n\r\n"),
            (true, 7000, SYN, b""),
        ] {
            let ports = if from_client { (port, 80) } else { (80, port) };
            let (from, to) = if from_client { (CLIENT, SERVER) } else { (SERVER, CLIENT) };
            packets.push(ip(from, to, 6, 3, &tcp(ports.0, ports.1, (seq, 0), flags, payload)));
        }
        packets.push(vec![0x45; 19]);
    }
    // The packets of a flow next to each other, and far from each other
    for stride in [1, 7] {
        let order = (0..stride).flat_map(|first| packets[first..].iter().step_by(stride));
        let frames: Vec<Frame<'_>> = order
            .enumerate()
            .map(|(n, bytes)| {
                let at = timestamp(1_700_000_000 * SECOND + n as i64 * SECOND / 50);
                Frame { link: LinkType::RAW, at, bytes, length: bytes.len() }
            })
            .collect();
        let (mut one, mut many) = (Table::new(LIMITS), Table::new(LIMITS));
        for frame in &frames {
            one.frame(frame.link, frame.at, frame.bytes, frame.length);
        }
        many.frames(&frames);
        assert_eq!(one.missed(), many.missed());
        let (one, many) = (one.finish(), many.finish());
        assert_eq!(one.len(), 100);
        assert_eq!(one, many);
    }
}

#[test]
fn noise_does_not_panic_and_every_frame_is_counted() {
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as usize
    };
    let links = [0, 1, 9, 50, 51, 101, 104, 108, 113, 228, 229, 239, 276, 7];
    let mut net = Net::with(Limits { flows: 100, undecided: 10, sample: 1 });
    let mut records = Vec::new();
    for n in 0..30_000 {
        let mut frame: Vec<u8> = (0..random() % 120).map(|_| random() as u8).collect();
        // Mostly packets that are nearly valid
        let link = links[random() % links.len()];
        if n % 4 != 0 && frame.len() > 60 {
            let inner = fragment(
                [1, 2, 3, random() as u8 & 3],
                [1, 2, 3, 4],
                [4, 6, 17, 41, 47, 50, 51, 132][random() % 8],
                (random() as u16 & 7, if random() % 4 == 0 { 8 } else { 0 }, random() % 3 == 0),
                &frame,
            );
            frame = inner;
        }
        net.now += SECOND / 500;
        let length = frame.len() + random() % 50;
        let link = LinkType(if n % 4 == 0 { link } else { 101 });
        net.table.frame(link, timestamp(net.now), &frame, length);
        records.extend(net.table.ended());
    }
    records.extend(net.finish());
    let missed = net.table.missed();
    let counted: u64 = records.iter().flat_map(|r| r.packets).sum();
    let lost = missed.not_ip + missed.malformed + missed.duplicates + missed.fragments;
    assert_eq!(counted + lost, 30_000);
    assert!(records.iter().all(|r| r.seen.level <= Level::Plaintext), "nothing was encrypted");
}
