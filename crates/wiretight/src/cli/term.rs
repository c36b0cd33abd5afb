//! Formatting for terminals: tables, times, sizes, colour.

use std::fmt;
use std::io::IsTerminal;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use wiretight_proxy::clock::now;
pub(super) use wiretight_scan::report::size;

/// The widest line that is printed, in columns.
const WIDTH: usize = 100;
const GAP: &str = "  ";

/// Columns are as wide as their widest cell, and a row is one line, so that scripts can read it.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
    narrow: bool,
}

impl Table {
    pub(super) fn new(head: &[&str]) -> Table {
        let rows = vec![head.iter().map(|h| (*h).to_owned()).collect()];
        Table { rows, narrow: false }
    }

    /// A table for people: if it is wider than [`WIDTH`], cells with several words are wrapped. A word is never split,
    /// because people search for identities.
    pub(super) fn narrow(head: &[&str]) -> Table {
        Table { narrow: true, ..Table::new(head) }
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }

    fn widths(&self) -> Vec<usize> {
        let columns = self.rows[0].len();
        let width = |c: usize| self.rows.iter().map(|r| columns_of(&r[c])).max().unwrap_or(0);
        let mut widths: Vec<usize> = (0..columns).map(width).collect();
        if !self.narrow {
            return widths;
        }
        let word = |cell: &String| cell.split(' ').map(columns_of).max().unwrap_or(0);
        let least = |c: usize| self.rows.iter().map(|r| word(&r[c])).max().unwrap_or(0);
        let room = WIDTH.saturating_sub(GAP.len() * columns.saturating_sub(1));
        while widths.iter().sum::<usize>() > room {
            let narrowed = widths.iter_mut().enumerate().filter(|(c, width)| **width > least(*c));
            match narrowed.max_by_key(|(_, width)| **width) {
                Some((_, widest)) => *widest -= 1,
                None => break,
            }
        }
        widths
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = self.widths();
        for (n, row) in self.rows.iter().enumerate() {
            let cells: Vec<Vec<String>> =
                row.iter().zip(&widths).map(|(cell, width)| folded(cell, *width)).collect();
            for line in 0..cells.iter().map(Vec::len).max().unwrap_or(0) {
                let parts = cells.iter().zip(&widths).map(|(cell, width)| {
                    let text = cell.get(line).map_or("", String::as_str);
                    format!("{text}{}", " ".repeat(width.saturating_sub(columns_of(text))))
                });
                let text = parts.collect::<Vec<_>>().join(GAP);
                let text = text.trim_end();
                match n {
                    0 => writeln!(f, "{}", bold(text))?,
                    _ => writeln!(f, "{text}")?,
                }
            }
        }
        Ok(())
    }
}

/// The width of a text without its colour codes.
fn columns_of(text: &str) -> usize {
    let mut columns = 0;
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match c {
            '\x1b' => drop(rest.by_ref().find(char::is_ascii_alphabetic)),
            _ => columns += 1,
        }
    }
    columns
}

/// Wraps a text to `width` columns, between words if possible. The whole text may have one colour.
fn folded(text: &str, width: usize) -> Vec<String> {
    if columns_of(text) <= width {
        return vec![text.to_owned()];
    }
    let painted = text.strip_suffix(PLAIN).and_then(|rest| {
        let end = rest.strip_prefix('\x1b')?.find('m')? + 2;
        Some((&text[..end], &rest[end..]))
    });
    let (colour, text) = painted.unwrap_or(("", text));
    let (mut lines, mut line): (Vec<String>, String) = (Vec::new(), String::new());
    for word in text.split(' ') {
        let mut word: Vec<char> = word.chars().collect();
        if !line.is_empty() && columns_of(&line) + 1 + word.len() > width {
            lines.push(std::mem::take(&mut line));
        }
        // A word longer than a line is split.
        while word.len() > width {
            lines.push(word.drain(..width).collect());
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.extend(word);
    }
    lines.push(line);
    if !colour.is_empty() {
        lines.iter_mut().for_each(|line| *line = format!("{colour}{line}{PLAIN}"));
    }
    lines
}

/// Wraps lines to [`WIDTH`]; continuation lines are indented.
pub(super) fn fitted(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        if columns_of(line) <= WIDTH {
            out += line;
            out.push('\n');
            continue;
        }
        let indent = line.len() - line.trim_start_matches(' ').len();
        let deeper = (indent + 4).min(WIDTH / 4);
        let (own, below) = (" ".repeat(indent), " ".repeat(deeper));
        for (n, part) in folded(line.trim_start_matches(' '), WIDTH - deeper).iter().enumerate() {
            out += if n == 0 { &own } else { &below };
            out += part;
            out.push('\n');
        }
    }
    out
}

/// Resets the colour.
const PLAIN: &str = "\x1b[0m";

/// Whether to use colour on standard output.
pub(super) fn colour() -> bool {
    std::io::stdout().is_terminal() && crate::logging::colour_is_wanted()
}

fn paint(code: &str, text: &str) -> String {
    match colour() {
        true => format!("\x1b[{code}m{text}{PLAIN}"),
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

/// Seconds since `at`.
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

/// Parses one of these names, and lets shells complete them.
pub(super) fn one_of<T>(
    names: impl IntoIterator<Item = &'static str>,
) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err: std::error::Error + Send + Sync> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(names).try_map(|name| name.parse::<T>())
}

/// Parses `90s`, `10m`, `1h30m`, `7d`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    crate::config::parse_duration(text)
        .ok_or_else(|| "expected a duration such as 10m or 1h30m (units: d, h, m, s)".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_wrapped_to_the_width_and_colour_codes_have_no_width() {
        let mut table = Table::narrow(&["A", "WORDS", "B"]);
        let red = |text: &str| format!("\x1b[31m{text}\x1b[0m");
        table.row(["one".into(), red("bad"), "1".into()]);
        table.row(["two".into(), "fine".into(), "22".into()]);
        let text = table.to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines, ["A    WORDS  B", "one  \x1b[31mbad\x1b[0m    1", "two  fine   22"]);

        let long = "many words ".repeat(30);
        table.row(["three".into(), red(long.trim_end()), "a-hash".into()]);
        let text = table.to_string();
        assert!(text.lines().all(|line| columns_of(line) <= WIDTH), "{text}");
        let painted = text.matches("\x1b[31m").count();
        assert!(text.matches("many").count() == 30 && painted > 3, "{text}");
        // A long word is not split, even if it is wider than the table.
        let hash = "x".repeat(150);
        table.row(["four".into(), "w".into(), hash.clone()]);
        assert!(table.to_string().contains(&hash), "{table}");
        // In a table for scripts a row is one line.
        let mut table = Table::new(&["A", "B"]);
        table.row(["one".into(), long]);
        assert_eq!(table.to_string().lines().count(), 2);
    }

    #[test]
    fn long_lines_are_wrapped_and_short_ones_are_unchanged() {
        let text = format!("short\n  {}\n{}\n", "word ".repeat(60).trim_end(), "y".repeat(250));
        let fitted = fitted(&text);
        assert!(fitted.lines().all(|line| columns_of(line) <= WIDTH), "{fitted}");
        assert!(fitted.starts_with("short\n  word word"), "{fitted}");
        assert_eq!(fitted.matches("word").count(), 60);
        assert_eq!(fitted.matches('y').count(), 250);
    }
}
