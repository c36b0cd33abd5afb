//! The output of `nft -j list table inet wiretight`: whether the table is ours, whether it is unchanged, and its
//! counters.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::rules::{Direction, FLOW_SETS, MARKER, REMEMBERED, TABLE};

/// A table in the kernel.
#[derive(Debug, Clone, PartialEq)]
pub struct Listing {
    objects: Vec<Value>,
}

/// Why a listing cannot be parsed.
#[derive(Debug, thiserror::Error)]
#[error("cannot parse nft's listing of the table: {0}")]
pub struct ListingError(String);

/// The kernel's counters since the table was created.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Connections redirected to the relay (their first packets).
    pub redirected: Count,
    /// Plaintext from peers that passed.
    pub seen_in: Count,
    /// Plaintext to peers that passed.
    pub seen_out: Count,
    /// Dropped packets from peers.
    pub dropped_in: Count,
    /// Dropped packets to peers.
    pub dropped_out: Count,
    /// The part of these four that is in no flow, because there were too many flows.
    pub unlisted: Count,
    /// The flows; one is removed a day after its last packet.
    pub flows: Vec<Flow>,
}

/// Packets and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Count {
    pub packets: u64,
    /// Including IP headers.
    pub bytes: u64,
}

/// Plaintext between this machine and a peer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Flow {
    pub peer: IpAddr,
    /// The protocol's name, or its number if it has none.
    pub protocol: String,
    /// The service's port, which is the one below 32768; 0 for protocols without ports.
    pub port: u16,
    /// The side that started it, according to that port.
    pub direction: Direction,
    /// Whether it was dropped.
    pub dropped: bool,
    /// In both directions.
    pub packets: u64,
    /// Including IP headers.
    pub bytes: u64,
    /// The time of the last packet, in seconds since 1970.
    pub last_seen: u64,
    /// Programs on this machine that had a socket for it. Not part of the kernel's listing; filled in elsewhere.
    /// Empty if unknown.
    #[serde(default)]
    pub programs: Vec<Program>,
}

/// A program on this machine, as identified by its socket.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Program {
    /// Its name, if it is alone in its control group.
    pub name: Option<String>,
    /// Its control group (v2), relative to the root; `None` for the root, or if unknown.
    pub control_group: Option<String>,
    /// The owner of the socket.
    pub user: u32,
}

/// `postgres (postgresql.service)`, `session-3.scope (user 1000)`, `user 1000`
impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let group = self.control_group.as_deref().and_then(|path| path.rsplit('/').next());
        match (&self.name, group) {
            (Some(name), Some(group)) => write!(f, "{name} ({group})"),
            (Some(name), None) => f.write_str(name),
            (None, Some(group)) => write!(f, "{group} (user {})", self.user),
            (None, None) => write!(f, "user {}", self.user),
        }
    }
}

impl Listing {
    /// Parses nft's output.
    pub fn parse(json: &[u8]) -> Result<Listing, ListingError> {
        let mut answer: Value =
            serde_json::from_slice(json).map_err(|e| ListingError(e.to_string()))?;
        match answer["nftables"].take() {
            Value::Array(objects) => Ok(Listing { objects }),
            _ => Err(ListingError("there is no \"nftables\" in it".into())),
        }
    }

    /// Whether Wiretight created it.
    pub fn is_ours(&self) -> bool {
        self.of("chain").any(|c| c["name"] == MARKER)
    }

    /// The content without counters and other volatile parts.
    pub fn canonical(&self) -> Value {
        canonical(&self.objects)
    }

    /// The number of rules in each chain, in the order of chains, and the elements of each set that we fill. All
    /// versions of nft show these in the same form.
    pub fn outline(canonical: &Value) -> Value {
        let rules = canonical["rules"].as_object().into_iter().flatten();
        let rules =
            rules.map(|(chain, rules)| (chain.clone(), rules.as_array().map_or(0, Vec::len)));
        let rules: serde_json::Map<_, _> = rules.map(|(c, n)| (c, n.into())).collect();
        let sets = canonical["set"].as_object().into_iter().flatten();
        let sets = sets.map(|(name, set)| (name.clone(), set["elem"].clone()));
        json!({"rules": rules, "sets": sets.collect::<serde_json::Map<_, _>>()})
    }

    /// Whether the table was disabled: then its rules exist but have no effect.
    pub fn is_dormant(&self) -> bool {
        self.of("table").any(|table| !table["flags"].is_null())
    }

    /// The counters. `now` is the time of the listing, in seconds since 1970.
    pub fn counts(&self, now: u64) -> Counts {
        let mut counts = Counts::default();
        for counter in self.of("counter") {
            let count = count(counter);
            match counter["name"].as_str() {
                Some("redirected") => counts.redirected = count,
                Some("seen_in") => counts.seen_in = count,
                Some("seen_out") => counts.seen_out = count,
                Some("dropped_in") => counts.dropped_in = count,
                Some("dropped_out") => counts.dropped_out = count,
                Some("unlisted") => counts.unlisted = count,
                _ => {}
            }
        }
        for set in self.of("set") {
            let Some(name) = set["name"].as_str().filter(|name| FLOW_SETS.contains(name)) else {
                continue;
            };
            let (dropped, out) = (name.starts_with("dropped"), name.contains("_out"));
            let direction = if out { Direction::Out } else { Direction::In };
            let elements = set["elem"].as_array().into_iter().flatten();
            counts.flows.extend(elements.filter_map(|e| flow(&e["elem"], direction, dropped, now)));
        }
        counts.flows.sort();
        counts
    }

    fn of(&self, kind: &str) -> impl Iterator<Item = &Value> {
        self.objects.iter().filter_map(move |object| object.get(kind))
    }
}

fn count(of: &Value) -> Count {
    let number = |key| of[key].as_u64().unwrap_or(0);
    Count { packets: number("packets"), bytes: number("bytes") }
}

fn flow(element: &Value, direction: Direction, dropped: bool, now: u64) -> Option<Flow> {
    let key = element["val"]["concat"].as_array()?;
    let protocol = match &key[..] {
        [_, Value::String(name), _] => name.clone(),
        [_, Value::Number(number), _] => number.to_string(),
        _ => return None,
    };
    let Count { packets, bytes } = count(&element["counter"]);
    let expires = element["expires"].as_u64().unwrap_or(REMEMBERED);
    Some(Flow {
        peer: key[0].as_str()?.parse().ok()?,
        protocol,
        port: key[2].as_u64()?.try_into().ok()?,
        direction,
        dropped,
        packets,
        bytes,
        last_seen: now.saturating_sub(REMEMBERED.saturating_sub(expires)),
        programs: Vec::new(),
    })
}

/// Tables, counters, sets, chains by name, and rules in order; without handles, counters and set elements that the
/// kernel adds itself.
pub(super) fn canonical(objects: &[Value]) -> Value {
    let mut out = json!({});
    for object in objects {
        let Some((kind, body)) = object.as_object().and_then(|o| o.iter().next()) else { continue };
        let mut body = body.clone();
        let Some(map) = body.as_object_mut() else { continue };
        for key in ["handle", "packets", "bytes"] {
            map.remove(key);
        }
        let name = map.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        match kind.as_str() {
            "metainfo" => {}
            "rule" => {
                let chain = map.get("chain").and_then(Value::as_str).unwrap_or(TABLE).to_owned();
                match &mut out["rules"][&chain] {
                    Value::Array(rules) => rules.push(body),
                    none => *none = json!([body]),
                }
            }
            _ => {
                if FLOW_SETS.contains(&name.as_str()) {
                    map.remove("elem");
                }
                if let Some(Value::Array(elements)) = map.get_mut("elem") {
                    elements.iter_mut().for_each(plain_addresses);
                    elements.sort_by_key(Value::to_string);
                }
                out[kind][&name] = body;
            }
        }
    }
    out
}

/// Normalises the spelling of addresses.
fn plain_addresses(value: &mut Value) {
    match value {
        Value::String(text) => {
            if let Ok(ip) = text.parse::<IpAddr>() {
                *text = ip.to_string();
            }
        }
        Value::Array(values) => values.iter_mut().for_each(plain_addresses),
        Value::Object(map) => map.values_mut().for_each(plain_addresses),
        _ => {}
    }
}
