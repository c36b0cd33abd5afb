//! Records that edges of a service share: who may read and write them, their limits, and what remains available without
//! the authority.

use wiretight::agent::{SharedStore, SharedTimes};
use wiretight::control::{Blob, MAX_SHARED_VALUE, SharedRecord};
use wiretight_store::{Change, Error};

use super::*;

const SITE: &str = "edge/service/www/site/www.example.org";

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn times() -> SharedTimes {
    let (stream, retry) = (Duration::from_secs(5), Duration::from_millis(100));
    SharedTimes { stream, retry, answer: Duration::from_secs(5) }
}

/// An edge on its own machine.
struct Edge {
    node: Node,
    store: SharedStore,
}

impl Edge {
    async fn start(world: &World, disk: &Arc<dyn Store>, node: &str, token: TokenSource) -> Edge {
        Edge::patient(world, disk, node, token, times()).await
    }

    async fn patient(
        world: &World,
        disk: &Arc<dyn Store>,
        node: &str,
        token: TokenSource,
        times: SharedTimes,
    ) -> Edge {
        let opened = SharedStore::open(disk.clone(), name("www"), times).await;
        let (store, errands) = opened.unwrap();
        let (params, mesh) = (world.params(node, token, &[]), Mesh::new(td()));
        let agent = Agent::start_sharing(params, mesh.clone(), Some(errands)).await.unwrap();
        Edge { node: Node { agent, mesh }, store }
    }

    async fn joined(world: &World, authority: &AuthorityHandle, node: &str, may: &[&str]) -> Edge {
        let token = given(token(authority, node, may).await);
        let edge = Edge::start(world, &disk(), node, token).await;
        edge.node.ready().await;
        edge
    }

    async fn value(&self, at: &str) -> Option<Vec<u8>> {
        self.store.get(&key(at)).await.unwrap().map(|e| e.value)
    }

    async fn sees(&self, at: &str, value: Option<&[u8]>) {
        until_async("it is seen", || async { self.value(at).await.as_deref() == value }).await;
    }
}

fn disk() -> Arc<dyn Store> {
    Arc::new(MemoryStore::new())
}

fn why<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    match result {
        Err(Error::Unavailable { why }) => why,
        other => panic!("{other:?}"),
    }
}

/// A raw stream to the authority.
struct Stream {
    tls: tokio_rustls::client::TlsStream<TcpStream>,
    read: Vec<u8>,
}

impl Stream {
    async fn open(authority: &AuthorityHandle, node: &Node, name: &str) -> Stream {
        let config = client_config(&node.mesh, id(name), authority_id(), ALPN_CONTROL).unwrap();
        let mut stream = Stream { tls: tls(authority, config).await, read: Vec::new() };
        stream.say(&String::from_utf8_lossy(HELLO)).await;
        stream
    }

    async fn say(&mut self, json: &str) {
        self.tls.write_all(&frame(json.as_bytes())).await.unwrap();
        self.tls.flush().await.unwrap();
    }

    /// The next message, skipping those about the stream and the state of the mesh.
    async fn hear(&mut self) -> serde_json::Value {
        loop {
            while self.read.len() < 4
                || self.read.len()
                    < 4 + u32::from_be_bytes(self.read[..4].try_into().unwrap()) as usize
            {
                let read = self.tls.read_buf(&mut self.read);
                assert_ne!(timeout(Duration::from_secs(10), read).await.unwrap().unwrap(), 0);
            }
            let end = 4 + u32::from_be_bytes(self.read[..4].try_into().unwrap()) as usize;
            let message: serde_json::Value = serde_json::from_slice(&self.read[4..end]).unwrap();
            self.read.drain(..end);
            if !["limits", "state", "ping"].map(Into::into).contains(&message["type"]) {
                return message;
            }
        }
    }

    async fn ask(&mut self, json: serde_json::Value) -> serde_json::Value {
        self.say(&json.to_string()).await;
        self.hear().await
    }
}

fn write(service: &str, at: &str, expected: u64, value: Option<&[u8]>) -> serde_json::Value {
    let value = value.map(|v| Blob(v.to_vec()));
    let record = SharedRecord { key: at.into(), revision: 0, value };
    let mut message = serde_json::to_value(record).unwrap();
    message["type"] = "write".into();
    message["request"] = 7.into();
    message["service"] = service.into();
    message["expected"] = expected.into();
    message
}

#[tokio::test]
async fn edges_of_a_service_share_writes_and_never_overwrite_an_unseen_one() {
    let world = World::new();
    let authority = world.authority().await;
    let a = Edge::joined(&world, &authority, "a", &["www"]).await;
    let b = Edge::joined(&world, &authority, "b", &["www", "db"]).await;

    let first = a.store.create(&key(SITE), b"one".to_vec()).await.unwrap();
    // The writer sees the change at once; the others are notified.
    assert_eq!(a.value(SITE).await.as_deref(), Some(&b"one"[..]));
    b.sees(SITE, Some(b"one")).await;
    assert_eq!(world.store.get(&key(SITE)).await.unwrap().unwrap().revision, first);

    let (_, at) = a.store.list("edge/service/www/").await.unwrap();
    let mut watch = a.store.watch("edge/service/www/", at).await.unwrap();
    let second = b.store.swap(&key(SITE), first, Some(b"two".to_vec())).await.unwrap();
    let seen = timeout(Duration::from_secs(10), watch.next()).await.unwrap().unwrap();
    assert!(matches!(&seen[..], [Change::Put(e)] if e.value == b"two" && e.revision == second));

    // The loser of a conflict reads the winner's record at once.
    let lost = a.store.swap(&key(SITE), first, Some(b"three".to_vec())).await;
    assert!(matches!(lost, Err(Error::Conflict { found: Some(r), .. }) if r == second), "{lost:?}");
    assert_eq!(a.value(SITE).await.as_deref(), Some(&b"two"[..]));
    let lost = a.store.create(&key(SITE), vec![]).await;
    assert!(matches!(lost, Err(Error::Conflict { found: Some(_), .. })), "{lost:?}");
    a.store.swap(&key(SITE), second, None).await.unwrap();
    assert_eq!(a.value(SITE).await, None);
    b.sees(SITE, None).await;
    let lost = b.store.swap(&key(SITE), second, Some(vec![])).await;
    assert!(matches!(lost, Err(Error::Conflict { found: None, .. })), "{lost:?}");

    // Concurrent writes: each is applied.
    let at = key("edge/service/www/site/count");
    let count = async |store: &SharedStore| {
        for _ in 0..20 {
            let more =
                |v: Option<&[u8]>| Ok::<_, Error>(Some(vec![0; v.map_or(1, |v| v.len() + 1)]));
            wiretight_store::update(store, &at, more).await.unwrap();
        }
    };
    tokio::join!(count(&a.store), count(&b.store));
    assert_eq!(world.store.get(&at).await.unwrap().unwrap().value.len(), 40);

    // A late follower gets everything, even if it does not fit into one message.
    for n in 0..20 {
        let at = key(&format!("edge/service/www/site/big{n}"));
        a.store.create(&at, vec![n; MAX_SHARED_VALUE]).await.unwrap();
    }
    let late = Edge::joined(&world, &authority, "late", &["www"]).await;
    late.sees("edge/service/www/site/big19", Some(&vec![19; MAX_SHARED_VALUE])).await;
    let (of_late, of_a) =
        (late.store.list("edge/").await.unwrap(), a.store.list("edge/").await.unwrap());
    assert_eq!(of_late.0, of_a.0);
    assert_eq!(of_a.0.len(), 21);
}

#[tokio::test]
async fn a_node_without_the_service_has_no_access_and_reports_it() {
    let world = World::new();
    let authority = world.authority().await;
    let at = key(SITE);
    world.store.create(&at, b"secret".to_vec()).await.unwrap();
    let stranger = Edge::joined(&world, &authority, "x", &["db"]).await;
    let other = key("edge/service/www/site/x");
    until_async("it is refused", || async {
        why(stranger.store.create(&other, vec![1]).await).contains("may not act as www")
    })
    .await;
    assert_eq!(stranger.value(SITE).await, None);
    assert_eq!(world.store.list("edge/service/www/").await.unwrap().0.len(), 1);
    // The control: the same node, with a grant.
    authority.grant(name("x"), vec![name("www")], Grant::Add).await.unwrap();
    until_async("it is told", || async { stranger.store.get(&at).await.unwrap().is_some() }).await;
    stranger.store.create(&other, vec![1]).await.unwrap();
}

#[tokio::test]
async fn a_node_can_access_no_other_keys_and_no_other_service() {
    let world = World::new();
    let authority = world.authority().await;
    world.store.create(&key("edge/service/db/site/a"), b"other".to_vec()).await.unwrap();
    world.store.create(&key("edge/node/auth/site/a"), b"own".to_vec()).await.unwrap();
    let node = world.joined(&authority, "a", &["www"]).await;
    node.agent.shutdown().await;
    let before = world.store.list("").await.unwrap().0.len();
    let mut stream = Stream::open(&authority, &node, "node/a").await;
    for (message, code) in [
        (serde_json::json!({ "type": "follow", "request": 7, "service": "db" }), "not_allowed"),
        (write("db", "site/b", 0, Some(b"x")), "not_allowed"),
        (write("db", "site/a", 2, None), "not_allowed"),
        (write("db", "member/a", 0, Some(b"x")), "not_allowed"),
        // Another node's name.
        (write("www", "member/b", 0, Some(b"x")), "not_allowed"),
        (write("www", "member/a.b", 0, Some(b"x")), "not_allowed"),
        (write("www", "../db/site/a", 0, Some(b"x")), "bad_request"),
        (write("www", "site/../../../node/auth/site/a", 0, Some(b"x")), "bad_request"),
        (write("www", "secret/a", 0, Some(b"x")), "bad_request"),
        (write("www", "site/", 0, Some(b"x")), "bad_request"),
        (write("www", "", 0, Some(b"x")), "bad_request"),
        (write("www", "site/a", 0, None), "bad_request"),
        (write("www", "site/a", 0, Some(&vec![0; MAX_SHARED_VALUE + 1])), "full"),
    ] {
        let said = stream.ask(message.clone()).await;
        assert_eq!(
            (said["type"].as_str(), said["request"].as_u64(), said["code"].as_str()),
            (Some("refused"), Some(7), Some(code)),
            "{said} to {}",
            message.to_string().chars().take(120).collect::<String>()
        );
    }
    // The twins.
    for message in [
        write("www", "member/a", 0, Some(b"x")),
        write("www", "site/b", 0, Some(b"x")),
        write("www", "account/00", 0, Some(&vec![0; MAX_SHARED_VALUE])),
    ] {
        let said = stream.ask(message).await;
        assert_eq!(said["type"], "written", "{said}");
    }
    let said = stream.ask(write("www", "site/b", 0, Some(b"y"))).await;
    assert_eq!(said["type"], "conflict", "{said}");
    // The accounting of three writes, and the time when the node was last seen.
    assert!(world.store.list("").await.unwrap().0.len() <= before + 4);
    // A message with an invalid service name is malformed.
    stream.say(r#"{"type":"follow","request":9,"service":"../node/auth"}"#).await;
    assert_eq!(stream.hear().await["code"], "bad_message");
}

#[tokio::test]
async fn one_node_cannot_exhaust_the_authority() {
    let world = World::new();
    let authority = world.authority().await;
    let node = world.joined(&authority, "a", &["www", "db"]).await;
    node.agent.shutdown().await;
    for n in 0..1024 {
        world.store.create(&key(&format!("edge/service/www/site/{n}")), vec![0]).await.unwrap();
    }
    for n in 0..8 {
        let at = key(&format!("edge/service/db/site/{n}"));
        world.store.create(&at, vec![0; (1 << 20) - 1024]).await.unwrap();
    }
    let mut stream = Stream::open(&authority, &node, "node/a").await;
    for service in ["www", "db"] {
        let at = match service {
            "www" => write("www", "site/more", 0, Some(b"x")),
            _ => write("db", "site/more", 0, Some(&[0; 16 << 10])),
        };
        let said = stream.ask(at).await;
        assert_eq!(said["code"], "full", "{said}");
    }
    // The controls: an existing record may be written, and a deleted one makes room.
    let at = world.store.get(&key("edge/service/www/site/5")).await.unwrap().unwrap().revision;
    let said = stream.ask(write("www", "site/5", at.0, Some(b"xy"))).await;
    assert_eq!(said["type"], "written", "{said}");
    let at = said["revision"].as_u64().unwrap();
    assert_eq!(stream.ask(write("www", "site/5", at, None)).await["type"], "written");
    let said = stream.ask(write("www", "site/more", 0, Some(b"x"))).await;
    assert_eq!(said["type"], "written", "{said}");

    // Requests for all records are limited; the stream stays open.
    let mut codes = BTreeSet::new();
    for request in 0..150 {
        let ask = serde_json::json!({ "type": "follow", "request": request, "service": "www" });
        let said = stream.ask(ask).await;
        codes.extend(said["code"].as_str().map(str::to_owned));
    }
    assert_eq!(codes, BTreeSet::from(["busy".to_owned()]));
    let said = stream.ask(write("www", "site/7", 1, None)).await;
    assert!(["busy", "conflict"].iter().any(|w| said.to_string().contains(w)), "{said}");
    stream.say(r#"{"type":"ping"}"#).await;
    while stream.hear().await["type"] != "pong" {}
}

#[tokio::test]
async fn a_node_that_is_removed_or_loses_the_service_gets_no_more_records() {
    let world = World::new();
    let authority = world.authority().await;
    let members = || async {
        let (all, _) = world.store.list("edge/service/www/member/").await.unwrap();
        all.iter()
            .map(|e| e.key.as_str().rsplit('/').next().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let mut edges = Vec::new();
    for node in ["a", "b", "c"] {
        let edge = Edge::joined(&world, &authority, node, &["www", "db"]).await;
        let member = key(&format!("edge/service/www/member/{node}"));
        edge.store.create(&member, node.as_bytes().to_vec()).await.unwrap();
        edges.push(edge);
    }
    let [a, b, c] = &edges[..] else { panic!() };
    assert_eq!(members().await, ["a", "b", "c"]);

    authority.grant(name("b"), vec![name("db")], Grant::Replace).await.unwrap();
    assert_eq!(members().await, ["a", "c"]);
    authority.remove_node(name("c")).await.unwrap();
    assert_eq!(members().await, ["a"]);
    a.sees("edge/service/www/member/c", None).await;

    // Only a is notified of further changes.
    a.store.create(&key(SITE), b"new".to_vec()).await.unwrap();
    for edge in [b, c] {
        until_async("it is refused", || async {
            let said = edge.store.create(&key("edge/service/www/site/y"), vec![]).await;
            !why(said).is_empty()
        })
        .await;
        assert_eq!(edge.value(SITE).await, None);
    }
    assert!(world.store.get(&key("edge/service/www/site/y")).await.unwrap().is_none());

    // What a crash interrupted is completed at the next start.
    let again = Edge::joined(&world, &authority, "d", &["www"]).await;
    let member = key("edge/service/www/member/d");
    again.store.create(&member, vec![4]).await.unwrap();
    again.node.agent.shutdown().await;
    wiretight_store::update(&*world.store, &key("mesh/node/d"), |value| {
        let text = String::from_utf8(value.unwrap().to_vec()).unwrap();
        Ok::<_, Error>(Some(text.replace("\"active\"", "\"removing\"").into_bytes()))
    })
    .await
    .unwrap();
    assert!(world.store.get(&member).await.unwrap().is_some());
    let authority = world.restart(authority).await;
    assert!(world.store.get(&member).await.unwrap().is_none());
    // Another machine takes the name: existing records are encrypted to the old machine's key.
    let thief = world.node_dir("a2");
    let token = token(&authority, "a", &["www"]).await;
    join(&token, &thief).await.unwrap();
    assert!(members().await.is_empty());
}

#[tokio::test]
async fn without_the_authority_records_are_readable_but_not_writable() {
    let world = World::new();
    let authority = world.authority().await;
    let mirror = disk();
    // Of a service that this node had before.
    mirror.create(&key("mirror/edge/service/old/site/a"), vec![0; 9]).await.unwrap();
    let ticket = given(token(&authority, "a", &["www"]).await);
    let edge = Edge::start(&world, &mirror, "a", ticket).await;
    edge.node.ready().await;
    let revision = edge.store.create(&key(SITE), b"kept".to_vec()).await.unwrap();
    until_async("it is on the disk", || async { mirror.list("").await.unwrap().0.len() == 1 })
        .await;
    edge.node.agent.shutdown().await;
    drop(edge);
    let addr = authority.local_addr();
    authority.shutdown().await;
    drop(authority);

    let hasty = SharedTimes { stream: Duration::from_millis(300), ..times() };
    let edge = Edge::patient(&world, &mirror, "a", TokenSource::None, hasty).await;
    let entry = edge.store.get(&key(SITE)).await.unwrap().unwrap();
    assert_eq!((&*entry.value, entry.revision), (&b"kept"[..], revision));
    for said in [
        edge.store.swap(&key(SITE), revision, Some(b"mine".to_vec())).await,
        edge.store.swap(&key(SITE), revision, None).await,
        edge.store.create(&key("edge/service/www/site/b"), vec![]).await,
    ] {
        let why = why(said);
        assert!(why.contains("not connected") && why.contains("www"), "{why}");
    }
    assert_eq!(edge.value(SITE).await.as_deref(), Some(&b"kept"[..]));

    // While it was offline, the record was changed: a write based on the outdated copy is refused.
    world.store.swap(&key(SITE), revision, Some(b"newer".to_vec())).await.unwrap();
    let _authority = world.authority_at(addr).await.unwrap();
    until_async("it is told", || async {
        match edge.store.swap(&key(SITE), revision, Some(b"mine".to_vec())).await {
            Err(Error::Conflict { .. }) => true,
            Err(Error::Unavailable { .. }) => false,
            other => panic!("{other:?}"),
        }
    })
    .await;
    edge.sees(SITE, Some(b"newer")).await;
}
