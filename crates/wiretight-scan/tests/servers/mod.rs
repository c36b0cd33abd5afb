//! Real TLS servers on loopback, each in a configuration that a scan must see through, and a few that are made up
//! where no real one can be had.
//!
//! [`all`] is the table; [`Config::start`] starts one on a free port, with what it writes in a temporary folder;
//! dropping the [`Running`] ends it. No service of the system is touched.
#![allow(dead_code, reason = "each of the tests uses a part")]

pub mod hostile;
pub mod pki;
pub mod programs;
pub mod proxies;
pub mod scans;
mod table;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use std::{fs, io};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tempfile::TempDir;
use wiretight_scan::{Host, Start, Target};

pub use table::all;

/// How long a server may take until it listens, and to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a server is here for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A real one: other scanners must agree on it.
    Real,
    /// Its weakness is played, for no real server that has it can be had.
    Mock,
    /// Real, behind something that is in the way; or one that scanners are known to stumble over.
    Odd,
    /// It wants the scanner to hang, to crash or to run out of memory.
    Hostile,
}

/// A server that can be started.
pub struct Config {
    /// As it stands in reports: `openssl-tls1_2`.
    pub name: &'static str,
    /// What it is for.
    pub kind: Kind,
    /// What is spoken before TLS.
    pub start: Start,
    /// What is started.
    pub how: How,
}

/// What is started. Programs run in [`pki::folder`], so their arguments name its files.
#[derive(Debug, Clone)]
pub enum How {
    /// `openssl s_server`, with these arguments after the port's.
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
    /// A server of this table, behind this.
    Behind(&'static str, proxies::Trouble),
    /// Played by this process.
    Played(hostile::Play),
}

/// Why a server cannot be had.
#[derive(Debug)]
pub struct Missing(pub String);

/// A server that listens. It ends when this is dropped.
pub struct Running {
    /// The name of its [`Config`].
    pub name: &'static str,
    /// What it is for.
    pub kind: Kind,
    /// What is spoken before TLS.
    pub start: Start,
    /// Where it listens.
    pub address: SocketAddr,
    /// What it runs, for people who want to see for themselves.
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
        .unwrap_or_else(|| panic!("no server is called {name}"))
}

/// Starts the server of this name; `None`, with a word on it, where its program is missing. In CI, none may be.
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
        let address = SocketAddr::new(host, free_port());
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
    /// By its address; its certificate is for that, and for `localhost`.
    pub fn target(&self) -> Target {
        Target {
            host: Host::Address(self.address.ip(), None),
            port: self.address.port(),
            start: self.start,
        }
    }

    /// What it wrote so far.
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

/// A port that is free on both loopback addresses, below those that clients get.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 20_000;
    // Test binaries that run at the same time begin at different ports.
    let begin = (std::process::id() as u16).wrapping_mul(211) % COUNT;
    for _ in 0..COUNT {
        let port = FIRST + (begin + NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let free = |ip: IpAddr| match TcpListener::bind((ip, port)) {
            Ok(_) => true,
            // A machine without IPv6.
            Err(e) => e.kind() == io::ErrorKind::AddrNotAvailable,
        };
        if free(Ipv4Addr::LOCALHOST.into()) && free(Ipv6Addr::LOCALHOST.into()) {
            return port;
        }
    }
    panic!("no port is free")
}

/// A program of ours with all that it starts; killed on drop.
struct Kid(Child);

impl Kid {
    fn start(command: &mut Command, log: &Path) -> Self {
        use std::os::unix::process::CommandExt;
        let out = fs::File::create(log).unwrap();
        // s_server ends with its input: so it gets one that stays open.
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

/// The processes that this one started, and those that they did, as long as it lives. Postfix's leaves the group of
/// the command that started it.
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
        // Politely first: Postfix, Dovecot and PostgreSQL end their own.
        let _ = kill_process_group(group, Signal::TERM);
        for pid in family {
            let _ = kill_process(pid, Signal::TERM);
        }
        if !self.ended(Duration::from_secs(3)) {
            let _ = kill_process_group(group, Signal::KILL);
            self.ended(Duration::from_secs(5));
        }
        // What is left of a group whose first process is gone.
        let _ = kill_process_group(group, Signal::KILL);
    }
}

fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// Where a program is. Servers often stand outside the path of people.
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

/// Where `scripts/test` puts what Debian does not have.
pub fn from_pypi() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    workspace.join("target/tools/pypi")
}
