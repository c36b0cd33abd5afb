//! What facts are worth: a level for each endpoint with its reasons, and whether it meets the
//! profiles that standards set.

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

/// What these facts are worth, by the [table of rules](RULES) and by each [profile](Profile).
///
/// What was seen to be wrong lowers the level. What could not be told lowers it as well: to
/// `unknown` where it might be a weakness, for a level must not claim what nobody saw; but what is
/// weak already stays weak, whatever else remains open. What was not asked does not count, save for
/// the questions without which no level means anything: versions, suites, certificates.
pub fn judge(reached: &Reached, facts: &Facts, chains: &[Chain]) -> Judgement {
    let seen = Seen { reached, facts, chains };
    let reasons = RULES.iter().filter_map(|rule| rule.reason(&seen)).collect();
    let profiles = Profile::ALL.iter().map(|profile| profile.verdict(&seen)).collect();
    judgement(reasons, profiles)
}

/// The same level and answers where next to nothing was asked: of all that could not be told, the
/// worst alone is named. Of many hosts most say the same: what that is worth is remembered.
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

/// `Unknown` stands between what was seen to be weak and what is acceptable.
fn worst_first(level: Level) -> u8 {
    match level {
        Level::Plaintext => 0,
        Level::Weak => 1,
        Level::Unknown => 2,
        Level::Acceptable => 3,
        Level::Strong => 4,
    }
}

/// How well an endpoint protects what it carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// It could not be told.
    Unknown,
    /// In the clear.
    Plaintext,
    /// Encrypted, and known to be breakable, or to nobody in particular.
    Weak,
    /// As standards demand it today.
    Acceptable,
    /// Against those who record today and decrypt in twenty years, too.
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

/// This is no level.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no level is called {0:?}; there are unknown, plaintext, weak, acceptable and strong")]
pub struct UnknownLevel(String);

impl std::str::FromStr for Level {
    type Err = UnknownLevel;

    fn from_str(text: &str) -> Result<Self, UnknownLevel> {
        let found = Self::ALL.into_iter().find(|level| level.to_string() == text);
        found.ok_or_else(|| UnknownLevel(text.chars().take(50).collect()))
    }
}

/// What facts are worth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judgement {
    /// The lowest that any reason leaves; what was seen to be weak is not made `unknown` by what
    /// else could not be told.
    pub level: Level,
    /// What keeps it from being better, the worst first.
    pub reasons: Vec<Reason>,
    /// Whether it meets each profile.
    pub profiles: Vec<Verdict>,
}

/// What keeps an endpoint from a better level, or from meeting a profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// The rule that says so; its id is as stable as a fact's.
    pub rule: Cow<'static, str>,
    /// The fact that it follows from.
    pub fact: Cow<'static, str>,
    /// Yes where it was seen; inconclusive or untested where it may be so and nobody can tell.
    pub answer: Answer,
    /// The best level that it leaves.
    pub level: Level,
    /// What is wrong, with the values seen.
    pub what: String,
    /// The standard that says so, with its section.
    pub standard: Cow<'static, str>,
    /// What to change.
    pub change: Cow<'static, str>,
}

/// Whether a profile is met.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The profile's name: `bcp195`.
    pub profile: Cow<'static, str>,
    /// Yes, no, or inconclusive where a fact that it needs is.
    pub answer: Answer,
    /// Why not.
    pub reasons: Vec<Reason>,
}
