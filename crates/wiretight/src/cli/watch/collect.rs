//! Flows as they end: counted, selected, and added up.

use std::io::{self, Write};

use wiretight_proxy::network::Network;
use wiretight_scan::passive::blockers::blockers;
use wiretight_scan::passive::flow::Record;
use wiretight_scan::passive::summary::{By, Coverage, Filter, Flow, Rows, Share, bytes_of};
use wiretight_scan::report::{self, FlowReport};

use super::Out;
use crate::watch::owners::Owners;

/// Rows and flows that are kept.
pub(super) const ROWS: usize = 100_000;
const FLOWS: usize = 500_000;

/// Which flows are shown.
#[derive(Default)]
pub(super) struct Selection {
    pub(super) filter: Filter,
    pub(super) nets: Vec<Network>,
}

impl Selection {
    pub(super) fn matches(&self, flow: &Flow) -> bool {
        let (client, server) = (flow.record.client.ip(), flow.record.server.ip());
        let within = |net: &Network| net.contains(client) || net.contains(server);
        self.filter.matches(flow) && (self.nets.is_empty() || self.nets.iter().any(within))
    }

    /// In words: `level plaintext; port 80 or 443`; empty if everything is shown.
    pub(super) fn text(&self) -> String {
        let list = |what: &str, values: Vec<String>| match values.is_empty() {
            true => None,
            false => Some(format!("{what} {}", values.join(" or "))),
        };
        let filter = &self.filter;
        let parts = [
            list("level", filter.levels.iter().map(ToString::to_string).collect()),
            list("protocol", filter.protocols.clone()),
            list("program", filter.programs.clone()),
            list("port", filter.ports.iter().map(ToString::to_string).collect()),
            list("network", self.nets.iter().map(ToString::to_string).collect()),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
    }
}

pub(super) struct Collector {
    selection: Selection,
    /// All flows that have ended.
    all: Coverage,
    /// Those of them that are selected.
    shown: Coverage,
    rows: Rows,
    /// Whether flows are listed one by one at the end.
    list: bool,
    flows: Vec<Flow>,
    not_listed: Share,
    /// Finds the programs of flows, if they are of this machine.
    pub(super) owners: Option<Owners>,
    /// What was missed, apart from a running capture.
    pub(super) missed: Coverage,
    /// Where flows are written as they end, or where the report is written at the end.
    pub(super) out: Result<Out, Out>,
}

impl Collector {
    pub(super) fn new(
        selection: Selection,
        by: By,
        list: bool,
        out: Result<Out, Out>,
    ) -> Collector {
        Collector {
            selection,
            all: Coverage::default(),
            shown: Coverage::default(),
            rows: Rows::new(by, ROWS),
            list,
            flows: Vec::new(),
            not_listed: Share::default(),
            owners: None,
            missed: Coverage::default(),
            out,
        }
    }

    /// The flow with its programs, as far as they are known.
    pub(super) fn flow(&self, record: Record) -> Flow {
        let programs = self.owners.as_ref().map(|owners| owners.of(&record)).unwrap_or_default();
        Flow { record, programs }
    }

    /// Adds a flow that has ended.
    pub(super) fn ended(&mut self, record: Record) -> io::Result<()> {
        let flow = self.flow(record);
        self.all.add(&flow.record);
        if !self.selection.matches(&flow) {
            return Ok(());
        }
        self.shown.add(&flow.record);
        self.rows.add(&flow);
        if let Ok(lines) = &mut self.out {
            report::flow_line(lines, &flow)?;
        }
        match self.list {
            true if self.flows.len() < FLOWS => self.flows.push(flow),
            true => {
                self.not_listed.flows += 1;
                self.not_listed.bytes =
                    self.not_listed.bytes.saturating_add(bytes_of(&flow.record));
            }
            false => {}
        }
        Ok(())
    }

    /// Passes on what is written.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.out.as_mut().map_or(Ok(()), |lines| lines.flush())
    }

    /// A report of all flows that have ended, and of these current ones.
    pub(super) fn report(&self, current: &[Flow], missed: &Coverage, source: &str) -> FlowReport {
        let (mut all, mut shown, mut rows) =
            (self.all.clone(), self.shown.clone(), self.rows.clone());
        for flow in current {
            all.add(&flow.record);
            if self.selection.matches(flow) {
                shown.add(&flow.record);
                rows.add(flow);
            }
        }
        all.merge(missed);
        let left_out = rows.left_out;
        let rows = rows.list();
        FlowReport {
            source: source.to_owned(),
            coverage: all,
            shown,
            filter: self.selection.text(),
            blockers: blockers(rows.clone()),
            rows,
            left_out,
            flows: self.flows.clone(),
            not_listed: self.not_listed,
        }
    }
}
