//! HTTP/2 and HTTP/3 frame by frame, to send what no library would send.

use std::io;
use std::sync::Arc;

use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::client::TlsStream;

use super::edge::{EdgeRig, SITE};

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

// RFC 9113, section 6.
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;
pub const WITH_PRIORITY: u8 = 0x20;

// RFC 9113, section 7.
pub const PROTOCOL_ERROR: u32 = 1;
pub const FLOW_CONTROL_ERROR: u32 = 3;
pub const STREAM_CLOSED: u32 = 5;
pub const FRAME_SIZE_ERROR: u32 = 6;
pub const COMPRESSION_ERROR: u32 = 9;
pub const ENHANCE_YOUR_CALM: u32 = 11;

pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The error code of RST_STREAM or GOAWAY.
    pub fn reason(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }

    /// The status, if these are the first headers of a connection, because HPACK's tables are not kept.
    pub fn status(&self) -> u16 {
        let digits = |bytes: &[u8], huffman: bool| -> u16 {
            if !huffman {
                return std::str::from_utf8(bytes).unwrap().parse().unwrap();
            }
            // RFC 7541, appendix B: 0, 1 and 2 have five bits, the other digits six.
            let bits = bytes.iter().fold(0u32, |all, b| all << 8 | u32::from(*b));
            let (mut left, mut value) = (8 * bytes.len(), 0);
            for _ in 0..3 {
                let five = bits >> (left - 5) & 31;
                let (digit, used) = match five {
                    0..=2 => (five, 5),
                    _ => ((bits >> (left - 6) & 63) - 0x19 + 3, 6),
                };
                value = value * 10 + digit as u16;
                left -= used;
            }
            value
        };
        match *self.payload {
            [first @ 0x88..=0x8e, ..] => {
                [200, 204, 206, 304, 400, 404, 500][usize::from(first - 0x88)]
            }
            [0x48 | 0x08, len, ref rest @ ..] => {
                digits(&rest[..usize::from(len & 0x7f)], len & 0x80 != 0)
            }
            _ => panic!("no status first: {:?}", self.payload),
        }
    }
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An integer with a prefix of `bits` bits (RFC 7541, section 5.1).
fn number(first: u8, bits: u32, n: usize) -> Vec<u8> {
    let most = (1 << bits) - 1;
    if n < most {
        return vec![first | n as u8];
    }
    let (mut bytes, mut n) = (vec![first | most as u8], n - most);
    while n >= 128 {
        bytes.push(n as u8 | 128);
        n /= 128;
    }
    bytes.push(n as u8);
    bytes
}

/// Encodes fields as literals without checking them.
pub fn hpack(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        block.extend(number(0, 7, name.len()));
        block.extend(name.as_bytes());
        block.extend(number(0, 7, value.len()));
        block.extend(value.as_bytes());
    }
    block
}

/// The same for HTTP/3 (RFC 9204, section 4.5.6).
pub fn qpack(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = vec![0, 0];
    for (name, value) in fields {
        block.extend(number(0x20, 3, name.len()));
        block.extend(name.as_bytes());
        block.extend(number(0, 7, value.len()));
        block.extend(value.as_bytes());
    }
    block
}

/// A variable-length integer of QUIC (RFC 9000, section 16).
pub fn varint(n: u64) -> Vec<u8> {
    match n {
        0..0x40 => vec![n as u8],
        0x40..0x4000 => (n as u16 | 0x4000).to_be_bytes().to_vec(),
        0x4000..0x4000_0000 => (n as u32 | 0x8000_0000).to_be_bytes().to_vec(),
        _ => (n | 0xc000_0000_0000_0000).to_be_bytes().to_vec(),
    }
}

/// An HTTP/3 frame.
pub fn frame3(kind: u64, payload: &[u8]) -> Vec<u8> {
    [varint(kind), varint(payload.len() as u64), payload.to_vec()].concat()
}

/// The fields of a request.
pub fn fields<'a>(method: &'a str, path: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![(":method", method), (":scheme", "https"), (":authority", SITE), (":path", path)]
}

/// A complete GET.
pub fn get(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &hpack(&fields("GET", path)))
}

/// The head of a POST.
pub fn post(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &hpack(&fields("POST", path)))
}

/// An HTTP/2 client that sends arbitrary data. Incoming frames are read at once, unless it is `deaf`.
pub struct Http2 {
    write: WriteHalf<TlsStream<TcpStream>>,
    frames: mpsc::UnboundedReceiver<Frame>,
    _deaf: Option<tokio::io::ReadHalf<TlsStream<TcpStream>>>,
}

impl Http2 {
    /// A connection on which nothing was sent.
    pub async fn silent(rig: &EdgeRig, deaf: bool) -> Http2 {
        let connector = tokio_rustls::TlsConnector::from(Arc::new(rig.client(&["h2"])));
        let socket = TcpStream::connect(rig.https()).await.unwrap();
        let tls = connector.connect(ServerName::try_from(SITE).unwrap(), socket).await.unwrap();
        assert_eq!(tls.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
        let (mut read, write) = tokio::io::split(tls);
        let (tell, frames) = mpsc::unbounded_channel();
        if deaf {
            return Http2 { write, frames, _deaf: Some(read) };
        }
        tokio::spawn(async move {
            while let Ok(frame) = read_frame(&mut read).await {
                if tell.send(frame).is_err() {
                    break;
                }
            }
        });
        Http2 { write, frames, _deaf: None }
    }

    /// A connection with its preface.
    pub async fn open(rig: &EdgeRig) -> Http2 {
        let mut client = Http2::silent(rig, false).await;
        client.greet().await;
        client
    }

    pub async fn greet(&mut self) {
        self.send(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
    }

    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write.write_all(bytes).await?;
        self.write.flush().await
    }

    pub async fn close(&mut self) {
        let _ = self.write.shutdown().await;
    }

    /// Sends a piece repeatedly, until the other end closes or `times` is reached; returns how often.
    pub async fn flood(&mut self, times: usize, mut piece: impl FnMut(usize) -> Vec<u8>) -> usize {
        for n in 0..times {
            if self.send(&piece(n)).await.is_err() {
                return n;
            }
            tokio::task::yield_now().await;
        }
        times
    }

    /// The next frame; `None` at the end of the connection.
    pub async fn next(&mut self) -> Option<Frame> {
        self.frames.recv().await
    }

    /// Discards a frame if one has arrived; returns whether there was one.
    pub fn try_next(&mut self) -> bool {
        self.frames.try_recv().is_ok()
    }

    /// The next frame of a type on a stream.
    pub async fn wait(&mut self, kind: u8, stream: u32) -> Frame {
        loop {
            let frame = self.next().await.unwrap_or_else(|| panic!("no frame {kind} on {stream}"));
            if frame.kind == kind && frame.stream == stream {
                return frame;
            }
        }
    }

    /// Waits until the connection or this stream is closed, and returns the error code. A reset of the connection may
    /// arrive before the frame with the code.
    pub async fn end(&mut self, stream: u32) -> Option<u32> {
        loop {
            match self.next().await {
                None => return None,
                Some(frame) if frame.kind == GOAWAY => {
                    while self.next().await.is_some() {}
                    return Some(frame.reason());
                }
                Some(frame) if frame.kind == RST_STREAM && frame.stream == stream => {
                    return Some(frame.reason());
                }
                Some(_) => {}
            }
        }
    }

    /// Checks that the connection or this stream is closed with one of these error codes.
    pub async fn is_ended(&mut self, stream: u32, reasons: &[u32]) {
        if let Some(reason) = self.end(stream).await {
            assert!(reasons.contains(&reason), "ended for {reason}");
        }
    }
}

async fn read_frame(from: &mut (impl AsyncReadExt + Unpin)) -> io::Result<Frame> {
    let mut head = [0; 9];
    from.read_exact(&mut head).await?;
    let len = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; len as usize];
    from.read_exact(&mut payload).await?;
    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
    Ok(Frame { kind: head[3], flags: head[4], stream, payload })
}
