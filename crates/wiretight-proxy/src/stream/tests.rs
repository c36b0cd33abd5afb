//! Interoperability with rustls (the reference), OpenSSL, nginx and stunnel. In tests our keys are updated every few
//! records.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::thread;

use rustls::crypto::aws_lc_rs::cipher_suite;
use tokio::net::TcpListener;
use wiretight_keys::{Id, SpiffeId};

use super::*;
use crate::rig::foreign::{Pems, Program, missing};
use crate::rig::tls::{Stranger, TlsClient, alert};
use crate::rig::{self, Ca, Random, TRUST_DOMAIN};
use crate::tls::{self, ALPN_RELAY, Strangers};

/// Runs a test on a runtime like that of a worker.
fn run<T>(test: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build_local(Default::default()).unwrap().block_on(test)
}

const DEADLINE: Duration = Duration::from_secs(10);
/// Writes against each of OpenSSL, nginx and stunnel.
const WRITES: usize = 1_000_000;

/// The content of the test stream at `position`.
fn pattern(position: usize, len: usize) -> &'static [u8] {
    const PERIOD: usize = 65_521; // a prime
    static BYTES: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
        let period = Random::new(1).bytes(PERIOD);
        period.iter().copied().cycle().take(3 * PERIOD).collect()
    });
    &BYTES[position % PERIOD..][..len]
}

/// Sends `writes` pieces, most of them small, and checks that the peer echoes them.
async fn echoes(stream: &mut TlsStream, writes: usize) {
    let mut random = Random::new(3);
    let sizes: Vec<usize> =
        (0..writes).map(|n| 1 + random.below(if n % 128 == 0 { 50_000 } else { 100 })).collect();
    let whole: usize = sizes.iter().sum();
    let (mut reader, mut writer) = stream.split();
    let send = async {
        let mut sent = 0;
        for (n, size) in sizes.into_iter().enumerate() {
            writer.queue(pattern(sent, size)).unwrap();
            sent += size;
            if n % 10 == 0 {
                writer.flush().await.unwrap();
            }
        }
        writer.flush().await.unwrap();
    };
    let receive = async {
        let mut received = 0;
        while received < whole {
            let Received::Bytes(bytes) = reader.read().await.unwrap() else {
                panic!("closed after {received} of {whole}")
            };
            for piece in bytes.chunks(50_000) {
                assert!(piece == pattern(received, piece.len()), "altered after {received}");
                received += piece.len();
            }
        }
        assert_eq!(received, whole);
    };
    tokio::join!(send, receive);
}

/// Our server's end, and the client that `connect` starts.
async fn accepted<T: Send + 'static>(
    ca: &Ca,
    connect: impl FnOnce(SocketAddr) -> T + Send + 'static,
) -> (TlsStream, HandshakeInfo, thread::JoinHandle<T>) {
    let (mesh, id) = (ca.mesh(&["service/db"]), "service/db".parse().unwrap());
    let config = tls::server_config(&mesh, id, ALPN_RELAY, Strangers::Refused).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = listener.local_addr().unwrap();
    let peer = thread::spawn(move || connect(to));
    let (socket, _) = listener.accept().await.unwrap();
    let accepted = TlsStream::accept(socket, |_| config, DEADLINE).await;
    let (stream, agreed) = accepted.unwrap_or_else(|e| panic!("{e}"));
    (stream, agreed, peer)
}

/// Our client's end.
async fn connected(ca: &Ca, to: SocketAddr) -> TlsStream {
    let (mesh, id) = (ca.mesh(&["service/web"]), "service/web".parse().unwrap());
    let expected = SpiffeId::new(mesh.trust_domain().clone(), Id::Service(rig::name("db")));
    let name = ServerName::try_from(expected.dns_name()).unwrap();
    let config = tls::client_config(&mesh, id, expected, ALPN_RELAY).unwrap();
    let socket = loop {
        match TcpStream::connect(to).await {
            Ok(socket) => break socket,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await, // the server is still starting
        }
    };
    let connected = TlsStream::connect(socket, config, name, DEADLINE).await;
    connected.unwrap_or_else(|e| panic!("{e}")).0
}

/// Echoes, and updates its key every few reads.
macro_rules! echo_by_rustls {
    ($tls:expr) => {{
        let mut tls = $tls;
        let mut buffer = vec![0; 5000];
        for n in 0.. {
            match tls.read(&mut buffer) {
                Ok(n @ 1..) => tls.write_all(&buffer[..n]).unwrap(),
                _ => break,
            }
            if n % 5 == 0 {
                tls.conn.refresh_traffic_keys().unwrap();
            }
        }
    }};
}

#[test]
fn we_interoperate_with_rustls_with_each_cipher_on_both_sides() {
    let ca = Ca::new(TRUST_DOMAIN);
    for suite in [
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ] {
        let stranger =
            Stranger { suites: vec![suite], ..Stranger::new(ca.issue("service/web", 60)) };
        run(async {
            let connect = |to| echo_by_rustls!(stranger.connect(to).unwrap());
            let (mut stream, agreed, peer) = accepted(&ca, connect).await;
            assert_eq!(agreed.negotiated.suite, suite.suite());
            assert!(
                !stream.tls.borrow().records.accepts_tickets(),
                "clients send no session tickets"
            );
            echoes(&mut stream, 10_000).await;
            drop(stream);
            peer.join().unwrap();
        });
    }
    let server = rig::tls::server(ca.issue("service/db", 60), true, |tls| echo_by_rustls!(tls));
    run(async {
        let mut stream = connected(&ca, server).await;
        assert!(stream.tls.borrow().records.accepts_tickets());
        echoes(&mut stream, 10_000).await;
    });
}

#[test]
fn data_received_with_the_handshake_is_read() {
    run(async {
        let ca = Ca::new(TRUST_DOMAIN);
        for close in [false, true] {
            let stranger = Stranger::new(ca.issue("service/web", 60));
            let (mut stream, _, peer) = accepted(&ca, move |to| {
                let mut tls = stranger.greet(to).unwrap();
                // Its last flight and the first data in one segment.
                tls.conn.read_tls(&mut tls.sock).unwrap();
                tls.conn.process_new_packets().unwrap();
                tls.conn.writer().write_all(b"early").unwrap();
                if close {
                    tls.conn.send_close_notify();
                }
                let mut flight = Vec::new();
                while tls.conn.wants_write() {
                    tls.conn.write_tls(&mut flight).unwrap();
                }
                tls.sock.write_all(&flight).unwrap();
                tls
            })
            .await;
            let (mut reader, _) = stream.split();
            assert!(matches!(reader.read().await, Ok(Received::Bytes(b)) if *b == *b"early"));
            if close {
                assert!(matches!(reader.read().await, Ok(Received::Closed)));
                assert!(matches!(reader.read().await, Ok(Received::Closed)));
            }
            drop(peer.join().unwrap());
        }
    });
}

/// The result of reading these raw bytes from a peer, and the alert that the peer gets.
fn told(
    bytes: impl FnOnce(&mut TlsClient) -> Vec<u8>,
) -> (Option<RecordError>, Option<AlertDescription>) {
    run(async {
        let ca = Ca::new(TRUST_DOMAIN);
        let stranger = Stranger::new(ca.issue("service/web", 60));
        let (mut stream, _, peer) = accepted(&ca, move |to| stranger.connect(to).unwrap()).await;
        let mut peer = peer.join().unwrap();
        let bytes = bytes(&mut peer);
        peer.sock.write_all(&bytes).unwrap();
        let (mut reader, _) = stream.split();
        let error = match reader.read().await {
            Ok(_) => None,
            Err(error) => error.get_ref().unwrap().downcast_ref().copied(),
        };
        assert_eq!(reader.read().await.is_err(), error.is_some(), "an error was forgotten");
        stream.close();
        let heard = peer.read(&mut [0]);
        (error, heard.err().and_then(|e| alert(&e)))
    })
}

#[test]
fn errors_are_reported_with_the_right_alert() {
    use AlertDescription as Alert;
    let fine = |tls: &mut TlsClient| {
        tls.conn.writer().write_all(b"fine").unwrap();
        tls.conn.send_close_notify();
        let mut sealed = Vec::new();
        tls.conn.write_tls(&mut sealed).unwrap();
        tls.conn.write_tls(&mut sealed).unwrap();
        sealed
    };
    assert_eq!(told(fine), (None, None));
    for (bytes, error, alert) in [
        (vec![23, 3, 3, 0, 20], vec![7; 20], RecordError::BadMac, Alert::BadRecordMac),
        (vec![23, 3, 3, 0x41, 1], vec![], RecordError::Overflow, Alert::RecordOverflow),
        (
            vec![21, 3, 3, 0, 2],
            vec![2, 40],
            RecordError::NotEncrypted(21),
            Alert::UnexpectedMessage,
        ),
        (b"GET /".to_vec(), vec![], RecordError::NotEncrypted(b'G'), Alert::UnexpectedMessage),
    ]
    .map(|(header, body, error, alert)| ([header, body].concat(), error, alert))
    {
        assert_eq!(told(|_| bytes), (Some(error), Some(alert)));
    }
}

#[test]
fn we_interoperate_with_openssl_across_key_updates() {
    if missing("openssl") {
        return;
    }
    run(async {
        let ca = Ca::new(TRUST_DOMAIN);
        let pems = Pems::new(&ca, "service/web");
        let (mut stream, _, peer) = accepted(&ca, move |to| {
            let mut command = Command::new("openssl");
            command.args(["s_client", "-quiet", "-connect"]).arg(to.to_string());
            command.arg("-CAfile").arg(&pems.root).arg("-key").arg(&pems.key);
            command.arg("-cert").arg(&pems.chain).arg("-cert_chain").arg(&pems.chain);
            // It echoes what it receives.
            let mut client = Program::start(command.stderr(Stdio::null()));
            let (mut from, mut to) =
                (client.0.stdout.take().unwrap(), client.0.stdin.take().unwrap());
            let echo = thread::spawn(move || std::io::copy(&mut from, &mut to));
            (client, echo, pems)
        })
        .await;
        echoes(&mut stream, WRITES).await;
        drop(stream);
        drop(peer.join().unwrap());
    });
}

#[test]
fn we_interoperate_with_nginx_and_stunnel_across_key_updates() {
    let module = "/usr/lib/nginx/modules/ngx_stream_module.so";
    if missing("nginx") || missing(module) || missing("stunnel") {
        return;
    }
    let ca = Ca::new(TRUST_DOMAIN);
    let db = Pems::new(&ca, "service/db");
    let (nginx, stunnel, echo) = (rig::free(), rig::free(), rig::backend(rig::echo));
    let dir = db.dir.path();
    let [chain, key, root] = [&db.chain, &db.key, &db.root].map(|path| path.display());
    let file = |name: &str, text: String| {
        std::fs::write(dir.join(name), text).unwrap();
        dir.join(name)
    };
    let nginx_conf = file(
        "nginx.conf",
        format!(
            "load_module {module};\ndaemon off;\nmaster_process off;\npid {dir}/pid;\n\
             error_log {dir}/log;\nevents {{}}\nstream {{\n\
             server {{ listen {nginx} ssl; proxy_pass {echo}; ssl_protocols TLSv1.3;\n\
               ssl_verify_client on; ssl_verify_depth 3; ssl_client_certificate {root};\n\
               ssl_certificate {chain}; ssl_certificate_key {key}; }}\n}}\n",
            dir = dir.display(),
        ),
    );
    let stunnel_conf = file(
        "stunnel.conf",
        format!(
            "foreground = yes\npid =\ndebug = 4\n[server]\naccept = {stunnel}\nconnect = {echo}\n\
             cert = {chain}\nkey = {key}\nCAfile = {root}\nverifyChain = yes\n\
             sslVersionMin = TLSv1.3\n"
        ),
    );
    let program =
        if std::path::Path::new("/usr/sbin/nginx").exists() { "/usr/sbin/nginx" } else { "nginx" };
    let mut command = Command::new(program);
    command.arg("-p").arg(dir).arg("-c").arg(&nginx_conf).args(["-e", "stderr"]);
    let _nginx = Program::start(&mut command);
    let _stunnel = Program::start(Command::new("stunnel").arg(&stunnel_conf));
    for to in [nginx, stunnel] {
        run(async { echoes(&mut connected(&ca, to).await, WRITES).await });
    }
}
