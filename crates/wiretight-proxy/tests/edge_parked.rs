//! An HTTP/1.1 connection that was idle for a while is parked: its state is dismantled, and rebuilt when something
//! happens. This must not be noticeable.
#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod rig;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rig::edge::{EdgeRig, Raw, SITE, http_backend, run};
use wiretight_keys::{Revocations, TrustBundle, x509};
use wiretight_proxy::Reason;
use wiretight_proxy::edge::settings::Limits;

/// Long enough to be parked. (If not, the tests are still valid.)
const A_WHILE: Duration = Duration::from_millis(350);

fn one(limits: Limits) -> EdgeRig {
    let to = [http_backend("one", false).to_string()];
    EdgeRig::with(&to, |settings| settings.limits = limits)
}

fn get() -> String {
    format!("GET /name HTTP/1.1\r\nHost: {SITE}\r\n\r\n")
}

fn a_while() {
    std::thread::sleep(A_WHILE);
}

/// A connection that made a request and has been idle since.
fn parked(rig: &EdgeRig) -> Raw {
    let mut raw = rig.raw();
    raw.send(&get());
    raw.until("\r\n\r\none");
    a_while();
    raw
}

/// The other side closes it in order, without a response.
fn is_closed(raw: &mut Raw) {
    assert_eq!(raw.0.read(&mut [0; 64]).unwrap(), 0);
}

#[test]
fn the_next_request_is_served_however_its_bytes_are_split() {
    let rig = one(Limits::default());
    let request = get();
    std::thread::scope(|scope| {
        for cut in 0..=request.len() {
            let (begin, end) = request.split_at(cut);
            let rig = &rig;
            scope.spawn(move || {
                let mut raw = rig.raw();
                a_while(); // before the first
                raw.send(&format!("{}{begin}", get()));
                raw.until("\r\n\r\none");
                a_while();
                raw.send(end);
                raw.until("\r\n\r\none");
                a_while();
                raw.send(begin);
                a_while();
                raw.send(&format!("{end}{}", get()));
                raw.until("\r\n\r\none");
                raw.until("\r\n\r\none");
            });
        }
    });
    rig::eventually("they are closed", || rig.edge.status().connections == 0);
}

#[test]
fn requests_in_pieces_of_a_tls_record_are_served() {
    struct Pieces<'a>(&'a TcpStream);
    impl Write for Pieces<'_> {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            for piece in bytes.chunks(bytes.len().div_ceil(3)) {
                self.0.write_all(piece)?;
                a_while();
            }
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let rig = one(Limits::default());
    let mut raw = parked(&rig);
    for _ in 0..2 {
        raw.0.conn.writer().write_all(get().as_bytes()).unwrap();
        raw.0.conn.write_tls(&mut Pieces(&raw.0.sock)).unwrap();
        raw.until("\r\n\r\none");
    }
    // A record without data.
    raw.0.conn.refresh_traffic_keys().unwrap();
    raw.0.flush().unwrap();
    a_while();
    raw.send(&get());
    raw.until("\r\n\r\none");
}

#[test]
fn a_parked_connection_can_switch_protocols() {
    let program = rig::backend(|mut socket| {
        loop {
            let head = head(&mut socket);
            if head.starts_with("get /ws ") {
                let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\
                              Upgrade: websocket\r\n\r\nfirst";
                socket.write_all(answer.as_bytes()).unwrap();
                return rig::echo(socket);
            }
            if head.is_empty() {
                return;
            }
            socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none").unwrap();
        }
    });
    let rig = EdgeRig::new(&[program]);
    let mut raw = parked(&rig);
    raw.send(&format!(
        "GET /ws HTTP/1.1\r\nHost: {SITE}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\0early"
    ));
    assert!(raw.until("\r\n\r\n").starts_with("HTTP/1.1 101 "));
    raw.until("first");
    raw.until("\0early");
    a_while();
    raw.send(&get());
    raw.until(&get());
    assert_eq!(rig.edge.status().connections, 1);
    raw.0.conn.send_close_notify();
    raw.0.flush().unwrap();
    raw.rest();
    rig::eventually("it is closed", || rig.edge.status().connections == 0);
}

/// Reads up to and including the empty line, in lower case; empty at the end of the stream.
fn head(socket: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        match socket.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return String::new(),
        }
    }
    String::from_utf8(head).unwrap().to_lowercase()
}

/// A program that responds before it has read the body. The rest of the body may still be anywhere on its way when
/// the connection seems idle.
#[test]
fn the_rest_of_a_body_is_never_taken_for_a_request() {
    let seen = Arc::new(Mutex::new(BTreeSet::new()));
    let sees = seen.clone();
    let program = rig::backend(move |mut socket| {
        loop {
            let head = head(&mut socket);
            let Some(line) = head.lines().next() else { return };
            sees.lock().unwrap().insert(line.to_owned());
            socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none").unwrap();
            let length = head.split_once("content-length: ").map(|(_, rest)| rest);
            let length = length.and_then(|rest| rest.lines().next()?.parse::<u64>().ok());
            std::thread::sleep(2 * A_WHILE);
            let mut body = (&socket).take(length.unwrap_or(0));
            std::io::copy(&mut body, &mut std::io::sink()).unwrap();
        }
    });
    let rig = EdgeRig::new(&[program]);
    let hidden = format!("GET /hidden HTTP/1.1\r\nHost: {SITE}\r\n\r\n");
    let sizes = (0..=12).map(|n| 1024 << n).chain((1..=12).map(|n| n * 330_000));
    std::thread::scope(|scope| {
        for size in sizes {
            let (rig, hidden) = (&rig, &hidden);
            scope.spawn(move || {
                let body = hidden.repeat(size / hidden.len());
                let mut raw = rig.raw();
                raw.send(&format!(
                    "POST /early HTTP/1.1\r\nHost: {SITE}\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                ));
                raw.until("\r\n\r\none");
                a_while();
                raw.send(&format!(
                    "GET /next HTTP/1.1\r\nHost: {SITE}\r\nConnection: close\r\n\r\n"
                ));
                let rest = raw.rest();
                assert!(rest.matches("HTTP/1.1 ").count() <= 1, "{size}: {rest}");
                assert!(rest.starts_with("HTTP/1.1 200 "), "{size}: {rest}");
            });
        }
    });
    let seen = seen.lock().unwrap().iter().cloned().collect::<Vec<_>>();
    assert_eq!(seen, ["get /next http/1.1", "post /early http/1.1"]);
}

#[test]
fn a_drain_closes_it_at_once() {
    let rig = one(Limits::default());
    let mut raw = parked(&rig);
    let start = Instant::now();
    assert_eq!(run(rig.edge.drain(Duration::from_secs(10))), 0);
    is_closed(&mut raw);
    assert!(start.elapsed() < Duration::from_secs(5));
    rig::eventually("it is closed", || rig.edge.status().connections == 0);
}

#[test]
fn the_deadlines_for_idle_connections_and_heads_apply() {
    let short = Duration::from_millis(600);
    let rig = one(Limits { idle: short, ..Limits::default() });
    let mut raw = parked(&rig);
    is_closed(&mut raw);
    let rig = one(Limits { head: short, ..Limits::default() });
    let mut raw = parked(&rig);
    let start = Instant::now();
    raw.send("GET /name HTTP/1.1\r\n");
    while raw.0.write_all(b"x: y\r\n").and_then(|()| raw.0.flush()).is_ok() {
        assert!(start.elapsed() < Duration::from_secs(5), "an incomplete head");
        std::thread::sleep(Duration::from_millis(50));
    }
    rig::eventually("it is counted", || rig.refused(Reason::Stalled) == 1);
    // Counterpart: idle for as long, but then served.
    let mut raw = parked(&rig);
    std::thread::sleep(2 * short);
    raw.send(&get());
    raw.until("\r\n\r\none");
}

#[test]
fn malformed_requests_get_400() {
    let rig = one(Limits::default());
    let mut raw = parked(&rig);
    raw.send("GET /name HTTP/1.1\r\nHost : x\r\n\r\n");
    let rest = raw.rest();
    assert!(rest.starts_with("HTTP/1.1 400 ") && rest.ends_with("colon\n"), "{rest}");
    assert_eq!(rig.refused(Reason::MalformedHttp), 1);
}

#[test]
fn a_revoked_member_is_disconnected() {
    let to = [http_backend("one", false).to_string()];
    let rig = EdgeRig::with(&to, |settings| {
        settings.sites[0].clients =
            Some(["service/web", "service/app"].map(|id| id.parse().unwrap()).into());
    });
    let open = |id: &str| {
        let shows = rig.ca.issue(id, 3600);
        let serial = x509::Leaf::parse(&shows.0[0]).unwrap().serial;
        let config = rig.client_showing(&["http/1.1"], Some(shows));
        let mut raw = Raw::over(rig::connect(rig.https()), config, SITE);
        raw.send(&get());
        raw.until("\r\n\r\none");
        (raw, serial)
    };
    let ((mut web, serial), (mut app, _)) = (open("service/web"), open("service/app"));
    a_while();
    let series: BTreeSet<_> = [serial.series()].into();
    let revoked = Revocations { series, ..Default::default() };
    let roots = vec![rig.ca.root.clone()];
    rig.mesh.set_bundle(TrustBundle::new(rig.ca.td.clone(), roots, revoked).unwrap());
    web.rest();
    rig::eventually("it is counted", || rig.refused(Reason::Revoked) == 1);
    app.send(&get());
    app.until("\r\n\r\none");
}

#[test]
fn a_disconnecting_client_frees_it() {
    let rig = one(Limits::default());
    let mut polite = parked(&rig);
    polite.0.conn.send_close_notify();
    polite.0.flush().unwrap();
    is_closed(&mut polite);
    rig::eventually("one is closed", || rig.edge.status().connections == 0);
    let rude = parked(&rig);
    assert_eq!(rig.edge.status().connections, 1);
    socket2::SockRef::from(&rude.0.sock).set_linger(Some(Duration::ZERO)).unwrap();
    drop(rude);
    rig::eventually("the other is closed", || rig.edge.status().connections == 0);
}
