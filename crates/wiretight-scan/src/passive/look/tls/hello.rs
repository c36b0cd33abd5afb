//! What the hellos offer and choose, and the level of what was chosen. QUIC and DTLS use it too.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use aws_lc_rs::digest;

use super::super::sealed::text;
use super::records::{Sent, message};
use crate::certificate;
use crate::judge::{Level, marks};
use crate::names::{Bulk, Group, KeyExchange, SignatureScheme, Suite, Version};
use crate::parse::{
    ClientHelloRef, Exchange, HandshakeType, Reader, ServerHelloRef, ServerKeyExchange, extension,
    first_certificate, u16s,
};
use crate::passive::{CertificateSeen, Sealed};

/// The ALPN protocols of our relays and of our nodes with their authority.
const OURS: [&[u8]; 2] = [b"wiretight/1", b"wiretight-control/1"];

/// Integrity without encryption in TLS 1.3 (RFC 9150).
const INTEGRITY_ONLY: [(u16, &str); 2] =
    [(0xc0b4, "TLS_SHA256_SHA256"), (0xc0b5, "TLS_SHA384_SHA384")];

/// Profiles of SRTP without encryption (RFC 5764 section 4.1.2).
const SRTP_NULL_80: u16 = 5;
const SRTP_NULL_32: u16 = 6;

/// Where a handshake is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Flavour {
    Tls,
    Dtls,
    /// With the name of the version of QUIC.
    Quic(&'static str),
}

impl Flavour {
    /// The version and its name; `None` if it is unknown.
    fn version(self, code: u16) -> Option<(Version, Cow<'static, str>)> {
        let known = |version: Version| (version, Cow::Borrowed(version.name()));
        Some(match (self, code) {
            (Self::Quic(name), 0x0304) => (Version::Tls1_3, name.into()),
            (Self::Dtls, 0xfeff | 0x0100) => (Version::Tls1_1, "DTLS 1.0".into()),
            (Self::Dtls, 0xfefd) => (Version::Tls1_2, "DTLS 1.2".into()),
            (Self::Dtls, 0xfefc) => (Version::Tls1_3, "DTLS 1.3".into()),
            (Self::Tls, 0x0300..=0x0304) => known(Version::from_code(code)?),
            (Self::Tls, 0x7f00..=0x7fff) => {
                (Version::Tls1_3, format!("TLS 1.3 draft {}", code & 0xff).into())
            }
            _ => return None,
        })
    }
}

/// What a ClientHello offers.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Offer<'a> {
    pub hello: ClientHelloRef<'a>,
    server_name: Option<&'a str>,
    /// The ProtocolNameList of ALPN, without its length.
    pub alpn: &'a [u8],
    /// `supported_versions`; empty without it.
    versions: &'a [u8],
    groups: &'a [u8],
    ticket: bool,
    ech: bool,
    early_data: bool,
}

impl<'a> Offer<'a> {
    pub fn new(hello: ClientHelloRef<'a>) -> Self {
        let mut offer = Self {
            hello,
            server_name: None,
            alpn: &[],
            versions: &[],
            groups: &[],
            ticket: false,
            ech: false,
            early_data: false,
        };
        for (kind, body) in hello.extensions.iter() {
            let mut body = Reader::new(body);
            match kind {
                extension::SERVER_NAME => offer.server_name = server_name(body),
                extension::ALPN => offer.alpn = body.vec16().unwrap_or_default(),
                extension::SUPPORTED_VERSIONS => offer.versions = body.vec8().unwrap_or_default(),
                extension::SUPPORTED_GROUPS => offer.groups = body.vec16().unwrap_or_default(),
                extension::SESSION_TICKET => offer.ticket = !body.is_empty(),
                extension::ENCRYPTED_CLIENT_HELLO => offer.ech = true,
                extension::EARLY_DATA => offer.early_data = true,
                _ => {}
            }
        }
        offer
    }

    /// The last ClientHello: after a HelloRetryRequest, the second.
    pub fn in_messages(messages: &'a [u8], flavour: Flavour) -> Option<Self> {
        let (mut rest, mut last) = (messages, None);
        while let Some((kind, body, after)) = message(rest) {
            if kind == HandshakeType::CLIENT_HELLO.0 {
                let hello = match flavour {
                    Flavour::Dtls => ClientHelloRef::parse_dtls(body),
                    Flavour::Tls | Flavour::Quic(_) => ClientHelloRef::parse(body),
                };
                last = hello.ok().map(Self::new).or(last);
            }
            rest = after;
        }
        last
    }

    fn offers_version(&self, code: u16) -> bool {
        match self.versions {
            // The numbers of DTLS decrease.
            [] if code >= 0xfe00 => code >= self.hello.version,
            [] => code <= self.hello.version,
            versions => u16s(versions).any(|version| version == code),
        }
    }

    /// The names of the protocols in ALPN, as far as they are text.
    fn alpn(&self) -> Option<String> {
        let (mut reader, mut names) = (Reader::new(self.alpn), String::new());
        while let Ok(name) = reader.vec8() {
            let Some(name) = text(name, 64).filter(|_| names.len() < 200) else { continue };
            if !names.is_empty() {
                names.push(',');
            }
            names.push_str(name);
        }
        Some(names).filter(|names| !names.is_empty())
    }

    /// What is known from the client alone, whatever the server answers.
    fn put(&self, sealed: &mut Sealed) {
        sealed.server_name = self.server_name.map(str::to_owned);
        sealed.ech = self.ech;
        sealed.early_data = self.early_data;
    }
}

fn server_name(mut body: Reader<'_>) -> Option<&str> {
    let mut list = Reader::new(body.vec16().ok()?);
    match list.u8().ok()? {
        0 => text(list.vec16().ok()?, 255),
        _ => None,
    }
}

/// The protocol of a flow with this hello.
pub(super) fn protocol(offer: Option<&Offer<'_>>, flavour: Flavour) -> &'static str {
    match (flavour, offer.and_then(|offer| offer.alpn.split_first())) {
        (Flavour::Quic(_), _) => "quic",
        (Flavour::Dtls, _) => "dtls",
        (Flavour::Tls, Some((len, name)))
            if usize::from(*len) == name.len() && OURS.contains(&name) =>
        {
            "wiretight"
        }
        (Flavour::Tls, _) => "tls",
    }
}

/// What a client offers, when no answer was seen.
pub(in super::super) fn offered(offer: &Offer<'_>, flavour: Flavour) -> Sealed {
    let highest = match offer.versions {
        [] => Some(offer.hello.version),
        versions if flavour == Flavour::Dtls => u16s(versions).filter(|v| *v >= 0xfe00).min(),
        versions => u16s(versions).filter(|v| flavour.version(*v).is_some()).max(),
    };
    let version = highest.and_then(|code| flavour.version(code)).map(|(_, name)| name);
    let mut sealed = Sealed {
        version: version.unwrap_or_default(),
        alpn: offer.alpn(),
        offered_groups: u16s(offer.groups)
            .filter_map(|code| Some(Cow::Borrowed(Group::from_code(code)?.name)))
            .take(32)
            .collect(),
        ..Sealed::default()
    };
    offer.put(&mut sealed);
    sealed
}

/// What the server has chosen.
#[derive(Debug)]
pub(in super::super) struct Negotiated<'a> {
    hello: ServerHelloRef<'a>,
    offer: Option<&'a Offer<'a>>,
    flavour: Flavour,
    version: Option<(Version, Cow<'static, str>)>,
    suite: Option<Suite>,
    group: Chosen,
    scheme: Option<SignatureScheme>,
    certificate: Option<Arc<CertificateSeen>>,
    client_certificate: Option<bool>,
    resumed: Option<bool>,
    /// Whether it is a HelloRetryRequest, which no ServerHello has followed yet.
    pub retry: bool,
    /// Why there is no level.
    pub problem: Option<&'static str>,
}

/// The group of the key exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chosen {
    /// There is none, or it was not seen.
    None,
    Known(Group),
    Unknown(u16),
    /// Finite-field Diffie-Hellman before TLS 1.3, with a prime of so many bits.
    Prime(usize),
}

/// The messages of a server before it encrypts.
#[derive(Default)]
struct Flight<'a> {
    hello: Option<ServerHelloRef<'a>>,
    certificate: Option<&'a [u8]>,
    exchange: Option<&'a [u8]>,
    request: bool,
    done: bool,
    /// Messages after the ServerHello.
    after: usize,
}

impl<'a> Flight<'a> {
    fn read(bytes: &'a [u8]) -> Self {
        let (mut flight, mut rest) = (Self::default(), bytes);
        while let Some((kind, body, after)) = message(rest) {
            rest = after;
            match HandshakeType(kind) {
                HandshakeType::SERVER_HELLO => {
                    let Ok(hello) = ServerHelloRef::parse(body) else { break };
                    flight = Self { hello: Some(hello), ..Self::default() };
                    continue;
                }
                HandshakeType::CERTIFICATE => flight.certificate = Some(body),
                HandshakeType::SERVER_KEY_EXCHANGE => flight.exchange = Some(body),
                HandshakeType::CERTIFICATE_REQUEST => flight.request = true,
                HandshakeType::SERVER_HELLO_DONE => flight.done = true,
                _ => {}
            }
            flight.after += 1;
        }
        flight
    }
}

impl<'a> Negotiated<'a> {
    /// From the server's records; `None` if there is no ServerHello in them yet.
    pub(super) fn read(
        server: &'a Sent<'_>,
        offer: Option<&'a Offer<'a>>,
        flavour: Flavour,
    ) -> Option<Self> {
        Self::from_messages(&server.handshake, offer, flavour, server.ciphered.is_some())
    }

    /// From the server's unencrypted messages, and whether ChangeCipherSpec followed.
    pub fn from_messages(
        messages: &'a [u8],
        offer: Option<&'a Offer<'a>>,
        flavour: Flavour,
        changed: bool,
    ) -> Option<Self> {
        let flight = Flight::read(messages);
        let hello = flight.hello?;
        let mut negotiated = Self {
            hello,
            offer,
            flavour,
            version: flavour.version(hello.version),
            suite: Suite::from_code(hello.suite),
            group: Chosen::None,
            scheme: None,
            certificate: None,
            client_certificate: None,
            resumed: None,
            retry: hello.is_retry(),
            problem: None,
        };
        negotiated.problem = match negotiated.is_tls1_3() {
            true => negotiated.read_tls1_3(&flight),
            false => negotiated.read_tls1_2(&flight, changed),
        };
        negotiated.problem = negotiated.problem.or(negotiated.not_offered());
        Some(negotiated)
    }

    pub fn is_tls1_3(&self) -> bool {
        matches!(self.version, Some((Version::Tls1_3, _)))
    }

    fn read_tls1_3(&mut self, flight: &Flight<'_>) -> Option<&'static str> {
        let share = match self.hello.version {
            0x7f00..0x7f17 => extension::KEY_SHARE_DRAFT,
            _ => extension::KEY_SHARE,
        };
        let share = self.hello.extensions.get(share);
        let group = share.and_then(|body| Reader::new(body).u16().ok());
        let psk = self.hello.extensions.get(extension::PRE_SHARED_KEY).is_some();
        self.group = match group {
            Some(code) => Group::from_code(code).map_or(Chosen::Unknown(code), Chosen::Known),
            None => Chosen::None,
        };
        self.resumed = (!self.retry).then_some(psk);
        if group.is_none() && !psk {
            return Some("it has neither a key share nor a pre-shared key");
        }
        (flight.after > 0).then_some("unencrypted messages follow it")
    }

    fn read_tls1_2(&mut self, flight: &Flight<'_>, changed: bool) -> Option<&'static str> {
        let Some((version, _)) = self.version else { return Some("its version is unknown") };
        let suite = self.suite?;
        let full = flight.done || flight.certificate.is_some() || flight.exchange.is_some();
        let with_certificate = !matches!(
            suite.key_exchange(),
            KeyExchange::Psk | KeyExchange::DhePsk | KeyExchange::EcdhePsk | KeyExchange::Srp
        ) && !suite.is_anonymous();
        match (full, changed) {
            (true, _) => self.resumed = Some(false),
            (false, true) => self.resumed = Some(true),
            (false, false) => return None,
        }
        if flight.done {
            self.client_certificate = Some(flight.request);
        }
        if !full {
            let resumable = |offer: &Offer<'_>| offer.ticket || !offer.hello.session_id.is_empty();
            let without = self.offer.is_some_and(|offer| !resumable(offer));
            return without.then_some("it resumes a session that the client did not offer");
        }
        // Raw public keys (RFC 7250) are no certificates.
        let raw = self.hello.extensions.get(extension::SERVER_CERTIFICATE_TYPE).is_some();
        if with_certificate && !raw {
            let leaf = flight.certificate.and_then(|body| first_certificate(body).ok());
            self.certificate = leaf.and_then(leaf_seen);
            if self.certificate.is_none() && (flight.done || flight.certificate.is_some()) {
                return Some("its certificate is unreadable");
            }
        }
        let elliptic = match suite.key_exchange() {
            KeyExchange::Ecdhe | KeyExchange::EcdhePsk => true,
            KeyExchange::Dhe | KeyExchange::DhePsk => false,
            _ => return None,
        };
        let Some(mut body) = flight.exchange else {
            return flight.done.then_some("its key exchange is missing");
        };
        if matches!(suite.key_exchange(), KeyExchange::EcdhePsk | KeyExchange::DhePsk) {
            // The hint of the pre-shared key comes first (RFC 4279 section 3).
            let mut reader = Reader::new(body);
            reader.vec16().ok()?;
            body = reader.rest();
        }
        let exchange = ServerKeyExchange::parse(body, elliptic, with_certificate, version.code());
        let Ok(exchange) = exchange else { return Some("its key exchange is unreadable") };
        self.scheme = exchange.scheme.and_then(SignatureScheme::from_code);
        self.group = match exchange.exchange {
            Exchange::Ecdhe { group, .. } => {
                Group::from_code(group).map_or(Chosen::Unknown(group), Chosen::Known)
            }
            Exchange::Dhe { p, .. } => {
                let top = p.first().map_or(0, |byte| byte.leading_zeros() as usize);
                Chosen::Prime((p.len() * 8).saturating_sub(top))
            }
            Exchange::ExplicitCurve => return Some("its curve is explicit"),
        };
        None
    }

    /// Whether the server chose what the client did not offer: then one of the hellos is not what was used.
    fn not_offered(&self) -> Option<&'static str> {
        let offer = self.offer?;
        if !u16s(offer.hello.suites).any(|suite| suite == self.hello.suite) {
            return Some("the client did not offer this suite");
        }
        if !offer.offers_version(self.hello.version) {
            return Some("the client did not offer this version");
        }
        let group = match self.group {
            Chosen::Known(group) if self.is_tls1_3() => group.code,
            Chosen::Unknown(code) if self.is_tls1_3() => code,
            _ => return None,
        };
        let offered = u16s(offer.groups).any(|code| code == group);
        (!offered).then_some("the client did not offer this group")
    }

    /// The profile with which media are protected by SRTP (RFC 5764 section 4.1.2).
    fn srtp(&self) -> Option<u16> {
        let body = self.hello.extensions.get(extension::USE_SRTP)?;
        Reader::new(Reader::new(body).vec16().ok()?).u16().ok()
    }

    /// The level of what was negotiated.
    pub fn level(&self) -> Level {
        if matches!(self.srtp(), Some(SRTP_NULL_80 | SRTP_NULL_32)) {
            return Level::Plaintext;
        }
        if INTEGRITY_ONLY.iter().any(|(code, _)| *code == self.hello.suite) {
            return Level::Plaintext;
        }
        let (Some((version, _)), Some(suite)) = (&self.version, self.suite) else {
            return Level::Unknown;
        };
        if (*version == Version::Tls1_3) != suite.is_tls1_3() {
            return Level::Unknown;
        }
        let mut level = marks::of_suite(suite);
        if level == Level::Weak && suite.bulk() == Bulk::Null {
            return Level::Plaintext;
        }
        level = level.min(marks::version(*version));
        if matches!(self.hello.version, 0x7f00..=0x7fff) {
            // A draft of TLS 1.3.
            level = level.min(Level::Acceptable);
        }
        if self.hello.compression != 0 {
            // CRIME (RFC 9325 section 3.3).
            level = level.min(Level::Weak);
        }
        level = level.min(match self.group {
            Chosen::Known(group) => marks::of_group(group),
            // An unknown curve could be a weak one.
            Chosen::Unknown(_) => Level::Unknown,
            Chosen::Prime(bits) if bits < 2048 => Level::Weak,
            Chosen::Prime(_) => Level::Acceptable,
            Chosen::None => Level::Acceptable,
        });
        if let Some(scheme) = self.scheme {
            level = level.min(marks::of_signature(scheme));
        }
        if let Some(certificate) = &self.certificate {
            level = level.min(marks::certificate_key(&certificate.key));
            if !certificate.self_signed {
                level = level.min(marks::certificate_signature(&certificate.signature));
            }
        }
        level
    }

    fn suite_name(&self) -> Cow<'static, str> {
        let integrity_only = INTEGRITY_ONLY.iter().find(|(code, _)| *code == self.hello.suite);
        match (self.suite, integrity_only) {
            (Some(suite), _) => suite.name.into(),
            (None, Some((_, name))) => (*name).into(),
            (None, None) => format!("0x{:04x}", self.hello.suite).into(),
        }
    }

    fn group_name(&self) -> Option<Cow<'static, str>> {
        Some(match self.group {
            Chosen::None => return None,
            Chosen::Known(group) => group.name.into(),
            Chosen::Unknown(code) => format!("0x{code:04x}").into(),
            Chosen::Prime(bits) => format!("dh-{bits}").into(),
        })
    }

    fn version_name(&self) -> Cow<'static, str> {
        match &self.version {
            Some((_, name)) => name.clone(),
            None => format!("0x{:04x}", self.hello.version).into(),
        }
    }

    /// "ServerHello: TLS 1.3, TLS_AES_128_GCM_SHA256, X25519MLKEM768".
    pub fn evidence(&self) -> String {
        let mut out = String::with_capacity(96);
        out.push_str(if self.retry { "HelloRetryRequest: " } else { "ServerHello: " });
        out.push_str(&self.version_name());
        out.push_str(", ");
        out.push_str(&self.suite_name());
        if let Some(group) = self.group_name() {
            out.push_str(", ");
            out.push_str(&group);
        }
        if self.resumed == Some(true) {
            out.push_str(", resumed");
        }
        if self.srtp().is_some() {
            out.push_str(", keys for SRTP");
        }
        out
    }

    pub fn protocol(&self) -> &'static str {
        protocol(self.offer, self.flavour)
    }

    pub fn sealed(&self) -> Sealed {
        let post_quantum = match self.group {
            Chosen::Known(group) => Some(group.is_post_quantum()),
            _ if !self.is_tls1_3() && self.version.is_some() => Some(false),
            _ => None,
        };
        let forward_secrecy = match self.is_tls1_3() {
            true => Some(self.group != Chosen::None),
            false => self.suite.map(Suite::is_forward_secret),
        };
        let selected = self.hello.extensions.get(extension::ALPN).and_then(|body| {
            let mut list = Reader::new(Reader::new(body).vec16().ok()?);
            text(list.vec8().ok()?, 64).map(str::to_owned)
        });
        let mut sealed = Sealed {
            version: self.version_name(),
            suite: Some(self.suite_name()),
            group: self.group_name(),
            post_quantum,
            forward_secrecy,
            signature: self.scheme.map(|scheme| scheme.name.into()),
            alpn: match self.is_tls1_3() {
                true => self.offer.and_then(Offer::alpn),
                false => selected,
            },
            resumed: self.resumed,
            client_certificate: self.client_certificate,
            certificate: self.certificate.clone(),
            ..Sealed::default()
        };
        if let Some(offer) = self.offer {
            offer.put(&mut sealed);
        }
        sealed
    }
}

/// What a leaf certificate says. The same certificate is seen in many flows, so the last ones are kept.
fn leaf_seen(der: &[u8]) -> Option<Arc<CertificateSeen>> {
    const MOST: usize = 1024;
    thread_local! {
        static KNOWN: RefCell<HashMap<[u8; 32], Option<Arc<CertificateSeen>>>> = RefCell::default();
    }
    let hash: [u8; 32] = digest::digest(&digest::SHA256, der).as_ref().try_into().ok()?;
    KNOWN.with_borrow_mut(|known| {
        if let Some(leaf) = known.get(&hash) {
            return leaf.clone();
        }
        if known.len() >= MOST {
            known.clear();
        }
        let leaf = certificate::skim(der).map(|leaf| {
            Arc::new(CertificateSeen {
                sha256: hash.iter().map(|byte| format!("{byte:02x}")).collect(),
                key: leaf.key,
                signature: leaf.signature,
                not_after: leaf.not_after,
                subject: leaf.subject,
                self_signed: leaf.self_issued,
            })
        });
        known.insert(hash, leaf.clone());
        leaf
    })
}
