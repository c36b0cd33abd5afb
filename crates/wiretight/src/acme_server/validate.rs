//! Proving that whoever asks for a name's certificate has its address: http-01 (RFC 8555, section 8.3).
//! A redirect is refused, wherever it leads: a proof comes from the name itself.

use std::time::Duration;

use async_trait::async_trait;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use super::Method;

/// From looking the name up to the last byte.
const DEADLINE: Duration = Duration::from_secs(10);
/// A key authorization has under 100 bytes; some servers put a newline behind it.
const MAX_BODY: usize = 1024;

/// Why a name is not proved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// The last part of the problem's type (RFC 8555, section 6.7).
    pub kind: &'static str,
    /// For the client.
    pub detail: String,
}

impl Invalid {
    fn new(kind: &'static str, detail: impl Into<String>) -> Invalid {
        Invalid { kind, detail: detail.into() }
    }
}

/// Proves names.
#[async_trait]
pub trait Validator: Send + Sync {
    /// Whether `name` answers for `token` with the key authorization.
    async fn validate(
        &self,
        method: Method,
        name: &str,
        token: &str,
        key_authorization: &str,
    ) -> Result<(), Invalid>;
}

/// Proves them over the network.
pub struct Network {
    /// Where http-01 connects: 80 (RFC 8555, section 8.3).
    pub http_port: u16,
}

#[async_trait]
impl Validator for Network {
    async fn validate(
        &self,
        method: Method,
        name: &str,
        token: &str,
        key_authorization: &str,
    ) -> Result<(), Invalid> {
        let Method::Http01 = method;
        let tried = timeout(DEADLINE, http(name, self.http_port, token)).await;
        let body = tried.map_err(|_| {
            let seconds = DEADLINE.as_secs();
            Invalid::new("connection", format!("{name} did not answer within {seconds} s"))
        })??;
        match body.trim_ascii_end() == key_authorization.as_bytes() {
            true => Ok(()),
            false => {
                let detail = format!("{name} answered with another key authorization");
                Err(Invalid::new("unauthorized", detail))
            }
        }
    }
}

async fn http(name: &str, port: u16, token: &str) -> Result<Bytes, Invalid> {
    let unreachable = |e: &dyn std::fmt::Display| {
        Invalid::new("connection", format!("{name}, port {port}, cannot be reached: {e}"))
    };
    let addresses = lookup_host((name, port)).await;
    let addresses = addresses.map_err(|e| Invalid::new("dns", format!("{name}: {e}")))?;
    let mut socket = Err(Invalid::new("dns", format!("{name} has no address")));
    for address in addresses {
        socket = TcpStream::connect(address).await.map_err(|e| unreachable(&e));
        if socket.is_ok() {
            break;
        }
    }
    let io = TokioIo::new(socket?);
    let (mut sender, connection) = http1::handshake(io).await.map_err(|e| unreachable(&e))?;
    let host = if port == 80 { name.to_owned() } else { format!("{name}:{port}") };
    let request = Request::get(format!("/.well-known/acme-challenge/{token}"))
        .header(header::HOST, host)
        .header(header::USER_AGENT, "wiretight-acme")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|e| unreachable(&e))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|e| unreachable(&e))?;
        if response.status() != StatusCode::OK {
            let detail = format!("{name} answered {} instead of 200", response.status());
            return Err(Invalid::new("unauthorized", detail));
        }
        let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
        Ok(body.map_err(|e| unreachable(&e))?.to_bytes())
    };
    // Both live as long as this does, and no longer.
    tokio::pin!(connection);
    tokio::pin!(exchange);
    tokio::select! {
        done = &mut exchange => done,
        _ = &mut connection => exchange.await,
    }
}
