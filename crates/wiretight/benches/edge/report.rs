//! The head, the tables and the JSON of a run.

use clap::ValueEnum;
use serde_json::{Map, Value, json};

use crate::{
    Scale, Workload,
    common::figures::{Metric, Spread, machine, metric},
    floor::Floor,
    systems::System,
};

/// One workload of one system in one round.
pub(crate) struct Sample {
    pub(crate) round: usize,
    pub(crate) system: System,
    pub(crate) workload: Workload,
    /// In the order of the workload's metrics.
    pub(crate) values: Vec<f64>,
}

impl Workload {
    /// In the order in which `load` returns their values.
    fn metrics(self) -> &'static [Metric] {
        const TIMED: &[Metric] = &[
            metric("cpu_us_per_request", "CPU us/req", 1),
            metric("requests_per_s", "req/s", 0),
            metric("core_used", "core used", 2),
        ];
        const IDLE: &[Metric] = &[
            metric("pss_kib_per_connection", "PSS KiB/conn", 1),
            metric("rss_kib_per_connection", "RSS KiB/conn", 1),
        ];
        if self == Self::Idle { IDLE } else { TIMED }
    }

    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::H1Small => "h1-1k",
            Self::H1Large => "h1-64k",
            Self::H2 => "h2",
            Self::H3 => "h3",
            Self::X25519 => "x25519",
            Self::Mlkem => "mlkem",
            Self::Idle => "idle",
        }
    }

    fn describe(self, scale: &Scale) -> String {
        match self {
            Self::H1Small => "HTTP/1.1, 64 kept-alive connections, 1 KiB".to_owned(),
            Self::H1Large => "HTTP/1.1, 64 kept-alive connections, 64 KiB".to_owned(),
            Self::H2 => "HTTP/2, 8 connections with 8 requests at a time, 1 KiB".to_owned(),
            Self::H3 => "HTTP/3, 8 connections with 8 requests at a time, 1 KiB".to_owned(),
            Self::X25519 => "connect, full handshake with X25519, 1 KiB, close".to_owned(),
            Self::Mlkem => "connect, full handshake with X25519MLKEM768, 1 KiB, close".to_owned(),
            Self::Idle => format!(
                "growth of memory by {} idle connections of HTTP/1.1, one request each, in a new process",
                scale.idle_conns
            ),
        }
    }

    /// The lower bound of the cost, and what it consists of.
    fn floor(self, floor: &Floor) -> Option<(f64, &'static str)> {
        match self {
            Self::X25519 => Some((floor.x25519_us, "P-256 signature and X25519")),
            Self::Mlkem => Some((floor.mlkem_us, "P-256 signature and X25519MLKEM768")),
            _ => None,
        }
    }
}

/// Collects samples and prints them.
pub(crate) struct Report {
    scale: Scale,
    machine: Vec<(&'static str, String)>,
    /// The systems that run, in the order of the rows.
    systems: Vec<(System, String)>,
    floor: Floor,
    samples: Vec<Sample>,
}

impl Report {
    /// `systems`: those that run, with their versions, in the order of the rows.
    pub(crate) fn new(scale: Scale, systems: Vec<(System, String)>, floor: Floor) -> Self {
        Self { scale, machine: machine(), systems, floor, samples: Vec::new() }
    }

    pub(crate) fn add(&mut self, sample: Sample) {
        self.samples.push(sample);
    }

    pub(crate) fn print_header(&self) {
        let Scale { rounds, time, .. } = self.scale;
        println!(
            "client -> TLS 1.3 -> reverse proxy -> plain HTTP -> backend, on loopback; one core"
        );
        println!("for the proxy, another for clients and backend. CPU and memory are the proxy's.");
        println!("Medians of {rounds} round(s) (min-max), {} s each.", time.as_secs());
        println!();
        for (key, value) in &self.machine {
            println!("{key:<10} {value}");
        }
        for (system, version) in &self.systems {
            println!("{:<10} {version}", system.name());
        }
        println!(
            "{:<10} {:.0} requests/s of 1 KiB over plain HTTP with no proxy",
            "load", self.floor.direct_per_s
        );
    }

    pub(crate) fn print_tables(&self) {
        for &workload in Workload::value_variants() {
            if self.samples.iter().any(|sample| sample.workload == workload) {
                self.print_table(workload);
            }
        }
    }

    fn print_table(&self, workload: Workload) {
        println!("\n{}: {}", workload.key(), workload.describe(&self.scale));
        print!("{:<10}", "");
        for Metric { title, .. } in workload.metrics() {
            print!("{title:>13} {:<18}{:>6}", "  (min-max)", "/ours");
        }
        println!();
        for &(system, _) in self.systems.iter().filter(|(system, _)| system.can(workload)) {
            print!("{:<10}", system.name());
            for (index, metric) in workload.metrics().iter().enumerate() {
                self.print_cell(workload, system, index, metric.digits);
            }
            println!();
        }
        if let Some((us, what)) = workload.floor(&self.floor) {
            println!("{:<10}{us:>13.1}   {what} alone (aws-lc-rs)", "floor");
        }
    }

    /// Median, range, and the ratio to Wiretight.
    fn print_cell(&self, workload: Workload, system: System, index: usize, digits: usize) {
        let Some(spread) = self.spread(workload, system, index) else {
            print!("{:>13} {:24}", "-", "");
            return;
        };
        let Spread { median, min, max } = spread;
        let range = format!("  ({min:.digits$}-{max:.digits$})");
        let ratio = match self.spread(workload, System::Wiretight, index) {
            Some(ours) => format!("{:.2}", median / ours.median),
            None => "-".to_owned(),
        };
        print!("{median:>13.digits$} {range:<18}{ratio:>6}");
    }

    fn spread(&self, workload: Workload, system: System, index: usize) -> Option<Spread> {
        let samples = self
            .samples
            .iter()
            .filter(|sample| sample.workload == workload && sample.system == system);
        Spread::of(samples.filter_map(|sample| sample.values.get(index)).copied())
    }

    /// All rounds, unrounded.
    pub(crate) fn to_json(&self) -> String {
        let named = |key: &str, value: &str| (key.to_owned(), Value::from(value));
        let machine: Map<_, _> =
            self.machine.iter().map(|(key, value)| named(key, value)).collect();
        let systems: Map<_, _> =
            self.systems.iter().map(|(system, version)| named(system.name(), version)).collect();
        let samples = self.samples.iter().map(|sample| {
            let metrics = sample.workload.metrics().iter().zip(&sample.values);
            let metrics: Map<_, _> =
                metrics.map(|(metric, &value)| (metric.key.to_owned(), value.into())).collect();
            json!({
                "round": sample.round,
                "system": sample.system.name(),
                "workload": sample.workload.key(),
                "metrics": metrics,
            })
        });
        let report = json!({
            "machine": machine,
            "systems": systems,
            "rounds": self.scale.rounds,
            "seconds": self.scale.time.as_secs(),
            "idle_conns": self.scale.idle_conns,
            "floor": {
                "x25519_us": self.floor.x25519_us,
                "mlkem_us": self.floor.mlkem_us,
                "direct_requests_per_s": self.floor.direct_per_s,
            },
            "samples": samples.collect::<Vec<_>>(),
        });
        format!("{report:#}\n")
    }
}
