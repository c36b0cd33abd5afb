//! Each protocol by bytes of its beginning, as its specification or a program writes them; what must not be recognised.

use super::*;
use crate::passive::Transport::{Icmp, Ip, Tcp, Udp};
use Level::{Plaintext, Unknown};
use Side::{Client as C, Server as S};

/// A flow: who sends what, one segment or datagram at a time.
pub(super) struct Flow {
    pub(super) transport: Transport,
    pub(super) port: u16,
    pub(super) sent: Vec<(Side, Vec<u8>)>,
}

impl Flow {
    pub(super) fn new(transport: Transport, port: u16, sent: &[(Side, &[u8])]) -> Self {
        let sent = sent.iter().map(|(side, bytes)| (*side, bytes.to_vec())).collect();
        Self { transport, port, sent }
    }

    /// A look at the first bytes of each direction.
    pub(super) fn look(&self, last: bool, from_start: bool) -> Look {
        let mut halves = [(Vec::new(), Vec::new()), (Vec::new(), Vec::new())];
        for (side, bytes) in &self.sent {
            let (all, ends) = &mut halves[usize::from(*side == S)];
            all.extend_from_slice(bytes);
            ends.push(u16::try_from(all.len()).unwrap());
        }
        let [client, server] = &halves;
        let half = |(bytes, ends): &'_ (Vec<u8>, Vec<u16>)| (bytes.clone(), ends.clone());
        let (client, server) = (half(client), half(server));
        let half = |bytes, ends| Half { bytes, ends, from_start, ended: last };
        look(&Opening {
            transport: self.transport,
            ports: (40_000, self.port),
            first: self.sent.first().map(|(side, _)| *side),
            client: half(&client.0, &client.1),
            server: half(&server.0, &server.1),
            last,
        })
    }

    /// What it is at its end.
    pub(super) fn seen(&self) -> Seen {
        match self.look(true, true) {
            Look::Done(seen) => seen,
            Look::More => panic!("the last look is not decided"),
        }
    }
}

/// `68 65`: bytes in hex.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// Protocol, level, grade, transport, port, and what is sent. In text, `\x` bytes are written by the language.
type Sample = (&'static str, Level, Grade, Transport, u16, Vec<(Side, Vec<u8>)>);

fn samples() -> Vec<Sample> {
    use Grade::{Guessed, Seen};
    let t = |bytes: &[u8]| bytes.to_vec();
    let h = hex;
    let mut kerberos = h("6a 0e 30 0c a1 03 02 01 05 a2 03 02 01 0a a4 00");
    kerberos.splice(0..0, [0, 0, 0, 16]);
    let mut rtmp = vec![3; 1];
    rtmp.extend([0; 8]);
    rtmp.extend((0..1528u32).map(|i| (i * 7) as u8));
    let mut rtmp_answer = vec![3; 1];
    rtmp_answer.extend([9; 1536]);
    rtmp_answer.extend(&rtmp[1..1537]);
    let mut dhcp = vec![1, 1, 6, 0];
    dhcp.extend([0; 232]);
    dhcp.extend([99, 130, 83, 99, 53, 1, 1, 255]);
    let ntp = |mode: u8, origin: u8, transmit: u8| {
        let mut message = vec![0x20 | mode, 2, 6, 0xec];
        message.extend([0; 20]);
        message.extend([origin; 8]);
        message.extend([0; 8]);
        message.extend([transmit; 8]);
        message
    };
    let rtp = |sequence: u8, source: u8| {
        let mut packet = vec![0x80, 0, 7, sequence, 0, 0, 1, sequence, 1, 2, 3, source];
        packet.extend([0xd5; 160]);
        packet
    };
    let mut netflow = h("00 05 00 01 00000000 00000000 00000000 00000000 00 00 0000");
    netflow.extend([7; 48]);
    let mut smb2_negotiate = h("00 00 00 44 fe 53 4d 42 40 00 00 00 00 00 00 00 00 00 00 00");
    smb2_negotiate.extend([0; 52]);
    let mut smb2_create = smb2_negotiate.clone();
    smb2_create[16] = 5;
    let mut iscsi = h("43 87 00 00 00 00 00 20");
    iscsi.extend([0; 40]);
    iscsi.extend(b"InitiatorName=iqn.1993-08.org.de");
    let mut iscsi_answer = h("23 87 00 00 00 00 00 20");
    iscsi_answer.extend([0; 72]);
    vec![
        ("http", Plaintext, Seen, Tcp, 80, vec![(C, t(b"GET /a?token=s3cret HTTP/1.1\r\nHost: a\r\n\r\n")), (S, t(b"HTTP/1.1 200 OK\r\n\r\n"))]),
        ("http", Plaintext, Seen, Tcp, 8080, vec![(S, t(b"HTTP/1.0 408 Request Timeout\r\n\r\n"))]),
        ("http2", Plaintext, Seen, Tcp, 80, vec![(C, t(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"))]),
        ("websocket", Plaintext, Seen, Tcp, 80, vec![
            (C, t(b"GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")),
            (S, t(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n")),
        ]),
        ("sip", Plaintext, Seen, Udp, 5060, vec![(C, t(b"REGISTER sip:a.example SIP/2.0\r\nVia: SIP/2.0/UDP b\r\n\r\n"))]),
        ("rtsp", Plaintext, Seen, Tcp, 554, vec![(C, t(b"OPTIONS rtsp://a/b RTSP/1.0\r\nCSeq: 1\r\n\r\n"))]),
        ("ssdp", Plaintext, Seen, Udp, 1900, vec![(C, t(b"M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\n\r\n"))]),
        ("redis", Plaintext, Seen, Tcp, 6379, vec![(C, t(b"*2\r\n$4\r\nAUTH\r\n$6\r\ns3cret\r\n")), (S, t(b"+OK\r\n"))]),
        ("memcached", Plaintext, Seen, Tcp, 11211, vec![(C, t(b"get a\r\n")), (S, t(b"END\r\n"))]),
        ("memcached", Plaintext, Seen, Tcp, 11211, vec![
            (C, h("80 0b 0000 00 00 0000 00000000 00000007 0000000000000000")),
            (S, h("81 0b 0000 00 00 0000 00000005 00000007 0000000000000000 312e362e32")),
        ]),
        ("nats", Plaintext, Seen, Tcp, 4222, vec![(S, t(b"INFO {\"server_id\":\"A\",\"max_payload\":1048576} \r\n")), (C, t(b"CONNECT {\"verbose\":false}\r\n"))]),
        ("git", Plaintext, Seen, Tcp, 9418, vec![(C, t(b"0027git-upload-pack /a.git\0host=a.example\0"))]),
        ("rsync", Plaintext, Seen, Tcp, 873, vec![(S, t(b"@RSYNCD: 31.0\n")), (C, t(b"@RSYNCD: 31.0\n"))]),
        ("svn", Plaintext, Seen, Tcp, 3690, vec![(S, t(b"( success ( 2 2 ( ) ( edit-pipeline svndiff1 ) ) ) ")), (C, t(b"( 2 ( edit-pipeline ) 11:svn://a/b ) "))]),
        ("syslog", Plaintext, Seen, Udp, 514, vec![(C, t(b"<34>1 2003-10-11T22:14:15.003Z a su - ID47 - failed"))]),
        ("syslog", Plaintext, Seen, Tcp, 601, vec![(C, t(b"83 <34>Oct 11 22:14:15 mymachine su: 'su root' failed for lonvick on /dev/pts/8 01234"))]),
        ("statsd", Plaintext, Seen, Udp, 8125, vec![(C, t(b"a.b:1|c\na.c:320|ms|@0.1"))]),
        ("graphite", Plaintext, Seen, Tcp, 2003, vec![(C, t(b"local.random.diceroll 4 1700000000\n"))]),
        ("influxdb", Plaintext, Seen, Tcp, 8089, vec![(C, t(b"cpu,host=a value=0.64 1434055562000000000\n"))]),
        ("mgcp", Plaintext, Seen, Udp, 2427, vec![(C, t(b"RSIP 262662134 *@vg224 MGCP 0.1\nRM: graceful\n"))]),
        ("fix", Plaintext, Seen, Tcp, 9878, vec![(C, t(b"8=FIX.4.2\x019=65\x0135=A\x0149=A\x01"))]),
        ("hl7", Plaintext, Seen, Tcp, 2575, vec![(C, t(b"\x0bMSH|^~\\&|A|B\r\x1c\r"))]),
        ("whois", Plaintext, Guessed, Tcp, 43, vec![(C, t(b"example.com\r\n")), (S, t(b"Domain Name: EXAMPLE.COM\r\n"))]),
        ("mongodb", Plaintext, Seen, Tcp, 27017, vec![
            (C, h("3a000000 01000000 00000000 d4070000 00000000 61646d696e2e24636d6400 00000000 01000000 13000000 10 68656c6c6f00 01000000 00 00")),
            (S, h("30000000 02000000 01000000 01000000 08000000 0000000000000000 00000000 01000000 0c000000 00")),
        ]),
        ("mongodb", Plaintext, Seen, Tcp, 27017, vec![
            (C, h("26000000 05000000 00000000 dd070000 00000000 00 11000000 10 68656c6c6f00 01000000 00")),
            (S, h("26000000 09000000 05000000 dd070000 00000000 00 11000000 10 68656c6c6f00 01000000 00")),
        ]),
        ("kafka", Plaintext, Seen, Tcp, 9092, vec![
            (C, h("0000000f 0012 0000 00000007 0005 61646d696e")), (S, h("0000000a 00000007 0000 00000000")),
        ]),
        ("cassandra", Plaintext, Seen, Tcp, 9042, vec![
            (C, h("04 00 0000 05 00000000")), (S, h("84 00 0000 06 00000004 00000000")),
        ]),
        ("zookeeper", Plaintext, Seen, Tcp, 2181, vec![
            (C, h("0000002d 00000000 0000000000000000 00002710 0000000000000000 00000010 00000000000000000000000000000000 00")),
            (S, h("00000025 00000000 00002710 0100000000000001 00000010 00000000000000000000000000000000 00")),
        ]),
        ("elasticsearch", Plaintext, Seen, Tcp, 9300, vec![
            (C, h("4553 0000002b 0000000000000001 08 006a3f63 00000000")), (S, h("4553 0000001b 0000000000000001 09 006a3f63 00000000")),
        ]),
        ("amqp", Plaintext, Seen, Tcp, 5672, vec![(C, t(b"AMQP\0\0\x09\x01"))]),
        ("amqp", Plaintext, Seen, Tcp, 5672, vec![(C, t(b"AMQP\0\x01\0\0"))]),
        ("mqtt", Plaintext, Seen, Tcp, 1883, vec![(C, h("10 10 0004 4d515454 04 02 003c 0004 61626364")), (S, h("20 02 00 00"))]),
        ("zmtp", Plaintext, Seen, Tcp, 5555, vec![
            (C, [h("ff 0000000000000001 7f 03 00 4e554c4c"), vec![0; 48]].concat()),
            (S, [h("ff 0000000000000001 7f 03 00 4e554c4c"), vec![0; 48]].concat()),
        ]),
        ("zmtp", Unknown, Seen, Tcp, 5555, vec![
            (C, [h("ff 0000000000000001 7f 03 00 4355525645"), vec![0; 47]].concat()),
            (S, [h("ff 0000000000000001 7f 03 00 4355525645"), vec![0; 47]].concat()),
        ]),
        ("thrift", Plaintext, Seen, Tcp, 9090, vec![(C, [h("80010001 00000004"), t(b"ping"), h("00000000 00")].concat())]),
        ("nbd", Plaintext, Seen, Tcp, 10809, vec![(S, t(b"NBDMAGICIHAVEOPT\0\x03")), (C, [h("00000003"), t(b"IHAVEOPT"), h("00000007 00000000")].concat())]),
        ("oracle", Unknown, Seen, Tcp, 1521, vec![(C, [h("0064 0000 01 00 0000 0139 012c 0000 0800 7fff 7f08 0000 0001 002a 003a 0000 0000 00 00 0000000000000000000000000000000000000000000000000000"), t(b"(DESCRIPTION=(CONNECT_DATA=(SID=x)))")].concat())]),
        ("drda", Plaintext, Seen, Tcp, 50000, vec![(C, h("000a d0 41 0001 0004 1041")), (S, h("000a d0 43 0001 0004 1443"))]),
        ("nfs", Plaintext, Seen, Tcp, 2049, vec![
            (C, h("80000028 0000abcd 00000000 00000002 000186a3 00000004 00000001 00000001 00000000 00000000 00000000")),
            (S, h("80000018 0000abcd 00000001 00000000 00000000 00000000 00000000")),
        ]),
        ("portmap", Plaintext, Seen, Udp, 111, vec![
            (C, h("0000abcd 00000000 00000002 000186a0 00000002 00000003 00000000 00000000 00000000 00000000 000186a3 00000003 00000006 00000000")),
            (S, h("0000abcd 00000001 00000000 00000000 00000000 00000000 00000801")),
        ]),
        ("nfs", Unknown, Seen, Tcp, 2049, vec![
            (C, h("80000044 0000abcd 00000000 00000002 000186a3 00000004 00000001 00000006 0000001c 00000001 00000000 00000001 00000003 00000008 0102030405060708 00000006 00000004 01020304")),
        ]),
        ("smb", Plaintext, Seen, Tcp, 445, vec![(C, smb2_negotiate.clone()), (S, smb2_negotiate.clone()), (C, smb2_create.clone()), (S, smb2_create)]),
        ("smb", Unknown, Seen, Tcp, 445, vec![(C, smb2_negotiate.clone()), (S, smb2_negotiate)]),
        ("dcerpc", Plaintext, Seen, Tcp, 135, vec![
            (C, h("05 00 0b 03 10000000 0018 0000 01000000 b810b810 00000000")[..].iter().enumerate().map(|(i, b)| match i { 8 => 0x18, 9 => 0, _ => *b }).collect()),
            (S, h("05 00 0c 03 10000000 1800 0000 01000000 b810b810 00000000")),
        ]),
        ("dcerpc", Unknown, Seen, Tcp, 135, vec![
            (C, h("05 00 0b 03 10000000 2800 0800 01000000 b810b810 00000000 0906 0000 00000000 0102030405060708")),
            (S, h("05 00 0c 03 10000000 1800 0000 01000000 b810b810 00000000")),
        ]),
        ("kerberos", Plaintext, Seen, Tcp, 88, vec![(C, kerberos.clone())]),
        ("kerberos", Plaintext, Seen, Udp, 88, vec![(C, kerberos[4..].to_vec())]),
        ("iscsi", Plaintext, Seen, Tcp, 3260, vec![(C, iscsi), (S, iscsi_answer)]),
        ("netbios", Plaintext, Seen, Udp, 138, vec![(C, [h("11 02 abcd c0a80102 008a 00bb 0000 20"), t(b"EEDADADCDEDGDFCACACACACACACACAAA\0"), t(b" FHEPFCELEHFCEPFFFACACACACACACABN\0")].concat())]),
        ("dns", Plaintext, Seen, Udp, 53, vec![
            (C, h("abcd 0100 0001 0000 0000 0000 07 6578616d706c65 03 636f6d 00 0001 0001")),
            (S, h("abcd 8180 0001 0001 0000 0000 07 6578616d706c65 03 636f6d 00 0001 0001 c00c 0001 0001 0000003c 0004 01020304")),
        ]),
        ("dns", Plaintext, Seen, Tcp, 53, vec![
            (C, h("001d abcd 0100 0001 0000 0000 0000 07 6578616d706c65 03 636f6d 00 0001 0001")),
            (S, h("001d abcd 8183 0001 0000 0000 0000 07 6578616d706c65 03 636f6d 00 0001 0001")),
        ]),
        ("mdns", Plaintext, Seen, Udp, 5353, vec![(C, h("0000 0000 0001 0000 0000 0000 04 5f697070 04 5f746370 05 6c6f63616c 00 000c 8001"))]),
        ("llmnr", Plaintext, Seen, Udp, 5355, vec![(C, h("1234 0000 0001 0000 0000 0000 04 77706164 00 0001 0001"))]),
        ("nbns", Plaintext, Seen, Udp, 137, vec![(C, [h("1234 0110 0001 0000 0000 0000 20"), t(b"FHEPFCELEHFCEPFFFACACACACACACABN"), h("00 0020 0001")].concat())]),
        ("dhcp", Plaintext, Seen, Udp, 67, vec![(C, dhcp)]),
        ("dhcp", Plaintext, Seen, Udp, 547, vec![(C, h("01 abcdef 0001 0004 01020304 0006 0002 0017"))]),
        ("ntp", Plaintext, Seen, Udp, 123, vec![(C, ntp(3, 0, 5)), (S, ntp(4, 5, 6))]),
        ("snmp", Plaintext, Seen, Udp, 161, vec![(C, h("30 26 02 01 01 04 06 7075626c6963 a0 19 02 01 01 02 01 00 02 01 00 30 0e 30 0c 06 08 2b06010201010100 05 00"))]),
        ("snmp", Unknown, Seen, Udp, 161, vec![(C, h("30 1e 02 01 03 30 0e 02 01 05 02 02 05dc 04 01 07 02 01 03 04 05 30 03 04 01 00 04 02 aabb"))]),
        ("snmp", Plaintext, Seen, Udp, 161, vec![(C, h("30 1e 02 01 03 30 0e 02 01 05 02 02 05dc 04 01 05 02 01 03 04 05 30 03 04 01 00 30 02 aabb"))]),
        ("tftp", Plaintext, Seen, Udp, 69, vec![(C, t(b"\0\x01boot.img\0octet\0blksize\x001428\0"))]),
        ("tftp", Plaintext, Seen, Udp, 50001, vec![(S, [h("0003 0001"), vec![7; 512]].concat()), (C, h("0004 0001"))]),
        ("radius", Plaintext, Seen, Udp, 1812, vec![
            (C, h("01 07 0026 000102030405060708090a0b0c0d0e0f 0105 626f62 020d 0102030405060708090a0b")),
            (S, h("02 07 0014 000102030405060708090a0b0c0d0e0f")),
        ]),
        ("diameter", Plaintext, Seen, Tcp, 3868, vec![
            (C, h("01 000034 80 000101 00000000 00000001 00000002 00000108 40 00000c 61626364 00000128 40 000014 6162636465666768696a6b6c")),
            (S, h("01 000020 00 000101 00000000 00000001 00000002 0000010c 40 00000c 000007d1")),
        ]),
        ("bgp", Plaintext, Seen, Tcp, 179, vec![(C, h("ffffffffffffffffffffffffffffffff 001d 01 04 fde8 00b4 0a000001 00"))]),
        ("ldp", Plaintext, Seen, Udp, 646, vec![(C, h("0001 001e 0a000001 0000 0100 0014 00000001 0400 0004 000f 0000 0401 0004 0a000001"))]),
        ("pptp", Plaintext, Seen, Tcp, 1723, vec![(C, [h("009c 0001 1a2b3c4d 0001 0000 0100 0000"), vec![0; 140]].concat())]),
        ("netflow", Plaintext, Seen, Udp, 2055, vec![(C, netflow)]),
        ("ipfix", Plaintext, Seen, Udp, 4739, vec![(C, h("000a 001c 00000000 00000000 00000000 0002 000c 0100 0001 0008 0004"))]),
        ("sflow", Plaintext, Seen, Udp, 6343, vec![(C, h("00000005 00000001 0a000001 00000000 00000001 00000001 00000001 00000001 00000008 0000000000000000"))]),
        ("collectd", Plaintext, Seen, Udp, 25826, vec![(C, h("0000 0006 6100 0008 000c 0000000000000001 0009 000c 0000000280000000 0002 0008 63707500"))]),
        ("collectd", Unknown, Guessed, Udp, 25826, vec![(C, h("0210 0010 0004 75736572 010203040506"))]),
        ("gtp", Unknown, Seen, Udp, 2152, vec![(C, h("30 ff 0004 00000001 45000014"))]),
        ("gtp", Plaintext, Seen, Udp, 2123, vec![(C, h("40 01 0009 00000100 03 0001 00 05"))]),
        ("pfcp", Plaintext, Seen, Udp, 8805, vec![(C, h("20 05 0010 00000100 0060 0004 0a000001 000000"))].into_iter().map(|(side, mut bytes): (Side, Vec<u8>)| { bytes.truncate(16); bytes[3] = 12; (side, bytes) }).collect()),
        ("slp", Plaintext, Seen, Udp, 427, vec![(C, h("02 01 000012 0000 000000 0001 0002 656e 0000"))]),
        ("coap", Plaintext, Seen, Udp, 5683, vec![(C, h("44 01 0001 0a0b0c0d b4 74657374")), (S, h("64 45 0001 0a0b0c0d ff 6869"))]),
        ("stun", Plaintext, Seen, Udp, 3478, vec![(C, h("0001 0000 2112a442 0102030405060708090a0b0c")), (S, h("0101 000c 2112a442 0102030405060708090a0b0c 0020 0008 0001 1234 5e12a443"))]),
        ("stun", Unknown, Seen, Udp, 3478, vec![(C, h("0003 0008 2112a442 0102030405060708090a0b0c 0019 0004 11000000"))]),
        ("rtp", Unknown, Guessed, Udp, 30_000, vec![(C, rtp(1, 9)), (C, rtp(2, 9)), (C, rtp(3, 9))]),
        ("rtcp", Plaintext, Seen, Udp, 30_001, vec![(C, h("80 c9 0001 01020304 81 ca 0003 01020304 01 04 61406261 00 00"))]),
        ("rtmp", Plaintext, Seen, Tcp, 1935, vec![(C, rtmp), (S, rtmp_answer)]),
        ("bittorrent", Plaintext, Seen, Tcp, 6881, vec![(C, [t(b"\x13BitTorrent protocol"), vec![0; 48]].concat())]),
        ("bittorrent", Plaintext, Seen, Udp, 6881, vec![(C, t(b"d1:ad2:id20:abcdefghij0123456789e1:q4:ping1:t2:aa1:y1:qe"))]),
        ("vnc", Plaintext, Seen, Tcp, 5900, vec![(S, t(b"RFB 003.008\n")), (C, t(b"RFB 003.008\n")), (S, h("02 01 02")), (C, h("02"))]),
        ("vnc", Unknown, Seen, Tcp, 5900, vec![(S, t(b"RFB 003.008\n")), (C, t(b"RFB 003.008\n")), (S, h("01 05")), (C, h("05"))]),
        ("x11", Plaintext, Seen, Tcp, 6000, vec![(C, h("6c 00 0b00 0000 0000 0000 0000")), (S, h("01 00 0b00 0000 2a00"))]),
        ("rlogin", Plaintext, Seen, Tcp, 513, vec![(C, t(b"\0bob\0root\0xterm/38400\0")), (S, t(b"\0"))]),
        ("ajp", Plaintext, Seen, Tcp, 8009, vec![(C, h("1234 0010 02 02 0008 485454502f312e31 00")), (S, h("4142 0001 04 00c8 0002"))]),
        ("fastcgi", Plaintext, Seen, Tcp, 9000, vec![(C, h("01 01 0001 0008 0000 0001 00 0000000000"))]),
        ("rmi", Plaintext, Seen, Tcp, 1099, vec![(C, h("4a524d49 0002 4b"))]),
        ("jdwp", Plaintext, Seen, Tcp, 5005, vec![(C, t(b"JDWP-Handshake")), (S, t(b"JDWP-Handshake"))]),
        ("giop", Plaintext, Seen, Tcp, 2809, vec![(C, h("47494f50 01 02 01 00 00000064"))]),
        ("ceph", Plaintext, Seen, Tcp, 6789, vec![(S, t(b"ceph v027\0\0\0\0"))]),
        ("bitcoin", Plaintext, Seen, Tcp, 8333, vec![(C, h("f9beb4d9 76657273696f6e0000000000 00000055 00000000"))]),
        ("modbus", Plaintext, Seen, Tcp, 502, vec![(C, h("0001 0000 0006 01 03 0000 0002")), (S, h("0001 0000 0007 01 03 04 00010002"))]),
        ("s7comm", Plaintext, Seen, Tcp, 102, vec![
            (C, h("03000016 11 e0 0000 0001 00 c1020100 c2020102 c0010a")),
            (S, h("03000016 11 d0 0001 0001 00 c0010a c1020100 c2020102")),
            (C, h("03000019 02f080 32 01 0000 0000 0008 0000 f0 00 0001 0001 01e0")),
        ]),
        ("h323", Plaintext, Seen, Tcp, 1720, vec![(C, h("03000012 08 02 7e01 05 04 03 8090a5 7e 0000 05"))]),
        ("dnp3", Plaintext, Seen, Tcp, 20000, vec![(C, h("0564 05 c9 0300 0400 bd71"))]),
        ("iec104", Plaintext, Seen, Tcp, 2404, vec![(C, h("68 04 07 000000")), (S, h("68 04 0b 000000"))]),
        ("opcua", Plaintext, Seen, Tcp, 4840, vec![
            (C, h("48454c46 20000000 00000000 00000100 00000100 00000000 00000000 00000000")),
            (C, [h("4f504e46 47000000 00000000 2f000000"), t(b"http://opcfoundation.org/UA/SecurityPolicy#None"), h("ffffffff ffffffff")].concat()),
        ]),
        ("bacnet", Plaintext, Seen, Udp, 47808, vec![(C, h("81 0b 000c 01 20 ffff 00 ff 1008"))]),
        ("ethernet-ip", Plaintext, Seen, Tcp, 44818, vec![
            (C, h("6500 0400 00000000 00000000 0000000000000000 00000000 0100 0000")),
            (S, h("6500 0400 0a000000 00000000 0000000000000000 00000000 0100 0000")),
        ]),
        ("bolt", Plaintext, Seen, Tcp, 7687, vec![(C, h("6060b017 00000405 00000004 00000003 00000000"))]),
        ("clickhouse", Plaintext, Seen, Tcp, 9000, vec![(C, [h("00 11"), t(b"ClickHouse client"), h("15 01 d6a903 00")].concat())]),
        ("gearman", Plaintext, Seen, Tcp, 4730, vec![(C, [h("00524551 00000001 00000004"), t(b"work")].concat())]),
        ("tacacs", Plaintext, Seen, Tcp, 49, vec![(C, h("c0 01 01 00 01020304 00000004 a1b2c3d4")), (S, h("c0 01 02 00 01020304 00000004 a1b2c3d4"))]),
        ("smpp", Plaintext, Seen, Tcp, 2775, vec![
            (C, h("0000001c 00000009 00000000 00000001 626f6200 707700 00 34 00 00 00")),
            (S, h("00000015 80000009 00000000 00000001 6162636400")),
        ]),
        ("ident", Plaintext, Seen, Tcp, 113, vec![(C, t(b"6193, 23\r\n")), (S, t(b"6193, 23 : USERID : UNIX : stjohns\r\n"))]),
        ("9p", Plaintext, Seen, Tcp, 564, vec![(C, h("13000000 64 ffff 00200000 0600 395032303030"))]),
        ("rtps", Plaintext, Seen, Udp, 7400, vec![(C, h("52545053 0202 0101 0102030405060708090a0b0c 09 01 0800"))]),
        ("rtps", Unknown, Seen, Udp, 7400, vec![(C, h("52545053 0202 0101 0102030405060708090a0b0c 33 01 0800"))]),
        ("knx", Plaintext, Seen, Udp, 3671, vec![(C, h("06 10 0201 000e 08 01 c0a80102 0e57"))]),
        ("m3ua", Plaintext, Seen, Transport::Sctp, 2905, vec![(C, h("01 00 03 01 00000008"))]),
        ("icmp", Plaintext, Seen, Icmp, 0, vec![(C, h("0800 f7ff 0000 0000"))]),
        ("ospf", Plaintext, Seen, Ip(89), 0, vec![(C, h("0201 002c"))]),
        ("ah", Plaintext, Seen, Ip(51), 0, vec![]),
        ("http", Plaintext, Seen, Tcp, 80, vec![(C, t(b"PROXY TCP4 192.0.2.1 192.0.2.2 5000 80\r\nGET / HTTP/1.1\r\n\r\n"))]),
        ("http", Plaintext, Seen, Tcp, 80, vec![(C, [t(b"\r\n\r\n\0\r\nQUIT\n"), h("21 11 000c c0000201 c0000202 1388 0050"), t(b"GET / HTTP/1.1\r\n\r\n")].concat())]),
        ("http", Plaintext, Seen, Tcp, 1080, vec![(C, h("05 01 00")), (S, h("05 00")), (C, h("05 01 00 01 c0000201 0050")), (S, h("05 00 00 01 00000000 0000")), (C, t(b"GET / HTTP/1.1\r\n\r\n"))]),
        ("http", Plaintext, Seen, Tcp, 1080, vec![(C, h("04 01 0050 c0000201 626f6200")), (S, h("00 5a 0000 00000000")), (C, t(b"GET / HTTP/1.1\r\n\r\n"))]),
        ("socks", Unknown, Seen, Tcp, 1080, vec![(C, h("05 01 00")), (S, h("05 00")), (C, h("05 01 00 01 c0000201 0050")), (S, h("05 00 00 01 00000000 0000")), (C, h("9f8e7d6c5b4a"))]),
        ("socks", Plaintext, Seen, Tcp, 1080, vec![(C, h("05 01 02")), (S, h("05 02")), (C, h("01 03 626f62 02 7077")), (S, h("01 00")), (C, h("05 01 00 01 c0000201 0050")), (S, h("05 00 00 01 00000000 0000")), (C, h("9f8e7d6c5b4a"))]),
        ("unknown", Plaintext, Guessed, Tcp, 4000, vec![(S, t(b"Welcome to the machine.\nYou have no new messages today.\n"))]),
    ]
}

fn flow(sample: &Sample) -> Flow {
    Flow { transport: sample.3, port: sample.4, sent: sample.5.clone() }
}

fn short(seen: &Seen) -> (&str, Level, Grade) {
    (&seen.protocol, seen.level, seen.grade)
}

#[test]
fn each_protocol_is_recognised_by_its_beginning() {
    for (at, sample) in samples().iter().enumerate() {
        let seen = flow(sample).seen();
        assert_eq!(short(&seen), (sample.0, sample.1, sample.2), "sample {at}: {seen:?}");
        assert!(seen.evidence.bytes().all(|b| (b' '..=b'~').contains(&b)), "{seen:?}");
        assert!(!seen.evidence.contains("s3cret"), "{seen:?}");
    }
}

/// The result does not depend on where segments are cut, and what was decided early is not another protocol.
#[test]
fn a_part_of_a_flow_is_not_taken_for_another_protocol() {
    for (at, sample) in samples().iter().enumerate() {
        let whole = flow(sample);
        if sample.3 != Tcp {
            for datagrams in 0..whole.sent.len() {
                let part = Flow { sent: whole.sent[..datagrams].to_vec(), ..flow(sample) };
                if let Look::Done(seen) = part.look(false, true) {
                    assert!(
                        seen.protocol == sample.0,
                        "sample {at}, {datagrams} datagrams: {seen:?}"
                    );
                }
            }
            continue;
        }
        for segment in 0..whole.sent.len() {
            let bytes = &whole.sent[segment].1;
            for cut in (0..bytes.len()).step_by(bytes.len() / 100 + 1) {
                let mut part = Flow { sent: whole.sent[..=segment].to_vec(), ..flow(sample) };
                part.sent[segment].1.truncate(cut);
                part.sent.retain(|(_, bytes)| !bytes.is_empty());
                match part.look(false, true) {
                    Look::More => {}
                    Look::Done(seen) => assert!(
                        [sample.0, "unknown"].contains(&&*seen.protocol)
                            // The request alone is HTTP's.
                            || (sample.0, &*seen.protocol) == ("websocket", "http"),
                        "sample {at}, {cut} bytes of segment {segment}: {seen:?}"
                    ),
                }
            }
        }
    }
}

/// What one protocol's client sent and another one's server answered is not a third protocol.
#[test]
fn halves_that_do_not_fit_together_are_no_third_protocol() {
    let samples = samples();
    for a in samples.iter().filter(|sample| sample.3 == Tcp) {
        for b in samples.iter().filter(|sample| sample.3 == Tcp) {
            let client = a.5.iter().filter(|(side, _)| *side == C);
            let server = b.5.iter().filter(|(side, _)| *side == S);
            let sent: Vec<_> = client.chain(server).cloned().collect();
            let mixed = Flow { transport: Tcp, port: 7, sent };
            let seen = mixed.seen();
            assert!(!is_encrypted(&seen), "{} and {}: {seen:?}", a.0, b.0);
            // An upgrade that was not answered is HTTP.
            let http = a.0 == "websocket" && seen.protocol == "http";
            let fits = [a.0, b.0, "unknown"].contains(&&*seen.protocol);
            assert!(fits || http, "{} and {}: {seen:?}", a.0, b.0);
        }
    }
}

fn is_encrypted(seen: &Seen) -> bool {
    matches!(seen.level, Level::Weak | Level::Acceptable | Level::Strong)
}

/// A generator that always gives the same numbers.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d)
}

#[test]
fn random_bytes_are_never_called_encrypted_and_almost_never_named() {
    let mut state = 0x9e37_79b9_7f4a_7c15;
    let mut named = std::collections::BTreeMap::new();
    const ROUNDS: u32 = 20_000;
    for round in 0..ROUNDS {
        let mut sent = Vec::new();
        for _ in 0..random(&mut state) % 4 + 1 {
            let side = if random(&mut state).is_multiple_of(2) { C } else { S };
            let len = (random(&mut state) % 200 + 1) as usize;
            sent.push((side, (0..len).map(|_| (random(&mut state) >> 24) as u8).collect()));
        }
        let transport = if round % 2 == 0 { Tcp } else { Udp };
        let flow = Flow { transport, port: (random(&mut state) >> 20) as u16 | 0x8000, sent };
        for from_start in [false, true] {
            flow.look(false, from_start);
            let Look::Done(seen) = flow.look(true, from_start) else { panic!("not decided") };
            assert!(!is_encrypted(&seen), "{seen:?}: {:02x?}", flow.sent);
            if seen.protocol != "unknown" {
                *named.entry(seen.protocol.to_string()).or_insert(0) += 1;
            }
        }
    }
    let all: u32 = named.values().sum();
    assert!(all * 2000 < ROUNDS, "{all} of {}: {named:?}", 2 * ROUNDS);
}

/// Known first bytes, followed by anything.
#[test]
fn nothing_panics_on_damaged_beginnings() {
    let mut state = 7;
    for sample in samples() {
        for _ in 0..300 {
            let mut damaged = flow(&sample);
            for (_, bytes) in &mut damaged.sent {
                let at = random(&mut state) as usize % bytes.len().max(1);
                match random(&mut state) % 3 {
                    0 => bytes.truncate(at),
                    1 => bytes
                        .iter_mut()
                        .skip(at)
                        .take(4)
                        .for_each(|b| *b = random(&mut state) as u8),
                    _ => bytes.extend_from_within(at.min(bytes.len())..),
                }
            }
            for last in [false, true] {
                if let Look::Done(seen) = damaged.look(last, true) {
                    assert!(!is_encrypted(&seen), "{seen:?}");
                }
            }
        }
    }
}

#[test]
fn a_flow_that_began_before_the_capture_is_read_from_both_sides() {
    let request: &[u8] = b"GET / HTTP/1.1\r\n\r\n";
    let flow = Flow::new(Tcp, 80, &[(S, request), (C, b"HTTP/1.1 200 OK\r\n\r\n")]);
    let Look::Done(seen) = flow.look(true, false) else { panic!("not decided") };
    assert_eq!(short(&seen), ("http", Plaintext, Grade::Seen));
    let Look::Done(seen) = flow.look(true, true) else { panic!("not decided") };
    assert_eq!(&seen.protocol, "unknown", "with both SYNs, who is the client is known");
}

#[test]
fn records_of_tls_without_their_handshake_are_not_called_encrypted_or_plaintext() {
    let record = hex("17 0303 0010 000102030405060708090a0b0c0d0e0f");
    let flow = Flow::new(Tcp, 443, &[(C, &record), (S, &record)]);
    let Look::Done(seen) = flow.look(true, false) else { panic!("not decided") };
    assert_eq!(seen.level, Unknown);
}

#[test]
fn a_password_for_a_proxy_is_plaintext_whatever_follows() {
    let request: &[u8] =
        b"CONNECT a:443 HTTP/1.1\r\nProxy-Authorization: Basic Ym9iOnNlY3JldA==\r\n\r\n";
    let answer: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";
    let opaque = [0x9f, 0x8e, 0x7d, 0x6c, 0x5b];
    let flow = Flow::new(Tcp, 3128, &[(C, request), (S, answer), (C, &opaque)]);
    let seen = flow.seen();
    assert_eq!(short(&seen), ("http", Plaintext, Grade::Seen), "{seen:?}");
    assert!(!seen.evidence.contains("Ym9i"), "{seen:?}");
    let request: &[u8] = b"CONNECT a:443 HTTP/1.1\r\n\r\n";
    let flow = Flow::new(Tcp, 3128, &[(C, request), (S, answer), (C, &opaque)]);
    assert_eq!(short(&flow.seen()), ("http", Unknown, Grade::Seen));
}

#[test]
fn a_request_to_a_proxy_in_the_clear_is_plaintext_also_if_it_carries_tls() {
    let handshake = super::tls::tests::post_quantum().0;
    let after = |sent: Vec<(Side, &[u8])>| {
        let mut flow = Flow::new(Tcp, 1080, &sent);
        flow.sent.extend(handshake.clone());
        flow.seen()
    };
    assert_eq!(after(vec![]).level, Level::Strong, "the control");
    let connect: &[u8] = b"CONNECT a:443 HTTP/1.1\r\n\r\n";
    let seen = after(vec![(C, connect), (S, b"HTTP/1.1 200 OK\r\n\r\n")]);
    assert_eq!(short(&seen), ("http", Plaintext, Grade::Seen), "{seen:?}");
    assert!(seen.sealed.is_some(), "{seen:?}");
    let answer: &[u8] = &[0, 0x5a, 0, 0, 0, 0, 0, 0];
    let seen = after(vec![(C, &[4, 1, 1, 0xbb, 192, 0, 2, 1, b'u', 0]), (S, answer)]);
    assert_eq!(short(&seen), ("socks", Plaintext, Grade::Seen), "{seen:?}");
    // A load balancer's header only repeats addresses.
    let header: &[u8] = b"PROXY TCP4 192.0.2.1 192.0.2.2 50000 443\r\n";
    assert_eq!(after(vec![(C, header)]).level, Level::Strong);
}
