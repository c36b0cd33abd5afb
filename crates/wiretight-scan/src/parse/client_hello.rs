//! ClientHellos from SSL 3.0 to TLS 1.3 with arbitrary contents (RFC 8446 section 4.1.2 and its
//! predecessors).

use super::reader::u16s;
use super::{ContentType, Extensions, Reader, record};
use crate::names::Version;

/// Numbers of extensions (IANA, TLS ExtensionType Values).
pub mod extension {
    pub const SERVER_NAME: u16 = 0;
    pub const STATUS_REQUEST: u16 = 5;
    pub const SUPPORTED_GROUPS: u16 = 10;
    pub const EC_POINT_FORMATS: u16 = 11;
    pub const SIGNATURE_ALGORITHMS: u16 = 13;
    pub const USE_SRTP: u16 = 14;
    pub const HEARTBEAT: u16 = 15;
    pub const ALPN: u16 = 16;
    pub const SCT: u16 = 18;
    pub const SERVER_CERTIFICATE_TYPE: u16 = 20;
    pub const PADDING: u16 = 21;
    pub const ENCRYPT_THEN_MAC: u16 = 22;
    pub const EXTENDED_MASTER_SECRET: u16 = 23;
    pub const COMPRESS_CERTIFICATE: u16 = 27;
    pub const SESSION_TICKET: u16 = 35;
    /// In drafts of TLS 1.3 before the 23rd.
    pub const KEY_SHARE_DRAFT: u16 = 40;
    pub const PRE_SHARED_KEY: u16 = 41;
    pub const EARLY_DATA: u16 = 42;
    pub const SUPPORTED_VERSIONS: u16 = 43;
    pub const COOKIE: u16 = 44;
    pub const PSK_KEY_EXCHANGE_MODES: u16 = 45;
    pub const CERTIFICATE_AUTHORITIES: u16 = 47;
    pub const SIGNATURE_ALGORITHMS_CERT: u16 = 50;
    pub const KEY_SHARE: u16 = 51;
    pub const QUIC_TRANSPORT_PARAMETERS: u16 = 57;
    pub const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;
    pub const RENEGOTIATION_INFO: u16 = 0xff01;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientHello {
    /// `legacy_version`: the highest version, up to TLS 1.2.
    pub version: u16,
    /// Need not be secret here, but is new for each connection.
    pub random: [u8; 32],
    /// Up to 32 bytes.
    pub session_id: Vec<u8>,
    /// In order of preference.
    pub suites: Vec<u16>,
    /// In order of preference; `[0]` means no compression.
    pub compressions: Vec<u8>,
    /// In order, each with its body.
    pub extensions: Vec<(u16, Vec<u8>)>,
}

impl ClientHello {
    /// A hello with this version as the highest (for TLS 1.3: the only one), without extensions except
    /// `supported_versions`.
    pub fn new(version: Version, random: [u8; 32]) -> Self {
        let mut hello = Self {
            version: version.code().min(Version::Tls1_2.code()),
            random,
            session_id: Vec::new(),
            suites: Vec::new(),
            compressions: vec![0],
            extensions: Vec::new(),
        };
        if version == Version::Tls1_3 {
            // Middlebox compatibility (RFC 8446 appendix D.4): a session ID as in TLS 1.2.
            hello.session_id = random.to_vec();
            hello = hello.supported_versions(&[version.code()]);
        }
        hello
    }

    /// Adds an extension, or replaces it.
    pub fn with(mut self, kind: u16, body: Vec<u8>) -> Self {
        match self.extensions.iter_mut().find(|(k, _)| *k == kind) {
            Some((_, old)) => *old = body,
            None => self.extensions.push((kind, body)),
        }
        self
    }

    /// Removes an extension.
    pub fn without(mut self, kind: u16) -> Self {
        self.extensions.retain(|(k, _)| *k != kind);
        self
    }

    /// Sets the cipher suites.
    pub fn suites(mut self, suites: impl IntoIterator<Item = u16>) -> Self {
        self.suites = suites.into_iter().collect();
        self
    }

    /// RFC 6066 section 3.
    pub fn server_name(self, name: &str) -> Self {
        let name = name.as_bytes();
        let mut body = Vec::new();
        vec16(&mut body, |list| {
            list.push(0);
            vec16(list, |out| out.extend(name));
        });
        self.with(extension::SERVER_NAME, body)
    }

    /// RFC 8446 section 4.2.7.
    pub fn groups(self, groups: &[u16]) -> Self {
        self.with(extension::SUPPORTED_GROUPS, list16(groups))
    }

    /// RFC 8446 section 4.2.3.
    pub fn signatures(self, schemes: &[u16]) -> Self {
        self.with(extension::SIGNATURE_ALGORITHMS, list16(schemes))
    }

    /// RFC 8446 section 4.2.1.
    pub fn supported_versions(self, versions: &[u16]) -> Self {
        let mut body = Vec::new();
        vec8(&mut body, |out| versions.iter().for_each(|v| out.extend(v.to_be_bytes())));
        self.with(extension::SUPPORTED_VERSIONS, body)
    }

    /// RFC 8446 section 4.2.8. An empty list makes the server request a group.
    pub fn key_shares(self, shares: &[(u16, &[u8])]) -> Self {
        let mut body = Vec::new();
        vec16(&mut body, |out| {
            for (group, share) in shares {
                out.extend(group.to_be_bytes());
                vec16(out, |out| out.extend(*share));
            }
        });
        self.with(extension::KEY_SHARE, body)
    }

    /// RFC 7301.
    pub fn alpn(self, protocols: &[&str]) -> Self {
        let mut body = Vec::new();
        vec16(&mut body, |out| {
            protocols.iter().for_each(|p| vec8(out, |out| out.extend(p.as_bytes())));
        });
        self.with(extension::ALPN, body)
    }

    /// Adds padding (RFC 7685) up to this record length, or slightly more if the extension needs it.
    pub fn padded_to(self, record_length: usize) -> Self {
        let hello = self.without(extension::PADDING);
        let missing = record_length.saturating_sub(hello.record().len() + 4);
        hello.with(extension::PADDING, vec![0; missing.min(usize::from(u16::MAX) / 2)])
    }

    pub fn message(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(1024);
        body.extend(self.version.to_be_bytes());
        body.extend(self.random);
        vec8(&mut body, |out| out.extend(&self.session_id));
        vec16(&mut body, |out| self.suites.iter().for_each(|s| out.extend(s.to_be_bytes())));
        vec8(&mut body, |out| out.extend(&self.compressions));
        if !self.extensions.is_empty() {
            vec16(&mut body, |out| {
                for (kind, content) in &self.extensions {
                    out.extend(kind.to_be_bytes());
                    vec16(out, |out| out.extend(content));
                }
            });
        }
        let mut message = vec![1];
        message.extend(&(body.len() as u32).to_be_bytes()[1..]);
        message.append(&mut body);
        message
    }

    /// The record or records to send.
    pub fn record(&self) -> Vec<u8> {
        // The version that the oldest servers accept (RFC 8446 section 5.1); SSL 3.0 needs its own.
        let version = self.version.min(Version::Tls1_0.code());
        let message = self.message();
        let pieces = message.chunks(1 << 14);
        pieces.flat_map(|piece| record(ContentType::Handshake, version, piece)).collect()
    }

    /// Parses a handshake message.
    pub fn parse(message: &[u8]) -> Result<Self, super::Malformed> {
        let mut outer = Reader::new(message);
        if outer.u8()? != 1 {
            return Err(super::Malformed("not a ClientHello"));
        }
        let hello = ClientHelloRef::parse(outer.vec24()?)?;
        Ok(Self {
            version: hello.version,
            random: hello.random,
            session_id: hello.session_id.to_vec(),
            suites: u16s(hello.suites).collect(),
            compressions: hello.compressions.to_vec(),
            extensions: hello.extensions.iter().map(|(kind, body)| (kind, body.to_vec())).collect(),
        })
    }
}

/// A ClientHello as it was received, without copies.
#[derive(Debug, Clone, Copy)]
pub struct ClientHelloRef<'a> {
    /// `legacy_version`.
    pub version: u16,
    pub random: [u8; 32],
    pub session_id: &'a [u8],
    /// Two bytes each; see [`u16s`].
    pub suites: &'a [u8],
    pub compressions: &'a [u8],
    pub extensions: Extensions<'a>,
}

impl<'a> ClientHelloRef<'a> {
    /// Parses the body of a message.
    pub fn parse(body: &'a [u8]) -> Result<Self, super::Malformed> {
        Self::read(Reader::new(body), false)
    }

    /// Parses the body of a DTLS message, which also has a cookie (RFC 6347 section 4.2.1).
    pub fn parse_dtls(body: &'a [u8]) -> Result<Self, super::Malformed> {
        Self::read(Reader::new(body), true)
    }

    fn read(mut reader: Reader<'a>, cookie: bool) -> Result<Self, super::Malformed> {
        let version = reader.u16()?;
        let random = reader.array()?;
        let session_id = reader.vec8()?;
        if cookie {
            reader.vec8()?;
        }
        let suites = reader.vec16()?;
        let compressions = reader.vec8()?;
        let extensions = match reader.is_empty() {
            true => Extensions::default(),
            false => Extensions::new(reader.vec16()?)?,
        };
        Ok(Self { version, random, session_id, suites, compressions, extensions })
    }
}

fn list16(items: &[u16]) -> Vec<u8> {
    let mut body = Vec::new();
    vec16(&mut body, |out| items.iter().for_each(|item| out.extend(item.to_be_bytes())));
    body
}

/// Prefixes what `write` adds with its length in one byte.
fn vec8(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.push(0);
    write(out);
    debug_assert!(out.len() - at - 1 <= 255);
    out[at] = (out.len() - at - 1) as u8;
}

/// Prefixes what `write` adds with its length in two bytes.
fn vec16(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend([0, 0]);
    write(out);
    debug_assert!(out.len() - at - 2 <= usize::from(u16::MAX));
    let length = (out.len() - at - 2) as u16;
    out[at..at + 2].copy_from_slice(&length.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_survives_a_round_trip_and_is_padded_exactly() {
        let hello = ClientHello::new(Version::Tls1_3, [7; 32])
            .suites([0x1301, 0x1302])
            .server_name("example.com")
            .groups(&[0x11ec, 29])
            .key_shares(&[])
            .alpn(&["h2", "http/1.1"]);
        assert_eq!(ClientHello::parse(&hello.message()), Ok(hello.clone()));
        for length in [300, 513, 4000] {
            assert_eq!(hello.clone().padded_to(length).record().len(), length);
        }
        let old = ClientHello::new(Version::Ssl3, [1; 32]).suites([5]);
        assert_eq!(&old.record()[..5], [22, 3, 0, 0, 45]);
    }
}
