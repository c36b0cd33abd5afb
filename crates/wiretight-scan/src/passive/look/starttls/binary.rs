//! XMPP (RFC 6120), LDAP (RFC 4511), PostgreSQL, MySQL, SQL Server (MS-TDS) and Telnet (RFC 854).

use super::{Offer, clear, mentions, started};
use crate::Start;
use crate::parse::Reader;
use crate::parse::starttls::{
    self as parse, Encryption, Listed, Mysql, Parsed, TELNET_START_TLS, Xmpp, is_handshake,
};
use crate::passive::look::{Half, Opening, Verdict, plaintext, quoted, undetermined};
use crate::passive::{Grade, StartTls};

/// Whether both directions can't grow.
fn over(opening: &Opening<'_>) -> bool {
    opening.last || (opening.client.ended && opening.server.ended)
}

/// Whether nothing of this direction will be seen.
fn is_missing(opening: &Opening<'_>, half: Half<'_>) -> bool {
    half.bytes.is_empty() && (opening.last || half.ended)
}

fn find(data: &[u8], wanted: &[u8]) -> Option<usize> {
    data.windows(wanted.len()).position(|part| part == wanted)
}

// ---- XMPP.

/// What a client sends after the features, except STARTTLS.
const GOES_ON: [&[u8]; 7] =
    [b"<auth", b"<iq", b"<message", b"<presence", b"<response", b"<db:", b"<authenticate"];

pub(in super::super) fn xmpp(opening: &Opening<'_>) -> Verdict {
    let (client, server) = (opening.client.bytes, opening.server.bytes);
    let first = if client.is_empty() { server } else { client };
    match is_stream(first) {
        Parsed::Not(_) => return Verdict::No,
        Parsed::Partial if opening.last => return Verdict::No,
        Parsed::Partial => return Verdict::Maybe,
        Parsed::Whole((), _) => {}
    }
    if !server.is_empty() && !server.starts_with(b"<") {
        return Verdict::No;
    }
    let stanza = GOES_ON.iter().find(|stanza| find(client, stanza).is_some());
    let asks = find(client, b"<starttls").is_some();
    if stanza.is_none() && !asks && !over(opening) && !opening.client.ended {
        return Verdict::Maybe;
    }
    let start = match mentions(first, "jabber:server") {
        true => Start::XmppServer,
        false => Start::XmppClient,
    };
    let mut offer = Offer::default();
    let mut used = 0;
    // The features, and the answer to `<starttls/>`.
    while let Parsed::Whole(message, len) = parse::xmpp(server.get(used..).unwrap_or_default()) {
        used += len;
        match message {
            Xmpp::Features { starttls, .. } => offer.listed = Some(starttls),
            Xmpp::Proceed => {
                let request = find(client, b"<starttls").unwrap_or(client.len());
                let end = client.get(request..).and_then(end_of_starttls);
                return started(
                    opening,
                    start,
                    end.map_or(client.len(), |end| request + end),
                    used,
                );
            }
            Xmpp::Failure => offer.refused |= find(client, b"<starttls").is_some(),
            Xmpp::Error(_) | Xmpp::End => break,
        }
        if used == server.len() {
            break;
        }
    }
    if asks && !offer.refused {
        // Only the client's side was captured.
        let end = find(client, b"<starttls")
            .and_then(|at| Some(at + end_of_starttls(client.get(at..)?)?));
        if let Some(end) = end
            && client.get(end..).is_some_and(is_handshake)
        {
            return started(opening, start, end, server.len());
        }
        return match over(opening) {
            true => undetermined(
                start.scheme(),
                Grade::Seen,
                "STARTTLS requested; the answer was not seen",
            ),
            false => Verdict::Maybe,
        };
    }
    if let Some(stanza) = stanza {
        let stanza = String::from_utf8_lossy(stanza);
        return clear(start, offer.declined(), Grade::Seen, format!("XMPP stream; then {stanza}>"));
    }
    match over(opening) {
        true => clear(start, offer.open(), Grade::Seen, "XMPP stream".to_owned()),
        false => Verdict::Maybe,
    }
}

/// Where `<starttls .../>` or `<starttls ...></starttls>` ends.
fn end_of_starttls(data: &[u8]) -> Option<usize> {
    let end = data.iter().position(|b| *b == b'>')? + 1;
    if data.get(..end)?.ends_with(b"/>") {
        return Some(end);
    }
    find(data, b"</starttls>").map(|at| at + b"</starttls>".len())
}

/// An XML declaration or nothing, and a stream header of XMPP.
fn is_stream(data: &[u8]) -> Parsed<()> {
    const NOT: Parsed<()> = Parsed::Not("not an XMPP stream");
    let data = data.trim_ascii_start();
    if !data.starts_with(b"<".get(..data.len().min(1)).unwrap_or_default()) {
        return NOT;
    }
    match find(data, b"<stream:stream") {
        Some(_) if mentions(data, "jabber:") => Parsed::Whole((), 0),
        Some(at) if data.get(at..).is_some_and(|rest| rest.contains(&b'>')) => NOT,
        Some(_) => Parsed::Partial,
        None if b"<?xml ".starts_with(data.get(..data.len().min(6)).unwrap_or_default())
            && data.len() < 200 =>
        {
            Parsed::Partial
        }
        None if b"<stream:stream".starts_with(data) => Parsed::Partial,
        None => NOT,
    }
}

// ---- LDAP.

/// The operations of a client (RFC 4511, section 4), and of a server.
const LDAP_CLIENT: &[u8] = &[0x60, 0x42, 0x63, 0x66, 0x68, 0x4a, 0x6c, 0x6e, 0x50, 0x77];
const LDAP_SERVER: &[u8] = &[0x61, 0x64, 0x65, 0x67, 0x69, 0x6b, 0x6d, 0x6f, 0x73, 0x78, 0x79];

/// The header of an LDAP message.
struct LdapMessage<'a> {
    op: u8,
    /// What follows the header of the operation, as far as it was captured.
    content: &'a [u8],
    /// Of the whole message.
    len: usize,
}

/// An LDAP message: a sequence with an ID and an operation whose lengths fit into each other.
fn ldap_message<'a>(data: &'a [u8], ops: &[u8]) -> Parsed<LdapMessage<'a>> {
    const NOT: Parsed<LdapMessage<'_>> = Parsed::Not("not an LDAP message");
    let (outer, rest) = match ber(data) {
        Parsed::Whole((0x30, outer), header) => (outer, data.get(header..).unwrap_or_default()),
        Parsed::Partial => return Parsed::Partial,
        _ => return NOT,
    };
    let header = data.len() - rest.len();
    let Parsed::Whole((0x02, size @ 1..=4), used) = ber(rest) else {
        return if rest.len() < 2 { Parsed::Partial } else { NOT };
    };
    let Some(operation) = rest.get(used + size..) else { return Parsed::Partial };
    match ber(operation) {
        Parsed::Whole((op, inner), op_header) if ops.contains(&op) => {
            let fits = used + size + op_header + inner <= outer;
            let content = operation.get(op_header..).unwrap_or_default();
            match fits {
                true => {
                    Parsed::Whole(LdapMessage { op, content, len: header + outer }, header + outer)
                }
                false => NOT,
            }
        }
        Parsed::Partial => Parsed::Partial,
        _ => NOT,
    }
}

/// A BER tag and a definite length, and how many bytes they take.
pub(in super::super) fn ber(data: &[u8]) -> Parsed<(u8, usize)> {
    match *data {
        [] | [_] => Parsed::Partial,
        [tag, len @ 0..=0x7f, ..] => Parsed::Whole((tag, len.into()), 2),
        [tag, octets @ 0x81..=0x84, ref rest @ ..] => {
            let octets = usize::from(octets & 0x7f);
            match rest.get(..octets) {
                None => Parsed::Partial,
                Some(bytes) => {
                    let len = bytes.iter().fold(0, |len, b| len << 8 | usize::from(*b));
                    match len < 16 << 20 {
                        true => Parsed::Whole((tag, len), 2 + octets),
                        false => Parsed::Not("too long"),
                    }
                }
            }
        }
        _ => Parsed::Not("not a definite length"),
    }
}

/// LDAP over TCP, and over UDP (MS-ADTS, section 6.3.3).
pub(in super::super) fn ldap(opening: &Opening<'_>) -> Verdict {
    let (client, server) = (opening.client.bytes, opening.server.bytes);
    if client.first().is_some_and(|b| *b != 0x30) || server.first().is_some_and(|b| *b != 0x30) {
        return Verdict::No;
    }
    let answered = match ldap_message(server, LDAP_SERVER) {
        Parsed::Not(_) => return Verdict::No,
        Parsed::Partial => false,
        Parsed::Whole(..) => true,
    };
    let mut used = 0;
    let mut offer = Offer::default();
    let mut layered = false;
    let mut first = None;
    loop {
        let rest = client.get(used..).unwrap_or_default();
        // After a SASL bind with a security layer, each message is in a frame of its own (RFC 4422, section 3.7).
        if layered && rest.first().is_some_and(|b| *b == 0) {
            return undetermined(
                "ldap",
                Grade::Seen,
                "LDAP; then a SASL security layer, which signs or seals",
            );
        }
        let message = match ldap_message(rest, LDAP_CLIENT) {
            Parsed::Whole(message, _) => message,
            Parsed::Partial => break,
            Parsed::Not(_) if first.is_none() => return Verdict::No,
            Parsed::Not(_) => break,
        };
        first.get_or_insert(message.op);
        used += message.len;
        let declined = || offer.declined();
        match message.op {
            0x77 if mentions(message.content, "1.3.6.1.4.1.1466.20037") => {
                match parse::ldap(server) {
                    Parsed::Whole(extended, len) if extended.code == 0 => {
                        return started(opening, Start::Ldap, used, len);
                    }
                    Parsed::Whole(..) => offer.refused = true,
                    _ if is_missing(opening, opening.server)
                        && client.get(used..).is_some_and(is_handshake) =>
                    {
                        return started(opening, Start::Ldap, used, 0);
                    }
                    _ if opening.last => {
                        return undetermined(
                            "ldap",
                            Grade::Seen,
                            "STARTTLS requested; no answer seen",
                        );
                    }
                    _ => return Verdict::Maybe,
                }
            }
            0x60 => match bind(message.content) {
                Some(Bind::Sasl) => layered = true,
                Some(Bind::Simple) if answered || over(opening) || opening.server.ended => {
                    let grade = if answered { Grade::Seen } else { Grade::Guessed };
                    return clear(
                        Start::Ldap,
                        declined(),
                        grade,
                        "LDAP bind with a password".to_owned(),
                    );
                }
                _ => {}
            },
            // A message outside of a security layer.
            _ if layered && answered => {
                return clear(
                    Start::Ldap,
                    declined(),
                    Grade::Seen,
                    "LDAP after a SASL bind".to_owned(),
                );
            }
            _ if !layered && (answered || over(opening) || opening.server.ended) => {
                let grade = if answered { Grade::Seen } else { Grade::Guessed };
                return clear(
                    Start::Ldap,
                    declined(),
                    grade,
                    format!("LDAP {}", operation(message.op)),
                );
            }
            _ => {}
        }
    }
    match first {
        _ if !over(opening) => Verdict::Maybe,
        Some(_) if layered => undetermined("ldap", Grade::Seen, "LDAP with a SASL bind"),
        Some(op) => {
            clear(Start::Ldap, offer.open(), Grade::Guessed, format!("LDAP {}", operation(op)))
        }
        // Only the server's side, or a message that is larger than what was captured.
        None if answered => {
            clear(Start::Ldap, None, Grade::Guessed, "answers of an LDAP server".to_owned())
        }
        None => Verdict::No,
    }
}

enum Bind {
    Simple,
    Sasl,
}

/// The authentication of a bind request (RFC 4511, section 4.2). SASL mechanisms without a security layer count as
/// simple.
fn bind(content: &[u8]) -> Option<Bind> {
    let Parsed::Whole((0x02, 1), used) = ber(content) else { return None };
    let rest = content.get(used + 1..)?;
    let Parsed::Whole((0x04, name), used) = ber(rest) else { return None };
    let rest = rest.get(used + name..)?;
    match ber(rest) {
        Parsed::Whole((0xa3, _), used) => {
            let rest = rest.get(used..)?;
            let Parsed::Whole((0x04, len), used) = ber(rest) else { return None };
            let mechanism = rest.get(used..used + len)?;
            let plain = mechanism.starts_with(b"SCRAM-")
                || matches!(mechanism, b"PLAIN" | b"EXTERNAL" | b"CRAM-MD5");
            Some(if plain { Bind::Simple } else { Bind::Sasl })
        }
        // Microsoft's SICILY, whose result may be sealed too.
        Parsed::Whole((0x89..=0x8b, _), _) => Some(Bind::Sasl),
        Parsed::Whole((0x80, _), _) => Some(Bind::Simple),
        _ => None,
    }
}

fn operation(op: u8) -> &'static str {
    match op {
        0x60 => "bind",
        0x42 => "unbind",
        0x63 => "search",
        0x66 => "modify",
        0x68 => "add",
        0x4a => "delete",
        0x6c => "rename",
        0x6e => "compare",
        0x50 => "abandon",
        _ => "extended request",
    }
}

// ---- PostgreSQL.

pub(in super::super) fn postgres(opening: &Opening<'_>) -> Verdict {
    let (client, server) = (opening.client.bytes, opening.server.bytes);
    let (mut used, mut answers) = (0, 0);
    let mut offer = Offer::default();
    if client.is_empty() || client.first() == Some(&b'Q') {
        return postgres_later(opening);
    }
    loop {
        let mut reader = Reader::new(client.get(used..).unwrap_or_default());
        let (Ok(len), Ok(code)) = (reader.u32(), reader.u32()) else {
            let fits = matches!(client.get(used..), None | Some([] | [0, ..]));
            return match fits && !over(opening) {
                true => Verdict::Maybe,
                false if used > 0 && fits => {
                    clear(Start::Postgres, offer.open(), Grade::Seen, "SSLRequest".to_owned())
                }
                false => Verdict::No,
            };
        };
        let answer = server.get(answers);
        match (code, len) {
            (80877103 | 80877104, 8) => {
                used += 8;
                answers += 1;
                match answer {
                    Some(b'S') if code == 80877103 => {
                        return started(opening, Start::Postgres, used, answers);
                    }
                    Some(b'G') if code == 80877104 => {
                        return undetermined(
                            "postgres",
                            Grade::Seen,
                            "GSSAPI encryption was agreed on",
                        );
                    }
                    Some(b'N') => offer.refused |= code == 80877103,
                    // An old server answers with an error.
                    Some(b'E') => offer.refused |= code == 80877103,
                    Some(_) => return Verdict::No,
                    None if client.get(used..).is_some_and(is_handshake) => {
                        return started(opening, Start::Postgres, used, 0);
                    }
                    None if !over(opening) && !opening.server.ended => return Verdict::Maybe,
                    None => {
                        return undetermined(
                            "postgres",
                            Grade::Guessed,
                            "SSLRequest without an answer",
                        );
                    }
                }
            }
            (80877102, 12..=264) => return plaintext("postgres", Grade::Seen, "CancelRequest"),
            (0x0003_0000..=0x0003_000f, 9..=10_000) | (0x0002_0000, 296) => {
                let Ok(parameters) = reader.take((len - 8) as usize) else {
                    return if over(opening) { Verdict::No } else { Verdict::Maybe };
                };
                if parameters.last() != Some(&0) || (code >> 16 == 3 && !is_parameters(parameters))
                {
                    return Verdict::No;
                }
                return match server.get(answers) {
                    Some(b'R' | b'E' | b'N' | b'v') => clear(
                        Start::Postgres,
                        offer.declined(),
                        Grade::Seen,
                        "StartupMessage in the clear".to_owned(),
                    ),
                    Some(_) => Verdict::No,
                    None if over(opening) || opening.server.ended => clear(
                        Start::Postgres,
                        offer.declined(),
                        Grade::Guessed,
                        "StartupMessage in the clear".to_owned(),
                    ),
                    None => Verdict::Maybe,
                };
            }
            _ if used > 0 && over(opening) => {
                return clear(Start::Postgres, offer.open(), Grade::Seen, "SSLRequest".to_owned());
            }
            _ => return Verdict::No,
        }
    }
}

/// Names and values, of which `user` must be one.
fn is_parameters(data: &[u8]) -> bool {
    data.starts_with(b"user\0") || find(data, b"\0user\0").is_some()
}

/// A capture that began later, or of the server's side only.
fn postgres_later(opening: &Opening<'_>) -> Verdict {
    let (client, server) = (opening.client.bytes, opening.server.bytes);
    if client.is_empty()
        && let Some((b'S', rest)) = server.split_first()
        && is_handshake(rest)
    {
        return started(opening, Start::Postgres, 0, 1);
    }
    let query = match Reader::new(client.get(1..).unwrap_or_default()).u32() {
        _ if client.is_empty() => true,
        Ok(len @ 5..=0xffff) => client.get(len as usize) == Some(&0),
        Ok(_) => return Verdict::No,
        Err(_) => false,
    };
    let mut reader = Reader::new(server);
    let mut count = 0;
    let ready = loop {
        let (Ok(kind), Ok(len)) = (reader.u8(), reader.u32()) else { break false };
        if !b"RSKZTDCENIGHd123ntsv".contains(&kind) || !(4..=1 << 20).contains(&len) {
            return Verdict::No;
        }
        let Ok(body) = reader.take(len as usize - 4) else { break false };
        // ParameterStatus has a name and a value; ReadyForQuery a state.
        let fits = match kind {
            b'S' => body.last() == Some(&0) && body.iter().filter(|b| **b == 0).count() == 2,
            b'Z' => matches!(body, [b'I' | b'T' | b'E']),
            b'R' => body.len() >= 4 && body.first() == Some(&0),
            b'C' => body.last() == Some(&0),
            _ => true,
        };
        if !fits {
            return Verdict::No;
        }
        count += 1;
        if kind == b'Z' {
            break true;
        }
    };
    match (query, ready) {
        (true, true) if count >= 2 => {
            plaintext("postgres", Grade::Seen, "messages of PostgreSQL in the clear")
        }
        _ if over(opening) => Verdict::No,
        _ if opening.server.from_start && !client.is_empty() => Verdict::No,
        _ => Verdict::Maybe,
    }
}

// ---- MySQL and MariaDB.

const CLIENT_PROTOCOL_41: u32 = 0x0200;
const CLIENT_SSL: u32 = 0x0800;
/// The request for TLS: only the beginning of the handshake response.
const SSL_REQUEST: u32 = 32;

pub(in super::super) fn mysql(opening: &Opening<'_>) -> Verdict {
    let (client, server) = (opening.client.bytes, opening.server.bytes);
    if server.is_empty() {
        return match client_of_mysql(client) {
            Some((len, flags)) if is_missing(opening, opening.server) => match flags & CLIENT_SSL {
                0 => plaintext("mysql", Grade::Guessed, "a login of MySQL without TLS"),
                _ if len == SSL_REQUEST => started(opening, Start::Mysql, 36, 0),
                _ => Verdict::No,
            },
            Some(_) => Verdict::Maybe,
            None => Verdict::No,
        };
    }
    // Most first bytes are of something else.
    if !matches!(server, [_] | [_, _] | [_, _, _] | [_, _, 0, 0] | [_, _, 0, 0, 10 | 0xff, ..]) {
        return Verdict::No;
    }
    // A greeting waits for its answer.
    if client.is_empty() && server.get(4) == Some(&10) && !over(opening) && !opening.client.ended {
        return match server.get(5) {
            Some(b'0'..=b'9') | None => Verdict::Maybe,
            Some(_) => Verdict::No,
        };
    }
    let (greeting, used) = match parse::mysql(server) {
        Parsed::Not(_) => return Verdict::No,
        Parsed::Partial if over(opening) => return Verdict::No,
        Parsed::Partial => return Verdict::Maybe,
        Parsed::Whole(greeting, used) => (greeting, used),
    };
    let (version, ssl) = match greeting {
        Mysql::Error { code: 1000..=4999, message } if !message.is_empty() => {
            return plaintext(
                "mysql",
                Grade::Seen,
                format!("MySQL error: {}", quoted(message.as_bytes())),
            );
        }
        Mysql::Error { .. } => return Verdict::No,
        Mysql::Greeting { version, ssl } => (version, ssl),
    };
    if !version.as_bytes().first().is_some_and(u8::is_ascii_digit) {
        return Verdict::No;
    }
    let offered = if ssl { Listed::Yes } else { Listed::No };
    let offer = Offer { listed: Some(offered), ..Offer::default() };
    let version = format!("MySQL {}", quoted(version.as_bytes()));
    match client_of_mysql(client) {
        Some((SSL_REQUEST, flags)) if flags & CLIENT_SSL != 0 => {
            started(opening, Start::Mysql, 36, used)
        }
        Some(_) => {
            clear(Start::Mysql, offer.declined(), Grade::Seen, format!("{version}; then a login"))
        }
        None if client.len() >= 4 && client.get(3) != Some(&1) => Verdict::No,
        None if over(opening) || opening.client.ended => {
            clear(Start::Mysql, offer.open(), Grade::Seen, version)
        }
        None => Verdict::Maybe,
    }
}

/// The length and the capabilities of a handshake response.
fn client_of_mysql(data: &[u8]) -> Option<(u32, u32)> {
    let [a, b, c, 1, rest @ ..] = data else { return None };
    let len = u32::from_le_bytes([*a, *b, *c, 0]);
    match *rest {
        [e, f, g, h, _, _, _, _, _, ref filler @ ..] if len >= 32 => {
            let flags = u32::from_le_bytes([e, f, g, h]);
            // MariaDB has capabilities in the last four bytes of the filler.
            let zeros = filler.iter().take(19).all(|b| *b == 0);
            (zeros && flags & CLIENT_PROTOCOL_41 != 0).then_some((len, flags))
        }
        // The response before MySQL 4.1.
        [e, f, ..] if (6..32).contains(&len) && u16::from_le_bytes([e, f]) & 0x0200 == 0 => {
            Some((len, u16::from_le_bytes([e, f]).into()))
        }
        _ => None,
    }
}

// ---- SQL Server.

const PRELOGIN: u8 = 0x12;

pub(in super::super) fn mssql(opening: &Opening<'_>) -> Verdict {
    let (client, server) = (opening.client.bytes, opening.server.bytes);
    let (kind, len) = match tds(client) {
        Parsed::Whole((kind @ (1..=3 | 0x0e | 0x10 | PRELOGIN), len), _) => (kind, len),
        Parsed::Partial if client.is_empty() || over(opening) => return Verdict::No,
        Parsed::Partial if matches!(client.first(), Some(&PRELOGIN | &0x10)) => {
            return Verdict::Maybe;
        }
        _ => return Verdict::No,
    };
    if !matches!(server.first(), None | Some(4)) {
        return Verdict::No;
    }
    if kind != PRELOGIN {
        return tds_in_the_clear(opening, kind, len);
    }
    if !is_prelogin(client, len) {
        return Verdict::No;
    }
    let (encryption, used) = match parse::tds_prelogin(server) {
        Parsed::Whole(encryption, used) => (encryption, used),
        Parsed::Not(_) => return Verdict::No,
        Parsed::Partial if over(opening) || opening.server.ended => {
            return undetermined("mssql", Grade::Guessed, "PRELOGIN without an answer");
        }
        Parsed::Partial => return Verdict::Maybe,
    };
    let state = |state, what: &str| clear(Start::Mssql, Some(state), Grade::Seen, what.to_owned());
    match encryption {
        Encryption::NotSupported => {
            state(StartTls::NotOffered, "PRELOGIN: the server does not support encryption")
        }
        Encryption::Off => state(StartTls::Unused, "PRELOGIN: only the login is encrypted"),
        Encryption::On | Encryption::Required => {
            let client = unwrap_tds(client.get(len..).unwrap_or_default());
            let server = unwrap_tds(server.get(used..).unwrap_or_default());
            let inner = Opening {
                client: Half { bytes: &client, ends: &[], ..opening.client },
                server: Half { bytes: &server, ends: &[], ..opening.server },
                ..*opening
            };
            started(&inner, Start::Mssql, 0, 0)
        }
    }
}

/// The type and length of a TDS packet (MS-TDS, section 2.2.3.1).
fn tds(data: &[u8]) -> Parsed<(u8, usize)> {
    match *data {
        [kind, status, high, low, _, _, _, 0, ..] if status & 0xe4 == 0 => {
            let len = usize::from(u16::from_be_bytes([high, low]));
            if len > 8 { Parsed::Whole((kind, len), len) } else { Parsed::Not("empty") }
        }
        [_, _, _, _, _, _, _, _, ..] => Parsed::Not("not a TDS packet"),
        _ => Parsed::Partial,
    }
}

/// Options with positions inside the packet, of which the first is the version.
fn is_prelogin(client: &[u8], len: usize) -> bool {
    let payload = client.get(8..len.min(client.len())).unwrap_or_default();
    let mut options = payload;
    let mut count = 0;
    while let [token @ 0..=0xfe, a, b, c, d, rest @ ..] = options {
        let at = usize::from(u16::from_be_bytes([*a, *b]));
        let size = usize::from(u16::from_be_bytes([*c, *d]));
        if at + size > len - 8 || *token > 9 || (count == 0) != (*token == 0) {
            return false;
        }
        count += 1;
        options = rest;
    }
    count > 0 && options.first() == Some(&0xff)
}

/// A login without PRELOGIN, or a capture that began later: with TLS, TDS packets would be inside of its records.
fn tds_in_the_clear(opening: &Opening<'_>, kind: u8, len: usize) -> Verdict {
    let client = opening.client.bytes;
    let text = client.get(8..len.min(client.len())).unwrap_or_default();
    let fits = match kind {
        // LOGIN7 repeats its length, and has a version of TDS 7.
        0x10 => match *text {
            [a, b, c, d, _, _, _, 0x70..=0x74, ..] => {
                u32::from_le_bytes([a, b, c, d]) as usize + 8 == len
            }
            _ => false,
        },
        // A login of TDS 4 and 5: 512 bytes a packet, beginning with the host's name.
        2 => len == 512 && text.first().is_some_and(u8::is_ascii_graphic),
        // UTF-16 after the headers, or a procedure by its number.
        1 | 3 | 0x0e => {
            text.len() > 16
                && text.chunks_exact(2).filter(|pair| pair[1] == 0).count() * 3 > text.len()
        }
        _ => false,
    };
    let answered = matches!(tds(opening.server.bytes), Parsed::Whole((4, _), _));
    match (fits, answered) {
        (true, true) => plaintext("mssql", Grade::Seen, "TDS packets in the clear"),
        (true, false) if over(opening) && kind == 0x10 => {
            plaintext("mssql", Grade::Guessed, "a TDS login in the clear")
        }
        (true, false) if !over(opening) => Verdict::Maybe,
        _ => Verdict::No,
    }
}

/// The handshake is in TDS packets; what follows it is not.
fn unwrap_tds(data: &[u8]) -> Vec<u8> {
    let (mut inner, mut rest) = (Vec::new(), data);
    while let [PRELOGIN | 4, _, high, low, _, _, _, _, content @ ..] = rest {
        let len = usize::from(u16::from_be_bytes([*high, *low])).saturating_sub(8);
        let (packet, after) = content.split_at(len.min(content.len()));
        inner.extend_from_slice(packet);
        rest = after;
        if len == 0 {
            break;
        }
    }
    inner.extend_from_slice(rest);
    inner
}

// ---- Telnet.

const IAC: u8 = 255;
const ENCRYPT: u8 = 38;

pub(in super::super) fn telnet(opening: &Opening<'_>) -> Verdict {
    let (client, server) = (opening.client.bytes, opening.server.bytes);
    let commands = [telnet_commands(client), telnet_commands(server)];
    if opening.halves()[0].bytes.first() != Some(&IAC) {
        return Verdict::No;
    }
    if commands.iter().sum::<usize>() < 2 {
        return if over(opening) { Verdict::No } else { Verdict::Maybe };
    }
    if find(client, &[IAC, 250, ENCRYPT]).is_some() && find(server, &[IAC, 250, ENCRYPT]).is_some()
    {
        return undetermined("telnet", Grade::Seen, "Telnet with the option ENCRYPT (RFC 2946)");
    }
    let follows = [IAC, 250, TELNET_START_TLS, 1, IAC, 240];
    if let (Some(asked), Some(agreed)) = (find(client, &follows), find(server, &follows)) {
        return started(opening, Start::Telnet, asked + 6, agreed + 6);
    }
    let offered = find(server, &[IAC, 253, TELNET_START_TLS]).is_some();
    let refused = find(client, &[IAC, 252, TELNET_START_TLS]).is_some();
    let encrypts = [&[IAC, 251, ENCRYPT], &[IAC, 253, ENCRYPT]];
    let may_encrypt = encrypts
        .iter()
        .any(|word| find(client, *word).is_some() && find(server, &word[..1]).is_some());
    let state = (offered && refused).then_some(StartTls::Unused);
    let both = commands.iter().all(|count| *count > 0);
    match over(opening) || (both && state.is_some()) || (both && !offered && !may_encrypt) {
        true if may_encrypt => {
            undetermined("telnet", Grade::Seen, "Telnet with an offer of ENCRYPT (RFC 2946)")
        }
        true => clear(
            Start::Telnet,
            state,
            if both { Grade::Seen } else { Grade::Guessed },
            "Telnet options".to_owned(),
        ),
        false => Verdict::Maybe,
    }
}

/// The number of option commands at the beginning, with options that are assigned.
fn telnet_commands(data: &[u8]) -> usize {
    let (mut rest, mut count) = (data, 0);
    loop {
        rest = match rest {
            [IAC, 251..=254, 0..=49 | 138..=140 | 255, rest @ ..] => {
                count += 1;
                rest
            }
            [IAC, 250, 0..=49, inner @ ..] => match find(inner, &[IAC, 240]) {
                Some(end) => {
                    count += 1;
                    inner.get(end + 2..).unwrap_or_default()
                }
                None => return count,
            },
            _ => return count,
        };
    }
}
