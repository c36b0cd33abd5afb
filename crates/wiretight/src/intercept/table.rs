//! Our table in the kernel: made, changed, compared with what it was, made again.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::Value;
use wiretight_proxy::intercept::listing::Listing;
use wiretight_proxy::intercept::rules::{Rules, TABLE};

use super::{InterceptError, nft};

/// Where control groups (v2) are; `nft` looks there, too.
const CGROUPS: &str = "/sys/fs/cgroup";

/// What we have put in force.
#[derive(Default)]
pub(super) struct Table {
    applied: Option<Applied>,
}

struct Applied {
    rules: Rules,
    /// How the kernel lists it.
    looks: Value,
    /// Those that are there, with the kernel's number of each: one that is made anew has another.
    cgroups: BTreeMap<String, u64>,
}

impl Table {
    /// The table that is there, if it is just what these rules say. No packet and no count is touched.
    pub(super) fn adopt(rules: &Rules) -> Result<Option<Table>, InterceptError> {
        // Which programs are picked, a list does not say for sure.
        let listing = match nft::list() {
            Err(InterceptError::Unreadable(_)) => None,
            listing => listing?.filter(|_| rules.cgroups.is_empty()),
        };
        let same = listing.map(|l| l.canonical()).filter(|looks| *looks == rules.expected());
        Ok(same.map(|looks| Table {
            applied: Some(Applied { rules: rules.clone(), looks, cgroups: BTreeMap::new() }),
        }))
    }

    pub(super) fn rules(&self) -> Option<&Rules> {
        self.applied.as_ref().map(|a| &a.rules)
    }

    /// Puts rules in force. What was counted stays, wherever the table is one that we know to make.
    pub(super) fn apply(&mut self, rules: &Rules) -> Result<(), InterceptError> {
        let there = match nft::list() {
            Err(InterceptError::Unreadable(_)) => return self.put(rules, true),
            listing => listing?,
        };
        let cgroups = cgroups(rules);
        if !cgroups.is_empty() {
            probe(&cgroups)?;
        }
        let looks = there.as_ref().map(|listing| listing.canonical());
        let known = self.applied.as_ref().filter(|a| looks.as_ref() == Some(&a.looks));
        let Some(known) = known else { return self.put(rules, there.is_some()) };
        let old = known.rules.clone();
        let picked_anew = known.rules != *rules || known.cgroups != cgroups;
        if let Some(change) = rules.change(&old)? {
            nft::apply(&change)?;
        }
        if !rules.cgroups.is_empty()
            && picked_anew
            && let Err(error) = pick(rules, &cgroups)
        {
            // As if nothing had been asked.
            self.put(&old, true)?;
            return Err(error);
        }
        self.look(rules)
    }

    /// Makes the table anew. `gone`: it was deleted, as far as is known.
    pub(super) fn mend(&mut self, gone: bool) -> Result<(), InterceptError> {
        let Some(applied) = &self.applied else { return Ok(()) };
        let rules = applied.rules.clone();
        // Without asking first what is there: each millisecond may let plaintext out. Both fail where they do not fit.
        let first = if gone { rules.create()? } else { rules.refill()? };
        if nft::apply(&first).is_ok() && self.finish(&rules).is_ok() {
            return Ok(());
        }
        // One that is not ours is an error here, and stays. One that was switched off and on counts as gone: only a
        // new one is known to be on.
        let (there, gone) = match nft::list() {
            Err(InterceptError::Unreadable(_)) => (true, true),
            listing => {
                let listing = listing?;
                let dormant = listing.as_ref().is_some_and(Listing::is_dormant);
                (listing.is_some(), gone || dormant)
            }
        };
        if gone && there {
            nft::apply(&rules.replace()?)?;
            return self.finish(&rules);
        }
        self.put(&rules, there)
    }

    /// `there`: a table of ours, with anything in it.
    fn put(&mut self, rules: &Rules, there: bool) -> Result<(), InterceptError> {
        if !there {
            nft::apply(&rules.create()?)?;
            let done = self.finish(rules);
            if done.is_err() {
                // Nothing is half applied.
                nft::run(&["delete", "table", "inet", TABLE], "")?;
                self.applied = None;
            }
            return done;
        }
        if nft::apply(&rules.refill()?).is_ok() && self.finish(rules).is_ok() {
            return Ok(());
        }
        // Of an older version, or with things in it that somebody has added.
        nft::apply(&rules.replace()?)?;
        self.finish(rules)
    }

    fn finish(&mut self, rules: &Rules) -> Result<(), InterceptError> {
        if !rules.cgroups.is_empty() {
            pick(rules, &cgroups(rules))?;
        }
        self.look(rules)
    }

    /// Whether it is as we left it.
    pub(super) fn is_intact(&self) -> Result<bool, InterceptError> {
        Ok(self.is_intact_but_for_groups()? && !self.is_stale())
    }

    /// Whether the kernel lists it as it did.
    pub(super) fn is_intact_but_for_groups(&self) -> Result<bool, InterceptError> {
        let Some(applied) = &self.applied else { return Ok(true) };
        match nft::list() {
            Err(InterceptError::NotOurs | InterceptError::Unreadable(_)) => Ok(false),
            listing => Ok(listing?.is_some_and(|l| l.canonical() == applied.looks)),
        }
    }

    /// Whether control groups have come, gone, or been made anew. Cheap.
    pub(super) fn is_stale(&self) -> bool {
        self.applied.as_ref().is_some_and(|a| cgroups(&a.rules) != a.cgroups)
    }

    /// Has those that are there now redirected.
    pub(super) fn pick_anew(&mut self) -> Result<(), InterceptError> {
        let Some(rules) = self.rules().cloned() else { return Ok(()) };
        pick(&rules, &cgroups(&rules))?;
        self.look(&rules)
    }

    /// Reads back what is in force.
    fn look(&mut self, rules: &Rules) -> Result<(), InterceptError> {
        let listing = nft::list()?.ok_or(InterceptError::Different)?;
        if !is_outline(rules, &listing) || listing.is_dormant() {
            return Err(InterceptError::Different);
        }
        let (looks, cgroups) = (listing.canonical(), cgroups(rules));
        self.applied = Some(Applied { rules: rules.clone(), looks, cgroups });
        Ok(())
    }
}

/// Whether the kernel has as many rules as it was given, and the same addresses and ports. (Not whether each
/// rule says the same: versions of nft put that into different words.)
pub(super) fn is_outline(rules: &Rules, listing: &Listing) -> bool {
    let mut outlines = [rules.expected(), listing.canonical()].map(|c| Listing::outline(&c));
    if !rules.cgroups.is_empty() {
        for outline in &mut outlines {
            outline["rules"]["pick"] = Value::Null;
        }
    }
    outlines[0] == outlines[1]
}

fn cgroups(rules: &Rules) -> BTreeMap<String, u64> {
    let number = |path: &String| Path::new(CGROUPS).join(path).metadata().ok().map(|m| m.ino());
    rules.cgroups.iter().filter_map(|path| Some((path.clone(), number(path)?))).collect()
}

/// Whether nft and the kernel can tell these control groups, in a table that is never made.
fn probe(cgroups: &BTreeMap<String, u64>) -> Result<(), InterceptError> {
    let mut text = format!("table inet {TABLE}_probe {{\n chain probe {{\n");
    for path in cgroups.keys() {
        let level = path.split('/').count();
        text += &format!("  socket cgroupv2 level {level} \"{path}\" accept\n");
    }
    nft::run(&["-c", "-f", "-"], &(text + " }\n}\n")).map(drop)
}

fn pick(rules: &Rules, cgroups: &BTreeMap<String, u64>) -> Result<(), InterceptError> {
    nft::run(&["-f", "-"], &rules.pick(cgroups.keys().map(String::as_str))).map(drop)
}
