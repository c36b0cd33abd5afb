//! A TLS connection on a TCP socket: reads are large and fed to rustls from memory, writes go out as one
//! vectored write, and nothing is held between reads but what rustls itself keeps.
//!
//! Both directions of one connection are driven by one task on one thread: each borrows the TLS state
//! only between awaits.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, BufRead, IoSlice, Write};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use rustls::server::{Accepted, AcceptedAlert, Acceptor, ClientHello};
use rustls::{CipherSuite, Connection, NamedGroup, ProtocolVersion, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use crate::buffer::Buffer;

/// What one read from the network takes at most. A whole number of TLS records.
const CIPHERTEXT: usize = 256 * 1024;

thread_local! {
    /// Ciphertext on its way from the socket into rustls; empty whenever a task yields, so that one for
    /// each thread is enough.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; CIPHERTEXT].into());
}

/// What a read found.
pub enum Got {
    /// Plaintext.
    Bytes(Buffer),
    /// close_notify: the peer will send no more, in order.
    Closed,
}

/// The two halves of the socket and the TLS state between them.
pub struct TlsStream {
    socket: TcpStream,
    tls: RefCell<Connection>,
}

impl TlsStream {
    /// Takes a connected socket; the handshake is still to come.
    pub fn new(socket: TcpStream, mut tls: Connection) -> TlsStream {
        tls.set_buffer_limit(None); // bounded by us: one frame at a time
        TlsStream { socket, tls: RefCell::new(tls) }
    }

    /// Accepts: `choose` says by the client's first message with which configuration. Within the
    /// deadline; a failed handshake has sent its alert.
    pub async fn accept(
        socket: TcpStream,
        choose: impl FnOnce(&ClientHello<'_>) -> Arc<ServerConfig>,
        deadline: Duration,
    ) -> Result<TlsStream, HandshakeError> {
        let shaken = async {
            let accepted = hello(&socket).await?;
            let config = choose(&accepted.client_hello());
            let tls = accepted.into_connection(config).map_err(|e| turned_away(&socket, e))?;
            let mut stream = TlsStream::new(socket, Connection::Server(tls));
            stream.shake().await.map(|()| stream)
        };
        let late = |_| Err(HandshakeError::Stalled(deadline));
        tokio::time::timeout(deadline, shaken).await.unwrap_or_else(late)
    }

    /// Shakes hands, within the deadline. A failed handshake has sent its alert.
    pub async fn handshake(&mut self, deadline: Duration) -> Result<(), HandshakeError> {
        match tokio::time::timeout(deadline, self.shake()).await {
            Ok(result) => result,
            Err(_) => Err(HandshakeError::Stalled(deadline)),
        }
    }

    async fn shake(&mut self) -> Result<(), HandshakeError> {
        let (mut reader, mut writer) = self.socket.split();
        loop {
            flush(&mut writer, &self.tls, || ()).await?;
            if !self.tls.borrow().is_handshaking() {
                return Ok(());
            }
            // Whatever comes behind the peer's last handshake message stays in rustls, to be read.
            let fed = poll_fn(|cx| {
                ready!(reader.as_ref().poll_read_ready(cx))?;
                SCRATCH.with_borrow_mut(|scratch| {
                    let mut buf = ReadBuf::new(&mut scratch[..8192]);
                    ready!(Pin::new(&mut reader).poll_read(cx, &mut buf))?;
                    let mut input = buf.filled();
                    if input.is_empty() {
                        return Poll::Ready(Err(HandshakeError::Io(
                            io::ErrorKind::UnexpectedEof.into(),
                        )));
                    }
                    let mut tls = self.tls.borrow_mut();
                    while !input.is_empty() {
                        tls.read_tls(&mut input)?;
                        tls.process_new_packets()?;
                    }
                    Poll::Ready(Ok(()))
                })
            })
            .await;
            if let Err(error) = fed {
                // The alert; best effort, the peer may be gone or not reading.
                let alert = flush(&mut writer, &self.tls, || ());
                let _ = tokio::time::timeout(Duration::from_secs(1), alert).await;
                return Err(error);
            }
        }
    }

    /// The TLS state, to ask what was negotiated.
    pub fn tls(&mut self) -> &mut Connection {
        self.tls.get_mut()
    }

    /// The ALPN, group and suite that were negotiated.
    pub fn negotiated(&mut self) -> Negotiated {
        let tls = self.tls.get_mut();
        Negotiated {
            alpn: tls.alpn_protocol() == Some(crate::tls::ALPN_RELAY),
            group: tls.negotiated_key_exchange_group().map_or(NamedGroup::Unknown(0), |g| g.name()),
            suite: tls.negotiated_cipher_suite().map_or(CipherSuite::Unknown(0), |s| s.suite()),
            version: tls.protocol_version().unwrap_or(ProtocolVersion::Unknown(0)),
        }
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
        silent && self.tls.get_mut().wants_read()
    }

    /// Says close_notify, if that goes at once, and drops the connection.
    pub fn close(mut self) {
        self.tls.get_mut().send_close_notify();
        let mut out = Socket(&self.socket);
        let _ = self.tls.get_mut().write_tls(&mut out);
    }

    /// Drops the connection by TCP RST.
    pub fn abort(self) {
        let _ = self.socket.set_zero_linger();
    }
}

/// Reads the client's first message.
async fn hello(socket: &TcpStream) -> Result<Accepted, HandshakeError> {
    let mut acceptor = Acceptor::default();
    loop {
        socket.readable().await?;
        let fed: io::Result<()> = SCRATCH.with_borrow_mut(|scratch| {
            let mut input = match socket.try_read(&mut scratch[..8192])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => &scratch[..n],
            };
            while !input.is_empty() {
                acceptor.read_tls(&mut input)?;
            }
            Ok(())
        });
        match fed {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
            fed => fed?,
        }
        if let Some(accepted) = acceptor.accept().map_err(|e| turned_away(socket, e))? {
            return Ok(accepted);
        }
    }
}

/// Sends the alert, if it goes at once, and passes the error on.
fn turned_away(
    socket: &TcpStream,
    (error, mut alert): (rustls::Error, AcceptedAlert),
) -> HandshakeError {
    let _ = alert.write(&mut Socket(socket));
    error.into()
}

/// What a handshake agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Negotiated {
    /// `wiretight/1`; otherwise a raw stream.
    pub alpn: bool,
    /// The key exchange group.
    pub group: NamedGroup,
    /// The cipher suite.
    pub suite: CipherSuite,
    /// The protocol version.
    pub version: ProtocolVersion,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The peer, or our own verifier, did not agree.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    /// The socket broke.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Not finished in time.
    #[error("the handshake was not finished within {} s", .0.as_secs())]
    Stalled(Duration),
}

/// Reads plaintext.
pub struct TlsReader<'a> {
    socket: ReadHalf<'a>,
    tls: &'a RefCell<Connection>,
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
                // What a handshake or an earlier read left in rustls.
                if !self.tls.borrow().wants_read()
                    && let Some(got) = feed(&mut self.tls.borrow_mut(), None)?
                {
                    return Poll::Ready(Ok(got));
                }
                ready!(self.socket.as_ref().poll_read_ready(cx))?;
                let got = SCRATCH.with_borrow_mut(|scratch| {
                    let mut buf = ReadBuf::new(scratch);
                    ready!(Pin::new(&mut self.socket).poll_read(cx, &mut buf))?;
                    let mut tls = self.tls.borrow_mut();
                    let got = feed(&mut tls, Some(buf.filled()));
                    if tls.wants_write() {
                        // A key update's answer, or the alert of an error: whatever does not go at
                        // once is taken along by the writer.
                        let _ = tls.write_tls(&mut Socket(self.socket.as_ref()));
                    }
                    Poll::Ready(got)
                });
                if let Some(got) = ready!(got)? {
                    return Poll::Ready(Ok(got));
                }
            }
        })
        .await
    }
}

/// Feeds ciphertext (all of it), takes out all plaintext. `None` if that made none.
fn feed(tls: &mut Connection, input: Option<&[u8]>) -> io::Result<Option<Got>> {
    let mut out = None;
    let mut closed = drain(tls, &mut out)?;
    if let Some(mut input) = input {
        if input.is_empty() && !closed {
            let what = "the connection ended without close_notify";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
        }
        // Each step takes in at most one record more than a buffer has room for.
        while !input.is_empty() && !closed && tls.read_tls(&mut input)? > 0 {
            tls.process_new_packets().map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
            closed = drain(tls, &mut out)?;
        }
    }
    Ok(match out {
        Some(buffer) => Some(Got::Bytes(buffer)),
        None if closed => Some(Got::Closed),
        None => None,
    })
}

/// Takes out the plaintext that rustls holds; true once the peer's close_notify is reached.
fn drain(tls: &mut Connection, out: &mut Option<Buffer>) -> io::Result<bool> {
    let mut reader = tls.reader();
    loop {
        match reader.fill_buf() {
            Ok([]) => return Ok(true),
            Ok(chunk) => {
                let n = out.get_or_insert_with(Buffer::take).append(chunk);
                reader.consume(n);
                if n == 0 {
                    return Ok(false);
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(e) => return Err(e),
        }
    }
}

/// Writes plaintext.
pub struct TlsWriter<'a> {
    socket: WriteHalf<'a>,
    tls: &'a RefCell<Connection>,
}

impl TlsWriter<'_> {
    /// Encrypts; the records wait in rustls for [`TlsWriter::flush`].
    pub fn queue(&mut self, plaintext: &[u8]) -> io::Result<()> {
        self.tls.borrow_mut().writer().write_all(plaintext)
    }

    /// Sends all that waits.
    pub async fn flush(&mut self) -> io::Result<()> {
        flush(&mut self.socket, self.tls, || ()).await
    }

    /// The same; `wrote` is told of each part that the socket takes.
    pub async fn flush_telling(&mut self, wrote: impl FnMut()) -> io::Result<()> {
        flush(&mut self.socket, self.tls, wrote).await
    }

    /// Whether something still waits: the peer does not read as fast as we write.
    pub fn is_behind(&self) -> bool {
        self.tls.borrow().wants_write()
    }

    /// Queues close_notify: no more will be sent.
    pub fn close(&mut self) {
        self.tls.borrow_mut().send_close_notify();
    }
}

/// Sends what rustls holds; the socket's back-pressure is ours.
async fn flush(
    socket: &mut WriteHalf<'_>,
    tls: &RefCell<Connection>,
    mut wrote: impl FnMut(),
) -> io::Result<()> {
    poll_fn(|cx| {
        let mut tls = tls.borrow_mut();
        while tls.wants_write() {
            let mut out = PollWrite { socket: &mut *socket, cx: &mut *cx };
            match tls.write_tls(&mut out) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => wrote(),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
        Poll::Ready(Ok(()))
    })
    .await
}

/// A socket as `io::Write`; registers the waker when it would block.
struct PollWrite<'a, 'b, 'c> {
    socket: &'a mut WriteHalf<'b>,
    cx: &'a mut std::task::Context<'c>,
}

impl Write for PollWrite<'_, '_, '_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        would_block(Pin::new(&mut *self.socket).poll_write(self.cx, buf))
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        would_block(Pin::new(&mut *self.socket).poll_write_vectored(self.cx, bufs))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn would_block<T>(poll: Poll<io::Result<T>>) -> io::Result<T> {
    match poll {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

/// A socket as `io::Write` that never waits.
struct Socket<'a>(&'a TcpStream);

impl Write for Socket<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.try_write(buf)
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(bufs)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
