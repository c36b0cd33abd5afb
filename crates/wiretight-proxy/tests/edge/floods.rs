//! The damage that a hostile HTTP/2 or HTTP/3 client can do: floods and malformed frames end only their own
//! connection. In each test, the same edge also serves a well-behaved client.

use super::rig;

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::Request;
use rustls::compress::{CertDecompressor, DecompressionFailed};
use rustls::{CertificateCompressionAlgorithm, HandshakeKind};

use rig::edge::{EdgeRig, Raw, SITE, full, http_backend, run};
use rig::frames::*;
use wiretight_proxy::Reason;

fn one() -> EdgeRig {
    EdgeRig::new(&[http_backend("one", false).to_string()])
}

/// A program that counts requests and responds.
fn counting() -> (String, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let program = rig::backend(move |mut socket| {
        let (mut buf, mut seen) = ([0; 16384], Vec::new());
        while let Ok(n @ 1..) = socket.read(&mut buf) {
            seen.extend_from_slice(&buf[..n]);
            while let Some(end) = seen.windows(4).position(|w| w == b"\r\n\r\n") {
                seen.drain(..end + 4);
                counted.fetch_add(1, Relaxed);
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none";
                if socket.write_all(answer).is_err() {
                    return;
                }
            }
        }
    });
    (program, count)
}

/// A well-behaved client, and a busy one that sends many requests on one connection and cancels some.
async fn is_served(rig: &EdgeRig) {
    let mut client = rig.http2().await;
    for n in 0..200 {
        let get = || Request::get(format!("https://{SITE}/name")).body(full("")).unwrap();
        client.ready().await.unwrap();
        if n % 4 == 0 {
            // Cancelled right after sending.
            let asked = client.send_request(get());
            let _ = tokio::time::timeout(Duration::from_millis(1), asked).await;
        }
        let answer = client.send_request(get()).await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "one");
    }
}

/// Immediate resets: the number that reach the program is limited (CVE-2023-44487).
#[test]
fn immediately_reset_requests_end_the_connection() {
    const PAIRS: usize = 100;
    const TIMES: usize = 2000;
    let (program, count) = counting();
    let rig = EdgeRig::new(&[program]);
    run(async {
        let mut client = Http2::open(&rig).await;
        let sent = client
            .flood(TIMES, |n| {
                let streams = (0..PAIRS).map(|i| (2 * (n * PAIRS + i) + 1) as u32);
                let pair =
                    |s| [get(s, "/name"), frame(RST_STREAM, 0, s, &8u32.to_be_bytes())].concat();
                streams.flat_map(pair).collect()
            })
            .await;
        assert!(sent < TIMES, "{} requests and resets", sent * PAIRS);
        client.is_ended(0, &[ENHANCE_YOUR_CALM]).await;
        is_served(&rig).await;
    });
    // At most 250 requests from the well-behaved client, and fewer than one in ten of the other client's.
    let count = count.load(Relaxed);
    assert!(count < 250 + TIMES * PAIRS / 10, "{count} requests reached the program");
}

/// Also requests that reached the program before they were reset.
#[test]
fn repeatedly_cancelled_requests_end_the_connection() {
    const AT_ONCE: usize = 50;
    const TIMES: usize = 200;
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    // It never responds.
    let program = rig::backend(move |mut socket| {
        if matches!(socket.read(&mut [0; 4096]), Ok(1..)) {
            counted.fetch_add(1, Relaxed);
        }
        let _ = socket.read(&mut [0]);
    });
    let rig = EdgeRig::new(&[program]);
    run(async {
        let mut client = Http2::open(&rig).await;
        let mut sent = 0;
        'all: for n in 0..TIMES {
            let streams = (0..AT_ONCE).map(|i| (2 * (n * AT_ONCE + i) + 1) as u32);
            let asked: Vec<u8> = streams.clone().flat_map(|s| get(s, "/name")).collect();
            let reset: Vec<u8> =
                streams.flat_map(|s| frame(RST_STREAM, 0, s, &8u32.to_be_bytes())).collect();
            if client.send(&asked).await.is_err() {
                break 'all;
            }
            sent += AT_ONCE;
            for _ in 0..200 {
                if count.load(Relaxed) >= sent {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            if client.send(&reset).await.is_err() {
                break 'all;
            }
        }
        assert!(
            sent < AT_ONCE * TIMES,
            "{} requests have reached the program",
            count.load(Relaxed)
        );
        client.is_ended(0, &[]).await;
        assert_eq!(rig.refused(Reason::TakenBack), 1);
    });
}

#[test]
fn requests_that_provoke_resets_end_the_connection() {
    let rig = one();
    run(async {
        let mut client = Http2::open(&rig).await;
        // A window update of 0 is a stream error (CVE-2025-8671).
        let sent = client
            .flood(20_000, |n| {
                let stream = 2 * n as u32 + 1;
                [post(stream, "/slurp"), frame(WINDOW_UPDATE, 0, stream, &[0; 4])].concat()
            })
            .await;
        assert!(sent < 20_000);
        client.is_ended(0, &[ENHANCE_YOUR_CALM, PROTOCOL_ERROR]).await;
        is_served(&rig).await;
    });
}

/// CVE-2024-27316 and similar.
#[test]
fn an_endless_head_ends_the_connection() {
    let rig = one();
    run(async {
        for small in [false, true] {
            let mut client = Http2::open(&rig).await;
            let block = hpack(&fields("GET", "/name"));
            client.send(&frame(HEADERS, END_STREAM, 1, &block)).await.unwrap();
            let long = "y".repeat(16_000);
            let piece = match small {
                true => frame(CONTINUATION, 0, 1, &[]),
                false => frame(CONTINUATION, 0, 1, &hpack(&[("x", &long)])),
            };
            let sent = client.flood(100_000, |_| piece.clone()).await;
            assert!(sent < 100_000, "{sent} frames of {}", piece.len());
            let reasons = [ENHANCE_YOUR_CALM, COMPRESSION_ERROR, PROTOCOL_ERROR];
            client.is_ended(1, &reasons).await;
        }
        // A head in several frames is allowed.
        let mut client = Http2::open(&rig).await;
        let block = hpack(&[fields("GET", "/name"), vec![("x", &"y".repeat(20_000))]].concat());
        let (first, rest) = block.split_at(10_000);
        let (second, third) = rest.split_at(10_000);
        let head = [
            frame(HEADERS, END_STREAM, 1, first),
            frame(CONTINUATION, 0, 1, second),
            frame(CONTINUATION, END_HEADERS, 1, third),
        ];
        client.send(&head.concat()).await.unwrap();
        assert_eq!(client.wait(HEADERS, 1).await.status(), 200);
        is_served(&rig).await;
    });
}

#[test]
fn a_too_large_head_is_rejected() {
    let rig = one();
    run(async {
        let mut client = Http2::open(&rig).await;
        let long = "y".repeat(8_000);
        let mut all = fields("GET", "/name");
        all.extend([("x", long.as_str()); 6]);
        let block = hpack(&all);
        let mut pieces = block.chunks(16_000).enumerate().map(|(n, piece)| {
            let last = if (n + 1) * 16_000 >= block.len() { END_HEADERS } else { 0 };
            match n {
                0 => frame(HEADERS, END_STREAM | last, 1, piece),
                _ => frame(CONTINUATION, last, 1, piece),
            }
        });
        let head: Vec<u8> = pieces.by_ref().flatten().collect();
        client.send(&head).await.unwrap();
        assert_eq!(client.wait(HEADERS, 1).await.status(), 431);
        // The connection continues.
        client.send(&get(3, "/name")).await.unwrap();
        assert_eq!(client.wait(DATA, 3).await.payload, b"one");
    });
}

/// A client that requests acknowledgements but does not read them is disconnected, and so is one that does nothing
/// else.
#[test]
fn floods_of_pings_and_settings_end_the_connection() {
    let secs = Duration::from_secs;
    let rig = EdgeRig::with(&[http_backend("one", false).to_string()], |settings| {
        (settings.limits.body, settings.limits.idle, settings.limits.head) =
            (secs(2), secs(6), secs(4));
    });
    let ping = frame(PING, 0, 0, &[7; 8]).repeat(1000);
    let settings = frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 9]).repeat(1000);
    // While output is blocked, nothing more is read; the connection ends at the deadline.
    let deaf = async |piece: &[u8]| {
        let mut client = Http2::silent(&rig, true).await;
        client.greet().await;
        let sent = client.flood(100_000, |_| piece.to_vec()).await;
        assert!(sent < 10_000, "{} bytes were taken", sent * piece.len());
    };
    // If the client reads, the connection counts as idle.
    let idle = async |piece: &[u8]| {
        let mut client = Http2::open(&rig).await;
        while client.send(piece).await.is_ok() {
            while client.try_next() {}
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    run(async {
        let served = is_served(&rig);
        tokio::join!(deaf(&ping), deaf(&settings), idle(&ping), idle(&settings), served);
    });
}

#[test]
fn endless_empty_frames_end_the_connection() {
    let rig = one();
    run(async {
        let mut client = Http2::open(&rig).await;
        client.send(&post(1, "/echo")).await.unwrap();
        let piece = frame(DATA, 0, 1, &[]).repeat(1000);
        let sent = client.flood(10_000, |_| piece.clone()).await;
        assert!(sent < 10_000);
        client.is_ended(1, &[ENHANCE_YOUR_CALM]).await;
        // A single empty frame is allowed.
        let mut client = Http2::open(&rig).await;
        let body = [
            post(1, "/echo"),
            frame(DATA, 0, 1, &[]),
            frame(DATA, 0, 1, b"a"),
            frame(DATA, PADDED, 1, b"\x03b\0\0\0"),
            frame(DATA, END_STREAM, 1, &[]),
        ];
        client.send(&body.concat()).await.unwrap();
        let mut got = client.wait(DATA, 1).await.payload;
        while got.len() < 2 {
            got.extend(client.wait(DATA, 1).await.payload);
        }
        assert_eq!(got, b"ab");
        is_served(&rig).await;
    });
}

#[test]
fn malformed_frames_end_the_stream_or_the_connection() {
    let rig = one();
    let u32s = |n: u32| n.to_be_bytes();
    let block = hpack(&fields("GET", "/name"));
    let head = |flags, payload: &[u8]| frame(HEADERS, flags, 1, payload);
    let both = END_HEADERS | END_STREAM;
    let open = || post(1, "/slurp");
    let after = |frames: &[Vec<u8>]| [vec![open()], frames.to_vec()].concat().concat();
    let own = [&u32s(1)[..], &[0], &block].concat();
    let protocol: &[u32] = &[PROTOCOL_ERROR];
    let size: &[u32] = &[FRAME_SIZE_ERROR, PROTOCOL_ERROR];
    let closed: &[u32] = &[STREAM_CLOSED, PROTOCOL_ERROR];
    let compression: &[u32] = &[COMPRESSION_ERROR, PROTOCOL_ERROR];
    let probes: Vec<(&str, Vec<u8>, &[u32])> = vec![
        ("a frame of 17,000 bytes", after(&[frame(DATA, 0, 1, &[0; 17_000])]), size),
        ("a frame of 16 MB, announced", vec![255, 255, 255, DATA, 0, 0, 0, 0, 1], size),
        ("HEADERS on stream 0", frame(HEADERS, both, 0, &block), protocol),
        ("HEADERS on an even stream", frame(HEADERS, both, 2, &block), protocol),
        ("an older stream", [get(5, "/name"), get(3, "/name")].concat(), closed),
        ("DATA on stream 0", frame(DATA, 0, 0, b"x"), protocol),
        ("DATA on a stream that is not open", frame(DATA, 0, 1, b"x"), closed),
        ("DATA after its end", [get(1, "/name"), frame(DATA, 0, 1, b"x")].concat(), closed),
        ("HEADERS after their end", get(1, "/name").repeat(2), closed),
        (
            "trailers that do not end it",
            after(&[head(END_HEADERS, &hpack(&[("x", "y")]))]),
            protocol,
        ),
        ("CONTINUATION of nothing", frame(CONTINUATION, END_HEADERS, 1, &block), protocol),
        (
            "a frame between HEADERS and CONTINUATION",
            [head(END_STREAM, &block), frame(PING, 0, 0, &[0; 8])].concat(),
            protocol,
        ),
        (
            "CONTINUATION of another stream",
            [head(END_STREAM, &block), frame(CONTINUATION, END_HEADERS, 3, &[])].concat(),
            protocol,
        ),
        ("padding longer than the frame", after(&[frame(DATA, PADDED, 1, b"\x09x")]), protocol),
        ("padded HEADERS without room", head(both | PADDED, b"\xff"), protocol),
        ("a stream that depends on itself", head(both | WITH_PRIORITY, &own), protocol),
        ("PRIORITY that depends on itself", frame(PRIORITY, 0, 1, &[0, 0, 0, 1, 0]), protocol),
        ("a short PRIORITY", frame(PRIORITY, 0, 1, &[0; 4]), size),
        ("PRIORITY on stream 0", frame(PRIORITY, 0, 0, &[0; 5]), protocol),
        ("a short RST_STREAM", after(&[frame(RST_STREAM, 0, 1, &[0; 3])]), size),
        ("RST_STREAM on stream 0", frame(RST_STREAM, 0, 0, &[0; 4]), protocol),
        ("RST_STREAM of an idle stream", frame(RST_STREAM, 0, 9, &[0; 4]), protocol),
        ("WINDOW_UPDATE of 0", frame(WINDOW_UPDATE, 0, 0, &[0; 4]), protocol),
        ("WINDOW_UPDATE of 0 on a stream", after(&[frame(WINDOW_UPDATE, 0, 1, &[0; 4])]), protocol),
        ("WINDOW_UPDATE of an idle stream", frame(WINDOW_UPDATE, 0, 9, &u32s(1)), protocol),
        (
            "a window of more than 2^31",
            frame(WINDOW_UPDATE, 0, 0, &u32s(0x7fff_ffff)).repeat(2),
            &[FLOW_CONTROL_ERROR],
        ),
        (
            "a stream's window of more than 2^31",
            after(&vec![frame(WINDOW_UPDATE, 0, 1, &u32s(0x7fff_ffff)); 2]),
            &[FLOW_CONTROL_ERROR],
        ),
        ("a short WINDOW_UPDATE", frame(WINDOW_UPDATE, 0, 0, &[0; 3]), size),
        ("SETTINGS on a stream", frame(SETTINGS, 0, 1, &[]), protocol),
        ("SETTINGS of five bytes", frame(SETTINGS, 0, 0, &[0; 5]), size),
        ("an ACK with settings", frame(SETTINGS, ACK, 0, &[0; 6]), size),
        ("ENABLE_PUSH of 2", frame(SETTINGS, 0, 0, &[0, 2, 0, 0, 0, 2]), protocol),
        (
            "an initial window of 2^31",
            frame(SETTINGS, 0, 0, &[0, 4, 0x80, 0, 0, 0]),
            &[FLOW_CONTROL_ERROR, PROTOCOL_ERROR],
        ),
        ("a MAX_FRAME_SIZE of 1", frame(SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 1]), protocol),
        ("a short PING", frame(PING, 0, 0, &[0; 7]), size),
        ("PING on a stream", frame(PING, 0, 1, &[0; 8]), protocol),
        ("GOAWAY on a stream", frame(GOAWAY, 0, 1, &[0; 8]), protocol),
        (
            "PUSH_PROMISE from a client",
            frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2]),
            protocol,
        ),
        ("an index beyond the table", head(both, &[0xff, 0xff, 0x00]), compression),
        ("an index of 0", head(both, &[0x80]), compression),
        ("a table of 1 GB", head(both, &[0x3f, 0xff, 0xff, 0xff, 0xff, 0x03]), compression),
        ("a number without end", head(both, &[0x7f; 200]), compression),
        ("half a block", head(both, &block[..block.len() - 2]), compression),
    ];
    run(async {
        let mut wrong = Vec::new();
        for (what, bytes, reasons) in &probes {
            let mut client = Http2::open(&rig).await;
            client.send(bytes).await.unwrap();
            let ended = tokio::time::timeout(Duration::from_secs(20), client.end(1)).await;
            match ended {
                Err(_) => wrong.push(format!("{what}: it goes on")),
                Ok(Some(reason)) if !reasons.contains(&reason) => {
                    wrong.push(format!("{what}: ended for {reason}"));
                }
                Ok(_) => {}
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
        for what in ["GET / HTTP/1.1\r\nHost: a\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"] {
            let mut client = Http2::silent(&rig, false).await;
            client.send(what.as_bytes()).await.unwrap();
            client.is_ended(0, protocol).await;
        }
        // Unknown frames are ignored.
        let mut client = Http2::open(&rig).await;
        let odd = [frame(0xfa, 0xff, 0, &[9; 100]), frame(0xfb, 0, 1, &[]), get(1, "/name")];
        client.send(&odd.concat()).await.unwrap();
        assert_eq!(client.wait(HEADERS, 1).await.status(), 200);
        is_served(&rig).await;
    });
}

#[test]
fn streams_over_the_limit_are_refused() {
    let rig = EdgeRig::with(&[http_backend("one", false).to_string()], |settings| {
        settings.limits.streams = 10;
    });
    run(async {
        let mut client = Http2::open(&rig).await;
        // All of them stay open.
        for n in 0..10 {
            client.send(&post(2 * n + 1, "/echo")).await.unwrap();
        }
        client.send(&get(21, "/name")).await.unwrap();
        assert_eq!(client.wait(RST_STREAM, 21).await.reason(), 7); // REFUSED_STREAM
        client.send(&frame(DATA, END_STREAM, 1, b"end")).await.unwrap();
        assert_eq!(client.wait(DATA, 1).await.payload, b"end");
    });
}

/// RFC 8441.
#[test]
fn a_websocket_works_over_http2() {
    let program = rig::backend(|mut socket| {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            socket.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        assert!(head.starts_with("get /ws http/1.1\r\n"), "{head}");
        for line in ["connection: upgrade", "upgrade: websocket", "sec-websocket-version: 13"] {
            assert!(head.contains(&format!("\r\n{line}\r\n")), "{head}");
        }
        assert!(head.contains("\r\nsec-websocket-key: "), "{head}");
        let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
                      Sec-WebSocket-Accept: x\r\n\r\n";
        socket.write_all(answer.as_bytes()).unwrap();
        rig::echo(socket);
    });
    let rig = EdgeRig::new(&[program]);
    let mut fields = fields("CONNECT", "/ws");
    fields.insert(1, (":protocol", "websocket"));
    fields.push(("sec-websocket-version", "13"));
    run(async {
        let mut client = Http2::open(&rig).await;
        let settings = client.wait(SETTINGS, 0).await.payload;
        let offered: Vec<_> = settings.chunks(6).collect();
        assert!(offered.contains(&[0, 8, 0, 0, 0, 1].as_slice()), "{offered:?}");
        client.send(&frame(HEADERS, END_HEADERS, 1, &hpack(&fields))).await.unwrap();
        assert_eq!(client.wait(HEADERS, 1).await.status(), 200);
        for n in 0..100 {
            let word = format!("\x01\0 {n} \r\n\r\n");
            client.send(&frame(DATA, 0, 1, word.as_bytes())).await.unwrap();
            let mut got = Vec::new();
            while got.len() < word.len() {
                got.extend(client.wait(DATA, 1).await.payload);
            }
            assert_eq!(got, word.as_bytes());
        }
        client.send(&frame(DATA, END_STREAM, 1, &[])).await.unwrap();
        while client.wait(DATA, 1).await.flags & END_STREAM == 0 {}
        // Other protocols are not supported, and a CONNECT without a protocol gets no tunnel.
        for protocol in ["connect-udp", "h2c", "connect-ip", "webtransport", "WEBSOCKET"] {
            fields[1].1 = protocol;
            let mut client = Http2::open(&rig).await;
            client.send(&frame(HEADERS, END_HEADERS, 1, &hpack(&fields))).await.unwrap();
            assert_eq!(client.wait(HEADERS, 1).await.status(), 405, "{protocol}");
        }
        let mut client = Http2::open(&rig).await;
        let tunnel = hpack(&[(":method", "CONNECT"), (":authority", SITE)]);
        client.send(&frame(HEADERS, END_HEADERS, 1, &tunnel)).await.unwrap();
        assert_eq!(client.wait(HEADERS, 1).await.status(), 405);
    });
}

#[test]
fn a_program_that_does_not_switch_protocols_gets_no_tunnel_over_http2() {
    let rig = EdgeRig::new(&[rig::backend(|mut socket| {
        let _ = socket.read(&mut [0; 4096]);
        let _ = socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    })]);
    let mut fields = fields("CONNECT", "/ws");
    fields.insert(1, (":protocol", "websocket"));
    run(async {
        let mut client = Http2::open(&rig).await;
        client.send(&frame(HEADERS, END_HEADERS, 1, &hpack(&fields))).await.unwrap();
        assert_eq!(client.wait(HEADERS, 1).await.status(), 502);
    });
}

/// An HTTP/3 connection with an open control stream.
async fn http3(rig: &EdgeRig) -> (quinn::Endpoint, quinn::Connection, quinn::SendStream) {
    let (endpoint, connection) = rig.quic(1 << 20).await;
    let mut control = connection.open_uni().await.unwrap();
    control.write_all(&[varint(0), frame3(4, &[])].concat()).await.unwrap();
    (endpoint, connection, control)
}

/// Writes this repeatedly until the other end stops it or has accepted `most` bytes; returns how many it accepted.
async fn pour(stream: &mut quinn::SendStream, piece: &[u8], most: usize) -> usize {
    let mut sent = 0;
    while sent < most {
        match stream.write(&piece[sent % piece.len()..]).await {
            Ok(n) => sent += n,
            Err(_) => break,
        }
    }
    sent
}

async fn is_served_by_http3(rig: &EdgeRig) {
    let (_endpoint, connection, _control) = http3(rig).await;
    for n in 0..50 {
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        send.write_all(&frame3(1, &qpack(&fields("GET", "/name")))).await.unwrap();
        if n % 4 == 0 {
            send.reset(0x10cu32.into()).unwrap(); // H3_REQUEST_CANCELLED
            let _ = recv.stop(0x10cu32.into());
            continue;
        }
        send.finish().unwrap();
        assert!(recv.read_to_end(100_000).await.unwrap().ends_with(b"one"));
    }
}

#[test]
fn endless_http3_frames_are_not_buffered() {
    const MOST: usize = 64 << 20;
    let rig = EdgeRig::with(&[http_backend("one", false).to_string()], |settings| {
        settings.limits.head = Duration::from_secs(2);
        settings.limits.body = Duration::from_secs(2);
    });
    let head = frame3(1, &qpack(&fields("POST", "/slurp")));
    let long = |kind| [varint(kind), varint(1 << 40)].concat();
    let trailers = [head.clone(), frame3(0, b"x"), long(1)].concat();
    let probes: Vec<(&str, Vec<u8>, Vec<u8>)> = vec![
        ("a head without an end", long(1), vec![0; 16_384]),
        ("trailers without an end", trailers, vec![0; 16_384]),
        ("an unknown frame", long(0x21), vec![0; 16_384]),
        ("such a frame in a body", [head.clone(), long(0x21)].concat(), vec![0; 16_384]),
    ];
    run(async {
        for (what, begin, piece) in &probes {
            let (_endpoint, connection, _control) = http3(&rig).await;
            let (mut send, _recv) = connection.open_bi().await.unwrap();
            send.write_all(begin).await.unwrap();
            let sent = pour(&mut send, piece, MOST).await;
            assert!(sent < MOST, "{what}: {sent} bytes were taken");
        }
        is_served_by_http3(&rig).await;
    });
}

#[test]
fn small_http3_frames_are_not_buffered_until_the_program_reads() {
    const MOST: usize = 16 << 20;
    // It reads nothing until told to.
    let (tell, told) = std::sync::mpsc::channel::<()>();
    let told = Arc::new(std::sync::Mutex::new(told));
    let program = rig::backend(move |mut socket| {
        let _ = told.lock().unwrap().recv();
        let mut buf = [0; 65536];
        while matches!(socket.read(&mut buf), Ok(1..)) {}
    });
    let rig = EdgeRig::new(&[program]);
    run(async {
        let (_endpoint, connection, _control) = http3(&rig).await;
        let (mut send, _recv) = connection.open_bi().await.unwrap();
        send.write_all(&frame3(1, &qpack(&fields("POST", "/slurp")))).await.unwrap();
        let piece = frame3(0, b"x").repeat(5000);
        let mut sent = 0;
        let quiet = Duration::from_secs(2);
        while let Ok(more) =
            tokio::time::timeout(quiet, send.write(&piece[sent % piece.len()..])).await
        {
            sent += more.unwrap();
            assert!(sent < MOST, "{sent} bytes that nobody has asked for");
        }
        tell.send(()).unwrap();
        // Now the data flows.
        let more = sent + (4 << 20);
        while sent < more {
            sent += send.write(&piece[sent % piece.len()..]).await.unwrap();
        }
    });
}

#[test]
fn malformed_http3_ends_the_stream_or_the_connection() {
    const CREATION: u64 = 0x103;
    const CRITICAL: u64 = 0x104;
    const UNEXPECTED: u64 = 0x105;
    const SETTINGS: u64 = 0x109;
    const MISSING: u64 = 0x10a;
    let rig = one();
    let good = frame3(1, &qpack(&fields("GET", "/name")));
    let request = |before: &[(&'static str, &'static str)], after: &[_]| {
        frame3(1, &qpack(&[before, &fields("GET", "/name"), after].concat()))
    };
    let reason = |connection: &quinn::Connection| match connection.close_reason() {
        Some(quinn::ConnectionError::ApplicationClosed(close)) => close.error_code.into_inner(),
        other => panic!("{other:?}"),
    };
    run(async {
        // On the control stream.
        for (what, bytes) in [
            ("HEADERS", good.clone()),
            ("DATA", frame3(0, b"x")),
            ("SETTINGS again", frame3(4, &[])),
            ("PUSH_PROMISE", frame3(5, &[0, 0])),
            ("a frame of HTTP/2", frame3(6, &[0; 8])),
        ] {
            let (_endpoint, connection, mut control) = http3(&rig).await;
            let _ = control.write_all(&bytes).await;
            let closed = tokio::time::timeout(Duration::from_secs(10), connection.closed()).await;
            assert!(closed.is_ok(), "{what} on the control stream: it goes on");
            assert_eq!(reason(&connection), UNEXPECTED, "{what} on the control stream");
        }
        let (_endpoint, connection, mut control) = http3(&rig).await;
        control.finish().unwrap();
        connection.closed().await;
        assert_eq!(reason(&connection), CRITICAL);
        let (_endpoint, connection, _control) = http3(&rig).await;
        let mut second = connection.open_uni().await.unwrap();
        second.write_all(&[varint(0), frame3(4, &[])].concat()).await.unwrap();
        connection.closed().await;
        assert_eq!(reason(&connection), CREATION);
        let (_endpoint, connection) = rig.quic(1 << 20).await;
        let mut control = connection.open_uni().await.unwrap();
        control.write_all(&[varint(0), frame3(7, &[0])].concat()).await.unwrap();
        connection.closed().await;
        assert!([MISSING, 0].contains(&reason(&connection)));
        let (_endpoint, connection) = rig.quic(1 << 20).await;
        let mut control = connection.open_uni().await.unwrap();
        let twice = [0, 6, 0x20, 0, 6, 0x20];
        control.write_all(&[varint(0), frame3(4, &twice)].concat()).await.unwrap();
        connection.closed().await;
        assert!([SETTINGS, 0].contains(&reason(&connection)));
        // More data than a connection needs.
        let (_endpoint, _connection, mut control) = http3(&rig).await;
        let sent = pour(&mut control, &frame3(0x21, &[0; 1000]), 64 << 20).await;
        assert!(sent < 64 << 20, "{sent} bytes on the control stream");
        // On a request stream: the program must not respond.
        for (what, bytes) in [
            ("DATA first", [frame3(0, b"x"), good.clone()].concat()),
            ("SETTINGS", [frame3(4, &[]), good.clone()].concat()),
            ("half a frame", good[..good.len() - 3].to_vec()),
            ("half a block", frame3(1, &qpack(&fields("GET", "/name"))[..30])),
            ("an index beyond the table", frame3(1, &[0, 0, 0xff, 0xff, 0x00])),
            ("a dynamic index", frame3(1, &[2, 0, 0x80])),
            ("nothing", Vec::new()),
            ("a method twice", request(&[], &[(":method", "GET")])),
            ("a path twice", request(&[(":path", "/")], &[])),
            ("a path after other fields", request(&[("a", "b")], &[(":path", "/name")])),
            ("an authority after other fields", request(&[("a", "b")], &[(":authority", SITE)])),
            ("a status", request(&[(":status", "200")], &[])),
            ("a protocol without CONNECT", request(&[(":protocol", "websocket")], &[])),
        ] {
            let (_endpoint, connection, _control) = http3(&rig).await;
            let (mut send, mut recv) = connection.open_bi().await.unwrap();
            let _ = send.write_all(&bytes).await;
            let _ = send.finish();
            let got = recv.read_to_end(100_000).await.unwrap_or_default();
            assert!(!got.ends_with(b"one"), "{what}");
        }
        is_served_by_http3(&rig).await;
    });
}

/// Counts compressed certificates.
#[derive(Debug)]
struct Counting(&'static dyn CertDecompressor, AtomicUsize);

impl CertDecompressor for Counting {
    fn decompress(&self, input: &[u8], output: &mut [u8]) -> Result<(), DecompressionFailed> {
        self.1.fetch_add(1, Relaxed);
        self.0.decompress(input, output)
    }

    fn algorithm(&self) -> CertificateCompressionAlgorithm {
        self.0.algorithm()
    }
}

/// RFC 8879.
#[test]
fn certificates_are_compressed_if_the_client_supports_it() {
    static ZLIB: Counting = Counting(rustls::compress::ZLIB_DECOMPRESSOR, AtomicUsize::new(0));
    static BROTLI: Counting = Counting(rustls::compress::BROTLI_DECOMPRESSOR, AtomicUsize::new(0));
    let rig = one();
    let offers: [Vec<&'static dyn CertDecompressor>; 3] = [vec![&ZLIB], vec![&BROTLI], vec![]];
    for offer in offers {
        let mut config = rig.client(&["http/1.1"]);
        config.cert_decompressors = offer;
        let mut raw = Raw::over(rig::connect(rig.https()), config, SITE);
        raw.send(&format!("GET /name HTTP/1.1\r\nHost: {SITE}\r\nConnection: close\r\n\r\n"));
        assert!(raw.rest().ends_with("one"));
    }
    assert_eq!((ZLIB.1.load(Relaxed), BROTLI.1.load(Relaxed)), (1, 1));
}

#[test]
fn sessions_are_resumed_except_on_sites_for_members() {
    for members in [false, true] {
        let rig = EdgeRig::with(&[http_backend("one", false).to_string()], |settings| {
            settings.sites[0].clients = members.then(|| vec!["service/web".parse().unwrap()]);
        });
        let config = rig.client_as(&["http/1.1"], members.then_some("service/web"));
        let connect = || {
            let mut raw = Raw::over(rig::connect(rig.https()), config.clone(), SITE);
            raw.send(&format!("GET /name HTTP/1.1\r\nHost: {SITE}\r\nConnection: close\r\n\r\n"));
            assert!(raw.rest().ends_with("one"));
            (raw.0.conn.handshake_kind().unwrap(), raw.0.conn.tls13_tickets_received())
        };
        let (kind, tickets) = connect();
        assert_eq!((kind, tickets > 0), (HandshakeKind::Full, !members));
        let again = if members { HandshakeKind::Full } else { HandshakeKind::Resumed };
        assert_eq!(connect().0, again);
    }
}
