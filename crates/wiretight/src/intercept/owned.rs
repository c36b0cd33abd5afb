//! A table that an `nft` process of ours owns (NFT_TABLE_F_OWNER, Linux 5.12). Nobody else can change or delete it, and
//! `nft flush ruleset` skips it. It disappears when that process ends, and the process ends with this one, when its input
//! is closed. So it exists only while this process runs, also if it is killed.

use std::io::Write;
use std::process::{Child, ChildStdin};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::{InterceptError, MachineError, nft, program};

/// How long filling the table may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Numbers the tables of this process.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// The process that owns the table.
pub(crate) struct Owned {
    nft: Child,
    /// nft ends when this is closed.
    input: Option<ChildStdin>,
}

impl Owned {
    /// Creates the table `inet PREFIX_...`. `fill` makes one line of nft's text syntax or JSON from its name; that line
    /// must add `chain`. Each table has its own name, because in an upgrade the new one is set before the old one
    /// disappears.
    pub(crate) fn hold<E: Into<InterceptError>>(
        prefix: &str,
        chain: &str,
        fill: impl FnOnce(&str) -> Result<String, E>,
    ) -> Result<Owned, InterceptError> {
        // nft's JSON input has no table flags, so this is nft's text syntax. A listing of such a table is not always
        // valid JSON either: nft 1.0.6 reads past the end of its flag names.
        let table = format!("{prefix}_{}_{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        if nft::tables(prefix)?.contains(&table) {
            let why = format!("the table `inet {table}` already exists");
            return Err(MachineError::Rules(why).into());
        }
        let lines = fill(&table).map_err(Into::into)?;
        let text = format!("add table inet {table} {{ flags owner; }}\n{lines}\n");
        let mut nft = nft::start(&["-j", "-i"])?;
        let (mut input, prompts, error) = (nft.stdin.take(), nft.stdout.take(), nft.stderr.take());
        let mut owned = Owned { nft, input: None };
        // Each pipe has a thread, because a pipe that nobody reads fills up. The threads end with the process.
        std::thread::spawn(move || program::read(prompts, 0));
        let error = std::thread::spawn(move || program::read(error, program::MAX_ERROR));
        let filled = std::thread::spawn(move || {
            input.as_mut().and_then(|input| input.write_all(text.as_bytes()).ok())?;
            input
        });
        if !is_filled_in_time(&table, chain, &mut owned.nft)? {
            drop(owned);
            let said = error.join().unwrap_or_default();
            let said = String::from_utf8_lossy(&said).chars().take(500).collect();
            return Err(MachineError::Rules(said).into());
        }
        owned.input = filled.join().ok().flatten();
        Ok(owned)
    }

    /// Whether the process is running, so that the table is there.
    pub(crate) fn stands(&mut self) -> bool {
        matches!(self.nft.try_wait(), Ok(None))
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // The table disappears with the process, so wait for its end.
        self.input = None;
        let _ = self.nft.kill();
        let _ = self.nft.wait();
    }
}

fn is_filled_in_time(table: &str, chain: &str, nft: &mut Child) -> Result<bool, InterceptError> {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end && matches!(nft.try_wait(), Ok(None)) {
        // The transaction is atomic: one chain means that all are there.
        if nft::has_chain(table, chain)? {
            return Ok(true);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(false)
}
