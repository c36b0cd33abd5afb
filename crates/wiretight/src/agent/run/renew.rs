//! Renewal of certificates.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use wiretight_keys::{Csr, Id, PublicKey, Signer, SigningKey, SpiffeId};
use wiretight_proxy::Identity;
use wiretight_proxy::clock::now;

use super::super::link;
use super::{
    Chain, Link, Pending, RETRY_MAX, RETRY_MIN, Renewal, Run, Trouble, backoff, chance, now_ms,
    retry,
};
use crate::control::{Blob, FromNode};

impl Run {
    pub(super) async fn begin_requests(&mut self, link: &mut Link) -> Result<(), Trouble> {
        let (now_ms, room) = (now_ms(), link.room());
        let is_due = |(_, r): &(&Id, &Renewal)| !r.in_flight && r.wait(now_ms).is_zero();
        let due = self.renewals.iter().filter(is_due).map(|(id, _)| id.clone());
        let due: Vec<Id> = due.take(room).collect();
        let (mut asked, mut requests) = (Vec::new(), Vec::new());
        for id in due {
            let key = SigningKey::generate().map_err(|e| retry(&e))?;
            let spiffe = SpiffeId::new(self.params.trust_domain.clone(), id.clone());
            let link = self.before(&id).and_then(|before| before.link(&key));
            let csr = Csr::create_linked(&spiffe, &key, link.as_ref());
            let csr = csr.map_err(|e| retry(&e))?;
            if let Ok(public) = PublicKey::new(key.public_key()) {
                asked.push((id.clone(), public.hash()));
            }
            requests.push((csr, Pending::Renew { id, key }));
        }
        while requests.len() < room
            && let Some((csr, reply)) = self.fetches.pop_front()
        {
            if let Ok(Csr { id, key, .. }) = Csr::parse(&csr) {
                asked.push((id.id, key.hash()));
            }
            requests.push((csr, Pending::Fetch(reply)));
        }
        self.note_asked(asked).await;
        for (csr, pending) in requests {
            if let Pending::Renew { id, .. } = &pending {
                self.renewals.entry(id.clone()).or_default().in_flight = true;
            }
            let request = self.next_request;
            self.next_request += 1;
            link.pending.insert(request, (pending, Instant::now()));
            link.send(&FromNode::Sign { request, csr: Blob(csr) }).await?;
        }
        Ok(())
    }

    /// The identity, possibly expired, whose key signs the link to the next one.
    pub(super) fn before(&self, id: &Id) -> Option<&Arc<Identity>> {
        self.identities.get(id).or_else(|| self.expired.get(id))
    }

    /// Saves the hashes of keys for which certificates will be requested.
    pub(super) async fn note_asked(&self, keys: Vec<(Id, [u8; 32])>) {
        if keys.is_empty() {
            return;
        }
        if let Err(e) = self.on_disk(move |disk| disk.note_asked(&keys)).await {
            tracing::warn!("`wiretight svid keys` will lack a key: {e}: {}", e.source);
        }
    }

    pub(super) async fn renewed(&mut self, request: u64, id: Id, key: SigningKey, chain: Chain) {
        if let Some(renewal) = self.renewals.get_mut(&id) {
            renewal.in_flight = false;
        }
        if !self.wants(&id) {
            return;
        }
        let spiffe = SpiffeId::new(self.params.trust_domain.clone(), id.clone());
        // With everything that this node knows, including revocations.
        let checked = link::check(&self.mesh.bundle(), &spiffe, chain.clone(), &key);
        let identity = match checked {
            Ok(identity) => identity,
            Err(why) => {
                return self.not_renewed(&id, format!("the new certificate is invalid: {why}"));
            }
        };
        let of = id.clone();
        self.save(move |disk| disk.save_identity(&of, &key, &chain)).await;
        self.take_identity(&id, identity);
        tracing::debug!(%id, "renewed");
        for waiter in &mut self.waiters {
            if waiter.left.get(&id).is_some_and(|first| request >= *first) {
                waiter.left.remove(&id);
            }
            if let Some(renewal) = self.renewals.get_mut(&id)
                && waiter.left.contains_key(&id)
            {
                // This certificate was requested before the caller asked for a new one.
                renewal.now();
            }
        }
    }

    /// Puts new identities into the mesh, and notifies waiting callers.
    pub(super) fn put_new(&mut self) {
        if std::mem::take(&mut self.has_new) {
            self.put_identities();
            self.report(|_| {});
        }
        for waiter in self.waiters.extract_if(.., |w| w.left.is_empty()) {
            let _ = waiter.reply.send(Ok(()));
        }
    }

    /// Schedules a retry well before the old certificate expires.
    pub(super) fn not_renewed(&mut self, id: &Id, why: String) {
        let ends = self.identities.get(id).map_or(0, |i| i.leaf().period.not_after);
        let left = Duration::from_secs(ends.saturating_sub(now()));
        let renewal = self.renewals.entry(id.clone()).or_default();
        let longest = RETRY_MAX.min((left / 8).max(RETRY_MIN));
        let longest = if left.is_zero() { RETRY_MAX } else { longest };
        let wait = backoff(RETRY_MIN, longest, renewal.failures).max(RETRY_MIN / 2);
        renewal.in_flight = false;
        renewal.failures = renewal.failures.saturating_add(1);
        renewal.due = now_ms() + wait.as_millis() as u64;
        renewal.retry = Some(Instant::now() + wait);
        tracing::warn!(%id, "cannot renew the certificate: {why}; trying again in {wait:.1?}");
        renewal.error = Some(why.clone());
        for waiter in self.waiters.extract_if(.., |w| w.left.contains_key(id)) {
            let _ = waiter.reply.send(Err(format!("{id}: {why}")));
        }
        self.report(|s| s.last_error = Some(format!("{id}: {why}")));
    }

    /// Stores a new identity; [`Run::put_new`] puts it into the mesh.
    pub(super) fn take_identity(&mut self, id: &Id, identity: Identity) {
        self.schedule(id, &identity);
        self.expired.remove(id);
        self.identities.insert(id.clone(), Arc::new(identity));
        self.has_new = true;
    }

    /// Due at half of the lifetime, minus up to a tenth of it at random, so that nodes that started together do not renew
    /// together.
    pub(super) fn schedule(&mut self, id: &Id, identity: &Identity) {
        let period = identity.leaf().period;
        let life = period.not_after.saturating_sub(period.not_before) * 1000;
        let due =
            (identity.half_life() * 1000).saturating_sub((life as f64 * 0.1 * chance()) as u64);
        let renewal = Renewal { due, ..Renewal::default() };
        self.renewals.insert(id.clone(), renewal);
    }
}
