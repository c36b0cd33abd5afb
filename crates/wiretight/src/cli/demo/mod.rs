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
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use super::Output;
use super::term::{self, Table};
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
            eprint!("{}", nodes.what_to_try(self.forward.is_some()));
            tokio::select! {
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
        self.out.print(&report, render)?;
        Ok(nodes)
    }
}

/// The direct run is the control: if the tap does not see the canary there, its result means nothing.
fn leaked(report: &Value) -> bool {
    report["direct"]["canary_seen"] != true
        || report["relayed"]["canary_seen"] != false
        || report["relayed"]["protocol"] != "TLSv1.3"
}

fn step(text: &str) {
    eprintln!("{text}");
}

fn report(
    direct: &Measured,
    seen_direct: &Seen,
    relayed: &Measured,
    seen_relayed: &Seen,
    a: &Value,
    b: &Value,
) -> Value {
    let side = |m: &Measured, s: &Seen| {
        json!({
            "canary_seen": s.canaries > 0,
            "canaries": s.canaries,
            "protocol": s.protocol(),
            "group": s.group,
            "cipher": s.cipher,
            "bytes": s.bytes,
            "connections_on_the_wire": s.connections,
            "megabytes_per_second": m.megabytes_per_second(),
            "latency_p50_us": m.p50().as_micros() as u64,
            "new_connection_p50_us": m.connect_p50().as_micros() as u64,
        })
    };
    let peer = |status: &Value| -> Value {
        let connections = status["relay"]["connections"].as_array();
        let hello = connections.into_iter().flatten().find(|c| c["service"] == nodes::SERVICE);
        hello.map_or(Value::Null, |c| c["peer"].clone())
    };
    let mut relayed_side = side(relayed, seen_relayed);
    relayed_side["server_id"] = peer(a);
    relayed_side["client_id"] = peer(b);
    let added = |r: Duration, d: Duration| r.as_micros() as i64 - d.as_micros() as i64;
    relayed_side["added_latency_p50_us"] = json!(added(relayed.p50(), direct.p50()));
    json!({ "canary": CANARY, "direct": side(direct, seen_direct), "relayed": relayed_side })
}

fn render(report: &Value) -> String {
    let (d, r) = (&report["direct"], &report["relayed"]);
    let text = |v: &Value| match v {
        Value::Null => "-".to_owned(),
        Value::String(s) => s.clone(),
        other => other.to_string(),
    };
    let canary = |v: &Value| match v["canaries"].as_u64() {
        Some(0) => term::good("not found"),
        n => term::bad(&format!("FOUND {} times", n.unwrap_or(0))),
    };
    let number = |v: &Value| v.as_u64().unwrap_or(0);
    let speed =
        |v: &Value| format!("{:.0} MB/s", v["megabytes_per_second"].as_f64().unwrap_or(0.0));
    let us = |v: &Value| format!("{} us", text(v));
    let mut table = Table::new(&["seen by the tap on the wire", "direct", "through Wiretight"]);
    let mut row = |name: &str, d: String, r: String| table.row([name.to_owned(), d, r]);
    row("canary text", canary(d), canary(r));
    row("protocol", text(&d["protocol"]), text(&r["protocol"]));
    row("key exchange", text(&d["group"]), text(&r["group"]));
    row("cipher", text(&d["cipher"]), text(&r["cipher"]));
    row("client", "anybody".into(), text(&r["client_id"]));
    row("server", "anybody".into(), text(&r["server_id"]));
    row("bytes", term::size(number(&d["bytes"])), term::size(number(&r["bytes"])));
    row("throughput", speed(d), speed(r));
    row("a request, p50", us(&d["latency_p50_us"]), us(&r["latency_p50_us"]));
    row("added by the relays, p50", "-".into(), us(&r["added_latency_p50_us"]));
    row("a new connection, p50", us(&d["new_connection_p50_us"]), us(&r["new_connection_p50_us"]));
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
        let good = json!({
            "direct": { "canary_seen": true },
            "relayed": { "canary_seen": false, "protocol": "TLSv1.3" },
        });
        assert!(!leaked(&good));
        for (side, key, value) in [
            ("relayed", "canary_seen", json!(true)),
            ("relayed", "protocol", json!("mixed")),
            ("relayed", "protocol", json!("plaintext")),
            ("direct", "canary_seen", json!(false)),
        ] {
            let mut bad = good.clone();
            bad[side][key] = value;
            assert!(leaked(&bad), "{bad}");
        }
    }
}
