//! The interception rules with the real `nft` and the real binary, in network namespaces whose traffic is recorded.
//!
//! `cargo test --release -p wiretight --test intercept`. It needs root; without root, or without a needed program, tests
//! are skipped with a `skipped:` line (if CI is set, that is an error). The rules and addresses of the machine itself are
//! not changed.

#![allow(clippy::unwrap_used, reason = "in a test, whatever is not there ends it")]

mod boots;
#[path = "../common/mod.rs"]
mod common;
mod counted;
mod keeper;
mod redirected;
mod rig;
mod strict;
mod trial;
mod verbs;
