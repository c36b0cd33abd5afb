//! The `wiretight` program: everything around the data plane.
//!
//! - [`cli`]: one file a verb
//! - [`config`]: the one file
//! - `process`: what `wiretight run` starts, in which order, and how it ends
//! - [`takeover`]: how the next process takes over from it
//! - [`daemon`]: a running node, as those who ask it see it
//! - [`authority`], [`agent`], [`control`]: issuing identities, obtaining them, and what is said between
//! - [`log`]: the public record of everything that was issued
//! - [`acme`]: the certificates of public sites
//! - [`acme_server`]: certificates for programs with an ACME client of their own
//! - [`intercept`]: puts the kernel's rules in force and keeps them there
//! - [`admin`]: how the command line, probes and Prometheus ask a running node

pub mod acme;
pub mod acme_server;
pub mod admin;
pub mod agent;
pub mod authority;
pub mod cli;
mod clock;
pub mod config;
pub mod control;
pub mod daemon;
pub mod intercept;
pub mod internal_certificates;
pub mod log;
pub mod logging;
mod named_files;
pub mod private_dir;
mod privilege;
mod process;
pub mod sandbox;
mod site_certificates;
mod site_health;
pub mod takeover;
