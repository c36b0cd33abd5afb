//! Whether an address still answers. A dead address is given up soon; so is one that answered and then
//! stopped, as a host does that bans the scanner. Neither is an answer to any question.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Connections that fail in a row before the address counts as one that stopped answering. A server that
/// restarts refuses some as well, so [`Contact::failed`] also wants a time.
const FAILURES: u32 = 5;
/// The shortest wait for a connection to an address that accepted one before: a lost SYN is sent again
/// after 1 s and after 3 s.
const SHORTEST_WAIT: Duration = Duration::from_millis(3_500);

/// What is known of it.
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
    /// Rounds of control hellos that met nothing since the last answer.
    silent: u32,
    /// When one was accepted, and when TLS was answered, for the last time.
    last_accepted: Instant,
    last_answered: Instant,
}

impl Contact {
    /// An address that was not asked yet; one that accepts no connection gets so many attempts.
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

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long to wait for a connection, an entry for each attempt. All of them together take about the
    /// time-out.
    pub fn waits(&self, timeout: Duration) -> Vec<Duration> {
        let state = self.state();
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

    /// A connection was accepted.
    pub fn accepted(&self, now: Instant, took: Duration) {
        let mut state = self.state();
        state.accepted += 1;
        state.slowest = state.slowest.max(took);
        state.failed = 0;
        state.last_accepted = now;
    }

    /// A connection failed. After several in a row, and nothing else for a whole time-out, the address
    /// stopped answering.
    pub fn failed(&self, now: Instant, timeout: Duration) {
        let mut state = self.state();
        state.failed += 1;
        if state.accepted > 0
            && state.failed >= FAILURES
            && now.duration_since(state.last_accepted) >= timeout
        {
            self.stop(state.accepted);
        }
    }

    /// TLS was answered, with a hello or a refusal.
    pub fn answered(&self, now: Instant) {
        let mut state = self.state();
        state.silent = 0;
        state.last_answered = now;
    }

    /// A round of control hellos, with no other connection of ours open, met nothing. After several in a
    /// row the address stopped answering; what limits connections for some seconds is not meant by that.
    pub fn silent(&self, now: Instant, timeout: Duration) {
        let mut state = self.state();
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
        tracing::debug!(%why, "nothing more is asked");
        let _ = self.stopped.set(why);
    }

    /// Why nothing more is asked.
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
    fn an_address_that_stopped_answering_is_told_from_a_restart_and_from_limits() {
        let mut now = Instant::now();
        let contact = Contact::new(2);
        assert_eq!(contact.waits(TIMEOUT), [TIMEOUT / 2; 2]);
        let total = |timeout| contact.waits(timeout).iter().sum::<Duration>();
        assert_eq!(total(Duration::from_secs(1)), Duration::from_secs(2));
        assert_eq!(total(Duration::from_secs(5)), Duration::from_secs(5));
        // One that was never there is not one that stopped.
        now += TIMEOUT * 2;
        (0..20).for_each(|_| contact.failed(now, TIMEOUT));
        assert_eq!(contact.stopped(), None);

        contact.accepted(now, QUICK);
        assert_eq!(contact.waits(TIMEOUT), [SHORTEST_WAIT]);
        // Refused for some seconds, as by a server that restarts.
        (0..20).for_each(|_| contact.failed(now, TIMEOUT));
        now += TIMEOUT / 2;
        contact.failed(now, TIMEOUT);
        assert_eq!(contact.stopped(), None);
        contact.accepted(now, QUICK);
        // Few, over a long time.
        now += TIMEOUT * 2;
        (1..FAILURES).for_each(|_| contact.failed(now, TIMEOUT));
        assert_eq!(contact.stopped(), None);
        contact.failed(now, TIMEOUT);
        let why = contact.stopped().unwrap();
        assert!(why.contains("after 2 connections"), "{why}");
    }

    #[test]
    fn silence_counts_only_if_nothing_was_answered_for_long() {
        let mut now = Instant::now();
        let contact = Contact::new(2);
        contact.accepted(now, QUICK);
        contact.answered(now);
        // A limit of some seconds.
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
