//! Readers for values.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use hyper::http::uri::PathAndQuery;
use toml::de::DeValue;
use wiretight_keys::{Id, Name, TrustDomain};
use wiretight_proxy::edge::settings::{At, Network, SiteName, Upstream};
use wiretight_proxy::intercept::rules::{Direction, Mode, Pass, Protocol};
use wiretight_proxy::network::{Backend, HostPort};

use super::certificates::{AskUrl, AskUrlError, Challenge, MAX_WEB_TTL};
use super::exception::Subject;
use super::report::{Complaint, quoted, shown};

/// The lifetime of an SVID: long enough to renew it, short enough to work without revocation lists.
const SVID_TTL: RangeInclusive<Duration> = Duration::from_secs(10)..=Duration::from_secs(24 * 3600);
/// The lifetime of a web certificate; clients renew it when a third is left.
const KEEP: RangeInclusive<Duration> = Duration::from_secs(3600)..=Duration::from_secs(7 * 86_400);
const WEB_TTL: RangeInclusive<Duration> = Duration::from_secs(60)..=MAX_WEB_TTL;
/// The longest `reason` and `owner` of an exception, in bytes.
const MAX_TEXT: usize = 256;
/// Longer durations are typos, and could overflow clocks.
const MAX_DURATION: Duration = Duration::from_secs(365 * 86_400);

fn text<'v>(v: &'v DeValue<'_>) -> Result<&'v str, Complaint> {
    v.as_str().ok_or_else(|| Complaint::problem(format!("{} is not text in quotes", shown(v))))
}

pub(super) fn flag(v: &DeValue<'_>) -> Result<bool, Complaint> {
    v.as_bool().ok_or_else(|| {
        Complaint::new(
            format!("{} is not true or false", shown(v)),
            "write true or false, unquoted",
        )
    })
}

/// 1 to `max`.
pub(super) fn number(v: &DeValue<'_>, max: u32) -> Result<u32, Complaint> {
    v.as_integer()
        .and_then(|n| u32::from_str_radix(n.as_str(), n.radix()).ok())
        .filter(|n| (1..=max).contains(n))
        .ok_or_else(|| Complaint::problem(format!("{} is not a number from 1 to {max}", shown(v))))
}

pub(super) fn name(v: &DeValue<'_>) -> Result<Name, Complaint> {
    let s = text(v)?;
    s.parse().map_err(|e| {
        let complaint = Complaint::problem(format!("{} is not a name: {e}", quoted(s)));
        let bare = s.rsplit('/').next().unwrap_or(s).to_ascii_lowercase();
        let near = bare.replace(['_', '.', ' '], "-");
        complaint.or_nearly(near.parse::<Name>().ok())
    })
}

/// `as`: the name of a service.
pub(super) fn own_service(v: &DeValue<'_>) -> Result<Name, Complaint> {
    if v.as_str().is_some_and(|s| s.starts_with("node/")) {
        return Err(Complaint::new(
            format!("{} is not the name of a service", shown(v)),
            "remove the key: a dial without it uses this node's identity",
        ));
    }
    name(v)
}

pub(super) fn trust_domain(v: &DeValue<'_>) -> Result<TrustDomain, Complaint> {
    let s = text(v)?;
    s.parse().map_err(|e| {
        let complaint = Complaint::problem(format!("{} is not a trust domain: {e}", quoted(s)));
        let near = s.strip_prefix("spiffe://").unwrap_or(s).trim_end_matches('/');
        complaint.or_nearly(near.to_ascii_lowercase().parse::<TrustDomain>().ok())
    })
}

pub(super) fn identity(v: &DeValue<'_>) -> Result<Id, Complaint> {
    let s = text(v)?;
    s.parse().map_err(|_| {
        let complaint =
            Complaint::problem(format!("{} is not service/NAME or node/NAME", quoted(s)));
        let near = match s.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/')) {
            Some((_, id)) => id.to_owned(),
            None if s.contains('/') => s.to_ascii_lowercase(),
            None => format!("service/{}", s.to_ascii_lowercase()),
        };
        complaint.or_nearly(near.parse::<Id>().ok())
    })
}

pub(super) fn absolute_path(v: &DeValue<'_>) -> Result<PathBuf, Complaint> {
    let s = text(v)?;
    if !s.starts_with('/') || s.contains('\0') {
        return Err(Complaint::problem(format!("{} is not an absolute path", quoted(s))));
    }
    Ok(s.into())
}

/// An absolute path with a name that another folder can be exchanged with.
pub(super) fn folder(v: &DeValue<'_>) -> Result<PathBuf, Complaint> {
    let path = absolute_path(v)?;
    match path.file_name() {
        Some(_) => Ok(path),
        None => Err(Complaint::problem(format!("{} does not end with a name", shown(v)))),
    }
}

pub(super) fn listen(v: &DeValue<'_>) -> Result<SocketAddr, Complaint> {
    listen_or(v, Ipv4Addr::UNSPECIFIED)
}

/// `unnamed`: the address to suggest if only a port is given.
fn listen_or(v: &DeValue<'_>, unnamed: Ipv4Addr) -> Result<SocketAddr, Complaint> {
    let s = text(v)?;
    if let Ok(addr) = s.parse::<SocketAddr>() {
        if addr.port() == 0 {
            let problem = format!("{} has no port: 0 means any", quoted(s));
            return Err(Complaint::new(problem, "choose a port from 1 to 65535"));
        }
        return Ok(addr);
    }
    let complaint = Complaint::problem(format!("{} is not ADDRESS:PORT", quoted(s)));
    Err(match s.rsplit_once(':') {
        Some(("" | "*", port)) => {
            complaint.or_nearly(format!("{unnamed}:{port}").parse::<SocketAddr>().ok())
        }
        Some(("localhost", port)) => {
            complaint.or_nearly(format!("127.0.0.1:{port}").parse::<SocketAddr>().ok())
        }
        Some((host, _)) if s.parse::<HostPort>().is_ok() => {
            let advice = format!("write the IP address of this machine in place of {host:?}");
            Complaint { advice: Some(advice), ..complaint }
        }
        _ => complaint,
    })
}

/// A dial's listener. Programs send plaintext to it, so it must be on this machine.
pub(super) fn loopback_listen(v: &DeValue<'_>) -> Result<SocketAddr, Complaint> {
    let addr = listen_or(v, Ipv4Addr::LOCALHOST)?;
    if !addr.ip().to_canonical().is_loopback() {
        return Err(Complaint::new(
            format!("{addr} is not a loopback address: plaintext would cross the network to it"),
            format!(
                "write \"127.0.0.1:{}\", and run wiretight on each machine that has clients",
                addr.port()
            ),
        ));
    }
    Ok(addr)
}

/// `"off"`, or an address on this machine, because it is only for the operator.
pub(super) fn admin(v: &DeValue<'_>) -> Result<Option<SocketAddr>, Complaint> {
    if v.as_str() == Some("off") {
        return Ok(None);
    }
    if v.as_bool() == Some(false) {
        return Err(Complaint::new("false is not an address", "write \"off\""));
    }
    let addr = listen_or(v, Ipv4Addr::LOCALHOST)?;
    if !addr.ip().to_canonical().is_loopback() {
        return Err(Complaint::new(
            format!("{addr} is not a loopback address: anyone on the network could read it"),
            format!(
                "write \"127.0.0.1:{}\" or \"off\"; a [[service]] can forward to it, encrypted",
                addr.port()
            ),
        ));
    }
    Ok(Some(addr))
}

/// Where the console listens: on this machine only, because it is not encrypted.
pub(super) fn console_listen(v: &DeValue<'_>) -> Result<SocketAddr, Complaint> {
    let addr = listen_or(v, Ipv4Addr::LOCALHOST)?;
    if !addr.ip().to_canonical().is_loopback() {
        let port = addr.port();
        return Err(Complaint::new(
            format!("{addr} is not a loopback address, and the console is not encrypted"),
            format!(
                "write \"127.0.0.1:{port}\"; to open it from elsewhere, add a [[site]] with clients and to = \"127.0.0.1:{port}\""
            ),
        ));
    }
    Ok(addr)
}

/// An address that another machine can connect to.
pub(super) fn reachable(v: &DeValue<'_>) -> Result<HostPort, Complaint> {
    let s = text(v)?;
    let address = s
        .parse::<HostPort>()
        .map_err(|_| Complaint::problem(format!("{} is not HOST:PORT", quoted(s))))?;
    if address.as_ip().is_some_and(|a| a.ip().to_canonical().is_unspecified()) {
        let problem = format!("{address} is not an address to connect to");
        return Err(Complaint::new(problem, "write the address or name that other machines use"));
    }
    Ok(address)
}

/// The program behind a service. It receives plaintext, so it must be on this machine.
pub(super) fn local_backend(v: &DeValue<'_>) -> Result<Backend, Complaint> {
    let s = text(v)?;
    let backend = s.parse::<Backend>().map_err(|_| {
        if s.starts_with("unix:") || s.starts_with('/') {
            let problem = format!("{} is not unix:/PATH (absolute, at most 107 bytes)", quoted(s));
            return Complaint::new(problem, "write for example \"unix:/run/app.sock\"");
        }
        Complaint::problem(format!("{} is not ADDRESS:PORT or unix:/PATH", quoted(s)))
    })?;
    let Backend::Tcp(target) = &backend else { return Ok(backend) };
    let local = match target.as_ip() {
        Some(addr) => addr.ip().to_canonical().is_loopback(),
        None => target.host().eq_ignore_ascii_case("localhost"),
    };
    if !local {
        return Err(Complaint::new(
            format!("{target} is not on this machine: plaintext would cross the network to it"),
            format!(
                "run wiretight next to the program and write \"127.0.0.1:{}\", or a unix: socket",
                target.port()
            ),
        ));
    }
    Ok(backend)
}

/// The backend of a site: a program on this machine, or a service of the mesh.
pub(super) fn upstream(v: &DeValue<'_>) -> Result<Upstream, Complaint> {
    let s = text(v)?;
    let bad = || {
        Complaint::problem(format!(
            "{} is not ADDRESS:PORT, unix:/PATH or service/NAME, with or without h2c://",
            quoted(s)
        ))
    };
    if let Some(rest) = s.strip_prefix("http://") {
        return Err(bad().or_nearly(rest.trim_end_matches('/').parse::<Upstream>().ok()));
    }
    let upstream = s.parse::<Upstream>().map_err(|_| bad())?;
    if let At::Here(Backend::Tcp(target)) = &upstream.at {
        let local = match target.as_ip() {
            Some(addr) => addr.ip().to_canonical().is_loopback(),
            None => target.host().eq_ignore_ascii_case("localhost"),
        };
        if !local {
            return Err(Complaint::new(
                format!("{target} is not on this machine: plaintext would cross the network to it"),
                "make it a [[service]] on its machine, and write \"service/NAME\" here",
            ));
        }
    }
    Ok(upstream)
}

pub(super) fn site_name(v: &DeValue<'_>) -> Result<SiteName, Complaint> {
    let s = text(v)?;
    s.parse().map_err(|_| {
        let complaint = Complaint::problem(format!("{} is not a DNS name", quoted(s)));
        let bare = s.trim_start_matches("https://").trim_start_matches("http://");
        let bare = bare.split(['/', ':']).next().unwrap_or_default();
        complaint.or_nearly(bare.parse::<SiteName>().ok())
    })
}

pub(super) fn mode(v: &DeValue<'_>) -> Result<Mode, Complaint> {
    match text(v)? {
        "observe" => Ok(Mode::Observe),
        "permissive" => Ok(Mode::Permissive),
        "strict" => Ok(Mode::Strict),
        other => Err(Complaint::problem(format!(
            "{} is not \"observe\", \"permissive\" or \"strict\"",
            quoted(other)
        ))),
    }
}

pub(super) fn address(v: &DeValue<'_>) -> Result<IpAddr, Complaint> {
    let s = text(v)?;
    let parsed = s.parse::<IpAddr>().map(|ip| ip.to_canonical());
    parsed.map_err(|_| Complaint::problem(format!("{} is not an IP address", quoted(s))))
}

/// `PROTOCOL in|out NETWORK [PORT]`.
pub(super) fn pass(v: &DeValue<'_>) -> Result<Pass, Complaint> {
    let s = text(v)?;
    let bad = || {
        Complaint::problem(format!(
            "{} is not PROTOCOL, in or out, a network, and for tcp and udp a port",
            quoted(s)
        ))
    };
    let words: Vec<&str> = s.split_ascii_whitespace().collect();
    let (protocol, direction, network, port) = match words[..] {
        [protocol, direction, network] => (protocol, direction, network, None),
        [protocol, direction, network, port] => (protocol, direction, network, Some(port)),
        _ => return Err(bad()),
    };
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "icmp" => Protocol::Icmp,
        number => Protocol::Number(number.parse().map_err(|_| bad())?),
    };
    let direction = match direction {
        "in" => Direction::In,
        "out" => Direction::Out,
        _ => return Err(bad()),
    };
    let network = network.parse().map_err(|_| bad())?;
    let port =
        port.map(|p| p.parse::<u16>().ok().filter(|p| *p > 0).ok_or_else(bad)).transpose()?;
    Ok(Pass { protocol, network, port, direction })
}

/// Reads `what` of an `[[exception]]`.
pub(super) type ReadSubject = fn(&DeValue<'_>) -> Result<Subject, Complaint>;

/// `kind` of an `[[exception]]`, which decides what `what` may be.
pub(super) fn exception_kind(v: &DeValue<'_>) -> Result<ReadSubject, Complaint> {
    match text(v)? {
        "pass" => Ok(|v| pass(v).map(Subject::Pass)),
        "observe" => Ok(|v| peer_or_all(v).map(Subject::Observe)),
        "permissive" => Ok(|v| peer_or_all(v).map(Subject::Permissive)),
        "foreign-peer" => Ok(|v| {
            let advice = "write the addresses of the machines, for example \"203.0.113.9\"";
            let network = network(v).map_err(|c| Complaint::new(c.problem, advice))?;
            Ok(Subject::ForeignPeer(network))
        }),
        other => Err(Complaint::new(
            format!("{} is not a kind of exception", quoted(other)),
            "write \"pass\", \"observe\", \"permissive\" or \"foreign-peer\"",
        )),
    }
}

/// A peer with a mode of its own, or `all`: the mode of all others.
fn peer_or_all(v: &DeValue<'_>) -> Result<Option<IpAddr>, Complaint> {
    if v.as_str() == Some("all") {
        return Ok(None);
    }
    let advice = "write an address from that list in [intercept], or \"all\" for mode";
    address(v).map(Some).map_err(|c| Complaint::new(c.problem, advice))
}

/// A text for people, on one line.
pub(super) fn short_text(v: &DeValue<'_>) -> Result<String, Complaint> {
    let s = text(v)?.trim();
    match (1..=MAX_TEXT).contains(&s.len()) && !s.contains(char::is_control) {
        true => Ok(s.to_owned()),
        false => {
            Err(Complaint::problem(format!("{} is not a line of 1 to {MAX_TEXT} bytes", quoted(s))))
        }
    }
}

/// The last second of a day (UTC), or a time (RFC 3339), in seconds since 1970.
pub(super) fn last_second(v: &DeValue<'_>) -> Result<u64, Complaint> {
    let s = match v {
        DeValue::Datetime(at) => at.to_string(),
        v => text(v)?.to_owned(),
    };
    let day = |s: &str| {
        let day = s.parse::<jiff::civil::Date>().ok().filter(|day| day.to_string() == s)?;
        jiff::tz::Offset::UTC.to_timestamp(day.at(23, 59, 59, 0)).ok()
    };
    let at = day(&s).or_else(|| s.parse().ok());
    at.and_then(|at: jiff::Timestamp| u64::try_from(at.as_second()).ok()).ok_or_else(|| {
        Complaint::problem(format!(
            "{} is neither a date nor a time with its zone (RFC 3339)",
            quoted(&s)
        ))
    })
}

/// A control group (v2), relative to the root. The kernel and nft check it further.
pub(super) fn cgroup(v: &DeValue<'_>) -> Result<String, Complaint> {
    let s = text(v)?;
    match s.is_empty() || s.starts_with('/') || s.contains("..") {
        true => Err(Complaint::problem(format!("{} is not a control group", quoted(s)))),
        false => Ok(s.to_owned()),
    }
}

pub(super) fn port(v: &DeValue<'_>) -> Result<u16, Complaint> {
    Ok(number(v, u32::from(u16::MAX))? as u16) // within the bound just checked
}

/// A name of a site, or `*`.
pub(super) fn served_name(v: &DeValue<'_>) -> Result<SiteName, Complaint> {
    match text(v)? {
        "*" => Ok(SiteName::any()),
        _ => site_name(v),
    }
}

pub(super) fn ask(v: &DeValue<'_>) -> Result<AskUrl, Complaint> {
    let s = text(v)?;
    s.parse().map_err(|error| match error {
        AskUrlError::NotHere => Complaint::new(
            format!(
                "{} is not on this machine: its answer could be forged on the network",
                quoted(s)
            ),
            "make it a [[service]] on its machine, and use the address of a [[dial]] to it here",
        ),
        AskUrlError::Malformed => {
            Complaint::problem(format!("{} is not http://ADDRESS:PORT/PATH", quoted(s)))
        }
    })
}

/// The directory of an ACME server (RFC 8555, section 7.1.1: HTTPS only).
pub(super) fn directory(v: &DeValue<'_>) -> Result<String, Complaint> {
    let s = text(v)?;
    let uri = s.parse::<hyper::Uri>().ok();
    match uri.filter(|u| u.scheme_str() == Some("https") && u.host().is_some_and(|h| !h.is_empty()))
    {
        Some(_) => Ok(s.to_owned()),
        None => Err(Complaint::problem(format!("{} is not an https:// address", quoted(s)))),
    }
}

/// A contact for a CA (RFC 8555, section 7.3): one mail address, with or without `mailto:`.
pub(super) fn contact(v: &DeValue<'_>) -> Result<String, Complaint> {
    let s = text(v)?;
    let address = s.strip_prefix("mailto:").unwrap_or(s);
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"!#$&'*+-./=^_`{|}~@".contains(&b);
    let is_address = address.len() <= 254
        && address.bytes().all(plain)
        && address.split_once('@').is_some_and(|(user, host)| {
            !user.is_empty() && !host.is_empty() && !host.contains('@')
        });
    match is_address {
        true => Ok(format!("mailto:{address}")),
        false => Err(Complaint::problem(format!("{} is not a mail address", quoted(s)))),
    }
}

/// The name of a profile from the CA's directory.
pub(super) fn profile(v: &DeValue<'_>) -> Result<String, Complaint> {
    let s = text(v)?;
    match (1..=64).contains(&s.len()) && s.bytes().all(|b| b.is_ascii_graphic()) {
        true => Ok(s.to_owned()),
        false => Err(Complaint::problem(format!("{} is not the name of a profile", quoted(s)))),
    }
}

pub(super) fn challenge(v: &DeValue<'_>) -> Result<Challenge, Complaint> {
    match text(v)? {
        "http-01" => Ok(Challenge::Http01),
        "tls-alpn-01" => Ok(Challenge::TlsAlpn01),
        "dns-01" => Ok(Challenge::Dns01),
        other => Err(Complaint::problem(format!("{} is not a challenge", quoted(other)))),
    }
}

/// The path of a URL, with an optional query.
pub(super) fn path(v: &DeValue<'_>) -> Result<PathAndQuery, Complaint> {
    let s = text(v)?;
    let parsed = s.parse().ok().filter(|_| s.starts_with('/') && s.len() <= 1024);
    parsed.ok_or_else(|| Complaint::problem(format!("{} is not a path of a URL", quoted(s))))
}

/// A site's `acme`, which has only one valid value.
pub(super) fn internal(v: &DeValue<'_>) -> Result<(), Complaint> {
    match text(v)? {
        "internal" => Ok(()),
        other => Err(Complaint::problem(format!("{} is not \"internal\"", quoted(other)))),
    }
}

pub(super) fn network(v: &DeValue<'_>) -> Result<Network, Complaint> {
    let s = text(v)?;
    s.parse().map_err(|_| Complaint::problem(format!("{} is not ADDRESS/BITS", quoted(s))))
}

/// A timeout for responses: at least a second, so that slow pages do not fail.
pub(super) fn patience(v: &DeValue<'_>) -> Result<Duration, Complaint> {
    let patience = duration(v)?;
    if patience < Duration::from_secs(1) {
        return Err(Complaint::problem(format!("{} is less than 1s", shown(v))));
    }
    Ok(patience)
}

/// The key of an auditor: SHA-256 of its SubjectPublicKeyInfo.
pub(super) fn auditor(v: &DeValue<'_>) -> Result<[u8; 32], Complaint> {
    let hex = v.as_str().and_then(|s| s.strip_prefix("sha256:"));
    let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok();
    let digits = hex.filter(|h| h.len() == 64 && h.bytes().all(|b| b.is_ascii_hexdigit()));
    let bytes = digits.map(|h| h.as_bytes().chunks(2).filter_map(byte).collect::<Vec<_>>());
    bytes.and_then(|b| b.try_into().ok()).ok_or_else(|| {
        let what = "is not \"sha256:\" followed by 64 hex digits (the hash of a public key)";
        Complaint::problem(format!("{} {what}", shown(v)))
    })
}

/// A bucket for the log's tiles.
pub(super) fn bucket(v: &DeValue<'_>) -> Result<String, Complaint> {
    let text = v.as_str().filter(|s| !s.contains(char::is_whitespace));
    let bucket =
        text.and_then(|s| s.strip_prefix("s3://")).filter(|b| !b.is_empty() && !b.starts_with('/'));
    match bucket {
        Some(bucket) => Ok(format!("s3://{bucket}")),
        None => Err(Complaint::problem(format!("{} is not s3://BUCKET/PREFIX", shown(v)))),
    }
}

/// `max_staleness`: at least as long as it can take to notice a broken stream.
pub(super) fn staleness(v: &DeValue<'_>) -> Result<Duration, Complaint> {
    let staleness = duration(v)?;
    if staleness < MIN_STALENESS {
        return Err(Complaint::problem(format!(
            "{} is less than {}: a restart of the authority would stop the node",
            shown(v),
            duration_text(MIN_STALENESS)
        )));
    }
    Ok(staleness)
}

pub(super) fn transparency(v: &DeValue<'_>) -> Result<bool, Complaint> {
    match v.as_str() {
        Some("required") => Ok(true),
        Some("off") => Ok(false),
        _ => Err(Complaint::problem(format!("{} is not \"required\" or \"off\"", shown(v)))),
    }
}

/// The shortest `max_staleness`.
const MIN_STALENESS: Duration = Duration::from_secs(60);

pub(super) fn svid_ttl(v: &DeValue<'_>) -> Result<Duration, Complaint> {
    let ttl = duration(v)?;
    if !SVID_TTL.contains(&ttl) {
        return Err(Complaint::problem(format!("{} is not from 10s to 24h", shown(v))));
    }
    Ok(ttl)
}

/// The shortest and longest `release_grace`. A node needs a moment to tell which release it runs.
const RELEASE_GRACE: RangeInclusive<Duration> =
    Duration::from_secs(60)..=Duration::from_secs(90 * 86_400);

pub(super) fn release_grace(v: &DeValue<'_>) -> Result<Duration, Complaint> {
    let grace = duration(v)?;
    if !RELEASE_GRACE.contains(&grace) {
        return Err(Complaint::problem(format!("{} is not from 1m to 90d", shown(v))));
    }
    Ok(grace)
}

/// How long hourly totals are kept: an hour to a week.
pub(super) fn keep(v: &DeValue<'_>) -> Result<Duration, Complaint> {
    let keep = duration(v)?;
    if !KEEP.contains(&keep) {
        return Err(Complaint::problem(format!("{} is not from 1h to 7d", shown(v))));
    }
    Ok(keep)
}

/// The name of a network interface (dev_valid_name of Linux).
pub(super) fn interface(v: &DeValue<'_>) -> Result<String, Complaint> {
    let name = text(v)?;
    let valid = |b: u8| b.is_ascii_graphic() && !b"/:".contains(&b);
    if name.is_empty() || name.len() > 15 || [".", ".."].contains(&name) || !name.bytes().all(valid)
    {
        return Err(Complaint::problem(format!(
            "{} is not the name of a network interface",
            quoted(name)
        )));
    }
    Ok(name.to_owned())
}

pub(super) fn web_ttl(v: &DeValue<'_>) -> Result<Duration, Complaint> {
    let ttl = duration(v)?;
    if !WEB_TTL.contains(&ttl) {
        return Err(Complaint::problem(format!("{} is not from 1m to 7d", shown(v))));
    }
    Ok(ttl)
}

pub(super) fn duration(v: &DeValue<'_>) -> Result<Duration, Complaint> {
    let advice = "write for example \"30s\" or \"1h30m\" (units: d, h, m, s, ms)";
    let s = v.as_str().ok_or_else(|| {
        Complaint::new(format!("{} is not a duration in quotes", shown(v)), advice)
    })?;
    let duration = parse_duration(s)
        .ok_or_else(|| Complaint::new(format!("{} is not a duration", quoted(s)), advice))?;
    if duration > MAX_DURATION {
        let problem = format!("{} is longer than {}", quoted(s), duration_text(MAX_DURATION));
        return Err(Complaint::new(problem, "write a shorter one"));
    }
    Ok(duration)
}

/// Whole milliseconds in each unit, from the largest.
const UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// `1h30m`: whole numbers, each with a unit, each unit at most once, from large to small.
pub(crate) fn parse_duration(s: &str) -> Option<Duration> {
    let mut units = UNITS.as_slice();
    let mut millis = 0u64;
    let mut rest = s;
    loop {
        let (number, tail) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
        let end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let at = units.iter().position(|(name, _)| *name == unit)?;
        let number: u64 = number.parse().ok()?;
        millis = millis.checked_add(number.checked_mul(units[at].1)?)?;
        units = &units[at + 1..];
        rest = tail;
        if rest.is_empty() {
            return Some(Duration::from_millis(millis));
        }
    }
}

/// The inverse of `parse_duration`, for errors.
pub(super) fn duration_text(d: Duration) -> String {
    let mut millis = d.as_millis();
    let mut text = String::new();
    for (unit, size) in UNITS {
        let n = millis / u128::from(size);
        millis %= u128::from(size);
        if n > 0 {
            text += &format!("{n}{unit}");
        }
    }
    if text.is_empty() { "0s".into() } else { text }
}
