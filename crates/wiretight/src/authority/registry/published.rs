//! Checkpoints that were published with the proof page. The next page proves that the log still continues them, so that a
//! visitor who kept one can check it. Kept: all of the last 48 hours, and the first of each day of a year.

use serde::{Deserialize, Serialize};
use wiretight_store::update;
use wiretight_tlog::Hash;

use super::{Registry, json, key, whole};
use crate::authority::AuthorityError;

const CHECKPOINTS: &str = "published/checkpoints";
const DAY: u64 = 86_400;
/// How long all of them are kept, and one a day.
const ALL: u64 = 2 * DAY;
const DAILY: u64 = 366 * DAY;
/// The most of the last 48 hours.
const MAX: usize = 200;

/// A checkpoint that was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Earlier {
    /// When it was published, in seconds since 1970.
    pub at: u64,
    pub size: u64,
    pub root: Hash,
}

#[derive(Serialize, Deserialize)]
struct Record {
    at: u64,
    size: u64,
    root: String,
}

impl Registry {
    /// The checkpoints that were published, oldest first.
    pub(in crate::authority) async fn earlier(&self) -> Result<Vec<Earlier>, AuthorityError> {
        let entry = self.store.get(&key(CHECKPOINTS.into())).await?;
        parse(entry.as_ref().map(|entry| entry.value.as_slice()))
    }

    /// Keeps a checkpoint that is about to be published.
    pub(in crate::authority) async fn remember(&self, new: Earlier) -> Result<(), AuthorityError> {
        let at = key(CHECKPOINTS.into());
        let with = |old: Option<&[u8]>| {
            let kept = kept(parse(old)?, new);
            let record = |e: Earlier| Record { at: e.at, size: e.size, root: e.root.to_string() };
            Ok(Some(json(&kept.into_iter().map(record).collect::<Vec<_>>())))
        };
        update(&*self.store, &at, with).await.map(|_| ())
    }
}

fn parse(value: Option<&[u8]>) -> Result<Vec<Earlier>, AuthorityError> {
    let records: Vec<Record> = whole(value)?.unwrap_or_default();
    let parsed = records.into_iter().map(|Record { at, size, root }| {
        let root = Hash::from_base64(&root).ok_or(AuthorityError::DamagedRecord)?;
        Ok(Earlier { at, size, root })
    });
    parsed.collect()
}

/// What is kept of the old ones and the new one, by time.
fn kept(mut all: Vec<Earlier>, new: Earlier) -> Vec<Earlier> {
    if all.iter().any(|old| old.size == new.size) {
        return all;
    }
    all.push(new);
    all.sort_by_key(|e| (e.at, e.size));
    let mut day = None;
    let mut recent = 0;
    let mut kept: Vec<Earlier> = Vec::new();
    for one in all {
        let first_of_day = day.replace(one.at / DAY) != Some(one.at / DAY);
        if one.at.saturating_add(ALL) > new.at {
            recent += 1;
            kept.push(one);
        } else if first_of_day && one.at.saturating_add(DAILY) > new.at {
            kept.push(one);
        }
    }
    // Too many of the last 48 hours: the older of them go.
    let from = kept.len() - recent;
    kept.drain(from..from + recent.saturating_sub(MAX));
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_year_of_hours_is_bounded_and_keeps_the_first_of_each_day() {
        let one =
            |n: u64| Earlier { at: n * 3600, size: n + 1, root: Hash::leaf(&n.to_be_bytes()) };
        let mut all = Vec::new();
        for n in 0..24 * 400 {
            all = kept(all, one(n));
        }
        assert!((48 + 360..=48 + 366).contains(&all.len()), "{}", all.len());
        let last = 24 * 400 - 1;
        assert_eq!(all.last(), Some(&one(last)));
        assert!((last - 47..=last).all(|n| all.contains(&one(n))), "the last 48 hours");
        let daily = &all[..all.len() - 48];
        assert!(daily.iter().all(|e| e.at % DAY == 0), "the first of each day");
        // The same size again changes nothing, and a burst is bounded.
        assert_eq!(kept(all.clone(), one(last)).len(), all.len());
        for n in 0..1000 {
            all = kept(all, Earlier { size: 1_000_000 + n, ..one(last) });
        }
        assert!(all.len() <= MAX + 366, "{}", all.len());
        assert!(all.iter().any(|e| e.size == 1_000_999), "the newest is kept");
        let text = serde_json::to_vec(&all.iter().map(|e| e.root.to_string()).collect::<Vec<_>>());
        assert!(text.unwrap().len() < 40_000);
    }
}
