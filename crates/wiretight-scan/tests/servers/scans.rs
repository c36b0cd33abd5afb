//! Full scans of many servers, some at a time: most of a scan is waiting.

use std::collections::{BTreeMap, VecDeque};
use std::env;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use wiretight_scan::active::{Options, Paces, scan_address};
use wiretight_scan::certificate::{Roots, Stores};
use wiretight_scan::{Report, Target};

use super::{Running, pki};

/// Options with patience for servers on a busy machine, and with the tests' root trusted.
pub fn options() -> Options {
    let roots = Roots::from_pem_file(&pki::folder().join("root.pem")).unwrap();
    Options {
        timeout: Duration::from_secs(5),
        max_time: Duration::from_secs(60),
        stores: Arc::new(Stores { roots: Some(roots), mesh: None }),
        ..Options::default()
    }
}

/// One scan, with a pace of its own: servers on one address here are not one host.
pub fn scan(target: &Target, address: SocketAddr, options: &Options) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let options = Options { paces: Arc::new(Paces::default()), ..options.clone() };
    runtime.block_on(scan_address(target, address, &options))
}

/// One scan of a server of the table.
pub fn scan_server(server: &Running, options: &Options) -> Report {
    scan(&server.target(), server.address, options)
}

/// Does this for each name, so many at a time. `ONLY=nginx,old` leaves the others out.
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
