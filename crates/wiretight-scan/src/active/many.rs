//! Many targets at a time, in memory that does not grow with their number.

use std::net::SocketAddr;
use std::sync::Arc;
use std::{io, thread};

use tokio::sync::{Mutex, mpsc};
use tokio::task::LocalSet;

use super::quick::quick;
use super::scan::{Options, resolve, scan_address};
use crate::facts::Facts;
use crate::target::Target;
use crate::{Reached, Report, judge};

/// Of a thread that scans: a whole scan is one large future, made on the stack before it is moved.
const STACK: usize = 8 << 20;

/// How each target is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// All questions.
    Full,
    /// One hello.
    Quick,
}

/// Scans what comes in, so many targets at a time, and sends a report for each address. It ends
/// when there are no more targets, or nobody takes the reports.
///
/// Each processor has a thread of its own that keeps its share of the targets to itself. It returns
/// at once; the end of the reports is the end of the scan.
///
/// # Errors
///
/// No thread, or no reactor for it, can be had.
pub fn scan_many(
    targets: mpsc::Receiver<Target>,
    reports: mpsc::Sender<Report>,
    at_a_time: usize,
    depth: Depth,
    options: &Options,
) -> io::Result<()> {
    let targets = Arc::new(Mutex::new(targets));
    let at_a_time = at_a_time.max(1);
    let threads = thread::available_parallelism().map_or(1, usize::from).min(at_a_time);
    for n in 0..threads {
        let workers = (at_a_time + n) / threads;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (targets, reports, options) = (targets.clone(), reports.clone(), options.clone());
        thread::Builder::new().name(format!("scan-{n}")).stack_size(STACK).spawn(move || {
            let set = LocalSet::new();
            for _ in 0..workers {
                let (targets, reports) = (targets.clone(), reports.clone());
                set.spawn_local(work(targets, reports, depth, options.clone()));
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

async fn work(
    targets: Arc<Mutex<mpsc::Receiver<Target>>>,
    reports: mpsc::Sender<Report>,
    depth: Depth,
    options: Options,
) {
    loop {
        let next = targets.lock().await.recv().await;
        let Some(target) = next else { return };
        if !scan_one(&target, &reports, depth, &options).await {
            return;
        }
    }
}

/// All addresses of a target, one after the other; `false` when nobody takes the reports.
async fn scan_one(
    target: &Target,
    reports: &mpsc::Sender<Report>,
    depth: Depth,
    options: &Options,
) -> bool {
    let addresses: Vec<SocketAddr> = match resolve(target, options).await {
        Ok(addresses) => addresses,
        Err(evidence) => {
            return reports.send(unresolved(target, evidence)).await.is_ok();
        }
    };
    for address in addresses {
        let report = match depth {
            // Large, and not to be a part of each worker that asks but once.
            Depth::Full => Box::pin(scan_address(target, address, options)).await,
            Depth::Quick => quick(target, address, options).await,
        };
        if reports.send(report).await.is_err() {
            return false;
        }
    }
    true
}

fn unresolved(target: &Target, evidence: String) -> Report {
    let reached = Reached::Unreachable { evidence };
    let judgement = judge::judge(&reached, &Facts::default(), &[]);
    Report {
        target: target.clone(),
        address: None,
        started: jiff::Timestamp::now(),
        seconds: 0.0,
        connections: 0,
        reached,
        facts: Facts::default(),
        chains: Vec::new(),
        judgement,
    }
}
