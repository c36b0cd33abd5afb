//! The traffic that the running node has seen (`[watch]` in its configuration).

use std::io;
use std::path::Path;
use std::process::ExitCode;

use wiretight_scan::judge::Level;
use wiretight_scan::passive::blockers::{Blocker, blockers};
use wiretight_scan::passive::summary::{By, Coverage, Rows, Share};
use wiretight_scan::report::{self, FlowOptions, FlowReport, Format};

use super::{Collector, Out, Outcome, Watch, collect, live};
use crate::admin::api::WatchRequest;
use crate::admin::client::AdminError;
use crate::logging::chain;
use crate::watch::host::Listing;

/// Rows that are asked for.
const ROWS: usize = 20_000;

const OTHERWISE: &str =
    "To watch without a node: `wiretight watch --interface any`, or name capture files.";

impl Watch {
    pub(super) fn node(&self, out: Out) -> anyhow::Result<ExitCode> {
        if self.format == Format::Jsonl {
            return super::usage(
                "--jsonl needs --interface or files: the node keeps sums, not flows",
            );
        }
        if !self.node.config.exists() {
            let file = self.node.config.display();
            eprintln!(
                "wiretight: There is no configuration file {file}, so no node is running here. {OTHERWISE}"
            );
            return Ok(ExitCode::from(3));
        }
        let state_dir = self.node.state_dir()?;
        let ask = || -> anyhow::Result<FlowReport> {
            let request = WatchRequest { level: None, rows: ROWS };
            Ok(self.of(&crate::cli::post(&state_dir, "/v1/watch", &request)?))
        };
        let mut report = ask().map_err(|error| match error.downcast_ref() {
            Some(AdminError::NotRunning { .. }) => error.context(OTHERWISE),
            _ => error,
        })?;
        if self.is_live() {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            return runtime.block_on(async {
                let mut terminal = live::Terminal::enter(self.colour(), self.verbose)?;
                // The request has a runtime of its own, which must not be within this one.
                let look = || {
                    std::thread::scope(|scope| match scope.spawn(ask).join() {
                        Ok(report) => {
                            report.map(Some).map_err(|e| io::Error::other(chain(e.as_ref())))
                        }
                        Err(_) => Ok(None),
                    })
                };
                terminal.run(None, look).await?;
                Ok(ExitCode::SUCCESS)
            });
        }
        if self.scan {
            super::scanned::join(&mut report, self.scan_public)?;
        }
        let mut collector = Collector::new(self.selection(), self.by(), false, Err(out));
        self.write(&mut collector, &report)?;
        Ok(self.status(&report, &Outcome::default()))
    }

    /// The node's sums as a report. Only what crosses a network is shown.
    fn of(&self, listing: &Listing) -> FlowReport {
        let selection = self.selection();
        let mut coverage = Coverage::default();
        let mut rows = Rows::new(self.by(), collect::ROWS);
        let mut shown = Coverage::default();
        for row in listing.rows.iter().filter(|row| row.way.crosses_network()) {
            let flow = row.flow();
            if selection.matches(&flow) {
                shown.add_many(&flow.record, row.connections);
                rows.add_many(&flow, row.connections);
            }
        }
        for (level, count) in listing.totals.by_level() {
            let missed = if level == Level::Unknown { listing.totals.gaps.missed_bytes } else { 0 };
            let share =
                Share { flows: count.connections, bytes: count.bytes.saturating_sub(missed) };
            coverage.levels.insert(level, share);
        }
        let since = listing.status.since.and_then(|at| i64::try_from(at).ok());
        if let Some(since) = since.and_then(|at| jiff::Timestamp::from_second(at).ok()) {
            coverage.extend(since);
            coverage.extend(jiff::Timestamp::now());
        }
        let gaps = &listing.totals.gaps;
        coverage.miss("not_captured", 0, gaps.missed_bytes);
        coverage.miss("events_lost", gaps.resyncs, 0);
        coverage.miss("dropped", gaps.lost_packets, 0);
        let rows_left_out = rows.left_out;
        let rows = rows.list();
        FlowReport {
            source: "this machine, by its node".to_owned(),
            coverage,
            shown,
            filter: selection.text(),
            blockers: blockers(rows.clone()),
            rows,
            left_out: rows_left_out,
            flows: Vec::new(),
            not_listed: Share::default(),
        }
    }
}

/// What of the node's traffic is not `strong`, as lines, for `wiretight mode strict --dry-run`. `None` if the node does not
/// watch.
pub(in crate::cli) fn blockers_of(state_dir: &Path) -> Option<(Vec<Blocker>, Vec<String>)> {
    let request = WatchRequest { level: None, rows: ROWS };
    let listing: Listing = crate::cli::post(state_dir, "/v1/watch", &request).ok()?;
    let mut rows = Rows::new(By::Service, collect::ROWS);
    for row in listing.rows.iter().filter(|row| row.way.crosses_network()) {
        rows.add_many(&row.flow(), row.connections);
    }
    let found = blockers(rows.list());
    let options = FlowOptions { colour: crate::cli::term::colour(), width: None, verbose: false };
    let lines = report::blocker_lines(&found, options);
    Some((found, lines))
}
