//! Reports about flows, in the formats of reports about scans.

mod cbom;
mod html;
mod sarif;
mod table;

use std::io::{self, Write};

use serde::Serialize;

use super::Format;
use crate::passive::blockers::Blocker;
use crate::passive::summary::{Coverage, Flow, Row, Share};

pub use table::{blockers as blocker_lines, coverage as coverage_lines, rows as row_lines};

/// Identifies the JSON schema of flows, `docs/watch-flow.schema.json`. An incompatible change gets a new number.
pub const FLOW_SCHEMA: &str = "urn:wiretight:watch-flow:1";

/// What was seen in a window of time.
#[derive(Debug, Clone, Default)]
pub struct FlowReport {
    /// Where the packets are from: `interface eth1`, `web.pcap`.
    pub source: String,
    pub coverage: Coverage,
    /// The part of it that rows and flows are about: what passed the filter.
    pub shown: Coverage,
    /// The filter that rows and flows passed, in words; empty if there is none.
    pub filter: String,
    /// The flows, added up. The largest rows first.
    pub rows: Vec<Row>,
    /// Flows that are in no row, because there were too many.
    pub left_out: Share,
    /// Of all rows, what is not `strong`.
    pub blockers: Vec<Blocker>,
    /// The flows one by one.
    pub flows: Vec<Flow>,
    /// Flows that are not in `flows`, because there were too many.
    pub not_listed: Share,
}

/// Options of the table format.
#[derive(Debug, Clone, Copy, Default)]
pub struct FlowOptions {
    /// Whether to use ANSI colours.
    pub colour: bool,
    /// The width in columns; without it, all columns are shown.
    pub width: Option<usize>,
    /// Whether to show the evidence of each row.
    pub verbose: bool,
}

#[derive(Serialize)]
struct Document<'a> {
    schema: &'static str,
    source: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    filter: &'a str,
    coverage: Counted<'a>,
    shown: Counted<'a>,
    services: &'a [Row],
    services_left_out: Share,
    blockers: &'a [Blocker],
    flows: &'a [Flow],
    flows_not_listed: Share,
}

/// A coverage with its sums, for programs.
#[derive(Serialize)]
struct Counted<'a> {
    #[serde(flatten)]
    coverage: &'a Coverage,
    seconds: f64,
    total: Share,
    missed_bytes: u64,
}

impl<'a> From<&'a Coverage> for Counted<'a> {
    fn from(coverage: &'a Coverage) -> Self {
        let (seconds, total) = (coverage.seconds(), coverage.total());
        Self { coverage, seconds, total, missed_bytes: coverage.missed_bytes() }
    }
}

/// A line of JSON Lines: a flow that has ended.
///
/// # Errors
/// If `out` fails.
pub fn flow_line(out: &mut impl Write, flow: &Flow) -> io::Result<()> {
    #[derive(Serialize)]
    struct Line<'a> {
        schema: &'static str,
        #[serde(flatten)]
        flow: &'a Flow,
    }
    serde_json::to_writer(&mut *out, &Line { schema: FLOW_SCHEMA, flow })?;
    out.write_all(b"\n")
}

/// The last line of JSON Lines: the coverage.
///
/// # Errors
/// If `out` fails.
pub fn coverage_line(out: &mut impl Write, source: &str, coverage: &Coverage) -> io::Result<()> {
    #[derive(Serialize)]
    struct Line<'a> {
        schema: &'static str,
        source: &'a str,
        coverage: Counted<'a>,
    }
    let line = Line { schema: FLOW_SCHEMA, source, coverage: coverage.into() };
    serde_json::to_writer(&mut *out, &line)?;
    out.write_all(b"\n")
}

/// Writes a whole report.
///
/// # Errors
/// If `out` fails.
pub fn write_flows(
    format: Format,
    out: &mut impl Write,
    report: &FlowReport,
    options: FlowOptions,
) -> io::Result<()> {
    match format {
        Format::Table => {
            let lines = table::coverage(report, options).into_iter();
            for line in lines.chain([String::new()]).chain(table::rows(
                &report.rows,
                report.left_out,
                options,
            )) {
                writeln!(out, "{line}")?;
            }
        }
        Format::Json => {
            let document = Document {
                schema: FLOW_SCHEMA,
                source: &report.source,
                filter: &report.filter,
                coverage: (&report.coverage).into(),
                shown: (&report.shown).into(),
                services: &report.rows,
                services_left_out: report.left_out,
                blockers: &report.blockers,
                flows: &report.flows,
                flows_not_listed: report.not_listed,
            };
            serde_json::to_writer(&mut *out, &document)?;
            writeln!(out)?;
        }
        Format::Jsonl => {
            report.flows.iter().try_for_each(|flow| flow_line(out, flow))?;
            coverage_line(out, &report.source, &report.coverage)?;
        }
        Format::Sarif => sarif::write(out, report)?,
        Format::Cbom => cbom::write(out, report)?,
        Format::Html => html::write(out, report)?,
    }
    out.flush()
}

/// What was negotiated, in a few words: `TLS 1.3 X25519MLKEM768`. Several are separated by commas.
fn encryption(row: &Row) -> String {
    let mut words: Vec<String> = Vec::new();
    for seen in &row.seen {
        let Some(sealed) = &seen.sealed else { continue };
        let mut word = sealed.version.to_string();
        if let Some(group) = sealed.group.as_deref().or(sealed.suite.as_deref()) {
            word.push(' ');
            word.push_str(group);
        }
        if !words.contains(&word) {
            words.push(word);
        }
    }
    words.truncate(3);
    words.join(", ")
}

/// The protocol, and what was put under it: `smtp+tls`.
fn protocol(row: &Row) -> String {
    let name = &row.key.protocol;
    let upgraded = row.seen.iter().any(|seen| {
        matches!(seen.starttls, Some((_, crate::passive::StartTls::Used))) && seen.sealed.is_some()
    });
    if upgraded { format!("{name}+tls") } else { name.to_string() }
}

/// `10.0.0.5:443`; without a port if the transport has none. For UDP and others, with the transport.
fn server(row: &Row) -> String {
    use crate::passive::Transport;
    let at = &row.key.server;
    match row.key.transport {
        Transport::Tcp => at.to_string(),
        Transport::Udp | Transport::Sctp => format!("{at}/{}", row.key.transport),
        Transport::Icmp | Transport::Ip(_) => format!("{}/{}", at.ip(), row.key.transport),
    }
}

/// The client or clients of a row.
fn clients(row: &Row) -> String {
    if let Some(client) = row.key.client {
        return match client.port() {
            0 => client.ip().to_string(),
            _ => client.to_string(),
        };
    }
    match (row.clients.first(), row.clients.len(), row.more_clients) {
        (Some(client), 1, false) => client.to_string(),
        (_, n, false) => format!("{n} clients"),
        (_, n, true) => format!("> {n} clients"),
    }
}

fn programs(row: &Row) -> String {
    row.programs.iter().map(|name| name.as_ref()).collect::<Vec<_>>().join(", ")
}

/// `1 flow`, `2 flows`
fn count(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 }
}

/// `2026-11-30 10:00:01`
fn time(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// The window of a coverage: `2026-11-30 10:00:01 to 10:02:11 UTC, 130 s`.
fn window(coverage: &Coverage) -> String {
    let (Some(from), Some(to)) = (coverage.from, coverage.to) else {
        return "no packets".to_owned();
    };
    format!("{} UTC, {:.0} s", span(from, to), coverage.seconds())
}

/// `2026-11-30 10:00:01 to 10:02:11`
fn span(from: jiff::Timestamp, to: jiff::Timestamp) -> String {
    let (start, end) = (time(from), time(to));
    let day = start.get(..11).unwrap_or_default();
    format!("{start} to {}", end.strip_prefix(day).unwrap_or(&end))
}

/// What was missed, one line for each reason.
fn missed(coverage: &Coverage) -> Vec<String> {
    let of = |gap: &crate::passive::summary::Gap| {
        let mut line = gap.text().to_owned();
        line.push_str(": ");
        if gap.packets > 0 {
            line.push_str(&gap.packets.to_string());
        }
        if gap.bytes > 0 {
            let before = if gap.packets > 0 { ", " } else { "" };
            line.push_str(&format!("{before}{}, counted as unknown", super::size(gap.bytes)));
        }
        line
    };
    coverage.missed.iter().map(of).collect()
}
