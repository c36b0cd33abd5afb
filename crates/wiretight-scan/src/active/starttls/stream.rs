//! The stream below TLS.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream that is ready for a ClientHello.
///
/// For SQL Server, it wraps the handshake in TDS packets (type 0x12; MS-TDS, section 3.2.5.3): one message
/// for everything that is written before a flush. So **flush after each flight**, and call
/// [`handshake_done`](Self::handshake_done) after the handshake; from then on, TLS records are not wrapped.
/// When reading, both forms are recognized, because TLS record types differ from TDS packet types.
#[derive(Debug)]
pub struct Stream<S> {
    inner: S,
    /// Received too early; it is read first.
    early: Vec<u8>,
    tds: Option<Tds>,
}

#[derive(Debug, Default)]
struct Tds {
    /// Written, but not packed yet.
    flight: Vec<u8>,
    /// Packets to send; `sent` bytes of them were sent.
    out: Vec<u8>,
    sent: usize,
    bare_writes: bool,
    bare_reads: bool,
    header: [u8; HEADER],
    have: usize,
    /// Remaining bytes of the packet that is being read.
    left: usize,
}

const HEADER: usize = 8;
/// The payload of a packet, with the size that all servers accept before a login.
const PAYLOAD: usize = 4096 - HEADER;
/// The limit for unflushed data, more than a flight of a handshake; then it is sent without a flush.
const FLIGHT: usize = 64 << 10;
const PRELOGIN: u8 = 0x12;
const REPLY: u8 = 0x04;
const END_OF_MESSAGE: u8 = 1;

impl<S> Stream<S> {
    pub(super) fn new(inner: S, early: Vec<u8>, tds: bool) -> Self {
        Self { inner, early, tds: tds.then(Tds::default) }
    }

    /// Ends the wrapping of written data in TDS packets. Does nothing without TDS.
    pub fn handshake_done(&mut self) {
        if let Some(tds) = &mut self.tds {
            tds.pack();
            tds.bare_writes = true;
        }
    }

    /// Whether the handshake is wrapped in TDS packets, so that flushes are needed.
    pub fn is_framed(&self) -> bool {
        self.tds.is_some()
    }

    /// Bytes that the server sent between its agreement to TLS and our ClientHello. They make the TLS
    /// handshake fail.
    pub fn early(&self) -> &[u8] {
        &self.early
    }

    pub fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl Tds {
    fn pack(&mut self) {
        let flight = std::mem::take(&mut self.flight);
        let mut packets = flight.chunks(PAYLOAD).zip(1u8..).peekable();
        while let Some((payload, number)) = packets.next() {
            let status = if packets.peek().is_none() { END_OF_MESSAGE } else { 0 };
            let [high, low] = ((HEADER + payload.len()) as u16).to_be_bytes();
            self.out.extend_from_slice(&[PRELOGIN, status, high, low, 0, 0, number, 0]);
            self.out.extend_from_slice(payload);
        }
    }

    fn poll_send<S: AsyncWrite + Unpin>(
        &mut self,
        inner: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while self.sent < self.out.len() {
            match ready!(Pin::new(&mut *inner).poll_write(cx, &self.out[self.sent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => self.sent += sent,
            }
        }
        self.out.clear();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }

    /// Reads up to the payload of a packet. Returns `false` at the end of the stream.
    fn poll_header<S: AsyncRead + Unpin>(
        &mut self,
        inner: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<bool>> {
        while self.left == 0 && !self.bare_reads {
            let mut room = ReadBuf::new(&mut self.header[self.have..]);
            ready!(Pin::new(&mut *inner).poll_read(cx, &mut room))?;
            match room.filled().len() {
                0 if self.have == 0 => return Poll::Ready(Ok(false)),
                0 => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                len => self.have += len,
            }
            if ![PRELOGIN, REPLY].contains(&self.header[0]) {
                self.bare_reads = true;
            } else if self.have == HEADER {
                let len = usize::from(u16::from_be_bytes([self.header[2], self.header[3]]));
                self.left = len.checked_sub(HEADER).ok_or_else(|| {
                    io::Error::new(
                        io::ErrorKind::InvalidData,
                        "a TDS packet is shorter than its header",
                    )
                })?;
                self.have = 0;
            }
        }
        Poll::Ready(Ok(true))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Stream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { inner, early, tds } = &mut *self;
        if !early.is_empty() {
            let len = early.len().min(buf.remaining());
            buf.put_slice(&early[..len]);
            early.drain(..len);
            return Poll::Ready(Ok(()));
        }
        let Some(tds) = tds else { return Pin::new(inner).poll_read(cx, buf) };
        if !ready!(tds.poll_header(inner, cx))? || buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if tds.have > 0 {
            // These bytes were read as a header, but are not one.
            let len = tds.have.min(buf.remaining());
            buf.put_slice(&tds.header[..len]);
            tds.header.copy_within(len.., 0);
            tds.have -= len;
            return Poll::Ready(Ok(()));
        }
        if tds.bare_reads {
            return Pin::new(inner).poll_read(cx, buf);
        }
        let room = tds.left.min(buf.remaining());
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(room));
        ready!(Pin::new(inner).poll_read(cx, &mut part))?;
        let len = part.filled().len();
        buf.advance(len);
        tds.left -= len;
        match len {
            0 => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            _ => Poll::Ready(Ok(())),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Self { inner, tds, .. } = &mut *self;
        let Some(tds) = tds else { return Pin::new(inner).poll_write(cx, data) };
        if tds.flight.len() >= FLIGHT {
            tds.pack();
        }
        ready!(tds.poll_send(inner, cx))?;
        if tds.bare_writes {
            return Pin::new(inner).poll_write(cx, data);
        }
        let len = data.len().min(FLIGHT - tds.flight.len());
        tds.flight.extend_from_slice(&data[..len]);
        Poll::Ready(Ok(len))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { inner, tds, .. } = &mut *self;
        if let Some(tds) = tds {
            tds.pack();
            ready!(tds.poll_send(inner, cx))?;
        }
        Pin::new(inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
