//! Probes after a complete handshake: resumption, 0-RTT, renegotiation, and client certificates.

use std::borrow::Cow;
use std::time::Duration;

use tokio::time::sleep;
use x509_cert::der::Decode;
use x509_cert::name::Name;

use super::Prober;
use super::handshake::{Failure, Incoming, tls12, tls13};
use super::link::{Trouble, alert_name};
use crate::facts::{Answer, Facts, Value};
use crate::parse::{CertificateRequest, ClientHello, ContentType, extension};
use crate::target::Start;
use tls12::{Faults, Renegotiation, Session, with_id, with_ticket};

/// The number of attempts to resume a session: an address may have several servers that do not share
/// sessions.
const TRIES: usize = 3;

/// `session.id`, `session.ticket`, `renegotiation.by_client`,
/// `vulnerability.insecure_renegotiation` and `client_certificate.*`, with TLS 1.2 or earlier. The server
/// must accept the hello, one of [`tls12::hello`]. Takes about six handshakes.
pub async fn tls1_2(prober: &Prober, hello: &ClientHello) -> Facts {
    let (mut facts, seen) = seen(prober, hello).await;
    facts.extend(renegotiation(prober, hello, seen.completes).await);
    facts
}

/// Observations in these handshakes that other probes use.
pub(super) struct Seen {
    /// Whether the server supports the heartbeat extension.
    pub(super) heartbeat: Option<bool>,
    pub(super) tickets: Tickets,
    /// Why no handshake was completed, if none was.
    pub(super) completes: Result<(), String>,
}

/// Whether the server issues tickets.
#[derive(Default)]
pub(super) enum Tickets {
    #[default]
    Unknown,
    None,
    /// It does, and it echoed the session ID of 32 bytes that came with this session's ticket.
    Echoed(Session),
}

/// `session.id`, `session.ticket` and `client_certificate.*`, and other observations.
pub(super) async fn seen(prober: &Prober, hello: &ClientHello) -> (Facts, Seen) {
    let mut facts = Facts::default();
    let mut seen = Seen { heartbeat: None, tickets: Tickets::Unknown, completes: Ok(()) };
    let plain = hello.clone().without(extension::SESSION_TICKET);
    // peer_allowed_to_send (RFC 6520 section 2).
    let greeting = plain.clone().with(extension::HEARTBEAT, vec![1]);
    let (mut first, ended) = complete(prober, &greeting, None).await;
    if let (Some(server), Ok(())) = (&first.server, &ended) {
        seen.heartbeat = Some(server.extension(extension::HEARTBEAT).is_some());
    }
    let without = match &ended {
        Ok(()) => None,
        Err(failure) => Some(match &first.request {
            Some(_) if first.finished => format!("no handshake without a certificate: {failure}"),
            _ => format!("no handshake: {failure}"),
        }),
    };
    if let Some(server) = &first.server
        && (ended.is_ok() || first.finished)
    {
        let refused = ended.err().filter(|failure| {
            // A rejection of the empty Certificate (RFC 5246 section 7.4.6: fatal handshake_failure).
            matches!(
                failure,
                Failure::Alert(..) | Failure::Trouble(Trouble::Closed | Trouble::Reset)
            )
        });
        let refused = refused.map(|failure| failure.to_string());
        let shown = prober.identity.is_some() && server.version == 0x0303;
        client_certificate(&mut facts, first.request.as_ref(), refused, server.version, shown);
    }
    if let Some(why) = without {
        for id in ["session.id", "session.ticket"] {
            facts.set(id, Answer::Inconclusive, None, why.clone());
        }
        seen.completes = Err(why);
        return (facts, seen);
    }

    // One connection at a time, because some servers serve only one.
    let session = first.session.take();
    first.channel.close().await;
    let (answer, evidence) = match session.filter(|session| !session.id.is_empty()) {
        None => (Answer::No, "the server sent no session ID".to_owned()),
        Some(session) => {
            let (answer, evidence, _) =
                resumed(prober, &session, "ID", &with_id(plain, &session)).await;
            (answer, evidence)
        }
    };
    facts.set("session.id", answer, None, evidence);

    let asking = hello.clone().with(extension::SESSION_TICKET, Vec::new());
    let (mut second, ended) = complete(prober, &asking, None).await;
    if let Err(failure) = ended {
        facts.set("session.ticket", Answer::Inconclusive, None, failure.to_string());
        return (facts, seen);
    }
    let session = second.session.take();
    second.channel.close().await;
    let ticket = session.as_ref().and_then(|session| Some((session, session.ticket.as_ref()?)));
    let (answer, value, evidence) = match ticket {
        None => {
            seen.tickets = Tickets::None;
            (Answer::No, None, "the server sent no NewSessionTicket".to_owned())
        }
        Some((session, ticket)) => {
            let lifetime = Value::Number(ticket.lifetime.into());
            let id = [0x77; 32];
            let offer = with_ticket(asking, session, &id);
            let (answer, evidence, echoed) = resumed(prober, session, "ticket", &offer).await;
            if echoed == id {
                seen.tickets = Tickets::Echoed(session.clone());
            }
            (answer, Some(lifetime), evidence)
        }
    };
    facts.set("session.ticket", answer, value, evidence);
    (facts, seen)
}

/// Whether the server resumes the session that a hello offers, and the session ID of that handshake.
async fn resumed(
    prober: &Prober,
    session: &Session,
    by: &str,
    offer: &ClientHello,
) -> (Answer, String, Vec<u8>) {
    let mut failed = None;
    for _ in 0..TRIES {
        match complete(prober, offer, Some(session)).await {
            (client, Ok(())) if client.resumed => {
                let id = client.server.map(|server| server.session_id).unwrap_or_default();
                return (Answer::Yes, format!("an abbreviated handshake by {by}"), id);
            }
            (_, Ok(())) => {}
            (_, Err(failure)) => failed = Some(failure),
        }
    }
    match failed {
        Some(failure) => {
            (Answer::Inconclusive, format!("session offered by {by}: {failure}"), Vec::new())
        }
        None => {
            let evidence = format!(
                "the server issues sessions, but {TRIES} offers by {by} led to full handshakes"
            );
            (Answer::No, evidence, Vec::new())
        }
    }
}

/// `renegotiation.by_client` and `vulnerability.insecure_renegotiation`: in a handshake, and in one
/// without RFC 5746. Some servers pause after a rejection.
pub(super) async fn renegotiation(
    prober: &Prober,
    hello: &ClientHello,
    completes: Result<(), String>,
) -> Facts {
    let mut facts = Facts::default();
    let (mut client, ended) = match completes {
        Ok(()) => complete(prober, hello, None).await,
        Err(why) => (tls12::Client::unconnected(hello.clone()), Err(Failure::Unsupported(why))),
    };
    if let Err(failure) = ended {
        let why = match failure {
            Failure::Unsupported(why) => why,
            failure => failure.to_string(),
        };
        for id in ["renegotiation.by_client", "vulnerability.insecure_renegotiation"] {
            facts.set(id, Answer::Inconclusive, None, why.clone());
        }
        return facts;
    }
    let server = client.server.as_ref();
    let secure = server.is_some_and(|s| s.extension(extension::RENEGOTIATION_INFO).is_some());
    let how = if secure { "by RFC 5746" } else { "without RFC 5746" };
    let taken = client.renegotiate(secure).await;
    drop(client);
    // no_renegotiation
    let never = taken == Ok(Renegotiation::Refused(alert_name(1, 100)));
    let first = judged(prober, hello, taken, how).await;
    facts.set("renegotiation.by_client", first.0, None, first.1.clone());

    let (answer, evidence) = match secure {
        // The attacker's session starts without the extension; then follows the hello of a victim that does
        // not support it (RFC 5746 section 1).
        false => first,
        // A server that rejects secure renegotiation also rejects insecure renegotiation.
        true if never => (Answer::No, format!("not even {}", first.1)),
        true => {
            let old = hello.clone().without(extension::RENEGOTIATION_INFO);
            match complete(prober, &old, None).await {
                (mut client, Ok(())) => {
                    let taken = client.renegotiate(false).await;
                    drop(client);
                    judged(prober, hello, taken, "without RFC 5746").await
                }
                (_, Err(Failure::Alert(level, description))) => {
                    let alert = alert_name(level, description);
                    (
                        Answer::No,
                        format!(
                            "the server rejects handshakes without renegotiation_info: {alert}"
                        ),
                    )
                }
                (_, Err(failure)) => (Answer::Inconclusive, failure.to_string()),
            }
        }
    };
    facts.set("vulnerability.insecure_renegotiation", answer, None, evidence);
    facts
}

async fn judged(
    prober: &Prober,
    hello: &ClientHello,
    taken: Result<Renegotiation, Failure>,
    how: &str,
) -> (Answer, String) {
    match taken {
        Ok(Renegotiation::Taken) => (
            Answer::Yes,
            format!("ServerHello to ServerHelloDone in answer to a ClientHello {how}"),
        ),
        Ok(Renegotiation::Refused(why)) => (Answer::No, format!("{how}: {why}")),
        // The server may have another reason to close, so see whether it also closes without a
        // renegotiation.
        Ok(Renegotiation::Closed(why)) => match complete(prober, hello, None).await {
            (mut client, Ok(())) => match stays(&mut client).await {
                Ok(()) => (Answer::No, format!("{how}: {why}; without it, the server waits")),
                Err(then) => {
                    (Answer::Inconclusive, format!("{how}: {why}; also without it: {then}"))
                }
            },
            (_, Err(failure)) => {
                (Answer::Inconclusive, format!("{how}: {why}, and then: {failure}"))
            }
        },
        Ok(Renegotiation::Silent) => match complete(prober, hello, None).await {
            (_, Ok(())) => {
                let evidence =
                    format!("{how}: no answer; handshakes before and after were completed");
                (Answer::No, evidence)
            }
            (_, Err(failure)) => {
                (Answer::Inconclusive, format!("{how}: no answer, and then: {failure}"))
            }
        },
        Err(failure) => (Answer::Inconclusive, format!("{how}: {failure}")),
    }
}

/// Whether a server keeps an idle connection open.
async fn stays(client: &mut tls12::Client) -> Result<(), Failure> {
    let link = &mut client.channel.link;
    link.patience = link.patience.min(AWHILE);
    loop {
        match client.channel.next().await {
            Err(Failure::Trouble(Trouble::TimedOut(_))) => return Ok(()),
            // Other messages, such as a greeting or a ticket, are ignored below.
            Ok(Incoming::Alert(level, description)) => {
                return Err(Failure::Alert(level, description));
            }
            Ok(_) => {}
            Err(failure) => return Err(failure),
        }
    }
}

/// Servers that close for another reason do so within this time.
const AWHILE: Duration = Duration::from_millis(300);

/// Performs a handshake, and retries if there is no answer.
pub(super) async fn complete(
    prober: &Prober,
    hello: &ClientHello,
    session: Option<&Session>,
) -> (tls12::Client, Result<(), Failure>) {
    complete_with(prober, hello, session, Faults::default()).await
}

pub(super) async fn complete_with(
    prober: &Prober,
    hello: &ClientHello,
    session: Option<&Session>,
    faults: Faults,
) -> (tls12::Client, Result<(), Failure>) {
    let mut pauses = [200, 1000].into_iter();
    loop {
        let (client, ended) = match prober.connect().await {
            Ok(link) => {
                let mut client = tls12::Client::new(link, hello.clone());
                let ended = client.handshake(session, faults).await;
                (client, ended)
            }
            Err(trouble) => (tls12::Client::unconnected(hello.clone()), Err(trouble.into())),
        };
        // After our Finished, a close is an answer too.
        let again = match &ended {
            Err(Failure::Trouble(trouble)) if trouble.is_final() => false,
            Err(Failure::Trouble(_)) => !client.finished,
            _ => false,
        };
        match pauses.next().filter(|_| again) {
            Some(pause) => {
                drop(client);
                sleep(Duration::from_millis(pause)).await;
            }
            None => return (client, ended),
        }
    }
}

/// `session.psk`, `session.psk_without_dhe`, `session.early_data` and `client_certificate.*`, with
/// TLS 1.3. The hello is [`super::shown::hello`], or a similar one. Takes three to eight handshakes.
pub async fn tls1_3(prober: &Prober, hello: &ClientHello) -> Facts {
    after(prober, hello, full(prober, &asking_for_tickets(hello), None).await).await
}

/// The first of these handshakes, with a hello that may have more extensions.
pub(super) async fn first(prober: &Prober, hello: &ClientHello) -> Result<tls13::Client, Failure> {
    full(prober, &asking_for_tickets(hello), None).await
}

fn asking_for_tickets(hello: &ClientHello) -> ClientHello {
    // Servers send no tickets without this extension (RFC 8446 section 4.2.9).
    hello.clone().with(extension::PSK_KEY_EXCHANGE_MODES, vec![2, 1, 0])
}

/// The probes after the first handshake.
pub(super) async fn after(
    prober: &Prober,
    hello: &ClientHello,
    first: Result<tls13::Client, Failure>,
) -> Facts {
    let mut facts = Facts::default();
    let hello = asking_for_tickets(hello);
    let unknown = |facts: &mut Facts, answer: Answer, why: Cow<'static, str>| {
        for id in ["session.psk", "session.psk_without_dhe", "session.early_data"] {
            facts.set(id, answer, None, why.clone());
        }
    };
    let mut first = match first {
        Ok(client) => client,
        Err(failure) => {
            unknown(&mut facts, Answer::Inconclusive, format!("no handshake: {failure}").into());
            return facts;
        }
    };
    let mut ticket = ticket_of(prober, &mut first).await;
    let refused = match &ticket {
        Err(failure @ Failure::Alert(2, _)) => Some(failure.to_string()),
        Err(failure @ Failure::Trouble(Trouble::Closed | Trouble::Reset)) => {
            Some(failure.to_string())
        }
        _ => None,
    };
    let shown = prober.identity.is_some();
    client_certificate(&mut facts, first.request.as_ref(), refused.clone(), 0x0304, shown);
    first.channel.close().await;

    let (mut psk, mut early) = (None, None);
    for _ in 0..TRIES {
        let old = match &ticket {
            Ok(old) => old,
            Err(Failure::Trouble(Trouble::TimedOut(_))) => {
                unknown(&mut facts, Answer::No, "no ticket after the handshake".into());
                return facts;
            }
            Err(failure) => {
                let why = format!("instead of a ticket: {failure}");
                // A server that requests a certificate may close here for that reason.
                let answer = match failure {
                    Failure::Trouble(Trouble::Closed) if refused.is_none() => Answer::No,
                    Failure::Alert(1, 0) => Answer::No,
                    _ => Answer::Inconclusive,
                };
                unknown(&mut facts, answer, why.into());
                return facts;
            }
        };
        let allowed = old.ticket.early_data.filter(|bytes| *bytes > 0);
        let resume = || tls13::Resume { ticket: old, dhe: true, early: allowed.is_some() };
        let mut client = match full(prober, &hello, Some(&resume)).await {
            Ok(client) => client,
            Err(failure) => {
                let why = format!("ticket offered: {failure}");
                psk = psk.filter(|(answer, _)| *answer == Answer::Yes);
                psk = psk.or(Some((Answer::Inconclusive, why)));
                break;
            }
        };
        let (resumed, taken) = (client.resumed(), client.takes_early_data());
        early = Some(match (allowed, taken) {
            (None, _) if early.is_some() => break,
            (None, _) => (Answer::No, None, "the tickets allow no early data".to_owned()),
            (Some(bytes), true) => {
                let evidence = "early_data in EncryptedExtensions".to_owned();
                (Answer::Yes, Some(Value::Number(bytes.into())), evidence)
            }
            // A server rejects early data right after its start, or with a ticket of another server, or
            // because of its replay protection (RFC 8446 section 8).
            (Some(bytes), false) => {
                let evidence =
                    format!("the tickets allow {bytes} bytes, but the server did not accept them");
                (Answer::Inconclusive, None, evidence)
            }
        });
        // Tickets may be single-use, so take a new one.
        if let Ok(next) = ticket_of(prober, &mut client).await {
            ticket = Ok(next);
        }
        client.channel.close().await;
        if resumed {
            psk = Some((Answer::Yes, "pre_shared_key in the ServerHello".to_owned()));
            // Early data may be accepted next time.
            if allowed.is_none() || taken {
                break;
            }
        } else if psk.is_none() {
            let evidence =
                format!("the server issues tickets, but {TRIES} offers led to full handshakes");
            psk = Some((Answer::No, evidence));
        }
    }
    let (answer, evidence) = psk.unwrap_or((Answer::Untested, String::new()));
    facts.set("session.psk", answer, None, evidence.clone());
    let early = match (answer, early) {
        (Answer::Yes, Some(early)) => early,
        (Answer::No, _) => (Answer::No, None, "sessions are not resumed".to_owned()),
        _ => (Answer::Inconclusive, None, evidence.clone()),
    };
    facts.set("session.early_data", early.0, early.1, early.2);

    let (answer, evidence) = match (answer, &ticket) {
        (Answer::Yes, Ok(old)) => {
            let resume = || tls13::Resume { ticket: old, dhe: false, early: false };
            match full(prober, &hello, Some(&resume)).await {
                Ok(client) => match &client.server {
                    Some(server) if client.resumed() && server.key_share().is_none() => {
                        (Answer::Yes, "pre_shared_key without key_share".to_owned())
                    }
                    Some(_) if client.resumed() => {
                        (Answer::No, "resumed, but with a new key exchange".to_owned())
                    }
                    _ => {
                        (Answer::No, "with only psk_ke offered, the handshake was full".to_owned())
                    }
                },
                Err(failure @ Failure::Alert(2, _)) => (Answer::No, failure.to_string()),
                Err(failure) => (Answer::Inconclusive, failure.to_string()),
            }
        }
        (Answer::No, _) => (Answer::No, "sessions are not resumed".to_owned()),
        _ => (Answer::Inconclusive, evidence),
    };
    facts.set("session.psk_without_dhe", answer, None, evidence);
    facts
}

/// Performs a handshake, and retries if there is no answer.
async fn full<'a>(
    prober: &Prober,
    hello: &ClientHello,
    resume: Option<&(dyn Fn() -> tls13::Resume<'a> + Sync)>,
) -> Result<tls13::Client, Failure> {
    super::shown::patiently(async || {
        let mut client = tls13::Client::new(prober.connect().await?, hello.clone());
        client.handshake(resume.map(|resume| resume())).await?;
        Ok(client)
    })
    .await
}

/// Waits for the first ticket.
///
/// Some servers send it only along with other data. So if there is none, a harmless request is sent.
async fn ticket_of(prober: &Prober, client: &mut tls13::Client) -> Result<tls13::Ticket, Failure> {
    let patience = client.channel.link.patience;
    client.channel.link.patience = patience.min(Duration::from_millis(500));
    let first = client.ticket().await;
    client.channel.link.patience = patience;
    if !matches!(first, Err(Failure::Trouble(Trouble::TimedOut(_)))) {
        return first;
    }
    let host = prober.name.as_deref().unwrap_or("localhost");
    let request = match prober.start {
        Start::Direct | Start::Https => {
            format!("HEAD / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
        }
        Start::Smtp | Start::Lmtp | Start::Pop3 | Start::Ftp => "NOOP\r\n".to_owned(),
        Start::Imap => "a NOOP\r\n".to_owned(),
        _ => return first,
    };
    client.channel.send(ContentType::ApplicationData, request.as_bytes()).await?;
    loop {
        match client.channel.next().await? {
            Incoming::Message(message) => {
                if let Some(ticket) = client.read_ticket(&message)? {
                    return Ok(ticket);
                }
            }
            // The server answered the request, and will not send a ticket any more.
            Incoming::Data(_) => return first,
            Incoming::Alert(level, description) => return Err(Failure::Alert(level, description)),
            _ => {}
        }
    }
}

/// `client_certificate.*`, from a handshake without a client certificate, or with the one of the command line
/// (`shown`). `refused` is the server's rejection after that.
fn client_certificate(
    facts: &mut Facts,
    request: Option<&CertificateRequest>,
    refused: Option<String>,
    version: u16,
    shown: bool,
) {
    let Some(request) = request else {
        let evidence = "the server sent no CertificateRequest";
        for id in [
            "client_certificate.requested",
            "client_certificate.required",
            "client_certificate.authorities",
        ] {
            facts.set(id, Answer::No, None, evidence);
        }
        return;
    };
    let version = crate::names::Version::from_code(version);
    let version = version.map(|version| format!(" ({version})")).unwrap_or_default();
    let evidence = format!("CertificateRequest{version}");
    facts.set("client_certificate.requested", Answer::Yes, None, evidence.clone());
    let (answer, why) = match refused {
        Some(why) if shown => {
            (Answer::Inconclusive, format!("after the given client certificate: {why}"))
        }
        None if shown => {
            (Answer::Inconclusive, "the given client certificate was accepted".to_owned())
        }
        Some(why) => (Answer::Yes, format!("after an empty Certificate: {why}")),
        None => (Answer::No, "an empty Certificate was accepted".to_owned()),
    };
    facts.set("client_certificate.required", answer, None, why);
    let names: Vec<String> = request.authorities.iter().map(|der| rfc4514(der)).collect();
    match names.is_empty() {
        true => {
            let evidence = format!("{evidence} without names");
            facts.set("client_certificate.authorities", Answer::No, None, evidence);
        }
        false => {
            let names = Some(Value::List(names));
            facts.set("client_certificate.authorities", Answer::Yes, names, evidence);
        }
    }
}

fn rfc4514(der: &[u8]) -> String {
    match Name::from_der(der) {
        Ok(name) => name.to_string(),
        Err(_) => format!("an unreadable name of {} bytes", der.len()),
    }
}
