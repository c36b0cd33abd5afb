//! The cost of idle clients. A test binary of its own, because the memory of the process is measured.
#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod rig;

use std::time::Duration;

use rig::edge::{EdgeRig, Raw, SITE, http_backend};

/// Concurrent clients.
const CLIENTS: usize = 300;

/// The memory of this process, which includes the edge.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Both ends are in this process: about 20 KiB together. With the HTTP library's buffers it would be 40.
#[test]
fn an_idle_http1_connection_has_no_buffers() {
    let rig = EdgeRig::by(1, &[http_backend("one", false).to_string()], |_| {});
    let config = rig.client(&["http/1.1"]);
    let mut kept = Vec::new();
    let mut before = 0;
    // The first connections are for one-time allocations.
    for n in 0..CLIENTS + 50 {
        if n == 50 {
            std::thread::sleep(Duration::from_millis(500));
            before = resident();
        }
        let mut raw = Raw::over(rig::connect(rig.https()), config.clone(), SITE);
        raw.send(&format!("GET /name HTTP/1.1\r\nHost: {SITE}\r\n\r\n"));
        raw.until("\r\n\r\none");
        kept.push(raw);
        // A short pause, so that only some are not idle yet.
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(500));
    let each = resident().saturating_sub(before) / CLIENTS;
    assert!(each < 30 * 1024, "{each} bytes for each idle connection");
    for raw in &mut kept {
        raw.send(&format!("GET /name HTTP/1.1\r\nHost: {SITE}\r\n\r\n"));
        raw.until("\r\n\r\none");
    }
}
