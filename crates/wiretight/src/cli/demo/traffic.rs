//! The demo's programs: an HTTP service and its client. Neither knows about Wiretight.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

/// A text that must not be readable on the wire. It is in every request and every response.
pub(super) const CANARY: &str = "CANARY-4f1d-this-must-not-be-readable-on-the-wire";
/// Size of the large response.
const BULK: usize = 64 * 1024 * 1024;
/// Small requests on one connection.
const REQUESTS: usize = 500;
/// Connections with one request each.
const CONNECTIONS: usize = 100;

pub(super) struct Measured {
    /// A checksum of all responses, to check that both runs got the same.
    pub(super) answers: u64,
    bulk: Duration,
    requests: Vec<Duration>,
    connections: Vec<Duration>,
}

impl Measured {
    pub(super) fn megabytes_per_second(&self) -> f64 {
        (BULK as f64 / 1e6 / self.bulk.as_secs_f64() * 10.0).round() / 10.0
    }

    pub(super) fn p50(&self) -> Duration {
        median(&self.requests)
    }

    pub(super) fn connect_p50(&self) -> Duration {
        median(&self.connections)
    }
}

fn median(all: &[Duration]) -> Duration {
    let mut all = all.to_vec();
    all.sort_unstable();
    all.get(all.len() / 2).copied().unwrap_or_default()
}

/// Starts the service: `/bulk` has a large response, every other path a small one.
pub(super) async fn serve() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    let bulk: Bytes = CANARY.bytes().cycle().take(BULK).collect::<Vec<u8>>().into();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let _ = socket.set_nodelay(true);
            let bulk = bulk.clone();
            let answer = service_fn(move |request: Request<Incoming>| {
                let body = match request.uri().path() {
                    "/bulk" => bulk.clone(),
                    path => format!("hello from behind the relay: {path} {CANARY}\n").into(),
                };
                async move { Ok::<_, Infallible>(Response::new(Full::new(body))) }
            });
            let serving = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(socket), answer);
            tokio::spawn(serving);
        }
    });
    Ok(addr)
}

/// Sends the demo's traffic to `to`.
pub(super) async fn measure(to: SocketAddr) -> anyhow::Result<Measured> {
    let mut answers = 0;
    let mut sender = connect(to).await?;
    get(&mut sender, "/warm-up", &mut answers).await?;
    let mut requests = Vec::with_capacity(REQUESTS);
    for n in 0..REQUESTS {
        let begun = Instant::now();
        get(&mut sender, &format!("/request/{n}"), &mut answers).await?;
        requests.push(begun.elapsed());
    }
    let begun = Instant::now();
    let len = get(&mut sender, "/bulk", &mut answers).await?;
    let bulk = begun.elapsed();
    ensure!(len == BULK, "the large response had {len} bytes instead of {BULK}");
    let mut connections = Vec::with_capacity(CONNECTIONS);
    for n in 0..CONNECTIONS {
        let begun = Instant::now();
        let mut sender = connect(to).await?;
        get(&mut sender, &format!("/connection/{n}"), &mut answers).await?;
        connections.push(begun.elapsed());
    }
    Ok(Measured { answers, bulk, requests, connections })
}

/// How often the program that stays sends a request.
const PAUSE: Duration = Duration::from_secs(1);

/// A program that stays connected and sends a request now and then, so that there is traffic to look at.
pub(super) async fn stay(to: SocketAddr) {
    loop {
        // If it fails, for example because the operator removed a node, it tries again.
        let _ = keep_asking(to).await;
        tokio::time::sleep(PAUSE).await;
    }
}

async fn keep_asking(to: SocketAddr) -> anyhow::Result<()> {
    let mut sender = connect(to).await?;
    for n in 0u64.. {
        get(&mut sender, &format!("/now/{n}"), &mut 0).await?;
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

async fn connect(to: SocketAddr) -> anyhow::Result<SendRequest<Empty<Bytes>>> {
    let socket = TcpStream::connect(to).await.with_context(|| format!("connecting to {to}"))?;
    socket.set_nodelay(true)?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// Sends one GET with the canary in it; adds the response to the checksum `answers` and returns its length.
async fn get(
    sender: &mut SendRequest<Empty<Bytes>>,
    path: &str,
    answers: &mut u64,
) -> anyhow::Result<usize> {
    let request = Request::get(path).header("host", "demo").header("authorization", CANARY);
    sender.ready().await?;
    let mut body = sender.send_request(request.body(Empty::new())?).await?.into_body();
    let mut len = 0;
    while let Some(frame) = body.frame().await {
        if let Some(data) = frame?.data_ref() {
            len += data.len();
            for chunk in data.chunks(8) {
                let word = chunk.iter().fold(0u64, |w, b| w << 8 | u64::from(*b));
                // A sum of bits does not depend on how the bytes were split into frames.
                *answers = answers.wrapping_add(word.count_ones().into());
            }
        }
    }
    Ok(len)
}
