//! The frame of every page, and the parts that pages have in common. Texts of other machines go through [`text`].

use std::net::SocketAddr;

use form_urlencoded::Serializer;
use maud::{DOCTYPE, Markup, html};
use wiretight_scan::judge::Level;
use wiretight_scan::passive::Transport;
use wiretight_scan::passive::summary::{Key, Row};
use wiretight_scan::report::{clean, size};

use super::model::Model;
use crate::proof::chart::{self, Round, grouped, percent, permille};

/// The longest text of another machine that is shown, in characters.
const MAX_TEXT: usize = 400;

/// The pages of the menu, and their paths.
pub const TABS: [(&str, &str); 10] = [
    ("Overview", "/"),
    ("To change", "/change"),
    ("Services", "/services"),
    ("Nodes", "/nodes"),
    ("Scans", "/scans"),
    ("History", "/history"),
    ("Log", "/log"),
    ("Witnesses", "/witnesses"),
    ("Keys", "/keys"),
    ("Exceptions", "/exceptions"),
];

/// What a page is called, where it is in the menu, and the commands that show the same.
pub struct Head<'a> {
    pub title: &'a str,
    pub tab: &'a str,
    pub commands: &'a [&'a str],
}

/// A whole page.
pub fn page(model: &Model, head: &Head<'_>, body: Markup) -> Markup {
    let Head { title, tab, commands } = *head;
    let domain = &model.facts.trust_domain;
    let process = &model.status.process;
    html! {
        (DOCTYPE)
        html lang="en" {
            (html_head(&format!("{title} · {domain}")))
            body {
                a.skip href="#main" { "Skip to the page" }
                header.top {
                    a.brand href="/" { b { "Wiretight" } " " span { (domain) } }
                    nav aria-label="Pages" {
                        @for (name, path) in TABS {
                            a href=(path) aria-current=[(path == tab).then_some("page")] { (name) }
                        }
                    }
                }
                main #main {
                    (chart::defs())
                    (body)
                    @if !commands.is_empty() {
                        section.same aria-label="On the command line" {
                            h2 { "The same on the command line" }
                            @for line in commands { (command(line)) }
                        }
                    }
                }
                footer.bottom {
                    p {
                        "As of " (time(model.facts.at)) ", from node " b { (process.node) } ", the authority, "
                        "version " (text(&model.facts.version)) ". This console only reads. "
                        span.reload {
                            "Reload the page for newer numbers, or let it "
                            a href="/?live=1" { "reload every 30 s" } "."
                        }
                    }
                }
            }
        }
    }
}

/// A page for those without a session.
pub fn outside(title: &str, body: Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            (html_head(title))
            body.outside { main #main { h1 { (title) } (body) } }
        }
    }
}

fn html_head(title: &str) -> Markup {
    html! {
        head {
            meta charset="utf-8";
            meta name="viewport" content="width=device-width, initial-scale=1";
            meta name="color-scheme" content="light dark";
            title { (title) }
            link rel="stylesheet" href="/style.css";
            link rel="icon" href="/icon.svg" type="image/svg+xml";
        }
    }
}

/// A text of another machine: without control characters and direction marks, and not too long.
pub fn text(of: &str) -> String {
    match of.char_indices().nth(MAX_TEXT) {
        Some((end, _)) => format!("{}…", clean(&of[..end])),
        None => clean(of).into_owned(),
    }
}

pub fn command(line: &str) -> Markup {
    html! { pre.command { code { (text(line)) } } }
}

/// A command in a row. Lines break between its words only.
pub fn small_command(line: &str) -> Markup {
    html! {
        code.command {
            @for (n, word) in text(line).split(' ').enumerate() {
                @if n > 0 { " " }
                span { (word) }
            }
        }
    }
}

/// A level's word, which is also the name of its class.
pub fn word(level: Level) -> &'static str {
    match level {
        Level::Unknown => "unknown",
        Level::Plaintext => "plaintext",
        Level::Weak => "weak",
        Level::Acceptable => "acceptable",
        Level::Strong => "strong",
    }
}

/// A level, by word, sign and colour.
pub fn badge(level: Level) -> Markup {
    let sign = match level {
        Level::Strong => "●",
        Level::Acceptable => "◕",
        Level::Weak => "◔",
        Level::Plaintext => "○",
        Level::Unknown => "?",
    };
    html! { span.badge.(word(level)) { span aria-hidden="true" { (sign) } " " (word(level)) } }
}

/// Whether something is as it should be, by word and sign.
pub fn state(good: bool, words: &str) -> Markup {
    let (class, sign) = if good { ("good", "✓") } else { ("bad", "✗") };
    html! { span.state.(class) { span aria-hidden="true" { (sign) } " " (text(words)) } }
}

/// `2026-11-30 19:10:02 UTC`
pub fn time(at: u64) -> Markup {
    let stamp = i64::try_from(at).ok().and_then(|at| jiff::Timestamp::from_second(at).ok());
    html! {
        @match stamp {
            Some(at) => time datetime=(at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()) {
                (at.strftime("%Y-%m-%d %H:%M:%S").to_string()) " UTC"
            },
            None => "an impossible time",
        }
    }
}

/// `12 min ago`, `in 3 d`
pub fn relative(at: u64, now: u64) -> String {
    match at.checked_sub(now) {
        Some(0) => "now".into(),
        Some(left) => format!("in {}", span(left)),
        None => format!("{} ago", span(now - at)),
    }
}

/// `59 min`
pub fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// `1 node`, `1,234 entries`
pub fn count(n: u64, what: &str) -> String {
    let number = grouped(n);
    match what.strip_suffix('y').filter(|stem| !stem.ends_with('a')) {
        _ if n == 1 => format!("{number} {what}"),
        Some(stem) => format!("{number} {stem}ies"),
        None if what.ends_with('s') => format!("{number} {what}es"),
        None => format!("{number} {what}s"),
    }
}

/// The share of what is good, rounded down.
pub fn good_share(part: u64, all: u64) -> String {
    percent(permille(part, all, Round::Down))
}

/// The share of what is not good, rounded up.
pub fn bad_share(part: u64, all: u64) -> String {
    percent(permille(part, all, Round::Up))
}

pub fn bytes(n: u64) -> String {
    size(n)
}

/// `10.0.0.5:443`; for UDP and others with the transport.
pub fn server(key: &Key) -> String {
    match key.transport {
        Transport::Tcp => key.server.to_string(),
        Transport::Udp | Transport::Sctp => format!("{}/{}", key.server, key.transport),
        Transport::Icmp | Transport::Ip(_) => format!("{}/{}", key.server.ip(), key.transport),
    }
}

/// The server with the name of the mesh's service or node there, if there is one.
pub fn named_server(model: &Model, key: &Key) -> Markup {
    let at = SocketAddr::new(key.server.ip().to_canonical(), key.server.port());
    html! {
        (server(key))
        @if let Some(service) = model.service_at(at) {
            " " span.dim { "service/" (service) }
        } @else if let Some(node) = model.node_at(at.ip()) {
            " " span.dim { "node/" (node) }
        }
    }
}

/// What was negotiated: `TLS 1.3 X25519MLKEM768`.
pub fn encryption(row: &Row) -> String {
    let mut words: Vec<String> = Vec::new();
    for seen in &row.seen {
        let Some(sealed) = &seen.sealed else { continue };
        let method = sealed.group.as_deref().or(sealed.suite.as_deref()).unwrap_or_default();
        let word = text(format!("{} {method}", sealed.version).trim());
        if !words.contains(&word) {
            words.push(word);
        }
    }
    words.truncate(3);
    words.join(", ")
}

/// The client or clients of a row.
pub fn clients(row: &Row) -> String {
    if let Some(client) = row.key.client {
        return match client.port() {
            0 => client.ip().to_string(),
            _ => client.to_string(),
        };
    }
    match (row.clients.first(), row.clients.len() as u64, row.more_clients) {
        (Some(client), 1, false) => client.to_string(),
        (_, n, false) => count(n, "client"),
        (_, n, true) => format!("more than {}", count(n, "client")),
    }
}

pub fn programs(row: &Row) -> String {
    let names: Vec<String> = row.programs.iter().map(|name| text(name)).collect();
    names.join(", ")
}

/// A path with a query; values are escaped.
pub fn link(path: &str, query: &[(&str, &str)]) -> String {
    let mut out = Serializer::new(String::new());
    for (name, value) in query.iter().filter(|(_, value)| !value.is_empty()) {
        out.append_pair(name, value);
    }
    let query = out.finish();
    if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
}

/// The page about a server.
pub fn service_link(key: &Key) -> String {
    let (server, via) = (key.server.to_string(), key.transport.to_string());
    let query = [
        ("server", server.as_str()),
        ("via", via.as_str()),
        ("protocol", &*key.protocol),
        ("level", word(key.level)),
    ];
    link("/service", &query)
}

/// The page about a row of a node.
pub fn flow_link(node: &str, row: &Row) -> String {
    let key = &row.key;
    let client = key.client.map(|client| client.to_string()).unwrap_or_default();
    let (server, via) = (key.server.to_string(), key.transport.to_string());
    let query = [
        ("node", node),
        ("server", server.as_str()),
        ("via", via.as_str()),
        ("protocol", &*key.protocol),
        ("level", word(key.level)),
        ("client", client.as_str()),
    ];
    link("/flow", &query)
}

/// A page of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// From 1.
    pub page: usize,
    pub per: usize,
    pub all: usize,
}

impl Part {
    /// `page` is as asked for; beyond the end, the last one is shown.
    pub fn of(page: usize, per: usize, all: usize) -> Part {
        let last = all.div_ceil(per).max(1);
        Part { page: page.clamp(1, last), per, all }
    }

    pub fn range(self) -> std::ops::Range<usize> {
        let start = (self.page - 1) * self.per;
        start..(start + self.per).min(self.all)
    }

    fn last(self) -> usize {
        self.all.div_ceil(self.per).max(1)
    }
}

/// Which part of a list is shown, and links to the others. `path` and `query` are those of the list.
pub fn pager(part: Part, path: &str, query: &[(&str, &str)]) -> Markup {
    let to = |page: usize| {
        let page = page.to_string();
        let all: Vec<(&str, &str)> =
            query.iter().copied().chain([("page", page.as_str())]).collect();
        link(path, &all)
    };
    let range = part.range();
    html! {
        nav.pager aria-label="Pages of this list" {
            @if part.all == 0 { "none" } @else {
                span {
                    (grouped(range.start as u64 + 1)) " to " (grouped(range.end as u64)) " of "
                    (grouped(part.all as u64))
                }
            }
            @if part.page > 1 {
                a href=(to(1)) { "first" } a href=(to(part.page - 1)) rel="prev" { "previous" }
            }
            @if part.page < part.last() {
                a href=(to(part.page + 1)) rel="next" { "next" } a href=(to(part.last())) { "last" }
            }
        }
    }
}

/// A table that scrolls by itself if it is too wide.
pub fn table(label: &str, heads: &[(&str, bool)], rows: Markup) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label=(label) {
            table {
                thead { tr {
                    @for (head, is_number) in heads {
                        th scope="col" class=[is_number.then_some("n")] { (head) }
                    }
                } }
                tbody { (rows) }
            }
        }
    }
}
