//! `wiretight demo`: shows the relay at work with one command, unprivileged, on loopback.
//!
//! It starts three nodes as separate processes: an authority, a node with a service, and a node with a client. This
//! process acts as the two programs and, with a tap, as the network between the nodes. It sends the same traffic
//! directly and then through the relays, and prints side by side what the tap saw.

mod nodes;
mod tap;
mod traffic;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use serde::Serialize;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use wiretight_keys::SpiffeId;

use super::Output;
use super::term::{self, Table};
use crate::admin::api::Status;
use nodes::Nodes;
use tap::{Seen, Tap};
use traffic::{CANARY, Measured};

/// Try it: send traffic directly and through the relays, and compare what the network sees
///
/// Starts an authority and two nodes as separate processes, with their state in a temporary directory. They run until
/// Ctrl-C, so that you can try commands against them.
#[derive(Args)]
#[command(after_help = "\
Examples:
  wiretight demo
  wiretight demo --forward 127.0.0.1:5432     also relay to your own server
  wiretight demo --once --json                for scripts: exit 0 only if nothing leaked")]
pub(super) struct Demo {
    /// Also relay connections to this server (a TCP server on this machine)
    #[arg(long, value_name = "HOST:PORT")]
    forward: Option<wiretight_proxy::network::HostPort>,
    /// Exit after the comparison, with status 0 only if nothing leaked
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    out: Output,
}

impl Demo {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(self.play())
    }

    async fn play(self) -> anyhow::Result<ExitCode> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut nodes = tokio::select! {
            nodes = self.compare() => nodes?,
            _ = interrupt.recv() => return Ok(ExitCode::FAILURE),
            _ = terminate.recv() => return Ok(ExitCode::FAILURE),
        };
        if !self.once {
            let console = nodes.console().await?;
            eprint!("{}", nodes.what_to_try(self.forward.is_some(), &console));
            tokio::select! {
                () = traffic::stay(nodes.entry) => {}
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                dead = nodes.any_exit() => eprintln!("{dead}"),
            }
            eprintln!("\nstopping");
        }
        let leaked = nodes.leaked;
        nodes.stop().await;
        Ok(if leaked { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    async fn compare(&self) -> anyhow::Result<Nodes> {
        let service = traffic::serve().await.context("cannot start the demo's service")?;
        let straight = Tap::start(service).await?;
        let mut nodes = Nodes::start(service, self.forward.as_ref()).await?;

        step("sending the same traffic directly and through the relays ...");
        let direct = traffic::measure(straight.addr())
            .await
            .context("direct traffic to the service failed")?;
        let relayed =
            traffic::measure(nodes.entry).await.context("traffic through the relays failed")?;
        ensure!(
            direct.answers == relayed.answers,
            "the responses through the relays differ from the direct ones. This is a bug: please report it."
        );
        let (a, b) = (nodes.client_status().await?, nodes.server_status().await?);
        let (seen_direct, seen_relayed) = (straight.seen(), nodes.tap.seen());
        let report = report(&direct, &seen_direct, &relayed, &seen_relayed, &a, &b);
        nodes.leaked = leaked(&report);
        // `json!` sorts the keys.
        self.out.print(&json!(report), |_| render(&report))?;
        Ok(nodes)
    }
}

/// What was measured, and what the tap saw on the wire.
#[derive(Clone, Default, Serialize)]
struct Report {
    canary: &'static str,
    direct: Side,
    relayed: Relayed,
}

#[derive(Clone, Default, Serialize)]
struct Side {
    canary_seen: bool,
    canaries: u64,
    protocol: String,
    group: Option<String>,
    cipher: Option<String>,
    bytes: u64,
    connections_on_the_wire: u64,
    megabytes_per_second: f64,
    latency_p50_us: u64,
    new_connection_p50_us: u64,
}

#[derive(Clone, Default, Serialize)]
struct Relayed {
    #[serde(flatten)]
    side: Side,
    /// As the other side's relay verified it.
    server_id: Option<SpiffeId>,
    client_id: Option<SpiffeId>,
    added_latency_p50_us: i64,
}

/// The direct run is the control: if the tap does not see the canary there, its result means nothing.
fn leaked(report: &Report) -> bool {
    let relayed = &report.relayed.side;
    !report.direct.canary_seen || relayed.canary_seen || relayed.protocol != "TLSv1.3"
}

fn step(text: &str) {
    eprintln!("{text}");
}

fn report(
    direct: &Measured,
    seen_direct: &Seen,
    relayed: &Measured,
    seen_relayed: &Seen,
    a: &Status,
    b: &Status,
) -> Report {
    let us = |time: Duration| time.as_micros() as u64;
    let side = |m: &Measured, s: &Seen| Side {
        canary_seen: s.canaries > 0,
        canaries: s.canaries,
        protocol: s.protocol(),
        group: s.group.clone(),
        cipher: s.cipher.clone(),
        bytes: s.bytes,
        connections_on_the_wire: s.connections,
        megabytes_per_second: m.megabytes_per_second(),
        latency_p50_us: us(m.p50()),
        new_connection_p50_us: us(m.connect_p50()),
    };
    let peer = |status: &Status| {
        let mut connections = status.relay.connections.iter();
        let hello = connections.find(|c| c.service.as_str() == nodes::SERVICE);
        hello.map(|c| c.peer.clone())
    };
    Report {
        canary: CANARY,
        direct: side(direct, seen_direct),
        relayed: Relayed {
            side: side(relayed, seen_relayed),
            server_id: peer(a),
            client_id: peer(b),
            added_latency_p50_us: us(relayed.p50()) as i64 - us(direct.p50()) as i64,
        },
    }
}

fn render(report: &Report) -> String {
    let Relayed { side: r, server_id, client_id, added_latency_p50_us } = &report.relayed;
    let d = &report.direct;
    let canary = |side: &Side| match side.canaries {
        0 => term::good("not found"),
        n => term::bad(&format!("FOUND {n} times")),
    };
    let or_dash = |text: &Option<String>| text.clone().unwrap_or("-".into());
    let id = |id: &Option<SpiffeId>| or_dash(&id.as_ref().map(ToString::to_string));
    let speed = |side: &Side| format!("{:.0} MB/s", side.megabytes_per_second);
    let us = |us: u64| format!("{us} us");
    let mut table = Table::new(&["seen by the tap on the wire", "direct", "through Wiretight"]);
    let mut row = |name: &str, d: String, r: String| table.row([name.to_owned(), d, r]);
    row("canary text", canary(d), canary(r));
    row("protocol", d.protocol.clone(), r.protocol.clone());
    row("key exchange", or_dash(&d.group), or_dash(&r.group));
    row("cipher", or_dash(&d.cipher), or_dash(&r.cipher));
    row("client", "anybody".into(), id(client_id));
    row("server", "anybody".into(), id(server_id));
    row("bytes", term::size(d.bytes), term::size(r.bytes));
    row("throughput", speed(d), speed(r));
    row("a request, p50", us(d.latency_p50_us), us(r.latency_p50_us));
    row("added by the relays, p50", "-".into(), format!("{added_latency_p50_us} us"));
    row("a new connection, p50", us(d.new_connection_p50_us), us(r.new_connection_p50_us));
    format!("\n{table}")
}

/// A free port of 127.0.0.1. Another process can still take it before the caller's process binds it.
fn free_port() -> anyhow::Result<SocketAddr> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leak_a_blind_tap_or_another_protocol_is_a_failure() {
        let mut good = Report::default();
        good.direct.canary_seen = true;
        good.relayed.side.protocol = "TLSv1.3".into();
        assert!(!leaked(&good));
        let spoil: [fn(&mut Report); 4] = [
            |r| r.relayed.side.canary_seen = true,
            |r| r.relayed.side.protocol = "mixed".into(),
            |r| r.relayed.side.protocol = "plaintext".into(),
            |r| r.direct.canary_seen = false,
        ];
        for (n, spoil) in spoil.iter().enumerate() {
            let mut bad = good.clone();
            spoil(&mut bad);
            assert!(leaked(&bad), "{n}");
        }
    }
}
