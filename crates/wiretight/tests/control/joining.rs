//! Joins, and the identities that a node may have.

use super::*;

#[tokio::test]
async fn a_token_makes_a_node_and_its_services_members() {
    let world = World::new();
    let authority = world.authority().await;
    let node = world.joined(&authority, "db1", &["db", "web"]).await;
    for what in ["node/db1", "service/db", "service/web"] {
        let identity = node.identity(what);
        assert_eq!(identity.id(), &SpiffeId::new(td(), id(what)));
        assert_eq!(identity.chain().len(), 2);
        assert!(node.mesh.verify(identity.chain(), Role::Server, UnixTime::now()).is_ok());
    }
    until("the registry has both services", || node.mesh.registry().services.len() == 2).await;
    let registry = node.mesh.registry();
    let db = &registry.services[&name("db")][0];
    assert_eq!((db.node.as_str(), db.addr.to_string()), ("db1", "127.0.0.1:7000".into()));
    assert_eq!(db.allow, [id("service/web")]);
    assert!(registry.nodes.contains(&name("db1")));

    settle(&authority).await;
    let [info] = &authority.list_nodes().await.unwrap()[..] else { panic!() };
    assert_eq!(info.acked_version, Some(authority.ca_status().version));
    assert!(info.connected && info.instances.len() == 2 && info.last_seen.is_some());
    assert!(serde_json::to_string(&(info, node.agent.status(), authority.ca_status())).is_ok());
}

#[tokio::test]
async fn a_token_works_once_for_one_node_and_one_authority() {
    let world = World::new();
    let authority = world.authority().await;
    let dir = |n: &str| world.node_dir(n);

    // Used: another machine is refused; the first one may use it again, as its response may have been lost.
    let good = token(&authority, "a", &[]).await;
    join(&good, &dir("a")).await.unwrap();
    assert_eq!(denied(join(&good, &dir("a-thief")).await), Code::TokenUsed);
    std::fs::remove_file(dir("a").join("node.pem")).unwrap();
    std::fs::remove_file(dir("a").join("joined.json")).unwrap();
    join(&good, &dir("a")).await.unwrap();
    // Once the first machine has joined with another token, it cannot use this one again: a service that the newer
    // token withdrew stays withdrawn.
    let narrower = token(&authority, "a", &[]).await;
    join(&narrower, &dir("a")).await.unwrap();
    assert_eq!(denied(join(&good, &dir("a")).await), Code::TokenUsed);
    join(&narrower, &dir("a")).await.unwrap();
    // The same after another machine has taken over the name.
    let other = token(&authority, "a", &[]).await;
    join(&other, &dir("a-reinstalled")).await.unwrap();
    assert_eq!(denied(join(&narrower, &dir("a")).await), Code::TokenUsed);

    // An altered secret or ID: the error does not say which.
    let good = token(&authority, "b", &[]).await;
    let bad = altered(&good, |t| t.secret = zeroize::Zeroizing::new("guess".into()));
    assert_eq!(denied(join(&bad, &dir("b")).await), Code::UnknownToken);
    for wrong in ["0123456789abcdef", "../mesh/node/a", "", &"x".repeat(3000)] {
        let bad = altered(&good, |t| t.id = wrong.into());
        assert_eq!(denied(join(&bad, &dir("b")).await), Code::UnknownToken);
    }
    // An altered node name.
    let bad = altered(&good, |t| t.node = name("c"));
    assert_eq!(denied(join(&bad, &dir("b-as-c")).await), Code::WrongNode);
    // An altered root: the node refuses and sends nothing.
    let bad = altered(&good, |t| t.root[0] ^= 1);
    let e = join(&bad, &dir("b")).await.unwrap_err();
    assert!(matches!(&e, AgentError::Link(LinkError::NotTheAuthority { .. })), "{e}");
    assert!(e.to_string().contains("does not match the join token"), "{e}");
    // An altered trust domain: the authority's certificate is for another one.
    let bad = altered(&good, |t| t.trust_domain = "other.org".parse().unwrap());
    let e = join(&bad, &dir("b-elsewhere")).await.unwrap_err();
    assert!(e.to_string().contains("trust domain"), "{e}");
    // Directed to another authority with the same name.
    let other = World::new();
    let elsewhere = other.authority().await;
    let bad = altered(&good, |t| t.authority = vec![elsewhere.join_address().to_string()]);
    let e = join(&bad, &dir("b")).await.unwrap_err();
    assert!(matches!(&e, AgentError::Link(LinkError::NotTheAuthority { .. })), "{e}");
    // The unaltered token still works.
    join(&good, &dir("b")).await.unwrap();

    // Expired.
    let short = authority.create_token(name("d"), vec![], Duration::from_secs(1)).await.unwrap();
    let long = token(&authority, "d", &[]).await;
    sleep(Duration::from_millis(2100)).await;
    assert_eq!(denied(join(&short, &dir("d")).await), Code::TokenExpired);
    join(&long, &dir("d")).await.unwrap();
}

/// The authority crashed after it had marked the token as used, before it had stored the node.
#[tokio::test]
async fn an_interrupted_join_continues_after_a_restart_and_other_joins() {
    let world = World::new();
    let authority = world.authority().await;
    let first = token(&authority, "a", &[]).await;
    join(&first, &world.node_dir("a")).await.unwrap();
    let record = Key::new("mesh/node/a").unwrap();
    let written = world.store.get(&record).await.unwrap().unwrap();
    world.store.swap(&record, written.revision, None).await.unwrap();

    let authority = world.restart(authority).await;
    world.joined(&authority, "b", &[]).await;
    join(&first, &world.node_dir("a")).await.unwrap();
    // The same if the name had an owner before, which is removed.
    let second = token(&authority, "a", &[]).await;
    let before = world.store.get(&record).await.unwrap().unwrap();
    join(&second, &world.node_dir("a-new")).await.unwrap();
    let written = world.store.get(&record).await.unwrap().unwrap();
    world.store.swap(&record, written.revision, Some(before.value)).await.unwrap();
    let authority = world.restart(authority).await;
    world.joined(&authority, "c", &[]).await;
    join(&second, &world.node_dir("a-new")).await.unwrap();
    assert_eq!(denied(join(&first, &world.node_dir("a")).await), Code::TokenUsed);
}

#[tokio::test]
async fn a_token_for_another_node_or_trust_domain_is_refused_by_the_node_itself() {
    let world = World::new();
    let authority = world.authority().await;
    let for_b = given(token(&authority, "b", &[]).await);
    let a = world.node("a", for_b.clone(), &[]).await;
    let e = a.error("the join token is for node b").await;
    assert!(e.contains("[node] has a"), "{e}");
    let b = world.node("b", for_b, &[]).await;
    b.ready().await;

    let for_c = token(&authority, "c", &[]).await;
    let foreign = altered(&for_c, |t| t.trust_domain = "other.org".parse().unwrap());
    let c = world.node("c", given(foreign), &[]).await;
    c.error("for trust domain other.org").await;
}

#[tokio::test]
async fn a_token_file_is_read_when_it_appears() {
    let world = World::new();
    let authority = world.authority().await;
    let file = world.dir.path().join("token");
    let node = world.node("a", TokenSource::File(file.clone()), &["db"]).await;
    node.error("cannot read the join token").await;
    std::fs::write(&file, "wtj1_nonsense").unwrap();
    node.error("damaged").await;
    std::fs::write(&file, &**token(&authority, "a", &["db"]).await.encode()).unwrap();
    node.ready().await;
}

#[tokio::test]
async fn a_new_token_for_a_name_replaces_the_old_machine() {
    let world = World::new();
    let authority = world.authority().await;
    let old = world.joined(&authority, "a", &["db"]).await;
    let peer = world.joined(&authority, "b", &[]).await;
    let serial = old.identity("service/db").leaf().serial;

    let again = token(&authority, "a", &["db"]).await;
    join(&again, &world.node_dir("a-reinstalled")).await.unwrap();
    until("revoked", || peer.mesh.bundle().is_revoked(&serial)).await;
    until("the old machine learns of it", || old.agent.status().removed).await;
    assert!(old.mesh.identities().is_empty());
}

#[tokio::test]
async fn the_same_machine_may_join_again_with_a_wider_token() {
    let world = World::new();
    let authority = world.authority().await;
    let node = world.joined(&authority, "a", &["db"]).await;
    let wider = token(&authority, "a", &["db", "web"]).await;
    join(&wider, &world.node_dir("a")).await.unwrap();
    node.agent.update(world.params("a", TokenSource::None, &["db", "web"])).await;
    until("it has the new service", || node.has("service/web")).await;
    assert!(!node.agent.status().removed);
    assert!(node.has("service/db"));
}

#[tokio::test]
async fn many_nodes_at_once() {
    let world = World::new();
    let authority = world.authority().await;
    let mut nodes = Vec::new();
    for i in 0..100 {
        let token = given(token(&authority, &format!("n{i}"), &["db"]).await);
        nodes.push(world.node(&format!("n{i}"), token, &["db"]).await);
    }
    for node in &nodes {
        node.ready().await;
    }
    until("every node knows all nodes", || {
        nodes.iter().all(|n| {
            let registry = n.mesh.registry();
            let db = registry.services.get(&name("db"));
            registry.nodes.len() == 100 && db.is_some_and(|i| i.len() == 100)
        })
    })
    .await;
}

#[tokio::test]
async fn a_node_gets_only_what_its_token_names() {
    let world = World::new();
    let authority = world.authority().await;
    let token = token(&authority, "a", &["db"]).await;
    let node = world.node("a", given(token), &["db", "secret"]).await;
    until("the one", || node.has("service/db")).await;
    node.error("may not claim secret").await;
    assert!(!node.agent.ready());
    assert!(!node.has("service/secret"));

    let csr = |what: &str, td: &str| {
        let key = SigningKey::generate().unwrap();
        Csr::create(&format!("spiffe://{td}/{what}").parse().unwrap(), &key).unwrap()
    };
    let chain = node.agent.sign(csr("service/db", TD)).await.unwrap();
    assert_eq!(chain.len(), 2);
    for (bad, part) in [
        (csr("service/secret", TD), "may not claim secret"),
        (csr("node/b", TD), "may not be node/b"),
        (csr("authority", TD), "may not be authority"),
        (csr("service/db", "other.org"), "not other.org"),
        (vec![0; 100], "malformed"),
    ] {
        let e = node.agent.sign(bad).await.unwrap_err().to_string();
        assert!(e.contains(part), "{e}");
    }

    // Granted later, the node gets it automatically and announces it.
    authority.grant(name("a"), vec![name("secret")], Grant::Add).await.unwrap();
    until("the other", || node.has("service/secret")).await;
    until("announced", || node.knows_service("secret")).await;

    // Withdrawn, it is revoked, removed and no longer announced.
    let serial = node.identity("service/secret").leaf().serial;
    authority.grant(name("a"), vec![name("db")], Grant::Replace).await.unwrap();
    until("dropped", || !node.has("service/secret")).await;
    assert!(node.mesh.bundle().is_revoked(&serial));
    assert!(!node.knows_service("secret"));
    assert!(node.has("service/db"));
    assert!(refused(authority.grant(name("x"), vec![], Grant::Add).await).contains("no node"));
}

#[tokio::test]
async fn a_service_cannot_act_as_a_node() {
    let world = World::new();
    let authority = world.authority().await;
    let node = world.joined(&authority, "a", &["db"]).await;
    for (who, part) in [("service/db", "not a node"), ("node/a", "allowed only once")] {
        let config = client_config(&node.mesh, id(who), authority_id(), ALPN_CONTROL).unwrap();
        let mut stream = tls(&authority, config).await;
        let answer = talk(&mut stream, &[frame(HELLO), frame(HELLO)].concat()).await;
        assert!(answer.contains(part), "{answer}");
    }
}
