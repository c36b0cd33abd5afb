//! The passive classifier: packets and new TLS flows a second of one core, memory, and other programs on the same
//! captures. `scripts/bench watch`.

#![allow(clippy::unwrap_used, reason = "in a benchmark, whatever is not there ends it")]

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustix::time::{ClockId, clock_gettime};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
use wiretight_scan::judge::Level;
use wiretight_scan::passive::file::{Capture, Frame};
use wiretight_scan::passive::flow::{Limits, Table};
use wiretight_scan::passive::packets::LinkType;

const USAGE: &str = "usage: scripts/bench watch [--quick] [--rounds N] [--captures DIR] [--without-peers]

Packets of established flows and new TLS 1.3 flows a second of one core, from memory; bytes of memory a flow; 10,000,000
half-open flows. Then CPU time on the same files beside nDPI (nfstream) and tshark, where they are installed. DIR has
captures that are read too (../shared/captures unless it is missing).";

const LIMITS: Limits = Limits { flows: 2_000_000, undecided: 65_536, sample: 1 };

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let given: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let value = |name: &str| {
        let at = given.iter().position(|given| *given == name);
        at.map(|at| given[at + 1].to_owned())
    };
    match given[..] {
        // Processes of their own, so that their memory and CPU time can be measured.
        ["memory", flows] => memory(flows.parse().unwrap()),
        ["half-open", flows] => half_open(flows.parse().unwrap()),
        ["file", path] => file(Path::new(path)),
        _ if given.contains(&"--help") => println!("{USAGE}"),
        _ => {
            let quick = given.contains(&"--quick");
            let rounds =
                value("--rounds").map_or(if quick { 2 } else { 5 }, |n| n.parse().unwrap());
            let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
            println!("load before the run: {}", load.trim());
            let mut handshake = handshake();
            println!("\nestablished flows: packets a second of one core");
            for flows in if quick { &[10_000][..] } else { &[1000, 100_000, 1_000_000] } {
                report(&format!("{flows} flows"), established(&mut handshake, *flows, rounds));
            }
            println!(
                "\nnew TLS 1.3 flows a second of one core, {} packets each",
                handshake.packets()
            );
            let flows = if quick { 50_000 } else { 1_000_000 };
            report("flows", (0..rounds).map(|_| new_flows(&mut handshake, flows)).collect());
            println!("\nmemory");
            run_oneself(&["memory", if quick { "100000" } else { "1000000" }]);
            run_oneself(&["half-open", if quick { "1000000" } else { "10000000" }]);
            let captures = value("--captures").unwrap_or_else(|| {
                concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/captures").to_owned()
            });
            let peers = !given.contains(&"--without-peers");
            beside(&mut handshake, Path::new(&captures), quick, peers, rounds);
        }
    }
}

/// Prints the median, and the minimum and maximum.
fn report(what: &str, mut values: Vec<f64>) {
    values.sort_by(f64::total_cmp);
    let (low, high) = (values[0], values[values.len() - 1]);
    println!("  {what:28} {:>12.0}  ({low:.0}-{high:.0})", values[values.len() / 2]);
}

/// CPU time of this thread, in seconds.
fn cpu() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Memory of this process, in bytes.
fn resident() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<f64>().unwrap() * 4096.0
}

/// A random number, the same in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// The packets of a connection, as they are captured.
struct Handshake {
    /// Whether the server sends, and the frame.
    frames: Vec<(bool, Vec<u8>)>,
    /// What differs between connections: frame and position.
    randoms: Vec<(usize, usize)>,
    name: (usize, usize),
    random: Random,
}

/// Ethernet, IPv4, TCP.
const HEADERS: usize = 14 + 20 + 20;
const SEGMENT: usize = 1448;
/// Digits of it are changed.
const NAME: &str = "name00000000.example.com";

/// A TLS 1.3 connection of rustls with itself, from SYN to FIN.
fn handshake() -> Handshake {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let certificate =
        rcgen::CertificateParams::new(vec![NAME.to_owned()]).unwrap().self_signed(&key).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    let client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(NAME).unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    let mut frames = Vec::new();
    let (mut next, mut id) = ([101_u32, 501], 0_u16);
    let mut send = |from_server: bool, flags: u8, payload: &[u8]| {
        id += 1;
        let own = usize::from(from_server);
        let sequence = next[own] - u32::from(flags & 2 != 0);
        frames.push((from_server, frame(from_server, id, sequence, next[1 - own], flags, payload)));
        next[own] += payload.len() as u32 + u32::from(flags & 1);
    };
    send(false, 0x02, b"");
    send(true, 0x12, b"");
    send(false, 0x10, b"");
    let mut sent_data = false;
    loop {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        for segment in bytes.chunks(SEGMENT) {
            send(false, 0x18, segment);
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets().unwrap();
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        for segment in bytes.chunks(SEGMENT) {
            send(true, 0x18, segment);
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets().unwrap();
        }
        if !client.is_handshaking() && !sent_data {
            client.writer().write_all(&[b'q'; 400]).unwrap();
            server.writer().write_all(&[b'a'; 4000]).unwrap();
            sent_data = true;
        } else if bytes.is_empty() && !client.wants_write() {
            break;
        }
    }
    send(false, 0x11, b"");
    send(true, 0x11, b"");
    send(false, 0x10, b"");
    let hello = |from_server: bool| {
        frames.iter().position(|(by, frame)| *by == from_server && frame.len() > HEADERS).unwrap()
    };
    // After the headers of record and message, and the version
    let randoms = vec![(hello(false), HEADERS + 11), (hello(true), HEADERS + 11)];
    let has_name = |frame: &[u8]| frame.windows(NAME.len()).position(|w| w == NAME.as_bytes());
    let mut named = frames.iter().enumerate().filter_map(|(i, (_, f))| Some((i, has_name(f)?)));
    let name = named.next().expect("the name is in one segment of the hello");
    Handshake { frames, randoms, name, random: Random(0x9e37_79b9_7f4a_7c15) }
}

fn frame(from_server: bool, id: u16, sequence: u32, ack: u32, flags: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![2; 12];
    frame.extend([8, 0, 0x45, 0]);
    frame.extend((40 + body.len() as u16).to_be_bytes());
    frame.extend(id.to_be_bytes());
    frame.extend([0x40, 0, 64, 6, 0, 0]);
    frame.extend([0; 8]);
    let (source, destination) = if from_server { (443_u16, 40_000_u16) } else { (40_000, 443) };
    frame.extend(source.to_be_bytes());
    frame.extend(destination.to_be_bytes());
    frame.extend(sequence.to_be_bytes());
    frame.extend(ack.to_be_bytes());
    frame.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    frame.extend(body);
    frame
}

/// Puts the addresses of flow `n` into a frame.
fn address(frame: &mut [u8], from_server: bool, n: u64) {
    let client = (10 << 24 | (n / 50_000 + 1) as u32).to_be_bytes();
    let port = ((n % 50_000) as u16 + 10_000).to_be_bytes();
    let server = (172 << 24 | 16 << 16 | (n % 251) as u32).to_be_bytes();
    let (a, b, at) = if from_server { (server, client, 36) } else { (client, server, 34) };
    frame[26..30].copy_from_slice(&a);
    frame[30..34].copy_from_slice(&b);
    frame[at..at + 2].copy_from_slice(&port);
}

impl Handshake {
    fn packets(&self) -> usize {
        self.frames.len()
    }

    /// The frames of flow `n`.
    fn flow(&mut self, n: u64) -> Vec<Vec<u8>> {
        for (frame, at) in &self.randoms {
            for chunk in self.frames[*frame].1[*at..at + 32].chunks_mut(8) {
                chunk.copy_from_slice(&self.random.next().to_le_bytes());
            }
        }
        let name = format!("name{:08}", n % 1000);
        self.frames[self.name.0].1[self.name.1..][..name.len()].copy_from_slice(name.as_bytes());
        self.frames
            .iter()
            .map(|(from_server, frame)| {
                let mut frame = frame.clone();
                address(&mut frame, *from_server, n);
                frame
            })
            .collect()
    }

    /// How many packets there are before the first FIN.
    fn opening(&self) -> usize {
        self.packets() - 3
    }
}

/// A table, and a clock that moves with each packet.
struct Watched {
    table: Table,
    now: i64,
    step: i64,
}

impl Watched {
    fn new(limits: Limits, step: i64) -> Self {
        Self { table: Table::new(limits), now: 1_700_000_000_000_000_000, step }
    }

    fn next<'a>(&mut self, bytes: &'a [u8]) -> Frame<'a> {
        self.now += self.step;
        let (seconds, part) = (self.now / 1_000_000_000, self.now % 1_000_000_000);
        let at = jiff::Timestamp::new(seconds, part as i32).unwrap();
        Frame { link: LinkType::ETHERNET, at, bytes, length: bytes.len() }
    }

    fn frame(&mut self, frame: &[u8]) {
        let frame = self.next(frame);
        self.table.frame(frame.link, frame.at, frame.bytes, frame.length);
    }

    fn open(&mut self, handshake: &mut Handshake, flows: u64) {
        let packets = handshake.opening();
        for n in 0..flows {
            handshake.flow(n).iter().take(packets).for_each(|frame| self.frame(frame));
        }
    }
}

/// Packets a second, in each round.
fn established(handshake: &mut Handshake, flows: u64, rounds: usize) -> Vec<f64> {
    let mut watched = Watched::new(LIMITS, 1000);
    watched.open(handshake, flows);
    assert_eq!(watched.table.len() as u64, flows);
    assert!(watched.table.current().all(|r| r.seen.level >= Level::Acceptable));
    // Two of three are full packets of the server, the third acknowledges them.
    let mut random = Random(7);
    let mut frames = Vec::new();
    for i in 0..300_000_u32 {
        let from_server = i % 3 != 2;
        let body = if from_server { &[0x17; SEGMENT][..] } else { &[] };
        let (id, sequence) = (1 + (i % 65_000) as u16, 5000 + 9000 * i);
        let mut frame = frame(from_server, id, sequence, 7000 + i, 0x10, body);
        address(&mut frame, from_server, random.next() % flows);
        frames.push(frame);
    }
    // As the ring of a mirror port hands them over
    let round = |watched: &mut Watched| {
        let (mut packets, begun) = (0_u64, cpu());
        let mut block = Vec::new();
        while cpu() - begun < 1.0 {
            for frames in frames.chunks(64) {
                block.clear();
                block.extend(frames.iter().map(|bytes| watched.next(bytes)));
                watched.table.frames(&block);
            }
            packets += frames.len() as u64;
        }
        packets as f64 / (cpu() - begun)
    };
    round(&mut watched);
    let before = watched.table.len();
    let rates = (0..rounds).map(|_| round(&mut watched)).collect();
    assert_eq!((watched.table.len(), watched.table.missed().duplicates), (before, 0));
    rates
}

/// Flows a second. 64 are open at the same time.
fn new_flows(handshake: &mut Handshake, flows: u64) -> f64 {
    const TOGETHER: u64 = 64;
    let packets = handshake.packets();
    // As if the rate were the goal: 150,000 a second
    let mut watched = Watched::new(LIMITS, 1_000_000_000 / 150_000 / packets as i64);
    let (mut spent, mut encrypted) = (0.0, 0);
    let mut batch = Vec::new();
    for n in 0..flows / TOGETHER {
        batch.clear();
        batch.extend((0..TOGETHER).map(|i| handshake.flow(n * TOGETHER + i)));
        let begun = cpu();
        for packet in 0..packets {
            batch.iter().for_each(|flow| watched.frame(&flow[packet]));
        }
        let ended = watched.table.ended();
        encrypted += ended.iter().filter(|r| r.seen.level >= Level::Acceptable).count() as u64;
        drop(ended);
        spent += cpu() - begun;
    }
    let begun = cpu();
    let ended = watched.table.finish();
    spent += cpu() - begun;
    encrypted += ended.iter().filter(|r| r.seen.level >= Level::Acceptable).count() as u64;
    assert_eq!(encrypted, flows / TOGETHER * TOGETHER);
    encrypted as f64 / spent
}

fn memory(flows: u64) {
    let mut handshake = handshake();
    let mut watched = Watched::new(LIMITS, 1000);
    let before = resident();
    watched.open(&mut handshake, flows);
    let each = (resident() - before) / flows as f64;
    assert_eq!(watched.table.len() as u64, flows);
    println!("  bytes a flow that is established, of {flows} {each:>12.0}");
}

fn half_open(flows: u64) {
    const MOST: usize = 1_000_000;
    let mut watched = Watched::new(Limits { flows: MOST, ..LIMITS }, 1000);
    let mut syn = frame(false, 1, 100, 0, 2, b"");
    let (before, begun) = (resident(), cpu());
    let (mut ended, mut most) = (0, 0);
    for n in 0..flows {
        address(&mut syn, false, n);
        syn[26..30].copy_from_slice(&(n as u32).to_be_bytes());
        watched.frame(&syn);
        if n % 1024 == 0 {
            ended += watched.table.ended().len() as u64;
            most = most.max(watched.table.len());
        }
    }
    let rate = flows as f64 / (cpu() - begun);
    let grown = (resident() - before) / 1e6;
    assert_eq!(ended + watched.table.finish().len() as u64, flows);
    println!(
        "  {flows} half-open flows, table of {MOST}: at most {most} flows, {grown:.0} MB, {rate:.0} a second"
    );
}

/// Reads a file as `wiretight watch` does, and prints what was found.
fn file(path: &Path) {
    let mut capture = Capture::new(File::open(path).unwrap()).unwrap();
    let mut table = Table::new(LIMITS);
    let (mut flows, mut encrypted, mut packets) = (0, 0, 0_u64);
    while let Some(frame) = capture.next_frame() {
        let frame = frame.unwrap();
        table.frame(frame.link, frame.at, frame.bytes, frame.length);
        packets += 1;
        if packets.is_multiple_of(4096) {
            for record in table.ended() {
                flows += 1;
                encrypted += u64::from(record.seen.level > Level::Plaintext);
            }
        }
    }
    for record in [table.ended(), table.finish()].concat() {
        flows += 1;
        encrypted += u64::from(record.seen.level > Level::Plaintext);
    }
    println!("{packets} packets, {flows} flows, {encrypted} encrypted");
}

/// Writes frames as pcap, a packet each 20 microseconds.
struct Pcap {
    out: BufWriter<File>,
    packets: u64,
    bytes: u64,
}

impl Pcap {
    fn new(path: &Path) -> Self {
        let mut out = BufWriter::new(File::create(path).unwrap());
        out.write_all(&0xa1b2_c3d4_u32.to_le_bytes()).unwrap();
        out.write_all(&[2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0]).unwrap();
        Self { out, packets: 0, bytes: 0 }
    }

    fn put(&mut self, frame: &[u8], length: usize) {
        let micros = self.packets * 20;
        let (seconds, part) = (1_700_000_000 + micros / 1_000_000, micros % 1_000_000);
        let header = [seconds as u32, part as u32, frame.len() as u32, length as u32];
        self.out.write_all(header.map(u32::to_le_bytes).as_flattened()).unwrap();
        self.out.write_all(frame).unwrap();
        self.packets += 1;
        self.bytes += length as u64;
    }
}

/// Other programs and ours on the same files.
fn beside(handshake: &mut Handshake, captures: &Path, quick: bool, peers: bool, rounds: usize) {
    let folder = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    let path = folder.path().join("tls.pcap");
    let mut pcap = Pcap::new(&path);
    let flows = if quick { 1000 } else { 10_000 };
    for n in 0..flows / 50 {
        let together: Vec<_> = (0..50).map(|i| handshake.flow(n * 50 + i)).collect();
        for packet in 0..handshake.packets() {
            together.iter().for_each(|flow| pcap.put(&flow[packet], flow[packet].len()));
        }
    }
    // Long flows: most packets of a network are of those.
    let mut random = Random(3);
    for i in 0..flows as u32 * 30 {
        let mut frame = frame(true, 1 + (i % 65_000) as u16, 9000 * i, i, 0x10, &[0x17; 600]);
        address(&mut frame, true, random.next() % flows);
        pcap.put(&frame, frame.len());
    }
    files.push(("TLS", path, pcap));
    let path = folder.path().join("captures.pcap");
    if let Some(pcap) = merged(captures, &path, if quick { 50_000 } else { 500_000 }) {
        files.push(("captures", path, pcap));
    } else {
        println!("\nno captures in {}: not read", captures.display());
    }
    for (name, path, mut pcap) in files {
        pcap.out.flush().unwrap();
        println!(
            "\n{name}: {} packets, {:.0} MB; CPU seconds, packets a CPU second",
            pcap.packets,
            pcap.bytes as f64 / 1e6
        );
        let mut systems = vec![("wiretight", oneself(&["file", path.to_str().unwrap()]))];
        if peers {
            systems.extend(nfstream(&path));
            systems.extend(tshark(&path));
        }
        let mut spent = vec![Vec::new(); systems.len()];
        for round in 0..rounds {
            for (i, (system, command)) in systems.iter_mut().enumerate() {
                let before = cpu_of_children();
                let output = command.stderr(Stdio::inherit()).output().unwrap();
                assert!(output.status.success(), "{system}: {}", output.status);
                spent[i].push(cpu_of_children() - before);
                if round == 0 {
                    let said = String::from_utf8_lossy(&output.stdout);
                    println!("  {system:12} {}", said.trim().lines().last().unwrap_or_default());
                }
            }
        }
        let middle = |values: &mut Vec<f64>| {
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let own = middle(&mut spent[0].clone());
        for ((system, _), mut values) in systems.iter().zip(spent) {
            let time = middle(&mut values);
            println!(
                "  {system:12} {time:>8.2} s ({:.2}-{:.2}) {:>12.0} {:>8.1} times ours",
                values[0],
                values[values.len() - 1],
                pcap.packets as f64 / time,
                time / own
            );
        }
    }
}

/// The Ethernet frames of all captures below a folder, again and again, with times in order.
fn merged(folder: &Path, path: &Path, packets: u64) -> Option<Pcap> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).ok()? {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    let mut pcap = Pcap::new(path);
    while pcap.packets < packets {
        let before = pcap.packets;
        for file in &found {
            let Ok(mut capture) = Capture::new(File::open(file).unwrap()) else { continue };
            while let Some(Ok(frame)) = capture.next_frame() {
                if frame.link == LinkType::ETHERNET && frame.bytes.len() < 65_536 {
                    pcap.put(frame.bytes, frame.length);
                }
            }
        }
        if pcap.packets == before {
            return None;
        }
    }
    Some(pcap)
}

/// This program with other arguments.
fn oneself(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(arguments);
    command
}

fn run_oneself(arguments: &[&str]) {
    assert!(oneself(arguments).status().unwrap().success());
}

/// nDPI, by nfstream: flows, the protocol of each.
fn nfstream(path: &Path) -> Option<(&'static str, Command)> {
    const SCRIPT: &str = "
import sys
from nfstream import NFStreamer
if __name__ == '__main__':
    names = [f.application_name for f in NFStreamer(source=sys.argv[1], statistical_analysis=False, n_meters=1)]
    print(len(names), 'flows,', sum('TLS' in n or 'QUIC' in n for n in names), 'with TLS or QUIC in their name')
";
    let python = tools().join("nfstream/bin/python");
    if !python.exists() {
        println!("  nfstream is not installed: skipped");
        return None;
    }
    let mut command = Command::new(python);
    command.args(["-c", SCRIPT]).arg(path);
    Some(("nDPI", command))
}

/// tshark: the fields of each hello.
fn tshark(path: &Path) -> Option<(&'static str, Command)> {
    let mut command = Command::new("tshark");
    if command.arg("--version").output().is_err() {
        println!("  tshark is not installed: skipped");
        return None;
    }
    let mut command = Command::new("tshark");
    command.args([
        "-n",
        "-Y",
        "tls.handshake.type == 2",
        "-T",
        "fields",
        "-e",
        "tls.handshake.ciphersuite",
        "-r",
    ]);
    command.arg(path);
    Some(("tshark", command))
}

fn tools() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target =
        target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"));
    target.join("tools")
}

/// CPU time of children that have ended, in seconds (proc_pid_stat(5): cutime and cstime, in ticks).
fn cpu_of_children() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks = |number: usize| fields[number - 3].parse::<f64>().unwrap();
    (ticks(16) + ticks(17)) / 100.0
}
