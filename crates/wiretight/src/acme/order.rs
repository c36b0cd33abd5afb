//! One order (RFC 8555, section 7.4), continued from the step in the record. Each step is in the store before the next one
//! starts.

use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use instant_acme::{
    Account, AuthorizationStatus, CertificateIdentifier, ChallengeStatus, ChallengeType, Error,
    Identifier, NewOrder, Order, OrderStatus, Problem,
};
use serde::{Deserialize, Serialize};
use wiretight_keys::token::hex;
use wiretight_keys::{SigningKey, WebCsr};
use wiretight_proxy::edge::SiteCertificate;
use wiretight_store::{Error as StoreError, Key};

use super::dns_hook::Verb;
use super::http::Unreached;
use super::record::{Answer, Ari, Current, Issued, Pending, Sealed};
use super::{Acme, Ca, Challenge, Held, account};
use crate::control::Blob;

/// How long a CA may take for one order, in seconds.
const PATIENCE: u64 = 300;
/// Between two polls of an order.
const POLL: Duration = Duration::from_secs(2);
/// Time for other edges to get a challenge response before the CA is told to check.
const SPREAD: Duration = Duration::from_secs(2);
/// Pause after a CA's rate limit, in seconds.
const RATE_LIMITED: u64 = 3600;
/// The shortest and longest interval between requests for renewal information, in seconds.
const ARI_EVERY: std::ops::RangeInclusive<u64> = 3600..=86_400;

/// Why an order produced no certificate.
#[derive(Debug)]
pub(super) enum OrderError {
    /// It failed permanently.
    Refused(String),
    /// It may continue after at least this many seconds.
    Unavailable { error: String, least: u64 },
    /// The store failed, or another edge has changed the record.
    Store(StoreError),
}

impl From<StoreError> for OrderError {
    fn from(error: StoreError) -> OrderError {
        OrderError::Store(error)
    }
}

impl From<Error> for OrderError {
    fn from(error: Error) -> OrderError {
        let text = crate::logging::chain(&error);
        match &error {
            Error::Api(problem) => match kind(problem) {
                "rateLimited" => OrderError::Unavailable { error: text, least: RATE_LIMITED },
                "serverInternal" | "badNonce" => unavailable(text),
                _ if problem.status.is_some_and(|s| s == 409 || s >= 500) => unavailable(text),
                _ => OrderError::Refused(text),
            },
            _ => unavailable(text),
        }
    }
}

fn refused(error: impl Into<String>) -> OrderError {
    OrderError::Refused(error.into())
}

fn unavailable(error: impl Into<String>) -> OrderError {
    OrderError::Unavailable { error: error.into(), least: 0 }
}

/// The last part of a problem's type (RFC 8555, section 6.7).
fn kind(problem: &Problem) -> &str {
    let all = problem.r#type.as_deref().unwrap_or_default();
    all.strip_prefix("urn:ietf:params:acme:error:").unwrap_or(all)
}

/// An account in the store. The key is stored first, the URL later.
#[derive(Serialize, Deserialize)]
struct AccountRecord {
    directory: String,
    key: Sealed,
    url: Option<String>,
    /// The contact that the CA has.
    #[serde(default)]
    contact: Vec<String>,
}

impl Acme {
    /// Carries out the record's order. `records` are its DNS records that must be removed afterwards.
    pub(super) async fn order(
        &self,
        title: &str,
        held: &mut Held,
        current: Option<&Current>,
        ca: Option<&Ca>,
        records: &mut Vec<Answer>,
    ) -> Result<(), OrderError> {
        let begun = held.record.order.clone().ok_or_else(|| refused("no order"))?;
        let Some(ca) = ca else {
            return Err(refused(format!("the CA {} is no longer configured", begun.ca)));
        };
        // Records of a process that died during this order.
        records.extend(begun.answers.iter().filter(|a| a.is_record()).cloned());
        let account = self.account(ca).await?;
        let mut order = match &begun.url {
            Some(url) => account.order(url.clone()).await?,
            None => self.begin(title, held, current, ca, &account).await?,
        };
        let mut deadline = self.clock.now() + PATIENCE;
        let mut told = false;
        loop {
            match order.state().status {
                OrderStatus::Pending if told => {}
                OrderStatus::Pending => {
                    self.answer(ca, title, held, &mut order, records).await?;
                    told = true;
                    deadline = self.clock.now() + PATIENCE;
                }
                OrderStatus::Ready => self.finalize(title, held, &mut order).await?,
                OrderStatus::Processing => {}
                OrderStatus::Valid => return self.take(title, held, &mut order).await,
                OrderStatus::Invalid => return Err(refused(why_invalid(&mut order).await)),
            }
            if matches!(order.state().status, OrderStatus::Valid) {
                continue;
            }
            if self.clock.now() > deadline {
                let late =
                    format!("{} did not complete the order within {PATIENCE} s", ca.directory);
                return Err(unavailable(late));
            }
            self.clock.sleep(POLL).await;
            order.refresh().await?;
        }
    }

    /// The account at a CA. Its key is in the store before the CA is contacted, and the CA identifies an account by its key
    /// (RFC 8555, section 7.3.1). So there is only one account, however often this is interrupted.
    pub(super) async fn account(&self, ca: &Ca) -> Result<Account, OrderError> {
        let purpose = account_path(ca);
        let at = Key::new(format!("{}{purpose}", self.prefix))?;
        let members = self.members().await?;
        if let Some(entry) = self.store.get(&at).await?
            && let Ok(record) = serde_json::from_slice::<AccountRecord>(&entry.value)
            && record.key.keys().any(|name| !members.contains(name))
        {
            let directory = &ca.directory;
            tracing::warn!(
                directory,
                "creating a new account, because a removed edge knows the old account's key"
            );
            match self.store.swap(&at, entry.revision, None).await {
                Ok(_) | Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let entry = match self.store.get(&at).await? {
            Some(entry) => entry,
            None => {
                let key = SigningKey::generate().map_err(|e| refused(e.to_string()))?;
                let key = self.seal(&purpose, key.to_pkcs8().secret_pkcs8_der()).await?;
                let (directory, contact) = (ca.directory.clone(), Vec::new());
                let new = AccountRecord { directory, key, url: None, contact };
                match self.store.create(&at, json(&new)).await {
                    Ok(_) | Err(StoreError::Conflict { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
                self.store.get(&at).await?.ok_or_else(|| refused("the account's record is gone"))?
            }
        };
        let record: AccountRecord = serde_json::from_slice(&entry.value)
            .map_err(|e| refused(format!("the account's record is invalid: {e}")))?;
        let Some(secret) = self.open(&purpose, &record.key) else {
            let others = record.key.keys().any(|n| *n != self.me && members.contains(n));
            if !others || !self.may_wait(&purpose) {
                // No remaining edge has the key.
                tracing::warn!(
                    directory = ca.directory,
                    "creating a new account, because the old account's key is lost"
                );
                self.store.swap(&at, entry.revision, None).await?;
            }
            let why = "this edge does not have the account's key yet";
            return Err(unavailable(why));
        };
        // New edges get the key, too.
        let missing = members.iter().any(|name| !record.key.contains_key(name));
        let key = match missing {
            true => self.seal(&purpose, &secret).await?.into_iter().chain(record.key).collect(),
            false => record.key,
        };
        let url = match &record.url {
            Some(url) => url.clone(),
            None => {
                let http = (ca.transport)();
                account::register(&*http, &ca.directory, &secret, &ca.contact).await?
            }
        };
        let pkcs8 = rustls::pki_types::PrivatePkcs8KeyDer::from(secret.to_vec());
        let builder = Account::builder_with_http((ca.transport)());
        let account = builder.from_parts(url.clone(), pkcs8, ca.directory.clone()).await?;
        let mut contact = record.contact;
        if record.url.is_some() && contact != ca.contact {
            let told: Vec<&str> = ca.contact.iter().map(String::as_str).collect();
            match account.update_contacts(&told).await {
                Ok(()) => contact.clone_from(&ca.contact),
                // Not a reason to stop the order.
                Err(error) => {
                    let (directory, error) = (&ca.directory, crate::logging::chain(&error));
                    tracing::warn!(directory, error, "the CA refused the contact in [[acme]]");
                }
            }
        }
        if record.url.is_none() {
            contact.clone_from(&ca.contact);
        }
        let new = AccountRecord { directory: record.directory, key, url: Some(url), contact };
        if json(&new) != entry.value {
            match self.store.swap(&at, entry.revision, Some(json(&new))).await {
                Ok(_) | Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(account)
    }

    /// Shares account keys with new edges, and asks other edges for those that this one lacks.
    pub(super) async fn share_accounts(&self) -> Result<(), StoreError> {
        let cas = self.told.lock().cas.clone();
        let members = self.members().await?;
        for ca in cas {
            let purpose = account_path(&ca);
            let at = Key::new(format!("{}{purpose}", self.prefix))?;
            let Some(entry) = self.store.get(&at).await? else { continue };
            let Ok(mut record) = serde_json::from_slice::<AccountRecord>(&entry.value) else {
                continue;
            };
            match self.open(&purpose, &record.key) {
                Some(secret) => {
                    self.told.lock().keyless.remove(&purpose);
                    if members.iter().all(|name| record.key.contains_key(name)) {
                        continue;
                    }
                    let sealed = self.seal(&purpose, &secret).await?;
                    record.key = sealed.into_iter().chain(record.key).collect();
                }
                None => {
                    self.may_wait(&purpose);
                    // If it is encrypted to an old key of this edge, remove it, so that another edge encrypts it again.
                    if record.key.len() < 2 || record.key.remove(&self.me).is_none() {
                        continue;
                    }
                }
            }
            match self.store.swap(&at, entry.revision, Some(json(&record))).await {
                Ok(_) | Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// After the CA has forgotten the account: the next attempt registers its key again.
    async fn forget_account(&self, ca: &Ca) -> Result<(), StoreError> {
        let at = Key::new(format!("{}{}", self.prefix, account_path(ca)))?;
        let Some(entry) = self.store.get(&at).await? else { return Ok(()) };
        let Ok(mut record) = serde_json::from_slice::<AccountRecord>(&entry.value) else {
            return Ok(());
        };
        record.url = None;
        self.store.swap(&at, entry.revision, Some(json(&record))).await.map(|_| ())
    }

    /// Creates the order. It counts against the limits before the CA is contacted.
    async fn begin(
        &self,
        title: &str,
        held: &mut Held,
        current: Option<&Current>,
        ca: &Ca,
        account: &Account,
    ) -> Result<Order, OrderError> {
        loop {
            let Some(pending) = held.record.order.clone() else { return Err(refused("no order")) };
            held.record.orders.push(self.clock.now());
            self.save(title, held).await?;
            let names: Vec<_> = pending.names.iter().cloned().map(Identifier::Dns).collect();
            let mut new = NewOrder::new(&names);
            if let Some(profile) = &ca.profile {
                new = new.profile(profile);
            }
            let replaces = self.replaces(held, &pending, current, ca);
            if let Some(replaced) = replaces.as_deref().and_then(identifier) {
                new = new.replaces(replaced);
            }
            let refusal = match account.new_order(&new).await {
                Ok(order) => {
                    if let Some(pending) = &mut held.record.order {
                        pending.url = Some(order.url().to_owned());
                    }
                    self.save(title, held).await?;
                    return Ok(order);
                }
                Err(error) => error,
            };
            if let Error::Api(problem) = &refusal {
                // A refused order does not exist and does not count. After another failure it may exist.
                if problem.status.is_some_and(|s| (400..500).contains(&s)) {
                    held.record.orders.pop();
                }
                if kind(problem) == "accountDoesNotExist" {
                    self.forget_account(ca).await?;
                }
            }
            let of_replaces = match &refusal {
                Error::Api(problem) => !matches!(
                    kind(problem),
                    "rateLimited" | "badNonce" | "serverInternal" | "accountDoesNotExist"
                ),
                // The library reports that the CA ignored `replaces`.
                Error::Other(error) => !error.is::<Unreached>(),
                Error::Unsupported(_) => true,
                _ => false,
            };
            if replaces.is_none() || !of_replaces {
                return Err(refusal.into());
            }
            // RFC 9773, section 5: the old certificate is already replaced, or unknown to the CA. Try without `replaces`.
            if let Some(pending) = &mut held.record.order {
                pending.without_replaces = true;
            }
        }
    }

    /// The ID of the certificate to replace, if this CA has issued it and has renewal information for it.
    fn replaces(
        &self,
        held: &Held,
        pending: &Pending,
        current: Option<&Current>,
        ca: &Ca,
    ) -> Option<String> {
        let issued = held.record.certificate.as_ref().filter(|i| i.ca == ca.directory);
        let ari = held.record.ari.as_ref().filter(|a| a.window.is_some());
        let id = current.and_then(|c| c.id.as_ref());
        let (_, ari, id) = (issued?, ari?, id?);
        (!pending.without_replaces && ari.of == *id).then(|| id.clone())
    }

    /// Publishes the challenge responses on every edge, then tells the CA to check them.
    async fn answer(
        &self,
        ca: &Ca,
        title: &str,
        held: &mut Held,
        order: &mut Order,
        records: &mut Vec<Answer>,
    ) -> Result<(), OrderError> {
        let proof = ca.challenge.unwrap_or(match held.record.failures % 2 {
            0 => Challenge::Http01,
            _ => Challenge::TlsAlpn01,
        });
        let wanted = || match proof {
            Challenge::Http01 => ChallengeType::Http01,
            Challenge::TlsAlpn01 => ChallengeType::TlsAlpn01,
            Challenge::Dns01 => ChallengeType::Dns01,
        };
        let mut answers = Vec::new();
        let mut all = order.authorizations();
        while let Some(authorization) = all.next().await {
            let mut authorization = authorization?;
            if authorization.status != AuthorizationStatus::Pending {
                continue;
            }
            let name = authorization.identifier().to_string();
            let Some(challenge) = authorization.challenge(wanted()) else {
                return Err(refused(format!("the CA does not offer {proof:?} for {name}")));
            };
            let said = challenge.key_authorization();
            answers.push(match proof {
                Challenge::Http01 => Answer::Http {
                    token: challenge.token.clone(),
                    key_authorization: said.as_str().to_owned(),
                },
                Challenge::TlsAlpn01 => {
                    Answer::TlsAlpn { name, digest: Blob(said.digest().as_ref().to_vec()) }
                }
                Challenge::Dns01 => {
                    let name = name.trim_start_matches("*.").to_owned();
                    Answer::Dns { name, value: said.dns_value() }
                }
            });
        }
        if let Some(pending) = &mut held.record.order {
            pending.answers = answers.clone();
        }
        self.save(title, held).await?;
        for answer in answers.into_iter().filter(Answer::is_record) {
            self.dns(ca, Verb::Present, &answer).await.map_err(refused)?;
            if !records.contains(&answer) {
                records.push(answer);
            }
            // Saving extends the lease, because a command may take minutes.
            self.save(title, held).await?;
        }
        self.publish().await?;
        let (members, _) = self.store.list(&format!("{}member/", self.prefix)).await?;
        if members.len() > 1 {
            self.clock.sleep(SPREAD).await;
        }
        let mut all = order.authorizations();
        while let Some(authorization) = all.next().await {
            let mut authorization = authorization?;
            if authorization.status != AuthorizationStatus::Pending {
                continue;
            }
            if let Some(mut challenge) = authorization.challenge(wanted())
                && challenge.status == ChallengeStatus::Pending
            {
                challenge.set_ready().await?;
            }
        }
        Ok(())
    }

    /// Runs the command to add or remove a DNS record.
    async fn dns(&self, ca: &Ca, verb: Verb, record: &Answer) -> Result<(), String> {
        let Answer::Dns { name, value } = record else { return Ok(()) };
        match (&self.dns_hook, &ca.dns_command) {
            (Some(hook), Some(command)) => hook.run(command, verb, name, value).await,
            _ => Err("no dns_command is configured".into()),
        }
    }

    /// Removes the DNS records of an order.
    pub(super) async fn withdraw(&self, ca: Option<&Ca>, records: &[Answer]) {
        let Some(ca) = ca else { return };
        for record in records {
            if let Err(error) = self.dns(ca, Verb::Cleanup, record).await {
                tracing::warn!(error, "cannot remove a DNS record");
            }
        }
    }

    /// Requests the certificate, with a key that is in the store.
    async fn finalize(
        &self,
        title: &str,
        held: &mut Held,
        order: &mut Order,
    ) -> Result<(), OrderError> {
        let Some(pending) = held.record.order.clone() else { return Err(refused("no order")) };
        let opened = pending.key.as_ref().and_then(|key| self.open(title, key));
        let pem = match opened {
            Some(pem) => pem,
            None => {
                let key = SigningKey::generate().map_err(|e| refused(e.to_string()))?;
                let sealed = self.seal(title, key.to_pem().as_bytes()).await?;
                held.record.finalized.push(self.clock.now());
                if let Some(pending) = &mut held.record.order {
                    pending.key = Some(sealed);
                }
                self.save(title, held).await?;
                key.to_pem().as_bytes().to_vec().into()
            }
        };
        let key = SigningKey::from_pem(&pem).map_err(|e| refused(e.to_string()))?;
        let request = WebCsr::create(&pending.names, &key).map_err(|e| refused(e.to_string()))?;
        Ok(order.finalize_csr(&request).await?)
    }

    /// Downloads, saves and serves the certificate.
    async fn take(
        &self,
        title: &str,
        held: &mut Held,
        order: &mut Order,
    ) -> Result<(), OrderError> {
        let Some(pending) = held.record.order.clone() else { return Err(refused("no order")) };
        let chain =
            order.certificate().await?.ok_or_else(|| refused("the CA sent no certificate"))?;
        let sealed = pending.key.unwrap_or_default();
        let Some(key) = self.open(title, &sealed) else {
            return Err(refused("this edge does not have the certificate's key"));
        };
        let names: Vec<_> = pending.names.iter().filter_map(|n| n.parse().ok()).collect();
        SiteCertificate::from_pem(chain.as_bytes(), &key, &names).map_err(|e| {
            refused(format!("the CA issued a certificate that cannot be served: {e}"))
        })?;
        let record = &mut held.record;
        record.certificate =
            Some(Issued { chain, key: sealed, ca: pending.ca, names: pending.names });
        (record.order, record.lease, record.ari, record.error) = (None, None, None, None);
        (record.failures, record.retry_at) = (0, 0);
        self.save(title, held).await?;
        self.publish().await?;
        Ok(())
    }

    /// Asks the CA when to renew the certificate (RFC 9773).
    pub(super) async fn ask_ari(
        &self,
        title: &str,
        held: &mut Held,
        current: Option<&Current>,
    ) -> Result<(), StoreError> {
        let Some(id) = current.and_then(|c| c.id.clone()) else { return Ok(()) };
        let from = held.record.certificate.as_ref().map(|c| c.ca.clone());
        let ca =
            self.told.lock().cas.iter().find(|ca| Some(&ca.directory) == from.as_ref()).cloned();
        let before = held.record.ari.take().filter(|a| a.of == id).and_then(|a| a.window);
        let now = self.clock.now();
        let asked = match &ca {
            Some(ca) => self.renewal_info(ca, &id).await,
            None => Ok((None, *ARI_EVERY.end())),
        };
        let (window, after) = asked.unwrap_or_else(|error| {
            tracing::warn!(
                site = title,
                ?error,
                "cannot get renewal information; using the usual renewal time"
            );
            (before, *ARI_EVERY.start())
        });
        let check_at = now + after.clamp(*ARI_EVERY.start(), *ARI_EVERY.end());
        held.record.ari = Some(Ari { of: id, window, check_at });
        self.save(title, held).await
    }

    async fn renewal_info(
        &self,
        ca: &Ca,
        id: &str,
    ) -> Result<(Option<(u64, u64)>, u64), OrderError> {
        let Some(id) = identifier(id) else { return Ok((None, u64::MAX)) };
        let account = self.account(ca).await?;
        match account.renewal_info(&id).await {
            Ok((info, after)) => {
                let second = |t: i64| u64::try_from(t).unwrap_or_default();
                let window = info.suggested_window;
                let window =
                    (second(window.start.unix_timestamp()), second(window.end.unix_timestamp()));
                Ok((Some(window), after.as_secs()))
            }
            Err(Error::Unsupported(_)) => Ok((None, u64::MAX)),
            Err(error) => Err(error.into()),
        }
    }
}

/// The CA's error for a failed challenge.
async fn why_invalid(order: &mut Order) -> String {
    let mut all = order.authorizations();
    while let Some(Ok(mut authorization)) = all.next().await {
        let name = authorization.identifier().to_string();
        if let Ok(state) = authorization.refresh().await
            && let Some(problem) = state.challenges.iter().find_map(|c| c.error.as_ref())
        {
            return format!(
                "the CA could not verify {name}: {problem}. Check that its DNS and ports 80 and 443 lead to this machine."
            );
        }
    }
    "the CA refused the order without a reason".into()
}

/// The path of a CA's account, after the prefix. It is also the purpose for the encryption of its key.
fn account_path(ca: &Ca) -> String {
    let hash = digest(&SHA256, ca.directory.as_bytes());
    format!("account/{}", hex(&hash.as_ref()[..16]))
}

/// Parses `AKI.SERIAL`.
fn identifier(id: &str) -> Option<CertificateIdentifier<'_>> {
    let (authority, serial) = id.split_once('.')?;
    Some(CertificateIdentifier {
        authority_key_identifier: authority.into(),
        serial: serial.into(),
    })
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}
