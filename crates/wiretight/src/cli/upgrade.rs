//! `wiretight upgrade`

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use serde_json::json;

use super::{Output, Where};
use crate::admin::api::ProcessStatus;

/// How long the new process may take to take over.
const PATIENCE: Duration = Duration::from_secs(150);

/// Replace the running node's process with this binary, without refusing or closing a connection
///
/// The new process reads the configuration file and receives the listening sockets. The old process keeps its live
/// connections until they end, at most for `drain`. If the new process fails to start, the old one continues.
#[derive(Args)]
#[command(after_help = "\
Examples:
  install -m 755 wiretight /usr/bin/ && systemctl reload wiretight            as a package does
  wiretight upgrade --config wiretight.toml                                   without a service manager

Exit status: 0 if this binary has taken over, or was already running; 1 if not; 3 if no node is running.")]
pub(super) struct Upgrade {
    /// Even if the node already runs this binary: restart it without closing a connection
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    out: Output,
}

impl Upgrade {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let state_dir = self.at.state_dir()?;
        let before: ProcessStatus = super::get(&state_dir, "/v1/status")?;
        let ProcessStatus { pid, version, .. } = before;
        let process = PathBuf::from(format!("/proc/{pid}"));
        if !self.force && is_this_binary(&process) {
            let same = json!({ "upgraded": false, "pid": pid, "version": version });
            self.out.print(&same, |_| {
                format!("Nothing to do: process {pid} already runs this binary. Use --force to restart it.\n")
            })?;
            return Ok(ExitCode::SUCCESS);
        }
        at_the_same_place(&process)?;
        let after = self.start(&process, &state_dir)?;
        let done = json!({
            "upgraded": true,
            "pid": after.pid,
            "version": after.version,
            "before": { "pid": pid, "version": version },
        });
        self.out.print(&done, |_| {
            format!(
                "node {}: version {} (process {}) has taken over from version {} (process {pid}), which keeps its live connections until they end\n",
                after.node, after.version, after.pid, version,
            )
        })?;
        Ok(ExitCode::SUCCESS)
    }

    /// Starts the new process with the environment of the old one, and returns its status when it has taken over.
    fn start(&self, before: &Path, state_dir: &Path) -> anyhow::Result<ProcessStatus> {
        let config = std::path::absolute(&self.at.config)?;
        let mut command = crate::program::own_program();
        command.args(["run", "--take-over", "--config"]).arg(config);
        if let Ok(environment) = fs::read(before.join("environ")) {
            command.env_clear().envs(variables(&environment));
        }
        if let Ok(directory) = fs::read_link(before.join("cwd")) {
            command.current_dir(directory);
        }
        // The new process inherits our standard error, to show its errors until it writes to the old process's log.
        // In its own process group it does not get the signals of this terminal.
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0).spawn()?;
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait()? {
                bail!(
                    "the new process failed ({status}); the old one continues. The reason is above or in the node's log."
                );
            }
            let status = super::get::<ProcessStatus>(state_dir, "/v1/status");
            let taken = |s: &ProcessStatus| s.pid == child.id() && !s.taking_over;
            if let Some(status) = status.ok().filter(taken) {
                return Ok(status);
            }
            if Instant::now() > end {
                let _ = child.kill();
                bail!(
                    "the new process did not take over within {} s and was killed; the old one continues. See the node's log.",
                    PATIENCE.as_secs()
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn is_this_binary(process: &Path) -> bool {
    let file = |path: &Path| fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
    let running = file(&process.join("exe"));
    running.is_some() && running == file(Path::new("/proc/self/exe"))
}

/// Fails if the new process would run outside of the node's systemd service: the service manager could not stop it.
fn at_the_same_place(process: &Path) -> anyhow::Result<()> {
    let group = |path: &Path| fs::read_to_string(path.join("cgroup")).unwrap_or_default();
    let (theirs, ours) = (group(process), group(Path::new("/proc/self")));
    let unit = theirs.lines().find_map(|line| line.rsplit_once(".service").map(|(path, _)| path));
    let Some(unit) = unit.and_then(|path| path.rsplit('/').next()).filter(|_| theirs != ours)
    else {
        return Ok(());
    };
    bail!(
        "the node runs as {unit}.service, and a process started here would not be part of that service. Run `systemctl reload {unit}` instead; the unit needs ExecReload=... upgrade (see wiretight.service)."
    )
}

/// The variables in `/proc/PID/environ`, except those that are for that process only (sd_notify(3)).
fn variables(environment: &[u8]) -> impl Iterator<Item = (OsString, OsString)> {
    environment.split(|byte| *byte == 0).filter_map(|variable| {
        let at = variable.iter().position(|byte| *byte == b'=')?;
        let os = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        let (name, value) = (os(&variable[..at]), os(&variable[at + 1..]));
        (name != "WATCHDOG_PID").then_some((name, value))
    })
}
