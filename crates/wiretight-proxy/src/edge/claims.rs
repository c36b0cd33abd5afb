//! Header names that proxies use to tell programs about the client and its request. Programs trust them, so clients
//! must not send them.
//!
//! Many programs get header names through CGI, WSGI, Rack or PHP, which replace every character except letters and
//! digits by `_`. So names are compared in that form here: `X_Forwarded_For` and `x.forwarded.for` equal
//! `x-forwarded-for`.

use hyper::header::{HeaderMap, HeaderName};

/// Only the edge itself may set this one, even if the request comes from a trusted proxy.
const CLIENT_CERT: &str = "x-forwarded-client-cert";

/// Prefixes of such names.
const PREFIXES: [&str; 17] = [
    "x-forwarded",
    "forwarded",
    "x-envoy-external",
    "x-auth-request-",
    "x-authenticated-",
    "x-authentik-",
    "x-remote-user",
    "x-remote-group",
    "x-remote-extra",
    "x-webauth-",
    "x-ssl-client",
    "ssl-client",
    "x-client-cert",
    "client-cert",
    "x-amzn-mtls-",
    "x-goog-authenticated-",
    "x-ms-client-principal",
];

/// Suffixes of such names.
const SUFFIXES: [&str; 11] = [
    "client-ip",
    "clientip",
    "connecting-ip",
    "connecting-ipv6",
    "real-ip",
    "remote-ip",
    "remote-addr",
    "true-ip",
    "user-ip",
    "originating-ip",
    "forwarded-for",
];

/// Complete names.
const NAMES: [&str; 25] = [
    "cf-access-authenticated-user-email",
    "cf-ipcountry",
    "cf-pseudo-ipv4",
    "cf-visitor",
    "front-end-https",
    "proxy", // in CGI it is HTTP_PROXY (CVE-2016-5385)
    "remote-email",
    "remote-groups",
    "remote-name",
    "remote-user",
    "x-arr-clientcert",
    "x-azure-socketip",
    "x-client-dn",
    "x-client-verify",
    "x-host",
    "x-http-host-override",
    "x-original-host",
    "x-original-method",
    "x-original-proto",
    "x-original-uri",
    "x-original-url",
    "x-proxy-user",
    "x-rewrite-url",
    "x-scheme",
    "x-url-scheme",
];

/// Headers that the edge itself controls. A program that normalises names must not see a second one.
const OWN: [&str; 12] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Further headers that must not be in trailers (RFC 9110, section 6.5.1), because they would take effect too late or
/// twice.
const HEAD_ONLY: [&str; 10] = [
    "authorization",
    "cache-control",
    "content-encoding",
    "content-range",
    "content-type",
    "cookie",
    "max-forwards",
    "range",
    "sec-websocket-key",
    "set-cookie",
];

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-'
}

/// The names of a [`HeaderName`] are in lower case.
fn same(name: &[u8], known: &str) -> bool {
    let fold = |byte: u8| if is_plain(byte) { byte } else { b'-' };
    name.len() == known.len() && name.iter().zip(known.bytes()).all(|(a, b)| fold(*a) == b)
}

fn is_claim(name: &[u8]) -> bool {
    let starts = |known: &&str| name.get(..known.len()).is_some_and(|start| same(start, known));
    let ends = |known: &&str| {
        let at = name.len().checked_sub(known.len());
        at.is_some_and(|at| same(&name[at..], known))
    };
    // A quick check, because most names in a request start with none of these.
    (name.first().is_some_and(|b| b"xfrscp".contains(b))
        && (PREFIXES.iter().any(starts) || NAMES.iter().any(|n| same(name, n))))
        || (matches!(name.last(), Some(b'p' | b'6' | b'r')) && SUFFIXES.iter().any(ends))
}

fn is_disguised(name: &[u8]) -> bool {
    !name.iter().all(|b| is_plain(*b)) && (is_claim(name) || OWN.iter().any(|n| same(name, n)))
}

/// Removes headers that the sender of a request may not set. A trusted proxy may set proxy headers, in their usual
/// spelling, but not the client's verified identity.
pub(crate) fn remove(headers: &mut HeaderMap, trusted: bool) {
    remove_if(headers, |name| {
        name == CLIENT_CERT
            || (!trusted && is_claim(name.as_bytes()))
            || is_disguised(name.as_bytes())
    });
}

/// Removes headers that are not allowed in a request's trailers.
pub(crate) fn remove_from_trailers(trailers: &mut HeaderMap) {
    remove_if(trailers, |name| {
        let name = name.as_bytes();
        is_claim(name) || OWN.iter().chain(&HEAD_ONLY).any(|known| same(name, known))
    });
}

/// Does not allocate if there is nothing to remove.
fn remove_if(headers: &mut HeaderMap, unwanted: impl Fn(&str) -> bool) {
    let named: Vec<HeaderName> =
        headers.keys().filter(|name| unwanted(name.as_str())).cloned().collect();
    for name in named {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(names: &[&'static str], remove: impl Fn(&mut HeaderMap)) -> Vec<String> {
        let mut map = HeaderMap::new();
        for name in names {
            map.append(*name, "1".parse().unwrap());
        }
        remove(&mut map);
        map.keys().map(ToString::to_string).collect()
    }

    const CLAIMS: [&str; 44] = [
        "forwarded",
        "x-forwarded",
        "x-forwarded-for",
        "x-forwarded-user",
        "x-forwarded-prefix",
        "x-forwarded-scheme",
        "x-forwarded-ssl",
        "x-forwarded-uri",
        "x-forwarded-port",
        "x-forwarded-server",
        "x-forwarded-anything",
        "x-real-ip",
        "x-client-ip",
        "true-client-ip",
        "client-ip",
        "cf-connecting-ip",
        "cf-connecting-ipv6",
        "fastly-client-ip",
        "x-cluster-client-ip",
        "wl-proxy-client-ip",
        "x-azure-clientip",
        "x-appengine-user-ip",
        "x-remote-addr",
        "x-originating-ip",
        "x-original-forwarded-for",
        "x-original-url",
        "x-rewrite-url",
        "x-remote-user",
        "remote-user",
        "client-cert",
        "client-cert-chain",
        "x-ssl-client-s-dn",
        "front-end-https",
        "proxy",
        "x_forwarded_for",
        "x-forwarded_for",
        "x.forwarded.for",
        "x_real_ip",
        "client_ip",
        "x_forwarded_proto",
        "remote_user",
        "transfer_encoding",
        "content_length",
        "host_", // control: not in the lists
    ];

    #[test]
    fn clients_cannot_set_proxy_headers() {
        assert_eq!(left(&CLAIMS, |map| remove(map, false)), ["host_"]);
    }

    #[test]
    fn a_trusted_proxy_can_set_proxy_headers_in_their_usual_spelling() {
        let kept = ["x-forwarded-for", "x-real-ip", "x-forwarded-user", "forwarded", "cf-visitor"];
        assert_eq!(left(&kept, |map| remove(map, true)), kept);
        let folded = ["x_forwarded_for", "x_real_ip", "x_forwarded_client_cert", "client_cert"];
        assert!(left(&folded, |map| remove(map, true)).is_empty());
        assert!(left(&["x-forwarded-client-cert"], |map| remove(map, true)).is_empty());
    }

    #[test]
    fn other_headers_are_kept() {
        let others = [
            "accept",
            "authorization",
            "cookie",
            "content-length",
            "content-type",
            "host",
            "if-none-match",
            "my_header",
            "origin",
            "referer",
            "sec-fetch-mode",
            "user-agent",
            "x-api-key",
            "x-csrf-token",
            "x-request-id",
            "x-requested-with",
            "x-trip",
            "proxy-status",
        ];
        assert_eq!(left(&others, |map| remove(map, false)), others);
    }

    #[test]
    fn trailers_cannot_contain_proxy_headers_or_head_only_fields() {
        let bad = ["host", "content-length", "authorization", "cookie", "te", "trailer"];
        assert!(left(&bad, remove_from_trailers).is_empty());
        assert_eq!(left(&CLAIMS, remove_from_trailers), ["host_"]);
        let good = ["grpc-status", "server-timing", "digest", "x-checksum"];
        assert_eq!(left(&good, remove_from_trailers), good);
    }
}
