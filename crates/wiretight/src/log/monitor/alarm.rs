//! Where alerts go: the log of the process at once, and a webhook as fast as that takes them.
//!
//! Nothing waits for the webhook. Alerts that it has not taken are in a file (`OUTBOX`), so that they survive a restart:
//! it is written before what they are about counts as read. A webhook that is down is asked again and again; an alert
//! that it refuses is given up after some tries, and does not hold up the others.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::{Alert, AlertKind};
use crate::logging::chain;
use crate::private_dir::{FileError, PrivateDir};
use crate::web::client::{Client, Limit, Url};

/// The alerts that the webhook has not taken yet.
const OUTBOX: &str = "outbox.json";
/// How often the webhook may refuse an alert.
const TRIES: u32 = 4;
/// After the first failure; doubled at each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
const LIMIT: Limit = Limit { time: Duration::from_secs(10), body: 64 * 1024 };
/// Alerts that wait for the webhook at most.
const WAITING: usize = 1000;
/// So many are sent between two writes of the file.
const SENT: usize = 32;
const MAX_OUTBOX: usize = 16 << 20;
/// Alerts that are remembered so as not to be told twice.
const REMEMBERED: usize = 10_000;

/// Tells of alerts. Copies are one.
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
    /// With how often the webhook has refused it.
    waiting: VecDeque<(Alert, u32)>,
    /// Alerts for which there was no room.
    left_out: u64,
    /// The file does not say what is waiting.
    dirty: bool,
    /// The webhook has failed so often in succession.
    failures: u32,
}

impl Alarm {
    /// Tells the log, and the webhook if there is one. What goes on being wrong is told again after `repeat`.
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
                    "{} is damaged: alerts that the webhook had not taken are in the log alone",
                    dir.path().join(OUTBOX).display()
                ),
            }
        }
        let repeat = repeat.as_secs();
        let shared =
            Shared { webhook, dir, repeat, state: Mutex::new(state), changed: Notify::new() };
        Ok(Alarm { shared: Arc::new(shared) })
    }

    /// Tells of an alert, unless it was told a short time ago. Whether it was told.
    pub fn tell(&self, alert: Alert) -> bool {
        let mut state = self.state();
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
        let Alert { kind, log, detail, evidence, .. } = &alert;
        let evidence = evidence.as_ref().map(|path| path.display().to_string());
        tracing::error!(alert = kind.as_str(), log, evidence, "{detail}");
        if self.shared.webhook.is_some() {
            let waiting = state.waiting.len();
            match alert.kind.is_of_entry() {
                // Behind the first, which is on its way: no flood of certificates hides that a log misbehaves.
                false => state.waiting.insert(waiting.min(1), (alert, 0)),
                true if waiting < WAITING => state.waiting.push_back((alert, 0)),
                true => state.left_out += 1,
            }
            state.dirty = true;
        }
        true
    }

    /// This is over: when it comes again, it is told at once.
    pub fn over(&self, kind: AlertKind, log: &str) {
        self.state().told.retain(|(told, of, ..), _| *told != kind || of != log);
    }

    /// What was told survives from here on; the webhook gets it.
    pub fn keep(&self) -> Result<(), FileError> {
        let kept = self.write(&mut self.state());
        self.shared.changed.notify_one();
        kept
    }

    /// How many alerts wait for the webhook.
    pub fn waiting(&self) -> usize {
        self.state().waiting.len()
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

    /// Brings the webhook what waits for it, for ever.
    pub async fn send(&self) {
        let Some((client, url)) = &self.shared.webhook else { return std::future::pending().await };
        loop {
            let next = self.state().waiting.front().map(|(alert, _)| alert.clone());
            let Some(alert) = next else {
                self.shared.changed.notified().await;
                continue;
            };
            if let Some(pause) = self.send_one(client, url, &alert).await {
                tokio::time::sleep(pause).await;
            }
        }
    }

    /// Waits until the webhook has what there was to tell, or does not take it.
    pub async fn flush(&self) {
        let is_done = || {
            let state = self.state();
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
                    "the webhook has not taken all alerts: they are in this log, and sent at the next run"
                );
            }
        }
        if let Err(error) = self.keep() {
            tracing::error!("{}", chain(&error));
        }
    }

    /// Sends an alert once; how long to wait before the next.
    async fn send_one(&self, client: &Client, url: &Url, alert: &Alert) -> Option<Duration> {
        let body = serde_json::to_vec(alert).expect("an alert is plain data");
        let (problem, refused, retry_after) = match client
            .post(url, "application/json", body, LIMIT)
            .await
        {
            Ok(answer) if (200..300).contains(&answer.status) => {
                let mut state = self.state();
                state.waiting.pop_front();
                state.failures = 0;
                state.dirty = true;
                if state.waiting.is_empty() && state.left_out > 0 {
                    let count = std::mem::take(&mut state.left_out);
                    let detail = format!(
                        "{count} more alerts came faster than the webhook takes them: they are in the monitor's log alone"
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
        let mut state = self.state();
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
                        "the webhook refuses an alert: it is in this log alone"
                    );
                }
                // Whether it is this alert that the webhook does not like shows when it gets another.
                false => state.waiting.push_back((alert, tries + u32::from(refused))),
            }
        }
        if state.failures == TRIES {
            tracing::error!(
                webhook = url.host(),
                problem,
                waiting = state.waiting.len(),
                "the webhook takes no alerts: they are in this log, and it is asked again"
            );
        }
        Some(pause)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
