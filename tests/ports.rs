//! Ports for the tests of all crates. Each test binary that runs has a thousand of its own, so that two that run side
//! by side do not take each other's between the choice of a port and its use.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

const BLOCK: u16 = 1_000;

/// An address of 127.0.0.1. Its port is free, on ::1 as well, and is below the ports that the kernel assigns to clients.
pub fn free() -> SocketAddr {
    static MINE: OnceLock<(u16, File)> = OnceLock::new();
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let (first, _locked) = MINE.get_or_init(block);
    for _ in 0..BLOCK {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed) % BLOCK;
        if is_free(Ipv4Addr::LOCALHOST.into(), port) && is_free(Ipv6Addr::LOCALHOST.into(), port) {
            return (Ipv4Addr::LOCALHOST, port).into();
        }
    }
    panic!("no port from {first} to {} is free", first + BLOCK)
}

/// The first port of a block that no other test binary has. It is this one's while the file is open.
fn block() -> (u16, File) {
    let block = (10..32).find_map(|n| {
        let path = std::env::temp_dir().join(format!("wiretight-test-ports-{n}"));
        // Another user's file cannot be opened: that block is taken.
        let file = File::options().create(true).append(true).open(path).ok()?;
        file.try_lock().ok()?;
        Some((n * BLOCK, file))
    });
    block.expect("a block of ports that no other test binary has")
}

/// Nothing is bound for this: another thread may start a process at this moment, which would inherit the socket and keep
/// the port until it executes its program.
fn is_free(ip: IpAddr, port: u16) -> bool {
    TcpStream::connect_timeout(&(ip, port).into(), Duration::from_secs(1)).is_err()
}
