//! `[release]`: which programs this node accepts as its next one.

use std::path::PathBuf;

use super::report::Report;
use super::section::Section;
use super::value::absolute_path;

/// `[release]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// Who is believed about releases (docs/release.md); absolute.
    pub policy: PathBuf,
    /// The proof of the installed program; absolute. `None`: beside it, `FILE.proof`.
    pub proof: Option<PathBuf>,
}

pub(super) fn read_release(report: &mut Report<'_>, mut s: Section<'_>) -> Option<Release> {
    let policy = s.required(report, "policy", absolute_path);
    let proof = s.optional(report, "proof", absolute_path);
    s.finish(report);
    Some(Release { policy: policy?.value, proof: proof.given() })
}
