//! New connections to one instance take turns: so many handshakes with it at a time, and no more. A burst of
//! sessions would otherwise meet the far relay's own bound on unfinished handshakes, and keep both machines busy with
//! handshakes that end too late.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;

use crate::admission::HANDSHAKES_PER_ORIGIN;
use crate::network::HostPort;

/// Handshakes of this process with one instance at a time: half of what our own relay allows one address.
const AT_A_TIME: usize = HANDSHAKES_PER_ORIGIN / 2;
/// Above so many, those that nobody waits for are forgotten.
const KEPT: usize = 64;

/// For each instance, of all workers and dials.
#[derive(Default)]
pub(crate) struct Turns(Mutex<HashMap<HostPort, Arc<Semaphore>>>);

impl Turns {
    /// Who holds a permit of it may shake hands with the instance.
    pub(crate) fn to(&self, at: &HostPort) -> Arc<Semaphore> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turns) = all.get(at) {
            return turns.clone();
        }
        if all.len() >= KEPT {
            all.retain(|_, turns| Arc::strong_count(turns) > 1);
        }
        all.entry(at.clone()).or_insert(Arc::new(Semaphore::new(AT_A_TIME))).clone()
    }
}
