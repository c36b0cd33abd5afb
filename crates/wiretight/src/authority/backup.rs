//! Backup and restore of the authority: one file with a consistent snapshot of keys, store and log.
//!
//! A backup only reads, and works while the authority runs. It is consistent for three reasons:
//!
//! - The store is copied in one transaction. The backup contains the log up to the tree that this copy names.
//! - The log only grows. Its published checkpoint is read before the store, so it is never newer. Its tiles are read
//!   after the store (a larger tile that has replaced a partial one is truncated).
//! - The key files are read before and after the store. If they differ, keys were being replaced, and it starts again.
//!
//! The file is a tar archive that ends with a SHA-256 of everything before, so a truncated one is rejected. It contains
//! the CA keys: it has mode 0600, and anyone who has it can act as the authority.
//!
//! A restored authority must not fork its log. If the witnesses, or the bucket with the log, know more entries than the
//! backup, the restored authority would sign a second history, so it does not start. The missing entries can come from
//! a newer copy of the log (`restore --log`). That copy is verified and must extend the backup's tree, and its
//! revocations are applied again.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use aws_lc_rs::digest::{self, SHA256};
use serde::{Deserialize, Serialize};
use wiretight_keys::TrustDomain;
use wiretight_keys::logged::Entry;
use wiretight_proxy::clock::now;
use wiretight_store::SqliteStore;
use wiretight_tlog::note::LogKey;
use wiretight_tlog::tile::{Kind, Tile, push_entry};
use wiretight_tlog::{Frontier, Hash, LogSigner, SignedCheckpoint};
use zeroize::Zeroizing;

use super::own_log::LOG_KEY;
use super::{AuthorityError, claims, registry};
use crate::acme::SEAL_KEY;
use crate::config::Config;
use crate::log::bucket::Bucket;
use crate::log::reader::{Reader, Tree};
use crate::log::sequencer::{self, CHECKPOINT, MAX_CHECKPOINT, max_len};
use crate::log::storage::{Directory, Storage};
use crate::private_dir::PrivateDir;

/// The archive's first member.
const HEAD: &str = "wiretight-backup.json";
/// The archive's last member.
const END: &str = "end.json";
/// The name of the store's file, in the archive and in the authority's directory.
const STORE: &str = "store.db";
/// The name of the directory of the log's tiles, in both.
const LOG: &str = "log";
/// The directory of key files in the archive.
const KEYS: &str = "keys";
/// The directory for another copy of the log, while it is compared with the backup.
const NEWER: &str = "newer";
/// A restored authority until it is complete.
const DRAFT: &str = "authority.restoring";
/// A key file has a few hundred bytes.
const MAX_KEY_FILE: usize = 4096;
/// The largest JSON member.
const MAX_JSON: usize = 64 << 10;
/// How often to try again if keys are replaced while they are read.
const TRIES: usize = 10;
/// Number of entries that are verified at a time.
const CHUNK: u64 = 4096;

/// The log's storage in the configuration; `None` if it is in STATE_DIR.
pub fn storage_of(config: &Config) -> Result<Option<Arc<dyn Storage>>, AuthorityError> {
    let bucket = |url: &String| Bucket::s3(url).map(|b| Arc::new(b) as Arc<dyn Storage>);
    Ok(config.log.storage.as_ref().map(bucket).transpose()?)
}

/// The archive's first member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Version of the format: 1.
    version: u32,
    pub trust_domain: TrustDomain,
    /// When the backup was made (seconds since 1970).
    pub made: u64,
    /// The log's public key.
    pub log: String,
    /// The number of log entries.
    pub entries: u64,
}

/// The archive's last member.
#[derive(Serialize, Deserialize)]
struct End {
    /// Over each earlier member: name, a zero byte, length (8 bytes, big-endian), content. In hex.
    sha256: String,
}

/// Writes a backup of the authority in `state` (STATE_DIR) to the new file `to`.
pub async fn backup(
    state: &PrivateDir,
    trust_domain: &TrustDomain,
    storage: Option<Arc<dyn Storage>>,
    to: &Path,
) -> anyhow::Result<Head> {
    let dir = PrivateDir::open(state.path().join("authority"))?;
    ensure!(
        dir.path().join(STORE).exists(),
        "there is no authority in {}. Run this on the authority's machine, as the user that the authority runs as.",
        dir.path().display()
    );
    let storage = storage.map_or_else(|| directory(&dir.path().join(LOG)), Ok)?;
    // A private directory on the disk that holds such data already; it is removed when this returns.
    let scratch = tempfile::Builder::new().prefix(".backup-").tempdir_in(dir.path())?;
    let copy = scratch.path().join(STORE);

    let published = storage.get(CHECKPOINT, MAX_CHECKPOINT).await?;
    let mut keys = key_files(state, &dir)?;
    for n in 0.. {
        SqliteStore::snapshot(dir.path().join(STORE), &copy).await?;
        let after = key_files(state, &dir)?;
        if keys == after {
            break;
        }
        ensure!(
            n < TRIES,
            "the authority's keys kept changing while they were read. Try again later."
        );
        keys = after;
        fs::remove_file(&copy)?;
    }
    let key = log_key(keys.get(LOG_KEY).map(|key| &***key))?;
    let store = SqliteStore::open(&copy).await?;
    let signed = sequencer::last_signed(&store, &key).await?;
    drop(store);
    let checkpoint = signed.unverified();
    let head = Head {
        version: 1,
        trust_domain: trust_domain.clone(),
        made: now(),
        log: key.to_string(),
        entries: checkpoint.size,
    };

    let mut archive = Writer::create(to)?;
    let written = async {
        archive.add(HEAD, &serde_json::to_vec(&head)?)?;
        for (name, bytes) in &keys {
            archive.add(&format!("{KEYS}/{name}"), bytes)?;
        }
        archive.add_file(STORE, &copy)?;
        if let Some(published) = published {
            archive.add(&format!("{LOG}/{CHECKPOINT}"), &published)?;
        }
        let mut read = Frontier::default();
        for tile in Tile::of_growth(0, checkpoint.size) {
            let bytes = tile_of(&*storage, tile).await?;
            if tile.kind == Kind::Entries {
                for entry in tile.entries(&bytes).with_context(|| tile.path())? {
                    read.append(Hash::leaf(entry), |_, _| {});
                }
            }
            archive.add(&format!("{LOG}/{}", tile.path()), &bytes)?;
        }
        ensure!(
            read.size() == checkpoint.size && read.root() == checkpoint.root,
            "the log is damaged: the entries in {} do not match the signed checkpoint. No backup was made. Run `wiretight verify` on a copy of the log for details.",
            storage.place()
        );
        archive.finish()
    };
    let written: anyhow::Result<()> = written.await;
    if let Err(error) = written {
        let _ = fs::remove_file(to);
        return Err(error.context(format!("cannot write a backup to {}", to.display())));
    }
    Ok(head)
}

pub struct Restore<'a> {
    /// STATE_DIR; its node must not be running.
    pub state: &'a PrivateDir,
    /// The trust domain in the configuration.
    pub trust_domain: &'a TrustDomain,
    /// The log's storage in the configuration; `None` if it is in STATE_DIR.
    pub storage: Option<Arc<dyn Storage>>,
    /// A directory with a newer copy of the log.
    pub newer: Option<PathBuf>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Restored {
    #[serde(flatten)]
    pub head: Head,
    /// Log entries that came from a newer copy.
    pub newer_entries: u64,
    /// Revocations in those entries that were applied again.
    pub revoked_again: usize,
}

impl Restore<'_> {
    /// Restores the authority from the file `from`. It appears under its final name only when all of it is verified and
    /// synced.
    pub async fn run(self, from: &Path) -> anyhow::Result<Restored> {
        let place = self.state.path().join("authority");
        let empty = fs::read_dir(&place).map_or(true, |mut names| names.next().is_none());
        ensure!(
            empty,
            "{} is not empty, and a restore does not overwrite an authority. If you no longer need that one, move it away first.",
            place.display()
        );
        let draft = self.state.path().join(DRAFT);
        if draft.exists() {
            fs::remove_dir_all(&draft).with_context(|| draft.display().to_string())?;
        }
        let restored = self.draft(from, PrivateDir::open(&draft)?).await;
        let done = restored.and_then(|(restored, seal_key)| {
            if let Some(key) = seal_key {
                self.state.write(SEAL_KEY, &key)?;
            }
            if place.exists() {
                fs::remove_dir(&place)?;
            }
            self.state.rename(DRAFT, "authority")?;
            Ok(restored)
        });
        if done.is_err() {
            let _ = fs::remove_dir_all(&draft);
        }
        done.with_context(|| format!("cannot restore from {}", from.display()))
    }

    async fn draft(
        &self,
        from: &Path,
        dir: PrivateDir,
    ) -> anyhow::Result<(Restored, Option<Zeroizing<Vec<u8>>>)> {
        let log = directory(&dir.path().join(LOG))?;
        let (head, keys) = unpack(from, &dir, &*log).await?;
        ensure!(
            head.trust_domain == *self.trust_domain,
            "the backup is of trust domain {}, but the configuration has {}",
            head.trust_domain,
            self.trust_domain
        );
        let mut seal_key = None;
        for (name, bytes) in keys {
            match name == SEAL_KEY {
                true => seal_key = Some(bytes),
                false => dir.write(&name, &bytes)?,
            }
        }
        if let (Some(kept), Some(key)) = (self.state.read(SEAL_KEY, MAX_KEY_FILE)?, &seal_key) {
            ensure!(
                kept == *key,
                "{} has another {SEAL_KEY} than the backup. That key encrypts the stored site certificates. Move it away if those certificates may be ordered again.",
                self.state.path().display()
            );
        }
        let key = log_key(dir.read(LOG_KEY, MAX_KEY_FILE)?.as_deref().map(Vec::as_slice))?;
        ensure!(key.to_string() == head.log, "the backup's log.key is not the key of its log");
        let store = SqliteStore::open(dir.path().join(STORE)).await?;
        let signed = sequencer::last_signed(&store, &key).await?;
        let tree = verified(dir.path().join(LOG), &signed).await?;

        let mut restored = Restored { head, newer_entries: 0, revoked_again: 0 };
        if let Some((newer, copy)) = self.newer(&key, dir.path()).await? {
            begins_with(&copy, &tree).await?;
            if copy.size() > tree.size() {
                restored.revoked_again = self.go_on(&store, &dir, tree.size(), &newer).await?;
                restored.newer_entries = copy.size() - tree.size();
            } else {
                fs::remove_dir_all(dir.path().join(NEWER))?;
            }
        }
        if let Some(storage) = &self.storage {
            let signed = sequencer::last_signed(&store, &key).await?;
            let tree = Reader::directory(dir.path().join(LOG)).tree(signed.unverified()).await?;
            fill(&**storage, &*log, &key, &tree).await?;
            fs::remove_dir_all(dir.path().join(LOG))?;
        }
        drop(store);
        File::open(dir.path())?.sync_all()?;
        Ok((restored, seal_key))
    }

    /// Copies and verifies another copy of the log, if there is one, into the directory `NEWER` of `scratch`: the given
    /// one, or the one in the bucket.
    async fn newer(
        &self,
        key: &LogKey,
        scratch: &Path,
    ) -> anyhow::Result<Option<(SignedCheckpoint, Tree)>> {
        let from = match (&self.newer, &self.storage) {
            (Some(path), _) => directory(path)?,
            (None, Some(storage)) => storage.clone(),
            (None, None) => return Ok(None),
        };
        let place = from.place();
        let Some(signed) = published(&*from, key).await? else {
            ensure!(self.newer.is_none(), "{place} is not a copy of a log: it has no checkpoint");
            return Ok(None);
        };
        let path = scratch.join(NEWER);
        let to = directory(&path)?;
        for tile in Tile::of_growth(0, signed.unverified().size) {
            to.put(vec![(tile.path(), tile_of(&*from, tile).await?)]).await?;
        }
        to.put(vec![(CHECKPOINT.into(), signed.to_string().into_bytes())]).await?;
        let tree = verified(path, &signed).await.with_context(|| place)?;
        Ok(Some((signed, tree)))
    }

    /// Replaces the backup's log, which has `old` entries, by the newer one, and applies what it says: revocations
    /// and claims.
    async fn go_on(
        &self,
        store: &SqliteStore,
        dir: &PrivateDir,
        old: u64,
        newer: &SignedCheckpoint,
    ) -> anyhow::Result<usize> {
        let tree = Reader::directory(dir.path().join(NEWER)).tree(newer.unverified()).await?;
        let (mut at, mut revoked) = (old, 0);
        while at < tree.size() {
            let next = tree.size().min(at + CHUNK);
            for (n, entry) in (at..).zip(tree.entries(at..next).await?) {
                match Entry::parse(&entry) {
                    Ok(Entry::Revocation(revocation)) => {
                        revoked += registry::revoke_again(store, &revocation, n).await?;
                    }
                    Ok(Entry::Period(period)) => claims::claim_again(store, &period, n).await?,
                    _ => {}
                }
            }
            at = next;
        }
        sequencer::go_on_from(store, newer).await?;
        fs::remove_dir_all(dir.path().join(LOG))?;
        dir.rename(NEWER, LOG)?;
        Ok(revoked)
    }
}

/// Verifies a whole log in a directory and returns its tree.
async fn verified(path: PathBuf, signed: &SignedCheckpoint) -> anyhow::Result<Tree> {
    let tree = Reader::directory(path).tree(signed.unverified()).await?;
    let mut at = 0;
    while at < tree.size() {
        let next = tree.size().min(at + CHUNK);
        tree.entries(at..next).await?;
        at = next;
    }
    Ok(tree)
}

/// The checkpoint of a log in a storage; `None` if it has none.
async fn published(from: &dyn Storage, key: &LogKey) -> anyhow::Result<Option<SignedCheckpoint>> {
    let Some(bytes) = from.get(CHECKPOINT, MAX_CHECKPOINT).await? else { return Ok(None) };
    let text = str::from_utf8(&bytes).ok().and_then(|t| SignedCheckpoint::parse(t).ok());
    let signed = text.filter(|signed| signed.verified_by(key).is_some());
    let place = from.place();
    signed
        .with_context(|| {
            format!("the checkpoint in {place} is not signed by the log of this backup")
        })
        .map(Some)
}

/// Checks that the larger of two trees extends the smaller one.
async fn begins_with(copy: &Tree, backup: &Tree) -> anyhow::Result<()> {
    let size = copy.size().min(backup.size());
    ensure!(
        copy.root_at(size).await? == backup.root_at(size).await?,
        "the log has forked: the first {size} entries of the other copy differ from the backup's. Keep both as evidence."
    );
    Ok(())
}

/// Uploads the part of the log that the bucket lacks: everything, or what comes after its checkpoint.
async fn fill(
    to: &dyn Storage,
    from: &dyn Storage,
    key: &LogKey,
    tree: &Tree,
) -> anyhow::Result<()> {
    let (place, size) = (to.place(), tree.size());
    let mut has = 0;
    if let Some(there) = published(to, key).await? {
        let there = there.unverified();
        ensure!(
            there.size <= size,
            "{place} has {} entries of the log, but the copy has only {size}. Omit --log to use the log in the bucket.",
            there.size
        );
        ensure!(
            tree.root_at(there.size).await? == there.root,
            "the log has forked: the {} entries in {place} differ from the backup's. Keep both as evidence.",
            there.size
        );
        has = there.size;
    }
    for tile in Tile::of_growth(has, size) {
        to.put(vec![(tile.path(), tile_of(from, tile).await?)]).await?;
    }
    Ok(())
}

/// A tile of a tree, cut out of a larger one if that has replaced it.
async fn tile_of(storage: &dyn Storage, tile: Tile) -> anyhow::Result<Vec<u8>> {
    if let Some(bytes) = storage.get(&tile.path(), max_len(tile)).await? {
        return Ok(bytes);
    }
    let full = tile.full();
    let bytes = storage.get(&full.path(), max_len(full)).await?;
    let mut bytes = bytes.with_context(|| {
        format!("the log is damaged: {}/{} is missing", storage.place(), tile.path())
    })?;
    match tile.kind {
        Kind::Hashes { .. } => bytes.truncate(usize::from(tile.width) * Hash::LEN),
        Kind::Entries => {
            let mut cut = Vec::new();
            let entries = full.entries(&bytes).with_context(|| full.path())?;
            for entry in entries.into_iter().take(tile.width.into()) {
                push_entry(&mut cut, entry)?;
            }
            bytes = cut;
        }
    }
    Ok(bytes)
}

/// The authority's keys, and the one that encrypts site certificates, by file name.
fn key_files(
    state: &PrivateDir,
    dir: &PrivateDir,
) -> anyhow::Result<BTreeMap<String, Zeroizing<Vec<u8>>>> {
    let mut keys = BTreeMap::new();
    for name in dir.names()?.into_iter().filter(|name| is_key_file(name)) {
        // A file that disappears meanwhile is noticed by the comparison.
        if let Some(bytes) = dir.read(&name, MAX_KEY_FILE)? {
            keys.insert(name, bytes);
        }
    }
    if let Some(bytes) = state.read(SEAL_KEY, MAX_KEY_FILE)? {
        keys.insert(SEAL_KEY.into(), bytes);
    }
    Ok(keys)
}

/// `root-….key`, `root-….key.new`, `intermediate-….key`, `log.key`.
fn is_key_file(name: &str) -> bool {
    let safe = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    name.len() <= 200
        && !name.starts_with('.')
        && name.bytes().all(safe)
        && (name.ends_with(".key") || name.ends_with(".key.new"))
}

fn log_key(private: Option<&[u8]>) -> anyhow::Result<LogKey> {
    let text = private.and_then(|bytes| str::from_utf8(bytes).ok());
    let signer = text.and_then(|text| LogSigner::parse(text).ok());
    Ok(signer.context("log.key is missing or damaged")?.public().clone())
}

fn directory(path: &Path) -> anyhow::Result<Arc<dyn Storage>> {
    let opened = Directory::open(path).with_context(|| path.display().to_string())?;
    Ok(Arc::new(opened))
}

struct Writer {
    tar: tar::Builder<File>,
    hash: digest::Context,
}

impl Writer {
    fn create(path: &Path) -> anyhow::Result<Writer> {
        use std::os::unix::fs::OpenOptionsExt;
        let file = File::options().write(true).create_new(true).mode(0o600).open(path);
        let file = file.with_context(|| {
            format!(
                "cannot create {}. It must not exist yet, so that no backup is overwritten.",
                path.display()
            )
        })?;
        Ok(Writer { tar: tar::Builder::new(file), hash: digest::Context::new(&SHA256) })
    }

    fn add(&mut self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        begin(&mut self.hash, name, bytes.len() as u64);
        self.hash.update(bytes);
        Ok(self.tar.append_data(&mut header(bytes.len() as u64), name, bytes)?)
    }

    /// Adds a file of any size.
    fn add_file(&mut self, name: &str, path: &Path) -> anyhow::Result<()> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        begin(&mut self.hash, name, len);
        let hashed = Hashed { from: file, hash: &mut self.hash };
        Ok(self.tar.append_data(&mut header(len), name, hashed)?)
    }

    fn finish(mut self) -> anyhow::Result<()> {
        let end = serde_json::to_vec(&End { sha256: hex(&self.hash.finish()) })?;
        self.tar.append_data(&mut header(end.len() as u64), END, &*end)?;
        Ok(self.tar.into_inner()?.sync_all()?)
    }
}

fn header(len: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_size(len);
    header.set_mode(0o600);
    header.set_mtime(now());
    header
}

/// Hashes a member's name and length.
fn begin(hash: &mut digest::Context, name: &str, len: u64) {
    hash.update(name.as_bytes());
    hash.update(&[0]);
    hash.update(&len.to_be_bytes());
}

fn hex(hash: &digest::Digest) -> String {
    wiretight_keys::token::hex(hash.as_ref())
}

/// Hashes everything that is read through it.
struct Hashed<'a, R> {
    from: R,
    hash: &'a mut digest::Context,
}

impl<R: Read> Read for Hashed<'_, R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(to)?;
        self.hash.update(&to[..n]);
        Ok(n)
    }
}

/// Reads an archive: writes the store to `dir` and the log to `log`, and returns the keys. Accepts only the members of a
/// backup, each up to its size limit. No path from the archive is used to write a file.
async fn unpack(
    from: &Path,
    dir: &PrivateDir,
    log: &dyn Storage,
) -> anyhow::Result<(Head, BTreeMap<String, Zeroizing<Vec<u8>>>)> {
    let file = File::open(from).with_context(|| format!("cannot read {}", from.display()))?;
    let mut tar = tar::Archive::new(io::BufReader::new(file));
    let (mut head, mut end, mut keys) = (None::<Head>, None::<End>, BTreeMap::new());
    let mut hash = digest::Context::new(&SHA256);
    for member in tar.entries()? {
        let mut member = member.context("the file is not a tar archive, or is damaged")?;
        let name = member.path()?.to_str().context("a member's name is not UTF-8")?.to_owned();
        ensure!(
            member.header().entry_type().is_file(),
            "{name} is not a file, and a backup contains only files"
        );
        ensure!(end.is_none(), "{name} comes after the end of the backup");
        let len = member.size();
        if name == END {
            end = Some(serde_json::from_slice(&bounded(&mut member, &name, MAX_JSON)?)?);
            continue;
        }
        begin(&mut hash, &name, len);
        let mut member = Hashed { from: member, hash: &mut hash };
        if name == HEAD {
            let read: Head = serde_json::from_slice(&bounded(&mut member, &name, MAX_JSON)?)?;
            ensure!(
                read.version == 1,
                "the backup was made by a newer release. Use that release to restore it."
            );
            head = Some(read);
            continue;
        }
        ensure!(
            head.is_some(),
            "the file is not a backup of a Wiretight authority: it starts with {name}"
        );
        if name == STORE {
            use std::os::unix::fs::OpenOptionsExt;
            let path = dir.path().join(STORE);
            let to = File::options().write(true).create_new(true).mode(0o600).open(path);
            let mut to = to.context("the backup contains two stores")?;
            io::copy(&mut member, &mut to)?;
            to.sync_all()?;
        } else if let Some(key) = name.strip_prefix(KEYS).and_then(|n| n.strip_prefix('/')) {
            ensure!(is_key_file(key), "{name} is not a key of an authority");
            keys.insert(key.to_owned(), bounded(&mut member, &name, MAX_KEY_FILE)?);
        } else if let Some(path) = name.strip_prefix(LOG).and_then(|n| n.strip_prefix('/')) {
            let max = match Tile::parse(path) {
                Some(tile) => max_len(tile),
                None if path == CHECKPOINT => MAX_CHECKPOINT,
                None => bail!("{name} is not part of a log"),
            };
            let bytes = bounded(&mut member, &name, max)?;
            log.put(vec![(path.to_owned(), bytes.to_vec())]).await?;
        } else {
            bail!("{name} is not part of a backup");
        }
    }
    let end = end.context("the backup is truncated: its end is missing")?;
    ensure!(
        end.sha256 == hex(&hash.finish()),
        "the backup is damaged: its checksum does not match"
    );
    Ok((head.context("the backup is empty")?, keys))
}

fn bounded(from: &mut impl Read, name: &str, max: usize) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::new());
    from.take(max as u64 + 1).read_to_end(&mut bytes)?;
    ensure!(bytes.len() <= max, "{name} is larger than {max} bytes");
    Ok(bytes)
}
