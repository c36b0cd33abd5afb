//! What the benchmarks share: processes that are started and stopped ([`process`]), the daemon among
//! them ([`node`]), what they cost ([`procfs`]), a relay that costs as little as one can
//! ([`null_relay`]), and figures ([`figures`]).

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

/// Runs a benchmark on one thread, until it is done or this process is told to stop.
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

/// Those that were chosen; all if none were.
pub(crate) fn or_all<T: ValueEnum + Clone>(chosen: &[T]) -> Vec<T> {
    if chosen.is_empty() { T::value_variants().to_vec() } else { chosen.to_vec() }
}

/// Idle connections take a descriptor here, and more in what is measured.
fn raise_fd_limit() -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
        .context("cannot raise the limit of open files")
}

/// Loopback, where all of this happens.
pub(crate) fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A path that the caller gave. Cargo runs a bench in its package's folder; PWD still names the caller's.
pub(crate) fn callers_path(path: &Path) -> PathBuf {
    PathBuf::from(std::env::var_os("PWD").unwrap_or_default()).join(path)
}

/// Writes to the file that `--json` names.
pub(crate) fn write_json(file: &Path, text: &str) -> anyhow::Result<()> {
    let file = callers_path(file);
    std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
}
