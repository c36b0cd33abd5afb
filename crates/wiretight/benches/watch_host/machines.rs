//! Two machines on one wire, and what runs on them: servers, and the kernel's part of watching alone.

use std::{
    fs::File,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener},
    os::fd::{AsFd, OwnedFd},
    process::Command,
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context, ensure};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, netlink, recv, send,
    socket_with, sockopt,
};
use rustix::thread::{LinkNameSpaceType, gettid, move_into_link_name_space};

use crate::common::process::output;

pub(crate) const REQUEST: &[u8] = b"GET /page HTTP/1.1\r\nhost: bench.test\r\n\r\n";
/// The length of a response.
pub(crate) const RESPONSE: usize = 1024;
/// The server has several addresses, so that a client does not use a port again while the kernel tracks its last
/// connection.
pub(crate) const SERVERS: [Ipv4Addr; 4] = [
    Ipv4Addr::new(10, 76, 0, 2),
    Ipv4Addr::new(10, 76, 0, 3),
    Ipv4Addr::new(10, 76, 0, 4),
    Ipv4Addr::new(10, 76, 0, 5),
];
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 76, 0, 1);
pub(crate) const WEB: u16 = 80;
pub(crate) const SINK: u16 = 9;
/// How often the kernel's messages are read when nothing is done with them: as often as the node does it.
const PACE: Duration = Duration::from_millis(20);
/// The group of nfnetlink_log that the node uses.
const GROUP: u16 = 5754;

/// Two namespaces; removed when dropped.
pub(crate) struct Machines {
    pub(crate) client: String,
    pub(crate) server: String,
    /// Threads of this program that serve.
    pub(crate) servers: Vec<u32>,
}

impl Machines {
    pub(crate) fn new(name: &str) -> anyhow::Result<Machines> {
        let id = format!("wtb{}{name}", std::process::id());
        let (client, server) = (format!("{id}c"), format!("{id}s"));
        let mut machines = Machines { client, server, servers: Vec::new() };
        let Machines { client, server, .. } = &machines;
        let mut lines = vec![
            format!("netns add {client}"),
            format!("netns add {server}"),
            format!("-n {client} link add eth0 type veth peer name eth0 netns {server}"),
            format!("-n {client} addr add {CLIENT}/24 dev eth0"),
        ];
        lines.extend(SERVERS.map(|ip| format!("-n {server} addr add {ip}/24 dev eth0")));
        lines.extend([
            format!("-n {client} link set eth0 up"),
            format!("-n {server} link set eth0 up"),
            format!("-n {server} link set lo up"),
        ]);
        for line in lines {
            let status = Command::new("ip").args(line.split(' ')).status()?;
            ensure!(status.success(), "ip {line}");
        }
        machines.servers = vec![
            serve(&machines.server, WEB, answer)?,
            serve(&machines.server, SINK, swallow)?,
            serve(&machines.client, WEB, answer)?,
        ];
        Ok(machines)
    }

    /// The command on the server.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.server)).arg("--").arg(program);
        command
    }

    /// The kernel tracks connections, as it does on machines whose firewall asks for their states.
    pub(crate) fn track(&self) -> anyhow::Result<()> {
        self.nft("table inet other { chain c { type filter hook input priority 0; ct state invalid counter; }; }")
    }

    /// The kernel's part of watching: counters, notifications, and copies of first packets by the rules of `watched`.
    /// They are read and thrown away. Returns the thread that does it.
    pub(crate) fn only_read(&self, watched: &Machines) -> anyhow::Result<u32> {
        for name in ["acct", "timestamp", "events"] {
            let mut sysctl = self.command("sysctl");
            sysctl.arg("-qw").arg(format!("net.netfilter.nf_conntrack_{name}=1"));
            output(&mut sysctl).with_context(|| format!("{sysctl:?}"))?;
        }
        let rules = output(watched.command("nft").args(["list", "ruleset"]));
        let rules = rules.context("nft list ruleset")?;
        let rules: Vec<&str> = rules.lines().filter(|line| !line.contains("flags owner")).collect();
        ensure!(rules.iter().any(|line| line.contains("log group")), "{rules:?}");
        self.nft(&rules.join("\n"))?;
        let (tell, thread) = mpsc::channel();
        on(&self.server, move || -> anyhow::Result<()> {
            let sockets = [packets()?, open(0b101)?];
            let _ = tell.send(gettid().as_raw_nonzero().get() as u32);
            let mut buffer = vec![0; 256 << 10];
            loop {
                thread::sleep(PACE);
                for socket in &sockets {
                    while let Ok(_) | Err(Errno::NOBUFS | Errno::INTR) =
                        recv(socket, &mut buffer[..], RecvFlags::DONTWAIT)
                    {}
                }
            }
        })?;
        thread.recv().context("the kernel's messages cannot be read")
    }

    fn nft(&self, rules: &str) -> anyhow::Result<()> {
        let mut nft = self.command("nft");
        nft.arg(rules);
        output(&mut nft).with_context(|| format!("{nft:?}")).map(drop)
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        for namespace in [&self.client, &self.server] {
            let _ = Command::new("ip").args(["netns", "del", namespace]).status();
        }
    }
}

/// Runs a function on a thread in a namespace.
pub(crate) fn on<T: Send + 'static>(
    namespace: &str,
    body: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<thread::JoinHandle<anyhow::Result<T>>> {
    let file = File::open(format!("/run/netns/{namespace}"))?;
    Ok(thread::spawn(move || {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
        body()
    }))
}

/// Serves one connection after the other. Returns the thread.
fn serve(
    namespace: &str,
    port: u16,
    connection: fn(&mut std::net::TcpStream, &mut [u8]) -> std::io::Result<()>,
) -> anyhow::Result<u32> {
    let (tell, thread) = mpsc::channel();
    on(namespace, move || -> anyhow::Result<()> {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
        let _ = tell.send(gettid().as_raw_nonzero().get() as u32);
        let mut buffer = vec![0; 1 << 20];
        loop {
            let (mut stream, _) = listener.accept()?;
            let _ = connection(&mut stream, &mut buffer);
        }
    })?;
    thread.recv().with_context(|| format!("cannot listen on port {port} in {namespace}"))
}

fn answer(stream: &mut std::net::TcpStream, buffer: &mut [u8]) -> std::io::Result<()> {
    stream.read_exact(&mut buffer[..REQUEST.len()])?;
    stream.write_all(&[b'x'; RESPONSE])
}

fn swallow(stream: &mut std::net::TcpStream, buffer: &mut [u8]) -> std::io::Result<()> {
    while stream.read(buffer)? > 0 {}
    stream.write_all(b"k")
}

/// A socket for messages of netfilter.
fn open(groups: u32) -> anyhow::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let protocol = Some(netlink::NETFILTER);
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
    bind(&socket, &netlink::SocketAddrNetlink::new(0, groups))?;
    sockopt::set_socket_recv_buffer_size_force(&socket, 4 << 20)?;
    Ok(socket)
}

/// A socket for packets, with the settings of the node (linux/netfilter/nfnetlink_log.h).
fn packets() -> anyhow::Result<OwnedFd> {
    let socket = open(0)?;
    let attribute = |kind: u16, value: &[u8]| {
        let mut out = (4 + value.len() as u16).to_ne_bytes().to_vec();
        out.extend(kind.to_ne_bytes());
        out.extend(value);
        out.resize(out.len().next_multiple_of(4), 0);
        out
    };
    let mode = [&2048u32.to_be_bytes()[..], &[2, 0]].concat();
    let settings = [
        attribute(2, &mode),
        attribute(3, &(128u32 << 10).to_be_bytes()),
        attribute(4, &10u32.to_be_bytes()),
        attribute(5, &512u32.to_be_bytes()),
        attribute(6, &1u16.to_be_bytes()),
    ];
    for attributes in [attribute(1, &[1]), settings.concat()] {
        let body = [&[0, 0][..], &GROUP.to_be_bytes(), &attributes].concat();
        let mut message = (16 + body.len() as u32).to_ne_bytes().to_vec();
        // NFNL_SUBSYS_ULOG and NFULNL_MSG_CONFIG; NLM_F_REQUEST and NLM_F_ACK.
        message.extend((4u16 << 8 | 1).to_ne_bytes());
        message.extend(5u16.to_ne_bytes());
        message.extend([0; 8]);
        message.extend(&body);
        send(&socket, &message, SendFlags::empty())?;
        let mut answer = [0; 4096];
        let length = recv(&socket, &mut answer[..], RecvFlags::empty())?.0;
        ensure!(answer[..length].get(16..20) == Some(&[0; 4]), "nfnetlink_log: {answer:?}");
    }
    Ok(socket)
}
