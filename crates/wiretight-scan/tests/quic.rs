//! QUIC probes against three implementations and hostile peers.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

#[path = "../../../tests/ports.rs"]
mod ports;

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ports::free;
use quinn::crypto::rustls::QuicServerConfig;
use wiretight_scan::active::{Pace, quic};
use wiretight_scan::facts::{Answer, Facts};
use wiretight_scan::parse::quic::{
    Frame, Header, Initial, InitialKeys, Packet, initial, packet, retry,
};

const PATIENCE: Duration = Duration::from_secs(5);
/// Longer than any probe takes, even on a busy machine.
const LONG: Duration = Duration::from_secs(10);

async fn ask(address: SocketAddr, timeout: Duration) -> Facts {
    quic(address, Some("localhost"), timeout, &Pace::new(4)).await
}

fn evidence(facts: &Facts) -> &str {
    &facts.get("protocol.quic").unwrap().evidence
}

fn quinn_server(always_retry: bool) -> (quinn::Endpoint, SocketAddr) {
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let der = quinn::rustls::pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![key.cert.der().clone()], der.unwrap())
        .unwrap();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    let tls = QuicServerConfig::try_from(tls).unwrap();
    let config = quinn::ServerConfig::with_crypto(Arc::new(tls));
    let endpoint = quinn::Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap();
    let address = endpoint.local_addr().unwrap();
    tokio::spawn({
        let endpoint = endpoint.clone();
        async move {
            while let Some(incoming) = endpoint.accept().await {
                if always_retry && !incoming.remote_address_validated() {
                    incoming.retry().unwrap();
                } else if let Ok(connecting) = incoming.accept() {
                    tokio::spawn(connecting);
                }
            }
        }
    });
    (endpoint, address)
}

#[tokio::test]
async fn groups_and_versions_of_quinn_are_found() {
    for always_retry in [false, true] {
        let (endpoint, address) = quinn_server(always_retry);
        let facts = ask(address, PATIENCE).await;
        assert!(facts.yes("protocol.quic"), "{facts:?}");
        assert!(evidence(&facts).contains("HelloRetryRequest"), "{facts:?}");
        assert!(facts.list("protocol.quic").contains(&"1".to_owned()), "{facts:?}");
        assert!(facts.yes("groups.quic"), "{facts:?}");
        let mut groups = facts.list("groups.quic").to_vec();
        groups.sort_unstable();
        assert_eq!(groups, ["X25519MLKEM768", "secp256r1", "secp384r1", "x25519"]);
        // The probes closed their connections, so the server keeps none.
        let closed = tokio::time::timeout(Duration::from_secs(10), endpoint.wait_idle()).await;
        assert!(closed.is_ok() || endpoint.open_connections() == 0);
    }
}

/// A program that is stopped on drop.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Prints that a program is missing, and lets the test pass; in CI, it fails.
fn skip(what: &str) {
    assert!(std::env::var_os("CI").is_none(), "{what} is not installed, and CI needs it");
    // Directly to stderr, because the test harness hides the output of passing tests.
    let _ = writeln!(std::io::stderr(), "skipped: {what} is not installed");
}

fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.exists())
}

/// A certificate and its key as PEM files.
fn pems(dir: &Path) -> (PathBuf, PathBuf) {
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (chain, private) = (dir.join("chain.pem"), dir.join("key.pem"));
    std::fs::write(&chain, key.cert.pem()).unwrap();
    std::fs::write(&private, key.signing_key.serialize_pem()).unwrap();
    (chain, private)
}

/// aioquic, which checks ALPN first, and sends no HelloRetryRequest.
fn aioquic(alpn: &str, dir: &Path) -> Option<(Program, SocketAddr)> {
    let python = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/tools/pypi/bin/python");
    let has = Command::new(python).args(["-c", "import aioquic"]).stderr(Stdio::null()).status();
    if !has.is_ok_and(|status| status.success()) {
        skip("aioquic (PyPI, in target/tools/pypi)");
        return None;
    }
    let port = free().port();
    let (chain, key) = pems(dir);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/aioquic_server.py");
    let mut command = Command::new(python);
    command.arg(script).arg(port.to_string()).args([chain, key]).arg(alpn);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut server = Program(command.spawn().unwrap());
    let mut line = String::new();
    BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    Some((server, ([127, 0, 0, 1], port).into()))
}

#[tokio::test]
async fn aioquic_without_hello_retry_requests_is_tested_with_key_shares() {
    let dir = tempfile::tempdir().unwrap();
    let Some((_server, address)) = aioquic("h3", dir.path()) else { return };
    let facts = ask(address, PATIENCE).await;
    assert!(facts.yes("protocol.quic") && evidence(&facts).contains("ServerHello"), "{facts:?}");
    assert_eq!(facts.answer("groups.quic"), Answer::Inconclusive);
    assert_eq!(facts.list("groups.quic"), ["x25519", "secp256r1", "secp384r1"]);
}

#[tokio::test]
async fn other_protocols_over_quic_are_found_and_an_alert_is_a_no() {
    let dir = tempfile::tempdir().unwrap();
    let Some((_server, address)) = aioquic("doq", dir.path()) else { return };
    let facts = ask(address, PATIENCE).await;
    assert!(facts.yes("protocol.quic") && evidence(&facts).contains("doq"), "{facts:?}");

    let Some((_server, address)) = aioquic("something-else", dir.path()) else { return };
    let facts = ask(address, PATIENCE).await;
    assert_eq!(facts.answer("protocol.quic"), Answer::No, "{facts:?}");
    assert!(evidence(&facts).contains("no_application_protocol (120)"), "{facts:?}");
}

#[tokio::test]
async fn caddy_speaks_quic() {
    let Some(caddy) = in_path("caddy") else { return skip("caddy") };
    let (dir, port) = (tempfile::tempdir().unwrap(), free().port());
    let (chain, key) = pems(dir.path());
    let config = dir.path().join("Caddyfile");
    let text = format!(
        "{{\nadmin off\nauto_https off\nhttps_port {port}\nstorage file_system {0}\n}}\n\
         https://localhost:{port} {{\nbind 127.0.0.1\ntls {1} {2}\nrespond hello\n}}\n",
        dir.path().display(),
        chain.display(),
        key.display()
    );
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new(caddy);
    command.args(["run", "--adapter", "caddyfile", "--config"]).arg(config);
    command.env("HOME", dir.path()).stdout(Stdio::null()).stderr(Stdio::null());
    let _server = Program(command.spawn().unwrap());
    let begun = Instant::now();
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(60), "caddy does not start");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let facts = ask(([127, 0, 0, 1], port).into(), PATIENCE).await;
    assert!(facts.yes("protocol.quic") && facts.yes("groups.quic"), "{facts:?}");
    assert!(facts.list("groups.quic").contains(&"x25519".to_owned()), "{facts:?}");
}

#[tokio::test]
async fn a_closed_port_is_a_no_but_silence_is_not() {
    let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let facts = ask(closed, PATIENCE).await;
    assert_eq!(facts.answer("protocol.quic"), Answer::No, "{facts:?}");
    assert!(evidence(&facts).contains("ICMP port unreachable"), "{facts:?}");

    let played = Played::start(|_, _| Vec::new());
    let begun = Instant::now();
    let facts = ask(played.address, Duration::from_millis(600)).await;
    assert_eq!(facts.answer("protocol.quic"), Answer::Inconclusive, "{facts:?}");
    assert!(begun.elapsed() < LONG, "{:?}", begun.elapsed());
    assert_eq!(played.heard.load(Ordering::Relaxed), 4, "the hello and three times more");
}

/// Answers datagrams with the result of a function, which gets the number of datagrams so far and the datagram.
struct Played {
    address: SocketAddr,
    heard: Arc<AtomicUsize>,
}

impl Played {
    fn start(mut play: impl FnMut(usize, &[u8]) -> Vec<Vec<u8>> + Send + 'static) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        // The thread ends when there are no more datagrams.
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let address = socket.local_addr().unwrap();
        let heard = Arc::new(AtomicUsize::new(0));
        std::thread::spawn({
            let heard = heard.clone();
            move || {
                let mut buffer = [0; 2048];
                while let Ok((n, from)) = socket.recv_from(&mut buffer) {
                    let count = heard.fetch_add(1, Ordering::Relaxed);
                    for answer in play(count, &buffer[..n]) {
                        let _ = socket.send_to(&answer, from);
                    }
                }
            }
        });
        Self { address, heard }
    }
}

fn as_initial(datagram: &[u8]) -> Option<Initial<'_>> {
    match packet(datagram) {
        Ok((Packet::Initial(initial), _)) => Some(initial),
        _ => None,
    }
}

/// A server's Initial in reply to a client's first one.
fn answer(datagram: &[u8], number: usize, frames: &[Frame<'_>]) -> Option<Vec<u8>> {
    let asked = as_initial(datagram)?;
    let mut bytes = Vec::new();
    frames.iter().for_each(|frame| frame.write(&mut bytes));
    Some(sealed(asked.destination, asked.source, number, &bytes))
}

fn sealed(original: &[u8], destination: &[u8], number: usize, frames: &[u8]) -> Vec<u8> {
    let keys = InitialKeys::new(original);
    let header = Header { destination, source: original, token: &[], number: number as u32 };
    initial(&keys.server, header, frames)
}

fn negotiation(asked: &Initial<'_>, versions: &[u32]) -> Vec<u8> {
    let mut out = vec![0x80, 0, 0, 0, 0];
    for id in [asked.source, asked.destination] {
        out.push(id.len() as u8);
        out.extend(id);
    }
    versions.iter().for_each(|v| out.extend(v.to_be_bytes()));
    out
}

#[tokio::test]
async fn only_other_versions_are_a_no_if_they_are_confirmed() {
    let played = Played::start(|_, datagram| {
        let asked = as_initial(datagram).unwrap();
        vec![negotiation(&asked, &[0xff00_001d, 0x6b33_43cf, 0x1a2a_3a4a])]
    });
    let facts = ask(played.address, PATIENCE).await;
    assert_eq!(facts.answer("protocol.quic"), Answer::No, "{facts:?}");
    assert!(evidence(&facts).contains("draft-29, 2, twice"), "{facts:?}");

    let forged = Played::start(|_, datagram| {
        let mut asked = as_initial(datagram).unwrap();
        asked.destination = b"guessed!";
        vec![negotiation(&asked, &[2])]
    });
    let facts = ask(forged.address, Duration::from_millis(300)).await;
    assert_eq!(facts.answer("protocol.quic"), Answer::Inconclusive, "{facts:?}");
}

#[tokio::test]
async fn no_peer_can_delay_a_scan_or_cause_a_wrong_answer() {
    type Play = Box<dyn FnMut(usize, &[u8]) -> Vec<Vec<u8>> + Send>;
    let hostile: Vec<(&str, Play)> = vec![
        ("garbage", Box::new(|n, _| vec![vec![n as u8; 1200]; 200])),
        ("echo", Box::new(|_, datagram| vec![datagram.to_vec(); 20])),
        ("empty datagrams", Box::new(|_, _| vec![Vec::new(); 200])),
        (
            "Version Negotiation of the same version",
            Box::new(|_, datagram| {
                let asked = as_initial(datagram).unwrap();
                vec![negotiation(&asked, &[1, 2]); 100]
            }),
        ),
        (
            "Retry after Retry",
            Box::new(|n, datagram| {
                let asked = as_initial(datagram).unwrap();
                let id = [n as u8; 8];
                vec![retry(asked.destination, asked.source, &id, b"again")]
            }),
        ),
        (
            "a Retry with a token that fills a datagram",
            Box::new(|_, datagram| {
                let asked = as_initial(datagram).unwrap();
                vec![retry(asked.destination, asked.source, b"id", &[7; 1400])]
            }),
        ),
        (
            "a Retry with a forged tag",
            Box::new(|_, datagram| {
                let asked = as_initial(datagram).unwrap();
                vec![retry(b"another", asked.source, b"id", b"token")]
            }),
        ),
        (
            "an alert under other keys",
            Box::new(|_, datagram| {
                let asked = as_initial(datagram).unwrap();
                let mut bytes = Vec::new();
                Frame::Close { code: 0x128, reason: b"" }.write(&mut bytes);
                vec![sealed(b"guessed!", asked.source, 0, &bytes)]
            }),
        ),
        (
            "endless acknowledgements",
            Box::new(|n, datagram| {
                let frames = [Frame::Ack(0), Frame::Ping];
                let packets = (0..100).map(|i| answer(datagram, n * 100 + i, &frames));
                packets.map(Option::unwrap).collect()
            }),
        ),
        (
            "CRYPTO far ahead",
            Box::new(|_, datagram| {
                let frame = Frame::Crypto((1 << 62) - 100, b"x");
                vec![answer(datagram, 0, &[frame]).unwrap()]
            }),
        ),
        (
            "CRYPTO in a thousand pieces",
            Box::new(|_, datagram| {
                let pieces: Vec<_> = (0..200).map(|i| Frame::Crypto(1 + 2 * i, b"x")).collect();
                vec![answer(datagram, 0, &pieces).unwrap()]
            }),
        ),
        (
            "another message than a ServerHello",
            Box::new(|_, datagram| {
                vec![answer(datagram, 0, &[Frame::Crypto(0, &[11, 0, 0, 0])]).unwrap()]
            }),
        ),
        (
            "a message of 16 MiB",
            Box::new(|_, datagram| {
                vec![answer(datagram, 0, &[Frame::Crypto(0, &[2, 255, 255, 255])]).unwrap()]
            }),
        ),
        (
            "a close without an alert",
            Box::new(|_, datagram| {
                let close = Frame::Close { code: 2, reason: b"busy\x1b[2J" };
                vec![answer(datagram, 0, &[close]).unwrap()]
            }),
        ),
        (
            "internal_error",
            Box::new(|_, datagram| {
                let close = Frame::Close { code: 0x150, reason: b"" };
                vec![answer(datagram, 0, &[close]).unwrap()]
            }),
        ),
    ];
    let timeout = Duration::from_millis(400);
    for (name, play) in hostile {
        let played = Played::start(play);
        let begun = Instant::now();
        let facts = ask(played.address, timeout).await;
        let took = begun.elapsed();
        assert_eq!(facts.answer("protocol.quic"), Answer::Inconclusive, "{name}: {facts:?}");
        assert!(took < LONG, "{name}: {took:?}");
        assert!(!evidence(&facts).contains('\x1b'), "{name}");
    }
}

#[tokio::test]
async fn a_server_hello_in_pieces_and_out_of_order_is_parsed() {
    // A HelloRetryRequest for x25519, and then an alert.
    let mut hello = vec![2, 0, 0, 0, 3, 3];
    hello.extend(b"\xcf\x21\xad\x74\xe5\x9a\x61\x11\xbe\x1d\x8c\x02\x1e\x65\xb8\x91");
    hello.extend(b"\xc2\xa2\x11\x16\x7a\xbb\x8c\x5e\x07\x9e\x09\xe2\xc8\xa8\x33\x9c");
    hello.extend([0, 0x13, 1, 0, 0, 12, 0, 43, 0, 2, 3, 4, 0, 51, 0, 2, 0, 29]);
    hello[3] = (hello.len() - 4) as u8;
    let mut asked = 0;
    let played = Played::start(move |_, datagram| {
        let Some(opened) = as_initial(datagram) else { return Vec::new() };
        let keys = InitialKeys::new(opened.destination);
        // A close goes to the same ID here, and needs no answer.
        let Some((number, payload)) = opened.open(&keys.client, None) else { return Vec::new() };
        if number != 0 || payload[0] != 6 {
            return Vec::new();
        }
        asked += 1;
        if asked > 2 {
            let close = Frame::Close { code: 0x128, reason: b"" };
            return vec![answer(datagram, 0, &[close]).unwrap()];
        }
        let middle = hello.len() / 2;
        // A hello counts even if the connection is closed after it.
        let close = Frame::Close { code: 0x128, reason: b"" };
        let late = answer(datagram, 5, &[Frame::Crypto(middle as u64, &hello[middle..])]);
        let early = [Frame::Ack(0), Frame::Crypto(0, &hello[..middle]), close];
        vec![late.unwrap(), answer(datagram, 3, &early).unwrap()]
    });
    let facts = ask(played.address, PATIENCE).await;
    assert!(facts.yes("protocol.quic") && facts.yes("groups.quic"), "{facts:?}");
    assert_eq!(facts.list("groups.quic"), ["x25519"]);
}

#[tokio::test]
async fn a_server_with_only_quic_is_scanned() {
    use wiretight_scan::active::{Options, scan_address};
    let (endpoint, address) = quinn_server(false);
    let target = format!("tls://{address}").parse().unwrap();
    let options = Options { timeout: PATIENCE, ..Options::default() };
    let report = Box::pin(scan_address(&target, address, &options)).await;
    assert_eq!(report.reached, wiretight_scan::Reached::Tls, "{report:#?}");
    let violations = wiretight_scan::invariant::violations(&report);
    assert!(violations.is_empty(), "{violations:#?}");
    let facts = &report.facts;
    for (id, expected) in [
        ("plaintext", Answer::No),
        ("protocol.quic", Answer::Yes),
        ("protocol.tls1_3", Answer::Yes),
        ("protocol.tls1_2", Answer::No),
        ("suites.tls1_3", Answer::Yes),
        ("groups.tls1_3", Answer::Yes),
        ("post_quantum", Answer::Yes),
        ("certificate.trusted", Answer::Inconclusive),
    ] {
        assert_eq!(facts.answer(id), expected, "{id}: {:?}", facts.get(id));
    }
    // Without the endpoint, nothing is reachable.
    drop(endpoint);
    let port = free().port();
    let nothing: SocketAddr = ([127, 0, 0, 1], port).into();
    let target = format!("tls://{nothing}").parse().unwrap();
    let report = Box::pin(scan_address(&target, nothing, &options)).await;
    assert!(matches!(report.reached, wiretight_scan::Reached::Unreachable { .. }));
}
