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
use crate::note::LogKey;

/// The most logs, witnesses or groups of a policy.
const MAX_EACH: usize = 64;
/// The largest policy file that is read, in bytes. ML-DSA-44 keys have 1.8 kB each.
pub const MAX_POLICY: usize = 512 * 1024;
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
    /// Parses a policy file.
    pub fn parse(text: &str) -> Result<Policy, PolicyError> {
        let mut parser = Parser::default();
        let mut last = 0;
        if text.len() > MAX_POLICY {
            return Err(PolicyError { line: 1, problem: "the policy is too large".into() });
        }
        for (n, line) in text.lines().enumerate() {
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
    names: BTreeMap<String, Quorum>,
    used: BTreeSet<String>,
    quorum: Option<Quorum>,
}

impl Parser {
    fn line(&mut self, line: &str) -> Result<(), String> {
        let line = line.trim_matches([' ', '\t']);
        if line.is_empty() || line.starts_with('#') {
            return Ok(());
        }
        if line.chars().any(|c| c.is_ascii_control() && c != '\t') {
            return Err("it has control characters".into());
        }
        let words: Vec<&str> = line.split([' ', '\t']).filter(|w| !w.is_empty()).collect();
        match words[..] {
            ["log", key] => self.log(key, None),
            ["log", key, url] => self.log(key, Some(url)),
            ["witness", name, key] => self.witness(name, key, None),
            ["witness", name, key, url] => self.witness(name, key, Some(url)),
            ["group", name, needed, ref members @ ..] => self.group(name, needed, members),
            ["quorum", name] => self.quorum(name),
            [word, ..] => Err(format!(
                "{word:?} with {} more words is none of: log VKEY [URL], witness NAME VKEY [URL], group NAME K|any|all NAME…, quorum NAME",
                words.len() - 1
            )),
            [] => Ok(()),
        }
    }

    fn log(&mut self, key: &str, url: Option<&str>) -> Result<(), String> {
        let key = LogKey::parse(key).map_err(|e| e.to_string())?;
        if self.logs.iter().any(|l| l.key.as_bytes() == key.as_bytes()) {
            return Err("this log stands there twice".into());
        }
        full(self.logs.len(), "logs")?;
        self.logs.push(Log { key, url: url.map(str::to_owned) });
        Ok(())
    }

    fn witness(&mut self, name: &str, key: &str, url: Option<&str>) -> Result<(), String> {
        let key = WitnessKey::parse(key).map_err(|e| e.to_string())?;
        if self.witnesses.iter().any(|w| w.key.as_bytes() == key.as_bytes()) {
            return Err("this witness stands there twice: it would count twice".into());
        }
        full(self.witnesses.len(), "witnesses")?;
        self.define(name, Quorum::Witness(self.witnesses.len()))?;
        self.witnesses.push(Witness { name: name.to_owned(), key, url: url.map(str::to_owned) });
        Ok(())
    }

    fn group(&mut self, name: &str, needed: &str, names: &[&str]) -> Result<(), String> {
        full(self.names.len().saturating_sub(self.witnesses.len()), "groups")?;
        let needed = match needed {
            "any" => 1,
            "all" => names.len(),
            k => crate::text::decimal(k).and_then(|k| k.try_into().ok()).unwrap_or(0),
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
            if !self.used.insert((*member).to_owned()) {
                return Err(format!("{member:?} is a member already: it would count twice"));
            }
        }
        self.define(name, Quorum::Group { name: name.to_owned(), needed, members })
    }

    fn quorum(&mut self, name: &str) -> Result<(), String> {
        if self.quorum.is_some() {
            return Err("there is a `quorum` line already".into());
        }
        let quorum = match name {
            "none" => Quorum::Nobody,
            name => self.names.get(name).cloned().ok_or_else(|| undefined(name))?,
        };
        self.quorum = Some(quorum);
        Ok(())
    }

    fn define(&mut self, name: &str, quorum: Quorum) -> Result<(), String> {
        if name == "none" {
            return Err("the name `none` means that no witness is wanted".into());
        }
        if self.names.insert(name.to_owned(), quorum).is_some() {
            return Err(format!("{name:?} is defined twice"));
        }
        Ok(())
    }
}

fn undefined(name: &str) -> String {
    format!("{name:?} is not defined above")
}

fn full(have: usize, what: &str) -> Result<(), String> {
    match have < MAX_EACH {
        true => Ok(()),
        false => Err(format!("more than {MAX_EACH} {what}")),
    }
}
