//! The systems under test, each as a pair of relays: A takes plain TCP and speaks TLS to B, B hands
//! plain TCP to the origin.
//!
//! The promise under test is a full, mutually authenticated TLS 1.3 handshake for whoever is let
//! in, so tickets and session caches are off everywhere: a resumed session proves neither
//! certificate again. Every relay gets one worker, P-256 certificates of one private CA, and checks
//! its peer's. The peers run X25519, because Debian's OpenSSL 3.0 has no ML-KEM; Wiretight runs
//! X25519MLKEM768, as shipped. Stunnel has a thread a connection and no way to have fewer.

use std::{
    cell::Cell,
    env,
    fs::{self, File, OpenOptions},
    io::Write as _,
    net::{SocketAddr, TcpListener},
    os::unix::{fs::OpenOptionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use clap::ValueEnum;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::{loopback, null_relay, procfs};

/// In the order of the table.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum System {
    Null,
    Nginx,
    Haproxy,
    Stunnel,
    Wiretight,
}

impl System {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Stunnel => "stunnel",
            Self::Wiretight => "wiretight",
        }
    }

    /// What is installed, or `None`.
    pub(crate) fn version(self) -> Option<String> {
        match self {
            Self::Null => Some("no TLS, 64 KiB buffers".to_owned()),
            Self::Nginx => first_line(program("nginx")?.arg("-v")),
            Self::Haproxy => first_line(program("haproxy")?.arg("-v")),
            Self::Stunnel => {
                let version = output(program("stunnel")?.arg("-version"))?;
                version.lines().find(|line| line.starts_with("stunnel ")).map(str::to_owned)
            }
            Self::Wiretight => {
                let version = first_line(Command::new(WIRETIGHT).arg("--version"))?;
                let commit = first_line(
                    Command::new("git")
                        .args(["describe", "--always", "--dirty"])
                        .current_dir(env!("CARGO_MANIFEST_DIR")),
                );
                Some(format!("{version}, commit {}", commit.as_deref().unwrap_or("unknown")))
            }
        }
    }
}

const WIRETIGHT: &str = env!("CARGO_BIN_EXE_wiretight");

/// Two relays that run, and what they need to. Dropping it stops them.
pub(crate) struct Pair {
    /// Where relay A takes plain TCP.
    pub(crate) entry: SocketAddr,
    relays: [Process; 2],
    /// Not part of the data path, and not counted.
    _authority: Option<Process>,
}

impl Pair {
    fn new(entry: SocketAddr, a: Process, b: Process) -> Self {
        Self { entry, relays: [a, b], _authority: None }
    }

    pub(crate) fn pids(&self) -> [u32; 2] {
        self.relays.each_ref().map(|relay| relay.child.id())
    }

    /// CPU time that both relays have used so far.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        procfs::cpu(&self.pids())
    }

    /// The end of what each relay has logged.
    pub(crate) fn logs(&self) -> String {
        self.relays.each_ref().map(Process::log).join("\n")
    }
}

/// Where pairs are made: a temporary folder with the certificates, and the origin's address.
pub(crate) struct Lab {
    origin: SocketAddr,
    folder: tempfile::TempDir,
    started: Cell<usize>,
    next_port: Cell<u16>,
}

impl Lab {
    pub(crate) fn new(origin: SocketAddr) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("wiretight-bench-").tempdir()?;
        make_certificates(folder.path()).context("cannot make certificates with openssl")?;
        // Below the kernel's range for outgoing connections, which this program uses up.
        let first_port = 10_000 + (std::process::id() % 20_000) as u16;
        Ok(Self { origin, folder, started: Cell::new(0), next_port: Cell::new(first_port) })
    }

    /// Starts a pair. It may not be listening yet.
    pub(crate) async fn start(&self, system: System) -> anyhow::Result<Pair> {
        self.started.set(self.started.get() + 1);
        let run = Run {
            lab: self,
            folder: self.folder.path().join(format!("{}-{}", system.name(), self.started.get())),
        };
        fs::create_dir(&run.folder)?;
        match system {
            System::Null => start_null(&run),
            System::Nginx => start_nginx(&run),
            System::Haproxy => start_haproxy(&run),
            System::Stunnel => start_stunnel(&run),
            System::Wiretight => start_wiretight(&run).await,
        }
    }

    fn free_address(&self) -> anyhow::Result<SocketAddr> {
        loop {
            let address = loopback(self.next_port.get());
            self.next_port.set(self.next_port.get() + 1);
            if self.next_port.get() > 32_000 {
                self.next_port.set(10_000);
            }
            if TcpListener::bind(address).is_ok() {
                return Ok(address);
            }
        }
    }
}

/// The folder of one pair, and what its start needs of the lab.
struct Run<'a> {
    lab: &'a Lab,
    folder: PathBuf,
}

impl Run<'_> {
    /// Path of a certificate, key or bundle.
    fn pem(&self, name: &str) -> String {
        self.lab.folder.path().join(name).display().to_string()
    }

    /// Writes `text`, for the owner only.
    fn file(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        let path = self.folder.join(name);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(text.as_bytes())?;
        Ok(path)
    }

    /// Starts `command`; its output goes to `NAME.log`.
    fn spawn(&self, name: &str, command: &mut Command) -> anyhow::Result<Process> {
        let log = self.folder.join(format!("{name}.log"));
        let output = File::create(&log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            // Workers die with their master, and a Ctrl-C is ours to pass on.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot run {command:?}"))?;
        Ok(Process { child, log })
    }
}

fn start_null(run: &Run<'_>) -> anyhow::Result<Pair> {
    let [entry, middle] = [run.lab.free_address()?, run.lab.free_address()?];
    let a = run.spawn("a", &mut null_relay::command(entry, middle)?)?;
    let b = run.spawn("b", &mut null_relay::command(middle, run.lab.origin)?)?;
    Ok(Pair::new(entry, a, b))
}

fn start_nginx(run: &Run<'_>) -> anyhow::Result<Pair> {
    let [entry, middle, origin] =
        [run.lab.free_address()?, run.lab.free_address()?, run.lab.origin];
    let [ca, cert, key] = ["ca.pem", "relay.pem", "relay.key"].map(|name| run.pem(name));
    // Debian builds the stream module as a file to load, others build it in.
    let module = Path::new("/usr/lib/nginx/modules/ngx_stream_module.so");
    let load = match module.exists() {
        true => format!("load_module {};", module.display()),
        false => String::new(),
    };
    let config = |name: &str, server: String| {
        let folder = run.folder.display();
        format!(
            "{load}
            daemon off; worker_processes 1; pid {folder}/{name}.pid; error_log stderr warn;
            events {{ worker_connections 16384; }}
            stream {{ server {{ proxy_buffer_size 64k; {server} }} }}"
        )
    };
    let a = config(
        "a",
        format!(
            "listen {entry} backlog=4096; proxy_pass {middle};
            proxy_ssl on; proxy_ssl_protocols TLSv1.3; proxy_ssl_session_reuse off;
            proxy_ssl_certificate {cert}; proxy_ssl_certificate_key {key};
            proxy_ssl_trusted_certificate {ca}; proxy_ssl_verify on;
            proxy_ssl_name {PEER_NAME};"
        ),
    );
    let b = config(
        "b",
        format!(
            "listen {middle} ssl backlog=4096; proxy_pass {origin};
            ssl_protocols TLSv1.3; ssl_ecdh_curve X25519;
            ssl_session_tickets off; ssl_session_cache off; ssl_conf_command NumTickets 0;
            ssl_certificate {cert}; ssl_certificate_key {key};
            ssl_client_certificate {ca}; ssl_verify_client on;"
        ),
    );
    let nginx = |name: &str, config: &str| {
        let file = run.file(&format!("{name}.conf"), config)?;
        let mut command = program("nginx").context("nginx is gone")?;
        run.spawn(name, command.args(["-e", "stderr", "-c"]).arg(file).arg("-p").arg(&run.folder))
    };
    Ok(Pair::new(entry, nginx("a", &a)?, nginx("b", &b)?))
}

fn start_haproxy(run: &Run<'_>) -> anyhow::Result<Pair> {
    let [entry, middle, origin] =
        [run.lab.free_address()?, run.lab.free_address()?, run.lab.origin];
    let [ca, both] = ["ca.pem", "relay.both"].map(|name| run.pem(name));
    let config = |bind: String, server: String| {
        format!(
            "global
    nbthread 1
    maxconn 8000
    tune.ssl.cachesize 0
defaults
    mode tcp
    timeout connect 10s
    timeout client 1h
    timeout server 1h
listen relay
    bind {bind}
    server next {server}
"
        )
    };
    let a = config(
        format!("{entry} backlog 4096"),
        format!(
            "{middle} ssl crt {both} ca-file {ca} verify required verifyhost {PEER_NAME} \
             ssl-min-ver TLSv1.3 no-ssl-reuse no-tls-tickets"
        ),
    );
    let b = config(
        format!(
            "{middle} backlog 4096 ssl crt {both} ca-file {ca} verify required \
             ssl-min-ver TLSv1.3 curves X25519 no-tls-tickets"
        ),
        origin.to_string(),
    );
    let haproxy = |name: &str, config: &str| {
        let file = run.file(&format!("{name}.cfg"), config)?;
        let mut command = program("haproxy").context("haproxy is gone")?;
        run.spawn(name, command.args(["-db", "-f"]).arg(file))
    };
    Ok(Pair::new(entry, haproxy("a", &a)?, haproxy("b", &b)?))
}

fn start_stunnel(run: &Run<'_>) -> anyhow::Result<Pair> {
    let [entry, middle, origin] =
        [run.lab.free_address()?, run.lab.free_address()?, run.lab.origin];
    let [ca, cert, key] = ["ca.pem", "relay.pem", "relay.key"].map(|name| run.pem(name));
    let config = |accept: SocketAddr, connect: SocketAddr, role: &str| {
        format!(
            "foreground = yes
pid =
syslog = no
debug = 4
socket = l:TCP_NODELAY=1
socket = r:TCP_NODELAY=1
[relay]
accept = {accept}
connect = {connect}
cert = {cert}
key = {key}
CAfile = {ca}
verifyChain = yes
requireCert = yes
sslVersion = TLSv1.3
curves = X25519
sessionResume = no
{role}
"
        )
    };
    let a = config(entry, middle, &format!("client = yes\ncheckHost = {PEER_NAME}"));
    let b = config(middle, origin, "client = no");
    let stunnel = |name: &str, config: &str| {
        let file = run.file(&format!("{name}.conf"), config)?;
        let mut command = program("stunnel").context("stunnel is gone")?;
        run.spawn(name, command.arg(file))
    };
    Ok(Pair::new(entry, stunnel("a", &a)?, stunnel("b", &b)?))
}

/// As an operator would: an authority, a token for each node, then the nodes.
async fn start_wiretight(run: &Run<'_>) -> anyhow::Result<Pair> {
    let [entry, middle, origin] =
        [run.lab.free_address()?, run.lab.free_address()?, run.lab.origin];
    let node = |name: &str, admin: SocketAddr, rest: String| {
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
    };
    let start = |name: &str, config: &Path| {
        run.spawn(name, Command::new(WIRETIGHT).args(["run", "--config"]).arg(config))
    };
    let token = |authority: &Path, name: &str, service: &str| {
        let mut create = Command::new(WIRETIGHT);
        create.args(["token", "create", "--config"]).arg(authority);
        let done = create.args(["--node", name, "--service", service]).output()?;
        if !done.status.success() {
            bail!("token create: {}", String::from_utf8_lossy(&done.stderr));
        }
        run.file(&format!("{name}.token"), &String::from_utf8(done.stdout)?)
    };

    let admin = run.lab.free_address()?;
    let listen = run.lab.free_address()?;
    let config = node("auth", admin, format!("[authority]\nlisten = \"{listen}\"\n"))?;
    let authority = start("auth", &config)?;
    wait_until_ready(admin, &authority).await?;

    let [admin_a, admin_b] = [run.lab.free_address()?, run.lab.free_address()?];
    let config_b = node(
        "b",
        admin_b,
        format!(
            "workers = 1
join_token_file = {:?}
[[service]]
name = \"echo\"
listen = \"{middle}\"
forward = [\"{origin}\"]
allow = [\"service/web\"]
",
            token(&config, "b", "echo")?
        ),
    )?;
    let config_a = node(
        "a",
        admin_a,
        format!(
            "workers = 1
join_token_file = {:?}
[[dial]]
listen = \"{entry}\"
service = \"echo\"
as = \"web\"
to = [\"{middle}\"]
",
            token(&config, "a", "web")?
        ),
    )?;
    let b = start("b", &config_b)?;
    wait_until_ready(admin_b, &b).await?;
    let a = start("a", &config_a)?;
    wait_until_ready(admin_a, &a).await?;
    Ok(Pair { entry, relays: [a, b], _authority: Some(authority) })
}

async fn wait_until_ready(admin: SocketAddr, process: &Process) -> anyhow::Result<()> {
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

/// A process that is stopped when dropped, with all that it started.
struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// The last lines of its output, under its path.
    fn log(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(10)..];
        format!("{}:\n{}", self.log.display(), tail.join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let group = Pid::from_child(&self.child);
        // A failure means that it is gone already.
        let _ = kill_process_group(group, Signal::TERM);
        let end = Instant::now() + Duration::from_secs(2);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < end {
            thread::sleep(Duration::from_millis(10));
        }
        let _ = kill_process_group(group, Signal::KILL);
        let _ = self.child.wait();
    }
}

const PEER_NAME: &str = "relay.bench.test";

/// `ca.pem`; `relay.pem` and `relay.key`, which both relays of a pair use; `relay.both` for HAProxy.
fn make_certificates(folder: &Path) -> anyhow::Result<()> {
    let config = "[req]
distinguished_name = dn
prompt = no
[dn]
CN = bench
[ca]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign
subjectKeyIdentifier = hash
[relay]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = serverAuth,clientAuth
subjectAltName = DNS:relay.bench.test
";
    fs::write(folder.join("openssl.cnf"), config)?;
    let request = |name: &str, more: &[&str]| {
        let mut command = Command::new("openssl");
        command.current_dir(folder).args(["req", "-x509", "-config", "openssl.cnf", "-days", "2"]);
        command.args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]);
        command.args(["-extensions", name, "-subj", &format!("/CN={name}")]);
        command.args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.pem")]);
        let done = command.args(more).output()?;
        if !done.status.success() {
            bail!("{}", String::from_utf8_lossy(&done.stderr));
        }
        Ok(())
    };
    request("ca", &[])?;
    request("relay", &["-CA", "ca.pem", "-CAkey", "ca.key"])?;
    let mut both = fs::read(folder.join("relay.pem"))?;
    both.extend(fs::read(folder.join("relay.key"))?);
    fs::write(folder.join("relay.both"), both)?;
    Ok(())
}

/// A program in the PATH, or where Debian has daemons, which is in the PATH of root only.
fn program(name: &str) -> Option<Command> {
    let path = env::var_os("PATH").unwrap_or_default();
    let daemons = ["/usr/local/sbin", "/usr/sbin"].map(PathBuf::from);
    let file = env::split_paths(&path).chain(daemons).map(|folder| folder.join(name));
    file.into_iter().find(|file| file.is_file()).map(Command::new)
}

/// What `command` prints on both streams; `None` if it cannot run or fails.
fn output(command: &mut Command) -> Option<String> {
    let done = command.output().ok().filter(|done| done.status.success())?;
    let mut text = String::from_utf8_lossy(&done.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&done.stderr));
    Some(text)
}

pub(crate) fn first_line(command: &mut Command) -> Option<String> {
    output(command)?.lines().next().map(|line| line.trim().to_owned())
}
