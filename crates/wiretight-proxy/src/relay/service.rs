//! `[[service]]`: mutual TLS in, plaintext connections out to the program.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use rustls::ServerConfig;
use rustls::server::ClientHello;
use tokio::net::TcpStream;
use tokio::time::timeout;
use wiretight_keys::Id;

use super::balance::Lease;
use super::live::{Listed, Live, Opening, SessionStart, Side, Table, Totals, cipher_name};
use super::log::access;
use super::proxy_protocol;
use super::purpose::{Service, Terms};
use super::session::{Conn, End};
use super::settings::ServiceSettings;
use crate::admission::HandshakeSlot;
use crate::app::App;
use crate::clock::now;
use crate::handshake::explain;
use crate::mesh::Mesh;
use crate::net;
use crate::network::Backend;
use crate::provider;
use crate::reason::Reason;
use crate::stream::TlsStream;
use crate::tls::{self, ALPN_RELAY, Strangers};
use crate::wire::{Frame, Open, Refused};

const H2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";
/// The time limit of a handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The time limit for reaching a backend, over all attempts: less than [`CONTROL`](super::session::CONTROL). After
/// that the client gives up, without knowing whether its data reached a backend.
const CONNECT: Duration = Duration::from_secs(8);

impl Service {
    pub(crate) fn new(
        settings: ServiceSettings,
        mesh: &Arc<Mesh>,
        table: &Arc<Table>,
        before: Option<&Service>,
    ) -> Result<Service, rustls::Error> {
        let identity = Id::Service(settings.name.clone());
        let balancer = before.map(|b| b.balancer.clone()).unwrap_or_default();
        let tls = tls::server_config(mesh, identity, ALPN_RELAY, Strangers::Refused)?;
        let selecting = |alpn: Vec<Vec<u8>>| {
            let mut config = ServerConfig::clone(&tls);
            config.alpn_protocols = alpn;
            Arc::new(config)
        };
        Ok(Service {
            raw_tls: selecting(Vec::new()),
            h2_tls: selecting(vec![H2.to_vec()]),
            tls,
            totals: table.totals(Side::Service, &settings.name),
            mesh: mesh.clone(),
            table: table.clone(),
            balancer,
            settings,
        })
    }

    /// A client that offers only other protocols than ours speaks them to the program, and we carry a raw stream
    /// (wire.md, section 3). We do not know which protocol the program speaks, so none is selected if the client has
    /// a choice (curl: h2 and http/1.1). A client without a choice gets what it requires: HTTP/2 (gRPC), or its only
    /// protocol.
    fn tls_for(&self, hello: &ClientHello<'_>) -> Arc<ServerConfig> {
        let Some(offered) = hello.alpn() else { return self.tls.clone() };
        let offered: Vec<&[u8]> = offered.collect();
        match offered[..] {
            _ if offered.contains(&ALPN_RELAY) => self.tls.clone(),
            _ if offered.contains(&HTTP1) && offered.len() > 1 => self.raw_tls.clone(),
            _ if offered.contains(&H2) => self.h2_tls.clone(),
            [one] => {
                let mut config = ServerConfig::clone(&self.tls);
                config.alpn_protocols = vec![one.to_vec()];
                Arc::new(config)
            }
            _ => self.raw_tls.clone(),
        }
    }

    /// Whether the peer is still trusted; if not, logs why.
    fn check_peer(&self, listed: &Listed) -> bool {
        let standing = self.mesh.standing(listed.peer());
        if let Err(refusal) = &standing {
            self.refuse(listed.addr(), Some(listed), refusal.into(), refusal.to_string());
        }
        standing.is_ok()
    }

    fn refuse(&self, from: SocketAddr, live: Option<&Live>, reason: Reason, detail: String) {
        let peer = live.map(|l| l.peer().id());
        self.table.refuse(Side::Service, &self.settings.name, from, peer, reason, detail);
    }
}

/// Serves one connection until it is closed: any number of sessions, one after another.
pub(crate) fn serve(
    terms: Rc<Terms>,
    socket: TcpStream,
    from: SocketAddr,
    held: (HandshakeSlot, Opening),
) -> impl Future<Output = ()> {
    // Boxed, so that its memory is not part of the session's task.
    let admitted = Box::pin(admit(terms, socket, from, held));
    async move {
        let Some(mut admitted) = admitted.await else { return };
        let last = loop {
            let (service, app, lease, begun) = match admitted.next().await {
                Ok(begun) => begun,
                Err(last) => break last,
            };
            let limit = service.settings.idle_timeout;
            let (end, reusable) = admitted.conn.run(app, &admitted.listed, limit).await;
            let (listed, settings) = (&admitted.listed, &service.settings);
            let moved = listed.finish(&begun);
            access(Side::Service, &settings.name, listed, &lease.to_string(), &moved, &end);
            if let End::Protocol(e) = &end {
                service.refuse(listed.addr(), Some(listed), Reason::ProtocolError, e.to_string());
            }
            if !reusable {
                break Last::Abort;
            }
        };
        match last {
            Last::Close => admitted.conn.tls.close(),
            Last::Abort => admitted.conn.tls.abort(),
            Last::Gone => {}
        }
    }
}

/// A connection that can carry sessions.
struct Admitted {
    conn: Conn,
    listed: Listed,
    /// With the configuration at the end of the handshake.
    service: Arc<Service>,
    terms: Rc<Terms>,
}

/// How to close a connection after its last session.
enum Last {
    /// In order, with close_notify.
    Close,
    Abort,
    /// The peer's process or network is gone.
    Gone,
}

/// Does the handshake. The connection of a non-Wiretight peer is served to its end here.
async fn admit(
    terms: Rc<Terms>,
    socket: TcpStream,
    from: SocketAddr,
    (slot, opening): (HandshakeSlot, Opening),
) -> Option<Admitted> {
    let service = terms.service()?;
    let (conn, listed) = accept(&service, socket, from).await?;
    drop(slot);
    let mut admitted = Admitted { conn, listed, service, terms };
    match admitted.newest().filter(|_| !admitted.terms.is_removed()) {
        Some(service) => admitted.service = service,
        None => {
            admitted.conn.tls.close();
            return None;
        }
    }
    if !admitted.conn.framed {
        let raw = serve_raw(&admitted.service, admitted.conn, &admitted.listed, opening);
        Box::pin(raw).await; // boxed, to keep the handshake's task small
        return None;
    }
    Some(admitted)
}

impl Admitted {
    /// The current configuration, not the one at the start of the handshake. The handshake was for one service, so
    /// another service on this listener must not take over the connection.
    fn newest(&self) -> Option<Arc<Service>> {
        self.terms.service().filter(|new| new.settings.name == self.service.settings.name)
    }

    /// Waits for an OPEN that can be accepted, for hours if necessary, and starts the session.
    async fn next(&mut self) -> Result<(Arc<Service>, App, Lease<Backend>, SessionStart), Last> {
        loop {
            let Some(open) = self.open().await? else { return Err(Last::Close) };
            // Check again, because the connection may have been idle for hours.
            let Some(service) = self.newest() else { return Err(Last::Close) };
            let own = service.mesh.identity(&Id::Service(service.settings.name.clone()));
            if self.terms.are_over() || own.is_none() || now() > self.listed.peer().not_after() {
                // The OPEN has no effect: the client may retry here or elsewhere (wire.md).
                return Err(Last::Close);
            }
            if !service.check_peer(&self.listed) {
                return Err(Last::Abort);
            }
            // Boxed, so that its memory is not part of the session's task.
            match Box::pin(begin(&service, &mut self.conn, &self.listed, open)).await {
                Ok(Some((app, lease, begun))) => return Ok((service, app, lease, begun)),
                Ok(None) => {}
                Err(Unusable) => return Err(Last::Abort),
            }
        }
    }

    /// Waits for the next OPEN. `None` if none will come or be accepted.
    async fn open(&mut self) -> Result<Option<Open>, Last> {
        let idle = Idle::new(&self.service.totals);
        let open = tokio::select! {
            biased;
            _ = self.listed.cut() => return Err(Last::Abort),
            open = self.conn.read_open() => open,
            () = Box::pin(self.terms.over()) => return Ok(None), // boxed: not needed by a session
        };
        drop(idle);
        match open {
            Ok(open) => Ok(open),
            Err(End::Protocol(e)) => {
                self.service.refuse(
                    self.listed.addr(),
                    Some(&self.listed),
                    Reason::ProtocolError,
                    e.to_string(),
                );
                Err(Last::Abort)
            }
            Err(_) => Err(Last::Gone), // no session was started
        }
    }
}

struct Unusable;

/// Handles an OPEN and responds. `None` if the session was refused and has ended.
async fn begin(
    service: &Service,
    conn: &mut Conn,
    listed: &Listed,
    open: Open,
) -> Result<Option<(App, Lease<Backend>, SessionStart)>, Unusable> {
    let _opening = service.table.opening();
    let start = Instant::now();
    let refusal = if open.service != service.settings.name {
        let detail = format!("the client requested service/{}", open.service);
        Some((Refused::NoSuchService, detail))
    } else {
        not_allowed(service, listed).map(|detail| (Refused::NotAllowed, detail))
    };
    let opened = match refusal {
        Some(refusal) => Err(refusal),
        None => connect_in_time(service, listed, conn).await,
    };
    let (app, lease) = match opened {
        Ok(opened) => opened,
        Err((refused, detail)) => {
            service.refuse(listed.addr(), Some(listed), refused.reason(), detail);
            service.totals.failed.fetch_add(1, Relaxed);
            // REFUSED ends our direction; wait until the client ends its own.
            conn.send(&refused.encode()).await.map_err(|_| Unusable)?;
            conn.discard().await.map_err(|_| Unusable)?;
            return Ok(None);
        }
    };
    if conn.send(&Frame::Opened.header()).await.is_err() {
        app.abort();
        return Err(Unusable);
    }
    service.totals.times.open.observe(start.elapsed());
    Ok(Some((app, lease, listed.begin())))
}

/// Does the handshake and registers the connection.
async fn accept(
    service: &Arc<Service>,
    socket: TcpStream,
    from: SocketAddr,
) -> Option<(Conn, Listed)> {
    let choose = |hello: &ClientHello<'_>| service.tls_for(hello);
    let start = Instant::now();
    let (tls, agreed) = match TlsStream::accept(socket, choose, HANDSHAKE).await {
        Ok(tls) => tls,
        Err(error) => {
            let (reason, detail) = explain(&error);
            service.refuse(from, None, reason, detail);
            return None;
        }
    };
    service.totals.times.handshake.observe(start.elapsed());
    let peer = match tls::peer(&service.mesh, &agreed.chain, Side::Service.peer_role()) {
        Ok(peer) => peer,
        Err(refusal) => {
            service.refuse(from, None, Reason::from(&refusal), refusal.to_string());
            return None;
        }
    };
    let negotiated = agreed.negotiated;
    if negotiated.alpn && !provider::is_post_quantum(negotiated.group) {
        let detail = format!("{} does not offer X25519MLKEM768", peer.id());
        service.refuse(from, None, Reason::NoPostQuantum, detail);
        return None;
    }
    let id = peer.id().clone();
    let (settings, max) = (&service.settings, service.settings.max_per_peer);
    let ends = (from, tls.socket().local_addr().ok());
    let listed = service.table.list(Side::Service, &settings.name, peer, ends, negotiated, max);
    let Some(listed) = listed else {
        let detail = format!("{id} already has {max} connections (max_connections_per_peer)");
        let reason = Refused::TooManyConnections.reason();
        service.table.refuse(Side::Service, &settings.name, from, Some(&id), reason, detail);
        tls.close();
        return None;
    };
    // If the peer was revoked before it was registered, its connection was not closed with the others.
    if !service.check_peer(&listed) {
        tls.abort();
        return None;
    }
    Some((Conn::new(tls, negotiated.alpn), listed))
}

/// Serves the connection of a non-Wiretight peer: one raw stream.
async fn serve_raw(service: &Arc<Service>, mut conn: Conn, listed: &Listed, opening: Opening) {
    let start = Instant::now();
    let opened = match not_allowed(service, listed) {
        Some(detail) => Err((Refused::NotAllowed, detail)),
        None => connect_in_time(service, listed, &conn).await,
    };
    let (app, lease) = match opened {
        Ok(opened) => opened,
        Err((refused, detail)) => {
            service.refuse(listed.addr(), Some(listed), refused.reason(), detail);
            service.totals.failed.fetch_add(1, Relaxed);
            return conn.tls.close();
        }
    };
    service.totals.times.open.observe(start.elapsed());
    let begun = listed.begin();
    drop(opening);
    let (end, _) = conn.run(app, listed, service.settings.idle_timeout).await;
    let moved = listed.finish(&begun);
    access(Side::Service, &service.settings.name, listed, &lease.to_string(), &moved, &end);
    if !matches!(end, End::Done) {
        conn.tls.abort();
    }
}

/// The reason if the peer is not allowed.
fn not_allowed(service: &Service, live: &Live) -> Option<String> {
    let peer = live.peer().id();
    let allowed = service.settings.allow.contains(&peer.id);
    (!allowed)
        .then(|| format!("{} is not in `allow` of service/{}", peer.id, service.settings.name))
}

/// Connects to the program, or reports failure while the client still waits.
async fn connect_in_time(
    service: &Service,
    live: &Live,
    conn: &Conn,
) -> Result<(App, Lease<Backend>), (Refused, String)> {
    let late = || format!("no backend responded within {} s", CONNECT.as_secs());
    timeout(CONNECT, connect(service, live, conn))
        .await
        .unwrap_or_else(|_| Err((Refused::BackendUnavailable, late())))
}

/// Connects to a backend, trying others if one fails, and sends the PROXY protocol header if it is enabled.
async fn connect(
    service: &Service,
    live: &Live,
    conn: &Conn,
) -> Result<(App, Lease<Backend>), (Refused, String)> {
    let settings = &service.settings;
    let caller = settings.transparent.then(|| canonical(live.addr()));
    let mut tried = match caller {
        Some(caller) => unfit(settings, caller)?,
        None => Vec::new(),
    };
    let mut last = String::new();
    while let Some(lease) = service.balancer.pick(&settings.forward, &tried) {
        let start = Instant::now();
        match net::connect_backend(&lease, caller).await {
            Ok(mut app) => {
                service.totals.times.connect.observe(start.elapsed());
                if settings.proxy_protocol {
                    let to = conn.tls.socket().local_addr().unwrap_or(settings.listen);
                    let cipher = cipher_name(live.negotiated());
                    let header =
                        proxy_protocol::header(live.addr(), to, &live.peer().id().clone(), &cipher);
                    let (_, mut writer) = app.split();
                    let slices = &mut [std::io::IoSlice::new(&header)];
                    if let Err(e) = writer.write_all(slices, |_| ()).await {
                        last = format!("{}: {e}", *lease);
                        service.balancer.failed(&lease);
                        tried.push(lease.clone());
                        continue;
                    }
                }
                service.balancer.succeeded(&lease);
                return Ok((app, lease));
            }
            Err(e) => {
                last = format!("{}: {e}", *lease);
                service.balancer.failed(&lease);
                tried.push(lease.clone());
            }
        }
    }
    Err((Refused::BackendUnavailable, format!("no backend can be reached; last error: {last}")))
}

/// The backends of another address family than the caller; a transparent service cannot use them, because they must
/// see the caller's address. An error if there are no others.
fn unfit(
    settings: &ServiceSettings,
    caller: SocketAddr,
) -> Result<Vec<Backend>, (Refused, String)> {
    let refused = |detail: String| Err((Refused::BackendUnavailable, detail));
    if matches!(caller, SocketAddr::V6(v6) if v6.ip().is_unicast_link_local()) {
        return refused(format!(
            "{caller} is a link-local address, which a transparent service cannot pass to its backend; connect from \
             another address"
        ));
    }
    let fits = |backend: &Backend| match backend {
        Backend::Tcp(to) => to.as_ip().is_some_and(|to| to.is_ipv4() == caller.is_ipv4()),
        Backend::Unix(_) => false,
    };
    let unfit: Vec<Backend> = settings.forward.iter().filter(|b| !fits(b)).cloned().collect();
    if unfit.len() < settings.forward.len() {
        return Ok(unfit);
    }
    let (family, example) =
        if caller.is_ipv4() { ("IPv4", "127.0.0.1") } else { ("IPv6", "[::1]") };
    refused(format!(
        "{caller} connects over {family}, but this transparent service has no {family} backend; add one to \
         `forward`, for example {example}:PORT"
    ))
}

/// Converts an IPv4-mapped IPv6 address (`::ffff:10.0.0.1`) to IPv4.
fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// An idle connection, counted until dropped.
struct Idle<'a>(&'a Totals);

impl Idle<'_> {
    fn new(totals: &Totals) -> Idle<'_> {
        totals.idle.fetch_add(1, Relaxed);
        Idle(totals)
    }
}

impl Drop for Idle<'_> {
    fn drop(&mut self) {
        self.0.idle.fetch_sub(1, Relaxed);
    }
}
