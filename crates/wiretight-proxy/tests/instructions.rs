//! What a pair of relays costs, in instructions: fixed workloads under callgrind, against the counts in
//! instructions.txt. Unlike times, they are the same on a busy machine. Who makes a workload cheaper, or has a
//! reason to make it dearer, stores what the failure prints.

#![allow(clippy::unwrap_used, reason = "a test says so by panicking")]

mod rig;

use std::io::{Read, Write};
use std::process::Command;

use rig::foreign::missing;
use rig::*;

/// How far a count may be from what is stored, either way: scheduling moves it by less than a hundredth.
const BOUND: f64 = 0.05;
/// Names the workload in the process that runs it, and how often it runs.
const WORKLOAD: &str = "WIRETIGHT_WORKLOAD";

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
        // What one more takes: start and end of the process are in both.
        let each = (count(name, 3 * times) - count(name, times)) / (2 * times);
        println!("{name} {times} {each}");
        if (each as f64 - stored).abs() > stored * BOUND {
            wrong += &format!("{name} {times} {each} (stored: {stored})\n");
        }
    }
    assert!(wrong.is_empty(), "not within {BOUND} of what is stored:\n{wrong}");
}

/// Instructions of a process that runs the workload so often.
fn count(name: &str, times: u64) -> u64 {
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    command.arg(std::env::current_exe().unwrap()).args(["--ignored", "--exact", "workload"]);
    let out = command.env(WORKLOAD, format!("{name} {times}")).output().unwrap();
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{text}\n{}", String::from_utf8_lossy(&out.stdout));
    let count = text.lines().find_map(|line| line.split_once("Collected : "));
    count.unwrap_or_else(|| panic!("{text}")).1.trim().parse().unwrap()
}

#[test]
#[ignore = "run by the other test, under callgrind"]
fn workload() {
    let workload = std::env::var(WORKLOAD).unwrap();
    let (name, times) = workload.split_once(' ').unwrap();
    let times: usize = times.parse().unwrap();
    let pair = Pair::new(&[backend(echo)]);
    let mut socket = pair.connect();
    ping(&mut socket, b"ready").unwrap();
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
}
