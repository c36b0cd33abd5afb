//! The registry in the store: nodes, join tokens, instances, issued and revoked certificates.
//!
//! ```text
//! token/ID               a join token: hash of the secret, node, services, and the key that used it
//! mesh/node/NAME         a node: enrolment key, claimable services, standing
//! mesh/instances/NAME    the instances that it offers
//! mesh/revoked/SERIES    a revoked series, kept longer than any session can last
//! mesh/revoked-index/FROM-TO  certificates revoked by the indexes of their log entries, kept forever
//! issued/NAME/SERIAL     an issued certificate, until it expires
//! issued/_web/SERIAL     a web server's certificate, likewise (no node can have this name)
//! seen/NAME              when a node's stream last started or ended
//! edge/service/SERVICE/  records that edges share (`shared`)
//! watch/NAME/DAY         what a node has counted of its traffic (`totals`)
//! published/checkpoints  what the proof page has shown (`published`)
//! report/NAME            what a node reports of itself (`reports`)
//! release/NAME           which release it runs (`releases`)
//! unproved/NAME          for how long that was not a proved one
//! released/minimum       the highest minimum version of all proved releases
//! ```
//!
//! The store has no transaction over several keys. So a change in several steps first marks the node's record as being
//! changed (`standing`, `withdrawn`), and [`Registry::finish`] does the rest. The next start calls it for every record
//! that is still marked. All certificates of a node for one identity belong to one series. The series is in the node's
//! record before the first certificate is issued, so revoking the series revokes them all. An SVID is issued in this
//! order: record it, check the node's record again, send it. So after marking a node and revoking the series in its
//! record, no certificate was or will be sent that is not revoked.

mod issuing;
mod published;
mod releases;
mod reports;
mod shared;
mod tokens;
mod totals;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use wiretight_keys::token::{secret_hash, secret_matches};
use wiretight_keys::{Csr, Id, Name, PublicKey, Revocation, Serial, Series, TrustDomain};
use wiretight_proxy::clock::now;
use wiretight_proxy::registry::Host;
use wiretight_store::{Entry, Error, Key, Store, update};
use zeroize::Zeroizing;

use super::ca::{Ca, CaError, random};
use super::offers::Announcer;
use super::{AuthorityError, Grant};
use crate::control::{
    Blob, Code, Denial, JOIN_CONTEXT, Join, Offer, REJOIN_CONTEXT, Records, Rejoin,
};
use crate::log::sequencer::Log;

use issuing::{Chain, IssuedRecord};
pub use published::Earlier;
pub use releases::{NodeRelease, ReleaseParams, ReleaseVerdict, ReleasesStatus};
pub(super) use reports::Member;
pub use reports::Reported;
pub(super) use shared::Written;
pub use tokens::PendingToken;

pub(super) const MESH: &str = "mesh/";
pub(super) const NODES: &str = "mesh/node/";
pub(super) const INSTANCES: &str = "mesh/instances/";
pub(super) const REVOKED: &str = "mesh/revoked/";
const ISSUED: &str = "issued/";
pub(super) const REVOKED_INDEXES: &str = "mesh/revoked-index/";
const TOKENS: &str = "token/";
const SEEN: &str = "seen/";

/// Expired tokens are kept for this long, so that a late join is told that its token has expired.
const TOKEN_MEMORY: u64 = 7 * 86_400;
/// Expired certificates are kept a little longer, for clocks that are behind.
const GRACE: u64 = 120;
/// The revocation of a series is pushed for this long: a session may be far older than a leaf can be, and a node may be
/// disconnected. Revocations are few and small.
const REVOKED_MEMORY: u64 = 90 * 86_400;
/// The most revocations by index. They are permanent: an entry stays in the log, and its certificate's validity may start
/// long after it was logged. Operators create them by hand, so more than this is a mistake; each is pushed to every node.
const MAX_INDEX_RANGES: usize = 10_000;
/// Limits for certificates of one node, a burst and a rate per second, so that it cannot fill the store.
const BURST: f64 = 10_000.0;
const RATE: f64 = 10.0;
/// The most revocations in one log entry; far below the size limit of an entry.
const MAX_LOGGED: usize = 1000;
/// Limits for changed announcements of one node, a burst and a rate per second, because each is pushed to every node.
/// More frequent changes are combined.
const ANNOUNCEMENTS: f64 = 60.0;
const ANNOUNCEMENTS_RATE: f64 = 0.2;

#[derive(Clone, Serialize, Deserialize)]
struct TokenRecord {
    hash: String,
    node: Name,
    services: BTreeSet<Name>,
    /// Addresses that the node may announce in addition to the one it connects from.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    addresses: BTreeSet<Host>,
    expires: u64,
    /// The enrolment key that used it.
    used_by: Option<Blob>,
    /// The node's enrolment when the token was used, if it had one. While the node still has that enrolment, or this
    /// token's, the join may be repeated, because its response may have been lost. Once the node has joined with another
    /// token, this one is invalid.
    #[serde(default)]
    before: Option<String>,
}

/// Whether a change of a node is in progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Standing {
    Active,
    /// A new enrolment replaces an old one, whose certificates are being revoked.
    Replacing,
    Removing,
}

#[derive(Clone, Serialize, Deserialize)]
pub(super) struct NodeRecord {
    pub(super) joined_at: u64,
    enrolment_key: Blob,
    /// The ID of the token that it joined with; distinguishes enrolments.
    pub(super) enrolment: String,
    pub(super) services: BTreeSet<Name>,
    /// Addresses that it may announce in addition to the one it connects from.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(super) addresses: BTreeSet<Host>,
    /// Services that it may no longer claim; their certificates are being revoked.
    withdrawn: BTreeSet<Name>,
    /// The series of its certificates, by identity.
    series: BTreeMap<Id, Series>,
    pub(super) standing: Standing,
}

impl NodeRecord {
    fn is_at_rest(&self) -> bool {
        self.standing == Standing::Active && self.withdrawn.is_empty()
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct RevokedRecord {
    pub(super) at: u64,
    /// The index of its log entry. The revocation is in force before it is logged.
    #[serde(default)]
    logged: Option<u64>,
}

impl RevokedRecord {
    fn new() -> RevokedRecord {
        RevokedRecord { at: now(), logged: None }
    }
}

pub(super) struct Listed {
    pub(super) record: NodeRecord,
    pub(super) instances: Vec<Offer>,
    pub(super) last_seen: Option<u64>,
}

pub(super) struct Registry {
    trust_domain: TrustDomain,
    store: Arc<dyn Store>,
    ca: Arc<Ca>,
    /// Held during joins, grants and removals, so that they are serialised. A lock in this process suffices, because only
    /// one authority process uses the store.
    changing: tokio::sync::Mutex<()>,
    budgets: Mutex<Budgets>,
    /// For records that edges share.
    shares: Mutex<Budgets>,
    announcements: Mutex<Budgets>,
    reports: reports::Reports,
    releases: releases::Releases,
    /// The node in this process.
    own: OnceLock<Name>,
}

/// The remaining budget of each node, and when it was computed.
type Budgets = HashMap<Name, (f64, Instant)>;

impl Registry {
    pub(super) fn new(trust_domain: TrustDomain, store: Arc<dyn Store>, ca: Arc<Ca>) -> Registry {
        let (changing, budgets, shares, announcements) = Default::default();
        let (reports, releases, own) = Default::default();
        Registry {
            trust_domain,
            store,
            ca,
            changing,
            budgets,
            shares,
            announcements,
            reports,
            releases,
            own,
        }
    }

    /// Sets which node runs in this process.
    pub(super) fn set_own(&self, node: Name) {
        let _ = self.own.set(node);
    }

    /// Finishes changes that a crash interrupted.
    pub(super) async fn recover(&self) -> Result<(), Error> {
        for (name, record) in self.nodes().await? {
            if !record.is_at_rest() {
                tracing::info!(node = %name, "finishing an interrupted change");
                self.finish(&name).await?;
            }
        }
        Ok(())
    }

    // ---- For the operator.

    /// Creates a token. Returns its ID, secret and expiry.
    pub(super) async fn create_token(
        &self,
        node: &Name,
        services: BTreeSet<Name>,
        addresses: BTreeSet<Host>,
        ttl: Duration,
    ) -> Result<(String, Zeroizing<String>, u64), AuthorityError> {
        use base64::Engine;
        use base64::engine::general_purpose::URL_SAFE_NO_PAD;
        let id = wiretight_keys::token::hex(&random::<8>()?);
        let secret = Zeroizing::new(random::<32>()?);
        let secret = Zeroizing::new(URL_SAFE_NO_PAD.encode(*secret));
        let expires = now().saturating_add(ttl.as_secs());
        let hash = secret_hash(&secret);
        let (node, used_by, before) = (node.clone(), None, None);
        let record = TokenRecord { hash, node, services, addresses, expires, used_by, before };
        self.store.create(&token_key(&id), json(&record)).await?;
        Ok((id, secret, expires))
    }

    /// Adds to or replaces the services that a node may claim. Certificates of removed services are revoked.
    pub(super) async fn grant(
        &self,
        node: &Name,
        services: BTreeSet<Name>,
        how: Grant,
    ) -> Result<(), AuthorityError> {
        let _guard = self.changing.lock().await;
        let mut found = false;
        update(&*self.store, &node_key(node), |value| {
            let Some(mut record) = whole::<NodeRecord>(value)? else { return Ok(None) };
            found = record.standing != Standing::Removing;
            match how {
                Grant::Add => record.services.extend(services.iter().cloned()),
                Grant::Replace => {
                    let kept = services.clone();
                    let old = std::mem::replace(&mut record.services, kept);
                    record.withdrawn.extend(old.difference(&services).cloned());
                }
            }
            record.withdrawn.retain(|s| !record.services.contains(s));
            Ok::<_, AuthorityError>(Some(json(&record)))
        })
        .await?;
        if !found {
            return Err(no_such_node(node));
        }
        Ok(self.finish(node).await?)
    }

    /// Adds to or replaces the addresses that a node may announce in addition to the one it connects from. This applies to
    /// its next announcement.
    pub(super) async fn grant_addresses(
        &self,
        node: &Name,
        addresses: BTreeSet<Host>,
        how: Grant,
    ) -> Result<(), AuthorityError> {
        let _guard = self.changing.lock().await;
        let mut found = false;
        update(&*self.store, &node_key(node), |value| {
            let Some(mut record) = whole::<NodeRecord>(value)? else { return Ok(None) };
            found = record.standing != Standing::Removing;
            match how {
                Grant::Add => record.addresses.extend(addresses.iter().cloned()),
                Grant::Replace => record.addresses.clone_from(&addresses),
            }
            Ok::<_, AuthorityError>(Some(json(&record)))
        })
        .await?;
        if found { Ok(()) } else { Err(no_such_node(node)) }
    }

    /// Removes a node: revokes its certificates, and deletes its tokens and instances. `marked` is called as soon as it can
    /// no longer get certificates.
    pub(super) async fn remove(
        &self,
        node: &Name,
        marked: impl FnOnce(),
    ) -> Result<(), AuthorityError> {
        let _guard = self.changing.lock().await;
        let key = node_key(node);
        let found = update(&*self.store, &key, |value| {
            let Some(mut record) = whole::<NodeRecord>(value)? else { return Ok(None) };
            record.standing = Standing::Removing;
            Ok::<_, AuthorityError>(Some(json(&record)))
        });
        if found.await?.is_none() {
            return Err(no_such_node(node));
        }
        marked();
        Ok(self.finish(node).await?)
    }

    /// Permanently revokes the certificates in these log entries (inclusive). It is for entries that should not be in the
    /// log, so it does not check whose they are.
    pub(super) async fn revoke(&self, from: u64, to: u64) -> Result<(), AuthorityError> {
        let (ranges, _) = self.store.list(REVOKED_INDEXES).await?;
        if ranges.len() >= MAX_INDEX_RANGES {
            return Err(AuthorityError::Refused(format!(
                "{MAX_INDEX_RANGES} ranges of entries are already revoked, which is the limit. Revoke one range that covers several."
            )));
        }
        match self.store.create(&revoked_indexes_key(from, to), json(&RevokedRecord::new())).await {
            Ok(_) | Err(Error::Conflict { .. }) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Logs revocations that are not in the log yet. After a crash some may be logged twice.
    pub(super) async fn log_revocations(&self, log: &Log) -> Result<(), AuthorityError> {
        loop {
            let (mut entries, _) = self.store.list(REVOKED).await?;
            entries.extend(self.store.list(REVOKED_INDEXES).await?.0);
            entries.retain(|e| {
                read::<RevokedRecord>(&e.value).is_some_and(|record| record.logged.is_none())
            });
            entries.truncate(MAX_LOGGED);
            if entries.is_empty() {
                return Ok(());
            }
            let last = |e: &Entry| e.key.as_str().rsplit('/').next().unwrap_or_default().to_owned();
            let (ranges, series): (Vec<_>, Vec<_>) =
                entries.iter().partition(|e| e.key.as_str().starts_with(REVOKED_INDEXES));
            let revocation = Revocation {
                at: now(),
                indexes: ranges.into_iter().filter_map(|e| indexes_in(&last(e))).collect(),
                series: series.into_iter().filter_map(|e| last(e).try_into().ok()).collect(),
            };
            let index = log.append(revocation.entry()).await.map_err(CaError::Log)?.index;
            for entry in entries {
                update(&*self.store, &entry.key, |value| {
                    let Some(mut record) = whole::<RevokedRecord>(value)? else { return Ok(None) };
                    record.logged = Some(index);
                    Ok::<_, AuthorityError>(Some(json(&record)))
                })
                .await?;
            }
        }
    }

    pub(super) async fn list(&self) -> Result<BTreeMap<Name, Listed>, Error> {
        let mut instances = self.folder::<Vec<Offer>>(INSTANCES).await?;
        let seen = self.folder::<u64>(SEEN).await?;
        let nodes = self.nodes().await?;
        let listed = |(name, record): (Name, NodeRecord)| {
            let instances = instances.remove(name.as_str()).unwrap_or_default();
            let last_seen = seen.get(name.as_str()).copied();
            (name, Listed { record, instances, last_seen })
        };
        Ok(nodes.into_iter().map(listed).collect())
    }

    // ---- For nodes.

    /// A join with a token. `exporter` is the TLS exporter value of the connection.
    pub(super) async fn join(&self, join: &Join, exporter: &[u8; 32]) -> Result<Joined, Denial> {
        self.same_trust_domain(&join.trust_domain)?;
        // Until the secret is verified, reveal nothing about the token.
        let unknown = || {
            let message = "unknown join token: it was altered, revoked, or created by another authority, or its node was removed. Create one with `wiretight token create`.";
            Denial::new(Code::UnknownToken, message)
        };
        let id = &join.token_id;
        if id.len() > 64 || !id.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(unknown());
        }
        let guard = self.changing.lock().await;
        let entry = self.store.get(&token_key(id)).await.map_err(internal)?.ok_or_else(unknown)?;
        let token: TokenRecord = read(&entry.value).ok_or_else(unknown)?;
        if !secret_matches(&join.secret, &token.hash) {
            return Err(unknown());
        }
        // From here on the caller is known to have the token, so errors are specific.
        if token.expires < now() {
            let ago = now() - token.expires;
            let message = format!("this join token expired {ago} s ago: create a new one");
            return Err(Denial::new(Code::TokenExpired, message));
        }
        if token.node != join.node {
            let message = format!(
                "this join token is for node {:?}, but this node is {:?}. Correct the name in [node], or create a token for this name.",
                token.node, join.node
            );
            return Err(Denial::new(Code::WrongNode, message));
        }
        check_proof(&join.enrolment_key, JOIN_CONTEXT, exporter, &join.proof)?;
        let csr = self.own_csr(&join.csr, &join.node)?;
        let enrolment = self.node(&join.node).await.map_err(internal)?.map(|r| r.enrolment);
        let current = enrolment == token.before || enrolment.as_ref() == Some(id);
        match &token.used_by {
            Some(key) if *key == join.enrolment_key && current => {}
            Some(key) if *key == join.enrolment_key => {
                let message = "this join token was used before, and a node of this name has joined with another token since. Create a new token.";
                return Err(Denial::new(Code::TokenUsed, message));
            }
            Some(_) => {
                let message = "this join token was used before, by another machine, and a token can be used only once. If you do not know that machine, remove the node and investigate. Create a new token.";
                return Err(Denial::new(Code::TokenUsed, message));
            }
            None => {
                let key = join.enrolment_key.clone();
                let used = TokenRecord { used_by: Some(key), before: enrolment, ..token.clone() };
                let (key, value) = (token_key(id), Some(json(&used)));
                self.store.swap(&key, entry.revision, value).await.map_err(internal)?;
            }
        }
        self.may_spend(&join.node)?;
        self.enrol(join, &token).await?;
        // Logging may take long. `issue` checks for changes of the node again before the certificate is sent.
        drop(guard);
        let chain = self.issue_one(&join.node, id, csr).await?;
        Ok(Joined { chain, bundle: self.ca.roots() })
    }

    /// A join of an enrolled node that has no accepted certificate.
    pub(super) async fn rejoin(
        &self,
        rejoin: &Rejoin,
        exporter: &[u8; 32],
    ) -> Result<Joined, Denial> {
        self.same_trust_domain(&rejoin.trust_domain)?;
        // One response for all cases, so that strangers do not learn names of nodes.
        let not_enrolled = || {
            let message = "no node of this name is enrolled with this key: it was removed, or its state directory belongs to another machine. It needs a new join token.";
            Denial::new(Code::NotEnrolled, message)
        };
        let record = self.node(&rejoin.node).await.map_err(internal)?.ok_or_else(not_enrolled)?;
        check_proof(&record.enrolment_key, REJOIN_CONTEXT, exporter, &rejoin.proof)
            .map_err(|_| not_enrolled())?;
        at_rest(&record)?;
        self.may_spend(&rejoin.node)?;
        let csr = self.own_csr(&rejoin.csr, &rejoin.node)?;
        if let Some(release) = rejoin.release.as_deref().cloned() {
            self.keep_release_of_stranger(&rejoin.node, &record.enrolment, release).await?;
        }
        let chain = self.issue_one(&rejoin.node, &record.enrolment, csr).await?;
        Ok(Joined { chain, bundle: self.ca.roots() })
    }

    /// Accepts a node's stream. Returns the enrolment that it belongs to.
    pub(super) async fn welcome(&self, node: &Name, serial: &Serial) -> Result<String, Denial> {
        let removed =
            || Denial::new(Code::Removed, format!("node {node} was removed from the mesh"));
        let record = self.node(node).await.map_err(internal)?.ok_or_else(removed)?;
        if record.standing == Standing::Removing {
            return Err(removed());
        }
        at_rest(&record)?;
        let revoked = self.store.get(&revoked_key(&serial.series())).await.map_err(internal)?;
        if revoked.is_some() {
            let message = "this certificate was revoked: another machine has joined as this node";
            return Err(Denial::new(Code::Removed, message));
        }
        self.seen(node).await;
        Ok(record.enrolment)
    }

    /// Stores the instances that a node offers. Rejected records are named in the refusal; the others are stored
    /// nevertheless. `from`: the address that its stream comes from.
    pub(super) async fn announce(
        &self,
        node: &Name,
        enrolment: &str,
        from: IpAddr,
        offers: Records<Offer>,
    ) -> Result<Announced, Denial> {
        let record = self.current(node, enrolment).await?;
        let is_own = self.own.get() == Some(node);
        let (services, addresses) = (&record.services, &record.addresses);
        let announcer = Announcer { node, services, from, addresses, is_own };
        let (offers, denial) = announcer.admit(offers);
        let (key, value) = (instances_key(node), json(&offers));
        let present = self.store.get(&key).await.map_err(internal)?;
        if present.is_none_or(|p| p.value != value) {
            let (of, most) = (&self.announcements, ANNOUNCEMENTS);
            match take(of, node, 1.0, most, ANNOUNCEMENTS_RATE, Instant::now()) {
                Duration::ZERO => {}
                wait => return Ok(Announced::NotBefore(wait)),
            }
        }
        let written = update(&*self.store, &key, |present| match present {
            // The same announcement again (a reconnect) is not a change and is not pushed.
            Some(present) if present == value => Err(Unchanged::Same),
            None if offers.is_empty() => Ok(None),
            _ => Ok(Some(value.clone())),
        });
        match written.await {
            Ok(_) | Err(Unchanged::Same) => {}
            Err(Unchanged::Failed(e)) => return Err(internal(e)),
        }
        denial.map_or(Ok(Announced::Done), Err)
    }

    /// Records that the node is connected, or was until now. A failure has no other effect.
    pub(super) async fn seen(&self, node: &Name) {
        let note = |_: Option<&[u8]>| Ok::<_, Error>(Some(json(&now())));
        if let Err(e) = update(&*self.store, &seen_key(node), note).await {
            tracing::warn!(%node, "cannot record when the node was last seen: {e}");
        }
    }

    // ---- Maintenance.

    /// Removes expired records. `is_steady`: the clock was not set for long. Otherwise no revocations are removed, because
    /// a clock that is temporarily ahead must not undo them.
    pub(super) async fn prune(&self, is_steady: bool) -> Result<(), Error> {
        let past = now().saturating_sub(GRACE);
        self.prune_folder(ISSUED, |r: IssuedRecord| r.not_after < past).await?;
        let long_past = now().saturating_sub(REVOKED_MEMORY);
        if is_steady {
            self.prune_folder(REVOKED, |r: RevokedRecord| r.at < long_past).await?;
        }
        let old = now().saturating_sub(TOKEN_MEMORY);
        self.prune_folder(TOKENS, |t: TokenRecord| t.expires < old).await?;
        self.prune_totals().await
    }

    async fn prune_folder<R: DeserializeOwned>(
        &self,
        folder: &str,
        over: impl Fn(R) -> bool,
    ) -> Result<(), Error> {
        for entry in self.store.list(folder).await?.0 {
            if read::<R>(&entry.value).is_some_and(&over) {
                self.delete(&entry).await?;
            }
        }
        Ok(())
    }

    // ---- Internal.

    async fn nodes(&self) -> Result<Vec<(Name, NodeRecord)>, Error> {
        let nodes = self.folder::<NodeRecord>(NODES).await?;
        Ok(nodes.into_iter().filter_map(|(n, r)| Some((n.parse().ok()?, r))).collect())
    }

    async fn folder<R: DeserializeOwned>(
        &self,
        folder: &str,
    ) -> Result<BTreeMap<String, R>, Error> {
        let (entries, _) = self.store.list(folder).await?;
        let item =
            |e: &Entry| Some((e.key.as_str().strip_prefix(folder)?.to_owned(), read(&e.value)?));
        Ok(entries.iter().filter_map(item).collect())
    }

    async fn node(&self, name: &Name) -> Result<Option<NodeRecord>, Error> {
        Ok(self.store.get(&node_key(name)).await?.and_then(|e| read(&e.value)))
    }

    /// The record of a node, if it still has the given enrolment.
    async fn current(&self, name: &Name, enrolment: &str) -> Result<NodeRecord, Denial> {
        let record = self.node(name).await.map_err(internal)?;
        match record {
            Some(r) if r.standing == Standing::Active && r.enrolment == enrolment => Ok(r),
            Some(r) if r.standing != Standing::Removing => {
                // Either this node joined again, or another machine did; the next handshake shows which.
                let message = "a node of this name has joined again: connect again";
                Err(Denial::new(Code::Superseded, message))
            }
            _ => Err(Denial::new(Code::Removed, format!("node {name} was removed from the mesh"))),
        }
    }

    fn same_trust_domain(&self, theirs: &TrustDomain) -> Result<(), Denial> {
        if *theirs == self.trust_domain {
            return Ok(());
        }
        let ours = &self.trust_domain;
        let message = format!("the trust domain of this authority is {ours}, not {theirs}");
        Err(Denial::new(Code::WrongTrustDomain, message))
    }

    fn csr(&self, der: &Blob) -> Result<Csr, Denial> {
        let csr = Csr::parse(&der.0).map_err(|e| Denial::new(Code::BadRequest, e.to_string()))?;
        self.same_trust_domain(&csr.id.trust_domain)?;
        Ok(csr)
    }

    fn own_csr(&self, der: &Blob, node: &Name) -> Result<Csr, Denial> {
        let csr = self.csr(der)?;
        if csr.id.id == Id::Node(node.clone()) {
            return Ok(csr);
        }
        let message = format!("the certificate request is for {}, not for node/{node}", csr.id.id);
        Err(Denial::new(Code::BadRequest, message))
    }

    /// Writes the node's record for a token that is bound to its key. A node of that name with another key is replaced,
    /// and its certificates are revoked first.
    async fn enrol(&self, join: &Join, token: &TokenRecord) -> Result<(), Denial> {
        let key = node_key(&join.node);
        let enrolled = update(&*self.store, &key, |present| {
            let present = whole::<NodeRecord>(present)?;
            let same = |r: &NodeRecord| r.enrolment_key == join.enrolment_key;
            if present.as_ref().is_some_and(|r| same(r) && r.enrolment == join.token_id) {
                // A repetition of this join, whose response was lost. Later grants are kept.
                return Ok(present.map(|r| json(&r)));
            }
            let standing = match &present {
                Some(r) if !same(r) || r.standing != Standing::Active => Standing::Replacing,
                _ => Standing::Active,
            };
            let (old, series) = present.map(|r| (r.services, r.series)).unwrap_or_default();
            Ok::<_, AuthorityError>(Some(json(&NodeRecord {
                joined_at: now(),
                enrolment_key: join.enrolment_key.clone(),
                enrolment: join.token_id.clone(),
                services: token.services.clone(),
                addresses: token.addresses.clone(),
                withdrawn: old.difference(&token.services).cloned().collect(),
                series,
                standing,
            })))
        });
        enrolled.await.map_err(internal)?;
        self.finish(&join.node).await.map_err(internal)
    }

    /// Completes a change of a node. Every step can be repeated.
    async fn finish(&self, name: &Name) -> Result<(), Error> {
        let Some(record) = self.node(name).await? else { return Ok(()) };
        if record.is_at_rest() {
            return Ok(());
        }
        let is_over = |id: &Id| match id {
            Id::Service(service) if record.standing == Standing::Active => {
                record.withdrawn.contains(service)
            }
            _ => record.standing != Standing::Active,
        };
        let over: Vec<_> = record.series.iter().filter(|(id, _)| is_over(id)).collect();
        for (_, series) in &over {
            let revoked = RevokedRecord::new();
            match self.store.create(&revoked_key(series), json(&revoked)).await {
                Ok(_) | Err(Error::Conflict { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        self.leave_shared(name, &record).await?;
        match record.standing {
            Standing::Active => {}
            Standing::Replacing => {
                self.delete_key(&instances_key(name)).await?;
                self.forget_report(name).await?;
                self.forget_release(name).await?;
            }
            Standing::Removing => {
                self.forget_report(name).await?;
                self.forget_release(name).await?;
                // With a remaining token the node could join again.
                self.prune_folder(TOKENS, |t: TokenRecord| t.node == *name).await?;
                self.delete_key(&instances_key(name)).await?;
                self.delete_key(&seen_key(name)).await?;
                return self.delete_key(&node_key(name)).await;
            }
        }
        update(&*self.store, &node_key(name), |value| {
            let Some(mut now) = value.and_then(read::<NodeRecord>) else { return Ok(None) };
            now.series.retain(|id, series| !over.iter().any(|(i, s)| *i == id && *s == series));
            now.withdrawn.clear();
            now.standing = Standing::Active;
            Ok::<_, Error>(Some(json(&now)))
        })
        .await?;
        Ok(())
    }

    async fn delete_key(&self, key: &Key) -> Result<(), Error> {
        update(&*self.store, key, |_| Ok::<_, Error>(None)).await.map(|_| ())
    }

    /// Deletes a record unless it has changed since it was read.
    async fn delete(&self, entry: &Entry) -> Result<(), Error> {
        match self.store.swap(&entry.key, entry.revision, None).await {
            Ok(_) | Err(Error::Conflict { .. }) => Ok(()),
            Err(e) => Err(e),
        }
    }

    fn may_spend(&self, node: &Name) -> Result<(), Denial> {
        match self.spend(node, 1.0) {
            Duration::ZERO => Ok(()),
            _ => {
                let message = "this node has requested too many certificates: try again later";
                Err(Denial::new(Code::Busy, message))
            }
        }
    }

    /// Takes `cost` from a node's budget. Returns how long to wait if the budget is too small.
    fn spend(&self, node: &Name, cost: f64) -> Duration {
        take(&self.budgets, node, cost, BURST, RATE, Instant::now())
    }
}

fn take(
    budgets: &Mutex<Budgets>,
    node: &Name,
    cost: f64,
    burst: f64,
    rate: f64,
    now: Instant,
) -> Duration {
    let mut budgets = budgets.lock();
    let (left, at) = budgets.entry(node.clone()).or_insert((burst, now));
    *left = (*left + now.duration_since(*at).as_secs_f64() * rate).min(burst);
    *at = now;
    if *left < cost {
        return Duration::from_secs_f64((cost - *left) / rate);
    }
    *left -= cost;
    Duration::ZERO
}

pub(super) enum Announced {
    Done,
    /// The node changes its announcement too often: try again after this time.
    NotBefore(Duration),
}

/// The result of a join.
pub(super) struct Joined {
    pub(super) chain: Chain,
    pub(super) bundle: Vec<CertificateDer<'static>>,
}

enum Unchanged {
    Same,
    Failed(Error),
}

impl From<Error> for Unchanged {
    fn from(e: Error) -> Unchanged {
        Unchanged::Failed(e)
    }
}

fn at_rest(record: &NodeRecord) -> Result<(), Denial> {
    if record.standing == Standing::Active {
        return Ok(());
    }
    Err(busy())
}

fn busy() -> Denial {
    Denial::new(Code::Busy, "this node is being changed: try again in a moment")
}

/// Verifies the signature that binds the enrolment key to this connection.
fn check_proof(
    spki: &Blob,
    context: &[u8],
    exporter: &[u8; 32],
    proof: &Blob,
) -> Result<(), Denial> {
    let verified = PublicKey::from_der(&spki.0)
        .and_then(|k| k.verify(&[context, exporter].concat(), &proof.0));
    verified.map_err(|e| {
        Denial::new(Code::BadProof, format!("the proof of the enrolment key is invalid: {e}"))
    })
}

pub(super) fn may_not_claim(node: &Name, services: &str) -> String {
    format!(
        "node {node} may not claim {services}. Grant it on the authority (`wiretight node grant`), or correct the configuration."
    )
}

fn no_such_node(node: &Name) -> AuthorityError {
    AuthorityError::Refused(format!(
        "there is no node {node:?}. `wiretight node list` shows all nodes."
    ))
}

/// Logs the details, which only the operator may see. The node gets a generic error.
fn internal(e: impl std::error::Error) -> Denial {
    let cause = e.source().map(|s| format!(": {s}")).unwrap_or_default();
    tracing::error!("internal error of the authority: {e}{cause}");
    Denial::new(Code::Internal, "internal error of the authority; see its log")
}

/// Why no certificate was issued. For temporary problems that the node did not cause, it is told to try again.
fn unissued(e: CaError) -> Denial {
    match e {
        CaError::Unwitnessed { .. } | CaError::Log(_) | CaError::IntermediateRevoked => {
            tracing::warn!("no certificate was issued: {e}");
            let why = match &e {
                CaError::Log(e) => e.for_members(),
                CaError::IntermediateRevoked => e.to_string(),
                _ => "the log's witnesses did not cosign in time (`wiretight authority status` on the authority shows which)".into(),
            };
            let message = format!("no certificate was issued: {why}; try again later");
            Denial::new(Code::Busy, message)
        }
        e => internal(e),
    }
}

/// Parses the last part of a key, `FROM-TO`.
pub(super) fn indexes_in(name: &str) -> Option<(u64, u64)> {
    let (from, to) = name.split_once('-')?;
    Some((from.parse().ok()?, to.parse().ok()?))
}

pub(super) fn read<R: DeserializeOwned>(value: &[u8]) -> Option<R> {
    serde_json::from_slice(value)
        .inspect_err(|e| tracing::error!("a record in the store is unreadable: {e}"))
        .ok()
}

/// Like [`read`], for a record that will be overwritten: an unreadable record is an error.
fn whole<R: DeserializeOwned>(value: Option<&[u8]>) -> Result<Option<R>, AuthorityError> {
    value.map(|v| read(v).ok_or(AuthorityError::DamagedRecord)).transpose()
}

fn json(record: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(record).expect("records are plain data")
}

fn key(text: String) -> Key {
    Key::new(text).expect("a folder and a name or serial make a short key")
}
fn node_key(name: &Name) -> Key {
    key(format!("{NODES}{name}"))
}
fn instances_key(name: &Name) -> Key {
    key(format!("{INSTANCES}{name}"))
}
fn seen_key(name: &Name) -> Key {
    key(format!("{SEEN}{name}"))
}
fn token_key(id: &str) -> Key {
    key(format!("{TOKENS}{id}"))
}
fn revoked_key(series: &Series) -> Key {
    key(format!("{REVOKED}{series}"))
}
fn revoked_indexes_key(from: u64, to: u64) -> Key {
    key(format!("{REVOKED_INDEXES}{from}-{to}"))
}

/// Writes the revocation in log entry `index` into the store of a restored authority. Returns how many records are new.
pub(super) async fn revoke_again(
    store: &dyn Store,
    revocation: &Revocation,
    index: u64,
) -> Result<usize, Error> {
    let record = json(&RevokedRecord { at: revocation.at, logged: Some(index) });
    let series = revocation.series.iter().map(revoked_key);
    let indexes = revocation.indexes.iter().map(|(from, to)| revoked_indexes_key(*from, *to));
    let mut new = 0;
    for key in series.chain(indexes) {
        match store.create(&key, record.clone()).await {
            Ok(_) => new += 1,
            Err(Error::Conflict { .. }) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(new)
}
