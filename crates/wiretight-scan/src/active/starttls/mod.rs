//! STARTTLS: from the plaintext protocol to the first byte of TLS.
//!
//! [`upgrade`] sends what a client needs to send, and no more: greeting, request for capabilities, command.
//! It sends the command even if it is not offered. If the server then starts TLS, a device on the path has
//! removed the offer. [`Refused`] distinguishes a server's rejection from other failures; only a rejection
//! results in a "no".
//!
//! [`injection`] is the only probe that sends more.

mod dialogues;
mod injection;
mod lines;
mod stream;
mod wire;

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::facts::{Answer, Facts};
use crate::parse::starttls::{Listed, shown};
use crate::target::Start;

pub use injection::{injection, time as injection_time};
pub use stream::Stream;
use wire::Wire;

/// A connection to a server that waits for a ClientHello.
#[derive(Debug)]
pub struct Upgrade<S> {
    /// The stream for TLS. SQL Server needs the handshake in TDS packets, see [`Stream`].
    pub stream: Stream<S>,
    /// The server's greeting; empty if it has none.
    pub greeting: String,
    /// How the server offered TLS and agreed to it.
    pub offer: String,
    /// The sign that a device on the path removed the offer.
    pub stripped: Option<String>,
}

/// Why there is no TLS on this connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}: {evidence}")]
pub struct Refused {
    pub why: Why,
    /// What was observed, in one line.
    pub evidence: String,
    /// The server's greeting, as far as it was received.
    pub greeting: String,
}

/// Why there is no TLS. The first two are claims about the endpoint; the others leave open whether it
/// supports TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Why {
    /// The server does not offer TLS, and rejects the command.
    NotOffered,
    /// There are signs that the server offers TLS, but a device on the path prevents it.
    Stripped,
    /// The port uses implicit TLS.
    SpeaksTls,
    /// The port uses another protocol.
    NotThisProtocol,
    /// The server is temporarily unavailable, or not for us: throttled, busy, shut down, blocked.
    NotNow,
    /// The server closed the connection without a reason.
    Closed,
    /// The connection was reset, or failed in another way.
    Reset,
    /// The deadline passed.
    TimedOut,
    /// An endless line, or endless lines.
    TooMuch,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotOffered => "TLS is not offered",
            Self::Stripped => "the offer of TLS was removed on the path",
            Self::SpeaksTls => "the port uses implicit TLS",
            Self::NotThisProtocol => "the port uses another protocol",
            Self::NotNow => "the server is not available for us now",
            Self::Closed => "the server closed the connection",
            Self::Reset => "the connection failed",
            Self::TimedOut => "the time limit was reached",
            Self::TooMuch => "the server's answer does not end",
        })
    }
}

/// The time limit of an upgrade, with `timeout` for each answer. Two thirds of it are for the greeting; only
/// then does a silent server get a ClientHello. So a server that delays its greeting, to detect clients that
/// speak first, never receives anything within `timeout`.
pub fn time(timeout: Duration) -> Duration {
    timeout * 3 / 2
}

/// Performs STARTTLS on a new connection.
///
/// `name` is the requested domain, which XMPP servers need. `local` is our address, with which SMTP and LMTP
/// clients without a name introduce themselves (an address literal: RFC 5321, section 4.1.4). For
/// [`Start::Direct`] and [`Start::Https`], the stream is returned unchanged.
pub async fn upgrade<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    start: Start,
    name: Option<&str>,
    local: Option<IpAddr>,
    deadline: Instant,
) -> Result<Upgrade<S>, Refused> {
    upgrade_with(stream, start, name, local, deadline, &[]).await
}

/// Like [`upgrade`], but sends `along` in the same segment as the last command before TLS.
async fn upgrade_with<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    start: Start,
    name: Option<&str>,
    local: Option<IpAddr>,
    deadline: Instant,
    along: &[u8],
) -> Result<Upgrade<S>, Refused> {
    let mut wire = Wire::new(stream, deadline, along);
    let outcome = match start {
        Start::Direct | Start::Https => Ok(Offer::default()),
        Start::Smtp => lines::smtp(&mut wire, "EHLO", local).await,
        Start::Lmtp => lines::smtp(&mut wire, "LHLO", local).await,
        Start::Imap => lines::imap(&mut wire).await,
        Start::Pop3 => lines::pop3(&mut wire).await,
        Start::Sieve => lines::sieve(&mut wire).await,
        Start::Ftp => lines::ftp(&mut wire).await,
        Start::Nntp => lines::nntp(&mut wire).await,
        Start::Irc => lines::irc(&mut wire).await,
        Start::XmppClient => dialogues::xmpp(&mut wire, "jabber:client", name).await,
        Start::XmppServer => dialogues::xmpp(&mut wire, "jabber:server", name).await,
        Start::Ldap => dialogues::ldap(&mut wire).await,
        Start::Postgres => dialogues::postgres(&mut wire).await,
        Start::Mysql => dialogues::mysql(&mut wire).await,
        Start::Telnet => dialogues::telnet(&mut wire).await,
        Start::Rdp => dialogues::rdp(&mut wire).await,
        Start::Mssql => dialogues::mssql(&mut wire).await,
    };
    // The server's text may be long.
    let short = |text: String| shown(text.as_bytes());
    let greeting = short(std::mem::take(&mut wire.greeting));
    match outcome {
        Ok(Offer { how, stripped }) => {
            let (stream, early) = wire.into_parts();
            let stream = Stream::new(stream, early, start == Start::Mssql);
            Ok(Upgrade { stream, greeting, offer: short(how), stripped: stripped.map(short) })
        }
        Err(Refused { why, evidence, .. }) => {
            Err(Refused { why, evidence: short(evidence), greeting })
        }
    }
}

/// The facts from an attempt of STARTTLS.
pub fn facts<S>(outcome: &Result<Upgrade<S>, Refused>) -> Facts {
    let (offered, stripped, plaintext) = match outcome {
        Ok(Upgrade { stripped: None, .. }) => (Answer::Yes, Answer::No, Answer::No),
        Ok(Upgrade { stripped: Some(_), .. }) => (Answer::Yes, Answer::Yes, Answer::No),
        Err(refused) => match refused.why {
            Why::NotOffered => (Answer::No, Answer::No, Answer::Yes),
            Why::Stripped => (Answer::Inconclusive, Answer::Yes, Answer::Yes),
            // With implicit TLS, there is no STARTTLS.
            Why::SpeaksTls => (Answer::Untested, Answer::Untested, Answer::No),
            _ => (Answer::Inconclusive, Answer::Inconclusive, Answer::Inconclusive),
        },
    };
    let evidence = match outcome {
        Ok(upgrade) => upgrade.offer.clone(),
        Err(refused) => refused.to_string(),
    };
    let trace = match outcome {
        Ok(Upgrade { stripped: Some(trace), .. }) => trace.clone(),
        _ => evidence.clone(),
    };
    let mut facts = Facts::default();
    facts.set("starttls.offered", offered, None, evidence.clone());
    facts.set("starttls.stripped", stripped, None, trace);
    facts.set("plaintext", plaintext, None, evidence);
    facts
}

/// How a server offered TLS and agreed to it.
#[derive(Debug, Default)]
struct Offer {
    how: String,
    stripped: Option<String>,
}

/// A server's answer to the last command before TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Go,
    No,
    /// The command is unknown.
    Unknown,
    /// Temporarily not available, or the server closes.
    Later,
}

/// The result of the list of capabilities and the answer to the command. `seen` describes both for the
/// evidence.
fn verdict(command: &str, listed: Listed, said: Said, seen: String) -> Result<Offer, Refused> {
    let stripped = match (&listed, said) {
        (_, Said::Later) => return Err(refused(Why::NotNow, seen)),
        (Listed::Yes | Listed::NoList, Said::Go) => None,
        (Listed::No, Said::Go) => Some(format!("{command} is not offered, but accepted; {seen}")),
        (Listed::Mangled(word), Said::Go) => {
            Some(format!("`{word}` is in the place of {command}, which is accepted; {seen}"))
        }
        (Listed::Mangled(word), Said::No | Said::Unknown) => {
            let trace = format!("`{word}` is in the place of {command}; {seen}");
            return Err(refused(Why::Stripped, trace));
        }
        (Listed::Yes, Said::Unknown) => {
            let trace = format!("{command} is offered, but then reported as unknown; {seen}");
            return Err(refused(Why::Stripped, trace));
        }
        // The server may be misconfigured, for example without a certificate.
        (Listed::Yes, Said::No) => return Err(refused(Why::NotNow, seen)),
        (Listed::No | Listed::NoList, Said::No | Said::Unknown) => {
            return Err(refused(Why::NotOffered, seen));
        }
    };
    Ok(Offer { how: seen, stripped })
}

fn refused(why: Why, evidence: impl Into<String>) -> Refused {
    Refused { why, evidence: evidence.into(), greeting: String::new() }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    use super::*;

    /// Long enough that a busy machine does not mistake the order of two timers.
    const TIMEOUT: Duration = Duration::from_secs(1);

    /// Greets after `delay`, if it received nothing before; counts clients that spoke first.
    fn server(delay: Duration, early: &Arc<AtomicUsize>) -> tokio::io::DuplexStream {
        let (client, mut server) = tokio::io::duplex(4096);
        let early = early.clone();
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            if let Ok(Ok(1..)) = timeout(delay, server.read(&mut buffer)).await {
                early.fetch_add(1, Relaxed);
                return;
            }
            for says in ["220 mx ESMTP\r\n", "250-mx\r\n250 STARTTLS\r\n", "220 go\r\n"] {
                let _ = server.write_all(says.as_bytes()).await;
                if !matches!(server.read(&mut buffer).await, Ok(1..)) {
                    return;
                }
            }
        });
        client
    }

    #[tokio::test]
    async fn a_server_that_delays_its_greeting_receives_nothing_before_it() {
        let early = Arc::default();
        for delay in [TIMEOUT * 7 / 20, TIMEOUT * 8 / 10] {
            let deadline = Instant::now() + time(TIMEOUT);
            let upgrade = upgrade(server(delay, &early), Start::Smtp, None, None, deadline).await;
            assert!(upgrade.is_ok(), "{delay:?}: {:?}", upgrade.err());
            let connect = async || Ok(server(delay, &early));
            let deadline = Instant::now() + injection_time(TIMEOUT);
            injection(connect, Start::Smtp, None, None, deadline).await;
            assert_eq!(early.load(Relaxed), 0, "{delay:?}");
        }
        // The control: a server that is silent for longer gets a ClientHello.
        let deadline = Instant::now() + time(TIMEOUT);
        let silent = server(TIMEOUT * 2, &early);
        let refused = upgrade(silent, Start::Smtp, None, None, deadline).await.unwrap_err();
        assert_eq!((early.load(Relaxed), refused.why), (1, Why::TimedOut), "{refused}");
    }
}
