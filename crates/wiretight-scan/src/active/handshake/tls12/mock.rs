//! A mock of a TLS 1.2 server with flaws that current servers no longer have. It has one suite,
//! anonymous Diffie-Hellman, and only what the probes need.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::Instant;

use super::*;
use crate::active::Pace;
use crate::target::Start;

/// TLS_DH_anon_WITH_AES_128_CBC_SHA
const SUITE: u16 = 0x0034;

/// The flaws. By default there are none, and no heartbeats.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::active) struct Flaws {
    /// The padding of records is not checked.
    pub(in crate::active) careless_padding: bool,
    pub(in crate::active) heartbeat: Heartbeat,
    pub(in crate::active) early_ccs: EarlyCcs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::active) enum Heartbeat {
    #[default]
    None,
    /// Encrypted, and correct.
    Right,
    /// Also unencrypted, with as many bytes as requested.
    Bleeding,
    /// The same, but only when encrypted.
    BleedingLate,
    /// The same, and a heartbeat during the handshake closes the connection.
    BleedingAndStrict,
    /// Only when encrypted, and each answer takes more than a second.
    BleedingSlowly,
    /// Encrypted; a heartbeat with a wrong length closes the connection.
    Strict,
    /// Encrypted, only the first one; the second closes the connection, whatever length it claims.
    Once,
    /// Never answered.
    Deaf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::active) enum EarlyCcs {
    #[default]
    Refused,
    /// Accepted; a second one is treated as an encrypted record.
    Taken,
    /// Accepted, and so are all that follow, until another record arrives.
    AllTaken,
    /// Ignored; a second one is rejected.
    PassedOver,
    /// Ignored, and so are all that follow.
    AllPassedOver,
}

/// Starts the mock server, and makes a prober for it.
pub(in crate::active) async fn start(flaws: Flaws) -> Prober {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let deadline = Instant::now() + Duration::from_secs(20);
            let link = Link::new(Box::new(stream), Duration::from_secs(10), deadline, None);
            tokio::spawn(async move { serve(link, flaws).await });
        }
    });
    Prober::new(
        address,
        None,
        Start::Direct,
        Duration::from_secs(5),
        std::sync::Arc::new(Pace::new(4)),
    )
}

async fn serve(link: Link, flaws: Flaws) -> Result<(), Failure> {
    let mut channel = Channel::new(link, 0x0303);
    let message = channel.message().await?;
    let hello = ClientHello::parse(&message.bytes)?;
    let mut transcript = message.bytes;
    if !hello.suites.contains(&SUITE) {
        return channel.send(ContentType::Alert, &[2, 40]).await;
    }
    let server_random = [3; 32];
    let mut body = vec![3, 3];
    body.extend(server_random);
    body.extend([0, 0, SUITE as u8, 0]);
    let heartbeat = hello.extensions.iter().any(|(kind, _)| *kind == extension::HEARTBEAT);
    if heartbeat && flaws.heartbeat != Heartbeat::None {
        body.extend([0, 5, 0, 15, 0, 1, 1]);
    }
    // A Mersenne prime: 2^521 - 1.
    let p = [[1].as_slice(), &[0xff; 65]].concat();
    let secret = [0x42; 32];
    let share = power(&[3], &secret, &p)?;
    let mut exchange = Vec::new();
    for value in [&p, &vec![3], &share] {
        exchange.extend((value.len() as u16).to_be_bytes());
        exchange.extend(value);
    }
    for message in [
        Message::new(HandshakeType::SERVER_HELLO, &body),
        Message::new(HandshakeType::SERVER_KEY_EXCHANGE, &exchange),
        Message::new(HandshakeType::SERVER_HELLO_DONE, &[]),
    ] {
        channel.send(ContentType::Handshake, &message.bytes).await?;
        transcript.extend(message.bytes);
    }

    let mut secrets = None;
    let mut theirs = None;
    let (mut early, mut beats) = (false, 0);
    loop {
        let incoming = match (channel.next().await, flaws.early_ccs) {
            (Err(_), EarlyCcs::AllTaken) if early => {
                return channel.send(ContentType::Alert, &[2, 20]).await;
            }
            (Err(_), EarlyCcs::AllPassedOver) if early => {
                return channel.send(ContentType::Alert, &[2, 10]).await;
            }
            (incoming, _) => incoming?,
        };
        match incoming {
            Incoming::Message(message) if message.kind == HandshakeType::CLIENT_KEY_EXCHANGE => {
                transcript.extend(&message.bytes);
                let premaster = power(&message.body()[2..], &secret, &p)?;
                let zeros = premaster.iter().take_while(|b| **b == 0).count();
                let prf = Prf::Of(Hash::Sha256);
                let seed = [hello.random, server_random].concat();
                let all = Secrets {
                    prf,
                    cipher: Cipher::Cbc(16, MacHash::Sha1),
                    version: 0x0303,
                    master: prf.expand(&premaster[zeros..], "master secret", &seed, 48),
                    client_random: hello.random,
                    server_random,
                };
                theirs = Some(all.protections()?);
                secrets = Some(all);
            }
            Incoming::ChangeCipherSpec => match (&theirs, flaws.early_ccs) {
                (Some(_), _) => {
                    let (client, server) = theirs.take().unwrap();
                    channel.reading = client;
                    theirs = Some((Protection::clear(), server));
                }
                (None, EarlyCcs::Taken) if early => {
                    return channel.send(ContentType::Alert, &[2, 20]).await;
                }
                (None, EarlyCcs::Taken | EarlyCcs::PassedOver) if !early => early = true,
                (None, EarlyCcs::AllTaken | EarlyCcs::AllPassedOver) => early = true,
                (None, _) => return channel.send(ContentType::Alert, &[2, 10]).await,
            },
            Incoming::Message(message) if message.kind == HandshakeType::FINISHED => {
                if channel.reading.odd_padding() && !flaws.careless_padding {
                    return channel.send(ContentType::Alert, &[2, 20]).await;
                }
                let (Some(secrets), Some((_, ours))) = (&secrets, theirs.take()) else {
                    return Ok(());
                };
                transcript.extend(&message.bytes);
                channel.send(ContentType::ChangeCipherSpec, &[1]).await?;
                channel.writing = ours;
                let verify = secrets.finished("server finished", &transcript);
                let message = Message::new(HandshakeType::FINISHED, &verify);
                channel.send(ContentType::Handshake, &message.bytes).await?;
            }
            Incoming::Heartbeat(request) => {
                beats += 1;
                let there = request.len().saturating_sub(3 + 16);
                let says = usize::from(u16::from_be_bytes([request[1], request[2]]));
                let encrypted = !channel.reading.is_clear();
                let answered = match flaws.heartbeat {
                    Heartbeat::None | Heartbeat::Deaf => false,
                    Heartbeat::Right => says <= there && encrypted,
                    Heartbeat::Bleeding => true,
                    Heartbeat::BleedingLate => encrypted,
                    Heartbeat::BleedingAndStrict if !encrypted => return Ok(()),
                    Heartbeat::BleedingAndStrict => true,
                    Heartbeat::BleedingSlowly => {
                        tokio::time::sleep(Duration::from_millis(1300)).await;
                        encrypted
                    }
                    Heartbeat::Strict if encrypted && says > there => return Ok(()),
                    Heartbeat::Strict => encrypted,
                    Heartbeat::Once if encrypted && beats > 1 => return Ok(()),
                    Heartbeat::Once => encrypted,
                };
                if answered {
                    let mut response = vec![2, request[1], request[2]];
                    response.extend(request[3..].iter().chain(&[0xee; 64]).take(says));
                    response.extend([0; 16]);
                    channel.send(ContentType::Heartbeat, &response).await?;
                }
            }
            Incoming::Alert(..) => return Ok(()),
            _ => {}
        }
    }
}
