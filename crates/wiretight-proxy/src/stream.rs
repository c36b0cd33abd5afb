//! A TLS connection on a TCP socket. Reads are large; records are decrypted directly from one buffer into another,
//! and encrypted the same way. Between reads, only an incomplete record is kept.
//!
//! One task on one thread drives both directions of a connection; each borrows the TLS state only between awaits.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ClientHello;
use rustls::{AlertDescription, ClientConfig, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use crate::buffer::{Buffer, CHUNK};
use crate::handshake::{self, CompletedHandshake};
pub use crate::handshake::{HandshakeError, Negotiated};
use crate::record::{RecordError, Records};

#[cfg(test)]
mod tests;

/// The result of a read.
pub enum Received {
    /// Plaintext.
    Bytes(Buffer),
    /// close_notify: the peer will send nothing more.
    Closed,
}

/// The results of a handshake.
pub struct HandshakeInfo {
    /// The negotiated parameters.
    pub negotiated: Negotiated,
    /// The peer's certificates, leaf first; the verifier accepted them.
    pub chain: Vec<CertificateDer<'static>>,
}

/// A socket with its TLS state.
pub struct TlsStream {
    socket: TcpStream,
    tls: RefCell<Tls>,
}

impl TlsStream {
    /// Handshakes as a client that expects `name`. If the handshake fails, an alert was sent.
    pub async fn connect(
        socket: TcpStream,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        deadline: Duration,
    ) -> Result<(TlsStream, HandshakeInfo), HandshakeError> {
        // Boxed, so that its memory is freed after the handshake instead of being part of the session's task.
        let shaken = Box::pin(handshake::connect(&socket, config, name, deadline)).await?;
        Ok(TlsStream::new(socket, shaken))
    }

    /// Handshakes as a server; `choose` picks the configuration for the client hello. If the handshake fails, an
    /// alert was sent.
    pub async fn accept(
        socket: TcpStream,
        choose: impl FnOnce(&ClientHello<'_>) -> Arc<ServerConfig>,
        deadline: Duration,
    ) -> Result<(TlsStream, HandshakeInfo), HandshakeError> {
        let shaken = Box::pin(handshake::accept(&socket, choose, deadline)).await?; // boxed: as above
        Ok(TlsStream::new(socket, shaken))
    }

    fn new(socket: TcpStream, shaken: CompletedHandshake) -> (TlsStream, HandshakeInfo) {
        let CompletedHandshake { records, rest, negotiated, chain } = shaken;
        let is_new = !rest.is_empty();
        let tls = Tls { records, rest, is_new, is_told: false, out: VecDeque::new(), written: 0 };
        (TlsStream { socket, tls: RefCell::new(tls) }, HandshakeInfo { negotiated, chain })
    }

    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Splits into a reader and a writer, for two futures of one task.
    pub fn split(&mut self) -> (TlsReader<'_>, TlsWriter<'_>) {
        let (reader, writer) = self.socket.split();
        (TlsReader { socket: reader, tls: &self.tls }, TlsWriter { socket: writer, tls: &self.tls })
    }

    /// Whether an idle connection can still be used: nothing has arrived on it. Anything unexpected that arrives (a
    /// close, an error, bytes) makes it unusable.
    pub fn is_quiet(&mut self) -> bool {
        // Ask the kernel directly: the reactor may not have noticed arrived bytes yet.
        let mut probe = [MaybeUninit::uninit()];
        let peeked = socket2::SockRef::from(&self.socket).peek(&mut probe);
        let silent = matches!(peeked, Err(e) if e.kind() == io::ErrorKind::WouldBlock);
        let tls = self.tls.get_mut();
        silent && tls.rest.is_empty() && !tls.records.has_ended()
    }

    /// Sends close_notify, if that is possible without waiting, and drops the connection.
    pub fn close(mut self) {
        self.tls.get_mut().say(AlertDescription::CloseNotify);
        let _ = self.tls.get_mut().send_at_once(&self.socket, || ()); // best effort
    }

    /// Drops the connection with a TCP RST.
    pub fn abort(self) {
        let _ = self.socket.set_zero_linger();
    }
}

/// The records of both directions, and pending input and output.
struct Tls {
    records: Records,
    /// The start of an incomplete record.
    rest: Vec<u8>,
    /// `rest` is left over from the handshake, so it may contain complete records.
    is_new: bool,
    /// An alert was sent; it is sent only once.
    is_told: bool,
    /// Encrypted records to send, in order. `written` bytes of the first were sent.
    out: VecDeque<Buffer>,
    written: usize,
}

impl Tls {
    /// Decrypts input. `None` if it contained nothing for the reader. Sends an alert if the input is invalid.
    fn open(&mut self, input: &[u8], socket: &TcpStream) -> io::Result<Option<Received>> {
        let mut plaintext = Buffer::take();
        let opened = self.records.open(input, plaintext.spare());
        let (used, filled) = opened.map_err(|error| {
            if let Some(alert) = error.alert()
                && !self.is_told
            {
                self.is_told = true;
                self.say(alert);
                let _ = self.send_at_once(socket, || ()); // as in `TlsStream::close`
            }
            invalid(error)
        })?;
        plaintext.grow(filled);
        self.rest.clear();
        if !self.records.has_ended() {
            self.rest.extend_from_slice(&input[used..]);
        }
        if self.rest.is_empty() {
            self.rest = Vec::new();
        }
        Ok(match filled {
            0 if self.records.has_ended() => Some(Received::Closed),
            0 => None,
            _ => Some(Received::Bytes(plaintext)),
        })
    }

    fn seal(&mut self, mut plaintext: &[u8]) -> io::Result<()> {
        while !plaintext.is_empty() {
            let Some(out) = self.out.back_mut() else {
                self.out.push_back(Buffer::take());
                continue;
            };
            let (used, filled) = self.records.seal(plaintext, out.spare()).map_err(invalid)?;
            out.grow(filled);
            plaintext = &plaintext[used..];
            if !plaintext.is_empty() {
                self.out.push_back(Buffer::take());
            }
        }
        Ok(())
    }

    /// Queues an alert. If it cannot be encrypted, the peer only sees the connection close.
    fn say(&mut self, alert: AlertDescription) {
        let mut out = Buffer::take();
        if let Ok(n @ 1..) = self.records.seal_alert(alert, out.spare()) {
            out.grow(n);
            self.out.push_back(out);
        }
    }

    /// The next bytes to send.
    fn next(&self) -> Option<&[u8]> {
        self.out.front().map(|sealed| &sealed[self.written..])
    }

    /// Records that `n` bytes were sent.
    fn sent(&mut self, n: usize) {
        self.written += n;
        if self.out.front().is_some_and(|sealed| sealed.len() == self.written) {
            self.out.pop_front();
            self.written = 0;
            if self.out.is_empty() {
                self.out = VecDeque::new(); // an idle connection keeps no memory for it
            }
        }
    }

    /// Sends what the socket accepts without waiting; calls `wrote` for each part.
    fn send_at_once(&mut self, socket: &TcpStream, mut wrote: impl FnMut()) -> io::Result<()> {
        while let Some(sealed) = self.next() {
            match socket.try_write(sealed) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => self.sent(n),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
            wrote();
        }
        Ok(())
    }
}

fn invalid(error: RecordError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Reads decrypted data.
pub struct TlsReader<'a> {
    socket: ReadHalf<'a>,
    tls: &'a RefCell<Tls>,
}

impl TlsReader<'_> {
    /// Resolves when the connection is aborted (RST, or a dead network), not on an orderly close. Reads nothing.
    pub async fn aborted(&self) -> io::Error {
        let ready = self.socket.ready(Interest::ERROR).await;
        let error = ready.and_then(|_| self.socket.as_ref().take_error());
        error.map_or_else(|e| e, |e| e.unwrap_or(io::ErrorKind::ConnectionReset.into()))
    }

    /// Waits for plaintext, without occupying a buffer meanwhile.
    pub async fn read(&mut self) -> io::Result<Received> {
        poll_fn(|cx| {
            loop {
                if let Some(got) = self.left()? {
                    return Poll::Ready(Ok(got));
                }
                ready!(self.socket.as_ref().poll_read_ready(cx))?;
                let mut ciphertext = Buffer::take();
                let mut tls = self.tls.borrow_mut();
                let have = tls.rest.len();
                let room = &mut ciphertext.room()[..CHUNK];
                room[..have].copy_from_slice(&tls.rest);
                let mut new = ReadBuf::new(&mut room[have..]);
                ready!(Pin::new(&mut self.socket).poll_read(cx, &mut new))?;
                let n = new.filled().len();
                if n == 0 {
                    let what = "the connection ended without close_notify";
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, what)));
                }
                ciphertext.set_len(have + n);
                if let Some(got) = tls.open(&ciphertext, self.socket.as_ref())? {
                    return Poll::Ready(Ok(got));
                }
            }
        })
        .await
    }

    /// Results that need no read from the socket: data left over from the handshake, or the end.
    fn left(&mut self) -> io::Result<Option<Received>> {
        let mut tls = self.tls.borrow_mut();
        if !tls.is_new && !tls.records.has_ended() {
            return Ok(None);
        }
        tls.is_new = false;
        let rest = std::mem::take(&mut tls.rest);
        tls.open(&rest, self.socket.as_ref())
    }
}

/// Encrypts and writes data.
pub struct TlsWriter<'a> {
    socket: WriteHalf<'a>,
    tls: &'a RefCell<Tls>,
}

impl TlsWriter<'_> {
    /// Encrypts and queues; [`TlsWriter::flush`] sends.
    pub fn queue(&mut self, plaintext: &[u8]) -> io::Result<()> {
        self.tls.borrow_mut().seal(plaintext)
    }

    /// Sends everything queued.
    pub async fn flush(&mut self) -> io::Result<()> {
        self.flush_telling(|| ()).await
    }

    /// The same; calls `wrote` for each part that the socket accepts.
    pub async fn flush_telling(&mut self, mut wrote: impl FnMut()) -> io::Result<()> {
        poll_fn(|cx| {
            let mut tls = self.tls.borrow_mut();
            while let Some(sealed) = tls.next() {
                match ready!(Pin::new(&mut self.socket).poll_write(cx, sealed))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    n => tls.sent(n),
                }
                wrote();
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    /// Sends what the socket accepts without waiting; calls `wrote` for each part.
    pub fn flush_at_once(&mut self, wrote: impl FnMut()) -> io::Result<()> {
        self.tls.borrow_mut().send_at_once(self.socket.as_ref(), wrote)
    }

    /// Whether data is still queued: the peer reads more slowly than we write.
    pub fn is_behind(&self) -> bool {
        !self.tls.borrow().out.is_empty()
    }

    /// Queues close_notify: nothing more will be sent.
    pub fn close(&mut self) {
        self.tls.borrow_mut().say(AlertDescription::CloseNotify);
    }
}
