//! Obstacles between a scan and a real server. Each forwards bytes, except those that it blocks or
//! changes.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use wiretight_scan::parse::{ClientHello, extension};

use super::hostile::{Stop, accept_each, reset};

/// The kind of obstacle.
#[derive(Debug, Clone, Copy)]
pub enum Trouble {
    /// More connections than this within a second are reset.
    Throttles(usize),
    /// More connections than this within ten seconds are accepted, but not answered.
    Ignores(usize),
    /// A first record longer than this is dropped, with all further data.
    SwallowsHellosOver(usize),
    /// A first record longer than this is answered with a reset.
    ResetsHellosOver(usize),
    /// Each answer is delayed by this time.
    Slow(Duration),
    /// Data from the server arrives in pieces of this size, with pauses.
    Drips(usize),
    /// Alerts of the server are dropped; then the connection hangs.
    EatsAlertsAndHangs,
    /// Alerts of the server are dropped; then the connection is closed.
    EatsAlertsAndCloses,
    /// Every third connection is reset.
    ResetsEachThird,
    /// A hello with more than 128 suites is answered with this alert.
    RefusesLongLists(u8),
    /// The first connection is answered with a plaintext HTTP status.
    ClearAtFirst,
    /// Hellos that offer TLS 1.3 are answered with this.
    ClearToTls13,
    /// The first alert is replaced by the second.
    OtherAlert(u8, u8),
}

/// Starts it in front of a server.
pub fn start(at: SocketAddr, behind: SocketAddr, trouble: Trouble) -> Stop {
    let listener = TcpListener::bind(at).unwrap();
    let seen = Arc::new(Mutex::new((0_usize, VecDeque::<Instant>::new())));
    accept_each(listener, move |mut client| {
        let (count, recent) = {
            let mut seen = seen.lock().unwrap();
            let window = match trouble {
                Trouble::Ignores(_) => Duration::from_secs(10),
                _ => Duration::from_secs(1),
            };
            let now = Instant::now();
            seen.0 += 1;
            while seen.1.front().is_some_and(|at| now - *at > window) {
                seen.1.pop_front();
            }
            seen.1.push_back(now);
            (seen.0, seen.1.len())
        };
        match trouble {
            Trouble::Throttles(limit) if recent > limit => return reset(client),
            Trouble::Ignores(limit) if recent > limit => return hang(client),
            Trouble::ResetsEachThird if count.is_multiple_of(3) => return reset(client),
            Trouble::ClearAtFirst if count == 1 => {
                let _ = read_hello(&mut client).and_then(|_| client.write_all(BUSY));
                return;
            }
            _ => {}
        }
        let _ = relay(client, behind, trouble);
    })
}

/// Reads without answering until the other side leaves.
fn hang(mut client: TcpStream) {
    let _ = client.set_read_timeout(Some(Duration::from_secs(60)));
    let _ = io::copy(&mut client, &mut io::sink());
}

/// Forwards all bytes.
pub fn pass(client: TcpStream, behind: SocketAddr) -> io::Result<()> {
    relay(client, behind, Trouble::Slow(Duration::ZERO))
}

fn relay(mut client: TcpStream, behind: SocketAddr, trouble: Trouble) -> io::Result<()> {
    let mut first = Vec::new();
    if let Trouble::SwallowsHellosOver(limit) | Trouble::ResetsHellosOver(limit) = trouble {
        let mut header = [0; 5];
        client.read_exact(&mut header)?;
        let length = match header[0] {
            22 => usize::from(u16::from_be_bytes([header[3], header[4]])),
            // SSL 2.0 has other headers, but no long hellos.
            _ => 0,
        };
        if length > limit {
            match trouble {
                Trouble::ResetsHellosOver(_) => reset(client),
                _ => hang(client),
            }
            return Ok(());
        }
        first.extend(header);
    }
    if let Trouble::RefusesLongLists(_) | Trouble::ClearToTls13 = trouble {
        first = read_hello(&mut client)?;
        let hello = ClientHello::parse(first.get(5..).unwrap_or_default()).ok();
        let odd = |hello: &ClientHello| match trouble {
            Trouble::RefusesLongLists(_) => hello.suites.len() > 128,
            _ => hello.extensions.iter().any(|(kind, body)| {
                *kind == extension::SUPPORTED_VERSIONS && body[1..].chunks(2).any(|v| v == [3, 4])
            }),
        };
        match trouble {
            Trouble::RefusesLongLists(alert) if hello.as_ref().is_some_and(odd) => {
                return client.write_all(&[21, 3, 3, 0, 2, 2, alert]);
            }
            Trouble::ClearToTls13 if hello.as_ref().is_none_or(odd) => {
                return client.write_all(BUSY);
            }
            _ => {}
        }
    }
    let mut server = TcpStream::connect(behind)?;
    server.write_all(&first)?;
    let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
    let up = thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    let passed = match trouble {
        Trouble::EatsAlertsAndHangs | Trouble::EatsAlertsAndCloses => {
            without_alerts(&mut server, &mut client, trouble)
        }
        _ => down(&mut server, &mut client, trouble),
    };
    let _ = server.shutdown(Shutdown::Both);
    let _ = client.shutdown(Shutdown::Both);
    let _ = up.join();
    passed
}

const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\r\n";

/// The first record, or the data so far if it is not a record.
fn read_hello(client: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut first = vec![0; 5];
    client.read_exact(&mut first)?;
    if first[0] == 22 {
        let length = usize::from(u16::from_be_bytes([first[3], first[4]]));
        first.resize(5 + length, 0);
        client.read_exact(&mut first[5..])?;
    }
    Ok(first)
}

fn down(server: &mut TcpStream, client: &mut TcpStream, trouble: Trouble) -> io::Result<()> {
    let mut buffer = [0; 16 << 10];
    loop {
        let n = server.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        match trouble {
            Trouble::Slow(delay) => {
                thread::sleep(delay);
                client.write_all(&buffer[..n])?;
            }
            Trouble::OtherAlert(from, to) => {
                if let [21, 3, _, 0, 2, 2, alert, ..] = &mut buffer[..n]
                    && *alert == from
                {
                    *alert = to;
                }
                client.write_all(&buffer[..n])?;
            }
            Trouble::Drips(size) => {
                client.set_nodelay(true)?;
                for piece in buffer[..n].chunks(size) {
                    client.write_all(piece)?;
                    thread::sleep(Duration::from_millis(2));
                }
            }
            _ => client.write_all(&buffer[..n])?,
        }
    }
}

/// Forwards record by record. Encrypted alerts of TLS 1.3 look like data, and are forwarded.
fn without_alerts(
    server: &mut TcpStream,
    client: &mut TcpStream,
    trouble: Trouble,
) -> io::Result<()> {
    loop {
        let mut header = [0; 5];
        server.read_exact(&mut header)?;
        // Other protocols are forwarded unchanged.
        if header[0] & 0x80 != 0 {
            client.write_all(&header)?;
            return down(server, client, trouble);
        }
        let mut body = vec![0; usize::from(u16::from_be_bytes([header[3], header[4]]))];
        server.read_exact(&mut body)?;
        if header[0] == 21 {
            if let Trouble::EatsAlertsAndHangs = trouble {
                hang(client.try_clone()?);
            }
            return Ok(());
        }
        client.write_all(&header)?;
        client.write_all(&body)?;
    }
}

/// How a host bans a scanner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ban {
    /// New connections are refused.
    Refuses,
    /// SYNs are dropped.
    Drops,
    /// Connections are accepted, but not answered.
    IsSilent,
}

/// Stops a [`banning`] host on drop.
pub struct Banning(mpsc::Sender<()>);

/// Forwards this number of connections, and then bans.
pub fn banning(behind: SocketAddr, after: usize, ban: Ban) -> (SocketAddr, Banning) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let (stop, stopped) = mpsc::channel();
    thread::spawn(move || {
        for _ in 0..after {
            let Ok((client, _)) = listener.accept() else { return };
            thread::spawn(move || pass(client, behind));
        }
        let mut held = Vec::new();
        match ban {
            Ban::Refuses => return,
            Ban::Drops => {
                // The kernel drops SYNs if the queue of the listener is full.
                rustix::net::listen(&listener, 0).unwrap();
                let wait = Duration::from_millis(100);
                while let Ok(own) = TcpStream::connect_timeout(&at, wait) {
                    held.push(own);
                }
            }
            Ban::IsSilent => listener.set_nonblocking(true).unwrap(),
        }
        while let Err(mpsc::RecvTimeoutError::Timeout) =
            stopped.recv_timeout(Duration::from_millis(5))
        {
            if ban == Ban::IsSilent
                && let Ok((client, _)) = listener.accept()
            {
                held.push(client);
            }
        }
    });
    (at, Banning(stop))
}
