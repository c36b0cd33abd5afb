//! Certificates of sites that no ACME server issues, and since when sites have been healthy.
//!
//! - `files`: certificates that are files of the operator
//! - `internal`: certificates from the mesh's own authority
//! - `health`: since when each site serves with a valid certificate

pub(crate) mod files;
pub(crate) mod health;
pub mod internal;
