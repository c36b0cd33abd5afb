//! Figures of several rounds, and the machine that they are from.

use std::{fs, process::Command};

use super::process::first_line;

/// The format of a figure.
pub(crate) struct Metric {
    pub(crate) key: &'static str,
    pub(crate) title: &'static str,
    /// Digits after the decimal point.
    pub(crate) digits: usize,
}

pub(crate) const fn metric(key: &'static str, title: &'static str, digits: usize) -> Metric {
    Metric { key, title, digits }
}

/// The values of one figure in several rounds.
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// `None` if there are no values. The median of an even number of values is the mean of the
    /// middle two.
    pub(crate) fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let (&min, &max) = (values.first()?, values.last()?);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            0 => (values[middle - 1] + values[middle]) / 2.0,
            _ => values[middle],
        };
        Some(Self { median, min, max })
    }
}

/// The machine that the figures are from.
pub(crate) fn machine() -> Vec<(&'static str, String)> {
    let read = |path| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown", |(_, model)| model);
    // The cores of the machine: this process may be restricted to some of them.
    let cores = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let openssl = first_line(Command::new("openssl").arg("version"));
    vec![
        ("cpu", format!("{model}, {cores} cores")),
        ("kernel", read("/proc/sys/kernel/osrelease")),
        ("load", format!("{} before the run", read("/proc/loadavg"))),
        ("openssl", openssl.unwrap_or_else(|| "unknown".to_owned())),
    ]
}
