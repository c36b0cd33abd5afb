//! A connection before TLS: whole messages are read from it, within a deadline and a measure.

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
    /// What came and was not used yet.
    waiting: Vec<u8>,
    /// All that came, in bytes.
    read: usize,
    /// What goes along with the last command.
    along: Vec<u8>,
    /// What the server began with, for people.
    pub(super) greeting: String,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub(super) fn new(stream: S, deadline: Instant, along: &[u8]) -> Self {
        let (waiting, greeting) = (Vec::new(), String::new());
        Self { stream, deadline, waiting, read: 0, along: along.to_vec(), greeting }
    }

    /// The stream, and what came too early.
    pub(super) fn into_parts(self) -> (S, Vec<u8>) {
        (self.stream, self.waiting)
    }

    pub(super) fn waiting(&self) -> &[u8] {
        &self.waiting
    }

    /// A part of the time that is left.
    pub(super) fn soon(&self, numerator: u32, denominator: u32) -> Instant {
        let now = Instant::now();
        now + self.deadline.saturating_duration_since(now) * numerator / denominator
    }

    /// The next message.
    pub(super) async fn message<T>(
        &mut self,
        parse: impl Fn(&[u8]) -> Parsed<T>,
    ) -> Result<T, Refused> {
        self.message_by(self.deadline, parse).await
    }

    /// The next message, if it comes by then; what came of it is kept.
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
                // The beginning of an alert is no message of anything else.
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

    /// The first message of a server that speaks first. If it stays silent for most of the time, it
    /// may be one of TLS: a ClientHello tells.
    pub(super) async fn greeting<T>(
        &mut self,
        parse: impl Fn(&[u8]) -> Parsed<T>,
    ) -> Result<T, Refused> {
        let by = self.soon(2, 3);
        let silence = match self.message_by(by, &parse).await {
            // What began to speak may be slow.
            Err(e) if e.why == Why::TimedOut && !self.waiting.is_empty() => {
                return self.message(parse).await;
            }
            Err(e) if e.why == Why::TimedOut => e,
            other => return other,
        };
        match self.answers_hello(|_| Vec::new()).await {
            true => Err(refused(Why::SpeaksTls, "no greeting, and TLS in answer to a ClientHello")),
            false => Err(silence),
        }
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        match timeout_at(self.deadline, self.stream.write_all(bytes)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(broken(&e, &self.waiting)),
            Err(_) => Err(refused(Why::TimedOut, "the server takes nothing")),
        }
    }

    /// The command that TLS follows, and what goes along, in one segment if TCP pleases.
    pub(super) async fn send_last(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        let all = [bytes, &self.along].concat();
        self.send(&all).await
    }

    /// Whether a ClientHello is answered by TLS. The connection is of no use afterwards.
    ///
    /// It is how a refusal that someone wrote in on the way is told from the server's own: the server
    /// that agreed waits for nothing else.
    pub(super) async fn answers_hello(&mut self, header: fn(usize) -> Vec<u8>) -> bool {
        let Some(hello) = client_hello() else { return false };
        // SQL Server frames it, and its answer.
        let hello = [header(hello.len()), hello].concat();
        let skip = header(0).len();
        self.waiting.clear();
        if self.send(&hello).await.is_err() {
            return false;
        }
        // A server that knows nothing of TLS need not answer: not all of the time is for this.
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
            let evidence = format!("{MAX_MESSAGE} bytes, lastly {}", shown(tail(&self.waiting)));
            return Err(refused(Why::TooMuch, evidence));
        }
        let by = by.min(self.deadline);
        match timeout_at(by, self.stream.read(&mut chunk[..room])).await {
            Ok(Ok(0)) => Err(refused(Why::Closed, what_came("the end", &self.waiting))),
            Ok(Ok(len)) => {
                self.read += len;
                self.waiting.extend_from_slice(&chunk[..len]);
                Ok(())
            }
            Ok(Err(e)) => Err(broken(&e, &self.waiting)),
            Err(_) => Err(refused(Why::TimedOut, what_came("no answer", &self.waiting))),
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
    refused(Why::Reset, what_came(&error.to_string(), waiting))
}

fn what_came(what: &str, waiting: &[u8]) -> String {
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
