//! The kernel's rules (`wiretight_proxy::intercept`): puts them in force, keeps them there, and removes them.
//!
//! - `keeper`: the child process that does it for a running node, with CAP_NET_ADMIN and nothing else
//! - `table`: one transaction, checked and read back
//! - `guard`: a second table, for the moments in which ours is gone
//! - `node`: what a running node has put in force
//! - `refused`: connections that it would take, and that peers would refuse
//! - `programs`, `sockets`: whose plaintext it is
//! - `routes`: what brings the answers to callers' addresses back (`transparent`)
//! - `nft`, `program`: what `nft` is asked for, and how it and `ip` are run
//! - `notices`: the kernel says that somebody changed something
//!
//! What is in force is kept in `STATE_DIR/rules.json`, so that it is there before the network at the next boot
//! ([`load`]), and so that whoever mends the table knows that it shall be there. Only [`down`] removes both.
//! Rules never go because a process has ended.

mod guard;
mod keeper;
mod nft;
mod node;
mod notices;
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
use wiretight_proxy::intercept::listing::Counts;
use wiretight_proxy::intercept::rules::{GUARD, Mode, Rules, RulesError, TABLE};
use wiretight_proxy::mesh::now;
use wiretight_proxy::relay::net;

use crate::private_dir::{FileError, Lock, PrivateDir};
use table::Table;

pub use keeper::{Health, Keeper, MAX_TRIAL, MIN_TRIAL, Report, TrialStatus, serve, work};
pub(crate) use node::Interception;
pub use node::{InterceptStatus, Strict};
pub use refused::{Failure, WouldFail};

/// The rules that are to be in force.
const FILE: &str = "rules.json";
/// Whoever changes the table or the file holds it.
const LOCK: &str = "rules.lock";
/// A larger file is refused, and a longer message, in bytes.
const MAX_RULES: usize = 8 << 20;
/// Somebody else is at it for so long at most.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
/// A node's second table stays for so long at most when ours is taken down.
const GUARD_PATIENCE: Duration = Duration::from_secs(5);

/// Why rules are not in force, or not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InterceptError {
    /// No program.
    #[error(
        "there is no program `nft` in PATH, and nothing was applied: install the package nftables"
    )]
    NoNft,
    /// Not root, and no capability.
    #[error(
        "this process may not change the kernel's rules, and nothing was applied: run it as root, or give it CAP_NET_ADMIN (AmbientCapabilities= in the unit)"
    )]
    NotPermitted,
    /// A table of that name.
    #[error(
        "there is a table `inet wiretight` that Wiretight has not made; it was not touched, and nothing was applied: look at it (`nft list table inet wiretight`), and remove or rename it"
    )]
    NotOurs,
    /// The kernel or nft does not know something.
    #[error(
        "the kernel or nft refuses the rules, and nothing was applied; this takes Linux 5.10 and nft 1.0.6 or newer, with nf_tables, its NAT, redirection, `socket` and `fib`: {0}"
    )]
    Refused(String),
    /// nft 1.0.6 writes a table's flags from memory that is not its own: so of one that was switched off.
    #[error("nft's list of the table `inet wiretight` cannot be read: {0}")]
    Unreadable(String),
    /// nft stood still.
    #[error(
        "nft does not come to an end, and was killed; whether the rules are in force is not known: {0}"
    )]
    Late(String),
    /// The kernel has something else than it was given.
    #[error(
        "the kernel does not have the rules that it was given; does something else change the table `inet wiretight`?"
    )]
    Different,
    /// No program.
    #[error(
        "there is no program `ip` in PATH, and callers' addresses (`transparent`) cannot be shown: install the package iproute2"
    )]
    NoIp,
    /// A rule or a route in the place of ours.
    #[error(
        "routing table and priority {n} are for `transparent` services, and somebody else uses them; nothing of that was touched or applied, and these services are refused. Look at it (`ip rule`, `ip route show table {n}`, and both with -6), and give it other numbers: {0}",
        n = routes::OURS
    )]
    RoutesNotOurs(String),
    /// The kernel or ip does not know something.
    #[error(
        "the routes for `transparent` services are not in force, and these services are refused; this takes Linux 5.10 and iproute2 5.10 or newer: {0}"
    )]
    Routes(String),
    /// The rules themselves.
    #[error("these rules cannot be: {0}")]
    Rules(String),
    /// In force, but the next boot would not have them.
    #[error("the rules are in force now, but not kept for the next boot: {0}")]
    NotKept(String),
    /// No file.
    #[error(
        "there is no {0}: no rules were put in force here, or `wiretight down` took them away; nothing was applied, and plaintext may leave this machine. `wiretight run` puts them in force"
    )]
    Nothing(String),
    /// A file that cannot be read.
    #[error(
        "{0} cannot be read, and nothing was applied: {1}. Rules that are in force stay; `wiretight run` writes the file anew"
    )]
    Torn(String, String),
    /// By the operator.
    #[error(
        "the kernel's rules were taken down by `wiretight down`: plaintext may leave this machine; restart the node to put them in force again"
    )]
    TakenDown,
    /// Files.
    #[error("{0}")]
    File(String),
    /// Its holder stands still.
    #[error(
        "our table is gone, but a table `inet {GUARD}_...` is still in force: the node's process that holds it stands still. It goes when the node ends"
    )]
    Guarded,
    /// Somebody else does.
    #[error("another process has been changing the rules for {LOCK_PATIENCE:?}: is it stopped?")]
    Busy,
    /// One at a time.
    #[error(
        "a trial of {} is running: `wiretight mode confirm` keeps it, `wiretight mode undo` ends it", .0.word()
    )]
    TrialRuns(Mode),
    /// It has ended.
    #[error(
        "no trial is running: it was not confirmed in time, or ended otherwise; `wiretight mode` says what is in force"
    )]
    NoTrial,
    /// What there is to try is there.
    #[error("{} is in force already", .0.word())]
    InForce(Mode),
    /// No rules that could have another mode.
    #[error("no rules are in force whose mode could be tried: `wiretight status` says why")]
    NoRules,
    /// Too long or too short.
    #[error("a trial is {min} s to {max} s long, not {seconds} s", min = MIN_TRIAL.as_secs(), max = MAX_TRIAL.as_secs())]
    TrialLength {
        /// What was asked.
        seconds: u64,
    },
    /// The child.
    #[error(
        "the process that keeps the kernel's rules is gone ({0}); rules that are in force stay: restart the node"
    )]
    Gone(String),
}

impl From<RulesError> for InterceptError {
    fn from(e: RulesError) -> InterceptError {
        InterceptError::Rules(e.to_string())
    }
}

/// What is in force, as far as this process may see it.
#[derive(Debug, Clone, Serialize)]
pub struct Shown {
    /// Whether our table is in the kernel.
    pub in_force: bool,
    /// Whether it is what the file says.
    pub as_kept: bool,
    /// The file.
    pub rules: Option<Rules>,
    /// Since the table was made.
    pub counts: Counts,
}

/// Puts what the file says in force: at boot, before the network. Whether it had to be done.
pub fn load(state: &PrivateDir) -> Result<bool, InterceptError> {
    let _lock = lock(state)?;
    let rules = kept(state)?.ok_or_else(|| InterceptError::Nothing(file(state)))?;
    let there = Table::adopt(&rules)?.is_some();
    if !there {
        Table::default().apply(&rules)?;
    }
    let routed = routes::are(&rules.transparent)?;
    if !routed {
        routes::put(&rules.transparent)?;
    }
    Ok(!there || !routed)
}

/// Has this process' connections pass this machine's rules, as those of a node do: for a command that speaks TLS to the
/// mesh while no node runs. Rules that are left from before drop it otherwise.
///
/// # Errors
/// There are rules, and this process may not mark its packets: what to do, in a sentence.
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
            "this machine's own rules ({}) may drop this connection, and this user may not mark it as the mesh's ({e}). \
             Run `wiretight join` as root or with CAP_NET_RAW; or put the token into join_token_file and start the node, \
             which may",
            state.join(FILE).display()
        )),
    }
}

/// What is in force.
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

/// Takes the rules away: the file first, so that nobody mends the table. Whether there was anything.
pub fn down(state: &PrivateDir) -> Result<bool, InterceptError> {
    let lock = lock(state)?;
    // Refuses a table that is not ours.
    let listing = nft::list()?;
    let was_kept = state.path().join(FILE).exists();
    state.remove(FILE).map_err(|e| InterceptError::File(crate::logging::chain(&e)))?;
    if listing.is_some() {
        nft::run(&["delete", "table", "inet", TABLE], "")?;
    }
    routes::put(&BTreeSet::new())?;
    // A node that runs hears of it, and lets its second table go.
    drop(lock);
    let end = Instant::now() + GUARD_PATIENCE;
    while !nft::guards()?.is_empty() {
        if Instant::now() > end {
            return Err(InterceptError::Guarded);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(was_kept || listing.is_some())
}

fn file(state: &PrivateDir) -> String {
    state.path().join(FILE).display().to_string()
}

/// The rules that are to be in force; `None` without a file.
fn kept(state: &PrivateDir) -> Result<Option<Rules>, InterceptError> {
    let torn = |e: String| InterceptError::Torn(file(state), e);
    let bytes = state.read(FILE, MAX_RULES).map_err(|e| torn(crate::logging::chain(&e)))?;
    let Some(bytes) = bytes else { return Ok(None) };
    let rules: Rules = serde_json::from_slice(&bytes).map_err(|e| torn(e.to_string()))?;
    rules.check().map_err(|e| torn(e.to_string()))?;
    Ok(Some(rules))
}

fn keep(state: &PrivateDir, rules: &Rules) -> Result<(), InterceptError> {
    let bytes =
        serde_json::to_vec_pretty(rules).map_err(|e| InterceptError::NotKept(e.to_string()))?;
    let not_kept = |e| InterceptError::NotKept(crate::logging::chain(&e));
    state.write(FILE, &bytes).map_err(not_kept)
}

/// Held until it is dropped.
fn lock(state: &PrivateDir) -> Result<Lock, InterceptError> {
    let failed = |e: FileError| InterceptError::File(crate::logging::chain(&e));
    let end = Instant::now() + LOCK_PATIENCE;
    loop {
        match state.lock(LOCK).map_err(failed)? {
            Some(lock) => return Ok(lock),
            None if Instant::now() < end => std::thread::sleep(Duration::from_millis(5)),
            None => return Err(InterceptError::Busy),
        }
    }
}
