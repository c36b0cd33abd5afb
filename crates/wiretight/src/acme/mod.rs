//! Certificates for public names by ACME (RFC 8555): orders them, renews them in time, keeps them in the store, and serves
//! them on every edge that shares the store.
//!
//! - `record`: the record of a site in the store, and what to do next (pure)
//! - `order`: one order, continued from any step
//! - `on_demand`: hosts that are not known beforehand
//! - `dns_hook`: the external command for dns-01
//! - `http`: HTTPS to a CA
//!
//! Every step is in the store before the CA is contacted, so a process may die at any point. Certificate keys and account
//! keys are stored encrypted to the edges that share the store. Time is a parameter.

mod account;
mod dns_hook;
mod http;
mod on_demand;
mod order;
mod record;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod year;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use instant_acme::HttpClient;
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use wiretight_keys::{SealKey, WebLeaf, seal};
use wiretight_proxy::edge::settings::SiteName;
use wiretight_proxy::edge::{
    Certificates, Challenges, SiteCertificate, Source, challenge_certificate,
};
use wiretight_store::{Entry, Error as StoreError, Key, Revision, Store};

use crate::config::{AcmeSite, CaSettings, Challenge, OnDemandSite};
use crate::control::Blob;
use crate::private_dir::{FileError, PrivateDir};
pub(crate) use dns_hook::{DnsHook, serve as serve_dns_hook};
use on_demand::Refusals;
use order::OrderError;
use record::{Answer, Current, Lease, Pending, Plan, Sealed, SiteRecord};

/// Sites that are processed at a time.
const AT_A_TIME: usize = 8;
/// Longest pause between checks, in seconds, because the clock may be set.
const AT_LEAST: u64 = 60;
/// Pause after an error of the store, in seconds.
const STORE_RETRY: u64 = 10;
/// How long to wait for an edge that has a certificate's key to share it, in seconds.
const WAIT_FOR_KEY: u64 = 600;
/// The file of the key that secrets are encrypted to.
pub(crate) const SEAL_KEY: &str = "seal.key";

/// Real or simulated time.
#[async_trait]
pub(crate) trait Clock: Send + Sync {
    /// Seconds since 1970.
    fn now(&self) -> u64;
    async fn sleep(&self, duration: Duration);
}

/// The machine's clock.
pub(crate) struct RealClock;

#[async_trait]
impl Clock for RealClock {
    fn now(&self) -> u64 {
        wiretight_proxy::clock::now()
    }
    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

type NewTransport = Arc<dyn Fn() -> Box<dyn HttpClient> + Send + Sync>;

/// A CA and its settings.
#[derive(Clone)]
pub(crate) struct Ca {
    directory: String,
    contact: Vec<String>,
    profile: Option<String>,
    challenge: Option<Challenge>,
    dns_command: Option<PathBuf>,
    transport: NewTransport,
}

#[derive(Debug, thiserror::Error)]
pub enum AcmeError {
    #[error("{path}: {detail}. `roots` in [[acme]] must be a PEM file of certificates.")]
    Roots { path: String, detail: String },
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(
        "{0} is not a valid encryption key. Restore it from a backup, or remove it; then the certificates are ordered again."
    )]
    SealKey(String),
}

impl Ca {
    /// Reads the roots that the CA's server is verified with.
    pub(crate) fn open(settings: &CaSettings) -> Result<Ca, AcmeError> {
        let roots: Vec<CertificateDer<'static>> = match &settings.roots {
            // Unreadable system roots are ignored.
            None => rustls_native_certs::load_native_certs().certs,
            Some(path) => {
                let bad =
                    |detail: String| AcmeError::Roots { path: path.display().to_string(), detail };
                let pem = std::fs::read(path).map_err(|e| bad(e.to_string()))?;
                let certs: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
                let certs = certs.map_err(|e| bad(e.to_string()))?;
                if certs.is_empty() {
                    return Err(bad("it has no certificate".into()));
                }
                certs
            }
        };
        if roots.is_empty() {
            tracing::error!(
                directory = settings.directory,
                "this system has no trusted CA certificates. Install the package ca-certificates, or set `roots` in [[acme]]."
            );
        }
        let https = http::Https::new(&roots)?;
        let transport: NewTransport = Arc::new(move || Box::new(https.clone()));
        let (directory, profile) = (settings.directory.clone(), settings.profile.clone());
        let (challenge, dns_command) = (settings.challenge, settings.dns_command.clone());
        let contact = settings.contact.clone();
        Ok(Ca { directory, contact, profile, challenge, dns_command, transport })
    }
}

pub(crate) fn cas(settings: &[CaSettings]) -> Result<Vec<Ca>, AcmeError> {
    settings.iter().map(Ca::open).collect()
}

/// This machine's encryption key; created at the first start.
pub(crate) fn seal_key(dir: &PrivateDir) -> Result<SealKey, AcmeError> {
    let bad = || AcmeError::SealKey(dir.path().join(SEAL_KEY).display().to_string());
    if let Some(bytes) = dir.read(SEAL_KEY, 1024)? {
        return SealKey::from_bytes(&bytes).ok_or_else(bad);
    }
    let key = SealKey::generate().map_err(|_| bad())?;
    dir.write(SEAL_KEY, &key.to_bytes())?;
    Ok(key)
}

/// Manages the certificates of sites.
pub(crate) struct Acme {
    store: Arc<dyn Store>,
    /// The prefix in the store: `edge/IDENTITY/`.
    prefix: String,
    /// This edge's name among those that share the store.
    me: String,
    key: SealKey,
    clock: Arc<dyn Clock>,
    serve: Arc<Certificates>,
    dns_hook: Option<Arc<DnsHook>>,
    /// Serialises publishing: otherwise older data could replace newer data.
    publishing: tokio::sync::Mutex<()>,
    told: Mutex<Told>,
    woken: Notify,
    at_a_time: Semaphore,
    /// The sites that tasks of this edge work on. (A lease only excludes other edges.)
    working: Mutex<BTreeSet<String>>,
    /// Held while a new host is admitted.
    admitting: tokio::sync::Mutex<()>,
    noes: Mutex<Refusals>,
    /// The certificates of hosts, as last read from the store.
    read: Mutex<BTreeMap<SiteName, (Revision, Arc<SiteCertificate>)>>,
}

/// Marks a site as being worked on; ends when dropped.
struct Turn<'a>(&'a Acme, &'a str);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.working.lock().remove(self.1);
    }
}

/// The configuration, and current problems.
#[derive(Default)]
struct Told {
    sites: Vec<AcmeSite>,
    on_demand: Vec<OnDemandSite>,
    cas: Vec<Ca>,
    errors: BTreeMap<String, String>,
    /// Problems with the store or another edge, by site.
    hitches: BTreeMap<String, String>,
    /// Since when this edge waits for a key from another edge, by site or account path.
    keyless: BTreeMap<String, u64>,
}

/// A record that this edge works on.
struct Held {
    record: SiteRecord,
    revision: Revision,
}

impl Acme {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        identity: &str,
        me: &str,
        key: SealKey,
        clock: Arc<dyn Clock>,
        serve: Arc<Certificates>,
        dns_hook: Option<Arc<DnsHook>>,
    ) -> Arc<Acme> {
        Arc::new(Acme {
            store,
            prefix: format!("edge/{identity}/"),
            me: me.to_owned(),
            key,
            clock,
            serve,
            dns_hook,
            publishing: tokio::sync::Mutex::default(),
            told: Mutex::default(),
            woken: Notify::new(),
            at_a_time: Semaphore::new(AT_A_TIME),
            working: Mutex::default(),
            admitting: tokio::sync::Mutex::default(),
            noes: Mutex::default(),
            read: Mutex::default(),
        })
    }

    /// Sets the sites and CAs.
    pub(crate) fn update(&self, sites: Vec<AcmeSite>, cas: Vec<Ca>) {
        {
            let mut told = self.told.lock();
            let title = |s: &AcmeSite| s.names.first().map(ToString::to_string);
            let titles: Vec<_> = sites.iter().filter_map(title).collect();
            told.errors.retain(|site, _| titles.contains(site));
            told.hitches.retain(|site, _| titles.contains(site));
            told.keyless.retain(|what, _| titles.contains(what) || what.contains('/'));
            (told.sites, told.cas) = (sites, cas);
        }
        self.woken.notify_one();
    }

    /// Why sites have no new certificate, by the site's first name.
    pub(crate) fn errors(&self) -> BTreeMap<String, String> {
        let told = self.told.lock();
        told.errors.clone().into_iter().chain(told.hitches.clone()).collect()
    }

    fn hitch(&self, title: &str, why: Option<String>) {
        match why {
            Some(why) => self.told.lock().hitches.insert(title.to_owned(), why),
            None => self.told.lock().hitches.remove(title),
        };
    }

    /// Retries failed orders now; rate limits still apply.
    pub(crate) async fn retry(&self) -> Result<(), StoreError> {
        let sites = self.told.lock().sites.clone();
        for site in sites {
            let Some(title) = site.names.first().map(ToString::to_string) else { continue };
            let mut held = self.load(&title).await?;
            if held.record.retry_at > self.clock.now() {
                held.record.retry_at = 0;
                match self.save(&title, &mut held).await {
                    Ok(()) | Err(StoreError::Conflict { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        self.woken.notify_one();
        Ok(())
    }

    /// Never returns.
    pub(crate) async fn run(self: Arc<Self>) {
        tokio::spawn(self.clone().follow());
        loop {
            let next = self.clone().step().await;
            let wait = next.saturating_sub(self.clock.now()).clamp(1, AT_LEAST);
            tokio::select! {
                () = self.clock.sleep(Duration::from_secs(wait)) => {}
                () = self.woken.notified() => {}
            }
        }
    }

    /// Serves certificates at once that other edges put into the store.
    async fn follow(self: Arc<Self>) {
        loop {
            if let Ok((_, at)) = self.store.list(&self.prefix).await
                && let Ok(mut watch) = self.store.watch(&self.prefix, at).await
            {
                // First publish changes from before the watch.
                loop {
                    if let Err(error) = self.publish().await {
                        tracing::error!(%error, "the certificate store failed");
                    }
                    let Ok(changes) = watch.next().await else { break };
                    // A new edge needs keys, and new keys must exclude a removed one.
                    let members = format!("{}member/", self.prefix);
                    if changes.iter().any(|c| c.key().as_str().starts_with(&members)) {
                        self.woken.notify_one();
                    }
                }
            }
            self.clock.sleep(Duration::from_secs(STORE_RETRY)).await;
        }
    }

    /// Does everything that is due, and returns when to run next.
    pub(crate) async fn step(self: Arc<Self>) -> u64 {
        let sites = self.told.lock().sites.clone();
        let failed = |error: &StoreError| {
            let error = crate::logging::chain(error);
            tracing::error!(
                error,
                "the certificate store failed; current certificates are still served"
            );
        };
        let mut next = u64::MAX;
        let joined = if sites.is_empty() && self.told.lock().on_demand.is_empty() {
            Ok(())
        } else {
            self.join().await
        };
        if let Err(error) = self.publish().await {
            failed(&error);
        }
        if let Err(error) = joined {
            failed(&error);
            for title in sites.iter().filter_map(|s| s.names.first()) {
                self.hitch(title.as_str(), Some(crate::logging::chain(&error)));
            }
            return self.clock.now() + STORE_RETRY;
        }
        if !(sites.is_empty() && self.told.lock().on_demand.is_empty())
            && let Err(error) = self.share_accounts().await
        {
            failed(&error);
        }
        let hosts = self.hosts_to_tend().await.unwrap_or_else(|error| {
            failed(&error);
            Vec::new()
        });
        let mut work = JoinSet::new();
        for site in sites.into_iter().chain(hosts) {
            let this = self.clone();
            work.spawn(async move {
                let Ok(_turn) = this.at_a_time.acquire().await else { return Ok(u64::MAX) };
                let tended = this.tend(&site, false).await;
                if let (Err(error), Some(title)) = (&tended, site.names.first()) {
                    this.hitch(title.as_str(), Some(crate::logging::chain(error)));
                }
                tended
            });
        }
        while let Some(done) = work.join_next().await {
            match done {
                Ok(Ok(at)) => next = next.min(at),
                Ok(Err(error)) => {
                    failed(&error);
                    next = next.min(self.clock.now() + STORE_RETRY);
                }
                Err(error) => tracing::error!(%error, "the task for a certificate failed"),
            }
        }
        if let Err(error) = self.publish().await {
            failed(&error);
        }
        next
    }

    /// Publishes this edge's key, so that others can encrypt secrets to it.
    async fn join(&self) -> Result<(), StoreError> {
        let key = Key::new(format!("{}member/{}", self.prefix, self.me))?;
        let public = self.key.public().to_vec();
        let same = self.store.get(&key).await?.is_some_and(|e| e.value == public);
        if !same {
            let put = |_: Option<&[u8]>| Ok::<_, StoreError>(Some(public.clone()));
            wiretight_store::update(&*self.store, &key, put).await?;
        }
        Ok(())
    }

    /// The edges that share the store. The authority removes those that were removed from the mesh.
    async fn members(&self) -> Result<BTreeSet<String>, StoreError> {
        let prefix = format!("{}member/", self.prefix);
        let (members, _) = self.store.list(&prefix).await?;
        let name = |e: &Entry| Some(e.key.as_str().strip_prefix(&prefix)?.to_owned());
        Ok(members.iter().filter_map(name).collect())
    }

    /// Encrypts a secret to every edge that shares the store. `purpose` is its path there.
    async fn seal(&self, purpose: &str, secret: &[u8]) -> Result<Sealed, StoreError> {
        let prefix = format!("{}member/", self.prefix);
        let (members, _) = self.store.list(&prefix).await?;
        let to = |entry: &Entry| {
            let name = entry.key.as_str().strip_prefix(&prefix)?.to_owned();
            match seal(&entry.value, purpose.as_bytes(), secret) {
                Ok(sealed) => Some((name, Blob(sealed))),
                Err(error) => {
                    tracing::error!(edge = name, %error, "cannot encrypt a key to an edge");
                    None
                }
            }
        };
        Ok(members.iter().filter_map(to).collect())
    }

    /// Decrypts a secret that was encrypted to this edge.
    fn open(&self, purpose: &str, sealed: &Sealed) -> Option<zeroize::Zeroizing<Vec<u8>>> {
        self.key.open(purpose.as_bytes(), &sealed.get(&self.me)?.0).ok()
    }

    fn site_key(&self, title: &str) -> Result<Key, StoreError> {
        Key::new(format!("{}site/{title}", self.prefix))
    }

    async fn load(&self, title: &str) -> Result<Held, StoreError> {
        let key = self.site_key(title)?;
        loop {
            if let Some(entry) = self.store.get(&key).await? {
                // An unreadable record is replaced: the certificate can be ordered again.
                let record = serde_json::from_slice(&entry.value).unwrap_or_default();
                return Ok(Held { record, revision: entry.revision });
            }
            match self.store.create(&key, b"{}".to_vec()).await {
                Ok(_) | Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes the record, unless another edge has changed it.
    async fn save(&self, title: &str, held: &mut Held) -> Result<(), StoreError> {
        if let Some(lease) = &mut held.record.lease {
            lease.until = self.clock.now() + record::LEASE;
        }
        let value = serde_json::to_vec(&held.record).unwrap_or_default();
        held.revision = self.store.swap(&self.site_key(title)?, held.revision, Some(value)).await?;
        Ok(())
    }

    /// Does what is due for a site, and returns when to run next. `asked`: the operator's program has just allowed it.
    async fn tend(&self, site: &AcmeSite, asked: bool) -> Result<u64, StoreError> {
        let Some(title) = site.names.first().map(ToString::to_string) else { return Ok(u64::MAX) };
        if !self.working.lock().insert(title.clone()) {
            return Ok(self.clock.now() + 1);
        }
        let _turn = Turn(self, &title);
        loop {
            let mut held = self.load(&title).await?;
            let now = self.clock.now();
            held.record.prune(now);
            let members = self.members().await?;
            let current = self.current(&held.record, site, &title, &members);
            let done = match held.record.plan(current.as_ref(), &self.me, now) {
                Plan::Wait(at) => {
                    if self.share(&title, &mut held, &members).await? {
                        continue;
                    }
                    let keyless = self.told.lock().keyless.contains_key(&title);
                    self.hitch(&title, keyless.then(|| without_key(&held.record, &self.me)));
                    return Ok(at);
                }
                Plan::AskAri => self.ask_ari(&title, &mut held, current.as_ref()).await,
                Plan::Order => {
                    self.hitch(&title, None);
                    let not_after = current.as_ref().map(|c| c.period.not_after);
                    match asked || self.may_renew(site, &title, &mut held, not_after).await? {
                        true => self.work(site, &title, &mut held, current.as_ref()).await,
                        false => Ok(()),
                    }
                }
            };
            match done {
                // After a conflict with another edge, read the record again.
                Ok(()) | Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Encrypts the certificate's key to new edges; returns true if the record changed.
    async fn share(
        &self,
        title: &str,
        held: &mut Held,
        members: &BTreeSet<String>,
    ) -> Result<bool, StoreError> {
        let Some(issued) = &mut held.record.certificate else { return Ok(false) };
        match self.open(title, &issued.key) {
            Some(secret) => {
                if members.iter().all(|name| issued.key.contains_key(name)) {
                    return Ok(false);
                }
                let all = self.seal(title, &secret).await?;
                let missing: Vec<_> =
                    all.into_iter().filter(|(n, _)| !issued.key.contains_key(n)).collect();
                if missing.is_empty() {
                    return Ok(false);
                }
                issued.key.extend(missing);
            }
            // Encrypted to an old key of this edge: remove it, so that another edge encrypts it again.
            None if issued.key.len() > 1 && issued.key.remove(&self.me).is_some() => {}
            None => return Ok(false),
        }
        match self.save(title, held).await {
            Ok(()) | Err(StoreError::Conflict { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Takes the lease, and starts or continues an order; records the result.
    async fn work(
        &self,
        site: &AcmeSite,
        title: &str,
        held: &mut Held,
        current: Option<&Current>,
    ) -> Result<(), StoreError> {
        let (cas, now) = (self.told.lock().cas.clone(), self.clock.now());
        let names: Vec<String> = site.names.iter().map(ToString::to_string).collect();
        let stale = |o: &Pending| o.names != names || o.ends() < now;
        if held.record.order.as_ref().is_none_or(stale) {
            if cas.is_empty() {
                held.record.failed("no CA is configured".into(), None, AT_LEAST, now);
                return self.save(title, held).await;
            }
            // After a failure, the next CA.
            let ca = &cas[held.record.failures as usize % cas.len()];
            held.record.order = Some(Pending {
                ca: ca.directory.clone(),
                url: None,
                begun: now,
                names,
                key: None,
                answers: Vec::new(),
                without_replaces: false,
            });
        }
        held.record.lease = Some(Lease { holder: self.me.clone(), until: 0 });
        self.save(title, held).await?;
        let directory = held.record.order.as_ref().map(|o| o.ca.clone());
        let ca = cas.iter().find(|ca| Some(&ca.directory) == directory.as_ref());
        let mut records = Vec::new();
        let ordered = self.order(title, held, current, ca, &mut records).await;
        self.withdraw(ca, &records).await;
        let now = self.clock.now();
        let not_after = current.map(|c| c.period.not_after);
        match ordered {
            Ok(()) => {
                self.told.lock().errors.remove(title);
                tracing::info!(site = title, "got a new certificate");
                return Ok(());
            }
            Err(OrderError::Store(error)) => return Err(error),
            // The order has failed permanently.
            Err(OrderError::Refused(error)) => {
                held.record.order = None;
                held.record.failed(error, not_after, 0, now);
            }
            // The CA is unavailable. The order may continue when it is back, because a new order would count against the
            // limits again. Or another CA is tried.
            Err(OrderError::Unavailable { error, least }) => {
                let begun = held.record.order.as_ref().is_some_and(|o| o.url.is_some());
                if !begun || cas.len() > 1 && held.record.failures % 3 == 2 {
                    held.record.order = None;
                }
                held.record.failed(error, not_after, least, now);
            }
        }
        let error = held.record.error.clone().unwrap_or_default();
        let again_in = held.record.retry_at.saturating_sub(now);
        tracing::error!(site = title, error, again_in, "cannot get a new certificate");
        self.told.lock().errors.insert(title.to_owned(), error);
        self.save(title, held).await
    }

    /// The certificate in a record. It fits if this edge has its key or will soon get it, and no removed edge has it.
    fn current(
        &self,
        record: &SiteRecord,
        site: &AcmeSite,
        title: &str,
        members: &BTreeSet<String>,
    ) -> Option<Current> {
        let issued = record.certificate.as_ref()?;
        let names: Vec<String> = site.names.iter().map(ToString::to_string).collect();
        let leaf = leaf(&issued.chain)?;
        let mut holders = issued.key.keys();
        let known = holders.clone().all(|name| members.contains(name));
        let others = holders.any(|name| *name != self.me && members.contains(name));
        let has_key = self.open(title, &issued.key).is_some();
        if has_key || !others {
            self.told.lock().keyless.remove(title);
        }
        let fits = issued.names == names && known;
        let fits = fits && (has_key || others && self.may_wait(title));
        Some(Current { period: leaf.period, id: renewal_id(&leaf), fits })
    }

    /// Whether to wait longer for another edge to share a key. (It may never come back.)
    fn may_wait(&self, what: &str) -> bool {
        let now = self.clock.now();
        let mut told = self.told.lock();
        let since = told.keyless.entry(what.to_owned()).or_insert(now);
        *since = (*since).min(now);
        now - *since < WAIT_FOR_KEY
    }

    /// Serves the certificates and challenges in the store.
    pub(crate) async fn publish(&self) -> Result<(), StoreError> {
        let _one = self.publishing.lock().await;
        let sites = self.told.lock().sites.clone();
        let mut challenges = Challenges::default();
        let mut certificates = self.publish_hosts(&mut challenges).await?;
        for site in &sites {
            let Some(title) = site.names.first().map(ToString::to_string) else { continue };
            let Some(entry) = self.store.get(&self.site_key(&title)?).await? else { continue };
            let Ok(record) = serde_json::from_slice::<SiteRecord>(&entry.value) else { continue };
            for answer in record.order.iter().flat_map(|o| &o.answers) {
                answer_with(answer, &mut challenges);
            }
            if let Some((held, certificate)) = self.servable(&title, &record) {
                let wanted = site.names.iter().filter(|n| held.contains(n));
                certificates.extend(wanted.map(|n| (n.clone(), certificate.clone())));
            }
        }
        self.serve.set(Source::Acme, certificates);
        self.serve.set_challenges(challenges);
        Ok(())
    }

    /// The certificates of on-demand hosts.
    async fn publish_hosts(
        &self,
        challenges: &mut Challenges,
    ) -> Result<BTreeMap<SiteName, Arc<SiteCertificate>>, StoreError> {
        if self.told.lock().on_demand.is_empty() {
            return Ok(BTreeMap::new());
        }
        let before = std::mem::take(&mut *self.read.lock());
        let mut read = BTreeMap::new();
        for (host, held) in self.hosts().await? {
            for answer in held.record.order.iter().flat_map(|o| &o.answers) {
                answer_with(answer, challenges);
            }
            if self.on_demand(&host).is_none() {
                continue;
            }
            let same = before.get(&host).filter(|(revision, _)| *revision == held.revision);
            let certificate = same.map(|(_, certificate)| certificate.clone());
            let anew = || Some(self.servable(host.as_str(), &held.record)?.1);
            if let Some(certificate) = certificate.or_else(anew) {
                read.insert(host, (held.revision, certificate));
            }
        }
        let all = read.iter().map(|(host, (_, c))| (host.clone(), c.clone())).collect();
        *self.read.lock() = read;
        Ok(all)
    }

    /// A record's certificate and its names, if this edge can serve it.
    fn servable(
        &self,
        title: &str,
        record: &SiteRecord,
    ) -> Option<(Vec<SiteName>, Arc<SiteCertificate>)> {
        let issued = record.certificate.as_ref()?;
        let key = self.open(title, &issued.key)?;
        let held: Vec<SiteName> = issued.names.iter().filter_map(|n| n.parse().ok()).collect();
        match SiteCertificate::from_pem(issued.chain.as_bytes(), &key, &held) {
            Ok(certificate) => Some((held, Arc::new(certificate))),
            Err(error) => {
                tracing::error!(site = title, %error, "a stored certificate cannot be served");
                None
            }
        }
    }
}

fn answer_with(answer: &Answer, challenges: &mut Challenges) {
    match answer {
        Answer::Http { token, key_authorization } => {
            challenges.http.insert(token.clone(), key_authorization.clone());
        }
        Answer::Dns { .. } => {}
        Answer::TlsAlpn { name, digest } => {
            let shown = digest.0.as_slice().try_into().ok().and_then(|digest| {
                challenge_certificate(name, digest)
                    .inspect_err(|error| tracing::error!(name, %error, "cannot create the certificate for tls-alpn-01"))
                    .ok()
            });
            challenges.tls_alpn.extend(shown.map(|shown| (name.clone(), shown)));
        }
    }
}

fn without_key(record: &SiteRecord, me: &str) -> String {
    let holders = record.certificate.iter().flat_map(|c| c.key.keys()).filter(|n| *n != me);
    let holders = holders.map(String::as_str).collect::<Vec<_>>().join(", ");
    format!(
        "{holders} has the certificate's key and has not shared it with this edge yet. Check that this node is running. After {} minutes a new certificate is ordered.",
        WAIT_FOR_KEY / 60
    )
}

fn leaf(chain: &str) -> Option<WebLeaf> {
    let first = CertificateDer::pem_slice_iter(chain.as_bytes()).next()?.ok()?;
    WebLeaf::parse(&first).ok()
}

/// `AKI.SERIAL` (RFC 9773, section 4.1).
fn renewal_id(leaf: &WebLeaf) -> Option<String> {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let (authority, serial) = leaf.renewal_id()?;
    Some(format!("{}.{}", URL_SAFE_NO_PAD.encode(authority), URL_SAFE_NO_PAD.encode(serial)))
}
