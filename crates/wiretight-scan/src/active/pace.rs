//! Rate limits. A scan starts with a few connections at a time. A host that resets, stalls or rejects them
//! gets fewer, with pauses.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};

/// The longest pause between two connections.
const SLOWEST: Duration = Duration::from_secs(2);

/// The rate limits of all scans: a pace for each scanned address (even with several names), and an overall
/// rate.
#[derive(Debug, Default)]
pub struct Paces {
    hosts: Mutex<Hosts>,
    rate: Option<Arc<Rate>>,
}

#[derive(Debug, Default)]
struct Hosts {
    paces: HashMap<IpAddr, Weak<Pace>>,
    /// The number of entries at which unused ones are removed.
    full: usize,
}

/// The connection rate over all hosts.
#[derive(Debug)]
struct Rate {
    gap: Duration,
    next: Mutex<Instant>,
}

impl Paces {
    /// Limits the number of new connections per second, over all hosts.
    pub fn with_rate(each_second: f64) -> Self {
        let gap = Duration::from_secs_f64(1.0 / each_second.clamp(0.001, 1e9));
        let rate = Rate { gap, next: Mutex::new(Instant::now()) };
        Self { hosts: Mutex::default(), rate: Some(Arc::new(rate)) }
    }

    /// The pace for an address, shared by all its current scans.
    pub fn of(&self, address: IpAddr, most: u32) -> Arc<Pace> {
        let mut hosts = self.hosts.lock();
        if let Some(pace) = hosts.paces.get(&address).and_then(Weak::upgrade) {
            return pace;
        }
        if hosts.paces.len() >= hosts.full {
            hosts.paces.retain(|_, pace| pace.strong_count() > 0);
            hosts.full = (hosts.paces.len() * 2).max(1024);
        }
        let pace = Arc::new(Pace { rate: self.rate.clone(), ..Pace::new(most) });
        hosts.paces.insert(address, Arc::downgrade(&pace));
        pace
    }
}

impl Rate {
    async fn turn(&self) {
        let at = {
            let mut next = self.next.lock();
            let at = (*next).max(Instant::now());
            *next = at + self.gap;
            at
        };
        sleep_until(at).await;
    }
}

/// The pace for one host.
#[derive(Debug)]
pub struct Pace {
    rate: Option<Arc<Rate>>,
    slots: Arc<Semaphore>,
    most: u32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    gap: Duration,
    next: Instant,
    slowed: Instant,
}

impl Pace {
    /// Limits the number of simultaneous connections.
    pub fn new(most: u32) -> Self {
        let now = Instant::now();
        let most = most.max(1);
        Self {
            rate: None,
            slots: Arc::new(Semaphore::new(most as usize)),
            most,
            state: Mutex::new(State { gap: Duration::ZERO, next: now, slowed: now }),
        }
    }

    /// Waits until one more connection is allowed.
    pub async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        let permit = self.slots.clone().acquire_owned().await.ok();
        self.gap().await;
        permit
    }

    /// Waits until the overall rate allows one more connection.
    pub async fn rate(&self) {
        if let Some(rate) = &self.rate {
            rate.turn().await;
        }
    }

    /// Waits until none of our connections is open, and prevents new ones.
    pub async fn alone(&self) -> Option<OwnedSemaphorePermit> {
        self.slots.clone().acquire_many_owned(self.most).await.ok()
    }

    async fn gap(&self) {
        let at = {
            let mut state = self.state.lock();
            if state.gap.is_zero() {
                return;
            }
            let at = state.next.max(Instant::now());
            state.next = at + state.gap;
            at
        };
        sleep_until(at).await;
    }

    /// Slows down, because a probe that started at `since` failed. Failures of probes that started before
    /// the last slow-down do not count.
    pub fn slow_down(&self, since: Instant) {
        let mut state = self.state.lock();
        if since < state.slowed {
            return;
        }
        state.gap = (state.gap * 2).clamp(Duration::from_millis(50), SLOWEST);
        state.slowed = Instant::now();
        state.next = state.slowed + state.gap;
    }
}
