//! The status of a monitor: a file in its state directory that is written every few seconds. Others can check with it
//! that the monitor is running and can read its logs.

use serde::{Deserialize, Serialize};

use crate::private_dir::{FileError, PrivateDir};

const FILE: &str = "status.json";
const MAX_FILE: usize = 1 << 20;
/// How often the file is written, in seconds.
pub(super) const EVERY: u64 = 10;
/// If the file is older than this, in seconds, the monitor is not running.
const OLD: u64 = 60;
/// How long an alert is shown, in seconds.
const RECENT: u64 = 86_400;

/// The state of a log, worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    Watching,
    /// The log has not been read completely for the first time.
    Starting,
    /// There was an alert.
    Alert,
    /// The log could not be read to its signed size.
    Blind,
    NotRunning,
}

/// The status of a monitor.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Status {
    /// When this was written (seconds since 1970).
    pub time: u64,
    /// How long a log may be unreadable before the monitor is blind, in seconds.
    pub max_blind: u64,
    pub logs: Vec<LogStatus>,
    /// The number of alerts that are not delivered to the webhook yet.
    pub waiting_alerts: usize,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct LogStatus {
    /// The origin of the log.
    pub log: String,
    /// Size of the newest accepted checkpoint.
    pub size: u64,
    /// Number of entries that were read.
    pub read: u64,
    /// When the witnesses had cosigned that checkpoint.
    pub witnessed_at: Option<u64>,
    /// When the log was last read completely.
    pub complete_at: Option<u64>,
    /// Since when it cannot be read completely.
    pub failing_since: Option<u64>,
    /// Why it cannot be read.
    pub problem: Option<String>,
    /// The last check raised an alert about the log itself.
    pub misconduct: bool,
    /// Number of alerts since the monitor started.
    pub alerts: u64,
    /// When the last alert was raised.
    pub last_alert: Option<u64>,
}

impl Status {
    /// The state of a log at `now`.
    pub fn of_log(&self, log: &LogStatus, now: u64) -> State {
        let failing =
            log.failing_since.is_some_and(|since| now.saturating_sub(since) >= self.max_blind);
        match log {
            _ if now.saturating_sub(self.time) > OLD => State::NotRunning,
            _ if failing => State::Blind,
            LogStatus { misconduct: true, .. } => State::Alert,
            LogStatus { last_alert: Some(at), .. } if now.saturating_sub(*at) < RECENT => {
                State::Alert
            }
            LogStatus { complete_at: None, .. } => State::Starting,
            _ => State::Watching,
        }
    }

    /// The worst state of all logs.
    pub fn worst(&self, now: u64) -> State {
        let states = self.logs.iter().map(|log| self.of_log(log, now));
        states.max().unwrap_or(State::NotRunning)
    }

    /// Reads the status from a monitor's state directory; `None` if no monitor has run there.
    pub fn read(dir: &PrivateDir) -> Result<Option<Status>, FileError> {
        let bytes = dir.read(FILE, MAX_FILE)?;
        Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }

    pub(super) fn write(&self, dir: &PrivateDir) -> Result<(), FileError> {
        dir.write(FILE, &serde_json::to_vec(self).expect("a status is plain data"))
    }
}
