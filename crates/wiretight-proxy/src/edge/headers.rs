//! Which headers go through, and which the edge speaks for: nothing that concerns one connection only, and
//! nothing about the client but what the edge has seen itself.

use std::net::IpAddr;
use std::rc::Rc;

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::claims;
use super::strict::MAX_LENGTH_DIGITS;

/// Those that concern one connection only (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// What belongs to an upgrade to HTTP/2 without TLS, which is not offered (RFC 9113, section 3.1).
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// Who the client proved to be; the edge alone says it.
const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// Removes what concerns one connection only, and what `Connection` says does.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if let Some(first) = headers.get(header::CONNECTION) {
        // Nearly always one value of one word that is in the list anyway.
        let named: Vec<HeaderName> = match first.as_bytes() {
            b"keep-alive" | b"close" => Vec::new(),
            _ => {
                let values = headers.get_all(header::CONNECTION).iter();
                let words = values.flat_map(|v| v.as_bytes().split(|b| *b == b','));
                words.filter_map(|w| HeaderName::from_bytes(w.trim_ascii()).ok()).collect()
            }
        };
        for name in named {
            headers.remove(name);
        }
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    headers.remove(HTTP2_SETTINGS);
}

/// Whether a request of HTTP/2 or 3 says what it may not: something that concerns one connection (RFC 9113,
/// section 8.2.2; RFC 9114, section 4.2), or a length that is none. In HTTP/1 it would cut the bytes elsewhere.
pub(crate) fn is_malformed(headers: &HeaderMap) -> bool {
    let told = |name: &HeaderName| {
        let may = [header::TE, header::PROXY_AUTHORIZATION].contains(name);
        !may && headers.contains_key(name)
    };
    let mut te = headers.get_all(header::TE).iter();
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    HOP_BY_HOP.iter().any(told)
        || te.any(|v| !v.as_bytes().eq_ignore_ascii_case(b"trailers"))
        || lengths.next().is_some_and(|first| !is_length(first) || lengths.next().is_some())
}

/// Whether that is a Content-Length: one number (RFC 9110, section 8.6).
pub(crate) fn is_length(value: &HeaderValue) -> bool {
    let digits = value.as_bytes();
    (1..=MAX_LENGTH_DIGITS).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit)
}

/// What Content-Length says, if it is one.
pub(crate) fn length(headers: &HeaderMap) -> Option<u64> {
    let value = headers.get(header::CONTENT_LENGTH).filter(|value| is_length(value))?;
    value.to_str().ok()?.parse().ok()
}

/// Whether the client takes trailers.
pub(crate) fn takes_trailers(headers: &HeaderMap) -> bool {
    has_word(headers, &header::TE, b"trailers")
}

/// Whether the client asks to continue with WebSocket. No other protocol is passed on: what is said in it would reach
/// the program unseen, as with `h2c`, which is HTTP again.
pub(crate) fn asks_for_websocket(headers: &HeaderMap) -> bool {
    has_word(headers, &header::CONNECTION, b"upgrade") && is_for_websocket(headers)
}

/// Whether `Upgrade` names WebSocket.
pub(crate) fn is_for_websocket(headers: &HeaderMap) -> bool {
    has_word(headers, &header::UPGRADE, b"websocket")
}

fn has_word(headers: &HeaderMap, name: &HeaderName, word: &[u8]) -> bool {
    let mut words = headers.get_all(name).iter().flat_map(|v| v.as_bytes().split(|b| *b == b','));
    words.any(|w| w.trim_ascii().eq_ignore_ascii_case(word))
}

/// What programs are told of a client's requests for one host.
pub(crate) struct Said {
    host: HeaderValue,
    address: HeaderValue,
    forwarded: HeaderValue,
}

impl Said {
    pub(crate) fn new(address: IpAddr, host: &str) -> Said {
        let value =
            |text: &str| HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""));
        // RFC 7239, section 6: an IPv6 address is quoted, in brackets.
        let client = match address {
            IpAddr::V4(ip) => format!("{ip}"),
            IpAddr::V6(ip) => format!("\"[{ip}]\""),
        };
        Said {
            host: value(host),
            address: value(&address.to_string()),
            forwarded: value(&format!("for={client};host={host};proto=https")),
        }
    }

    /// Whether it is for that host.
    pub(crate) fn is_of(&self, host: &str) -> bool {
        self.host.as_bytes() == host.as_bytes()
    }
}

/// Who sent a request, as far as the edge knows.
pub(crate) struct Sender<'a> {
    pub(crate) said: Rc<Said>,
    /// Another proxy of ours, whose word about the client counts.
    pub(crate) trusted: bool,
    /// The certificate that it showed, as [`CLIENT_CERT`] has it.
    pub(crate) certificate: Option<&'a str>,
}

/// Says who the client is; what it said itself goes, unless it is trusted.
pub(crate) fn forwarded(headers: &mut HeaderMap, sender: &Sender<'_>) {
    claims::remove(headers, sender.trusted);
    let said = &*sender.said;
    if sender.trusted {
        append(headers, FOR, &said.address);
        append(headers, header::FORWARDED, &said.forwarded);
    } else {
        headers.insert(FOR, said.address.clone());
        headers.insert(header::FORWARDED, said.forwarded.clone());
    }
    if !sender.trusted || !headers.contains_key(PROTO) {
        headers.insert(PROTO, HeaderValue::from_static("https"));
    }
    if !sender.trusted || !headers.contains_key(HOST) {
        headers.insert(HOST, said.host.clone());
    }
    if let Some(certificate) = sender.certificate {
        set(headers, CLIENT_CERT, certificate);
    }
}

/// Puts a value behind those that are there, in one line.
fn append(headers: &mut HeaderMap, name: HeaderName, value: &HeaderValue) {
    let mut line = Vec::new();
    for value in headers.get_all(&name).iter().filter(|v| v.to_str().is_ok()) {
        line.extend_from_slice(value.as_bytes());
        line.extend_from_slice(b", ");
    }
    line.extend_from_slice(value.as_bytes());
    if let Ok(line) = HeaderValue::from_bytes(&line) {
        headers.insert(name, line);
    }
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// Cookies that HTTP/2 and 3 may send in pieces become one line (RFC 9113, section 8.2.3).
pub(crate) fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(header::COOKIE).iter().nth(1).is_none() {
        return;
    }
    let pieces: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(|v| v.as_bytes()).collect();
    if let Ok(whole) = HeaderValue::from_bytes(&pieces.join(b"; ".as_slice())) {
        headers.insert(header::COOKIE, whole);
    }
}

/// The host of an authority or a Host header: small letters, no port, no dot at its end.
pub(crate) fn host(authority: &str) -> Option<String> {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        Some(_) => return None,
        None => authority,
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    (!host.is_empty() && host.bytes().all(plain)).then(|| host.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    fn lines(map: &HeaderMap) -> Vec<String> {
        let mut all: Vec<_> =
            map.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
        all.sort();
        all
    }

    #[test]
    fn what_concerns_one_connection_stays_on_it() {
        let mut headers = map(&[
            ("connection", "close, X-Mine"),
            ("connection", "keep-alive"),
            ("x-mine", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABkAAQCAAAAAAIAAAAA"),
            ("transfer-encoding", "chunked"),
            ("accept", "*/*"),
        ]);
        assert!(takes_trailers(&headers));
        assert!(!asks_for_websocket(&headers));
        strip_hop_by_hop(&mut headers);
        assert_eq!(lines(&headers), ["accept: */*"]);
    }

    #[test]
    fn websocket_is_the_only_protocol_that_is_gone_over_to() {
        let asks = |upgrade| {
            asks_for_websocket(&map(&[("connection", "keep-alive, Upgrade"), ("upgrade", upgrade)]))
        };
        for good in ["websocket", "WebSocket", "h2c, websocket"] {
            assert!(asks(good), "{good}");
        }
        for bad in ["h2c", "H2C", "TLS/1.0", "HTTP/2.0", "websockets", "connect-udp", ""] {
            assert!(!asks(bad), "{bad}");
        }
        assert!(!asks_for_websocket(&map(&[("upgrade", "websocket")])));
    }

    #[test]
    fn requests_of_http2_and_3_that_would_be_others_in_http1_are_malformed() {
        for good in [
            &[("te", "trailers"), ("te", "Trailers")][..],
            &[("proxy-authorization", "x")],
            &[("content-length", "0")],
            &[("content-length", "000000000000000005")],
            &[],
        ] {
            assert!(!is_malformed(&map(good)), "{good:?}");
        }
        for bad in [
            &[("te", "gzip")][..],
            &[("te", "trailers"), ("te", "trailers, gzip")],
            &[("connection", "close")],
            &[("transfer-encoding", "chunked")],
            &[("upgrade", "websocket")],
            &[("keep-alive", "timeout=5")],
            &[("proxy-connection", "close")],
            &[("content-length", "")],
            &[("content-length", "+5")],
            &[("content-length", "5, 5")],
            &[("content-length", "5"), ("content-length", "5")],
            &[("content-length", "0000000000000000005")],
        ] {
            assert!(is_malformed(&map(bad)), "{bad:?}");
        }
    }

    #[test]
    fn a_stranger_does_not_say_who_it_is() {
        let claims = [
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-proto", "http"),
            ("x-real-ip", "1.1.1.1"),
            ("forwarded", "for=1.1.1.1"),
            ("x-forwarded-client-cert", "URI=spiffe://example.org/service/admin"),
        ];
        let said = |address: &str| Rc::new(Said::new(address.parse().unwrap(), "example.org"));
        let sender = |trusted| Sender { said: said("10.0.0.9"), trusted, certificate: None };
        let mut headers = map(&claims);
        forwarded(&mut headers, &sender(false));
        let expected = [
            "forwarded: for=10.0.0.9;host=example.org;proto=https",
            "x-forwarded-for: 10.0.0.9",
            "x-forwarded-host: example.org",
            "x-forwarded-proto: https",
        ];
        assert_eq!(lines(&headers), expected);
        let mut headers = map(&claims);
        forwarded(&mut headers, &sender(true));
        let expected = [
            "forwarded: for=1.1.1.1, for=10.0.0.9;host=example.org;proto=https",
            "x-forwarded-for: 1.1.1.1, 10.0.0.9",
            "x-forwarded-host: example.org",
            "x-forwarded-proto: http",
            "x-real-ip: 1.1.1.1",
        ];
        assert_eq!(lines(&headers), expected);
        let mut headers = HeaderMap::new();
        let certificate = Some("URI=spiffe://example.org/service/web");
        forwarded(&mut headers, &Sender { said: said("fd00::1"), certificate, trusted: false });
        assert_eq!(headers["forwarded"], "for=\"[fd00::1]\";host=example.org;proto=https");
        assert_eq!(headers["x-forwarded-client-cert"], "URI=spiffe://example.org/service/web");
    }

    #[test]
    fn cookies_in_pieces_become_one_line() {
        let mut headers = map(&[("cookie", "a=1"), ("cookie", "b=2")]);
        join_cookies(&mut headers);
        assert_eq!(lines(&headers), ["cookie: a=1; b=2"]);
    }

    #[test]
    fn hosts_are_compared_without_port_case_and_dot() {
        for same in ["example.org", "EXAMPLE.org:443", "example.org.", "example.org.:8443"] {
            assert_eq!(host(same).as_deref(), Some("example.org"), "{same}");
        }
        for bad in ["", ":443", "a b", "a@b", "[::1]:443", "a:b", "a/b", "example.org:44x"] {
            assert_eq!(host(bad), None, "{bad}");
        }
    }
}
