//! Many targets at a time, in memory that does not grow with their number.

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

/// Of a thread that scans: a whole scan is one large future, made on the stack before it is moved.
const STACK: usize = 8 << 20;

/// How long who writes what many short scans found had best wait before it looks again: to be woken
/// for each takes as long as a hello.
pub const GATHER: Duration = Duration::from_millis(5);

/// How each target is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// All questions.
    Full,
    /// One hello.
    Quick,
}

/// Puts targets into a scan, from a thread that may block. It waits for room for many at a time: to
/// be woken for each takes as long as a hello.
pub struct Feed<'a> {
    to: &'a mpsc::Sender<Target>,
    room: Option<mpsc::PermitIterator<'a, Target>>,
    runtime: Handle,
}

impl<'a> Feed<'a> {
    /// Into this channel; the runtime is anyone's.
    pub fn new(to: &'a mpsc::Sender<Target>, runtime: Handle) -> Self {
        Self { to, room: None, runtime }
    }

    /// Waits for room; `false` when nobody scans any more.
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

/// Scans what comes in, so many targets at a time, and sends what `made` makes of the report for each
/// address. It ends when there are no more targets, or nobody takes the reports.
///
/// Each processor has a thread of its own that keeps its share of the targets to itself, and makes of
/// a report what is wanted of it. It returns at once; the end of the reports is the end of the scan.
///
/// # Errors
///
/// No thread, or no reactor for it, can be had.
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
            // What is left are the workers' own.
            drop((targets, reports));
            runtime.block_on(set);
            // A resolver that hangs must not hold the end up.
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

/// All addresses of a target, one after the other; `false` when nobody takes the reports.
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
            // Large, and not to be a part of each worker that asks but once.
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
