//! `wiretight status`

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::term::{self, Table};
use super::{Output, Where, plaintext};

/// Refusals that are shown; `--json` has more.
const REFUSALS: usize = 10;

/// Show what is encrypted, between which peers and how; and what was refused, and why
#[derive(Args)]
#[command(after_help = "\
Examples:
  wiretight status
  wiretight status --plaintext                       what is not encrypted, and whether strict mode would break it
  wiretight status --json | jq '.relay.peers[] | select(.group != \"X25519MLKEM768\")'

Exit status: 0 if the node is ready, 1 if it is not ready, 3 if it is not running. With --plaintext: 0 if strict mode
would stop nothing that was seen and no peer would refuse this node, 1 otherwise, or if no rules are in force.")]
pub(super) struct Status {
    /// Show only plaintext with machines of the mesh, and what strict mode would stop
    #[arg(long)]
    plaintext: bool,
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    out: Output,
}

impl Status {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let status: Value = super::get(&self.at.state_dir()?, "/v1/status")?;
        if self.plaintext {
            let of = plaintext::read(&status)?;
            self.out.print(&of, |of| term::fitted(&plaintext::render(of)))?;
            return Ok(if of.strict.ready { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        self.out.print(&status, |status| term::fitted(&render(status)))?;
        Ok(if status["ready"] == true { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn render(status: &Value) -> String {
    let mut out = head(status);
    let tables = [identities, services, sites, handshakes, protection, peers, totals, refusals];
    for table in tables.map(|table| table(status)) {
        if !table.is_empty() {
            out += &format!("\n{table}");
        }
    }
    if let Ok(of) = plaintext::read(status) {
        out += &format!("\n{}", plaintext::render(&of));
    }
    let errors = number(&status["relay"]["accept_errors"]);
    if errors > 0 {
        out += &format!(
            "\n{} connections could not be accepted at once; the process may lack file descriptors (LimitNOFILE)\n",
            errors
        );
    }
    out
}

fn head(status: &Value) -> String {
    let ready = match status["not_ready"].as_str() {
        None => term::good("ready"),
        Some(why) => term::bad(&format!("not ready: {why}")),
    };
    let link = &status["authority_link"];
    let address = text(&link["authority"]);
    let mut authority = match link["connected"] == true {
        true => format!("connected to {address}, state version {}", number(&link["version"])),
        false => {
            let contact = link["last_contact"].as_u64().map_or("never".into(), term::ago);
            term::bad(&format!("not connected (last contact: {contact})"))
        }
    };
    // The reason why the node is not ready is in the first line already.
    let said = |error: &&str| !status["not_ready"].as_str().is_some_and(|why| why.contains(*error));
    if let Some(error) = link["last_error"].as_str().filter(said) {
        authority += &format!("\n           {error}");
    }
    if let Some(refused) = link["refused"]["message"].as_str() {
        authority += &format!(
            "\n           {}",
            term::bad(&format!("the authority rejected what this node offers: {refused}"))
        );
    }
    for unused in link["unused"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        authority += &format!("\n           registry entry not used: {unused}");
    }
    let alone = link["alone"] == true;
    let transparency = if alone { String::new() } else { transparency(status) };
    if alone {
        authority = "none: this node is not in a mesh and does not need one".into();
    }
    format!(
        "node {} of {}{}: {ready}, up {}, pid {}, sandbox {}\nauthority: {authority}\n{transparency}",
        term::bold(&text(&status["node"])),
        text(&status["trust_domain"]),
        if status["is_authority"] == true { " (the authority)" } else { "" },
        term::span(number(&status["uptime_seconds"])),
        number(&status["pid"]),
        text(&status["sandbox"]),
    )
}

/// Whether certificates must be in the log, and the state of the authority's log.
fn transparency(status: &Value) -> String {
    let of = &status["transparency"];
    let mut out = match (of["required"] == true, text(&of["quorum"]).as_str()) {
        (false, _) => {
            "transparency: off. Anyone with the CA key could issue identities unseen; set [witnesses] to prevent it.\n".to_owned()
        }
        (true, "none") => "transparency: required, by the log alone: the policy requires no witnesses\n".to_owned(),
        (true, quorum) => format!(
            "transparency: required of every peer, witnessed by {quorum}; other software does not check it\n"
        ),
    };
    if of["without_news"] == true {
        out += &format!(
            "           {}\n",
            term::bad(
                "out of contact with the authority for longer than max_staleness: no connections"
            )
        );
    } else if let Some(age) = of["news_age_seconds"].as_u64().filter(|age| *age > 0) {
        out += &format!("           list of revocations is {} old\n", term::span(age));
    }
    if status["log"].is_object() {
        out += &log(&status["log"]);
    }
    out
}

pub(super) fn log(log: &Value) -> String {
    let mut out = format!("log:       {} entries", number(&log["size"]));
    if log["self_attested"] == true {
        out += ", self-attested: no witness confirms it\n";
    } else {
        out += &match (log["witnessed"][0].as_u64(), log["witnessed"][1].as_u64()) {
            (Some(size), Some(at)) => {
                format!(
                    ", {size} of them witnessed by {} {}\n",
                    text(&log["quorum"]),
                    term::ago(at)
                )
            }
            _ => format!(", not witnessed yet (by {})\n", text(&log["quorum"])),
        };
    }
    if let Some(since) = log["waiting_since"].as_u64() {
        let why = format!(
            "waiting for the witnesses for {}: nothing new is issued",
            term::span(term::since(since))
        );
        out += &format!("           {}\n", term::bad(&why));
    }
    if let Some(problem) = log["problem"].as_str() {
        out += &format!("           {}\n", term::bad(problem));
    }
    for damaged in list(&log["damaged"]) {
        let why = format!(
            "{} is damaged and not served: restore it from a copy of the log",
            text(damaged)
        );
        out += &format!("           {}\n", term::bad(&why));
    }
    for witness in list(&log["witnesses"]) {
        let state = match (witness["problem"].as_str(), witness["cosigned_at"].as_u64()) {
            (Some(problem), _) => term::bad(problem),
            (None, Some(at)) => {
                format!("cosigned {} entries {}", number(&witness["size"]), term::ago(at))
            }
            (None, None) => "has not cosigned since the node started".into(),
        };
        out += &format!("           witness {}: {state}\n", text(&witness["name"]));
    }
    out
}

fn identities(status: &Value) -> Table {
    let mut table = Table::narrow(&["IDENTITY", "EXPIRES IN"]);
    for identity in list(&status["identities"]) {
        let left = identity["expires_in_seconds"].as_i64().unwrap_or(0);
        let left = match u64::try_from(left) {
            Ok(left) => term::span(left),
            Err(_) => term::bad("expired"),
        };
        table.row([text(&identity["id"]), left]);
    }
    table
}

fn services(status: &Value) -> Table {
    let mut table = Table::narrow(&["SERVICE", "LISTEN", "TO", "IDENTITY"]);
    let texts = |v: &Value| list(v).map(text).collect::<Vec<_>>().join(", ");
    for service in list(&status["services"]) {
        let allow = format!("for {}", or_nobody(&texts(&service["allow"])));
        let forward = format!("program at {}", texts(&service["forward"]));
        table.row([text(&service["name"]), text(&service["listen"]), forward, allow]);
    }
    for dial in list(&status["dials"]) {
        let to = match texts(&dial["instances"]) {
            none if none.is_empty() => "no instance known".into(),
            some => format!("mesh at {some}"),
        };
        let identity = format!("as {}", text(&dial["identity"]));
        table.row([text(&dial["service"]), text(&dial["listen"]), to, identity]);
    }
    table
}

fn sites(status: &Value) -> Table {
    let mut table =
        Table::narrow(&["SITE", "TO", "CERTIFICATE EXPIRES IN", "REQUESTS", "ERRORS", "OUT"]);
    for site in list(&status["edge"]["sites"]) {
        let name = site["names"][0].as_str().unwrap_or_default();
        let left = match site["expires_in_seconds"].as_i64().map(u64::try_from) {
            None => term::bad("no certificate"),
            Some(Ok(left)) => term::span(left),
            Some(Err(_)) => term::bad("expired"),
        };
        // A site with on-demand certificates has `hosts`: the number of its certificates.
        let left = match site["hosts"].as_u64() {
            None => left,
            Some(0) => "no host yet".into(),
            Some(1) => format!("{left} (1 host)"),
            Some(hosts) => format!("{left} (the first of {hosts} hosts)"),
        };
        let left = match status["site_errors"][name].as_str() {
            None => left,
            Some(error) => format!("{left} {}", term::bad(error)),
        };
        let count = |which: fn(u64) -> bool| -> u64 {
            let requests = list(&site["requests"]).filter(|r| which(number(&r["class"])));
            requests.map(|r| number(&r["count"])).sum()
        };
        table.row([
            list(&site["names"]).map(text).collect::<Vec<_>>().join(", "),
            list(&site["to"])
                .map(|to| match list(&site["down"]).any(|down| down == to) {
                    true => format!("{} (down)", text(to)),
                    false => text(to),
                })
                .collect::<Vec<_>>()
                .join(", "),
            left,
            count(|_| true).to_string(),
            count(|class| class == 5).to_string(),
            term::size(number(&site["bytes_out"])),
        ]);
    }
    table
}

/// Protocols and groups that clients of the edge negotiated.
fn handshakes(status: &Value) -> Table {
    let mut table = Table::narrow(&["CLIENTS", "GROUP", "HANDSHAKES", "SHARE"]);
    let all = || list(&status["edge"]["handshakes"]);
    let sum: u64 = all().map(|h| number(&h["count"])).sum();
    for h in all() {
        let count = number(&h["count"]);
        let share = format!("{:.1}%", 100.0 * count as f64 / sum.max(1) as f64);
        table.row([text(&h["protocol"]), text(&h["group"]), count.to_string(), share]);
    }
    table
}

fn or_nobody(texts: &str) -> &str {
    if texts.is_empty() { "nobody" } else { texts }
}

/// How live connections are encrypted, by peer.
fn protection(status: &Value) -> Table {
    let mut table = Table::narrow(&["SIDE", "SERVICE", "PEER", "PROTOCOL", "GROUP", "CIPHER"]);
    for sum in list(&status["relay"]["peers"]) {
        let keys = ["side", "service", "peer", "protocol", "group", "cipher"];
        table.row(keys.map(|k| text(&sum[k])));
    }
    table
}

/// What the same connections carry.
fn peers(status: &Value) -> Table {
    let mut table =
        Table::narrow(&["SIDE", "SERVICE", "PEER", "LIVE", "IDLE", "SESSIONS", "IN", "OUT"]);
    for sum in list(&status["relay"]["peers"]) {
        let mut row = Vec::new();
        row.extend(["side", "service", "peer"].map(|k| text(&sum[k])));
        row.extend(["live", "idle", "sessions"].map(|k| number(&sum[k]).to_string()));
        row.extend(["bytes_in", "bytes_out"].map(|k| term::size(number(&sum[k]))));
        table.row(row);
    }
    table
}

/// Totals since the start, including closed connections.
fn totals(status: &Value) -> Table {
    let mut table =
        Table::narrow(&["SINCE START", "SERVICE", "SESSIONS", "FAILED", "HANDSHAKES", "IN", "OUT"]);
    for sum in list(&status["relay"]["sums"]) {
        let mut row = vec![text(&sum["side"]), text(&sum["service"])];
        row.extend(["sessions", "failed", "handshakes"].map(|k| number(&sum[k]).to_string()));
        row.extend(["bytes_in", "bytes_out"].map(|k| term::size(number(&sum[k]))));
        table.row(row);
    }
    table
}

fn refusals(status: &Value) -> Table {
    let all: Vec<&Value> = list(&status["relay"]["refusals"]).collect();
    let mut table = Table::narrow(&["REFUSED", "SIDE", "SERVICE", "PEER", "REASON", "DETAIL"]);
    for r in all.iter().rev().take(REFUSALS) {
        let peer = r["peer"].as_str().map_or_else(|| text(&r["address"]), str::to_owned);
        table.row([
            term::ago(number(&r["at"])),
            text(&r["side"]),
            text(&r["service"]),
            peer,
            text(&r["reason"]),
            text(&r["detail"]),
        ]);
    }
    table
}

fn list(v: &Value) -> impl Iterator<Item = &Value> {
    v.as_array().into_iter().flatten()
}

fn text(v: &Value) -> String {
    v.as_str().unwrap_or_default().to_owned()
}

fn number(v: &Value) -> u64 {
    v.as_u64().unwrap_or(0)
}
