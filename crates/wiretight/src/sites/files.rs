//! The certificates of sites that are given as files: read at the start and at a reload, and read again
//! whenever a file changes, so that whoever renews them need not tell us.
//!
//! What cannot be served is not: the certificate that was good goes on until the files are good again.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use wiretight_proxy::Certificates;
use wiretight_proxy::edge::settings::SiteName;
use wiretight_proxy::edge::{SiteCertificate, Source};

use crate::config::{Config, SiteFiles};

/// How often files are looked at.
const EVERY: Duration = Duration::from_secs(2);
/// A chain or a key is smaller by far.
const MAX_FILE: u64 = 1 << 20;

/// Keeps the edge's certificates as the files are.
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

/// What tells one content of two files from another, without reading them.
type Stamp = [(u64, i64, i64, u64); 2];

impl Watched {
    fn new(names: &[SiteName], files: &SiteFiles) -> Watched {
        let (names, files) = (names.to_vec(), files.clone());
        let mut watched = Watched { names, files, seen: None, serves: None, error: None };
        watched.look();
        watched
    }

    /// Reads the files if they have changed; true if they had.
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

    /// Reads the files of this configuration. What is wrong comes back; the sites that are right are to be
    /// put into force all the same or not, as the caller sees fit, by [`Staged::commit`].
    pub(crate) fn stage<'a>(&'a self, config: &Config) -> Staged<'a> {
        let sites = config.file_sites().map(|(names, files)| Watched::new(names, files)).collect();
        Staged { of: self, sites }
    }

    /// Why a site's files are not in force, by the first of its names.
    pub(crate) fn errors(&self) -> BTreeMap<String, String> {
        let sites = self.sites();
        let errors = sites.iter().filter_map(|s| Some((s.names.first()?, s.error.as_ref()?)));
        errors.map(|(name, error)| (name.to_string(), error.clone())).collect()
    }

    /// Looks at the files, for good.
    pub(crate) async fn watch(self: Arc<FileCertificates>) {
        let mut tick = tokio::time::interval(EVERY);
        loop {
            tick.tick().await;
            let this = self.clone();
            let looked = tokio::task::spawn_blocking(move || this.look()).await;
            if let Err(error) = looked {
                tracing::error!(%error, "certificate files could not be looked at");
            }
        }
    }

    fn look(&self) {
        let mut sites = self.sites();
        let mut changed = false;
        for site in sites.iter_mut().filter_map(|s| s.look().then_some(s)) {
            changed = true;
            let name = site.names.first().map(ToString::to_string);
            match &site.error {
                None => tracing::info!(site = name, "the changed certificate is in force"),
                Some(error) => {
                    tracing::error!(site = name, error, "the certificate files are not good")
                }
            }
        }
        if changed {
            self.edge.set(Source::Files, served(&sites));
        }
    }

    fn sites(&self) -> MutexGuard<'_, Vec<Watched>> {
        self.sites.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Certificates that were read and are not yet in force.
pub(crate) struct Staged<'a> {
    of: &'a FileCertificates,
    sites: Vec<Watched>,
}

impl Staged<'_> {
    /// Each site whose files are no good, and why.
    pub(crate) fn errors(&self) -> Vec<&str> {
        self.sites.iter().filter_map(|s| s.error.as_deref()).collect()
    }

    /// Puts them into force.
    pub(crate) fn commit(self) {
        let mut sites = self.of.sites();
        self.of.edge.set(Source::Files, served(&self.sites));
        *sites = self.sites;
    }
}

fn served(sites: &[Watched]) -> BTreeMap<SiteName, Arc<SiteCertificate>> {
    let all = sites.iter().filter_map(|s| Some((s, s.serves.as_ref()?)));
    all.flat_map(|(s, c)| s.names.iter().map(|n| (n.clone(), c.clone()))).collect()
}

/// The files of a configuration: what the sandbox must leave open.
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
    // Room for all from the start: a vector that grows leaves a key's bytes behind.
    let mut bytes = Vec::with_capacity(MAX_FILE as usize + 1);
    let read = fs::File::open(path).and_then(|f| f.take(MAX_FILE).read_to_end(&mut bytes));
    match read {
        Ok(_) => Ok(bytes),
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => Err(format!(
            "{}: {e} (this user may not, or the folder was not in the configuration at the start: restart)",
            path.display()
        )),
        Err(e) => Err(format!("{}: {e}", path.display())),
    }
}
