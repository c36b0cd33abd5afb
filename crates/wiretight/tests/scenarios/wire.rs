//! Checks a wire with a capture that is read while it runs, so that a long one fills no disk. No frame may contain the
//! canary, each must be neighbour discovery or TCP of the mesh, and each TCP connection of the mesh must begin with TLS 1.3.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use rustix::process::{Pid, Signal, kill_process};

use super::machines::{CANARY, Wire, hosts};
use super::rig::*;

/// A longer first flight of a connection is not ours.
const MAX_HELLO: usize = 16 << 10;

/// The results.
#[derive(Clone, Default, Debug)]
pub(crate) struct Seen {
    pub(crate) frames: u64,
    /// Canaries in plaintext.
    pub(crate) canaries: u64,
    /// Unexpected frames, and their counts.
    pub(crate) strange: BTreeMap<String, u64>,
    /// Connections that began with a ClientHello that offers TLS 1.3 and a ServerHello that selects it.
    pub(crate) tls13: u64,
    streams: HashMap<[SocketAddr; 2], Stream>,
    /// Counts for the machine at this end.
    own: Vec<IpAddr>,
}

impl Seen {
    /// Checks that there was only neighbour discovery and TLS 1.3 of the mesh.
    #[track_caller]
    pub(crate) fn assert_encrypted(&self) {
        let Seen { frames, canaries, strange, tls13, .. } = self;
        assert!(*frames > 20 && *tls13 > 0, "the capture misses what is there: {frames}, {tls13}");
        assert!(*canaries == 0 && strange.is_empty(), "{canaries} canaries; strange: {strange:#?}");
    }
}

/// A capture that runs until dropped.
pub(crate) struct Watch {
    tcpdump: Child,
    log: PathBuf,
    seen: Arc<Mutex<Seen>>,
    reader: Option<JoinHandle<()>>,
}

impl Watch {
    /// Captures at `host`'s end of the wire. `ports` are the ports of the mesh.
    pub(crate) fn start(wire: &Wire, world: &World, host: u8, name: &str, ports: &[u16]) -> Watch {
        let log = world.path(&format!("{name}.log"));
        let mut tcpdump = Command::new(find("tcpdump").unwrap());
        tcpdump.args(["-i", &format!("v{host}"), "--immediate-mode", "-U", "-s", "0"]);
        tcpdump.args(["-B", "65536", "-Z", "root", "-w", "-"]);
        let mut tcpdump = within(Some(&wire.wire), tcpdump)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let said = || fs::read_to_string(&log).unwrap_or_default();
        wait_for("tcpdump listens", || said().contains("listening on"));
        let mut input = BufReader::with_capacity(1 << 20, tcpdump.stdout.take().unwrap());
        let seen = Arc::new(Mutex::new(Seen::default()));
        seen.lock().unwrap().own = hosts(host).to_vec();
        let (shared, ports) = (seen.clone(), ports.to_vec());
        let reader = thread::spawn(move || {
            // pcap-savefile(5), in this machine's byte order: a header of 24 bytes, then records.
            let mut header = [0; 24];
            if input.read_exact(&mut header).is_err() {
                return;
            }
            assert_eq!(header[20..], 1u32.to_ne_bytes(), "the frames are Ethernet's");
            while let Some(frame) = record(&mut input) {
                shared.lock().unwrap().frame(&frame, &ports);
            }
        });
        Watch { tcpdump, log, seen, reader: Some(reader) }
    }

    /// The results so far, including what was sent last.
    pub(crate) fn seen(&self) -> Seen {
        thread::sleep(ms(100));
        self.seen.lock().unwrap().clone()
    }

    /// The number of canaries so far.
    pub(crate) fn canaries(&self) -> u64 {
        self.seen.lock().unwrap().canaries
    }

    /// Starts over from now on.
    pub(crate) fn forget(&self) {
        thread::sleep(ms(300));
        let mut seen = self.seen.lock().unwrap();
        let (streams, own) = (std::mem::take(&mut seen.streams), seen.own.clone());
        *seen = Seen { streams, own, ..Seen::default() };
    }

    /// The final results. The capture must be complete.
    #[track_caller]
    pub(crate) fn end(mut self) -> Seen {
        thread::sleep(ms(300));
        let _ = kill_process(Pid::from_child(&self.tcpdump), Signal::INT);
        self.tcpdump.wait().unwrap();
        self.reader.take().unwrap().join().expect("the capture can be read");
        let said = fs::read_to_string(&self.log).unwrap();
        assert!(said.contains("\n0 packets dropped by kernel"), "{said}");
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.tcpdump.kill();
        let _ = self.tcpdump.wait();
    }
}

fn record(input: &mut impl Read) -> Option<Vec<u8>> {
    let mut head = [0; 16];
    input.read_exact(&mut head).ok()?;
    let length = u32::from_ne_bytes(head[8..12].try_into().ok()?) as usize;
    assert_eq!(head[8..12], head[12..16], "a frame is captured whole");
    let mut frame = vec![0; length];
    input.read_exact(&mut frame).ok()?;
    Some(frame)
}

impl Seen {
    fn frame(&mut self, frame: &[u8], ports: &[u16]) {
        self.frames += 1;
        let found = frame.windows(CANARY.len()).filter(|w| *w == CANARY.as_bytes()).count();
        self.canaries += found as u64;
        let (said, strange) = match self.judge(frame, ports) {
            Some(Ok(())) => return,
            Some(Err(what)) => (what, &mut self.strange),
            None => ("a frame that cannot be read".to_owned(), &mut self.strange),
        };
        // A flood of them must not fill the memory.
        if strange.len() < 100 || strange.contains_key(&said) {
            *strange.entry(said).or_default() += 1;
        }
    }

    /// `None` if it is truncated.
    fn judge(&mut self, frame: &[u8], ports: &[u16]) -> Option<Result<(), String>> {
        let kind = u16::from_be_bytes(frame.get(12..14)?.try_into().ok()?);
        let packet = frame.get(14..)?;
        let (from, to, protocol, body): (IpAddr, IpAddr, u8, &[u8]) = match kind {
            0x0806 => return Some(Ok(())),
            0x0800 => {
                let four = |at: usize| -> Option<IpAddr> {
                    Some(Ipv4Addr::from(*packet.get(at..)?.first_chunk::<4>()?).into())
                };
                let header = usize::from(packet.first()? & 0xf) * 4;
                let length = u16::from_be_bytes(*packet.get(2..)?.first_chunk()?).into();
                (four(12)?, four(16)?, *packet.get(9)?, packet.get(header..length)?)
            }
            0x86dd => {
                let six = |at: usize| -> Option<IpAddr> {
                    Some(Ipv6Addr::from(*packet.get(at..)?.first_chunk::<16>()?).into())
                };
                let length = usize::from(u16::from_be_bytes(*packet.get(4..)?.first_chunk()?));
                let (mut next, mut body) = (*packet.get(6)?, packet.get(40..40 + length)?);
                // Hop-by-hop options: multicast listener reports have one.
                if next == 0 {
                    let skipped = 8 + 8 * usize::from(*body.get(1)?);
                    (next, body) = (*body.first()?, body.get(skipped..)?);
                }
                (six(8)?, six(24)?, next, body)
            }
            other => return Some(Err(format!("ethertype {other:#06x}"))),
        };
        let port = |at: usize| Some(u16::from_be_bytes(*body.get(at..)?.first_chunk()?));
        match protocol {
            // Multicast listeners (RFC 2710, RFC 3810), routers and neighbours (RFC 4861).
            58 if matches!(body.first()?, 130..=136 | 143) => Some(Ok(())),
            6 => {
                let ends = [SocketAddr::new(from, port(0)?), SocketAddr::new(to, port(2)?)];
                if !ends.iter().any(|end| ports.contains(&end.port())) {
                    let flags = body.get(13)?;
                    return Some(Err(format!("TCP {} -> {} flags {flags:#x}", from, ends[1])));
                }
                self.segment(ends, body)
            }
            17 => Some(Err(format!("UDP {from} -> {to} port {}", port(2)?))),
            other => Some(Err(format!("protocol {other} {from} -> {to}"))),
        }
    }

    fn segment(&mut self, ends: [SocketAddr; 2], segment: &[u8]) -> Option<Result<(), String>> {
        let sequence = u32::from_be_bytes(*segment.get(4..)?.first_chunk()?);
        let payload = segment.get(usize::from(segment.get(12)? >> 4) * 4..)?;
        let flags = segment.get(13)?;
        let (syn, ack) = (flags & 0x02 != 0, flags & 0x10 != 0);
        let back = [ends[1], ends[0]];
        if syn && !ack {
            self.streams.insert(ends, Stream::Begins(Box::default()));
        }
        let (stream, side) = match self.streams.contains_key(&ends) {
            true => (self.streams.get_mut(&ends), Side::Client),
            false => (self.streams.get_mut(&back), Side::Server),
        };
        let Some(stream) = stream else {
            // After a link was down, the bridge has to learn addresses again, and floods frames for others.
            let flooded = !ends.iter().any(|end| self.own.contains(&end.ip()));
            return Some(match flooded || payload.is_empty() {
                true => Ok(()),
                false => Err(format!("TCP from the middle {} -> {}", ends[0].ip(), ends[1])),
            });
        };
        let Stream::Begins(begins) = stream else { return Some(Ok(())) };
        let flight = &mut begins[side as usize];
        if syn {
            flight.next = Some(sequence.wrapping_add(1));
        }
        flight.take(sequence, payload);
        let said = [hello(&begins[0].bytes, 1), hello(&begins[1].bytes, 2)];
        match said {
            [Hello::No(why), _] => Some(Err(format!("{} is no TLS 1.3: {why}", ends[1]))),
            [_, Hello::No(why)] => Some(Err(format!("{} is no TLS 1.3: {why}", ends[0]))),
            [Hello::Yes, Hello::Yes] => {
                *stream = Stream::Tls;
                self.tls13 += 1;
                Some(Ok(()))
            }
            _ => Some(Ok(())),
        }
    }
}

#[derive(Clone, Debug)]
enum Stream {
    /// The first bytes of both sides.
    Begins(Box<[Flight; 2]>),
    Tls,
}

#[derive(Clone, Copy)]
enum Side {
    Client,
    Server,
}

#[derive(Clone, Default, Debug)]
struct Flight {
    /// The sequence number of the next byte.
    next: Option<u32>,
    bytes: Vec<u8>,
}

impl Flight {
    /// Bytes that arrive out of order are contained in the retransmission.
    fn take(&mut self, sequence: u32, payload: &[u8]) {
        let Some(next) = self.next else { return };
        let known = next.wrapping_sub(sequence) as usize;
        if known < payload.len() && self.bytes.len() < MAX_HELLO {
            self.bytes.extend(&payload[known..]);
            self.next = Some(sequence.wrapping_add(payload.len() as u32));
        }
    }
}

#[derive(Debug, PartialEq)]
enum Hello {
    Yes,
    /// Whether there is no violation so far.
    NotYet,
    No(String),
}

/// Whether a flight begins with the handshake message `kind` (1: ClientHello, 2: ServerHello) for TLS 1.3
/// (RFC 8446, 4.1 and 4.2.1).
fn hello(bytes: &[u8], kind: u8) -> Hello {
    // A record's type and version. An alert in place of a ServerHello is a rejection.
    let handshake = [22, 3];
    let alert = [21, 3];
    let known = bytes.len().min(2);
    if bytes[..known] != handshake[..known] {
        return match kind == 2 && bytes[..known] == alert[..known] {
            true => Hello::NotYet,
            false => Hello::No(format!("it begins with {:02x?}", &bytes[..bytes.len().min(16)])),
        };
    }
    let Some(length) = bytes.get(3..5) else { return Hello::NotYet };
    let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
    let Some(message) = bytes.get(5..5 + length) else { return Hello::NotYet };
    match versions(message, kind) {
        Some(versions) if versions.contains(&0x0304) => Hello::Yes,
        versions => Hello::No(format!("its hello has the versions {versions:04x?}")),
    }
}

/// The content of `supported_versions`.
fn versions(message: &[u8], kind: u8) -> Option<Vec<u16>> {
    let mut rest = message;
    let mut take = |n: usize| {
        let (taken, left) = rest.split_at_checked(n)?;
        rest = left;
        Some(taken)
    };
    let number = |bytes: &[u8]| bytes.iter().fold(0, |n, b| n << 8 | usize::from(*b));
    if take(1)? != [kind] {
        return None;
    }
    // Length, legacy version, random; session id; cipher suites, and compression.
    take(3 + 2 + 32)?;
    let session = number(take(1)?);
    take(session)?;
    let suites = if kind == 1 { number(take(2)?) + 1 } else { 2 };
    take(suites)?;
    take(1)?;
    let mut left = number(take(2)?);
    while left > 0 {
        let (extension, length) = (number(take(2)?), number(take(2)?));
        let body = take(length)?;
        left = left.checked_sub(4 + length)?;
        if extension == 43 {
            let list = if kind == 1 { body.get(1..)? } else { body };
            return Some(list.chunks_exact(2).map(|v| u16::from_be_bytes([v[0], v[1]])).collect());
        }
    }
    Some(Vec::new())
}

#[test]
fn unencrypted_data_in_a_recording_is_reported() {
    let ports = [7080];
    let frame = |protocol: u8, body: &[u8]| {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00, 0x45, 0, 0, 20 + body.len() as u8, 0, 0, 0, 0, 64, protocol]);
        frame.extend([0, 0, 10, 77, 0, 1, 10, 77, 0, 2]);
        frame.extend(body);
        frame
    };
    let tcp = |to: u16, flags: u8, sequence: u8, payload: &[u8]| {
        let mut segment = vec![0x90, 0];
        segment.extend(to.to_be_bytes());
        segment.extend([0, 0, 0, sequence, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        segment.extend(payload);
        frame(6, &segment)
    };
    let told = |frames: &[Vec<u8>]| {
        let mut seen = Seen { own: hosts(1).to_vec(), ..Seen::default() };
        frames.iter().for_each(|f| seen.frame(f, &ports));
        (seen.strange.values().sum::<u64>(), seen.canaries)
    };
    assert_eq!(told(&[tcp(7080, 2, 9, b""), tcp(7080, 16, 10, &[22, 3, 1])]), (0, 0));
    assert_eq!(told(&[tcp(7080, 2, 9, b""), tcp(7080, 16, 10, b"GET")]), (1, 0), "no TLS");
    assert_eq!(told(&[tcp(7080, 16, 10, &[22, 3, 1])]), (1, 0), "from the middle");
    assert_eq!(told(&[tcp(80, 2, 9, b"")]), (1, 0), "another port");
    assert_eq!(told(&[frame(17, CANARY.as_bytes())]), (1, 1), "another protocol");
    assert_eq!(told(&[frame(6, b"")]), (1, 0), "cut off");
    let mut client = vec![1, 0, 0, 0, 3, 3];
    client.extend([0; 32]);
    client.extend([0, 0, 2, 0x13, 0x02, 1, 0, 0, 7, 0, 43, 0, 3, 2, 3, 4]);
    let record = |m: &[u8]| [&[22, 3, 1, 0, m.len() as u8][..], m].concat();
    assert_eq!(hello(&record(&client), 1), Hello::Yes);
    assert_eq!(hello(&record(&client)[..40], 1), Hello::NotYet);
    *client.last_mut().unwrap() = 3;
    assert!(matches!(hello(&record(&client), 1), Hello::No(_)), "TLS 1.2 alone");
}
