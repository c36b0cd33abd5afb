//! Stores a log in an S3 bucket or a compatible one. An acknowledged write is durable; versioning and a retention lock of
//! the bucket also protect it from being undone.
//!
//! A write without a response may still be executed minutes later. So each write is conditional: a new object is created
//! only if there is none (`If-None-Match: *`), and an object is replaced only if it is the one last seen (`If-Match`). A
//! late write finds another object, and the bucket refuses it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutPayload, UpdateVersion};
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tokio::task::JoinSet;

use super::sequencer::CHECKPOINT;
use super::storage::{Object, Storage};
use crate::web::objects::Transport;

/// Objects that are written or deleted at a time.
const AT_ONCE: usize = 32;
/// An object that is created twice, to find out whether the bucket honours conditions.
const PROBE: &str = "conditional-writes";
/// How often a write is tried.
const TRIES: u32 = 5;
/// The pause after a write without a response; it grows by the same amount with each try.
const PAUSE: Duration = Duration::from_millis(200);

/// A bucket, or a prefix in it.
#[derive(Debug, Clone)]
pub struct Bucket {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    place: String,
    /// The version of the checkpoint as last written: the only object that is replaced regularly.
    checkpoint: Arc<Mutex<Option<UpdateVersion>>>,
    /// Set once it was checked whether the bucket honours conditions.
    probed: Arc<OnceCell<()>>,
}

/// Why a bucket cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot use the log's storage {url}: check the bucket, AWS_REGION and the credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, or those of the machine)"
)]
pub struct BucketError {
    url: String,
    source: Error,
}

impl Bucket {
    /// Opens `s3://BUCKET[/PREFIX]`. Region, endpoint and credentials come from AWS's usual environment variables.
    pub fn s3(url: &str) -> Result<Bucket, BucketError> {
        let failed = |source| BucketError { url: url.to_owned(), source };
        let (_, place) = url.split_once("://").unwrap_or(("", url));
        let (_, prefix) = place.split_once('/').unwrap_or((place, ""));
        // Plaintext must never cross a network, whatever the environment says.
        let store = AmazonS3Builder::from_env().with_url(url).with_allow_http(false);
        let store = store.with_http_connector(Transport).build().map_err(failed)?;
        let prefix = Path::parse(prefix).map_err(|e| failed(e.into()))?;
        Ok(Bucket::new(Arc::new(store), prefix, url.to_owned()))
    }

    /// A prefix in any object store.
    pub fn new(store: Arc<dyn ObjectStore>, prefix: Path, place: String) -> Bucket {
        let (checkpoint, probed) = (Arc::default(), Arc::default());
        Bucket { store, prefix, place, checkpoint, probed }
    }

    /// Whether the bucket refuses to create an existing object. Some S3-compatible services ignore the condition.
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

    /// Logs an alarm if it does not. Errors are ignored here, as the write that follows reports them.
    async fn probe(&self) {
        if let Ok(false) = self.heeds_conditions().await {
            tracing::error!(
                "ALARM: {} ignores the conditions of writes (If-None-Match, If-Match), or AWS_CONDITIONAL_PUT disables them: an abandoned write that is executed late can damage the log. Use storage that honours them",
                self.place
            );
        }
    }

    /// Writes an object. It replaces what exists now, but nothing that is written later.
    async fn write(&self, name: &str, bytes: Vec<u8>) -> Result<(), Error> {
        let path = self.path(name).map_err(|e| Error::Generic { store: "S3", source: e.into() })?;
        let payload = PutPayload::from(bytes.clone());
        let is_checkpoint = name == CHECKPOINT;
        let remembered = || self.checkpoint.lock();
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
                // It is safe to send the request again, regardless of the result of the first one.
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
            // Read the existing object: it may be this very write, sent again after its response was lost.
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
                    // It is left over from a batch that failed before it was signed.
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

/// The result of one of several tasks.
fn done(ended: Option<Result<io::Result<()>, tokio::task::JoinError>>) -> io::Result<()> {
    ended.unwrap_or(Ok(Ok(()))).map_err(io::Error::other)?
}
