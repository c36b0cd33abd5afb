//! What a person reads: tables, times, sizes; colour only where it is wanted.

use std::fmt;
use std::io::IsTerminal;
use std::time::Duration;

use wiretight_proxy::mesh::now;

/// Columns as wide as their widest cell.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(head: &[&str]) -> Table {
        Table { rows: vec![head.iter().map(|h| (*h).to_owned()).collect()] }
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows[0].len();
        let width = |c: usize| self.rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for (n, row) in self.rows.iter().enumerate() {
            let cells = row.iter().zip(&widths).map(|(cell, w)| format!("{cell:<w$}"));
            let line = cells.collect::<Vec<_>>().join("  ");
            let line = line.trim_end();
            match n {
                0 => writeln!(f, "{}", bold(line))?,
                _ => writeln!(f, "{line}")?,
            }
        }
        Ok(())
    }
}

/// Whether standard output takes colour (no-color.org).
pub(super) fn colour() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

fn paint(code: &str, text: &str) -> String {
    match colour() {
        true => format!("\x1b[{code}m{text}\x1b[0m"),
        false => text.to_owned(),
    }
}

pub(super) fn bold(text: &str) -> String {
    paint("1", text)
}

pub(super) fn good(text: &str) -> String {
    paint("32", text)
}

pub(super) fn bad(text: &str) -> String {
    paint("31", text)
}

pub(super) fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".into() } else { text.into() }
}

/// `3 min ago`
pub(super) fn ago(at: u64) -> String {
    format!("{} ago", span(since(at)))
}

/// Seconds.
pub(super) fn since(at: u64) -> u64 {
    now().saturating_sub(at)
}

/// `59 min`
pub(super) fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// `1.2 GB`
pub(super) fn size(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit < units.len() - 1 {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{value:.1} {}", units[unit]),
    }
}

/// Reads `90s`, `10m`, `1h30m`, `7d`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    crate::config::parse_duration(text)
        .ok_or_else(|| "write for example 10m or 1h30m (units: d, h, m, s)".into())
}
