//! The child process that maintains the rules of a running node.
//!
//! The node's own process is sandboxed and cannot change the kernel's rules. So it starts this child before it enters
//! the sandbox; the child keeps CAP_NET_ADMIN and nothing else. It receives [`Rules`], never nft commands, so a
//! compromised node can only load other rules of the same kind into this one table.
//!
//! The child consists of two processes: a worker, and a supervisor that only restarts the worker if it dies. The
//! node repeats a request whose worker died.
//!
//! The child ends with the node; the rules stay. The kernel notifies it when another program changes the table,
//! and it restores the table, unless `rules.json` is gone: `wiretight down` removes that file first.
//!
//! The child also runs trials of a mode: it restores the old mode when the time is over or the parent is gone. During a
//! trial `rules.json` has the old mode. Rules that the parent sends with the old mode are applied with the mode on
//! trial. Rules with any other mode end the trial, because then the configuration file was changed.

use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};
use wiretight_proxy::clock::now;
use wiretight_proxy::intercept::listing::Counts;
use wiretight_proxy::intercept::rules::{Mode, Rules};

use super::guard::Guard;
use super::notices::{Heard, Notices};
use super::programs::Programs;
use super::table::Table;
use super::{
    FILE, ForeignError, InterceptError, MAX_RULES, MachineError, OperatorError, keep, kept, lock,
    nft, routes,
};
use crate::private_dir::PrivateDir;
use crate::program::{self, Helper, Question, Reply};
use crate::{privilege, sandbox};

/// How long the parent waits for a response: one request can run `nft` several times, each for up to 20 s.
const PATIENCE: Duration = Duration::from_secs(90);
/// The longest response, in bytes; twice a full list of flows with their programs.
const MAX_ANSWER: u64 = 48 << 20;
/// How often control groups are checked, and a failed repair is tried again.
const TICK: Duration = Duration::from_secs(1);
/// How often the table is checked without a notification.
const ROUND: Duration = Duration::from_secs(10);
/// Above this many repairs a round, repair once a tick. Another program keeps changing the table, for example the keeper
/// of another node on this machine.
const TIRING: u32 = 50;
pub const MIN_TRIAL: Duration = Duration::from_secs(1);
pub const MAX_TRIAL: Duration = Duration::from_secs(3600);
/// The least time left, once a trial is being confirmed, to write and reload the configuration file.
const HOLD: Duration = Duration::from_secs(60);
/// How many times, once a tick, to try to end a trial after the parent died.
const LAST_TRIES: u32 = 60;

const SOMEBODY: &str = "another program changed or removed the table `inet wiretight`; it was restored. To remove it, use `wiretight down`";

/// Exit status of a worker that could not start.
const NOT_BEGUN: u8 = 3;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Ask {
    /// Load rules. `anew`: even if the operator has removed the rules. `no_looser`: allow nothing that the current or
    /// saved rules do not allow, because the registry is not known yet.
    Apply {
        rules: Box<Rules>,
        anew: bool,
        #[serde(default)]
        no_looser: bool,
    },
    /// Load the same rules with another mode, for a time.
    Try {
        mode: Mode,
        seconds: u64,
    },
    /// The trial is being confirmed: do not end it now.
    Hold,
    /// End the trial.
    Undo,
    Report,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    /// The worker has started: earlier requests are lost.
    Begun,
    Done,
    Failed(InterceptError),
    Report(Box<Report>),
}

/// What the kernel counted, and the state of the rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Since the table was created.
    pub counts: Counts,
    pub health: Health,
}

/// The state of the rules.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Health {
    /// The mode of the rules in force; `None` if no rules are.
    pub mode: Option<Mode>,
    /// How often another program changed or removed the table, and it was restored.
    pub mended: u64,
    /// In seconds since 1970.
    pub last_mended: Option<u64>,
    pub trial: Option<TrialStatus>,
    /// Since when plaintext has been counted, as far as this process knows, in seconds since 1970.
    pub counted_since: u64,
    /// Whether a guard table drops plaintext while the main table is missing.
    pub guarded: bool,
    /// `wiretight down` has removed the rules.
    pub taken_down: bool,
    /// What is wrong with the table.
    pub error: Option<String>,
    /// What is wrong with the routes for `transparent`.
    pub routes: Option<String>,
}

/// A trial that is running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrialStatus {
    /// The mode on trial.
    pub mode: Mode,
    /// The mode that returns unless the trial is confirmed.
    pub instead_of: Mode,
    pub left_seconds: u64,
}

/// The parent's connection to the child.
pub struct Keeper {
    helper: tokio::sync::Mutex<Helper>,
}

impl Keeper {
    /// Starts the child and waits until it is ready. Call this before entering the sandbox. Fails if nft, the capability
    /// or a kernel feature is missing, or if there is a table that is not ours.
    pub fn start(state_dir: &Path, landlock: bool) -> Result<Keeper, InterceptError> {
        let mut command = program::own_program();
        command.arg("rules-keeper").arg(state_dir).args((!landlock).then_some("--no-landlock"));
        Keeper::start_by(command)
    }

    /// The same with another command line, which must run `wiretight rules-keeper STATE_DIR`.
    pub fn start_by(command: Command) -> Result<Keeper, InterceptError> {
        let gone = |e: std::io::Error| InterceptError::Gone(e.to_string());
        let mut helper = Helper::start(command).map_err(gone)?;
        match helper.greeting(PATIENCE, MAX_RULES).map_err(gone)? {
            Answer::Failed(error) => Err(error),
            _ => Ok(Keeper { helper: helper.into() }),
        }
    }

    /// Loads rules, maintains them, and saves them for the next boot. Fails after `wiretight down`.
    pub async fn apply(&self, rules: &Rules) -> Result<(), InterceptError> {
        self.tell(rules, false, false).await
    }

    /// The same, even after `wiretight down`: when the node starts, and when the operator asks for it.
    pub async fn apply_anew(&self, rules: &Rules) -> Result<(), InterceptError> {
        self.tell(rules, true, false).await
    }

    /// The same for rules made before the mesh is known: they allow nothing that the current or saved rules do not allow.
    pub async fn apply_no_looser(&self, rules: &Rules, anew: bool) -> Result<(), InterceptError> {
        self.tell(rules, anew, true).await
    }

    pub async fn report(&self) -> Result<Report, InterceptError> {
        match self.ask(&Ask::Report).await? {
            Answer::Report(report) => Ok(*report),
            Answer::Failed(error) => Err(error),
            Answer::Done | Answer::Begun => {
                Err(InterceptError::Gone("it sent a response to another request".into()))
            }
        }
    }

    /// Loads the current rules with another mode. The trial ends when it is confirmed (by rules with that mode), or after
    /// `within`, which is [`MIN_TRIAL`] to [`MAX_TRIAL`].
    pub async fn begin_trial(&self, mode: Mode, within: Duration) -> Result<(), InterceptError> {
        self.have_done(&Ask::Try { mode, seconds: within.as_secs() }).await
    }

    /// Keeps a trial from ending while it is being confirmed.
    pub async fn hold_trial(&self) -> Result<(), InterceptError> {
        self.have_done(&Ask::Hold).await
    }

    pub async fn undo_trial(&self) -> Result<(), InterceptError> {
        self.have_done(&Ask::Undo).await
    }

    async fn tell(&self, rules: &Rules, anew: bool, no_looser: bool) -> Result<(), InterceptError> {
        self.have_done(&Ask::Apply { rules: Box::new(rules.clone()), anew, no_looser }).await
    }

    async fn have_done(&self, ask: &Ask) -> Result<(), InterceptError> {
        match self.ask(ask).await? {
            Answer::Failed(error) => Err(error),
            Answer::Done | Answer::Begun | Answer::Report(_) => Ok(()),
        }
    }

    async fn ask(&self, ask: &Ask) -> Result<Answer, InterceptError> {
        let gone = |e: &dyn std::fmt::Display| InterceptError::Gone(e.to_string());
        let mut helper = self.helper.lock().await;
        let begun = |answer: &Answer| matches!(answer, Answer::Begun);
        let answer = tokio::time::timeout(PATIENCE, helper.ask(ask, MAX_ANSWER, begun)).await;
        answer.map_err(|_| gone(&"it does not respond"))?.map_err(|e| gone(&e))
    }
}

/// The supervisor: runs a worker until the node is gone.
pub fn serve(state_dir: &Path, landlock: bool) -> anyhow::Result<ExitCode> {
    // The worker reports a missing capability.
    let _ = privilege::keep_net_admin_only()?;
    let worker = |again: bool| {
        let mut worker = program::own_program();
        worker.arg("rules-keeper").arg(state_dir).args((!landlock).then_some("--no-landlock"));
        worker.args(["--worker", if again { "again" } else { "first" }]);
        worker
    };
    let mut logs = None;
    program::supervise(worker, Some(NOT_BEGUN), |ended| {
        logs.get_or_insert_with(crate::logging::start);
        tracing::error!(%ended, "the process that maintains the kernel's rules has died and is restarted; the rules stay in force");
    })
}

/// The worker: loads and maintains rules until its parents are gone. `again`: it replaces a worker that died.
pub fn work(state_dir: &Path, landlock: bool, again: bool) -> anyhow::Result<ExitCode> {
    let parent = rustix::process::getppid();
    let mut child = match Child::begin(state_dir, landlock, again) {
        Ok(child) => child,
        Err(error) => {
            if !again {
                write_line(&mut std::io::stdout(), 0, &Answer::Failed(error.clone()))?;
            }
            eprintln!("wiretight: {error}");
            return Ok(ExitCode::from(NOT_BEGUN));
        }
    };
    // If the supervisor is killed, this worker must end too: a new supervisor starts another one.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    if rustix::process::getppid() != parent {
        return Ok(ExitCode::SUCCESS);
    }
    let _logs = crate::logging::start();
    if child.health.mended > 0 {
        tracing::error!("{SOMEBODY}");
    }
    let ended = child.converse(again);
    child.leave_no_trial();
    ended.map(|()| ExitCode::SUCCESS)
}

fn line(number: u64, answer: &Answer) -> serde_json::Result<Vec<u8>> {
    program::line(&Reply { number, answer })
}

fn write_line(to: &mut impl Write, number: u64, answer: &Answer) -> std::io::Result<()> {
    match to.write_all(&line(number, answer)?).and_then(|()| to.flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// A trial: the loaded rules have another mode than the requested rules.
struct Trial {
    mode: Mode,
    until: Instant,
    /// The rules that return after the trial.
    asked: Rules,
}

impl Trial {
    fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    fn status(&self) -> TrialStatus {
        let left_seconds = self.left().as_secs();
        TrialStatus { mode: self.mode, instead_of: self.asked.mode, left_seconds }
    }
}

fn with_mode(rules: &Rules, mode: Mode) -> Rules {
    Rules { mode, ..rules.clone() }
}

struct Child {
    state: PrivateDir,
    table: Table,
    guard: Guard,
    /// The guard table is missing although there should be one.
    unguarded: bool,
    /// When setting the guard table was last tried.
    guarded: Instant,
    notices: Notices,
    route_notices: Notices,
    health: Health,
    trial: Option<Trial>,
    programs: Programs,
    looked: Instant,
    ticked: Instant,
    /// The table needs a repair.
    broken: bool,
    routes_broken: bool,
    /// Repairs in this round.
    mends: u32,
}

impl Child {
    fn begin(state_dir: &Path, landlock: bool, again: bool) -> Result<Child, InterceptError> {
        let state = PrivateDir::open(state_dir)?;
        let failed = |e: std::io::Error| MachineError::Rules(format!("capabilities: {e}"));
        if !privilege::keep_net_admin_only().map_err(failed)? {
            return Err(MachineError::NotPermitted.into());
        }
        if landlock {
            let failed = |e| MachineError::Rules(format!("Landlock: {e}"));
            sandbox::write_only_in(&[state.path()]).map_err(failed)?;
        }
        let refused = |e: rustix::io::Errno| {
            MachineError::Rules(format!("cannot subscribe to the kernel's notifications: {e}"))
        };
        let notices = Notices::of_table().map_err(refused)?;
        let route_notices = Notices::of_routes().map_err(refused)?;
        // While a transaction is being checked or applied, some kernels list its table without content (seen with Linux
        // 6.18). That would not look like ours, so nobody may list it meanwhile.
        let lock = lock(&state)?;
        // Detects missing features and a table that is not ours.
        nft::list()?;
        nft::check(&sample().replace()?)?;
        // Rules from the boot or an earlier process stay in force, with their counts. If the file is damaged, the next
        // `apply` writes it again.
        let kept = kept(&state).ok().flatten();
        let table = kept.as_ref().and_then(|rules| Table::adopt(rules).transpose()).transpose()?;
        let adopted = table.is_some();
        let mut table = table.unwrap_or_default();
        let mut mended = None;
        // The worker that died would have restored it.
        if let (true, false, Some(rules)) = (again, adopted, &kept) {
            table.apply(rules)?;
            mended = Some(now());
        }
        drop(lock);
        notices.take();
        let begun = Instant::now();
        let mode = table.rules().map(|r| r.mode);
        let taken_down = again && !state.path().join(FILE).exists();
        let health = Health {
            mode,
            taken_down,
            mended: mended.is_some().into(),
            last_mended: mended,
            counted_since: now(),
            ..Health::default()
        };
        let routes_broken = mode.is_some();
        let mut child = Child {
            state,
            table,
            guard: Guard::default(),
            unguarded: false,
            guarded: begun,
            notices,
            route_notices,
            health,
            trial: None,
            programs: Programs::default(),
            looked: begun,
            ticked: begun,
            broken: false,
            routes_broken,
            mends: 0,
        };
        child.guard();
        Ok(child)
    }

    /// Sets the guard table for the rules that are in force.
    fn guard(&mut self) {
        let Some(rules) = self.table.rules() else { return };
        self.guarded = Instant::now();
        match self.guard.stand_behind(rules) {
            Ok(()) => self.unguarded = false,
            Err(error) => {
                // Logged once; it is retried every tick.
                if !std::mem::replace(&mut self.unguarded, true) {
                    tracing::warn!(%error, "the guard table could not be set: while the main table is being restored after another program changed it, plaintext may leave this machine");
                }
            }
        }
    }

    /// Sets the guard table again if its holder was killed, or if another process had it before (in an upgrade).
    fn watch_guard(&mut self) {
        let due = self.guarded.elapsed() >= TICK && !self.health.taken_down;
        if self.guard.has_fallen() || due && self.unguarded {
            self.guard();
        }
    }

    /// Serves requests until the node is gone.
    fn converse(&mut self, again: bool) -> anyhow::Result<()> {
        let (input, output) = (std::io::stdin(), std::io::stdout());
        // An incomplete request or an unread response must not delay a repair.
        for fd in [input.as_fd(), output.as_fd()] {
            rustix::io::ioctl_fionbio(fd, true)?;
        }
        let (mut asked, mut answer) = (Vec::new(), line(0, &Answer::Begun)?);
        if again {
            answer.insert(0, b'\n'); // the worker that died may have left half a line
        }
        loop {
            let writes = if answer.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            let reads = if answer.is_empty() { PollFlags::IN } else { PollFlags::empty() };
            let mut fds = [
                PollFd::new(&self.notices, PollFlags::IN),
                PollFd::new(&self.route_notices, PollFlags::IN),
                PollFd::new(&input, reads),
                PollFd::new(&output, writes),
            ];
            let wait = self.trial.as_ref().map_or(TICK, |trial| TICK.min(trial.left()));
            let wait =
                Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() };
            match poll(&mut fds, Some(&wait)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
            self.watch();
            self.end_trial_in_time();
            self.watch_guard();
            if !answer.is_empty() {
                match rustix::io::write(&output, &answer) {
                    Ok(n) => drop(answer.drain(..n)),
                    Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                    Err(_) => return Ok(()),
                }
            } else if !program::read_some(&input, &mut asked, MAX_RULES)? {
                return Ok(());
            }
            // Half a request, to the worker that died, may come first.
            while let Some(end) =
                asked.iter().position(|b| *b == b'\n').filter(|_| answer.is_empty())
            {
                let question: Vec<u8> = asked.drain(..=end).collect();
                if question == b"\n" {
                    continue;
                }
                answer = match serde_json::from_slice(&question) {
                    Ok(Question { number, ask }) => line(number, &self.answer(ask))?,
                    Err(error) => {
                        let error = InterceptError::Own(format!("invalid rules: {error}"));
                        line(0, &Answer::Failed(error))?
                    }
                };
            }
        }
    }

    fn answer(&mut self, ask: Ask) -> Answer {
        let done = match ask {
            Ask::Apply { rules, anew, no_looser } => match self.old().filter(|_| no_looser) {
                Some(old) => self.apply(&rules.no_looser_than(&old), anew),
                None => self.apply(&rules, anew),
            },
            Ask::Try { mode, seconds } => self.begin_trial(mode, Duration::from_secs(seconds)),
            Ask::Hold => self.hold_trial(),
            Ask::Undo => self.undo_trial(),
            Ask::Report => return Answer::Report(Box::new(self.report())),
        };
        done.map_or_else(Answer::Failed, |()| Answer::Done)
    }

    fn report(&mut self) -> Report {
        let (listing, mut health) = (nft::list(), self.health.clone());
        health.error = health.error.or(listing.as_ref().err().map(ToString::to_string));
        health.trial = self.trial.as_ref().map(Trial::status);
        health.guarded = self.guard.stands();
        let mut counts = listing.ok().flatten().map(|l| l.counts(now())).unwrap_or_default();
        self.programs.name(&mut counts.flows, self.table.rules().map(|rules| rules.mark));
        Report { counts, health }
    }

    fn apply(&mut self, rules: &Rules, anew: bool) -> Result<(), InterceptError> {
        let _lock = lock(&self.state)?;
        let was_kept = self.state.path().join(FILE).exists();
        let had = self.table.rules().is_some() || self.health.taken_down;
        if !anew && had && !was_kept {
            self.health.taken_down = true;
            self.trial = None;
            return Err(OperatorError::TakenDown.into());
        }
        // If the mode differs from the one before the trial, the file was changed, which ends the trial.
        let tried = self.trial.as_ref().filter(|trial| trial.asked.mode == rules.mode);
        let tried = tried.map(|trial| trial.mode);
        let asked = with_mode(rules, tried.unwrap_or(rules.mode));
        if let Err(error) = asked.check().map_err(Into::into).and_then(|()| self.put(&asked)) {
            self.fall_back(rules);
            return Err(error);
        }
        match (&mut self.trial, tried) {
            (Some(trial), Some(_)) => trial.asked = rules.clone(),
            (trial, _) => {
                if let Some(ended) = trial.take() {
                    let (tried, now) = (ended.mode.word(), rules.mode.word());
                    tracing::info!(
                        tried,
                        now,
                        "the trial is over: the configuration file has a new mode"
                    );
                }
            }
        }
        // After the kernel: if we crash in between, the next boot has the rules saved before.
        keep(&self.state, rules)?;
        self.route(rules)
    }

    /// The rules in force, or those saved by an earlier process.
    fn old(&self) -> Option<Rules> {
        self.table.rules().cloned().or_else(|| kept(&self.state).ok().flatten())
    }

    /// After `rules` could not be loaded: loads their dropping part combined with the current or saved rules. The caller
    /// holds the lock.
    fn fall_back(&mut self, rules: &Rules) {
        let old = self.old();
        let both = old.as_ref().map(|old| rules.no_looser_than(old));
        let stopping = both.as_ref().unwrap_or(rules).only_stopping();
        for rules in both.into_iter().chain([stopping]).chain(old) {
            if self.table.rules() == Some(&rules) && !self.broken {
                return;
            }
            match rules.check().map_err(Into::into).and_then(|()| self.put(&rules)) {
                Ok(()) => {
                    if let Some(trial) = self.trial.take() {
                        let tried = trial.mode.word();
                        tracing::warn!(tried, "the trial is over: the rules could not be loaded");
                    }
                    let kept = keep(&self.state, &rules).and_then(|()| self.route(&rules));
                    if let Err(error) = kept {
                        tracing::error!(%error, "the stricter rules were not completely applied");
                    }
                    tracing::warn!(
                        mode = rules.mode.word(),
                        "the stricter of the old and the new rules were loaded instead"
                    );
                    return;
                }
                Err(error) => tracing::debug!(%error, "cannot load stricter rules"),
            }
        }
    }

    /// Sets the routes that the rules need. It comes last, because a failure here only affects the services that need the
    /// routes.
    fn route(&mut self, rules: &Rules) -> Result<(), InterceptError> {
        let routed = routes::put(&rules.transparent);
        self.route_notices.take();
        self.routes_broken = routed.is_err();
        self.health.routes = routed.as_ref().err().map(ToString::to_string);
        routed
    }

    /// The caller holds the lock.
    fn put(&mut self, rules: &Rules) -> Result<(), InterceptError> {
        let applied = self.table.apply(rules);
        use InterceptError::{Foreign, Machine};
        match applied {
            Ok(()) => self.hear_ours(),
            // Nothing was changed.
            Err(error @ (Machine(_) | Foreign(ForeignError::Table))) => return Err(error),
            // It is unknown what is in force: `broken` makes the next check restore the old rules.
            Err(error) => {
                self.broken = true;
                return Err(error);
            }
        }
        self.health.taken_down = false;
        self.health.error = None;
        self.health.mode = Some(rules.mode);
        self.guard();
        Ok(())
    }

    fn begin_trial(&mut self, mode: Mode, within: Duration) -> Result<(), InterceptError> {
        if let Some(trial) = &self.trial {
            return Err(OperatorError::TrialRuns(trial.mode).into());
        }
        if !(MIN_TRIAL..=MAX_TRIAL).contains(&within) {
            return Err(OperatorError::TrialLength { seconds: within.as_secs() }.into());
        }
        let asked = self.table.rules().cloned().ok_or(OperatorError::NoRules)?;
        let _lock = lock(&self.state)?;
        if !self.state.path().join(FILE).exists() {
            return Err(OperatorError::TakenDown.into());
        }
        if asked.mode == mode {
            return Err(OperatorError::InForce(mode).into());
        }
        self.put(&with_mode(&asked, mode))?;
        let seconds = within.as_secs();
        tracing::warn!(
            mode = mode.word(),
            seconds,
            "a trial of a mode has started; the old mode returns unless it is confirmed"
        );
        self.trial = Some(Trial { mode, until: Instant::now() + within, asked });
        Ok(())
    }

    fn hold_trial(&mut self) -> Result<(), InterceptError> {
        let trial = self.trial.as_mut().ok_or(OperatorError::NoTrial)?;
        trial.until = trial.until.max(Instant::now() + HOLD);
        Ok(())
    }

    fn undo_trial(&mut self) -> Result<(), InterceptError> {
        if self.trial.is_none() {
            return Err(OperatorError::NoTrial.into());
        }
        self.roll_back("the operator ended it")
    }

    fn end_trial_in_time(&mut self) {
        if !self.trial.as_ref().is_some_and(|trial| trial.left().is_zero()) {
            return;
        }
        let Err(error) = self.roll_back("it was not confirmed in time") else { return };
        tracing::error!(%error, "the trial is over, but the old mode cannot be restored; retrying every second");
        self.health.error = Some(error.to_string());
        if let Some(trial) = &mut self.trial {
            trial.until = Instant::now() + TICK;
        }
    }

    /// Ends a trial before this process ends: otherwise it would last until the next start of the node.
    fn leave_no_trial(&mut self) {
        for _ in 0..LAST_TRIES {
            match self.roll_back("the node is gone") {
                Ok(()) => return,
                Err(error) => {
                    tracing::error!(%error, "the trial is over, but the old mode cannot be restored")
                }
            }
            std::thread::sleep(TICK);
        }
    }

    /// Ends the trial, if there is one, and loads the rules with the old mode.
    fn roll_back(&mut self, why: &str) -> Result<(), InterceptError> {
        let Some(trial) = &self.trial else { return Ok(()) };
        let (tried, asked) = (trial.mode.word(), trial.asked.clone());
        let _lock = lock(&self.state)?;
        // After `wiretight down` nothing may be loaded.
        if self.state.path().join(FILE).exists() {
            // The keeper of the next node process may have loaded them already.
            match Table::adopt(&asked)? {
                Some(there) => {
                    self.table = there;
                    self.guard();
                }
                None => self.put(&asked)?,
            }
            self.health.mode = Some(asked.mode);
            let now = asked.mode.word();
            tracing::warn!(tried, now, why, "the trial is over; the old mode is restored");
        }
        self.trial = None;
        Ok(())
    }

    /// Discards the notifications of our own change. Those of another program may be among them, so this checks the
    /// table; later changes cause new notifications.
    fn hear_ours(&mut self) {
        self.notices.take();
        self.broken = self.table.rules().is_some()
            && !self.health.taken_down
            && !self.table.is_intact_but_for_groups().unwrap_or(false);
    }

    /// Checks table and routes if there is a reason to, and repairs them.
    fn watch(&mut self) {
        let rerouted = self.route_notices.take() != Heard::Nothing;
        self.routes_broken |= rerouted;
        let heard = self.notices.take();
        if self.table.rules().is_none() || self.health.taken_down {
            return;
        }
        let due = self.looked.elapsed() >= ROUND;
        let tick = self.ticked.elapsed() >= TICK;
        self.broken |= heard != Heard::Nothing;
        let calm = self.mends < TIRING;
        let look = due || (self.broken && (calm || tick)) || (tick && self.table.is_stale());
        let look_at_routes = due || rerouted && calm || self.routes_broken && tick;
        if due {
            (self.looked, self.mends) = (Instant::now(), 0);
        }
        if look || look_at_routes {
            self.ticked = Instant::now();
        }
        if look {
            self.watch_table(heard);
        }
        if look_at_routes && !self.health.taken_down {
            self.watch_routes();
        }
    }

    fn watch_table(&mut self, heard: Heard) {
        match self.look_and_mend(heard == Heard::Gone) {
            Ok(mended) => {
                self.hear_ours();
                self.health.error = None;
                if mended {
                    self.mended();
                    self.health.counted_since = now();
                    tracing::error!(times = self.health.mended, "{SOMEBODY}");
                }
            }
            Err(error) => {
                if self.health.error.is_none() {
                    tracing::error!(%error, "the table `inet wiretight` was changed and cannot be restored; retrying every second");
                }
                self.broken = true;
                self.health.error = Some(error.to_string());
            }
        }
    }

    fn watch_routes(&mut self) {
        let mended = self.look_at_routes();
        // Discards the notifications of our own change.
        self.route_notices.take();
        self.routes_broken = mended.is_err();
        match mended {
            Ok(mended) => {
                self.health.routes = None;
                if mended {
                    self.mended();
                    tracing::error!(
                        times = self.health.mended,
                        "another program changed or removed the routes of `transparent` services; they were restored. To remove them, use `wiretight down`"
                    );
                }
            }
            Err(error) => {
                if self.health.routes.is_none() {
                    tracing::error!(%error, "the routes of `transparent` services cannot be restored; retrying every second");
                }
                self.health.routes = Some(error.to_string());
            }
        }
    }

    /// Returns whether a repair was needed.
    fn look_at_routes(&mut self) -> Result<bool, InterceptError> {
        let _lock = lock(&self.state)?;
        let Some(rules) = self.table.rules() else { return Ok(false) };
        let backends = &rules.transparent;
        // If the file is missing, this was `wiretight down`; the check of the table handles that.
        if routes::are(backends)? || !self.state.path().join(FILE).exists() {
            return Ok(false);
        }
        routes::put(backends)?;
        Ok(true)
    }

    fn mended(&mut self) {
        self.mends += 1;
        self.health.mended += 1;
        self.health.last_mended = Some(now());
    }

    /// Returns whether a repair was needed.
    fn look_and_mend(&mut self, gone: bool) -> Result<bool, InterceptError> {
        let _lock = lock(&self.state)?;
        let stale = self.table.is_stale();
        if !self.broken && stale && self.table.is_intact_but_for_groups()? {
            // A control group has appeared or disappeared.
            self.table.pick_anew()?;
            return Ok(false);
        }
        // After a notification, repair at once: a check would take time in which plaintext gets out.
        if !self.broken && self.table.is_intact()? {
            return Ok(false);
        }
        if !self.state.path().join(FILE).exists() {
            self.health.taken_down = true;
            self.health.mode = None;
            self.trial = None;
            self.guard.fall();
            return Ok(false);
        }
        self.table.mend(gone)?;
        Ok(true)
    }
}

/// Rules with every kind of expression, to check that the kernel supports them.
fn sample() -> Rules {
    Rules {
        mode: Mode::Strict,
        peers: Default::default(),
        mark: 1,
        port: 1,
        listens: Default::default(),
        taken: Default::default(),
        protected: Vec::new(),
        passes: Vec::new(),
        resolvers: Vec::new(),
        management: Vec::new(),
        cgroups: Vec::new(),
        transparent: Default::default(),
    }
}
