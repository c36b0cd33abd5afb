//! HTTP/1.1.
//!
//! - `client`: the client for logs, witnesses and webhooks
//! - `objects`: the transport of `object_store`
//! - `server`: the server that serves logs and witnesses
//! - `send`: one request on a new connection, for all others

pub mod client;
mod connections;
pub mod objects;
pub mod server;

use std::error::Error;

use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::handshake;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;

/// Sends one request on a new connection. The connection is closed when the second value is dropped. The caller sets a
/// deadline, and limits the body of the response.
pub(crate) async fn send<S, B>(
    stream: S,
    request: Request<B>,
) -> hyper::Result<(Response<Incoming>, impl Send)>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
    let mut open = JoinSet::new();
    open.spawn(connection);
    let response = sender.send_request(request).await?;
    Ok((response, (sender, open)))
}
