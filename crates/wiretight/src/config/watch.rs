//! `[watch]`.

use std::time::Duration;

use super::report::Report;
use super::section::Section;
use super::value::*;

const DEFAULT_KEEP: Duration = Duration::from_secs(48 * 3600);

/// `[watch]`: which traffic of this machine is encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watch {
    /// The interfaces whose bytes are the whole that connections are compared with; if empty, those with an IP address.
    pub interfaces: Vec<String>,
    /// How long this machine keeps its hourly totals.
    pub keep: Duration,
}

pub(super) fn read_watch(report: &mut Report<'_>, mut s: Section<'_>) -> Watch {
    let interfaces = s.list(report, "interfaces", interface);
    let keep = s.optional(report, "keep", keep);
    s.finish(report);
    Watch { interfaces: interfaces.values(), keep: keep.or(DEFAULT_KEEP) }
}
