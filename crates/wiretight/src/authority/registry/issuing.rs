//! Issues certificates of nodes. Simultaneous requests of one node are handled together, so that they share a batch of
//! the log and one change of the node's record.

use std::collections::BTreeSet;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use spki::SubjectPublicKeyInfoOwned;
use tokio::task::JoinSet;
use wiretight_keys::{Csr, Id, Name, Series, SpiffeId};
use wiretight_store::{Error, Key, Store, update};

use super::super::AuthorityError;
use super::super::ca::{Ca, random};
use super::{
    ISSUED, NodeRecord, Registry, busy, internal, json, key, may_not_claim, node_key, read,
    unissued, whole,
};
use crate::control::{Blob, Code, Denial};

pub(super) type Chain = Vec<CertificateDer<'static>>;

#[derive(Serialize, Deserialize)]
pub(super) struct IssuedRecord {
    /// For an SVID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<Id>,
    /// For a web server's certificate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    names: Vec<String>,
    pub(super) not_after: u64,
    root: String,
}

/// The certificates that were issued under a root.
pub(in super::super) struct IssuedUnder {
    /// When the last one expires; 0 if there is none.
    pub(in super::super) until: u64,
    /// A record that cannot be read; its certificate may be under that root, and valid for longer.
    pub(in super::super) unreadable: Option<Key>,
}

/// A requested certificate: its identity and series, and the result.
type Made = (SpiffeId, Series, Option<Result<Chain, Denial>>);

impl Registry {
    /// Issues a web server's certificate; it is recorded before it is returned.
    pub(in super::super) async fn issue_web(
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

    pub(in super::super) async fn issued_under(&self, root: &str) -> Result<IssuedUnder, Error> {
        let mut issued = IssuedUnder { until: 0, unreadable: None };
        for entry in self.store.list(ISSUED).await?.0 {
            match read::<IssuedRecord>(&entry.value) {
                Some(record) if record.root == root => {
                    issued.until = issued.until.max(record.not_after);
                }
                Some(_) => {}
                None => issued.unreadable = Some(entry.key),
            }
        }
        Ok(issued)
    }

    /// Signs requests of a node, for itself or services that it may claim. They share a batch of the log. Returns a result
    /// for each, in the same order.
    pub(in super::super) async fn sign(
        &self,
        node: &Name,
        enrolment: &str,
        csrs: &[Blob],
    ) -> Vec<Result<Chain, Denial>> {
        let read = |csr| self.may_spend(node).and_then(|()| self.csr(csr));
        self.issue(node, enrolment, csrs.iter().map(read).collect()).await
    }

    /// `record` with a series for each of these identities; the series are in the store when this returns.
    async fn with_series(
        &self,
        node: &Name,
        enrolment: &str,
        record: NodeRecord,
        ids: BTreeSet<&Id>,
    ) -> Result<NodeRecord, Denial> {
        let mut new = Vec::new();
        for id in ids.into_iter().filter(|id| !record.series.contains_key(id)) {
            new.push((id, Series::new(random().map_err(internal)?)));
        }
        if new.is_empty() {
            return Ok(record);
        }
        let mut written = None;
        update(&*self.store, &node_key(node), |value| {
            written = None;
            let Some(mut record) = whole::<NodeRecord>(value)? else { return Ok(None) };
            if record.enrolment == enrolment {
                for (id, series) in &new {
                    record.series.entry(Id::clone(id)).or_insert(*series);
                }
                written = Some(record.clone());
            }
            Ok::<_, AuthorityError>(Some(json(&record)))
        })
        .await
        .map_err(internal)?;
        match written {
            Some(record) => Ok(record),
            None => Err(self.current(node, enrolment).await.err().unwrap_or_else(busy)),
        }
    }

    pub(super) async fn issue_one(
        &self,
        node: &Name,
        enrolment: &str,
        csr: Csr,
    ) -> Result<Chain, Denial> {
        self.issue(node, enrolment, vec![Ok(csr)]).await.pop().unwrap_or_else(|| Err(busy()))
    }

    /// Issues and records certificates, and checks the node's record again before it returns them. A request that fails
    /// does not affect the others.
    async fn issue(
        &self,
        node: &Name,
        enrolment: &str,
        mut csrs: Vec<Result<Csr, Denial>>,
    ) -> Vec<Result<Chain, Denial>> {
        let all = |denial: Denial, csrs: Vec<Result<Csr, Denial>>| {
            csrs.into_iter().map(|csr| csr.and(Err(denial.clone()))).collect()
        };
        let record = match self.current(node, enrolment).await {
            Ok(record) => record,
            Err(denial) => return all(denial, csrs),
        };
        if let Err(denial) = self.admits(node, enrolment) {
            return all(denial, csrs);
        }
        for csr in &mut csrs {
            if let Ok(asked) = csr
                && let Err(denial) = may(node, &record, &asked.id)
            {
                *csr = Err(denial);
            }
        }
        let ids = csrs.iter().flatten().map(|csr| &csr.id.id).collect();
        let record = match self.with_series(node, enrolment, record, ids).await {
            Ok(record) => record,
            Err(denial) => return all(denial, csrs),
        };
        // The tasks are aborted if this future is dropped.
        let (mut making, mut made) = (JoinSet::new(), Vec::new());
        for (n, csr) in csrs.into_iter().enumerate() {
            let series = csr.as_ref().ok().and_then(|csr| record.series.get(&csr.id.id)).copied();
            made.push(match (csr, series) {
                (Ok(csr), Some(series)) => {
                    let (id, node) = (csr.id.clone(), node.clone());
                    let (ca, store) = (self.ca.clone(), self.store.clone());
                    making.spawn(async move { (n, make(&ca, &*store, &node, csr, &series).await) });
                    Ok((id, series, None))
                }
                (Err(denial), _) => Err(denial),
                (Ok(_), None) => Err(busy()),
            });
        }
        while let Some(done) = making.join_next().await {
            if let Ok((n, chain)) = done
                && let Some(Ok((_, _, result))) = made.get_mut(n)
            {
                *result = Some(chain);
            }
        }
        let record = self.current(node, enrolment).await;
        let let_out = |made: Result<Made, Denial>| {
            let (id, series, chain) = made?;
            // It is missing if the task has panicked.
            let chain = chain.unwrap_or_else(|| Err(internal(std::io::Error::other("a panic"))))?;
            let record = record.as_ref().map_err(Denial::clone)?;
            may(node, record, &id)?;
            if record.series.get(&id.id) != Some(&series) {
                return Err(busy()); // the service was removed and granted again meanwhile
            }
            Ok(chain)
        };
        made.into_iter().map(let_out).collect()
    }
}

/// Whether a node may have a certificate for this identity.
fn may(node: &Name, record: &NodeRecord, id: &SpiffeId) -> Result<(), Denial> {
    match &id.id {
        Id::Node(name) if name == node => Ok(()),
        Id::Service(name) if record.services.contains(name) => Ok(()),
        Id::Service(name) => Err(Denial::new(Code::NotAllowed, may_not_claim(node, name.as_str()))),
        Id::Node(_) | Id::Authority => {
            let message = format!("node {node} may not be {}", id.id);
            Err(Denial::new(Code::NotAllowed, message))
        }
    }
}

async fn make(
    ca: &Ca,
    store: &dyn Store,
    node: &Name,
    csr: Csr,
    series: &Series,
) -> Result<Chain, Denial> {
    let id = csr.id.id.clone();
    let issued = ca.issue(csr.id, &csr.key, csr.link.as_ref(), series).await.map_err(unissued)?;
    let (not_after, root) = (issued.not_after, issued.root);
    let record = IssuedRecord { id: Some(id.clone()), names: Vec::new(), not_after, root };
    let key = key(format!("{ISSUED}{node}/{}", issued.serial));
    store.create(&key, json(&record)).await.map_err(internal)?;
    tracing::debug!(%node, %id, serial = %issued.serial, "issued");
    Ok(issued.chain)
}
