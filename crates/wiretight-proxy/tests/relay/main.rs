//! Tests of the relay. Most are in one binary, because each binary compiles the rig again and is linked separately.
#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod foreign;
mod frames;
mod logged;
mod refused;
mod relays;
#[path = "../rig/mod.rs"]
mod rig;
