//! Which instance gets the next session: the one with the fewest, among those that passive health does
//! not hold back. Among equals it goes round, and each node begins elsewhere: all have the same list.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Failures in a row after which an instance is held back.
const FAILURES: u32 = 3;
/// How long the first time; doubled for each further failure, up to [`HOLD_MAX`].
const HOLD: Duration = Duration::from_secs(1);
const HOLD_MAX: Duration = Duration::from_secs(30);

/// The state of one target, shared by all workers.
pub(crate) struct Target<T> {
    pub(crate) at: T,
    sessions: AtomicU32,
    failures: AtomicU32,
    /// Until when it is held back: milliseconds since the balancer was made.
    held_until: AtomicU64,
    /// Found not to answer.
    down: AtomicBool,
}

impl<T> Target<T> {
    fn new(at: T) -> Target<T> {
        let (sessions, failures, held_until, down) = Default::default();
        Target { at, sessions, failures, held_until, down }
    }
}

/// Targets known so far. Those that vanish from the registry are forgotten when nothing uses them.
pub(crate) struct Balancer<T> {
    born: Instant,
    /// Where the next scan begins.
    turn: AtomicUsize,
    targets: Mutex<HashMap<T, Arc<Target<T>>>>,
}

impl<T> Default for Balancer<T> {
    fn default() -> Self {
        let random = RandomState::new().hash_one(0) as usize;
        Balancer { born: Instant::now(), turn: random.into(), targets: Mutex::default() }
    }
}

/// A session counted to its target, until dropped.
pub(crate) struct Lease<T> {
    target: Arc<Target<T>>,
}

impl<T> Drop for Lease<T> {
    fn drop(&mut self) {
        self.target.sessions.fetch_sub(1, Relaxed);
    }
}

impl<T> std::ops::Deref for Lease<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.target.at
    }
}

impl<T: Clone + Eq + Hash> Balancer<T> {
    /// The best of `candidates` that is not among `tried`. One that is down or held back is taken only if
    /// there is no other: a wrong guess must not make a service unreachable.
    pub(crate) fn pick(&self, candidates: &[T], tried: &[T]) -> Option<Lease<T>> {
        let mut targets = self.targets.lock().unwrap_or_else(|p| p.into_inner());
        if targets.len() > 4 * candidates.len() + 64 {
            targets.retain(|_, t| Arc::strong_count(t) > 1);
        }
        let now = self.now();
        let begin = self.turn.fetch_add(1, Relaxed) % candidates.len().max(1);
        let (last, first) = candidates.split_at(begin);
        let untried = first.iter().chain(last).filter(|c| !tried.contains(c));
        let best = untried
            .map(|c| {
                let new = || Arc::new(Target::new(c.clone()));
                targets.entry(c.clone()).or_insert_with(new).clone()
            })
            .min_by_key(|t| {
                let held = t.held_until.load(Relaxed);
                let held = if held > now { held } else { 0 };
                (t.down.load(Relaxed), held, t.sessions.load(Relaxed))
            })?;
        best.sessions.fetch_add(1, Relaxed);
        Some(Lease { target: best })
    }

    /// It answered.
    pub(crate) fn succeeded(&self, lease: &Lease<T>) {
        if lease.target.failures.swap(0, Relaxed) >= FAILURES {
            lease.target.held_until.store(0, Relaxed);
        }
    }

    /// It could not be reached.
    pub(crate) fn failed(&self, lease: &Lease<T>) {
        let failures = lease.target.failures.fetch_add(1, Relaxed) + 1;
        if failures >= FAILURES {
            let hold = HOLD.saturating_mul(1 << (failures - FAILURES).min(8)).min(HOLD_MAX);
            lease.target.held_until.store(self.now() + hold.as_millis() as u64, Relaxed);
        }
    }

    /// It was asked, and does not answer, or does again.
    pub(crate) fn set_down(&self, at: &T, down: bool) {
        let mut targets = self.targets.lock().unwrap_or_else(|p| p.into_inner());
        let new = || Arc::new(Target::new(at.clone()));
        targets.entry(at.clone()).or_insert_with(new).down.store(down, Relaxed);
    }

    /// Whether it was found not to answer.
    pub(crate) fn is_down(&self, at: &T) -> bool {
        let targets = self.targets.lock().unwrap_or_else(|p| p.into_inner());
        targets.get(at).is_some_and(|t| t.down.load(Relaxed))
    }

    fn now(&self) -> u64 {
        self.born.elapsed().as_millis() as u64
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_least_loaded_is_taken_and_the_failing_one_avoided() {
        let balancer = Balancer::default();
        let all = ["a", "b"];
        let one = balancer.pick(&all, &[]).unwrap();
        let two = balancer.pick(&all, &[]).unwrap();
        assert_ne!(*one, *two);
        assert!(balancer.pick(&all, &all).is_none());
        let bad = *one;
        drop(two);
        for _ in 0..FAILURES {
            balancer.failed(&one);
        }
        drop(one);
        let held: Vec<_> = (0..4).map(|_| balancer.pick(&all, &[]).unwrap()).collect();
        assert!(held.iter().all(|l| **l != bad));
        // The only one left is tried all the same, and a success forgives it.
        let last = balancer.pick(&[bad], &[]).unwrap();
        balancer.succeeded(&last);
        drop(last);
        assert_eq!(*balancer.pick(&all, &[]).unwrap(), bad);
    }

    #[test]
    fn among_equals_it_goes_round_and_begins_anywhere() {
        let all = ["a", "b", "c"];
        let balancer = Balancer::default();
        let mut taken: Vec<_> = (0..3).map(|_| *balancer.pick(&all, &[]).unwrap()).collect();
        taken.sort();
        assert_eq!(taken, all);
        let begun: HashSet<_> =
            (0..200).map(|_| *Balancer::default().pick(&all, &[]).unwrap()).collect();
        assert_eq!(begun.len(), 3);
        // Who has fewer comes first all the same.
        let _held = (balancer.pick(&["a"], &[]), balancer.pick(&["b"], &[]));
        assert!((0..3).all(|_| *balancer.pick(&all, &[]).unwrap() == "c"));
    }
}
