//! The child process that watches: it has CAP_NET_ADMIN and nothing else of the node. What it parses comes from the
//! network, so it holds no key, and the node reads only its bounded answers.
//!
//! Like the keeper of the rules it consists of two processes: a worker, and a supervisor that restarts the worker if it
//! dies. It starts to watch at the node's first request, and ends with the node; the kernel then removes its table.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{
    Timeout, set_socket_recv_buffer_size, set_socket_recv_buffer_size_force, set_socket_timeout,
};
use rustix::net::{RecvFlags, SocketFlags, netlink as families, recv};
use serde::{Deserialize, Serialize};
use wiretight_scan::judge::Level;
use wiretight_scan::passive::file::Frame;
use wiretight_scan::passive::flow::{Limits, Table};
use wiretight_scan::passive::packets::LinkType;
use wiretight_scan::passive::totals::{Gaps, Hour, Totals, Way};

use super::census::{Census, Own};
use super::interfaces::Interfaces;
use super::nflog::Packet;
use super::programs::Programs;
use super::{Cost, Row, conntrack, nflog};
use crate::intercept::Owned;
use crate::logging::chain;
use crate::netlink::{self, NLMSG_DONE, NLMSG_ERROR};
use crate::program::{self, Question, Reply};
use crate::{privilege, sandbox};

/// Flows at a time whose first packets are known, and whose first bytes are kept.
const LIMITS: Limits = Limits { flows: 65_536, undecided: 16_384, sample: 1 };
/// What the kernel may queue for us, in bytes.
const QUEUE: usize = 4 << 20;
/// The longest request of the node: all connections of the relay.
const MAX_ASKED: usize = 8 << 20;
/// How long notifications are collected before they are read: longer means fewer wake-ups. But a client here may end
/// before its program is found, so shorter while connections to elsewhere begin, or the queue fills up.
const PACE: Duration = Duration::from_millis(20);
const SHORT_PACE: Duration = Duration::from_millis(5);
/// How long after a connection to elsewhere the next one is expected.
const OUTGOING: Duration = Duration::from_secs(1);
/// More notifications than this in a [`PACE`] are many.
const MANY: usize = 128;
/// How often flows that have ended are collected.
const COLLECT: Duration = Duration::from_secs(2);
/// How often all connections are listed, and everything is added up. A list takes at most one part in `SHARE` of the time.
const TICK: Duration = Duration::from_secs(10);
const SHARE: u32 = 1000;
/// If nothing was read for so much longer than [`COLLECT`], what is read next is late.
const BEHIND: Duration = Duration::from_millis(500);
/// Datagrams that are read at a time from one socket.
const AT_ONCE: usize = 512;
/// How long a request waits for a list.
const LISTING: Duration = Duration::from_secs(3);
/// The first group to try for packets, and how many.
const GROUP: u16 = 5754;
const GROUPS: u16 = 64;
/// NLM_F_MULTI and NLM_F_DUMP_INTR.
const LISTED: u16 = 0x2;
const INTERRUPTED: u16 = 0x10;
/// Settings of the kernel that this needs.
const SETTINGS: &str = "/proc/sys/net/netfilter";

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Ask {
    /// Watch, with these settings.
    Watch { interfaces: Vec<String>, own: Box<Own> },
    /// The rows with the most bytes.
    Rows { level: Option<Level>, most: usize },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    /// The worker has started: earlier requests are lost.
    Begun,
    Report(Box<Report>),
    Rows(Box<Rows>),
    Failed(String),
}

/// Everything that was counted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Report {
    /// Since when, in seconds since 1970; `None` if it could not start.
    pub(super) since: Option<u64>,
    pub(super) open: u64,
    /// What is settled, which only grows; and what is known of everything now.
    pub(super) settled: Totals,
    pub(super) totals: Totals,
    pub(super) hours: Vec<Hour>,
    pub(super) problems: Vec<String>,
    #[serde(default)]
    pub(super) cost: Cost,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Rows {
    pub(super) rows: Vec<Row>,
    pub(super) left_out: u64,
    pub(super) forgotten: u64,
    pub(super) report: Report,
}

/// The supervisor: runs a worker until the node is gone.
pub fn serve(landlock: bool) -> anyhow::Result<ExitCode> {
    // The worker reports a missing capability.
    let _ = privilege::keep_net_admin_only()?;
    let worker = |again: bool| {
        let mut worker = program::own_program();
        worker.arg("watcher").args((!landlock).then_some("--no-landlock"));
        worker.args(["--worker", if again { "again" } else { "first" }]);
        worker
    };
    let mut logs = None;
    program::supervise(worker, None, |ended| {
        logs.get_or_insert_with(crate::logging::start);
        tracing::error!(%ended, "the process that watches the traffic has died and is restarted; connections until then stay unknown");
    })
}

/// The worker: watches until its parents are gone. `again`: it replaces a worker that died.
pub fn work(landlock: bool, again: bool) -> anyhow::Result<ExitCode> {
    let parent = rustix::process::getppid();
    let privileged = privilege::keep_net_admin_only()?;
    if landlock {
        sandbox::write_only_in(&[Path::new("/proc/sys/net")])?;
    }
    // If the supervisor is killed, this worker must end too.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    if rustix::process::getppid() != parent {
        return Ok(ExitCode::SUCCESS);
    }
    let _logs = crate::logging::start();
    let mut child = Child { privileged, watcher: None, failed: None, tried: None };
    child.converse(again)?;
    Ok(ExitCode::SUCCESS)
}

struct Child {
    privileged: bool,
    watcher: Option<Watcher>,
    /// Why it could not start.
    failed: Option<String>,
    tried: Option<Instant>,
}

impl Child {
    /// Serves requests and watches until the node is gone.
    fn converse(&mut self, again: bool) -> anyhow::Result<()> {
        let (input, output) = (io::stdin(), io::stdout());
        for fd in [input.as_fd(), output.as_fd()] {
            rustix::io::ioctl_fionbio(fd, true)?;
        }
        let begun = Reply { number: 0, answer: Answer::Begun };
        let (mut asked, mut answer) = (Vec::new(), program::line(&begun)?);
        if again {
            answer.insert(0, b'\n'); // the worker that died may have left half a line
        }
        loop {
            let wait = self.watcher.as_ref().map_or(TICK, Watcher::wait);
            let ready = self.watcher.as_ref().is_some_and(Watcher::may_read);
            let mut fds = vec![
                PollFd::new(
                    &input,
                    if answer.is_empty() { PollFlags::IN } else { PollFlags::empty() },
                ),
                PollFd::new(
                    &output,
                    if answer.is_empty() { PollFlags::empty() } else { PollFlags::OUT },
                ),
            ];
            if let Some(watcher) = self.watcher.as_ref().filter(|_| ready) {
                fds.push(PollFd::new(&watcher.tracking, PollFlags::IN));
                fds.push(PollFd::new(&watcher.packets, PollFlags::IN));
            }
            let wait =
                Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() };
            match poll(&mut fds, Some(&wait)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
            // A request, or the end of the node.
            let may_ask = !fds[0].revents().is_empty();
            drop(fds);
            if let Some(watcher) = &mut self.watcher {
                watcher.work(ready);
            }
            if !answer.is_empty() {
                match rustix::io::write(&output, &answer) {
                    Ok(n) => drop(answer.drain(..n)),
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    Err(_) => return Ok(()),
                }
            } else if may_ask && !program::read_some(&input, &mut asked, MAX_ASKED)? {
                return Ok(());
            }
            while let Some(end) =
                asked.iter().position(|b| *b == b'\n').filter(|_| answer.is_empty())
            {
                let question: Vec<u8> = asked.drain(..=end).collect();
                // Half a request, to the worker that died, may come first.
                if let Ok(Question { number, ask }) = serde_json::from_slice(&question) {
                    answer = program::line(&Reply { number, answer: self.answer(ask) })?;
                }
            }
        }
    }

    fn answer(&mut self, ask: Ask) -> Answer {
        match ask {
            Ask::Watch { interfaces, own } => {
                self.start();
                if let Some(watcher) = &mut self.watcher {
                    watcher.named = interfaces;
                    watcher.census.set_own(*own);
                }
                Answer::Report(Box::new(self.report()))
            }
            Ask::Rows { level, most } => {
                let Some(watcher) = &mut self.watcher else {
                    let why = self.failed.clone();
                    return Answer::Failed(why.unwrap_or_else(|| "not started yet".into()));
                };
                watcher.refresh();
                let (rows, left_out, forgotten) = watcher.census.rows(level, most);
                Answer::Rows(Box::new(Rows { rows, left_out, forgotten, report: self.report() }))
            }
        }
    }

    fn start(&mut self) {
        if self.watcher.is_some() || self.tried.is_some_and(|at| at.elapsed() < TICK) {
            return;
        }
        self.tried = Some(Instant::now());
        let started = match self.privileged {
            true => Watcher::start(),
            false => Err("this process may not watch the traffic. Run it as root, or give it CAP_NET_ADMIN (AmbientCapabilities= in the systemd unit).".to_owned()),
        };
        match started {
            Ok(watcher) => (self.watcher, self.failed) = (Some(watcher), None),
            Err(why) => {
                if self.failed.as_ref() != Some(&why) {
                    tracing::error!("the traffic is not watched: {why}");
                }
                self.failed = Some(why);
            }
        }
    }

    fn report(&self) -> Report {
        let Some(watcher) = &self.watcher else {
            return Report {
                since: None,
                open: 0,
                settled: Totals::default(),
                totals: Totals::default(),
                hours: Vec::new(),
                problems: self.failed.iter().cloned().collect(),
                cost: Cost::now(),
            };
        };
        let (settled, totals) = watcher.census.totals();
        Report {
            since: Some(watcher.since / 1_000_000_000),
            open: watcher.census.open() as u64,
            settled,
            totals,
            hours: watcher.census.hours(),
            problems: watcher.problems(),
            cost: Cost::now(),
        }
    }
}

/// Where a list of all connections is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum List {
    None,
    /// Being read, since.
    Reading(Instant),
    /// The same, but events were lost meanwhile, so it may be incomplete.
    Broken(Instant),
}

struct Watcher {
    tracking: OwnedFd,
    packets: OwnedFd,
    group: u16,
    table: Result<Owned, String>,
    census: Census,
    flows: Table,
    interfaces: Interfaces,
    programs: Option<Programs>,
    named: Vec<String>,
    missing: Vec<String>,
    settings: Vec<String>,
    buffer: Vec<u8>,
    since: u64,
    /// The number of the next packet.
    next: Option<u32>,
    /// Lost packets that were counted before the gap in the numbers was seen.
    noted: u32,
    /// Not yet in the census.
    gaps: Gaps,
    list: List,
    /// How long the last list took.
    took: Duration,
    read: Instant,
    /// How long to wait after that.
    pace: Duration,
    /// When a connection to elsewhere began, whose program was asked for.
    outgoing: Option<Instant>,
    collected: Instant,
    ticked: Instant,
    listed: Instant,
    restored: u64,
}

impl Watcher {
    fn start() -> Result<Watcher, String> {
        let failed = |what: &'static str| move |e: Errno| format!("{what}: {e}");
        let (packets, group) = packets()?;
        let table = hold(group)?;
        // After the table, whose rules start the kernel's connection tracking.
        let settings = set();
        let tracking = netlink::open(
            Some(families::NETFILTER),
            conntrack::NEW_AND_DESTROY,
            SocketFlags::NONBLOCK,
        );
        let tracking =
            tracking.map_err(failed("cannot subscribe to the kernel's connection tracking"))?;
        enlarge(&tracking);
        let programs = Programs::new();
        if let Err(error) = &programs {
            tracing::warn!(%error, "cannot find programs of connections");
        }
        let (now, since) = (Instant::now(), wall());
        let mut watcher = Watcher {
            tracking,
            packets,
            group,
            table: Ok(table),
            census: Census::new(since),
            flows: Table::new(LIMITS),
            interfaces: Interfaces::default(),
            programs: programs.ok(),
            named: Vec::new(),
            missing: Vec::new(),
            settings,
            buffer: vec![0; 256 << 10],
            since,
            next: None,
            noted: 0,
            gaps: Gaps::default(),
            list: List::None,
            took: Duration::ZERO,
            read: now,
            pace: PACE,
            outgoing: None,
            collected: now,
            ticked: now,
            listed: now,
            restored: 0,
        };
        watcher.count_interfaces();
        watcher.begin_list();
        tracing::info!(group, "watching the traffic of this machine");
        Ok(watcher)
    }

    /// How long to sleep at most.
    fn wait(&self) -> Duration {
        if !self.may_read() {
            return self.pace.saturating_sub(self.read.elapsed());
        }
        COLLECT.saturating_sub(self.collected.elapsed())
    }

    fn may_read(&self) -> bool {
        self.list != List::None || self.read.elapsed() >= self.pace
    }

    /// `ready`: it waited for notifications, and not only for the time until they are read.
    fn work(&mut self, ready: bool) {
        if ready {
            self.read_tracking();
            self.read_packets();
        }
        if self.collected.elapsed() >= COLLECT {
            self.collect();
        }
        if self.list == List::None && self.ticked.elapsed() >= TICK {
            match self.listed.elapsed() >= TICK.max(self.took * SHARE) {
                true => self.begin_list(),
                false => self.tick(),
            }
        }
    }

    fn begin_list(&mut self) {
        self.ticked = Instant::now();
        match conntrack::dump().send(&self.tracking) {
            Ok(()) => {
                self.census.list_begins();
                self.list = List::Reading(Instant::now());
            }
            Err(error) => tracing::debug!(%error, "cannot list connections"),
        }
    }

    fn end_list(&mut self, complete: bool) {
        if let List::Reading(since) | List::Broken(since) = self.list {
            self.took = since.elapsed();
        }
        if complete && matches!(self.list, List::Reading(_)) {
            self.census.list_ends(wall());
            self.listed = Instant::now();
        }
        self.list = List::None;
        self.tick();
    }

    fn read_tracking(&mut self) {
        self.census.behind |= self.read.elapsed() > COLLECT + BEHIND;
        let (now, mut read, mut is_empty) = (wall(), 0, false);
        for _ in 0..AT_ONCE {
            match recv(&self.tracking, &mut self.buffer[..], RecvFlags::DONTWAIT) {
                Ok((length, _)) => {
                    read += 1;
                    self.events(length.min(self.buffer.len()), now);
                }
                Err(Errno::INTR) => {}
                Err(Errno::NOBUFS) => {
                    self.gaps.resyncs += 1;
                    // Connections that were announced meanwhile are found by the next list.
                    self.listed = self.listed.checked_sub(TICK).unwrap_or(self.listed);
                    self.took = Duration::ZERO;
                    match self.list {
                        List::Reading(since) => self.list = List::Broken(since),
                        List::None => {
                            self.ticked = self.ticked.checked_sub(TICK).unwrap_or(self.ticked)
                        }
                        List::Broken(_) => {}
                    }
                }
                Err(_) => {
                    self.census.behind = false;
                    is_empty = true;
                    break;
                }
            }
        }
        self.read = Instant::now();
        let is_outgoing = self.outgoing.is_some_and(|at| at.elapsed() < OUTGOING);
        self.pace = match is_empty {
            false => Duration::ZERO,
            true if is_outgoing || read > MANY => SHORT_PACE,
            true => PACE,
        };
    }

    fn events(&mut self, length: usize, now: u64) {
        let buffer = std::mem::take(&mut self.buffer);
        let mut ended = None;
        for message in netlink::messages(&buffer[..length]) {
            match message.kind {
                NLMSG_DONE => ended = Some(message.flags & INTERRUPTED == 0),
                NLMSG_ERROR => ended = Some(false),
                kind => {
                    let Some(event) = conntrack::event(kind, message.body) else { continue };
                    let listed = message.flags & LISTED != 0;
                    let begun = self.census.event(event, listed, now);
                    // Those in the first list have begun long ago, and there may be many.
                    if let (Some(begun), Some(programs), false) =
                        (begun, &mut self.programs, listed)
                    {
                        if begun.way == Way::Out {
                            self.outgoing = Some(Instant::now());
                        }
                        if let Some(program) = programs.of(&begun) {
                            self.census.set_program(&begun.key, program);
                        }
                    }
                }
            }
        }
        self.buffer = buffer;
        if let Some(complete) = ended {
            self.end_list(complete);
        }
    }

    fn read_packets(&mut self) {
        let now = jiff::Timestamp::now();
        for _ in 0..AT_ONCE {
            let length = match recv(&self.packets, &mut self.buffer[..], RecvFlags::DONTWAIT) {
                Ok((length, _)) => length.min(self.buffer.len()),
                Err(Errno::INTR) => continue,
                // How many were lost is known from the number of the next packet.
                Err(Errno::NOBUFS) => {
                    self.gaps.lost_packets += 1;
                    self.noted = self.noted.saturating_add(1);
                    continue;
                }
                Err(_) => break,
            };
            let mut frames = Vec::with_capacity(nflog::BATCH as usize);
            for message in netlink::messages(&self.buffer[..length]) {
                let Some(packet) = nflog::packet(message.kind, message.body) else { continue };
                if let Some(number) = packet.number {
                    let lost = self.next.map_or(0, |next| number.wrapping_sub(next));
                    self.gaps.lost_packets += u64::from(lost.saturating_sub(self.noted));
                    // Packets from before the loss come first.
                    self.noted = self.noted.saturating_sub(lost);
                    self.next = Some(number.wrapping_add(1));
                }
                let Packet { bytes, length, .. } = packet;
                frames.push(Frame { link: LinkType::RAW, at: now, bytes, length });
            }
            self.flows.frames(&frames);
        }
    }

    /// Takes what is known of flows that have ended, and restores the table if its process has died.
    fn collect(&mut self) {
        self.collected = Instant::now();
        self.flows.expire(jiff::Timestamp::now());
        for record in self.flows.ended() {
            self.census.seen(&record, true);
        }
        let stands = self.table.as_mut().is_ok_and(Owned::stands);
        if !stands {
            // The kernel removes the table with the process that owns it.
            self.table = hold(self.group);
            if self.table.is_ok() {
                self.restored += 1;
            }
        }
    }

    fn count_interfaces(&mut self) -> u64 {
        match self.interfaces.read(&self.named) {
            Ok(counted) => {
                self.census.set_local(counted.addresses);
                self.missing = counted.missing;
                counted.bytes
            }
            Err(error) => {
                tracing::debug!(%error, "cannot read the interfaces' counters");
                0
            }
        }
    }

    fn tick(&mut self) {
        self.ticked = Instant::now();
        self.collect();
        self.flows.hand_over(|record| self.census.seen(record, false));
        let bytes = self.count_interfaces();
        self.census.tick(wall(), bytes, std::mem::take(&mut self.gaps));
    }

    /// Makes a list now, and adds everything up.
    fn refresh(&mut self) {
        let end = Instant::now() + LISTING;
        self.read_tracking();
        if self.list == List::None {
            self.begin_list();
        }
        while self.list != List::None && Instant::now() < end {
            let mut fds = [PollFd::new(&self.tracking, PollFlags::IN)];
            let _ = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 10_000_000 }));
            self.read_tracking();
            self.read_packets();
        }
        // Packets are collected for a while by the kernel, too.
        self.read_packets();
        self.flows.hand_over(|record| self.census.seen(record, false));
    }

    fn problems(&self) -> Vec<String> {
        let mut all = self.settings.clone();
        if let Err(why) = &self.table {
            all.push(format!("no first packets are seen, so new connections are unknown: {why}"));
        }
        if self.restored > 0 {
            all.push(format!(
                "the nft process that owns the table `inet {}_...` ended {} times, and the table was made again; connections that began meanwhile are unknown",
                nflog::TABLE, self.restored
            ));
        }
        for name in &self.missing {
            all.push(format!(
                "there is no interface {name} ([watch] interfaces), so its bytes are not counted"
            ));
        }
        all
    }
}

fn hold(group: u16) -> Result<Owned, String> {
    let filled = |table: &str| Ok(nflog::rules(table, group));
    Owned::hold::<crate::intercept::InterceptError>(nflog::TABLE, nflog::CHAIN, filled)
        .map_err(|e| chain(&e))
}

/// A socket for packets, and its group.
fn packets() -> Result<(OwnedFd, u16), String> {
    let failed = |e: Errno| format!("cannot receive packets from the kernel (nfnetlink_log): {e}");
    'groups: for group in GROUP..GROUP + GROUPS {
        let flags = SocketFlags::empty();
        let socket = netlink::open(Some(families::NETFILTER), 0, flags).map_err(failed)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_secs(2))).map_err(failed)?;
        enlarge(&socket);
        for request in nflog::bind(group) {
            request.send(&socket).map_err(failed)?;
            match acknowledged(&socket).map_err(failed)? {
                None => {}
                // Another program uses it, or the process that hands over to this one.
                Some(Errno::BUSY | Errno::PERM) => continue 'groups,
                Some(error) => return Err(failed(error)),
            }
        }
        return Ok((socket, group));
    }
    let last = GROUP + GROUPS - 1;
    Err(format!("all groups of nfnetlink_log from {GROUP} to {last} are in use, or not permitted"))
}

/// Waits for the answer to a request.
fn acknowledged(socket: &OwnedFd) -> Result<Option<Errno>, Errno> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        let length = match recv(socket, &mut buffer[..], RecvFlags::empty()) {
            Err(Errno::INTR) => continue,
            received => received?.0,
        };
        let answers = netlink::messages(buffer.get(..length).unwrap_or_default());
        if let Some(answer) = answers.into_iter().find(|m| m.kind == NLMSG_ERROR) {
            return Ok(netlink::error(answer.body));
        }
    }
}

fn enlarge(socket: &OwnedFd) {
    if set_socket_recv_buffer_size_force(socket, QUEUE).is_err() {
        let _ = set_socket_recv_buffer_size(socket, QUEUE);
    }
}

/// Switches on what the kernel must count. Returns what could not be switched on.
fn set() -> Vec<String> {
    let needed = [
        (
            "nf_conntrack_acct",
            "1",
            "the bytes of connections are not counted, so all bytes are unknown",
        ),
        ("nf_conntrack_timestamp", "1", "connections from before the watch can count as new ones"),
        (
            "nf_conntrack_events",
            "1",
            "connections that begin and end between two lists are not seen",
        ),
    ];
    let mut missing = Vec::new();
    for (name, value, without) in needed {
        let file = Path::new(SETTINGS).join(name);
        let is_set = || fs::read_to_string(&file).is_ok_and(|now| now.trim() != "0");
        if is_set() {
            continue;
        }
        let written = fs::File::options()
            .write(true)
            .open(&file)
            .and_then(|mut f| f.write_all(value.as_bytes()));
        if !is_set() {
            let why = written.err().unwrap_or_else(|| ErrorKind::Other.into());
            missing.push(format!(
                "net.netfilter.{name} is 0 and could not be set ({why}): {without}. Run `sysctl -w net.netfilter.{name}={value}`, and restart the node."
            ));
        }
    }
    missing
}

/// The time in nanoseconds since 1970, as the kernel writes it.
fn wall() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or_default()
}
