//! Totals: how many connections and bytes there were, by direction, level, evidence and protocol, and what encrypted ones
//! had negotiated. Bounded, so that a node can keep and send one for each hour.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Grade, Seen};
use crate::judge::Level;

/// The most [`Share`]s in [`Totals`].
pub const MAX_SHARES: usize = 256;
/// The longest name of a protocol, in bytes.
pub const MAX_PROTOCOL: usize = 32;
/// There are fewer combinations of direction, level and evidence than this.
const COMBINATIONS: usize = 100;
/// The most [`AlgorithmShare`]s in [`Totals`].
pub const MAX_ALGORITHMS: usize = 64;
/// The longest name of a version or algorithm, in bytes.
pub const MAX_ALGORITHM: usize = 48;
/// The largest totals that are kept for an hour, in bytes of JSON: a day of them is a value of a store (1 MiB).
pub const MAX_KEPT: usize = 40 << 10;
/// To how many shares and algorithms larger totals are merged. With the longest names they have 36 KB.
const KEPT_SHARES: usize = COMBINATIONS + 60;
const KEPT_ALGORITHMS: usize = 32;
/// The name of what was merged because there was too much.
pub const OTHER: &str = "other";
/// The name of an algorithm that is not visible.
pub const UNKNOWN: &str = "unknown";

/// Where a flow went, as seen from this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// A client elsewhere, a server here.
    In,
    /// A client here.
    Out,
    /// Neither is here: this machine routes it.
    Forwarded,
    /// Both are here. It never leaves this machine.
    Loopback,
    /// Between a program here and our relay or edge here. It never leaves this machine; the relay's own connection is
    /// counted apart.
    Relay,
}

impl Way {
    /// Whether its packets cross a network.
    pub fn crosses_network(self) -> bool {
        matches!(self, Self::In | Self::Out | Self::Forwarded)
    }
}

/// What a flow is counted as.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Kind {
    pub way: Way,
    pub level: Level,
    pub grade: Grade,
    /// As in [`Seen::protocol`](super::Seen::protocol).
    pub protocol: Cow<'static, str>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Connections that began in this time. Flows of UDP and others count as connections.
    pub connections: u64,
    /// Bytes of IP packets, both directions.
    pub bytes: u64,
}

impl Count {
    pub fn add(&mut self, other: Self) {
        self.connections = self.connections.saturating_add(other.connections);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }

    fn is_empty(self) -> bool {
        self == Self::default()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    #[serde(flatten)]
    pub kind: Kind,
    #[serde(flatten)]
    pub count: Count,
}

/// What the flows of a share were encrypted with.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Algorithm {
    /// As in [`Sealed::version`](super::Sealed::version); the protocol, if its version is not visible.
    pub version: Cow<'static, str>,
    pub key_exchange: Cow<'static, str>,
    pub cipher: Cow<'static, str>,
    /// Whether the key exchange resists quantum computers. Not known counts as no.
    pub post_quantum: bool,
}

impl Algorithm {
    /// What was negotiated; `None` if it is not encrypted.
    pub fn of(seen: &Seen) -> Option<Self> {
        if seen.level <= Level::Plaintext {
            return None;
        }
        let name = |name: Option<&Cow<'static, str>>| match name {
            Some(name) if !name.is_empty() => plain(name.clone()),
            _ => UNKNOWN.into(),
        };
        let sealed = seen.sealed.as_deref();
        let version = sealed.map(|s| &s.version).filter(|version| !version.is_empty());
        Some(Self {
            version: name(version.or(Some(&seen.protocol))),
            key_exchange: name(sealed.and_then(|s| s.group.as_ref())),
            cipher: name(sealed.and_then(|s| s.suite.as_ref())),
            post_quantum: sealed.and_then(|s| s.post_quantum).unwrap_or(false),
        })
    }

    fn names(&self) -> [&Cow<'static, str>; 3] {
        [&self.version, &self.key_exchange, &self.cipher]
    }
}

/// The name of an algorithm without the domain of its author, as in `aes256-gcm@openssh.com`: such names come from the
/// network, and totals are published.
fn plain(name: Cow<'static, str>) -> Cow<'static, str> {
    let name = match name.contains('@') {
        false => name,
        true => {
            let parts = name.split(", ").map(|part| part.split('@').next().unwrap_or_default());
            parts.collect::<Vec<_>>().join(", ").into()
        }
    };
    if is_algorithm(&name) { name } else { OTHER.into() }
}

fn is_algorithm(name: &str) -> bool {
    let printable = |b: u8| b == b' ' || b.is_ascii_graphic();
    !name.is_empty() && name.len() <= MAX_ALGORITHM && name.bytes().all(printable)
}

/// Encrypted flows that crossed a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlgorithmShare {
    #[serde(flatten)]
    pub algorithm: Algorithm,
    #[serde(flatten)]
    pub count: Count,
}

/// What was not attributed to a flow. It counts as `unknown`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Gaps {
    /// Bytes of IP packets that crossed the interfaces, as the interfaces counted them; 0 if that is not known. Forwarded
    /// bytes cross twice.
    pub interface_bytes: u64,
    /// Of these, the bytes that belong to no flow.
    pub missed_bytes: u64,
    /// Times that the kernel dropped notifications of flows. Flows that began and ended meanwhile are not counted.
    pub resyncs: u64,
    /// First packets of flows that the kernel did not deliver. Their flows are `unknown` if they mattered.
    pub lost_packets: u64,
}

impl Gaps {
    pub fn add(&mut self, other: Self) {
        self.interface_bytes = self.interface_bytes.saturating_add(other.interface_bytes);
        self.missed_bytes = self.missed_bytes.saturating_add(other.missed_bytes);
        self.resyncs = self.resyncs.saturating_add(other.resyncs);
        self.lost_packets = self.lost_packets.saturating_add(other.lost_packets);
    }
}

/// The totals of a time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    pub shares: Vec<Share>,
    /// Of the encrypted shares that crossed a network. Nodes with an earlier release send none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub algorithms: Vec<AlgorithmShare>,
    #[serde(default)]
    pub gaps: Gaps,
}

/// The totals of an hour.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hour {
    /// When it began, in seconds since 1970; a multiple of [`Hour::LENGTH`].
    pub start: u64,
    /// How many seconds of it were watched.
    pub watched_seconds: u32,
    #[serde(flatten)]
    pub totals: Totals,
}

/// The totals of an hour, or of a day whose hours were merged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Period {
    /// In seconds since 1970.
    pub start: u64,
    /// In seconds.
    pub length: u64,
    /// How many seconds of it were watched.
    pub watched_seconds: u32,
    #[serde(flatten)]
    pub totals: Totals,
}

impl From<Hour> for Period {
    fn from(hour: Hour) -> Self {
        let Hour { start, watched_seconds, totals } = hour;
        Self { start, length: Hour::LENGTH, watched_seconds, totals }
    }
}

impl Period {
    /// Whether it has a second in common with this time; `to` is the last second.
    pub fn overlaps(&self, from: u64, to: u64) -> bool {
        self.start <= to && self.start.saturating_add(self.length) > from
    }
}

/// Why totals of another machine are not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTotals {
    #[error("{0} is not the start of an hour")]
    Start(u64),
    #[error("{0} watched seconds in an hour")]
    Watched(u32),
    #[error("more than {MAX_SHARES} kinds of flows")]
    Shares,
    #[error("the name of a protocol is empty, longer than {MAX_PROTOCOL} bytes, or not printable")]
    Protocol,
    #[error("the same kind of flows twice")]
    Twice,
    #[error("a flow is called encrypted without evidence")]
    NoEvidence,
    #[error("more than {MAX_ALGORITHMS} algorithms, the same twice, or an invalid name")]
    Algorithms,
    #[error("more was negotiated than is encrypted")]
    MoreNegotiated,
}

impl Hour {
    pub const LENGTH: u64 = 3600;

    /// Checks what another machine has sent.
    pub fn check(&self) -> Result<(), InvalidTotals> {
        if !self.start.is_multiple_of(Self::LENGTH) {
            return Err(InvalidTotals::Start(self.start));
        }
        if u64::from(self.watched_seconds) > Self::LENGTH {
            return Err(InvalidTotals::Watched(self.watched_seconds));
        }
        self.totals.check()
    }
}

impl Totals {
    /// Merges what has the fewest bytes as [`OTHER`], if the totals are larger than [`MAX_KEPT`]. Only long names that no
    /// release of ours has lead to that.
    #[must_use]
    pub fn to_keep(self) -> Self {
        if serde_json::to_vec(&self).is_ok_and(|json| json.len() <= MAX_KEPT) {
            return self;
        }
        let mut sum = Sum::default();
        sum.add_all(&self);
        sum.at_most(KEPT_SHARES, KEPT_ALGORITHMS)
    }

    fn check(&self) -> Result<(), InvalidTotals> {
        if self.shares.len() > MAX_SHARES {
            return Err(InvalidTotals::Shares);
        }
        let mut kinds = std::collections::BTreeSet::new();
        for Share { kind, .. } in &self.shares {
            let name = kind.protocol.as_bytes();
            if name.is_empty()
                || name.len() > MAX_PROTOCOL
                || !name.iter().all(u8::is_ascii_graphic)
            {
                return Err(InvalidTotals::Protocol);
            }
            if kind.grade == Grade::Unknown && kind.level > Level::Plaintext {
                return Err(InvalidTotals::NoEvidence);
            }
            if !kinds.insert(kind) {
                return Err(InvalidTotals::Twice);
            }
        }
        self.check_algorithms()
    }

    fn check_algorithms(&self) -> Result<(), InvalidTotals> {
        let mut known = std::collections::BTreeSet::new();
        let mut negotiated = Count::default();
        for AlgorithmShare { algorithm, count } in &self.algorithms {
            let valid = algorithm.names().into_iter().all(|name| is_algorithm(name));
            if !valid || !known.insert(algorithm) || known.len() > MAX_ALGORITHMS {
                return Err(InvalidTotals::Algorithms);
            }
            negotiated.add(*count);
        }
        let mut encrypted = Count::default();
        let is_encrypted =
            |s: &&Share| s.kind.way.crosses_network() && s.kind.level > Level::Plaintext;
        self.shares.iter().filter(is_encrypted).for_each(|s| encrypted.add(s.count));
        let fits =
            negotiated.bytes <= encrypted.bytes && negotiated.connections <= encrypted.connections;
        if fits { Ok(()) } else { Err(InvalidTotals::MoreNegotiated) }
    }

    /// Connections and bytes that crossed a network, by level.
    pub fn by_level(&self) -> BTreeMap<Level, Count> {
        let mut levels: BTreeMap<Level, Count> =
            Level::ALL.into_iter().map(|level| (level, Count::default())).collect();
        for share in self.shares.iter().filter(|s| s.kind.way.crosses_network()) {
            levels.entry(share.kind.level).or_default().add(share.count);
        }
        // Forwarded bytes cross the interfaces twice, but are one flow; what was missed is only known for the interfaces.
        let missed = Count { connections: 0, bytes: self.gaps.missed_bytes };
        levels.entry(Level::Unknown).or_default().add(missed);
        levels
    }
}

/// Sums up totals.
#[derive(Debug, Clone, Default)]
pub struct Sum {
    shares: BTreeMap<Kind, Count>,
    algorithms: BTreeMap<Algorithm, Count>,
    pub gaps: Gaps,
}

impl Sum {
    /// Adds to a kind. The name of its protocol is made valid for [`Hour::check`].
    pub fn add(&mut self, kind: Kind, count: Count) {
        if count.is_empty() {
            return;
        }
        self.shares.entry(valid(kind)).or_default().add(count);
        // Names come from a fixed list, but nothing depends on that.
        if self.shares.len() > 16 * MAX_SHARES {
            let merged = self.totals();
            self.shares = merged.shares.into_iter().map(|s| (s.kind, s.count)).collect();
        }
    }

    /// Adds to an algorithm. The same flows must be added to their kind, and cross a network.
    pub fn add_algorithm(&mut self, algorithm: Algorithm, count: Count) {
        if count.is_empty() {
            return;
        }
        self.algorithms.entry(algorithm).or_default().add(count);
        if self.algorithms.len() > 16 * MAX_ALGORITHMS {
            let merged = self.merged_algorithms(MAX_ALGORITHMS);
            self.algorithms = merged.into_iter().map(|s| (s.algorithm, s.count)).collect();
        }
    }

    pub fn add_all(&mut self, totals: &Totals) {
        for share in &totals.shares {
            self.add(share.kind.clone(), share.count);
        }
        for share in &totals.algorithms {
            self.add_algorithm(share.algorithm.clone(), share.count);
        }
        self.gaps.add(totals.gaps);
    }

    pub fn is_empty(&self) -> bool {
        self.shares.is_empty() && self.gaps == Gaps::default()
    }

    /// The totals, with the most bytes first. If there are too many kinds, those with the fewest bytes are merged: the
    /// protocol becomes [`OTHER`], and everything else is kept.
    pub fn totals(&self) -> Totals {
        self.at_most(MAX_SHARES, MAX_ALGORITHMS)
    }

    fn at_most(&self, most_shares: usize, most_algorithms: usize) -> Totals {
        let mut shares: Vec<Share> = self
            .shares
            .iter()
            .map(|(kind, count)| Share { kind: kind.clone(), count: *count })
            .collect();
        let most_first = |s: &Share| std::cmp::Reverse((s.count.bytes, s.count.connections));
        shares.sort_by_key(most_first);
        if shares.len() > most_shares {
            let named = most_shares.saturating_sub(COMBINATIONS);
            let mut merged: BTreeMap<Kind, Count> = BTreeMap::new();
            for (n, share) in shares.into_iter().enumerate() {
                let Share { mut kind, count } = share;
                if n >= named {
                    kind.protocol = OTHER.into();
                }
                merged.entry(kind).or_default().add(count);
            }
            shares = merged.into_iter().map(|(kind, count)| Share { kind, count }).collect();
            shares.sort_by_key(most_first);
        }
        Totals { shares, algorithms: self.merged_algorithms(most_algorithms), gaps: self.gaps }
    }

    /// The algorithms with the most bytes first. Those with the fewest are merged if there are too many: their names become
    /// [`OTHER`], and whether they are post-quantum is kept.
    fn merged_algorithms(&self, most: usize) -> Vec<AlgorithmShare> {
        let share = |(algorithm, count): (&Algorithm, &Count)| AlgorithmShare {
            algorithm: algorithm.clone(),
            count: *count,
        };
        let most_first =
            |s: &AlgorithmShare| std::cmp::Reverse((s.count.bytes, s.count.connections));
        let mut shares: Vec<AlgorithmShare> = self.algorithms.iter().map(share).collect();
        shares.sort_by_key(most_first);
        if shares.len() > most {
            let mut merged: BTreeMap<Algorithm, Count> = BTreeMap::new();
            // Two remain for the others, with and without a post-quantum key exchange.
            for (n, AlgorithmShare { mut algorithm, count }) in shares.into_iter().enumerate() {
                if n >= most.saturating_sub(2) {
                    algorithm = Algorithm {
                        version: OTHER.into(),
                        key_exchange: OTHER.into(),
                        cipher: OTHER.into(),
                        ..algorithm
                    };
                }
                merged.entry(algorithm).or_default().add(count);
            }
            shares = merged.iter().map(share).collect();
            shares.sort_by_key(most_first);
        }
        shares
    }
}

fn valid(mut kind: Kind) -> Kind {
    let name = kind.protocol.as_bytes();
    if name.is_empty() || name.len() > MAX_PROTOCOL || !name.iter().all(u8::is_ascii_graphic) {
        kind.protocol = OTHER.into();
    }
    kind
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passive::Sealed;

    fn kind(way: Way, level: Level, protocol: &str) -> Kind {
        let grade = if level == Level::Unknown { Grade::Unknown } else { Grade::Seen };
        Kind { way, level, grade, protocol: protocol.to_owned().into() }
    }

    fn bytes(bytes: u64) -> Count {
        Count { connections: 1, bytes }
    }

    fn algorithm(version: &str, post_quantum: bool) -> Algorithm {
        Algorithm {
            version: version.to_owned().into(),
            key_exchange: "X25519MLKEM768".into(),
            cipher: UNKNOWN.into(),
            post_quantum,
        }
    }

    #[test]
    fn what_was_missed_is_unknown_and_loopback_is_not_on_the_network() {
        let mut sum = Sum::default();
        sum.add(kind(Way::Out, Level::Strong, "tls"), bytes(100));
        sum.add(kind(Way::In, Level::Strong, "tls"), bytes(10));
        sum.add(kind(Way::Loopback, Level::Plaintext, "redis"), bytes(1000));
        sum.add(kind(Way::Relay, Level::Plaintext, "http"), bytes(1000));
        sum.gaps.missed_bytes = 7;
        let levels = sum.totals().by_level();
        assert_eq!(levels[&Level::Strong], Count { connections: 2, bytes: 110 });
        assert_eq!(levels[&Level::Plaintext], Count::default());
        assert_eq!(levels[&Level::Unknown], Count { connections: 0, bytes: 7 });
    }

    #[test]
    fn many_protocols_are_merged_and_nothing_is_lost_or_improved() {
        let mut sum = Sum::default();
        let levels = [Level::Plaintext, Level::Strong];
        let mut all = BTreeMap::new();
        for n in 0..20_000u64 {
            let level = levels[n as usize % 2];
            sum.add(kind(Way::In, level, &format!("p{n}")), bytes(n));
            *all.entry(level).or_insert(0) += n;
        }
        let totals = sum.totals();
        assert!(totals.shares.len() <= MAX_SHARES);
        let hour = Hour { start: 7200, watched_seconds: 60, totals };
        hour.check().unwrap();
        let by_level = hour.totals.by_level();
        for level in levels {
            assert_eq!(by_level[&level], Count { connections: 10_000, bytes: all[&level] });
        }
        assert_eq!(hour.totals.shares[0].kind.protocol, OTHER);
    }

    #[test]
    fn many_algorithms_are_merged_and_post_quantum_is_kept() {
        let mut sum = Sum::default();
        let mut post_quantum = Count::default();
        for n in 0..5000u64 {
            let of = algorithm(&format!("v{n}"), n % 3 == 0);
            sum.add(kind(Way::In, Level::Strong, "tls"), bytes(n));
            sum.add_algorithm(of.clone(), bytes(n));
            if of.post_quantum {
                post_quantum.add(bytes(n));
            }
        }
        let mut twice = Sum::default();
        twice.add_all(&sum.totals());
        let hour = Hour { start: 0, watched_seconds: 0, totals: twice.totals() };
        hour.check().unwrap();
        let all = &hour.totals.algorithms;
        assert!(all.len() > MAX_ALGORITHMS / 2, "{}", all.len());
        assert_eq!(all[0].algorithm.version, OTHER);
        let mut counted = [Count::default(); 2];
        for share in all {
            counted[usize::from(share.algorithm.post_quantum)].add(share.count);
        }
        assert_eq!(counted[1], post_quantum);
        assert_eq!(counted[0].bytes + counted[1].bytes, (0..5000).sum::<u64>());
    }

    #[test]
    fn the_largest_totals_that_are_accepted_are_cut_to_what_is_kept() {
        // The longest names, of which JSON escapes each character.
        let name = |n: usize, length: usize| {
            let text = format!("{n:0length$}");
            text.replace('0', "\\").replace('1', "\"")
        };
        let mut hour = Hour { start: 3600, watched_seconds: 3600, totals: Totals::default() };
        let count = |n: usize| Count { connections: 1 << 32, bytes: (1 << 42) - n as u64 };
        let grades = [Grade::Guessed, Grade::Seen, Grade::Carried];
        let ways = [Way::In, Way::Out, Way::Forwarded, Way::Loopback, Way::Relay];
        for n in 0..MAX_SHARES {
            let (way, level) = (ways[n % 5], Level::ALL[n % 4 + 1]);
            let protocol = name(n, MAX_PROTOCOL).into();
            let kind = Kind { way, level, grade: grades[n % 3], protocol };
            hour.totals.shares.push(Share { kind, count: count(n) });
        }
        for n in 0..MAX_ALGORITHMS {
            let name: Cow<'static, str> = name(n, MAX_ALGORITHM).into();
            let algorithm = Algorithm {
                version: name.clone(),
                key_exchange: name.clone(),
                cipher: name,
                post_quantum: n % 2 == 0,
            };
            let count = Count { connections: 1 << 30, bytes: 1 << 40 };
            hour.totals.algorithms.push(AlgorithmShare { algorithm, count });
        }
        hour.check().unwrap();
        let size = |totals: &Totals| serde_json::to_vec(totals).unwrap().len();
        let before = hour.totals.clone();
        assert!(size(&before) * 24 > 1 << 20, "{}", size(&before));
        let kept = before.clone().to_keep();
        assert!(size(&kept) <= MAX_KEPT, "{}", size(&kept));
        let sum = |totals: &Totals| {
            let mut all = Count::default();
            totals.shares.iter().for_each(|share| all.add(share.count));
            totals.algorithms.iter().for_each(|share| all.add(share.count));
            (totals.by_level(), all)
        };
        assert_eq!(sum(&kept), sum(&before));
        let named =
            |totals: &Totals| totals.shares.iter().filter(|s| s.kind.protocol != OTHER).count();
        assert!(named(&kept) >= 60, "{}", named(&kept));
        Hour { totals: kept.clone(), ..hour }.check().unwrap();
        // The control: what fits is kept as it is.
        assert_eq!(kept.clone().to_keep(), kept);
    }

    #[test]
    fn algorithms_are_those_of_encrypted_flows_and_name_no_domain() {
        let seen = |level, sealed: Option<Sealed>| Seen {
            protocol: "ssh".into(),
            level,
            grade: Grade::Seen,
            evidence: "a test".into(),
            starttls: None,
            sealed: sealed.map(Box::new),
        };
        let sealed = Sealed {
            version: "SSH 2.0".into(),
            suite: Some("aes256-ctr, hmac-sha2-256-etm@openssh.com".into()),
            group: Some("sntrup761x25519-sha512@openssh.com".into()),
            post_quantum: Some(true),
            ..Sealed::default()
        };
        let of = |level| Algorithm::of(&seen(level, Some(sealed.clone())));
        assert_eq!([of(Level::Unknown), of(Level::Plaintext)], [None, None]);
        let found = of(Level::Weak).unwrap();
        assert_eq!(
            found.names(),
            ["SSH 2.0", "sntrup761x25519-sha512", "aes256-ctr, hmac-sha2-256-etm"]
        );
        assert!(found.post_quantum);
        let nothing = Algorithm::of(&seen(Level::Acceptable, None)).unwrap();
        assert_eq!(nothing.names(), ["ssh", UNKNOWN, UNKNOWN]);
        assert!(!nothing.post_quantum);
        let long =
            Sealed { suite: Some("\u{e9}".into()), group: Some("x".repeat(99).into()), ..sealed };
        let found = Algorithm::of(&seen(Level::Weak, Some(long))).unwrap();
        assert_eq!((&*found.key_exchange, &*found.cipher), (OTHER, OTHER));
    }

    #[test]
    fn totals_of_others_are_checked() {
        let share = |kind: Kind| Share { kind, count: bytes(1) };
        let good = Hour {
            start: 3600,
            watched_seconds: 3600,
            totals: Totals {
                shares: vec![share(kind(Way::In, Level::Strong, "tls"))],
                algorithms: vec![AlgorithmShare {
                    algorithm: algorithm("TLS 1.3", true),
                    count: bytes(1),
                }],
                gaps: Gaps::default(),
            },
        };
        good.check().unwrap();
        let with = |change: &dyn Fn(&mut Hour)| {
            let mut hour = good.clone();
            change(&mut hour);
            hour.check().unwrap_err()
        };
        assert_eq!(with(&|h| h.start = 3601), InvalidTotals::Start(3601));
        assert_eq!(with(&|h| h.watched_seconds = 3601), InvalidTotals::Watched(3601));
        let twice = |h: &mut Hour| h.totals.shares.push(h.totals.shares[0].clone());
        assert_eq!(with(&twice), InvalidTotals::Twice);
        for name in ["", "a b", "\u{1b}[2J", &"x".repeat(33)] {
            let named = |h: &mut Hour| h.totals.shares[0].kind.protocol = name.to_owned().into();
            assert_eq!(with(&named), InvalidTotals::Protocol, "{name:?}");
        }
        let unseen = |h: &mut Hour| h.totals.shares[0].kind.grade = Grade::Unknown;
        assert_eq!(with(&unseen), InvalidTotals::NoEvidence);
        let no_algorithm = |change: &dyn Fn(&mut AlgorithmShare)| {
            with(&|h: &mut Hour| change(&mut h.totals.algorithms[0]))
        };
        for name in ["", "\u{1b}[2J", &"x".repeat(49)] {
            let named = |s: &mut AlgorithmShare| s.algorithm.cipher = name.to_owned().into();
            assert_eq!(no_algorithm(&named), InvalidTotals::Algorithms, "{name:?}");
        }
        let more = [Count { connections: 1, bytes: 2 }, Count { connections: 2, bytes: 1 }];
        for count in more {
            assert_eq!(no_algorithm(&|s| s.count = count), InvalidTotals::MoreNegotiated);
        }
        // What does not cross a network, or is not encrypted, negotiates nothing.
        let here = |h: &mut Hour| h.totals.shares[0].kind.way = Way::Loopback;
        let plain = |h: &mut Hour| h.totals.shares[0].kind.level = Level::Plaintext;
        assert_eq!(with(&here), InvalidTotals::MoreNegotiated);
        assert_eq!(with(&plain), InvalidTotals::MoreNegotiated);
        let twice = |h: &mut Hour| h.totals.algorithms = vec![h.totals.algorithms[0].clone(); 2];
        assert_eq!(with(&twice), InvalidTotals::Algorithms);
        let many = |h: &mut Hour| {
            let share = |n: usize| AlgorithmShare {
                algorithm: algorithm(&format!("v{n}"), false),
                count: Count::default(),
            };
            h.totals.algorithms = (0..=MAX_ALGORITHMS).map(share).collect();
        };
        assert_eq!(with(&many), InvalidTotals::Algorithms);
        let many = |h: &mut Hour| {
            let named = |n: usize| share(kind(Way::In, Level::Strong, &format!("p{n}")));
            h.totals.shares = (0..=MAX_SHARES).map(named).collect();
        };
        assert_eq!(with(&many), InvalidTotals::Shares);
    }

    #[test]
    fn an_hour_is_written_and_read_without_loss() {
        let mut sum = Sum::default();
        sum.add(kind(Way::Forwarded, Level::Weak, "smtp"), bytes(5));
        sum.gaps.resyncs = 1;
        let hour = Hour { start: 3600, watched_seconds: 10, totals: sum.totals() };
        let text = serde_json::to_string(&hour).unwrap();
        assert_eq!(
            text,
            r#"{"start":3600,"watched_seconds":10,"shares":[{"way":"forwarded","level":"weak","grade":"seen","protocol":"smtp","connections":1,"bytes":5}],"gaps":{"interface_bytes":0,"missed_bytes":0,"resyncs":1,"lost_packets":0}}"#
        );
        assert_eq!(serde_json::from_str::<Hour>(&text).unwrap(), hour);
    }
}
