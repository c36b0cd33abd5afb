//! A log built from the library only, so that it can also lie; processes; and simple HTTP.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use wiretight_tlog::cosignature::Algorithm;
use wiretight_tlog::note::KeyName;
use wiretight_tlog::tile::{self, Kind, Tile};
use wiretight_tlog::tree::{self, Node};
use wiretight_tlog::{
    Checkpoint, Cosigner, Frontier, Hash, LogSigner, Proof, SignedCheckpoint, TreeError,
};

pub(crate) use super::common::*;

pub const BINARY: &str = env!("CARGO_BIN_EXE_wiretight");

pub fn name(text: &str) -> KeyName {
    KeyName::new(text).unwrap()
}

pub fn now() -> u64 {
    wiretight_proxy::clock::now()
}

pub fn cosigner(n: u8) -> Cosigner {
    let algorithm = if n.is_multiple_of(2) { Algorithm::Ed25519 } else { Algorithm::MlDsa44 };
    Cosigner::from_seed(name(&format!("witness.example/{n}")), algorithm, &[n; 32]).unwrap()
}

/// A log in memory.
pub struct Log {
    pub signer: LogSigner,
    pub entries: Vec<Vec<u8>>,
}

impl Log {
    pub fn new(origin: &str) -> Log {
        Log { signer: LogSigner::generate(name(origin)).unwrap(), entries: Vec::new() }
    }

    /// A log with arbitrary entries.
    pub fn of(origin: &str, size: usize) -> Log {
        let mut log = Log::new(origin);
        log.entries = (0..size).map(|n| format!("\u{7f}\u{7f}entry {n}").into_bytes()).collect();
        log
    }

    /// A log with the same key and another history from entry `at` on.
    pub fn forked(&self, at: usize, size: usize) -> Log {
        let signer = LogSigner::parse(&self.signer.to_private().unwrap()).unwrap();
        let mut entries = self.entries[..at].to_vec();
        entries.extend((at..size).map(|n| format!("\u{7f}\u{7f}other {n}").into_bytes()));
        Log { signer, entries }
    }

    pub fn origin(&self) -> String {
        self.signer.public().name().to_string()
    }

    fn leaves(&self) -> Vec<Hash> {
        self.entries.iter().map(|e| Hash::leaf(e)).collect()
    }

    pub fn node(leaves: &[Hash], node: Node) -> Result<Hash, TreeError> {
        let (width, index) = (1usize << node.level, node.index as usize);
        tile::subtree(&leaves[index * width..(index + 1) * width]).ok_or(TreeError::OutOfRange)
    }

    pub fn checkpoint(&self, size: usize) -> Checkpoint {
        let mut frontier = Frontier::default();
        self.leaves()[..size].iter().for_each(|leaf| frontier.append(*leaf, |_, _| {}));
        let (size, root) = (size as u64, frontier.root());
        Checkpoint { origin: self.origin(), size, root, extensions: Vec::new() }
    }

    pub fn signed(&self, size: usize) -> SignedCheckpoint {
        self.checkpoint(size).sign(&self.signer).unwrap()
    }

    pub fn cosigned(&self, size: usize, by: &[&Cosigner], time: u64) -> SignedCheckpoint {
        let mut signed = self.signed(size);
        for cosigner in by {
            signed.add(cosigner.cosign(&self.checkpoint(size), time).unwrap());
        }
        signed
    }

    pub fn consistency(&self, old: usize, new: usize) -> Vec<Hash> {
        let leaves = self.leaves();
        tree::consistency_proof(old as u64, new as u64, |n| Log::node(&leaves, n)).unwrap()
    }

    /// The body of add-checkpoint.
    pub fn body(&self, old: usize, new: usize) -> String {
        let proof: String = self.consistency(old, new).iter().map(|h| format!("{h}\n")).collect();
        format!("old {old}\n{proof}\n{}", self.signed(new))
    }

    pub fn proof(&self, index: usize, checkpoint: SignedCheckpoint) -> Proof {
        let leaves = self.leaves();
        let size = checkpoint.unverified().size;
        let read = |n| Log::node(&leaves, n);
        let hashes = tree::inclusion_proof(index as u64, size, read).unwrap();
        Proof { extra: None, index: index as u64, hashes, checkpoint }
    }

    /// Writes it to a directory in the form in which it is served.
    pub fn publish(&self, dir: &Path, checkpoint: &SignedCheckpoint) {
        let (leaves, size) = (self.leaves(), checkpoint.unverified().size);
        for t in Tile::of_growth(0, size) {
            let path = dir.join(t.path());
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let mut bytes = Vec::new();
            for n in t.index * 256..t.index * 256 + u64::from(t.width) {
                match t.kind {
                    Kind::Entries => {
                        tile::push_entry(&mut bytes, &self.entries[n as usize]).unwrap()
                    }
                    Kind::Hashes { level } => {
                        let node = Node { level: level * 8, index: n };
                        bytes.extend_from_slice(Log::node(&leaves, node).unwrap().as_bytes());
                    }
                }
            }
            std::fs::write(path, bytes).unwrap();
        }
        std::fs::create_dir_all(dir).unwrap();
        std::fs::write(dir.join("checkpoint"), checkpoint.to_string()).unwrap();
    }
}

/// A policy that requires all of these witnesses.
pub fn policy(log: &Log, witnesses: &[&Cosigner]) -> String {
    let mut text = format!("log {}\n", log.signer.public());
    let mut names = String::new();
    for (n, witness) in witnesses.iter().enumerate() {
        text.push_str(&format!("witness w{n} {}\n", witness.public()));
        names.push_str(&format!(" w{n}"));
    }
    match witnesses.is_empty() {
        true => text + "quorum none\n",
        false => format!("{text}group all-of-them all{names}\nquorum all-of-them\n"),
    }
}

pub fn write(dir: &Path, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

pub fn wiretight(args: &[&str]) -> Output {
    Command::new(BINARY).args(args).output().unwrap()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A witness as a process.
pub struct Daemon {
    child: KilledOnDrop,
    pub addr: SocketAddr,
    said: Arc<Mutex<String>>,
}

impl Daemon {
    /// Starts it; returns its output if it ends instead.
    pub fn start(args: &[&str]) -> Result<Daemon, String> {
        let child = Command::new(BINARY)
            .args(["witness", "run", "--listen", "127.0.0.1:0"])
            .args(args)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = Arc::<Mutex<String>>::default();
        let mut daemon =
            Daemon { child: KilledOnDrop(child), addr: ([127, 0, 0, 1], 0).into(), said };
        let mut lines = BufReader::new(daemon.child.stderr.take().unwrap());
        let mut said = String::new();
        loop {
            let start = said.len();
            if lines.read_line(&mut said).unwrap() == 0 {
                return Err(said);
            }
            if let Some((_, rest)) = said[start..].split_once("\"listen\":\"") {
                daemon.addr = rest.split('"').next().unwrap().parse().unwrap();
                // Keep reading, or lines would be lost.
                let all = daemon.said.clone();
                std::thread::spawn(move || {
                    let mut line = String::new();
                    while lines.read_line(&mut line).is_ok_and(|n| n > 0) {
                        all.lock().unwrap().push_str(&line);
                        line.clear();
                    }
                });
                return Ok(daemon);
            }
        }
    }

    /// Its output since it became ready.
    pub fn output(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGHUP.
    pub fn hangup(&self) {
        self.signal("-HUP");
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// SIGTERM; returns whether it ended successfully.
    pub fn stop(mut self) -> bool {
        self.signal("-TERM");
        self.child.wait().unwrap().success()
    }
}

/// Status, headers (lower case) and body.
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// A request on its own connection; `None` if the response is incomplete.
pub fn request(addr: SocketAddr, method: &str, path: &str, body: &[u8]) -> Option<Reply> {
    let mut stream = TcpStream::connect(addr).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all(&[head.as_bytes(), body].concat()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let head = head.to_lowercase();
    let length: usize =
        head.split("content-length: ").nth(1)?.lines().next()?.trim().parse().ok()?;
    (body.len() == length).then(|| Reply { status, head: head.clone(), body: body.to_owned() })
}

/// A server that answers every request with 200 and keeps the bodies.
pub struct Hook {
    pub addr: SocketAddr,
    bodies: std::sync::mpsc::Receiver<String>,
}

impl Hook {
    pub fn start() -> Hook {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let (send, bodies) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = BufReader::new(stream.unwrap());
                let (mut line, mut length) = (String::new(), 0);
                while stream.read_line(&mut line).unwrap() > 2 {
                    if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                        length = value.trim().parse().unwrap();
                    }
                    line.clear();
                }
                let mut body = vec![0; length];
                stream.read_exact(&mut body).unwrap();
                let answer = b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";
                stream.get_mut().write_all(answer).unwrap();
                if send.send(String::from_utf8(body).unwrap()).is_err() {
                    return;
                }
            }
        });
        Hook { addr, bodies }
    }

    pub fn bodies(&self) -> Vec<serde_json::Value> {
        self.bodies.try_iter().map(|b| serde_json::from_str(&b).unwrap()).collect()
    }
}

/// Serves the files of a directory over HTTP, with one request per connection.
pub fn serve(dir: PathBuf) -> SocketAddr {
    serve_with(dir, |_| None)
}

/// What a server does instead of sending the file.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    Status(u16),
    /// 429, and how many seconds to wait.
    TooOften(u64),
    Hang,
    TooLong,
    /// It is declared as gzip but is not.
    Gzip,
    /// Gzip of 1 GiB of zeros.
    GzipBomb,
    /// Truncated gzip with a matching length.
    GzipCut,
}

/// Compressed, as `gzip` does it.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Gzip of 1 GiB of zeros, in many members, so that it is built quickly.
pub fn gzip_bomb() -> Vec<u8> {
    gzip(&vec![0; 1 << 20]).repeat(1 << 10)
}

/// Serves the files of a directory, except paths with a fault.
pub fn serve_with(
    dir: PathBuf,
    fault: impl Fn(&str) -> Option<Fault> + Send + Sync + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let fault = std::sync::Arc::new(fault);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (dir, fault) = (dir.clone(), fault.clone());
            std::thread::spawn(move || {
                let mut stream = BufReader::new(stream.unwrap());
                let mut first = String::new();
                stream.read_line(&mut first).unwrap();
                let mut line = String::new();
                while stream.read_line(&mut line).unwrap() > 2 {
                    line.clear();
                }
                let path = first.split(' ').nth(1).unwrap_or_default().trim_start_matches('/');
                let (mut status, mut body) = match std::fs::read(dir.join(path)) {
                    Ok(body) => ("200 OK".to_owned(), body),
                    Err(_) => ("404 Not Found".into(), Vec::new()),
                };
                let mut more = String::new();
                match fault(path) {
                    None => {}
                    Some(Fault::Status(code)) => status = format!("{code} Fault"),
                    Some(Fault::TooOften(seconds)) => {
                        status = "429 Too Many Requests".into();
                        more = format!("retry-after: {seconds}\r\n");
                    }
                    Some(Fault::Hang) => std::thread::sleep(Duration::from_secs(3600)),
                    Some(Fault::TooLong) => body.resize(20 << 20, 0),
                    Some(fault @ (Fault::Gzip | Fault::GzipBomb | Fault::GzipCut)) => {
                        more = "content-encoding: gzip\r\n".into();
                        match fault {
                            Fault::GzipBomb => body = gzip_bomb(),
                            Fault::GzipCut => {
                                body = gzip(&body);
                                body.truncate(body.len() - 9);
                            }
                            _ => {}
                        }
                    }
                }
                let head = format!(
                    "HTTP/1.1 {status}\r\nconnection: close\r\n{more}content-length: {}\r\n\r\n",
                    body.len()
                );
                let _ = stream.get_mut().write_all(&[head.as_bytes(), &body].concat());
            });
        }
    });
    addr
}

/// nginx; it is stopped when this value is dropped.
pub struct Nginx {
    _child: KilledOnDrop,
    pub addr: SocketAddr,
    dir: tempfile::TempDir,
}

/// Serves with these directives; `None` if nginx is not installed, which is an error if CI is set.
pub fn nginx(server: &str) -> Option<Nginx> {
    if !has(&["nginx"]) {
        return None;
    }
    let addr = free();
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().display();
    // It runs as the user that may read the files.
    let user = if rustix::process::geteuid().is_root() { "user root;\n" } else { "" };
    let conf = format!(
        "{user}daemon off;\nmaster_process off;\npid {at}/pid;\nevents {{}}\nhttp {{\n\
         log_format coding '$uri $status $sent_http_content_encoding';\naccess_log {at}/access coding;\n\
         client_body_temp_path {at}/1;\nproxy_temp_path {at}/2;\nfastcgi_temp_path {at}/3;\n\
         uwsgi_temp_path {at}/4;\nscgi_temp_path {at}/5;\n\
         server {{ listen {addr};\n{server}\n}}\n}}\n"
    );
    let conf = write(dir.path(), "conf", conf);
    let child = Command::new(find("nginx")?)
        .arg("-p")
        .arg(dir.path())
        .arg("-c")
        .arg(conf)
        .args(["-e", "stderr"])
        .spawn()
        .unwrap();
    let nginx = Nginx { _child: KilledOnDrop(child), addr, dir };
    wait_port(addr);
    Some(nginx)
}

impl Nginx {
    /// Each request: path, status, and coding (`-` if there is none).
    pub fn access(&self) -> Vec<(String, String, String)> {
        let text = std::fs::read_to_string(self.dir.path().join("access")).unwrap();
        let line = |line: &str| {
            let mut words = line.split(' ').map(str::to_owned);
            let mut word = || words.next().unwrap();
            (word(), word(), word())
        };
        text.lines().map(line).collect()
    }
}

/// An S3 server (moto); it is stopped when this value is dropped.
pub struct S3Server {
    _child: KilledOnDrop,
    addr: SocketAddr,
}

/// Starts one; `None` if it is not installed, which is an error if CI is set.
pub fn s3_server() -> Option<S3Server> {
    if !has(&["moto_server"]) {
        return None;
    }
    let addr = free();
    let child = Command::new(find("moto_server")?)
        .args(["-H", "127.0.0.1", "-p", &addr.port().to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let server = S3Server { _child: KilledOnDrop(child), addr };
    wait_port(addr);
    Some(server)
}

impl S3Server {
    /// Its URL.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn bucket(&self) -> wiretight::log::bucket::Bucket {
        self.bucket_through(self.addr, "some/prefix")
    }

    /// A bucket at another prefix, reached at this address.
    pub fn bucket_through(&self, way: SocketAddr, prefix: &str) -> wiretight::log::bucket::Bucket {
        use std::io::{Read, Write};
        let mut socket = std::net::TcpStream::connect(self.addr).unwrap();
        let host = self.addr;
        write!(
            socket,
            "PUT /tiles HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let store = object_store::aws::AmazonS3Builder::new()
            .with_url(format!("s3://tiles/{prefix}"))
            .with_endpoint(format!("http://{way}"))
            .with_http_connector(wiretight::web::objects::Transport)
            .with_allow_http(true)
            .with_region("us-east-1")
            .with_access_key_id("key")
            .with_secret_access_key("secret")
            .build()
            .unwrap();
        let prefix = object_store::path::Path::from(prefix);
        wiretight::log::bucket::Bucket::new(std::sync::Arc::new(store), prefix, "s3://tiles".into())
    }
}
