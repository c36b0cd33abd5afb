//! A report, for people, programs and auditors.
//!
//! A [`Writer`] takes reports one by one, as scans end, and writes what it can at once: a scan of a
//! whole network must not have to fit into memory. What stays: for SARIF nothing, for a CBOM each
//! certificate and each algorithm once with the places where it was seen, for HTML a row a target.
//!
//! Names in certificates, banners and headers are a stranger's. Nothing of them reaches a terminal
//! as an escape, a page as markup, or SARIF's readers as a link.

mod algorithms;
mod cbom;
mod html;
mod sarif;
mod table;
mod text;
mod view;

use std::fmt;
use std::io::{self, Write};
use std::str::FromStr;

use serde::Serialize;

use crate::Report;

/// Names the form of JSON reports: `docs/scan-report.schema.json`. A change that breaks readers
/// gets another number.
pub const SCHEMA: &str = "urn:wiretight:scan-report:1";

macro_rules! formats {
    ($($(#[$doc:meta])* $variant:ident $name:literal,)*) => {
        /// How a report is written.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Format {
            $($(#[$doc])* $variant,)*
        }

        impl Format {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// As it is asked for.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

formats! {
    /// For people, on a terminal.
    Table "table",
    /// One JSON document with all reports.
    Json "json",
    /// A report a line.
    Jsonl "jsonl",
    /// SARIF 2.1.0: what is wrong, for trackers of findings.
    Sarif "sarif",
    /// CycloneDX 1.7: which cryptography is where.
    Cbom "cbom",
    /// One page without anything from elsewhere, for auditors.
    Html "html",
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No format has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no format is called {0:?}; there are table, json, jsonl, sarif, cbom and html")]
pub struct UnknownFormat(String);

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Self, UnknownFormat> {
        let found = Self::ALL.iter().copied().find(|format| format.name() == text);
        found.ok_or_else(|| UnknownFormat(text.chars().take(50).collect()))
    }
}

/// How a table looks; the other formats are for programs, or look as they do.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Whether what reads it knows ANSI colours.
    pub colour: bool,
    /// Columns; lines are never broken where there are none.
    pub width: Option<usize>,
    /// How much of each target.
    pub detail: Detail,
}

/// How much of each target a table says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// One line.
    Line,
    /// What was found, and what to change.
    Usual,
    /// With the evidence of each fact, and what was not asked.
    Everything,
}

impl Default for Options {
    fn default() -> Self {
        Self { colour: false, width: None, detail: Detail::Usual }
    }
}

/// A report as far as it can be written before those that come before it are: where that is all of it,
/// only bytes go from the thread that scans to the one that writes.
pub struct Prepared(Part);

enum Part {
    Whole(Box<Report>),
    Line(Vec<u8>),
}

impl Prepared {
    /// Prepares a report.
    pub fn new(format: Format, report: Report) -> Self {
        // What JSON does not have, no report has either.
        let line = match format {
            Format::Jsonl => line(&report).ok(),
            _ => None,
        };
        Self(line.map_or_else(|| Part::Whole(Box::new(report)), Part::Line))
    }
}

/// A line of JSON.
fn line(report: &Report) -> serde_json::Result<Vec<u8>> {
    let mut line = Vec::with_capacity(4 << 10);
    serde_json::to_writer(&mut line, &Document { schema: SCHEMA, report })?;
    line.push(b'\n');
    Ok(line)
}

/// Writes reports, one by one.
pub struct Writer<W> {
    out: W,
    state: State,
}

enum State {
    Table(table::Table),
    Json { any: bool },
    Jsonl,
    Sarif(sarif::Sarif),
    Cbom(Box<cbom::Cbom>),
    Html(Box<html::Html>),
}

/// A report as it stands in JSON.
#[derive(Serialize)]
struct Document<'a> {
    schema: &'static str,
    #[serde(flatten)]
    report: &'a Report,
}

impl<W: Write> Writer<W> {
    /// A writer to `out`, which is better buffered.
    pub fn new(format: Format, out: W, options: Options) -> Self {
        let state = match format {
            Format::Table => State::Table(table::Table::new(options)),
            Format::Json => State::Json { any: false },
            Format::Jsonl => State::Jsonl,
            Format::Sarif => State::Sarif(sarif::Sarif::default()),
            Format::Cbom => State::Cbom(Box::default()),
            Format::Html => State::Html(Box::default()),
        };
        Self { out, state }
    }

    /// Writes what was prepared, like [`Writer::report`].
    ///
    /// # Errors
    /// What `out` says.
    pub fn prepared(&mut self, report: &Prepared) -> io::Result<()> {
        match &report.0 {
            Part::Whole(report) => self.report(report),
            Part::Line(line) => self.out.write_all(line),
        }
    }

    /// Writes a report: after [`Writer::flush`], what reads a stream has a whole line of JSON, or a
    /// whole target of a table.
    ///
    /// # Errors
    /// What `out` says.
    pub fn report(&mut self, report: &Report) -> io::Result<()> {
        let out = &mut self.out;
        match &mut self.state {
            State::Table(table) => table.report(out, report)?,
            State::Json { any } => {
                match std::mem::replace(any, true) {
                    false => writeln!(out, "{{\"schema\":\"{SCHEMA}\",\"reports\":[")?,
                    true => writeln!(out, ",")?,
                }
                serde_json::to_writer(&mut *out, report)?;
            }
            State::Jsonl => out.write_all(&line(report)?)?,
            State::Sarif(sarif) => sarif.report(out, report)?,
            State::Cbom(cbom) => cbom.report(out, report)?,
            State::Html(html) => html.report(report)?,
        }
        Ok(())
    }

    /// Sends on what has been written.
    ///
    /// # Errors
    /// What `out` says.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// Writes what comes last, without which JSON is no JSON, and gives `out` back.
    ///
    /// # Errors
    /// What `out` says.
    pub fn finish(mut self) -> io::Result<W> {
        let out = &mut self.out;
        match self.state {
            State::Table(table) => table.finish(out)?,
            State::Json { any: true } => writeln!(out, "\n]}}")?,
            State::Json { any: false } => {
                writeln!(out, "{{\"schema\":\"{SCHEMA}\",\"reports\":[]}}")?;
            }
            State::Jsonl => {}
            State::Sarif(sarif) => sarif.finish(out)?,
            State::Cbom(cbom) => cbom.finish(out)?,
            State::Html(html) => html.finish(out)?,
        }
        out.flush()?;
        Ok(self.out)
    }
}
