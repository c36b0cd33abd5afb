//! A client of TLS 1.0, 1.1 and 1.2 (RFC 2246, RFC 4346, RFC 5246) that completes the handshake: a
//! new one, a resumption, or a renegotiation.

use x509_cert::der::asn1::UintRef;
use x509_cert::der::{Decode, Reader as _, SliceReader};

use super::aead::Algorithm;
use super::channel::{Channel, Incoming};
use super::keys::{Hash, Prf};
use super::protection::{Cipher, MacHash, Protection};
use super::shares::{CURVES, KeyShare, dhe, power};
use super::{BadPadding, Failure, certificate_verify, malformed, random};
use crate::active::Prober;
use crate::active::link::Link;
use crate::names::{KeyExchange, Suite, Version, suites};
use crate::parse::{
    CertificateRequest, ClientHello, ContentType, Exchange, HandshakeType, Message,
    NewSessionTicket, ServerHello, ServerKeyExchange, certificates, extension,
};

/// How a suite protects records; `None` if that is not supported here.
fn cipher(suite: Suite) -> Option<Cipher> {
    use Algorithm::*;
    use MacHash::*;
    if !matches!(suite.key_exchange(), KeyExchange::Rsa | KeyExchange::Dhe | KeyExchange::Ecdhe)
        || suite.is_export()
    {
        return None;
    }
    let (_, cipher) = suite.name.split_once("_WITH_")?;
    Some(match cipher {
        "AES_128_GCM_SHA256" => Cipher::Aead(Aes128Gcm),
        "AES_256_GCM_SHA384" => Cipher::Aead(Aes256Gcm),
        "CHACHA20_POLY1305_SHA256" => Cipher::Aead(ChaCha20Poly1305),
        "AES_128_CCM" => Cipher::Aead(Ccm(16, 16)),
        "AES_256_CCM" => Cipher::Aead(Ccm(32, 16)),
        "AES_128_CCM_8" => Cipher::Aead(Ccm(16, 8)),
        "AES_256_CCM_8" => Cipher::Aead(Ccm(32, 8)),
        "AES_128_CBC_SHA" => Cipher::Cbc(16, Sha1),
        "AES_256_CBC_SHA" => Cipher::Cbc(32, Sha1),
        "AES_128_CBC_SHA256" => Cipher::Cbc(16, Sha256),
        "AES_256_CBC_SHA256" => Cipher::Cbc(32, Sha256),
        "AES_256_CBC_SHA384" => Cipher::Cbc(32, Sha384),
        "NULL_SHA" => Cipher::Null(Sha1),
        "NULL_SHA256" => Cipher::Null(Sha256),
        _ => return None,
    })
}

/// Whether this client can complete a handshake with the suite.
pub fn can_complete(suite: Suite) -> bool {
    cipher(suite).is_some()
}

/// A hello of this version with all suites that this client can complete a handshake with; those
/// with forward secrecy come first.
pub fn hello(prober: &Prober, version: Version) -> ClientHello {
    let mut usable: Vec<Suite> = suites()
        .iter()
        .copied()
        .filter(|suite| can_complete(*suite) && !suite.name.contains("NULL"))
        .filter(|suite| version == Version::Tls1_2 || !suite.needs_tls1_2())
        .collect();
    usable
        .sort_by_key(|suite| (suite.is_anonymous(), !suite.is_forward_secret(), !suite.is_aead()));
    // The signature schemes of TLS 1.2, without those that only later versions have.
    let schemes = prober.schemes(version);
    let hello = prober
        .hello(version)
        .suites(usable.iter().map(|suite| suite.code))
        .groups(CURVES)
        .with(extension::EC_POINT_FORMATS, vec![1, 0])
        .with(extension::EXTENDED_MASTER_SECRET, Vec::new())
        .with(extension::RENEGOTIATION_INFO, vec![0]);
    match version {
        Version::Tls1_2 => hello.signatures(&schemes),
        _ => hello,
    }
}

/// A session that can be resumed.
#[derive(Clone)]
pub struct Session {
    /// The ID from the server; empty if the server has no cache.
    pub id: Vec<u8>,
    /// The ticket from the server.
    pub ticket: Option<NewSessionTicket>,
    /// The suite, which must be offered again.
    pub suite: u16,
    master: Vec<u8>,
}

/// Deliberate errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Faults {
    /// How the padding of the record with our Finished is invalid, if the suite has padding.
    pub padding: Option<BadPadding>,
}

/// A handshake and what is known of it so far; readable after a failure too.
pub struct Client {
    /// The current protection of records.
    pub channel: Channel,
    /// The hello that was sent.
    pub hello: ClientHello,
    pub server: Option<ServerHello>,
    pub chain: Vec<Vec<u8>>,
    pub key_exchange: Option<ServerKeyExchange>,
    /// The server's request for a client certificate.
    pub request: Option<CertificateRequest>,
    /// Whether an old session was resumed.
    pub resumed: bool,
    /// Whether our flight was sent.
    pub finished: bool,
    /// The session to resume, if the handshake was completed.
    pub session: Option<Session>,
    transcript: Vec<u8>,
    ticket: Option<NewSessionTicket>,
    /// `verify_data` of the client's Finished, then of the server's.
    verify: Vec<u8>,
}

/// The server's reaction to a renegotiation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Renegotiation {
    /// It accepted, and sent messages up to its ServerHelloDone.
    Taken,
    /// It rejected it with an alert.
    Refused(String),
    /// It closed the connection.
    Closed(String),
    /// It sent nothing.
    Silent,
}

/// The values from which both sides derive keys.
struct Secrets {
    prf: Prf,
    cipher: Cipher,
    version: u16,
    master: Vec<u8>,
    client_random: [u8; 32],
    server_random: [u8; 32],
}

impl Secrets {
    /// Our random value, then the server's (RFC 5246 section 6.3).
    fn protections(&self) -> Result<(Protection, Protection), Failure> {
        let (mac, key, iv) = self.cipher.lengths(self.version);
        let seed = [self.server_random, self.client_random].concat();
        let block = self.prf.expand(&self.master, "key expansion", &seed, 2 * (mac + key + iv));
        let (macs, rest) = block.split_at(2 * mac);
        let (keys, ivs) = rest.split_at(2 * key);
        let (cipher, version) = (self.cipher, self.version);
        let ours = Protection::new(cipher, version, &macs[..mac], &keys[..key], &ivs[..iv])?;
        let theirs = Protection::new(cipher, version, &macs[mac..], &keys[key..], &ivs[iv..])?;
        Ok((ours, theirs))
    }

    fn finished(&self, label: &str, transcript: &[u8]) -> Vec<u8> {
        self.prf.expand(&self.master, label, &self.prf.digest(transcript), 12)
    }
}

impl Client {
    pub fn new(link: Link, hello: ClientHello) -> Self {
        Self {
            channel: Channel::new(link, hello.version),
            hello,
            server: None,
            chain: Vec::new(),
            key_exchange: None,
            request: None,
            resumed: false,
            finished: false,
            session: None,
            transcript: Vec::new(),
            ticket: None,
            verify: Vec::new(),
        }
    }

    /// The client for a connection that could not be opened.
    pub(in crate::active) fn unconnected(hello: ClientHello) -> Self {
        Self::new(Link::closed(), hello)
    }

    /// Completes the handshake. The given session is resumed if the hello offers it (see
    /// [`with_id`] and [`with_ticket`]) and the server accepts it.
    pub async fn handshake(
        &mut self,
        session: Option<&Session>,
        faults: Faults,
    ) -> Result<(), Failure> {
        let flight = self.greet().await?;
        let Some(server) = self.server.clone() else { return Err(malformed("no ServerHello")) };
        match flight {
            Flight::Full => self.full(&server, faults).await,
            Flight::Abbreviated => {
                let session = session.ok_or_else(|| malformed("a handshake without its middle"))?;
                self.abbreviated(&server, session).await
            }
        }
    }

    /// Sends the hello and reads the whole answer.
    pub async fn greet(&mut self) -> Result<Flight, Failure> {
        self.channel.link.send(&self.hello.record()).await?;
        self.transcript = self.hello.message();
        let server = self.server_hello().await?;
        self.server_flight(&server).await
    }

    async fn server_hello(&mut self) -> Result<ServerHello, Failure> {
        let message = self.channel.message().await?;
        if message.kind != HandshakeType::SERVER_HELLO {
            return Err(malformed("the first message is not a ServerHello"));
        }
        let server = ServerHello::parse(message.body())?;
        if !(0x0301..=0x0303).contains(&server.version) || server.version > self.hello.version {
            return Err(Failure::Unsupported(format!("version 0x{:04x}", server.version)));
        }
        if !self.hello.suites.contains(&server.suite) {
            return Err(malformed("the server chose a suite that was not offered"));
        }
        self.channel.link.saw(&self.hello, &server);
        self.channel.version = server.version;
        self.transcript.extend(&message.bytes);
        self.server = Some(server.clone());
        Ok(server)
    }

    /// Reads up to ServerHelloDone, or up to the early ChangeCipherSpec of an abbreviated
    /// handshake.
    async fn server_flight(&mut self, server: &ServerHello) -> Result<Flight, Failure> {
        loop {
            let message = match self.channel.handshake().await? {
                Incoming::Message(message) => message,
                Incoming::ChangeCipherSpec => return Ok(Flight::Abbreviated),
                _ => return Err(malformed("data arrived during the handshake")),
            };
            // HelloRequest is not part of the transcript (RFC 5246 section 7.4.1.1).
            if message.kind == HandshakeType::HELLO_REQUEST {
                continue;
            }
            self.transcript.extend(&message.bytes);
            let body = message.body();
            match message.kind {
                HandshakeType::CERTIFICATE => self.chain = certificates(body)?,
                HandshakeType::SERVER_KEY_EXCHANGE => {
                    let suite = Suite::from_code(server.suite);
                    let kx = suite.map(Suite::key_exchange);
                    // Other key exchanges, such as PSK and SRP, are not supported.
                    if !matches!(kx, Some(KeyExchange::Ecdhe | KeyExchange::Dhe)) {
                        continue;
                    }
                    let elliptic = kx == Some(KeyExchange::Ecdhe);
                    let signed = !suite.is_some_and(Suite::is_anonymous);
                    self.key_exchange =
                        Some(ServerKeyExchange::parse(body, elliptic, signed, server.version)?);
                }
                HandshakeType::CERTIFICATE_REQUEST => {
                    self.request = Some(CertificateRequest::parse(body, server.version)?);
                }
                HandshakeType::NEW_SESSION_TICKET => {
                    self.ticket = Some(NewSessionTicket::parse(body)?);
                }
                HandshakeType::SERVER_HELLO_DONE => return Ok(Flight::Full),
                _ => {}
            }
        }
    }

    /// Sends our flight, and reads the rest of the server's.
    async fn full(&mut self, server: &ServerHello, faults: Faults) -> Result<(), Failure> {
        let suite = Suite::from_code(server.suite)
            .ok_or_else(|| Failure::Unsupported(format!("the suite 0x{:04x}", server.suite)))?;
        let cipher = cipher(suite)
            .ok_or_else(|| Failure::Unsupported(format!("the suite {}", suite.name)))?;
        let (premaster, key_exchange) = self.exchange(suite)?;
        let mut flight = Vec::new();
        let identity = self.channel.link.identity.clone();
        // Before TLS 1.2 signatures have another form and no scheme.
        let signer = match &self.request {
            Some(request) if server.version == Version::Tls1_2.code() => {
                identity.as_ref().and_then(|identity| identity.signer(&request.schemes))
            }
            _ => None,
        };
        if self.request.is_some() {
            // Empty if we have no certificate that the server accepts (RFC 5246 section 7.4.6).
            let shown = identity.iter().filter(|_| signer.is_some());
            let mut list = Vec::<u8>::new();
            for certificate in shown.flat_map(|identity| identity.chain()) {
                list.extend(&(certificate.len() as u32).to_be_bytes()[1..]);
                list.extend(&certificate[..]);
            }
            let mut body = (list.len() as u32).to_be_bytes()[1..].to_vec();
            body.extend(list);
            flight.extend(Message::new(HandshakeType::CERTIFICATE, &body).bytes);
        }
        let message = Message::new(HandshakeType::CLIENT_KEY_EXCHANGE, &key_exchange);
        flight.extend(message.bytes);
        self.transcript.extend(&flight);

        let prf = prf(suite, server.version);
        let master = match server.extension(extension::EXTENDED_MASTER_SECRET) {
            // RFC 7627 section 4.
            Some(_) => {
                let hash = prf.digest(&self.transcript);
                prf.expand(&premaster, "extended master secret", &hash, 48)
            }
            None => {
                let seed = [self.hello.random, server.random].concat();
                prf.expand(&premaster, "master secret", &seed, 48)
            }
        };
        if let Some(signer) = signer {
            // RFC 5246 section 7.4.8: all messages so far.
            let verify = certificate_verify(&*signer, &self.transcript)?;
            self.transcript.extend(&verify);
            flight.extend(verify);
        }
        let secrets = Secrets {
            prf,
            cipher,
            version: server.version,
            master,
            client_random: self.hello.random,
            server_random: server.random,
        };
        let (ours, theirs) = secrets.protections()?;
        let mut out = self.channel.seal(ContentType::Handshake, &flight, None)?;
        out.extend(self.client_finish(&secrets, ours, faults)?);
        self.channel.link.send(&out).await?;
        self.finished = true;
        self.server_finish(&secrets, theirs, false).await?;
        self.session = Some(self.session(server, secrets.master));
        Ok(())
    }

    /// Abbreviated: the server's Finished comes first (RFC 5246 section 7.3, figure 2).
    async fn abbreviated(&mut self, server: &ServerHello, old: &Session) -> Result<(), Failure> {
        let suite = Suite::from_code(server.suite).filter(|suite| suite.code == old.suite);
        let suite = suite.ok_or_else(|| malformed("a session resumed with another suite"))?;
        let cipher = cipher(suite)
            .ok_or_else(|| Failure::Unsupported(format!("the suite {}", suite.name)))?;
        let secrets = Secrets {
            prf: prf(suite, server.version),
            cipher,
            version: server.version,
            master: old.master.clone(),
            client_random: self.hello.random,
            server_random: server.random,
        };
        let (ours, theirs) = secrets.protections()?;
        self.server_finish(&secrets, theirs, true).await?;
        self.resumed = true;
        let out = self.client_finish(&secrets, ours, Faults::default())?;
        self.channel.link.send(&out).await?;
        self.finished = true;
        self.session = Some(self.session(server, secrets.master));
        Ok(())
    }

    /// ChangeCipherSpec and Finished.
    fn client_finish(
        &mut self,
        secrets: &Secrets,
        ours: Protection,
        faults: Faults,
    ) -> Result<Vec<u8>, Failure> {
        let mut out = self.channel.seal(ContentType::ChangeCipherSpec, &[1], None)?;
        self.channel.writing = ours;
        let verify = secrets.finished("client finished", &self.transcript);
        let message = Message::new(HandshakeType::FINISHED, &verify).bytes;
        self.transcript.extend(&message);
        self.verify.splice(..self.verify.len().min(12), verify);
        out.extend(self.channel.seal(ContentType::Handshake, &message, faults.padding)?);
        Ok(out)
    }

    /// Reads ChangeCipherSpec, unless it was read already, and Finished.
    async fn server_finish(
        &mut self,
        secrets: &Secrets,
        theirs: Protection,
        changed: bool,
    ) -> Result<(), Failure> {
        let mut theirs = Some(theirs);
        if changed && let Some(theirs) = theirs.take() {
            self.channel.reading = theirs;
        }
        loop {
            match self.channel.handshake().await? {
                Incoming::ChangeCipherSpec => {
                    let theirs = theirs.take().ok_or_else(|| malformed("two ChangeCipherSpecs"))?;
                    self.channel.reading = theirs;
                }
                Incoming::Message(message) if message.kind == HandshakeType::FINISHED => {
                    if theirs.is_some() {
                        return Err(malformed("a Finished that is not encrypted"));
                    }
                    let expected = secrets.finished("server finished", &self.transcript);
                    if message.body() != expected {
                        return Err(malformed("a Finished that does not fit the handshake"));
                    }
                    self.transcript.extend(&message.bytes);
                    self.verify.truncate(12);
                    self.verify.extend(expected);
                    return Ok(());
                }
                Incoming::Message(message) => {
                    if message.kind == HandshakeType::NEW_SESSION_TICKET {
                        self.ticket = Some(NewSessionTicket::parse(message.body())?);
                    }
                    self.transcript.extend(&message.bytes);
                }
                _ => return Err(malformed("data arrived during the handshake")),
            }
        }
    }

    fn session(&self, server: &ServerHello, master: Vec<u8>) -> Session {
        Session {
            id: server.session_id.clone(),
            ticket: self.ticket.clone().filter(|ticket| !ticket.ticket.is_empty()),
            suite: server.suite,
            master,
        }
    }

    /// The premaster secret, and the body of our ClientKeyExchange.
    fn exchange(&self, suite: Suite) -> Result<(Vec<u8>, Vec<u8>), Failure> {
        let exchange = self.key_exchange.as_ref().map(|kx| &kx.exchange);
        match (suite.key_exchange(), exchange) {
            (KeyExchange::Rsa, _) => {
                let leaf = self
                    .chain
                    .first()
                    .ok_or_else(|| malformed("the server sent no certificate"))?;
                let key = RsaKey::of_certificate(leaf)?;
                let mut premaster = random::<48>();
                premaster[..2].copy_from_slice(&self.hello.version.to_be_bytes());
                let block = key.encrypt(&key.pad(&premaster)?)?;
                let mut body = (block.len() as u16).to_be_bytes().to_vec();
                body.extend(block);
                Ok((premaster.to_vec(), body))
            }
            (KeyExchange::Ecdhe, Some(Exchange::Ecdhe { group, point })) => {
                let share = KeyShare::generate(*group)?
                    .ok_or_else(|| Failure::Unsupported(format!("the curve 0x{group:04x}")))?;
                let mut body = vec![share.public().len() as u8];
                body.extend(share.public());
                Ok((share.secret(point)?, body))
            }
            (KeyExchange::Dhe, Some(Exchange::Dhe { p, g, y })) => {
                let (share, secret) = dhe(p, g, y)?;
                let mut body = (share.len() as u16).to_be_bytes().to_vec();
                body.extend(share);
                Ok((secret, body))
            }
            (_, Some(Exchange::ExplicitCurve)) => {
                Err(Failure::Unsupported("a curve without a name".into()))
            }
            _ => Err(malformed("the server sent no key exchange")),
        }
    }

    /// Starts a renegotiation. `secure` says whether it refers to the current handshake (RFC 5746
    /// section 3.5), which is required if the server supports that.
    pub async fn renegotiate(&mut self, secure: bool) -> Result<Renegotiation, Failure> {
        let mut hello = self.hello.clone();
        hello.random = random();
        hello.session_id = Vec::new();
        hello = hello.without(extension::RENEGOTIATION_INFO).without(extension::SESSION_TICKET);
        hello.suites.retain(|suite| *suite != 0x00ff);
        if secure {
            let verify = &self.verify[..self.verify.len().min(12)];
            let body = [&[verify.len() as u8], verify].concat();
            hello = hello.with(extension::RENEGOTIATION_INFO, body);
        }
        self.channel.send(ContentType::Handshake, &hello.message()).await?;
        let mut answered = false;
        loop {
            use crate::active::link::{Trouble, alert_name};
            match self.channel.next().await {
                Ok(Incoming::Message(message)) => match message.kind {
                    HandshakeType::SERVER_HELLO => answered = true,
                    HandshakeType::SERVER_HELLO_DONE if answered => {
                        return Ok(Renegotiation::Taken);
                    }
                    _ => {}
                },
                // no_renegotiation is a warning.
                Ok(Incoming::Alert(level, description)) => {
                    return Ok(Renegotiation::Refused(alert_name(level, description)));
                }
                Ok(_) => {}
                Err(Failure::Trouble(trouble @ (Trouble::Closed | Trouble::Reset))) => {
                    return Ok(Renegotiation::Closed(trouble.to_string()));
                }
                Err(Failure::Trouble(Trouble::TimedOut(_))) => return Ok(Renegotiation::Silent),
                Err(failure) => return Err(failure),
            }
        }
    }
}

/// How far the server continued on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flight {
    /// To its ServerHelloDone: the client sends next.
    Full,
    /// To its ChangeCipherSpec: a session is resumed.
    Abbreviated,
}

fn prf(suite: Suite, version: u16) -> Prf {
    match version {
        0x0303 if suite.name.ends_with("SHA384") => Prf::Of(Hash::Sha384),
        0x0303 => Prf::Of(Hash::Sha256),
        _ => Prf::Md5Sha1,
    }
}

/// This hello, with a session offered by its ID.
pub fn with_id(hello: ClientHello, session: &Session) -> ClientHello {
    let mut hello = hello.without(extension::SESSION_TICKET).suites([session.suite]);
    hello.session_id = session.id.clone();
    hello
}

/// This hello, with a session offered by its ticket. We choose the ID, and a server that resumes
/// the session echoes it (RFC 5077 section 3.4).
pub fn with_ticket(hello: ClientHello, session: &Session, id: &[u8]) -> ClientHello {
    let ticket = session.ticket.as_ref().map(|ticket| ticket.ticket.clone()).unwrap_or_default();
    let mut hello = hello.with(extension::SESSION_TICKET, ticket).suites([session.suite]);
    hello.session_id = id.to_vec();
    hello
}

/// A server's RSA key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RsaKey {
    /// Without leading zeros.
    pub n: Vec<u8>,
    /// Without leading zeros.
    pub e: Vec<u8>,
}

impl RsaKey {
    /// The key in a certificate.
    pub fn of_certificate(der: &[u8]) -> Result<Self, Failure> {
        let none = || Failure::Unsupported("a certificate without an RSA key".into());
        let certificate = x509_cert::Certificate::from_der(der).map_err(|_| none())?;
        let info = certificate.tbs_certificate().subject_public_key_info();
        let key = info.subject_public_key.as_bytes().ok_or_else(none)?;
        Self::of_pkcs1(key).ok_or_else(none)
    }

    /// RFC 8017 appendix A.1.1.
    fn of_pkcs1(key: &[u8]) -> Option<Self> {
        let mut reader = SliceReader::new(key).ok()?;
        let (n, e) = reader
            .sequence(|reader| {
                Ok::<_, x509_cert::der::Error>((
                    UintRef::decode(reader)?.as_bytes().to_vec(),
                    UintRef::decode(reader)?.as_bytes().to_vec(),
                ))
            })
            .ok()?;
        // Public exponents are small in practice; a large one would only cost time.
        (n.len() >= 64 && n.len() <= 1024 && e.len() <= 8).then_some(Self { n, e })
    }

    /// Pads a secret by PKCS #1 version 1.5: 00 02, bytes other than 0, 00, the secret.
    pub fn pad(&self, secret: &[u8]) -> Result<Vec<u8>, Failure> {
        let n = self.n.len().checked_sub(secret.len() + 3).filter(|n| *n >= 8);
        let n = n.ok_or_else(|| Failure::Unsupported("such a short RSA key".into()))?;
        let mut block = vec![0, 2];
        while block.len() < n + 2 {
            block.extend(random::<32>().into_iter().filter(|b| *b != 0));
        }
        block.truncate(n + 2);
        block.push(0);
        block.extend(secret);
        Ok(block)
    }

    /// Encrypts the block, regardless of its content.
    pub fn encrypt(&self, block: &[u8]) -> Result<Vec<u8>, Failure> {
        power(block, &self.e, &self.n)
    }
}

#[cfg(test)]
pub(in crate::active) mod mock;
