//! The monitor process. Each log has its own task, so that a log that hangs does not delay the others.
//!
//! An unreadable log may be down, but it may also be hiding an entry. So when a log was not read completely for
//! [`Pace::max_blind`], the monitor repeatedly reports that it is blind, even while a request is still hanging.

use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use wiretight_keys::token::hex;
use wiretight_proxy::clock::now;
use wiretight_tlog::Hash;

use super::alarm::Alarm;
use super::follow::{Follower, Look, blind, checkpoint_in};
use super::metrics::Page;
use super::status::{EVERY, LogStatus, Status};
use super::table::OTHERS;
use super::{AlertKind, MonitorError, Source, Watched};
use crate::logging::chain;
use crate::private_dir::{Lock, PrivateDir};
use crate::web::client::{Client, Limit, Url};

/// A failed check is repeated after this time, if that is sooner than the next check.
const AGAIN: Duration = Duration::from_secs(5);
/// A log that makes progress but was not read completely after this many times [`Pace::max_blind`] counts as unreadable:
/// it may delay old entries to hide new ones.
const SLOW: u32 = 10;
/// How often to check whether a request hangs.
const TICK: Duration = Duration::from_millis(500);
const HEARTBEAT: Limit = Limit { time: Duration::from_secs(10), body: 64 * 1024 };

#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Between two checks.
    pub interval: Duration,
    /// How long a log may be unreadable.
    pub max_blind: Duration,
}

pub struct Monitor {
    followers: Vec<Follower>,
    alarm: Alarm,
    shown: Arc<Shown>,
    pace: Pace,
    _lock: Lock,
}

/// The status of the monitor, and where it is published.
pub(super) struct Shown {
    dir: PrivateDir,
    status: Mutex<Status>,
    heartbeat: Option<(Client, Url)>,
}

/// The result of one check of all logs, worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// No alert.
    Quiet,
    /// A log could not be read to its signed size.
    Blind,
    Alert,
}

impl Monitor {
    /// Continues with the state in `dir`, or creates it.
    pub fn open(
        dir: &Path,
        sources: Vec<Source>,
        watched: Watched,
        alarm: impl FnOnce(PrivateDir) -> Result<Alarm, crate::private_dir::FileError>,
        pace: Pace,
        heartbeat: Option<(Client, Url)>,
    ) -> Result<Monitor, MonitorError> {
        let dir = PrivateDir::open(dir)?;
        let lock = dir.lock("lock")?.ok_or_else(|| MonitorError::InUse(dir.path().to_owned()))?;
        let alarm = alarm(dir.clone())?;
        // A log that was followed when the policy had only one keeps its directory.
        let before = checkpoint_in(&dir)?;
        let is_it = |source: &Source| {
            let signed = |log: &wiretight_tlog::policy::Log| {
                before.as_ref().is_some_and(|b| b.verified_by(&log.key).is_some())
            };
            source.policy.logs().iter().any(signed)
        };
        let first = sources.iter().position(is_it).unwrap_or(0);
        let watched = Arc::new(watched);
        let mut followers = Vec::new();
        for (n, source) in sources.into_iter().enumerate() {
            let key = source.policy.logs().first().map(|log| log.key.to_string());
            let place = match (n == first, key) {
                (false, Some(key)) => {
                    let name = hex(&Hash::of(key.as_bytes()).as_bytes()[..8]);
                    PrivateDir::open(dir.path().join(OTHERS))?.path().join(name)
                }
                _ => dir.path().to_owned(),
            };
            followers.push(Follower::open(&place, source, watched.clone())?);
        }
        let logs = followers.iter().map(|f| LogStatus {
            log: f.origin().to_owned(),
            size: f.last().map_or(0, |last| last.unverified().size),
            read: f.read(),
            ..LogStatus::default()
        });
        let max_blind = pace.max_blind.as_secs();
        let status = Status { time: now(), max_blind, logs: logs.collect(), waiting_alerts: 0 };
        let shown = Arc::new(Shown { dir, status: Mutex::new(status), heartbeat });
        Ok(Monitor { followers, alarm, shown, pace, _lock: lock })
    }

    /// Answers scrapes of Prometheus.
    pub fn metrics(&self) -> Page {
        Page { shown: self.shown.clone(), alarm: self.alarm.clone() }
    }

    /// Checks every log once. An unreadable log is reported at once, because there is no later check.
    pub async fn once(mut self) -> Outcome {
        let mut worst = Outcome::Quiet;
        let mut looks = JoinSet::new();
        for (n, mut follower) in self.followers.drain(..).enumerate() {
            let (alarm, shown, began) = (self.alarm.clone(), self.shown.clone(), now());
            looks.spawn(async move {
                let look = follower.look(now(), &alarm).await;
                let mut outcome = if look.is_quiet() { Outcome::Quiet } else { Outcome::Alert };
                if let Some(problem) = &look.problem
                    && look.alerts == 0
                {
                    outcome = Outcome::Blind;
                    alarm.tell(follower.blind(began, problem, now()));
                }
                shown.saw(n, &follower, &look, now());
                outcome
            });
        }
        while let Some(looked) = looks.join_next().await {
            worst = worst.max(looked.unwrap_or(Outcome::Blind));
        }
        self.alarm.flush().await;
        self.shown.write(&self.alarm);
        worst
    }

    /// Checks repeatedly until dropped. The saved state is consistent at any time.
    pub async fn watch(mut self) {
        let mut tasks = JoinSet::new();
        for (n, follower) in self.followers.drain(..).enumerate() {
            let (alarm, shown, pace) = (self.alarm.clone(), self.shown.clone(), self.pace);
            tasks.spawn(follow(n, follower, alarm, shown, pace));
        }
        let show = async {
            loop {
                self.shown.write(&self.alarm);
                sleep(Duration::from_secs(EVERY)).await;
            }
        };
        tokio::select! {
            () = self.alarm.send() => {}
            () = show => {}
            // A task ends only by a panic.
            _ = tasks.join_next() => tracing::error!("a log is no longer followed. This is a bug: please report it."),
        }
    }
}

/// Follows a log; never returns.
async fn follow(n: usize, mut follower: Follower, alarm: Alarm, shown: Arc<Shown>, pace: Pace) {
    let bound = pace.max_blind;
    // Since when the log was not read completely.
    let mut incomplete: Option<(u64, Instant)> = None;
    let mut problem = "none".to_owned();
    // The number of entries read, and when it last changed.
    let mut progress = (0, Instant::now());
    let count = follower.progress();
    loop {
        let (since, began) = *incomplete.get_or_insert_with(|| {
            progress.1 = Instant::now();
            (now(), Instant::now())
        });
        let is_blind =
            |progressed: Instant| progressed.elapsed() >= bound || began.elapsed() >= bound * SLOW;
        let (origin, read) = (follower.origin().to_owned(), follower.read());
        let signed = follower.last().map_or(0, |last| last.unverified().size);
        let look = {
            let mut look = pin!(follower.look(now(), &alarm));
            loop {
                tokio::select! {
                    look = &mut look => break look,
                    () = sleep(TICK) => {}
                }
                if count.load(Relaxed) != progress.0 {
                    progress = (count.load(Relaxed), Instant::now());
                }
                if is_blind(progress.1) {
                    let so_far = format!("A request has no response yet. Last error: {problem}");
                    shown.fails(n, since, &so_far);
                    let alert = blind(&origin, read, signed, since, &so_far, now());
                    shown.told(n, &alarm, alert);
                }
            }
        };
        if shown.saw(n, &follower, &look, now()) {
            shown.write(&alarm);
        }
        let Look { alerts, entries, .. } = look;
        tracing::info!(
            log = follower.origin(),
            size = follower.read(),
            new = entries,
            alerts,
            "checked the log"
        );
        let pause = match look.problem {
            None => {
                incomplete = None;
                alarm.over(AlertKind::Blind, follower.origin());
                if !look.misconduct {
                    shown.beat().await;
                }
                pace.interval
            }
            Some(why) => {
                tracing::warn!(
                    log = follower.origin(),
                    error = why,
                    "this check could not read the log completely"
                );
                problem = why;
                shown.fails(n, since, &problem);
                if is_blind(progress.1) {
                    shown.told(n, &alarm, follower.blind(since, &problem, now()));
                }
                pace.interval.min(AGAIN).min(bound).max(TICK)
            }
        };
        sleep(pause).await;
    }
}

impl Shown {
    pub(super) fn status(&self) -> Status {
        let status = self.status.lock().clone();
        Status { time: now(), ..status }
    }

    /// Updates the status after a check. Returns whether it changed.
    fn saw(&self, n: usize, follower: &Follower, look: &Look, now: u64) -> bool {
        let mut status = self.status.lock();
        let log = &mut status.logs[n];
        let before = (log.complete_at.is_some(), log.failing_since, log.misconduct, log.alerts);
        log.size = follower.last().map_or(0, |last| last.unverified().size);
        log.read = follower.read();
        log.witnessed_at = follower.witnessed_at();
        log.misconduct = look.misconduct;
        log.alerts += look.alerts as u64;
        if look.alerts > 0 {
            log.last_alert = Some(now);
        }
        match &look.problem {
            None => {
                if log.failing_since.take().is_some() {
                    tracing::info!(log = log.log, "the log is readable again");
                }
                log.problem = None;
                if !look.misconduct {
                    log.complete_at = Some(now);
                }
            }
            Some(problem) => log.problem = Some(problem.clone()),
        }
        before != (log.complete_at.is_some(), log.failing_since, log.misconduct, log.alerts)
    }

    fn fails(&self, n: usize, since: u64, problem: &str) {
        let mut status = self.status.lock();
        status.logs[n].failing_since = Some(since);
        status.logs[n].problem = Some(problem.to_owned());
    }

    /// Raises the alert that the log is unreadable.
    fn told(&self, n: usize, alarm: &Alarm, alert: super::Alert) {
        if alarm.tell(alert) {
            self.status.lock().logs[n].alerts += 1;
            if let Err(error) = alarm.keep() {
                tracing::error!("{}", chain(&error));
            }
            self.write(alarm);
        }
    }

    fn write(&self, alarm: &Alarm) {
        let status = {
            let mut status = self.status.lock();
            (status.time, status.waiting_alerts) = (now(), alarm.waiting());
            status.clone()
        };
        if let Err(error) = status.write(&self.dir) {
            tracing::error!("cannot write the status: {}", chain(&error));
        }
    }

    /// Sends the heartbeat if all logs are read completely.
    async fn beat(&self) {
        let Some((client, url)) = &self.heartbeat else { return };
        let status = self.status.lock().clone();
        if status.logs.iter().any(|log| log.failing_since.is_some() || log.complete_at.is_none()) {
            return;
        }
        let body = serde_json::to_vec(&status).expect("a status is plain data");
        let problem = match client.post(url, "application/json", body, HEARTBEAT).await {
            Ok(answer) if (200..300).contains(&answer.status) => return,
            Ok(answer) => format!("status {}", answer.status),
            Err(error) => chain(&error),
        };
        tracing::warn!(heartbeat = url.host(), problem, "cannot send the heartbeat");
    }
}
