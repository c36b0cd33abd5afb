//! Announcements of members: each record is checked, changes are collected, and other updates are never delayed.

use super::*;
use serde_json::{Value, json};
use tokio_rustls::client::TlsStream;

/// A member that sends arbitrary messages, with the certificate of a node that has stopped.
async fn member(authority: &AuthorityHandle, node: &Node, who: &str) -> TlsStream<TcpStream> {
    let config = client_config(&node.mesh, id(who), authority_id(), ALPN_CONTROL).unwrap();
    tls(authority, config).await
}

fn message(kind: &str, instances: &Value) -> Vec<u8> {
    frame(json!({ "type": kind, "have": 0, "instances": instances }).to_string().as_bytes())
}

fn ports_of(node: &Node, service: &str) -> Option<Vec<Vec<u16>>> {
    let registry = node.mesh.registry();
    let instances = registry.services.get(&name(service))?;
    Some(instances.iter().map(|i| i.ports.clone()).collect())
}

#[tokio::test]
async fn hostile_records_are_dropped_and_reported_and_harm_nobody_else() {
    let world = World::new();
    let authority = world.authority().await;
    let bad = world.joined(&authority, "bad", &["evil"]).await;
    bad.agent.shutdown().await;
    let witness = world.joined(&authority, "witness", &[]).await;
    let third = world.joined(&authority, "third", &[]).await;
    let serial = third.identity("node/third").leaf().serial;

    let all: Vec<u16> = (1..=16_500).collect();
    let record = |addr: &str, ports: &[u16]| json!({ "service": "evil", "addr": addr, "allow": [], "ports": ports });
    let records = json!([
        record("127.0.0.1:1", &all),
        record("0.0.0.0:2", &[80]),
        record("[::]:3", &[80]),
        record("127.0.0.1:0", &[80]),
        record("127.0.0.1:4", &[0, 80]),
        record("255.255.255.255:5", &[80]),
        record("192.0.2.123:123", &[123]),
        record("ntp.example.org:123", &[123]),
        { "service": "db", "addr": "127.0.0.1:6", "allow": [] },
        { "service": 7 },
        "nonsense",
        record("127.0.0.1:7", &[81, 81]),
        record("127.0.0.1:7", &[81]),
    ]);
    let mut stream = member(&authority, &bad, "node/bad").await;
    stream.write_all(&message("hello", &records)).await.unwrap();
    until("the valid records are announced", || {
        ports_of(&witness, "evil").is_some_and(|p| p.len() == 3)
    })
    .await;
    assert_eq!(ports_of(&witness, "evil").unwrap(), [vec![], vec![], vec![81]]);
    assert!(!witness.knows_service("db"));

    // The refusal is shown to the operator and to the member itself, and the stream stays open.
    let shown = authority.list_nodes().await.unwrap();
    let shown = shown.into_iter().find(|n| n.name == name("bad")).unwrap();
    let why = shown.refused.unwrap();
    for part in [
        "3 records are unreadable",
        "16500 ports",
        "0.0.0.0:2",
        "[::]:3",
        "port 0",
        "255.255.255.255",
        "node grant bad --add --address 192.0.2.123",
        "--address ntp.example.org",
        "may not claim db",
    ] {
        assert!(why.contains(part), "{why} lacks {part}");
    }
    assert!(shown.connected);

    // Other nodes are served meanwhile, and revocations arrive.
    let late = world.joined(&authority, "late", &["web"]).await;
    until("a new service is known", || witness.knows_service("web")).await;
    authority.remove_node(name("third")).await.unwrap();
    until("it is revoked", || witness.mesh.bundle().is_revoked(&serial)).await;
    assert!(late.agent.ready() && witness.mesh.unused().is_empty());
}

#[tokio::test]
async fn another_address_is_announced_after_it_was_granted() {
    let world = World::new();
    let authority = world.authority().await;
    let token = token(&authority, "a", &["db"]).await;
    let mut params = world.params("a", given(token), &["db"]);
    params.instances[0].advertise = Some("192.0.2.7:7432".parse().unwrap());
    let mesh = Mesh::new(td());
    let agent = Agent::start(params.clone(), mesh.clone()).await.unwrap();
    let node = Node { agent, mesh };
    node.ready().await;
    until("it is refused", || node.agent.status().refused.is_some()).await;
    let refused = node.agent.status().refused.unwrap();
    assert_eq!(refused.code, Code::NotAllowed);
    let command = "wiretight node grant a --add --address 192.0.2.7";
    assert!(refused.message.contains(command), "{refused}");
    assert!(!node.knows_service("db"));

    // Another address is still not announced.
    let grant = async |address: &str, how| {
        authority.grant_addresses(name("a"), vec![address.parse().unwrap()], how).await.unwrap();
    };
    grant("192.0.2.8", Grant::Add).await;
    grant("192.0.2.7", Grant::Add).await;
    until("it is announced", || node.knows_service("db")).await;
    until("nothing is refused", || node.agent.status().refused.is_none()).await;
    grant("192.0.2.9", Grant::Replace).await;
    until("it is withdrawn", || !node.knows_service("db")).await;
    node.agent.shutdown().await;

    // A token can grant it from the beginning.
    let made = authority.create_token_at(
        name("b"),
        vec![name("db")],
        vec!["DB.Example.Org".parse().unwrap()],
        HOUR,
    );
    let mut params = world.params("b", given(made.await.unwrap()), &["db"]);
    params.instances[0].advertise = Some("db.example.org:7432".parse().unwrap());
    let mesh = Mesh::new(td());
    let agent = Agent::start(params, mesh.clone()).await.unwrap();
    let other = Node { agent, mesh };
    other.ready().await;
    until("it is announced", || other.knows_service("db")).await;
    assert_eq!(other.agent.status().refused, None);
}

#[tokio::test]
async fn frequent_changes_of_an_announcement_are_pushed_at_a_limited_rate() {
    let world = World::new();
    let authority = world.authority().await;
    let bad = world.joined(&authority, "bad", &["evil"]).await;
    bad.agent.shutdown().await;
    let witness = world.joined(&authority, "witness", &[]).await;
    let third = world.joined(&authority, "third", &[]).await;
    let serial = third.identity("node/third").leaf().serial;
    settle(&authority).await;
    let before = authority.ca_status().version;

    let mut stream = member(&authority, &bad, "node/bad").await;
    stream.write_all(&message("hello", &json!([]))).await.unwrap();
    for n in 1..=400u16 {
        let record = json!({ "service": "evil", "addr": "127.0.0.1:1", "allow": [], "ports": [n] });
        stream.write_all(&message("announce", &json!([record]))).await.unwrap();
        if n % 8 == 0 {
            sleep(Duration::from_millis(12)).await;
        }
    }
    // Other changes are pushed at once.
    let began = Instant::now();
    authority.remove_node(name("third")).await.unwrap();
    until("it is revoked", || witness.mesh.bundle().is_revoked(&serial)).await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let told = authority.ca_status().version - before;
    assert!(told > 2, "control: some of the changes are pushed");
    // Versions count all changes of the store, not only these.
    assert!(told < 250, "{told}");
    // In the end the newest announcement is in force.
    until("the last announcement is pushed", || {
        ports_of(&witness, "evil") == Some(vec![vec![400]])
    })
    .await;
}
