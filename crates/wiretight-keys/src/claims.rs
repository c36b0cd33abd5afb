//! What the authority claims in the log: how the traffic of the mesh was encrypted in an hour or a day ([`MeshPeriod`]),
//! and what it has published ([`Publication`]).
//!
//! Entries hold counts, and no name of a node, service, program or address: whoever publishes the log publishes them. The
//! body of an entry is JSON without spaces, its members in the order of the fields here. There is exactly one encoding of
//! a value: a body that would be written differently is refused, so a claim cannot be repeated in another form, and no
//! unknown member can hide in it.

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

/// How much of the mesh was watched.
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

/// The traffic of the mesh in an hour or a day, as claimed by the authority.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshPeriod {
    pub version: u8,
    /// When it began, in seconds since 1970; a multiple of `length`.
    pub start: u64,
    /// [`HOUR`] or [`DAY`]. A day is the sum of its logged hours.
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
