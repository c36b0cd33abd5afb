//! The cost of clients that make no progress. A test binary of its own, because the memory of the process is
//! measured.
#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod rig;

use std::time::Duration;

use hyper::Request;

use rig::edge::{EdgeRig, SITE, http_backend, run};

/// Concurrent readers.
const READERS: usize = 20;

/// The memory of this process, which includes the edge.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn a_slow_http3_reader_costs_less_than_a_megabyte() {
    let rig = EdgeRig::new(&[http_backend("one", false).to_string()]);
    run(async {
        let mut kept = Vec::new();
        let mut before = 0;
        // The first reader is for one-time allocations.
        for n in 0..=READERS {
            let (endpoint, connection) = rig.quic(16 * 1024).await;
            let quic = h3_quinn::Connection::new(connection);
            let (mut driver, mut client) = h3::client::new(quic).await.unwrap();
            tokio::spawn(async move {
                let _ = std::future::poll_fn(|cx| driver.poll_close(cx)).await;
            });
            let get = Request::get(format!("https://{SITE}/big/268435456")).body(()).unwrap();
            let mut stream = client.send_request(get).await.unwrap();
            stream.finish().await.unwrap();
            assert_eq!(stream.recv_response().await.unwrap().status(), 200);
            kept.push((endpoint, client, stream));
            if n == 0 {
                tokio::time::sleep(Duration::from_millis(500)).await;
                before = resident();
            }
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        let each = resident().saturating_sub(before) / READERS;
        assert!(each < 1 << 20, "{each} bytes for each stalled reader");
    });
}
