//! The base of the scenarios: nodes as child processes, ports, programs, load.
//!
//! Every process is killed by its process id when its value is dropped, also if a test panics; in that case the end of
//! its log is printed.

use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) use super::common::*;

pub(crate) const TD: &str = "example.org";
pub(crate) const GROUP: &str = "X25519MLKEM768";
/// A suite of TLS 1.3, which no older version can negotiate (RFC 8446, B.4).
pub(crate) const CIPHER: &str = "TLS_AES_256_GCM_SHA384";
pub(crate) fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

// ---- Programs.

/// A child process; killed when dropped.
pub(crate) struct Kid {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Kid {
    /// Starts it with its output in a log file.
    pub(crate) fn start(command: &mut Command, log: &Path) -> Kid {
        let out = File::options().create(true).append(true).open(log).unwrap();
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        Kid { name, child, log: log.into() }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32).unwrap();
        let _ = kill_process(pid, signal);
    }

    /// Its exit status, if it ends in time.
    pub(crate) fn ended(&mut self, within: Duration) -> Option<ExitStatus> {
        let end = Instant::now() + within;
        loop {
            match self.child.try_wait().unwrap() {
                None if Instant::now() < end => thread::sleep(ms(5)),
                status => return status,
            }
        }
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub(crate) fn log(&self) -> String {
        thread::sleep(LOG_LAG);
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Kid {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            let log = self.log();
            let lines: Vec<_> =
                log.lines().filter(|l| !l.contains(r#""target":"access""#)).collect();
            say(format!("---- end of the log of {} ({}):", self.name, self.log.display()));
            lines.iter().skip(lines.len().saturating_sub(40)).for_each(say);
        }
    }
}

/// The result of a finished command.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    /// Runs a command, which must finish within two minutes.
    pub(crate) fn of(command: &mut Command, stdin: &str) -> Ran {
        let shown = format!("{command:?}");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Its children inherit its pipes, so everything can be ended together.
        let mut child = command.process_group(0).spawn().unwrap_or_else(|e| panic!("{shown}: {e}"));
        let collect = |pipe: Option<Box<dyn Read + Send>>| {
            let mut pipe = pipe.unwrap();
            thread::spawn(move || {
                let mut bytes = Vec::new();
                let _ = pipe.read_to_end(&mut bytes);
                String::from_utf8_lossy(&bytes).into_owned()
            })
        };
        let out = collect(child.stdout.take().map(|p| Box::new(p) as _));
        let err = collect(child.stderr.take().map(|p| Box::new(p) as _));
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
        let end = Instant::now() + 2 * PATIENCE;
        let status = loop {
            match child.try_wait().unwrap() {
                Some(status) => break status,
                None if Instant::now() < end => thread::sleep(ms(2)),
                None => {
                    let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
                    panic!(
                        "does not end: {shown}\n{}\n{}",
                        out.join().unwrap(),
                        err.join().unwrap()
                    );
                }
            }
        };
        Ran { code: status.code(), out: out.join().unwrap(), err: err.join().unwrap() }
    }

    #[track_caller]
    pub(crate) fn good(self) -> Ran {
        assert_eq!(self.code, Some(0), "{}\n{}", self.out, self.err);
        self
    }

    pub(crate) fn all(&self) -> String {
        format!("{}{}", self.out, self.err)
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

/// The binary under test.
pub(crate) fn wiretight() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wiretight"));
    command.env_remove("WIRETIGHT_CONFIG").env_remove("WIRETIGHT_LOG").env_remove("NOTIFY_SOCKET");
    command
}

/// The command in a network namespace, with nothing else separate. (`nsenter` becomes the command: it is the same
/// process.)
pub(crate) fn within(netns: Option<&str>, command: Command) -> Command {
    let Some(netns) = netns else { return command };
    let mut outer = Command::new("nsenter");
    outer
        .arg(format!("--net=/run/netns/{netns}"))
        .arg("--")
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    outer
}

/// Runs a function on a thread in a network namespace, so that its sockets are in that namespace.
pub(crate) fn on<T: Send + 'static>(
    netns: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    let namespace = File::open(format!("/run/netns/{netns}")).unwrap();
    small_thread(move || {
        let network = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(namespace.as_fd(), network).unwrap();
        body()
    })
}

// ---- Nodes.

/// A directory for nodes. It is declared before them, so that it is dropped after them.
pub(crate) struct World {
    dir: TempDir,
}

impl World {
    pub(crate) fn new() -> World {
        World { dir: tempfile::Builder::new().prefix("wiretight-test-").tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A node with its configuration file, not started. `sections` follow the `[node]` section, and may start with further
    /// keys of it.
    pub(crate) fn node(&self, name: &str, sections: &str) -> Node {
        self.node_in(name, name, sections)
    }

    /// The same in a directory with another name.
    pub(crate) fn node_in(&self, folder: &str, name: &str, sections: &str) -> Node {
        let dir = self.path(folder);
        fs::create_dir(&dir).unwrap();
        let admin = free();
        let (name, env) = (name.into(), Vec::new());
        let before = Vec::new();
        let node = Node { name, dir, admin, listen: None, env, netns: None, kid: None, before };
        node.write(sections);
        node
    }

    /// A running authority. `more` is added to its `[authority]` section.
    pub(crate) fn authority(&self, more: &str) -> Node {
        let listen = free();
        let mut node = self.node("auth", &format!("[authority]\nlisten = \"{listen}\"\n{more}"));
        node.listen = Some(listen);
        node.start();
        node.ready();
        node
    }

    /// A running node that has joined.
    pub(crate) fn joined(
        &self,
        authority: &Node,
        name: &str,
        services: &[&str],
        sections: &str,
    ) -> Node {
        let mut node = self.node(name, sections);
        fs::write(node.token_file(), authority.token(name, services)).unwrap();
        node.start();
        node.ready();
        node
    }
}

/// One `wiretight run`.
pub(crate) struct Node {
    pub(crate) name: String,
    dir: PathBuf,
    pub(crate) admin: SocketAddr,
    /// The address on which the authority listens.
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) env: Vec<(&'static str, PathBuf)>,
    /// The network namespace that it runs in.
    pub(crate) netns: Option<String>,
    kid: Option<Kid>,
    /// Previous processes, which may still be draining.
    before: Vec<Kid>,
}

impl Node {
    /// Rewrites its configuration file.
    pub(crate) fn write(&self, sections: &str) {
        let token = match sections.contains("[authority]") {
            true => String::new(),
            false => format!("join_token_file = \"{}\"\n", self.token_file().display()),
        };
        let text = format!(
            "[node]\nname = \"{}\"\ntrust_domain = \"{TD}\"\nstate_dir = \"{}\"\nadmin = \"{}\"\n{token}{sections}",
            self.name,
            self.state().display(),
            self.admin,
        );
        fs::write(self.file(), text).unwrap();
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.dir.join("wiretight.toml")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    pub(crate) fn token_file(&self) -> PathBuf {
        self.dir.join("token")
    }

    fn log_file(&self) -> PathBuf {
        self.dir.join("log")
    }

    pub(crate) fn start(&mut self) {
        let mut command = within(self.netns.as_deref(), wiretight());
        command.args(["run", "--config"]).arg(self.file());
        command.envs(self.env.iter().cloned());
        self.kid = Some(Kid::start(&mut command, &self.log_file()));
    }

    /// The same with a limit of file descriptors. (`prlimit` becomes the command.)
    pub(crate) fn start_with_descriptors(&mut self, most: u32) {
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile={most}:{most}")).arg(wiretight().get_program());
        command.args(["run", "--config"]).arg(self.file());
        self.kid = Some(Kid::start(&mut command, &self.log_file()));
    }

    /// Starts a process that takes over from the running one.
    pub(crate) fn successor(&self) -> Kid {
        let mut command = within(self.netns.as_deref(), wiretight());
        command.args(["run", "--take-over", "--config"]).arg(self.file());
        command.envs(self.env.iter().cloned());
        Kid::start(&mut command, &self.log_file())
    }

    /// Makes this process the node's; returns the previous one.
    pub(crate) fn replace(&mut self, new: Kid) -> Kid {
        self.kid.replace(new).expect("the node was started")
    }

    /// Lets another process take over, and waits until it has.
    #[track_caller]
    pub(crate) fn upgrade(&mut self) {
        let mut new = self.successor();
        wait_for(&format!("another process is node {}", self.name), || {
            if let Some(status) = new.ended(Duration::ZERO) {
                panic!("it ended with {status}:\n{}", self.log());
            }
            let said = self.http("GET", "/v1/status", "");
            let taken = |body: String| {
                body.contains(&format!("\"pid\":{},", new.pid()))
                    && body.contains("\"taking_over\":false")
            };
            said.is_ok_and(|(_, body)| taken(body))
        });
        let old = self.replace(new);
        self.before.push(old);
        let log = self.log();
        let faults = || log.lines().filter(|line| !line.contains("\"INFO\"")).collect::<Vec<_>>();
        self.before.retain_mut(|old| match old.ended(Duration::ZERO) {
            Some(status) => {
                let who = "a process that was taken over from";
                assert!(status.success(), "{who} ended with {status}: {:#?}", faults());
                false
            }
            None => true,
        });
    }

    /// Starts it while its previous process still drains.
    pub(crate) fn start_beside(&mut self) {
        self.before.extend(self.kid.take());
        self.start();
    }

    /// The previous processes that still drain.
    pub(crate) fn before(&mut self) -> &mut Vec<Kid> {
        &mut self.before
    }

    pub(crate) fn kid(&mut self) -> &mut Kid {
        self.kid.as_mut().expect("the node was started")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.kid.as_ref().expect("the node was started").pid()
    }

    /// Waits until it is ready.
    #[track_caller]
    pub(crate) fn ready(&mut self) {
        let end = Instant::now() + PATIENCE;
        loop {
            let said = self.http("GET", "/readyz", "");
            if matches!(&said, Ok((200, _))) {
                return;
            }
            if let Some(status) = self.kid().ended(Duration::ZERO) {
                panic!("node {} ended with {status}:\n{}", self.name, self.log());
            }
            assert!(Instant::now() < end, "node {} is not ready: {said:?}", self.name);
            thread::sleep(ms(10));
        }
    }

    pub(crate) fn kill(&mut self) {
        self.kid().kill();
        self.kid = None;
    }

    /// Sends a request to the admin socket.
    pub(crate) fn http(&self, method: &str, path: &str, body: &str) -> io::Result<(u16, String)> {
        let mut socket = UnixStream::connect(self.state().join("admin.sock"))?;
        socket.set_read_timeout(Some(2 * PATIENCE))?;
        http(&mut socket, method, path, body)
    }

    /// Sends a request to the port for health checks.
    pub(crate) fn probe(&self, path: &str) -> io::Result<(u16, String)> {
        let mut socket = TcpStream::connect(self.admin)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        http(&mut socket, "GET", path, "")
    }

    /// `wiretight VERB ... --config FILE`
    pub(crate) fn cli(&self, args: &[&str]) -> Ran {
        self.cli_with(args, "")
    }

    pub(crate) fn cli_with(&self, args: &[&str], stdin: &str) -> Ran {
        Ran::of(wiretight().args(args).arg("--config").arg(self.file()), stdin)
    }

    #[track_caller]
    pub(crate) fn status(&self) -> Value {
        self.cli(&["status", "--json"]).json()
    }

    #[track_caller]
    pub(crate) fn token(&self, node: &str, services: &[&str]) -> String {
        self.token_at(node, services, &[])
    }

    /// A join token for a node that announces other addresses than the one that it connects from.
    #[track_caller]
    pub(crate) fn token_at(&self, node: &str, services: &[&str], addresses: &[&str]) -> String {
        let mut args = vec!["token", "create", "--yes", "--node", node];
        services.iter().for_each(|s| args.extend(["--service", s]));
        addresses.iter().for_each(|a| args.extend(["--address", a]));
        self.cli(&args).good().out
    }

    pub(crate) fn log(&self) -> String {
        thread::sleep(LOG_LAG);
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// The lines of its access log.
    pub(crate) fn access(&self) -> Vec<Value> {
        let parsed = |line: &str| serde_json::from_str::<Value>(line).ok();
        self.log().lines().filter_map(parsed).filter(|v| v["target"] == "access").collect()
    }

    /// `VmHWM` and the like from /proc/PID/status.
    pub(crate) fn proc_status(&self, key: &str) -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse().ok()
    }

    /// Waits until the node knows the address of a service from the registry.
    #[track_caller]
    pub(crate) fn knows(&self, service: &str) {
        wait_for(&format!("{} knows where {service} is", self.name), || {
            let status = self.status();
            let mut dials = status["dials"].as_array().into_iter().flatten();
            dials.any(|d| {
                d["service"] == service && d["instances"].as_array().is_some_and(|i| !i.is_empty())
            })
        });
    }
}

#[track_caller]
fn http(
    socket: &mut (impl Read + Write),
    method: &str,
    path: &str,
    body: &str,
) -> io::Result<(u16, String)> {
    let length = body.len();
    write!(
        socket,
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\naccept: application/openmetrics-text, */*\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    let code = head.split(' ').nth(1).and_then(|c| c.parse().ok());
    Ok((code.ok_or(io::ErrorKind::InvalidData)?, body.to_owned()))
}

/// `[[service]]`
pub(crate) fn service(name: &str, listen: SocketAddr, to: impl Display, allow: &str) -> String {
    format!(
        "[[service]]\nname = \"{name}\"\nlisten = \"{listen}\"\nforward = \"{to}\"\nallow = [{allow}]\n"
    )
}

/// `[[dial]]`
pub(crate) fn dial(listen: SocketAddr, service: &str, identity: &str) -> String {
    format!("[[dial]]\nlisten = \"{listen}\"\nservice = \"{service}\"\nas = \"{identity}\"\n")
}

/// An authority, `db1` with services, and `app1`, which calls them as `web`.
pub(crate) struct Pair {
    pub(crate) auth: Node,
    pub(crate) db: Node,
    pub(crate) app: Node,
    pub(crate) world: World,
}

impl Pair {
    /// `services`: names and backends. Returns the address where programs connect to each.
    pub(crate) fn new(authority: &str, services: &[(&str, String)]) -> (Pair, Vec<SocketAddr>) {
        let world = World::new();
        let auth = world.authority(authority);
        let names: Vec<&str> = services.iter().map(|s| s.0).collect();
        let offers: String =
            services.iter().map(|(n, to)| service(n, free(), to, "\"service/web\"")).collect();
        let entries: Vec<SocketAddr> = names.iter().map(|_| free()).collect();
        let dials: String = names.iter().zip(&entries).map(|(n, at)| dial(*at, n, "web")).collect();
        let db = world.joined(&auth, "db1", &names, &offers);
        let app = world.joined(&auth, "app1", &["web"], &dials);
        names.iter().for_each(|name| app.knows(name));
        (Pair { auth, db, app, world }, entries)
    }

    /// A mesh with one echo service.
    pub(crate) fn echo(authority: &str) -> (Pair, SocketAddr) {
        let (pair, entries) = Pair::new(authority, &[("echo", echo().to_string())]);
        (pair, entries[0])
    }

    /// Checks that both sides report the service's traffic as encrypted, between the right identities.
    #[track_caller]
    pub(crate) fn assert_protected(&self, service: &str) {
        let id = |name: &str| format!("spiffe://{TD}/service/{name}");
        for (node, side, peer) in
            [(&self.app, "dial", id(service)), (&self.db, "service", id("web"))]
        {
            let status = node.status();
            let all = status["relay"]["connections"].as_array().unwrap();
            let ours: Vec<_> = all.iter().filter(|c| c["service"] == service).collect();
            assert!(!ours.is_empty(), "{side} shows no connection of {service}: {status:#}");
            for c in ours {
                let seen = [&c["side"], &c["peer"], &c["group"], &c["cipher"]];
                assert_eq!(seen, [side, &peer, GROUP, CIPHER], "{c:#}");
            }
            let sums = status["relay"]["sums"].as_array().unwrap();
            let sum = sums.iter().find(|s| s["service"] == service && s["side"] == side).unwrap();
            assert!(sum["sessions"].as_u64().unwrap() > 0, "{sum:#}");
            assert!(sum["bytes_in"].as_u64().unwrap() > 0, "{sum:#}");
            assert!(sum["bytes_out"].as_u64().unwrap() > 0, "{sum:#}");
        }
    }
}

// ---- Load.

/// A server that sends back what it receives, including a half-close.
pub(crate) fn echo() -> SocketAddr {
    serve(|mut socket| {
        let mut buffer = [0; 16 * 1024];
        while let Ok(n) = socket.read(&mut buffer) {
            if n == 0 || socket.write_all(&buffer[..n]).is_err() {
                break;
            }
        }
    })
}

/// A server with a thread per connection, for as long as the tests run.
pub(crate) fn serve(each: impl Fn(TcpStream) + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind(free()).unwrap();
    let addr = listener.local_addr().unwrap();
    small_thread(move || {
        for socket in listener.incoming().flatten() {
            let _ = socket.set_nodelay(true);
            let each = each.clone();
            small_thread(move || each(socket));
        }
    });
    addr
}

fn small_thread<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    thread::Builder::new().stack_size(256 * 1024).spawn(body).unwrap()
}

/// A connection on which every exchange is checked.
pub(crate) struct Talk {
    socket: TcpStream,
    number: u64,
}

impl Talk {
    pub(crate) fn open(addr: SocketAddr) -> io::Result<Talk> {
        let socket = TcpStream::connect(addr)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Talk { socket, number: 0 })
    }

    /// Sends something and gets it back.
    pub(crate) fn exchange(&mut self) -> io::Result<()> {
        self.number += 1;
        let length = 16 + (self.number * 37 % 1000) as usize;
        let sent: Vec<u8> = (0..length).map(|i| (self.number as usize * 31 + i) as u8).collect();
        self.socket.write_all(&sent)?;
        let mut got = vec![0; length];
        self.socket.read_exact(&mut got)?;
        match got == sent {
            true => Ok(()),
            false => Err(io::Error::other("other bytes came back")),
        }
    }

    /// Closes the connection regularly; the peer must do so as well.
    pub(crate) fn close(mut self) -> io::Result<()> {
        self.socket.shutdown(Shutdown::Write)?;
        match self.socket.read(&mut [0; 1])? {
            0 => Ok(()),
            _ => Err(io::Error::other("bytes after the end")),
        }
    }
}

/// One exchange on a new connection.
pub(crate) fn once(addr: SocketAddr) -> io::Result<()> {
    let mut talk = Talk::open(addr)?;
    talk.exchange()?;
    talk.close()
}

/// Connections that exchange data until they are stopped.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    errors: Arc<Mutex<Vec<String>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// `live` connections that stay open, and `short` threads that open one after another.
    pub(crate) fn start(addr: SocketAddr, live: usize, short: usize) -> Load {
        let mut load = Load {
            stop: Arc::default(),
            count: Arc::default(),
            errors: Arc::default(),
            threads: Vec::new(),
        };
        for n in 0..live + short {
            let (stop, count, errors) =
                (load.stop.clone(), load.count.clone(), load.errors.clone());
            let talk = (n < live).then(|| Talk::open(addr).unwrap());
            load.threads.push(small_thread(move || {
                let step = || {
                    count.fetch_add(1, Relaxed);
                    thread::sleep(ms(25));
                };
                let run = || -> io::Result<()> {
                    let Some(mut talk) = talk else {
                        while !stop.load(Relaxed) {
                            once(addr)?;
                            step();
                        }
                        return Ok(());
                    };
                    while !stop.load(Relaxed) {
                        talk.exchange()?;
                        step();
                    }
                    talk.close()
                };
                if let Err(e) = run() {
                    let kind = if n < live { "live" } else { "short" };
                    errors.lock().unwrap().push(format!("{kind} connection {n}: {e}"));
                }
            }));
        }
        load.moves();
        load
    }

    pub(crate) fn count(&self) -> u64 {
        self.count.load(Relaxed)
    }

    /// Waits for progress: some exchanges per connection. (A connection that hangs fails by its read deadline.)
    #[track_caller]
    pub(crate) fn moves(&self) {
        let goal = self.count() + 3 * self.threads.len() as u64;
        wait_for("exchanges go on", || self.count() >= goal || !self.errors().is_empty());
        self.assert_clean();
    }

    pub(crate) fn errors(&self) -> Vec<String> {
        self.errors.lock().unwrap().clone()
    }

    #[track_caller]
    pub(crate) fn assert_clean(&self) {
        let errors = self.errors();
        assert!(
            errors.is_empty(),
            "{} errors, among them {:?}",
            errors.len(),
            &errors[..errors.len().min(5)]
        );
    }

    /// Closes every connection; none may have failed. Returns the number of exchanges.
    #[track_caller]
    pub(crate) fn stop(mut self) -> u64 {
        self.stop.store(true, Relaxed);
        self.threads.drain(..).for_each(|t| t.join().unwrap());
        self.assert_clean();
        self.count()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

/// A random number generator for tests; its creator prints the seed.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn of(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn new(what: &str) -> Dice {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let given = std::env::var("WIRETIGHT_TEST_SEED").ok().and_then(|s| s.parse().ok());
        let seed = given.unwrap_or(now.as_nanos() as u64);
        say(format!("{what}: WIRETIGHT_TEST_SEED={seed}"));
        Dice(seed | 1)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }
}

/// Makes a command run as an ordinary user if this process runs as root.
pub(crate) fn unprivileged(command: &mut Command, user: (u32, u32)) -> &mut Command {
    match rustix::process::geteuid().is_root() {
        true => command.uid(user.0).gid(user.1),
        false => command,
    }
}

/// Only `POST /v1/renew`.
pub(crate) fn renew(node: &Node) -> Result<(), String> {
    match node.http("POST", "/v1/renew", &json!(null).to_string()) {
        Ok((200, _)) => Ok(()),
        other => Err(format!("{}: {other:?}", node.name)),
    }
}
