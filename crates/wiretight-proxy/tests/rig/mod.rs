//! A certificate authority and two nodes in one process: real relays and sockets; the test takes the role of the
//! control side.
#![allow(dead_code, reason = "each test binary uses what it needs of the rig")]

pub mod edge;
pub mod foreign;
pub mod frames;
#[path = "../../../../tests/ports.rs"]
mod ports;
pub mod tls;

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub use ports::free;
use rustls_pki_types::CertificateDer;
use socket2::SockRef;
use wiretight_keys::{
    Id, Name, Period, Profile, Signer, SigningKey, SpiffeId, Tbs, TrustBundle, TrustDomain,
};
pub use wiretight_proxy::Reason;
use wiretight_proxy::clock::now;
use wiretight_proxy::reason::Place;
use wiretight_proxy::relay::settings::{DialSettings, RelaySettings, ServiceSettings};
use wiretight_proxy::relay::{Side, Sums};
use wiretight_proxy::{Identity, Mesh, Relay};

pub const TRUST_DOMAIN: &str = "test.example";

/// The authority of a trust domain, operated by the test.
pub struct Ca {
    pub td: TrustDomain,
    pub root: CertificateDer<'static>,
    pub intermediate: CertificateDer<'static>,
    key: SigningKey,
    serial: AtomicU64,
}

impl Ca {
    pub fn new(td: &str) -> Ca {
        Ca::with(td, |tbs| tbs)
    }

    /// An authority with an intermediate that `change` modified before it was signed.
    pub fn with(td: &str, change: impl FnOnce(Tbs) -> Tbs) -> Ca {
        let td: TrustDomain = td.parse().unwrap();
        let period = Period { not_before: now() - 60, not_after: now() + 86_400 };
        let root_key = SigningKey::generate().unwrap();
        let profile = Profile::Root(td.clone());
        let algorithm = root_key.algorithm();
        let spki = root_key.public_key();
        let root = Tbs::new(&profile, &spki, period, [1; 16], None, algorithm.clone());
        let root = root.unwrap().sign(&root_key).unwrap();
        let key = SigningKey::generate().unwrap();
        let profile = Profile::Intermediate(td.clone());
        let tbs = Tbs::new(&profile, &key.public_key(), period, [2; 16], Some(&root), algorithm);
        let intermediate = change(tbs.unwrap()).sign(&root_key).unwrap();
        Ca { td, root, intermediate, key, serial: AtomicU64::new(1) }
    }

    /// An identity valid from a minute ago until `secs` from now (which may be negative).
    pub fn issue(&self, id: &str, secs: i64) -> (Vec<CertificateDer<'static>>, SigningKey) {
        self.issue_with(id, secs, |tbs| tbs)
    }

    /// An identity that `change` modified before it was signed.
    pub fn issue_with(
        &self,
        id: &str,
        secs: i64,
        change: impl FnOnce(Tbs) -> Tbs,
    ) -> (Vec<CertificateDer<'static>>, SigningKey) {
        let id: Id = id.parse().unwrap();
        let key = SigningKey::generate().unwrap();
        let mut serial = [0; 16];
        // Each has its own series.
        serial[..8].copy_from_slice(&self.serial.fetch_add(1, Ordering::Relaxed).to_be_bytes());
        let not_after = now().checked_add_signed(secs).unwrap();
        let tbs = Tbs::new(
            &Profile::Leaf(SpiffeId::new(self.td.clone(), id)),
            &key.public_key(),
            Period { not_before: (now() - 60).min(not_after - 1), not_after },
            serial,
            Some(&self.intermediate),
            self.key.algorithm(),
        );
        let leaf = change(tbs.unwrap()).sign(&self.key).unwrap();
        (vec![leaf, self.intermediate.clone()], key)
    }

    pub fn identity(&self, id: &str, secs: i64) -> Arc<Identity> {
        let (chain, key) = self.issue(id, secs);
        Arc::new(Identity::new(chain, &key).unwrap())
    }

    pub fn bundle(&self) -> TrustBundle {
        TrustBundle::new(self.td.clone(), vec![self.root.clone()], Default::default()).unwrap()
    }

    /// A node's view of the mesh, with these identities for an hour.
    pub fn mesh(&self, ids: &[&str]) -> Arc<Mesh> {
        let mesh = Mesh::new(self.td.clone());
        mesh.set_bundle(self.bundle());
        self.give(&mesh, ids, 3600);
        mesh
    }

    /// Gives a node new identities.
    pub fn give(&self, mesh: &Mesh, ids: &[&str], secs: i64) {
        let identity = |id: &&str| (id.parse().unwrap(), self.identity(id, secs));
        mesh.set_identities(ids.iter().map(identity).collect::<BTreeMap<_, _>>());
    }
}

pub fn service(listen: SocketAddr, forward: &[String], allow: &[&str]) -> ServiceSettings {
    ServiceSettings {
        name: "db".parse().unwrap(),
        listen,
        forward: forward.iter().map(|f| f.parse().unwrap()).collect(),
        allow: allow.iter().map(|a| a.parse().unwrap()).collect(),
        proxy_protocol: false,
        transparent: false,
        idle_timeout: None,
        max_per_peer: 10_000,
        ports: vec![],
    }
}

pub fn dial(listen: SocketAddr, to: &[SocketAddr]) -> DialSettings {
    DialSettings {
        listen,
        service: "db".parse().unwrap(),
        identity: Id::Service("web".parse().unwrap()),
        to: to.iter().map(|a| (*a).into()).collect(),
        idle_timeout: None,
    }
}

/// client program -> `dial` -> relay A -> relay B -> backend.
pub struct Pair {
    pub ca: Ca,
    pub a: Relay,
    pub b: Relay,
    pub mesh_a: Arc<Mesh>,
    pub mesh_b: Arc<Mesh>,
    pub service: ServiceSettings,
    pub dial: DialSettings,
}

impl Pair {
    pub fn new(backends: &[String]) -> Pair {
        Pair::with(backends, |_, _| {})
    }

    pub fn with(
        backends: &[String],
        change: impl FnOnce(&mut ServiceSettings, &mut DialSettings),
    ) -> Pair {
        Pair::of(Ca::new(TRUST_DOMAIN), backends, change)
    }

    pub fn of(
        ca: Ca,
        backends: &[String],
        change: impl FnOnce(&mut ServiceSettings, &mut DialSettings),
    ) -> Pair {
        let (mesh_a, mesh_b) = (ca.mesh(&["service/web"]), ca.mesh(&["service/db"]));
        let (a, b) =
            (Relay::start(mesh_a.clone(), 1).unwrap(), Relay::start(mesh_b.clone(), 1).unwrap());
        let mut service = service(free(), backends, &["service/web"]);
        let mut dial = dial(free(), &[service.listen]);
        change(&mut service, &mut dial);
        let pair = Pair { ca, a, b, mesh_a, mesh_b, service, dial };
        pair.b
            .apply(&RelaySettings {
                services: vec![pair.service.clone()],
                dials: vec![],
                intercept: None,
            })
            .unwrap();
        pair.a
            .apply(&RelaySettings {
                services: vec![],
                dials: vec![pair.dial.clone()],
                intercept: None,
            })
            .unwrap();
        pair
    }

    /// The address for the client program.
    pub fn entry(&self) -> SocketAddr {
        self.dial.listen
    }

    /// A client program's connection.
    pub fn connect(&self) -> TcpStream {
        connect(self.entry())
    }

    /// Applies these services to relay B.
    pub fn apply_services(&self, services: &[&ServiceSettings]) {
        let services = services.iter().map(|s| (*s).clone()).collect();
        self.b.apply(&RelaySettings { services, dials: vec![], intercept: None }).unwrap();
    }

    /// Whether no session is running on either side.
    pub fn at_rest(&self) -> bool {
        sums(&self.a).live == 0 && sums(&self.b).live == 0
    }
}

/// The totals of a relay with one service or dial.
pub fn sums(relay: &Relay) -> Sums {
    relay.status(0).sums[0].clone()
}

/// The number of refusals on this side for this reason.
pub fn refused(relay: &Relay, side: Side, reason: Reason) -> u64 {
    let place = match side {
        Side::Service => Place::Service,
        Side::Dial => Place::Dial,
    };
    assert!(reason.sides().contains(&place), "{reason} does not occur at {side:?}");
    let all = relay.status(0).refused;
    all.iter().filter(|r| r.side == side && r.reason == reason).map(|r| r.count).sum()
}

/// The refusals in `status`, for messages.
pub fn reasons(relay: &Relay) -> Vec<(Side, Reason, String)> {
    relay.status(0).refusals.into_iter().map(|r| (r.side, r.reason, r.detail)).collect()
}

/// Waits until this side has a refusal for this reason.
pub fn expect_refused(relay: &Relay, side: Side, reason: Reason) {
    for _ in 0..1000 {
        if refused(relay, side, reason) > 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("not refused for {reason}: {:?}", reasons(relay));
}

/// Connects, with time limits so that a failing test does not hang.
pub fn connect(to: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(to).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.set_write_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// A backend that runs `serve` for each connection.
pub fn backend(serve: impl Fn(TcpStream) + Send + Sync + Clone + 'static) -> String {
    backend_at("127.0.0.1:0".parse().unwrap(), serve).to_string()
}

pub fn backend_at(
    addr: SocketAddr,
    serve: impl Fn(TcpStream) + Send + Sync + Clone + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind(addr).unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let serve = serve.clone();
            std::thread::spawn(move || serve(socket));
        }
    });
    addr
}

pub fn echo(mut socket: TcpStream) {
    let mut buf = vec![0; 65536];
    while let Ok(n) = socket.read(&mut buf) {
        if n == 0 || socket.write_all(&buf[..n]).is_err() {
            break;
        }
    }
}

/// Sends a word and checks the echo.
pub fn ping(socket: &mut TcpStream, word: &[u8]) -> io::Result<()> {
    socket.write_all(word)?;
    let mut answer = vec![0; word.len()];
    socket.read_exact(&mut answer)?;
    assert_eq!(answer, word);
    Ok(())
}

/// Closes with a RST.
pub fn reset(socket: TcpStream) {
    SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Whether the next read fails because of a RST.
pub fn is_reset(socket: &mut TcpStream) -> bool {
    matches!(socket.read(&mut [0]), Err(e) if e.kind() == io::ErrorKind::ConnectionReset)
}

/// Waits until the socket has received a RST, without reading from it.
pub fn eventually_reset(what: &str, socket: &TcpStream) {
    eventually(what, || matches!(SockRef::from(socket).take_error(), Ok(Some(_))));
}

/// Pseudo-random numbers, the same in every run.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next() as u8).collect()
    }
}

pub fn name(s: &str) -> Name {
    s.parse().unwrap()
}

/// Longer than anything takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `done`, or fails after [`PATIENCE`].
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
