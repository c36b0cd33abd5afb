//! Node and authority together, over real TLS on loopback: joins, renewals, rotations, removals, and
//! every way in which either is refused.

// clippy.toml allows it in test functions; the helpers beside them are tests no less.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use wiretight::agent::{
    Agent, AgentError, AgentHandle, AgentParams, AgentTimes, Instance, LinkError, TokenSource,
    join_once,
};
use wiretight::authority::{
    Authority, AuthorityError, AuthorityHandle, AuthorityParams, CaError, Grant, Times, Ttls,
};
use wiretight::control::{Code, Offer};
use wiretight_keys::token::hex;
use wiretight_keys::x509::fingerprint;
use wiretight_keys::{Csr, Id, JoinToken, Name, Role, SigningKey, SpiffeId, TrustDomain};
use wiretight_proxy::tls::{ALPN_CONTROL, client_config};
use wiretight_proxy::{Identity, Mesh};
use wiretight_store::{Key, MemoryStore, SqliteStore, Store};

const TD: &str = "example.org";
const HOUR: Duration = Duration::from_secs(3600);
const HELLO: &[u8] = br#"{"type":"hello","have":0,"instances":[]}"#;

fn name(s: &str) -> Name {
    s.parse().unwrap()
}

fn id(s: &str) -> Id {
    s.parse().unwrap()
}

fn td() -> TrustDomain {
    TD.parse().unwrap()
}

fn authority_id() -> SpiffeId {
    SpiffeId::new(td(), Id::Authority)
}

/// A place for a whole mesh: the authority's directory and store, the nodes' directories.
struct World {
    dir: tempfile::TempDir,
    store: Arc<dyn Store>,
    ttls: Ttls,
    times: Times,
}

impl World {
    fn new() -> World {
        let ttls = Ttls { svid: HOUR, intermediate: 24 * HOUR };
        let times = Times { debounce: Duration::from_millis(10), ..Times::default() };
        let dir = tempfile::tempdir().unwrap();
        World { dir, store: Arc::new(MemoryStore::new()), ttls, times }
    }

    fn authority_dir(&self) -> PathBuf {
        self.dir.path().join("authority")
    }

    fn authority_params(&self, listen: SocketAddr) -> AuthorityParams {
        AuthorityParams {
            trust_domain: td(),
            listen,
            advertise: None,
            dir: self.authority_dir(),
            ttls: self.ttls,
            times: self.times,
        }
    }

    async fn authority_at(&self, listen: SocketAddr) -> Result<AuthorityHandle, AuthorityError> {
        Authority::start(self.authority_params(listen), self.store.clone()).await
    }

    async fn authority(&self) -> AuthorityHandle {
        self.authority_at("127.0.0.1:0".parse().unwrap()).await.unwrap()
    }

    /// The same again: same store, same address.
    async fn restart(&self, old: AuthorityHandle) -> AuthorityHandle {
        let addr = old.local_addr();
        old.shutdown().await;
        drop(old);
        self.authority_at(addr).await.unwrap()
    }

    fn authority_files(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.authority_dir()).unwrap();
        files.map(|f| f.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn node_dir(&self, node: &str) -> PathBuf {
        self.dir.path().join(node)
    }

    fn params(&self, node: &str, token: TokenSource, services: &[&str]) -> AgentParams {
        let instance = |(i, s): (usize, &&str)| Instance {
            service: name(s),
            listen: SocketAddr::from(([127, 0, 0, 1], 7000 + i as u16)),
            advertise: None,
            allow: vec![id("service/web")],
        };
        AgentParams {
            trust_domain: td(),
            node: name(node),
            dir: self.node_dir(node),
            authority: vec![],
            token,
            services: services.iter().map(|s| name(s)).collect(),
            instances: services.iter().enumerate().map(instance).collect(),
            own_host: None,
            times: AgentTimes {
                backoff_min: Duration::from_millis(20),
                backoff_max: Duration::from_millis(200),
                removed_retry: Duration::from_millis(100),
                ..AgentTimes::default()
            },
        }
    }

    async fn node(&self, node: &str, token: TokenSource, services: &[&str]) -> Node {
        let mesh = Mesh::new(td());
        let agent = Agent::start(self.params(node, token, services), mesh.clone()).await.unwrap();
        Node { agent, mesh }
    }

    /// A node that has joined and holds all that it wants.
    async fn joined(&self, authority: &AuthorityHandle, node: &str, services: &[&str]) -> Node {
        let token = token(authority, node, services).await;
        let node = self.node(node, given(token), services).await;
        node.ready().await;
        node
    }
}

struct Node {
    agent: AgentHandle,
    mesh: Arc<Mesh>,
}

impl Node {
    async fn ready(&self) {
        if timeout(Duration::from_secs(20), self.agent.wait_ready()).await.is_err() {
            panic!("not ready: {:#?}", self.agent.status());
        }
    }

    async fn connected(&self) {
        until("connected", || self.agent.status().connected).await;
    }

    /// Waits until the last error says `part`.
    async fn error(&self, part: &str) -> String {
        let end = Instant::now() + Duration::from_secs(15);
        loop {
            let error = self.agent.status().last_error.unwrap_or_default();
            if error.contains(part) {
                return error;
            }
            assert!(Instant::now() < end, "{error:?} lacks {part:?}");
            sleep(Duration::from_millis(5)).await;
        }
    }

    fn identity(&self, what: &str) -> Arc<Identity> {
        self.mesh.identity(&id(what)).unwrap()
    }

    fn has(&self, what: &str) -> bool {
        self.mesh.identity(&id(what)).is_some()
    }

    fn knows_service(&self, service: &str) -> bool {
        self.mesh.registry().services.contains_key(&name(service))
    }
}

async fn token(authority: &AuthorityHandle, node: &str, services: &[&str]) -> JoinToken {
    let services = services.iter().map(|s| name(s)).collect();
    authority.create_token(name(node), services, HOUR).await.unwrap()
}

fn given(token: JoinToken) -> TokenSource {
    TokenSource::Given(Arc::new(token))
}

/// Waits for something to become true.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(15);
    while !holds() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

async fn until_async<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let end = Instant::now() + Duration::from_secs(15);
    while !holds().await {
        assert!(Instant::now() < end, "waited in vain: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until every connected node has had the newest state for a while.
async fn settle(authority: &AuthorityHandle) {
    let (mut calm, mut last) = (0, 0);
    let end = Instant::now() + Duration::from_secs(15);
    while calm < 10 {
        let status = authority.ca_status();
        calm = if status.version == last && status.behind.is_empty() { calm + 1 } else { 0 };
        last = status.version;
        assert!(Instant::now() < end, "it does not settle: {status:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// A copy with one part changed.
fn altered(token: &JoinToken, change: impl FnOnce(&mut JoinToken)) -> JoinToken {
    let mut copy = JoinToken::decode(&token.encode()).unwrap();
    change(&mut copy);
    copy
}

async fn join(token: &JoinToken, dir: &Path) -> Result<(), AgentError> {
    join_once(token, dir, &[], AgentTimes::default()).await.map(|_| ())
}

/// The code of a refusal by the authority.
fn denied(result: Result<(), AgentError>) -> Code {
    match result {
        Err(AgentError::Link(LinkError::Denied(denial))) => denial.code,
        Err(e) => panic!("another error: {e}"),
        Ok(()) => panic!("it was accepted"),
    }
}

fn refused<T: std::fmt::Debug>(result: Result<T, AuthorityError>) -> String {
    match result {
        Err(AuthorityError::Refused(why)) => why,
        other => panic!("{other:?}"),
    }
}

// ---- Joining.

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
async fn tokens_are_good_once_for_one_node_of_one_authority() {
    let world = World::new();
    let authority = world.authority().await;
    let dir = |n: &str| world.node_dir(n);

    // Used: another machine is refused, the first may ask again (its answer was lost).
    let good = token(&authority, "a", &[]).await;
    join(&good, &dir("a")).await.unwrap();
    assert_eq!(denied(join(&good, &dir("a-thief")).await), Code::TokenUsed);
    std::fs::remove_file(dir("a").join("node.pem")).unwrap();
    std::fs::remove_file(dir("a").join("joined.json")).unwrap();
    join(&good, &dir("a")).await.unwrap();
    // Not even the first once it has joined with another: what that one withdrew stays withdrawn.
    let narrower = token(&authority, "a", &[]).await;
    join(&narrower, &dir("a")).await.unwrap();
    assert_eq!(denied(join(&good, &dir("a")).await), Code::TokenUsed);
    join(&narrower, &dir("a")).await.unwrap();
    // Nor once another machine has taken the name.
    let other = token(&authority, "a", &[]).await;
    join(&other, &dir("a-reinstalled")).await.unwrap();
    assert_eq!(denied(join(&narrower, &dir("a")).await), Code::TokenUsed);

    // Altered in its secret, or its id: nothing is told.
    let good = token(&authority, "b", &[]).await;
    let bad = altered(&good, |t| t.secret = zeroize::Zeroizing::new("guess".into()));
    assert_eq!(denied(join(&bad, &dir("b")).await), Code::UnknownToken);
    for wrong in ["0123456789abcdef", "../mesh/node/a", "", &"x".repeat(3000)] {
        let bad = altered(&good, |t| t.id = wrong.into());
        assert_eq!(denied(join(&bad, &dir("b")).await), Code::UnknownToken);
    }
    // Altered in the node's name.
    let bad = altered(&good, |t| t.node = name("c"));
    assert_eq!(denied(join(&bad, &dir("b-as-c")).await), Code::WrongNode);
    // Altered in the root: the node refuses, and says nothing.
    let bad = altered(&good, |t| t.root[0] ^= 1);
    let e = join(&bad, &dir("b")).await.unwrap_err();
    assert!(matches!(&e, AgentError::Link(LinkError::NotTheAuthority { .. })), "{e}");
    assert!(e.to_string().contains("not the one in the join token"), "{e}");
    // Altered in the trust domain: the authority's certificate is of another.
    let bad = altered(&good, |t| t.trust_domain = "other.org".parse().unwrap());
    let e = join(&bad, &dir("b-elsewhere")).await.unwrap_err();
    assert!(e.to_string().contains("trust domain"), "{e}");
    // Misdirected to another authority of the same name.
    let other = World::new();
    let elsewhere = other.authority().await;
    let bad = altered(&good, |t| t.authority = vec![elsewhere.join_address().to_string()]);
    let e = join(&bad, &dir("b")).await.unwrap_err();
    assert!(matches!(&e, AgentError::Link(LinkError::NotTheAuthority { .. })), "{e}");
    // And all the while the true one was good.
    join(&good, &dir("b")).await.unwrap();

    // Expired.
    let short = authority.create_token(name("d"), vec![], Duration::from_secs(1)).await.unwrap();
    let long = token(&authority, "d", &[]).await;
    sleep(Duration::from_millis(2100)).await;
    assert_eq!(denied(join(&short, &dir("d")).await), Code::TokenExpired);
    join(&long, &dir("d")).await.unwrap();
}

#[tokio::test]
async fn a_token_for_another_node_or_trust_domain_is_refused_by_the_node_itself() {
    let world = World::new();
    let authority = world.authority().await;
    let for_b = given(token(&authority, "b", &[]).await);
    let a = world.node("a", for_b.clone(), &[]).await;
    let e = a.error("the join token is for node b").await;
    assert!(e.contains("[node] says a"), "{e}");
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
    node.error("cannot be read").await;
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
    let serial = old.identity("service/db").leaf().serial.clone();

    let again = token(&authority, "a", &["db"]).await;
    join(&again, &world.node_dir("a-reinstalled")).await.unwrap();
    until("revoked", || peer.mesh.bundle().is_revoked(&serial)).await;
    until("the old machine knows", || old.agent.status().removed).await;
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
    until("all know all", || {
        nodes.iter().all(|n| {
            let registry = n.mesh.registry();
            let db = registry.services.get(&name("db"));
            registry.nodes.len() == 100 && db.is_some_and(|i| i.len() == 100)
        })
    })
    .await;
}

// ---- What a node may have.

#[tokio::test]
async fn a_node_gets_what_its_token_names_and_nothing_else() {
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

    // Granted later, it comes by itself, and is announced.
    authority.grant(name("a"), vec![name("secret")], Grant::Add).await.unwrap();
    until("the other", || node.has("service/secret")).await;
    until("announced", || node.knows_service("secret")).await;

    // Withdrawn, it is revoked, dropped and no longer announced.
    let serial = node.identity("service/secret").leaf().serial.clone();
    authority.grant(name("a"), vec![name("db")], Grant::Replace).await.unwrap();
    until("dropped", || !node.has("service/secret")).await;
    assert!(node.mesh.bundle().is_revoked(&serial));
    assert!(!node.knows_service("secret"));
    assert!(node.has("service/db"));
    assert!(refused(authority.grant(name("x"), vec![], Grant::Add).await).contains("no node"));
}

#[tokio::test]
async fn a_service_is_no_node() {
    let world = World::new();
    let authority = world.authority().await;
    let node = world.joined(&authority, "a", &["db"]).await;
    for (who, part) in [("service/db", "not a node"), ("node/a", "comes once")] {
        let config = client_config(&node.mesh, id(who), authority_id(), ALPN_CONTROL).unwrap();
        let mut stream = tls(&authority, config).await;
        let answer = talk(&mut stream, &[frame(HELLO), frame(HELLO)].concat()).await;
        assert!(answer.contains(part), "{answer}");
    }
}

// ---- Life of a mesh.

#[tokio::test]
async fn an_authority_that_restarts_has_lost_nothing() {
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
        assert_eq!(*changes.borrow(), count, "nothing new, so nothing was pushed");
        assert_eq!(authority.ca_status().version, version);
        let after = authority.list_nodes().await.unwrap();
        assert_eq!(after[0].services, before[0].services);
        assert_eq!(after[0].instances, before[0].instances);
        assert_eq!(after[0].acked_version, Some(version));
        // And it works on: news is pushed.
        let _b = world.joined(&authority, "b", &[]).await;
        until("b is known", || node.mesh.registry().nodes.contains(&name("b"))).await;
    }
}

/// The old owner lets go of the file as soon as its last call is done.
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
async fn an_authority_that_lost_its_state_is_not_believed() {
    let world = World::new();
    let authority = world.authority().await;
    let node = world.joined(&authority, "a", &["db"]).await;
    let serial = node.identity("node/a").leaf().serial.clone();
    let addr = authority.local_addr();
    authority.shutdown().await;

    // The store is gone, the keys are there: it does not start, rather than found a new mesh.
    let rebuilt = World::new();
    let lost = Authority::start(world.authority_params(addr), rebuilt.store.clone()).await;
    let Err(AuthorityError::Ca(CaError::RecordMissing { .. })) = lost else { panic!() };
    // The store is there, the keys are gone: neither.
    let mut params = world.authority_params(addr);
    params.dir = rebuilt.dir.path().join("elsewhere");
    let lost = Authority::start(params, world.store.clone()).await;
    let Err(AuthorityError::Ca(CaError::KeyMissing { .. })) = lost else { panic!() };

    // Both are gone.
    let impostor = rebuilt.authority_at(addr).await.unwrap();
    let e = node.error("no root that this node trusts vouches for it").await;
    assert!(e.contains("lost its state"), "{e}");
    sleep(Duration::from_millis(300)).await;
    assert!(impostor.list_nodes().await.unwrap().is_empty());
    assert_eq!(node.identity("node/a").leaf().serial, serial, "what it has, it keeps");

    // A new token, by hand, brings it over.
    let token = token(&impostor, "a", &["db"]).await;
    node.agent.update(world.params("a", given(token), &["db"])).await;
    until("joined anew", || {
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
            let serial = node.identity(what).leaf().serial.clone();
            assert!(serials.insert(serial), "a new one each time");
        }
    }
    assert!(authority.list_nodes().await.unwrap()[0].connected);
    // What is on the disk is what is in force.
    let serial = node.identity("service/db").leaf().serial.clone();
    node.agent.shutdown().await;
    let again = world.node("a", TokenSource::None, &["db", "web"]).await;
    assert_eq!(again.identity("service/db").leaf().serial, serial);
}

#[tokio::test]
async fn identities_are_renewed_at_half_life_by_themselves() {
    let mut world = World::new();
    world.ttls = Ttls { svid: Duration::from_secs(8), intermediate: Duration::from_secs(32) };
    let authority = world.authority().await;
    let node = world.joined(&authority, "a", &["db"]).await;
    let first = authority.ca_status().intermediate.fingerprint;
    let mut serials = BTreeSet::new();
    let end = Instant::now() + Duration::from_secs(24);
    while Instant::now() < end {
        for what in ["node/a", "service/db"] {
            // Never without: `identity` panics if there is none.
            serials.insert(node.identity(what).leaf().serial.clone());
        }
        sleep(Duration::from_millis(20)).await;
    }
    assert!((8..=40).contains(&serials.len()), "{} renewals", serials.len());
    assert_ne!(authority.ca_status().intermediate.fingerprint, first);
    assert!(node.agent.ready());
}

#[tokio::test]
async fn the_intermediate_is_replaced_by_hand_and_by_itself() {
    let world = World::new();
    let authority = world.authority().await;
    let node = world.joined(&authority, "a", &[]).await;
    let before = node.identity("node/a");
    node.connected().await;
    let old = authority.ca_status().intermediate;
    let new = authority.rotate_intermediate().await.unwrap().intermediate;
    assert_ne!(old.fingerprint, new.fingerprint);
    assert_eq!(old.root, new.root);
    assert!(node.agent.status().connected, "streams go on");
    node.agent.renew_now().await.unwrap();
    assert_ne!(node.identity("node/a").chain()[1], before.chain()[1]);
    // Others still take what the old one signed.
    assert!(node.mesh.verify(before.chain(), Role::Client, UnixTime::now()).is_ok());
    let files = world.authority_files();
    assert_eq!(files.len(), 2, "one root, one intermediate: {files:?}");
    // A stray key of a crash is cleared at the next start.
    std::fs::write(world.authority_dir().join("intermediate-00.key"), "x").unwrap();
    let authority = world.restart(authority).await;
    assert_eq!(world.authority_files().len(), 2);
    assert_eq!(authority.ca_status().intermediate.fingerprint, new.fingerprint);

    let ttls = Ttls { svid: Duration::from_secs(1), intermediate: Duration::from_secs(4) };
    authority.update(ttls, None);
    until("by itself", || authority.ca_status().intermediate.fingerprint != new.fingerprint).await;
}

#[tokio::test]
async fn a_root_is_replaced_in_three_stages() {
    let mut world = World::new();
    world.ttls.svid = Duration::from_secs(3);
    let authority = world.authority().await;
    let node = world.joined(&authority, "a", &["db"]).await;
    // Out of turn.
    assert!(refused(authority.activate_root(false).await).contains("no incoming"));
    assert!(refused(authority.retire_root(true).await).contains("no outgoing"));

    // Stage 1.
    let old = authority.ca_status().roots[0].fingerprint.clone();
    authority.rotate_root().await.unwrap();
    assert!(refused(authority.rotate_root().await).contains("under way"));
    until("the node trusts both", || node.mesh.bundle().roots().len() == 2).await;
    let print = |c: &CertificateDer<'_>| hex(&fingerprint(c));
    let new = print(&node.mesh.bundle().roots()[1]);
    assert_ne!(old, new);
    // A rotation that a restart interrupts goes on.
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

    // Stage 3: not before the old root's certificates have expired.
    assert!(refused(authority.retire_root(false).await).contains("hold for another"));
    sleep(Duration::from_secs(5)).await;
    authority.retire_root(false).await.unwrap();
    until("the node trusts the new one alone", || {
        let bundle = node.mesh.bundle();
        bundle.roots().len() == 1 && print(&bundle.roots()[0]) == new
    })
    .await;
    node.agent.renew_now().await.unwrap();
    assert!(node.agent.ready());
    let files = world.authority_files();
    assert!(!files.iter().any(|f| f.contains(&old)), "{files:?}");
    // And a restart of both finds its way.
    node.agent.shutdown().await;
    let _authority = world.restart(authority).await;
    let node = world.node("a", TokenSource::None, &["db"]).await;
    node.ready().await;
    node.connected().await;
}

#[tokio::test]
async fn a_root_is_not_activated_while_a_connected_node_lacks_it() {
    let world = World::new();
    let authority = world.authority().await;
    let node = world.joined(&authority, "a", &[]).await;
    settle(&authority).await;
    node.agent.shutdown().await;
    let connected = async || authority.list_nodes().await.unwrap()[0].connected;
    until_async("gone", async || !connected().await).await;

    // A node that takes what is pushed and confirms nothing.
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
async fn a_removed_node_is_out_everywhere() {
    let world = World::new();
    let authority = world.authority().await;
    let node = world.joined(&authority, "a", &["db"]).await;
    let other = world.joined(&authority, "b", &[]).await;
    until("a's service is known", || other.knows_service("db")).await;
    let unused = token(&authority, "a", &["db"]).await;
    let serials = ["node/a", "service/db"].map(|i| node.identity(i).leaf().serial.clone());
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

    // Neither a restart nor a token from before brings it back.
    node.agent.shutdown().await;
    assert!(!world.node_dir("a").join("node.pem").exists());
    let node = world.node("a", given(unused), &["db"]).await;
    node.error("unknown or wrong token").await;
    assert!(node.mesh.identities().is_empty());
    // A new token does, while it runs.
    let file = world.dir.path().join("token");
    std::fs::write(&file, &**token(&authority, "a", &["db"]).await.encode()).unwrap();
    node.agent.update(world.params("a", TokenSource::File(file), &["db"])).await;
    node.ready().await;
    assert!(!node.agent.status().removed);
    until("the other sees it", || other.knows_service("db")).await;
}

#[tokio::test]
async fn a_node_that_was_away_when_it_was_removed_learns_it_on_return() {
    let world = World::new();
    let authority = world.authority().await;
    let node = world.joined(&authority, "a", &["db"]).await;
    node.agent.shutdown().await;
    authority.remove_node(name("a")).await.unwrap();
    let node = world.node("a", TokenSource::None, &["db"]).await;
    until("it hears", || node.agent.status().removed).await;
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
    assert!(node.mesh.identities().is_empty(), "what has expired is not put into force");
    let authority = world.authority_at(addr).await.unwrap();
    node.ready().await;
    // The same while it runs.
    authority.shutdown().await;
    sleep(Duration::from_secs(4)).await;
    assert!(!node.agent.ready());
    let _authority = world.authority_at(addr).await.unwrap();
    node.ready().await;
    // Another machine's key does not do.
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
    let serial = |n: &Node| n.identity("service/db").leaf().serial.clone();
    assert_eq!(serial(&again), serial(&node));
    again.error("cannot reach the authority").await;
    let _authority = world.authority_at(addr).await.unwrap();
    again.connected().await;
}

#[tokio::test]
async fn damaged_files_are_set_aside_and_fetched_anew() {
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
    // The key of one certificate with another's chain is noticed too.
    let text = |f: &str| String::from_utf8(read(f)).unwrap();
    let (a, b) = (text("node.pem"), text("service-db.pem"));
    let cut = |s: &str| s.find("-----BEGIN CERTIFICATE").unwrap();
    let mixed = format!("{}{}", &b[..cut(&b)], &a[cut(&a)..]);
    std::fs::write(dir.join("node.pem"), mixed).unwrap();
    std::fs::write(dir.join("joined.json"), &whole["joined.json"]).unwrap();
    let node = world.node("a", TokenSource::None, &["db"]).await;
    node.ready().await;
    node.agent.shutdown().await;
    // All of them at once: the enrolment key alone brings it back.
    for file in files {
        std::fs::write(dir.join(file), "gone").unwrap();
    }
    std::fs::write(dir.join("joined.json"), &whole["joined.json"]).unwrap();
    std::fs::write(dir.join("bundle.pem"), &whole["bundle.pem"]).unwrap();
    let node = world.node("a", TokenSource::None, &["db"]).await;
    node.ready().await;
    node.agent.shutdown().await;

    // Another node's folder is refused.
    let mut params = world.params("b", TokenSource::None, &[]);
    params.dir = dir.clone();
    let e = Agent::start(params, Mesh::new(td())).await.err().unwrap().to_string();
    assert!(e.contains("belongs to node a"), "{e}");
}

#[tokio::test]
async fn a_removal_that_a_crash_cut_short_is_finished_by_the_next_start() {
    let world = World::new();
    let authority = world.authority().await;
    let node = world.joined(&authority, "a", &["db"]).await;
    let other = world.joined(&authority, "b", &[]).await;
    let serial = node.identity("service/db").leaf().serial.clone();
    let addr = authority.local_addr();
    authority.shutdown().await;
    // Only the first step was done: the mark.
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
async fn a_removal_reaches_certificates_that_are_long_forgotten() {
    let world = World::new();
    let authority = world.authority().await;
    let node = world.joined(&authority, "a", &["db"]).await;
    let other = world.joined(&authority, "b", &["db"]).await;
    let serial = |n: &Node| n.identity("service/db").leaf().serial.clone();
    let (old, others) = (serial(&node), serial(&other));
    // A session of this certificate goes on through renewals, and past all that was noted of it.
    node.agent.renew_now().await.unwrap();
    assert_ne!(serial(&node), old);
    for entry in world.store.list("issued/").await.unwrap().0 {
        world.store.swap(&entry.key, entry.revision, None).await.unwrap();
    }
    authority.remove_node(name("a")).await.unwrap();
    until("revoked", || other.mesh.bundle().is_revoked(&old)).await;
    // The same service of another node stands.
    assert!(!other.mesh.bundle().is_revoked(&others));
    assert!(other.has("service/db"));
}

#[tokio::test]
async fn a_root_that_is_retired_by_force_is_believed_by_nobody_and_nodes_come_back() {
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
        // In order, what remains of the old root is sessions that are older than their certificates.
        assert_eq!(other.mesh.bundle().stands_by(&peer), !by_force);
        until("the node has certificates of the new root", || {
            let identity = node.mesh.identity(&id("service/db"));
            identity.is_some_and(|i| {
                other.mesh.verify(i.chain(), Role::Server, UnixTime::now()).is_ok()
            })
        })
        .await;
        // It is not forgotten by a restart.
        let authority = world.restart(authority).await;
        let late = world.joined(&authority, "c", &[]).await;
        until("told", || late.agent.status().version > 0).await;
        assert_eq!(late.mesh.bundle().stands_by(&peer), !by_force);
    }
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_not_written_over() {
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
async fn a_state_of_the_same_number_but_another_content_is_pushed_again() {
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
        // A ping, and then something that ends the stream.
        let bytes =
            [frame(hello.to_string().as_bytes()), frame(br#"{"type":"ping"}"#), frame(b"x")]
                .concat();
        let answer = talk(&mut tls(&authority, config.clone()).await, &bytes).await;
        assert!(answer.contains("bad_message"), "{answer}");
        assert_eq!(answer.contains(r#""type":"state""#), again, "{answer}");
    }
}

#[tokio::test]
async fn silent_strangers_from_many_addresses_keep_no_node_out() {
    let world = World::new();
    let authority = world.authority().await;
    let mut silent = Vec::new();
    for n in 0..320u16 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 0, 0, 10 + (n / 64) as u8], 0))).unwrap();
        silent.push(socket.connect(authority.local_addr()).await.unwrap());
    }
    // Each of them has 10 s to say who it is.
    let node = world.joined(&authority, "a", &[]).await;
    node.connected().await;
    // The newest still have them, the oldest made room.
    let mut byte = [0];
    let closed = timeout(Duration::from_secs(5), silent[0].read(&mut byte)).await;
    assert!(matches!(closed, Ok(Ok(0) | Err(_))), "{closed:?}");
    assert!(
        silent[319].try_read(&mut byte).is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock)
    );
}

#[tokio::test]
async fn the_authoritys_own_node_joins_by_itself_and_follows_its_configuration() {
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
    // What the file names no longer is dropped, and cuts nobody.
    let serial = node.identity("service/web").leaf().serial.clone();
    node.agent.shutdown().await;
    let node = start(&authority, &["db"]).await;
    node.ready().await;
    assert!(!node.has("service/web"));
    settle(&authority).await;
    assert!(!node.mesh.bundle().is_revoked(&serial));
}

// ---- Those who mean no good.

async fn tls(
    authority: &AuthorityHandle,
    config: Arc<rustls::ClientConfig>,
) -> tokio_rustls::client::TlsStream<TcpStream> {
    let tcp = TcpStream::connect(authority.local_addr()).await.unwrap();
    let name = "authority.example.org".try_into().unwrap();
    tokio_rustls::TlsConnector::from(config).connect(name, tcp).await.unwrap()
}

fn frame(json: &[u8]) -> Vec<u8> {
    [&(json.len() as u32).to_be_bytes(), json].concat()
}

/// Says something and hears everything that comes back until the end.
async fn talk<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) -> String {
    let _ = stream.write_all(bytes).await;
    let _ = stream.flush().await;
    let mut answer = Vec::new();
    let _ = timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await.expect("an end");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn strangers_who_talk_nonsense_too_much_or_too_slowly_are_cut_off() {
    let mut world = World::new();
    world.times.first_message = Duration::from_millis(500);
    let authority = world.authority().await;
    let node = world.joined(&authority, "a", &["db"]).await;
    // An identity that it does not hold: no certificate is shown.
    let nobody = client_config(&node.mesh, Id::Authority, authority_id(), ALPN_CONTROL).unwrap();
    let member = client_config(&node.mesh, id("node/a"), authority_id(), ALPN_CONTROL).unwrap();

    for (who, bytes, part) in [
        (&nobody, frame(b"nonsense"), "bad_message"),
        (&nobody, frame(br#"{"type":"dance"}"#), "unknown_type"),
        (&nobody, frame(HELLO), "unknown_type"),
        (&nobody, frame(br#"{"type":"join"}"#), "bad_message"),
        (&nobody, frame(&[b"[".repeat(4000), b"]".repeat(4000)].concat()), "bad_message"),
        (&nobody, u32::MAX.to_be_bytes().to_vec(), "is the limit"),
        (&nobody, (8 * 1024 + 1u32).to_be_bytes().to_vec(), "is the limit"),
        (&member, frame(b"nonsense"), "bad_message"),
        (&member, frame(br#"{"type":"ping"}"#), "begins with"),
        (&member, (64 * 1024 + 1u32).to_be_bytes().to_vec(), "is the limit"),
    ] {
        let answer = talk(&mut tls(&authority, who.clone()).await, &bytes).await;
        assert!(answer.contains(part), "{answer:?} lacks {part}");
    }
    // On a stream that has begun.
    for (bytes, part) in
        [(frame(b"{}"), "bad_message"), (u32::MAX.to_be_bytes().to_vec(), "is the limit")]
    {
        let bytes = [frame(HELLO), bytes].concat();
        let answer = talk(&mut tls(&authority, member.clone()).await, &bytes).await;
        assert!(answer.contains(part), "{answer:?} lacks {part}");
    }
    // Plaintext, garbage, nothing, and a drop at a time.
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

    // And all the while members are served.
    node.connected().await;
    let late = world.joined(&authority, "b", &[]).await;
    assert!(late.agent.ready());
}

#[tokio::test]
async fn a_silent_stream_is_ended_and_an_announcement_is_bounded() {
    let mut world = World::new();
    world.times.silence = Duration::from_secs(1);
    let authority = world.authority().await;
    let node = world.joined(&authority, "a", &["db"]).await;
    node.agent.shutdown().await;
    let config = client_config(&node.mesh, id("node/a"), authority_id(), ALPN_CONTROL).unwrap();

    let began = Instant::now();
    talk(&mut tls(&authority, config.clone()).await, &frame(HELLO)).await;
    assert!((900..10_000).contains(&(began.elapsed().as_millis() as u64)));

    let offer =
        |s: &str| Offer { service: name(s), addr: "10.0.0.1:1".parse().unwrap(), allow: vec![] };
    let announce = |offers: Vec<Offer>| {
        let message = serde_json::json!({ "type": "announce", "instances": offers });
        frame(message.to_string().as_bytes())
    };
    let many = announce(vec![offer("db"); 300]);
    let mixed = announce(vec![offer("db"), offer("web")]);
    let bytes = [frame(HELLO), many, mixed].concat();
    let answer = talk(&mut tls(&authority, config).await, &bytes).await;
    assert!(answer.contains("300 instances"), "{answer}");
    assert!(answer.contains("may not claim web"), "{answer}");
    // The good half counts.
    assert_eq!(authority.list_nodes().await.unwrap()[0].instances, [offer("db")]);
}

#[tokio::test]
async fn a_busy_port_is_said_to_be_one() {
    let world = World::new();
    let authority = world.authority().await;
    let other = World::new();
    let e = other.authority_at(authority.local_addr()).await.err().unwrap();
    assert!(matches!(e, AuthorityError::Bind { .. }), "{e}");
    assert!(e.to_string().contains("another program"), "{e}");
}
