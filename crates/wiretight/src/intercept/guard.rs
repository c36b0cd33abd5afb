//! The guard table, `inet wiretight_guard_...`. It drops what the main table would drop while that is missing, that is,
//! after another program flushed the ruleset and before the keeper has restored it. It is [`Owned`], so it exists only
//! while a node runs. Nothing depends on it: the main table works without.

use wiretight_proxy::intercept::rules::{GUARD, GUARD_CHAIN, Rules};

use super::InterceptError;
use super::owned::Owned;

#[derive(Default)]
pub(super) struct Guard {
    rules: Option<Rules>,
    table: Option<Owned>,
}

impl Guard {
    /// Sets the guard table for these rules, which are in force; rules that drop nothing need none. After an error there
    /// is no guard table, so that an old one does not drop what the rules allow.
    pub(super) fn stand_behind(&mut self, rules: &Rules) -> Result<(), InterceptError> {
        if self.stands() && self.rules.as_ref() == Some(rules) {
            return Ok(());
        }
        let hold =
            || Owned::hold(GUARD, GUARD_CHAIN, |table| rules.guard(table).map(|g| g.to_string()));
        let next = rules.drops().then(hold);
        // Remove the old one even if there is no new one: it could drop more than the new rules do.
        self.fall();
        if let Some(next) = next {
            self.table = Some(next?);
            self.rules = Some(rules.clone());
        }
        Ok(())
    }

    pub(super) fn fall(&mut self) {
        (self.table, self.rules) = (None, None);
    }

    /// Whether its process has ended unexpectedly.
    pub(super) fn has_fallen(&mut self) -> bool {
        self.table.is_some() && !self.stands()
    }

    pub(super) fn stands(&mut self) -> bool {
        self.table.as_mut().is_some_and(Owned::stands)
    }
}
