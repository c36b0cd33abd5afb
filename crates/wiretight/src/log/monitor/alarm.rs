//! Delivers alerts: to the log of the process at once, and to a webhook as fast as it accepts them.
//!
//! Nothing waits for the webhook. Undelivered alerts are in a file (`OUTBOX`), so that they survive a restart. The file
//! is written before the entries they are about count as read. If the webhook is down, delivery is retried. An alert
//! that it refuses is dropped after some tries, and does not delay the others.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Alert, AlertKind};
use crate::logging::chain;
use crate::private_dir::{FileError, PrivateDir};
use crate::web::client::{Client, Limit, Url};

/// The file of undelivered alerts.
const OUTBOX: &str = "outbox.json";
/// How often the webhook may refuse an alert.
const TRIES: u32 = 4;
/// Pause after the first failure; doubled at each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
const LIMIT: Limit = Limit { time: Duration::from_secs(10), body: 64 * 1024 };
/// The most undelivered alerts.
const WAITING: usize = 1000;
/// Deliveries between two writes of the file.
const SENT: usize = 32;
const MAX_OUTBOX: usize = 16 << 20;
/// The most alerts that are remembered, so that they are not repeated.
const REMEMBERED: usize = 10_000;

/// Clones refer to the same alarm.
#[derive(Clone)]
pub struct Alarm {
    shared: Arc<Shared>,
}

struct Shared {
    webhook: Option<(Client, Url)>,
    dir: PrivateDir,
    repeat: u64,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    told: HashMap<(AlertKind, String, Option<u64>, Option<String>), u64>,
    /// How often each alert was raised, by log.
    raised: BTreeMap<(AlertKind, String), u64>,
    /// Undelivered alerts, and how often the webhook has refused each.
    waiting: VecDeque<(Alert, u32)>,
    /// Alerts for which there was no room.
    left_out: u64,
    /// The file is not up to date.
    dirty: bool,
    /// Consecutive failures of the webhook.
    failures: u32,
}

impl Alarm {
    /// Alerts go to the log, and to the webhook if there is one. An alert about a continuing problem is repeated after
    /// `repeat`.
    pub fn open(
        dir: PrivateDir,
        webhook: Option<(Client, Url)>,
        repeat: Duration,
    ) -> Result<Alarm, FileError> {
        let mut state = State::default();
        if webhook.is_some()
            && let Some(bytes) = dir.read(OUTBOX, MAX_OUTBOX)?
        {
            match serde_json::from_slice::<Vec<Alert>>(&bytes) {
                Ok(alerts) => {
                    state.waiting.extend(alerts.into_iter().map(|a| (a, 0)).take(WAITING))
                }
                Err(error) => tracing::error!(
                    %error,
                    "{} is damaged, so undelivered alerts cannot be sent to the webhook. They are in earlier logs.",
                    dir.path().join(OUTBOX).display()
                ),
            }
        }
        let repeat = repeat.as_secs();
        let shared =
            Shared { webhook, dir, repeat, state: Mutex::new(state), changed: Notify::new() };
        Ok(Alarm { shared: Arc::new(shared) })
    }

    /// Raises an alert, unless the same was raised recently. Returns whether it was raised.
    pub fn tell(&self, alert: Alert) -> bool {
        let mut state = self.shared.state.lock();
        let which = (alert.kind, alert.log.clone(), alert.index, alert.name.clone());
        let recent = |at: &u64| alert.time.saturating_sub(*at) < self.shared.repeat;
        if state.told.get(&which).is_some_and(recent) {
            return false;
        }
        if state.told.len() >= REMEMBERED {
            state.told.retain(|_, at| recent(at));
        }
        if state.told.len() < REMEMBERED {
            state.told.insert(which, alert.time);
        }
        *state.raised.entry((alert.kind, alert.log.clone())).or_default() += 1;
        let Alert { kind, log, detail, evidence, .. } = &alert;
        let evidence = evidence.as_ref().map(|path| path.display().to_string());
        tracing::error!(alert = kind.as_str(), log, evidence, "{detail}");
        if self.shared.webhook.is_some() {
            let waiting = state.waiting.len();
            match alert.kind.is_of_entry() {
                // Alerts about the log itself go first, after the one being sent: a flood of certificates must not delay
                // them.
                false => state.waiting.insert(waiting.min(1), (alert, 0)),
                true if waiting < WAITING => state.waiting.push_back((alert, 0)),
                true => state.left_out += 1,
            }
            state.dirty = true;
        }
        true
    }

    /// The problem is over: if it occurs again, an alert is raised at once.
    pub fn over(&self, kind: AlertKind, log: &str) {
        self.shared.state.lock().told.retain(|(told, of, ..), _| *told != kind || of != log);
    }

    /// Saves undelivered alerts, and starts sending.
    pub fn keep(&self) -> Result<(), FileError> {
        let kept = self.write(&mut self.shared.state.lock());
        self.shared.changed.notify_one();
        kept
    }

    /// How often each alert was raised since the start, by log.
    pub(super) fn raised(&self) -> Vec<(AlertKind, String, u64)> {
        let state = self.shared.state.lock();
        state.raised.iter().map(|((kind, log), count)| (*kind, log.clone(), *count)).collect()
    }

    /// The number of undelivered alerts.
    pub fn waiting(&self) -> usize {
        self.shared.state.lock().waiting.len()
    }

    fn write(&self, state: &mut State) -> Result<(), FileError> {
        if !state.dirty {
            return Ok(());
        }
        match state.waiting.is_empty() {
            true => self.shared.dir.remove(OUTBOX)?,
            false => {
                let alerts: Vec<&Alert> = state.waiting.iter().map(|(alert, _)| alert).collect();
                let json = serde_json::to_vec(&alerts).expect("an alert is plain data");
                self.shared.dir.write(OUTBOX, &json)?;
            }
        }
        state.dirty = false;
        Ok(())
    }

    /// Sends alerts to the webhook. Never returns.
    pub async fn send(&self) {
        let Some((client, url)) = &self.shared.webhook else { return std::future::pending().await };
        loop {
            let next = self.shared.state.lock().waiting.front().map(|(alert, _)| alert.clone());
            let Some(alert) = next else {
                self.shared.changed.notified().await;
                continue;
            };
            if let Some(pause) = self.send_one(client, url, &alert).await {
                tokio::time::sleep(pause).await;
            }
        }
    }

    /// Sends until all alerts are delivered or the webhook fails repeatedly.
    pub async fn flush(&self) {
        let is_done = || {
            let state = self.shared.state.lock();
            state.waiting.is_empty() || state.failures >= TRIES
        };
        let done = async {
            while !is_done() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        if self.shared.webhook.is_some() {
            tokio::select! {
                () = self.send() => {}
                () = done => {}
                () = tokio::time::sleep(LONGEST_PAUSE) => {}
            }
            if self.waiting() > 0 {
                tracing::error!(
                    alerts = self.waiting(),
                    "some alerts could not be sent to the webhook. They are in this log, and will be sent at the next run."
                );
            }
        }
        if let Err(error) = self.keep() {
            tracing::error!("{}", chain(&error));
        }
    }

    /// Tries to send an alert. Returns how long to wait before the next try.
    async fn send_one(&self, client: &Client, url: &Url, alert: &Alert) -> Option<Duration> {
        let body = serde_json::to_vec(alert).expect("an alert is plain data");
        let (problem, refused, retry_after) = match client
            .post(url, "application/json", body, LIMIT)
            .await
        {
            Ok(answer) if (200..300).contains(&answer.status) => {
                let mut state = self.shared.state.lock();
                state.waiting.pop_front();
                state.failures = 0;
                state.dirty = true;
                if state.waiting.is_empty() && state.left_out > 0 {
                    let count = std::mem::take(&mut state.left_out);
                    let detail = format!(
                        "{count} more alerts came faster than the webhook accepts them. They are only in the monitor's log."
                    );
                    let more = Alert::new(AlertKind::MoreAlerts, &alert.log, detail, alert.time);
                    state.waiting.push_back((more, 0));
                }
                if state.waiting.len().is_multiple_of(SENT)
                    && let Err(error) = self.write(&mut state)
                {
                    tracing::error!("{}", chain(&error));
                }
                return None;
            }
            Ok(answer) => {
                let refused = (400..500).contains(&answer.status) && answer.status != 429;
                (format!("status {}", answer.status), refused, answer.retry_after)
            }
            Err(error) => (chain(&error), false, None),
        };
        let mut state = self.shared.state.lock();
        state.failures += 1;
        let pause = FIRST_PAUSE * 2u32.saturating_pow((state.failures - 1).min(10));
        let pause = retry_after.unwrap_or(pause).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        if let Some((alert, tries)) = state.waiting.pop_front() {
            match refused && tries + 1 >= TRIES {
                true => {
                    state.dirty = true;
                    tracing::error!(
                        webhook = url.host(),
                        problem,
                        alert = alert.kind.as_str(),
                        "the webhook refuses an alert, so it is only in this log"
                    );
                }
                // Try another alert next: the problem may be this alert or the webhook.
                false => state.waiting.push_back((alert, tries + u32::from(refused))),
            }
        }
        if state.failures == TRIES {
            tracing::error!(
                webhook = url.host(),
                problem,
                waiting = state.waiting.len(),
                "the webhook does not accept alerts. They are in this log, and sending is retried."
            );
        }
        Some(pause)
    }
}
