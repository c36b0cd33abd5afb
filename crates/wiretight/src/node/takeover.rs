//! Upgrades: a new process of a node takes over from the running one, with its listening sockets, so that no
//! connection is refused. Open connections stay in the old process until they finish or `drain` has passed.
//!
//! The two meet on `STATE_DIR/takeover.sock`. Each line is JSON, and is answered before the next one is sent:
//!
//! ```text
//! new  {"takeover":1,"version":..} with its program and the proof of it
//!                                          old  {"meets":{"version":..}} or {"refuses":..}
//! new  "go": about to start; the old one shuts down everything but its connections
//!                                          old  {"listening":ADDRESS} with sockets, once per address,
//!                                               "ready"/"unready" with the lock, stdout and stderr
//! new  "ready": it is serving              old  "yours", and begins to drain
//! ```
//!
//! Until the new process is ready, the old one keeps accepting connections. If the new process fails, the old one kills
//! it and starts its control part again. A process with another program must also survive a short trial.
//!
//! With `[release]`, the old process refuses a program that is not proved. The new process runs already when it shows its
//! program, and could show another one: that check is for operators who replaced the file by mistake. `wiretight upgrade
//! FILE` checks a program before it runs.

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use arc_swap::ArcSwap;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::process::{Pid, PidfdFlags, Signal, geteuid, pidfd_open, pidfd_send_signal};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use wiretight_keys::token::hex;
use wiretight_proxy::clock::now;
use wiretight_proxy::net::Listening;

use crate::config::Config;
use crate::logging::chain;
use crate::private_dir::PrivateDir;
use crate::release::kept::Kept;
use crate::release::proof::MAX_PROOF;
use crate::release::{ReleaseProof, Standing, Verdict, own};

/// The version of the protocol.
const PROTOCOL: u32 = 1;
/// How long either side waits for an immediate reply.
const SOON: Duration = Duration::from_secs(10);
/// How long the new process may take from meeting the old one to "go", and from there to "ready"; and how long the old
/// one may take to shut down its control part.
const LONG: Duration = Duration::from_secs(60);
/// How long a new process that failed may take to end by itself, so that it can report why.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How long a process with another program must serve before it gets the node.
const TRIAL: Duration = Duration::from_secs(2);
const MAX_LINE: usize = 4096;
/// The most sockets sent with one line; the kernel allows 253.
const MAX_FDS: usize = 64;

/// The socket where the processes meet.
fn socket_path(state_dir: &Path) -> PathBuf {
    state_dir.join("takeover.sock")
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum New {
    Takeover(u32, String),
    Go,
    Next,
    Ready,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Old {
    Meets { version: String },
    Refuses(String),
    Listening(SocketAddr),
    Ready,
    Unready,
    Yours,
}

/// What the old process hands over.
pub(crate) struct Passed {
    /// Listening sockets, with the connections that wait in their queues.
    pub(crate) listening: Listening,
    /// The lock of the state directory.
    pub(crate) lock: OwnedFd,
    /// Standard output and error: where the log goes.
    pub(crate) output: [OwnedFd; 2],
    /// Whether the old process was ready.
    pub(crate) ready: bool,
}

/// The old process's socket, where it waits for a new process.
pub(crate) struct Door {
    listener: tokio::net::UnixListener,
}

impl Door {
    /// The caller must hold the lock of the state directory.
    pub(crate) fn open(state_dir: &Path) -> anyhow::Result<Door> {
        let path = socket_path(state_dir);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                return Err(e).context(format!("cannot remove the old {}", path.display()));
            }
            _ => {}
        }
        let listener = tokio::net::UnixListener::bind(&path)
            .with_context(|| format!("cannot listen on {}", path.display()))?;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600))?;
        Ok(Door { listener })
    }

    /// Waits for a new process that is about to take over.
    pub(crate) async fn successor(&self, guard: Guard) -> Successor {
        let guard = Arc::new(guard);
        loop {
            let met = match self.listener.accept().await {
                Ok((socket, _)) => {
                    let guard = guard.clone();
                    tokio::task::spawn_blocking(move || Successor::meet(socket, &guard)).await
                }
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            match met {
                Ok(Ok(successor)) => return successor,
                Ok(Err(error)) => tracing::warn!(%error, "an upgrade failed before it began"),
                Err(error) => tracing::warn!(%error, "an upgrade failed before it began"),
            }
        }
    }
}

/// What the next process must be.
pub(crate) struct Guard {
    pub(crate) config: Arc<ArcSwap<Config>>,
    pub(crate) state: PrivateDir,
}

impl Guard {
    /// Judges the program of a new process by the policy. `proof`: of its program, unverified.
    fn check(&self, program: Option<&File>, proof: Option<&File>) -> Result<(), String> {
        let config = self.config.load();
        let Some(settings) = &config.release else { return Ok(()) };
        let program =
            program.ok_or("the new process is of a release that does not show its program")?;
        let artifact = regular(program).and_then(own::program);
        let artifact = artifact.map_err(|e| format!("cannot read the new program: {e}"))?;
        let proof = proof.map(read_proof).transpose()?;
        let sha256 = hex(artifact.sha256.as_bytes());
        match own::judge(Some(settings), &self.state, proof.as_ref(), artifact, now()) {
            Verdict::Proved(_) | Verdict::NoPolicy => Ok(()),
            Verdict::Unproved(why) if Kept::read(&self.state).is_ok_and(|k| k.accepts(&sha256)) => {
                tracing::warn!(sha256, why, "a program that is not proved may take over");
                Ok(())
            }
            Verdict::Unproved(why) => Err(format!(
                "the running process refuses this program, which is not proved to be a release: {why}"
            )),
        }
    }
}

fn regular(mut file: &File) -> io::Result<&File> {
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    file.rewind()?;
    Ok(file)
}

fn read_proof(file: &File) -> Result<ReleaseProof, String> {
    let mut bytes = Vec::new();
    let read =
        regular(file).and_then(|file| file.take(MAX_PROOF as u64 + 1).read_to_end(&mut bytes));
    read.map_err(|e| format!("cannot read the proof of the new program: {e}"))?;
    ReleaseProof::parse(&bytes).map_err(|e| format!("the proof of the new program: {}", chain(&e)))
}

/// The new process, as the old one sees it. Its calls block.
pub(crate) struct Successor {
    socket: UnixStream,
    process: OwnedFd,
    /// Whether it runs another program than this process.
    other: bool,
    pub(crate) pid: Pid,
    pub(crate) version: String,
}

impl Successor {
    fn meet(socket: tokio::net::UnixStream, guard: &Guard) -> io::Result<Successor> {
        let socket = socket.into_std()?;
        socket.set_nonblocking(false)?;
        limit(&socket, SOON)?;
        let who = socket_peercred(&socket)?;
        if who.uid != geteuid() && !who.uid.is_root() {
            return Err(io::Error::other("the new process belongs to another user"));
        }
        let process = pidfd_open(who.pid, PidfdFlags::empty())?;
        let (New::Takeover(protocol, version), fds) = recv(&socket)? else {
            return Err(confused());
        };
        let mut files = fds.into_iter().map(File::from);
        let (program, proof) = (files.next(), files.next());
        if protocol != PROTOCOL {
            let why = format!(
                "the running process uses version {PROTOCOL} of the takeover protocol, this one version {protocol}: restart the node instead"
            );
            send(&socket, &Old::Refuses(why), &[])?;
            let why = format!("the new process uses version {protocol} of the takeover protocol");
            return Err(io::Error::other(why));
        }
        if let Err(why) = guard.check(program.as_ref(), proof.as_ref()) {
            let short = why.chars().take(MAX_LINE / 8).collect();
            send(&socket, &Old::Refuses(short), &[])?;
            return Err(io::Error::other(why));
        }
        send(&socket, &Old::Meets { version: env!("CARGO_PKG_VERSION").into() }, &[])?;
        limit(&socket, LONG)?;
        let other = program.is_none_or(|program| !is_own(&program));
        match recv(&socket)?.0 {
            New::Go => Ok(Successor { socket, process, other, pid: who.pid, version }),
            _ => Err(confused()),
        }
    }

    /// Hands everything over, and waits until the new process is ready.
    pub(crate) fn pass(&self, passed: &Passed) -> io::Result<()> {
        for (addr, sockets) in &passed.listening {
            for some in sockets.chunks(MAX_FDS) {
                let fds: Vec<_> = some.iter().map(AsFd::as_fd).collect();
                send(&self.socket, &Old::Listening(*addr), &fds)?;
                let New::Next = recv(&self.socket)?.0 else { return Err(confused()) };
            }
        }
        let fds = [passed.lock.as_fd(), passed.output[0].as_fd(), passed.output[1].as_fd()];
        send(&self.socket, if passed.ready { &Old::Ready } else { &Old::Unready }, &fds)?;
        match recv(&self.socket)?.0 {
            New::Ready => Ok(()),
            _ => Err(confused()),
        }
    }

    /// Waits until a process with another program has served for a while. `admin`: its admin socket.
    pub(crate) fn survives(&self, admin: &Path) -> io::Result<()> {
        if !self.other {
            return Ok(());
        }
        let seconds = TRIAL.as_secs();
        tracing::info!(seconds, "the new process is ready: it gets the node after a trial");
        if self.ends_within(TRIAL) {
            let why = format!("it ended within {seconds} s after it was ready");
            return Err(io::Error::other(why));
        }
        answers(admin).map_err(|e| io::Error::other(format!("it no longer answers: {e}")))
    }

    /// Confirms that the new process owns the node now.
    pub(crate) fn yours(self) {
        // If the message is lost, the new process sees the end of the connection instead.
        let _ = send(&self.socket, &Old::Yours, &[]);
    }

    /// Makes sure that the new process has ended and its files are closed: two processes that both act as the node would
    /// be worse than none.
    pub(crate) fn end(&self) {
        if !self.ends_within(LAST_WORDS) {
            let _ = pidfd_send_signal(&self.process, Signal::KILL);
            self.ends_within(SOON);
        }
    }

    fn ends_within(&self, patience: Duration) -> bool {
        let mut fds = [PollFd::new(&self.process, PollFlags::IN)];
        let patience = Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: 0 };
        poll(&mut fds, Some(&patience)).is_ok_and(|ended| ended > 0)
    }
}

/// The running process, as the new one sees it.
pub(crate) struct Predecessor {
    socket: UnixStream,
    pub(crate) version: String,
}

impl Predecessor {
    /// Meets the running process, which changes nothing yet. `runs`: whether a node is running.
    pub(crate) fn meet(
        state_dir: &Path,
        release: &Standing,
        runs: impl Fn() -> bool,
    ) -> anyhow::Result<Predecessor> {
        let own = own_files(release).context("cannot show the own program")?;
        let (path, end) = (socket_path(state_dir), Instant::now() + LONG);
        loop {
            match Predecessor::try_meet(&path, &own) {
                // Another upgrade is in progress, or the node is starting or stopping.
                Err(e) if is_gone(&e) && Instant::now() < end && runs() => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(e) if is_gone(&e) => {
                    return Err(e).context(format!(
                        "no running process to take over from (no answer on {}): start the node with `wiretight run`",
                        path.display()
                    ));
                }
                met => {
                    return met.context(
                        "the running process does not respond or refuses the upgrade (it may hang, or belong to another user): check its log, or restart the node",
                    );
                }
            }
        }
    }

    fn try_meet(path: &Path, own: &[File]) -> io::Result<Predecessor> {
        let socket = UnixStream::connect(path)?;
        limit(&socket, LONG)?;
        let own: Vec<_> = own.iter().map(AsFd::as_fd).collect();
        send(&socket, &New::Takeover(PROTOCOL, env!("CARGO_PKG_VERSION").into()), &own)?;
        match recv(&socket)?.0 {
            Old::Meets { version } => Ok(Predecessor { socket, version }),
            Old::Refuses(why) => Err(io::Error::other(why)),
            _ => Err(confused()),
        }
    }

    /// Makes the old process release the state directory, and receives its sockets.
    pub(crate) fn take(&self) -> anyhow::Result<Passed> {
        let context =
            "the running process did not hand over its sockets and keeps running: check its log";
        self.take_all().context(context)
    }

    fn take_all(&self) -> io::Result<Passed> {
        send(&self.socket, &New::Go, &[])?;
        let mut listening = Listening::new();
        loop {
            let (said, fds) = recv(&self.socket)?;
            let ready = match said {
                Old::Listening(addr) => {
                    let sockets = fds.into_iter().map(TcpListener::from);
                    match listening.iter_mut().find(|(a, _)| *a == addr) {
                        Some((_, all)) => all.extend(sockets),
                        None => listening.push((addr, sockets.collect())),
                    }
                    send(&self.socket, &New::Next, &[])?;
                    continue;
                }
                Old::Ready => true,
                Old::Unready => false,
                _ => return Err(confused()),
            };
            let [lock, out, err] = <[OwnedFd; 3]>::try_from(fds).map_err(|_| confused())?;
            return Ok(Passed { listening, lock, output: [out, err], ready });
        }
    }

    /// Tells the old process that this one is ready. From then on this process owns the node.
    pub(crate) fn ready(self) -> anyhow::Result<()> {
        send(&self.socket, &New::Ready, &[])
            .context("the previous process no longer waits for this one")?;
        match recv(&self.socket) {
            Ok((Old::Yours, _)) => Ok(()),
            Ok(_) => Err(confused().into()),
            // The old process has ended.
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok(()),
            Err(e) => Err(e).context("the previous process does not confirm the takeover"),
        }
    }
}

/// This process's program, and its proof if there is one.
fn own_files(release: &Standing) -> io::Result<Vec<File>> {
    let mut files = vec![File::open("/proc/self/exe")?];
    if let Some(text) = &release.proof {
        let mut proof = File::from(memfd_create(c"proof", MemfdFlags::CLOEXEC)?);
        proof.write_all(text.as_bytes())?;
        files.push(proof);
    }
    Ok(files)
}

/// Whether the file is the program of this process.
fn is_own(program: &File) -> bool {
    let id = |is: io::Result<Metadata>| is.map(|is| (is.dev(), is.ino())).ok();
    let own = id(std::fs::metadata("/proc/self/exe"));
    own.is_some() && own == id(program.metadata())
}

/// Whether a process serves the admin socket.
fn answers(admin: &Path) -> io::Result<()> {
    let mut socket = UnixStream::connect(admin)?;
    limit(&socket, TRIAL)?;
    socket.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut start = [0; 12];
    socket.read_exact(&mut start)?;
    match &start {
        b"HTTP/1.1 200" => Ok(()),
        _ => Err(confused()),
    }
}

/// Whether the error means that no process is listening, or that it has gone away.
fn is_gone(error: &io::Error) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound, UnexpectedEof};
    let gone = [BrokenPipe, ConnectionRefused, ConnectionReset, NotFound, UnexpectedEof];
    gone.contains(&error.kind())
}

fn confused() -> io::Error {
    io::Error::new(ErrorKind::InvalidData, "the other process sent an unexpected message")
}

fn limit(socket: &UnixStream, patience: Duration) -> io::Result<()> {
    socket.set_read_timeout(Some(patience))?;
    socket.set_write_timeout(Some(SOON))
}

/// Sends one line with descriptors.
fn send(socket: &UnixStream, line: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut with = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !with.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("too many sockets in one message"));
    }
    let sent = sendmsg(socket, &[IoSlice::new(&bytes)], &mut with, SendFlags::NOSIGNAL)?;
    // A line this short is sent completely or not at all.
    if sent == bytes.len() { Ok(()) } else { Err(ErrorKind::WriteZero.into()) }
}

/// Receives one line with descriptors. The peer sends nothing more until it is answered.
fn recv<T: DeserializeOwned>(socket: &UnixStream) -> io::Result<(T, Vec<OwnedFd>)> {
    let (mut line, mut fds) = (Vec::new(), Vec::new());
    while line.last() != Some(&b'\n') {
        let mut some = [0; MAX_LINE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut with = RecvAncillaryBuffer::new(&mut space);
        let buffers = &mut [IoSliceMut::new(&mut some)];
        let n = recvmsg(socket, buffers, &mut with, RecvFlags::CMSG_CLOEXEC)?.bytes;
        for message in with.drain() {
            if let RecvAncillaryMessage::ScmRights(some) = message {
                fds.extend(some);
            }
        }
        if n == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        line.extend_from_slice(&some[..n]);
        if line.len() > MAX_LINE {
            return Err(confused());
        }
    }
    Ok((serde_json::from_slice(&line)?, fds))
}
