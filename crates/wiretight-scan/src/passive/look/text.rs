//! Protocols in lines of text that have no STARTTLS.

use super::{Opening, Verdict, plaintext, quoted, tls_within, undetermined};
use crate::parse::starttls::{Parsed, line};
use crate::passive::{Grade, Seen};

/// A line of one direction, without its end.
fn first_line(data: &[u8]) -> Option<&[u8]> {
    match line(data) {
        Parsed::Whole(text, _) => Some(text),
        _ => None,
    }
}

/// Whether data begins with this, as far as there is data.
pub(super) fn begins(data: &[u8], with: &[u8]) -> bool {
    let known = data.len().min(with.len());
    data.get(..known) == with.get(..known)
}

fn contains(data: &[u8], part: &[u8]) -> bool {
    data.windows(part.len()).any(|window| window == part)
}

fn is_text(data: &[u8]) -> bool {
    data.iter().all(|b| matches!(b, b'\t' | b'\r' | b'\n' | b' '..=b'~'))
}

// ---- Redis (RESP 2 and 3).

pub(super) fn redis(opening: &Opening<'_>) -> Verdict {
    let (client, server) = (opening.client.bytes, opening.server.bytes);
    let command = match client.first() {
        Some(b'*') => resp_command(client),
        Some(b'A'..=b'Z' | b'a'..=b'z') => inline_command(client),
        None => Parsed::Partial,
        Some(_) => return Verdict::No,
    };
    let answer = resp_answer(server);
    match (command, answer) {
        (Parsed::Not(_), _) | (_, Parsed::Not(_)) => Verdict::No,
        (Parsed::Whole(name, _), Parsed::Whole(..)) => plaintext(
            "redis",
            Grade::Seen,
            format!("Redis command {}", quoted(name).to_uppercase()),
        ),
        (Parsed::Whole(name, _), Parsed::Partial) if client.first() == Some(&b'*') => {
            match opening.last || opening.server.ended {
                true => plaintext(
                    "redis",
                    Grade::Guessed,
                    format!("Redis command {}", quoted(name).to_uppercase()),
                ),
                false => Verdict::Maybe,
            }
        }
        _ if client.is_empty() || opening.last => Verdict::No,
        _ => Verdict::Maybe,
    }
}

/// An array of bulk strings; its first one, without arguments, which may be passwords.
fn resp_command(data: &[u8]) -> Parsed<&[u8]> {
    let number = |mark: u8, data: &[u8]| -> Parsed<usize> {
        match line(data) {
            Parsed::Whole(text, len) => match text.split_first() {
                Some((first, digits)) if *first == mark && (1..=7).contains(&digits.len()) => {
                    let value = digits.iter().try_fold(0usize, |n, d| {
                        d.is_ascii_digit().then(|| n * 10 + usize::from(d - b'0'))
                    });
                    value.map_or(Parsed::Not("not a number"), |value| Parsed::Whole(value, len))
                }
                _ => Parsed::Not("not a number"),
            },
            Parsed::Partial if data.len() > 9 => Parsed::Not("not a number"),
            Parsed::Partial => Parsed::Partial,
            Parsed::Not(why) => Parsed::Not(why),
        }
    };
    let (count, used) = match number(b'*', data) {
        Parsed::Whole(count @ 1..=1_048_576, used) => (count, used),
        Parsed::Partial => return Parsed::Partial,
        _ => return Parsed::Not("not an array"),
    };
    let (len, more) = match number(b'$', data.get(used..).unwrap_or_default()) {
        Parsed::Whole(len @ 1..=64, more) => (len, more),
        Parsed::Partial => return Parsed::Partial,
        _ => return Parsed::Not("not a bulk string"),
    };
    let _ = count;
    match data.get(used + more..used + more + len) {
        Some(name) if name.iter().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(b)) => {
            Parsed::Whole(name, used + more + len)
        }
        Some(_) => Parsed::Not("not a command"),
        None => Parsed::Partial,
    }
}

fn inline_command(data: &[u8]) -> Parsed<&[u8]> {
    const COMMANDS: [&[u8]; 13] = [
        b"PING",
        b"GET",
        b"SET",
        b"INFO",
        b"AUTH",
        b"HELLO",
        b"SELECT",
        b"COMMAND",
        b"SUBSCRIBE",
        b"CONFIG",
        b"CLIENT",
        b"MONITOR",
        b"KEYS",
    ];
    let end = data.iter().take(16).position(|b| matches!(b, b' ' | b'\r' | b'\n'));
    match end.and_then(|end| data.get(..end)) {
        Some(word) if COMMANDS.iter().any(|known| word.eq_ignore_ascii_case(known)) => {
            match first_line(data) {
                Some(text) if !contains(text, b" HTTP/") => Parsed::Whole(word, text.len()),
                Some(_) => Parsed::Not("HTTP"),
                None => Parsed::Partial,
            }
        }
        Some(_) => Parsed::Not("not a command"),
        None if data.len() < 16 => Parsed::Partial,
        None => Parsed::Not("not a command"),
    }
}

/// A reply of RESP: its type, and what the type requires.
fn resp_answer(data: &[u8]) -> Parsed<()> {
    const NOT: Parsed<()> = Parsed::Not("not a reply of RESP");
    let Some(kind) = data.first() else { return Parsed::Partial };
    if !b"+-:$*%~_#,(=>!|".contains(kind) {
        return NOT;
    }
    let Some(text) = first_line(data) else {
        return if data.len() < 600 { Parsed::Partial } else { NOT };
    };
    let value = text.get(1..).unwrap_or_default();
    let number = |value: &[u8]| {
        let digits = value.strip_prefix(b"-").unwrap_or(value);
        !digits.is_empty() && digits.len() < 20 && digits.iter().all(u8::is_ascii_digit)
    };
    let fits = match kind {
        b':' | b'$' | b'*' | b'%' | b'~' | b'>' | b'|' | b'=' | b'!' => number(value),
        // POP3 answers with words too.
        b'+' => is_text(value) && !value.starts_with(b"OK ") && !value.is_empty(),
        b'-' => {
            value.first().is_some_and(u8::is_ascii_uppercase)
                && is_text(value)
                && value != b"ERR"
                && contains(value, b" ")
        }
        b'_' => value.is_empty(),
        b'#' => matches!(value, b"t" | b"f"),
        _ => is_text(value) && !value.is_empty(),
    };
    if fits { Parsed::Whole((), text.len()) } else { NOT }
}

// ---- memcached.

pub(super) fn memcached(opening: &Opening<'_>) -> Verdict {
    const COMMANDS: [&[u8]; 14] = [
        b"get ",
        b"gets ",
        b"set ",
        b"add ",
        b"replace ",
        b"append ",
        b"cas ",
        b"delete ",
        b"incr ",
        b"stats",
        b"version",
        b"flush_all",
        b"touch ",
        b"verbosity ",
    ];
    const ANSWERS: [&[u8]; 13] = [
        b"VALUE ",
        b"END\r\n",
        b"STORED\r\n",
        b"NOT_STORED",
        b"VERSION ",
        b"STAT ",
        b"DELETED",
        b"NOT_FOUND",
        b"OK\r\n",
        b"ERROR\r\n",
        b"EXISTS",
        b"TOUCHED",
        b"CLIENT_ERROR ",
    ];
    let udp = opening.transport == crate::passive::Transport::Udp;
    let (client, server) = match udp {
        true => (after_udp_header(opening.client.bytes), after_udp_header(opening.server.bytes)),
        false => (opening.client.bytes, opening.server.bytes),
    };
    if matches!(client.first(), Some(0x80)) || matches!(server.first(), Some(0x81)) {
        return memcached_binary(opening);
    }
    let fits = |data: &[u8], with: &[&[u8]]| with.iter().any(|word| begins(data, word));
    if !fits(client, &COMMANDS)
        || !fits(server, &ANSWERS)
        || (client.is_empty() && server.is_empty())
    {
        return Verdict::No;
    }
    match (first_line(client), first_line(server)) {
        (Some(_), Some(_)) => plaintext("memcached", Grade::Seen, "memcached's text protocol"),
        (Some(text), None)
            if (opening.last || opening.server.ended)
                && is_text(text)
                && opening.has_port(11211) =>
        {
            plaintext("memcached", Grade::Guessed, "a command of memcached")
        }
        _ if opening.last => Verdict::No,
        _ => Verdict::Maybe,
    }
}

/// After a request ID, a sequence number, the number of datagrams, and zero.
fn after_udp_header(data: &[u8]) -> &[u8] {
    match data {
        [_, _, 0, _, 0, 1..=255, 0, 0, rest @ ..] => rest,
        [] => data,
        _ => b"?",
    }
}

fn memcached_binary(opening: &Opening<'_>) -> Verdict {
    let header = |data: &[u8], magic: u8| match *data {
        [found, op, k1, k2, extras, 0, _, _, b1, b2, b3, b4, o1, o2, o3, o4, ..] => {
            let key = u32::from(u16::from_be_bytes([k1, k2]));
            let fits = found == magic
                && op <= 0x45
                && u32::from_be_bytes([b1, b2, b3, b4]) >= key + u32::from(extras)
                && extras <= 20;
            fits.then_some((op, u32::from_be_bytes([o1, o2, o3, o4])))
        }
        _ => None,
    };
    let (said, answered) = (header(opening.client.bytes, 0x80), header(opening.server.bytes, 0x81));
    match (said, answered) {
        (Some(said), Some(answered)) if said == answered => {
            plaintext("memcached", Grade::Seen, "memcached's binary protocol")
        }
        (Some(_), None) if opening.server.bytes.len() < 16 && !opening.last => Verdict::Maybe,
        _ => Verdict::No,
    }
}

// ---- NATS.

pub(super) fn nats(opening: &Opening<'_>) -> Verdict {
    let (client, server) = (opening.client.bytes, opening.server.bytes);
    if !begins(server, b"INFO {") {
        return Verdict::No;
    }
    let Parsed::Whole(info, used) = line(server) else {
        let connects = client.starts_with(b"CONNECT {");
        return match (server.is_empty(), opening.last) {
            (true, _) if !connects => Verdict::No,
            (true, true)
                if first_line(client).is_some_and(|text| text.trim_ascii_end().ends_with(b"}")) =>
            {
                plaintext("nats", Grade::Guessed, "CONNECT of a NATS client")
            }
            (_, false) => Verdict::Maybe,
            _ => Verdict::No,
        };
    };
    if !contains(info, b"\"server_id\"") && !contains(info, b"\"max_payload\"") {
        return Verdict::No;
    }
    match client {
        [b'A'..=b'Z' | b'a'..=b'z', ..] => {
            plaintext("nats", Grade::Seen, "INFO; then a command in the clear")
        }
        [] if !opening.last && !opening.client.ended => Verdict::Maybe,
        [] => plaintext("nats", Grade::Seen, "INFO of a NATS server"),
        // A TLS handshake follows INFO.
        _ => match tls_within(&opening.after(0, used)) {
            Verdict::Done(seen) => Verdict::Done(Seen { protocol: "nats".into(), ..seen }),
            Verdict::Maybe if !opening.last => Verdict::Maybe,
            _ => undetermined("nats", Grade::Seen, "INFO; then something else than a command"),
        },
    }
}

// ---- Version control, and copies.

/// git://: a request in a pkt-line (gitprotocol-pack).
pub(super) fn git(opening: &Opening<'_>) -> Verdict {
    let client = opening.client.bytes;
    let [a, b, c, d, rest @ ..] = client else { return Verdict::No };
    let length = std::str::from_utf8(&[*a, *b, *c, *d])
        .ok()
        .and_then(|hex| usize::from_str_radix(hex, 16).ok());
    let services = [&b"git-upload-pack "[..], b"git-receive-pack ", b"git-upload-archive "];
    match length {
        Some(len @ 20..=4096)
            if services.iter().any(|service| rest.starts_with(service)) && client.len() >= len =>
        {
            plaintext(
                "git",
                Grade::Seen,
                quoted(rest.split(|b| *b == 0).next().unwrap_or_default()),
            )
        }
        _ => Verdict::No,
    }
}

pub(super) fn rsync(opening: &Opening<'_>) -> Verdict {
    const HELLO: &[u8] = b"@RSYNCD: ";
    let (client, server) = (opening.client.bytes, opening.server.bytes);
    if !begins(client, HELLO) || !begins(server, HELLO) || (client.is_empty() && server.is_empty())
    {
        return Verdict::No;
    }
    match first_line(if server.is_empty() { client } else { server }) {
        Some(text) if text.get(HELLO.len()).is_some_and(u8::is_ascii_digit) => {
            plaintext("rsync", Grade::Seen, quoted(text))
        }
        Some(_) => Verdict::No,
        None => Verdict::Maybe,
    }
}

/// svn://: `( success ( 2 2 ( ) ( edit-pipeline ...`.
pub(super) fn svn(opening: &Opening<'_>) -> Verdict {
    match opening.server.bytes {
        b"" => Verdict::No,
        server if !begins(server, b"( success ( ") => Verdict::No,
        server if server.len() < 16 => Verdict::Maybe,
        _ if !begins(opening.client.bytes, b"( ") => Verdict::No,
        server => plaintext("svn", Grade::Seen, quoted(server.get(..24).unwrap_or(server))),
    }
}

// ---- Logs and metrics.

/// syslog (RFC 5424, RFC 3164), in datagrams or a stream (RFC 6587).
pub(super) fn syslog(opening: &Opening<'_>) -> Verdict {
    let data = opening.client.bytes;
    if !opening.server.bytes.is_empty() {
        return Verdict::No;
    }
    let udp = opening.transport == crate::passive::Transport::Udp;
    // Octet counting.
    let digits = data.iter().take(6).take_while(|b| b.is_ascii_digit()).count();
    let message = match data.get(digits..) {
        Some([b' ', rest @ ..]) if digits > 0 && !udp => rest,
        _ if digits > 0 => return Verdict::No,
        _ => data,
    };
    let Some((b'<', rest)) = message.split_first() else { return Verdict::No };
    let digits = rest.iter().take(4).take_while(|b| b.is_ascii_digit()).count();
    let priority = rest
        .get(..digits)
        .unwrap_or_default()
        .iter()
        .fold(0u16, |n, d| n * 10 + u16::from(d - b'0'));
    let text = match rest.get(digits..) {
        Some([b'>', text @ ..]) if (1..=3).contains(&digits) && priority <= 191 => text,
        Some([]) if !udp && !opening.last => return Verdict::Maybe,
        _ => return Verdict::No,
    };
    let sample = text.get(..text.len().min(64)).unwrap_or_default();
    // A message in another encoding is rare, and 0 may end it.
    if sample.len() < 2
        || !sample.iter().all(|b| *b >= b' ' || matches!(b, b'\t' | b'\r' | b'\n' | 0))
    {
        return if sample.len() < 2 && !udp && !opening.last {
            Verdict::Maybe
        } else {
            Verdict::No
        };
    }
    let months = [
        &b"Jan"[..],
        b"Feb",
        b"Mar",
        b"Apr",
        b"May",
        b"Jun",
        b"Jul",
        b"Aug",
        b"Sep",
        b"Oct",
        b"Nov",
        b"Dec",
    ];
    let dated = text.starts_with(b"1 ") || text.get(..3).is_some_and(|head| months.contains(&head));
    match dated {
        true => plaintext("syslog", Grade::Seen, format!("syslog, facility {}", priority / 8)),
        false if udp || opening.has_port(514) || opening.has_port(601) => {
            plaintext("syslog", Grade::Guessed, format!("syslog, facility {}", priority / 8))
        }
        false => Verdict::No,
    }
}

/// statsd: `name:value|type`, in datagrams.
pub(super) fn statsd(opening: &Opening<'_>) -> Verdict {
    let Some(datagram) = opening.client.datagrams().next() else { return Verdict::No };
    let fits = |text: &[u8]| {
        let mut parts = text.split(|b| *b == b'|');
        let (Some(metric), Some(kind)) = (parts.next(), parts.next()) else { return false };
        let mut sides = metric.rsplitn(2, |b| *b == b':');
        let (Some(value), Some(name)) = (sides.next(), sides.next()) else { return false };
        matches!(kind, b"c" | b"g" | b"ms" | b"s" | b"h" | b"d" | b"m")
            && !value.is_empty()
            && !name.is_empty()
            && value.iter().all(|b| b.is_ascii_digit() || b"+-.eE".contains(b))
            && name.iter().all(u8::is_ascii_graphic)
    };
    let mut lines = datagram.split(|b| *b == b'\n').filter(|text| !text.is_empty()).peekable();
    match lines.peek().is_some() && lines.all(fits) {
        true => plaintext("statsd", Grade::Seen, "metrics of statsd"),
        false => Verdict::No,
    }
}

/// Graphite (`path value time`) and InfluxDB (`measurement,tag=a field=1 time`), in lines.
pub(super) fn metrics(opening: &Opening<'_>) -> Verdict {
    if !opening.server.bytes.is_empty()
        || !opening.client.bytes.first().is_some_and(u8::is_ascii_alphabetic)
    {
        return Verdict::No;
    }
    let data = opening.client.bytes.get(..opening.client.bytes.len().min(1024)).unwrap_or_default();
    match () {
        () if all_lines(data, is_graphite) => {
            plaintext("graphite", Grade::Seen, "metrics of Graphite")
        }
        () if all_lines(data, is_influx) => {
            plaintext("influxdb", Grade::Seen, "InfluxDB's line protocol")
        }
        () => Verdict::No,
    }
}

/// Whether there are complete lines, and all of them fit.
fn all_lines(data: &[u8], fits: fn(&[u8]) -> bool) -> bool {
    let mut lines =
        data.split_inclusive(|b| *b == b'\n').filter(|text| text.ends_with(b"\n")).peekable();
    lines.peek().is_some() && lines.all(|text| fits(text.trim_ascii_end()))
}

fn is_number(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|b| b.is_ascii_digit() || b"+-.e".contains(b))
}

fn is_graphite(text: &[u8]) -> bool {
    let mut words = text.split(|b| *b == b' ');
    match (words.next(), words.next(), words.next(), words.next()) {
        (Some(path), Some(value), Some(time), None) => {
            path.contains(&b'.') && is_number(value) && is_number(time) && time.len() >= 9
        }
        _ => false,
    }
}

fn is_influx(text: &[u8]) -> bool {
    let mut words = text.split(|b| *b == b' ');
    match (words.next(), words.next(), words.next()) {
        (Some(_), Some(fields), Some(time)) => {
            fields.contains(&b'=') && is_number(time) && time.len() >= 10
        }
        _ => false,
    }
}

// ---- Others.

/// A media gateway's commands (RFC 3435), and Megaco's text.
pub(super) fn mgcp(opening: &Opening<'_>) -> Verdict {
    const VERBS: [&[u8]; 9] =
        [b"EPCF", b"CRCX", b"MDCX", b"DLCX", b"RQNT", b"NTFY", b"AUEP", b"AUCX", b"RSIP"];
    let fits = |datagram: &[u8]| {
        let text = datagram.split(|b| matches!(b, b'\r' | b'\n')).next().unwrap_or_default();
        let mut words = text.split(|b| *b == b' ').filter(|word| !word.is_empty());
        let verb = words.next().unwrap_or_default();
        VERBS.iter().any(|known| verb.eq_ignore_ascii_case(known))
            && words.next().is_some_and(|id| id.len() <= 9 && id.iter().all(u8::is_ascii_digit))
            && words.any(|word| word.eq_ignore_ascii_case(b"MGCP"))
    };
    match opening.client.datagrams().chain(opening.server.datagrams()).take(4).any(fits) {
        true => plaintext("mgcp", Grade::Seen, "a command of MGCP"),
        false => Verdict::No,
    }
}

/// FIX: `8=FIX.4.2`, the length, and the type.
pub(super) fn fix(opening: &Opening<'_>) -> Verdict {
    let data = opening.halves()[0].bytes;
    if !begins(data, b"8=FIX") || data.is_empty() {
        return Verdict::No;
    }
    let mut fields = data.split(|b| *b == 1);
    match (fields.next(), fields.next(), fields.next()) {
        (Some(version), Some(length), Some(kind)) if version.len() <= 12 => {
            match length.starts_with(b"9=") && kind.starts_with(b"35=") {
                true => plaintext("fix", Grade::Seen, quoted(version)),
                false => Verdict::No,
            }
        }
        _ if opening.last || data.len() > 64 => Verdict::No,
        _ => Verdict::Maybe,
    }
}

pub(super) fn gnutella(opening: &Opening<'_>) -> Verdict {
    match first_line(opening.client.bytes) {
        Some(text) if text.starts_with(b"GNUTELLA CONNECT/") => {
            plaintext("gnutella", Grade::Seen, quoted(text))
        }
        _ => Verdict::No,
    }
}

/// Ident (RFC 1413): two ports, and the answer repeats them.
pub(super) fn ident(opening: &Opening<'_>) -> Verdict {
    let (Some(request), Some(answer)) =
        (first_line(opening.client.bytes), first_line(opening.server.bytes))
    else {
        return Verdict::No;
    };
    let ports = |text: &[u8]| {
        let mut numbers = text.split(|b| *b == b',').map(|part| part.trim_ascii());
        let number = |part: Option<&[u8]>| {
            part.filter(|part| (1..=5).contains(&part.len()) && part.iter().all(u8::is_ascii_digit))
                .is_some()
        };
        number(numbers.next()) && number(numbers.next()) && numbers.next().is_none()
    };
    let mut parts = answer.split(|b| *b == b':').map(|part| part.trim_ascii());
    match (ports(request), parts.next().is_some_and(ports), parts.next()) {
        (true, true, Some(b"USERID" | b"ERROR")) => {
            plaintext("ident", Grade::Seen, "an ident request and its answer")
        }
        _ => Verdict::No,
    }
}

/// 9P: a version request.
pub(super) fn nine_p(opening: &Opening<'_>) -> Verdict {
    match *opening.client.bytes {
        [
            len,
            0,
            0,
            0,
            100,
            0xff,
            0xff,
            _,
            _,
            _,
            _,
            size,
            0,
            b'9',
            b'P',
            b'2',
            b'0',
            b'0',
            b'0',
            ..,
        ] if usize::from(len) == 13 + usize::from(size) => {
            plaintext("9p", Grade::Seen, "the version request of 9P")
        }
        _ => Verdict::No,
    }
}

/// HL7 in its framing (MLLP).
pub(super) fn hl7(opening: &Opening<'_>) -> Verdict {
    match opening.client.bytes {
        [0x0b, b'M' | b'F' | b'B', b'S' | b'H', b'H' | b'S', b'|', ..] => {
            plaintext("hl7", Grade::Seen, "a message of HL7")
        }
        _ => Verdict::No,
    }
}

/// WHOIS (RFC 3912) and Finger (RFC 1288): one line, and text as the answer. Their form is that of any text, so the
/// port decides between them and nothing.
pub(super) fn whois(opening: &Opening<'_>) -> Verdict {
    let protocol = match opening.ports.1 {
        43 => "whois",
        79 => "finger",
        _ => return Verdict::No,
    };
    let (client, server) = (opening.client.bytes, opening.server.bytes);
    match line(client) {
        Parsed::Whole(text, len) if len == client.len() && is_text(text) => {}
        Parsed::Partial if is_text(client) && !opening.last => return Verdict::Maybe,
        _ => return Verdict::No,
    }
    match server {
        [] if opening.last => plaintext(protocol, Grade::Guessed, "a query in text"),
        [] => Verdict::Maybe,
        _ if is_text(server.get(..server.len().min(64)).unwrap_or_default()) => {
            plaintext(protocol, Grade::Guessed, "a query and an answer in text")
        }
        _ => Verdict::No,
    }
}

/// Text of no known protocol. Asked when all others have said no.
pub(super) fn readable(opening: &Opening<'_>) -> Verdict {
    // Lines, and words between spaces: a key or a ciphertext in Base64 has neither.
    let fits = |data: &[u8]| {
        let sample = data.get(..data.len().min(512)).unwrap_or_default();
        let spaces = sample.iter().filter(|b| **b == b' ').count();
        sample.len() >= 32
            && is_text(sample)
            && sample.iter().filter(|b| **b == b'\n').count() >= 2
            && spaces * 30 > sample.len()
            && sample.split(|b| b.is_ascii_whitespace()).all(|word| word.len() < 100)
    };
    let empty_or_text = |data: &[u8]| {
        data.iter().take(512).all(|b| matches!(b, b'\t' | b'\r' | b'\n' | b' '..=b'~'))
    };
    let (client, server) = (opening.client.bytes, opening.server.bytes);
    // The text before a key exchange.
    if client.starts_with(b"SSH-") || server.starts_with(b"SSH-") {
        return Verdict::No;
    }
    match (fits(client) || fits(server)) && empty_or_text(client) && empty_or_text(server) {
        true => plaintext("unknown", Grade::Guessed, "text"),
        false => Verdict::No,
    }
}
