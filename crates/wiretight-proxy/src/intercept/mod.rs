//! Interception: what the kernel does so that no program of this machine talks to the mesh in the clear.
//!
//! - [`rules`]: which packets are redirected to the relay, which are counted, which are dropped
//! - [`listing`]: what the kernel says is in force, and what it has counted
//! - [`fallback`]: what is put in force when rules cannot be
//! - [`forecast`]: what a stricter mode would stop
//!
//! All are pure: whoever runs `nft` is elsewhere.

pub mod fallback;
pub mod forecast;
pub mod listing;
mod registered;
pub mod rules;
