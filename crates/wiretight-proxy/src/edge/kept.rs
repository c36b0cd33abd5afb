//! A socket to a backend that can be probed while the HTTP library owns it.

use std::io;
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// The common interface of TCP and Unix sockets.
pub(crate) trait Socket: AsFd + Send + Sync + 'static {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    fn read(&self, into: &mut ReadBuf<'_>) -> io::Result<usize>;
    fn write(&self, bytes: &[u8]) -> io::Result<usize>;
    fn write_vectored(&self, pieces: &[io::IoSlice<'_>]) -> io::Result<usize>;
}

macro_rules! socket {
    ($stream:ty) => {
        impl Socket for $stream {
            fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.poll_read_ready(cx)
            }
            fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.poll_write_ready(cx)
            }
            fn read(&self, into: &mut ReadBuf<'_>) -> io::Result<usize> {
                self.try_read_buf(into)
            }
            fn write(&self, bytes: &[u8]) -> io::Result<usize> {
                self.try_write(bytes)
            }
            fn write_vectored(&self, pieces: &[io::IoSlice<'_>]) -> io::Result<usize> {
                self.try_write_vectored(pieces)
            }
        }
    };
}

socket!(TcpStream);
socket!(UnixStream);

/// The HTTP library's handle. The socket is closed when it is dropped.
pub(crate) struct Kept<S>(Arc<S>);

/// The pool's handle.
#[derive(Clone)]
pub(crate) enum SocketProbe {
    Tcp(Weak<TcpStream>),
    Unix(Weak<UnixStream>),
}

impl Kept<TcpStream> {
    pub(crate) fn tcp(socket: TcpStream) -> (Kept<TcpStream>, SocketProbe) {
        let socket = Arc::new(socket);
        let probe = SocketProbe::Tcp(Arc::downgrade(&socket));
        (Kept(socket), probe)
    }
}

impl Kept<UnixStream> {
    pub(crate) fn unix(socket: UnixStream) -> (Kept<UnixStream>, SocketProbe) {
        let socket = Arc::new(socket);
        let probe = SocketProbe::Unix(Arc::downgrade(&socket));
        (Kept(socket), probe)
    }
}

impl SocketProbe {
    /// Whether the backend has neither closed the connection nor sent anything unexpected. The library may not have
    /// noticed yet.
    pub(crate) fn is_quiet(&self) -> bool {
        match self {
            SocketProbe::Tcp(socket) => socket.upgrade().is_some_and(|socket| is_quiet(&*socket)),
            SocketProbe::Unix(socket) => socket.upgrade().is_some_and(|socket| is_quiet(&*socket)),
        }
    }
}

fn is_quiet(socket: &impl AsFd) -> bool {
    let peeked = SockRef::from(socket).peek(&mut [MaybeUninit::uninit()]);
    matches!(peeked, Err(e) if e.kind() == io::ErrorKind::WouldBlock)
}

/// Tries until it succeeds, or the socket is not ready.
fn poll<T>(
    cx: &mut Context<'_>,
    ready: impl Fn(&mut Context<'_>) -> Poll<io::Result<()>>,
    mut attempt: impl FnMut() -> io::Result<T>,
) -> Poll<io::Result<T>> {
    loop {
        ready!(ready(cx))?;
        match attempt() {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            done => return Poll::Ready(done),
        }
    }
}

impl<S: Socket> AsyncRead for Kept<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let socket = &*self.0;
        poll(cx, |cx| socket.poll_readable(cx), || socket.read(into).map(|_| ()))
    }
}

impl<S: Socket> AsyncWrite for Kept<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let socket = &*self.0;
        poll(cx, |cx| socket.poll_writable(cx), || socket.write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let socket = &*self.0;
        poll(cx, |cx| socket.poll_writable(cx), || socket.write_vectored(pieces))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&*self.0).shutdown(Shutdown::Write))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[tokio::test]
    async fn a_connection_that_was_just_closed_is_noticed() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let connect = async || {
            let socket = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            (Kept::tcp(socket), listener.accept().unwrap().0)
        };
        let ((_kept, probe), peer) = connect().await;
        assert!(probe.is_quiet());
        drop(peer);
        // Nothing ran meanwhile that could have notified the library.
        assert!(!probe.is_quiet());
        let ((_kept, probe), mut peer) = connect().await;
        peer.write_all(b"unasked").unwrap();
        assert!(!probe.is_quiet());
        let ((kept, probe), _peer) = connect().await;
        drop(kept);
        assert!(!probe.is_quiet());
    }
}
