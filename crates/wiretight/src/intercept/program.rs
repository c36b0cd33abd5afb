//! Runs `nft` and `ip` with a clean environment.

use std::io::{ErrorKind, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{InterceptError, MachineError};

/// How long a program may take; enough for the largest rules on a slow machine.
const PATIENCE: Duration = Duration::from_secs(20);
const MAX_OUTPUT: u64 = 64 << 20;
pub(super) const MAX_ERROR: u64 = 4096;

pub(super) enum ProgramError {
    /// Not in PATH.
    Missing,
    /// It lacks a capability.
    NotPermitted,
    /// It failed, or cannot be run.
    Refused(String),
    /// It timed out and was killed.
    Late(String),
}

impl ProgramError {
    pub(super) fn explain(
        self,
        missing: MachineError,
        refused: impl FnOnce(String) -> MachineError,
    ) -> InterceptError {
        match self {
            ProgramError::Missing => missing.into(),
            ProgramError::NotPermitted => MachineError::NotPermitted.into(),
            ProgramError::Refused(why) => refused(why).into(),
            ProgramError::Late(what) => InterceptError::Own(format!(
                "nft did not finish and was killed, so it is unknown whether the rules are in force: {what}"
            )),
        }
    }
}

pub(super) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // `Command` would also search other directories when PATH is empty.
    let mut candidates = std::env::split_paths(&path).filter(|dir| dir.is_absolute());
    candidates.find_map(|dir| Some(dir.join(name)).filter(|program| program.is_file()))
}

/// Starts a program with pipes for input and output.
pub(super) fn start(name: &str, args: &[&str]) -> Result<Child, ProgramError> {
    let program = find(name).ok_or(ProgramError::Missing)?;
    let started = Command::new(&program)
        .args(args)
        .env_clear()
        .env("LC_ALL", "C")
        // nft would save its history there.
        .env("HOME", "/dev/null")
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    started.map_err(|e| match e.kind() {
        ErrorKind::NotFound => ProgramError::Missing,
        _ => ProgramError::Refused(format!("cannot run {}: {e}", program.display())),
    })
}

/// Runs a program and returns its standard output.
pub(super) fn run(name: &str, args: &[&str], input: &str) -> Result<Vec<u8>, ProgramError> {
    let failed = |e: std::io::Error| ProgramError::Refused(format!("cannot wait for {name}: {e}"));
    let mut child = start(name, args)?;
    let (output, error) = (child.stdout.take(), child.stderr.take());
    let output = std::thread::spawn(move || read(output, MAX_OUTPUT));
    let error = std::thread::spawn(move || read(error, MAX_ERROR));
    // In a thread, so that the deadline also applies to a program that does not read its input. A write error is
    // ignored: the program reports why it failed on standard error.
    let (stdin, input) = (child.stdin.take(), input.as_bytes().to_vec());
    std::thread::spawn(move || stdin.map(|mut stdin| stdin.write_all(&input)));
    let end = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait().map_err(failed)? {
            Some(status) => break status,
            None if Instant::now() < end => std::thread::sleep(Duration::from_millis(1)),
            None => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(ProgramError::Late(format!("{name} {}", args.join(" "))));
            }
        }
    };
    let output = output.join().unwrap_or_default();
    if status.success() {
        return Ok(output);
    }
    let said = error.join().unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    if said.contains("Operation not permitted") {
        return Err(ProgramError::NotPermitted);
    }
    let said: Vec<&str> = said.split_whitespace().collect();
    Err(ProgramError::Refused(said.join(" ").chars().take(500).collect()))
}

/// Reads everything and keeps the first `most` bytes.
pub(super) fn read(from: Option<impl Read>, most: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let Some(mut from) = from else { return bytes };
    let _ = from.by_ref().take(most).read_to_end(&mut bytes);
    // Discard the rest, so that the writer does not block.
    let _ = std::io::copy(&mut from, &mut std::io::sink());
    bytes
}
