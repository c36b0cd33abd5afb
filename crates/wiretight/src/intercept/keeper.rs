//! The child that keeps the rules in force for a running node.
//!
//! The node's own process is confined, and need not be able to change the kernel's rules. So a child is started
//! before the sandbox, which keeps CAP_NET_ADMIN and nothing else. It is told [`Rules`], never commands of nft:
//! a hole in a parser opens no more than other rules of the same kind, in the one table.
//!
//! It is two processes: one that works, and one that does nothing but start it anew, should it die. What was asked
//! of the one that died is asked again, so questions have numbers.
//!
//! It ends when the node does; the rules stay. It hears from the kernel when somebody changes the table,
//! and mends it, unless `rules.json` is gone, which is how `wiretight down` says that it shall be so.
//!
//! A trial of another mode is its, too: it takes the mode back when the time is over or the parent is gone, and
//! `rules.json` has the old one all the time. What the parent tells it meanwhile has the old mode, and is put in
//! force with the one that is tried; rules with any other mode end the trial, since then the file was changed.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use wiretight_proxy::intercept::listing::Counts;
use wiretight_proxy::intercept::rules::{Mode, Rules};
use wiretight_proxy::mesh::now;

use super::guard::Guard;
use super::notices::{Heard, Notices};
use super::programs::Programs;
use super::table::Table;
use super::{FILE, InterceptError, MAX_RULES, keep, kept, lock, nft, routes};
use crate::private_dir::PrivateDir;
use crate::{privilege, sandbox};

/// How long the parent waits for an answer: `nft` has 20 s, and there are several in one.
const PATIENCE: Duration = Duration::from_secs(90);
/// A longer answer is refused: a full list of flows with their programs is half of it.
const MAX_ANSWER: u64 = 48 << 20;
/// How often control groups are looked at, and a mend that failed is tried again.
const TICK: Duration = Duration::from_secs(1);
/// How often the table is looked at unasked.
const ROUND: Duration = Duration::from_secs(10);
/// Who mends oftener than this in a round has an adversary that does not tire, such as another node's keeper on this
/// machine: from then on it is once a tick.
const TIRING: u32 = 50;
/// The shortest trial.
pub const MIN_TRIAL: Duration = Duration::from_secs(1);
/// The longest.
pub const MAX_TRIAL: Duration = Duration::from_secs(3600);
/// So long has who confirms a trial to write the file and have it reloaded, if that is longer than what is left.
const HOLD: Duration = Duration::from_secs(60);
/// A parent that died leaves a trial to be taken back: how often that is tried, once a tick.
const LAST_TRIES: u32 = 60;

const SOMEBODY: &str = "somebody else changed or removed the table `inet wiretight`; it was made anew. `wiretight down` takes it away";

/// How the worker ends that could not begin.
const NOT_BEGUN: u8 = 3;

#[derive(Serialize, Deserialize)]
struct Question {
    /// From 1.
    number: u64,
    ask: Ask,
}

#[derive(Serialize, Deserialize)]
struct Answered<A = Answer> {
    /// The question's number; 0 where there was none.
    number: u64,
    answer: A,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Ask {
    /// Put in force. `anew`: even if the operator has taken the rules down. `no_looser`: only where they let no more
    /// pass than those that are in force or kept, for the registry is not known yet.
    Apply {
        rules: Box<Rules>,
        anew: bool,
        #[serde(default)]
        no_looser: bool,
    },
    /// Put the same rules in force with another mode, for a time.
    Try { mode: Mode, seconds: u64 },
    /// The trial is being confirmed: do not end it now.
    Hold,
    /// End the trial.
    Undo,
    /// What was counted, and how the child fares.
    Report,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    /// The worker has begun: whatever was asked before is lost.
    Begun,
    Done,
    Failed(InterceptError),
    Report(Box<Report>),
}

/// What the kernel counted, and how the rules fare.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Since the table was made.
    pub counts: Counts,
    /// How the rules fare.
    pub health: Health,
}

/// How the rules fare.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Health {
    /// The mode for all peers of the rules in force; `None`: none are.
    pub mode: Option<Mode>,
    /// How often somebody else changed or removed the table, and it was mended.
    pub mended: u64,
    /// When it was last, in seconds since 1970.
    pub last_mended: Option<u64>,
    /// A trial that is running.
    pub trial: Option<TrialStatus>,
    /// Since when plaintext has been counted, as far as this process knows, in seconds since 1970.
    pub counted_since: u64,
    /// Whether a second table drops what ours would drop while ours is gone.
    pub guarded: bool,
    /// `wiretight down` has taken the rules away.
    pub taken_down: bool,
    /// Why the table is not as it should be.
    pub error: Option<String>,
    /// Why the routes for `transparent` are not.
    pub routes: Option<String>,
}

/// A mode that is in force for a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrialStatus {
    /// It.
    pub mode: Mode,
    /// What comes back.
    pub instead_of: Mode,
    /// When, in seconds from now.
    pub left_seconds: u64,
}

/// The way to the child.
pub struct Keeper {
    line: tokio::sync::Mutex<Line>,
}

struct Line {
    socket: UnixStream,
    asked: u64,
}

impl Keeper {
    /// Starts the child and waits until it has looked around: to be called before the sandbox is entered. What is
    /// missing (nft, a capability, a kernel that can) or in the way (a table that is not ours) is an error.
    pub fn start(state_dir: &Path, landlock: bool) -> Result<Keeper, InterceptError> {
        let mut command = crate::program::own_program();
        command.arg("rules-keeper").arg(state_dir).args((!landlock).then_some("--no-landlock"));
        Keeper::start_by(command)
    }

    /// The same by a command line of one's own, which comes to `wiretight rules-keeper STATE_DIR`.
    pub fn start_by(mut command: Command) -> Result<Keeper, InterceptError> {
        let gone = |e: std::io::Error| InterceptError::Gone(e.to_string());
        let (mut ours, theirs) = UnixStream::pair().map_err(gone)?;
        let input = OwnedFd::from(theirs.try_clone().map_err(gone)?);
        command
            .stdin(Stdio::from(input))
            .stdout(Stdio::from(OwnedFd::from(theirs)))
            // A signal from the terminal is for us; the child ends when we do.
            .process_group(0)
            .spawn()
            .map_err(gone)?;
        // It holds the other end, which has to be the child's alone.
        drop(command);
        ours.set_read_timeout(Some(PATIENCE)).map_err(gone)?;
        // Byte by byte: what follows the line is not ours to take.
        let (mut line, mut byte) = (Vec::new(), [0]);
        while byte != [b'\n'] && line.len() < MAX_RULES {
            ours.read_exact(&mut byte).map_err(gone)?;
            line.extend(byte);
        }
        match serde_json::from_slice(&line) {
            Ok(Answered { answer: Answer::Failed(error), .. }) => return Err(error),
            Ok(_) => {}
            Err(e) => return Err(InterceptError::Gone(e.to_string())),
        }
        ours.set_read_timeout(None).map_err(gone)?;
        ours.set_nonblocking(true).map_err(gone)?;
        Ok(Keeper { line: Line { socket: ours, asked: 0 }.into() })
    }

    /// Puts rules in force, keeps them there, and keeps them for the next boot. After `wiretight down`
    /// that is refused.
    pub async fn apply(&self, rules: &Rules) -> Result<(), InterceptError> {
        self.tell(rules, false, false).await
    }

    /// The same, also after `wiretight down`: when the node starts, and when the operator asks for it.
    pub async fn apply_anew(&self, rules: &Rules) -> Result<(), InterceptError> {
        self.tell(rules, true, false).await
    }

    /// The same, for rules that do not know the mesh yet: they are put in force only where they let no more pass than
    /// those that are in force or kept from an earlier process.
    pub async fn apply_no_looser(&self, rules: &Rules, anew: bool) -> Result<(), InterceptError> {
        self.tell(rules, anew, true).await
    }

    /// What the kernel has counted, and how the rules fare.
    pub async fn report(&self) -> Result<Report, InterceptError> {
        match self.ask(&Ask::Report).await? {
            Answer::Report(report) => Ok(*report),
            Answer::Failed(error) => Err(error),
            Answer::Done | Answer::Begun => {
                Err(InterceptError::Gone("its answer is another question's".into()))
            }
        }
    }

    /// Puts the rules that are in force there with another mode, until it is confirmed (by rules with that mode) or
    /// the time is over, [`MIN_TRIAL`] to [`MAX_TRIAL`].
    pub async fn begin_trial(&self, mode: Mode, within: Duration) -> Result<(), InterceptError> {
        self.have_done(&Ask::Try { mode, seconds: within.as_secs() }).await
    }

    /// Keeps a trial from ending while it is being confirmed.
    pub async fn hold_trial(&self) -> Result<(), InterceptError> {
        self.have_done(&Ask::Hold).await
    }

    /// Ends a trial.
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

    /// One at a time.
    async fn ask(&self, ask: &Ask) -> Result<Answer, InterceptError> {
        let gone = |e: &dyn std::fmt::Display| InterceptError::Gone(e.to_string());
        let mut line = self.line.lock().await;
        let answer = tokio::time::timeout(PATIENCE, line.ask(ask)).await;
        answer.map_err(|_| gone(&"it does not answer"))?.map_err(|e| gone(&e))
    }
}

impl Line {
    /// May be cut off at any point: the next question begins on a line of its own, and takes only its own answer.
    async fn ask(&mut self, ask: &Ask) -> std::io::Result<Answer> {
        self.asked += 1;
        let question = Question { number: self.asked, ask: ask.clone() };
        let question = [b"\n", &*serde_json::to_vec(&question)?, b"\n"].concat();
        // A handle of its own, for the runtime that asks.
        let stream = tokio::net::UnixStream::from_std(self.socket.try_clone()?)?;
        let mut stream = tokio::io::BufStream::new(stream);
        loop {
            stream.write_all(&question).await?;
            stream.flush().await?;
            // Another worker has begun: it is asked anew.
            if let Some(answer) = self.answer(&mut stream).await? {
                return Ok(answer);
            }
        }
    }

    /// `None`: there will be none.
    async fn answer(
        &self,
        stream: &mut tokio::io::BufStream<tokio::net::UnixStream>,
    ) -> std::io::Result<Option<Answer>> {
        loop {
            let mut answer = Vec::new();
            stream.take(MAX_ANSWER).read_until(b'\n', &mut answer).await?;
            if answer.is_empty() {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            match serde_json::from_slice(&answer) {
                Ok(Answered { answer: Answer::Begun, .. }) => return Ok(None),
                Ok(Answered { number, answer }) if number == self.asked => return Ok(Some(answer)),
                // To a question that was given up; or half a line, by a worker that died.
                Ok(_) | Err(_) => {}
            }
        }
    }
}

/// The child: has a worker, until the node is gone.
pub fn serve(state_dir: &Path, landlock: bool) -> anyhow::Result<ExitCode> {
    // Whether it can be done at all, the worker says.
    let _ = privilege::keep_net_admin_only()?;
    let mut again = false;
    let mut logs = None;
    loop {
        let mut worker = crate::program::own_program();
        worker.arg("rules-keeper").arg(state_dir).args((!landlock).then_some("--no-landlock"));
        worker.args(["--worker", if again { "again" } else { "first" }]);
        let ended = worker.status()?;
        match ended.code() {
            Some(0) => return Ok(ExitCode::SUCCESS),
            Some(code) if code == i32::from(NOT_BEGUN) && !again => return Ok(ExitCode::FAILURE),
            _ => {}
        }
        logs.get_or_insert_with(crate::logging::start);
        tracing::error!(%ended, "the process that keeps the kernel's rules has died; the rules stay, and it is started anew");
        again = true;
        std::thread::sleep(TICK);
        let input = std::io::stdin();
        let mut node = [PollFd::new(&input, PollFlags::empty())];
        poll(&mut node, Some(&Timespec::default()))?;
        if node[0].revents().contains(PollFlags::HUP) {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// The worker: puts in force what it is told, and keeps it so, until its parents are gone. `again`: in the place of
/// one that died.
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
    // Not two of them, should the other process be killed.
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

/// Takes what is there, up to the end of a line. Whether more may come.
fn read_some(input: impl AsFd, asked: &mut Vec<u8>) -> anyhow::Result<bool> {
    let mut buffer = vec![0; 64 << 10];
    match rustix::io::read(input, &mut buffer[..]) {
        Ok(0) => Ok(false),
        Ok(n) if asked.len() + n > MAX_RULES => anyhow::bail!("longer than {MAX_RULES} bytes"),
        Ok(n) => {
            asked.extend(&buffer[..n]);
            Ok(true)
        }
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(true),
        Err(e) => Err(e.into()),
    }
}

fn line(number: u64, answer: &Answer) -> serde_json::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(&Answered { number, answer })?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn write_line(to: &mut impl Write, number: u64, answer: &Answer) -> std::io::Result<()> {
    match to.write_all(&line(number, answer)?).and_then(|()| to.flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// Rules with another mode than they were asked for with.
struct Trial {
    mode: Mode,
    until: Instant,
    /// What comes back.
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
    /// There should be one, and is none. When it was tried last.
    unguarded: bool,
    guarded: Instant,
    notices: Notices,
    route_notices: Notices,
    health: Health,
    trial: Option<Trial>,
    programs: Programs,
    looked: Instant,
    ticked: Instant,
    /// What is still to be mended.
    broken: bool,
    routes_broken: bool,
    /// Mends in this round.
    mends: u32,
}

impl Child {
    fn begin(state_dir: &Path, landlock: bool, again: bool) -> Result<Child, InterceptError> {
        let file = |e| InterceptError::File(crate::logging::chain(&e));
        let state = PrivateDir::open(state_dir).map_err(file)?;
        let failed = |e: std::io::Error| InterceptError::Refused(format!("capabilities: {e}"));
        if !privilege::keep_net_admin_only().map_err(failed)? {
            return Err(InterceptError::NotPermitted);
        }
        if landlock {
            let failed = |e| InterceptError::Refused(format!("Landlock: {e}"));
            sandbox::write_only_in(state.path()).map_err(failed)?;
        }
        let refused = |e: rustix::io::Errno| {
            InterceptError::Refused(format!("the kernel's notices of changes: {e}"))
        };
        let notices = Notices::of_table().map_err(refused)?;
        let route_notices = Notices::of_routes().map_err(refused)?;
        // Whether it could be done at all, and nothing is in the way.
        nft::list()?;
        nft::check(&sample().replace()?)?;
        // What the boot or another process put in force goes on, with its counts. A torn file is the next
        // `apply`'s to write anew.
        let lock = lock(&state)?;
        let kept = kept(&state).ok().flatten();
        let table = kept.as_ref().and_then(|rules| Table::adopt(rules).transpose()).transpose()?;
        let adopted = table.is_some();
        let mut table = table.unwrap_or_default();
        let mut mended = None;
        // The one that died would have mended it.
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

    /// The second table is behind the rules that are in force.
    fn guard(&mut self) {
        let Some(rules) = self.table.rules() else { return };
        self.guarded = Instant::now();
        match self.guard.stand_behind(rules) {
            Ok(()) => self.unguarded = false,
            Err(error) => {
                // It is tried again and again.
                if !std::mem::replace(&mut self.unguarded, true) {
                    tracing::warn!(%error, "there is no second table behind ours; while somebody's change to ours is being mended, plaintext may get out");
                }
            }
        }
    }

    /// Another process may have held it, as the one before this does in an upgrade; or somebody has ended ours.
    fn watch_guard(&mut self) {
        let due = self.guarded.elapsed() >= TICK && !self.health.taken_down;
        if self.guard.has_fallen() || due && self.unguarded {
            self.guard();
        }
    }

    /// Until the node is gone.
    fn converse(&mut self, again: bool) -> anyhow::Result<()> {
        let (input, output) = (std::io::stdin(), std::io::stdout());
        // Neither a question that stops in the middle nor an answer that nobody takes holds up a mend.
        for fd in [input.as_fd(), output.as_fd()] {
            rustix::io::ioctl_fionbio(fd, true)?;
        }
        let (mut asked, mut answer) = (Vec::new(), line(0, &Answer::Begun)?);
        if again {
            answer.insert(0, b'\n'); // after what the other one may have left half written
        }
        loop {
            let writes = if answer.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            // One question at a time.
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
            } else if !read_some(&input, &mut asked)? {
                return Ok(());
            }
            // Half a question, to one that died, may stand before.
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
                        line(0, &Answer::Failed(InterceptError::Rules(error.to_string())))?
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
            return Err(InterceptError::TakenDown);
        }
        // With another mode than at its beginning, the file was changed, which ends a trial.
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
                    tracing::info!(tried, now, "the trial is over: the file has this mode now");
                }
            }
        }
        // After the kernel: a crash between leaves what was kept before for the next boot.
        keep(&self.state, rules)?;
        self.route(rules)
    }

    /// The rules that are in force, or kept from an earlier process.
    fn old(&self) -> Option<Rules> {
        self.table.rules().cloned().or_else(|| kept(&self.state).ok().flatten())
    }

    /// These rules cannot be put in force: what stops plaintext in them is, together with what was in force before or is
    /// kept from an earlier process. Whoever calls it has the lock.
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
                        tracing::warn!(
                            tried,
                            "the trial is over: the rules cannot be put in force"
                        );
                    }
                    let kept = keep(&self.state, &rules).and_then(|()| self.route(&rules));
                    if let Err(error) = kept {
                        tracing::error!(%error, "the stricter rules");
                    }
                    tracing::warn!(
                        mode = rules.mode.word(),
                        "the stricter of the old and the new rules are in force instead"
                    );
                    return;
                }
                Err(error) => tracing::debug!(%error, "stricter rules"),
            }
        }
    }

    /// The routes that go with the rules. Last: what fails here stops the services that need them, and no other
    /// protection.
    fn route(&mut self, rules: &Rules) -> Result<(), InterceptError> {
        let routed = routes::put(&rules.transparent);
        self.route_notices.take();
        self.routes_broken = routed.is_err();
        self.health.routes = routed.as_ref().err().map(ToString::to_string);
        routed
    }

    /// Whoever calls it has the lock.
    fn put(&mut self, rules: &Rules) -> Result<(), InterceptError> {
        let applied = self.table.apply(rules);
        use InterceptError::{NoNft, NotOurs, NotPermitted, Refused};
        match applied {
            Ok(()) => self.hear_ours(),
            // Nothing was changed.
            Err(error @ (NoNft | NotOurs | NotPermitted | Refused(_))) => return Err(error),
            // Nobody knows what is in force: what was before is put back.
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
            return Err(InterceptError::TrialRuns(trial.mode));
        }
        if !(MIN_TRIAL..=MAX_TRIAL).contains(&within) {
            return Err(InterceptError::TrialLength { seconds: within.as_secs() });
        }
        let asked = self.table.rules().cloned().ok_or(InterceptError::NoRules)?;
        let _lock = lock(&self.state)?;
        if !self.state.path().join(FILE).exists() {
            return Err(InterceptError::TakenDown);
        }
        if asked.mode == mode {
            return Err(InterceptError::InForce(mode));
        }
        self.put(&with_mode(&asked, mode))?;
        let seconds = within.as_secs();
        tracing::warn!(
            mode = mode.word(),
            seconds,
            "a mode is tried, and taken back unless confirmed"
        );
        self.trial = Some(Trial { mode, until: Instant::now() + within, asked });
        Ok(())
    }

    fn hold_trial(&mut self) -> Result<(), InterceptError> {
        let trial = self.trial.as_mut().ok_or(InterceptError::NoTrial)?;
        trial.until = trial.until.max(Instant::now() + HOLD);
        Ok(())
    }

    fn undo_trial(&mut self) -> Result<(), InterceptError> {
        if self.trial.is_none() {
            return Err(InterceptError::NoTrial);
        }
        self.roll_back("the operator has ended it")
    }

    fn end_trial_in_time(&mut self) {
        if !self.trial.as_ref().is_some_and(|trial| trial.left().is_zero()) {
            return;
        }
        let Err(error) = self.roll_back("it was not confirmed in time") else { return };
        tracing::error!(%error, "the trial is over, and its mode cannot be taken back; it is tried every second");
        self.health.error = Some(error.to_string());
        if let Some(trial) = &mut self.trial {
            trial.until = Instant::now() + TICK;
        }
    }

    /// Before the end of this process: nobody else would take a trial back before the next start of the node.
    fn leave_no_trial(&mut self) {
        for _ in 0..LAST_TRIES {
            match self.roll_back("the node is gone") {
                Ok(()) => return,
                Err(error) => tracing::error!(%error, "the trial's mode cannot be taken back"),
            }
            std::thread::sleep(TICK);
        }
    }

    /// Puts in force what was before the trial, if there is one.
    fn roll_back(&mut self, why: &str) -> Result<(), InterceptError> {
        let Some(trial) = &self.trial else { return Ok(()) };
        let (tried, asked) = (trial.mode.word(), trial.asked.clone());
        let _lock = lock(&self.state)?;
        // What `wiretight down` has taken away stays away.
        if self.state.path().join(FILE).exists() {
            // The next node's keeper may have been here before us.
            match Table::adopt(&asked)? {
                Some(there) => {
                    self.table = there;
                    self.guard();
                }
                None => self.put(&asked)?,
            }
            self.health.mode = Some(asked.mode);
            let now = asked.mode.word();
            tracing::warn!(
                tried,
                now,
                why,
                "the trial is over, and the mode is what it was before"
            );
        }
        self.trial = None;
        Ok(())
    }

    /// Takes the notices of what we have done ourselves. What somebody else did meanwhile may be among them, and is
    /// looked for: whatever he does from now on is heard.
    fn hear_ours(&mut self) {
        self.notices.take();
        self.broken = self.table.rules().is_some()
            && !self.health.taken_down
            && !self.table.is_intact_but_for_groups().unwrap_or(false);
    }

    /// Looks whether table and routes are as they were left, where there is reason to, and mends them.
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
                    tracing::error!(%error, "the table `inet wiretight` is not as it should be, and cannot be mended; it is tried every second");
                }
                self.broken = true;
                self.health.error = Some(error.to_string());
            }
        }
    }

    fn watch_routes(&mut self) {
        let mended = self.look_at_routes();
        // Ours.
        self.route_notices.take();
        self.routes_broken = mended.is_err();
        match mended {
            Ok(mended) => {
                self.health.routes = None;
                if mended {
                    self.mended();
                    tracing::error!(
                        times = self.health.mended,
                        "somebody else changed or removed the routes of `transparent` services; they were made anew. `wiretight down` takes them away"
                    );
                }
            }
            Err(error) => {
                if self.health.routes.is_none() {
                    tracing::error!(%error, "the routes of `transparent` services; it is tried every second");
                }
                self.health.routes = Some(error.to_string());
            }
        }
    }

    /// Whether there was something to mend.
    fn look_at_routes(&mut self) -> Result<bool, InterceptError> {
        let _lock = lock(&self.state)?;
        let Some(rules) = self.table.rules() else { return Ok(false) };
        let backends = &rules.transparent;
        // Without the file it was `wiretight down`, which the table's turn finds out.
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

    /// Whether there was something to mend.
    fn look_and_mend(&mut self, gone: bool) -> Result<bool, InterceptError> {
        let _lock = lock(&self.state)?;
        let stale = self.table.is_stale();
        if !self.broken && stale && self.table.is_intact_but_for_groups()? {
            // A program was started or ended.
            self.table.pick_anew()?;
            return Ok(false);
        }
        // What was heard is not looked at first: that would be time in which plaintext gets out.
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

/// Rules with each kind of expression, to ask the kernel whether it knows them.
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
