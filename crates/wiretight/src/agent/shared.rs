//! The records that edges of a service share, on a node that is not the authority: a [`Store`] over the node's stream.
//!
//! The authority holds the records and decides every write. This store has a copy of them in memory and a mirror on disk.
//! Reads use the copy, so an edge can start and serve while the authority is down. Writes go to the authority first, with
//! the revision from the authority. They work only while the copy follows the authority on a live stream; otherwise
//! they fail with [`Error::Unavailable`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};
use wiretight_keys::Name;
use wiretight_store::{Change, Entry, Error, Key, Replica, Revision, Store, Watch, update};

use crate::control::{Blob, MAX_SHARED_VALUE, SharedRecord};

/// The prefix of the mirror in the node's own store.
const MIRROR: &str = "mirror/";
/// Queued messages of the authority; enough for all records of a service.
const MAX_EVENTS: usize = 256;
/// Requests that are queued for the stream.
const MAX_ERRANDS: usize = 16;
/// Limit for a listing, in bytes; more than the authority stores for a service.
const MAX_LISTING: usize = 64 << 20;

/// Deadlines and intervals. Production uses [`SharedTimes::default`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedTimes {
    /// How long a write waits for a stream, which a starting node does not have yet.
    pub stream: Duration,
    /// For a response of the authority.
    pub answer: Duration,
    /// Between attempts, after a refusal.
    pub retry: Duration,
}

impl Default for SharedTimes {
    fn default() -> SharedTimes {
        SharedTimes {
            stream: Duration::from_secs(5),
            answer: Duration::from_secs(10),
            retry: Duration::from_secs(30),
        }
    }
}

/// A request of the store to the agent.
pub(super) enum Errand {
    Follow { service: Name, events: mpsc::Sender<Event> },
    Write(Write),
}

pub(super) struct Write {
    pub(super) service: Name,
    pub(super) key: String,
    pub(super) expected: Revision,
    pub(super) value: Option<Vec<u8>>,
    pub(super) reply: oneshot::Sender<Outcome>,
}

/// The result of a write.
pub(super) enum Outcome {
    Written(Revision),
    Conflict(Revision),
    Refused(String),
}

/// Progress of following the records.
pub(super) enum Event {
    /// The request was sent.
    Asked,
    Records {
        at: Revision,
        records: Vec<SharedRecord>,
        done: bool,
    },
    Changes(Vec<SharedRecord>),
    Refused(String),
}

/// The agent's end of the request queue.
pub struct Errands(pub(super) mpsc::Receiver<Errand>);

/// Why the copy does not follow the authority; `None` if it does.
type Standing = Option<String>;

/// Needs a tokio runtime, and an agent that was started with its [`Errands`].
pub struct SharedStore {
    service: Name,
    /// `edge/service/SERVICE/`
    prefix: String,
    copy: Arc<Replica>,
    errands: mpsc::Sender<Errand>,
    standing: watch::Receiver<Standing>,
    times: SharedTimes,
}

impl SharedStore {
    /// Reads the mirror in `disk`, the node's own store, which must outlive it. Mirrors of other services are deleted.
    ///
    /// # Errors
    /// Those of `disk`.
    pub async fn open(
        disk: Arc<dyn Store>,
        service: Name,
        times: SharedTimes,
    ) -> Result<(SharedStore, Errands), Error> {
        let prefix = format!("edge/service/{service}/");
        let copy = Arc::new(Replica::new());
        let mut known = Vec::new();
        for entry in disk.list(MIRROR).await?.0 {
            let key = entry.key.as_str().strip_prefix(MIRROR).filter(|k| k.starts_with(&prefix));
            let key = key.and_then(|k| Key::new(k).ok());
            match (key, entry.value.split_first_chunk()) {
                (Some(key), Some((revision, value))) => {
                    let revision = Revision(u64::from_be_bytes(*revision));
                    known.push(Entry { key, value: value.to_vec(), revision });
                }
                _ => {
                    disk.swap(&entry.key, entry.revision, None).await?;
                }
            }
        }
        let at = known.iter().map(|e| e.revision).max().unwrap_or_default();
        copy.reset(known, at);
        let (errands, inbox) = mpsc::channel(MAX_ERRANDS);
        let (told, standing) = watch::channel(Some(away(&service)));
        let follower = Follower {
            service: service.clone(),
            prefix: prefix.clone(),
            copy: copy.clone(),
            disk,
            told,
            times,
        };
        tokio::spawn(follower.run(errands.clone()));
        Ok((SharedStore { service, prefix, copy, errands, standing, times }, Errands(inbox)))
    }

    async fn write(
        &self,
        key: &Key,
        expected: Revision,
        value: Option<Vec<u8>>,
    ) -> Result<Revision, Error> {
        let unavailable = |why: String| Error::Unavailable { why };
        let Some(path) = key.as_str().strip_prefix(&self.prefix) else {
            return Err(unavailable(format!(
                "{key} is not shared: only keys below {} are",
                self.prefix
            )));
        };
        if let Some(len) = value.as_ref().map(Vec::len).filter(|len| *len > MAX_SHARED_VALUE) {
            return Err(unavailable(format!(
                "a record of {len} bytes exceeds the authority's limit of {MAX_SHARED_VALUE}. The site probably has too many names."
            )));
        }
        let mut standing = self.standing.clone();
        if timeout(self.times.stream, standing.wait_for(Option::is_none)).await.is_err() {
            let why = self.standing.borrow().clone();
            return Err(unavailable(why.unwrap_or_else(|| away(&self.service))));
        }
        let (reply, answer) = oneshot::channel();
        let (service, path) = (self.service.clone(), path.to_owned());
        let write = Write { service, key: path, expected, value, reply };
        let asked = async {
            self.errands.send(Errand::Write(write)).await.ok()?;
            answer.await.ok()
        };
        let Ok(Some(outcome)) = timeout(self.times.answer, asked).await else {
            let why = "the connection to the authority failed during a write. The result will be known when it is back.";
            return Err(unavailable(why.into()));
        };
        // Wait until the copy includes this write, so that the next read sees it. If the stream fails meanwhile, the copy
        // stays behind, and the next write fails with a conflict.
        let mut head = self.copy.head();
        match outcome {
            Outcome::Written(revision) => {
                let seen = head.wait_for(|head| *head >= revision);
                let _ = timeout(self.times.answer, seen).await;
                Ok(revision)
            }
            Outcome::Conflict(found) => {
                let at = || self.copy.get(key).map(|e| e.revision).unwrap_or_default();
                let moved = async { while at() == expected && head.changed().await.is_ok() {} };
                let _ = timeout(self.times.answer, moved).await;
                let found = (found != Revision::ZERO).then_some(found);
                Err(Error::Conflict { key: key.clone(), found })
            }
            Outcome::Refused(why) => Err(unavailable(why)),
        }
    }
}

#[async_trait]
impl Store for SharedStore {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, Error> {
        Ok(self.copy.get(key))
    }

    async fn create(&self, key: &Key, value: Vec<u8>) -> Result<Revision, Error> {
        self.write(key, Revision::ZERO, Some(value)).await
    }

    async fn swap(
        &self,
        key: &Key,
        expected: Revision,
        value: Option<Vec<u8>>,
    ) -> Result<Revision, Error> {
        self.write(key, expected, value).await
    }

    async fn list(&self, prefix: &str) -> Result<(Vec<Entry>, Revision), Error> {
        Ok(self.copy.list(prefix))
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, Error> {
        self.copy.watch(prefix, after)
    }
}

/// Updates the copy and its mirror.
struct Follower {
    service: Name,
    prefix: String,
    copy: Arc<Replica>,
    disk: Arc<dyn Store>,
    told: watch::Sender<Standing>,
    times: SharedTimes,
}

impl Follower {
    /// Runs until the store or the agent is dropped.
    async fn run(self, errands: mpsc::Sender<Errand>) {
        loop {
            let (events, inbox) = mpsc::channel(MAX_EVENTS);
            let follow = Errand::Follow { service: self.service.clone(), events };
            let ended = tokio::select! {
                sent = errands.send(follow) => match sent {
                    Ok(()) => tokio::select! {
                        ended = self.take(inbox) => ended,
                        () = self.told.closed() => return,
                    },
                    Err(_) => return,
                },
                () = self.told.closed() => return,
            };
            let refused = ended.is_some();
            let why = ended.unwrap_or_else(|| away(&self.service));
            let before = self.told.send_replace(Some(why.clone()));
            if refused {
                if before.as_ref() != Some(&why) {
                    tracing::warn!(service = %self.service, "certificates are not shared: {why}");
                }
                sleep(self.times.retry).await;
            }
        }
    }

    /// Handles events. Returns why it stopped; `None` if the stream has ended.
    async fn take(&self, mut inbox: mpsc::Receiver<Event>) -> Standing {
        let (mut listing, mut bytes, mut deadline) = (Vec::new(), 0, None);
        loop {
            let event = match deadline {
                Some(limit) => match timeout(limit, inbox.recv()).await {
                    Ok(event) => event,
                    Err(_) => {
                        return Some(format!(
                            "the authority does not respond, so certificates of {} are not renewed",
                            self.service
                        ));
                    }
                },
                None => inbox.recv().await,
            };
            match event? {
                Event::Asked => deadline = Some(self.times.answer),
                Event::Records { at, records, done } => {
                    for record in &records {
                        bytes += record.key.len() + record.value.as_ref().map_or(0, |v| v.0.len());
                    }
                    if bytes > MAX_LISTING {
                        return Some("the authority sent more records than it may store".into());
                    }
                    listing.extend(records.into_iter().filter_map(|r| self.change(r)));
                    if !done {
                        continue;
                    }
                    let put = |change| match change {
                        Change::Put(entry) => Some(entry),
                        Change::Deleted { .. } => None,
                    };
                    let entries = std::mem::take(&mut listing).into_iter().filter_map(put);
                    let changes = self.copy.reset(entries.collect(), at);
                    (bytes, deadline) = (0, None);
                    if self.told.send_replace(None).is_some() {
                        let (service, records) = (&self.service, self.copy.list("").0.len());
                        tracing::info!(%service, records, "sharing certificates with other edges");
                    }
                    self.keep(changes).await;
                }
                Event::Changes(changes) => {
                    let changes: Vec<_> =
                        changes.into_iter().filter_map(|c| self.change(c)).collect();
                    self.copy.apply(changes.clone());
                    self.keep(changes).await;
                }
                Event::Refused(why) => return Some(why),
            }
        }
    }

    fn change(&self, record: SharedRecord) -> Option<Change> {
        let key = Key::new(format!("{}{}", self.prefix, record.key)).ok()?;
        let revision = Revision(record.revision);
        Some(match record.value {
            Some(Blob(value)) => Change::Put(Entry { key, value, revision }),
            None => Change::Deleted { key, revision },
        })
    }

    /// Mirrors the newest version of each record on disk. A failed write is only logged: the node continues, but could not
    /// restart without the authority.
    async fn keep(&self, changes: Vec<Change>) {
        let newest: BTreeMap<Key, Change> =
            changes.into_iter().map(|c| (c.key().clone(), c)).collect();
        for (key, change) in newest {
            let value = match change {
                Change::Put(entry) => {
                    Some([&entry.revision.0.to_be_bytes()[..], &entry.value].concat())
                }
                Change::Deleted { .. } => None,
            };
            let kept = match Key::new(format!("{MIRROR}{key}")) {
                Ok(at) => update(&*self.disk, &at, |_| Ok::<_, Error>(value.clone())).await,
                Err(e) => Err(e),
            };
            if let Err(e) = kept {
                tracing::error!(
                    "cannot save a certificate on this machine, so a restart will need the authority: {e}"
                );
            }
        }
    }
}

fn away(service: &Name) -> String {
    format!(
        "not connected to the authority, which stores the certificates of {service}. Existing certificates are still served, but none is ordered or renewed until the connection is back (see authority_link in `wiretight status --json`)."
    )
}

/// The meaning of an "unknown type" response to a follow request.
pub(super) const TOO_OLD: &str =
    "the authority runs an older release that cannot store certificates for edges: update it";
