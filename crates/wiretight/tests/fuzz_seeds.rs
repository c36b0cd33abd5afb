//! Runs every fuzz target over its seeds with the stable compiler: unchanged, truncated, and with each byte changed. Inputs
//! that a fuzzer found are kept in fuzz/seeds and so stay tested.

use std::fs;
use std::path::Path;

#[path = "../../../fuzz/src/lib.rs"]
mod targets;

fn replay(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target);
    let mut seeds = 0;
    for entry in fs::read_dir(folder).expect("the seeds") {
        let seed = fs::read(entry.expect("the seeds").path()).expect("a seed");
        run(&seed);
        // About a thousand positions in each, so that a long seed takes no longer than a short one.
        for i in (0..seed.len()).step_by(seed.len() / 1000 + 1) {
            run(&seed[..i]);
            for flip in [0x01, 0x20, 0x80, 0xff] {
                let mut altered = seed.clone();
                altered[i] ^= flip;
                run(&altered);
            }
        }
        seeds += 1;
    }
    assert!(seeds > 0, "{target} has no seeds");
}

#[test]
fn frames() {
    replay("frames", targets::frames);
}

#[test]
fn records() {
    replay("records", targets::records);
}

#[test]
fn config() {
    replay("config", targets::config);
}

#[test]
fn token() {
    replay("token", targets::token);
}

#[test]
fn control() {
    replay("control", targets::control);
}

#[test]
fn announcement() {
    replay("announcement", targets::announcement);
}

#[test]
fn pushed() {
    replay("pushed", targets::pushed);
}

#[test]
fn certificates() {
    replay("certificate", targets::certificate);
}

#[test]
fn acme() {
    replay("acme", targets::acme);
}

#[test]
fn http() {
    replay("http", targets::http);
}

#[test]
fn hello() {
    replay("hello", targets::hello);
}

#[test]
fn proxy() {
    replay("proxy", targets::proxy);
}

#[test]
fn tlog() {
    replay("tlog", targets::tlog);
}

#[test]
fn chain() {
    replay("chain", targets::chain);
}

#[test]
fn starttls() {
    replay("starttls", targets::starttls);
}

#[test]
fn scan() {
    replay("scan", targets::scan);
}

#[test]
fn quic() {
    replay("quic", targets::quic);
}

#[test]
fn flows() {
    replay("flows", targets::flows);
}

#[test]
fn netlink() {
    replay("netlink", targets::netlink);
}

#[test]
fn look() {
    replay("look", targets::look);
}

#[test]
fn capture() {
    replay("capture", targets::capture);
}

#[test]
fn archive() {
    replay("archive", targets::archive);
}

#[test]
fn release() {
    replay("release", targets::release);
}
