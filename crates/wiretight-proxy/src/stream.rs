//! A TLS connection on a TCP socket: reads are large, and opened from one buffer into another; writes are
//! sealed the same way; nothing is held between reads but a record that has come in part.
//!
//! Both directions of one connection are driven by one task on one thread: each borrows the TLS state
//! only between awaits.

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
use crate::handshake::{self, Shaken};
pub use crate::handshake::{HandshakeError, Negotiated};
use crate::record::{RecordError, Records};

#[cfg(test)]
mod tests;

/// What a read found.
pub enum Got {
    /// Plaintext.
    Bytes(Buffer),
    /// close_notify: the peer will send no more, in order.
    Closed,
}

/// What a handshake has made known.
pub struct Agreed {
    /// How the connection is protected.
    pub negotiated: Negotiated,
    /// What the peer has shown, leaf first; the verifier has accepted it.
    pub chain: Vec<CertificateDer<'static>>,
}

/// The two halves of the socket and the TLS state between them.
pub struct TlsStream {
    socket: TcpStream,
    tls: RefCell<Tls>,
}

impl TlsStream {
    /// Shakes hands with `name`, within the deadline. A failed handshake has sent its alert.
    pub async fn connect(
        socket: TcpStream,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        deadline: Duration,
    ) -> Result<(TlsStream, Agreed), HandshakeError> {
        // Boxed: what it takes is given back when it is done, and not kept room for in the session's task.
        let shaken = Box::pin(handshake::connect(&socket, config, name, deadline)).await?;
        Ok(TlsStream::new(socket, shaken))
    }

    /// Accepts: `choose` says by the client's first message with which configuration. Within the
    /// deadline; a failed handshake has sent its alert.
    pub async fn accept(
        socket: TcpStream,
        choose: impl FnOnce(&ClientHello<'_>) -> Arc<ServerConfig>,
        deadline: Duration,
    ) -> Result<(TlsStream, Agreed), HandshakeError> {
        let shaken = Box::pin(handshake::accept(&socket, choose, deadline)).await?; // boxed: as above
        Ok(TlsStream::new(socket, shaken))
    }

    fn new(socket: TcpStream, shaken: Shaken) -> (TlsStream, Agreed) {
        let Shaken { records, rest, negotiated, chain } = shaken;
        let is_new = !rest.is_empty();
        let tls = Tls { records, rest, is_new, is_told: false, out: VecDeque::new(), written: 0 };
        (TlsStream { socket, tls: RefCell::new(tls) }, Agreed { negotiated, chain })
    }

    /// The socket.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Splits into a reading and a writing half, for two futures of one task.
    pub fn split(&mut self) -> (TlsReader<'_>, TlsWriter<'_>) {
        let (reader, writer) = self.socket.split();
        (TlsReader { socket: reader, tls: &self.tls }, TlsWriter { socket: writer, tls: &self.tls })
    }

    /// Whether an idle connection is still of use: nothing has arrived on it. Anything that arrives
    /// unasked (a close, an error, bytes) makes it useless.
    pub fn is_quiet(&mut self) -> bool {
        // Straight to the kernel: what the reactor has not yet been told counts too.
        let mut probe = [MaybeUninit::uninit()];
        let peeked = socket2::SockRef::from(&self.socket).peek(&mut probe);
        let silent = matches!(peeked, Err(e) if e.kind() == io::ErrorKind::WouldBlock);
        let tls = self.tls.get_mut();
        silent && tls.rest.is_empty() && !tls.records.has_ended()
    }

    /// Says close_notify, if that goes at once, and drops the connection.
    pub fn close(mut self) {
        self.tls.get_mut().say(AlertDescription::CloseNotify);
        let _ = self.tls.get_mut().send_at_once(&self.socket, || ()); // if it does not go, it stays unsaid
    }

    /// Drops the connection by TCP RST.
    pub fn abort(self) {
        let _ = self.socket.set_zero_linger();
    }
}

/// The records of both directions, and what of them is under way.
struct Tls {
    records: Records,
    /// The first part of a record of which the rest is still to come.
    rest: Vec<u8>,
    /// The handshake has left it: there may be whole records in it.
    is_new: bool,
    /// The peer was told what it did wrong: once is enough.
    is_told: bool,
    /// Sealed, and to be sent in this order; of the first so much is.
    out: VecDeque<Buffer>,
    written: usize,
}

impl Tls {
    /// Opens what has come. `None` if there was nothing in it that concerns a reader. What is wrong with it
    /// the peer is told.
    fn open(&mut self, input: &[u8], socket: &TcpStream) -> io::Result<Option<Got>> {
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
            0 if self.records.has_ended() => Some(Got::Closed),
            0 => None,
            _ => Some(Got::Bytes(plaintext)),
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

    /// Queues an alert. What cannot be sealed any more stays unsaid: the peer sees the connection end.
    fn say(&mut self, alert: AlertDescription) {
        let mut out = Buffer::take();
        if let Ok(n @ 1..) = self.records.seal_alert(alert, out.spare()) {
            out.grow(n);
            self.out.push_back(out);
        }
    }

    /// What is to be sent next.
    fn next(&self) -> Option<&[u8]> {
        self.out.front().map(|sealed| &sealed[self.written..])
    }

    /// So much of it is sent.
    fn sent(&mut self, n: usize) {
        self.written += n;
        if self.out.front().is_some_and(|sealed| sealed.len() == self.written) {
            self.out.pop_front();
            self.written = 0;
            if self.out.is_empty() {
                self.out = VecDeque::new(); // who is idle holds no memory for it
            }
        }
    }

    /// Sends what the socket takes now; `wrote` is told of each part.
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

/// Reads plaintext.
pub struct TlsReader<'a> {
    socket: ReadHalf<'a>,
    tls: &'a RefCell<Tls>,
}

impl TlsReader<'_> {
    /// Ends when the connection has broken (RST, or a dead network); an orderly end is none. Nothing is
    /// read, so this is for when nobody does.
    pub async fn aborted(&self) -> io::Error {
        let ready = self.socket.ready(Interest::ERROR).await;
        let error = ready.and_then(|_| self.socket.as_ref().take_error());
        error.map_or_else(|e| e, |e| e.unwrap_or(io::ErrorKind::ConnectionReset.into()))
    }

    /// Waits for plaintext. Holds no buffer while it waits.
    pub async fn read(&mut self) -> io::Result<Got> {
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

    /// What there is without a look at the socket: what the handshake has left, or the end.
    fn left(&mut self) -> io::Result<Option<Got>> {
        let mut tls = self.tls.borrow_mut();
        if !tls.is_new && !tls.records.has_ended() {
            return Ok(None);
        }
        tls.is_new = false;
        let rest = std::mem::take(&mut tls.rest);
        tls.open(&rest, self.socket.as_ref())
    }
}

/// Writes plaintext.
pub struct TlsWriter<'a> {
    socket: WriteHalf<'a>,
    tls: &'a RefCell<Tls>,
}

impl TlsWriter<'_> {
    /// Encrypts; the records wait for [`TlsWriter::flush`].
    pub fn queue(&mut self, plaintext: &[u8]) -> io::Result<()> {
        self.tls.borrow_mut().seal(plaintext)
    }

    /// Sends all that waits.
    pub async fn flush(&mut self) -> io::Result<()> {
        self.flush_telling(|| ()).await
    }

    /// The same; `wrote` is told of each part that the socket takes.
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

    /// Sends what the socket takes now; `wrote` is told of each part.
    pub fn flush_at_once(&mut self, wrote: impl FnMut()) -> io::Result<()> {
        self.tls.borrow_mut().send_at_once(self.socket.as_ref(), wrote)
    }

    /// Whether something still waits: the peer does not read as fast as we write.
    pub fn is_behind(&self) -> bool {
        !self.tls.borrow().out.is_empty()
    }

    /// Queues close_notify: no more will be sent.
    pub fn close(&mut self) {
        self.tls.borrow_mut().say(AlertDescription::CloseNotify);
    }
}
