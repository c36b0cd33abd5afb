//! Full scans of many servers, several in parallel, because most of a scan is waiting.

use std::collections::{BTreeMap, VecDeque};
use std::env;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use wiretight_scan::active::{Options, Paces, scan_address};
use wiretight_scan::certificate::{Roots, Stores};
use wiretight_scan::{Report, Target};

use super::{Running, hostile, pki, proxies};

/// Options with long time limits for a busy machine, and with the tests' root as trusted.
pub fn options() -> Options {
    let roots = Roots::from_pem_file(&pki::folder().join("root.pem")).unwrap();
    Options {
        timeout: Duration::from_secs(5),
        max_time: Duration::from_secs(600),
        stores: Arc::new(Stores { roots: Some(roots), mesh: None }),
        ..Options::default()
    }
}

/// One scan with its own pace, because all test servers share one address.
pub fn scan(target: &Target, address: SocketAddr, options: &Options) -> Report {
    checked(scan_alone(target, address, options))
}

fn scan_alone(target: &Target, address: SocketAddr, options: &Options) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let options = Options { paces: Arc::new(Paces::default()), ..options.clone() };
    runtime.block_on(scan_address(target, address, &options))
}

/// Checks that no fact in a report contradicts an observation or another fact, that no version is a no because of
/// an alert that an ordinary client would not have received, and that no check is missing without a reason. The
/// scan must not have repaired such facts itself.
pub fn checked(report: Report) -> Report {
    let report = consistent(report);
    let repaired: Vec<_> = report
        .facts
        .iter()
        .filter(|(_, fact)| fact.evidence.starts_with(wiretight_scan::invariant::MARK))
        .collect();
    assert!(repaired.is_empty(), "{}: {repaired:#?}", report.target);
    report
}

/// The same, for servers whose own answers contradict each other: the scan must repair such facts.
fn consistent(report: Report) -> Report {
    let violations = wiretight_scan::invariant::violations(&report);
    assert!(violations.is_empty(), "{}: {violations:#?}", report.target);
    report
}

/// One scan of a server of the table.
pub fn scan_server(server: &Running, options: &Options) -> Report {
    scan(&server.target(), server.address, options)
}

/// One scan of a balancer that distributes connections over these servers.
pub fn behind_one_address(servers: &[SocketAddr], options: &Options) -> Report {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (servers, turn) = (servers.to_vec(), AtomicUsize::new(0));
    let _balancer = hostile::accept_each(listener, move |client| {
        let turn = turn.fetch_add(1, Ordering::Relaxed) % servers.len();
        let _ = proxies::pass(client, servers[turn]);
    });
    let target = Target {
        host: wiretight_scan::Host::Address(address.ip(), None),
        port: address.port(),
        start: wiretight_scan::Start::Https,
    };
    consistent(scan_alone(&target, address, options))
}

/// Calls a function for each name, several in parallel. `ONLY=nginx,old` skips the others.
pub fn each<T: Send>(
    names: impl IntoIterator<Item = &'static str>,
    at_a_time: usize,
    work: impl Fn(&'static str) -> Option<T> + Sync,
) -> BTreeMap<&'static str, T> {
    let only = env::var("ONLY").ok();
    let wanted = |name: &&str| {
        only.as_ref().is_none_or(|only| only.split(',').any(|part| name.contains(part)))
    };
    let mut names: VecDeque<_> = names.into_iter().filter(wanted).collect();
    names.make_contiguous().sort_unstable();
    let mut seen = None;
    names.retain(|name| seen.replace(*name) != Some(*name));
    let (names, done) = (Mutex::new(names), Mutex::new(BTreeMap::new()));
    thread::scope(|scope| {
        for _ in 0..at_a_time {
            scope.spawn(|| {
                loop {
                    let Some(name) = names.lock().unwrap().pop_front() else { return };
                    if let Some(found) = work(name) {
                        done.lock().unwrap().insert(name, found);
                    }
                }
            });
        }
    });
    done.into_inner().unwrap()
}
