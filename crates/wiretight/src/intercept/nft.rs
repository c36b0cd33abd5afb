//! The commands for `nft`.

use std::process::Child;

use serde_json::Value;
use wiretight_proxy::intercept::listing::Listing;
use wiretight_proxy::intercept::rules::TABLE;

use super::program::{self, ProgramError};
use super::{ForeignError, InterceptError, MachineError};

/// Runs a transaction, which is atomic.
pub(super) fn apply(transaction: &Value) -> Result<(), InterceptError> {
    run(&["-j", "-f", "-"], &transaction.to_string()).map(drop)
}

/// Checks a transaction without applying it.
pub(super) fn check(transaction: &Value) -> Result<(), InterceptError> {
    run(&["-c", "-j", "-f", "-"], &transaction.to_string()).map(drop)
}

/// Our table; `None` if there is none. A table of that name that is not ours is an error.
pub(super) fn list() -> Result<Option<Listing>, InterceptError> {
    let Some(listed) = unless_missing(run(&["-j", "list", "table", "inet", TABLE], ""))? else {
        return Ok(None);
    };
    // The table was removed while it was being listed.
    if listed.trim_ascii().is_empty() {
        return Ok(None);
    }
    let listing = Listing::parse(&listed).map_err(|e| ForeignError::Unreadable(e.to_string()))?;
    if listing.is_ours() { Ok(Some(listing)) } else { Err(ForeignError::Table.into()) }
}

/// Whether a table of the family `inet` has that chain.
pub(super) fn has_chain(table: &str, chain: &str) -> Result<bool, InterceptError> {
    Ok(unless_missing(run(&["list", "chain", "inet", table, chain], ""))?.is_some())
}

fn unless_missing<T>(ran: Result<T, InterceptError>) -> Result<Option<T>, InterceptError> {
    match ran {
        Err(InterceptError::Machine(MachineError::Rules(why)))
            if why.contains("No such file or directory") =>
        {
            Ok(None)
        }
        ran => ran.map(Some),
    }
}

/// The names of the tables that start like this.
pub(super) fn tables(prefix: &str) -> Result<Vec<String>, InterceptError> {
    let listed = run(&["list", "tables", "inet"], "")?;
    let listed = String::from_utf8_lossy(&listed);
    let names = listed.split_whitespace().filter(|word| word.starts_with(prefix));
    Ok(names.map(str::to_owned).collect())
}

/// Starts an interactive nft.
pub(super) fn start(args: &[&str]) -> Result<Child, InterceptError> {
    program::start("nft", args).map_err(explain)
}

pub(super) fn run(args: &[&str], input: &str) -> Result<Vec<u8>, InterceptError> {
    program::run("nft", args, input).map_err(explain)
}

fn explain(error: ProgramError) -> InterceptError {
    error.explain(MachineError::NoNft, MachineError::Rules)
}
