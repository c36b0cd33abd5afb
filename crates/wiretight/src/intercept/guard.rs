//! A second table, `inet wiretight_guard_...`, which drops what ours would drop while ours is gone: somebody flushed the
//! ruleset, and it is not mended yet.
//!
//! It belongs to a process of `nft` that stays (NFT_TABLE_F_OWNER, Linux 5.12): nobody else may change or delete it,
//! and `nft flush ruleset` goes past it. It ends with that process, which ends with this one, for its input does.
//! So it guards while a node runs, and nothing depends on it: our own table is in force without it.
//!
//! Each has a name of its own: in an upgrade the next one stands before the last one falls.

use std::io::Write;
use std::process::{Child, ChildStdin};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use wiretight_proxy::intercept::rules::{GUARD, GUARD_CHAIN, Rules};

use super::{InterceptError, nft, program};

/// So long may it take to fill the table; meanwhile nothing is mended.
const PATIENCE: Duration = Duration::from_secs(2);
/// Numbers the tables of this process.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// The table, and whoever holds it.
#[derive(Default)]
pub(super) struct Guard {
    rules: Option<Rules>,
    holder: Option<Holder>,
}

struct Holder {
    nft: Child,
    /// It ends with its input.
    input: Option<ChildStdin>,
}

impl Guard {
    /// Behind these rules, which are in force; where they drop nothing, there is nothing to guard. After an error there
    /// is no guard, so that none is in the way of what the rules let through.
    pub(super) fn stand_behind(&mut self, rules: &Rules) -> Result<(), InterceptError> {
        if self.stands() && self.rules.as_ref() == Some(rules) {
            return Ok(());
        }
        let next = if rules.drops() { Some(hold(rules)) } else { None };
        // One that drops more than the rules do would be in their way; so it falls even if there is no other.
        self.fall();
        if let Some(next) = next {
            self.holder = Some(next?);
            self.rules = Some(rules.clone());
        }
        Ok(())
    }

    pub(super) fn fall(&mut self) {
        (self.holder, self.rules) = (None, None);
    }

    /// Whether somebody has ended it.
    pub(super) fn has_fallen(&mut self) -> bool {
        self.holder.is_some() && !self.stands()
    }

    /// Whether there is one.
    pub(super) fn stands(&mut self) -> bool {
        self.holder.as_mut().is_some_and(|h| matches!(h.nft.try_wait(), Ok(None)))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // The table is gone when the process is.
        self.input = None;
        let _ = self.nft.kill();
        let _ = self.nft.wait();
    }
}

fn hold(rules: &Rules) -> Result<Holder, InterceptError> {
    // nft's JSON does not know a table's flags; what is no JSON it reads as text. Nor is a list of such a table always
    // JSON: nft 1.0.6 looks for the flag's name behind the end of its names.
    let table = format!("{GUARD}_{}_{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
    if nft::guards()?.contains(&table) {
        return Err(InterceptError::Refused(format!("there is a table `inet {table}` already")));
    }
    let text = format!("add table inet {table} {{ flags owner; }}\n{}\n", rules.guard(&table)?);
    let mut nft = nft::start(&["-j", "-i"])?;
    let (mut input, prompts, error) = (nft.stdin.take(), nft.stdout.take(), nft.stderr.take());
    let mut holder = Holder { nft, input: None };
    // Each on a thread, for a pipe that nobody takes from is full one day. They end with the process.
    std::thread::spawn(move || program::read(prompts, 0));
    let error = std::thread::spawn(move || program::read(error, program::MAX_ERROR));
    let filled = std::thread::spawn(move || {
        input.as_mut().and_then(|input| input.write_all(text.as_bytes()).ok())?;
        input
    });
    if !is_filled_in_time(&table, &mut holder.nft)? {
        drop(holder);
        let said = error.join().unwrap_or_default();
        let said = String::from_utf8_lossy(&said).chars().take(500).collect();
        return Err(InterceptError::Refused(said));
    }
    holder.input = filled.join().ok().flatten();
    Ok(holder)
}

fn is_filled_in_time(table: &str, nft: &mut Child) -> Result<bool, InterceptError> {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end && matches!(nft.try_wait(), Ok(None)) {
        // It is filled at once or not at all.
        if nft::has_chain(table, GUARD_CHAIN)? {
            return Ok(true);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(false)
}
