//! Heartbleed (CVE-2014-0160): the server answers a heartbeat that claims more payload than it has with the
//! memory behind it.

use std::time::Duration;

use super::{Next, next_within};
use crate::active::Prober;
use crate::active::handshake::{Channel, Failure, Incoming, tls12};
use crate::active::sessions::complete;
use crate::facts::{Answer, Facts};
use crate::parse::{ClientHello, ContentType, Reader, extension};

/// The sent and the claimed payload length. With its padding of 16 bytes, a request has 32 bytes after its
/// header, so a vulnerable server sends 32 bytes of its own memory. The scan counts and discards them.
const SENT: u16 = 16;
const CLAIMED: u16 = 64;

/// `vulnerability.heartbleed`: tested unencrypted after the server's flight; and if the server does not leak
/// there, encrypted, after a correct heartbeat.
///
/// RFC 6520 section 3 forbids heartbeats during a handshake. So silence, a close or an alert there says
/// nothing about the behaviour after the handshake. A "no" requires two answered controls: a correct
/// heartbeat before and one after.
pub async fn heartbleed(prober: &Prober, hello: &ClientHello) -> Facts {
    let mut facts = Facts::default();
    let (answer, evidence) = ask(prober, hello).await;
    facts.set("vulnerability.heartbleed", answer, None, evidence);
    facts
}

/// The result if another handshake has shown that the extension is not supported.
pub(super) fn without_extension() -> Facts {
    let mut facts = Facts::default();
    facts.set("vulnerability.heartbleed", Answer::No, None, NOT_ANSWERED);
    facts
}

pub(in crate::active) const NOT_ANSWERED: &str = "the heartbeat extension is not answered";

async fn ask(prober: &Prober, hello: &ClientHello) -> (Answer, String) {
    // peer_allowed_to_send (RFC 6520 section 2).
    let offer = hello.clone().with(extension::HEARTBEAT, vec![1]);
    let greeted = crate::active::shown::patiently(async || {
        let mut client = tls12::Client::new(prober.connect().await?, offer.clone());
        client.greet().await?;
        Ok(client)
    })
    .await;
    let mut client = match greeted {
        Ok(client) => client,
        Err(failure) => return (Answer::Inconclusive, failure.to_string()),
    };
    let has = |client: &tls12::Client| {
        let server = client.server.as_ref();
        server.is_some_and(|server| server.extension(extension::HEARTBEAT).is_some())
    };
    if !has(&client) {
        return (Answer::No, NOT_ANSWERED.to_owned());
    }
    if let Ok(Beat::Answered(n)) = beat(&mut client.channel, CLAIMED, QUICK).await
        && n > SENT
    {
        return (Answer::Yes, bled(n));
    }
    drop(client);

    let mut channel = match Box::pin(encrypted(prober, &offer)).await {
        Ok(channel) => channel,
        Err(failure) => {
            let evidence = format!("the extension is supported, but {failure}");
            return (Answer::Inconclusive, evidence);
        }
    };
    // Some servers take seconds.
    let patience = prober.timeout;
    let before = beat(&mut channel, SENT, patience).await;
    let false_length = beat(&mut channel, CLAIMED, QUICK).await;
    match (before, false_length) {
        (_, Ok(Beat::Answered(n))) if n > SENT => (Answer::Yes, bled(n)),
        (Ok(Beat::Answered(_)), Ok(Beat::Answered(_))) => {
            let evidence = "a heartbeat with a false length is answered, but without other memory";
            (Answer::No, evidence.to_owned())
        }
        (Ok(Beat::Answered(_)), Ok(Beat::Silent)) => {
            // A late answer to it would arrive before the answer to the second control.
            match beat(&mut channel, SENT, patience).await {
                Ok(Beat::Answered(n)) if n > SENT => (Answer::Yes, bled(n)),
                Ok(Beat::Answered(_)) => {
                    let evidence = "a heartbeat with a false length is ignored, and those before and \
                                    after it are answered";
                    (Answer::No, evidence.to_owned())
                }
                Ok(Beat::Silent | Beat::Refused(_)) | Err(_) => {
                    let evidence = "after a heartbeat with a false length, none is answered";
                    (Answer::Inconclusive, evidence.to_owned())
                }
            }
        }
        (Ok(Beat::Answered(_)), Ok(Beat::Refused(why))) => {
            // Release the connection permit for the control.
            drop(channel);
            Box::pin(refused(prober, &offer, &why, patience)).await
        }
        (Ok(Beat::Silent | Beat::Refused(_)), _) => {
            let evidence = "the extension is supported, but no heartbeat is answered";
            (Answer::Inconclusive, evidence.to_owned())
        }
        (Err(failure), _) | (_, Err(failure)) => (Answer::Inconclusive, failure.to_string()),
    }
}

/// The control for a server that ends the connection at a heartbeat with a false length. It may do so at any
/// second heartbeat, which two correct ones show.
async fn refused(
    prober: &Prober,
    offer: &ClientHello,
    why: &str,
    patience: Duration,
) -> (Answer, String) {
    let both = async {
        let mut channel = encrypted(prober, offer).await?;
        let first = beat(&mut channel, SENT, patience).await?;
        Ok::<_, Failure>((first, beat(&mut channel, SENT, patience).await?))
    };
    match both.await {
        Ok((Beat::Answered(_), Beat::Answered(_))) => {
            let evidence = format!(
                "a heartbeat with a false length is rejected: {why}; two correct ones are answered"
            );
            (Answer::No, evidence)
        }
        _ => {
            let evidence = format!("no second heartbeat is answered, even a correct one: {why}");
            (Answer::Inconclusive, evidence)
        }
    }
}

/// A connection after a handshake.
async fn encrypted(prober: &Prober, offer: &ClientHello) -> Result<Channel, Failure> {
    let (client, ended) = complete(prober, offer, None).await;
    ended.map(|()| client.channel)
}

fn bled(n: u16) -> String {
    format!("a heartbeat of {SENT} bytes that claimed {CLAIMED} was answered with {n}")
}

/// The wait for a heartbeat that is followed by a control.
const QUICK: Duration = Duration::from_secs(1);

enum Beat {
    /// With this number of bytes as payload.
    Answered(u16),
    Refused(String),
    Silent,
}

/// Sends a heartbeat, and waits for its answer up to `wait`.
async fn beat(channel: &mut Channel, claimed: u16, wait: Duration) -> Result<Beat, Failure> {
    let mut request = vec![1];
    request.extend(claimed.to_be_bytes());
    request.extend([0x57; SENT as usize]);
    request.extend([0; 16]);
    channel.send(ContentType::Heartbeat, &request).await?;
    channel.link.patience = wait;
    loop {
        return Ok(match next_within(channel, wait).await {
            Next::Says(Incoming::Heartbeat(response)) => match payload(&response) {
                Some(n) => Beat::Answered(n),
                None => continue,
            },
            // Ignore other messages, such as a ticket, a HelloRequest or a greeting.
            Next::Says(_) => continue,
            Next::IsSilent => Beat::Silent,
            why => Beat::Refused(why.to_string()),
        });
    }
}

/// The length of the payload, if this is the answer to our request.
fn payload(response: &[u8]) -> Option<u16> {
    let mut reader = Reader::new(response);
    let (kind, payload) = (reader.u8().ok()?, reader.vec16().ok()?);
    (kind == 2 && payload.starts_with(&[0x57; SENT as usize])).then_some(payload.len() as u16)
}
