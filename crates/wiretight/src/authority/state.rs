//! What all nodes are told: the trust bundle, the registry and the revocations, built from the store
//! and kept as one encoded message that every stream sends.
//!
//! The version is the store's revision of an entry that holds the content's digest, written whenever
//! the content changes and before anybody is told. So a restart that finds the same content keeps the
//! version, and nodes that reconnect have it already. Only a store that was restored from a backup counts
//! a version twice, and then the digest tells the two apart.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use wiretight_keys::token::hex;
use wiretight_keys::x509::fingerprint;
use wiretight_keys::{Name, TrustBundle};
use wiretight_proxy::{Instance, Mesh, Registry};
use wiretight_store::{Change, Entry, Error, Key, Revision, Store, update};
use zeroize::Zeroizing;

use super::ca;
use super::registry::{
    INSTANCES, MESH, NODES, NodeRecord, REVOKED, REVOKED_INDEXES, Standing, indexes_in, read,
};
use crate::control::{Blob, FromAuthority, Offer, State, encode};

const STATE: &str = "state";
/// What pushing to all nodes may cost in bytes a second; a large mesh is told a little less often.
const PUSH_RATE: usize = 100 << 20;
/// A revocation reaches everyone within 5 s: this is the authority's share of that.
const MAX_DELAY: Duration = Duration::from_secs(2);

/// One version, ready to send.
pub(super) struct Snapshot {
    pub(super) version: u64,
    pub(super) digest: String,
    pub(super) frame: Zeroizing<Vec<u8>>,
}

#[derive(Serialize, Deserialize, PartialEq)]
struct Digest {
    digest: String,
}

/// Builds and publishes.
pub(super) struct Publisher {
    store: Arc<dyn Store>,
    /// The authority's own: whom its listener believes.
    mesh: Arc<Mesh>,
    latest: watch::Sender<Arc<Snapshot>>,
    /// Since which version each root has been in the bundle, of those published by this process.
    first_with: Mutex<HashMap<String, u64>>,
    debounce: Duration,
}

/// The store's entries under `mesh/`, followed.
pub(super) struct View {
    entries: BTreeMap<Key, Vec<u8>>,
    at: Revision,
}

impl Publisher {
    pub(super) fn new(store: Arc<dyn Store>, mesh: Arc<Mesh>, debounce: Duration) -> Publisher {
        let none = Snapshot { version: 0, digest: String::new(), frame: Zeroizing::default() };
        let latest = watch::channel(Arc::new(none)).0;
        Publisher { store, mesh, latest, first_with: Mutex::default(), debounce }
    }

    /// The newest snapshot, and those after it.
    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.latest.subscribe()
    }

    /// The newest version.
    pub(super) fn version(&self) -> u64 {
        self.latest.borrow().version
    }

    /// The first version known to hold a root.
    pub(super) fn first_with(&self, root: &str) -> Option<u64> {
        self.first_with.lock().unwrap_or_else(PoisonError::into_inner).get(root).copied()
    }

    /// Reads the store and publishes what is there.
    pub(super) async fn load(&self) -> Result<View, Error> {
        let (entries, at) = self.store.list(MESH).await?;
        let entries = entries.into_iter().map(|e| (e.key, e.value)).collect();
        let view = View { entries, at };
        self.publish(&view).await?;
        Ok(view)
    }

    /// Follows the store for good; ends when the store is closed.
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

    /// How long changes are gathered before all are told.
    fn delay(&self) -> Duration {
        let cost = self.latest.borrow().frame.len() * self.latest.receiver_count();
        let share = Duration::from_secs_f64(cost as f64 / PUSH_RATE as f64);
        self.debounce.max(share.min(MAX_DELAY))
    }

    async fn publish(&self, view: &View) -> Result<(), Error> {
        let Some((roots, mut state)) = view.state() else { return Ok(()) };
        // Its own door first: a removed node is out before the others hear of it.
        let bundle = state.revocations().and_then(|revoked| {
            let td = self.mesh.trust_domain().clone();
            TrustBundle::new(td, roots.clone(), revoked).map_err(|e| e.to_string())
        });
        match bundle {
            Ok(bundle) => self.mesh.set_bundle(bundle),
            Err(e) => {
                tracing::error!("a root in the store is damaged, and nothing is pushed: {e}");
                return Ok(());
            }
        }
        (state.version, state.digest) = self.version_of(&state).await?;
        if state.version == self.version() {
            return Ok(());
        }
        let prints: Vec<_> = roots.iter().map(|r| hex(&fingerprint(r))).collect();
        let (version, digest) = (state.version, state.digest.clone());
        let frame = match encode(&FromAuthority::State(state)) {
            Ok(frame) => frame,
            Err(e) => {
                tracing::error!(
                    "the state of the mesh cannot be pushed, nodes keep what they have: {e}"
                );
                return Ok(());
            }
        };
        let mut first_with = self.first_with.lock().unwrap_or_else(PoisonError::into_inner);
        first_with.retain(|root, _| prints.contains(root));
        for root in prints {
            first_with.entry(root).or_insert(version);
        }
        drop(first_with);
        tracing::debug!(version, bytes = frame.len(), "publishing");
        self.latest.send_replace(Arc::new(Snapshot { version, digest, frame }));
        Ok(())
    }

    /// The version of this content: the one that it had, or a new one, on the disk before it is told.
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

    /// The roots, and the state without its version. `None` before there is a CA.
    fn state(&self) -> Option<(Vec<CertificateDer<'static>>, State)> {
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
        let revoked =
            self.folder(REVOKED).filter_map(|(series, _)| series.to_owned().try_into().ok());
        let state = State {
            version: 0,
            digest: String::new(),
            bundle: roots.iter().map(Blob::from).collect(),
            registry: Registry { services, nodes: nodes.into_keys().collect() },
            revoked: revoked.collect(),
            revoked_roots: ca::revoked_roots_in(record.1)?,
            revoked_indexes: self
                .folder(REVOKED_INDEXES)
                .filter_map(|(r, _)| indexes_in(r))
                .collect(),
        };
        Some((roots, state))
    }
}
