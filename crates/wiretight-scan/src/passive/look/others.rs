//! Desktops, application servers, debuggers, peers.

use super::text::begins;
use super::{Opening, Verdict, plaintext, quoted, tls_within, undetermined};
use crate::parse::starttls::{Parsed, line};
use crate::passive::{Grade, Seen};

fn big(a: u8, b: u8) -> usize {
    usize::from(u16::from_be_bytes([a, b]))
}

// ---- VNC (RFC 6143).

pub(super) fn rfb(opening: &Opening<'_>) -> Verdict {
    const VERSION: usize = 12;
    let (client, server) = (opening.client.bytes, opening.server.bytes);
    let version = |data: &[u8]| match data {
        [b'R', b'F', b'B', b' ', a, b, c, b'.', d, e, f, b'\n', ..] => {
            [a, b, c, d, e, f].iter().all(|digit| digit.is_ascii_digit()).then_some([*d, *e, *f])
        }
        _ => None,
    };
    if !begins(server, b"RFB ")
        || !begins(client, b"RFB ")
        || (client.is_empty() && server.is_empty())
    {
        return Verdict::No;
    }
    let complete = opening.last || (opening.client.ended && opening.server.ended);
    let (Some(offered), Some(chosen)) = (version(server), version(client)) else {
        return match version(server).or(version(client)) {
            Some(_) if complete => {
                undetermined("vnc", Grade::Guessed, "RFB; the security type was not seen")
            }
            Some(_) => Verdict::Maybe,
            None if !complete && client.len().max(server.len()) < VERSION => Verdict::Maybe,
            None => Verdict::No,
        };
    };
    let types = match server.get(VERSION) {
        // In version 3.3, the server decides.
        Some(_) if chosen.min(offered) < *b"007" => {
            return match server.get(VERSION..VERSION + 4) {
                Some([0, 0, 0, kind]) => security(*kind),
                _ if complete => {
                    undetermined("vnc", Grade::Seen, "RFB; the security type was not seen")
                }
                _ => Verdict::Maybe,
            };
        }
        Some(0) => return plaintext("vnc", Grade::Seen, "RFB; the server refused"),
        Some(count) => usize::from(*count),
        None if complete => {
            return undetermined("vnc", Grade::Seen, "RFB; the security type was not seen");
        }
        None => return Verdict::Maybe,
    };
    let (client_used, server_used) = (VERSION + 1, VERSION + 1 + types);
    match client.get(VERSION) {
        // TLS, and VeNCrypt, whose subtype follows.
        Some(18) => within(opening, client_used, server_used),
        Some(19) => vencrypt(opening, client_used, server_used),
        Some(kind) => security(*kind),
        None if complete => undetermined("vnc", Grade::Seen, "RFB; the security type was not seen"),
        None => Verdict::Maybe,
    }
}

/// IANA, Remote Framebuffer security types.
fn security(kind: u8) -> Verdict {
    match kind {
        0 => plaintext("vnc", Grade::Seen, "RFB; the server refused"),
        1 => plaintext("vnc", Grade::Seen, "RFB without authentication"),
        2 => plaintext("vnc", Grade::Seen, "RFB with VNC authentication, and no encryption"),
        16 => plaintext("vnc", Grade::Seen, "RFB with Tight authentication, and no encryption"),
        // Apple's hides the password only.
        30 => plaintext("vnc", Grade::Seen, "RFB with Apple authentication, and no encryption"),
        _ => undetermined("vnc", Grade::Seen, format!("RFB with security type {kind}")),
    }
}

fn within(opening: &Opening<'_>, client: usize, server: usize) -> Verdict {
    match tls_within(&opening.after(client, server)) {
        Verdict::Done(seen) => Verdict::Done(Seen { protocol: "vnc".into(), ..seen }),
        Verdict::Maybe if !opening.last => Verdict::Maybe,
        _ if !opening.last && opening.client.bytes.len() <= client => Verdict::Maybe,
        _ => undetermined("vnc", Grade::Seen, "RFB with TLS; its handshake was not seen"),
    }
}

/// Both versions, an acknowledgment, subtypes, the chosen one, and an acknowledgment.
fn vencrypt(opening: &Opening<'_>, client: usize, server: usize) -> Verdict {
    let chosen = opening.client.bytes.get(client + 2..client + 6);
    let count = opening.server.bytes.get(server + 3).copied().map(usize::from);
    match (chosen, count) {
        (Some([0, 0, 1, 0]), Some(_)) => plaintext("vnc", Grade::Seen, "VeNCrypt without TLS"),
        (Some(_), Some(count)) => within(opening, client + 6, server + 4 + 4 * count + 1),
        _ if opening.last => undetermined("vnc", Grade::Seen, "VeNCrypt; the subtype was not seen"),
        _ => Verdict::Maybe,
    }
}

// ---- X11, rlogin.

pub(super) fn x11(opening: &Opening<'_>) -> Verdict {
    let client = match *opening.client.bytes {
        [] => return Verdict::No,
        [b'l', 0, 11, 0, 0, 0, n, 0, d, 0, 0, 0, ..]
        | [b'B', 0, 0, 11, 0, 0, 0, n, 0, d, 0, 0, ..] => {
            (n == 0 && d == 0)
                || opening
                    .client
                    .bytes
                    .get(12..14)
                    .is_none_or(|name| name.iter().all(u8::is_ascii_graphic))
        }
        [b'l' | b'B'] | [b'l' | b'B', 0] if !opening.last => return Verdict::Maybe,
        _ => false,
    };
    let server = match *opening.server.bytes {
        [0..=2, _, 11, 0, 0, 0, ..] | [0..=2, _, 0, 11, 0, 0, ..] => Some(true),
        [] => None,
        _ => Some(opening.server.bytes.len() < 6),
    };
    match (client, server) {
        (true, Some(true)) => plaintext("x11", Grade::Seen, "X11 connection setup"),
        (true, None) if opening.last => plaintext("x11", Grade::Guessed, "X11 connection setup"),
        (true, None) => Verdict::Maybe,
        _ => Verdict::No,
    }
}

/// rlogin (RFC 1282): a zero, both users, the terminal.
pub(super) fn rlogin(opening: &Opening<'_>) -> Verdict {
    let client = opening.client.bytes;
    if client.first() != Some(&0) || client.len() < 2 {
        return Verdict::No;
    }
    let mut parts = client.get(1..).unwrap_or_default().split(|b| *b == 0);
    let name = |part: Option<&[u8]>| {
        part.is_some_and(|text| !text.is_empty() && text.iter().all(u8::is_ascii_graphic))
    };
    let users = name(parts.next()) && name(parts.next());
    let terminal = parts.next().unwrap_or_default();
    let speed = terminal.rsplit(|b| *b == b'/').next().unwrap_or_default();
    let fits = users
        && terminal.contains(&b'/')
        && !speed.is_empty()
        && speed.iter().all(u8::is_ascii_digit);
    match fits && matches!(opening.server.bytes.first(), None | Some(0)) {
        true => plaintext("rlogin", Grade::Seen, "the beginning of rlogin"),
        false => Verdict::No,
    }
}

// ---- Application servers, debuggers.

/// AJP 1.3: a magic number, a length, a type.
pub(super) fn ajp(opening: &Opening<'_>) -> Verdict {
    let client = match *opening.client.bytes {
        [0x12, 0x34, h, l, kind @ (2 | 7 | 8 | 10), ..] => {
            let len = big(h, l);
            (kind != 2
                || opening
                    .client
                    .bytes
                    .get(5)
                    .is_some_and(|method| (1..=27).contains(method) || *method == 0xff))
                && (1..=8192).contains(&len)
        }
        [0x12, 0x34, ..] => false,
        [] => true,
        _ => return Verdict::No,
    };
    let server = matches!(*opening.server.bytes, [b'A', b'B', _, _, 3..=6 | 9, ..]);
    match (client, server, opening.server.bytes.is_empty()) {
        (true, true, _) => plaintext("ajp", Grade::Seen, "AJP 1.3"),
        (true, false, true) if !opening.client.bytes.is_empty() && opening.last => {
            plaintext("ajp", Grade::Guessed, "AJP 1.3")
        }
        (true, false, true) if !opening.client.bytes.is_empty() => Verdict::Maybe,
        _ => Verdict::No,
    }
}

/// FastCGI: BEGIN_REQUEST with a role.
pub(super) fn fastcgi(opening: &Opening<'_>) -> Verdict {
    match *opening.client.bytes {
        [1, 1, _, _, 0, 8, _, 0, 0, 1..=3, 0 | 1, 0, 0, 0, 0, 0, ..] => {
            plaintext("fastcgi", Grade::Seen, "BEGIN_REQUEST of FastCGI")
        }
        [1, 9, 0, 0, ..] if opening.client.bytes.windows(5).any(|part| part == b"FCGI_") => {
            plaintext("fastcgi", Grade::Seen, "GET_VALUES of FastCGI")
        }
        _ => Verdict::No,
    }
}

pub(super) fn rmi(opening: &Opening<'_>) -> Verdict {
    match *opening.client.bytes {
        [b'J', b'R', b'M', b'I', 0, 1 | 2, 0x4b..=0x4d, ..] => {
            plaintext("rmi", Grade::Seen, "the header of Java RMI")
        }
        _ => Verdict::No,
    }
}

pub(super) fn jdwp(opening: &Opening<'_>) -> Verdict {
    const HELLO: &[u8] = b"JDWP-Handshake";
    let first = opening.halves()[0].bytes;
    match (begins(first, HELLO), first.len() >= HELLO.len()) {
        (true, true) => plaintext("jdwp", Grade::Seen, "JDWP-Handshake"),
        (true, false) if first.len() >= 4 && !opening.last => Verdict::Maybe,
        _ => Verdict::No,
    }
}

/// CORBA (GIOP): a magic number, a version, a byte order, a type.
pub(super) fn giop(opening: &Opening<'_>) -> Verdict {
    match *opening.halves()[0].bytes {
        [b'G', b'I', b'O', b'P', 1, 0..=3, 0..=7, 0..=7, ..] => {
            plaintext("giop", Grade::Seen, "a message of CORBA")
        }
        [b'Z', b'I', b'O', b'P', 1, 0..=3, ..] => {
            plaintext("giop", Grade::Seen, "a compressed message of CORBA")
        }
        _ => Verdict::No,
    }
}

// ---- Storage, and peers.

/// Ceph's messenger: version 1 is in the clear; version 2 decides later.
pub(super) fn ceph(opening: &Opening<'_>) -> Verdict {
    let first = opening.halves()[0].bytes;
    match first {
        [b'c', b'e', b'p', b'h', b' ', b'v', b'0'..=b'9', b'0'..=b'9', b'0'..=b'9', ..] => {
            plaintext("ceph", Grade::Seen, quoted(first.get(..9).unwrap_or_default()))
        }
        [b'c', b'e', b'p', b'h', b' ', b'v', b'2', b'\n', ..] => {
            undetermined("ceph", Grade::Seen, "Ceph's messenger 2: its mode was not seen")
        }
        _ => Verdict::No,
    }
}

/// Bitcoin: a network's magic number, a command padded with zeros, a length.
pub(super) fn bitcoin(opening: &Opening<'_>) -> Verdict {
    let first = opening.halves()[0].bytes;
    let (
        Some([0xf9, 0xbe, 0xb4, 0xd9] | [0x0b, 0x11, 0x09, 0x07] | [0xfa, 0xbf, 0xb5, 0xda]),
        Some(command),
    ) = (first.first_chunk::<4>(), first.get(4..16))
    else {
        return Verdict::No;
    };
    let word = command.split(|b| *b == 0).next().unwrap_or_default();
    let padded = command.get(word.len()..).is_some_and(|rest| rest.iter().all(|b| *b == 0));
    match padded && !word.is_empty() && word.iter().all(u8::is_ascii_lowercase) {
        true => plaintext("bitcoin", Grade::Seen, format!("a {} message", quoted(word))),
        false => Verdict::No,
    }
}

/// AFP's session layer (DSI): a command of 1 to 8, a request ID, lengths, and 0.
pub(super) fn afp(opening: &Opening<'_>) -> Verdict {
    let header = |data: &[u8], direction: u8| match *data {
        [flags, command @ 1..=8, _, _, _, _, _, _, _, _, _, _, 0, 0, 0, 0, ..] => {
            (flags == direction).then_some((command, [data[2], data[3]]))
        }
        _ => None,
    };
    match (header(opening.client.bytes, 0), header(opening.server.bytes, 1)) {
        (Some(said), Some(answered)) if said == answered => {
            plaintext("afp", Grade::Seen, "sessions of AFP")
        }
        (Some(_), None)
            if opening.server.bytes.is_empty() && !opening.last && opening.has_port(548) =>
        {
            Verdict::Maybe
        }
        _ => Verdict::No,
    }
}

/// TeamSpeak, game queries and others in UDP that begin with a word.
pub(super) fn game_query(opening: &Opening<'_>) -> Verdict {
    let datagram = opening.halves()[0].datagrams().next().unwrap_or_default();
    match datagram.strip_prefix(b"\xff\xff\xff\xff") {
        Some(text) if text.starts_with(b"TSource Engine Query\0") => {
            plaintext("a2s", Grade::Seen, "a query of a game server")
        }
        _ => Verdict::No,
    }
}

/// Skinny (SCCP): a length, a reserved word, a message ID.
pub(super) fn skinny(opening: &Opening<'_>) -> Verdict {
    if !opening.has_port(2000) {
        return Verdict::No;
    }
    let header = |data: &[u8]| match *data {
        [l1, l2, 0, 0, v, 0, 0, 0, m1, m2, 0, 0, ..] => {
            let len = usize::from(u16::from_le_bytes([l1, l2]));
            let id = u16::from_le_bytes([m1, m2]);
            (4..=4096).contains(&len) && v <= 0x20 && (id <= 0x60 || (0x81..=0x165).contains(&id))
        }
        _ => false,
    };
    match (header(opening.client.bytes), header(opening.server.bytes)) {
        (true, true) => plaintext("skinny", Grade::Seen, "messages of SCCP"),
        (true, false) | (false, true) if opening.last => {
            plaintext("skinny", Grade::Guessed, "messages of SCCP")
        }
        _ => Verdict::No,
    }
}

/// The first line of a protocol that says its name there: what it is is not known, that it is text is.
pub(super) fn teamspeak(opening: &Opening<'_>) -> Verdict {
    match line(opening.server.bytes) {
        Parsed::Whole(b"TS3" | b"TS3\r", _) => {
            plaintext("teamspeak", Grade::Seen, "TeamSpeak's server query")
        }
        _ => Verdict::No,
    }
}
