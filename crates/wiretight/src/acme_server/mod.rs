//! An ACME server (RFC 8555), with which programs that have an ACME client get certificates from the mesh's authority. It
//! only answers requests: sockets, the clock, issuing and validation are parameters.
//!
//! - `jws`: signed requests
//! - `objects`: stored accounts and orders
//! - `validate`: validation by http-01 and tls-alpn-01
//! - `serve`: the server as a site of the edge
//!
//! It refuses names that the configuration does not allow, and wildcards (which need DNS validation). Accounts, orders and
//! nonces are limited, so that clients cannot fill the store. A client that controls the address of an allowed name gets
//! a certificate for it. These certificates are never identities of the mesh.

pub mod jws;
mod objects;
pub mod serve;
pub mod validate;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::body::Bytes;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Method as HttpMethod, Request, Response, StatusCode};
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use wiretight_keys::web::is_host_name;
use wiretight_keys::{WebCsr, x509};
use wiretight_proxy::edge::settings::SiteName;
use wiretight_store::{Entry, Error as StoreError, Key, Store};

use jws::{Jwk, JwsError, Sender, Signed};
pub use objects::Method;
use objects::{ACCOUNTS, Account, Authorization, ORDERS, Order, Tried};
pub use validate::{Invalid, Validator};

const MAX_ACCOUNTS: usize = 10_000;
/// Stored orders, in total and per account.
const MAX_ORDERS: usize = 10_000;
const MAX_ORDERS_EACH: usize = 200;
/// Names of one order.
const MAX_NAMES: usize = 20;
/// Unused nonces; the oldest are dropped first.
const MAX_NONCES: usize = 65_536;
/// Concurrent validations.
const MAX_VALIDATIONS: usize = 32;
const MAX_CONTACTS: usize = 8;
const MAX_CONTACT: usize = 256;
/// How long an order may take, in seconds.
const ORDER_TTL: u64 = 86_400;
/// An account without orders for this long is deleted, in seconds.
const ACCOUNT_TTL: u64 = 90 * 86_400;
/// Between removals of expired records, in seconds.
const PRUNE: u64 = 600;

/// Issues certificates for validated names.
#[async_trait]
pub trait Issuer: Send + Sync {
    /// Returns the chain, leaf first. `not_after` is requested by the client. The error is only logged.
    async fn issue(
        &self,
        request: &WebCsr,
        not_after: Option<u64>,
    ) -> Result<Vec<CertificateDer<'static>>, String>;
}

/// Seconds since 1970.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Clones refer to the same server.
#[derive(Clone)]
pub struct AcmeServer {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn Store>,
    issuer: Arc<dyn Issuer>,
    validator: Arc<dyn Validator>,
    clock: Clock,
    base: String,
    allowed: Vec<SiteName>,
    reserved: Vec<SiteName>,
    nonces: Mutex<Nonces>,
    /// Held while a record is added, so that the limits are kept.
    bounds: tokio::sync::Mutex<Bounds>,
    /// Serialises finalizing, so that an order gets only one certificate.
    finalizing: tokio::sync::Mutex<()>,
    trying: Mutex<HashSet<String>>,
    validations: tokio::sync::Semaphore,
}

#[derive(Default)]
struct Nonces {
    live: HashSet<String>,
    order: VecDeque<String>,
}

/// The numbers of stored records.
#[derive(Default)]
struct Bounds {
    prune_at: u64,
    accounts: usize,
    orders: usize,
    orders_of: HashMap<String, usize>,
}

/// A problem document (RFC 7807; RFC 8555, section 6.7).
#[derive(Debug)]
struct Problem {
    kind: &'static str,
    status: StatusCode,
    detail: String,
}

impl Problem {
    fn new(kind: &'static str, detail: impl Into<String>) -> Problem {
        let status = match kind {
            "serverInternal" => StatusCode::INTERNAL_SERVER_ERROR,
            "unauthorized" | "orderNotReady" | "rejectedIdentifier" => StatusCode::FORBIDDEN,
            "rateLimited" => StatusCode::TOO_MANY_REQUESTS,
            _ => StatusCode::BAD_REQUEST,
        };
        Problem { kind, status, detail: detail.into() }
    }

    fn malformed(detail: impl Into<String>) -> Problem {
        Problem::new("malformed", detail)
    }

    fn not_found() -> Problem {
        Problem { status: StatusCode::NOT_FOUND, ..Problem::malformed("not found") }
    }

    fn json(&self) -> Value {
        problem_json(self.kind, &self.detail, Some(self.status))
    }
}

fn problem_json(kind: &str, detail: &str, status: Option<StatusCode>) -> Value {
    let mut json =
        json!({ "type": format!("urn:ietf:params:acme:error:{kind}"), "detail": detail });
    if let Some(status) = status {
        json["status"] = status.as_u16().into();
    }
    json
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Problem {
        if matches!(error, StoreError::Conflict { .. }) {
            return Problem::new("serverInternal", "conflict with another request: try again");
        }
        tracing::error!(error = crate::logging::chain(&error), "the ACME server's store failed");
        Problem::new("serverInternal", "the server's store failed; see its log")
    }
}

impl From<JwsError> for Problem {
    fn from(error: JwsError) -> Problem {
        let kind = match error {
            JwsError::Algorithm => "badSignatureAlgorithm",
            JwsError::Key => "badPublicKey",
            JwsError::Signature | JwsError::Malformed => "malformed",
        };
        Problem::new(kind, error.to_string())
    }
}

type Answer = Result<Response<Bytes>, Problem>;

/// The authenticated sender of a request.
struct Caller {
    id: String,
    account: Account,
    entry: Entry,
}

/// An order and its store entry.
struct Found {
    id: String,
    entry: Entry,
    order: Order,
}

impl AcmeServer {
    /// `base` is the server's URL without a trailing slash, such as `https://acme.example.org`. Only names in `allowed` are
    /// certified; `*.example.org` allows every name below `example.org`. Names in `reserved` are never certified.
    pub fn new(
        store: Arc<dyn Store>,
        issuer: Arc<dyn Issuer>,
        validator: Arc<dyn Validator>,
        clock: Clock,
        base: String,
        allowed: Vec<SiteName>,
        reserved: Vec<SiteName>,
    ) -> AcmeServer {
        let (nonces, bounds, finalizing, trying) = Default::default();
        let validations = tokio::sync::Semaphore::new(MAX_VALIDATIONS);
        let inner = Inner {
            store,
            issuer,
            validator,
            clock,
            base,
            allowed,
            reserved,
            nonces,
            bounds,
            finalizing,
            trying,
            validations,
        };
        AcmeServer { inner: Arc::new(inner) }
    }

    /// Answers a request with a complete body.
    pub async fn handle(&self, request: Request<Bytes>) -> Response<Bytes> {
        let is_post = request.method() == HttpMethod::POST;
        let mut response = self.answer(request).await.unwrap_or_else(|problem| {
            let mut response = json_answer(problem.status, problem.json());
            let kind = HeaderValue::from_static("application/problem+json");
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            response
        });
        if is_post && let Ok(nonce) = self.inner.nonce() {
            put(&mut response, HeaderName::from_static("replay-nonce"), &nonce);
        }
        let index = format!("<{}/directory>;rel=\"index\"", self.inner.base);
        put(&mut response, header::LINK, &index);
        put(&mut response, header::CACHE_CONTROL, "no-store");
        response
    }

    async fn answer(&self, request: Request<Bytes>) -> Answer {
        let inner = &self.inner;
        let path = request.uri().path().to_owned();
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        match (request.method(), parts.as_slice()) {
            (&HttpMethod::GET | &HttpMethod::HEAD, ["directory"]) => {
                return Ok(json_answer(StatusCode::OK, inner.directory()));
            }
            (&HttpMethod::GET | &HttpMethod::HEAD, ["new-nonce"]) => {
                let status = match request.method() == HttpMethod::HEAD {
                    true => StatusCode::OK,
                    false => StatusCode::NO_CONTENT,
                };
                let mut response = Response::new(Bytes::new());
                *response.status_mut() = status;
                put(&mut response, HeaderName::from_static("replay-nonce"), &inner.nonce()?);
                return Ok(response);
            }
            (&HttpMethod::POST, _) => {}
            _ => {
                let problem = Problem::malformed("use POST (RFC 8555, section 6.3)");
                return Err(Problem { status: StatusCode::METHOD_NOT_ALLOWED, ..problem });
            }
        }
        let kind = request.headers().get(header::CONTENT_TYPE);
        if kind.is_none_or(|k| k.as_bytes() != b"application/jose+json") {
            let problem = Problem::malformed("the content type must be application/jose+json");
            return Err(Problem { status: StatusCode::UNSUPPORTED_MEDIA_TYPE, ..problem });
        }
        let signed = Signed::parse(request.body())?;
        if signed.url != format!("{}{path}", inner.base) {
            let detail = format!("the request is not signed for the URL {}{path}", inner.base);
            return Err(Problem::new("unauthorized", detail));
        }
        if let ["new-account"] = parts.as_slice() {
            let Sender::Key(key) = &signed.from else {
                return Err(Problem::malformed(
                    "a request for a new account must contain its key (jwk)",
                ));
            };
            let payload = signed.verify(key)?;
            inner.take_nonce(&signed.nonce)?;
            return inner.new_account(key, read(payload)?).await;
        }
        let Sender::Account(url) = &signed.from else {
            return Err(Problem::malformed("the request must name its account (kid)"));
        };
        let caller = inner.caller(url).await?;
        let payload = signed.verify(&caller.account.key)?;
        inner.take_nonce(&signed.nonce)?;
        if caller.account.deactivated {
            return Err(Problem::new("unauthorized", "this account was deactivated"));
        }
        match parts.as_slice() {
            ["account", id] if *id == caller.id => inner.account(caller, payload).await,
            ["new-order"] => inner.new_order(caller, read(payload)?).await,
            ["order", id] => inner.order(&caller, id).await,
            ["order", id, "finalize"] => inner.finalize(&caller, id, read(payload)?).await,
            ["authz", id, n] => inner.authorization(&caller, id, index(n)?, payload).await,
            ["challenge", id, n, method] => {
                let method = Method::ALL.into_iter().find(|m| m.as_str() == *method);
                let method = method.ok_or_else(Problem::not_found)?;
                self.challenge(&caller, id, index(n)?, method, payload).await
            }
            ["certificate", id] => inner.certificate(&caller, id).await,
            ["revoke-cert"] => inner.revoke(&caller, read(payload)?).await,
            _ => Err(Problem::not_found()),
        }
    }

    /// Validates a name, once. The validation continues if the client disconnects.
    async fn challenge(
        &self,
        caller: &Caller,
        id: &str,
        n: usize,
        method: Method,
        payload: &[u8],
    ) -> Answer {
        let inner = &self.inner;
        let found = inner.find(&caller.id, id).await?;
        let tried = found.order.authorizations.get(n).ok_or_else(Problem::not_found)?;
        let status = tried.status(found.order.expires < inner.now());
        if !payload.is_empty() && status == "pending" {
            let this = self.inner.clone();
            let (account, id) = (caller.id.clone(), id.to_owned());
            let task = tokio::spawn(async move { this.prove(&account, &id, n, method).await });
            task.await
                .map_err(|_| Problem::new("serverInternal", "the validation was aborted"))??;
        }
        let found = inner.find(&caller.id, id).await?;
        let authorization = found.order.authorizations.get(n).ok_or_else(Problem::not_found)?;
        let json = inner.challenge_json(&found, authorization, n, method);
        let mut response = json_answer(StatusCode::OK, json);
        let up = format!("<{}/authz/{id}/{n}>;rel=\"up\"", inner.base);
        if let Ok(up) = HeaderValue::from_str(&up) {
            response.headers_mut().append(header::LINK, up);
        }
        Ok(response)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NewAccount {
    #[serde(default)]
    contact: Vec<String>,
    #[serde(default)]
    only_return_existing: bool,
}

#[derive(Deserialize)]
struct AccountChange {
    #[serde(default)]
    contact: Option<Vec<String>>,
    #[serde(default)]
    status: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NewOrder {
    identifiers: Vec<Identifier>,
    #[serde(default)]
    not_before: Option<String>,
    #[serde(default)]
    not_after: Option<String>,
}

#[derive(Deserialize)]
struct Identifier {
    #[serde(rename = "type")]
    kind: String,
    value: String,
}

#[derive(Deserialize)]
struct Finalize {
    csr: String,
}

#[derive(Deserialize)]
struct Revoke {
    certificate: String,
}

impl Inner {
    fn now(&self) -> u64 {
        (self.clock)()
    }

    fn directory(&self) -> Value {
        let url = |path: &str| format!("{}/{path}", self.base);
        json!({
            "newNonce": url("new-nonce"),
            "newAccount": url("new-account"),
            "newOrder": url("new-order"),
            "revokeCert": url("revoke-cert"),
            "meta": { "externalAccountRequired": false },
        })
    }

    // ---- Nonces.

    fn nonce(&self) -> Result<String, Problem> {
        let nonce = random()?;
        let mut nonces = self.nonces.lock();
        nonces.live.insert(nonce.clone());
        nonces.order.push_back(nonce.clone());
        if nonces.order.len() > MAX_NONCES
            && let Some(oldest) = nonces.order.pop_front()
        {
            nonces.live.remove(&oldest);
        }
        Ok(nonce)
    }

    fn take_nonce(&self, nonce: &str) -> Result<(), Problem> {
        let mut nonces = self.nonces.lock();
        match nonces.live.remove(nonce) {
            true => Ok(()),
            false => Err(Problem::new("badNonce", "this nonce was already used, or is too old")),
        }
    }

    // ---- Accounts.

    async fn caller(&self, url: &str) -> Result<Caller, Problem> {
        let unknown = || Problem::new("accountDoesNotExist", "there is no such account");
        let id = url.strip_prefix(&format!("{}/account/", self.base)).ok_or_else(unknown)?;
        let key = account_key(id).ok_or_else(unknown)?;
        let entry = self.store.get(&key).await?.ok_or_else(unknown)?;
        let account = stored(&entry)?;
        Ok(Caller { id: id.into(), account, entry })
    }

    async fn new_account(&self, key: &Jwk, asked: NewAccount) -> Answer {
        let id = key.thumbprint();
        let at = account_key(&id).ok_or_else(Problem::not_found)?;
        let mut bounds = self.bounds().await?;
        let (status, account) = match self.store.get(&at).await? {
            Some(entry) => (StatusCode::OK, stored::<Account>(&entry)?),
            None if asked.only_return_existing => {
                return Err(Problem::new("accountDoesNotExist", "this key has no account here"));
            }
            None => {
                if bounds.accounts >= MAX_ACCOUNTS {
                    return Err(Problem::new("rateLimited", "there are too many accounts"));
                }
                let contact = contacts(asked.contact)?;
                let used = self.now();
                let account = Account { key: key.clone(), contact, used, deactivated: false };
                self.store.create(&at, bytes(&account)?).await?;
                bounds.accounts += 1;
                tracing::info!(account = %id, "created an ACME account");
                (StatusCode::CREATED, account)
            }
        };
        if account.deactivated {
            return Err(Problem::new("unauthorized", "this account was deactivated"));
        }
        let mut response = json_answer(status, account.json());
        put(&mut response, header::LOCATION, &format!("{}/account/{id}", self.base));
        Ok(response)
    }

    async fn account(&self, caller: Caller, payload: &[u8]) -> Answer {
        let Caller { mut account, entry, .. } = caller;
        if payload.is_empty() {
            return Ok(json_answer(StatusCode::OK, account.json()));
        }
        let change: AccountChange = read(payload)?;
        if let Some(contact) = change.contact {
            account.contact = contacts(contact)?;
        }
        match change.status.as_deref() {
            None | Some("valid") => {}
            Some("deactivated") => account.deactivated = true,
            Some(_) => return Err(Problem::malformed("an account can only be deactivated")),
        }
        self.store.swap(&entry.key, entry.revision, Some(bytes(&account)?)).await?;
        Ok(json_answer(StatusCode::OK, account.json()))
    }

    // ---- Orders.

    async fn new_order(&self, caller: Caller, asked: NewOrder) -> Answer {
        if asked.not_before.is_some() {
            return Err(Problem::malformed("notBefore is not supported: certificates start now"));
        }
        let not_after = match &asked.not_after {
            None => None,
            Some(text) => {
                let time = text.parse::<jiff::Timestamp>();
                let time = time.map_err(|_| Problem::malformed("notAfter is not a time"))?;
                Some(u64::try_from(time.as_second()).unwrap_or_default())
            }
        };
        let now = self.now();
        if not_after.is_some_and(|t| t <= now) {
            return Err(Problem::malformed("notAfter is in the past"));
        }
        let mut names = Vec::new();
        for identifier in asked.identifiers {
            names.push(self.allowed_name(identifier)?);
        }
        names.sort();
        names.dedup();
        if names.is_empty() || names.len() > MAX_NAMES {
            let detail = format!("an order must have 1 to {MAX_NAMES} names");
            return Err(Problem::malformed(detail));
        }
        let mut bounds = self.bounds().await?;
        let of_this = bounds.orders_of.get(&caller.id).copied().unwrap_or_default();
        if of_this >= MAX_ORDERS_EACH || bounds.orders >= MAX_ORDERS {
            return Err(Problem::new("rateLimited", "too many orders: try again tomorrow"));
        }
        let mut authorizations = Vec::new();
        for name in names {
            let token = random()?;
            authorizations.push(Authorization { name, token, tried: None, deactivated: false });
        }
        let order = Order {
            expires: now + ORDER_TTL,
            not_after,
            authorizations,
            certificate: None,
            revoked: false,
        };
        let id = random()?;
        let key = order_key(&caller.id, &id).ok_or_else(Problem::not_found)?;
        if now.saturating_sub(caller.account.used) > 86_400 {
            let account = Account { used: now, ..caller.account };
            let at = &caller.entry;
            self.store.swap(&at.key, at.revision, Some(bytes(&account)?)).await?;
        }
        self.store.create(&key, bytes(&order)?).await?;
        bounds.orders += 1;
        *bounds.orders_of.entry(caller.id).or_default() += 1;
        let mut response = json_answer(StatusCode::CREATED, self.order_json(&id, &order));
        put(&mut response, header::LOCATION, &format!("{}/order/{id}", self.base));
        Ok(response)
    }

    fn allowed_name(&self, identifier: Identifier) -> Result<String, Problem> {
        if identifier.kind != "dns" {
            return Err(Problem::new("unsupportedIdentifier", "only DNS names are certified"));
        }
        let name = identifier.value.to_ascii_lowercase();
        let rejected = |detail: String| Problem::new("rejectedIdentifier", detail);
        if name.starts_with("*.") {
            return Err(rejected("wildcards are not issued".into()));
        }
        if !is_host_name(&name) {
            return Err(Problem::malformed("an identifier is not a DNS name"));
        }
        let own = self.base.trim_start_matches("https://").split(':').next();
        if own == Some(name.as_str())
            || !self.allowed.iter().any(|allowed| allowed.covers(&name))
            || self.reserved.iter().any(|reserved| reserved.covers(&name))
        {
            return Err(rejected(format!("this authority does not certify {name}")));
        }
        Ok(name)
    }

    async fn find(&self, account: &str, id: &str) -> Result<Found, Problem> {
        let key = order_key(account, id).ok_or_else(Problem::not_found)?;
        let entry = self.store.get(&key).await?.ok_or_else(Problem::not_found)?;
        let order = stored(&entry)?;
        Ok(Found { id: id.into(), entry, order })
    }

    async fn order(&self, caller: &Caller, id: &str) -> Answer {
        let found = self.find(&caller.id, id).await?;
        let mut response = json_answer(StatusCode::OK, self.order_json(id, &found.order));
        put(&mut response, header::LOCATION, &format!("{}/order/{id}", self.base));
        Ok(response)
    }

    fn order_json(&self, id: &str, order: &Order) -> Value {
        let all = order.authorizations.iter().enumerate();
        let identifiers: Vec<_> =
            all.clone().map(|(_, a)| json!({ "type": "dns", "value": a.name })).collect();
        let authorizations: Vec<_> =
            all.map(|(n, _)| format!("{}/authz/{id}/{n}", self.base)).collect();
        let mut json = json!({
            "status": order.status(self.now()),
            "expires": time(order.expires),
            "identifiers": identifiers,
            "authorizations": authorizations,
            "finalize": format!("{}/order/{id}/finalize", self.base),
        });
        if let Some(not_after) = order.not_after {
            json["notAfter"] = time(not_after).into();
        }
        if order.certificate.is_some() {
            json["certificate"] = format!("{}/certificate/{id}", self.base).into();
        }
        json
    }

    async fn authorization(&self, caller: &Caller, id: &str, n: usize, payload: &[u8]) -> Answer {
        let mut found = self.find(&caller.id, id).await?;
        if n >= found.order.authorizations.len() {
            return Err(Problem::not_found());
        }
        if !payload.is_empty() {
            let change: AccountChange = read(payload)?;
            if change.status.as_deref() != Some("deactivated") {
                return Err(Problem::malformed("an authorization can only be deactivated"));
            }
            found.order.authorizations[n].deactivated = true;
            let (entry, value) = (&found.entry, bytes(&found.order)?);
            self.store.swap(&entry.key, entry.revision, Some(value)).await?;
        }
        let authorization = &found.order.authorizations[n];
        let challenges: Vec<_> = match &authorization.tried {
            Some(tried) => vec![tried.method],
            None => Method::ALL.to_vec(),
        };
        let challenges: Vec<_> = challenges
            .into_iter()
            .map(|method| self.challenge_json(&found, authorization, n, method))
            .collect();
        let json = json!({
            "status": authorization.status(found.order.expires < self.now()),
            "expires": time(found.order.expires),
            "identifier": { "type": "dns", "value": authorization.name },
            "challenges": challenges,
        });
        Ok(json_answer(StatusCode::OK, json))
    }

    fn challenge_json(
        &self,
        found: &Found,
        authorization: &Authorization,
        n: usize,
        method: Method,
    ) -> Value {
        let url = format!("{}/challenge/{}/{n}/{}", self.base, found.id, method.as_str());
        let mut json = json!({
            "type": method.as_str(),
            "url": url,
            "token": authorization.token,
            "status": "pending",
        });
        match authorization.tried.as_ref().filter(|t| t.method == method) {
            Some(Tried { error: Some(error), .. }) => {
                json["status"] = "invalid".into();
                json["error"] = error.clone();
            }
            Some(Tried { at, error: None, .. }) => {
                json["status"] = "valid".into();
                json["validated"] = time(*at).into();
            }
            None if self.trying.lock().contains(&format!("{}#{n}", found.entry.key)) => {
                json["status"] = "processing".into();
            }
            None => {}
        }
        json
    }

    async fn prove(
        &self,
        account: &str,
        id: &str,
        n: usize,
        method: Method,
    ) -> Result<(), Problem> {
        let found = self.find(account, id).await?;
        let Some(authorization) = found.order.authorizations.get(n) else { return Ok(()) };
        let (name, token) = (authorization.name.clone(), authorization.token.clone());
        let this = format!("{}#{n}", found.entry.key);
        if !self.trying.lock().insert(this.clone()) {
            return Ok(());
        }
        let proved = {
            let _place = self.validations.acquire().await;
            let key_authorization = format!("{token}.{account}");
            self.validator.validate(method, &name, &token, &key_authorization).await
        };
        self.trying.lock().remove(&this);
        let error = proved.err().map(|invalid| {
            tracing::info!(
                name,
                method = method.as_str(),
                why = invalid.detail,
                "a name could not be validated"
            );
            problem_json(invalid.kind, &invalid.detail, None)
        });
        // Another name of the order may be validated at the same time.
        let key = order_key(account, id).ok_or_else(Problem::not_found)?;
        let at = self.now();
        wiretight_store::update(&*self.store, &key, |value| {
            let Some(value) = value else { return Ok(None) };
            let mut order: Order = serde_json::from_slice(value).map_err(|_| damaged())?;
            if let Some(authorization) = order.authorizations.get_mut(n)
                && authorization.tried.is_none()
            {
                authorization.tried = Some(Tried { method, at, error: error.clone() });
            }
            bytes(&order).map(Some)
        })
        .await?;
        Ok(())
    }

    async fn finalize(&self, caller: &Caller, id: &str, asked: Finalize) -> Answer {
        let bad = |detail: String| Problem::new("badCSR", detail);
        let der = URL_SAFE_NO_PAD.decode(&asked.csr).map_err(|_| bad("not base64url".into()))?;
        let csr = WebCsr::parse(&der).map_err(|e| bad(e.to_string()))?;
        let _guard = self.finalizing.lock().await;
        let mut found = self.find(&caller.id, id).await?;
        match found.order.status(self.now()) {
            "ready" => {}
            status => {
                let detail = format!("the order is {status}: all names must be validated first");
                return Err(Problem::new("orderNotReady", detail));
            }
        }
        let names = found.order.authorizations.iter().map(|a| a.name.as_str());
        if !names.eq(csr.names().iter().map(String::as_str)) {
            return Err(bad("the names in the CSR differ from those of the order".into()));
        }
        // RFC 8555, section 11.1.
        let material = caller.account.key.material();
        let key = csr.spki().subject_public_key.raw_bytes();
        if key.windows(material.len()).any(|w| w == material) {
            return Err(bad("the account's own key cannot be certified".into()));
        }
        let chain = self.issuer.issue(&csr, found.order.not_after).await.map_err(|error| {
            tracing::error!(error, "the authority did not issue a certificate");
            Problem::new(
                "serverInternal",
                "the authority did not issue the certificate; see its log",
            )
        })?;
        let ends = chain.first().and_then(|leaf| x509::not_after(leaf));
        found.order.expires = ends.unwrap_or(found.order.expires);
        found.order.certificate = Some(x509::to_pem(&chain));
        let (entry, value) = (&found.entry, bytes(&found.order)?);
        self.store.swap(&entry.key, entry.revision, Some(value)).await?;
        let mut response = json_answer(StatusCode::OK, self.order_json(id, &found.order));
        put(&mut response, header::LOCATION, &format!("{}/order/{id}", self.base));
        Ok(response)
    }

    async fn certificate(&self, caller: &Caller, id: &str) -> Answer {
        let found = self.find(&caller.id, id).await?;
        let pem = found.order.certificate.ok_or_else(Problem::not_found)?;
        let mut response = Response::new(Bytes::from(pem));
        put(&mut response, header::CONTENT_TYPE, "application/pem-certificate-chain");
        Ok(response)
    }

    /// Marks a certificate as revoked. This is not published: the certificates are short-lived instead.
    async fn revoke(&self, caller: &Caller, asked: Revoke) -> Answer {
        let der = URL_SAFE_NO_PAD.decode(&asked.certificate);
        let der = der.map_err(|_| Problem::malformed("the certificate is not base64url"))?;
        let pem = x509::to_pem(&[CertificateDer::from(der)]);
        for entry in self.store.list(&format!("{ORDERS}{}/", caller.id)).await?.0 {
            let mut order: Order = stored(&entry)?;
            if !order.certificate.as_ref().is_some_and(|chain| chain.starts_with(&pem)) {
                continue;
            }
            if order.revoked {
                return Err(Problem::new("alreadyRevoked", "the certificate is already revoked"));
            }
            order.revoked = true;
            self.store.swap(&entry.key, entry.revision, Some(bytes(&order)?)).await?;
            tracing::warn!(account = caller.id, "a certificate was revoked by its account");
            return Ok(Response::new(Bytes::new()));
        }
        Err(Problem::new("unauthorized", "this account has no such certificate"))
    }

    // ---- Limits.

    /// The numbers of stored records. Removes expired ones from time to time.
    async fn bounds(&self) -> Result<tokio::sync::MutexGuard<'_, Bounds>, Problem> {
        let mut bounds = self.bounds.lock().await;
        let now = self.now();
        if bounds.prune_at > now {
            return Ok(bounds);
        }
        let mut fresh = Bounds { prune_at: now + PRUNE, ..Bounds::default() };
        for entry in self.store.list(ORDERS).await?.0 {
            let order: Option<Order> = serde_json::from_slice(&entry.value).ok();
            if order.is_some_and(|order| order.expires < now) {
                self.forget(&entry).await?;
                continue;
            }
            fresh.orders += 1;
            let rest = entry.key.as_str().strip_prefix(ORDERS).unwrap_or_default();
            let account = rest.split('/').next().unwrap_or_default();
            *fresh.orders_of.entry(account.into()).or_default() += 1;
        }
        for entry in self.store.list(ACCOUNTS).await?.0 {
            let account: Option<Account> = serde_json::from_slice(&entry.value).ok();
            if account.is_some_and(|account| account.used + ACCOUNT_TTL < now) {
                self.forget(&entry).await?;
                continue;
            }
            fresh.accounts += 1;
        }
        *bounds = fresh;
        Ok(bounds)
    }

    async fn forget(&self, entry: &Entry) -> Result<(), Problem> {
        match self.store.swap(&entry.key, entry.revision, None).await {
            Ok(_) | Err(StoreError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn read<T: DeserializeOwned>(payload: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(payload).map_err(|e| Problem::malformed(format!("invalid payload: {e}")))
}

fn stored<T: DeserializeOwned>(entry: &Entry) -> Result<T, Problem> {
    serde_json::from_slice(&entry.value).map_err(|_| damaged())
}

fn damaged() -> Problem {
    tracing::error!("a record of the ACME server is unreadable");
    Problem::new("serverInternal", "a record of the server is unreadable; see its log")
}

fn bytes<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, Problem> {
    serde_json::to_vec(value).map_err(|_| damaged())
}

fn contacts(contact: Vec<String>) -> Result<Vec<String>, Problem> {
    match contact.len() <= MAX_CONTACTS && contact.iter().all(|c| c.len() <= MAX_CONTACT) {
        true => Ok(contact),
        false => {
            Err(Problem::new("invalidContact", "there are too many contacts, or one is too long"))
        }
    }
}

/// Whether a part of a URL may be used in a store key.
fn is_id(text: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    (1..=64).contains(&text.len()) && text.bytes().all(good)
}

fn account_key(id: &str) -> Option<Key> {
    is_id(id).then(|| Key::new(format!("{ACCOUNTS}{id}")).ok())?
}

fn order_key(account: &str, id: &str) -> Option<Key> {
    (is_id(account) && is_id(id)).then(|| Key::new(format!("{ORDERS}{account}/{id}")).ok())?
}

fn index(text: &str) -> Result<usize, Problem> {
    text.parse().map_err(|_| Problem::not_found())
}

/// At least 128 bits, as RFC 8555, section 8.1 requires for tokens.
fn random() -> Result<String, Problem> {
    let mut bytes = [0; 24];
    getrandom::fill(&mut bytes)
        .map_err(|_| Problem::new("serverInternal", "cannot get random bytes from the system"))?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

fn time(unix: u64) -> String {
    let at = jiff::Timestamp::from_second(i64::try_from(unix).unwrap_or(i64::MAX));
    at.map(|t| t.to_string()).unwrap_or_default()
}

fn json_answer(status: StatusCode, json: Value) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(json.to_string()));
    *response.status_mut() = status;
    put(&mut response, header::CONTENT_TYPE, "application/json");
    response
}

fn put(response: &mut Response<Bytes>, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        let headers = response.headers_mut();
        match name == header::LINK {
            true => drop(headers.append(name, value)),
            false => drop(headers.insert(name, value)),
        }
    }
}

#[cfg(test)]
mod tests;
