//! The measured systems: each accepts HTTPS at its entry and forwards plain HTTP to the backend.
//!
//! Each runs on [`SERVER_CORE`] with one worker, the same P-256 certificate, kept-alive connections to the backend, the
//! usual forwarding headers, and no access log. Session tickets have each system's default (no client uses them).

use std::{
    env,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::Context;
use clap::ValueEnum;

use crate::{
    Workload,
    common::{
        node, null_relay,
        process::{Lab, PEER_NAME, Process, Run, first_line, program},
        procfs::{self, Memory},
    },
};

/// The core of the measured system, and that of the load and the backend.
const SERVER_CORE: &str = "0";
pub(crate) const LOAD_CORE: &str = "1";

/// In the order of the table.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum System {
    /// Copies bytes only: no TLS, no HTTP.
    Null,
    Nginx,
    Haproxy,
    Caddy,
    Wiretight,
    /// Another build of Wiretight.
    #[value(skip)]
    Other,
}

impl System {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Caddy => "caddy",
            Self::Wiretight => "wiretight",
            Self::Other => "other",
        }
    }

    /// The installed version, or `None`.
    pub(crate) fn version(self) -> Option<String> {
        match self {
            Self::Null => Some("no TLS, no HTTP, 64 KiB buffers".to_owned()),
            Self::Nginx => first_line(program("nginx")?.arg("-v")),
            Self::Haproxy => first_line(program("haproxy")?.arg("-v")),
            Self::Caddy => first_line(caddy()?.arg("version")),
            Self::Wiretight => node::version(),
            Self::Other => Some("the build of --other".to_owned()),
        }
    }

    /// Debian 12 builds nginx and HAProxy without HTTP/3, and with OpenSSL 3.0, which has no ML-KEM.
    pub(crate) fn can(self, workload: Workload) -> bool {
        match workload {
            Workload::H1Small | Workload::H1Large => true,
            Workload::H2 | Workload::X25519 | Workload::Idle => self != Self::Null,
            Workload::H3 | Workload::Mlkem => {
                !matches!(self, Self::Null | Self::Nginx | Self::Haproxy)
            }
        }
    }

    pub(crate) fn speaks_tls(self) -> bool {
        self != Self::Null
    }
}

/// A running system, which is stopped when dropped.
pub(crate) struct Server {
    pub(crate) system: System,
    /// Its HTTPS address; HTTP/3 uses the same port over UDP.
    pub(crate) entry: SocketAddr,
    process: Process,
}

impl Server {
    /// Its CPU time so far.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        procfs::cpu(&[self.process.id()])
    }

    pub(crate) fn memory(&self) -> anyhow::Result<Memory> {
        procfs::memory(&[self.process.id()])
    }

    /// The end of its log.
    pub(crate) fn log(&self) -> String {
        self.process.log()
    }
}

/// Starts a system. It may not be listening yet. `other` is the program of [`System::Other`].
pub(crate) async fn start(
    lab: &Lab,
    system: System,
    other: Option<&Path>,
) -> anyhow::Result<Server> {
    let run = lab.run(system.name())?;
    let entry = lab.free_address()?;
    let process = match system {
        System::Null => run.spawn("null", &mut pinned(null_relay::command(entry, lab.origin)?))?,
        System::Nginx => start_nginx(&run, entry)?,
        System::Haproxy => start_haproxy(&run, entry)?,
        System::Caddy => start_caddy(&run, entry)?,
        System::Wiretight => start_wiretight(Path::new(node::WIRETIGHT), &run, entry).await?,
        System::Other => {
            start_wiretight(other.context("--other names no program")?, &run, entry).await?
        }
    };
    Ok(Server { system, entry, process })
}

fn start_nginx(run: &Run<'_>, entry: SocketAddr) -> anyhow::Result<Process> {
    let origin = run.lab.origin;
    let [cert, key] = ["peer.pem", "peer.key"].map(|name| run.pem(name));
    let config = format!(
        "daemon off; worker_processes 1; pid nginx.pid; error_log stderr warn;
events {{ worker_connections 16384; }}
http {{
    access_log off;
    keepalive_requests 1000000000; keepalive_timeout 1h;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    upstream app {{ server {origin}; keepalive 256; keepalive_requests 1000000000; }}
    server {{
        listen {entry} ssl http2 backlog=4096;
        server_name {PEER_NAME};
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_certificate {cert}; ssl_certificate_key {key};
        location / {{
            proxy_pass http://app;
            proxy_http_version 1.1;
            proxy_buffers 8 16k; proxy_max_temp_file_size 0;
            proxy_set_header Connection \"\";
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header X-Forwarded-Host $http_host;
            proxy_set_header X-Forwarded-Proto https;
        }}
    }}
}}
"
    );
    let file = run.file("nginx.conf", &config)?;
    let mut nginx = program("nginx").context("nginx is no longer installed")?;
    nginx.args(["-e", "stderr", "-c"]).arg(file).arg("-p").arg(&run.folder);
    run.spawn("nginx", &mut pinned(nginx))
}

fn start_haproxy(run: &Run<'_>, entry: SocketAddr) -> anyhow::Result<Process> {
    let config = format!(
        "global
    nbthread 1
    maxconn 8000
defaults
    mode http
    timeout connect 10s
    timeout client 1h
    timeout server 1h
    http-reuse always
    option forwardfor
frontend edge
    bind {entry} backlog 4096 ssl crt {both} alpn h2,http/1.1 ssl-min-ver TLSv1.2
    http-request set-header X-Forwarded-Host %[req.hdr(host)]
    http-request set-header X-Forwarded-Proto https
    default_backend app
backend app
    server app {origin}
",
        both = run.pem("peer.both"),
        origin = run.lab.origin,
    );
    let file = run.file("haproxy.cfg", &config)?;
    let mut haproxy = program("haproxy").context("haproxy is no longer installed")?;
    haproxy.args(["-db", "-f"]).arg(file);
    run.spawn("haproxy", &mut pinned(haproxy))
}

fn start_caddy(run: &Run<'_>, entry: SocketAddr) -> anyhow::Result<Process> {
    let config = format!(
        "{{
    admin off
    auto_https off
    persist_config off
    skip_install_trust
}}
https://{PEER_NAME}:{port} {{
    bind {ip}
    tls {cert} {key}
    reverse_proxy {origin} {{
        transport http {{
            keepalive_idle_conns_per_host 256
        }}
    }}
}}
",
        port = entry.port(),
        ip = entry.ip(),
        cert = run.pem("peer.pem"),
        key = run.pem("peer.key"),
        origin = run.lab.origin,
    );
    let file = run.file("Caddyfile", &config)?;
    let mut caddy = caddy().context("caddy is no longer installed")?;
    caddy.args(["run", "--adapter", "caddyfile", "--config"]).arg(file);
    for variable in ["HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"] {
        caddy.env(variable, &run.folder);
    }
    run.spawn("caddy", &mut pinned(caddy))
}

/// A separate authority with one site, as on a single machine.
async fn start_wiretight(
    program: &Path,
    run: &Run<'_>,
    entry: SocketAddr,
) -> anyhow::Result<Process> {
    let [admin, authority, http] =
        [run.lab.free_address()?, run.lab.free_address()?, run.lab.free_address()?];
    let sections = format!(
        "workers = 1
[authority]
listen = \"{authority}\"
[edge]
https = \"{entry}\"
http = \"{http}\"
[[site]]
names = [\"{PEER_NAME}\"]
to = \"{origin}\"
cert = \"{cert}\"
key = \"{key}\"
",
        origin = run.lab.origin,
        cert = run.pem("peer.pem"),
        key = run.pem("peer.key"),
    );
    let config = node::config(run, "edge", admin, &sections)?;
    let mut wiretight = Command::new(program);
    wiretight.args(["run", "--config"]).arg(config).env("WIRETIGHT_LOG", "access=off,info");
    let process = run.spawn("edge", &mut pinned(wiretight))?;
    node::wait_until_ready(admin, &process).await?;
    Ok(process)
}

/// The same command, on the core of the measured system.
fn pinned(command: Command) -> Command {
    let mut pinned = Command::new("taskset");
    pinned.args(["--cpu-list", SERVER_CORE]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        pinned.env(name, value.unwrap_or_default());
    }
    pinned
}

/// Where `scripts/bench` installs it, or the system's own.
fn caddy() -> Option<Command> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let file = target.join("tools/caddy/bin/caddy");
    if file.is_file() { Some(Command::new(file)) } else { program("caddy") }
}
