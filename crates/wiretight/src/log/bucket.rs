//! Tiles in an S3 bucket, or another's that speaks its protocol. What it says is written is durable; a bucket with
//! versions and a retention lock keeps them from being taken back, too.

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutPayload};
use tokio::task::JoinSet;

use super::storage::{Object, Storage};

/// Objects that are written or deleted at a time.
const AT_ONCE: usize = 32;

/// A place in a bucket.
#[derive(Debug, Clone)]
pub struct Bucket {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    place: String,
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
        Bucket { store, prefix, place }
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
        let mut writing = JoinSet::new();
        for (path, bytes) in objects {
            if writing.len() >= AT_ONCE {
                done(writing.join_next().await)?;
            }
            let (store, path) = (self.store.clone(), self.path(&path)?);
            writing.spawn(async move {
                let put = store.put(&path, PutPayload::from(bytes)).await;
                put.map(drop).map_err(io::Error::other)
            });
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
