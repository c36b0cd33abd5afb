//! Creates an account at a CA (RFC 8555, section 7.3) with an existing key and a contact, which some CAs require. The
//! client library sends a contact only with a key that it has generated itself.

use std::collections::BTreeMap;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::header::{CONTENT_TYPE, HeaderName, LOCATION};
use hyper::{Method, Request, StatusCode};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient, Problem};
use serde_json::{Value, json};

const REPLAY_NONCE: HeaderName = HeaderName::from_static("replay-nonce");
/// The CA may refuse a nonce; its response has a new one (RFC 8555, section 6.5).
const TRIES: usize = 3;

/// Creates or finds the account of a P-256 key (PKCS#8). Returns its URL.
pub(super) async fn register(
    http: &dyn HttpClient,
    directory: &str,
    pkcs8: &[u8],
    contact: &[String],
) -> Result<String, Error> {
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8)
        .map_err(|_| Error::Str("the account's key is not P-256"))?;
    let listed = send(http, Method::GET, directory, Vec::new()).await?;
    let listed: BTreeMap<String, Value> = serde_json::from_slice(&body(listed).await?)?;
    let url = |name: &str| {
        let url = listed.get(name).and_then(Value::as_str);
        url.ok_or(Error::Str("the CA's directory lacks newNonce or newAccount"))
    };
    let (new_nonce, new_account) = (url("newNonce")?, url("newAccount")?);
    let mut last = send(http, Method::HEAD, new_nonce, Vec::new()).await?;
    let mut refused = Error::Str("the CA sent no nonce");
    for _ in 0..TRIES {
        let nonce = last.parts.headers.get(REPLAY_NONCE).and_then(|n| n.to_str().ok());
        let Some(nonce) = nonce else { return Err(refused) };
        let mut payload = json!({ "termsOfServiceAgreed": true });
        if !contact.is_empty() {
            payload["contact"] = json!(contact);
        }
        let signed = sign(&key, nonce, new_account, &payload)?;
        let mut answer = send(http, Method::POST, new_account, signed).await?;
        if matches!(answer.parts.status, StatusCode::OK | StatusCode::CREATED) {
            let url = answer.parts.headers.get(LOCATION).and_then(|l| l.to_str().ok());
            return url
                .map(str::to_owned)
                .ok_or(Error::Str("the CA did not return the account's URL"));
        }
        let text = answer.body.into_bytes().await.map_err(Error::Other)?;
        let mut problem: Problem = serde_json::from_slice(&text)?;
        problem.status = Some(answer.parts.status.as_u16());
        let again = problem.r#type.as_deref().is_some_and(|t| t.ends_with(":badNonce"));
        refused = Error::Api(problem);
        if !again {
            return Err(refused);
        }
        last = answer;
    }
    Err(refused)
}

async fn send(
    http: &dyn HttpClient,
    method: Method,
    url: &str,
    body: Vec<u8>,
) -> Result<BytesResponse, Error> {
    let request = Request::builder().method(method).uri(url);
    let request = request.header(CONTENT_TYPE, "application/jose+json");
    let request = request.body(BodyWrapper::from(body)).map_err(Error::Http)?;
    http.request(request).await
}

async fn body(mut answer: BytesResponse) -> Result<hyper::body::Bytes, Error> {
    answer.body.into_bytes().await.map_err(Error::Other)
}

/// A JWS that contains the key (RFC 8555, section 6.2; RFC 7518, sections 3.4 and 6.2.1).
fn sign(key: &EcdsaKeyPair, nonce: &str, url: &str, payload: &Value) -> Result<Vec<u8>, Error> {
    let point = key.public_key().as_ref();
    let (x, y) = (point.get(1..33), point.get(33..65));
    let (Some(x), Some(y)) = (x, y) else {
        return Err(Error::Str("the account's key is not P-256"));
    };
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let jwk = json!({ "kty": "EC", "crv": "P-256", "x": encode(x), "y": encode(y) });
    let head = json!({ "alg": "ES256", "jwk": jwk, "nonce": nonce, "url": url });
    let (head, payload) =
        (encode(head.to_string().as_bytes()), encode(payload.to_string().as_bytes()));
    let signature = key
        .sign(&SystemRandom::new(), format!("{head}.{payload}").as_bytes())
        .map_err(|_| Error::Crypto)?;
    let signature = encode(signature.as_ref());
    let jws = json!({ "protected": head, "payload": payload, "signature": signature });
    Ok(jws.to_string().into_bytes())
}
