//! `wiretight mode`: tries an interception mode, and saves it in the configuration file.
//!
//! The node can try a mode but may not write its configuration. The operator who runs this command can write the file
//! but need not have permission to change the kernel's rules. So each does its part. If any step fails, the file and
//! the mode are left as they were.

use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;
use wiretight_proxy::intercept::listing::Flow;
use wiretight_proxy::intercept::rules;

use super::term;
use super::{Output, Where, plaintext, watch};
use crate::admin::api::{ModeRequest, ModeStatus, Status};
use crate::config::ModeEdit;
use crate::intercept::{OperatorError, WouldFail};

/// Show or change the interception mode: try one, confirm it, or undo it
///
/// A stricter mode starts as a trial. Unless you confirm it in time, the old mode returns automatically, even if this
/// terminal, the node or the network is gone. Until then the configuration file keeps the old mode, and so does the
/// next boot. A less strict mode takes effect and is saved at once.
#[derive(Args)]
#[command(after_help = "\
Examples:
  wiretight mode                                     show the current and the configured mode
  wiretight mode strict --dry-run                    what would strict mode stop, of the last day's traffic?
  wiretight mode strict                              try it for a minute; asks on a terminal
  wiretight mode confirm                             keep the mode on trial: save it in the file
  wiretight mode undo                                end the trial now

Exit status: 0 success, 1 failure (or, with --dry-run, something would be stopped or refused), 3 no node is running.")]
pub(super) struct Mode {
    /// The mode, or what to do with the mode on trial
    what: Option<What>,
    /// Change nothing; show what the mode would stop, and which connections a peer would refuse
    #[arg(long, requires = "what")]
    dry_run: bool,
    /// How far back --dry-run looks, at most 24h
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = term::duration, requires = "dry_run")]
    last: Duration,
    /// How long the trial lasts, at most 1h
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = term::duration)]
    within: Duration,
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    out: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Only count plaintext
    Observe,
    /// Encrypt what can be encrypted; count the rest
    Permissive,
    /// Encrypt what can be encrypted; drop the rest
    Strict,
    /// Keep the mode on trial
    Confirm,
    /// End the trial and return to the old mode
    Undo,
}

impl Mode {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let mode = match self.what {
            None => return self.show(),
            Some(What::Observe) => rules::Mode::Observe,
            Some(What::Permissive) => rules::Mode::Permissive,
            Some(What::Strict) => rules::Mode::Strict,
            Some(_) if self.dry_run => {
                bail!("--dry-run needs a mode: observe, permissive or strict")
            }
            Some(What::Confirm) => return self.confirm(),
            Some(What::Undo) => return self.undo(),
        };
        if self.dry_run { self.dry_run(mode) } else { self.change(mode) }
    }

    fn show(&self) -> anyhow::Result<ExitCode> {
        self.out.print(&self.status()?, |status| {
            let in_force = status.in_force.map_or_else(|| term::bad("no rules"), |m| m.word().to_owned());
            let mut out = format!("in force    {in_force}\n");
            out += &format!("configured  {} ({})\n", status.configured.word(), status.file.display());
            if let Some(trial) = status.trial {
                let (left, old) = (term::span(trial.left_seconds), trial.instead_of.word());
                out += &format!(
                    "on trial    {left} left, then {old}. Keep it with `wiretight mode confirm`, or end it with `wiretight mode undo`\n"
                );
            }
            for (what, why) in [("problem    ", &status.error), ("file       ", &status.pending)] {
                let why = why.as_ref().map(|why| format!("{what} {}\n", term::bad(why)));
                out += &why.unwrap_or_default();
            }
            term::fitted(&out)
        })?;
        Ok(ExitCode::SUCCESS)
    }

    fn dry_run(&self, mode: rules::Mode) -> anyhow::Result<ExitCode> {
        let status: Status = super::get(&self.at.state_dir()?, "/v1/status")?;
        let of = plaintext::of(&status)?;
        let last = self.last.as_secs().min(86_400);
        let stops =
            |flow: &&Flow| mode == rules::Mode::Strict && term::since(flow.last_seen) <= last;
        let stopped: Vec<Flow> = of.strict.would_stop.iter().filter(stops).cloned().collect();
        // Strict and permissive redirect the same connections to the relay.
        let fails = |f: &&WouldFail| {
            mode != rules::Mode::Observe && f.last_seen.is_none_or(|at| term::since(at) <= last)
        };
        let failing: Vec<WouldFail> = of.strict.would_fail.iter().filter(fails).cloned().collect();
        // What the node has seen of other traffic, if it watches ([watch]): strict mode is about plaintext with peers, and
        // this is the way to the rest.
        let watched = watch::node::blockers_of(&self.at.state_dir()?);
        let (blockers, lines) = watched.unwrap_or_default();
        // Older flows are known too, but maybe not all of them.
        let known = term::since(of.counted_since).min(last);
        let answer = json!({
            "mode": mode,
            "in_force": of.mode,
            "last_seconds": last,
            "counted_seconds": known,
            "would_stop": stopped,
            "would_fail": failing,
            "not_strong": blockers,
        });
        self.out.print(&answer, |_| {
            let word = mode.word();
            let mut out = match stopped.len() {
                0 => format!(
                    "{word} would stop no traffic seen in the last {}\n",
                    term::span(last)
                ),
                n => format!(
                    "{word} would stop {n} flows seen in the last {}:\n{}",
                    term::span(last),
                    plaintext::broken(&stopped)
                ),
            };
            if !failing.is_empty() {
                out += &format!(
                    "{word} would redirect these connections to the relay, where they would fail:\n{}",
                    plaintext::would_fail(&failing)
                );
            }
            if known < last {
                let known = term::span(known);
                out += &format!(
                    "(counting is complete only for the last {known}: check again later)\n"
                );
            }
            if !lines.is_empty() {
                out += "traffic of this machine that is not strong, as `wiretight watch` has seen it:\n";
                lines.iter().for_each(|line| out += &format!("  {line}\n"));
            }
            term::fitted(&out)
        })?;
        let nothing = stopped.is_empty() && failing.is_empty();
        Ok(if nothing { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn change(&self, mode: rules::Mode) -> anyhow::Result<ExitCode> {
        let now = self.status()?;
        if let Some(trial) = now.trial {
            return Err(OperatorError::TrialRuns(trial.mode).into());
        }
        must_be_taken_up(&now)?;
        let Some(in_force) = now.in_force else {
            let why = now.error.unwrap_or_else(|| "the node may have just started".into());
            bail!("no rules are in force, so the mode cannot be changed: {why}");
        };
        if (in_force, now.configured) == (mode, mode) {
            return self.tell(&now, &format!("{} mode is already on", mode.word()));
        }
        // A file that cannot be changed must be detected before the trial starts.
        let edit = ModeEdit::prepare(&self.at.config, now.configured, mode)?;
        if mode < now.configured {
            let now = self.keep(mode, &edit)?;
            return self.tell(&now, &kept(mode, &self.at.config));
        }
        let seconds = self.within.as_secs();
        let now = self.post(ModeRequest::Try { mode, seconds })?;
        let begun = Instant::now();
        let word = mode.word();
        if self.out.json || !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
            return self.tell(&now, &format!(
                "{word} mode is on trial for {seconds} s, then {} returns. Keep it with `wiretight mode confirm`, or end \
                 it with `wiretight mode undo`",
                old(&now),
            ));
        }
        match ask(word, begun + self.within)? {
            Answer::Keep => {
                let now = self.hold_and_keep(mode, &edit)?;
                self.tell(&now, &kept(mode, &self.at.config))
            }
            Answer::Undo => self.undo(),
            Answer::Late => bail!(
                "{word} mode was not confirmed within {seconds} s, so the old mode returns. `wiretight mode` shows the current mode."
            ),
        }
    }

    fn confirm(&self) -> anyhow::Result<ExitCode> {
        let now = self.status()?;
        let Some(trial) = now.trial else {
            return Err(OperatorError::NoTrial.into());
        };
        must_be_taken_up(&now)?;
        let edit = ModeEdit::prepare(&self.at.config, trial.instead_of, trial.mode)?;
        let now = self.hold_and_keep(trial.mode, &edit)?;
        self.tell(&now, &kept(trial.mode, &self.at.config))
    }

    fn undo(&self) -> anyhow::Result<ExitCode> {
        let now = self.post(ModeRequest::Undo)?;
        self.tell(&now, &format!("{} mode is on again", old(&now)))
    }

    fn hold_and_keep(&self, mode: rules::Mode, edit: &ModeEdit) -> anyhow::Result<ModeStatus> {
        self.post(ModeRequest::Hold)?;
        self.keep(mode, edit)
    }

    /// Writes the file and has the node apply it. If that fails, file and mode are left as they were.
    fn keep(&self, mode: rules::Mode, edit: &ModeEdit) -> anyhow::Result<ModeStatus> {
        edit.write()?;
        let why = match self.post(ModeRequest::TakeUp) {
            Ok(now) if (now.configured, now.in_force, now.trial) == (mode, Some(mode), None) => {
                return Ok(now);
            }
            Ok(now) if now.configured != mode => {
                anyhow::anyhow!("the node uses another configuration file, {}", now.file.display())
            }
            Ok(now) => {
                anyhow::anyhow!(now.error.unwrap_or_else(|| "the rules are not in force".into()))
            }
            Err(error) => error,
        };
        edit.take_back()?;
        // In case the node has applied the file. If the node is gone, there is nothing to undo.
        let _ = self.post(ModeRequest::TakeUp);
        Err(why).with_context(|| {
            let (file, mode) = (self.at.config.display(), mode.word());
            format!(
                "cannot keep {mode} mode: {file} is unchanged, and a running trial ends by itself"
            )
        })
    }

    fn status(&self) -> anyhow::Result<ModeStatus> {
        super::get(&self.at.state_dir()?, "/v1/mode")
    }

    fn post(&self, request: ModeRequest) -> anyhow::Result<ModeStatus> {
        super::post(&self.at.state_dir()?, "/v1/mode", &request)
    }

    fn tell(&self, now: &ModeStatus, text: &str) -> anyhow::Result<ExitCode> {
        self.out.print(now, |now| match &now.error {
            Some(error) => format!("{text}\n{}\n", term::bad(error)),
            None => format!("{text}\n"),
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The mode that returns after a trial, or has returned.
fn old(now: &ModeStatus) -> &'static str {
    now.trial.map_or(now.configured, |trial| trial.instead_of).word()
}

fn kept(mode: rules::Mode, file: &Path) -> String {
    format!("{} mode is on, and saved in {}", mode.word(), file.display())
}

/// Otherwise a change of the mode would also apply the other changes in the file.
fn must_be_taken_up(now: &ModeStatus) -> anyhow::Result<()> {
    match &now.pending {
        None => Ok(()),
        Some(why) => bail!(
            "{}: {why}. Nothing was changed. Correct the file and run `wiretight reload`, then change the mode.",
            now.file.display()
        ),
    }
}

enum Answer {
    Keep,
    Undo,
    Late,
}

/// Asks whether to keep the mode, with a countdown.
fn ask(word: &str, end: Instant) -> anyhow::Result<Answer> {
    let input = std::io::stdin();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            eprintln!();
            return Ok(Answer::Late);
        }
        eprint!("\r{word} mode is on trial, {:>4} s left. Keep it? [y/N] ", left.as_secs());
        std::io::stderr().flush()?;
        let mut fds = [PollFd::new(&input, PollFlags::IN)];
        let second = left.min(Duration::from_secs(1));
        let second =
            Timespec { tv_sec: second.as_secs() as i64, tv_nsec: second.subsec_nanos().into() };
        match poll(&mut fds, Some(&second)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            polled => polled?,
        };
        let mut answer = String::new();
        input.lock().read_line(&mut answer)?;
        let keep = matches!(answer.trim(), "y" | "Y" | "yes");
        return Ok(if keep { Answer::Keep } else { Answer::Undo });
    }
}
