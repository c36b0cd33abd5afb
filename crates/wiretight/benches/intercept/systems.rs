//! Two machines as network namespaces, and a node on each.

use std::{
    fs::File,
    net::SocketAddr,
    os::fd::AsFd,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{
    common::{
        node,
        process::{Lab, Process},
        procfs,
    },
    load,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// Client and server, removed when dropped.
pub(crate) struct Machines {
    client: String,
    server: String,
}

impl Machines {
    /// 10.77.0.1 and 10.77.0.2, connected by a veth pair.
    pub(crate) fn new(name: &str) -> anyhow::Result<Self> {
        let id = std::process::id();
        let [client, server] = ["c", "s"].map(|end| format!("wb{id}{name}{end}"));
        let machines = Self { client, server };
        let Self { client, server } = &machines;
        for line in [
            format!("netns add {client}"),
            format!("netns add {server}"),
            format!("-n {client} link add eth0 type veth peer name eth0 netns {server}"),
        ] {
            ip(&line)?;
        }
        for (end, host) in [(client, 1), (server, 2)] {
            ip(&format!("-n {end} link set lo up"))?;
            ip(&format!("-n {end} link set eth0 up"))?;
            ip(&format!("-n {end} addr add 10.77.0.{host}/24 dev eth0"))?;
            // Finding a free port takes as long between machines as on loopback, where the kernel reuses the ports of
            // connections that have just ended.
            ip(&format!("netns exec {end} sysctl -qw net.ipv4.tcp_tw_reuse=1"))?;
        }
        Ok(machines)
    }

    /// Redirects connections to `from` to `to`, a port of this machine, with a single rule: the minimum cost of a
    /// redirection in the kernel. The other machine tracks its own connections as well.
    fn redirect(&self, from: SocketAddr, to: SocketAddr) -> anyhow::Result<()> {
        let (ip, port, to) = (from.ip(), from.port(), to.port());
        let table = format!(
            "table inet bare {{ chain output {{ type nat hook output priority -110; \
             ip daddr {ip} tcp dport {port} redirect to :{to}; }}; }}"
        );
        for end in [&self.client, &self.server] {
            let done = Command::new("ip").args(["netns", "exec", end, "nft", &table]).output()?;
            if !done.status.success() {
                bail!("nft: {}", String::from_utf8_lossy(&done.stderr));
            }
        }
        Ok(())
    }

    /// From now on this thread creates its sockets on the client.
    pub(crate) fn enter_client(&self) -> anyhow::Result<()> {
        enter(&self.client)
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        for end in [&self.client, &self.server] {
            let _ = Command::new("ip").args(["netns", "del", end]).status();
        }
    }
}

fn ip(line: &str) -> anyhow::Result<()> {
    let done = Command::new("ip").args(line.split(' ')).output().context("ip (iproute2)")?;
    if !done.status.success() {
        bail!("ip {line}: {}", String::from_utf8_lossy(&done.stderr));
    }
    Ok(())
}

fn enter(machine: &str) -> anyhow::Result<()> {
    let file = File::open(format!("/run/netns/{machine}"))?;
    Ok(move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?)
}

/// A path from the client to the origin.
pub(crate) struct Pair {
    /// Where programs connect.
    pub(crate) entry: SocketAddr,
    nodes: [u32; 2],
}

impl Pair {
    pub(crate) fn pids(&self) -> [u32; 2] {
        self.nodes
    }

    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        procfs::cpu(&self.nodes)
    }
}

/// How the kernel redirects programs' connections.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taking {
    Nothing,
    /// By one rule, not one of ours, to the dial.
    Bare,
    /// Both nodes intercept, in strict mode.
    Strict,
}

/// Two running nodes, and the paths through them.
pub(crate) struct Nodes {
    pub(crate) dial: Pair,
    /// The address that the kernel redirects; the same as `dial` if it redirects none.
    pub(crate) taken: Pair,
    _nodes: [Process; 2],
}

/// The server's node is also the authority.
pub(crate) async fn start(lab: &Lab, machines: &Machines, taking: Taking) -> anyhow::Result<Nodes> {
    let server = machines.server.clone();
    let origin = thread::spawn(move || {
        enter(&server)?;
        Ok::<_, anyhow::Error>(load::start_origin()?)
    });
    let origin = origin.join().expect("it does not panic")?;
    let run = lab.run("nodes")?;
    let intercept = match taking {
        Taking::Strict => {
            "[intercept]\nmode = \"strict\"\nas = \"AS\"\nprotect = [\"10.77.0.0/24\"]\n"
        }
        Taking::Nothing | Taking::Bare => "",
    };
    let entry: SocketAddr = ([127, 0, 0, 1], 5433).into();
    let spawn = |name: &str, machine: &str, config: &std::path::Path| {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", machine, node::WIRETIGHT, "run", "--config"]).arg(config);
        run.spawn(name, &mut command)
    };
    let b = node::config(
        &run,
        "b",
        lab.free_address()?,
        &format!(
            "workers = 1
[authority]
listen = \"10.77.0.2:7400\"
[[service]]
name = \"echo\"
listen = \"10.77.0.2:7001\"
forward = [\"{origin}\"]
allow = [\"service/web\"]
{}",
            intercept.replace("AS", "echo")
        ),
    )?;
    let server = spawn("b", &machines.server, &b)?;
    let end = Instant::now() + PATIENCE;
    let token = loop {
        let mut create = Command::new(node::WIRETIGHT);
        create.args(["token", "create", "--node", "a", "--service", "web", "--config"]).arg(&b);
        let done = create.output()?;
        if done.status.success() {
            break String::from_utf8(done.stdout)?;
        }
        if Instant::now() > end {
            bail!("{}\n{}", String::from_utf8_lossy(&done.stderr), server.log());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let a = node::config(
        &run,
        "a",
        lab.free_address()?,
        &format!(
            "workers = 1
join_token_file = {:?}
[[dial]]
listen = \"{entry}\"
service = \"echo\"
as = \"web\"
to = [\"10.77.0.2:7001\"]
{}",
            run.file("a.token", &token)?,
            intercept.replace("AS", "web")
        ),
    )?;
    let client = spawn("a", &machines.client, &a)?;
    machines.enter_client()?;
    let nodes = [client.id(), server.id()];
    let server_itself = SocketAddr::from(([10, 77, 0, 2], origin.port()));
    let taken = if taking == Taking::Nothing { entry } else { server_itself };
    if taking == Taking::Bare {
        machines.redirect(taken, entry)?;
    }
    for way in [entry, taken] {
        let answers = load::wait_until_it_answers(way, PATIENCE).await;
        answers.with_context(|| format!("{way}\n{}\n{}", client.log(), server.log()))?;
    }
    Ok(Nodes {
        dial: Pair { entry, nodes },
        taken: Pair { entry: taken, nodes },
        _nodes: [client, server],
    })
}
