//! `wiretight monitor`

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use wiretight_proxy::clock::now;
use wiretight_tlog::policy::Log;
use zeroize::Zeroizing;

use super::{Output, term};
use crate::log::monitor::alarm::Alarm;
use crate::log::monitor::expect::Watch;
use crate::log::monitor::name::Name;
use crate::log::monitor::status::{State, Status};
use crate::log::monitor::table::{self, Row, What};
use crate::log::monitor::watch::{Monitor as Watcher, Outcome, Pace};
use crate::log::monitor::{Source, Watched};
use crate::log::reader::Reader;
use crate::private_dir::PrivateDir;
use crate::web::client::{Client, Credentials, Url};
use crate::web::server;

/// Exit status: a log could not be read to its signed size, or no monitor is running.
const BLIND: u8 = 3;

/// Follow transparency logs: report unexpected certificates and logs that misbehave
///
/// The monitor reads every entry of every log in the policy, and keeps a table of the certificates (`monitor list`).
/// An alert is a line in its log and a POST of JSON to the webhook. When the monitor cannot read everything that a log
/// has signed, it repeatedly reports that it is blind.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(after_help = "\
Examples:
  wiretight monitor --policy policy --state /var/lib/wiretight-monitor \\
      --watch service/db --expect expected-keys --webhook https://pager.example.org/hook
  wiretight monitor --policy policy --url https://log.example.org --state state --once
  wiretight monitor status --state /var/lib/wiretight-monitor
  wiretight monitor list --state /var/lib/wiretight-monitor

The file of --expect has lines NAME sha256:HEX, the hash of the key's SubjectPublicKeyInfo (`wiretight svid keys`
prints them). With --watch, every certificate for one of those names must have a key from the file; with --expect
alone, every certificate in the log must. Add the key of every authority too, as spiffe://TRUST-DOMAIN. To replace the
file, write a new one and rename it: a half-written file is reported, and the keys read before it stay in use.

Exit status with --once: 0 no alert, 1 an alert, 2 wrong usage, 3 blind: a log could not be read to its end.")]
pub(super) struct Monitor {
    #[command(subcommand)]
    sub: Option<Sub>,
    #[command(flatten)]
    follow: Option<Follow>,
}

#[derive(Subcommand)]
enum Sub {
    List(List),
    Status(ShowStatus),
}

/// Show whether the monitor is running and can read its logs
#[derive(Args)]
#[command(after_help = "\
Exit status: 0 all logs are read and there was no alert in the last day, 1 an alert, 3 blind or not running.

Example:
  wiretight monitor status --state /var/lib/wiretight-monitor")]
struct ShowStatus {
    /// The state directory of a monitor
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    state: PathBuf,
    #[command(flatten)]
    out: Output,
}

/// List the certificates and revocations in the logs
#[derive(Args)]
#[command(
    after_help = "Example:\n  wiretight monitor list --state /var/lib/wiretight-monitor --watch service/db"
)]
struct List {
    /// The state directory of a monitor
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    state: PathBuf,
    /// Only entries for this name; may be repeated
    #[arg(long = "watch", value_name = "NAME")]
    watch: Vec<Watch>,
    #[command(flatten)]
    out: Output,
}

#[derive(Args)]
struct Follow {
    /// The policy (C2SP tlog-policy), which names the logs and witnesses
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    policy: PathBuf,
    /// The URL or directory of the log [default: the URL in the policy]. If the policy has several logs, give
    /// ORIGIN=URL for each that needs one
    #[arg(long = "url", value_name = "[ORIGIN=]URL|DIR", value_hint = clap::ValueHint::AnyPath)]
    urls: Vec<String>,
    /// The monitor's state directory; nothing else may be in it
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    state: PathBuf,
    /// A file with the expected keys
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    expect: Option<PathBuf>,
    /// A name to watch: a SPIFFE ID, service/NAME, node/NAME, a DNS name or an IP address; may be repeated. All
    /// names of the same identity are watched
    #[arg(long = "watch", value_name = "NAME")]
    watch: Vec<Watch>,
    /// POST alerts to this URL
    #[arg(long, value_name = "URL", value_hint = clap::ValueHint::Url)]
    webhook: Option<Url>,
    /// Check once and exit
    #[arg(long)]
    once: bool,
    /// How often to check
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = term::duration)]
    interval: Duration,
    /// How long a log may be unreadable before the monitor reports that it is blind
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = term::duration)]
    max_blind: Duration,
    /// How often an alert about a continuing problem is repeated
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = term::duration)]
    repeat: Duration,
    /// POST the monitor's status to this URL after each check that read all logs, so that a service there notices when
    /// the monitor stops or is blind
    #[arg(long, value_name = "URL", value_hint = clap::ValueHint::Url)]
    heartbeat: Option<Url>,
    /// Serve metrics for Prometheus on this address, as /metrics by HTTP. It must be a loopback address, for a scraper or a
    /// proxy on this machine
    #[arg(long, value_name = "ADDR", conflicts_with = "once", value_parser = loopback)]
    metrics: Option<SocketAddr>,
    /// Alert if the witnesses have cosigned nothing new for this long
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = term::duration)]
    max_silence: Duration,
    /// CA certificates (PEM) to trust in addition to the system's; for the log of a mesh, its trust bundle
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    ca: Option<PathBuf>,
    /// The client certificate chain (PEM) for the log's server; the log of a mesh requires one
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath, requires = "key")]
    cert: Option<PathBuf>,
    /// The key of the client certificate (PEM)
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath, requires = "cert")]
    key: Option<PathBuf>,
    /// The name in the server's certificate, if it is not the URL's host
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
}

fn loopback(text: &str) -> Result<SocketAddr, String> {
    let at: SocketAddr = text.parse().map_err(|_| "not an address such as 127.0.0.1:7493")?;
    match at.ip().to_canonical().is_loopback() {
        true => Ok(at),
        false => Err("not a loopback address; the metrics are served unencrypted".into()),
    }
}

impl Monitor {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        match (self.sub, self.follow) {
            (Some(Sub::List(list)), _) => list.run(),
            (Some(Sub::Status(show)), _) => show.run(),
            (None, Some(follow)) => follow.run(),
            (None, None) => anyhow::bail!("nothing to follow: give --policy and --state"),
        }
    }

    /// Whether the logs to follow can be found, without reading them.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        self.follow.as_ref().map_or(Ok(()), |follow| follow.sources().map(drop))
    }
}

impl Follow {
    fn run(self) -> anyhow::Result<ExitCode> {
        let _logs = crate::logging::start();
        let sources = match self.sources() {
            Ok(sources) => sources,
            Err(error) => {
                eprintln!("wiretight: {error:#}");
                return Ok(ExitCode::from(2));
            }
        };
        let client = || Client::new(&Credentials::default());
        let webhook = self.webhook.clone().map(|url| Ok::<_, anyhow::Error>((client()?, url)));
        let webhook = webhook.transpose()?;
        let heartbeat = self.heartbeat.clone().map(|url| Ok::<_, anyhow::Error>((client()?, url)));
        let heartbeat = heartbeat.transpose()?;
        if sources.first().is_some_and(|source| !source.policy.wants_witnesses()) {
            tracing::warn!(
                "The policy requires no witnesses, so the monitor cannot detect a stalled log or a log that shows others different entries."
            );
        }
        let watched = Watched {
            max_silence: self.max_silence,
            expect: self.expect.clone(),
            watch: self.watch.clone(),
        };
        let alarm = |dir| Alarm::open(dir, webhook, self.repeat);
        let pace = Pace { interval: self.interval, max_blind: self.max_blind };
        let monitor = Watcher::open(&self.state, sources, watched, alarm, pace, heartbeat)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let (mut terminate, mut interrupt) =
                (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
            // Serving ends with the runtime.
            let (_stop, end) = watch::channel(false);
            if let Some(at) = self.metrics {
                let listener = TcpListener::bind(at).await;
                let listener = listener.with_context(|| {
                    format!(
                        "cannot listen on {at} (--metrics). Another program may use that address."
                    )
                })?;
                tracing::info!(listen = %listener.local_addr()?, "serving metrics");
                tokio::spawn(server::serve(Arc::new(monitor.metrics()), listener, None, end));
            }
            let work = async {
                match self.once {
                    true => match monitor.once().await {
                        Outcome::Quiet => ExitCode::SUCCESS,
                        Outcome::Blind => ExitCode::from(BLIND),
                        Outcome::Alert => ExitCode::from(1),
                    },
                    false => {
                        monitor.watch().await;
                        ExitCode::from(1)
                    }
                }
            };
            tokio::select! {
                code = work => Ok(code),
                _ = terminate.recv() => Ok(ExitCode::SUCCESS),
                _ = interrupt.recv() => Ok(ExitCode::SUCCESS),
            }
        })
    }

    /// The logs of the policy, each with its location.
    fn sources(&self) -> anyhow::Result<Vec<Source>> {
        let policy = super::verify::policy(&self.policy)?;
        let origin = |log: &Log| log.key.name().to_string();
        let (mut named, mut plain) = (HashMap::new(), None);
        for text in &self.urls {
            match text.split_once('=') {
                Some((name, url)) if policy.logs().iter().any(|log| origin(log) == name) => {
                    named.insert(name.to_owned(), url.to_owned());
                }
                _ if plain.is_none() => plain = Some(text.clone()),
                _ => anyhow::bail!(
                    "only one --url may be without ORIGIN=. Give ORIGIN=URL for the other logs."
                ),
            }
        }
        // A URL without ORIGIN= applies to all logs that have no other URL. Reading shows which of them is there.
        let is_free = |log: &&Log| !named.contains_key(&origin(log));
        let free = || policy.logs().iter().filter(is_free);
        let mut for_plain: Vec<_> = free().filter(|log| log.url.is_none()).map(origin).collect();
        if for_plain.is_empty() {
            for_plain.extend(free().next().map(origin));
        }
        let several = policy.logs().len() > 1;
        let client = Client::new(&self.credentials()?)?;
        anyhow::ensure!(
            !policy.logs().is_empty(),
            "the policy names no log. Add a line `log VKEY URL`."
        );
        let mut sources = Vec::new();
        for log in policy.logs() {
            let origin = origin(log);
            let given = plain.clone().filter(|_| for_plain.contains(&origin));
            let shares_place = given.is_some() && for_plain.len() > 1;
            let place = named.get(&origin).cloned().or(given).or_else(|| log.url.clone());
            let reader = match place {
                Some(place) if Path::new(&place).is_dir() => Some(Reader::directory(&place)),
                Some(place) => Some(Reader::http(client.clone(), Url::parse(&place)?)),
                // The other logs are still followed; for this one the monitor reports that it is blind.
                None if several => None,
                None => {
                    anyhow::bail!("the policy has no URL for the log. Give one with --url.")
                }
            };
            let policy = policy.for_log(log.key.clone());
            sources.push(Source { policy, origin, reader, shares_place });
        }
        Ok(sources)
    }

    fn credentials(&self) -> anyhow::Result<Credentials> {
        let read = |path: &PathBuf| {
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
        };
        let identity = match self.cert.as_ref().zip(self.key.as_ref()) {
            Some((cert, key)) => Some((read(cert)?, Zeroizing::new(read(key)?))),
            None => None,
        };
        let roots = self.ca.as_ref().map(read).transpose()?;
        Ok(Credentials { roots, identity, server_name: self.server_name.clone() })
    }
}

/// A row, and its log if there are several.
#[derive(Serialize)]
struct Listed {
    #[serde(flatten)]
    row: Row,
    #[serde(skip_serializing_if = "Option::is_none")]
    log: Option<String>,
}

impl List {
    fn run(self) -> anyhow::Result<ExitCode> {
        let mut rows = Vec::new();
        let is_watched = |text: &String| {
            Name::of_certificate(text).is_some_and(|name| Watch::any(&self.watch, &name))
        };
        let wanted = |row: &Row| match &row.what {
            What::Certificate { names, more_names, .. } => {
                self.watch.is_empty() || *more_names > 0 || names.iter().any(is_watched)
            }
            _ => self.watch.is_empty(),
        };
        let tables = table::all(&self.state)?;
        let several = tables.len() > 1;
        let mut bad = 0;
        for (dir, log) in tables {
            bad += table::read(&dir, |row| {
                if wanted(&row) {
                    rows.push(Listed { row, log: several.then(|| log.clone()) });
                }
            })?;
        }
        self.out.print(&rows, |rows| text(rows))?;
        if bad > 0 {
            eprintln!(
                "wiretight: the table is damaged: {bad} rows are unreadable and not listed. Restart the monitor, which reads them from the log again."
            );
            return Ok(ExitCode::from(1));
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl ShowStatus {
    fn run(self) -> anyhow::Result<ExitCode> {
        let none = || format!("no monitor has run with {}. Check the path.", self.state.display());
        anyhow::ensure!(self.state.is_dir(), none());
        let status = Status::read(&PrivateDir::open(&self.state)?)?.with_context(none)?;
        let now = now();
        let worst = status.worst(now);
        let logs: Vec<_> = status.logs.iter().map(|log| (status.of_log(log, now), log)).collect();
        let value = json!({
            "state": worst,
            "time": status.time,
            "waiting_alerts": status.waiting_alerts,
            "logs": logs.iter().map(|(state, log)| json!({ "state": state, "log": log })).collect::<Vec<_>>(),
        });
        self.out.print(&value, |_| {
            let mut text = String::new();
            for (state, log) in &logs {
                let word = match state {
                    State::Watching => term::good("watching"),
                    State::Starting => "starting".into(),
                    State::Alert => term::bad("alert"),
                    State::Blind => term::bad("blind"),
                    State::NotRunning => term::bad("not running"),
                };
                text += &format!(
                    "{word}  {}: {} of {} entries read",
                    safe(&log.log),
                    log.read,
                    log.size
                );
                if let Some(at) = log.complete_at {
                    text += &format!(", all of them {}", term::ago(at));
                }
                text.push('\n');
                if let Some(at) = log.last_alert {
                    text += &format!(
                        "  {} alerts, the last {}: see the monitor's log\n",
                        log.alerts,
                        term::ago(at)
                    );
                }
                if let Some(problem) = &log.problem {
                    text += &format!("  {}\n", safe(problem));
                }
            }
            if worst == State::NotRunning {
                text += &format!(
                    "the monitor has not updated its status for {}: start it\n",
                    term::span(term::since(status.time))
                );
            }
            if status.waiting_alerts > 0 {
                text += &format!(
                    "{} alerts are waiting to be sent to the webhook\n",
                    status.waiting_alerts
                );
            }
            text
        })?;
        Ok(match worst {
            State::Watching | State::Starting => ExitCode::SUCCESS,
            State::Alert => ExitCode::from(1),
            State::Blind | State::NotRunning => ExitCode::from(BLIND),
        })
    }
}

fn text(rows: &[Listed]) -> String {
    let mut table = term::Table::new(&["entry", "what", "names", "until", "key (SHA-256)"]);
    for Listed { row: Row { index, what }, log } in rows {
        let cells = match what {
            What::Certificate { names, more_names, is_ca, not_after, key, .. } => {
                let what = if *is_ca { "authority" } else { "certificate" };
                let mut names = names.join(" ");
                if *more_names > 0 {
                    names += &format!(" and {more_names} more");
                }
                [what.to_owned(), names, super::verify::moment(*not_after), key.clone()]
            }
            What::Revocation { at, ranges, series } => [
                "revocation".to_owned(),
                format!(
                    "{ranges} ranges of entries, {series} series, at {}",
                    super::verify::moment(*at)
                ),
                String::new(),
                String::new(),
            ],
            What::Period { start, length, .. } => [
                "totals".to_owned(),
                format!(
                    "the traffic of the {} from {}",
                    if *length == wiretight_keys::claims::DAY { "day" } else { "hour" },
                    super::verify::moment(*start)
                ),
                String::new(),
                String::new(),
            ],
            What::Publication { at, manifest } => [
                "publication".to_owned(),
                format!("published at {}, manifest {manifest}", super::verify::moment(*at)),
                String::new(),
                String::new(),
            ],
            What::Other { number } => [
                "unknown".to_owned(),
                format!("an entry of type {number}"),
                String::new(),
                String::new(),
            ],
            What::Malformed { error } => {
                ["malformed".to_owned(), error.clone(), String::new(), String::new()]
            }
        };
        let index = match log {
            Some(log) => format!("{log} {index}"),
            None => index.to_string(),
        };
        table.row([safe(&index)].into_iter().chain(cells.map(|c| safe(&c))));
    }
    match table.is_empty() {
        true => "no entries\n".into(),
        false => table.to_string(),
    }
}

/// Replaces control characters: text from a log must not control the terminal.
fn safe(text: &str) -> String {
    let plain: String = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    term::or_dash(&plain)
}
