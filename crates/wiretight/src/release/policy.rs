//! Policies for releases: a tlog-policy (C2SP) with four more kinds of lines.
//!
//! ```text
//! log        example.org/wiretight-log+1f2e3d4c+AQ…
//! witness    ngo  witness.ngo.example+…
//! witness    uni  witness.uni.example+…
//! witness    peer witness.peer.example+…
//! group      independent 2 ngo uni peer
//! quorum     independent
//! publisher  example.org/wiretight+…
//! rebuilder  debian rebuild.debian.example+…
//! rebuilder  uni    rebuild.uni.example+…
//! rebuilds   1
//! max-age    90d
//! ```
//!
//! `rebuilds` is how many of the rebuilders must have made the same file, and `max-age` how long ago the witnesses may
//! have cosigned. Both are required: a policy says what it does without.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use wiretight_tlog::policy::MAX_POLICY;
use wiretight_tlog::{LogKey, Policy, PolicyError};

use crate::config::parse_duration;
use crate::log::read_bounded;

/// The most rebuilders in a policy.
const MAX_REBUILDERS: usize = 64;

/// Somebody who builds releases again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rebuilder {
    /// The name in this policy.
    pub name: String,
    pub key: LogKey,
}

/// Who is believed about releases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleasePolicy {
    /// The log and its witnesses.
    pub log: Policy,
    /// Who signs sources and releases.
    pub publisher: LogKey,
    pub rebuilders: Vec<Rebuilder>,
    /// How many of them must have made the same file.
    pub rebuilds: usize,
    /// The largest age of the cosignatures; `None` if any will do.
    pub max_age: Option<Duration>,
}

/// Why a policy file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReleasePolicyError {
    #[error("cannot read the release policy {path}")]
    Unreadable { path: String, source: std::io::Error },
    #[error("{path}, {error}")]
    Malformed { path: String, error: PolicyError },
}

impl ReleasePolicy {
    pub fn read(path: &Path) -> Result<ReleasePolicy, ReleasePolicyError> {
        let shown = || path.display().to_string();
        let text = read_bounded(path, MAX_POLICY)
            .map_err(|source| ReleasePolicyError::Unreadable { path: shown(), source })?;
        ReleasePolicy::parse(&text)
            .map_err(|error| ReleasePolicyError::Malformed { path: shown(), error })
    }

    pub fn parse(text: &[u8]) -> Result<ReleasePolicy, PolicyError> {
        let lossy = String::from_utf8_lossy(text);
        let (mut rest, mut own) = (String::new(), Own::default());
        let mut last = 0;
        for (n, line) in lossy.strip_suffix('\n').unwrap_or(&lossy).split('\n').enumerate() {
            last = n + 1;
            let wrong = |problem| PolicyError { line: last, problem };
            if !own.line(line).map_err(wrong)? {
                rest.push_str(line);
            }
            // A line that is ours is empty there, so that the numbers of lines are right.
            rest.push('\n');
        }
        let log = Policy::parse(&rest)?;
        let missing =
            |what| PolicyError { line: last + 1, problem: format!("there is no `{what}` line") };
        if log.logs().is_empty() {
            return Err(missing("log"));
        }
        let policy = ReleasePolicy {
            log,
            publisher: own.publisher.ok_or_else(|| missing("publisher"))?,
            rebuilds: own.rebuilds.ok_or_else(|| missing("rebuilds"))?,
            max_age: own.max_age.ok_or_else(|| missing("max-age"))?,
            rebuilders: own.rebuilders,
        };
        if policy.rebuilds > policy.rebuilders.len() {
            let problem = format!(
                "`rebuilds {}` needs as many rebuilders, but there are {}",
                policy.rebuilds,
                policy.rebuilders.len()
            );
            return Err(PolicyError { line: last, problem });
        }
        if policy.max_age.is_some() && !policy.log.wants_witnesses() {
            let problem = "`max-age` needs witnesses, whose cosignatures tell the age: name a quorum, or write `max-age any`".into();
            return Err(PolicyError { line: last, problem });
        }
        Ok(policy)
    }

    /// The weaknesses of a valid policy, for people.
    pub fn weaknesses(&self) -> Vec<String> {
        let mut found = crate::log::weaknesses(&self.log);
        if self.rebuilds == 0 {
            found.push("no rebuilder has to confirm a release: whoever has the publisher's key can put anything into a program, although in public".into());
        }
        if self.max_age.is_none() {
            found.push("the cosignatures may have any age: a mirror can hold back a newer release for as long as this one has not expired".into());
        }
        found
    }
}

#[derive(Default)]
struct Own {
    publisher: Option<LogKey>,
    rebuilders: Vec<Rebuilder>,
    names: BTreeSet<String>,
    rebuilds: Option<usize>,
    max_age: Option<Option<Duration>>,
}

impl Own {
    /// Whether the line is one of ours.
    fn line(&mut self, line: &str) -> Result<bool, String> {
        let words: Vec<&str> = line.split([' ', '\t']).filter(|w| !w.is_empty()).collect();
        match words[..] {
            ["publisher", key] => {
                let key = ed25519(key)?;
                once(&mut self.publisher, key, "publisher")?;
            }
            ["rebuilder", name, key] => {
                let key = ed25519(key)?;
                if self.rebuilders.iter().any(|r| r.key.as_bytes() == key.as_bytes()) {
                    return Err("this rebuilder is listed twice and would count twice".into());
                }
                if self.rebuilders.len() == MAX_REBUILDERS {
                    return Err(format!("more than {MAX_REBUILDERS} rebuilders"));
                }
                if !self.names.insert(name.to_owned()) {
                    return Err(format!("the rebuilder {name:?} is defined twice"));
                }
                self.rebuilders.push(Rebuilder { name: name.to_owned(), key });
            }
            ["rebuilds", needed] => {
                let number = needed.parse().ok().filter(|n: &usize| n.to_string() == needed);
                let number = number.ok_or("`rebuilds` needs a number from 0")?;
                once(&mut self.rebuilds, number, "rebuilds")?;
            }
            ["max-age", age] => {
                let age = match age {
                    "any" => None,
                    age => Some(parse_duration(age).filter(|age| !age.is_zero()).ok_or(
                        "`max-age` needs `any`, or a time as in `90d` (units: d, h, m, s)",
                    )?),
                };
                once(&mut self.max_age, age, "max-age")?;
            }
            ["publisher" | "rebuilder" | "rebuilds" | "max-age", ..] => {
                return Err("valid are: publisher VKEY, rebuilder NAME VKEY, rebuilds NUMBER, max-age TIME|any".into());
            }
            _ => return Ok(false),
        }
        if let Some(publisher) = &self.publisher
            && self.rebuilders.iter().any(|r| r.key.as_bytes() == publisher.as_bytes())
        {
            return Err("a rebuilder has the publisher's key, and would confirm itself".into());
        }
        Ok(true)
    }
}

fn ed25519(vkey: &str) -> Result<LogKey, String> {
    let key = LogKey::parse(vkey).map_err(|e| e.to_string())?;
    // An ML-DSA-44 key of the log format signs checkpoints only.
    if key.as_bytes().len() == 32 { Ok(key) } else { Err("it is not an Ed25519 key".into()) }
}

fn once<T>(place: &mut Option<T>, value: T, what: &str) -> Result<(), String> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(format!("there is already a `{what}` line")),
    }
}
