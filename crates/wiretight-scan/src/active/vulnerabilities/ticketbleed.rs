//! Ticketbleed (CVE-2016-9244): a server that echoes the session ID sent with a ticket always echoes 32
//! bytes. If the ID is shorter, the rest is memory of the server.

use crate::active::Prober;
use crate::active::handshake::{Failure, tls12};
use crate::active::sessions::{Tickets, complete};
use crate::active::shown::patiently;
use crate::facts::{Answer, Facts};
use crate::parse::{ClientHello, extension};
use tls12::Session;

/// `vulnerability.ticketbleed`: offers a valid ticket with a session ID of one byte, twice; and with one of
/// 32 bytes as a control.
pub async fn ticketbleed(prober: &Prober, hello: &ClientHello) -> Facts {
    let mut facts = Facts::default();
    let (answer, evidence) = ask(prober, hello).await;
    facts.set("vulnerability.ticketbleed", answer, None, evidence);
    facts
}

/// The same, if earlier handshakes have shown how the server answers tickets.
pub(super) async fn after(prober: &Prober, hello: &ClientHello, seen: Tickets) -> Facts {
    let (answer, evidence) = match seen {
        Tickets::Unknown => return ticketbleed(prober, hello).await,
        Tickets::None => (Answer::No, NO_TICKETS.to_owned()),
        Tickets::Echoed(session) => bytes(prober, hello, &session).await,
    };
    let mut facts = Facts::default();
    facts.set("vulnerability.ticketbleed", answer, None, evidence);
    facts
}

/// The result if another handshake has shown that the server issues no tickets.
pub(super) fn without_tickets() -> Facts {
    let mut facts = Facts::default();
    facts.set("vulnerability.ticketbleed", Answer::No, None, NO_TICKETS);
    facts
}

const NO_TICKETS: &str = "no tickets are issued";

async fn ask(prober: &Prober, hello: &ClientHello) -> (Answer, String) {
    let asking = hello.clone().with(extension::SESSION_TICKET, Vec::new());
    let (mut first, ended) = complete(prober, &asking, None).await;
    if let Err(failure) = ended {
        // RFC 5077 section 3.2: there is a ticket only if the ServerHello has the extension.
        return match &first.server {
            Some(server) if server.extension(extension::SESSION_TICKET).is_none() => {
                (Answer::No, NO_TICKETS.to_owned())
            }
            _ => (Answer::Inconclusive, failure.to_string()),
        };
    }
    let session = first.session.take().filter(|session| session.ticket.is_some());
    first.channel.close().await;
    let Some(session) = session else { return (Answer::No, NO_TICKETS.to_owned()) };
    let control = [0x77; 32];
    match echo(prober, hello, &session, &control).await {
        Ok(id) if id == control => bytes(prober, hello, &session).await,
        Ok(_) => (Answer::No, "a session ID sent with a ticket is not echoed".to_owned()),
        Err(failure) => (Answer::Inconclusive, failure.to_string()),
    }
}

/// The session ID in the answer to a ticket with this session ID.
async fn echo(
    prober: &Prober,
    hello: &ClientHello,
    session: &Session,
    id: &[u8],
) -> Result<Vec<u8>, Failure> {
    let offer = tls12::with_ticket(hello.clone(), session, id);
    let client = patiently(async || {
        let mut client = tls12::Client::new(prober.connect().await?, offer.clone());
        client.greet().await?;
        Ok(client)
    })
    .await?;
    Ok(client.server.map(|server| server.session_id).unwrap_or_default())
}

/// Offers session IDs of one byte, after the control.
async fn bytes(prober: &Prober, hello: &ClientHello, session: &Session) -> (Answer, String) {
    let mut bled = 0;
    for byte in [0xa5, 0x3c] {
        match echo(prober, hello, session, &[byte]).await {
            Ok(id) if id == [byte] => {
                return (Answer::No, "a session ID of one byte is echoed unchanged".to_owned());
            }
            Ok(id) if id.len() > 1 && id[0] == byte => bled = id.len(),
            Ok(id) => {
                let n = id.len();
                let evidence = format!("a session ID of one byte gets another ID of {n} bytes");
                return (Answer::No, evidence);
            }
            Err(Failure::Alert(level, description)) => {
                let alert = Failure::Alert(level, description);
                return (Answer::No, format!("a session ID of one byte is rejected: {alert}"));
            }
            Err(failure) => return (Answer::Inconclusive, failure.to_string()),
        }
    }
    let evidence = format!(
        "with a ticket, a session ID of one byte is answered with {bled} that begin with it"
    );
    (Answer::Yes, evidence)
}
