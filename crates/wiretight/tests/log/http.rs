//! The HTTP client: TLS to a witness, client certificates, reused and dead connections, and limits.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use wiretight::log::cosigning::{Answer, Witness};
use wiretight::log::reader::{ReadError, Reader};
use wiretight::log::witness::client::HttpWitness;
use wiretight::web::client::{Client, Credentials, HttpError, Limit, Url};
use wiretight_keys::{Period, Profile, Signer, SigningKey, Tbs, x509};
use zeroize::Zeroizing;

use super::rig::{Daemon, Log, cosigner, gzip, gzip_bomb, now, write};

const LIMIT: Limit = Limit { time: Duration::from_secs(5), body: 1000 };

/// A certificate authority; it issues certificates and keys as PEM.
struct Authority {
    key: SigningKey,
    certificate: CertificateDer<'static>,
}

impl Authority {
    fn new() -> Authority {
        let key = SigningKey::generate().unwrap();
        let root = Profile::Root("example.org".parse().unwrap());
        let certificate = issue(&root, &key, None, &key);
        Authority { key, certificate }
    }

    fn pem(&self) -> Vec<u8> {
        x509::to_pem([&self.certificate]).into_bytes()
    }

    fn issue(&self, profile: &Profile) -> (String, Zeroizing<String>) {
        let key = SigningKey::generate().unwrap();
        let certificate = issue(profile, &key, Some(&self.certificate), &self.key);
        (x509::to_pem([&certificate]), key.to_pem())
    }
}

fn issue(
    profile: &Profile,
    key: &SigningKey,
    issuer: Option<&CertificateDer<'_>>,
    signer: &SigningKey,
) -> CertificateDer<'static> {
    let period = Period { not_before: now() - 60, not_after: now() + 3600 };
    let serial = aws_lc_rs::rand::generate::<[u8; 16]>(&aws_lc_rs::rand::SystemRandom::new())
        .unwrap()
        .expose();
    Tbs::new(profile, &key.public_key(), period, serial, issuer, signer.algorithm())
        .unwrap()
        .sign(signer)
        .unwrap()
}

fn web(name: &str) -> Profile {
    Profile::Web(vec![name.into()])
}

fn client(credentials: Credentials) -> Client {
    Client::new(&credentials).unwrap()
}

#[tokio::test]
async fn a_witness_is_reached_over_tls_and_loads_a_new_certificate() {
    let (authority, log) = (Authority::new(), Log::of("log.example/a", 30));
    let dir = tempfile::tempdir().unwrap();
    let put = |(chain, key): (String, Zeroizing<String>)| {
        (write(dir.path(), "chain.pem", chain), write(dir.path(), "key.pem", &*key))
    };
    let (chain, key) = put(authority.issue(&web("witness.example")));
    let private = write(dir.path(), "witness.key", &*cosigner(0).to_private().unwrap());
    let (state, vkey) = (dir.path().join("state"), log.signer.public().to_string());
    let text = |path: &std::path::Path| path.display().to_string();
    let (chain, key, private, state) = (text(&chain), text(&key), text(&private), text(&state));
    let daemon = Daemon::start(&[
        "--new",
        "--key",
        &private,
        "--state",
        &state,
        "--log",
        &vkey,
        "--tls-cert",
        &chain,
        "--tls-key",
        &key,
    ])
    .unwrap();
    let url = Url::parse(&format!("https://{}", daemon.addr)).unwrap();
    let trusting = |name: &str| {
        let credentials = Credentials {
            roots: Some(authority.pem()),
            server_name: Some(name.into()),
            ..Default::default()
        };
        HttpWitness::new(client(credentials), &url)
    };
    let good = trusting("witness.example");
    let answer = good.add_checkpoint(log.body(0, 20)).await.unwrap();
    assert!(
        matches!(&answer, Answer::Cosigned(lines) if lines.contains("witness.example/0")),
        "{answer:?}"
    );
    assert_eq!(good.add_checkpoint(log.body(0, 30)).await.unwrap(), Answer::Holds(20));
    let stranger = Log::of("log.example/b", 3);
    let refused = good.add_checkpoint(stranger.body(0, 3)).await.unwrap();
    assert!(matches!(&refused, Answer::Refused(why) if why.contains("404")), "{refused:?}");
    // A wrong name, an untrusted certificate, no TLS.
    assert!(trusting("other.example").add_checkpoint(log.body(20, 30)).await.is_err());
    let credentials =
        Credentials { server_name: Some("witness.example".into()), ..Default::default() };
    let refused =
        HttpWitness::new(client(credentials), &url).add_checkpoint(log.body(20, 30)).await;
    assert!(refused.as_ref().is_err_and(|why| why.contains("private authority")), "{refused:?}");
    let plain = Url::parse(&format!("http://{}", daemon.addr)).unwrap();
    assert!(
        HttpWitness::new(client(Credentials::default()), &plain)
            .add_checkpoint(log.body(20, 30))
            .await
            .is_err()
    );
    // SIGHUP.
    put(authority.issue(&web("other.example")));
    daemon.hangup();
    let mut took = false;
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        if trusting("other.example").add_checkpoint(log.body(20, 20)).await.is_ok() {
            took = true;
            break;
        }
    }
    assert!(took, "the new certificate is not served");
    assert!(daemon.stop());
}

/// A TLS server with one file for clients with a certificate of this authority.
fn identified_only(server: &Authority, clients: &Authority, body: String) -> SocketAddr {
    let (chain, key) = server.issue(&web("log.example"));
    let mut roots = RootCertStore::empty();
    roots.add(clients.certificate.clone()).unwrap();
    let provider = wiretight_proxy::provider::mesh();
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
        .build()
        .unwrap();
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(chain.as_bytes()).map(Result::unwrap).collect();
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap())
        .unwrap();
    let (config, listener) = (Arc::new(config), TcpListener::bind("127.0.0.1:0").unwrap());
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let tls = ServerConnection::new(config.clone()).unwrap();
            let mut stream = StreamOwned::new(tls, socket.unwrap());
            let mut request = [0; 4096];
            if stream.read(&mut request).is_ok_and(|n| n > 0) {
                let length = body.len();
                let _ = write!(
                    stream,
                    "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
                );
                stream.conn.send_close_notify();
                let _ = stream.flush();
            }
        }
    });
    addr
}

#[tokio::test]
async fn a_log_that_requires_client_certificates_is_readable() {
    let (authority, log) = (Authority::new(), Log::of("log.example/a", 30));
    let addr = identified_only(&authority, &authority, log.signed(30).to_string());
    let url = Url::parse(&format!("https://{addr}/log")).unwrap();
    let read = |identity| {
        let credentials = Credentials {
            roots: Some(authority.pem()),
            server_name: Some("log.example".into()),
            identity,
        };
        let reader = Reader::http(client(credentials), url.clone());
        async move { reader.latest().await }
    };
    let pems = |(chain, key): (String, Zeroizing<String>)| {
        Some((chain.into_bytes(), Zeroizing::new(key.as_bytes().to_vec())))
    };
    let id = || Profile::Leaf("spiffe://example.org/service/monitor".parse().unwrap());
    assert_eq!(read(pems(authority.issue(&id()))).await.unwrap(), log.signed(30));
    let refused = read(None).await.unwrap_err();
    assert!(matches!(refused, ReadError::Http(_)), "{refused}");
    let refused = read(pems(Authority::new().issue(&id()))).await.unwrap_err();
    assert!(matches!(refused, ReadError::Http(_)), "{refused}");
}

/// A server with one file that accepts `each` requests per connection.
fn keeping(addr: &str, each: usize, body: &'static str) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind(addr).unwrap();
    let (addr, count) = (listener.local_addr().unwrap(), Arc::<AtomicUsize>::default());
    let connections = count.clone();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            connections.fetch_add(1, Ordering::SeqCst);
            std::thread::spawn(move || {
                let mut stream = BufReader::new(socket.unwrap());
                for _ in 0..each {
                    let (mut line, mut length) = (String::new(), 0);
                    while stream.read_line(&mut line).is_ok_and(|n| n > 2) {
                        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                            length = value.trim().parse().unwrap();
                        }
                        line.clear();
                    }
                    if line.is_empty() {
                        return;
                    }
                    stream.read_exact(&mut vec![0; length]).unwrap();
                    let size = body.len();
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n{body}");
                    stream.get_mut().write_all(answer.as_bytes()).unwrap();
                }
            });
        }
    });
    (addr, count)
}

#[tokio::test]
async fn connections_are_reused_and_dead_ones_replaced() {
    let (addr, count) = keeping("127.0.0.1:0", 3, "good");
    let (url, client) =
        (Url::parse(&format!("http://{addr}/x")).unwrap(), client(Credentials::default()));
    for n in 1..=9usize {
        let answer = match n % 2 {
            0 => client.get(&url, LIMIT).await.unwrap(),
            _ => client.post(&url, "text/plain", "body", LIMIT).await.unwrap(),
        };
        assert_eq!((answer.status, &answer.body[..]), (200, &b"good"[..]));
        // The server closes each connection after three requests, without announcing it.
        assert_eq!(count.load(Ordering::SeqCst), n.div_ceil(3));
    }
}

#[tokio::test]
async fn responses_are_limited_in_time_and_size() {
    let client = client(Credentials::default());
    let ask = async |addr: SocketAddr| {
        let limit = Limit { time: Duration::from_millis(500), body: 1000 };
        client.get(&Url::parse(&format!("http://{addr}")).unwrap(), limit).await
    };
    static BODIES: std::sync::OnceLock<[String; 2]> = std::sync::OnceLock::new();
    let [fits, large] = BODIES.get_or_init(|| ["x".repeat(1000), "x".repeat(1001)]);
    assert_eq!(ask(keeping("127.0.0.1:0", 1, fits).0).await.unwrap().body.len(), 1000);
    let refused = ask(keeping("127.0.0.1:0", 1, large).0).await.unwrap_err();
    assert!(matches!(refused, HttpError::TooLarge { limit: 1000, .. }), "{refused}");
    // A server that accepts and sends nothing, one that sends less than it announced, one that does not exist.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let refused = ask(silent.local_addr().unwrap()).await.unwrap_err();
    assert!(matches!(refused, HttpError::Late { .. }), "{refused}");
    let promising = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = promising.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut kept: Vec<TcpStream> = Vec::new();
        for socket in promising.incoming() {
            let mut socket = socket.unwrap();
            let _ = socket
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 18446744073709551615\r\n\r\nx");
            kept.push(socket);
        }
    });
    let refused = ask(addr).await.unwrap_err();
    assert!(
        matches!(
            refused,
            HttpError::Late { .. } | HttpError::TooLarge { .. } | HttpError::Answer { .. }
        ),
        "{refused}"
    );
    drop(silent);
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert!(matches!(ask(gone).await, Err(HttpError::Connect { .. })));
}

/// A server that sends these bytes with these headers.
fn serving(head: &'static str, body: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let mut stream = BufReader::new(socket.unwrap());
            let mut line = String::new();
            while stream.read_line(&mut line).is_ok_and(|n| n > 2) {
                line.clear();
            }
            let length = body.len();
            let head = format!(
                "HTTP/1.1 200 OK\r\nconnection: close\r\n{head}content-length: {length}\r\n\r\n"
            );
            let _ = stream.get_mut().write_all(&[head.as_bytes(), &body].concat());
        }
    });
    addr
}

#[tokio::test]
async fn a_file_of_a_log_may_be_gzip_and_is_limited_by_its_decompressed_size() {
    const GZIP: &str = "content-encoding: gzip\r\n";
    let client = client(Credentials::default());
    let url = |addr: SocketAddr| Url::parse(&format!("http://{addr}")).unwrap();
    let file =
        async |head, body| client.file(&url(serving(head, body)), LIMIT).await.map(|a| a.body);
    let random = aws_lc_rs::rand::generate::<[u8; 1000]>(&aws_lc_rs::rand::SystemRandom::new());
    let plain = random.unwrap().expose().to_vec();
    let packed = gzip(&plain);
    assert!(packed.len() > plain.len(), "what does not get smaller is read all the same");
    for (head, body) in [
        ("", plain.clone()),
        ("content-encoding: identity\r\n", plain.clone()),
        (GZIP, packed.clone()),
        ("content-encoding: X-GZIP\r\n", packed.clone()),
        // RFC 1952, 2.2: a file is a series of members.
        (GZIP, [gzip(&plain[..400]), gzip(b""), gzip(&plain[400..])].concat()),
    ] {
        assert_eq!(file(head, body).await.unwrap(), plain, "{head}");
    }
    // One byte over the limit; far more, in few bytes and in many.
    for bomb in [gzip(&[7; 1001]), gzip(&vec![0; 1 << 20]), gzip_bomb()] {
        let refused = file(GZIP, bomb).await.unwrap_err();
        assert!(matches!(refused, HttpError::TooLarge { limit: 1000, .. }), "{refused}");
    }
    // Truncated data, a wrong checksum, trailing data, data that is not gzip; and codings that were not requested.
    let mut damaged: Vec<_> = [0, 1, 5, 10, 11, 500, packed.len() - 9, packed.len() - 1]
        .map(|n| packed[..n].to_vec())
        .into();
    let mut altered = packed.clone();
    *altered.last_mut().unwrap() ^= 1;
    damaged.extend([altered, [&packed[..], b"x"].concat(), [&packed[..], &[0; 9]].concat()]);
    damaged.push(plain.clone());
    for body in damaged {
        let len = body.len();
        let refused = file(GZIP, body).await;
        assert!(matches!(refused, Err(HttpError::Answer { .. })), "{len} bytes: {refused:?}");
    }
    for head in [
        "content-encoding: br\r\n",
        "content-encoding: gzip, gzip\r\n",
        "content-encoding: gzip\r\ncontent-encoding: gzip\r\n",
    ] {
        let refused = file(head, packed.clone()).await;
        assert!(matches!(refused, Err(HttpError::Answer { .. })), "{head}: {refused:?}");
    }
    // For other requests gzip is neither offered nor accepted.
    let refused = client.get(&url(serving(GZIP, packed)), LIMIT).await;
    assert!(matches!(refused, Err(HttpError::Answer { .. })), "{refused:?}");
}
