//! What the mesh can show of itself. One set of facts ([`facts`]) for the public page, the console and the auditor's
//! archive.
//!
//! - `chart`: charts as SVG, for pages
//! - `collect`: collects the facts from the authority

pub mod chart;
pub mod collect;
pub mod facts;

pub use collect::collect;
