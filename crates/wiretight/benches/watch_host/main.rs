//! `scripts/bench watch --host`: what `[watch]` costs a machine, and what it does to the traffic.
//!
//! Pairs of machines, which are network namespaces connected by a veth pair, as root. Each workload runs over one pair
//! after the other, in each round. So the ways are compared under the same conditions, and CPU time hardly depends on what
//! else runs on this machine.

#[path = "../common/mod.rs"]
mod common;
mod machines;

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use clap::Parser;
use rustix::thread::gettid;

use crate::common::{
    figures::{Spread, machine},
    loopback, node,
    process::{Lab, Process},
    procfs,
};
use crate::machines::{CLIENT, Machines, REQUEST, RESPONSE, SERVERS, SINK, WEB, on};

/// New connections a second, and bytes a second (1 Gbit/s).
const FLOWS: u32 = 1000;
const BYTES: usize = 125_000_000;
/// In a slice: connections one after the other, and bytes of a transfer at full speed.
const CONNECTIONS: usize = 1000;
const BULK: usize = 256 << 20;
/// How long the kernel tracks a connection that is closed, and more.
const FULL: Duration = Duration::from_secs(130);

/// What `[watch]` costs, with and without it.
#[derive(Parser)]
#[command(name = "scripts/bench watch --host")]
struct Args {
    /// Rounds; in each, every workload runs over each pair of machines [default: 5, quick: 1]
    #[arg(long)]
    rounds: Option<usize>,
    /// A short run to test the benchmark; its figures are not meaningful
    #[arg(long)]
    quick: bool,
    /// Seconds of a timed workload in a round [default: 8, quick: 2]
    #[arg(long)]
    seconds: Option<u64>,
    /// Short slices of traffic at full speed, which alternate between the machines [default: 60, quick: 2]
    #[arg(long)]
    slices: Option<usize>,
    /// Cargo adds this under `cargo bench`; see `main`
    #[arg(long = "bench", hide = true)]
    _bench: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    if !std::env::args().any(|arg| arg == "--bench") {
        println!("not run: use `scripts/bench watch --host`");
        return Ok(ExitCode::SUCCESS);
    }
    let args = Args::parse();
    ensure!(rustix::process::geteuid().is_root(), "network namespaces need root");
    common::run(run(args))
}

/// A pair of machines, whose server runs a node.
struct Way {
    name: &'static str,
    node: Process,
    machines: Machines,
    /// A thread that reads the kernel's messages instead of the node.
    reader: Option<u32>,
}

impl Way {
    fn start(lab: &Lab, name: &'static str, section: &str) -> anyhow::Result<Way> {
        let machines = Machines::new(name)?;
        let run = lab.run(name)?;
        let rest = format!("[authority]\nlisten = \"127.0.0.1:7400\"\n{section}");
        let config = node::config(&run, "auth1", loopback(7490), &rest)?;
        let mut command = machines.command(node::WIRETIGHT);
        command.args(["run", "--config"]).arg(config);
        let node = run.spawn(name, &mut command)?;
        Ok(Way { name, machines, node, reader: None })
    }

    /// CPU time of what watches: the node with its children.
    fn cpu(&self) -> anyhow::Result<Duration> {
        let reader = self.reader.map(procfs::cpu_of_thread).transpose()?;
        Ok(procfs::precise_cpu(self.node.id())? + reader.unwrap_or_default())
    }

    fn servers_cpu(&self) -> anyhow::Result<Duration> {
        self.machines.servers.iter().map(|thread| procfs::cpu_of_thread(*thread)).sum()
    }

    /// Runs traffic on a machine. Returns what it returns, and the CPU time of both ends.
    async fn traffic<T: Send + 'static>(
        &self,
        from: &str,
        body: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<(T, Duration)> {
        let before = self.servers_cpu()?;
        let client = on(from, move || {
            let done = body()?;
            Ok((done, procfs::cpu_of_thread(gettid().as_raw_nonzero().get() as u32)?))
        })?;
        let joined = tokio::task::spawn_blocking(move || client.join()).await?;
        let (done, cpu) = joined.map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        Ok((done, cpu + (self.servers_cpu()? - before)))
    }
}

/// A connection with one request; how long it took.
fn ask(server: Ipv4Addr) -> anyhow::Result<Duration> {
    let start = Instant::now();
    let mut stream = TcpStream::connect((server, WEB))?;
    stream.write_all(REQUEST)?;
    stream.read_exact(&mut [0; RESPONSE])?;
    Ok(start.elapsed())
}

/// [`FLOWS`] new connections a second: how long each took.
fn ask_at_a_rate(servers: &[Ipv4Addr], time: Duration) -> anyhow::Result<Vec<Duration>> {
    let start = Instant::now();
    let mut times = Vec::new();
    for (number, server) in (0..).zip(servers.iter().cycle()) {
        let due = Duration::from_secs(1) / FLOWS * number;
        if due > time {
            break;
        }
        thread::sleep((start + due).saturating_duration_since(Instant::now()));
        times.push(ask(*server)?);
    }
    Ok(times)
}

/// Connections a second.
fn ask_one_by_one(connections: usize) -> anyhow::Result<f64> {
    let start = Instant::now();
    for server in SERVERS.iter().cycle().take(connections) {
        ask(*server)?;
    }
    Ok(connections as f64 / start.elapsed().as_secs_f64())
}

fn sink() -> SocketAddr {
    (SERVERS[0], SINK).into()
}

/// [`BYTES`] a second.
fn send_at_a_rate(time: Duration) -> anyhow::Result<()> {
    const EVERY: Duration = Duration::from_millis(1);
    let mut stream = TcpStream::connect(sink())?;
    let piece = vec![b'x'; BYTES / 1000];
    let start = Instant::now();
    for number in 0.. {
        let due = EVERY * number;
        if due > time {
            break;
        }
        thread::sleep((start + due).saturating_duration_since(Instant::now()));
        stream.write_all(&piece)?;
    }
    Ok(())
}

/// As fast as possible: bytes a second.
fn send_all(bytes: usize) -> anyhow::Result<f64> {
    let mut stream = TcpStream::connect(sink())?;
    let piece = vec![b'x'; 1 << 20];
    let start = Instant::now();
    for _ in 0..bytes / piece.len() {
        stream.write_all(&piece)?;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    stream.read_exact(&mut [0])?;
    Ok(bytes as f64 / start.elapsed().as_secs_f64())
}

/// The figures of one round or slice and way, in the order of [`TIMED`] or [`FAST`].
type Figures = Vec<f64>;

const TIMED: [(&str, usize); 7] = [
    ("CPU of the node when idle, % of a core", 2),
    ("CPU of the node at 1,000 new connections/s and 1 Gbit/s, % of a core", 2),
    ("kernel's own threads then (also for all other programs), % of a core", 2),
    ("connections made in time, %", 1),
    ("time of a connection then, p50 us", 0),
    ("time of a connection then, p99 us", 0),
    ("CPU of the node at 1,000 new connections/s to elsewhere, % of a core", 2),
];

const FAST: [(&str, usize); 4] = [
    ("one connection after the other: CPU of both ends, us each", 1),
    ("the same, connections/s", 0),
    ("one stream at full speed: CPU of both ends, s/GB", 3),
    ("the same, GB/s", 2),
];

fn share(used: Duration, of: Duration) -> f64 {
    100.0 * used.as_secs_f64() / of.as_secs_f64()
}

/// Connections at a rate and a stream at another; returns the times of the connections, sorted.
async fn both(way: &Way, time: Duration) -> anyhow::Result<Vec<Duration>> {
    let client = &way.machines.client;
    let bulk = on(client, move || send_at_a_rate(time))?;
    let (mut times, _) = way.traffic(client, move || ask_at_a_rate(&SERVERS, time)).await?;
    bulk.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
    times.sort();
    Ok(times)
}

async fn timed(way: &Way, time: Duration) -> anyhow::Result<Figures> {
    // What the node has not read yet, or adds up later, is its work too.
    let settle = || tokio::time::sleep(Duration::from_secs(1));
    let (before, start) = (way.cpu()?, Instant::now());
    tokio::time::sleep(time / 4).await;
    let idle = share(way.cpu()? - before, start.elapsed());

    let (before, kernel_before, start) = (way.cpu()?, procfs::kernel_threads()?, Instant::now());
    let times = both(way, time).await?;
    let took = start.elapsed();
    let kernel = procfs::kernel_threads()?.into_iter().map(|(thread, used)| {
        used.saturating_sub(kernel_before.get(&thread).copied().unwrap_or_default())
    });
    let kernel = share(kernel.sum(), took);
    settle().await;
    let used = share(way.cpu()? - before, took);
    let at = |percent: usize| times[times.len() * percent / 100].as_secs_f64() * 1e6;
    let wanted = f64::from(FLOWS) * time.as_secs_f64();

    let (before, start) = (way.cpu()?, Instant::now());
    way.traffic(&way.machines.server, move || ask_at_a_rate(&[CLIENT], time / 2)).await?;
    let took = start.elapsed();
    settle().await;
    let outgoing = share(way.cpu()? - before, took);
    let in_time = 100.0 * times.len() as f64 / wanted;
    Ok(vec![idle, used, kernel, in_time, at(50), at(99), outgoing])
}

/// A slice of traffic at full speed.
async fn fast(way: &Way) -> anyhow::Result<Figures> {
    let client = &way.machines.client;
    let (rate, ends) = way.traffic(client, || ask_one_by_one(CONNECTIONS)).await?;
    let each = ends.as_secs_f64() * 1e6 / CONNECTIONS as f64;
    let (speed, ends) = way.traffic(client, || send_all(BULK)).await?;
    let bulk = ends.as_secs_f64() / BULK as f64 * 1e9;
    Ok(vec![each, rate, bulk, speed / 1e9])
}

/// Prints the figures of each way, and how they compare with those of the first.
fn report(ways: &[Way], titles: &[(&str, usize)], samples: &[Vec<Figures>]) {
    for (index, &(title, digits)) in titles.iter().enumerate() {
        println!("\n{title}");
        for (way, of_way) in ways.iter().zip(samples) {
            let Some(spread) = Spread::of(of_way.iter().map(|figures| figures[index])) else {
                continue;
            };
            let Spread { median, min, max } = spread;
            print!("  {:<8} {median:.digits$} ({min:.digits$}-{max:.digits$})", way.name);
            let ratio = samples[0].iter().zip(of_way).map(|(watch, of)| watch[index] / of[index]);
            match Spread::of(ratio.filter(|ratio| ratio.is_finite())) {
                Some(Spread { median, .. }) if way.name != ways[0].name => {
                    println!("   watch is {median:.3} times this");
                }
                _ => println!(),
            }
        }
    }
}

async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let pick = |full: u64, quick| if args.quick { quick } else { full };
    let rounds = args.rounds.unwrap_or(pick(5, 1) as usize).max(1);
    let time = Duration::from_secs(args.seconds.unwrap_or(pick(8, 2)));
    let slices = args.slices.unwrap_or(pick(60, 2) as usize);
    let lab = Lab::new(loopback(0))?;
    let mut ways = vec![
        Way::start(&lab, "watch", "[watch]\n")?,
        Way::start(&lab, "kernel", "")?,
        Way::start(&lab, "tracked", "")?,
        Way::start(&lab, "none", "")?,
    ];
    // Until all have started, and the first list is read.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let reader = ways[1].machines.only_read(&ways[0].machines)?;
    ways[1].reader = Some(reader);
    ways[2].machines.track()?;
    for way in &ways {
        let expected = if way.name == "watch" { 4 } else { 1 };
        let family = procfs::family_size(way.node.id())?;
        ensure!(family == expected, "{}: {family} processes\n{}", way.name, way.node.log());
    }
    println!("{rounds} round(s) of {} s, {slices} slices; medians (min-max)", time.as_secs());
    for (key, value) in machine() {
        println!("{key:<10} {value}");
    }
    println!("{:<10} {}", "wiretight", node::version().unwrap_or_default());
    let mut samples: [Vec<Vec<Figures>>; 2] = [(); 2].map(|()| vec![Vec::new(); ways.len()]);
    for round in 0..rounds + slices {
        match round {
            _ if round < rounds => eprintln!("round {} of {rounds}", round + 1),
            _ if round == rounds => eprintln!("{slices} slices"),
            _ => {}
        }
        // Each round uses another order.
        for n in (0..ways.len()).map(|n| (n + round) % ways.len()) {
            let way = &ways[n];
            let figures = match round < rounds {
                true => timed(way, time).await,
                false => fast(way).await,
            };
            let figures = figures.with_context(|| format!("{}: {}", way.name, way.node.log()))?;
            samples[usize::from(round >= rounds)][n].push(figures);
        }
    }
    report(&ways, &TIMED, &samples[0]);
    report(&ways, &FAST, &samples[1]);
    if args.quick {
        return Ok(ExitCode::SUCCESS);
    }
    // Until the kernel tracks as many closed connections as it ever will at this rate.
    let (full, last) = (FULL, time * 4);
    eprintln!("{} s at the same rate", (full + last).as_secs());
    both(&ways[0], full).await?;
    let (before, start) = (ways[0].cpu()?, Instant::now());
    both(&ways[0], last).await?;
    let used = share(ways[0].cpu()? - before, start.elapsed());
    println!(
        "\nCPU of the node in {} s after {} s of both\n  watch    {used:.2}",
        last.as_secs(),
        full.as_secs()
    );
    Ok(ExitCode::SUCCESS)
}
