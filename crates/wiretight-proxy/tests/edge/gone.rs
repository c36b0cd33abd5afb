//! Clients that disconnect, that do not read responses, or that are rejected while they still send; each with a
//! well-behaved counterpart.

use super::rig;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use rig::edge::{EdgeRig, SITE, http_backend, run};
use rig::frames::*;
use wiretight_proxy::Reason;

/// A program that responds to `/events` with an endless stream, and to `/silent` not at all; and the number of its
/// connections.
fn holding() -> (String, Arc<AtomicUsize>) {
    let held = Arc::new(AtomicUsize::new(0));
    let count = held.clone();
    let program = rig::backend(move |mut socket| {
        count.fetch_add(1, SeqCst);
        let mut head = [0; 4096];
        let n = socket.read(&mut head).unwrap_or(0);
        if head[..n].starts_with(b"GET /events") {
            let answer = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 0\n\n";
            socket.write_all(answer.as_bytes()).unwrap();
        }
        while matches!(socket.read(&mut head), Ok(1..)) {}
        count.fetch_sub(1, SeqCst);
    });
    (program, held)
}

#[test]
fn a_disconnecting_client_frees_its_backend_on_each_protocol() {
    let (program, held) = holding();
    let rig = EdgeRig::new(&[program]);
    let expect = |n: usize, what: &str| rig::eventually(what, || held.load(SeqCst) == n);
    let get = |path: &str, more: &str| format!("GET {path} HTTP/1.1\r\nHost: {SITE}\r\n{more}\r\n");
    for path in ["/events", "/silent"] {
        for (what, request) in [
            ("alone", get(path, "")),
            ("pipelined", get(path, "") + &get(path, "")),
            ("pipelined in part", get(path, "") + "GET /"),
            ("with malformed data after it", get(path, "") + "\r\n\r\n"),
            ("after a refused upgrade", get(path, "Connection: upgrade\r\nUpgrade: h2c\r\n")),
            ("after another", get(path, "Connection: upgrade\r\nUpgrade: websocket\r\n")),
        ] {
            let mut raw = rig.raw();
            raw.send(&request);
            if path == "/events" {
                raw.until("data: 0\n\n");
            }
            expect(1, &format!("{path} {what} begins"));
            drop(raw);
            expect(0, &format!("{path} {what} ends"));
        }
        run(async {
            let mut client = Http2::open(&rig).await;
            client.send(&rig::frames::get(1, path)).await.unwrap();
            client.send(&rig::frames::get(3, path)).await.unwrap();
            expect(2, "HTTP/2 begins");
            client.send(&frame(RST_STREAM, 0, 1, &[0, 0, 0, 8])).await.unwrap();
            let program = held.clone();
            wait(&program, 1).await;
            client.close().await;
            wait(&program, 0).await;
            // HTTP/3: first a stream ends, then the connection.
            let (endpoint, connection) = rig.quic(1 << 20).await;
            let mut control = connection.open_uni().await.unwrap();
            control.write_all(&[varint(0), frame3(4, &[])].concat()).await.unwrap();
            let mut streams = Vec::new();
            for _ in 0..10 {
                let (mut send, recv) = connection.open_bi().await.unwrap();
                send.write_all(&frame3(1, &qpack(&fields("GET", path)))).await.unwrap();
                send.finish().unwrap();
                streams.push((send, recv));
            }
            wait(&program, 10).await;
            for (_, recv) in &mut streams[..5] {
                recv.stop(0x10cu32.into()).unwrap(); // H3_REQUEST_CANCELLED
            }
            wait(&program, 5).await;
            connection.close(0x100u32.into(), b"");
            endpoint.wait_idle().await;
            wait(&program, 0).await;
        });
    }
}

/// Lets the client's tasks run meanwhile.
async fn wait(held: &AtomicUsize, n: usize) {
    for _ in 0..2000 {
        if held.load(SeqCst) == n {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{} are held, not {n}", held.load(SeqCst));
}

#[test]
fn pipelined_requests_are_served_in_order() {
    let rig = EdgeRig::new(&[http_backend("one", false).to_string()]);
    let mut raw = rig.raw();
    let get = format!("GET /big/262144 HTTP/1.1\r\nHost: {SITE}\r\n\r\n");
    let post = format!("POST /echo HTTP/1.1\r\nHost: {SITE}\r\nContent-Length: 200000\r\n\r\n");
    let end = format!("GET /name HTTP/1.1\r\nHost: {SITE}\r\nConnection: close\r\n\r\n");
    // More than the edge reads ahead of a response.
    let body = "z".repeat(200_000);
    raw.send(&format!("{get}{get}{post}{body}{get}{end}"));
    let answers = raw.rest();
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 5);
    assert_eq!(answers.matches('z').count(), 200_000);
    assert!(answers.ends_with("one"));
}

#[test]
fn unread_responses_are_cancelled_and_slowly_read_ones_are_not() {
    let to = [http_backend("one", false).to_string()];
    let rig = EdgeRig::with(&to, |settings| settings.limits.body = Duration::from_secs(1));
    let window = |n: u32| frame(SETTINGS, 0, 0, &[&[0, 4], &n.to_be_bytes()[..]].concat());
    let more = |stream, n: u32| frame(WINDOW_UPDATE, 0, stream, &n.to_be_bytes());
    run(async {
        // No window at all, and one that is smaller than the response.
        for (size, path) in [(0, "/big/1048576"), (1, "/name")] {
            let mut client = Http2::open(&rig).await;
            client.send(&window(size)).await.unwrap();
            client.send(&get(1, path)).await.unwrap();
            client.wait(RST_STREAM, 1).await;
            // The connection continues.
            client.send(&[get(3, "/name"), more(3, 100)].concat()).await.unwrap();
            client.wait(DATA, 3).await;
        }
        let mut client = Http2::open(&rig).await;
        client.send(&window(0)).await.unwrap();
        client.send(&get(1, "/big/65536")).await.unwrap();
        let mut got = 0;
        for n in 1..=4 {
            tokio::time::sleep(Duration::from_millis(400)).await;
            client.send(&more(1, 8192)).await.unwrap();
            while got < n * 8192 {
                got += client.wait(DATA, 1).await.payload.len();
            }
        }
        client.send(&frame(RST_STREAM, 0, 1, &[0, 0, 0, 8])).await.unwrap();
        // HTTP/3: a response that was passed to the library completely, and one that was not.
        for path in ["/big/65536", "/big/8388608"] {
            let before = rig.refused(Reason::Stalled);
            let (_endpoint, connection) = rig.quic(1000).await;
            let mut control = connection.open_uni().await.unwrap();
            control.write_all(&[varint(0), frame3(4, &[])].concat()).await.unwrap();
            let (mut send, mut recv) = connection.open_bi().await.unwrap();
            send.write_all(&frame3(1, &qpack(&fields("GET", path)))).await.unwrap();
            send.finish().unwrap();
            while rig.refused(Reason::Stalled) == before {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            assert!(recv.read_to_end(10 << 20).await.is_err());
            // A stream that reads its response.
            let (mut send, mut recv) = connection.open_bi().await.unwrap();
            send.write_all(&frame3(1, &qpack(&fields("GET", "/name")))).await.unwrap();
            send.finish().unwrap();
            let answer = recv.read_to_end(100_000).await.unwrap();
            assert!(answer.windows(3).any(|at| at == b"one"));
        }
    });
}

#[test]
fn a_websocket_is_closed_if_its_client_does_not_read() {
    let gone = Arc::new(AtomicUsize::new(0));
    let count = gone.clone();
    let program = rig::backend(move |mut socket| {
        let _ = socket.read(&mut [0; 4096]);
        let answer =
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
        socket.write_all(answer.as_bytes()).unwrap();
        while socket.write_all(&[0; 65536]).is_ok() {}
        count.fetch_add(1, SeqCst);
    });
    let rig = EdgeRig::with(&[program], |settings| settings.limits.body = Duration::from_secs(1));
    let mut raw = rig.raw();
    raw.send(&format!(
        "GET / HTTP/1.1\r\nHost: {SITE}\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    ));
    run(async {
        let mut client = Http2::open(&rig).await;
        let mut head = fields("CONNECT", "/ws");
        head.insert(1, (":protocol", "websocket"));
        client.send(&frame(HEADERS, END_HEADERS, 1, &hpack(&head))).await.unwrap();
        wait(&gone, 2).await;
    });
}

#[test]
fn error_responses_reach_a_client_that_is_still_sending() {
    let program = rig::backend(|mut socket| {
        let mut body = [0; 65536];
        while matches!(socket.read(&mut body), Ok(1..)) {}
    });
    let rig = EdgeRig::with(&[program], |settings| settings.sites[0].max_body = 100_000);
    // Like most clients: send the whole body first, whatever happens.
    let upload = |socket: &mut dyn ReadWrite, head: &str, piece: &[u8]| {
        let _ = socket.write_all(head.as_bytes());
        for _ in 0..100 {
            if socket.write_all(piece).is_err() {
                break;
            }
        }
        let mut answer = [0; 64];
        let n = socket.read(&mut answer).unwrap_or(0);
        String::from_utf8_lossy(&answer[..n]).into_owned()
    };
    let chunk = [b"10000\r\n".as_slice(), &[b'x'; 65536], b"\r\n"].concat();
    for n in 0..20 {
        let (length, piece) = match n % 2 {
            0 => ("Content-Length: 6553600", vec![b'x'; 65536]),
            _ => ("Transfer-Encoding: chunked", chunk.clone()),
        };
        let head = format!("POST /echo HTTP/1.1\r\nHost: {SITE}\r\n{length}\r\n\r\n");
        let answer = upload(&mut rig.raw().0, &head, &piece);
        assert!(answer.starts_with("HTTP/1.1 413 "), "{n}: {answer:?}");
    }
    for n in 0..5 {
        let mut socket: TcpStream = rig::connect(rig.settings.http[0]);
        let head = format!("POST / HTTP/1.1\r\nHost: {SITE}\r\nContent-Length: 6553600\r\n\r\n");
        let answer = upload(&mut socket, &head, &[b'x'; 65536]);
        assert!(answer.starts_with("HTTP/1.1 308 "), "{n}: {answer:?}");
    }
    // A rejected head.
    for n in 0..5 {
        let head = format!("POST / HTTP/1.1\r\nHost: {SITE}\r\nx : y\r\n\r\n");
        let answer = upload(&mut rig.raw().0, &head, &[b'x'; 65536]);
        assert!(answer.starts_with("HTTP/1.1 400 "), "{n}: {answer:?}");
    }
}

trait ReadWrite: Read + Write {}

impl<T: Read + Write> ReadWrite for T {}

/// First packets of QUIC connections by clients that never respond.
async fn initials(rig: &EdgeRig, n: usize) -> Vec<Vec<u8>> {
    let sink = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (endpoint, _connection) = rig.quic(1 << 20).await;
    let to = sink.local_addr().unwrap();
    // Distinguished by the connection ID that the client chose for the server (RFC 9000, section 17.2).
    let mut packets = std::collections::BTreeMap::new();
    let mut connecting = Vec::new();
    while packets.len() < n {
        connecting.push(endpoint.connect(to, SITE).unwrap());
        let mut packet = vec![0; 2000];
        let read = tokio::time::timeout(Duration::from_secs(1), sink.recv(&mut packet));
        if let Ok(Ok(len)) = read.await {
            packet.truncate(len);
            packets.entry(packet[6..6 + usize::from(packet[5])].to_vec()).or_insert(packet);
        }
    }
    packets.into_values().collect()
}

#[test]
fn many_unvalidated_quic_clients_get_a_retry() {
    const MANY: usize = 160;
    let to = [http_backend("one", false).to_string()];
    let rig = EdgeRig::by(1, &to, |settings| {
        settings.limits.handshake = Duration::from_secs(60);
    });
    run(async {
        let packets = initials(&rig, MANY).await;
        let mut retries = 0;
        let mut sockets = Vec::new();
        for packet in packets {
            let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
            socket.send_to(&packet, rig.https()).await.unwrap();
            let mut answer = [0; 2000];
            let read = socket.recv(&mut answer);
            if let Ok(Ok(_)) = tokio::time::timeout(Duration::from_millis(50), read).await {
                // A long header of type Retry (RFC 9000, section 17.2.5).
                retries += usize::from(answer[0] & 0xf0 == 0xf0);
            }
            sockets.push(socket);
        }
        assert!((1..=MANY - 100).contains(&retries), "{retries} of {MANY} were asked");
        // A real client validates its address and is served.
        let (_endpoint, connection) = rig.quic(1 << 20).await;
        let mut control = connection.open_uni().await.unwrap();
        control.write_all(&[varint(0), frame3(4, &[])].concat()).await.unwrap();
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        send.write_all(&frame3(1, &qpack(&fields("GET", "/name")))).await.unwrap();
        send.finish().unwrap();
        let answer = recv.read_to_end(100_000).await.unwrap();
        assert!(answer.windows(3).any(|at| at == b"one"));
    });
}
