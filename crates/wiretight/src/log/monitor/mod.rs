//! A monitor: follows a log, and says when something is not as it should be.
//!
//! Witnesses see that a log only appends; they do not look at what. A monitor reads every entry, so that whoever owns a
//! name learns of each certificate for it. And it looks at the log's own conduct: that each tree begins with the last one
//! seen, that it does not shrink, that it is cosigned and goes on being so.
//!
//! A round takes the log's newest checkpoint; if it is believed, and consistent with the one of the last round, it is
//! kept ([`Monitor::round`]). Then the entries are read that the table ([`table`]) lacks. What is kept is always of one
//! history, so that a round which was cut off by a crash is taken up by the next. Alerts go out before the entry that
//! they are of is in the table: a crash may repeat one, and loses none.

pub mod alarm;
pub mod expect;
pub mod table;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use wiretight_keys::SpiffeId;
use wiretight_keys::logged::{Entry, LoggedCertificate};
use wiretight_keys::token::hex;
use wiretight_tlog::note::MAX_NOTE;
use wiretight_tlog::tree::verify_consistency;
use wiretight_tlog::{Policy, SignedCheckpoint};

use self::expect::{Expected, Watch};
use self::table::{Row, Table, TableError, What};
use super::evidence::{Evidence, Kind};
use super::reader::{ReadError, Reader, Tree};
use crate::daemon::chain;
use crate::private_dir::{FileError, Lock, PrivateDir};

const CHECKPOINT: &str = "checkpoint";
/// Entries that are held in memory at a time.
const CHUNK: u64 = 2048;

/// Why a monitor does not start, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// Another process.
    #[error("another monitor runs with {}", .0.display())]
    InUse(PathBuf),
    /// The checkpoint of the last round is not one.
    #[error(
        "{} is damaged ({detail}): restore it, or remove it to follow the log from its beginning (a fork before now would then not be seen)",
        .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// The disk.
    #[error(transparent)]
    File(#[from] FileError),
    /// The table.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The list of what is expected.
    #[error(transparent)]
    Expect(#[from] expect::ExpectError),
}

/// What is looked for.
pub struct Settings {
    /// Which log, and which witnesses.
    pub policy: Policy,
    /// Where the log is.
    pub reader: Reader,
    /// How long the quorum may have seen nothing new.
    pub max_silence: Duration,
    /// The keys that are expected: a file, read anew each round.
    pub expect: Option<PathBuf>,
    /// The names that are watched; all if there are none, and a list of what is expected.
    pub watch: Vec<Watch>,
}

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AlertKind {
    /// A certificate for a watched name with a key that is not expected.
    UnexpectedCertificate,
    /// An entry that says that it is a certificate, and is none.
    MalformedEntry,
    /// Two trees that do not begin alike.
    Fork,
    /// A smaller tree than before.
    Rollback,
    /// Nothing new for too long.
    Stalled,
    /// A checkpoint that the policy does not believe.
    NotWitnessed,
    /// Files that are not what the checkpoint says.
    Damaged,
}

impl AlertKind {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            AlertKind::UnexpectedCertificate => "unexpected-certificate",
            AlertKind::MalformedEntry => "malformed-entry",
            AlertKind::Fork => "fork",
            AlertKind::Rollback => "rollback",
            AlertKind::Stalled => "stalled",
            AlertKind::NotWitnessed => "not-witnessed",
            AlertKind::Damaged => "damaged",
        }
    }
}

/// An alert, as the webhook gets it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Alert {
    /// What is wrong.
    pub kind: AlertKind,
    /// With which log.
    pub log: String,
    /// For people.
    pub detail: String,
    /// When it was seen (seconds since 1970).
    pub time: u64,
    /// The entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
    /// The name that the certificate is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// SHA-256 of its SubjectPublicKeyInfo, in hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The file with both checkpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evidence: Option<PathBuf>,
}

/// How a round ended.
#[derive(Debug, Default)]
pub struct Round {
    /// The number of alerts.
    pub alerts: usize,
    /// Why the log could not be read this time, without fault of its contents.
    pub unreachable: Option<ReadError>,
    /// The entries that were read.
    pub entries: u64,
}

/// A monitor.
pub struct Monitor {
    settings: Settings,
    dir: PrivateDir,
    evidence: Evidence,
    /// What the last believed checkpoint was.
    last: Option<SignedCheckpoint>,
    table: Table,
    _lock: Lock,
}

impl Monitor {
    /// Takes up what is in `dir`, or begins.
    pub fn open(dir: &Path, settings: Settings) -> Result<Monitor, MonitorError> {
        let dir = PrivateDir::open(dir)?;
        let lock = dir.lock("lock")?.ok_or_else(|| MonitorError::InUse(dir.path().to_owned()))?;
        let damaged =
            |detail: String| MonitorError::Damaged { path: dir.path().join(CHECKPOINT), detail };
        let last = match dir.read(CHECKPOINT, MAX_NOTE)? {
            None => None,
            Some(bytes) => {
                let text = std::str::from_utf8(&bytes).map_err(|e| damaged(e.to_string()))?;
                Some(SignedCheckpoint::parse(text).map_err(|e| damaged(e.to_string()))?)
            }
        };
        let size = last.as_ref().map_or(0, |last| last.unverified().size);
        let table = Table::open(dir.path(), size)?;
        let evidence = Evidence::open(&dir.path().join("evidence"))?;
        Ok(Monitor { settings, dir, evidence, last, table, _lock: lock })
    }

    /// Looks at the log once, at `now` (seconds since 1970); `tell` gets each alert.
    pub async fn round(
        &mut self,
        now: u64,
        tell: &mut impl AsyncFnMut(Alert),
    ) -> Result<Round, MonitorError> {
        let expected = match &self.settings.expect {
            Some(path) => Some(Expected::read(path)?),
            None => None,
        };
        let mut round = Round::default();
        let mut alerts = Vec::new();
        let before = self.table.len();
        let looked = match self.newest(now, &mut alerts).await {
            Ok(tree) => {
                for alert in alerts.drain(..) {
                    round.alerts += 1;
                    tell(alert).await;
                }
                self.catch_up(tree, expected.as_ref(), now, &mut round, tell).await
            }
            Err(failed) => Err(failed),
        };
        match looked {
            Ok(()) => {}
            Err(Failed::Here(error)) => return Err(error),
            Err(Failed::There(error)) if error.is_damage() => {
                alerts.push(self.alert(AlertKind::Damaged, chain(&error), now));
            }
            Err(Failed::There(error)) => round.unreachable = Some(error),
        }
        alerts.extend(self.stalled(now));
        for alert in alerts {
            round.alerts += 1;
            tell(alert).await;
        }
        round.entries = self.table.len() - before;
        Ok(round)
    }

    /// What is known of the log.
    pub fn last(&self) -> Option<&SignedCheckpoint> {
        self.last.as_ref()
    }

    /// Takes the newest checkpoint, if nothing speaks against it.
    async fn newest(&mut self, now: u64, alerts: &mut Vec<Alert>) -> Result<Option<Tree>, Failed> {
        let signed = self.settings.reader.latest().await?;
        let believed = self.settings.policy.witnessed(&signed);
        let witnessed = match believed.and_then(|w| w.fresh(now, u64::MAX).map(|()| w)) {
            Ok(witnessed) => witnessed,
            Err(refused) => {
                alerts.push(self.alert(AlertKind::NotWitnessed, refused.to_string(), now));
                return Ok(None);
            }
        };
        let new = witnessed.checkpoint();
        let Some(last) = &self.last else {
            let tree = self.settings.reader.tree(new).await?;
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
        let tree = self.settings.reader.tree(new).await?;
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
        tree: Option<Tree>,
        expected: Option<&Expected>,
        now: u64,
        round: &mut Round,
        tell: &mut impl AsyncFnMut(Alert),
    ) -> Result<(), Failed> {
        let Some(last) = &self.last else { return Ok(()) };
        if self.table.len() >= last.unverified().size {
            return Ok(());
        }
        let tree = match tree {
            Some(tree) => tree,
            // What was believed before is read on, whatever is shown now.
            None => self.settings.reader.tree(last.unverified()).await?,
        };
        while self.table.len() < tree.size() {
            let start = self.table.len();
            let end = tree.size().min(start + CHUNK);
            let mut rows = Vec::new();
            for (index, entry) in (start..).zip(tree.entries(start..end).await?) {
                let parsed = Entry::parse(&entry);
                for alert in self.judge(index, &parsed, expected, now) {
                    round.alerts += 1;
                    tell(alert).await;
                }
                rows.push(Row { index, what: What::of(parsed) });
            }
            self.table.append(&rows).map_err(MonitorError::from)?;
        }
        Ok(())
    }

    /// What there is to say about an entry.
    fn judge(
        &self,
        index: u64,
        entry: &Result<Entry, wiretight_keys::X509Error>,
        expected: Option<&Expected>,
        now: u64,
    ) -> Vec<Alert> {
        let certificate = match entry {
            Ok(Entry::Certificate(certificate)) => certificate,
            Ok(_) => return Vec::new(),
            Err(error) => {
                let detail = format!(
                    "entry {index} cannot be read, so whom it is for is unknown: {}",
                    chain(error)
                );
                let alert = self.alert(AlertKind::MalformedEntry, detail, now);
                return vec![Alert { index: Some(index), ..alert }];
            }
        };
        // Who can sign certificates can sign them for every watched name.
        let watched = |name: &str| match self.settings.watch.as_slice() {
            [] => expected.is_some(),
            watch => certificate.is_ca || watch.iter().any(|watch| watch.is_for(name)),
        };
        let is_expected = |name: &str| expected.is_some_and(|e| e.has(name, &certificate.key));
        let wrong = |names: &[&str]| {
            names.iter().any(|n| watched(n)) && !names.iter().any(|n| is_expected(n))
        };
        let identities = identities(&certificate.names);
        let alerts = identities.iter().filter(|(_, names)| wrong(names));
        alerts.map(|(name, _)| self.unexpected(index, name, certificate, now)).collect()
    }

    fn unexpected(&self, index: u64, name: &str, of: &LoggedCertificate, now: u64) -> Alert {
        let key = hex(&of.key);
        let what = if of.is_ca { "an authority's certificate" } else { "a certificate" };
        let detail = format!(
            "{what} for {name:?} was issued with a key that is not expected, sha256:{key} (entry {index})"
        );
        let alert = self.alert(AlertKind::UnexpectedCertificate, detail, now);
        Alert { index: Some(index), name: Some(name.to_owned()), key: Some(key), ..alert }
    }

    /// Whether the quorum has been silent for too long.
    fn stalled(&self, now: u64) -> Option<Alert> {
        let last = self.last.as_ref()?;
        let time = self.settings.policy.witnessed(last).ok()?.time()?;
        let (silent, allowed) = (now.saturating_sub(time), self.settings.max_silence.as_secs());
        let detail = format!(
            "the witnesses have seen nothing of the log for {silent} s, and {allowed} s are allowed: is it down, are they, or is it kept from us?"
        );
        (silent > allowed).then(|| self.alert(AlertKind::Stalled, detail, now))
    }

    fn alert(&self, kind: AlertKind, detail: String, now: u64) -> Alert {
        let known = self.last.as_ref().map(|last| last.unverified().origin.clone());
        let named = || self.settings.policy.logs().first().map(|log| log.key.name().to_string());
        let log = known.or_else(named).unwrap_or_default();
        Alert { kind, log, detail, time: now, index: None, name: None, key: None, evidence: None }
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

/// The names of a certificate, each with the others that say the same: with a SPIFFE ID goes the DNS name that is made of
/// it for foreign software.
fn identities(names: &[String]) -> Vec<(&str, Vec<&str>)> {
    let dns = |id: &str| Some(format!("dns:{}", id.parse::<SpiffeId>().ok()?.dns_name()));
    let made: Vec<Option<String>> = names.iter().map(|name| dns(name)).collect();
    let is_made = |name: &String| made.iter().flatten().any(|made| made == name);
    let mut identities = Vec::new();
    for (name, made) in names.iter().zip(&made).filter(|(name, _)| !is_made(name)) {
        let also = names.iter().find(|other| Some(*other) == made.as_ref());
        let all = [Some(name), also].into_iter().flatten().map(String::as_str);
        identities.push((name.as_str(), all.collect()));
    }
    identities
}

/// What went wrong: with us, or with the log or the way to it.
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
