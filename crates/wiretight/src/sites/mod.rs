//! Site certificates that do not come from an ACME server, and the health of sites.
//!
//! - `files`: certificates from the operator's files
//! - `internal`: certificates from the mesh's authority
//! - `health`: since when each site has served with a valid certificate

pub(crate) mod files;
pub(crate) mod health;
pub mod internal;
