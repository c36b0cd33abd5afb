//! Logs how the traffic of the mesh was encrypted, each hour and each day.
//!
//! After an hour has ended, the authority waits for the totals of the nodes that watch, adds them up, and appends the sum
//! to the log. What arrives later is not claimed: the entry stays. A day is the sum of its logged hours. In the store:
//!
//! ```text
//! claims/3600-START      an hour: the entry, and its index once it has one
//! claims/86400-START     a day, likewise
//! claims/running         the newest hour in which the authority ran and that is not handled yet
//! claims/since           the first hour that was ever logged
//! ```
//!
//! The entry is in the store before it is appended, so that a crash never leads to a second, different entry of the same
//! period. After a crash in between, it is searched in the log before it is appended again.
//!
//! An hour is not logged if the authority did not run in it, or was not back 15 minutes after its end. Nor is an hour in
//! which the clock was set by more than a minute across its end. If there are witnesses, their clocks must agree that the
//! period is over; otherwise it waits, and is dropped if this machine's clock turns out to be ahead.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};
use wiretight_keys::Name;
use wiretight_keys::claims::{
    Algorithm, Amount, DAY, HOUR, Levels, MeshPeriod, Protocol, Publication, Release,
};
use wiretight_proxy::clock::now;
use wiretight_proxy::intercept::rules::Mode;
use wiretight_scan::judge::Level;
use wiretight_scan::passive::Grade;
use wiretight_scan::passive::totals::{Count, Totals};
use wiretight_scan::passive::vocabulary;
use wiretight_store::{Entry, Error, Key, Store, update};
use wiretight_tlog::policy::MAX_CLOCK_SKEW;
use wiretight_tlog::{Hash, Proof};

use super::ca::patiently;
use super::registry::{Member, Reported};
use super::{AuthorityError, AuthorityHandle, CaError, Inner, TICK, Times, stopped};
use crate::clock::Steps;
use crate::control::report::{Exception, NodeReport};
use crate::log::prove::Proven;
use crate::log::sequencer::Log;
use crate::logging::chain;

const FOLDER: &str = "claims/";
const RUNNING: &str = "claims/running";
const SINCE: &str = "claims/since";
/// How long hours are kept in the store, in seconds. Days are kept forever: about 5 KB each.
const HOURS: u64 = 31 * DAY;
/// If the clock is set by more than this, in seconds, across the end of an hour, that hour is not logged.
const STEP: i64 = 60;
/// How long appending may take before it counts as interrupted.
const PATIENCE: Duration = Duration::from_secs(10);

/// A period, and where it is in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoggedPeriod {
    /// The index of its entry.
    pub index: u64,
    pub period: MeshPeriod,
}

/// A folder that was published, with the proof that its manifest is in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    pub publication: Publication,
    pub proof: Proof,
    /// From the size that the caller named to the proof's checkpoint.
    pub consistency: Vec<Hash>,
}

/// The state of logging claims, for people.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimsStatus {
    /// When the newest logged hour ended, in seconds since 1970.
    pub logged_until: Option<u64>,
    /// Hours and days that were logged since the start.
    pub logged: u64,
    /// Hours and days that are to be logged as soon as the log accepts them.
    pub waiting: usize,
    /// Hours that were not logged since the start, because the authority did not run or its clock was set.
    pub missed: u64,
    /// Reports of nodes that are known.
    pub reports: usize,
    /// Reports that were rejected since the start.
    pub reports_rejected: u64,
}

/// A period in the store.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    /// The body of its entry.
    entry: String,
    index: Option<u64>,
    /// The size of the log before the entry.
    from: u64,
}

impl Record {
    fn period(&self) -> Option<MeshPeriod> {
        MeshPeriod::parse(self.entry.as_bytes()).ok()
    }
}

/// A period that is not known to be in the log.
struct Waiting {
    record: Record,
    /// An earlier attempt may have appended it, before the log reached this size.
    tried: Option<u64>,
}

/// The task that logs periods.
pub(super) struct Claims {
    store: Arc<dyn Store>,
    log: Log,
    /// How long after its end an hour may be logged, in seconds.
    late: u64,
    /// Hours are removed only if the clock was not set for this long.
    steady: Duration,
    /// The hour in [`RUNNING`].
    running: Option<u64>,
    waiting: BTreeMap<Key, Waiting>,
    /// All days before this one are decided.
    days_settled: Option<u64>,
    status: Arc<Mutex<ClaimsStatus>>,
}

impl Claims {
    /// Continues where an earlier process has stopped.
    pub(super) async fn open(
        store: Arc<dyn Store>,
        log: Log,
        times: Times,
        status: Arc<Mutex<ClaimsStatus>>,
    ) -> Result<Claims, AuthorityError> {
        let running = store.get(&key(RUNNING)).await?;
        let running = running.and_then(|e| serde_json::from_slice(&e.value).ok());
        let (mut waiting, mut logged_until) = (BTreeMap::new(), None);
        for (at, record) in records(&*store, FOLDER).await? {
            match record.index {
                None => {
                    waiting.insert(at, Waiting { record, tried: Some(log.status().size) });
                }
                Some(_) => logged_until = logged_until.max(end_of_hour(&record)),
            }
        }
        status.lock().logged_until = logged_until;
        let (late, steady, days_settled) = (times.late.as_secs(), times.steady, None);
        Ok(Claims { store, log, late, steady, running, waiting, days_settled, status })
    }

    pub(super) async fn run(mut self, inner: Arc<Inner>) {
        let mut stop = inner.stop.subscribe();
        let (mut steps, mut problem) = (Steps::new(), String::new());
        loop {
            let round = tokio::select! {
                round = self.round(&inner, &mut steps) => round,
                () = stopped(&mut stop) => return,
            };
            let failed = round.err().map(|e| chain(&e)).unwrap_or_default();
            if failed != problem && !failed.is_empty() {
                tracing::warn!("the traffic of the mesh cannot be logged; retrying: {failed}");
            }
            problem = failed;
            tokio::select! {
                () = sleep(TICK) => {}
                () = stopped(&mut stop) => return,
            }
        }
    }

    async fn round(&mut self, inner: &Inner, steps: &mut Steps) -> Result<(), AuthorityError> {
        let stepped = steps.look().is_some_and(|by| by.abs() > STEP);
        let now = now();
        if let Some(hour) = self.due(now, stepped).await? {
            let connected = |name: &Name| inner.server.line(name).is_some();
            let awaited = inner.registry.awaited(hour, connected).await?;
            // A little earlier than `late`, so that it is not too late then.
            let last_call = (hour + HOUR + self.late).saturating_sub(2 * TICK.as_secs());
            if awaited == 0 || now >= last_call {
                let members = inner.registry.members(hour).await?;
                self.settle(&sum(hour, &members)).await?;
                self.run_in(now).await?;
                if steps.steady_for() >= self.steady {
                    self.prune(now).await?;
                }
            }
        }
        // The start of the process counts as setting the clock.
        if steps.steady_for() >= Duration::from_secs(self.late) {
            self.settle_days().await?;
        }
        self.append(now).await
    }

    /// The hour that is to be logged now, if there is one. `stepped`: the clock was just set.
    async fn due(&mut self, now: u64, stepped: bool) -> Result<Option<u64>, AuthorityError> {
        let current = now / HOUR * HOUR;
        match self.running {
            Some(hour) if hour == current => return Ok(None),
            Some(hour)
                if current.checked_sub(HOUR) == Some(hour)
                    && now - current <= self.late
                    && !stepped =>
            {
                if self.store.get(&period_key(HOUR, hour)).await?.is_none() {
                    return Ok(Some(hour));
                }
                // Logged before a crash, or before the clock was set back.
            }
            Some(hour) if hour < current => {
                let missed = (current - hour) / HOUR;
                self.status.lock().missed += missed;
                tracing::warn!(
                    from = hour,
                    to = current,
                    "the traffic of {missed} hours is not logged: the authority did not run at their end, or its clock was set"
                );
            }
            Some(_) | None => {}
        }
        self.run_in(now).await?;
        Ok(None)
    }

    /// All hours before this one are handled.
    async fn run_in(&mut self, now: u64) -> Result<(), Error> {
        let hour = now / HOUR * HOUR;
        put(&*self.store, RUNNING, hour).await?;
        self.running = Some(hour);
        Ok(())
    }

    /// Decides what is claimed for a period. If that was decided before, nothing changes.
    async fn settle(&mut self, period: &MeshPeriod) -> Result<(), AuthorityError> {
        let entry = period.entry();
        let body = &entry[2..];
        if let Err(e) = MeshPeriod::parse(body) {
            tracing::error!(start = period.start, "a period is invalid and is not logged: {e}");
            return Ok(());
        }
        let entry = String::from_utf8_lossy(body).into_owned();
        let record = Record { entry, index: None, from: self.log.status().size };
        let at = period_key(period.length, period.start);
        match self.store.create(&at, json(&record)).await {
            Ok(_) => {
                self.waiting.insert(at, Waiting { record, tried: None });
                Ok(())
            }
            Err(Error::Conflict { .. }) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Decides about complete days.
    async fn settle_days(&mut self) -> Result<(), AuthorityError> {
        let Some(today) = self.running.map(|hour| hour / DAY * DAY) else { return Ok(()) };
        if !self.waiting.is_empty() || self.days_settled == Some(today) {
            return Ok(());
        }
        let mut days: BTreeMap<u64, Vec<MeshPeriod>> = BTreeMap::new();
        for (_, record) in records(&*self.store, &folder(HOUR)).await? {
            if let (Some(period), Some(_)) = (record.period(), record.index) {
                days.entry(period.start / DAY * DAY).or_default().push(period);
            }
        }
        for (day, hours) in days.range(..today) {
            self.settle(&MeshPeriod::day(*day, hours)).await?;
        }
        self.days_settled = Some(today);
        Ok(())
    }

    /// Appends what is waiting.
    async fn append(&mut self, now: u64) -> Result<(), AuthorityError> {
        let log = self.log.status();
        self.status.lock().waiting = self.waiting.len();
        if self.waiting.is_empty() || log.problem.is_some() || log.waiting_since.is_some() {
            return Ok(());
        }
        let published = self.log.checkpoint().map(|c| c.unverified().size);
        let over = self.over(now);
        for at in self.waiting.keys().cloned().collect::<Vec<_>>() {
            let Some(waiting) = self.waiting.get_mut(&at) else { continue };
            let Some(period) = waiting.record.period() else {
                tracing::error!(record = %at, "a period in the store is unreadable and is not logged");
                self.waiting.remove(&at);
                continue;
            };
            let entry = period.entry();
            let mut index = None;
            if let Some(reached) = waiting.tried {
                if published < Some(reached) {
                    continue; // it cannot be found yet
                }
                let found = self.log.find(&entry, waiting.record.from).await;
                index = found.map_err(CaError::Log)?;
            }
            let end = period.start.saturating_add(period.length);
            if index.is_none() && end > now {
                tracing::warn!(
                    start = period.start,
                    "a period is not over by the corrected clock and is not logged"
                );
                update(&*self.store, &at, |_| Ok::<_, Error>(None)).await?;
                self.waiting.remove(&at);
                continue;
            }
            if index.is_none() {
                if end > over {
                    continue;
                }
                let appended = timeout(PATIENCE, self.log.append(entry)).await;
                waiting.tried = Some(self.log.status().size);
                match appended {
                    Ok(proof) => index = Some(proof.map_err(CaError::Log)?.index),
                    Err(_) => return Ok(()),
                }
            }
            self.logged(&at, &period, index).await?;
        }
        Ok(())
    }

    async fn logged(
        &mut self,
        at: &Key,
        period: &MeshPeriod,
        index: Option<u64>,
    ) -> Result<(), AuthorityError> {
        let Some(waiting) = self.waiting.get(at) else { return Ok(()) };
        let record = json(&Record { index, ..waiting.record.clone() });
        update(&*self.store, at, |_| Ok::<_, Error>(Some(record.clone()))).await?;
        self.waiting.remove(at);
        if period.length == HOUR {
            match self.store.create(&key(SINCE), json(&period.start)).await {
                Ok(_) | Err(Error::Conflict { .. }) => {}
                Err(e) => return Err(e.into()),
            }
        }
        let mut status = self.status.lock();
        status.logged += 1;
        status.waiting = self.waiting.len();
        if period.length == HOUR {
            status.logged_until = status.logged_until.max(Some(period.start + HOUR));
        }
        Ok(())
    }

    /// Until when periods are over by the clocks of the witnesses, or by this one if there are none.
    fn over(&self, now: u64) -> u64 {
        let policy = self.log.policy();
        if !policy.wants_witnesses() {
            return now;
        }
        let witnessed = self.log.checkpoint().and_then(|c| policy.witnessed(&c).ok()?.time());
        witnessed.map_or(0, |time| time.saturating_add(MAX_CLOCK_SKEW)).min(now)
    }

    /// Removes the hours of old days.
    async fn prune(&self, now: u64) -> Result<(), Error> {
        let oldest = period_key(HOUR, now.saturating_sub(HOURS) / DAY * DAY);
        for entry in self.store.list(&folder(HOUR)).await?.0 {
            if entry.key < oldest {
                update(&*self.store, &entry.key, |_| Ok::<_, Error>(None)).await?;
            }
        }
        Ok(())
    }
}

impl AuthorityHandle {
    /// Proves that these entries, and the trees of these sizes, are in the newest checkpoint that was published.
    pub async fn prove(
        &self,
        indexes: &[u64],
        old_sizes: &[u64],
    ) -> Result<Proven, AuthorityError> {
        Ok(self.inner.log.prove(indexes, old_sizes).await.map_err(CaError::Log)?)
    }

    /// Logs that a folder with this manifest is published. `from` is the size of a tree that the new one is proved to
    /// extend.
    pub async fn publish(&self, manifest: &[u8], from: u64) -> Result<Published, AuthorityError> {
        let log = &self.inner.log;
        let publication = Publication::new(now(), manifest);
        let append = async { log.append(publication.entry()).await.map_err(CaError::Log) };
        let proof = patiently(log, append).await?;
        let size = proof.checkpoint.unverified().size;
        let consistency = log.consistency(from, size).await.map_err(CaError::Log)?;
        Ok(Published { publication, proof, consistency })
    }

    /// The hours of the last 31 days and all days that are in the log and overlap a time, by start and then length. `to`
    /// is the last second.
    pub async fn claims(&self, from: u64, to: u64) -> Result<Vec<LoggedPeriod>, AuthorityError> {
        let mut logged = Vec::new();
        for (_, record) in records(&*self.inner.store, FOLDER).await? {
            if let (Some(period), Some(index)) = (record.period(), record.index)
                && period.start <= to
                && period.start.saturating_add(period.length) > from
            {
                logged.push(LoggedPeriod { index, period });
            }
        }
        logged.sort_by_key(|l| (l.period.start, l.period.length));
        Ok(logged)
    }

    /// The first hour that was ever logged.
    pub async fn claims_since(&self) -> Result<Option<u64>, AuthorityError> {
        let entry = self.inner.store.get(&key(SINCE)).await?;
        Ok(entry.and_then(|e| serde_json::from_slice(&e.value).ok()))
    }

    /// What is known of each node by its own word.
    pub fn reports(&self) -> BTreeMap<Name, Reported> {
        self.inner.registry.reports()
    }

    pub fn claims_status(&self) -> ClaimsStatus {
        let (reports, reports_rejected) = self.inner.registry.count_reports();
        ClaimsStatus { reports, reports_rejected, ..*self.inner.claims.lock() }
    }
}

/// Writes a period that is in the log into the store of a restored authority.
pub(super) async fn claim_again(
    store: &dyn Store,
    period: &MeshPeriod,
    index: u64,
) -> Result<(), Error> {
    let entry = String::from_utf8_lossy(&period.entry()[2..]).into_owned();
    let record = json(&Record { entry, index: Some(index), from: index });
    let at = period_key(period.length, period.start);
    // The first entry of a period counts; one that was decided but not logged before the backup does not.
    update(store, &at, |old| match old.and_then(|o| serde_json::from_slice::<Record>(o).ok()) {
        Some(Record { index: Some(_), .. }) => Ok::<_, Error>(old.map(<[u8]>::to_vec)),
        _ => Ok(Some(record.clone())),
    })
    .await
    .map(|_| ())
}

/// What is claimed for an hour.
fn sum(start: u64, members: &[Member]) -> MeshPeriod {
    let mut hour = MeshPeriod::new(start, HOUR);
    hour.nodes.members = count(members.len());
    for member in members {
        describe(&mut hour, member.report.as_deref());
        if let Some(of) = &member.totals {
            hour.nodes.reported += 1;
            hour.watched_seconds += u64::from(of.watched_seconds).min(HOUR);
            add(&mut hour, &of.totals);
        }
    }
    hour.tidy();
    hour
}

/// Adds what a node has counted. A node chooses names, and the log is public.
fn add(hour: &mut MeshPeriod, totals: &Totals) {
    for (level, count) in totals.by_level() {
        level_of(&mut hour.levels, level).add(amount(count));
    }
    for share in totals.shares.iter().filter(|share| share.kind.way.crosses_network()) {
        let of = amount(share.count);
        if share.kind.grade == Grade::Carried {
            hour.carried.add(of);
        }
        hour.protocols.push(Protocol {
            protocol: vocabulary::protocol(&share.kind.protocol).to_owned(),
            level: share.kind.level.to_string(),
            amount: of,
        });
    }
    for share in &totals.algorithms {
        let (of, negotiated) = (amount(share.count), &share.algorithm);
        if negotiated.post_quantum {
            hour.post_quantum.add(of);
        }
        let [version, key_exchange, cipher] = vocabulary::algorithm(negotiated).map(str::to_owned);
        let post_quantum = negotiated.post_quantum;
        hour.algorithms.push(Algorithm { version, key_exchange, cipher, post_quantum, amount: of });
    }
    let (gaps, missed) = (&totals.gaps, &mut hour.missed);
    missed.bytes = missed.bytes.saturating_add(gaps.missed_bytes);
    missed.resyncs = missed.resyncs.saturating_add(gaps.resyncs);
    missed.lost_packets = missed.lost_packets.saturating_add(gaps.lost_packets);
}

/// Adds what a node says about itself.
fn describe(hour: &mut MeshPeriod, report: Option<&NodeReport>) {
    let end = hour.start.saturating_add(hour.length);
    let modes = &mut hour.modes;
    let mode = match report.and_then(|r| r.mode) {
        Some(Mode::Strict) => &mut modes.strict,
        Some(Mode::Permissive) => &mut modes.permissive,
        Some(Mode::Observe) => &mut modes.observe,
        None => &mut modes.none,
    };
    *mode += 1;
    let Some(report) = report else { return };
    let of = &mut hour.exceptions;
    for Exception { explanation, .. } in &report.exceptions.good {
        let number = match explanation {
            Some(why) if why.until >= end => &mut of.explained,
            Some(_) => &mut of.expired,
            None => &mut of.unexplained,
        };
        *number = number.saturating_add(1);
    }
    of.unexplained = of.unexplained.saturating_add(report.more_exceptions);
    hour.releases.push(Release { version: release(&report.version), nodes: 1 });
}

/// The numbers of a version, without what a build adds: `0.1.0`. A node chooses this text, and the log is public.
fn release(version: &str) -> String {
    let numbers = version.split(['-', '+']).next().unwrap_or_default();
    let valid = |n: &str| (1..=5).contains(&n.len()) && n.bytes().all(|b| b.is_ascii_digit());
    match numbers.split('.').count() == 3 && numbers.split('.').all(valid) {
        true => numbers.to_owned(),
        false => wiretight_keys::claims::OTHER.to_owned(),
    }
}

fn level_of(levels: &mut Levels, level: Level) -> &mut Amount {
    match level {
        Level::Unknown => &mut levels.unknown,
        Level::Plaintext => &mut levels.plaintext,
        Level::Weak => &mut levels.weak,
        Level::Acceptable => &mut levels.acceptable,
        Level::Strong => &mut levels.strong,
    }
}

fn amount(of: Count) -> Amount {
    Amount { connections: of.connections, bytes: of.bytes }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// The end of a logged hour.
fn end_of_hour(record: &Record) -> Option<u64> {
    let period = record.period().filter(|p| p.length == HOUR)?;
    Some(period.start + HOUR)
}

/// The readable periods below a prefix.
async fn records(store: &dyn Store, prefix: &str) -> Result<Vec<(Key, Record)>, Error> {
    let is_period = |key: &Key| ![RUNNING, SINCE].contains(&key.as_str());
    let read = |Entry { key, value, .. }| {
        let record = super::registry::read::<Record>(&value)?;
        Some((key, record))
    };
    let entries = store.list(prefix).await?.0;
    Ok(entries.into_iter().filter(|e| is_period(&e.key)).filter_map(read).collect())
}

fn folder(length: u64) -> String {
    format!("{FOLDER}{length}-")
}

fn period_key(length: u64, start: u64) -> Key {
    // Keys are sorted as text: all of these have the same length until the year 2286.
    key(&format!("{}{start:010}", folder(length)))
}

fn key(text: &str) -> Key {
    Key::new(text).expect("a short key")
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("records are plain data")
}

async fn put(store: &dyn Store, at: &str, value: u64) -> Result<(), Error> {
    update(store, &key(at), |_| Ok::<_, Error>(Some(json(&value)))).await.map(|_| ())
}

#[cfg(test)]
mod tests;
