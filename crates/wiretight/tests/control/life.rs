//! The life of a mesh: restarts, renewals, rotations, removals, damage.

use super::*;

#[tokio::test]
async fn an_authority_loses_nothing_in_a_restart() {
    for sqlite in [false, true] {
        let mut world = World::new();
        let path = world.dir.path().join("store.sqlite");
        if sqlite {
            world.store = Arc::new(SqliteStore::open(&path).await.unwrap());
        }
        let authority = world.authority().await;
        let node = world.joined(&authority, "a", &["db"]).await;
        until("announced", || node.knows_service("db")).await;
        settle(&authority).await;
        let before = authority.list_nodes().await.unwrap();
        let version = node.agent.status().version;
        assert_eq!(version, authority.ca_status().version);
        let changes = node.mesh.changes();
        let count = *changes.borrow();

        let addr = authority.local_addr();
        authority.shutdown().await;
        drop(authority);
        until("the node notices", || !node.agent.status().connected).await;
        if sqlite {
            world.store = Arc::new(MemoryStore::new());
            world.store = reopen(&path).await;
        }
        let authority = world.authority_at(addr).await.unwrap();
        node.connected().await;
        sleep(Duration::from_millis(100)).await;
        assert_eq!(*changes.borrow(), count, "nothing changed, so nothing was pushed");
        assert_eq!(authority.ca_status().version, version);
        let after = authority.list_nodes().await.unwrap();
        assert_eq!(after[0].services, before[0].services);
        assert_eq!(after[0].instances, before[0].instances);
        assert_eq!(after[0].acked_version, Some(version));
        // It keeps working: changes are pushed.
        let _b = world.joined(&authority, "b", &[]).await;
        until("b is known", || node.mesh.registry().nodes.contains(&name("b"))).await;
    }
}

/// The old owner closes the file as soon as its last call has finished.
async fn reopen(path: &Path) -> Arc<dyn Store> {
    for _ in 0..100 {
        match SqliteStore::open(path).await {
            Ok(store) => return Arc::new(store),
            Err(_) => sleep(Duration::from_millis(20)).await,
        }
    }
    Arc::new(SqliteStore::open(path).await.unwrap())
}

#[tokio::test]
async fn an_authority_that_lost_its_state_is_not_trusted() {
    let world = World::new();
    let authority = world.authority().await;
    let node = world.joined(&authority, "a", &["db"]).await;
    let serial = node.identity("node/a").leaf().serial;
    let addr = authority.local_addr();
    authority.shutdown().await;

    // The store is lost but the keys exist: the authority does not start, instead of creating a new mesh.
    let rebuilt = World::new();
    let lost = Authority::start(world.authority_params(addr), rebuilt.store.clone()).await;
    let Err(AuthorityError::Ca(CaError::Log(LogError::Refused(why)))) = lost else { panic!() };
    assert!(why.contains("has no record of it"), "{why}");
    // The keys are lost but the store exists: it does not start either.
    let mut params = world.authority_params(addr);
    params.dir = rebuilt.dir.path().join("elsewhere");
    let lost = Authority::start(params, world.store.clone()).await;
    let Err(AuthorityError::Ca(CaError::Log(LogError::Refused(why)))) = lost else { panic!() };
    assert!(why.contains("was not signed by"), "{why}");

    // Both are lost.
    let impostor = rebuilt.authority_at(addr).await.unwrap();
    let e = node.error("not under a root that this node trusts").await;
    assert!(e.contains("lost its state"), "{e}");
    sleep(Duration::from_millis(300)).await;
    assert!(impostor.list_nodes().await.unwrap().is_empty());
    assert_eq!(node.identity("node/a").leaf().serial, serial, "the node keeps its identities");

    // With a new token it joins the new authority.
    let token = token(&impostor, "a", &["db"]).await;
    node.agent.update(world.params("a", given(token), &["db"])).await;
    until("joined again", || {
        node.agent.status().connected && node.identity("node/a").leaf().serial != serial
    })
    .await;
}

#[tokio::test]
async fn two_hundred_renewals_in_a_row() {
    let world = World::new();
    let authority = world.authority().await;
    let node = world.joined(&authority, "a", &["db", "web"]).await;
    let mut serials = BTreeSet::new();
    for _ in 0..200 {
        node.agent.renew_now().await.unwrap();
        for what in ["node/a", "service/db", "service/web"] {
            let serial = node.identity(what).leaf().serial;
            assert!(serials.insert(serial), "a new one each time");
        }
    }
    assert!(authority.list_nodes().await.unwrap()[0].connected);
    // The identities on disk are those in force.
    let serial = node.identity("service/db").leaf().serial;
    node.agent.shutdown().await;
    let again = world.node("a", TokenSource::None, &["db", "web"]).await;
    assert_eq!(again.identity("service/db").leaf().serial, serial);
}

#[tokio::test]
async fn identities_are_renewed_at_half_of_their_lifetime() {
    let mut world = World::new();
    world.ttls = Ttls { svid: Duration::from_secs(8), intermediate: Duration::from_secs(32) };
    let authority = world.authority().await;
    let node = world.joined(&authority, "a", &["db"]).await;
    let first = authority.ca_status().intermediate.fingerprint;
    let mut serials = BTreeSet::new();
    let end = Instant::now() + Duration::from_secs(24);
    while Instant::now() < end {
        for what in ["node/a", "service/db"] {
            // There is always an identity: `identity` panics if there is none.
            serials.insert(node.identity(what).leaf().serial);
        }
        sleep(Duration::from_millis(20)).await;
    }
    assert!((8..=40).contains(&serials.len()), "{} renewals", serials.len());
    assert_ne!(authority.ca_status().intermediate.fingerprint, first);
    assert!(node.agent.ready());
}

#[tokio::test]
async fn the_intermediate_is_replaced_on_request_and_automatically() {
    let world = World::new();
    let authority = world.authority().await;
    let node = world.joined(&authority, "a", &[]).await;
    let before = node.identity("node/a");
    node.connected().await;
    let old = authority.ca_status().intermediate;
    let new = authority.rotate_intermediate().await.unwrap().intermediate;
    assert_ne!(old.fingerprint, new.fingerprint);
    assert_eq!(old.root, new.root);
    assert!(node.agent.status().connected, "streams stay open");
    node.agent.renew_now().await.unwrap();
    assert_ne!(node.identity("node/a").chain()[1], before.chain()[1]);
    // Other nodes still accept certificates of the old intermediate.
    assert!(node.mesh.verify(before.chain(), Role::Client, UnixTime::now()).is_ok());
    let files = world.authority_files();
    assert_eq!(files.len(), 2, "one root, one intermediate: {files:?}");
    // A leftover key of a crash is removed at the next start.
    std::fs::write(world.authority_dir().join("intermediate-00.key"), "x").unwrap();
    let authority = world.restart(authority).await;
    assert_eq!(world.authority_files().len(), 2);
    assert_eq!(authority.ca_status().intermediate.fingerprint, new.fingerprint);

    let ttls = Ttls { svid: Duration::from_secs(1), intermediate: Duration::from_secs(4) };
    authority.update(ttls, None, ReleaseParams::default());
    until("by itself", || authority.ca_status().intermediate.fingerprint != new.fingerprint).await;
}

#[tokio::test]
async fn a_root_is_replaced_in_three_stages() {
    let mut world = World::new();
    world.ttls.svid = Duration::from_secs(3);
    let authority = world.authority().await;
    let node = world.joined(&authority, "a", &["db"]).await;
    // Steps in the wrong order.
    assert!(refused(authority.activate_root(false).await).contains("no new root"));
    assert!(refused(authority.retire_root(true).await).contains("no old root"));

    // Stage 1.
    let old = authority.ca_status().roots[0].fingerprint.clone();
    authority.rotate_root().await.unwrap();
    assert!(refused(authority.rotate_root().await).contains("in progress"));
    until("the node trusts both", || node.mesh.bundle().roots().len() == 2).await;
    let print = |c: &CertificateDer<'_>| hex(&fingerprint(c));
    let new = print(&node.mesh.bundle().roots()[1]);
    assert_ne!(old, new);
    // A rotation that a restart interrupts continues.
    let authority = world.restart(authority).await;
    node.connected().await;
    settle(&authority).await;

    // Stage 2.
    let status = authority.activate_root(false).await.unwrap();
    assert_eq!(status.intermediate.root, new);
    node.agent.renew_now().await.unwrap();
    let token = token(&authority, "b", &[]).await;
    assert_eq!(hex(&token.root), new);
    join(&token, &world.node_dir("b")).await.unwrap();

    // Stage 3: only after the old root's certificates have expired.
    assert!(refused(authority.retire_root(false).await).contains("are valid for another"));
    sleep(Duration::from_secs(5)).await;
    authority.retire_root(false).await.unwrap();
    until("the node trusts only the new root", || {
        let bundle = node.mesh.bundle();
        bundle.roots().len() == 1 && print(&bundle.roots()[0]) == new
    })
    .await;
    node.agent.renew_now().await.unwrap();
    assert!(node.agent.ready());
    let files = world.authority_files();
    assert!(!files.iter().any(|f| f.contains(&old)), "{files:?}");
    // Both work after a restart.
    node.agent.shutdown().await;
    let _authority = world.restart(authority).await;
    let node = world.node("a", TokenSource::None, &["db"]).await;
    node.ready().await;
    node.connected().await;
}

#[tokio::test]
async fn a_root_is_not_activated_before_every_connected_node_has_it() {
    let world = World::new();
    let authority = world.authority().await;
    let node = world.joined(&authority, "a", &[]).await;
    settle(&authority).await;
    node.agent.shutdown().await;
    let connected = async || authority.list_nodes().await.unwrap()[0].connected;
    until_async("gone", async || !connected().await).await;

    // A node that receives states but confirms none.
    let config = client_config(&node.mesh, id("node/a"), authority_id(), ALPN_CONTROL).unwrap();
    let mut stream = tls(&authority, config).await;
    stream.write_all(&frame(HELLO)).await.unwrap();
    until_async("there", async || connected().await).await;
    authority.rotate_root().await.unwrap();
    sleep(Duration::from_millis(300)).await;
    let why = refused(authority.activate_root(false).await);
    assert!(why.contains("not confirmed the new root yet: a"), "{why}");
    assert_eq!(authority.ca_status().behind, [name("a")]);
    authority.activate_root(true).await.unwrap();
}

#[tokio::test]
async fn a_removed_node_is_refused_everywhere() {
    let world = World::new();
    let authority = world.authority().await;
    let node = world.joined(&authority, "a", &["db"]).await;
    let other = world.joined(&authority, "b", &[]).await;
    until("a's service is known", || other.knows_service("db")).await;
    let unused = token(&authority, "a", &["db"]).await;
    let serials = ["node/a", "service/db"].map(|i| node.identity(i).leaf().serial);
    let began = Instant::now();
    authority.remove_node(name("a")).await.unwrap();
    until("the others know", || {
        let bundle = other.mesh.bundle();
        let gone = !other.mesh.registry().nodes.contains(&name("a"));
        gone && !other.knows_service("db") && serials.iter().all(|s| bundle.is_revoked(s))
    })
    .await;
    assert!(began.elapsed() < Duration::from_secs(5));
    until("the node itself knows", || node.agent.status().removed).await;
    assert!(node.mesh.identities().is_empty());
    assert!(!node.agent.ready());
    assert!(node.agent.renew_now().await.is_err());
    assert!(refused(authority.remove_node(name("a")).await).contains("no node"));
    assert_eq!(authority.list_nodes().await.unwrap().len(), 1);

    // Neither a restart nor an older token brings it back.
    node.agent.shutdown().await;
    assert!(!world.node_dir("a").join("node.pem").exists());
    let node = world.node("a", given(unused), &["db"]).await;
    node.error("unknown join token").await;
    assert!(node.mesh.identities().is_empty());
    // A new token does, while the node is running.
    let file = world.dir.path().join("token");
    std::fs::write(&file, &**token(&authority, "a", &["db"]).await.encode()).unwrap();
    node.agent.update(world.params("a", TokenSource::File(file), &["db"])).await;
    node.ready().await;
    assert!(!node.agent.status().removed);
    until("the other sees it", || other.knows_service("db")).await;
}

#[tokio::test]
async fn a_node_that_was_offline_learns_of_its_removal_when_it_reconnects() {
    let world = World::new();
    let authority = world.authority().await;
    let node = world.joined(&authority, "a", &["db"]).await;
    node.agent.shutdown().await;
    authority.remove_node(name("a")).await.unwrap();
    let node = world.node("a", TokenSource::None, &["db"]).await;
    until("it learns of it", || node.agent.status().removed).await;
    assert!(node.mesh.identities().is_empty());
    node.error("removed").await;
}

#[tokio::test]
async fn an_expired_node_rejoins_with_its_enrolment_key() {
    let mut world = World::new();
    world.ttls.svid = Duration::from_secs(2);
    let authority = world.authority().await;
    let node = world.joined(&authority, "a", &["db"]).await;
    let addr = authority.local_addr();
    authority.shutdown().await;
    node.agent.shutdown().await;
    sleep(Duration::from_secs(4)).await;
    let node = world.node("a", TokenSource::None, &["db"]).await;
    assert!(node.mesh.identities().is_empty(), "an expired identity is not used");
    let authority = world.authority_at(addr).await.unwrap();
    node.ready().await;
    // The same while the node is running.
    authority.shutdown().await;
    sleep(Duration::from_secs(4)).await;
    assert!(!node.agent.ready());
    let _authority = world.authority_at(addr).await.unwrap();
    node.ready().await;
    // Another machine's key is refused.
    node.agent.shutdown().await;
    let key = SigningKey::generate().unwrap();
    std::fs::write(world.node_dir("a").join("enrolment.key"), key.to_pem().as_bytes()).unwrap();
    std::fs::remove_file(world.node_dir("a").join("node.pem")).unwrap();
    let node = world.node("a", TokenSource::None, &["db"]).await;
    until("refused", || node.agent.status().removed).await;
}

#[tokio::test]
async fn a_node_restarts_without_the_authority() {
    let world = World::new();
    let authority = world.authority().await;
    let node = world.joined(&authority, "a", &["db"]).await;
    until("announced", || node.knows_service("db")).await;
    settle(&authority).await;
    let addr = authority.local_addr();
    authority.shutdown().await;
    node.agent.shutdown().await;

    let again = world.node("a", TokenSource::None, &["db"]).await;
    assert!(again.agent.ready(), "at once");
    assert_eq!(again.mesh.registry(), node.mesh.registry());
    assert_eq!(again.mesh.bundle().roots(), node.mesh.bundle().roots());
    let serial = |n: &Node| n.identity("service/db").leaf().serial;
    assert_eq!(serial(&again), serial(&node));
    again.error("cannot reach the authority").await;
    let _authority = world.authority_at(addr).await.unwrap();
    again.connected().await;
}

#[tokio::test]
async fn damaged_files_are_renamed_and_fetched_again() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new();
    let authority = world.authority().await;
    let node = world.joined(&authority, "a", &["db"]).await;
    settle(&authority).await;
    node.agent.shutdown().await;
    let dir = world.node_dir("a");
    for file in std::fs::read_dir(&dir).unwrap() {
        let file = file.unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{file:?}");
    }
    let read = |f: &str| std::fs::read(dir.join(f)).unwrap();
    let files = ["node.pem", "service-db.pem", "bundle.pem", "state.json", "joined.json"];
    let whole: BTreeMap<&str, Vec<u8>> = files.iter().map(|f| (*f, read(f))).collect();

    for file in files {
        for damage in 0..4 {
            let bytes = &whole[file];
            let torn = match damage {
                0 => bytes[..bytes.len() / 2].to_vec(),
                1 => vec![],
                2 => vec![0; bytes.len()],
                _ => b"\xff\xfenonsense".to_vec(),
            };
            std::fs::write(dir.join(file), torn).unwrap();
            let mut params = world.params("a", TokenSource::None, &["db"]);
            params.authority = vec![authority.join_address()];
            let mesh = Mesh::new(td());
            let node = Node { agent: Agent::start(params, mesh.clone()).await.unwrap(), mesh };
            node.ready().await;
            node.connected().await;
            settle(&authority).await;
            assert_eq!(node.agent.status().version, authority.ca_status().version);
            assert!(dir.join(format!("{file}.bad")).exists(), "{file}, damage {damage}");
            node.agent.shutdown().await;
        }
    }
    // A key with the chain of another certificate is detected as well.
    let text = |f: &str| String::from_utf8(read(f)).unwrap();
    let (a, b) = (text("node.pem"), text("service-db.pem"));
    let cut = |s: &str| s.find("-----BEGIN CERTIFICATE").unwrap();
    let mixed = format!("{}{}", &b[..cut(&b)], &a[cut(&a)..]);
    std::fs::write(dir.join("node.pem"), mixed).unwrap();
    std::fs::write(dir.join("joined.json"), &whole["joined.json"]).unwrap();
    let node = world.node("a", TokenSource::None, &["db"]).await;
    node.ready().await;
    node.agent.shutdown().await;
    // All of them at once: the enrolment key alone is enough to recover.
    for file in files {
        std::fs::write(dir.join(file), "gone").unwrap();
    }
    std::fs::write(dir.join("joined.json"), &whole["joined.json"]).unwrap();
    std::fs::write(dir.join("bundle.pem"), &whole["bundle.pem"]).unwrap();
    let node = world.node("a", TokenSource::None, &["db"]).await;
    node.ready().await;
    node.agent.shutdown().await;

    // The directory of another node is refused.
    let mut params = world.params("b", TokenSource::None, &[]);
    params.dir = dir.clone();
    let e = Agent::start(params, Mesh::new(td())).await.err().unwrap().to_string();
    assert!(e.contains("belongs to node a"), "{e}");
}

#[tokio::test]
async fn an_interrupted_removal_is_completed_at_the_next_start() {
    let world = World::new();
    let authority = world.authority().await;
    let node = world.joined(&authority, "a", &["db"]).await;
    let other = world.joined(&authority, "b", &[]).await;
    let serial = node.identity("service/db").leaf().serial;
    let addr = authority.local_addr();
    authority.shutdown().await;
    // Only the first step was done: the node is marked as removed.
    let key = Key::new("mesh/node/a").unwrap();
    let entry = world.store.get(&key).await.unwrap().unwrap();
    let marked = String::from_utf8(entry.value).unwrap().replace("\"active\"", "\"removing\"");
    world.store.swap(&key, entry.revision, Some(marked.into_bytes())).await.unwrap();

    let authority = world.authority_at(addr).await.unwrap();
    until("revoked", || other.mesh.bundle().is_revoked(&serial)).await;
    until("dropped", || node.agent.status().removed).await;
    assert_eq!(authority.list_nodes().await.unwrap().len(), 1);
    assert!(world.store.get(&key).await.unwrap().is_none());
}

#[tokio::test]
async fn a_removal_also_revokes_old_certificates() {
    let world = World::new();
    let authority = world.authority().await;
    let node = world.joined(&authority, "a", &["db"]).await;
    let other = world.joined(&authority, "b", &["db"]).await;
    let serial = |n: &Node| n.identity("service/db").leaf().serial;
    let (old, others) = (serial(&node), serial(&other));
    // A session with this certificate outlives renewals and all records of the certificate.
    node.agent.renew_now().await.unwrap();
    assert_ne!(serial(&node), old);
    for entry in world.store.list("issued/").await.unwrap().0 {
        world.store.swap(&entry.key, entry.revision, None).await.unwrap();
    }
    authority.remove_node(name("a")).await.unwrap();
    until("revoked", || other.mesh.bundle().is_revoked(&old)).await;
    // The same service of another node is not affected.
    assert!(!other.mesh.bundle().is_revoked(&others));
    assert!(other.has("service/db"));
}

#[tokio::test]
async fn a_root_retired_by_force_is_trusted_by_no_node_and_nodes_recover() {
    for by_force in [false, true] {
        let mut world = World::new();
        world.ttls.svid = if by_force { HOUR } else { Duration::from_secs(2) };
        let authority = world.authority().await;
        let node = world.joined(&authority, "a", &["db"]).await;
        let other = world.joined(&authority, "b", &[]).await;
        let chain = node.identity("service/db").chain().to_vec();
        let peer = other.mesh.verify(&chain, Role::Server, UnixTime::now()).unwrap();
        authority.rotate_root().await.unwrap();
        until_async("all have the new root", async || authority.activate_root(false).await.is_ok())
            .await;
        until_async("retired", async || authority.retire_root(by_force).await.is_ok()).await;
        until("the others know", || other.mesh.bundle().roots().len() == 1).await;
        // In a regular rotation only sessions remain that are older than the nodes' certificates.
        assert_eq!(other.mesh.bundle().stands_by(&peer), !by_force);
        until("the node has certificates of the new root", || {
            let identity = node.mesh.identity(&id("service/db"));
            identity.is_some_and(|i| {
                other.mesh.verify(i.chain(), Role::Server, UnixTime::now()).is_ok()
            })
        })
        .await;
        // A restart does not forget it.
        let authority = world.restart(authority).await;
        let late = world.joined(&authority, "c", &[]).await;
        until("told", || late.agent.status().version > 0).await;
        assert_eq!(late.mesh.bundle().stands_by(&peer), !by_force);
    }
}

#[tokio::test]
async fn an_unreadable_record_is_not_overwritten() {
    let world = World::new();
    let authority = world.authority().await;
    let node = world.joined(&authority, "a", &["db"]).await;
    node.agent.shutdown().await;
    let key = Key::new("mesh/node/a").unwrap();
    let entry = world.store.get(&key).await.unwrap().unwrap();
    let damaged = b"{\"of\": \"a later release\"}".to_vec();
    world.store.swap(&key, entry.revision, Some(damaged.clone())).await.unwrap();
    for refused in [
        authority.remove_node(name("a")).await,
        authority.grant(name("a"), vec![], Grant::Replace).await,
    ] {
        assert!(matches!(refused, Err(AuthorityError::DamagedRecord)), "{refused:?}");
    }
    let token = token(&authority, "a", &[]).await;
    assert_eq!(denied(join(&token, &world.node_dir("a-again")).await), Code::Internal);
    assert_eq!(world.store.get(&key).await.unwrap().unwrap().value, damaged);
}

#[tokio::test]
async fn a_state_with_the_same_version_but_other_content_is_pushed_again() {
    let world = World::new();
    let authority = world.authority().await;
    let node = world.joined(&authority, "a", &[]).await;
    settle(&authority).await;
    node.agent.shutdown().await;
    let saved = std::fs::read(world.node_dir("a").join("state.json")).unwrap();
    let saved: serde_json::Value = serde_json::from_slice(&saved).unwrap();
    let config = client_config(&node.mesh, id("node/a"), authority_id(), ALPN_CONTROL).unwrap();
    for (digest, again) in [(saved["digest"].clone(), false), ("of a backup".into(), true)] {
        let hello = serde_json::json!({
            "type": "hello", "have": saved["version"], "digest": digest, "instances": [],
        });
        // A ping, then a message that closes the stream.
        let bytes =
            [frame(hello.to_string().as_bytes()), frame(br#"{"type":"ping"}"#), frame(b"x")]
                .concat();
        let answer = talk(&mut tls(&authority, config.clone()).await, &bytes).await;
        assert!(answer.contains("bad_message"), "{answer}");
        assert_eq!(answer.contains(r#""type":"state""#), again, "{answer}");
    }
}

#[tokio::test]
async fn silent_clients_from_many_addresses_do_not_block_nodes() {
    let world = World::new();
    let authority = world.authority().await;
    let mut silent = Vec::new();
    for n in 0..320u16 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 0, 0, 10 + (n / 64) as u8], 0))).unwrap();
        silent.push(socket.connect(authority.local_addr()).await.unwrap());
    }
    // Each of them has 10 s to identify itself.
    let node = world.joined(&authority, "a", &[]).await;
    node.connected().await;
    // The newest are still connected; the oldest were closed to make room.
    let mut byte = [0];
    let closed = timeout(Duration::from_secs(5), silent[0].read(&mut byte)).await;
    assert!(matches!(closed, Ok(Ok(0) | Err(_))), "{closed:?}");
    assert!(
        silent[319].try_read(&mut byte).is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock)
    );
}

#[tokio::test]
async fn the_authoritys_own_node_joins_automatically_and_follows_its_configuration() {
    let world = World::new();
    let authority = world.authority().await;
    let start = async |authority: &AuthorityHandle, services: &[&str]| {
        let names = services.iter().map(|s| name(s)).collect();
        let token = authority.own_token(name("auth"), names).await.unwrap();
        let mut params = world.params("auth", given(token), services);
        params.authority = vec![authority.loopback_address()];
        params.own_host = Some(authority.join_address());
        let mesh = Mesh::new(td());
        let agent = Agent::start(params, mesh.clone()).await.unwrap();
        Node { agent, mesh }
    };
    let node = start(&authority, &["db"]).await;
    node.ready().await;
    node.agent.shutdown().await;
    let authority = world.restart(authority).await;
    let node = start(&authority, &["db", "web"]).await;
    node.ready().await;
    assert!(node.has("service/web"));
    // A service that the file no longer names is removed without closing connections.
    let serial = node.identity("service/web").leaf().serial;
    node.agent.shutdown().await;
    let node = start(&authority, &["db"]).await;
    node.ready().await;
    assert!(!node.has("service/web"));
    settle(&authority).await;
    assert!(!node.mesh.bundle().is_revoked(&serial));
}

#[tokio::test]
async fn a_web_certificate_keeps_its_root_in_the_bundle() {
    let world = World::new();
    let authority = world.authority().await;
    let key = wiretight_keys::SigningKey::generate().unwrap();
    let spki = wiretight_keys::Signer::public_key(&key);
    let names = vec!["app.corp.internal".to_owned()];
    // However long the requested validity is, it ends no later than the intermediate's.
    let chain = authority.issue_web(names, &spki, 100 * 24 * HOUR).await.unwrap();
    let ends = |c: &CertificateDer<'_>| wiretight_keys::x509::not_after(c).unwrap();
    assert!(ends(&chain[0]) <= ends(&chain[1]));
    authority.rotate_root().await.unwrap();
    authority.activate_root(true).await.unwrap();
    assert!(refused(authority.retire_root(false).await).contains("are valid for another"));
}

/// It could be the record of the last certificate under the old root.
#[tokio::test]
async fn a_damaged_record_keeps_the_old_root_unless_it_is_retired_by_force() {
    for is_json in [false, true] {
        let mut world = World::new();
        world.ttls.svid = Duration::from_secs(1);
        let authority = world.authority().await;
        authority.rotate_root().await.unwrap();
        authority.activate_root(true).await.unwrap();
        let damaged = if is_json { r#"{"not_after":1}"# } else { "?" };
        let key = Key::new("issued/a/77").unwrap();
        world.store.create(&key, damaged.into()).await.unwrap();
        // Also after all certificates under the old root have expired.
        sleep(Duration::from_secs(2)).await;
        let why = refused(authority.retire_root(false).await);
        for part in ["`issued/a/77`", "backup", "--force"] {
            assert!(why.contains(part), "{part} is not in: {why}");
        }
        assert_eq!(authority.ca_status().roots.len(), 2);
        authority.retire_root(true).await.unwrap();
        assert_eq!(authority.ca_status().roots.len(), 1);
        // Nodes are told to accept nothing under it, as certificates may still be valid.
        let ca = world.store.get(&Key::new("mesh/ca").unwrap()).await.unwrap().unwrap();
        let ca: serde_json::Value = serde_json::from_slice(&ca.value).unwrap();
        assert_eq!(ca["retired"][0]["by_force"], true);
    }
}

#[tokio::test]
async fn a_revocation_by_index_never_expires() {
    let mut world = World::new();
    // Otherwise the clock must have been steady for a day before a revocation counts as old.
    world.times.steady = Duration::ZERO;
    let put = async |at: &str, record: &str| {
        world.store.create(&Key::new(at).unwrap(), record.into()).await.unwrap();
    };
    // Both are from 1970: no certificate of such a series can exist any more.
    put("mesh/revoked-index/5-7", r#"{"at":1,"logged":0}"#).await;
    put("mesh/revoked/4000000000000001", r#"{"at":1,"logged":0}"#).await;
    let authority = world.authority().await;
    let node = world.joined(&authority, "a", &[]).await;
    let bundle = || node.mesh.bundle();
    let series = Series::try_from("4000000000000001".to_owned()).unwrap();
    let of = |index| Series::new([9; 8]).serial(index);
    until("pushed", || bundle().is_revoked(&of(5)) && bundle().is_revoked(&of(7))).await;
    assert!(!bundle().is_revoked(&of(4)) && !bundle().is_revoked(&of(8)));
    assert!(!bundle().is_revoked(&series.serial(100)));
}

#[tokio::test]
async fn a_mesh_recovers_after_its_intermediate_is_revoked() {
    let world = World::new();
    let authority = world.authority().await;
    let a = world.joined(&authority, "a", &["db"]).await;
    let b = world.joined(&authority, "b", &["web"]).await;
    let away = world.joined(&authority, "c", &["api"]).await;
    away.agent.shutdown().await;
    let before = a.identity("service/db");
    let verify = |mesh: &Mesh, chain: &[CertificateDer<'static>]| {
        mesh.verify(chain, Role::Client, UnixTime::now()).map_err(|refusal| refusal.to_string())
    };
    verify(&b.mesh, before.chain()).unwrap();
    let index = wiretight_keys::x509::serial(&before.chain()[1]).unwrap().index();

    let told = authority.affected(index, index).await.unwrap();
    assert!(told.intermediate_in_use && !told.authority && told.names.is_empty(), "{told:?}");
    let leaf = before.leaf().serial.index();
    let told = authority.affected(leaf, leaf).await.unwrap();
    assert!(!told.intermediate_in_use, "{told:?}");
    assert_eq!(Vec::from_iter(told.names), ["spiffe://example.org/service/db"]);
    assert!(a.identity("service/db").leaf() == before.leaf(), "asking changes nothing");

    authority.revoke(index, index).await.unwrap();
    until("refused, and for the right reason", || {
        let refused = verify(&b.mesh, before.chain()).err();
        refused.is_some_and(|why| why.contains("the intermediate certificate"))
    })
    .await;
    let back = |node: &Node, what: &str| {
        node.agent.ready() && verify(&b.mesh, node.identity(what).chain()).is_ok()
    };
    until("a and b have recovered", || back(&a, "service/db") && back(&b, "service/web")).await;
    let again = world.node("c", TokenSource::None, &["api"]).await;
    until("a node that was offline recovers as well", || {
        again.has("service/api") && back(&again, "service/api")
    })
    .await;
    // The intermediate stays revoked and issues nothing after a restart.
    let authority = world.restart(authority).await;
    a.agent.renew_now().await.unwrap();
    assert!(verify(&b.mesh, before.chain()).is_err());
    assert!(back(&a, "service/db"));
    drop(authority);
}

#[tokio::test]
async fn an_identity_revoked_by_index_is_replaced() {
    let world = World::new();
    let authority = world.authority().await;
    let node = world.joined(&authority, "a", &["db"]).await;
    for what in ["service/db", "node/a"] {
        let serial = node.identity(what).leaf().serial;
        authority.revoke(serial.index(), serial.index()).await.unwrap();
        until("a new identity", || {
            node.has(what) && node.identity(what).leaf().serial != serial && node.agent.ready()
        })
        .await;
        assert!(node.mesh.bundle().is_revoked(&serial));
        node.connected().await;
    }
    // The authority's own identity.
    let told = authority.affected(0, authority.log().status().size - 1).await.unwrap();
    assert!(told.authority && told.intermediate_in_use && told.unread == 0, "{told:?}");
    authority.revoke(told.from, told.to).await.unwrap();
    node.agent.renew_now().await.unwrap();
    until("ready", || node.agent.ready()).await;
}
