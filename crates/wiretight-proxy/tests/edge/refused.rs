//! What the edge rejects, each with an accepted counterpart.

use super::rig;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use hyper::Request;
use rustls::AlertDescription;
use socket2::{Domain, Socket, Type};
use wiretight_proxy::edge::settings::Limits;
use wiretight_proxy::edge::{CertificateError, SiteCertificate, Source};
use wiretight_proxy::relay::settings::{RelaySettings, ServiceSettings};
use wiretight_proxy::{Reason, Relay};

use rig::edge::{EdgeRig, Raw, SITE, full, http_backend, run, site};
use rig::frames::*;

const OTHER: &str = "other.service.test.example";

fn one() -> EdgeRig {
    EdgeRig::new(&[http_backend("one", false).to_string()])
}

fn short() -> Limits {
    let ms = Duration::from_millis;
    Limits { handshake: ms(500), head: ms(500), body: ms(500), idle: ms(500), ..Limits::default() }
}

#[test]
fn malformed_http_gets_400_after_earlier_requests_are_served() {
    let rig = one();
    let good = format!("GET /name HTTP/1.1\r\nHost: {SITE}\r\n\r\n");
    for bad in [
        format!("GET /name HTTP/1.1\nHost: {SITE}\n\n"),
        format!("GET /name HTTP/1.1\r\nHost: {SITE}\r\nx : y\r\n\r\n"),
        format!("GET /name HTTP/1.1\r\nHost: {SITE}\r\nx: y\r\n z\r\n\r\n"),
        format!("GET /name HTTP/1.1\r\nHost: {SITE}\r\nx: \0\r\n\r\n"),
        format!(
            "POST /echo HTTP/1.1\r\nHost: {SITE}\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na"
        ),
        format!(
            "POST /echo HTTP/1.1\r\nHost: {SITE}\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        ),
        format!(
            "POST /echo HTTP/1.1\r\nHost: {SITE}\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"
        ),
        format!(
            "POST /echo HTTP/1.0\r\nHost: {SITE}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        ),
        "GET /name HTTP/1.1\r\n\r\n".to_owned(),
    ] {
        let mut raw = rig.raw();
        raw.send(&bad);
        let answer = raw.rest();
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{bad:?}: {answer:?}");
        // The same after two good requests in one packet, which are served.
        let mut raw = rig.raw();
        raw.send(&format!("{good}{good}{bad}{good}"));
        let answers = raw.rest();
        assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 2, "{bad:?}: {answers:?}");
        assert_eq!(answers.matches("HTTP/1.1 400 Bad Request").count(), 1, "{bad:?}: {answers:?}");
        assert_eq!(answers.matches("HTTP/1.1").count(), 3, "{bad:?}: {answers:?}");
    }
    // In a body: its request is already in progress.
    for bad in ["5\r\nhelloX\r\n", "zz\r\n", "5\nhello"] {
        let mut raw = rig.raw();
        let head =
            format!("POST /slurp HTTP/1.1\r\nHost: {SITE}\r\nTransfer-Encoding: chunked\r\n\r\n");
        raw.send(&format!("{head}{bad}{good}"));
        let answer = raw.rest();
        assert!(!answer.contains("one"), "{answer:?}");
        assert!(answer.matches("HTTP/1.1").count() <= 1, "{bad:?}: {answer:?}");
    }
    let long = "y".repeat(40_000);
    let mut raw = rig.raw();
    raw.send(&format!("GET /name HTTP/1.1\r\nHost: {SITE}\r\nx: {long}\r\n\r\n"));
    assert!(raw.rest().starts_with("HTTP/1.1 431 "));
    assert!(rig.refused(Reason::MalformedHttp) > 9);
}

#[test]
fn a_bad_chunk_gets_400() {
    let program = rig::backend(|mut socket| {
        let mut buf = [0; 4096];
        while matches!(socket.read(&mut buf), Ok(1..)) {}
    });
    let rig = EdgeRig::new(&[program]);
    let mut raw = rig.raw();
    raw.send(&format!(
        "POST / HTTP/1.1\r\nHost: {SITE}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX"
    ));
    let answer = raw.rest();
    assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer:?}");
}

#[test]
fn an_unknown_name_gets_an_alert() {
    let rig = one();
    for name in [OTHER, "127.0.0.1"] {
        let mut raw = Raw::over(rig::connect(rig.https()), rig.client(&["http/1.1"]), name);
        let error = raw.0.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap_err();
        assert_eq!(rig::tls::alert(&error), Some(AlertDescription::UnrecognisedName), "{error}");
    }
    assert!(rig.get("GET /name HTTP/1.1\r\n").ends_with("one"));
    run(async {
        let tls = quinn::crypto::rustls::QuicClientConfig::try_from(rig.client(&["h3"])).unwrap();
        let mut endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        endpoint.set_default_client_config(quinn::ClientConfig::new(std::sync::Arc::new(tls)));
        assert!(endpoint.connect(rig.https(), OTHER).unwrap().await.is_err());
        assert!(endpoint.connect(rig.https(), SITE).unwrap().await.is_ok());
    });
}

#[test]
fn a_client_without_a_name_gets_the_default_site_and_no_other() {
    let other = http_backend("other", false).to_string();
    let to = [http_backend("one", false).to_string()];
    let mut rig = EdgeRig::with(&to, |settings| {
        settings.sites.push(site(OTHER, &[other]));
        settings.sites[0].default = true;
    });
    let get = |rig: &EdgeRig, request: String| {
        // An address is not a name, so the client sends none.
        let mut config = rig.client(&["http/1.1"]);
        config.enable_sni = false;
        let mut raw = Raw::over(rig::connect(rig.https()), config, SITE);
        let _ = raw.0.write_all(request.as_bytes());
        raw.rest()
    };
    let by =
        |host: &str| format!("GET /name HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    for host in [SITE, "127.0.0.1", "10.0.0.1:443", "[::1]:443", "nobody.example"] {
        assert!(get(&rig, by(host)).ends_with("one"), "{host}");
    }
    assert!(get(&rig, "GET /name HTTP/1.0\r\n\r\n".into()).ends_with("one"));
    assert!(get(&rig, by(OTHER)).starts_with("HTTP/1.1 421 "));
    run(async {
        let mut tls = rig.client(&["h3"]);
        tls.enable_sni = false;
        let tls = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
        let mut endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        endpoint.set_default_client_config(quinn::ClientConfig::new(std::sync::Arc::new(tls)));
        assert!(endpoint.connect(rig.https(), SITE).unwrap().await.is_ok());
    });
    // An unknown name is still rejected, and without a default site so is a missing name.
    let mut raw = Raw::over(rig::connect(rig.https()), rig.client(&["http/1.1"]), "a.test");
    assert!(raw.0.write_all(b"GET / HTTP/1.1\r\n\r\n").is_err());
    rig.settings.sites[0].default = false;
    rig.edge.apply(&rig.settings).unwrap();
    assert_eq!(get(&rig, by(SITE)), "");
}

#[test]
fn a_host_other_than_the_name_of_the_handshake_is_misdirected() {
    let to = http_backend("one", false).to_string();
    let rig = EdgeRig::with(&[], |settings| {
        settings.sites = vec![site(SITE, std::slice::from_ref(&to)), site(OTHER, &[to])];
    });
    for (host, status) in [
        (SITE.to_owned(), "200"),
        (SITE.to_uppercase(), "200"),
        (format!("{SITE}:443"), "200"),
        (OTHER.to_owned(), "421"),
        ("nobody.example".to_owned(), "421"),
        ("a@b".to_owned(), "400"),
        (String::new(), "400"),
    ] {
        let mut raw = rig.raw();
        raw.send(&format!("GET /name HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"));
        let answer = raw.rest();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{host:?}: {answer}");
    }
    let mut raw = rig.raw();
    raw.send(&format!(
        "GET https://{OTHER}/ HTTP/1.1\r\nHost: {SITE}\r\nConnection: close\r\n\r\n"
    ));
    assert!(raw.rest().starts_with("HTTP/1.1 400"));
    run(async {
        let mut client = rig.http2().await;
        for (host, status) in [(SITE, 200), (OTHER, 421)] {
            let get = Request::get(format!("https://{host}/name")).body(full("")).unwrap();
            assert_eq!(client.send_request(get).await.unwrap().status(), status);
        }
    });
}

#[test]
fn a_too_large_body_is_rejected_on_each_protocol() {
    let to = [http_backend("one", false).to_string()];
    let rig = EdgeRig::with(&to, |settings| settings.sites[0].max_body = 10);
    let length = |n: usize| rig.get(&format!("POST /echo HTTP/1.1\r\nContent-Length: {n}\r\n"));
    assert!(length(11).starts_with("HTTP/1.1 413 "));
    let chunked = |n: usize| {
        let mut raw = rig.raw();
        raw.send(&format!(
            "POST /echo HTTP/1.1\r\nHost: {SITE}\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n{n:x}\r\n{}\r\n0\r\n\r\n",
            "a".repeat(n)
        ));
        raw.rest()
    };
    assert!(chunked(10).starts_with("HTTP/1.1 200 "));
    assert!(!chunked(11).contains("aaaaaaaaaaa"));
    run(async {
        let mut client = rig.http2().await;
        for (n, status) in [(10, 200), (11, 413)] {
            let post = Request::post(format!("https://{SITE}/echo")).body(full("b".repeat(n)));
            assert_eq!(client.send_request(post.unwrap()).await.unwrap().status(), status);
        }
    });
}

#[test]
fn stalled_peers_are_disconnected_and_slow_ones_are_not() {
    let to = [http_backend("one", false).to_string()];
    let rig = EdgeRig::with(&to, |settings| settings.limits = short());
    let closed_after = |socket: &mut dyn Read| {
        let start = Instant::now();
        while matches!(socket.read(&mut [0; 4096]), Ok(1..)) {}
        start.elapsed()
    };
    // Before the handshake, between requests, in a head.
    let mut mute = rig::connect(rig.https());
    assert!(closed_after(&mut mute) < Duration::from_secs(3));
    let mut idle = rig.raw();
    idle.send(&format!("GET /name HTTP/1.1\r\nHost: {SITE}\r\n\r\n"));
    assert!(closed_after(&mut idle.0) < Duration::from_secs(3));
    let mut head = rig.raw();
    head.send("GET / HTTP/1.1\r\n");
    let start = Instant::now();
    while head.0.write_all(b"x: y\r\n").and_then(|()| head.0.flush()).is_ok() {
        assert!(start.elapsed() < Duration::from_secs(5), "an incomplete head");
        std::thread::sleep(Duration::from_millis(50));
    }
    // In a body.
    let mut body = rig.raw();
    body.send(&format!("POST /slurp HTTP/1.1\r\nHost: {SITE}\r\nContent-Length: 5\r\n\r\nhe"));
    assert!(closed_after(&mut body.0) < Duration::from_secs(4));
    // A body that keeps arriving, for longer than any of these.
    let mut slow = rig.raw();
    slow.send(&format!(
        "POST /echo HTTP/1.1\r\nHost: {SITE}\r\nConnection: close\r\nContent-Length: 10\r\n\r\n"
    ));
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(150));
        slow.send("z");
    }
    assert!(slow.rest().ends_with("zzzzzzzzzz"));
    // A client that does not read its response.
    let mut deaf = rig.raw();
    deaf.send(&format!("GET /big/268435456 HTTP/1.1\r\nHost: {SITE}\r\n\r\n"));
    rig::eventually("the unread response is cancelled", || rig.edge.status().connections == 0);
}

#[test]
fn a_trusted_balancer_must_send_the_clients_address() {
    let to = [http_backend("one", false).to_string()];
    let rig = EdgeRig::with(&to, |settings| {
        settings.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
        settings.proxy_protocol = true;
    });
    let get = |header: &[u8]| {
        let mut socket = rig::connect(rig.https());
        socket.write_all(header).unwrap();
        let mut raw = Raw::over(socket, rig.client(&["http/1.1"]), SITE);
        let request = format!(
            "GET /headers HTTP/1.1\r\nHost: {SITE}\r\nX-Forwarded-For: 9.9.9.9\r\nConnection: close\r\n\r\n"
        );
        let _ = raw.0.write_all(request.as_bytes());
        raw.rest()
    };
    let answer = get(b"PROXY TCP4 203.0.113.7 127.0.0.1 4711 443\r\n");
    assert!(answer.contains("x-forwarded-for: 9.9.9.9, 203.0.113.7\n"), "{answer}");
    let answer = get(b"PROXY UNKNOWN\r\n");
    assert!(answer.contains("x-forwarded-for: 9.9.9.9, 127.0.0.1\n"), "{answer}");
    assert_eq!(get(b""), "");
    rig::eventually("that is counted", || rig.refused(Reason::NoProxyHeader) == 1);
    // Nobody is trusted by default.
    let plain = one();
    let answer = plain.get("GET /headers HTTP/1.1\r\nX-Forwarded-For: 9.9.9.9\r\n");
    assert!(answer.contains("x-forwarded-for: 127.0.0.1\n"), "{answer}");
}

#[test]
fn the_plaintext_port_accepts_the_proxy_header_too() {
    let to = [http_backend("one", false).to_string()];
    let rig = EdgeRig::with(&to, |settings| {
        settings.trusted_proxies = vec!["127.0.0.1/32".parse().unwrap()];
        settings.proxy_protocol = true;
    });
    let get = |from: [u8; 4], header: &[u8]| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
        socket.connect(&rig.settings.http[0].into()).unwrap();
        let mut socket = TcpStream::from(socket);
        socket.set_read_timeout(Some(rig::PATIENCE)).unwrap();
        socket.write_all(header).unwrap();
        let _ = socket.write_all(format!("GET / HTTP/1.1\r\nHost: {SITE}\r\n\r\n").as_bytes());
        let mut answer = String::new();
        let _ = socket.read_to_string(&mut answer);
        answer
    };
    let version2 = [
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".as_slice(),
        &[203, 0, 113, 7, 127, 0, 0, 1, 1, 2, 0, 80],
    ];
    for header in [b"PROXY TCP4 203.0.113.7 127.0.0.1 4711 80\r\n", version2.concat().as_slice()] {
        assert!(get([127, 0, 0, 1], header).starts_with("HTTP/1.1 308 "));
    }
    assert_eq!(get([127, 0, 0, 1], b""), "");
    rig::eventually("that is counted", || rig.refused(Reason::NoProxyHeader) == 1);
    // Others may not set the client's address.
    assert!(get([127, 0, 0, 2], b"").starts_with("HTTP/1.1 308 "));
    let stranger = get([127, 0, 0, 2], b"PROXY TCP4 203.0.113.7 127.0.0.1 4711 80\r\n");
    assert!(stranger.starts_with("HTTP/1.1 400 "), "{stranger}");
}

/// A program that responds to each request with `with`, and reports what it received.
fn answers(with: &'static str) -> (String, std::sync::mpsc::Receiver<String>) {
    let (tell, told) = std::sync::mpsc::channel();
    let program = rig::backend(move |mut socket| {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if socket.read_exact(&mut byte).is_err() {
                return;
            }
            head.push(byte[0]);
        }
        let _ = tell.send(String::from_utf8(head).unwrap().to_lowercase());
        let _ = socket.write_all(with.as_bytes());
        let _ = socket.read(&mut [0; 4096]);
    });
    (program, told)
}

#[test]
fn only_upgrades_to_websocket_are_possible() {
    let switches = |protocol: &str| {
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: {protocol}\r\n\r\n"
        )
    };
    let (h2c, websocket) = (switches("h2c").leak(), switches("websocket").leak());
    for (asks, with, status) in [
        ("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n", &*h2c, "502"),
        ("Connection: upgrade\r\nUpgrade: H2C\r\n", h2c, "502"),
        ("Connection: upgrade\r\nUpgrade: TLS/1.0, h2c\r\n", h2c, "502"),
        ("Connection: upgrade\r\nUpgrade: h2c\r\nUpgrade: websocket\r\n", h2c, "502"),
        ("Connection: upgrade\r\nUpgrade: websocket\r\n", h2c, "502"),
        ("Connection: upgrade\r\nUpgrade: websocket\r\n", websocket, "101"),
        ("Connection: upgrade\r\nUpgrade: h2c, WebSocket\r\n", websocket, "101"),
        ("Upgrade: websocket\r\n", websocket, "502"),
    ] {
        let (program, told) = answers(with);
        let rig = EdgeRig::new(&[program]);
        let mut raw = rig.raw();
        let settings = "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n";
        raw.send(&format!("GET / HTTP/1.1\r\nHost: {SITE}\r\n{asks}{settings}\r\n"));
        let head = raw.until("\r\n\r\n");
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{asks}: {head}");
        let sent = told.recv().unwrap();
        assert!(!sent.contains("h2c") && !sent.contains("http2-settings"), "{sent}");
        let passed = asks.contains("ection") && asks.to_lowercase().contains("websocket");
        assert_eq!(sent.contains("\r\nupgrade: websocket\r\n"), passed, "{sent}");
    }
    // POST has a body, which is not the new protocol's data; HTTP/1.0 has no upgrade.
    for line in ["POST / HTTP/1.1", "GET / HTTP/1.0"] {
        let (program, told) = answers(websocket);
        let rig = EdgeRig::new(&[program]);
        let mut raw = rig.raw();
        let asks = "Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n";
        raw.send(&format!("{line}\r\nHost: {SITE}\r\n{asks}\r\n"));
        let head = raw.until("\r\n\r\n");
        assert!(head.contains(" 502 "), "{line}: {head}");
        assert!(!told.recv().unwrap().contains("upgrade"), "{line}");
    }
}

#[test]
fn a_response_with_conflicting_lengths_is_a_bad_gateway() {
    let chunks = "a\r\n0123456789\r\n0\r\n\r\n";
    for (head, body, status) in [
        ("Content-Length: 5\r\nTransfer-Encoding: chunked", chunks, "502"),
        ("Transfer-Encoding: chunked\r\nContent-Length: 10", chunks, "502"),
        ("Transfer-Encoding: gzip, chunked", chunks, "502"),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", chunks, "502"),
        ("Transfer-Encoding: gzip", "0123456789", "502"),
        ("Content-Length: 10\r\nContent-Length: 10", "0123456789", "502"),
        ("Content-Length: 10, 10", "0123456789", "502"),
        ("Content-Length: 5\r\nContent-Length: 10", "0123456789", "502"),
        ("Transfer-Encoding: Chunked", chunks, "200"),
        ("Content-Length: 10", "0123456789", "200"),
    ] {
        let answer = format!("HTTP/1.1 200 OK\r\n{head}\r\nConnection: close\r\n\r\n{body}");
        let (program, _told) = answers(answer.leak());
        let rig = EdgeRig::new(&[program]);
        let got = rig.get("GET / HTTP/1.1\r\n");
        assert!(got.starts_with(&format!("HTTP/1.1 {status} ")), "{head}: {got}");
        run(async {
            let mut client = rig.http2().await;
            let get = Request::get(format!("https://{SITE}/")).body(full("")).unwrap();
            let answer = client.send_request(get).await.unwrap();
            assert_eq!(answer.status().as_str(), status, "{head}");
        });
    }
}

#[test]
fn early_hints_precede_the_response_on_each_protocol() {
    let (program, _told) = answers(
        "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nConnection: x-hop\r\nX-Hop: 1\r\n\r\n\
         HTTP/1.1 103 Early Hints\r\nLink: </b.css>; rel=preload\r\n\r\n\
         HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
    );
    let rig = EdgeRig::new(&[program]);
    let answer = rig.get("GET / HTTP/1.1\r\n");
    let (first, rest) = answer.split_once("\r\n\r\n").unwrap();
    assert_eq!(first, "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload", "{answer}");
    assert!(rest.starts_with("HTTP/1.1 103 Early Hints\r\nlink: </b.css>; rel=preload\r\n\r\n"));
    assert!(rest.contains("\r\n\r\nHTTP/1.1 200 OK\r\n") && rest.ends_with("ok"), "{rest}");
    // HTTP/1.0 has no early hints.
    let mut raw = rig.raw();
    raw.send(&format!("GET / HTTP/1.0\r\nHost: {SITE}\r\n\r\n"));
    assert!(raw.rest().starts_with("HTTP/1.0 200 OK\r\n"));
    run(async {
        let mut client = Http2::open(&rig).await;
        client.send(&get(1, "/")).await.unwrap();
        assert_eq!(client.wait(HEADERS, 1).await.status(), 103);
        client.wait(HEADERS, 1).await;
        client.wait(HEADERS, 1).await;
        assert_eq!(client.wait(DATA, 1).await.payload, b"ok");
        let (_endpoint, connection) = rig.quic(1 << 20).await;
        let mut control = connection.open_uni().await.unwrap();
        control.write_all(&[varint(0), frame3(4, &[])].concat()).await.unwrap();
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        send.write_all(&frame3(1, &qpack(&fields("GET", "/")))).await.unwrap();
        send.finish().unwrap();
        let answer = recv.read_to_end(100_000).await.unwrap();
        // :status 103 and 200 in the static table (RFC 9204, appendix A); the status is the first field of a head.
        let heads =
            |status: u8| answer.windows(3).filter(|at| at == &[0, 0, 0xc0 | status]).count();
        assert_eq!((heads(24), heads(25)), (2, 1), "{answer:?}");
    });
}

#[test]
fn paths_rejected_in_http1_are_rejected_in_http2() {
    let rig = one();
    let mut raw = rig.raw();
    raw.send(&format!("GET /caf\u{e9} HTTP/1.1\r\nHost: {SITE}\r\n\r\n"));
    assert!(raw.rest().starts_with("HTTP/1.1 400 "));
    run(async {
        for (path, status) in [("/\u{85}", 400), ("/caf\u{e9}", 400), ("/caf%C3%A9", 404)] {
            let mut client = Http2::open(&rig).await;
            client.send(&get(1, path)).await.unwrap();
            assert_eq!(client.wait(HEADERS, 1).await.status(), status, "{path:?}");
        }
    });
}

/// Forwarding headers, each with a value that must not arrive.
const CLAIMS: [&str; 14] = [
    "X-Forwarded-For",
    "X-Forwarded-User",
    "X-Forwarded-Prefix",
    "X-Forwarded-Client-Cert",
    "X_Forwarded_Client_Cert",
    "X-Forwarded_For",
    "X_FORWARDED_PROTO",
    "X-Client-IP",
    "True-Client-IP",
    "client_ip",
    "CF-Connecting-IP",
    "X-Real-IP",
    "x_real_ip",
    "Forwarded",
];

#[test]
fn forged_forwarding_headers_reach_no_program() {
    let rig = one();
    let lines: String = CLAIMS.map(|name| format!("{name}: 6.6.6.6\r\n")).concat();
    let trailers: String = CLAIMS.map(|name| format!("{name}: 6.6.6.6\r\n")).concat();
    let answer = rig.get(&format!("GET /headers HTTP/1.1\r\n{lines}my_header: kept\r\n"));
    assert!(answer.contains("my_header: kept\n") && !answer.contains("6.6.6.6"), "{answer}");
    // In trailers, announced or not.
    let announced = CLAIMS.join(", ");
    let mut raw = rig.raw();
    raw.send(&format!(
        "POST /tail HTTP/1.1\r\nHost: {SITE}\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\
         Trailer: x-sum, {announced}\r\n\r\n1\r\na\r\n0\r\nx-sum: 7\r\n{trailers}\r\n"
    ));
    let answer = raw.rest();
    assert!(answer.contains("\"x-sum\": \"7\"") && !answer.contains("6.6.6.6"), "{answer}");
    let small: Vec<_> = CLAIMS.iter().map(|name| name.to_ascii_lowercase()).collect();
    let claims: Vec<_> = small.iter().map(|name| (name.as_str(), "6.6.6.6")).collect();
    run(async {
        let mut head = fields("GET", "/headers");
        head.extend(&claims);
        head.push(("my_header", "kept"));
        let mut client = Http2::open(&rig).await;
        let flags = END_HEADERS | END_STREAM;
        client.send(&frame(HEADERS, flags, 1, &hpack(&head))).await.unwrap();
        let text = String::from_utf8(client.wait(DATA, 1).await.payload).unwrap();
        assert!(text.contains("my_header: kept\n") && !text.contains("6.6.6.6"), "{text}");
        let (_endpoint, connection) = rig.quic(1 << 20).await;
        let mut control = connection.open_uni().await.unwrap();
        control.write_all(&[varint(0), frame3(4, &[])].concat()).await.unwrap();
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        send.write_all(&frame3(1, &qpack(&head))).await.unwrap();
        send.finish().unwrap();
        let answer = recv.read_to_end(100_000).await.unwrap();
        let text = String::from_utf8_lossy(&answer);
        assert!(text.contains("my_header: kept\n") && !text.contains("6.6.6.6"), "{text}");
        // Trailers over HTTP/3, together with a length: the program gets those that were announced.
        let mut head = fields("POST", "/tail");
        head.extend([("content-length", "1"), ("trailer", "x-sum, x-forwarded-for")]);
        let mut tail = vec![("x-sum", "7")];
        tail.extend(&claims);
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        let frames = [frame3(1, &qpack(&head)), frame3(0, b"a"), frame3(1, &qpack(&tail))];
        send.write_all(&frames.concat()).await.unwrap();
        send.finish().unwrap();
        let answer = recv.read_to_end(100_000).await.unwrap();
        let text = String::from_utf8_lossy(&answer);
        assert!(text.contains("\"x-sum\": \"7\"") && !text.contains("6.6.6.6"), "{text}");
    });
}

#[test]
fn unfinished_handshakes_are_limited_by_address_except_for_balancers() {
    for balancer in [false, true] {
        let to = [http_backend("one", false).to_string()];
        let rig = EdgeRig::by(1, &to, |settings| {
            settings.limits.handshake = Duration::from_secs(60);
            if balancer {
                settings.trusted_proxies = vec!["127.0.0.2/32".parse().unwrap()];
            }
        });
        let silent: Vec<_> = (0..256 + 1)
            .map(|_| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                socket.bind(&SocketAddr::from(([127, 0, 0, 2], 0)).into()).unwrap();
                socket.connect(&rig.https().into()).unwrap();
                socket
            })
            .collect();
        let refused = || rig.refused(Reason::TooManyHandshakes);
        // A client that connects after all of these is served, so they have been noticed.
        assert!(rig.get("GET /name HTTP/1.1\r\n").ends_with("one"));
        // One above the limit is rejected because it is silent; one that had sent data would have waited.
        rig::eventually("the bound is kept", || refused() == u64::from(!balancer));
        std::thread::sleep(Duration::from_millis(1200));
        assert_eq!(refused(), u64::from(!balancer));
        drop(silent);
    }
}

#[test]
fn the_plaintext_port_only_redirects() {
    let rig = one();
    let get = |host: &str| {
        let mut socket: TcpStream = rig::connect(rig.settings.http[0]);
        socket
            .write_all(format!("GET /name?q=1 HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())
            .unwrap();
        let mut answer = String::new();
        let _ = socket.read_to_string(&mut answer);
        answer
    };
    let answer = get(SITE);
    assert!(answer.starts_with("HTTP/1.1 308 "), "{answer}");
    let port = rig.https().port();
    assert!(answer.contains(&format!("location: https://{SITE}:{port}/name?q=1\r\n")), "{answer}");
    assert!(!answer.contains("strict-transport"), "{answer}");
    assert!(get("nobody.example").starts_with("HTTP/1.1 421 "));
    assert!(get("a\tb").starts_with("HTTP/1.1 421 "));
}

#[test]
fn unsuitable_certificates_are_rejected() {
    let rig = one();
    let (chain, key) = rig.ca.issue("service/www", 3600);
    let (other_chain, other_key) = rig.ca.issue("service/other", 3600);
    let pem = |chain: &[_]| wiretight_keys::x509::to_pem(chain).into_bytes();
    let names = [SITE.parse().unwrap()];
    let read = |chain: &[u8], key: &[u8]| SiteCertificate::from_pem(chain, key, &names).map(drop);
    let (key, other_key) = (key.to_pem(), other_key.to_pem());
    read(&pem(&chain), key.as_bytes()).unwrap();
    let refused = |r: Result<(), CertificateError>| r.unwrap_err().to_string();
    assert!(refused(read(&pem(&chain), other_key.as_bytes())).contains("does not match"));
    assert!(refused(read(&pem(&other_chain), other_key.as_bytes())).contains("is not for"));
    assert!(refused(read(b"", key.as_bytes())).contains("no certificate"));
    assert!(refused(read(&pem(&chain), b"x")).contains("no private key"));
    // Without a certificate the handshake fails, and no other certificate is used.
    rig.certificates.set(Source::Files, Default::default());
    let mut raw = rig.raw();
    let error = raw.0.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap_err();
    assert_eq!(rig::tls::alert(&error), Some(AlertDescription::InternalError), "{error}");
    rig::eventually("it is counted", || rig.refused(Reason::NoCertificate) == 1);
}

#[test]
fn a_mesh_service_is_reached_by_name_and_never_in_plaintext() {
    let program = http_backend("far", false).to_string();
    let listen = rig::free();
    let rig = EdgeRig::new(&["service/shop".into()]);
    let far = rig.ca.mesh(&["service/shop"]);
    let relay = Relay::start(far, 1).unwrap();
    let shop = |allow: &[&str]| ServiceSettings {
        name: "shop".parse().unwrap(),
        ..rig::service(listen, std::slice::from_ref(&program), allow)
    };
    let answer = rig.get("GET /name HTTP/1.1\r\n");
    assert!(answer.starts_with("HTTP/1.1 502 "), "the registry knows no such service: {answer}");
    let mut registry = wiretight_proxy::Registry::default();
    let instance = wiretight_proxy::Instance {
        node: "far1".parse().unwrap(),
        addr: listen.into(),
        allow: vec![],
        ports: vec![],
    };
    registry.services.insert("shop".parse().unwrap(), vec![instance]);
    rig.mesh.set_registry(registry);
    relay
        .apply(&RelaySettings {
            services: vec![shop(&["service/web"])],
            dials: vec![],
            intercept: None,
        })
        .unwrap();
    let answer = rig.get("GET /name HTTP/1.1\r\n");
    assert!(answer.starts_with("HTTP/1.1 502 "), "the edge is not allowed: {answer}");
    relay
        .apply(&RelaySettings {
            services: vec![shop(&["service/edge"])],
            dials: vec![],
            intercept: None,
        })
        .unwrap();
    for _ in 0..5 {
        let answer = rig.get("GET /name HTTP/1.1\r\n");
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("far"), "{answer}");
    }
    let sums = rig.relay.status(0).sums;
    assert_eq!((sums[0].service.to_string(), sums[0].handshakes > 0), ("shop".into(), true));
}
