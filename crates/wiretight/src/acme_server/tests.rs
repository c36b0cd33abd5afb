//! The server without sockets, with a simulated clock.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use wiretight_keys::{Period, Profile, Signer, SigningKey, Tbs};
use wiretight_store::MemoryStore;

use super::*;

const BASE: &str = "https://acme.corp.internal";

/// A CA that self-signs, as the tests only check who gets a certificate.
struct Issues(SigningKey);

#[async_trait]
impl Issuer for Issues {
    async fn issue(
        &self,
        request: &WebCsr,
        _not_after: Option<u64>,
    ) -> Result<Vec<CertificateDer<'static>>, String> {
        let period = Period { not_before: 1_000, not_after: 1_000_000 };
        let profile = Profile::Web(request.names().to_vec());
        let key = request.spki();
        let tbs = Tbs::new(&profile, key, period, [7; 16], None, self.0.algorithm());
        Ok(vec![tbs.and_then(|tbs| tbs.sign(&self.0)).map_err(|e| e.to_string())?])
    }
}

/// A validator with fixed results.
struct Believes(&'static str);

#[async_trait]
impl Validator for Believes {
    async fn validate(
        &self,
        _method: Method,
        name: &str,
        token: &str,
        key_authorization: &str,
    ) -> Result<(), Invalid> {
        assert!(key_authorization.starts_with(&format!("{token}.")));
        match name == self.0 {
            true => Ok(()),
            false => Err(Invalid { kind: "unauthorized", detail: "no".into() }),
        }
    }
}

struct Client {
    server: AcmeServer,
    clock: Arc<AtomicU64>,
    key: EcdsaKeyPair,
    account: Option<String>,
}

/// A status, a Location and a body.
struct Got(u16, String, Value);

impl Client {
    fn new() -> Client {
        let clock = Arc::new(AtomicU64::new(10_000));
        let read = clock.clone();
        let issuer = Issues(SigningKey::generate().unwrap());
        let server = AcmeServer::new(
            Arc::new(MemoryStore::new()),
            Arc::new(issuer),
            Arc::new(Believes("app.corp.internal")),
            Arc::new(move || read.load(Relaxed)),
            BASE.into(),
            vec!["*.corp.internal".parse().unwrap()],
            crate::config::reserved(&"corp.internal".parse().unwrap()),
        );
        Client { server, clock, key: key(), account: None }
    }

    async fn nonce(&self) -> String {
        let request = Request::head("/new-nonce").body(Bytes::new()).unwrap();
        let response = self.server.handle(request).await;
        response.headers()["replay-nonce"].to_str().unwrap().to_owned()
    }

    fn body(&self, url: &str, nonce: &str, payload: &str) -> Value {
        let point = self.key.public_key().as_ref();
        let (x, y) = (&point[1..33], &point[33..]);
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let mut header = json!({ "alg": "ES256", "nonce": nonce, "url": url });
        match &self.account {
            Some(account) => header["kid"] = account.clone().into(),
            None => {
                header["jwk"] = json!({ "kty": "EC", "crv": "P-256", "x": text(x), "y": text(y) });
            }
        }
        let (protected, payload) = (text(header.to_string().as_bytes()), text(payload.as_bytes()));
        let message = format!("{protected}.{payload}");
        let signature = self.key.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        json!({ "protected": protected, "payload": payload, "signature": text(signature.as_ref()) })
    }

    async fn send(&self, path: &str, body: &Value) -> Got {
        let request = Request::post(path)
            .header("content-type", "application/jose+json")
            .body(Bytes::from(body.to_string()))
            .unwrap();
        let response = self.server.handle(request).await;
        assert!(response.headers().contains_key("replay-nonce"));
        let location = response.headers().get("location");
        let location = location.map_or("", |l| l.to_str().unwrap()).to_owned();
        let status = response.status().as_u16();
        let body = response.into_body();
        let text = || Value::String(String::from_utf8_lossy(&body).into_owned());
        Got(status, location, serde_json::from_slice(&body).unwrap_or_else(|_| text()))
    }

    async fn post(&self, url: &str, payload: &str) -> Got {
        let nonce = self.nonce().await;
        let path = url.strip_prefix(BASE).unwrap();
        self.send(path, &self.body(url, &nonce, payload)).await
    }

    async fn registered() -> Client {
        let mut client = Client::new();
        let Got(status, account, _) = client.post(&format!("{BASE}/new-account"), "{}").await;
        assert_eq!(status, 201);
        client.account = Some(account);
        client
    }

    async fn order(&self, name: &str) -> Got {
        let payload = json!({ "identifiers": [{ "type": "dns", "value": name }] });
        self.post(&format!("{BASE}/new-order"), &payload.to_string()).await
    }

    /// Tries to validate the one name of an order.
    async fn prove(&self, order: &Value) -> Value {
        let authorization = order["authorizations"][0].as_str().unwrap();
        let Got(200, _, json) = self.post(authorization, "").await else { panic!() };
        let url = json["challenges"][0]["url"].as_str().unwrap();
        let Got(200, _, json) = self.post(url, "{}").await else { panic!() };
        json
    }

    async fn finalize(&self, order: &Value, names: &[&str]) -> Got {
        let names: Vec<_> = names.iter().map(|n| (*n).to_owned()).collect();
        let csr = WebCsr::create(&names, &SigningKey::generate().unwrap()).unwrap();
        let payload = json!({ "csr": URL_SAFE_NO_PAD.encode(csr) });
        self.post(order["finalize"].as_str().unwrap(), &payload.to_string()).await
    }
}

fn key() -> EcdsaKeyPair {
    EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap()
}

fn problem(got: &Got) -> &str {
    got.2["type"].as_str().unwrap().rsplit(':').next().unwrap()
}

#[tokio::test]
async fn a_validated_name_gets_its_certificate() {
    let client = Client::registered().await;
    let Got(201, url, order) = client.order("App.Corp.Internal").await else { panic!() };
    assert_eq!(order["status"], "pending");
    // Not before the name is validated.
    let early = client.finalize(&order, &["app.corp.internal"]).await;
    assert_eq!(problem(&early), "orderNotReady");
    assert_eq!(client.prove(&order).await["status"], "valid");
    assert_eq!(client.post(&url, "").await.2["status"], "ready");
    // For exactly these names.
    for other in [&["app.corp.internal", "b.corp.internal"][..], &["b.corp.internal"]] {
        assert_eq!(problem(&client.finalize(&order, other).await), "badCSR");
    }
    let Got(200, _, order) = client.finalize(&order, &["app.corp.internal"]).await else {
        panic!()
    };
    assert_eq!(order["status"], "valid");
    let Got(200, _, pem) = client.post(order["certificate"].as_str().unwrap(), "").await else {
        panic!()
    };
    let chain = x509::from_pem(pem.as_str().unwrap().as_bytes()).unwrap();
    assert!(wiretight_keys::WebLeaf::parse(&chain[0]).unwrap().is_for("app.corp.internal"));
    // Only once.
    let again = client.finalize(&order, &["app.corp.internal"]).await;
    assert_eq!(problem(&again), "orderNotReady");
    let revoke = json!({ "certificate": URL_SAFE_NO_PAD.encode(&chain[0]) }).to_string();
    let url = format!("{BASE}/revoke-cert");
    assert_eq!(client.post(&url, &revoke).await.0, 200);
    assert_eq!(problem(&client.post(&url, &revoke).await), "alreadyRevoked");
}

#[tokio::test]
async fn a_name_that_is_not_validated_gets_none() {
    let client = Client::registered().await;
    let Got(201, url, order) = client.order("other.corp.internal").await else { panic!() };
    let tried = client.prove(&order).await;
    assert_eq!(tried["status"], "invalid");
    assert_eq!(tried["error"]["type"], "urn:ietf:params:acme:error:unauthorized");
    assert_eq!(client.post(&url, "").await.2["status"], "invalid");
    let got = client.finalize(&order, &["other.corp.internal"]).await;
    assert_eq!(problem(&got), "orderNotReady");
}

#[tokio::test]
async fn names_that_are_not_allowed_are_refused() {
    let client = Client::registered().await;
    for name in [
        "example.org",
        "corp.internal",
        "xcorp.internal",
        "*.corp.internal",
        "acme.corp.internal",
        "db.service.corp.internal",
        "db1.node.corp.internal",
        "authority.corp.internal",
    ] {
        let got = client.order(name).await;
        assert_eq!((got.0, problem(&got)), (403, "rejectedIdentifier"), "{name}");
    }
    for name in ["", "10.0.0.1", "a..corp.internal", "a b.corp.internal"] {
        assert_eq!(problem(&client.order(name).await), "malformed", "{name}");
    }
}

#[tokio::test]
async fn a_request_is_valid_once_for_its_url_and_key() {
    let client = Client::registered().await;
    let url = client.account.clone().unwrap();
    let path = url.strip_prefix(BASE).unwrap();
    let nonce = client.nonce().await;
    let body = client.body(&url, &nonce, "");
    assert_eq!(client.send(path, &body).await.0, 200);
    assert_eq!(problem(&client.send(path, &body).await), "badNonce");
    let invented = client.body(&url, "bm9uY2U", "");
    assert_eq!(problem(&client.send(path, &invented).await), "badNonce");
    // Signed for another URL.
    let body = client.body(&url, &client.nonce().await, "");
    assert_eq!(problem(&client.send("/new-order", &body).await), "unauthorized");
    // Signed by another key for this account.
    let thief = Client {
        server: client.server.clone(),
        clock: client.clock.clone(),
        key: key(),
        account: client.account.clone(),
    };
    assert_eq!(problem(&thief.post(&url, "").await), "malformed");
    // An account cannot access another account's orders.
    let Got(201, order, _) = client.order("app.corp.internal").await else { panic!() };
    let mut other = Client { account: None, ..thief };
    let Got(201, account, _) = other.post(&format!("{BASE}/new-account"), "{}").await else {
        panic!()
    };
    other.account = Some(account);
    assert_eq!(other.post(&order, "").await.0, 404);
    assert_eq!(client.post(&order, "").await.0, 200);
    // A deactivated account is refused.
    let over = r#"{"status":"deactivated"}"#;
    assert_eq!(client.post(&url, over).await.2["status"], "deactivated");
    assert_eq!(problem(&client.order("app.corp.internal").await), "unauthorized");
}

#[tokio::test]
async fn orders_are_limited_and_expire() {
    let client = Client::registered().await;
    let Got(201, first, order) = client.order("app.corp.internal").await else { panic!() };
    client.prove(&order).await;
    for _ in 1..MAX_ORDERS_EACH {
        assert_eq!(client.order("app.corp.internal").await.0, 201);
    }
    let got = client.order("app.corp.internal").await;
    assert_eq!((got.0, problem(&got)), (429, "rateLimited"));
    client.clock.fetch_add(ORDER_TTL + 1, Relaxed);
    assert_eq!(client.post(&first, "").await.2["status"], "invalid");
    assert_eq!(client.order("app.corp.internal").await.0, 201);
    assert_eq!(client.post(&first, "").await.0, 404, "the expired one is forgotten");
}

#[tokio::test]
async fn an_account_is_found_by_its_key() {
    let client = Client::new();
    let url = format!("{BASE}/new-account");
    let existing = r#"{"onlyReturnExisting":true}"#;
    assert_eq!(problem(&client.post(&url, existing).await), "accountDoesNotExist");
    let Got(201, account, _) = client.post(&url, r#"{"contact":["mailto:a@b.c"]}"#).await else {
        panic!()
    };
    let Got(200, same, _) = client.post(&url, existing).await else { panic!() };
    assert_eq!(account, same);
}
