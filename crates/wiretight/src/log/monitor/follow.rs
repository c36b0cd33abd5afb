//! Follows one log.
//!
//! A check reads the log's newest checkpoint. If the policy accepts it, and it is consistent with the last one, it is
//! saved. Then the entries that the table ([`table`](super::table)) lacks are read. Everything saved belongs to one
//! history, so the next check continues after a crash. Alerts are saved before the entry they are about is in the table:
//! a crash may repeat an alert, but loses none.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use wiretight_keys::X509Error;
use wiretight_keys::logged::{Entry, LoggedCertificate};
use wiretight_keys::token::hex;
use wiretight_tlog::note::MAX_NOTE;
use wiretight_tlog::tile::WIDTH;
use wiretight_tlog::tree::verify_consistency;
use wiretight_tlog::{Policy, Refused, SignedCheckpoint};

use super::alarm::Alarm;
use super::chain::{Chains, identity};
use super::expect::{Expected, Watch};
use super::name::{Name, shown};
use super::table::{Row, Table, What};
use super::{Alert, AlertKind, CHECKPOINT, MonitorError, Source, Watched};
use crate::log::evidence::{Evidence, Kind};
use crate::log::reader::{ReadError, Reader, Tree};
use crate::logging::chain;
use crate::private_dir::PrivateDir;

/// Entries in memory at a time.
const CHUNK: u64 = 2048;
/// Names of a certificate that an alert lists.
const LISTED: usize = 16;

/// The result of a check.
#[derive(Debug, Default)]
pub struct Look {
    /// The number of alerts.
    pub alerts: usize,
    /// The number of entries that were read.
    pub entries: u64,
    /// Why the log was not read to its signed size.
    pub problem: Option<String>,
    /// An alert was about the log itself, so its new checkpoint was not accepted.
    pub misconduct: bool,
}

impl Look {
    /// Whether everything was read and there was no alert.
    pub fn is_quiet(&self) -> bool {
        self.alerts == 0 && self.problem.is_none() && !self.misconduct
    }
}

pub struct Follower {
    origin: String,
    policy: Policy,
    reader: Option<Reader>,
    shares_place: bool,
    watched: Arc<Watched>,
    dir: PrivateDir,
    evidence: Evidence,
    /// The last accepted checkpoint.
    last: Option<SignedCheckpoint>,
    table: Table,
    /// The last list of expected keys.
    expected: Option<Arc<Expected>>,
    /// The successors of those keys.
    chains: Chains,
    progress: Arc<AtomicU64>,
}

/// What stops a check: an error of the monitor or of the log.
enum Failed {
    Here(MonitorError),
    There(ReadError),
}

impl From<MonitorError> for Failed {
    fn from(error: MonitorError) -> Failed {
        Failed::Here(error)
    }
}

impl From<ReadError> for Failed {
    fn from(error: ReadError) -> Failed {
        Failed::There(error)
    }
}

impl Follower {
    /// Continues with the state in `dir`, or creates it.
    pub fn open(
        dir: &Path,
        source: Source,
        watched: Arc<Watched>,
    ) -> Result<Follower, MonitorError> {
        let dir = PrivateDir::open(dir)?;
        let last = checkpoint_in(&dir)?;
        let size = last.as_ref().map_or(0, |last| last.unverified().size);
        let table = Table::open(dir.path(), size)?;
        let evidence = Evidence::open(&dir.path().join("evidence"))?;
        let Source { origin, policy, reader, shares_place } = source;
        Ok(Follower {
            origin,
            policy,
            reader,
            shares_place,
            watched,
            dir,
            evidence,
            last,
            table,
            expected: None,
            chains: Chains::default(),
            progress: Arc::default(),
        })
    }

    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The last accepted checkpoint.
    pub fn last(&self) -> Option<&SignedCheckpoint> {
        self.last.as_ref()
    }

    /// When the witnesses had cosigned the last accepted checkpoint.
    pub fn witnessed_at(&self) -> Option<u64> {
        self.policy.witnessed(self.last.as_ref()?).ok()?.time()
    }

    /// The number of entries that were read.
    pub fn read(&self) -> u64 {
        self.table.len()
    }

    /// A counter of entries that is updated during a check.
    pub fn progress(&self) -> Arc<AtomicU64> {
        self.progress.clone()
    }

    /// Checks the log once, at `now` (seconds since 1970).
    pub async fn look(&mut self, now: u64, alarm: &Alarm) -> Look {
        let mut look = Look::default();
        let before = self.table.len();
        let looked = self.look_at_all(now, alarm, &mut look).await;
        let problem = match looked {
            Ok(()) => None,
            Err(Failed::There(error)) if error.is_damage() => {
                let problem = chain(&error);
                self.tell(AlertKind::Damaged, problem.clone(), now, alarm, &mut look);
                Some(problem)
            }
            Err(Failed::There(error)) => Some(chain(&error)),
            Err(Failed::Here(error)) => Some(chain(&error)),
        };
        if let Some(silent) = self.silence(now) {
            look.misconduct = true;
            self.tell(AlertKind::Stalled, silent, now, alarm, &mut look);
        }
        look.problem = problem;
        look.entries = self.table.len() - before;
        look
    }

    /// The alert that the log has been unreadable since `since`.
    pub fn blind(&self, since: u64, problem: &str, now: u64) -> Alert {
        let signed = self.last.as_ref().map_or(0, |last| last.unverified().size);
        blind(&self.origin, self.table.len(), signed, since, problem, now)
    }

    async fn look_at_all(
        &mut self,
        now: u64,
        alarm: &Alarm,
        look: &mut Look,
    ) -> Result<(), Failed> {
        let unread = self.expectations(now, alarm, look).await;
        if let (Some(error), None) = (unread, &self.expected) {
            return Err(error.into());
        }
        let Some(reader) = self.reader.clone() else { return Err(MonitorError::NoUrl.into()) };
        let mut alerts = Vec::new();
        let newest = self.newest(&reader, now, &mut alerts).await;
        look.misconduct = !alerts.is_empty();
        for alert in alerts {
            look.alerts += 1;
            alarm.tell(alert);
        }
        alarm.keep().map_err(MonitorError::from)?;
        self.catch_up(&reader, newest?, now, alarm, look).await
    }

    /// Reads the list of expected keys. If that fails, the previous list stays in use.
    async fn expectations(
        &mut self,
        now: u64,
        alarm: &Alarm,
        look: &mut Look,
    ) -> Option<MonitorError> {
        let path = self.watched.expect.as_ref()?;
        match super::expect::Expected::read_patiently(path).await {
            Ok(expected) if self.expected.as_deref() == Some(&expected) => None,
            Ok(expected) => self.chains_after(expected).await.err(),
            Err(error) => {
                let detail = match self.expected {
                    Some(_) => format!("{}. The previous list stays in use.", chain(&error)),
                    None => {
                        format!("{}. No entries are read until the list is valid.", chain(&error))
                    }
                };
                self.tell(AlertKind::BadExpectedKeys, detail, now, alarm, look);
                Some(error.into())
            }
        }
    }

    /// Uses a new list, and finds the successors of its keys.
    async fn chains_after(&mut self, expected: Expected) -> Result<(), MonitorError> {
        let (dir, expected) = (self.dir.path().to_owned(), Arc::new(expected));
        let list = expected.clone();
        let read = tokio::task::spawn_blocking(move || Chains::read(&dir, &list));
        self.chains = read.await.map_err(|_| MonitorError::Interrupted)??;
        self.expected = Some(expected);
        Ok(())
    }

    /// Reads the newest checkpoint, and saves it if it is valid and consistent.
    async fn newest(
        &mut self,
        reader: &Reader,
        now: u64,
        alerts: &mut Vec<Alert>,
    ) -> Result<Option<Tree>, Failed> {
        let signed = reader.latest().await?;
        let believed = self.policy.witnessed(&signed);
        let witnessed = match believed.and_then(|w| w.fresh(now, u64::MAX).map(|()| w)) {
            Ok(witnessed) => witnessed,
            Err(Refused::UnknownLog { .. }) if self.shares_place => {
                return Err(MonitorError::NoUrl.into());
            }
            Err(refused) => {
                alerts.push(self.alert(AlertKind::NotWitnessed, refused.to_string(), now));
                return Ok(None);
            }
        };
        let new = witnessed.checkpoint();
        let Some(last) = &self.last else {
            let tree = reader.tree(new).await?;
            self.keep(signed)?;
            return Ok(Some(tree));
        };
        let old = last.unverified();
        let two = |how: &str| {
            format!(
                "{how}: before, {} entries with the root {}; now, {} with the root {}",
                old.size, old.root, new.size, new.root
            )
        };
        if new.origin != old.origin {
            let detail = format!("the log is now {}, but was {} before", new.origin, old.origin);
            alerts.push(self.alert(AlertKind::Fork, detail, now));
            return Ok(None);
        }
        if new.size < old.size {
            let detail =
                two("the log has become smaller, or a cache in between serves an old copy");
            alerts.push(self.disagreement(
                AlertKind::Rollback,
                Kind::Rollback,
                last,
                &signed,
                detail,
                now,
            )?);
            return Ok(None);
        }
        if new.size == old.size && new.root != old.root {
            let detail = two("the log shows two histories");
            alerts.push(self.disagreement(
                AlertKind::Fork,
                Kind::Fork,
                last,
                &signed,
                detail,
                now,
            )?);
            return Ok(None);
        }
        let tree = reader.tree(new).await?;
        let proof = tree.consistency(old.size).await?;
        if verify_consistency((old.size, old.root), (new.size, new.root), &proof).is_err() {
            let detail =
                two("the log shows two histories: the new tree does not extend the old one");
            alerts.push(self.disagreement(
                AlertKind::Fork,
                Kind::Fork,
                last,
                &signed,
                detail,
                now,
            )?);
            return Ok(None);
        }
        self.keep(signed)?;
        Ok(Some(tree))
    }

    /// Saves an accepted checkpoint.
    fn keep(&mut self, signed: SignedCheckpoint) -> Result<(), MonitorError> {
        if self.last.as_ref() != Some(&signed) {
            self.dir.write(CHECKPOINT, signed.to_string().as_bytes())?;
            self.last = Some(signed);
        }
        Ok(())
    }

    /// Reads the entries that the table lacks.
    async fn catch_up(
        &mut self,
        reader: &Reader,
        tree: Option<Tree>,
        now: u64,
        alarm: &Alarm,
        look: &mut Look,
    ) -> Result<(), Failed> {
        let Some(last) = &self.last else { return Ok(()) };
        if self.table.len() >= last.unverified().size {
            return Ok(());
        }
        let tree = match tree {
            Some(tree) => tree,
            // The new checkpoint was not accepted: continue with the last accepted one.
            None => reader.tree(last.unverified()).await?,
        };
        let mut chunk = CHUNK;
        while self.table.len() < tree.size() {
            let start = self.table.len();
            // To the end of a bundle, so that each is fetched once.
            let end = tree.size().min((start + chunk) / WIDTH * WIDTH);
            let entries = match tree.entries(start..end).await {
                Ok(entries) => entries,
                // Smaller steps, to read everything before the file that is unavailable.
                Err(_) if chunk > WIDTH => {
                    chunk = WIDTH;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            chunk = (chunk * 2).min(CHUNK);
            let mut rows = Vec::new();
            for (index, entry) in (start..).zip(entries) {
                let parsed = Entry::parse(&entry);
                self.follow_link(&parsed);
                if let Some(alert) = self.judge(index, &parsed, now) {
                    look.alerts += 1;
                    alarm.tell(alert);
                }
                let what = What::of(parsed);
                if self.table.contradicts(&what) {
                    look.alerts += 1;
                    alarm.tell(self.contradiction(index, &what, now));
                }
                rows.push(Row { index, what });
            }
            alarm.keep().map_err(MonitorError::from)?;
            self.table.append(&rows).map_err(MonitorError::from)?;
            self.progress.fetch_add(rows.len() as u64, Relaxed);
        }
        Ok(())
    }

    /// Records the link of a certificate's key to its predecessor.
    fn follow_link(&mut self, entry: &Result<Entry, X509Error>) {
        let (Ok(Entry::Certificate(of)), Some(expected)) = (entry, self.expected.as_deref()) else {
            return;
        };
        if let Some((before, name)) = of.follows.zip(identity(&of.names)) {
            self.chains.follow(expected, name, before, of.key);
        }
    }

    /// The alert about an entry, if there is one.
    fn judge(&self, index: u64, entry: &Result<Entry, X509Error>, now: u64) -> Option<Alert> {
        let certificate = match entry {
            Ok(Entry::Certificate(certificate)) => certificate,
            Ok(_) => return None,
            Err(error) => {
                let detail = format!(
                    "entry {index} is malformed, so it is unknown which names it is for: {}",
                    shown(&chain(error))
                );
                let alert = self.alert(AlertKind::MalformedEntry, detail, now);
                return Some(Alert { index: Some(index), ..alert });
            }
        };
        let (watch, expected) = (self.watched.watch.as_slice(), self.expected.as_deref());
        let is_watched = |name: &Name| match watch {
            [] => expected.is_some(),
            // A CA can sign certificates for every watched name.
            _ if certificate.is_ca => true,
            // It is unknown which identity programs map a subject to.
            watch if matches!(name, Name::Subject(_)) => !watch.is_empty(),
            watch => Watch::any(watch, name),
        };
        let is_expected = |name: &Name| {
            let (key, is_ca) = (&certificate.key, certificate.is_ca);
            expected.is_some_and(|list| {
                list.has(name, key, is_ca) || (!is_ca && self.chains.has(list, name, key))
            })
        };
        let mut seen = HashSet::new();
        let names = certificate.names.iter().filter_map(|text| {
            let name = Name::of_certificate(text)?;
            (is_watched(&name) && !is_expected(&name) && seen.insert(name)).then_some(text.as_str())
        });
        let names: Vec<&str> = names.collect();
        (!names.is_empty()).then(|| self.unexpected(index, &names, certificate, now))
    }

    fn contradiction(&self, index: u64, what: &What, now: u64) -> Alert {
        let period = match what {
            What::Period { start, length, .. } => format!("{length} s from {start} (Unix time)"),
            _ => "a period".into(),
        };
        let detail = format!(
            "entry {index} contradicts an earlier entry about the traffic of the same {period}. The first entry counts. The log's operator must explain the second."
        );
        let alert = self.alert(AlertKind::ContradictoryClaim, detail, now);
        Alert { index: Some(index), ..alert }
    }

    fn unexpected(&self, index: u64, names: &[&str], of: &LoggedCertificate, now: u64) -> Alert {
        let key = hex(&of.key);
        let what = if of.is_ca { "a CA certificate" } else { "a certificate" };
        let name = shown(names[0]);
        let more = match names.len() - 1 {
            0 => String::new(),
            n => format!(" and {n} more names"),
        };
        let detail = format!(
            "{what} for {name:?}{more} was issued with an unexpected key, sha256:{key} (entry {index})"
        );
        Alert {
            index: Some(index),
            name: Some(name),
            names: names.iter().take(LISTED).map(|n| shown(n)).collect(),
            key: Some(key),
            ..self.alert(AlertKind::UnexpectedCertificate, detail, now)
        }
    }

    /// The text of an alert if the quorum has not cosigned for too long.
    fn silence(&self, now: u64) -> Option<String> {
        let time = self.witnessed_at()?;
        let (silent, allowed) = (now.saturating_sub(time), self.watched.max_silence.as_secs());
        (silent > allowed).then(|| format!(
            "the witnesses have cosigned nothing new for {silent} s, longer than the allowed {allowed} s. The log or the witnesses are down, or new checkpoints are withheld from this monitor."
        ))
    }

    fn tell(&self, kind: AlertKind, detail: String, now: u64, alarm: &Alarm, look: &mut Look) {
        look.alerts += 1;
        alarm.tell(self.alert(kind, detail, now));
    }

    fn alert(&self, kind: AlertKind, detail: String, now: u64) -> Alert {
        Alert::new(kind, &self.origin, detail, now)
    }

    fn disagreement(
        &self,
        kind: AlertKind,
        how: Kind,
        before: &SignedCheckpoint,
        after: &SignedCheckpoint,
        detail: String,
        now: u64,
    ) -> Result<Alert, MonitorError> {
        let (before, new) = (before.to_string(), after.unverified());
        let evidence = self.evidence.keep(how, new, &before, after.to_string().as_bytes(), now)?;
        Ok(Alert { evidence, ..self.alert(kind, detail, now) })
    }
}

/// The saved checkpoint.
pub(super) fn checkpoint_in(dir: &PrivateDir) -> Result<Option<SignedCheckpoint>, MonitorError> {
    let path = dir.path().join(CHECKPOINT);
    let damaged = |detail: String| MonitorError::Damaged { path, detail };
    let Some(bytes) = dir.read(CHECKPOINT, MAX_NOTE)? else { return Ok(None) };
    let parsed = match std::str::from_utf8(&bytes) {
        Ok(text) => SignedCheckpoint::parse(text).map_err(|e| e.to_string()),
        Err(e) => Err(e.to_string()),
    };
    parsed.map(Some).map_err(damaged)
}

/// The alert that a log is unreadable. `read` of at least `signed` entries were read.
pub(super) fn blind(
    origin: &str,
    read: u64,
    signed: u64,
    since: u64,
    problem: &str,
    now: u64,
) -> Alert {
    let detail = format!(
        "the monitor is blind: for {} s it could not read everything that the log has signed ({read} of at least {signed} entries were read). It cannot report newer certificates. {problem}",
        now.saturating_sub(since)
    );
    Alert::new(AlertKind::Blind, origin, detail, now)
}
