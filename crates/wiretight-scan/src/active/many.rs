//! Scans many targets in parallel, in constant memory.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use std::{io, thread};

use tokio::runtime::Handle;
use tokio::sync::{Mutex, mpsc};
use tokio::task::LocalSet;

use super::quick::quick;
use super::scan::{Options, resolve, scan_address};
use crate::facts::{Facts, Reached};
use crate::target::Target;
use crate::{Report, judge};

/// The stack size of a scanning thread: a scan is one large future, which is created on the stack.
const STACK: usize = 8 << 20;

/// How long the writer of many short scans should wait for more reports. Waking it up for each report
/// would take as long as a hello.
pub const GATHER: Duration = Duration::from_millis(5);

/// How thoroughly each target is scanned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// All probes.
    Full,
    /// One hello.
    Quick,
}

/// Feeds targets to a scan, from a thread that may block. It reserves room for many targets at once,
/// because waking it up for each would take as long as a hello.
pub struct Feed<'a> {
    to: &'a mpsc::Sender<Target>,
    room: Option<mpsc::PermitIterator<'a, Target>>,
    runtime: Handle,
}

impl<'a> Feed<'a> {
    /// Feeds this channel, and blocks on any runtime.
    pub fn new(to: &'a mpsc::Sender<Target>, runtime: Handle) -> Self {
        Self { to, room: None, runtime }
    }

    /// Waits for room. Returns `false` when the scan has ended.
    pub fn put(&mut self, target: Target) -> bool {
        loop {
            if let Some(permit) = self.room.as_mut().and_then(Iterator::next) {
                permit.send(target);
                return true;
            }
            let many = self.to.max_capacity().div_ceil(2);
            match self.runtime.block_on(self.to.reserve_many(many)) {
                Ok(room) => self.room = Some(room),
                Err(_) => return false,
            }
        }
    }
}

/// Scans targets from a channel, `at_a_time` in parallel, and sends the result of `made` for the report of
/// each address. The scan ends when there are no more targets, or the receiver of reports is dropped.
///
/// There is one thread for each processor, which scans its share of the targets and calls `made`. The
/// function returns immediately; the scan has ended when the channel of reports is closed.
///
/// # Errors
///
/// If a thread or its runtime cannot be created.
pub fn scan_many<T: Send + 'static>(
    targets: mpsc::Receiver<Target>,
    reports: mpsc::Sender<T>,
    at_a_time: usize,
    depth: Depth,
    options: &Options,
    made: impl Fn(Report) -> T + Clone + Send + 'static,
) -> io::Result<()> {
    let targets = Arc::new(Mutex::new(targets));
    let at_a_time = at_a_time.max(1);
    let threads = thread::available_parallelism().map_or(1, usize::from).min(at_a_time);
    for n in 0..threads {
        let workers = (at_a_time + n) / threads;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (targets, reports) = (targets.clone(), reports.clone());
        let (options, made) = (options.clone(), made.clone());
        thread::Builder::new().name(format!("scan-{n}")).stack_size(STACK).spawn(move || {
            let set = LocalSet::new();
            for _ in 0..workers {
                let (targets, reports) = (targets.clone(), reports.clone());
                set.spawn_local(work(targets, reports, depth, options.clone(), made.clone()));
            }
            // Only the workers keep the channels open.
            drop((targets, reports));
            runtime.block_on(set);
            // Do not wait for a resolver that hangs.
            runtime.shutdown_background();
        })?;
    }
    Ok(())
}

async fn work<T>(
    targets: Arc<Mutex<mpsc::Receiver<Target>>>,
    reports: mpsc::Sender<T>,
    depth: Depth,
    options: Options,
    made: impl Fn(Report) -> T,
) {
    loop {
        let next = targets.lock().await.recv().await;
        let Some(target) = next else { return };
        if !scan_one(&target, &reports, depth, &options, &made).await {
            return;
        }
    }
}

/// Scans all addresses of a target, one after the other. Returns `false` when the receiver is dropped.
async fn scan_one<T>(
    target: &Target,
    reports: &mpsc::Sender<T>,
    depth: Depth,
    options: &Options,
    made: impl Fn(Report) -> T,
) -> bool {
    let addresses: Vec<SocketAddr> = match resolve(target, options).await {
        Ok(addresses) => addresses,
        Err(evidence) => {
            return reports.send(made(unresolved(target, evidence))).await.is_ok();
        }
    };
    for address in addresses {
        let report = match depth {
            // Boxed, so that workers of quick scans need not contain this large future.
            Depth::Full => Box::pin(scan_address(target, address, options)).await,
            Depth::Quick => quick(target, address, options).await,
        };
        if reports.send(made(report)).await.is_err() {
            return false;
        }
    }
    true
}

fn unresolved(target: &Target, evidence: String) -> Report {
    let reached = Reached::Unreachable { evidence };
    let judgement = Arc::new(judge::judge(&reached, &Facts::default(), &[]));
    Report {
        target: target.clone(),
        address: None,
        started: jiff::Timestamp::now(),
        seconds: 0.0,
        connections: 0,
        reached,
        facts: Facts::default(),
        observed: Vec::new(),
        chains: Vec::new(),
        judgement,
    }
}
