//! The cost of a full handshake between two nodes: with rustls in memory, and over a socket as relays do it, with both
//! ends on the same thread. Both use the configuration of a relay: TLS 1.3, X25519MLKEM768, certificates of both ends
//! verified (a known chain by its hash), no resumption.

use std::{
    collections::BTreeMap,
    io::Read,
    net::SocketAddr,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{anyhow, ensure};
use rustls::{
    ClientConfig, ClientConnection, CommonState, ConnectionCommon, ServerConfig, ServerConnection,
    SideData, pki_types::ServerName,
};
use tokio::{
    net::TcpListener,
    sync::mpsc,
    task::{JoinSet, spawn_local},
};
use wiretight_keys::{
    Id, Period, Profile, Role, Signer, SigningKey, SpiffeId, Tbs, TrustBundle, TrustDomain,
};
use wiretight_proxy::{
    Identity, Mesh,
    clock::now,
    net::{self, Sockets},
    provider,
    stream::{HandshakeInfo, TlsStream},
    tls::{self, ALPN_RELAY, Strangers},
};

use crate::common::{loopback, procfs};

/// Concurrent connections, over sockets.
const CONNECTORS: usize = 16;
/// How long each of the two runs before the other, so that other load on the machine affects both.
const TURN: Duration = Duration::from_millis(200);
const DEADLINE: Duration = Duration::from_secs(10);

/// The CPU time of full handshakes.
#[derive(Clone, Copy, Default)]
pub(crate) struct Shaken {
    pub(crate) done: u64,
    pub(crate) cpu: Duration,
    pub(crate) took: Duration,
}

impl Shaken {
    pub(crate) fn cpu_us(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.done as f64
    }

    pub(crate) fn per_s(&self) -> f64 {
        self.done as f64 / self.took.as_secs_f64()
    }

    fn add(&mut self, shake: impl FnOnce() -> anyhow::Result<u64>) -> anyhow::Result<()> {
        let (cpu, start) = (procfs::thread_cpu()?, Instant::now());
        self.done += shake()?;
        self.took += start.elapsed();
        self.cpu += procfs::thread_cpu()? - cpu;
        Ok(())
    }
}

/// Both alternately, for `time` each.
#[derive(Clone, Copy, Default)]
pub(crate) struct Both {
    pub(crate) in_memory: Shaken,
    pub(crate) over_sockets: Shaken,
}

/// Runs the handshakes on a separate thread.
pub(crate) fn measure(time: Duration) -> anyhow::Result<Both> {
    let measuring = thread::spawn(move || {
        let ends = Arc::new(Ends::new()?);
        // The same settings as in a worker.
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().event_interval(61).build_local(Default::default())?;
        let mut relay = runtime.block_on(Listening::start(&ends))?;
        let mut both = Both::default();
        while both.in_memory.took < time {
            both.in_memory.add(|| in_memory(&ends))?;
            both.over_sockets.add(|| runtime.block_on(over_sockets(&ends, &mut relay)))?;
        }
        Ok(both)
    });
    measuring.join().map_err(|_| anyhow!("the thread that shakes hands has died"))?
}

/// Two nodes of one mesh.
struct Ends {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    name: ServerName<'static>,
    client_mesh: Arc<Mesh>,
    server_mesh: Arc<Mesh>,
}

impl Ends {
    fn new() -> anyhow::Result<Self> {
        let domain: TrustDomain = "bench.example".parse()?;
        let period = Period { not_before: now() - 60, not_after: now() + 86_400 };
        let issue = |profile, key: &SigningKey, serial, issuer: Option<(&_, &SigningKey)>| {
            let signer = issuer.map_or(key, |(_, signer)| signer);
            let (spki, algorithm) = (key.public_key(), signer.algorithm());
            let issuer = issuer.map(|(cert, _)| cert);
            Tbs::new(&profile, &spki, period, [serial; 16], issuer, algorithm)?.sign(signer)
        };
        let [root_key, middle_key] = [SigningKey::generate()?, SigningKey::generate()?];
        let root = issue(Profile::Root(domain.clone()), &root_key, 1, None)?;
        let middle = Profile::Intermediate(domain.clone());
        let middle = issue(middle, &middle_key, 2, Some((&root, &root_key)))?;
        let node = |service: &str, serial| -> anyhow::Result<(Arc<Mesh>, SpiffeId)> {
            let (id, key) = (Id::Service(service.parse()?), SigningKey::generate()?);
            let spiffe_id = SpiffeId::new(domain.clone(), id.clone());
            let leaf = Profile::Leaf(spiffe_id.clone());
            let leaf = issue(leaf, &key, serial, Some((&middle, &middle_key)))?;
            let identity = Identity::new(vec![leaf, middle.clone()], &key)?;
            let mesh = Mesh::new(domain.clone());
            let roots = vec![root.clone()];
            mesh.set_bundle(TrustBundle::new(domain.clone(), roots, Default::default())?);
            mesh.set_identities(BTreeMap::from([(id, Arc::new(identity))]));
            Ok((mesh, spiffe_id))
        };
        let (client_mesh, caller) = node("web", 3)?;
        let (server_mesh, callee) = node("echo", 4)?;
        let strangers = Strangers::Refused;
        Ok(Self {
            name: callee.dns_name().try_into()?,
            server: tls::server_config(&server_mesh, callee.id.clone(), ALPN_RELAY, strangers)?,
            client: tls::client_config(&client_mesh, caller.id, callee, ALPN_RELAY)?,
            client_mesh,
            server_mesh,
        })
    }
}

/// One after another, with only a buffer between the two ends. Returns the number of handshakes.
fn in_memory(ends: &Ends) -> anyhow::Result<u64> {
    let (start, mut done) = (Instant::now(), 0);
    let mut buffer = Vec::new();
    while start.elapsed() < TURN {
        let mut client = ClientConnection::new(ends.client.clone(), ends.name.clone())?;
        let mut server = ServerConnection::new(ends.server.clone())?;
        while client.is_handshaking() || server.is_handshaking() {
            pass(&mut client, &mut server, &mut buffer)?;
            pass(&mut server, &mut client, &mut buffer)?;
        }
        ensure!(is_post_quantum(&client) && is_post_quantum(&server), "not by X25519MLKEM768");
        done += 1;
    }
    Ok(done)
}

/// Passes the output of one end to the other.
fn pass<A: SideData, B: SideData>(
    from: &mut ConnectionCommon<A>,
    to: &mut ConnectionCommon<B>,
    buffer: &mut Vec<u8>,
) -> anyhow::Result<()> {
    buffer.clear();
    while from.wants_write() {
        from.write_tls(buffer)?;
    }
    let mut left = &buffer[..];
    while !left.is_empty() {
        to.read_tls(&mut left.by_ref())?;
        to.process_new_packets()?;
    }
    Ok(())
}

fn is_post_quantum(end: &CommonState) -> bool {
    end.negotiated_key_exchange_group().is_some_and(|group| provider::is_post_quantum(group.name()))
}

/// The server's end: it accepts connections and reports the result of each handshake.
struct Listening {
    at: SocketAddr,
    accepted: mpsc::UnboundedReceiver<anyhow::Result<()>>,
}

impl Listening {
    async fn start(ends: &Arc<Ends>) -> anyhow::Result<Self> {
        let sockets = Sockets::default().bind(loopback(0), 1)?;
        let socket = sockets.into_iter().next().expect("one worker has one");
        let socket = TcpListener::from_std(socket)?;
        let at = socket.local_addr()?;
        let (tell, accepted) = mpsc::unbounded_channel();
        let ends = ends.clone();
        spawn_local(async move {
            while let Ok((socket, _)) = socket.accept().await {
                let (ends, tell) = (ends.clone(), tell.clone());
                // If the measurement has failed, the receiver is gone.
                spawn_local(async move { drop(tell.send(accept(&ends, socket).await)) });
            }
        });
        Ok(Self { at, accepted })
    }
}

/// [`CONNECTORS`] at a time, each with its own connection. Returns the number of handshakes.
async fn over_sockets(ends: &Arc<Ends>, relay: &mut Listening) -> anyhow::Result<u64> {
    let (start, at) = (Instant::now(), relay.at);
    let mut connectors = JoinSet::new();
    for _ in 0..CONNECTORS {
        let ends = ends.clone();
        connectors.spawn_local(async move {
            let mut done = 0;
            while start.elapsed() < TURN {
                connect(&ends, at).await?;
                done += 1;
            }
            anyhow::Ok(done)
        });
    }
    let mut done = 0;
    while let Some(connector) = connectors.join_next().await {
        done += connector??;
    }
    for _ in 0..done {
        relay.accepted.recv().await.ok_or_else(|| anyhow!("the accepting end has stopped"))??;
    }
    Ok(done)
}

async fn connect(ends: &Ends, to: SocketAddr) -> anyhow::Result<()> {
    let socket = net::connect(&to.into()).await?;
    let (config, name) = (ends.client.clone(), ends.name.clone());
    let (_tls, info) = TlsStream::connect(socket, config, name, DEADLINE).await?;
    check(&ends.client_mesh, &info, Role::Server)
}

async fn accept(ends: &Ends, socket: tokio::net::TcpStream) -> anyhow::Result<()> {
    let choose = |_: &rustls::server::ClientHello<'_>| ends.server.clone();
    let (_tls, info) = TlsStream::accept(socket, choose, DEADLINE).await?;
    check(&ends.server_mesh, &info, Role::Client)
}

/// The check that a relay makes before it registers a connection.
fn check(mesh: &Mesh, info: &HandshakeInfo, role: Role) -> anyhow::Result<()> {
    tls::peer(mesh, &info.chain, role)?;
    ensure!(provider::is_post_quantum(info.negotiated.group), "not by X25519MLKEM768");
    Ok(())
}
