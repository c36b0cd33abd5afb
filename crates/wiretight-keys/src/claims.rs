//! What the authority claims in the log: how the traffic of the mesh was encrypted in an hour or a day ([`MeshPeriod`]),
//! and what it has published ([`Publication`]).
//!
//! Entries hold counts, and no name of a node, service, program or address: whoever publishes the log publishes them. The
//! body of an entry is JSON without spaces, its members in the order of the fields here. There is exactly one encoding of
//! a value: a body that would be written differently is refused, so a claim cannot be repeated in another form, and no
//! unknown member can hide in it.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use wiretight_tlog::Hash;

use crate::error::X509Error;

/// The log entry types (two bytes, big-endian, before the body).
pub const PERIOD: u16 = 3;
pub const PUBLICATION: u16 = 4;

/// The version of both bodies.
const VERSION: u8 = 1;
pub const HOUR: u64 = 3600;
pub const DAY: u64 = 86_400;
/// The most [`Algorithm`]s, [`Protocol`]s and [`Release`]s in a period; authorities merge the rest as `other`.
pub const MAX_ROWS: usize = 24;
/// The longest name in a row, in bytes.
pub const MAX_NAME: usize = 48;
/// The name in rows that were merged because there were too many.
pub const OTHER: &str = "other";
/// The rows before those that are merged: there are five levels, and two kinds of key exchange.
const NAMED_PROTOCOLS: usize = MAX_ROWS - 5;
const NAMED_ALGORITHMS: usize = MAX_ROWS - 2;
const NAMED_RELEASES: usize = MAX_ROWS - 1;

/// Connections that began in a period, and bytes of IP packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amount {
    pub connections: u64,
    pub bytes: u64,
}

impl Amount {
    pub fn add(&mut self, other: Self) {
        self.connections = self.connections.saturating_add(other.connections);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// Traffic that crossed a network, by level. What was not seen is in `unknown`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Levels {
    pub unknown: Amount,
    pub plaintext: Amount,
    pub weak: Amount,
    pub acceptable: Amount,
    pub strong: Amount,
}

impl Levels {
    pub fn add(&mut self, other: Self) {
        self.unknown.add(other.unknown);
        self.plaintext.add(other.plaintext);
        self.weak.add(other.weak);
        self.acceptable.add(other.acceptable);
        self.strong.add(other.strong);
    }
}

/// How much of the mesh was watched. For a day, each is the largest of its hours.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeCount {
    /// Nodes of the mesh at the end of the period.
    pub members: u32,
    /// Of these, nodes whose totals are included.
    pub reported: u32,
}

/// How many nodes enforce what, at the end of the period. `none`: without interception, or not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Modes {
    pub strict: u32,
    pub permissive: u32,
    pub observe: u32,
    pub none: u32,
}

/// Exceptions from encryption that were configured at the end of the period.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExceptionCount {
    /// With a reason, an owner and an end that has not passed.
    pub explained: u32,
    pub expired: u32,
    pub unexplained: u32,
}

/// What was not attributed to a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missed {
    /// Bytes by the interfaces' counters; they are in [`Levels::unknown`].
    pub bytes: u64,
    /// Times that the kernel dropped notifications of connections.
    pub resyncs: u64,
    /// First packets of connections that the kernel did not deliver.
    pub lost_packets: u64,
}

impl Missed {
    fn add(&mut self, other: Self) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.resyncs = self.resyncs.saturating_add(other.resyncs);
        self.lost_packets = self.lost_packets.saturating_add(other.lost_packets);
    }
}

/// What encrypted connections had negotiated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Algorithm {
    /// The protocol's version: `TLS 1.3`, `SSH 2`; `other`.
    pub version: String,
    /// The key exchange: `X25519MLKEM768`; `unknown`.
    pub key_exchange: String,
    /// The cipher: `TLS_AES_128_GCM_SHA256`; `unknown`.
    pub cipher: String,
    /// Whether the key exchange resists quantum computers.
    pub post_quantum: bool,
    #[serde(flatten)]
    pub amount: Amount,
}

/// Traffic of a protocol at a level.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protocol {
    /// As `wiretight watch` names it.
    pub protocol: String,
    /// A level's word.
    pub level: String,
    #[serde(flatten)]
    pub amount: Amount,
}

/// How many nodes run a version of the program, by their own word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    pub version: String,
    pub nodes: u32,
}

/// The traffic of the mesh in an hour or a day, as claimed by the authority. A day is [`MeshPeriod::day`] of its logged
/// hours.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshPeriod {
    pub version: u8,
    /// When it began, in seconds since 1970; a multiple of `length`.
    pub start: u64,
    /// [`HOUR`] or [`DAY`].
    pub length: u64,
    pub nodes: NodeCount,
    /// Seconds that were watched, added up over the nodes; at most `nodes.members` times `length`.
    pub watched_seconds: u64,
    pub levels: Levels,
    /// Of the traffic, what our relays and edges carried.
    pub carried: Amount,
    /// Of the traffic, what a post-quantum key exchange protects.
    pub post_quantum: Amount,
    pub missed: Missed,
    pub modes: Modes,
    pub exceptions: ExceptionCount,
    /// Largest first, by bytes; `other` last.
    pub algorithms: Vec<Algorithm>,
    pub protocols: Vec<Protocol>,
    pub releases: Vec<Release>,
}

/// A folder that was published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publication {
    pub version: u8,
    /// When, in seconds since 1970.
    pub at: u64,
    /// SHA-256 of the folder's `manifest`, in hex. The manifest has a line `SHA-256 in hex, two spaces, path` for each
    /// other file, sorted by path.
    pub manifest: String,
}

fn bad(detail: impl Into<String>) -> X509Error {
    X509Error::Malformed { what: "log entry", detail: detail.into() }
}

fn entry(kind: u16, body: &impl Serialize) -> Vec<u8> {
    let json = serde_json::to_vec(body).expect("numbers and short texts are JSON");
    [&kind.to_be_bytes()[..], &json].concat()
}

/// The rows in the order of [`MeshPeriod::tidy`]. `other` is what a row after the first `named` becomes if there are too
/// many.
fn sorted<K: Ord>(
    rows: impl Iterator<Item = (K, Amount)>,
    named: usize,
    other: impl Fn(&K) -> K,
) -> Vec<(K, Amount)> {
    fn sum<K: Ord>(rows: impl Iterator<Item = (K, Amount)>) -> BTreeMap<K, Amount> {
        let mut sums = BTreeMap::<K, Amount>::new();
        rows.for_each(|(key, amount)| sums.entry(key).or_default().add(amount));
        sums
    }
    let order = |sums: BTreeMap<K, Amount>| {
        let mut rows: Vec<_> = sums.into_iter().collect();
        let largest = |a: &Amount| (Reverse(a.bytes), Reverse(a.connections));
        rows.sort_by_key(|(key, amount)| (other(key) == *key, largest(amount)));
        rows
    };
    let rows = order(sum(rows));
    if rows.len() <= MAX_ROWS {
        return rows;
    }
    let merge = |(n, (key, amount)): (usize, (K, Amount))| {
        (if n < named { key } else { other(&key) }, amount)
    };
    order(sum(rows.into_iter().enumerate().map(merge)))
}

/// Whether a body is of a later version than this release knows.
pub(crate) fn is_later(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Versioned {
        version: u64,
    }
    serde_json::from_slice::<Versioned>(body).is_ok_and(|v| v.version > VERSION.into())
}

/// Parses the one encoding of a body.
fn canonical<T: Serialize + for<'a> Deserialize<'a>>(body: &[u8]) -> Result<T, X509Error> {
    let value: T = serde_json::from_slice(body).map_err(|e| bad(e.to_string()))?;
    match serde_json::to_vec(&value).is_ok_and(|again| again == body) {
        true => Ok(value),
        false => Err(bad("it is not in canonical form")),
    }
}

impl MeshPeriod {
    /// A period without traffic.
    pub fn new(start: u64, length: u64) -> Self {
        Self { version: VERSION, start, length, ..Self::default() }
    }

    /// The period of a day, from its logged hours, oldest first. Anyone who has them can compute it: amounts and seconds
    /// are added up, `nodes` are the largest numbers, and modes, exceptions and releases are those of the last hour.
    pub fn day(start: u64, hours: &[Self]) -> Self {
        let mut day = Self::new(start, DAY);
        for hour in hours {
            let NodeCount { members, reported } = hour.nodes;
            day.nodes.members = day.nodes.members.max(members);
            day.nodes.reported = day.nodes.reported.max(reported);
            day.watched_seconds = day.watched_seconds.saturating_add(hour.watched_seconds);
            day.levels.add(hour.levels);
            day.carried.add(hour.carried);
            day.post_quantum.add(hour.post_quantum);
            day.missed.add(hour.missed);
            (day.modes, day.exceptions) = (hour.modes, hour.exceptions);
            day.releases.clone_from(&hour.releases);
            day.algorithms.extend(hour.algorithms.iter().cloned());
            day.protocols.extend(hour.protocols.iter().cloned());
        }
        day.tidy();
        day
    }

    /// Adds up equal rows, and sorts them: by bytes and then by connections, the largest first, then by their texts. If
    /// there are more than [`MAX_ROWS`], the smallest are merged into rows named [`OTHER`], which are last: one for each
    /// level, or with and without a post-quantum key exchange.
    pub fn tidy(&mut self) {
        let rows = std::mem::take(&mut self.algorithms).into_iter();
        let rows = rows.map(|a| ((a.version, a.key_exchange, a.cipher, a.post_quantum), a.amount));
        let other = |key: &(String, String, String, bool)| {
            (OTHER.to_owned(), OTHER.to_owned(), OTHER.to_owned(), key.3)
        };
        let rows = sorted(rows, NAMED_ALGORITHMS, other).into_iter();
        self.algorithms = rows
            .map(|((version, key_exchange, cipher, post_quantum), amount)| Algorithm {
                version,
                key_exchange,
                cipher,
                post_quantum,
                amount,
            })
            .collect();
        let rows = std::mem::take(&mut self.protocols).into_iter();
        let rows = rows.map(|p| ((p.protocol, p.level), p.amount));
        let other = |key: &(String, String)| (OTHER.to_owned(), key.1.clone());
        let rows = sorted(rows, NAMED_PROTOCOLS, other).into_iter();
        self.protocols =
            rows.map(|((protocol, level), amount)| Protocol { protocol, level, amount }).collect();
        // Nodes are counted like bytes.
        let rows = std::mem::take(&mut self.releases).into_iter();
        let rows = rows.map(|r| (r.version, Amount { connections: 0, bytes: r.nodes.into() }));
        let rows = sorted(rows, NAMED_RELEASES, |_| OTHER.to_owned()).into_iter();
        let nodes = |amount: Amount| u32::try_from(amount.bytes).unwrap_or(u32::MAX);
        self.releases =
            rows.map(|(version, amount)| Release { version, nodes: nodes(amount) }).collect();
    }

    /// Encodes the entry, with its type.
    pub fn entry(&self) -> Vec<u8> {
        entry(PERIOD, self)
    }

    /// Parses and checks an entry's body, without the type.
    pub fn parse(body: &[u8]) -> Result<Self, X509Error> {
        let period: Self = canonical(body)?;
        let name = |text: &str| {
            let fits = !text.is_empty() && text.len() <= MAX_NAME;
            fits && text.bytes().all(|b| b == b' ' || b.is_ascii_graphic())
        };
        let names = period
            .algorithms
            .iter()
            .flat_map(|a| [&a.version, &a.key_exchange, &a.cipher])
            .chain(period.protocols.iter().flat_map(|p| [&p.protocol, &p.level]))
            .chain(period.releases.iter().map(|r| &r.version));
        let named = names.map(String::as_str).all(name);
        let rows = [period.algorithms.len(), period.protocols.len(), period.releases.len()];
        let NodeCount { members, reported } = period.nodes;
        let watchable = u64::from(members).saturating_mul(period.length);
        if period.version != VERSION {
            Err(bad("a period of another version"))
        } else if ![HOUR, DAY].contains(&period.length)
            || !period.start.is_multiple_of(period.length)
        {
            Err(bad("a period is a whole hour or day"))
        } else if rows.iter().any(|n| *n > MAX_ROWS) || !named {
            Err(bad("too many rows in a period, or an invalid name"))
        } else if reported > members || period.watched_seconds > watchable {
            Err(bad("more was watched than there is"))
        } else {
            Ok(period)
        }
    }
}

impl Publication {
    /// The publication of a folder with this manifest.
    pub fn new(at: u64, manifest: &[u8]) -> Self {
        let manifest = crate::token::hex(Hash::of(manifest).as_bytes());
        Self { version: VERSION, at, manifest }
    }

    /// Encodes the entry, with its type.
    pub fn entry(&self) -> Vec<u8> {
        entry(PUBLICATION, self)
    }

    /// Parses an entry's body, without the type.
    pub fn parse(body: &[u8]) -> Result<Self, X509Error> {
        let published: Self = canonical(body)?;
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if published.version != VERSION {
            Err(bad("a publication of another version"))
        } else if published.manifest.len() != 64 || !published.manifest.bytes().all(hex) {
            Err(bad("a manifest's hash has 64 hex digits"))
        } else {
            Ok(published)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn period() -> MeshPeriod {
        let amount = Amount { connections: 1, bytes: 2 };
        MeshPeriod {
            nodes: NodeCount { members: 2, reported: 1 },
            watched_seconds: 3600,
            levels: Levels { strong: amount, ..Levels::default() },
            algorithms: vec![Algorithm {
                version: "TLS 1.3".into(),
                key_exchange: "X25519MLKEM768".into(),
                cipher: "TLS_AES_128_GCM_SHA256".into(),
                post_quantum: true,
                amount,
            }],
            protocols: vec![Protocol {
                protocol: "postgres".into(),
                level: "strong".into(),
                amount,
            }],
            releases: vec![Release { version: "0.1.0".into(), nodes: 2 }],
            ..MeshPeriod::new(7200, HOUR)
        }
    }

    #[test]
    fn a_period_has_one_encoding() {
        let entry = period().entry();
        let (kind, body) = entry.split_first_chunk().unwrap();
        assert_eq!(u16::from_be_bytes(*kind), PERIOD);
        assert_eq!(MeshPeriod::parse(body).unwrap(), period());
        let text = std::str::from_utf8(body).unwrap();
        let other_forms = [
            text.replace("\"version\":1,", "\"version\": 1,"),
            text.replace("{\"version\":1,\"start\":7200,", "{\"start\":7200,\"version\":1,"),
            text.replace("\"bytes\":2", "\"bytes\":2,\"bytes\":2"),
            text.replace("7200", "7200.0"),
            text.replace("postgres", "postg\\u0072es"),
            text.replacen("\"releases\"", "\"more\":1,\"releases\"", 1),
            format!("{text}\n"),
        ];
        for other in other_forms {
            assert_ne!(other, text);
            assert!(MeshPeriod::parse(other.as_bytes()).is_err(), "{other}");
        }
    }

    #[test]
    fn an_impossible_period_is_refused() {
        let refused = |change: &dyn Fn(&mut MeshPeriod)| {
            let mut changed = period();
            change(&mut changed);
            MeshPeriod::parse(&changed.entry()[2..]).unwrap_err()
        };
        refused(&|p| p.version = 2);
        refused(&|p| p.start = 7201);
        refused(&|p| p.length = 60);
        refused(&|p| p.length = DAY);
        refused(&|p| p.nodes.reported = 3);
        refused(&|p| p.watched_seconds = 7201);
        refused(&|p| p.protocols[0].protocol = "a\u{1b}[2J".into());
        refused(&|p| p.algorithms[0].cipher = "x".repeat(MAX_NAME + 1));
        refused(&|p| p.releases = vec![p.releases[0].clone(); MAX_ROWS + 1]);
    }

    #[test]
    fn a_day_is_the_sum_of_its_hours() {
        let hour = |n: u64| MeshPeriod {
            // A node leaves; another version is in use from then on.
            nodes: NodeCount { members: if n < 2 { 3 } else { 2 }, reported: 2 },
            watched_seconds: if n < 2 { 3 * HOUR } else { HOUR },
            modes: Modes { strict: n as u32, ..Modes::default() },
            missed: Missed { bytes: 1, resyncs: n, lost_packets: 2 },
            releases: vec![Release { version: format!("0.{n}.0"), nodes: 2 }],
            start: n * HOUR,
            ..period()
        };
        let hours: Vec<_> = (0..3).map(hour).collect();
        let day = MeshPeriod::day(0, &hours);
        assert_eq!((day.start, day.length, day.watched_seconds), (0, DAY, 7 * HOUR));
        assert_eq!(day.nodes, NodeCount { members: 3, reported: 2 });
        assert_eq!(day.levels.strong, Amount { connections: 3, bytes: 6 });
        assert_eq!(day.missed, Missed { bytes: 3, resyncs: 3, lost_packets: 6 });
        assert_eq!((day.modes, day.releases), (hours[2].modes, hours[2].releases.clone()));
        assert_eq!(day.algorithms[0].amount, Amount { connections: 3, bytes: 6 });
        assert_eq!((day.algorithms.len(), day.protocols.len()), (1, 1));
        MeshPeriod::parse(&MeshPeriod::day(0, &hours).entry()[2..]).unwrap();
        // The day of a mesh that was watched completely until a node left.
        let all =
            |n| MeshPeriod { watched_seconds: u64::from(hour(n).nodes.members) * HOUR, ..hour(n) };
        let day = MeshPeriod::day(0, &(0..24).map(all).collect::<Vec<_>>());
        MeshPeriod::parse(&day.entry()[2..]).unwrap();
    }

    #[test]
    fn too_many_rows_are_merged_without_loss() {
        let protocol = |n: u64| Protocol {
            protocol: format!("p{n:03}"),
            level: ["unknown", "plaintext", "weak", "acceptable", "strong"][n as usize % 5].into(),
            amount: Amount { connections: 1, bytes: n / 2 },
        };
        let algorithm = |n: u64| Algorithm {
            version: format!("v{n}"),
            post_quantum: n.is_multiple_of(2),
            ..period().algorithms[0].clone()
        };
        let release = |n| Release { version: format!("0.{n}.0"), nodes: n };
        let mut many = MeshPeriod {
            protocols: (0..200).chain(0..200).map(protocol).collect(),
            algorithms: (0..100).map(algorithm).collect(),
            releases: (1..=50).map(release).collect(),
            nodes: NodeCount { members: 5000, reported: 0 },
            ..period()
        };
        many.tidy();
        let names: Vec<&str> = many.protocols.iter().map(|p| &*p.protocol).collect();
        // By bytes, then by name.
        assert_eq!(names[..4], ["p198", "p199", "p196", "p197"]);
        assert_eq!(names[19..], [OTHER; 5]);
        let mut levels = BTreeMap::<&str, Amount>::new();
        for row in &many.protocols {
            levels.entry(&row.level).or_default().add(row.amount);
        }
        for (n, level) in
            ["unknown", "plaintext", "weak", "acceptable", "strong"].iter().enumerate()
        {
            let of: Vec<u64> = (n as u64..200).step_by(5).collect();
            let bytes = of.iter().map(|n| n / 2 * 2).sum();
            assert_eq!(levels[level], Amount { connections: 80, bytes });
        }
        let post_quantum = many.algorithms.iter().filter(|a| a.post_quantum);
        assert_eq!(post_quantum.map(|a| a.amount.connections).sum::<u64>(), 50);
        let last = &many.algorithms[22..];
        assert!(last.len() == 2 && last.iter().all(|a| a.cipher == OTHER));
        assert_eq!(many.releases.iter().map(|r| r.nodes).sum::<u32>(), 50 * 51 / 2);
        assert_eq!((many.releases[0].nodes, &*many.releases[23].version), (50, OTHER));
        // It is valid, and nothing changes when it is tidied again.
        assert_eq!(MeshPeriod::parse(&many.entry()[2..]).unwrap(), many);
        let once = many.clone();
        many.tidy();
        assert_eq!(many, once);
    }

    #[test]
    fn the_largest_period_is_far_smaller_than_an_entry_may_be() {
        let name = |n: usize| format!("{n:02}{}", "x".repeat(MAX_NAME - 2));
        let amount = Amount { connections: u64::MAX, bytes: u64::MAX };
        let full = MeshPeriod {
            algorithms: (0..MAX_ROWS)
                .map(|n| Algorithm {
                    version: name(n),
                    key_exchange: name(n),
                    cipher: name(n),
                    post_quantum: false,
                    amount,
                })
                .collect(),
            protocols: (0..MAX_ROWS)
                .map(|n| Protocol { protocol: name(n), level: name(n), amount })
                .collect(),
            releases: (0..MAX_ROWS)
                .map(|n| Release { version: name(n), nodes: u32::MAX })
                .collect(),
            ..period()
        };
        MeshPeriod::parse(&full.entry()[2..]).unwrap();
        assert!(full.entry().len() < 16 << 10, "{}", full.entry().len());
    }

    #[test]
    fn a_publication_names_the_hash_of_its_manifest() {
        let entry = Publication::new(5, b"").entry();
        let body = std::str::from_utf8(&entry[2..]).unwrap();
        assert_eq!(
            body,
            r#"{"version":1,"at":5,"manifest":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}"#
        );
        Publication::parse(body.as_bytes()).unwrap();
        assert!(Publication::parse(body.replace("e3b0", "E3B0").as_bytes()).is_err());
        assert!(Publication::parse(body.replace("e3b0", "").as_bytes()).is_err());
    }
}
