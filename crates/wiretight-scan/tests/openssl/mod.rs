//! `openssl s_server` on a free loopback port with a new key, for the duration of a test.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use wiretight_scan::Start;
use wiretight_scan::active::{Pace, Prober};

/// Whether OpenSSL is installed; in CI it must be.
pub fn have_openssl() -> bool {
    let found = Command::new("openssl").arg("version").output().is_ok();
    assert!(found || std::env::var_os("CI").is_none(), "no openssl in PATH");
    if !found {
        eprintln!("skipped: no openssl in PATH");
    }
    found
}

#[derive(Clone, Copy)]
#[allow(dead_code, reason = "each test file has its own copy")]
pub enum Keys {
    Rsa,
    Ecdsa,
    Ed25519,
}

pub struct Server {
    child: Child,
    pub address: SocketAddr,
    folder: PathBuf,
}

impl Server {
    /// Starts it with a self-signed certificate and these arguments.
    pub fn start(keys: Keys, arguments: &[&str]) -> Self {
        let folder = std::env::temp_dir().join(format!("wiretight-scan-{}", unique()));
        std::fs::create_dir(&folder).unwrap();
        let key: &[&str] = match keys {
            Keys::Rsa => &["-newkey", "rsa:2048"],
            Keys::Ecdsa => &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"],
            Keys::Ed25519 => &["-newkey", "ed25519"],
        };
        let (cert, pem) = (folder.join("cert.pem"), folder.join("key.pem"));
        let made = Command::new("openssl")
            .args(["req", "-x509", "-nodes", "-subj", "/CN=localhost", "-days", "2"])
            .args(key)
            .arg("-out")
            .arg(&cert)
            .arg("-keyout")
            .arg(&pem)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let mut child = Command::new("openssl")
            .args(["s_server", "-accept", "127.0.0.1:0", "-cert"])
            .arg(&cert)
            .arg("-key")
            .arg(&pem)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // "ACCEPT 127.0.0.1:41234"
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("ACCEPT ")?.trim().parse().ok())
            .expect("s_server prints its address");
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address, folder }
    }

    pub fn prober(&self) -> Prober {
        prober(self.address)
    }

    /// The certificate in DER.
    #[allow(dead_code, reason = "each test file has its own copy")]
    pub fn certificate(&self) -> Vec<u8> {
        der(&self.folder.join("cert.pem"))
    }
}

impl Server {
    /// The path of the key in PEM.
    #[allow(dead_code, reason = "each test file has its own copy")]
    pub fn key(&self) -> PathBuf {
        self.folder.join("key.pem")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

pub fn prober(address: SocketAddr) -> Prober {
    let pace = Pace::new(4);
    Prober::new(
        address,
        Some("localhost".into()),
        Start::Direct,
        Duration::from_secs(5),
        std::sync::Arc::new(pace),
    )
}

fn der(pem: &Path) -> Vec<u8> {
    let out = Command::new("openssl").args(["x509", "-outform", "der", "-in"]).arg(pem).output();
    out.unwrap().stdout
}

fn unique() -> String {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed))
}

/// A file with a CA certificate.
#[allow(dead_code, reason = "each test file has its own copy")]
pub fn authority() -> PathBuf {
    let file = std::env::temp_dir().join(format!("wiretight-scan-{}.pem", unique()));
    let key = file.with_extension("key");
    let made = Command::new("openssl")
        .args(["req", "-x509", "-nodes", "-subj", "/O=Example/CN=An Authority", "-days", "2"])
        .args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-out"])
        .arg(&file)
        .arg("-keyout")
        .arg(&key)
        .output()
        .unwrap();
    assert!(made.status.success());
    let _ = std::fs::remove_file(key);
    file
}
