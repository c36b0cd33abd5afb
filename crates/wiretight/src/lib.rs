//! The `wiretight` program: everything around the data plane.
//!
//! - [`cli`]: one file a verb
//! - [`node`]: what `wiretight run` starts, and what it is told to do while it runs
//! - [`admin`]: how the command line, probes and Prometheus ask a running node
//! - [`authority`], [`agent`], [`control`]: issuing identities, obtaining them, and what is said between
//! - [`log`]: the public record of everything that was issued
//! - [`acme`], [`sites`]: the certificates of sites
//! - [`acme_server`]: certificates for programs with an ACME client of their own
//! - [`intercept`]: puts the kernel's rules in force and keeps them there
//! - [`web`]: the HTTP client and server of the log
//! - [`config`]: the one file
//! - [`logging`], [`private_dir`]: log lines, files of the state folder
//! - [`sandbox`], `privilege`, `program`: what a process of ours may do, and how it starts another

pub mod acme;
pub mod acme_server;
pub mod admin;
pub mod agent;
pub mod authority;
pub mod cli;
mod clock;
pub mod config;
pub mod control;
pub mod intercept;
pub mod log;
pub mod logging;
mod named_files;
pub mod node;
pub mod private_dir;
mod privilege;
mod program;
pub mod sandbox;
pub mod sites;
#[cfg(test)]
mod structure;
pub mod web;
