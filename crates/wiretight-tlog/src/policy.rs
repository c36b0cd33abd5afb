//! Policies (C2SP tlog-policy): the trusted logs, and the witnesses that must have cosigned.
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

/// The most logs, witnesses or groups in a policy.
const MAX_EACH: usize = 64;
/// The largest policy file accepted, in bytes. An ML-DSA-44 key takes 1.8 kB.
pub const MAX_POLICY: usize = 512 * 1024;
/// The tree height assumed by [`Policy::largest_proof`]: a log of 2^40 entries.
const HEIGHT: usize = 40;
/// How far a witness's clock may be ahead of ours, in seconds.
pub const MAX_CLOCK_SKEW: u64 = 300;

/// A problem in a policy file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct PolicyError {
    /// The line number, from 1. For something missing, the line after the last.
    pub line: usize,
    pub problem: String,
}

/// Why a policy rejects a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No log in the policy signed it.
    #[error("no log in the policy signed the checkpoint (its origin is {origin:?})")]
    UnknownLog { origin: String },
    /// The witnesses that cosigned it are not a quorum.
    #[error(
        "{have} of the policy's witnesses cosigned the checkpoint, which is not a quorum ({quorum})"
    )]
    ShortQuorum {
        /// The number of witnesses that cosigned.
        have: usize,
        quorum: String,
    },
    /// The quorum was reached too long ago.
    #[error("the witnesses cosigned the checkpoint {age} s ago; at most {allowed} s are allowed")]
    Stale {
        /// Seconds since the quorum was reached.
        age: u64,
        /// The largest age allowed, in seconds.
        allowed: u64,
    },
    /// The quorum was reached in the future.
    #[error(
        "the witnesses cosigned the checkpoint {ahead} s in the future; a clock is probably wrong, here or at the witnesses"
    )]
    FromTheFuture {
        /// Seconds until that time.
        ahead: u64,
    },
}

/// A log and its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    pub key: LogKey,
    /// The URL prefix of the log's files.
    pub url: Option<String>,
}

/// A witness and its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witness {
    /// The name in this policy.
    pub name: String,
    pub key: WitnessKey,
    /// The submission prefix.
    pub url: Option<String>,
}

/// The witnesses that must have cosigned.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Quorum {
    Nobody,
    /// A witness, by its index in the policy.
    Witness(usize),
    /// At least `needed` of the members.
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

    /// The lightest quorum, given the weight of each witness (`None` if it did not cosign): its total weight and its
    /// witnesses.
    fn lightest(&self, weight: &impl Fn(usize) -> Option<usize>) -> Option<(usize, Vec<usize>)> {
        match self {
            Quorum::Nobody => Some((0, Vec::new())),
            Quorum::Witness(place) => Some((weight(*place)?, vec![*place])),
            Quorum::Group { needed, members, .. } => {
                let mut all: Vec<_> = members.iter().filter_map(|m| m.lightest(weight)).collect();
                // No witness is in two members, so the lightest members make up the lightest group.
                all.sort_by_key(|(weight, _)| *weight);
                (all.len() >= *needed).then(|| {
                    all.truncate(*needed);
                    (all.iter().map(|m| m.0).sum(), all.into_iter().flat_map(|m| m.1).collect())
                })
            }
        }
    }

    /// The weight of the heaviest quorum from which no witness can be omitted.
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

    /// Whether there are two quorums with no witness in common.
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

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    logs: Vec<Log>,
    witnesses: Vec<Witness>,
    quorum: Quorum,
}

/// A checkpoint accepted by a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witnessed {
    checkpoint: Checkpoint,
    time: Option<u64>,
}

impl Witnessed {
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// When the quorum was reached, in seconds since 1970: the latest time such that the witnesses that cosigned at
    /// this time or later are a quorum. `None` if the policy requires no witnesses.
    pub fn time(&self) -> Option<u64> {
        self.time
    }

    /// Checks the age of the cosignatures. Always succeeds if the policy requires no witnesses.
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
    /// Parses a policy file. Non-ASCII bytes are compared as they are.
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

    /// A policy that trusts one log without witnesses.
    pub fn self_attested(key: LogKey) -> Policy {
        Policy { logs: vec![Log { key, url: None }], witnesses: Vec::new(), quorum: Quorum::Nobody }
    }

    /// The same witnesses and quorum, for one other log.
    pub fn for_log(&self, key: LogKey) -> Policy {
        Policy { logs: vec![Log { key, url: None }], ..self.clone() }
    }

    /// The same policy without addresses, for publication.
    pub fn without_urls(mut self) -> Policy {
        self.logs.iter_mut().for_each(|log| log.url = None);
        self.witnesses.iter_mut().for_each(|witness| witness.url = None);
        self
    }

    pub fn logs(&self) -> &[Log] {
        &self.logs
    }

    pub fn witnesses(&self) -> &[Witness] {
        &self.witnesses
    }

    /// Whether it requires any witness.
    pub fn wants_witnesses(&self) -> bool {
        self.quorum != Quorum::Nobody
    }

    /// Whether these witnesses (by index) are a quorum.
    pub fn is_quorum(&self, cosigned: impl Fn(usize) -> bool) -> bool {
        self.quorum.reached(&cosigned)
    }

    /// Whether every quorum contains one of these witnesses. If so, together they know the newest checkpoint that any
    /// verifier with this policy has accepted.
    pub fn is_in_every_quorum(&self, asked: impl Fn(usize) -> bool) -> bool {
        !self.quorum.reached(&|place| !asked(place)) || !self.wants_witnesses()
    }

    /// The checkpoint, if a log in this policy signed it and a quorum cosigned it.
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

    /// The checkpoint with only the signatures that this policy needs: the newest one of each witness, and of all
    /// possible quorums the one with the shortest signatures. `None` if the policy rejects the checkpoint.
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

    /// The largest size, in bytes, of a proof whose checkpoint was reduced by [`Policy::shortest`], for any choice of
    /// cosigning witnesses.
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

    /// Whether two quorums can have no witness in common. If so, the log alone can show two histories even though
    /// every witness is honest.
    pub fn splits(&self) -> bool {
        self.quorum.splits()
    }

    /// The number of witnesses in the smallest quorum.
    pub fn smallest_quorum(&self) -> usize {
        self.quorum.lightest(&|_| Some(1)).map_or(0, |(count, _)| count)
    }

    /// When the quorum was reached (see [`Witnessed::time`]). Verifies the newest signatures first and stops at a
    /// quorum.
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

    /// A description of the quorum for people.
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

/// A policy file. [`Policy::parse`] reads it as the same policy if its names are UTF-8.
impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = |url: &Option<String>| url.as_ref().map(|u| format!(" {u}")).unwrap_or_default();
        for log in &self.logs {
            writeln!(f, "log {}{}", log.key, url(&log.url))?;
        }
        for witness in &self.witnesses {
            writeln!(f, "witness {} {}{}", witness.name, witness.key, url(&witness.url))?;
        }
        let quorum = self.groups(&self.quorum, f)?;
        writeln!(f, "quorum {quorum}")
    }
}

impl Policy {
    /// Writes the groups that a quorum consists of, each after its members. Returns its name.
    fn groups<'a>(
        &'a self,
        quorum: &'a Quorum,
        f: &mut fmt::Formatter<'_>,
    ) -> Result<&'a str, fmt::Error> {
        match quorum {
            Quorum::Nobody => Ok("none"),
            Quorum::Witness(place) => Ok(&self.witnesses[*place].name),
            Quorum::Group { name, needed, members } => {
                let mut names = String::new();
                for member in members {
                    names.push(' ');
                    names.push_str(self.groups(member, f)?);
                }
                writeln!(f, "group {name} {needed}{names}")?;
                Ok(name)
            }
        }
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
                b'\r' => "it ends with a carriage return; end lines with a newline only".into(),
                other => format!("it contains the control character {other:#04x}"),
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
                "{:?} followed by {} words is not a valid line; valid are: log VKEY [URL], witness NAME VKEY [URL], group NAME K|any|all NAME…, quorum NAME",
                text(word),
                words.len() - 1
            )),
        }
    }

    fn log(&mut self, key: &[u8], url: Option<&[u8]>) -> Result<(), String> {
        let key = LogKey::parse(vkey(key)?).map_err(|e| e.to_string())?;
        if self.logs.iter().any(|l| l.key.as_bytes() == key.as_bytes()) {
            return Err("this log is listed twice".into());
        }
        full(self.logs.len(), "logs")?;
        self.logs.push(Log { key, url: url.map(text) });
        Ok(())
    }

    fn witness(&mut self, name: &[u8], key: &[u8], url: Option<&[u8]>) -> Result<(), String> {
        let key = WitnessKey::parse(vkey(key)?).map_err(|e| e.to_string())?;
        if self.witnesses.iter().any(|w| w.key.as_bytes() == key.as_bytes()) {
            return Err("this witness is listed twice and would count twice".into());
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
                "a group of {0} needs `any`, `all`, or a number from 1 to {0}",
                names.len()
            ));
        }
        let mut members = Vec::new();
        for member in names {
            members.push(self.names.get(*member).cloned().ok_or_else(|| undefined(member))?);
            if !self.used.insert(member.to_vec()) {
                return Err(format!(
                    "{:?} is already in a group and would count twice",
                    text(member)
                ));
            }
        }
        self.define(name, Quorum::Group { name: text(name), needed, members })
    }

    fn quorum(&mut self, name: &[u8]) -> Result<(), String> {
        if self.quorum.is_some() {
            return Err("there is already a `quorum` line".into());
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
            return Err("the name `none` is reserved; it means that no witness is required".into());
        }
        if self.names.insert(name.to_vec(), quorum).is_some() {
            return Err(format!("{:?} is defined twice", text(name)));
        }
        Ok(())
    }
}

/// For messages only: names are compared as bytes.
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
