//! Logs: for a person on a terminal, JSON lines otherwise. `WIRETIGHT_LOG` filters
//! (`info`, `debug`, `access=off,info`).
//!
//! Lines go through a bounded queue to a thread of their own: a log that nobody reads must not stop
//! traffic. Lines that find the queue full are dropped; how many, the last line says.

use std::io::IsTerminal;

use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

/// Lines that may wait.
const QUEUE: usize = 32_768;

/// Writes what waits when it is dropped.
pub struct Logs {
    guard: Option<WorkerGuard>,
    lost: ErrorCounter,
}

impl Drop for Logs {
    fn drop(&mut self) {
        drop(self.guard.take());
        match self.lost.dropped_lines() {
            0 => {}
            lost => {
                eprintln!("wiretight: {lost} log lines were lost: nobody read them fast enough")
            }
        }
    }
}

/// Starts logging to standard error.
pub fn start() -> Logs {
    let (writer, guard) =
        NonBlockingBuilder::default().buffered_lines_limit(QUEUE).finish(std::io::stderr());
    let logs = Logs { guard: Some(guard), lost: writer.error_counter() };
    let filter = std::env::var("WIRETIGHT_LOG").unwrap_or_else(|_| "info".into());
    let filter = EnvFilter::builder().parse_lossy(filter);
    let terminal = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_writer(writer).with_env_filter(filter);
    let started = if terminal {
        let colour = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        builder.with_ansi(colour).with_target(true).try_init()
    } else {
        builder.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init()
    };
    // A second start in one process (tests) keeps the first.
    drop(started);
    logs
}
