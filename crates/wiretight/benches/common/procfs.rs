//! CPU time and memory of processes so far, from `/proc`, including descendants.

use std::{collections::HashMap, fs, time::Duration};

use anyhow::{Context, bail};

/// `USER_HZ`, the unit of `/proc/PID/stat`: always 100 on Linux, regardless of the kernel's tick.
const TICKS_PER_SECOND: u64 = 100;

/// User and system time of `roots` and all of their descendants, including ended threads and reaped children.
pub(crate) fn cpu(roots: &[u32]) -> anyhow::Result<Duration> {
    let family = family(roots)?;
    let ticks: u64 = family.iter().map(|process| process.ticks).sum();
    Ok(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

/// The number of processes: this one and all of its descendants.
pub(crate) fn family_size(root: u32) -> anyhow::Result<usize> {
    Ok(family(&[root])?.len())
}

/// The same as [`cpu`], for this process only.
pub(crate) fn own_cpu() -> anyhow::Result<Duration> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit_once(')').context("/proc/self/stat")?.1.split_whitespace();
    let ticks = fields.skip(14 - 3).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    Ok(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

/// CPU time of this thread so far.
pub(crate) fn thread_cpu() -> anyhow::Result<Duration> {
    schedstat("/proc/thread-self")
}

/// CPU time of a thread of this program so far.
pub(crate) fn cpu_of_thread(thread: u32) -> anyhow::Result<Duration> {
    schedstat(&format!("/proc/self/task/{thread}"))
}

/// The same as [`cpu`], but in nanoseconds, and without threads and processes that have ended.
pub(crate) fn precise_cpu(root: u32) -> anyhow::Result<Duration> {
    let mut sum = Duration::ZERO;
    for process in family(&[root])?.iter().filter(|process| !process.zombie) {
        for thread in fs::read_dir(format!("/proc/{}/task", process.pid))? {
            sum += schedstat(&thread?.path().display().to_string()).unwrap_or_default();
        }
    }
    Ok(sum)
}

/// CPU time of the kernel's own threads so far that do work for networks, and for anything else.
pub(crate) fn kernel_threads() -> anyhow::Result<HashMap<u32, Duration>> {
    let pids = fs::read_dir("/proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let of_kernel = |pid: &u32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name.starts_with("kworker/") || name.starts_with("ksoftirqd/")
    };
    let time = |pid: u32| Some((pid, schedstat(&format!("/proc/{pid}")).ok()?));
    Ok(pids.filter(of_kernel).filter_map(time).collect())
}

/// proc_pid_schedstat(5): time on the CPU in nanoseconds comes first.
fn schedstat(folder: &str) -> anyhow::Result<Duration> {
    let text = fs::read_to_string(format!("{folder}/schedstat"))?;
    let time = text.split_whitespace().next().with_context(|| format!("{folder}: no schedstat"))?;
    Ok(Duration::from_nanos(time.parse()?))
}

/// KiB of memory.
#[derive(Clone, Copy, Default)]
pub(crate) struct Memory {
    /// Proportional set size: each process counts its share of pages that several processes use.
    pub(crate) pss_kib: u64,
    /// Resident set size.
    pub(crate) rss_kib: u64,
}

/// Memory of `roots` and all of their descendants.
pub(crate) fn memory(roots: &[u32]) -> anyhow::Result<Memory> {
    let mut sum = Memory::default();
    for process in family(roots)?.iter().filter(|process| !process.zombie) {
        let memory = process.memory()?;
        sum.pss_kib += memory.pss_kib;
        sum.rss_kib += memory.rss_kib;
    }
    Ok(sum)
}

struct Process {
    pid: u32,
    parent: u32,
    /// Ended, but not reaped yet.
    zombie: bool,
    /// utime + stime + cutime + cstime.
    ticks: u64,
}

impl Process {
    /// `None` if the process has ended meanwhile.
    fn read(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // proc_pid_stat(5): the command in parentheses may contain any character; the fields continue after the last
        // parenthesis, starting with `state` (3).
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let ticks = field(14)? + field(15)? + field(16)? + field(17)?;
        let parent = field(4)?.try_into().ok()?;
        Some(Self { pid, parent, zombie: fields[0] == "Z", ticks })
    }

    fn memory(&self) -> anyhow::Result<Memory> {
        let path = format!("/proc/{}/smaps_rollup", self.pid);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let kib = |key: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(key)?.split_whitespace().next()?.parse().ok())
                .with_context(|| format!("no {key} in {path}"))
        };
        Ok(Memory { pss_kib: kib("Pss:")?, rss_kib: kib("Rss:")? })
    }
}

/// The processes `roots` and their descendants. An ended root is an error, because the figures of half a system would
/// look good.
fn family(roots: &[u32]) -> anyhow::Result<Vec<Process>> {
    let mut family = Vec::new();
    for &pid in roots {
        match Process::read(pid) {
            Some(process) if !process.zombie => family.push(process),
            _ => bail!("process {pid} has died"),
        }
    }
    let pids = fs::read_dir("/proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let mut others: Vec<Process> = pids.filter_map(Process::read).collect();
    let mut next = 0;
    while next < family.len() {
        let parent = family[next].pid;
        family.extend(others.extract_if(.., |process| process.parent == parent));
        next += 1;
    }
    Ok(family)
}
