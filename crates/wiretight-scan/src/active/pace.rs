//! How fast one host is asked. A scan begins with a few connections at a time; a host that resets,
//! stalls or refuses them gets fewer, further apart.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};

/// The longest pause between two connections.
const SLOWEST: Duration = Duration::from_secs(2);

/// How fast everything is asked: a pace for each address that is being scanned, whatever the names
/// that lead to it, and a rate over all.
#[derive(Debug, Default)]
pub struct Paces {
    hosts: Mutex<Hosts>,
    rate: Option<Arc<Rate>>,
}

#[derive(Debug, Default)]
struct Hosts {
    paces: HashMap<IpAddr, Weak<Pace>>,
    /// How many there may be before those that nobody scans any more are forgotten.
    full: usize,
}

/// Connections a second, over all hosts.
#[derive(Debug)]
struct Rate {
    gap: Duration,
    next: Mutex<Instant>,
}

impl Paces {
    /// At most so many new connections a second, over all hosts.
    pub fn with_rate(each_second: f64) -> Self {
        let gap = Duration::from_secs_f64(1.0 / each_second.clamp(0.001, 1e9));
        let rate = Rate { gap, next: Mutex::new(Instant::now()) };
        Self { hosts: Mutex::default(), rate: Some(Arc::new(rate)) }
    }

    /// The pace for an address, shared by all who scan it now.
    pub fn of(&self, address: IpAddr, most: u32) -> Arc<Pace> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
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
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
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
    /// At most so many connections at a time.
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

    /// Waits for the turn of one more connection.
    pub async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        let permit = self.slots.clone().acquire_owned().await.ok();
        self.gap().await;
        permit
    }

    /// Waits for the turn of a connection among those with all hosts.
    pub async fn rate(&self) {
        if let Some(rate) = &self.rate {
            rate.turn().await;
        }
    }

    /// Waits until none of our connections is open, and keeps all others from being made.
    pub async fn alone(&self) -> Option<OwnedSemaphorePermit> {
        self.slots.clone().acquire_many_owned(self.most).await.ok()
    }

    async fn gap(&self) {
        let at = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.gap.is_zero() {
                return;
            }
            let at = state.next.max(Instant::now());
            state.next = at + state.gap;
            at
        };
        sleep_until(at).await;
    }

    /// The host did not bear what began at `since`: slower, once for all that began before.
    pub fn slow_down(&self, since: Instant) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if since < state.slowed {
            return;
        }
        state.gap = (state.gap * 2).clamp(Duration::from_millis(50), SLOWEST);
        state.slowed = Instant::now();
        state.next = state.slowed + state.gap;
    }
}
