//! Starts another process of this program: the rules keeper, the child for DNS commands, or the next process in an
//! upgrade.
//!
//! A [`Helper`] serves requests over its standard input and output. Requests and responses are lines of JSON with
//! numbers. So a request may be cancelled: the next one starts on a new line, and accepts only its own response.

use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream};

/// A command for this binary, even if its file was replaced, with the name that this process was started by.
pub(crate) fn own_program() -> Command {
    let mut command = Command::new("/proc/self/exe");
    if let Some(name) = std::env::args_os().next() {
        command.arg0(name);
    }
    command
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Question<Q> {
    /// From 1.
    pub(crate) number: u64,
    pub(crate) ask: Q,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Reply<A> {
    /// The request's number; 0 if it is a response to none.
    pub(crate) number: u64,
    pub(crate) answer: A,
}

/// A message as a line.
pub(crate) fn line(message: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(message)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// How long a supervisor waits before it restarts a worker.
const RESTART: Duration = Duration::from_secs(1);

/// Runs a worker, with this process's standard input and output, until it succeeds or the node is gone. `worker` makes
/// its command from whether it replaces one that died. `hopeless`: the exit status of a first worker that cannot start.
pub(crate) fn supervise(
    worker: impl Fn(bool) -> Command,
    hopeless: Option<u8>,
    mut died: impl FnMut(ExitStatus),
) -> anyhow::Result<ExitCode> {
    let mut again = false;
    loop {
        let ended = worker(again).status()?;
        match ended.code() {
            Some(0) => return Ok(ExitCode::SUCCESS),
            Some(code) if hopeless.is_some_and(|h| code == i32::from(h)) && !again => {
                return Ok(ExitCode::FAILURE);
            }
            _ => {}
        }
        died(ended);
        again = true;
        std::thread::sleep(RESTART);
        let input = io::stdin();
        let mut node = [PollFd::new(&input, PollFlags::empty())];
        poll(&mut node, Some(&Timespec::default()))?;
        if node[0].revents().contains(PollFlags::HUP) {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// Reads the available bytes of requests, at most `max`. Returns false at end of file.
pub(crate) fn read_some(input: impl AsFd, asked: &mut Vec<u8>, max: usize) -> anyhow::Result<bool> {
    let mut buffer = vec![0; 64 << 10];
    match rustix::io::read(input, &mut buffer[..]) {
        Ok(0) => Ok(false),
        Ok(n) if asked.len() + n > max => anyhow::bail!("longer than {max} bytes"),
        Ok(n) => {
            asked.extend(&buffer[..n]);
            Ok(true)
        }
        Err(Errno::AGAIN | Errno::INTR) => Ok(true),
        Err(e) => Err(e.into()),
    }
}

/// The connection to a child process.
pub(crate) struct Helper {
    socket: UnixStream,
    asked: u64,
}

impl Helper {
    /// Starts the child. Call this before entering the sandbox.
    pub(crate) fn start(mut command: Command) -> io::Result<Helper> {
        let (socket, theirs) = UnixStream::pair()?;
        command
            .stdin(Stdio::from(OwnedFd::from(theirs.try_clone()?)))
            .stdout(Stdio::from(OwnedFd::from(theirs)))
            // Signals from the terminal are for the node only; the child ends when the node does.
            .process_group(0)
            .spawn()?;
        // `command` holds the other end of the socket, which only the child may hold. It is dropped here.
        Ok(Helper { socket, asked: 0 })
    }

    /// Waits for what a child sends before the first request.
    pub(crate) fn greeting<A: DeserializeOwned>(
        &mut self,
        patience: Duration,
        max: usize,
    ) -> io::Result<A> {
        self.socket.set_nonblocking(false)?;
        self.socket.set_read_timeout(Some(patience))?;
        // Byte by byte, because bytes after the line belong to the next response.
        let (mut line, mut byte) = (Vec::new(), [0]);
        while byte != [b'\n'] && line.len() < max {
            self.socket.read_exact(&mut byte)?;
            line.extend(byte);
        }
        self.socket.set_read_timeout(None)?;
        Ok(serde_json::from_slice::<Reply<A>>(&line)?.answer)
    }

    /// Sends a request and waits for the response, of at most `max` bytes. Repeats the request if an answer is
    /// `forgetful`: the child has lost earlier requests. The caller sets a deadline.
    pub(crate) async fn ask<A: DeserializeOwned>(
        &mut self,
        ask: &(impl Serialize + ?Sized),
        max: u64,
        forgetful: impl Fn(&A) -> bool,
    ) -> io::Result<A> {
        self.asked += 1;
        let question = line(&Question { number: self.asked, ask })?;
        self.socket.set_nonblocking(true)?;
        // A handle for the current runtime; another runtime may have made the last request.
        let socket = tokio::net::UnixStream::from_std(self.socket.try_clone()?)?;
        let mut stream = BufStream::new(socket);
        'asked: loop {
            stream.write_all(b"\n").await?;
            stream.write_all(&question).await?;
            stream.flush().await?;
            loop {
                let mut answer = Vec::new();
                (&mut stream).take(max).read_until(b'\n', &mut answer).await?;
                if answer.is_empty() {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
                match serde_json::from_slice(&answer) {
                    Ok(Reply { answer, .. }) if forgetful(&answer) => continue 'asked,
                    Ok(Reply { number, answer }) if number == self.asked => return Ok(answer),
                    // A response to a cancelled request, or half a line from a process that died.
                    Ok(_) | Err(_) => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn only_the_response_to_a_request_is_accepted() {
        let script = r#"
            read -r _; read -r first
            read -r _; read -r second
            printf '%s\n' '{"number":1,"answer":"late"}' '{"numb' '{"number":0,"answer":"lost"}'
            read -r _; read -r third
            printf '%s\n' "{\"number\":2,\"answer\":\"$(echo "$second$third" | tr -d '"')\"}"
        "#;
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let mut helper = Helper::start(command).unwrap();
        let lost = |answer: &String| answer == "lost";
        let cancelled = helper.ask("one", 100, lost);
        assert!(timeout(Duration::from_millis(100), cancelled).await.is_err());
        let asked = "{number:2,ask:two}";
        assert_eq!(helper.ask("two", 100, lost).await.unwrap(), format!("{asked}{asked}"));
        let gone = helper.ask("three", 100, lost).await.unwrap_err();
        let ended = [ErrorKind::UnexpectedEof, ErrorKind::BrokenPipe, ErrorKind::ConnectionReset];
        assert!(ended.contains(&gone.kind()), "{gone}");
    }
}
