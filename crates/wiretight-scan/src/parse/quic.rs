//! Initial packets of QUIC (RFC 9000, RFC 9001, RFC 9369), which contain hellos, and the other possible
//! replies: Version Negotiation and Retry.
//!
//! Their keys are derived from a connection ID in the packets, so anyone on the path can read and
//! forge them, but nobody else. Later packets (Handshake, 1-RTT) are ignored.

use std::collections::BTreeMap;

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use rustls::Side;
use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::quic;

use super::{Malformed, Reader};

/// Version 1 (RFC 9000).
pub const VERSION_1: u32 = 1;
/// The minimum size of a datagram with a client's Initial (RFC 9000 section 14.1).
pub const MIN_DATAGRAM: usize = 1200;
/// The longest connection ID of version 1 (RFC 9000 section 17.2).
pub const MAX_CONNECTION_ID: usize = 20;
/// The maximum size of an assembled handshake; Initials contain only a hello.
pub const MAX_CRYPTO: u64 = 64 << 10;

const TAG: usize = 16;
/// The maximum number of buffered pieces of a handshake.
const MAX_PIECES: usize = 64;

/// A version whose Initial packets can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Drafts 29 to 32, which were used on the Internet before version 1.
    Draft29,
    /// RFC 9000. Its last drafts have the same keys.
    V1,
    /// RFC 9369.
    V2,
}

impl Version {
    pub fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            VERSION_1 | 0xff00_0021 | 0xff00_0022 => Self::V1,
            0x6b33_43cf => Self::V2,
            0xff00_001d..=0xff00_0020 => Self::Draft29,
            _ => return None,
        })
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Draft29 => "QUIC draft 29",
            Self::V1 => "QUIC 1",
            Self::V2 => "QUIC 2",
        }
    }
}

/// The type of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Initial(Version),
    ZeroRtt(Version),
    Handshake(Version),
    Retry(Version),
    VersionNegotiation,
    /// A short header, which is not distinguishable from other protocols.
    OneRtt,
    /// A long header of another version.
    Unknown(u32),
}

/// The type of the packet at the start of a datagram; `None` if it has none.
pub fn kind(datagram: &[u8]) -> Option<Kind> {
    let mut reader = Reader::new(datagram);
    let first = reader.u8().ok()?;
    if first & 0x80 == 0 {
        return Some(Kind::OneRtt);
    }
    let code = reader.u32().ok()?;
    if code == 0 {
        return Some(Kind::VersionNegotiation);
    }
    let Some(version) = Version::from_code(code) else { return Some(Kind::Unknown(code)) };
    // RFC 9000 section 17.2; RFC 9369 section 3.2 counts from Retry.
    let rotation = if version == Version::V2 { 3 } else { 0 };
    Some(match ((first >> 4) + rotation) & 3 {
        0 => Kind::Initial(version),
        1 => Kind::ZeroRtt(version),
        2 => Kind::Handshake(version),
        _ => Kind::Retry(version),
    })
}

/// A packet, as far as it is readable without keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet<'a> {
    /// An Initial packet, still protected.
    Initial(Initial<'a>),
    /// A Retry.
    Retry(Retry<'a>),
    /// A Version Negotiation, which belongs to no version.
    VersionNegotiation(VersionNegotiation<'a>),
    /// Handshake, 0-RTT, 1-RTT, or another version.
    Other,
}

/// RFC 9000 section 17.2.2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Initial<'a> {
    pub version: Version,
    /// Destination connection ID.
    pub destination: &'a [u8],
    /// Source connection ID.
    pub source: &'a [u8],
    /// From an earlier Retry; servers send none.
    pub token: &'a [u8],
    /// The packet from its first byte to the end of its payload.
    bytes: &'a [u8],
    /// The offset of the packet number.
    number_at: usize,
}

/// RFC 9000 section 17.2.5.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry<'a> {
    /// Destination connection ID.
    pub destination: &'a [u8],
    /// Source connection ID: the client's next destination.
    pub source: &'a [u8],
    /// The client must send it back.
    pub token: &'a [u8],
    bytes: &'a [u8],
}

/// RFC 9000 section 17.2.1, RFC 8999 section 6.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionNegotiation<'a> {
    /// Destination connection ID, of any length.
    pub destination: &'a [u8],
    /// Source connection ID, of any length.
    pub source: &'a [u8],
    /// The versions that the server supports.
    pub versions: Vec<u32>,
}

/// The packet at the start of a datagram, and the rest (RFC 9000 section 12.2).
pub fn packet(datagram: &[u8]) -> Result<(Packet<'_>, &[u8]), Malformed> {
    let kind = kind(datagram).ok_or(Malformed("truncated"))?;
    if kind == Kind::OneRtt {
        // A packet with a short header has no length, and is the last in its datagram.
        return Ok((Packet::Other, &[]));
    }
    let mut reader = Reader::new(datagram);
    let (_first, _version) = (reader.u8()?, reader.u32()?);
    let (destination, source) = (reader.vec8()?, reader.vec8()?);
    let version = match kind {
        Kind::VersionNegotiation => {
            let versions = reader.rest();
            if versions.is_empty() || !versions.len().is_multiple_of(4) {
                return Err(Malformed("a Version Negotiation with truncated versions"));
            }
            let versions =
                versions.chunks_exact(4).map(|v| u32::from_be_bytes([v[0], v[1], v[2], v[3]]));
            let versions = versions.collect();
            let negotiation = VersionNegotiation { destination, source, versions };
            return Ok((Packet::VersionNegotiation(negotiation), &[]));
        }
        Kind::Initial(version)
        | Kind::ZeroRtt(version)
        | Kind::Handshake(version)
        | Kind::Retry(version) => version,
        Kind::OneRtt | Kind::Unknown(_) => return Ok((Packet::Other, &[])),
    };
    if destination.len().max(source.len()) > MAX_CONNECTION_ID {
        return Err(Malformed("a connection ID of more than 20 bytes"));
    }
    if let Kind::Retry(_) = kind {
        let rest = reader.rest();
        let token = rest.len().checked_sub(TAG).and_then(|n| rest.get(..n));
        let token = token.ok_or(Malformed("a Retry without its tag"))?;
        return Ok((Packet::Retry(Retry { destination, source, token, bytes: datagram }), &[]));
    }
    let token = match kind {
        Kind::Initial(_) => take(&mut reader)?,
        _ => &[],
    };
    let length = varint(&mut reader)?;
    let number_at = datagram.len() - reader.rest().len();
    let length = usize::try_from(length).map_err(|_| Malformed("truncated"))?;
    reader.take(length)?;
    let (bytes, rest) = datagram.split_at(number_at + length);
    Ok(match kind {
        Kind::Initial(_) => {
            let initial = Initial { version, destination, source, token, bytes, number_at };
            (Packet::Initial(initial), rest)
        }
        _ => (Packet::Other, rest),
    })
}

/// The keys for the Initial packets of one side.
pub use rustls::quic::DirectionalKeys as Keys;

/// The keys for Initial packets, derived from the destination ID of the client's first Initial, or its
/// first Initial after a Retry (RFC 9001 section 5.2).
pub struct InitialKeys {
    /// For packets from the client.
    pub client: Keys,
    /// For packets from the server.
    pub server: Keys,
}

impl InitialKeys {
    /// The keys of version 1 for this connection ID.
    pub fn new(destination: &[u8]) -> Self {
        Self::of(Version::V1, destination)
    }

    pub fn of(version: Version, destination: &[u8]) -> Self {
        let version = match version {
            Version::Draft29 => quic::Version::V1Draft,
            Version::V1 => quic::Version::V1,
            Version::V2 => quic::Version::V2,
        };
        let suite = TLS13_AES_128_GCM_SHA256.tls13().and_then(|suite| suite.quic_suite());
        let suite = suite.expect("a suite of QUIC");
        let keys = suite.keys(destination, Side::Client, version);
        Self { client: keys.local, server: keys.remote }
    }
}

impl Initial<'_> {
    /// Removes the protection (RFC 9001 section 5.4). Returns packet number and payload, or `None` if it
    /// is not authentic. `largest` is the largest packet number so far.
    pub fn open(&self, keys: &Keys, largest: Option<u64>) -> Option<(u64, Vec<u8>)> {
        let mut header = self.bytes.to_vec();
        // The sample always starts four bytes after the start of the packet number.
        let (before, sample) = header.split_at_mut_checked(self.number_at + 4)?;
        let (first, number) = before.split_at_mut(self.number_at);
        keys.header.decrypt_in_place(sample.get(..16)?, &mut first[0], number).ok()?;
        let length = usize::from(header[0] & 3) + 1;
        let mut payload = header.split_off(self.number_at + length);
        let truncated = header[self.number_at..].iter().fold(0, |n, b| n << 8 | u64::from(*b));
        let number = whole_number(largest, truncated, 8 * length as u32);
        let plain = keys.packet.decrypt_in_place(number, &header, &mut payload).ok()?.len();
        payload.truncate(plain);
        Some((number, payload))
    }
}

/// RFC 9000 appendix A.3.
fn whole_number(largest: Option<u64>, truncated: u64, bits: u32) -> u64 {
    let expected = largest.map_or(0, |n| n.min((1 << 62) - 1) + 1);
    let (window, half) = (1 << bits, 1 << (bits - 1));
    let candidate = expected & !(window - 1) | truncated;
    if candidate + half <= expected && candidate < (1 << 62) - window {
        candidate + window
    } else if candidate > expected + half && candidate >= window {
        candidate - window
    } else {
        candidate
    }
}

/// The header fields of an Initial.
#[derive(Debug, Clone, Copy)]
pub struct Header<'a> {
    /// Destination connection ID, of at most 20 bytes.
    pub destination: &'a [u8],
    /// Source connection ID, of at most 20 bytes.
    pub source: &'a [u8],
    /// From a Retry.
    pub token: &'a [u8],
    /// Packet number.
    pub number: u32,
}

/// A datagram with one Initial that contains these frames, padded to the minimum length of a
/// client's datagram.
pub fn initial(keys: &Keys, header: Header<'_>, frames: &[u8]) -> Vec<u8> {
    debug_assert!(header.destination.len().max(header.source.len()) <= MAX_CONNECTION_ID);
    let mut out = vec![0xc3];
    out.extend(VERSION_1.to_be_bytes());
    for id in [header.destination, header.source] {
        out.push(id.len() as u8);
        out.extend(id);
    }
    put_varint(&mut out, header.token.len() as u64);
    out.extend(header.token);
    // The length has two bytes, the packet number four.
    let number_at = out.len() + 2;
    let payload = frames.len().max(MIN_DATAGRAM.saturating_sub(number_at + 4 + TAG));
    let length = (4 + payload + TAG) as u16;
    debug_assert!(length < 1 << 14);
    out.extend((0x4000 | length).to_be_bytes());
    out.extend(header.number.to_be_bytes());
    let mut body = frames.to_vec();
    body.resize(payload, 0);
    let tag = keys.packet.encrypt_in_place(header.number.into(), &out, &mut body);
    out.append(&mut body);
    out.extend(tag.expect("a short packet").as_ref());
    let (before, sample) = out.split_at_mut(number_at + 4);
    let (first, number) = before.split_at_mut(number_at);
    keys.header.encrypt_in_place(&sample[..16], &mut first[0], number).expect("a whole sample");
    out
}

impl Retry<'_> {
    /// Whether it is a reply to a client's Initial with this destination (RFC 9001 section 5.8).
    pub fn verify(&self, original: &[u8]) -> bool {
        let Some((body, tag)) = self.bytes.split_last_chunk::<TAG>() else { return false };
        let expected = retry_tag(original, body);
        // The key is public, so the comparison need not be constant-time.
        expected.is_some_and(|expected| expected == *tag)
    }
}

/// The integrity tag of a Retry.
fn retry_tag(original: &[u8], packet: &[u8]) -> Option<[u8; TAG]> {
    const KEY: [u8; 16] = [
        0xbe, 0x0c, 0x69, 0x0b, 0x9f, 0x66, 0x57, 0x5a, 0x1d, 0x76, 0x6b, 0x54, 0xe3, 0x68, 0xc8,
        0x4e,
    ];
    const NONCE: [u8; NONCE_LEN] =
        [0x46, 0x15, 0x99, 0xd3, 0x5d, 0x63, 0x2b, 0xf2, 0x23, 0x98, 0x25, 0xbb];
    let mut pseudo = vec![u8::try_from(original.len()).ok()?];
    pseudo.extend(original);
    pseudo.extend(packet);
    let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &KEY).ok()?);
    let nonce = Nonce::assume_unique_for_key(NONCE);
    let tag = key.seal_in_place_separate_tag(nonce, Aad::from(&pseudo), &mut []).ok()?;
    tag.as_ref().try_into().ok()
}

/// A server's Retry, for tests.
pub fn retry(original: &[u8], destination: &[u8], source: &[u8], token: &[u8]) -> Vec<u8> {
    let mut out = vec![0xf0];
    out.extend(VERSION_1.to_be_bytes());
    for id in [destination, source] {
        out.push(id.len() as u8);
        out.extend(id);
    }
    out.extend(token);
    out.extend(retry_tag(original, &out).unwrap_or_default());
    out
}

/// Frames that are allowed in an Initial (RFC 9000 section 12.4), except PADDING.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame<'a> {
    /// RFC 9000 section 19.2.
    Ping,
    /// RFC 9000 section 19.3; the largest acknowledged number.
    Ack(u64),
    /// RFC 9000 section 19.6.
    Crypto(u64, &'a [u8]),
    /// RFC 9000 section 19.19.
    Close {
        /// 0x100 plus a TLS alert (RFC 9001 section 4.8), or a QUIC error.
        code: u64,
        /// A text.
        reason: &'a [u8],
    },
}

impl Frame<'_> {
    /// Appends the encoded frame.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Ping => out.push(1),
            Self::Ack(largest) => {
                out.push(2);
                put_varint(out, *largest);
                out.extend([0, 0, 0]);
            }
            Self::Crypto(offset, data) => {
                out.push(6);
                put_varint(out, *offset);
                put_varint(out, data.len() as u64);
                out.extend(*data);
            }
            Self::Close { code, reason } => {
                out.push(0x1c);
                put_varint(out, *code);
                out.push(0);
                put_varint(out, reason.len() as u64);
                out.extend(*reason);
            }
        }
    }
}

/// The frames of a payload. After an error, the frames before it are returned too, because they may contain a CONNECTION_CLOSE.
pub fn frames(payload: &[u8]) -> (Vec<Frame<'_>>, Result<(), Malformed>) {
    let (mut reader, mut frames) = (Reader::new(payload), Vec::new());
    while !reader.is_empty() {
        match frame(&mut reader) {
            Ok(frame) => frames.extend(frame),
            Err(e) => return (frames, Err(e)),
        }
    }
    (frames, Ok(()))
}

fn frame<'a>(reader: &mut Reader<'a>) -> Result<Option<Frame<'a>>, Malformed> {
    Ok(Some(match varint(reader)? {
        0 => return Ok(None),
        1 => Frame::Ping,
        kind @ (2 | 3) => {
            let (largest, _delay) = (varint(reader)?, varint(reader)?);
            let (ranges, _first) = (varint(reader)?, varint(reader)?);
            // Each range has at least two bytes, so the announced count is limited by the input.
            for _ in 0..ranges {
                let (_gap, _length) = (varint(reader)?, varint(reader)?);
            }
            if kind == 3 {
                let _ecn = (varint(reader)?, varint(reader)?, varint(reader)?);
            }
            Frame::Ack(largest)
        }
        6 => Frame::Crypto(varint(reader)?, take(reader)?),
        0x1c => {
            let (code, _frame) = (varint(reader)?, varint(reader)?);
            Frame::Close { code, reason: take(reader)? }
        }
        _ => return Err(Malformed("a frame that is not allowed in an Initial")),
    }))
}

/// Assembles the handshake from CRYPTO frames in any order.
#[derive(Debug, Default)]
pub struct Crypto {
    /// The end of the data that was read.
    read: u64,
    waiting: BTreeMap<u64, Vec<u8>>,
}

impl Crypto {
    /// Adds a frame. Data that was already read does not change.
    pub fn push(&mut self, offset: u64, data: &[u8]) -> Result<(), Malformed> {
        let end = offset.checked_add(data.len() as u64).filter(|end| *end <= MAX_CRYPTO);
        let end = end.ok_or(Malformed("a handshake in Initials is longer than 64 KiB"))?;
        if end <= self.read {
            return Ok(());
        }
        let held = self.waiting.values().map(Vec::len).sum::<usize>();
        if self.waiting.len() >= MAX_PIECES || held + data.len() > MAX_CRYPTO as usize {
            return Err(Malformed("a handshake in Initials is in too many pieces"));
        }
        if self.waiting.get(&offset).is_none_or(|old| old.len() < data.len()) {
            self.waiting.insert(offset, data.to_vec());
        }
        Ok(())
    }

    /// The next available bytes.
    pub fn read(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        while let Some(piece) = self.waiting.first_entry().filter(|p| *p.key() <= self.read) {
            let (offset, piece) = piece.remove_entry();
            // This part was already read from another piece.
            let fresh = piece.get((self.read - offset) as usize..).unwrap_or_default();
            self.read += fresh.len() as u64;
            out.extend_from_slice(fresh);
        }
        out
    }
}

/// The required `quic_transport_parameters` of a client, with enough credit for the server to continue
/// (RFC 9000 section 18.2).
pub fn transport_parameters(source: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let numbers = [(0x01, 10_000), (0x03, 1472), (0x04, 1 << 20), (0x05, 1 << 16), (0x06, 1 << 16)];
    for (id, number) in numbers.into_iter().chain([(0x07, 1 << 16), (0x08, 8), (0x09, 8)]) {
        let mut value = Vec::new();
        put_varint(&mut value, number);
        put_varint(&mut out, id);
        put_varint(&mut out, value.len() as u64);
        out.append(&mut value);
    }
    // initial_source_connection_id
    out.extend([0x0f, source.len() as u8]);
    out.extend(source);
    out
}

/// RFC 9000 section 16.
fn varint(reader: &mut Reader<'_>) -> Result<u64, Malformed> {
    let first = reader.u8()?;
    let rest = reader.take((1 << (first >> 6)) - 1)?;
    Ok(rest.iter().fold(u64::from(first & 0x3f), |n, b| n << 8 | u64::from(*b)))
}

/// The bytes after a length as a variable-length integer.
fn take<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], Malformed> {
    let length = varint(reader)?;
    reader.take(usize::try_from(length).map_err(|_| Malformed("truncated"))?)
}

fn put_varint(out: &mut Vec<u8>, n: u64) {
    debug_assert!(n < 1 << 62);
    match n {
        0..0x40 => out.push(n as u8),
        0x40..0x4000 => out.extend((0x4000 | n as u16).to_be_bytes()),
        0x4000..0x4000_0000 => out.extend((0x8000_0000 | n as u32).to_be_bytes()),
        _ => out.extend((3 << 62 | n).to_be_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::{ClientHello, HandshakeType, Handshakes, ServerHello, extension};

    /// RFC 9001 appendix A.
    const ORIGINAL: [u8; 8] = [0x83, 0x94, 0xc8, 0xf0, 0x3e, 0x51, 0x57, 0x08];
    const SERVER_INITIAL: &str = "cf000000010008f067a5502a4262b5004075c0d95a482cd0991cd25b0aac406a\
        5816b6394100f37a1c69797554780bb38cc5a99f5ede4cf73c3ec2493a1839b3\
        dbcba3f6ea46c5b7684df3548e7ddeb9c3bf9c73cc3f3bded74b562bfb19fb84\
        022f8ef4cdd93795d77d06edbb7aaf2f58891850abbdca3d20398c276456cbc4\
        2158407dd074ee";
    const CLIENT_CRYPTO: &str = "060040f1010000ed0303ebf8fa56f12939b9584a3896472ec40bb863cfd3e868\
        04fe3a47f06a2b69484c00000413011302010000c000000010000e00000b6578\
        616d706c652e636f6dff01000100000a00080006001d00170018001000070005\
        04616c706e000500050100000000003300260024001d00209370b2c9caa47fba\
        baf4559fedba753de171fa71f50f1ce15d43e994ec74d748002b000302030400\
        0d0010000e0403050306030203080408050806002d00020101001c0002400100\
        3900320408ffffffffffffffff05048000ffff07048000ffff08011001048000\
        75300901100f088394c8f03e51570806048000ffff";
    const RETRY: &str = "ff000000010008f067a5502a4262b5746f6b656e04a265ba2eff4d829058fb3f0f2496ba";

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<char> = text.chars().filter(char::is_ascii_hexdigit).collect();
        let pair = |p: &[char]| u8::from_str_radix(&p.iter().collect::<String>(), 16).unwrap();
        digits.chunks(2).map(pair).collect()
    }

    fn as_initial(datagram: &[u8]) -> Initial<'_> {
        match packet(datagram) {
            Ok((Packet::Initial(initial), _)) => initial,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn packets_of_rfc_9001_are_opened() {
        let keys = InitialKeys::new(&ORIGINAL);
        let datagram = hex(SERVER_INITIAL);
        let sent = as_initial(&datagram);
        let (number, payload) = sent.open(&keys.server, None).unwrap();
        assert_eq!((number, sent.destination, sent.source), (1, &[][..], &datagram[7..15]));
        let (frames, Ok(())) = frames(&payload) else { panic!("{payload:?}") };
        let [Frame::Ack(0), Frame::Crypto(0, data)] = frames[..] else { panic!("{frames:?}") };
        let mut handshakes = Handshakes::default();
        handshakes.push(data);
        let message = handshakes.message().unwrap().unwrap();
        assert_eq!(message.kind, HandshakeType::SERVER_HELLO);
        let hello = ServerHello::parse(message.body()).unwrap();
        assert_eq!((hello.version, hello.suite), (0x0304, 0x1301));
        assert_eq!(hello.key_share().map(|(group, _)| group), Some(0x001d));

        assert!(sent.open(&keys.client, None).is_none(), "not the client's");
        for i in 0..datagram.len() {
            let mut forged = datagram.clone();
            forged[i] ^= 1;
            if let Ok((Packet::Initial(forged), _)) = packet(&forged) {
                assert!(forged.open(&keys.server, None).is_none(), "{i}");
            }
        }
    }

    #[test]
    fn our_initial_is_that_of_rfc_9001() {
        let keys = InitialKeys::new(&ORIGINAL);
        let header = Header { destination: &ORIGINAL, source: &[], token: &[], number: 2 };
        let frame = hex(CLIENT_CRYPTO);
        let sent = initial(&keys.client, header, &frame);
        assert_eq!(sent.len(), MIN_DATAGRAM);
        assert_eq!(sent[..24], hex("c000000001088394c8f03e5157080000449e7b9aec34d1b1"));
        assert_eq!(sent[1184..], hex("e221af44860018ab0856972e194cd934"));
        let (number, payload) = as_initial(&sent).open(&keys.client, Some(1)).unwrap();
        assert_eq!((number, &payload[..frame.len()]), (2, &frame[..]));
        let hello = ClientHello::parse(&frame[4..]).unwrap();
        assert!(hello.extensions.iter().any(|e| e.0 == extension::QUIC_TRANSPORT_PARAMETERS));
    }

    #[test]
    fn a_retry_requires_a_valid_tag() {
        let datagram = hex(RETRY);
        let Ok((Packet::Retry(sent), [])) = packet(&datagram) else { panic!() };
        assert_eq!((sent.token, sent.verify(&ORIGINAL)), (&b"token"[..], true));
        assert!(!sent.verify(&ORIGINAL[1..]));
        let made = retry(&ORIGINAL, &[], sent.source, b"token");
        let Ok((Packet::Retry(made), _)) = packet(&made) else { panic!() };
        assert!(made.verify(&ORIGINAL));
    }

    #[test]
    fn a_datagram_has_several_packets_up_to_one_of_another_version() {
        let mut two = hex(SERVER_INITIAL);
        two.extend(hex("e0000000010000021234"));
        two.extend([0x40, 1, 2]);
        let (_, rest) = packet(&two).unwrap();
        let (Packet::Other, rest) = packet(rest).unwrap() else { panic!() };
        assert_eq!(packet(rest), Ok((Packet::Other, &[][..])));

        let negotiation = hex("80000000000102020304000000016b3343cf");
        let (Packet::VersionNegotiation(found), _) = packet(&negotiation).unwrap() else {
            panic!()
        };
        assert_eq!(found.destination, [2]);
        assert_eq!((found.source, &found.versions[..]), (&[3, 4][..], &[1, 0x6b3343cf][..]));
        assert!(packet(&negotiation[..negotiation.len() - 1]).is_err());
        assert_eq!(packet(&hex("c06b3343d00000")), Ok((Packet::Other, &[][..])));
    }

    #[test]
    fn a_handshake_is_assembled_from_pieces_in_any_order() {
        let mut crypto = Crypto::default();
        crypto.push(4, b"o wo").unwrap();
        crypto.push(6, b"world").unwrap();
        assert_eq!(crypto.read(), b"");
        crypto.push(0, b"hell").unwrap();
        crypto.push(0, b"hello").unwrap();
        assert_eq!(crypto.read(), b"hello world");
        crypto.push(2, b"LLO WORLD").unwrap();
        assert_eq!(crypto.read(), b"");

        assert!(crypto.push(MAX_CRYPTO, b"x").is_err());
        assert!(crypto.push(u64::MAX, b"x").is_err());
        let full = (0..1000).find(|n| crypto.push(100 + 2 * n, b"x").is_err());
        assert_eq!(full, Some(MAX_PIECES as u64));
    }

    #[test]
    fn frames_and_numbers_are_limited_by_the_input() {
        // RFC 9000 appendices A.1 and A.3.
        for (bytes, n) in [
            ("c2197c5eff14e88c", 151_288_809_941_952_652),
            ("9d7f3e7d", 494_878_333),
            ("7bbd", 15_293),
            ("25", 37),
        ] {
            let (bytes, mut out) = (hex(bytes), Vec::new());
            assert_eq!(varint(&mut Reader::new(&bytes)), Ok(n));
            put_varint(&mut out, n);
            assert_eq!(out, bytes);
        }
        assert_eq!(whole_number(Some(0xa82f30ea), 0x9b32, 16), 0xa82f9b32);
        assert_eq!(whole_number(None, 0, 32), 0);

        let many_ranges = hex("0200 00 ffffffffffffffff 00");
        assert!(frames(&many_ranges).1.is_err());
        let close = Frame::Close { code: 0x178, reason: b"no" };
        let mut bytes = Vec::new();
        close.write(&mut bytes);
        bytes.extend([0, 0, 8]);
        let (found, end) = frames(&bytes);
        assert_eq!((found, end.is_err()), (vec![close], true));
    }
}
