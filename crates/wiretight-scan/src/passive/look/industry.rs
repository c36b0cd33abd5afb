//! Protocols of industrial control and buildings. None of these messages is encrypted; OPC UA can be.

use super::brokers::{dialogue, parsed};
use super::{Half, Opening, Verdict, plaintext, quoted, undetermined};
use crate::parse::Reader;
use crate::passive::{Grade, Transport};

fn big(a: u8, b: u8) -> usize {
    usize::from(u16::from_be_bytes([a, b]))
}

/// Messages with a length, one after the other, to the end of what was captured. The number of complete ones, `None` if
/// one does not fit. `len` gives the length of the message at the beginning: 0 if it is none.
fn chain(data: &[u8], len: impl Fn(&[u8]) -> Option<usize>) -> Option<usize> {
    let (mut rest, mut count) = (data, 0);
    while !rest.is_empty() && count < 8 {
        match len(rest) {
            Some(0) => return None,
            Some(used) if used <= rest.len() => {
                rest = rest.get(used..)?;
                count += 1;
            }
            _ => break,
        }
    }
    Some(count)
}

/// The answer of a chain of messages for both sides.
fn chains(
    opening: &Opening<'_>,
    protocol: &'static str,
    what: &'static str,
    len: impl Fn(&[u8]) -> Option<usize>,
) -> Verdict {
    match (chain(opening.client.bytes, &len), chain(opening.server.bytes, &len)) {
        (None, _) | (_, None) | (Some(0), Some(0)) => Verdict::No,
        (Some(client), Some(server)) if client > 0 && server > 0 => {
            plaintext(protocol, Grade::Seen, what)
        }
        (Some(count), _) | (_, Some(count)) if count >= 3 => {
            plaintext(protocol, Grade::Guessed, what)
        }
        _ if opening.last || (opening.client.ended && opening.server.ended) => {
            plaintext(protocol, Grade::Guessed, what)
        }
        _ => Verdict::Maybe,
    }
}

/// Modbus/TCP: a transaction, protocol 0, a length, a unit, a function.
pub(super) fn modbus(opening: &Opening<'_>) -> Verdict {
    let len = |data: &[u8]| match *data {
        [_, _, 0, 0, 0, len @ 2..=254, _, function, ..] => {
            let known = matches!(function & 0x7f, 1..=8 | 11 | 12 | 15..=17 | 20..=24 | 43 | 90..=92 | 100 | 125 | 126);
            let error = function & 0x80 == 0 || len == 3;
            Some(if known && error { 6 + usize::from(len) } else { 0 })
        }
        _ if data.len() < 8 => None,
        _ => Some(0),
    };
    let (client, server) = (opening.client.bytes, opening.server.bytes);
    let same = |n| client.get(n) == server.get(n);
    let fits = |half: Half<'_>| half.bytes.get(..8).is_some_and(|head| len(head) != Some(0));
    match chains(opening, "modbus", "Modbus requests and responses", len) {
        // The response repeats the transaction and the function.
        Verdict::Done(_) if fits(opening.client) && fits(opening.server) => {
            let function =
                client.get(7).zip(server.get(7)).is_some_and(|(a, b)| a & 0x7f == b & 0x7f);
            match (same(0) && same(1) && function) || opening.has_port(502) {
                true => plaintext("modbus", Grade::Seen, "Modbus requests and responses"),
                false => Verdict::No,
            }
        }
        // One side alone fits too much.
        Verdict::Done(_) if !opening.has_port(502) => Verdict::No,
        Verdict::Maybe if client.is_empty() && !opening.has_port(502) => Verdict::No,
        verdict => verdict,
    }
}

/// ISO transport over TCP (RFC 1006): S7, MMS, H.323's signalling. RDP's is recognised elsewhere.
pub(super) fn iso(opening: &Opening<'_>) -> Verdict {
    let tpkt = |data: &[u8]| match *data {
        [] => None,
        [3, 0, h, l, ..] => Some(if big(h, l) >= 7 { big(h, l) } else { 0 }),
        [3] | [3, 0] | [3, 0, _] => None,
        _ => Some(0),
    };
    let (client, server) = (opening.client.bytes, opening.server.bytes);
    if chain(client, tpkt).is_none()
        || chain(server, tpkt).is_none()
        || opening.halves()[0].bytes.len() < 5
    {
        return Verdict::No;
    }
    let mut connects = false;
    for data in [client, server] {
        let mut rest = data;
        while let [3, 0, h, l, body @ ..] = rest {
            let len = big(*h, *l);
            match *body {
                // Data: the end of a unit, and what it carries.
                [2, 0xf0, 0x80, 0x32, 1 | 2 | 3 | 7, 0, 0, ..] => {
                    return plaintext("s7comm", Grade::Seen, "S7 communication");
                }
                [2, 0xf0, 0x80, 0x72, 1..=3, ..] => {
                    return plaintext("s7comm-plus", Grade::Seen, "S7 communication plus");
                }
                [2, 0xf0, 0x80, ref session @ ..] if is_mms(session) => {
                    return plaintext("mms", Grade::Seen, "MMS (ISO 9506)");
                }
                [_, 0xe0 | 0xd0, ..] => connects = true,
                // Q.931: a call reference, and a message that it knows.
                [8, 1 | 2, _, ..] if is_q931(body) => {
                    return plaintext("h323", Grade::Seen, "H.225 call signalling");
                }
                _ => {}
            }
            rest = rest.get(len.max(4)..).unwrap_or_default();
        }
    }
    match connects && !opening.last && client.len() < 512 {
        true => Verdict::Maybe,
        false => Verdict::No,
    }
}

fn is_mms(session: &[u8]) -> bool {
    // A session's CONNECT or ACCEPT with MMS's object identifier, or its data.
    let oid = [0x28, 0xca, 0x22, 0x02];
    match session {
        [0x0d | 0x0e, ..] => session.windows(4).any(|part| part == oid),
        [1, 0, 1, 0, 0x61, ..] => true,
        _ => false,
    }
}

fn is_q931(body: &[u8]) -> bool {
    let [_, size, rest @ ..] = body else { return false };
    matches!(
        rest.get(usize::from(*size)),
        Some(0x01 | 0x02 | 0x03 | 0x05 | 0x07 | 0x0d | 0x5a | 0x62 | 0x6e | 0x75 | 0x7b | 0x7d)
    )
}

/// DNP3: a header with its checksum (IEEE 1815).
pub(super) fn dnp3(opening: &Opening<'_>) -> Verdict {
    match opening.halves()[0].bytes {
        [5, 0x64, 5..=255, ..] => {}
        [5] | [5, 0x64] if !opening.last => return Verdict::Maybe,
        _ => return Verdict::No,
    }
    let header = opening.halves()[0].bytes;
    let (Some(covered), Some([low, high])) = (header.get(..8), header.get(8..10)) else {
        return if opening.last { Verdict::No } else { Verdict::Maybe };
    };
    match dnp3_checksum(covered) == u16::from_le_bytes([*low, *high]) {
        true => plaintext("dnp3", Grade::Seen, "a frame of DNP3"),
        false => Verdict::No,
    }
}

fn dnp3_checksum(data: &[u8]) -> u16 {
    !data.iter().fold(0u16, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte), |crc, _| match crc & 1 {
            1 => crc >> 1 ^ 0xa6bc,
            _ => crc >> 1,
        })
    })
}

/// IEC 60870-5-104.
pub(super) fn iec104(opening: &Opening<'_>) -> Verdict {
    let len = |data: &[u8]| match *data {
        [] => None,
        [0x68, len @ 4..=253, control, ..] => {
            let fits = match control & 3 {
                // Unnumbered: exactly one function.
                3 => len == 4 && data.get(3..6).is_none_or(|rest| rest == [0, 0, 0]) && (control >> 2).count_ones() == 1,
                1 => len == 4 && control == 1,
                _ => len >= 10 && data.get(6).is_none_or(|kind| matches!(kind, 1..=40 | 45..=51 | 58..=64 | 70 | 100..=107 | 110..=113 | 120..=127)),
            };
            Some(if fits { 2 + usize::from(len) } else { 0 })
        }
        [0x68] | [0x68, _] => None,
        _ => Some(0),
    };
    chains(opening, "iec104", "IEC 60870-5-104", len)
}

/// OPC UA over TCP (OPC 10000-6, section 7): the security policy is in the first OPN.
pub(super) fn opcua(opening: &Opening<'_>) -> Verdict {
    let client = opening.client.bytes;
    match client {
        [b'H', b'E', b'L', b'F', ..]
        | [b'R', b'H', b'E', b'F', ..]
        | [b'O', b'P', b'N', b'F' | b'C', ..] => {}
        [] | [b'H'] | [b'H', b'E'] | [b'H', b'E', b'L'] if !client.is_empty() && !opening.last => {
            return Verdict::Maybe;
        }
        _ => return Verdict::No,
    }
    let mut rest = client;
    while let [a, b, c, _, l1, l2, l3, l4, body @ ..] = rest {
        let len = u32::from_le_bytes([*l1, *l2, *l3, *l4]) as usize;
        if !(8..=1 << 20).contains(&len) {
            return Verdict::No;
        }
        if [*a, *b, *c] == *b"OPN" {
            let mut reader = Reader::new(body);
            let _ = reader.u32();
            let policy = reader
                .array()
                .ok()
                .map(u32::from_le_bytes)
                .and_then(|len| reader.take(len.min(256) as usize).ok());
            return match policy {
                Some(policy) if policy.ends_with(b"#None") => {
                    plaintext("opcua", Grade::Seen, "security policy None")
                }
                // Signed, or signed and encrypted: the mode is inside of the encrypted request.
                Some(policy) => {
                    let name = policy.rsplit(|b| *b == b'#').next().unwrap_or_default();
                    undetermined("opcua", Grade::Seen, format!("security policy {}", quoted(name)))
                }
                None if !opening.last => Verdict::Maybe,
                None => undetermined("opcua", Grade::Guessed, "OPC UA"),
            };
        }
        match rest.get(len..) {
            Some(after) => rest = after,
            None => break,
        }
    }
    match opening.last {
        true => undetermined("opcua", Grade::Guessed, "OPC UA; the security policy was not seen"),
        false => Verdict::Maybe,
    }
}

/// BACnet/IP (ASHRAE 135, annex J): its length, and a network layer of version 1.
pub(super) fn bacnet(opening: &Opening<'_>) -> Verdict {
    let datagram = opening.halves()[0].datagrams().next().unwrap_or_default();
    let fits = match *datagram {
        [0x81, function, h, l, ref rest @ ..] if big(h, l) == datagram.len() => match function {
            0 => rest.len() == 2,
            1 | 3 | 5..=8 => true,
            // Forwarded: an address first.
            4 => rest.get(6) == Some(&1),
            9..=11 => rest.first() == Some(&1),
            _ => false,
        },
        _ => false,
    };
    match fits {
        true => plaintext("bacnet", Grade::Seen, "a message of BACnet/IP"),
        false => Verdict::No,
    }
}

/// EtherNet/IP: encapsulation commands.
pub(super) fn ethernet_ip(opening: &Opening<'_>) -> Verdict {
    let header = |data: &[u8]| match *data {
        [] => None,
        [c, 0, l1, l2, _, _, _, _, s1, s2, s3, s4, ..] if data.len() >= 24 => {
            let len = usize::from(u16::from_le_bytes([l1, l2]));
            let status = u32::from_le_bytes([s1, s2, s3, s4]);
            let fits = match c {
                0x04 | 0x63 | 0x64 => true,
                0x65 => len == 4,
                0x66 => len == 0,
                0x6f | 0x70 => len >= 6,
                _ => false,
            };
            let options = data.get(20..24) == Some(&[0, 0, 0, 0]);
            Some(
                fits && options
                    && (status <= 3 || (0x64..=0x6a).contains(&status))
                    && 24 + len <= data.len().max(24 + len)
                    && len < 4096,
            )
        }
        [0x04 | 0x63..=0x66 | 0x6f | 0x70, 0, ..] if data.len() < 24 => None,
        _ => Some(false),
    };
    if opening.halves()[0].bytes.len() < 4 {
        return Verdict::No;
    }
    let what = "encapsulation commands of EtherNet/IP";
    let (client, server) =
        (parsed(header(opening.client.bytes), what), parsed(header(opening.server.bytes), what));
    match dialogue(opening, "ethernet-ip", client, server) {
        Verdict::Done(seen) if seen.grade == Grade::Guessed && !opening.has_port(44818) => {
            Verdict::No
        }
        verdict => verdict,
    }
}

/// Omron FINS: in UDP a header with gateway counts, in TCP behind its name.
pub(super) fn fins(opening: &Opening<'_>) -> Verdict {
    let data = opening.halves()[0].bytes;
    let fits = match opening.transport {
        Transport::Tcp => matches!(data, [b'F', b'I', b'N', b'S', 0, 0, ..]),
        _ => {
            matches!(data, [0x80..=0x83 | 0xc0 | 0xc1, 0, 0..=7, _, _, _, _, _, _, _, 1..=0x23, 1..=0x48, ..] if opening.has_port(9600))
        }
    };
    match fits {
        true => plaintext("fins", Grade::Seen, "a command of FINS"),
        false => Verdict::No,
    }
}

/// HiSLIP (IVI-6.1): the prologue of each message.
pub(super) fn hislip(opening: &Opening<'_>) -> Verdict {
    match opening.halves()[0].bytes {
        [b'H', b'S', 0..=37, _, _, _, _, _, 0, 0, 0, 0, _, _, _, _, ..] => {
            // Version 2 can start TLS in the connection.
            match opening.client.bytes.get(2) {
                Some(0..=27) => plaintext("hislip", Grade::Guessed, "a message of HiSLIP"),
                _ => undetermined("hislip", Grade::Guessed, "a message of HiSLIP"),
            }
        }
        _ => Verdict::No,
    }
}
