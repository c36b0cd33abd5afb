//! CCS injection (CVE-2014-0224): a server that accepts ChangeCipherSpec before there is a secret uses keys
//! that anyone can compute.

use std::time::Duration;

use futures_util::future::join_all;

use super::{Next, next, next_within, version_of, worst};
use crate::active::Prober;
use crate::active::handshake::{Failure, tls12};
use crate::active::shown::patiently;
use crate::facts::{Answer, Facts};
use crate::parse::{ClientHello, ContentType};

/// `vulnerability.ccs_injection`, with all these hellos in parallel.
///
/// A correct server rejects the first ChangeCipherSpec. A vulnerable one accepts it and waits. It then treats
/// all records as encrypted, so it rejects a second ChangeCipherSpec, or whatever follows, for a wrong MAC.
/// Any other behaviour is inconclusive, and a "yes" must be confirmed by a second attempt.
pub async fn ccs_injection(prober: &Prober, hellos: &[ClientHello]) -> Facts {
    let mut facts = Facts::default();
    let twice = hellos.iter().map(async |hello| {
        let seen = ask(prober, hello).await;
        match seen.0 {
            Answer::Yes => match ask(prober, hello).await {
                (Answer::Yes, evidence) => (Answer::Yes, evidence),
                (_, then) => (Answer::Inconclusive, format!("{}; second attempt: {then}", seen.1)),
            },
            _ => seen,
        }
    });
    let answers = hellos.iter().zip(join_all(twice).await);
    let answers = answers.map(|(hello, (answer, evidence))| (version_of(hello), answer, evidence));
    let (answer, evidence) = worst(answers.collect());
    facts.set("vulnerability.ccs_injection", answer, None, evidence);
    facts
}

async fn ask(prober: &Prober, hello: &ClientHello) -> (Answer, String) {
    let mut client = match greet(prober, hello).await {
        Ok(client) => client,
        Err(failure) => return (Answer::Inconclusive, failure.to_string()),
    };
    let first = match change_cipher_spec(&mut client).await {
        Ok(next) => next,
        Err(failure) => return (Answer::Inconclusive, failure.to_string()),
    };
    match first {
        Next::IsSilent => {}
        Next::Says(_) => {
            return (Answer::Inconclusive, format!("after an early ChangeCipherSpec: {first}"));
        }
        Next::Closes | Next::Resets => {
            // Release the connection permit for the control.
            drop(client);
            return closes(prober, hello, &first).await;
        }
        _ => return (Answer::No, format!("an early ChangeCipherSpec: {first}")),
    }
    let mut then = change_cipher_spec(&mut client).await;
    let mut what = "a second";
    if then == Ok(Next::IsSilent) {
        // Unencrypted, this is an unknown message.
        then = match client.channel.send(ContentType::Handshake, &[0x57; 64]).await {
            Ok(()) => Ok(next(&mut client.channel).await),
            Err(failure) => Err(failure),
        };
        what = "a second, and then an unknown message";
    }
    match then {
        // bad_record_mac, decryption_failed
        Ok(alert @ Next::Alert(2, 20 | 21)) => {
            (Answer::Yes, format!("an early ChangeCipherSpec is accepted, and {what}: {alert}"))
        }
        // decode_error: with a stream cipher, a record of one byte is too short to hold a MAC.
        Ok(short @ Next::Alert(2, 50)) => {
            drop(client);
            longer(prober, hello, &short).await
        }
        Ok(alert @ Next::Alert(2, _)) => {
            (Answer::No, format!("an early ChangeCipherSpec is ignored, and {what}: {alert}"))
        }
        Ok(next) => {
            let evidence = format!("silence after an early ChangeCipherSpec, and {what}: {next}");
            (Answer::Inconclusive, evidence)
        }
        Err(failure) => (Answer::Inconclusive, failure.to_string()),
    }
}

/// The same with a record that is long enough for a MAC, after the first ChangeCipherSpec.
async fn longer(prober: &Prober, hello: &ClientHello, short: &Next) -> (Answer, String) {
    let asked = async {
        let mut client = greet(prober, hello).await?;
        let first = change_cipher_spec(&mut client).await?;
        client.channel.send(ContentType::Handshake, &[0x57; 64]).await?;
        Ok::<_, Failure>((first, next(&mut client.channel).await))
    };
    match asked.await {
        Ok((Next::IsSilent, alert @ Next::Alert(2, 20 | 21))) => {
            let evidence = format!(
                "an early ChangeCipherSpec is accepted, a second: {short}, and a record of 64 bytes: {alert}"
            );
            (Answer::Yes, evidence)
        }
        Ok((Next::IsSilent, alert @ Next::Alert(2, _))) => {
            let evidence = format!(
                "an early ChangeCipherSpec is ignored, a second: {short}, and an unknown message: {alert}"
            );
            (Answer::No, evidence)
        }
        Ok((first, then)) => {
            (Answer::Inconclusive, format!("an early ChangeCipherSpec: {first}, and then: {then}"))
        }
        Err(failure) => (Answer::Inconclusive, failure.to_string()),
    }
}

/// The control for a server that closed after an early ChangeCipherSpec: whether it waits without one.
async fn closes(prober: &Prober, hello: &ClientHello, how: &Next) -> (Answer, String) {
    let (answer, then) = match greet(prober, hello).await {
        Ok(mut client) => match next_within(&mut client.channel, AWHILE).await {
            Next::IsSilent => (Answer::No, "without it, the server waits".to_owned()),
            then => (Answer::Inconclusive, format!("without it: {then}")),
        },
        Err(failure) => (Answer::Inconclusive, format!("without it: {failure}")),
    };
    (answer, format!("an early ChangeCipherSpec: {how}; {then}"))
}

/// Servers that close for another reason do so within this time.
const AWHILE: Duration = Duration::from_millis(300);

async fn greet(prober: &Prober, hello: &ClientHello) -> Result<tls12::Client, Failure> {
    patiently(async || {
        let mut client = tls12::Client::new(prober.connect().await?, hello.clone());
        client.greet().await?;
        Ok(client)
    })
    .await
}

async fn change_cipher_spec(client: &mut tls12::Client) -> Result<Next, Failure> {
    client.channel.send(ContentType::ChangeCipherSpec, &[1]).await?;
    Ok(next(&mut client.channel).await)
}
