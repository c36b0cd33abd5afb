//! Whether an address still answers. The scan soon stops if an address does not answer at all, or if it
//! stopped answering, for example because it banned the scanner. Neither answers any question.

use std::sync::OnceLock;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The number of failed connections in a row after which an address counts as stopped. A restarting server
/// rejects some too, so [`Contact::failed`] also requires a minimum time.
const FAILURES: u32 = 5;
/// The shortest time limit for a connection to an address that has accepted one before: a lost SYN is
/// repeated after 1 s and after 3 s.
const SHORTEST_WAIT: Duration = Duration::from_millis(3_500);

#[derive(Debug)]
pub(super) struct Contact {
    tries: u32,
    state: Mutex<State>,
    stopped: OnceLock<String>,
}

#[derive(Debug)]
struct State {
    /// Connections that were accepted.
    accepted: u64,
    /// The slowest of them.
    slowest: Duration,
    /// Connections that failed since.
    failed: u32,
    /// Rounds of unanswered control hellos since the last answer.
    silent: u32,
    last_accepted: Instant,
    last_answered: Instant,
}

impl Contact {
    /// Creates the state of an address that has not been contacted yet. `tries` is the number of attempts
    /// if it accepts no connection.
    pub fn new(tries: u32) -> Self {
        let now = Instant::now();
        Self {
            tries,
            state: Mutex::new(State {
                accepted: 0,
                slowest: Duration::ZERO,
                failed: 0,
                silent: 0,
                last_accepted: now,
                last_answered: now,
            }),
            stopped: OnceLock::new(),
        }
    }

    /// The time limits of the attempts to connect. Together they take about `timeout`.
    pub fn waits(&self, timeout: Duration) -> Vec<Duration> {
        let state = self.state.lock();
        if state.accepted > 0 {
            return vec![(state.slowest * 20).max(SHORTEST_WAIT).min(timeout)];
        }
        if self.tries < 2 {
            return vec![timeout];
        }
        let first = (timeout / 2).max(timeout.min(Duration::from_secs(3)));
        let second = (timeout - first).max(timeout.min(Duration::from_secs(1)));
        vec![first, second]
    }

    pub fn accepted(&self, now: Instant, took: Duration) {
        let mut state = self.state.lock();
        state.accepted += 1;
        state.slowest = state.slowest.max(took);
        state.failed = 0;
        state.last_accepted = now;
    }

    /// Records a failed connection. After several in a row, without success for a whole time-out, the
    /// address counts as stopped.
    pub fn failed(&self, now: Instant, timeout: Duration) {
        let mut state = self.state.lock();
        state.failed += 1;
        if state.accepted > 0
            && state.failed >= FAILURES
            && now.duration_since(state.last_accepted) >= timeout
        {
            self.stop(state.accepted);
        }
    }

    /// Records an answer in TLS, a hello or an alert.
    pub fn answered(&self, now: Instant) {
        let mut state = self.state.lock();
        state.silent = 0;
        state.last_answered = now;
    }

    /// Records a round of control hellos without an answer, while no other connection of ours was open.
    /// After several in a row, the address counts as stopped. A limit for a few seconds does not count.
    pub fn silent(&self, now: Instant, timeout: Duration) {
        let mut state = self.state.lock();
        state.silent += 1;
        let silence = now.duration_since(state.last_answered);
        let long = (state.silent >= 6 && silence >= timeout * 2)
            || (state.silent >= 3 && silence >= timeout * 3);
        if state.accepted > 0 && long {
            self.stop(state.accepted);
        }
    }

    fn stop(&self, accepted: u64) {
        let times = if accepted == 1 { "connection" } else { "connections" };
        let why =
            format!("the address stopped answering after {accepted} {times}: did it ban this one?");
        tracing::debug!(%why, "no further probes");
        let _ = self.stopped.set(why);
    }

    /// Why the scan has stopped, if it has.
    pub fn stopped(&self) -> Option<&str> {
        self.stopped.get().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);
    const QUICK: Duration = Duration::from_millis(1);

    #[test]
    fn an_address_that_stops_is_distinguished_from_a_restart_and_from_limits() {
        let mut now = Instant::now();
        let contact = Contact::new(2);
        assert_eq!(contact.waits(TIMEOUT), [TIMEOUT / 2; 2]);
        let total = |timeout| contact.waits(timeout).iter().sum::<Duration>();
        assert_eq!(total(Duration::from_secs(1)), Duration::from_secs(2));
        assert_eq!(total(Duration::from_secs(5)), Duration::from_secs(5));
        // An address that never answered has not stopped.
        now += TIMEOUT * 2;
        (0..20).for_each(|_| contact.failed(now, TIMEOUT));
        assert_eq!(contact.stopped(), None);

        contact.accepted(now, QUICK);
        assert_eq!(contact.waits(TIMEOUT), [SHORTEST_WAIT]);
        // Connections fail for some seconds, as if the server restarts.
        (0..20).for_each(|_| contact.failed(now, TIMEOUT));
        now += TIMEOUT / 2;
        contact.failed(now, TIMEOUT);
        assert_eq!(contact.stopped(), None);
        contact.accepted(now, QUICK);
        // Few failures over a long time.
        now += TIMEOUT * 2;
        (1..FAILURES).for_each(|_| contact.failed(now, TIMEOUT));
        assert_eq!(contact.stopped(), None);
        contact.failed(now, TIMEOUT);
        let why = contact.stopped().unwrap();
        assert!(why.contains("after 2 connections"), "{why}");
    }

    #[test]
    fn silence_counts_only_after_a_long_time_without_answers() {
        let mut now = Instant::now();
        let contact = Contact::new(2);
        contact.accepted(now, QUICK);
        contact.answered(now);
        // A limit for some seconds.
        now += TIMEOUT;
        (0..6).for_each(|_| contact.silent(now, TIMEOUT));
        assert_eq!(contact.stopped(), None);
        contact.answered(now);
        now += TIMEOUT * 3;
        (0..2).for_each(|_| contact.silent(now, TIMEOUT));
        assert_eq!(contact.stopped(), None);
        contact.silent(now, TIMEOUT);
        assert!(contact.stopped().is_some());
    }
}
