//! One question to one address: a hello out, an answer back, and what that answer is worth.

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
    /// The ServerHello: it says what was chosen.
    Hello,
    /// All that comes in the clear, up to ServerHelloDone.
    Done,
    /// As much of that as comes: the ServerHello is an answer without it.
    Shown,
}

/// What a server sent in the clear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flight {
    /// What it chose.
    pub hello: ServerHello,
    /// Its chain, up to TLS 1.2.
    pub certificates: Vec<Vec<u8>>,
    /// The OCSP response that it stapled.
    pub status: Option<Vec<u8>>,
    /// Its key exchange, where the suite has one.
    pub key_exchange: Option<ServerKeyExchange>,
    /// The certificate that it wants.
    pub request: Option<CertificateRequest>,
    /// Whether ServerHelloDone came.
    pub done: bool,
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// A hello, and what follows it.
    Hello(Box<Flight>),
    /// A refusal: level and description.
    Alert(u8, u8),
    /// No answer.
    Trouble(Trouble),
}

/// What an answer is worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The server went along.
    Taken(Box<Flight>),
    /// It refused.
    Refused {
        /// The evidence.
        why: String,
        /// Whether that speaks of the hello. What does not, a close for one, may come of a single thing
        /// in the hello.
        of_hello: bool,
    },
    /// It could not be told; why.
    Unclear(String),
    /// Hellos of this length do not get through, and shorter ones do.
    TooLarge,
}

/// Asks one address.
pub struct Prober {
    /// Where.
    pub address: SocketAddr,
    /// The name that hellos carry.
    pub name: Option<String>,
    /// What is spoken before TLS.
    pub start: Start,
    /// How long to wait for any answer.
    pub timeout: Duration,
    /// How fast to ask.
    pub pace: Arc<Pace>,
    /// A hello that is answered: what failures are compared with.
    pub control: OnceLock<ClientHello>,
    /// When the whole scan has to come to an end.
    pub end: Instant,
    /// What is shown to a server that asks for a certificate.
    pub identity: Option<Arc<ClientIdentity>>,
    /// Whether SSL 2.0 was answered, which is a control where nothing else is.
    pub(super) speaks_ssl2: AtomicBool,
    /// What was chosen in all hellos.
    pub(super) observed: Arc<Observed>,
    /// The versions that are asked for in an ordinary client's manner, a bit each.
    pub(super) plain: AtomicU32,
    /// Whether the address still answers.
    pub(super) contact: Contact,
    /// The longest that a connection took to go over to TLS, in microseconds.
    greeting: AtomicU64,
    /// Hellos of this length, and longer ones, are lost on the way.
    lost: AtomicUsize,
    connections: AtomicU64,
    /// The slowest answer so far, in microseconds.
    slowest: AtomicU64,
    /// The quickest, likewise.
    quickest: AtomicU64,
}

/// Rounds of asking again where an answer was unclear, each after a pause.
const PAUSES: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];

impl Outcome {
    /// By an alert about the hello.
    fn refused(level: u8, description: u8) -> Self {
        Self::Refused { why: alert_name(level, description), of_hello: true }
    }
}

impl Prober {
    /// For this address.
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

    /// Connections that were made so far.
    pub fn connections(&self) -> u64 {
        self.connections.load(Relaxed)
    }

    /// Connects, and speaks what comes before TLS.
    pub async fn connect(&self) -> Result<Link, Trouble> {
        let permit = self.turn().await?;
        Ok(self.open(permit).await?.0)
    }

    /// Why nothing more is asked.
    fn over(&self) -> Option<Trouble> {
        if let Some(why) = self.contact.stopped() {
            return Some(Trouble::Stopped(why.to_owned()));
        }
        (Instant::now() >= self.end).then_some(Trouble::TimeIsUp)
    }

    /// The longest that a connection took to go over to TLS.
    pub(super) fn slowest_start(&self) -> Duration {
        Duration::from_micros(self.greeting.load(Relaxed))
    }

    /// Waits for our turn, no longer than the scan may take.
    async fn turn(&self) -> Result<Option<OwnedSemaphorePermit>, Trouble> {
        if let Some(trouble) = self.over() {
            return Err(trouble);
        }
        timeout_at(self.end, self.pace.turn()).await.map_err(|_| Trouble::TimeIsUp)
    }

    /// Connects, and says nothing: for what speaks by itself.
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

    /// A connection on which TLS comes next, and how long what comes before it took.
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
        // Not by a shorter patience: with that, a greeting would be waited for in less than the time-out.
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

    /// What an attempt to go over to TLS tells.
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

    /// How long to wait for an answer: many times what answers have taken, so that silence does not
    /// cost the whole time-out again and again.
    fn patience(&self) -> Duration {
        match self.slowest.load(Relaxed) {
            0 => self.timeout,
            slowest => {
                let wait = Duration::from_micros(slowest.saturating_mul(20));
                wait.max(Duration::from_millis(700)).min(self.timeout)
            }
        }
    }

    /// A pause after which a server that says nothing most likely waits for us: many times what its
    /// quickest answer took, for others may have waited for other connections of ours. It is no proof
    /// of silence.
    pub(super) fn moment(&self) -> Duration {
        let quickest = Duration::from_micros(self.quickest.load(Relaxed));
        quickest.saturating_mul(5).clamp(Duration::from_millis(15), Duration::from_secs(1))
    }

    /// Asks once.
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
                // A slow greeting says nothing of how long TLS takes to answer.
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

    /// Asks until it is clear what the answer is.
    ///
    /// An alert is the server's own word. Silence, a close or a reset say something only between
    /// two controls that are answered, with nothing else of ours under way: what limits
    /// connections, or is overloaded, would have hit a control too. The controls are as long as the
    /// hello, or what drops long hellos would look like a server that refuses what is in them.
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
            // Of the server's state, or how it refuses: the same word twice is its answer.
            Reply::Alert(level, description) => match self.ask(hello, until).await {
                Reply::Hello(flight) => return Outcome::Taken(flight),
                Reply::Alert(..) => {
                    let alert = alert_name(level, description);
                    let why = format!("{alert}, asked twice");
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
            // SSL 3.0 and its like have nowhere to put padding.
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
                sleep(pause).await;
            }
            // The permits, one by one, are held to the end of the round.
            let Ok(Some(_alone)) = timeout_at(self.end, self.pace.alone()).await else { break };
            let answered = |reply: &Reply| matches!(reply, Reply::Hello(_));
            if !answered(&self.ask_with(&padded, Until::Hello, None).await) {
                // Only the length differs, perhaps. Once more, for it could be chance.
                if answered(&self.ask_with(control, Until::Hello, None).await)
                    && !answered(&self.ask_with(&padded, Until::Hello, None).await)
                    && answered(&self.ask_with(control, Until::Hello, None).await)
                {
                    self.lost.fetch_min(length, Relaxed);
                    return Outcome::TooLarge;
                }
                self.contact.silent(Instant::now(), self.timeout);
                // What hits some connections and not others may let this one pass.
                match self.ask_with(hello, until, None).await {
                    Reply::Hello(flight) => return Outcome::Taken(flight),
                    Reply::Alert(level, description) if is_refusal(description) => {
                        return Outcome::refused(level, description);
                    }
                    _ => continue,
                }
            }
            // Twice, for a single failure may be chance, or a limit that silence gave time to pass:
            // what resets each third connection hits no two that follow each other.
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
                // That is its answer, but not one to the question.
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

    /// Where SSL 2.0 is all that is answered, its hello is the control.
    async fn compare_with_ssl2(&self, hello: &ClientHello, until: Until, last: String) -> Outcome {
        if !self.speaks_ssl2.load(Relaxed) || !ssl2::is_answered(self).await {
            return Outcome::Unclear(last);
        }
        match self.ask(hello, until).await {
            Reply::Hello(flight) => Outcome::Taken(flight),
            Reply::Alert(level, description) if is_refusal(description) => {
                Outcome::refused(level, description)
            }
            // Of the hello, for none but those of SSL 2.0 are answered.
            _ if ssl2::is_answered(self).await => Outcome::Refused {
                why: format!("{last}; hellos of SSL 2.0 right before and after were answered"),
                of_hello: true,
            },
            _ => Outcome::Unclear(last),
        }
    }

    /// A hello of this version with fresh randomness and the target's name.
    pub fn hello(&self, version: Version) -> ClientHello {
        let mut random = [0; 32];
        // Where the system has no randomness, a hello without is still a hello.
        let _ = aws_lc_rs::rand::fill(&mut random);
        let hello = ClientHello::new(version, random);
        match &self.name {
            Some(name) if version > Version::Ssl3 => hello.server_name(name),
            _ => hello,
        }
    }
}

/// Whether an alert speaks of what was asked, rather than of the server's state.
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
        _ => return Err(Trouble::Malformed("no ServerHello came first")),
    };
    // A server that chooses what was not offered answers something else than the question.
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
            // A session was resumed, or something is odd: what came is what is known.
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

    /// The group of its key exchange: by `key_share` or `supported_groups`.
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
