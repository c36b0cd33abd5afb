//! A worker: one thread, one runtime, its own listening sockets and its own pools. A connection lives
//! and dies on the thread that accepted it.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::spawn_local;
use tokio::time::timeout;

use super::dial::{Dial, Pool};
use super::intercept::{Intercept, Pools};
use super::live::{Side, Table};
use super::service::{self, Service};
use crate::app::App;
use crate::buffer;
use crate::net;

/// Connections that a worker lets shake hands at a time, and how many of them from one [`origin`]: who
/// never finishes, from one address or one IPv6 network, holds up no more than that for [`service`]'s
/// deadline. Who has several can hold up all; then those who have come already go on, and nobody new comes.
const HANDSHAKES: usize = 1024;
pub(super) const HANDSHAKES_PER_ORIGIN: usize = 256;
/// Connections above that which wait for a place, of a worker and of one [`origin`], and for how long: a burst is
/// served late rather than reset. Above that, and for those that say nothing within [`SILENT`], there is a reset.
const WAITING: usize = 4096;
const WAITING_PER_ORIGIN: usize = 2048;
const PLACE: Duration = Duration::from_secs(10);
const SILENT: Duration = Duration::from_secs(1);
/// How often buffers that nobody needed are given up: twice, and a worker is small again, is within a second.
const TRIM: Duration = Duration::from_millis(400);

/// What a listener is for; replaced in place by a reload.
pub(crate) enum Purpose {
    Service(Arc<Service>),
    Dial(Arc<Dial>),
    Intercept(Arc<Intercept>),
}

/// What the control side asks of a worker.
pub(crate) struct Listen {
    pub(crate) socket: std::net::TcpListener,
    pub(crate) purpose: Arc<ArcSwap<Purpose>>,
    pub(crate) stop: watch::Receiver<bool>,
    /// Dropped after the socket.
    pub(crate) open: Arc<()>,
}

/// Runs until the control side is gone.
pub(crate) fn run(
    mut orders: mpsc::UnboundedReceiver<Listen>,
    table: Arc<Table>,
    draining: watch::Receiver<bool>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .event_interval(61)
        .build_local(Default::default())?;
    runtime.block_on(async move {
        let pending = Rc::new(Pending::default());
        spawn_local(async {
            loop {
                tokio::time::sleep(TRIM).await;
                buffer::trim();
            }
        });
        while let Some(order) = orders.recv().await {
            match TcpListener::from_std(order.socket) {
                Ok(socket) => {
                    let terms = Terms {
                        purpose: order.purpose.clone(),
                        removed: order.stop.clone(),
                        draining: draining.clone(),
                    };
                    let listener = Listener {
                        socket,
                        purpose: order.purpose,
                        stop: order.stop,
                        draining: draining.clone(),
                        table: table.clone(),
                        pending: pending.clone(),
                        terms: Rc::new(terms),
                        _open: order.open,
                    };
                    spawn_local(listener.run());
                }
                Err(error) => tracing::error!(%error, "a listening socket could not be registered"),
            }
        }
    });
    Ok(())
}

struct Listener {
    socket: TcpListener,
    purpose: Arc<ArcSwap<Purpose>>,
    stop: watch::Receiver<bool>,
    draining: watch::Receiver<bool>,
    table: Arc<Table>,
    pending: Rc<Pending>,
    terms: Rc<Terms>,
    /// After the socket, so that it is dropped after it.
    _open: Arc<()>,
}

impl Listener {
    async fn run(self) {
        let (mut stop, mut draining) = (self.stop.clone(), self.draining.clone());
        let mut pool: Option<Rc<Pool>> = None;
        let mut taken = Pools::default();
        let mut sweep = tokio::time::interval(Duration::from_secs(1));
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut last_report, mut held) = (None, None);
        loop {
            let accepted = tokio::select! {
                biased;
                _ = stop.wait_for(|s| *s) => break,
                _ = draining.wait_for(|d| *d) => break,
                _ = sweep.tick() => {
                    if let Some(pool) = self.pool(&mut pool) {
                        pool.sweep();
                    }
                    match self.intercept() {
                        Some(intercept) => taken.sweep(&intercept),
                        None => taken.close(),
                    }
                    continue;
                }
                accepted = net::accept(&self.socket, &mut held) => accepted,
            };
            match accepted {
                Ok((socket, from)) => match self.pool(&mut pool) {
                    Some(pool) => {
                        spawn_local(pool.serve(App::Tcp(socket), from));
                    }
                    None => match self.intercept() {
                        Some(intercept) => taken.serve(&intercept, socket, from),
                        None => self.serve(socket, from),
                    },
                },
                Err(error) => self.survive(&error, &mut last_report).await,
            }
        }
        if let Some(pool) = pool {
            pool.close();
        }
        taken.close();
    }

    fn intercept(&self) -> Option<Arc<Intercept>> {
        match &**self.purpose.load() {
            Purpose::Intercept(intercept) => Some(intercept.clone()),
            _ => None,
        }
    }

    /// This worker's pool for the dial that this listener is now; `None` if it is none.
    fn pool(&self, pool: &mut Option<Rc<Pool>>) -> Option<Rc<Pool>> {
        let Purpose::Dial(dial) = &**self.purpose.load() else {
            if let Some(old) = pool.take() {
                old.close();
            }
            return None;
        };
        let current = pool.as_ref().filter(|p| Arc::ptr_eq(p.dial(), dial));
        if let Some(current) = current {
            return Some(current.clone());
        }
        let new = Pool::new(dial.clone());
        if let Some(old) = pool.replace(new.clone()) {
            old.close();
        }
        Some(new)
    }

    fn serve(&self, socket: TcpStream, from: SocketAddr) {
        // It counts from now on: a drain waits until its handshake has come to an end.
        let opening = self.table.opening();
        if let Some(slot) = self.pending.enter(Some(from.ip())) {
            spawn_local(service::serve(self.terms.clone(), socket, from, (slot, opening)));
            return;
        }
        let (pending, terms) = (self.pending.clone(), self.terms.clone());
        let (table, purpose) = (self.table.clone(), self.purpose.clone());
        spawn_local(async move {
            if let Some(slot) = Box::pin(pending.place(Some(from.ip()), &socket)).await {
                return service::serve(terms, socket, from, (slot, opening)).await;
            }
            let _ = socket.set_zero_linger();
            if let Some(service) = service::newest(&purpose) {
                let detail = "too many unfinished handshakes at the moment".into();
                let name = &service.settings.name;
                table.refuse(Side::Service, name, from, None, "too_many_handshakes", detail);
            }
        });
    }

    /// A failed accept: most often no file descriptors are left. The connection waits in the backlog.
    async fn survive(&self, error: &io::Error, last_report: &mut Option<Instant>) {
        self.table.accept_errors.fetch_add(1, Relaxed);
        let at = self.socket.local_addr().map(|a| a.to_string()).unwrap_or_default();
        if last_report.is_none_or(|t: Instant| t.elapsed() > Duration::from_secs(1)) {
            *last_report = Some(Instant::now());
            tracing::error!(
                listen = at, %error,
                "cannot accept: new connections wait (if it is \"too many open files\", raise LimitNOFILE)"
            );
        }
        // ECONNABORTED and the like concern one connection; want of resources lasts.
        const LASTING: [i32; 4] = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOBUFS];
        if error.raw_os_error().is_some_and(|e| LASTING.contains(&e)) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// What a listener is for, and until when: one for all of its connections.
pub(crate) struct Terms {
    purpose: Arc<ArcSwap<Purpose>>,
    removed: watch::Receiver<bool>,
    draining: watch::Receiver<bool>,
}

impl Terms {
    /// The newest configuration of its service, if it still is a service's.
    pub(crate) fn service(&self) -> Option<Arc<Service>> {
        service::newest(&self.purpose)
    }

    /// Ends when the service was removed from the configuration, or the process is about to stop.
    pub(crate) async fn over(&self) {
        let (mut removed, mut draining) = (self.removed.clone(), self.draining.clone());
        tokio::select! {
            _ = removed.wait_for(|r| *r) => {}
            _ = draining.wait_for(|d| *d) => {}
        }
    }

    /// Whether that is so now.
    pub(crate) fn are_over(&self) -> bool {
        self.is_removed() || *self.draining.borrow()
    }

    /// Whether the service was removed.
    pub(crate) fn is_removed(&self) -> bool {
        *self.removed.borrow()
    }
}

/// Handshakes under way on this worker.
#[derive(Default)]
pub(crate) struct Pending {
    all: Cell<usize>,
    by_origin: RefCell<HashMap<IpAddr, usize>>,
    /// Those that came when there was no place, in their order.
    waiting: RefCell<VecDeque<(Option<IpAddr>, oneshot::Sender<HandshakeSlot>)>>,
}

/// One handshake under way, until dropped.
pub(crate) struct HandshakeSlot {
    pending: Rc<Pending>,
    origin: Option<IpAddr>,
}

/// What one party is taken to have: an IPv4 address, or the 64 bits of an IPv6 address that a network is
/// given (the rest it makes up: RFC 4291, section 2.5.1).
fn origin(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
        v4 => v4,
    }
}

impl Pending {
    /// A place, if there is one. Without an address, one among all: of a balancer, which speaks for many.
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

    /// A place, after a while if need be. Whoever says nothing is most likely one of those that hold all places, and
    /// gets none.
    pub(crate) async fn place(
        self: &Rc<Pending>,
        address: Option<IpAddr>,
        socket: &TcpStream,
    ) -> Option<HandshakeSlot> {
        if let Some(slot) = self.enter(address) {
            return Some(slot);
        }
        let place = self.wait(address)?;
        timeout(SILENT, socket.peek(&mut [0])).await.ok()?.ok()?; // whether it is readable is only assumed at first
        timeout(PLACE, place).await.ok()?.ok()
    }

    /// A place as soon as there is one. `None`: too many wait already.
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

    /// Gives the place that has become free to the first who may have it.
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
            drop(give.send(slot)); // it waits: that was looked at
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
        // Whoever finishes makes room.
        held.remove(0);
        held.push(enter("2001:db8:0:1:ffff::7".into()).unwrap());
        held.clear();
        assert!(pending.by_origin.borrow().is_empty() && pending.all.get() == 0);
    }

    #[test]
    fn whoever_comes_when_all_places_are_taken_gets_the_next_that_is_free() {
        let pending = Rc::new(Pending::default());
        let [crowd, other]: [IpAddr; 2] = ["10.0.0.1", "10.0.0.2"].map(|a| a.parse().unwrap());
        let [crowd, other] = [Some(crowd), Some(other)];
        let mut held: Vec<_> =
            (0..HANDSHAKES_PER_ORIGIN).map(|_| pending.enter(crowd).unwrap()).collect();
        let gone = pending.wait(crowd).unwrap();
        let mut waits: Vec<_> = (0..3).map(|_| pending.wait(crowd).unwrap()).collect();
        drop(gone);
        // A place of somebody else's does not let in one more of the crowd.
        drop(pending.enter(other).unwrap());
        assert!(waits[0].try_recv().is_err());
        held.pop();
        held.push(waits[0].try_recv().unwrap());
        assert!(waits[1].try_recv().is_err() && pending.enter(crowd).is_none());
        // The bound of those who wait, of one address and of all.
        let crowds: Vec<_> = (0..).map_while(|_| pending.wait(crowd)).collect();
        assert_eq!(crowds.len() + 2, WAITING_PER_ORIGIN);
        let others: Vec<_> = (0..).map_while(|_| pending.wait(other)).collect();
        assert_eq!(others.len(), WAITING - WAITING_PER_ORIGIN);
        drop((crowds, others, waits, held));
        assert!(pending.by_origin.borrow().is_empty() && pending.all.get() == 0);
    }
}
