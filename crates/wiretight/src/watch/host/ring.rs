//! The totals of the last hours, on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use wiretight_proxy::clock::now;
use wiretight_scan::passive::totals::{Hour, Period, Sum, Totals};

use crate::private_dir::{FileError, PrivateDir};

const FILE: &str = "watch.json";
/// The largest file, in bytes; more than a week of full hours.
const MAX: usize = 16 << 20;
/// How often it is written. After a crash, what was counted since is missing.
const EVERY: Duration = Duration::from_secs(60);
/// An hour is complete this long after its end, in seconds: connections are settled by then.
const SETTLED: u64 = 60;
/// Hours that are offered to the authority at a time.
const AT_ONCE: usize = 8;

#[derive(Default)]
pub(super) struct Ring {
    keep: u64,
    hours: BTreeMap<u64, Hour>,
    sent: BTreeSet<u64>,
    /// Those that the authority could not store. They are offered again after the others.
    failed: BTreeSet<u64>,
    /// What earlier processes have counted.
    before: BTreeMap<u64, Hour>,
    /// When the process that counts now has started.
    since: u64,
    written: Option<Instant>,
}

#[derive(Serialize, Deserialize)]
struct File {
    hours: Vec<Hour>,
    /// Those that the authority has.
    sent: BTreeSet<u64>,
}

impl Ring {
    /// Without a readable file it is empty.
    pub(super) fn load(dir: &PrivateDir, keep: Duration) -> Ring {
        let read = dir.read(FILE, MAX).map_err(|e| e.to_string());
        let parsed = read.and_then(|bytes| match bytes {
            Some(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| e.to_string()),
            None => Ok(None),
        });
        let file: Option<File> = parsed.unwrap_or_else(|error| {
            tracing::warn!(
                error,
                "the hourly totals in {FILE} are unreadable; counting starts again"
            );
            None
        });
        let mut ring = Ring { keep: keep.as_secs(), ..Ring::default() };
        if let Some(File { hours, sent }) = file {
            let good = hours.into_iter().filter(|hour| hour.check().is_ok());
            ring.hours = good.map(|hour| (hour.start, hour)).collect();
            ring.sent = sent;
        }
        ring.forget();
        ring
    }

    /// Takes what a process has counted. `since`: when it started.
    pub(super) fn count(&mut self, since: u64, hours: &[Hour]) {
        if since != self.since {
            (self.since, self.before) = (since, self.hours.clone());
        }
        for hour in hours {
            let sum = match self.before.get(&hour.start) {
                Some(before) => both(before, hour),
                None => hour.clone(),
            };
            if self.hours.get(&hour.start) != Some(&sum) {
                self.sent.remove(&hour.start);
                self.hours.insert(hour.start, sum);
            }
        }
        self.forget();
    }

    fn forget(&mut self) {
        let oldest = now().saturating_sub(self.keep);
        self.hours.retain(|start, _| start.saturating_add(Hour::LENGTH) > oldest);
        let hours = &self.hours;
        self.sent.retain(|start| hours.contains_key(start));
        self.failed.retain(|start| hours.contains_key(start));
    }

    /// Complete hours that the authority does not have: those that it could not store last, then oldest first.
    pub(super) fn unsent(&self) -> Vec<Hour> {
        let complete = |hour: &&Hour| hour.start.saturating_add(Hour::LENGTH + SETTLED) <= now();
        let hours = self.hours.values().filter(complete);
        let mut unsent: Vec<&Hour> =
            hours.filter(|hour| !self.sent.contains(&hour.start)).collect();
        unsent.sort_by_key(|hour| self.failed.contains(&hour.start));
        unsent.into_iter().take(AT_ONCE).cloned().collect()
    }

    /// The authority has this hour.
    pub(super) fn sent(&mut self, start: u64) {
        self.sent.insert(start);
        self.failed.remove(&start);
    }

    /// The authority could not store this hour.
    pub(super) fn failed(&mut self, start: u64) {
        self.failed.insert(start);
    }

    /// How many hours the authority could not store.
    pub(super) fn failures(&self) -> usize {
        self.failed.len()
    }

    pub(super) fn between(&self, from: u64, to: u64) -> Vec<Period> {
        let periods = self.hours.values().cloned().map(Period::from);
        periods.filter(|hour| hour.overlaps(from, to)).collect()
    }

    /// Writes the file, if it is due or `now`.
    pub(super) fn save(&mut self, dir: &PrivateDir, now: bool) -> Result<(), FileError> {
        if !now && self.written.is_some_and(|at| at.elapsed() < EVERY) {
            return Ok(());
        }
        let file = File { hours: self.hours.values().cloned().collect(), sent: self.sent.clone() };
        dir.write(FILE, &serde_json::to_vec(&file).unwrap_or_default())?;
        self.written = Some(Instant::now());
        Ok(())
    }
}

fn both(a: &Hour, b: &Hour) -> Hour {
    let mut sum = Sum::default();
    sum.add_all(&a.totals);
    sum.add_all(&b.totals);
    let watched = (a.watched_seconds + b.watched_seconds).min(Hour::LENGTH as u32);
    let totals: Totals = sum.totals();
    Hour { start: a.start, watched_seconds: watched, totals }
}

#[cfg(test)]
mod tests {
    use wiretight_scan::judge::Level;
    use wiretight_scan::passive::Grade;
    use wiretight_scan::passive::totals::{Count, Kind, Way};

    use super::*;

    fn hour(start: u64, bytes: u64) -> Hour {
        let kind = Kind {
            way: Way::Out,
            level: Level::Strong,
            grade: Grade::Seen,
            protocol: "tls".into(),
        };
        let mut sum = Sum::default();
        sum.add(kind, Count { connections: 1, bytes });
        Hour { start, watched_seconds: 100, totals: sum.totals() }
    }

    #[test]
    fn an_hour_that_the_authority_cannot_store_is_kept_and_does_not_hold_up_the_others() {
        let temp = tempfile::tempdir().unwrap();
        let dir = PrivateDir::open(temp.path().join("state")).unwrap();
        let keep = Duration::from_secs(48 * 3600);
        let mut ring = Ring::load(&dir, keep);
        let this = now() / Hour::LENGTH * Hour::LENGTH;
        let hours: Vec<Hour> = (2..20).rev().map(|n| hour(this - n * Hour::LENGTH, n)).collect();
        ring.count(1, &hours);
        let first = |ring: &Ring| ring.unsent()[0].start;
        for bad in &hours[..10] {
            assert_eq!(first(&ring), bad.start);
            ring.failed(bad.start);
        }
        for good in &hours[10..] {
            assert_eq!(first(&ring), good.start);
            ring.sent(good.start);
        }
        // Nothing is lost, and all is sent when it can be stored.
        assert_eq!((ring.failures(), ring.hours.len()), (10, hours.len()));
        for late in &hours[..10] {
            assert_eq!(first(&ring), late.start);
            ring.sent(late.start);
        }
        assert_eq!((ring.failures(), ring.unsent()), (0, vec![]));
    }

    fn bytes(ring: &Ring, start: u64) -> u64 {
        ring.hours[&start].totals.by_level()[&Level::Strong].bytes
    }

    #[test]
    fn hours_survive_a_crash_and_are_added_to_by_the_next_process() {
        let temp = tempfile::tempdir().unwrap();
        let dir = PrivateDir::open(temp.path().join("state")).unwrap();
        let this = now() / Hour::LENGTH * Hour::LENGTH;
        let (last, old) = (this - Hour::LENGTH, this - 50 * Hour::LENGTH);
        let keep = Duration::from_secs(48 * 3600);
        let mut ring = Ring::load(&dir, keep);
        ring.count(1, &[hour(old, 1), hour(last, 5), hour(this, 10)]);
        ring.count(1, &[hour(this, 11)]);
        ring.save(&dir, true).unwrap();
        assert_eq!((bytes(&ring, this), ring.hours.contains_key(&old)), (11, false));
        // Another process counts from zero.
        let mut ring = Ring::load(&dir, keep);
        ring.count(2, &[hour(this, 3)]);
        ring.count(2, &[hour(this, 4)]);
        assert_eq!((bytes(&ring, this), bytes(&ring, last)), (15, 5));
        assert_eq!(ring.hours[&this].watched_seconds, 200);
        // Only a complete hour is sent, once, and again if it has changed.
        let unsent = |ring: &Ring| ring.unsent().iter().map(|h| h.start).collect::<Vec<_>>();
        let settled = this + SETTLED <= now();
        assert_eq!(unsent(&ring), if settled { vec![last] } else { vec![] });
        ring.sent(last);
        ring.save(&dir, true).unwrap();
        let mut ring = Ring::load(&dir, keep);
        assert_eq!(unsent(&ring), Vec::<u64>::new());
        ring.count(3, &[hour(last, 1)]);
        assert_eq!(unsent(&ring), if settled { vec![last] } else { vec![] });
        assert_eq!(ring.between(last, last), [ring.hours[&last].clone().into()]);
        // A damaged file does not stop the node.
        dir.write(FILE, b"{").unwrap();
        assert!(Ring::load(&dir, keep).hours.is_empty());
    }
}
