//! The edge: one binary for most of its tests, because each binary compiles the rig and is linked once more.
#![allow(clippy::unwrap_used, reason = "a test says so by panicking")]

mod clients;
mod floods;
mod framing;
mod gone;
mod on_demand;
mod refused;
mod reload;
#[path = "../rig/mod.rs"]
mod rig;
mod serves;
