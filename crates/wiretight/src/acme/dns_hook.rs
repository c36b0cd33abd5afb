//! Runs the external command that sets DNS records for dns-01 (RFC 8555, section 8.4).
//!
//! In the sandbox this process cannot start programs. So it starts a child before it enters the sandbox. The child only
//! runs the commands that the configuration had at the start, as `COMMAND present|cleanup NAME VALUE`, the form that many
//! tools use. It validates every request: the command must be a configured one, and name and value must be well-formed.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use wiretight_keys::web::is_host_name;

use crate::program::{self, Helper, Question, Reply};

/// How long a command may take: it returns when the record is visible everywhere.
const PATIENCE: Duration = Duration::from_secs(300);
/// How much of a command's output is reported, in bytes.
const MAX_OUTPUT: usize = 1024;
const MAX_LINE: u64 = 8192;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verb {
    /// Add a record; keep others.
    Present,
    /// Remove the record.
    Cleanup,
}

#[derive(Serialize, Deserialize)]
struct Job {
    command: PathBuf,
    verb: Verb,
    /// The site's name, without `*.`.
    name: String,
    value: String,
}

#[derive(Serialize, Deserialize)]
struct Done {
    error: Option<String>,
}

/// The connection to the child.
pub(crate) struct DnsHook {
    helper: tokio::sync::Mutex<Helper>,
}

impl DnsHook {
    /// Starts the child. Call it before entering the sandbox. `None` if there is no command.
    pub(crate) fn start(commands: &[PathBuf]) -> std::io::Result<Option<DnsHook>> {
        if commands.is_empty() {
            return Ok(None);
        }
        let mut command = program::own_program();
        command.arg("dns-hook").args(commands);
        Ok(Some(DnsHook { helper: Helper::start(command)?.into() }))
    }

    /// Runs a command, one at a time.
    pub(super) async fn run(
        &self,
        command: &Path,
        verb: Verb,
        name: &str,
        value: &str,
    ) -> Result<(), String> {
        let gone = |e: &dyn std::fmt::Display| {
            format!("the process that runs dns_command is gone ({e}). Restart the node.")
        };
        let mut helper = self.helper.lock().await;
        let (command, name, value) = (command.to_owned(), name.to_owned(), value.to_owned());
        let job = Job { command, verb, name, value };
        let asked = helper.ask(&job, MAX_LINE, |_: &Done| false);
        let done = match tokio::time::timeout(PATIENCE * 2, asked).await {
            Ok(done) => done.map_err(|e| gone(&e))?,
            Err(_) => return Err(gone(&"it does not respond")),
        };
        done.error.map_or(Ok(()), Err)
    }
}

/// The child: runs these commands on request until its parent is gone.
pub(crate) fn serve(commands: &[PathBuf]) -> std::io::Result<()> {
    let mut input = BufReader::new(std::io::stdin().lock());
    loop {
        let mut line = String::new();
        if (&mut input).take(MAX_LINE).read_line(&mut line)? == 0 {
            return Ok(());
        }
        if line == "\n" {
            continue;
        }
        let (number, error) = match serde_json::from_str(&line) {
            Ok(Question { number, ask }) => (number, work(commands, &ask).err()),
            Err(error) => (0, Some(error.to_string())),
        };
        let mut output = std::io::stdout().lock();
        output.write_all(&program::line(&Reply { number, answer: Done { error } })?)?;
        output.flush()?;
    }
}

fn work(commands: &[PathBuf], job: &Job) -> Result<(), String> {
    let Some(command) = commands.iter().find(|c| **c == job.command) else {
        return Err(
            "this command was not configured when the node started. Restart the node.".into()
        );
    };
    // SHA-256 in base64url (RFC 8555, section 8.4).
    let is_value = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if !is_host_name(&job.name) || job.value.len() != 43 || !job.value.bytes().all(is_value) {
        return Err("this is not a record for dns-01".into());
    }
    let verb = match job.verb {
        Verb::Present => "present",
        Verb::Cleanup => "cleanup",
    };
    let shown = command.display();
    // A file instead of pipes: a background process of the command must not block us.
    let output =
        tempfile::tempfile().map_err(|e| format!("cannot create a temporary file: {e}"))?;
    let file = || output.try_clone().map_err(|e| e.to_string());
    let mut child = Command::new(command)
        .args([verb, &format!("_acme-challenge.{}.", job.name), &job.value])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(file()?)
        .stderr(file()?)
        .process_group(0)
        .spawn()
        .map_err(|e| format!("cannot run {shown}: {e}"))?;
    let end = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < end => std::thread::sleep(Duration::from_millis(50)),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("{shown} {verb} did not finish within {PATIENCE:?}"));
            }
            Err(error) => return Err(error.to_string()),
        }
    };
    match status.success() {
        true => Ok(()),
        false => Err(format!("{shown} {verb} failed ({status}): {}", tail(output))),
    }
}

/// The end of a command's output, as one line.
fn tail(mut output: std::fs::File) -> String {
    use std::io::{Seek, SeekFrom};
    let length = output.seek(SeekFrom::End(0)).unwrap_or_default();
    let from = length.saturating_sub(MAX_OUTPUT as u64);
    let mut said = Vec::new();
    let read = output.seek(SeekFrom::Start(from)).and_then(|_| output.read_to_end(&mut said));
    if read.is_err() {
        return "(unreadable output)".into();
    }
    let said = String::from_utf8_lossy(&said);
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    let said: String = said.trim().chars().map(printable).collect();
    if said.is_empty() { "(no output)".into() } else { said }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_child_runs_only_configured_commands_with_valid_records() {
        let dir = tempfile::tempdir().unwrap();
        let (script, said) = (dir.path().join("hook"), dir.path().join("said"));
        let text = format!(
            "#!/bin/sh\necho \"$@\" >> {}\n[ \"$1\" = present ] || {{ echo no such record >&2; exit 3; }}\n",
            said.display()
        );
        std::fs::write(&script, text).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&script, mode).unwrap();
        let value = "a".repeat(43);
        let job = |command: &Path, verb, name: &str, value: &str| Job {
            command: command.to_owned(),
            verb,
            name: name.into(),
            value: value.into(),
        };
        let commands = [script.clone()];
        let run = |job| work(&commands, &job);
        assert_eq!(run(job(&script, Verb::Present, "example.org", &value)), Ok(()));
        let error = run(job(&script, Verb::Cleanup, "example.org", &value)).unwrap_err();
        assert!(error.contains("cleanup failed (exit status: 3): no such record"), "{error}");
        let expected = format!(
            "present _acme-challenge.example.org. {value}\ncleanup _acme-challenge.example.org. {value}\n"
        );
        assert_eq!(std::fs::read_to_string(&said).unwrap(), expected);
        // No other command is run.
        for job in [
            job(Path::new("/bin/true"), Verb::Present, "example.org", &value),
            job(&script, Verb::Present, "example.org; rm -rf /", &value),
            job(&script, Verb::Present, "-x", &value),
            job(&script, Verb::Present, "example.org", "$(id)"),
            job(&script, Verb::Present, "example.org", &"a".repeat(44)),
        ] {
            assert!(run(job).is_err());
        }
        assert_eq!(std::fs::read_to_string(&said).unwrap(), expected);
    }
}
