//! The throughput of the transparency log's parts: `scripts/bench log`.

#![allow(clippy::unwrap_used, reason = "in a benchmark, whatever is not there ends it")]

#[path = "../../tests/common/mod.rs"]
mod common;
#[allow(dead_code, reason = "made for tests; not all of it is needed here")]
#[path = "../../tests/log/rig.rs"]
mod rig;
mod sequencer;
mod witness;

fn main() {
    if std::env::args().any(|arg| arg == "--help") {
        println!(
            "usage: scripts/bench log [SECONDS]: the throughput of the sequencer, and of a witness with many logs"
        );
        return;
    }
    let seconds = std::env::args().filter_map(|arg| arg.parse().ok()).next().unwrap_or(5);
    sequencer::run(seconds);
    println!();
    witness::run(seconds);
}
