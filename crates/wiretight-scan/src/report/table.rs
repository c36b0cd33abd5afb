//! For people, on a terminal.

use std::io::{self, Write};

use super::text::{clean, wrap};
use super::view::{self, Mark, Row};
use super::{Detail, Options};
use crate::Report;
use crate::facts::Answer;
use crate::judge::{Level, Reason};

pub(super) struct Table {
    options: Options,
    /// The number of targets with each level.
    levels: [usize; Level::ALL.len()],
}

/// Colours that are readable on dark and on light backgrounds.
const RED: &str = "31";
const GREEN: &str = "32";
const YELLOW: &str = "33";
const MAGENTA: &str = "35";
const CYAN: &str = "36";
const BOLD: &str = "1";
pub(super) const DIM: &str = "2";

impl Table {
    pub(super) fn new(options: Options) -> Self {
        Self { options, levels: [0; Level::ALL.len()] }
    }

    pub(super) fn report(&mut self, out: &mut impl Write, report: &Report) -> io::Result<()> {
        let level = report.judgement.level;
        if let Some(at) = Level::ALL.iter().position(|l| *l == level) {
            self.levels[at] += 1;
        }
        let target = report.target.to_string();
        let address = report.address.map(|a| a.to_string()).unwrap_or_default();
        let summary = clean(&view::summary(report)).into_owned();
        if self.options.detail == Detail::Line {
            let word = self.level(level, 10);
            let line = format!("{target:<40}  {address:<15}");
            // One line for programs. On a narrow terminal, the summary goes on the next line.
            if self
                .options
                .width
                .is_none_or(|width| 14 + line.chars().count() + summary.chars().count() <= width)
            {
                return writeln!(out, "{word}  {line}  {summary}");
            }
            writeln!(out, "{word}  {}", format!("{target}  {address}").trim_end())?;
            return self.text(out, 12, 12, "", &summary);
        }
        let name = self.paint(BOLD, &target);
        writeln!(out, "{name}  {address}  {}", self.level(level, 0))?;
        self.text(out, 2, 2, "", &summary)?;
        let when = report.started.strftime("%Y-%m-%d %H:%M:%S UTC");
        let (seconds, connections) = (report.seconds, report.connections);
        let scanned = format!("  scanned {when}, {seconds:.1} s, {connections} connections");
        writeln!(out, "{}", self.paint(DIM, &scanned))?;

        for section in view::sections(report, self.options.detail) {
            self.heading(out, &section.title)?;
            let rows = match section.title.as_str() {
                "Vulnerabilities" | "Weak cryptography" => self.fold(section.rows),
                _ => section.rows,
            };
            let widest = rows.iter().map(|row| row.label.chars().count()).max().unwrap_or(0);
            for row in &rows {
                self.row(out, row, widest.min(44))?;
            }
        }
        self.profiles(out, report)?;
        self.reasons(out, &report.judgement.reasons)?;
        writeln!(out)
    }

    pub(super) fn finish(self, out: &mut impl Write) -> io::Result<()> {
        let all: usize = self.levels.iter().sum();
        if all < 2 {
            return Ok(());
        }
        let counts = Level::ALL.iter().zip(self.levels).rev().filter(|(_, n)| *n > 0);
        let counts: Vec<_> =
            counts.map(|(level, n)| format!("{n} {}", self.level(*level, 0))).collect();
        writeln!(out, "{all} targets: {}", counts.join(", "))
    }

    /// Combines all rows about flaws that were not found in one.
    fn fold(&self, rows: Vec<Row>) -> Vec<Row> {
        if self.options.detail == Detail::Everything {
            return rows;
        }
        let (good, mut rows): (Vec<_>, Vec<_>) =
            rows.into_iter().partition(|row| row.mark == Mark::Good && row.text == "no");
        if !good.is_empty() {
            rows.push(Row {
                mark: Mark::Good,
                id: String::new(),
                label: "Not found".to_owned(),
                text: good.iter().map(|row| row.label.clone()).collect::<Vec<_>>().join(", "),
                evidence: String::new(),
            });
        }
        rows
    }

    fn heading(&self, out: &mut impl Write, title: &str) -> io::Result<()> {
        writeln!(out, "\n  {}", self.paint(BOLD, &clean(title)))
    }

    fn row(&self, out: &mut impl Write, row: &Row, widest: usize) -> io::Result<()> {
        let (label, text) = (clean(&row.label), clean(&row.text));
        let column = 6 + widest;
        // If a label is too long for its column, the text goes on the next line.
        match label.chars().count() > widest {
            true => {
                let start = format!("  {} ", self.mark(row.mark));
                self.text(out, 4, 4, &start, &label)?;
                self.text(out, column, column, "", &text)?;
            }
            false => {
                let start = format!("  {} {label:<widest$}  ", self.mark(row.mark));
                self.text(out, column, column, &start, &text)?;
            }
        }
        // The reason for an inconclusive answer is always shown.
        let shown = self.options.detail == Detail::Everything || row.mark == Mark::Open;
        if shown && !row.evidence.is_empty() {
            self.dim(out, column, &clean(&row.evidence))?;
        }
        Ok(())
    }

    fn profiles(&self, out: &mut impl Write, report: &Report) -> io::Result<()> {
        self.heading(out, "Profiles")?;
        for verdict in &report.judgement.profiles {
            let mark = match verdict.answer {
                Answer::Yes => Mark::Good,
                Answer::No => Mark::Bad,
                Answer::Inconclusive => Mark::Open,
                Answer::Untested => Mark::Plain,
            };
            let why: Vec<_> = verdict.reasons.iter().map(|r| r.rule.as_ref()).collect();
            let why = match why.is_empty() {
                true => verdict.answer.to_string(),
                false => format!("{}: {}", verdict.answer, why.join(", ")),
            };
            let start = format!("  {} {:<22}", self.mark(mark), clean(&verdict.profile));
            self.text(out, 26, 26, &start, &clean(&why))?;
        }
        Ok(())
    }

    /// The problems, each with the change that fixes it.
    fn reasons(&self, out: &mut impl Write, reasons: &[Reason]) -> io::Result<()> {
        let (seen, open): (Vec<_>, Vec<_>) =
            reasons.iter().partition(|reason| reason.answer == Answer::Yes);
        if !seen.is_empty() {
            self.heading(out, "What to change")?;
        }
        for reason in seen {
            let start = format!("  {} ", self.mark(view::mark_of(reason)));
            self.text(out, 4, 4, &start, &clean(&reason.what))?;
            self.text(out, 6, 8, "      → ", &clean(&reason.change))?;
            self.dim(out, 8, &clean(&reason.standard))?;
        }
        if !open.is_empty() {
            self.heading(out, "What could not be determined")?;
        }
        for reason in open {
            let start = format!("  {} ", self.mark(Mark::Open));
            self.text(out, 4, 4, &start, &clean(&reason.what))?;
        }
        Ok(())
    }

    /// Writes `start` and a wrapped text. Lines after the first are indented by `indent`.
    fn text(
        &self,
        out: &mut impl Write,
        used: usize,
        indent: usize,
        start: &str,
        text: &str,
    ) -> io::Result<()> {
        let room = self.options.width.map(|width| width.saturating_sub(indent).max(20));
        let lines = match room {
            Some(room) => wrap(text, room),
            None => vec![text.to_owned()],
        };
        for (n, line) in lines.iter().enumerate() {
            match n {
                0 if start.is_empty() => writeln!(out, "{:used$}{line}", "")?,
                0 => writeln!(out, "{}", format!("{start}{line}").trim_end())?,
                _ => writeln!(out, "{:indent$}{line}", "")?,
            }
        }
        Ok(())
    }

    fn dim(&self, out: &mut impl Write, indent: usize, text: &str) -> io::Result<()> {
        let room = self.options.width.map_or(usize::MAX, |w| w.saturating_sub(indent).max(20));
        for line in wrap(text, room) {
            writeln!(out, "{:indent$}{}", "", self.paint(DIM, &line))?;
        }
        Ok(())
    }

    fn mark(&self, mark: Mark) -> String {
        match mark {
            Mark::Good => self.paint(GREEN, "✓"),
            Mark::Note => self.paint(YELLOW, "!"),
            Mark::Bad => self.paint(RED, "✗"),
            Mark::Open => self.paint(MAGENTA, "?"),
            Mark::Plain => self.paint(DIM, "·"),
        }
    }

    fn level(&self, level: Level, width: usize) -> String {
        self.paint(level_colour(level), &format!("{:<width$}", level.to_string()))
    }

    fn paint(&self, code: &str, text: &str) -> String {
        match self.options.colour {
            true => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
            false => text.to_owned(),
        }
    }
}

pub(super) fn level_colour(level: Level) -> &'static str {
    match level {
        Level::Strong => GREEN,
        Level::Acceptable => CYAN,
        Level::Weak | Level::Plaintext => RED,
        Level::Unknown => MAGENTA,
    }
}
