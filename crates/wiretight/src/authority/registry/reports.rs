//! What nodes report of themselves: version, mode, exceptions, and who talks to whom. Each node replaces only its own
//! report. The newest is in memory, and without its rows in the store, below `report/NAME`.
//!
//! Nodes are believed: a report is shown with the node's name, and nothing is allowed or refused by it, except by the
//! release in it (`releases`).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use wiretight_keys::Name;
use wiretight_proxy::clock::now;
use wiretight_scan::passive::totals::Period;
use wiretight_store::{Error, update};

use super::totals::{DAY, totals_key};
use super::{Budgets, Registry, Standing, internal, json, key, read, take};
use crate::control::report::NodeReport;
use crate::control::{Code, Denial};

const FOLDER: &str = "report/";
/// Limits for reports of one node: a burst, and a rate per second.
const BURST: f64 = 20.0;
const RATE: f64 = 0.2;
/// A report that has not changed is written again after this time, in seconds.
const REWRITE: u64 = 3600;
/// By how much a node's clock may be ahead, in seconds.
const EARLY: u64 = 300;

/// What is known of a node by its own word.
#[derive(Debug, Clone, Default)]
pub struct Reported {
    /// After a restart of the authority, without rows until the node sends it again.
    pub report: Option<Arc<NodeReport>>,
    /// When the report arrived.
    pub at: Option<u64>,
    /// The newest hour whose totals it has sent.
    pub last_hour: Option<u64>,
    /// When the report was last stored.
    stored: u64,
}

#[derive(Default)]
pub(super) struct Reports {
    nodes: Mutex<HashMap<Name, Reported>>,
    budgets: Mutex<Budgets>,
    rejected: AtomicU64,
}

#[derive(Serialize, Deserialize)]
struct Record {
    at: u64,
    report: NodeReport,
}

/// The part of a [`Period`] that is needed at the start, when those of all nodes are read.
#[derive(Deserialize)]
struct Start {
    start: u64,
}

/// A member of the mesh in an hour.
pub(in crate::authority) struct Member {
    pub(in crate::authority) report: Option<Arc<NodeReport>>,
    /// What it has counted in that hour.
    pub(in crate::authority) totals: Option<Period>,
}

impl Registry {
    /// Reads what nodes have reported before the start.
    pub(in crate::authority) async fn load_reports(&self) -> Result<(), Error> {
        let stored = self.folder::<Record>(FOLDER).await?;
        for (name, _) in self.nodes().await? {
            let mut known = Reported::default();
            if let Some(Record { at, report }) = stored.get(name.as_str()) {
                let report = Some(Arc::new(report.clone()));
                known = Reported { report, at: Some(*at), stored: *at, last_hour: None };
            }
            for day in [now() / DAY * DAY, (now() / DAY * DAY).saturating_sub(DAY)] {
                let hours: Vec<Start> = self.hours_of(&name, day).await?;
                known.last_hour = known.last_hour.max(hours.iter().map(|h| h.start).max());
            }
            self.reports.nodes.lock().insert(name, known);
        }
        Ok(())
    }

    /// Keeps a node's report.
    pub(in crate::authority) async fn keep_report(
        &self,
        node: &Name,
        enrolment: &str,
        mut report: NodeReport,
    ) -> Result<(), Denial> {
        let refuse = |code, message: String| {
            self.reports.rejected.fetch_add(1, Relaxed);
            Err(Denial::new(code, message))
        };
        let release = report.release.take().map(|release| *release);
        if !self.may_report(node, Instant::now()) {
            return refuse(Code::Busy, "this node reports too often: try again later".into());
        }
        if let Err(why) = report.check() {
            return refuse(Code::BadRequest, format!("invalid report: {why}"));
        }
        self.current(node, enrolment).await?;
        self.keep_release(node, enrolment, release).await?;
        report.count_unreadable();
        report.mode_since = report.mode_since.filter(|at| *at <= now().saturating_add(EARLY));
        let at = now();
        let known = self.reports.nodes.lock().get(node).cloned().unwrap_or_default();
        let before = known.report.as_ref().map(|r| r.without_rows());
        let mut stored = known.stored;
        if before != Some(report.without_rows()) || at.abs_diff(stored) >= REWRITE {
            let record = json(&Record { at, report: report.without_rows() });
            let write = |_: Option<&[u8]>| Ok::<_, Error>(Some(record.clone()));
            update(&*self.store, &report_key(node), write).await.map_err(internal)?;
            stored = at;
        }
        let mut nodes = self.reports.nodes.lock();
        let known = nodes.entry(node.clone()).or_default();
        (known.report, known.at, known.stored) = (Some(Arc::new(report)), Some(at), stored);
        Ok(())
    }

    /// Takes a report from a node's budget.
    pub(super) fn may_report(&self, node: &Name, at: Instant) -> bool {
        take(&self.reports.budgets, node, 1.0, BURST, RATE, at).is_zero()
    }

    /// Forgets what a node has reported: it was removed, or another machine has its name.
    pub(super) async fn forget_report(&self, node: &Name) -> Result<(), Error> {
        self.reports.nodes.lock().remove(node);
        self.delete_key(&report_key(node)).await
    }

    /// Notes which hours a node has sent.
    pub(super) fn note_hours(&self, node: &Name, newest: Option<u64>) {
        let mut nodes = self.reports.nodes.lock();
        let known = nodes.entry(node.clone()).or_default();
        known.last_hour = known.last_hour.max(newest);
    }

    pub(in crate::authority) fn reports(&self) -> BTreeMap<Name, Reported> {
        let nodes = self.reports.nodes.lock();
        nodes.iter().map(|(name, known)| (name.clone(), known.clone())).collect()
    }

    /// The number of reports in memory, and of those that were rejected since the start.
    pub(in crate::authority) fn count_reports(&self) -> (usize, u64) {
        let held = self.reports.nodes.lock().values().filter(|k| k.report.is_some()).count();
        (held, self.reports.rejected.load(Relaxed))
    }

    /// The nodes that will probably send their totals of this hour, but have not yet: they watch, or have sent totals in
    /// the day before, and were connected in that hour or later.
    pub(in crate::authority) async fn awaited(
        &self,
        hour: u64,
        connected: impl Fn(&Name) -> bool,
    ) -> Result<usize, Error> {
        let (reports, nodes) = (self.reports(), self.list().await?);
        let awaited = nodes.iter().filter(|(name, listed)| {
            let Some(known) = reports.get(*name) else { return false };
            let watches = known.report.as_ref().is_some_and(|r| r.watching)
                || known.last_hour.is_some_and(|last| last.saturating_add(DAY) > hour);
            let sent = known.last_hour.is_some_and(|last| last >= hour);
            let there = connected(name) || listed.last_seen.is_some_and(|at| at >= hour);
            watches && there && !sent
        });
        Ok(awaited.count())
    }

    /// The members of the mesh, with their totals of an hour.
    pub(in crate::authority) async fn members(&self, hour: u64) -> Result<Vec<Member>, Error> {
        let (mut reports, mut members) = (self.reports(), Vec::new());
        for (name, record) in self.nodes().await? {
            if record.standing == Standing::Removing {
                continue;
            }
            let hours: Vec<Period> = self.hours_of(&name, hour / DAY * DAY).await?;
            let totals = hours.into_iter().find(|h| h.start == hour && h.length < DAY);
            let report = reports.remove(&name).and_then(|known| known.report);
            members.push(Member { report, totals });
        }
        Ok(members)
    }

    async fn hours_of<R: DeserializeOwned>(&self, node: &Name, day: u64) -> Result<Vec<R>, Error> {
        let entry = self.store.get(&totals_key(node, day)).await?;
        Ok(entry.and_then(|e| read(&e.value)).unwrap_or_default())
    }
}

fn report_key(node: &Name) -> wiretight_store::Key {
    key(format!("{FOLDER}{node}"))
}
