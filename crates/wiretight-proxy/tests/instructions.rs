//! What a pair of relays costs, in instructions: fixed workloads under callgrind, against the counts in
//! instructions.txt. Unlike times, they are the same on a busy machine. Who makes a workload cheaper, or has a
//! reason to make it dearer, stores what the failure prints.

#![allow(clippy::unwrap_used, reason = "a test says so by panicking")]

mod rig;

use std::io::{Read, Write};
use std::process::Command;
use std::time::Duration;

use rig::foreign::missing;
use rig::*;

/// How far a count may be from what is stored, either way: scheduling moves it by a hundredth or two.
const BOUND: f64 = 0.05;
/// Names the workload in the process that runs it, and how often it runs.
const WORKLOAD: &str = "WIRETIGHT_WORKLOAD";
/// Stands before the number of handshakes, in what that process prints.
const HANDSHAKES: &str = "handshakes so far: ";
/// So many pairs of runs may differ in it.
const TRIES: usize = 10;

#[test]
fn workloads_take_the_instructions_that_are_stored() {
    if missing("valgrind") {
        return;
    }
    let mut wrong = String::new();
    for line in include_str!("instructions.txt").lines() {
        let [name, times, stored] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("instructions.txt: {line:?} is not NAME TIMES COUNT")
        };
        let (times, stored): (u64, f64) = (times.parse().unwrap(), stored.parse().unwrap());
        // What one more takes: start and end of the process are in both, and as many handshakes. (A machine that
        // is busy elsewhere can make the pool find itself short once more, or once less.)
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

/// What a process that runs the workload so often took.
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
    // As many connections as the pool wants are at rest: no other is begun. One that is on its way has arrived
    // when the wait is over.
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
