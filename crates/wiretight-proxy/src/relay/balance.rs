//! Selects the instance for the next session: the one with the fewest sessions, among those that passive health
//! checks do not exclude. Equal ones take turns, and each node starts at a random one, because all nodes have the
//! same list.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Consecutive failures after which an instance is excluded.
const FAILURES: u32 = 3;
/// The first exclusion period; doubled for each further failure, up to [`HOLD_MAX`].
const HOLD: Duration = Duration::from_secs(1);
const HOLD_MAX: Duration = Duration::from_secs(30);
/// The time limit for the one session that tries an excluded instance again; longer than any connection attempt
/// takes.
const PROBE: Duration = Duration::from_secs(30);

/// The state of one target, shared by all workers.
pub(crate) struct Target<T> {
    pub(crate) at: T,
    sessions: AtomicU32,
    failures: AtomicU32,
    /// When its exclusion ends: milliseconds since the balancer was created.
    held_until: AtomicU64,
    /// While one session is trying it again, no other does; until this time at most.
    probed_until: AtomicU64,
    /// Active health checks found it down.
    down: AtomicBool,
}

impl<T> Target<T> {
    fn new(at: T) -> Target<T> {
        let (sessions, failures, held_until, probed_until, down) = Default::default();
        Target { at, sessions, failures, held_until, probed_until, down }
    }

    fn is_failing(&self) -> bool {
        self.failures.load(Relaxed) >= FAILURES
    }

    /// When it stops being avoided; 0 if it is not avoided.
    fn avoided_until(&self, now: u64) -> u64 {
        let until = |t: &AtomicU64| Some(t.load(Relaxed)).filter(|t| *t > now);
        match self.is_failing() {
            true => until(&self.held_until).or(until(&self.probed_until)).unwrap_or(0),
            false => 0,
        }
    }
}

/// All targets known so far. Those that disappeared from the registry are removed once they are unused.
pub(crate) struct Balancer<T> {
    born: Instant,
    /// Where the next scan starts.
    turn: AtomicUsize,
    targets: Mutex<HashMap<T, Arc<Target<T>>>>,
}

impl<T> Default for Balancer<T> {
    fn default() -> Self {
        let random = RandomState::new().hash_one(0) as usize;
        Balancer { born: Instant::now(), turn: random.into(), targets: Mutex::default() }
    }
}

/// A session counted for its target, until dropped.
pub(crate) struct Lease<T> {
    target: Arc<Target<T>>,
    /// This session tries whether a failed target works again.
    is_probe: bool,
}

impl<T> Drop for Lease<T> {
    fn drop(&mut self) {
        self.target.sessions.fetch_sub(1, Relaxed);
        if self.is_probe {
            self.target.probed_until.store(0, Relaxed);
        }
    }
}

impl<T> std::ops::Deref for Lease<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.target.at
    }
}

impl<T: Clone + Eq + Hash> Balancer<T> {
    /// The best of `candidates` that is not in `tried`. A target that is down or excluded is used only if there is no
    /// other, because a wrong guess must not make a service unreachable. After the exclusion of a failed target ends,
    /// one session tries it; the others use other targets until it succeeds.
    pub(crate) fn pick(&self, candidates: &[T], tried: &[T]) -> Option<Lease<T>> {
        let mut targets = self.targets.lock();
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
                (t.down.load(Relaxed), t.avoided_until(now), t.sessions.load(Relaxed))
            })?;
        best.sessions.fetch_add(1, Relaxed);
        let is_probe = best.is_failing() && best.avoided_until(now) == 0;
        if is_probe {
            best.probed_until.store(now + PROBE.as_millis() as u64, Relaxed);
        }
        Some(Lease { target: best, is_probe })
    }

    /// The target was reached.
    pub(crate) fn succeeded(&self, lease: &Lease<T>) {
        if lease.target.failures.swap(0, Relaxed) >= FAILURES {
            lease.target.held_until.store(0, Relaxed);
        }
    }

    /// The target could not be reached. Sessions that were started before it was excluded, or because there was no
    /// other target, do not prolong the exclusion.
    pub(crate) fn failed(&self, lease: &Lease<T>) {
        if lease.target.is_failing() && !lease.is_probe {
            return;
        }
        let failures = lease.target.failures.fetch_add(1, Relaxed) + 1;
        if failures >= FAILURES {
            let hold = HOLD.saturating_mul(1 << (failures - FAILURES).min(8)).min(HOLD_MAX);
            lease.target.held_until.store(self.now() + hold.as_millis() as u64, Relaxed);
        }
    }

    /// Whether the target failed and is avoided if there is another.
    pub(crate) fn is_held(&self, lease: &Lease<T>) -> bool {
        lease.target.avoided_until(self.now()) > 0
    }

    /// The result of an active health check.
    pub(crate) fn set_down(&self, at: &T, down: bool) {
        let mut targets = self.targets.lock();
        let new = || Arc::new(Target::new(at.clone()));
        targets.entry(at.clone()).or_insert_with(new).down.store(down, Relaxed);
    }

    /// Whether active health checks found it down.
    pub(crate) fn is_down(&self, at: &T) -> bool {
        let targets = self.targets.lock();
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
    fn the_least_loaded_target_is_used_and_failing_ones_are_avoided() {
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
        // The only remaining target is used anyway, and one success resets its failures.
        let last = balancer.pick(&[bad], &[]).unwrap();
        balancer.succeeded(&last);
        drop(last);
        assert_eq!(*balancer.pick(&all, &[]).unwrap(), bad);
    }

    #[test]
    fn only_one_session_probes_a_failed_instance() {
        let balancer = Balancer::default();
        let all = ["dead", "live"];
        let fail = |times| {
            let dead = balancer.pick(&["dead"], &[]).unwrap();
            (0..times).for_each(|_| balancer.failed(&dead));
        };
        let over = || {
            let targets = balancer.targets.lock();
            targets["dead"].held_until.store(0, Relaxed);
        };
        let picked = || {
            let picked: Vec<_> = (0..20).map(|_| balancer.pick(&all, &[]).unwrap()).collect();
            let probes = picked.iter().filter(|l| ***l == "dead").count();
            (probes, picked)
        };
        // A burst of failures counts as one exclusion.
        fail(30);
        let held = balancer.targets.lock()["dead"].held_until.load(Relaxed);
        assert!(held <= balancer.now() + HOLD.as_millis() as u64);
        assert_eq!(picked().0, 0);
        // The exclusion has ended: one session tries the target; no other meanwhile.
        over();
        let (probes, picks) = picked();
        assert_eq!(probes, 1);
        assert_eq!(picked().0, 0);
        let probe = picks.iter().find(|l| ***l == "dead").unwrap();
        balancer.failed(probe);
        assert!(balancer.is_held(probe));
        drop(picks);
        assert_eq!(picked().0, 0);
        // If that session ends without a result, the next one may try.
        over();
        drop(balancer.pick(&["dead"], &[]));
        let (probes, picks) = picked();
        assert_eq!(probes, 1);
        // After a success it is a normal target again.
        balancer.succeeded(picks.iter().find(|l| ***l == "dead").unwrap());
        drop(picks);
        assert_eq!(picked().0, 10);
        // The only target gets all sessions, even after failures.
        fail(30);
        over();
        let only: Vec<_> = (0..5).map(|_| balancer.pick(&["dead"], &[])).collect();
        assert!(only.iter().all(Option::is_some));
    }

    #[test]
    fn equal_targets_take_turns_from_a_random_start() {
        let all = ["a", "b", "c"];
        let balancer = Balancer::default();
        let mut taken: Vec<_> = (0..3).map(|_| *balancer.pick(&all, &[]).unwrap()).collect();
        taken.sort();
        assert_eq!(taken, all);
        let begun: HashSet<_> =
            (0..200).map(|_| *Balancer::default().pick(&all, &[]).unwrap()).collect();
        assert_eq!(begun.len(), 3);
        // A target with fewer sessions still comes first.
        let _held = (balancer.pick(&["a"], &[]), balancer.pick(&["b"], &[]));
        assert!((0..3).all(|_| *balancer.pick(&all, &[]).unwrap() == "c"));
    }
}
