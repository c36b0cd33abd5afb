//! Limits the number of concurrent handshakes with one instance. Otherwise a burst of sessions would exceed the other
//! relay's limit of unfinished handshakes, and keep both machines busy with handshakes that time out.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::admission::HANDSHAKES_PER_ORIGIN;
use crate::network::HostPort;

/// Concurrent handshakes of this process with one instance: half of what our own relay allows for one address.
const AT_A_TIME: usize = HANDSHAKES_PER_ORIGIN / 2;
/// Above this number, unused entries are removed.
const KEPT: usize = 64;

/// One entry for each instance, shared by all workers and dials.
#[derive(Default)]
pub(crate) struct Turns(Mutex<HashMap<HostPort, Arc<Semaphore>>>);

impl Turns {
    /// A permit of the semaphore allows one handshake with the instance.
    pub(crate) fn to(&self, at: &HostPort) -> Arc<Semaphore> {
        let mut all = self.0.lock();
        if let Some(turns) = all.get(at) {
            return turns.clone();
        }
        if all.len() >= KEPT {
            all.retain(|_, turns| Arc::strong_count(turns) > 1);
        }
        all.entry(at.clone()).or_insert(Arc::new(Semaphore::new(AT_A_TIME))).clone()
    }
}
