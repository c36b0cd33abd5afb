//! A simulated year of six-day certificates: two edges, one store, Wiretight's own ACME server, and everything that can
//! fail between them.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, Response, StatusCode};
use instant_acme::{BodyWrapper, BytesResponse, Error};
use serde_json::{Value, json};
use wiretight_keys::{Period, Profile, Signer, SigningKey, Tbs, WebCsr};
use wiretight_store::MemoryStore;

use super::*;
use crate::acme_server::{AcmeServer, Invalid, Issuer, Method as Proof, Validator};

const NAME: &str = "www.example.test";
const BASE: &str = "https://ca.test";
const START: u64 = 1_800_000_000;
const HOUR: u64 = 3600;
const DAY: u64 = 86_400;

/// The world outside of the edges.
struct World {
    /// The true time, which is also the CA's.
    now: AtomicU64,
    dice: AtomicU64,
    /// When the CA is unreachable.
    down: Vec<(u64, u64)>,
    /// Whether there are other faults.
    calm: bool,
    store: Arc<MemoryStore>,
    seen: Mutex<Seen>,
}

/// What the CA has received.
#[derive(Debug, Default)]
struct Seen {
    accounts: usize,
    orders: Vec<u64>,
    certificates: Vec<u64>,
    faults: BTreeMap<&'static str, usize>,
}

impl World {
    fn new(seed: u64, down: Vec<(u64, u64)>, calm: bool) -> Arc<World> {
        let (store, seen) = Default::default();
        Arc::new(World { now: START.into(), dice: (seed | 1).into(), down, calm, store, seen })
    }

    fn now(&self) -> u64 {
        self.now.load(Relaxed)
    }

    fn below(&self, n: u64) -> u64 {
        let mut x = self.dice.load(Relaxed);
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.dice.store(x, Relaxed);
        (x >> 11) % n
    }

    fn fault(&self, what: &'static str) {
        *self.seen.lock().faults.entry(what).or_default() += 1;
    }

    fn is_down(&self) -> bool {
        self.down.iter().any(|(from, to)| (*from..*to).contains(&self.now()))
    }
}

/// An edge's clock, which is wrong by this many seconds.
#[derive(Clone)]
struct Skewed {
    world: Arc<World>,
    by: Arc<AtomicI64>,
}

#[async_trait]
impl Clock for Skewed {
    fn now(&self) -> u64 {
        self.world.now().saturating_add_signed(self.by.load(Relaxed))
    }
    async fn sleep(&self, duration: Duration) {
        self.world.now.fetch_add(duration.as_secs().max(1), Relaxed);
        tokio::task::yield_now().await;
    }
}

/// Six days, backdated by an hour as by public CAs.
struct SixDays(SigningKey, Arc<World>);

#[async_trait]
impl Issuer for SixDays {
    async fn issue(
        &self,
        request: &WebCsr,
        _not_after: Option<u64>,
    ) -> Result<Vec<CertificateDer<'static>>, String> {
        let not_before = self.1.now() - HOUR;
        let period = Period { not_before, not_after: not_before + 6 * DAY };
        let profile = Profile::Web(request.names().to_vec());
        let mut serial = [1; 16];
        serial[8..].copy_from_slice(&self.1.below(u64::MAX).to_be_bytes());
        let tbs = Tbs::new(&profile, request.spki(), period, serial, None, self.0.algorithm());
        Ok(vec![tbs.and_then(|tbs| tbs.sign(&self.0)).map_err(|e| e.to_string())?])
    }
}

/// Looks for the challenge response in the shared store, and fails sometimes.
struct Looks(Arc<World>);

#[async_trait]
impl Validator for Looks {
    async fn validate(
        &self,
        _method: Proof,
        _name: &str,
        token: &str,
        key_authorization: &str,
    ) -> Result<(), Invalid> {
        if !self.0.calm && self.0.below(15) == 0 {
            self.0.fault("not verified");
            return Err(Invalid { kind: "connection", detail: "timed out".into() });
        }
        let (entries, _) = self.0.store.list("edge/").await.unwrap();
        let said = |entry: &wiretight_store::Entry| {
            let record: SiteRecord = serde_json::from_slice(&entry.value).unwrap_or_default();
            let mut answers = record.order.into_iter().flat_map(|o| o.answers);
            answers.any(|answer| match answer {
                Answer::Http { token: t, key_authorization: k } => {
                    t == token && k == key_authorization
                }
                _ => false,
            })
        };
        match entries.iter().any(said) {
            true => Ok(()),
            false => Err(Invalid { kind: "unauthorized", detail: "no answer".into() }),
        }
    }
}

/// The connection to the CA. Adds renewal information, which the server does not offer.
#[derive(Clone)]
struct Way {
    world: Arc<World>,
    server: AcmeServer,
}

fn problem(status: u16, kind: &str) -> Response<Bytes> {
    let kind = format!("urn:ietf:params:acme:error:{kind}");
    let body = json!({ "type": kind, "detail": "a fault", "status": status }).to_string();
    let response = Response::builder()
        .status(status)
        .header("content-type", "application/problem+json")
        .header("replay-nonce", "none");
    response.body(Bytes::from(body)).unwrap()
}

fn lost() -> Error {
    let (host, detail) = (BASE.to_owned(), "the connection broke".to_owned());
    Error::Other(Box::new(http::Unreached::Answer { host, detail }))
}

impl Way {
    /// A window of renewal information: normal, immediate, invalid, too late.
    fn renewal_info(&self) -> Response<Bytes> {
        let (world, now) = (&self.world, self.world.now());
        let (start, end) = match world.below(8) {
            0 => (now - DAY, now - HOUR),
            1 => (now + DAY, now),
            2 => (now + 20 * DAY, now + 30 * DAY),
            _ => (now + 2 * DAY, now + 3 * DAY),
        };
        let at = |t: u64| jiff::Timestamp::from_second(t.try_into().unwrap()).unwrap().to_string();
        let body = json!({ "suggestedWindow": { "start": at(start), "end": at(end) } });
        let response = Response::builder().header("retry-after", "21600");
        response.body(Bytes::from(body.to_string())).unwrap()
    }

    async fn ask(&self, request: Request<BodyWrapper<Bytes>>) -> Result<Response<Bytes>, Error> {
        let world = &self.world;
        world.now.fetch_add(1, Relaxed);
        if world.is_down() {
            world.fault("down");
            return match world.below(2) {
                0 => Err(lost()),
                _ => Ok(problem(503, "serverInternal")),
            };
        }
        let fault = if world.calm { 100 } else { world.below(100) };
        match fault {
            0..2 => {
                world.fault("request lost");
                return Err(lost());
            }
            2..4 => {
                world.fault("500, no problem document");
                let response = Response::builder().status(500).body(Bytes::from("<html>oops"));
                return Ok(response.unwrap());
            }
            4 => {
                world.fault("429");
                return Ok(problem(429, "rateLimited"));
            }
            5 => {
                world.fault("409");
                return Ok(problem(409, "conflict"));
            }
            6 => {
                world.fault("bad nonce");
                return Ok(problem(400, "badNonce"));
            }
            _ => {}
        }
        let (head, body) = request.into_parts();
        let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        let path = head.uri.path().to_owned();
        if path.starts_with("/renewal-info/") {
            return Ok(self.renewal_info());
        }
        let payload = || {
            let body: Value = serde_json::from_slice(&body).ok()?;
            let payload = URL_SAFE_NO_PAD.decode(body["payload"].as_str()?).ok()?;
            serde_json::from_slice::<Value>(&payload).ok()
        };
        let replaces = payload().and_then(|p| p.get("replaces").cloned());
        let new_order = path == "/new-order";
        if new_order && replaces.is_some() && world.below(3) == 0 {
            world.fault("409 alreadyReplaced");
            return Ok(problem(409, "alreadyReplaced"));
        }
        let post = head.method == Method::POST;
        let response = self.server.handle(Request::from_parts(head, body)).await;
        let (mut head, mut body) = response.into_parts();
        if path == "/directory" || new_order && replaces.is_some() && head.status == 201 {
            let mut json: Value = serde_json::from_slice(&body).unwrap();
            match new_order {
                true => json["replaces"] = replaces.unwrap(),
                false => json["renewalInfo"] = format!("{BASE}/renewal-info").into(),
            }
            body = Bytes::from(json.to_string());
            head.headers.remove("content-length");
        }
        {
            let mut seen = world.seen.lock();
            let made = head.status == StatusCode::CREATED;
            seen.accounts += usize::from(made && path == "/new-account");
            if made && new_order {
                seen.orders.push(world.now());
            }
            if post && path.ends_with("/finalize") && head.status == StatusCode::OK {
                seen.certificates.push(world.now());
            }
        }
        match fault {
            7..9 => {
                world.fault("answer lost");
                Err(lost())
            }
            9..11 => {
                world.fault("500 instead of the answer");
                Ok(problem(500, "serverInternal"))
            }
            _ => Ok(Response::from_parts(head, body)),
        }
    }
}

impl HttpClient for Way {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let this = self.clone();
        Box::pin(async move { Ok(this.ask(request).await?.map(Full::new).into()) })
    }
}

/// An edge: its process, and what remains when the process ends.
struct Edge {
    me: &'static str,
    key: zeroize::Zeroizing<Vec<u8>>,
    clock: Skewed,
    process: (Arc<Acme>, Arc<Certificates>),
}

fn start(me: &str, key: &[u8], clock: &Skewed, way: &Way) -> (Arc<Acme>, Arc<Certificates>) {
    let serve = Arc::new(Certificates::default());
    let key = SealKey::from_bytes(key).unwrap();
    let (store, clock) = (clock.world.store.clone(), Arc::new(clock.clone()));
    let acme = Acme::new(store, "service/www", me, key, clock, serve.clone(), None);
    let way = way.clone();
    let ca = Ca {
        directory: format!("{BASE}/directory"),
        contact: Vec::new(),
        profile: None,
        challenge: Some(Challenge::Http01),
        dns_command: None,
        transport: Arc::new(move || Box::new(way.clone())),
    };
    acme.update(vec![AcmeSite { names: vec![NAME.parse().unwrap()], ask: None }], vec![ca]);
    (acme, serve)
}

/// The number of seconds in `days` in which an edge served an expired certificate, or none after it had one.
async fn live(world: &Arc<World>, days: u64) -> u64 {
    let (read, key) = (world.clone(), SigningKey::generate().unwrap());
    let server = AcmeServer::new(
        Arc::new(MemoryStore::new()),
        Arc::new(SixDays(key, world.clone())),
        Arc::new(Looks(world.clone())),
        Arc::new(move || read.now()),
        BASE.into(),
        vec!["*.example.test".parse().unwrap()],
        crate::config::reserved(&"mesh.test".parse().unwrap()),
    );
    let way = Way { world: world.clone(), server };
    let mut edges = ["e1", "e2"].map(|me| {
        let key = SealKey::generate().unwrap().to_bytes();
        let clock = Skewed { world: world.clone(), by: Arc::new(AtomicI64::new(0)) };
        let process = start(me, &key, &clock, &way);
        Edge { me, key, clock, process }
    });
    let (mut expired, mut held_until, mut looked) = (0, [None::<u64>; 2], START);
    let began = AtomicBool::new(false);
    while world.now() < START + days * DAY {
        let [a, b] = &edges;
        let (a, b) = tokio::join!(a.process.0.clone().step(), b.process.0.clone().step());
        // Both are checked in true time; a certificate that was just replaced must have been valid until now.
        for (edge, held) in edges.iter().zip(&mut held_until) {
            let now = world.now();
            if let Some(until) = *held {
                let without = now.saturating_sub(until.max(looked));
                if without > 0 {
                    let (skew, errors) = (edge.clock.by.load(Relaxed), edge.process.0.errors());
                    let t = now - START;
                    println!("{}: {t} s: {without} s without, skew {skew} s: {errors:?}", edge.me);
                }
                expired += without;
            }
            if let Some(served) = edge.process.1.get(NAME) {
                *held = Some(served.period().not_after);
                began.store(true, Relaxed);
            }
        }
        looked = world.now();
        let next = [(a, &edges[0]), (b, &edges[1])].map(|(at, e)| at.saturating_sub(e.clock.now()));
        let wait = next[0].min(next[1]).clamp(30, HOUR);
        world.now.fetch_add(wait, Relaxed);
        if world.calm {
            continue;
        }
        for edge in &mut edges {
            // A clock is set, sometimes to another day; a process ends and is restarted.
            match world.below(2000) {
                0..20 => edge.clock.by.store(world.below(1200) as i64 - 600, Relaxed),
                20 => edge.clock.by.store(DAY as i64, Relaxed),
                21 => edge.clock.by.store(-(DAY as i64), Relaxed),
                22..40 => edge.process = start(edge.me, &edge.key, &edge.clock, &way),
                _ => {}
            }
        }
    }
    assert!(began.load(Relaxed), "there was never a certificate");
    expired
}

/// The most events in any span of this length.
fn most(times: &[u64], span: u64) -> usize {
    let from = |t: &u64| times.iter().filter(|u| (*t..*t + span).contains(u)).count();
    times.iter().map(from).max().unwrap_or_default()
}

#[tokio::test]
async fn a_year_of_faults_has_no_hour_without_a_certificate_and_no_budget_is_broken() {
    let given = std::env::var("WIRETIGHT_TEST_SEED").ok().and_then(|s| s.parse().ok());
    let seed = given.unwrap_or(77);
    // Six times in the year the CA is unreachable for 48 hours.
    let down = (0..6).map(|n| START + (20 + n * 57) * DAY + n * 9 * HOUR);
    let world = World::new(seed, down.map(|from| (from, from + 2 * DAY)).collect(), false);
    let expired = live(&world, 365).await;
    let seen = world.seen.lock();
    let (orders, certificates) = (most(&seen.orders, HOUR), most(&seen.certificates, 7 * DAY));
    println!(
        "{} orders, at most {orders} in an hour; {} certificates, at most {certificates} in a week; {:?}",
        seen.orders.len(),
        seen.certificates.len(),
        seen.faults
    );
    assert_eq!(expired, 0, "seconds without a certificate that held");
    assert_eq!(seen.accounts, 1);
    assert!(orders <= record::ORDERS_PER_HOUR, "{orders} orders in an hour");
    assert!(certificates <= record::CERTIFICATES_PER_WEEK, "{certificates} in a week");
    // A whole year passed, and the faults occurred.
    assert!(seen.certificates.len() >= 100);
    for fault in ["down", "409", "409 alreadyReplaced", "429", "answer lost", "not verified"] {
        assert!(seen.faults[fault] >= 3, "{fault}: {:?}", seen.faults);
    }
}

/// The control: the test above would detect this.
#[tokio::test]
async fn a_ca_that_is_away_for_a_week_leaves_an_expired_certificate() {
    let world = World::new(1, vec![(START + 2 * DAY, START + 9 * DAY)], true);
    let expired = live(&world, 12).await;
    assert!(expired > DAY, "{expired} s");
    // With a CA that is always reachable there are none.
    let world = World::new(1, vec![], true);
    assert_eq!(live(&world, 12).await, 0);
}
