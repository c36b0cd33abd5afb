//! Services and who talks to whom, one service, one flow with its evidence, and what to change.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use maud::{Markup, html};
use wiretight_scan::facts::Answer;
use wiretight_scan::judge::{Level, Reason};
use wiretight_scan::passive::Sealed;
use wiretight_scan::passive::blockers::is_private;
use wiretight_scan::passive::summary::Row;

use super::drawing;
use super::model::{Flow, Model, Service};
use super::parts::{
    Head, Part, badge, bytes, clients, count, encryption, flow_link, link, named_server, page,
    pager, programs, server, service_link, small_command, state, table, text, time, word,
};
use super::query::Query;
use super::scans;
use crate::proof::chart::grouped;

const PER_PAGE: usize = 100;
/// Items of evidence, clients or reasons of one row that are shown.
const SHOWN: usize = 64;

/// The command that shows a service on the nodes that reported it.
fn watch_command(row: &wiretight_scan::passive::summary::Key) -> String {
    format!("wiretight watch --once --port {} --level {}", row.server.port(), row.level)
}

/// What services are selected by. Each node and each program is compared once, for they are in many rows.
struct Search<'a> {
    model: &'a Model,
    level: Option<Level>,
    wanted: String,
    address: Option<IpAddr>,
    nodes: Vec<bool>,
    programs: HashMap<&'a str, bool>,
}

impl<'a> Search<'a> {
    fn new(model: &'a Model, query: &Query) -> Search<'a> {
        let wanted = query.text.to_lowercase();
        let nodes = model.facts.nodes.iter().map(|node| node.name.as_str().contains(&wanted));
        let (nodes, address) = (nodes.collect(), wanted.parse().ok());
        Search { model, level: query.level, wanted, address, nodes, programs: HashMap::new() }
    }

    fn finds(&mut self, service: &Service) -> bool {
        if self.level.is_some_and(|level| level != service.key.level) {
            return false;
        }
        let (model, wanted) = (self.model, self.wanted.as_str());
        let at = service.key.server;
        let at = SocketAddr::new(at.ip().to_canonical(), at.port());
        server(&service.key).contains(wanted)
            || service.key.protocol.to_lowercase().contains(wanted)
            || model.service_at(at).is_some_and(|name| name.as_str().contains(wanted))
            || self.address.is_some_and(|client| service.clients.contains(&client))
            || service.flows.iter().any(|place| self.finds_row(model.flows[*place]))
    }

    fn finds_row(&mut self, flow: Flow) -> bool {
        let (wanted, programs) = (self.wanted.as_str(), &mut self.programs);
        let mut finds = |name: &'a str| {
            *programs.entry(name).or_insert_with(|| name.to_lowercase().contains(wanted))
        };
        self.nodes[flow.node] || self.model.row(flow).programs.iter().any(|name| finds(name))
    }
}

/// The form that selects services.
fn form(query: &Query) -> Markup {
    html! {
        form.filter method="get" action="/services" role="search" {
            label { "Address, protocol, service, node or program " input type="search" name="q" value=(text(&query.text)) maxlength="100"; }
            label { "Level "
                select name="level" {
                    option value="" { "all" }
                    @for level in Level::ALL {
                        option value=(word(level)) selected[query.level == Some(level)] { (word(level)) }
                    }
                }
            }
            button type="submit" { "Show" }
        }
    }
}

pub fn services(model: &Model, query: &Query) -> Markup {
    let mut search = Search::new(model, query);
    let found: Vec<&Service> = model.services.iter().filter(|s| search.finds(s)).collect();
    let part = Part::of(query.page, PER_PAGE, found.len());
    let level = query.level.map(word).unwrap_or_default();
    let rows = html! { @for service in &found[part.range()] { (service_row(model, service)) } };
    let more: u64 =
        model.facts.nodes.iter().filter_map(|n| n.report.as_ref()).map(|r| r.more_rows).sum();
    let body = html! {
        h1 { "Services, and who talks to whom" }
        p.lead {
            (count(model.services.len() as u64, "service")) " in the newest reports of the nodes, each with its level of "
            "encryption. Both ends of a connection report it: the numbers of a service are those of the node that saw most."
        }
        (form(query))
        (drawing::drawing(model, &found))
        (pager(part, "/services", &[("q", query.text.as_str()), ("level", level)]))
        (table("Services", &SERVICE_HEADS, rows))
        @if more > 0 {
            p.dim { (count(more, "more row")) " did not fit into the reports: each node sends the worst and largest ones. "
                "They are in its own " code { "wiretight watch" } ", and in the totals of every hour." }
        }
    };
    let commands = ["wiretight watch --once --by pair"];
    page(model, &Head { title: "Services", tab: "/services", commands: &commands }, body)
}

const SERVICE_HEADS: [(&str, bool); 8] = [
    ("Level", false),
    ("Server", false),
    ("Protocol", false),
    ("Clients", false),
    ("Connections", true),
    ("Bytes", true),
    ("Reported by", false),
    ("Command", false),
];

fn service_row(model: &Model, service: &Service) -> Markup {
    let href = service_link(&service.key);
    let clients = service.clients.len() as u64;
    let mut nodes: Vec<usize> = service.flows.iter().map(|flow| model.flows[*flow].node).collect();
    nodes.sort_unstable();
    nodes.dedup();
    html! {
        tr {
            td { (badge(service.key.level)) }
            td { a href=(href) { (named_server(model, &service.key)) } }
            td { (text(&service.key.protocol)) }
            td {
                a href=(href) {
                    @if service.more_clients { "more than " }
                    @match (service.clients.first(), clients) {
                        (Some(client), 1) if !service.more_clients => (client_name(model, *client)),
                        _ => (count(clients, "client")),
                    }
                }
            }
            td.n { (grouped(service.most.connections)) }
            td.n { (bytes(service.most.bytes)) }
            td {
                @match nodes.as_slice() {
                    [node] => { @let name = &model.facts.nodes[*node].name; a href={ "/node/" (name) } { (name) } },
                    all => a href=(href) { (count(all.len() as u64, "node")) },
                }
            }
            td { (small_command(&watch_command(&service.key))) }
        }
    }
}

/// The node at an address, or the address.
fn client_name(model: &Model, client: IpAddr) -> Markup {
    html! { (client) @if let Some(node) = model.node_at(client) { " " span.dim { "node/" (node) } } }
}

/// All rows about a server; with a level, those of that level.
pub fn service(model: &Model, query: &Query) -> Option<Markup> {
    let server = query.server?;
    let same = |service: &&Service| {
        let key = &service.key;
        key.server == server
            && (query.via.is_empty() || query.via == key.transport.to_string())
            && (query.protocol.is_empty() || query.protocol == key.protocol)
            && query.level.is_none_or(|level| level == key.level)
    };
    let found: Vec<&Service> = model.services.iter().filter(same).collect();
    let first = found.first()?;
    let flows: Vec<usize> =
        found.iter().flat_map(|service| service.flows.iter().copied()).collect();
    let part = Part::of(query.page, PER_PAGE, flows.len());
    let rows = html! { @for place in &flows[part.range()] { (flow_row(model, *place, true)) } };
    let title = self::server(&first.key);
    let clients: std::collections::BTreeSet<_> =
        found.iter().flat_map(|s| &s.clients).copied().collect();
    let reasons: Vec<&Reason> =
        unique_reasons(flows.iter().map(|place| model.row(model.flows[*place])));
    let level = query.level.map(word).unwrap_or_default();
    let at = server.to_string();
    let list = [
        ("server", at.as_str()),
        ("via", query.via.as_str()),
        ("protocol", query.protocol.as_str()),
        ("level", level),
    ];
    let body = html! {
        p.crumb { a href="/services" { "Services" } }
        h1 { (named_server(model, &first.key)) }
        p.lead {
            @for service in &found { (badge(service.key.level)) " " (text(&service.key.protocol)) " " }
            "from " (count(clients.len() as u64, "client"))
            @if found.iter().any(|s| s.more_clients) { " or more" }
            ", reported in " (count(flows.len() as u64, "row")) "."
            @if query.level.is_some() { " " a href=(link("/service", &[("server", at.as_str())])) { "All levels and protocols of this server" } }
        }
        (changes(&reasons))
        (drawing::drawing(model, &found))
        (pager(part, "/service", &list))
        (table("Rows", &FLOW_HEADS, rows))
        (scans::of_server(model, server))
        details {
            summary { "Clients" }
            ul.columns3 { @for client in clients.iter().take(SHOWN) { li { (client_name(model, *client)) } } }
        }
    };
    let command = watch_command(&first.key);
    let scan = format!("wiretight scan {}", first.key.server);
    Some(page(model, &Head { title: &title, tab: "/services", commands: &[&command, &scan] }, body))
}

pub const FLOW_HEADS: [(&str, bool); 9] = [
    ("Level", false),
    ("Reported by", false),
    ("Server", false),
    ("Client", false),
    ("Protocol and encryption", false),
    ("Program", false),
    ("Connections", true),
    ("Bytes", true),
    ("Known by", false),
];

/// A row of a node's report.
pub fn flow_row(model: &Model, place: usize, with_node: bool) -> Markup {
    let flow = model.flows[place];
    let (row, node) = (model.row(flow), &model.node_of(flow).name);
    let encryption = encryption(row);
    html! {
        tr {
            td { (badge(row.key.level)) }
            td { @if with_node { a href={ "/node/" (node) } { (node) } } @else { (node) } }
            td { a href=(flow_link(node.as_str(), row)) { (named_server(model, &row.key)) } }
            td { (clients(row)) }
            td { (text(&row.key.protocol)) @if !encryption.is_empty() { br; span.dim { (encryption) } } }
            td { (programs(row)) }
            td.n { (grouped(row.flows)) }
            td.n { (bytes(row.total())) }
            td { (row.grade) }
        }
    }
}

/// The reasons of several rows, each once.
fn unique_reasons<'a>(rows: impl Iterator<Item = &'a Row>) -> Vec<&'a Reason> {
    let mut found: Vec<&Reason> = Vec::new();
    for reason in rows.flat_map(|row| &row.reasons) {
        if found.len() >= SHOWN {
            break;
        }
        if !found.iter().any(|known| known.rule == reason.rule && known.change == reason.change) {
            found.push(reason);
        }
    }
    found
}

pub fn changes(reasons: &[&Reason]) -> Markup {
    html! {
        @if !reasons.is_empty() {
            section {
                h2 { "What to change" }
                @let rows = html! {
                    @for reason in reasons {
                        tr {
                            td { (badge(reason.level)) }
                            td { (text(&reason.what)) br; span.dim { code { (text(&reason.rule)) } " " (text(&reason.standard)) } }
                            td { (text(&reason.change)) }
                        }
                    }
                };
                (table("What to change", &[("At best", false), ("Found", false), ("Change", false)], rows))
            }
        }
    }
}

/// A row with all its evidence.
pub fn flow(model: &Model, query: &Query) -> Option<Markup> {
    let (place, node) = model.node(&query.node)?;
    let server = query.server?;
    let same = |flow: &&Flow| {
        let key = &model.row(**flow).key;
        key.server == server
            && key.transport.to_string() == query.via
            && key.protocol == query.protocol
            && Some(key.level) == query.level
            && key.client == query.client
    };
    let flow = *model.flows.iter().filter(|flow| flow.node == place).find(same)?;
    let row = model.row(flow);
    let title = format!("{} on {}", self::server(&row.key), node.name);
    let reasons: Vec<&Reason> = row.reasons.iter().take(SHOWN).collect();
    let body = html! {
        p.crumb {
            a href="/nodes" { "Nodes" } " / " a href={ "/node/" (node.name) } { (node.name) } " / "
            a href=(service_link(&row.key)) { (self::server(&row.key)) }
        }
        h1 { (text(&row.key.protocol)) " to " (named_server(model, &row.key)) }
        p.lead {
            (badge(row.key.level)) " as seen by node " b { (node.name) } ", known by: " b { (row.grade) } ". "
            (meaning_of_grade(row))
        }
        dl.facts {
            div { dt { "Client" } dd { (clients(row)) } }
            div { dt { "Programs" } dd { @if row.programs.is_empty() { "not known" } @else { (programs(row)) } } }
            div { dt { "Connections" } dd { (grouped(row.flows)) } }
            div { dt { "Bytes from clients" } dd { (bytes(row.bytes[0])) } }
            div { dt { "Bytes from the server" } dd { (bytes(row.bytes[1])) } }
            div { dt { "First" } dd { (stamp(row.first)) } }
            div { dt { "Last" } dd { (stamp(row.last)) } }
            div { dt { "Reported" } dd { @if let Some(at) = node.reported_at { (time(at)) } } }
        }
        (changes(&reasons))
        section {
            h2 { "Evidence" }
            @if row.seen.is_empty() { p { "The report has none." } }
            ul.evidence {
                @for seen in row.seen.iter().take(SHOWN) {
                    li {
                        (badge(seen.level)) " " (seen.grade) ": " q { (text(&seen.evidence)) }
                        @if let Some(sealed) = &seen.sealed { (negotiated(sealed)) }
                    }
                }
                @for scanned in row.scanned.iter().take(SHOWN) {
                    li {
                        (badge(scanned.level)) " scanned " (stamp(scanned.at))
                        @if let Some(name) = &scanned.server_name { " as " (text(name)) }
                        ": " (text(&scanned.summary))
                    }
                }
            }
            @if row.more_seen { p.dim { "And more of the same kind." } }
        }
        @if !row.profiles.is_empty() {
            section {
                h2 { "Profiles" }
                p.dim { "Judged by what was negotiated, not by all that the server accepts: " code { "wiretight scan" } " determines that." }
                ul.profiles {
                    @for (name, answer) in row.profiles.iter().take(SHOWN) {
                        li { (answer_state(*answer)) " " (text(name)) }
                    }
                }
            }
        }
        @if !row.clients.is_empty() {
            section {
                h2 { "Clients" }
                ul.columns3 { @for client in row.clients.iter().take(SHOWN) { li { (client_name(model, *client)) } } }
                @if row.more_clients { p.dim { "And more." } }
            }
        }
    };
    let watch = watch_command(&row.key) + " --verbose";
    Some(page(model, &Head { title: &title, tab: "/services", commands: &[&watch] }, body))
}

pub fn answer_state(answer: Answer) -> Markup {
    match answer {
        Answer::Yes => state(true, "met"),
        Answer::No => state(false, "not met"),
        Answer::Inconclusive | Answer::Untested => {
            html! { span.state { span aria-hidden="true" { "?" } " not known" } }
        }
    }
}

fn meaning_of_grade(row: &Row) -> &'static str {
    use wiretight_scan::passive::Grade;
    match row.grade {
        Grade::Carried => "The relay or edge of that node holds the connection, so this is exact.",
        Grade::Seen => "A handshake, or a plaintext dialogue, was parsed.",
        Grade::Guessed => "From its first bytes alone, which another protocol might send too.",
        Grade::Unknown => "Nothing was seen that shows what it is.",
    }
}

fn stamp(at: jiff::Timestamp) -> Markup {
    html! { (at.strftime("%Y-%m-%d %H:%M:%S").to_string()) " UTC" }
}

fn negotiated(sealed: &Sealed) -> Markup {
    let facts = [
        ("version", Some(sealed.version.as_ref())),
        ("suite", sealed.suite.as_deref()),
        ("key exchange", sealed.group.as_deref()),
        ("signature", sealed.signature.as_deref()),
        ("name", sealed.server_name.as_deref()),
        ("alpn", sealed.alpn.as_deref()),
    ];
    let answers = [
        ("post-quantum", sealed.post_quantum),
        ("forward secrecy", sealed.forward_secrecy),
        ("resumed", sealed.resumed),
        ("client certificate requested", sealed.client_certificate),
    ];
    html! {
        ul.chips {
            @for (name, value) in facts {
                @if let Some(value) = value { li { span.dim { (name) } " " (text(value)) } }
            }
            @for (name, value) in answers {
                @if let Some(value) = value { li { span.dim { (name) } " " (if value { "yes" } else { "no" }) } }
            }
            @if let Some(of) = &sealed.certificate {
                li {
                    span.dim { "certificate" } " " (text(&of.subject)) ", " (text(&of.key)) ", signed with "
                    (text(&of.signature)) ", until " (of.not_after.strftime("%Y-%m-%d").to_string())
                }
            }
        }
    }
}

/// `postgres from 2 clients, report.py (cron.service)`
pub fn from_whom(service: &Service, row: &Row) -> String {
    let more = if service.more_clients { "more than " } else { "" };
    let clients = count(service.clients.len() as u64, "client");
    let mut words = format!("{} from {more}{clients}", text(&service.key.protocol));
    let names = programs(row);
    if !names.is_empty() {
        words += ", ";
        words += &names;
    }
    words
}

/// What strict mode would have to do without, with the change that mends each.
pub fn change(model: &Model, query: &Query) -> Markup {
    let of_level = |service: &&Service| query.level.is_none_or(|level| level == service.key.level);
    let found: Vec<&Service> = model.blockers().filter(of_level).collect();
    let part = Part::of(query.page, 50, found.len());
    let level = query.level.map(word).unwrap_or_default();
    let levels = [Level::Plaintext, Level::Weak, Level::Unknown, Level::Acceptable];
    let rows = html! {
        @for service in &found[part.range()] {
            @let row = model.row(model.flows[service.flows[0]]);
            @let own = is_private(service.key.server.ip()) && service.clients.iter().copied().all(is_private);
            tr {
                td { (badge(service.key.level)) }
                td {
                    a href=(service_link(&service.key)) { (named_server(model, &service.key)) } br;
                    (from_whom(service, row))
                    br; span.dim { (if own { "both ends have private addresses" } else { "one end has a public address" }) }
                }
                td {
                    @if row.reasons.is_empty() { span.dim { "The report has no reason." } }
                    @for reason in row.reasons.iter().take(4) {
                        p.change { b { (text(&reason.change)) } br; span.dim { (text(&reason.what)) } }
                    }
                }
                td.n { (bytes(service.most.bytes)) br; span.dim { (count(service.most.connections, "connection")) } }
                td { (small_command(&watch_command(&service.key))) }
            }
        }
    };
    let heads = [
        ("Level", false),
        ("Traffic", false),
        ("Change, and why", false),
        ("Size", true),
        ("Command", false),
    ];
    let all = model.blockers().count() as u64;
    let body = html! {
        h1 { "What to change" }
        p.lead {
            (count(all, "service")) " that strict mode would have to do without, or that could be encrypted better. The worst and largest "
            "come first."
        }
        p.switch {
            "Show: "
            a href="/change" aria-current=[query.level.is_none().then_some("true")] { "all " (grouped(all)) }
            @for level in levels {
                " "
                a href={ "/change?level=" (word(level)) } aria-current=[(query.level == Some(level)).then_some("true")] {
                    (word(level)) " " (grouped(model.blockers().filter(|s| s.key.level == level).count() as u64))
                }
            }
        }
        (scans::below(model))
        @if found.is_empty() {
            p { (state(true, "Nothing that a node has reported.")) }
        } @else {
            (pager(part, "/change", &[("level", level)]))
            (table("What to change", &heads, rows))
        }
    };
    let commands = [
        "wiretight watch --once --blockers",
        "wiretight status --plaintext",
        "wiretight mode strict --dry-run",
    ];
    page(model, &Head { title: "What to change", tab: "/change", commands: &commands }, body)
}
