//! What a person reads: tables, times, sizes; colour only where it is wanted.

use std::fmt;
use std::io::IsTerminal;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use wiretight_proxy::clock::now;

/// What is printed is no wider, in columns.
const WIDTH: usize = 100;
const GAP: &str = "  ";

/// Columns as wide as their widest cell, a row a line: scripts read it.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
    narrow: bool,
}

impl Table {
    pub(super) fn new(head: &[&str]) -> Table {
        let rows = vec![head.iter().map(|h| (*h).to_owned()).collect()];
        Table { rows, narrow: false }
    }

    /// One for people: where it is wider than [`WIDTH`], cells of several words have several lines. A word is never cut, for
    /// identities are searched for.
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

/// How many columns a text takes: colour takes none.
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

/// A text in lines of at most `width` columns: between words where it can be. All of it may have one colour.
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
        // One that fits no line is cut.
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

/// A text whose lines are no wider than [`WIDTH`]: the rest of a long one is indented below it.
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

/// Ends a colour.
const PLAIN: &str = "\x1b[0m";

/// Whether standard output takes colour.
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

/// A value that is one of these names, so that shells can complete it.
pub(super) fn one_of<T>(
    names: impl IntoIterator<Item = &'static str>,
) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err: std::error::Error + Send + Sync> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(names).try_map(|name| name.parse::<T>())
}

/// Reads `90s`, `10m`, `1h30m`, `7d`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    crate::config::parse_duration(text)
        .ok_or_else(|| "write for example 10m or 1h30m (units: d, h, m, s)".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_no_wider_than_it_may_be_and_colour_takes_no_room() {
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
        // What is searched for stays whole, also where it does not fit.
        let hash = "x".repeat(150);
        table.row(["four".into(), "w".into(), hash.clone()]);
        assert!(table.to_string().contains(&hash), "{table}");
        // For scripts, a row is a line.
        let mut table = Table::new(&["A", "B"]);
        table.row(["one".into(), long]);
        assert_eq!(table.to_string().lines().count(), 2);
    }

    #[test]
    fn long_lines_are_folded_and_short_ones_stay() {
        let text = format!("short\n  {}\n{}\n", "word ".repeat(60).trim_end(), "y".repeat(250));
        let fitted = fitted(&text);
        assert!(fitted.lines().all(|line| columns_of(line) <= WIDTH), "{fitted}");
        assert!(fitted.starts_with("short\n  word word"), "{fitted}");
        assert_eq!(fitted.matches("word").count(), 60);
        assert_eq!(fitted.matches('y').count(), 250);
    }
}
