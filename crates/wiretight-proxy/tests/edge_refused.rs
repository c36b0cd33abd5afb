//! What the edge refuses, each beside its twin that is let through.
#![allow(clippy::unwrap_used, reason = "in a test, whatever is not there ends it")]

mod rig;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use hyper::Request;
use rustls::AlertDescription;
use socket2::{Domain, Socket, Type};
use wiretight_proxy::Relay;
use wiretight_proxy::edge::settings::Limits;
use wiretight_proxy::edge::{CertificateError, SiteCertificate, Source};
use wiretight_proxy::relay::settings::{RelaySettings, ServiceSettings};

use rig::edge::{EdgeRig, Raw, SITE, full, http_backend, run, site};

const OTHER: &str = "other.service.test.example";

fn one() -> EdgeRig {
    EdgeRig::new(&[http_backend("one", false).to_string()])
}

fn short() -> Limits {
    let ms = Duration::from_millis;
    Limits { handshake: ms(500), head: ms(500), body: ms(500), idle: ms(500), ..Limits::default() }
}

#[test]
fn malformed_http_is_answered_400_and_closed_and_what_came_before_it_is_answered_first() {
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
        // The same behind two good ones, in one packet: those are answered.
        let mut raw = rig.raw();
        raw.send(&format!("{good}{good}{bad}{good}"));
        let answers = raw.rest();
        assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 2, "{bad:?}: {answers:?}");
        assert_eq!(answers.matches("HTTP/1.1 400 Bad Request").count(), 1, "{bad:?}: {answers:?}");
        assert_eq!(answers.matches("HTTP/1.1").count(), 3, "{bad:?}: {answers:?}");
    }
    // In a body, whose request is under way.
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
    assert!(rig.refused("malformed_http") > 9);
}

#[test]
fn a_bad_chunk_is_answered_400() {
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
fn a_name_that_no_site_has_is_turned_away_by_an_alert() {
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
fn a_body_that_is_too_large_is_refused_on_each_protocol() {
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
fn peers_that_stand_still_are_given_up_and_slow_ones_are_not() {
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
        assert!(start.elapsed() < Duration::from_secs(5), "a head without an end");
        std::thread::sleep(Duration::from_millis(50));
    }
    // In a body.
    let mut body = rig.raw();
    body.send(&format!("POST /slurp HTTP/1.1\r\nHost: {SITE}\r\nContent-Length: 5\r\n\r\nhe"));
    assert!(closed_after(&mut body.0) < Duration::from_secs(4));
    // A body that keeps coming, for longer than any of these.
    let mut slow = rig.raw();
    slow.send(&format!(
        "POST /echo HTTP/1.1\r\nHost: {SITE}\r\nConnection: close\r\nContent-Length: 10\r\n\r\n"
    ));
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(150));
        slow.send("z");
    }
    assert!(slow.rest().ends_with("zzzzzzzzzz"));
    // One who does not take its answer.
    let mut deaf = rig.raw();
    deaf.send(&format!("GET /big/268435456 HTTP/1.1\r\nHost: {SITE}\r\n\r\n"));
    rig::eventually("the deaf one is given up", || rig.edge.status().connections == 0);
}

#[test]
fn a_balancer_is_believed_when_it_is_trusted_and_must_say_who_it_speaks_for() {
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
    rig::eventually("that is counted", || rig.refused("no_proxy_header") == 1);
    // Nobody is trusted unasked.
    let plain = one();
    let answer = plain.get("GET /headers HTTP/1.1\r\nX-Forwarded-For: 9.9.9.9\r\n");
    assert!(answer.contains("x-forwarded-for: 127.0.0.1\n"), "{answer}");
}

#[test]
fn unfinished_handshakes_are_bounded_by_address_unless_a_balancer_is_there() {
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
        let refused = || rig.refused("too_many_handshakes");
        // Whoever comes after all of these is served, so they have been seen.
        assert!(rig.get("GET /name HTTP/1.1\r\n").ends_with("one"));
        // One above the bound that says nothing is refused; one that had said something would have waited.
        rig::eventually("the bound is kept", || refused() == u64::from(!balancer));
        std::thread::sleep(Duration::from_millis(1200));
        assert_eq!(refused(), u64::from(!balancer));
        drop(silent);
    }
}

#[test]
fn the_plain_port_sends_to_https_and_serves_nothing() {
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
fn certificates_that_do_not_fit_are_not_served() {
    let rig = one();
    let (chain, key) = rig.ca.issue("service/www", 3600);
    let (other_chain, other_key) = rig.ca.issue("service/other", 3600);
    let pem = |chain: &[_]| wiretight_keys::x509::to_pem(chain).into_bytes();
    let names = [SITE.parse().unwrap()];
    let read = |chain: &[u8], key: &[u8]| SiteCertificate::from_pem(chain, key, &names).map(drop);
    let (key, other_key) = (key.to_pem(), other_key.to_pem());
    read(&pem(&chain), key.as_bytes()).unwrap();
    let refused = |r: Result<(), CertificateError>| r.unwrap_err().to_string();
    assert!(refused(read(&pem(&chain), other_key.as_bytes())).contains("does not fit"));
    assert!(refused(read(&pem(&other_chain), other_key.as_bytes())).contains("is not for"));
    assert!(refused(read(b"", key.as_bytes())).contains("no certificate"));
    assert!(refused(read(&pem(&chain), b"x")).contains("no private key"));
    // None at all: the handshake fails, and nothing is served in its place.
    rig.certificates.set(Source::Files, Default::default());
    let mut raw = rig.raw();
    let error = raw.0.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap_err();
    assert_eq!(rig::tls::alert(&error), Some(AlertDescription::InternalError), "{error}");
    rig::eventually("it is counted", || rig.refused("no_certificate") == 1);
}

#[test]
fn a_service_of_the_mesh_is_reached_by_its_name_and_never_in_the_clear() {
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
