//! The state that is pushed to all nodes: trust bundle, registry and revocations. It is built from the store and kept as
//! one encoded message that every stream sends.
//!
//! Its version is the revision of a store entry with the digest of the content. That entry is written whenever the
//! content changes, before it is pushed. So the version survives a restart with the same content, and nodes that
//! reconnect have it already. A version can occur twice only after a restore from a backup; then the digests differ.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use wiretight_keys::Name;
use wiretight_keys::token::hex;
use wiretight_keys::x509::fingerprint;
use wiretight_proxy::registry::fair_share;
use wiretight_proxy::{Instance, Mesh, Registry};
use wiretight_store::{Change, Entry, Error, Key, Revision, Store, update};
use zeroize::Zeroizing;

use super::ca;
use super::registry::{
    INSTANCES, MESH, NODES, NodeRecord, REVOKED, REVOKED_INDEXES, RevokedRecord, Standing,
    indexes_in, read,
};
use crate::control::{Blob, FromAuthority, Message, Offer, State, encode};

const STATE: &str = "state";
/// Upper bound for the bytes of the message besides the state.
const ENVELOPE: usize = 4096;
/// The most revocations that are pushed, by series and by ranges of indexes. They leave room for the rest of the state.
const MAX_REVOKED: usize = 600_000;
const MAX_REVOKED_RANGES: usize = 100_000;
/// Limit for pushing to all nodes, in bytes per second; in a large mesh pushes are less frequent.
const PUSH_RATE: usize = 100 << 20;
/// A revocation must reach every node within 5 s; this is the authority's share of that time.
const MAX_DELAY: Duration = Duration::from_secs(2);

/// One encoded version of the state.
pub(super) struct Snapshot {
    pub(super) version: u64,
    pub(super) digest: String,
    pub(super) frame: Zeroizing<Vec<u8>>,
}

#[derive(Serialize, Deserialize, PartialEq)]
struct Digest {
    digest: String,
}

pub(super) struct Publisher {
    store: Arc<dyn Store>,
    /// The authority's own view, which its listener uses to verify clients.
    mesh: Arc<Mesh>,
    latest: watch::Sender<Arc<Snapshot>>,
    /// The first version with each root, among those published by this process.
    first_with: Mutex<HashMap<String, u64>>,
    debounce: Duration,
    /// Why the pushed state is incomplete.
    trouble: Mutex<Option<String>>,
}

/// A current copy of the store's entries under `mesh/`.
pub(super) struct View {
    entries: BTreeMap<Key, Vec<u8>>,
    at: Revision,
}

impl Publisher {
    pub(super) fn new(store: Arc<dyn Store>, mesh: Arc<Mesh>, debounce: Duration) -> Publisher {
        let none = Snapshot { version: 0, digest: String::new(), frame: Zeroizing::default() };
        let latest = watch::channel(Arc::new(none)).0;
        let (first_with, trouble) = Default::default();
        Publisher { store, mesh, latest, first_with, debounce, trouble }
    }

    /// Why the pushed state is incomplete, if it is.
    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.lock().clone()
    }

    fn set_trouble(&self, why: Option<String>) {
        let mut trouble = self.trouble.lock();
        if *trouble != why {
            if let Some(why) = &why {
                tracing::error!("the state pushed to the nodes is incomplete: {why}");
            }
            *trouble = why;
        }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.latest.subscribe()
    }

    pub(super) fn version(&self) -> u64 {
        self.latest.borrow().version
    }

    /// The first version known to contain a root.
    pub(super) fn first_with(&self, root: &str) -> Option<u64> {
        self.first_with.lock().get(root).copied()
    }

    /// Reads the store and publishes the state.
    pub(super) async fn load(&self) -> Result<View, Error> {
        let (entries, at) = self.store.list(MESH).await?;
        let entries = entries.into_iter().map(|e| (e.key, e.value)).collect();
        let view = View { entries, at };
        self.publish(&view).await?;
        Ok(view)
    }

    /// Follows the store until it is closed.
    pub(super) async fn run(&self, mut view: View) {
        loop {
            match self.follow(&mut view).await {
                Error::Closed => return,
                Error::Compacted { .. } | Error::Ahead { .. } => {}
                e => {
                    tracing::error!("the authority cannot follow its store: {e}");
                    sleep(Duration::from_secs(1)).await;
                }
            }
            match self.load().await {
                Ok(new) => view = new,
                Err(Error::Closed) => return,
                Err(_) => sleep(Duration::from_secs(1)).await,
            }
        }
    }

    async fn follow(&self, view: &mut View) -> Error {
        let mut watch = match self.store.watch(MESH, view.at).await {
            Ok(watch) => watch,
            Err(e) => return e,
        };
        let mut due: Option<Instant> = None;
        loop {
            let wait = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changes = watch.next() => match changes {
                    Ok(changes) => {
                        view.apply(changes);
                        due.get_or_insert(Instant::now() + self.delay());
                    }
                    Err(e) => return e,
                },
                () = wait => match self.publish(view).await {
                    Ok(()) => due = None,
                    Err(e) => return e,
                },
            }
        }
    }

    /// How long changes are collected before they are pushed.
    fn delay(&self) -> Duration {
        let cost = self.latest.borrow().frame.len() * self.latest.receiver_count();
        let share = Duration::from_secs_f64(cost as f64 / PUSH_RATE as f64);
        self.debounce.max(share.min(MAX_DELAY))
    }

    async fn publish(&self, view: &View) -> Result<(), Error> {
        let Some((mut state, mut trouble)) = view.state() else {
            self.set_trouble(Some("the store has no readable CA record".into()));
            return Ok(());
        };
        // The authority's own listener first: it refuses a removed node before other nodes are told.
        let bundle = match state.trust_bundle(self.mesh.trust_domain()) {
            Ok(bundle) => bundle,
            Err(e) => {
                let why = format!("the roots in the store are damaged, so nothing is pushed: {e}");
                self.set_trouble(Some(why));
                return Ok(());
            }
        };
        let prints: Vec<_> = bundle.roots().iter().map(|r| hex(&fingerprint(r))).collect();
        self.mesh.set_bundle(bundle);
        trouble = fit(&mut state, FromAuthority::MAX - ENVELOPE).or(trouble);
        self.set_trouble(trouble);
        (state.version, state.digest) = self.version_of(&state).await?;
        if state.version == self.version() {
            return Ok(());
        }
        let (version, digest) = (state.version, state.digest.clone());
        let frame = match encode(&FromAuthority::State(state)) {
            Ok(frame) => frame,
            Err(e) => {
                let why = format!("it cannot be sent, so nodes keep the old state: {e}");
                self.set_trouble(Some(why));
                return Ok(());
            }
        };
        let mut first_with = self.first_with.lock();
        first_with.retain(|root, _| prints.contains(root));
        for root in prints {
            first_with.entry(root).or_insert(version);
        }
        drop(first_with);
        tracing::debug!(version, bytes = frame.len(), "publishing");
        self.latest.send_replace(Arc::new(Snapshot { version, digest, frame }));
        Ok(())
    }

    /// The version of this content: the existing one, or a new one that is stored before it is pushed.
    async fn version_of(&self, state: &State) -> Result<(u64, String), Error> {
        let content = serde_json::to_vec(state).expect("the state is plain data");
        let digest = Digest { digest: hex(&fingerprint(&CertificateDer::from(content))) };
        let key = Key::new(STATE)?;
        if let Some(Entry { value, revision, .. }) = self.store.get(&key).await?
            && read::<Digest>(&value).is_some_and(|d| d == digest)
        {
            return Ok((revision.0, digest.digest));
        }
        let value = serde_json::to_vec(&digest).expect("a digest is plain data");
        let written = update(&*self.store, &key, |_| Ok::<_, Error>(Some(value.clone()))).await?;
        Ok((written.unwrap_or_default().0, digest.digest))
    }
}

impl View {
    fn apply(&mut self, changes: Vec<Change>) {
        for change in changes {
            self.at = change.revision();
            match change {
                Change::Put(entry) => self.entries.insert(entry.key, entry.value),
                Change::Deleted { key, .. } => self.entries.remove(&key),
            };
        }
    }

    fn folder<'a>(&'a self, folder: &'a str) -> impl Iterator<Item = (&'a str, &'a Vec<u8>)> {
        let from = self.entries.iter();
        from.filter_map(move |(k, v)| Some((k.as_str().strip_prefix(folder)?, v)))
    }

    /// The state without its version, and what was left out of it. `None` before there is a CA.
    fn state(&self) -> Option<(State, Option<String>)> {
        let record = self.entries.iter().find(|(k, _)| ca::is_record(k))?;
        let roots = ca::roots_in(record.1)?;

        let nodes: BTreeMap<Name, NodeRecord> = self
            .folder(NODES)
            .filter_map(|(name, value)| Some((name.parse().ok()?, read(value)?)))
            .filter(|(_, record): &(_, NodeRecord)| record.standing == Standing::Active)
            .collect();
        let mut services: BTreeMap<Name, Vec<Instance>> = BTreeMap::new();
        for (name, value) in self.folder(INSTANCES) {
            let Some((node, record)) =
                name.parse().ok().and_then(|n: Name| nodes.get_key_value(&n))
            else {
                continue;
            };
            for Offer { service, addr, allow, ports } in
                read::<Vec<Offer>>(value).unwrap_or_default()
            {
                if record.services.contains(&service) {
                    let instance = Instance { node: node.clone(), addr, allow, ports };
                    services.entry(service).or_default().push(instance);
                }
            }
        }
        let mut registry = Registry { services, nodes: nodes.into_keys().collect() };
        // An older release of the authority may have accepted invalid records.
        let unused = registry.tidy();
        let unused = (!unused.is_empty()).then(|| unused.join("; "));
        let (revoked, old) = self.newest(REVOKED, MAX_REVOKED);
        let revoked = revoked.filter_map(|series| series.to_owned().try_into().ok()).collect();
        let (revoked_indexes, old_ranges) = self.newest(REVOKED_INDEXES, MAX_REVOKED_RANGES);
        let revoked_indexes = revoked_indexes.filter_map(indexes_in).collect();
        let left_out = (old + old_ranges > 0).then(|| {
            format!(
                "there are more revocations than nodes can store, so the oldest {} are no longer pushed. Rotate the root.",
                old + old_ranges
            )
        });
        let state = State {
            version: 0,
            digest: String::new(),
            bundle: roots.iter().map(Blob::from).collect(),
            registry,
            revoked,
            revoked_roots: ca::revoked_roots_in(record.1)?,
            revoked_indexes,
            unreadable: 0,
        };
        Some((state, left_out.or(unused)))
    }

    /// The names of the newest revocations in a folder, sorted; and how many older ones are left out.
    fn newest<'a>(
        &'a self,
        folder: &'a str,
        most: usize,
    ) -> (impl Iterator<Item = &'a str>, usize) {
        let mut all: Vec<(&str, &Vec<u8>)> = self.folder(folder).collect();
        let older = all.len().saturating_sub(most);
        if older > 0 {
            all.sort_by_cached_key(|(_, value)| {
                Reverse(read::<RevokedRecord>(value).map(|r| r.at))
            });
            all.truncate(most);
            all.sort_unstable();
        }
        (all.into_iter().map(|(name, _)| name), older)
    }
}

/// Leaves out records of services until the rest fits into `room` bytes, so that roots and revocations are always pushed.
/// Only the nodes that announce the most lose records. Returns what was left out.
fn fit(state: &mut State, room: usize) -> Option<String> {
    if bytes(state) <= room {
        return None;
    }
    let mut services = std::mem::take(&mut state.registry.services);
    if bytes(state) > room {
        // The names of nodes alone are too large. Keep one, because an empty list would mean that the mesh is unknown.
        let first = state.registry.nodes.pop_first();
        state.registry.nodes = first.into_iter().collect();
    }
    // A name, quotes, a colon, brackets and a comma.
    let names: usize = services.keys().map(|name| name.as_str().len() + 6).sum();
    let room = room.saturating_sub(bytes(state) + names);
    let weight = |i: &Instance| bytes(i) + 1;
    let mut wanted: BTreeMap<Name, usize> = BTreeMap::new();
    for i in services.values().flatten() {
        *wanted.entry(i.node.clone()).or_default() += weight(i);
    }
    let share = fair_share(wanted.values().copied(), room).unwrap_or(usize::MAX);
    let over = wanted.iter().filter(|(_, bytes)| **bytes > share).map(|(node, _)| node.as_str());
    let over: Vec<&str> = over.collect();
    let (count, some) = (over.len(), over[..over.len().min(10)].join(", "));
    let mut left: BTreeMap<Name, usize> = BTreeMap::new();
    for instances in services.values_mut() {
        instances.retain(|i| {
            let left = left.entry(i.node.clone()).or_insert(share);
            let fits = weight(i) <= *left;
            *left = if fits { *left - weight(i) } else { 0 };
            fits
        });
    }
    services.retain(|_, instances| !instances.is_empty());
    state.registry.services = services;
    Some(format!(
        "the registry is too large, so records of the {count} nodes that announce the most are left out ({some}). Remove nodes that no longer exist, or shorten the lists ports and allow of their services."
    ))
}

fn bytes(value: &impl Serialize) -> usize {
    serde_json::to_vec(value).map_or(usize::MAX, |json| json.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_that_is_too_large_keeps_revocations_and_records_of_small_nodes() {
        let instance = |node: &str, n: u32| Instance {
            node: node.parse().unwrap(),
            addr: format!("10.0.{}.{}:7432", n / 250, n % 250).parse().unwrap(),
            allow: vec![],
            ports: (1000..1200).collect(),
        };
        let revoked = (0..100u64)
            .map(|n| {
                wiretight_keys::Series::new(std::array::from_fn(|i| (n >> (8 * (i % 8))) as u8))
            })
            .collect();
        let mut state = State { revoked, ..State::default() };
        for n in 0..400 {
            let service: Name = format!("s{n}").parse().unwrap();
            let node = if n % 100 == 0 { format!("good{n}") } else { "bad".to_owned() };
            state.registry.services.insert(service, vec![instance(&node, n)]);
            state.registry.nodes.insert(node.parse().unwrap());
        }
        let whole = state.clone();
        assert_eq!(fit(&mut state, bytes(&whole)), None);
        assert_eq!(state, whole);
        for room in [200_000, 50_000, 15_000] {
            let mut state = whole.clone();
            let why = fit(&mut state, room).unwrap();
            assert!(why.contains("(bad)"), "{why}");
            assert!(bytes(&state) <= room, "{} of {room}", bytes(&state));
            assert_eq!(state.revoked, whole.revoked);
            let nodes: Vec<_> =
                state.registry.services.values().flatten().map(|i| &i.node).collect();
            assert_eq!(nodes.iter().filter(|n| n.as_str() != "bad").count(), 4, "{room}");
            assert!(room < 50_000 || nodes.len() > 10, "{room}");
        }
        let mut state = whole.clone();
        fit(&mut state, 3000).unwrap();
        assert_eq!((state.registry.services.len(), &state.revoked), (0, &whole.revoked));
    }
}
