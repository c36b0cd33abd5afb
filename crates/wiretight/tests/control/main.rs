//! Nodes and the authority together, over real TLS on loopback: joins, renewals, rotations, removals, and all refusals.

// clippy.toml allows it in test functions, but not in their helpers.
#![allow(clippy::unwrap_used)]

mod announced;
mod claims;
mod hostile;
mod joining;
mod life;
mod many;
mod releases;
mod shared;
mod totals;

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
    Authority, AuthorityError, AuthorityHandle, AuthorityParams, CaError, Grant, LogParams,
    ReleaseParams, Times, Ttls,
};
use wiretight::control::{Code, Offer};
use wiretight::log::sequencer::LogError;
use wiretight_keys::token::hex;
use wiretight_keys::x509::fingerprint;
use wiretight_keys::{
    Csr, Id, JoinToken, Name, Role, Series, SigningKey, SpiffeId, Transparency, TrustDomain,
};
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

/// The environment of a mesh: the authority's directory and store, and the nodes' directories.
struct World {
    dir: tempfile::TempDir,
    store: Arc<dyn Store>,
    ttls: Ttls,
    times: Times,
    log: LogParams,
    releases: ReleaseParams,
}

impl World {
    fn new() -> World {
        let ttls = Ttls { svid: HOUR, intermediate: 24 * HOUR };
        let times = Times { debounce: Duration::from_millis(10), ..Times::default() };
        let dir = tempfile::tempdir().unwrap();
        let (store, log, releases) =
            (Arc::new(MemoryStore::new()), Default::default(), Default::default());
        World { dir, store, ttls, times, log, releases }
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
            log: self.log.clone(),
            releases: self.releases.clone(),
        }
    }

    async fn authority_at(&self, listen: SocketAddr) -> Result<AuthorityHandle, AuthorityError> {
        Authority::start(self.authority_params(listen), self.store.clone()).await
    }

    async fn authority(&self) -> AuthorityHandle {
        self.authority_at("127.0.0.1:0".parse().unwrap()).await.unwrap()
    }

    /// Restarts the authority with the same store and address.
    async fn restart(&self, old: AuthorityHandle) -> AuthorityHandle {
        let addr = old.local_addr();
        old.shutdown().await;
        drop(old);
        self.authority_at(addr).await.unwrap()
    }

    /// The names of the authority's files, without those of the log.
    fn authority_files(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.authority_dir()).unwrap();
        let names = files.map(|f| f.unwrap().file_name().into_string().unwrap());
        names.filter(|name| !name.starts_with("log")).collect()
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
            ports: vec![],
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
            transparency: Transparency::NotRequired,
            max_staleness: None,
            needs_mesh: true,
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

    /// A node that has joined and has all its identities.
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

    /// Waits until the last error contains `part`.
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

/// Waits until `holds` is true.
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

/// Waits until every connected node has had the newest state for some time.
async fn settle(authority: &AuthorityHandle) {
    let (mut calm, mut last) = (0, 0);
    let end = Instant::now() + Duration::from_secs(15);
    while calm < 10 {
        let status = authority.ca_status();
        calm = if status.version == last && status.behind.is_empty() { calm + 1 } else { 0 };
        last = status.version;
        assert!(Instant::now() < end, "the state does not settle: {status:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// A changed copy of a token.
fn altered(token: &JoinToken, change: impl FnOnce(&mut JoinToken)) -> JoinToken {
    let mut copy = JoinToken::decode(&token.encode()).unwrap();
    change(&mut copy);
    copy
}

async fn join(token: &JoinToken, dir: &Path) -> Result<(), AgentError> {
    join_once(token, dir, &[], &Transparency::NotRequired, AgentTimes::default()).await.map(|_| ())
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

async fn tls(
    authority: &AuthorityHandle,
    config: Arc<rustls::ClientConfig>,
) -> tokio_rustls::client::TlsStream<TcpStream> {
    let tcp = TcpStream::connect(authority.local_addr()).await.unwrap();
    let name = "authority.example.org".try_into().unwrap();
    tokio_rustls::TlsConnector::from(config).connect(name, tcp).await.unwrap()
}

/// Sends a message on a new stream of a node, and returns all responses until that to a ping.
async fn exchange(
    authority: &AuthorityHandle,
    config: &Arc<rustls::ClientConfig>,
    message: &serde_json::Value,
) -> String {
    let bytes = [HELLO, message.to_string().as_bytes(), br#"{"type":"ping"}"#].map(frame);
    let mut stream = tls(authority, config.clone()).await;
    stream.write_all(&bytes.concat()).await.unwrap();
    stream.flush().await.unwrap();
    let mut said = String::new();
    let mut buffer = vec![0; 64 << 10];
    while !said.contains(r#""pong""#) {
        let n = timeout(Duration::from_secs(20), stream.read(&mut buffer)).await.unwrap().unwrap();
        assert_ne!(n, 0, "closed after {said}");
        said += &String::from_utf8_lossy(&buffer[..n]);
    }
    said
}

fn frame(json: &[u8]) -> Vec<u8> {
    [&(json.len() as u32).to_be_bytes(), json].concat()
}

/// Sends bytes and returns everything received until the end of the stream.
async fn talk<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) -> String {
    let _ = stream.write_all(bytes).await;
    let _ = stream.flush().await;
    let mut answer = Vec::new();
    let _ = timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await.expect("an end");
    String::from_utf8_lossy(&answer).into_owned()
}
