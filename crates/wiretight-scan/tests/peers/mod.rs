//! Results of other scanners for the same servers, under our ids.
//!
//! A fact that a scanner does not test, or is not sure of, has no entry.

pub mod sslyze;
pub mod testssl;

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use wiretight_scan::facts::{Answer, Facts, Value};

/// The result of a scanner.
pub struct Said {
    /// Facts under our ids, including rejected suites and groups.
    pub facts: Facts,
    pub took: Duration,
    /// Why facts are missing.
    pub trouble: Option<String>,
}

/// The facts with the same answer and, if both have one, the same value.
pub fn agreed(one: &Facts, other: &Facts) -> Facts {
    let mut both = Facts::default();
    for (id, fact) in one.iter() {
        let Some(second) = other.get(id) else { continue };
        if same(fact.answer, fact.value.as_ref(), second.answer, second.value.as_ref()) {
            let value = fact.value.clone().or_else(|| second.value.clone());
            both.set(
                id.to_owned(),
                fact.answer,
                value,
                format!("{}; {}", fact.evidence, second.evidence),
            );
        }
    }
    both
}

/// The ids on which they differ, with both facts.
pub fn differ(one: &Facts, other: &Facts) -> Vec<(String, String, String)> {
    let pairs = one.iter().filter_map(|(id, fact)| Some((id, fact, other.get(id)?)));
    pairs
        .filter(|(_, a, b)| !same(a.answer, a.value.as_ref(), b.answer, b.value.as_ref()))
        .map(|(id, a, b)| {
            (id.to_owned(), show(a.answer, a.value.as_ref()), show(b.answer, b.value.as_ref()))
        })
        .collect()
}

/// Whether two facts agree. A value that only one has does not matter, nor does the order of a list.
pub fn same(one: Answer, value: Option<&Value>, other: Answer, second: Option<&Value>) -> bool {
    let sorted = |value: &Value| match value {
        Value::List(names) => {
            let mut names = names.clone();
            names.sort_unstable();
            Value::List(names)
        }
        value => value.clone(),
    };
    one == other
        && match (value, second) {
            (Some(a), Some(b)) => sorted(a) == sorted(b),
            _ => true,
        }
}

/// The text for a table.
pub fn show(answer: Answer, value: Option<&Value>) -> String {
    match value {
        None => answer.to_string(),
        Some(Value::Number(n)) => format!("{answer} ({n})"),
        Some(Value::Text(text)) => format!("{answer} ({text})"),
        Some(Value::List(names)) => format!("{answer} ({})", names.join(" ")),
    }
}

fn yes_or_no(yes: bool) -> Answer {
    if yes { Answer::Yes } else { Answer::No }
}

/// The bits of the weakest of several keys: a 256-bit curve is stronger than RSA with 2048 bits
/// (NIST SP 800-57 part 1, table 2).
fn weakest(bits: impl IntoIterator<Item = u64>) -> Option<u64> {
    bits.into_iter().min_by_key(|bits| match bits {
        ..=521 => bits / 2,
        522..2048 => 80,
        2048..3072 => 112,
        _ => 128 + bits / 1024,
    })
}

/// The registry names of curves with OpenSSL's names.
fn group(name: &str) -> Option<&'static str> {
    let registered = match name {
        "prime256v1" => "secp256r1",
        "prime192v1" => "secp192r1",
        "X25519" => "x25519",
        "X448" => "x448",
        name => name,
    };
    wiretight_scan::names::Group::from_name(registered).map(|group| group.name)
}

/// Runs a scanner until it ends or reaches the time limit.
fn run(command: &mut Command, dir: &Path, limit: Duration) -> (Duration, Option<String>) {
    use std::os::unix::process::CommandExt;
    let log = std::fs::File::create(dir.join("log")).unwrap();
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .process_group(0)
        .current_dir(dir);
    let begun = Instant::now();
    let mut kid = command.spawn().unwrap();
    loop {
        if kid.try_wait().unwrap().is_some() {
            return (begun.elapsed(), None);
        }
        if begun.elapsed() > limit {
            let _ = kill_process_group(Pid::from_child(&kid), Signal::KILL);
            let _ = kid.wait();
            return (
                begun.elapsed(),
                Some(format!("it did not finish within {} s", limit.as_secs())),
            );
        }
        thread::sleep(Duration::from_millis(20));
    }
}
