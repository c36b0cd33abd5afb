//! How a monitor is: a file in its state directory, written every few seconds, from which anybody can tell that it
//! lives and sees.

use serde::{Deserialize, Serialize};

use crate::private_dir::{FileError, PrivateDir};

/// Its file.
const FILE: &str = "status.json";
const MAX_FILE: usize = 1 << 20;
/// How often the file is written.
pub(super) const EVERY: u64 = 10;
/// A file that is older than this was left by a monitor that does not run any more.
const OLD: u64 = 60;
/// An unexpected certificate is shown for so long.
const RECENT: u64 = 86_400;

/// What is to be said of a log, worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It is followed.
    Watching,
    /// It has not been read to its end for the first time.
    Starting,
    /// There is something that people have to look at.
    Alert,
    /// What it has signed cannot be read.
    Blind,
    /// There is no monitor.
    NotRunning,
}

/// A monitor.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Status {
    /// When this was written (seconds since 1970).
    pub time: u64,
    /// How long a log may be unreadable before the monitor is blind, in seconds.
    pub max_blind: u64,
    /// The logs.
    pub logs: Vec<LogStatus>,
    /// The alerts that the webhook has not taken.
    pub waiting_alerts: usize,
}

/// A log.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct LogStatus {
    /// Its name.
    pub log: String,
    /// Entries of the newest checkpoint that was believed.
    pub size: u64,
    /// Entries that were read.
    pub read: u64,
    /// When the witnesses had seen that checkpoint.
    pub witnessed_at: Option<u64>,
    /// When all that it had signed was read, for the last time.
    pub complete_at: Option<u64>,
    /// Since when it has not been possible to read it.
    pub failing_since: Option<u64>,
    /// Why.
    pub problem: Option<String>,
    /// Its conduct is what the last alert was about.
    pub misconduct: bool,
    /// Alerts since the monitor started.
    pub alerts: u64,
    /// When the last alert was.
    pub last_alert: Option<u64>,
}

impl Status {
    /// What to say of a log, at `now`.
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

    /// The worst of all logs.
    pub fn worst(&self, now: u64) -> State {
        let states = self.logs.iter().map(|log| self.of_log(log, now));
        states.max().unwrap_or(State::NotRunning)
    }

    /// Reads it from a monitor's state directory; `None` if no monitor has run there.
    pub fn read(dir: &PrivateDir) -> Result<Option<Status>, FileError> {
        let bytes = dir.read(FILE, MAX_FILE)?;
        Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }

    pub(super) fn write(&self, dir: &PrivateDir) -> Result<(), FileError> {
        dir.write(FILE, &serde_json::to_vec(self).expect("a status is plain data"))
    }
}
