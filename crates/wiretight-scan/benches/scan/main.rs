//! Benchmarks of scans: `scripts/bench scan`. Complete scans of a server, compared to other scanners, and the
//! first contact with many hosts.

#![allow(clippy::unwrap_used, reason = "in a benchmark, whatever is not there ends it")]

mod first;
mod proxy;
mod servers;
mod whole;

const USAGE: &str = "usage: scripts/bench scan [--quick] [--rounds N] [--hosts N] [--without-peers]

Whole scans of servers on loopback, beside sslyze and testssl.sh where they are installed, and over a proxy that adds a
round trip of 20 ms; then one hello to each of many hosts (1,000,000 unless --hosts says otherwise).";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let given: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match given[..] {
        // Separate processes, so that their resources can be measured separately.
        ["one", target] => whole::one(target, true),
        ["one-far", address] => whole::one_far(address.parse().unwrap()),
        ["one-quiet", target] => whole::one(target, false),
        ["respond"] => first::respond(),
        ["hosts", file] => first::hosts(file),
        ["floor", hosts, port] => first::floor(hosts.parse().unwrap(), port.parse().unwrap()),
        _ if given.contains(&"--help") => println!("{USAGE}"),
        _ => {
            let quick = given.contains(&"--quick");
            let number = |name: &str, otherwise: usize| {
                let at = given.iter().position(|given| *given == name);
                at.map_or(otherwise, |at| given[at + 1].parse().unwrap())
            };
            let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
            println!("load before the run: {}", load.trim());
            let rounds = number("--rounds", if quick { 3 } else { 15 });
            whole::run(rounds, !given.contains(&"--without-peers"));
            first::run(number("--hosts", if quick { 50_000 } else { 1_000_000 }));
        }
    }
}

/// This program with other arguments.
fn oneself(arguments: &[&str]) -> std::process::Command {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(arguments);
    command
}

/// The median, the minimum and the maximum.
fn spread(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2], values[0], values[values.len() - 1])
}

/// CPU time of children that have ended, in seconds (proc_pid_stat(5): cutime and cstime, in ticks).
fn cpu_of_children() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks = |number: usize| fields[number - 3].parse::<f64>().unwrap();
    (ticks(16) + ticks(17)) / 100.0
}
