//! Servers in temporary folders, devices on the path, and the client's side of TLS.

#[path = "../../../../tests/ports.rs"]
mod ports;

use std::fs;
use std::future::Future;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

pub use ports::free;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use wiretight_scan::Start;
use wiretight_scan::active::anyone::client_config;
use wiretight_scan::active::starttls::{Refused, Stream, Upgrade, upgrade};

pub const LOCAL: Option<IpAddr> = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
pub const NAME: Option<&str> = Some("localhost");

/// Writes directly to stderr, because the test harness hides the output of passing tests.
pub fn skipped(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "{why}, and CI must have it");
    let _ = writeln!(io::stderr(), "skipped: starttls: {why}");
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A self-signed certificate for `localhost` and its key, in PEM.
pub struct Pair {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Pair {
    pub fn get() -> &'static Self {
        static PAIR: OnceLock<Pair> = OnceLock::new();
        PAIR.get_or_init(|| {
            let folder = folder();
            let (certificate, key) =
                (folder.path().join("cert.pem"), folder.path().join("key.pem"));
            run(Command::new("openssl")
                .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"])
                .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"])
                .arg("-keyout")
                .arg(&key)
                .arg("-out")
                .arg(&certificate));
            Self { certificate: fs::read(certificate).unwrap(), key: fs::read(key).unwrap() }
        })
    }

    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![CertificateDer::from_pem_slice(&self.certificate).unwrap()]
    }

    pub fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(&self.key).unwrap()
    }

    pub fn acceptor(&self) -> TlsAcceptor {
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(self.chain(), self.private_key())
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("st").tempdir_in("/tmp").unwrap();
    open_to_all(folder.path(), 0o755);
    folder
}

fn open_to_all(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A folder for a server, and its process group, which is stopped on drop.
pub struct Server {
    pub folder: tempfile::TempDir,
    children: Vec<Child>,
}

impl Server {
    pub fn new() -> Self {
        let server = Self { folder: folder(), children: Vec::new() };
        let Pair { certificate, key } = Pair::get();
        for (path, pem) in [(server.certificate(), certificate), (server.key(), key)] {
            fs::write(&path, pem).unwrap();
            open_to_all(Path::new(&path), 0o644);
        }
        server
    }

    pub fn certificate(&self) -> String {
        format!("{}/cert.pem", self.dir())
    }

    pub fn key(&self) -> String {
        format!("{}/key.pem", self.dir())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The folder's path, for configurations.
    pub fn dir(&self) -> String {
        self.folder.path().display().to_string()
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        path
    }

    pub fn make_folder(&self, name: &str, owner: Option<&str>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).unwrap();
        if let (Some(owner), true) = (owner, is_root()) {
            run(Command::new("chown").arg(owner).arg(&path));
        }
        path
    }

    /// Starts a program, and waits for its ports.
    pub fn start(mut self, command: &mut Command, ports: &[u16]) -> Self {
        let log = fs::File::create(self.path("log")).unwrap();
        command.process_group(0).stdin(Stdio::null()).current_dir(self.folder.path());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.children.push(command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}")));
        let until = std::time::Instant::now() + Duration::from_secs(120);
        for port in ports {
            while std::net::TcpStream::connect(("127.0.0.1", *port)).is_err() {
                let log = || fs::read_to_string(self.path("log")).unwrap_or_default();
                assert!(std::time::Instant::now() < until, "{command:?}: {}", log());
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        self
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for child in &mut self.children {
            use rustix::process::{Pid, Signal, kill_process_group};
            let group = Pid::from_child(child);
            let _ = kill_process_group(group, Signal::TERM);
            for _ in 0..40 {
                if !matches!(child.try_wait(), Ok(None)) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            let _ = kill_process_group(group, Signal::KILL);
            let _ = child.wait();
        }
    }
}

pub fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// The path of a server program in Debian; prints a note if it is missing.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.push("/usr/sbin".into());
    folders.push("/usr/lib/postfix/sbin".into());
    if let Ok(versions) = fs::read_dir("/usr/lib/postgresql") {
        folders.extend(versions.flatten().map(|version| version.path().join("bin")));
    }
    let found = folders.into_iter().map(|folder| folder.join(name)).find(|path| path.exists());
    if found.is_none() {
        skipped(&format!("{name} is not installed"));
    }
    found
}

// ---- A simulated server, and a device on the path.

/// Serves each connection with this function until the test ends.
pub async fn serve<F>(handle: impl Fn(TcpStream) -> F + Send + 'static) -> u16
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(handle(stream));
        }
    });
    port
}

/// How a device changes a chunk.
pub type Rewrite = fn(&[u8]) -> Vec<u8>;

/// A device in front of a server that changes the data of server and client.
pub async fn between(server: u16, to_client: Rewrite, to_server: Rewrite) -> u16 {
    serve(move |client| async move {
        let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else { return };
        let (client_reads, client_writes) = client.into_split();
        let (server_reads, server_writes) = server.into_split();
        tokio::join!(
            pass(client_reads, server_writes, to_server),
            pass(server_reads, client_writes, to_client)
        );
    })
    .await
}

async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, rewrite: Rewrite) {
    let mut chunk = vec![0; 16 << 10];
    while let Ok(len @ 1..) = from.read(&mut chunk).await {
        if to.write_all(&rewrite(&chunk[..len])).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}

pub fn unchanged(data: &[u8]) -> Vec<u8> {
    data.to_vec()
}

/// Replaces bytes; on loopback, chunks contain whole messages.
pub fn replaced(data: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = data;
    while let Some(at) = rest.windows(from.len()).position(|window| window == from) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(to);
        rest = &rest[at + from.len()..];
    }
    out.extend_from_slice(rest);
    out
}

// ---- The client.

pub fn within(seconds: u64) -> Instant {
    Instant::now() + Duration::from_secs(seconds)
}

pub async fn ask(port: u16, start: Start) -> Result<Upgrade<TcpStream>, Refused> {
    ask_within(port, start, 6).await
}

pub async fn ask_within(
    port: u16,
    start: Start,
    seconds: u64,
) -> Result<Upgrade<TcpStream>, Refused> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    upgrade(stream, start, NAME, LOCAL, within(seconds)).await
}

/// Observations during STARTTLS.
pub struct Learnt {
    pub greeting: String,
    pub stripped: Option<String>,
}

/// Performs STARTTLS and a handshake, which requires that the stream is at the right byte.
pub async fn reaches_tls(port: u16, start: Start) -> Learnt {
    shakes_hands(port, start).await.1
}

/// The same, and checks that written data is echoed.
pub async fn echoes_inside_tls(port: u16, start: Start) {
    let (mut tls, _) = shakes_hands(port, start).await;
    tls.get_mut().0.handshake_done();
    tls.write_all(b"login").await.unwrap();
    tls.flush().await.unwrap();
    let mut back = [0; 5];
    tls.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"login");
}

async fn shakes_hands(port: u16, start: Start) -> (TlsStream<Stream<TcpStream>>, Learnt) {
    let upgrade = ask(port, start).await.unwrap_or_else(|e| panic!("{start:?}: {e}"));
    assert!(upgrade.stream.early().is_empty(), "{start:?}");
    let name = ServerName::try_from("localhost").unwrap();
    let config = Arc::new(client_config(true).unwrap());
    let connect = TlsConnector::from(config).connect(name, upgrade.stream);
    let tls = tokio::time::timeout(Duration::from_secs(5), connect).await;
    let tls = tls.unwrap_or_else(|_| panic!("{start:?}: no end of the handshake"));
    let tls = tls.unwrap_or_else(|e| panic!("{start:?}: {e}"));
    let shown = tls.get_ref().1.peer_certificates().unwrap();
    assert_eq!(shown, Pair::get().chain(), "{start:?}: another certificate");
    (tls, Learnt { greeting: upgrade.greeting, stripped: upgrade.stripped })
}
