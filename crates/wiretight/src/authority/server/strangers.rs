//! Connections that are not authenticated yet.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::Notify;
use wiretight_proxy::network::origin;

use super::Server;

/// Connections that are not authenticated yet.
const MAX_STRANGERS: usize = 256;
/// The same from one [`origin`], so that one faulty machine does not lock out others.
const MAX_STRANGERS_BY_ADDRESS: usize = 64;

impl Server {
    /// A slot for an unauthenticated connection. If there are too many, the oldest one is closed, so that silent
    /// connections cannot lock out a node.
    pub(super) fn door(self: &Arc<Self>, ip: IpAddr) -> Door {
        let (number, evicted) = self.strangers.lock().enter(origin(ip));
        Door { server: self.clone(), number, evicted }
    }
}

/// Unauthenticated connections, oldest first.
#[derive(Default)]
pub(super) struct Strangers {
    next: u64,
    waiting: BTreeMap<u64, (IpAddr, Arc<Notify>)>,
}

impl Strangers {
    fn enter(&mut self, from: IpAddr) -> (u64, Arc<Notify>) {
        let near = || self.waiting.iter().filter(|(_, (ip, _))| *ip == from).map(|(n, _)| *n);
        let oldest = match near().count() >= MAX_STRANGERS_BY_ADDRESS {
            true => near().next(),
            false if self.waiting.len() >= MAX_STRANGERS => self.waiting.keys().next().copied(),
            false => None,
        };
        if let Some((_, evicted)) = oldest.and_then(|n| self.waiting.remove(&n)) {
            evicted.notify_one();
        }
        let (number, evicted) = (self.next, Arc::new(Notify::new()));
        self.next += 1;
        self.waiting.insert(number, (from, evicted.clone()));
        (number, evicted)
    }
}

/// A slot of [`Strangers`]; released when dropped.
pub(super) struct Door {
    server: Arc<Server>,
    number: u64,
    pub(super) evicted: Arc<Notify>,
}

impl Drop for Door {
    fn drop(&mut self) {
        self.server.strangers.lock().waiting.remove(&self.number);
    }
}
