//! What the relay and the edge have in common: worker threads, and the addresses that they listen on.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime::LocalRuntime;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

/// How long to wait for workers to close sockets that are no longer needed.
const CLOSE: Duration = Duration::from_secs(1);

/// Worker threads that listen on sockets. When this is dropped, they stop, and it waits for them.
pub(crate) struct Workers<S> {
    orders: Vec<mpsc::UnboundedSender<Listen<S>>>,
    threads: Vec<JoinHandle<()>>,
}

/// A request to a worker.
pub(crate) struct Listen<S> {
    pub(crate) socket: S,
    pub(crate) stop: watch::Receiver<bool>,
    /// Dropped after the socket is closed.
    pub(crate) open: Arc<()>,
}

/// The requests to one worker. They end when it must stop.
pub(crate) type Orders<S> = mpsc::UnboundedReceiver<Listen<S>>;

impl<S: Send + 'static> Workers<S> {
    /// Starts `count` workers, at least one, in threads called `name-0`, `name-1` and so on. `body` returns what worker
    /// number N does.
    pub(crate) fn start<B>(
        name: &str,
        count: usize,
        body: impl Fn(usize) -> B,
    ) -> io::Result<Workers<S>>
    where
        B: FnOnce(Orders<S>) + Send + 'static,
    {
        let mut workers = Workers { orders: Vec::new(), threads: Vec::new() };
        for n in 0..count.max(1) {
            let (orders, inbox) = mpsc::unbounded_channel();
            let body = body(n);
            let thread = std::thread::Builder::new().name(format!("{name}-{n}"));
            workers.threads.push(thread.spawn(move || body(inbox))?);
            workers.orders.push(orders);
        }
        Ok(workers)
    }
}

impl<S> Workers<S> {
    pub(crate) fn count(&self) -> usize {
        self.orders.len()
    }

    /// Distributes the sockets of a listener to the workers.
    pub(crate) fn listen(&self, listener: &Listener, sockets: impl IntoIterator<Item = S>) {
        for (socket, worker) in sockets.into_iter().zip(self.orders.iter().cycle()) {
            let (stop, open) = (listener.stop.subscribe(), listener.open.clone());
            let _ = worker.send(Listen { socket, stop, open }); // a worker that stopped has logged why
        }
    }
}

impl<S> Drop for Workers<S> {
    fn drop(&mut self) {
        self.orders.clear();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The runtime of a worker.
pub(crate) fn runtime() -> io::Result<LocalRuntime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .event_interval(61)
        .build_local(Default::default())
}

/// An address that the workers listen on.
pub(crate) struct Listener {
    /// For the next process at a takeover; the workers have their own handles.
    sockets: Vec<TcpListener>,
    stop: watch::Sender<bool>,
    /// Also held by the workers while their sockets listen.
    open: Arc<()>,
}

impl Listener {
    pub(crate) fn new(sockets: Vec<TcpListener>) -> Listener {
        Listener { sockets, stop: watch::channel(false).0, open: Arc::default() }
    }

    /// The sockets, for the next process at a takeover.
    pub(crate) fn sockets(&self) -> io::Result<Vec<TcpListener>> {
        self.sockets.iter().map(TcpListener::try_clone).collect()
    }

    /// Tells the workers to close their sockets.
    pub(crate) fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Closes the sockets that are held for the next process. Returns the reference for [`closed`].
    pub(crate) fn release(&mut self) -> Arc<()> {
        self.sockets.clear();
        self.open.clone()
    }
}

/// Closes listeners. Waits up to a second for the workers, so that the addresses can be used again.
pub(crate) fn close(listeners: impl IntoIterator<Item = Listener>) {
    let stopped = |listener: Listener| {
        listener.stop();
        listener.open
    };
    let closing: Vec<_> = listeners.into_iter().map(stopped).collect();
    let end = Instant::now() + CLOSE;
    while closing.iter().any(|open| Arc::strong_count(open) > 1) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until workers have closed the sockets that hold these references, and have started the connections that they
/// accepted last.
pub(crate) async fn closed(open: &[Arc<()>]) {
    let end = tokio::time::Instant::now() + CLOSE;
    // We and the listener hold a reference each.
    while open.iter().any(|open| Arc::strong_count(open) > 2) && tokio::time::Instant::now() < end {
        sleep(Duration::from_millis(1)).await;
    }
    sleep(Duration::from_millis(10)).await;
}

/// Waits a moment for connections that were told to close.
pub(crate) async fn settled(busy: impl Fn() -> usize) {
    for _ in 0..50 {
        if busy() == 0 {
            break;
        }
        sleep(Duration::from_millis(10)).await;
    }
}

/// Failures to accept connections on one socket.
#[derive(Default)]
pub(crate) struct Failures {
    reported: Option<Instant>,
}

impl Failures {
    /// Reports at most one failure a second. Most often, no file descriptors are left; then this waits for a moment, and
    /// the connection stays in the backlog.
    pub(crate) async fn survive(&mut self, error: &io::Error, report: impl FnOnce()) {
        if self.reported.is_none_or(|at| at.elapsed() > Duration::from_secs(1)) {
            self.reported = Some(Instant::now());
            report();
        }
        // Errors such as ECONNABORTED concern one connection; a lack of resources persists.
        const LASTING: [i32; 4] = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOBUFS];
        if error.raw_os_error().is_some_and(|e| LASTING.contains(&e)) {
            sleep(Duration::from_millis(50)).await;
        }
    }
}
