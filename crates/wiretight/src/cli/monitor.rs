//! `wiretight monitor`

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use wiretight_proxy::mesh::now;
use zeroize::Zeroizing;

use super::{Output, term};
use crate::daemon::chain;
use crate::log::http::{Client, Credentials, Url};
use crate::log::monitor::alarm::Alarm;
use crate::log::monitor::expect::Watch;
use crate::log::monitor::table::{self, Row, What};
use crate::log::monitor::{Monitor as Follower, Settings};
use crate::log::reader::Reader;

/// Follow a transparency log, and say when it shows two histories, or a certificate that nobody expects
///
/// It reads every entry, and keeps a table of who was issued what (`monitor list`). An alert is a line of the log, and
/// a POST of JSON to the webhook.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(after_help = "\
Examples:
  wiretight monitor --policy policy --state /var/lib/wiretight-monitor \\
      --watch service/db --expect expected-keys --webhook https://pager.example.org/hook
  wiretight monitor --policy policy --url https://log.example.org --state state --once
  wiretight monitor list --state /var/lib/wiretight-monitor

The file of --expect has lines NAME sha256:HEX, the hash of the key's SubjectPublicKeyInfo. With --watch, every
certificate for one of those names, and every authority's, has to have a key from it; with --expect alone, every
certificate of the log.

Exit status with --once: 0 nothing to say, 1 an alert, or the log was not reached, 2 bad usage.")]
pub(super) struct Monitor {
    #[command(subcommand)]
    list: Option<Sub>,
    #[command(flatten)]
    follow: Option<Follow>,
}

#[derive(Subcommand)]
enum Sub {
    List(List),
}

/// Print the table: who was issued what
#[derive(Args)]
struct List {
    /// The state directory of a monitor
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// Only what is for this name; may be given again
    #[arg(long = "watch", value_name = "NAME")]
    watch: Vec<Watch>,
    #[command(flatten)]
    out: Output,
}

#[derive(Args)]
struct Follow {
    /// The policy (C2SP tlog-policy): which log, which witnesses
    #[arg(long, value_name = "FILE")]
    policy: PathBuf,
    /// Where the log is served, or a directory; without it, the URL of the policy's log
    #[arg(long, value_name = "URL|DIR")]
    url: Option<String>,
    /// What the monitor keeps: a directory of its own
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// The keys that are expected
    #[arg(long, value_name = "FILE")]
    expect: Option<PathBuf>,
    /// A name to watch: a SPIFFE ID, service/NAME, node/NAME, or a DNS name; may be given again
    #[arg(long = "watch", value_name = "NAME")]
    watch: Vec<Watch>,
    /// Where alerts are POSTed
    #[arg(long, value_name = "URL")]
    webhook: Option<Url>,
    /// Look once
    #[arg(long)]
    once: bool,
    /// How often to look
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = term::duration)]
    interval: Duration,
    /// How long the witnesses may have seen nothing new
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = term::duration)]
    max_silence: Duration,
    /// Authorities (PEM) that are trusted besides the system's: a mesh's trust bundle, for its log
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The certificate chain (PEM) to show to the log's server: a mesh's log is for identified clients
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// The name in the server's certificate, when it is not the URL's host
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
}

impl Monitor {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        match (self.list, self.follow) {
            (Some(Sub::List(list)), _) => list.run(),
            (None, Some(follow)) => follow.run(),
            (None, None) => anyhow::bail!("nothing to follow: give --policy and --state"),
        }
    }
}

impl Follow {
    fn run(self) -> anyhow::Result<ExitCode> {
        let _logs = crate::logging::start();
        let settings = match self.settings() {
            Ok(settings) => settings,
            Err(error) => {
                eprintln!("wiretight: {error:#}");
                return Ok(ExitCode::from(2));
            }
        };
        let webhook = match self.webhook {
            Some(url) => Some((Client::new(&Credentials::default())?, url)),
            None => None,
        };
        if !settings.policy.wants_witnesses() {
            tracing::warn!(
                "the policy wants no witnesses: whether the log has stalled, and whether others see the same, cannot be told"
            );
        }
        let mut monitor = Follower::open(&self.state, settings)?;
        let mut alarm = Alarm::new(webhook);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let (mut terminate, mut interrupt) =
                (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
            loop {
                // What is on the disk fits at any time: to be stopped in the middle does no harm.
                let good = tokio::select! {
                    round = look(&mut monitor, &mut alarm) => round?,
                    _ = terminate.recv() => return Ok(ExitCode::SUCCESS),
                    _ = interrupt.recv() => return Ok(ExitCode::SUCCESS),
                };
                if self.once {
                    return Ok(if good { ExitCode::SUCCESS } else { ExitCode::from(1) });
                }
                tokio::select! {
                    () = tokio::time::sleep(self.interval) => {}
                    _ = terminate.recv() => return Ok(ExitCode::SUCCESS),
                    _ = interrupt.recv() => return Ok(ExitCode::SUCCESS),
                }
            }
        })
    }

    fn settings(&self) -> anyhow::Result<Settings> {
        let policy = super::verify::policy(&self.policy)?;
        let named = policy.logs().iter().find_map(|log| log.url.clone());
        let place = self.url.clone().or(named);
        let place =
            place.context("where is the log? The policy gives no URL for it: give --url")?;
        let reader = match std::path::Path::new(&place).is_dir() {
            true => Reader::directory(&place),
            false => Reader::http(Client::new(&self.credentials()?)?, Url::parse(&place)?),
        };
        Ok(Settings {
            policy,
            reader,
            max_silence: self.max_silence,
            expect: self.expect.clone(),
            watch: self.watch.clone(),
        })
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

/// A round; whether all is well.
async fn look(monitor: &mut Follower, alarm: &mut Alarm) -> anyhow::Result<bool> {
    let round = monitor.round(now(), &mut async |alert| alarm.tell(alert).await).await?;
    if let Some(error) = &round.unreachable {
        tracing::warn!(error = chain(error), "the log could not be read this time");
    }
    let size = monitor.last().map_or(0, |last| last.unverified().size);
    tracing::info!(size, new = round.entries, alerts = round.alerts, "looked at the log");
    Ok(round.alerts == 0 && round.unreachable.is_none())
}

impl List {
    fn run(self) -> anyhow::Result<ExitCode> {
        let mut rows = Vec::new();
        let wanted = |row: &Row| match &row.what {
            What::Certificate { names, .. } => {
                self.watch.is_empty()
                    || names.iter().any(|n| self.watch.iter().any(|w| w.is_for(n)))
            }
            _ => self.watch.is_empty(),
        };
        table::read(&self.state, |row| {
            if wanted(&row) {
                rows.push(row);
            }
        })?;
        self.out.print(&rows, |rows| text(rows))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn text(rows: &[Row]) -> String {
    let mut table = term::Table::new(&["entry", "what", "names", "until", "key (SHA-256)"]);
    for Row { index, what } in rows {
        let cells = match what {
            What::Certificate { names, is_ca, not_after, key, .. } => {
                let what = if *is_ca { "authority" } else { "certificate" };
                [what.to_owned(), names.join(" "), super::verify::moment(*not_after), key.clone()]
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
        table.row([index.to_string()].into_iter().chain(cells.map(|c| safe(&c))));
    }
    match table.is_empty() {
        true => "nothing was issued yet\n".into(),
        false => table.to_string(),
    }
}

/// What a log says must not steer a terminal.
fn safe(text: &str) -> String {
    let plain: String = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    term::or_dash(&plain)
}
