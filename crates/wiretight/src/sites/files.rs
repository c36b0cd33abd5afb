//! Site certificates from files. They are read at the start, at a reload, and whenever a file changes, so that a
//! renewal needs no reload.
//!
//! If the files become invalid, the previous certificate stays in use until they are valid again.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use wiretight_proxy::Certificates;
use wiretight_proxy::edge::settings::SiteName;
use wiretight_proxy::edge::{SiteCertificate, Source};

use crate::config::{Config, SiteFiles};

/// How often files are checked for changes.
const EVERY: Duration = Duration::from_secs(2);
/// The largest file that is read; chains and keys are far smaller.
const MAX_FILE: u64 = 1 << 20;

/// Keeps the edge's certificates in line with the files.
pub(crate) struct FileCertificates {
    edge: Arc<Certificates>,
    sites: Mutex<Vec<Watched>>,
}

struct Watched {
    names: Vec<SiteName>,
    files: SiteFiles,
    seen: Option<Stamp>,
    serves: Option<Arc<SiteCertificate>>,
    error: Option<String>,
}

/// Identifies the contents of both files without reading them.
type Stamp = [(u64, i64, i64, u64); 2];

impl Watched {
    fn new(names: &[SiteName], files: &SiteFiles) -> Watched {
        let (names, files) = (names.to_vec(), files.clone());
        let mut watched = Watched { names, files, seen: None, serves: None, error: None };
        watched.look();
        watched
    }

    /// Reads the files if they have changed; true if there is a new certificate or a new error.
    fn look(&mut self) -> bool {
        let stamp = stamp(&self.files);
        if stamp.is_some() && stamp == self.seen {
            return false;
        }
        let before = (self.error.take(), self.seen.replace(stamp.unwrap_or_default()));
        match read(&self.names, &self.files) {
            Ok(certificate) => {
                self.serves = Some(Arc::new(certificate));
                true
            }
            Err(error) => {
                let is_new = before.0.as_deref() != Some(&error);
                self.error = Some(error);
                is_new
            }
        }
    }
}

impl FileCertificates {
    pub(crate) fn new(edge: Arc<Certificates>) -> FileCertificates {
        FileCertificates { edge, sites: Mutex::default() }
    }

    /// Reads the certificate files of this configuration. [`Staged::errors`] tells what is wrong; [`Staged::commit`]
    /// puts the valid certificates into force.
    pub(crate) fn stage<'a>(&'a self, config: &Config) -> Staged<'a> {
        let sites = config.file_sites().map(|(names, files)| Watched::new(names, files)).collect();
        Staged { of: self, sites }
    }

    /// Why a site's files are not in use, by the site's first name.
    pub(crate) fn errors(&self) -> BTreeMap<String, String> {
        let sites = self.sites.lock();
        let errors = sites.iter().filter_map(|s| Some((s.names.first()?, s.error.as_ref()?)));
        errors.map(|(name, error)| (name.to_string(), error.clone())).collect()
    }

    /// Watches the files forever.
    pub(crate) async fn watch(self: Arc<FileCertificates>) {
        let mut tick = tokio::time::interval(EVERY);
        loop {
            tick.tick().await;
            let this = self.clone();
            let looked = tokio::task::spawn_blocking(move || this.look()).await;
            if let Err(error) = looked {
                tracing::error!(%error, "the check for changed certificate files failed");
            }
        }
    }

    fn look(&self) {
        let mut sites = self.sites.lock();
        let mut changed = false;
        for site in sites.iter_mut().filter_map(|s| s.look().then_some(s)) {
            changed = true;
            let name = site.names.first().map(ToString::to_string);
            match &site.error {
                None => tracing::info!(site = name, "using the changed certificate files"),
                Some(error) => tracing::error!(
                    site = name,
                    error,
                    "the certificate files are invalid; the previous certificate stays in use"
                ),
            }
        }
        if changed {
            self.edge.set(Source::Files, served(&sites));
        }
    }
}

/// Certificates that were read and are not yet in force.
pub(crate) struct Staged<'a> {
    of: &'a FileCertificates,
    sites: Vec<Watched>,
}

impl Staged<'_> {
    /// The errors of sites with invalid files.
    pub(crate) fn errors(&self) -> Vec<&str> {
        self.sites.iter().filter_map(|s| s.error.as_deref()).collect()
    }

    /// Puts them into force.
    pub(crate) fn commit(self) {
        let mut sites = self.of.sites.lock();
        self.of.edge.set(Source::Files, served(&self.sites));
        *sites = self.sites;
    }
}

fn served(sites: &[Watched]) -> BTreeMap<SiteName, Arc<SiteCertificate>> {
    let all = sites.iter().filter_map(|s| Some((s, s.serves.as_ref()?)));
    all.flat_map(|(s, c)| s.names.iter().map(|n| (n.clone(), c.clone()))).collect()
}

/// The files of a configuration, which the sandbox must allow to read.
pub(crate) fn files(config: &Config) -> impl Iterator<Item = &PathBuf> {
    let roots = config.edge.sites.iter().filter_map(|site| site.client_ca.as_ref());
    config.file_sites().flat_map(|(_, f)| [&f.cert, &f.key]).chain(roots)
}

fn stamp(files: &SiteFiles) -> Option<Stamp> {
    let of = |path: &Path| {
        let m = fs::metadata(path).ok()?;
        Some((m.ino(), m.mtime(), m.mtime_nsec(), m.len()))
    };
    Some([of(&files.cert)?, of(&files.key)?])
}

fn read(names: &[SiteName], files: &SiteFiles) -> Result<SiteCertificate, String> {
    let (cert, key) = (content(&files.cert)?, zeroize::Zeroizing::new(content(&files.key)?));
    SiteCertificate::from_pem(&cert, &key, names)
        .map_err(|e| format!("{} and {}: {e}", files.cert.display(), files.key.display()))
}

fn content(path: &Path) -> Result<Vec<u8>, String> {
    use std::io::Read;
    // Allocated at full size, as a vector that grows would leave copies of the key in freed memory.
    let mut bytes = Vec::with_capacity(MAX_FILE as usize + 1);
    let read = fs::File::open(path).and_then(|f| f.take(MAX_FILE).read_to_end(&mut bytes));
    match read {
        Ok(_) => Ok(bytes),
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => Err(format!(
            "{}: {e} (the node's user lacks the permission, or the directory was not in the configuration when the node started; in that case restart the node)",
            path.display()
        )),
        Err(e) => Err(format!("{}: {e}", path.display())),
    }
}
