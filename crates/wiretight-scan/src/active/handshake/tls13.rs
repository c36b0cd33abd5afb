//! A client of TLS 1.3 (RFC 8446) that completes the handshake, to read its encrypted part.

use std::time::Instant;

use super::aead::{Algorithm, NONCE};
use super::channel::{Channel, Incoming};
use super::keys::Hash;
use super::protection::Protection;
use super::shares::{GROUPS, KeyShare};
use super::{Failure, certificate_verify, malformed};
use crate::active::link::Link;
use crate::names::Version;
use crate::parse::{
    CertificateEntry, CertificateRequest, ClientHello, ContentType, HandshakeType, Message,
    NewSessionTicket, Reader, ServerHello, certificates_tls1_3, extension, extensions,
};

/// The suites with which this client can complete a handshake.
pub const SUITES: &[u16] = &[0x1301, 0x1302, 0x1303, 0x1304, 0x1305];

fn suite(code: u16) -> Option<(Algorithm, Hash)> {
    match code {
        0x1301 => Some((Algorithm::Aes128Gcm, Hash::Sha256)),
        0x1302 => Some((Algorithm::Aes256Gcm, Hash::Sha384)),
        0x1303 => Some((Algorithm::ChaCha20Poly1305, Hash::Sha256)),
        0x1304 => Some((Algorithm::Ccm(16, 16), Hash::Sha256)),
        0x1305 => Some((Algorithm::Ccm(16, 8), Hash::Sha256)),
        _ => None,
    }
}

/// A session that can be resumed.
#[derive(Clone)]
pub struct Ticket {
    /// As received from the server.
    pub ticket: NewSessionTicket,
    suite: u16,
    psk: Vec<u8>,
    received: Instant,
}

/// How to resume a session.
pub struct Resume<'a> {
    /// The session to resume.
    pub ticket: &'a Ticket,
    /// With a new key exchange (`psk_dhe_ke`), or, if false, only without one (`psk_ke`).
    pub dhe: bool,
    /// Whether to request 0-RTT; no data is sent in it.
    pub early: bool,
}

/// A handshake and what is known of it so far; readable after a failure too.
pub struct Client {
    /// The current protection of records.
    pub channel: Channel,
    /// The hello that the server answered with a ServerHello.
    pub hello: ClientHello,
    /// The group that a HelloRetryRequest requested.
    pub retry: Option<u16>,
    pub server: Option<ServerHello>,
    /// EncryptedExtensions.
    pub extensions: Vec<(u16, Vec<u8>)>,
    /// The server's request for a client certificate.
    pub request: Option<CertificateRequest>,
    pub chain: Vec<CertificateEntry>,
    /// The compression of the chain, if any. A compressed chain is not read.
    pub compressed: Option<u16>,
    /// The server's signature scheme.
    pub scheme: Option<u16>,
    /// Whether the client's last message was sent.
    pub finished: bool,
    transcript: Vec<u8>,
    resumption: Vec<u8>,
}

impl Client {
    /// Limits the groups of the hello to those that this client can compute.
    pub fn new(link: Link, hello: ClientHello) -> Self {
        Self {
            channel: Channel::new(link, Version::Tls1_2.code()),
            hello,
            retry: None,
            server: None,
            extensions: Vec::new(),
            request: None,
            chain: Vec::new(),
            compressed: None,
            scheme: None,
            finished: false,
            transcript: Vec::new(),
            resumption: Vec::new(),
        }
    }

    /// Completes the handshake, up to the client's Finished.
    pub async fn handshake(&mut self, resume: Option<Resume<'_>>) -> Result<(), Failure> {
        let (mut share, server) = self.hellos(resume.as_ref()).await?;
        let (aead, hash) = suite(server.suite)
            .ok_or_else(|| Failure::Unsupported(format!("the suite 0x{:04x}", server.suite)))?;
        let early = match self.resumed() {
            true => resume.as_ref().map(|resume| resume.ticket.psk.clone()),
            false => None,
        };
        let early = hash.extract(&[], &early.unwrap_or_else(|| vec![0; hash.len()]));

        let exchanged = match server.key_share() {
            Some((group, public)) => {
                let share = share.take().filter(|(ours, _)| *ours == group);
                let (_, share) = share.ok_or_else(|| malformed("a share of another group"))?;
                share.secret(public)?
            }
            // psk_ke: no key exchange.
            None if self.resumed() => vec![0; hash.len()],
            None => return Err(malformed("a ServerHello without a key share")),
        };
        let salt = hash.derive(&early, "derived", &[]);
        let secret = hash.extract(&salt, &exchanged);
        let client = hash.derive(&secret, "c hs traffic", &self.transcript);
        let serving = hash.derive(&secret, "s hs traffic", &self.transcript);
        self.channel.reading = protection(aead, hash, &serving)?;
        self.server_flight(hash, &serving).await?;

        let salt = hash.derive(&secret, "derived", &[]);
        let main = hash.extract(&salt, &vec![0; hash.len()]);
        let client_data = hash.derive(&main, "c ap traffic", &self.transcript);
        let server_data = hash.derive(&main, "s ap traffic", &self.transcript);
        self.channel.reading = protection(aead, hash, &server_data)?;

        // Middleboxes expect a ChangeCipherSpec (RFC 8446 appendix D.4); after a HelloRetryRequest it was sent
        // already.
        if !self.hello.session_id.is_empty() && self.retry.is_none() {
            self.channel.send(ContentType::ChangeCipherSpec, &[1]).await?;
        }
        if self.takes_early_data() {
            let hello = self.hello.message();
            let keys = hash.derive(&early, "c e traffic", &hello);
            self.channel.writing = protection(aead, hash, &keys)?;
            // EndOfEarlyData.
            let message = Message::new(HandshakeType(5), &[]).bytes;
            self.channel.send(ContentType::Handshake, &message).await?;
            self.transcript.extend(message);
        }
        self.channel.writing = protection(aead, hash, &client)?;
        let mut flight = Vec::new();
        if let Some(request) = &self.request {
            flight = self.certificate(request, hash)?;
            self.transcript.extend(&flight);
        }
        let verify = finished(hash, &client, &self.transcript);
        let message = Message::new(HandshakeType::FINISHED, &verify).bytes;
        self.transcript.extend(&message);
        flight.extend(message);
        self.channel.send(ContentType::Handshake, &flight).await?;
        self.finished = true;
        self.channel.writing = protection(aead, hash, &client_data)?;
        self.resumption = hash.derive(&main, "res master", &self.transcript);
        Ok(())
    }

    /// Our Certificate, empty if the server accepts none of ours (RFC 8446 section 4.4.2), and our CertificateVerify
    /// (section 4.4.3).
    fn certificate(&self, request: &CertificateRequest, hash: Hash) -> Result<Vec<u8>, Failure> {
        // PKCS #1 v1.5 is for certificates only in TLS 1.3, not for handshakes.
        let schemes: Vec<u16> =
            request.schemes.iter().copied().filter(|code| code & 0xff != 1).collect();
        let identity = self.channel.link.identity.as_deref();
        let signer = identity.and_then(|identity| Some((identity, identity.signer(&schemes)?)));
        let mut list = Vec::new();
        for certificate in signer.iter().flat_map(|(identity, _)| identity.chain()) {
            list.extend(&(certificate.len() as u32).to_be_bytes()[1..]);
            list.extend(&certificate[..]);
            list.extend([0, 0]); // no extensions
        }
        let mut body = vec![request.context.len() as u8];
        body.extend(&request.context);
        body.extend(&(list.len() as u32).to_be_bytes()[1..]);
        body.extend(list);
        let mut flight = Message::new(HandshakeType::CERTIFICATE, &body).bytes;
        if let Some((_, signer)) = signer {
            let mut content = vec![b' '; 64];
            content.extend(b"TLS 1.3, client CertificateVerify\0");
            content.extend(hash.digest(&[&self.transcript[..], &flight].concat()));
            flight.extend(certificate_verify(&*signer, &content)?);
        }
        Ok(flight)
    }

    /// Sends the hello, sends it again if the server requests another one, and reads the ServerHello.
    async fn hellos(
        &mut self,
        resume: Option<&Resume<'_>>,
    ) -> Result<(Option<(u16, KeyShare)>, ServerHello), Failure> {
        let offered = self.hello.extensions.iter().find(|(k, _)| *k == extension::SUPPORTED_GROUPS);
        let mut groups = match offered {
            Some((_, body)) => {
                let mut reader = Reader::new(body);
                u16s(reader.vec16().unwrap_or_default())
            }
            None => GROUPS.to_vec(),
        };
        groups.retain(|group| GROUPS.contains(group));
        let first = *groups
            .first()
            .ok_or_else(|| Failure::Unsupported("any of the groups to offer".into()))?;
        let mut hello = self.hello.clone().groups(&groups);
        if let Some(resume) = resume {
            hello = hello.with(extension::PSK_KEY_EXCHANGE_MODES, vec![1, resume.dhe.into()]);
            if resume.early {
                hello = hello.with(extension::EARLY_DATA, Vec::new());
            }
        }
        let mut share = self.share(first)?;
        hello = hello.key_shares(&[(share.0, share.1.public())]);
        if let Some(resume) = resume {
            hello = with_psk(hello, resume.ticket, &[])?;
        }
        self.channel.link.send(&hello.record()).await?;
        self.transcript = hello.message();
        self.hello = hello;

        let (mut message, mut server) = self.server_hello().await?;
        if server.is_retry() {
            let (_, hash) = suite(server.suite)
                .ok_or_else(|| Failure::Unsupported(format!("the suite 0x{:04x}", server.suite)))?;
            // The transcript contains a hash in place of the first hello (RFC 8446 section 4.4.1).
            let digest = hash.digest(&self.transcript);
            self.transcript = Message::new(HandshakeType(254), &digest).bytes;
            self.transcript.extend(&message.bytes);
            let mut hello = self.hello.clone().without(extension::EARLY_DATA);
            if let Some((group, _)) = server.key_share() {
                if !groups.contains(&group) {
                    return Err(malformed("a group that was not offered is asked for"));
                }
                share = self.share(group)?;
                self.retry = Some(group);
                hello = hello.key_shares(&[(share.0, share.1.public())]);
            }
            if let Some(cookie) = server.extension(extension::COOKIE) {
                hello = hello.with(extension::COOKIE, cookie.to_vec());
            }
            if let Some(resume) = resume {
                hello = with_psk(hello, resume.ticket, &self.transcript)?;
            }
            self.channel.send(ContentType::ChangeCipherSpec, &[1]).await?;
            self.channel.send(ContentType::Handshake, &hello.message()).await?;
            self.transcript.extend(hello.message());
            self.hello = hello;
            (message, server) = self.server_hello().await?;
            if server.is_retry() {
                return Err(malformed("a second HelloRetryRequest"));
            }
        }
        self.transcript.extend(&message.bytes);
        self.server = Some(server.clone());
        Ok((Some(share), server))
    }

    fn share(&self, group: u16) -> Result<(u16, KeyShare), Failure> {
        match KeyShare::generate(group)? {
            Some(share) => Ok((group, share)),
            None => Err(Failure::Unsupported(format!("the group 0x{group:04x}"))),
        }
    }

    async fn server_hello(&mut self) -> Result<(Message, ServerHello), Failure> {
        let message = self.channel.message().await?;
        if message.kind != HandshakeType::SERVER_HELLO {
            return Err(malformed("the first message is not a ServerHello"));
        }
        let hello = ServerHello::parse(message.body())?;
        if hello.version != Version::Tls1_3.code() {
            return Err(malformed("another version than TLS 1.3 was chosen"));
        }
        if !self.hello.suites.contains(&hello.suite) {
            return Err(malformed("the server chose a suite that was not offered"));
        }
        self.channel.link.saw(&self.hello, &hello);
        Ok((message, hello))
    }

    /// Reads from EncryptedExtensions to Finished.
    async fn server_flight(&mut self, hash: Hash, secret: &[u8]) -> Result<(), Failure> {
        loop {
            let message = self.channel.message().await?;
            let body = message.body();
            match message.kind {
                HandshakeType::ENCRYPTED_EXTENSIONS => {
                    self.extensions = extensions(Reader::new(body).vec16()?)?;
                }
                HandshakeType::CERTIFICATE_REQUEST => {
                    self.request = Some(CertificateRequest::parse_tls1_3(body)?);
                }
                HandshakeType::CERTIFICATE => self.chain = certificates_tls1_3(body)?,
                HandshakeType::COMPRESSED_CERTIFICATE => {
                    self.compressed = Some(Reader::new(body).u16()?);
                }
                HandshakeType::CERTIFICATE_VERIFY => {
                    self.scheme = Some(Reader::new(body).u16()?);
                }
                HandshakeType::FINISHED => {
                    if body != finished(hash, secret, &self.transcript) {
                        return Err(malformed("a Finished that does not fit the handshake"));
                    }
                    self.transcript.extend(&message.bytes);
                    return Ok(());
                }
                _ => return Err(malformed("an unexpected message in the server's flight")),
            }
            self.transcript.extend(&message.bytes);
        }
    }

    /// Whether the server resumes the offered session.
    pub fn resumed(&self) -> bool {
        let server = self.server.as_ref();
        server.is_some_and(|hello| hello.extension(extension::PRE_SHARED_KEY).is_some())
    }

    /// Whether the server accepts 0-RTT data.
    pub fn takes_early_data(&self) -> bool {
        self.extensions.iter().any(|(kind, _)| *kind == extension::EARLY_DATA)
    }

    /// The body of an encrypted extension.
    pub fn extension(&self, kind: u16) -> Option<&[u8]> {
        self.extensions.iter().find(|(k, _)| *k == kind).map(|(_, body)| body.as_slice())
    }

    /// Reads messages after the handshake until the server has sent a ticket.
    pub async fn ticket(&mut self) -> Result<Ticket, Failure> {
        loop {
            if let Incoming::Message(message) = self.channel.handshake().await?
                && let Some(ticket) = self.read_ticket(&message)?
            {
                return Ok(ticket);
            }
        }
    }

    /// The ticket in a message, if it has one.
    pub fn read_ticket(&self, message: &Message) -> Result<Option<Ticket>, Failure> {
        if message.kind != HandshakeType::NEW_SESSION_TICKET {
            return Ok(None);
        }
        let ticket = NewSessionTicket::parse_tls1_3(message.body())?;
        let Some(code) = self.server.as_ref().map(|hello| hello.suite) else { return Ok(None) };
        let Some((_, hash)) = suite(code) else { return Ok(None) };
        let psk = hash.expand_label(&self.resumption, "resumption", &ticket.nonce, hash.len());
        Ok(Some(Ticket { ticket, suite: code, psk, received: Instant::now() }))
    }
}

fn protection(aead: Algorithm, hash: Hash, secret: &[u8]) -> Result<Protection, Failure> {
    let key = hash.expand_label(secret, "key", &[], aead.key_len());
    let iv = hash.expand_label(secret, "iv", &[], NONCE);
    Protection::tls1_3(aead, &key, &iv)
}

/// RFC 8446 section 4.4.4.
fn finished(hash: Hash, secret: &[u8], transcript: &[u8]) -> Vec<u8> {
    let key = hash.expand_label(secret, "finished", &[], hash.len());
    hash.mac(&key, &hash.digest(transcript))
}

/// Adds a session to resume as the last extension, and its binder (RFC 8446 section 4.2.11). `before` is the transcript
/// before this hello.
fn with_psk(hello: ClientHello, ticket: &Ticket, before: &[u8]) -> Result<ClientHello, Failure> {
    let (_, hash) =
        suite(ticket.suite).ok_or_else(|| malformed("the ticket's cipher suite is unknown"))?;
    let age = u32::try_from(ticket.received.elapsed().as_millis()).unwrap_or(u32::MAX);
    let age = age.wrapping_add(ticket.ticket.age_add);
    let identity = &ticket.ticket.ticket;
    if identity.len() > 1 << 15 {
        return Err(Failure::Unsupported("a ticket of more than 32 KiB".into()));
    }
    let mut body = (identity.len() as u16 + 6).to_be_bytes().to_vec();
    body.extend((identity.len() as u16).to_be_bytes());
    body.extend(identity);
    body.extend(age.to_be_bytes());
    let binders = hash.len() + 3;
    body.extend((hash.len() as u16 + 1).to_be_bytes());
    body.push(hash.len() as u8);
    body.extend(vec![0; hash.len()]);

    let mut hello = hello.without(extension::PRE_SHARED_KEY);
    hello.extensions.push((extension::PRE_SHARED_KEY, body));
    let mut truncated = hello.message();
    truncated.truncate(truncated.len() - binders);
    let early = hash.extract(&[], &ticket.psk);
    let key = hash.derive(&early, "res binder", &[]);
    let binder = finished(hash, &key, &[before, &truncated].concat());
    if let Some((_, body)) = hello.extensions.last_mut() {
        let at = body.len() - binder.len();
        body[at..].copy_from_slice(&binder);
    }
    Ok(hello)
}

fn u16s(bytes: &[u8]) -> Vec<u16> {
    bytes.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect()
}
