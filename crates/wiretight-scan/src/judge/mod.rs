//! Judgements from facts: a level for each endpoint with the reasons, and whether it meets the
//! profiles of standards.

pub mod marks;
mod profiles;
pub mod rules;

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::hash::BuildHasher;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use profiles::{Profile, UnknownProfile};

use crate::Reached;
use crate::certificate::Chain;
use crate::facts::{Answer, Facts};
use rules::{RULES, Seen, in_short};

/// Judges facts by the [table of rules](RULES) and by each [profile](Profile).
///
/// A problem that was found lowers the level. An inconclusive fact that might be a weakness lowers
/// it to `unknown`, because a level must not claim what was not observed. An endpoint that is weak
/// already stays weak. Untested facts do not count, except those that every level needs: versions,
/// suites, certificates.
pub fn judge(reached: &Reached, facts: &Facts, chains: &[Chain]) -> Judgement {
    let seen = Seen { reached, facts, chains };
    let reasons = RULES.iter().filter_map(|rule| rule.reason(&seen)).collect();
    let profiles = Profile::ALL.iter().map(|profile| profile.verdict(&seen)).collect();
    judgement(reasons, profiles)
}

/// Like [`judge`] for a quick scan, which tests almost nothing: of all open questions, only the worst
/// becomes a reason. Results are cached, because most hosts of a large scan have the same facts.
pub fn judge_in_short(reached: &Reached, facts: &Facts) -> Arc<Judgement> {
    const MOST: usize = 256;
    type Known = HashMap<u64, (Reached, Facts, Arc<Judgement>)>;
    thread_local! {
        static KNOWN: RefCell<Known> = RefCell::default();
    }
    KNOWN.with_borrow_mut(|known| {
        let hash = known.hasher().hash_one((reached, facts));
        match known.get(&hash) {
            Some((as_reached, as_facts, judged)) if as_reached == reached && as_facts == facts => {
                judged.clone()
            }
            _ => {
                if known.len() >= MOST {
                    known.clear();
                }
                let judged = Arc::new(judge_in_short_anew(reached, facts));
                known.insert(hash, (reached.clone(), facts.clone(), judged.clone()));
                judged
            }
        }
    })
}

fn judge_in_short_anew(reached: &Reached, facts: &Facts) -> Judgement {
    let seen = Seen { reached, facts, chains: &[] };
    let profiles = Profile::ALL.iter().map(|profile| profile.verdict_in_short(&seen)).collect();
    judgement(in_short(RULES, &seen), profiles)
}

fn judgement(mut reasons: Vec<Reason>, profiles: Vec<Verdict>) -> Judgement {
    reasons.sort_by_key(|reason| worst_first(reason.level));
    let level = reasons.first().map_or(Level::Strong, |reason| reason.level);
    Judgement { level, reasons, profiles }
}

/// The order in which reasons and rows are reported: `Unknown`, which may be plaintext, comes between weak and acceptable.
pub fn worst_first(level: Level) -> u8 {
    match level {
        Level::Plaintext => 0,
        Level::Weak => 1,
        Level::Unknown => 2,
        Level::Acceptable => 3,
        Level::Strong => 4,
    }
}

/// How well an endpoint protects its traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Could not be determined.
    Unknown,
    /// Not encrypted.
    Plaintext,
    /// Encrypted, but breakable, or without proof of the server's identity.
    Weak,
    /// Meets current standards.
    Acceptable,
    /// Also protects traffic that is recorded today against decryption in the future.
    Strong,
}

impl Level {
    /// From the worst to the best; `unknown` first.
    pub const ALL: [Self; 5] =
        [Self::Unknown, Self::Plaintext, Self::Weak, Self::Acceptable, Self::Strong];
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::Plaintext => "plaintext",
            Self::Weak => "weak",
            Self::Acceptable => "acceptable",
            Self::Strong => "strong",
        })
    }
}

/// Not the name of a level.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown level {0:?}; use unknown, plaintext, weak, acceptable or strong")]
pub struct UnknownLevel(String);

impl std::str::FromStr for Level {
    type Err = UnknownLevel;

    fn from_str(text: &str) -> Result<Self, UnknownLevel> {
        let found = Self::ALL.into_iter().find(|level| level.to_string() == text);
        found.ok_or_else(|| UnknownLevel(text.chars().take(50).collect()))
    }
}

/// The judgement of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judgement {
    /// The lowest level of all reasons. A weakness that was found outweighs open questions.
    pub level: Level,
    /// Why the level is not better, the worst first.
    pub reasons: Vec<Reason>,
    /// Whether it meets each profile.
    pub profiles: Vec<Verdict>,
}

/// Why an endpoint does not have a better level, or does not meet a profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// The rule's id, which is as stable as a fact's.
    pub rule: Cow<'static, str>,
    /// The fact on which it is based.
    pub fact: Cow<'static, str>,
    /// Yes if the problem was found; inconclusive or untested if it may exist.
    pub answer: Answer,
    /// The best level that is still possible.
    pub level: Level,
    /// The problem, with the observed values.
    pub what: String,
    /// The standard that requires it, with the section.
    pub standard: Cow<'static, str>,
    /// What to change.
    pub change: Cow<'static, str>,
}

/// Whether a profile is met.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The profile's name: `bcp195`.
    pub profile: Cow<'static, str>,
    /// Yes, no, or inconclusive if a fact that it needs is inconclusive.
    pub answer: Answer,
    /// Why not.
    pub reasons: Vec<Reason>,
}
