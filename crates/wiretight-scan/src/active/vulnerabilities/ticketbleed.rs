//! Ticketbleed (CVE-2016-9244): a server that echoes the session ID that came with a ticket always
//! echoes 32 bytes, whatever stands behind a shorter one.

use crate::active::Prober;
use crate::active::handshake::{Failure, tls12};
use crate::active::sessions::{Tickets, complete};
use crate::active::shown::patiently;
use crate::facts::{Answer, Facts};
use crate::parse::{ClientHello, extension};
use tls12::Session;

/// `vulnerability.ticketbleed`: a ticket that is good, with an ID of one byte, twice; and with one
/// of 32 bytes as a control.
pub async fn ticketbleed(prober: &Prober, hello: &ClientHello) -> Facts {
    let mut facts = Facts::default();
    let (answer, evidence) = ask(prober, hello).await;
    facts.set("vulnerability.ticketbleed", answer, None, evidence);
    facts
}

/// The same, where handshakes before have shown how tickets are answered.
pub(super) async fn after(prober: &Prober, hello: &ClientHello, seen: Tickets) -> Facts {
    let (answer, evidence) = match seen {
        Tickets::Untold => return ticketbleed(prober, hello).await,
        Tickets::None => (Answer::No, NO_TICKETS.to_owned()),
        Tickets::Echoed(session) => bytes(prober, hello, &session).await,
    };
    let mut facts = Facts::default();
    facts.set("vulnerability.ticketbleed", answer, None, evidence);
    facts
}

/// Where another handshake has shown that no tickets are given.
pub(super) fn without_tickets() -> Facts {
    let mut facts = Facts::default();
    facts.set("vulnerability.ticketbleed", Answer::No, None, NO_TICKETS);
    facts
}

const NO_TICKETS: &str = "no tickets are given";

async fn ask(prober: &Prober, hello: &ClientHello) -> (Answer, String) {
    let asking = hello.clone().with(extension::SESSION_TICKET, Vec::new());
    let (mut first, ended) = complete(prober, &asking, None).await;
    if let Err(failure) = ended {
        // RFC 5077 section 3.2: a ticket comes only where the ServerHello has the extension.
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
        Ok(_) => (Answer::No, "an ID that comes with a ticket is not echoed".to_owned()),
        Err(failure) => (Answer::Inconclusive, failure.to_string()),
    }
}

/// The session ID that comes back when a ticket is offered with this one.
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

/// After a control: IDs of one byte.
async fn bytes(prober: &Prober, hello: &ClientHello, session: &Session) -> (Answer, String) {
    let mut bled = 0;
    for byte in [0xa5, 0x3c] {
        match echo(prober, hello, session, &[byte]).await {
            Ok(id) if id == [byte] => {
                return (Answer::No, "an ID of one byte is echoed as it is".to_owned());
            }
            Ok(id) if id.len() > 1 && id[0] == byte => bled = id.len(),
            Ok(id) => {
                let n = id.len();
                return (Answer::No, format!("an ID of one byte is answered with another of {n}"));
            }
            Err(Failure::Alert(level, description)) => {
                let alert = Failure::Alert(level, description);
                return (Answer::No, format!("an ID of one byte is refused: {alert}"));
            }
            Err(failure) => return (Answer::Inconclusive, failure.to_string()),
        }
    }
    let evidence =
        format!("with a ticket, an ID of one byte is answered with {bled} that begin so");
    (Answer::Yes, evidence)
}
