//! One connection, at the byte where TLS begins: records out, records in, all of it bounded.

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

/// The most that is read from one connection. A server that sends more has nothing to say.
const MAX_BYTES: usize = 1 << 20;
/// The most records that are read from one connection.
const MAX_RECORDS: usize = 4096;
/// Warnings that are passed over: some servers send one for a name that they do not know.
const MAX_WARNINGS: usize = 4;

/// Why nothing, or nothing of use, came back. None of it is an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// No connection.
    Unreachable(String),
    /// STARTTLS did not come to an end.
    Start(String),
    /// It was closed in order.
    Closed,
    /// It was reset.
    Reset,
    /// Nothing came for so long.
    TimedOut(Duration),
    /// Something else than TLS came; its first bytes.
    NotTls(Vec<u8>),
    /// What came breaks the protocol.
    Malformed(&'static str),
    /// More came than anything that is asked for can take.
    TooMuch,
    /// The scan has taken as long as it may.
    TimeIsUp,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(why) => write!(f, "no connection: {why}"),
            Self::Start(why) => write!(f, "TLS was not begun: {why}"),
            Self::Closed => f.write_str("closed without an alert"),
            Self::Reset => f.write_str("reset"),
            Self::TimedOut(after) => write!(f, "silent for {:.1} s", after.as_secs_f64()),
            Self::NotTls(first) => write!(f, "no TLS: {}", printable(first)),
            Self::Malformed(why) => write!(f, "malformed: {why}"),
            Self::TooMuch => f.write_str("more was sent than is read"),
            Self::TimeIsUp => f.write_str("the time for this scan was up"),
        }
    }
}

/// The first bytes of something, so that a terminal and a report can show them.
pub(crate) fn printable(bytes: &[u8]) -> String {
    let text: String = bytes.iter().take(60).map(|b| b.escape_ascii().to_string()).collect();
    format!("\"{text}\"{}", if bytes.len() > 60 { "..." } else { "" })
}

/// What a server sends before anything is encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A handshake message.
    Message(Message),
    /// A fatal alert, or close_notify: level and description.
    Alert(u8, u8),
    /// ChangeCipherSpec.
    ChangeCipherSpec,
    /// A record of another kind, perhaps encrypted.
    Record(ContentType, Vec<u8>),
}

/// What alerts are called in evidence.
pub(crate) fn alert_name(level: u8, description: u8) -> String {
    let level = if level == 1 { "warning " } else { "" };
    format!("alert {level}{} ({description})", names::alert(description))
}

pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection on which TLS comes next.
pub struct Link {
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
    bytes: usize,
    records: usize,
    warnings: usize,
    handshakes: Handshakes,
    /// No wait lasts longer than this.
    pub(super) patience: Duration,
    /// No connection lasts longer than this.
    pub(super) deadline: Instant,
    /// Where choices of the server are noted.
    pub(super) observed: Option<Arc<Observed>>,
    /// What is shown to a server that asks for a certificate.
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

    /// One that is at its end.
    pub(super) fn closed() -> Self {
        Self::new(Box::new(tokio::io::empty()), Duration::ZERO, Instant::now(), None)
    }

    /// Notes what the server chose in answer to a hello.
    pub(super) fn saw(&self, asked: &ClientHello, server: &ServerHello) {
        if let Some(observed) = &self.observed {
            observed.hello(asked, server);
        }
    }

    /// Sends bytes as they are.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
        let until = self.deadline.min(Instant::now() + self.patience);
        let sent = timeout_at(until, async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        });
        match sent.await {
            Ok(Ok(())) => Ok(()),
            // What the peer said before it closed may still be read.
            Ok(Err(_)) => Ok(()),
            Err(_) => Err(Trouble::TimedOut(self.patience)),
        }
    }

    /// Sends a record in the clear.
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
        // Not into an array: it would be a part of every future that waits here.
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

    /// What has come and is not read yet.
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

    /// The next that a server says in the clear.
    pub async fn event(&mut self) -> Result<Event, Trouble> {
        loop {
            if let Some(message) = self.handshakes.message().map_err(|e| Trouble::Malformed(e.0))? {
                return Ok(Event::Message(message));
            }
            let (content, _, fragment) = self.record().await?;
            match content {
                ContentType::Handshake => self.handshakes.push(&fragment),
                ContentType::ChangeCipherSpec => return Ok(Event::ChangeCipherSpec),
                // An alert of two bytes is in the clear.
                ContentType::Alert if fragment.len() == 2 => {
                    let (level, description) =
                        alert(&fragment).map_err(|e| Trouble::Malformed(e.0))?;
                    self.warnings += 1;
                    // close_notify is the end, though a warning.
                    if level == 2 || description == 0 {
                        return Ok(Event::Alert(level, description));
                    }
                    // What only ever warns neither takes a hello nor refuses it.
                    if self.warnings > MAX_WARNINGS {
                        return Err(Trouble::Malformed("warnings without end"));
                    }
                }
                other => return Ok(Event::Record(other, fragment)),
            }
        }
    }
}
