//! The relay: one binary for most of its tests, because each binary compiles the rig and is linked once more.
#![allow(clippy::unwrap_used, reason = "a test says so by panicking")]

mod foreign;
mod frames;
mod logged;
mod refused;
mod relays;
#[path = "../rig/mod.rs"]
mod rig;
