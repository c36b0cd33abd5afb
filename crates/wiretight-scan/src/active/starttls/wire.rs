//! A connection before TLS. Reads complete messages, with limits of time and size.

use std::io;
use std::sync::Arc;

use rustls::ClientConnection;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

use super::super::anyone::client_config;
use super::{Refused, Why, refused};
use crate::parse::starttls::{MAX_MESSAGE, Parsed, is_alert, is_handshake, line, printable, shown};

pub(super) struct Wire<S> {
    stream: S,
    deadline: Instant,
    /// Received, but not parsed yet.
    waiting: Vec<u8>,
    /// The total number of received bytes.
    read: usize,
    /// Sent along with the last command.
    along: Vec<u8>,
    /// The server's greeting, for the evidence.
    pub(super) greeting: String,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub(super) fn new(stream: S, deadline: Instant, along: &[u8]) -> Self {
        let (waiting, greeting) = (Vec::new(), String::new());
        Self { stream, deadline, waiting, read: 0, along: along.to_vec(), greeting }
    }

    /// The stream, and data that was received too early.
    pub(super) fn into_parts(self) -> (S, Vec<u8>) {
        (self.stream, self.waiting)
    }

    pub(super) fn waiting(&self) -> &[u8] {
        &self.waiting
    }

    /// A fraction of the remaining time.
    pub(super) fn soon(&self, numerator: u32, denominator: u32) -> Instant {
        let now = Instant::now();
        now + self.deadline.saturating_duration_since(now) * numerator / denominator
    }

    pub(super) async fn message<T>(
        &mut self,
        parse: impl Fn(&[u8]) -> Parsed<T>,
    ) -> Result<T, Refused> {
        self.message_by(self.deadline, parse).await
    }

    /// The next message, if it arrives in time. A partial message is kept.
    pub(super) async fn message_by<T>(
        &mut self,
        by: Instant,
        parse: impl Fn(&[u8]) -> Parsed<T>,
    ) -> Result<T, Refused> {
        loop {
            if is_alert(&self.waiting) {
                let evidence = format!("a TLS alert: {}", shown(&self.waiting));
                return Err(refused(Why::SpeaksTls, evidence));
            }
            match parse(&self.waiting) {
                Parsed::Whole(message, len) => {
                    self.waiting.drain(..len);
                    return Ok(message);
                }
                // This may be the beginning of an alert.
                Parsed::Not(_) if self.waiting.len() < 7 && self.waiting.first() == Some(&0x15) => {
                }
                Parsed::Not(why) => {
                    let evidence = format!("{why}: {}", shown(&self.waiting));
                    let too_much = why.ends_with("does not end");
                    let why = if too_much { Why::TooMuch } else { Why::NotThisProtocol };
                    return Err(refused(why, evidence));
                }
                Parsed::Partial => {}
            }
            self.fill(by).await?;
        }
    }

    /// The next line, as text.
    pub(super) async fn line(&mut self) -> Result<String, Refused> {
        self.message(text_line).await
    }

    /// The first message of a server that speaks first. If it is silent for most of the time, it may use
    /// implicit TLS, which a ClientHello shows.
    pub(super) async fn greeting<T>(
        &mut self,
        parse: impl Fn(&[u8]) -> Parsed<T>,
    ) -> Result<T, Refused> {
        let by = self.soon(2, 3);
        let silence = match self.message_by(by, &parse).await {
            // The server has started a message, but is slow.
            Err(e) if e.why == Why::TimedOut && !self.waiting.is_empty() => {
                return self.message(parse).await;
            }
            Err(e) if e.why == Why::TimedOut => e,
            other => return other,
        };
        match self.answers_hello(|_| Vec::new()).await {
            true => Err(refused(Why::SpeaksTls, "no greeting, but a ClientHello is answered")),
            false => Err(silence),
        }
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        match timeout_at(self.deadline, self.stream.write_all(bytes)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(broken(&e, &self.waiting)),
            Err(_) => Err(refused(Why::TimedOut, "the server does not read")),
        }
    }

    /// Sends the last command before TLS, together with `along`, if possible in one segment.
    pub(super) async fn send_last(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        let all = [bytes, &self.along].concat();
        self.send(&all).await
    }

    /// Whether the server answers a ClientHello. The connection cannot be used afterwards.
    ///
    /// This shows whether a device on the path inserted a rejection: a server that has agreed to TLS waits
    /// for a ClientHello.
    pub(super) async fn answers_hello(&mut self, header: fn(usize) -> Vec<u8>) -> bool {
        let Some(hello) = client_hello() else { return false };
        // SQL Server wraps it and its answer in TDS.
        let hello = [header(hello.len()), hello].concat();
        let skip = header(0).len();
        self.waiting.clear();
        if self.send(&hello).await.is_err() {
            return false;
        }
        // A server without TLS need not answer, so use only a part of the time.
        let by = self.soon(1, 2);
        loop {
            let answer = self.waiting.get(skip..).unwrap_or_default();
            if is_alert(answer) || is_handshake(answer) {
                return true;
            }
            if answer.len() >= 7 || self.fill(by).await.is_err() {
                return false;
            }
        }
    }

    /// Reads once.
    async fn fill(&mut self, by: Instant) -> Result<(), Refused> {
        let mut chunk = [0; 4096];
        let room = MAX_MESSAGE.saturating_sub(self.read).min(chunk.len());
        if room == 0 {
            let evidence =
                format!("{MAX_MESSAGE} bytes, ending with {}", shown(tail(&self.waiting)));
            return Err(refused(Why::TooMuch, evidence));
        }
        let by = by.min(self.deadline);
        match timeout_at(by, self.stream.read(&mut chunk[..room])).await {
            Ok(Ok(0)) => Err(refused(Why::Closed, received("the end", &self.waiting))),
            Ok(Ok(len)) => {
                self.read += len;
                self.waiting.extend_from_slice(&chunk[..len]);
                Ok(())
            }
            Ok(Err(e)) => Err(broken(&e, &self.waiting)),
            Err(_) => Err(refused(Why::TimedOut, received("no answer", &self.waiting))),
        }
    }
}

pub(super) fn text_line(data: &[u8]) -> Parsed<String> {
    match line(data) {
        Parsed::Whole(text, len) => Parsed::Whole(printable(text), len),
        Parsed::Partial => Parsed::Partial,
        Parsed::Not(why) => Parsed::Not(why),
    }
}

fn broken(error: &io::Error, waiting: &[u8]) -> Refused {
    refused(Why::Reset, received(&error.to_string(), waiting))
}

fn received(what: &str, waiting: &[u8]) -> String {
    match waiting {
        [] => what.to_owned(),
        _ => format!("{what} after {}", shown(waiting)),
    }
}

fn tail(data: &[u8]) -> &[u8] {
    &data[data.len().saturating_sub(64)..]
}

fn client_hello() -> Option<Vec<u8>> {
    let name = ServerName::try_from("scan.invalid").ok()?;
    let mut connection = ClientConnection::new(Arc::new(client_config(false)?), name).ok()?;
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).ok()?;
    Some(hello)
}
