//! The console: what the mesh does, as pages for a browser on the authority's machine. It reads, and changes nothing.
//!
//! It listens on loopback only, or is a site of this node's edge. Whoever may use the admin socket gets a link that works
//! once (`wiretight console`); it opens a session. Only GET and HEAD are answered, only for known host names (so that no
//! other name can be pointed at it), and only to pages of its own. Pages are made here, without scripts.
//!
//! - [`session`]: links and sessions
//! - `query`: the query of a request
//! - `model`: the facts, indexed
//! - `parts`: the frame of every page, and what pages have in common
//! - `overview`, `problems`, `traffic`, `drawing`, `mesh`, `scans`, `entries`: the pages

mod drawing;
mod entries;
mod mesh;
mod model;
mod overview;
mod parts;
mod problems;
mod query;
mod scans;
pub mod session;
#[cfg(test)]
mod tests;
mod traffic;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use maud::{Markup, html};
use rustls::pki_types::CertificateDer;
use tokio::sync::{Mutex, Semaphore};
use wiretight_keys::claims::DAY;
use wiretight_proxy::clock::now;
use wiretight_proxy::mesh::Registry;

use crate::admin::api::Status;
use crate::authority::AuthorityHandle;
use crate::logging::chain;
use crate::proof;
use crate::proof::scans::Folder;
use crate::web::server::{Site, plain};
use model::Model;
use query::Query;
use session::Sessions;

/// How long the facts of a page are used for others.
const FRESH: Duration = Duration::from_secs(5);
/// How far back the history goes.
const YEAR: u64 = 366 * DAY;
/// Pages that are made at a time.
const AT_A_TIME: usize = 2;
/// A longer cookie header is not read.
const MAX_COOKIES: usize = 4096;
/// How often a page reloads that shall.
const RELOAD: &str = "30";

const STYLE: &str = include_str!("style.css");
const ICON: &str = include_str!("icon.svg");

/// Scripts are not allowed, nor anything from elsewhere.
const POLICY: &str = "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'";
const HEADERS: [(HeaderName, &str); 8] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("permissions-policy"), "camera=(), geolocation=(), microphone=()"),
];

/// What the console shows, and who may reach it.
pub struct Sources {
    pub authority: AuthorityHandle,
    /// The status of this node.
    pub status: Box<dyn Fn() -> Status + Send + Sync>,
    pub registry: Box<dyn Fn() -> Arc<Registry> + Send + Sync>,
    /// Whether a host is a site of the edge that leads here.
    pub is_site: Box<dyn Fn(&str) -> bool + Send + Sync>,
    /// The folder with the reports of scans.
    pub scans: Option<PathBuf>,
}

/// A running console.
pub struct Console {
    sources: Sources,
    address: SocketAddr,
    sessions: Arc<Sessions>,
    newest: Mutex<Option<(Instant, Arc<Model>)>>,
    /// What was read of the folder with the reports of scans.
    scans: Arc<parking_lot::Mutex<Folder>>,
    places: Semaphore,
}

/// Why there is no page.
enum NoPage {
    NotFound,
    Failed(String),
}

impl Console {
    pub fn new(sources: Sources, address: SocketAddr, sessions: Arc<Sessions>) -> Console {
        let (newest, places) = (Mutex::default(), Semaphore::new(AT_A_TIME));
        Console { sources, address, sessions, newest, scans: Arc::default(), places }
    }

    /// The facts, a few seconds old at most.
    async fn model(&self) -> Result<Arc<Model>, NoPage> {
        let mut newest = self.newest.lock().await;
        if let Some((_, model)) = newest.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            return Ok(model.clone());
        }
        let to = now();
        let facts = proof::collect(&self.sources.authority, to.saturating_sub(YEAR), to).await;
        let facts = facts.map_err(|e| NoPage::Failed(chain(&e)))?;
        let (status, registry) = ((self.sources.status)(), (self.sources.registry)());
        let (folder, scans) = (self.sources.scans.clone(), self.scans.clone());
        let made = move || {
            let scans = folder.map(|folder| scans.lock().read(&folder)).unwrap_or_default();
            Arc::new(Model::new(facts, status, &registry, scans))
        };
        let model = tokio::task::spawn_blocking(made).await;
        let model = model.map_err(|e| NoPage::Failed(e.to_string()))?;
        *newest = Some((Instant::now(), model.clone()));
        Ok(model)
    }

    async fn page(&self, path: &str, query: Query) -> Result<Response<Full<Bytes>>, NoPage> {
        let _place = self.places.acquire().await;
        let model = self.model().await?;
        let log = self.sources.authority.log();
        let failed = |e: &(dyn std::error::Error + 'static)| NoPage::Failed(chain(e));
        if path == "/log" {
            let found = entries::search(log, &query).await.map_err(|e| failed(&e))?;
            let checkpoint = log.checkpoint().map(|checkpoint| checkpoint.to_string());
            return Ok(page(entries::log(&model, &query, &found, checkpoint.as_deref())));
        }
        if let Some(rest) = path.strip_prefix("/log/entry/") {
            let (index, form) = rest.split_once('/').unwrap_or((rest, ""));
            let index = index.parse().map_err(|_| NoPage::NotFound)?;
            let proved = entries::prove(&self.sources.authority, index).await;
            let proved = proved.map_err(|e| failed(&e))?.ok_or(NoPage::NotFound)?;
            return match (form, &proved.proof) {
                ("", _) => Ok(page(entries::entry(&model, &proved))),
                ("raw", _) => Ok(file(proved.entry)),
                ("proof", Ok(proof)) => Ok(file(proof.to_string().into())),
                ("proof", Err(why)) => Err(NoPage::Failed(why.clone())),
                _ => Err(NoPage::NotFound),
            };
        }
        let path = path.to_owned();
        let made = tokio::task::spawn_blocking(move || {
            let live = query.live;
            made(&model, &path, &query).map(|markup| (page(markup), live))
        });
        let made = made.await.map_err(|e| NoPage::Failed(e.to_string()))?;
        let (mut response, live) = made.ok_or(NoPage::NotFound)?;
        if live {
            response.headers_mut().insert(header::REFRESH, HeaderValue::from_static(RELOAD));
        }
        Ok(response)
    }

    /// Whether the request is for this console by a name that only this console has.
    fn knows(&self, host: &str) -> Option<Reached> {
        let port = self.address.port();
        let bare = match host.rsplit_once(':') {
            Some((bare, given)) if given.parse() == Ok(port) => bare,
            _ => host,
        };
        let here = bare.len() < host.len() || port == 80;
        let is_loopback = |bare: &str| {
            let bare = bare.strip_prefix('[').and_then(|b| b.strip_suffix(']')).unwrap_or(bare);
            bare.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
        };
        if here && (bare.eq_ignore_ascii_case("localhost") || is_loopback(bare)) {
            return Some(Reached::Here);
        }
        // The edge removes no port that a client names.
        let bare = host.split_once(':').map_or(host, |(bare, _)| bare).to_ascii_lowercase();
        (self.sources.is_site)(&bare).then_some(Reached::Site)
    }

    fn enter(&self, link: &str, reached: Reached) -> Response<Full<Bytes>> {
        let entered = match self.sessions.enter(link, Instant::now()) {
            Ok(entered) => entered,
            Err(e) => return failure(&format!("cannot get random bytes from the system: {e}")),
        };
        let Some(session) = entered else { return no_session() };
        // The cookie is not sent with a redirect after a link from elsewhere, so the page leads on.
        let body = html! { p { a href="/" { "Continue to the console" } } };
        let mut response = page(parts::outside("Wiretight console", body));
        let onward = HeaderValue::from_static("0; url=/");
        response.headers_mut().insert(header::REFRESH, onward);
        let secure = match reached {
            Reached::Here => "",
            Reached::Site => "; Secure",
        };
        let cookie =
            format!("{}={session}; Path=/; HttpOnly; SameSite=Strict{secure}", self.cookie());
        if let Ok(cookie) = HeaderValue::from_str(&cookie) {
            response.headers_mut().insert(header::SET_COOKIE, cookie);
        }
        response
    }

    /// Browsers send a cookie to every port of a host, so its name has the port.
    fn cookie(&self) -> String {
        format!("wiretight-console-{}", self.address.port())
    }

    fn has_session(&self, headers: &HeaderMap) -> bool {
        let name = self.cookie();
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|c| c.to_str().ok());
        let pairs = cookies.filter(|c| c.len() <= MAX_COOKIES).flat_map(|c| c.split(';'));
        pairs
            .filter_map(|pair| pair.trim().split_once('='))
            .any(|(key, secret)| key == name && self.sessions.is_open(secret, Instant::now()))
    }

    async fn respond(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (parts, _) = request.into_parts();
        if !matches!(parts.method, Method::GET | Method::HEAD) {
            let mut response =
                plain(StatusCode::METHOD_NOT_ALLOWED, "the console only reads: use GET\n".into());
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        let mut hosts = parts.headers.get_all(header::HOST).iter();
        let host = match (hosts.next().map(HeaderValue::to_str), hosts.next()) {
            (Some(Ok(host)), None) => host,
            _ => "",
        };
        let Some(reached) = self.knows(host) else {
            let why =
                "this is not a name of the console: use the link that `wiretight console` prints\n";
            return plain(StatusCode::MISDIRECTED_REQUEST, why.into());
        };
        let path = parts.uri.path();
        match path {
            "/style.css" => return style(),
            "/icon.svg" => return content("image/svg+xml", ICON.into()),
            _ => {}
        }
        if let Some(link) = path.strip_prefix("/enter/") {
            return self.enter(link, reached);
        }
        // Another program of this machine is the same site for a browser, but not the same origin.
        let site = parts.headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
        let own = site.is_none_or(|site| matches!(site, b"same-origin" | b"none"));
        if !own || !self.has_session(&parts.headers) {
            return no_session();
        }
        let query = Query::parse(parts.uri.query().unwrap_or_default());
        match self.page(path, query).await {
            Ok(response) => response,
            Err(NoPage::Failed(why)) => failure(&why),
            Err(NoPage::NotFound) => {
                let body = html! {
                    p { "It may be in an older report, or it never was here." }
                    p { a href="/" { "Overview" } }
                };
                with_status(
                    StatusCode::NOT_FOUND,
                    page(parts::outside("There is no such page", body)),
                )
            }
        }
    }
}

impl Site for Console {
    async fn answer(
        &self,
        _caller: &[CertificateDer<'static>],
        request: Request<Incoming>,
    ) -> Response<Full<Bytes>> {
        let mut response = self.respond(request).await;
        let headers = response.headers_mut();
        for (name, value) in HEADERS {
            headers.insert(name, HeaderValue::from_static(value));
        }
        response
    }
}

/// How the console was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reached {
    Here,
    /// By HTTPS, through the edge.
    Site,
}

/// The page at a path, if it needs nothing but the model.
fn made(model: &Model, path: &str, query: &Query) -> Option<Markup> {
    if let Some(name) = path.strip_prefix("/node/") {
        return mesh::node(model, name, query);
    }
    match path {
        "/" => Some(overview::overview(model)),
        "/expiring" => Some(overview::expiry(model, query.page)),
        "/change" => Some(traffic::change(model, query)),
        "/services" => Some(traffic::services(model, query)),
        "/service" => traffic::service(model, query),
        "/flow" => traffic::flow(model, query),
        "/nodes" => Some(mesh::nodes(model, query)),
        "/exceptions" => Some(mesh::exceptions(model, query)),
        "/keys" => Some(mesh::keys(model)),
        "/witnesses" => Some(mesh::witnesses(model)),
        "/scans" => Some(scans::scans(model, query)),
        "/scan" => scans::scan(model, query),
        "/history" => Some(mesh::history(model, query)),
        "/period" => mesh::period(model, query),
        _ => None,
    }
}

fn style() -> Response<Full<Bytes>> {
    content("text/css; charset=utf-8", [proof::chart::CSS, STYLE].concat())
}

fn content(kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn page(markup: Markup) -> Response<Full<Bytes>> {
    content("text/html; charset=utf-8", markup.into_string())
}

/// A file to keep.
fn file(bytes: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(bytes));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    response
}

fn with_status(status: StatusCode, mut response: Response<Full<Bytes>>) -> Response<Full<Bytes>> {
    *response.status_mut() = status;
    response
}

fn failure(why: &str) -> Response<Full<Bytes>> {
    let body = html! {
        p { (parts::text(why)) }
        p { a href="/" { "Try again" } }
    };
    let page = page(parts::outside("The authority could not answer", body));
    with_status(StatusCode::SERVICE_UNAVAILABLE, page)
}

fn no_session() -> Response<Full<Bytes>> {
    let body = html! {
        p { "There is no session here, or it has ended: it lasts 12 hours, and 1 hour without use." }
        p { "On the authority's machine, as root or as the node's user, run:" }
        (parts::command("wiretight console"))
        p { "It prints a link that works once, for 5 minutes." }
    };
    with_status(StatusCode::FORBIDDEN, page(parts::outside("Open the console by its link", body)))
}
