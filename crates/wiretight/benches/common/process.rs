//! Programs that a benchmark starts and stops, and the certificates that they use.

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
use rustix::process::{Pid, Signal, kill_process_group};

use super::loopback;

/// The environment of the systems: a temporary folder with the certificates, and the address to which all of them
/// forward.
pub(crate) struct Lab {
    pub(crate) origin: SocketAddr,
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

    /// Path of a certificate, key or bundle.
    pub(crate) fn pem(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A folder for a system to be started.
    pub(crate) fn run(&self, name: &str) -> anyhow::Result<Run<'_>> {
        self.started.set(self.started.get() + 1);
        let folder = self.folder.path().join(format!("{name}-{}", self.started.get()));
        fs::create_dir(&folder)?;
        Ok(Run { lab: self, folder })
    }

    pub(crate) fn free_address(&self) -> anyhow::Result<SocketAddr> {
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

/// The folder of one system, and the parts of the lab that its start needs.
pub(crate) struct Run<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) folder: PathBuf,
}

impl Run<'_> {
    /// Path of a certificate, key or bundle.
    pub(crate) fn pem(&self, name: &str) -> String {
        self.lab.pem(name).display().to_string()
    }

    /// Writes a file that only its owner can read.
    pub(crate) fn file(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        let path = self.folder.join(name);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(text.as_bytes())?;
        Ok(path)
    }

    /// Starts `command`; its output goes to `NAME.log`.
    pub(crate) fn spawn(&self, name: &str, command: &mut Command) -> anyhow::Result<Process> {
        let log = self.folder.join(format!("{name}.log"));
        let output = File::create(&log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            // Workers stop with their master process. We must forward Ctrl-C ourselves.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot run {command:?}"))?;
        Ok(Process { child, log })
    }
}

/// A process that is stopped when dropped, with all its descendants.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The last lines of its output, after the file's path.
    pub(crate) fn log(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(10)..];
        format!("{}:\n{}", self.log.display(), tail.join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let group = Pid::from_child(&self.child);
        // An error means that the process has already ended.
        let _ = kill_process_group(group, Signal::TERM);
        let end = Instant::now() + Duration::from_secs(2);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < end {
            thread::sleep(Duration::from_millis(10));
        }
        let _ = kill_process_group(group, Signal::KILL);
        let _ = self.child.wait();
    }
}

/// The name in the certificate.
pub(crate) const PEER_NAME: &str = "peer.bench.test";

/// `ca.pem`; `peer.pem` and `peer.key`, which every system uses; `peer.both` for HAProxy.
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
[peer]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = serverAuth,clientAuth
subjectAltName = DNS:peer.bench.test
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
    request("peer", &["-CA", "ca.pem", "-CAkey", "ca.key"])?;
    let mut both = fs::read(folder.join("peer.pem"))?;
    both.extend(fs::read(folder.join("peer.key"))?);
    fs::write(folder.join("peer.both"), both)?;
    Ok(())
}

/// A program in PATH, or in Debian's folder for daemons, which only root has in PATH.
pub(crate) fn program(name: &str) -> Option<Command> {
    let path = env::var_os("PATH").unwrap_or_default();
    let daemons = ["/usr/local/sbin", "/usr/sbin"].map(PathBuf::from);
    let file = env::split_paths(&path).chain(daemons).map(|folder| folder.join(name));
    file.into_iter().find(|file| file.is_file()).map(Command::new)
}

/// What `command` prints on both streams; `None` if it cannot run or fails.
pub(crate) fn output(command: &mut Command) -> Option<String> {
    let done = command.output().ok().filter(|done| done.status.success())?;
    let mut text = String::from_utf8_lossy(&done.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&done.stderr));
    Some(text)
}

pub(crate) fn first_line(command: &mut Command) -> Option<String> {
    output(command)?.lines().next().map(|line| line.trim().to_owned())
}
