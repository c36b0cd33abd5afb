//! `wiretight upgrade`

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::json;
use wiretight_keys::token::hex;
use wiretight_proxy::clock::now;

use super::{Output, Where, term};
use crate::admin::api::{ProcessStatus, Status};
use crate::config;
use crate::log::read_bounded;
use crate::logging::chain;
use crate::private_dir::PrivateDir;
use crate::release::kept::{self, Kept, NEXT_PROOF, PROOF};
use crate::release::own::{self, proof_of};
use crate::release::place::{self, Candidate};
use crate::release::proof::MAX_PROOF;
use crate::release::{Proved, ReleaseProof, Verdict};

/// Replace the running node's process with this binary or FILE, without refusing or closing a connection
///
/// The new process reads the configuration file and receives the listening sockets. The old process keeps its live
/// connections until they end, at most for `drain`. If the new process fails to start, the old one continues.
///
/// FILE is verified by the release policy of the configuration before any of it runs: its publisher, the log, witnesses,
/// rebuilders, the oldest allowed version, and the expiry. When it serves, it replaces the program's file; the old program
/// is kept as PROGRAM.previous.
#[derive(Args)]
#[command(after_help = "\
Examples:
  install -m 755 wiretight /usr/bin/ && systemctl reload wiretight            as a package does
  wiretight upgrade downloads/wiretight                                       verified before it runs
  wiretight upgrade --config wiretight.toml                                   without a service manager

Exit status: 0 if the new program has taken over, or was already running; 1 if not; 3 if no node is running.")]
pub(super) struct Upgrade {
    /// The new program; run this command with the old one. Default: this binary, which must be installed already
    #[arg(value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    file: Option<PathBuf>,
    /// The release with its proofs. Default: FILE.proof
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath, requires = "file")]
    proof: Option<PathBuf>,
    /// Accept the program without a proof. The node's log, `status` and the console say so
    #[arg(long)]
    unproved: bool,
    /// Even if the node already runs this binary: restart it without closing a connection
    #[arg(long)]
    force: bool,
    /// How long the new process may take; then it is killed, and the old one continues
    #[arg(long, value_name = "TIME", value_parser = term::duration, default_value = "150s")]
    wait: Duration,
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    out: Output,
}

/// The running process, and where its node keeps what it remembers.
struct Running {
    status: ProcessStatus,
    /// `/proc/PID`
    process: PathBuf,
    state: PrivateDir,
    release: Option<config::Release>,
}

impl Upgrade {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let config = self.at.load()?;
        let status: ProcessStatus = super::get(&config.node.state_dir, "/v1/status")?;
        let process = PathBuf::from(format!("/proc/{}", status.pid));
        // Root may upgrade the node of another user.
        let state = PrivateDir::open_of_any_user(config.node.state_dir)?;
        let running = Running { status, process, state, release: config.release };
        match &self.file {
            Some(file) => self.to_file(file, &running),
            None => self.to_this_binary(&running),
        }
    }

    fn to_this_binary(&self, running: &Running) -> anyhow::Result<ExitCode> {
        if !self.force && is_this_binary(&running.process) {
            return self.nothing_to_do(running, "this binary");
        }
        if let Some(unit) = unit(&running.process) {
            bail!(
                "the node runs as {unit}, and a process started here would not be part of that service. Run `systemctl reload {unit}` instead; the unit needs ExecReload=... upgrade (see wiretight.service)."
            );
        }
        if self.unproved {
            let own = own::running().context("cannot read this program")?;
            Kept::accept(&running.state, &hex(own.sha256.as_bytes()))?;
        }
        let after = self.start(crate::program::own_program(), running)?;
        self.done(running, &after, None)
    }

    fn to_file(&self, file: &Path, running: &Running) -> anyhow::Result<ExitCode> {
        let program = place::program_of(&running.process).context(
            "cannot tell where the running program is: run this as root or as the node's user",
        )?;
        let candidate = Candidate::copy(file, &program)?;
        let sha256 = hex(candidate.artifact().sha256.as_bytes());
        let now_runs = fs::File::open(running.process.join("exe")).and_then(own::program);
        if !self.force && now_runs.is_ok_and(|now_runs| now_runs == candidate.artifact()) {
            return self.nothing_to_do(running, "the same program");
        }
        let proved = match self.prove(file, &candidate, running) {
            Ok(proved) => Some(proved),
            Err(error) if self.unproved => {
                eprintln!(
                    "{} {}",
                    term::bad("not proved, accepted with --unproved:"),
                    chain(error.as_ref())
                );
                Kept::accept(&running.state, &sha256)?;
                None
            }
            Err(error) => {
                return Err(error.context(format!(
                    "{} was not run, and the node continues as it was",
                    file.display()
                )));
            }
        };
        let placed = match unit(&running.process) {
            None => self.start_first(&candidate, &program, running),
            Some(unit) => self.place_first(&candidate, &program, &unit, running),
        };
        let after = placed.inspect_err(|_| {
            let _ = running.state.remove(NEXT_PROOF);
        })?;
        if proved.is_some() {
            running.state.rename(NEXT_PROOF, PROOF)?;
        }
        self.done(running, &after, proved)
    }

    /// Verifies the candidate, and stores its proof for the process that will run it.
    fn prove(
        &self,
        file: &Path,
        candidate: &Candidate,
        running: &Running,
    ) -> anyhow::Result<Proved> {
        let Some(settings) = &running.release else {
            bail!(
                "there is no release policy, so nothing can be proved. Set policy = \"FILE\" in [release] of {} (docs/release.md), or accept any program with --unproved",
                self.at.config.display()
            );
        };
        let path = self.proof.clone().unwrap_or_else(|| proof_of(file));
        let text = read_bounded(&path, MAX_PROOF).with_context(|| {
            format!(
                "cannot read the proof {}: put it there, or name it with --proof",
                path.display()
            )
        })?;
        let proof = ReleaseProof::parse(&text).with_context(|| path.display().to_string())?;
        match own::judge(Some(settings), &running.state, Some(&proof), candidate.artifact(), now())
        {
            Verdict::Proved(proved) => {
                Kept::raise(&running.state, &proved.minimum)?;
                kept::write(&running.state, NEXT_PROOF, &text)?;
                Ok(*proved)
            }
            Verdict::Unproved(why) => bail!("refused: {why}"),
            Verdict::NoPolicy => bail!("refused: there is no release policy"),
        }
    }

    /// The candidate runs first, and becomes the program when it serves.
    fn start_first(
        &self,
        candidate: &Candidate,
        program: &Path,
        running: &Running,
    ) -> anyhow::Result<ProcessStatus> {
        let mut command = Command::new(candidate.path());
        command.arg0(program);
        let after = self.start(command, running)?;
        candidate.place().with_context(|| {
            format!(
                "the new program serves, but cannot become {}: install it there yourself before the node restarts",
                program.display()
            )
        })?;
        Ok(after)
    }

    /// The candidate becomes the program first, because only the service manager can start it in its place.
    fn place_first(
        &self,
        candidate: &Candidate,
        program: &Path,
        unit: &str,
        running: &Running,
    ) -> anyhow::Result<ProcessStatus> {
        candidate.place().with_context(|| format!("cannot replace {}", program.display()))?;
        let reloaded = reload(unit).and_then(|()| {
            let after: Status = super::get(running.state.path(), "/v1/status")?;
            let expected = hex(candidate.artifact().sha256.as_bytes());
            ensure!(
                after.release.is_some_and(|is| is.sha256 == expected),
                "after `systemctl reload {unit}` the node does not run it: the unit needs ExecReload=... upgrade with {} (see wiretight.service)",
                program.display()
            );
            Ok(after.process)
        });
        reloaded.or_else(|error| {
            let why = "the new program did not take over; the old one continues, and its file is in its place again";
            place::put_back(program).with_context(|| {
                format!("cannot rename {} back to {}: do it before the node restarts", place::previous_of(program).display(), program.display())
            })?;
            Err(error.context(why))
        })
    }

    fn nothing_to_do(&self, running: &Running, what: &str) -> anyhow::Result<ExitCode> {
        let ProcessStatus { pid, version, .. } = &running.status;
        let same = json!({ "upgraded": false, "pid": pid, "version": version });
        self.out.print(&same, |_| {
            format!(
                "Nothing to do: process {pid} already runs {what}. Use --force to restart it.\n"
            )
        })?;
        Ok(ExitCode::SUCCESS)
    }

    fn done(
        &self,
        running: &Running,
        after: &ProcessStatus,
        proved: Option<Proved>,
    ) -> anyhow::Result<ExitCode> {
        let ProcessStatus { pid, version, .. } = &running.status;
        let done = json!({
            "upgraded": true,
            "pid": after.pid,
            "version": after.version,
            "before": { "pid": pid, "version": version },
            "proved": proved,
        });
        self.out.print(&done, |_| {
            let proved = proved.map(|proved| {
                format!("verified: {} {}, entry {} of {}\n", proved.name, proved.version, proved.index, proved.origin)
            });
            format!(
                "{}node {}: version {} (process {}) has taken over from version {} (process {pid}), which keeps its live connections until they end\n",
                proved.unwrap_or_default(), after.node, after.version, after.pid, version,
            )
        })?;
        Ok(ExitCode::SUCCESS)
    }

    /// Starts the new process with the environment of the old one, and returns its status when it has taken over.
    fn start(&self, mut command: Command, running: &Running) -> anyhow::Result<ProcessStatus> {
        let config = std::path::absolute(&self.at.config)?;
        command.args(["run", "--take-over", "--config"]).arg(config);
        if let Ok(environment) = fs::read(running.process.join("environ")) {
            command.env_clear().envs(variables(&environment));
        }
        if let Ok(directory) = fs::read_link(running.process.join("cwd")) {
            command.current_dir(directory);
        }
        // The new process inherits our standard error, to show its errors until it writes to the old process's log.
        // In its own process group it does not get the signals of this terminal.
        command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        let mut child =
            command.spawn().context("cannot start the new program; the old one continues")?;
        let end = Instant::now() + self.wait;
        loop {
            if let Some(status) = child.try_wait()? {
                bail!(
                    "the new process failed ({status}); the old one continues. The reason is above or in the node's log."
                );
            }
            let status = super::get::<ProcessStatus>(running.state.path(), "/v1/status");
            let taken = |s: &ProcessStatus| s.pid == child.id() && !s.taking_over;
            if let Some(status) = status.ok().filter(taken) {
                return Ok(status);
            }
            if Instant::now() > end {
                // With everything that it has started.
                let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
                let _ = child.wait();
                bail!(
                    "the new process did not take over within {} s and was killed; the old one continues. See the node's log.",
                    self.wait.as_secs()
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

/// The systemd service of a process, if this process is not part of it: a process started here would run outside of the
/// service, and the service manager could not stop it.
fn unit(process: &Path) -> Option<String> {
    let group = |path: &Path| fs::read_to_string(path.join("cgroup")).unwrap_or_default();
    service_of(&group(process), &group(Path::new("/proc/self")))
}

fn service_of(theirs: &str, ours: &str) -> Option<String> {
    let unit = theirs.lines().find_map(|line| line.rsplit_once(".service").map(|(path, _)| path));
    let name = unit?.rsplit('/').next()?;
    (theirs != ours).then(|| format!("{name}.service"))
}

fn reload(unit: &str) -> anyhow::Result<()> {
    let status =
        Command::new("systemctl").args(["reload", "--", unit]).stdin(Stdio::null()).status();
    let status = status.context("cannot run systemctl")?;
    ensure!(status.success(), "`systemctl reload {unit}` failed: see `journalctl -u {unit}`");
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_outside_of_the_nodes_service_does_not_start_the_next_one() {
        let node = "0::/system.slice/wiretight.service\n";
        let named = Some("wiretight.service".to_owned());
        assert_eq!(service_of(node, "0::/user.slice/user-0.slice/session-1.scope\n"), named);
        assert_eq!(service_of(node, node), None, "as ExecReload");
        assert_eq!(service_of("0::/user.slice/session-1.scope\n", node), None, "started by hand");
        assert_eq!(
            service_of("0::/system.slice/a@b.service/sub\n", ""),
            Some("a@b.service".into())
        );
    }
}
