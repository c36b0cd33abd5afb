//! Text about plaintext with machines of the mesh, for `status`, `rules show` and `mode --dry-run`.

use std::collections::BTreeSet;

use anyhow::Context;
use wiretight_proxy::intercept::listing::{Count, Flow};
use wiretight_proxy::intercept::rules::{Direction, Mode};

use super::term::{self, Table};
use crate::admin::api::Status;
use crate::intercept::{InterceptStatus, WouldFail};

/// Flows that are shown; `--json` has all.
const FLOWS: usize = 40;

/// The interception part of a node's status.
pub(super) fn of(status: &Status) -> anyhow::Result<&InterceptStatus> {
    status
        .intercept
        .as_ref()
        .context("interception is off on this node: its configuration has no [intercept] section")
}

/// The mode, the flows, and whether strict mode would break something.
pub(super) fn render(of: &InterceptStatus) -> String {
    let mode =
        of.mode.map_or_else(|| term::bad("no rules in force"), |mode| mode.word().to_owned());
    let mut out = format!(
        "interception: {mode}{}, {} connections redirected, rules repaired {} times\n",
        of.trial
            .map(|trial| {
                let (left, old) = (term::span(trial.left_seconds), trial.instead_of.word());
                format!(" on trial (for {left}, then {old})")
            })
            .unwrap_or_default(),
        of.counts.redirected.packets,
        of.mended,
    );
    if let Some(error) = &of.error {
        out += &format!("{}\n", term::bad(error));
    }
    out += &table(&of.counts.flows, &of.strict.would_stop);
    let Count { packets, bytes } = of.counts.unlisted;
    if packets > 0 {
        out += &format!(
            "not listed, because there were too many flows: {packets} packets, {}\n",
            term::size(bytes)
        );
    }
    out + &verdict(of)
}

/// Flows, most recent first. Those in `would_stop` are marked.
pub(super) fn table(flows: &[Flow], would_stop: &[Flow]) -> String {
    let would_stop: BTreeSet<&Flow> = would_stop.iter().collect();
    let mut table = Table::narrow(&[
        "PLAINTEXT WITH",
        "PROGRAM",
        "PROTOCOL",
        "PORT",
        "STARTED BY",
        "PACKETS",
        "SIZE",
        "LAST SEEN",
        "",
    ]);
    let mut flows: Vec<&Flow> = flows.iter().collect();
    flows.sort_by_key(|flow| std::cmp::Reverse(flow.last_seen));
    for flow in flows.iter().take(FLOWS) {
        table.row([
            flow.peer.to_string(),
            program(flow),
            flow.protocol.clone(),
            port(flow),
            if flow.direction == Direction::Out { "this node".into() } else { "the peer".into() },
            flow.packets.to_string(),
            term::size(flow.bytes),
            term::ago(flow.last_seen),
            match (flow.dropped, would_stop.contains(*flow)) {
                (true, _) => "dropped".into(),
                (false, true) => term::bad("passed; strict would stop it"),
                (false, false) => "passed".into(),
            },
        ]);
    }
    let mut out = if table.is_empty() { String::new() } else { table.to_string() };
    if flows.len() > FLOWS {
        out += &format!("and {} more: --json has all\n", flows.len() - FLOWS);
    }
    out
}

/// What would break, by peer: `to 10.0.0.7, tcp port 5432: psql (cron.service), last 5 s ago`.
pub(super) fn broken(flows: &[Flow]) -> String {
    let mut flows: Vec<&Flow> = flows.iter().collect();
    flows.sort();
    let mut out = String::new();
    for flow in flows.iter().take(FLOWS) {
        let way = if flow.direction == Direction::Out { "to" } else { "from" };
        let port = if flow.port == 0 { String::new() } else { format!(" port {}", flow.port) };
        let ago = term::ago(flow.last_seen);
        out += &format!(
            "  {way} {}, {}{port}: {}, last {ago}\n",
            flow.peer,
            flow.protocol,
            program(flow)
        );
    }
    if flows.len() > FLOWS {
        out += &format!("  and {} more: --json has all\n", flows.len() - FLOWS);
    }
    out
}

fn verdict(of: &InterceptStatus) -> String {
    let since = term::span(term::since(of.counted_since).min(86_400));
    let failing = would_fail(&of.strict.would_fail);
    let strict = match (of.mode, of.strict.would_stop.len()) {
        (None, _) => return failing,
        (Some(Mode::Strict), _) => "strict: plaintext with peers is dropped\n".into(),
        (Some(_), 0) if !failing.is_empty() => format!("{}:\n", term::bad("not strict-ready")),
        (Some(_), 0) => format!(
            "{}: no traffic was seen that strict mode would stop (in the last {since} at least)\n",
            term::good("strict-ready")
        ),
        (Some(_), n) => {
            let not = term::bad("not strict-ready");
            format!("{not}: strict mode would stop {n} flows:\n{}", broken(&of.strict.would_stop))
        }
    };
    strict + &failing
}

/// Connections that would be redirected to the relay and fail there: `  db1 would refuse node/web1 ...`.
pub(super) fn would_fail(failing: &[WouldFail]) -> String {
    let mut out: String =
        failing.iter().take(FLOWS).map(|f| format!("  {}\n", term::bad(&f.to_string()))).collect();
    if failing.len() > FLOWS {
        out += &format!("  and {} more: --json has all\n", failing.len() - FLOWS);
    }
    out
}

/// The programs that a flow belongs to, as far as known.
pub(super) fn program(flow: &Flow) -> String {
    match &flow.programs[..] {
        [] => "unknown".into(),
        programs => programs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}

fn port(flow: &Flow) -> String {
    if flow.port == 0 { "-".into() } else { flow.port.to_string() }
}
