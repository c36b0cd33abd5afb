//! ROBOT and Ticketbleed against vulnerable mocks, and all probes against a server without
//! vulnerabilities. The mocks of the other flaws are in the source code.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod openssl;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use openssl::{Keys, Server, have_openssl, prober};
use wiretight_scan::active::handshake::tls12;
use wiretight_scan::active::vulnerabilities::{self, robot, ticketbleed};
use wiretight_scan::facts::{Answer, Facts};
use wiretight_scan::names::Version;
use wiretight_scan::parse::{
    ClientHello, ContentType, HandshakeType, Message, ServerHello, next_record, record,
};

fn show(facts: &Facts) {
    for (id, fact) in facts.iter() {
        eprintln!("{id}: {} ({})", fact.answer, fact.evidence);
    }
}

#[tokio::test]
async fn a_current_server_has_no_vulnerability() {
    if !have_openssl() {
        return;
    }
    let server = Server::start(Keys::Rsa, &["-cipher", "ALL:@SECLEVEL=0", "-rev"]);
    let prober = server.prober();
    let hellos = [Version::Tls1_2, Version::Tls1_1, Version::Tls1_0]
        .map(|version| tls12::hello(&prober, version));
    let facts = vulnerabilities::all(&prober, &hellos).await;
    show(&facts);
    for name in ["heartbleed", "ccs_injection", "ticketbleed", "robot", "poodle_tls"] {
        assert_eq!(facts.answer(&format!("vulnerability.{name}")), Answer::No, "{name}");
    }
}

#[tokio::test]
async fn servers_that_reveal_valid_padding_are_oracles() {
    if !have_openssl() {
        return;
    }
    for (oracle, expected, strength) in [
        (Oracle::None, Answer::No, "the same"),
        (Oracle::Alert, Answer::Yes, "strong"),
        (Oracle::Close, Answer::Yes, "strong"),
        (Oracle::OnlyWhollyRight, Answer::Yes, "weak"),
        (Oracle::WithoutFinished, Answer::Yes, "without Finished"),
        (Oracle::Chance, Answer::Inconclusive, "not always"),
    ] {
        let server = Server::start(Keys::Rsa, &[]);
        let address = oracle_mock(oracle, server.certificate(), server.key());
        let prober = prober(address);
        let facts = robot(&prober, &tls12::hello(&prober, Version::Tls1_2)).await;
        show(&facts);
        assert_eq!(facts.answer("vulnerability.robot"), expected, "{oracle:?}");
        let evidence = &facts.get("vulnerability.robot").unwrap().evidence;
        assert!(evidence.contains(strength), "{oracle:?}: {evidence}");
    }
}

#[tokio::test]
async fn memory_in_a_session_id_is_detected() {
    if !have_openssl() {
        return;
    }
    let server = Server::start(Keys::Rsa, &["-tls1_2"]);
    let prober = prober(bleeding_mock(server.address));
    let facts = ticketbleed(&prober, &tls12::hello(&prober, Version::Tls1_2)).await;
    show(&facts);
    assert_eq!(facts.answer("vulnerability.ticketbleed"), Answer::Yes);
}

/// How a mock reveals the padding of a decrypted block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Oracle {
    /// Not at all: it always sends bad_record_mac.
    None,
    /// By another alert for a wrong start or a missing 00.
    Alert,
    /// By closing the connection.
    Close,
    /// By another alert unless the block is completely correct, including the version.
    OnlyWhollyRight,
    /// By an immediate alert, while it otherwise waits for a Finished.
    WithoutFinished,
    /// By another alert, but at random.
    Chance,
}

/// A mock of a TLS 1.2 server with RSA key transport, which answers nothing after the
/// ClientKeyExchange. It decrypts with `openssl pkeyutl`.
fn oracle_mock(oracle: Oracle, certificate: Vec<u8>, key: PathBuf) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().flatten().enumerate() {
            let (certificate, key) = (certificate.clone(), key.clone());
            std::thread::spawn(move || {
                let mut stream = stream;
                stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                let _ = answer(&mut stream, oracle, &certificate, &key, number);
            });
        }
    });
    address
}

fn answer(
    stream: &mut TcpStream,
    oracle: Oracle,
    certificate: &[u8],
    key: &PathBuf,
    number: usize,
) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    let (_, hello) = read_record(stream, &mut buffer)?;
    let hello = ClientHello::parse(&hello).unwrap();
    // TLS_RSA_WITH_AES_128_CBC_SHA
    assert!(hello.suites.contains(&0x002f));
    let mut body = vec![3, 3];
    body.extend([9; 32]);
    body.extend([0, 0, 0x2f, 0]);
    let n = certificate.len() as u32;
    let mut chain = (n + 3).to_be_bytes()[1..].to_vec();
    chain.extend(&n.to_be_bytes()[1..]);
    chain.extend(certificate);
    for message in [
        Message::new(HandshakeType::SERVER_HELLO, &body),
        Message::new(HandshakeType::CERTIFICATE, &chain),
        Message::new(HandshakeType::SERVER_HELLO_DONE, &[]),
    ] {
        stream.write_all(&record(ContentType::Handshake, 0x0303, &message.bytes))?;
    }
    let (_, exchange) = read_record(stream, &mut buffer)?;
    let block = decrypt(&exchange[6..], key);
    let zero = block.iter().skip(2).position(|b| *b == 0).map(|at| at + 2);
    let padded = block.starts_with(&[0, 2]) && zero.is_some();
    let right = block.starts_with(&[0, 2])
        && zero == Some(block.len() - 49)
        && block[block.len() - 48..].starts_with(&[3, 3]);
    let odd = match oracle {
        Oracle::None => false,
        Oracle::Alert | Oracle::Close | Oracle::WithoutFinished => !padded,
        Oracle::OnlyWhollyRight => !right,
        Oracle::Chance => (number * number / 3).is_multiple_of(2),
    };
    // Data that was sent at once arrives in one piece.
    if odd && oracle == Oracle::WithoutFinished && buffer.is_empty() {
        return alert(stream, 47);
    }
    let odd = odd && oracle != Oracle::WithoutFinished;
    // ChangeCipherSpec and Finished.
    read_record(stream, &mut buffer)?;
    read_record(stream, &mut buffer)?;
    match odd {
        true if oracle == Oracle::Close => Ok(()),
        true => alert(stream, 47),
        false => alert(stream, 20),
    }
}

fn alert(stream: &mut TcpStream, description: u8) -> std::io::Result<()> {
    stream.write_all(&record(ContentType::Alert, 0x0303, &[2, description]))
}

fn read_record(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
) -> std::io::Result<(ContentType, Vec<u8>)> {
    loop {
        if let Some((record, n)) = next_record(buffer).unwrap() {
            let found = (record.content, record.fragment.to_vec());
            buffer.drain(..n);
            return Ok(found);
        }
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => buffer.extend(&chunk[..n]),
        }
    }
}

fn decrypt(ciphertext: &[u8], key: &PathBuf) -> Vec<u8> {
    let mut child = Command::new("openssl")
        .args(["pkeyutl", "-decrypt", "-pkeyopt", "rsa_padding_mode:none", "-inkey"])
        .arg(key)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(ciphertext).unwrap();
    child.wait_with_output().unwrap().stdout
}

/// A mock of Ticketbleed: a proxy for a real server that extends the session IDs in
/// ServerHellos to 32 bytes. (This breaks the handshake, but the probe does not need
/// to complete it.)
fn bleeding_mock(server: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut behind = TcpStream::connect(server).unwrap();
                let (mut up_from, mut up_to) =
                    (client.try_clone().unwrap(), behind.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut up_from, &mut up_to);
                    let _ = up_to.shutdown(std::net::Shutdown::Both);
                });
                let (mut buffer, mut greeted) = (Vec::new(), false);
                while let Ok((content, mut fragment)) = read_record(&mut behind, &mut buffer) {
                    // Later records are encrypted, and may begin with any byte.
                    if content == ContentType::Handshake && fragment[0] == 2 && !greeted {
                        greeted = true;
                        fragment = bleed(&fragment);
                    }
                    if client.write_all(&record(content, 0x0303, &fragment)).is_err() {
                        break;
                    }
                }
                let _ = client.shutdown(std::net::Shutdown::Both);
            });
        }
    });
    address
}

fn bleed(message: &[u8]) -> Vec<u8> {
    let n = 4 + u32::from_be_bytes([0, message[1], message[2], message[3]]) as usize;
    let (hello, rest) = message.split_at(n);
    let id = ServerHello::parse(&hello[4..]).unwrap().session_id;
    if id.is_empty() || id.len() == 32 {
        return message.to_vec();
    }
    let mut body = hello[4..38].to_vec();
    body.push(32);
    body.extend(&id);
    body.extend(vec![0xee; 32 - id.len()]);
    body.extend(&hello[39 + id.len()..]);
    [Message::new(HandshakeType::SERVER_HELLO, &body).bytes, rest.to_vec()].concat()
}
