//! Tiles in an S3 bucket, or another's that speaks its protocol. What it says is written is durable; a bucket with
//! versions and a retention lock keeps them from being taken back, too.
//!
//! A write whose answer did not come may still be carried out, minutes later. So each write is conditional: a new object
//! is written only where there is none (`If-None-Match: *`), and an object is replaced only if it is still the one that
//! was seen (`If-Match`). Whatever comes late finds another object there, and the bucket refuses it.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutPayload, UpdateVersion};
use tokio::sync::OnceCell;
use tokio::task::JoinSet;

use super::sequencer::CHECKPOINT;
use super::storage::{Object, Storage};

/// Objects that are written or deleted at a time.
const AT_ONCE: usize = 32;
/// An object that shows, by a second try to create it, whether the bucket heeds conditions.
const PROBE: &str = "conditional-writes";
/// How often a write is tried.
const TRIES: u32 = 5;
/// After a write without an answer: once, twice, ... as long.
const PAUSE: Duration = Duration::from_millis(200);

/// A place in a bucket.
#[derive(Debug, Clone)]
pub struct Bucket {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    place: String,
    /// The checkpoint as it was written last: the one object that is replaced each time.
    checkpoint: Arc<Mutex<Option<UpdateVersion>>>,
    /// Whether it was looked if the bucket heeds conditions.
    probed: Arc<OnceCell<()>>,
}

/// Why a bucket cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "the log's storage {url} cannot be used: are bucket, AWS_REGION and credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, or those of the machine) right?"
)]
pub struct BucketError {
    url: String,
    source: Error,
}

impl Bucket {
    /// `s3://BUCKET[/PREFIX]`. Region, endpoint and credentials come from the environment, by the names that AWS gave
    /// them.
    pub fn s3(url: &str) -> Result<Bucket, BucketError> {
        let failed = |source| BucketError { url: url.to_owned(), source };
        let (_, place) = url.split_once("://").unwrap_or(("", url));
        let (_, prefix) = place.split_once('/').unwrap_or((place, ""));
        // Whatever the environment says: plaintext does not go over a network.
        let store = AmazonS3Builder::from_env().with_url(url).with_allow_http(false);
        let store = store.build().map_err(failed)?;
        let prefix = Path::parse(prefix).map_err(|e| failed(e.into()))?;
        Ok(Bucket::new(Arc::new(store), prefix, url.to_owned()))
    }

    /// A place in any object store.
    pub fn new(store: Arc<dyn ObjectStore>, prefix: Path, place: String) -> Bucket {
        let (checkpoint, probed) = (Arc::default(), Arc::default());
        Bucket { store, prefix, place, checkpoint, probed }
    }

    /// Whether the bucket refuses to create what is there. Some that speak S3 ignore the condition.
    pub async fn heeds_conditions(&self) -> io::Result<bool> {
        let path = self.path(PROBE)?;
        let payload = PutPayload::from_static(b"wiretight: is this created twice?\n");
        for _ in 0..2 {
            match self.store.put_opts(&path, payload.clone(), PutMode::Create.into()).await {
                Ok(_) => {}
                Err(Error::AlreadyExists { .. }) => return Ok(true),
                Err(Error::NotImplemented { .. }) => return Ok(false),
                Err(e) => return Err(io::Error::other(e)),
            }
        }
        Ok(false)
    }

    /// Says so if it does not. A bucket that fails now fails again at the write that follows.
    async fn probe(&self) {
        if let Ok(false) = self.heeds_conditions().await {
            tracing::error!(
                "ALARM: {} ignores the conditions of writes (If-None-Match, If-Match), or AWS_CONDITIONAL_PUT turns them off: a write that was given up and is carried out late can damage the log. Use storage that heeds them",
                self.place
            );
        }
    }

    /// Writes an object, over what is there now, and over nothing that comes later.
    async fn write(&self, name: &str, bytes: Vec<u8>) -> Result<(), Error> {
        let path = self.path(name).map_err(|e| Error::Generic { store: "S3", source: e.into() })?;
        let payload = PutPayload::from(bytes.clone());
        let is_checkpoint = name == CHECKPOINT;
        let remembered = || self.checkpoint.lock().unwrap_or_else(PoisonError::into_inner);
        let mut seen = if is_checkpoint { remembered().take() } else { None };
        let mut tries = 0;
        loop {
            let mode = seen.clone().map_or(PutMode::Create, PutMode::Update);
            let error = match self.store.put_opts(&path, payload.clone(), mode.into()).await {
                Ok(put) => {
                    if is_checkpoint {
                        *remembered() = Some(put.into());
                    }
                    return Ok(());
                }
                Err(Error::NotImplemented { .. }) => {
                    return self.store.put(&path, payload).await.map(drop);
                }
                // Sent again it does no harm, whatever became of the first one.
                Err(
                    e @ (Error::AlreadyExists { .. }
                    | Error::Precondition { .. }
                    | Error::Generic { .. }),
                ) => e,
                Err(e) => return Err(e),
            };
            tries += 1;
            if tries == TRIES {
                return Err(error);
            }
            if matches!(error, Error::Generic { .. }) {
                tokio::time::sleep(PAUSE * tries).await;
                continue;
            }
            // What is there? Perhaps this very write, whose answer was lost and which was sent again.
            match self.store.get(&path).await {
                Err(Error::NotFound { .. }) => seen = None,
                Err(e) => return Err(e),
                Ok(there) => {
                    let version = UpdateVersion {
                        e_tag: there.meta.e_tag.clone(),
                        version: there.meta.version.clone(),
                    };
                    if there.meta.size == bytes.len() as u64 && there.bytes().await? == bytes {
                        if is_checkpoint {
                            *remembered() = Some(version);
                        }
                        return Ok(());
                    }
                    // Left by a batch that failed before it was signed.
                    seen = Some(version);
                }
            }
        }
    }

    fn path(&self, path: &str) -> io::Result<Path> {
        let whole = match self.prefix.as_ref() {
            "" => path.to_owned(),
            prefix => format!("{prefix}/{path}"),
        };
        Path::parse(whole.trim_end_matches('/')).map_err(io::Error::other)
    }
}

#[async_trait]
impl Storage for Bucket {
    async fn put(&self, objects: Vec<Object>) -> io::Result<()> {
        self.probed.get_or_init(|| self.probe()).await;
        let mut writing = JoinSet::new();
        for (path, bytes) in objects {
            if writing.len() >= AT_ONCE {
                done(writing.join_next().await)?;
            }
            let this = self.clone();
            writing.spawn(async move { this.write(&path, bytes).await.map_err(io::Error::other) });
        }
        while !writing.is_empty() {
            done(writing.join_next().await)?;
        }
        Ok(())
    }

    async fn get(&self, path: &str, max: usize) -> io::Result<Option<Vec<u8>>> {
        let got = match self.store.get(&self.path(path)?).await {
            Err(Error::NotFound { .. }) => return Ok(None),
            got => got.map_err(io::Error::other)?,
        };
        if got.meta.size > max as u64 {
            return Err(io::Error::other(format!("larger than {max} bytes")));
        }
        Ok(Some(got.bytes().await.map_err(io::Error::other)?.into()))
    }

    async fn delete_all(&self, folder: &str) -> io::Result<()> {
        let listed = self.store.list_with_delimiter(Some(&self.path(folder)?)).await;
        let mut deleting = JoinSet::new();
        for object in listed.map_err(io::Error::other)?.objects {
            if deleting.len() >= AT_ONCE {
                done(deleting.join_next().await)?;
            }
            let store = self.store.clone();
            deleting.spawn(async move {
                match store.delete(&object.location).await {
                    Err(Error::NotFound { .. }) => Ok(()),
                    deleted => deleted.map_err(io::Error::other),
                }
            });
        }
        while !deleting.is_empty() {
            done(deleting.join_next().await)?;
        }
        Ok(())
    }

    fn place(&self) -> String {
        self.place.clone()
    }
}

/// How one of several tasks ended.
fn done(ended: Option<Result<io::Result<()>, tokio::task::JoinError>>) -> io::Result<()> {
    ended.unwrap_or(Ok(Ok(()))).map_err(io::Error::other)?
}
