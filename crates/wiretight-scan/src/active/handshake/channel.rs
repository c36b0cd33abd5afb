//! A link, and the protection of its records.

use super::protection::{BadPadding, Protection};
use super::{Failure, malformed};
use crate::active::link::Link;
use crate::parse::{ContentType, Handshakes, Message, record};

/// A decrypted message from the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    Message(Message),
    /// ChangeCipherSpec (up to TLS 1.2; in TLS 1.3 it has no meaning and is ignored).
    ChangeCipherSpec,
    /// An alert, including warnings: level and description.
    Alert(u8, u8),
    /// Application data.
    Data(Vec<u8>),
    Heartbeat(Vec<u8>),
}

/// A link, and the protection of its records.
pub struct Channel {
    pub(in crate::active) link: Link,
    pub(super) reading: Protection,
    pub(super) writing: Protection,
    handshakes: Handshakes,
    /// The version that records state in their header.
    pub(super) version: u16,
}

impl Channel {
    pub(super) fn new(link: Link, version: u16) -> Self {
        let (reading, writing) = (Protection::clear(), Protection::clear());
        Self { link, reading, writing, handshakes: Handshakes::default(), version }
    }

    /// Sends this in as many records as needed.
    pub async fn send(&mut self, content: ContentType, data: &[u8]) -> Result<(), Failure> {
        let mut out = Vec::new();
        for piece in data.chunks(1 << 14) {
            out.extend(self.seal(content, piece, None)?);
        }
        Ok(self.link.send(&out).await?)
    }

    /// Closes the connection in order: a session whose connection was cut is not resumed (RFC 5246
    /// section 7.2.1).
    pub async fn close(mut self) {
        let _ = self.send(ContentType::Alert, &[1, 0]).await;
    }

    /// Makes a record that is sent together with others.
    pub(super) fn seal(
        &mut self,
        content: ContentType,
        data: &[u8],
        bad: Option<BadPadding>,
    ) -> Result<Vec<u8>, Failure> {
        let (outer, fragment) = self.writing.seal(content, self.version, data, bad)?;
        Ok(record(outer, self.version, &fragment))
    }

    /// Waits for the server's next message.
    pub async fn next(&mut self) -> Result<Incoming, Failure> {
        loop {
            if let Some(message) = self.handshakes.message()? {
                return Ok(Incoming::Message(message));
            }
            let (outer, _, fragment) = self.link.record().await?;
            let tls1_3 = self.reading.is_tls1_3();
            let (content, data) = match outer {
                // In TLS 1.3 it has no meaning (RFC 8446 appendix D.4).
                ContentType::ChangeCipherSpec if tls1_3 => continue,
                // Unencrypted: the server has no keys yet, or has discarded them.
                ContentType::Alert if tls1_3 && fragment.len() == 2 => (outer, fragment),
                ContentType::ChangeCipherSpec if self.reading.is_clear() => (outer, fragment),
                _ => self.reading.open(outer, self.version, &fragment)?,
            };
            return Ok(match content {
                ContentType::Handshake => {
                    self.handshakes.push(&data);
                    continue;
                }
                ContentType::ChangeCipherSpec => Incoming::ChangeCipherSpec,
                ContentType::Alert => match *data {
                    [level, description] => Incoming::Alert(level, description),
                    _ => return Err(malformed("a malformed alert record")),
                },
                ContentType::ApplicationData => Incoming::Data(data),
                ContentType::Heartbeat => Incoming::Heartbeat(data),
            });
        }
    }

    /// The next message, if only the handshake and its end matter.
    pub(super) async fn handshake(&mut self) -> Result<Incoming, Failure> {
        loop {
            match self.next().await? {
                // close_notify ends the connection, although it is a warning.
                Incoming::Alert(level, description) if level == 2 || description == 0 => {
                    return Err(Failure::Alert(level, description));
                }
                Incoming::Alert(..) | Incoming::Heartbeat(_) => {}
                other => return Ok(other),
            }
        }
    }

    /// The next message; anything else is an error.
    pub(super) async fn message(&mut self) -> Result<Message, Failure> {
        loop {
            match self.handshake().await? {
                Incoming::Message(message) => return Ok(message),
                // TLS 1.3 servers send one before their keys are used.
                Incoming::ChangeCipherSpec => {}
                _ => return Err(malformed("data arrived during the handshake")),
            }
        }
    }
}
