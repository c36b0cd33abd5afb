//! The plaintext side of a session: the local program's connection, or the backend's.

use std::io::{self, IoSlice, Read};
use std::pin::Pin;
use std::task::{Context, Poll};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream, tcp, unix};

/// A plaintext connection.
pub(crate) enum App {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl App {
    /// Reads what has arrived, without waiting; `None` if there is nothing (also on end of file or error, which the
    /// next read will return).
    pub(crate) fn try_read(&self, buf: &mut [u8]) -> Option<usize> {
        // Ask the kernel directly: the reactor may not have noticed the first bytes of a new connection.
        let socket = match self {
            App::Tcp(s) => SockRef::from(s),
            App::Unix(s) => SockRef::from(s),
        };
        (&*socket).read(buf).ok().filter(|n| *n > 0)
    }

    /// Drops the connection with a TCP RST, so that the program sees an abort and not an orderly close. A Unix socket
    /// has no RST and is just closed.
    pub(crate) fn abort(self) {
        if let App::Tcp(s) = self {
            let _ = s.set_zero_linger();
        }
    }

    pub(crate) fn split(&mut self) -> (AppReader<'_>, AppWriter<'_>) {
        match self {
            App::Tcp(s) => {
                let (r, w) = s.split();
                (AppReader::Tcp(r), AppWriter::Tcp(w))
            }
            App::Unix(s) => {
                let (r, w) = s.split();
                (AppReader::Unix(r), AppWriter::Unix(w))
            }
        }
    }
}

pub(crate) enum AppReader<'a> {
    Tcp(tcp::ReadHalf<'a>),
    Unix(unix::ReadHalf<'a>),
}

impl AppReader<'_> {
    /// Resolves when the program aborts (RST, or a dead network), not on an orderly close. Reads nothing.
    pub(crate) async fn aborted(&self) -> io::Error {
        let (ready, error) = match self {
            AppReader::Tcp(r) => (r.ready(Interest::ERROR).await, r.as_ref().take_error()),
            AppReader::Unix(r) => (r.ready(Interest::ERROR).await, r.as_ref().take_error()),
        };
        let error = ready.and(error).map(|e| e.unwrap_or(io::ErrorKind::ConnectionReset.into()));
        error.unwrap_or_else(|e| e)
    }

    pub(crate) fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            AppReader::Tcp(r) => r.as_ref().poll_read_ready(cx),
            AppReader::Unix(r) => r.as_ref().poll_read_ready(cx),
        }
    }

    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self {
            AppReader::Tcp(r) => Pin::new(r).poll_read(cx, buf),
            AppReader::Unix(r) => Pin::new(r).poll_read(cx, buf),
        }
    }
}

pub(crate) enum AppWriter<'a> {
    Tcp(tcp::WriteHalf<'a>),
    Unix(unix::WriteHalf<'a>),
}

impl AppWriter<'_> {
    /// Writes what the program accepts without waiting; afterwards the slices contain the rest. Calls `wrote` for each
    /// part.
    pub(crate) fn write_at_once(
        &mut self,
        slices: &mut &mut [IoSlice<'_>],
        mut wrote: impl FnMut(usize),
    ) -> io::Result<()> {
        IoSlice::advance_slices(slices, 0); // drops empty ones
        while !slices.is_empty() {
            let written = match self {
                AppWriter::Tcp(w) => w.try_write_vectored(slices),
                AppWriter::Unix(w) => w.try_write_vectored(slices),
            };
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    wrote(n);
                    IoSlice::advance_slices(slices, n);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Writes all of the slices, waiting for the program as needed. Calls `wrote` for each part.
    pub(crate) async fn write_all(
        &mut self,
        mut slices: &mut [IoSlice<'_>],
        mut wrote: impl FnMut(usize),
    ) -> io::Result<()> {
        IoSlice::advance_slices(&mut slices, 0); // drops empty ones
        while !slices.is_empty() {
            let n = std::future::poll_fn(|cx| match self {
                AppWriter::Tcp(w) => Pin::new(w).poll_write_vectored(cx, slices),
                AppWriter::Unix(w) => Pin::new(w).poll_write_vectored(cx, slices),
            })
            .await?;
            if n == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            wrote(n);
            IoSlice::advance_slices(&mut slices, n);
        }
        Ok(())
    }

    /// Waits until the kernel has sent everything that was written, because an abort would discard the rest. (Data
    /// written to a Unix socket is already with the program.)
    pub(crate) async fn drained(&self) -> io::Result<()> {
        let AppWriter::Tcp(socket) = self else { return Ok(()) };
        let socket = SockRef::from(socket.as_ref());
        socket.set_tcp_notsent_lowat(1)?; // from now on, writable means that everything is sent
        // A duplicate descriptor, so that the reactor asks the kernel for readiness again.
        let twin = TcpStream::from_std(socket.try_clone()?.into())?;
        twin.writable().await
    }

    /// Closes this direction in order: `shutdown(SHUT_WR)`.
    pub(crate) async fn shutdown(&mut self) -> io::Result<()> {
        std::future::poll_fn(|cx| match self {
            AppWriter::Tcp(w) => Pin::new(w).poll_shutdown(cx),
            AppWriter::Unix(w) => Pin::new(w).poll_shutdown(cx),
        })
        .await
    }
}
