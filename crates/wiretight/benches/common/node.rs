//! The measured daemon: its configuration, and waiting until it is ready.

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::bail;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

use super::process::{Process, Run, first_line};

pub(crate) const WIRETIGHT: &str = env!("CARGO_BIN_EXE_wiretight");

/// The binary that cargo built.
pub(crate) fn version() -> Option<String> {
    let version = first_line(Command::new(WIRETIGHT).arg("--version"))?;
    let commit = first_line(
        Command::new("git")
            .args(["describe", "--always", "--dirty"])
            .current_dir(env!("CARGO_MANIFEST_DIR")),
    );
    Some(format!("{version}, commit {}", commit.as_deref().unwrap_or("unknown")))
}

/// Writes the configuration of a node; `rest` continues its `[node]` section.
pub(crate) fn config(
    run: &Run<'_>,
    name: &str,
    admin: SocketAddr,
    rest: &str,
) -> anyhow::Result<PathBuf> {
    let state = run.folder.join(name);
    let text = format!(
        "[node]
name = \"{name}\"
trust_domain = \"bench.test\"
state_dir = {state:?}
admin = \"{admin}\"
{rest}"
    );
    run.file(&format!("{name}.toml"), &text)
}

/// Waits for `/readyz` at the admin address.
pub(crate) async fn wait_until_ready(admin: SocketAddr, process: &Process) -> anyhow::Result<()> {
    let end = Instant::now() + Duration::from_secs(20);
    while Instant::now() < end {
        if let Ok(Ok(true)) = timeout(Duration::from_secs(1), is_ready(admin)).await {
            return Ok(());
        }
        sleep(Duration::from_millis(50)).await;
    }
    bail!("{admin}/readyz does not answer 200\n{}", process.log())
}

async fn is_ready(admin: SocketAddr) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(admin).await?;
    let request = format!("GET /readyz HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await?;
    Ok(answer.starts_with(b"HTTP/1.") && answer.ends_with(b" 200"))
}
