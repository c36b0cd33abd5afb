//! Loads, maintains and removes the kernel's rules (`wiretight_proxy::intercept`).
//!
//! - `keeper`: the child process that maintains the rules of a running node, with CAP_NET_ADMIN and nothing else
//! - `table`: the nftables table; changes are transactions that are checked and read back
//! - `guard`: a second table, for the moments in which the main table is missing
//! - `owned`: tables that exist only while their process runs
//! - `node`: the rules of a running node
//! - `refused`: connections that would be redirected and then refused by the peer
//! - `programs`, `sockets`: which programs send plaintext
//! - `routes`: routes that bring replies to callers' addresses back to this machine (`transparent`)
//! - `boot`: the rules without a node
//! - `nft`, `program`: commands for `nft`, and how `nft` and `ip` are run
//! - `notices`: the kernel's notifications of changes
//!
//! The rules are saved in `STATE_DIR/rules.json`, so that the next boot can load them before the network is up
//! ([`load`]), and so that the keeper knows that a missing table must be restored. Only [`down`] removes the table and
//! the file. The end of a process never removes rules.

mod boot;
mod guard;
mod keeper;
mod nft;
mod node;
mod notices;
mod owned;
mod program;
mod programs;
mod refused;
mod routes;
mod sockets;
mod table;

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use socket2::SockRef;
use wiretight_proxy::clock::now;
use wiretight_proxy::intercept::listing::Counts;
use wiretight_proxy::intercept::rules::{GUARD, Mode, Rules, RulesError, TABLE};
use wiretight_proxy::net;

use crate::logging::chain;
use crate::private_dir::{FileError, Lock, PrivateDir};

pub use boot::{guard, load};
pub use keeper::{Health, Keeper, MAX_TRIAL, MIN_TRIAL, Report, TrialStatus, serve, work};
pub(crate) use node::Interception;
pub use node::{InterceptStatus, Strict};
pub(crate) use owned::Owned;
pub(crate) use programs::Groups;
pub use refused::{Failure, WouldFail};
pub(crate) use sockets::Finder;

/// The saved rules.
const FILE: &str = "rules.json";
/// Exists after [`down`] until rules are saved again: without it, missing rules are lost ones.
const DOWN: &str = "rules.down";
/// The lock for changes of the table or the file.
const LOCK: &str = "rules.lock";
/// The largest file or message, in bytes.
const MAX_RULES: usize = 8 << 20;
/// How long to wait for the lock.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
/// How long [`down`] waits until a node has removed its guard table.
const GUARD_PATIENCE: Duration = Duration::from_secs(5);

/// Why rules were not applied or a request failed, grouped by who must act.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InterceptError {
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Foreign(#[from] ForeignError),
    #[error(transparent)]
    Operator(#[from] OperatorError),
    #[error(
        "the process that maintains the kernel's rules is gone ({0}). Rules that are in force are unchanged. Restart the node."
    )]
    Gone(String),
    /// Invalid rules, a file of ours, the lock, or a program that hangs. It may be unknown which rules are in force.
    #[error("{0}")]
    Own(String),
}

/// This machine lacks a program, a permission or a feature. What needed it was not applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MachineError {
    #[error("`nft` is not in PATH, so no rules were applied. Install the package nftables.")]
    NoNft,
    #[error(
        "`ip` is not in PATH, so backends cannot see callers' addresses (`transparent`). Install the package iproute2."
    )]
    NoIp,
    #[error(
        "this process may not change the kernel's rules, so none were applied. Run it as root, or give it CAP_NET_ADMIN (AmbientCapabilities= in the systemd unit)."
    )]
    NotPermitted,
    #[error(
        "the kernel or nft rejected the rules, so none were applied. Wiretight needs Linux 5.10 and nft 1.0.6 or newer, with nf_tables, NAT, redirect, `socket` and `fib`: {0}"
    )]
    Rules(String),
    #[error(
        "the routes for `transparent` services could not be set, so connections to these services are refused. This needs Linux 5.10 and iproute2 5.10 or newer: {0}"
    )]
    Routes(String),
}

/// Another program uses our names or numbers in the kernel, or changed what Wiretight loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ForeignError {
    #[error(
        "the nftables table `inet wiretight` exists but was not created by Wiretight. It was not changed, and no rules were applied. Inspect it with `nft list table inet wiretight`, and remove or rename it."
    )]
    Table,
    #[error(
        "routing table and rule priority {n}, which `transparent` services need, are in use by another program. Nothing was changed, and connections to these services are refused. Inspect `ip rule` and `ip route show table {n}` (also with -6), and change the other program's numbers: {0}",
        n = routes::OURS
    )]
    Routes(String),
    #[error(
        "the kernel's rules differ from what Wiretight loaded. Another program probably changes the table `inet wiretight`."
    )]
    Different,
    /// nft 1.0.6 prints garbage for the flags of a dormant table.
    #[error("cannot parse nft's listing of the table `inet wiretight`: {0}")]
    Unreadable(String),
}

/// The operator's request is not possible in the current state, or the operator has removed the rules.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperatorError {
    #[error(
        "`wiretight down` removed the kernel's rules: plaintext may leave this machine. Restart the node to load them again."
    )]
    TakenDown,
    #[error(
        "a trial of {} mode is running. Keep it with `wiretight mode confirm`, or end it with `wiretight mode undo`.", .0.word()
    )]
    TrialRuns(Mode),
    #[error("no trial is running; it may have timed out. `wiretight mode` shows the current mode.")]
    NoTrial,
    #[error("{} mode is already on", .0.word())]
    InForce(Mode),
    #[error("no rules are in force, so no mode can be tried. `wiretight status` shows why.")]
    NoRules,
    #[error("a trial must last {min} s to {max} s, not {seconds} s", min = MIN_TRIAL.as_secs(), max = MAX_TRIAL.as_secs())]
    TrialLength { seconds: u64 },
}

impl From<RulesError> for InterceptError {
    fn from(e: RulesError) -> InterceptError {
        InterceptError::Own(format!("invalid rules: {e}"))
    }
}

impl From<FileError> for InterceptError {
    fn from(e: FileError) -> InterceptError {
        InterceptError::Own(chain(&e))
    }
}

/// The rules in the kernel compared with the saved rules.
#[derive(Debug, Clone, Serialize)]
pub struct Shown {
    /// Whether our table is in the kernel.
    pub in_force: bool,
    /// Whether the table matches the saved rules.
    pub as_kept: bool,
    /// The saved rules.
    pub rules: Option<Rules>,
    /// Since the table was created.
    pub counts: Counts,
}

/// Marks this process's sockets as a node's, so that this machine's rules let them pass. For commands that connect to the
/// mesh while no node is running: rules from an earlier run would drop those connections.
///
/// # Errors
/// There are rules, and this process may not mark its packets. The error says what to do.
pub(crate) fn pass_own_rules(state: &Path) -> Result<(), String> {
    if !state.join(FILE).exists() {
        return Ok(());
    }
    let probe = UdpSocket::bind("127.0.0.1:0").and_then(|s| SockRef::from(&s).set_mark(node::MARK));
    match probe {
        Ok(()) => {
            net::set_mark(node::MARK);
            Ok(())
        }
        Err(e) => Err(format!(
            "this machine's own rules ({}) may drop this connection, because this user may not mark its packets ({e}). \
             Run `wiretight join` as root or with CAP_NET_RAW, or put the token into join_token_file and start the node",
            state.join(FILE).display()
        )),
    }
}

pub fn show(state: &PrivateDir) -> Result<Shown, InterceptError> {
    let rules = kept(state)?;
    let listing = nft::list()?;
    let as_kept = match (&rules, &listing) {
        (Some(rules), Some(listing)) => {
            table::is_outline(rules, listing) && routes::are(&rules.transparent)?
        }
        (None, None) => true,
        _ => false,
    };
    let in_force = listing.is_some();
    Ok(Shown {
        in_force,
        as_kept,
        rules,
        counts: listing.map(|l| l.counts(now())).unwrap_or_default(),
    })
}

/// Removes the rules: the file first, so that no keeper restores the table. Returns whether there was anything to remove.
pub fn down(state: &PrivateDir) -> Result<bool, InterceptError> {
    let lock = lock(state)?;
    // Fails if the table is not ours.
    let listing = nft::list()?;
    let was_kept = state.path().join(FILE).exists();
    let noted = state.write(DOWN, b"");
    state.remove(FILE)?;
    if listing.is_some() {
        nft::run(&["delete", "table", "inet", TABLE], "")?;
    }
    routes::put(&BTreeSet::new())?;
    // A running node notices the change and removes its guard table.
    drop(lock);
    let end = Instant::now() + GUARD_PATIENCE;
    while !nft::tables(GUARD)?.is_empty() {
        if Instant::now() > end {
            // Its holder hangs.
            return Err(InterceptError::Own(format!(
                "the main table was removed, but a table `inet {GUARD}_...` remains, because the node's process that owns it hangs. Stop the node to remove it."
            )));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    noted.map_err(|e| {
        InterceptError::Own(format!(
            "the rules were removed, but that was not saved: if the configuration file has strict mode, the next boot loads its rules: {}",
            chain(&e)
        ))
    })?;
    Ok(was_kept || listing.is_some())
}

/// Whether there are saved rules, readable or not.
pub(crate) fn are_saved(state_dir: &Path) -> bool {
    state_dir.join(FILE).exists()
}

/// Whether the operator has removed the rules.
fn is_down(state: &PrivateDir) -> bool {
    state.path().join(DOWN).exists() && !are_saved(state.path())
}

fn file(state: &PrivateDir) -> String {
    state.path().join(FILE).display().to_string()
}

/// The saved rules; `None` without a file.
fn kept(state: &PrivateDir) -> Result<Option<Rules>, InterceptError> {
    let torn = |e: String| {
        InterceptError::Own(format!(
            "{} is unreadable: {e}. Rules that are in force are unchanged. `wiretight run` writes the file again.",
            file(state)
        ))
    };
    let bytes = state.read(FILE, MAX_RULES).map_err(|e| torn(chain(&e)))?;
    let Some(bytes) = bytes else { return Ok(None) };
    let rules: Rules = serde_json::from_slice(&bytes).map_err(|e| torn(e.to_string()))?;
    rules.check().map_err(|e| torn(e.to_string()))?;
    Ok(Some(rules))
}

fn keep(state: &PrivateDir, rules: &Rules) -> Result<(), InterceptError> {
    let not_kept = |e: &(dyn std::error::Error + 'static)| {
        InterceptError::Own(format!(
            "the rules are in force now, but were not saved for the next boot: {}",
            chain(e)
        ))
    };
    let bytes = serde_json::to_vec_pretty(rules).map_err(|e| not_kept(&e))?;
    // In this order: after a crash in between, the rules count as lost, not as removed by the operator.
    state.remove(DOWN).and_then(|()| state.write(FILE, &bytes)).map_err(|e| not_kept(&e))
}

fn lock(state: &PrivateDir) -> Result<Lock, InterceptError> {
    let end = Instant::now() + LOCK_PATIENCE;
    loop {
        match state.lock(LOCK)? {
            Some(lock) => return Ok(lock),
            None if Instant::now() < end => std::thread::sleep(Duration::from_millis(5)),
            None => {
                return Err(InterceptError::Own(format!(
                    "another process has held the lock on the rules for {LOCK_PATIENCE:?}. Check that it is not suspended."
                )));
            }
        }
    }
}
