//! Let's Encrypt's test CA on loopback: `pebble`, and its DNS server, which resolves every name to 127.0.0.1. One nonce in
//! ten is rejected.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::free;

/// A running CA; it is stopped when this value is dropped.
pub(crate) struct Pebble {
    /// The URL of its directory.
    pub(crate) directory: String,
    /// The root certificate of its own HTTPS.
    pub(crate) roots: PathBuf,
    management: SocketAddr,
    config: PathBuf,
    dns: SocketAddr,
    /// The HTTP address where its DNS server accepts records.
    #[allow(dead_code, reason = "not every test that has a Pebble sets records")]
    pub(crate) records: SocketAddr,
    listen: SocketAddr,
    children: Vec<Child>,
    dir: tempfile::TempDir,
}

/// The path on Debian; `None` with a message if it is not installed.
pub(crate) fn installed() -> bool {
    use std::io::Write;
    let all = ["pebble", "pebble-challtestsrv", "openssl"];
    let missing = all.iter().find(|p| !PathBuf::from("/usr/bin").join(p).exists());
    let Some(missing) = missing else { return true };
    assert!(std::env::var_os("CI").is_none(), "{missing} is not installed");
    let _ = writeln!(std::io::stderr(), "skipped: {missing} is not installed");
    false
}

fn wait(addr: SocketAddr) {
    let begun = Instant::now();
    while TcpStream::connect(addr).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(30), "nothing listens on {addr}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Pebble {
    /// A CA that checks http-01 and tls-alpn-01 on these ports of 127.0.0.1, and whose certificates are valid for this many
    /// seconds.
    pub(crate) fn start(http: u16, tls: u16, validity: u64) -> Pebble {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let (cert, key) = (path("ca.pem"), path("ca.key"));
        let made = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-nodes",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
            ])
            .args(["-days", "2", "-subj", "/CN=pebble", "-addext", "subjectAltName=IP:127.0.0.1"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .arg("-out")
            .arg(&cert)
            .arg("-keyout")
            .arg(&key)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let (listen, management, dns, records) = (free(), free(), free(), free());
        let config = serde_json::json!({ "pebble": {
            "listenAddress": listen, "managementListenAddress": management,
            "certificate": cert, "privateKey": key, "httpPort": http, "tlsPort": tls,
            "ocspResponderURL": "", "externalAccountBindingRequired": false,
            "certificateValidityPeriod": validity,
        }});
        fs::write(path("pebble.json"), config.to_string()).unwrap();
        let names = Command::new("pebble-challtestsrv")
            .args(["-defaultIPv4", "127.0.0.1", "-defaultIPv6", "", "-http01", "", "-https01", ""])
            .args(["-tlsalpn01", "", "-dns01", &dns.to_string()])
            .args(["-management", &records.to_string()])
            .stdout(Stdio::null())
            .stderr(fs::File::create(path("dns.log")).unwrap())
            .spawn()
            .unwrap();
        let directory = format!("https://{listen}/dir");
        let config = path("pebble.json");
        let mut pebble = Pebble {
            directory,
            roots: cert,
            management,
            config,
            dns,
            records,
            listen,
            children: vec![names],
            dir,
        };
        pebble.serve();
        pebble
    }

    fn serve(&mut self) {
        let log = self.dir.path().join("pebble.log");
        let child = Command::new("pebble")
            .args(["-config", self.config.to_str().unwrap(), "-dnsserver", &self.dns.to_string()])
            .env("PEBBLE_VA_NOSLEEP", "1")
            .env("PEBBLE_WFE_NONCEREJECT", "10")
            .stdout(fs::File::create(&log).unwrap())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.children.push(child);
        wait(self.listen);
    }

    /// The orders that it has received.
    #[allow(dead_code, reason = "not every test that has a Pebble counts them")]
    pub(crate) fn orders(&self) -> usize {
        let log = fs::read_to_string(self.dir.path().join("pebble.log")).unwrap();
        log.lines().filter(|line| line.contains("Added order")).count()
    }

    /// Its root certificate, PEM.
    #[allow(dead_code, reason = "not every test that has a Pebble asks for it")]
    pub(crate) fn root(&self) -> String {
        let url = format!("https://{}/roots/0", self.management);
        let got = Command::new("curl").args(["-sfk", &url]).output().unwrap();
        assert!(got.status.success(), "{url}: {got:?}");
        String::from_utf8(got.stdout).unwrap()
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
