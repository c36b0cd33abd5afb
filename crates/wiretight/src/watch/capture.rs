//! Packets of an interface, into tables of flows: a mirror port, or all traffic of this machine. Nothing is sent, and
//! nothing that passes is changed or delayed.
//!
//! Each thread has its own socket and table. The kernel distributes packets by a hash of addresses and ports, so a flow is
//! in one table.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, bail};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;
use socket2::SockFilter;
use wiretight_scan::passive::file::Frame;
use wiretight_scan::passive::flow::{Limits, Record, Table};
use wiretight_scan::passive::packets::LinkType;
use wiretight_scan::passive::summary::Coverage;

use super::sys::{AFTER_STATUS, Ring};

/// The name that stands for all interfaces.
pub const ANY: &str = "any";
/// The time after which a block is passed on even if it is not full, in milliseconds.
const BLOCK_TIMEOUT: u32 = 100;
/// The size of a block, unless the ring is smaller.
const BLOCK: usize = 1 << 20;
const SMALLEST_BLOCK: usize = 1 << 17;
/// ARPHRD_ETHER and ARPHRD_LOOPBACK (linux/if_arp.h).
const ETHERNET: u16 = 1;
const LOOPBACK: u16 = 772;
/// Packets that are passed to a table at a time.
const TOGETHER: usize = 64;
const ETHERNET_HEADER: u64 = 14;
const VLAN_HEADER: u64 = 4;

/// What to capture, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// An interface, or [`ANY`].
    pub interface: String,
    pub threads: usize,
    /// The length up to which a packet is captured.
    pub snaplen: u32,
    /// Bytes of all rings together.
    pub buffer: usize,
    /// Whether the interface receives frames for other machines too.
    pub promiscuous: bool,
    pub limits: Limits,
}

/// A running capture.
pub struct Capture {
    shared: Vec<Arc<Shared>>,
    threads: Vec<JoinHandle<io::Result<()>>>,
    stop: Arc<AtomicBool>,
    interface: String,
    started: jiff::Timestamp,
    /// The counters of the interfaces at the start, by name.
    counted: Vec<(String, u64)>,
}

/// What a thread and the rest of the program share.
struct Shared {
    table: Mutex<Table>,
    dropped: AtomicU64,
    freezes: AtomicU64,
    /// Bytes of captured frames, with their link layer header.
    frames: AtomicU64,
    /// Frames of protocols that are not IP.
    other: AtomicU64,
}

/// Sockets that receive, before threads exist: then the process can give up its capabilities.
pub struct Opened {
    rings: Vec<Ring>,
    options: Options,
    ports: Arc<HashSet<u32>>,
    started: jiff::Timestamp,
    counted: Vec<(String, u64)>,
}

impl Opened {
    /// Opens the sockets. This needs CAP_NET_RAW, and nothing after it does.
    pub fn new(options: Options) -> anyhow::Result<Opened> {
        let all = options.interface == ANY;
        // On its own ports, a bridge or bond has the same frames again.
        let ports = if all { ports() } else { HashSet::new() };
        let filter = filter(options.snaplen, all);
        let share = options.buffer / options.threads.max(1);
        let block = BLOCK.min((share / 4).next_power_of_two()).max(SMALLEST_BLOCK);
        let blocks = (share / block).max(2);
        let mut rings = Vec::new();
        for _ in 0..options.threads.max(1) {
            let ring = Ring::new(block, blocks, BLOCK_TIMEOUT, &filter).map_err(|error| match error.raw_os_error() {
                Some(libc::EPERM) => anyhow::anyhow!(
                    "Capturing packets needs the capability CAP_NET_RAW. Run this command as root, or read a file that tcpdump has written."
                ),
                Some(libc::ENOMEM) => anyhow::anyhow!("The kernel has no memory for a ring of {share} bytes. Set a smaller --buffer."),
                _ => anyhow::Error::from(error).context("cannot open a packet socket"),
            })?;
            rings.push(ring);
        }
        let index = if all { 0 } else { index(&options.interface)? };
        let counted = counters(&options.interface, &ports);
        for ring in &rings {
            ring.bind(index).with_context(|| format!("cannot capture on {}", options.interface))?;
            // The mode ends with the last socket that asked for it.
            if options.promiscuous && !all {
                ring.promiscuous(index).context("cannot set the promiscuous mode")?;
            }
            if rings.len() > 1 {
                // Groups are numbered for each network namespace.
                let group = std::process::id() as u16;
                ring.share(group).context("cannot share packets between threads")?;
            }
        }
        let started = jiff::Timestamp::now();
        Ok(Opened { rings, options, ports: Arc::new(ports), started, counted })
    }

    /// Starts the threads.
    pub fn start(self) -> io::Result<Capture> {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut shared, mut threads) = (Vec::new(), Vec::new());
        for ring in self.rings {
            let own = Arc::new(Shared {
                table: Mutex::new(Table::new(self.options.limits)),
                dropped: AtomicU64::new(0),
                freezes: AtomicU64::new(0),
                frames: AtomicU64::new(0),
                other: AtomicU64::new(0),
            });
            let (of_thread, stop, ports) = (own.clone(), stop.clone(), self.ports.clone());
            let thread = std::thread::Builder::new().name("capture".into());
            threads.push(thread.spawn(move || capture(ring, &of_thread, &stop, &ports))?);
            shared.push(own);
        }
        let (started, interface, counted) = (self.started, self.options.interface, self.counted);
        Ok(Capture { shared, threads, stop, interface, started, counted })
    }
}

impl Capture {
    /// The flows that have ended since the last call.
    pub fn ended(&self) -> Vec<Record> {
        let now = jiff::Timestamp::now();
        let mut all = Vec::new();
        for shared in &self.shared {
            let mut table = shared.table.lock();
            table.expire(now);
            all.append(&mut table.ended());
        }
        all
    }

    /// Calls `see` for each current flow.
    pub fn current(&self, mut see: impl FnMut(Record)) {
        for shared in &self.shared {
            let records: Vec<Record> = shared.table.lock().current().collect();
            records.into_iter().for_each(&mut see);
        }
    }

    /// Whether a thread has ended, which it does only after an error.
    pub fn failed(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Adds the window, and what was missed.
    pub fn missed(&self, coverage: &mut Coverage) {
        coverage.extend(self.started);
        coverage.extend(jiff::Timestamp::now());
        let ports = if self.interface == ANY { ports() } else { HashSet::new() };
        let now = counters(&self.interface, &ports);
        let mut frames = 0u64;
        for shared in &self.shared {
            coverage.miss_all(shared.table.lock().missed());
            coverage.miss("not_ip", shared.other.load(Ordering::Relaxed), 0);
            coverage.miss("dropped", shared.dropped.load(Ordering::Relaxed), 0);
            coverage.miss("ring_full", shared.freezes.load(Ordering::Relaxed), 0);
            frames = frames.saturating_add(shared.frames.load(Ordering::Relaxed));
        }
        // An interface that did not exist at the start counts from 0.
        let before =
            |name: &str| self.counted.iter().find(|(of, _)| of == name).map_or(0, |(_, n)| *n);
        let passed = now
            .iter()
            .fold(0u64, |sum, (name, n)| sum.saturating_add(n.saturating_sub(before(name))));
        coverage.miss("not_captured", 0, passed.saturating_sub(frames));
    }

    /// Ends all flows and threads.
    pub fn finish(&mut self) -> anyhow::Result<Vec<Record>> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(ended) => {
                    ended.with_context(|| format!("the capture on {} ended", self.interface))?
                }
                Err(_) => bail!("a capture thread panicked"),
            }
        }
        let mut all = Vec::new();
        for shared in &self.shared {
            all.append(&mut shared.table.lock().finish());
        }
        Ok(all)
    }
}

/// The loop of a thread.
fn capture(
    mut ring: Ring,
    shared: &Shared,
    stop: &AtomicBool,
    ports: &HashSet<u32>,
) -> io::Result<()> {
    let mut other = Vec::new();
    let mut stopping = false;
    loop {
        let mut any = false;
        // The lock is released between blocks, so that a view need not wait long.
        while let Some(block) = ring.block() {
            any = true;
            let mut frames = Vec::with_capacity(TOGETHER);
            let mut table = shared.table.lock();
            for packet in Packets::of(block.bytes) {
                frames.extend(take(&packet, &mut table, shared, ports, &mut other));
                if frames.len() == TOGETHER {
                    table.frames(&frames);
                    frames.clear();
                }
            }
            table.frames(&frames);
        }
        let counted = ring.statistics()?;
        shared.dropped.fetch_add(counted.dropped.into(), Ordering::Relaxed);
        shared.freezes.fetch_add(counted.freezes.into(), Ordering::Relaxed);
        if stopping && !any {
            return Ok(());
        }
        // After the stop, wait once until the last block is passed on.
        stopping = stop.load(Ordering::Relaxed);
        let wait = Duration::from_millis(if stopping { 3 * u64::from(BLOCK_TIMEOUT) } else { 250 });
        let wait = Timespec { tv_sec: 0, tv_nsec: wait.subsec_nanos().into() };
        let fd = ring.as_fd();
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&wait)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Counts a packet. Returns it as a frame for the table, unless it is in the table already.
fn take<'a>(
    packet: &Packet<'a>,
    table: &mut Table,
    shared: &Shared,
    ports: &HashSet<u32>,
    other: &mut Vec<u8>,
) -> Option<Frame<'a>> {
    if ports.contains(&packet.interface) {
        return None;
    }
    let header = match packet.hardware {
        ETHERNET | LOOPBACK => ETHERNET_HEADER + if packet.vlan { VLAN_HEADER } else { 0 },
        _ => 0,
    };
    shared.frames.fetch_add(u64::from(packet.length) + header, Ordering::Relaxed);
    let length = packet.length as usize;
    match packet.protocol {
        0x0800 | 0x86dd => {
            return Some(Frame { link: LinkType::RAW, at: packet.at, bytes: packet.bytes, length });
        }
        // A second VLAN tag, MPLS, PPPoE: the table gets the number in a header of its own (LINKTYPE_LINUX_SLL).
        0x8100 | 0x88a8 | 0x8847 | 0x8848 | 0x8864 => {
            other.clear();
            other.extend([0; 14]);
            other.extend(packet.protocol.to_be_bytes());
            other.extend(packet.bytes);
            table.frame(LinkType::LINUX_SLL, packet.at, other, length.saturating_add(16));
        }
        _ => _ = shared.other.fetch_add(1, Ordering::Relaxed),
    }
    None
}

/// Cuts packets to `snaplen`. On loopback, each packet is seen when it is sent and when it is received: the first is
/// ignored. With `all` interfaces, both are: they do not leave this machine.
fn filter(snaplen: u32, all: bool) -> [SockFilter; 6] {
    // linux/filter.h: loads of what is known of a packet besides its bytes.
    const KNOWN: u32 = -0x1000_i32 as u32;
    const PACKET_TYPE: u32 = KNOWN + 4;
    const HARDWARE_TYPE: u32 = KNOWN + 28;
    const OUTGOING: u32 = 4;
    // linux/bpf_common.h
    const LOAD: u16 = 0x20;
    const IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    [
        SockFilter::new(LOAD, 0, 0, HARDWARE_TYPE),
        SockFilter::new(IF_EQUAL, if all { 2 } else { 0 }, 3, LOOPBACK.into()),
        SockFilter::new(LOAD, 0, 0, PACKET_TYPE),
        SockFilter::new(IF_EQUAL, 0, 1, OUTGOING),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, snaplen),
    ]
}

fn index(interface: &str) -> anyhow::Result<u32> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    name_to_index(&socket, interface)
        .with_context(|| format!("There is no interface {interface:?}. `ip link` lists the interfaces; `any` is all of them."))
}

/// Interfaces that are ports of a bridge, bond or other interface, by index.
fn ports() -> HashSet<u32> {
    names_of_ports().into_iter().filter_map(|name| index(&name).ok()).collect()
}

fn names_of_ports() -> Vec<String> {
    let all = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let of_another = all.filter(|interface| interface.path().join("master").exists());
    of_another.map(|interface| interface.file_name().to_string_lossy().into_owned()).collect()
}

/// Bytes received and sent by each interface that is captured. What is sent on loopback is received there too.
fn counters(interface: &str, ports: &HashSet<u32>) -> Vec<(String, u64)> {
    let text = fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    let of_ports = if ports.is_empty() { Vec::new() } else { names_of_ports() };
    let skip = |name: &str| match interface {
        ANY => name == "lo" || of_ports.iter().any(|port| port == name),
        wanted => name != wanted,
    };
    let mut found = Vec::new();
    for line in text.lines() {
        let Some((name, numbers)) = line.split_once(':') else { continue };
        let name = name.trim();
        if skip(name) {
            continue;
        }
        let number = |at: usize| numbers.split_whitespace().nth(at)?.parse::<u64>().ok();
        let (Some(received), Some(sent)) = (number(0), number(8)) else { continue };
        let bytes = if name == "lo" { received } else { received.saturating_add(sent) };
        found.push((name.to_owned(), bytes));
    }
    found
}

/// A captured packet.
#[derive(Debug, PartialEq, Eq)]
struct Packet<'a> {
    at: jiff::Timestamp,
    /// From the network header.
    bytes: &'a [u8],
    /// The length on the wire, without the link layer header.
    length: u32,
    /// EtherType.
    protocol: u16,
    interface: u32,
    /// ARPHRD_*.
    hardware: u16,
    /// Whether the kernel has removed a VLAN tag.
    vlan: bool,
}

/// The packets of a block: struct tpacket_block_desc after its status, then structs tpacket3_hdr with offsets.
struct Packets<'a> {
    bytes: &'a [u8],
    left: u32,
    at: usize,
}

impl<'a> Packets<'a> {
    fn of(bytes: &'a [u8]) -> Packets<'a> {
        let field = |at: usize| u32_at(bytes, at - AFTER_STATUS);
        let (count, first) = (field(12).unwrap_or(0), field(16).unwrap_or(0));
        Packets { bytes, left: count, at: (first as usize).saturating_sub(AFTER_STATUS) }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

impl<'a> Iterator for Packets<'a> {
    type Item = Packet<'a>;

    fn next(&mut self) -> Option<Packet<'a>> {
        const TP_STATUS_VLAN_VALID: u32 = 1 << 4;
        /// struct tpacket3_hdr, aligned: struct sockaddr_ll follows.
        const HEADER: usize = 48;
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let header = self.bytes.get(self.at..)?;
        let field = |at: usize| u32_at(header, at);
        let (next, seconds, nanoseconds) = (field(0)?, field(4)?, field(8)?);
        let (captured, length, status) = (field(12)?, field(16)?, field(20)?);
        let start = usize::from(u16_at(header, 26)?);
        let packet = Packet {
            at: jiff::Timestamp::new(seconds.into(), i32::try_from(nanoseconds).ok()?).ok()?,
            bytes: header.get(start..start.checked_add(captured as usize)?)?,
            length: length.max(captured),
            protocol: u16::from_be(u16_at(header, HEADER + 2)?),
            interface: u32_at(header, HEADER + 4)?,
            hardware: u16_at(header, HEADER + 8)?,
            vlan: status & TP_STATUS_VLAN_VALID != 0,
        };
        self.at = self.at.checked_add(next as usize)?;
        Some(packet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A block with one packet of four bytes.
    fn block() -> Vec<u8> {
        let mut block = vec![0; 48 + 48 + 20 + 4];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(12, &1u32.to_ne_bytes());
        put(16, &48u32.to_ne_bytes());
        for (n, field) in [0u32, 1_800_000_000, 5, 4, 1500, 1 << 4].into_iter().enumerate() {
            put(48 + 4 * n, &field.to_ne_bytes());
        }
        put(48 + 24, &68u16.to_ne_bytes());
        put(48 + 26, &68u16.to_ne_bytes());
        put(96 + 2, &0x0800u16.to_be_bytes());
        put(96 + 4, &7u32.to_ne_bytes());
        put(96 + 8, &772u16.to_ne_bytes());
        put(116, b"abcd");
        block.drain(..AFTER_STATUS);
        block
    }

    #[test]
    fn a_block_is_parsed_and_a_truncated_one_is_empty() {
        let whole = block();
        let found: Vec<_> = Packets::of(&whole).collect();
        let at = jiff::Timestamp::new(1_800_000_000, 5).unwrap();
        let (interface, hardware, vlan) = (7, LOOPBACK, true);
        let bytes = &b"abcd"[..];
        assert_eq!(
            found,
            [Packet { at, bytes, length: 1500, protocol: 0x0800, interface, hardware, vlan }]
        );
        for cut in 0..whole.len() {
            assert_eq!(Packets::of(&whole[..cut]).count(), 0, "{cut}");
        }
    }

    #[test]
    fn the_kernel_counts_loopback_once() {
        let of_loopback = counters("lo", &HashSet::new());
        assert_eq!(of_loopback.len(), 1);
        assert!(counters("no-such-if", &HashSet::new()).is_empty());
        assert!(counters(ANY, &HashSet::new()).iter().all(|(name, _)| name != "lo"));
        let error = index("no-such-if").unwrap_err();
        assert!(error.to_string().contains("no-such-if"), "{error}");
    }
}
