//! Databases and message brokers with binary protocols.

use super::text::begins;
use super::{Opening, Verdict, plaintext, quoted, tls_within, undetermined};
use crate::parse::Reader;
use crate::parse::starttls::Parsed;
use crate::passive::{Grade, Seen};

/// A dialogue, of which each side was read by itself. One side alone is a guess, made when the other can't come.
pub(super) fn dialogue(
    opening: &Opening<'_>,
    protocol: &'static str,
    client: Parsed<&'static str>,
    server: Parsed<&'static str>,
) -> Verdict {
    let over = |half: super::Half<'_>| opening.last || half.ended;
    match (client, server) {
        (Parsed::Not(_), _) | (_, Parsed::Not(_)) => Verdict::No,
        (Parsed::Whole(what, _), Parsed::Whole(..)) => plaintext(protocol, Grade::Seen, what),
        (Parsed::Whole(what, _), Parsed::Partial) if over(opening.server) => {
            plaintext(protocol, Grade::Guessed, what)
        }
        (Parsed::Partial, Parsed::Whole(what, _)) if over(opening.client) => {
            plaintext(protocol, Grade::Guessed, what)
        }
        (Parsed::Partial, Parsed::Partial) if opening.last => Verdict::No,
        _ => Verdict::Maybe,
    }
}

const NOT: Parsed<&'static str> = Parsed::Not("another protocol");

/// From a check of what is present: `None` is that more is needed.
pub(super) fn parsed(fits: Option<bool>, what: &'static str) -> Parsed<&'static str> {
    match fits {
        Some(true) => Parsed::Whole(what, 0),
        Some(false) => NOT,
        None => Parsed::Partial,
    }
}

/// `None` if there is nothing yet.
fn some(data: &[u8]) -> Option<&[u8]> {
    (!data.is_empty()).then_some(data)
}

// ---- MongoDB (wire protocol).

pub(super) fn mongodb(opening: &Opening<'_>) -> Verdict {
    let [first, second] = opening.halves();
    let (said, answered) = (mongodb_message(first.bytes), mongodb_message(second.bytes));
    match (said, answered) {
        (Some(Some(said)), Some(Some(answered)))
            if answered.2 == said.1 || said.2 == answered.1 =>
        {
            plaintext("mongodb", Grade::Seen, "messages of MongoDB")
        }
        (Some(Some((op, ..))), None) if op == 2004 || op == 2013 => {
            match opening.last || second.ended {
                true => plaintext("mongodb", Grade::Guessed, "a message of MongoDB"),
                false => Verdict::Maybe,
            }
        }
        (None, None) if first.bytes.len() >= 8 && !opening.last => match *first.bytes {
            [_, _, 0..=4, 0, ..] => Verdict::Maybe,
            _ => Verdict::No,
        },
        _ => Verdict::No,
    }
}

/// The operation, and the IDs of the message and of the one that it answers. `None`: too short; `Some(None)`: not one.
fn mongodb_message(data: &[u8]) -> Option<Option<(u32, u32, u32)>> {
    let mut reader = Reader::new(data);
    let mut word = || reader.array().map(u32::from_le_bytes).ok();
    let (len, id, to, op) = (word()?, word()?, word()?, word()?);
    let body = reader.rest();
    let fits = match op {
        // A collection's name, or a document after the flags.
        2004 => {
            let text = body.get(4..)?;
            let end = text.iter().take(200).position(|b| *b == 0)?;
            text.get(..end)
                .is_some_and(|name| name.contains(&b'.') && name.iter().all(u8::is_ascii_graphic))
        }
        2013 => {
            let flags = body.first_chunk::<5>()?;
            flags[1] == 0
                && flags[4] <= 1
                && u32::from_le_bytes([flags[0], flags[1], 0, 0]) & 0xfffc == 0
        }
        2012 => body
            .first_chunk::<4>()
            .is_some_and(|op| matches!(u32::from_le_bytes(*op), 1 | 2001..=2013)),
        1 => to != 0 && body.len() >= 20,
        2001 | 2002 | 2005..=2007 | 2010 | 2011 => body.len() >= 4,
        _ => false,
    };
    Some((fits && (16..=48_000_000).contains(&len)).then_some((op, id, to)))
}

// ---- Kafka.

pub(super) fn kafka(opening: &Opening<'_>) -> Verdict {
    // A length, an API, its version, a correlation ID, a client ID.
    let mut reader = Reader::new(opening.client.bytes);
    let mut request =
        || Some((reader.u32().ok()?, reader.u16().ok()?, reader.u16().ok()?, reader.u32().ok()?));
    let Some((len, api, version, id)) = request() else {
        return match opening.client.bytes {
            [0, 0, ..] if !opening.last && opening.server.bytes.is_empty() => Verdict::Maybe,
            _ => Verdict::No,
        };
    };
    if api > 92 || version > 20 || !(10..=1 << 20).contains(&len) {
        return Verdict::No;
    }
    let name = match reader.u16() {
        Ok(0xffff) => &[][..],
        Ok(size @ 0..=255) if u32::from(size) + 10 <= len => match reader.take(size.into()) {
            Ok(name) if name.iter().all(|b| b.is_ascii_graphic() || *b == b' ') => name,
            _ => return Verdict::No,
        },
        _ => return Verdict::No,
    };
    // Zeros are in many headers.
    if id == 0 && name.is_empty() {
        return Verdict::No;
    }
    let mut reader = Reader::new(opening.server.bytes);
    match (reader.u32(), reader.u32()) {
        (Ok(size @ 4..=0x0fff_ffff), Ok(answer)) if answer == id => {
            let captured = opening.server.bytes.len();
            match captured >= (size as usize + 4).min(1024) {
                true => plaintext("kafka", Grade::Seen, "a request and its answer"),
                false if opening.last => Verdict::No,
                false => Verdict::Maybe,
            }
        }
        (Ok(_), Ok(_)) => Verdict::No,
        _ if !opening.last && !opening.server.ended => Verdict::Maybe,
        _ if !name.is_empty()
            && opening.client.bytes.len() == len as usize + 4
            && matches!(api, 0..=3 | 8..=18) =>
        {
            plaintext("kafka", Grade::Guessed, "a request of a Kafka client")
        }
        _ => Verdict::No,
    }
}

// ---- Cassandra (CQL).

pub(super) fn cassandra(opening: &Opening<'_>) -> Verdict {
    let side = |data: &[u8], direction: u8| {
        let [version, flags, _, _, opcode, l1, l2, l3, l4, rest @ ..] = data else {
            return match data.first() {
                None => None,
                Some(version) => (version & 0x80 != direction
                    || !(1..=6).contains(&(version & 0x7f)))
                .then_some(false),
            };
        };
        let len = u32::from_be_bytes([*l1, *l2, *l3, *l4]) as usize;
        let fits = version & 0x80 == direction
            && (3..=6).contains(&(version & 0x7f))
            && *flags <= 0x1f
            && len < 1 << 28;
        Some(
            fits && match (direction, opcode) {
                // OPTIONS, and STARTUP with its only required option.
                (0, 5) => len == 0,
                (0, 1) => rest.windows(11).any(|part| part == b"CQL_VERSION"),
                (0, 7 | 9 | 10 | 11 | 13 | 15) => len > 0 && rest.len() >= len.min(4),
                (0x80, 0 | 2 | 3 | 6 | 8 | 12 | 14 | 16) => len < 1 << 28,
                _ => false,
            },
        )
    };
    let client = parsed(side(opening.client.bytes, 0), "frames of CQL");
    let server = parsed(side(opening.server.bytes, 0x80), "frames of CQL");
    // Only the beginning of a session is particular enough.
    match (opening.client.bytes.get(4), opening.server.bytes.len()) {
        (Some(5 | 1), _) => dialogue(opening, "cassandra", client, server),
        (Some(_), 9..) => dialogue(opening, "cassandra", client, server),
        _ => match opening.client.bytes {
            [3..=6, 0, ..] if !opening.last => Verdict::Maybe,
            _ => Verdict::No,
        },
    }
}

// ---- ZooKeeper.

pub(super) fn zookeeper(opening: &Opening<'_>) -> Verdict {
    let words = [&b"ruok"[..], b"stat", b"srvr", b"mntr", b"conf", b"cons", b"envi", b"isro"];
    let client = opening.client.bytes;
    if words.contains(&client.trim_ascii_end()) && opening.has_port(2181) {
        return plaintext("zookeeper", Grade::Guessed, "a command of four letters");
    }
    // The length, protocol 0, the last zxid, a timeout, a session, a password of 16 bytes.
    let fits = |data: &[u8]| match *data {
        [0, 0, 0, 44 | 45, 0, 0, 0, 0, ..] => data.get(28..32).map(|len| len == [0, 0, 0, 16]),
        [] => None,
        _ => Some(false),
    };
    let answers = |data: &[u8]| match *data {
        [0, 0, 0, 36 | 37, 0, 0, 0, 0, ..] => data.get(20..24).map(|len| len == [0, 0, 0, 16]),
        [] => None,
        _ => Some(false),
    };
    let what = "a connect request of ZooKeeper";
    dialogue(
        opening,
        "zookeeper",
        parsed(fits(client), what),
        parsed(answers(opening.server.bytes), what),
    )
}

// ---- Elasticsearch (transport).

pub(super) fn elasticsearch(opening: &Opening<'_>) -> Verdict {
    // "ES", a length, a request ID, a status, a version.
    let fits = |data: &[u8]| match *data {
        [] => None,
        [b'E', b'S', 0, _, _, _, 0, 0, 0, 0, _, _, _, _, status, 0, a, b, c, ..] => {
            Some(status & 0xe0 == 0 && u32::from_be_bytes([0, a, b, c]) > 0)
        }
        [b'E', b'S', 0xff, 0xff, 0xff, 0xff, ..] => Some(true),
        [b'E'] | [b'E', b'S'] => None,
        [b'E', b'S', ..] if data.len() < 19 => None,
        _ => Some(false),
    };
    let what = "the transport protocol of Elasticsearch";
    let (client, server) =
        (parsed(fits(opening.client.bytes), what), parsed(fits(opening.server.bytes), what));
    dialogue(opening, "elasticsearch", client, server)
}

// ---- Oracle (TNS), DB2 (DRDA).

pub(super) fn oracle(opening: &Opening<'_>) -> Verdict {
    let client = opening.client.bytes;
    let [high, low, 0, 0, 1, _, 0, 0, v1, v2, ..] = client else { return Verdict::No };
    let len = usize::from(u16::from_be_bytes([*high, *low]));
    let version = u16::from_be_bytes([*v1, *v2]);
    let named = client.windows(12).any(|part| part == b"(DESCRIPTION");
    if !(58..=8192).contains(&len) || !(300..=330).contains(&version) {
        return Verdict::No;
    }
    match (named, opening.last) {
        // Native network encryption is negotiated later.
        (true, _) => {
            undetermined("oracle", Grade::Seen, "TNS connect; native encryption may follow")
        }
        (false, false) if client.len() < len => Verdict::Maybe,
        _ => Verdict::No,
    }
}

pub(super) fn drda(opening: &Opening<'_>) -> Verdict {
    // A DSS: its length, 0xd0, a format, a correlation; in it an object with its own length and code point.
    let fits = |data: &[u8], points: &[u16]| match *data {
        [] => None,
        [h, l, 0xd0, 1..=0x53, _, _, ih, il, p1, p2, ..] => {
            let (outer, inner) = (u16::from_be_bytes([h, l]), u16::from_be_bytes([ih, il]));
            Some(
                inner.checked_add(6) == Some(outer)
                    && points.contains(&u16::from_be_bytes([p1, p2])),
            )
        }
        [_, _, 0xd0, ..] | [_] | [_, _] => None,
        _ => Some(false),
    };
    let client =
        parsed(fits(opening.client.bytes, &[0x1041, 0x106d, 0x106e, 0x2001]), "EXCSAT of DRDA");
    let server =
        parsed(fits(opening.server.bytes, &[0x1443, 0x14ac, 0x1219, 0x2201]), "EXCSATRD of DRDA");
    if opening.client.bytes.len() < 3 {
        return Verdict::No;
    }
    dialogue(opening, "drda", client, server)
}

// ---- AMQP 0-9-1 and 1.0.

pub(super) fn amqp(opening: &Opening<'_>) -> Verdict {
    let (client, server) = (opening.client.bytes, opening.server.bytes);
    if !begins(client, b"AMQP") || client.is_empty() {
        return amqp_frames(opening);
    }
    let Some([_, _, _, _, a, b, c, d]) = client.first_chunk() else {
        return if opening.last { Verdict::No } else { Verdict::Maybe };
    };
    match [a, b, c, d] {
        [0, 0, 9, 0..=1] | [1, 1, 0, 8..=10] => {
            plaintext("amqp", Grade::Seen, "the header of AMQP 0-9")
        }
        [0 | 3, 1, 0, 0] => plaintext("amqp", Grade::Seen, "the header of AMQP 1.0"),
        // TLS follows, if the server agrees (AMQP 1.0, part 5.2).
        [2, 1, 0, 0] => {
            let answered = server.starts_with(b"AMQP\x02\x01\0\0");
            match tls_within(&opening.after(8, if answered { 8 } else { 0 })) {
                Verdict::Done(seen) => Verdict::Done(Seen { protocol: "amqp".into(), ..seen }),
                Verdict::Maybe if !opening.last => Verdict::Maybe,
                _ if !opening.last && client.len() == 8 => Verdict::Maybe,
                _ => undetermined("amqp", Grade::Seen, "AMQP 1.0 with a request for TLS"),
            }
        }
        _ => Verdict::No,
    }
}

/// Frames of AMQP 0-9-1, in a capture that began later.
fn amqp_frames(opening: &Opening<'_>) -> Verdict {
    if opening.client.from_start && !opening.client.bytes.is_empty() {
        return Verdict::No;
    }
    let frames = |data: &[u8]| {
        let mut reader = Reader::new(data);
        let mut count = 0;
        loop {
            let (Ok(kind), Ok(_), Ok(size)) = (reader.u8(), reader.u16(), reader.u32()) else {
                return Some(count);
            };
            let fits = match kind {
                1 => size >= 4,
                2 => size >= 14,
                3 => size > 0,
                8 => size == 0,
                _ => false,
            };
            if !fits || size > 1 << 20 {
                return None;
            }
            match (reader.take(size as usize), reader.u8()) {
                (Ok(_), Ok(0xce)) => count += 1,
                (Ok(_), Ok(_)) => return None,
                _ => return Some(count),
            }
        }
    };
    match (frames(opening.client.bytes), frames(opening.server.bytes)) {
        (Some(client), Some(server)) if client + server >= 2 => {
            plaintext("amqp", Grade::Seen, "frames of AMQP 0-9-1")
        }
        (Some(1), Some(0)) | (Some(0), Some(1)) if !opening.last => Verdict::Maybe,
        (Some(1), Some(0)) | (Some(0), Some(1)) => {
            plaintext("amqp", Grade::Guessed, "a frame of AMQP 0-9-1")
        }
        _ => Verdict::No,
    }
}

// ---- MQTT.

pub(super) fn mqtt(opening: &Opening<'_>) -> Verdict {
    let client = opening.client.bytes;
    let fits = match client {
        [] => None,
        [0x10, rest @ ..] => match remaining_length(rest) {
            Some((len, body)) => match body {
                [0, 4, b'M', b'Q', b'T', b'T', 3..=5, ..]
                | [0, 6, b'M', b'Q', b'I', b's', b'd', b'p', 3, ..] => Some(len >= 10),
                [] | [0] => None,
                [0, size @ (4 | 6), rest @ ..] if rest.len() <= usize::from(*size) => None,
                _ => Some(false),
            },
            None => (rest.len() >= 4).then_some(false),
        },
        _ => Some(false),
    };
    let answers = match *opening.server.bytes {
        [] => None,
        [0x20, 2, 0 | 1, 0..=5, ..] => Some(true),
        // Version 5 has properties.
        [0x20, 3..=0x7f, 0 | 1, _, ..] => Some(true),
        [0x20] | [0x20, _] | [0x20, _, 0 | 1] => None,
        _ => Some(false),
    };
    match fits {
        // CONNECT describes itself.
        Some(true) if answers != Some(false) => plaintext("mqtt", Grade::Seen, "CONNECT of MQTT"),
        None if client.is_empty() => Verdict::No,
        None if !opening.last => Verdict::Maybe,
        _ => Verdict::No,
    }
}

/// A length in groups of seven bits, and what follows it.
fn remaining_length(data: &[u8]) -> Option<(usize, &[u8])> {
    let mut len = 0;
    for (at, byte) in data.iter().enumerate().take(4) {
        len |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some((len, data.get(at + 1..)?));
        }
    }
    None
}

// ---- ZeroMQ (ZMTP 3).

pub(super) fn zmtp(opening: &Opening<'_>) -> Verdict {
    let greeting = |data: &[u8]| match *data {
        [] => None,
        [0xff, 0, 0, 0, 0, 0, 0, 0, _, 0x7f, 3, 0..=1, ..] => Some(true),
        [0xff, ref rest @ ..] if rest.len() < 11 && rest.iter().take(7).all(|b| *b == 0) => None,
        _ => Some(false),
    };
    let (client, server) = (opening.client.bytes, opening.server.bytes);
    let (says, answers) = (greeting(client), greeting(server));
    if says == Some(false) || answers == Some(false) || (client.is_empty() && server.is_empty()) {
        return Verdict::No;
    }
    let found = client.get(12..32).or_else(|| server.get(12..32));
    let Some(name) = found else {
        return if opening.last { Verdict::No } else { Verdict::Maybe };
    };
    let grade = if says == answers { Grade::Seen } else { Grade::Guessed };
    match name.split(|b| *b == 0).next().unwrap_or_default() {
        b"NULL" | b"PLAIN" => plaintext("zmtp", grade, "ZMTP without encryption"),
        name => undetermined("zmtp", grade, format!("ZMTP with mechanism {}", quoted(name))),
    }
}

// ---- Thrift.

pub(super) fn thrift(opening: &Opening<'_>) -> Verdict {
    let call = |data: &[u8]| {
        // With or without a frame's length in front.
        let data = match data {
            [0, _, _, _, 0x80 | 0x82, ..] => data.get(4..)?,
            _ => data,
        };
        let mut reader = Reader::new(data);
        let name = match reader.array::<4>().ok()? {
            [0x80, 1, 0, 1..=4] => {
                let len = reader.u32().ok()?;
                if !(1..=128).contains(&len) {
                    return Some(false);
                }
                reader.take(len as usize).ok()?
            }
            [0x82, kind, ..] if matches!(kind & 0x1f, 1) && matches!(kind >> 5, 1..=4) => {
                let mut reader = Reader::new(data.get(2..)?);
                while reader.u8().ok()? & 0x80 != 0 {}
                reader.vec8().ok()?
            }
            _ => return Some(false),
        };
        Some(
            name.len() >= 2 && name.iter().all(|b| b.is_ascii_alphanumeric() || b"_.:".contains(b)),
        )
    };
    let (client, server) = (opening.client.bytes, opening.server.bytes);
    let first = opening.halves()[0].bytes;
    if !matches!(first, [0x80, 1, 0, ..] | [0x82, _, ..] | [0, _, _, _, 0x80 | 0x82, ..]) {
        return Verdict::No;
    }
    let says = some(client).and_then(call);
    let answers = some(server).and_then(call);
    match (says, answers) {
        (Some(false), _) | (_, Some(false)) => Verdict::No,
        (Some(true), _) | (_, Some(true)) => plaintext("thrift", Grade::Seen, "a call of Thrift"),
        _ if opening.last => Verdict::No,
        _ => Verdict::Maybe,
    }
}

// ---- NBD.

pub(super) fn nbd(opening: &Opening<'_>) -> Verdict {
    const HELLO: &[u8] = b"NBDMAGICIHAVEOPT";
    const START_TLS: &[u8] = b"IHAVEOPT\0\0\0\x05\0\0\0\0";
    let (client, server) = (opening.client.bytes, opening.server.bytes);
    if server.is_empty() || !begins(server, b"NBDMAGIC") {
        return Verdict::No;
    }
    if server.len() < HELLO.len() + 2 {
        return if opening.last { Verdict::No } else { Verdict::Maybe };
    }
    if !server.starts_with(HELLO) {
        // The old style has no options.
        return plaintext("nbd", Grade::Seen, "NBD without options");
    }
    match (client.get(4..20), server.get(HELLO.len() + 2..HELLO.len() + 22)) {
        (Some(START_TLS), Some([_, _, _, _, _, _, _, _, 0, 0, 0, 5, 0, 0, 0, 1, ..])) => {
            match tls_within(&opening.after(20, HELLO.len() + 22)) {
                Verdict::Done(seen) => Verdict::Done(Seen { protocol: "nbd".into(), ..seen }),
                Verdict::Maybe if !opening.last => Verdict::Maybe,
                _ => undetermined("nbd", Grade::Seen, "NBD_OPT_STARTTLS was accepted"),
            }
        }
        (Some(START_TLS), None) | (None, _) if !opening.last => Verdict::Maybe,
        (Some(START_TLS), None) => {
            undetermined("nbd", Grade::Seen, "NBD_OPT_STARTTLS without an answer")
        }
        _ => plaintext("nbd", Grade::Seen, "options of NBD in the clear"),
    }
}

// ---- Others, by a magic number or a word.

/// Neo4j's Bolt: a magic number, and four versions.
pub(super) fn bolt(opening: &Opening<'_>) -> Verdict {
    match opening.client.bytes {
        [0x60, 0x60, 0xb0, 0x17, versions @ ..] if versions.len() >= 16 => {
            plaintext("bolt", Grade::Seen, "the handshake of Bolt")
        }
        _ => Verdict::No,
    }
}

/// ClickHouse: a hello with the client's name.
pub(super) fn clickhouse(opening: &Opening<'_>) -> Verdict {
    match opening.client.bytes {
        [0, len @ 10..=64, name @ ..] if name.starts_with(b"ClickHouse") => {
            match name
                .get(..usize::from(*len))
                .is_some_and(|name| name.iter().all(|b| (b' '..=b'~').contains(b)))
            {
                true => plaintext("clickhouse", Grade::Seen, "the hello of a ClickHouse client"),
                false => Verdict::No,
            }
        }
        _ => Verdict::No,
    }
}

/// Tarantool: a greeting of 128 bytes in two lines.
pub(super) fn tarantool(opening: &Opening<'_>) -> Verdict {
    match opening.server.bytes {
        [head @ .., b'\n']
            if head.len() == 127
                && head.starts_with(b"Tarantool ")
                && head.get(63) == Some(&b'\n') =>
        {
            plaintext("tarantool", Grade::Seen, quoted(head.get(..24).unwrap_or_default()))
        }
        _ => Verdict::No,
    }
}

/// Gearman: a magic word, a type, a length.
pub(super) fn gearman(opening: &Opening<'_>) -> Verdict {
    match *opening.client.bytes {
        [0, b'R', b'E', b'Q', 0, 0, 0, 1..=42, 0, ..] if opening.client.bytes.len() >= 12 => {
            plaintext("gearman", Grade::Seen, "a request of Gearman")
        }
        _ => Verdict::No,
    }
}

/// Redis Cluster's bus: a signature, and its length.
pub(super) fn redis_bus(opening: &Opening<'_>) -> Verdict {
    match *opening.halves()[0].bytes {
        [b'R', b'C', b'm', b'b', 0, 0, high, low, 0, 0..=1, ..] if high > 0 || low >= 16 => {
            plaintext("redis", Grade::Seen, "the bus of Redis Cluster")
        }
        _ => Verdict::No,
    }
}

/// DDS: messages of RTPS.
pub(super) fn rtps(opening: &Opening<'_>) -> Verdict {
    match *opening.halves()[0].bytes {
        // With DDS Security, submessages are encrypted one by one (0x30 to 0x34).
        [b'R', b'T', b'P', b'S', 2, 0..=9, ..] if opening.halves()[0].bytes.len() >= 24 => {
            match opening.halves()[0].bytes.get(20) {
                Some(0x30..=0x34) => undetermined("rtps", Grade::Seen, "RTPS with DDS Security"),
                _ => plaintext("rtps", Grade::Seen, "a message of RTPS"),
            }
        }
        _ => Verdict::No,
    }
}
