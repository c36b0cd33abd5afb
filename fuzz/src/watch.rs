//! Captured traffic: files, and frames.

use std::io::{self, Read};

use wiretight_scan::passive::file::Capture;
use wiretight_scan::passive::flow::{Limits, Missed, Record, Table};
use wiretight_scan::passive::packets::LinkType;

/// Link types of frames in the input of [`flows`], by number.
const LINKS: [LinkType; 13] = [
    LinkType::RAW,
    LinkType::ETHERNET,
    LinkType::NULL,
    LinkType::LOOP,
    LinkType::PPP,
    LinkType::PPP_HDLC,
    LinkType::PPPOE,
    LinkType::C_HDLC,
    LinkType::LINUX_SLL,
    LinkType::LINUX_SLL2,
    LinkType::NFLOG,
    LinkType::IPV4,
    LinkType::IPV6,
];

/// Frames. The first byte decides how small the table is. Each frame has its link type (a number of [`LINKS`]), the time
/// since the one before (in 10 ms; from 200 on in minutes), its length in two bytes, and its bytes.
///
/// Properties checked: each frame is counted once, by a flow or as missed; the table keeps its limits.
pub fn flows(data: &[u8]) {
    let Some((&small, script)) = data.split_first() else { return };
    let limits = Limits {
        flows: 1 + usize::from(small & 15),
        undecided: 1 + usize::from(small >> 4 & 3),
        sample: 1 + u32::from(small >> 6),
    };
    let (records, missed, frames) = run(limits, script);
    let counted: u64 = records.iter().flat_map(|record| record.packets).sum();
    let lost = missed.not_ip + missed.malformed + missed.duplicates + missed.fragments;
    assert_eq!(counted + lost, frames);
}

fn run(limits: Limits, mut script: &[u8]) -> (Vec<Record>, Missed, u64) {
    let mut table = Table::new(limits);
    let (mut records, mut frames, mut now) = (Vec::new(), 0, 1_700_000_000_000_i64);
    while let [link, wait, high, low, rest @ ..] = script {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let (frame, rest) = rest.split_at(length.min(rest.len()));
        script = rest;
        frames += 1;
        now += match i64::from(*wait) {
            minutes @ 200.. => (minutes - 200) * 60_000,
            centiseconds => centiseconds * 10,
        };
        let at = jiff::Timestamp::from_millisecond(now).expect("a time");
        table.frame(LINKS[usize::from(*link) % LINKS.len()], at, frame, length);
        assert!(table.len() <= limits.flows);
        records.extend(table.ended());
    }
    records.extend(table.finish());
    assert!(table.is_empty());
    (records, table.missed(), frames)
}

/// A capture file.
///
/// Properties checked: the frames do not depend on how much each read returns; nothing follows an error; the table
/// counts each frame once.
pub fn capture(file: &[u8]) {
    let Some(whole) = frames(file) else {
        assert!(frames(Slow(file)).is_none());
        return;
    };
    assert_eq!(frames(Slow(file)), Some(whole));
}

/// The frames of a file, and why it could not be read to its end. `None` if it is no capture.
fn frames(file: impl Read) -> Option<(Vec<(u16, jiff::Timestamp, Vec<u8>, usize)>, String)> {
    const MOST: usize = 2000;
    let mut capture = Capture::new(file).ok()?;
    let mut table = Table::new(Limits { flows: 100, undecided: 10, sample: 1 });
    let (mut frames, mut error) = (Vec::new(), String::new());
    while frames.len() < MOST {
        match capture.next_frame() {
            None => break,
            Some(Err(e)) => {
                error = e.to_string();
                assert!(capture.next_frame().is_none());
                break;
            }
            Some(Ok(frame)) => {
                assert!(frame.bytes.len() <= frame.length);
                table.frame(frame.link, frame.at, frame.bytes, frame.length);
                frames.push((frame.link.0, frame.at, frame.bytes.to_vec(), frame.length));
            }
        }
    }
    let records = [table.ended(), table.finish()].concat();
    let counted: u64 = records.iter().flat_map(|record| record.packets).sum();
    let missed = table.missed();
    let lost = missed.not_ip + missed.malformed + missed.duplicates + missed.fragments;
    assert_eq!(counted + lost, frames.len() as u64);
    Some((frames, error))
}

/// Returns a few bytes at a time.
struct Slow<'a>(&'a [u8]);

impl Read for Slow<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let few = buffer.len().min(1 + self.0.len() % 7);
        self.0.read(&mut buffer[..few])
    }
}
