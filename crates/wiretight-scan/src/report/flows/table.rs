//! For people, on a terminal. Each function returns lines, so that a live view can scroll them.

use super::{
    FlowOptions, FlowReport, clients, encryption, missed, percent, programs, protocol, server,
    window,
};
use crate::facts::Answer;
use crate::judge::Level;
use crate::passive::blockers::Blocker;
use crate::passive::summary::{Row, Share};
use crate::report::size;
use crate::report::table::{DIM, level_colour};
use crate::report::text::{clean, wrap};

/// From the best to the worst, `unknown` last.
const ORDER: [Level; 5] =
    [Level::Strong, Level::Acceptable, Level::Weak, Level::Plaintext, Level::Unknown];

impl FlowOptions {
    fn paint(self, code: &str, text: &str) -> String {
        match self.colour {
            true => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
            false => text.to_owned(),
        }
    }
}

/// The shares of the levels, the window, and what was missed.
pub fn coverage(report: &FlowReport, options: FlowOptions) -> Vec<String> {
    let coverage = &report.coverage;
    let total = coverage.total();
    let width = options.width.unwrap_or(usize::MAX);
    let head = format!("{}: {}", report.source, window(coverage));
    let mut lines = vec![options.paint("1", &cut(&clean(&head), width))];
    lines.push(cut(
        &format!("{:<10} {:>10} {:>7} {:>10} {:>7}", "", "FLOWS", "", "BYTES", ""),
        width,
    ));
    for level in ORDER {
        let share = coverage.share(level);
        let numbers = format!(
            " {:>10} {:>5.1} % {:>10} {:>5.1} %",
            share.flows,
            percent(share.flows, total.flows),
            size(share.bytes),
            percent(share.bytes, total.bytes),
        );
        let word = options.paint(level_colour(level), &format!("{:<10}", level.to_string()));
        lines.push(format!("{word}{}", cut(&numbers, width.saturating_sub(10))));
    }
    for line in missed(coverage) {
        lines.extend(wrap(&clean(&line), width.max(20)).iter().map(|l| options.paint(DIM, l)));
    }
    if !report.filter.is_empty() {
        let shown = report.shown.total();
        let (flows, bytes) = (super::count(shown.flows, "flow"), size(shown.bytes));
        let line = format!("shown: {}: {flows}, {bytes}", clean(&report.filter));
        lines.push(cut(&line, width));
    }
    lines
}

struct Column {
    head: &'static str,
    right: bool,
    /// The column is left out before others with a lower number, if the terminal is narrow. 0: never.
    drop: u8,
    /// It is never narrower.
    least: usize,
    of: fn(&Row, &Times) -> String,
}

/// How times are shown.
struct Times {
    /// Whether all are on one day.
    day: bool,
}

impl Times {
    fn show(&self, at: jiff::Timestamp) -> String {
        at.strftime(if self.day { "%H:%M:%S" } else { "%m-%d %H:%M" }).to_string()
    }
}

const COLUMNS: [Column; 10] = [
    Column {
        head: "LEVEL",
        right: false,
        drop: 0,
        least: 10,
        of: |row, _| row.key.level.to_string(),
    },
    Column { head: "SERVER", right: false, drop: 0, least: 11, of: |row, _| server(row) },
    Column { head: "PROTOCOL", right: false, drop: 0, least: 6, of: |row, _| protocol(row) },
    Column { head: "ENCRYPTION", right: false, drop: 3, least: 14, of: |row, _| encryption(row) },
    Column { head: "PROGRAM", right: false, drop: 2, least: 8, of: |row, _| programs(row) },
    Column { head: "CLIENT", right: false, drop: 5, least: 10, of: |row, _| clients(row) },
    Column { head: "FLOWS", right: true, drop: 1, least: 5, of: |row, _| row.flows.to_string() },
    Column { head: "BYTES", right: true, drop: 0, least: 7, of: |row, _| size(row.total()) },
    Column {
        head: "FIRST",
        right: false,
        drop: 6,
        least: 8,
        of: |row, times| times.show(row.first),
    },
    Column { head: "LAST", right: false, drop: 4, least: 8, of: |row, times| times.show(row.last) },
];

const GAP: usize = 2;

/// The heading and the rows. A row is one line, and with `verbose` its evidence follows.
pub fn rows(rows: &[Row], left_out: Share, options: FlowOptions) -> Vec<String> {
    let day = |at: jiff::Timestamp| at.strftime("%F").to_string();
    let days: std::collections::BTreeSet<String> =
        rows.iter().flat_map(|row| [day(row.first), day(row.last)]).collect();
    let times = Times { day: days.len() < 2 };
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| COLUMNS.iter().map(|c| clean(&(c.of)(row, &times)).into_owned()).collect())
        .collect();
    let columns = fit(&cells, options.width);
    let mut lines =
        vec![options.paint("1", line(&columns, |at| COLUMNS[at].head.to_owned()).trim_end())];
    for (row, cells) in rows.iter().zip(&cells) {
        let text = line(&columns, |at| cells.get(at).cloned().unwrap_or_default());
        // The level is the first cell, and ASCII.
        let (level, rest) = text.split_at_checked(10).unwrap_or((&text, ""));
        lines.push(format!(
            "{}{}",
            options.paint(level_colour(row.key.level), level),
            rest.trim_end()
        ));
        if options.verbose {
            lines.extend(evidence(row, options));
        }
    }
    if rows.is_empty() {
        lines.push("no flows".to_owned());
    }
    if left_out.flows > 0 {
        let (flows, bytes) = (super::count(left_out.flows, "flow"), size(left_out.bytes));
        put(
            &mut lines,
            options.width.unwrap_or(usize::MAX),
            "",
            &format!("and {flows} ({bytes}) of more services than are kept"),
        );
    }
    lines
}

/// The columns that fit, by index, with their widths.
fn fit(cells: &[Vec<String>], width: Option<usize>) -> Vec<(usize, usize)> {
    let widest = |at: usize| {
        let of = cells.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count());
        of.max().unwrap_or(0).max(COLUMNS[at].head.len())
    };
    let mut columns: Vec<(usize, usize)> = (0..COLUMNS.len())
        .filter(|at| COLUMNS[*at].drop == 0 || cells.iter().any(|row| !row[*at].is_empty()))
        .map(|at| (at, if at == 0 { 10 } else { widest(at) }))
        .collect();
    let Some(width) = width else { return columns };
    let sum = |columns: &[(usize, usize)]| {
        columns.iter().map(|(_, w)| w + GAP).sum::<usize>().saturating_sub(GAP)
    };
    while sum(&columns) > width {
        // First make the widest narrower, down to its least, then leave one out.
        let wide =
            columns.iter_mut().filter(|(at, w)| *w > COLUMNS[*at].least && !COLUMNS[*at].right);
        let wide = wide.max_by_key(|(at, w)| w - COLUMNS[*at].least).filter(|(at, _)| *at != 0);
        if let Some((at, w)) = wide {
            // IPv6 addresses and times lose their meaning when they are cut, so other columns go first.
            let keep = matches!(COLUMNS[*at].head, "FIRST" | "LAST");
            if !keep {
                *w -= 1;
                continue;
            }
        }
        let last = columns.iter().enumerate().max_by_key(|(_, (at, _))| COLUMNS[*at].drop);
        match last {
            Some((place, (at, _))) if COLUMNS[*at].drop > 0 => _ = columns.remove(place),
            _ => break,
        }
    }
    columns
}

fn line(columns: &[(usize, usize)], cell: impl Fn(usize) -> String) -> String {
    let mut text = String::new();
    for (n, (at, width)) in columns.iter().enumerate() {
        if n > 0 {
            text.push_str(&" ".repeat(GAP));
        }
        let cell = cut(&cell(*at), *width);
        text.push_str(&match COLUMNS[*at].right {
            true => format!("{cell:>width$}"),
            false => format!("{cell:<width$}"),
        });
    }
    text
}

/// At most `width` characters; `…` shows that there are more.
fn cut(text: &str, width: usize) -> String {
    match text.chars().count() > width {
        true => text.chars().take(width.saturating_sub(1)).chain(['…']).collect(),
        false => text.to_owned(),
    }
}

/// What was seen of a row's flows, each once.
fn evidence(row: &Row, options: FlowOptions) -> Vec<String> {
    let mut lines = Vec::new();
    let width = options.width.unwrap_or(usize::MAX);
    let mut add = |text: &str| put(&mut lines, width, "    ", text);
    for seen in &row.seen {
        let mut text = format!("{}: {}", seen.grade, seen.evidence);
        if let Some(sealed) = &seen.sealed {
            let facts = [
                ("name", sealed.server_name.as_deref()),
                ("alpn", sealed.alpn.as_deref()),
                ("suite", sealed.suite.as_deref()),
                ("group", sealed.group.as_deref()),
            ];
            for (name, value) in facts {
                // The evidence of most handshakes has them already.
                if let Some(value) = value.filter(|value| !text.contains(*value)) {
                    text.push_str(&format!("; {name} {value}"));
                }
            }
            if let Some(certificate) = &sealed.certificate {
                let (subject, key, ends) =
                    (&certificate.subject, &certificate.key, certificate.not_after);
                text.push_str(&format!("; certificate {subject}, {key}, until {ends}"));
            }
        }
        add(&text);
    }
    if row.more_seen {
        add("and other evidence of the same kind");
    }
    for scanned in &row.scanned {
        let name = scanned.server_name.as_deref().unwrap_or("without a name");
        add(&format!(
            "scanned {} ({name}): {}, {}",
            super::time(scanned.at),
            scanned.level,
            scanned.summary
        ));
    }
    lines.into_iter().map(|line| options.paint(DIM, &line)).collect()
}

/// What is not `strong`: what it is, whose, since when, how much, and what to change.
pub fn blockers(blockers: &[Blocker], options: FlowOptions) -> Vec<String> {
    let width = options.width.unwrap_or(usize::MAX);
    let mut lines = Vec::new();
    for Blocker { row, .. } in blockers {
        let level = row.key.level.to_string();
        let head = format!("{level}  {} {} from {}", server(row), protocol(row), clients(row));
        let start = lines.len();
        put(&mut lines, width, "", &head);
        // The level is the first word of the first line.
        if let Some(line) = lines.get_mut(start) {
            let painted = options.paint(level_colour(row.key.level), &level);
            *line = line.replacen(&level, &painted, 1);
        }
        let programs = match programs(row) {
            names if names.is_empty() => "program unknown".to_owned(),
            names => names,
        };
        let (bytes, flows) = (size(row.total()), row.flows);
        let when = super::span(row.first, row.last);
        let flows = super::count(flows, "flow");
        let whose = format!("{programs}; {bytes} in {flows}, {when} UTC");
        put(&mut lines, width, "    ", &whose);
        for reason in &row.reasons {
            put(&mut lines, width, "    ", &reason.what);
            put(&mut lines, width, "    → ", &reason.change);
        }
        for reason in row.scanned.iter().flat_map(|scanned| &scanned.reasons) {
            if reason.answer == Answer::Yes {
                put(&mut lines, width, "    ", &format!("by a scan: {}", reason.what));
                put(&mut lines, width, "    → ", &reason.change);
            }
        }
    }
    lines
}

/// Adds a wrapped text. `start` is before its first line, and as many spaces before the others.
fn put(lines: &mut Vec<String>, width: usize, start: &str, text: &str) {
    let indent = start.chars().count();
    for (n, part) in wrap(&clean(text), width.saturating_sub(indent).max(20)).iter().enumerate() {
        lines.push(match n {
            0 => format!("{start}{part}"),
            _ => format!("{:indent$}{part}", ""),
        });
    }
}
