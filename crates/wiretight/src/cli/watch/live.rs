//! The live table on a terminal: raw input, the alternate screen, and a few keys. Everything is restored when it ends.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use wiretight_scan::judge::Level;
use wiretight_scan::passive::summary::Row;
use wiretight_scan::report::{self, FlowOptions, FlowReport, clean};

/// How often the table is drawn.
const TICK: Duration = Duration::from_secs(1);
/// The longest text that is searched for.
const MAX_TEXT: usize = 60;

const HELP: &str =
    "q quit  ↑↓ scroll  l level  p protocol  s sort  / search  v evidence  b what to change";

/// The terminal in raw mode.
pub(super) struct Terminal {
    before: Termios,
    view: View,
    keys: mpsc::Receiver<Key>,
    terminated: Signal,
    resized: Signal,
}

/// What the operator has chosen.
#[derive(Debug, Default)]
struct View {
    colour: bool,
    verbose: bool,
    blockers: bool,
    level: Option<Level>,
    protocol: Option<String>,
    sort: Sort,
    text: String,
    /// Whether keys are added to `text`.
    typing: bool,
    /// The first line that is shown.
    top: usize,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Sort {
    #[default]
    Bytes,
    Flows,
    Last,
    Level,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Char(char),
    Enter,
    Escape,
    Backspace,
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
    Interrupt,
}

impl Terminal {
    /// Takes the terminal. Needs a tokio runtime.
    pub(super) fn enter(colour: bool, verbose: bool) -> anyhow::Result<Terminal> {
        let before = tcgetattr(io::stdin()).context("cannot read the settings of the terminal")?;
        let mut raw = before.clone();
        raw.make_raw();
        let (send, keys) = mpsc::channel(64);
        // It ends with the process: nothing wakes a read from a terminal.
        std::thread::Builder::new().name("keys".into()).spawn(move || read(&send))?;
        tcsetattr(io::stdin(), OptionalActions::Flush, &raw).context("cannot set the terminal")?;
        let entered =
            || write!(io::stdout(), "\x1b[?1049h\x1b[?25l").and_then(|()| io::stdout().flush());
        entered().context("cannot write to the terminal")?;
        let view = View { colour, verbose, ..View::default() };
        let (terminated, resized) =
            (signal(SignalKind::terminate())?, signal(SignalKind::window_change())?);
        Ok(Terminal { before, view, keys, terminated, resized })
    }

    /// Draws what `look` returns until a key ends it, or the time is over, or `look` returns nothing.
    pub(super) async fn run(
        &mut self,
        until: Option<Instant>,
        mut look: impl FnMut() -> io::Result<Option<FlowReport>>,
    ) -> anyhow::Result<()> {
        let mut due = Instant::now();
        let mut report = look()?;
        loop {
            if Instant::now() >= due {
                report = look()?;
                due = Instant::now() + TICK;
            }
            let Some(report) = &report else { return Ok(()) };
            let names = protocols(&report.rows);
            self.view.draw(report)?;
            if until.is_some_and(|until| Instant::now() >= until) {
                return Ok(());
            }
            tokio::select! {
                key = self.keys.recv() => match key {
                    Some(key) => if !self.view.key(key, &names) { return Ok(()) },
                    None => return Ok(()),
                },
                _ = self.terminated.recv() => return Ok(()),
                _ = self.resized.recv() => {}
                () = tokio::time::sleep_until(due.into()) => {}
            }
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = write!(io::stdout(), "\x1b[?25h\x1b[?1049l");
        let _ = io::stdout().flush();
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &self.before);
    }
}

/// The protocols of all rows, sorted.
fn protocols(rows: &[Row]) -> Vec<String> {
    let mut names: Vec<String> = rows.iter().map(|row| row.key.protocol.to_string()).collect();
    names.sort();
    names.dedup();
    names
}

impl View {
    /// Handles a key. Returns whether to continue.
    fn key(&mut self, key: Key, protocols: &[String]) -> bool {
        const PAGE: usize = 10;
        if self.typing {
            match key {
                Key::Enter => self.typing = false,
                Key::Escape => {
                    self.typing = false;
                    self.text.clear();
                }
                Key::Backspace => _ = self.text.pop(),
                Key::Char(c) if self.text.chars().count() < MAX_TEXT => self.text.push(c),
                Key::Interrupt => return false,
                _ => {}
            }
            self.top = 0;
            return true;
        }
        match key {
            Key::Char('q' | 'Q') | Key::Interrupt => return false,
            Key::Up | Key::Char('k') => self.top = self.top.saturating_sub(1),
            Key::Down | Key::Char('j') => self.top = self.top.saturating_add(1),
            Key::PageUp => self.top = self.top.saturating_sub(PAGE),
            Key::PageDown | Key::Char(' ') => self.top = self.top.saturating_add(PAGE),
            Key::Home => self.top = 0,
            Key::End => self.top = usize::MAX,
            Key::Char('l') => {
                let at = self.level.and_then(|level| Level::ALL.iter().position(|l| *l == level));
                self.level = Level::ALL.get(at.map_or(0, |at| at + 1)).copied();
                self.top = 0;
            }
            Key::Char('p') => {
                let at = self
                    .protocol
                    .as_ref()
                    .and_then(|name| protocols.iter().position(|p| p == name));
                self.protocol = protocols.get(at.map_or(0, |at| at + 1)).cloned();
                self.top = 0;
            }
            Key::Char('s') => {
                self.sort = match self.sort {
                    Sort::Bytes => Sort::Flows,
                    Sort::Flows => Sort::Last,
                    Sort::Last => Sort::Level,
                    Sort::Level => Sort::Bytes,
                };
            }
            Key::Char('/') => self.typing = true,
            Key::Char('v') => self.verbose = !self.verbose,
            Key::Char('b') => {
                self.blockers = !self.blockers;
                self.top = 0;
            }
            Key::Escape => {
                self.text.clear();
                self.level = None;
                self.protocol = None;
            }
            _ => {}
        }
        true
    }

    fn shows(&self, row: &Row) -> bool {
        let text = self.text.to_lowercase();
        self.level.is_none_or(|level| row.key.level == level)
            && self.protocol.as_ref().is_none_or(|name| *row.key.protocol == **name)
            && (text.is_empty() || text_of(row).contains(&text))
    }

    /// The rows to show, in order.
    fn select(&self, rows: &[Row]) -> Vec<Row> {
        let mut rows: Vec<Row> = rows.iter().filter(|row| self.shows(row)).cloned().collect();
        match self.sort {
            Sort::Bytes => {}
            Sort::Flows => rows.sort_by_key(|row| std::cmp::Reverse(row.flows)),
            Sort::Last => rows.sort_by_key(|row| std::cmp::Reverse(row.last)),
            Sort::Level => {
                rows.sort_by_key(|row| wiretight_scan::judge::worst_first(row.key.level));
            }
        }
        rows
    }

    fn status(&self) -> String {
        let sort = match self.sort {
            Sort::Bytes => "bytes",
            Sort::Flows => "flows",
            Sort::Last => "last seen",
            Sort::Level => "level",
        };
        let mut parts = vec![format!("sorted by {sort}")];
        parts.extend(self.level.map(|level| format!("level {level}")));
        parts.extend(self.protocol.as_ref().map(|name| format!("protocol {name}")));
        if self.typing || !self.text.is_empty() {
            parts.push(format!("/{}{}", self.text, if self.typing { "_" } else { "" }));
        }
        clean(&parts.join(", ")).into_owned()
    }

    /// The whole screen, as lines.
    fn screen(&mut self, report: &FlowReport, columns: usize, height: usize) -> Vec<String> {
        let options =
            FlowOptions { colour: self.colour, width: Some(columns), verbose: self.verbose };
        let cut = |text: &str| text.chars().take(columns).collect::<String>();
        let mut head = report::coverage_lines(report, options);
        // On a small terminal, the rows are more important than what was missed.
        head.truncate((height / 2).max(1));
        head.push(cut(&self.status()));
        let body = if self.blockers {
            let shown = report.blockers.iter().filter(|blocker| self.shows(&blocker.row)).cloned();
            report::blocker_lines(&shown.collect::<Vec<_>>(), options)
        } else {
            report::row_lines(&self.select(&report.rows), report.left_out, options)
        };
        let (fixed, rows) = match self.blockers {
            true => (Vec::new(), body.as_slice()),
            false => (body.iter().take(1).cloned().collect(), body.get(1..).unwrap_or_default()),
        };
        head.extend(fixed);
        let room = height.saturating_sub(head.len() + 1);
        self.top = self.top.min(rows.len().saturating_sub(room));
        let mut lines = head;
        lines.extend(rows.iter().skip(self.top).take(room).cloned());
        lines.resize(height.saturating_sub(1), String::new());
        lines.push(cut(HELP));
        lines
    }

    fn draw(&mut self, report: &FlowReport) -> io::Result<()> {
        let size = terminal_size::terminal_size_of(io::stdout());
        let (columns, height) =
            size.map_or((80, 24), |(w, h)| (usize::from(w.0), usize::from(h.0)));
        let mut out = String::from("\x1b[H");
        let lines = self.screen(report, columns.max(40), height.max(5));
        for (n, line) in lines.iter().enumerate() {
            if n > 0 {
                out += "\r\n";
            }
            out += line;
            out += "\x1b[K";
        }
        out += "\x1b[J";
        let mut stdout = io::stdout().lock();
        stdout.write_all(out.as_bytes())?;
        stdout.flush()
    }
}

/// What a search looks at.
fn text_of(row: &Row) -> String {
    let mut text = format!("{} {} {}", row.key.server, row.key.transport, row.key.protocol);
    let mut add = |part: &str| {
        text.push(' ');
        text.push_str(part);
    };
    row.clients.iter().for_each(|client| add(&client.to_string()));
    row.programs.iter().for_each(|program| add(program));
    for seen in &row.seen {
        add(&seen.evidence);
        if let Some(sealed) = &seen.sealed {
            let parts = [&sealed.suite, &sealed.group];
            parts.into_iter().flatten().for_each(|part| add(part));
            sealed.server_name.iter().for_each(|name| add(name));
        }
    }
    text.to_lowercase()
}

/// Reads keys until the other end is gone.
fn read(send: &mpsc::Sender<Key>) {
    let mut bytes = [0; 64];
    loop {
        let length = match io::stdin().lock().read(&mut bytes) {
            Ok(0) => return,
            Ok(length) => length,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        for key in keys(bytes.get(..length).unwrap_or_default()) {
            if send.blocking_send(key).is_err() {
                return;
            }
        }
    }
}

/// The keys in what a terminal sends at a time (ECMA-48; xterm).
fn keys(mut bytes: &[u8]) -> Vec<Key> {
    const SEQUENCES: [(&[u8], Key); 10] = [
        (b"\x1b[A", Key::Up),
        (b"\x1bOA", Key::Up),
        (b"\x1b[B", Key::Down),
        (b"\x1bOB", Key::Down),
        (b"\x1b[5~", Key::PageUp),
        (b"\x1b[6~", Key::PageDown),
        (b"\x1b[H", Key::Home),
        (b"\x1b[1~", Key::Home),
        (b"\x1b[F", Key::End),
        (b"\x1b[4~", Key::End),
    ];
    let mut found = Vec::new();
    while let Some((first, rest)) = bytes.split_first() {
        if let Some((sequence, key)) = SEQUENCES.iter().find(|(s, _)| bytes.starts_with(s)) {
            found.push(*key);
            bytes = bytes.get(sequence.len()..).unwrap_or_default();
            continue;
        }
        bytes = rest;
        match *first {
            0x1b if matches!(rest.first(), Some(b'[' | b'O')) => {
                // Another sequence, which ends with a letter or `~`.
                let end = rest.iter().skip(1).position(|b| b.is_ascii_alphabetic() || *b == b'~');
                bytes = end.and_then(|end| rest.get(end + 2..)).unwrap_or_default();
            }
            0x1b => found.push(Key::Escape),
            b'\r' | b'\n' => found.push(Key::Enter),
            0x7f | 0x08 => found.push(Key::Backspace),
            0x03 => found.push(Key::Interrupt),
            byte if byte.is_ascii_graphic() || byte == b' ' => found.push(Key::Char(byte.into())),
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_sequences_are_recognised() {
        assert_eq!(keys(b"q\x1b[A\x1b[6~\r"), [Key::Char('q'), Key::Up, Key::PageDown, Key::Enter]);
        assert_eq!(keys(b"\x1b"), [Key::Escape]);
        // An unknown sequence is no text.
        assert_eq!(keys(b"\x1b[1;5Dx\x1b[99"), [Key::Char('x')]);
        assert_eq!(keys(b"\x03"), [Key::Interrupt]);
    }

    #[test]
    fn keys_change_the_view() {
        let mut view = View::default();
        let names = ["http".to_owned(), "tls".to_owned()];
        assert!(view.key(Key::Char('l'), &names) && view.level == Some(Level::Unknown));
        assert!(view.key(Key::Char('p'), &names) && view.protocol.as_deref() == Some("http"));
        assert!(view.key(Key::Char('p'), &names) && view.protocol.as_deref() == Some("tls"));
        assert!(view.key(Key::Char('p'), &names) && view.protocol.is_none());
        for key in [Key::Char('/'), Key::Char('q'), Key::Backspace, Key::Char('p'), Key::Enter] {
            assert!(view.key(key, &names));
        }
        assert_eq!(view.text, "p");
        assert!(view.key(Key::Escape, &names) && view.text.is_empty() && view.level.is_none());
        assert!(!view.key(Key::Char('q'), &names));
    }

    #[test]
    fn the_screen_is_never_larger_than_the_terminal() {
        let report = FlowReport::default();
        let mut view = View { top: usize::MAX, ..View::default() };
        for (columns, height) in [(40, 5), (80, 24), (200, 60)] {
            let lines = view.screen(&report, columns, height);
            assert_eq!(lines.len(), height);
            assert!(lines.iter().all(|line| line.chars().count() <= columns), "{lines:?}");
        }
    }
}
