//! Interception: kernel rules that prevent programs on this machine from sending plaintext to the mesh.
//!
//! - [`rules`]: which packets are redirected to the relay, counted or dropped
//! - [`listing`]: the kernel's current rules and counters
//! - [`fallback`]: the rules to use when the wanted ones cannot be applied
//! - [`forecast`]: what a stricter mode would drop
//!
//! No I/O here: `nft` is run elsewhere.

pub mod fallback;
pub mod forecast;
pub mod listing;
mod registered;
pub mod rules;
