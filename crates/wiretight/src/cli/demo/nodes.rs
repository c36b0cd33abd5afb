//! The demo's three nodes: separate processes of this binary, set up as an operator would do it.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};
use wiretight_proxy::network::HostPort;

use super::tap::Tap;
use super::{free_port, step};
use crate::admin::api::{ConsoleAnswer, Status, TokenAnswer, TokenRequest};
use crate::admin::client::{AdminError, request};

pub(super) const SERVICE: &str = "hello";
/// How long a node may take to become ready.
const READY: Duration = Duration::from_secs(30);

/// The three nodes, and the tap between the two that relay.
pub(super) struct Nodes {
    children: Vec<(&'static str, Child)>,
    /// Dropped after `children`, when no process writes there any more.
    dir: TempDir,
    /// Where the client program connects.
    pub(super) entry: SocketAddr,
    own_entry: Option<SocketAddr>,
    admin: SocketAddr,
    pub(super) tap: Tap,
    pub(super) leaked: bool,
}

impl Nodes {
    /// Starts an authority, node `b` in front of `service`, and node `a` for its clients.
    pub(super) async fn start(
        service: SocketAddr,
        own: Option<&HostPort>,
    ) -> anyhow::Result<Nodes> {
        let dir = tempfile::Builder::new().prefix("wiretight-demo-").tempdir()?;
        let authority = free_port()?;
        let (listen, entry, admin) = (free_port()?, free_port()?, free_port()?);
        // Node b advertises the tap's address, so all traffic between the two nodes passes through the tap.
        let tap = Tap::start(listen).await?;
        let mut nodes =
            Nodes { dir, children: Vec::new(), entry, own_entry: None, admin, tap, leaked: true };

        step("starting an authority ...");
        let console = free_port()?;
        let page = nodes.proof_page();
        fs::create_dir(page.parent().context("the proof page has no directory")?)?;
        let sections = format!(
            "[authority]\nlisten = \"{authority}\"\n[console]\nlisten = \"{console}\"\n\
             [publish]\ndir = \"{}\"\n",
            page.display()
        );
        nodes.write("authority", "off", &sections)?;
        nodes.run("authority").await?;

        step("two nodes join it ...");
        let advertise = nodes.tap.addr();
        let mut b = format!(
            "[[service]]\nname = \"{SERVICE}\"\nlisten = \"{listen}\"\nadvertise = \"{advertise}\"\n\
             forward = \"{service}\"\nallow = [\"service/web\"]\n"
        );
        let mut a =
            format!("[[dial]]\nlisten = \"{entry}\"\nservice = \"{SERVICE}\"\nas = \"web\"\n");
        if let Some(own) = own {
            let (listen, entry) = (free_port()?, free_port()?);
            b += &format!(
                "[[service]]\nname = \"yours\"\nlisten = \"{listen}\"\nforward = \"{own}\"\n\
                 allow = [\"service/web\"]\n"
            );
            a += &format!("[[dial]]\nlisten = \"{entry}\"\nservice = \"yours\"\nas = \"web\"\n");
            nodes.own_entry = Some(entry);
        }
        nodes.token("b", &[SERVICE, "yours"]).await?;
        nodes.token("a", &["web"]).await?;
        nodes.write("b", "off", &b)?;
        nodes.write("a", &admin.to_string(), &a)?;
        nodes.run("b").await?;
        nodes.run("a").await?;
        nodes.registered().await?;
        Ok(nodes)
    }

    /// The folder of the public page. Its parent contains nothing else.
    fn proof_page(&self) -> PathBuf {
        self.dir.path().join("public").join("proof")
    }

    fn state_dir(&self, node: &str) -> PathBuf {
        self.dir.path().join(node)
    }

    fn file(&self, node: &str) -> PathBuf {
        self.dir.path().join(format!("{node}.toml"))
    }

    fn write(&self, node: &str, admin: &str, sections: &str) -> anyhow::Result<()> {
        let state_dir = self.state_dir(node);
        let mut file = format!(
            "[node]\nname = \"{node}\"\ntrust_domain = \"demo.wiretight\"\nadmin = \"{admin}\"\n\
             state_dir = \"{}\"\nworkers = 1\ndrain = \"1s\"\n",
            state_dir.display()
        );
        if node != "authority" {
            let token = self.dir.path().join(format!("{node}.token"));
            file += &format!("join_token_file = \"{}\"\n", token.display());
        }
        Ok(fs::write(self.file(node), file + sections)?)
    }

    /// Creates a join token, as `wiretight token create` does.
    async fn token(&self, node: &str, services: &[&str]) -> anyhow::Result<()> {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        let body = TokenRequest {
            node: node.parse()?,
            services: services.iter().map(|name| name.parse()).collect::<Result<_, _>>()?,
            addresses: Vec::new(),
            ttl_seconds: 300,
        };
        let state_dir = self.state_dir("authority");
        let made: TokenAnswer =
            request(&state_dir, hyper::Method::POST, "/v1/tokens", Some(&body)).await?;
        let path = self.dir.path().join(format!("{node}.token"));
        let mut file =
            fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(path)?;
        Ok(file.write_all(made.token.as_bytes())?)
    }

    /// Starts a node and waits until it is ready.
    async fn run(&mut self, node: &'static str) -> anyhow::Result<()> {
        let log = fs::File::create(self.dir.path().join(format!("{node}.log")))?;
        let child = Command::new(std::env::current_exe()?)
            .args(["run", "--config"])
            .arg(self.file(node))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        self.children.push((node, child));
        let end = Instant::now() + READY;
        loop {
            match self.status(node).await {
                Ok(status) if status.ready => return Ok(()),
                Ok(_) | Err(_) if Instant::now() < end => sleep(Duration::from_millis(20)).await,
                Ok(status) => bail!(
                    "node {node} is not ready after {} s: {}\n{}",
                    READY.as_secs(),
                    status.not_ready.unwrap_or_default(),
                    self.log(node)
                ),
                Err(error) => bail!("node {node} is not running: {error}\n{}", self.log(node)),
            }
            let (_, child) = self.children.last_mut().context("just pushed")?;
            if let Some(status) = child.try_wait()? {
                bail!("node {node} stopped with {status}:\n{}", self.log(node));
            }
        }
    }

    /// Waits until node a knows the addresses of the services.
    async fn registered(&self) -> anyhow::Result<()> {
        let end = Instant::now() + READY;
        loop {
            let status = self.status("a").await?;
            if status.dials.iter().all(|dial| !dial.instances.is_empty()) {
                return Ok(());
            }
            if Instant::now() > end {
                bail!("node a did not learn the addresses of the services:\n{}", self.log("a"));
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn status(&self, node: &str) -> Result<Status, AdminError> {
        request(&self.state_dir(node), hyper::Method::GET, "/v1/status", None::<&()>).await
    }

    pub(super) async fn client_status(&self) -> anyhow::Result<Status> {
        Ok(self.status("a").await?)
    }

    pub(super) async fn server_status(&self) -> anyhow::Result<Status> {
        Ok(self.status("b").await?)
    }

    fn log(&self, node: &str) -> String {
        let log = fs::read_to_string(self.dir.path().join(format!("{node}.log")));
        let log = log.unwrap_or_default();
        let tail = log.lines().rev().take(10).collect::<Vec<_>>();
        tail.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// A link to the console.
    pub(super) async fn console(&self) -> anyhow::Result<String> {
        let state_dir = self.state_dir("authority");
        let made: ConsoleAnswer =
            request(&state_dir, hyper::Method::POST, "/v1/console", Some(&())).await?;
        Ok(made.link)
    }

    pub(super) fn what_to_try(&self, own: bool, console: &str) -> String {
        let file = |node: &str| shell(&self.file(node));
        let exe = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
        let exe = shell(&exe);
        let mut out = format!(
            "\nThe demo is running. Its console (the link works once; for another, {exe} console --config {}):\n  \
             {console}\nTry:\n  curl http://{}/                       the service, through the relays\n  \
             curl http://{}/metrics\n  {exe} status --config {}\n  {exe} status --config {}\n  \
             {exe} node list --config {}\n  {exe} node remove b --config {}     and curl again\n",
            file("authority"),
            self.entry,
            self.admin,
            file("a"),
            file("b"),
            file("authority"),
            file("authority"),
        );
        if let (true, Some(entry)) = (own, self.own_entry) {
            out += &format!("Your own server, through the relays: {entry}\n");
        }
        out += &format!(
            "The public proof page, written again each minute. It proves its numbers after the first hour:\n  file://{}/index.html\n",
            self.proof_page().display()
        );
        out += &format!("Logs: {}/*.log. Stop with Ctrl-C.\n", self.dir.path().display());
        out
    }

    /// Waits until a node stops by itself, which none should.
    pub(super) async fn any_exit(&mut self) -> String {
        loop {
            for n in 0..self.children.len() {
                let (node, child) = &mut self.children[n];
                if let Ok(Some(status)) = child.try_wait() {
                    let node = *node;
                    return format!("node {node} stopped with {status}:\n{}", self.log(node));
                }
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// Stops all nodes gracefully and removes their state.
    pub(super) async fn stop(mut self) {
        for (_, child) in &mut self.children {
            if let Some(pid) = child.id().and_then(|id| rustix::process::Pid::from_raw(id as i32)) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
        }
        for (_, child) in &mut self.children {
            if tokio::time::timeout(Duration::from_secs(5), child.wait()).await.is_err() {
                let _ = child.kill().await;
            }
        }
    }
}

/// No process outlives the demo or writes into its directory while that is removed.
impl Drop for Nodes {
    fn drop(&mut self) {
        for (_, child) in &mut self.children {
            let _ = child.start_kill();
        }
        let end = std::time::Instant::now() + Duration::from_secs(2);
        let ended = |child: &mut Child| !matches!(child.try_wait(), Ok(None));
        while !self.children.iter_mut().all(|(_, child)| ended(child))
            && std::time::Instant::now() < end
        {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn shell(path: &Path) -> String {
    let text = path.display().to_string();
    match text.contains(char::is_whitespace) {
        true => format!("'{text}'"),
        false => text,
    }
}
