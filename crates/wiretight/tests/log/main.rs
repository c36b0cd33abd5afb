//! The transparency log: sequencer, witnesses, readers, monitors and verifiers, over real HTTP and with the real binary.
//!
//! `cargo test --release -p wiretight --test log`

#![allow(clippy::unwrap_used, reason = "in a test, whatever is not there ends it")]

#[path = "../common/mod.rs"]
mod common;
mod damage;
mod forged;
mod http;
mod monitor;
mod monitor_chain;
mod monitor_faults;
mod monitor_names;
mod prove;
mod rig;
mod sequencer;
mod verify;
mod verify_url;
mod witness;
