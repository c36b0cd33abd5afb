//! `scripts/bench intercept`: the cost of interception, compared with a program that connects to a `[[dial]]`.
//!
//! Program -> relay A -> mutual TLS 1.3 -> relay B -> origin, as root, on two machines that are network namespaces
//! connected by a veth pair. All ways run in each round, so a busy minute affects all of them, and ratios compare
//! values of one round. CPU is that of the two nodes with all of their children. The kernel's work in a program's own
//! time is in "program", which is the load and the origin.

#[path = "../common/mod.rs"]
mod common;
#[path = "../relay/load.rs"]
mod load;
mod systems;

use std::{process::ExitCode, time::Duration};

use anyhow::ensure;
use clap::{Parser, ValueEnum};

use crate::{
    common::{
        figures::{Spread, machine},
        loopback, node, or_all,
        process::Lab,
        procfs,
    },
    load::Outcome,
    systems::{Machines, Pair, Taking},
};

/// The length of a response.
const RESPONSE: usize = 1024;

/// Compare interception with an explicit listener.
#[derive(Parser)]
#[command(name = "scripts/bench intercept")]
struct Args {
    /// Rounds; in each, every workload runs once over every way [default: 15, quick: 1]
    #[arg(long)]
    rounds: Option<usize>,
    /// Workloads to run
    #[arg(long, value_delimiter = ',', value_name = "A,B")]
    only: Vec<Workload>,
    /// A short run to test the benchmark; its figures are not meaningful
    #[arg(long)]
    quick: bool,
    /// Seconds of a timed workload in a round [default: 3, quick: 1]
    #[arg(long)]
    seconds: Option<u64>,
    /// Cargo adds this under `cargo bench`; see `main`
    #[arg(long = "bench", hide = true)]
    _bench: bool,
}

/// One kind of traffic, with responses of 1 KiB.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Workload {
    /// Requests on 32 kept-alive connections.
    Kept,
    /// A new connection for each request, 16 at a time.
    New,
    /// One request after another on one kept-alive connection.
    KeptLatency,
    /// One connection after another, each with one request.
    NewLatency,
}

/// In the order of the columns.
const WAYS: [&str; 4] = ["dial", "dial by a bare redirect", "dial beside rules", "intercepted"];

fn main() -> anyhow::Result<ExitCode> {
    if !std::env::args().any(|arg| arg == "--bench") {
        // `cargo test --all-targets` starts every benchmark, but minutes of load are not a test.
        println!("not run: use `scripts/bench intercept`");
        return Ok(ExitCode::SUCCESS);
    }
    let args = Args::parse();
    ensure!(rustix::process::geteuid().is_root(), "network namespaces need root");
    common::run(run(args))
}

async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let pick = |full: u64, quick| if args.quick { quick } else { full };
    let rounds = args.rounds.unwrap_or(pick(15, 1) as usize).max(1);
    let time = Duration::from_secs(args.seconds.unwrap_or(pick(3, 1)));
    let count = pick(5000, 500) as usize;
    let lab = Lab::new(loopback(0))?;
    // Separate, because the rules would block nodes that do not mark their packets.
    let machines = [Machines::new("d")?, Machines::new("b")?, Machines::new("i")?];
    let plain = systems::start(&lab, &machines[0], Taking::Nothing).await?;
    let bare = systems::start(&lab, &machines[1], Taking::Bare).await?;
    let ruled = systems::start(&lab, &machines[2], Taking::Strict).await?;
    let mut ways: Vec<(&str, &Machines, &Pair)> = vec![
        (WAYS[0], &machines[0], &plain.dial),
        (WAYS[1], &machines[1], &bare.taken),
        (WAYS[2], &machines[2], &ruled.dial),
        (WAYS[3], &machines[2], &ruled.taken),
    ];

    println!("{rounds} round(s) of {} s; medians (min-max)", time.as_secs());
    for (key, value) in machine() {
        println!("{key:<10} {value}");
    }
    println!("{:<10} {}", "wiretight", node::version().unwrap_or_default());
    let mut samples = Vec::new();
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        for workload in or_all(&args.only) {
            for &(way, machines, pair) in &ways {
                machines.enter_client()?;
                let own = procfs::own_cpu()?;
                let mut outcome = match workload {
                    Workload::Kept => load::requests(pair, time).await?,
                    Workload::New => load::connections(pair, time).await?,
                    Workload::KeptLatency => load::latency(pair, count).await?,
                    Workload::NewLatency => load::latency_of_connections(pair, count).await?,
                };
                if let Some(error) = outcome.errors.first.take() {
                    anyhow::bail!("{way}: {} errors, the first: {error}", outcome.errors.count);
                }
                if outcome.done > 0 {
                    let own = procfs::own_cpu()? - own;
                    outcome.values.push(own.as_secs_f64() * 1e6 / outcome.done as f64);
                }
                samples.push((round, workload, way, outcome));
            }
        }
        // Each round uses another order.
        ways.rotate_left(1);
    }
    for workload in or_all(&args.only) {
        print_table(workload, rounds, &samples);
    }
    Ok(ExitCode::SUCCESS)
}

type Sample<'a> = (usize, Workload, &'a str, Outcome);

fn print_table(workload: Workload, rounds: usize, samples: &[Sample<'_>]) {
    let (title, metrics): (_, &[&str]) = match workload {
        Workload::Kept => ("32 kept-alive connections", &["CPU us/req", "req/s", "program us/req"]),
        Workload::New => {
            ("a connection a request, 16 at a time", &["CPU us/conn", "conn/s", "program us/conn"])
        }
        Workload::KeptLatency => ("one request after the other", &["p50 us", "p99 us"]),
        Workload::NewLatency => ("one connection after the other", &["p50 us", "p99 us"]),
    };
    println!("\n{title}");
    let value = |round: usize, way: &str, index: usize| {
        let of = |s: &&Sample<'_>| (s.0, s.1, s.2) == (round, workload, way);
        samples.iter().find(of).map_or(f64::NAN, |s| s.3.values[index])
    };
    let shown = |values: Vec<f64>, digits: usize| match Spread::of(values.into_iter()) {
        Some(Spread { median, min, max }) => {
            format!("{median:.digits$} ({min:.digits$}-{max:.digits$})")
        }
        None => "-".to_owned(),
    };
    for (index, metric) in metrics.iter().enumerate() {
        println!("{metric}");
        for (at, way) in WAYS.into_iter().enumerate() {
            let values = (0..rounds).map(|round| value(round, way, index)).collect();
            print!("  {way:<28} {:<26}", shown(values, 1));
            for to in &WAYS[..at] {
                let each = (0..rounds).map(|r| value(r, way, index) / value(r, to, index));
                print!(" / {to}: {}", shown(each.collect(), 2));
            }
            println!();
        }
    }
}
