//! A lower bound: a relay without TLS, run as a separate process by starting this program again.
//!
//! It does only what every relay must do, in one thread: wait until a socket is readable, read into a pooled 256 KiB
//! buffer, write, return the buffer.

use std::{
    cell::RefCell,
    env, io,
    net::SocketAddr,
    process::{Command, Stdio},
};

use anyhow::Context;
use tokio::{
    io::AsyncWriteExt,
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

const BUFFER: usize = 256 * 1024;
const VERB: &str = "null-relay";

/// The command that runs a null relay from `listen` to `to`.
pub(crate) fn command(listen: SocketAddr, to: SocketAddr) -> io::Result<Command> {
    let mut command = Command::new(env::current_exe()?);
    command.arg(VERB).arg(listen.to_string()).arg(to.to_string()).stdin(Stdio::null());
    Ok(command)
}

/// Listener and target, if this process was started with [`command`].
pub(crate) fn asked_for() -> anyhow::Result<Option<(SocketAddr, SocketAddr)>> {
    let args: Vec<String> = env::args().skip(1).collect();
    match &args[..] {
        [verb, listen, to] if verb == VERB => {
            Ok(Some((listen.parse().context(VERB)?, to.parse().context(VERB)?)))
        }
        _ => Ok(None),
    }
}

/// Relays until killed.
pub(crate) fn run(listen: SocketAddr, to: SocketAddr) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(listen).await?;
        loop {
            let (client, _) = listener.accept().await?;
            tokio::spawn(relay(client, to));
        }
    })
}

async fn relay(client: TcpStream, to: SocketAddr) -> io::Result<()> {
    let server = TcpStream::connect(to).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    tokio::try_join!(copy(client_read, server_write), copy(server_read, client_write))?;
    Ok(())
}

/// Copies until the end of `from`, and then closes `to`. Uses no buffer while there is nothing to read.
async fn copy(from: OwnedReadHalf, mut to: OwnedWriteHalf) -> io::Result<()> {
    loop {
        from.readable().await?;
        let mut buffer = take_buffer();
        let end = loop {
            match from.try_read(&mut buffer) {
                Ok(0) => break true,
                Ok(read) => to.write_all(&buffer[..read]).await?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break false,
                Err(error) => return Err(error),
            }
        };
        POOL.with_borrow_mut(|pool| pool.push(buffer));
        if end {
            return to.shutdown().await;
        }
    }
}

thread_local! {
    static POOL: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

fn take_buffer() -> Box<[u8]> {
    POOL.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; BUFFER].into_boxed_slice())
}
