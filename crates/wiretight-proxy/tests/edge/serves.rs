//! The edge with real clients and real programs: what passes, and in which form.

use super::rig;

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::{Buf, Bytes};
use hyper::{Method, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use rig::edge::{EdgeRig, SITE, full, http_backend, run};

fn one() -> EdgeRig {
    EdgeRig::new(&[http_backend("one", false).to_string()])
}

fn request(method: Method, path: &str) -> hyper::http::request::Builder {
    Request::builder().method(method).uri(format!("https://{SITE}{path}"))
}

#[test]
fn http1_requests_get_the_edges_headers_and_not_the_clients_claims() {
    let rig = one();
    let answer = rig.get(
        "GET /headers?q=1 HTTP/1.1\r\nX-Forwarded-For: 6.6.6.6\r\nX-Mine: 1\r\nKeep-Alive: x\r\nTE: gzip\r\n",
    );
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(head.contains("strict-transport-security: max-age=300"), "{head}");
    let port = rig.https().port();
    assert!(head.contains(&format!("alt-svc: h3=\":{port}\"; ma=86400")), "{head}");
    let expected = format!(
        "GET /headers?q=1 HTTP/1.1\nforwarded: for=127.0.0.1;host={SITE};proto=https\nhost: {SITE}\n\
         x-forwarded-for: 127.0.0.1\nx-forwarded-host: {SITE}\nx-forwarded-proto: https\nx-mine: 1\n"
    );
    assert_eq!(body, expected);
    let answer = rig.get("GET /hop HTTP/1.1\r\n");
    assert!(answer.contains("x-kept: 1") && !answer.contains("x-hop"), "{answer}");
}

#[test]
fn connections_are_reused_and_both_kinds_of_bodies_pass() {
    let rig = one();
    let mut raw = rig.raw();
    for _ in 0..3 {
        raw.send(&format!("POST /echo HTTP/1.1\r\nHost: {SITE}\r\nContent-Length: 5\r\n\r\nhello"));
        assert!(raw.until("hello").starts_with("HTTP/1.1 200"));
        raw.send(&format!(
            "POST /echo HTTP/1.1\r\nHost: {SITE}\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
        ));
        assert!(raw.until("3\r\nabc\r\n0\r\n\r\n").starts_with("HTTP/1.1 200"));
    }
    // Two requests in one packet.
    let get = format!("GET /name HTTP/1.1\r\nHost: {SITE}\r\n\r\n");
    raw.send(&format!("{get}{get}"));
    raw.until("\r\n\r\none");
    raw.until("\r\n\r\none");
    // The client waits for 100 Continue.
    raw.send(&format!(
        "POST /echo HTTP/1.1\r\nHost: {SITE}\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    ));
    raw.until("HTTP/1.1 100 Continue\r\n\r\n");
    raw.send("world");
    raw.until("world");
}

#[test]
fn the_body_of_a_get_passes() {
    let rig = one();
    let answer = rig.get("GET /headers HTTP/1.1\r\n");
    assert!(!answer.contains("chunked"), "{answer}");
    let mut raw = rig.raw();
    let head = format!("GET /echo HTTP/1.1\r\nHost: {SITE}\r\nConnection: close\r\n");
    raw.send(&format!("{head}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"));
    let answer = raw.rest();
    assert!(answer.contains("\r\n5\r\nhello\r\n0\r\n"), "{answer}");
}

#[test]
fn http2_passes_with_trailers_and_concurrent_requests() {
    let rig = one();
    run(async {
        let client = rig.http2().await;
        let mut all = Vec::new();
        for n in 0..50 {
            let mut client = client.clone();
            all.push(tokio::spawn(async move {
                let body = vec![n; 100_000];
                let post = request(Method::POST, "/echo").body(full(body.clone())).unwrap();
                let answer = client.send_request(post).await.unwrap();
                assert_eq!(answer.status(), 200);
                assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), body);
            }));
        }
        for one in all {
            one.await.unwrap();
        }
        let mut client = client;
        let get = request(Method::GET, "/headers").header("cookie", "a=1").header("cookie", "b=2");
        let answer = client.send_request(get.body(full("")).unwrap()).await.unwrap();
        let text = answer.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(text.contains("cookie: a=1; b=2\n"), "{text}");
        assert!(text.contains(&format!("host: {SITE}\n")), "{text}");
    });
}

#[test]
fn grpc_passes_to_an_http2_backend() {
    let rig = EdgeRig::new(&[format!("h2c://{}", http_backend("one", true))]);
    run(async {
        let mut client = rig.http2().await;
        let get = request(Method::POST, "/trailers").header("te", "trailers");
        let answer = client.send_request(get.body(full("x")).unwrap()).await.unwrap();
        assert_eq!(answer.headers()["x-te"], "trailers");
        let body = answer.into_body().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(body.to_bytes(), "body");
    });
}

#[test]
fn events_arrive_while_the_stream_is_open() {
    let rig = one();
    let mut raw = rig.raw();
    raw.send(&format!("GET /events HTTP/1.1\r\nHost: {SITE}\r\n\r\n"));
    raw.until("data: 0\n\n");
    raw.until("data: 1\n\n");
    run(async {
        let mut client = rig.http2().await;
        let get = request(Method::GET, "/events").body(full("")).unwrap();
        let mut body = client.send_request(get).await.unwrap().into_body();
        for n in 0..2 {
            let frame = body.frame().await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), format!("data: {n}\n\n"));
        }
    });
}

#[test]
fn websocket_data_passes_unchanged() {
    let program = rig::backend(|mut socket| {
        use std::io::{Read, Write};
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            socket.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        assert!(head.contains("\r\nconnection: upgrade\r\n"), "{head}");
        assert!(head.contains("\r\nupgrade: websocket\r\n"), "{head}");
        let answer =
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
        socket.write_all(answer.as_bytes()).unwrap();
        rig::echo(socket);
    });
    let rig = EdgeRig::new(&[program]);
    let mut raw = rig.raw();
    // Data sent ahead of the response belongs to the new protocol.
    raw.send(&format!(
        "GET /ws HTTP/1.1\r\nHost: {SITE}\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n\0early"
    ));
    let head = raw.until("\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(head.to_lowercase().contains("upgrade: websocket"), "{head}");
    raw.until("\0early");
    for n in 0..100 {
        raw.send(&format!("GET\0\r\n {n} end"));
        raw.until(&format!("GET\0\r\n {n} end"));
    }
    // A reload closes no connection.
    rig.edge.apply(&rig.settings).unwrap();
    raw.send("still");
    raw.until("still");
}

#[test]
fn http3_passes_with_bodies_and_trailers() {
    let rig = EdgeRig::new(&[format!("h2c://{}", http_backend("one", true))]);
    run(async {
        let (_endpoint, connection) = rig.quic(1 << 20).await;
        let quic = h3_quinn::Connection::new(connection);
        let (mut driver, mut client) = h3::client::new(quic).await.unwrap();
        let drive = tokio::spawn(async move {
            let _ = std::future::poll_fn(|cx| driver.poll_close(cx)).await;
        });
        for size in [0, 5, 1_000_000] {
            let body = vec![b'h'; size];
            let post = request(Method::POST, "/echo").body(()).unwrap();
            let (mut send, mut recv) = client.send_request(post).await.unwrap().split();
            let sent = body.clone();
            let sending = tokio::spawn(async move {
                send.send_data(Bytes::from(sent)).await.unwrap();
                send.finish().await.unwrap();
            });
            let answer = recv.recv_response().await.unwrap();
            assert_eq!(answer.status(), 200);
            assert!(answer.headers().get("alt-svc").is_none());
            assert!(answer.headers().contains_key("strict-transport-security"));
            let mut got = Vec::new();
            while let Some(mut data) = recv.recv_data().await.unwrap() {
                got.extend_from_slice(&data.copy_to_bytes(data.remaining()));
            }
            assert!(got == body, "{} of {} bytes", got.len(), body.len());
            sending.await.unwrap();
        }
        let get = request(Method::GET, "/headers").body(()).unwrap();
        let mut stream = client.send_request(get).await.unwrap();
        stream.finish().await.unwrap();
        assert_eq!(stream.recv_response().await.unwrap().status(), 200);
        let mut data = stream.recv_data().await.unwrap().unwrap();
        let text = data.copy_to_bytes(data.remaining());
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(!text.contains("content-length") && !text.contains("transfer-encoding"), "{text}");
        let get = request(Method::POST, "/trailers").header("te", "trailers").body(()).unwrap();
        let mut stream = client.send_request(get).await.unwrap();
        stream.finish().await.unwrap();
        stream.recv_response().await.unwrap();
        while stream.recv_data().await.unwrap().is_some() {}
        assert_eq!(stream.recv_trailers().await.unwrap().unwrap()["grpc-status"], "0");
        drop(client);
        drive.abort();
    });
    let status = rig.edge.status();
    assert_eq!(status.handshakes[0].protocol, "QUIC");
    assert_eq!(status.sites[0].requests.iter().map(|r| r.count).sum::<u64>(), 5);
}

#[test]
fn requests_are_distributed_and_a_dead_backend_loses_none() {
    let gone = rig::free().to_string();
    let all =
        [http_backend("one", false).to_string(), gone, http_backend("two", false).to_string()];
    let rig = EdgeRig::new(&all);
    for _ in 0..20 {
        let answer = rig.get("GET /name HTTP/1.1\r\n");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    let alone = EdgeRig::new(&[rig::free().to_string()]);
    let answer = alone.get("GET /name HTTP/1.1\r\n");
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
    assert!(answer.contains("strict-transport-security"), "{answer}");
}

#[test]
fn only_idempotent_requests_are_repeated() {
    use std::io::Read;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    // It accepts a request and closes the connection.
    let bad = rig::backend(move |mut socket| {
        let _ = socket.read(&mut [0; 4096]);
        counted.fetch_add(1, Relaxed);
    });
    let rig = EdgeRig::new(&[bad.clone(), http_backend("good", false).to_string()]);
    for _ in 0..4 {
        assert!(rig.get("GET /name HTTP/1.1\r\n").ends_with("good"));
    }
    assert!(calls.load(Relaxed) > 0);
    let rig = EdgeRig::new(&[bad]);
    calls.store(0, Relaxed);
    let answer = rig.get("POST /name HTTP/1.1\r\nContent-Length: 0\r\n");
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
    assert_eq!(calls.load(Relaxed), 1);
}

#[test]
fn a_changed_certificate_and_a_changed_program_take_effect_at_once() {
    let mut rig = one();
    let mut raw = rig.raw();
    let get = format!("GET /name HTTP/1.1\r\nHost: {SITE}\r\n\r\n");
    raw.send(&get);
    raw.until("one");
    let before = raw.0.conn.peer_certificates().unwrap()[0].clone();
    rig.certify(3600);
    let mut second = rig.raw();
    second.send(&get);
    second.until("one");
    assert_ne!(second.0.conn.peer_certificates().unwrap()[0], before);
    rig.settings.sites[0].to = vec![http_backend("two", false).to_string().parse().unwrap()];
    rig.edge.apply(&rig.settings).unwrap();
    // The old connection continues, and reaches the new program.
    raw.send(&get);
    raw.until("two");
}

#[test]
fn a_drain_lets_requests_finish_and_accepts_no_more() {
    let rig = one();
    let mut raw = rig.raw();
    raw.send(&format!("POST /echo HTTP/1.1\r\nHost: {SITE}\r\nContent-Length: 5\r\n\r\nhe"));
    raw.until("\r\n\r\nhe");
    let (cut, rest) = std::thread::scope(|scope| {
        let drain = scope.spawn(|| run(rig.edge.drain(Duration::from_secs(10))));
        std::thread::sleep(Duration::from_millis(300));
        assert!(std::net::TcpStream::connect(rig.https()).is_err());
        raw.send("llo");
        let rest = raw.rest();
        (drain.join().unwrap(), rest)
    });
    assert_eq!((cut, rest.as_str()), (0, "llo"));
}

/// A proxy to this address that delays data by `takes` in each direction.
async fn far(to: SocketAddr, takes: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let pipe = move |mut from: OwnedReadHalf, mut to: OwnedWriteHalf| {
        let (sent, mut arrives) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut some = [0; 4096];
            while let Ok(n @ 1..) = from.read(&mut some).await {
                let _ = sent.send((Instant::now() + takes, some[..n].to_vec()));
            }
        });
        tokio::spawn(async move {
            while let Some((at, bytes)) = arrives.recv().await {
                tokio::time::sleep_until(at).await;
                let _ = to.write_all(&bytes).await;
            }
        });
    };
    tokio::spawn(async move {
        let near = listener.accept().await.unwrap().0.into_split();
        let far = TcpStream::connect(to).await.unwrap().into_split();
        pipe(near.0, far.1);
        pipe(far.0, near.1);
    });
    addr
}

#[test]
fn a_request_in_transit_at_the_start_of_a_drain_is_served() {
    let rig = one();
    run(async {
        let mut client = rig.http2_by(far(rig.https(), Duration::from_millis(100)).await).await;
        let mut get = async || {
            let get = request(Method::GET, "/name").body(full("")).unwrap();
            let answer = client.send_request(get).await?;
            Ok::<_, hyper::Error>(answer.into_body().collect().await?.to_bytes())
        };
        assert_eq!(get().await.unwrap(), "one");
        let begun = Instant::now();
        let (cut, answer) = tokio::join!(rig.edge.drain(Duration::from_secs(10)), get());
        assert_eq!((cut, answer.unwrap()), (0, "one".into()));
        assert!(begun.elapsed() < Duration::from_secs(5), "who has gone is not waited for");
        assert!(get().await.is_err());
    });
}

#[test]
fn an_unhealthy_backend_gets_no_requests_while_another_is_healthy() {
    let (sick, well) = (http_backend("sick", false).to_string(), http_backend("well", false));
    let names = |rig: &EdgeRig| {
        let answers = (0..20).map(|_| rig.get("GET /name HTTP/1.1\r\n"));
        answers.map(|a| a.ends_with("sick")).collect::<std::collections::BTreeSet<_>>()
    };
    let down = |rig: &EdgeRig| rig.edge.status().sites[0].down.clone();
    let mut rig = EdgeRig::with(&[sick.clone(), well.to_string()], |_| {});
    // Control: without health checks both get requests.
    assert_eq!(names(&rig).len(), 2);
    rig.settings.sites[0].health = Some("/health".parse().unwrap());
    rig.edge.apply(&rig.settings).unwrap();
    rig::eventually("it is down", || down(&rig) == [sick.clone()]);
    assert_eq!(names(&rig), [false].into());
    // After health checks are disabled the backend is no longer considered down; when they are enabled again, it is.
    rig.settings.sites[0].health = None;
    rig.edge.apply(&rig.settings).unwrap();
    rig::eventually("both have requests", || names(&rig).len() == 2);
    rig.settings.sites[0].health = Some("/health".parse().unwrap());
    rig.edge.apply(&rig.settings).unwrap();
    rig::eventually("it is down again", || down(&rig) == [sick.clone()]);
    // The only backend is tried even if it is down.
    rig.settings.sites[0].to.pop();
    rig.edge.apply(&rig.settings).unwrap();
    assert_eq!(names(&rig), [true].into());
}
