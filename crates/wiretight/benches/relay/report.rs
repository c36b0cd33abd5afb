//! The head, the tables and the JSON of a run.

use clap::ValueEnum;
use serde_json::{Map, Value, json};

use crate::{
    Scale, Workload,
    common::figures::{Metric, Spread, machine, metric},
    handshake::{Both, Shaken},
    load::Outcome,
    systems::System,
};

/// One workload of one system in one round.
pub(crate) struct Sample {
    pub(crate) round: usize,
    pub(crate) system: System,
    pub(crate) workload: Workload,
    pub(crate) outcome: Outcome,
}

impl Workload {
    /// In the order in which `load` returns their values.
    fn metrics(self) -> &'static [Metric] {
        const BULK: &[Metric] =
            &[metric("cpu_s_per_gb", "CPU s/GB", 2), metric("gb_per_s", "GB/s", 2)];
        const RPS: &[Metric] =
            &[metric("cpu_us_per_request", "CPU us/req", 1), metric("requests_per_s", "req/s", 0)];
        const CONNS: &[Metric] = &[
            metric("cpu_us_per_connection", "CPU us/conn", 0),
            metric("connections_per_s", "conns/s", 0),
        ];
        const IDLE: &[Metric] = &[
            metric("kib_per_connection", "KiB/conn", 1),
            metric("kib_per_connection_after_bulk", "after bulk", 1),
        ];
        const LATENCY: &[Metric] = &[metric("p50_us", "p50 us", 1), metric("p99_us", "p99 us", 1)];
        const HOLD: &[Metric] = &[
            metric("kib_per_connection", "KiB/conn", 1),
            metric("kib_per_connection_least", "least", 1),
            metric("kib_per_connection_most", "most", 1),
            metric("kib_per_connection_at_the_end", "at the end", 1),
        ];
        match self {
            Self::Bulk | Self::Streams => BULK,
            Self::Rps => RPS,
            Self::Conns | Self::Handshake => CONNS,
            Self::Idle => IDLE,
            Self::Latency | Self::Half => LATENCY,
            Self::Hold => HOLD,
        }
    }

    fn key(self) -> &'static str {
        match self {
            Self::Bulk => "bulk",
            Self::Streams => "streams",
            Self::Rps => "rps",
            Self::Conns => "conns",
            Self::Handshake => "handshake",
            Self::Idle => "idle",
            Self::Latency => "latency",
            Self::Half => "half",
            Self::Hold => "hold",
        }
    }

    fn describe(self, scale: &Scale) -> String {
        let seconds = scale.time.as_secs();
        match self {
            Self::Bulk => format!("one stream of {} MiB", scale.bulk_bytes >> 20),
            Self::Streams => format!(
                "{} MiB in 16 streams at a time; Wiretight with two workers a relay",
                scale.bulk_bytes >> 20
            ),
            Self::Rps => format!("requests on 32 kept-alive connections for {seconds} s"),
            Self::Conns => {
                format!("connect, request, response, close: 16 at a time for {seconds} s")
            }
            Self::Handshake => format!(
                "{} connections that are kept, so each with a full handshake: connect, request, response, 16 at a \
                 time, in a new pair",
                scale.handshakes
            ),
            Self::Idle => format!(
                "growth of PSS by {} idle connections, one request each, in a new pair; and a second \
                 after a bulk transfer on 16 of them",
                scale.idle_conns
            ),
            Self::Latency => format!(
                "{} requests one after another on one kept-alive connection",
                scale.latency_requests
            ),
            Self::Half => format!(
                "{:.0} requests a second, evenly, on 32 kept-alive connections for {seconds} s",
                scale.half_rate
            ),
            Self::Hold => format!(
                "growth of PSS by {} connections that are held for {} s, 100 replaced each second",
                scale.held_conns,
                scale.hold_time.as_secs()
            ),
        }
    }
}

/// Collects samples and prints them.
pub(crate) struct Report {
    scale: Scale,
    machine: Vec<(&'static str, String)>,
    /// The systems that run, in the order of the rows.
    systems: Vec<(System, String)>,
    samples: Vec<Sample>,
    /// CPU s/GB of encryption and decryption alone, for each round.
    aead: Vec<f64>,
    /// Handshakes alone, for each round.
    handshakes: Vec<Both>,
}

impl Report {
    /// `systems`: those that run, with their versions, in the order of the rows.
    pub(crate) fn new(scale: Scale, systems: Vec<(System, String)>) -> Self {
        Self {
            scale,
            machine: machine(),
            systems,
            samples: Vec::new(),
            aead: Vec::new(),
            handshakes: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, sample: Sample) {
        self.samples.push(sample);
    }

    pub(crate) fn add_aead(&mut self, cpu_s_per_gb: f64) {
        self.aead.push(cpu_s_per_gb);
    }

    pub(crate) fn add_handshakes(&mut self, both: Both) {
        self.handshakes.push(both);
    }

    pub(crate) fn errors(&self) -> u64 {
        self.samples.iter().map(|sample| sample.outcome.errors.count).sum()
    }

    pub(crate) fn print_header(&self) {
        let Scale { rounds, .. } = self.scale;
        println!(
            "client -> relay A -> mutual TLS 1.3 -> relay B -> origin, on loopback, one worker"
        );
        println!(
            "a relay; CPU and memory are of the two relays. Medians of {rounds} round(s) (min-max)."
        );
        println!();
        for (key, value) in &self.machine {
            println!("{key:<10} {value}");
        }
        for (system, version) in &self.systems {
            println!("{:<10} {version}", system.name());
        }
    }

    /// Prints one table for each workload, and below it the first error of each system that had
    /// any.
    pub(crate) fn print_tables(&self) {
        for &workload in Workload::value_variants() {
            if self.samples.iter().any(|sample| sample.workload == workload) {
                self.print_table(workload);
            }
            if workload == Workload::Bulk {
                self.print_floor();
            }
            if workload == Workload::Handshake {
                self.print_handshakes();
            }
        }
    }

    fn print_table(&self, workload: Workload) {
        println!("\n{}: {}", workload.key(), workload.describe(&self.scale));
        print!("{:<10}", "");
        for Metric { title, .. } in workload.metrics() {
            print!("{title:>12} {:<17}{:>7}{:>7}", "  (min-max)", "/nginx", "/null");
        }
        println!("{:>8}", "errors");
        for &(system, _) in &self.systems {
            print!("{:<10}", system.name());
            for (index, metric) in workload.metrics().iter().enumerate() {
                self.print_cell(workload, system, index, metric.digits);
            }
            let errors: u64 = self.of(workload, system).map(|outcome| outcome.errors.count).sum();
            println!("{errors:>8}");
        }
        for (system, _) in &self.systems {
            let first =
                self.of(workload, *system).find_map(|outcome| outcome.errors.first.as_ref());
            if let Some(error) = first {
                println!("  first error of {}: {error}", system.name());
            }
        }
    }

    /// The bulk row compared with the minimum for any relay that encrypts.
    fn print_floor(&self) {
        let spread = |system| self.spread(Workload::Bulk, system, 0).map(|spread| spread.median);
        let aead = Spread::of(self.aead.iter().copied()).map(|spread| spread.median);
        let (Some(aead), Some(null)) = (aead, spread(System::Null)) else { return };
        let floor = null + aead;
        print!("  AES-256-GCM alone {aead:.2} CPU s/GB; with null, the floor {floor:.2}");
        match spread(System::Wiretight) {
            Some(ours) => println!("; wiretight {:.2} of it", ours / floor),
            None => println!(),
        }
    }

    /// Handshakes alone: those of relays over sockets, compared with rustls in memory.
    fn print_handshakes(&self) {
        let figure = |what: &dyn Fn(&Both) -> f64, digits: usize| {
            let spread = Spread::of(self.handshakes.iter().map(what));
            let cell = |s: Spread| {
                format!("{:.digits$} ({:.digits$}-{:.digits$})", s.median, s.min, s.max)
            };
            spread.map(cell).unwrap_or_default()
        };
        let row = |name: &str, of: fn(&Both) -> Shaken| {
            let (cpu, rate) = (figure(&|b| of(b).cpu_us(), 0), figure(&|b| of(b).per_s(), 0));
            println!("  {name:<52} CPU us {cpu:<16} handshakes/s {rate}");
        };
        if !self.handshakes.is_empty() {
            println!("  handshakes alone, both ends on one thread, which take turns:");
            row("rustls in memory", |b| b.in_memory);
            row("wiretight over sockets, 16 at a time, with connect", |b| b.over_sockets);
            let cpu = figure(&|b| b.in_memory.cpu_us() / b.over_sockets.cpu_us(), 2);
            let rate = figure(&|b| b.over_sockets.per_s() / b.in_memory.per_s(), 2);
            println!("  to rustls in memory: {cpu} by CPU, {rate} by handshakes/s");
        }
    }

    /// Median, range, and the ratios to nginx and to no TLS at all.
    fn print_cell(&self, workload: Workload, system: System, index: usize, digits: usize) {
        let Some(spread) = self.spread(workload, system, index) else {
            print!("{:>12} {:17}{:7}{:7}", "-", "", "", "");
            return;
        };
        let Spread { median, min, max } = spread;
        let range = format!("  ({min:.digits$}-{max:.digits$})");
        let ratio = |to| match self.spread(workload, to, index) {
            Some(other) => format!("{:.2}", median / other.median),
            None => "-".to_owned(),
        };
        let (nginx, null) = (ratio(System::Nginx), ratio(System::Null));
        print!("{median:>12.digits$} {range:<17}{nginx:>7}{null:>7}");
    }

    fn spread(&self, workload: Workload, system: System, index: usize) -> Option<Spread> {
        Spread::of(
            self.of(workload, system).filter_map(|outcome| outcome.values.get(index)).copied(),
        )
    }

    fn of(&self, workload: Workload, system: System) -> impl Iterator<Item = &Outcome> {
        self.samples
            .iter()
            .filter(move |sample| sample.workload == workload && sample.system == system)
            .map(|sample| &sample.outcome)
    }

    /// All rounds, unrounded.
    pub(crate) fn to_json(&self) -> String {
        let named = |key: &str, value: &str| (key.to_owned(), Value::from(value));
        let machine: Map<_, _> =
            self.machine.iter().map(|(key, value)| named(key, value)).collect();
        let systems: Map<_, _> =
            self.systems.iter().map(|(system, version)| named(system.name(), version)).collect();
        let samples = self.samples.iter().map(|sample| {
            let Outcome { values, errors, .. } = &sample.outcome;
            let metrics = sample.workload.metrics().iter().zip(values);
            let metrics: Map<_, _> =
                metrics.map(|(metric, &value)| (metric.key.to_owned(), value.into())).collect();
            json!({
                "round": sample.round,
                "system": sample.system.name(),
                "workload": sample.workload.key(),
                "metrics": metrics,
                "errors": errors.count,
                "first_error": errors.first,
            })
        });
        let shaken = |s: &Shaken| json!({ "cpu_us": s.cpu_us(), "per_s": s.per_s() });
        let handshakes = self.handshakes.iter().map(|both| {
            json!({
                "in_memory": shaken(&both.in_memory),
                "over_sockets": shaken(&both.over_sockets),
            })
        });
        let report = json!({
            "machine": machine,
            "systems": systems,
            "rounds": self.scale.rounds,
            "bulk_bytes": self.scale.bulk_bytes,
            "seconds": self.scale.time.as_secs(),
            "idle_conns": self.scale.idle_conns,
            "latency_requests": self.scale.latency_requests,
            "aead_cpu_s_per_gb": self.aead,
            "handshakes": handshakes.collect::<Vec<_>>(),
            "samples": samples.collect::<Vec<_>>(),
        });
        format!("{report:#}\n")
    }
}
