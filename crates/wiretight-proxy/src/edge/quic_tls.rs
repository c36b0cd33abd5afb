//! TLS for QUIC with a configuration for each site. Whether client certificates are required is known only after the
//! ClientHello, but the library needs a configuration before that.
//!
//! So the ClientHello is buffered (up to a limit) and then passed to a session with the right configuration.

use std::any::Any;
use std::sync::Arc;

use arc_swap::ArcSwap;
use aws_lc_rs::{hkdf, hmac};
use quinn::crypto::rustls::QuicServerConfig;
use quinn::crypto::{
    self, ExportKeyingMaterialError, KeyPair, Keys, PacketKey, UnsupportedVersion,
};
use quinn::{ConnectionId, Side};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{TransportError, TransportErrorCode};
use rustls::NamedGroup;
use rustls::server::Acceptor;

use super::sites::Sites;
use super::tls::{ALPN_H3, Configs};

/// ClientHellos are much smaller.
const MAX_HELLO: usize = 32 * 1024;
/// The most data in a TLS record (RFC 8446, section 5.1).
const RECORD: usize = 16 * 1024;
/// Types of handshake messages, and of an extension (RFC 8446, section 4).
const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;
const KEY_SHARE: u16 = 51;

/// The secrets shared by all endpoints.
pub(crate) struct Secrets {
    pub(crate) reset: Arc<hmac::Key>,
    pub(crate) token: Arc<hkdf::Prk>,
}

impl Secrets {
    pub(crate) fn new() -> Result<Secrets, rustls::Error> {
        let (mut reset, mut token) = ([0; 64], [0; 64]);
        let failed = |_| rustls::Error::FailedToGetRandomBytes;
        aws_lc_rs::rand::fill(&mut reset).map_err(failed)?;
        aws_lc_rs::rand::fill(&mut token).map_err(failed)?;
        Ok(Secrets {
            reset: Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &reset)),
            token: Arc::new(hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(&token)),
        })
    }
}

/// The available configurations.
pub(crate) struct BySite {
    sites: Arc<ArcSwap<Sites>>,
    open: Arc<QuicServerConfig>,
    members: Arc<QuicServerConfig>,
}

/// What is known of a connection after its ClientHello.
#[derive(Clone, Default)]
pub(crate) struct HandshakeInfo {
    /// The site's name as requested by the client, in lower case, or the name of the default site.
    pub(crate) name: Option<String>,
    /// Whether the client sent no name.
    pub(crate) by_default: bool,
    /// The key exchange group.
    pub(crate) group: Option<NamedGroup>,
}

impl BySite {
    pub(crate) fn new(
        sites: &Arc<ArcSwap<Sites>>,
        configs: &Configs,
    ) -> Result<BySite, quinn::crypto::rustls::NoInitialCipherSuite> {
        let (open, members) = (configs.quic.clone(), configs.quic_members.clone());
        Ok(BySite {
            sites: sites.clone(),
            open: Arc::new(open.try_into()?),
            members: Arc::new(members.try_into()?),
        })
    }

    /// The configuration for a name, unless it is the `open` one.
    fn choose(&self, name: Option<&str>) -> Option<Arc<QuicServerConfig>> {
        let sites = self.sites.load();
        let name = name?;
        let (site_name, site) = sites.find(name)?;
        if site.settings.clients.is_some() {
            return Some(self.members.clone());
        }
        let ca = site.client_ca.as_ref()?;
        let shows = sites.certificate(name, (site_name, site))?.certified();
        QuicServerConfig::try_from(ca.config(shows, &[ALPN_H3])).ok().map(Arc::new)
    }
}

impl crypto::ServerConfig for BySite {
    fn start_session(
        self: Arc<Self>,
        version: u32,
        params: &TransportParameters,
    ) -> Box<dyn crypto::Session> {
        let inner = self.open.clone().start_session(version, params);
        let (info, params) = (HandshakeInfo::default(), *params);
        Box::new(Session { of: self, version, params, hello: Some(Vec::new()), info, inner })
    }

    fn initial_keys(&self, version: u32, dst: &ConnectionId) -> Result<Keys, UnsupportedVersion> {
        self.open.initial_keys(version, dst)
    }

    fn retry_tag(&self, version: u32, dst: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        self.open.retry_tag(version, dst, packet)
    }
}

struct Session {
    of: Arc<BySite>,
    version: u32,
    params: TransportParameters,
    /// The ClientHello so far, until it is complete.
    hello: Option<Vec<u8>>,
    info: HandshakeInfo,
    inner: Box<dyn crypto::Session>,
}

impl crypto::Session for Session {
    fn initial_keys(&self, dst: &ConnectionId, side: Side) -> Keys {
        self.inner.initial_keys(dst, side)
    }

    /// The result is a [`HandshakeInfo`].
    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        self.inner.handshake_data()?;
        Some(Box::new(self.info.clone()))
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        self.inner.peer_identity()
    }

    fn early_crypto(&self) -> Option<(Box<dyn crypto::HeaderKey>, Box<dyn PacketKey>)> {
        self.inner.early_crypto()
    }

    fn early_data_accepted(&self) -> Option<bool> {
        self.inner.early_data_accepted()
    }

    fn is_handshaking(&self) -> bool {
        self.inner.is_handshaking()
    }

    fn read_handshake(&mut self, bytes: &[u8]) -> Result<bool, TransportError> {
        let Some(hello) = &mut self.hello else { return self.inner.read_handshake(bytes) };
        hello.extend_from_slice(bytes);
        let Some(length) = length(hello)? else { return Ok(false) };
        if hello.len() < length {
            return Ok(false);
        }
        let hello = self.hello.take().unwrap_or_default();
        // If it does not parse, the session rejects it with the right alert.
        let named = server_name(&hello[..length]);
        let name = self.of.sites.load().host(named.as_deref());
        if let Some(config) = self.of.choose(name.as_deref()) {
            self.inner = crypto::ServerConfig::start_session(config, self.version, &self.params);
        }
        (self.info.name, self.info.by_default) = (name, named.is_none());
        self.inner.read_handshake(&hello)
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        self.inner.transport_parameters()
    }

    fn write_handshake(&mut self, bytes: &mut Vec<u8>) -> Option<Keys> {
        let before = bytes.len();
        let keys = self.inner.write_handshake(bytes);
        if self.info.group.is_none() {
            self.info.group = bytes.get(before..).and_then(group);
        }
        keys
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        self.inner.next_1rtt_keys()
    }

    fn is_valid_retry(&self, dst: &ConnectionId, header: &[u8], payload: &[u8]) -> bool {
        self.inner.is_valid_retry(dst, header, payload)
    }

    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        self.inner.export_keying_material(output, label, context)
    }
}

/// The length of the first message, header included, as soon as it is known.
fn length(hello: &[u8]) -> Result<Option<usize>, TransportError> {
    let refused = |reason: &str| TransportError {
        code: TransportErrorCode::crypto(10), // unexpected_message
        frame: None,
        reason: reason.into(),
    };
    match hello {
        [] => Ok(None),
        [CLIENT_HELLO, a, b, c, ..] => {
            let length = 4 + u32::from_be_bytes([0, *a, *b, *c]) as usize;
            if length > MAX_HELLO {
                return Err(refused("the ClientHello is too long"));
            }
            Ok(Some(length))
        }
        [CLIENT_HELLO, ..] => Ok(None),
        _ => Err(refused("not a ClientHello")),
    }
}

/// The server name in a complete ClientHello, given without record header (RFC 8446, section 4.1.2; RFC 6066, section
/// 3).
pub fn server_name(hello: &[u8]) -> Option<String> {
    let mut records = Vec::with_capacity(hello.len() + 16);
    for piece in hello.chunks(RECORD) {
        records.extend([22, 3, 1]);
        records.extend(u16::try_from(piece.len()).ok()?.to_be_bytes());
        records.extend(piece);
    }
    let (mut acceptor, mut records) = (Acceptor::default(), records.as_slice());
    while !records.is_empty() {
        if acceptor.read_tls(&mut records).ok()? == 0 {
            return None;
        }
        if let Some(accepted) = acceptor.accept().ok()? {
            return accepted.client_hello().server_name().map(str::to_owned);
        }
    }
    None
}

/// The group in our own ServerHello (RFC 8446, sections 4.1.3 and 4.2.8).
pub fn group(message: &[u8]) -> Option<NamedGroup> {
    // Type, length, version, random.
    let (&kind, rest) = message.split_first()?;
    let session_id = usize::from(*rest.get(3 + 2 + 32)?);
    // Session ID, cipher suite, compression method, length.
    let mut extensions = rest.get(3 + 2 + 32 + 1 + session_id + 2 + 1 + 2..)?;
    if kind != SERVER_HELLO {
        return None;
    }
    while let [a, b, c, d, rest @ ..] = extensions {
        let length = usize::from(u16::from_be_bytes([*c, *d]));
        let (body, others) = rest.split_at_checked(length)?;
        if u16::from_be_bytes([*a, *b]) == KEY_SHARE {
            let group = body.first_chunk::<2>()?;
            return Some(NamedGroup::from(u16::from_be_bytes(*group)));
        }
        extensions = others;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_a_client_hello_is_limited() {
        assert_eq!(length(&[]).unwrap(), None);
        assert_eq!(length(&[CLIENT_HELLO, 0, 1]).unwrap(), None);
        assert_eq!(length(&[CLIENT_HELLO, 0, 1, 2]).unwrap(), Some(4 + 258));
        assert!(length(&[CLIENT_HELLO, 1, 0, 0]).is_err());
        assert!(length(&[SERVER_HELLO, 0, 0, 1]).is_err());
        assert_eq!(server_name(&[CLIENT_HELLO, 0, 0, 0]), None);
    }

    #[test]
    fn the_group_is_parsed_from_the_key_share() {
        let mut hello = vec![SERVER_HELLO, 0, 0, 0, 3, 3];
        hello.extend([7; 32]);
        hello.extend([2, 1, 1, 0x13, 1, 0, 0, 12]); // session, suite, compression, length
        hello.extend([0, 43, 0, 2, 3, 4]); // supported_versions
        hello.extend([0, 51, 0, 2, 0x11, 0xec]);
        assert_eq!(group(&hello), Some(NamedGroup::X25519MLKEM768));
        for cut in 0..hello.len() {
            assert_eq!(group(&hello[..cut]), None);
        }
    }
}
