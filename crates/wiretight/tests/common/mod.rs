//! What the test binaries have in common: programs, child processes, ports, and waiting.
#![allow(dead_code, unused_imports, reason = "each test binary uses what it needs")]

#[path = "../../../../tests/ports.rs"]
mod ports;

use std::fmt::Display;
use std::fs;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

pub(crate) use ports::free;

/// The time limit for what takes milliseconds on an idle machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// The longest delay of log lines, which are collected for 10 ms.
pub(crate) const LOG_LAG: Duration = Duration::from_millis(50);

/// Prints a line whether or not the test passes.
pub(crate) fn say(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Reports that a test is skipped because something is missing. If CI is set, that is an error.
pub(crate) fn skip(missing: impl Display) {
    let test = thread::current().name().unwrap_or("?").to_owned();
    assert!(std::env::var_os("CI").is_none(), "{test} needs {missing}, which CI must have");
    say(format!("skipped: {test}: there is no {missing}"));
}

/// The path of a program. PyPI's tools may be below `target`.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let tools = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/tools/pypi/bin");
    let postgres = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/bin", "/usr/lib/nginx/modules", tools].map(PathBuf::from))
        .chain(postgres.map(|version| version.path().join("bin")))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// Whether all these programs are installed. If not, the test is skipped.
pub(crate) fn has(programs: &[&str]) -> bool {
    let missing: Vec<_> = programs.iter().filter(|p| find(p).is_none()).copied().collect();
    if !missing.is_empty() {
        skip(missing.join(", "));
    }
    missing.is_empty()
}

/// Whether this is root. If not, the test is skipped.
pub(crate) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skip("root");
    }
    root
}

/// Waits until a condition holds.
#[track_caller]
pub(crate) fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until a process listens on the address.
#[track_caller]
pub(crate) fn wait_port(addr: SocketAddr) {
    wait_for(&format!("{addr} listens"), || TcpStream::connect(addr).is_ok());
}

/// A child process that is killed when this is dropped.
pub(crate) struct KilledOnDrop(pub(crate) Child);

impl Deref for KilledOnDrop {
    type Target = Child;
    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for KilledOnDrop {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
