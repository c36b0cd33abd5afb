//! One request: finds the site, checks access, forwards the request and returns the response.

use std::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::http::request::Parts;
use hyper::http::uri::PathAndQuery;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::server::TlsStream;

use super::backend::{Sender, Unsent};
use super::body::{RequestBody, Source};
use super::clients::Peer;
use super::context::WorkerContext;
use super::guard::{Activity, InFlight, Strict, Watched};
use super::headers;
use super::hints::Hints;
use super::live::{Busy, Counted, EdgeTable, Http};
use super::log::{AccessRecord, Opening};
use super::received::{BodyError, BodyProgress};
use super::reply::ReplyBody;
use super::settings::Upstream;
use super::sites::Site;
use super::template::Template;
use crate::mesh::Mesh;
use crate::reason::Reason;

/// How long both ends may take to complete an upgrade.
const SWITCH: Duration = Duration::from_secs(10);
/// How long an HTTP/1.1 client may keep sending after the backend closed its side of an upgraded connection.
const LINGER: Duration = Duration::from_secs(10);
/// The buffer of an upgraded connection, in each direction.
const TUNNEL_BUFFER: usize = 4096;

/// A client's connection.
pub(crate) struct Client {
    pub(crate) context: Rc<WorkerContext>,
    pub(crate) http: Http,
    /// The name in its TLS handshake, in lower case.
    pub(crate) name: Arc<str>,
    /// It sent no name and got the default site.
    pub(crate) by_default: bool,
    /// Its address, or the one that a trusted balancer sent.
    pub(crate) from: SocketAddr,
    /// Whether the socket's other end is a trusted balancer or proxy.
    pub(crate) trusted: bool,
    pub(crate) tls: Arc<str>,
    pub(crate) group: Arc<str>,
    /// Its verified identity, if the site requires one.
    pub(crate) peer: Option<Rc<Peer>>,
    /// The port that it connected to.
    pub(crate) port: u16,
    /// The forwarding headers for programs and the Alt-Svc header for the client; usually the same for all requests.
    pub(crate) forwarding: RefCell<Option<Rc<headers::ForwardingHeaders>>>,
    pub(crate) alt_svc: OnceCell<HeaderValue>,
    /// Held until the first request.
    pub(crate) arrival: Cell<Option<Busy>>,
    pub(crate) activity: Arc<Activity>,
    /// Receives an HTTP/1 connection that switches to another protocol.
    pub(crate) handover: Cell<Option<oneshot::Sender<ClientIo>>>,
}

/// The parts of a request other than its head.
pub(crate) struct Exchange {
    pub(crate) source: Source,
    pub(crate) in_flight: InFlight,
    pub(crate) tunnel: Option<Tunnel>,
    /// For a program's early hints.
    pub(crate) hints: Option<Hints>,
}

/// The connection type of HTTP/1.
pub(crate) type ClientIo = Box<Strict<Watched<TlsStream<TcpStream>>>>;

/// Why there is no response from a backend.
struct Refused(StatusCode, &'static str);

/// A requested switch to WebSocket.
struct Switch {
    /// For extended CONNECT (RFC 8441), the stream. For `Upgrade` there is none, because it uses the whole
    /// connection.
    extended: Option<Tunnel>,
}

/// An HTTP/2 stream that carries another protocol after its response.
pub(crate) type Tunnel = oneshot::Receiver<Box<dyn BothWays>>;

const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");

impl Client {
    /// Handles a request. Never fails: errors become responses.
    pub(crate) async fn answer(
        self: Rc<Client>,
        request: Request<()>,
        exchange: Exchange,
    ) -> Response<ReplyBody> {
        let Exchange { source, in_flight, tunnel, hints } = exchange;
        let opening = Opening {
            host: self.name.clone(),
            http: self.http,
            client: self.from.ip(),
            identity: self.peer.as_ref().map(|p| p.name.clone()),
            tls: self.tls.clone(),
            group: self.group.clone(),
            method: request.method().clone(),
            busy: self.context.table.begin(),
            in_flight: Some(in_flight),
        };
        drop(self.arrival.take());
        let mut record = AccessRecord::new(opening, request.uri().path());
        let switch = switch(&request, tunnel);
        let (parts, ()) = request.into_parts();
        match self.forward(parts, (source, hints), switch, &mut record).await {
            Ok((answer, switched)) => self.reply(answer, switched, record),
            Err(Refused(status, text)) => self.refusal(status, text, record),
        }
    }

    fn refusal(
        &self,
        status: StatusCode,
        text: &str,
        mut record: AccessRecord,
    ) -> Response<ReplyBody> {
        record.status = status;
        let site = record.site.clone();
        let text = match status.is_redirection() || text.is_empty() {
            true => Bytes::new(),
            false => Bytes::from(format!("{text}\n")),
        };
        let mut answer = Response::new(ReplyBody::text(text, record));
        *answer.status_mut() = status;
        let kind = HeaderValue::from_static("text/plain; charset=utf-8");
        answer.headers_mut().insert(header::CONTENT_TYPE, kind);
        let bad_body = matches!(
            status,
            StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT
        );
        if bad_body && self.http == Http::H1 {
            // The start of the next request is unknown.
            answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(site) = site {
            self.promise(&site, answer.headers_mut());
        }
        answer
    }

    /// The site of the request. It must be the site of the TLS handshake, so that a name's certificate and its client
    /// certificates are used for that name only.
    fn site(&self, parts: &Parts) -> Result<(Arc<Site>, String), Refused> {
        let bad = Refused(StatusCode::BAD_REQUEST, "the request does not contain a valid host");
        let host = parts.headers.get(header::HOST).map(|h| h.to_str().unwrap_or(""));
        if self.by_default {
            return self.default_site(parts.uri.authority().map(|a| a.as_str()).or(host));
        }
        let named = match (parts.uri.authority(), host) {
            (Some(a), Some(h)) if headers::host(a.as_str()) != headers::host(h) => return Err(bad),
            (Some(a), _) => a.as_str(),
            (None, Some(h)) => h,
            (None, None) => return Err(bad),
        };
        let Some(host) = headers::host(named) else { return Err(bad) };
        let sites = self.context.sites.load();
        match sites.find(&host).filter(|_| host == *self.name) {
            Some((_, site)) => Ok((site.clone(), named.to_owned())),
            None => Err(Refused(
                StatusCode::MISDIRECTED_REQUEST,
                "this connection is for another host; open a new one",
            )),
        }
    }

    /// For a client without a host name in its handshake, such as the health check of a balancer: the default site,
    /// unless the request is for a host of another site.
    fn default_site(&self, named: Option<&str>) -> Result<(Arc<Site>, String), Refused> {
        let misdirected = Refused(
            StatusCode::MISDIRECTED_REQUEST,
            "this connection is for another host; open a new one",
        );
        let sites = self.context.sites.load();
        let Some((_, site)) = sites.find(&self.name) else { return Err(misdirected) };
        let host = named.and_then(headers::host);
        let by_address = host.as_ref().is_none_or(|host| host.parse::<IpAddr>().is_ok());
        let other = host.as_deref().and_then(|host| sites.find(host));
        if !by_address && other.is_some_and(|(_, other)| !Arc::ptr_eq(other, site)) {
            return Err(misdirected);
        }
        let named = named.filter(|_| host.is_some());
        Ok((site.clone(), named.unwrap_or(&self.name).to_owned()))
    }

    /// Whether the client may use the site now: identities can expire, be revoked, or be removed from the list.
    fn may(&self, site: &Site) -> Result<(), Refused> {
        if site.settings.clients.is_none() && site.client_ca.is_none() {
            return Ok(());
        }
        let no = Err(Refused(StatusCode::FORBIDDEN, "this identity may not use this site"));
        let Some(peer) = &self.peer else { return no };
        if peer.may(site, &self.context.mesh) {
            return Ok(());
        }
        self.context.table.refuse(self.from, Reason::NotAllowed, &peer.name);
        no
    }

    async fn forward(
        &self,
        parts: Parts,
        (source, hints): (Source, Option<Hints>),
        switch: Option<Switch>,
        record: &mut AccessRecord,
    ) -> Result<(Response<Incoming>, Option<Switch>), Refused> {
        let (site, authority) = self.site(&parts)?;
        record.site = Some(site.clone());
        self.may(&site)?;
        let plain = |path: &PathAndQuery| path.as_str().bytes().all(|b| b.is_ascii_graphic());
        let bad_path = || !parts.uri.path_and_query().is_none_or(plain);
        if self.http != Http::H1 && (headers::is_malformed(&parts.headers) || bad_path()) {
            let text = "the header is malformed";
            self.context.table.refuse(self.from, Reason::MalformedHttp, text);
            return Err(Refused(StatusCode::BAD_REQUEST, text));
        }
        if parts.method == Method::CONNECT && switch.is_none() {
            return Err(Refused(StatusCode::METHOD_NOT_ALLOWED, "CONNECT is not supported"));
        }
        let patience = self.context.sites.load().settings.limits.body;
        let body = RequestBody::new(source, site.settings.max_body, patience, record.body.clone());
        if body.size_hint().lower() > site.settings.max_body {
            let text = "the body is larger than this site accepts";
            return Err(Refused(StatusCode::PAYLOAD_TOO_LARGE, text));
        }
        let template = self.template(parts, &authority, (switch.as_ref(), hints));
        let answer = self.try_backends(&site, &template, body, record).await?;
        record.status = answer.status();
        match (answer.status(), switch) {
            (StatusCode::SWITCHING_PROTOCOLS, Some(switch))
                if headers::is_for_websocket(answer.headers()) =>
            {
                Ok((answer, Some(switch)))
            }
            (StatusCode::SWITCHING_PROTOCOLS, _) => Err(Refused(
                StatusCode::BAD_GATEWAY,
                "the program switched protocols without a request",
            )),
            (status, Some(Switch { extended: Some(_) })) if status.is_success() => {
                Err(Refused(StatusCode::BAD_GATEWAY, "the program did not switch protocols"))
            }
            _ => Ok((answer, None)),
        }
    }

    /// The request as sent to backends.
    fn template(
        &self,
        parts: Parts,
        authority: &str,
        (switch, hints): (Option<&Switch>, Option<Hints>),
    ) -> Template {
        let mut headers = parts.headers;
        let trailers = headers::takes_trailers(&headers);
        headers::strip_hop_by_hop(&mut headers);
        headers.remove(header::EXPECT); // handled here, by reading the body
        if self.http != Http::H1 {
            headers::join_cookies(&mut headers);
        }
        let sender = headers::Sender {
            forwarding: self.forwarding(authority),
            trusted: self.trusted,
            certificate: self.peer.as_ref().map(|p| &*p.header),
        };
        headers::forwarded(&mut headers, &sender);
        let mut method = parts.method;
        if let Some(switch) = switch {
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::UPGRADE, WEBSOCKET);
            if switch.extended.is_some() {
                method = Method::GET;
                headers.insert(header::SEC_WEBSOCKET_KEY, websocket_key());
            }
        }
        let path = parts.uri.into_parts().path_and_query;
        let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
        let switches = switch.is_some();
        let authority = authority.to_owned();
        Template { method, path, authority, headers, trailers, switches, hints }
    }

    fn forwarding(&self, host: &str) -> Rc<headers::ForwardingHeaders> {
        let mut forwarding = self.forwarding.borrow_mut();
        match &*forwarding {
            Some(forwarding) if forwarding.is_of(host) => forwarding.clone(),
            _ => forwarding
                .insert(Rc::new(headers::ForwardingHeaders::new(self.from.ip(), host)))
                .clone(),
        }
    }

    /// Tries backends until one responds. A request that may have been processed is repeated only if it is idempotent
    /// (RFC 9110, section 9.2.2).
    async fn try_backends(
        &self,
        site: &Arc<Site>,
        template: &Template,
        body: RequestBody,
        record: &mut AccessRecord,
    ) -> Result<Response<Incoming>, Refused> {
        let again = body.is_end_stream() && template.method.is_idempotent();
        let progress = record.body.clone();
        let mut body = Some(body);
        let mut tried: Vec<Upstream> = Vec::new();
        let mut refused = Refused(StatusCode::BAD_GATEWAY, "no backend of this site is available");
        while let Some(lease) = site.balancer.pick(&site.settings.to, &tried) {
            let upstream = (*lease).clone();
            let pools = &self.context.pools;
            let (mut sender, used) = match pools.get(site, &upstream, self.from, !again).await {
                Ok(found) => found,
                Err(error) => {
                    site.balancer.failed(&lease);
                    self.complain(&upstream, Reason::Unreachable, &error);
                    tried.push(upstream);
                    continue;
                }
            };
            let Some(whole) = body.take().or_else(|| again.then(RequestBody::empty)) else { break };
            let request = template.request(&upstream, whole);
            match send(&mut sender, request, site.settings.timeout, &progress).await {
                Ok(answer) if framed_twice(&answer) => {
                    site.balancer.failed(&lease);
                    let error =
                        "the response has conflicting lengths or an unsupported transfer coding";
                    self.complain(&upstream, Reason::Broken, &error);
                    let text = "the response of the program behind this site is malformed";
                    return Err(Refused(StatusCode::BAD_GATEWAY, text));
                }
                Ok(answer) => {
                    site.balancer.succeeded(&lease);
                    record.lease = Some(lease);
                    record.borrowed = pools.lend(site, &upstream, sender);
                    return Ok(answer);
                }
                Err(Failed::Late) => {
                    site.balancer.failed(&lease);
                    self.complain(&upstream, Reason::Late, &"the program did not respond in time");
                    let text = "the program behind this site did not respond in time";
                    return Err(Refused(StatusCode::GATEWAY_TIMEOUT, text));
                }
                Err(Failed::Unsent(mut unsent)) => {
                    if let Some(error) = progress.error() {
                        return Err(refusal_of(error));
                    }
                    body = unsent.take_message().map(Request::into_body);
                    let error = unsent.error().to_string();
                    if used && (body.is_some() || again) {
                        continue; // an idle connection was closed; this does not count as a failure
                    }
                    site.balancer.failed(&lease);
                    self.complain(&upstream, Reason::Broken, &error);
                    refused = Refused(
                        StatusCode::BAD_GATEWAY,
                        "the program behind this site closed the connection",
                    );
                    if body.is_none() && !again {
                        break;
                    }
                    tried.push(upstream);
                }
            }
        }
        Err(refused)
    }

    fn complain(&self, upstream: &Upstream, reason: Reason, error: &dyn std::fmt::Display) {
        self.context.table.refuse(upstream, reason, error);
    }

    /// The backend's response as sent to the client.
    fn reply(
        self: &Rc<Client>,
        answer: Response<Incoming>,
        switched: Option<Switch>,
        mut record: AccessRecord,
    ) -> Response<ReplyBody> {
        let site = record.site.clone();
        let Some(switch) = switched else {
            let (mut parts, body) = answer.into_parts();
            headers::strip_hop_by_hop(&mut parts.headers);
            parts.version = Version::HTTP_11;
            parts.extensions.clear();
            if let Some(site) = site {
                self.promise(&site, &mut parts.headers);
            }
            return Response::from_parts(parts, ReplyBody::backend(body, record));
        };
        record.upgraded();
        let mut answer = answer;
        let backend = hyper::upgrade::on(&mut answer);
        let (mut parts, _) = answer.into_parts();
        headers::strip_hop_by_hop(&mut parts.headers);
        parts.version = Version::HTTP_11;
        parts.extensions.clear();
        let mut counts = None;
        let client = if let Some(stream) = switch.extended {
            (parts.status, record.status) = (StatusCode::OK, StatusCode::OK);
            parts.headers.remove(header::SEC_WEBSOCKET_ACCEPT);
            Handed::Stream(stream)
        } else {
            parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            parts.headers.insert(header::UPGRADE, WEBSOCKET);
            let (sender, receiver) = oneshot::channel();
            self.handover.set(Some(sender));
            self.activity.upgraded();
            // The connection's driver no longer counts it, so count it here.
            counts = Some(self.context.table.clone());
            Handed::Connection(receiver)
        };
        let cut = self.context.cut.clone();
        let patience = self.context.sites.load().settings.limits.body;
        let (peer, mesh) = (self.peer.clone(), self.context.mesh.clone());
        let lost = async move { lost(peer.as_deref(), &mesh).await };
        spawn_local(tunnel(client, backend, counts, (cut, lost, patience), record));
        Response::from_parts(parts, ReplyBody::empty())
    }

    /// Waits until its identity is no longer trusted.
    pub(crate) async fn lost(&self) {
        lost(self.peer.as_deref(), &self.context.mesh).await;
    }

    /// Adds the edge's own headers for browsers.
    fn promise(&self, site: &Site, headers: &mut HeaderMap) {
        if let Some(hsts) = site.hsts() {
            headers.insert(header::STRICT_TRANSPORT_SECURITY, hsts);
        }
        let http3 = self.context.sites.load().settings.http3;
        if http3 && self.http != Http::H3 {
            let value = || {
                let text = format!("h3=\":{}\"; ma=86400", self.port);
                HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("clear"))
            };
            headers.insert(header::ALT_SVC, self.alt_svc.get_or_init(value).clone());
        }
    }
}

fn refusal_of(error: BodyError) -> Refused {
    match error {
        BodyError::TooLarge => {
            Refused(StatusCode::PAYLOAD_TOO_LARGE, "the body is larger than this site accepts")
        }
        BodyError::Stalled => {
            Refused(StatusCode::REQUEST_TIMEOUT, "timed out waiting for the body")
        }
        BodyError::Broken => Refused(StatusCode::BAD_REQUEST, "the body is incomplete or invalid"),
    }
}

/// A requested protocol switch, and its transport.
fn switch(request: &Request<()>, tunnel: Option<Tunnel>) -> Option<Switch> {
    if tunnel.is_some() {
        return Some(Switch { extended: tunnel });
    }
    // RFC 6455, section 4.1. HTTP/1.0 has no upgrade (RFC 9110, section 7.8).
    let may = request.method() == Method::GET && request.version() == Version::HTTP_11;
    (may && headers::asks_for_websocket(request.headers())).then_some(Switch { extended: None })
}

/// Whether the end of a response is ambiguous: two different lengths, a length together with a transfer coding, or a
/// coding other than chunked, which the client would not learn about (RFC 9112, sections 6.1 and 6.3).
fn framed_twice(answer: &Response<Incoming>) -> bool {
    let headers = answer.headers();
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    match (codings.next(), lengths.next()) {
        (None, None) => false,
        (None, Some(length)) => !headers::is_length(length) || lengths.next().is_some(),
        (Some(_), Some(_)) => true,
        (Some(coding), None) => {
            answer.version() == Version::HTTP_10
                || codings.next().is_some()
                || !coding.as_bytes().eq_ignore_ascii_case(b"chunked")
        }
    }
}

/// HTTP/2 has no WebSocket key. The nonce only prevents caches from responding (RFC 6455, section 1.3), and there are
/// none between the edge and the program, so it can be constant.
fn websocket_key() -> HeaderValue {
    HeaderValue::from_static("d2lyZXRpZ2h0LXdzLWg8Mg==")
}

enum Failed {
    Late,
    Unsent(Box<Unsent>),
}

/// Sends the request and waits for the head of the response: as long as the body makes progress, and then for
/// `limit`.
async fn send(
    sender: &mut Sender,
    request: Request<RequestBody>,
    limit: Duration,
    body: &BodyProgress,
) -> Result<Response<Incoming>, Failed> {
    let mut answer = pin!(sender.send(request));
    let mut moved = body.received();
    loop {
        match timeout(limit, answer.as_mut()).await {
            Ok(answer) => return answer.map_err(|e| Failed::Unsent(Box::new(e))),
            Err(_) if body.received() > moved => moved = body.received(),
            Err(_) => return Err(Failed::Late),
        }
    }
}

/// The client's side of a tunnel, available after the response.
enum Handed {
    Connection(oneshot::Receiver<ClientIo>),
    Stream(Tunnel),
}

impl Handed {
    /// An error if the client disconnected.
    async fn taken(self) -> Result<Box<dyn BothWays>, Gone> {
        match self {
            Handed::Connection(handed) => Ok(handed.await.map_err(|_| Gone)?),
            Handed::Stream(stream) => stream.await.map_err(|_| Gone),
        }
    }
}

/// One of the two sides disconnected during the switch.
struct Gone;

pub(crate) trait BothWays: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> BothWays for T {}

/// Carries an upgraded connection until it is closed.
async fn tunnel(
    client: Handed,
    backend: OnUpgrade,
    counts: Option<Arc<EdgeTable>>,
    (mut cut, lost, patience): (watch::Receiver<bool>, impl Future<Output = ()>, Duration),
    mut record: AccessRecord,
) {
    let backend = async { backend.await.map_err(|_| Gone) };
    let both = async { tokio::try_join!(client.taken(), backend) };
    let Ok(Ok((client, backend))) = timeout(SWITCH, both).await else { return };
    let _counted = counts.as_ref().map(Counted::new);
    let state = Rc::new(TunnelState::default());
    let mut client = Toward { client, state: state.clone(), received: record.body.clone() };
    let mut backend = TokioIo::new(backend);
    // An HTTP/2 connection has a limited number of streams, and Chromium leaves its side of a WebSocket open after
    // the other side was closed. RST_STREAM tells it to stop (RFC 9113, section 8.1).
    let linger = if counts.is_some() { LINGER } else { Duration::ZERO };
    let carried = async {
        let (a, b) = (TUNNEL_BUFFER, TUNNEL_BUFFER);
        let copied = tokio::io::copy_bidirectional_with_sizes(&mut client, &mut backend, a, b);
        let mut copied = pin!(copied);
        tokio::select! {
            biased;
            // Everything was sent, regardless of what the client does now.
            () = state.ended.notified() => {
                let _ = timeout(linger, copied).await;
                Ok(())
            }
            copied = &mut copied => copied.map(|_| ()),
        }
    };
    tokio::select! {
        carried = carried => match carried {
            Ok(()) => record.complete(),
            Err(_) => record.broke_off("broken"),
        },
        _ = cut.wait_for(|cut| *cut) => record.broke_off("stopped"),
        () = lost => record.broke_off("revoked"),
        () = state.untaken(patience) => record.broke_off("stalled"),
    }
    record.sent(state.sent.get());
}

async fn lost(peer: Option<&Peer>, mesh: &Mesh) {
    match peer {
        Some(peer) => peer.lost(mesh).await,
        None => std::future::pending().await,
    }
}

/// The state of a tunnel towards the client.
#[derive(Default)]
struct TunnelState {
    sent: Cell<usize>,
    /// Since when the client has not read available data.
    blocked: Cell<Option<Instant>>,
    /// The backend closed its side, and everything was sent to the client.
    ended: Notify,
}

impl TunnelState {
    /// Resolves when the client has not read anything for `patience`.
    async fn untaken(&self, patience: Duration) {
        while self.blocked.get().is_none_or(|since| since.elapsed() < patience) {
            sleep(patience / 4).await;
        }
    }
}

/// The client's side of a tunnel, with monitoring.
struct Toward {
    client: Box<dyn BothWays>,
    state: Rc<TunnelState>,
    received: BodyProgress,
}

impl AsyncRead for Toward {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        ready!(Pin::new(&mut self.client).poll_read(cx, into))?;
        self.received.add(into.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Toward {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.client).poll_write(cx, bytes);
        let blocked = &self.state.blocked;
        blocked.set(written.is_pending().then(|| blocked.get().unwrap_or_else(Instant::now)));
        let n = ready!(written)?;
        self.state.sent.set(self.state.sent.get() + n);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.client).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.client).poll_shutdown(cx))?;
        self.state.ended.notify_one();
        Poll::Ready(Ok(()))
    }
}
