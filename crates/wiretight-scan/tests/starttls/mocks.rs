//! Simulated servers, where no real one is available: NNTP, Telnet and SQL Server, servers with
//! flaws that no current server has, and hostile ones.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::aws_lc_rs;
use rustls::{ServerConfig, ServerConnection};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use wiretight_scan::Start;

use crate::rig::{Pair, serve};

/// What a line-based server does with data after the STARTTLS command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// Answers it inside TLS: the vulnerability.
    Kept,
    /// Discards it.
    Dropped,
}

/// A server of a line-based protocol, or of XMPP, that offers TLS.
pub async fn lines(start: Start, rest: Rest) -> u16 {
    serve(move |mut stream| async move {
        let mut buffer = Vec::new();
        let _ = stream.write_all(greeting(start).as_bytes()).await;
        if !talk(&mut stream, &mut buffer, start).await {
            return;
        }
        if rest == Rest::Dropped {
            buffer.clear();
        }
        let Ok(mut tls) = Pair::get().acceptor().accept(stream).await else { return };
        if start == Start::Sieve {
            let _ = tls.write_all(greeting(start).as_bytes()).await;
        }
        talk(&mut tls, &mut buffer, start).await;
    })
    .await
}

fn greeting(start: Start) -> &'static str {
    match start {
        Start::Smtp | Start::Lmtp | Start::Ftp => "220 mock\r\n",
        Start::Imap => "* OK mock\r\n",
        Start::Pop3 => "+OK mock\r\n",
        Start::Sieve => "\"IMPLEMENTATION\" \"mock\"\r\n\"STARTTLS\"\r\nOK \"mock\"\r\n",
        Start::Nntp => "200 mock\r\n",
        _ => "",
    }
}

/// Answers until the STARTTLS command, or the end: then it returns `false`.
async fn talk(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    buffer: &mut Vec<u8>,
    start: Start,
) -> bool {
    let end = match start {
        Start::XmppClient | Start::XmppServer => b'>',
        _ => b'\n',
    };
    loop {
        while let Some(at) = buffer.iter().position(|b| *b == end) {
            let command: Vec<u8> = buffer.drain(..=at).collect();
            let (answer, tls) = answer(start, String::from_utf8_lossy(&command).trim());
            if stream.write_all(answer.as_bytes()).await.is_err() || stream.flush().await.is_err() {
                return false;
            }
            if tls {
                return true;
            }
        }
        let mut chunk = [0; 4096];
        let Ok(len @ 1..) = stream.read(&mut chunk).await else { return false };
        buffer.extend_from_slice(&chunk[..len]);
    }
}

fn answer(start: Start, command: &str) -> (String, bool) {
    use Start::*;
    let first = command.split(' ').next().unwrap_or_default();
    let text = match (start, first) {
        (Smtp, "EHLO") | (Lmtp, "LHLO") => "250-mock\r\n250-PIPELINING\r\n250 STARTTLS\r\n",
        (Smtp | Lmtp, "STARTTLS") => return ("220 go\r\n".into(), true),
        (Smtp | Lmtp, "NOOP") => "250 ok\r\n",
        (Ftp, "FEAT") => "211-Features:\r\n AUTH TLS\r\n211 End\r\n",
        (Ftp, "AUTH") => return ("234 go\r\n".into(), true),
        (Ftp, "NOOP") => "200 ok\r\n",
        (Nntp, "CAPABILITIES") => "101 list\r\nVERSION 2\r\nREADER\r\nSTARTTLS\r\n.\r\n",
        (Nntp, "STARTTLS") => return ("382 go\r\n".into(), true),
        (Nntp, "DATE") => "111 20260101000000\r\n",
        (Smtp | Lmtp | Ftp | Nntp, _) => "500 what?\r\n",
        (Pop3, "CAPA") => "+OK\r\nUSER\r\nSTLS\r\n.\r\n",
        (Pop3, "STLS") => return ("+OK go\r\n".into(), true),
        (Pop3, _) => "-ERR what?\r\n",
        (Sieve, "STARTTLS") => return ("OK \"go\"\r\n".into(), true),
        (Sieve, _) => return (format!("OK (TAG {}) \"done\"\r\n", command.split_at(5).1), false),
        (Imap, tag) => {
            let untagged = match command.ends_with("CAPABILITY") {
                true => "* CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED\r\n",
                false => "",
            };
            return (format!("{untagged}{tag} OK done\r\n"), command.ends_with("STARTTLS"));
        }
        (Irc, "CAP") if command.contains("LS") => ":mock CAP * LS :multi-prefix tls\r\n",
        (Irc, "CAP") => ":mock CAP * LIST :\r\n",
        (Irc, "STARTTLS") => return (":mock 670 * :go\r\n".into(), true),
        (XmppClient | XmppServer, "<stream:stream") => {
            "<?xml version='1.0'?><stream:stream version='1.0' id='1'><stream:features>\
             <starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/></stream:features>"
        }
        (XmppClient | XmppServer, "<starttls") => {
            return ("<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>".into(), true);
        }
        _ => "",
    };
    (text.to_owned(), false)
}

/// A Telnet server (draft-altman-telnet-starttls), with or without TLS, which may ask first.
pub async fn telnet(tls: bool, asks: bool) -> u16 {
    serve(move |mut stream| async move {
        let hello: &[u8] = if asks { &[255, 253, 46] } else { &[255, 253, 24, 255, 251, 1] };
        let _ = stream.write_all(&[hello, b"mock login: "].concat()).await;
        let mut seen = Vec::new();
        let mut next = async |wanted: &[u8]| {
            while !seen.windows(wanted.len()).any(|window: &[u8]| window == wanted) {
                let Ok(byte) = stream.read_u8().await else { return false };
                seen.push(byte);
            }
            true
        };
        if !next(&[255, 251, 46]).await {
            return;
        }
        if !tls {
            let _ = stream.write_all(&[255, 254, 46]).await;
            let _ = stream.read_u8().await;
            return;
        }
        if !asks {
            let _ = stream.write_all(&[255, 253, 46]).await;
        }
        let mut next = async |wanted: &[u8]| {
            let mut seen = Vec::new();
            while !seen.ends_with(wanted) {
                let Ok(byte) = stream.read_u8().await else { return false };
                seen.push(byte);
            }
            true
        };
        if !next(&[255, 250, 46, 1, 255, 240]).await {
            return;
        }
        let _ = stream.write_all(&[255, 250, 46, 1, 255, 240]).await;
        let _ = Pair::get().acceptor().accept(stream).await;
    })
    .await
}

/// SQL Server up to the handshake: TLS 1.2 in TDS packets, bare TLS afterwards. Then it
/// echoes.
pub async fn mssql(encryption: u8) -> u16 {
    serve(move |mut stream| async move {
        let Some((_, prelogin)) = packet(&mut stream).await else { return };
        assert_eq!(prelogin[5..10], [1, 0, 32, 0, 1], "ENCRYPTION");
        assert_eq!(prelogin[32], 1, "ENCRYPT_ON");
        let options = [0, 0, 11, 0, 6, 1, 0, 17, 0, 1, 0xff, 16, 0, 16, 0, 0, 0, encryption];
        let header = [4, 1, 0, 8 + options.len() as u8, 0, 0, 1, 0];
        let _ = stream.write_all(&[&header[..], &options].concat()).await;
        if encryption != 2 {
            framed_tls(stream).await;
        } else {
            // There is no login.
            let _ = stream.read_u8().await;
        }
    })
    .await
}

async fn packet(stream: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
    let mut header = [0; 8];
    stream.read_exact(&mut header).await.ok()?;
    assert_eq!(header[0], 0x12, "not a PRELOGIN packet: {header:?}");
    let mut payload = vec![0; usize::from(u16::from_be_bytes([header[2], header[3]])) - 8];
    stream.read_exact(&mut payload).await.ok()?;
    Some((header[1], payload))
}

async fn framed_tls(mut stream: TcpStream) {
    let pair = Pair::get();
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(pair.chain(), pair.private_key())
        .unwrap();
    let mut tls = ServerConnection::new(Arc::new(config)).unwrap();
    while tls.is_handshaking() {
        // A flight is one message: its last packet is marked.
        loop {
            let Some((status, payload)) = packet(&mut stream).await else { return };
            tls.read_tls(&mut &payload[..]).unwrap();
            if tls.process_new_packets().is_err() {
                return;
            }
            if status == 1 {
                break;
            }
        }
        let mut flight = Vec::new();
        while tls.wants_write() {
            tls.write_tls(&mut flight).unwrap();
        }
        // Small packets, so that records span several of them.
        for payload in flight.chunks(100) {
            let header = [0x12, 0, 0, 8 + payload.len() as u8, 0, 0, 1, 0];
            let _ = stream.write_all(&[&header[..], payload].concat()).await;
        }
    }
    let mut chunk = [0; 4096];
    while let Ok(len @ 1..) = stream.read(&mut chunk).await {
        tls.read_tls(&mut &chunk[..len]).unwrap();
        if tls.process_new_packets().is_err() {
            return;
        }
        let mut text = [0; 256];
        while let Ok(len @ 1..) = tls.reader().read(&mut text) {
            tls.writer().write_all(&text[..len]).unwrap();
        }
        let mut out = Vec::new();
        while tls.wants_write() {
            tls.write_tls(&mut out).unwrap();
        }
        let _ = stream.write_all(&out).await;
    }
}

/// The behaviour of hostile servers, and of other protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hostile {
    Silent,
    EndlessLine,
    /// Endless lines that are valid in the protocol.
    EndlessLines,
    /// Single bytes with long pauses.
    Slow,
    /// Random bytes.
    Garbage,
    Closes,
    /// An HTTP error response.
    Http,
    /// Implicit TLS.
    Tls,
}

impl Hostile {
    pub const ALL: [Self; 8] = [
        Self::Silent,
        Self::EndlessLine,
        Self::EndlessLines,
        Self::Slow,
        Self::Garbage,
        Self::Closes,
        Self::Http,
        Self::Tls,
    ];

    pub async fn serve(self, start: Start) -> u16 {
        serve(move |stream| self.handle(start, stream)).await
    }

    async fn handle(self, start: Start, mut stream: TcpStream) {
        let piece: &[u8] = match start {
            Start::Smtp | Start::Lmtp | Start::Ftp => b"220-and\r\n",
            Start::Nntp => b"200-and\r\n",
            Start::Imap => b"* OK and\r\n",
            Start::Pop3 => b"+OK and\r\n",
            Start::Sieve => b"\"AND\" \"so on\"\r\n",
            Start::Irc => b":mock NOTICE * :and\r\n",
            Start::XmppClient | Start::XmppServer => b"<and/>",
            Start::Telnet => &[255, 251, 1],
            Start::Rdp => &[3, 0, 2, 0, 6, 0xd0],
            Start::Mssql => &[4, 1, 0x1f, 0xff, 0, 0, 1, 0],
            Start::Mysql => &[0xff, 0x1f, 0, 0, 10, b'8'],
            Start::Ldap => &[0x30, 0x82, 0x1f, 0xff],
            _ => b"E",
        };
        match self {
            Self::Silent => drop(stream.read_to_end(&mut Vec::new()).await),
            Self::EndlessLine => while stream.write_all(&[b'2'; 999]).await.is_ok() {},
            Self::EndlessLines => {
                let many = piece.repeat(100);
                while stream.write_all(&many).await.is_ok() {}
            }
            Self::Slow => {
                for byte in piece.iter().cycle() {
                    if stream.write_all(&[*byte]).await.is_err() {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
            Self::Garbage => {
                let mut state = 7u32;
                loop {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    if stream.write_all(&state.to_le_bytes()).await.is_err() {
                        break;
                    }
                }
            }
            Self::Closes => {}
            Self::Http => {
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
                let _ = stream.read_to_end(&mut Vec::new()).await;
            }
            Self::Tls => {
                // Wait, so that a reset does not discard the alert.
                if let Err((_, mut stream)) =
                    Pair::get().acceptor().accept(stream).into_fallible().await
                {
                    let _ = stream.shutdown().await;
                    let _ = stream.read_to_end(&mut Vec::new()).await;
                }
            }
        }
    }
}

/// Sends these texts, one after each received message, and the first immediately unless it is empty.
pub async fn script(says: &'static [&'static str]) -> u16 {
    serve(move |mut stream| async move {
        for (i, text) in says.iter().enumerate() {
            if i > 0 && stream.read(&mut [0; 4096]).await.is_err() {
                return;
            }
            let _ = stream.write_all(text.as_bytes()).await;
        }
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await
}
