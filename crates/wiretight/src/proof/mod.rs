//! What the mesh can show of itself. One set of facts ([`facts`]) for the public page, the console and the auditor's
//! archive.

pub mod collect;
pub mod facts;

pub use collect::collect;
