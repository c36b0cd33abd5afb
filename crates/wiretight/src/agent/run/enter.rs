//! Joining, rejoining and leaving the mesh.

use std::sync::Arc;

use wiretight_keys::{Id, JoinToken, PublicKey, Signer, SigningKey};
use wiretight_proxy::clock::now;
use wiretight_proxy::network::HostPort;

use super::super::link::{self, LinkError, Ticket};
use super::super::state::Membership;
use super::super::{AgentParams, membership, token_fits};
use super::{Run, Trouble, retry};
use crate::clock::uptime;
use crate::control::report::ReportedRelease;
use crate::control::{Blob, Code};

impl Run {
    /// Gets a node identity, by the enrolment key or a join token.
    pub(super) async fn enter(&mut self) -> Result<(), Trouble> {
        let token = self.params.token.load();
        let used = self.membership.as_ref().map(|m| m.token_id.as_str());
        let fresh = matches!(&token, Ok(Some(t)) if Some(t.id.as_str()) != used);
        let has_bundle = !self.mesh.bundle().roots().is_empty();
        if has_bundle && let Some(key) = self.enrolment.clone() {
            let ticket = Ticket::Enrolled(&self.mesh);
            let mut answer = self.ask(&key, &ticket, self.addresses(None), None).await;
            // Not before it is asked for: an older authority would refuse so long a message.
            if let Err(LinkError::Denied(denial)) = &answer
                && denial.code == Code::UnprovedRelease
                && let Some(release) = self.own_release()
            {
                answer = self.ask(&key, &ticket, self.addresses(None), Some(release)).await;
            }
            match answer {
                Ok(entry) => return self.entered(entry, None).await,
                Err(LinkError::Denied(d))
                    if matches!(d.code, Code::NotEnrolled | Code::Removed) && !fresh =>
                {
                    return Err(Trouble::Removed(d.message));
                }
                Err(LinkError::Denied(_) | LinkError::NotTheAuthority { .. }) if fresh => {}
                Err(e) => return Err(e.into()),
            }
        }
        let token = token.map_err(Trouble::Retry)?.ok_or_else(|| {
            let why = "this node has not joined a mesh, or has lost its certificate, and there is no join token. Create one with `wiretight token create` on the authority, then use `wiretight join` or join_token_file in [node].";
            Trouble::Retry(why.into())
        })?;
        self.join(&token).await
    }

    async fn join(&mut self, token: &JoinToken) -> Result<(), Trouble> {
        token_fits(token, &self.params.trust_domain, &self.params.node).map_err(Trouble::Retry)?;
        let key = match self.enrolment.clone() {
            Some(key) => key,
            None => {
                let key = Arc::new(SigningKey::generate().map_err(|e| retry(&e))?);
                // Saved first: if the response is lost, the join is repeated with the same key.
                let saved = key.clone();
                let saved = self.on_disk(move |disk| disk.save_enrolment(&saved)).await;
                saved.map_err(|e| retry(&e))?;
                self.enrolment.insert(key).clone()
            }
        };
        let addresses = self.addresses(Some(token));
        match self.ask(&key, &Ticket::Token(token), addresses, None).await {
            Ok(entry) => self.entered(entry, Some(membership(token))).await,
            Err(e) => Err(e.into()),
        }
    }

    /// Returns the new identity with its key.
    async fn ask(
        &self,
        enrolment: &SigningKey,
        ticket: &Ticket<'_>,
        addresses: Vec<HostPort>,
        release: Option<&ReportedRelease>,
    ) -> Result<(SigningKey, link::Entry), LinkError> {
        let AgentParams { trust_domain, node, transparency, times, .. } = &self.params;
        let id = Id::Node(node.clone());
        let key = SigningKey::generate();
        let key = key.map_err(|e| LinkError::Answer(format!("cannot create a key: {e}")))?;
        let public = PublicKey::new(key.public_key()).map(|public| (id.clone(), public.hash()));
        self.note_asked(public.into_iter().collect()).await;
        let before = self.before(&id).map(|identity| &**identity);
        let question =
            link::Question { trust_domain, node, enrolment, ticket, key: &key, before, release };
        let entry = link::enter(&addresses, &question, transparency, times.answer).await?;
        Ok((key, entry))
    }

    /// Saves the result of a join or rejoin, and puts it into the mesh.
    async fn entered(
        &mut self,
        (key, entry): (SigningKey, link::Entry),
        membership: Option<Membership>,
    ) -> Result<(), Trouble> {
        let link::Entry { identity, bundle } = entry;
        let (id, chain) = (identity.id().id.clone(), identity.chain().to_vec());
        if membership.is_some() {
            // A new enrolment, perhaps with another authority: request the whole state.
            self.state.version = 0;
        }
        self.state.bundle = bundle.iter().map(Blob::from).collect();
        self.put_bundle()
            .map_err(|e| Trouble::Retry(format!("the trust bundle is invalid: {e}")))?;
        let membership = membership.or_else(|| match &self.membership {
            Some(_) => None,
            // The membership file was lost.
            None => Some(self.remember(self.addresses(None))),
        });
        let (of, joined) = (id.clone(), membership.clone());
        self.save(move |disk| {
            disk.save_bundle(&bundle)?;
            disk.save_identity(&of, &key, &chain)?;
            joined.map_or(Ok(()), |m| disk.save_membership(&m))
        })
        .await;
        self.membership = membership.or(self.membership.take());
        (self.removed, self.distrusted) = (false, false);
        tracing::info!(node = %self.params.node, trust_domain = %self.params.trust_domain, "joined");
        self.take_identity(&id, identity);
        self.put_new();
        // A caller may wait for a certificate that is requested later than this one.
        if self.waiters.iter().any(|waiter| waiter.left.contains_key(&id))
            && let Some(renewal) = self.renewals.get_mut(&id)
        {
            renewal.now();
        }
        self.heard = uptime();
        self.report(|s| s.last_contact = Some(now()));
        Ok(())
    }

    /// A new membership record, after its file was lost.
    pub(super) fn remember(&self, authority: Vec<HostPort>) -> Membership {
        Membership {
            trust_domain: self.params.trust_domain.clone(),
            node: self.params.node.clone(),
            authority,
            token_id: String::new(),
        }
    }

    /// Drops all identities, after the authority said that this node was removed.
    pub(super) async fn leave(&mut self, why: &str) {
        if !self.removed || !self.identities.is_empty() {
            tracing::error!(
                node = %self.params.node,
                "THIS NODE WAS REMOVED FROM THE MESH: {why}. All its identities are dropped, and connections fail from now on. To add it again, create a new token with `wiretight token create`."
            );
        }
        self.removed = true;
        self.distrusted = true;
        self.identities.clear();
        self.expired.clear();
        self.renewals.clear();
        self.put_identities();
        for waiter in self.waiters.drain(..) {
            let _ = waiter.reply.send(Err(why.into()));
        }
        for (_, reply) in self.fetches.drain(..) {
            let _ = reply.send(Err(why.into()));
        }
        self.save(|disk| disk.remove_identities()).await;
    }
}
