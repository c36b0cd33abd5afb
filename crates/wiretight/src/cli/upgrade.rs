//! `wiretight upgrade`

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Value, json};

use super::{Output, Where};

/// How long the new process may take.
const PATIENCE: Duration = Duration::from_secs(150);

/// Have this binary take over from the running node, without refusing or closing a connection
///
/// The new process reads the configuration file and gets the listening sockets. Connections that live go on in the
/// old process, to their end or for as long as `drain` says. If the new one does not come to serve, the old one goes
/// on as before.
#[derive(Args)]
#[command(after_help = "\
Examples:
  install -m 755 wiretight /usr/local/bin/ && systemctl reload wiretight      with examples/wiretight.service
  wiretight upgrade --config wiretight.toml                                   without a service manager

Exit status: 0 if it has taken over, or was running already; 1 if not; 3 if no node is running.")]
pub(super) struct Upgrade {
    /// Even if the running process is of this very binary: a restart that closes no connection
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
        let before: Value = super::get(&state_dir, "/v1/status")?;
        let pid = before["pid"].as_u64().context("the node does not tell its process id")?;
        let process = PathBuf::from(format!("/proc/{pid}"));
        if !self.force && is_this_binary(&process) {
            let same = json!({ "upgraded": false, "pid": pid, "version": before["version"] });
            self.out.print(&same, |_| {
                format!("process {pid} runs this binary already: nothing to do (--force does it)\n")
            })?;
            return Ok(ExitCode::SUCCESS);
        }
        at_the_same_place(&process)?;
        let after = self.start(&process, &state_dir)?;
        let done = json!({
            "upgraded": true,
            "pid": after["pid"],
            "version": after["version"],
            "before": { "pid": pid, "version": before["version"] },
        });
        self.out.print(&done, |done| {
            format!(
                "node {}: version {} (process {}) has taken over from version {} (process {pid}), in which live connections come to their end\n",
                after["node"].as_str().unwrap_or_default(),
                done["version"].as_str().unwrap_or_default(),
                done["pid"],
                done["before"]["version"].as_str().unwrap_or_default(),
            )
        })?;
        Ok(ExitCode::SUCCESS)
    }

    /// Starts the new process as the old one was started, and returns its status when it is the node.
    fn start(&self, before: &Path, state_dir: &Path) -> anyhow::Result<Value> {
        let config = std::path::absolute(&self.at.config)?;
        let mut command = crate::program::own_program();
        command.args(["run", "--take-over", "--config"]).arg(config);
        if let Ok(environment) = fs::read(before.join("environ")) {
            command.env_clear().envs(variables(&environment));
        }
        if let Ok(directory) = fs::read_link(before.join("cwd")) {
            command.current_dir(directory);
        }
        // Its errors are ours to show until it writes to where the old one wrote. Signals from this terminal are not
        // for it.
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0).spawn()?;
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait()? {
                bail!(
                    "the new process has ended ({status}) and the old one goes on: what it says above, or the node's log, tells why"
                );
            }
            let status = super::get::<Value>(state_dir, "/v1/status");
            let taken = |s: &Value| s["pid"] == child.id() && s["taking_over"] == false;
            if let Some(status) = status.ok().filter(taken) {
                return Ok(status);
            }
            if Instant::now() > end {
                let _ = child.kill();
                bail!(
                    "the new process does not come to serve, and was killed: the old one goes on"
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

/// A service manager stops, counts and confines what is in the service's control group.
fn at_the_same_place(process: &Path) -> anyhow::Result<()> {
    let group = |path: &Path| fs::read_to_string(path.join("cgroup")).unwrap_or_default();
    let (theirs, ours) = (group(process), group(Path::new("/proc/self")));
    let unit = theirs.lines().find_map(|line| line.rsplit_once(".service").map(|(path, _)| path));
    let Some(unit) = unit.and_then(|path| path.rsplit('/').next()).filter(|_| theirs != ours)
    else {
        return Ok(());
    };
    bail!(
        "the node runs as {unit}.service, and a process that is started here would be none of that service: `systemctl reload {unit}` upgrades it, if the unit has ExecReload=... upgrade (examples/wiretight.service)"
    )
}

/// As `/proc/PID/environ` has them, but for what is meant for that process alone (sd_notify(3)).
fn variables(environment: &[u8]) -> impl Iterator<Item = (OsString, OsString)> {
    environment.split(|byte| *byte == 0).filter_map(|variable| {
        let at = variable.iter().position(|byte| *byte == b'=')?;
        let os = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        let (name, value) = (os(&variable[..at]), os(&variable[at + 1..]));
        (name != "WATCHDOG_PID").then_some((name, value))
    })
}
