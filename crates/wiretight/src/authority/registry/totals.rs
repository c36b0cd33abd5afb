//! What nodes have counted of their traffic, by the hour. Each node writes only its own totals, and may replace them. They
//! are stored by day, below `watch/NAME/DAY`, with the day's start in seconds since 1970. After a month the hours of a day
//! are merged into one, and after a year they are deleted. Totals of removed nodes are kept as long.
//!
//! Nodes are believed: what they report is shown with their name, and nothing depends on it.

use std::collections::BTreeMap;

use wiretight_keys::Name;
use wiretight_proxy::clock::now;
use wiretight_scan::passive::totals::{Count, Hour, Period, Sum};
use wiretight_store::{Error, Key, update};

use super::{Registry, internal, json, key, read, whole};
use crate::authority::AuthorityError;
use crate::control::{Code, Denial, Records};

const FOLDER: &str = "watch/";
pub(super) const DAY: u64 = 86_400;
/// Older hours are not accepted; a node keeps them for a week at most.
const LATE: u64 = 8 * DAY;
/// By how much a node's clock may be ahead.
const EARLY: u64 = 300;
/// How long totals are kept by the hour, and by the day.
const HOURS: u64 = 31 * DAY;
const DAYS: u64 = 366 * DAY;
/// More than a machine can transfer in an hour (2.5 Tbit/s), so that sums of all nodes do not overflow.
const MAX_BYTES: u64 = 1 << 50;
const MAX_CONNECTIONS: u64 = 1 << 40;
/// Hours in a message.
const MAX_HOURS: usize = 24;

impl Registry {
    /// Keeps the totals of a node.
    pub(in crate::authority) async fn keep_totals(
        &self,
        node: &Name,
        enrolment: &str,
        hours: Records<Hour>,
    ) -> Result<(), Denial> {
        let bad = |why: String| Err(Denial::new(Code::BadRequest, why));
        if hours.unreadable > 0 {
            return bad("these totals are of a newer version. Update the authority.".into());
        }
        if hours.good.len() > MAX_HOURS {
            return bad(format!("more than {MAX_HOURS} hours"));
        }
        for hour in &hours.good {
            if let Err(why) = hour.check() {
                return bad(format!("invalid totals: {why}"));
            }
            if !is_possible(hour) {
                return bad("more than a machine can transfer in an hour".into());
            }
            let expected = now().saturating_sub(LATE)..=now().saturating_add(EARLY);
            if !expected.contains(&hour.start) {
                return bad(format!(
                    "the hour that starts at {} is too old or in the future. Check the clocks (`timedatectl`).",
                    hour.start
                ));
            }
        }
        self.charge(node, hours.good.len() as f64)?;
        self.current(node, enrolment).await?;
        let newest = hours.good.iter().map(|hour| hour.start).max();
        for mut hour in hours.good {
            hour.totals = hour.totals.to_keep();
            let at = totals_key(node, hour.start / DAY * DAY);
            let kept =
                update(&*self.store, &at, |old| with_hour(old, hour.clone().into()).map(Some));
            kept.await.map_err(|error| match error {
                AuthorityError::DamagedRecord => {
                    tracing::error!(record = at.as_str(), "the stored totals of this day are unreadable, and were not changed");
                    Denial::new(Code::Internal, format!("the authority cannot read its record {}, which a newer version may have written. Update the authority.", at.as_str()))
                }
                error => internal(error),
            })?;
        }
        self.note_hours(node, newest);
        Ok(())
    }

    /// The totals of all nodes that overlap a time, oldest first.
    pub(in crate::authority) async fn totals(
        &self,
        from: u64,
        to: u64,
    ) -> Result<BTreeMap<Name, Vec<Period>>, Error> {
        let mut nodes: BTreeMap<Name, Vec<Period>> = BTreeMap::new();
        for (name, start, at) in self.days().await? {
            if start > to || start + DAY <= from {
                continue;
            }
            let entry = self.store.get(&at).await?;
            let all: Vec<Period> = entry.and_then(|e| read(&e.value)).unwrap_or_default();
            nodes.entry(name).or_default().extend(all.into_iter().filter(|p| p.overlaps(from, to)));
        }
        Ok(nodes)
    }

    /// Merges the hours of old days, and deletes very old ones.
    pub(super) async fn prune_totals(&self) -> Result<(), Error> {
        for (_, start, at) in self.days().await? {
            if start + DAYS < now() {
                self.delete_key(&at).await?;
            } else if start + HOURS < now() {
                let Some(entry) = self.store.get(&at).await? else { continue };
                let hours: Vec<Period> = read(&entry.value).unwrap_or_default();
                if hours.iter().any(|hour| hour.length < DAY) {
                    let day = json(&[merged(start, &hours)]);
                    self.store.swap(&at, entry.revision, Some(day)).await?;
                }
            }
        }
        Ok(())
    }

    /// The node, the start and the key of each stored day.
    async fn days(&self) -> Result<Vec<(Name, u64, Key)>, Error> {
        let entries = self.store.list(FOLDER).await?.0;
        let parse = |at: Key| {
            let (name, start) = at.as_str().strip_prefix(FOLDER)?.split_once('/')?;
            Some((name.parse().ok()?, start.parse().ok()?, at))
        };
        Ok(entries.into_iter().filter_map(|entry| parse(entry.key)).collect())
    }
}

fn is_possible(hour: &Hour) -> bool {
    let mut sum = Count::default();
    hour.totals.shares.iter().for_each(|share| sum.add(share.count));
    let gaps = &hour.totals.gaps;
    let bytes = [sum.bytes, gaps.interface_bytes, gaps.missed_bytes];
    let counts = [sum.connections, gaps.resyncs, gaps.lost_packets];
    bytes.iter().all(|n| *n <= MAX_BYTES) && counts.iter().all(|n| *n <= MAX_CONNECTIONS)
}

/// A stored day with the totals of an hour, which replace earlier ones. A day that is unreadable, perhaps because a newer
/// version wrote it, is not overwritten: the node keeps its totals and tries again.
fn with_hour(day: Option<&[u8]>, hour: Period) -> Result<Vec<u8>, AuthorityError> {
    let mut hours: Vec<Period> = whole(day)?.unwrap_or_default();
    hours.retain(|other| other.start != hour.start);
    hours.push(hour);
    hours.sort_by_key(|hour| hour.start);
    Ok(json(&hours))
}

pub(super) fn totals_key(node: &Name, start: u64) -> Key {
    // Keys are sorted as text: all of these have the same length until the year 2286.
    key(format!("{FOLDER}{node}/{start:010}"))
}

fn merged(start: u64, hours: &[Period]) -> Period {
    let mut sum = Sum::default();
    hours.iter().for_each(|hour| sum.add_all(&hour.totals));
    let watched_seconds = hours.iter().map(|hour| hour.watched_seconds).sum();
    Period { start, length: DAY, watched_seconds, totals: sum.totals() }
}

#[cfg(test)]
mod tests {
    use wiretight_scan::judge::Level;
    use wiretight_scan::passive::Grade;
    use wiretight_scan::passive::totals::{Kind, MAX_KEPT, Totals, Way};

    use super::*;

    #[test]
    fn the_hours_of_a_day_are_merged_without_loss() {
        let hour = |start: u64, level, bytes| {
            let kind = Kind { way: Way::In, level, grade: Grade::Seen, protocol: "x".into() };
            let mut sum = Sum::default();
            sum.add(kind, Count { connections: 1, bytes });
            Period::from(Hour { start, watched_seconds: 1800, totals: sum.totals() })
        };
        let hours: Vec<Period> = (0..24).map(|n| hour(n * 3600, Level::Weak, n)).collect();
        let day = merged(0, &hours);
        assert_eq!((day.length, day.watched_seconds), (DAY, 12 * 3600));
        let weak = day.totals.by_level()[&Level::Weak];
        assert_eq!(weak, Count { connections: 24, bytes: 276 });
        assert!(day.overlaps(86_399, 90_000) && !day.overlaps(86_400, 90_000));
    }

    /// 24 hours with totals of the largest size that is kept, and the most of everything else.
    #[test]
    fn a_day_of_full_hours_fits_into_a_value_of_the_store() {
        let most = Period {
            start: u64::MAX,
            length: u64::MAX,
            watched_seconds: u32::MAX,
            totals: Totals::default(),
        };
        let hour = json(&most).len() + MAX_KEPT;
        let day = 2 + 24 * (hour + 1);
        assert!(day <= wiretight_store::MAX_VALUE, "{day}");
    }

    #[test]
    fn an_hour_is_replaced_and_an_unreadable_day_is_not_overwritten() {
        let hour = |start, watched_seconds| {
            Period::from(Hour { start, watched_seconds, ..Hour::default() })
        };
        let day = with_hour(None, hour(3600, 1)).unwrap();
        let day = with_hour(Some(&day), hour(0, 2)).unwrap();
        let day = with_hour(Some(&day), hour(3600, 3)).unwrap();
        let hours: Vec<Period> = read(&day).unwrap();
        assert_eq!(hours, [hour(0, 2), hour(3600, 3)]);
        let newer = br#"[{"start":0,"length":3600,"watched_seconds":9,"totals_by_group":{}}]"#;
        assert!(matches!(with_hour(Some(newer), hour(0, 1)), Err(AuthorityError::DamagedRecord)));
    }
}
