//! Every test server starts, listens, and stops.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod servers;

use std::env;
use std::io::Read;
use std::time::Instant;

use servers::{Kind, all, start};

/// `ONLY=nginx` skips the others.
fn wanted(name: &str) -> bool {
    env::var("ONLY").is_ok_and(|only| only.split(',').any(|part| name.contains(part)))
}

#[test]
fn every_server_starts_on_its_own_port() {
    for config in all() {
        if config.kind == Kind::Hostile || (env::var("ONLY").is_ok() && !wanted(config.name)) {
            continue;
        }
        let begun = Instant::now();
        if let Some(running) = start(config.name) {
            let seconds = begun.elapsed().as_secs_f64();
            println!("{:32} {seconds:6.2} s {} {}", running.name, running.address, running.shown);
        }
    }
}

/// For manual tests: `ONLY=nginx,old cargo test -p wiretight-scan --test reach -- --ignored --nocapture` keeps these
/// servers running until the end of standard input.
#[test]
#[ignore = "for manual tests: it waits for input"]
fn servers_run_until_the_input_ends() {
    let running: Vec<_> = all()
        .iter()
        .filter(|config| wanted(config.name))
        .filter_map(|config| start(config.name))
        .collect();
    for server in &running {
        println!("{:32} {} {}", server.name, server.target(), server.shown);
    }
    let _ = std::io::stdin().read(&mut [0]);
}
