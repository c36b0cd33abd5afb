//! Heartbleed (CVE-2014-0160): a heartbeat that claims more payload than it has is answered with
//! what stands behind it in the server's memory.

use super::{Next, next};
use crate::active::Prober;
use crate::active::handshake::{Channel, Failure, Incoming, tls12};
use crate::active::sessions::complete;
use crate::facts::{Answer, Facts};
use crate::parse::{ClientHello, ContentType, Reader, extension};

/// What is sent, and what is claimed: with its padding of 16 bytes a request has 32 bytes behind
/// its header, so that a server that believes the claim gives away 32 of its own. They are counted,
/// not kept.
const SENT: u16 = 16;
const CLAIMED: u16 = 64;

/// `vulnerability.heartbleed`: asked in the clear, as the server's flight ends, and if that was met
/// with silence, under encryption, after a heartbeat that claims what it has.
pub async fn heartbleed(prober: &Prober, hello: &ClientHello) -> Facts {
    let mut facts = Facts::default();
    let (answer, evidence) = ask(prober, hello).await;
    facts.set("vulnerability.heartbleed", answer, None, evidence);
    facts
}

/// Where another handshake has shown that the extension is not answered.
pub(super) fn without_extension() -> Facts {
    let mut facts = Facts::default();
    facts.set("vulnerability.heartbleed", Answer::No, None, NOT_ANSWERED);
    facts
}

const NOT_ANSWERED: &str = "the heartbeat extension is not answered";

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
    match beat(&mut client.channel, CLAIMED).await {
        Ok(Beat::Answered(n)) if n > SENT => return (Answer::Yes, bled(n)),
        Ok(Beat::Refused(why)) => {
            return (Answer::No, format!("a heartbeat of false length: {why}"));
        }
        Ok(_) => {}
        Err(failure) => return (Answer::Inconclusive, failure.to_string()),
    }
    drop(client);

    // RFC 6520 section 3 wants no heartbeats during a handshake: they may have been passed over.
    let (mut client, ended) = complete(prober, &offer, None).await;
    if let Err(failure) = ended {
        return (Answer::Inconclusive, failure.to_string());
    }
    let control = beat(&mut client.channel, SENT).await;
    let false_length = beat(&mut client.channel, CLAIMED).await;
    match (control, false_length) {
        (_, Ok(Beat::Answered(n))) if n > SENT => (Answer::Yes, bled(n)),
        (Ok(Beat::Answered(_)), Ok(Beat::Silent)) => {
            let evidence = "a heartbeat is answered, and one of false length passed over";
            (Answer::No, evidence.to_owned())
        }
        (Ok(Beat::Answered(_)), Ok(Beat::Refused(why))) => {
            (Answer::No, format!("a heartbeat is answered, and one of false length refused: {why}"))
        }
        (Ok(Beat::Silent | Beat::Refused(_)), _) => {
            let evidence = "the extension is answered, but no heartbeat, true or false";
            (Answer::Inconclusive, evidence.to_owned())
        }
        (Err(failure), _) | (_, Err(failure)) => (Answer::Inconclusive, failure.to_string()),
        (_, Ok(Beat::Answered(_))) => {
            let evidence = "a heartbeat of false length is answered, but not with more than it had";
            (Answer::No, evidence.to_owned())
        }
    }
}

fn bled(n: u16) -> String {
    format!("a heartbeat of {SENT} bytes that claimed {CLAIMED} was answered with {n}")
}

enum Beat {
    /// With so many bytes of payload.
    Answered(u16),
    Refused(String),
    Silent,
}

async fn beat(channel: &mut Channel, claimed: u16) -> Result<Beat, Failure> {
    let mut request = vec![1];
    request.extend(claimed.to_be_bytes());
    request.extend([0x57; SENT as usize]);
    request.extend([0; 16]);
    channel.send(ContentType::Heartbeat, &request).await?;
    loop {
        return Ok(match next(channel).await {
            Next::Says(Incoming::Heartbeat(response)) => match payload(&response) {
                Some(n) => Beat::Answered(n),
                None => continue,
            },
            // A ticket, a HelloRequest, a greeting.
            Next::Says(_) => continue,
            Next::IsSilent => Beat::Silent,
            why => Beat::Refused(why.to_string()),
        });
    }
}

/// The length of the payload in the answer to our request, as far as it is there.
fn payload(response: &[u8]) -> Option<u16> {
    let mut reader = Reader::new(response);
    let (kind, payload) = (reader.u8().ok()?, reader.vec16().ok()?);
    (kind == 2 && payload.starts_with(&[0x57; SENT as usize])).then_some(payload.len() as u16)
}
