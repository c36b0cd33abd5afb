//! Peers that try to make a scan hang, crash, or use all memory; and two without TLS.
//!
//! They read only as much as necessary, and continue until the client leaves.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// The simulated behaviour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Play {
    /// Plaintext HTTP: answers a hello with 400.
    Http,
    Echo,
    /// Sends a banner, and then nothing.
    Banner,
    /// Accepts connections, and sends nothing.
    Silence,
    /// Accepts a connection, and closes it immediately.
    Closes,
    /// Accepts a connection, and resets it when data arrives.
    Resets,
    /// Endless handshake records full of zeros.
    EndlessRecords,
    /// A correct ServerHello, then endless Certificate messages of 2^24 - 1 bytes.
    EndlessCertificates,
    /// A handshake message with an announced length of 2^24 - 1 bytes, a few bytes of it, and then silence.
    HugeLength,
    /// A ServerHello in records of one byte, one per second.
    OneByteRecords,
    /// Endless handshake messages of unknown type in records of one byte.
    EndlessFragments,
    /// Endless empty records.
    EmptyRecords,
    EndlessWarnings,
    /// A record header that never completes, one byte every five seconds.
    Drip,
    /// Random bytes.
    Noise,
    /// A ServerHello with wrong inner lengths.
    LyingLengths,
    /// Endless HelloRetryRequests.
    EndlessRetries,
    /// An SSL 2.0 ServerHello that announces a certificate of 65,535 bytes.
    LyingSsl2,
    /// A ServerHello with a suite and a version that were not offered.
    Unoffered,
    /// Records that are too long.
    TooLongRecords,
}

impl Play {
    pub const HOSTILE: &[(&'static str, Self)] = &[
        ("hostile-endless-records", Self::EndlessRecords),
        ("hostile-endless-certificates", Self::EndlessCertificates),
        ("hostile-huge-length", Self::HugeLength),
        ("hostile-one-byte-records", Self::OneByteRecords),
        ("hostile-endless-fragments", Self::EndlessFragments),
        ("hostile-empty-records", Self::EmptyRecords),
        ("hostile-endless-warnings", Self::EndlessWarnings),
        ("hostile-drip", Self::Drip),
        ("hostile-noise", Self::Noise),
        ("hostile-lying-lengths", Self::LyingLengths),
        ("hostile-endless-retries", Self::EndlessRetries),
        ("hostile-lying-ssl2", Self::LyingSsl2),
        ("hostile-unoffered", Self::Unoffered),
        ("hostile-too-long-records", Self::TooLongRecords),
        ("hostile-silence", Self::Silence),
        ("hostile-resets", Self::Resets),
        ("hostile-closes", Self::Closes),
    ];
}

/// Stops the server on drop.
pub struct Stop {
    at: SocketAddr,
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Stop {
    /// Accepted connections.
    pub fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }
}

impl Drop for Stop {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect_timeout(&self.at, Duration::from_secs(1));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Runs a thread for each connection until it is stopped.
pub(super) fn accept_each(
    listener: TcpListener,
    serve: impl Fn(TcpStream) + Send + Sync + 'static,
) -> Stop {
    let at = listener.local_addr().unwrap();
    let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let serve = Arc::new(serve);
    let thread = thread::spawn({
        let (stop, served) = (stop.clone(), served.clone());
        move || {
            for client in listener.incoming() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(client) = client else { continue };
                served.fetch_add(1, Ordering::Relaxed);
                let serve = serve.clone();
                thread::spawn(move || serve(client));
            }
        }
    });
    Stop { at, stop, served, thread: Some(thread) }
}

pub(super) fn reset(client: TcpStream) {
    let _ = rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO));
}

/// Starts a server with this behaviour.
pub fn start(at: SocketAddr, play: Play) -> Stop {
    let listener = TcpListener::bind(at).unwrap();
    accept_each(listener, move |client| {
        // Writing fails when the client leaves, which ends the loop.
        let _ = perform(client, play);
    })
}

fn perform(mut client: TcpStream, play: Play) -> io::Result<()> {
    client.set_nodelay(true)?;
    client.set_write_timeout(Some(Duration::from_secs(60)))?;
    let mut hello = [0; 16 << 10];
    match play {
        Play::Closes => return Ok(()),
        Play::Banner => client.write_all(b"* OK ready\r\n")?,
        // Hostile data before the client sends anything.
        Play::Drip => {}
        _ => {
            let n = client.read(&mut hello)?;
            if n == 0 {
                return Ok(());
            }
            if play == Play::Echo {
                client.write_all(&hello[..n])?;
                return io::copy(&mut client.try_clone()?, &mut client).map(drop);
            }
        }
    }
    let forever = |client: &mut TcpStream, what: &[u8]| -> io::Result<()> {
        loop {
            client.write_all(what)?;
        }
    };
    match play {
        Play::Closes | Play::Echo => Ok(()),
        Play::Resets => {
            reset(client);
            Ok(())
        }
        Play::Http => client.write_all(
            b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 12\r\nConnection: close\r\n\r\n\
              Bad Request\n",
        ),
        Play::Banner | Play::Silence => silence(client),
        Play::EndlessRecords => forever(&mut client, &record(22, &[0; 16_384])),
        Play::EndlessCertificates => {
            client.write_all(&record(22, &server_hello(0x0303, 0xc02f)))?;
            loop {
                // One Certificate message of maximum length, with invalid certificates of 1 MB.
                let mut body = vec![11, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfc];
                while body.len() < (1 << 24) + 3 {
                    let part = ((1 << 24) + 3 - body.len() - 3).min(1 << 20);
                    body.extend(&(part as u32).to_be_bytes()[1..]);
                    body.resize(body.len() + part, 0x30);
                    if (1 << 24) + 3 - body.len() < 4 {
                        body.resize((1 << 24) + 3, 0);
                    }
                }
                for part in body.chunks(16_384) {
                    client.write_all(&record(22, part))?;
                }
            }
        }
        Play::HugeLength => {
            client.write_all(&record(22, &[2, 0xff, 0xff, 0xff, 3, 3, 1, 2, 3]))?;
            silence(client)
        }
        Play::OneByteRecords => {
            for byte in server_hello(0x0303, 0xc02f) {
                client.write_all(&record(22, &[byte]))?;
                thread::sleep(Duration::from_secs(1));
            }
            silence(client)
        }
        Play::EndlessFragments => {
            let piece: Vec<u8> = [99, 0, 0, 4, 1, 2, 3, 4].iter().flat_map(|b| record(22, &[*b])).collect();
            forever(&mut client, &piece.repeat(100))
        }
        Play::EmptyRecords => forever(&mut client, &record(22, &[]).repeat(1000)),
        Play::EndlessWarnings => forever(&mut client, &record(21, &[1, 112]).repeat(1000)),
        Play::Drip => loop {
            for byte in record(22, &server_hello(0x0303, 0xc02f)) {
                client.write_all(&[byte])?;
                thread::sleep(Duration::from_secs(5));
            }
        },
        Play::Noise => {
            // Any sequence without short cycles works.
            let mut state = 0x9e37_79b9_7f4a_7c15_u64;
            let noise: Vec<u8> = std::iter::repeat_with(|| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state as u8
            })
            .take(1 << 20)
            .collect();
            forever(&mut client, &noise)
        }
        Play::LyingLengths => {
            let mut hello = server_hello(0x0303, 0xc02f);
            hello[38] = 255;
            client.write_all(&record(22, &hello))?;
            silence(client)
        }
        Play::EndlessRetries => {
            let retry = record(22, &retry_request());
            loop {
                client.write_all(&retry)?;
                thread::sleep(Duration::from_millis(1));
            }
        }
        Play::LyingSsl2 => {
            // SERVER-HELLO: no hit, X.509, 2.0, lengths of certificate, cipher specs and connection id.
            let body = [4, 0, 1, 0, 2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0, 0x80];
            client.write_all(&[0x80, body.len() as u8])?;
            client.write_all(&body)?;
            silence(client)
        }
        Play::Unoffered => {
            client.write_all(&record(22, &server_hello(0x7f7f, 0x0a0a)))?;
            silence(client)
        }
        Play::TooLongRecords => {
            let mut long = vec![22, 3, 3, 0xff, 0xff];
            long.resize(5 + 0xffff, 2);
            forever(&mut client, &long)
        }
    }
}

/// Reads without answering until the client leaves.
fn silence(mut client: TcpStream) -> io::Result<()> {
    client.set_read_timeout(Some(Duration::from_secs(120)))?;
    io::copy(&mut client, &mut io::sink()).map(drop)
}

fn record(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut record = vec![kind, 3, 3];
    record.extend((body.len() as u16).to_be_bytes());
    record.extend(body);
    record
}

fn server_hello(version: u16, suite: u16) -> Vec<u8> {
    let mut body = version.to_be_bytes().to_vec();
    body.extend([7; 32]);
    body.push(0);
    body.extend(suite.to_be_bytes());
    body.push(0);
    handshake(2, &body)
}

/// RFC 8446 section 4.1.3: a ServerHello with this random, which requests secp521r1.
fn retry_request() -> Vec<u8> {
    const RETRY: [u8; 32] = [
        0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8,
        0x91, 0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8,
        0x33, 0x9c,
    ];
    let mut body = vec![3, 3];
    body.extend(RETRY);
    body.push(0);
    body.extend([0x13, 0x01, 0]);
    let extensions = [0, 43, 0, 2, 3, 4, 0, 51, 0, 2, 0, 0x19];
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(extensions);
    handshake(2, &body)
}

fn handshake(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut message = (body.len() as u32).to_be_bytes().to_vec();
    message[0] = kind;
    message.extend(body);
    message
}
