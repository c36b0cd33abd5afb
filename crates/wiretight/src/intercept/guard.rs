//! The guard table, `inet wiretight_guard_...`. It drops what the main table would drop while that is missing, that is,
//! after another program flushed the ruleset and before the keeper has restored it.
//!
//! The table is owned by an `nft` process that keeps running (NFT_TABLE_F_OWNER, Linux 5.12). Nobody else can change or
//! delete it, and `nft flush ruleset` skips it. It disappears when that process ends, and the process ends with this one,
//! when its input is closed. So it exists only while a node runs. Nothing depends on it: the main table works without.
//!
//! Each guard table has its own name, because in an upgrade the new one is set before the old one disappears.

use std::io::Write;
use std::process::{Child, ChildStdin};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use wiretight_proxy::intercept::rules::{GUARD, GUARD_CHAIN, Rules};

use super::{InterceptError, MachineError, nft, program};

/// How long filling the table may take; no repair can happen meanwhile.
const PATIENCE: Duration = Duration::from_secs(2);
/// Numbers the tables of this process.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// The table, and the process that owns it.
#[derive(Default)]
pub(super) struct Guard {
    rules: Option<Rules>,
    holder: Option<Holder>,
}

struct Holder {
    nft: Child,
    /// nft ends when this is closed.
    input: Option<ChildStdin>,
}

impl Guard {
    /// Sets the guard table for these rules, which are in force; rules that drop nothing need none. After an error there
    /// is no guard table, so that an old one does not drop what the rules allow.
    pub(super) fn stand_behind(&mut self, rules: &Rules) -> Result<(), InterceptError> {
        if self.stands() && self.rules.as_ref() == Some(rules) {
            return Ok(());
        }
        let next = if rules.drops() { Some(hold(rules)) } else { None };
        // Remove the old one even if there is no new one: it could drop more than the new rules do.
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

    /// Whether its process has ended unexpectedly.
    pub(super) fn has_fallen(&mut self) -> bool {
        self.holder.is_some() && !self.stands()
    }

    pub(super) fn stands(&mut self) -> bool {
        self.holder.as_mut().is_some_and(|h| matches!(h.nft.try_wait(), Ok(None)))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // The table disappears with the process, so wait for its end.
        self.input = None;
        let _ = self.nft.kill();
        let _ = self.nft.wait();
    }
}

fn hold(rules: &Rules) -> Result<Holder, InterceptError> {
    // nft's JSON input has no table flags, so this is nft's text syntax. A listing of such a table is not always valid
    // JSON either: nft 1.0.6 reads past the end of its flag names.
    let table = format!("{GUARD}_{}_{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
    if nft::guards()?.contains(&table) {
        return Err(MachineError::Rules(format!("the table `inet {table}` already exists")).into());
    }
    let text = format!("add table inet {table} {{ flags owner; }}\n{}\n", rules.guard(&table)?);
    let mut nft = nft::start(&["-j", "-i"])?;
    let (mut input, prompts, error) = (nft.stdin.take(), nft.stdout.take(), nft.stderr.take());
    let mut holder = Holder { nft, input: None };
    // Each pipe has a thread, because a pipe that nobody reads fills up. The threads end with the process.
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
        return Err(MachineError::Rules(said).into());
    }
    holder.input = filled.join().ok().flatten();
    Ok(holder)
}

fn is_filled_in_time(table: &str, nft: &mut Child) -> Result<bool, InterceptError> {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end && matches!(nft.try_wait(), Ok(None)) {
        // The transaction is atomic: one chain means that all are there.
        if nft::has_chain(table, GUARD_CHAIN)? {
            return Ok(true);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(false)
}
