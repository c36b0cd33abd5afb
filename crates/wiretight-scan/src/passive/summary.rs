//! Flows added up: how much of the traffic has which level, and which services it belongs to.
//!
//! A [`Coverage`] counts every flow and what was missed. [`Rows`] lists the flows of it that a [`Filter`] selects, so that
//! each number of a coverage can be shown as rows. Both are bounded.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::flow::{Missed, Record};
use super::{Grade, Seen, Transport, blockers, profiles};
use crate::facts::Answer;
use crate::judge::{Level, Reason};

/// A flow, and the programs of this machine that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    #[serde(flatten)]
    pub record: Record,
    #[serde(default, skip_serializing_if = "Programs::is_empty")]
    pub programs: Programs,
}

impl From<Record> for Flow {
    fn from(record: Record) -> Self {
        Self { record, programs: Programs::default() }
    }
}

/// The program at each end, if it runs on this machine and is known: `postgres (postgresql.service)`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Programs {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<Arc<str>>,
}

impl Programs {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Those that are known, the client's first.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<str>> {
        self.client.iter().chain(&self.server)
    }
}

/// How many flows, and how many bytes of IP packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    pub flows: u64,
    pub bytes: u64,
}

/// Traffic that is in no flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// Why: an id of [`GAPS`], or one that a later version knows.
    pub reason: Cow<'static, str>,
    /// Packets; with `events_lost`, events. 0 if only bytes are known.
    pub packets: u64,
    /// Bytes that count as `unknown`. 0 if they are not known, or not part of the traffic.
    pub bytes: u64,
}

/// The reasons of gaps, as ids and as text.
pub const GAPS: &[(&str, &str)] = &[
    ("not_ip", "frames that are not IP, such as ARP"),
    ("malformed", "malformed or truncated packets"),
    ("fragments", "fragments of packets whose beginning was not captured"),
    ("duplicates", "exact copies of the packet before, counted once"),
    ("dropped", "packets that the kernel dropped, because the capture was too slow"),
    ("ring_full", "times that the memory for captured packets was full"),
    ("dropped_before", "packets that the program that wrote the file had lost"),
    ("not_captured", "bytes by the interface's counters that were not captured"),
    ("events_lost", "events of the connection tracker that were lost"),
    ("unread", "the rest of a file that could not be read"),
];

impl Gap {
    /// What the id means.
    pub fn text(&self) -> &str {
        let known = GAPS.iter().find(|(id, _)| *id == self.reason);
        known.map_or(&*self.reason, |(_, text)| text)
    }
}

/// The share of each level, for a window of time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Coverage {
    /// The window. `None` before anything was seen.
    pub from: Option<jiff::Timestamp>,
    pub to: Option<jiff::Timestamp>,
    /// Every level, also those without flows.
    pub levels: BTreeMap<Level, Share>,
    /// What is in no flow. Its bytes count as `unknown`, in addition to the flows of that level.
    pub missed: Vec<Gap>,
}

impl Default for Coverage {
    fn default() -> Self {
        let levels = Level::ALL.into_iter().map(|level| (level, Share::default())).collect();
        Self { from: None, to: None, levels, missed: Vec::new() }
    }
}

impl Coverage {
    pub fn add(&mut self, record: &Record) {
        self.add_many(record, 1);
    }

    /// Adds a record that is the sum of this many flows.
    pub fn add_many(&mut self, record: &Record, flows: u64) {
        let share = self.levels.entry(record.seen.level).or_default();
        share.flows = share.flows.saturating_add(flows);
        share.bytes = share.bytes.saturating_add(bytes_of(record));
        self.extend(record.first);
        self.extend(record.last);
    }

    /// Extends the window to this time.
    pub fn extend(&mut self, at: jiff::Timestamp) {
        self.from = Some(self.from.map_or(at, |from| from.min(at)));
        self.to = Some(self.to.map_or(at, |to| to.max(at)));
    }

    /// Adds to a gap. Nothing is added if both numbers are 0.
    pub fn miss(&mut self, reason: &str, packets: u64, bytes: u64) {
        if (packets, bytes) == (0, 0) {
            return;
        }
        match self.missed.iter_mut().find(|gap| gap.reason == reason) {
            Some(gap) => {
                gap.packets = gap.packets.saturating_add(packets);
                gap.bytes = gap.bytes.saturating_add(bytes);
            }
            None => {
                let known = GAPS.iter().find(|(id, _)| *id == reason);
                let reason = known.map_or_else(|| reason.to_owned().into(), |(id, _)| (*id).into());
                self.missed.push(Gap { reason, packets, bytes });
            }
        }
    }

    /// Adds what a table of flows has missed.
    pub fn miss_all(&mut self, missed: Missed) {
        self.miss("not_ip", missed.not_ip, 0);
        self.miss("malformed", missed.malformed, missed.bytes);
        self.miss("fragments", missed.fragments, 0);
        self.miss("duplicates", missed.duplicates, 0);
    }

    /// Adds the flows and gaps of another coverage, and extends the window.
    pub fn merge(&mut self, other: &Self) {
        for (level, share) in &other.levels {
            let own = self.levels.entry(*level).or_default();
            own.flows = own.flows.saturating_add(share.flows);
            own.bytes = own.bytes.saturating_add(share.bytes);
        }
        other.missed.iter().for_each(|gap| self.miss(&gap.reason, gap.packets, gap.bytes));
        other.from.into_iter().chain(other.to).for_each(|at| self.extend(at));
    }

    /// Bytes that are in no flow.
    pub fn missed_bytes(&self) -> u64 {
        self.missed.iter().fold(0, |sum, gap| sum.saturating_add(gap.bytes))
    }

    /// The share of a level; for `unknown` with the bytes that are in no flow.
    pub fn share(&self, level: Level) -> Share {
        let mut share = self.levels.get(&level).copied().unwrap_or_default();
        if level == Level::Unknown {
            share.bytes = share.bytes.saturating_add(self.missed_bytes());
        }
        share
    }

    /// All flows, and all bytes.
    pub fn total(&self) -> Share {
        Level::ALL.into_iter().map(|level| self.share(level)).fold(
            Share::default(),
            |sum, share| Share {
                flows: sum.flows.saturating_add(share.flows),
                bytes: sum.bytes.saturating_add(share.bytes),
            },
        )
    }

    /// The length of the window.
    pub fn seconds(&self) -> f64 {
        match (self.from, self.to) {
            (Some(from), Some(to)) => to.duration_since(from).as_secs_f64().max(0.0),
            _ => 0.0,
        }
    }
}

/// The bytes of both directions.
pub fn bytes_of(record: &Record) -> u64 {
    let [client, server] = record.bytes;
    client.saturating_add(server)
}

/// Which flows are listed.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub levels: Vec<Level>,
    /// Protocols by name, or transports: `tcp`.
    pub protocols: Vec<String>,
    /// A part of a program's name.
    pub programs: Vec<String>,
    /// Ports of the server or the client.
    pub ports: Vec<u16>,
    /// A part of anything that a row shows.
    pub text: String,
}

impl Filter {
    pub fn is_empty(&self) -> bool {
        self.levels.is_empty()
            && self.protocols.is_empty()
            && self.programs.is_empty()
            && self.ports.is_empty()
            && self.text.is_empty()
    }

    pub fn matches(&self, flow: &Flow) -> bool {
        let Record { client, server, transport, seen, .. } = &flow.record;
        let any = |wanted: bool, empty: bool| empty || wanted;
        any(self.levels.contains(&seen.level), self.levels.is_empty())
            && any(
                self.protocols.iter().any(|p| *p == seen.protocol || *p == transport.to_string()),
                self.protocols.is_empty(),
            )
            && any(
                flow.programs.iter().any(|p| self.programs.iter().any(|w| p.contains(w.as_str()))),
                self.programs.is_empty(),
            )
            && any(
                self.ports.iter().any(|p| *p == server.port() || *p == client.port()),
                self.ports.is_empty(),
            )
            && (self.text.is_empty() || text_of(flow).contains(&self.text.to_lowercase()))
    }
}

fn text_of(flow: &Flow) -> String {
    let Record { client, server, transport, seen, .. } = &flow.record;
    let mut text = format!("{client} {server} {transport} {} {}", seen.protocol, seen.evidence);
    if let Some(sealed) = &seen.sealed {
        let parts =
            [sealed.server_name.as_deref(), sealed.suite.as_deref(), sealed.group.as_deref()];
        parts.into_iter().flatten().for_each(|part| {
            text.push(' ');
            text.push_str(part);
        });
    }
    for program in flow.programs.iter() {
        text.push(' ');
        text.push_str(program);
    }
    text.to_lowercase()
}

/// What a row stands for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum By {
    /// A server's address and port.
    #[default]
    Service,
    /// A client's address, and a service.
    Pair,
    /// A single flow.
    Flow,
}

/// What the flows of a row have in common.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    pub server: SocketAddr,
    pub transport: Transport,
    pub protocol: Cow<'static, str>,
    pub level: Level,
    /// With [`By::Pair`] the client's address with the port 0, with [`By::Flow`] its real port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<SocketAddr>,
    #[serde(skip)]
    number: u64,
}

/// Flows of one service with the same protocol and level.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    #[serde(flatten)]
    pub key: Key,
    pub flows: u64,
    /// From clients, and from the server.
    pub bytes: [u64; 2],
    pub first: jiff::Timestamp,
    pub last: jiff::Timestamp,
    /// The lowest grade of its flows.
    pub grade: Grade,
    /// Addresses of clients, and how many more there are.
    pub clients: BTreeSet<IpAddr>,
    pub more_clients: bool,
    pub programs: BTreeSet<Arc<str>>,
    /// What was seen, each once; the first ones if there are many.
    pub seen: Vec<Arc<Seen>>,
    pub more_seen: bool,
    /// Why the level is not better. Only what was seen of these flows, not what the server might accept.
    pub reasons: Vec<Reason>,
    /// Whether its flows meet each profile, by name: the worst answer.
    pub profiles: BTreeMap<Cow<'static, str>, Answer>,
    /// What a scan of the server has found.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scanned: Vec<Scanned>,
}

impl Row {
    pub fn total(&self) -> u64 {
        self.bytes[0].saturating_add(self.bytes[1])
    }
}

/// What a scan of a server adds to what was seen: facts that TLS 1.3 encrypts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scanned {
    /// The name that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    pub at: jiff::Timestamp,
    /// The server's level by the scan. It may be lower than that of the flows.
    pub level: Level,
    /// In one line.
    pub summary: String,
    /// Why the level is not better, as far as certificates are concerned.
    #[serde(default)]
    pub reasons: Vec<Reason>,
}

/// The worse of two answers about a profile. A flow to which a profile does not apply changes nothing.
fn worse(a: Answer, b: Answer) -> Answer {
    let order = |answer: &Answer| match answer {
        Answer::No => 0,
        Answer::Inconclusive => 1,
        Answer::Yes => 2,
        Answer::Untested => 3,
    };
    std::cmp::min_by_key(a, b, order)
}

/// Limits of one row.
const CLIENTS: usize = 32;
const PROGRAMS: usize = 8;
const SEEN: usize = 16;

/// Flows added up by service, by pair, or not at all.
#[derive(Debug, Clone)]
pub struct Rows {
    by: By,
    most: usize,
    rows: HashMap<Key, Row>,
    /// Flows for which there was no row left.
    pub left_out: Share,
    number: u64,
}

impl Rows {
    /// `most`: the number of rows that are kept.
    pub fn new(by: By, most: usize) -> Self {
        Self { by, most, rows: HashMap::new(), left_out: Share::default(), number: 0 }
    }

    pub fn add(&mut self, flow: &Flow) {
        self.add_many(flow, 1);
    }

    /// Adds a flow that is the sum of this many.
    pub fn add_many(&mut self, flow: &Flow, flows: u64) {
        let record = &flow.record;
        let client = match self.by {
            By::Service => None,
            By::Pair => Some(SocketAddr::new(record.client.ip(), 0)),
            By::Flow => Some(record.client),
        };
        // Flows with the same addresses and ports follow each other.
        self.number += u64::from(self.by == By::Flow);
        let key = Key {
            server: record.server,
            transport: record.transport,
            protocol: record.seen.protocol.clone(),
            level: record.seen.level,
            client,
            number: self.number,
        };
        if self.rows.len() >= self.most && !self.rows.contains_key(&key) {
            self.left_out.flows = self.left_out.flows.saturating_add(flows);
            self.left_out.bytes = self.left_out.bytes.saturating_add(bytes_of(record));
            return;
        }
        let row = self.rows.entry(key).or_insert_with_key(|key| Row {
            key: key.clone(),
            flows: 0,
            bytes: [0; 2],
            first: record.first,
            last: record.last,
            grade: record.seen.grade,
            clients: BTreeSet::new(),
            more_clients: false,
            programs: BTreeSet::new(),
            seen: Vec::new(),
            more_seen: false,
            reasons: Vec::new(),
            profiles: BTreeMap::new(),
            scanned: Vec::new(),
        });
        row.flows = row.flows.saturating_add(flows);
        for (sum, bytes) in row.bytes.iter_mut().zip(record.bytes) {
            *sum = sum.saturating_add(bytes);
        }
        row.first = row.first.min(record.first);
        row.last = row.last.max(record.last);
        row.grade = row.grade.min(record.seen.grade);
        match row.clients.len() < CLIENTS || row.clients.contains(&record.client.ip()) {
            true => _ = row.clients.insert(record.client.ip()),
            false => row.more_clients = true,
        }
        for program in flow.programs.iter() {
            if row.programs.len() < PROGRAMS {
                row.programs.insert(program.clone());
            }
        }
        if row.seen.contains(&record.seen) {
            return;
        }
        // Within a row, reasons and profiles depend on nothing else.
        let same = |seen: &Arc<Seen>| {
            (&seen.sealed, seen.starttls) == (&record.seen.sealed, record.seen.starttls)
        };
        if !row.seen.iter().any(same) {
            for reason in blockers::reasons(record) {
                if !row.reasons.iter().any(|known| known.rule == reason.rule) {
                    row.reasons.push(reason);
                }
            }
            for verdict in profiles(&record.seen, record.last) {
                let answer = row.profiles.entry(verdict.profile).or_insert(verdict.answer);
                *answer = worse(*answer, verdict.answer);
            }
        }
        match row.seen.len() < SEEN {
            true => row.seen.push(record.seen.clone()),
            false => row.more_seen = true,
        }
    }

    /// All rows, those with most bytes first.
    pub fn list(&self) -> Vec<Row> {
        let mut rows: Vec<Row> = self.rows.values().cloned().collect();
        rows.sort_by(|a, b| b.total().cmp(&a.total()).then_with(|| a.key.cmp(&b.key)));
        rows
    }
}
