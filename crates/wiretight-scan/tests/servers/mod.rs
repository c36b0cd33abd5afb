//! Real TLS servers on loopback, each in a configuration that a scan must recognize, and some simulated ones
//! where no real server is available.
//!
//! [`all`] is the table. [`Config::start`] starts a server on a free port, with its files in a temporary folder;
//! dropping the [`Running`] stops it. Services of the system are not affected.
#![allow(dead_code, reason = "each of the tests uses a part")]

pub mod hostile;
pub mod pki;
#[path = "../../../../tests/ports.rs"]
mod ports;
pub mod programs;
pub mod proxies;
pub mod scans;
mod table;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ports::free;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tempfile::TempDir;
use wiretight_scan::{Host, Start, Target};

pub use table::all;

/// Time limits for a server to listen, and to stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// The purpose of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A real server: other scanners must agree on it.
    Real,
    /// Its weakness is simulated, because no real server with it is available.
    Mock,
    /// A real server behind an obstacle, or one with which scanners are known to have problems.
    Odd,
    /// It tries to make the scanner hang, crash or run out of memory.
    Hostile,
}

/// A server that can be started.
pub struct Config {
    /// The name in reports: `openssl-tls1_2`.
    pub name: &'static str,
    /// Its purpose.
    pub kind: Kind,
    /// The protocol before TLS.
    pub start: Start,
    /// How to start it.
    pub how: How,
}

/// How to start a server. Programs run in [`pki::folder`], so that arguments can name its files.
#[derive(Debug, Clone)]
pub enum How {
    /// `openssl s_server`, with these arguments after those for the port.
    Openssl(&'static str),
    /// `py/gnutls.py`, with this priority string and these arguments after the port.
    Gnutls(&'static str, &'static str),
    /// nginx, with this in its `server` block.
    Nginx(&'static str),
    /// HAProxy, with this on its `bind` line.
    Haproxy(&'static str),
    /// Node.js, with these options of `https.createServer`.
    Node(&'static str),
    /// Postfix's smtpd, with these lines in main.cf.
    Postfix(&'static str),
    /// Dovecot, with this protocol (`imap`, `pop3`) and these lines in its configuration.
    Dovecot(&'static str, &'static str),
    /// PostgreSQL, with these settings.
    Postgres(&'static [&'static str]),
    /// MariaDB, with these options.
    Mariadb(&'static [&'static str]),
    /// OpenLDAP's slapd, with these lines in slapd.conf.
    Slapd(&'static str),
    /// A script of `py/`, run by the Python of `target/tools/pypi`, with these arguments after the port.
    Python(&'static str, &'static str),
    /// A server of this table, behind this obstacle.
    Behind(&'static str, proxies::Trouble),
    /// Simulated by this process.
    Played(hostile::Play),
}

/// Why a server is not available.
#[derive(Debug)]
pub struct Missing(pub String);

/// A running server, which is stopped on drop.
pub struct Running {
    /// The name of its [`Config`].
    pub name: &'static str,
    /// Its purpose.
    pub kind: Kind,
    /// The protocol before TLS.
    pub start: Start,
    pub address: SocketAddr,
    /// The command line, for manual tests.
    pub shown: String,
    kid: Option<Kid>,
    played: Option<hostile::Stop>,
    behind: Option<Box<Running>>,
    dir: TempDir,
}

/// The server of this name.
pub fn config(name: &str) -> Config {
    all()
        .into_iter()
        .find(|config| config.name == name)
        .unwrap_or_else(|| panic!("unknown server {name}"))
}

/// Starts the server of this name. If its program is missing, prints a note and returns `None`; in CI, it fails.
pub fn start(name: &str) -> Option<Running> {
    match config(name).start() {
        Ok(running) => Some(running),
        Err(Missing(why)) => {
            assert!(std::env::var_os("CI").is_none(), "{name}: {why}");
            eprintln!("skipped: {name}: {why}");
            None
        }
    }
}

impl Config {
    /// Starts it, and waits until it listens.
    pub fn start(&self) -> Result<Running, Missing> {
        let dir = TempDir::with_prefix("wiretight-scan-").unwrap();
        let host = match self.name {
            "ipv6-only" => IpAddr::from(Ipv6Addr::LOCALHOST),
            _ => Ipv4Addr::LOCALHOST.into(),
        };
        let address = SocketAddr::new(host, free().port());
        let mut running = Running {
            name: self.name,
            kind: self.kind,
            start: self.start,
            address,
            shown: String::new(),
            kid: None,
            played: None,
            behind: None,
            dir,
        };
        match &self.how {
            How::Played(play) => {
                running.shown = format!("played: {play:?}");
                running.played = Some(hostile::start(address, *play));
            }
            How::Behind(name, trouble) => {
                let real = config(name).start()?;
                running.shown = format!("{} behind {trouble:?}", real.shown);
                running.played = Some(proxies::start(address, real.address, *trouble));
                running.behind = Some(Box::new(real));
            }
            _ => {
                let mut command = programs::command(self, address, running.dir.path())?;
                running.shown = show(&command);
                let kid = Kid::start(&mut command, &running.dir.path().join("log"));
                running.kid = Some(kid);
                running.wait().map_err(Missing)?;
            }
        }
        Ok(running)
    }
}

impl Running {
    /// The target by address. The certificate is for the address and for `localhost`.
    pub fn target(&self) -> Target {
        Target {
            host: Host::Address(self.address.ip(), None),
            port: self.address.port(),
            start: self.start,
        }
    }

    /// Its output so far.
    pub fn log(&self) -> String {
        let log = fs::read(self.dir.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    fn wait(&mut self) -> Result<(), String> {
        let begun = Instant::now();
        while TcpStream::connect_timeout(&self.address, Duration::from_secs(1)).is_err() {
            let ended = self.kid.as_mut().is_some_and(|kid| kid.ended(Duration::ZERO));
            if ended || begun.elapsed() > PATIENCE {
                return Err(format!("it does not listen: {}\n{}", self.shown, self.log()));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

/// A program and all its child processes, which are killed on drop.
struct Kid(Child);

impl Kid {
    fn start(command: &mut Command, log: &Path) -> Self {
        use std::os::unix::process::CommandExt;
        let out = fs::File::create(log).unwrap();
        // s_server stops at the end of its input, so its input stays open.
        command.stdin(Stdio::piped()).stdout(out.try_clone().unwrap()).stderr(out).process_group(0);
        Self(command.spawn().unwrap_or_else(|e| panic!("{}: {e}", show(command))))
    }

    fn ended(&mut self, within: Duration) -> bool {
        let begun = Instant::now();
        loop {
            match self.0.try_wait().unwrap() {
                Some(_) => return true,
                None if begun.elapsed() >= within => return false,
                None => thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}

/// All descendants of a running process. Postfix leaves the process group of
/// the command that starts it.
fn descendants(of: u32) -> Vec<Pid> {
    let parents: Vec<(u32, u32)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
            Some((pid, parent))
        })
        .collect();
    let mut family = vec![of];
    let mut next = 0;
    while let Some(parent) = family.get(next).copied() {
        family.extend(parents.iter().filter(|(_, p)| *p == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    family[1..].iter().filter_map(|pid| Pid::from_raw(pid.cast_signed())).collect()
}

impl Drop for Kid {
    fn drop(&mut self) {
        let family = descendants(self.0.id());
        let group = Pid::from_child(&self.0);
        // First SIGTERM: Postfix, Dovecot and PostgreSQL stop their children.
        let _ = kill_process_group(group, Signal::TERM);
        for pid in family {
            let _ = kill_process(pid, Signal::TERM);
        }
        if !self.ended(Duration::from_secs(3)) {
            let _ = kill_process_group(group, Signal::KILL);
            self.ended(Duration::from_secs(5));
        }
        // Remaining processes of the group.
        let _ = kill_process_group(group, Signal::KILL);
    }
}

fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// The path of a program. Servers are often in directories outside of PATH.
pub fn find(program: &str) -> Result<PathBuf, Missing> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<_> = std::env::split_paths(&path).collect();
    folders.extend(["/usr/sbin", "/sbin", "/usr/local/bin"].map(PathBuf::from));
    folders.extend(
        fs::read_dir("/usr/lib/postgresql")
            .into_iter()
            .flatten()
            .filter_map(|version| Some(version.ok()?.path().join("bin"))),
    );
    folders.push(from_pypi().join("bin"));
    folders
        .into_iter()
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
        .ok_or_else(|| Missing(format!("{program} is not installed")))
}

/// The folder where `scripts/test` installs what Debian does not have.
pub fn from_pypi() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    workspace.join("target/tools/pypi")
}
