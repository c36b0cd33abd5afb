//! `wiretight status`

use std::process::ExitCode;

use clap::Args;
use wiretight_proxy::clock::now;
use wiretight_proxy::relay::PeerSum;
use wiretight_scan::judge::Level;
use wiretight_scan::passive::totals::Count;
use wiretight_scan::report::clean;

use super::term::{self, Table};
use super::{Output, Where, plaintext};
use crate::admin::api::{PublishStatus, Status as NodeStatus};
use crate::admin::client::Received;
use crate::authority::ReleasesStatus;
use crate::control::report::{Exception, Explanation};
use crate::log::sequencer::LogStatus;
use crate::release::{Standing, Verdict};
use crate::watch::host::WatchStatus;

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
        let status: Received<NodeStatus> = super::get(&self.at.state_dir()?, "/v1/status")?;
        if self.plaintext {
            let of = plaintext::of(&status)?;
            self.out.print(of, |of| term::fitted(&plaintext::render(of)))?;
            return Ok(if of.strict.ready { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        self.out.print(&status, |status| term::fitted(&render(status)))?;
        Ok(if status.ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn render(status: &NodeStatus) -> String {
    let mut out = head(status);
    let tables =
        [identities, services, sites, exceptions, handshakes, protection, peers, totals, refusals];
    for table in tables.map(|table| table(status)) {
        if !table.is_empty() {
            out += &format!("\n{table}");
        }
    }
    if let Some(of) = &status.intercept {
        out += &format!("\n{}", plaintext::render(of));
    }
    let errors = status.relay.accept_errors;
    if errors > 0 {
        out += &format!(
            "\n{} connections could not be accepted at once; the process may lack file descriptors (LimitNOFILE)\n",
            errors
        );
    }
    out
}

fn head(status: &NodeStatus) -> String {
    let ready = match &status.not_ready {
        None => term::good("ready"),
        Some(why) => term::bad(&format!("not ready: {why}")),
    };
    let link = &status.authority_link;
    let address = link.authority.as_ref().map(ToString::to_string).unwrap_or_default();
    let mut authority = match link.connected {
        true => format!("connected to {address}, state version {}", link.version),
        false => {
            let contact = link.last_contact.map_or("never".into(), term::ago);
            term::bad(&format!("not connected (last contact: {contact})"))
        }
    };
    // The reason why the node is not ready is in the first line already.
    let said = |error: &&String| !status.not_ready.as_ref().is_some_and(|w| w.contains(*error));
    if let Some(error) = link.last_error.as_ref().filter(said) {
        authority += &format!("\n           {error}");
    }
    if let Some(refused) = &link.refused {
        authority += &format!(
            "\n           {}",
            term::bad(&format!(
                "the authority rejected what this node offers: {}",
                refused.message
            ))
        );
    }
    for unused in &link.unused {
        authority += &format!("\n           registry entry not used: {unused}");
    }
    // A node that needs no mesh has neither trust domain nor authority to show.
    let (mesh, authority, transparency) = match link.alone {
        true => <(String, String, String)>::default(),
        false => (
            format!(" of {}", status.process.trust_domain),
            format!("authority: {authority}\n"),
            transparency(status),
        ),
    };
    let watch = status.watch.as_ref().map(watch).unwrap_or_default();
    let publish = status.publish.as_ref().map(publish).unwrap_or_default();
    let release = status.release.as_ref().map(release).unwrap_or_default();
    let process = &status.process;
    format!(
        "node {}{mesh}{}: {ready}, up {}, pid {}, sandbox {}\n{authority}{transparency}{watch}{publish}{release}",
        term::bold(process.node.as_str()),
        if status.is_authority { " (the authority)" } else { "" },
        term::span(process.uptime_seconds),
        process.pid,
        status.sandbox.word(),
    )
}

/// How much of this machine's traffic is encrypted.
fn watch(of: &WatchStatus) -> String {
    let mut out = match of.since {
        None => "watch:     not watching\n".to_owned(),
        Some(since) => {
            let sum: u64 = of.levels.values().map(|count| count.bytes).sum();
            let share = |(level, count): (&Level, &Count)| {
                let percent = 100.0 * count.bytes as f64 / sum.max(1) as f64;
                format!("{percent:.1} % {level}")
            };
            let shares: Vec<String> = of.levels.iter().rev().map(share).collect();
            format!(
                "watch:     {} open connections; of the bytes in {}: {} (`wiretight watch`)\n",
                of.open,
                term::span(term::since(since)),
                shares.join(", ")
            )
        }
    };
    for problem in &of.problems {
        out += &format!("           {}\n", term::bad(problem));
    }
    out
}

/// The public proof page.
fn publish(of: &PublishStatus) -> String {
    let mut out = match (of.published_at, of.index) {
        (Some(at), Some(index)) => format!(
            "publish:   {}, {}, written {} (log entry {index})\n",
            of.dir.display(),
            term::size(of.bytes),
            term::ago(at)
        ),
        _ => format!("publish:   {}, not written since the start\n", of.dir.display()),
    };
    if let Some(problem) = &of.problem {
        out += &format!("           {}\n", term::bad(problem));
    }
    out
}

/// The program that runs.
fn release(of: &Standing) -> String {
    let (version, sha256) = (&of.version, of.sha256.get(..16).unwrap_or_default());
    let verdict = match &of.verdict {
        Verdict::NoPolicy => return String::new(),
        Verdict::Unproved(why) => term::bad(&format!("NOT PROVED: {}", clean(why))),
        Verdict::Proved(proved) => {
            let rebuilt = match proved.rebuilt.join(", ") {
                none if none.is_empty() => "no rebuilder required".into(),
                names => format!("also built by {}", clean(&names)),
            };
            let (index, origin) = (proved.index, clean(&proved.origin));
            format!("proved by entry {index} of {origin}, {rebuilt}")
        }
    };
    format!("release:   {version} (SHA-256 {sha256}…), {verdict}\n")
}

/// Whether certificates must be in the log, and the state of the authority's log.
fn transparency(status: &NodeStatus) -> String {
    let of = &status.transparency;
    let mut out = match (of.required, of.quorum.as_deref().unwrap_or_default()) {
        (false, _) => {
            "transparency: off. Anyone with the CA key could issue identities unseen; set [witnesses] to prevent it.\n".to_owned()
        }
        (true, "none") => "transparency: required, by the log alone: the policy requires no witnesses\n".to_owned(),
        (true, quorum) => format!(
            "transparency: required of every peer, witnessed by {quorum}; other software does not check it\n"
        ),
    };
    if of.without_news {
        out += &format!(
            "           {}\n",
            term::bad(
                "out of contact with the authority for longer than max_staleness: no connections"
            )
        );
    } else if let Some(age) = of.news_age_seconds.filter(|age| *age > 0) {
        out += &format!("           list of revocations is {} old\n", term::span(age));
    }
    if let Some(of) = &status.log {
        out += &log(of);
    }
    if let Some(of) = &status.releases {
        out += &releases(of);
    }
    out
}

fn releases(of: &ReleasesStatus) -> String {
    let all = of.proved + of.unproved.len();
    let required = match of.grace_seconds {
        Some(grace) => format!("required, after {}", term::span(grace)),
        None => "not required".to_owned(),
    };
    let mut out = format!(
        "releases:  {} of {all} nodes say that they run a proved one ({required})\n",
        of.proved
    );
    for (node, of) in &of.unproved {
        if let Some(why) = super::node::unproved(node, of) {
            out += &format!("           {why}\n");
        }
    }
    out
}

pub(super) fn log(log: &LogStatus) -> String {
    let mut out = format!("log:       {} entries", log.size);
    if log.self_attested {
        out += ", self-attested: no witness confirms it\n";
    } else {
        out += &match log.witnessed {
            Some((size, at)) => {
                format!(", {size} of them witnessed by {} {}\n", log.quorum, term::ago(at))
            }
            None => format!(", not witnessed yet (by {})\n", log.quorum),
        };
    }
    if let Some(since) = log.waiting_since {
        let why = format!(
            "waiting for the witnesses for {}: nothing new is issued",
            term::span(term::since(since))
        );
        out += &format!("           {}\n", term::bad(&why));
    }
    if let Some(problem) = &log.problem {
        out += &format!("           {}\n", term::bad(problem));
    }
    for damaged in &log.damaged {
        let why = format!("{damaged} is damaged and not served: restore it from a copy of the log");
        out += &format!("           {}\n", term::bad(&why));
    }
    for witness in &log.witnesses {
        let state = match (&witness.problem, witness.cosigned_at) {
            (Some(problem), _) => term::bad(problem),
            (None, Some(at)) => {
                format!("cosigned {} entries {}", witness.size.unwrap_or(0), term::ago(at))
            }
            (None, None) => "has not cosigned since the node started".into(),
        };
        out += &format!("           witness {}: {state}\n", witness.name);
    }
    out
}

fn identities(status: &NodeStatus) -> Table {
    let mut table = Table::narrow(&["IDENTITY", "EXPIRES IN"]);
    for identity in &status.identities {
        let left = match u64::try_from(identity.expires_in_seconds) {
            Ok(left) => term::span(left),
            Err(_) => term::bad("expired"),
        };
        table.row([identity.id.to_string(), left]);
    }
    table
}

fn services(status: &NodeStatus) -> Table {
    let mut table = Table::narrow(&["SERVICE", "LISTEN", "TO", "IDENTITY"]);
    for service in &status.services {
        let allow: Vec<_> = service.allow.iter().map(ToString::to_string).collect();
        let allow = format!("for {}", or_nobody(&allow.join(", ")));
        let forward = format!("program at {}", service.forward.join(", "));
        table.row([service.name.to_string(), service.listen.clone(), forward, allow]);
    }
    for dial in &status.dials {
        let to = match dial.instances.join(", ") {
            none if none.is_empty() => "no instance known".into(),
            some => format!("mesh at {some}"),
        };
        let identity = format!("as {}", dial.identity);
        table.row([dial.service.to_string(), dial.listen.clone(), to, identity]);
    }
    table
}

fn sites(status: &NodeStatus) -> Table {
    let mut table =
        Table::narrow(&["SITE", "TO", "CERTIFICATE EXPIRES IN", "REQUESTS", "ERRORS", "OUT"]);
    for site in &status.edge.sites {
        let left = match site.expires_in_seconds.map(u64::try_from) {
            None => term::bad("no certificate"),
            Some(Ok(left)) => term::span(left),
            Some(Err(_)) => term::bad("expired"),
        };
        // A site with on-demand certificates has `hosts`: the number of its certificates.
        let left = match site.hosts {
            None => left,
            Some(0) => "no host yet".into(),
            Some(1) => format!("{left} (1 host)"),
            Some(hosts) => format!("{left} (the first of {hosts} hosts)"),
        };
        let left = match site.names.first().and_then(|name| status.site_errors.get(name)) {
            None => left,
            Some(error) => format!("{left} {}", term::bad(error)),
        };
        let count = |which: fn(u16) -> bool| -> u64 {
            site.requests.iter().filter(|r| which(r.class)).map(|r| r.count).sum()
        };
        let to = site.to.iter().map(|to| match site.down.contains(to) {
            true => format!("{to} (down)"),
            false => to.clone(),
        });
        table.row([
            site.names.join(", "),
            to.collect::<Vec<_>>().join(", "),
            left,
            count(|_| true).to_string(),
            count(|class| class == 5).to_string(),
            term::size(site.bytes_out),
        ]);
    }
    table
}

/// What is let through unencrypted, and until when that is explained.
fn exceptions(status: &NodeStatus) -> Table {
    let mut table = Table::narrow(&["EXCEPTION", "WHAT", "ENDS IN", "OWNER", "REASON"]);
    for Exception { kind, what, explanation } in &status.exceptions {
        let mut row = vec![kind.word().to_owned(), what.clone()];
        row.extend(match explanation {
            None => [term::bad("not explained"), String::new(), String::new()],
            Some(Explanation { reason, owner, until }) => {
                let left = match until.checked_sub(now()) {
                    Some(left) => term::span(left),
                    None => term::bad("expired"),
                };
                [left, owner.clone(), reason.clone()]
            }
        });
        table.row(row);
    }
    table
}

/// Protocols and groups that clients of the edge negotiated.
fn handshakes(status: &NodeStatus) -> Table {
    let mut table = Table::narrow(&["CLIENTS", "GROUP", "HANDSHAKES", "SHARE"]);
    let all = &status.edge.handshakes;
    let sum: u64 = all.iter().map(|h| h.count).sum();
    for h in all {
        let share = format!("{:.1}%", 100.0 * h.count as f64 / sum.max(1) as f64);
        table.row([h.protocol.clone(), h.group.clone(), h.count.to_string(), share]);
    }
    table
}

fn or_nobody(texts: &str) -> &str {
    if texts.is_empty() { "nobody" } else { texts }
}

/// How live connections are encrypted, by peer.
fn protection(status: &NodeStatus) -> Table {
    let mut table = Table::narrow(&["SIDE", "SERVICE", "PEER", "PROTOCOL", "GROUP", "CIPHER"]);
    for sum in &status.relay.peers {
        let PeerSum { side, service, peer, protocol, group, cipher, .. } = sum;
        table.row([
            side.word().into(),
            service.to_string(),
            peer.to_string(),
            protocol.clone(),
            group.clone(),
            cipher.clone(),
        ]);
    }
    table
}

/// What the same connections carry.
fn peers(status: &NodeStatus) -> Table {
    let mut table =
        Table::narrow(&["SIDE", "SERVICE", "PEER", "LIVE", "IDLE", "SESSIONS", "IN", "OUT"]);
    for sum in &status.relay.peers {
        table.row([
            sum.side.word().into(),
            sum.service.to_string(),
            sum.peer.to_string(),
            sum.live.to_string(),
            sum.idle.to_string(),
            sum.sessions.to_string(),
            term::size(sum.bytes_in),
            term::size(sum.bytes_out),
        ]);
    }
    table
}

/// Totals since the start, including closed connections.
fn totals(status: &NodeStatus) -> Table {
    let mut table =
        Table::narrow(&["SINCE START", "SERVICE", "SESSIONS", "FAILED", "HANDSHAKES", "IN", "OUT"]);
    for sum in &status.relay.sums {
        table.row([
            sum.side.word().into(),
            sum.service.to_string(),
            sum.sessions.to_string(),
            sum.failed.to_string(),
            sum.handshakes.to_string(),
            term::size(sum.bytes_in),
            term::size(sum.bytes_out),
        ]);
    }
    table
}

fn refusals(status: &NodeStatus) -> Table {
    let mut table = Table::narrow(&["REFUSED", "SIDE", "SERVICE", "PEER", "REASON", "DETAIL"]);
    for r in status.relay.refusals.iter().rev().take(REFUSALS) {
        let peer = r.peer.as_ref().map_or_else(|| r.address.clone(), ToString::to_string);
        table.row([
            term::ago(r.at),
            r.side.word().into(),
            r.service.to_string(),
            peer,
            r.reason.to_string(),
            r.detail.clone(),
        ]);
    }
    table
}
