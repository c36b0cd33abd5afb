//! Finds the programs behind plaintext flows: every few seconds, flows are matched with sockets, and sockets with the
//! control groups in which they were created.
//!
//! This needs no permission to inspect other processes (`/proc/PID/fd` would need CAP_SYS_PTRACE, which gives access to
//! everything). A program that ran only between two checks stays unknown.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::Read;
use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};

use wiretight_proxy::intercept::listing::{Flow, Program};
use wiretight_proxy::intercept::rules::Direction;

use super::sockets::{self, Socket};

/// Programs that are remembered for a flow.
const PROGRAMS: usize = 2;
/// Limits for the walk over control groups: their number, and the depth below the root.
const GROUPS: usize = 16_384;
const DEPTH: usize = 32;
/// In a control group with more processes than this, programs are not looked up.
const PROCESSES: usize = 64;
/// Longer paths are cut at the front, in characters.
const MAX_PATH: usize = 100;

/// The programs found so far for the listed flows.
#[derive(Default)]
pub(super) struct Programs {
    known: BTreeMap<Key, Vec<Program>>,
}

/// Identifies a flow, whether dropped or not.
type Key = (&'static str, IpAddr, u16, Direction);

impl Programs {
    /// Fills in the programs of flows. Sockets with our own mark are ignored.
    pub(super) fn name(&mut self, flows: &mut [Flow], own_mark: Option<u32>) {
        let keys: BTreeSet<Key> = flows.iter().filter_map(key).collect();
        self.known.retain(|key, _| keys.contains(key));
        for protocol in ["tcp", "udp"] {
            if keys.iter().any(|key| key.0 == protocol) {
                self.look(protocol, &keys, own_mark);
            }
        }
        for flow in flows {
            let known = key(flow).and_then(|key| self.known.get(&key));
            flow.programs = known.into_iter().flatten().cloned().collect();
        }
    }

    fn look(&mut self, protocol: &'static str, keys: &BTreeSet<Key>, own_mark: Option<u32>) {
        let mut served: HashMap<u16, Vec<Key>> = HashMap::new();
        for key in keys.iter().filter(|key| (key.0, key.3) == (protocol, Direction::In)) {
            served.entry(key.2).or_default().push(*key);
        }
        let mut seen: BTreeSet<(Key, (Option<u64>, u32))> = BTreeSet::new();
        let looked = sockets::each(protocol, |socket| {
            if own_mark == Some(socket.mark) {
                return;
            }
            let matched = matches(protocol, &socket, &served).into_iter();
            let whose = (socket.group, socket.user);
            seen.extend(matched.filter(|key| keys.contains(key)).map(|key| (key, whose)));
        });
        if let Err(error) = looked {
            tracing::debug!(%error, "cannot list sockets");
        }
        if seen.is_empty() {
            return;
        }
        let groups = Groups::here();
        let mut named = HashMap::new();
        for (key, whose) in seen {
            let program = named.entry(whose).or_insert_with(|| groups.program(whose.0, whose.1));
            let known = self.known.entry(key).or_default();
            // The name is known only while the program is alone in its control group, so it may be missing once.
            let same = |old: &&mut Program| {
                (&old.control_group, old.user) == (&program.control_group, program.user)
                    && (old.name == program.name || old.name.is_none() || program.name.is_none())
            };
            match known.iter_mut().find(same) {
                Some(old) => old.name = old.name.take().or_else(|| program.name.clone()),
                None => known.push(program.clone()),
            }
            known.truncate(PROGRAMS);
        }
    }
}

fn key(flow: &Flow) -> Option<Key> {
    let protocol = ["tcp", "udp"].into_iter().find(|p| *p == flow.protocol)?;
    Some((protocol, flow.peer, flow.port, flow.direction))
}

/// The flows that a socket may be an end of.
fn matches(protocol: &'static str, socket: &Socket, served: &HashMap<u16, Vec<Key>>) -> Vec<Key> {
    match socket.remote {
        Some(remote) => vec![
            (protocol, remote.ip(), remote.port(), Direction::Out),
            (protocol, remote.ip(), socket.local.port(), Direction::In),
        ],
        None if socket.local.ip().is_loopback() => Vec::new(),
        None => served.get(&socket.local.port()).cloned().unwrap_or_default(),
    }
}

/// The existing control groups (v2).
pub(crate) struct Groups {
    root: Option<PathBuf>,
    by_number: HashMap<u64, String>,
}

impl Groups {
    pub(crate) fn here() -> Groups {
        let root = mounted();
        let by_number = root.as_deref().map(numbers).unwrap_or_default();
        Groups { root, by_number }
    }

    pub(crate) fn has(&self, group: u64) -> bool {
        self.by_number.contains_key(&group)
    }

    pub(crate) fn program(&self, group: Option<u64>, user: u32) -> Program {
        let path = group.and_then(|number| self.by_number.get(&number));
        let name =
            self.root.as_ref().zip(path).and_then(|(root, path)| only(&root.join(path), user));
        let control_group = path.map(|path| {
            let extra = path.chars().count().saturating_sub(MAX_PATH);
            path.chars().skip(extra).map(printable).collect()
        });
        Program { name, control_group, user }
    }
}

/// The mount point of control groups v2 (proc_pid_mountinfo(5)).
fn mounted() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mut of = mounts.lines().filter(|line| line.contains(" - cgroup2 "));
    Some(PathBuf::from(of.next()?.split(' ').nth(4)?))
}

/// Paths of control groups by the kernel's IDs, which are the inode numbers of their directories. The root is left out:
/// it contains everything that was not assigned to a group.
fn numbers(root: &Path) -> HashMap<u64, String> {
    let mut numbers = HashMap::new();
    let mut todo = vec![(PathBuf::new(), 0)];
    while let Some((path, depth)) = todo.pop() {
        let entries = fs::read_dir(root.join(&path)).into_iter().flatten().flatten();
        for entry in entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir())) {
            if numbers.len() >= GROUPS || depth >= DEPTH {
                return numbers;
            }
            let path = path.join(entry.file_name());
            numbers
                .insert(entry.ino(), String::from_utf8_lossy(path.as_os_str().as_bytes()).into());
            todo.push((path, depth + 1));
        }
    }
    numbers
}

/// The program in a control group, if there is only one: among all processes, or among those of this user.
fn only(group: &Path, user: u32) -> Option<String> {
    let text = read(&group.join("cgroup.procs"), 4096)?;
    let processes: Vec<&str> = text.lines().take(PROCESSES + 1).collect();
    if processes.len() > PROCESSES {
        return None;
    }
    let running = |pid: &&str| {
        let process = Path::new("/proc").join(pid.parse::<u32>().ok()?.to_string());
        let name: String =
            read(&process.join("comm"), 64)?.trim_end().chars().map(printable).collect();
        Some((name, process.metadata().ok()?.uid()))
    };
    let running: BTreeSet<(String, u32)> = processes.iter().filter_map(running).collect();
    let one = |names: BTreeSet<&String>| match names.len() {
        1 => names.first().map(|name| (*name).clone()),
        _ => None,
    };
    let of_all = one(running.iter().map(|(name, _)| name).collect());
    of_all.or_else(|| one(running.iter().filter(|(_, of)| *of == user).map(|(n, _)| n).collect()))
}

fn read(path: &Path, most: u64) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(most).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Programs choose their own names, so these must not contain terminal control characters.
fn printable(c: char) -> char {
    if c.is_ascii_graphic() || c == ' ' || (!c.is_ascii() && c.is_alphanumeric()) { c } else { '?' }
}
