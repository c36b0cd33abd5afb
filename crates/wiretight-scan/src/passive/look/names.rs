//! DNS (RFC 1035) and what has its format: mDNS (RFC 6762), LLMNR (RFC 4795), NBNS (RFC 1002).

use super::{Opening, Verdict, plaintext};
use crate::parse::{Malformed, Reader};
use crate::passive::Grade;

/// Over UDP. Each datagram is a message.
pub(super) fn udp(opening: &Opening<'_>) -> Verdict {
    let [first, second] = opening.halves();
    let Some(datagram) = first.datagrams().next() else { return Verdict::No };
    let Some(message) = message(datagram) else { return Verdict::No };
    let answer = second.datagrams().next().and_then(self::message);
    let answered =
        answer.is_some_and(|answer| answer.id == message.id && answer.response != message.response);
    name(opening, &message, answered)
}

/// Over TCP, each message follows its length (RFC 1035, section 4.2.2).
pub(super) fn tcp(opening: &Opening<'_>) -> Verdict {
    let [first, second] = opening.halves();
    match (tcp_message(first.bytes), tcp_message(second.bytes)) {
        (Framed::No, _) | (_, Framed::No) | (Framed::Partial, Framed::Message(_)) => Verdict::No,
        (Framed::Partial, Framed::Partial) if first.bytes.len() < 2 => Verdict::No,
        (Framed::Partial, Framed::Partial) => Verdict::Maybe,
        (Framed::Message(message), Framed::Message(answer)) => match answer.id == message.id {
            true => name(opening, &message, true),
            false => Verdict::No,
        },
        (Framed::Message(message), Framed::Partial) if opening.last || second.ended => {
            name(opening, &message, false)
        }
        (Framed::Message(_), Framed::Partial) => Verdict::Maybe,
    }
}

fn name(opening: &Opening<'_>, message: &Message, answered: bool) -> Verdict {
    let protocol = match () {
        () if message.netbios || opening.has_port(137) => "nbns",
        () if opening.has_port(5353) => "mdns",
        () if opening.has_port(5355) => "llmnr",
        () => "dns",
    };
    // A header alone fits too much.
    if message.records == 0 && !answered && !opening.has_port(53) {
        return Verdict::No;
    }
    let what = match message.response {
        true => "a response",
        false => "a query",
    };
    let sure = answered || message.complete && message.records > 0;
    plaintext(protocol, if sure { Grade::Seen } else { Grade::Guessed }, what)
}

/// What a message says of itself.
struct Message {
    id: u16,
    response: bool,
    records: usize,
    /// Whether it ends where its records end.
    complete: bool,
    /// Whether its name is NetBIOS's.
    netbios: bool,
}

enum Framed {
    No,
    Partial,
    Message(Message),
}

fn tcp_message(data: &[u8]) -> Framed {
    let mut reader = Reader::new(data);
    let Ok(len) = reader.u16() else { return Framed::Partial };
    if len < 12 {
        return Framed::No;
    }
    match reader.take(len.into()) {
        Ok(content) => {
            message(content).filter(|m| m.records > 0).map_or(Framed::No, Framed::Message)
        }
        // A large answer, of which the question was captured.
        Err(_) if reader.rest().len() >= 12 => match message(reader.rest()) {
            Some(message) if message.records > 0 => Framed::Message(message),
            _ => Framed::No,
        },
        Err(_) => match reader.rest() {
            [] | [_] | [_, _] => Framed::Partial,
            // Flags that are in use, and at most one question in the first two bytes of its count.
            [_, _, flags, rest @ ..] => {
                let fits = matches!(flags >> 3 & 15, 0 | 1 | 2 | 4 | 5)
                    && matches!(rest.get(1), None | Some(0));
                if fits { Framed::Partial } else { Framed::No }
            }
        },
    }
}

/// A message whose sections can be read; `None` if it is something else.
fn message(data: &[u8]) -> Option<Message> {
    let mut reader = Reader::new(data);
    let id = reader.u16().ok()?;
    let flags = reader.u16().ok()?;
    let opcode = flags >> 11 & 15;
    let counts = [reader.u16().ok()?, reader.u16().ok()?, reader.u16().ok()?, reader.u16().ok()?];
    let response = flags & 0x8000 != 0;
    // 3 is not assigned; 6 to 9 and 15 are NetBIOS's.
    if matches!(opcode, 3 | 10..=14) || counts.iter().any(|count| *count > 512) {
        return None;
    }
    if !response && (flags & 0x000f != 0 || counts[0] == 0 && opcode != 6 && counts[1] == 0) {
        return None;
    }
    let mut message = Message { id, response, records: 0, complete: true, netbios: false };
    for _ in 0..counts[0] {
        let question = |reader: &mut Reader<'_>| -> Result<(bool, u16), Malformed> {
            let netbios = owner(reader)?;
            reader.u16()?;
            Ok((netbios, reader.u16()?))
        };
        let (netbios, class) = match question(&mut reader) {
            Ok(question) => question,
            Err(Malformed("truncated")) if message.records > 0 => return Some(partly(message)),
            Err(_) => return None,
        };
        if !is_class(class) {
            return None;
        }
        message.netbios |= netbios;
        message.records += 1;
    }
    for _ in 0..counts[1..].iter().map(|count| usize::from(*count)).sum() {
        let record = |reader: &mut Reader<'_>| -> Result<(bool, u16, u16), Malformed> {
            let netbios = owner(reader)?;
            let kind = reader.u16()?;
            let class = reader.u16()?;
            reader.u32()?;
            reader.vec16()?;
            Ok((netbios, kind, class))
        };
        match record(&mut reader) {
            Ok((netbios, kind, class)) => {
                // In OPT, it is a size (RFC 6891).
                if kind != 41 && !is_class(class) {
                    return None;
                }
                message.netbios |= netbios;
                message.records += 1;
            }
            // Cut by the capture, or by the sender.
            Err(_) if message.records > 0 => {
                return Some(partly(message));
            }
            Err(_) => return None,
        }
    }
    if opcode > 5 && !message.netbios {
        return None;
    }
    message.complete = reader.is_empty();
    // What follows the records is no part of a DNS message.
    (reader.rest().len() <= 64).then_some(message)
}

fn partly(message: Message) -> Message {
    Message { complete: false, ..message }
}

fn is_class(class: u16) -> bool {
    // With mDNS's highest bit; 0 is used in some updates.
    matches!(class & 0x7fff, 1 | 3 | 4 | 254 | 255)
}

/// Skips a name; whether it is a NetBIOS name in its first level of encoding (RFC 1001, section 14.1).
fn owner(reader: &mut Reader<'_>) -> Result<bool, Malformed> {
    let mut total = 0;
    let mut netbios = false;
    loop {
        let len = reader.u8()?;
        match len {
            0 => return Ok(netbios),
            1..=63 => {
                let label = reader.take(len.into())?;
                netbios |=
                    total == 0 && len == 32 && label.iter().all(|b| (b'A'..=b'P').contains(b));
                total += 1 + usize::from(len);
                if total > 255 {
                    return Err(Malformed("a name that is too long"));
                }
            }
            0xc0.. => {
                reader.u8()?;
                return Ok(netbios);
            }
            _ => return Err(Malformed("a label type that is not assigned")),
        }
    }
}
