//! `wiretight watch`: what flows, what of it is encrypted, and how well; from files, an interface, or the running node.

mod collect;
mod live;
pub(in crate::cli) mod node;
mod scanned;

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, ValueEnum};
use wiretight_proxy::network::Network;
use wiretight_scan::judge::Level;
use wiretight_scan::passive::file::{Capture as CaptureFile, FileError};
use wiretight_scan::passive::flow::{Limits, Table};
use wiretight_scan::passive::summary::{By, Filter};
use wiretight_scan::report::{self, FlowOptions, FlowReport, Format};

use super::{Where, term};
use crate::logging::chain;
use crate::watch::capture::{self, ANY, Capture, Opened};
use crate::watch::owners::Owners;
use crate::{privilege, sandbox};
use collect::{Collector, Selection};

/// Show what flows, what of it is encrypted, and how well
///
/// Reads capture files, or captures on an interface, or asks the running node (`[watch]` in its configuration). Changes
/// nothing on this machine and sends nothing (except with --scan). A flow is called encrypted only if its handshake was
/// seen; what was lost or cannot be read counts as unknown.
#[derive(Args)]
#[command(after_help = "\
On a terminal, the table is live: q quits; arrows and page keys scroll; l, p and s choose level, protocol and order;
/ searches; v shows the evidence; b shows what to change.

Examples:
  wiretight watch --interface any                      all traffic of this machine, without any setup
  wiretight watch --interface eth1                     a mirror port
  wiretight watch web.pcap db.pcapng.gz                capture files
  tcpdump -i eth0 -w - | wiretight watch -             a pipe
  wiretight watch                                      what the running node has seen
  wiretight watch web.pcap --level plaintext --by flow each plaintext flow
  wiretight watch web.pcap --blockers                  what is not strong, and what to change
  wiretight watch -i eth1 --for 1h --format html -o report.html
  wiretight watch web.pcap --fail-below acceptable     for pipelines

Exit status: 0 success; 1 a flow is below --fail-below; 2 wrong usage; 3 a file was cut off or malformed, packets were
lost or flows are unknown with --fail-below, or no node is running.")]
pub(super) struct Watch {
    /// Capture files (pcap or pcapng, also compressed by gzip), in the order of their times; `-` is standard input
    #[arg(value_name = "FILE", value_hint = clap::ValueHint::FilePath, conflicts_with = "interface")]
    files: Vec<PathBuf>,
    /// Capture on this interface, for example a mirror port; `any` is all of them except loopback
    #[arg(short, long, value_name = "INTERFACE")]
    interface: Option<String>,
    /// Stop capturing after this time [default: when interrupted, with --once after 10s]
    #[arg(long = "for", value_name = "TIME", value_parser = term::duration, requires = "interface")]
    time: Option<Duration>,
    /// Print the table once
    #[arg(long)]
    once: bool,
    /// Report format: table, json, jsonl, sarif, cbom or html
    #[arg(long, default_value = "table", value_parser = term::one_of::<Format>(Format::ALL.iter().map(|f| f.name())))]
    format: Format,
    /// The same as --format json
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// The same as --format jsonl: each flow as it ends, then the coverage
    #[arg(long, conflicts_with_all = ["format", "json"])]
    jsonl: bool,
    /// Write to a file instead of standard output
    #[arg(short, long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    output: Option<PathBuf>,
    /// Show what is not strong: what it is, whose, since when, how much, and what to change
    #[arg(long, conflicts_with_all = ["json", "jsonl", "format"])]
    blockers: bool,
    /// What a row stands for
    #[arg(long, value_enum, default_value = "service")]
    by: Rows,
    /// Only flows with this level: unknown, plaintext, weak, acceptable or strong; may be repeated
    #[arg(long = "level", value_name = "LEVEL", value_parser = term::one_of::<Level>(["unknown", "plaintext", "weak", "acceptable", "strong"]))]
    levels: Vec<Level>,
    /// Only flows of this protocol (postgres, tls) or transport (udp); may be repeated
    #[arg(long = "protocol", value_name = "NAME")]
    protocols: Vec<String>,
    /// Only flows of programs whose name contains this; may be repeated
    #[arg(long = "program", value_name = "NAME")]
    programs: Vec<String>,
    /// Only flows with this port; may be repeated
    #[arg(long = "port", value_name = "PORT")]
    ports: Vec<u16>,
    /// Only flows with an address in this network; may be repeated
    #[arg(long = "net", value_name = "NETWORK")]
    nets: Vec<Network>,
    /// Fail if a flow is below this level: plaintext, weak, acceptable or strong
    #[arg(long, value_name = "LEVEL", value_parser = term::one_of::<Level>(["plaintext", "weak", "acceptable", "strong"]))]
    fail_below: Option<Level>,
    /// Show the evidence of each row
    #[arg(short, long)]
    verbose: bool,
    /// Scan each TLS server that was seen, once and slowly, for what TLS 1.3 hides; only private addresses
    #[arg(long)]
    scan: bool,
    /// With --scan, scan public addresses too
    #[arg(long, requires = "scan")]
    scan_public: bool,
    /// When to use colour
    #[arg(long, value_enum, default_value = "auto")]
    color: Colour,
    /// Threads that capture; the packets are distributed by flow
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256), requires = "interface")]
    threads: u16,
    /// The length up to which packets are captured
    #[arg(long, value_name = "BYTES", default_value_t = 9216, value_parser = clap::value_parser!(u32).range(64..=262_144), requires = "interface")]
    snaplen: u32,
    /// Memory in which the kernel collects packets, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=16_384), requires = "interface")]
    buffer: u16,
    /// Do not receive frames that are for other machines
    #[arg(long, requires = "interface")]
    no_promiscuous: bool,
    /// Look at one of this many flows, chosen by a hash of its addresses and ports; the others are unknown
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    sample: u32,
    /// Flows that are kept at a time
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(16..=100_000_000))]
    flows: u32,
    #[command(flatten)]
    node: Where,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Rows {
    /// A server's address and port
    Service,
    /// A client's address, and a service
    Pair,
    /// A single flow
    Flow,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Colour {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    Always,
    Never,
}

/// How long --once captures.
const ONCE: Duration = Duration::from_secs(10);
/// How often flows that have ended are taken from a capture.
const TICK: Duration = Duration::from_millis(500);

/// The output, if it is not a live table.
type Out = Box<dyn Write>;

/// What a run means for the exit status.
#[derive(Default)]
struct Outcome {
    /// Part of the input could not be read.
    cut: bool,
}

impl Watch {
    pub(super) fn run(mut self) -> anyhow::Result<ExitCode> {
        let _logs = std::env::var_os("WIRETIGHT_LOG").map(|_| crate::logging::start());
        match (self.json, self.jsonl) {
            (true, _) => self.format = Format::Json,
            (_, true) => self.format = Format::Jsonl,
            _ => {}
        }
        let out = match self.out() {
            Ok(out) => out,
            Err(error) => return usage(&chain(error.as_ref())),
        };
        let done = match &self.interface {
            Some(interface) => self.interface(interface, out),
            None if self.files.is_empty() => self.node(out),
            None => self.files(out),
        };
        match done {
            // The reader of our output has seen enough.
            Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
            done => done,
        }
    }

    fn selection(&self) -> Selection {
        let filter = Filter {
            levels: self.levels.clone(),
            protocols: self.protocols.iter().map(|name| name.to_lowercase()).collect(),
            programs: self.programs.clone(),
            ports: self.ports.clone(),
            text: String::new(),
        };
        Selection { filter, nets: self.nets.clone() }
    }

    fn by(&self) -> By {
        match self.by {
            Rows::Service => By::Service,
            Rows::Pair => By::Pair,
            Rows::Flow => By::Flow,
        }
    }

    fn limits(&self) -> Limits {
        let flows = self.flows as usize;
        Limits { flows, undecided: flows.min(100_000), sample: self.sample }
    }

    fn collector(&self, out: Out) -> Collector {
        // Only these formats list flows one by one.
        let list = self.format == Format::Json;
        let stream = self.format == Format::Jsonl;
        Collector::new(self.selection(), self.by(), list, if stream { Ok(out) } else { Err(out) })
    }

    /// Reads all files as one capture.
    fn files(&self, out: Out) -> anyhow::Result<ExitCode> {
        let mut inputs = Vec::new();
        for path in &self.files {
            let input: Box<dyn Read> = match path.to_str() {
                Some("-") => Box::new(io::stdin()),
                _ => match open(path) {
                    Ok(file) => Box::new(file),
                    Err(error) => return usage(&chain(error.as_ref())),
                },
            };
            inputs.push((path, input));
        }
        // Everything that is needed is open, and what follows is hostile. A scan still needs the network.
        confine()?;
        let stop = stop_at_interrupt()?;
        let mut collector = self.collector(out);
        let mut outcome = Outcome::default();
        let mut table = Table::new(self.limits());
        for (path, input) in inputs {
            let input = Box::new(Stoppable { input, stop: stop.clone() });
            if let Err(error) = read(input, &mut table, &mut collector)? {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                if matches!(error, FileError::NotACapture) {
                    return usage(&format!("{}: {error}", path.display()));
                }
                outcome.cut = true;
                eprintln!(
                    "wiretight: {}: {}. The result is about what could be read.",
                    path.display(),
                    chain(&error)
                );
            }
        }
        collector.missed.miss_all(table.missed());
        for record in table.finish() {
            collector.ended(record)?;
        }
        let names: Vec<String> = self.files.iter().map(|path| path.display().to_string()).collect();
        let source = match names.as_slice() {
            [one] if one == "-" => "standard input".to_owned(),
            [one] => one.clone(),
            many => format!("{} files", many.len()),
        };
        self.finish(collector, &source, &outcome)
    }

    fn interface(&self, interface: &str, out: Out) -> anyhow::Result<ExitCode> {
        let options = capture::Options {
            interface: interface.to_owned(),
            threads: self.threads.into(),
            snaplen: self.snaplen,
            buffer: usize::from(self.buffer) << 20,
            promiscuous: !self.no_promiscuous,
            limits: self.limits(),
        };
        let opened = Opened::new(options)?;
        privilege::keep_nothing().context("cannot drop capabilities")?;
        confine()?;
        let mut capture = opened.start()?;
        let mut collector = self.collector(out);
        // Without it, programs are unknown.
        collector.owners = Owners::new().ok();
        let source = match interface {
            ANY => "all interfaces".to_owned(),
            name => format!("interface {name}"),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let until = match self.time {
            None if self.once => Some(ONCE),
            time => time,
        };
        let until = until.map(|time| Instant::now() + time);
        if self.is_live() {
            runtime.block_on(async {
                let mut terminal = live::Terminal::enter(self.colour(), self.verbose)?;
                let look = || {
                    take(&capture, &mut collector)?;
                    Ok((!capture.failed())
                        .then(|| self.report(&collector, Some(&capture), &source)))
                };
                terminal.run(until, look).await
            })?;
        } else {
            runtime.block_on(capture_until(until, &capture, &mut collector))?;
        }
        let rest = capture.finish()?;
        capture.missed(&mut collector.missed);
        for record in rest {
            collector.ended(record)?;
        }
        self.finish(collector, &source, &Outcome::default())
    }

    /// A report of all flows so far, with those that have not ended.
    fn report(&self, collector: &Collector, capture: Option<&Capture>, source: &str) -> FlowReport {
        let mut current = Vec::new();
        let mut coverage = collector.missed.clone();
        if let Some(capture) = capture {
            capture.current(|record| current.push(collector.flow(record)));
            capture.missed(&mut coverage);
        }
        collector.report(&current, &coverage, source)
    }

    fn finish(
        &self,
        mut collector: Collector,
        source: &str,
        outcome: &Outcome,
    ) -> anyhow::Result<ExitCode> {
        let mut report = self.report(&collector, None, source);
        if self.scan {
            scanned::join(&mut report, self.scan_public)?;
        }
        self.write(&mut collector, &report).context("cannot write the report")?;
        Ok(self.status(&report, outcome))
    }

    fn write(&self, collector: &mut Collector, report: &FlowReport) -> io::Result<()> {
        let options =
            FlowOptions { colour: self.colour(), width: self.width(), verbose: self.verbose };
        match &mut collector.out {
            // The flows are written already.
            Ok(lines) => {
                report::coverage_line(lines, &report.source, &report.coverage)?;
                lines.flush()
            }
            Err(out) if self.blockers => {
                for line in blockers(report, options) {
                    writeln!(out, "{line}")?;
                }
                out.flush()
            }
            Err(out) => report::write_flows(self.format, out, report, options),
        }
    }

    fn status(&self, report: &FlowReport, outcome: &Outcome) -> ExitCode {
        let shown = |level: Level| report.shown.share(level).flows > 0;
        let below = |least: Level| {
            Level::ALL
                .into_iter()
                .any(|level| level != Level::Unknown && level < least && shown(level))
        };
        let lost =
            || report.coverage.missed.iter().any(|gap| gap.bytes > 0 || gap.reason == "dropped");
        match self.fail_below {
            Some(least) if below(least) => ExitCode::from(1),
            Some(_) if shown(Level::Unknown) || lost() => ExitCode::from(3),
            _ if outcome.cut => ExitCode::from(3),
            _ => ExitCode::SUCCESS,
        }
    }

    /// A live table, if the output is for people and there is somebody to quit it.
    fn is_live(&self) -> bool {
        let plain = self.format == Format::Table && self.output.is_none();
        let terminal = io::stdout().is_terminal() && io::stdin().is_terminal();
        plain && terminal && !self.once && !self.blockers && !self.scan
    }

    fn colour(&self) -> bool {
        match self.color {
            Colour::Always => true,
            Colour::Never => false,
            Colour::Auto => self.output.is_none() && term::colour(),
        }
    }

    /// The width of the terminal. In other outputs, rows are not cut, because programs read them.
    fn width(&self) -> Option<usize> {
        if self.output.is_some() || !io::stdout().is_terminal() {
            return None;
        }
        let size = terminal_size::terminal_size_of(io::stdout());
        Some(size.map_or(80, |(columns, _)| usize::from(columns.0).max(40)))
    }

    fn out(&self) -> anyhow::Result<Out> {
        Ok(match &self.output {
            None => Box::new(BufWriter::new(io::stdout())),
            Some(path) => {
                let file = OpenOptions::new().create(true).write(true).truncate(true).open(path);
                let file = file.with_context(|| format!("cannot write {}", path.display()))?;
                Box::new(BufWriter::new(file))
            }
        })
    }
}

/// What to change, or that nothing has to be changed.
fn blockers(report: &FlowReport, options: FlowOptions) -> Vec<String> {
    let mut lines = report::coverage_lines(report, options);
    lines.push(String::new());
    match report.blockers.is_empty() {
        true => lines.push("All traffic that left the machine is strong.".to_owned()),
        false => lines.extend(report::blocker_lines(&report.blockers, options)),
    }
    lines
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

fn usage(what: &str) -> anyhow::Result<ExitCode> {
    eprintln!("wiretight: {what}");
    Ok(ExitCode::from(2))
}

fn open(path: &Path) -> anyhow::Result<File> {
    let name = path.display();
    let file = File::open(path).with_context(|| format!("cannot read {name}"))?;
    anyhow::ensure!(!file.metadata()?.is_dir(), "{name} is a directory");
    Ok(file)
}

/// Ends when it is told to, as if the file ended there.
struct Stoppable {
    input: Box<dyn Read>,
    stop: Arc<AtomicBool>,
}

impl Read for Stoppable {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) { Ok(0) } else { self.input.read(buffer) }
    }
}

/// An interrupt ends reading, and the report is about what was read: it also ends a `tcpdump` that writes to us. A second
/// one ends the process.
fn stop_at_interrupt() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let stopped = stop.clone();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            while tokio::signal::ctrl_c().await.is_ok() {
                if stopped.swap(true, Ordering::Relaxed) {
                    std::process::exit(130);
                }
            }
        });
    })?;
    Ok(stop)
}

/// From here on, this process writes no file.
fn confine() -> anyhow::Result<()> {
    sandbox::read_only().context("cannot restrict file access (Landlock)")
}

/// Reads a file into the table. The inner error ends the file, the outer one the program.
fn read(
    input: Box<dyn Read>,
    table: &mut Table,
    collector: &mut Collector,
) -> io::Result<Result<(), FileError>> {
    /// How often flows that have ended are taken from the table.
    const FRAMES: u32 = 4096;
    let mut file = match CaptureFile::new(input) {
        Ok(file) => file,
        Err(error) => return Ok(Err(error)),
    };
    let mut frames = 0u32;
    let mut newest: Option<jiff::Timestamp> = None;
    let result = loop {
        match file.next_frame() {
            None => break Ok(()),
            Some(Err(error)) => break Err(error),
            Some(Ok(frame)) => {
                table.frame(frame.link, frame.at, frame.bytes, frame.length);
                newest = Some(newest.map_or(frame.at, |newest| newest.max(frame.at)));
                collector.missed.extend(frame.at);
            }
        }
        frames = frames.wrapping_add(1);
        if frames.is_multiple_of(FRAMES) {
            newest.into_iter().for_each(|now| table.expire(now));
            for record in table.ended() {
                collector.ended(record)?;
            }
        }
    };
    collector.missed.miss("dropped_before", file.dropped(), 0);
    if result.is_err() {
        collector.missed.miss("unread", 1, 0);
    }
    Ok(result)
}

/// With more flows at a time, this is no host whose programs could be asked for, and looking them up would take too long.
const MOST_OWNED: usize = 50_000;

/// Takes the flows that have ended.
fn take(capture: &Capture, collector: &mut Collector) -> io::Result<()> {
    if let Some(owners) = &mut collector.owners {
        let mut current = Vec::new();
        capture.current(|record| current.push(record));
        match current.len() > MOST_OWNED {
            true => collector.owners = None,
            false => owners.look(&current),
        }
    }
    for record in capture.ended() {
        collector.ended(record)?;
    }
    collector.flush()
}

/// Captures until this time, or until the operator interrupts it.
async fn capture_until(
    until: Option<Instant>,
    capture: &Capture,
    collector: &mut Collector,
) -> anyhow::Result<()> {
    let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let stopped = tokio::signal::ctrl_c();
    tokio::pin!(stopped);
    while !capture.failed() {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            break;
        }
        tokio::select! {
            _ = &mut stopped => break,
            _ = terminated.recv() => break,
            () = tokio::time::sleep(left.map_or(TICK, |left| left.min(TICK))) => {}
        }
        take(capture, collector).context("cannot write")?;
    }
    Ok(())
}
