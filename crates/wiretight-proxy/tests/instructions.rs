//! The cost of a pair of relays, in instructions: fixed workloads under callgrind, compared with the counts in
//! instructions.txt. Unlike times, they do not depend on the machine's load. After an improvement, or an intended
//! regression, store what the failure prints.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod rig;

use std::io::{Read, Write};
use std::process::Command;
use std::time::Duration;

use rig::foreign::missing;
use rig::*;

/// The tolerance relative to the stored count; scheduling changes it by a percent or two.
const BOUND: f64 = 0.05;
/// Passes the workload's name and number of runs to the child process.
const WORKLOAD: &str = "WIRETIGHT_WORKLOAD";
/// Precedes the number of handshakes in the child's output.
const HANDSHAKES: &str = "handshakes so far: ";
/// The most pairs of runs in which this number may differ.
const TRIES: usize = 10;

#[test]
fn workloads_take_the_stored_number_of_instructions() {
    if missing("valgrind") {
        return;
    }
    let mut wrong = String::new();
    for line in include_str!("instructions.txt").lines() {
        let [name, times, stored] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("instructions.txt: {line:?} is not NAME TIMES COUNT")
        };
        let (times, stored): (u64, f64) = (times.parse().unwrap(), stored.parse().unwrap());
        // The cost of one more run: both runs include start and stop of the process, and the same number of
        // handshakes. (On a busy machine the pool may connect once more or less often.)
        let (few, many) = (0..TRIES)
            .map(|_| (count(name, times), count(name, 3 * times)))
            .find(|(few, many)| few.handshakes == many.handshakes)
            .unwrap_or_else(|| {
                panic!("{name}: never as many handshakes in both of {TRIES} pairs of runs")
            });
        let each = (many.instructions - few.instructions) / (2 * times);
        println!("{name} {times} {each}");
        if (each as f64 - stored).abs() > stored * BOUND {
            wrong += &format!("{name} {times} {each} (stored: {stored})\n");
        }
    }
    assert!(wrong.is_empty(), "not within {BOUND} of what is stored:\n{wrong}");
}

/// The cost of a process that runs the workload this often.
struct Count {
    instructions: u64,
    handshakes: u64,
}

fn count(name: &str, times: u64) -> Count {
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    command.arg(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "--nocapture", "workload"]);
    let out = command.env(WORKLOAD, format!("{name} {times}")).output().unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{text}");
    let number = |label| {
        let found = text.lines().find_map(|line| line.split_once(label));
        found.unwrap_or_else(|| panic!("no {label:?} in {text}")).1.trim().parse().unwrap()
    };
    Count { instructions: number("Collected : "), handshakes: number(HANDSHAKES) }
}

#[test]
#[ignore = "run by the other test, under callgrind"]
fn workload() {
    let workload = std::env::var(WORKLOAD).unwrap();
    let (name, times) = workload.split_once(' ').unwrap();
    let times: usize = times.parse().unwrap();
    let pair = Pair::new(&[backend(echo)]);
    // Wait until the pool has as many idle connections as it wants, so that it starts no others during the
    // measurement.
    let settle = |used: u64| {
        eventually("the pool is warm", || {
            (sums(&pair.a).live, sums(&pair.a).idle >= 2) == (used, true)
        });
        std::thread::sleep(Duration::from_millis(500));
    };
    let mut socket = pair.connect();
    ping(&mut socket, b"ready").unwrap();
    settle(1);
    match name {
        "request" => (0..times).for_each(|_| ping(&mut socket, &[7; 128]).unwrap()),
        "connection" => (0..times).for_each(|_| ping(&mut pair.connect(), &[7; 128]).unwrap()),
        "mebibyte" => {
            let mut writer = socket.try_clone().unwrap();
            let sent = std::thread::spawn(move || {
                (0..times).for_each(|_| writer.write_all(&[7; 1 << 20]).unwrap());
            });
            let mut got = vec![0; 1 << 20];
            (0..times).for_each(|_| socket.read_exact(&mut got).unwrap());
            sent.join().unwrap();
        }
        other => panic!("there is no workload {other:?}"),
    }
    drop(socket);
    settle(0);
    println!("{HANDSHAKES}{}", sums(&pair.a).handshakes);
}
