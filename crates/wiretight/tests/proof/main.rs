//! What is claimed about a mesh, compared with what it does; and the pages that show it.

#![allow(clippy::unwrap_used, reason = "in a test, whatever is not there ends it")]

mod audit;
mod browser;
mod busy;
#[path = "../common/mod.rs"]
mod common;
mod console;
#[allow(dead_code, reason = "the scenarios use all of it")]
#[path = "../scenarios/machines.rs"]
mod machines;
mod mesh;
mod pages;
mod publish;
#[allow(dead_code, reason = "the scenarios use all of it")]
#[path = "../scenarios/rig.rs"]
mod rig;
mod sample;
mod vectors;
mod verify;
