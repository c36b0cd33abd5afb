//! A probe: sends a ClientHello to an address, and interprets the answer.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep, timeout_at};

use super::contact::Contact;
use super::identity::ClientIdentity;
use super::link::{Event, Link, Stream, Trouble, alert_name};
use super::observed::Observed;
use super::pace::Pace;
use super::ssl2;
use super::starttls::{self, Why};
use crate::facts::Facts;
use crate::names::{KeyExchange, Suite, Version};
use crate::parse::{
    CertificateRequest, ClientHello, HandshakeType, ServerHello, ServerKeyExchange,
    certificate_status, certificates, extension,
};
use crate::target::Start;

/// How far an answer is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// The ServerHello.
    Hello,
    /// All unencrypted messages, up to ServerHelloDone.
    Done,
    /// The same, but the ServerHello is enough if the rest is missing.
    Shown,
}

/// The unencrypted messages of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flight {
    pub hello: ServerHello,
    /// The chain, up to TLS 1.2.
    pub certificates: Vec<Vec<u8>>,
    /// The stapled OCSP response.
    pub status: Option<Vec<u8>>,
    /// The key exchange, if the suite has one.
    pub key_exchange: Option<ServerKeyExchange>,
    pub request: Option<CertificateRequest>,
    /// Whether there was a ServerHelloDone.
    pub done: bool,
}

/// The reply to a hello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// A ServerHello, and the messages after it.
    Hello(Box<Flight>),
    /// An alert: level and description.
    Alert(u8, u8),
    /// No answer.
    Trouble(Trouble),
}

/// The meaning of a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The server accepted the hello.
    Taken(Box<Flight>),
    /// The server rejected the hello.
    Refused {
        /// The evidence.
        why: String,
        /// Whether the server rejected the hello as a whole. If not (for example, it closed the
        /// connection), a single item in the hello may be the cause.
        of_hello: bool,
    },
    /// Could not be determined; why.
    Unclear(String),
    /// Hellos of this length do not arrive, but shorter ones do.
    TooLarge,
}

/// Probes one address.
pub struct Prober {
    pub address: SocketAddr,
    /// The server name in hellos.
    pub name: Option<String>,
    /// The protocol before TLS.
    pub start: Start,
    /// Time limit for any answer.
    pub timeout: Duration,
    /// The rate limit.
    pub pace: Arc<Pace>,
    /// A hello that the server answers. Failures are compared with it.
    pub control: OnceLock<ClientHello>,
    /// The deadline of the whole scan.
    pub end: Instant,
    /// The client certificate.
    pub identity: Option<Arc<ClientIdentity>>,
    /// Whether SSL 2.0 was answered. It serves as the control if there is no other.
    pub(super) speaks_ssl2: AtomicBool,
    /// Everything that the server chose.
    pub(super) observed: Arc<Observed>,
    /// The versions that are tested with an ordinary client's hellos, one bit each.
    pub(super) plain: AtomicU32,
    /// Whether the address still answers.
    pub(super) contact: Contact,
    /// The longest time that STARTTLS took, in microseconds.
    greeting: AtomicU64,
    /// Hellos of this length or longer are lost on the path.
    lost: AtomicUsize,
    connections: AtomicU64,
    /// The slowest answer so far, in microseconds.
    slowest: AtomicU64,
    /// The quickest answer so far, in microseconds.
    quickest: AtomicU64,
}

/// The pauses before each retry of an unclear answer.
const PAUSES: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];
/// From this pause on, no other connection of ours is opened in it: most rate limits count connections per second, and
/// would count those of other probes.
const QUIET: Duration = Duration::from_secs(1);

impl Outcome {
    /// Rejected by an alert about the hello.
    fn refused(level: u8, description: u8) -> Self {
        Self::Refused { why: alert_name(level, description), of_hello: true }
    }
}

impl Prober {
    pub fn new(
        address: SocketAddr,
        name: Option<String>,
        start: Start,
        timeout: Duration,
        pace: Arc<Pace>,
    ) -> Self {
        Self {
            address,
            name,
            start,
            timeout,
            pace,
            control: OnceLock::new(),
            end: Instant::now() + Duration::from_secs(86_400),
            identity: None,
            speaks_ssl2: AtomicBool::new(false),
            observed: Arc::default(),
            plain: AtomicU32::new(0),
            contact: Contact::new(2),
            greeting: AtomicU64::new(0),
            lost: AtomicUsize::new(usize::MAX),
            connections: AtomicU64::new(0),
            slowest: AtomicU64::new(0),
            quickest: AtomicU64::new(u64::MAX),
        }
    }

    /// The number of connections so far.
    pub fn connections(&self) -> u64 {
        self.connections.load(Relaxed)
    }

    /// Connects, and performs STARTTLS if necessary.
    pub async fn connect(&self) -> Result<Link, Trouble> {
        let permit = self.turn().await?;
        Ok(self.open(permit).await?.0)
    }

    /// Why the scan has to stop, if it has.
    fn over(&self) -> Option<Trouble> {
        if let Some(why) = self.contact.stopped() {
            return Some(Trouble::Stopped(why.to_owned()));
        }
        (Instant::now() >= self.end).then_some(Trouble::TimeIsUp)
    }

    /// The longest time that STARTTLS took.
    pub(super) fn slowest_start(&self) -> Duration {
        Duration::from_micros(self.greeting.load(Relaxed))
    }

    /// Waits for a connection permit, until the end of the scan at most.
    async fn turn(&self) -> Result<Option<OwnedSemaphorePermit>, Trouble> {
        if let Some(trouble) = self.over() {
            return Err(trouble);
        }
        timeout_at(self.end, self.pace.turn()).await.map_err(|_| Trouble::TimeIsUp)
    }

    /// Connects without sending anything.
    pub async fn stream(&self) -> io::Result<TcpStream> {
        let permit = self.turn().await.map_err(|trouble| io::Error::other(trouble.to_string()))?;
        let stream = self.tcp().await.map_err(|trouble| io::Error::other(trouble.to_string()));
        drop(permit);
        stream
    }

    async fn tcp(&self) -> Result<TcpStream, Trouble> {
        let waits = self.contact.waits(self.timeout);
        for wait in &waits {
            self.pace.rate().await;
            if let Some(trouble) = self.over() {
                return Err(trouble);
            }
            self.connections.fetch_add(1, Relaxed);
            let begun = Instant::now();
            let until = self.end.min(begun + *wait);
            match timeout_at(until, TcpStream::connect(self.address)).await {
                Ok(Ok(stream)) => {
                    self.contact.accepted(Instant::now(), begun.elapsed());
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Ok(Err(e)) => {
                    self.contact.failed(Instant::now(), self.timeout);
                    return Err(match e.kind() {
                        io::ErrorKind::ConnectionReset => Trouble::Reset,
                        _ => Trouble::Unreachable(e.to_string()),
                    });
                }
                Err(_) => self.contact.failed(Instant::now(), self.timeout),
            }
        }
        if let Some(trouble) = self.over() {
            return Err(trouble);
        }
        let waited = waits.iter().sum::<Duration>().as_secs_f64();
        Err(Trouble::Unreachable(match waits.len() {
            1 => format!("no answer within {waited:.1} s"),
            n => format!(
                "no answer within {waited:.1} s, in {n} attempts: no host has this address, or a \
                 firewall drops the packets"
            ),
        }))
    }

    /// Opens a connection that is ready for TLS. Returns how long STARTTLS took.
    async fn open(
        &self,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<(Link, Duration), Trouble> {
        let stream = self.tcp().await?;
        let deadline = self.end.min(Instant::now() + self.timeout * 3);
        let link = |stream: Box<dyn Stream>| {
            let mut link = Link::new(stream, self.patience(), deadline, permit);
            link.observed = Some(self.observed.clone());
            link.identity = self.identity.clone();
            link
        };
        if matches!(self.start, Start::Direct | Start::Https) {
            return Ok((link(Box::new(stream)), Duration::ZERO));
        }
        let local = stream.local_addr().ok().map(|at| at.ip());
        let name = self.name.as_deref();
        let begun = Instant::now();
        let patience = begun + starttls::time(self.timeout);
        let upgrade = starttls::upgrade(stream, self.start, name, local, patience);
        // Do not shorten `patience` instead: the wait for a greeting would be shorter than the time-out.
        let Ok(upgrade) = timeout_at(self.end, upgrade).await else {
            return Err(Trouble::TimeIsUp);
        };
        match upgrade {
            Ok(upgrade) => {
                let took = begun.elapsed();
                let micros = took.as_micros().try_into().unwrap_or(u64::MAX);
                self.greeting.fetch_max(micros, Relaxed);
                Ok((link(Box::new(upgrade.stream)), took))
            }
            Err(refused) => Err(match refused.why {
                Why::Closed => Trouble::Closed,
                Why::Reset => Trouble::Reset,
                Why::TimedOut => Trouble::TimedOut(self.timeout),
                _ => Trouble::Start(refused.to_string()),
            }),
        }
    }

    /// The facts from one attempt of STARTTLS.
    pub async fn start_facts(&self) -> Result<Facts, Trouble> {
        let _permit = self.turn().await?;
        let stream = self.tcp().await?;
        let local = stream.local_addr().ok().map(|at| at.ip());
        let deadline = Instant::now() + starttls::time(self.timeout);
        let name = self.name.as_deref();
        let outcome = starttls::upgrade(stream, self.start, name, local, deadline);
        let outcome = timeout_at(self.end, outcome).await.map_err(|_| Trouble::TimeIsUp)?;
        Ok(starttls::facts(&outcome))
    }

    /// How long to wait for an answer: a multiple of the slowest answer, so that silence does not cost the
    /// whole time-out each time.
    fn patience(&self) -> Duration {
        match self.slowest.load(Relaxed) {
            0 => self.timeout,
            slowest => {
                let wait = Duration::from_micros(slowest.saturating_mul(20));
                wait.max(Duration::from_millis(700)).min(self.timeout)
            }
        }
    }

    /// A pause after which a silent server most likely waits for us: a multiple of its quickest answer,
    /// because slower ones may have been delayed by our other connections. This is not proof of silence.
    pub(super) fn moment(&self) -> Duration {
        let quickest = Duration::from_micros(self.quickest.load(Relaxed));
        quickest.saturating_mul(5).clamp(Duration::from_millis(15), Duration::from_secs(1))
    }

    /// Sends a hello once.
    pub async fn ask(&self, hello: &ClientHello, until: Until) -> Reply {
        match self.turn().await {
            Ok(permit) => self.ask_with(hello, until, permit).await,
            Err(trouble) => Reply::Trouble(trouble),
        }
    }

    async fn ask_with(
        &self,
        hello: &ClientHello,
        until: Until,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Reply {
        let start = Instant::now();
        let mut before_tls = Duration::ZERO;
        let reply = match self.open(permit).await {
            Ok((mut link, took)) => {
                before_tls = took;
                read_flight(&mut link, hello, until).await
            }
            Err(trouble) => Err(trouble),
        };
        match reply {
            Ok(Reply::Trouble(trouble)) | Err(trouble) => Reply::Trouble(trouble),
            Ok(reply) => {
                self.contact.answered(Instant::now());
                // The time for STARTTLS does not count.
                let took = start.elapsed().saturating_sub(before_tls);
                let took = took.as_micros().try_into().unwrap_or(u64::MAX);
                self.slowest.fetch_max(took.max(1), Relaxed);
                self.quickest.fetch_min(took.max(1), Relaxed);
                if let Reply::Alert(level, description) = &reply
                    && is_refusal(*description)
                {
                    self.observed.refused(hello, *level, *description);
                }
                reply
            }
        }
    }

    /// Sends a hello until the answer is clear.
    ///
    /// An alert is a clear answer. Silence, a close or a reset count only between two controls that are
    /// answered, without other connections of ours: a rate limit or an overload would have affected the
    /// controls too. The controls are as long as the hello. Otherwise, a device that drops long hellos
    /// would look like a server that rejects their content.
    pub async fn probe(&self, hello: &ClientHello, until: Until) -> Outcome {
        let length = hello.record().len();
        if length >= self.lost.load(Relaxed) {
            return Outcome::TooLarge;
        }
        let begun = Instant::now();
        let first = match self.ask(hello, until).await {
            Reply::Hello(flight) => return Outcome::Taken(flight),
            Reply::Alert(level, description) if is_refusal(description) => {
                return Outcome::refused(level, description);
            }
            // This alert can be about the server's state. If it comes twice, it is the answer.
            Reply::Alert(level, description) => match self.ask(hello, until).await {
                Reply::Hello(flight) => return Outcome::Taken(flight),
                Reply::Alert(..) => {
                    let alert = alert_name(level, description);
                    let why = format!("{alert}, twice");
                    return Outcome::Refused { why, of_hello: false };
                }
                Reply::Trouble(trouble) => trouble.to_string(),
            },
            Reply::Trouble(trouble @ (Trouble::TimeIsUp | Trouble::Stopped(_))) => {
                return Outcome::Unclear(trouble.to_string());
            }
            Reply::Trouble(trouble) => trouble.to_string(),
        };
        let Some(control) = self.control.get() else {
            return self.compare_with_ssl2(hello, until, first).await;
        };
        let padded = match control.extensions.is_empty() {
            // SSL 3.0 hellos have no extensions, so no padding.
            true => control.clone(),
            false => control.clone().padded_to(length),
        };
        let mut last = first;
        for pause in PAUSES {
            if let Some(trouble) = self.over() {
                return Outcome::Unclear(trouble.to_string());
            }
            if Instant::now() + pause >= self.end {
                return Outcome::Unclear(Trouble::TimeIsUp.to_string());
            }
            if !pause.is_zero() {
                self.pace.slow_down(begun);
            }
            if pause < QUIET {
                sleep(pause).await;
            }
            // Hold all permits until the end of the round.
            let Ok(Some(_alone)) = timeout_at(self.end, self.pace.alone()).await else { break };
            if pause >= QUIET && timeout_at(self.end, sleep(pause)).await.is_err() {
                break;
            }
            let answered = |reply: &Reply| matches!(reply, Reply::Hello(_));
            if !answered(&self.ask_with(&padded, Until::Hello, None).await) {
                // The length may be the cause. Repeat it, because the failure may be accidental.
                if answered(&self.ask_with(control, Until::Hello, None).await)
                    && !answered(&self.ask_with(&padded, Until::Hello, None).await)
                    && answered(&self.ask_with(control, Until::Hello, None).await)
                {
                    self.lost.fetch_min(length, Relaxed);
                    return Outcome::TooLarge;
                }
                self.contact.silent(Instant::now(), self.timeout);
                // If failures affect only some connections, this one may succeed.
                match self.ask_with(hello, until, None).await {
                    Reply::Hello(flight) => return Outcome::Taken(flight),
                    Reply::Alert(level, description) if is_refusal(description) => {
                        return Outcome::refused(level, description);
                    }
                    _ => continue,
                }
            }
            // Try twice: a single failure may be accidental. A limit that resets every third connection does
            // not affect two in a row.
            let mut failed = String::new();
            let mut refused = true;
            let mut breaks = false;
            for again in [false, true] {
                let quick = match self.ask_with(hello, until, None).await {
                    Reply::Hello(flight) => return Outcome::Taken(flight),
                    Reply::Alert(level, description) if is_refusal(description) => {
                        return Outcome::refused(level, description);
                    }
                    Reply::Alert(level, description) => {
                        failed = alert_name(level, description);
                        false
                    }
                    Reply::Trouble(trouble) => {
                        failed = trouble.to_string();
                        breaks = matches!(trouble, Trouble::Malformed(_) | Trouble::TooMuch);
                        matches!(trouble, Trouble::Reset | Trouble::Closed)
                    }
                };
                if quick
                    && !again
                    && let Reply::Hello(flight) = self.ask_with(hello, until, None).await
                {
                    return Outcome::Taken(flight);
                }
                if !answered(&self.ask_with(&padded, Until::Hello, None).await) {
                    refused = false;
                    break;
                }
            }
            if refused && breaks {
                // The server answers the controls, but no connection with this probe.
                return Outcome::Unclear(failed);
            }
            if refused {
                let controls = "control handshakes right before and after were answered";
                let why = format!("{failed}; {controls}");
                return Outcome::Refused { why, of_hello: false };
            }
            last = failed;
        }
        match self.contact.stopped() {
            Some(why) => Outcome::Unclear(why.to_owned()),
            None => Outcome::Unclear(format!("{last}; control handshakes failed too")),
        }
    }

    /// Uses an SSL 2.0 hello as the control, if the server answers nothing else.
    async fn compare_with_ssl2(&self, hello: &ClientHello, until: Until, last: String) -> Outcome {
        if !self.speaks_ssl2.load(Relaxed) || !ssl2::is_answered(self).await {
            return Outcome::Unclear(last);
        }
        match self.ask(hello, until).await {
            Reply::Hello(flight) => Outcome::Taken(flight),
            Reply::Alert(level, description) if is_refusal(description) => {
                Outcome::refused(level, description)
            }
            // A rejection of the hello, because only SSL 2.0 hellos are answered.
            _ if ssl2::is_answered(self).await => Outcome::Refused {
                why: format!("{last}; hellos of SSL 2.0 right before and after were answered"),
                of_hello: true,
            },
            _ => Outcome::Unclear(last),
        }
    }

    /// A hello of this version with a new random and the target's name.
    pub fn hello(&self, version: Version) -> ClientHello {
        let mut random = [0; 32];
        // If the system has no randomness, a hello with zeros works too.
        let _ = aws_lc_rs::rand::fill(&mut random);
        let hello = ClientHello::new(version, random);
        match &self.name {
            Some(name) if version > Version::Ssl3 => hello.server_name(name),
            _ => hello,
        }
    }
}

/// Whether an alert is about the hello, and not about the server's state.
fn is_refusal(description: u8) -> bool {
    // close_notify, internal_error, user_canceled
    !matches!(description, 0 | 80 | 90)
}

async fn read_flight(link: &mut Link, hello: &ClientHello, until: Until) -> Result<Reply, Trouble> {
    link.send(&hello.record()).await?;
    let malformed = |e: crate::parse::Malformed| Trouble::Malformed(e.0);
    let mut flight = match link.event().await? {
        Event::Message(message) if message.kind == HandshakeType::SERVER_HELLO => Flight {
            hello: ServerHello::parse(message.body()).map_err(malformed)?,
            certificates: Vec::new(),
            status: None,
            key_exchange: None,
            request: None,
            done: false,
        },
        Event::Alert(level, description) => return Ok(Reply::Alert(level, description)),
        Event::Message(message) if message.kind == HandshakeType::CLIENT_HELLO => {
            return Err(Trouble::NotTls(b"our own hello, sent back".to_vec()));
        }
        _ => return Err(Trouble::Malformed("the first message is not a ServerHello")),
    };
    // Such an answer says nothing about the offered suites.
    if !hello.suites.contains(&flight.hello.suite) {
        return Err(Trouble::Malformed("the server chose a suite that was not offered"));
    }
    link.saw(hello, &flight.hello);
    if until == Until::Hello || flight.hello.version >= Version::Tls1_3.code() {
        return Ok(Reply::Hello(Box::new(flight)));
    }
    let version = flight.hello.version;
    let suite = Suite::from_code(flight.hello.suite);
    loop {
        let message = match link.event().await {
            Ok(Event::Message(message)) => message,
            Ok(Event::Alert(level, description)) if until == Until::Done => {
                return Ok(Reply::Alert(level, description));
            }
            Err(trouble) if until == Until::Done => return Err(trouble),
            // A session was resumed, or the server behaves unusually. Keep what was received.
            _ => break,
        };
        let body = message.body();
        match message.kind {
            HandshakeType::CERTIFICATE => {
                flight.certificates = certificates(body).map_err(malformed)?;
            }
            HandshakeType::CERTIFICATE_STATUS => flight.status = certificate_status(body).ok(),
            HandshakeType::SERVER_KEY_EXCHANGE => {
                let kx = suite.map(Suite::key_exchange);
                let signed = !suite.is_some_and(Suite::is_anonymous);
                if let Some(kx @ (KeyExchange::Ecdhe | KeyExchange::Dhe)) = kx {
                    let elliptic = kx == KeyExchange::Ecdhe;
                    flight.key_exchange =
                        ServerKeyExchange::parse(body, elliptic, signed, version).ok();
                }
            }
            HandshakeType::CERTIFICATE_REQUEST => {
                flight.request = CertificateRequest::parse(body, version).ok();
            }
            HandshakeType::SERVER_HELLO_DONE => {
                flight.done = true;
                break;
            }
            _ => {}
        }
    }
    Ok(Reply::Hello(Box::new(flight)))
}

impl Flight {
    /// Whether the server agreed to this extension.
    pub fn has(&self, kind: u16) -> bool {
        self.hello.extension(kind).is_some()
    }

    /// The group of the key exchange, from `key_share` or ServerKeyExchange.
    pub fn group(&self) -> Option<u16> {
        use crate::parse::Exchange;
        if let Some((group, _)) = self.hello.key_share() {
            return Some(group);
        }
        match &self.key_exchange.as_ref()?.exchange {
            Exchange::Ecdhe { group, .. } => Some(*group),
            _ => None,
        }
    }

    /// Signed certificate timestamps in the hello (RFC 6962 section 3.3).
    pub fn scts(&self) -> Option<Vec<u8>> {
        self.hello.extension(extension::SCT).map(<[u8]>::to_vec)
    }
}
