//! Tests of the edge. Most are in one binary, because each binary compiles the rig again and is linked separately.
#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

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
