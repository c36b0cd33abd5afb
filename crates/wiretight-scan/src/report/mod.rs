//! Report formats for people, programs and auditors.
//!
//! A [`Writer`] receives reports one by one, as scans end, and writes them as soon as possible,
//! because a scan of a whole network need not fit into memory. A CBOM keeps each certificate and
//! algorithm once, with the endpoints that use it; HTML keeps one row for each target; SARIF keeps
//! nothing.
//!
//! Names in certificates, banners and headers are untrusted. They must not reach a terminal as escape
//! sequences, a page as markup, or a SARIF viewer as a link.

mod algorithms;
mod cbom;
mod flows;
mod html;
mod sarif;
mod table;
mod text;
mod view;

use std::fmt;
use std::io::{self, Write};
use std::str::FromStr;

use serde::Serialize;

pub use flows::{
    FLOW_SCHEMA, FlowOptions, FlowReport, blocker_lines, coverage_line, coverage_lines, flow_line,
    row_lines, write_flows,
};
pub use text::{clean, size};
pub use view::summary;

use crate::Report;

/// Identifies the JSON schema of reports, `docs/scan-report.schema.json`. An incompatible change gets
/// a new number.
pub const SCHEMA: &str = "urn:wiretight:scan-report:1";

macro_rules! formats {
    ($($(#[$doc:meta])* $variant:ident $name:literal,)*) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Format {
            $($(#[$doc])* $variant,)*
        }

        impl Format {
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The name on the command line.
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
    /// One report per line.
    Jsonl "jsonl",
    /// SARIF 2.1.0: problems, for issue trackers.
    Sarif "sarif",
    /// CycloneDX 1.7: an inventory of cryptography.
    Cbom "cbom",
    /// One self-contained page, for auditors.
    Html "html",
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Not the name of a format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown format {0:?}; use table, json, jsonl, sarif, cbom or html")]
pub struct UnknownFormat(String);

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Self, UnknownFormat> {
        let found = Self::ALL.iter().copied().find(|format| format.name() == text);
        found.ok_or_else(|| UnknownFormat(text.chars().take(50).collect()))
    }
}

/// Options of the table format; other formats ignore them.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Whether to use ANSI colours.
    pub colour: bool,
    /// The width in columns; without it, lines are not wrapped.
    pub width: Option<usize>,
    /// How much to show about each target.
    pub detail: Detail,
}

/// How much a table shows about each target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// One line.
    Line,
    /// Findings, and what to change.
    Usual,
    /// Also the evidence of each fact, and untested facts.
    Everything,
}

impl Default for Options {
    fn default() -> Self {
        Self { colour: false, width: None, detail: Detail::Usual }
    }
}

/// A report, serialized in advance if the format allows it. Then only bytes go from the scanning
/// thread to the writing thread.
pub struct Prepared(Part);

enum Part {
    Whole(Box<Report>),
    Line(Vec<u8>),
}

impl Prepared {
    pub fn new(format: Format, report: Report) -> Self {
        // Serialization cannot fail: a report contains only values that JSON can represent.
        let line = match format {
            Format::Jsonl => line(&report).ok(),
            _ => None,
        };
        Self(line.map_or_else(|| Part::Whole(Box::new(report)), Part::Line))
    }
}

/// The report as one line of JSON.
fn line(report: &Report) -> serde_json::Result<Vec<u8>> {
    let mut line = Vec::with_capacity(4 << 10);
    serde_json::to_writer(&mut line, &Document { schema: SCHEMA, report })?;
    line.push(b'\n');
    Ok(line)
}

/// Writes reports one by one.
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

/// A report in JSON Lines.
#[derive(Serialize)]
struct Document<'a> {
    schema: &'static str,
    #[serde(flatten)]
    report: &'a Report,
}

impl<W: Write> Writer<W> {
    /// Creates a writer to `out`, which should be buffered.
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

    /// Writes a prepared report, like [`Writer::report`].
    ///
    /// # Errors
    /// If `out` fails.
    pub fn prepared(&mut self, report: &Prepared) -> io::Result<()> {
        match &report.0 {
            Part::Whole(report) => self.report(report),
            Part::Line(line) => self.out.write_all(line),
        }
    }

    /// Writes a report. After [`Writer::flush`], the reader of a stream has a complete line of JSON, or
    /// a complete target of a table.
    ///
    /// # Errors
    /// If `out` fails.
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

    /// Flushes `out`.
    ///
    /// # Errors
    /// If `out` fails.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// Writes the end of the document, and returns `out`.
    ///
    /// # Errors
    /// If `out` fails.
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
