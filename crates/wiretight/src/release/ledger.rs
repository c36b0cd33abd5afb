//! A release log in a directory: `log/` has the files that anyone may read, and can be served by any web server as it is;
//! `store.db` is the record of what was signed. Restoring an old copy of the directory would fork the log, which its
//! witnesses refuse.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use wiretight_store::SqliteStore;
use wiretight_tlog::tile::WIDTH;
use wiretight_tlog::{Hash, LogSigner, Policy, Proof};

use super::check::Artifact;
use super::entry::{Entry, SignedEntry};
use super::proof::{MAX_REBUILDS, Proven, ReleaseProof};
use crate::log::sequencer::{Log, LogError, Params};
use crate::log::storage::Directory;
use crate::log::witness::client::{NoWay, ways};
use crate::web::client::Client;

/// The folder of public files.
pub const PUBLIC: &str = "log";
const STORE: &str = "store.db";

/// Why a release log cannot do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("{path} is not a release log: to create one there, use --new")]
    Missing { path: PathBuf },
    #[error("{path} is already a release log: do not use --new")]
    Exists { path: PathBuf },
    #[error("cannot create {path}")]
    Create { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Store(#[from] wiretight_store::Error),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Witness(#[from] NoWay),
    #[error("the policy does not name this log. Its key is {key}")]
    OtherLog { key: String },
    #[error("the witnesses have not cosigned within {} s: {waiting_for}", .patience.as_secs())]
    Patience { patience: Duration, waiting_for: String },
    #[error("a file with SHA-256 {sha256} is in no release in this log")]
    NotReleased { sha256: String },
    #[error("the release names a source that is not in the log")]
    NoSource,
}

/// A release log that is open. Only one process can open it at a time.
pub struct Ledger {
    log: Log,
    patience: Duration,
}

impl Ledger {
    /// Opens the log, or with `new` creates it. Waits at most `patience` for the witnesses, here and later.
    pub async fn open(
        dir: &Path,
        new: bool,
        signer: LogSigner,
        policy: &Policy,
        client: &Client,
        patience: Duration,
    ) -> Result<Ledger, LedgerError> {
        let key = signer.public().clone();
        if policy.logs().iter().all(|log| log.key != key) {
            return Err(LedgerError::OtherLog { key: key.to_string() });
        }
        let (path, store) = (dir.to_owned(), dir.join(STORE));
        match (store.exists(), new) {
            (true, true) => return Err(LedgerError::Exists { path }),
            (false, false) => return Err(LedgerError::Missing { path }),
            _ => {}
        }
        let storage = Directory::open(dir.join(PUBLIC));
        let storage = storage.map_err(|source| LedgerError::Create { path, source })?;
        let policy = policy.for_log(key);
        let params = Params {
            signer,
            ways: ways(&policy, client)?,
            policy,
            storage: Arc::new(storage),
            store: Arc::new(SqliteStore::open(&store).await?),
        };
        let ledger = Ledger { log: Log::start(params).await?, patience };
        ledger.cosigned().await?;
        Ok(ledger)
    }

    /// Waits until the witnesses have cosigned what is in the log, with the time of now.
    async fn cosigned(&self) -> Result<(), LedgerError> {
        let published = async {
            while self.log.checkpoint().is_none() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        self.within(published).await
    }

    async fn within<T>(&self, work: impl Future<Output = T>) -> Result<T, LedgerError> {
        tokio::time::timeout(self.patience, work).await.map_err(|_| LedgerError::Patience {
            patience: self.patience,
            waiting_for: self.log.waiting_for(),
        })
    }

    /// Appends those entries that are not in the log yet. Returns the index of each.
    pub async fn append(&self, entries: &[SignedEntry]) -> Result<Vec<u64>, LedgerError> {
        let mut indexes = Vec::new();
        for entry in entries {
            let bytes = entry.to_string().into_bytes();
            indexes.push(match self.log.find(&bytes, 0).await? {
                Some(index) => index,
                None => self.within(self.log.append(bytes)).await??.index,
            });
        }
        Ok(indexes)
    }

    /// The newest release that has this file, with its source, and the newest rebuilds of that source.
    pub async fn prove(&self, artifact: Artifact) -> Result<ReleaseProof, LedgerError> {
        let entries = self.entries().await?;
        let release = entries.iter().rev().find(|(_, e)| match e.entry() {
            Entry::Release(release) => release.file(artifact.sha256).is_some(),
            _ => false,
        });
        let sha256 = || wiretight_keys::token::hex(artifact.sha256.as_bytes());
        let release = release.ok_or_else(|| LedgerError::NotReleased { sha256: sha256() })?;
        let Entry::Release(made) = release.1.entry() else { return Err(LedgerError::NoSource) };
        let source = entries.iter().find(|(_, e)| e.id() == made.source);
        let source = source.ok_or(LedgerError::NoSource)?;
        let of_source =
            |e: &SignedEntry| matches!(e.entry(), Entry::Rebuild(r) if r.source == made.source);
        let newest = entries.iter().rev().filter(|(_, e)| of_source(e)).take(MAX_REBUILDS);
        let mut rebuilds: Vec<_> = newest.collect();
        rebuilds.reverse();

        let wanted: Vec<_> = [source, release].into_iter().chain(rebuilds).collect();
        let indexes: Vec<u64> = wanted.iter().map(|(index, _)| *index).collect();
        let proven = self.log.prove(&indexes, &[]).await?;
        let checkpoint = self.log.policy().shortest(&proven.checkpoint);
        let checkpoint = checkpoint.ok_or(LogError::NotPublished)?;
        let proof = |index: u64, hashes: Vec<Hash>| Proof {
            extra: None,
            index,
            hashes,
            checkpoint: checkpoint.clone(),
        };
        let mut all = wanted.into_iter().zip(proven.inclusion).map(|((index, entry), hashes)| {
            Proven { entry: entry.clone(), proof: proof(*index, hashes) }
        });
        let (Some(source), Some(release)) = (all.next(), all.next()) else {
            return Err(LedgerError::NoSource);
        };
        Ok(ReleaseProof { source, release, rebuilds: all.collect() })
    }

    /// All entries of this format, with their indexes.
    pub async fn entries(&self) -> Result<Vec<(u64, SignedEntry)>, LedgerError> {
        let size = self.log.checkpoint().map_or(0, |c| c.unverified().size);
        let mut all = Vec::new();
        for bundle in 0..size.div_ceil(WIDTH) {
            let entries = (bundle * WIDTH..).zip(self.log.bundle(bundle).await?);
            all.extend(entries.filter_map(|(index, bytes)| {
                Some((index, SignedEntry::parse(str::from_utf8(&bytes).ok()?).ok()?))
            }));
        }
        Ok(all)
    }

    pub async fn close(self) {
        self.log.close().await;
    }
}
