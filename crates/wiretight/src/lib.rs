//! The `wiretight` program: everything except the data plane.
//!
//! - [`cli`]: the command line, one file per verb
//! - [`node`]: the running node, started by `wiretight run`
//! - [`admin`]: the interface of a running node for the command line, probes and Prometheus
//! - [`authority`], [`agent`], [`control`]: issuing identities, obtaining them, and the protocol between
//! - [`log`]: the transparency log, witnesses and monitors
//! - [`acme`], [`sites`]: certificates of sites
//! - [`acme_server`]: certificates for programs with an ACME client
//! - [`intercept`]: loads and maintains the kernel's rules
//! - [`watch`]: which traffic is encrypted
//! - [`web`]: HTTP client and server for the log
//! - [`proof`], [`console`]: what is claimed about the mesh and how it is proved; the pages that show it
//! - [`release`]: releases that prove themselves
//! - [`config`]: the configuration file
//! - [`logging`], [`private_dir`]: log lines, files in the state directory
//! - [`sandbox`], `privilege`, `program`: restrictions of this process, and starting another one
//! - `netlink`, `exposition`: messages of the kernel; metrics in the formats of Prometheus

pub mod acme;
pub mod acme_server;
pub mod admin;
pub mod agent;
pub mod authority;
pub mod cli;
mod clock;
pub mod config;
pub mod console;
pub mod control;
mod exposition;
pub mod intercept;
pub mod log;
pub mod logging;
mod named_files;
mod netlink;
pub mod node;
pub mod private_dir;
mod privilege;
mod program;
pub mod proof;
pub mod release;
pub mod sandbox;
pub mod sites;
#[cfg(test)]
mod structure;
pub mod watch;
pub mod web;
