//! What idle clients cost. Alone in its process, whose memory is measured.
#![allow(clippy::unwrap_used, reason = "in a test, whatever is not there ends it")]

mod rig;

use std::time::Duration;

use rig::edge::{EdgeRig, Raw, SITE, http_backend};

/// Clients at a time.
const CLIENTS: usize = 300;

/// This process's memory, the edge's among it.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Both ends are in this process: 20 KiB or so together. With the HTTP library's buffers it would be 40.
#[test]
fn an_idle_connection_of_http1_holds_no_buffers() {
    let rig = EdgeRig::by(1, &[http_backend("one", false).to_string()], |_| {});
    let config = rig.client(&["http/1.1"]);
    let mut kept = Vec::new();
    let mut before = 0;
    // The first are for what is allocated once.
    for n in 0..CLIENTS + 50 {
        if n == 50 {
            std::thread::sleep(Duration::from_millis(500));
            before = resident();
        }
        let mut raw = Raw::over(rig::connect(rig.https()), config.clone(), SITE);
        raw.send(&format!("GET /name HTTP/1.1\r\nHost: {SITE}\r\n\r\n"));
        raw.until("\r\n\r\none");
        kept.push(raw);
        // Some at a time are not idle yet.
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
