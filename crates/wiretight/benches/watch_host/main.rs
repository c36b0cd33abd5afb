//! `scripts/bench watch --host`: what `[watch]` costs a machine, and what it does to the traffic.
//!
//! Two pairs of machines, which are network namespaces connected by a veth pair, as root. On the server of one runs a node
//! with `[watch]`, on the other the same node without. Each workload runs over one and then over the other, in each round.
//! CPU is that of the node with all of its children. The kernel's part (connection tracking, copies of first packets) is
//! in the time of whoever sends a packet, and so in the traffic's figures.

#[path = "../common/mod.rs"]
mod common;

use std::{
    fs::File,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    process::{Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use clap::Parser;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::common::{
    figures::{Spread, machine},
    loopback, node,
    process::{Lab, Process},
    procfs,
};

/// The length of a response.
const RESPONSE: usize = 1024;
const REQUEST: &[u8] = b"GET /page HTTP/1.1\r\nhost: bench.test\r\n\r\n";
/// New connections a second, and bytes a second (1 Gbit/s).
const FLOWS: u32 = 1000;
const BYTES: usize = 125_000_000;
/// Bytes of a transfer at full speed.
const BULK: usize = 4 << 30;
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 76, 0, 2);
const WEB: u16 = 80;
const SINK: u16 = 9;

/// What `[watch]` costs, with and without it.
#[derive(Parser)]
#[command(name = "scripts/bench watch --host")]
struct Args {
    /// Rounds; in each, every workload runs with and without [watch] [default: 9, quick: 1]
    #[arg(long)]
    rounds: Option<usize>,
    /// A short run to test the benchmark; its figures are not meaningful
    #[arg(long)]
    quick: bool,
    /// Seconds of a timed workload in a round [default: 20, quick: 2]
    #[arg(long)]
    seconds: Option<u64>,
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

/// Two namespaces on one wire; removed when dropped.
struct Machines {
    client: String,
    server: String,
}

impl Machines {
    fn new(name: &str) -> anyhow::Result<Machines> {
        let id = format!("wtb{}{name}", std::process::id());
        let machines = Machines { client: format!("{id}c"), server: format!("{id}s") };
        let Machines { client, server } = &machines;
        for line in [
            format!("netns add {client}"),
            format!("netns add {server}"),
            format!("-n {client} link add eth0 type veth peer name eth0 netns {server}"),
            format!("-n {client} addr add 10.76.0.1/24 dev eth0"),
            format!("-n {server} addr add {SERVER}/24 dev eth0"),
            format!("-n {client} link set eth0 up"),
            format!("-n {server} link set eth0 up"),
            format!("-n {server} link set lo up"),
        ] {
            let status = Command::new("ip").args(line.split(' ')).status()?;
            ensure!(status.success(), "ip {line}");
        }
        Ok(machines)
    }

    /// Runs a function on a thread in a namespace.
    fn on<T: Send + 'static>(
        namespace: &str,
        body: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<thread::JoinHandle<anyhow::Result<T>>> {
        let file = File::open(format!("/run/netns/{namespace}"))?;
        Ok(thread::spawn(move || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
            body()
        }))
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        for namespace in [&self.client, &self.server] {
            let _ = Command::new("ip").args(["netns", "del", namespace]).status();
        }
    }
}

/// Answers requests, one connection after the other; and swallows bytes.
fn serve(machines: &Machines) -> anyhow::Result<()> {
    let at = |port: u16| SocketAddr::from((SERVER, port));
    Machines::on(&machines.server, move || -> anyhow::Result<()> {
        let web = TcpListener::bind(at(WEB))?;
        let mut request = [0; REQUEST.len()];
        loop {
            let (mut stream, _) = web.accept()?;
            if stream.read_exact(&mut request).is_ok() {
                let _ = stream.write_all(&[b'x'; RESPONSE]);
            }
        }
    })?;
    Machines::on(&machines.server, move || -> anyhow::Result<()> {
        let sink = TcpListener::bind(at(SINK))?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            let (mut stream, _) = sink.accept()?;
            while stream.read(&mut buffer)? > 0 {}
            let _ = stream.write_all(b"k");
        }
    })?;
    Ok(())
}

/// A connection with one request; how long it took.
fn ask() -> anyhow::Result<Duration> {
    let start = Instant::now();
    let mut stream = TcpStream::connect((SERVER, WEB))?;
    stream.write_all(REQUEST)?;
    stream.read_exact(&mut [0; RESPONSE])?;
    Ok(start.elapsed())
}

/// [`FLOWS`] new connections a second: how long each took.
fn ask_at_a_rate(time: Duration) -> anyhow::Result<Vec<Duration>> {
    let start = Instant::now();
    let mut times = Vec::new();
    for number in 0.. {
        let due = Duration::from_secs(1) / FLOWS * number;
        if due > time {
            break;
        }
        thread::sleep((start + due).saturating_duration_since(Instant::now()));
        times.push(ask()?);
    }
    Ok(times)
}

/// [`BYTES`] a second.
fn send_at_a_rate(time: Duration) -> anyhow::Result<()> {
    const EVERY: Duration = Duration::from_millis(1);
    let mut stream = TcpStream::connect((SERVER, SINK))?;
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
    let mut stream = TcpStream::connect((SERVER, SINK))?;
    let piece = vec![b'x'; 1 << 20];
    let start = Instant::now();
    for _ in 0..bytes / piece.len() {
        stream.write_all(&piece)?;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    stream.read_exact(&mut [0])?;
    Ok(bytes as f64 / start.elapsed().as_secs_f64())
}

/// The figures of one round and way, in the order of [`FIGURES`].
type Round = Vec<f64>;

const FIGURES: [(&str, usize); 8] = [
    ("node's CPU when idle, % of a core", 2),
    ("node's CPU at 1,000 new connections/s and 1 Gbit/s, % of a core", 2),
    ("of that, us for each new connection", 1),
    ("connections made in time, %", 1),
    ("time of a connection then, p50 us", 1),
    ("time of a connection then, p99 us", 1),
    ("one connection after the other, connections/s", 0),
    ("one stream at full speed, GB/s", 2),
];

async fn measure(
    machines: &Machines,
    node: &Process,
    time: Duration,
    quick: bool,
) -> anyhow::Result<Round> {
    let cpu = || procfs::cpu(&[node.id()]);
    let share = |used: Duration, of: Duration| 100.0 * used.as_secs_f64() / of.as_secs_f64();
    let client = &machines.client;
    let finish = |handle: thread::JoinHandle<anyhow::Result<()>>| {
        handle.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?
    };
    // Rounds before have left connections to list.
    let (before, start) = (cpu()?, Instant::now());
    tokio::time::sleep(time / 2).await;
    let idle = share(cpu()? - before, start.elapsed());

    let (before, start) = (cpu()?, Instant::now());
    let bulk = Machines::on(client, move || send_at_a_rate(time))?;
    let asked = Machines::on(client, move || ask_at_a_rate(time))?;
    let asked = tokio::task::spawn_blocking(move || asked.join()).await?;
    let mut times = asked.map_err(|_| anyhow::anyhow!("a thread panicked"))??;
    finish(bulk)?;
    // What the node has not read yet, or adds up later, is its work too.
    let took = start.elapsed();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let used = cpu()? - before;
    times.sort();
    let at = |percent: usize| times[times.len() * percent / 100].as_secs_f64() * 1e6;
    let wanted = f64::from(FLOWS) * time.as_secs_f64();

    let one_by_one = Machines::on(client, move || {
        let start = Instant::now();
        let mut done = 0.0;
        while start.elapsed() < time / 4 {
            ask()?;
            done += 1.0;
        }
        Ok(done / start.elapsed().as_secs_f64())
    })?;
    let one_by_one = tokio::task::spawn_blocking(move || one_by_one.join()).await?;
    let fast = Machines::on(client, move || send_all(if quick { BULK / 16 } else { BULK }))?;
    let fast = tokio::task::spawn_blocking(move || fast.join()).await?;
    let panicked = |_| anyhow::anyhow!("a thread panicked");
    Ok(vec![
        idle,
        share(used, took),
        used.as_secs_f64() * 1e6 / times.len() as f64,
        100.0 * times.len() as f64 / wanted,
        at(50),
        at(99),
        one_by_one.map_err(panicked)??,
        fast.map_err(panicked)?? / 1e9,
    ])
}

async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let pick = |full: u64, quick| if args.quick { quick } else { full };
    let rounds = args.rounds.unwrap_or(pick(9, 1) as usize).max(1);
    let time = Duration::from_secs(args.seconds.unwrap_or(pick(20, 2)));
    let lab = Lab::new(loopback(0))?;
    let mut ways = Vec::new();
    for (name, section) in [("watch", "[watch]\n"), ("none", "")] {
        let machines = Machines::new(name)?;
        serve(&machines)?;
        let run = lab.run(name)?;
        let rest = format!("[authority]\nlisten = \"127.0.0.1:7400\"\n{section}");
        let config = node::config(&run, "auth1", loopback(7490), &rest)?;
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", machines.server)).arg("--");
        command.arg(node::WIRETIGHT).args(["run", "--config"]).arg(config);
        let node = run.spawn(name, &mut command)?;
        ways.push((name, machines, node));
    }
    // Until both have started, and the first list is read.
    tokio::time::sleep(Duration::from_secs(4)).await;
    for (name, _, node) in &ways {
        let expected = if *name == "watch" { 4 } else { 1 };
        let family = procfs::family_size(node.id())?;
        ensure!(family == expected, "{name}: {family} processes\n{}", node.log());
    }
    println!("{rounds} round(s) of {} s; medians (min-max)", time.as_secs());
    for (key, value) in machine() {
        println!("{key:<10} {value}");
    }
    println!("{:<10} {}", "wiretight", node::version().unwrap_or_default());
    let mut samples: [Vec<Round>; 2] = Default::default();
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        // Each round uses another order.
        for n in [round % 2, (round + 1) % 2] {
            let (name, machines, node) = &ways[n];
            let figures = measure(machines, node, time, args.quick).await;
            samples[n].push(figures.with_context(|| format!("{name}: {}", node.log()))?);
        }
    }
    for (index, (title, digits)) in FIGURES.into_iter().enumerate() {
        println!("\n{title}");
        for (samples, (name, ..)) in samples.iter().zip(&ways) {
            let Some(Spread { median, min, max }) = Spread::of(samples.iter().map(|s| s[index]))
            else {
                continue;
            };
            println!("  {name:<8} {median:.digits$} ({min:.digits$}-{max:.digits$})");
        }
        let ratio = samples[0].iter().zip(&samples[1]).map(|(w, n)| w[index] / n[index]);
        if let Some(Spread { median, min, max }) = Spread::of(ratio.filter(|r| r.is_finite())) {
            println!("  watch / none: {median:.3} ({min:.3}-{max:.3})");
        }
    }
    Ok(ExitCode::SUCCESS)
}
