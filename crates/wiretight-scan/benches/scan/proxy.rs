//! A TCP proxy that counts connections, and adds a delay: one round trip to open a connection, and half of
//! one to each direction.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

/// Listens on its own port until the program ends.
pub struct Proxy {
    pub address: SocketAddr,
    pub connections: Arc<AtomicU64>,
}

impl Proxy {
    pub fn start(to: SocketAddr, round_trip: Duration) -> Self {
        let connections = Arc::new(AtomicU64::new(0));
        let count = connections.clone();
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                sender.send(listener.local_addr().unwrap()).unwrap();
                loop {
                    let (client, _) = listener.accept().await.unwrap();
                    count.fetch_add(1, Relaxed);
                    tokio::spawn(relay(client, to, round_trip));
                }
            });
        });
        Self { address: receiver.recv().unwrap(), connections }
    }
}

async fn relay(client: TcpStream, to: SocketAddr, round_trip: Duration) {
    sleep(round_trip).await;
    let Ok(server) = TcpStream::connect(to).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::join!(
        one_way(from_client, to_server, round_trip / 2),
        one_way(from_server, to_client, round_trip / 2)
    );
}

async fn one_way(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    delay: Duration,
) {
    let (sender, mut receiver) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let reading = async move {
        let mut buffer = vec![0; 16 << 10];
        loop {
            let n = from.read(&mut buffer).await.unwrap_or(0);
            // An empty read is the end.
            let _ = sender.send((Instant::now() + delay, buffer[..n].to_vec()));
            if n == 0 {
                return;
            }
        }
    };
    let writing = async move {
        while let Some((at, bytes)) = receiver.recv().await {
            sleep_until(at).await;
            if bytes.is_empty() || to.write_all(&bytes).await.is_err() {
                break;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(reading, writing);
}
