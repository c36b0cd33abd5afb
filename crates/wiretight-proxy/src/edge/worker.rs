//! A worker: one thread with its own runtime, listening sockets (TCP, and UDP for QUIC) and pools. A connection stays
//! on the thread that accepted it.

use std::cell::{Cell, OnceCell, RefCell};
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{HttpService, service_fn};
use hyper::{Request, Response, Version};
use hyper_util::rt::TokioIo;
use rustls::server::Acceptor;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::spawn_local;
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::backend::Pools;
use super::body::Source;
use super::certificates::ALPN_ACME;
use super::clients::Peer;
use super::context::{Shared, WorkerContext};
use super::guard::{Activity, Overdue, Strict, Watched};
use super::health;
use super::hints::{self, Hints};
use super::http2;
use super::live::{Busy, Counted, Http};
use super::proxy_protocol::{self, Header};
use super::quic;
use super::redirect;
use super::reply::ReplyBody;
use super::serve::{Client, ClientIo, Exchange};
use super::settings::Limits;
use super::strict::{MAX_HEAD, MAX_HEADERS};
use super::tls::{ALPN_H2, ALPN_HTTP1, INTERNAL_ERROR, UNRECOGNIZED_NAME};
use crate::admission::Pending;
use crate::listeners::{self, Failures, Listen, Orders};
use crate::net;
use crate::reason::Reason;

/// How long an HTTP/1.1 connection is idle before it is parked. Long enough not to park a connection in use between
/// two requests.
const PARK_AFTER: Duration = Duration::from_millis(100);
/// After the last response: how long a client may continue to send, and how long it may pause.
const PART: Duration = Duration::from_secs(30);
const PART_QUIET: Duration = Duration::from_secs(5);

/// How long a drain waits for the first request of a new connection.
const FIRST: Duration = Duration::from_secs(2);

/// An accepted connection. It counts as busy until its first request does.
struct Arrived {
    socket: TcpStream,
    from: SocketAddr,
    port: u16,
    arrival: Busy,
}

/// A socket and its protocol.
pub(crate) enum Socket {
    Https(std::net::TcpListener),
    Http(std::net::TcpListener),
    Quic(std::net::UdpSocket),
}

/// Runs until the control side drops its sender.
pub(crate) fn run(mut orders: Orders<Socket>, shared: Shared, asks: bool) -> io::Result<()> {
    listeners::runtime()?.block_on(async move {
        let pools = Rc::new(Pools::default());
        let context = Rc::new(WorkerContext {
            sites: shared.sites.clone(),
            table: shared.table.clone(),
            mesh: shared.mesh.clone(),
            pools: pools.clone(),
            cut: shared.cut.clone(),
        });
        if asks {
            spawn_local(health::watch(context.clone()));
        }
        let quic = quic::Port::new(shared.clone(), context.clone());
        let worker = Rc::new(Worker { shared, context, tcp: Rc::default(), quic });
        let mut sweep = tokio::time::interval(Duration::from_secs(1));
        loop {
            let order = tokio::select! {
                order = orders.recv() => order,
                _ = sweep.tick() => {
                    worker.sweep();
                    continue;
                }
            };
            let Some(order) = order else { break };
            if let Err(error) = worker.listen(order) {
                tracing::error!(%error, "cannot register a listening socket");
            }
        }
        pools.clear();
    });
    Ok(())
}

struct Worker {
    shared: Shared,
    context: Rc<WorkerContext>,
    /// TCP handshakes in progress.
    tcp: Rc<Pending>,
    quic: Rc<quic::Port>,
}

impl Worker {
    fn listen(self: &Rc<Worker>, order: Listen<Socket>) -> io::Result<()> {
        match order.socket {
            Socket::Https(socket) => {
                let socket = TcpListener::from_std(socket)?;
                let worker = self.clone();
                let serve = move |arrived| worker.clone().https(arrived);
                spawn_local(self.clone().accept(socket, order.stop, order.open, serve));
            }
            Socket::Http(socket) => {
                let socket = TcpListener::from_std(socket)?;
                let worker = self.clone();
                let serve = move |arrived| worker.clone().http(arrived);
                spawn_local(self.clone().accept(socket, order.stop, order.open, serve));
            }
            Socket::Quic(socket) => {
                let endpoint = quic::endpoint(socket, &self.shared)?;
                spawn_local(quic::accept(self.quic.clone(), endpoint, order.stop, order.open));
            }
        }
        Ok(())
    }

    fn sweep(&self) {
        let sites = self.context.sites.load();
        let wanted = |dial: &Arc<_>| {
            sites.all().any(|site| site.dials.values().any(|d| Arc::ptr_eq(d, dial)))
        };
        self.context.pools.sweep(wanted);
    }

    async fn accept<S, F>(
        self: Rc<Worker>,
        listener: TcpListener,
        mut stop: watch::Receiver<bool>,
        open: Arc<()>,
        serve: S,
    ) where
        S: Fn(Arrived) -> F,
        F: Future<Output = ()> + 'static,
    {
        let port = listener.local_addr().map_or(0, |a| a.port());
        let mut draining = self.shared.draining.clone();
        let (mut failures, mut held) = (Failures::default(), None);
        loop {
            let accepted = tokio::select! {
                biased;
                _ = stop.wait_for(|s| *s) => break,
                _ = draining.wait_for(|d| *d) => break,
                accepted = net::accept(&listener, &mut held) => accepted,
            };
            match accepted {
                Ok((socket, from)) => {
                    let arrival = self.shared.table.begin();
                    spawn_local(serve(Arrived { socket, from, port, arrival }));
                }
                Err(error) => {
                    self.shared.table.accept_errors.fetch_add(1, Relaxed);
                    let report = || {
                        tracing::error!(
                            port, %error,
                            "cannot accept connections; new ones wait (if the error is \"too many open files\", raise LimitNOFILE)"
                        );
                    };
                    failures.survive(&error, report).await;
                }
            }
        }
        drop(listener);
        drop(open);
    }

    async fn https(self: Rc<Worker>, arrived: Arrived) {
        let Arrived { socket, from, port, arrival } = arrived;
        let table = &self.shared.table;
        let sites = self.context.sites.load();
        let address = Some(from.ip()).filter(|ip| !sites.settings.trusts(*ip));
        drop(sites);
        let Some(slot) = self.tcp.place(address, &socket).await else {
            let _ = socket.set_zero_linger();
            return table.refuse(
                from,
                Reason::TooManyHandshakes,
                "too many handshakes in progress",
            );
        };
        let limits = self.context.sites.load().settings.limits.clone();
        // Boxed, because the connection lives longer than its handshake.
        let handshake = timeout(limits.handshake, Box::pin(self.accept_tls(socket, from))).await;
        drop(slot);
        let (tls, client) = match handshake {
            Ok(Ok(accepted)) => accepted,
            Ok(Err(NotServed::Answered(detail))) => return tracing::debug!(%from, "{detail}"),
            Ok(Err(NotServed::Refused(reason, detail))) => {
                return table.refuse(from, reason, detail);
            }
            Err(_) => {
                return table.refuse(from, Reason::Stalled, "the handshake timed out");
            }
        };
        let _counted = Counted::new(table);
        let client = Rc::new(Client { port, arrival: Cell::new(Some(arrival)), ..client });
        let lost = client.clone();
        // Each boxed, so that a connection uses only the memory for its own protocol.
        let served: Pin<Box<dyn Future<Output = ()>>> = match client.http {
            Http::H2 => Box::pin(self.http2(tls, client, &limits)),
            _ => {
                let activity = client.activity.clone();
                let (table, from) = (table.clone(), client.from);
                let tell = move |violation| table.refuse(from, Reason::MalformedHttp, violation);
                let io = Strict::new(Watched::new(tls, activity.clone()), activity, tell);
                Box::pin(self.http1(Box::new(io), client, &limits))
            }
        };
        tokio::select! {
            () = served => {}
            () = lost.lost() => table.refuse(from, Reason::Revoked, "the client's identity was revoked; the connection was closed"),
        }
    }

    /// Reads the balancer's header, if one is expected, and does the TLS handshake.
    async fn accept_tls(
        &self,
        mut socket: TcpStream,
        peer: SocketAddr,
    ) -> Result<(TlsStream<TcpStream>, Client), NotServed> {
        let sites = self.context.sites.load_full();
        let trusted = sites.settings.trusts(peer.ip());
        let mut from = peer;
        if trusted && sites.settings.proxy_protocol {
            let header = read_proxy_header(&mut socket).await;
            from = header
                .map_err(|e| NotServed::Refused(Reason::NoProxyHeader, e.to_string()))?
                .unwrap_or(peer);
        }
        let failed = |e: io::Error| NotServed::Refused(Reason::HandshakeFailed, e.to_string());
        let begun = Instant::now();
        let mut acceptor = pin!(LazyConfigAcceptor::new(Acceptor::default(), socket));
        let start = match acceptor.as_mut().await {
            Ok(start) => start,
            Err(error) => return Err(failed(error)),
        };
        let hello = start.client_hello();
        let (by_default, name) = (hello.server_name().is_none(), sites.host(hello.server_name()));
        let found = name.as_deref().and_then(|name| sites.find(name));
        let (Some(name), Some((site_name, site))) = (name.as_deref(), found) else {
            let told = name.as_deref().unwrap_or("none").to_owned();
            let mut socket = start.io;
            let _ = socket.write_all(&UNRECOGNIZED_NAME).await;
            return Err(NotServed::Refused(
                Reason::UnrecognizedName,
                format!("no site has the name {told}"),
            ));
        };
        if hello.alpn().is_some_and(|alpn| alpn.eq([ALPN_ACME])) {
            let shown = start.into_stream(self.shared.configs.challenges.clone()).await;
            // The handshake itself is the answer (RFC 8737, section 3).
            let mut tls = shown.map_err(failed)?;
            let _ = tls.shutdown().await;
            let detail = format!("answered the tls-alpn-01 challenge for {name}");
            return Err(NotServed::Answered(detail));
        }
        let mut certificate = sites.certificate(name, (site_name, site));
        if certificate.is_none() && site.settings.on_demand {
            // Leaves enough time to complete the handshake.
            let wait = sites.settings.limits.handshake * 4 / 5;
            let _ = timeout(wait, sites.certificates.demand(name)).await;
            certificate = sites.certificate(name, (site_name, site));
        }
        let Some(certificate) = certificate else {
            let mut socket = start.io;
            let _ = socket.write_all(&INTERNAL_ERROR).await;
            let detail = format!("there is no certificate for {name} yet");
            return Err(NotServed::Refused(Reason::NoCertificate, detail));
        };
        let config = match (&site.settings.clients, &site.client_ca) {
            (Some(_), _) => self.shared.configs.members.clone(),
            (None, Some(ca)) => ca.config(certificate.certified(), &[ALPN_H2, ALPN_HTTP1]),
            (None, None) => self.shared.configs.open.clone(),
        };
        let tls = start.into_stream(config).await.map_err(failed)?;
        let took = begun.elapsed();
        site.shown(certificate.is_valid());
        let (_, state) = tls.get_ref();
        let peer = Peer::of(site, &self.shared.mesh, state.peer_certificates())
            .map_err(|(reason, detail)| NotServed::Refused(reason, detail))?;
        let version = match state.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
            _ => "TLSv1.3",
        };
        let group = state.negotiated_key_exchange_group().map(|g| format!("{:?}", g.name()));
        let group = group.unwrap_or_else(|| "resumed".into());
        self.shared.table.count_handshake(version.into(), group.clone(), took);
        let http = if state.alpn_protocol() == Some(ALPN_H2) { Http::H2 } else { Http::H1 };
        let client = Client {
            context: self.context.clone(),
            http,
            name: name.into(),
            by_default,
            from,
            trusted,
            tls: version.into(),
            group: group.into(),
            peer: peer.map(Rc::new),
            port: 0,
            forwarding: RefCell::default(),
            alt_svc: OnceCell::new(),
            arrival: Cell::default(),
            activity: Activity::new(),
            handover: Cell::default(),
        };
        Ok((tls, client))
    }

    /// HTTP/1.1: handled by the library during requests, and parked in between.
    async fn http1(&self, mut io: ClientIo, client: Rc<Client>, limits: &Limits) {
        let mut draining = self.shared.draining.clone();
        let mut parks = true;
        while let Some(parked) = Box::pin(self.serve(io, &client, parks, limits)).await {
            io = parked;
            // The library handles whatever was received, as if the connection had not been parked.
            parks = tokio::select! {
                () = poll_fn(|cx| readable(&io, cx)) => true,
                _ = draining.wait_for(|d| *d) => false,
                _ = client.activity.overdue(limits) => false,
            };
        }
    }

    /// Serves requests. Returns the connection if it is to be parked, and `None` when it has ended.
    async fn serve(
        &self,
        io: ClientIo,
        client: &Rc<Client>,
        parks: bool,
        limits: &Limits,
    ) -> Option<ClientIo> {
        let activity = client.activity.clone();
        let service = {
            let client = client.clone();
            service_fn(move |request: Request<Incoming>| answer(&client, request))
        };
        let mut builder = http1::Builder::new();
        builder.max_headers(MAX_HEADERS + 8).max_buf_size(8 * MAX_HEAD).header_read_timeout(None);
        let connection = builder.serve_connection(TokioIo::new(io), service);
        let mut serving = Serving { connection, activity: activity.clone(), parks, timer: None };
        let finish = |mut serving: Pin<&mut Serving<_>>| {
            serving.parks = false;
            Pin::new(&mut serving.connection).graceful_shutdown();
        };
        let ended = self.drive(Pin::new(&mut serving), finish, (client.from, &activity), limits);
        match ended.await? {
            Turn::Parked => {
                let parts = serving.connection.into_parts();
                if parts.read_buf.is_empty() {
                    return Some(parts.io.into_inner());
                }
                // Should not happen. It is unknown what these bytes are part of.
                tracing::error!(from = %client.from, "closed a connection to park that had unread bytes; please report this as a bug");
                None
            }
            Turn::Ended(Ok(())) => {
                let parts = serving.connection.into_parts();
                let mut io = parts.io.into_inner();
                let Some(handover) = client.handover.take() else {
                    self.part(&mut *io).await;
                    return None;
                };
                // The library has sent the 101 and leaves the connection to us.
                if !io.is_shut() {
                    io.put_back(&parts.read_buf);
                    let _ = handover.send(io);
                }
                None
            }
            Turn::Ended(Err(error)) => {
                note(Err(error));
                let mut io = serving.connection.into_parts().io.into_inner();
                self.part(&mut *io).await;
                None
            }
        }
    }

    /// Ends an HTTP/1 connection so that the client receives the last response even if it is still sending. If the
    /// socket were closed with unread bytes, the kernel would reset the connection, and the client could lose the
    /// response.
    async fn part<T>(&self, io: &mut T)
    where
        T: AsyncWrite + AsRef<TcpStream> + Unpin,
    {
        let mut cut = self.shared.cut.clone();
        let parted = async {
            if !matches!(timeout(PART_QUIET, io.shutdown()).await, Ok(Ok(()))) {
                return;
            }
            let socket = io.as_ref();
            while matches!(timeout(PART_QUIET, socket.readable()).await, Ok(Ok(()))) {
                if !discard(socket) {
                    return;
                }
            }
        };
        tokio::select! {
            _ = timeout(PART, parted) => {}
            _ = cut.wait_for(|c| *c) => {}
        }
    }

    async fn http2(&self, tls: TlsStream<TcpStream>, client: Rc<Client>, limits: &Limits) {
        let (activity, from) = (client.activity.clone(), client.from);
        let connection = pin!(http2::Connection::new(tls, client, limits));
        let served = self.drive(connection, |c| c.finish(), (from, &activity), limits);
        if let Some(Err(error)) = served.await {
            tracing::debug!(%error, "a client's connection failed");
        }
    }

    /// Serves a connection until it ends. `None`: we ended it, because the client was idle or stalled, or at the end
    /// of a drain. `finish` makes the connection accept no more requests.
    async fn drive<C: Future>(
        &self,
        mut connection: Pin<&mut C>,
        finish: fn(Pin<&mut C>),
        (from, activity): (SocketAddr, &Activity),
        limits: &Limits,
    ) -> Option<C::Output> {
        let mut draining = self.shared.draining.clone();
        let mut cut = self.shared.cut.clone();
        tokio::select! {
            ended = connection.as_mut() => Some(ended),
            _ = draining.wait_for(|d| *d) => {
                // A connection that has just arrived gets its first request answered.
                tokio::select! {
                    ended = connection.as_mut() => return Some(ended),
                    _ = timeout(FIRST, activity.first()) => {}
                    _ = cut.wait_for(|c| *c) => {}
                }
                finish(connection.as_mut());
                // `biased`: if nothing is in progress, `cut` follows immediately, but idle connections still end in
                // order first.
                tokio::select! {
                    biased;
                    ended = connection.as_mut() => Some(ended),
                    _ = cut.wait_for(|c| *c) => None,
                }
            }
            why = activity.overdue(limits) => {
                if why == Overdue::Idle {
                    finish(connection.as_mut());
                    return timeout(limits.head, connection.as_mut()).await.ok();
                }
                let reason = if why == Overdue::TakenBack { Reason::TakenBack } else { Reason::Stalled };
                self.shared.table.refuse(from, reason, overdue(why));
                None
            }
        }
    }

    /// Port 80: redirects to HTTPS and answers challenges.
    async fn http(self: Rc<Worker>, arrived: Arrived) {
        let Arrived { mut socket, mut from, arrival, .. } = arrived;
        // Counted as busy throughout, because it has only one request, which is answered immediately.
        let _arrival = arrival;
        let _counted = Counted::new(&self.shared.table);
        let sites = self.context.sites.load();
        let limits = sites.settings.limits.clone();
        let proxied = sites.settings.proxy_protocol && sites.settings.trusts(from.ip());
        drop(sites);
        let table = self.shared.table.clone();
        if proxied {
            match timeout(limits.head, read_proxy_header(&mut socket)).await {
                Ok(Ok(client)) => from = client.unwrap_or(from),
                Ok(Err(error)) => return table.refuse(from, Reason::NoProxyHeader, error),
                Err(_) => {
                    return table.refuse(
                        from,
                        Reason::Stalled,
                        "timed out waiting for the PROXY protocol header",
                    );
                }
            }
        }
        let activity = Activity::new();
        let tell = move |violation| table.refuse(from, Reason::MalformedHttp, violation);
        let io = Strict::new(Watched::new(socket, activity.clone()), activity.clone(), tell);
        let context = self.context.clone();
        let requests = activity.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let _in_flight = requests.request();
            let answer = redirect::answer(&context, &request);
            async move { Ok::<_, Infallible>(answer) }
        });
        let mut connection = http1::Builder::new()
            .max_headers(MAX_HEADERS + 8)
            .header_read_timeout(None)
            .keep_alive(false)
            .serve_connection(TokioIo::new(io), service);
        let limit = limits.head + limits.body;
        if timeout(limit, &mut connection).await.is_ok() {
            self.part(&mut connection.into_parts().io.into_inner()).await;
        }
    }
}

/// An HTTP/1.1 connection handled by the library.
struct Serving<S: HttpService<Incoming>> {
    connection: http1::Connection<TokioIo<ClientIo>, S>,
    activity: Arc<Activity>,
    /// Whether it may be parked.
    parks: bool,
    timer: Option<Pin<Box<Sleep>>>,
}

enum Turn {
    Ended(hyper::Result<()>),
    Parked,
}

impl<S> Future for Serving<S>
where
    S: HttpService<Incoming, ResBody = ReplyBody, Error = Infallible> + Unpin,
{
    type Output = Turn;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Turn> {
        let this = self.get_mut();
        if let Poll::Ready(ended) = Pin::new(&mut this.connection).poll(cx) {
            return Poll::Ready(Turn::Ended(ended));
        }
        while this.parks && this.activity.is_quiet() {
            // While the timer of an earlier request runs, no new one is set and the clock is not read. When it fires,
            // the library has been polled since the connection became quiet.
            let mut rest = PARK_AFTER;
            if let Some(timer) = &mut this.timer {
                ready!(timer.as_mut().poll(cx));
                rest = PARK_AFTER.saturating_sub(this.activity.rested());
            }
            if rest.is_zero() {
                return Poll::Ready(Turn::Parked);
            }
            this.timer = Some(Box::pin(sleep(rest)));
        }
        Poll::Pending
    }
}

/// Discards the bytes that are available. `false`: the client will send no more.
fn discard(socket: &TcpStream) -> bool {
    let mut bytes = [0; 16 * 1024];
    // Limited, so that a fast client does not delay others.
    for _ in 0..16 {
        match socket.try_read(&mut bytes) {
            Ok(1..) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return true,
            _ => return false,
        }
    }
    true
}

/// Ready when the client has sent something or has disconnected.
fn readable(io: &ClientIo, cx: &mut Context<'_>) -> Poll<()> {
    let socket: &TcpStream = (**io).as_ref();
    socket.poll_read_ready(cx).map(|_| ())
}

impl AsRef<TcpStream> for Strict<Watched<TlsStream<TcpStream>>> {
    fn as_ref(&self) -> &TcpStream {
        self.inner().inner().get_ref().0
    }
}

impl AsRef<TcpStream> for Strict<Watched<TcpStream>> {
    fn as_ref(&self) -> &TcpStream {
        self.inner().inner()
    }
}

/// Counts the request immediately, before the returned future is polled.
fn answer(
    client: &Rc<Client>,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Response<ReplyBody>, Infallible>> + use<> {
    let (client, in_flight) = (client.clone(), client.activity.request());
    let unread = client.activity.body();
    async move {
        let (parts, body) = request.into_parts();
        let request = Request::from_parts(parts, ());
        let pending = client.activity.pending_request();
        // HTTP/1.0 has no informational responses (RFC 9110, section 15.2).
        let hints = Hints::of(&request).filter(|_| request.version() == Version::HTTP_11);
        let source = Source::Incoming(body, unread);
        let exchange = Exchange { source, in_flight, tunnel: None, hints: hints.clone() };
        let activity = client.activity.clone();
        let mut answer = pin!(client.answer(request, exchange));
        let answer = poll_fn(|cx| {
            let polled = answer.as_mut().poll(cx);
            while let Some(Poll::Ready(head)) = hints.as_ref().map(|hints| hints.poll_next(cx)) {
                activity.send_early(&hints::http1(&head));
            }
            polled
        });
        let answer = answer.await;
        pending.answered();
        Ok(answer)
    }
}

fn note(ended: Result<(), hyper::Error>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "a client's connection failed");
    }
}

/// Why a connection ends after its handshake, or before.
enum NotServed {
    Refused(Reason, String),
    /// The client wanted only the handshake.
    Answered(String),
}

fn overdue(why: Overdue) -> &'static str {
    match why {
        Overdue::Head => "timed out waiting for the head of a request",
        Overdue::Reading => "the client does not read the response",
        Overdue::Idle => "the connection was idle",
        Overdue::Ahead => "the client sends more requests while an earlier one is not answered",
        Overdue::TakenBack => "the client cancels too many requests",
    }
}

/// Reads exactly the header. `None`: the connection is the balancer's own.
async fn read_proxy_header(socket: &mut TcpStream) -> io::Result<Option<SocketAddr>> {
    let mut bytes = Vec::with_capacity(256);
    loop {
        match proxy_protocol::parse(&bytes) {
            Ok(Header::Whole { len, from }) if len == bytes.len() => return Ok(from),
            // Peeks, because bytes after the header must stay in the socket, and reading byte by byte is slow.
            Ok(_) => {
                let mut peeked = [0; proxy_protocol::MAX_V2];
                let n = socket.peek(&mut peeked).await?;
                if n == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                let take = match proxy_protocol::parse(&[&bytes, &peeked[..n]].concat()) {
                    Ok(Header::Whole { len, .. }) => len - bytes.len(),
                    Ok(Header::Partial) => n,
                    Err(e) => return Err(io::Error::new(io::ErrorKind::InvalidData, e)),
                };
                let mut taken = vec![0; take];
                socket.read_exact(&mut taken).await?;
                bytes.extend_from_slice(&taken);
            }
            Err(e) => return Err(io::Error::new(io::ErrorKind::InvalidData, e)),
        }
    }
}
