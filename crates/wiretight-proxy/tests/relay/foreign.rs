//! Plain mutual TLS with other software on either end, with SVIDs in PEM files.

use super::rig;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rig::foreign::{Pems, Program, missing};
use rig::*;
use wiretight_proxy::relay::Side;
use wiretight_proxy::relay::settings::RelaySettings;

/// Waits until something listens there.
fn listening(at: SocketAddr) {
    eventually("the program listens", || TcpStream::connect(at).is_ok());
}

/// A dial of relay A to another program's server, in addition to the pair's own dial.
fn dial_foreign(pair: &Pair, to: SocketAddr) -> SocketAddr {
    let listen = free();
    let dials = vec![pair.dial.clone(), dial(listen, &[to])];
    pair.a.apply(&RelaySettings { services: vec![], dials, intercept: None }).unwrap();
    listen
}

/// Data sent through another program's server is echoed, several times and in bulk.
fn assert_echoes(entry: SocketAddr) {
    for _ in 0..3 {
        ping(&mut connect(entry), b"through a foreign program").unwrap();
    }
    let mut socket = connect(entry);
    let sent = Random::new(7).bytes(1 << 20);
    let (mut writer, data) = (socket.try_clone().unwrap(), sent.clone());
    let writer = std::thread::spawn(move || writer.write_all(&data).unwrap());
    let mut got = vec![0; sent.len()];
    socket.read_exact(&mut got).unwrap();
    writer.join().unwrap();
    assert!(got == sent);
}

fn s_client(pair: &Pair, pems: &Pems) -> Command {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-quiet", "-verify_return_error", "-verify", "3"]);
    command.args(["-verify_hostname", "db.service.test.example"]);
    command.arg("-connect").arg(pair.service.listen.to_string());
    command.arg("-CAfile").arg(&pems.root).arg("-key").arg(&pems.key);
    command.arg("-cert").arg(&pems.chain).arg("-cert_chain").arg(&pems.chain);
    command
}

#[test]
fn openssl_s_client_reaches_our_service() {
    if missing("openssl") {
        return;
    }
    let pair = Pair::new(&[backend(echo)]);
    let pems = Pems::new(&pair.ca, "service/web");
    let mut client = Program::start(&mut s_client(&pair, &pems));
    client.ping(b"hello from s_client\n");
    client.ping(b"and again\n");
    let connection = &pair.b.status(1).connections[0];
    assert_eq!(connection.peer.to_string(), "spiffe://test.example/service/web");
    assert_eq!(connection.cipher, "TLS_AES_256_GCM_SHA384");
    drop(client);
    // A client that is not allowed is disconnected.
    let eve = Pems::new(&pair.ca, "service/eve");
    let out = s_client(&pair, &eve).output().unwrap();
    assert!(out.stdout.is_empty());
    expect_refused(&pair.b, Side::Service, Reason::NotAllowed);
}

#[test]
fn we_reach_openssl_s_server() {
    if missing("openssl") {
        return;
    }
    let pair = Pair::new(&[backend(echo)]);
    let pems = Pems::new(&pair.ca, "service/db");
    let at = free();
    let mut command = Command::new("openssl");
    // -rev echoes each line reversed.
    command.args(["s_server", "-rev", "-tls1_3", "-Verify", "3", "-verify_return_error"]);
    command.arg("-accept").arg(at.to_string()).arg("-CAfile").arg(&pems.root);
    command.arg("-cert").arg(&pems.chain).arg("-cert_chain").arg(&pems.chain);
    command.arg("-key").arg(&pems.key);
    let _server = Program::start(&mut command);
    listening(at);
    let entry = dial_foreign(&pair, at);
    for _ in 0..2 {
        let mut socket = connect(entry);
        socket.write_all(b"hello\n").unwrap();
        let mut answer = [0; 6];
        socket.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"olleh\n");
    }
}

#[test]
fn curl_reaches_our_service_and_verifies_its_dns_name() {
    if missing("curl") {
        return;
    }
    let body = "what the backend has to say\n";
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let pair = Pair::new(&[backend(move |mut socket| {
        let mut seen = Vec::new();
        let mut buf = [0; 4096];
        while let Ok(n @ 1..) = socket.read(&mut buf) {
            seen.extend_from_slice(&buf[..n]);
            if seen.ends_with(b"\r\n\r\n") {
                socket.write_all(answer.as_bytes()).unwrap();
                seen.clear();
            }
        }
    })]);
    let pems = Pems::new(&pair.ca, "service/web");
    let port = pair.service.listen.port();
    let get = |host: &str, pems: &Pems| {
        let url = format!("https://{host}:{port}/");
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--max-time", "10", "--noproxy", "*"]);
        curl.arg("--resolve").arg(format!("{host}:{port}:127.0.0.1"));
        curl.arg("--cacert").arg(&pems.root);
        curl.arg("--cert").arg(&pems.chain).arg("--key").arg(&pems.key);
        curl.args([&url, &url]).output().unwrap()
    };
    let out = get("db.service.test.example", &pems);
    assert_eq!(String::from_utf8_lossy(&out.stdout), body.repeat(2), "{out:?}");
    // curl rejects a service with another name, and we reject another client.
    let out = get("other.service.test.example", &pems);
    assert_eq!(out.status.code(), Some(60), "{out:?}");
    let forged = Pems::new(&Ca::new(TRUST_DOMAIN), "service/web");
    std::fs::copy(&pems.root, &forged.root).unwrap();
    let out = get("db.service.test.example", &forged);
    assert!(!out.status.success() && out.stdout.is_empty(), "{out:?}");
    expect_refused(&pair.b, Side::Service, Reason::Untrusted);
}

/// stunnel on both sides: as a client of our service, and as a server that we dial.
#[test]
fn stunnel_works_on_both_sides() {
    if missing("stunnel") {
        return;
    }
    let pair = Pair::new(&[backend(echo)]);
    let (web, db) = (Pems::new(&pair.ca, "service/web"), Pems::new(&pair.ca, "service/db"));
    let (client, server) = (free(), free());
    let echo = backend(echo);
    let conf = format!(
        "foreground = yes\npid =\ndebug = 4\n\
         [client]\nclient = yes\naccept = {client}\nconnect = {service}\n\
         cert = {web_chain}\nkey = {web_key}\nCAfile = {root}\nverifyChain = yes\n\
         checkHost = db.service.test.example\nsslVersionMin = TLSv1.3\n\
         [server]\naccept = {server}\nconnect = {echo}\n\
         cert = {db_chain}\nkey = {db_key}\nCAfile = {root}\nverifyChain = yes\n\
         sslVersionMin = TLSv1.3\n",
        service = pair.service.listen,
        web_chain = web.chain.display(),
        web_key = web.key.display(),
        root = web.root.display(),
        db_chain = db.chain.display(),
        db_key = db.key.display(),
    );
    let path = web.dir.path().join("stunnel.conf");
    std::fs::write(&path, conf).unwrap();
    let _stunnel = Program::start(Command::new("stunnel").arg(&path));
    listening(client);
    assert_echoes(client);
    listening(server);
    assert_echoes(dial_foreign(&pair, server));
}

/// nginx's stream module on both sides.
#[test]
fn nginx_stream_works_on_both_sides() {
    let module = "/usr/lib/nginx/modules/ngx_stream_module.so";
    if missing("nginx") || missing(module) {
        return;
    }
    let pair = Pair::new(&[backend(echo)]);
    let (web, db) = (Pems::new(&pair.ca, "service/web"), Pems::new(&pair.ca, "service/db"));
    let (client, server) = (free(), free());
    let echo = backend(echo);
    let conf = format!(
        "load_module {module};\ndaemon off;\nmaster_process off;\npid {dir}/pid;\n\
         error_log {dir}/log;\nevents {{}}\nstream {{\n\
         server {{ listen {client}; proxy_pass {service}; proxy_ssl on;\n\
           proxy_ssl_protocols TLSv1.3; proxy_ssl_verify on; proxy_ssl_verify_depth 3;\n\
           proxy_ssl_name db.service.test.example; proxy_ssl_trusted_certificate {root};\n\
           proxy_ssl_certificate {web_chain}; proxy_ssl_certificate_key {web_key}; }}\n\
         server {{ listen {server} ssl; proxy_pass {echo}; ssl_protocols TLSv1.3;\n\
           ssl_verify_client on; ssl_verify_depth 3; ssl_client_certificate {root};\n\
           ssl_certificate {db_chain}; ssl_certificate_key {db_key}; }}\n}}\n",
        dir = web.dir.path().display(),
        service = pair.service.listen,
        web_chain = web.chain.display(),
        web_key = web.key.display(),
        root = web.root.display(),
        db_chain = db.chain.display(),
        db_key = db.key.display(),
    );
    let path = web.dir.path().join("nginx.conf");
    std::fs::write(&path, conf).unwrap();
    let nginx =
        if std::path::Path::new("/usr/sbin/nginx").exists() { "/usr/sbin/nginx" } else { "nginx" };
    let mut command = Command::new(nginx);
    command.arg("-p").arg(web.dir.path()).arg("-c").arg(&path);
    let _nginx = Program::start(command.arg("-e").arg("stderr"));
    listening(client);
    assert_echoes(client);
    listening(server);
    assert_echoes(dial_foreign(&pair, server));
}

#[test]
fn a_truncated_raw_stream_is_an_abort() {
    // As a client of our service: the backend notices.
    let (tell, backends) = mpsc::channel();
    let pair = Pair::new(&[backend(move |socket| tell.send(socket).unwrap())]);
    let stranger = || {
        let peer = tls::Stranger::new(pair.ca.issue("service/web", 60));
        let peer = tls::Stranger { alpn: false, ..peer };
        let mut tls = peer.connect(pair.service.listen).unwrap();
        tls.write_all(b"half of it").unwrap();
        let mut socket = backends.recv_timeout(Duration::from_secs(10)).unwrap();
        socket.read_exact(&mut [0; 10]).unwrap();
        (tls, socket)
    };
    let (tls, mut socket) = stranger();
    drop(tls); // FIN without close_notify: an attacker could have sent it
    let error = socket.read(&mut [0]).expect_err("a truncated stream looked complete");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let (mut tls, mut socket) = stranger();
    tls.conn.send_close_notify();
    tls.flush().unwrap();
    drop(tls);
    assert_eq!(socket.read(&mut [0]).unwrap(), 0);

    // As a server that we dial: the client notices.
    for orderly in [true, false] {
        let at = tls::server(pair.ca.issue("service/db", 60), false, move |mut tls| {
            tls.write_all(b"half of it").unwrap();
            let _ = tls.read(&mut [0]);
            if orderly {
                tls.conn.send_close_notify();
                tls.flush().unwrap();
            }
        });
        let mut client = connect(dial_foreign(&pair, at));
        client.read_exact(&mut [0; 10]).unwrap();
        client.write_all(b"x").unwrap();
        match (orderly, client.read(&mut [0])) {
            (true, Ok(0)) => {}
            (false, Err(e)) if e.kind() == ErrorKind::ConnectionReset => {}
            (_, other) => panic!("orderly {orderly}: {other:?}"),
        }
    }
}

/// The data before the end is delivered even if the program reads late, and the program can see that it is
/// incomplete.
#[test]
fn data_before_a_truncation_is_delivered() {
    const ALL: usize = 8 << 20;
    let (tell, backends) = mpsc::channel();
    let pair = Pair::new(&[backend(move |socket| tell.send(socket).unwrap())]);
    let peer = tls::Stranger::new(pair.ca.issue("service/web", 60));
    let mut tls = tls::Stranger { alpn: false, ..peer }.connect(pair.service.listen).unwrap();
    let mut socket = backends.recv_timeout(Duration::from_secs(10)).unwrap();
    let sent = Random::new(9).bytes(ALL);
    let of_peer = sent.clone();
    // It does not fit into the socket buffers, so some of it is still here when the connection ends.
    let peer = std::thread::spawn(move || {
        tls.write_all(&of_peer).unwrap();
        drop(tls);
    });
    std::thread::sleep(Duration::from_millis(300));
    let mut got = Vec::new();
    let error = loop {
        let mut buffer = [0; 65536];
        match socket.read(&mut buffer) {
            Ok(0) => panic!("a truncated stream looked complete"),
            Ok(n) => got.extend_from_slice(&buffer[..n]),
            Err(error) => break error,
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    peer.join().unwrap();
    assert_eq!((got.len(), error.kind()), (ALL, ErrorKind::ConnectionReset));
    assert!(got == sent);
}

/// The protocol that is selected for a client with this offer.
fn selected(pair: &Pair, pems: &Pems, offer: &str) -> Option<String> {
    let mut command = s_client(pair, pems);
    command.args(["-alpn", offer]);
    // Not -quiet, so that it prints the protocol.
    let args: Vec<_> =
        command.get_args().filter(|a| *a != "-quiet").map(ToOwned::to_owned).collect();
    let out = Command::new("openssl").args(args).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(said.contains("TLSv1.3"), "{offer}: {said}{}", String::from_utf8_lossy(&out.stderr));
    let line = said.lines().find_map(|line| line.strip_prefix("ALPN protocol: "));
    line.map(str::to_owned)
}

#[test]
fn alpn_is_selected_only_for_clients_without_a_choice() {
    if missing("openssl") {
        return;
    }
    let pair = Pair::new(&[backend(echo)]);
    let pems = Pems::new(&pair.ca, "service/web");
    for (offer, expected) in [
        ("h2", Some("h2")),
        ("grpc-exp,h2", Some("h2")),
        ("postgresql", Some("postgresql")),
        ("http/1.1", Some("http/1.1")),
        // curl and browsers: the program behind the relay may support only HTTP/1.1.
        ("h2,http/1.1", None),
        ("http/1.0,http/1.1", None),
        ("a,b", None),
        // Ours is preferred.
        ("h2,wiretight/1", Some("wiretight/1")),
    ] {
        assert_eq!(selected(&pair, &pems, offer).as_deref(), expected, "{offer}");
    }
}

#[test]
fn a_foreign_client_may_close_its_half_first() {
    let pair = Pair::new(&[backend(|mut socket| {
        let mut question = Vec::new();
        socket.read_to_end(&mut question).unwrap();
        question.reverse();
        socket.write_all(&question).unwrap();
    })]);
    let peer = tls::Stranger::new(pair.ca.issue("service/web", 60));
    let mut tls = tls::Stranger { alpn: false, ..peer }.connect(pair.service.listen).unwrap();
    let mut question = Random::new(8).bytes(100_000);
    tls.write_all(&question).unwrap();
    tls.conn.send_close_notify();
    tls.flush().unwrap();
    let mut answer = Vec::new();
    tls.read_to_end(&mut answer).unwrap(); // ends by close_notify
    question.reverse();
    assert!(answer == question);
    eventually("the session ends", || sums(&pair.b).live == 0);
}
