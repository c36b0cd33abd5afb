//! The storage of a log's tiles and checkpoint: objects by path, written atomically, and durable when the write returns.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;

use crate::private_dir::replace_at;

/// An object: its path below the log's prefix, and its bytes.
pub type Object = (String, Vec<u8>);

/// Objects by path.
#[async_trait]
pub trait Storage: Send + Sync {
    /// Writes objects, replacing existing ones. All are durable when this returns.
    async fn put(&self, objects: Vec<Object>) -> io::Result<()>;

    /// Reads an object; `None` if there is none. It is an error if it is larger than `max` bytes.
    async fn get(&self, path: &str, max: usize) -> io::Result<Option<Vec<u8>>>;

    /// Deletes everything below a folder. It is no error if there is nothing.
    async fn delete_all(&self, folder: &str) -> io::Result<()>;

    /// Its location, for messages.
    fn place(&self) -> String;
}

/// A directory of files, which a web server can serve as it is.
#[derive(Debug, Clone)]
pub struct Directory {
    root: Arc<Path>,
}

impl Directory {
    /// Opens a directory, and creates it if it does not exist.
    pub fn open(root: impl Into<PathBuf>) -> io::Result<Directory> {
        let root: PathBuf = root.into();
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&root)?;
        Ok(Directory { root: root.into() })
    }

    /// Writes a file under a temporary name and renames it. The caller must sync the directories in `touched`.
    fn write(&self, path: &str, bytes: &[u8], touched: &mut BTreeSet<PathBuf>) -> io::Result<()> {
        let path = self.root.join(path);
        let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        if !dir.is_dir() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
            // New directories are entries of the directories above.
            let above = dir.ancestors().skip(1).take_while(|d| d.starts_with(&self.root));
            touched.extend(above.map(Path::to_owned));
        }
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let written = replace_at(&File::open(dir)?, name, bytes, None);
        touched.insert(dir.to_owned());
        written
    }
}

#[async_trait]
impl Storage for Directory {
    async fn put(&self, objects: Vec<Object>) -> io::Result<()> {
        let this = self.clone();
        // The thread keeps running if this future is dropped. Then it must not overwrite anything that is written later.
        let given_up = GivenUp::default();
        let stop = given_up.0.clone();
        blocking(move || {
            let turn = File::open(&this.root)?;
            match turn.lock() {
                Err(e) if e.kind() == io::ErrorKind::Unsupported => {} // a file system without locks
                locked => locked?,
            }
            let mut touched = BTreeSet::new();
            for (path, bytes) in &objects {
                if stop.load(Ordering::SeqCst) {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                let named = |e: io::Error| io::Error::new(e.kind(), format!("{path}: {e}"));
                this.write(path, bytes, &mut touched).map_err(named)?;
            }
            touched.iter().try_for_each(|dir| File::open(dir)?.sync_all())
        })
        .await
    }

    async fn get(&self, path: &str, max: usize) -> io::Result<Option<Vec<u8>>> {
        let path = self.root.join(path);
        blocking(move || {
            let file = match File::open(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                file => file?,
            };
            let mut bytes = Vec::new();
            file.take(max as u64 + 1).read_to_end(&mut bytes)?;
            match bytes.len() > max {
                true => Err(io::Error::other(format!("larger than {max} bytes"))),
                false => Ok(Some(bytes)),
            }
        })
        .await
    }

    async fn delete_all(&self, folder: &str) -> io::Result<()> {
        let folder = self.root.join(folder);
        blocking(move || match fs::remove_dir_all(&folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        })
        .await
    }

    fn place(&self) -> String {
        self.root.display().to_string()
    }
}

/// Signals the writing thread when the write is abandoned.
#[derive(Default)]
struct GivenUp(Arc<AtomicBool>);

impl Drop for GivenUp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
