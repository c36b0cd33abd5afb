//! Following one log.
//!
//! A look takes the log's newest checkpoint; if it is believed, and consistent with the one of the last look, it is
//! kept. Then the entries are read that the table ([`table`](super::table)) lacks. What is kept is always of one history,
//! so that a look which was cut off by a crash is taken up by the next. Alerts are on the disk before the entry that they
//! are of is in the table: a crash may repeat one, and loses none.

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

/// Entries that are held in memory at a time.
const CHUNK: u64 = 2048;
/// Names of a certificate that an alert lists.
const LISTED: usize = 16;

/// How a look ended.
#[derive(Debug, Default)]
pub struct Look {
    /// The number of alerts.
    pub alerts: usize,
    /// The entries that were read.
    pub entries: u64,
    /// Why what the log has signed was not read to its end.
    pub problem: Option<String>,
    /// The log's conduct is what an alert was about: it is not followed any further meanwhile.
    pub misconduct: bool,
}

impl Look {
    /// Whether all that the log has signed was read, and there was nothing to tell.
    pub fn is_quiet(&self) -> bool {
        self.alerts == 0 && self.problem.is_none() && !self.misconduct
    }
}

/// A log that is followed.
pub struct Follower {
    origin: String,
    policy: Policy,
    reader: Option<Reader>,
    shares_place: bool,
    watched: Arc<Watched>,
    dir: PrivateDir,
    evidence: Evidence,
    /// What the last believed checkpoint was.
    last: Option<SignedCheckpoint>,
    table: Table,
    /// The list that was read last.
    expected: Option<Arc<Expected>>,
    /// What comes after the keys in it.
    chains: Chains,
    progress: Arc<AtomicU64>,
}

/// What stops a look.
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
    /// Takes up what is in `dir`, or begins.
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

    /// The log's name.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// What is known of the log.
    pub fn last(&self) -> Option<&SignedCheckpoint> {
        self.last.as_ref()
    }

    /// When the witnesses had last seen what is known of it.
    pub fn witnessed_at(&self) -> Option<u64> {
        self.policy.witnessed(self.last.as_ref()?).ok()?.time()
    }

    /// The entries that were read and judged.
    pub fn read(&self) -> u64 {
        self.table.len()
    }

    /// Counts what is read, also while a look lasts.
    pub fn progress(&self) -> Arc<AtomicU64> {
        self.progress.clone()
    }

    /// Looks at the log once, at `now` (seconds since 1970).
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

    /// Says that what the log signs cannot be read, which is since `since`.
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

    /// Reads the list of expected keys. When that is not possible, the list of before counts.
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
                    Some(_) => format!("{}: the list of before is used", chain(&error)),
                    None => format!("{}: no entry is read until it is there", chain(&error)),
                };
                self.tell(AlertKind::BadExpectedKeys, detail, now, alarm, look);
                Some(error.into())
            }
        }
    }

    /// Takes a list, and finds what comes after its keys.
    async fn chains_after(&mut self, expected: Expected) -> Result<(), MonitorError> {
        let (dir, expected) = (self.dir.path().to_owned(), Arc::new(expected));
        let list = expected.clone();
        let read = tokio::task::spawn_blocking(move || Chains::read(&dir, &list));
        self.chains = read.await.map_err(|_| MonitorError::Interrupted)??;
        self.expected = Some(expected);
        Ok(())
    }

    /// Takes the newest checkpoint, if nothing speaks against it.
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
            let detail = format!("this is the log {}, and {} was followed", new.origin, old.origin);
            alerts.push(self.alert(AlertKind::Fork, detail, now));
            return Ok(None);
        }
        if new.size < old.size {
            let detail =
                two("the log has become smaller (or something between serves an old copy)");
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
            let detail = two(
                "the log shows two histories: the tree of now does not begin with that of before",
            );
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

    /// From here on, this is the log's history.
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
            // What was believed before is read on, whatever is shown now.
            None => reader.tree(last.unverified()).await?,
        };
        let mut chunk = CHUNK;
        while self.table.len() < tree.size() {
            let start = self.table.len();
            // To the end of a bundle, so that each is fetched once.
            let end = tree.size().min((start + chunk) / WIDTH * WIDTH);
            let entries = match tree.entries(start..end).await {
                Ok(entries) => entries,
                // What comes before the file that is not to be had is read all the same.
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
                rows.push(Row { index, what: What::of(parsed) });
            }
            alarm.keep().map_err(MonitorError::from)?;
            self.table.append(&rows).map_err(MonitorError::from)?;
            self.progress.fetch_add(rows.len() as u64, Relaxed);
        }
        Ok(())
    }

    /// Notes that a certificate's key comes after another.
    fn follow_link(&mut self, entry: &Result<Entry, X509Error>) {
        let (Ok(Entry::Certificate(of)), Some(expected)) = (entry, self.expected.as_deref()) else {
            return;
        };
        if let Some((before, name)) = of.follows.zip(identity(&of.names)) {
            self.chains.follow(expected, name, before, of.key);
        }
    }

    /// What there is to say about an entry.
    fn judge(&self, index: u64, entry: &Result<Entry, X509Error>, now: u64) -> Option<Alert> {
        let certificate = match entry {
            Ok(Entry::Certificate(certificate)) => certificate,
            Ok(_) => return None,
            Err(error) => {
                let detail = format!(
                    "entry {index} cannot be read, so whom it is for is unknown: {}",
                    shown(&chain(error))
                );
                let alert = self.alert(AlertKind::MalformedEntry, detail, now);
                return Some(Alert { index: Some(index), ..alert });
            }
        };
        let (watch, expected) = (self.watched.watch.as_slice(), self.expected.as_deref());
        let is_watched = |name: &Name| match watch {
            [] => expected.is_some(),
            // Whoever can sign certificates can sign them for every watched name.
            _ if certificate.is_ca => true,
            // Nobody can say which programs take it, and for whom.
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

    fn unexpected(&self, index: u64, names: &[&str], of: &LoggedCertificate, now: u64) -> Alert {
        let key = hex(&of.key);
        let what = if of.is_ca { "an authority's certificate" } else { "a certificate" };
        let name = shown(names[0]);
        let more = match names.len() - 1 {
            0 => String::new(),
            n => format!(" and {n} more names"),
        };
        let detail = format!(
            "{what} for {name:?}{more} was issued with a key that is not expected, sha256:{key} (entry {index})"
        );
        Alert {
            index: Some(index),
            name: Some(name),
            names: names.iter().take(LISTED).map(|n| shown(n)).collect(),
            key: Some(key),
            ..self.alert(AlertKind::UnexpectedCertificate, detail, now)
        }
    }

    /// That the quorum has been silent for too long.
    fn silence(&self, now: u64) -> Option<String> {
        let time = self.witnessed_at()?;
        let (silent, allowed) = (now.saturating_sub(time), self.watched.max_silence.as_secs());
        (silent > allowed).then(|| format!(
            "the witnesses have seen nothing of the log for {silent} s, and {allowed} s are allowed: is it down, are they, or is it kept from us?"
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

/// The checkpoint of the last look.
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

/// The alert that a log cannot be read, with how many of its entries were, and how many it is known to have.
pub(super) fn blind(
    origin: &str,
    read: u64,
    signed: u64,
    since: u64,
    problem: &str,
    now: u64,
) -> Alert {
    let detail = format!(
        "the monitor is blind: for {} s it could not read what the log has signed ({read} of at least {signed} entries were read), so nobody is told of certificates since. {problem}",
        now.saturating_sub(since)
    );
    Alert::new(AlertKind::Blind, origin, detail, now)
}
