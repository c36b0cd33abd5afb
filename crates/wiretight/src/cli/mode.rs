//! `wiretight mode`: tries a mode of the kernel's rules, and keeps it by writing the configuration file.
//!
//! The node can try a mode, and may not write its own configuration; who runs this can write, and needs not be able to
//! change the kernel's rules. So each does its part, and whatever fails, the file and the mode are as before.

use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};
use wiretight_proxy::intercept::listing::Flow;
use wiretight_proxy::intercept::rules;

use super::term;
use super::{Output, Where, plaintext};
use crate::admin::api::{ModeRequest, ModeStatus};
use crate::config::ModeEdit;
use crate::intercept::WouldFail;

/// Show the mode of interception, try another, keep it or take it back
///
/// A stricter mode is tried first: unless it is confirmed in time, the old one comes back by itself, also if this
/// terminal, the node or its connection to anything is gone. Until then the configuration file and the next
/// boot have the old one. A laxer mode is kept at once.
#[derive(Args)]
#[command(after_help = "\
Examples:
  wiretight mode                                     what is in force, and what the file says
  wiretight mode strict --dry-run                    what would it stop, of what was seen in a day?
  wiretight mode strict                              try it for a minute; asks on a terminal
  wiretight mode confirm                             keep what is tried: writes it into the file
  wiretight mode undo                                take it back now

Exit status: 0 done, 1 not done (or, with --dry-run, something would be stopped or refused), 3 no node is running.")]
pub(super) struct Mode {
    /// The mode, or what to do with the one that is tried
    what: Option<What>,
    /// Change nothing: say what the mode would stop, and which connections a peer would refuse
    #[arg(long, requires = "what")]
    dry_run: bool,
    /// How far back --dry-run looks, at most 24h
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = term::duration, requires = "dry_run")]
    last: Duration,
    /// How long it is tried, at most 1h
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = term::duration)]
    within: Duration,
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    out: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Nothing but counting
    Observe,
    /// What can be encrypted is, the rest is counted
    Permissive,
    /// What can be encrypted is, the rest is stopped
    Strict,
    /// Keep the mode that is tried
    Confirm,
    /// Take the mode that is tried back
    Undo,
}

impl Mode {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let mode = match self.what {
            None => return self.show(),
            Some(What::Observe) => rules::Mode::Observe,
            Some(What::Permissive) => rules::Mode::Permissive,
            Some(What::Strict) => rules::Mode::Strict,
            Some(_) if self.dry_run => bail!("--dry-run goes with observe, permissive or strict"),
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
                    "on trial    {left} left, then {old}; `wiretight mode confirm` keeps it, `wiretight mode undo` ends it\n"
                );
            }
            for (what, why) in [("not so     ", &status.error), ("the file   ", &status.pending)] {
                let why = why.as_ref().map(|why| format!("{what} {}\n", term::bad(why)));
                out += &why.unwrap_or_default();
            }
            term::fitted(&out)
        })?;
        Ok(ExitCode::SUCCESS)
    }

    fn dry_run(&self, mode: rules::Mode) -> anyhow::Result<ExitCode> {
        let status: Value = super::get(&self.at.state_dir()?, "/v1/status")?;
        let of = plaintext::read(&status)?;
        let last = self.last.as_secs().min(86_400);
        let stops =
            |flow: &&Flow| mode == rules::Mode::Strict && term::since(flow.last_seen) <= last;
        let stopped: Vec<Flow> = of.strict.would_stop.iter().filter(stops).cloned().collect();
        // Strict and permissive take the same connections to the relay.
        let fails = |f: &&WouldFail| {
            mode != rules::Mode::Observe && f.last_seen.is_none_or(|at| term::since(at) <= last)
        };
        let failing: Vec<WouldFail> = of.strict.would_fail.iter().filter(fails).cloned().collect();
        // Flows of before are known as well, but not all of them need be.
        let known = term::since(of.counted_since).min(last);
        let answer = json!({
            "mode": mode,
            "in_force": of.mode,
            "last_seconds": last,
            "counted_seconds": known,
            "would_stop": stopped,
            "would_fail": failing,
        });
        self.out.print(&answer, |_| {
            let word = mode.word();
            let mut out = match stopped.len() {
                0 => format!(
                    "{word} would stop nothing of what was seen in the last {}\n",
                    term::span(last)
                ),
                n => format!(
                    "{word} would stop {n} of what was seen in the last {}:\n{}",
                    term::span(last),
                    plaintext::broken(&stopped)
                ),
            };
            if !failing.is_empty() {
                out += &format!(
                    "{word} would take these connections to the relay, and they would fail:\n{}",
                    plaintext::would_fail(&failing)
                );
            }
            if known < last {
                let known = term::span(known);
                out += &format!(
                    "(all that there was is known of the last {known} only: look again later)\n"
                );
            }
            term::fitted(&out)
        })?;
        let nothing = stopped.is_empty() && failing.is_empty();
        Ok(if nothing { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn change(&self, mode: rules::Mode) -> anyhow::Result<ExitCode> {
        let now = self.status()?;
        if let Some(trial) = now.trial {
            return Err(crate::intercept::InterceptError::TrialRuns(trial.mode).into());
        }
        must_be_taken_up(&now)?;
        let Some(in_force) = now.in_force else {
            let why = now.error.unwrap_or_else(|| "the node has just started?".into());
            bail!("no rules are in force, so there is none to change: {why}");
        };
        if (in_force, now.configured) == (mode, mode) {
            return self.tell(&now, &format!("{} is in force already", mode.word()));
        }
        // Before anything is tried: a file that cannot be changed is known now, not when the time runs.
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
                "{word} is in force for {seconds} s, then {} again. To keep it: `wiretight mode confirm`; to end it: \
                 `wiretight mode undo`",
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
                "{word} was not confirmed in {seconds} s, and is taken back: `wiretight mode` shows what is in force"
            ),
        }
    }

    fn confirm(&self) -> anyhow::Result<ExitCode> {
        let now = self.status()?;
        let Some(trial) = now.trial else {
            return Err(crate::intercept::InterceptError::NoTrial.into());
        };
        must_be_taken_up(&now)?;
        let edit = ModeEdit::prepare(&self.at.config, trial.instead_of, trial.mode)?;
        let now = self.hold_and_keep(trial.mode, &edit)?;
        self.tell(&now, &kept(trial.mode, &self.at.config))
    }

    fn undo(&self) -> anyhow::Result<ExitCode> {
        let now = self.post(ModeRequest::Undo)?;
        self.tell(&now, &format!("{} is in force again", old(&now)))
    }

    fn hold_and_keep(&self, mode: rules::Mode, edit: &ModeEdit) -> anyhow::Result<ModeStatus> {
        self.post(ModeRequest::Hold)?;
        self.keep(mode, edit)
    }

    /// Writes the file and has it taken up. If that fails, both are as before.
    fn keep(&self, mode: rules::Mode, edit: &ModeEdit) -> anyhow::Result<ModeStatus> {
        edit.write()?;
        let why = match self.post(ModeRequest::TakeUp) {
            Ok(now) if (now.configured, now.in_force, now.trial) == (mode, Some(mode), None) => {
                return Ok(now);
            }
            Ok(now) if now.configured != mode => {
                anyhow::anyhow!("the node reads another file, {}", now.file.display())
            }
            Ok(now) => {
                anyhow::anyhow!(now.error.unwrap_or_else(|| "the rules are not in force".into()))
            }
            Err(error) => error,
        };
        edit.take_back()?;
        // Where the node has taken it up, and not where it is gone.
        let _ = self.post(ModeRequest::TakeUp);
        Err(why).with_context(|| {
            let (file, mode) = (self.at.config.display(), mode.word());
            format!(
                "{mode} could not be kept: {file} is as it was before, and a trial ends by itself"
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

/// What comes back after a trial, or is back.
fn old(now: &ModeStatus) -> &'static str {
    now.trial.map_or(now.configured, |trial| trial.instead_of).word()
}

fn kept(mode: rules::Mode, file: &Path) -> String {
    format!("{} mode is on, and saved in {}", mode.word(), file.display())
}

/// A change of the mode shall not take other changes along.
fn must_be_taken_up(now: &ModeStatus) -> anyhow::Result<()> {
    match &now.pending {
        None => Ok(()),
        Some(why) => bail!(
            "{}: {why}. Have it in order and `wiretight reload` first, then change the mode; nothing was changed",
            now.file.display()
        ),
    }
}

enum Answer {
    Keep,
    Undo,
    Late,
}

/// Asks whether to keep it, with the seconds that are left.
fn ask(word: &str, end: Instant) -> anyhow::Result<Answer> {
    let input = std::io::stdin();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            eprintln!();
            return Ok(Answer::Late);
        }
        eprint!("\r{word} is in force, for {:>4} s. Keep it? [y/N] ", left.as_secs());
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
