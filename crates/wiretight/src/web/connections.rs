//! Connections of a client to its servers. Idle ones are kept for the next request.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;
use wiretight_proxy::net;
use wiretight_proxy::network::HostPort;

/// The most idle connections to a server.
const KEPT: usize = 16;
/// The most servers with idle connections.
const SERVERS: usize = 256;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Server {
    pub tls: bool,
    pub address: HostPort,
    /// As written in the URL, for the `Host` header.
    pub authority: String,
}

pub(super) type Connection = SendRequest<Full<Bytes>>;

pub(super) struct Connections {
    tls: TlsConnector,
    /// The name that servers' certificates must have, if it is not their host.
    server_name: Option<ServerName<'static>>,
    idle: Mutex<HashMap<Server, Vec<Connection>>>,
}

impl Connections {
    pub fn new(tls: ClientConfig, server_name: Option<ServerName<'static>>) -> Self {
        Self { tls: TlsConnector::from(Arc::new(tls)), server_name, idle: Mutex::default() }
    }

    /// A new connection, or why there is none.
    pub async fn connect(&self, server: &Server) -> Result<Connection, String> {
        fn failed(e: impl fmt::Display) -> String {
            e.to_string()
        }
        let tcp = net::connect(&server.address).await.map_err(failed)?;
        if !server.tls {
            return start(TokioIo::new(tcp)).await.map_err(failed);
        }
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => ServerName::try_from(server.address.host()).map_err(failed)?,
        };
        let tls = self.tls.connect(name, tcp).await.map_err(|e| advice(&e))?;
        start(TokioIo::new(tls)).await.map_err(failed)
    }

    /// An idle connection. The server may have closed it in the meantime.
    pub fn take(&self, server: &Server) -> Option<Connection> {
        let mut idle = self.idle.lock();
        let kept = idle.get_mut(server)?;
        kept.retain(|c| !c.is_closed());
        kept.pop()
    }

    /// Keeps a connection whose last response was read to its end.
    pub fn keep(&self, server: &Server, connection: Connection) {
        let mut idle = self.idle.lock();
        if idle.len() >= SERVERS && !idle.contains_key(server) {
            idle.clear();
        }
        let kept = idle.entry(server.clone()).or_default();
        if kept.len() < KEPT && !connection.is_closed() {
            kept.push(connection);
        }
    }
}

async fn start<S>(stream: S) -> hyper::Result<Connection>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (sender, connection) = handshake(stream).await?;
    tokio::spawn(connection); // ends with the sender
    Ok(sender)
}

/// The error of a failed handshake, with a next step where there is one.
fn advice(error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)) => {
            format!(
                "{error}: if its certificate comes from a private authority, name that authority's certificate file"
            )
        }
        Some(rustls::Error::AlertReceived(rustls::AlertDescription::CertificateRequired)) => {
            format!("{error}: the server requires a client certificate and key")
        }
        _ => error.to_string(),
    }
}
