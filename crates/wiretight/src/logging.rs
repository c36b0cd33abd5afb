//! Logs: for a person on a terminal, JSON lines otherwise. `WIRETIGHT_LOG` filters
//! (`info`, `debug`, `access=off,info`).
//!
//! Lines are gathered in memory and written by a thread of their own: a log that nobody reads must not stop
//! traffic. Lines that find no room are dropped; how many, the last line says.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

const VARIABLE: &str = "WIRETIGHT_LOG";
const DEFAULT: &str = "info";
/// What log lines belong to: ours, and the libraries whose lines may be of use.
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

/// Bytes of lines that may wait.
const ROOM: usize = 8 << 20;
/// How long lines are gathered after some were written, so that a busy relay does not wake the thread for each.
const PAUSE: Duration = Duration::from_millis(10);
/// What is kept of the memory that they took.
const KEPT: usize = 64 << 10;

/// How long the last lines may take: what they go to may be a pipe that nobody reads.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Writes what waits when it is dropped.
pub struct Logs(Arc<Lines>);

impl Drop for Logs {
    fn drop(&mut self) {
        let Logs(lines) = self;
        let mut waiting = lines.waiting();
        waiting.ended = true;
        lines.more.notify_all();
        let waited = lines.more.wait_timeout_while(waiting, LAST_LINES, |w| !w.written);
        let (waiting, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let (lost, written) = (waiting.lost, waiting.written);
        drop(waiting);
        // Where nobody reads, this would wait, too.
        if written && lost > 0 {
            eprintln!("wiretight: {lost} log lines were lost: nobody read them fast enough");
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
        eprintln!("wiretight: there will be no log: no thread can be started for it: {error}");
    }
    let (filter, problem) = match std::env::var(VARIABLE) {
        Ok(text) => filter(&text),
        Err(_) => filter(""),
    };
    let terminal = io::stderr().is_terminal();
    let to = Gathered(lines);
    let builder = tracing_subscriber::fmt().with_writer(to).with_env_filter(filter);
    let started = if terminal {
        builder.with_ansi(colour_is_wanted()).with_target(true).try_init()
    } else {
        builder.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init()
    };
    // A second start in one process (tests) keeps the first.
    drop(started);
    if let Some(problem) = problem {
        tracing::warn!("{problem}");
    }
    logs
}

/// Whether a terminal shall have colour: not where NO_COLOR is set (no-color.org), nor where TERM says that it has none.
pub(crate) fn colour_is_wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
        && std::env::var_os("TERM").is_none_or(|v| v != "dumb")
}

/// The filter that `WIRETIGHT_LOG` asks for. A text with a mistake in it counts for nothing, and is complained about:
/// the library takes a misspelt level for the name of a module, and would log nothing else.
fn filter(text: &str) -> (EnvFilter, Option<String>) {
    let default = || EnvFilter::new(DEFAULT);
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
                "{VARIABLE}={text:?} is not a filter, so {DEFAULT:?} is used: {part:?} is neither a level (off, error, \
                 warn, info, debug, trace) nor TARGET=LEVEL with one of the targets {}. Write for example \
                 {VARIABLE}=access=off,info",
                TARGETS.join(", ")
            );
            return (default(), Some(problem));
        }
        has_level |= is_level(part);
        all.push(part);
    }
    if !has_level {
        // `access=off` alone is about the access log, and leaves the rest as it is.
        all.push(DEFAULT);
    }
    match EnvFilter::try_new(all.join(",")) {
        Ok(filter) => (filter, None),
        Err(error) => {
            let problem =
                format!("{VARIABLE}={text:?} is not a filter, so {DEFAULT:?} is used: {error}");
            (default(), Some(problem))
        }
    }
}

/// Lines on their way to the thread that writes them.
#[derive(Default)]
struct Lines {
    waiting: Mutex<Waiting>,
    more: Condvar,
}

#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    lost: u64,
    /// No more will come.
    ended: bool,
    /// And all that came is written.
    written: bool,
}

impl Lines {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, line: &[u8]) {
        let mut waiting = self.waiting();
        if waiting.bytes.len() + line.len() > ROOM {
            waiting.lost += 1;
            return;
        }
        waiting.bytes.extend_from_slice(line);
        if waiting.bytes.len() == line.len() {
            self.more.notify_one();
        }
    }

    /// Writes whatever comes, to the end: at once after a pause, and all that has come when one is over.
    fn write_to(&self, out: &mut impl Write) {
        let mut bytes = Vec::new();
        loop {
            let waiting = self.waiting();
            let come = self.more.wait_while(waiting, |w| w.bytes.is_empty() && !w.ended);
            let mut come = come.unwrap_or_else(PoisonError::into_inner);
            if come.bytes.is_empty() {
                come.written = true;
                self.more.notify_all();
                return;
            }
            std::mem::swap(&mut come.bytes, &mut bytes);
            drop(come);
            let _ = out.write_all(&bytes); // there is no other place to say it
            bytes.clear();
            bytes.shrink_to(KEPT);
            let pause = self.more.wait_timeout_while(self.waiting(), PAUSE, |w| !w.ended);
            drop(pause);
        }
    }
}

/// Hands lines over. The formatter writes each at once.
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

    use super::*;

    #[test]
    fn a_mistake_in_the_filter_is_told_and_silences_nothing() {
        for good in
            ["", " ", "info", "DEBUG", "access=off,info", "wiretight::acme=trace", "access=off"]
        {
            let (filter, problem) = filter(good);
            assert_eq!(problem, None, "{good}");
            assert!(filter.max_level_hint() >= Some(LevelFilter::INFO), "{good}: {filter}");
        }
        assert_eq!(filter("error").0.max_level_hint(), Some(LevelFilter::ERROR));
        assert_eq!(filter("off").0.max_level_hint(), Some(LevelFilter::OFF));
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
            assert_eq!(filter.max_level_hint(), Some(LevelFilter::INFO), "{bad}");
        }
    }

    /// Tells of each write, and waits until it may go on.
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
    fn who_logs_never_waits_and_what_found_room_is_written_at_the_end() {
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
        // Nobody reads it now.
        let line = [b'x'; 1000];
        let fit = (ROOM / line.len()) as u64;
        (0..fit + 5).for_each(|_| lines.add(&line));
        assert_eq!(lines.waiting().lost, 5);
        lines.waiting().ended = true;
        drop(go_on);
        writer.join().unwrap();
        assert_eq!(writes.iter().sum::<usize>() as u64, fit * line.len() as u64);
    }

    #[test]
    fn the_end_does_not_wait_for_a_log_that_nobody_reads() {
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
        drop(logs); // waiting for the writer, it would never come back
        assert!(!lines.waiting().written);
        drop(go_on);
        writer.join().unwrap();
        assert!(lines.waiting().written);
    }
}
