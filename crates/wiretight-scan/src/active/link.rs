//! A connection that is ready for TLS. Sends and receives records, with limits.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

use super::identity::ClientIdentity;
use super::observed::Observed;
use crate::names;
use crate::parse::{
    ClientHello, ContentType, Handshakes, Message, ServerHello, alert, next_record, record,
};

/// The maximum number of bytes to read from one connection.
const MAX_BYTES: usize = 1 << 20;
/// The maximum number of records to read from one connection.
const MAX_RECORDS: usize = 4096;
/// The maximum number of warnings to ignore: some servers send one for an unknown name.
const MAX_WARNINGS: usize = 4;

/// Why there is no usable answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// No connection.
    Unreachable(String),
    /// STARTTLS failed.
    Start(String),
    /// The connection was closed normally.
    Closed,
    /// The connection was reset.
    Reset,
    /// No answer within this time.
    TimedOut(Duration),
    /// The answer is not TLS; its first bytes.
    NotTls(Vec<u8>),
    /// The answer violates the protocol.
    Malformed(&'static str),
    /// The answer is too long.
    TooMuch,
    /// The time limit of the scan is reached.
    TimeIsUp,
    /// The address answered before, but has stopped; the text says how.
    Stopped(String),
}

impl Trouble {
    /// Whether a retry is useless.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::Malformed(_) | Self::TimeIsUp | Self::Stopped(_))
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(why) => write!(f, "no connection: {why}"),
            Self::Start(why) => write!(f, "TLS could not be started: {why}"),
            Self::Closed => f.write_str("closed without an alert"),
            Self::Reset => f.write_str("reset"),
            Self::TimedOut(after) => write!(f, "silent for {:.1} s", after.as_secs_f64()),
            Self::NotTls(first) => write!(f, "not TLS: {}", printable(first)),
            Self::Malformed(why) => write!(f, "malformed: {why}"),
            Self::TooMuch => f.write_str("the answer is too long"),
            Self::TimeIsUp => f.write_str("the time limit of this scan was reached"),
            Self::Stopped(why) => f.write_str(why),
        }
    }
}

/// The first bytes, escaped for reports.
pub(crate) fn printable(bytes: &[u8]) -> String {
    let text: String = bytes.iter().take(60).map(|b| b.escape_ascii().to_string()).collect();
    format!("\"{text}\"{}", if bytes.len() > 60 { "..." } else { "" })
}

/// An unencrypted event from a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Message(Message),
    /// A fatal alert, or close_notify: level and description.
    Alert(u8, u8),
    ChangeCipherSpec,
    /// Another record, which may be encrypted.
    Record(ContentType, Vec<u8>),
}

/// The name of an alert in evidence.
pub(crate) fn alert_name(level: u8, description: u8) -> String {
    let level = if level == 1 { "warning " } else { "" };
    format!("alert {level}{} ({description})", names::alert(description))
}

pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection that is ready for TLS.
pub struct Link {
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
    bytes: usize,
    records: usize,
    warnings: usize,
    handshakes: Handshakes,
    /// Time limit for a single wait.
    pub(super) patience: Duration,
    /// End of the connection.
    pub(super) deadline: Instant,
    /// Records what the server chooses.
    pub(super) observed: Option<Arc<Observed>>,
    /// The client certificate.
    pub(super) identity: Option<Arc<ClientIdentity>>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Link {
    pub(super) fn new(
        stream: Box<dyn Stream>,
        patience: Duration,
        deadline: Instant,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
            bytes: 0,
            records: 0,
            warnings: 0,
            handshakes: Handshakes::default(),
            patience,
            deadline,
            observed: None,
            identity: None,
            _permit: permit,
        }
    }

    /// A closed connection.
    pub(super) fn closed() -> Self {
        Self::new(Box::new(tokio::io::empty()), Duration::ZERO, Instant::now(), None)
    }

    /// Records what the server chose in answer to a hello.
    pub(super) fn saw(&self, asked: &ClientHello, server: &ServerHello) {
        if let Some(observed) = &self.observed {
            observed.hello(asked, server);
        }
    }

    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
        let until = self.deadline.min(Instant::now() + self.patience);
        let sent = timeout_at(until, async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        });
        match sent.await {
            Ok(Ok(())) => Ok(()),
            // If this fails, there may still be an answer to read.
            Ok(Err(_)) => Ok(()),
            Err(_) => Err(Trouble::TimedOut(self.patience)),
        }
    }

    /// Sends an unencrypted record.
    pub async fn send_record(
        &mut self,
        content: ContentType,
        version: u16,
        fragment: &[u8],
    ) -> Result<(), Trouble> {
        self.send(&record(content, version, fragment)).await
    }

    /// Waits for the next bytes; `false` at the end.
    pub async fn more(&mut self) -> Result<bool, Trouble> {
        if self.bytes >= MAX_BYTES {
            return Err(Trouble::TooMuch);
        }
        let until = self.deadline.min(Instant::now() + self.patience);
        // Do not read into an array: it would be part of every future that waits here.
        self.buffer.reserve(2 << 10);
        match timeout_at(until, self.stream.read_buf(&mut self.buffer)).await {
            Err(_) => Err(Trouble::TimedOut(self.patience)),
            Ok(Ok(0)) => Ok(false),
            Ok(Ok(n)) => {
                self.bytes += n;
                Ok(true)
            }
            Ok(Err(e)) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Ok(Err(_)) => Err(Trouble::Reset),
        }
    }

    /// Received bytes that have not been parsed yet.
    pub fn buffered(&self) -> &[u8] {
        &self.buffer
    }

    /// The next record, encrypted or not: its type, version and content.
    pub async fn record(&mut self) -> Result<(ContentType, u16, Vec<u8>), Trouble> {
        loop {
            match next_record(&self.buffer) {
                Ok(Some((record, length))) => {
                    self.records += 1;
                    if self.records > MAX_RECORDS {
                        return Err(Trouble::TooMuch);
                    }
                    let found = (record.content, record.version, record.fragment.to_vec());
                    self.buffer.drain(..length);
                    return Ok(found);
                }
                Ok(None) => {}
                Err(_) if self.records == 0 => return Err(Trouble::NotTls(self.buffer.clone())),
                Err(e) => return Err(Trouble::Malformed(e.0)),
            }
            if !self.more().await? {
                return Err(Trouble::Closed);
            }
        }
    }

    /// The next unencrypted event.
    pub async fn event(&mut self) -> Result<Event, Trouble> {
        loop {
            if let Some(message) = self.handshakes.message().map_err(|e| Trouble::Malformed(e.0))? {
                return Ok(Event::Message(message));
            }
            let (content, _, fragment) = self.record().await?;
            match content {
                ContentType::Handshake => self.handshakes.push(&fragment),
                ContentType::ChangeCipherSpec => return Ok(Event::ChangeCipherSpec),
                // An alert of two bytes is unencrypted.
                ContentType::Alert if fragment.len() == 2 => {
                    let (level, description) =
                        alert(&fragment).map_err(|e| Trouble::Malformed(e.0))?;
                    self.warnings += 1;
                    // close_notify is a warning, but ends the connection.
                    if level == 2 || description == 0 {
                        return Ok(Event::Alert(level, description));
                    }
                    // Endless warnings are neither an acceptance nor a rejection.
                    if self.warnings > MAX_WARNINGS {
                        return Err(Trouble::Malformed("too many warnings"));
                    }
                }
                other => return Ok(Event::Record(other, fragment)),
            }
        }
    }
}
