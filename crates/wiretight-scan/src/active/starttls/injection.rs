//! STARTTLS command injection (CVE-2011-0411 and similar): whether the server processes plaintext sent right
//! after the STARTTLS command as if it had been received inside TLS.
//!
//! An attacker on the path can then insert commands before those of the client: the server reads both into
//! one buffer, and does not empty it when TLS starts. The commands of this probe have no effect.

use std::borrow::Cow;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::super::anyone::client_config;
use super::dialogues::xmpp_header;
use super::{Refused, Stream, Why, upgrade_with};
use crate::facts::{Answer, Fact};
use crate::parse::starttls::shown;
use crate::target::Start;

/// The maximum number of bytes to read inside TLS.
const MAX: usize = 16 << 10;

/// The time limit of [`injection`]: that of two connections.
pub fn time(timeout: Duration) -> Duration {
    super::time(timeout) * 2
}

/// `starttls.injection`: sends a harmless command along with the STARTTLS command, and checks whether it is
/// answered inside TLS.
///
/// `connect` opens a connection, and a second one if the first does not reach TLS. If the second one, without
/// the additional command, reaches TLS, then the command was the cause.
pub async fn injection<S, F>(
    connect: impl Fn() -> F,
    start: Start,
    name: Option<&str>,
    local: Option<IpAddr>,
    deadline: Instant,
) -> Fact
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = io::Result<S>>,
{
    let Some(bait) = Bait::of(start, name) else {
        return fact(Answer::Untested, "this protocol has no commands that could be injected");
    };
    let try_with = async |along: &[u8], by: Instant| -> Result<Tls<S>, Failure> {
        let stream = timeout_at(by, connect()).await.map_err(|_| Failure::time())??;
        let upgrade = upgrade_with(stream, start, name, local, by, along).await?;
        Tls::begin(upgrade.stream, name, by).await
    };
    // Leave enough time for the second connection.
    let now = Instant::now();
    let half = now + deadline.saturating_duration_since(now) / 2;
    let first = try_with(bait.put_in.as_bytes(), half).await;
    let refusal = match first {
        Ok(mut tls) => return bait.watch(&mut tls, deadline).await,
        // The command was not the cause.
        Err(failure) if !failure.is_answer => return failure.fact(),
        Err(failure) => failure,
    };
    match try_with(&[], deadline).await {
        Ok(mut tls) => match bait.control(&mut tls, deadline).await {
            Ok(_) => fact(
                Answer::No,
                format!("with a command after it, TLS does not start ({})", refusal.evidence),
            ),
            Err(failure) => failure.fact(),
        },
        Err(failure) => failure.fact(),
    }
}

/// The commands, and how to recognize their answers.
struct Bait {
    /// Sent as plaintext.
    put_in: String,
    /// Sent inside TLS.
    control: String,
    /// Whether a line, or a piece of XML, is the answer to the injected command.
    answers_put_in: fn(&str) -> bool,
    /// Whether it is the answer to the control. If both look the same, answers are counted.
    answers_control: fn(&str) -> bool,
    /// The last line of the server's greeting inside TLS, if it has one.
    greets: Option<fn(&str) -> bool>,
}

impl Bait {
    fn of(start: Start, name: Option<&str>) -> Option<Self> {
        /// A reply's last line.
        fn last(text: &str) -> bool {
            let code = text.as_bytes().first_chunk::<3>();
            code.is_some_and(|c| c.iter().all(u8::is_ascii_digit))
                && !matches!(text.as_bytes().get(3), Some(b'-'))
                // 421 means that the server closes, which is not an answer.
                && !text.starts_with("421")
        }
        fn status(text: &str) -> bool {
            text.starts_with("+OK") || text.starts_with("-ERR")
        }
        fn stream(text: &str) -> bool {
            text.contains("<stream:stream")
        }
        let same = |command: &str, answers: fn(&str) -> bool| Self {
            put_in: command.to_owned(),
            control: command.to_owned(),
            answers_put_in: answers,
            answers_control: answers,
            greets: None,
        };
        let xmpp = |namespace| same(&xmpp_header(namespace, name), stream);
        Some(match start {
            Start::Smtp | Start::Lmtp | Start::Ftp => same("NOOP\r\n", last),
            Start::Nntp => same("DATE\r\n", last),
            // Before authentication, NOOP is an error, which is an answer as well.
            Start::Pop3 => same("NOOP\r\n", status),
            Start::Imap => Self {
                put_in: "inj NOOP\r\n".to_owned(),
                control: "ctl NOOP\r\n".to_owned(),
                answers_put_in: |text| text.starts_with("inj "),
                answers_control: |text| text.starts_with("ctl "),
                greets: None,
            },
            Start::Sieve => Self {
                put_in: "NOOP \"inj\"\r\n".to_owned(),
                control: "NOOP \"ctl\"\r\n".to_owned(),
                answers_put_in: |text| text.contains("\"inj\""),
                answers_control: |text| text.contains("\"ctl\"") || text.starts_with("NO"),
                greets: Some(|text| text.starts_with("OK")),
            },
            Start::Irc => Self {
                put_in: "CAP LIST\r\n".to_owned(),
                control: "CAP LS 302\r\n".to_owned(),
                answers_put_in: |text| text.contains(" LIST "),
                answers_control: |text| text.contains(" LS "),
                greets: None,
            },
            Start::XmppClient => xmpp("jabber:client"),
            Start::XmppServer => xmpp("jabber:server"),
            _ => return None,
        })
    }

    /// Waits for the answer to the injected command after the handshake.
    async fn watch<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        tls: &mut Tls<S>,
        deadline: Instant,
    ) -> Fact {
        if let Some(greets) = self.greets {
            match tls.until(greets, self.answers_put_in, deadline).await {
                Ok(text) if (self.answers_put_in)(&text) => return self.taken(text),
                Ok(_) => {}
                Err(failure) => return failure.fact(),
            }
        }
        // An answer takes one round trip less than the handshake.
        let wait = (tls.handshake * 2).clamp(Duration::from_secs(1), Duration::from_secs(3));
        match tls.until(self.answers_put_in, |_| false, deadline.min(Instant::now() + wait)).await {
            Ok(answer) => return self.taken(answer),
            Err(failure) if failure.is_time => {}
            Err(failure) => return failure.fact(),
        }
        let answer = match self.control(tls, deadline).await {
            Ok(answer) => answer,
            Err(failure) => return failure.fact(),
        };
        // A late answer is possible: the control's answer must be the only one.
        let wait = deadline.min(Instant::now() + wait / 4);
        match tls.until(self.answers_put_in, |_| false, wait).await {
            Ok(second) => self.taken(second),
            Err(_) if (self.answers_put_in)(&answer) && self.put_in != self.control => {
                self.taken(answer)
            }
            Err(_) => {
                fact(Answer::No, format!("only the command inside TLS is answered: {answer}"))
            }
        }
    }

    fn taken(&self, answer: String) -> Fact {
        let command = shown(self.put_in.as_bytes());
        fact(
            Answer::Yes,
            format!("`{command}`, sent as plaintext, is answered inside TLS: {answer}"),
        )
    }

    /// Sends the control, and waits for its answer.
    async fn control<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        tls: &mut Tls<S>,
        deadline: Instant,
    ) -> Result<String, Failure> {
        timeout_at(deadline, async {
            tls.stream.write_all(self.control.as_bytes()).await?;
            tls.stream.flush().await
        })
        .await
        .map_err(|_| Failure::time())??;
        tls.until(self.answers_control, self.answers_put_in, deadline).await
    }
}

/// A connection inside TLS.
struct Tls<S> {
    stream: TlsStream<Stream<S>>,
    handshake: Duration,
    waiting: Vec<u8>,
    read: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Tls<S> {
    async fn begin(stream: Stream<S>, name: Option<&str>, by: Instant) -> Result<Self, Failure> {
        let server_name = name.and_then(|name| ServerName::try_from(name.to_owned()).ok());
        let Some(config) = client_config(server_name.is_some()) else {
            return Err(Failure::other("cannot create a TLS client"));
        };
        let server_name = match server_name {
            Some(name) => name,
            None => ServerName::from(std::net::Ipv4Addr::LOCALHOST).to_owned(),
        };
        let begun = Instant::now();
        let connector = TlsConnector::from(Arc::new(config));
        match timeout_at(by, connector.connect(server_name, stream)).await {
            Ok(Ok(mut stream)) => {
                stream.get_mut().0.handshake_done();
                let handshake = begun.elapsed();
                Ok(Self { stream, handshake, waiting: Vec::new(), read: 0 })
            }
            Ok(Err(e)) => Err(Failure {
                evidence: format!(
                    "the TLS handshake failed, or needs TLS older than 1.2: {}",
                    shown(e.to_string().as_bytes())
                ),
                is_answer: true,
                is_time: false,
            }),
            Err(_) => Err(Failure {
                evidence: "the TLS handshake does not finish in time".to_owned(),
                is_answer: true,
                is_time: true,
            }),
        }
    }

    /// The first line that matches `wanted` or `or`.
    async fn until(
        &mut self,
        wanted: fn(&str) -> bool,
        or: fn(&str) -> bool,
        by: Instant,
    ) -> Result<String, Failure> {
        loop {
            while let Some(end) = self.waiting.iter().position(|b| *b == b'\n' || *b == b'>') {
                let text: Vec<u8> = self.waiting.drain(..=end).collect();
                let text = shown(text.trim_ascii());
                if wanted(&text) || or(&text) {
                    return Ok(text);
                }
            }
            let mut chunk = [0; 2048];
            if self.read >= MAX {
                return Err(Failure::other("too much data inside TLS"));
            }
            match timeout_at(by, self.stream.read(&mut chunk)).await {
                Ok(Ok(0)) => return Err(Failure::other("the connection ended inside TLS")),
                Ok(Ok(len)) => {
                    self.read += len;
                    self.waiting.extend_from_slice(&chunk[..len]);
                }
                Ok(Err(e)) => return Err(e.into()),
                Err(_) => return Err(Failure::time()),
            }
        }
    }
}

/// Why the probe failed.
struct Failure {
    evidence: String,
    /// The injected command may be the cause.
    is_answer: bool,
    is_time: bool,
}

impl Failure {
    fn other(evidence: impl Into<String>) -> Self {
        Self { evidence: evidence.into(), is_answer: false, is_time: false }
    }

    fn time() -> Self {
        Self { is_time: true, ..Self::other("no answer to a command inside TLS") }
    }

    fn fact(self) -> Fact {
        fact(Answer::Inconclusive, self.evidence)
    }
}

impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Self {
        Self::other(shown(e.to_string().as_bytes()))
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        let is_answer = !matches!(refused.why, Why::TimedOut | Why::SpeaksTls | Why::TooMuch);
        Self { evidence: refused.to_string(), is_answer, is_time: false }
    }
}

fn fact(answer: Answer, evidence: impl Into<Cow<'static, str>>) -> Fact {
    Fact { answer, value: None, evidence: evidence.into() }
}
