//! The node process.
//!
//! - `process`: starts and stops everything that `wiretight run` runs
//! - `takeover`: upgrades, where a new process takes over from the running one
//! - `daemon`: the running node as the admin interface sees it
//! - `admin`: the server of the admin interface
//! - `mode`: changes the interception mode, for `wiretight mode`
//! - `publishing`: keeps the public folder up to date
//! - `reporting`: what this node tells the authority about itself

mod admin;
pub mod daemon;
mod mode;
pub(crate) mod process;
mod publishing;
mod reporting;
pub mod takeover;
