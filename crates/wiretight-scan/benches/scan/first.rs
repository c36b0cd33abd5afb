//! The first contact: one hello to each of many hosts.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use wiretight_scan::active::{Depth, Feed, GATHER, Options, scan_many};
use wiretight_scan::report::{self, Format, Prepared, Writer};

use wiretight_scan::Report;

use super::oneself;

/// The answer of every host: a HelloRetryRequest for X25519MLKEM768 (RFC 8446 section 4.1.3).
fn answer() -> Vec<u8> {
    const RETRY: [u8; 32] = [
        0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8,
        0x91, 0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8,
        0x33, 0x9c,
    ];
    let mut body = vec![3, 3];
    body.extend(RETRY);
    // No session ID, TLS_AES_128_GCM_SHA256, no compression; supported_versions and key_share.
    body.extend([0, 0x13, 0x01, 0, 0, 12, 0, 43, 0, 2, 3, 4, 0, 51, 0, 2, 0x11, 0xec]);
    let mut record = vec![22, 3, 3, 0, body.len() as u8 + 4, 2, 0, 0, body.len() as u8];
    record.extend(body);
    record
}

/// Answers on every loopback address, and prints the port.
pub fn respond() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([0, 0, 0, 0], 0))).unwrap();
        let listener: TcpListener = socket.listen(4096).unwrap();
        println!("{}", listener.local_addr().unwrap().port());
        let answer: &'static [u8] = answer().leak();
        loop {
            let Ok((mut stream, _)) = listener.accept().await else { continue };
            tokio::spawn(async move {
                let mut buffer = [0; 2048];
                let _ = stream.read(&mut buffer).await;
                let _ = stream.write_all(answer).await;
                // Wait until the client has read it.
                let _ = stream.read(&mut buffer).await;
            });
        }
    });
}

/// The address of the host with this number; hosts are spread over 127.0.0.0/8.
fn host(n: usize) -> Ipv4Addr {
    Ipv4Addr::from(0x7f01_0000 + n as u32)
}

/// Scans the hosts in a file like `wiretight scan --quick --targets FILE --format jsonl`.
pub fn hosts(file: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (to_scan, targets) = mpsc::channel(1024);
    let (reports, mut results) = mpsc::channel(1024);
    let file = std::fs::File::open(file).unwrap();
    let handle = runtime.handle().clone();
    std::thread::spawn(move || {
        let mut feed = Feed::new(&to_scan, handle);
        BufReader::new(file).lines().all(|line| feed.put(line.unwrap().parse().unwrap()))
    });
    let begun = Instant::now();
    let made = |report: Report| {
        (report.facts.yes("protocol.tls1_3"), Prepared::new(Format::Jsonl, report))
    };
    scan_many(targets, reports, 1000, Depth::Quick, &Options::default(), made).unwrap();
    let out = std::io::BufWriter::new(std::fs::File::create("/dev/null").unwrap());
    let mut writer = Writer::new(Format::Jsonl, out, report::Options::default());
    let (mut answered, mut all) = (0_u64, 0_u64);
    runtime.block_on(async {
        while let Some(first) = results.recv().await {
            let mut next = Some(first);
            while let Some((answers, report)) = next {
                all += 1;
                answered += u64::from(answers);
                writer.prepared(&report).unwrap();
                next = results.try_recv().ok();
            }
            writer.flush().unwrap();
            tokio::time::sleep(GATHER).await;
        }
    });
    figures(all, answered, begun.elapsed());
}

/// The kernel's share: connect, send, receive, close.
pub fn floor(hosts: usize, port: u16) {
    let begun = Instant::now();
    let threads: Vec<_> = (0..2)
        .map(|thread| {
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let set = tokio::task::LocalSet::new();
                let answered = std::rc::Rc::new(std::cell::Cell::new(0_u64));
                let next = std::rc::Rc::new(std::cell::Cell::new(thread));
                for _ in 0..500 {
                    let (answered, next) = (answered.clone(), next.clone());
                    set.spawn_local(async move {
                        loop {
                            let n = next.replace(next.get() + 2);
                            if n >= hosts {
                                return;
                            }
                            let Ok(mut stream) = TcpStream::connect((host(n), port)).await else {
                                continue;
                            };
                            let _ = stream.write_all(&[0x57; 300]).await;
                            let mut buffer = [0; 2048];
                            let n = stream.read(&mut buffer).await.unwrap_or(0);
                            answered.set(answered.get() + u64::from(n > 0));
                        }
                    });
                }
                runtime.unwrap().block_on(set);
                answered.get()
            })
        })
        .collect();
    let answered: u64 = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    figures(hosts as u64, answered, begun.elapsed());
}

/// Hosts, answers, seconds, CPU seconds, and peak KiB.
fn figures(all: u64, answered: u64, took: Duration) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kib = line.split_whitespace().next().unwrap();
    println!("{all} {answered} {} {} {kib}", took.as_secs_f64(), ticks / 100.0);
}

/// Rounds with a tenth of the hosts, with and without the scanner; then with all hosts.
pub fn run(all: usize) {
    let mut responder = oneself(&["respond"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut port = String::new();
    BufReader::new(responder.stdout.take().unwrap()).read_line(&mut port).unwrap();
    let port = port.trim();
    let file = |hosts: usize| {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let mut text = String::new();
        (0..hosts).for_each(|n| writeln!(text, "tls://{}:{port}", host(n)).unwrap());
        file.write_all(text.as_bytes()).unwrap();
        file
    };
    println!("\none hello to each of many hosts, all on loopback: {all} at the most");
    println!("| | hosts | answered | hosts a second | CPU s a 1,000 hosts | MiB at the most |");
    println!("|---|---|---|---|---|---|");
    let few = (all / 10).max(1);
    let (part, whole) = (file(few), file(all));
    let few = few.to_string();
    for _ in 0..3 {
        row("connect, send, receive, close", &["floor", &few, port]);
        row("wiretight", &["hosts", &part.path().display().to_string()]);
    }
    row("wiretight", &["hosts", &whole.path().display().to_string()]);
    let _ = responder.kill();
    let _ = responder.wait();
}

fn row(title: &str, arguments: &[&str]) {
    let out = oneself(arguments).output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let figures: Vec<f64> = text.split_whitespace().map(|f| f.parse().unwrap()).collect();
    let [all, answered, seconds, cpu, kib] = figures[..] else { panic!("{title}: {text}") };
    println!(
        "| {title} | {all} | {answered} | {:.0} | {:.3} | {:.0} |",
        all / seconds,
        cpu / all * 1000.0,
        kib / 1024.0
    );
}
