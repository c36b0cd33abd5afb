//! Servers that try to make a scan hang, crash, use all memory or report wrong facts. Each scan runs in its
//! own process, so that its memory can be measured separately from the server's.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod servers;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs};

use servers::{Kind, all, scans, start};
use wiretight_scan::active::Options;
use wiretight_scan::facts::Answer;
use wiretight_scan::{Reached, Report, Target};

/// The time limit of a scan, and the additional time until its process ends on a busy machine. A scan that ignores
/// its limit in one place takes at least twice as long, and most servers here never close a connection.
const MAX_TIME: Duration = Duration::from_secs(12);
const GRACE: Duration = Duration::from_secs(11);
/// The maximum memory growth of a scan.
const MAX_GROWTH_KB: u64 = 32 << 10;

/// Marks the result between the lines of the test's own output.
const MARK: &str = "of-the-scan ";
const TARGET: &str = "WIRETIGHT_SCAN_TEST_TARGET";

/// The result of a scanning process: its memory growth in kB, and the report.
type Said = (u64, Report);

#[test]
#[ignore = "the other tests start it with a target"]
fn scan_in_a_separate_process() {
    let target: Target = env::var(TARGET).unwrap().parse().unwrap();
    let wiretight_scan::Host::Address(ip, _) = target.host else { panic!("{target}") };
    let address = (ip, target.port).into();
    let options = match env::var_os("DEFAULTS") {
        Some(_) => Options::default(),
        None => Options { timeout: Duration::from_secs(2), max_time: MAX_TIME, ..scans::options() },
    };
    let before = peak();
    let report = scans::scan(&target, address, &options);
    let said: Said = (peak().saturating_sub(before), report);
    println!("\n{MARK}{}", serde_json::to_string(&said).unwrap());
}

/// The peak memory of this process in kB.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Scans the target in another process.
fn scan_apart(target: &Target, defaults: bool) -> Result<Said, String> {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "--nocapture", "scan_in_a_separate_process"]);
    command.env(TARGET, target.to_string()).stdin(Stdio::null());
    if defaults {
        command.env("DEFAULTS", "1");
    }
    let done = command.output().unwrap();
    let out = String::from_utf8_lossy(&done.stdout);
    let said = out.lines().find_map(|line| line.strip_prefix(MARK));
    match said {
        Some(said) if done.status.success() => Ok(serde_json::from_str(said).unwrap()),
        _ => Err(format!("{out}\n{}", String::from_utf8_lossy(&done.stderr))),
    }
}

/// Hostile servers that send something that a scan must accept: TLS 1.2 ServerHellos with a suite, and TLS 1.3
/// HelloRetryRequests. Facts with these prefixes must never be yes for them.
fn speaks(name: &str) -> Option<&'static [&'static str]> {
    match name {
        "hostile-endless-certificates" => Some(&[
            "certificate.",
            "groups.",
            "protocol.tls1_3",
            "session.",
            "signatures.",
            "suites.tls1_2",
            "weak.",
        ]),
        "hostile-endless-retries" => Some(&[
            "certificate.",
            "groups.",
            "protocol.tls1_2",
            "session.",
            "signatures.",
            "suites.tls1_3",
            "weak.",
        ]),
        _ => None,
    }
}

#[test]
fn no_hostile_server_makes_a_scan_hang_grow_crash_or_report_wrong_facts() {
    let begun = Instant::now();
    let hostile = all().into_iter().filter(|c| c.kind == Kind::Hostile).map(|c| c.name);
    let seen = scans::each(hostile, 6, |name| {
        let server = start(name)?;
        let begun = Instant::now();
        let said = scan_apart(&server.target(), false);
        Some((begun.elapsed(), said))
    });
    let mut wrong = Vec::new();
    for (name, (took, said)) in &seen {
        let (grew, report) = match said {
            Ok(said) => said,
            Err(why) => {
                wrong.push(format!("{name} crashed it: {why}"));
                continue;
            }
        };
        println!(
            "{name:30} {:5.1} s, {grew:6} kB more, {:3} connections, {:?}",
            took.as_secs_f64(),
            report.connections,
            report.reached
        );
        if *took > MAX_TIME + GRACE {
            wrong.push(format!("{name} took {:.1} s", took.as_secs_f64()));
        }
        if *grew > MAX_GROWTH_KB {
            wrong.push(format!("{name} made it grow by {grew} kB"));
        }
        let speaks = speaks(name);
        if report.reached == Reached::Tls && speaks.is_none() {
            wrong.push(format!("{name} is said to speak TLS"));
        }
        if matches!(report.reached, Reached::Plaintext { .. }) {
            wrong.push(format!("{name} is said to speak in the clear: {:?}", report.reached));
        }
        for (id, fact) in report.facts.iter() {
            let claimed = matches!(fact.answer, Answer::Yes | Answer::No);
            let never = speaks.is_none_or(|not| not.iter().any(|prefix| id.starts_with(prefix)));
            if claimed && never {
                wrong.push(format!("{name}: {id} is {}: {}", fact.answer, fact.evidence));
            }
        }
    }
    println!("{} servers, {:.1} s", seen.len(), begun.elapsed().as_secs_f64());
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_scan_of_a_silent_host_ends_soon_by_default() {
    let Some(server) = start("hostile-silence") else { return };
    let begun = Instant::now();
    let (_, report) = scan_apart(&server.target(), true).unwrap();
    let took = begun.elapsed();
    println!("{took:?}, {} connections, {:?}", report.connections, report.reached);
    assert!(matches!(report.reached, Reached::Unknown { .. }), "{:?}", report.reached);
    assert!(took < Duration::from_secs(40), "{took:?}");
}
