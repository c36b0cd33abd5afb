//! A fresh Debian 12 on a wire.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::rig::*;
use super::root;

/// A running system without an init system.
pub(super) struct Machine {
    pub(super) netns: String,
    holder: Kid,
    /// The process whose namespaces and root directory are the machine's, as the host sees it.
    pid: u32,
    /// The root directory, for programs of the host that are in its mount namespace.
    pub(super) root: PathBuf,
    dir: PathBuf,
}

/// Everything is in memory. It is gone when the first process of the namespace ends.
const BOOT: &str = r#"
mount -t tmpfs none "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay none -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work" "$1/root"
mount -t proc none "$1/root/proc"
mount -t tmpfs -o mode=755 none "$1/root/run"
hostname "$3"
echo booted
exec chroot "$1/root" sleep infinity"#;

impl Machine {
    pub(super) fn boot(world: &World, netns: &str, name: &str) -> Machine {
        let dir = world.path(name);
        fs::create_dir(&dir).unwrap();
        let log = world.path(&format!("{name}.boot"));
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"]);
        unshare.args(["--propagation", "private", "sh", "-ec", BOOT, "sh"]);
        unshare.arg(&dir).arg(debian()).arg(name);
        let holder = Kid::start(&mut within(Some(netns), unshare), &log);
        wait_for("the machine has started", || holder.log().contains("booted"));
        let children = format!("/proc/{0}/task/{0}/children", holder.pid());
        let pid = fs::read_to_string(children).unwrap().trim().parse().unwrap();
        wait_for("its first process has its root directory", || {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sleep\n")
        });
        let root = dir.join("root");
        Machine { netns: netns.to_owned(), holder, pid, root, dir: world.path("") }
    }

    /// Copies a file of the host into /root. Returns its path there.
    pub(super) fn copy(&self, file: &Path) -> String {
        let path = format!("/root/{}", file.file_name().unwrap().to_str().unwrap());
        fs::copy(file, self.inside(&path)).unwrap();
        path
    }

    /// The path of one of its files, for this process.
    pub(super) fn inside(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.pid))
    }

    pub(super) fn exists(&self, path: &str) -> bool {
        self.inside(path).symlink_metadata().is_ok()
    }

    /// What `nsenter` needs to run a program of this machine, or with `-r` left out, a program of the host.
    fn enter(&self, of_the_host: bool) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.pid.to_string(), "-m", "-u", "-i", "-n", "-p"]);
        if !of_the_host {
            command.args(["-r", "-w"]).env_clear();
            command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", "/root");
            command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C.UTF-8");
        }
        command
    }

    /// A line of root's shell on the machine.
    pub(super) fn shell(&self, line: &str) -> Command {
        let mut command = self.enter(false);
        command.args(["sh", "-c", &format!("cd /root && {line}")]);
        command
    }

    #[track_caller]
    pub(super) fn run(&self, line: &str) -> Ran {
        self.run_with(line, "")
    }

    #[track_caller]
    pub(super) fn run_with(&self, line: &str, stdin: &str) -> Ran {
        let ran = Ran::of(&mut self.shell(line), stdin);
        assert_eq!(ran.code, Some(0), "{line}: {}", ran.all());
        ran
    }

    /// A program of the host that sees the machine's files below `root`.
    pub(super) fn of_the_host(&self, program: &str, args: &[&str]) -> Ran {
        let mut command = self.enter(true);
        Ran::of(command.arg(find(program).unwrap()).args(args), "")
    }

    /// The values of a key of the node's unit.
    fn unit(&self, key: &str) -> Vec<String> {
        let text = fs::read_to_string(self.inside("/usr/lib/systemd/system/wiretight.service"));
        let text = text.unwrap();
        let values = text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        values.map(str::to_owned).collect()
    }

    /// A command of the unit, as its user and with none of root's capabilities.
    fn as_the_unit(&self, command: &str) -> String {
        let user = self.unit("User").remove(0);
        let root = "--inh-caps=-all --bounding-set=-all --no-new-privs";
        format!("cd / && exec setpriv --reuid={user} --regid={user} --init-groups {root} {command}")
    }

    /// `systemctl start wiretight`.
    pub(super) fn start(&self) -> Kid {
        let [command] = &self.unit("ExecStart")[..] else { panic!("one ExecStart") };
        let log = self.dir.join(format!("{}.log", self.netns));
        Kid::start(&mut self.shell(&self.as_the_unit(command)), &log)
    }

    /// `systemctl reload wiretight`.
    pub(super) fn reload(&self) -> String {
        let commands = self.unit("ExecReload");
        assert!(commands[0].contains(" upgrade "), "{commands:?}");
        commands.iter().map(|command| self.run(&self.as_the_unit(command)).all()).collect()
    }

    pub(super) fn status(&self) -> serde_json::Value {
        let ran = Ran::of(&mut self.shell("wiretight status --json"), "");
        serde_json::from_str(&ran.out).unwrap_or(serde_json::Value::Null)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.holder.kill();
    }
}

/// The folder of an unused Debian 12. It is made once, and kept for later runs.
fn debian() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let recipe = root().join("crates/wiretight/tests/packages/debian-12");
        let tools = root().join("target/tools");
        fs::create_dir_all(&tools).unwrap();
        let folder = tools.canonicalize().unwrap().join("debian-12");
        let made = folder.join("made-by");
        if fs::read(&made).ok() != Some(fs::read(&recipe).unwrap()) {
            let _ = fs::remove_dir_all(&folder);
            Ran::of(Command::new(&recipe).arg(&folder), "").good();
            fs::copy(&recipe, &made).unwrap();
        }
        folder
    })
}

/// What these machines need. If something is missing, the test is skipped.
pub(super) fn can() -> bool {
    super::can_build()
        && has(&[
            "mmdebstrap",
            "dpkg-scanpackages",
            "unshare",
            "nsenter",
            "ip",
            "setpriv",
            "tcpdump",
        ])
        && is_root()
}
