//! From a protocol in the clear to the first byte of TLS.
//!
//! [`upgrade`] says to a server what a client says that wants TLS, and no more: the greeting, the
//! question for capabilities, the command. What is not offered is asked for all the same, since a
//! server that goes over to TLS without having offered it is the trace of a box between that takes
//! offers out. A [`Refused`] tells a server's no from all that may have gone wrong; only the former
//! becomes a fact that says no.
//!
//! [`injection`] is the one probe that sends more.

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

/// A server that awaits a ClientHello.
#[derive(Debug)]
pub struct Upgrade<S> {
    /// Where it is awaited. With SQL Server the handshake goes in packets of TDS: see [`Stream`].
    pub stream: Stream<S>,
    /// What the server began with; empty where it says nothing before it is asked.
    pub greeting: String,
    /// How it offered TLS, and how it agreed.
    pub offer: String,
    /// Why it seems that a box between took the offer out.
    pub stripped: Option<String>,
}

/// Why there is no TLS on this connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}: {evidence}")]
pub struct Refused {
    /// The kind of it.
    pub why: Why,
    /// What was seen, in a line.
    pub evidence: String,
    /// What the server began with, as far as it came.
    pub greeting: String,
}

/// The kinds of refusals. The first two are claims about the endpoint; the others leave open
/// whether TLS is to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Why {
    /// The server does not offer TLS, and says no when asked.
    NotOffered,
    /// There are signs that it would, and that something between does not let it.
    Stripped,
    /// The port speaks TLS from the first byte.
    SpeaksTls,
    /// The port speaks another protocol than was asked for.
    NotThisProtocol,
    /// The server will not talk now, or not to us: throttled, too busy, shut down, blocked.
    NotNow,
    /// It ended the connection without a reason.
    Closed,
    /// The connection was reset, or broke otherwise.
    Reset,
    /// The deadline passed.
    TimedOut,
    /// It said more than anyone needs to: no end of a line, or of lines.
    TooMuch,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotOffered => "TLS is not offered",
            Self::Stripped => "the offer of TLS was taken out on the way",
            Self::SpeaksTls => "the port speaks TLS from the first byte",
            Self::NotThisProtocol => "the port speaks another protocol",
            Self::NotNow => "the server does not serve us now",
            Self::Closed => "the server closed the connection",
            Self::Reset => "the connection broke",
            Self::TimedOut => "the time is up",
            Self::TooMuch => "the server does not come to an end",
        })
    }
}

/// How long all of this may take, where answers are waited for as long as `timeout`. A greeting is waited
/// for in two thirds of it; only then a silent server gets a ClientHello. So a server that delays its
/// greeting to catch clients that speak first never hears one within `timeout`.
pub fn time(timeout: Duration) -> Duration {
    timeout * 3 / 2
}

/// Asks the server at the other end of a new connection to go over to TLS.
///
/// `name` is the domain that is asked for, without which XMPP servers answer little. `local` is our
/// end's address, by which SMTP and LMTP clients introduce themselves when they have no name (an
/// address literal: RFC 5321, section 4.1.4). [`Start::Direct`] and [`Start::Https`] need no
/// asking: the stream comes back as it is.
pub async fn upgrade<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    start: Start,
    name: Option<&str>,
    local: Option<IpAddr>,
    deadline: Instant,
) -> Result<Upgrade<S>, Refused> {
    upgrade_with(stream, start, name, local, deadline, &[]).await
}

/// As [`upgrade`]; these bytes go along with the command that TLS follows, in the same segment.
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
    // What the server said may be long.
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

/// What an attempt to go over to TLS tells of the endpoint.
pub fn facts<S>(outcome: &Result<Upgrade<S>, Refused>) -> Facts {
    let (offered, stripped, plaintext) = match outcome {
        Ok(Upgrade { stripped: None, .. }) => (Answer::Yes, Answer::No, Answer::No),
        Ok(Upgrade { stripped: Some(_), .. }) => (Answer::Yes, Answer::Yes, Answer::No),
        Err(refused) => match refused.why {
            Why::NotOffered => (Answer::No, Answer::No, Answer::Yes),
            Why::Stripped => (Answer::Inconclusive, Answer::Yes, Answer::Yes),
            // There is nothing to offer where TLS is all that is spoken.
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

/// A server's answer to the command that TLS follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Go,
    /// No.
    No,
    /// It does not know the command.
    Unknown,
    /// Another time: the standard's word for it, or a farewell.
    Later,
}

/// What follows from the list of capabilities and the answer to the command; `seen` is both, for
/// people.
fn verdict(command: &str, listed: Listed, said: Said, seen: String) -> Result<Offer, Refused> {
    let stripped = match (&listed, said) {
        (_, Said::Later) => return Err(refused(Why::NotNow, seen)),
        (Listed::Yes | Listed::NoList, Said::Go) => None,
        (Listed::No, Said::Go) => Some(format!("{command} is not offered, and yet taken; {seen}")),
        (Listed::Mangled(word), Said::Go) => {
            Some(format!("`{word}` stands where {command} would, which is taken; {seen}"))
        }
        (Listed::Mangled(word), Said::No | Said::Unknown) => {
            let trace = format!("`{word}` stands where {command} would; {seen}");
            return Err(refused(Why::Stripped, trace));
        }
        (Listed::Yes, Said::Unknown) => {
            let trace = format!("{command} is offered, and not known when it is asked for; {seen}");
            return Err(refused(Why::Stripped, trace));
        }
        // Out of order, perhaps: no key, no certificate.
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

    /// Greets after this, if nothing came before; counts clients that spoke first.
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
    async fn a_server_that_delays_its_greeting_never_hears_a_client_speak_first() {
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
        // The control: a server that is silent for longer is offered TLS.
        let deadline = Instant::now() + time(TIMEOUT);
        let silent = server(TIMEOUT * 2, &early);
        let refused = upgrade(silent, Start::Smtp, None, None, deadline).await.unwrap_err();
        assert_eq!((early.load(Relaxed), refused.why), (1, Why::TimedOut), "{refused}");
    }
}
