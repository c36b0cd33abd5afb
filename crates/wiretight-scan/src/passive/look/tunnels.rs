//! What is sent in front of another protocol: the PROXY protocol, SOCKS (RFC 1928), HTTP CONNECT (RFC 9110).
//!
//! What follows is looked at like a flow of its own, and decides. But a request to a proxy is in the clear, so its flow is
//! not called encrypted, whatever the proxy carries: who listens learns the destination, and who alters it redirects the
//! client.

use std::borrow::Cow;

use super::{Opening, Verdict, plaintext, recognise, undetermined};
use crate::judge::Level;
use crate::parse::Reader;
use crate::parse::starttls::{Parsed, line};
use crate::passive::{Grade, Seen, Side};

/// One in the other, as a load balancer sends to a proxy; more of them is a loop.
const MAX_DEPTH: usize = 3;

/// A preamble.
struct Found {
    protocol: &'static str,
    how: &'static str,
    /// Its length in each direction.
    client: usize,
    server: usize,
    /// Whether it has a password, which a listener can use.
    secret: bool,
    /// Whether it asks a proxy for a destination. A load balancer's header only repeats addresses.
    is_request: bool,
}

type Preamble = Parsed<Found>;

fn found(protocol: &'static str, how: &'static str, client: usize, server: usize) -> Preamble {
    let is_request = protocol != "haproxy";
    Parsed::Whole(Found { protocol, how, client, server, secret: false, is_request }, client)
}

pub(super) fn tunnel(opening: &Opening<'_>) -> Verdict {
    let mut inner = *opening;
    let mut outer: Option<Found> = None;
    for _ in 0..MAX_DEPTH {
        let next = match preamble(&inner) {
            Parsed::Whole(next, _) => next,
            Parsed::Partial if outer.is_none() || !opening.last => return Verdict::Maybe,
            Parsed::Partial | Parsed::Not(_) => break,
        };
        inner = inner.after(next.client, next.server);
        let before = outer.as_ref();
        let secret = next.secret || before.is_some_and(|outer| outer.secret);
        let is_request = next.is_request || before.is_some_and(|outer| outer.is_request);
        outer = Some(Found { secret, is_request, ..next });
        inner.first = (!inner.client.bytes.is_empty()).then_some(Side::Client);
    }
    let Some(Found { protocol, how, secret, is_request, .. }) = outer else { return Verdict::No };
    if inner.client.bytes.is_empty() && inner.server.bytes.is_empty() {
        return match opening.last {
            true => plaintext(protocol, Grade::Seen, how),
            false => Verdict::Maybe,
        };
    }
    if inner.client.bytes.is_empty() {
        inner.first = Some(Side::Server);
    }
    match recognise(&inner) {
        // The password for the proxy is not protected by what follows.
        Verdict::Done(seen) if secret => Verdict::Done(Seen {
            level: Level::Plaintext,
            evidence: Cow::Owned(format!(
                "{how} with a password in the clear, then {}",
                seen.evidence
            )),
            ..seen
        }),
        Verdict::Done(seen) if is_request && seen.level > Level::Plaintext => Verdict::Done(Seen {
            protocol: Cow::Borrowed(protocol),
            level: Level::Plaintext,
            evidence: Cow::Owned(format!("{how} in the clear, then {}", seen.evidence)),
            ..seen
        }),
        Verdict::Done(seen) => Verdict::Done(Seen {
            evidence: Cow::Owned(format!("{how}, then {}", seen.evidence)),
            ..seen
        }),
        Verdict::Maybe if !opening.last => Verdict::Maybe,
        _ if !opening.last
            && inner.client.bytes.len().max(inner.server.bytes.len()) < super::ENOUGH =>
        {
            Verdict::Maybe
        }
        _ if secret => {
            plaintext(protocol, Grade::Seen, format!("{how} with a password in the clear"))
        }
        _ => undetermined(protocol, Grade::Seen, how),
    }
}

fn preamble(opening: &Opening<'_>) -> Preamble {
    let client = opening.client.bytes;
    match client.first() {
        Some(b'P' | 0x0d) => proxy_protocol(client),
        Some(4) => socks4(opening),
        Some(5) => socks5(opening),
        Some(b'C') => connect(opening),
        _ => Parsed::Not("no preamble"),
    }
}

/// The PROXY protocol, version 1 and 2 (haproxy's proxy-protocol.txt, section 2).
fn proxy_protocol(client: &[u8]) -> Preamble {
    const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
    let known = client.len().min(V2.len());
    if client.get(..known) == V2.get(..known) {
        return match client.get(12..16) {
            Some([0x20 | 0x21, _, high, low]) => {
                let len = 16 + usize::from(u16::from_be_bytes([*high, *low]));
                match client.len() >= len {
                    true => found("haproxy", "PROXY protocol v2", len, 0),
                    false => Parsed::Partial,
                }
            }
            Some(_) => Parsed::Not("not version 2"),
            None => Parsed::Partial,
        };
    }
    let heads = [&b"PROXY TCP4 "[..], b"PROXY TCP6 ", b"PROXY UNKNOWN"];
    let fits = |head: &&[u8]| {
        let known = head.len().min(client.len());
        client.get(..known) == head.get(..known)
    };
    if !heads.iter().any(fits) {
        return Parsed::Not("not the PROXY protocol");
    }
    match line(client) {
        Parsed::Whole(text, len) if text.len() <= 107 => {
            found("haproxy", "PROXY protocol v1", len, 0)
        }
        Parsed::Partial if client.len() <= 107 => Parsed::Partial,
        _ => Parsed::Not("the line is too long"),
    }
}

/// SOCKS 4 and 4a: a request with a user, and an answer of 8 bytes.
fn socks4(opening: &Opening<'_>) -> Preamble {
    const NOT: Preamble = Parsed::Not("not SOCKS 4");
    let client = opening.client.bytes;
    let [4, 1 | 2, _, _, a, b, c, d, rest @ ..] = client else {
        let fits = matches!(client, [4] | [4, 1 | 2])
            || client.len() > 2 && client.len() < 8 && matches!(client, [4, 1 | 2, ..]);
        return if fits { Parsed::Partial } else { NOT };
    };
    let text = |data: &[u8]| data.iter().all(|b| b.is_ascii_graphic());
    let end = |data: &[u8]| data.iter().take(256).position(|b| *b == 0);
    let Some(user) = end(rest) else { return if rest.len() < 256 { Parsed::Partial } else { NOT } };
    if !rest.get(..user).is_some_and(text) || (*a == 0 && (*b, *c, *d) == (0, 0, 0)) {
        return NOT;
    }
    let mut used = 8 + user + 1;
    if (*a, *b, *c) == (0, 0, 0) {
        let name = client.get(used..).unwrap_or_default();
        let Some(len) = end(name) else { return Parsed::Partial };
        if len == 0 || !name.get(..len).is_some_and(text) {
            return NOT;
        }
        used += len + 1;
    }
    match opening.server.bytes {
        [0, 0x5a, _, _, _, _, _, _, ..] => found("socks", "SOCKS 4", used, 8),
        [0, 0x5b..=0x5d, ..] => found("socks", "SOCKS 4, refused", used, 8),
        [] | [0] | [0, 0x5a, ..] => Parsed::Partial,
        _ => NOT,
    }
}

/// SOCKS 5: methods, perhaps a password (RFC 1929), a request.
fn socks5(opening: &Opening<'_>) -> Preamble {
    const NOT: Preamble = Parsed::Not("not SOCKS 5");
    let (mut client, mut server) =
        (Reader::new(opening.client.bytes), Reader::new(opening.server.bytes));
    let used = |client: &Reader<'_>, server: &Reader<'_>| {
        (
            opening.client.bytes.len() - client.rest().len(),
            opening.server.bytes.len() - server.rest().len(),
        )
    };
    let _ = client.u8();
    let Ok(methods) = client.vec8() else {
        return if opening.server.bytes.is_empty() && opening.client.bytes.len() < 257 {
            Parsed::Partial
        } else {
            NOT
        };
    };
    let known = |method: &u8| matches!(method, 0..=9 | 0x80..=0xfe);
    if methods.is_empty() || !methods.iter().all(known) {
        return NOT;
    }
    // Nothing may follow before the method is selected.
    let (version, method) = match (server.u8(), server.u8()) {
        (Ok(version), Ok(method)) => (version, method),
        _ if client.is_empty() && opening.server.bytes.iter().all(|b| *b == 5) => {
            return Parsed::Partial;
        }
        _ => return NOT,
    };
    if version != 5 || !(methods.contains(&method) || method == 0xff) {
        return NOT;
    }
    match method {
        0xff => {
            let (client, server) = used(&client, &server);
            return found("socks", "SOCKS 5, no method accepted", client, server);
        }
        0 => {}
        2 => {
            let mut password =
                || Some((client.u8().ok()?, client.vec8().ok()?, client.vec8().ok()?));
            match password() {
                Some((1, _, _)) => {}
                Some(_) => return NOT,
                None => return Parsed::Partial,
            }
            match (server.u8(), server.u8()) {
                (Ok(1), Ok(_)) => {}
                (Ok(_), Ok(_)) => return NOT,
                _ => return Parsed::Partial,
            }
        }
        // GSSAPI may seal all that follows (RFC 1961).
        _ => {
            let all = (opening.client.bytes.len(), opening.server.bytes.len());
            return found("socks", "SOCKS 5 with GSSAPI or a private method", all.0, all.1);
        }
    }
    for (reader, is_request) in [(&mut client, true), (&mut server, false)] {
        let head = reader.array::<3>();
        let address = match reader.u8() {
            Ok(1) => reader.take(4),
            Ok(3) => reader.vec8(),
            Ok(4) => reader.take(16),
            Ok(_) => return NOT,
            Err(e) => Err(e),
        };
        match (head, address, reader.u16()) {
            (Ok([5, 1..=3, 0]), Ok(_), Ok(_)) if is_request => {}
            (Ok([5, 0..=8, 0]), Ok(_), Ok(_)) if !is_request => {}
            (Ok(_), Ok(_), Ok(_)) => return NOT,
            _ => return Parsed::Partial,
        }
    }
    let (client, server) = used(&client, &server);
    let secret = method == 2;
    let (protocol, how, is_request) = ("socks", "SOCKS 5", true);
    Parsed::Whole(Found { protocol, how, client, server, secret, is_request }, client)
}

/// CONNECT, and a 2xx response without a body.
fn connect(opening: &Opening<'_>) -> Preamble {
    const NOT: Preamble = Parsed::Not("not CONNECT");
    let (client, server) = (opening.client.bytes, opening.server.bytes);
    let known = client.len().min(8);
    if client.get(..known) != b"CONNECT ".get(..known) {
        return NOT;
    }
    let first = match line(client) {
        Parsed::Whole(text, _) if text.windows(8).any(|part| part == b" HTTP/1.") => head(client),
        Parsed::Whole(..) | Parsed::Not(_) => return NOT,
        Parsed::Partial => None,
    };
    match (first, server) {
        (Some(used), [b'H', b'T', b'T', b'P', b'/', b'1', b'.', _, b' ', b'2', ..]) => {
            match head(server) {
                Some(answer) => {
                    let request = client.get(..used).unwrap_or_default();
                    let secret = request.split(|b| *b == b'\n').any(|text| {
                        text.get(..20)
                            .is_some_and(|name| name.eq_ignore_ascii_case(b"proxy-authorization:"))
                    });
                    let found = Found {
                        protocol: "http",
                        how: "HTTP CONNECT",
                        client: used,
                        server: answer,
                        secret,
                        is_request: true,
                    };
                    Parsed::Whole(found, used)
                }
                None => Parsed::Partial,
            }
        }
        // Refused: HTTP.
        (Some(_), [_, _, _, _, _, _, _, _, _, _, ..]) => NOT,
        _ => Parsed::Partial,
    }
}

/// Where the header of a request or response ends.
fn head(data: &[u8]) -> Option<usize> {
    let end = data.windows(4).position(|part| part == b"\r\n\r\n").map(|at| at + 4);
    end.or_else(|| data.windows(2).position(|part| part == b"\n\n").map(|at| at + 2))
}
