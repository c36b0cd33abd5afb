//! The traffic: an origin server, and the clients that measure a pair of relays.
//!
//! All data is checked. The whole stream of a bulk transfer is compared with the expected byte at each position, and so
//! is every request and response: a relay that loses, repeats, reorders or alters a byte shows up in the errors column.
//!
//! A client sends frames of [`FRAME`] bytes. A [`REQUEST`] frame carries a number and is answered by [`RESPONSE`] bytes
//! that depend on it. A [`BULK`] frame announces a length; that many bytes follow, and the response is how many of them
//! were right (eight bytes, little endian).

#![allow(dead_code, reason = "each benchmark of relays uses its part of it")]

use std::{convert::Infallible, io, net::SocketAddr, sync::LazyLock, thread, time::Duration};

use anyhow::ensure;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{
    RESPONSE,
    common::{loopback, procfs},
    systems::Pair,
};

const FRAME: usize = 128;
const REQUEST: u8 = b'R';
const BULK: u8 = b'B';

const KEPT_CONNECTIONS: usize = 32;
const CONNECTORS: usize = 16;
/// Concurrent bulk streams.
const STREAMS: u64 = 16;
/// The bytes sent over a connection before it is idle again.
const BURST: u64 = 8 << 20;
/// Connections that are replaced each second while many are held, and the interval between memory measurements.
const REPLACED: u32 = 100;
const LOOK: Duration = Duration::from_secs(10);
/// The time limit for one step of a client.
const PATIENCE: Duration = Duration::from_secs(10);
/// Gives relays time to finish the work after the last response, so that it is counted.
const SETTLE: Duration = Duration::from_millis(300);

/// The result of one workload in one round.
#[derive(Default)]
pub(crate) struct Outcome {
    /// In the order of the workload's metrics; empty if nothing could be measured.
    pub(crate) values: Vec<f64>,
    /// Requests of a timed workload.
    pub(crate) done: u64,
    pub(crate) errors: Errors,
}

impl Outcome {
    /// A result that is only an error.
    pub(crate) fn failed(error: &anyhow::Error) -> Self {
        let errors = Errors { count: 1, first: Some(format!("{error:#}")) };
        Self { errors, ..Self::default() }
    }
}

/// The number of failed connections, and the first error.
#[derive(Default)]
pub(crate) struct Errors {
    pub(crate) count: u64,
    pub(crate) first: Option<String>,
}

impl Errors {
    fn note(&mut self, error: io::Error) {
        self.count += 1;
        self.first.get_or_insert_with(|| error.to_string());
    }

    fn add(&mut self, more: Errors) {
        self.count += more.count;
        self.first = self.first.take().or(more.first);
    }
}

/// One stream of `bytes`: CPU seconds per GB (10^9 bytes), and GB/s.
pub(crate) async fn bulk(pair: &Pair, bytes: u64) -> anyhow::Result<Outcome> {
    bulk_in(1, pair, bytes).await
}

/// The same with [`STREAMS`] concurrent streams.
pub(crate) async fn streams(pair: &Pair, bytes: u64) -> anyhow::Result<Outcome> {
    bulk_in(STREAMS, pair, bytes).await
}

async fn bulk_in(streams: u64, pair: &Pair, bytes: u64) -> anyhow::Result<Outcome> {
    let (entry, each) = (pair.entry, bytes / streams);
    let cpu = pair.cpu()?;
    let start = Instant::now();
    let mut sending: JoinSet<_> = (0..streams)
        .map(|_| async move { send_bulk(&mut TcpStream::connect(entry).await?, each).await })
        .collect();
    let all_right = async {
        while let Some(right) = sending.join_next().await {
            let right = right??;
            ensure!(
                right == each,
                "bulk: only the first {right} of {each} bytes arrived unaltered"
            );
        }
        Ok(())
    };
    timeout(PATIENCE + Duration::from_secs(bytes >> 26), all_right).await??;
    let took = start.elapsed();
    sleep(SETTLE).await;
    let cpu = pair.cpu()? - cpu;
    let gb = (each * streams) as f64 / 1e9;
    Ok(Outcome {
        values: vec![cpu.as_secs_f64() / gb, gb / took.as_secs_f64()],
        ..Outcome::default()
    })
}

/// Requests for `time` on kept-alive connections: CPU microseconds per request, and requests per second.
pub(crate) async fn requests(pair: &Pair, time: Duration) -> anyhow::Result<Outcome> {
    let mut streams = Vec::new();
    for _ in 0..KEPT_CONNECTIONS {
        streams.push(connect_and_ask(pair.entry, 0).await?);
    }
    timed(pair, time, |end| streams.into_iter().map(move |stream| keep_asking(stream, end))).await
}

/// New connections for `time`: CPU microseconds per connection, and connections per second.
pub(crate) async fn connections(pair: &Pair, time: Duration) -> anyhow::Result<Outcome> {
    let entry = pair.entry;
    timed(pair, time, |end| (0..CONNECTORS).map(move |_| keep_connecting(entry, end))).await
}

/// `count` new connections that are kept, [`CONNECTORS`] at a time: CPU microseconds per connection, and connections
/// per second. None of them can reuse another one's connection.
pub(crate) async fn handshakes(fresh: &Pair, count: usize) -> anyhow::Result<Outcome> {
    let entry = fresh.entry;
    let each = count.div_ceil(CONNECTORS);
    let (cpu, start) = (fresh.cpu()?, Instant::now());
    let mut connectors: JoinSet<(Vec<TcpStream>, Errors)> = (0..CONNECTORS)
        .map(|_| async move {
            let (mut open, mut errors) = (Vec::new(), Errors::default());
            for number in 0..each {
                match connect_and_ask(entry, number as u64).await {
                    Ok(stream) => open.push(stream),
                    Err(error) => errors.note(error),
                }
            }
            (open, errors)
        })
        .collect();
    let (mut outcome, mut kept) = (Outcome::default(), Vec::new());
    while let Some(connector) = connectors.join_next().await {
        let (open, errors) = connector?;
        outcome.errors.add(errors);
        kept.extend(open);
    }
    let took = start.elapsed();
    sleep(SETTLE).await;
    let cpu = fresh.cpu()? - cpu;
    outcome.done = kept.len() as u64;
    if outcome.done > 0 {
        let done = outcome.done as f64;
        outcome.values = vec![cpu.as_secs_f64() * 1e6 / done, done / took.as_secs_f64()];
    }
    Ok(outcome)
}

/// KiB of memory (PSS of both relays) for each of `count` idle connections that made one request; and again a second
/// after [`BURST`] bytes went through each of [`STREAMS`] of them.
pub(crate) async fn idle(fresh: &Pair, count: usize) -> anyhow::Result<Outcome> {
    // The first connection makes a process load and initialize things; the 500th does not pay for that.
    drop(connect_and_ask(fresh.entry, 0).await?);
    sleep(SETTLE).await;
    let before = procfs::memory(&fresh.pids())?.pss_kib;
    let mut outcome = Outcome::default();
    let mut open = Vec::new();
    for number in 0..count {
        match connect_and_ask(fresh.entry, number as u64).await {
            Ok(stream) => open.push(stream),
            Err(error) => outcome.errors.note(error),
        }
    }
    sleep(Duration::from_secs(2)).await;
    let after = procfs::memory(&fresh.pids())?.pss_kib;
    // All at the same time, so that each of them had a buffer.
    let few = open.len().min(STREAMS as usize);
    let mut bursts: JoinSet<_> = open
        .drain(..few)
        .map(|mut stream| async move { send_bulk(&mut stream, BURST).await.map(|_| stream) })
        .collect();
    while let Some(burst) = bursts.join_next().await {
        match burst? {
            Ok(stream) => open.push(stream),
            Err(error) => outcome.errors.note(error),
        }
    }
    sleep(Duration::from_secs(1)).await;
    let after_bulk = procfs::memory(&fresh.pids())?.pss_kib;
    // The idle connections must still work.
    for stream in &mut open {
        if let Err(error) = ask(stream, 0).await {
            outcome.errors.note(error);
        }
    }
    if !open.is_empty() {
        let each = |after: u64| (after as f64 - before as f64) / open.len() as f64;
        outcome.values = vec![each(after), each(after_bulk)];
    }
    Ok(outcome)
}

/// `count` requests one after another: p50 and p99 of a request's time, in microseconds.
pub(crate) async fn latency(pair: &Pair, count: usize) -> anyhow::Result<Outcome> {
    let mut stream = connect_and_ask(pair.entry, 0).await?;
    let mut times = Vec::with_capacity(count);
    for number in 0..count {
        let start = Instant::now();
        ask(&mut stream, number as u64).await?;
        times.push(start.elapsed());
    }
    Ok(percentiles(times))
}

/// The same for connections with one request each.
pub(crate) async fn latency_of_connections(pair: &Pair, count: usize) -> anyhow::Result<Outcome> {
    let mut times = Vec::with_capacity(count);
    for number in 0..count {
        let start = Instant::now();
        connect_and_ask(pair.entry, number as u64).await?;
        times.push(start.elapsed());
    }
    Ok(percentiles(times))
}

/// Requests at a constant rate, `rate` per second in total, on kept-alive connections: p50 and p99 of a request's time.
pub(crate) async fn latency_at(pair: &Pair, rate: f64, time: Duration) -> anyhow::Result<Outcome> {
    let entry = pair.entry;
    let every = Duration::from_secs_f64(KEPT_CONNECTIONS as f64 / rate);
    let clients: Vec<_> = (0..KEPT_CONNECTIONS)
        .map(|n| {
            let after = every * n as u32 / KEPT_CONNECTIONS as u32;
            tokio::task::spawn_blocking(move || ask_on_time(entry, every, after, time))
        })
        .collect();
    let mut times = Vec::new();
    for client in clients {
        times.extend(client.await??);
    }
    Ok(percentiles(times))
}

/// One of these clients, on its own thread, because a thread sleeps more precisely than a runtime. The time of a
/// request starts when it is sent.
fn ask_on_time(
    entry: SocketAddr,
    every: Duration,
    after: Duration,
    time: Duration,
) -> io::Result<Vec<Duration>> {
    let mut stream = std::net::TcpStream::connect(entry)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let start = std::time::Instant::now() + after;
    let mut times = Vec::new();
    let mut response = [0; RESPONSE];
    for number in 0.. {
        let due = every * number;
        if due > time {
            break;
        }
        thread::sleep((start + due).saturating_duration_since(std::time::Instant::now()));
        let sent = std::time::Instant::now();
        io::Write::write_all(&mut stream, &frame(REQUEST, number.into()))?;
        io::Read::read_exact(&mut stream, &mut response)?;
        times.push(sent.elapsed());
        if response != pattern(number.into(), RESPONSE) {
            return Err(io::Error::other("the response was altered on its way"));
        }
    }
    Ok(times)
}

/// Holds `count` connections for `time`, while each second [`REPLACED`] of them make a request and are replaced. KiB of
/// memory (PSS of both relays) for each connection: at the start, minimum and maximum of every ten seconds, and at the
/// end. Each connection must respond when it is replaced, and at the end.
pub(crate) async fn hold(fresh: &Pair, count: usize, time: Duration) -> anyhow::Result<Outcome> {
    drop(connect_and_ask(fresh.entry, 0).await?);
    sleep(SETTLE).await;
    let before = procfs::memory(&fresh.pids())?.pss_kib;
    let look = || -> anyhow::Result<f64> {
        let now = procfs::memory(&fresh.pids())?.pss_kib;
        Ok((now as f64 - before as f64) / count as f64)
    };
    let mut open = Vec::new();
    for number in 0..count {
        open.push(connect_and_ask(fresh.entry, number as u64).await?);
    }
    sleep(Duration::from_secs(2)).await;
    let mut outcome = Outcome::default();
    let mut seen = vec![look()?];
    let (start, mut next_look) = (Instant::now(), LOOK);
    let mut turn = tokio::time::interval(Duration::from_secs(1) / REPLACED);
    while start.elapsed() < time {
        turn.tick().await;
        let old = &mut open[outcome.done as usize % count];
        if let Err(error) = ask(old, outcome.done).await {
            outcome.errors.note(error);
        }
        match connect_and_ask(fresh.entry, outcome.done).await {
            Ok(new) => *old = new,
            Err(error) => outcome.errors.note(error),
        }
        outcome.done += 1;
        if start.elapsed() > next_look {
            next_look += LOOK;
            seen.push(look()?);
        }
    }
    for stream in &mut open {
        if let Err(error) = ask(stream, 0).await {
            outcome.errors.note(error);
        }
    }
    sleep(Duration::from_secs(2)).await;
    let last = look()?;
    let least = seen.iter().copied().fold(last, f64::min);
    let most = seen.iter().copied().fold(last, f64::max);
    outcome.values = vec![seen[0], least, most, last];
    Ok(outcome)
}

fn percentiles(mut times: Vec<Duration>) -> Outcome {
    times.sort();
    let at = |percent: usize| times[times.len() * percent / 100].as_secs_f64() * 1e6;
    Outcome { values: vec![at(50), at(99)], ..Outcome::default() }
}

/// Repeats a request until a relay pair that was just started responds.
pub(crate) async fn wait_until_it_answers(
    entry: SocketAddr,
    patience: Duration,
) -> anyhow::Result<()> {
    let end = Instant::now() + patience;
    loop {
        match within(Duration::from_secs(2), connect_and_ask(entry, 0)).await {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > end => return Err(error.into()),
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
}

/// The work of one client until its time was over.
#[derive(Default)]
struct Tally {
    done: u64,
    errors: Errors,
}

/// Runs the clients that `clients` makes until their time is over. Returns CPU microseconds per operation, and
/// operations per second.
async fn timed<C>(
    pair: &Pair,
    time: Duration,
    clients: impl FnOnce(Instant) -> C,
) -> anyhow::Result<Outcome>
where
    C: Iterator<Item: Future<Output = Tally> + Send + 'static>,
{
    let cpu = pair.cpu()?;
    let start = Instant::now();
    let mut clients: JoinSet<Tally> = clients(start + time).collect();
    let mut outcome = Outcome::default();
    while let Some(tally) = clients.join_next().await {
        let tally = tally?;
        outcome.done += tally.done;
        outcome.errors.add(tally.errors);
    }
    let took = start.elapsed();
    sleep(SETTLE).await;
    let cpu = pair.cpu()? - cpu;
    if outcome.done > 0 {
        let done = outcome.done as f64;
        outcome.values = vec![cpu.as_secs_f64() * 1e6 / done, done / took.as_secs_f64()];
    }
    Ok(outcome)
}

async fn keep_asking(mut stream: TcpStream, end: Instant) -> Tally {
    let mut tally = Tally::default();
    while Instant::now() < end {
        if let Err(error) = ask(&mut stream, tally.done).await {
            tally.errors.note(error);
            break;
        }
        tally.done += 1;
    }
    tally
}

async fn keep_connecting(entry: SocketAddr, end: Instant) -> Tally {
    let mut tally = Tally::default();
    while Instant::now() < end {
        match connect_and_ask(entry, tally.done).await {
            Ok(_closed_here) => tally.done += 1,
            Err(error) => {
                tally.errors.note(error);
                // If a relay rejects everything, count that and do not retry in a tight loop.
                sleep(Duration::from_millis(10)).await;
            }
        }
    }
    tally
}

async fn connect_and_ask(entry: SocketAddr, number: u64) -> io::Result<TcpStream> {
    within(PATIENCE, async {
        let mut stream = TcpStream::connect(entry).await?;
        stream.set_nodelay(true)?;
        exchange(&mut stream, number).await?;
        Ok(stream)
    })
    .await
}

async fn ask(stream: &mut TcpStream, number: u64) -> io::Result<()> {
    within(PATIENCE, exchange(stream, number)).await
}

async fn exchange(stream: &mut TcpStream, number: u64) -> io::Result<()> {
    stream.write_all(&frame(REQUEST, number)).await?;
    let mut response = [0; RESPONSE];
    stream.read_exact(&mut response).await?;
    if response != pattern(number, RESPONSE) {
        return Err(io::Error::other("the response was altered on its way"));
    }
    Ok(())
}

/// Returns how many bytes arrived as they were sent, counted up to the first wrong one.
async fn send_bulk(stream: &mut TcpStream, bytes: u64) -> io::Result<u64> {
    stream.write_all(&frame(BULK, bytes)).await?;
    let mut sent = 0;
    while sent < bytes {
        let chunk = CHUNK.min((bytes - sent) as usize);
        sent += stream.write(pattern(sent, chunk)).await? as u64;
    }
    stream.read_u64_le().await
}

async fn within<T>(patience: Duration, what: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(patience, what).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Starts the origin on its own thread. It serves until this process ends.
pub(crate) fn start_origin() -> io::Result<SocketAddr> {
    let listener = std::net::TcpListener::bind(loopback(0))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new()
        .name("origin".to_owned())
        .spawn(move || runtime.block_on(accept(listener)))?;
    Ok(address)
}

async fn accept(listener: std::net::TcpListener) -> io::Result<Infallible> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        // Only a lack of descriptors can fail here, and clients then see it as an error.
        let Ok((stream, _)) = listener.accept().await else { continue };
        // The client reports how a connection ended.
        tokio::spawn(serve(stream));
    }
}

async fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut request = [0; FRAME];
    loop {
        stream.read_exact(&mut request).await?;
        let number = u64::from_le_bytes(*request[1..].first_chunk().expect("a frame is longer"));
        if request != frame(request[0], number) {
            return Err(io::Error::other("the request was altered on its way"));
        }
        match request[0] {
            BULK => {
                let right = receive_bulk(&mut stream, number).await?;
                stream.write_u64_le(right).await?;
            }
            _ => stream.write_all(pattern(number, RESPONSE)).await?,
        }
    }
}

/// Returns the number of correct bytes before the first wrong one. Reads all bytes in any case, because a client that
/// still sends could not read the response.
async fn receive_bulk(stream: &mut TcpStream, bytes: u64) -> io::Result<u64> {
    let mut buffer = vec![0; CHUNK];
    let mut received = 0;
    let mut right = 0;
    while received < bytes {
        let room = CHUNK.min((bytes - received) as usize);
        let read = stream.read(&mut buffer[..room]).await?;
        if read == 0 {
            break;
        }
        if right == received && buffer[..read] == *pattern(received, read) {
            right += read as u64;
        }
        received += read as u64;
    }
    Ok(right)
}

/// Kind, number, and padding that depends on the number.
fn frame(kind: u8, number: u64) -> [u8; FRAME] {
    let mut frame = [kind; FRAME];
    frame[1..9].copy_from_slice(&number.to_le_bytes());
    frame[9..].copy_from_slice(pattern(number, FRAME - 9));
    frame
}

/// The maximum size of a read or write.
const CHUNK: usize = 256 * 1024;
/// A prime, so that every displacement by a buffer, a record or a page is noticed.
const PERIOD: usize = 262_139;

/// The content of a stream from `position` on: pseudo-random bytes that repeat after [`PERIOD`].
fn pattern(position: u64, length: usize) -> &'static [u8] {
    static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut random = || {
            // xorshift64
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        let period: Vec<u8> = (0..PERIOD).map(|_| random()).collect();
        period.iter().copied().cycle().take(PERIOD + CHUNK).collect()
    });
    let start = (position % PERIOD as u64) as usize;
    &BYTES[start..start + length]
}
