//! Complete scans.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use wiretight_scan::active::{Options, resolve, scan_address};

use super::proxy::Proxy;
use super::{cpu_of_children, oneself, servers, spread};

/// The round trip to a distant server.
const ROUND_TRIP: Duration = Duration::from_millis(20);

/// All checks of sslyze for a server other than a web server.
const SSLYZE: [&str; 17] = [
    "--sslv2",
    "--sslv3",
    "--tlsv1",
    "--tlsv1_1",
    "--tlsv1_2",
    "--tlsv1_3",
    "--certinfo",
    "--compression",
    "--reneg",
    "--heartbleed",
    "--openssl_ccs",
    "--resum",
    "--ems",
    "--fallback",
    "--early_data",
    "--elliptic_curves",
    "--robot",
];

/// Scans one target, in this process.
pub fn one(target: &str, show: bool) {
    let level = std::env::var("WIRETIGHT_LOG").ok().and_then(|level| level.parse().ok());
    tracing_subscriber::fmt()
        .with_max_level(level.unwrap_or(tracing::Level::ERROR))
        .with_writer(std::io::stderr)
        .init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let target = target.parse().unwrap();
        let options = Options::default();
        for address in resolve(&target, &options).await.unwrap() {
            let report = scan_address(&target, address, &options).await;
            if show {
                for (id, fact) in report.facts.iter() {
                    println!("{id}: {} {:?} ({})", fact.answer, fact.value, fact.evidence);
                }
            }
            println!("{address}: {:.3} s, {} connections", report.seconds, report.connections);
        }
    });
}

/// Scans one address with the round trip, in this process.
pub fn one_far(address: SocketAddr) {
    let proxy = Proxy::start(address, ROUND_TRIP);
    one(&format!("tls://{}", proxy.address), false);
}

/// A program that scans an address.
struct Scanner {
    title: &'static str,
    command: fn(SocketAddr) -> Command,
    /// Other scanners take long.
    most: usize,
}

fn scanners(peers: bool) -> Vec<Scanner> {
    let mut scanners = vec![Scanner {
        title: "wiretight",
        command: |at| oneself(&["one-quiet", &format!("tls://{at}")]),
        most: usize::MAX,
    }];
    if !peers {
        return scanners;
    }
    if Command::new(sslyze()).arg("--help").stdout(Stdio::null()).status().is_ok() {
        scanners.push(Scanner {
            title: "sslyze",
            command: |at| {
                let mut command = Command::new(sslyze());
                // Checks must be listed, because the comparison with a configuration is off.
                command.arg("--mozilla_config=disable").args(SSLYZE).arg(at.to_string());
                command
            },
            most: 3,
        });
    } else {
        println!("skipped: sslyze is not installed");
    }
    if Command::new("testssl").arg("--version").stdout(Stdio::null()).status().is_ok() {
        scanners.push(Scanner {
            title: "testssl.sh",
            command: |at| {
                let mut command = Command::new("testssl");
                command.args(["--quiet", "--warnings", "off", "--color", "0"]);
                command.args(["--ip", "one", &at.to_string()]);
                command
            },
            most: 1,
        });
    } else {
        println!("skipped: testssl.sh is not installed");
    }
    scanners
}

/// The folder where CI installs it, or PATH.
fn sslyze() -> String {
    let target = std::env::var("CARGO_TARGET_DIR")
        .unwrap_or_else(|_| format!("{}/../../target", env!("CARGO_MANIFEST_DIR")));
    let own = [target, format!("{}/../../target", env!("CARGO_MANIFEST_DIR"))]
        .map(|target| format!("{target}/tools/pypi/bin/sslyze"));
    own.into_iter().find(|file| std::fs::exists(file).is_ok_and(|is| is)).unwrap_or("sslyze".into())
}

/// Rounds in which every scanner scans every server.
pub fn run(rounds: usize, peers: bool) {
    let folder = tempfile::tempdir().unwrap();
    let servers = servers::all(folder.path());
    let scanners = scanners(peers);
    println!("\nwhole scans; seconds are the median of the rounds, with the least and the most");
    println!("| server | scanner | rounds | seconds | CPU s | connections |");
    println!("|---|---|---|---|---|---|");
    let mut rows = Vec::new();
    for server in &servers {
        for scanner in &scanners {
            rows.push((server, scanner, Duration::ZERO, server.address, None));
        }
        let proxy = Proxy::start(server.address, ROUND_TRIP);
        rows.push((server, &scanners[0], ROUND_TRIP, proxy.address, Some(proxy)));
    }
    let mut seen: Vec<Vec<(f64, f64, u64)>> = rows.iter().map(|_| Vec::new()).collect();
    for round in 0..rounds {
        for ((_, scanner, _, address, proxy), seen) in rows.iter().zip(&mut seen) {
            if round >= scanner.most {
                continue;
            }
            // s_server -www pauses for a second after it rejected a renegotiation.
            std::thread::sleep(Duration::from_millis(1100));
            let count = || proxy.as_ref().map_or(0, |p| p.connections.load(Relaxed));
            let (cpu, before, begun) = (cpu_of_children(), count(), Instant::now());
            quietly((scanner.command)(*address));
            let seconds = begun.elapsed().as_secs_f64();
            seen.push((seconds, cpu_of_children() - cpu, count() - before));
        }
    }
    for ((server, scanner, round_trip, _, proxy), seen) in rows.iter().zip(&seen) {
        let (median, least, most) = spread(seen.iter().map(|s| s.0).collect());
        let (cpu, ..) = spread(seen.iter().map(|s| s.1).collect());
        let connections = match proxy {
            Some(_) => seen.iter().map(|s| s.2).max().unwrap_or_default(),
            // Connections are counted in a separate run, so that the proxy does not affect the times.
            None => {
                let proxy = Proxy::start(server.address, Duration::ZERO);
                std::thread::sleep(Duration::from_millis(1100));
                quietly((scanner.command)(proxy.address));
                proxy.connections.load(Relaxed)
            }
        };
        let far = if round_trip.is_zero() { "" } else { ", 20 ms away" };
        println!(
            "| {}{far} | {} | {} | {median:.2} ({least:.2}-{most:.2}) | {cpu:.2} | {connections} |",
            server.title,
            scanner.title,
            seen.len(),
        );
    }
}

fn quietly(mut command: Command) {
    let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let _ = command.status().unwrap();
}
