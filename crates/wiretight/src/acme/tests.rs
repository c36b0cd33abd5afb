//! Tests against Pebble, with edges that crash between any two requests.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http_body_util::BodyExt;
use hyper::body::Bytes;
use hyper::{Method, Request};
use instant_acme::{BodyWrapper, BytesResponse, Error};
use wiretight_keys::{Period, Profile, Signer, SigningKey, Tbs, x509};
use wiretight_store::{MemoryStore, Watch};

use super::record::Issued;
use super::*;
use crate::config::AskUrl;

#[path = "../../tests/pebble/mod.rs"]
mod pebble;
#[path = "../../../../tests/ports.rs"]
mod ports;

use pebble::Pebble;
use ports::free;

const NAME: &str = "www.example.test";

/// Counts requests and crashes at one of them: the request or its response never arrives.
#[derive(Clone)]
struct Mortal {
    https: http::Https,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    requests: AtomicUsize,
    dies_at: AtomicUsize,
    /// Whether the CA has received the request at which it crashes.
    after: bool,
    dead: Notify,
    /// Responses with 201 (Created), by path.
    created: Mutex<BTreeMap<String, usize>>,
    /// The contacts sent to the CA.
    contacts: Mutex<Vec<serde_json::Value>>,
}

impl Seen {
    fn created(&self, what: &str) -> usize {
        let created = self.created.lock();
        created.iter().filter(|(path, _)| path.contains(what)).map(|(_, n)| n).sum()
    }
}

impl HttpClient for Mortal {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let (seen, https) = (self.seen.clone(), self.https.clone());
        Box::pin(async move {
            let dies = seen.requests.fetch_add(1, Ordering::SeqCst) + 1
                == seen.dies_at.load(Ordering::SeqCst);
            let (path, post) = (request.uri().path().to_owned(), request.method() == Method::POST);
            let (head, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes().to_vec();
            seen.contacts.lock().extend(contact(&body));
            let request = Request::from_parts(head, BodyWrapper::from(body));
            let answer = match dies && !seen.after {
                true => None,
                false => Some(https.request(request).await),
            };
            if let Some(Ok(answer)) = &answer
                && post
                && answer.parts.status == 201
            {
                *seen.created.lock().entry(path).or_default() += 1;
            }
            if dies {
                seen.dead.notify_one();
                std::future::pending::<()>().await;
            }
            answer.expect("whoever is alive has an answer")
        })
    }
}

/// The contacts in a signed request.
fn contact(jws: &[u8]) -> Option<serde_json::Value> {
    let jws: serde_json::Value = serde_json::from_slice(jws).ok()?;
    let payload = URL_SAFE_NO_PAD.decode(jws["payload"].as_str()?).ok()?;
    let payload: serde_json::Value = serde_json::from_slice(&payload).ok()?;
    payload.get("contact").cloned()
}

/// The machine's clock, with shorter waits.
struct Impatient;

#[async_trait]
impl Clock for Impatient {
    fn now(&self) -> u64 {
        RealClock.now()
    }
    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration / 40).await;
    }
}

struct Rig {
    pebble: Option<Pebble>,
    store: Arc<MemoryStore>,
    https: http::Https,
    site: AcmeSite,
    directories: Vec<String>,
    identity: &'static str,
}

impl Rig {
    fn new(http: u16) -> Rig {
        let pebble = Pebble::start(http, 1, 90 * 86_400);
        let pem = std::fs::read(&pebble.roots).unwrap();
        let roots: Vec<_> = CertificateDer::pem_slice_iter(&pem).map(Result::unwrap).collect();
        Rig {
            https: http::Https::new(&roots).unwrap(),
            directories: vec![pebble.directory.clone()],
            pebble: Some(pebble),
            store: Arc::new(MemoryStore::new()),
            site: AcmeSite { names: vec![NAME.parse().unwrap()], ask: None },
            identity: "service/www",
        }
    }

    /// A rig without a CA.
    fn offline() -> Rig {
        Rig {
            https: http::Https::new(&[]).unwrap(),
            directories: Vec::new(),
            pebble: None,
            store: Arc::new(MemoryStore::new()),
            site: AcmeSite { names: vec![NAME.parse().unwrap()], ask: None },
            identity: "service/www",
        }
    }

    fn seen(&self, dies_at: usize, after: bool) -> Arc<Seen> {
        Arc::new(Seen { dies_at: dies_at.into(), after, ..Seen::default() })
    }

    /// An edge with this name. The same name and key mean the same edge, restarted.
    fn edge(&self, me: &str, key: &[u8], seen: &Arc<Seen>) -> (Arc<Acme>, Arc<Certificates>) {
        let serve = Arc::new(Certificates::default());
        let key = SealKey::from_bytes(key).unwrap();
        let store = self.store.clone();
        let acme =
            Acme::new(store, self.identity, me, key, Arc::new(Impatient), serve.clone(), None);
        let mortal = Mortal { https: self.https.clone(), seen: seen.clone() };
        let transport: NewTransport = Arc::new(move || Box::new(mortal.clone()));
        let ca = |directory: &String| Ca {
            directory: directory.clone(),
            contact: vec!["mailto:ops@example.org".into()],
            profile: None,
            challenge: Some(Challenge::Http01),
            dns_command: None,
            transport: transport.clone(),
        };
        acme.update(vec![self.site.clone()], self.directories.iter().map(ca).collect());
        (acme, serve)
    }

    async fn record(&self) -> SiteRecord {
        let key = Key::new(format!("edge/{}/site/{NAME}", self.identity)).unwrap();
        let entry = self.store.get(&key).await.unwrap();
        entry.map(|e| serde_json::from_slice(&e.value).unwrap()).unwrap_or_default()
    }
}

/// Answers http-01 challenges like port 80 of the edges, from the store.
fn port_80() -> (u16, Arc<Mutex<Vec<Arc<MemoryStore>>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let stores: Arc<Mutex<Vec<Arc<MemoryStore>>>> = Arc::default();
    let of = stores.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            let mut head = [0; 2048];
            let n = socket.read(&mut head).unwrap_or(0);
            let head = String::from_utf8_lossy(&head[..n]).into_owned();
            let mut body = String::new();
            let stores = of.lock().clone();
            for store in stores {
                let (entries, _) = runtime.block_on(store.list("edge/")).unwrap();
                for entry in entries {
                    let record: SiteRecord =
                        serde_json::from_slice(&entry.value).unwrap_or_default();
                    for answer in record.order.iter().flat_map(|o| &o.answers) {
                        if let Answer::Http { token, key_authorization } = answer
                            && head.contains(token)
                        {
                            body = key_authorization.clone();
                        }
                    }
                }
            }
            let _ = write!(
                socket,
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
        }
    });
    (port, stores)
}

async fn until_served(acme: Arc<Acme>, serve: &Certificates) {
    for _ in 0..200 {
        acme.clone().step().await;
        if serve.get(NAME).is_some() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        acme.retry().await.unwrap();
    }
    panic!("no certificate: {:?}", acme.errors());
}

#[tokio::test]
async fn an_edge_that_crashes_between_two_steps_keeps_its_account_and_orders_at_most_once_more() {
    if !pebble::installed() {
        return;
    }
    let (port, stores) = port_80();
    let mut rig = Rig::new(port);
    let mut deaths = 0;
    for step in 1..=64 {
        let mut lived = false;
        for after in [false, true] {
            rig.store = Arc::new(MemoryStore::new());
            *stores.lock() = vec![rig.store.clone()];
            let key = SealKey::generate().unwrap().to_bytes();
            let seen = rig.seen(step, after);
            let (acme, serve) = rig.edge("e1", &key, &seen);
            tokio::select! {
                () = until_served(acme, &serve) => lived = true,
                () = seen.dead.notified() => deaths += 1,
            }
            // Restarted with only the same store and key.
            let (acme, serve) = rig.edge("e1", &key, &seen);
            until_served(acme, &serve).await;
            let record = rig.record().await;
            let what = format!("death {step} ({after})");
            assert_eq!(seen.created("/sign-me-up"), 1, "{what}: accounts");
            let orders = seen.created("/order-plz");
            assert!(orders <= 2, "{what}: {orders} orders");
            assert!(record.orders.len() <= 2 && record.finalized.len() == 1, "{what}: {record:?}");
            assert!(record.orders.len() >= orders, "{what}: an order that was not charged");
        }
        if lived {
            break;
        }
    }
    assert!(deaths > 20, "{deaths} deaths: the order had more steps");
    drop(rig);
}

#[tokio::test]
async fn of_two_edges_that_share_a_store_one_orders_and_both_serve() {
    if !pebble::installed() {
        return;
    }
    let (port, stores) = port_80();
    let rig = Rig::new(port);
    *stores.lock() = vec![rig.store.clone()];
    let seen = rig.seen(0, false);
    let keys = [SealKey::generate().unwrap().to_bytes(), SealKey::generate().unwrap().to_bytes()];
    let (a, serves_a) = rig.edge("e1", &keys[0], &seen);
    let (b, serves_b) = rig.edge("e2", &keys[1], &seen);
    // Both are members before either orders.
    a.join().await.unwrap();
    b.join().await.unwrap();
    tokio::join!(until_served(a.clone(), &serves_a), until_served(b.clone(), &serves_b));
    assert_eq!((seen.created("/sign-me-up"), seen.created("/order-plz")), (1, 1));
    let period = |c: &Certificates| c.get(NAME).unwrap().period();
    assert_eq!(period(&serves_a), period(&serves_b));
    // An edge that joins later gets the key from the others and orders nothing.
    let late = SealKey::generate().unwrap().to_bytes();
    let (c, serves_c) = rig.edge("e3", &late, &seen);
    c.join().await.unwrap();
    a.clone().step().await;
    until_served(c, &serves_c).await;
    assert_eq!(seen.created("/order-plz"), 1);
    // The control: an edge that shares no store orders its own certificate.
    let alone = Rig { store: Arc::new(MemoryStore::new()), ..rig };
    stores.lock().push(alone.store.clone());
    let (d, serves_d) = alone.edge("e1", &keys[0], &seen);
    until_served(d.clone(), &serves_d).await;
    assert_eq!(seen.created("/order-plz"), 2);
    // The CA is told the contact, and its changes. (Pebble rejects some nonces; the request is then repeated.)
    let told = || std::mem::take(&mut *seen.contacts.lock());
    let first = told();
    assert!(first.len() >= 2, "{first:?}");
    assert!(first.iter().all(|c| *c == serde_json::json!(["mailto:ops@example.org"])), "{first:?}");
    let mut ca = d.told.lock().cas[0].clone();
    d.account(&ca).await.unwrap();
    assert!(told().is_empty());
    ca.contact = vec!["mailto:new@example.org".into()];
    for expected in [vec![serde_json::json!(ca.contact)], vec![]] {
        d.account(&ca).await.unwrap();
        let mut said = told();
        said.dedup();
        assert_eq!(said, expected);
    }
}

#[tokio::test]
async fn if_a_ca_fails_the_next_one_is_used() {
    if !pebble::installed() {
        return;
    }
    let (port, stores) = port_80();
    let mut rig = Rig::new(port);
    *stores.lock() = vec![rig.store.clone()];
    // No server listens there.
    rig.directories.insert(0, "https://127.0.0.1:1/directory".into());
    let seen = rig.seen(0, false);
    let key = SealKey::generate().unwrap().to_bytes();
    let (acme, serve) = rig.edge("e1", &key, &seen);
    acme.clone().step().await;
    let error = acme.errors().remove(NAME).unwrap();
    assert!(error.contains("cannot reach 127.0.0.1:1"), "{error}");
    assert!(rig.record().await.orders.is_empty(), "a CA that never heard of it was charged");
    acme.retry().await.unwrap();
    until_served(acme.clone(), &serve).await;
    assert_eq!(rig.record().await.certificate.unwrap().ca, rig.pebble.as_ref().unwrap().directory);
    assert_eq!(acme.errors().len(), 0);
}

/// An `ask` program that allows hosts below `yes.test`, and records the requests.
fn asked() -> (AskUrl, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/may?key=1", listener.local_addr().unwrap());
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let asked = seen.clone();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            let mut head = [0; 2048];
            let n = socket.read(&mut head).unwrap_or(0);
            let head = String::from_utf8_lossy(&head[..n]).into_owned();
            let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
            let status = match () {
                () if path.ends_with(".yes.test") => "200 OK",
                () if path.ends_with(".broken.test") => "503 Service Unavailable",
                // A redirect is not followed and does not count as permission.
                () if path.ends_with(".moved.test") => {
                    "302 Found\r\nLocation: /may?domain=a.yes.test"
                }
                () => "404 Not Found",
            };
            asked.lock().push(path);
            let _ = write!(socket, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
        }
    });
    (url.parse().unwrap(), seen)
}

async fn host_records(rig: &Rig) -> BTreeMap<String, SiteRecord> {
    let prefix = format!("edge/{}/site/", rig.identity);
    let (all, _) = rig.store.list(&prefix).await.unwrap();
    let record = |e: wiretight_store::Entry| {
        let host = e.key.as_str().strip_prefix(&prefix).unwrap().to_owned();
        (host, serde_json::from_slice(&e.value).unwrap())
    };
    all.into_iter().map(record).collect()
}

#[tokio::test]
async fn a_host_gets_an_on_demand_certificate_if_the_ask_program_allows_it() {
    if !pebble::installed() {
        return;
    }
    let (port, stores) = port_80();
    let rig = Rig::new(port);
    *stores.lock() = vec![rig.store.clone()];
    let (ask, asked) = asked();
    let seen = rig.seen(0, false);
    let keys = [SealKey::generate().unwrap().to_bytes(), SealKey::generate().unwrap().to_bytes()];
    let on_demand = OnDemandSite { names: vec![SiteName::any()], ask };
    let edge = |me, key: &[u8]| {
        let (acme, serve) = rig.edge(me, key, &seen);
        let cas = acme.told.lock().cas.clone();
        acme.update(Vec::new(), cas);
        acme.update_on_demand(vec![on_demand.clone()]);
        (acme, serve)
    };
    let (a, serves_a) = edge("e1", &keys[0]);
    let (b, serves_b) = edge("e2", &keys[1]);
    a.join().await.unwrap();
    b.join().await.unwrap();
    let host = |name: &str| name.parse::<SiteName>().unwrap();

    // A refusal, no response, a redirect: nothing is ordered or stored.
    for no in ["a.no.test", "a.no.test", "a.broken.test", "a.moved.test", "nodot"] {
        a.get_on_demand(&host(no)).await.unwrap();
        assert!(serves_a.get(no).is_none(), "{no}");
    }
    let asks = std::mem::take(&mut *asked.lock());
    let ask_of = |host: &str| format!("/may?key=1&domain={host}");
    // The first refusal is remembered.
    assert_eq!(asks, ["a.no.test", "a.broken.test", "a.moved.test"].map(ask_of));
    assert_eq!((seen.created("/order-plz"), host_records(&rig).await.len()), (0, 0));

    // Allowed: both edges want it at once, one orders, both serve.
    let shop = host("shop.yes.test");
    let (of_a, of_b) = tokio::join!(a.get_on_demand(&shop), b.get_on_demand(&shop));
    of_a.unwrap();
    of_b.unwrap();
    assert_eq!(seen.created("/order-plz"), 1);
    let period = |c: &Certificates| c.get(shop.as_str()).map(|c| c.period());
    assert!(period(&serves_a).is_some() && period(&serves_a) == period(&serves_b));

    // A restarted edge serves it without any request.
    asked.lock().clear();
    let (a, serves_a) = edge("e1", &keys[0]);
    a.clone().step().await;
    assert!(period(&serves_a).is_some() && asked.lock().is_empty());
    // The control: an edge without such a site does not.
    a.update_on_demand(Vec::new());
    a.publish().await.unwrap();
    assert!(period(&serves_a).is_none());
    a.update_on_demand(vec![on_demand.clone()]);

    // There is no request for a host that belongs to a configured site.
    a.update(vec![AcmeSite { names: vec![host("own.yes.test")], ask: None }], Vec::new());
    a.get_on_demand(&host("own.yes.test")).await.unwrap();
    assert!(asked.lock().is_empty() && !host_records(&rig).await.contains_key("own.yes.test"));
}

#[tokio::test]
async fn on_demand_hosts_are_limited_and_checked_before_renewals_and_forgotten() {
    let rig = Rig::offline();
    let (ask, asked) = asked();
    let seen = rig.seen(0, false);
    let key = SealKey::generate().unwrap().to_bytes();
    let (acme, serve) = rig.edge("e1", &key, &seen);
    // No CA: each order fails at once.
    acme.update(Vec::new(), Vec::new());
    acme.update_on_demand(vec![OnDemandSite { names: vec!["*.yes.test".parse().unwrap()], ask }]);
    let get = |name: String| {
        let acme = acme.clone();
        async move { acme.get_on_demand(&name.parse().unwrap()).await.unwrap() }
    };
    // A host that is not below the site's name.
    for other in ["a.no.test", "a.b.yes.test", "yes.test"] {
        get(other.into()).await;
    }
    assert!(asked.lock().is_empty());
    // Orders are limited per hour; one more host is refused, and not asked about again for some time.
    for n in 0..90 {
        get(format!("h{n}.yes.test")).await;
    }
    get("late.yes.test".into()).await;
    get("late.yes.test".into()).await;
    assert_eq!(host_records(&rig).await.len(), 90);
    assert_eq!(asked.lock().len(), 91);
    // A failed host is not asked about again too early.
    assert_eq!(host_records(&rig).await["h0.yes.test"].failures, 1);
    get("h0.yes.test".into()).await;
    assert_eq!(asked.lock().len(), 91);

    // An hour later failed hosts are forgotten, and there is room.
    let age = |record: &mut SiteRecord| {
        record.on_demand = record.on_demand.map(|t| t - 3601);
        record.retry_at = 0;
    };
    let change = async |host: &str, change: &dyn Fn(&mut SiteRecord)| {
        let at = Key::new(format!("edge/{}/site/{host}", rig.identity)).unwrap();
        let entry = rig.store.get(&at).await.unwrap().unwrap();
        let mut record = serde_json::from_slice(&entry.value).unwrap();
        change(&mut record);
        let value = serde_json::to_vec(&record).unwrap();
        rig.store.swap(&at, entry.revision, Some(value)).await.unwrap();
    };
    for n in 0..90 {
        change(&format!("h{n}.yes.test"), &age).await;
    }
    // One of them counts for the weekly limit and stays.
    let paid = |record: &mut SiteRecord| record.finalized = vec![RealClock.now() - 5000];
    change("h7.yes.test", &paid).await;
    acme.clone().step().await;
    assert_eq!(host_records(&rig).await.into_keys().collect::<Vec<_>>(), ["h7.yes.test"]);

    // Renewal: of two due hosts, the one that the program now refuses is dropped.
    let chain = |name: &str| {
        let key = SigningKey::generate().unwrap();
        let (now, public) = (RealClock.now(), key.public_key());
        let profile = Profile::Web(vec![name.into()]);
        let period = Period { not_before: now - 80 * 86_400, not_after: now + 86_400 };
        let tbs = Tbs::new(&profile, &public, period, [1; 16], None, key.algorithm()).unwrap();
        (x509::to_pem(&[tbs.sign(&key).unwrap()]), key)
    };
    acme.join().await.unwrap();
    for name in ["a.yes.test", "a.no.test"] {
        let (chain, key) = chain(name);
        let sealed = acme.seal(name, key.to_pem().as_bytes()).await.unwrap();
        let issued =
            Issued { chain, key: sealed, ca: "https://x/".into(), names: vec![name.into()] };
        let record =
            SiteRecord { certificate: Some(issued), on_demand: Some(1), ..SiteRecord::default() };
        let at = acme.site_key(name).unwrap();
        rig.store.create(&at, serde_json::to_vec(&record).unwrap()).await.unwrap();
    }
    let any =
        OnDemandSite { names: vec![SiteName::any()], ..acme.told.lock().on_demand[0].clone() };
    acme.update_on_demand(vec![any]);
    asked.lock().clear();
    acme.clone().step().await;
    let records = host_records(&rig).await;
    let error = |host: &str| records[host].error.clone().unwrap();
    assert_eq!(error("a.yes.test"), "no CA is configured");
    assert_eq!(error("a.no.test"), "the program in `ask` refused it");
    assert!(records["a.no.test"].retry_at > RealClock.now());
    assert_eq!(asked.lock().len(), 2);
    // It is served until it expires.
    assert!(serve.get("a.no.test").is_some() && serve.get("a.yes.test").is_some());
}

#[tokio::test]
async fn an_edge_without_the_key_waits_for_it_and_orders_only_after_that() {
    if !pebble::installed() {
        return;
    }
    let (port, stores) = port_80();
    let rig = Rig::new(port);
    *stores.lock() = vec![rig.store.clone()];
    let seen = rig.seen(0, false);
    let key = || SealKey::generate().unwrap().to_bytes();
    let (a, serves_a) = rig.edge("e1", &key(), &seen);
    until_served(a.clone(), &serves_a).await;
    // An edge that joins when there is a certificate already waits for its key, and reports it.
    let (b, serves_b) = rig.edge("e2", &key(), &seen);
    b.clone().step().await;
    assert!(serves_b.get(NAME).is_none());
    let error = b.errors().remove(NAME).unwrap();
    assert!(error.contains("e1 has the certificate's key"), "{error}");
    a.clone().step().await;
    b.clone().step().await;
    assert!(serves_b.get(NAME).is_some() && b.errors().is_empty());
    // Its machine was reinstalled, with another encryption key.
    let (b, serves_b) = rig.edge("e2", &key(), &seen);
    b.clone().step().await;
    assert!(!rig.record().await.certificate.unwrap().key.contains_key("e2"));
    a.clone().step().await;
    b.clone().step().await;
    assert!(serves_b.get(NAME).is_some());
    assert_eq!(seen.created("/order-plz"), 1);
    // Once more, while the other edge is permanently gone.
    let (b, serves_b) = rig.edge("e2", &key(), &seen);
    b.clone().step().await;
    assert_eq!((serves_b.get(NAME).is_some(), seen.created("/order-plz")), (false, 1));
    // The site's key and the account's key.
    assert_eq!(b.told.lock().keyless.len(), 2);
    b.told.lock().keyless.values_mut().for_each(|since| *since -= WAIT_FOR_KEY);
    until_served(b.clone(), &serves_b).await;
    assert_eq!(seen.created("/order-plz"), 2);
    assert_eq!(seen.created("/sign-me-up"), 2);
    assert!(rig.record().await.certificate.unwrap().key.contains_key("e1"));
}

#[tokio::test]
async fn keys_known_to_a_former_member_are_replaced() {
    if !pebble::installed() {
        return;
    }
    let (port, stores) = port_80();
    let rig = Rig::new(port);
    *stores.lock() = vec![rig.store.clone()];
    let seen = rig.seen(0, false);
    let key = || SealKey::generate().unwrap().to_bytes();
    let (a, serves_a) = rig.edge("e1", &key(), &seen);
    let (b, _) = rig.edge("e2", &key(), &seen);
    b.join().await.unwrap();
    until_served(a.clone(), &serves_a).await;
    // The control: while it is a member, nothing is replaced.
    a.clone().step().await;
    assert_eq!((seen.created("/sign-me-up"), seen.created("/order-plz")), (1, 1));
    let member = Key::new("edge/service/www/member/e2").unwrap();
    wiretight_store::update(&*rig.store, &member, |_| Ok::<_, StoreError>(None)).await.unwrap();
    let old = rig.record().await.certificate.unwrap();
    assert!(old.key.contains_key("e2"));
    for _ in 0..5 {
        a.clone().step().await;
        a.retry().await.unwrap();
    }
    let new = rig.record().await.certificate.unwrap();
    assert!(new.chain != old.chain && new.key.keys().eq(["e1"]));
    assert_eq!((seen.created("/sign-me-up"), seen.created("/order-plz")), (2, 2));
}

/// A store that is read from a copy, and whose authority may be unreachable.
#[derive(Default)]
struct Far {
    store: MemoryStore,
    away: AtomicBool,
}

impl Far {
    fn there(&self) -> Result<(), StoreError> {
        match self.away.load(Ordering::SeqCst) {
            true => Err(StoreError::Unavailable { why: "the authority is away".into() }),
            false => Ok(()),
        }
    }
}

#[async_trait]
impl Store for Far {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        self.store.get(key).await
    }
    async fn create(&self, key: &Key, value: Vec<u8>) -> Result<Revision, StoreError> {
        self.there()?;
        self.store.create(key, value).await
    }
    async fn swap(
        &self,
        key: &Key,
        at: Revision,
        value: Option<Vec<u8>>,
    ) -> Result<Revision, StoreError> {
        self.there()?;
        self.store.swap(key, at, value).await
    }
    async fn list(&self, prefix: &str) -> Result<(Vec<Entry>, Revision), StoreError> {
        self.store.list(prefix).await
    }
    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        self.store.watch(prefix, after).await
    }
}

#[tokio::test]
async fn without_the_authority_only_due_sites_report_an_error() {
    let far = Arc::new(Far::default());
    let serve = Arc::new(Certificates::default());
    let key = SealKey::generate().unwrap();
    let clock = Arc::new(Impatient);
    let acme = Acme::new(far.clone(), "service/www", "e1", key, clock, serve, None);
    acme.update(vec![AcmeSite { names: vec![NAME.parse().unwrap()], ask: None }], Vec::new());
    let away = |away| far.away.store(away, Ordering::SeqCst);
    let said = || acme.errors().remove(NAME);
    // First the member record, then the site's record: each is written or waited for.
    away(true);
    for _ in 0..2 {
        let again = acme.clone().step().await;
        assert!(again <= RealClock.now() + STORE_RETRY);
        assert_eq!(said().as_deref(), Some("the authority is away"));
        acme.join().await.unwrap_err();
    }
    away(false);
    acme.join().await.unwrap();
    away(true);
    acme.clone().step().await;
    assert_eq!(said().as_deref(), Some("the authority is away"));
    away(false);
    acme.clone().step().await;
    // It has tried and failed for another reason: nothing is due for some time.
    assert_ne!(said().as_deref(), Some("the authority is away"));
    away(true);
    acme.clone().step().await;
    assert_ne!(said().as_deref(), Some("the authority is away"));
}
