//! A datagram with the payload `hello`, in all that may be around it.

use super::*;

const FROM: [u8; 4] = [10, 0, 0, 1];
const TO: [u8; 4] = [10, 0, 0, 2];
const ETHERNET: [u8; 12] = [7; 12];

fn udp(ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() + 8) as u16;
    let header = [ports.0, ports.1, length, 0].map(u16::to_be_bytes);
    [header.as_flattened(), payload].concat()
}

fn v4(protocol: u8, body: &[u8]) -> Vec<u8> {
    let length = (20 + body.len() as u16).to_be_bytes();
    let start = [0x45, 0, length[0], length[1], 0, 9, 0, 0, 64, protocol, 0, 0];
    [&start[..], &FROM, &TO, body].concat()
}

fn v6(next: u8, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u16).to_be_bytes();
    let start = [0x60, 0, 0, 0, length[0], length[1], next, 64];
    let (mut from, mut to) = ([0xfd; 16], [0xfd; 16]);
    (from[15], to[15]) = (1, 2);
    [&start[..], &from, &to, body].concat()
}

fn hello() -> Vec<u8> {
    udp((40_000, 9999), b"hello")
}

fn hello_v4() -> Vec<u8> {
    v4(UDP, &hello())
}

fn hello_v6() -> Vec<u8> {
    v6(UDP, &hello())
}

fn ether(kind: u16, body: &[u8]) -> Vec<u8> {
    [&ETHERNET[..], &kind.to_be_bytes(), body].concat()
}

/// The two ends of `hello`, its network, and the bytes that are counted.
#[track_caller]
fn is_hello(packet: &Packet<'_>) -> (u32, u32) {
    assert_eq!(packet.key.protocol, UDP);
    assert_eq!(packet.key.port(packet.sender), 40_000);
    assert_eq!(packet.key.port(packet.sender.other()), 9999);
    assert_eq!((packet.segment.payload, packet.segment.length), (&b"hello"[..], 5));
    let from = packet.key.end(packet.sender).ip();
    assert!(
        from == IpAddr::from(FROM)
            || from == "fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fd01".parse::<IpAddr>().unwrap()
    );
    (packet.key.network, packet.bytes)
}

#[track_caller]
fn native(link: u16, frame: &[u8], bytes: u32) {
    let packet = parse(LinkType(link), frame, frame.len()).expect("a packet");
    assert_eq!(is_hello(&packet), (0, bytes));
    assert!(!packet.in_tunnel);
    // Cut anywhere, it is an error or a shorter packet.
    for cut in 0..frame.len() {
        match parse(LinkType(link), &frame[..cut], frame.len()) {
            Ok(packet) => assert!(packet.segment.payload.len() < 5, "cut at {cut}"),
            Err(Other::Malformed { bytes: known }) => assert!(known == 0 || known == bytes),
            Err(Other::NotIp) => {}
        }
    }
}

#[test]
fn link_layers() {
    for (ip, kind) in [(hello_v4(), 0x0800u16), (hello_v6(), 0x86dd)] {
        let bytes = ip.len() as u32;
        let [high, low] = kind.to_be_bytes();
        native(1, &ether(kind, &ip), bytes);
        native(101, &ip, bytes);
        native(if kind == 0x0800 { 228 } else { 229 }, &ip, bytes);
        let family = if kind == 0x0800 { 2 } else { 30 };
        native(0, &[&[family, 0, 0, 0], &ip[..]].concat(), bytes);
        native(108, &[&[0, 0, 0, family], &ip[..]].concat(), bytes);
        native(113, &[&[0; 14][..], &[high, low], &ip].concat(), bytes);
        native(276, &[&[high, low][..], &[0; 18], &ip].concat(), bytes);
        native(104, &[&[0x0f, 0, high, low], &ip[..]].concat(), bytes);
        let ppp = if kind == 0x0800 { 0x21 } else { 0x57 };
        native(9, &[&[0, ppp], &ip[..]].concat(), bytes);
        native(9, &[&[ppp], &ip[..]].concat(), bytes);
        native(50, &[&[0xff, 3, 0, ppp], &ip[..]].concat(), bytes);
        let session = [&[0x11, 0, 0, 1, 0, 0, 0, ppp], &ip[..]].concat();
        native(51, &session, bytes);
        native(1, &ether(0x8864, &session), bytes);
        for order in [u16::to_le_bytes, u16::to_be_bytes] {
            let length = order(4 + ip.len() as u16);
            let kind = order(9);
            let attributes =
                [&[0, 0, 0, 0][..], &order(6), &order(1), b"ab\0\0", &length, &kind, &ip].concat();
            native(239, &attributes, bytes);
        }
    }
}

#[test]
fn tags_and_labels() {
    let ip = hello_v4();
    let bytes = ip.len() as u32;
    native(1, &ether(0x8100, &[&[0, 5, 8, 0], &ip[..]].concat()), bytes);
    native(1, &ether(0x88a8, &[&[0, 5, 0x81, 0, 0, 6, 8, 0], &ip[..]].concat()), bytes);
    native(1, &ether(0x8847, &[&[0, 0, 0x10, 9, 0, 0, 0x11, 9], &ip[..]].concat()), bytes);
    let wire = [&[0, 0, 0x11, 9, 0, 0, 0, 0], &ether(0x0800, &ip)[..]].concat();
    native(1, &ether(0x8847, &wire), bytes);
    native(1, &ether(100, &[&[0xaa, 0xaa, 3, 0, 0, 0, 8, 0], &ip[..]].concat()), bytes);
    // Tags without end
    let tags = ether(0x8100, &[0, 5, 0x81, 0].repeat(100));
    assert!(parse(LinkType::ETHERNET, &tags, tags.len()).is_err());
    // Not IP
    for kind in [0x0806, 0x88cc, 40] {
        let frame = ether(kind, &[0; 46]);
        assert_eq!(parse(LinkType::ETHERNET, &frame, 60).unwrap_err(), Other::NotIp);
    }
}

#[test]
fn padding_and_checksums_of_the_link_are_not_counted() {
    let frame = [&ether(0x0800, &hello_v4())[..], &[0; 20]].concat();
    let packet = parse(LinkType::ETHERNET, &frame, frame.len()).unwrap();
    assert_eq!(is_hello(&packet), (0, 33));
}

#[test]
fn options_and_extension_headers() {
    let mut options = v4(UDP, &[&[1; 8], &hello()[..]].concat());
    options[0] = 0x47;
    native(101, &options, 41);
    let chain =
        [&[60, 0, 0, 0, 0, 0, 0, 0, 43, 1][..], &[0; 14], &[51, 0, 0, 0, 0, 0, 0, 0]].concat();
    let authenticated = [&[UDP, 4, 0, 0][..], &[0; 20], &hello()].concat();
    native(101, &v6(0, &[&chain[..], &authenticated].concat()), 40 + 32 + 24 + 13);
    native(101, &v4(AH, &authenticated), 20 + 24 + 13);
    // The fragment that is all
    native(101, &v6(44, &[&[UDP, 0, 0, 0, 1, 2, 3, 4], &hello()[..]].concat()), 61);
    // Extension headers without end
    let endless = v6(60, &[60, 0, 0, 0, 0, 0, 0, 0].repeat(100));
    let error = parse(LinkType::RAW, &endless, endless.len()).unwrap_err();
    assert_eq!(error, Other::Malformed { bytes: 840 });
}

#[test]
fn joined_segments_have_the_length_of_the_frame() {
    let long = udp((40_000, 9999), &[7; 70_000]);
    let mut packet = v4(UDP, &long);
    (packet[2], packet[3]) = (0, 0);
    (packet[24], packet[25]) = (0, 0);
    let parsed = parse(LinkType::RAW, &packet, packet.len()).unwrap();
    assert_eq!((parsed.bytes, parsed.segment.length), (70_028, 70_000));
    let mut packet = v6(UDP, &long);
    (packet[4], packet[5]) = (0, 0);
    (packet[44], packet[45]) = (0, 0);
    let parsed = parse(LinkType::RAW, &packet[..200], packet.len()).unwrap();
    assert_eq!((parsed.bytes, parsed.segment.length), (70_048, 70_000));
}

#[test]
fn lengths_that_cannot_be() {
    let good = hello_v4();
    for (at, value) in [(0, 0x44), (0, 0x4f), (2, 0xff), (3, 19), (24, 0xff), (25, 7)] {
        let mut packet = good.clone();
        packet[at] = value;
        let result = parse(LinkType::RAW, &packet, packet.len());
        assert!(matches!(result, Err(Other::Malformed { .. })), "{at} {value}: {result:?}");
    }
    // The same, in a capture that was cut: its length on the wire is known.
    let long = v4(UDP, &udp((40_000, 9999), &[1; 1000]));
    assert!(parse(LinkType::RAW, &long[..100], 100).is_err());
    assert_eq!(parse(LinkType::RAW, &long[..100], 1028).unwrap().bytes, 1028);
    for (offset, length) in [(0x40, 40), (0xf0, 40)] {
        let mut segment = [0; 20];
        segment[12] = offset;
        let packet = v4(TCP, &segment);
        assert_eq!(
            parse(LinkType::RAW, &packet, length).unwrap_err(),
            Other::Malformed { bytes: 40 }
        );
    }
}

/// In a tunnel: the inner flow, the tunnel's network, the bytes of the outer packet.
#[track_caller]
fn tunneled(outer: &[u8], network: u32) {
    let packet = parse(LinkType::RAW, outer, outer.len()).expect("a packet");
    assert!(packet.in_tunnel);
    assert_eq!(is_hello(&packet), (network, outer.len() as u32));
    for cut in 0..outer.len() {
        let _ = parse(LinkType::RAW, &outer[..cut], outer.len());
    }
}

#[test]
fn tunnels() {
    for ip in [hello_v4(), hello_v6()] {
        let kind = if ip[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] };
        let frame = ether(u16::from_be_bytes(kind), &ip);
        let gre = |start: &[u8], rest: &[u8]| v4(GRE, &[start, rest].concat());
        tunneled(&v4(if ip[0] >> 4 == 4 { IPV4 } else { IPV6 }, &ip), 5 << 24);
        tunneled(&v6(if ip[0] >> 4 == 4 { IPV4 } else { IPV6 }, &ip), 5 << 24);
        tunneled(&gre(&[0, 0, kind[0], kind[1]], &ip), 3 << 24);
        tunneled(&gre(&[0xb0, 0, kind[0], kind[1]], &[&[0; 12], &ip[..]].concat()), 3 << 24);
        tunneled(&gre(&[0x20, 0, 0x65, 0x58, 0, 0x12, 0x34, 9], &frame), 8 << 24 | 0x1234);
        tunneled(&gre(&[0, 0, 0x88, 0xbe], &frame), 4 << 24);
        tunneled(
            &gre(&[0x10, 0, 0x88, 0xbe, 0, 0, 0, 1], &[&[0x10; 8], &frame[..]].concat()),
            4 << 24,
        );
        tunneled(
            &gre(&[0x10, 0, 0x22, 0xeb, 0, 0, 0, 1], &[&[0x20; 12], &frame[..]].concat()),
            4 << 24,
        );
        let ppp = if kind == [8, 0] { 0x21 } else { 0x57 };
        let pptp = [&[0x30, 0x81, 0x88, 0x0b][..], &[0; 12], &[0xff, 3, 0, ppp], &ip].concat();
        tunneled(&v4(GRE, &pptp), 3 << 24);
        let vxlan = [&[8, 0, 0, 0, 0, 0x12, 0x34, 0], &frame[..]].concat();
        tunneled(&v4(UDP, &udp((1, 4789), &vxlan)), 1 << 24 | 0x1234);
        tunneled(&v6(UDP, &udp((1, 8472), &vxlan)), 1 << 24 | 0x1234);
        let geneve = [&[1, 0, 0x65, 0x58, 0, 0, 7, 0, 1, 2, 3, 4], &frame[..]].concat();
        tunneled(&v4(UDP, &udp((1, 6081), &geneve)), 2 << 24 | 7);
        let geneve = [&[0, 0, kind[0], kind[1], 0, 0, 7, 0], &ip[..]].concat();
        tunneled(&v4(UDP, &udp((1, 6081), &geneve)), 2 << 24 | 7);
        tunneled(
            &v4(UDP, &udp((2152, 2152), &[&[0x30, 0xff, 0, 0, 0, 0, 0, 1], &ip[..]].concat())),
            7 << 24,
        );
        let extended =
            [&[0x34, 0xff, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0x85, 1, 0, 0, 0], &ip[..]].concat();
        tunneled(&v4(UDP, &udp((2152, 2152), &extended)), 7 << 24);
    }
    let teredo =
        [&[0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &hello_v6()[..]]
            .concat();
    tunneled(&v4(UDP, &udp((3544, 50_000), &teredo)), 6 << 24);
}

#[test]
fn what_is_no_tunnel_is_a_flow_of_its_own() {
    let arp = [&[8, 0, 0, 0, 0, 0, 1, 0], &ether(0x0806, &[0; 28])[..]].concat();
    let outer = v4(UDP, &udp((1, 4789), &arp));
    let packet = parse(LinkType::RAW, &outer, outer.len()).unwrap();
    assert!(!packet.in_tunnel);
    assert_eq!(packet.key.port(packet.sender.other()), 4789);
}

#[test]
fn a_tunnel_in_a_tunnel_is_not_looked_into() {
    let mut packet = hello_v4();
    for depth in 0..40 {
        packet = v4(IPV4, &packet);
        let parsed = parse(LinkType::RAW, &packet, packet.len()).unwrap();
        if depth == 0 {
            is_hello(&parsed);
        } else {
            assert_eq!(parsed.key.protocol, IPV4);
            assert_eq!(parsed.bytes, packet.len() as u32);
        }
    }
}

#[test]
fn a_flow_in_a_tunnel_is_another_one_than_outside() {
    let (inside, outside) = (v4(IPV4, &hello_v4()), hello_v4());
    let inside = parse(LinkType::RAW, &inside, inside.len()).unwrap();
    let outside = parse(LinkType::RAW, &outside, outside.len()).unwrap();
    assert_ne!(inside.key, outside.key);
    // An address of IPv6 that looks like one of IPv4 is another one too.
    let mut mapped = v6(UDP, &hello());
    let ends = [FROM, TO].map(|end| Ipv4Addr::from(end).to_ipv6_mapped().octets());
    mapped[8..40].copy_from_slice(ends.as_flattened());
    let mapped = parse(LinkType::RAW, &mapped, mapped.len()).unwrap();
    assert_ne!(mapped.key, outside.key);
    assert_ne!(mapped.key.words(), outside.key.words());
    assert!(mapped.key.end(mapped.sender).is_ipv6());
}

#[test]
fn transports() {
    let sctp = |chunks: &[u8]| v4(SCTP, &[&[0x9c, 0x40, 0x27, 0x0f][..], &[0; 8], chunks].concat());
    let data = [
        3, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 19, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        0, 0, b'a', b'b', b'c', 0,
    ];
    let packet = sctp(&data);
    let parsed = parse(LinkType::RAW, &packet, packet.len()).unwrap();
    assert_eq!(parsed.segment.payload, b"abc");
    assert_eq!((parsed.key.port(parsed.sender), parsed.key.transport()), (40_000, Transport::Sctp));
    for endless in [[5, 0, 0, 4].repeat(100), vec![5, 0, 0, 0], vec![0, 0, 0xff, 0xff]] {
        let packet = sctp(&endless);
        assert!(parse(LinkType::RAW, &packet, packet.len()).unwrap().segment.payload.is_empty());
    }
    for (protocol, transport) in [
        (1, Transport::Icmp),
        (58, Transport::Icmp),
        (50, Transport::Ip(50)),
        (89, Transport::Ip(89)),
    ] {
        let packet = v4(protocol, b"hello");
        let parsed = parse(LinkType::RAW, &packet, packet.len()).unwrap();
        assert_eq!((parsed.key.transport(), parsed.segment.payload), (transport, &b"hello"[..]));
        assert_eq!(parsed.key.port(parsed.sender), 0);
    }
}

#[test]
fn both_directions_have_one_key() {
    let there = hello_v4();
    let mut back = v4(UDP, &udp((9999, 40_000), b"x"));
    back[12..20].copy_from_slice(&[TO, FROM].concat());
    let there = parse(LinkType::RAW, &there, there.len()).unwrap();
    let back = parse(LinkType::RAW, &back, back.len()).unwrap();
    assert_eq!(there.key, back.key);
    assert_eq!(there.sender, back.sender.other());
    // Equal addresses: the ports tell.
    let mut own = hello_v4();
    own.copy_within(12..16, 16);
    let own = parse(LinkType::RAW, &own, own.len()).unwrap();
    assert_eq!(own.key.port(own.sender), 40_000);
}
