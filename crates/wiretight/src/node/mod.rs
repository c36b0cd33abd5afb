//! A node, from its start to its end.
//!
//! - `process`: what `wiretight run` starts, in which order, and how it ends
//! - `takeover`: how the next process takes over from it
//! - `daemon`: a running node, as those who ask it see it
//! - `admin`: the server of the admin interface, which asks the daemon
//! - `mode`: changes the mode of interception, for `wiretight mode`

mod admin;
pub mod daemon;
mod mode;
pub(crate) mod process;
pub mod takeover;
