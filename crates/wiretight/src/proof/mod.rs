//! What the mesh can show of itself. One set of facts ([`facts`]) for the public page, the console and the auditor's
//! archive.
//!
//! - [`mod@collect`]: the facts, from the authority
//! - [`audit`], [`controls`]: the auditor's archive, and the controls that it is evidence for
//! - [`log_part`]: claims with their proofs, for both
//! - [`publish`]: the public folder; [`public`]: its facts; [`page`]: its page
//! - [`reported`]: what machines reported that is not in the log
//! - [`scans`]: reports of the scanner
//! - `chart`: charts as SVG, for pages

pub mod audit;
pub mod chart;
pub mod collect;
pub mod controls;
pub mod facts;
pub mod log_part;
pub mod page;
pub mod public;
pub mod publish;
pub mod reported;
pub mod scans;

pub use collect::collect;
