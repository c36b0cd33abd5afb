//! The measured systems, each as a pair of relays: A accepts plain TCP and connects to B over TLS,
//! B forwards plain TCP to the origin.
//!
//! Each connection must have a full, mutually authenticated TLS 1.3 handshake. So tickets and
//! session caches are off everywhere, because a resumed session verifies neither certificate again.
//! Every relay has one worker and P-256 certificates of one private CA, and verifies its peer's.
//! The other systems use X25519, because Debian's OpenSSL 3.0 has no ML-KEM; Wiretight uses
//! X25519MLKEM768, its default. Stunnel always uses a thread for each connection.

use std::{net::SocketAddr, path::Path, process::Command, time::Duration};

use anyhow::{Context, bail};
use clap::ValueEnum;

use crate::common::{
    node, null_relay,
    process::{Lab, PEER_NAME, Process, Run, first_line, output, program},
    procfs,
};

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

    /// The installed version, or `None`.
    pub(crate) fn version(self) -> Option<String> {
        match self {
            Self::Null => Some("no TLS, 256 KiB buffers".to_owned()),
            Self::Nginx => first_line(program("nginx")?.arg("-v")),
            Self::Haproxy => first_line(program("haproxy")?.arg("-v")),
            Self::Stunnel => {
                let version = output(program("stunnel")?.arg("-version"))?;
                version.lines().find(|line| line.starts_with("stunnel ")).map(str::to_owned)
            }
            Self::Wiretight => node::version(),
        }
    }
}

/// Two running relays and their environment, stopped when dropped.
pub(crate) struct Pair {
    /// Where relay A accepts plain TCP.
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
        self.relays.each_ref().map(|relay| relay.id())
    }

    /// CPU time of both relays so far.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        procfs::cpu(&self.pids())
    }

    /// The end of each relay's log.
    pub(crate) fn logs(&self) -> String {
        self.relays.each_ref().map(Process::log).join("\n")
    }
}

/// Starts a pair; Wiretight with this number of workers per relay. It may not be listening yet.
pub(crate) async fn start(lab: &Lab, system: System, workers: usize) -> anyhow::Result<Pair> {
    let run = lab.run(system.name())?;
    match system {
        System::Null => start_null(&run),
        System::Nginx => start_nginx(&run),
        System::Haproxy => start_haproxy(&run),
        System::Stunnel => start_stunnel(&run),
        System::Wiretight => start_wiretight(&run, workers).await,
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
    let [ca, cert, key] = ["ca.pem", "peer.pem", "peer.key"].map(|name| run.pem(name));
    // Debian builds the stream module as a loadable file; others build it in.
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
        let mut command = program("nginx").context("nginx is no longer installed")?;
        run.spawn(name, command.args(["-e", "stderr", "-c"]).arg(file).arg("-p").arg(&run.folder))
    };
    Ok(Pair::new(entry, nginx("a", &a)?, nginx("b", &b)?))
}

fn start_haproxy(run: &Run<'_>) -> anyhow::Result<Pair> {
    let [entry, middle, origin] =
        [run.lab.free_address()?, run.lab.free_address()?, run.lab.origin];
    let [ca, both] = ["ca.pem", "peer.both"].map(|name| run.pem(name));
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
        let mut command = program("haproxy").context("haproxy is no longer installed")?;
        run.spawn(name, command.args(["-db", "-f"]).arg(file))
    };
    Ok(Pair::new(entry, haproxy("a", &a)?, haproxy("b", &b)?))
}

fn start_stunnel(run: &Run<'_>) -> anyhow::Result<Pair> {
    let [entry, middle, origin] =
        [run.lab.free_address()?, run.lab.free_address()?, run.lab.origin];
    let [ca, cert, key] = ["ca.pem", "peer.pem", "peer.key"].map(|name| run.pem(name));
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
        let mut command = program("stunnel").context("stunnel is no longer installed")?;
        run.spawn(name, command.arg(file))
    };
    Ok(Pair::new(entry, stunnel("a", &a)?, stunnel("b", &b)?))
}

/// As an operator would: start an authority, create a token for each node, then start the nodes.
async fn start_wiretight(run: &Run<'_>, workers: usize) -> anyhow::Result<Pair> {
    let [entry, middle, origin] =
        [run.lab.free_address()?, run.lab.free_address()?, run.lab.origin];
    let start = |name: &str, config: &Path| {
        run.spawn(name, Command::new(node::WIRETIGHT).args(["run", "--config"]).arg(config))
    };
    let token = |authority: &Path, name: &str, service: &str| {
        let mut create = Command::new(node::WIRETIGHT);
        create.args(["token", "create", "--config"]).arg(authority);
        let done = create.args(["--node", name, "--service", service]).output()?;
        if !done.status.success() {
            bail!("token create: {}", String::from_utf8_lossy(&done.stderr));
        }
        run.file(&format!("{name}.token"), &String::from_utf8(done.stdout)?)
    };

    let admin = run.lab.free_address()?;
    let listen = run.lab.free_address()?;
    let config =
        node::config(run, "auth", admin, &format!("[authority]\nlisten = \"{listen}\"\n"))?;
    let authority = start("auth", &config)?;
    node::wait_until_ready(admin, &authority).await?;

    let [admin_a, admin_b] = [run.lab.free_address()?, run.lab.free_address()?];
    let config_b = node::config(
        run,
        "b",
        admin_b,
        &format!(
            "workers = {workers}
join_token_file = {:?}
[[service]]
name = \"echo\"
listen = \"{middle}\"
forward = [\"{origin}\"]
max_connections_per_peer = 20000
allow = [\"service/web\"]
",
            token(&config, "b", "echo")?
        ),
    )?;
    let config_a = node::config(
        run,
        "a",
        admin_a,
        &format!(
            "workers = {workers}
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
    node::wait_until_ready(admin_b, &b).await?;
    let a = start("a", &config_a)?;
    node::wait_until_ready(admin_a, &a).await?;
    Ok(Pair { entry, relays: [a, b], _authority: Some(authority) })
}
