//! A capture with parts missing, as a mirror that loses packets makes it: nothing is called encrypted that is not so in the
//! whole capture, what was not seen is `unknown`, and all bytes that are left are counted.

use std::collections::{BTreeMap, HashMap};
use std::fs;

use serde_json::Value;
use wiretight_scan::judge::Level;

use super::rig::*;

/// The sizes of the headers of a pcap file, of its records, and of Ethernet.
const FILE: usize = 24;
const RECORD: usize = 16;
const ETHERNET: usize = 14;
const IPV4: u16 = 0x0800;

/// Both ends of a flow, in order, with the transport.
type Ends = (String, [String; 2]);

/// A record of a pcap file.
struct Packet<'a> {
    bytes: &'a [u8],
    /// The protocol, addresses and ports (or zeros), smaller end first; empty if it is not IPv4.
    flow: Vec<u8>,
    from_client: bool,
    /// Bytes of the IP packet.
    length: u64,
}

fn packets<'a>(capture: &'a [u8], client: &[u8; 4]) -> Vec<Packet<'a>> {
    let mut rest = &capture[FILE..];
    let mut all = Vec::new();
    while !rest.is_empty() {
        let captured = u32::from_le_bytes(rest[8..12].try_into().unwrap()) as usize;
        let (bytes, after) = rest.split_at(RECORD + captured);
        rest = after;
        let frame = &bytes[RECORD..];
        let ip = &frame[ETHERNET..];
        if u16::from_be_bytes([frame[12], frame[13]]) != IPV4 {
            all.push(Packet { bytes, flow: Vec::new(), from_client: false, length: 0 });
            continue;
        }
        let ports = match ip[9] {
            6 | 17 => [&ip[20..22], &ip[22..24]],
            _ => [&[0, 0][..], &[0, 0]],
        };
        let mut ends = [[&ip[12..16], ports[0]].concat(), [&ip[16..20], ports[1]].concat()];
        let from_client = ip[12..16] == client[..];
        ends.sort();
        let flow = [&[ip[9]][..], &ends.concat()].concat();
        let length = u16::from_be_bytes([ip[2], ip[3]]).into();
        all.push(Packet { bytes, flow, from_client, length });
    }
    all
}

/// Each flow's protocol, level and bytes; and the bytes and packets that are in no flow.
struct Found {
    flows: BTreeMap<Ends, (String, Level, u64)>,
    missed: BTreeMap<String, (u64, u64)>,
}

impl Found {
    fn of(world: &World, name: &str, capture: &[u8]) -> Found {
        let file = world.path(name);
        fs::write(&file, capture).unwrap();
        let mut watch = wiretight();
        let report: Value = Ran::of(watch.args(["watch", "--json"]).arg(&file), "").good().json();
        let word = |value: &Value| value.as_str().unwrap().to_owned();
        let number = |value: &Value| value.as_u64().unwrap();
        let mut flows: BTreeMap<Ends, (String, Level, u64)> = BTreeMap::new();
        for flow in report["flows"].as_array().unwrap() {
            let mut ends = [word(&flow["client"]), word(&flow["server"])];
            ends.sort();
            let level = serde_json::from_value(flow["level"].clone()).unwrap();
            let bytes = flow["bytes"].as_array().unwrap().iter().map(number).sum::<u64>();
            let entry = flows.entry((flow["transport"].to_string(), ends));
            let entry = entry.or_insert((word(&flow["protocol"]), level, 0));
            entry.2 += bytes;
            // Several records of one flow: the best of them counts here.
            if level > entry.1 {
                (entry.0, entry.1) = (word(&flow["protocol"]), level);
            }
        }
        let missed = report["coverage"]["missed"].as_array().unwrap().iter();
        let missed = missed
            .map(|gap| (word(&gap["reason"]), (number(&gap["packets"]), number(&gap["bytes"]))));
        Found { flows, missed: missed.collect() }
    }

    fn number(&self, is_so: impl Fn(Level) -> bool) -> usize {
        self.flows.values().filter(|(_, level, _)| is_so(*level)).count()
    }

    fn encrypted(&self) -> usize {
        self.number(|level| level > Level::Plaintext)
    }

    fn unknown(&self) -> usize {
        self.number(|level| level == Level::Unknown)
    }

    /// Nothing is encrypted here that is not so in `whole`, or not so well.
    #[track_caller]
    fn is_within(&self, whole: &Found) {
        for (ends, (protocol, level, _)) in &self.flows {
            if *level > Level::Plaintext {
                let (of_whole, real, _) = &whole.flows[ends];
                assert!(level <= real, "{ends:?}: {protocol} {level:?}, but {of_whole} {real:?}");
            }
        }
    }

    fn bytes(&self) -> u64 {
        let in_flows: u64 = self.flows.values().map(|flow| flow.2).sum();
        in_flows + self.missed.values().map(|(_, bytes)| bytes).sum::<u64>()
    }
}

/// `capture`: a pcap file of real programs on Ethernet, some of whose flows are encrypted.
pub(super) fn losses(world: &World, capture: &[u8], client: [u8; 4]) {
    let all = packets(capture, &client);
    let file = |kept: &[&Packet<'_>]| {
        let records: Vec<_> = kept.iter().map(|packet| packet.bytes).collect();
        [&capture[..FILE], &records.concat()].concat()
    };
    let all: Vec<&Packet<'_>> = all.iter().filter(|packet| !packet.flow.is_empty()).collect();
    let sum = |kept: &[&Packet<'_>]| kept.iter().map(|packet| packet.length).sum::<u64>();
    let whole = Found::of(world, "whole.pcap", &file(&all));
    let (encrypted, unknown) = (whole.encrypted(), whole.unknown());
    assert!(encrypted >= 20 && whole.flows.len() >= 50, "{encrypted} of {:?}", whole.flows);
    assert_eq!(whole.bytes(), sum(&all));
    let kept = |name: &str, is_kept: &mut dyn FnMut(&Packet<'_>) -> bool| {
        let kept: Vec<_> = all.iter().copied().filter(|packet| is_kept(packet)).collect();
        let part = Found::of(world, name, &file(&kept));
        part.is_within(&whole);
        assert_eq!(part.bytes(), sum(&kept), "{name}: {:?}", part.missed);
        say(format!(
            "{name}: {} of {} packets, {} of {encrypted} flows encrypted, {} ({unknown}) unknown",
            kept.len(),
            all.len(),
            part.encrypted(),
            part.unknown()
        ));
        part
    };

    // The mirror drops 30 % of the packets.
    for seed in [1u64, 2, 3] {
        let mut state = seed;
        let part = kept("dropped.pcap", &mut |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(seed);
            (state >> 33) % 10 >= 3
        });
        assert!(part.encrypted() < encrypted && part.unknown() > unknown);
    }
    // The capture starts in the middle of each flow.
    let mut seen: HashMap<Vec<u8>, usize> = HashMap::new();
    let part = kept("middle.pcap", &mut |packet| {
        let count = seen.entry(packet.flow.clone()).or_default();
        *count += 1;
        *count > 5
    });
    assert!(part.encrypted() < encrypted && part.unknown() > unknown);
    // Only one direction is captured. A client alone proves nothing: nobody has answered.
    let part = kept("client.pcap", &mut |packet| packet.from_client);
    assert_eq!(part.encrypted(), 0);
    assert!(part.unknown() > unknown);
    kept("server.pcap", &mut |packet| !packet.from_client);
    // Two mirrors of one path: each packet twice. It is counted once; at the beginning, not every copy is certain.
    let twice: Vec<_> = all.iter().flat_map(|packet| [*packet, *packet]).collect();
    let twice = Found::of(world, "twice.pcap", &file(&twice));
    let kinds = |found: &Found| -> BTreeMap<Ends, (String, Level)> {
        let kind = |(ends, (protocol, level, _)): (&Ends, &(String, Level, u64))| {
            (ends.clone(), (protocol.clone(), *level))
        };
        found.flows.iter().map(kind).collect()
    };
    assert_eq!(kinds(&twice), kinds(&whole));
    let copies = twice.missed["duplicates"].0;
    say(format!("twice.pcap: {copies} of {} copies are not counted", all.len()));
    assert!(copies * 100 >= all.len() as u64 * 98, "{copies} of {}", all.len());
    assert!(twice.bytes() * 100 <= whole.bytes() * 101, "{} {}", twice.bytes(), whole.bytes());
}
