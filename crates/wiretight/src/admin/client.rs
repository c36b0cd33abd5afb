//! The client of the admin interface, used by the command line: one request over the node's Unix socket.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use tokio::net::UnixStream;

use super::api::ErrorAnswer;
use super::socket_path;
use crate::web;

/// Why a request to the node failed.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// No process is listening on the socket.
    #[error("no node is running on {}: start it with `wiretight run`, or name its configuration file with --config", .socket.display())]
    NotRunning { socket: PathBuf, source: std::io::Error },
    /// The socket belongs to another user.
    #[error("permission denied on {}: run this command as the node's user or as root", .socket.display())]
    Denied { socket: PathBuf, source: std::io::Error },
    /// The node refused the request.
    #[error("{0}")]
    Refused(String),
    /// The response is not valid HTTP.
    #[error("the node sent an invalid response")]
    Http(#[from] hyper::Error),
    /// The node did not respond in time.
    #[error("the node did not respond within {} s: check its log", LIMIT.as_secs())]
    Silent,
    /// The response is not the expected JSON.
    #[error("cannot parse the node's response: the node may run another version than this command")]
    Json(#[from] serde_json::Error),
}

/// A response as a type, and also as the JSON that the node sent: `--json` prints that, including fields that this
/// version does not know.
#[derive(Serialize)]
#[serde(transparent)]
pub struct Received<T> {
    json: Value,
    #[serde(skip)]
    value: T,
}

impl<T> Deref for Received<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Received<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Received<T>, D::Error> {
        let json = Value::deserialize(deserializer)?;
        let value = T::deserialize(&json).map_err(D::Error::custom)?;
        Ok(Received { json, value })
    }
}

/// A little longer than the node's own limit for a response.
const LIMIT: Duration = Duration::from_secs(65);

/// Sends a request to the node whose state directory is `state_dir`.
pub async fn request<T: DeserializeOwned>(
    state_dir: &Path,
    method: Method,
    path: &str,
    body: Option<&impl Serialize>,
) -> Result<T, AdminError> {
    let asked = tokio::time::timeout(LIMIT, ask(state_dir, method, path, body)).await;
    asked.map_err(|_| AdminError::Silent)?
}

async fn ask<T: DeserializeOwned>(
    state_dir: &Path,
    method: Method,
    path: &str,
    body: Option<&impl Serialize>,
) -> Result<T, AdminError> {
    let socket = socket_path(state_dir);
    let stream = UnixStream::connect(&socket).await.map_err(|source| match source.kind() {
        std::io::ErrorKind::PermissionDenied => AdminError::Denied { socket, source },
        _ => AdminError::NotRunning { socket, source },
    })?;
    let body = body.map(serde_json::to_vec).transpose()?.unwrap_or_default();
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .body(Full::<Bytes>::from(body))
        .expect("a fixed path makes a request");
    let (answer, _open) = web::send(stream, request).await?;
    let status = answer.status();
    let body = answer.into_body().collect().await?.to_bytes();
    if !status.is_success() {
        let answer = serde_json::from_slice::<ErrorAnswer>(&body);
        return Err(AdminError::Refused(answer.map_or_else(|_| status.to_string(), |a| a.error)));
    }
    Ok(serde_json::from_slice(&body)?)
}
