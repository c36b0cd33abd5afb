//! Logs: text on a terminal, JSON lines otherwise. `WIRETIGHT_LOG` sets the filter (`info`, `debug`, `access=off,info`).
//!
//! Lines are buffered in memory and written by a separate thread, because a blocked log must not block traffic. When the
//! buffer is full, lines are dropped; the last line says how many.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::prelude::*;

const VARIABLE: &str = "WIRETIGHT_LOG";
const DEFAULT: LevelFilter = LevelFilter::INFO;
/// Valid targets in a filter: our own, and those of libraries whose lines may be useful.
const TARGETS: [&str; 13] = [
    "access",
    "wiretight",
    "wiretight_proxy",
    "wiretight_scan",
    "wiretight_store",
    "wiretight_keys",
    "wiretight_tlog",
    "rustls",
    "tokio_rustls",
    "hyper",
    "h2",
    "h3",
    "quinn",
];

/// Size of the buffer, in bytes.
const ROOM: usize = 8 << 20;
/// Pause after each write, so that a busy relay does not wake the thread for every line.
const PAUSE: Duration = Duration::from_millis(10);
/// Capacity that an empty buffer keeps.
const KEPT: usize = 64 << 10;

/// How long to wait for the last lines: the output may be a pipe that nobody reads.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Writes the buffered lines when it is dropped.
pub struct Logs(Arc<Lines>);

impl Drop for Logs {
    fn drop(&mut self) {
        let Logs(lines) = self;
        let mut waiting = lines.waiting.lock();
        waiting.ended = true;
        lines.more.notify_all();
        lines.more.wait_while_for(&mut waiting, |w| !w.written, LAST_LINES);
        let (lost, written) = (waiting.lost, waiting.written);
        drop(waiting);
        // If nobody reads the output, this would block, too.
        if written && lost > 0 {
            eprintln!(
                "wiretight: {lost} log lines were dropped, because standard error was read too slowly"
            );
        }
    }
}

/// Starts logging to standard error.
pub fn start() -> Logs {
    let lines = Arc::<Lines>::default();
    let logs = Logs(lines.clone());
    let writer = lines.clone();
    let run = move || writer.write_to(&mut io::stderr());
    if let Err(error) = thread::Builder::new().name("log".into()).spawn(run) {
        eprintln!("wiretight: cannot start the logging thread, so there will be no log: {error}");
    }
    let (filter, problem) = match std::env::var(VARIABLE) {
        Ok(text) => filter(&text),
        Err(_) => filter(""),
    };
    let terminal = io::stderr().is_terminal();
    let to = Gathered(lines);
    let lines = fmt::layer().with_writer(to);
    let filtered = tracing_subscriber::registry().with(filter);
    let started = if terminal {
        filtered.with(lines.with_ansi(colour_is_wanted()).with_target(true)).try_init()
    } else {
        let lines = lines.json().flatten_event(true);
        filtered.with(lines.with_current_span(false).with_span_list(false)).try_init()
    };
    // In tests, a second start in the same process has no effect.
    drop(started);
    if let Some(problem) = problem {
        tracing::warn!("{problem}");
    }
    logs
}

/// Whether to use colour on a terminal: not if NO_COLOR is set (no-color.org) or TERM is "dumb".
pub(crate) fn colour_is_wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
        && std::env::var_os("TERM").is_none_or(|v| v != "dumb")
}

/// The filter from `WIRETIGHT_LOG`. An invalid text is reported and not used at all: the library would take a misspelt
/// level for the name of a module, and log nothing else.
fn filter(text: &str) -> (Targets, Option<String>) {
    let default = || Targets::new().with_default(DEFAULT);
    let mut parts = text.split(',').map(str::trim).filter(|part| !part.is_empty()).peekable();
    if parts.peek().is_none() {
        return (default(), None);
    }
    let is_level = |word: &str| !word.is_empty() && word.parse::<LevelFilter>().is_ok();
    let is_known = |target: &str| {
        TARGETS.iter().any(|known| {
            let rest = target.strip_prefix(known);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
        })
    };
    let mut all = Vec::new();
    let mut has_level = false;
    for part in parts {
        let good = match part.split_once('=') {
            None => is_level(part) || is_known(part),
            Some((target, level)) => is_level(level) && is_known(target),
        };
        if !good {
            let problem = format!(
                "{VARIABLE}={text:?} is invalid, so \"{DEFAULT}\" is used: {part:?} is neither a level (off, error, \
                 warn, info, debug, trace) nor TARGET=LEVEL with one of the targets {}. Example: \
                 {VARIABLE}=access=off,info",
                TARGETS.join(", ")
            );
            return (default(), Some(problem));
        }
        has_level |= is_level(part);
        all.push(part);
    }
    if !has_level {
        // `access=off` alone only changes the access log; the rest keeps the default level.
        all.push("info");
    }
    match all.join(",").parse() {
        Ok(filter) => (filter, None),
        Err(error) => {
            let problem =
                format!("{VARIABLE}={text:?} is invalid, so \"{DEFAULT}\" is used: {error}");
            (default(), Some(problem))
        }
    }
}

/// The buffer between loggers and the writing thread.
#[derive(Default)]
struct Lines {
    waiting: Mutex<Waiting>,
    more: Condvar,
}

#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    lost: u64,
    /// No more lines will come.
    ended: bool,
    /// All lines are written.
    written: bool,
}

impl Lines {
    fn add(&self, line: &[u8]) {
        let mut waiting = self.waiting.lock();
        if waiting.bytes.len() + line.len() > ROOM {
            waiting.lost += 1;
            return;
        }
        waiting.bytes.extend_from_slice(line);
        if waiting.bytes.len() == line.len() {
            self.more.notify_one();
        }
    }

    /// Writes lines until the end: the first line after a pause at once, then everything that came during each pause.
    fn write_to(&self, out: &mut impl Write) {
        let mut bytes = Vec::new();
        loop {
            let mut come = self.waiting.lock();
            self.more.wait_while(&mut come, |w| w.bytes.is_empty() && !w.ended);
            if come.bytes.is_empty() {
                come.written = true;
                self.more.notify_all();
                return;
            }
            std::mem::swap(&mut come.bytes, &mut bytes);
            drop(come);
            let _ = out.write_all(&bytes); // there is nowhere else to report an error
            bytes.clear();
            bytes.shrink_to(KEPT);
            self.more.wait_while_for(&mut self.waiting.lock(), |w| !w.ended, PAUSE);
        }
    }
}

/// The formatter writes each line with one call of `write`.
struct Gathered(Arc<Lines>);

impl<'a> MakeWriter<'a> for Gathered {
    type Writer = Line<'a>;
    fn make_writer(&'a self) -> Line<'a> {
        Line(&self.0)
    }
}

struct Line<'a>(&'a Lines);

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.add(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An error and its sources in a line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut out = error.to_string();
    let mut source = error.source();
    while let Some(e) = source {
        let more = e.to_string();
        if !out.contains(&more) {
            out.push_str(": ");
            out.push_str(&more);
        }
        source = e.source();
    }
    out
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use tracing_subscriber::{Layer, Registry};

    use super::*;

    #[test]
    fn an_invalid_filter_is_reported_and_not_used() {
        for good in
            ["", " ", "info", "DEBUG", "access=off,info", "wiretight::acme=trace", "access=off"]
        {
            let (filter, problem) = filter(good);
            assert_eq!(problem, None, "{good}");
            assert!(most(&filter) >= Some(LevelFilter::INFO), "{good}: {filter}");
        }
        assert_eq!(most(&filter("error").0), Some(LevelFilter::ERROR));
        assert_eq!(most(&filter("off").0), Some(LevelFilter::OFF));
        for bad in [
            "inof",
            "info,acces=off",
            "access=of",
            "debug info",
            "=",
            "access=",
            "[",
            "wiretightly=info",
        ] {
            let (filter, problem) = filter(bad);
            assert!(problem.is_some_and(|p| p.contains("access=off,info")), "{bad}");
            assert_eq!(most(&filter), Some(LevelFilter::INFO), "{bad}");
        }
    }

    fn most(filter: &Targets) -> Option<LevelFilter> {
        Layer::<Registry>::max_level_hint(filter)
    }

    /// Reports each write, and blocks until it may continue.
    struct Slow(mpsc::Sender<usize>, mpsc::Receiver<()>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.len()).unwrap();
            let _ = self.1.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn logging_never_blocks_and_buffered_lines_are_written_at_the_end() {
        let lines = Arc::<Lines>::default();
        let (wrote, writes) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel();
        let mut slow = Slow(wrote, may_go_on);
        let writer = thread::spawn({
            let lines = lines.clone();
            move || lines.write_to(&mut slow)
        });
        lines.add(b"first\n");
        assert_eq!(writes.recv().unwrap(), 6);
        // Nobody reads the output now.
        let line = [b'x'; 1000];
        let fit = (ROOM / line.len()) as u64;
        (0..fit + 5).for_each(|_| lines.add(&line));
        assert_eq!(lines.waiting.lock().lost, 5);
        lines.waiting.lock().ended = true;
        drop(go_on);
        writer.join().unwrap();
        assert_eq!(writes.iter().sum::<usize>() as u64, fit * line.len() as u64);
    }

    #[test]
    fn stopping_does_not_wait_for_a_log_that_nobody_reads() {
        let logs = Logs(Arc::default());
        let lines = logs.0.clone();
        let (wrote, writes) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel();
        let mut stuck = Slow(wrote, may_go_on);
        let writer = thread::spawn({
            let lines = lines.clone();
            move || lines.write_to(&mut stuck)
        });
        lines.add(b"first\n");
        writes.recv().unwrap();
        drop(logs); // would hang if it waited for the writer
        assert!(!lines.waiting.lock().written);
        drop(go_on);
        writer.join().unwrap();
        assert!(lines.waiting.lock().written);
    }
}
