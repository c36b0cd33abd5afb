//! A worker: one thread with its own runtime, listening sockets and pools. A connection stays on the thread that
//! accepted it.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::spawn_local;

use super::dial::Pool;
use super::intercept::{Intercept, Pools};
use super::live::{Side, Table};
use super::purpose::{self, Purpose, Terms};
use super::service;
use crate::admission::Pending;
use crate::app::App;
use crate::buffer;
use crate::listeners::{self, Failures, Orders};
use crate::net;
use crate::reason::Reason;

/// The interval for releasing unused buffers. A worker that becomes idle releases its memory after two intervals,
/// which is less than a second.
const TRIM: Duration = Duration::from_millis(400);

/// A listening socket and its purpose.
pub(crate) struct Socket {
    pub(crate) socket: std::net::TcpListener,
    pub(crate) purpose: Arc<ArcSwap<Purpose>>,
}

/// Runs until the control side drops its sender.
pub(crate) fn run(
    mut orders: Orders<Socket>,
    table: Arc<Table>,
    draining: watch::Receiver<bool>,
) -> io::Result<()> {
    listeners::runtime()?.block_on(async move {
        let pending = Rc::new(Pending::default());
        spawn_local(async {
            loop {
                tokio::time::sleep(TRIM).await;
                buffer::trim();
            }
        });
        while let Some(order) = orders.recv().await {
            let Socket { socket, purpose } = order.socket;
            match TcpListener::from_std(socket) {
                Ok(socket) => {
                    let removed = order.stop.clone();
                    let terms =
                        Terms { purpose: purpose.clone(), removed, draining: draining.clone() };
                    let listener = Listener {
                        socket,
                        purpose,
                        stop: order.stop,
                        draining: draining.clone(),
                        table: table.clone(),
                        pending: pending.clone(),
                        terms: Rc::new(terms),
                        _open: order.open,
                    };
                    spawn_local(listener.run());
                }
                Err(error) => tracing::error!(%error, "cannot register a listening socket"),
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
    /// Declared after the socket, so that it is dropped after it.
    _open: Arc<()>,
}

impl Listener {
    async fn run(self) {
        let (mut stop, mut draining) = (self.stop.clone(), self.draining.clone());
        let mut pool: Option<Rc<Pool>> = None;
        let mut taken = Pools::default();
        let mut sweep = tokio::time::interval(Duration::from_secs(1));
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut failures, mut held) = (Failures::default(), None);
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
                Err(error) => {
                    self.table.accept_errors.fetch_add(1, Relaxed);
                    failures.survive(&error, || self.report(&error)).await;
                }
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

    /// This worker's pool, if the listener is currently for a dial.
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
        // Counted from now on, so that a drain waits for the end of its handshake.
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
            if let Some(service) = purpose::newest(&purpose) {
                let detail = "too many handshakes in progress".into();
                let name = &service.settings.name;
                table.refuse(Side::Service, name, from, None, Reason::TooManyHandshakes, detail);
            }
        });
    }

    fn report(&self, error: &io::Error) {
        let at = self.socket.local_addr().map(|a| a.to_string()).unwrap_or_default();
        tracing::error!(
            listen = at, %error,
            "cannot accept connections; new ones wait (if the error is \"too many open files\", raise LimitNOFILE)"
        );
    }
}
