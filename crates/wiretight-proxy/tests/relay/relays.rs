//! How a pair of relays handles the streams that pass through it.

use super::rig;

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Barrier, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rig::*;
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use wiretight_proxy::Relay;
use wiretight_proxy::relay::settings::{RelaySettings, ServiceSettings};
use wiretight_proxy::relay::{ApplyError, Side};

const MB: usize = 1 << 20;

/// Writes until it would block for a second; returns the number of bytes.
fn fill(socket: &mut TcpStream) -> usize {
    socket.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    let (block, mut sent) = ([7; 65536], 0);
    loop {
        match socket.write(&block) {
            Ok(n) => sent += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return sent,
            Err(e) => panic!("{e}"),
        }
    }
}

/// A backend that passes each connection to the test.
fn handed_over() -> (String, mpsc::Receiver<TcpStream>) {
    let (give, take) = mpsc::channel();
    let addr = backend(move |socket| {
        socket.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        socket.set_write_timeout(Some(Duration::from_secs(15))).unwrap();
        let _ = give.send(socket);
    });
    (addr, take)
}

fn drain(relay: &Relay, limit: Duration) -> usize {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(relay.drain(limit))
}

#[test]
fn data_passes_and_the_connection_is_reused() {
    let pair = Pair::new(&[backend(echo)]);
    for round in 0..20u32 {
        let mut socket = pair.connect();
        let sent: Vec<u8> =
            (0..100_000u32).map(|i| (i.wrapping_mul(round + 1) >> 3) as u8).collect();
        let (mut writer, data) = (socket.try_clone().unwrap(), sent.clone());
        let sender = thread::spawn(move || {
            writer.write_all(&data).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut got = Vec::new();
        socket.read_to_end(&mut got).unwrap();
        sender.join().unwrap();
        assert!(got == sent, "round {round}: {} of {} bytes", got.len(), sent.len());
    }
    eventually("all sessions end", || pair.at_rest());
    let sums = sums(&pair.a);
    assert_eq!((sums.sessions, sums.bytes_in, sums.bytes_out), (20, 2_000_000, 2_000_000));
    assert!(sums.handshakes <= 5, "{} handshakes for 20 sessions", sums.handshakes);
    let connection = &pair.a.status(10).connections[0];
    assert_eq!(connection.group, "X25519MLKEM768");
    assert_eq!(connection.cipher, "TLS_AES_256_GCM_SHA384");
    assert_eq!(connection.peer.to_string(), "spiffe://test.example/service/db");
}

#[test]
fn the_response_still_arrives_after_the_clients_half_close() {
    let pair = Pair::new(&[backend(|mut socket| {
        let mut question = Vec::new();
        socket.read_to_end(&mut question).unwrap(); // ends by the client's half-close alone
        thread::sleep(Duration::from_millis(50));
        question.reverse();
        socket.write_all(&question).unwrap();
    })]);
    let mut socket = pair.connect();
    let mut question = Random::new(1).bytes(MB);
    socket.write_all(&question).unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).unwrap();
    question.reverse();
    assert!(answer == question);
}

#[test]
fn the_client_can_still_send_after_the_backends_half_close() {
    let (tell, told) = mpsc::channel();
    let pair = Pair::new(&[backend(move |mut socket| {
        socket.write_all(b"that is all from me").unwrap();
        socket.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        socket.read_to_end(&mut rest).unwrap();
        tell.send(rest).unwrap();
    })]);
    let mut socket = pair.connect();
    let mut banner = Vec::new();
    socket.read_to_end(&mut banner).unwrap(); // ends by the backend's half-close
    assert_eq!(banner, b"that is all from me");
    let sent = Random::new(2).bytes(MB);
    socket.write_all(&sent).unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    assert!(told.recv_timeout(Duration::from_secs(10)).unwrap() == sent);
    eventually("the session ends", || pair.at_rest());
}

#[test]
fn a_server_can_speak_first() {
    let pair = Pair::new(&[backend(|mut socket| {
        socket.write_all(b"220 ready\r\n").unwrap();
        echo(socket);
    })]);
    for _ in 0..3 {
        let mut socket = pair.connect();
        let mut banner = [0; 11];
        socket.read_exact(&mut banner).unwrap();
        assert_eq!(&banner, b"220 ready\r\n");
        ping(&mut socket, b"EHLO").unwrap();
    }
}

#[test]
fn a_client_reset_reaches_the_backend_and_the_connection_is_reused() {
    let (addr, backends) = handed_over();
    let pair = Pair::new(&[addr]);
    // The counterpart first: an orderly close arrives as such.
    let mut client = pair.connect();
    client.write_all(b"x").unwrap();
    drop(client);
    let mut socket = backends.recv_timeout(Duration::from_secs(10)).unwrap();
    let mut rest = Vec::new();
    socket.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"x");
    drop(socket);
    for round in 0..15 {
        let mut client = pair.connect();
        client.write_all(b"x").unwrap();
        let mut socket = backends.recv_timeout(Duration::from_secs(10)).unwrap();
        socket.read_exact(&mut [0]).unwrap();
        reset(client);
        let error = socket.read(&mut [0]).expect_err("an abort looked like an end");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "round {round}");
        eventually("the session ends", || pair.at_rest());
    }
    let made = sums(&pair.a).handshakes;
    assert!(made <= 5, "{made} handshakes for 16 sessions, 15 of them aborted");
}

#[test]
fn a_backend_reset_reaches_the_client_and_the_connection_is_reused() {
    let (addr, backends) = handed_over();
    let pair = Pair::new(&[addr]);
    for round in 0..15 {
        let mut client = pair.connect();
        client.write_all(b"x").unwrap();
        let mut socket = backends.recv_timeout(Duration::from_secs(10)).unwrap();
        socket.read_exact(&mut [0]).unwrap();
        socket.write_all(b"y").unwrap();
        client.read_exact(&mut [0]).unwrap();
        reset(socket);
        let error = client.read(&mut [0]).expect_err("an abort looked like an end");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "round {round}");
        eventually("the session ends", || pair.at_rest());
    }
    let made = sums(&pair.a).handshakes;
    assert!(made <= 5, "{made} handshakes for 15 aborted sessions");
}

#[test]
fn a_client_that_aborts_is_noticed_while_the_backend_does_not_read() {
    let (addr, backends) = handed_over();
    let pair = Pair::new(&[addr]);
    let mut client = pair.connect();
    let sent = fill(&mut client);
    assert!(sent > 0);
    let socket = backends.recv_timeout(Duration::from_secs(10)).unwrap();
    reset(client);
    eventually_reset("the backend is told", &socket);
    eventually("the session ends", || pair.at_rest());
}

#[test]
fn a_backend_that_aborts_is_noticed_while_the_client_does_not_read() {
    let (addr, backends) = handed_over();
    let pair = Pair::new(&[addr]);
    let client = pair.connect();
    let mut socket = backends.recv_timeout(Duration::from_secs(10)).unwrap();
    assert!(fill(&mut socket) > 0);
    reset(socket);
    eventually_reset("the client is told", &client);
    eventually("the session ends", || pair.at_rest());
}

#[test]
fn an_abort_after_a_half_close_is_noticed() {
    let (addr, backends) = handed_over();
    let pair = Pair::new(&[addr]);
    // By the client: it has sent everything, and does not wait for the response.
    let mut client = pair.connect();
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut socket = backends.recv_timeout(Duration::from_secs(10)).unwrap();
    socket.read_to_end(&mut Vec::new()).unwrap();
    reset(client);
    eventually_reset("the backend is told", &socket);
    eventually("the session ends", || pair.at_rest());
    // By the backend.
    let mut client = pair.connect();
    client.write_all(b"x").unwrap();
    let mut socket = backends.recv_timeout(Duration::from_secs(10)).unwrap();
    socket.read_exact(&mut [0]).unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    client.read_to_end(&mut Vec::new()).unwrap();
    reset(socket);
    eventually_reset("the client is told", &client);
    eventually("the session ends", || pair.at_rest());
}

#[test]
fn a_relay_that_dies_is_noticed_after_a_half_close() {
    let (addr, backends) = handed_over();
    let pair = Pair::new(&[addr]);
    let mut client = pair.connect();
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut socket = backends.recv_timeout(Duration::from_secs(10)).unwrap();
    socket.read_to_end(&mut Vec::new()).unwrap();
    let Pair { a, b, .. } = pair;
    drop(a);
    eventually_reset("the backend is told", &socket);
    eventually("the session ends", || sums(&b).live == 0);
}

/// Whether the keepalive timer runs on the only established connection from `near` to `far`, according to the
/// kernel's data on the socket at `near`. Port 0 matches any.
fn is_kept_alive(near: u16, far: u16) -> bool {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let port =
        |address: &str| u16::from_str_radix(address.rsplit(':').next().unwrap(), 16).unwrap();
    let is = |wanted: u16, address: &str| wanted == 0 || wanted == port(address);
    let rows = table.lines().skip(1).map(|l| l.split_whitespace().collect::<Vec<_>>());
    let timers: Vec<_> = rows
        .filter(|r| r[3] == "01" && is(near, r[1]) && is(far, r[2]))
        .map(|r| r[5].starts_with("02:"))
        .collect();
    assert!(!timers.is_empty(), "no connection from port {near} to port {far}");
    timers.iter().all(|on| *on)
}

#[test]
fn tcp_keepalive_is_enabled_on_all_connections_of_a_relay() {
    let (addr, backends) = handed_over();
    let pair = Pair::new(std::slice::from_ref(&addr));
    let mut client = pair.connect();
    client.write_all(b"x").unwrap();
    let mut socket = backends.recv_timeout(Duration::from_secs(10)).unwrap();
    socket.read_exact(&mut [0]).unwrap();
    let (entry, service) = (pair.entry().port(), pair.service.listen.port());
    let backend = addr.parse::<SocketAddr>().unwrap().port();
    // (A socket shows another timer while it waits for an acknowledgement.)
    let watched = |what: &str, near, far| eventually(what, || is_kept_alive(near, far));
    watched("accepted by the dial", entry, 0);
    watched("from relay to relay", 0, service);
    watched("accepted by the service", service, 0);
    watched("to the backend", 0, backend);
    // The test's own ends have no keepalive, so the check can tell the difference.
    assert!(!is_kept_alive(0, entry) && !is_kept_alive(backend, 0));
}

#[test]
fn a_slow_reader_causes_back_pressure_and_loses_nothing() {
    let (addr, backends) = handed_over();
    let pair = Pair::new(&[addr]);
    let mut client = pair.connect();
    SockRef::from(&client).set_send_buffer_size(256 << 10).unwrap();
    // Bytes that depend on their position, so that gaps and repetitions are noticed.
    let byte = |at: usize| (at ^ (at >> 8) ^ (at >> 16)) as u8;
    client.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    // The kernel can buffer at most this much on the way, over three connections; the backend's and the client's own
    // buffers are small. The relays buffer less than a megabyte.
    let kernel = |file: &str| -> usize {
        let text = std::fs::read_to_string(format!("/proc/sys/net/ipv4/{file}")).unwrap();
        text.split_whitespace().last().unwrap().parse().unwrap()
    };
    let most = 2 * kernel("tcp_rmem") + 3 * kernel("tcp_wmem") + 4 * MB;
    let mut sent = 0;
    let write = |client: &mut TcpStream, sent: &mut usize| {
        let block: Vec<u8> = (*sent..*sent + 65536).map(byte).collect();
        client.write(&block).map(|n| *sent += n)
    };
    while write(&mut client, &mut sent).is_ok() {
        assert!(sent < most, "the writer is not held back: {sent} of at most {most}");
    }
    let mut socket = backends.recv_timeout(Duration::from_secs(10)).unwrap();
    let reader = thread::spawn(move || {
        let (mut buf, mut at) = (vec![0; 65536], 0);
        loop {
            match socket.read(&mut buf).unwrap() {
                0 => return at,
                n => buf[..n].iter().for_each(|b| {
                    assert_eq!(*b, byte(at), "at {at}");
                    at += 1;
                }),
            }
        }
    });
    client.set_write_timeout(Some(Duration::from_secs(15))).unwrap();
    let goal = sent + 4 * MB;
    while sent < goal {
        write(&mut client, &mut sent).unwrap();
    }
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(reader.join().unwrap(), sent);
}

#[test]
fn two_hundred_concurrent_sessions_do_not_mix_up_data() {
    let pair = Pair::new(&[backend(|mut socket| {
        let mut buf = vec![0; 65536];
        while let Ok(n @ 1..) = socket.read(&mut buf) {
            buf[..n].iter_mut().for_each(|b| *b ^= 0x5a);
            if socket.write_all(&buf[..n]).is_err() {
                return;
            }
        }
    })]);
    let entry = pair.entry();
    let start = Arc::new(Barrier::new(200));
    let clients: Vec<_> = (0..200)
        .map(|seed| {
            let start = start.clone();
            thread::spawn(move || {
                let mut random = Random::new(seed);
                let size = random.below(200_000);
                let sent = random.bytes(size);
                let mut socket = connect(entry);
                start.wait();
                let (mut writer, mut rest) = (socket.try_clone().unwrap(), sent.clone());
                let writer = thread::spawn(move || {
                    while !rest.is_empty() {
                        let n = rest.len().min(1 + random.below(30_000));
                        writer.write_all(&rest[..n]).unwrap();
                        rest.drain(..n);
                    }
                    writer.shutdown(Shutdown::Write).unwrap();
                });
                let mut got = Vec::new();
                socket.read_to_end(&mut got).unwrap();
                writer.join().unwrap();
                got.iter_mut().for_each(|b| *b ^= 0x5a);
                assert!(got == sent, "session {seed}: {} of {} bytes", got.len(), sent.len());
            })
        })
        .collect();
    clients.into_iter().for_each(|c| c.join().unwrap());
    eventually("all sessions end", || pair.at_rest());
    let (a, b) = (sums(&pair.a), sums(&pair.b));
    assert_eq!((a.sessions, a.failed, b.failed), (200, 0, 0));
    assert_eq!((a.bytes_in, a.bytes_out), (b.bytes_out, b.bytes_in));
}

#[test]
fn a_dead_backend_is_an_abort_and_reported_on_both_sides() {
    let addr = free();
    let pair = Pair::new(&[addr.to_string()]);
    let mut socket = pair.connect();
    assert!(is_reset(&mut socket));
    expect_refused(&pair.a, Side::Dial, Reason::BackendUnavailable);
    expect_refused(&pair.b, Side::Service, Reason::BackendUnavailable);
    let made = sums(&pair.a).handshakes;
    backend_at(addr, echo);
    ping(&mut pair.connect(), b"back again").unwrap();
    assert_eq!(refused(&pair.a, Side::Dial, Reason::BackendUnavailable), 1);
    assert!(sums(&pair.a).handshakes <= made + 2, "a refused session cost its connection");
}

#[test]
fn the_connection_of_a_refused_session_is_reused() {
    let pair = Pair::new(&[free().to_string()]);
    for _ in 0..15 {
        assert!(is_reset(&mut pair.connect()));
    }
    eventually("all are told", || {
        refused(&pair.b, Side::Service, Reason::BackendUnavailable) == 15
    });
    let made = sums(&pair.a).handshakes;
    assert!(made <= 5, "{made} handshakes for 15 refused sessions");
}

#[test]
fn a_flapping_backend_blocks_nothing() {
    let dice = Arc::new(AtomicU64::new(1));
    let flap = Arc::new(AtomicBool::new(true));
    let flapping = flap.clone();
    let pair = Pair::new(&[backend(move |mut socket| {
        let dice = if flapping.load(Relaxed) { dice.fetch_add(1, Relaxed) % 5 } else { 9 };
        match dice {
            0 => drop(socket),
            1 => reset(socket),
            2 => drop(socket.read(&mut [0; 100])),
            3 => {
                let _ = socket.write_all(&[1; 1000]);
                reset(socket);
            }
            _ => echo(socket),
        }
    })]);
    let entry = pair.entry();
    let clients: Vec<_> = (0..8)
        .map(|seed| {
            thread::spawn(move || {
                let mut random = Random::new(seed);
                for _ in 0..40 {
                    let mut socket = connect(entry);
                    let size = random.below(100_000);
                    let _ = socket.write_all(&random.bytes(size));
                    if random.below(4) == 0 {
                        reset(socket);
                        continue;
                    }
                    let _ = socket.shutdown(Shutdown::Write);
                    let error = socket.read_to_end(&mut Vec::new()).err().map(|e| e.kind());
                    assert!(matches!(error, None | Some(ErrorKind::ConnectionReset)), "{error:?}");
                }
            })
        })
        .collect();
    clients.into_iter().for_each(|c| c.join().unwrap());
    eventually("no session is stuck", || pair.at_rest());
    flap.store(false, Relaxed);
    for _ in 0..10 {
        ping(&mut pair.connect(), b"steady now").unwrap();
    }
    for (relay, side) in [(&pair.a, Side::Dial), (&pair.b, Side::Service)] {
        assert_eq!(refused(relay, side, Reason::ProtocolError), 0, "{:?}", reasons(relay));
    }
}

/// A second node with the same service and trust bundle.
fn second(pair: &Pair, forward: &str) -> (Relay, SocketAddr) {
    let relay = Relay::start(pair.ca.mesh(&["service/db"]), 1).unwrap();
    let service = service(free(), &[forward.into()], &["service/web"]);
    let listen = service.listen;
    relay
        .apply(&RelaySettings { services: vec![service], dials: vec![], intercept: None })
        .unwrap();
    (relay, listen)
}

fn dial_both(pair: &mut Pair, other: SocketAddr) {
    pair.dial = dial(free(), &[other, pair.service.listen]);
    let dials = vec![pair.dial.clone()];
    pair.a.apply(&RelaySettings { services: vec![], dials, intercept: None }).unwrap();
}

#[test]
fn sessions_are_spread_over_instances_by_least_connections() {
    let mut pair = Pair::new(&[backend(echo)]);
    let (other, listen) = second(&pair, &backend(echo));
    dial_both(&mut pair, listen);
    let held: Vec<_> = (0..10)
        .map(|_| {
            let mut socket = pair.connect();
            ping(&mut socket, b"hold").unwrap();
            socket
        })
        .collect();
    assert_eq!((sums(&pair.b).live, sums(&other).live), (5, 5));
    drop(held);
}

#[test]
fn a_dead_instance_is_skipped() {
    let mut pair = Pair::new(&[backend(echo)]);
    dial_both(&mut pair, free());
    let held: Vec<_> = (0..10)
        .map(|n| {
            let mut socket = pair.connect();
            ping(&mut socket, &[n; 1000]).unwrap();
            socket
        })
        .collect();
    assert_eq!(sums(&pair.b).live, 10);
    assert_eq!(sums(&pair.a).failed, 0);
    expect_refused(&pair.a, Side::Dial, Reason::Unreachable);
    drop(held);
}

#[test]
fn data_sent_with_a_refused_open_arrives_elsewhere_exactly_once() {
    let (tell, told) = mpsc::channel();
    let mut pair = Pair::new(&[backend(move |mut socket| {
        let mut all = Vec::new();
        socket.read_to_end(&mut all).unwrap();
        tell.send(all).unwrap();
    })]);
    let (other, listen) = second(&pair, &free().to_string()); // its backend is dead
    dial_both(&mut pair, listen);
    let sent = Random::new(3).bytes(300_000);
    for round in 0..20 {
        let mut socket = pair.connect();
        socket.write_all(&sent).unwrap();
        socket.shutdown(Shutdown::Write).unwrap();
        assert_eq!(socket.read(&mut [0]).unwrap(), 0, "round {round}");
        assert!(told.recv_timeout(Duration::from_secs(10)).unwrap() == sent, "round {round}");
    }
    expect_refused(&other, Side::Service, Reason::BackendUnavailable);
    expect_refused(&pair.a, Side::Dial, Reason::BackendUnavailable);
    assert_eq!(sums(&pair.a).failed, 0);
    assert_eq!(sums(&pair.b).bytes_in, 20 * 300_000);
    assert!(told.try_recv().is_err(), "something arrived twice");
}

#[test]
fn a_dead_backend_of_two_is_skipped() {
    let pair = Pair::new(&[free().to_string(), backend(echo)]);
    for n in 0..10 {
        ping(&mut pair.connect(), &[n; 100]).unwrap();
    }
    assert_eq!((sums(&pair.a).failed, sums(&pair.b).failed), (0, 0));
}

#[test]
fn idle_connections_to_a_server_that_died_are_not_used() {
    let mut pair = Pair::new(&[backend(echo)]);
    ping(&mut pair.connect(), b"before").unwrap();
    eventually("a connection is idle", || sums(&pair.a).idle > 0);
    for _ in 0..3 {
        let b = Relay::start(pair.mesh_b.clone(), 1).unwrap();
        drop(std::mem::replace(&mut pair.b, b)); // every connection breaks
        pair.apply_services(&[&pair.service]);
        ping(&mut pair.connect(), b"after").unwrap();
        eventually("a connection is idle", || sums(&pair.a).idle > 0);
    }
    assert_eq!(refused(&pair.a, Side::Dial, Reason::Broken), 0, "{:?}", reasons(&pair.a));
    assert_eq!(sums(&pair.a).failed, 0);
}

#[test]
fn an_idle_timeout_ends_only_idle_sessions() {
    let limit = Some(Duration::from_secs(2));
    let both = [true, false].map(|on_service| {
        thread::spawn(move || {
            let pair = Pair::with(&[backend(echo)], |service, dial| match on_service {
                true => service.idle_timeout = limit,
                false => dial.idle_timeout = limit,
            });
            let (mut busy, mut quiet) = (pair.connect(), pair.connect());
            ping(&mut quiet, b"last words").unwrap();
            eventually("the quiet one ends", || {
                ping(&mut busy, b"tick").unwrap();
                sums(&pair.a).live == 1 && sums(&pair.b).live == 1
            });
            assert!(is_reset(&mut quiet));
            // The other session outlives the limit; make sure that the limit has passed.
            let start = Instant::now();
            while start.elapsed() < Duration::from_secs(5) {
                ping(&mut busy, b"tick").unwrap();
                thread::sleep(Duration::from_millis(20));
            }
        })
    });
    both.into_iter().for_each(|case| case.join().unwrap());
}

#[test]
fn without_an_idle_timeout_an_idle_session_stays_open() {
    let pair = Pair::new(&[backend(echo)]);
    let mut socket = pair.connect();
    ping(&mut socket, b"before").unwrap();
    thread::sleep(Duration::from_millis(1200));
    ping(&mut socket, b"after").unwrap();
}

#[test]
fn a_backend_may_be_a_unix_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.sock");
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            let mut all = Vec::new();
            socket.read_to_end(&mut all).unwrap();
            all.reverse();
            socket.write_all(&all).unwrap();
        }
    });
    let pair = Pair::new(&[format!("unix:{}", path.display())]);
    let mut sent = Random::new(4).bytes(MB);
    let mut socket = pair.connect();
    socket.write_all(&sent).unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    let mut got = Vec::new();
    socket.read_to_end(&mut got).unwrap();
    sent.reverse();
    assert!(got == sent);
}

#[test]
fn a_unix_backend_with_a_full_backlog_is_awaited() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.sock");
    let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    listener.bind(&SockAddr::unix(&path).unwrap()).unwrap();
    listener.listen(1).unwrap();
    let pair = Pair::new(&[format!("unix:{}", path.display())]);
    let mut clients: Vec<_> = (0..8).map(|_| pair.connect()).collect();
    thread::sleep(Duration::from_millis(300));
    let server = thread::spawn(move || {
        for _ in 0..8 {
            (&listener.accept().unwrap().0).write_all(b"hello").unwrap();
        }
    });
    for client in &mut clients {
        client.read_exact(&mut [0; 5]).unwrap();
    }
    server.join().unwrap();
}

#[test]
fn hanging_backends_are_reported_before_the_client_gives_up() {
    // Three seconds for each would be longer than the client waits.
    let dir = tempfile::tempdir().unwrap();
    let full = |n: u32| {
        let path = dir.path().join(format!("{n}.sock"));
        let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        listener.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        listener.listen(0).unwrap();
        (UnixStream::connect(&path).unwrap(), listener, format!("unix:{}", path.display()))
    };
    let backends: Vec<_> = (0..5).map(full).collect();
    let forward: Vec<_> = backends.iter().map(|(_, _, path)| path.clone()).collect();
    let pair = Pair::new(&forward);
    assert!(is_reset(&mut pair.connect()));
    expect_refused(&pair.a, Side::Dial, Reason::BackendUnavailable);
    expect_refused(&pair.b, Side::Service, Reason::BackendUnavailable);
    assert_eq!(refused(&pair.a, Side::Dial, Reason::Broken), 0, "{:?}", reasons(&pair.a));
}

#[test]
fn a_proxy_header_tells_the_backend_the_client() {
    let (addr, backends) = handed_over();
    let pair = Pair::with(&[addr], |service, _| service.proxy_protocol = true);
    let mut client = pair.connect();
    client.write_all(b"stream").unwrap();
    let mut socket = backends.recv_timeout(Duration::from_secs(10)).unwrap();
    let mut head = [0; 16];
    socket.read_exact(&mut head).unwrap();
    assert_eq!(head[..14], *b"\r\n\r\n\0\r\nQUIT\n\x21\x11");
    let mut body = vec![0; usize::from(u16::from_be_bytes([head[14], head[15]]))];
    socket.read_exact(&mut body).unwrap();
    assert_eq!(body[..8], [127, 0, 0, 1, 127, 0, 0, 1]);
    assert_eq!(body[10..12], pair.service.listen.port().to_be_bytes());
    let mut tlvs = &body[12..];
    let mut found = Vec::new();
    while let [kind, a, b, rest @ ..] = tlvs {
        let (value, rest) = rest.split_at(usize::from(u16::from_be_bytes([*a, *b])));
        found.push((*kind, value));
        tlvs = rest;
    }
    assert!(found.contains(&(0xE0, b"spiffe://test.example/service/web".as_slice())));
    assert!(found.iter().any(|(kind, _)| *kind == 0x20));
    let mut stream = [0; 6];
    socket.read_exact(&mut stream).unwrap();
    assert_eq!(&stream, b"stream");
}

#[test]
fn a_changed_allow_list_applies_to_new_sessions_only() {
    let pair = Pair::new(&[backend(echo)]);
    let mut live = pair.connect();
    ping(&mut live, b"before").unwrap();
    let mut nobody = pair.service.clone();
    nobody.allow.clear();
    pair.apply_services(&[&nobody]);
    assert!(is_reset(&mut pair.connect()));
    expect_refused(&pair.b, Side::Service, Reason::NotAllowed);
    ping(&mut live, b"still here").unwrap();
    pair.apply_services(&[&pair.service]);
    ping(&mut pair.connect(), b"again").unwrap();
    ping(&mut live, b"and still").unwrap();
}

#[test]
fn a_removed_service_keeps_live_sessions_and_accepts_no_new_ones() {
    let pair = Pair::new(&[backend(echo)]);
    let mut live = pair.connect();
    ping(&mut live, b"before").unwrap();
    eventually("connections are idle", || sums(&pair.a).idle > 0);
    pair.apply_services(&[]);
    // An existing connection is not used either.
    assert!(is_reset(&mut pair.connect()));
    ping(&mut live, b"still here").unwrap();
    eventually("idle connections close", || sums(&pair.b).idle == 0);
    // It can be added again at once, repeatedly.
    for _ in 0..5 {
        pair.apply_services(&[&pair.service]);
        ping(&mut pair.connect(), b"back").unwrap();
        pair.apply_services(&[]);
    }
    ping(&mut live, b"all along").unwrap();
}

#[test]
fn a_removed_dial_keeps_live_sessions() {
    let pair = Pair::new(&[backend(echo)]);
    let mut live = pair.connect();
    ping(&mut live, b"before").unwrap();
    pair.a.apply(&RelaySettings::default()).unwrap();
    assert!(TcpStream::connect(pair.entry()).is_err());
    ping(&mut live, b"still here").unwrap();
    drop(live);
    eventually("the session ends", || pair.at_rest());
    eventually("its connection is not kept", || pair.b.status(10).connections.is_empty());
}

#[test]
fn a_removed_dial_keeps_no_idle_connections() {
    let pair = Pair::new(&[backend(echo)]);
    let (mut one, mut other) = (pair.connect(), pair.connect());
    ping(&mut one, b"one").unwrap();
    ping(&mut other, b"other").unwrap();
    // While the dial exists, a session's connection stays idle afterwards.
    let busy = |pair: &Pair| pair.b.status(10).connections.iter().filter(|c| c.busy).count();
    ping(&mut pair.connect(), b"third").unwrap();
    eventually("the third session ends", || busy(&pair) == 2);
    assert!(pair.b.status(10).connections.len() > 2);
    pair.a.apply(&RelaySettings::default()).unwrap();
    eventually("idle connections close", || pair.b.status(10).connections.len() == 2);
    drop(one);
    eventually("its connection closes too", || pair.b.status(10).connections.len() == 1);
    ping(&mut other, b"still here").unwrap();
}

#[test]
fn settings_with_an_address_in_use_change_nothing() {
    let pair = Pair::new(&[backend(echo)]);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut changed = pair.service.clone();
    changed.allow.clear();
    let fresh = service(free(), &[], &[]);
    let clash = service(taken.local_addr().unwrap(), &[], &[]);
    let services = vec![changed.clone(), fresh.clone(), clash];
    let error = pair
        .b
        .apply(&RelaySettings { services, dials: vec![], intercept: None })
        .unwrap_err()
        .to_string();
    let addr = taken.local_addr().unwrap().to_string();
    assert!(error.contains(&addr) && error.contains("another process"), "{error}");
    ping(&mut pair.connect(), b"as before").unwrap();
    assert!(TcpStream::connect(fresh.listen).is_err());
    // Without the conflict the same settings are applied.
    pair.apply_services(&[&changed, &fresh]);
    assert!(is_reset(&mut pair.connect()));
    assert!(TcpStream::connect(fresh.listen).is_ok());
}

#[test]
fn a_dial_off_loopback_is_rejected_and_changes_nothing() {
    let pair = Pair::new(&[backend(echo)]);
    let dials = |listen: &str| {
        let mut dial = pair.dial.clone();
        dial.listen = listen.parse().unwrap();
        pair.a.apply(&RelaySettings { services: vec![], dials: vec![dial], intercept: None })
    };
    let port = free().port();
    for host in ["0.0.0.0", "[::]", "[::ffff:0.0.0.0]", "192.0.2.1"] {
        let error = dials(&format!("{host}:{port}")).unwrap_err();
        assert!(matches!(error, ApplyError::NotLoopback { .. }), "{error}");
    }
    ping(&mut pair.connect(), b"as before").unwrap();
    // Any address of 127.0.0.0/8 is loopback.
    dials(&format!("127.0.0.2:{port}")).unwrap();
    ping(&mut connect(([127, 0, 0, 2], port).into()), b"moved").unwrap();
}

#[test]
fn a_change_between_wildcard_and_single_address_is_explained() {
    let pair = Pair::new(&[backend(echo)]);
    let mut all = pair.service.clone();
    all.listen.set_ip([0, 0, 0, 0].into());
    let apply = |s: &[&ServiceSettings]| {
        let services = s.iter().map(|s| (*s).clone()).collect();
        pair.b.apply(&RelaySettings { services, dials: vec![], intercept: None })
    };
    let (one, all) = (&pair.service, &all);
    for (before, after) in [(one, all), (all, one)] {
        let error = apply(&[after]).unwrap_err().to_string();
        let said = format!("{}: this node already listens on {}", after.listen, before.listen);
        assert!(error.contains(&said), "{error}");
        ping(&mut pair.connect(), b"as before").unwrap();
        // The advice in the message works.
        apply(&[]).unwrap();
        apply(&[after]).unwrap();
        ping(&mut pair.connect(), b"changed").unwrap();
    }
    // A single configuration may not use both either.
    apply(&[]).unwrap();
    let error = apply(&[one, all]).unwrap_err().to_string();
    assert!(error.contains("this node already"), "{error}");
}

#[test]
fn a_drain_closes_idle_connections_and_lets_sessions_finish() {
    for drained in [Side::Service, Side::Dial] {
        let pair = Pair::new(&[backend(echo)]);
        let mut live = pair.connect();
        ping(&mut live, b"before").unwrap();
        let relay = match drained {
            Side::Service => &pair.b,
            Side::Dial => &pair.a,
        };
        eventually("connections are idle", || sums(relay).idle > 0);
        thread::scope(|scope| {
            let draining = scope.spawn(|| drain(relay, Duration::from_secs(10)));
            eventually("idle connections close", || {
                relay.status(0).draining && sums(relay).idle == 0
            });
            ping(&mut live, b"not cut").unwrap();
            match drained {
                Side::Service => assert!(is_reset(&mut pair.connect())),
                Side::Dial => {
                    eventually("it stops listening", || TcpStream::connect(pair.entry()).is_err());
                }
            }
            assert!(relay.status(0).draining && !draining.is_finished());
            drop(live);
            assert_eq!(draining.join().unwrap(), 0);
        });
    }
}

#[test]
fn a_drain_resets_sessions_that_do_not_finish() {
    for drained in [Side::Service, Side::Dial] {
        let (addr, backends) = handed_over();
        let pair = Pair::new(&[addr]);
        let mut client = pair.connect();
        client.write_all(b"x").unwrap();
        let mut socket = backends.recv_timeout(Duration::from_secs(10)).unwrap();
        socket.read_exact(&mut [0]).unwrap();
        let relay = match drained {
            Side::Service => &pair.b,
            Side::Dial => &pair.a,
        };
        assert_eq!(drain(relay, Duration::from_millis(200)), 1);
        assert!(is_reset(&mut client) && is_reset(&mut socket), "{drained:?}");
        eventually("the session ends", || pair.at_rest());
    }
}

#[test]
fn a_drain_waits_for_sessions_being_opened() {
    for drained in [Side::Service, Side::Dial] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.sock");
        let busy = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        busy.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        busy.listen(0).unwrap();
        let _full = UnixStream::connect(&path).unwrap(); // its backlog: the session has to wait
        let pair = Pair::new(&[format!("unix:{}", path.display())]);
        let mut client = pair.connect();
        client.write_all(b"x").unwrap();
        thread::sleep(Duration::from_millis(300));
        assert_eq!(sums(&pair.b).live, 0);
        let relay = match drained {
            Side::Service => &pair.b,
            Side::Dial => &pair.a,
        };
        thread::scope(|scope| {
            let draining = scope.spawn(|| drain(relay, Duration::from_secs(10)));
            thread::sleep(Duration::from_millis(300));
            assert!(!draining.is_finished(), "{drained:?}");
            drop(busy.accept().unwrap());
            let (mut socket, _) = busy.accept().unwrap();
            socket.read_exact(&mut [0]).unwrap();
            socket.write_all(b"y").unwrap();
            client.read_exact(&mut [0]).unwrap();
            drop((client, socket));
            assert_eq!(draining.join().unwrap(), 0);
        });
    }
}

#[test]
fn connections_of_a_peer_are_limited() {
    let pair = Pair::with(&[backend(echo)], |service, _| service.max_per_peer = 4);
    let mut held: Vec<_> = (0..4)
        .map(|_| {
            let mut socket = pair.connect();
            ping(&mut socket, b"mine").unwrap();
            socket
        })
        .collect();
    assert!(is_reset(&mut pair.connect()));
    expect_refused(&pair.b, Side::Service, Reason::TooManyConnections);
    assert_eq!(sums(&pair.b).live, 4);
    held.iter_mut().for_each(|socket| ping(socket, b"still mine").unwrap());
    held.pop();
    eventually("there is room again", || ping(&mut pair.connect(), b"mine too").is_ok());
}

/// The child process of the test below: relays, backend and clients with one low limit.
#[test]
fn running_out_of_file_descriptors_child() {
    if std::env::var_os("WIRETIGHT_TEST_FEW_FILES").is_none() {
        return;
    }
    let pair = Pair::new(&[backend(echo)]);
    ping(&mut pair.connect(), b"before").unwrap();
    // Reserved, so that a client can still connect when all other descriptors are used.
    let mut files: Vec<_> = (0..8).map(|_| File::open("/dev/null").unwrap()).collect();
    // Connect until there are no descriptors left.
    let mut held = Vec::new();
    while let Ok(socket) = TcpStream::connect(pair.entry()) {
        held.push(socket);
        thread::sleep(Duration::from_millis(5));
    }
    // Sessions that failed for lack of descriptors have released some: use up all but the one that a client needs to
    // connect, so that accepting it must fail.
    eventually("accepting fails", || {
        while let Ok(file) = File::open("/dev/null") {
            files.push(file);
        }
        files.pop();
        held.extend(TcpStream::connect(pair.entry()));
        pair.a.status(0).accept_errors > 0
    });
    drop(files);
    drop(held);
    eventually("all sessions end", || pair.at_rest());
    for _ in 0..10 {
        ping(&mut pair.connect(), b"after").unwrap();
    }
    println!("recovered");
}

#[test]
fn running_out_of_file_descriptors_is_survived_and_reported() {
    let me = std::env::current_exe().unwrap();
    let script = "ulimit -n 96; exec \"$0\" --exact relays::running_out_of_file_descriptors_child --nocapture";
    let out = std::process::Command::new("sh")
        .args(["-c", script])
        .arg(me)
        .env("WIRETIGHT_TEST_FEW_FILES", "1")
        .output()
        .unwrap();
    let (text, why) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && text.contains("recovered"), "{text}{why}");
}
