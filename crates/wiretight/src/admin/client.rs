//! The command line's side of the admin interface: one request over the node's Unix socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::socket_path;

/// Why the node did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Nobody listens.
    #[error("no node is running on {}: start it with `wiretight run`, or give its --config", .socket.display())]
    NotRunning {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The socket is another user's.
    #[error("{} is not yours to open: run this as the user of the node (or root)", .socket.display())]
    Denied {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The node said no.
    #[error("{0}")]
    Refused(String),
    /// HTTP broke.
    #[error("the node did not answer properly")]
    Http(#[from] hyper::Error),
    /// It is stuck.
    #[error("the node did not answer within {} s: its log may say why", LIMIT.as_secs())]
    Silent,
    /// JSON broke.
    #[error("the node's answer cannot be read: is the node of another version than this command?")]
    Json(#[from] serde_json::Error),
}

/// A little longer than the node takes for its longest answer.
const LIMIT: Duration = Duration::from_secs(65);

/// Asks the node whose state is in `state_dir`.
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
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let body = body.map(serde_json::to_vec).transpose()?.unwrap_or_default();
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .body(Full::<Bytes>::from(body))
        .expect("a fixed path makes a request");
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    let body = answer.into_body().collect().await?.to_bytes();
    driver.abort();
    if !status.is_success() {
        let said: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let said = said["error"].as_str().map_or_else(|| status.to_string(), str::to_owned);
        return Err(AdminError::Refused(said));
    }
    Ok(serde_json::from_slice(&body)?)
}
