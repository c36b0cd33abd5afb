//! The privileges of a running node: the capabilities of each of its threads, and that they are sufficient.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::process::Command;

use super::rig::*;

const NOBODY: u32 = 65534;
/// From linux/capability.h.
const DAC_READ_SEARCH: u64 = 1 << 2;
const NET_BIND_SERVICE: u64 = 1 << 10;
const NET_ADMIN: u64 = 1 << 12;
const NET_RAW: u64 = 1 << 13;

/// A separate network; removed when dropped.
struct Netns(String);

impl Netns {
    fn new() -> Netns {
        let name = format!("wt{}p", std::process::id());
        for line in [&*format!("netns add {name}"), &format!("-n {name} link set lo up")] {
            Ran::of(Command::new("ip").args(line.split(' ')), "").good();
        }
        Netns(name)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn can(programs: &[&str]) -> bool {
    has(programs) && is_root()
}

/// A line of /proc/PID/status of each thread: all say the same.
#[track_caller]
fn field(pid: u32, name: &str) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let values = tasks.flatten().filter_map(|task| {
        let status = fs::read_to_string(task.path().join("status")).ok()?;
        let line = status.lines().find(|l| l.starts_with(name))?;
        u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok()
    });
    let mut values: Vec<u64> = values.collect();
    values.dedup();
    assert_eq!(values.len(), 1, "{name} of {pid}: {values:x?}");
    values[0]
}

#[track_caller]
fn assert_has(pid: u32, own: u64, started: u64) {
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(field(pid, set), own, "{set} of {pid}");
    }
    for set in ["CapInh", "CapAmb"] {
        assert_eq!(field(pid, set), started, "{set} of {pid}");
    }
    assert_eq!(field(pid, "NoNewPrivs"), 1);
}

fn children(pid: u32) -> Vec<u32> {
    let of = |pid| fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    of(pid).split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// One byte: the kernel ignores a limit of zero for dumps that it pipes to a program.
#[test]
fn no_wiretight_process_dumps_core() {
    let world = World::new();
    let node = world.authority("");
    let limits = fs::read_to_string(format!("/proc/{}/limits", node.pid())).unwrap();
    let line = limits.lines().find(|l| l.starts_with("Max core file size")).unwrap();
    let fields: Vec<_> = line.split_whitespace().rev().skip(1).take(2).collect();
    assert_eq!(fields, ["1", "1"], "{line}");
}

#[test]
fn a_node_started_as_root_keeps_only_what_it_needs() {
    if !can(&["ip", "nft"]) {
        return;
    }
    let all = field(std::process::id(), "CapEff");
    assert_eq!(all & NET_ADMIN, NET_ADMIN, "the control: whoever starts it has more: {all:x}");
    let world = World::new();
    let netns = Netns::new();
    let own = |netns: &Netns| Some(netns.0.clone());
    let authority = "[authority]\nlisten = \"127.0.0.1:7400\"\n";
    let mut auth = world.node("auth", authority);
    auth.netns = own(&netns);
    auth.start();
    auth.ready();
    assert_has(auth.pid(), NET_BIND_SERVICE | DAC_READ_SEARCH, 0);

    // Another user's file can be read, and a reload listens on a port below 1024.
    let intercept = "[intercept]\nmode = \"observe\"\n";
    let mut node = world.node("n", intercept);
    fs::write(node.token_file(), auth.token("n", &["low"])).unwrap();
    fs::set_permissions(node.token_file(), fs::Permissions::from_mode(0o600)).unwrap();
    chown(node.token_file(), Some(NOBODY), Some(NOBODY)).unwrap();
    node.netns = own(&netns);
    node.start();
    node.ready();
    assert_has(node.pid(), NET_BIND_SERVICE | DAC_READ_SEARCH | NET_RAW, 0);
    let [keeper] = children(node.pid())[..] else { panic!() };
    assert_has(keeper, NET_ADMIN, NET_ADMIN);
    let [worker] = children(keeper)[..] else { panic!() };
    assert_has(worker, NET_ADMIN, NET_ADMIN);
    wait_for("the rules are in force", || node.status()["intercept"]["mode"] == "observe");

    let theirs = world.path("theirs.sock");
    let _listener = UnixListener::bind(&theirs).unwrap();
    chown(&theirs, Some(NOBODY), Some(NOBODY)).unwrap();
    fs::set_permissions(&theirs, fs::Permissions::from_mode(0o600)).unwrap();
    node.write(&format!(
        "[[service]]\nname = \"low\"\nlisten = \"127.0.0.1:443\"\nforward = \"unix:{}\"\nallow = \
         \"node/auth\"\n{intercept}",
        theirs.display()
    ));
    node.cli(&["reload"]).good();
    auth.write(&format!(
        "{authority}[[dial]]\nlisten = \"127.0.0.1:80\"\nservice = \"low\"\nto = \"127.0.0.1:443\"\n"
    ));
    auth.cli(&["reload"]).good();
    wait_for("it has the identity of its new service", || {
        node.status()["identities"].to_string().contains("/service/low\"")
    });
    // It cannot change another user's files.
    let mut curl = Command::new("curl");
    curl.args(["-s", "-m", "5", "http://127.0.0.1:80/"]);
    assert_ne!(Ran::of(&mut within(Some(&netns.0), curl), "").code, Some(0));
    let refusals = node.status()["relay"]["refusals"].to_string();
    assert!(refusals.contains("has no write permission on the socket"), "{refusals}");

    // It cannot use another user's state directory either.
    node.kill();
    chown(node.state(), Some(NOBODY), Some(NOBODY)).unwrap();
    node.start();
    assert!(node.kid().ended(PATIENCE).is_some_and(|status| !status.success()));
    assert!(node.log().contains("belongs to user 65534"), "{}", node.log());
}

#[test]
fn a_node_started_as_another_user_works_without_capabilities() {
    if !can(&["setpriv"]) {
        return;
    }
    let place = tempfile::Builder::new().prefix("wiretight-user-").tempdir().unwrap();
    let open = |path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    open(place.path(), 0o755);
    let bin = place.path().join("wiretight");
    fs::copy(env!("CARGO_BIN_EXE_wiretight"), &bin).unwrap();
    let state = place.path().join("state");
    fs::create_dir(&state).unwrap();
    open(&state, 0o700);
    chown(&state, Some(NOBODY), Some(NOBODY)).unwrap();
    let file = place.path().join("wiretight.toml");
    let text = format!(
        "[node]\nname = \"a\"\ntrust_domain = \"{TD}\"\nstate_dir = \"{}\"\nadmin = \"off\"\n[authority]\nlisten = \"{}\"\n",
        state.display(),
        free()
    );
    fs::write(&file, text).unwrap();
    let mut node = Command::new("setpriv");
    node.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]);
    node.arg(&bin).args(["run", "--config"]).arg(&file);
    let node = Kid::start(&mut node, &place.path().join("log"));
    wait_for("it is running", || node.log().contains("node started"));
    for set in ["CapPrm", "CapEff", "CapInh", "CapAmb"] {
        assert_eq!(field(node.pid(), set), 0, "{set}");
    }
    assert_eq!(field(node.pid(), "NoNewPrivs"), 1);
}
