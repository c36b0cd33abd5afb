//! Complete scenarios: the real binary, real servers and clients, foreign TLS software, kills and rotations under load.
//! Everything is on loopback, with its state in temporary directories.
//!
//! `cargo test --release -p wiretight --test scenarios`. Tests whose programs are not installed are skipped with a
//! `skipped:` line; if CI is set, that is an error.

#![allow(clippy::unwrap_used, reason = "in a test, whatever is not there ends it")]

mod acme;
mod acme_server;
mod backup;
mod chaos;
mod cli;
mod clocks;
#[path = "../common/mod.rs"]
mod common;
mod documents;
mod edge;
mod foreign;
mod hostile;
mod intercept;
mod life;
mod machines;
mod mixin;
mod operator;
mod privilege;
mod programs;
mod proved;
mod release;
mod rig;
mod scan;
mod setup;
mod tokens;
mod traffic;
mod transparency;
mod transparent;
mod upgrade;
mod watch_host;
mod watch_losses;
mod watch_programs;
mod web;
mod wire;
