//! `[edge]` and `[[site]]`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use toml::de::DeTable;
use wiretight_keys::Id;
use wiretight_proxy::edge::settings::{At, EdgeSettings, Hsts, Limits, SiteSettings};

use super::SiteFiles;
use super::across::Across;
use super::report::{Complaint, Report};
use super::section::{EDGE, Located, SITE, Section, Setting, many, one};
use super::value::*;

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
    this_node: Option<&Id>,
    more_sites: bool,
    across: &mut Across,
) -> (EdgeSettings, Vec<SiteFiles>) {
    let edge = one(report, root, &EDGE);
    let edge_line = edge.as_ref().map(|s| s.line);
    let sections = many(report, root, &SITE);
    let any_site = more_sites || !sections.is_empty();
    let mut settings = match edge {
        Some(section) => read_listeners(report, section, any_site, across),
        None => {
            if any_site {
                across.listener(None, "edge.https".into(), DEFAULT_HTTPS);
                across.listener(None, "edge.http".into(), DEFAULT_HTTP);
            }
            defaults()
        }
    };
    if let (Some(line), false) = (edge_line, any_site) {
        let advice = "add a [[site]], or remove [edge]";
        report.warn(line, "edge", Complaint::new("there is no [[site]]: nothing listens", advice));
    }
    let mut files = Vec::new();
    for section in sections {
        let redirects = !settings.http.is_empty();
        if let Some((site, at)) = read_site(report, section, this_node, redirects, across) {
            settings.sites.push(site);
            files.push(at);
        }
    }
    (settings, files)
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
) -> EdgeSettings {
    let https = listeners(report, &mut s, "https", DEFAULT_HTTPS, any_site, across);
    let http = listeners(report, &mut s, "http", DEFAULT_HTTP, any_site, across);
    let http3 = s.optional(report, "http3", flag);
    let trusted = s.list(report, "trusted_proxies", network);
    let proxy_protocol = s.optional(report, "proxy_protocol", flag);
    if let Setting::Given(Located { line, value: true }) = proxy_protocol
        && matches!(trusted, Setting::Absent)
    {
        let problem = "nobody is trusted to send it";
        let advice = "add trusted_proxies, for example trusted_proxies = [\"10.0.0.0/8\"]";
        report.error(Some(line), s.key("proxy_protocol"), Complaint::new(problem, advice));
    }
    s.finish(report);
    EdgeSettings {
        https,
        http,
        http3: http3.or(true),
        trusted_proxies: trusted.values(),
        proxy_protocol: proxy_protocol.or(false),
        ..defaults()
    }
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
    this_node: Option<&Id>,
    redirects: bool,
    across: &mut Across,
) -> Option<(SiteSettings, SiteFiles)> {
    let names = s.required_list(report, "names", site_name);
    let to = s.required_list(report, "to", upstream);
    let cert = s.required(report, "cert", absolute_path);
    let key = s.required(report, "key", absolute_path);
    let own = s.optional(report, "as", own_service);
    let hsts = s.optional(report, "hsts", flag);
    let preload = s.optional(report, "preload", flag);
    let clients = s.list(report, "clients", identity);
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
    if let Setting::Given(list) = &clients
        && list.value.is_empty()
    {
        let advice = "list who may, or remove the key: then everybody may";
        report.warn(list.line, s.key("clients"), Complaint::new("nobody may connect", advice));
    }
    let hsts = hsts.or(true);
    if let Setting::Given(Located { line, value: true }) = preload {
        // What hstspreload.org asks of a site, as far as a file can tell.
        let wildcard = names.iter().flatten().any(|n| n.value.is_wildcard());
        let missing = match (hsts, redirects, wildcard) {
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
        identity: match own.given() {
            Some(name) => Id::Service(name),
            None => this_node?.clone(),
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
        max_body: u64::from(max_body.or(DEFAULT_MAX_BODY_MB)) << 20,
        timeout: timeout.or(DEFAULT_TIMEOUT),
    };
    Some((site, SiteFiles { cert: cert?.value, key: key?.value }))
}
