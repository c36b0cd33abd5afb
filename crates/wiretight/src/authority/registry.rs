//! Who is in the mesh: nodes, join tokens, instances, issued and revoked certificates, in the store.
//!
//! ```text
//! token/ID               what of a join token is kept: the secret's hash, node, services, who used it
//! mesh/node/NAME         a node: enrolment key, claimable services, standing
//! mesh/instances/NAME    what it offers
//! mesh/revoked/SERIES    certificates that hold no longer, for as long as a session may be of one
//! mesh/revoked-index/FROM-TO  the same, by the indexes of their entries in the log, for good
//! issued/NAME/SERIAL     a certificate, until it expires
//! issued/_web/SERIAL     a web server's certificate, the same (no node has such a name)
//! seen/NAME              when a node's stream last began or ended
//! edge/service/SERVICE/  what edges share (`shared`)
//! ```
//!
//! The store has no transaction over two keys, so a change in several steps first writes down in the
//! node's record that it is under way (`standing`, `withdrawn`), and [`Registry::finish`] does the
//! rest; the next start calls it for every record that is not at rest. All certificates of a node for
//! one identity are of one series, which stands in the node's record before the first of them is made:
//! to revoke them all is to revoke the series. An SVID is issued in this order: record it, look at the
//! node's record again, send it. So whoever marks a node and then revokes the series in its record
//! misses nothing that was, or will be, sent.

mod issuing;
mod shared;
mod tokens;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustls::pki_types::CertificateDer;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use spki::SubjectPublicKeyInfoOwned;
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

use issuing::Chain;
pub(super) use shared::Written;
pub use tokens::PendingToken;

pub(super) const MESH: &str = "mesh/";
pub(super) const NODES: &str = "mesh/node/";
pub(super) const INSTANCES: &str = "mesh/instances/";
pub(super) const REVOKED: &str = "mesh/revoked/";
pub(super) const ISSUED: &str = "issued/";
pub(super) const REVOKED_INDEXES: &str = "mesh/revoked-index/";
const TOKENS: &str = "token/";
const SEEN: &str = "seen/";

/// An expired token is remembered for this long, so that whoever holds it is told that it expired.
const TOKEN_MEMORY: u64 = 7 * 86_400;
/// What is past its end is kept a little longer, for clocks that are behind.
const GRACE: u64 = 120;
/// The revocation of a series is pushed for this long: a session may be far older than a leaf can be, and a
/// node may be away. What is revoked is few and small.
const REVOKED_MEMORY: u64 = 90 * 86_400;
/// A revocation by index has no end: an entry is in the log for good, and it may be of a certificate that begins long
/// after it was logged. Operators make them by hand; more than this is a mistake, and each is pushed to every node.
const MAX_INDEX_RANGES: usize = 10_000;
/// Certificates that a node may ask for at once, and then a second: what fills the store is bounded.
const BURST: f64 = 10_000.0;
const RATE: f64 = 10.0;
/// The most revocations in one entry of the log, which is far from its limit.
const MAX_LOGGED: usize = 1000;
/// Changed announcements that a node may make at once, and then a second: each goes to every node. What comes oftener
/// is gathered.
const ANNOUNCEMENTS: f64 = 60.0;
const ANNOUNCEMENTS_RATE: f64 = 0.2;

#[derive(Clone, Serialize, Deserialize)]
struct TokenRecord {
    hash: String,
    node: Name,
    services: BTreeSet<Name>,
    /// Addresses that it may announce besides the one that it connects from.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    addresses: BTreeSet<Host>,
    expires: u64,
    /// The enrolment key that has used it.
    used_by: Option<Blob>,
    /// The node's enrolment when it was used, if it had one. While the node has that one still, or
    /// this token's, the join may be asked for again, for the answer to it may be lost; once the node
    /// has joined with another token, this one is good for nothing.
    #[serde(default)]
    before: Option<String>,
}

/// Whether a change to a node is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Standing {
    Active,
    /// A new enrolment takes the place of an old one, whose certificates are being revoked.
    Replacing,
    /// On its way out.
    Removing,
}

#[derive(Clone, Serialize, Deserialize)]
pub(super) struct NodeRecord {
    pub(super) joined_at: u64,
    enrolment_key: Blob,
    /// The token that it joined with; tells one enrolment from the next.
    pub(super) enrolment: String,
    pub(super) services: BTreeSet<Name>,
    /// Addresses that it may announce besides the one that it connects from.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(super) addresses: BTreeSet<Host>,
    /// Services that it may claim no longer and whose certificates are being revoked.
    withdrawn: BTreeSet<Name>,
    /// The series of what was issued to it, by identity.
    series: BTreeMap<Id, Series>,
    pub(super) standing: Standing,
}

impl NodeRecord {
    fn is_at_rest(&self) -> bool {
        self.standing == Standing::Active && self.withdrawn.is_empty()
    }
}

/// What is kept of an issued certificate.
#[derive(Serialize, Deserialize)]
pub(super) struct IssuedRecord {
    /// Whose SVID it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<Id>,
    /// What web server's certificate it is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    names: Vec<String>,
    pub(super) not_after: u64,
    pub(super) root: String,
}

#[derive(Serialize, Deserialize)]
pub(super) struct RevokedRecord {
    /// Since when.
    pub(super) at: u64,
    /// The entry of the log that says so, once there is one: it is in force before.
    #[serde(default)]
    logged: Option<u64>,
}

impl RevokedRecord {
    fn new() -> RevokedRecord {
        RevokedRecord { at: now(), logged: None }
    }
}

/// A node of the list, as the store knows it.
pub(super) struct Listed {
    pub(super) record: NodeRecord,
    pub(super) instances: Vec<Offer>,
    pub(super) last_seen: Option<u64>,
}

/// The registry.
pub(super) struct Registry {
    trust_domain: TrustDomain,
    store: Arc<dyn Store>,
    ca: Arc<Ca>,
    /// Held while the set of nodes changes: joins, grants and removals come one after another. That
    /// suffices, for a store has one authority process at a time.
    changing: tokio::sync::Mutex<()>,
    budgets: Mutex<Budgets>,
    /// For what edges share.
    shares: Mutex<Budgets>,
    announcements: Mutex<Budgets>,
    /// The node in this very process.
    own: OnceLock<Name>,
}

/// What is left of each node's, and since when.
type Budgets = HashMap<Name, (f64, Instant)>;

impl Registry {
    pub(super) fn new(trust_domain: TrustDomain, store: Arc<dyn Store>, ca: Arc<Ca>) -> Registry {
        let (changing, budgets, shares, announcements, own) = Default::default();
        Registry { trust_domain, store, ca, changing, budgets, shares, announcements, own }
    }

    /// Which node is in this very process.
    pub(super) fn set_own(&self, node: Name) {
        let _ = self.own.set(node);
    }

    /// Finishes what a crash left half done.
    pub(super) async fn recover(&self) -> Result<(), Error> {
        for (name, record) in self.nodes().await? {
            if !record.is_at_rest() {
                tracing::info!(node = %name, "finishing a change that was cut short");
                self.finish(&name).await?;
            }
        }
        Ok(())
    }

    // ---- For the operator.

    /// Makes a token: its id, its secret and its end.
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

    /// Adds or replaces what a node may claim. What it may claim no longer is revoked.
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

    /// Adds or replaces the addresses that a node may announce besides the one that it connects from. What it announces
    /// next is held against them.
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

    /// Removes a node: its certificates are revoked, its tokens and instances are forgotten. `marked` is
    /// called when it can get nothing more.
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

    /// Revokes the certificates whose entries have these indexes (both ends count), for good. Nothing tells whose they
    /// are: it is for what somebody found in the log that should not be there.
    pub(super) async fn revoke(&self, from: u64, to: u64) -> Result<(), AuthorityError> {
        let (ranges, _) = self.store.list(REVOKED_INDEXES).await?;
        if ranges.len() >= MAX_INDEX_RANGES {
            return Err(AuthorityError::Refused(format!(
                "{MAX_INDEX_RANGES} ranges of entries are revoked already: revoke a range that covers several at once"
            )));
        }
        match self.store.create(&revoked_indexes_key(from, to), json(&RevokedRecord::new())).await {
            Ok(_) | Err(Error::Conflict { .. }) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Puts into the log what was revoked and is not there yet. Crash order: what was logged and not noted is logged
    /// again.
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

    /// All nodes, and what is known of each.
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

    /// A first join. `exporter` is the connection's.
    pub(super) async fn join(&self, join: &Join, exporter: &[u8; 32]) -> Result<Joined, Denial> {
        self.same_trust_domain(&join.trust_domain)?;
        // Before the secret is known to be right, nothing is told of the token.
        let unknown = || {
            let message = "unknown or wrong token: it was altered, or made by another authority, or its node was removed since; make one with `wiretight token create`";
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
        // From here on the other side holds the token, and is told precisely.
        if token.expires < now() {
            let ago = now() - token.expires;
            let message = format!("this join token expired {ago} s ago: make a new one");
            return Err(Denial::new(Code::TokenExpired, message));
        }
        if token.node != join.node {
            let message = format!(
                "this join token is for node {:?}, and this node is {:?}: correct the name in [node], or make a token for this name",
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
                let message = "this join token was used before, and a node of this name has joined with another one since: make a new token";
                return Err(Denial::new(Code::TokenUsed, message));
            }
            Some(_) => {
                let message = "this join token was used before, by another machine: a token is good once. If that was not you, remove the node and find out who; make a new token";
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
        // The log may take its time, and whoever changes the node meanwhile is seen before it is let out.
        drop(guard);
        let chain = self.issue_one(&join.node, id, csr).await?;
        Ok(Joined { chain, bundle: self.ca.roots() })
    }

    /// An enrolled node without a certificate that is taken.
    pub(super) async fn rejoin(
        &self,
        rejoin: &Rejoin,
        exporter: &[u8; 32],
    ) -> Result<Joined, Denial> {
        self.same_trust_domain(&rejoin.trust_domain)?;
        // One answer for all: a stranger learns no names of nodes.
        let not_enrolled = || {
            let message = "no node of this name is enrolled here with this key: it was removed, or its state folder is another machine's; it needs a new join token";
            Denial::new(Code::NotEnrolled, message)
        };
        let record = self.node(&rejoin.node).await.map_err(internal)?.ok_or_else(not_enrolled)?;
        check_proof(&record.enrolment_key, REJOIN_CONTEXT, exporter, &rejoin.proof)
            .map_err(|_| not_enrolled())?;
        at_rest(&record)?;
        self.may_spend(&rejoin.node)?;
        let csr = self.own_csr(&rejoin.csr, &rejoin.node)?;
        let chain = self.issue_one(&rejoin.node, &record.enrolment, csr).await?;
        Ok(Joined { chain, bundle: self.ca.roots() })
    }

    /// A node's stream begins: which enrolment it belongs to.
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

    /// Takes what a node offers, record by record. Records that do not count are named in the refusal; the others count
    /// all the same. `from`: where its stream comes from.
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
            // The same again (a reconnect) is no change, and nobody is told.
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

    /// Notes that a node is there, or was until now. Losing the note loses nothing else.
    pub(super) async fn seen(&self, node: &Name) {
        let note = |_: Option<&[u8]>| Ok::<_, Error>(Some(json(&now())));
        if let Err(e) = update(&*self.store, &seen_key(node), note).await {
            tracing::warn!(%node, "could not note when the node was last seen: {e}");
        }
    }

    /// Issues a web server's certificate; it is recorded before it is let out.
    pub(super) async fn issue_web(
        &self,
        names: Vec<String>,
        spki: &SubjectPublicKeyInfoOwned,
        ttl: Duration,
    ) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
        let issued = self.ca.issue_web(names.clone(), spki, ttl).await?;
        let (not_after, root) = (issued.not_after, issued.root);
        let record = IssuedRecord { id: None, names, not_after, root };
        let key = key(format!("{ISSUED}_web/{}", issued.serial));
        self.store.create(&key, json(&record)).await?;
        tracing::info!(names = record.names.join(","), serial = %issued.serial, "issued a web certificate");
        Ok(issued.chain)
    }

    // ---- For the clock.

    /// Forgets what has expired. `is_steady`: nobody has set the clock for long. A clock that is ahead for a while must
    /// not bring back what was revoked: until it is steady, no revocation is forgotten.
    pub(super) async fn prune(&self, is_steady: bool) -> Result<(), Error> {
        let past = now().saturating_sub(GRACE);
        self.prune_folder(ISSUED, |r: IssuedRecord| r.not_after < past).await?;
        let long_past = now().saturating_sub(REVOKED_MEMORY);
        if is_steady {
            self.prune_folder(REVOKED, |r: RevokedRecord| r.at < long_past).await?;
        }
        let old = now().saturating_sub(TOKEN_MEMORY);
        self.prune_folder(TOKENS, |t: TokenRecord| t.expires < old).await
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

    // ---- Within.

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

    /// The record of a node whose enrolment is still the one that the caller began with.
    async fn current(&self, name: &Name, enrolment: &str) -> Result<NodeRecord, Denial> {
        let record = self.node(name).await.map_err(internal)?;
        match record {
            Some(r) if r.standing == Standing::Active && r.enrolment == enrolment => Ok(r),
            Some(r) if r.standing != Standing::Removing => {
                // Its own new enrolment, or another machine's: the next handshake tells which.
                let message = "a node of this name has joined anew: connect again";
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
        let message = format!("this authority is of trust domain {ours}, not {theirs}");
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

    /// Puts the node's record into place for a token that is bound to its key. A node of that name
    /// with another key is replaced: what it holds is revoked first.
    async fn enrol(&self, join: &Join, token: &TokenRecord) -> Result<(), Denial> {
        let key = node_key(&join.node);
        let enrolled = update(&*self.store, &key, |present| {
            let present = whole::<NodeRecord>(present)?;
            let same = |r: &NodeRecord| r.enrolment_key == join.enrolment_key;
            if present.as_ref().is_some_and(|r| same(r) && r.enrolment == join.token_id) {
                // The answer to this very join was lost; grants since then stay.
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

    /// Brings a node to rest. Every step can be done again.
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
            Standing::Replacing => self.delete_key(&instances_key(name)).await?,
            Standing::Removing => {
                // A token that outlived its node would bring it back.
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

    /// Deletes what was read; what another writer has changed since stays.
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
                let message = "this node has asked for too many certificates: ask again later";
                Err(Denial::new(Code::Busy, message))
            }
        }
    }

    /// Takes `cost` from a node's budget, or says how long it takes until there is as much.
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
    let mut budgets = budgets.lock().unwrap_or_else(PoisonError::into_inner);
    let (left, at) = budgets.entry(node.clone()).or_insert((burst, now));
    *left = (*left + now.duration_since(*at).as_secs_f64() * rate).min(burst);
    *at = now;
    if *left < cost {
        return Duration::from_secs_f64((cost - *left) / rate);
    }
    *left -= cost;
    Duration::ZERO
}

/// What became of an announcement.
pub(super) enum Announced {
    Done,
    /// It is another than the last, and the node has changed it too often: to be tried again then.
    NotBefore(Duration),
}

/// What a join gives.
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
    Denial::new(Code::Busy, "this node is being changed: ask again in a moment")
}

/// The signature that ties the enrolment key to this connection and no other.
fn check_proof(
    spki: &Blob,
    context: &[u8],
    exporter: &[u8; 32],
    proof: &Blob,
) -> Result<(), Denial> {
    let verified = PublicKey::from_der(&spki.0)
        .and_then(|k| k.verify(&[context, exporter].concat(), &proof.0));
    verified.map_err(|e| {
        Denial::new(Code::BadProof, format!("the enrolment key's proof does not hold: {e}"))
    })
}

pub(super) fn may_not_claim(node: &Name, services: &str) -> String {
    format!(
        "node {node} may not claim {services}: its join token did not name it; grant it on the authority, or correct the configuration"
    )
}

fn no_such_node(node: &Name) -> AuthorityError {
    AuthorityError::Refused(format!(
        "there is no node {node:?}: `wiretight node list` has them all"
    ))
}

/// Logs what only the operator may know; the other side learns that it was not its fault.
fn internal(e: impl std::error::Error) -> Denial {
    let cause = e.source().map(|s| format!(": {s}")).unwrap_or_default();
    tracing::error!("the authority cannot do its work: {e}{cause}");
    Denial::new(Code::Internal, "the authority cannot do its work now: its log says why")
}

/// Why no certificate was issued: for what is not this node's fault, and passes, it is told to ask again.
fn unissued(e: CaError) -> Denial {
    match e {
        CaError::Unwitnessed { .. } | CaError::Log(_) | CaError::IntermediateRevoked => {
            tracing::warn!("no certificate was issued: {e}");
            let why = match &e {
                CaError::Log(e) => e.for_members(),
                CaError::IntermediateRevoked => e.to_string(),
                _ => "nothing is issued without the witnesses of the log, and they have not cosigned (`wiretight authority status` on the authority says which)".into(),
            };
            let message = format!("no certificate was issued: {why}; ask again later");
            Denial::new(Code::Busy, message)
        }
        e => internal(e),
    }
}

/// The range of indexes in a key's last part: `FROM-TO`.
pub(super) fn indexes_in(name: &str) -> Option<(u64, u64)> {
    let (from, to) = name.split_once('-')?;
    Some((from.parse().ok()?, to.parse().ok()?))
}

pub(super) fn read<R: DeserializeOwned>(value: &[u8]) -> Option<R> {
    serde_json::from_slice(value)
        .inspect_err(|e| tracing::error!("a record in the store cannot be read: {e}"))
        .ok()
}

/// As [`read`], for a record that is about to be written anew: one that cannot be read must not be taken
/// for none.
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

/// Puts a revocation that the log holds at `index` into the store of a restored authority. How many records are new.
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
