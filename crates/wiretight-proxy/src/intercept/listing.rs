//! What `nft -j list table inet wiretight` says: whether the table is ours, whether it is as it was, and what
//! was counted.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::rules::{Direction, FLOW_SETS, MARKER, REMEMBERED, TABLE};

/// A table, as the kernel has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Listing {
    objects: Vec<Value>,
}

/// Why a listing cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("nft's list of the table cannot be read: {0}")]
pub struct ListingError(String);

/// What the kernel has counted since the table was made.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Connections that were redirected to the relay; their first packets.
    pub redirected: Count,
    /// Plaintext that passed, from peers.
    pub seen_in: Count,
    /// Plaintext that passed, to peers.
    pub seen_out: Count,
    /// What was dropped, from peers.
    pub dropped_in: Count,
    /// What was dropped, to peers.
    pub dropped_out: Count,
    /// Of these four, what is in no flow: there were too many.
    pub unlisted: Count,
    /// Who with whom; a day after its last packet a flow is forgotten.
    pub flows: Vec<Flow>,
}

/// How much.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes, with the headers of IP.
    pub bytes: u64,
}

/// Plaintext between this machine and a peer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Flow {
    /// The peer.
    pub peer: IpAddr,
    /// The protocol's name, or its number where it has none.
    pub protocol: String,
    /// The service's port, the one below 32768; 0 for what has no ports.
    pub port: u16,
    /// Who began it, by that port.
    pub direction: Direction,
    /// Whether it was dropped.
    pub dropped: bool,
    /// Packets, both ways.
    pub packets: u64,
    /// Bytes, with the headers of IP.
    pub bytes: u64,
    /// When the last packet was, in seconds since 1970.
    pub last_seen: u64,
    /// Programs of this machine that had a socket for it. The kernel's list does not say: it is for others to
    /// fill in. Empty: unknown.
    #[serde(default)]
    pub programs: Vec<Program>,
}

/// A program of this machine, as far as its socket tells.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Program {
    /// Its name, where nothing else is in its control group.
    pub name: Option<String>,
    /// Its control group (v2), below the root; `None`: the root, or unknown.
    pub control_group: Option<String>,
    /// The user whose socket it is.
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
    /// Reads nft's answer.
    pub fn parse(json: &[u8]) -> Result<Listing, ListingError> {
        let mut answer: Value =
            serde_json::from_slice(json).map_err(|e| ListingError(e.to_string()))?;
        match answer["nftables"].take() {
            Value::Array(objects) => Ok(Listing { objects }),
            _ => Err(ListingError("it has no \"nftables\"".into())),
        }
    }

    /// Whether we have made it.
    pub fn is_ours(&self) -> bool {
        self.of("chain").any(|c| c["name"] == MARKER)
    }

    /// Without what changes by itself.
    pub fn canonical(&self) -> Value {
        canonical(&self.objects)
    }

    /// How many rules each chain has, in the order of chains; and the elements of each set that we fill.
    /// That much any version of nft says in the same words.
    pub fn outline(canonical: &Value) -> Value {
        let rules = canonical["rules"].as_object().into_iter().flatten();
        let rules =
            rules.map(|(chain, rules)| (chain.clone(), rules.as_array().map_or(0, Vec::len)));
        let rules: serde_json::Map<_, _> = rules.map(|(c, n)| (c, n.into())).collect();
        let sets = canonical["set"].as_object().into_iter().flatten();
        let sets = sets.map(|(name, set)| (name.clone(), set["elem"].clone()));
        json!({"rules": rules, "sets": sets.collect::<serde_json::Map<_, _>>()})
    }

    /// Whether the table was switched off: then its rules are there, and do nothing.
    pub fn is_dormant(&self) -> bool {
        self.of("table").any(|table| !table["flags"].is_null())
    }

    /// What was counted. `now`: when the list was made, in seconds since 1970.
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

/// Tables, counters, sets, chains by name and rules in their order, without handles, counts and what the
/// kernel itself puts into sets.
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

/// One spelling for each address, whoever wrote it.
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
