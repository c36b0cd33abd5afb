//! What stands between a scan and a real server, and is in the way: each passes bytes on, less what it does not
//! like.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::hostile::{Stop, accept_each, reset};

/// What is in the way.
#[derive(Debug, Clone, Copy)]
pub enum Trouble {
    /// More connections than this within a second are reset.
    Throttles(usize),
    /// More connections than this within ten seconds are taken, and then there is silence.
    Ignores(usize),
    /// A first record longer than this is swallowed, with all that follows.
    SwallowsHellosOver(usize),
    /// A first record longer than this is answered with a reset.
    ResetsHellosOver(usize),
    /// Each answer takes this long.
    Slow(Duration),
    /// What the server sends comes in pieces of this many bytes, with a pause between.
    Drips(usize),
    /// An alert of the server never arrives; then the connection hangs.
    EatsAlertsAndHangs,
    /// An alert of the server never arrives; then the connection is closed.
    EatsAlertsAndCloses,
    /// Each third connection is reset.
    ResetsEachThird,
}

/// Starts it here, in front of what is there.
pub fn start(at: SocketAddr, behind: SocketAddr, trouble: Trouble) -> Stop {
    let listener = TcpListener::bind(at).unwrap();
    let seen = Arc::new(Mutex::new((0_usize, VecDeque::<Instant>::new())));
    accept_each(listener, move |client| {
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
            _ => {}
        }
        let _ = relay(client, behind, trouble);
    })
}

/// Reads until the other side goes, and says nothing.
fn hang(mut client: TcpStream) {
    let _ = client.set_read_timeout(Some(Duration::from_secs(60)));
    let _ = io::copy(&mut client, &mut io::sink());
}

fn relay(mut client: TcpStream, behind: SocketAddr, trouble: Trouble) -> io::Result<()> {
    let mut first = Vec::new();
    if let Trouble::SwallowsHellosOver(limit) | Trouble::ResetsHellosOver(limit) = trouble {
        let mut header = [0; 5];
        client.read_exact(&mut header)?;
        let length = match header[0] {
            22 => usize::from(u16::from_be_bytes([header[3], header[4]])),
            // SSL 2.0 has other headers, and no long hellos.
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

/// Record by record. Alerts of TLS 1.3 that are encrypted look like data, and pass.
fn without_alerts(
    server: &mut TcpStream,
    client: &mut TcpStream,
    trouble: Trouble,
) -> io::Result<()> {
    loop {
        let mut header = [0; 5];
        server.read_exact(&mut header)?;
        // What is no TLS is passed as it is.
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
