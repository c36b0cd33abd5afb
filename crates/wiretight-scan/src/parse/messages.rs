//! Handshake messages of servers (RFC 8446 section 4, RFC 5246 section 7.4, RFC 8422, RFC 5077).

use super::reader::u16s;
use super::{Malformed, Reader};
use crate::names::Version;

/// The maximum length of a handshake message, more than any chain that clients accept.
pub const MAX_HANDSHAKE: usize = 256 << 10;

/// Message types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HandshakeType(pub u8);

impl HandshakeType {
    pub const HELLO_REQUEST: Self = Self(0);
    pub const CLIENT_HELLO: Self = Self(1);
    pub const SERVER_HELLO: Self = Self(2);
    pub const NEW_SESSION_TICKET: Self = Self(4);
    pub const ENCRYPTED_EXTENSIONS: Self = Self(8);
    pub const CERTIFICATE: Self = Self(11);
    pub const SERVER_KEY_EXCHANGE: Self = Self(12);
    pub const CERTIFICATE_REQUEST: Self = Self(13);
    pub const SERVER_HELLO_DONE: Self = Self(14);
    pub const CERTIFICATE_VERIFY: Self = Self(15);
    pub const CLIENT_KEY_EXCHANGE: Self = Self(16);
    pub const FINISHED: Self = Self(20);
    pub const CERTIFICATE_STATUS: Self = Self(22);
    pub const COMPRESSED_CERTIFICATE: Self = Self(25);
}

/// A handshake message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub kind: HandshakeType,
    /// The whole message with its header of four bytes, as used in the transcript.
    pub bytes: Vec<u8>,
}

impl Message {
    /// Without the header.
    pub fn body(&self) -> &[u8] {
        self.bytes.get(4..).unwrap_or_default()
    }

    pub fn new(kind: HandshakeType, body: &[u8]) -> Self {
        let mut bytes = vec![kind.0];
        bytes.extend(&(body.len() as u32).to_be_bytes()[1..]);
        bytes.extend(body);
        Self { kind, bytes }
    }
}

/// Assembles messages from records. Buffers one partial message, at most
/// [`MAX_HANDSHAKE`] bytes and one record.
#[derive(Debug, Default)]
pub struct Handshakes {
    pending: Vec<u8>,
}

impl Handshakes {
    /// Adds the content of a handshake record.
    pub fn push(&mut self, fragment: &[u8]) {
        self.pending.extend_from_slice(fragment);
    }

    /// The next complete message.
    pub fn message(&mut self) -> Result<Option<Message>, Malformed> {
        let [kind, a, b, c, ..] = *self.pending.as_slice() else { return Ok(None) };
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        if length > MAX_HANDSHAKE {
            return Err(Malformed("a handshake message is longer than 256 KiB"));
        }
        if self.pending.len() < 4 + length {
            return Ok(None);
        }
        let rest = self.pending.split_off(4 + length);
        let bytes = std::mem::replace(&mut self.pending, rest);
        Ok(Some(Message { kind: HandshakeType(kind), bytes }))
    }

    /// Whether a partial message is buffered.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }
}

/// A list of extensions without its length, which was checked.
#[derive(Debug, Clone, Copy, Default)]
pub struct Extensions<'a>(&'a [u8]);

impl<'a> Extensions<'a> {
    /// At most 64.
    pub fn new(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (mut reader, mut count) = (Reader::new(bytes), 0);
        while !reader.is_empty() {
            if count == 64 {
                return Err(Malformed("more than 64 extensions"));
            }
            let (_kind, _body) = (reader.u16()?, reader.vec16()?);
            count += 1;
        }
        Ok(Self(bytes))
    }

    /// Each with its body, in order.
    pub fn iter(self) -> impl Iterator<Item = (u16, &'a [u8])> {
        let mut reader = Reader::new(self.0);
        std::iter::from_fn(move || Some((reader.u16().ok()?, reader.vec16().ok()?)))
    }

    /// The body of an extension.
    pub fn get(self, kind: u16) -> Option<&'a [u8]> {
        self.iter().find(|(k, _)| *k == kind).map(|(_, body)| body)
    }
}

/// A list of extensions without its length; at most 64.
pub fn extensions(bytes: &[u8]) -> Result<Vec<(u16, Vec<u8>)>, Malformed> {
    Ok(Extensions::new(bytes)?.iter().map(|(kind, body)| (kind, body.to_vec())).collect())
}

/// A ServerHello or a HelloRetryRequest, which has the same format (RFC 8446 section 4.1.4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerHello {
    /// The negotiated version, from `supported_versions` if present.
    pub version: u16,
    pub random: [u8; 32],
    /// The server's session ID, or an echo of ours.
    pub session_id: Vec<u8>,
    pub suite: u16,
    pub compression: u8,
    /// In order.
    pub extensions: Vec<(u16, Vec<u8>)>,
}

/// SHA-256 of "HelloRetryRequest" (RFC 8446 section 4.1.3).
const RETRY_RANDOM: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91,
    0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];

/// A ServerHello as it was received, without copies.
#[derive(Debug, Clone, Copy)]
pub struct ServerHelloRef<'a> {
    /// The negotiated version, from `supported_versions` if present.
    pub version: u16,
    pub random: [u8; 32],
    pub session_id: &'a [u8],
    pub suite: u16,
    pub compression: u8,
    pub extensions: Extensions<'a>,
}

impl<'a> ServerHelloRef<'a> {
    /// Parses the body of a message.
    pub fn parse(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body);
        let legacy = reader.u16()?;
        let random = reader.array()?;
        // Drafts of TLS 1.3 before the 22nd had their own version here, and fewer fields.
        let early_draft = legacy >> 8 == 0x7f;
        let session_id = if early_draft { &[] } else { reader.vec8()? };
        if session_id.len() > 32 {
            return Err(Malformed("a session ID is longer than 32 bytes"));
        }
        let suite = reader.u16()?;
        let compression = if early_draft { 0 } else { reader.u8()? };
        let extensions = match reader.is_empty() {
            true => Extensions::default(),
            false => Extensions::new(reader.vec16()?)?,
        };
        let version = match extensions.get(super::extension::SUPPORTED_VERSIONS) {
            Some(version) => Reader::new(version).u16()?,
            None => legacy,
        };
        Ok(Self { version, random, session_id, suite, compression, extensions })
    }

    /// Whether it is a HelloRetryRequest.
    pub fn is_retry(&self) -> bool {
        self.random == RETRY_RANDOM
    }
}

impl ServerHello {
    /// Parses the body of a message.
    pub fn parse(body: &[u8]) -> Result<Self, Malformed> {
        let hello = ServerHelloRef::parse(body)?;
        Ok(Self {
            version: hello.version,
            random: hello.random,
            session_id: hello.session_id.to_vec(),
            suite: hello.suite,
            compression: hello.compression,
            extensions: hello.extensions.iter().map(|(kind, body)| (kind, body.to_vec())).collect(),
        })
    }

    /// Whether it is a HelloRetryRequest.
    pub fn is_retry(&self) -> bool {
        self.random == RETRY_RANDOM
    }

    /// The version, if it is known.
    pub fn version(&self) -> Option<Version> {
        Version::from_code(self.version)
    }

    /// The body of an extension.
    pub fn extension(&self, kind: u16) -> Option<&[u8]> {
        self.extensions.iter().find(|(k, _)| *k == kind).map(|(_, body)| body.as_slice())
    }

    /// The group that is requested or used, and its key share (none in a HelloRetryRequest).
    pub fn key_share(&self) -> Option<(u16, &[u8])> {
        let mut reader = Reader::new(self.extension(super::extension::KEY_SHARE)?);
        let group = reader.u16().ok()?;
        Some((group, if reader.is_empty() { &[] } else { reader.vec16().ok()? }))
    }

    /// The selected application protocol, up to TLS 1.2.
    pub fn alpn(&self) -> Option<String> {
        alpn(self.extension(super::extension::ALPN)?)
    }
}

/// The protocol in a server's ALPN extension.
pub(crate) fn alpn(body: &[u8]) -> Option<String> {
    let mut reader = Reader::new(Reader::new(body).vec16().ok()?);
    Some(String::from_utf8_lossy(reader.vec8().ok()?).into_owned())
}

/// The chain in a Certificate message up to TLS 1.2. At most 64 certificates are read.
pub fn certificates(body: &[u8]) -> Result<Vec<Vec<u8>>, Malformed> {
    let mut reader = Reader::new(Reader::new(body).vec24()?);
    let mut chain = Vec::new();
    while !reader.is_empty() && chain.len() < 64 {
        chain.push(reader.vec24()?.to_vec());
    }
    Ok(chain)
}

/// The leaf in a Certificate message up to TLS 1.2, in DER.
pub fn first_certificate(body: &[u8]) -> Result<&[u8], Malformed> {
    Reader::new(Reader::new(body).vec24()?).vec24()
}

/// A certificate of TLS 1.3, with its extensions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateEntry {
    /// In DER.
    pub certificate: Vec<u8>,
    /// For example `status_request` and `signed_certificate_timestamp`.
    pub extensions: Vec<(u16, Vec<u8>)>,
}

/// The chain in a Certificate message of TLS 1.3 (RFC 8446 section 4.4.2). At most 64 are read.
pub fn certificates_tls1_3(body: &[u8]) -> Result<Vec<CertificateEntry>, Malformed> {
    let mut outer = Reader::new(body);
    outer.vec8()?;
    let mut reader = Reader::new(outer.vec24()?);
    let mut chain = Vec::new();
    while !reader.is_empty() && chain.len() < 64 {
        let certificate = reader.vec24()?.to_vec();
        chain.push(CertificateEntry { certificate, extensions: extensions(reader.vec16()?)? });
    }
    Ok(chain)
}

/// The OCSP response in a CertificateStatus (RFC 6066 section 8).
pub fn certificate_status(body: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut reader = Reader::new(body);
    match reader.u8()? {
        1 => Ok(reader.vec24()?.to_vec()),
        _ => Err(Malformed("the certificate status is not an OCSP response")),
    }
}

/// A ServerKeyExchange message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerKeyExchange {
    pub exchange: Exchange,
    /// The encoded public values, which the signature covers together with both randoms.
    pub parameters: Vec<u8>,
    /// The signature scheme (only in TLS 1.2), if it is signed.
    pub scheme: Option<u16>,
    /// Empty if it is not signed.
    pub signature: Vec<u8>,
}

/// Public values of a key exchange up to TLS 1.2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exchange {
    /// RFC 8422 section 5.4.
    Ecdhe {
        /// The named curve.
        group: u16,
        /// The server's share.
        point: Vec<u8>,
    },
    /// RFC 5246 section 7.4.3.
    Dhe {
        /// The prime, without leading zeros.
        p: Vec<u8>,
        /// The generator.
        g: Vec<u8>,
        /// The server's share.
        y: Vec<u8>,
    },
    ExplicitCurve,
}

impl ServerKeyExchange {
    /// Parses the body of an (EC)DHE message, signed or anonymous.
    pub fn parse(
        body: &[u8],
        elliptic: bool,
        signed: bool,
        version: u16,
    ) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body);
        let exchange = if elliptic {
            match reader.u8()? {
                3 => Exchange::Ecdhe { group: reader.u16()?, point: reader.vec8()?.to_vec() },
                1 | 2 => {
                    return Ok(Self {
                        exchange: Exchange::ExplicitCurve,
                        parameters: Vec::new(),
                        scheme: None,
                        signature: Vec::new(),
                    });
                }
                _ => return Err(Malformed("an unknown type of curve")),
            }
        } else {
            let p = reader.vec16()?;
            let zeros = p.iter().take_while(|b| **b == 0).count();
            let p = p[zeros..].to_vec();
            Exchange::Dhe { p, g: reader.vec16()?.to_vec(), y: reader.vec16()?.to_vec() }
        };
        let parameters = body[..body.len() - reader.rest().len()].to_vec();
        let (mut scheme, mut signature) = (None, Vec::new());
        if signed {
            if version >= Version::Tls1_2.code() {
                scheme = Some(reader.u16()?);
            }
            signature = reader.vec16()?.to_vec();
        }
        Ok(Self { exchange, parameters, scheme, signature })
    }
}

/// A server's request for a client certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateRequest {
    /// Only in TLS 1.3; the client echoes it.
    pub context: Vec<u8>,
    /// Distinguished names in DER, at most 256.
    pub authorities: Vec<Vec<u8>>,
    /// The accepted signature schemes.
    pub schemes: Vec<u16>,
}

impl CertificateRequest {
    /// Up to TLS 1.2 (RFC 5246 section 7.4.4).
    pub fn parse(body: &[u8], version: u16) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body);
        reader.vec8()?;
        let mut schemes = Vec::new();
        if version >= Version::Tls1_2.code() {
            schemes = u16s(reader.vec16()?).collect();
        }
        Ok(Self { context: Vec::new(), authorities: names(reader.vec16()?)?, schemes })
    }

    /// TLS 1.3 (RFC 8446 section 4.3.2).
    pub fn parse_tls1_3(body: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body);
        let context = reader.vec8()?.to_vec();
        let (mut authorities, mut schemes) = (Vec::new(), Vec::new());
        for (kind, body) in extensions(reader.vec16()?)? {
            let mut body = Reader::new(&body);
            match kind {
                super::extension::CERTIFICATE_AUTHORITIES => authorities = names(body.vec16()?)?,
                super::extension::SIGNATURE_ALGORITHMS => schemes = u16s(body.vec16()?).collect(),
                _ => {}
            }
        }
        Ok(Self { context, authorities, schemes })
    }
}

fn names(bytes: &[u8]) -> Result<Vec<Vec<u8>>, Malformed> {
    let mut reader = Reader::new(bytes);
    let mut all = Vec::new();
    while !reader.is_empty() && all.len() < 256 {
        all.push(reader.vec16()?.to_vec());
    }
    Ok(all)
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSessionTicket {
    /// Seconds.
    pub lifetime: u32,
    /// Only in TLS 1.3.
    pub age_add: u32,
    /// Only in TLS 1.3.
    pub nonce: Vec<u8>,
    /// Opaque.
    pub ticket: Vec<u8>,
    /// The allowed bytes of 0-RTT data (TLS 1.3).
    pub early_data: Option<u32>,
}

impl NewSessionTicket {
    /// RFC 5077 section 3.3.
    pub fn parse(body: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body);
        let (lifetime, ticket) = (reader.u32()?, reader.vec16()?.to_vec());
        Ok(Self { lifetime, age_add: 0, nonce: Vec::new(), ticket, early_data: None })
    }

    /// RFC 8446 section 4.6.1.
    pub fn parse_tls1_3(body: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body);
        let (lifetime, age_add) = (reader.u32()?, reader.u32()?);
        let (nonce, ticket) = (reader.vec8()?.to_vec(), reader.vec16()?.to_vec());
        let mut early_data = None;
        for (kind, body) in extensions(reader.vec16()?)? {
            if kind == super::extension::EARLY_DATA {
                early_data = Some(Reader::new(&body).u32()?);
            }
        }
        Ok(Self { lifetime, age_add, nonce, ticket, early_data })
    }
}
