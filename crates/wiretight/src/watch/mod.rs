//! What flows, and what of it is encrypted.
//!
//! - [`host`]: the traffic of this machine, watched by a running node
//! - [`capture`]: packets of an interface, such as a mirror port
//! - [`owners`]: the programs of captured flows

pub mod capture;
pub mod host;
pub mod owners;
mod sys;
