//! What flows, and what of it is encrypted.
//!
//! - [`host`]: the traffic of this machine, watched by a running node

pub mod host;
