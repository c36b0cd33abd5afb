//! ROBOT (CVE-2017-13099 and others): if a server reveals whether the padding of an RSA-encrypted secret is
//! valid, an attacker can decrypt and sign with the server's key by many queries (Bleichenbacher 1998).

use futures_util::future::join_all;

use super::{Next, next, next_within};
use crate::active::Prober;
use crate::active::handshake::{Failure, tls12};
use crate::active::shown::patiently;
use crate::facts::{Answer, Facts};
use crate::names::{KeyExchange, Suite, suites};
use crate::parse::{ClientHello, ContentType, HandshakeType, Message, record};
use tls12::RsaKey;

/// The plaintext block that is encrypted for the server. The server must answer all of them in the same way
/// (RFC 5246 section 7.4.7.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Block {
    /// Correct: the control.
    WellFormed,
    /// Does not begin with 00 02.
    WrongStart,
    /// The 00 before the secret is in another place.
    WrongZero,
    /// Contains no 00.
    NoZero,
    /// The version in the secret is not the hello's.
    WrongVersion,
}

const BLOCKS: [Block; 5] = {
    use Block::*;
    [WellFormed, WrongStart, WrongZero, NoZero, WrongVersion]
};

/// The number of times that answers must differ in the same way.
const ROUNDS: usize = 3;

/// `vulnerability.robot`: sends five blocks without anything after them, and then, on the same connections,
/// ChangeCipherSpec and an invalid encrypted record. If all answers are the same, this takes five
/// connections. If not, each variant is repeated on its own connections, with time for each answer.
pub async fn robot(prober: &Prober, hello: &ClientHello) -> Facts {
    let mut facts = Facts::default();
    let (answer, evidence) = match ask(prober, hello).await {
        Ok(found) => found,
        Err(failure) => (Answer::Inconclusive, failure.to_string()),
    };
    facts.set("vulnerability.robot", answer, None, evidence);
    facts
}

/// The same, if the suites in the hello are the accepted ones.
pub(super) async fn of_known(prober: &Prober, hello: &ClientHello) -> Facts {
    let mut facts = Facts::default();
    let mut offer = hello.clone();
    offer.suites.retain(|code| Suite::from_code(*code).is_some_and(transports));
    let (answer, evidence) = match offer.suites.is_empty() {
        true => (Answer::No, NOT_ACCEPTED.to_owned()),
        false => match ask_with(prober, &offer).await {
            Ok(found) => found,
            Err(failure) => (Answer::Inconclusive, failure.to_string()),
        },
    };
    facts.set("vulnerability.robot", answer, None, evidence);
    facts
}

/// Whether a hello offers a suite with RSA key transport.
pub(super) fn transported(hello: &ClientHello) -> bool {
    hello.suites.iter().any(|code| Suite::from_code(*code).is_some_and(transports))
}

/// The evidence about servers without RSA key transport.
pub(in crate::active) const NOT_ACCEPTED: &str = "RSA key transport is not accepted";

/// Whether a suite uses RSA key transport.
fn transports(suite: Suite) -> bool {
    suite.key_exchange() == KeyExchange::Rsa && !suite.is_export()
}

async fn ask(prober: &Prober, hello: &ClientHello) -> Result<(Answer, String), Failure> {
    // The handshake is never completed, so any suite works.
    let rsa = suites()
        .iter()
        .filter(|suite| transports(**suite))
        .filter(|suite| hello.version >= 0x0303 || !suite.needs_tls1_2());
    ask_with(prober, &hello.clone().suites(rsa.map(|suite| suite.code))).await
}

async fn ask_with(prober: &Prober, offer: &ClientHello) -> Result<(Answer, String), Failure> {
    let client = match greet(prober, offer).await {
        Ok(client) => client,
        // handshake_failure, insufficient_security: no suite in common.
        Err(failure @ Failure::Alert(2, 40 | 71)) => {
            return Ok((Answer::No, format!("{NOT_ACCEPTED}: {failure}")));
        }
        Err(failure) => return Err(failure),
    };
    let key = RsaKey::of_certificate(client.chain.first().map_or(&[], Vec::as_slice))?;
    let [control, others @ ..] = BLOCKS;
    let (first, then) = tokio::join!(
        both_ways(prober, offer, &key, control, Some(client)),
        join_all(others.map(|block| both_ways(prober, offer, &key, block, None))),
    );
    let quick: Vec<(Next, Next)> =
        std::iter::once(first).chain(then).collect::<Result<_, Failure>>()?;
    if quick.iter().all(|answers| *answers == quick[0]) {
        let (without, with) = &quick[0];
        let evidence = match without {
            Next::IsSilent => {
                format!("with Finished: {with}, without Finished: nothing until it was sent")
            }
            _ => format!("without Finished: {without}"),
        };
        return Ok((Answer::No, format!("the answers to five blocks are the same, {evidence}")));
    }

    // All answers, whenever they arrived. If some are missing, the server may be slow; the rounds below wait
    // longer.
    let said = quick.iter().map(|(without, with)| match without {
        Next::IsSilent => with,
        said => said,
    });
    let said = said.filter(|one| **one != Next::IsSilent);
    let alike_but_for_time = said.clone().all(|one| said.clone().next() == Some(one));
    let mut alike = Vec::new();
    for whole in [true, false] {
        let how = if whole { "with Finished" } else { "without Finished" };
        let first = round(prober, offer, &key, whole).await?;
        if first.iter().all(|answer| *answer == first[0]) {
            alike.push(format!("{how}: {}", first[0]));
            continue;
        }
        for _ in 1..ROUNDS {
            if round(prober, offer, &key, whole).await? != first {
                let evidence = format!("{how}, answers differ, but not always in the same way");
                return Ok((Answer::Inconclusive, evidence));
            }
        }
        // If only a completely correct block gets another answer, an attack needs millions of queries.
        let weak = first[1..4].iter().all(|answer| *answer == first[1]);
        let strength = if weak { "weak" } else { "strong" };
        let answers: Vec<String> = BLOCKS
            .iter()
            .zip(&first)
            .map(|(block, answer)| format!("{}: {answer}", block.name()))
            .collect();
        let evidence =
            format!("a {strength} oracle, {how}, the same {ROUNDS} times: {}", answers.join("; "));
        return Ok((Answer::Yes, evidence));
    }
    let evidence = format!("the answers to five blocks are the same, {}", alike.join(", "));
    match alike_but_for_time {
        true => Ok((Answer::No, evidence)),
        false => {
            let evidence = format!("answers differ, but not always in the same way: {evidence}");
            Ok((Answer::Inconclusive, evidence))
        }
    }
}

/// The answer to a block within [`Prober::moment`], and if there is none, the answer to what follows it.
async fn both_ways(
    prober: &Prober,
    offer: &ClientHello,
    key: &RsaKey,
    block: Block,
    client: Option<tls12::Client>,
) -> Result<(Next, Next), Failure> {
    let mut client = match client {
        Some(client) => client,
        None => greet(prober, offer).await?,
    };
    let version = client.server.as_ref().map_or(offer.version, |server| server.version);
    let flight = flight(&client, offer, key, block)?;
    client.channel.link.send(&record(ContentType::Handshake, version, &flight)).await?;
    let patience = client.channel.link.patience;
    let without = next_within(&mut client.channel, prober.moment()).await;
    if without != Next::IsSilent {
        return Ok((without, Next::IsSilent));
    }
    client.channel.link.patience = patience;
    client.channel.link.send(&finish(version)).await?;
    Ok((without, next(&mut client.channel).await))
}

/// The client's flight after ServerHelloDone, up to ClientKeyExchange.
fn flight(
    client: &tls12::Client,
    offer: &ClientHello,
    key: &RsaKey,
    block: Block,
) -> Result<Vec<u8>, Failure> {
    let encrypted = key.encrypt(&block.bytes(key, offer.version)?)?;
    let mut body = (encrypted.len() as u16).to_be_bytes().to_vec();
    body.extend(encrypted);
    let mut flight = Vec::new();
    if client.request.is_some() {
        flight.extend(Message::new(HandshakeType::CERTIFICATE, &[0, 0, 0]).bytes);
    }
    flight.extend(Message::new(HandshakeType::CLIENT_KEY_EXCHANGE, &body).bytes);
    Ok(flight)
}

fn finish(version: u16) -> Vec<u8> {
    let mut out = record(ContentType::ChangeCipherSpec, version, &[1]);
    // The length of an encrypted Finished: four blocks, including IV and MAC.
    out.extend(record(ContentType::Handshake, version, &[0x57; 64]));
    out
}

async fn greet(prober: &Prober, offer: &ClientHello) -> Result<tls12::Client, Failure> {
    patiently(async || {
        let mut client = tls12::Client::new(prober.connect().await?, offer.clone());
        client.greet().await?;
        Ok(client)
    })
    .await
}

/// The answers to all blocks, in order.
async fn round(
    prober: &Prober,
    offer: &ClientHello,
    key: &RsaKey,
    whole: bool,
) -> Result<Vec<Next>, Failure> {
    let mut answers = Vec::new();
    for block in BLOCKS {
        let mut client = greet(prober, offer).await?;
        let version = client.server.as_ref().map_or(offer.version, |server| server.version);
        let mut out = record(ContentType::Handshake, version, &flight(&client, offer, key, block)?);
        if whole {
            out.extend(finish(version));
        }
        client.channel.link.send(&out).await?;
        answers.push(next(&mut client.channel).await);
    }
    Ok(answers)
}

impl Block {
    fn name(self) -> &'static str {
        match self {
            Self::WellFormed => "well-formed",
            Self::WrongStart => "wrong first bytes",
            Self::WrongZero => "00 in a wrong place",
            Self::NoZero => "no 00",
            Self::WrongVersion => "wrong version",
        }
    }

    fn bytes(self, key: &RsaKey, version: u16) -> Result<Vec<u8>, Failure> {
        let mut secret = [0x5a; 48];
        secret[..2].copy_from_slice(&version.to_be_bytes());
        if self == Self::WrongVersion {
            secret[..2].copy_from_slice(&[2, 2]);
        }
        let mut block = key.pad(&secret)?;
        let zero = block.len() - 49;
        match self {
            Self::WellFormed | Self::WrongVersion => {}
            // Smaller than any modulus, because its highest bit is set.
            Self::WrongStart => block[..2].copy_from_slice(&[0x41, 0x17]),
            Self::WrongZero => {
                block[zero] = 0x11;
                let end = block.len() - 2;
                block[end] = 0;
            }
            Self::NoZero => block[zero] = 0x11,
        }
        Ok(block)
    }
}
