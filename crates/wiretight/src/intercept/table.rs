//! Our nftables table: creates, changes, checks and restores it.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::Value;
use wiretight_proxy::intercept::listing::Listing;
use wiretight_proxy::intercept::rules::{Rules, TABLE};

use super::{ForeignError, InterceptError, nft};

/// The mount point of control groups (v2) that `nft` uses.
const CGROUPS: &str = "/sys/fs/cgroup";

#[derive(Default)]
pub(super) struct Table {
    applied: Option<Applied>,
}

struct Applied {
    rules: Rules,
    /// The kernel's listing of the table.
    looks: Value,
    /// The existing ones, with their inode numbers: a control group that is created again has another number.
    cgroups: BTreeMap<String, u64>,
}

impl Table {
    /// The existing table, if it matches these rules exactly. Packets and counters are not affected.
    pub(super) fn adopt(rules: &Rules) -> Result<Option<Table>, InterceptError> {
        // A listing does not reliably show which control groups are redirected.
        let listing = match nft::list() {
            Err(InterceptError::Foreign(ForeignError::Unreadable(_))) => None,
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

    /// Loads rules. Counters are kept if the existing table is one that we can change.
    pub(super) fn apply(&mut self, rules: &Rules) -> Result<(), InterceptError> {
        let there = match nft::list() {
            Err(InterceptError::Foreign(ForeignError::Unreadable(_))) => {
                return self.put(rules, true);
            }
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
            // Restore the state before the call.
            self.put(&old, true)?;
            return Err(error);
        }
        self.look(rules)
    }

    /// Restores the table. `gone`: it was probably deleted.
    pub(super) fn mend(&mut self, gone: bool) -> Result<(), InterceptError> {
        let Some(applied) = &self.applied else { return Ok(()) };
        let rules = applied.rules.clone();
        // Without listing the table first, because plaintext may get out meanwhile. Both transactions fail if they do
        // not fit the existing state.
        let first = if gone { rules.create()? } else { rules.refill()? };
        if nft::apply(&first).is_ok() && self.finish(&rules).is_ok() {
            return Ok(());
        }
        // A table that is not ours is an error, and is left alone. A dormant table counts as gone, because only a new one
        // is surely active.
        let (there, gone) = match nft::list() {
            Err(InterceptError::Foreign(ForeignError::Unreadable(_))) => (true, true),
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

    /// `there`: our table exists, with any content.
    fn put(&mut self, rules: &Rules, there: bool) -> Result<(), InterceptError> {
        if !there {
            nft::apply(&rules.create()?)?;
            let done = self.finish(rules);
            if done.is_err() {
                // Leave nothing half applied.
                nft::run(&["delete", "table", "inet", TABLE], "")?;
                self.applied = None;
            }
            return done;
        }
        if nft::apply(&rules.refill()?).is_ok() && self.finish(rules).is_ok() {
            return Ok(());
        }
        // The table is from another version, or another program has added something to it.
        nft::apply(&rules.replace()?)?;
        self.finish(rules)
    }

    fn finish(&mut self, rules: &Rules) -> Result<(), InterceptError> {
        if !rules.cgroups.is_empty() {
            pick(rules, &cgroups(rules))?;
        }
        self.look(rules)
    }

    pub(super) fn is_intact(&self) -> Result<bool, InterceptError> {
        Ok(self.is_intact_but_for_groups()? && !self.is_stale())
    }

    /// Whether the kernel's listing is unchanged.
    pub(super) fn is_intact_but_for_groups(&self) -> Result<bool, InterceptError> {
        let Some(applied) = &self.applied else { return Ok(true) };
        match nft::list() {
            Err(InterceptError::Foreign(_)) => Ok(false),
            listing => Ok(listing?.is_some_and(|l| l.canonical() == applied.looks)),
        }
    }

    /// Whether control groups have appeared, disappeared or been created again. Cheap.
    pub(super) fn is_stale(&self) -> bool {
        self.applied.as_ref().is_some_and(|a| cgroups(&a.rules) != a.cgroups)
    }

    /// Redirects the control groups that exist now.
    pub(super) fn pick_anew(&mut self) -> Result<(), InterceptError> {
        let Some(rules) = self.rules().cloned() else { return Ok(()) };
        pick(&rules, &cgroups(&rules))?;
        self.look(&rules)
    }

    /// Reads the table back and checks it.
    fn look(&mut self, rules: &Rules) -> Result<(), InterceptError> {
        let listing = nft::list()?.ok_or(ForeignError::Different)?;
        if !is_outline(rules, &listing) || listing.is_dormant() {
            return Err(ForeignError::Different.into());
        }
        let (looks, cgroups) = (listing.canonical(), cgroups(rules));
        self.applied = Some(Applied { rules: rules.clone(), looks, cgroups });
        Ok(())
    }
}

/// Whether the kernel has the expected number of rules, and the same addresses and ports. The text of each rule is not
/// compared, because it depends on the version of nft.
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

/// Checks, with a table that is never created, that nft and the kernel can match these control groups.
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
