//! The kernel's rules, by the real `nft` and the real binary, between network namespaces with a recording of
//! the wire.
//!
//! `cargo test --release -p wiretight --test intercept`. It needs root; without it, or without a program, tests
//! are skipped (a `skipped:` line says so), except where CI is set: there it is an error. No rule and no
//! address of the machine itself is touched.

#![allow(clippy::unwrap_used, reason = "in a test, whatever is not there ends it")]

mod counted;
mod keeper;
mod redirected;
mod rig;
mod strict;
mod trial;
mod verbs;
