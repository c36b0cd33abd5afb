//! HTTP/1 (RFC 9112) and HTTP/2 without TLS (RFC 9113), WebSocket (RFC 6455), and protocols with HTTP's form: SSDP,
//! SIP (RFC 3261), RTSP (RFC 7826).

use super::{Opening, Verdict, plaintext, quoted};
use crate::parse::starttls::{Parsed, line};
use crate::passive::{Grade, Side, Transport};

const MAX_METHOD: usize = 24;

/// A protocol whose requests and responses have a first line like HTTP's.
struct Form {
    name: &'static str,
    /// `HTTP/1.`; a request ends with it and a digit, a response begins with it.
    version: &'static [u8],
    /// What a request's target begins with; empty if anything.
    schemes: &'static [&'static [u8]],
}

const HTTP: Form = Form { name: "http", version: b"HTTP/1.", schemes: &[] };
const SIP: Form = Form {
    name: "sip",
    version: b"SIP/2.",
    schemes: &[b"sip:", b"sips:", b"tel:", b"im:", b"urn:"],
};
const RTSP: Form =
    Form { name: "rtsp", version: b"RTSP/1.", schemes: &[b"rtsp:", b"rtspu:", b"*", b"/"] };
const RTSP2: Form = Form { version: b"RTSP/2.", ..RTSP };

/// HTTP/1.0 and HTTP/1.1: a request line, or a status line.
pub(super) fn http1(opening: &Opening<'_>) -> Verdict {
    match form(opening, &HTTP) {
        Verdict::No => http09(opening),
        Verdict::Done(_)
            if has_upgrade(opening.client.bytes)
                || opening.server.bytes.get(9..12) == Some(b"101") =>
        {
            upgrade(opening)
        }
        verdict => verdict,
    }
}

pub(super) fn sip(opening: &Opening<'_>) -> Verdict {
    if opening.transport != Transport::Udp {
        return form(opening, &SIP);
    }
    // Others send keep-alives first.
    let mut datagrams = opening.client.datagrams().chain(opening.server.datagrams());
    match datagrams.find_map(|datagram| match either(datagram, &SIP) {
        Parsed::Whole(text, _) => Some(text),
        _ => None,
    }) {
        Some(text) => plaintext(
            "sip",
            Grade::Seen,
            quoted(text.split(|b| *b == b';').next().unwrap_or_default()),
        ),
        None => Verdict::No,
    }
}

pub(super) fn rtsp(opening: &Opening<'_>) -> Verdict {
    match form(opening, &RTSP) {
        Verdict::No => form(opening, &RTSP2),
        verdict => verdict,
    }
}

fn form(opening: &Opening<'_>, form: &Form) -> Verdict {
    // In SIP, and in RTSP, servers send requests too.
    let [first, second] = opening.halves().map(|half| half.bytes);
    let said = match form.name {
        "http" => request_line(opening.client.bytes, form),
        _ => either(first, form),
    };
    let answered = match form.name {
        "http" => status_line(opening.server.bytes, form),
        _ => either(second, form),
    };
    let text = match (said, answered) {
        (Parsed::Whole(text, _), _) => text,
        // The answer of a server that was sent something else: only HTTP/1.x says so.
        (Parsed::Partial, Parsed::Whole(text, _)) => text,
        (Parsed::Not(_), Parsed::Whole(text, _))
            if form.name == "http" && opening.first == Some(Side::Client) =>
        {
            text
        }
        (Parsed::Partial, Parsed::Partial) => return Verdict::Maybe,
        _ => return Verdict::No,
    };
    // What follows may be a token or a name.
    let shown = text.split(|b| matches!(b, b'?' | b';')).next().unwrap_or_default();
    plaintext(form.name, Grade::Seen, quoted(shown))
}

fn either<'a>(data: &'a [u8], form: &Form) -> Parsed<&'a [u8]> {
    match request_line(data, form) {
        Parsed::Not(_) => status_line(data, form),
        other => other,
    }
}

/// The method and the target of a request.
fn request_line<'a>(data: &'a [u8], form: &Form) -> Parsed<&'a [u8]> {
    const NOT: Parsed<&[u8]> = Parsed::Not("not a request line");
    // Empty lines before a request are ignored (RFC 9112, section 2.2; RFC 3261, section 7.5).
    let data = data
        .get(data.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count()..)
        .unwrap_or_default();
    let letter = |b: &&u8| b.is_ascii_alphabetic() || matches!(b, b'-' | b'_');
    let method = data.iter().take(MAX_METHOD + 1).take_while(letter).count();
    match data.get(method) {
        None => return Parsed::Partial,
        Some(b' ') if (3..=MAX_METHOD).contains(&method) => {}
        Some(_) => return NOT,
    }
    let target = data.get(method + 1..).unwrap_or_default();
    let fits = |scheme: &&[u8]| {
        let known = scheme.len().min(target.len());
        target
            .get(..known)
            .is_some_and(|head| head.eq_ignore_ascii_case(scheme.get(..known).unwrap_or_default()))
    };
    if !form.schemes.is_empty() && !form.schemes.iter().any(fits) {
        return NOT;
    }
    match line(data) {
        Parsed::Whole(text, len) => match text.trim_ascii_end() {
            [head @ .., b'0'..=b'9'] if head.ends_with(form.version) => {
                Parsed::Whole(head.get(..head.len() - form.version.len()).unwrap_or_default(), len)
            }
            _ => NOT,
        },
        // A target that is longer than what was captured.
        Parsed::Partial | Parsed::Not(_) if form.name == "http" => {
            let known = [&b"GET /"[..], b"POST /", b"PUT /", b"HEAD /", b"OPTIONS /"];
            match known.iter().any(|head| data.starts_with(head)) && data.len() > 1000 {
                true => Parsed::Whole(data.get(..100).unwrap_or_default(), data.len()),
                false => Parsed::Partial,
            }
        }
        other => other,
    }
}

fn status_line<'a>(data: &'a [u8], form: &Form) -> Parsed<&'a [u8]> {
    let known = data.len().min(form.version.len());
    if data.get(..known) != form.version.get(..known) {
        return Parsed::Not("not a status line");
    }
    match data.get(known..) {
        Some([b'0'..=b'9', b' ', a, b, c, ..]) if [a, b, c].iter().all(|d| d.is_ascii_digit()) => {
            let end =
                data.iter().position(|b| matches!(b, b'\r' | b'\n')).unwrap_or(data.len().min(100));
            Parsed::Whole(data.get(..end).unwrap_or_default(), end)
        }
        Some(rest) if rest.len() >= 5 => Parsed::Not("not a status line"),
        _ => Parsed::Partial,
    }
}

/// HTTP/0.9: a line, and a document without a header.
fn http09(opening: &Opening<'_>) -> Verdict {
    let Parsed::Whole(text, _) = line(opening.client.bytes) else { return Verdict::No };
    let page = opening.server.bytes.trim_ascii_start();
    let html = page.get(..5).is_some_and(|head| {
        head.eq_ignore_ascii_case(b"<html") || head.eq_ignore_ascii_case(b"<!doc")
    });
    match text.starts_with(b"GET /") && html {
        true => plaintext("http", Grade::Seen, "HTTP/0.9"),
        false => Verdict::No,
    }
}

/// Whether a line of a header is `Upgrade: websocket`.
fn has_upgrade(data: &[u8]) -> bool {
    data.split(|b| *b == b'\n').take(60).any(|text| {
        let text = text.trim_ascii();
        text.len() < 64
            && text.get(..8).is_some_and(|name| name.eq_ignore_ascii_case(b"upgrade:"))
            && text.to_ascii_lowercase().ends_with(b"websocket")
    })
}

/// The answer to a request for WebSocket.
fn upgrade(opening: &Opening<'_>) -> Verdict {
    match opening.server.bytes.get(9..12) {
        Some(b"101") if has_upgrade(opening.server.bytes) => {
            plaintext("websocket", Grade::Seen, "HTTP/1.1 101 with Upgrade: websocket")
        }
        Some(b"101") if !opening.last && opening.server.bytes.len() < 1000 => Verdict::Maybe,
        None if !opening.last && !opening.server.ended => Verdict::Maybe,
        _ => plaintext("http", Grade::Seen, "a request with Upgrade"),
    }
}

/// HTTP/2 with prior knowledge, or what is left of it.
pub(super) fn http2(opening: &Opening<'_>) -> Verdict {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let client = opening.client.bytes;
    let known = client.len().min(PREFACE.len());
    if client.get(..known) != PREFACE.get(..known) {
        return Verdict::No;
    }
    match (client.len() >= PREFACE.len(), is_settings(opening.server.bytes)) {
        (true, _) => plaintext("http2", Grade::Seen, "HTTP/2 with prior knowledge"),
        (false, Parsed::Whole((), _))
            if client.is_empty() && (opening.last || opening.client.ended) =>
        {
            plaintext("http2", Grade::Guessed, "HTTP/2: SETTINGS of a server")
        }
        (false, Parsed::Not(_)) => Verdict::No,
        _ if opening.server.bytes.is_empty() && client.is_empty() => Verdict::No,
        _ => Verdict::Maybe,
    }
}

/// A SETTINGS frame of stream 0 (RFC 9113, section 6.5).
fn is_settings(data: &[u8]) -> Parsed<()> {
    match *data {
        [0, 0, len, 4, 0, 0, 0, 0, 0, ref rest @ ..] if len % 6 == 0 => {
            let ids = rest.chunks_exact(6).take(usize::from(len) / 6);
            match ids.clone().all(|setting| setting[0] == 0 && (1..=9).contains(&setting[1])) {
                true if len > 0 => Parsed::Whole((), 9 + usize::from(len)),
                true => Parsed::Partial,
                false => Parsed::Not("not SETTINGS"),
            }
        }
        [] => Parsed::Partial,
        [0] | [0, 0] | [0, 0, _] | [0, 0, _, 4] => Parsed::Partial,
        [0, 0, _, 4, ref rest @ ..] if rest.len() < 5 && rest.iter().all(|b| *b == 0) => {
            Parsed::Partial
        }
        _ => Parsed::Not("not SETTINGS"),
    }
}

/// SSDP: HTTP's lines in datagrams (UPnP Device Architecture, section 1).
pub(super) fn ssdp(opening: &Opening<'_>) -> Verdict {
    let datagram = opening.halves()[0].datagrams().next().unwrap_or_default();
    let Parsed::Whole(text, _) = line(datagram) else { return Verdict::No };
    let is_header = |name: &[u8]| {
        datagram
            .split(|b| *b == b'\n')
            .skip(1)
            .any(|text| text.get(..name.len()).is_some_and(|head| head.eq_ignore_ascii_case(name)))
    };
    match text {
        b"M-SEARCH * HTTP/1.1" | b"NOTIFY * HTTP/1.1" => {
            plaintext("ssdp", Grade::Seen, quoted(text))
        }
        _ if text.starts_with(b"HTTP/1.1 200") && (is_header(b"ST:") || is_header(b"USN:")) => {
            plaintext("ssdp", Grade::Seen, "a response to M-SEARCH")
        }
        _ if text.starts_with(b"HTTP/1.1 ") || text.ends_with(b" HTTP/1.1") => {
            plaintext("http", Grade::Seen, "HTTP in datagrams")
        }
        _ => Verdict::No,
    }
}

/// Web Services Dynamic Discovery: SOAP in datagrams.
pub(super) fn ws_discovery(opening: &Opening<'_>) -> Verdict {
    const NAMESPACES: [&[u8]; 2] =
        [b"schemas.xmlsoap.org/ws/2005/04/discovery", b"docs.oasis-open.org/ws-dd/ns/discovery"];
    let datagram = opening.halves()[0].datagrams().next().unwrap_or_default();
    let is_xml = datagram.trim_ascii_start().starts_with(b"<");
    let names = |namespace: &[u8]| datagram.windows(namespace.len()).any(|part| part == namespace);
    match is_xml && NAMESPACES.into_iter().any(names) {
        true => plaintext("ws-discovery", Grade::Seen, "a SOAP envelope of WS-Discovery"),
        false => Verdict::No,
    }
}
