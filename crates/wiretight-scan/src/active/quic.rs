//! QUIC (RFC 9000): whether version 1 is supported, and which groups its TLS accepts.
//!
//! Hellos and their answers are in Initial packets; no connection is ever completed. A hello without key
//! shares makes the server request a group, and needs no keys.
//!
//! Packets can be lost, and many firewalls drop all UDP, so silence means nothing here. A "no" requires an
//! alert, other versions, or a closed port.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep, timeout_at};

use super::handshake::share_of;
use super::link::printable;
use super::pace::Pace;
use crate::facts::{Answer, Facts, Value};
use crate::names::{self, GROUPS, Group, GroupKind, SCHEMES, Suite, Version};
use crate::parse::quic::{
    Crypto, Frame, Header, InitialKeys, MIN_DATAGRAM, Packet, frames, initial, packet,
    transport_parameters,
};
use crate::parse::{ClientHello, HandshakeType, Handshakes, Malformed, ServerHello, extension};

/// The maximum number of datagrams to read for one probe. An answer takes one to four, and again for each
/// retransmission.
const MAX_DATAGRAMS: usize = 64;
/// The maximum length of a Retry token: a hello must fit into the same datagram.
const MAX_TOKEN: usize = 512;
/// The maximum number of probes for groups. Servers accept three to ten.
const MAX_GROUPS: usize = 16;
/// The pause between two probes.
const PAUSE: Duration = Duration::from_millis(20);

/// HTTP/3, and other protocols over QUIC: DNS (RFC 9250), SMB, interoperability tests.
const HTTP3: &[&str] = &["h3"];
const OTHERS: &[&str] = &["doq", "smb", "hq-interop"];

/// The TLS 1.3 suites that QUIC allows: all but the one with an 8-byte tag (RFC 9001 section 5.3).
const SUITES: [u16; 4] = [0x1301, 0x1302, 0x1303, 0x1304];

/// The groups for which the scanner can create key shares: x25519, secp256r1, secp384r1.
const SHARED: [u16; 3] = [0x001d, 0x0017, 0x0018];

/// Whether this UDP port supports QUIC, and which groups it accepts: `protocol.quic`, `groups.quic`.
///
/// No probe takes longer than `timeout`.
pub async fn quic(
    address: SocketAddr,
    name: Option<&str>,
    timeout: Duration,
    pace: &Pace,
) -> Facts {
    let asker = Asker { address, name, timeout, pace };
    let mut facts = Facts::default();
    let (answer, evidence, answered) = asker.spoken().await;
    let mut versions = None;
    if let (Answer::Yes, Some(hello)) = (answer, &answered) {
        versions = asker.versions().await;
        let (answer, taken, evidence) = match hello.names_groups {
            true => asker.named_groups(hello.alpn).await,
            false => asker.shared_groups(hello.alpn).await,
        };
        let taken = taken.into_iter().filter_map(Group::from_code).map(|g| g.name.to_owned());
        facts.set("groups.quic", answer, Some(Value::List(taken.collect())), evidence);
    }
    let evidence = match &versions {
        Some(versions) => format!("{evidence}; Version Negotiation lists {}", list(versions)),
        None => evidence,
    };
    let versions = versions.map(|v| Value::List(v.iter().map(|v| version(*v)).collect()));
    facts.set("protocol.quic", answer, versions, evidence);
    facts
}

/// The suites that QUIC accepts, in the order in which the server chose them, and how it rejected the
/// others, or why that is not known.
pub(super) async fn quic_suites(
    address: SocketAddr,
    name: Option<&str>,
    timeout: Duration,
    pace: &Pace,
) -> (Vec<String>, Result<String, String>) {
    let asker = Asker { address, name, timeout, pace };
    let (mut left, mut taken) = (SUITES.to_vec(), Vec::new());
    let Answered { alpn, names_groups } = match asker.spoken().await {
        (_, _, Some(answered)) => answered,
        (_, why, None) => return (taken, Err(why)),
    };
    while !left.is_empty() {
        let hello = asker.hello(alpn, &groups()).suites(left.iter().copied());
        let hello = match names_groups {
            true => hello.key_shares(&[]),
            false => with_shares(hello, &SHARED),
        };
        match asker.ask(&hello).await {
            Reply::Hello(hello) => {
                left.retain(|suite| *suite != hello.suite);
                let name = Suite::from_code(hello.suite).map_or("an unknown suite", |s| s.name);
                taken.push(name.to_owned());
            }
            Reply::Alert(code) if is_refusal(code) => {
                return (taken, Ok(format!("alert {} ({code})", names::alert(code))));
            }
            other => return (taken, Err(evidence(&other))),
        }
    }
    (taken, Ok("there are no others".to_owned()))
}

/// The reply to a hello.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Reply {
    /// A ServerHello or HelloRetryRequest, in an authentic Initial.
    Hello(Box<ServerHello>),
    Alert(u8),
    /// The server closed the connection for another reason.
    Closed(u64, String),
    /// The server does not support this version, but these.
    Versions(Vec<u32>),
    /// Nothing listens (ICMP port unreachable).
    Unreachable,
    /// No answer; why.
    Trouble(String),
}

/// The kind of hello that the server answered: its application protocols, and whether the server requests
/// groups by HelloRetryRequest.
struct Answered {
    alpn: &'static [&'static str],
    names_groups: bool,
}

struct Asker<'a> {
    address: SocketAddr,
    name: Option<&'a str>,
    timeout: Duration,
    pace: &'a Pace,
}

impl Asker<'_> {
    async fn spoken(&self) -> (Answer, String, Option<Answered>) {
        let groups = groups();
        // First without key shares: this costs the server least, and works with any group. Some servers send
        // no HelloRetryRequest, so then try with key shares.
        let ways = [(HTTP3, false), (HTTP3, true), (OTHERS, true)];
        let mut refusal = String::new();
        for (alpn, shared) in ways {
            let hello = self.hello(alpn, &groups);
            let hello = match shared {
                true => with_shares(hello, &SHARED),
                false => hello.key_shares(&[]),
            };
            match self.ask(&hello).await {
                Reply::Hello(hello) => {
                    let names_groups = hello.is_retry();
                    return (
                        Answer::Yes,
                        format!(
                            "{} in an authentic Initial of version 1, with {} offered",
                            if names_groups { "HelloRetryRequest" } else { "ServerHello" },
                            alpn.join(", ")
                        ),
                        Some(Answered { alpn, names_groups }),
                    );
                }
                Reply::Alert(code) if is_refusal(code) => {
                    let alert = names::alert(code);
                    refusal = format!("CONNECTION_CLOSE with alert {alert} ({code})");
                    // Try another application protocol only if this one was the reason.
                    if shared && code != 120 {
                        break;
                    }
                }
                reply @ (Reply::Unreachable | Reply::Versions(_)) => {
                    // Repeat it: ICMP may be about something else, and neither reply is authenticated.
                    let again = self.ask(&hello).await;
                    let what = evidence(&reply);
                    return match again == reply {
                        true => (Answer::No, format!("{what}, twice"), None),
                        false => {
                            let then = evidence(&again);
                            (Answer::Inconclusive, format!("{what}, and then: {then}"), None)
                        }
                    };
                }
                other => return (Answer::Inconclusive, evidence(&other), None),
            }
        }
        (Answer::No, refusal, None)
    }

    /// The groups that a server requests, one after the other; each is removed from the next offer.
    async fn named_groups(&self, alpn: &[&str]) -> (Answer, Vec<u16>, String) {
        let (mut left, mut taken) = (groups(), Vec::new());
        while taken.len() < MAX_GROUPS {
            let hello = self.hello(alpn, &left).key_shares(&[]);
            match self.ask(&hello).await {
                Reply::Hello(hello) => match hello.key_share() {
                    Some((group, _)) if left.contains(&group) => {
                        left.retain(|g| *g != group);
                        taken.push(group);
                    }
                    _ => {
                        let why = "the server requested a group that was not offered".into();
                        return (Answer::Inconclusive, taken, why);
                    }
                },
                Reply::Alert(code) if is_refusal(code) => {
                    let alert = names::alert(code);
                    let how = format!("by HelloRetryRequest, up to alert {alert} ({code})");
                    return (Answer::Yes, taken, how);
                }
                other => return (Answer::Inconclusive, taken, evidence(&other)),
            }
        }
        (Answer::Inconclusive, taken, "there are more than were tested".into())
    }

    /// The groups of a server without HelloRetryRequest, among those with key shares.
    async fn shared_groups(&self, alpn: &[&str]) -> (Answer, Vec<u16>, String) {
        let mut taken = Vec::new();
        for group in SHARED {
            let hello = with_shares(self.hello(alpn, &[group]), &[group]);
            if let Reply::Hello(hello) = self.ask(&hello).await
                && hello.key_share().is_some_and(|(g, _)| g == group)
            {
                taken.push(group);
            }
        }
        let why = "the server sends no HelloRetryRequest, so only x25519, secp256r1 and secp384r1 were \
                   tested";
        (Answer::Inconclusive, taken, why.into())
    }

    /// The versions that a server lists in reply to a reserved version (RFC 9000 section 6.3). Servers need
    /// not answer.
    async fn versions(&self) -> Option<Vec<u32>> {
        self.turn().await;
        let ids = Ids::new().ok()?;
        let keys = InitialKeys::new(&ids.destination);
        let mut datagram = initial(&keys.client, ids.header(&[], 0), &[1]);
        datagram[1..5].copy_from_slice(&0x1a2a_3a4a_u32.to_be_bytes());
        let socket = connect(self.address).await.ok()?;
        let mut budget = MAX_DATAGRAMS;
        for _ in 0..2 {
            socket.send(&datagram).await.ok()?;
            let until = Instant::now() + self.timeout.min(Duration::from_secs(1)) / 2;
            while let Ok(Some(received)) = receive(&socket, until, &mut budget).await {
                if let Ok((Packet::VersionNegotiation(found), _)) = packet(&received)
                    && found.destination == ids.source
                    && found.source == ids.destination
                {
                    return Some(known(found.versions));
                }
            }
        }
        None
    }

    /// Waits for a connection permit, but does not keep it: single datagrams are no burden, and TCP probes
    /// must not wait for UDP, which is often silent.
    async fn turn(&self) {
        drop(self.pace.turn().await);
        sleep(PAUSE).await;
    }

    fn hello(&self, alpn: &[&str], groups: &[u16]) -> ClientHello {
        let mut random = [0; 32];
        // If the system has no randomness, a hello with zeros works too.
        let _ = aws_lc_rs::rand::fill(&mut random);
        let schemes: Vec<u16> = SCHEMES.iter().map(|scheme| scheme.code).collect();
        let mut hello = ClientHello::new(Version::Tls1_3, random)
            .suites(SUITES)
            .groups(groups)
            .signatures(&schemes)
            .alpn(alpn)
            .with(extension::PSK_KEY_EXCHANGE_MODES, vec![1, 1]);
        // RFC 9001 section 8.4: no session ID for middleboxes.
        hello.session_id.clear();
        match self.name {
            Some(name) => hello.server_name(name),
            None => hello,
        }
    }

    /// Sends a hello, and waits for the reply. Repeats it three times if there is none, each time after twice
    /// as long.
    async fn ask(&self, hello: &ClientHello) -> Reply {
        self.turn().await;
        let mut exchange = match Exchange::new(hello) {
            Ok(exchange) => exchange,
            Err(why) => return Reply::Trouble(why),
        };
        let reply = match connect(self.address).await {
            Ok(socket) => exchange.run(&socket, self.timeout).await,
            Err(e) => Err(e),
        };
        match reply {
            Ok(reply) => reply,
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => Reply::Unreachable,
            Err(e) => Reply::Trouble(e.to_string()),
        }
    }
}

/// The connection IDs of one probe.
struct Ids {
    destination: [u8; 8],
    source: [u8; 8],
}

impl Ids {
    fn new() -> Result<Self, String> {
        let mut ids = Self { destination: [0; 8], source: [0; 8] };
        // Only a host that sees the IDs can answer, so they must be random.
        let filled = aws_lc_rs::rand::fill(&mut ids.destination)
            .and_then(|()| aws_lc_rs::rand::fill(&mut ids.source));
        filled.map(|()| ids).map_err(|_| "the system has no randomness".into())
    }

    fn header<'a>(&'a self, token: &'a [u8], number: u32) -> Header<'a> {
        Header { destination: &self.destination, source: &self.source, token, number }
    }
}

/// One probe, from its first packet to the answer.
struct Exchange {
    ids: Ids,
    /// The destination connection ID: a random one, or the server's after a Retry.
    destination: Vec<u8>,
    keys: InitialKeys,
    token: Option<Vec<u8>>,
    hello: ClientHello,
    /// The next packet number.
    number: u32,
    largest: Option<u64>,
    crypto: Crypto,
    handshakes: Handshakes,
    /// The server's connection ID, to close the connection.
    server: Option<Vec<u8>>,
}

impl Exchange {
    fn new(hello: &ClientHello) -> Result<Self, String> {
        let ids = Ids::new()?;
        let parameters = transport_parameters(&ids.source);
        Ok(Self {
            destination: ids.destination.to_vec(),
            keys: InitialKeys::new(&ids.destination),
            ids,
            token: None,
            hello: hello.clone().with(extension::QUIC_TRANSPORT_PARAMETERS, parameters),
            number: 0,
            largest: None,
            crypto: Crypto::default(),
            handshakes: Handshakes::default(),
            server: None,
        })
    }

    async fn run(&mut self, socket: &UdpSocket, timeout: Duration) -> io::Result<Reply> {
        let begun = Instant::now();
        let mut budget = MAX_DATAGRAMS;
        for wait in [1, 3, 7, 15] {
            self.send(socket).await?;
            let until = begun + timeout * wait / 15;
            while let Some(datagram) = receive(socket, until, &mut budget).await? {
                let had_token = self.token.is_some();
                if let Some(reply) = self.take(&datagram) {
                    self.leave(socket, &reply).await;
                    return Ok(reply);
                }
                if self.token.is_some() && !had_token {
                    self.send(socket).await?;
                }
            }
            if budget == 0 {
                let why = format!("{MAX_DATAGRAMS} datagrams, but no answer among them");
                return Ok(Reply::Trouble(why));
            }
        }
        let seconds = timeout.as_secs_f64();
        Ok(Reply::Trouble(match (self.largest, &self.token) {
            (Some(_), _) => format!("Initials for {seconds:.1} s, but no hello in them"),
            (None, Some(_)) => format!("a Retry, but nothing more for {seconds:.1} s"),
            (None, None) => format!("silent for {seconds:.1} s, with the hello sent four times"),
        }))
    }

    async fn send(&mut self, socket: &UdpSocket) -> io::Result<()> {
        let message = self.hello.message();
        let mut offset = 0;
        // Headers take less than 100 bytes, so that all datagrams have the length that every path supports.
        let room = MIN_DATAGRAM - self.token.as_ref().map_or(0, Vec::len) - 100;
        for piece in message.chunks(room) {
            let mut bytes = Vec::new();
            Frame::Crypto(offset, piece).write(&mut bytes);
            offset += piece.len() as u64;
            socket.send(&self.initial(&bytes)).await?;
        }
        Ok(())
    }

    fn initial(&mut self, frames: &[u8]) -> Vec<u8> {
        let token = self.token.as_deref().unwrap_or_default();
        let header = Header {
            destination: self.server.as_ref().unwrap_or(&self.destination),
            source: &self.ids.source,
            token,
            number: self.number,
        };
        self.number += 1;
        initial(&self.keys.client, header, frames)
    }

    /// Reads a datagram. Packets that are not for us, or not authentic, are ignored (RFC 9001
    /// section 5.2), because anybody may have sent them.
    fn take(&mut self, datagram: &[u8]) -> Option<Reply> {
        let mut rest = datagram;
        while !rest.is_empty() {
            let (found, after) = packet(rest).ok()?;
            rest = after;
            let reply = match found {
                Packet::Initial(found) if found.destination == self.ids.source => {
                    let Some((number, payload)) = found.open(&self.keys.server, self.largest)
                    else {
                        continue;
                    };
                    self.largest = self.largest.max(Some(number));
                    // RFC 9000 section 7.2: the first one sets the destination from now on.
                    self.server.get_or_insert_with(|| found.source.to_vec());
                    self.read(&payload)
                }
                // Only one, and before anything else (RFC 9000 section 17.2.5.2).
                Packet::Retry(found)
                    if self.token.is_none()
                        && self.largest.is_none()
                        && found.destination == self.ids.source
                        && found.source != self.destination
                        && found.verify(&self.destination) =>
                {
                    if !(1..=MAX_TOKEN).contains(&found.token.len()) {
                        let n = found.token.len();
                        return Some(Reply::Trouble(format!("a Retry with a token of {n} bytes")));
                    }
                    self.token = Some(found.token.to_vec());
                    self.destination = found.source.to_vec();
                    self.keys = InitialKeys::new(found.source);
                    None
                }
                // If it lists the version that it replies to, it must be dropped (section 6.2).
                Packet::VersionNegotiation(found)
                    if self.token.is_none()
                        && self.largest.is_none()
                        && found.destination == self.ids.source
                        && found.source == self.destination
                        && !found.versions.contains(&1) =>
                {
                    Some(Reply::Versions(known(found.versions)))
                }
                _ => None,
            };
            if reply.is_some() {
                return reply;
            }
        }
        None
    }

    /// Reads the payload of an Initial. A hello counts even if the connection is closed after it.
    fn read(&mut self, payload: &[u8]) -> Option<Reply> {
        let (frames, end) = frames(payload);
        let (mut close, mut wrong) = (None, end.err());
        for frame in frames {
            match frame {
                Frame::Close { code: code @ 0x100..=0x1ff, .. } => {
                    close = Some(Reply::Alert(code as u8));
                }
                Frame::Close { code, reason } => {
                    close = Some(Reply::Closed(code, printable(reason)));
                }
                Frame::Crypto(offset, data) => {
                    wrong = wrong.or(self.crypto.push(offset, data).err());
                }
                Frame::Ping | Frame::Ack(_) => {}
            }
        }
        self.handshakes.push(&self.crypto.read());
        match (self.message(), close, wrong) {
            (Some(hello @ Reply::Hello(_)), ..) => Some(hello),
            (_, Some(close), _) => Some(close),
            (None, None, wrong) => wrong.map(malformed),
            (reply, ..) => reply,
        }
    }

    /// The ServerHello, if it is complete.
    fn message(&mut self) -> Option<Reply> {
        let message = match self.handshakes.message() {
            Ok(message) => message?,
            Err(e) => return Some(malformed(e)),
        };
        if message.kind != HandshakeType::SERVER_HELLO {
            return Some(Reply::Trouble("the first message is not a ServerHello".into()));
        }
        Some(match ServerHello::parse(message.body()) {
            Err(e) => malformed(e),
            Ok(hello) if hello.version() != Some(Version::Tls1_3) => {
                Reply::Trouble("the ServerHello has another version than TLS 1.3".into())
            }
            Ok(hello) if !self.hello.suites.contains(&hello.suite) => {
                Reply::Trouble("the server chose a suite that was not offered".into())
            }
            Ok(hello) => Reply::Hello(Box::new(hello)),
        })
    }

    /// Closes the connection, so that the server does not wait for us.
    async fn leave(&mut self, socket: &UdpSocket, reply: &Reply) {
        if self.server.is_some() && !matches!(reply, Reply::Alert(_) | Reply::Closed(..)) {
            let mut bytes = Vec::new();
            if let Some(largest) = self.largest {
                Frame::Ack(largest).write(&mut bytes);
            }
            Frame::Close { code: 0, reason: &[] }.write(&mut bytes);
            let datagram = self.initial(&bytes);
            // Errors do not matter.
            let _ = socket.send(&datagram).await;
        }
    }
}

fn malformed(e: Malformed) -> Reply {
    Reply::Trouble(e.to_string())
}

async fn connect(address: SocketAddr) -> io::Result<UdpSocket> {
    let any = match address {
        SocketAddr::V4(_) => SocketAddr::from(([0; 4], 0)),
        SocketAddr::V6(_) => SocketAddr::from(([0_u16; 8], 0)),
    };
    let socket = UdpSocket::bind(any).await?;
    // A connected socket reports ICMP errors, and ignores other hosts.
    socket.connect(address).await?;
    Ok(socket)
}

/// The next datagram; `None` after the deadline, or after too many datagrams.
async fn receive(
    socket: &UdpSocket,
    until: Instant,
    budget: &mut usize,
) -> io::Result<Option<Vec<u8>>> {
    let Some(left) = budget.checked_sub(1) else { return Ok(None) };
    let mut buffer = [0; 2048];
    match timeout_at(until, socket.recv(&mut buffer)).await {
        Err(_) => Ok(None),
        Ok(received) => {
            *budget = left;
            Ok(Some(buffer[..received?].to_vec()))
        }
    }
}

/// Whether an alert is about the hello, and not about the server's state.
fn is_refusal(code: u8) -> bool {
    // close_notify, internal_error, user_canceled
    !matches!(code, 0 | 80 | 90)
}

/// The groups that TLS 1.3 allows.
fn groups() -> Vec<u16> {
    let tls1_3 = |g: &&Group| match g.kind {
        GroupKind::Hybrid | GroupKind::PostQuantum | GroupKind::FiniteField => true,
        // RFC 8446 section 4.2.7, RFC 8734, RFC 8998.
        GroupKind::Elliptic => matches!(g.code, 0x17..=0x19 | 0x1d..=0x21 | 0x29),
    };
    GROUPS.iter().filter(tls1_3).map(|g| g.code).collect()
}

/// Adds a key share for each of these groups that the scanner supports. The keys are not kept.
pub(super) fn with_shares(hello: ClientHello, groups: &[u16]) -> ClientHello {
    let keys: Vec<_> =
        groups.iter().filter_map(|group| Some((*group, share_of(*group)?))).collect();
    let shares: Vec<_> = keys.iter().map(|(group, key)| (*group, key.as_slice())).collect();
    hello.key_shares(&shares)
}

/// The versions in a Version Negotiation, at most 16, without reserved ones (RFC 9000 section 15).
fn known(mut versions: Vec<u32>) -> Vec<u32> {
    versions.retain(|version| version & 0x0f0f_0f0f != 0x0a0a_0a0a);
    versions.truncate(16);
    versions
}

fn list(versions: &[u32]) -> String {
    match versions {
        [] => "none".into(),
        _ => versions.iter().map(|v| version(*v)).collect::<Vec<_>>().join(", "),
    }
}

/// The name of a version (IANA, QUIC Versions).
fn version(code: u32) -> String {
    match code {
        1 => "1".into(),
        0x6b33_43cf => "2".into(),
        0xff00_0000..=0xff00_00ff => format!("draft-{}", code & 0xff),
        _ => format!("{code:#010x}"),
    }
}

fn evidence(reply: &Reply) -> String {
    match reply {
        Reply::Hello(_) => "a hello".into(),
        Reply::Alert(code) => {
            format!("CONNECTION_CLOSE with alert {} ({code})", names::alert(*code))
        }
        Reply::Closed(code, reason) => format!("CONNECTION_CLOSE {code:#x} {reason}"),
        Reply::Versions(versions) => format!("Version Negotiation lists {}", list(versions)),
        Reply::Unreachable => "the port is closed (ICMP port unreachable)".into(),
        Reply::Trouble(why) => why.clone(),
    }
}
