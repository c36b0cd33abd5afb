//! Nodes with many services, and concurrent certificate requests.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use tokio::io::{ReadHalf, WriteHalf};
use tokio_rustls::client::TlsStream;
use wiretight::control::{Blob, Denial, FromAuthority, FromNode, MAX_SIGN, Reader, encode};

/// Counts the batches of the log: each writes a checkpoint into the store.
async fn count_batches(store: &Arc<dyn Store>) -> Arc<AtomicUsize> {
    let count = Arc::new(AtomicUsize::new(0));
    let (_, now) = store.list("log/").await.unwrap();
    let (mut watch, counter) = (store.watch("log/", now).await.unwrap(), count.clone());
    tokio::spawn(async move {
        while let Ok(changes) = watch.next().await {
            counter.fetch_add(changes.len(), Ordering::Relaxed);
        }
    });
    count
}

#[tokio::test]
async fn the_certificates_of_a_node_with_many_services_share_batches_of_the_log() {
    const SERVICES: usize = 200;
    let world = World::new();
    let authority = world.authority().await;
    let services: Vec<String> = (0..SERVICES).map(|n| format!("s{n}")).collect();
    let services: Vec<&str> = services.iter().map(String::as_str).collect();
    let batches = count_batches(&world.store).await;

    let node = world.joined(&authority, "a", &services).await;
    assert!(services.iter().all(|s| node.has(&format!("service/{s}"))));
    let first = batches.load(Ordering::Relaxed);
    assert!((2..SERVICES / 2).contains(&first), "{first} batches");
    until("all are announced", || node.mesh.registry().services.len() == SERVICES).await;

    // Renewals do as well; and when they return, the new certificates are in force.
    let before = node.mesh.identities();
    node.agent.renew_now().await.unwrap();
    let after = node.mesh.identities();
    assert_eq!(after.len(), SERVICES + 1);
    let same = |(id, new): (&Id, &Arc<Identity>)| before[id].leaf().serial == new.leaf().serial;
    assert!(!after.iter().any(same));
    let second = batches.load(Ordering::Relaxed) - first;
    assert!((2..SERVICES / 2).contains(&second), "{second} batches");

    // All identities requested together are on disk, each with its own key.
    node.agent.shutdown().await;
    let again = world.node("a", TokenSource::None, &services).await;
    assert!(after.iter().all(|(id, new)| {
        again.mesh.identity(id).is_some_and(|i| i.leaf().serial == new.leaf().serial)
    }));
}

struct Raw {
    reader: Reader<ReadHalf<TlsStream<TcpStream>>>,
    writer: WriteHalf<TlsStream<TcpStream>>,
}

impl Raw {
    async fn send(&mut self, messages: &[FromNode]) {
        let bytes: Vec<u8> = messages.iter().flat_map(|m| encode(m).unwrap().to_vec()).collect();
        self.writer.write_all(&bytes).await.unwrap();
        self.writer.flush().await.unwrap();
    }

    /// `None` if the authority has closed the stream.
    async fn next(&mut self) -> Option<FromAuthority> {
        timeout(Duration::from_secs(15), self.reader.next()).await.expect("an answer").ok()
    }
}

fn request(request: u64, of: &str) -> FromNode {
    let key = SigningKey::generate().unwrap();
    let csr = Csr::create(&SpiffeId::new(td(), id(of)), &key).unwrap();
    FromNode::Sign { request, csr: Blob(csr) }
}

#[tokio::test]
async fn concurrent_requests_get_their_own_answers_and_none_after_the_removal() {
    let world = World::new();
    let authority = world.authority().await;
    let node = world.joined(&authority, "a", &["db"]).await;
    node.agent.shutdown().await;
    let config = client_config(&node.mesh, id("node/a"), authority_id(), ALPN_CONTROL).unwrap();
    let (reader, writer) = tokio::io::split(tls(&authority, config).await);
    let mut raw = Raw { reader: Reader::new(reader), writer };
    let hello = FromNode::Hello { have: 0, digest: String::new(), instances: vec![].into() };
    raw.send(&[hello]).await;
    let limits = raw.next().await.unwrap();
    assert!(
        matches!(limits, FromAuthority::Limits { sign } if sign as usize == MAX_SIGN),
        "{limits:?}"
    );

    // More requests than may be open. The bad ones among them do not affect the others.
    let junk = |request, len| FromNode::Sign { request, csr: Blob(vec![0x30; len]) };
    let ask = |n: u64| match n % 8 {
        1 => junk(n, 40),
        2 => junk(n, 5000),
        3 => request(n, "service/web"),
        4 => request(n, "node/a"),
        _ => request(n, "service/db"),
    };
    let most = 3 * MAX_SIGN as u64;
    raw.send(&(1..=most).map(ask).collect::<Vec<_>>()).await;
    let mut answers = BTreeMap::new();
    while answers.len() < most as usize {
        let answer = match raw.next().await.unwrap() {
            FromAuthority::Signed { request, chain } => (request, chain.len().to_string()),
            FromAuthority::Refused { request, denial } => (request, denial.code.to_string()),
            FromAuthority::State(_) | FromAuthority::Ping => continue,
            other => panic!("{other:?}"),
        };
        assert!(answers.insert(answer.0, answer.1).is_none(), "one response each");
    }
    for (n, answer) in answers {
        let expected = match n % 8 {
            1 | 2 => "bad_request",
            3 => "not_allowed",
            _ => "2",
        };
        assert_eq!(answer, expected, "request {n}");
    }

    // A node that is removed while its requests are waiting gets no certificate after it has been told.
    raw.send(&(1..=most).map(|n| request(n, "service/db")).collect::<Vec<_>>()).await;
    authority.remove_node(name("a")).await.unwrap();
    let mut told = false;
    while let Some(message) = raw.next().await {
        assert!(!told, "{message:?}");
        told = matches!(&message, FromAuthority::Error(Denial { code: Code::Removed, .. }));
    }
    assert!(told);
}
