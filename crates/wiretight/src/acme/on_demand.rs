//! Sites whose hosts are not known beforehand. A host's certificate is ordered when its first client connects, if the
//! operator's program (`ask`) allows it. The program is asked again before each renewal.
//!
//! Clients can name any host, so everything is limited: waiting clients, new hosts per hour, and the total number of
//! hosts. A refusal is remembered for a while.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use wiretight_proxy::edge::Demand;
use wiretight_proxy::edge::settings::SiteName;
use wiretight_store::Error as StoreError;

use super::record::{Pending, SiteRecord};
use super::{Acme, Held, leaf};
use crate::config::{AcmeSite, AskUrl, AskUrlError, OnDemandSite};
use crate::web;

/// Limits for hosts being processed and for waiting clients.
const HOSTS_AT_A_TIME: usize = 64;
const CLIENTS_AT_A_TIME: usize = 256;
/// New hosts per hour. Public CAs allow an account 300 orders in three hours.
const NEW_PER_HOUR: usize = 90;
/// The total number of hosts.
const MOST: usize = 10_000;
/// How long a refusal is remembered, in seconds, and how many are.
const NO_HOLDS: u64 = 60;
const NOES: usize = 4096;
/// For a whole question to the operator's program.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often to check for the certificate while another edge orders it.
const LOOK: Duration = Duration::from_millis(250);
/// How many times to check; clients do not wait longer in a handshake.
const LOOKS: usize = 40;

const HOUR: u64 = 3600;

impl AskUrl {
    /// Asks the program. After an error it may be asked again at once; a refusal is remembered.
    pub(super) async fn ask(&self, host: &SiteName) -> Result<bool, String> {
        let failed = |detail: &dyn std::fmt::Display| {
            format!(
                "cannot ask {} whether {host} may have a certificate: {detail}",
                self.authority()
            )
        };
        let asked = async {
            let at = self.authority().host().trim_matches(['[', ']']);
            let at = (at, self.authority().port_u16().unwrap_or(80));
            let tcp = TcpStream::connect(at).await.map_err(|e| failed(&e))?;
            // `localhost` could resolve to another address, but plaintext must not leave this machine.
            if !tcp.peer_addr().is_ok_and(|a| a.ip().to_canonical().is_loopback()) {
                return Err(failed(&AskUrlError::NotHere));
            }
            let joint = if self.path().query().is_some() { '&' } else { '?' };
            let request = Request::get(format!("{}{joint}domain={host}", self.path()))
                .header(HOST, self.authority().as_str())
                .body(Empty::<Bytes>::new())
                .map_err(|e| failed(&e))?;
            let (answer, _open) = web::send(tcp, request).await.map_err(|e| failed(&e))?;
            match answer.status() {
                StatusCode::OK => Ok(true),
                // An error of the program does not allow the certificate.
                status if status.is_server_error() => Err(failed(&status)),
                _ => Ok(false),
            }
        };
        let late = |_| Err(failed(&format!("timed out after {PATIENCE:?}")));
        timeout(PATIENCE, asked).await.unwrap_or_else(late)
    }
}

/// The hosts that were refused, each with the time until which the refusal is remembered.
#[derive(Default)]
pub(super) struct Refusals(HashMap<SiteName, u64>);

impl Refusals {
    fn holds(&self, host: &SiteName, now: u64) -> bool {
        self.0.get(host).is_some_and(|until| *until > now && *until <= now + NO_HOLDS)
    }

    fn note(&mut self, host: SiteName, now: u64) {
        if self.0.len() >= NOES {
            self.0.retain(|_, until| *until > now);
        }
        if self.0.len() < NOES {
            self.0.insert(host, now + NO_HOLDS);
        }
    }
}

impl Acme {
    /// Sets the sites with on-demand certificates.
    pub(crate) fn update_on_demand(&self, sites: Vec<OnDemandSite>) {
        self.told.lock().on_demand = sites;
        self.woken.notify_one();
    }

    /// Serves waiting clients until the channel closes.
    pub(crate) async fn run_on_demand(self: Arc<Self>, mut demands: mpsc::Receiver<Demand>) {
        let mut waiting: HashMap<SiteName, Vec<Demand>> = HashMap::new();
        let mut work = JoinSet::new();
        let mut hosts = HashMap::new();
        loop {
            tokio::select! {
                demand = demands.recv() => {
                    let Some(demand) = demand else { return };
                    let clients: usize = waiting.values().map(Vec::len).sum();
                    let known = waiting.contains_key(&demand.host);
                    if clients >= CLIENTS_AT_A_TIME || !known && waiting.len() >= HOSTS_AT_A_TIME {
                        continue; // dropping the demand rejects the client
                    }
                    if !known {
                        let (this, host) = (self.clone(), demand.host.clone());
                        let task = work.spawn(async move { this.get_on_demand(&host).await });
                        hosts.insert(task.id(), demand.host.clone());
                    }
                    waiting.entry(demand.host.clone()).or_default().push(demand);
                }
                Some(done) = work.join_next_with_id() => {
                    let id = match done {
                        Ok((id, Ok(()))) => id,
                        Ok((id, Err(error))) => {
                            tracing::error!(%error, "the certificate store failed");
                            id
                        }
                        Err(error) => {
                            tracing::error!(%error, "the task for a certificate failed");
                            error.id()
                        }
                    };
                    // Dropping the demands wakes the clients, which check again.
                    hosts.remove(&id).and_then(|host| waiting.remove(&host));
                }
            }
        }
    }

    /// Gets a host's certificate, if it may have one.
    pub(super) async fn get_on_demand(&self, host: &SiteName) -> Result<(), StoreError> {
        let now = self.clock.now();
        let Some(ask) = self.on_demand(host) else { return Ok(()) };
        if self.noes.lock().holds(host, now) || !host.as_str().contains('.') {
            return Ok(());
        }
        let record = self.store.get(&self.site_key(host.as_str())?).await?;
        let record = record.and_then(|e| serde_json::from_slice::<SiteRecord>(&e.value).ok());
        // No order is possible yet, so do not ask.
        if record.as_ref().is_some_and(|r| r.retry_at > now) {
            return Ok(());
        }
        match ask.ask(host).await {
            Ok(true) => {}
            Ok(false) => {
                tracing::info!(%host, "no certificate was ordered: the program in `ask` refused it");
                self.noes.lock().note(host.clone(), now);
                return Ok(());
            }
            Err(error) => {
                tracing::error!(error, "no certificate was ordered");
                return Ok(());
            }
        }
        self.join().await?;
        if record.is_none_or(|r| r.on_demand.is_none()) && !self.admit(host).await? {
            return Ok(());
        }
        if let Ok(_turn) = self.at_a_time.acquire().await {
            let site = AcmeSite { names: vec![host.clone()], ask: Some(ask) };
            self.tend(&site, true).await?;
        }
        self.publish().await?;
        for _ in 0..LOOKS {
            // Another edge, or another task of this one, may be ordering it.
            if self.serve.get(host.as_str()).is_some() || !self.is_under_way(host).await? {
                break;
            }
            tokio::time::sleep(LOOK).await; // real time, because a client is waiting
            self.publish().await?;
        }
        Ok(())
    }

    async fn is_under_way(&self, host: &SiteName) -> Result<bool, StoreError> {
        let now = self.clock.now();
        let record = self.load(host.as_str()).await?.record;
        Ok(record.retry_at <= now && record.lease.is_some_and(|lease| lease.until > now))
    }

    /// Admits a new host, within the limits.
    async fn admit(&self, host: &SiteName) -> Result<bool, StoreError> {
        // One at a time, so that several orders do not use the last free place.
        let _one = self.admitting.lock().await;
        let now = self.clock.now();
        let (mut taken, mut last_hour) = (0, 0);
        for (_, held) in self.hosts().await? {
            let since = held.record.on_demand.unwrap_or_default();
            taken += 1;
            last_hour += usize::from(since.saturating_add(HOUR) > now);
        }
        let full = match (taken >= MOST, last_hour >= NEW_PER_HOUR) {
            (true, _) => {
                Some(format!("{taken} hosts have on-demand certificates, which is the limit"))
            }
            (_, true) => {
                Some(format!("{last_hour} hosts were new in the last hour, which is the limit"))
            }
            _ => None,
        };
        if let Some(error) = full {
            tracing::error!(%host, error, "no certificate was ordered");
            self.noes.lock().note(host.clone(), now);
            return Ok(false);
        }
        let mut held = self.load(host.as_str()).await?;
        held.record.on_demand = Some(now);
        match self.save(host.as_str(), &mut held).await {
            Ok(()) | Err(StoreError::Conflict { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// The on-demand hosts.
    pub(super) async fn hosts(&self) -> Result<Vec<(SiteName, Held)>, StoreError> {
        let prefix = format!("{}site/", self.prefix);
        let (entries, _) = self.store.list(&prefix).await?;
        let own: HashSet<SiteName> =
            self.told.lock().sites.iter().flat_map(|s| s.names.clone()).collect();
        let host = |entry: wiretight_store::Entry| {
            let host: SiteName = entry.key.as_str().strip_prefix(&prefix)?.parse().ok()?;
            let record: SiteRecord = serde_json::from_slice(&entry.value).ok()?;
            let by_demand = record.on_demand.is_some() && !own.contains(&host);
            by_demand.then_some((host, Held { record, revision: entry.revision }))
        };
        Ok(entries.into_iter().filter_map(host).collect())
    }

    /// On-demand hosts with work to do even without a client: a certificate to renew, or an order to finish. Deletes
    /// records that have no certificate and no longer count for a limit.
    pub(super) async fn hosts_to_tend(&self) -> Result<Vec<AcmeSite>, StoreError> {
        if self.told.lock().on_demand.is_empty() {
            return Ok(Vec::new());
        }
        let now = self.clock.now();
        let mut all = Vec::new();
        for (host, mut held) in self.hosts().await? {
            held.record.prune(now);
            let record = &held.record;
            let issued = record.certificate.as_ref().and_then(|c| leaf(&c.chain));
            let holds = issued.is_some_and(|leaf| leaf.period.not_after > now);
            let ordered = record.order.as_ref().is_some_and(|o: &Pending| o.ends() > now);
            if holds || ordered {
                let ask = self.on_demand(&host);
                all.extend(ask.map(|ask| AcmeSite { names: vec![host], ask: Some(ask) }));
            } else if record.is_spent(now) {
                match self.store.swap(&self.site_key(host.as_str())?, held.revision, None).await {
                    Ok(_) | Err(StoreError::Conflict { .. }) => {}
                    Err(error) => return Err(error),
                }
                self.told.lock().errors.remove(host.as_str());
            }
        }
        Ok(all)
    }

    /// Asks the operator's program before a renewal; records why it is not renewed.
    pub(super) async fn may_renew(
        &self,
        site: &AcmeSite,
        title: &str,
        held: &mut Held,
        not_after: Option<u64>,
    ) -> Result<bool, StoreError> {
        let (Some(ask), Some(host), None) = (&site.ask, site.names.first(), &held.record.order)
        else {
            return Ok(true);
        };
        let error = match ask.ask(host).await {
            Ok(true) => return Ok(true),
            Ok(false) => "the program in `ask` refused it".to_owned(),
            Err(error) => error,
        };
        tracing::warn!(site = title, error, "the certificate is not renewed");
        self.told.lock().errors.insert(title.to_owned(), error.clone());
        held.record.failed(error, not_after, 0, self.clock.now());
        self.save(title, held).await?;
        Ok(false)
    }

    /// The program to ask about a host; `None` if no on-demand site includes it.
    pub(super) fn on_demand(&self, host: &SiteName) -> Option<AskUrl> {
        let told = self.told.lock();
        // A host with its own site gets its certificate there.
        if host.is_wildcard() || told.sites.iter().any(|s| s.names.contains(host)) {
            return None;
        }
        let is = |pattern: &SiteName| match pattern.as_str().strip_prefix("*.") {
            Some(rest) => host.as_str().split_once('.').is_some_and(|(_, below)| below == rest),
            None => pattern.is_wildcard(),
        };
        // Like the edge, prefer the more specific name.
        let close =
            told.on_demand.iter().find(|s| s.names.iter().any(|n| n.as_str() != "*" && is(n)));
        let any = || told.on_demand.iter().find(|s| s.names.iter().any(is));
        close.or_else(any).map(|site| site.ask.clone())
    }
}
