//! `scripts/bench edge`: the cost of HTTPS at the edge, compared with other servers.
//!
//! The path is always client -> TLS 1.3 -> reverse proxy -> plain HTTP -> backend, on loopback. The proxy has its own
//! core; clients and backend run in this process, on another. All systems run in every round, so a busy minute affects
//! all of them; the tables show medians over the rounds. Any wrong response ends the run, because fast errors are not a
//! result.
//!
//! [`load`] contains the backend and the clients, [`systems`] starts the proxies, [`floor`] measures the cryptography
//! of a handshake alone, [`report`] prints the results.

#[path = "../common/mod.rs"]
mod common;
mod floor;
mod load;
mod report;
mod systems;

use std::{
    env, fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context, bail};
use clap::{Parser, ValueEnum};

use crate::{
    common::{null_relay, or_all, process::Lab},
    floor::Floor,
    load::Load,
    report::{Report, Sample},
    systems::{LOAD_CORE, Server, System},
};

/// Compare the edge with its peers, each on one core.
#[derive(Parser)]
#[command(name = "scripts/bench edge")]
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
    /// Seconds of a timed workload in a round [default: 2, quick: 1]
    #[arg(long)]
    seconds: Option<u64>,
    /// Connections to hold open for idle memory [default: 2000, quick: 500]
    #[arg(long, value_name = "N")]
    idle_conns: Option<usize>,
    /// Another build of wiretight to compare with, such as one before a change
    #[arg(long, value_name = "PROGRAM")]
    other: Option<PathBuf>,
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
    time: Duration,
    idle_conns: usize,
}

impl Scale {
    fn from_args(args: &Args) -> Self {
        let pick = |full, quick| if args.quick { quick } else { full };
        Self {
            rounds: args.rounds.unwrap_or(pick(5, 1) as usize).max(1),
            time: Duration::from_secs(args.seconds.unwrap_or(pick(2, 1)).max(1)),
            idle_conns: args.idle_conns.unwrap_or(pick(2000, 500) as usize).max(1),
        }
    }
}

/// One kind of traffic.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Workload {
    /// HTTP/1.1 on 64 kept-alive connections, responses of 1 KiB.
    #[value(name = "h1-1k")]
    H1Small,
    /// HTTP/1.1 on 64 kept-alive connections, responses of 64 KiB.
    #[value(name = "h1-64k")]
    H1Large,
    /// HTTP/2, responses of 1 KiB, 8 connections with 8 concurrent requests.
    H2,
    /// HTTP/3, the same.
    H3,
    /// A new connection for each request, key exchange by X25519.
    X25519,
    /// A new connection for each request, key exchange by X25519MLKEM768.
    Mlkem,
    /// Memory of idle connections that have made one request each.
    Idle,
}

fn main() -> anyhow::Result<ExitCode> {
    if let Some((listen, to)) = null_relay::asked_for()? {
        return null_relay::run(listen, to).map(|()| ExitCode::SUCCESS);
    }
    if !env::args().any(|arg| arg == "--bench") {
        // `cargo test --all-targets` starts every benchmark, but minutes of load are not a test.
        println!("not run: use `scripts/bench edge`");
        return Ok(ExitCode::SUCCESS);
    }
    let args = Args::parse();
    stay_on_load_core()?;
    common::run(run(args))
}

/// Starts this program again with `taskset`, unless it runs on the right core already.
fn stay_on_load_core() -> anyhow::Result<()> {
    let status = fs::read_to_string("/proc/self/status")?;
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    if allowed.map(str::trim) == Some(LOAD_CORE) {
        return Ok(());
    }
    let mut again = Command::new("taskset");
    again.args(["--cpu-list", LOAD_CORE]).arg(env::current_exe()?).args(env::args_os().skip(1));
    Err(again.exec()).context("cannot run taskset (Debian's package util-linux)")
}

async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let scale = Scale::from_args(&args);
    let workloads = or_all(&args.only);
    let lab = Lab::new(load::start_backend().await.context("cannot start the backend")?)?;
    let load = Load::new(&lab)?;

    let mut installed = Vec::new();
    let mut running = Vec::new();
    let other = args.other.as_deref().map(common::callers_path);
    let other = other.as_deref();
    let systems = or_all(&args.systems).into_iter().chain(other.map(|_| System::Other));
    for system in systems {
        let Some(version) = system.version() else {
            println!(
                "skipped: {} is not installed (docs/benchmarks.md names the packages)",
                system.name()
            );
            continue;
        };
        installed.push((system, version));
        running.push(start(&lab, &load, system, other).await?);
    }
    let mut report = Report::new(scale, installed, Floor::measure(&load).await?);
    report.print_header();
    if args.quick {
        println!("\nA smoke run: too short for figures to repeat.");
    }

    for round in 0..scale.rounds {
        for &workload in &workloads {
            for server in &running {
                let system = server.system;
                if !system.can(workload) {
                    continue;
                }
                let (number, all) = (round + 1, scale.rounds);
                eprintln!("round {number} of {all}: {}, {}", workload.key(), system.name());
                // Freed heap of other workloads would hide the cost of idle connections.
                let fresh = match workload {
                    Workload::Idle => Some(start(&lab, &load, system, other).await?),
                    _ => None,
                };
                let server = fresh.as_ref().unwrap_or(server);
                let values = match workload {
                    Workload::H1Small => load.http1(server, &load::SMALL, scale.time).await,
                    Workload::H1Large => load.http1(server, &load::LARGE, scale.time).await,
                    Workload::H2 => load.http2(server, scale.time).await,
                    Workload::H3 => load.http3(server, scale.time).await,
                    Workload::X25519 => load.handshakes(server, floor::X25519, scale.time).await,
                    Workload::Mlkem => load.handshakes(server, floor::MLKEM, scale.time).await,
                    Workload::Idle => load.idle(server, scale.idle_conns).await,
                };
                let values = match values {
                    Ok(values) => values,
                    Err(error) => {
                        bail!("{}, {}: {error:#}\n{}", workload.key(), system.name(), server.log())
                    }
                };
                report.add(Sample { round, system, workload, values });
            }
        }
        // Each round uses another order, so that no system always runs after the same one.
        running.rotate_left(1);
    }

    report.print_tables();
    if let Some(file) = args.json {
        common::write_json(&file, &report.to_json())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Starts a system and waits until a request gets through it. The error of a failure includes the end of the system's
/// log.
async fn start(
    lab: &Lab,
    load: &Load,
    system: System,
    other: Option<&Path>,
) -> anyhow::Result<Server> {
    let name = system.name();
    let server =
        systems::start(lab, system, other).await.with_context(|| format!("cannot start {name}"))?;
    load.wait_until_it_answers(&server, Duration::from_secs(20))
        .await
        .with_context(|| format!("{name} does not carry a request\n{}", server.log()))?;
    Ok(server)
}
