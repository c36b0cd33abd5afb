//! Against Pebble, with edges that die between any two requests to it.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyper::body::Bytes;
use hyper::{Method, Request};
use instant_acme::{BodyWrapper, BytesResponse, Error};
use wiretight_store::MemoryStore;

use super::*;

#[path = "../../tests/pebble/mod.rs"]
mod pebble;

use pebble::Pebble;

const NAME: &str = "www.example.test";

/// Counts what was asked, and dies at one request: it, or its answer, never arrives.
#[derive(Clone)]
struct Mortal {
    https: http::Https,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    requests: AtomicUsize,
    dies_at: AtomicUsize,
    /// Whether the CA has seen the request at which it dies.
    after: bool,
    dead: Notify,
    /// Answers with 201 (Created), by path.
    created: Mutex<BTreeMap<String, usize>>,
}

impl Seen {
    fn created(&self, what: &str) -> usize {
        let created = self.created.lock().unwrap();
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
            let answer = match dies && !seen.after {
                true => None,
                false => Some(https.request(request).await),
            };
            if let Some(Ok(answer)) = &answer
                && post
                && answer.parts.status == 201
            {
                *seen.created.lock().unwrap().entry(path).or_default() += 1;
            }
            if dies {
                seen.dead.notify_one();
                std::future::pending::<()>().await;
            }
            answer.expect("whoever is alive has an answer")
        })
    }
}

/// The machine's clock, and less patience.
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
    pebble: Pebble,
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
            pebble,
            store: Arc::new(MemoryStore::new()),
            site: AcmeSite { names: vec![NAME.parse().unwrap()] },
            identity: "service/www",
        }
    }

    fn seen(&self, dies_at: usize, after: bool) -> Arc<Seen> {
        Arc::new(Seen { dies_at: dies_at.into(), after, ..Seen::default() })
    }

    /// An edge by this name; the same name and key are the same edge, started again.
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

/// What port 80 of any of the edges answers: what the store says.
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
            let stores = of.lock().unwrap().clone();
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
    let name = NAME.parse().unwrap();
    for _ in 0..200 {
        acme.clone().step().await;
        if serve.get(&name).is_some() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        acme.retry().await.unwrap();
    }
    panic!("no certificate: {:?}", acme.errors());
}

#[tokio::test]
async fn an_edge_that_dies_between_any_two_steps_loses_no_account_and_orders_once_more_at_most() {
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
            *stores.lock().unwrap() = vec![rig.store.clone()];
            let key = SealKey::generate().unwrap().to_bytes();
            let seen = rig.seen(step, after);
            let (acme, serve) = rig.edge("e1", &key, &seen);
            tokio::select! {
                () = until_served(acme, &serve) => lived = true,
                () = seen.dead.notified() => deaths += 1,
            }
            // Started again: the same store and key, nothing else.
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
async fn of_two_edges_with_one_store_one_orders_and_both_serve() {
    if !pebble::installed() {
        return;
    }
    let (port, stores) = port_80();
    let rig = Rig::new(port);
    *stores.lock().unwrap() = vec![rig.store.clone()];
    let seen = rig.seen(0, false);
    let keys = [SealKey::generate().unwrap().to_bytes(), SealKey::generate().unwrap().to_bytes()];
    let (a, serves_a) = rig.edge("e1", &keys[0], &seen);
    let (b, serves_b) = rig.edge("e2", &keys[1], &seen);
    // Both are members before either orders.
    a.join().await.unwrap();
    b.join().await.unwrap();
    tokio::join!(until_served(a.clone(), &serves_a), until_served(b.clone(), &serves_b));
    assert_eq!((seen.created("/sign-me-up"), seen.created("/order-plz")), (1, 1));
    let name = NAME.parse().unwrap();
    let period = |c: &Certificates| c.get(&name).unwrap().period();
    assert_eq!(period(&serves_a), period(&serves_b));
    // One that comes later gets the key from those that have it, and orders nothing.
    let late = SealKey::generate().unwrap().to_bytes();
    let (c, serves_c) = rig.edge("e3", &late, &seen);
    c.join().await.unwrap();
    a.clone().step().await;
    until_served(c, &serves_c).await;
    assert_eq!(seen.created("/order-plz"), 1);
    // The control: one that shares no store orders for itself.
    let alone = Rig { store: Arc::new(MemoryStore::new()), ..rig };
    stores.lock().unwrap().push(alone.store.clone());
    let (d, serves_d) = alone.edge("e1", &keys[0], &seen);
    until_served(d, &serves_d).await;
    assert_eq!(seen.created("/order-plz"), 2);
}

#[tokio::test]
async fn when_one_ca_fails_the_next_is_asked() {
    if !pebble::installed() {
        return;
    }
    let (port, stores) = port_80();
    let mut rig = Rig::new(port);
    *stores.lock().unwrap() = vec![rig.store.clone()];
    // Nobody listens there.
    rig.directories.insert(0, "https://127.0.0.1:1/directory".into());
    let seen = rig.seen(0, false);
    let key = SealKey::generate().unwrap().to_bytes();
    let (acme, serve) = rig.edge("e1", &key, &seen);
    acme.clone().step().await;
    let error = acme.errors().remove(NAME).unwrap();
    assert!(error.contains("127.0.0.1:1 cannot be reached"), "{error}");
    assert!(rig.record().await.orders.is_empty(), "a CA that never heard of it was charged");
    acme.retry().await.unwrap();
    until_served(acme.clone(), &serve).await;
    assert_eq!(rig.record().await.certificate.unwrap().ca, rig.pebble.directory);
    assert_eq!(acme.errors().len(), 0);
}
