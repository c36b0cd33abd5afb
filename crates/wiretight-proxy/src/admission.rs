//! Limits the handshakes in progress, for each worker and for each client address. A connection above the limit waits
//! for a while.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::network::origin;

/// The largest number of handshakes in progress on a worker, and how many of these may come from one [`origin`].
/// Clients at one IPv4 address or IPv6 network that never finish their handshakes can block only that many, until the
/// handshake timeout. Clients at several can block all: established connections then continue, but no new ones are
/// accepted.
const HANDSHAKES: usize = 1024;
pub(crate) const HANDSHAKES_PER_ORIGIN: usize = 256;
/// Limits for connections above these: how many may wait on a worker, and from one [`origin`], and for how long. A
/// burst is delayed rather than reset. Connections above these limits, and those that send nothing within [`SILENT`],
/// are reset.
const WAITING: usize = 4096;
const WAITING_PER_ORIGIN: usize = 2048;
const PLACE: Duration = Duration::from_secs(10);
const SILENT: Duration = Duration::from_secs(1);

/// The handshakes in progress on this worker.
#[derive(Default)]
pub(crate) struct Pending {
    all: Cell<usize>,
    by_origin: RefCell<HashMap<IpAddr, usize>>,
    /// Connections that are waiting, in the order of their arrival.
    waiting: RefCell<VecDeque<(Option<IpAddr>, oneshot::Sender<HandshakeSlot>)>>,
}

/// A handshake in progress, until dropped.
pub(crate) struct HandshakeSlot {
    pending: Rc<Pending>,
    origin: Option<IpAddr>,
}

impl Pending {
    /// Takes a slot, if one is free. Without an address, only the limit for the worker applies: for a load balancer,
    /// whose connections are from many clients.
    pub(crate) fn enter(self: &Rc<Pending>, address: Option<IpAddr>) -> Option<HandshakeSlot> {
        if self.all.get() >= HANDSHAKES {
            return None;
        }
        let origin = address.map(origin);
        if let Some(origin) = origin {
            let mut by_origin = self.by_origin.borrow_mut();
            let here = by_origin.entry(origin).or_default();
            if *here >= HANDSHAKES_PER_ORIGIN {
                return None;
            }
            *here += 1;
        }
        self.all.set(self.all.get() + 1);
        Some(HandshakeSlot { pending: self.clone(), origin })
    }

    /// Takes a slot, and waits for one if necessary. A connection that has sent nothing gets none, because it is most
    /// likely one of those that occupy the slots.
    pub(crate) async fn place(
        self: &Rc<Pending>,
        address: Option<IpAddr>,
        socket: &TcpStream,
    ) -> Option<HandshakeSlot> {
        if let Some(slot) = self.enter(address) {
            return Some(slot);
        }
        let place = self.wait(address)?;
        timeout(SILENT, socket.peek(&mut [0])).await.ok()?.ok()?; // peeks, because tokio assumes at first that a socket is readable
        timeout(PLACE, place).await.ok()?.ok()
    }

    /// Queues for a slot. `None`: too many connections are waiting.
    fn wait(&self, address: Option<IpAddr>) -> Option<oneshot::Receiver<HandshakeSlot>> {
        let address = address.map(origin);
        let mut waiting = self.waiting.borrow_mut();
        let same = || waiting.iter().filter(|(from, _)| *from == address).count();
        if waiting.len() >= WAITING || address.is_some() && same() >= WAITING_PER_ORIGIN {
            return None;
        }
        let (give, place) = oneshot::channel();
        waiting.push_back((address, give));
        Some(place)
    }

    /// Gives the free slot to the first waiting connection whose origin is below its limit.
    fn next(self: &Rc<Pending>) {
        let first = {
            let (mut waiting, by_origin) = (self.waiting.borrow_mut(), self.by_origin.borrow());
            let shaking = |from: &Option<IpAddr>| from.and_then(|from| by_origin.get(&from));
            let has_room =
                |from: &Option<IpAddr>| shaking(from).is_none_or(|n| *n < HANDSHAKES_PER_ORIGIN);
            while waiting.front().is_some_and(|(_, give)| give.is_closed()) {
                waiting.pop_front();
            }
            let found = waiting.iter().position(|(from, give)| has_room(from) && !give.is_closed());
            found.and_then(|at| waiting.remove(at))
        };
        if let Some((from, give)) = first
            && let Some(slot) = self.enter(from)
        {
            drop(give.send(slot)); // the receiver exists, as checked above
        }
    }
}

impl Drop for HandshakeSlot {
    fn drop(&mut self) {
        self.pending.all.set(self.pending.all.get() - 1);
        if let Some(origin) = self.origin {
            let mut by_origin = self.pending.by_origin.borrow_mut();
            match by_origin.get_mut(&origin) {
                Some(n) if *n > 1 => *n -= 1,
                _ => {
                    by_origin.remove(&origin);
                }
            }
        }
        self.pending.next();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handshakes_are_counted_by_ipv4_address_and_by_ipv6_network() {
        let pending = Rc::new(Pending::default());
        let enter = |address: String| pending.enter(Some(address.parse().unwrap()));
        let mut held: Vec<_> = (0..HANDSHAKES_PER_ORIGIN as u64)
            .map(|n| enter(format!("2001:db8:0:1:{n:x}::7")).unwrap())
            .collect();
        assert!(enter("2001:db8:0:1:ffff::7".into()).is_none());
        held.push(enter("2001:db8:0:2::7".into()).unwrap());
        held.extend((0..HANDSHAKES_PER_ORIGIN).map(|_| enter("10.0.0.1".into()).unwrap()));
        assert!(enter("10.0.0.1".into()).is_none());
        assert!(enter("::ffff:10.0.0.1".into()).is_none());
        held.push(enter("10.0.0.2".into()).unwrap());
        // A finished handshake frees its slot.
        held.remove(0);
        held.push(enter("2001:db8:0:1:ffff::7".into()).unwrap());
        held.clear();
        assert!(pending.by_origin.borrow().is_empty() && pending.all.get() == 0);
    }

    #[test]
    fn a_waiting_connection_gets_the_next_free_slot() {
        let pending = Rc::new(Pending::default());
        let [crowd, other]: [IpAddr; 2] = ["10.0.0.1", "10.0.0.2"].map(|a| a.parse().unwrap());
        let [crowd, other] = [Some(crowd), Some(other)];
        let mut held: Vec<_> =
            (0..HANDSHAKES_PER_ORIGIN).map(|_| pending.enter(crowd).unwrap()).collect();
        let gone = pending.wait(crowd).unwrap();
        let mut waits: Vec<_> = (0..3).map(|_| pending.wait(crowd).unwrap()).collect();
        drop(gone);
        // A free slot of another origin does not admit one more client of the overloaded origin.
        drop(pending.enter(other).unwrap());
        assert!(waits[0].try_recv().is_err());
        held.pop();
        held.push(waits[0].try_recv().unwrap());
        assert!(waits[1].try_recv().is_err() && pending.enter(crowd).is_none());
        // The limits on waiting connections: of one origin, and of the worker.
        let crowds: Vec<_> = (0..).map_while(|_| pending.wait(crowd)).collect();
        assert_eq!(crowds.len() + 2, WAITING_PER_ORIGIN);
        let others: Vec<_> = (0..).map_while(|_| pending.wait(other)).collect();
        assert_eq!(others.len(), WAITING - WAITING_PER_ORIGIN);
        drop((crowds, others, waits, held));
        assert!(pending.by_origin.borrow().is_empty() && pending.all.get() == 0);
    }
}
