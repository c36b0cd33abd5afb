//! The mesh's log: who appends to it, who vouches for it, who reads it.
//!
//! - `storage`: where tiles are kept
//! - `sequencer`: appends entries, signs checkpoints, hands out proofs
//! - `cosigning`: has checkpoints cosigned by the witnesses of a policy

pub mod cosigning;
pub mod sequencer;
pub mod storage;
