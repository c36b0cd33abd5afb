//! Other programs as peers: finding them, and the files that they need.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::Ca;

/// Whether a program is not installed. Prints that and lets the test pass, except in CI, where it must be installed.
pub fn missing(program: &str) -> bool {
    let dirs = std::env::var("PATH").unwrap_or_default();
    let dirs = dirs.split(':').chain(["/usr/sbin", "/usr/local/sbin"]);
    if dirs.into_iter().any(|dir| Path::new(dir).join(program).exists()) {
        return false;
    }
    assert!(std::env::var_os("CI").is_none(), "{program} is not installed, and CI needs it");
    // Written directly to stderr, because the test harness captures the output of a passing test.
    let _ = writeln!(std::io::stderr(), "skipped: {program} is not installed");
    true
}

/// An identity and the root certificate as PEM files.
pub struct Pems {
    pub dir: TempDir,
    pub chain: PathBuf,
    pub key: PathBuf,
    pub root: PathBuf,
}

impl Pems {
    pub fn new(ca: &Ca, id: &str) -> Pems {
        let dir = tempfile::tempdir().unwrap();
        let (chain, key) = ca.issue(id, 3600);
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        Pems {
            chain: file("chain.pem", &wiretight_keys::x509::to_pem(&chain)),
            key: file("key.pem", &key.to_pem()),
            root: file("root.pem", &wiretight_keys::x509::to_pem([&ca.root])),
            dir,
        }
    }
}

/// A child process that is killed on drop, with pipes for standard input and output.
pub struct Program(pub Child);

impl Program {
    pub fn start(command: &mut Command) -> Program {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        Program(command.spawn().unwrap())
    }

    /// The same with its output in a file.
    pub fn start_into(command: &mut Command, log: File) -> Program {
        Program(command.stdin(Stdio::null()).stdout(log).stderr(Stdio::null()).spawn().unwrap())
    }

    /// Sends a word through it and checks the echo.
    pub fn ping(&mut self, word: &[u8]) {
        self.0.stdin.as_mut().unwrap().write_all(word).unwrap();
        let mut answer = vec![0; word.len()];
        let out = self.0.stdout.as_mut().unwrap();
        out.read_exact(&mut answer).unwrap_or_else(|e| panic!("no answer: {e}"));
        assert_eq!(answer, word);
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
