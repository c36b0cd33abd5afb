//! TLS from the first bytes of both directions: SSL 2.0 to TLS 1.3.
//!
//! A flow gets a level only if its handshake was completed as far as it was captured: up to TLS 1.2 by
//! ChangeCipherSpec, in TLS 1.3 by the records that follow the ServerHello. The level is that of what was negotiated.
//! A monitor cannot check whether the client trusts the certificate.

mod dtls;
mod hello;
mod records;
#[cfg(test)]
pub(super) mod tests;

use std::borrow::Cow;

use self::records::{Begins, Sent, begins};
use super::sealed::seen;
use super::{Half, Opening, Verdict};
use crate::judge::Level;
use crate::names;
use crate::parse::{ContentType, Ssl2Answer, ssl2_parse_client_hello, ssl2_reply};
use crate::passive::{Grade, Sealed, Side};

pub(super) use self::dtls::look as dtls;
pub(super) use self::hello::{Flavour, Negotiated, Offer, offered};

/// What a TCP flow is that begins with TLS; `No` if it does not.
pub(super) fn look(opening: &Opening<'_>) -> Verdict {
    match handshake(opening) {
        Verdict::No => mid_flow(opening),
        verdict => verdict,
    }
}

/// The same for what follows a plaintext beginning, such as STARTTLS: both halves begin after it.
///
/// `No` means that something else than TLS follows.
pub(super) fn look_within(opening: &Opening<'_>) -> Verdict {
    handshake(opening)
}

fn handshake(opening: &Opening<'_>) -> Verdict {
    use Begins::*;
    let (forward, backward) = Pair::of(opening, Flavour::Tls);
    let (client, server) = (&opening.client, &opening.server);
    match (begins(client.bytes), begins(server.bytes)) {
        (ClientHello, _) => forward.after_hello(),
        (_, ClientHello) => backward.after_hello(),
        (Ssl2Hello, _) => forward.after_ssl2_hello(),
        (_, Ssl2Hello) => backward.after_ssl2_hello(),
        (Nothing | Records, ServerHello) => forward.without_hello(),
        (ServerHello, Nothing | Records) => backward.without_hello(),
        (_, ServerHello) if !client.from_start => forward.only_server().without_hello(),
        (ServerHello, _) if !server.from_start => backward.only_server().without_hello(),
        (Nothing | Partial, Partial) | (Partial, Nothing) if !opening.last => Verdict::Maybe,
        _ => Verdict::No,
    }
}

/// A flow by who plays which part in TLS.
#[derive(Debug, Clone, Copy)]
struct Pair<'a> {
    client: &'a Half<'a>,
    server: &'a Half<'a>,
    first: Option<Side>,
    last: bool,
    flavour: Flavour,
}

/// How far a handshake got.
enum Progress {
    /// Completed, as far as it was captured.
    Complete,
    /// Not yet.
    Started,
    /// Ended by an alert, or by something else than TLS; which.
    Failed(Cow<'static, str>),
}

impl<'a> Pair<'a> {
    /// With the client of the flow as the client of TLS, and the other way round, as in an active FTP data connection.
    fn of(opening: &'a Opening<'a>, flavour: Flavour) -> (Self, Self) {
        let Opening { client, server, first, last, .. } = opening;
        let forward = Self { client, server, first: *first, last: *last, flavour };
        let first = first.map(Side::other);
        (forward, Self { client: server, server: client, first, ..forward })
    }

    /// The client has sent a ClientHello.
    fn after_hello(self) -> Verdict {
        let server = match begins(self.server.bytes) {
            Begins::ClientHello | Begins::Ssl2Hello | Begins::Other => {
                return self.answered_otherwise(&Sent::read(self.client.bytes));
            }
            Begins::Nothing | Begins::Partial if !self.last => return Verdict::Maybe,
            Begins::Nothing | Begins::Partial => Sent::default(),
            Begins::ServerHello | Begins::Records => Sent::read(self.server.bytes),
        };
        self.judge(&Sent::read(self.client.bytes), &server)
    }

    /// Without the client's side, which is unreadable.
    fn only_server(self) -> Self {
        const NOTHING: &Half<'_> = &Half { bytes: &[], ends: &[], from_start: false, ended: true };
        Self { client: NOTHING, ..self }
    }

    /// The server's side begins with a ServerHello, and the client's hello was not captured so far.
    fn without_hello(self) -> Verdict {
        if !self.last {
            return Verdict::Maybe;
        }
        self.judge(&Sent::read(self.client.bytes), &Sent::read(self.server.bytes))
    }

    fn settled(self) -> bool {
        self.last || self.client.ended && self.server.ended
    }

    /// What both sides have sent, of which the first part is a hello.
    fn judge(self, client: &Sent<'_>, server: &Sent<'_>) -> Verdict {
        // Nothing is decided before both sides encrypt, or one of them fails. This spares most looks the parsing.
        let encrypts = |sent: &Sent<'_>| sent.ciphered.is_some() || sent.application > 0;
        let fails = |sent: &Sent<'_>| sent.broken || sent.alert.is_some();
        let both_encrypt = encrypts(client) && encrypts(server);
        let one_fails = fails(client) || fails(server);
        if !both_encrypt && !one_fails && !self.settled() {
            return Verdict::Maybe;
        }
        let offer = Offer::in_messages(&client.handshake, self.flavour);
        if let Some(negotiated) = Negotiated::read(server, offer.as_ref(), self.flavour) {
            let progress = self.progress(client, server, &negotiated);
            return self.decide(progress, &negotiated);
        }
        match server.fatal_alert() {
            Some(alert) => {
                let evidence = format!("the server refused the handshake: alert {alert}");
                self.offers(client, offer.as_ref(), Grade::Seen, evidence)
            }
            None if !self.settled() => Verdict::Maybe,
            None => {
                let evidence = match server.handshake.is_empty() {
                    true => "a ClientHello without an answer that was captured",
                    false => "the start of a ServerHello",
                };
                self.offers(client, offer.as_ref(), Grade::Guessed, evidence)
            }
        }
    }

    fn decide(self, progress: Progress, negotiated: &Negotiated<'_>) -> Verdict {
        let mut evidence = negotiated.evidence();
        let level = match progress {
            Progress::Complete => match negotiated.problem {
                None => negotiated.level(),
                Some(problem) => {
                    evidence.push_str(", but ");
                    evidence.push_str(problem);
                    Level::Unknown
                }
            },
            Progress::Started if !self.settled() => return Verdict::Maybe,
            Progress::Started => {
                evidence.push_str("; the handshake was not seen to complete");
                Level::Unknown
            }
            Progress::Failed(why) => {
                evidence.push_str("; ");
                evidence.push_str(&why);
                Level::Unknown
            }
        };
        if self.client.bytes.is_empty() {
            evidence.push_str(" (only the server's side was captured)");
        }
        let protocol = negotiated.protocol();
        Verdict::Done(seen(protocol, level, Grade::Seen, evidence, Some(negotiated.sealed())))
    }

    /// How far the handshake got after the ServerHello.
    fn progress(
        self,
        client: &Sent<'_>,
        server: &Sent<'_>,
        negotiated: &Negotiated<'_>,
    ) -> Progress {
        let settled = self.settled();
        for (sent, name) in [(client, "client"), (server, "server")] {
            if sent.broken {
                let what = format!("then bytes of the {name} that are no records");
                return Progress::Failed(what.into());
            }
            if let Some(alert) = sent.fatal_alert() {
                return Progress::Failed(format!("the {name} ended it: alert {alert}").into());
            }
        }
        if negotiated.retry {
            return Progress::Started;
        }
        let complete = match negotiated.is_tls1_3() {
            true => {
                // A Finished has at least 53 bytes. An alert has 19.
                if client.application == 1 && client.first_application == 19 {
                    return Progress::Failed("the client ended it with an encrypted alert".into());
                }
                server.application > 0 && (client.application > 0 || settled)
            }
            false => {
                // An encrypted alert instead of a Finished.
                for (sent, name) in [(client, "client"), (server, "server")] {
                    if sent.ciphered.is_some_and(|content| content != ContentType::Handshake) {
                        let what = format!("then no Finished of the {name}");
                        return Progress::Failed(what.into());
                    }
                }
                // A direction that was cut off within a record may go on unseen, if the other one shows that.
                let (unseen_client, unseen_server) = (
                    self.client.bytes.is_empty() || client.cut && server.application > 0,
                    self.server.bytes.is_empty() || server.cut && client.application > 0,
                );
                match (client.ciphered.is_some(), server.ciphered.is_some()) {
                    (true, true) => true,
                    (true, false) => settled && unseen_server,
                    (false, true) => settled && unseen_client,
                    (false, false) => false,
                }
            }
        };
        if complete { Progress::Complete } else { Progress::Started }
    }

    /// Something else than TLS answered a ClientHello.
    fn answered_otherwise(self, client: &Sent<'_>) -> Verdict {
        let answer = self.server.bytes;
        if self.first == Some(Side::Server) {
            // A plaintext dialogue began before.
            return Verdict::No;
        }
        let text = answer.iter().take(64).all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace());
        if !text {
            let evidence = "a ClientHello, answered with something else than TLS";
            let offer = Offer::in_messages(&client.handshake, self.flavour);
            return self.offers(client, offer.as_ref(), Grade::Unknown, evidence);
        }
        if answer.len() < 5 && !self.last {
            return Verdict::Maybe;
        }
        let protocol = if answer.starts_with(b"HTTP/") { "http" } else { "unknown" };
        Verdict::Done(seen(
            protocol,
            Level::Plaintext,
            Grade::Seen,
            "a ClientHello, answered in plaintext",
            None,
        ))
    }

    /// What the client offers, when the server chose nothing.
    fn offers(
        self,
        client: &Sent<'_>,
        offer: Option<&Offer<'_>>,
        grade: Grade,
        evidence: impl Into<Cow<'static, str>>,
    ) -> Verdict {
        let protocol = hello::protocol(offer, self.flavour);
        let sealed = offer.map(|offer| offered(offer, self.flavour));
        let evidence = match client.application > 0 && self.server.bytes.is_empty() {
            true => format!("{} (only the client's side was captured)", evidence.into()).into(),
            false => evidence.into(),
        };
        Verdict::Done(seen(protocol, Level::Unknown, grade, evidence, sealed))
    }

    /// The client has sent a hello in the format of SSL 2.0.
    fn after_ssl2_hello(self) -> Verdict {
        let (hello, length) = match ssl2_parse_client_hello(self.client.bytes) {
            Ok(Some(found)) => found,
            Ok(None) => return Verdict::Maybe,
            Err(_) => return Verdict::No,
        };
        let offers = |evidence: &'static str, grade| {
            let version = names::Version::from_code(hello.version);
            let version = version.map_or("TLS".into(), |v| v.to_string().into());
            let sealed = Sealed { version, ..Sealed::default() };
            Verdict::Done(seen("tls", Level::Unknown, grade, evidence, Some(sealed)))
        };
        match begins(self.server.bytes) {
            Begins::ServerHello | Begins::Records => {
                let server = Sent::read(self.server.bytes);
                let client = Sent::read(self.client.bytes.get(length..).unwrap_or_default());
                match Negotiated::read(&server, None, Flavour::Tls) {
                    Some(negotiated) => {
                        let progress = self.progress(&client, &server, &negotiated);
                        self.decide(progress, &negotiated)
                    }
                    None if server.fatal_alert().is_some() => {
                        offers("the server refused an SSL 2.0 hello", Grade::Seen)
                    }
                    None if self.settled() => offers("an SSL 2.0 hello", Grade::Guessed),
                    None => Verdict::Maybe,
                }
            }
            Begins::Nothing | Begins::Partial if !self.last => Verdict::Maybe,
            Begins::Nothing | Begins::Partial => offers("an SSL 2.0 hello", Grade::Guessed),
            _ => match ssl2_reply(self.server.bytes) {
                Ok(Some(Ssl2Answer::Hello(_))) => {
                    // CLIENT-MASTER-KEY: type 2, and the cipher.
                    let rest = self.client.bytes.get(length..).unwrap_or_default();
                    let [a, _, 2, x, y, z, ..] = *rest else {
                        return match self.last || self.client.ended {
                            true => offers("SSL 2.0 hellos, without a key", Grade::Seen),
                            false => Verdict::Maybe,
                        };
                    };
                    if a & 0x80 == 0 {
                        return offers("SSL 2.0 hellos, then something else", Grade::Seen);
                    }
                    let cipher = u32::from_be_bytes([0, x, y, z]);
                    let known = names::SSL2_SUITES.iter().find(|(code, _)| *code == cipher);
                    let suite = known.map(|(_, name)| Cow::Borrowed(*name));
                    let level = match cipher >> 16 {
                        0 => Level::Plaintext,
                        _ => Level::Weak,
                    };
                    let sealed = Sealed {
                        version: "SSL 2.0".into(),
                        suite,
                        post_quantum: Some(false),
                        forward_secrecy: Some(false),
                        ..Sealed::default()
                    };
                    let evidence = "SSL 2.0: both hellos, and the client's key";
                    Verdict::Done(seen("tls", level, Grade::Seen, evidence, Some(sealed)))
                }
                Ok(Some(Ssl2Answer::Error(_))) => {
                    offers("the server refused an SSL 2.0 hello", Grade::Seen)
                }
                Ok(None) if !self.last => Verdict::Maybe,
                Ok(None) => offers("an SSL 2.0 hello", Grade::Guessed),
                Err(_) => Verdict::No,
            },
        }
    }
}

/// A flow whose start was not captured: records in a row are probably TLS, but nothing says what was negotiated.
fn mid_flow(opening: &Opening<'_>) -> Verdict {
    // A direction whose start was not captured may begin within a record.
    let headers = |half: &Half<'_>| match records::chain(half.bytes) {
        None if !half.from_start => Some(0),
        headers => headers,
    };
    let (Some(client), Some(server)) = (headers(&opening.client), headers(&opening.server)) else {
        return Verdict::No;
    };
    match client + server {
        0 => Verdict::No,
        1 => Verdict::Maybe,
        _ => Verdict::Done(seen(
            "tls",
            Level::Unknown,
            Grade::Guessed,
            "TLS records, without their handshake",
            None,
        )),
    }
}
