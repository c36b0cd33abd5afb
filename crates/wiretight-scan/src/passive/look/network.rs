//! Protocols of networks: addresses, time, management, routing, flow export, mobile networks.

use super::brokers::{dialogue, parsed};
use super::starttls::ber;
use super::{Opening, Verdict, plaintext, undetermined};
use crate::parse::Reader;
use crate::parse::starttls::Parsed;
use crate::passive::{Grade, Transport};

fn first_datagram<'a>(opening: &Opening<'a>) -> &'a [u8] {
    opening.halves()[0].datagrams().next().unwrap_or_default()
}

fn answer<'a>(opening: &Opening<'a>) -> Option<&'a [u8]> {
    opening.halves()[1].datagrams().next()
}

fn big(a: u8, b: u8) -> usize {
    usize::from(u16::from_be_bytes([a, b]))
}

// ---- Addresses.

pub(super) fn dhcp(opening: &Opening<'_>) -> Verdict {
    let datagram = first_datagram(opening);
    // BOOTP's fixed part, and DHCP's magic number (RFC 2131, section 3).
    if let ([1 | 2, 1..=40, 0..=16, ..], Some([99, 130, 83, 99])) =
        (datagram, datagram.get(236..240))
    {
        return plaintext("dhcp", Grade::Seen, "a message of DHCP");
    }
    // DHCPv6 (RFC 8415): a type, a transaction, options to the end.
    let ports = [546, 547];
    match datagram {
        [1..=11, _, _, _, rest @ ..]
            if ports.iter().any(|port| opening.has_port(*port)) && is_chain(rest) =>
        {
            plaintext("dhcp", Grade::Seen, "a message of DHCPv6")
        }
        [12 | 13, _, rest @ ..]
            if ports.iter().any(|port| opening.has_port(*port)) && rest.len() > 32 =>
        {
            plaintext("dhcp", Grade::Guessed, "a relayed message of DHCPv6")
        }
        _ => Verdict::No,
    }
}

/// Options of a code and a length of two bytes each, that end where the data ends.
fn is_chain(data: &[u8]) -> bool {
    let mut reader = Reader::new(data);
    while !reader.is_empty() {
        if reader.u16().is_err() || reader.vec16().is_err() {
            return false;
        }
    }
    !data.is_empty()
}

// ---- Time (RFC 5905, RFC 9327).

pub(super) fn ntp(opening: &Opening<'_>) -> Verdict {
    let fits = |data: &[u8]| match *data {
        // With extension fields or a MAC.
        [first, stratum, poll, ..] => {
            let (version, mode) = (first >> 3 & 7, first & 7);
            match (version, mode) {
                (1..=4, 6) => data.len() >= 12 && 12 + big(data[10], data[11]) <= data.len(),
                (2..=4, 7) => data.len() >= 8 && data.len().is_multiple_of(4),
                (1..=4, 1..=5) => {
                    data.len() >= 48
                        && data.len().is_multiple_of(4)
                        && stratum <= 16
                        && (poll <= 17 || poll >= 250)
                }
                _ => false,
            }
        }
        _ => false,
    };
    let datagram = first_datagram(opening);
    if !fits(datagram) {
        return Verdict::No;
    }
    match answer(opening) {
        // The server repeats the client's time.
        Some(answer)
            if fits(answer)
                && datagram.len() >= 48
                && answer.get(24..32) == datagram.get(40..48) =>
        {
            plaintext("ntp", Grade::Seen, "a request of NTP and its answer")
        }
        _ if opening.has_port(123) => plaintext("ntp", Grade::Guessed, "a message of NTP"),
        _ => Verdict::No,
    }
}

// ---- SNMP (RFC 1157, 3416, 3412).

pub(super) fn snmp(opening: &Opening<'_>) -> Verdict {
    let mut described = None;
    let all = opening.client.datagrams().chain(opening.server.datagrams());
    for datagram in all.take(12) {
        match snmp_message(datagram) {
            Some(Snmp::Private) => {
                return undetermined(
                    "snmp",
                    Grade::Seen,
                    "SNMPv3 with privacy; the cipher is not visible",
                );
            }
            Some(found) => described = described.or(Some(found)),
            None if described.is_none() => return Verdict::No,
            None => {}
        }
    }
    match described {
        Some(Snmp::Community) => {
            plaintext("snmp", Grade::Seen, "SNMP with a community in the clear")
        }
        // The engine is discovered without privacy.
        Some(_) if opening.last => plaintext("snmp", Grade::Seen, "SNMPv3 without privacy"),
        Some(_) => Verdict::Maybe,
        None => Verdict::No,
    }
}

#[derive(Clone, Copy)]
enum Snmp {
    Community,
    Private,
    /// Version 3 without privacy.
    Open,
}

fn snmp_message(data: &[u8]) -> Option<Snmp> {
    let Parsed::Whole((0x30, len), used) = ber(data) else { return None };
    if len + used > data.len() + 1500 || len + used < data.len() {
        return None;
    }
    let field = |data: &'_ [u8], tag: u8| match ber(data) {
        Parsed::Whole((found, len), used) if found == tag => Some((used, used + len)),
        _ => None,
    };
    let body = data.get(used..)?;
    let (start, end) = field(body, 2)?;
    let version = body.get(start..end)?;
    let rest = body.get(end..)?;
    match version {
        [0 | 1] => {
            let (_, end) = field(rest, 4)?;
            matches!(rest.get(end)?, 0xa0..=0xa8).then_some(Snmp::Community)
        }
        [3] => {
            let (start, _) = field(rest, 0x30)?;
            let header = rest.get(start..)?;
            let (_, id) = field(header, 2)?;
            let header = header.get(id..)?;
            let (_, size) = field(header, 2)?;
            match header.get(size..)? {
                [4, 1, flags, 2, 1, ..] => {
                    Some(if flags & 2 != 0 { Snmp::Private } else { Snmp::Open })
                }
                _ => None,
            }
        }
        _ => None,
    }
}

// ---- TFTP (RFC 1350, RFC 2347), RADIUS (RFC 2865), Diameter (RFC 6733).

pub(super) fn tftp(opening: &Opening<'_>) -> Verdict {
    let text = |data: &[u8]| !data.is_empty() && data.iter().all(|b| (b' '..=b'~').contains(b));
    match (first_datagram(opening), answer(opening)) {
        ([0, 1 | 2, rest @ ..], _) => {
            let mut parts = rest.split(|b| *b == 0);
            match (parts.next(), parts.next()) {
                (Some(name), Some(mode)) if text(name) && rest.last() == Some(&0) => {
                    let modes = [&b"octet"[..], b"netascii", b"mail"];
                    match modes.iter().any(|known| mode.eq_ignore_ascii_case(known)) {
                        true => plaintext("tftp", Grade::Seen, "a request of TFTP"),
                        false => Verdict::No,
                    }
                }
                _ => Verdict::No,
            }
        }
        // The data come from another port.
        ([0, 3, 0, 1, data @ ..], Some([0, 4, 0, 1])) if data.len() <= 1468 => {
            plaintext("tftp", Grade::Seen, "data of TFTP and its acknowledgment")
        }
        ([0, 6, options @ ..], Some([0, 4, 0, 0] | [0, 3, 0, 1, ..]))
            if options.last() == Some(&0) =>
        {
            plaintext("tftp", Grade::Seen, "options of TFTP")
        }
        ([0, 5, 0, 0..=8, message @ .., 0], _) if text(message) => {
            plaintext("tftp", Grade::Seen, "an error of TFTP")
        }
        ([0, 3, 0, 1, data @ ..], None) if data.len() == 512 && !opening.last => Verdict::Maybe,
        _ => Verdict::No,
    }
}

pub(super) fn radius(opening: &Opening<'_>) -> Verdict {
    let message = |data: &[u8]| {
        let [code @ (1..=5 | 11..=13 | 40..=45), id, high, low, ..] = *data else { return None };
        let len = big(high, low);
        if !(20..=4096).contains(&len) || len != data.len() {
            return None;
        }
        let mut rest = data.get(20..)?;
        let mut attributes = 0;
        while let [kind, size @ 2..=255, ..] = *rest {
            if kind == 0 {
                return None;
            }
            rest = rest.get(usize::from(size)..)?;
            attributes += 1;
        }
        rest.is_empty().then_some((code, id, attributes))
    };
    let Some((code, id, attributes)) = message(first_datagram(opening)) else { return Verdict::No };
    let fits = |answer: u8| match code {
        1 => matches!(answer, 2 | 3 | 11),
        4 => answer == 5,
        12 => answer == 2 || answer == 5,
        40 | 43 => answer == code + 1 || answer == code + 2,
        _ => false,
    };
    let what = "RADIUS: attributes in the clear, passwords under a shared secret";
    match answer(opening).map(message) {
        Some(Some((answer, answer_id, _))) if answer_id == id && fits(answer) => {
            plaintext("radius", Grade::Seen, what)
        }
        Some(None) => Verdict::No,
        _ if attributes >= 2
            && [1812, 1813, 1645, 1646, 3799].iter().any(|port| opening.has_port(*port)) =>
        {
            plaintext("radius", Grade::Guessed, what)
        }
        _ if opening.last => Verdict::No,
        _ => Verdict::Maybe,
    }
}

pub(super) fn diameter(opening: &Opening<'_>) -> Verdict {
    let fits = |data: &[u8]| match *data {
        [1, a, b, c, flags, _, d, e, ..] if data.len() >= 28 => {
            let len = u32::from_be_bytes([0, a, b, c]);
            let code = big(d, e);
            // An AVP follows, whose length fits.
            let avp = data.get(25..28).map(|l| u32::from_be_bytes([0, l[0], l[1], l[2]]));
            Some(
                flags & 0x0f == 0
                    && len.is_multiple_of(4)
                    && (28..=1 << 20).contains(&len)
                    && (256..=0xffff).contains(&code)
                    && avp.is_some_and(|avp| avp >= 8 && avp + 20 <= len),
            )
        }
        [] => None,
        [1, ..] if data.len() < 28 => None,
        _ => Some(false),
    };
    let what = "a message of Diameter";
    let (client, server) =
        (parsed(fits(opening.client.bytes), what), parsed(fits(opening.server.bytes), what));
    if opening.halves()[0].bytes.len() < 4 {
        return Verdict::No;
    }
    dialogue(opening, "diameter", client, server)
}

// ---- Routing.

pub(super) fn bgp(opening: &Opening<'_>) -> Verdict {
    let fits = |data: &[u8]| {
        let marker = data.len().min(16);
        if !data.get(..marker)?.iter().all(|b| *b == 0xff) {
            return Some(false);
        }
        match data.get(16..19)? {
            [high, low, kind] => {
                let len = big(*high, *low);
                Some(match kind {
                    1 => {
                        (29..=4096).contains(&len)
                            && data.get(19).is_none_or(|version| *version == 4)
                    }
                    2 => (23..=65535).contains(&len),
                    3 => (21..=4096).contains(&len),
                    4 => len == 19,
                    5 => len >= 23,
                    _ => false,
                })
            }
            _ => Some(false),
        }
    };
    let side = |data: &[u8]| if data.is_empty() { None } else { fits(data) };
    let (client, server) = (side(opening.client.bytes), side(opening.server.bytes));
    match (client, server) {
        (Some(false), _) | (_, Some(false)) => Verdict::No,
        (Some(true), _) | (_, Some(true)) => plaintext("bgp", Grade::Seen, "a message of BGP"),
        _ if opening.last => Verdict::No,
        _ if opening.halves()[0].bytes.len() >= 2 => Verdict::Maybe,
        _ => Verdict::No,
    }
}

/// LDP (RFC 5036): a PDU, and a message in it whose length fits.
pub(super) fn ldp(opening: &Opening<'_>) -> Verdict {
    let data = opening.halves()[0].bytes;
    match *data {
        [0, 1, h, l, _, _, _, _, 0, 0, t1, t2, m1, m2, ..] => {
            let kind = big(t1, t2) & 0x7fff;
            let known =
                matches!(kind, 0x001 | 0x100 | 0x200..=0x202 | 0x300..=0x302 | 0x400..=0x404);
            match known && big(m1, m2) + 10 <= big(h, l) && opening.has_port(646) {
                true => plaintext("ldp", Grade::Seen, "a message of LDP"),
                false => Verdict::No,
            }
        }
        _ => Verdict::No,
    }
}

/// HSRP (RFC 2281) and GLBP, to a group's address.
pub(super) fn hsrp(opening: &Opening<'_>) -> Verdict {
    match *first_datagram(opening) {
        [0, 0..=3, 0 | 1 | 2 | 4 | 8 | 16, _, _, _, _, 0, _, _, ..]
            if opening.ports == (1985, 1985) && first_datagram(opening).len() >= 20 =>
        {
            plaintext("hsrp", Grade::Seen, "a message of HSRP")
        }
        [1, 40, 2, ..] if opening.has_port(1985) || opening.has_port(2029) => {
            plaintext("hsrp", Grade::Seen, "a message of HSRP version 2")
        }
        _ => Verdict::No,
    }
}

/// RIP (RFC 2453): entries of 20 bytes.
pub(super) fn rip(opening: &Opening<'_>) -> Verdict {
    match *first_datagram(opening) {
        [1 | 2, 1 | 2, 0, 0, 0, 2 | 0, ..]
            if opening.ports.1 == 520 && first_datagram(opening).len() % 20 == 4 =>
        {
            plaintext("rip", Grade::Seen, "a message of RIP")
        }
        _ => Verdict::No,
    }
}

// ---- Export of flows and metrics.

pub(super) fn flow_export(opening: &Opening<'_>) -> Verdict {
    let data = opening.client.datagrams().next().unwrap_or_default();
    let sets = |data: &[u8], first: u16| {
        let mut reader = Reader::new(data);
        let mut count = 0;
        while reader.rest().len() >= 4 {
            let (Ok(id), Ok(len @ 4..)) = (reader.u16(), reader.u16()) else { return false };
            if !(id == first || id == first + 1 || id >= 256)
                || reader.take(usize::from(len) - 4).is_err()
            {
                return false;
            }
            count += 1;
        }
        count > 0
    };
    let (protocol, what) = match *data {
        [0, 5, 0, count @ 1..=30, ..] if data.len() == 24 + 48 * usize::from(count) => {
            ("netflow", "NetFlow version 5")
        }
        [0, 7, 0, count @ 1..=28, ..] if data.len() == 24 + 52 * usize::from(count) => {
            ("netflow", "NetFlow version 7")
        }
        [0, 9, ..] if data.get(20..).is_some_and(|rest| sets(rest, 0)) => {
            ("netflow", "NetFlow version 9")
        }
        [0, 10, h, l, ..]
            if big(h, l) == data.len() && data.get(16..).is_some_and(|rest| sets(rest, 2)) =>
        {
            ("ipfix", "a message of IPFIX")
        }
        [0, 0, 0, 5, 0, 0, 0, kind @ 1..=2, ..] => {
            // After the agent's address: its sub-agent, a sequence, its uptime, the samples' number.
            let at = if kind == 1 { 12 } else { 24 };
            match data.get(at + 12..at + 24) {
                Some([0, 0, 0, 1..=60, 0, 0, 0, 1..=5, 0, 0, ..]) => ("sflow", "sFlow version 5"),
                _ => return Verdict::No,
            }
        }
        _ => return Verdict::No,
    };
    plaintext(protocol, Grade::Seen, what)
}

/// collectd's binary protocol: parts of a type, a length and a value, to the end.
pub(super) fn collectd(opening: &Opening<'_>) -> Verdict {
    const ENCRYPTED: u16 = 0x0210;
    let mut reader = Reader::new(opening.client.datagrams().next().unwrap_or_default());
    let mut strings = 0;
    let mut parts = 0;
    while !reader.is_empty() {
        let (Ok(kind), Ok(len)) = (reader.u16(), reader.u16()) else { return Verdict::No };
        let Some(Ok(value)) = usize::from(len).checked_sub(4).map(|len| reader.take(len)) else {
            return Verdict::No;
        };
        let fits = match kind {
            0 | 2..=5 | 0x0100 => {
                strings += 1;
                value.last() == Some(&0) && value.iter().rev().skip(1).all(|b| *b >= b' ')
            }
            1 | 7 | 8 | 9 | 0x0101 => value.len() == 8,
            6 => value.len() >= 2,
            0x0200 => true,
            ENCRYPTED if parts == 0 => {
                return undetermined("collectd", Grade::Guessed, "an encrypted part of collectd");
            }
            _ => false,
        };
        if !fits {
            return Verdict::No;
        }
        parts += 1;
    }
    match parts >= 3 && strings > 0 {
        true => plaintext("collectd", Grade::Seen, "values of collectd"),
        false => Verdict::No,
    }
}

// ---- Mobile and access networks.

pub(super) fn gtp(opening: &Opening<'_>) -> Verdict {
    let data = first_datagram(opening);
    let [first, kind, high, low, ..] = *data else { return Verdict::No };
    let ports = [2123, 2152, 3386].iter().any(|port| opening.has_port(*port));
    let len = big(high, low);
    let version = first >> 5;
    match version {
        // User data: what it carries has an encryption of its own, or none.
        1 if first & 0x10 != 0 && kind == 255 && len + 8 == data.len() && ports => {
            undetermined("gtp", Grade::Seen, "GTP-U: user data")
        }
        1 if len + 8 == data.len() && ports && kind > 0 => {
            plaintext("gtp", Grade::Seen, "GTP version 1")
        }
        0 if len + 20 == data.len() && ports && kind > 0 && first & 0x0e == 0x0e => {
            plaintext("gtp", Grade::Seen, "GTP version 0")
        }
        2 if len + 4 == data.len() && ports && kind > 0 => {
            plaintext("gtp", Grade::Seen, "GTP version 2")
        }
        _ => Verdict::No,
    }
}

/// PFCP (3GPP TS 29.244): a header, and elements to the end.
pub(super) fn pfcp(opening: &Opening<'_>) -> Verdict {
    let data = first_datagram(opening);
    let [first, kind, high, low, ..] = *data else { return Verdict::No };
    let known = matches!(kind, 1..=15 | 50..=57);
    let header = if first & 1 != 0 { 16 } else { 8 };
    let fits = first >> 5 == 1 && first & 0x18 == 0 && big(high, low) + 4 == data.len() && known;
    match fits && opening.has_port(8805) && data.get(header..).is_some_and(is_chain) {
        true => plaintext("pfcp", Grade::Seen, "a message of PFCP"),
        false => Verdict::No,
    }
}

/// L2TP (RFC 2661) and PPTP (RFC 2637): the control is in the clear; what the tunnel carries is not known.
pub(super) fn l2tp(opening: &Opening<'_>) -> Verdict {
    match *first_datagram(opening) {
        [0xc8, 2 | 3, h, l, _, _, _, _, 0, 0, 0, 0, ..]
            if opening.has_port(1701) && big(h, l) == first_datagram(opening).len() =>
        {
            undetermined("l2tp", Grade::Seen, "the control messages of L2TP")
        }
        _ => Verdict::No,
    }
}

pub(super) fn pptp(opening: &Opening<'_>) -> Verdict {
    let fits = |data: &[u8]| match *data {
        [0, 12..=220, 0, 1, 0x1a, 0x2b, 0x3c, 0x4d, 0, 1..=15, 0, 0, ..] => Some(true),
        [] => None,
        _ => Some(data.len() < 12 && data.first() == Some(&0)).filter(|more| !more),
    };
    let what = "the control connection of PPTP";
    match fits(opening.client.bytes).or_else(|| fits(opening.server.bytes)) {
        Some(true) => plaintext("pptp", Grade::Seen, what),
        _ => Verdict::No,
    }
}

// ---- Services.

/// SLP (RFC 2608, RFC 2165).
pub(super) fn slp(opening: &Opening<'_>) -> Verdict {
    let data = first_datagram(opening);
    let fits = match *data {
        [2, 1..=11, 0, h, l, flags, 0, ..] => {
            big(h, l) == data.len() && flags & 0x1f == 0 && data.len() >= 16
        }
        [1, 1..=10, h, l, _, _, ..] => big(h, l) == data.len() && data.len() >= 12,
        _ => false,
    };
    match fits && opening.has_port(427) {
        true => plaintext("slp", Grade::Seen, "a message of SLP"),
        false => Verdict::No,
    }
}

/// RMCP and IPMI (IPMI 2.0, section 13): an RMCP+ payload may be encrypted.
pub(super) fn ipmi(opening: &Opening<'_>) -> Verdict {
    match *first_datagram(opening) {
        [6, 0, _, 6, ..] => {
            plaintext("ipmi", Grade::Guessed, "ASF in RMCP").only_if(opening.has_port(623))
        }
        [6, 0, 0xff, 7, 6, kind, ..] if kind & 0x80 != 0 => {
            undetermined("ipmi", Grade::Seen, "RMCP+ with encryption")
        }
        [6, 0, 0xff, 7, 0 | 2 | 4 | 5 | 6, ..] => plaintext("ipmi", Grade::Seen, "IPMI in RMCP"),
        _ => Verdict::No,
    }
}

/// CoAP (RFC 7252): a header, a token, options, and an answer that repeats the token.
pub(super) fn coap(opening: &Opening<'_>) -> Verdict {
    let data = first_datagram(opening);
    let Some((request, id, token)) = coap_message(data) else { return Verdict::No };
    match answer(opening) {
        Some(answer) => match coap_message(answer) {
            Some((answers, answer_id, answer_token))
                if answers != request && (answer_token == token || answer_id == id) =>
            {
                plaintext("coap", Grade::Seen, "a request of CoAP and its answer")
            }
            _ if opening.has_port(5683) && answer.get(2..4) == Some(&id) => {
                plaintext("coap", Grade::Seen, "CoAP")
            }
            _ => Verdict::No,
        },
        None if opening.has_port(5683) => plaintext("coap", Grade::Guessed, "a message of CoAP"),
        None => Verdict::No,
    }
}

/// Whether it is a request, its ID and its token.
fn coap_message(data: &[u8]) -> Option<(bool, [u8; 2], &[u8])> {
    let [first, code, a, b, rest @ ..] = data else { return None };
    let (version, token) = (first >> 6, usize::from(first & 15));
    let class = code >> 5;
    let request = class == 0 && (1..=7).contains(code);
    let response = matches!(class, 2 | 4 | 5) && code & 31 <= 15;
    let token = rest.get(..token).filter(|token| token.len() <= 8)?;
    let options = is_coap_options(rest.get(token.len()..)?);
    (version == 1 && (request || response) && options).then_some((request, [*a, *b], token))
}

fn is_coap_options(data: &[u8]) -> bool {
    let mut reader = Reader::new(data);
    loop {
        let first = match reader.u8() {
            Err(_) => return true,
            Ok(0xff) => return !reader.is_empty(),
            Ok(first) => first,
        };
        let (delta, len) = (first >> 4, first & 15);
        let mut extended = |nibble: u8| match nibble {
            0..=12 => Some(usize::from(nibble)),
            13 => reader.u8().ok().map(|more| 13 + usize::from(more)),
            14 => reader.u16().ok().map(|more| 269 + usize::from(more)),
            _ => None,
        };
        let (Some(_), Some(len)) = (extended(delta), extended(len)) else { return false };
        if reader.take(len).is_err() {
            return false;
        }
    }
}

/// TACACS+ (RFC 8907): its body is obfuscated, which is no encryption (section 10.5.2).
pub(super) fn tacacs(opening: &Opening<'_>) -> Verdict {
    let header = |data: &[u8]| match *data {
        [0xc0 | 0xc1, 1..=3, sequence, flags, a, b, c, d, 0, 0, high, low, ..]
            if flags & !5 == 0 =>
        {
            Some((sequence, [a, b, c, d], 12 + big(high, low)))
        }
        _ => None,
    };
    match (header(opening.client.bytes), header(opening.server.bytes)) {
        (Some((1, session, len)), Some((2, same, _)))
            if session == same && opening.client.bytes.len() >= len =>
        {
            plaintext("tacacs", Grade::Seen, "TACACS+, obfuscated")
        }
        (Some((1, _, _)), None) if opening.server.bytes.is_empty() && !opening.last => {
            Verdict::Maybe
        }
        _ => Verdict::No,
    }
}

/// OpenFlow: both sides begin with HELLO.
pub(super) fn openflow(opening: &Opening<'_>) -> Verdict {
    let hello = |data: &[u8]| match *data {
        [1..=6, 0, 0, 8..=64, _, _, _, _, ..] => Some(true),
        [] => None,
        _ => Some(false),
    };
    let what = "the HELLO of OpenFlow";
    match (hello(opening.client.bytes), hello(opening.server.bytes)) {
        (Some(true), Some(true)) if opening.has_port(6633) || opening.has_port(6653) => {
            plaintext("openflow", Grade::Seen, what)
        }
        _ => Verdict::No,
    }
}

/// SMPP 3.4 and 5.0: a bind, with its length.
pub(super) fn smpp(opening: &Opening<'_>) -> Verdict {
    let client = opening.client.bytes;
    match *client {
        [0, 0, 0, len @ 23..=255, 0, 0, 0, 1 | 2 | 9, 0, 0, 0, 0, _, _, _, _, ..]
            if client.len() == usize::from(len) =>
        {
            let answered = matches!(*opening.server.bytes, [0, 0, 0, _, 0x80, 0, 0, kind, ..] if Some(&kind) == client.get(7));
            match answered {
                true => plaintext("smpp", Grade::Seen, "a bind of SMPP"),
                false if opening.server.bytes.is_empty() && !opening.last => Verdict::Maybe,
                false => Verdict::No,
            }
        }
        _ => Verdict::No,
    }
}

/// M3UA (RFC 4666), in the data chunks of SCTP.
pub(super) fn m3ua(opening: &Opening<'_>) -> Verdict {
    let data = first_datagram(opening);
    match *data {
        [1, 0, 0..=4 | 9, 0..=4, 0, 0, high, low, ..] if big(high, low) == data.len() => {
            plaintext("m3ua", Grade::Seen, "a message of M3UA")
        }
        _ => Verdict::No,
    }
}

/// KNXnet/IP: a header of six bytes with the length of the datagram.
pub(super) fn knx(opening: &Opening<'_>) -> Verdict {
    let data = first_datagram(opening);
    match *data {
        // The services of KNX IP Secure.
        [6, 0x10, 9, 0x50..=0x5f, high, low, ..] if big(high, low) == data.len() => {
            undetermined("knx", Grade::Seen, "KNX IP Secure")
        }
        [6, 0x10, 2..=5, _, high, low, ..] if big(high, low) == data.len() => {
            plaintext("knx", Grade::Seen, "a message of KNXnet/IP")
        }
        _ => Verdict::No,
    }
}

// ---- Without ports.

/// Protocols above IP that have no encryption.
pub(super) fn by_number(opening: &Opening<'_>) -> Verdict {
    let protocol = match opening.transport {
        Transport::Icmp => "icmp",
        Transport::Ip(1 | 58) => "icmp",
        Transport::Ip(2) => "igmp",
        Transport::Ip(46) => "rsvp",
        Transport::Ip(51) => {
            return plaintext("ah", Grade::Seen, "an IPsec authentication header: integrity only");
        }
        Transport::Ip(88) => "eigrp",
        Transport::Ip(89) => "ospf",
        Transport::Ip(103) => "pim",
        Transport::Ip(112) => "vrrp",
        Transport::Ip(113) => "pgm",
        _ => return Verdict::No,
    };
    plaintext(protocol, Grade::Seen, "by the number of the protocol")
}

impl Verdict {
    fn only_if(self, condition: bool) -> Self {
        if condition { self } else { Self::No }
    }
}
