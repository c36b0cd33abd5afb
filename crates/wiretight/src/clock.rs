//! The wall clock can be set while we run. Code that plans by the wall clock uses [`Steps`] to replan then; code that
//! only measures durations uses [`uptime`].

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// If the wall clock moves by more than this against [`uptime`], in ms, it was set. Slewing by NTP is far slower.
const STEP: i64 = 2_000;

/// Time since boot, including suspend. Setting the clock does not change it.
pub(crate) fn uptime() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Detects that the wall clock was set.
pub(crate) struct Steps {
    /// The boot time by the wall clock, as of the last check; in milliseconds since 1970.
    origin: i64,
    /// When the clock was last set, or the process started, by [`uptime`].
    since: Duration,
}

impl Steps {
    pub(crate) fn new() -> Steps {
        let since = uptime();
        Steps { origin: origin(since), since }
    }

    /// By how many seconds the clock was set since the last check, if it was.
    pub(crate) fn look(&mut self) -> Option<i64> {
        let uptime = uptime();
        self.look_at(origin(uptime), uptime)
    }

    fn look_at(&mut self, origin: i64, uptime: Duration) -> Option<i64> {
        let by = origin - std::mem::replace(&mut self.origin, origin);
        if by.abs() <= STEP {
            return None;
        }
        self.since = uptime;
        Some(by / 1000)
    }

    /// How long ago the clock was last set, as far as this process knows.
    pub(crate) fn steady_for(&self) -> Duration {
        uptime().saturating_sub(self.since)
    }
}

fn origin(uptime: Duration) -> i64 {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let ms = |d: Duration| i64::try_from(d.as_millis()).unwrap_or(i64::MAX);
    ms(wall).saturating_sub(ms(uptime))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setting_the_clock_is_detected_and_drift_is_ignored() {
        let at = Duration::from_secs;
        let mut steps = Steps { origin: 1_000_000, since: at(0) };
        assert_eq!(steps.look_at(1_000_900, at(10)), None);
        assert_eq!(steps.look_at(1_001_900, at(20)), None);
        assert_eq!(steps.look_at(8_201_900, at(30)), Some(7200));
        assert_eq!(steps.since, at(30));
        assert_eq!(steps.look_at(8_201_900, at(40)), None);
        assert_eq!(steps.look_at(1_001_900, at(50)), Some(-7200));
        assert!(uptime() > Duration::ZERO && Steps::new().look().is_none());
    }
}
