//! Access control: each rejection has its reason on the right side, an unknown peer gets only a TLS alert, and each
//! has an accepted counterpart.

use super::rig;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rig::tls::{Stranger, TlsClient};
use rig::*;
use rustls::AlertDescription;
use rustls::crypto::aws_lc_rs::kx_group;
use socket2::{Domain, Socket, Type};
use wiretight_keys::{Id, Leaf, Revocations, TrustBundle};
use wiretight_proxy::clock::now;
use wiretight_proxy::relay::Side;
use wiretight_proxy::relay::settings::RelaySettings;
use wiretight_proxy::wire::{Frame, Open};

const UNKNOWN: Option<AlertDescription> = Some(AlertDescription::CertificateUnknown);

/// A pair with a backend that reports each connection.
fn watched() -> (Pair, mpsc::Receiver<()>) {
    let (tell, told) = mpsc::channel();
    let addr = backend(move |socket| {
        let _ = tell.send(());
        echo(socket);
    });
    (Pair::new(&[addr]), told)
}

fn open() -> Vec<u8> {
    Open { service: name("db"), destination: None }.encode()
}

/// Opens a session by hand and echoes a word: the peer is accepted.
fn assert_accepted(mut tls: TlsClient) {
    let mut out = open();
    out.extend_from_slice(&Frame::Data(5).header());
    out.extend_from_slice(b"hello");
    out.extend_from_slice(&Frame::Fin.header());
    tls.write_all(&out).unwrap();
    let mut answer = [0; 17];
    tls.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"\x02\0\0\0\x04\0\0\x05hello\x05\0\0\0");
}

fn good(pair: &Pair) -> Stranger {
    Stranger::new(pair.ca.issue("service/web", 3600))
}

#[test]
fn a_client_of_another_trust_domain_is_rejected() {
    let (pair, told) = watched();
    let other = Ca::new("other.example");
    let to = pair.service.listen;
    assert_eq!(Stranger::new(other.issue("service/web", 3600)).alert(to), UNKNOWN);
    expect_refused(&pair.b, Side::Service, Reason::WrongTrustDomain);
    assert!(told.try_recv().is_err());
    assert_accepted(good(&pair).connect(to).unwrap());
}

#[test]
fn a_client_of_another_authority_with_our_trust_domain_is_rejected() {
    let (pair, told) = watched();
    let forger = Ca::new(TRUST_DOMAIN);
    let to = pair.service.listen;
    assert_eq!(Stranger::new(forger.issue("service/web", 3600)).alert(to), UNKNOWN);
    expect_refused(&pair.b, Side::Service, Reason::Untrusted);
    assert!(told.try_recv().is_err());
    assert_accepted(good(&pair).connect(to).unwrap());
}

#[test]
fn a_client_with_an_expired_certificate_is_rejected() {
    let (pair, told) = watched();
    let to = pair.service.listen;
    assert_eq!(Stranger::new(pair.ca.issue("service/web", -5)).alert(to), UNKNOWN);
    expect_refused(&pair.b, Side::Service, Reason::Expired);
    assert!(told.try_recv().is_err());
    assert_accepted(Stranger::new(pair.ca.issue("service/web", 30)).connect(to).unwrap());
}

#[test]
fn a_client_without_a_certificate_is_rejected() {
    let (pair, told) = watched();
    let to = pair.service.listen;
    let nobody = Stranger { cert: None, ..good(&pair) };
    assert_eq!(nobody.alert(to), Some(AlertDescription::CertificateRequired));
    expect_refused(&pair.b, Side::Service, Reason::NoCertificate);
    assert!(told.try_recv().is_err());
    assert_accepted(good(&pair).connect(to).unwrap());
}

#[test]
fn a_session_is_not_started_on_a_certificate_that_expired_meanwhile() {
    let (pair, told) = watched();
    let cert = pair.ca.issue("service/web", 3);
    let not_after = Leaf::parse(&cert.0[0]).unwrap().period.not_after;
    let mut tls = Stranger::new(cert).connect(pair.service.listen).unwrap();
    let longer = good(&pair).connect(pair.service.listen).unwrap();
    eventually("it expires", || now() > not_after);
    tls.write_all(&open()).unwrap();
    assert_eq!(tls.read(&mut [0]).unwrap(), 0, "close_notify: the OPEN had no effect");
    assert!(told.try_recv().is_err());
    assert_accepted(longer);
}

#[test]
fn a_server_with_the_wrong_identity_gets_no_data() {
    type Issue = fn(&Ca) -> tls::Cert;
    let cases: [(Issue, Reason); 4] = [
        (|_| Ca::new("other.example").issue("service/db", 3600), Reason::WrongTrustDomain),
        (|_| Ca::new(TRUST_DOMAIN).issue("service/db", 3600), Reason::Untrusted),
        (|ca| ca.issue("service/db", -5), Reason::Expired),
        (|ca| ca.issue("service/other", 60), Reason::WrongPeer),
    ];
    for (issue, reason) in cases {
        let pair = Pair::new(&[backend(echo)]);
        let (tell, told) = mpsc::channel();
        let addr = tls::server(issue(&pair.ca), true, move |mut tls| {
            let _ = tell.send(tls.read(&mut [0]).map(|_| ()));
        });
        let dials = vec![pair.dial.clone(), dial(free(), &[addr])];
        let entry = dials[1].listen;
        pair.a.apply(&RelaySettings { services: vec![], dials, intercept: None }).unwrap();
        assert!(is_reset(&mut connect(entry)));
        expect_refused(&pair.a, Side::Dial, reason);
        let error = told.recv_timeout(Duration::from_secs(10)).unwrap().unwrap_err();
        assert_eq!(tls::alert(&error), UNKNOWN, "{reason}: {error}");
        ping(&mut pair.connect(), b"the right one").unwrap();
    }
}

#[test]
fn our_own_expired_certificate_is_reported_and_nothing_is_sent() {
    // The client's.
    let (pair, told) = watched();
    pair.ca.give(&pair.mesh_a, &["service/web"], -5);
    assert!(is_reset(&mut pair.connect()));
    expect_refused(&pair.a, Side::Dial, Reason::NoIdentity);
    assert!(told.try_recv().is_err());
    pair.ca.give(&pair.mesh_a, &["service/web"], 60);
    ping(&mut pair.connect(), b"renewed").unwrap();
    // The server's.
    let (pair, _told) = watched();
    ping(&mut pair.connect(), b"before").unwrap();
    pair.ca.give(&pair.mesh_b, &["service/db"], -5);
    assert_eq!(good(&pair).alert(pair.service.listen), Some(AlertDescription::AccessDenied));
    expect_refused(&pair.b, Side::Service, Reason::NoIdentity);
    pair.ca.give(&pair.mesh_b, &["service/db"], 60);
    assert_accepted(good(&pair).connect(pair.service.listen).unwrap());
}

#[test]
fn clients_that_are_not_allowed_reach_no_backend() {
    let (mut pair, told) = watched();
    pair.ca.give(&pair.mesh_a, &["service/web", "service/eve"], 3600);
    ping(&mut pair.connect(), b"allowed").unwrap();
    told.recv_timeout(Duration::from_secs(10)).unwrap();
    pair.dial.identity = Id::Service(name("eve"));
    let dials = vec![pair.dial.clone()];
    pair.a.apply(&RelaySettings { services: vec![], dials, intercept: None }).unwrap();
    assert!(is_reset(&mut pair.connect()));
    expect_refused(&pair.b, Side::Service, Reason::NotAllowed);
    expect_refused(&pair.a, Side::Dial, Reason::NotAllowed);
    let refusal = pair.b.status(0).refusals.pop().unwrap();
    assert_eq!(refusal.peer.unwrap().to_string(), "spiffe://test.example/service/eve");
    // A non-Wiretight peer with plain mutual TLS is disconnected after the handshake, without a reason.
    let eve = || Stranger::new(pair.ca.issue("service/eve", 60));
    let mut raw = Stranger { alpn: false, ..eve() }.connect(pair.service.listen).unwrap();
    assert_eq!(raw.read(&mut [0]).unwrap(), 0);
    eventually("it is told here", || refused(&pair.b, Side::Service, Reason::NotAllowed) == 2);
    assert!(told.try_recv().is_err());
}

#[test]
fn settings_that_change_during_a_handshake_apply_to_it() {
    let (pair, told) = watched();
    let greet = || Stranger { alpn: false, ..good(&pair) }.greet(pair.service.listen).unwrap();
    let mut nobody = pair.service.clone();
    nobody.allow.clear();
    let mut other = pair.service.clone();
    other.name = name("other");
    for services in [&[][..], &[&nobody], &[&other]] {
        let mut raw = greet();
        pair.apply_services(services);
        assert_eq!(raw.read(&mut [0]).unwrap(), 0, "close_notify: the OPEN had no effect");
        assert!(told.try_recv().is_err());
        pair.apply_services(&[&pair.service]);
    }
    assert_eq!(refused(&pair.b, Side::Service, Reason::NotAllowed), 1);
    // Other settings may change: the current ones apply.
    let mut raw = greet();
    let mut quick = pair.service.clone();
    quick.idle_timeout = Some(Duration::from_secs(100));
    pair.apply_services(&[&quick]);
    raw.write_all(b"hello").unwrap();
    raw.read_exact(&mut [0; 5]).unwrap();
    told.recv_timeout(Duration::from_secs(10)).unwrap();
}

#[test]
fn a_revoked_peer_is_disconnected_within_seconds_and_rejected_afterwards() {
    for revoked_by in [Side::Service, Side::Dial] {
        let (pair, told) = watched();
        let mut live = pair.connect();
        ping(&mut live, b"before").unwrap();
        eventually("the backend is told", || told.try_recv().is_ok());
        let (by, mesh, peer, id) = match revoked_by {
            Side::Service => (&pair.b, &pair.mesh_b, &pair.mesh_a, "service/web"),
            Side::Dial => (&pair.a, &pair.mesh_a, &pair.mesh_b, "service/db"),
        };
        assert_eq!(by.cut_revoked(), 0);
        let serial = peer.identity(&id.parse().unwrap()).unwrap().leaf().serial;
        let roots = vec![pair.ca.root.clone()];
        let series = [serial.series()].into();
        let revoked = Revocations { series, ..Default::default() };
        mesh.set_bundle(TrustBundle::new(pair.ca.td.clone(), roots, revoked).unwrap());
        let start = Instant::now();
        assert!(by.cut_revoked() > 0);
        assert!(is_reset(&mut live));
        assert!(start.elapsed() < Duration::from_secs(5));
        eventually("nothing is left", || by.status(10).connections.is_empty());
        assert!(is_reset(&mut pair.connect()));
        expect_refused(by, revoked_by, Reason::Revoked);
        assert!(told.try_recv().is_err());
        // With a new certificate the same peer is accepted.
        pair.ca.give(peer, &[id], 60);
        eventually("the new certificate holds", || ping(&mut pair.connect(), b"again").is_ok());
    }
}

#[test]
fn a_connection_missed_by_a_revocation_opens_no_session() {
    let (pair, told) = watched();
    let to = pair.service.listen;
    let cert = pair.ca.issue("service/web", 3600);
    let serial = Leaf::parse(&cert.0[0]).unwrap().serial;
    let mut missed = Stranger::new(cert).connect(to).unwrap();
    let fellow = good(&pair).connect(to).unwrap();
    eventually("both are listed", || pair.b.status(10).connections.len() == 4); // two are the pair's own
    let roots = vec![pair.ca.root.clone()];
    // Revoked without closing connections, as if it had been registered just after that.
    let series = [serial.series()].into();
    let revoked = Revocations { series, ..Default::default() };
    let bundle = TrustBundle::new(pair.ca.td.clone(), roots, revoked).unwrap();
    pair.mesh_b.set_bundle(bundle);
    missed.write_all(&open()).unwrap();
    assert!(!matches!(missed.read(&mut [0]), Ok(1..)));
    expect_refused(&pair.b, Side::Service, Reason::Revoked);
    assert!(told.try_recv().is_err());
    assert_accepted(fellow);
}

#[test]
fn a_key_exchange_without_ml_kem_is_rejected_between_relays() {
    let (pair, told) = watched();
    let to = pair.service.listen;
    let classic = || Stranger { groups: vec![kx_group::X25519], ..good(&pair) };
    let mut tls = classic().connect(to).unwrap();
    let _ = tls.write_all(&open());
    assert!(!matches!(tls.read(&mut [0]), Ok(1..)));
    expect_refused(&pair.b, Side::Service, Reason::NoPostQuantum);
    assert!(told.try_recv().is_err());
    // A non-Wiretight peer may do without it.
    let mut raw = Stranger { alpn: false, ..classic() }.connect(to).unwrap();
    raw.write_all(b"foreign").unwrap();
    let mut answer = [0; 7];
    raw.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"foreign");
    assert_accepted(good(&pair).connect(to).unwrap());
}

#[test]
fn tls_1_2_is_rejected() {
    let (pair, told) = watched();
    if foreign::missing("openssl") {
        return;
    }
    let files = foreign::Pems::new(&pair.ca, "service/web");
    let client = |version: &str| {
        let mut openssl = Command::new("openssl");
        openssl.args(["s_client", version, "-quiet", "-connect"]);
        openssl.arg(pair.service.listen.to_string());
        openssl.arg("-cert").arg(&files.chain).arg("-cert_chain").arg(&files.chain);
        openssl.arg("-key").arg(&files.key);
        openssl
    };
    let out = client("-tls1_2").stdin(Stdio::null()).output().unwrap();
    let out = String::from_utf8_lossy(&out.stderr);
    assert!(out.contains("alert protocol version"), "{out}");
    expect_refused(&pair.b, Side::Service, Reason::TlsVersion);
    assert!(told.try_recv().is_err());
    foreign::Program::start(&mut client("-tls1_3")).ping(b"let in\n");
}

/// What an unknown peer can read until the connection is closed.
fn answer(mut socket: TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    let mut buf = [0; 100];
    while let Ok(n @ 1..) = socket.read(&mut buf) {
        answer.extend_from_slice(&buf[..n]);
    }
    answer
}

#[test]
fn plaintext_and_garbage_get_an_alert_and_nothing_else() {
    let (pair, told) = watched();
    let mut garbage = Random::new(5).bytes(5000);
    garbage[0] = 0xff;
    for (n, bytes) in
        [b"GET / HTTP/1.1\r\nHost: db\r\n\r\n".as_slice(), &garbage].iter().enumerate()
    {
        let mut socket = connect(pair.service.listen);
        socket.write_all(bytes).unwrap();
        let _ = socket.shutdown(Shutdown::Write);
        let answer = answer(socket);
        // One fatal alert (RFC 8446, section 6), or a RST that arrived first.
        assert!(matches!(answer[..], [] | [21, 3, _, 0, 2, 2, _]), "{answer:?}");
        eventually("it is told here", || {
            refused(&pair.b, Side::Service, Reason::NotTls) == n as u64 + 1
        });
    }
    assert!(told.try_recv().is_err());
    ping(&mut pair.connect(), b"as ever").unwrap();
}

#[test]
fn a_stalled_handshake_is_aborted_after_ten_seconds() {
    let (pair, told) = watched();
    let start = Instant::now();
    let silent = connect(pair.service.listen);
    let mut half = connect(pair.service.listen);
    half.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3, 9, 9]).unwrap();
    ping(&mut pair.connect(), b"meanwhile").unwrap();
    told.recv_timeout(Duration::from_secs(10)).unwrap();
    for mut socket in [silent, half] {
        assert!(!matches!(socket.read(&mut [0]), Ok(1..)));
    }
    let took = start.elapsed().as_secs();
    assert!((9..15).contains(&took), "cut after {took} s");
    eventually("both are told", || refused(&pair.b, Side::Service, Reason::HandshakeStalled) == 2);
    assert!(told.try_recv().is_err());
}

#[test]
fn a_too_large_hello_gets_an_alert() {
    let (pair, told) = watched();
    // In records of 16 KiB, all sent before anything is read.
    for size in [70_000usize, 200_000, 1 << 20] {
        let mut hello = vec![1];
        hello.extend_from_slice(&(size as u32).to_be_bytes()[1..]);
        hello.resize(size, 3);
        let mut socket = connect(pair.service.listen);
        for fragment in hello.chunks(1 << 14) {
            let mut record = vec![22, 3, 1];
            record.extend_from_slice(&(fragment.len() as u16).to_be_bytes());
            record.extend_from_slice(fragment);
            // It may be rejected before everything was sent.
            if socket.write_all(&record).is_err() {
                break;
            }
        }
        let mut answer = [0; 7];
        let read = socket.read_exact(&mut answer);
        if size <= 200_000 {
            read.unwrap();
            assert_eq!(answer[..2], [21, 3], "{size}: no alert but {answer:?}");
            assert_eq!(answer[5], 2, "{size}: not a fatal one");
        }
    }
    assert!(told.try_recv().is_err());
    assert_accepted(good(&pair).connect(pair.service.listen).unwrap());
}

#[test]
fn unfinished_handshakes_are_limited_by_address() {
    let (pair, told) = watched();
    ping(&mut pair.connect(), b"before").unwrap();
    told.recv_timeout(Duration::from_secs(10)).unwrap();
    let silent_from = |host: u8| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, host], 0)).into()).unwrap();
        socket.connect(&pair.service.listen.into()).unwrap();
        TcpStream::from(socket)
    };
    let too_many = || refused(&pair.b, Side::Service, Reason::TooManyHandshakes);
    let mut silent: Vec<_> = (0..256).map(|_| silent_from(2)).collect();
    // As many as are allowed: a peer that connects after them is accepted, so all of them have been noticed.
    assert_accepted(good(&pair).connect(pair.service.listen).unwrap());
    told.recv_timeout(Duration::from_secs(10)).unwrap();
    assert_eq!(too_many(), 0);
    assert!(is_reset(&mut silent_from(2)));
    assert_eq!(too_many(), 1);
    // Other addresses are served, and so is this one after one of its connections has closed.
    assert_accepted(good(&pair).connect(pair.service.listen).unwrap());
    told.recv_timeout(Duration::from_secs(10)).unwrap();
    silent.pop();
    eventually("its place is free", || refused(&pair.b, Side::Service, Reason::Disconnected) > 0);
    let mut again = silent_from(2);
    again.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    expect_refused(&pair.b, Side::Service, Reason::NotTls); // its data was read
    assert_eq!(too_many(), 1);
    assert!(told.try_recv().is_err());
}

#[test]
fn protocol_violations_end_the_connection_without_a_response() {
    let (pair, told) = watched();
    let open_then = |more: &[u8]| [open().as_slice(), more].concat();
    // (case, data sent, text in the log, whether a session was open by then)
    let cases: [(&str, Vec<u8>, &str, bool); 10] = [
        ("an OPEN that announces too much", vec![1, 0, 2, 1], "an OPEN of 513 bytes", false),
        ("the largest OPEN", vec![1, 255, 255, 255], "an OPEN of 16777215 bytes", false),
        ("a truncated OPEN", vec![1, 0, 0, 3, 9, b'd', b'b'], "truncated", false),
        ("an OPEN of no name", vec![1, 0, 0, 3, 1, b'!', 0], "not a name", false),
        ("an unknown frame", vec![9, 0, 0, 0], "unknown frame type 9", false),
        ("DATA before an OPEN", vec![4, 0, 0, 1, 7], "DATA frame out of turn", false),
        ("OPENED by a client", vec![2, 0, 0, 0], "OPENED frame out of turn", false),
        ("a FIN with a body", open_then(&[5, 0, 0, 1, 0]), "FIN frame with a body of 1", true),
        ("an OPEN in a session", open_then(&open()), "OPEN frame out of turn", true),
        ("DATA of nothing", open_then(&[4, 0, 0, 0]), "DATA frame with a body of 0", true),
    ];
    for (n, (what, bytes, said, begun)) in cases.into_iter().enumerate() {
        let mut tls = good(&pair).connect(pair.service.listen).unwrap();
        tls.write_all(&bytes).unwrap();
        let mut got = Vec::new();
        let error = tls.read_to_end(&mut got).expect_err(what).kind();
        assert!(matches!(error, ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof), "{what}");
        assert!(got.is_empty() || begun && got == Frame::Opened.header(), "{what}: {got:?}");
        let count = n as u64 + 1;
        eventually(what, || refused(&pair.b, Side::Service, Reason::ProtocolError) == count);
        let detail = pair.b.status(0).refusals.pop().unwrap().detail;
        assert!(detail.contains(said), "{what}: {detail}");
        if begun {
            told.recv_timeout(Duration::from_secs(10)).expect(what);
        }
        assert!(told.try_recv().is_err(), "{what} reached the backend");
    }
    eventually("all sessions end", || pair.at_rest());
    assert_accepted(good(&pair).connect(pair.service.listen).unwrap());
}

#[test]
fn data_after_fin_is_out_of_turn() {
    let (tell, backends) = mpsc::channel();
    let pair = Pair::new(&[backend(move |socket| tell.send(socket).unwrap())]);
    let mut tls = good(&pair).connect(pair.service.listen).unwrap();
    let mut bytes = open();
    bytes.extend_from_slice(&Frame::Fin.header());
    bytes.extend_from_slice(&[4, 0, 0, 1, 7]);
    tls.write_all(&bytes).unwrap();
    let socket = backends.recv_timeout(Duration::from_secs(10)).unwrap();
    expect_refused(&pair.b, Side::Service, Reason::ProtocolError);
    eventually_reset("the backend is told", &socket);
    eventually("the session ends", || sums(&pair.b).live == 0);
}

#[test]
fn an_incomplete_open_has_no_effect() {
    let (pair, told) = watched();
    let mut tls = good(&pair).connect(pair.service.listen).unwrap();
    tls.write_all(&open()[..5]).unwrap();
    drop(tls);
    eventually("it is gone", || {
        pair.b.status(100).connections.iter().all(|c| c.address.port() != 0 && !c.busy)
            && sums(&pair.b).sessions == 0
    });
    assert!(told.try_recv().is_err());
    assert_accepted(good(&pair).connect(pair.service.listen).unwrap());
}

#[test]
fn a_service_accepts_only_its_own_name() {
    let (pair, told) = watched();
    let mut tls = good(&pair).connect(pair.service.listen).unwrap();
    tls.write_all(&Open { service: name("other"), destination: None }.encode()).unwrap();
    let mut answer = [0; 5];
    tls.read_exact(&mut answer).unwrap();
    assert_eq!(answer, [3, 0, 0, 1, 2]);
    expect_refused(&pair.b, Side::Service, Reason::NoSuchService);
    assert!(told.try_recv().is_err());
    tls.write_all(&Frame::Reset.header()).unwrap();
    assert_accepted(tls); // the connection is idle again
}

#[test]
fn a_server_that_sends_data_after_the_end_is_not_reused() {
    let pair = Pair::new(&[]);
    // Each of its sessions ends in order, followed by extra data.
    let addr = tls::server(pair.ca.issue("service/db", 3600), true, |mut tls| {
        let mut buf = [0; 512];
        let mut session = [Frame::Opened.header(), [4, 0, 0, 2]].concat();
        session.extend_from_slice(b"ok");
        session.extend_from_slice(&Frame::Fin.header());
        session.extend_from_slice(&Frame::Opened.header());
        session.extend_from_slice(b"\x04\0\0\x05stale");
        while let Ok(1..) = tls.read(&mut buf) {
            if buf[0] == 1 && tls.write_all(&session).is_err() {
                return;
            }
            buf[0] = 0;
        }
    });
    let listen = free();
    pair.a
        .apply(&RelaySettings {
            services: vec![],
            dials: vec![dial(listen, &[addr])],
            intercept: None,
        })
        .unwrap();
    for _ in 0..5 {
        let mut socket = connect(listen);
        let _ = socket.shutdown(Shutdown::Write); // it may be closed already
        let mut got = Vec::new();
        let _ = socket.read_to_end(&mut got);
        assert_eq!(got, b"ok");
    }
}

#[test]
fn an_unexpected_answer_to_open_is_an_abort() {
    for (answer, reason) in
        [(vec![4, 0, 0, 1, 7], Reason::ProtocolError), (vec![3, 0, 0, 1, 99], Reason::Other)]
    {
        let pair = Pair::new(&[]);
        let addr = tls::server(pair.ca.issue("service/db", 3600), true, move |mut tls| {
            if matches!(tls.read(&mut [0; 512]), Ok(1..)) {
                let _ = tls.write_all(&answer);
                let _ = tls.read(&mut [0; 512]);
            }
        });
        let listen = free();
        let dials = vec![dial(listen, &[addr])];
        pair.a.apply(&RelaySettings { services: vec![], dials, intercept: None }).unwrap();
        assert!(is_reset(&mut connect(listen)));
        expect_refused(&pair.a, Side::Dial, reason);
    }
}

#[test]
fn a_service_without_instances_is_reported() {
    let pair = Pair::new(&[]);
    let listen = free();
    pair.a
        .apply(&RelaySettings { services: vec![], dials: vec![dial(listen, &[])], intercept: None })
        .unwrap();
    assert!(is_reset(&mut connect(listen)));
    expect_refused(&pair.a, Side::Dial, Reason::NoInstance);
}

#[test]
fn sessions_under_a_forcibly_retired_root_are_closed() {
    for by_force in [false, true] {
        let pair = Pair::new(&[backend(echo)]);
        let mut live = pair.connect();
        ping(&mut live, b"before").unwrap();
        // Another root, as after a rotation; the session's certificate is under the old one.
        let roots = vec![Ca::new(TRUST_DOMAIN).root];
        let old = wiretight_keys::x509::fingerprint(&pair.ca.root);
        let roots_revoked = by_force.then_some(old).into_iter().collect();
        let revoked = Revocations { roots: roots_revoked, ..Default::default() };
        pair.mesh_b.set_bundle(TrustBundle::new(pair.ca.td.clone(), roots, revoked).unwrap());
        pair.b.cut_revoked();
        match by_force {
            // Retired regularly, after everything it signed had expired; sessions may be older.
            false => ping(&mut live, b"goes on").unwrap(),
            true => assert!(is_reset(&mut live)),
        }
    }
}

#[test]
fn reconnects_to_a_peer_that_rejects_us_slow_down() {
    let (pair, told) = watched();
    let serial = pair.mesh_a.identities().values().next().unwrap().leaf().serial;
    let roots = vec![pair.ca.root.clone()];
    let series = [serial.series()].into();
    let revoked = Revocations { series, ..Default::default() };
    let bundle = TrustBundle::new(pair.ca.td.clone(), roots, revoked).unwrap();
    pair.mesh_b.set_bundle(bundle);
    pair.b.cut_revoked();
    assert!(is_reset(&mut pair.connect()));
    expect_refused(&pair.a, Side::Dial, Reason::RefusedByPeer);
    std::thread::sleep(Duration::from_secs(4));
    // Attempts to preconnect wait longer each time: 0.2, 0.4, 0.8, 1.6 s, rounded up to the next sweep.
    let tries = refused(&pair.b, Side::Service, Reason::Revoked);
    assert!(tries <= 7, "{tries} tries in 4 s");
    assert!(told.try_recv().is_err());
}
