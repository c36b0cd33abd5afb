//! A small HTTP/1.1 client for logs, witnesses and webhooks. It reuses connections, and limits time and size.
//!
//! It uses `https://` (TLS 1.3 only) for all servers, and `http://` only for loopback addresses: plaintext never crosses
//! a network. It follows no redirects and keeps no cookies. It decodes gzip, and only for files of a log.

use std::fmt;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use flate2::bufread::MultiGzDecoder;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HOST, HeaderMap, RETRY_AFTER, USER_AGENT,
};
use hyper::{Method, Request, Uri};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::time::timeout;
use wiretight_proxy::network::HostPort;

use super::connections::{Connection, Connections, Server};

const MAX_URL: usize = 2048;

/// Why a URL is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Not a URL that this client supports.
    #[error("{0:?} is not a valid URL: write for example https://witness.example.org/prefix")]
    Malformed(String),
    /// It would send plaintext over a network.
    #[error(
        "{0:?} would send plaintext over the network: use https://, or http:// with a loopback address (127.0.0.1, [::1])"
    )]
    Plaintext(String),
}

/// A URL prefix: a server, and a path on it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Url {
    server: Server,
    /// Without a slash at the end; the root is the empty string.
    path: String,
}

impl Url {
    /// Parses `https://HOST[:PORT][/PATH]`, or the same with `http` if the host is a loopback address.
    pub fn parse(text: &str) -> Result<Url, UrlError> {
        let bad = || UrlError::Malformed(text.chars().take(120).collect());
        let uri: Uri = Some(text)
            .filter(|t| t.len() <= MAX_URL)
            .ok_or_else(bad)?
            .parse()
            .map_err(|_| bad())?;
        let (scheme, authority) = uri.scheme_str().zip(uri.authority()).ok_or_else(bad)?;
        let (tls, port) = match scheme {
            "https" => (true, 443),
            "http" => (false, 80),
            _ => return Err(bad()),
        };
        if uri.query().is_some() || authority.as_str().contains('@') || text.contains('#') {
            return Err(bad());
        }
        let port = authority.port_u16().unwrap_or(port);
        let address: HostPort =
            format!("{}:{port}", authority.host()).parse().map_err(|_| bad())?;
        let local = address.as_ip().is_some_and(|a| a.ip().to_canonical().is_loopback());
        if !tls && !local {
            return Err(UrlError::Plaintext(text.chars().take(120).collect()));
        }
        let server = Server { tls, address, authority: authority.to_string() };
        Ok(Url { server, path: uri.path().trim_end_matches('/').to_owned() })
    }

    /// The URL of something below this prefix.
    pub fn join(&self, path: &str) -> Url {
        Url { server: self.server.clone(), path: format!("{}/{path}", self.path) }
    }

    /// The server's name and port, for messages.
    pub fn host(&self) -> &str {
        &self.server.authority
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.server.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.server.authority, self.path)
    }
}

impl std::str::FromStr for Url {
    type Err = UrlError;
    fn from_str(text: &str) -> Result<Url, UrlError> {
        Url::parse(text)
    }
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// A certificate or key of [`Credentials`] is invalid.
    #[error("{what}: {detail}")]
    Credentials {
        /// What is invalid.
        what: &'static str,
        detail: String,
    },
    /// The connection or the TLS handshake failed.
    #[error("cannot connect to {url}: {detail}")]
    Connect { url: String, detail: String },
    /// It took too long.
    #[error("{url} did not respond within {} s", .limit.as_secs_f32())]
    Late { url: String, limit: Duration },
    /// The response is too large.
    #[error("the response of {url} is larger than {limit} bytes")]
    TooLarge {
        url: String,
        /// The limit in bytes.
        limit: usize,
    },
    /// The response is invalid.
    #[error("invalid response from {url}: {detail}")]
    Answer { url: String, detail: String },
}

/// The authorities that the client trusts, and its own certificate.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// PEM of certificate authorities that are trusted in addition to the system's.
    pub roots: Option<Vec<u8>>,
    /// PEM of a client certificate chain and its key, for servers that ask for one.
    pub identity: Option<(Vec<u8>, zeroize::Zeroizing<Vec<u8>>)>,
    /// The name that servers' certificates must have, if it is not the URL's host.
    pub server_name: Option<String>,
}

/// The limits of a request.
#[derive(Debug, Clone, Copy)]
pub struct Limit {
    /// For the whole request, including the connection.
    pub time: Duration,
    /// For the response body in bytes, after decompression.
    pub body: usize,
}

/// A response, whatever its status.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    /// `Content-Type`.
    pub content_type: Option<String>,
    /// `Retry-After`, if it is in seconds.
    pub retry_after: Option<Duration>,
    pub body: Bytes,
}

/// The client. Copies share their connections.
#[derive(Clone)]
pub struct Client {
    connections: Arc<Connections>,
}

impl Client {
    /// A client that trusts the system's certificate authorities (`SSL_CERT_FILE` overrides them) and those of
    /// `credentials`.
    pub fn new(credentials: &Credentials) -> Result<Client, HttpError> {
        let bad = |what, detail: &dyn fmt::Display| HttpError::Credentials {
            what,
            detail: detail.to_string(),
        };
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if let Some(pem) = &credentials.roots {
            let what = "invalid file of certificate authorities";
            for root in certificates(pem, what)? {
                roots.add(root).map_err(|e| bad(what, &e))?;
            }
        }
        let config = ClientConfig::builder_with_provider(wiretight_proxy::provider::mesh())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| bad("cannot use TLS 1.3", &e))?
            .with_root_certificates(roots);
        let config = match &credentials.identity {
            None => config.with_no_client_auth(),
            Some((chain, key)) => {
                let chain = certificates(chain, "invalid client certificate")?;
                let key = PrivateKeyDer::from_pem_slice(key)
                    .map_err(|e| bad("invalid client key", &e))?;
                config
                    .with_client_auth_cert(chain, key)
                    .map_err(|e| bad("invalid client certificate", &e))?
            }
        };
        let server_name = match &credentials.server_name {
            None => None,
            Some(name) => {
                let parsed = ServerName::try_from(name.clone());
                Some(parsed.map_err(|e| bad("invalid server name", &e))?)
            }
        };
        Ok(Client { connections: Arc::new(Connections::new(config, server_name)) })
    }

    pub async fn get(&self, url: &Url, limit: Limit) -> Result<Answer, HttpError> {
        self.request(Method::GET, url, &Accepted::Plain, None, limit).await
    }

    /// Fetches a file of a log, which the server may compress with gzip (C2SP tlog-tiles). The limit applies to the
    /// decompressed file.
    pub async fn file(&self, url: &Url, limit: Limit) -> Result<Answer, HttpError> {
        self.request(Method::GET, url, &Accepted::Gzip, None, limit).await
    }

    /// Sends a body of this content type. If an idle connection turns out to be dead, the request is sent again, so it
    /// must be safe to repeat.
    pub async fn post(
        &self,
        url: &Url,
        content_type: &'static str,
        body: impl Into<Bytes>,
        limit: Limit,
    ) -> Result<Answer, HttpError> {
        let body = Some((content_type, body.into()));
        self.request(Method::POST, url, &Accepted::Plain, body, limit).await
    }

    async fn request(
        &self,
        method: Method,
        url: &Url,
        accepted: &Accepted,
        body: Option<(&'static str, Bytes)>,
        limit: Limit,
    ) -> Result<Answer, HttpError> {
        let asked = async {
            if let Some(kept) = self.connections.take(&url.server)
                && let Ok(answer) = self.ask(kept, &method, url, accepted, &body, limit).await
            {
                return Ok(answer);
            }
            let connected = self.connections.connect(&url.server).await;
            let connection =
                connected.map_err(|detail| HttpError::Connect { url: url.to_string(), detail })?;
            self.ask(connection, &method, url, accepted, &body, limit).await
        };
        let late = |_| HttpError::Late { url: url.to_string(), limit: limit.time };
        timeout(limit.time, asked).await.map_err(late)?
    }

    async fn ask(
        &self,
        mut connection: Connection,
        method: &Method,
        url: &Url,
        accepted: &Accepted,
        body: &Option<(&'static str, Bytes)>,
        limit: Limit,
    ) -> Result<Answer, HttpError> {
        let failed = |e: &dyn fmt::Display| HttpError::Answer {
            url: url.to_string(),
            detail: e.to_string(),
        };
        let path = if url.path.is_empty() { "/" } else { &url.path };
        let mut request = Request::builder()
            .method(method.clone())
            .uri(path)
            .header(HOST, &url.server.authority)
            .header(USER_AGENT, concat!("wiretight/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT_ENCODING, accepted.header());
        if let Some((kind, _)) = body {
            request = request.header(CONTENT_TYPE, *kind);
        }
        let body = body.as_ref().map(|(_, body)| body.clone()).unwrap_or_default();
        let request = request.body(Full::new(body)).map_err(|e| failed(&e))?;
        connection.ready().await.map_err(|e| failed(&e))?;
        let (head, body) =
            connection.send_request(request).await.map_err(|e| failed(&e))?.into_parts();
        let coding = Coding::of(&head.headers);
        if head.status.is_success() && !accepted.has(coding) {
            return Err(failed(&"it uses a compression that was not requested"));
        }
        let text = |name| head.headers.get(name).and_then(|v| v.to_str().ok());
        let content_type = text(CONTENT_TYPE).map(str::to_owned);
        let retry_after =
            text(RETRY_AFTER).and_then(|s| Some(Duration::from_secs(s.parse().ok()?)));
        let status = head.status.as_u16();
        let on_the_wire = match coding {
            Coding::Gzip => gzipped(limit.body),
            _ => limit.body,
        };
        let collected = Limited::new(body, on_the_wire).collect().await;
        let body = match collected {
            Ok(body) => body.to_bytes(),
            // The body of an error response does not matter; the connection is not reused.
            Err(_) if !head.status.is_success() => {
                return Ok(Answer { status, content_type, retry_after, body: Bytes::new() });
            }
            Err(e) if e.is::<LengthLimitError>() => {
                return Err(HttpError::TooLarge { url: url.to_string(), limit: limit.body });
            }
            Err(e) => return Err(failed(&e)),
        };
        self.connections.keep(&url.server, connection);
        let body = match coding {
            Coding::Gzip if head.status.is_success() => {
                let inflated = tokio::task::spawn_blocking(move || gunzip(&body, limit.body)).await;
                match inflated.unwrap_or_else(|e| Err(io::Error::other(e))) {
                    Ok(Some(body)) => body.into(),
                    Ok(None) => {
                        return Err(HttpError::TooLarge {
                            url: url.to_string(),
                            limit: limit.body,
                        });
                    }
                    Err(e) => return Err(failed(&format_args!("damaged gzip data: {e}"))),
                }
            }
            _ => body,
        };
        Ok(Answer { status, content_type, retry_after, body })
    }
}

/// The content codings that are accepted for a response.
enum Accepted {
    Plain,
    Gzip,
}

impl Accepted {
    fn header(&self) -> &'static str {
        match self {
            Accepted::Plain => "identity",
            Accepted::Gzip => "gzip, identity",
        }
    }

    fn has(&self, coding: Coding) -> bool {
        match coding {
            Coding::Identity => true,
            Coding::Gzip => matches!(self, Accepted::Gzip),
            Coding::Other => false,
        }
    }
}

/// The content coding of a response.
#[derive(Clone, Copy)]
enum Coding {
    Identity,
    Gzip,
    Other,
}

impl Coding {
    fn of(headers: &HeaderMap) -> Coding {
        let mut values = headers.get_all(CONTENT_ENCODING).iter();
        match (values.next().map(|v| v.as_bytes()), values.next()) {
            (None, _) => Coding::Identity,
            (Some(v), None) if v.eq_ignore_ascii_case(b"identity") => Coding::Identity,
            // RFC 9110, 8.4.1.3: x-gzip is equivalent.
            (Some(v), None)
                if v.eq_ignore_ascii_case(b"gzip") || v.eq_ignore_ascii_case(b"x-gzip") =>
            {
                Coding::Gzip
            }
            _ => Coding::Other,
        }
    }
}

/// The largest size of `len` bytes after compression: incompressible data grows by 5 bytes per block (16 KiB with zlib),
/// plus header and trailer.
fn gzipped(len: usize) -> usize {
    len + len / 1024 + 1024
}

/// Decompresses; `None` if the result is larger than `limit` bytes. It stops at the limit.
fn gunzip(bytes: &[u8], limit: usize) -> io::Result<Option<Vec<u8>>> {
    let mut plain = Vec::new();
    // Truncated data, a wrong checksum, or trailing data: each is an error.
    MultiGzDecoder::new(bytes).take(limit as u64 + 1).read_to_end(&mut plain)?;
    Ok((plain.len() <= limit).then_some(plain))
}

fn certificates(pem: &[u8], what: &'static str) -> Result<Vec<CertificateDer<'static>>, HttpError> {
    let bad = |detail: String| HttpError::Credentials { what, detail };
    let certs: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certs = certs.map_err(|e| bad(e.to_string()))?;
    match certs.is_empty() {
        true => Err(bad("no PEM certificate found".into())),
        false => Ok(certs),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plaintext_is_allowed_for_loopback_only() {
        for good in [
            "https://log.example/a/b/",
            "https://192.0.2.1:7400",
            "http://127.0.0.1:80/x",
            "http://[::1]:8080",
        ] {
            assert!(Url::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "http://log.example/",
            "http://192.0.2.1/",
            "http://localhost/",
            "http://[::ffff:192.0.2.1]/",
        ] {
            assert!(matches!(Url::parse(bad), Err(UrlError::Plaintext(_))), "{bad}");
        }
        for bad in [
            "",
            "log.example",
            "ftp://log.example",
            "https://",
            "https://a@log.example",
            "https://log.example/?q",
            "https://log.example:0/",
        ] {
            assert!(matches!(Url::parse(bad), Err(UrlError::Malformed(_))), "{bad}");
        }
        let prefix = Url::parse("https://log.example/a/").unwrap();
        assert_eq!(prefix.join("tile/0/000").to_string(), "https://log.example/a/tile/0/000");
        assert_eq!(
            Url::parse("https://log.example").unwrap().join("checkpoint").to_string(),
            "https://log.example/checkpoint"
        );
    }
}
