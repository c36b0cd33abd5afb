//! Reloads with live connections: no accepted connection is closed, and removed sites are rejected.

use super::rig;

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use rustls::{AlertDescription, ClientConfig};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use rig::edge::{EdgeRig, Raw, SITE, http_backend, site};

const OTHER: &str = "other.service.test.example";
const SOCKETS: usize = 1000;
const RELOADS: usize = 200;
/// Concurrent connection attempts, because the edge limits unfinished handshakes of an address.
const DIALING: usize = 50;

/// A program that accepts any upgrade and then echoes. One thread for all connections.
fn socket_backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                tokio::spawn(echo(socket));
            }
        });
    });
    addr
}

async fn echo(mut socket: TcpStream) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await?);
    }
    let answer =
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    socket.write_all(answer).await?;
    let (mut read, mut write) = socket.split();
    tokio::io::copy(&mut read, &mut write).await.map(drop)
}

async fn upgraded(
    to: SocketAddr,
    config: Arc<ClientConfig>,
    name: &'static str,
) -> TlsStream<TcpStream> {
    let socket = TcpStream::connect(to).await.unwrap();
    let connector = TlsConnector::from(config);
    let mut tls = connector.connect(ServerName::try_from(name).unwrap(), socket).await.unwrap();
    let request = format!(
        "GET /socket HTTP/1.1\r\nHost: {name}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: d2lyZXRpZ2h0LXdzLWg8Mg==\r\n\r\n"
    );
    tls.write_all(request.as_bytes()).await.unwrap();
    tls.flush().await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tls.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", head.escape_ascii());
    tls
}

/// Sends a masked text frame (RFC 6455, section 5.2), and checks that the echo is identical.
async fn exchange(tls: &mut TlsStream<TcpStream>, word: &str) -> std::io::Result<()> {
    let mask = [7, 11, 13, 17];
    let mut frame = vec![0x81, 0x80 | word.len() as u8];
    frame.extend(mask);
    frame.extend(word.bytes().enumerate().map(|(n, b)| b ^ mask[n % 4]));
    tls.write_all(&frame).await?;
    tls.flush().await?;
    let mut back = vec![0; frame.len()];
    tls.read_exact(&mut back).await?;
    assert_eq!(back, frame);
    Ok(())
}

#[test]
fn two_hundred_reloads_close_none_of_a_thousand_websockets() {
    let sockets_at = [socket_backend().to_string()];
    let plain = http_backend("one", false).to_string();
    let mut rig = EdgeRig::with(&[], |settings| {
        settings.sites = vec![site(SITE, &sockets_at), site(OTHER, &sockets_at)];
    });
    let config = Arc::new(rig.client(&["http/1.1"]));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let deadline = Duration::from_secs(240);
    let test = async {
        let mut all = Vec::new();
        while all.len() < SOCKETS {
            let name = if all.len() % 200 < 100 { SITE } else { OTHER };
            let dialing: Vec<_> = (0..DIALING)
                .map(|_| tokio::spawn(upgraded(rig.https(), config.clone(), name)))
                .collect();
            for one in dialing {
                all.push(one.await.unwrap());
            }
        }
        for (n, socket) in all.iter_mut().enumerate() {
            exchange(socket, &format!("before {n}")).await.unwrap();
        }
        // For the negative control: it did the handshake but has sent no request yet.
        let mut kept = Raw::over(rig::connect(rig.https()), (*config).clone(), OTHER);
        kept.0.conn.complete_io(&mut kept.0.sock).unwrap();

        let both = rig.settings.sites.clone();
        for n in 0..RELOADS {
            let settings = &mut rig.settings;
            settings.sites = both.clone();
            settings.limits.streams = 64 + n as u32;
            if n % 2 == 0 {
                // Half of the sockets belong to a site that is added and removed.
                settings.sites.truncate(1);
                settings.sites[0].to = vec![plain.parse().unwrap()];
                settings.sites[0].max_body = 1000;
            }
            rig.edge.apply(&rig.settings).unwrap();
            // Some send data meanwhile.
            let at = n * 5 % SOCKETS;
            exchange(&mut all[at], &format!("reload {n}")).await.unwrap();
        }
        let mut closed = 0;
        for (n, socket) in all.iter_mut().enumerate() {
            closed += usize::from(exchange(socket, &format!("after {n}")).await.is_err());
        }
        assert_eq!(closed, 0, "of {SOCKETS} were closed by {RELOADS} reloads");
        assert!(rig.edge.status().connections >= SOCKETS as u64);

        // The negative control: a removed site is not available for new requests.
        rig.settings.sites = both[..1].to_vec();
        rig.settings.sites[0].to = vec![plain.parse().unwrap()];
        rig.edge.apply(&rig.settings).unwrap();
        kept.send(&format!("GET /name HTTP/1.1\r\nHost: {OTHER}\r\nConnection: close\r\n\r\n"));
        let answer = kept.rest();
        assert!(answer.starts_with("HTTP/1.1 421 "), "{answer}");
        let mut anew = Raw::over(rig::connect(rig.https()), (*config).clone(), OTHER);
        let error = anew.0.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap_err();
        assert_eq!(rig::tls::alert(&error), Some(AlertDescription::UnrecognisedName), "{error}");
        assert!(rig.get("GET /name HTTP/1.1\r\n").ends_with("one"));
        // Its established connections continue.
        for (n, socket) in all.iter_mut().enumerate() {
            exchange(socket, &format!("last {n}")).await.unwrap();
        }
    };
    runtime.block_on(async { tokio::time::timeout(deadline, test).await.expect("in time") });
}
