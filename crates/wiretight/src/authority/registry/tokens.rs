//! Listing and revoking unused join tokens.

use serde::{Deserialize, Serialize};
use wiretight_keys::Name;
use wiretight_proxy::clock::now;
use wiretight_store::Error;

use super::{Registry, TOKENS, TokenRecord, read, token_key};
use crate::authority::AuthorityError;

/// A join token that can still be used. Only a hash of its secret is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingToken {
    /// The ID for `token revoke`.
    pub id: String,
    /// The node that may join with it.
    pub node: Name,
    /// The services that the node may then claim.
    pub services: Vec<Name>,
    /// In seconds since 1970.
    pub expires: u64,
}

impl Registry {
    /// Tokens that are neither used nor expired, sorted by node.
    pub(in crate::authority) async fn tokens(&self) -> Result<Vec<PendingToken>, Error> {
        let (entries, _) = self.store.list(TOKENS).await?;
        let pending = entries.iter().filter_map(|entry| {
            let id = entry.key.as_str().strip_prefix(TOKENS)?.to_owned();
            let TokenRecord { node, services, expires, used_by, .. } = read(&entry.value)?;
            let services = services.into_iter().collect();
            let can_be_used = used_by.is_none() && expires >= now();
            can_be_used.then_some(PendingToken { id, node, services, expires })
        });
        let mut pending: Vec<PendingToken> = pending.collect();
        pending.sort_by(|a, b| (&a.node, a.expires).cmp(&(&b.node, b.expires)));
        Ok(pending)
    }

    /// Revokes a token. Returns the node that it was for.
    pub(in crate::authority) async fn revoke_token(
        &self,
        id: &str,
    ) -> Result<Name, AuthorityError> {
        let unknown = || {
            AuthorityError::Refused(format!(
                "there is no join token {id:?}. `wiretight token list` shows those that can still be used."
            ))
        };
        if id.is_empty() || id.len() > 64 || !id.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(unknown());
        }
        // So that no join uses it meanwhile.
        let _guard = self.changing.lock().await;
        let entry = self.store.get(&token_key(id)).await?.ok_or_else(unknown)?;
        let token: TokenRecord = read(&entry.value).ok_or(AuthorityError::DamagedRecord)?;
        if token.used_by.is_some() {
            return Err(AuthorityError::Refused(format!(
                "this token was already used: node {node} has joined with it. To remove the node, run `wiretight node remove {node}`.",
                node = token.node
            )));
        }
        self.store.swap(&entry.key, entry.revision, None).await?;
        Ok(token.node)
    }
}
