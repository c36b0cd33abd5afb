//! `scripts/bench relay`: the cost of a pair of Wiretight relays, compared with other systems.
//!
//! The path is always client -> relay A -> mutual TLS 1.3 -> relay B -> origin, on loopback. All systems run in every
//! round, so a busy minute affects all of them; the table shows medians over the rounds. CPU is that of the two relays
//! only: the load and the origin run in this process and are not counted, but they share the machine's cores. So
//! compare rows of one run, not figures of two runs.
//!
//! [`load`] makes the traffic and checks every byte of it, [`systems`] starts the relays, [`common::procfs`] measures
//! their cost, [`report`] prints it. The lower bounds are a pair without TLS ([`common::null_relay`]), the cipher alone
//! ([`aead`]), and a handshake in memory ([`handshake`]).

mod aead;
#[path = "../common/mod.rs"]
mod common;
mod handshake;
mod load;
mod report;
mod systems;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context;
use clap::{Parser, ValueEnum};

use crate::{
    common::{null_relay, or_all, process::Lab},
    load::Outcome,
    report::{Report, Sample},
    systems::{Pair, System},
};

/// The length of a response.
const RESPONSE: usize = 256;

/// Compare a pair of relays with other systems.
#[derive(Parser)]
#[command(name = "scripts/bench relay")]
struct Args {
    /// Rounds; in each, every system runs every workload once [default: 5, quick: 1]
    #[arg(long)]
    rounds: Option<usize>,
    /// Workloads to run
    #[arg(long, value_delimiter = ',', value_name = "A,B")]
    only: Vec<Workload>,
    /// Systems to run
    #[arg(long, value_delimiter = ',', value_name = "A,B")]
    systems: Vec<System>,
    /// A short run to test the benchmark; its figures are not meaningful
    #[arg(long)]
    quick: bool,
    /// MiB in the one stream of a bulk round [default: 2048, quick: 256]
    #[arg(long, value_name = "MIB")]
    bulk_mib: Option<u64>,
    /// Seconds of a timed workload in a round [default: 4, quick: 1]
    #[arg(long)]
    seconds: Option<u64>,
    /// Connections to hold open for idle memory [default: 500, quick: 100]
    #[arg(long, value_name = "N")]
    idle_conns: Option<usize>,
    /// Connections to open and keep in `handshake` [default: 2000, quick: 200]
    #[arg(long, value_name = "N")]
    handshakes: Option<usize>,
    /// Connections to hold for a long time (`--only hold`) [default: 10000, quick: 200]
    #[arg(long, value_name = "N")]
    held_conns: Option<usize>,
    /// Seconds to hold them [default: 600, quick: 12]
    #[arg(long, value_name = "SECONDS")]
    hold_seconds: Option<u64>,
    /// Write every round to FILE as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Cargo adds this under `cargo bench`; see `main`
    #[arg(long = "bench", hide = true)]
    _bench: bool,
}

/// The size of the work in a round.
#[derive(Clone, Copy)]
struct Scale {
    rounds: usize,
    bulk_bytes: u64,
    time: Duration,
    idle_conns: usize,
    handshakes: usize,
    latency_requests: usize,
    /// Requests per second in `half`.
    half_rate: f64,
    held_conns: usize,
    hold_time: Duration,
}

impl Scale {
    fn from_args(args: &Args) -> Self {
        let pick = |full, quick| if args.quick { quick } else { full };
        Self {
            rounds: args.rounds.unwrap_or(pick(5, 1) as usize).max(1),
            bulk_bytes: args.bulk_mib.unwrap_or(pick(2048, 256)) << 20,
            time: Duration::from_secs(args.seconds.unwrap_or(pick(4, 1))),
            idle_conns: args.idle_conns.unwrap_or(pick(500, 100) as usize).max(1),
            handshakes: args.handshakes.unwrap_or(pick(2000, 200) as usize).max(1),
            latency_requests: pick(10_000, 1_000) as usize,
            half_rate: 0.0, // measured at the start
            held_conns: args.held_conns.unwrap_or(pick(10_000, 200) as usize).max(1),
            hold_time: Duration::from_secs(args.hold_seconds.unwrap_or(pick(600, 12))),
        }
    }
}

/// One kind of traffic.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Workload {
    /// One stream at full speed.
    Bulk,
    /// The same amount in 16 concurrent streams; Wiretight with two workers per relay.
    Streams,
    /// Requests on 32 kept-alive connections.
    Rps,
    /// New connections, 16 at a time: connect, request, response, close.
    Conns,
    /// New connections that are kept, so that each needs a full handshake; and handshakes alone, in this process.
    Handshake,
    /// Memory of idle connections that have made one request each.
    Idle,
    /// One request after another on one kept-alive connection.
    Latency,
    /// Requests at a constant rate on 32 kept-alive connections: half the rate of the slowest system.
    Half,
    /// Many connections for a long time, some of them replaced all the time; runs only on request.
    Hold,
}

fn main() -> anyhow::Result<ExitCode> {
    if let Some((listen, to)) = null_relay::asked_for()? {
        return null_relay::run(listen, to).map(|()| ExitCode::SUCCESS);
    }
    if !std::env::args().any(|arg| arg == "--bench") {
        // `cargo test --all-targets` starts every benchmark, but minutes of load are not a test.
        println!("not run: use `scripts/bench relay`");
        return Ok(ExitCode::SUCCESS);
    }
    let args = Args::parse();
    // One thread for the load; the origin has its own.
    common::run(run(args))
}

async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut scale = Scale::from_args(&args);
    let mut workloads = or_all(&args.only);
    if args.only.is_empty() {
        workloads.retain(|workload| *workload != Workload::Hold);
    }
    let origin = load::start_origin().context("cannot start the origin server")?;
    let lab = Lab::new(origin)?;

    let mut installed = Vec::new();
    let mut running = Vec::new();
    for system in or_all(&args.systems) {
        let Some(version) = system.version() else {
            println!(
                "skipped: {} is not installed (docs/benchmarks.md names the packages)",
                system.name()
            );
            continue;
        };
        installed.push((system, version));
        running.push((system, start(&lab, system, 1).await?));
    }
    if workloads.contains(&Workload::Half) {
        let mut slowest = f64::INFINITY;
        for (_, pair) in &running {
            let outcome = load::requests(pair, Duration::from_secs(1)).await?;
            slowest = slowest.min(outcome.values.get(1).copied().unwrap_or(slowest));
        }
        scale.half_rate = slowest / 2.0;
    }
    let mut report = Report::new(scale, installed);
    report.print_header();
    if args.quick {
        println!("\nA smoke run: too short for figures to repeat.");
    }

    for round in 0..scale.rounds {
        eprintln!("round {} of {}", round + 1, scale.rounds);
        for &workload in &workloads {
            for (system, pair) in &running {
                let outcome = match workload {
                    // Freed heap of earlier rounds would hide the cost: a new pair each time.
                    Workload::Idle => match start(&lab, *system, 1).await {
                        Ok(fresh) => load::idle(&fresh, scale.idle_conns).await,
                        Err(error) => Err(error),
                    },
                    // Idle connections from the earlier measurement would be counted as new ones.
                    Workload::Handshake => match start(&lab, *system, 1).await {
                        Ok(fresh) => load::handshakes(&fresh, scale.handshakes).await,
                        Err(error) => Err(error),
                    },
                    Workload::Streams => match start(&lab, *system, 2).await {
                        Ok(fresh) => load::streams(&fresh, scale.bulk_bytes).await,
                        Err(error) => Err(error),
                    },
                    Workload::Bulk => load::bulk(pair, scale.bulk_bytes).await,
                    Workload::Rps => load::requests(pair, scale.time).await,
                    Workload::Conns => load::connections(pair, scale.time).await,
                    Workload::Latency => load::latency(pair, scale.latency_requests).await,
                    Workload::Half => load::latency_at(pair, scale.half_rate, scale.time).await,
                    Workload::Hold => match start(&lab, *system, 1).await {
                        Ok(fresh) => load::hold(&fresh, scale.held_conns, scale.hold_time).await,
                        Err(error) => Err(error),
                    },
                };
                let outcome = outcome.unwrap_or_else(|error| Outcome::failed(&error));
                report.add(Sample { round, system: *system, workload, outcome });
            }
            if workload == Workload::Bulk {
                report.add_aead(aead::cpu_s_per_gb()?);
            }
            if workload == Workload::Handshake {
                report.add_handshakes(handshake::measure(scale.time)?);
            }
        }
        // Each round uses another order, so that no system always runs after the same one.
        running.rotate_left(1);
    }

    report.print_tables();
    if let Some(file) = args.json {
        common::write_json(&file, &report.to_json())?;
    }
    Ok(if report.errors() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Starts a pair and waits until a request gets through it. The error of a failure includes the end of the logs.
async fn start(lab: &Lab, system: System, workers: usize) -> anyhow::Result<Pair> {
    let pair = systems::start(lab, system, workers)
        .await
        .with_context(|| format!("cannot start {}", system.name()))?;
    load::wait_until_it_answers(pair.entry, Duration::from_secs(20))
        .await
        .with_context(|| format!("{} does not carry a request\n{}", system.name(), pair.logs()))?;
    Ok(pair)
}
