//! HTTP responses of real servers and of hostile ones.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

#[path = "../../../tests/ports.rs"]
mod ports;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ports::free;
use wiretight_scan::active::{http, redirect};
use wiretight_scan::facts::{Answer, Facts, Value};

const PATIENCE: Duration = Duration::from_secs(5);
/// Longer than any request takes, even on a busy machine.
const LONG: Duration = Duration::from_secs(60);

async fn ask(address: SocketAddr) -> Facts {
    http(address, Some("localhost"), "localhost", PATIENCE, None).await
}

fn evidence<'a>(facts: &'a Facts, id: &str) -> &'a str {
    &facts.get(id).unwrap().evidence
}

fn text<'a>(facts: &'a Facts, id: &str) -> &'a str {
    match &facts.get(id).unwrap().value {
        Some(Value::Text(text)) => text,
        other => panic!("{id}: {other:?}"),
    }
}

/// A program that is stopped on drop.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        // nginx stops its workers on SIGTERM, but not on SIGKILL.
        let pid = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.0.wait();
    }
}

/// The program, if it is installed. Otherwise prints a note; in CI, it fails.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
    let found = dirs.map(|dir| dir.join(program)).find(|file| file.exists());
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "{program} is not installed, and CI needs it");
        // Directly to stderr, because the test harness hides the output of passing tests.
        let _ = writeln!(std::io::stderr(), "skipped: {program} is not installed");
    }
    found
}

/// Certificate and key, and both in one file for HAProxy.
fn pems(dir: &Path) {
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (chain, private) = (key.cert.pem(), key.signing_key.serialize_pem());
    std::fs::write(dir.join("chain.pem"), &chain).unwrap();
    std::fs::write(dir.join("key.pem"), &private).unwrap();
    std::fs::write(dir.join("both.pem"), chain + &private).unwrap();
}

/// Starts the program, and waits until its port answers.
async fn start(command: &mut Command, port: u16) -> (Program, SocketAddr) {
    // Debian's default settings forbid some of the tested features.
    command.env("OPENSSL_CONF", "/dev/null");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let program = Program(command.spawn().unwrap());
    let (address, begun) = (SocketAddr::from(([127, 0, 0, 1], port)), Instant::now());
    while TcpStream::connect(address).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{command:?} does not start");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    (program, address)
}

#[tokio::test]
async fn the_facts_about_nginx_match_its_settings() {
    let Some(nginx) = find("nginx") else { return };
    let (dir, ports) = (tempfile::tempdir().unwrap(), [0; 4].map(|_| free().port()));
    pems(dir.path());
    let (shown, [with, without, old, plain]) = (dir.path().display(), ports);
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {shown}/{kind};\n"))
        .concat();
    let config = format!(
        "daemon off; master_process off; pid {shown}/pid; error_log {shown}/log;\n\
         events {{}}\nhttp {{\naccess_log off;\n{temporary}\
         ssl_certificate {shown}/chain.pem; ssl_certificate_key {shown}/key.pem;\n\
         server {{ listen 127.0.0.1:{with} ssl http2;\n\
         add_header Strict-Transport-Security 'max-age=63072000; includeSubDomains; preload';\n\
         add_header Strict-Transport-Security 'max-age=0';\n\
         add_header Alt-Svc 'h3=\":443\"; ma=86400';\n\
         add_header Content-Security-Policy \"default-src 'self'\";\n\
         add_header X-Frame-Options DENY;\nadd_header X-Content-Type-Options nosniff;\n\
         return 200 hello; }}\n\
         server {{ listen 127.0.0.1:{without} ssl; return 404; }}\n\
         server {{ listen 127.0.0.1:{old} ssl; ssl_protocols TLSv1 TLSv1.1;\n\
         ssl_ciphers ALL:@SECLEVEL=0; return 200 hello; }}\n\
         server {{ listen 127.0.0.1:{plain}; location / {{ return 301 https://$host/; }}\n\
         }}\n}}\n"
    );
    std::fs::write(dir.path().join("conf"), config).unwrap();
    let mut command = Command::new(nginx);
    command.arg("-p").arg(dir.path()).arg("-c").arg(dir.path().join("conf"));
    command.arg("-e").arg(dir.path().join("log"));
    let (_nginx, address) = start(&mut command, with).await;

    let facts = ask(address).await;
    assert_eq!(facts.number("http.status"), Some(200), "{facts:?}");
    assert_eq!(facts.number("http.hsts"), Some(63_072_000));
    for id in ["http.hsts", "http.hsts.subdomains", "http.hsts.preload", "http.http3"] {
        assert!(facts.yes(id), "{id}: {facts:?}");
    }
    assert_eq!(text(&facts, "http.header.content-security-policy"), "default-src 'self'");
    assert_eq!(text(&facts, "http.header.x-frame-options"), "DENY");
    assert_eq!(text(&facts, "http.header.x-content-type-options"), "nosniff");
    assert_eq!(facts.answer("http.header.referrer-policy"), Answer::No);

    let facts = ask(([127, 0, 0, 1], without).into()).await;
    assert_eq!(facts.number("http.status"), Some(404));
    for (id, fact) in facts.iter().filter(|(id, _)| *id != "http.status") {
        assert_eq!(fact.answer, Answer::No, "{id}");
        assert!(fact.evidence.contains("status 404"), "{id}: {}", fact.evidence);
    }

    let facts = ask(([127, 0, 0, 1], old).into()).await;
    assert_eq!(facts.answer("http.hsts"), Answer::Inconclusive, "{facts:?}");
    assert!(evidence(&facts, "http.hsts").contains("no common TLS parameters"), "{facts:?}");

    let plain = ([127, 0, 0, 1], plain).into();
    let facts = redirect(plain, "localhost", PATIENCE).await;
    assert_eq!(text(&facts, "http.redirect"), "https://localhost/");
    assert!(facts.yes("http.redirect"), "{facts:?}");
    let facts = redirect(address, "localhost", PATIENCE).await;
    assert_eq!(facts.answer("http.redirect"), Answer::No, "{facts:?}");
    let closed = ([127, 0, 0, 1], free().port()).into();
    let facts = redirect(closed, "localhost", PATIENCE).await;
    assert_eq!(facts.answer("http.redirect"), Answer::Untested, "{facts:?}");
    let facts = ask(plain).await;
    assert_eq!(facts.answer("http.status"), Answer::Inconclusive, "{facts:?}");
}

#[tokio::test]
async fn redirects_of_haproxy_are_recognized() {
    let Some(haproxy) = find("haproxy") else { return };
    let (dir, ports) = (tempfile::tempdir().unwrap(), [0; 3].map(|_| free().port()));
    pems(dir.path());
    let (shown, [tls, plain, http2]) = (dir.path().display(), ports);
    let config = format!(
        "global\n log stderr format raw local0\ndefaults\n mode http\n timeout client 5s\n\
         frontend tls\n bind 127.0.0.1:{tls} ssl crt {shown}/both.pem\n\
         http-request return status 503 hdr strict-transport-security \"MAX-AGE=\\\"60\\\"\" \
         hdr referrer-policy no-referrer hdr alt-svc clear\n\
         frontend plain\n bind 127.0.0.1:{plain}\n \
         http-request redirect scheme https code 308 if {{ path / }}\n\
         frontend http2\n bind 127.0.0.1:{http2} ssl crt {shown}/both.pem alpn h2\n \
         http-request return status 200\n"
    );
    std::fs::write(dir.path().join("conf"), config).unwrap();
    let mut command = Command::new(haproxy);
    command.arg("-db").arg("-f").arg(dir.path().join("conf"));
    let (_haproxy, address) = start(&mut command, tls).await;

    let facts = ask(address).await;
    assert_eq!(facts.number("http.status"), Some(503), "{facts:?}");
    assert_eq!(facts.number("http.hsts"), Some(60), "{facts:?}");
    assert_eq!(facts.answer("http.hsts.subdomains"), Answer::No);
    assert_eq!(facts.answer("http.http3"), Answer::No);
    assert_eq!(text(&facts, "http.header.referrer-policy"), "no-referrer");
    let facts = redirect(([127, 0, 0, 1], plain).into(), "localhost", PATIENCE).await;
    assert!(facts.yes("http.redirect"), "{facts:?}");
    // It also supports HTTP/1.1, and does not require HTTP/2 in ALPN.
    let facts = ask(([127, 0, 0, 1], http2).into()).await;
    assert_eq!(facts.number("http.status"), Some(200), "{facts:?}");
}

#[tokio::test]
async fn unusual_headers_from_node_are_parsed() {
    let Some(node) = find("node") else { return };
    let (dir, port) = (tempfile::tempdir().unwrap(), free().port());
    pems(dir.path());
    let script = format!(
        "const fs = require('fs'), o = {{ cert: fs.readFileSync('chain.pem'), \
         key: fs.readFileSync('key.pem') }};\n\
         require('https').createServer(o, (q, r) => {{ r.writeEarlyHints({{ link: '</a>; rel=preload' \
         }}); r.setHeader('Strict-Transport-Security', 'max-age=1; max-age=2');\n\
         r.setHeader('Permissions-Policy', ['geolocation=()', 'camera=()']);\n\
         r.setHeader('Set-Cookie', ['a=' + 'x'.repeat(9000), 'b']); r.end(q.headers.host); \
         }}).listen({port}, '127.0.0.1');"
    );
    let mut command = Command::new(node);
    command.arg("-e").arg(script).current_dir(dir.path());
    let (_node, address) = start(&mut command, port).await;

    let facts = ask(address).await;
    assert_eq!(facts.number("http.status"), Some(200), "{facts:?}");
    assert_eq!(facts.answer("http.hsts"), Answer::No);
    assert!(evidence(&facts, "http.hsts").contains("max-age is repeated"), "{facts:?}");
    assert_eq!(text(&facts, "http.header.permissions-policy"), "geolocation=(), camera=()");
}

type Play = fn(&mut dyn Write) -> std::io::Result<()>;

/// A simulated TLS server; the function handles a connection after the request.
fn played(alpn: &str, play: Play) -> SocketAddr {
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let private = rustls_pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![key.cert.der().clone()], private.unwrap())
        .unwrap();
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        // The thread ends with the test process.
        for client in listener.incoming().flatten() {
            let mut server = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut client = client;
            let mut stream = rustls::Stream::new(&mut server, &mut client);
            let mut request = [0; 4096];
            if stream.read(&mut request).is_ok() {
                let _ = play(&mut stream);
            }
        }
    });
    address
}

#[tokio::test]
async fn a_server_that_rejects_http1_by_alpn_is_tested_without_alpn() {
    let address = played("h2", |out| out.write_all(b"HTTP/1.1 101 Odd\r\n\r\n"));
    let facts = ask(address).await;
    assert_eq!(facts.number("http.status"), Some(101), "{facts:?}");
}

#[tokio::test]
async fn no_server_can_delay_a_request_or_cause_a_wrong_answer() {
    let plays: &[(&str, Answer, Play)] = &[
        ("an endless field", Answer::Inconclusive, |out| {
            out.write_all(b"HTTP/1.1 200 OK\r\nA: ")?;
            loop {
                out.write_all(&[b'x'; 1000])?;
            }
        }),
        ("endless fields", Answer::Inconclusive, |out| {
            out.write_all(b"HTTP/1.1 200 OK\r\n")?;
            loop {
                out.write_all(&b"A: b\r\n".repeat(100))?;
            }
        }),
        ("many fields", Answer::Inconclusive, |out| {
            out.write_all(b"HTTP/1.1 200 OK\r\n")?;
            out.write_all(&b"A:b\r\n".repeat(300))?;
            out.write_all(b"\r\n")
        }),
        ("endless interim answers", Answer::Inconclusive, |out| {
            loop {
                out.write_all(b"HTTP/1.1 103 Early Hints\r\n\r\n")?;
            }
        }),
        ("a byte now and then", Answer::Inconclusive, |out| {
            for byte in b"HTTP/1.1 200 OK\r\n".iter().cycle() {
                out.write_all(&[*byte])?;
                std::thread::sleep(Duration::from_millis(50));
            }
            Ok(())
        }),
        ("silence", Answer::Inconclusive, |out| {
            std::thread::sleep(LONG);
            out.write_all(b"late")
        }),
        ("an end before an answer", Answer::Inconclusive, |_| Ok(())),
        ("an end within", Answer::Inconclusive, |out| out.write_all(b"HTTP/1.1 200 OK\r\nA:")),
        ("another protocol", Answer::Untested, |out| {
            out.write_all(b"* OK IMAP4rev1 \x1b[2J ready\r\n")?;
            std::thread::sleep(LONG);
            Ok(())
        }),
        ("HTTP/2", Answer::Untested, |out| out.write_all(b"\0\0\x12\x04\0\0\0\0\0")),
    ];
    for (name, answer, play) in plays {
        // A server that answers needs no time-out, but a busy machine may be slow.
        let timeout = match answer {
            Answer::Untested => PATIENCE,
            _ => Duration::from_millis(500),
        };
        let address = played("http/1.1", *play);
        let begun = Instant::now();
        let facts = http(address, None, "localhost", timeout, None).await;
        assert!(begun.elapsed() < LONG / 2, "{name}: {:?}", begun.elapsed());
        for (id, fact) in facts.iter() {
            assert_eq!(fact.answer, *answer, "{name}: {id}: {fact:?}");
            assert!(!fact.evidence.contains('\x1b') && fact.evidence.len() < 400, "{name}");
        }
    }
}
