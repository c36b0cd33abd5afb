//! HTTP response headers: HSTS, HTTP/3, security headers; and whether port 80 redirects to HTTPS.
//!
//! This is the only part that uses rustls, because a request needs a complete handshake. Certificates are
//! not verified here: nothing confidential is sent, and another module checks them.

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::aws_lc_rs;
use rustls::{AlertDescription, ClientConfig, Error, version};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::anyone::DangerouslyBelievesAll;
use super::identity::ClientIdentity;
use super::link::printable;
use crate::facts::{Answer, Facts, Value};
use crate::target::{Host, Target};

/// The maximum size of a response head.
const MAX_HEAD: usize = 64 << 10;
const MAX_FIELDS: usize = 256;
/// The maximum number of interim responses (1xx).
const MAX_INTERIM: usize = 8;
/// The maximum length of a field in a report.
const MAX_SHOWN: usize = 2048;

/// The headers that are reported as `http.header.<name>`.
pub const HEADERS: &[&str] = &[
    "content-security-policy",
    "cross-origin-embedder-policy",
    "cross-origin-opener-policy",
    "cross-origin-resource-policy",
    "permissions-policy",
    "referrer-policy",
    "x-content-type-options",
    "x-frame-options",
];

/// The Host field of a request to this target (RFC 9110 section 7.2), without a zone.
pub fn host_header(target: &Target) -> String {
    let host = match &target.host {
        Host::Name(name) => name.clone(),
        Host::Address(address, _) if address.is_ipv6() => format!("[{address}]"),
        Host::Address(address, _) => address.to_string(),
    };
    match target.port {
        443 => host,
        port => format!("{host}:{port}"),
    }
}

/// Requests `/` over TLS: `http.status`, `http.hsts` and its details, `http.http3`, `http.header.<name>`.
/// They are untested if the server does not speak HTTP.
///
/// Connection, handshake and response take at most `timeout` each; twice, if the server rejects the ALPN
/// protocol http/1.1.
pub async fn http(
    address: SocketAddr,
    name: Option<&str>,
    host_header: &str,
    timeout: Duration,
    identity: Option<&ClientIdentity>,
) -> Facts {
    let head = fetch(address, Some(name), host_header, timeout, identity).await;
    let mut facts = Facts::default();
    match head {
        Ok(head) => tell(&head, &mut facts),
        Err(failure) => {
            let (answer, evidence) = failure.fact();
            let ids = ["http.status", "http.hsts", "http.hsts.subdomains", "http.hsts.preload"];
            let headers = HEADERS.iter().map(|name| format!("http.header.{name}"));
            let ids = ids.into_iter().chain(["http.http3"]).map(str::to_owned).chain(headers);
            ids.for_each(|id| facts.set(id, answer, None, evidence.clone()));
        }
    }
    facts
}

/// Requests `/` from port 80: `http.redirect`. `host` is the Host field.
pub async fn redirect(address: SocketAddr, host: &str, timeout: Duration) -> Facts {
    let mut facts = Facts::default();
    let (answer, value, evidence) = match fetch(address, None, host, timeout, None).await {
        Err(Failure::Refused) => {
            (Answer::Untested, None, format!("port {} is closed", address.port()))
        }
        Err(failure) => {
            let (answer, evidence) = failure.fact();
            (answer, None, evidence)
        }
        Ok(head) => where_to(&head, host),
    };
    facts.set("http.redirect", answer, value, evidence);
    facts
}

fn where_to(head: &Head, host: &str) -> (Answer, Option<Value>, String) {
    let status = head.status;
    let location = head.first("location");
    if !matches!(status, 301 | 302 | 303 | 307 | 308) {
        return (Answer::No, None, format!("status {status}"));
    }
    let Some(location) = location else {
        return (Answer::No, None, format!("status {status} without Location"));
    };
    let shown = shown(location);
    let value = Some(Value::Text(shown.clone()));
    // RFC 3986 section 3.1: a scheme in any case.
    let rest = match location.split_at_checked(8) {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https://") => rest,
        _ => return (Answer::No, value, format!("status {status} to {shown}")),
    };
    let authority = rest.split(['/', '?', '#', '\\']).next().unwrap_or_default();
    let there = without_port(authority.rsplit('@').next().unwrap_or_default());
    let same = there.eq_ignore_ascii_case(without_port(host));
    let other = if same { "" } else { ", another host" };
    (Answer::Yes, value, format!("status {status} to {shown}{other}"))
}

fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    }
}

/// Sets the facts from a response head.
fn tell(head: &Head, facts: &mut Facts) {
    let status = head.status;
    let number = Value::Number(status.into());
    facts.set(
        "http.status",
        Answer::Yes,
        Some(number),
        format!("the response to GET / is {status}"),
    );
    let absent = format!("not in the response to GET / (status {status})");

    let (id, subdomains, preload) = ("http.hsts", "http.hsts.subdomains", "http.hsts.preload");
    // RFC 6797 section 8.1: only the first field counts.
    match head.first("strict-transport-security") {
        None => {
            for id in [id, subdomains, preload] {
                facts.set(id, Answer::No, None, absent.clone());
            }
        }
        Some(field) => {
            let evidence = format!("Strict-Transport-Security: {}", shown(field));
            let yes = |seen| if seen { Answer::Yes } else { Answer::No };
            match Hsts::parse(field) {
                Err(why) => {
                    let evidence = format!("{evidence}, which browsers ignore: {why}");
                    for id in [id, subdomains, preload] {
                        facts.set(id, Answer::No, None, evidence.clone());
                    }
                }
                Ok(hsts) => {
                    let age = Some(Value::Number(hsts.max_age));
                    let on = hsts.max_age > 0;
                    let off = if on { "" } else { ", which turns it off" };
                    facts.set(id, yes(on), age, format!("{evidence}{off}"));
                    facts.set(subdomains, yes(on && hsts.subdomains), None, evidence.clone());
                    facts.set(preload, yes(on && hsts.preload), None, evidence);
                }
            }
        }
    }

    let alternatives = head.all("alt-svc");
    let (answer, evidence) = match &alternatives {
        None => (Answer::No, absent.clone()),
        Some(field) => {
            let yes = if lists_http3(field) { Answer::Yes } else { Answer::No };
            (yes, format!("Alt-Svc: {}", shown(field)))
        }
    };
    facts.set("http.http3", answer, None, evidence);

    for name in HEADERS {
        let id = format!("http.header.{name}");
        match head.all(name) {
            None => facts.set(id, Answer::No, None, absent.clone()),
            Some(field) => {
                let value = Value::Text(shown(&field));
                facts.set(id, Answer::Yes, Some(value), format!("status {status}"));
            }
        }
    }
}

/// RFC 6797 section 6.1.
#[derive(Debug, PartialEq, Eq)]
struct Hsts {
    max_age: u64,
    subdomains: bool,
    preload: bool,
}

impl Hsts {
    fn parse(field: &str) -> Result<Self, String> {
        let (mut max_age, mut subdomains, mut preload) = (None, false, false);
        let mut seen = Vec::new();
        for directive in split(field, b';') {
            let directive = trim(directive);
            if directive.is_empty() {
                continue;
            }
            let (name, value) = match directive.split_once('=') {
                Some((name, value)) => (trim(name), Some(trim(value))),
                None => (directive, None),
            };
            let name = name.to_ascii_lowercase();
            if !is_token(&name) {
                return Err("a directive has no valid name".into());
            }
            let value = match value {
                None => None,
                Some(value) => {
                    Some(unquoted(value).ok_or(format!("{name} has no valid value after ="))?)
                }
            };
            if seen.contains(&name) {
                return Err(format!("{} is repeated", shown(&name)));
            }
            match (name.as_str(), value) {
                ("max-age", Some(value)) => {
                    if value.is_empty() || !value.bytes().all(|b| b.is_ascii_digit()) {
                        return Err("max-age is not a number".into());
                    }
                    // Larger numbers are capped.
                    max_age = Some(value.parse().unwrap_or(u64::MAX));
                }
                ("max-age", None) => return Err("max-age has no value".into()),
                ("includesubdomains", None) => subdomains = true,
                ("includesubdomains", Some(_)) => {
                    return Err("includeSubDomains has a value".into());
                }
                // Not in the RFC, but required by the preload lists of browsers.
                ("preload", None) => preload = true,
                _ => {}
            }
            seen.push(name);
        }
        let max_age = max_age.ok_or("max-age is missing")?;
        Ok(Self { max_age, subdomains, preload })
    }
}

/// Whether an Alt-Svc field advertises HTTP/3 (RFC 7838 section 3, RFC 9114 section 3.1.1).
fn lists_http3(field: &str) -> bool {
    split(field, b',').into_iter().any(|alternative| {
        let first = split(alternative, b';').into_iter().next().unwrap_or_default();
        let Some((protocol, authority)) = first.split_once('=') else { return false };
        let authority = unquoted(trim(authority)).unwrap_or_default();
        let port = authority.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
        trim(protocol) == "h3" && matches!(port, Some(Ok(1..)))
    })
}

/// Splits at separators outside of quotes.
fn split(text: &str, separator: u8) -> Vec<&str> {
    let (mut pieces, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (i, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b if b == separator && !quoted => {
                pieces.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    pieces.push(&text[start..]);
    pieces
}

/// Returns a token unchanged, and a quoted-string without its quotes (RFC 9110 section 5.6).
fn unquoted(value: &str) -> Option<String> {
    let Some(rest) = value.strip_prefix('"') else {
        return is_token(value).then(|| value.to_owned());
    };
    let (mut out, mut characters) = (String::new(), rest.chars());
    loop {
        match characters.next()? {
            '"' => return characters.next().is_none().then_some(out),
            '\\' => out.push(characters.next()?),
            c => out.push(c),
        }
    }
}

fn is_token(text: &str) -> bool {
    let sound = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty() && text.bytes().all(sound)
}

fn trim(text: &str) -> &str {
    text.trim_matches([' ', '\t'])
}

/// Escapes and shortens a field for reports.
fn shown(field: &str) -> String {
    let mut out = String::new();
    for c in field.chars() {
        if out.len() >= MAX_SHOWN {
            out.push_str("...");
            break;
        }
        match c {
            ' '..='~' => out.push(c),
            _ => out.extend(c.escape_default()),
        }
    }
    out
}

/// The head of a response.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    /// Names are in lower case. Bytes outside of ASCII are read as Latin-1.
    fields: Vec<(String, String)>,
}

impl Head {
    fn first(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// All fields of this name, joined as a list (RFC 9110 section 5.3).
    fn all(&self, name: &str) -> Option<String> {
        let fields = self.fields.iter().filter(|(n, _)| n == name);
        let all: Vec<_> = fields.map(|(_, value)| value.as_str()).collect();
        (!all.is_empty()).then(|| all.join(", "))
    }

    /// Parses a complete head, including the final empty line (RFC 9112 sections 2.1, 4 and 5).
    fn parse(bytes: &[u8]) -> Result<Self, Failure> {
        let text: String = bytes.iter().map(|b| char::from(*b)).collect();
        let mut lines = text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line));
        let first = lines.next().unwrap_or_default();
        let not_http = || Failure::NotHttp(printable(bytes));
        let rest = first.strip_prefix("HTTP/1.").ok_or_else(not_http)?;
        let status = rest.split(' ').nth(1).ok_or_else(not_http)?;
        let status = match status.parse() {
            Ok(code @ 100..=999) if status.len() == 3 => code,
            _ => return Err(not_http()),
        };
        let mut fields = Vec::new();
        for line in lines.filter(|line| !line.is_empty()) {
            if fields.len() == MAX_FIELDS {
                return Err(Failure::TooMuch);
            }
            // Malformed and folded lines are ignored, as browsers do.
            if let Some((name, value)) = line.split_once(':')
                && is_token(name)
            {
                fields.push((name.to_ascii_lowercase(), trim(value).to_owned()));
            }
        }
        Ok(Self { status, fields })
    }
}

/// Why there is no response head.
#[derive(Debug, PartialEq, Eq)]
enum Failure {
    /// Nothing listens on the port.
    Refused,
    /// No connection, or it failed.
    Connection(String),
    /// This step took too long.
    TimedOut(&'static str),
    /// The handshake failed.
    Tls(String),
    /// The server supports none of the offered ALPN protocols.
    Alpn,
    /// Closed before the head was complete.
    Closed,
    /// The head is too long.
    TooMuch,
    /// The response is not HTTP; its first bytes.
    NotHttp(String),
}

impl Failure {
    fn fact(&self) -> (Answer, String) {
        match self {
            // The HTTP checks do not apply.
            Self::NotHttp(_) => (Answer::Untested, self.to_string()),
            _ => (Answer::Inconclusive, self.to_string()),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => f.write_str("no connection: refused"),
            Self::Connection(why) => write!(f, "no answer: {why}"),
            Self::TimedOut(what) => write!(f, "{what} took too long"),
            Self::Tls(why) => write!(
                f,
                "this scanner's HTTP client and the server have no common TLS parameters: {why}"
            ),
            Self::Alpn => f.write_str("alert no_application_protocol (120) to HTTP/1.1"),
            Self::Closed => f.write_str("closed before the response was complete"),
            Self::TooMuch => write!(
                f,
                "a response head with more than {} KiB, {MAX_FIELDS} fields or {MAX_INTERIM} interim \
                 responses",
                MAX_HEAD >> 10
            ),
            Self::NotHttp(first) => write!(f, "not HTTP: {first}"),
        }
    }
}

/// The head of the response to GET /. `tls` is `None` for plaintext, and otherwise contains the server name.
async fn fetch(
    address: SocketAddr,
    tls: Option<Option<&str>>,
    host: &str,
    timeout: Duration,
    identity: Option<&ClientIdentity>,
) -> Result<Head, Failure> {
    if host.is_empty() || !host.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Failure::Connection("the host name is invalid".into()));
    }
    let Some(name) = tls else {
        let mut stream = connect(address, timeout).await?;
        return within(timeout, "the response", ask(&mut stream, host)).await;
    };
    let name = name.and_then(|name| ServerName::try_from(name.to_owned()).ok());
    let name = name.unwrap_or_else(|| ServerName::from(address.ip()));
    // Some servers speak HTTP/1.1, but reject its ALPN name: retry without ALPN.
    let named = config(vec![b"http/1.1".to_vec()], identity)?;
    match fetch_tls(address, &name, host, timeout, named).await {
        Err(Failure::Alpn) => {
            let nameless = config(Vec::new(), identity)?;
            fetch_tls(address, &name, host, timeout, nameless).await
        }
        other => other,
    }
}

async fn fetch_tls(
    address: SocketAddr,
    name: &ServerName<'static>,
    host: &str,
    timeout: Duration,
    config: ClientConfig,
) -> Result<Head, Failure> {
    let stream = connect(address, timeout).await?;
    let connector = TlsConnector::from(Arc::new(config));
    let failed = |e: std::io::Error| match e.get_ref().and_then(|e| e.downcast_ref::<Error>()) {
        Some(Error::AlertReceived(AlertDescription::NoApplicationProtocol)) => Failure::Alpn,
        _ => Failure::Tls(e.to_string()),
    };
    let handshake = async { connector.connect(name.clone(), stream).await.map_err(failed) };
    let mut stream = within(timeout, "the handshake", handshake).await?;
    within(timeout, "the response", ask(&mut stream, host)).await
}

async fn within<T>(
    timeout: Duration,
    what: &'static str,
    step: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::time::timeout(timeout, step).await.unwrap_or(Err(Failure::TimedOut(what)))
}

async fn connect(address: SocketAddr, timeout: Duration) -> Result<TcpStream, Failure> {
    within(timeout, "the connection", async {
        let stream = TcpStream::connect(address).await.map_err(|e| match e.kind() {
            std::io::ErrorKind::ConnectionRefused => Failure::Refused,
            _ => Failure::Connection(e.to_string()),
        })?;
        let _ = stream.set_nodelay(true);
        Ok(stream)
    })
    .await
}

async fn ask(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    host: &str,
) -> Result<Head, Failure> {
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {host}\r\nUser-Agent: wiretight-scan\r\nAccept: */*\r\n\
         Connection: close\r\n\r\n"
    );
    // If this fails, there may still be a response to read.
    let _ = stream.write_all(request.as_bytes()).await;
    let _ = stream.flush().await;
    let (mut bytes, mut total, mut searched) = (Vec::new(), 0, 0);
    let mut interim = 0;
    let mut chunk = [0; 4096];
    loop {
        while let Some(end) = end_of_head(&bytes, &mut searched) {
            let head = Head::parse(&bytes[..end])?;
            // RFC 9110 section 15.2. After 101 the connection uses another protocol.
            if !(100..200).contains(&head.status) || head.status == 101 {
                return Ok(head);
            }
            interim += 1;
            if interim > MAX_INTERIM {
                return Err(Failure::TooMuch);
            }
            bytes.drain(..end);
            searched = 0;
        }
        // Check the first bytes early, because other protocols may never end.
        let start = bytes.len().min(7);
        if bytes[..start] != b"HTTP/1."[..start] {
            return Err(Failure::NotHttp(printable(&bytes)));
        }
        if total >= MAX_HEAD {
            return Err(Failure::TooMuch);
        }
        match stream.read(&mut chunk).await {
            Ok(0) => return Err(Failure::Closed),
            Ok(n) => {
                total += n;
                bytes.extend_from_slice(&chunk[..n]);
            }
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(Failure::Closed);
            }
            Err(e) => return Err(Failure::Connection(e.to_string())),
        }
    }
}

/// The end of the empty line after a head. `searched` avoids searching the same bytes again.
fn end_of_head(bytes: &[u8], searched: &mut usize) -> Option<usize> {
    for i in *searched..bytes.len() {
        if bytes[i] == b'\n' && (bytes[..i].ends_with(b"\n") || bytes[..i].ends_with(b"\n\r")) {
            return Some(i + 1);
        }
    }
    *searched = bytes.len();
    None
}

fn config(alpn: Vec<Vec<u8>>, identity: Option<&ClientIdentity>) -> Result<ClientConfig, Failure> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&version::TLS13, &version::TLS12])
        .map_err(|e| Failure::Tls(e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(DangerouslyBelievesAll(provider)));
    let mut config = match identity {
        Some(identity) => config
            .with_client_auth_cert(identity.chain().to_vec(), identity.private())
            .map_err(|e| Failure::Tls(e.to_string()))?,
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = alpn;
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hsts_is_parsed_as_strictly_as_by_browsers() {
        let hsts = |max_age, subdomains, preload| Ok(Hsts { max_age, subdomains, preload });
        for (field, expected) in [
            ("max-age=31536000", hsts(31_536_000, false, false)),
            (" ; Max-Age = \"60\" ;;includeSubDomains; preload ", hsts(60, true, true)),
            ("max-age=0; unknown=\"a;b=c\"; other", hsts(0, false, false)),
            ("max-age=99999999999999999999999", hsts(u64::MAX, false, false)),
        ] {
            assert_eq!(Hsts::parse(field), expected, "{field}");
        }
        for wrong in [
            "",
            "includeSubDomains",
            "max-age",
            "max-age=",
            "max-age=-1",
            "max-age=1.5",
            "max-age=\"60",
            "max-age=60; max-age=60",
            "max-age=60, includeSubDomains",
            "max-age=60; includeSubDomains=1",
            "max-age=60; a b",
            "max-age=60; x=",
            "=1; max-age=60",
        ] {
            assert!(Hsts::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn http3_is_recognized_only_by_its_final_name() {
        for yes in ["h3=\":443\"; ma=86400", "h2=\":1\", h3=\"a.example:8443\"; persist=1"] {
            assert!(lists_http3(yes), "{yes}");
        }
        for no in ["clear", "h3-29=\":443\"", "h2=\"h3=:443\"", "x=\",h3=:443\"", "h3=\"a\"", "h3"]
        {
            assert!(!lists_http3(no), "{no}");
        }
    }

    #[test]
    fn only_an_https_location_is_a_redirect_to_https() {
        let answer = |status, location: Option<&str>| {
            let field = |l: &str| ("location".to_owned(), l.to_owned());
            let head = Head { status, fields: location.map(field).into_iter().collect() };
            let (answer, _, evidence) = where_to(&head, "www.example");
            (answer, evidence.contains("another host"))
        };
        assert_eq!(answer(301, Some("HTTPS://WWW.example:443/x")), (Answer::Yes, false));
        assert_eq!(answer(308, Some("https://example/")), (Answer::Yes, true));
        assert_eq!(answer(302, Some("https://www.example@evil.example/")), (Answer::Yes, true));
        for location in [Some("http://www.example/"), Some("/login"), Some("https:/"), None] {
            assert_eq!(answer(301, location).0, Answer::No, "{location:?}");
        }
        assert_eq!(answer(200, Some("https://www.example/")).0, Answer::No);
    }

    #[test]
    fn heads_are_parsed_and_other_protocols_are_not_http() {
        let head = Head::parse(b"HTTP/1.1 204\r\nA: b \r\nbad line\r\na:c\xe9\n\r\n").unwrap();
        assert_eq!((head.status, head.all("a").as_deref()), (204, Some("b, c\u{e9}")));
        for wrong in ["HTTP/2 200\r\n\r\n", "HTTP/1.1\r\n\r\n", "HTTP/1.1 2000 x\r\n\r\n", "SSH-2"]
        {
            assert!(matches!(Head::parse(wrong.as_bytes()), Err(Failure::NotHttp(_))), "{wrong}");
        }
        let mut searched = 0;
        assert_eq!(end_of_head(b"HTTP/1.1 200 OK\r\nA: b\r\n", &mut searched), None);
        assert_eq!(end_of_head(b"HTTP/1.1 200 OK\r\nA: b\r\n\r\nx", &mut searched), Some(25));
    }
}
