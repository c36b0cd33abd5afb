//! Who talks to whom, as a drawing: clients on the left, servers on the right, a line for each pair. The worst and largest
//! pairs only; the table beside it has all. A line's level is shown by its dashes and a word, not by colour alone.

use std::collections::BTreeMap;
use std::net::IpAddr;

use maud::{Markup, html};
use wiretight_scan::judge::Level;

use super::model::{Model, Service};
use super::parts::{count, server, service_link, word};

/// Servers and clients that are drawn.
const SERVERS: usize = 14;
const CLIENTS: usize = 14;
/// The height of a name in pixels, which style.css has too.
const ROW: usize = 34;

/// A client of drawn servers: a node of the mesh, an address, or all clients without a place of their own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Client {
    /// Also a program on the machine of a node.
    Node(String),
    Address(IpAddr),
    Others,
}

impl Client {
    fn label(&self) -> String {
        match self {
            Client::Node(name) => format!("node/{name}"),
            Client::Address(at) => at.to_string(),
            Client::Others => "other clients".into(),
        }
    }
}

/// A drawing of the first services of a list, which is sorted.
pub fn drawing(model: &Model, services: &[&Service]) -> Markup {
    let shown = &services[..services.len().min(SERVERS)];
    if shown.is_empty() {
        return html! {};
    }
    let (clients, pairs) = pairs(model, shown);
    let rows = clients.len().max(shown.len());
    let height = rows * ROW;
    let y = |place: usize, of: usize| (rows - of) * ROW / 2 + place * ROW + ROW / 2;
    let widest = shown.iter().map(|service| service.most.bytes).max().unwrap_or(1);
    html! {
        figure.drawing {
            div.who {
                span.head #who-c { "clients" }
                span {}
                span.head #who-s { "servers" }
                ul.from aria-labelledby="who-c" {
                    @for client in &clients {
                        li {
                            @if let Client::Node(name) = client {
                                a href={ "/node/" (name) } { (client.label()) }
                            } @else {
                                span { (client.label()) }
                            }
                        }
                    }
                }
                // It is as wide as there is room; lines keep their thickness and dashes.
                svg viewBox={ "0 0 100 " (height) } width="100%" height=(height) preserveAspectRatio="none" role="img"
                    aria-labelledby="who-t" {
                    title #who-t {
                        "Lines from " (count(clients.len() as u64, "client")) " to "
                        (count(shown.len() as u64, "service")) ". The table has the same and all others."
                    }
                    @for (client, place) in &pairs {
                        @let service = shown[*place];
                        @let (from, to) = (y(*client, clients.len()), y(*place, shown.len()));
                        path.line.(word(service.key.level)) fill="none" vector-effect="non-scaling-stroke"
                            d={ "M0 " (from) " C50 " (from) " 50 " (to) " 100 " (to) }
                            stroke-width=(thickness(service.most.bytes, widest)) stroke-dasharray=[dashes(service.key.level)] {
                            title { (clients[*client].label()) " to " (server(&service.key)) ": " (word(service.key.level)) }
                        }
                    }
                }
                ul.to aria-labelledby="who-s" {
                    @for service in shown {
                        li.(word(service.key.level)) {
                            a href=(service_link(&service.key)) {
                                (label(model, service)) " " b { (word(service.key.level)) }
                            }
                        }
                    }
                }
            }
            figcaption {
                @if shown.len() < services.len() {
                    "The " (shown.len()) " worst and largest of " (count(services.len() as u64, "service")) ". "
                }
                "Thickness: bytes. Dotted: plaintext; short dashes: weak; long dashes: unknown; full: acceptable or strong."
            }
        }
    }
}

/// The server, as far as there is room for it.
fn label(model: &Model, service: &Service) -> String {
    let at = std::net::SocketAddr::new(
        service.key.server.ip().to_canonical(),
        service.key.server.port(),
    );
    let name = match model.service_at(at) {
        Some(name) => format!("service/{name}"),
        None => server(&service.key),
    };
    let protocol: String = service.key.protocol.chars().take(14).collect();
    let name: String = name.chars().take(30).collect();
    super::parts::text(&format!("{name} {protocol}"))
}

/// The clients, in the order of their lines, and the lines: a client's place and a service's.
fn pairs(model: &Model, services: &[&Service]) -> (Vec<Client>, Vec<(usize, usize)>) {
    let mut weight: BTreeMap<Client, usize> = BTreeMap::new();
    let client = |service: &Service, at: IpAddr| match model.node_at(at) {
        Some(name) => Client::Node(name.to_string()),
        // On the machine that reported it.
        None if at.to_canonical().is_loopback() => {
            Client::Node(model.node_of(model.flows[service.flows[0]]).name.to_string())
        }
        None => Client::Address(at),
    };
    // A client is drawn if it talks to many of the servers, or to the first ones.
    for (place, service) in services.iter().enumerate() {
        for at in &service.clients {
            *weight.entry(client(service, *at)).or_default() += SERVERS + services.len() - place;
        }
    }
    let mut order: Vec<(Client, usize)> = weight.into_iter().collect();
    order.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let mut drawn: Vec<Client> =
        order.into_iter().take(CLIENTS).map(|(client, _)| client).collect();
    let mut lines: Vec<(Client, usize)> = Vec::new();
    for (place, service) in services.iter().enumerate() {
        let mut others = service.more_clients;
        for at in &service.clients {
            let client = client(service, *at);
            match drawn.contains(&client) {
                true => lines.push((client, place)),
                false => others = true,
            }
        }
        if others {
            lines.push((Client::Others, place));
        }
    }
    if lines.iter().any(|(client, _)| *client == Client::Others) {
        drawn.push(Client::Others);
    }
    // Lines cross less if clients are in the order of the servers that they use.
    let middle = |client: &Client| {
        let of: Vec<usize> =
            lines.iter().filter(|(c, _)| c == client).map(|(_, place)| *place).collect();
        of.iter().sum::<usize>() * 1000 / of.len().max(1)
    };
    drawn.sort_by_key(|client| (*client == Client::Others, middle(client), client.clone()));
    let mut lines: Vec<(usize, usize)> = lines
        .into_iter()
        .filter_map(|(client, service)| Some((drawn.iter().position(|c| *c == client)?, service)))
        .collect();
    lines.sort_unstable();
    lines.dedup();
    (drawn, lines)
}

/// 1 to 7, by the logarithm of the bytes.
fn thickness(bytes: u64, widest: u64) -> u32 {
    let bits = |n: u64| 64 - n.leading_zeros();
    1 + 6 * bits(bytes) / bits(widest.max(1)).max(1)
}

fn dashes(level: Level) -> Option<&'static str> {
    match level {
        Level::Plaintext => Some("2 5"),
        Level::Weak => Some("7 5"),
        Level::Unknown => Some("14 6"),
        Level::Acceptable | Level::Strong => None,
    }
}
