//! Hostile clients.

use super::*;

#[tokio::test]
async fn clients_that_send_garbage_too_much_or_too_slowly_are_disconnected() {
    let mut world = World::new();
    world.times.first_message = Duration::from_millis(500);
    let authority = world.authority().await;
    let node = world.joined(&authority, "a", &["db"]).await;
    // An identity that the node does not have, so that no certificate is presented.
    let nobody = client_config(&node.mesh, Id::Authority, authority_id(), ALPN_CONTROL).unwrap();
    let member = client_config(&node.mesh, id("node/a"), authority_id(), ALPN_CONTROL).unwrap();

    for (who, bytes, part) in [
        (&nobody, frame(b"nonsense"), "bad_message"),
        (&nobody, frame(br#"{"type":"dance"}"#), "unknown_type"),
        (&nobody, frame(HELLO), "unknown_type"),
        (&nobody, frame(br#"{"type":"join"}"#), "bad_message"),
        (&nobody, frame(&[b"[".repeat(4000), b"]".repeat(4000)].concat()), "bad_message"),
        (&nobody, u32::MAX.to_be_bytes().to_vec(), "exceeds the limit"),
        (&nobody, (104 * 1024 + 1u32).to_be_bytes().to_vec(), "exceeds the limit"),
        (&member, frame(b"nonsense"), "bad_message"),
        (&member, frame(br#"{"type":"ping"}"#), "the first message"),
        (&member, (1024 * 1024 + 1u32).to_be_bytes().to_vec(), "exceeds the limit"),
    ] {
        let answer = talk(&mut tls(&authority, who.clone()).await, &bytes).await;
        assert!(answer.contains(part), "{answer:?} lacks {part}");
    }
    // On a stream that is already open.
    for (bytes, part) in
        [(frame(b"{}"), "bad_message"), (u32::MAX.to_be_bytes().to_vec(), "exceeds the limit")]
    {
        let bytes = [frame(HELLO), bytes].concat();
        let answer = talk(&mut tls(&authority, member.clone()).await, &bytes).await;
        assert!(answer.contains(part), "{answer:?} lacks {part}");
    }
    // Plaintext, garbage, nothing, and one byte at a time.
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x16, 3, 1, 0xff, 0xff], &[0; 100], b""] {
        let mut tcp = TcpStream::connect(authority.local_addr()).await.unwrap();
        talk(&mut tcp, bytes).await;
    }
    let began = Instant::now();
    let mut slow = tls(&authority, nobody.clone()).await;
    for byte in frame(&[b' '; 100]) {
        if slow.write_all(&[byte]).await.is_err() || slow.flush().await.is_err() {
            break;
        }
        sleep(Duration::from_millis(50)).await;
    }
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(matches!(slow.read(&mut [0; 64]).await, Ok(0) | Err(_)));

    // Members are served meanwhile.
    node.connected().await;
    let late = world.joined(&authority, "b", &[]).await;
    assert!(late.agent.ready());
}

#[tokio::test]
async fn a_silent_stream_is_closed_and_announcements_are_limited() {
    let mut world = World::new();
    world.times.silence = Duration::from_secs(1);
    let authority = world.authority().await;
    let node = world.joined(&authority, "a", &["db"]).await;
    node.agent.shutdown().await;
    let config = client_config(&node.mesh, id("node/a"), authority_id(), ALPN_CONTROL).unwrap();

    let began = Instant::now();
    talk(&mut tls(&authority, config.clone()).await, &frame(HELLO)).await;
    assert!((900..10_000).contains(&(began.elapsed().as_millis() as u64)));

    let offer = |s: &str| Offer {
        service: name(s),
        addr: "127.0.0.1:1".parse().unwrap(),
        allow: vec![],
        ports: vec![],
    };
    let announce = |offers: Vec<Offer>| {
        let message = serde_json::json!({ "type": "announce", "instances": offers });
        frame(message.to_string().as_bytes())
    };
    let many = announce(vec![offer("db"); 5000]);
    let mixed = announce(vec![offer("db"), offer("web")]);
    let bytes = [frame(HELLO), many, mixed].concat();
    let answer = talk(&mut tls(&authority, config).await, &bytes).await;
    assert!(answer.contains("5000 instances"), "{answer}");
    assert!(answer.contains("may not claim web"), "{answer}");
    // The valid half is accepted.
    assert_eq!(authority.list_nodes().await.unwrap()[0].instances, [offer("db")]);
}

#[tokio::test]
async fn a_port_in_use_is_reported() {
    let world = World::new();
    let authority = world.authority().await;
    let other = World::new();
    let e = other.authority_at(authority.local_addr()).await.err().unwrap();
    assert!(matches!(e, AuthorityError::Bind { .. }), "{e}");
    assert!(e.to_string().contains("Another program"), "{e}");
}
