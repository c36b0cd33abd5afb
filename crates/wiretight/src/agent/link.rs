//! Connections to the authority: its authentication, and the request of a join or rejoin.
//!
//! A join with a token authenticates the authority by the fingerprint in the token, every later connection by the trust
//! bundle. Nothing is sent before that check.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, OtherError};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use wiretight_keys::verify::bundle_by_fingerprint;
use wiretight_keys::{
    Csr, Id, JoinToken, Name, Refusal, Role, Signer, SigningKey, SpiffeId, Transparency,
    TrustBundle, TrustDomain,
};
use wiretight_proxy::net;
use wiretight_proxy::network::HostPort;
use wiretight_proxy::provider;
use wiretight_proxy::{Identity, Mesh, tls};

use super::state::public_der;
use crate::control::report::ReportedRelease;
use crate::control::{
    Blob, ControlError, Denial, EXPORTER_LABEL, FromAuthority, FromStranger, JOIN_CONTEXT, Join,
    Message, REJOIN_CONTEXT, Reader, Rejoin, encode,
};

/// A connection to the authenticated authority.
pub(super) type Stream = TlsStream<TcpStream>;

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("the authority's address is unknown. Set `authority` in [node], or use a join token.")]
    NoAddress,
    #[error(
        "cannot reach the authority at {addr} ({source}). Check that it is running and that the port is open."
    )]
    Unreachable { addr: HostPort, source: io::Error },
    #[error("the authority at {addr} did not respond within {limit:?}")]
    Silent { addr: HostPort, limit: Duration },
    #[error(
        "the server at {addr} is not the authority of this node's mesh, so nothing was sent: {why}"
    )]
    NotTheAuthority {
        addr: HostPort,
        /// Why authentication failed.
        why: String,
    },
    /// TLS failed in another way.
    #[error("TLS with the authority at {addr} failed: {source}")]
    Tls { addr: HostPort, source: io::Error },
    #[error("the authority refused the request ({}): {}", .0.code, .0.message)]
    Denied(Denial),
    #[error("the authority's response is invalid: {0}")]
    Answer(String),
    /// The connection failed before the response.
    #[error("no response from the authority at {addr}: {source}")]
    Broken { addr: HostPort, source: ControlError },
}

/// The proof in a join or rejoin.
pub(super) enum Ticket<'a> {
    Token(&'a JoinToken),
    Enrolled(&'a Arc<Mesh>),
}

/// The request of a join or rejoin.
pub(super) struct Question<'a> {
    pub(super) trust_domain: &'a TrustDomain,
    pub(super) node: &'a Name,
    pub(super) enrolment: &'a SigningKey,
    pub(super) ticket: &'a Ticket<'a>,
    /// The key to certify.
    pub(super) key: &'a SigningKey,
    /// The node's previous identity.
    pub(super) before: Option<&'a Identity>,
    /// Which release it runs, for a rejoin.
    pub(super) release: Option<&'a ReportedRelease>,
}

/// The verified result of a join or rejoin.
pub(super) struct Entry {
    pub(super) identity: Identity,
    pub(super) bundle: Vec<CertificateDer<'static>>,
}

/// Joins or rejoins at the first address that responds.
pub(super) async fn enter(
    addresses: &[HostPort],
    question: &Question<'_>,
    asks: &Transparency,
    limit: Duration,
) -> Result<Entry, LinkError> {
    let mut last = LinkError::NoAddress;
    for addr in addresses {
        let ask = ask(addr, question, asks);
        last = match timeout(limit, ask).await {
            Ok(Ok(entry)) => return Ok(entry),
            Ok(Err(e @ LinkError::Denied(_))) => return Err(e),
            Ok(Err(e)) => e,
            Err(_) => LinkError::Silent { addr: addr.clone(), limit },
        };
        tracing::debug!("{last}");
    }
    Err(last)
}

/// Opens a stream with the node's certificate, at the first address that responds.
pub(super) async fn open(
    addresses: &[HostPort],
    mesh: &Arc<Mesh>,
    node: &Name,
    limit: Duration,
) -> Result<(Stream, HostPort), LinkError> {
    let authority = SpiffeId::new(mesh.trust_domain().clone(), Id::Authority);
    let mut last = LinkError::NoAddress;
    for addr in addresses {
        let id = Id::Node(node.clone());
        let config = tls::client_config(mesh, id, authority.clone(), tls::ALPN_CONTROL);
        let config = config.map_err(|e| tls_error(addr, e))?;
        last = match timeout(limit, connect(addr, config, mesh.trust_domain())).await {
            Ok(Ok(stream)) => return Ok((stream, addr.clone())),
            Ok(Err(e)) => e,
            Err(_) => LinkError::Silent { addr: addr.clone(), limit },
        };
        tracing::debug!("{last}");
    }
    Err(last)
}

async fn ask(
    addr: &HostPort,
    question: &Question<'_>,
    asks: &Transparency,
) -> Result<Entry, LinkError> {
    let Question { trust_domain, node, enrolment, ticket, key, before, release } = *question;
    let config = stranger_config(trust_domain, ticket, asks).map_err(|e| tls_error(addr, e))?;
    let mut stream = connect(addr, config, trust_domain).await?;

    let local = |e: &dyn fmt::Display| LinkError::Answer(format!("cannot create the request: {e}"));
    let id = SpiffeId::new(trust_domain.clone(), Id::Node(node.clone()));
    let link = before.filter(|before| *before.id() == id).and_then(|before| before.link(key));
    let csr = Csr::create_linked(&id, key, link.as_ref()).map_err(|e| local(&e))?;
    let csr = Blob(csr);
    let exporter = stream.get_ref().1.export_keying_material([0; 32], EXPORTER_LABEL, None);
    let exporter = exporter.map_err(|e| local(&e))?;
    let prove = |context: &[u8]| enrolment.sign(&[context, &exporter].concat()).map(Blob);
    let question = match ticket {
        Ticket::Token(token) => FromStranger::Join(Join {
            token_id: token.id.clone(),
            secret: token.secret.clone(),
            node: node.clone(),
            trust_domain: trust_domain.clone(),
            csr,
            enrolment_key: Blob(public_der(enrolment)),
            proof: prove(JOIN_CONTEXT).map_err(|e| local(&e))?,
        }),
        Ticket::Enrolled(_) => FromStranger::Rejoin(Rejoin {
            release: release.cloned().map(Box::new),
            node: node.clone(),
            trust_domain: trust_domain.clone(),
            csr,
            proof: prove(REJOIN_CONTEXT).map_err(|e| local(&e))?,
        }),
    };
    let broken = |source| LinkError::Broken { addr: addr.clone(), source };
    send(&mut stream, &question).await.map_err(broken)?;
    let answer = Reader::new(&mut stream).next().await.map_err(broken)?;
    let (chain, bundle) = match answer {
        FromAuthority::Joined { chain, bundle } => (chain, bundle),
        FromAuthority::Error(denial) => return Err(LinkError::Denied(denial)),
        _ => return Err(LinkError::Answer("it is not a response to a join".into())),
    };
    let _ = stream.shutdown().await;
    let chain: Vec<_> = chain.iter().map(Blob::certificate).collect();
    let bundle: Vec<_> = bundle.iter().map(Blob::certificate).collect();
    if let Ticket::Token(token) = ticket
        && !bundle.iter().any(|c| wiretight_keys::x509::fingerprint(c) == token.root)
    {
        return Err(LinkError::Answer("its trust bundle lacks the root in the token".into()));
    }
    let trust = TrustBundle::new(trust_domain.clone(), bundle.clone(), Default::default());
    let trust = trust.map_err(|e| LinkError::Answer(e.to_string()))?.with(asks.clone());
    let identity = check(&trust, &id, chain, key);
    let identity = identity.map_err(LinkError::Answer)?;
    Ok(Entry { identity, bundle })
}

/// Verifies a chain as other nodes would, and that it is for `id` and `key`.
pub(super) fn check(
    trust: &TrustBundle,
    id: &SpiffeId,
    chain: Vec<CertificateDer<'static>>,
    key: &SigningKey,
) -> Result<Identity, String> {
    let peer = trust.verify(&chain, Role::Client, UnixTime::now()).map_err(|e| e.to_string())?;
    if peer.id() != id {
        return Err(format!("the certificate is for {}, but {id} was requested", peer.id()));
    }
    Identity::new(chain, key).map_err(|e| e.to_string())
}

/// Connects with TCP and TLS. The authority is authenticated when this returns.
async fn connect(
    addr: &HostPort,
    config: Arc<ClientConfig>,
    trust_domain: &TrustDomain,
) -> Result<Stream, LinkError> {
    let unreachable = |source| LinkError::Unreachable { addr: addr.clone(), source };
    let tcp = net::connect(addr).await.map_err(unreachable)?;
    let _ = tcp.set_nodelay(true);
    let name = SpiffeId::new(trust_domain.clone(), Id::Authority).dns_name();
    // A trust domain such as "a..b" is not a DNS name; then no SNI is sent.
    let name = ServerName::try_from(name)
        .unwrap_or(ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into()));
    let connected = TlsConnector::from(config).connect(name, tcp).await;
    let stream = connected.map_err(|e| classify(addr, e))?;
    let connection = stream.get_ref().1;
    let group = connection.negotiated_key_exchange_group().map(|g| g.name());
    let why = if connection.alpn_protocol() != Some(tls::ALPN_CONTROL) {
        "it does not speak wiretight-control/1"
    } else if !group.is_some_and(provider::is_post_quantum) {
        "its key exchange is not X25519MLKEM768"
    } else {
        return Ok(stream);
    };
    Err(LinkError::NotTheAuthority { addr: addr.clone(), why: why.into() })
}

/// Sends one message. The caller sets a deadline.
pub(super) async fn send<M: Message, W: tokio::io::AsyncWrite + Unpin>(
    writer: &mut W,
    message: &M,
) -> Result<(), ControlError> {
    writer.write_all(&encode(message)?).await?;
    Ok(writer.flush().await?)
}

fn classify(addr: &HostPort, e: io::Error) -> LinkError {
    let inner = e.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    let why = match inner {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(other))))
            if other.is::<WrongRoot>() =>
        {
            WrongRoot.to_string()
        }
        Some(inner) => match tls::refusal(inner) {
            Some(Refusal::Untrusted(_)) => "its certificate is not under a root that this node trusts. Another authority uses that address, or the authority has lost its state. Restore it from a backup, or join this node to the new authority with a new token.".into(),
            Some(refusal) => refusal.to_string(),
            None => return LinkError::Tls { addr: addr.clone(), source: e },
        },
        None => return LinkError::Tls { addr: addr.clone(), source: e },
    };
    LinkError::NotTheAuthority { addr: addr.clone(), why }
}

fn tls_error(addr: &HostPort, e: rustls::Error) -> LinkError {
    LinkError::Tls { addr: addr.clone(), source: io::Error::other(e) }
}

#[derive(Debug, thiserror::Error)]
#[error(
    "its root certificate does not match the join token. The token was altered, created by another authority, or created before the root was replaced; or the address belongs to another server."
)]
struct WrongRoot;

/// A client without a certificate. It authenticates the authority by the root in the join token, or by the bundle that
/// the node has.
fn stranger_config(
    trust_domain: &TrustDomain,
    ticket: &Ticket<'_>,
    asks: &Transparency,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let authority = SpiffeId::new(trust_domain.clone(), Id::Authority);
    match ticket {
        Ticket::Token(token) => {
            let (trust_domain, root, asks) = (trust_domain.clone(), token.root, asks.clone());
            tls::stranger_config(authority, tls::ALPN_CONTROL, move |chain, role, now| {
                let bundle = bundle_by_fingerprint(&trust_domain, &root, chain);
                let bundle = bundle.ok_or_else(|| tls::reject(WrongRoot))?;
                bundle.with(asks.clone()).verify(chain, role, now).map_err(tls::reject)
            })
        }
        Ticket::Enrolled(mesh) => {
            let mesh = Arc::clone(mesh);
            tls::stranger_config(authority, tls::ALPN_CONTROL, move |chain, role, now| {
                mesh.verify(chain, role, now).map_err(tls::reject)
            })
        }
    }
}
