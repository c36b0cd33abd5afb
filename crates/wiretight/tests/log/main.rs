//! The log, from all sides.

#![allow(clippy::unwrap_used, reason = "a test says so by panicking")]

mod sequencer;
