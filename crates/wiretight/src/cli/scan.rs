//! `wiretight scan`

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, IsTerminal, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;
use tokio::sync::mpsc;
use wiretight_proxy::mesh::Registry;
use wiretight_scan::active::{ClientIdentity, Depth, Feed, GATHER, Options, Paces, scan_many};
use wiretight_scan::certificate::{Roots, Stores};
use wiretight_scan::facts::Answer;
use wiretight_scan::judge::{Level, Profile};
use wiretight_scan::report::{self, Detail, Format, Prepared, Writer};
use wiretight_scan::{Reached, Report, Target};

use super::{Where, get, term};
use crate::admin::api::BundleAnswer;
use crate::logging::chain;

/// Scan which encryption an endpoint offers
///
/// Tests SSL 2.0 to TLS 1.3 and QUIC with its own ClientHellos, and reports each fact with its evidence. A fact that
/// cannot be determined is reported as inconclusive. TARGET is HOST, HOST:PORT, [ADDRESS]:PORT or PROTOCOL://HOST:PORT.
/// If a name has several addresses, each is scanned.
#[derive(Args)]
#[command(after_help = "\
STARTTLS protocols: smtp lmtp imap pop3 sieve ftp nntp xmpp xmpp-server ldap postgres mysql irc telnet rdp mssql.
Use tls:// for implicit TLS on a port that is usual for one of them.

Examples:
  wiretight scan example.com
  wiretight scan smtp://mail.example.com postgres://10.0.0.5 '[2001:db8::1]:8443'
  wiretight scan example.com --fail-below acceptable --profile bcp195
  wiretight scan example.com --format html --output report.html
  wiretight scan --targets hosts.txt --format jsonl --output scan.jsonl --resume
  wiretight scan --mesh

Exit status: 0 all targets have the level of --fail-below and meet each --profile; 1 at least one does not; 2 wrong
usage; 3 at least one could not be reached or determined.")]
pub(super) struct Scan {
    /// Endpoints to scan
    #[arg(value_name = "TARGET", required_unless_present_any = ["targets", "mesh"])]
    target: Vec<Target>,
    /// Read targets from a file, one per line; `-` is standard input
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    targets: Option<PathBuf>,
    /// Scan every service in the mesh's registry, as this node knows it
    #[arg(long)]
    mesh: bool,
    #[command(flatten)]
    node: Where,
    /// Report format: table, json, jsonl, sarif, cbom or html
    #[arg(long, default_value = "table", value_parser = term::one_of::<Format>(Format::ALL.iter().map(|f| f.name())))]
    format: Format,
    /// The same as --format json
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// Write to a file instead of standard output
    #[arg(short, long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    output: Option<PathBuf>,
    /// Continue an interrupted scan: skip the targets that are already in the output (jsonl only)
    #[arg(long, requires = "output")]
    resume: bool,
    /// Fail if an endpoint is below this level: plaintext, weak, acceptable or strong
    #[arg(long, value_name = "LEVEL", value_parser = term::one_of::<Level>(["unknown", "plaintext", "weak", "acceptable", "strong"]))]
    fail_below: Option<Level>,
    /// Fail if an endpoint does not meet this profile; may be repeated
    #[arg(long = "profile", value_name = "PROFILE", value_parser = term::one_of::<Profile>(Profile::ALL.iter().map(|p| p.name())))]
    profiles: Vec<Profile>,
    /// Trust these authorities (PEM) instead of the system's
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    roots: Option<PathBuf>,
    /// Client certificate (PEM, with its chain) for servers that request one
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath, requires = "key")]
    cert: Option<PathBuf>,
    /// Private key of --cert (PEM)
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath, requires = "cert")]
    key: Option<PathBuf>,
    /// Scan this address instead of those that the target's name resolves to
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["targets", "mesh"])]
    ip: Option<IpAddr>,
    /// Send one ClientHello to each target: report the version, suite and group that a modern client gets
    #[arg(long)]
    quick: bool,
    /// Show the evidence of all facts, and untested facts
    #[arg(short, long)]
    verbose: bool,
    /// Time limit for one address; facts that are open by then are inconclusive
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = term::duration)]
    max_time: Duration,
    /// Time limit for any single answer
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = term::duration)]
    timeout: Duration,
    /// Maximum number of simultaneous connections to one address
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    max_connections: u32,
    /// Maximum number of new connections per second, over all targets
    #[arg(long, value_name = "N")]
    rate: Option<f64>,
    /// Number of targets to scan at the same time [default: 32, with --quick 1000]
    #[arg(long, value_name = "N")]
    parallel: Option<usize>,
}

/// The capacity of the queues of targets and of reports.
const AT_ONCE: usize = 1024;

/// The counters of a run.
#[derive(Default)]
struct Sum {
    reports: usize,
    below: usize,
    undetermined: usize,
}

impl Scan {
    pub(super) fn run(mut self) -> anyhow::Result<ExitCode> {
        // Warnings of libraries do not belong in the report, so logs are off by default.
        let _logs = std::env::var_os("WIRETIGHT_LOG").map(|_| crate::logging::start());
        if self.json {
            self.format = Format::Json;
        }
        if self.resume && self.format != Format::Jsonl {
            return usage("--resume requires --format jsonl: other formats cannot be continued");
        }
        if self.rate.is_some_and(|rate| !(rate > 0.0 && rate.is_finite())) {
            return usage("--rate must be a number above 0");
        }
        // Open all files of the command line before the scan starts.
        let roots = match self.roots() {
            Ok(roots) => roots,
            Err(error) => return usage(&chain(error.as_ref())),
        };
        let mut stores = Stores { roots: Some(roots), mesh: None };
        let identity = match self.identity() {
            Ok(identity) => identity.map(Arc::new),
            Err(error) => return usage(&chain(error.as_ref())),
        };
        let lines = match self.lines() {
            Ok(lines) => lines,
            Err(error) => return usage(&chain(error.as_ref())),
        };
        let mut given = std::mem::take(&mut self.target);
        if self.mesh {
            let (services, bundle) = self.registry()?;
            if services.is_empty() && given.is_empty() && self.targets.is_none() {
                bail!(
                    "The registry has no services yet. Nodes announce their services when they join."
                );
            }
            given.extend(services);
            stores.mesh = Some(bundle);
        }
        let opened = match (&self.output, self.resume) {
            (Some(path), true) => already_done(path),
            _ => Ok(HashSet::new()),
        };
        let opened = opened.and_then(|done| Ok((done, self.out()?)));
        let (done, out) = match opened {
            Ok(opened) => opened,
            Err(error) => return usage(&chain(error.as_ref())),
        };
        let resumed = !done.is_empty();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let given = Given { targets: given, lines, done, identity };
        let sum = runtime.block_on(self.scan(given, stores, out))?;
        Ok(match sum {
            Sum { reports: 0, .. } if !resumed => {
                return usage("No target to scan: the file contains no valid target.");
            }
            Sum { below: 1.., .. } => ExitCode::from(1),
            Sum { undetermined: 1.., .. } => ExitCode::from(3),
            _ => ExitCode::SUCCESS,
        })
    }

    fn roots(&self) -> anyhow::Result<Roots> {
        Ok(match &self.roots {
            Some(path) => Roots::from_pem_file(path)?,
            None => Roots::system()?,
        })
    }

    /// The client certificate.
    fn identity(&self) -> anyhow::Result<Option<ClientIdentity>> {
        let (Some(cert), Some(key)) = (&self.cert, &self.key) else { return Ok(None) };
        let named = |path: &Path| format!("cannot read {} as PEM", path.display());
        let chain = CertificateDer::pem_file_iter(cert).and_then(|chain| chain.collect());
        let chain: Vec<_> = chain.with_context(|| named(cert))?;
        let private = PrivateKeyDer::from_pem_file(key).with_context(|| named(key))?;
        let identity = ClientIdentity::new(chain, private);
        Ok(Some(identity.with_context(|| format!("{} and {}", cert.display(), key.display()))?))
    }

    /// The addresses of the mesh's services, and the trust bundle.
    fn registry(&self) -> anyhow::Result<(Vec<Target>, Roots)> {
        let state_dir = self.node.state_dir()?;
        let registry: Registry = get(&state_dir, "/v1/registry")?;
        let bundle: BundleAnswer = get(&state_dir, "/v1/bundle")?;
        let mut targets = Vec::new();
        for (service, instances) in registry.services {
            for instance in instances {
                // Relays use implicit TLS on any port.
                let target = format!("tls://{}", instance.addr);
                let target = target.parse().with_context(|| format!("service {service}"))?;
                targets.push(target);
            }
        }
        let roots = CertificateDer::pem_slice_iter(bundle.bundle.as_bytes());
        Ok((targets, Roots::from_der(roots.collect::<Result<Vec<_>, _>>()?)?))
    }

    async fn scan(
        &self,
        given: Given,
        stores: Stores,
        (out, style): (Box<dyn Write + Send>, report::Options),
    ) -> anyhow::Result<Sum> {
        let paces = self.rate.map_or_else(Paces::default, Paces::with_rate);
        let options = Options {
            timeout: self.timeout,
            max_time: self.max_time,
            connections: self.max_connections,
            paces: Arc::new(paces),
            stores: Arc::new(stores),
            address: self.ip,
            identity: given.identity.clone(),
        };
        let depth = if self.quick { Depth::Quick } else { Depth::Full };
        let at_a_time = self.parallel.unwrap_or(if self.quick { 1000 } else { 32 });
        let (to_scan, targets) = mpsc::channel(AT_ONCE);
        let (reports, mut results) = mpsc::channel(AT_ONCE);
        // Reading may block, so a separate thread does it. The thread ends with the channel.
        let runtime = tokio::runtime::Handle::current();
        let reader = std::thread::spawn(move || {
            read(given.targets, given.lines, &given.done, Feed::new(&to_scan, runtime))
        });
        let (format, wanted) = (self.format, self.wanted());
        let made = move |report: Report| (wanted.grade(&report), Prepared::new(format, report));
        scan_many(targets, reports, at_a_time, depth, &options, made)?;

        let mut writer = Writer::new(self.format, out, style);
        let mut progress = Progress::new();
        let mut sum = Sum::default();
        let stopped = tokio::signal::ctrl_c();
        tokio::pin!(stopped);
        loop {
            let first = tokio::select! {
                first = results.recv() => first,
                _ = &mut stopped => {
                    progress.clear();
                    eprintln!("wiretight: interrupted; the finished scans have been written");
                    break;
                }
                () = progress.due() => {
                    progress.show(&sum);
                    continue;
                }
            };
            let Some(first) = first else { break };
            progress.clear();
            let write = || {
                let more = std::iter::from_fn(|| results.try_recv().ok()).take(AT_ONCE);
                for (grade, report) in std::iter::once(first).chain(more) {
                    sum.add(grade);
                    writer.prepared(&report)?;
                }
                writer.flush()
            };
            match write() {
                // The reader has closed the pipe.
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(sum),
                other => other.context("cannot write the report")?,
            }
            if depth == Depth::Quick {
                tokio::time::sleep(GATHER).await;
            }
        }
        progress.clear();
        results.close();
        match writer.finish().and_then(|mut out| out.flush()) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {}
            other => other.context("cannot write the report")?,
        }
        // After an interrupt, the reader may still wait for input.
        if reader.is_finished()
            && let Ok(read) = reader.join()
        {
            read?;
        }
        Ok(sum)
    }

    fn wanted(&self) -> Wanted {
        Wanted { profiles: self.profiles.clone(), fail_below: self.fail_below }
    }

    /// The width of the terminal. In other outputs, one-line reports are not wrapped, because programs read them; the
    /// detailed report is wrapped at 100 columns.
    fn width(&self, detail: Detail) -> Option<usize> {
        let terminal = match self.output {
            None => terminal_size::terminal_size_of(io::stdout()),
            Some(_) => None,
        };
        match terminal {
            Some((columns, _)) => Some(usize::from(columns.0).clamp(40, 140)),
            // A terminal of unknown size.
            None if self.output.is_none() && io::stdout().is_terminal() => Some(80),
            None if detail == Detail::Line => None,
            None => Some(100),
        }
    }

    /// The file of targets, opened.
    fn lines(&self) -> anyhow::Result<Option<Lines>> {
        let Some(path) = &self.targets else { return Ok(None) };
        let name = path.display().to_string();
        let from: Box<dyn BufRead + Send> = match path.to_str() {
            Some("-") => Box::new(BufReader::new(io::stdin())),
            _ => {
                let file = File::open(path).with_context(|| format!("cannot read {name}"))?;
                anyhow::ensure!(!file.metadata()?.is_dir(), "{name} is a directory");
                Box::new(BufReader::new(file))
            }
        };
        Ok(Some(Lines { name, from }))
    }

    /// The output, and the options of its format.
    fn out(&self) -> anyhow::Result<(Box<dyn Write + Send>, report::Options)> {
        let many = self.targets.is_some() || self.quick;
        let detail = match (self.verbose, many) {
            (true, _) => Detail::Everything,
            (false, true) => Detail::Line,
            (false, false) => Detail::Usual,
        };
        let colour = self.output.is_none() && term::colour();
        let style = report::Options { colour, width: self.width(detail), detail };
        let out: Box<dyn Write + Send> = match &self.output {
            None => Box::new(BufWriter::new(io::stdout())),
            Some(path) => {
                let mut options = OpenOptions::new();
                options.create(true).write(true);
                if self.resume {
                    options.append(true)
                } else {
                    options.truncate(true)
                };
                let file = options.open(path);
                let file = file.with_context(|| format!("cannot write {}", path.display()))?;
                Box::new(BufWriter::new(file))
            }
        };
        Ok((out, style))
    }
}

/// The input of a run.
struct Given {
    targets: Vec<Target>,
    lines: Option<Lines>,
    /// Targets that already have a report.
    done: HashSet<String>,
    identity: Option<Arc<ClientIdentity>>,
}

/// A file of targets, one per line.
struct Lines {
    name: String,
    from: Box<dyn BufRead + Send>,
}

/// The requirements of the command line.
#[derive(Clone)]
struct Wanted {
    profiles: Vec<Profile>,
    fail_below: Option<Level>,
}

/// How a report counts for the exit status.
#[derive(Default)]
struct Grade {
    below: bool,
    undetermined: bool,
}

impl Wanted {
    fn grade(&self, report: &Report) -> Grade {
        let level = report.judgement.level;
        let undetermined = level == Level::Unknown
            || matches!(report.reached, Reached::Unreachable { .. } | Reached::Unknown { .. });
        let verdicts = report.judgement.profiles.iter();
        let asked = verdicts.filter(|v| self.profiles.iter().any(|p| p.name() == v.profile));
        let (mut below, mut open) = (false, false);
        for verdict in asked {
            match verdict.answer {
                Answer::Yes => {}
                Answer::No => below = true,
                Answer::Inconclusive | Answer::Untested => open = true,
            }
        }
        below |= !undetermined && self.fail_below.is_some_and(|least| level < least);
        Grade { below, undetermined: undetermined || open }
    }
}

impl Sum {
    fn add(&mut self, grade: Grade) {
        self.reports += 1;
        self.below += usize::from(grade.below);
        self.undetermined += usize::from(grade.undetermined);
    }
}

fn usage(what: &str) -> anyhow::Result<ExitCode> {
    eprintln!("wiretight: {what}");
    Ok(ExitCode::from(2))
}

/// The targets of the reports in an output file. An incomplete last line is removed.
fn already_done(path: &Path) -> anyhow::Result<HashSet<String>> {
    #[derive(Deserialize)]
    struct Line {
        target: String,
    }
    let mut done = HashSet::new();
    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(done),
        Err(e) => return Err(e).with_context(|| path.display().to_string()),
    };
    let (mut reader, mut line, mut whole) = (BufReader::new(&file), Vec::new(), 0);
    loop {
        line.clear();
        let n = reader.read_until(b'\n', &mut line)?;
        match serde_json::from_slice::<Line>(&line) {
            Ok(report) if line.ends_with(b"\n") => {
                whole += n as u64;
                done.insert(report.target);
            }
            _ if n == 0 => break,
            _ if !line.ends_with(b"\n") => break,
            _ => bail!(
                "{} is not an output of --format jsonl (see byte {whole}). Without --resume, it is overwritten.",
                path.display()
            ),
        }
    }
    file.set_len(whole)?;
    Ok(done)
}

/// Feeds all targets that have no report yet: those of the command line, then those of the file.
fn read(
    given: Vec<Target>,
    lines: Option<Lines>,
    done: &HashSet<String>,
    mut feed: Feed<'_>,
) -> anyhow::Result<()> {
    let new = |target: &Target| done.is_empty() || !done.contains(&target.to_string());
    for target in given.into_iter().filter(new) {
        if !feed.put(target) {
            return Ok(());
        }
    }
    let Some(Lines { name, from }) = lines else { return Ok(()) };
    for (n, line) in from.lines().enumerate() {
        let line = line.with_context(|| format!("{name}, line {}", n + 1))?;
        let text = line.split('#').next().unwrap_or_default().trim();
        if text.is_empty() {
            continue;
        }
        // An invalid line does not stop the scan of the others.
        match text.parse::<Target>() {
            Ok(target) if new(&target) => {
                if !feed.put(target) {
                    return Ok(());
                }
            }
            Ok(_) => {}
            Err(error) => eprintln!("wiretight: {name}, line {}: {error}", n + 1),
        }
    }
    Ok(())
}

/// The progress line, if standard error is a terminal.
struct Progress {
    shown: bool,
    wanted: bool,
    started: Instant,
    next: tokio::time::Instant,
}

impl Progress {
    fn new() -> Self {
        let wanted = io::stderr().is_terminal();
        let next = tokio::time::Instant::now() + Duration::from_secs(1);
        Self { shown: false, wanted, started: Instant::now(), next }
    }

    async fn due(&self) {
        match self.wanted {
            true => tokio::time::sleep_until(self.next).await,
            false => std::future::pending().await,
        }
    }

    fn show(&mut self, sum: &Sum) {
        self.next = tokio::time::Instant::now() + Duration::from_millis(500);
        let seconds = self.started.elapsed().as_secs();
        eprint!("\r\x1b[K{} scanned, {} below, {seconds} s ...", sum.reports, sum.below);
        let _ = io::stderr().flush();
        self.shown = true;
    }

    fn clear(&mut self) {
        if self.shown {
            eprint!("\r\x1b[K");
            self.shown = false;
        }
    }
}
