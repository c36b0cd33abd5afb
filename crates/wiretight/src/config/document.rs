//! Converts the TOML tree to the settings, section by section.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::DeTable;
use wiretight_keys::Id;
use wiretight_proxy::edge::settings::{Hsts, SiteSettings};
use wiretight_proxy::network::{Backend, HostPort};
use wiretight_proxy::registry::{MAX_ALLOWED, MAX_PORTS};
use wiretight_proxy::relay::settings::{DialSettings, RelaySettings, ServiceSettings};

use super::across::Across;
use super::console::read_console;
use super::edge::read_edge;
use super::exception::read_exceptions;
use super::intercept::read_intercept;
use super::limits;
use super::publish::read_publish;
use super::release::read_release;
use super::report::{Complaint, Report, bare, not_toml};
use super::section::{
    ACME_SERVER, AUTHORITY, CONSOLE, DIAL, EXCEPTION, INTERCEPT, LOG, Located, NODE, PUBLISH,
    RELEASE, SERVICE, Section, Setting, WATCH, WITNESSES, many, one, unknown_at_top,
};
use super::value::*;
use super::watch::read_watch;
use super::{
    AcmeServer, Authority, Config, Log, MAX_FILE, Node, Witnesses, acme_socket, too_large,
};

const DEFAULT_ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7490);
const DEFAULT_STATE_DIR: &str = "/var/lib/wiretight";
const DEFAULT_DRAIN: Duration = Duration::from_secs(30);
const DEFAULT_SVID_TTL: Duration = Duration::from_secs(3600);
const DEFAULT_INTERMEDIATE_TTL: Duration = Duration::from_secs(7 * 86_400);
const DEFAULT_RELEASE_GRACE: Duration = Duration::from_secs(86_400);
const DEFAULT_WEB_TTL: Duration = Duration::from_secs(86_400);
const DEFAULT_PER_PEER: u32 = 10_000;

/// The state directory that a file names, also if the file is otherwise invalid; by default the usual one.
pub(super) fn read_state_dir(path: &Path, text: &str) -> PathBuf {
    let mut ignored = Report::new(path, text);
    let mut root = DeTable::parse_recoverable(text).0.into_inner();
    let state_dir = one(&mut ignored, &mut root, &NODE)
        .map(|mut node| node.optional(&mut ignored, "state_dir", absolute_path));
    state_dir.map_or_else(|| DEFAULT_STATE_DIR.into(), |dir| dir.or(DEFAULT_STATE_DIR.into()))
}

/// Returns `None` only if an error was reported. If it returns `Some` although an error was reported, the value must not be
/// used.
pub(super) fn read_document(report: &mut Report<'_>, text: &str) -> Option<Config> {
    if text.len() > MAX_FILE {
        report.error(None, "", too_large());
        return None;
    }
    let mut root = match DeTable::parse_recoverable(text) {
        (root, errors) if errors.is_empty() => root.into_inner(),
        (_, errors) => {
            // Only the first one: the others are mostly consequences of it.
            let first = errors.iter().min_by_key(|e| e.span().map_or(0, |s| s.start))?;
            let line = report.line(first.span().map_or(0, |s| s.start));
            let line_text = text.lines().nth(line - 1).unwrap_or_default();
            report.error(Some(line), "", not_toml(first.message(), line_text));
            return None;
        }
    };

    let mut across = Across::default();
    let node = match one(report, &mut root, &NODE) {
        Some(section) => read_node(report, section, &mut across),
        None if report.errors.is_empty() => {
            let advice =
                "start the file with [node], name = \"db1\" and trust_domain = \"example.org\"";
            report.error(Some(1), "node", Complaint::new("the section is missing", advice));
            None
        }
        None => None,
    };
    let authority = one(report, &mut root, &AUTHORITY)
        .and_then(|section| read_authority(report, section, &mut across));
    let witnesses =
        one(report, &mut root, &WITNESSES).and_then(|section| read_witnesses(report, section));
    let log = one(report, &mut root, &LOG)
        .and_then(|section| read_log(report, section, across.authority_line, &mut across));
    let authority_line = across.authority_line;
    let console = one(report, &mut root, &CONSOLE)
        .map(|section| read_console(report, section, authority_line, &mut across));
    let mut services = Vec::new();
    let mut advertise = BTreeMap::new();
    let mut service_lines = Vec::new();
    for section in many(report, &mut root, &SERVICE) {
        service_lines.push(section.line);
        if let Some((service, address)) = read_service(report, section, &mut across) {
            advertise.insert(service.name.clone(), address);
            services.push(service);
        }
    }
    let this_node = node.as_ref().map(|n| Id::Node(n.name.clone()));
    let dials = many(report, &mut root, &DIAL)
        .into_iter()
        .filter_map(|section| read_dial(report, section, this_node.as_ref(), &mut across))
        .collect();
    let intercept = one(report, &mut root, &INTERCEPT);
    across.intercepts = intercept.is_some();
    let intercept_line = intercept.as_ref().map(|section| section.line);
    let intercept = intercept
        .and_then(|section| read_intercept(report, section, this_node.as_ref(), &mut across));
    let (intercept, redirected) = intercept.unzip();
    let exceptions = many(report, &mut root, &EXCEPTION);
    let exceptions = read_exceptions(report, exceptions, intercept.as_ref());
    let watch = one(report, &mut root, &WATCH).map(|section| read_watch(report, section));
    let publish = one(report, &mut root, &PUBLISH)
        .map(|section| read_publish(report, section, across.authority_line));
    let release = one(report, &mut root, &RELEASE);
    across.has_release = release.is_some();
    let release = release.and_then(|section| read_release(report, section));
    let acme_server = one(report, &mut root, &ACME_SERVER)
        .map(|section| read_acme_server(report, section, across.authority_line, &mut across));
    let with_acme = acme_server.is_some();
    let (mut edge, site_certificates, acme, share) =
        read_edge(report, &mut root, node.as_ref(), with_acme, &mut across);
    let acme_server = acme_server.flatten();
    if let (Some(server), Some(node)) = (&acme_server, &node) {
        let socket = acme_socket(&node.state_dir);
        edge.sites.extend(acme_site(server, node, &socket));
    }
    for (key, value) in root {
        let line = report.line(key.span().start);
        report.error(
            Some(line),
            bare(key.get_ref()),
            unknown_at_top(key.get_ref(), value.get_ref()),
        );
    }
    across.check(report);

    let config = Config {
        path: report.file.to_path_buf(),
        node: node?,
        authority,
        witnesses,
        log: log.unwrap_or_default(),
        console,
        acme_server,
        relay: RelaySettings { services, dials, intercept: redirected },
        intercept,
        exceptions,
        watch,
        publish,
        release,
        edge,
        site_certificates,
        acme,
        share,
        advertise,
        warnings: Vec::new(),
    };
    limits::check(report, &config, &service_lines, intercept_line);
    Some(config)
}

fn read_node(report: &mut Report<'_>, mut s: Section<'_>, across: &mut Across) -> Option<Node> {
    let name = s.required(report, "name", name);
    let trust_domain = s.required(report, "trust_domain", trust_domain);
    let state_dir = s.optional(report, "state_dir", absolute_path);
    let authority = s.list(report, "authority", reachable);
    let join_token_file = s.optional(report, "join_token_file", absolute_path);
    let admin = s.optional(report, "admin", admin);
    let landlock = s.optional(report, "landlock", flag);
    let drain = s.optional(report, "drain", duration);
    let workers = s.optional(report, "workers", |v| number(v, 1024));
    let max_staleness = s.optional(report, "max_staleness", staleness);

    across.node_authority = authority.line().map(|line| (line, s.key("authority")));
    across.join_token_file = join_token_file.line().map(|line| (line, s.key("join_token_file")));
    match &admin {
        Setting::Absent => across.listener(None, s.key("admin"), DEFAULT_ADMIN),
        Setting::Given(Located { line, value: Some(addr) }) => {
            across.listener(Some(*line), s.key("admin"), *addr);
        }
        _ => {}
    }
    s.finish(report);
    Some(Node {
        name: name?.value,
        trust_domain: trust_domain?.value,
        state_dir: state_dir.or(DEFAULT_STATE_DIR.into()),
        admin: admin.or(Some(DEFAULT_ADMIN)),
        authority: authority.values(),
        join_token_file: join_token_file.given(),
        landlock: landlock.or(true),
        drain: drain.or(DEFAULT_DRAIN),
        workers: workers.given().and_then(|n| NonZeroUsize::new(n as usize)),
        max_staleness: max_staleness.given(),
    })
}

fn read_authority(
    report: &mut Report<'_>,
    mut s: Section<'_>,
    across: &mut Across,
) -> Option<Authority> {
    let listen = s.required(report, "listen", listen);
    let advertise = s.optional(report, "advertise", reachable);
    let svid_ttl = s.optional(report, "svid_ttl", svid_ttl);
    let intermediate_ttl = s.optional(report, "intermediate_ttl", duration);
    let require_release = s.optional(report, "require_release", flag);
    let release_grace = s.optional(report, "release_grace", release_grace);

    across.authority_line = Some(s.line);
    if let (Some(line), Some(true)) = (require_release.line(), require_release.as_given()) {
        across.require_release = Some((line, s.key("require_release")));
    }
    if let Some(listen) = &listen {
        across.listener(Some(listen.line), s.key("listen"), listen.value);
        if listen.value.ip().to_canonical().is_unspecified() && matches!(advertise, Setting::Absent)
        {
            let problem = format!(
                "{} means every address of this machine, so join tokens would have no address to connect to",
                listen.value
            );
            let port = listen.value.port();
            let advice = format!(
                "listen on one address, or add advertise, for example \"authority.example.org:{port}\""
            );
            report.error(Some(listen.line), s.key("listen"), Complaint::new(problem, advice));
        }
    }
    if let (Setting::Given(intermediate), false) =
        (&intermediate_ttl, matches!(svid_ttl, Setting::Wrong))
    {
        let svid = svid_ttl.as_given().unwrap_or(DEFAULT_SVID_TTL);
        if intermediate.value < svid * 4 {
            let problem = format!(
                "\"{}\" is less than four times svid_ttl ({})",
                duration_text(intermediate.value),
                duration_text(svid)
            );
            let advice =
                format!("write at least \"{}\", or shorten svid_ttl", duration_text(svid * 4));
            let key = s.key("intermediate_ttl");
            report.error(Some(intermediate.line), key, Complaint::new(problem, advice));
        }
    }
    s.finish(report);
    Some(Authority {
        listen: listen?.value,
        advertise: advertise.given(),
        svid_ttl: svid_ttl.or(DEFAULT_SVID_TTL),
        intermediate_ttl: intermediate_ttl.or(DEFAULT_INTERMEDIATE_TTL),
        require_release: require_release.or(false),
        release_grace: release_grace.or(DEFAULT_RELEASE_GRACE),
    })
}

fn read_witnesses(report: &mut Report<'_>, mut s: Section<'_>) -> Option<Witnesses> {
    let policy = s.required(report, "policy", absolute_path);
    let required = s.optional(report, "transparency", transparency);
    let ca = s.optional(report, "ca", absolute_path);
    s.finish(report);
    Some(Witnesses { policy: policy?.value, required: required.or(true), ca: ca.given() })
}

fn read_log(
    report: &mut Report<'_>,
    mut s: Section<'_>,
    authority_line: Option<usize>,
    across: &mut Across,
) -> Option<Log> {
    if authority_line.is_none() {
        let problem = "there is no [authority] in this file";
        let advice = "move the section to the file of the authority's machine";
        report.error(Some(s.line), "log", Complaint::new(problem.to_owned(), advice));
    }
    let listen = s.optional(report, "listen", listen);
    let public = s.optional(report, "public", flag);
    let auditors = s.list(report, "auditors", auditor);
    let storage = s.optional(report, "storage", bucket);
    if let Setting::Given(listen) = &listen {
        across.listener(Some(listen.line), s.key("listen"), listen.value);
    }
    s.finish(report);
    Some(Log {
        listen: listen.given(),
        public: public.or(false),
        auditors: auditors.values(),
        storage: storage.given(),
    })
}

fn read_acme_server(
    report: &mut Report<'_>,
    mut s: Section<'_>,
    authority_line: Option<usize>,
    across: &mut Across,
) -> Option<AcmeServer> {
    if authority_line.is_none() {
        let problem = "there is no [authority] in this file, which issues the certificates";
        let advice = "move the section to the file of the authority's machine";
        report.error(Some(s.line), "acme_server", Complaint::new(problem, advice));
    }
    let name = s.required(report, "name", site_name);
    let names = s.required_list(report, "names", site_name);
    let ttl = s.optional(report, "ttl", web_ttl);
    if let Some(name) = &name {
        across.site_name(report, name, s.key("name"));
        if name.value.is_wildcard() {
            let problem = "a wildcard is not the name of one site";
            let complaint = Complaint::new(problem, "write for example \"acme.example.org\"");
            report.error(Some(name.line), s.key("name"), complaint);
        }
    }
    s.finish(report);
    Some(AcmeServer {
        name: name?.value,
        names: names?.into_iter().map(|n| n.value).collect(),
        ttl: ttl.or(DEFAULT_WEB_TTL),
    })
}

/// The site of the ACME server. `None` only if the state directory's path is too long for a socket; then the admin socket
/// fails, too.
fn acme_site(acme: &AcmeServer, node: &Node, socket: &Path) -> Option<SiteSettings> {
    Some(SiteSettings {
        names: vec![acme.name.clone()],
        to: vec![format!("unix:{}", socket.display()).parse().ok()?],
        on_demand: false,
        default: false,
        identity: Id::Node(node.name.clone()),
        hsts: Hsts::Off,
        clients: None,
        client_ca: None,
        health: None,
        max_body: 1 << 20,
        timeout: Duration::from_secs(60),
    })
}

fn read_service(
    report: &mut Report<'_>,
    mut s: Section<'_>,
    across: &mut Across,
) -> Option<(ServiceSettings, Option<HostPort>)> {
    let name = s.required(report, "name", name);
    let listen = s.required(report, "listen", listen);
    let advertise = s.optional(report, "advertise", reachable);
    let forward = s.required_list(report, "forward", local_backend);
    let ports = s.list(report, "ports", port);
    let allow = s.list(report, "allow", identity);
    let proxy_protocol = s.optional(report, "proxy_protocol", flag);
    let transparent = s.optional(report, "transparent", flag);
    let idle_timeout = s.optional(report, "idle_timeout", duration);
    let max_per_peer = s.optional(report, "max_connections_per_peer", |v| number(v, 1_000_000));

    if let Some(name) = &name {
        across.service_name(report, name, s.key("name"));
    }
    if let Some(listen) = &listen {
        across.service_listener(listen.line, s.key("listen"), listen.value);
    }
    for (i, backend) in forward.iter().flatten().enumerate() {
        across.backends.push((backend.line, s.element("forward", i), backend.value.clone()));
        let shown = || match &backend.value {
            // An IPv4-mapped IPv6 address has no usable family here.
            Backend::Tcp(to) => to.as_ip().filter(|to| to.ip() == to.ip().to_canonical()),
            Backend::Unix(_) => None,
        };
        if transparent.as_given() == Some(true) && shown().is_none() {
            let problem = format!("{} cannot be used with transparent", backend.value);
            let advice = "write a loopback IP address, for example \"127.0.0.1:5432\"";
            let complaint = Complaint::new(problem, advice);
            report.error(Some(backend.line), s.element("forward", i), complaint);
        }
    }
    if let Setting::Given(Located { line, value: true }) = &transparent {
        across.transparent.push((*line, s.key("transparent")));
    }
    let nobody = match &allow {
        Setting::Absent => Some(s.line),
        Setting::Given(list) if list.value.is_empty() => Some(list.line),
        _ => None,
    };
    if let Some(line) = nobody {
        let advice = "list the identities that may, for example allow = [\"service/web\"]";
        report.warn(line, s.key("allow"), Complaint::new("nobody may connect", advice));
    }
    for (key, line, n, most) in [
        ("ports", ports.line(), ports.as_slice().len(), MAX_PORTS),
        ("allow", allow.line(), allow.as_slice().len(), MAX_ALLOWED),
    ] {
        if let Some(line) = line.filter(|_| n > most) {
            let problem = format!("{n} entries, but the authority accepts only {most}");
            let advice = "shorten the list; otherwise other machines get none of its entries";
            report.warn(line, s.key(key), Complaint::new(problem, advice));
        }
    }
    s.finish(report);
    let forward: Vec<_> = forward?.into_iter().map(|b| b.value).collect();
    let usual = || {
        let ports = forward.iter().filter_map(|backend| match backend {
            Backend::Tcp(to) => Some(to.port()),
            Backend::Unix(_) => None,
        });
        ports.collect::<BTreeSet<_>>().into_iter().collect()
    };
    let service = ServiceSettings {
        name: name?.value,
        listen: listen?.value,
        ports: if matches!(ports, Setting::Absent) { usual() } else { ports.values() },
        forward,
        allow: allow.values(),
        proxy_protocol: proxy_protocol.or(false),
        transparent: transparent.or(false),
        idle_timeout: idle_timeout.given().filter(|d| !d.is_zero()),
        max_per_peer: max_per_peer.or(DEFAULT_PER_PEER),
    };
    Some((service, advertise.given()))
}

fn read_dial(
    report: &mut Report<'_>,
    mut s: Section<'_>,
    this_node: Option<&Id>,
    across: &mut Across,
) -> Option<DialSettings> {
    let listen = s.required(report, "listen", loopback_listen);
    let service = s.required(report, "service", name);
    let identity = s.optional(report, "as", own_service);
    let to = s.list(report, "to", reachable);
    let idle_timeout = s.optional(report, "idle_timeout", duration);

    if let Some(listen) = &listen {
        across.listener(Some(listen.line), s.key("listen"), listen.value);
    }
    s.finish(report);
    Some(DialSettings {
        listen: listen?.value,
        service: service?.value,
        identity: match identity.given() {
            Some(name) => Id::Service(name),
            None => this_node?.clone(),
        },
        to: to.values(),
        idle_timeout: idle_timeout.given().filter(|d| !d.is_zero()),
    })
}
