//! The mesh's log: who appends to it, who vouches for it, who reads it.
//!
//! - `storage`: where tiles are kept
//! - `sequencer`: appends entries, signs checkpoints, hands out proofs
//! - `cosigning`: has checkpoints cosigned by the witnesses of a policy
//! - `http`: how others' logs and witnesses are reached
//! - `witness`: cosigns the checkpoints of logs
//! - `reader`: reads a log, and believes what its checkpoint says
//! - `monitor`: watches a log, and what is issued
//! - `evidence`: what is kept when a log forks

pub mod cosigning;
pub mod evidence;
pub mod http;
pub mod monitor;
pub mod reader;
pub mod sequencer;
pub mod storage;
pub mod witness;
