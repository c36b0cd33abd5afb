//! What this node tells the authority about itself: its version and release, the mode in force and since when, what it lets
//! through unencrypted, and who talks to whom.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use wiretight_proxy::clock::now;
use wiretight_proxy::intercept::rules::Mode;

use super::daemon::Daemon;
use crate::clock::uptime;
use crate::config::{Config, Subject};
use crate::control::report::{
    Exception, ExceptionKind, Explanation, MAX_RELEASE_PROOF, NodeReport, ReportedRelease,
};
use crate::intercept::Interception;
use crate::logging::chain;
use crate::private_dir::PrivateDir;
use crate::release::Standing;
use crate::watch::host::carried;

/// How often to check whether something has changed.
const LOOK: Duration = Duration::from_secs(5);
/// How often to report if nothing has; without a watch, whose rows are fewer.
const EVERY: Duration = Duration::from_secs(300);
const EVERY_CARRIED: Duration = Duration::from_secs(30);
const FILE: &str = "mode.json";
/// How often the file is written, in seconds.
const NOTE: u64 = 60;
/// How long a node may be down before a mode counts as new, in seconds. Its rules stay in the kernel meanwhile.
const DOWN: u64 = 2 * NOTE;

/// What the configuration lets through, with its explanations.
pub(super) fn exceptions(config: &Config) -> Vec<Exception> {
    let all = config.let_through().into_iter().map(|(subject, explained)| Exception {
        kind: match subject {
            Subject::Pass(_) => ExceptionKind::Pass,
            Subject::Observe(_) => ExceptionKind::Observe,
            Subject::Permissive(_) => ExceptionKind::Permissive,
            Subject::ForeignPeer(_) => ExceptionKind::ForeignPeer,
        },
        what: subject.to_string(),
        explanation: explained.map(|exception| Explanation {
            reason: exception.reason.clone(),
            owner: exception.owner.clone(),
            until: exception.until,
        }),
    });
    all.collect()
}

/// Since when a mode is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Held {
    mode: Mode,
    since: u64,
    /// When it was last seen in force.
    seen: u64,
}

impl Held {
    /// After `mode` was seen in force. `booted`: when the machine has started.
    fn next(before: Option<Held>, mode: Option<Mode>, now: u64, booted: u64) -> Option<Held> {
        let mode = mode?;
        let goes_on = |held: &Held| {
            held.mode == mode && (booted..=now).contains(&held.seen) && held.seen + DOWN >= now
        };
        let since = before.filter(goes_on).map_or(now, |held| held.since);
        Some(Held { mode, since, seen: now })
    }
}

/// What this node says of its release.
fn release(of: &Standing) -> Option<ReportedRelease> {
    let (sha256, proof) = (of.sha256.clone(), of.proof.clone());
    let proof = proof.filter(|proof| proof.len() <= MAX_RELEASE_PROOF);
    (!sha256.is_empty()).then_some(ReportedRelease { sha256, proof })
}

pub(super) struct Reporting {
    dir: PrivateDir,
    held: Option<Held>,
    /// When the file was written.
    noted: u64,
}

impl Reporting {
    pub(super) fn begin(dir: PrivateDir) -> Reporting {
        let read = dir.read(FILE, 1024).ok().flatten();
        let held = read.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Reporting { dir, held, noted: 0 }
    }

    /// Reports changes, and everything from time to time.
    pub(super) async fn run(mut self, daemon: Arc<Daemon>) {
        if let Some(proof) = daemon.release.proof.as_ref().filter(|p| p.len() > MAX_RELEASE_PROOF) {
            let bytes = proof.len();
            tracing::error!(
                bytes,
                "the proof of this release is not reported, because more than {MAX_RELEASE_PROOF} bytes are too many"
            );
        }
        let every = if daemon.watching.is_some() { EVERY } else { EVERY_CARRIED };
        let mut last: Option<(NodeReport, Instant)> = None;
        let mut had_rows = false;
        loop {
            let report = self.report(&daemon);
            let is_due = match &last {
                Some((before, at)) => *before != report || at.elapsed() >= every,
                None => true,
            };
            if (is_due || !had_rows) && !daemon.agent.status().alone {
                let full = with_rows(&daemon, report.clone()).await.bounded();
                let has_rows = full.rows.good.iter().any(|row| row.total() > 0);
                // The first rows are not held back.
                if is_due || has_rows {
                    (last, had_rows) = (Some((report, Instant::now())), has_rows);
                    daemon.agent.report(full).await;
                }
            }
            sleep(LOOK).await;
        }
    }

    /// Everything but the rows.
    fn report(&mut self, daemon: &Daemon) -> NodeReport {
        let mode = daemon.interception().and_then(Interception::mode);
        self.note(mode);
        let watch = daemon.watching.as_ref().map(|host| host.status());
        NodeReport {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            mode,
            mode_since: self.held.map(|held| held.since),
            watching: watch.as_ref().is_some_and(|watch| watch.since.is_some()),
            exceptions: exceptions(&daemon.config()).into(),
            rows_since: watch.and_then(|watch| watch.since),
            release: release(&daemon.release).map(Box::new),
            ..NodeReport::default()
        }
    }

    fn note(&mut self, mode: Option<Mode>) {
        let now = now();
        let before = self.held;
        self.held = Held::next(before, mode, now, now.saturating_sub(uptime().as_secs()));
        let is_new = before.map(|held| held.since) != self.held.map(|held| held.since);
        if self.held.is_none() || !is_new && now.abs_diff(self.noted) < NOTE {
            return;
        }
        self.noted = now;
        let saved = serde_json::to_vec(&self.held).unwrap_or_default();
        if let Err(error) = self.dir.write(FILE, &saved) {
            tracing::debug!(error = chain(&error), "cannot save since when the mode is in force");
        }
    }
}

async fn with_rows(daemon: &Daemon, mut report: NodeReport) -> NodeReport {
    let Some(host) = &daemon.watching else {
        report.rows = carried(&daemon.relay).into();
        return report;
    };
    match host.listing(None, usize::MAX).await {
        Ok(listing) => {
            report.more_rows = listing.left_out.saturating_add(listing.forgotten);
            report.rows = listing.pairs().into();
        }
        Err(error) => tracing::debug!(error, "a report without rows"),
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_is_in_force_since_it_was_seen_without_a_break() {
        let strict = Some(Mode::Strict);
        let first = Held::next(None, strict, 1000, 0);
        assert_eq!(first.unwrap().since, 1000);
        let since = |held, mode, now, booted| Held::next(held, mode, now, booted).map(|h| h.since);
        assert_eq!(since(first, strict, 1000 + DOWN, 0), Some(1000));
        // Another mode, no rules, a longer break, a reboot, a clock that was set back.
        assert_eq!(since(first, Some(Mode::Observe), 1005, 0), Some(1005));
        assert_eq!(since(first, None, 1005, 0), None);
        assert_eq!(since(None, strict, 1010, 0), Some(1010));
        assert_eq!(since(first, strict, 1001 + DOWN, 0), Some(1001 + DOWN));
        assert_eq!(since(first, strict, 1030, 1001), Some(1030));
        assert_eq!(since(first, strict, 900, 0), Some(900));
    }
}
