//! `[edge]`, `[[site]]` and `[[acme]]`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use toml::de::DeTable;
use wiretight_keys::{Id, Name};
use wiretight_proxy::edge::settings::{At, EdgeSettings, Hsts, Limits, SiteName, SiteSettings};

use super::across::Across;
use super::certificates::{CaSettings, Challenge, reserved};
use super::report::{Complaint, Report};
use super::section::{ACME, EDGE, Located, SITE, Section, Setting, many, one};
use super::value::*;
use super::{Node, SiteFiles, SiteSource};

const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const DEFAULT_HTTPS: SocketAddr = SocketAddr::new(ANY, 443);
const DEFAULT_HTTP: SocketAddr = SocketAddr::new(ANY, 80);
const DEFAULT_MAX_BODY_MB: u32 = 1024;
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
/// One TiB.
const MAX_BODY_MB: u32 = 1 << 20;

pub(super) fn read_edge(
    report: &mut Report<'_>,
    root: &mut DeTable<'_>,
    node: Option<&Node>,
    more_sites: bool,
    across: &mut Across,
) -> (EdgeSettings, Vec<SiteSource>, Vec<CaSettings>, Option<Name>) {
    let edge = one(report, root, &EDGE);
    let edge_line = edge.as_ref().map(|s| s.line);
    let sections = many(report, root, &SITE);
    let any_site = more_sites || !sections.is_empty();
    let (mut settings, share) = match edge {
        Some(section) => read_listeners(report, section, any_site, across),
        None => {
            if any_site {
                across.listener(None, "edge.https".into(), DEFAULT_HTTPS);
                across.listener(None, "edge.http".into(), DEFAULT_HTTP);
            }
            (defaults(), None)
        }
    };
    if let (Some(line), false) = (edge_line, any_site) {
        let advice = "add a [[site]], or remove [edge]";
        report.warn(line, "edge", Complaint::new("there is no [[site]]: nothing listens", advice));
    }
    let http = !settings.http.is_empty();
    let mut acme: Vec<_> = many(report, root, &ACME)
        .into_iter()
        .filter_map(|section| read_acme(report, section, http))
        .collect();
    let mut sources = Vec::new();
    let around = Around {
        this_node: node.map(|n| Id::Node(n.name.clone())),
        http,
        any_ca: !acme.is_empty(),
        wildcards: !acme.is_empty() && acme.iter().all(|ca| ca.challenge == Some(Challenge::Dns01)),
        authority: across.authority_line.is_some(),
        reserved: node.map(|n| reserved(&n.trust_domain)).unwrap_or_default(),
    };
    for section in sections {
        if let Some((site, source)) = read_site(report, section, &around, across) {
            settings.sites.push(site);
            sources.push(source);
        }
    }
    let orders = |s: &SiteSource| matches!(s, SiteSource::Acme | SiteSource::OnDemand(_));
    if acme.is_empty() && sources.iter().any(orders) {
        acme.push(CaSettings { challenge: without(http), ..CaSettings::default() });
    }
    (settings, sources, acme, share)
}

/// Without a listener for plain HTTP, only this challenge is possible.
fn without(http: bool) -> Option<Challenge> {
    (!http).then_some(Challenge::TlsAlpn01)
}

/// Settings of other sections that a site depends on.
struct Around {
    this_node: Option<Id>,
    /// Whether there is a listener for plain HTTP.
    http: bool,
    /// Whether there is an `[[acme]]`.
    any_ca: bool,
    /// Whether every CA uses dns-01, which wildcards need.
    wildcards: bool,
    /// Whether the mesh's authority is on this machine.
    authority: bool,
    /// Names reserved for members of the mesh.
    reserved: Vec<SiteName>,
}

fn read_acme(report: &mut Report<'_>, mut s: Section<'_>, http: bool) -> Option<CaSettings> {
    let directory = s.required(report, "directory", directory);
    let roots = s.optional(report, "roots", absolute_path);
    let contact = s.list(report, "contact", contact);
    let profile = s.optional(report, "profile", profile);
    let challenge = s.optional(report, "challenge", challenge);
    let dns_command = s.optional(report, "dns_command", absolute_path);
    match (&challenge, &dns_command) {
        (Setting::Given(Located { line, value: Challenge::Dns01 }), Setting::Absent) => {
            let problem = "there is no command to set the DNS records";
            let advice = "add dns_command = \"/usr/local/bin/dns-record\"";
            report.error(Some(*line), s.key("challenge"), Complaint::new(problem, advice));
        }
        (Setting::Given(Located { value, .. }), Setting::Given(command))
            if *value != Challenge::Dns01 =>
        {
            let problem = "it is for the challenge \"dns-01\", but challenge is another one";
            let advice = "remove it, or challenge";
            report.error(Some(command.line), s.key("dns_command"), Complaint::new(problem, advice));
        }
        _ => {}
    }
    if let Setting::Given(Located { line, value: Challenge::Http01 }) = &challenge
        && !http
    {
        let advice = "let http in [edge] listen on port 80, or use \"tls-alpn-01\"";
        let complaint = Complaint::new("nothing listens for plain HTTP", advice);
        report.error(Some(*line), s.key("challenge"), complaint);
    }
    s.finish(report);
    let dns_command = dns_command.given();
    let by_dns = dns_command.as_ref().map(|_| Challenge::Dns01);
    Some(CaSettings {
        directory: directory?.value,
        roots: roots.given(),
        contact: contact.values(),
        profile: profile.given(),
        challenge: challenge.given().or(by_dns).or(without(http)),
        dns_command,
    })
}

/// Names that public CAs never certify (RFC 6761, RFC 6762, RFC 8375, ICANN's `.internal`).
fn is_private(name: &str) -> bool {
    const PRIVATE: [&str; 9] = [
        "internal",
        "local",
        "localhost",
        "test",
        "example",
        "invalid",
        "lan",
        "home.arpa",
        "onion",
    ];
    !name.contains('.') || PRIVATE.iter().any(|top| name.ends_with(&format!(".{top}")))
}

/// The source of a site's certificate: `cert` and `key`; `acme = "internal"`; `ask` and a CA; or by default a CA.
fn read_source(
    report: &mut Report<'_>,
    s: &mut Section<'_>,
    names: &Option<Vec<Located<SiteName>>>,
    around: &Around,
) -> Option<SiteSource> {
    let internal = s.optional(report, "acme", internal);
    let ask = s.optional(report, "ask", ask);
    let cert = s.optional(report, "cert", absolute_path);
    let key = s.optional(report, "key", absolute_path);
    let files = match (cert, key) {
        (Setting::Given(cert), Setting::Given(key)) => {
            Some(SiteFiles { cert: cert.value, key: key.value })
        }
        (Setting::Absent, Setting::Absent) => None,
        (Setting::Given(given), Setting::Absent) => {
            let advice = "add key, or remove cert: then a certificate is ordered by ACME";
            let complaint = Complaint::new("the certificate's private key is missing", advice);
            report.error(Some(given.line), s.key("cert"), complaint);
            return None;
        }
        (Setting::Absent, Setting::Given(given)) => {
            let advice = "add cert, or remove key: then a certificate is ordered by ACME";
            let complaint = Complaint::new("the certificate of this key is missing", advice);
            report.error(Some(given.line), s.key("key"), complaint);
            return None;
        }
        _ => return None,
    };
    if let (Some(_), Setting::Given(given)) = (&files, &internal) {
        let problem = "the certificate is given as cert and key";
        let complaint = Complaint::new(problem, "remove them, or acme");
        report.error(Some(given.line), s.key("acme"), complaint);
        return None;
    }
    if let Setting::Given(given) = &ask {
        let other = match (&files, &internal) {
            (Some(_), _) => Some("cert and key"),
            (_, Setting::Given(_)) => Some("acme"),
            _ => None,
        };
        if let Some(other) = other {
            let problem = format!("the certificate already comes from {other}");
            let complaint = Complaint::new(problem, format!("remove {other}, or ask"));
            report.error(Some(given.line), s.key("ask"), complaint);
            return None;
        }
    }
    if let Some(files) = files {
        return Some(SiteSource::Files(files));
    }
    if let Setting::Given(ask) = ask {
        for (i, name) in names.iter().flatten().enumerate().filter(|(_, n)| !n.value.is_wildcard())
        {
            let problem = "this host is known beforehand, so ask is not needed for it";
            let advice = "give it its own [[site]], without ask";
            report.error(Some(name.line), s.element("names", i), Complaint::new(problem, advice));
        }
        return Some(SiteSource::OnDemand(ask.value));
    }
    if matches!(ask, Setting::Wrong) {
        return None;
    }
    let any = names.iter().flatten().enumerate().find(|(_, n)| n.value.as_str() == "*");
    if let Some((i, name)) = any {
        let problem = "a certificate cannot be for every host";
        let advice = "add ask: then each host gets its own certificate, if that program allows it";
        report.error(Some(name.line), s.element("names", i), Complaint::new(problem, advice));
        return None;
    }
    let all_private =
        names.as_ref().is_some_and(|n| n.iter().all(|n| is_private(n.value.as_str())));
    if let Setting::Given(given) = &internal
        && !around.authority
    {
        let problem = "the mesh's authority is not on this machine";
        let advice = "allow the names in [acme_server] on the authority's machine; here, add [[acme]] with its directory and remove acme";
        report.error(Some(given.line), s.key("acme"), Complaint::new(problem, advice));
        return None;
    }
    if matches!(internal, Setting::Given(_)) || around.authority && !around.any_ca && all_private {
        for (i, name) in names.iter().flatten().enumerate() {
            if around.reserved.iter().any(|r| overlap(r, &name.value)) {
                let problem = "this name is reserved for members of the mesh";
                let complaint = Complaint::new(problem, "choose another name for the site");
                report.error(Some(name.line), s.element("names", i), complaint);
            }
        }
        return Some(SiteSource::Internal);
    }
    for (i, name) in names.iter().flatten().enumerate() {
        let complaint = match (name.value.is_wildcard(), is_private(name.value.as_str())) {
            (true, _) if !around.wildcards => Complaint::new(
                "a wildcard certificate needs the challenge \"dns-01\" in every [[acme]]",
                "list the names, add a dns_command to [[acme]], or get one elsewhere and give it as cert and key",
            ),
            (_, true) if !around.any_ca => Complaint::new(
                "no public CA certifies a private name",
                "give its certificate as cert and key, or add your own ACME server in [[acme]], such as [acme_server] on the authority's machine",
            ),
            _ => continue,
        };
        report.error(Some(name.line), s.element("names", i), complaint);
    }
    Some(SiteSource::Acme)
}

/// Whether some host name matches both.
fn overlap(a: &SiteName, b: &SiteName) -> bool {
    let one_of = |name: &SiteName| name.as_str().replace('*', "any");
    a.covers(&one_of(b)) || b.covers(&one_of(a))
}

fn defaults() -> EdgeSettings {
    EdgeSettings {
        https: vec![DEFAULT_HTTPS],
        http: vec![DEFAULT_HTTP],
        http3: true,
        trusted_proxies: Vec::new(),
        proxy_protocol: false,
        limits: Limits::default(),
        sites: Vec::new(),
    }
}

fn read_listeners(
    report: &mut Report<'_>,
    mut s: Section<'_>,
    any_site: bool,
    across: &mut Across,
) -> (EdgeSettings, Option<Name>) {
    let https = listeners(report, &mut s, "https", DEFAULT_HTTPS, any_site, across);
    let http = listeners(report, &mut s, "http", DEFAULT_HTTP, any_site, across);
    let http3 = s.optional(report, "http3", flag);
    let trusted = s.list(report, "trusted_proxies", network);
    let proxy_protocol = s.optional(report, "proxy_protocol", flag);
    if let Setting::Given(Located { line, value: true }) = proxy_protocol
        && matches!(trusted, Setting::Absent)
    {
        let problem = "no proxy is trusted to send it";
        let advice = "add trusted_proxies, for example trusted_proxies = [\"10.0.0.0/8\"]";
        report.error(Some(line), s.key("proxy_protocol"), Complaint::new(problem, advice));
    }
    let share = s.optional(report, "share", name);
    s.finish(report);
    let settings = EdgeSettings {
        https,
        http,
        http3: http3.or(true),
        trusted_proxies: trusted.values(),
        proxy_protocol: proxy_protocol.or(false),
        ..defaults()
    };
    (settings, share.given())
}

/// Addresses to listen on; `[]` for none.
fn listeners(
    report: &mut Report<'_>,
    s: &mut Section<'_>,
    key: &'static str,
    default: SocketAddr,
    any_site: bool,
    across: &mut Across,
) -> Vec<SocketAddr> {
    let given = match s.list(report, key, listen) {
        Setting::Absent => {
            if any_site {
                across.listener(None, s.key(key), default);
            }
            return vec![default];
        }
        Setting::Wrong => return Vec::new(),
        Setting::Given(given) => given.value,
    };
    for (i, addr) in given.iter().enumerate() {
        across.listener(Some(addr.line), s.element(key, i), addr.value);
    }
    given.into_iter().map(|addr| addr.value).collect()
}

fn read_site(
    report: &mut Report<'_>,
    mut s: Section<'_>,
    around: &Around,
    across: &mut Across,
) -> Option<(SiteSettings, SiteSource)> {
    let names = s.required_list(report, "names", served_name);
    let to = s.required_list(report, "to", upstream);
    let source = read_source(report, &mut s, &names, around);
    let default = s.optional(report, "default", flag);
    let own = s.optional(report, "as", own_service);
    let hsts = s.optional(report, "hsts", flag);
    let preload = s.optional(report, "preload", flag);
    let clients = s.list(report, "clients", identity);
    let client_ca = s.optional(report, "client_ca", absolute_path);
    let health = s.optional(report, "health", path);
    let max_body = s.optional(report, "max_body_mb", |v| number(v, MAX_BODY_MB));
    let timeout = s.optional(report, "timeout", patience);

    for (i, name) in names.iter().flatten().enumerate() {
        across.site_name(report, name, s.element("names", i));
    }
    for (i, upstream) in to.iter().flatten().enumerate() {
        if let At::Here(backend) = &upstream.value.at {
            across.backends.push((upstream.line, s.element("to", i), backend.clone()));
        }
    }
    if let Setting::Given(Located { line, value: true }) = default {
        let wildcard = names.iter().flatten().next().is_some_and(|n| n.value.is_wildcard());
        if wildcard || matches!(source, Some(SiteSource::OnDemand(_))) {
            let problem = "its first name is a wildcard, but a client that sends no name gets the certificate of the first name";
            let advice = "list a full name first, and remove ask";
            report.error(Some(line), s.key("default"), Complaint::new(problem, advice));
        }
        across.default_site(report, line, s.key("default"));
    }
    if let Setting::Given(list) = &clients
        && list.value.is_empty()
    {
        let advice = "list the identities that may, or remove the key to allow everyone";
        report.warn(list.line, s.key("clients"), Complaint::new("nobody may connect", advice));
    }
    if let (Setting::Given(ca), Setting::Given(_)) = (&client_ca, &clients) {
        let problem = "clients already allows only members of the mesh";
        let complaint = Complaint::new(problem, "remove it, or clients");
        report.error(Some(ca.line), s.key("client_ca"), complaint);
    }
    let hsts = hsts.or(true);
    if let Setting::Given(Located { line, value: true }) = preload {
        // The requirements of hstspreload.org that can be checked here.
        let wildcard = names.iter().flatten().any(|n| n.value.is_wildcard());
        let missing = match (hsts, around.http, wildcard) {
            (false, _, _) => Some(("hsts is off", "remove hsts = false, or preload")),
            (_, false, _) => {
                Some(("plain HTTP is not redirected", "let http in [edge] listen on port 80"))
            }
            (_, _, true) => {
                Some(("a wildcard cannot be preloaded", "give the domain itself a [[site]]"))
            }
            _ => None,
        };
        if let Some((problem, advice)) = missing {
            report.error(Some(line), s.key("preload"), Complaint::new(problem, advice));
        }
    }
    let preload = preload.or(false);
    s.finish(report);
    let site = SiteSettings {
        names: names?.into_iter().map(|n| n.value).collect(),
        to: to?.into_iter().map(|u| u.value).collect(),
        on_demand: matches!(source, Some(SiteSource::OnDemand(_))),
        default: default.or(false),
        identity: match own.given() {
            Some(name) => Id::Service(name),
            None => around.this_node.clone()?,
        },
        hsts: match (hsts, preload) {
            (false, _) => Hsts::Off,
            (true, false) => Hsts::On,
            (true, true) => Hsts::Preload,
        },
        clients: match clients {
            Setting::Absent => None,
            given => Some(given.values()),
        },
        client_ca: client_ca.given(),
        health: health.given(),
        max_body: u64::from(max_body.or(DEFAULT_MAX_BODY_MB)) << 20,
        timeout: timeout.or(DEFAULT_TIMEOUT),
    };
    Some((site, source?))
}
