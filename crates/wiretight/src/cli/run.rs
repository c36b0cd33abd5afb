//! `wiretight run`, `wiretight reload`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::rules::Worker;
use super::{Output, Where};
use crate::admin::api::ReloadAnswer;
use crate::admin::client::Received;
use crate::watch::host;

/// Run this node: every role that the configuration has a section for
#[derive(Args)]
#[command(after_help = "\
Examples:
  wiretight run --config wiretight.toml
  WIRETIGHT_LOG=access=off,info wiretight run        without the access log

SIGHUP applies the changed configuration file. SIGTERM or Ctrl-C waits up to `drain` for sessions to finish; a second
one stops at once.")]
pub(super) struct Run {
    #[command(flatten)]
    at: Where,
    /// Take over from the running process without closing a connection (used by `wiretight upgrade`)
    #[arg(long)]
    take_over: bool,
}

impl Run {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        crate::node::process::run(self.at.load()?, self.take_over)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Run the dns-01 commands for the node that started this process
#[derive(Args)]
pub(super) struct DnsHook {
    /// The commands that may be run
    commands: Vec<PathBuf>,
}

impl DnsHook {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        crate::acme::serve_dns_hook(&self.commands)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Watch the traffic for the node that started this process
#[derive(Args)]
pub(super) struct Watcher {
    #[arg(long)]
    no_landlock: bool,
    /// Run as the worker process
    #[arg(long)]
    worker: Option<Worker>,
}

impl Watcher {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        match self.worker {
            None => host::serve(!self.no_landlock),
            Some(worker) => host::work(!self.no_landlock, worker == Worker::Again),
        }
    }
}

/// Apply the changed configuration file to the running node; live connections continue
///
/// If the file has an error, nothing of it is applied and the old configuration stays in use.
#[derive(Args)]
#[command(after_help = "Example:\n  wiretight check && wiretight reload")]
pub(super) struct Reload {
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    out: Output,
}

impl Reload {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let state_dir = self.at.state_dir()?;
        let done: Received<ReloadAnswer> = super::post(&state_dir, "/v1/reload", &())?;
        self.out.print(&done, |done| {
            let mut out = format!(
                "Configuration applied: {}\n",
                super::counted(done.services, done.dials, done.sites)
            );
            out.extend(done.warnings.iter().map(|warning| format!("warning: {warning}\n")));
            out
        })?;
        Ok(ExitCode::SUCCESS)
    }
}
