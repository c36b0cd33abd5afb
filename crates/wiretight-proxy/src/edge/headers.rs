//! The headers that are forwarded and those that the edge sets itself. Removes hop-by-hop headers, and everything
//! about the client except what the edge itself has verified.

use std::net::IpAddr;
use std::rc::Rc;

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::claims;
use super::strict::MAX_LENGTH_DIGITS;

/// Hop-by-hop headers (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Part of an upgrade to HTTP/2 without TLS, which is not supported (RFC 9113, section 3.1).
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// The client's verified identity; only the edge may set it.
const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// Removes hop-by-hop headers, and those listed in `Connection`.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if let Some(first) = headers.get(header::CONNECTION) {
        // In most requests there is one value with one word.
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

/// Whether an HTTP/2 or HTTP/3 request is malformed: it has a hop-by-hop header (RFC 9113, section 8.2.2; RFC 9114,
/// section 4.2) or an invalid length. In HTTP/1 these would change where the message ends.
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

/// Whether this is a valid Content-Length: one number (RFC 9110, section 8.6).
pub(crate) fn is_length(value: &HeaderValue) -> bool {
    let digits = value.as_bytes();
    (1..=MAX_LENGTH_DIGITS).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit)
}

/// The value of Content-Length, if valid.
pub(crate) fn length(headers: &HeaderMap) -> Option<u64> {
    let value = headers.get(header::CONTENT_LENGTH).filter(|value| is_length(value))?;
    value.to_str().ok()?.parse().ok()
}

/// Whether the client accepts trailers.
pub(crate) fn takes_trailers(headers: &HeaderMap) -> bool {
    has_word(headers, &header::TE, b"trailers")
}

/// Whether the client requests an upgrade to WebSocket. Other protocols are rejected, because their requests would
/// reach the program unchecked; `h2c`, for example, is HTTP itself.
pub(crate) fn asks_for_websocket(headers: &HeaderMap) -> bool {
    has_word(headers, &header::CONNECTION, b"upgrade") && is_for_websocket(headers)
}

pub(crate) fn is_for_websocket(headers: &HeaderMap) -> bool {
    has_word(headers, &header::UPGRADE, b"websocket")
}

fn has_word(headers: &HeaderMap, name: &HeaderName, word: &[u8]) -> bool {
    let mut words = headers.get_all(name).iter().flat_map(|v| v.as_bytes().split(|b| *b == b','));
    words.any(|w| w.trim_ascii().eq_ignore_ascii_case(word))
}

/// The forwarding headers for a client's requests to one host.
pub(crate) struct ForwardingHeaders {
    host: HeaderValue,
    address: HeaderValue,
    forwarded: HeaderValue,
}

impl ForwardingHeaders {
    pub(crate) fn new(address: IpAddr, host: &str) -> ForwardingHeaders {
        let value =
            |text: &str| HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""));
        // RFC 7239, section 6: an IPv6 address is in brackets and quoted.
        let client = match address {
            IpAddr::V4(ip) => format!("{ip}"),
            IpAddr::V6(ip) => format!("\"[{ip}]\""),
        };
        ForwardingHeaders {
            host: value(host),
            address: value(&address.to_string()),
            forwarded: value(&format!("for={client};host={host};proto=https")),
        }
    }

    /// Whether they are for this host.
    pub(crate) fn is_of(&self, host: &str) -> bool {
        self.host.as_bytes() == host.as_bytes()
    }
}

/// What the edge knows about the sender of a request.
pub(crate) struct Sender<'a> {
    pub(crate) forwarding: Rc<ForwardingHeaders>,
    /// A proxy that the configuration trusts; its headers about the client are kept.
    pub(crate) trusted: bool,
    /// The certificate that it presented, in the format of [`CLIENT_CERT`].
    pub(crate) certificate: Option<&'a str>,
}

/// Sets the headers about the client; removes the client's own, unless the sender is trusted.
pub(crate) fn forwarded(headers: &mut HeaderMap, sender: &Sender<'_>) {
    claims::remove(headers, sender.trusted);
    let forwarding = &*sender.forwarding;
    if sender.trusted {
        append(headers, FOR, &forwarding.address);
        append(headers, header::FORWARDED, &forwarding.forwarded);
    } else {
        headers.insert(FOR, forwarding.address.clone());
        headers.insert(header::FORWARDED, forwarding.forwarded.clone());
    }
    if !sender.trusted || !headers.contains_key(PROTO) {
        headers.insert(PROTO, HeaderValue::from_static("https"));
    }
    if !sender.trusted || !headers.contains_key(HOST) {
        headers.insert(HOST, forwarding.host.clone());
    }
    if let Some(certificate) = sender.certificate {
        set(headers, CLIENT_CERT, certificate);
    }
}

/// Appends a value to the existing ones, as one line.
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

/// Joins cookies that HTTP/2 and HTTP/3 may split (RFC 9113, section 8.2.3).
pub(crate) fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(header::COOKIE).iter().nth(1).is_none() {
        return;
    }
    let pieces: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(|v| v.as_bytes()).collect();
    if let Ok(whole) = HeaderValue::from_bytes(&pieces.join(b"; ".as_slice())) {
        headers.insert(header::COOKIE, whole);
    }
}

/// The host in an authority or a Host header: lower case, without port and trailing dot.
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
    fn hop_by_hop_headers_are_removed() {
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
    fn only_upgrades_to_websocket_are_allowed() {
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
    fn http2_and_3_requests_with_connection_headers_are_malformed() {
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
    fn untrusted_clients_cannot_set_forwarding_headers() {
        let claims = [
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-proto", "http"),
            ("x-real-ip", "1.1.1.1"),
            ("forwarded", "for=1.1.1.1"),
            ("x-forwarded-client-cert", "URI=spiffe://example.org/service/admin"),
        ];
        let forwarding = |address: &str| {
            Rc::new(ForwardingHeaders::new(address.parse().unwrap(), "example.org"))
        };
        let sender =
            |trusted| Sender { forwarding: forwarding("10.0.0.9"), trusted, certificate: None };
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
        forwarded(
            &mut headers,
            &Sender { forwarding: forwarding("fd00::1"), certificate, trusted: false },
        );
        assert_eq!(headers["forwarded"], "for=\"[fd00::1]\";host=example.org;proto=https");
        assert_eq!(headers["x-forwarded-client-cert"], "URI=spiffe://example.org/service/web");
    }

    #[test]
    fn split_cookies_are_joined() {
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
