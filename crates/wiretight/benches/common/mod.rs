//! Shared by the benchmarks: start and stop of processes ([`process`]), the daemon ([`node`]), CPU time and memory of
//! processes ([`procfs`]), a minimal relay ([`null_relay`]), and figures ([`figures`]).

#![allow(dead_code, reason = "each benchmark uses its part of it")]

pub(crate) mod figures;
pub(crate) mod node;
pub(crate) mod null_relay;
pub(crate) mod process;
pub(crate) mod procfs;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::ValueEnum;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

/// Runs a benchmark on one thread until it is done or receives a signal to stop.
pub(crate) fn run(
    benchmark: impl Future<Output = anyhow::Result<ExitCode>>,
) -> anyhow::Result<ExitCode> {
    raise_fd_limit()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        // Losing the race drops `benchmark`, and with it every process and the temporary folder.
        tokio::select! {
            done = benchmark => done,
            _ = tokio::signal::ctrl_c() => Ok(ExitCode::from(130)),
            _ = terminate.recv() => Ok(ExitCode::from(143)),
        }
    })
}

/// The chosen ones; all if none were chosen.
pub(crate) fn or_all<T: ValueEnum + Clone>(chosen: &[T]) -> Vec<T> {
    if chosen.is_empty() { T::value_variants().to_vec() } else { chosen.to_vec() }
}

/// Each idle connection needs a descriptor here, and more in the measured process.
fn raise_fd_limit() -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
        .context("cannot raise the limit of open files")
}

/// The loopback address of all benchmarks.
pub(crate) fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A path from the command line. Cargo runs a benchmark in its package's folder; PWD still contains the caller's.
pub(crate) fn callers_path(path: &Path) -> PathBuf {
    PathBuf::from(std::env::var_os("PWD").unwrap_or_default()).join(path)
}

/// Writes to the file of `--json`.
pub(crate) fn write_json(file: &Path, text: &str) -> anyhow::Result<()> {
    let file = callers_path(file);
    std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
}
