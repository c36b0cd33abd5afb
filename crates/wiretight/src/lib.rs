//! The `wiretight` program: everything around the data plane.
//!
//! - [`cli`]: one file a verb
//! - [`config`]: the one file
//! - [`daemon`]: what `wiretight run` starts and keeps going
//! - [`authority`], [`agent`], [`control`]: issuing identities, obtaining them, and what is said between
//! - [`acme`]: the certificates of public sites
//! - [`acme_server`]: certificates for programs with an ACME client of their own
//! - [`admin`]: how the command line, probes and Prometheus ask a running node

pub mod acme;
pub mod acme_server;
pub mod admin;
pub mod agent;
pub mod authority;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod internal_certificates;
pub mod logging;
pub mod private_dir;
pub mod sandbox;
mod site_certificates;
mod site_health;
