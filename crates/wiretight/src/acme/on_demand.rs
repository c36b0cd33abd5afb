//! Sites whose hosts are not known beforehand: a host's certificate is ordered when its first client comes,
//! if the program that the operator names says yes. It is asked again before each renewal.
//!
//! Whoever connects can name any host, so all of it is bounded: clients that wait, hosts that are new in an
//! hour, hosts in all; and a no is remembered for a while.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
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

/// Hosts that are worked on at a time, and clients that wait for one.
const HOSTS_AT_A_TIME: usize = 64;
const CLIENTS_AT_A_TIME: usize = 256;
/// Hosts that are new in an hour: three hours of them are below what public CAs allow an account (300).
const NEW_PER_HOUR: usize = 90;
/// Hosts in all.
const MOST: usize = 10_000;
/// A no holds for so long, in seconds; so many are remembered.
const NO_HOLDS: u64 = 60;
const NOES: usize = 4096;
/// For all of a question.
const PATIENCE: Duration = Duration::from_secs(5);
/// While another edge orders, its certificate is looked for so often.
const LOOK: Duration = Duration::from_millis(250);
/// And for so long, about: nobody waits longer in a handshake.
const LOOKS: usize = 40;

const HOUR: u64 = 3600;

impl AskUrl {
    /// Asks. An error is a no that may be otherwise in a moment.
    pub(super) async fn ask(&self, host: &SiteName) -> Result<bool, String> {
        let failed = |detail: &dyn std::fmt::Display| {
            format!(
                "{}, which is asked whether {host} is to have a certificate, does not answer: {detail}",
                self.authority()
            )
        };
        let asked = async {
            let at = self.authority().host().trim_matches(['[', ']']);
            let at = (at, self.authority().port_u16().unwrap_or(80));
            let tcp = TcpStream::connect(at).await.map_err(|e| failed(&e))?;
            // `localhost` is what this system takes it for: plaintext stays here all the same.
            if !tcp.peer_addr().is_ok_and(|a| a.ip().to_canonical().is_loopback()) {
                return Err(failed(&AskUrlError::NotHere));
            }
            let shaken = hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await;
            let (mut sender, connection) = shaken.map_err(|e| failed(&e))?;
            let connection = tokio::spawn(connection);
            let joint = if self.path().query().is_some() { '&' } else { '?' };
            let request = Request::get(format!("{}{joint}domain={host}", self.path()))
                .header(HOST, self.authority().as_str())
                .body(Empty::<Bytes>::new())
                .map_err(|e| failed(&e))?;
            let answer = sender.send_request(request).await;
            connection.abort();
            match answer.map_err(|e| failed(&e))?.status() {
                StatusCode::OK => Ok(true),
                // Whatever is wrong there, it is no yes.
                status if status.is_server_error() => Err(failed(&status)),
                _ => Ok(false),
            }
        };
        let late = |_| Err(failed(&format!("not within {PATIENCE:?}")));
        timeout(PATIENCE, asked).await.unwrap_or_else(late)
    }
}

/// The hosts that were refused, and until when that holds.
#[derive(Default)]
pub(super) struct Noes(HashMap<SiteName, u64>);

impl Noes {
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
    /// Which hosts may have certificates on demand, from now on.
    pub(crate) fn update_on_demand(&self, sites: Vec<OnDemandSite>) {
        self.told().on_demand = sites;
        self.woken.notify_one();
    }

    /// Works for clients that wait, for good.
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
                        continue; // dropped: the client is turned away
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
                            tracing::error!(%error, "the store of certificates failed");
                            id
                        }
                        Err(error) => {
                            tracing::error!(%error, "the work on a certificate ended");
                            error.id()
                        }
                    };
                    // Whoever waits looks again.
                    hosts.remove(&id).and_then(|host| waiting.remove(&host));
                }
            }
        }
    }

    /// Gets a host's certificate, if it may have one.
    pub(super) async fn get_on_demand(&self, host: &SiteName) -> Result<(), StoreError> {
        let now = self.clock.now();
        let Some(ask) = self.on_demand(host) else { return Ok(()) };
        if self.noes().holds(host, now) || !host.as_str().contains('.') {
            return Ok(());
        }
        let record = self.store.get(&self.site_key(host.as_str())?).await?;
        let record = record.and_then(|e| serde_json::from_slice::<SiteRecord>(&e.value).ok());
        // Nothing can come of it yet: nobody is asked.
        if record.as_ref().is_some_and(|r| r.retry_at > now) {
            return Ok(());
        }
        match ask.ask(host).await {
            Ok(true) => {}
            Ok(false) => {
                tracing::info!(%host, "no certificate: the program that is asked says no");
                self.noes().note(host.clone(), now);
                return Ok(());
            }
            Err(error) => {
                tracing::error!(error, "no certificate");
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
            // Another edge, or another task of this one, may be at it.
            if self.serve.get(host.as_str()).is_some() || !self.is_under_way(host).await? {
                break;
            }
            tokio::time::sleep(LOOK).await; // a client's time, whatever the clock says
            self.publish().await?;
        }
        Ok(())
    }

    async fn is_under_way(&self, host: &SiteName) -> Result<bool, StoreError> {
        let now = self.clock.now();
        let record = self.load(host.as_str()).await?.record;
        Ok(record.retry_at <= now && record.lease.is_some_and(|lease| lease.until > now))
    }

    /// Takes a new host in, if there is room.
    async fn admit(&self, host: &SiteName) -> Result<bool, StoreError> {
        // One at a time, or all would find the last place free.
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
                Some(format!("{taken} hosts have certificates on demand, and that is the bound"))
            }
            (_, true) => {
                Some(format!("{last_hour} hosts were new in the last hour, and that is the bound"))
            }
            _ => None,
        };
        if let Some(error) = full {
            tracing::error!(%host, error, "no certificate");
            self.noes().note(host.clone(), now);
            return Ok(false);
        }
        let mut held = self.load(host.as_str()).await?;
        held.record.on_demand = Some(now);
        match self.save(host.as_str(), &mut held).await {
            Ok(()) | Err(StoreError::Conflict { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// The hosts that came by demand.
    pub(super) async fn hosts(&self) -> Result<Vec<(SiteName, Held)>, StoreError> {
        let prefix = format!("{}site/", self.prefix);
        let (entries, _) = self.store.list(&prefix).await?;
        let own: HashSet<SiteName> =
            self.told().sites.iter().flat_map(|s| s.names.clone()).collect();
        let host = |entry: wiretight_store::Entry| {
            let host: SiteName = entry.key.as_str().strip_prefix(&prefix)?.parse().ok()?;
            let record: SiteRecord = serde_json::from_slice(&entry.value).ok()?;
            let by_demand = record.on_demand.is_some() && !own.contains(&host);
            by_demand.then_some((host, Held { record, revision: entry.revision }))
        };
        Ok(entries.into_iter().filter_map(host).collect())
    }

    /// Those that there is something to do for without a client: a certificate to be renewed, an order to be
    /// ended. What has come to nothing and counts for no budget any longer is forgotten.
    pub(super) async fn hosts_to_tend(&self) -> Result<Vec<AcmeSite>, StoreError> {
        if self.told().on_demand.is_empty() {
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
                self.told().errors.remove(host.as_str());
            }
        }
        Ok(all)
    }

    /// Asks again before a certificate is renewed; notes why not.
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
            Ok(false) => "the program that is asked says no".to_owned(),
            Err(error) => error,
        };
        tracing::warn!(site = title, error, "the certificate is not renewed");
        self.told().errors.insert(title.to_owned(), error.clone());
        held.record.failed(error, not_after, 0, self.clock.now());
        self.save(title, held).await?;
        Ok(false)
    }

    /// Who says whether a host may have a certificate; `None`: nobody, for no such site has it.
    pub(super) fn on_demand(&self, host: &SiteName) -> Option<AskUrl> {
        let told = self.told();
        // One with a site of its own gets its certificate there.
        if host.is_wildcard() || told.sites.iter().any(|s| s.names.contains(host)) {
            return None;
        }
        let is = |pattern: &SiteName| match pattern.as_str().strip_prefix("*.") {
            Some(rest) => host.as_str().split_once('.').is_some_and(|(_, below)| below == rest),
            None => pattern.is_wildcard(),
        };
        // As the edge does: the closer name first.
        let close =
            told.on_demand.iter().find(|s| s.names.iter().any(|n| n.as_str() != "*" && is(n)));
        let any = || told.on_demand.iter().find(|s| s.names.iter().any(is));
        close.or_else(any).map(|site| site.ask.clone())
    }
}
