//! Policies (C2SP tlog-policy): which logs are believed, and which witnesses have to have cosigned.
//!
//! ```text
//! log     example.com/mesh+1f2e3d4c+AQ…  https://authority.example.com:7400/log
//! witness ngo   witness.ngo.example+…    https://witness.ngo.example
//! witness uni   witness.uni.example+…    https://witness.uni.example
//! witness peer  witness.peer.example+…   https://witness.peer.example
//! group   independent 2 ngo uni peer
//! quorum  independent
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::checkpoint::{Checkpoint, SignedCheckpoint};
use crate::cosignature::WitnessKey;
use crate::hash::Hash;
use crate::note::{LogKey, Note, line_len};

/// The most logs, witnesses or groups of a policy.
const MAX_EACH: usize = 64;
/// The largest policy file that is read, in bytes. ML-DSA-44 keys have 1.8 kB each.
pub const MAX_POLICY: usize = 512 * 1024;
/// The height of the largest tree that [`Policy::largest_proof`] reckons with: a log of 2^40 entries.
const HEIGHT: usize = 40;
/// A witness' clock may be this much ahead of ours, in seconds.
pub const MAX_CLOCK_SKEW: u64 = 300;

/// What is wrong with a policy file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct PolicyError {
    /// Its line, from 1; of what is missing, the line after the last.
    pub line: usize,
    /// What is wrong.
    pub problem: String,
}

/// Why a checkpoint is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No log of the policy signed it.
    #[error(
        "no log that the policy names has signed the checkpoint (it says that it is of {origin:?})"
    )]
    UnknownLog {
        /// The checkpoint's origin.
        origin: String,
    },
    /// Too few witnesses.
    #[error(
        "{have} of the policy's witnesses have cosigned the checkpoint, and they are not the quorum ({quorum})"
    )]
    ShortQuorum {
        /// How many did.
        have: usize,
        /// What the policy wants.
        quorum: String,
    },
    /// The quorum was reached too long ago.
    #[error("the witnesses saw the checkpoint {age} s ago, and {allowed} s are allowed")]
    Stale {
        /// Seconds since the quorum was reached.
        age: u64,
        /// How old it may be.
        allowed: u64,
    },
    /// It was cosigned later than now.
    #[error("the witnesses saw the checkpoint {ahead} s from now: is a clock wrong?")]
    FromTheFuture {
        /// By how much.
        ahead: u64,
    },
}

/// A log, and where it is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// Its key.
    pub key: LogKey,
    /// The prefix of its resources.
    pub url: Option<String>,
}

/// A witness, and where it takes checkpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witness {
    /// Its name in this policy.
    pub name: String,
    /// Its key.
    pub key: WitnessKey,
    /// Its submission prefix.
    pub url: Option<String>,
}

/// Who has to have cosigned.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Quorum {
    Nobody,
    /// A witness, by its place.
    Witness(usize),
    /// So many of these.
    Group {
        name: String,
        needed: usize,
        members: Vec<Quorum>,
    },
}

impl Quorum {
    fn reached(&self, cosigned: &impl Fn(usize) -> bool) -> bool {
        match self {
            Quorum::Nobody => true,
            Quorum::Witness(place) => cosigned(*place),
            Quorum::Group { needed, members, .. } => {
                members.iter().filter(|m| m.reached(cosigned)).count() >= *needed
            }
        }
    }

    /// The lightest quorum among witnesses that have a weight: what it weighs, and who they are.
    fn lightest(&self, weight: &impl Fn(usize) -> Option<usize>) -> Option<(usize, Vec<usize>)> {
        match self {
            Quorum::Nobody => Some((0, Vec::new())),
            Quorum::Witness(place) => Some((weight(*place)?, vec![*place])),
            Quorum::Group { needed, members, .. } => {
                let mut all: Vec<_> = members.iter().filter_map(|m| m.lightest(weight)).collect();
                // No witness is in two members, so the lightest members make the lightest group.
                all.sort_by_key(|(weight, _)| *weight);
                (all.len() >= *needed).then(|| {
                    all.truncate(*needed);
                    (all.iter().map(|m| m.0).sum(), all.into_iter().flat_map(|m| m.1).collect())
                })
            }
        }
    }

    /// What the heaviest quorum weighs that has no witness too many.
    fn heaviest(&self, weight: &impl Fn(usize) -> usize) -> usize {
        match self {
            Quorum::Nobody => 0,
            Quorum::Witness(place) => weight(*place),
            Quorum::Group { needed, members, .. } => {
                let mut all: Vec<_> = members.iter().map(|m| m.heaviest(weight)).collect();
                all.sort_unstable_by(|a, b| b.cmp(a));
                all.iter().take(*needed).sum()
            }
        }
    }

    /// Whether it can be reached twice at one time, with no witness in common.
    fn splits(&self) -> bool {
        match self {
            Quorum::Nobody => true,
            Quorum::Witness(_) => false,
            Quorum::Group { needed, members, .. } => {
                let twice = members.iter().filter(|m| m.splits()).count();
                needed.saturating_sub(twice) * 2 <= members.len() - twice
            }
        }
    }
}

/// A policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    logs: Vec<Log>,
    witnesses: Vec<Witness>,
    quorum: Quorum,
}

/// A checkpoint that a policy believes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witnessed {
    checkpoint: Checkpoint,
    time: Option<u64>,
}

impl Witnessed {
    /// What it says.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// When the quorum had seen it, in seconds since 1970: the latest time at or after which enough witnesses have
    /// cosigned. `None` when the policy wants none.
    pub fn time(&self) -> Option<u64> {
        self.time
    }

    /// Checks the age of what the witnesses said; a policy without them has none.
    pub fn fresh(&self, now: u64, allowed: u64) -> Result<(), Refused> {
        match self.time {
            Some(time) if time > now.saturating_add(MAX_CLOCK_SKEW) => {
                Err(Refused::FromTheFuture { ahead: time - now })
            }
            Some(time) if now.saturating_sub(time) > allowed => {
                Err(Refused::Stale { age: now - time, allowed })
            }
            _ => Ok(()),
        }
    }
}

impl Policy {
    /// Parses a policy file. Octets that are not ASCII mean nothing but themselves.
    pub fn parse(text: impl AsRef<[u8]>) -> Result<Policy, PolicyError> {
        let (text, mut parser, mut last) = (text.as_ref(), Parser::default(), 0);
        if text.len() > MAX_POLICY {
            return Err(PolicyError { line: 1, problem: "the policy is too large".into() });
        }
        for (n, line) in text.strip_suffix(b"\n").unwrap_or(text).split(|b| *b == b'\n').enumerate()
        {
            last = n + 1;
            parser.line(line).map_err(|problem| PolicyError { line: last, problem })?;
        }
        let Parser { logs, witnesses, quorum, .. } = parser;
        let missing =
            || PolicyError { line: last + 1, problem: "there is no `quorum` line".into() };
        Ok(Policy { logs, witnesses, quorum: quorum.ok_or_else(missing)? })
    }

    /// A policy that believes one log by itself: what it says is self-attested.
    pub fn self_attested(key: LogKey) -> Policy {
        Policy { logs: vec![Log { key, url: None }], witnesses: Vec::new(), quorum: Quorum::Nobody }
    }

    /// The same witnesses and quorum, for this one log.
    pub fn for_log(&self, key: LogKey) -> Policy {
        Policy { logs: vec![Log { key, url: None }], ..self.clone() }
    }

    /// The logs.
    pub fn logs(&self) -> &[Log] {
        &self.logs
    }

    /// The witnesses.
    pub fn witnesses(&self) -> &[Witness] {
        &self.witnesses
    }

    /// Whether it wants any witness at all.
    pub fn wants_witnesses(&self) -> bool {
        self.quorum != Quorum::Nobody
    }

    /// Whether these witnesses (by their place) are the quorum.
    pub fn is_quorum(&self, cosigned: impl Fn(usize) -> bool) -> bool {
        self.quorum.reached(&cosigned)
    }

    /// Whether every quorum has a member among these witnesses: then they know the newest checkpoint that was ever
    /// believed.
    pub fn is_in_every_quorum(&self, asked: impl Fn(usize) -> bool) -> bool {
        !self.quorum.reached(&|place| !asked(place)) || !self.wants_witnesses()
    }

    /// The checkpoint, if a log of this policy signed it and the quorum cosigned it.
    pub fn witnessed(&self, signed: &SignedCheckpoint) -> Result<Witnessed, Refused> {
        let checkpoint = self.logs.iter().find_map(|log| signed.verified_by(&log.key));
        let checkpoint = checkpoint.ok_or_else(|| {
            let origin = signed.unverified().origin.chars().take(200).collect();
            Refused::UnknownLog { origin }
        })?;
        let time = match self.wants_witnesses() {
            true => Some(self.quorum_time(signed)?),
            false => None,
        };
        Ok(Witnessed { checkpoint: checkpoint.clone(), time })
    }

    /// The checkpoint with the signatures that make this policy believe it, and no others: of each witness that it takes
    /// the newest one, and of several quorums the one with the shortest signatures. `None` if the policy does not
    /// believe it.
    pub fn shortest(&self, signed: &SignedCheckpoint) -> Option<SignedCheckpoint> {
        let log = self.logs.iter().find(|log| signed.verified_by(&log.key).is_some())?;
        let newest = |w: &Witness| w.key.newest(signed).map(|(_, signature)| signature.clone());
        let newest: Vec<_> = self.witnesses.iter().map(newest).collect();
        let weight = |place: usize| {
            let signature = newest[place].as_ref()?;
            Some(line_len(&signature.name, signature.bytes.len()))
        };
        let (_, mut places) = self.quorum.lightest(&weight)?;
        places.sort_unstable();
        let mut note = Note::new(signed.note().text().to_owned()).ok()?;
        log.key.lines(signed.note()).take(1).cloned().for_each(|s| note.add(s));
        places.into_iter().filter_map(|n| newest[n].clone()).for_each(|s| note.add(s));
        SignedCheckpoint::new(note).ok()
    }

    /// The most bytes that a proof has whose checkpoint carries no more than this policy wants
    /// ([`Policy::shortest`]), whichever of the witnesses cosign.
    pub fn largest_proof(&self) -> usize {
        let weight = |place: usize| {
            let key = &self.witnesses[place].key;
            line_len(key.name(), key.signature_len())
        };
        let log = |log: &Log| {
            let name = log.key.name();
            name.as_str().len() + "\n".len() + line_len(name, log.key.signature_len())
        };
        let number = u64::MAX.to_string().len() + "\n".len();
        let hash = Hash::empty().to_string().len() + "\n".len();
        let fixed = crate::proof::HEADER.len() + "\nindex \n\n".len() + 2 * number + hash;
        let log = self.logs.iter().map(log).max().unwrap_or_default();
        fixed + HEIGHT * hash + log + self.quorum.heaviest(&weight)
    }

    /// Whether two checkpoints can each have a quorum with no witness in common: then the log alone can show two
    /// histories, though every witness is honest.
    pub fn splits(&self) -> bool {
        self.quorum.splits()
    }

    /// The number of witnesses in the smallest quorum.
    pub fn smallest_quorum(&self) -> usize {
        self.quorum.lightest(&|_| Some(1)).map_or(0, |(count, _)| count)
    }

    /// The latest time at or after which the quorum has cosigned. The newest signatures are verified first, and no more
    /// of them than it takes.
    fn quorum_time(&self, signed: &SignedCheckpoint) -> Result<u64, Refused> {
        let all = self.witnesses.iter().enumerate();
        let mut claims: Vec<_> =
            all.flat_map(|(place, w)| w.key.claims(signed).map(move |c| (place, c))).collect();
        claims.sort_by_key(|(_, claim)| std::cmp::Reverse(claim.time));
        let mut cosigned = BTreeSet::new();
        for (place, claim) in claims {
            if !cosigned.contains(&place) && claim.holds(&self.witnesses[place].key, signed) {
                cosigned.insert(place);
                if self.quorum.reached(&|place| cosigned.contains(&place)) {
                    return Ok(claim.time);
                }
            }
        }
        Err(Refused::ShortQuorum { have: cosigned.len(), quorum: self.quorum_text() })
    }

    /// What the quorum is, for people.
    pub fn quorum_text(&self) -> String {
        struct Text<'a>(&'a Policy, &'a Quorum);
        impl fmt::Display for Text<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.1 {
                    Quorum::Nobody => f.write_str("none"),
                    Quorum::Witness(place) => f.write_str(&self.0.witnesses[*place].name),
                    Quorum::Group { name, needed, members } => {
                        write!(f, "{name}: {needed} of {}", members.len())
                    }
                }
            }
        }
        Text(self, &self.quorum).to_string()
    }
}

#[derive(Default)]
struct Parser {
    logs: Vec<Log>,
    witnesses: Vec<Witness>,
    names: BTreeMap<Vec<u8>, Quorum>,
    used: BTreeSet<Vec<u8>>,
    quorum: Option<Quorum>,
}

impl Parser {
    fn line(&mut self, line: &[u8]) -> Result<(), String> {
        if let Some(control) = line.iter().find(|b| b.is_ascii_control() && **b != b'\t') {
            return Err(match control {
                b'\r' => "it ends with a carriage return: lines end with a newline alone".into(),
                other => format!("it has the control character {other:#04x}"),
            });
        }
        let words = line.split(|b| matches!(b, b' ' | b'\t')).filter(|w| !w.is_empty());
        let words: Vec<&[u8]> = words.collect();
        match words[..] {
            [] => Ok(()),
            [word, ..] if word.starts_with(b"#") => Ok(()),
            [b"log", key] => self.log(key, None),
            [b"log", key, url] => self.log(key, Some(url)),
            [b"witness", name, key] => self.witness(name, key, None),
            [b"witness", name, key, url] => self.witness(name, key, Some(url)),
            [b"group", name, needed, ref members @ ..] => self.group(name, needed, members),
            [b"quorum", name] => self.quorum(name),
            [word, ..] => Err(format!(
                "{:?} with {} more words is none of: log VKEY [URL], witness NAME VKEY [URL], group NAME K|any|all NAME…, quorum NAME",
                text(word),
                words.len() - 1
            )),
        }
    }

    fn log(&mut self, key: &[u8], url: Option<&[u8]>) -> Result<(), String> {
        let key = LogKey::parse(vkey(key)?).map_err(|e| e.to_string())?;
        if self.logs.iter().any(|l| l.key.as_bytes() == key.as_bytes()) {
            return Err("this log stands there twice".into());
        }
        full(self.logs.len(), "logs")?;
        self.logs.push(Log { key, url: url.map(text) });
        Ok(())
    }

    fn witness(&mut self, name: &[u8], key: &[u8], url: Option<&[u8]>) -> Result<(), String> {
        let key = WitnessKey::parse(vkey(key)?).map_err(|e| e.to_string())?;
        if self.witnesses.iter().any(|w| w.key.as_bytes() == key.as_bytes()) {
            return Err("this witness stands there twice: it would count twice".into());
        }
        full(self.witnesses.len(), "witnesses")?;
        self.define(name, Quorum::Witness(self.witnesses.len()))?;
        self.witnesses.push(Witness { name: text(name), key, url: url.map(text) });
        Ok(())
    }

    fn group(&mut self, name: &[u8], needed: &[u8], names: &[&[u8]]) -> Result<(), String> {
        full(self.names.len().saturating_sub(self.witnesses.len()), "groups")?;
        let needed = match needed {
            b"any" => 1,
            b"all" => names.len(),
            k => {
                let k = str::from_utf8(k).ok().and_then(crate::text::decimal);
                k.and_then(|k| k.try_into().ok()).unwrap_or(0)
            }
        };
        if needed < 1 || needed > names.len() {
            return Err(format!(
                "a group of {} needs any, all, or a number from 1 to that",
                names.len()
            ));
        }
        let mut members = Vec::new();
        for member in names {
            members.push(self.names.get(*member).cloned().ok_or_else(|| undefined(member))?);
            if !self.used.insert(member.to_vec()) {
                return Err(format!(
                    "{:?} is a member already: it would count twice",
                    text(member)
                ));
            }
        }
        self.define(name, Quorum::Group { name: text(name), needed, members })
    }

    fn quorum(&mut self, name: &[u8]) -> Result<(), String> {
        if self.quorum.is_some() {
            return Err("there is a `quorum` line already".into());
        }
        let quorum = match name {
            b"none" => Quorum::Nobody,
            name => self.names.get(name).cloned().ok_or_else(|| undefined(name))?,
        };
        self.quorum = Some(quorum);
        Ok(())
    }

    fn define(&mut self, name: &[u8], quorum: Quorum) -> Result<(), String> {
        if name == b"none" {
            return Err("the name `none` means that no witness is wanted".into());
        }
        if self.names.insert(name.to_vec(), quorum).is_some() {
            return Err(format!("{:?} is defined twice", text(name)));
        }
        Ok(())
    }
}

/// For people; names are told apart by their octets.
fn text(octets: &[u8]) -> String {
    String::from_utf8_lossy(octets).into_owned()
}

fn vkey(octets: &[u8]) -> Result<&str, String> {
    str::from_utf8(octets).map_err(|_| "its key is not UTF-8".into())
}

fn undefined(name: &[u8]) -> String {
    format!("{:?} is not defined above", text(name))
}

fn full(have: usize, what: &str) -> Result<(), String> {
    match have < MAX_EACH {
        true => Ok(()),
        false => Err(format!("more than {MAX_EACH} {what}")),
    }
}
